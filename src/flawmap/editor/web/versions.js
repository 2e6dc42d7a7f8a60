// The versions of a picture's mask: who, when; looked at without touching what is drawn, and brought back.
import { $ } from "./common.js";
import * as api from "./api.js";
import { ask, dirty, failed, time, updated } from "./main.js";
import { Mask } from "./mask.js";

export class Versions {
  constructor(editor, view, tools, { tell, reload }) {
    Object.assign(this, { editor, view, tools, tell, reload, asked: null });
  }

  show() {
    const versions = this.editor.about?.versions ?? [];
    const items = versions.map((version) => {
      const item = document.createElement("li");
      const words = document.createElement("span");
      words.textContent = version.who || "before the editor, or outside it";
      const when = document.createElement("small");
      when.textContent = [version.current ? "on disk now" : "", version.when ? time(version.when) : ""].filter(Boolean).join(" · ");
      words.append(when);
      item.append(words);
      if (!version.current) {
        item.append(this.button("Look", () => this.look(version)));
        if (this.editor.facts.writes) item.append(this.button("Restore", () => this.restore(version)));
      }
      return item;
    });
    if (!items.length && this.editor.about) items.push(Object.assign(document.createElement("li"), { textContent: "There is no mask yet.", className: "soft" }));
    $("#history ol").replaceChildren(...items);
  }

  button(words, act) {
    const button = Object.assign(document.createElement("button"), { type: "button", className: "quiet", textContent: words });
    button.addEventListener("click", () => !this.editor.loading && act().catch((error) => failed(error)));
    return button;
  }

  async look({ id, who, when }) {
    const { number, mask } = this.editor;
    const found = await api.versionOf(number, id);
    if (this.editor.mask !== mask || this.editor.loading) return; // another picture has come meanwhile
    this.put(found.bytes);
    this.tell(`This is an earlier version${who ? ` of ${who}` : ""}${when ? `, ${time(when)}` : ""}.`, "Back to mine", () => this.back());
  }

  /** Shows another mask until the person is done with it. */
  async compare(levels, words) {
    this.put(levels);
    await new Promise((resolve) => {
      this.asked = resolve;
      this.tell(words, "Decide", () => this.back());
    });
  }

  /** Whether another mask than what is drawn is shown. */
  get looks() {
    return this.view.mask !== this.editor.mask;
  }

  put(levels) {
    const { width, height } = this.editor.mask;
    this.tools.cancel();
    this.view.mask = new Mask(width, height, levels.slice());
    this.tools.locked = true;
    this.view.redraw();
    updated();
  }

  /** What is drawn, again. */
  back() {
    if (!this.looks) return;
    this.view.mask = this.editor.mask;
    this.tools.locked = this.editor.loading || !this.editor.facts.writes;
    this.view.redraw();
    this.tell("");
    updated();
    this.asked?.();
    this.asked = null;
  }

  async restore({ id }) {
    const drops = dirty() ? "Your unsaved work on this picture is dropped. " : "";
    const words = `${drops}The mask of now stays among the versions.`;
    if ((await ask("Restore this version?", words, ["Restore it", "Leave it"])) !== "Restore it") return;
    await api.restore(this.editor.number, id, this.editor.about.version);
    await this.reload();
  }
}
