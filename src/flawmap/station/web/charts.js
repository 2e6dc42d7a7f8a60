// Small charts as SVG: no style attributes, so that the page's policy may forbid them.

const SPACE = "http://www.w3.org/2000/svg";
const LEFT = 44;
const RIGHT = 10;

export function make(name, facts = {}, text = "") {
  const node = document.createElementNS(SPACE, name);
  for (const [key, value] of Object.entries(facts)) node.setAttribute(key, value);
  if (text) node.textContent = text;
  return node;
}

export function frame(wide, high, label) {
  return make("svg", { viewBox: `0 0 ${wide} ${high}`, role: "img", "aria-label": label });
}

export function short(value) {
  if (!Number.isFinite(value)) return "–";
  return Math.abs(value) >= 1e5 ? value.toExponential(2) : String(Number(value.toPrecision(4)));
}

/** OK a dot, NOK a cross, REVIEW a triangle: readable without colour. */
export function point(x, y, verdict) {
  if (verdict === "NOK") return make("path", { class: "p-NOK", d: `M${x - 3.5} ${y - 3.5}l7 7m0 -7l-7 7` });
  if (verdict === "REVIEW") return make("path", { class: "p-REVIEW", d: `M${x} ${y - 4}l4 7h-8z` });
  return make("circle", { class: "p-OK", cx: x, cy: y, r: 2.6 });
}

/** Scores of the last parts, oldest first, with the threshold; what is far above is drawn at the edge. */
export function scores(parts, review, wide, high = 130) {
  const known = parts.filter((row) => Number.isFinite(row.score));
  const svg = frame(wide, high, `Scores of the last ${known.length} parts, and the threshold`);
  if (!known.length) return empty(svg, wide, high);
  const limit = known.at(-1).threshold;
  const low = Math.min(limit, ...known.map((row) => row.score));
  const top = Math.min(Math.max(limit, ...known.map((row) => row.score)), limit + 2 * Math.max(limit - low, 1e-9));
  const span = (top - low) * 1.12 || 1;
  const x = (i) => LEFT + ((i + 0.5) * (wide - LEFT - RIGHT)) / Math.max(known.length, 20);
  const y = (value) => high - 8 - ((Math.min(value, top) - low + 0.04 * span) / span) * (high - 20);
  svg.append(make("line", { class: "base", x1: LEFT, x2: wide - RIGHT, y1: high - 4, y2: high - 4 }));
  const steps = known.map((row, i) => `${i ? "L" : "M"}${x(i).toFixed(1)} ${y(row.threshold).toFixed(1)}`);
  svg.append(make("path", { class: "limit", d: `${steps.join("")}L${wide - RIGHT} ${y(limit).toFixed(1)}` }));
  svg.append(make("text", { class: "limit-word", x: LEFT - 5, y: y(limit) + 4, "text-anchor": "end" }, short(limit)));
  if (Number.isFinite(review)) {
    svg.append(make("line", { class: "review", x1: LEFT, x2: wide - RIGHT, y1: y(review), y2: y(review) }));
  }
  if (Math.abs(y(low) - y(limit)) > 14) {
    svg.append(make("text", { x: LEFT - 5, y: y(low) + 4, "text-anchor": "end" }, short(low)));
  }
  known.forEach((row, i) => {
    const mark = point(x(i), y(row.score), row.verdict);
    mark.append(make("title", {}, `${row.part}: ${short(row.score)} ${row.verdict}`));
    svg.append(mark);
  });
  return svg;
}

/** Share of parts that were not OK, of the 50 up to each, with what the calibration promises of good ones. */
export function rates(parts, promised, wide, high = 96, window = 50) {
  const svg = frame(wide, high, "Share of parts that were not OK, of the 50 before each");
  const bad = parts.map((row) => (row.verdict === "OK" ? 0 : 1));
  const found = [];
  let sum = 0;
  bad.forEach((one, i) => {
    sum += one - (i >= window ? bad[i - window] : 0);
    if (i >= Math.min(window, 10) - 1) found.push(sum / Math.min(i + 1, window));
  });
  if (!found.length) return empty(svg, wide, high, "from 10 parts on");
  const top = Math.min(1, Math.max(0.1, promised * 2, ...found) * 1.1);
  const x = (i) => LEFT + (i * (wide - LEFT - RIGHT)) / Math.max(found.length - 1, 1);
  const y = (rate) => high - 8 - (Math.min(rate, top) / top) * (high - 20);
  for (const rate of [0, top]) {
    svg.append(make("line", { class: "base", x1: LEFT, x2: wide - RIGHT, y1: y(rate), y2: y(rate) }));
    svg.append(make("text", { x: LEFT - 5, y: y(rate) + 4, "text-anchor": "end" }, `${Math.round(rate * 100)} %`));
  }
  svg.append(make("line", { class: "limit", x1: LEFT, x2: wide - RIGHT, y1: y(promised), y2: y(promised) }));
  const above = y(promised) < 22 ? 13 : -5;
  svg.append(make("text", { class: "limit-word", x: wide - RIGHT, y: y(promised) + above, "text-anchor": "end" }, "promised of good parts"));
  svg.append(make("path", { class: "line", d: found.map((rate, i) => `${i ? "L" : "M"}${x(i).toFixed(1)} ${y(rate).toFixed(1)}`).join("") }));
  svg.append(make("circle", { cx: x(found.length - 1), cy: y(found.at(-1)), r: 3, fill: "currentColor" }));
  return svg;
}

function empty(svg, wide, high, words = "no parts yet") {
  svg.append(make("text", { x: wide / 2, y: high / 2, "text-anchor": "middle" }, words));
  return svg;
}
