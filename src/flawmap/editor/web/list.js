// The list of pictures: filtered here, and only the rows that are seen are in the page.
import { thumb } from "./api.js";

const HIGH = 60; // px of a row, as in editor.css
const BEYOND = 4; // rows above and below what is seen
export const [NAME, KIND, MASKED, WHO, WHEN] = [0, 1, 2, 3, 4]; // of a row

export class List {
  /** `author` is whose pictures are "mine"; `open(number)` is called when one is chosen. */
  constructor(box, { author, open, unsaved }) {
    Object.assign(this, { box, author, unsaved, rows: [], seen: [], current: -1, drawn: new Map() });
    this.inside = box.querySelector("ul");
    this.filter = { kind: "", show: "", text: "" };
    box.addEventListener("scroll", () => this.soon());
    new ResizeObserver(() => this.draw()).observe(box);
    this.inside.addEventListener("click", (event) => {
      const row = event.target.closest("[data-number]");
      if (row) open(Number(row.dataset.number));
    });
  }

  set(rows) {
    this.rows = rows;
    this.narrow(this.filter);
  }

  narrow(filter) {
    this.filter = filter;
    const text = filter.text.trim().toLowerCase();
    const shows = {
      "": () => true,
      without: (row) => !row[MASKED] && row[KIND] !== "good",
      with: (row) => row[MASKED],
      changed: (row) => row[WHO],
      mine: (row) => row[WHO] && row[WHO] === this.author,
      unsaved: (row) => this.unsaved().has(row[NAME]),
    }[filter.show];
    this.seen = [];
    this.rows.forEach((row, number) => {
      if ((!filter.kind || row[KIND] === filter.kind) && (!text || row[NAME].toLowerCase().includes(text)) && shows(row)) this.seen.push(number);
    });
    this.clear();
  }

  /** A row has changed; it stays in the list until the filter is set anew. */
  update(number, row) {
    if (row) this.rows[number] = row;
    this.drawn.get(number)?.remove();
    this.drawn.delete(number);
    this.draw();
  }

  clear() {
    this.drawn.clear();
    this.inside.replaceChildren();
    this.inside.style.height = `${this.seen.length * HIGH}px`;
    this.draw();
  }

  /** The number of the picture `step` rows further, or null at the end. */
  beside(step) {
    const at = this.seen.indexOf(this.current);
    if (at >= 0) return this.seen[at + step] ?? null;
    if (step > 0) return this.seen.find((number) => number > this.current) ?? null;
    return this.seen.findLast((number) => number < this.current) ?? null;
  }

  choose(number) {
    const before = this.current;
    this.current = number;
    for (const one of [before, number]) this.drawn.get(one)?.toggleAttribute("aria-current", one === number);
    const at = this.seen.indexOf(number);
    if (at < 0) return;
    const [top, high] = [this.box.scrollTop, this.box.clientHeight];
    if (at * HIGH < top || (at + 1) * HIGH > top + high) this.box.scrollTop = at * HIGH - high / 2 + HIGH / 2;
    this.draw();
  }

  soon() {
    if (this.waits) return;
    this.waits = requestAnimationFrame(() => {
      this.waits = 0;
      this.draw();
    });
  }

  draw() {
    const first = Math.max(0, Math.floor(this.box.scrollTop / HIGH) - BEYOND);
    const last = Math.min(this.seen.length, Math.ceil((this.box.scrollTop + this.box.clientHeight) / HIGH) + BEYOND);
    const wanted = new Set(this.seen.slice(first, last));
    for (const [number, node] of this.drawn) {
      if (wanted.has(number)) continue;
      node.remove();
      this.drawn.delete(number);
    }
    for (let at = first; at < last; at++) if (!this.drawn.has(this.seen[at])) this.add(this.seen[at], at);
  }

  add(number, at) {
    const row = this.rows[number];
    const item = document.createElement("li");
    item.style.top = `${at * HIGH}px`;
    item.dataset.number = number;
    item.toggleAttribute("aria-current", number === this.current);
    const button = document.createElement("button");
    button.type = "button";
    const image = document.createElement("img");
    Object.assign(image, { src: thumb(number), alt: "", decoding: "async" });
    const words = document.createElement("span");
    words.append(text("b", row[NAME].split("/").slice(1).join("/")), text("small", said(row)));
    button.title = row[NAME];
    image.addEventListener("error", () => image.replaceWith(Object.assign(text("span", "?"), { className: "none", title: "no preview" })));
    button.append(image, words);
    if (this.unsaved().has(row[NAME])) button.append(Object.assign(text("i", "●"), { title: "unsaved work" }));
    item.append(button);
    this.inside.append(item);
    this.drawn.set(number, item);
  }
}

function said(row) {
  const mask = row[WHO] ? `saved by ${row[WHO]}` : row[MASKED] ? "mask" : row[KIND] === "good" ? "" : "no mask";
  return [row[KIND], mask].filter(Boolean).join(" · ");
}

function text(tag, words) {
  const node = document.createElement(tag);
  node.textContent = words;
  return node;
}
