// The live page. A verdict stands there only while the station is heard: silence greys it out and says so.
import { $, onKey } from "./common.js";
import { rates, scores, short } from "./charts.js";
import { drawn } from "./stack.js";

const ASK_MS = 2000; // how often the station is asked, beside the events
const WAIT_MS = 3000; // how long an answer may take
const SILENT_MS = 5000; // after which nothing on the page is true any more
const VERDICTS = ["OK", "NOK", "REVIEW", "ERROR"];
const verdict = $("#verdict");
const most = Number(verdict.dataset.most);
const state = { parts: [], shown: null, view: 0, drawn: "", over: false, facts: null, newest: null, lost: true, heard: 0, stream: null, listened: 0 };

const word = (row) => row.verdict ?? "ERROR";

function mark(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("class", "shape");
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  use.setAttribute("href", `#mark-${name}`);
  svg.append(use);
  return svg;
}

// ---- the big verdict

function say(kind, title, words) {
  verdict.className = `verdict ${kind}`;
  $("use", verdict).setAttribute("href", `#mark-${kind}`);
  $("#word").textContent = title;
  $("#said").textContent = words;
}

function sayNewest() {
  const row = state.newest;
  if (state.lost) {
    const last = row ? `The last verdict known was ${word(row)}, of part ${row.part}.` : "";
    say("LOST", "NO CONNECTION", `This page does not know what the station says now. ${last}`);
  } else if (row === null) {
    say("NONE", "—", "no part yet");
  } else {
    const why = row.kind === "verdict" ? "" : `${row.code ?? "ERROR"}: ${row.reason ?? ""}`;
    say(word(row), word(row), why || row.part);
  }
  verdict.dataset.seq = row && !state.lost ? (row.seq ?? "fault") : "";
}

function newest(row) {
  state.newest = row;
  sayNewest();
  $("#f-part").textContent = row.part ?? "—";
  const limit = Number.isFinite(row.threshold) ? `, threshold ${short(row.threshold)}` : "";
  $("#f-score").textContent = Number.isFinite(row.score) ? short(row.score) + limit : "—";
  $("#f-took").textContent = Number.isFinite(row.latency_ms) ? `${Math.round(row.latency_ms)} ms` : "—";
  $("#f-recipe").textContent = row.recipe ?? "—";
  $("#f-time").textContent = row.time ? new Date(row.time).toLocaleTimeString() : "—";
  aged();
}

/** The newest part has no row: the verdict of the one before it must not stand there. */
function faulted(told) {
  newest({ ...told, kind: "error", verdict: null, fault: true, seq: state.newest?.seq });
}

function aged() {
  const row = state.newest;
  const seconds = row?.time ? Math.max(0, Math.round((Date.now() - Date.parse(row.time)) / 1000)) : null;
  const words = seconds === null ? "" : seconds < 120 ? `${seconds} s ago` : `${Math.round(seconds / 60)} min ago`;
  if ($("#f-age").textContent !== words) $("#f-age").textContent = words;
}

// ---- picture and strip

/** The picture with its name, both at once: never one part's picture under another's name. */
function show(row, view = 0) {
  state.shown = row;
  state.view = Math.min(view, Math.max((row.views?.length ?? 1) - 1, 0));
  $("#newest").hidden = row.seq === state.parts[0]?.seq;
  for (const link of document.querySelectorAll("#strip a")) {
    if (Number(link.dataset.seq) === row.seq) link.setAttribute("aria-current", "true");
    else link.removeAttribute("aria-current");
  }
  load();
}

async function fetched(at) {
  const img = new Image();
  img.src = at;
  await img.decode();
  return img;
}

let loading = false;
/** One at a time, and then the newest wish: at a fast line not every part's picture is drawn. */
async function load() {
  const [row, view] = [state.shown, state.view];
  const [wanted, over] = [`${row.seq}/${view}`, $("#overlay").checked];
  if (loading || (state.drawn === wanted && (state.over || !over))) return;
  loading = true;
  const at = `/v1/parts/${row.seq}/views/${view}`;
  const names = row.views?.length ? ["picture", ...(over ? ["overlay"] : [])] : [];
  const found = await Promise.allSettled(names.map((name) => fetched(`${at}/${name}`)));
  draw(row, view, found.map((one) => one.value));
  [state.drawn, state.over] = [wanted, over];
  loading = false;
  load();
}

function draw(row, view, [picture, over]) {
  const stack = $("#seen .stack");
  for (const img of stack.querySelectorAll("img")) img.remove();
  if (picture) {
    picture.className = "picture";
    picture.alt = `Part ${row.part}`;
    stack.append(picture);
  }
  if (picture && over) {
    over.className = "over";
    over.alt = "";
    stack.append(over);
  }
  $("#seen .none").hidden = Boolean(picture);
  $("#seen .none").textContent = row.views?.length ? "There is no picture that can be shown." : "No picture of this part.";
  drawn();
  const name = $("#seen-name");
  name.className = `name badge ${word(row)}`;
  name.replaceChildren(mark(word(row)), row.part);
  $("#open").href = `/parts/${row.seq}`;
  tabs(row, view);
}

function tabs(row, view) {
  const views = row.views?.length > 1 ? row.views : [];
  $("#tabs").replaceChildren(
    ...views.map((one, number) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = number + 1;
      button.title = one.name;
      button.setAttribute("aria-pressed", number === view);
      button.addEventListener("click", () => show(row, number));
      return button;
    }),
  );
}

function tile(row) {
  const link = document.createElement("a");
  link.href = `/parts/${row.seq}`;
  link.className = `badge ${word(row)}`;
  link.dataset.seq = row.seq;
  link.title = `${row.part}: ${word(row)}`;
  const name = document.createElement("span");
  name.textContent = row.part.length > 10 ? `…${row.part.slice(-9)}` : row.part;
  link.append(mark(word(row)), name);
  link.addEventListener("click", (event) => {
    if (event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    show(row);
  });
  return link;
}

function follow() {
  if (!state.parts.length) return;
  show(state.parts[0]);
  $("#strip").scrollLeft = 0;
}

// ---- what comes in

/** Rows, newest first, that may overlap what is known. The shown part stays when an older one was chosen. */
function take(rows) {
  const followed = !state.shown || state.shown.seq === state.parts[0]?.seq;
  const known = new Set(state.parts.map((row) => row.seq));
  const fresh = rows.filter((row) => !known.has(row.seq));
  if (!fresh.length) return;
  state.parts = [...fresh, ...state.parts].sort((a, b) => b.seq - a.seq).slice(0, most);
  if (state.parts[0].seq > (state.newest?.seq ?? 0)) newest(state.parts[0]);
  $("#strip").replaceChildren(...state.parts.slice(0, 60).map(tile));
  if (followed) follow();
  else show(state.shown, state.view);
  chart();
}

let waiting = false;
function chart() {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => {
    waiting = false;
    const oldest = [...state.parts].reverse();
    const [left, right] = [$("#scores"), $("#rates")];
    left.replaceChildren(scores(oldest.slice(-120), state.facts?.review, left.clientWidth || 300));
    right.replaceChildren(rates(oldest, state.facts?.promised ?? 0, right.clientWidth || 300));
  });
}

function lamp(name, kind, text) {
  const item = document.createElement("li");
  item.className = "lamp";
  item.dataset.state = kind;
  const words = document.createElement("span");
  words.textContent = `${name}: ${text || kind}`;
  item.append(document.createElement("i"), words);
  return item;
}

function drift(found) {
  if (!found) return lamp("drift", "off", "no part yet");
  if (found.alarm_at) return lamp("drift", "bad", `changed since the calibration (seen at part ${found.alarm_at})`);
  if (found.signal_at) return lamp("drift", "warn", `a sign of change at part ${found.signal_at}`);
  return lamp("drift", "ok", `none seen in ${found.parts} OK parts`);
}

function facts(found) {
  state.facts = found;
  const words = [found.blocked && `Blocked: ${found.blocked}`, found.fault && `Fault: ${found.fault}`].filter(Boolean);
  $("#banner").hidden = !words.length;
  if ($("#banner").textContent !== words.join(" ")) $("#banner").textContent = words.join(" ");
  $("#counts").replaceChildren(
    ...VERDICTS.map((name) => {
      const item = document.createElement("li");
      const count = document.createElement("b");
      count.textContent = found.counts[name] ?? 0;
      const label = document.createElement("span");
      label.className = `badge ${name}`;
      label.append(mark(name), name);
      item.append(count, label);
      return item;
    }),
  );
  for (const name of ["p50", "p99"]) $(`#${name}`).textContent = found.latency[name] === null ? "—" : Math.round(found.latency[name]);
  $("#waiting").textContent = found.waiting;
  const ready = lamp("station", found.ready ? "ok" : "bad", found.ready ? "ready" : "not ready");
  $("#lamps").replaceChildren(ready, drift(found.drift), ...found.lamps.map((one) => lamp(one.name, one.state, one.text)));
}

// ---- the connection

/** The state as it is now was read: what stands on the page is true. */
function heard() {
  state.heard = performance.now();
  if (!state.lost) return;
  state.lost = false;
  document.body.classList.remove("lost");
  $("#link").dataset.state = "ok";
  $("#link span").textContent = "connected";
  sayNewest();
}

/** A sign of life. After a silence it is not enough: verdicts may have been missed meanwhile. */
function beat() {
  if (!state.lost) state.heard = performance.now();
}

function lose() {
  if (state.lost && document.body.classList.contains("lost")) return;
  state.lost = true;
  document.body.classList.add("lost");
  $("#link").dataset.state = "bad";
  $("#link span").textContent = "connection lost, trying again";
  sayNewest();
}

async function read(n) {
  const answer = await fetch(`/live.json?n=${n}`, { cache: "no-store", signal: AbortSignal.timeout(WAIT_MS) });
  if (answer.status === 401) location.reload(); // the session has ended: to the page that asks for a token
  if (!answer.ok) throw new Error(`status ${answer.status}`);
  return answer.json();
}

async function ask() {
  const n = state.parts.length ? 12 : most;
  let found = await read(n);
  const known = state.parts[0]?.seq ?? 0;
  if (found.parts.length === n && n < most && found.parts.at(-1).seq > known) found = await read(most);
  facts(found);
  take(found.parts);
  const stale = (found.parts[0]?.seq ?? 0) < (state.parts[0]?.seq ?? 0); // a part came while it was read
  if (found.fault && !stale && !state.newest?.fault) faulted({ code: "FAULT", reason: found.fault });
  heard();
}

async function asking() {
  try {
    await ask();
    const deaf = state.stream?.readyState !== EventSource.OPEN;
    if (deaf && performance.now() - state.listened > ASK_MS) listen();
  } catch {
    if (performance.now() - state.heard > SILENT_MS) lose();
  }
  setTimeout(asking, ASK_MS);
}

function listen() {
  state.stream?.close();
  state.listened = performance.now();
  const stream = new EventSource("/v1/events");
  state.stream = stream;
  stream.addEventListener("part", (event) => {
    take([JSON.parse(event.data)]);
    beat();
  });
  stream.addEventListener("fault", (event) => {
    const row = JSON.parse(event.data);
    faulted({ ...row, time: new Date().toISOString() });
    beat();
  });
  for (const name of ["decision", "event", "status"]) stream.addEventListener(name, beat);
  stream.addEventListener("event", () => ask().catch(() => {})); // a switch, a block: banner and lamps
  stream.addEventListener("error", lose);
  stream.addEventListener("open", () => ask().catch(() => {})); // what was missed meanwhile
}

setInterval(() => {
  aged();
  if (performance.now() - state.heard > SILENT_MS) lose(); // also after the tablet slept
}, 500);

// ---- keys and controls

addEventListener("resize", chart);
document.addEventListener("overlay", () => state.shown && load());

$("#newest").addEventListener("click", follow);
onKey((key) => {
  const place = state.parts.findIndex((row) => row.seq === state.shown?.seq);
  if (key === "ArrowRight" && place > 0) show(state.parts[place - 1]);
  else if (key === "ArrowLeft" && place >= 0 && place < state.parts.length - 1) show(state.parts[place + 1]);
  else if (key === "Escape") follow();
  else if (key === "Enter" && state.shown) location.href = `/parts/${state.shown.seq}`;
  else return false;
  $("#strip [aria-current]")?.scrollIntoView({ block: "nearest", inline: "nearest" });
  return true;
});

state.heard = performance.now();
asking();
listen();
