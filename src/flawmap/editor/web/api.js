// What the page asks the server: pictures, masks, maps. Errors say what the server said.
// Pictures go by their number in a list. Every request says in which, so that after a restart with other pictures the
// server refuses (409, code LIST) what would be another picture's.

let list = ""; // of the rows that the page has

export class Refused extends Error {
  constructor(status, found) {
    const words = { 0: "The editor cannot be reached. Your work is kept in this browser.", 401: "Your session has ended: enter the token again. Your work is kept in this browser." };
    super(words[status] ?? found?.error?.message ?? `The editor refused: ${status}.`);
    Object.assign(this, { status, found, code: found?.error?.code });
  }
}

async function ask(path, how = {}) {
  let answer;
  try {
    const headers = { ...how.headers, ...(list && { "X-List": list }) };
    answer = await fetch(path, { credentials: "same-origin", ...how, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused(0);
  }
  if (!answer.ok) throw new Refused(answer.status, await answer.json().catch(() => null));
  return answer;
}

const json = async (path, how) => (await ask(path, how)).json();
const at = (number, what = "") => `/api/pictures/${number}${what}`;

/** The list, with which the page begins. */
export async function rows() {
  const found = await json("/api/pictures");
  list = found.list;
  return found.pictures;
}

export const about = (number, signal) => json(at(number), { signal });
export const thumb = (number) => at(number, `/thumb?list=${list}`); // an <img> sends no header
export const maskOf = (number, signal) => raw(at(number, "/mask"), { signal });
export const versionOf = (number, version) => raw(at(number, `/versions/${version}`));
export const mapOf = (number, signal) => raw(at(number, "/map"), { signal });

export async function picture(number, signal) {
  const answer = await ask(at(number, "/picture"), { signal });
  return createImageBitmap(await answer.blob(), { colorSpaceConversion: "none" });
}

export async function save(number, mask, base, empty) {
  const how = { method: "PUT", headers: { "Content-Type": "image/png", "If-Match": base }, body: await png(mask) };
  return json(at(number, `/mask${empty ? "?empty=true" : ""}`), how);
}

export const restore = (number, version, base) =>
  json(at(number, `/restore/${version}`), { method: "POST", headers: { "If-Match": base } });

/** Bytes and what is said of them. They come packed and not as a picture: a canvas may give other values back. */
async function raw(path, how) {
  const answer = await ask(path, how);
  const facts = JSON.parse(answer.headers.get("X-Facts") ?? "{}");
  return { ...facts, bytes: await unpacked(answer.body) };
}

const through = async (stream, other) => new Uint8Array(await new Response(stream.pipeThrough(other)).arrayBuffer());
export const unpacked = (stream) => through(stream, new DecompressionStream("deflate"));
export const packed = (bytes) => through(new Blob([bytes]).stream(), new CompressionStream("deflate"));

/** A grey PNG of 8 bits, byte for byte the mask: not by way of a canvas. */
export async function png({ width, height, levels }) {
  const lines = new Uint8Array((width + 1) * height); // a line begins with its filter, 0: none
  for (let y = 0; y < height; y++) lines.set(levels.subarray(y * width, (y + 1) * width), y * (width + 1) + 1);
  const head = new Uint8Array(13);
  const view = new DataView(head.buffer);
  view.setUint32(0, width);
  view.setUint32(4, height);
  head[8] = 8;
  const start = Uint8Array.of(137, 80, 78, 71, 13, 10, 26, 10);
  return new Blob([start, chunk("IHDR", head), chunk("IDAT", await packed(lines)), chunk("IEND", new Uint8Array())]);
}

function chunk(kind, body) {
  const found = new Uint8Array(body.length + 12);
  const view = new DataView(found.buffer);
  view.setUint32(0, body.length);
  found.set(new TextEncoder().encode(kind), 4);
  found.set(body, 8);
  view.setUint32(body.length + 8, crc(found.subarray(4, body.length + 8)));
  return found;
}

const TABLE = Uint32Array.from({ length: 256 }, (_, n) => {
  for (let bit = 0; bit < 8; bit++) n = n & 1 ? 0xedb88320 ^ (n >>> 1) : n >>> 1;
  return n;
});

function crc(bytes) {
  let found = 0xffffffff;
  for (const byte of bytes) found = TABLE[(found ^ byte) & 255] ^ (found >>> 8);
  return (found ^ 0xffffffff) >>> 0;
}
