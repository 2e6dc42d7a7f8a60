// What if the threshold stood elsewhere: counted here, changed nowhere.
import { $ } from "./common.js";
import { frame, make, short } from "./charts.js";

const WIDE = Math.max($("#dots").clientWidth, 320);
const HIGH = 150;
const LEFT = 140;
const found = await (await fetch("/threshold.json", { cache: "no-store" })).json();
const bad = [...found.defects, ...found.decided.filter((one) => !one.good).map((one) => one.score)];
const good = found.decided.filter((one) => one.good).map((one) => one.score);
const all = [found.threshold, ...found.good, ...found.line, ...bad, ...good];
const [low, high] = [Math.min(...all), Math.min(Math.max(...all), found.threshold + 4 * (found.threshold - Math.min(...all)))];
const span = high - low || 1;
const steps = 1000;
const from = low - 0.02 * span;
const to = high + 0.02 * span;
const x = (score) => LEFT + ((Math.min(score, to) - from) / (to - from)) * (WIDE - LEFT - 10);
const above = (scores, at) => scores.filter((score) => score > at).length;
let at = found.threshold;
let line;

function rows() {
  const svg = frame(WIDE, HIGH, "Scores of good parts, of the line and of decided parts, and the threshold");
  [
    ["good, calibrated", found.good, "dot"],
    ["at the line", found.line, "dot"],
    ["called good", good, "dot"],
    ["called bad, known", bad, "cross"],
  ].forEach(([name, scores, look], row) => {
    const y = 22 + row * 33;
    svg.append(make("text", { x: LEFT - 12, y: y + 4, "text-anchor": "end" }, `${name} (${scores.length})`));
    svg.append(make("line", { class: "base", x1: LEFT, x2: WIDE - 10, y1: y, y2: y }));
    scores.forEach((score, i) => {
      const [cx, cy] = [x(score), y + ((i * 7) % 11) - 5];
      if (look === "dot") svg.append(make("circle", { class: "dot", cx, cy, r: 3 }));
      else svg.append(make("path", { class: "cross", d: `M${cx - 4} ${y - 4}l8 8m0 -8l-8 8` }));
    });
  });
  svg.append(make("line", { class: "base", x1: x(found.threshold), x2: x(found.threshold), y1: 4, y2: HIGH - 8 }));
  line = svg.appendChild(make("line", { class: "limit", y1: 4, y2: HIGH - 8 }));
  return svg;
}

function share(count, n) {
  return n ? `${count} of ${n}` : "none known";
}

function moved(value) {
  at = value;
  line.setAttribute("x1", x(at));
  line.setAttribute("x2", x(at));
  $("#value").textContent = short(at);
  const refused = above(found.good, at);
  const bound = found.bounds[Math.min(refused, found.bounds.length - 1)];
  const more = refused >= found.bounds.length ? "more than " : "";
  $("#w-bound").textContent = `${more}${(Math.ceil(bound * 1000 - 1e-9) / 10).toFixed(1)} %`;
  $("#w-good").textContent = share(refused, found.good.length);
  $("#w-line").textContent = share(above(found.line, at), found.line.length);
  $("#w-false").textContent = share(above(good, at), good.length);
  $("#w-bad").textContent = share(bad.length - above(bad, at), bad.length);
}

function reset() {
  $("#at").value = Math.round(((found.threshold - from) / (to - from)) * steps);
  moved(found.threshold);
}

$("#dots").replaceChildren(rows());
$("#at").addEventListener("input", (event) => moved(from + (Number(event.target.value) / steps) * (to - from)));
$("#reset").addEventListener("click", reset);
reset();
