// The drawings, in SVG: lines over time, a ring of shares, columns, points and intervals. Each can be read without seeing it:
// as a table, which is there from the start or opens below the drawing. Colours are classes; style.css says what they mean.

import { el, setAttr, setClass, setText, show, svg } from './dom.js';
import * as format from './format.js';

const PAD = { left: 58, right: 10, top: 8, bottom: 20 };
// Rows of a line chart's table: what a screen reader gets through.
const ROWS = 30;
// Points of a scatter that have a colour of their own, and are named above it.
const POINTS_NAMED = 9;
// Beside the columns of a histogram.
const SIDE = 16;

// Widths are known when a drawing is on screen, and change with the window.
function sized(root, draw) {
  let width = 0;
  new ResizeObserver(() => {
    const now = Math.floor(root.clientWidth);
    if (now === width || now === 0) return;
    width = now;
    draw();
  }).observe(root);
  return () => width;
}

// The next round number, so that an axis does not move with every value.
export function niceMax(value, binary = false) {
  if (!(value > 0)) return 1;
  // Sizes are round in KiB and MiB.
  const unit = binary && value >= 1024 ? 1024 ** Math.floor(Math.log2(value) / 10) : 1;
  const power = unit * 10 ** Math.floor(Math.log10(value / unit));
  const step = [1, 1.5, 2, 3, 4, 5, 6, 8, 10].find((s) => value <= s * power * 1.0001);
  return step * power;
}

// An axis: where its lines are, and how high (0 to 1) a value stands.
const upTo = (top) => ({ levels: [0, top / 2, top], part: (value) => Math.min(value, top) / top });

function decades(values) {
  const some = values.filter((value) => value > 0);
  const low = Math.floor(Math.log10(some.reduce((a, b) => Math.min(a, b), some[0] ?? 0.1)));
  const high = Math.max(Math.ceil(Math.log10(largest(some) || 1)), low + 1);
  const every = Math.ceil((high - low) / 5);
  const levels = [];
  for (let power = low; power <= high; power += every) levels.push(10 ** power);
  return { levels, part: (value) => (value > 0 ? Math.max(0, (Math.log10(value) - low) / (high - low)) : 0) };
}

const largest = (values) => values.reduce((most, value) => (real(value) && value > most ? value : most), 0);

const real = (value) => typeof value === 'number' && Number.isFinite(value);

// A path through what is known; a gap stays a gap, and a lone value is a dot.
function path(values, x, y) {
  let text = '';
  let open = false;
  values.forEach((value, i) => {
    if (real(value)) {
      text += `${open ? 'L' : 'M'}${x(i).toFixed(1)} ${y(value).toFixed(1)}`;
      if (!open && !real(values[i + 1])) text += 'h0.01';
    }
    open = real(value);
  });
  return text;
}

// No more points than there are pixels for: each drawn one is the mean of those that it stands for, or the largest, where a
// peak must be seen. What is read off the drawing is exact.
function thinned(values, most, peaks) {
  const size = Math.ceil(values.length / most);
  if (size <= 1) return { values, size: 1 };
  const found = [];
  for (let from = 0; from < values.length; from += size) {
    const some = values.slice(from, from + size).filter(real);
    found.push(some.length === 0 ? null : peaks ? Math.max(...some) : some.reduce((a, b) => a + b, 0) / some.length);
  }
  return { values: found, size };
}

function area(values, x, y) {
  const runs = [];
  values.forEach((value, i) => {
    if (!real(value)) return;
    if (i === 0 || !real(values[i - 1])) runs.push([]);
    runs.at(-1).push(i);
  });
  return runs.map((run) => {
    const top = run.map((i) => `L${x(i).toFixed(1)} ${y(values[i]).toFixed(1)}`).join('');
    return `M${top.slice(1)}V${y(0).toFixed(1)}H${x(run[0]).toFixed(1)}Z`;
  }).join('');
}

// Values over time. update({end, step, series: [{name, mark, values}]}), all of one length, oldest first.
// `log`: decades, for what lies far apart; a 0 stands at the foot.
export function lines({ label, format: form = format.count, axis = form === format.share ? format.level : form, height = 170, max = null, log = false }) {
  const drawing = svg('svg', { class: 'plot', height, tabindex: 0, role: 'img', 'aria-label': label });
  const legend = el('ul', { class: 'legend' });
  const tip = el('div', { class: 'tip', hidden: true, 'aria-hidden': 'true' });
  const rows = el('tbody');
  const head = el('tr');
  const table = el('details', { class: 'as-table', on: { toggle: () => fillTable() } },
    el('summary', {}, 'As a table'),
    el('div', { class: 'scroll', tabindex: 0, role: 'group', 'aria-label': `${label}, as a table` },
      el('table', {}, el('thead', {}, head), rows)));
  const plot = el('div', { class: 'plot-box' }, drawing, tip);
  const root = el('figure', { class: 'chart' }, legend, plot, table);
  let shown = null;
  let at = null;
  const width = sized(plot, draw);

  function scales() {
    const tops = shown.series.flatMap((s) => s.values);
    const { levels, part } = log ? decades(tops) : upTo(max ?? niceMax(largest(tops), form === format.bytes));
    const n = Math.max(shown.length, 2);
    const inner = Math.max(width() - PAD.left - PAD.right, 10);
    const tall = height - PAD.top - PAD.bottom;
    return {
      n, inner, levels,
      x: (i) => PAD.left + (inner * i) / (n - 1),
      y: (value) => PAD.top + tall * (1 - part(value)),
    };
  }

  function draw() {
    if (!shown || width() === 0) return;
    setAttr(drawing, 'width', width());
    const { levels, n, x, y, inner } = scales();
    const parts = [];
    for (const value of levels) {
      const level = y(value);
      parts.push(svg('line', { class: 'level', x1: PAD.left, x2: width() - PAD.right, y1: level, y2: level }),
        svg('text', { class: 'axis', x: PAD.left - 6, y: level + 4, 'text-anchor': 'end' }, axis(value)));
    }
    const marks = width() < 420 ? 2 : 4;
    // Minutes would stand there twice where the marks are closer than that.
    const said = ((n - 1) * shown.step) / marks < 60000 ? format.clock : format.minute;
    for (let mark = 0; mark <= marks; mark++) {
      const i = Math.round(((n - 1) * mark) / marks);
      const anchor = mark === 0 ? 'start' : mark === marks ? 'end' : 'middle';
      parts.push(svg('text', { class: 'axis', x: x(i), y: height - 4, 'text-anchor': anchor }, said(time(i))));
    }
    for (const { mark, values: all } of shown.series) {
      const { values, size } = thinned(all, inner / 1.5, log);
      const middle = (i) => x(Math.min(n - 1, i * size + (size - 1) / 2));
      if (shown.series.length === 1) parts.push(svg('path', { class: `area ${mark}`, d: area(values, middle, y) }));
      parts.push(svg('path', { class: `line ${mark}`, d: path(values, middle, y) }));
    }
    parts.push(svg('line', { class: 'cross', y1: PAD.top, y2: height - PAD.bottom, visibility: 'hidden' }));
    drawing.replaceChildren(...parts);
    if (at !== null) point(at);
  }

  const time = (i) => shown.end - (shown.length - 1 - i) * shown.step;
  const stamp = (i) => (shown.step >= 60000 ? format.minute(time(i)) : format.clock(time(i)));

  function point(i) {
    if (!shown || shown.length === 0) return;
    at = Math.max(0, Math.min(shown.length - 1, i));
    const { x } = scales();
    const cross = drawing.querySelector('.cross');
    if (!cross) return;
    for (const name of ['x1', 'x2']) cross.setAttribute(name, x(at));
    cross.setAttribute('visibility', 'visible');
    tip.replaceChildren(el('strong', {}, stamp(at)), ...shown.series.map(({ name, mark, values }) =>
      el('div', {}, swatch(mark), `${name} `, el('b', {}, form(values[at])))));
    show(tip, true);
    const left = x(at) + 12 + tip.offsetWidth > width() ? x(at) - 12 - tip.offsetWidth : x(at) + 12;
    tip.style.transform = `translate(${Math.max(0, left)}px, ${PAD.top}px)`;
  }

  function leave() {
    at = null;
    show(tip, false);
    drawing.querySelector('.cross')?.setAttribute('visibility', 'hidden');
  }

  drawing.addEventListener('pointermove', (event) => {
    if (!shown) return;
    const { n, inner } = scales();
    point(Math.round(((event.clientX - drawing.getBoundingClientRect().left - PAD.left) / inner) * (n - 1)));
  });
  drawing.addEventListener('pointerleave', leave);
  drawing.addEventListener('blur', leave);
  drawing.addEventListener('keydown', (event) => {
    if (!shown) return;
    const here = at ?? shown.length - 1;
    const page = Math.max(1, Math.round(shown.length / 10));
    const to = { ArrowLeft: here - 1, ArrowRight: here + 1, PageUp: here - page, PageDown: here + page, Home: 0, End: shown.length - 1 }[event.key];
    if (event.key === 'Escape') return leave();
    if (to === undefined) return;
    event.preventDefault();
    point(to);
    setAttr(drawing, 'aria-label', `${label}. ${tip.innerText.replaceAll('\n', ', ')}`);
  });

  function fillTable() {
    if (!table.open || !shown) return;
    head.replaceChildren(el('th', { scope: 'col' }, 'Time'), ...shown.series.map(({ name }) => el('th', { scope: 'col', class: 'num' }, name)));
    const step = Math.max(1, Math.floor(shown.length / ROWS));
    const picked = [];
    for (let i = shown.length - 1; i >= 0 && picked.length < ROWS; i -= step) picked.push(i);
    rows.replaceChildren(...picked.map((i) => el('tr', {}, el('th', { scope: 'row' }, stamp(i)),
      ...shown.series.map(({ values }) => el('td', { class: 'num' }, form(values[i]))))));
  }

  function update({ end, step, series }) {
    shown = { end, step, series, length: series[0]?.values.length ?? 0 };
    const lastOf = (values) => form(values.at(-1));
    if (legend.children.length !== series.length) legend.replaceChildren(...series.map(({ mark }) => el('li', {}, swatch(mark), el('span'), ' ', el('b'))));
    series.forEach(({ name, mark, values }, i) => {
      const [colour, text, value] = legend.children[i].children;
      setClass(colour, `swatch ${mark}`);
      setText(text, name);
      setText(value, lastOf(values));
    });
    if (at === null) setAttr(drawing, 'aria-label', `${label}. Now: ${series.map((s) => `${s.name} ${lastOf(s.values)}`).join(', ')}`);
    draw();
    fillTable();
  }

  return { root, update };
}

export function swatch(mark) {
  return el('span', { class: `swatch ${mark}`, 'aria-hidden': 'true' });
}

// A line as high as text, beside the number that says it.
export function spark() {
  const line = svg('path', { class: 'line' });
  const below = svg('path', { class: 'area' });
  const root = svg('svg', { class: 'spark', viewBox: '0 0 120 28', preserveAspectRatio: 'none', 'aria-hidden': 'true' }, below, line);
  function update(values, mark, top = null) {
    // More points than pixels are of no use.
    const step = Math.max(1, Math.ceil(values.length / 120));
    const some = [];
    for (let i = 0; i < values.length; i += step) {
      const seen = values.slice(i, i + step).filter(real);
      some.push(seen.length ? seen.reduce((a, b) => a + b, 0) / seen.length : null);
    }
    const most = top ?? Math.max(...some.filter(real), 0) * 1.05;
    const x = (i) => (some.length < 2 ? 0 : (120 * i) / (some.length - 1));
    const y = (value) => 27 - 25 * (most > 0 ? Math.min(1, value / most) : 0);
    setAttr(line, 'd', path(some, x, y));
    setAttr(below, 'd', area(some, x, y));
    setClass(line, `line ${mark}`);
    setClass(below, `area ${mark}`);
  }
  return { root, update };
}

// Shares of a whole: a ring, and the list that says the same in numbers. update([{name, value, mark}])
export function ring({ label, format: form = format.count, none = 'Nothing counted yet.' }) {
  const drawing = svg('svg', { class: 'ring', viewBox: '0 0 120 120', 'aria-hidden': 'true' });
  const rows = el('tbody');
  const table = el('table', { class: 'shares' }, el('caption', { class: 'unseen' }, label), rows);
  const empty = el('p', { class: 'empty' }, none);
  const box = el('div', { class: 'ring-box' }, drawing, table);
  const root = el('div', {}, box, empty);

  function update(items) {
    const some = items.filter(({ value }) => value > 0).sort((a, b) => b.value - a.value);
    const all = some.reduce((sum, { value }) => sum + value, 0);
    show(box, all > 0);
    show(empty, all === 0);
    const around = 2 * Math.PI * 46;
    let from = 0;
    drawing.replaceChildren(...some.map(({ name, value, mark }) => {
      const part = value / all;
      const arc = svg('circle', {
        class: `arc ${mark}`, cx: 60, cy: 60, r: 46, fill: 'none', 'stroke-width': 20,
        'stroke-dasharray': `${Math.max(part * around - (some.length > 1 ? 1.5 : 0), 0.5)} ${around}`,
        'stroke-dashoffset': -from * around, transform: 'rotate(-90 60 60)',
      }, svg('title', {}, `${name}: ${form(value)} (${format.share(part)})`));
      from += part;
      return arc;
    }), svg('text', { class: 'ring-sum', x: 60, y: 65, 'text-anchor': 'middle' }, form(all)));
    keep(rows, some.length, () => el('tr', {}, el('th', { scope: 'row' }, swatch(''), el('span')), el('td', { class: 'num' }), el('td', { class: 'num soft' })));
    some.forEach(({ name, value, mark }, i) => {
      const [head, number, part] = rows.children[i].children;
      setClass(head.firstChild, `swatch ${mark}`);
      setText(head.lastChild, name);
      setText(number, form(value));
      setAttr(number, 'title', format.exact(value));
      setText(part, format.share(value / all));
    });
  }

  return { root, update };
}

export function keep(parent, length, make) {
  while (parent.children.length > length) parent.lastChild.remove();
  while (parent.children.length < length) parent.append(make());
}

// One bar a row, of one or several parts. update([{name, title, parts: [{value, mark, name}], text}]); `heads`: what stands above
// the name, the bar and its figures, where `texts` are several.
export function bars({ label, none = 'Nothing counted yet.', heads = null }) {
  const rows = el('tbody');
  const head = heads && el('thead', {}, el('tr', {}, ...heads.map((name, i) => (name ? el('th', { scope: 'col', class: i > 1 ? 'num' : null }, name) : el('td')))));
  const table = el('table', { class: 'bars' }, el('caption', { class: 'unseen' }, label), head, rows);
  const empty = el('p', { class: 'empty' }, none);
  const root = el('div', {}, table, empty);

  function update(items) {
    const sum = ({ parts }) => parts.reduce((all, { value }) => all + Math.max(value, 0), 0);
    const top = Math.max(...items.map(sum), 0);
    show(table, items.length > 0);
    show(empty, items.length === 0);
    keep(rows, items.length, () => el('tr', {}, el('th', { scope: 'row' }, el('span', { class: 'name' })),
      el('td', { class: 'bar-cell' }, svg('svg', { class: 'bar', 'aria-hidden': 'true' })), ...(heads ?? ['', '', '']).slice(2).map(() => el('td', { class: 'num' }))));
    items.forEach((item, i) => {
      const [head, cell, ...numbers] = rows.children[i].children;
      setText(head.firstChild, item.name);
      setAttr(head.firstChild, 'title', item.title ?? item.name);
      const bar = cell.firstChild;
      const parts = item.parts.filter(({ value }) => value > 0);
      keep(bar, parts.length, () => svg('rect', { height: '100%' }, svg('title')));
      let from = 0;
      parts.forEach(({ value, mark, name }, k) => {
        const rect = bar.children[k];
        setClass(rect, mark);
        setAttr(rect, 'x', `${((100 * from) / top).toFixed(2)}%`);
        setAttr(rect, 'width', `${Math.max((100 * value) / top, 0.5).toFixed(2)}%`);
        setText(rect.firstChild, name ?? item.text);
        from += value;
      });
      (item.texts ?? [item.text]).forEach((text, k) => {
        setText(numbers[k], text);
        setAttr(numbers[k], 'title', item.exact ?? null);
      });
    });
  }

  return { root, update };
}

// Columns of a histogram. update([{name, value}], mark): a name that begins with ≤ is where its column ends, and stands there.
export function columns({ label, unit, height = 150, none = 'Nothing counted yet.' }) {
  const drawing = svg('svg', { class: 'plot', height, role: 'img', 'aria-label': label });
  const box = el('div', { class: 'plot-box' }, drawing);
  const rows = el('tbody');
  const table = el('details', { class: 'as-table' }, el('summary', {}, 'As a table'),
    el('div', { class: 'scroll', tabindex: 0, role: 'group', 'aria-label': `${label}, as a table` }, el('table', {}, rows)));
  const empty = el('p', { class: 'empty' }, none);
  const root = el('figure', { class: 'chart' }, box, table, empty);
  let shown = null;
  const width = sized(box, draw);

  function draw() {
    if (!shown || width() === 0) return;
    const { items, mark } = shown;
    const top = Math.max(...items.map(({ value }) => value), 1);
    // Room for half of the first and the last end.
    const wide = (width() - 2 * SIDE) / items.length;
    const tall = height - 36;
    setAttr(drawing, 'width', width());
    const ends = items.map(({ name }) => name.replace(/^≤ /, ''));
    const every = Math.ceil((Math.max(...ends.map((end) => end.length)) * 6 + 8) / wide);
    drawing.replaceChildren(...items.flatMap(({ name, value }, i) => {
      const high = value > 0 ? Math.max((tall * value) / top, 2) : 0;
      const left = SIDE + wide * i;
      const at = name === ends[i] ? left + wide / 2 : left + wide;
      return [
        svg('rect', { class: mark, x: left + wide * 0.06, width: wide * 0.88, y: 16 + tall - high, height: high, rx: 2 },
          svg('title', {}, `${name}: ${format.exact(value)} ${unit}`)),
        value > 0 && wide > 22 && svg('text', { class: 'axis', x: left + wide / 2, y: 12 + tall - high, 'text-anchor': 'middle' }, format.count(value)),
        name !== ends[i] && svg('line', { class: 'tick', x1: at, x2: at, y1: 16 + tall, y2: 20 + tall }),
        name !== ends[i] && (i + 1) % every === 0 && svg('text', { class: 'axis', x: at, y: height - 3, 'text-anchor': 'middle' }, ends[i]),
      ].filter(Boolean);
    }), svg('line', { class: 'level', x1: SIDE, x2: width() - SIDE, y1: 16 + tall, y2: 16 + tall }));
  }

  function update(items, mark) {
    const any = items.some(({ value }) => value > 0);
    show(box, any);
    show(table, any);
    show(empty, !any);
    shown = { items, mark };
    setAttr(drawing, 'aria-label', `${label}: ${items.map(({ name, value }) => `${name} ${value}`).join(', ')}`);
    keep(rows, items.length, () => el('tr', {}, el('th', { scope: 'row' }), el('td', { class: 'num' })));
    items.forEach(({ name, value }, i) => {
      setText(rows.children[i].firstChild, name);
      setText(rows.children[i].lastChild, format.exact(value));
    });
    draw();
  }

  return { root, update };
}

// Shares (0 to 1) against sizes, the heaviest in front and named. update([{name, x, y, weight}])
export function scatter({ label, xName, yName, xFormat, height = 240, none }) {
  const drawing = svg('svg', { class: 'plot', height, role: 'img', 'aria-label': label });
  const box = el('div', { class: 'plot-box' }, drawing);
  const rows = el('tbody');
  const heads = ['Pattern', xName, yName].map((name) => el('th', { scope: 'col' }, name));
  const table = el('details', { class: 'as-table' }, el('summary', {}, 'As a table'),
    el('div', { class: 'scroll', tabindex: 0, role: 'group', 'aria-label': `${label}, as a table` }, el('table', {}, el('thead', {}, el('tr', {}, ...heads)), rows)));
  const empty = el('p', { class: 'empty' }, none);
  const legend = el('ul', { class: 'legend' });
  const root = el('figure', { class: 'chart' }, legend, box, table, empty);
  let shown = [];
  const width = sized(box, draw);

  function draw() {
    if (width() === 0 || shown.length === 0) return;
    setAttr(drawing, 'width', width());
    const inner = width() - PAD.left - 40;
    const tall = height - 44;
    // Sizes of patterns lie orders of magnitude apart: the axis is logarithmic.
    const logs = shown.map(({ x }) => Math.log2(Math.max(x, 1)));
    const low = Math.floor(Math.min(...logs)) - 1;
    const high = Math.ceil(Math.max(...logs)) + 1;
    const x = (value) => PAD.left + (inner * (Math.log2(Math.max(value, 1)) - low)) / (high - low);
    // The largest point is not cut off at 100 %.
    const y = (value) => 14 + (tall - 6) * (1 - value);
    const parts = [0, 0.5, 1].flatMap((level) => [
      svg('line', { class: 'level', x1: PAD.left, x2: width() - 10, y1: y(level), y2: y(level) }),
      svg('text', { class: 'axis', x: PAD.left - 6, y: y(level) + 4, 'text-anchor': 'end' }, format.level(level)),
    ]);
    const every = Math.ceil((high - low) / Math.min(5, inner / 70));
    for (let power = low; power <= high; power += every) {
      parts.push(svg('text', { class: 'axis', x: x(2 ** power), y: height - 20, 'text-anchor': 'middle' }, xFormat(2 ** power)));
    }
    parts.push(svg('text', { class: 'axis', x: PAD.left + inner / 2, y: height - 4, 'text-anchor': 'middle' }, `${xName} (logarithmic)`));
    const most = Math.max(...shown.map(({ weight }) => weight), 1);
    for (const item of shown) {
      parts.push(svg('circle', { class: `dot ${item.mark}`, cx: x(item.x), cy: y(item.y), r: 4 + 8 * Math.sqrt(item.weight / most) },
        svg('title', {}, `${item.name}: ${xFormat(item.x)}, ${format.share(item.y)}`)));
    }
    drawing.replaceChildren(...parts);
  }

  function update(all) {
    const items = all.toSorted((one, other) => other.weight - one.weight).map((item, i) => ({ ...item, mark: i < POINTS_NAMED ? `c${i + 1}` : 'rest' }));
    shown = items.toReversed();
    const named = items.slice(0, POINTS_NAMED);
    keep(legend, named.length, () => el('li', {}, swatch(''), el('span'), ' ', el('b')));
    named.forEach(({ name, y, mark }, i) => {
      const [colour, text, value] = legend.children[i].children;
      setClass(colour, `swatch ${mark}`);
      setText(text, name);
      setText(value, format.share(y));
    });
    for (const part of [box, table]) show(part, items.length > 0);
    show(empty, items.length === 0);
    setAttr(drawing, 'aria-label', `${label}: ${items.map((item) => `${item.name} ${xFormat(item.x)} ${format.share(item.y)}`).join('; ')}`);
    rows.replaceChildren(...items.map((item) => el('tr', {}, el('th', { scope: 'row' }, item.name),
      el('td', {}, xFormat(item.x)), el('td', {}, format.share(item.y)))));
    draw();
  }

  return { root, update };
}

// Values with what they may lie between. update([{name, value, low, high, mark, text, between}])
export function intervals({ label, none }) {
  const rows = el('tbody');
  const table = el('table', { class: 'bars' }, el('caption', { class: 'unseen' }, label), rows);
  const empty = el('p', { class: 'empty' }, none);
  const root = el('div', {}, table, empty);

  function update(items) {
    show(table, items.length > 0);
    show(empty, items.length === 0);
    const ends = items.flatMap(({ value, low, high }) => [value, low, high]).filter(real);
    const least = Math.min(0, ...ends);
    const most = Math.max(...ends, least + 1e-9);
    const at = (value) => `${(2 + (96 * (value - least)) / (most - least)).toFixed(2)}%`;
    rows.replaceChildren(...items.map(({ name, value, low, high, mark, text, between }) => el('tr', {},
      el('th', { scope: 'row' }, el('span', { class: 'name', title: name }, name)),
      el('td', { class: 'bar-cell' }, svg('svg', { class: 'bar interval', 'aria-hidden': 'true' },
        least < 0 && svg('line', { class: 'level', x1: at(0), x2: at(0), y1: 0, y2: '100%' }),
        real(low) && svg('line', { class: `line ${mark}`, x1: at(low), x2: at(real(high) ? high : most), y1: '50%', y2: '50%' }),
        real(value) && svg('circle', { class: `dot ${mark}`, cx: at(value), cy: '50%', r: 4 }))),
      el('td', { class: 'num' }, text, ' ', el('span', { class: 'between' }, between)))));
  }

  return { root, update };
}
