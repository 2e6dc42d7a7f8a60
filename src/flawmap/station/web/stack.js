// Overlay, opacity and boxes over pictures; remembered from part to part.
import { $, onKey } from "./common.js";

const KEY = "flawmap-overlay";
const kept = { on: true, opacity: 70, boxes: true };
try {
  Object.assign(kept, JSON.parse(localStorage.getItem(KEY) ?? "{}"));
} catch {
  // A browser may forbid storage: then it starts as it is.
}

/** Shows every stack of the page as the controls say. */
export function drawn() {
  for (const over of document.querySelectorAll("[data-stack] .over")) {
    over.style.opacity = kept.on ? kept.opacity / 100 : 0;
  }
  for (const boxes of document.querySelectorAll("[data-stack] .boxes")) boxes.style.display = kept.boxes ? "" : "none";
}

function set(change) {
  Object.assign(kept, change);
  $("#overlay").checked = kept.on;
  $("#opacity").value = kept.opacity;
  if ($("#boxes")) $("#boxes").checked = kept.boxes;
  try {
    localStorage.setItem(KEY, JSON.stringify(kept));
  } catch {
    // As above.
  }
  drawn();
  document.dispatchEvent(new Event("overlay"));
}

$("#overlay").addEventListener("change", (event) => set({ on: event.target.checked }));
$("#opacity").addEventListener("input", (event) => set({ opacity: Number(event.target.value), on: true }));
$("#boxes")?.addEventListener("change", (event) => set({ boxes: event.target.checked }));
onKey((key) => {
  if (key === "o") set({ on: !kept.on });
  else if (key === "b") set({ boxes: !kept.boxes });
  else if (key === "+" || key === "-") {
    set({ opacity: Math.max(0, Math.min(100, kept.opacity + (key === "+" ? 10 : -10))), on: true });
  } else return false;
  return true;
});
set({});
