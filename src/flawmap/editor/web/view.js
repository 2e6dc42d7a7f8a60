// The picture, and over it mask and map, as large as the screen: what is drawn costs as much as is seen of it.
//
// A screen's pixel takes the colour of the mask's pixel under it, of a smaller copy of the mask where many lie under it.
// After a stroke only the box that it changed is drawn anew.
import { DEFECT } from "./mask.js";

const MOST_PIXELS = 2_600_000; // of the canvas; a finer screen is not used to its full
const [LEAST_ZOOM, MOST_ZOOM] = [0.02, 64];
const LINE = [25, 227, 255]; // report/heatmap.py
const HATCH = 0xff00b0ff; // of what is ignored: orange stripes in black
const BLACK = 0xff000000;

export class View {
  constructor(stage) {
    this.stage = stage;
    this.under = stage.querySelector("#picture");
    this.over = stage.querySelector("#over");
    Object.assign(this, { mask: null, map: null, pictures: [], scale: 1, x: 0, y: 0, ratio: 1 });
    Object.assign(this, { opacity: 0.5, showsMask: true, showsMap: false, showsPicture: true, all: false, waits: false });
    this.fitted = true;
    this.moved = () => {};
    new ResizeObserver(() => this.resize()).observe(stage);
  }

  /** A new picture, fitted; `bitmap` as large as the mask. */
  async show(bitmap, mask) {
    for (const one of this.pictures) one.close();
    this.pictures = [bitmap];
    Object.assign(this, { mask, map: null });
    this.stage.classList.remove("empty");
    this.fit();
    while (Math.min(this.pictures.at(-1).width, this.pictures.at(-1).height) > 512) {
      const last = this.pictures.at(-1);
      const half = { resizeWidth: Math.ceil(last.width / 2), resizeHeight: Math.ceil(last.height / 2) };
      const smaller = await createImageBitmap(last, { ...half, resizeQuality: "medium" });
      if (this.pictures[0] !== bitmap) return smaller.close();
      this.pictures.push(smaller);
    }
    this.redraw();
  }

  /** Nothing: there is no picture to show. */
  clear() {
    for (const one of this.pictures) one.close();
    Object.assign(this, { mask: null, map: null, pictures: [] });
    this.stage.classList.add("empty");
  }

  resize() {
    const { clientWidth: wide, clientHeight: high } = this.stage;
    if (!wide || !high) return;
    const before = this.ratio;
    this.ratio = Math.min(devicePixelRatio, Math.sqrt(MOST_PIXELS / (wide * high)));
    for (const canvas of [this.under, this.over]) {
      canvas.width = Math.round(wide * this.ratio);
      canvas.height = Math.round(high * this.ratio);
    }
    if (this.fitted) this.fit();
    else this.scale *= this.ratio / before;
    this.draw();
  }

  /** From a pointer's place to the picture's. */
  at(event) {
    const box = this.stage.getBoundingClientRect();
    return this.inPicture(event.clientX - box.left, event.clientY - box.top);
  }

  inPicture(cssX, cssY) {
    return [(cssX * this.ratio) / this.scale + this.x, (cssY * this.ratio) / this.scale + this.y];
  }

  onStage(x, y) {
    return [((x - this.x) * this.scale) / this.ratio, ((y - this.y) * this.scale) / this.ratio];
  }

  /** Css pixels that one of the picture takes. */
  get zoom() {
    return this.scale / this.ratio;
  }

  fit() {
    if (!this.mask) return;
    const { width, height } = this.over;
    this.scale = Math.min(width / this.mask.width, height / this.mask.height);
    this.x = (this.mask.width - width / this.scale) / 2;
    this.y = (this.mask.height - height / this.scale) / 2;
    this.fitted = true;
    this.redraw();
  }

  /** Zooms so that what lies under the place on the stage stays there. */
  zoomTo(zoom, cssX = this.stage.clientWidth / 2, cssY = this.stage.clientHeight / 2) {
    const [x, y] = this.inPicture(cssX, cssY);
    this.scale = Math.max(LEAST_ZOOM, Math.min(MOST_ZOOM, zoom)) * this.ratio;
    this.x = x - (cssX * this.ratio) / this.scale;
    this.y = y - (cssY * this.ratio) / this.scale;
    this.move(0, 0);
  }

  move(cssX, cssY) {
    if (!this.mask) return;
    const { width, height } = this.over;
    const keep = (at, seen, whole) => Math.max(-seen / 2, Math.min(whole - seen / 2, at));
    this.x = keep(this.x - (cssX * this.ratio) / this.scale, width / this.scale, this.mask.width);
    this.y = keep(this.y - (cssY * this.ratio) / this.scale, height / this.scale, this.mask.height);
    this.fitted = false;
    this.redraw();
  }

  /** All of it, with the next frame. */
  redraw() {
    this.all = true;
    this.soon();
  }

  /** What has changed, with the next frame. */
  soon() {
    if (this.waits) return;
    this.waits = true;
    requestAnimationFrame(() => {
      this.waits = false;
      this.draw();
    });
  }

  draw() {
    if (!this.mask) return;
    const box = this.mask.changed();
    if (this.all) {
      this.all = false;
      this.drawPicture();
      this.drawOver(0, 0, this.over.width, this.over.height);
      this.moved();
    } else if (box) this.drawBox(box);
  }

  /** The screen's pixels that a box of the picture may have changed, their borders and what shares one with it. */
  drawBox([left, top, right, bottom]) {
    const [near, rim] = [2 ** this.step(), 2];
    const to = (at, from) => (at - from) * this.scale;
    this.drawOver(
      Math.max(0, Math.floor(to(left - near, this.x)) - rim),
      Math.max(0, Math.floor(to(top - near, this.y)) - rim),
      Math.min(this.over.width, Math.ceil(to(right + near, this.x)) + rim),
      Math.min(this.over.height, Math.ceil(to(bottom + near, this.y)) + rim),
    );
  }

  drawPicture() {
    const to = this.under.getContext("2d", { alpha: false });
    to.fillStyle = "#24262b";
    to.fillRect(0, 0, this.under.width, this.under.height);
    if (!this.showsPicture) return;
    const step = Math.min(this.step(), this.pictures.length - 1);
    const one = this.pictures[step];
    const [wide, high] = [this.mask.width * this.scale, this.mask.height * this.scale];
    to.imageSmoothingEnabled = this.scale < 2;
    to.drawImage(one, -this.x * this.scale, -this.y * this.scale, wide, high);
  }

  /** How often the mask is halved for this zoom. */
  step() {
    return Math.max(0, Math.min(Math.floor(Math.log2(1 / this.scale)), this.mask.smaller.length - 1));
  }

  drawOver(left, top, right, bottom) {
    if (right <= left || bottom <= top) return;
    const to = this.over.getContext("2d");
    const image = new ImageData(right - left, bottom - top);
    this.fill(new Uint32Array(image.data.buffer), left, top, right, bottom);
    to.putImageData(image, left, top);
  }

  /** Colours of a box of the screen. A border between two values is drawn in full: it shows at any opacity. */
  fill(pixels, left, top, right, bottom) {
    const wide = right - left;
    const shift = this.step();
    const small = this.mask.smaller[shift];
    const mask = this.showsMask ? small.levels : null;
    const map = this.showsMap && this.map ? this.map : null;
    if (!mask && !map) return;
    const columns = Int32Array.from({ length: wide + 1 }, (_, i) => this.column(left + i - 1, this.x, this.mask.width));
    const soft = (Math.round(this.opacity * 255) << 24) | (LINE[2] << 16) | (LINE[1] << 8) | LINE[0];
    const hard = (255 << 24) | (soft & 0xffffff);
    const ignored = (Math.round(Math.min(1, this.opacity + 0.25) * 255) << 24) >>> 0;
    let above = new Uint8Array(wide + 1);
    let row = new Uint8Array(wide + 1);
    for (let y = top - 1; y < bottom; y++) {
      const line = this.column(y, this.y, this.mask.height);
      const base = (line >> shift) * small.width;
      for (let i = 0; i <= wide; i++) {
        const x = columns[i];
        const value = line < 0 || x < 0 || !mask ? 0 : mask[base + (x >> shift)];
        row[i] = value;
        if (!i || y < top) continue;
        const place = (y - top) * wide + i - 1;
        if (value !== row[i - 1] || value !== above[i]) pixels[place] = value === DEFECT || (row[i - 1] || above[i]) === DEFECT ? hard : HATCH;
        else if (value === DEFECT) pixels[place] = soft;
        else if (value) pixels[place] = ((((left + i + y) & 7) < 4 ? HATCH : BLACK) & 0xffffff) | ignored;
        else if (map && line >= 0 && x >= 0) pixels[place] = map.colours[map.levels[line * this.mask.width + x]];
      }
      [above, row] = [row, above];
    }
  }

  /** The picture's column (or row) under the screen's, or -1. */
  column(at, from, whole) {
    const found = Math.floor((at + 0.5) / this.scale + from);
    return found < 0 || found >= whole ? -1 : found;
  }
}
