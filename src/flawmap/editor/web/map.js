// The anomaly map in 16 bits, in the picture's size, and its colours: those of the reports, anchored at the level.

const STEPS = 65535;
const RAMP = [0x420a68, 0x6a176e, 0x932667, 0xbc3754, 0xdd513a, 0xf37819, 0xfca50a, 0xf6d746, 0xfcffa4]; // report/heatmap.py
const VEIL = [226, 232, 240];
const [VEIL_ALPHA, LEAST_ALPHA, MOST_ALPHA] = [0.32, 0.72, 0.92];

export class AnomalyMap {
  constructor(bytes, low, high, threshold) {
    this.levels = new Uint16Array(bytes.buffer, bytes.byteOffset, bytes.byteLength / 2);
    Object.assign(this, { low, high, threshold });
    this.colours = new Uint32Array(STEPS + 1);
    this.setLevel(threshold === null ? STEPS >> 1 : this.levelOf(threshold));
  }

  levelOf(score) {
    const level = Math.floor(((score - this.low) / (this.high - this.low)) * STEPS);
    return Math.max(0, Math.min(STEPS, level));
  }

  score(level) {
    return this.low + (level / STEPS) * (this.high - this.low);
  }

  above(index) {
    return this.levels[index] > this.level;
  }

  setLevel(level) {
    this.level = level;
    for (let v = 0; v <= STEPS; v++) this.colours[v] = v > level ? ramp((v - level) / (STEPS - level)) : veil(level ? v / level : 0);
  }
}

const rgba = (r, g, b, a) => ((Math.round(a * 255) << 24) | (b << 16) | (g << 8) | r) >>> 0;
const veil = (share) => rgba(...VEIL, Math.max(0, 2 * share - 1) * VEIL_ALPHA);

function ramp(share) {
  const place = share * (RAMP.length - 1);
  const [one, other] = [RAMP[Math.floor(place)], RAMP[Math.min(Math.ceil(place), RAMP.length - 1)]];
  const mix = (shift) => {
    const [a, b] = [(one >> shift) & 255, (other >> shift) & 255];
    return Math.round(a + (b - a) * (place % 1));
  };
  return rgba(mix(16), mix(8), mix(0), LEAST_ALPHA + share * (MOST_ALPHA - LEAST_ALPHA));
}
