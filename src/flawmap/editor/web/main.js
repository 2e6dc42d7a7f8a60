// The editor: opens pictures, keeps unsaved work, saves; what the buttons and keys do is in controls.js.
import { $ } from "./common.js";
import * as api from "./api.js";
import { controls } from "./controls.js";
import { Drafts } from "./drafts.js";
import { Versions } from "./versions.js";
import { KIND, List, NAME } from "./list.js";
import { AnomalyMap } from "./map.js";
import { DEFECT, IGNORE, Mask } from "./mask.js";
import { Tools } from "./tools.js";
import { View } from "./view.js";

const facts = $("#editor").dataset;
const KEY = `flawmap-masks-${facts.key}`;
const UNKNOWN = {}; // a step that is never the newest: what is shown is not what was saved

export const editor = {
  facts, // of the page
  number: -1, // of the picture
  about: null, // what the server said of it
  mask: null, // what is edited; the view may show another version
  base: "none", // the version that was changed
  drawn: 0, // when it was last changed
  saved: null, // the newest step when it was last the same as on disk
  busy: false, // with a save
  loading: false, // another picture: nothing is drawn or saved until it is there
};

export const view = new View($("#stage"));
export const drafts = new Drafts(facts.key, () => tell("This browser keeps nothing: unsaved work is lost with the page."));
export const tools = new Tools(view, { edited, tell, hovered });
export const list = new List($("#list .rows"), { author: facts.author, open, unsaved: () => drafts.names });
export const versions = new Versions(editor, view, tools, { tell, reload: () => reopen() });

export const dirty = () => Boolean(editor.mask) && editor.mask.top !== editor.saved;
const name = () => editor.about.row[NAME];

/** Words for the person, with a button where there is something to do about them. */
export function tell(words, action = "", act = null) {
  const [text, button] = $("#notice").children;
  $("#notice").hidden = !words;
  text.textContent = words;
  button.hidden = !action;
  button.textContent = action;
  button.onclick = act;
}

const LIST = "The list of pictures has changed since this page was opened: load it anew. Unsaved work is kept in this browser.";

/** What went wrong, with a way on: after a change of the list of pictures only a reload shows the right ones. */
export function failed(error, again = null) {
  if (error.code === "LIST") tell(LIST, "Reload", () => location.reload());
  else tell(error.message, again ? "Try again" : "", again);
}

let opening = null;

export async function open(number) {
  if (number === null || !list.rows[number]) return;
  if (editor.busy) return;
  opening?.abort();
  const { signal } = (opening = new AbortController());
  tools.cancel();
  keep();
  tools.locked = editor.loading = true;
  $("#editor").classList.remove("listing");
  list.choose(number);
  updated();
  remember({ name: list.rows[number][NAME] });
  try {
    const about = await api.about(number, signal);
    const [bitmap, given] = await Promise.all([api.picture(number, signal), api.maskOf(number, signal)]);
    const draft = await drafts.get(about.row[NAME], given.bytes.length);
    if (signal.aborted) return bitmap.close();
    await shown(number, about, bitmap, given, draft);
  } catch (error) {
    if (signal.aborted) return;
    none(number);
    failed(error, () => open(number));
  } finally {
    if (!signal.aborted) editor.loading = false;
  }
}

/** A picture that cannot be shown: no other one stays, which somebody would draw on instead. */
function none(number) {
  Object.assign(editor, { number: -1, about: null, mask: null, base: "none", saved: null });
  view.clear();
  titled(list.rows[number]);
  $("#state").textContent = "cannot be opened";
  $("#counts").textContent = $("#where").textContent = "";
  versions.show();
  updated();
}

async function shown(number, about, bitmap, given, draft) {
  tools.cancel();
  const drawing = new Mask(about.width, about.height, draft?.levels ?? given.bytes);
  Object.assign(editor, { number, about, mask: drawing, base: draft?.version ?? given.version, saved: draft ? UNKNOWN : null });
  Object.assign(editor, { drawn: draft?.time ?? 0, loading: false });
  tools.locked = !facts.writes;
  if (about.good && tools.value === DEFECT) tools.value = IGNORE;
  tell(facts.writes ? "" : "You may look; to save takes the role operate.");
  if (given.cut) tell("This mask holds grey values. It is shown cut at half; a save writes it so, and keeps the old file.");
  if (given.unread) tell(`${given.unread.replace(/[.]?$/, ".")} It is shown empty; a save replaces it, and keeps the old file.`);
  if (draft) {
    const old = draft.version === given.version ? "" : " The mask on disk has changed since.";
    tell(`Your unsaved work of ${time(draft.time)} is back.${old}`, "Drop it", discard);
  }
  const mapped = view.showsMap || tools.snap || tools.tool === "map";
  versions.show();
  updated();
  await view.show(bitmap, drawing);
  if (mapped) loadMap();
}

/** The same picture anew, from the server: what is drawn is given up. */
export async function reopen() {
  const { number, mask } = editor;
  editor.saved = mask.top;
  await drafts.drop(name());
  await open(number);
}

async function discard() {
  if (editor.loading) return;
  if ((await ask("Drop the unsaved work?", "It cannot be brought back.", ["Drop it", "Keep it"])) === "Drop it") await reopen();
}

function edited() {
  editor.drawn = Date.now();
  later();
  updated();
}

/** The draft of this picture is written soon, also where another one is edited by then. */
function later() {
  const { mask, base, drawn } = editor;
  drafts.later(name(), () => ({ levels: mask.levels.slice(), version: base, time: drawn }));
}

/** Unsaved work is written now, also what was written before: another window drops the draft when it saves. */
function keep() {
  if (dirty()) later();
  return drafts.flush();
}

export function stepped(back) {
  if (editor.mask && !editor.loading && !versions.looks && (back ? editor.mask.undo() : editor.mask.redo())) {
    view.soon();
    if (dirty()) edited();
    else drafts.drop(name()).then(updated);
  }
}

/** Buttons, words and the list say how things are. */
export function updated() {
  const { mask, about } = editor;
  const waits = versions.looks || editor.loading;
  $("#undo").disabled = !mask?.done.length || waits;
  $("#redo").disabled = !mask?.undone.length || waits;
  for (const button of [$("#save"), $("#save-next")]) button.disabled = !facts.writes || !dirty() || editor.busy || editor.loading;
  if (!about) return;
  const [, , , who, when] = about.row;
  titled(about.row);
  const saved = who ? `saved by ${who}, ${day(when)}` : about.version === "none" ? "no mask yet" : "as it came";
  $("#state").textContent = editor.loading ? "opening…" : dirty() ? "unsaved" : saved;
  $("#state").title = who ? `saved by ${who}, ${time(when)}` : saved;
  $("#counts").textContent = `defect ${told(mask.counts[DEFECT])} px · ignore ${told(mask.counts[IGNORE])} px`;
  list.update(editor.number, about.row);
  document.dispatchEvent(new Event("updated"));
}

function titled(row) {
  $("#name").textContent = row[NAME].split("/").slice(1).join("/");
  $("#name").title = row[NAME];
  $("#kind-tag").textContent = row[KIND];
  $("#kind-tag").hidden = false;
}

export const told = (count) => count.toLocaleString("en");
export const time = (when) => new Date(when).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" });

/** Short, for the title: the time where it was today, else the day. */
function day(when) {
  const then = new Date(when);
  const today = then.toDateString() === new Date().toDateString();
  return today ? then.toLocaleTimeString(undefined, { timeStyle: "short" }) : then.toLocaleDateString(undefined, { dateStyle: "medium" });
}

export async function save(next = false) {
  if (editor.busy || editor.loading || !dirty() || !facts.writes) return;
  if (tools.stroke) return tell("Not saved: a stroke is being drawn. Lift the pointer, then save.");
  versions.back();
  editor.busy = true;
  $("#state").textContent = "saving…";
  try {
    await put(editor.base, false);
  } catch (error) {
    failed(error, () => save(next));
    next = false;
  } finally {
    editor.busy = false;
    updated();
  }
  if (next && !dirty()) await open(list.beside(1));
}

/** Sends what is drawn. A conflict, or a mask with nothing in it, is asked about. */
async function put(base, empty) {
  const { number, mask } = editor;
  const step = mask.top;
  try {
    const about = await api.save(number, mask, base, empty);
    Object.assign(editor, { about, base: about.version, saved: step });
    if (!dirty()) await drafts.drop(name());
    else edited();
    tell("");
    versions.show();
  } catch (error) {
    if (error.code === "EMPTY") {
      const words = "No pixel is marked as defect, and the picture is called defective. An empty mask counts as a fault of the data in flawmap data.";
      if ((await ask("Save an empty mask?", words, ["Save it empty", "Go on drawing"])) === "Save it empty") await put(base, true);
    } else if (error.code === "CONFLICT") await conflict(error, empty);
    else throw error;
  }
}

async function conflict(error, empty) {
  const theirs = await api.maskOf(editor.number);
  const who = error.found.who || "Somebody";
  for (;;) {
    const choices = ["Look at theirs", "Look at mine", "Save mine over it", "Take theirs", "Decide later"];
    const words = `${who} has saved another mask of this picture since you opened it. If you save over it, theirs stays in the versions.`;
    const choice = await ask("Two masks of one picture", words, choices);
    if (choice === "Look at theirs") await versions.compare(theirs.bytes, `This is the mask of ${who}.`);
    else if (choice === "Look at mine") await versions.compare(editor.mask.levels, "This is yours.");
    else if (choice === "Save mine over it") return put(theirs.version, empty);
    else if (choice === "Take theirs") {
      editor.busy = false;
      return reopen();
    } else return tell("Not saved: another mask was saved meanwhile. Your work is kept in this browser.", "Decide", () => save());
  }
}

/** A question with some answers; Esc is the last of them. */
export function ask(title, words, answers) {
  tools.finish();
  const dialog = $("#ask");
  $("h2", dialog).textContent = title;
  $("p", dialog).textContent = words;
  const buttons = answers.map((answer, index) => {
    const button = document.createElement("button");
    Object.assign(button, { value: answer, textContent: answer, className: index ? "quiet" : "" });
    return button;
  });
  $("form", dialog).replaceChildren(...buttons);
  dialog.returnValue = answers.at(-1);
  dialog.showModal();
  return new Promise((resolve) => dialog.addEventListener("close", () => resolve(dialog.returnValue), { once: true }));
}

let loading = null;

/** The map of this picture, once; words where there is none. */
export async function loadMap() {
  if (!facts.mapped || view.map || loading === editor.number || !editor.mask) return;
  const number = (loading = editor.number);
  $("#map-told").textContent = "The model looks at the picture…";
  try {
    const found = await api.mapOf(number);
    if (number !== editor.number) return;
    view.map = new AnomalyMap(found.bytes, found.low, found.high, found.threshold);
    const below = found.threshold !== null && found.threshold >= found.high;
    $("#map-told").textContent = below ? `All of it is below the model's threshold, ${found.threshold.toPrecision(5)}: lower the level.` : "";
    view.redraw();
    document.dispatchEvent(new Event("mapped"));
  } catch (error) {
    if (number === editor.number) $("#map-told").textContent = error.message;
  } finally {
    if (loading === number) loading = null;
  }
}

function hovered(x, y) {
  const { mask } = editor;
  if (!mask || x < 0 || y < 0 || x >= mask.width || y >= mask.height) return;
  const map = view.map ? ` · map ${view.map.score(view.map.levels[y * mask.width + x]).toPrecision(4)}` : "";
  const zoom = `${Math.round(view.zoom * 100)} %`;
  $("#where").textContent = `${zoom} · ${x}, ${y}${map}`;
}

export function remember(change) {
  try {
    localStorage.setItem(KEY, JSON.stringify({ ...remembered(), ...change }));
  } catch {
    // A browser may forbid storage: then it starts at the first picture.
  }
}

export function remembered() {
  try {
    return JSON.parse(localStorage.getItem(KEY) ?? "{}");
  } catch {
    return {};
  }
}

addEventListener("beforeunload", (event) => {
  keep();
  if (dirty()) event.preventDefault();
});
document.addEventListener("visibilitychange", () => document.hidden && keep());

controls();
try {
  const [rows] = await Promise.all([api.rows(), drafts.all()]);
  list.set(rows);
  $("#count").textContent = `${told(list.seen.length)} of ${told(rows.length)}`;
  const last = rows.findIndex((row) => row[NAME] === remembered().name);
  const first = rows.findIndex((row) => row[KIND] !== "good");
  await open(last >= 0 ? last : Math.max(first, 0));
} catch (error) {
  tell(error.message, "Try again", () => location.reload());
}
