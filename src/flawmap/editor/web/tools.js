// What pointers do on the stage: paint, erase, draw polygons, flood, move and zoom; mouse, pen and fingers.
import { DEFECT, IGNORE } from "./mask.js";
import { capsule, flood, polygon, snapped, touchesBorder } from "./shapes.js";

export const MOST_SIZE = 400;
const PAINTS = new Set(["brush", "eraser"]);
const NEAR = 12; // css px from the first corner that close a polygon

export class Tools {
  /** `edited` is called after each step, `tell` with words for the person, `hovered` with the pixel under the pointer. */
  constructor(view, { edited, tell, hovered }) {
    Object.assign(this, { view, edited, tell, hovered, tool: "brush", size: 20, value: DEFECT, snap: false, locked: true });
    Object.assign(this, { space: false, corners: [], pointers: new Map(), stroke: null, tap: null, gesture: null, pen: false, place: null });
    this.ring = view.stage.querySelector("#ring");
    this.lines = view.stage.querySelector("#lines");
    const on = (kind, handler) => view.stage.addEventListener(kind, handler.bind(this), { passive: false });
    on("pointerdown", this.down);
    on("pointermove", this.move);
    on("pointerup", this.up);
    on("pointercancel", this.up);
    on("pointerleave", () => this.ring.setAttribute("hidden", ""));
    on("dblclick", () => this.tool === "polygon" && this.closePolygon());
    on("contextmenu", (event) => event.preventDefault());
    on("wheel", this.wheel);
  }

  get mask() {
    return this.view.mask;
  }

  /** What a click sets: the eraser and "nothing" take away. */
  get paint() {
    return this.tool === "eraser" ? 0 : this.value;
  }

  /** Where painting is allowed; null: everywhere. What is taken away is not held to the map. */
  get allowed() {
    const map = this.view.map;
    return this.snap && map && this.paint ? (index) => map.above(index) : null;
  }

  pick(tool) {
    this.cancel();
    this.tool = tool;
    this.view.stage.dataset.tool = tool;
    this.showRing();
  }

  down(event) {
    event.preventDefault();
    this.view.stage.focus({ preventScroll: true });
    if (!this.mask) return;
    this.pen ||= event.pointerType === "pen";
    this.pointers.set(event.pointerId, event);
    this.view.stage.setPointerCapture(event.pointerId);
    if (this.pointers.size === 2 && event.pointerType === "touch") return this.pinch();
    if (this.pointers.size > 1) return;
    const palm = this.pen && event.pointerType === "touch"; // who has a pen moves with the fingers
    if (event.button === 1 || this.space || this.tool === "move" || palm) this.gesture = "move";
    else if (event.pointerType === "touch" && !PAINTS.has(this.tool)) this.tap = event; // a second finger may follow
    else if (event.button === 0) this.act(event);
  }

  act(event) {
    if (this.locked) return; // a notice, or the role, says why
    const [x, y] = this.view.at(event);
    if (PAINTS.has(this.tool)) {
      this.mask.begin();
      this.stroke = [snapped(x, this.size), snapped(y, this.size)];
      this.paintTo(x, y);
      this.view.soon();
    } else if (this.tool === "polygon") this.addCorner(event);
    else if (this.inside(x, y)) this.floodAt(Math.floor(x), Math.floor(y));
  }

  inside(x, y) {
    return x >= 0 && y >= 0 && x < this.mask.width && y < this.mask.height;
  }

  move(event) {
    if (!this.mask) return;
    const [x, y] = this.view.at(event);
    this.place = event;
    this.showRing();
    this.hovered(Math.floor(x), Math.floor(y));
    const before = this.pointers.get(event.pointerId);
    if (this.tool === "polygon" && this.corners.length) this.showPolygon(this.view.at(event));
    if (!before) return;
    this.pointers.set(event.pointerId, event);
    if (this.gesture === "pinch") this.pinched(event, before);
    else if (this.gesture === "move") this.view.move(event.clientX - before.clientX, event.clientY - before.clientY);
    else if (this.stroke) {
      const all = event.getCoalescedEvents?.() ?? [];
      for (const each of all.length ? all : [event]) this.paintTo(...this.view.at(each));
      this.view.soon();
    }
  }

  up(event) {
    if (!this.pointers.delete(event.pointerId)) return;
    if (this.tap && event.type === "pointerup") this.act(this.tap);
    this.tap = null;
    if (event.type === "pointercancel" && this.stroke) this.cancel();
    this.finish();
    if (!this.pointers.size) this.gesture = null;
  }

  paintTo(x, y) {
    const [ax, ay] = this.stroke;
    const [bx, by] = [snapped(x, this.size), snapped(y, this.size)];
    const { width, height } = this.mask;
    const [value, allowed] = [this.paint, this.allowed];
    capsule(ax, ay, bx, by, this.size, width, height, (row, from, to) => this.mask.span(row, from, to, value, allowed));
    this.stroke = [bx, by];
  }

  /** One step made of what `draw(set)` sets. */
  step(draw, value = this.paint, allowed = null) {
    this.mask.begin();
    draw((y, from, to) => this.mask.span(y, from, to, value, allowed));
    const changed = this.mask.end();
    this.view.soon();
    if (changed) this.edited();
    return changed;
  }

  floodAt(x, y) {
    const { width, height, levels } = this.mask;
    const map = this.view.map;
    const here = y * width + x;
    if (this.tool === "map" && !map) return this.tell("There is no map of this picture yet.");
    if (this.tool === "map" && !map.above(here)) return this.tell("The map is below the level here: lower it, or click on what is coloured.");
    const was = levels[here];
    const inside = this.tool === "map" ? (i) => map.above(i) : (i) => levels[i] === was;
    const spans = flood(x, y, width, height, inside, this.tool === "map"); // regions of verdicts touch at corners too
    if (this.tool === "hole" && !was && touchesBorder(spans, width, height)) {
      return this.tell("This is no hole: it runs to the picture's border.");
    }
    this.step((each) => {
      for (let i = 0; i < spans.length; i += 3) each(spans[i], spans[i + 1], spans[i + 2]);
    });
  }

  /** Sets all that the map says above its level. */
  fillAbove() {
    const map = this.view.map;
    if (!map || this.locked) return;
    const { width, height } = this.mask;
    const rows = (each) => {
      for (let y = 0; y < height; y++) {
        let [from, to] = [y * width, (y + 1) * width];
        while (from < to && !map.above(from)) from++;
        while (to > from && !map.above(to - 1)) to--;
        if (from < to) each(y, from - y * width, to - y * width);
      }
    };
    if (!this.step(rows, this.paint, (i) => map.above(i))) this.tell("Nothing changes: the map is nowhere above the level, or all of it is marked.");
  }

  addCorner(event) {
    const [x, y] = this.view.at(event).map(Math.round);
    const { width, height } = this.mask;
    const corner = [Math.max(0, Math.min(width, x)), Math.max(0, Math.min(height, y))];
    if (this.corners.length > 2 && this.near(corner, this.corners[0]) < NEAR) return this.closePolygon();
    if (this.corners.length && String(this.corners.at(-1)) === String(corner)) return; // the second of a double click
    this.corners.push(corner);
    if (this.corners.length === 1) this.tell("Close the polygon by a double click, Enter, or on its first corner. Esc drops it.");
    this.showPolygon();
  }

  near(one, other) {
    return Math.hypot(one[0] - other[0], one[1] - other[1]) * this.view.zoom;
  }

  closePolygon() {
    if (this.locked) return;
    const corners = this.corners;
    if (corners.length < 3) return this.tell("A polygon has three corners or more.");
    const { width, height } = this.mask;
    this.corners = [];
    this.showPolygon();
    this.tell("");
    this.step((each) => polygon(corners, width, height, each), this.paint, this.allowed);
  }

  /** Takes back the last corner; without one, nothing. */
  backCorner() {
    this.corners.pop();
    this.showPolygon();
  }

  /** Ends a stroke as if the pointer had been lifted. */
  finish() {
    if (!this.stroke) return;
    this.stroke = null;
    if (this.mask.end()) this.edited();
    this.view.soon();
  }

  /** Drops what is begun: a polygon, a stroke. */
  cancel() {
    if (this.corners.length) this.tell("");
    this.corners = [];
    this.showPolygon();
    if (this.stroke) this.mask.abort();
    this.stroke = this.tap = null;
    if (this.mask) this.view.soon();
  }

  showPolygon(loose = null) {
    const points = [...this.corners, ...(loose ? [loose] : [])].map(([x, y]) => this.view.onStage(x, y));
    const words = points.map((point) => point.map((one) => one.toFixed(1)).join(",")).join(" ");
    for (const line of this.lines.querySelectorAll("polyline")) line.setAttribute("points", this.corners.length ? words : "");
    const first = this.lines.querySelector("circle");
    first.toggleAttribute("hidden", !this.corners.length);
    if (this.corners.length) [["cx", 0], ["cy", 1]].forEach(([name, at]) => first.setAttribute(name, points[0][at]));
  }

  showRing() {
    const shown = PAINTS.has(this.tool) && this.place && this.place.pointerType !== "touch" && !this.gesture && !this.space;
    this.ring.toggleAttribute("hidden", !shown);
    if (!shown) return;
    const box = this.view.stage.getBoundingClientRect();
    const across = Math.max(4, this.size * this.view.zoom);
    Object.assign(this.ring.style, { width: `${across}px`, height: `${across}px` });
    this.ring.style.transform = `translate(${this.place.clientX - box.left - across / 2}px, ${this.place.clientY - box.top - across / 2}px)`;
  }

  /** A second finger: what the first has begun to draw is taken back. */
  pinch() {
    if (this.stroke) {
      this.mask.abort();
      this.stroke = null;
      this.view.soon();
    }
    this.tap = null;
    this.gesture = "pinch";
  }

  pinched(event, before) {
    const other = [...this.pointers.values()].find((each) => each.pointerId !== event.pointerId);
    if (!other) return;
    const box = this.view.stage.getBoundingClientRect();
    const apart = (one) => Math.hypot(one.clientX - other.clientX, one.clientY - other.clientY) || 1;
    this.view.move((event.clientX - before.clientX) / 2, (event.clientY - before.clientY) / 2);
    const [x, y] = [(event.clientX + other.clientX) / 2 - box.left, (event.clientY + other.clientY) / 2 - box.top];
    this.view.zoomTo((this.view.zoom * apart(event)) / apart(before), x, y);
  }

  wheel(event) {
    event.preventDefault();
    const box = this.view.stage.getBoundingClientRect();
    const lines = event.deltaMode === 1 ? 20 : 1;
    const factor = Math.exp(-event.deltaY * lines * (event.ctrlKey ? 0.01 : 0.0016));
    this.view.zoomTo(this.view.zoom * factor, event.clientX - box.left, event.clientY - box.top);
  }
}

export const VALUES = { defect: DEFECT, ignore: IGNORE, nothing: 0 };
