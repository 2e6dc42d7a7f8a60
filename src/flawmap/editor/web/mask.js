// A mask's pixels, one byte each, and the steps that lead back: of every step only the tiles that it changed.

export const [DEFECT, IGNORE] = [255, 128];
const TILE = 64;
const MOST_HELD = 64_000_000; // bytes of steps; older ones are forgotten beyond that

export class Mask {
  constructor(width, height, levels = new Uint8Array(width * height)) {
    Object.assign(this, { width, height, levels });
    this.across = Math.ceil(width / TILE);
    this.undone = []; // steps: tile -> the pixels that undoing (or doing again) puts there
    this.done = [];
    this.floor = null; // the newest of the forgotten steps: where undoing ends
    this.open = null; // tile -> its pixels before the step that is being made
    this.box = null; // what has changed since it was last drawn: [left, top, right, bottom]
    this.counts = { [DEFECT]: 0, [IGNORE]: 0 };
    for (const value of levels) if (value) this.counts[value]++;
    this.smaller = [{ width, height, levels }]; // each half of the one before, of four pixels the largest
    while (Math.max(width, height) > 256) {
      width = Math.ceil(width / 2);
      height = Math.ceil(height / 2);
      this.smaller.push({ width, height, levels: new Uint8Array(width * height) });
    }
    this.shrink([0, 0, this.width, this.height]);
  }

  /** What the newest step is: the same object as long as nothing was drawn since. null: nothing was ever drawn. */
  get top() {
    return this.done.at(-1) ?? this.floor;
  }

  begin() {
    this.open ??= new Map();
  }

  /** Sets pixels of a row, all or those that `allowed(index)`. */
  span(y, from, to, value, allowed = null) {
    const row = y * this.width;
    for (let tile = Math.floor(from / TILE); tile * TILE < to; tile++) this.touch(Math.floor(y / TILE) * this.across + tile);
    if (allowed) {
      for (let i = row + from; i < row + to; i++) if (allowed(i)) this.levels[i] = value;
    } else this.levels.fill(value, row + from, row + to);
    this.grow(from, y, to, y + 1);
  }

  /** Ends a step; false where it has changed nothing. */
  end() {
    const step = new Map();
    for (const [tile, before] of this.open ?? []) {
      const now = this.copy(tile);
      if (same(before, now)) continue;
      this.count(before, now);
      step.set(tile, packed(before));
    }
    this.open = null;
    if (!step.size) return false;
    this.undone = [];
    this.keep(step, this.done);
    return true;
  }

  /** As if the step that is being made had not begun. */
  abort() {
    for (const [tile, before] of this.open ?? []) this.put(tile, before);
    this.open = null;
  }

  undo() {
    return this.turn(this.done, this.undone);
  }

  redo() {
    return this.turn(this.undone, this.done);
  }

  turn(from, to) {
    if (this.open || !from.length) return false;
    const step = from.pop();
    for (const [tile, kept] of step) {
      const now = this.copy(tile);
      const then = typeof kept === "number" ? new Uint8Array(now.length).fill(kept) : kept;
      this.count(now, then);
      this.put(tile, then);
      step.set(tile, packed(now));
    }
    this.keep(step, to);
    return true;
  }

  /** All pixels at once, as a step. */
  replace(levels) {
    this.begin();
    for (let tile = 0; tile < this.across * Math.ceil(this.height / TILE); tile++) this.touch(tile);
    this.levels.set(levels);
    this.grow(0, 0, this.width, this.height);
    return this.end();
  }

  /** The box to draw anew, once. */
  changed() {
    const box = this.box;
    this.box = null;
    if (box) this.shrink(box);
    return box;
  }

  touch(tile) {
    if (!this.open.has(tile)) this.open.set(tile, this.copy(tile));
  }

  place(tile) {
    const [left, top] = [(tile % this.across) * TILE, Math.floor(tile / this.across) * TILE];
    return [left, top, Math.min(left + TILE, this.width), Math.min(top + TILE, this.height)];
  }

  copy(tile) {
    const [left, top, right, bottom] = this.place(tile);
    const found = new Uint8Array((right - left) * (bottom - top));
    for (let y = top; y < bottom; y++) {
      found.set(this.levels.subarray(y * this.width + left, y * this.width + right), (y - top) * (right - left));
    }
    return found;
  }

  put(tile, pixels) {
    const [left, top, right, bottom] = this.place(tile);
    const wide = right - left;
    for (let y = top; y < bottom; y++) {
      this.levels.set(pixels.subarray((y - top) * wide, (y - top + 1) * wide), y * this.width + left);
    }
    this.grow(left, top, right, bottom);
  }

  grow(left, top, right, bottom) {
    const b = this.box;
    if (!b) this.box = [left, top, right, bottom];
    else this.box = [Math.min(b[0], left), Math.min(b[1], top), Math.max(b[2], right), Math.max(b[3], bottom)];
  }

  count(before, now) {
    for (let i = 0; i < now.length; i++) {
      if (before[i] === now[i]) continue;
      if (before[i]) this.counts[before[i]]--;
      if (now[i]) this.counts[now[i]]++;
    }
  }

  /** Puts a step on one of the two piles; what lies farthest below on it is forgotten where there is no room. */
  keep(step, pile) {
    step.bytes = [...step.values()].reduce((sum, kept) => sum + (kept.length ?? 16), 0);
    pile.push(step);
    let held = [...this.done, ...this.undone].reduce((sum, each) => sum + each.bytes, 0);
    while (held > MOST_HELD && pile.length > 1) {
      const forgotten = pile.shift();
      held -= forgotten.bytes;
      forgotten.clear();
      if (pile === this.done) this.floor = forgotten;
    }
  }

  shrink(box) {
    let [left, top, right, bottom] = box;
    for (let k = 1; k < this.smaller.length; k++) {
      const [from, to] = [this.smaller[k - 1], this.smaller[k]];
      [left, top, right, bottom] = [left >> 1, top >> 1, (right + 1) >> 1, (bottom + 1) >> 1];
      for (let y = top; y < bottom; y++) {
        const upper = 2 * y * from.width;
        const lower = 2 * y + 1 < from.height ? upper + from.width : upper;
        for (let x = left; x < right; x++) {
          const one = 2 * x;
          const two = one + 1 < from.width ? one + 1 : one;
          const of = from.levels;
          to.levels[y * to.width + x] = Math.max(of[upper + one], of[upper + two], of[lower + one], of[lower + two]);
        }
      }
    }
  }
}

/** A tile of one value is that value. */
function packed(pixels) {
  for (let i = 1; i < pixels.length; i++) if (pixels[i] !== pixels[0]) return pixels;
  return pixels[0];
}

function same(one, other) {
  for (let i = 0; i < one.length; i++) if (one[i] !== other[i]) return false;
  return true;
}
