// Which pixels a stroke, a polygon or a flood covers, as spans each(y, from, to); `to` is outside. No pixel is half in.
//
// Places are in pixels of the picture; the first pixel's upper left corner is (0, 0), its centre (0.5, 0.5).

/** Where a brush of `size` px lies when the pointer is at `at`: odd ones on a pixel's centre, even ones on a corner. */
export const snapped = (at, size) => (size % 2 ? Math.floor(at) + 0.5 : Math.round(at));

/** The pixels whose centre is at most half the size away from the line from a to b. */
export function capsule(ax, ay, bx, by, size, width, height, each) {
  const [dx, dy, r] = [bx - ax, by - ay, size / 2];
  const [long, reach] = [dx * dx + dy * dy, r * r];
  const first = Math.max(0, Math.floor(Math.min(ay, by) - r));
  const last = Math.min(height - 1, Math.ceil(Math.max(ay, by) + r));
  for (let y = first; y <= last; y++) {
    const inside = (x) => {
      const [px, py] = [x + 0.5 - ax, y + 0.5 - ay];
      const along = px * dx + py * dy;
      if (along <= 0) return px * px + py * py <= reach;
      if (along >= long) return (px - dx) ** 2 + (py - dy) ** 2 <= reach;
      return (px * dy - py * dx) ** 2 <= reach * long;
    };
    const [low, high] = crossing(ax, ay, bx, by, r, y + 0.5);
    if (low > high) continue;
    let [from, to] = [Math.floor(low) - 1, Math.ceil(high) + 1];
    while (from < to && !inside(from)) from++;
    while (to > from && !inside(to - 1)) to--;
    from = Math.max(from, 0);
    to = Math.min(to, width);
    if (from < to) each(y, from, to);
  }
}

/** About where the row at `y` enters and leaves a capsule: the union of two discs and the strip between them. */
function crossing(ax, ay, bx, by, r, y) {
  let [low, high] = [Infinity, -Infinity];
  for (const [x, cy] of [[ax, ay], [bx, by]]) {
    const left = r * r - (y - cy) ** 2;
    if (left < 0) continue;
    low = Math.min(low, x - Math.sqrt(left));
    high = Math.max(high, x + Math.sqrt(left));
  }
  const [dx, dy, py] = [bx - ax, by - ay, y - ay];
  const wide = r * Math.hypot(dx, dy);
  if (!wide) return [low, high];
  let [from, to] = [-Infinity, Infinity];
  const narrow = (one, other) => {
    from = Math.max(from, Math.min(one, other));
    to = Math.min(to, Math.max(one, other));
  };
  if (dy) narrow((py * dx - wide) / dy, (py * dx + wide) / dy);
  if (dx) narrow((-py * dy) / dx, (dx * dx + dy * dy - py * dy) / dx);
  if (from <= to && Number.isFinite(from + to)) {
    low = Math.min(low, ax + from);
    high = Math.max(high, ax + to);
  }
  return [low, high];
}

/** The pixels whose centre is inside, by the even-odd rule; the same arithmetic as images/masks/outline.py. */
export function polygon(points, width, height, each) {
  const rows = new Map();
  points.forEach(([x0, y0], index) => {
    const [x1, y1] = points[(index + 1) % points.length];
    const first = Math.max(0, Math.ceil(Math.min(y0, y1) - 0.5));
    const last = Math.min(height, Math.ceil(Math.max(y0, y1) - 0.5));
    for (let y = first; y < last; y++) {
      const x = x0 + ((y + 0.5 - y0) * (x1 - x0)) / (y1 - y0);
      if (!rows.has(y)) rows.set(y, []);
      rows.get(y).push(Math.max(0, Math.min(width, Math.ceil(x - 0.5))));
    }
  });
  for (const [y, crossed] of rows) {
    crossed.sort((a, b) => a - b);
    for (let i = 0; i + 1 < crossed.length; i += 2) if (crossed[i] < crossed[i + 1]) each(y, crossed[i], crossed[i + 1]);
  }
}

/** Spans [y, from, to, ...] of what is joined to (x, y) and inside(index), over edges, with `corners` over corners too. */
export function flood(x, y, width, height, inside, corners = false) {
  const found = [];
  if (!inside(y * width + x)) return found;
  const seen = new Uint8Array(width * height);
  const waiting = [x, y];
  while (waiting.length) {
    const row = waiting.pop();
    const at = waiting.pop();
    const base = row * width;
    if (seen[base + at]) continue;
    let [from, to] = [at, at + 1];
    while (from > 0 && inside(base + from - 1)) from--;
    while (to < width && inside(base + to)) to++;
    seen.fill(1, base + from, base + to);
    found.push(row, from, to);
    const [left, right] = corners ? [Math.max(0, from - 1), Math.min(width, to + 1)] : [from, to];
    for (const next of [row - 1, row + 1]) {
      if (next < 0 || next >= height) continue;
      for (let i = left, open = false; i < right; i++) {
        const is = !seen[next * width + i] && inside(next * width + i);
        if (is && !open) waiting.push(i, next);
        open = is;
      }
    }
  }
  return found;
}

export const touchesBorder = (spans, width, height) => {
  for (let i = 0; i < spans.length; i += 3) {
    if (spans[i] === 0 || spans[i] === height - 1 || spans[i + 1] === 0 || spans[i + 2] === width) return true;
  }
  return false;
};
