// What was: the rings that the side port keeps (15 minutes by the second, 24 hours by the minute), the former prolonged by
// each snapshot of the stream, so that the page asks for it once and after a gap only.

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

// Hits and misses of each rule and pattern in each second: rules' from the side port's ring, then those of all from each
// snapshot of the stream.
export class Families {
  constructor() {
    this.clear();
  }

  // What was before; what has been seen here since then stays behind it.
  load({ end, length, rules }) {
    if (!end) return;
    const last = Date.parse(end);
    const first = this.times.findIndex((time) => time > last + STEP_MS / 2);
    const [times, seen] = first < 0 ? [[], []] : [this.times.slice(first), this.seen.slice(first)];
    const all = Object.entries(rules);
    const past = Array.from({ length }, (_, i) => new Map(all.filter(([, { hits }]) => hits[i] !== null)
      .map(([name, { hits, misses }]) => [name, { hits: hits[i], misses: misses[i] }])));
    this.times = [...past.map((_, i) => last - (length - 1 - i) * STEP_MS), ...times].slice(-LENGTH);
    this.seen = [...past, ...seen].slice(-LENGTH);
  }

  push({ at, cache }) {
    if (!cache) return;
    const counts = new Map();
    for (const item of [...cache.rules.items, ...cache.patterns.items]) {
      counts.set(item.rule ?? item.pattern, { hits: item.hits, misses: item.misses });
    }
    const time = Date.parse(at);
    if (this.times.length && time - this.times.at(-1) < STEP_MS / 2) return;
    const since = new Map();
    for (const [name, now] of counts) {
      const before = this.totals.get(name);
      // Counts that fall are a restart: unknown.
      if (before && now.hits >= before.hits && now.misses >= before.misses) {
        since.set(name, { hits: now.hits - before.hits, misses: now.misses - before.misses });
      }
    }
    this.totals = counts;
    this.times.push(time);
    this.seen.push(since);
    if (this.times.length > LENGTH) {
      this.times.shift();
      this.seen.shift();
    }
  }

  clear() {
    this.times = [];
    // By name, for each of the times; where it is not known, without that name.
    this.seen = [];
    // As of the newest snapshot.
    this.totals = new Map();
  }

  // [{name, values}]: the hit rate over the last seconds at each of them.
  rates() {
    const names = new Set([...this.totals.keys(), ...(this.seen.at(-1)?.keys() ?? [])]);
    const series = [...names].map((name) => {
      let [hits, misses] = [0, 0];
      const add = (counts, sign) => {
        hits += sign * (counts?.hits ?? 0);
        misses += sign * (counts?.misses ?? 0);
      };
      const values = this.seen.map((now, i) => {
        add(now.get(name), 1);
        if (i >= WINDOW) add(this.seen[i - WINDOW].get(name), -1);
        return now.has(name) && hits + misses > 0 ? hits / (hits + misses) : null;
      });
      return { name, values };
    });
    return series.filter(({ values }) => values.some((value) => value !== null));
  }

  end() {
    return this.times.at(-1) ?? Date.now();
  }
}
