// Buttons, sliders and keys.
import { $, onKey } from "./common.js";
import { editor, list, loadMap, open, remember, remembered, save, stepped, tell, told, tools, updated, versions, view } from "./main.js";
import { DEFECT } from "./mask.js";
import { MOST_SIZE, VALUES } from "./tools.js";

const TOOL_KEYS = { b: "brush", e: "eraser", p: "polygon", h: "hole", f: "map", v: "move" };
const VALUE_KEYS = { d: "defect", i: "ignore", x: "nothing" };
const LEVEL_STEP = 256;

export function controls() {
  const kept = remembered();
  if (kept.size) tools.size = kept.size;
  if (kept.opacity !== undefined) view.opacity = kept.opacity / 100;
  $("#search").value = kept.text ?? "";
  for (const one of ["kind", "show"]) if ([...$(`#${one}`).options].some((each) => each.value === kept[one])) $(`#${one}`).value = kept[one];
  filters();
  drawing();
  looking();
  keys();
  view.moved = () => {
    tools.showPolygon();
    tools.showRing();
    $("#where").textContent = `${Math.round(view.zoom * 100)} %`;
  };
  document.addEventListener("updated", shown);
  document.addEventListener("mapped", shownMap);
  shown();
}

function filters() {
  const narrow = () => {
    const filter = { kind: $("#kind").value, show: $("#show").value, text: $("#search").value };
    list.narrow(filter);
    $("#list .rows").scrollTop = 0;
    list.choose(list.current);
    $("#count").textContent = `${told(list.seen.length)} of ${told(list.rows.length)}`;
    remember(filter);
  };
  list.filter = { kind: $("#kind").value, show: $("#show").value, text: $("#search").value };
  $("#search").addEventListener("input", narrow);
  for (const one of ["#kind", "#show"]) $(one).addEventListener("change", narrow);
  $("#search").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && list.seen.length) open(list.seen[0]);
    if (event.key === "Escape" || event.key === "Enter") $("#stage").focus();
  });
  $("#show-list").addEventListener("click", () => {
    const shows = $("#editor").classList.toggle("listing");
    $("#show-list").setAttribute("aria-expanded", shows);
    if (shows) list.draw();
  });
  $("#stage").addEventListener("pointerdown", () => $("#editor").classList.remove("listing"));
  $("#previous").addEventListener("click", () => open(list.beside(-1)));
  $("#next").addEventListener("click", () => open(list.beside(1)));
}

function drawing() {
  $("#tools").addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (button?.dataset.tool) pick(button.dataset.tool);
    if (button?.dataset.value) setValue(button.dataset.value);
    if (button && event.detail) $("#stage").focus({ preventScroll: true }); // so that space moves, and does not press it again
  });
  $("#size").addEventListener("input", (event) => setSize(Number(event.target.value)));
  $("#undo").addEventListener("click", () => stepped(true));
  $("#redo").addEventListener("click", () => stepped(false));
  $("#save").addEventListener("click", () => save());
  $("#save-next").addEventListener("click", () => save(true));
}

function pick(tool) {
  tools.pick(tool);
  if (tool === "map") loadMap();
  shown();
}

function setValue(value) {
  if (editor.about?.good && value === "defect" && !versions.looks) return tell("This picture is called good and cannot have a defect. Mark what nobody can say as ignore, or move the file to test/<kind>.");
  tools.value = VALUES[value];
  if (tools.tool === "eraser") tools.pick("brush");
  return shown();
}

function setSize(size) {
  tools.size = Math.max(1, Math.min(MOST_SIZE, Math.round(size)));
  remember({ size: tools.size });
  tools.showRing();
  shown();
}

/** A step of a tenth, of at least one pixel. */
const sized = (up) => setSize(tools.size + (up ? 1 : -1) * Math.max(1, Math.round(tools.size / 10)));

function looking() {
  const shows = { "#show-mask": "showsMask", "#show-picture": "showsPicture", "#show-map": "showsMap" };
  for (const [box, what] of Object.entries(shows)) $(box)?.addEventListener("change", (event) => show(what, event.target.checked));
  $("#opacity").addEventListener("input", (event) => {
    view.opacity = Number(event.target.value) / 100;
    remember({ opacity: Number(event.target.value) });
    view.redraw();
  });
  $("#fit").addEventListener("click", () => view.fit());
  $("#one").addEventListener("click", () => view.zoomTo(1));
  $("#closer").addEventListener("click", () => view.zoomTo(view.zoom * 1.5));
  $("#snap")?.addEventListener("change", (event) => snap(event.target.checked));
  $("#level")?.addEventListener("input", (event) => setLevel(Number(event.target.value)));
  $("#at-threshold")?.addEventListener("click", () => view.map && setLevel(view.map.levelOf(view.map.threshold)));
  $("#fill-all")?.addEventListener("click", () => tools.fillAbove());
}

function show(what, on) {
  view[what] = on;
  if (what === "showsMap" && on) loadMap();
  view.redraw();
  shown();
}

function snap(on) {
  tools.snap = on;
  if (on) show("showsMap", true);
  shown();
}

function setLevel(level) {
  if (!view.map) return;
  view.map.setLevel(Math.max(0, Math.min(65535, level)));
  view.redraw();
  shownMap();
}

/** The controls say how things are. */
function shown() {
  const press = (query, name, on) => {
    for (const button of document.querySelectorAll(query)) button.setAttribute("aria-pressed", button.dataset[name] === on);
  };
  press("#tools [data-tool]", "tool", tools.tool);
  press("#tools [data-value]", "value", tools.tool === "eraser" ? "nothing" : Object.keys(VALUES).find((key) => VALUES[key] === tools.value));
  $('[data-value="defect"]').classList.toggle("refused", Boolean(editor.about?.good));
  $("#size").value = tools.size;
  $("#size-told").textContent = tools.size;
  $("#opacity").value = Math.round(view.opacity * 100);
  $("#show-mask").checked = view.showsMask;
  $("#show-picture").checked = view.showsPicture;
  if ($("#show-map")) $("#show-map").checked = view.showsMap;
  if ($("#snap")) $("#snap").checked = tools.snap;
  shownMap();
}

function shownMap() {
  const map = view.map;
  if (!$("#level")) return;
  $("#level").disabled = $("#fill-all").disabled = !map;
  $("#at-threshold").disabled = !map || map.threshold === null;
  $("#level-told").textContent = map ? `${map.score(map.level).toPrecision(5)}` : "–";
  if (!map) return;
  $("#level").value = map.level;
  const mark = $(".level .mark");
  const share = map.threshold === null ? -1 : (map.threshold - map.low) / (map.high - map.low);
  mark.hidden = !(share >= 0 && share <= 1);
  mark.style.left = `calc(8px + (100% - 16px) * ${share})`; // half of the slider's handle at either end
}

function keys() {
  onKey((key) => {
    if (tools.corners.length && key === "Enter") tools.closePolygon();
    else if (tools.corners.length && key === "Backspace") tools.backCorner();
    else if (key === "Escape") escape();
    else if (key === "ArrowLeft" || key === "ArrowRight") open(list.beside(key === "ArrowLeft" ? -1 : 1));
    else if (key === "[" || key === "]") sized(key === "]");
    else if (key === "," || key === ".") view.map && setLevel(view.map.level + (key === "." ? LEVEL_STEP : -LEVEL_STEP));
    else if (key === "+" || key === "-") view.zoomTo(view.zoom * (key === "+" ? 1.25 : 0.8));
    else if (key === "0") view.fit();
    else if (key === "1") view.zoomTo(1);
    else if (key === " ") hold(true);
    else return letter(key.toLowerCase());
    return true;
  });
  document.addEventListener("keyup", (event) => event.key === " " && hold(false));
  addEventListener("blur", () => hold(false));
  document.addEventListener("keydown", (event) => {
    if (!(event.ctrlKey || event.metaKey) || event.altKey || event.target.closest("dialog[open]")) return;
    const key = event.key.toLowerCase();
    const field = event.target.closest("input[type=search]");
    if (key === "s") save();
    else if (key === "enter") save(true);
    else if (key === "z" && !field) stepped(!event.shiftKey);
    else if (key === "y" && !field) stepped(false);
    else return;
    event.preventDefault();
  });
}

function letter(key) {
  const mapped = Boolean(editor.facts.mapped);
  if (TOOL_KEYS[key] && (key !== "f" || mapped)) pick(TOOL_KEYS[key]);
  else if (VALUE_KEYS[key]) setValue(VALUE_KEYS[key]);
  else if (key === "m") show("showsMask", !view.showsMask);
  else if (key === "t") show("showsPicture", !view.showsPicture);
  else if (key === "a" && mapped) show("showsMap", !view.showsMap);
  else if (key === "s" && mapped) snap(!tools.snap);
  else if (key === "g" && mapped) tools.fillAbove();
  else return false;
  return true;
}

function escape() {
  tools.cancel();
  versions.back();
  $("#editor").classList.remove("listing");
  updated();
}

function hold(on) {
  tools.space = on;
  $("#stage").classList.toggle("space", on);
  tools.showRing();
}
