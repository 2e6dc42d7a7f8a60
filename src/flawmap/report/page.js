"use strict";
// Recounts a test at any threshold, draws the galleries, and links points to pictures. parts.py and figures.py are its
// model: the same rules, so at the calibrated threshold nothing changes when the page opens.
(() => {
const $ = id => document.getElementById(id), all = (query, root = document) => [...root.querySelectorAll(query)];
const D = JSON.parse($("data").textContent), SVG = "http://www.w3.org/2000/svg", ROW = 8;
const parts = D.parts.map(([name, kind, score, judged, area, views], i) =>
  ({ i, name, kind: D.kinds[kind], score, judged, area, views }));
const good = p => p.kind === D.good, bad = p => p.kind !== null && p.kind !== D.good;
const judged = parts.filter(p => p.judged), order = [...parts].sort((a, b) => a.score - b.score);
const scores = [...new Set(order.map(p => p.score))];
const fixed = D.threshold, ends = [...scores, ...(fixed === null ? [] : [fixed])];
let low = Math.min(...ends.slice(0, 1), ...ends.slice(-2)), high = Math.max(...ends.slice(-2));
[low, high] = [low - 0.02 * (high - low || 1), high + 0.02 * (high - low || 1)];
let t = fixed, chosen = null; // without a calibration there is no threshold until somebody moves one

// Numbers

function lnGamma(x) { // Lanczos, g = 7
  const c = [0.99999999999980993, 676.5203681218851, -1259.1392167224028, 771.32342877765313, -176.61502916214059,
    12.507343278686905, -0.13857109526572012, 9.9843695780195716e-6, 1.5056327351493116e-7];
  const sum = c.reduce((s, v, i) => i ? s + v / (x - 1 + i) : v, 0), g = x + 6.5;
  return 0.5 * Math.log(2 * Math.PI) + (x - 0.5) * Math.log(g) - g + Math.log(sum);
}
function beta(a, b, x) { // the regularised incomplete beta function, by Lentz's continued fraction
  if (x <= 0 || x >= 1) return x <= 0 ? 0 : 1;
  if (x > (a + 1) / (a + b + 2)) return 1 - beta(b, a, 1 - x);
  const tiny = 1e-300, safe = v => Math.abs(v) < tiny ? tiny : v;
  let d = 1 / safe(1 - (a + b) * x / (a + 1)), c = 1, f = d;
  for (let m = 1; m < 2000; m++) {
    let n = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m));
    d = 1 / safe(1 + n * d); c = safe(1 + n / c); f *= d * c;
    n = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1));
    d = 1 / safe(1 + n * d); c = safe(1 + n / c); f *= d * c;
    if (Math.abs(d * c - 1) < 1e-15) break;
  }
  return f / a * Math.exp(a * Math.log(x) + b * Math.log1p(-x) + lnGamma(a + b) - lnGamma(a) - lnGamma(b));
}
function quantile(q, a, b) {
  let from = 0, to = 1;
  for (let i = 0; i < 60; i++) { const x = (from + to) / 2; if (beta(a, b, x) < q) from = x; else to = x; }
  return (from + to) / 2;
}
const known = new Map();
function bounds(k, n) { // 95 %, Clopper and Pearson
  if (!n) return [0, 1];
  const key = k + "/" + n;
  if (!known.has(key))
    known.set(key, [k ? quantile(0.025, k, n - k + 1) : 0, k < n ? quantile(0.975, k + 1, n - k) : 1]);
  return known.get(key);
}
const percent = r => (r > 0 && r < 0.0005 ? "< 0.1" : r >= 0.9995 && r < 1 ? "> 99.9" : (100 * r).toFixed(1)) + "\u202f%";
const said = v => Number(v.toPrecision(4)).toString();

// Verdicts

const passing = () => D.review === null ? t : Math.min(D.review, t);
const verdict = p => t === null ? "" : p.score > t ? "NOK" : p.score > passing() ? "REVIEW" : "OK";
const waits = p => p.judged && verdict(p) === "REVIEW";
function wrong(p) {
  if (!p.judged || t === null) return "";
  return bad(p) && p.score <= passing() ? "escape" : good(p) && p.score > t ? "false alarm" : "";
}
const count = (list, test) => list.reduce((n, p) => n + (test(p) ? 1 : 0), 0);

function fill(root, values) {
  for (const each of all("[data-f]", root)) if (each.dataset.f in values) each.textContent = values[each.dataset.f];
}
function rate(root, k, n) {
  const [from, to] = bounds(k, n), share = n ? k / n : 0, box = root.querySelector(".interval");
  fill(root, { wrong: k, n, share: percent(share), low: percent(from), high: percent(to) });
  if (!box) return;
  const bar = box.querySelector(".bounds");
  bar.setAttribute("x", 4 + 120 * from);
  bar.setAttribute("width", Math.max(120 * (to - from), 1));
  box.querySelector(".point").setAttribute("cx", 4 + 120 * share);
}

let was = null;
function recount() {
  const off = t !== fixed, defects = judged.filter(bad), goods = judged.filter(good);
  const escapes = count(defects, wrong), alarms = count(goods, wrong), waiting = judged.filter(waits);
  document.documentElement.classList.toggle("off", off);
  for (const [name, k, n] of [["escapes", escapes, defects.length], ["alarms", alarms, goods.length]]) {
    const root = document.querySelector(`[data-rate=${name}]`);
    if (!root) continue;
    rate(root, k, n);
    root.classList.toggle("has-wrong", k > 0);
  }
  const band = document.querySelector("[data-rate=reviews]"), a = count(waiting, good), b = count(waiting, bad);
  const more = judged.some(p => p.kind === null) ? `, unknown ${waiting.length - a - b}` : "";
  if (band) fill(band, { wrong: waiting.length, n: judged.length, who: `good ${a}, defective ${b}${more}` });
  for (const at of all(".verdict .at")) { at.hidden = !off; at.textContent = off ? `looking at ${said(t)}, not calibrated` : ""; }
  for (const row of all("[data-kind]")) {
    const inside = judged.filter(p => p.kind === row.dataset.kind), k = count(inside, wrong), cell = row.querySelector("[data-f=wrong]");
    rate(row, k, inside.length);
    const of = v => count(inside, p => verdict(p) === v);
    fill(row, { ok: of("OK"), review: of("REVIEW"), nok: of("NOK") });
    if (cell) cell.parentElement.classList.toggle("wrong", k > 0);
  }
  const tell = (k, n, word) => {
    if (!n) return `no ${word === "escape" ? "defective" : "good"} part`;
    const [from, to] = bounds(k, n);
    return `${word}s: ${k} of ${n} (${percent(from)} to ${percent(to)})`;
  };
  const sum = [tell(escapes, defects.length, "escape"), tell(alarms, goods.length, "false alarm")];
  if (D.review !== null) sum.push(`${waiting.length} to review`);
  const none = t === null, sums = none ? [] : sum;
  $("sum").textContent = sums.join(" · ");
  $("banner").textContent = off ? `Looking at ${said(t)}, not calibrated: a threshold read off this test promises nothing.`
    : none ? "No threshold, so no verdict. One may be moved here to look; read off this test, it promises nothing."
    : D.doubt ? `The threshold, ${said(t)}, ${D.doubt}.` : `Calibrated threshold ${said(t)}: what the sentence at the top speaks of.`;
  $("range").value = none ? 500 : Math.round((t - low) / (high - low) * 1000);
  $("range").setAttribute("aria-valuetext", none ? "no threshold" : `${said(t)}: ${sums.join(", ")}`);
  if (document.activeElement !== $("number")) $("number").value = t ?? "";
  $("reset").disabled = !off;
  $("down").disabled = !none && t <= scores[0];
  $("up").disabled = !none && t >= scores.at(-1);
  remark(off);
  return { escapes, defects: defects.length, alarms, goods: goods.length, off };
}

// Drawings

const charts = all("svg[data-i]");
const axis = text => { const [from, to, start, end] = text.split(" ").map(Number); return v => start + (v - from) / (to - from) * (end - start); };
const ends4 = text => text.split(" ").map(Number);
function make(name, attributes, parent) {
  const each = document.createElementNS(SVG, name);
  for (const key in attributes) each.setAttribute(key, attributes[key]);
  if (parent) parent.append(each);
  return each;
}
const marks = parts.map(() => []);
const lines = [];
for (const svg of charts) {
  for (const each of all("[data-p]", svg)) marks[each.dataset.p].push(each);
  const name = svg.dataset.i, level = name === "sizes", lane = name.startsWith("lanes");
  if (!(level || lane || name === "rates" || name === "cost")) continue;
  const [, , y0, y1] = level ? ends4(svg.dataset.x) : svg.dataset.y ? ends4(svg.dataset.y) : [0, 0, Number(svg.dataset.floor), 4];
  const group = make("g", { class: "now" }, svg), at = axis(level ? svg.dataset.y : svg.dataset.x);
  lines.push({ group, at, level, line: make("line", level ? { x1: y0, x2: y1 } : { y1: y0, y2: y1 }, group),
    text: lane ? make("text", { y: 15 }, group) : null, middle: svg.viewBox.baseVal.width / 2 });
}
function remark(off) {
  const now = parts.map(p => wrong(p) ? "wrong" : waits(p) ? "review" : "");
  now.forEach((is, i) => {
    if (was ? was[i] === is : false) return;
    for (const each of marks[i]) {
      if (each.classList.contains("spot") || each.classList.contains("kind")) continue;
      for (const name of ["wrong", "review"]) each.classList.toggle(name, is === name);
      if (each.tagName === "rect") {
        if (is === "wrong") each.setAttribute("fill", `url(#${each.ownerSVGElement.dataset.i}-hatch)`);
        else each.removeAttribute("fill");
      }
    }
  });
  was = now;
  for (const { group, at, level, line, text, middle } of lines) {
    group.style.display = off ? "" : "none";
    if (!off) continue;
    const v = at(t);
    for (const end of [1, 2]) line.setAttribute((level ? "y" : "x") + end, v);
    if (!text) continue;
    text.setAttribute("text-anchor", v > middle ? "end" : "start");
    text.setAttribute("x", v + (v > middle ? -6 : 6));
    text.textContent = "looking at " + said(t);
  }
  for (const each of all(".lanes .threshold-label")) each.style.display = off ? "none" : "";
  const svg = charts.find(each => each.dataset.i === "roc");
  if (!svg || t === null) return;
  const share = list => count(list, p => p.score > t) / list.length, [, , start] = ends4(svg.dataset.x);
  const refused = share(judged.filter(good)), found = share(judged.filter(bad));
  const x = refused ? axis(svg.dataset.x)(Math.log10(Math.max(refused, 1e-3))) : start - 42;
  svg.querySelector(".op.now").setAttribute("transform", `translate(${x} ${axis(svg.dataset.y)(found)})`);
  $("op-now").hidden = !off;
  fill($("op-now"), { found: percent(found), refused: percent(refused) });
}

function price() { // the cost curve, as figures.cost draws it
  const svg = charts.find(each => each.dataset.i === "cost");
  if (!svg) return;
  const [escape, reject, share, look] = ["escape", "reject", "rate", "review"].map(n => Math.max(Number($("cost-" + n)?.value) || 0, 0));
  const goods = judged.filter(good).map(p => p.score), defects = judged.filter(bad).map(p => p.score), r = Math.min(share / 100, 1);
  const of = v => {
    const pass = D.review === null ? v : Math.min(D.review, v), part = (list, test) => count(list, test) / list.length;
    const band = list => part(list, s => s > pass && s <= v);
    return escape * r * part(defects, s => s <= pass) + reject * (1 - r) * part(goods, s => s > v)
      + (look ? look * (r * band(defects) + (1 - r) * band(goods)) : 0);
  };
  const [from, , , end] = ends4(svg.dataset.x), cuts = [from, ...new Set([...goods, ...defects].sort((a, b) => a - b))];
  const values = cuts.map(of), top = Math.max(...values) || 1, x = axis(svg.dataset.x), y = axis(svg.dataset.y);
  const best = values.indexOf(Math.min(...values)), ring = svg.querySelector(".best");
  svg.querySelector(".cost").setAttribute("points", cuts.map((cut, i) =>
    `${x(cut)},${y(values[i] / top)} ${i + 1 < cuts.length ? x(cuts[i + 1]) : end},${y(values[i] / top)}`).join(" "));
  ring.setAttribute("cx", x(cuts[best]));
  ring.setAttribute("cy", y(values[best] / top));
  svg.querySelector(".top").textContent = said(top);
  $("cost-said").textContent = (t === null ? "" : `At ${said(t)}: ${said(of(t))} a part. `) + `Ring: the least, ${said(values[best])} at ${said(cuts[best])}, `
    + (D.review === null ? "" : `reviewing above ${said(D.review)}, `) + "read off the test; a threshold chosen so promises nothing.";
}

// Pictures

const lut = new Uint32Array(Uint8Array.from(atob(D.lut), c => c.charCodeAt(0)).buffer); // red is the lowest byte
function h(name, attributes = {}, ...inside) {
  const each = document.createElement(name);
  for (const key in attributes) if (attributes[key] !== null) each.setAttribute(key, attributes[key]);
  each.append(...inside.filter(v => v !== null));
  return each;
}
const greys = new Map(); // every map is decoded once, so that a redraw (for the printer, too) colours it at once
function grey(map) {
  if (!greys.has(map)) {
    const image = new Image();
    image.src = "data:image/png;base64," + map;
    greys.set(map, image);
  }
  return greys.get(map);
}
function colour(canvas, map) {
  const image = grey(map), draw = () => {
    const { width, height } = canvas, pen = canvas.getContext("2d", { willReadFrequently: true });
    pen.imageSmoothingEnabled = true;
    pen.drawImage(image, 0, 0, width, height);
    const pixels = pen.getImageData(0, 0, width, height), v = new Uint32Array(pixels.data.buffer);
    for (let i = 0; i < v.length; i++) v[i] = lut[v[i] & 255];
    pen.putImageData(pixels, 0, 0);
    canvas.dataset.done = "1";
  };
  if (image.complete && image.naturalWidth) draw();
  else image.addEventListener("load", draw, { once: true });
}
function pane(what, name, row, ...extra) {
  const [, , width, height, jpeg] = row;
  const img = h("img", { src: "data:image/jpeg;base64," + jpeg, width, height, alt: `${what}: ${name}` });
  return h("figure", {}, h("span", { class: "stack" }, img, ...extra), h("figcaption", {}, what));
}
function panes(row) {
  const [name, , width, height, , map, path, grid, near, , at, band, bandGrid] = row, found = [pane("picture", name, row)];
  const over = (words, d, [wide, high]) => {
    const each = make("svg", { viewBox: `0 0 ${wide} ${high}`, preserveAspectRatio: "none", "aria-hidden": "true" });
    for (const word of words) make("path", { class: word, d }, each);
    return each;
  };
  if (path || band) found.push(pane(band ? "mask; hatched: ignored" : "mask", name, row,
    ...(band ? [over(["ignored"], band, bandGrid)] : []), ...(path ? [over(["halo", "line"], path, grid)] : [])));
  const canvas = h("canvas", { width, height, "aria-hidden": "true" });
  colour(canvas, map);
  const last = pane("map", name, row, canvas);
  if (at) {
    const over = make("svg", { viewBox: "0 0 1 1", preserveAspectRatio: "none", "aria-hidden": "true" }, last.firstChild);
    for (const kind of ["halo", "line"])
      make("rect", { class: kind, x: at[0], y: at[1], width: at[2] - at[0], height: at[3] - at[1] }, over);
  }
  found.push(last);
  if (near) found.push(h("figure", {}, h("img", { src: "data:image/jpeg;base64," + near, alt: `nearest good patch: ${row[9]}` }),
    h("figcaption", {}, "nearest good")));
  return found;
}
function about(p, row, name) {
  const v = verdict(p), bads = wrong(p), chips = [];
  if (p.judged && fixed !== null) chips.push(h("span", { class: "chip " + v.toLowerCase() }, { OK: "✓ ", NOK: "✕ ", REVIEW: "? " }[v] + v));
  if (bads && fixed !== null) chips.push(h("span", { class: "chip mistake" }, bads));
  return h("p", { class: "about" }, name, ...chips, h("span", { class: "nums" }, "score " + said(row ? row[1] : p.score)),
    h("bdi", { class: "soft" }, p.kind ?? "unknown"),
    p.views.length > 1 ? h("span", { class: "soft" }, `part of ${p.views.length} views, ${said(p.score)}`) : null,
    row && row[9] ? h("span", { class: "soft" }, "nearest good patch: ", h("bdi", {}, row[9])) : null);
}
function card(p, view = p.views[0]) {
  const row = D.pictures[view], name = h("button", { type: "button", class: "name" }, h("bdi", {}, row ? row[0] : p.name));
  name.addEventListener("click", () => choose(p, true));
  return h("article", { class: "card" + (wrong(p) && fixed !== null ? " has-wrong" : "") + (chosen === p ? " selected" : ""), "data-card": p.i },
    row ? h("div", { class: "panes" }, ...panes(row)) : h("p", { class: "none" }, "This picture is not on the page: it had no room."),
    about(p, row, name));
}
function galleries() {
  drawn = t;
  const ranked = fixed === null, limit = passing(), near = p => Math.min(Math.abs(p.score - t), Math.abs(p.score - limit));
  const lists = {
    escapes: judged.filter(p => bad(p) && (ranked || p.score <= limit)).sort((a, b) => a.score - b.score),
    alarms: judged.filter(p => good(p) && (ranked || p.score > t)).sort((a, b) => b.score - a.score),
    borderline: ranked ? [...order].reverse() : [...judged].sort((a, b) => near(a) - near(b)),
  };
  for (const root of all("[data-g]")) {
    const every = lists[root.dataset.g], list = every.slice(0, ROW), cards = root.querySelector(".cards");
    fill(root, { of: every.length ? `: ${list.length} of ${every.length}` : "" });
    cards.replaceChildren(...(list.length ? list.map(p => card(p)) : [h("p", { class: "none" }, ranked ? "None in this test." : "None at this threshold.")]));
  }
  if (chosen) panel();
}
function panel() {
  const root = $("chosen"), p = chosen, at = order.indexOf(p);
  if (!root) return;
  const held = root.contains(document.activeElement) ? document.activeElement : null, label = held?.textContent;
  const go = (words, to) => {
    const each = h("button", { type: "button" }, words);
    each.disabled = !to;
    each.addEventListener("click", () => { choose(to, false); });
    return each;
  };
  const close = h("button", { type: "button" }, "Close");
  close.addEventListener("click", () => {
    root.hidden = true;
    choose(null, false);
    (opener?.isConnected ? opener : $("range")).focus({ preventScroll: !opener?.isConnected });
  });
  root.replaceChildren(h("div", { class: "row" }, h("h3", {}, "Selected: ", h("bdi", {}, p.name)),
    go("◂ less strange", order[at - 1]), go("stranger ▸", order[at + 1]), close), ...p.views.map(v => card(p, v)));
  root.hidden = false;
  if (held && held !== root) (all("button", root).find(each => each.textContent === label && !each.disabled) ?? root).focus({ preventScroll: true });
}

// Selection

let opener = null;

const place = each => each.dataset.at ? each.dataset.at.split(" ").map(Number) : each.tagName === "rect"
  ? [+each.getAttribute("x") + each.getAttribute("width") / 2, +each.getAttribute("y") + each.getAttribute("height") / 2]
  : [+each.getAttribute("cx"), +each.getAttribute("cy")];
function choose(p, open) {
  chosen = p;
  for (const each of all(".ring")) each.remove();
  for (const each of p ? marks[p.i] : []) {
    const [cx, cy] = place(each);
    for (const kind of ["ring halo", "ring"]) make("circle", { class: kind, cx, cy, r: 8 }, each.ownerSVGElement);
  }
  for (const each of all("#live [data-card]")) each.classList.toggle("selected", p !== null && +each.dataset.card === p.i);
  if (!p) return;
  if (open && !$("chosen")?.contains(document.activeElement)) opener = document.activeElement;
  panel();
  tell(`Selected ${p.name}, ${p.kind ?? "unknown"}, score ${said(p.score)}, ${p.judged && fixed !== null ? verdict(p) : "no verdict"} ${fixed === null ? "" : wrong(p)}`);
  if (!open || !$("chosen")) return;
  $("chosen").scrollIntoView({ block: "start" });
  $("chosen").focus({ preventScroll: true });
}
let timer = 0, drawer = 0, drawn;
function tell(words) { clearTimeout(timer); timer = setTimeout(() => { $("told").textContent = words; }, 250); }

function pointer(svg, event) {
  const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
  return [at.x, at.y];
}
for (const svg of charts) {
  const mine = all("[data-p]", svg);
  if (!mine.length) continue;
  const points = mine.map(each => [...place(each), parts[each.dataset.p]]);
  const walk = [...points].sort((a, b) => a[0] - b[0] || b[1] - a[1]);
  svg.classList.add("linked");
  svg.setAttribute("tabindex", "0");
  svg.setAttribute("role", "application");
  svg.setAttribute("aria-roledescription", "chart of parts; arrows choose, Enter opens the picture");
  const lane = svg.dataset.i.startsWith("lanes"), x = lane ? axis(svg.dataset.x) : null;
  let dragged = false, drag = false;
  if (lane) {
    const [from, to, start, end] = ends4(svg.dataset.x);
    const over = event => t !== null && Math.abs(pointer(svg, event)[0] - x(t)) < 7;
    svg.addEventListener("pointerdown", event => { drag = over(event); dragged = false; if (drag) svg.setPointerCapture(event.pointerId); });
    svg.addEventListener("pointermove", event => {
      svg.classList.toggle("wide-grab", drag || over(event));
      if (!drag) return;
      dragged = true;
      set(from + (pointer(svg, event)[0] - start) / (end - start) * (to - from));
    });
    for (const name of ["pointerup", "pointercancel"]) svg.addEventListener(name, () => { drag = false; });
  }
  svg.addEventListener("click", event => {
    if (dragged) { dragged = false; return; }
    const [px, py] = pointer(svg, event), far = q => (q[0] - px) ** 2 + (q[1] - py) ** 2;
    const direct = event.target.closest("[data-p]");
    const nearest = points.reduce((a, b) => far(b) < far(a) ? b : a);
    if (direct || far(nearest) < 400) choose(direct ? parts[direct.dataset.p] : nearest[2], true);
  });
  svg.addEventListener("keydown", event => {
    const at = walk.findIndex(q => q[2] === chosen);
    const to = { ArrowRight: at + 1, ArrowUp: at + 1, ArrowLeft: at < 0 ? 0 : at - 1, ArrowDown: at < 0 ? 0 : at - 1,
      Home: 0, End: walk.length - 1 }[event.key];
    if (event.key === "Enter" && chosen) choose(chosen, true);
    else if (to !== undefined) choose(walk[Math.min(Math.max(to, 0), walk.length - 1)][2], false);
    else return;
    event.preventDefault();
  });
}

// Threshold

function set(value) {
  if (value !== null && !Number.isFinite(value)) return;
  t = value;
  recount();
  price();
  tell($("sum").textContent + ". " + $("banner").textContent);
  clearTimeout(drawer);
  drawer = setTimeout(galleries, 80);
}
$("range").addEventListener("input", event => set(low + event.target.value / 1000 * (high - low)));
$("number").addEventListener("input", event => { if (event.target.value !== "") set(Number(event.target.value)); });
$("number").addEventListener("change", event => { event.target.value = t ?? ""; });
$("reset").addEventListener("click", () => { set(fixed); $("number").value = t ?? ""; $("range").focus(); });
const step = up => set((up ? scores.find(s => s > (t ?? -Infinity)) : scores.filter(s => s < (t ?? Infinity)).at(-1)) ?? t);
$("down").addEventListener("click", () => step(false));
$("up").addEventListener("click", () => step(true));
$("number").addEventListener("keydown", event => {
  if (event.key !== "ArrowUp" && event.key !== "ArrowDown") return;
  event.preventDefault();
  step(event.key === "ArrowUp");
  event.target.value = t;
});
$("bar").addEventListener("submit", event => event.preventDefault());
for (const name of ["escape", "reject", "rate", "review"]) {
  const field = $("cost-" + name);
  if (field) { field.readOnly = false; field.addEventListener("input", price); }
}
addEventListener("beforeprint", () => { clearTimeout(drawer); if (drawn !== t) galleries(); });
const room = () => { // what scrolls into view must not lie under the bar
  const tall = getComputedStyle($("bar")).position === "sticky" ? $("bar").offsetHeight + 14 : 0;
  document.documentElement.style.scrollPaddingTop = tall + "px";
};
new ResizeObserver(room).observe($("bar"));
addEventListener("resize", room);
setTimeout(() => { for (const row of D.pictures) if (row) grey(row[5]); }, 300);

for (const name of ["bar", "live", "how"]) if ($(name)) $(name).hidden = false;
if ($("first")) $("first").remove();
recount();
price();
galleries();
globalThis.flawmap = { bounds, percent, set, state: () => ({ t, chosen: chosen && chosen.name, ...recount() }) };
})();
