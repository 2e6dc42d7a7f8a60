// Unsaved work, kept in this browser until it is saved: it survives a reload, and a server that is gone for a while.
import { packed, unpacked } from "./api.js";

const WAIT_MS = 250; // after the last stroke
const done = (request) =>
  new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });

export class Drafts {
  /** `key` of the data set; `failed` is called once where the browser keeps nothing. */
  constructor(key, failed) {
    Object.assign(this, { key, failed, names: new Set(), waiting: null, timer: 0, work: Promise.resolve() });
    const opening = indexedDB.open("flawmap-masks", 1);
    opening.onupgradeneeded = () => opening.result.createObjectStore("drafts");
    this.base = done(opening).catch(() => null);
  }

  async store(mode) {
    const base = await this.base;
    if (!base) {
      this.failed?.();
      this.failed = null;
    }
    return base?.transaction("drafts", mode).objectStore("drafts");
  }

  /** The names of the pictures of this data set that have unsaved work. */
  async all() {
    const store = await this.store("readonly");
    const keys = store ? await done(store.getAllKeys(IDBKeyRange.bound([this.key], [this.key, []]))) : [];
    this.names = new Set(keys.map(([, name]) => name));
    return this.names;
  }

  /** {levels, version, time}, or null. */
  async get(name, size) {
    await this.flush();
    const store = await this.store("readonly");
    const found = store && (await done(store.get([this.key, name])));
    if (!found) return null;
    const levels = await unpacked(new Blob([found.packed]).stream()).catch(() => []);
    return levels.length === size ? { ...found, levels } : null;
  }

  /** Soon: what `read` gives by then, {levels, version, time}. */
  later(name, read) {
    if (this.waiting && this.waiting[0] !== name) this.flush();
    this.waiting = [name, read];
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.flush(), WAIT_MS);
    this.names.add(name);
  }

  flush() {
    clearTimeout(this.timer);
    if (this.waiting) {
      const [name, read] = this.waiting;
      this.waiting = null;
      const found = read();
      this.work = this.work.then(() => this.put(name, found)).catch(() => this.failed?.());
    }
    return this.work;
  }

  async put(name, { levels, version, time }) {
    const bytes = await packed(levels);
    const store = await this.store("readwrite");
    if (store) await done(store.put({ packed: bytes, version, time }, [this.key, name]));
  }

  drop(name) {
    if (this.waiting?.[0] === name) this.waiting = null;
    this.names.delete(name);
    this.work = this.work.then(async () => {
      const store = await this.store("readwrite");
      if (store) await done(store.delete([this.key, name]));
    }).catch(() => {});
    return this.work;
  }
}
