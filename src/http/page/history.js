// What was: the rings that the side port keeps (15 minutes by the second, 24 hours by the minute), the former prolonged by
// each snapshot of the stream, so that the page asks for it once and after a gap only. Rules by the second are what this page
// has seen itself since it was opened.

const LENGTH = 900;
// A young ring is not stretched over the whole width.
const SHORTEST = 120;
// What a hit rate by rule is taken over: single seconds jump.
const WINDOW = 10;

const STEP_MS = 1000;

export class Seconds {
  constructor() {
    this.end = null;
    this.series = {};
  }

  load({ end, series }) {
    this.end = end ? Date.parse(end) : null;
    this.series = series;
  }

  // The newest second; what lies between it and the one before was not seen by anybody here: then true.
  push({ at, last }) {
    const time = Date.parse(at);
    if (!last || (this.end !== null && time - this.end < STEP_MS / 2)) return false;
    const missed = this.end === null ? 0 : Math.min(LENGTH, Math.round((time - this.end) / STEP_MS) - 1);
    const length = this.length();
    for (const [name, value] of Object.entries(last)) {
      const values = (this.series[name] ??= Array(length).fill(null));
      for (let i = 0; i < missed; i++) values.push(null);
      values.push(value);
      if (values.length > LENGTH) values.splice(0, values.length - LENGTH);
    }
    this.end = time;
    return missed > 0;
  }

  length() {
    return Object.values(this.series)[0]?.length ?? 0;
  }
}

// Both ranges look the same to whoever draws: counts as they are, `perSecond` of them, and the time axis.
export class View {
  constructor({ end, step, series }) {
    this.step = step;
    this.series = series;
    this.end = end ?? Date.now();
    this.length = Math.max(Object.values(series)[0]?.length ?? 0, SHORTEST);
  }

  values(name) {
    const values = this.series[name] ?? [];
    return values.length < this.length ? [...Array(this.length - values.length).fill(null), ...values] : values;
  }

  perSecond(name) {
    return this.values(name).map((value) => (value === null ? null : (value * 1000) / this.step));
  }

  // part / (part + rest), where anything was counted.
  share(part, rest) {
    const others = this.values(rest);
    return this.values(part).map((value, i) => (value + others[i] > 0 ? value / (value + others[i]) : null));
  }

  ratio(part, whole) {
    const all = this.values(whole);
    return this.values(part).map((value, i) => (all[i] > 0 && value !== null ? value / all[i] : null));
  }

  axis(series) {
    return { end: this.end, step: this.step, series };
  }
}

// Hits and misses of each rule and pattern at each snapshot.
export class Families {
  constructor() {
    this.times = [];
    this.seen = [];
  }

  push({ at, cache }) {
    if (!cache) return;
    const counts = new Map();
    for (const item of [...cache.rules.items, ...cache.patterns.items]) {
      counts.set(item.rule ?? item.pattern, { hits: item.hits, misses: item.misses });
    }
    const time = Date.parse(at);
    if (this.times.length && time - this.times.at(-1) < STEP_MS / 2) return;
    this.times.push(time);
    this.seen.push(counts);
    if (this.times.length > LENGTH) {
      this.times.shift();
      this.seen.shift();
    }
  }

  clear() {
    this.times = [];
    this.seen = [];
  }

  // [{name, values}]: the hit rate over the last seconds at each of them. Counts that fall are a restart: unknown.
  rates() {
    const names = [...(this.seen.at(-1)?.keys() ?? [])];
    const series = names.map((name) => ({
      name,
      values: this.seen.map((now, i) => {
        const before = this.seen[Math.max(0, i - WINDOW)].get(name);
        const after = now.get(name);
        if (!before || !after) return null;
        const [hits, misses] = [after.hits - before.hits, after.misses - before.misses];
        return hits >= 0 && misses >= 0 && hits + misses > 0 ? hits / (hits + misses) : null;
      }),
    }));
    return series.filter(({ values }) => values.some((value) => value !== null));
  }

  end() {
    return this.times.at(-1) ?? Date.now();
  }
}
