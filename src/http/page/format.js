// Numbers, sizes and times as people read them. What is not known is an en dash, never 0.

export const NONE = '–';
const known = (value) => typeof value === 'number' && Number.isFinite(value);
const plain = new Intl.NumberFormat('en-US', { maximumFractionDigits: 0 });
const compact = new Intl.NumberFormat('en-US', { notation: 'compact', maximumFractionDigits: 1 });

const digits = (value) => (value >= 100 ? 0 : value >= 10 ? 1 : 2);
const fixed = (value) => value.toFixed(digits(value)).replace(/\.0+$/, '');

export function count(value) {
  if (!known(value)) return NONE;
  return Math.abs(value) < 100000 ? plain.format(value) : compact.format(value);
}

export const exact = (value) => (known(value) ? new Intl.NumberFormat('en-US', { maximumFractionDigits: 6 }).format(value) : NONE);

export function rate(value) {
  if (!known(value)) return NONE;
  return value < 10 && value % 1 !== 0 ? value.toFixed(1) : count(value);
}

// A share of 1 as a percentage. 99.97 % is not called 100, and one in ten thousand is not called 0.
export function share(value) {
  if (!known(value)) return NONE;
  const percent = value * 100;
  if (percent === 0 || percent === 100) return `${percent} %`;
  if (percent > 0 && percent < 0.1) return '< 0.1 %';
  if (percent > 99.9 && percent < 100) return '> 99.9 %';
  return `${percent.toFixed(1)} %`;
}

// Of an axis: no more digits than the level needs.
export const level = (value) => (known(value) ? `${Number((value * 100).toFixed(2))} %` : NONE);

export function ms(value) {
  if (!known(value)) return NONE;
  if (value === 0) return '0 ms';
  if (value < 0.001) return `${fixed(value * 1e6)} ns`;
  if (value < 1) return `${fixed(value * 1000)} µs`;
  if (value < 1000) return `${fixed(value)} ms`;
  return seconds(value / 1000);
}

function seconds(value) {
  if (value < 60) return `${fixed(value)} s`;
  const parts = [['d', 86400], ['h', 3600], ['min', 60], ['s', 1]];
  const first = parts.findIndex(([, size]) => value >= size);
  let rest = Math.floor(value);
  const words = [];
  for (const [unit, size] of parts.slice(first, first + 2)) {
    const whole = Math.floor(rest / size);
    rest -= whole * size;
    if (whole > 0) words.push(`${whole} ${unit}`);
  }
  return words.join(' ');
}

export function bytes(value) {
  if (!known(value)) return NONE;
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];
  let left = value;
  let unit = 0;
  while (Math.abs(left) >= 1024 && unit < units.length - 1) {
    left /= 1024;
    unit += 1;
  }
  return `${unit === 0 ? Math.round(left) : fixed(left)} ${units[unit]}`;
}

// Enough digits for the price of one request, and no more than cents for sums. As many for all of one size, so that columns
// of them line up.
export function money(value, currency) {
  if (!known(value)) return NONE;
  const size = Math.abs(value);
  const places = size >= 10000 ? 0 : size === 0 || size >= 1 ? 2 : size >= 0.01 ? 4 : 6;
  const number = new Intl.NumberFormat('en-US', { minimumFractionDigits: places, maximumFractionDigits: places }).format(value);
  return currency ? `${number} ${currency}` : number;
}

export const clock = (time) => new Date(time).toLocaleTimeString('en-GB');
export const minute = (time) => new Date(time).toLocaleTimeString('en-GB', { hour: '2-digit', minute: '2-digit' });

export function ago(time, now) {
  const past = now - Date.parse(time);
  if (Number.isNaN(past)) return NONE;
  if (past < 1500) return 'just now';
  return `${seconds(past / 1000)} ago`.replace(/(\d+)\.\d+ s/, '$1 s');
}

// cache_off -> cache off
export const words = (text) => String(text ?? NONE).replaceAll('_', ' ');

// A value whose unit the API names.
export function inUnit(value, unit) {
  if (unit === 'up' && known(value)) return value > 0 ? 'up' : 'down';
  const of = { share, ms, bytes }[unit];
  if (of) return of(value);
  return typeof value === 'string' ? words(value) : `${exact(value)}${unit && known(value) ? ` ${words(unit)}` : ''}`;
}
