// What the tabs are made of: cards, tiles, tables, lists of facts. Each says itself when it has nothing to show, and why.

import { keep, spark } from './charts.js';
import { el, id, setAttr, setClass, setText, show } from './dom.js';
import { NONE } from './format.js';

// A titled box. `wide`: two columns where there are as many, `wider`: two of three, `full`: the whole row.
export function card(title, { size = '', note = '' } = {}, ...children) {
  const head = id('card');
  const remark = el('p', { class: 'note' }, note);
  const failure = el('p', { class: 'failure', role: 'status', hidden: true });
  const body = el('div', { class: 'card-body' }, ...children);
  const root = el('section', { class: `card ${size}`, 'aria-labelledby': head }, el('h3', { id: head }, title), remark, failure, body);
  show(remark, note !== '');
  return {
    root,
    body,
    note(text) {
      setText(remark, text);
      show(remark, text !== '');
    },
    // The data of an answer, or null and a line that says why there is none.
    data(answer, absent = 'This part is not there in this version.') {
      const why = !answer ? 'Loading…' : answer.missing ? absent : answer.error ? `Cannot be read now (${answer.error}).` : '';
      const missing = !answer?.data;
      setText(failure, missing ? why : answer.error ? `Not refreshed (${answer.error}); these are older figures.` : '');
      setClass(failure, answer?.error && !answer.missing ? 'failure bad' : 'failure');
      show(failure, failure.textContent !== '');
      show(body, !missing);
      return missing ? null : answer.data;
    },
  };
}

export const grid = (...cards) => el('div', { class: 'grid' }, ...cards.map((one) => one.root ?? one));
export const heading = (text) => el('h2', { class: 'unseen' }, text);

// A figure that is read at a glance. update({value, title, sub, tone, series, mark, top})
export function tile(name, help, key) {
  const line = spark();
  const value = el('p', { class: 'tile-value', 'data-key': key ?? null }, NONE);
  const sub = el('p', { class: 'tile-sub' });
  const root = el('div', { class: 'tile', role: 'group', 'aria-label': name },
    el('p', { class: 'tile-name', title: help }, name), value, sub, line.root);
  return {
    root,
    update({ value: text, title = null, sub: below = '', tone = '', series = null, mark = '', top = null }) {
      setText(value, text);
      setAttr(value, 'title', title);
      setText(sub, below);
      setClass(root, `tile ${tone}`);
      show(line.root, series !== null);
      if (series) line.update(series, mark, top);
    },
  };
}

export const tiles = (...all) => el('div', { class: `tiles of-${all.length}` }, ...all.map((one) => one.root));

// Rows of text. columns: [{key, name, num, of: (row) => text | {text, title, mark}, by: (row) => what it is sorted by}].
export function table({ label, columns, none, sortable = false, sort = null }) {
  const state = { by: sort ?? null, down: true };
  const rows = el('tbody');
  const heads = columns.map((column) => head(column));
  const whole = el('table', {}, el('caption', { class: 'unseen' }, label), el('thead', {}, el('tr', {}, ...heads)), rows);
  const box = el('div', { class: 'scroll', tabindex: 0, role: 'group', 'aria-label': label }, whole);
  const empty = el('p', { class: 'empty' }, none);
  const more = el('p', { class: 'note' });
  const root = el('div', {}, box, empty, more);
  let shown = [];

  function head(column) {
    const kind = column.num ? 'num' : null;
    if (!sortable || !column.by) return el('th', { scope: 'col', class: kind }, column.name);
    const press = () => {
      state.down = state.by === column.key ? !state.down : true;
      state.by = column.key;
      draw();
    };
    return el('th', { scope: 'col', class: kind }, el('button', { type: 'button', class: 'sort', on: { click: press } }, column.name));
  }

  function ordered() {
    const column = columns.find(({ key }) => key === state.by);
    if (!sortable || !column) return shown;
    // What is not known stands last in both directions.
    const rank = (row) => column.by(row) ?? null;
    const compare = (a, b) => (typeof a === 'string' ? a.localeCompare(b) * -1 : a - b);
    return [...shown].sort((a, b) => {
      const [x, y] = [rank(a), rank(b)];
      if (x === null || y === null) return (x === null) - (y === null);
      return compare(x, y) * (state.down ? -1 : 1);
    });
  }

  function draw() {
    columns.forEach(({ key }, i) => setAttr(heads[i], 'aria-sort', key === state.by ? (state.down ? 'descending' : 'ascending') : null));
    const all = ordered();
    keep(rows, all.length, () => el('tr', {}, ...columns.map((column) => el('td', { class: column.num ? 'num' : null }, el('span')))));
    all.forEach((row, i) => columns.forEach((column, k) => {
      const cell = rows.children[i].children[k].firstChild;
      const made = column.of(row);
      const { text, title = null, mark = '' } = typeof made === 'object' && made !== null ? made : { text: made };
      setText(cell, text ?? NONE);
      setAttr(cell, 'title', title);
      setClass(cell, column.num ? mark : `name ${mark}`);
    }));
    show(box, all.length > 0);
    show(empty, all.length === 0);
  }

  return {
    root,
    // total: how many there are, where not all are shown.
    update(items, total = items.length) {
      shown = items;
      draw();
      setText(more, total > items.length ? `${items.length} of ${total} shown.` : '');
      show(more, total > items.length);
    },
  };
}

// Names and values. update([[name, text, title?, mark?]])
export function facts(label) {
  const root = el('dl', { class: 'facts', 'aria-label': label });
  return {
    root,
    update(items) {
      keep(root, items.length, () => el('div', {}, el('dt'), el('dd')));
      items.forEach(([name, text, title = null, mark = ''], i) => {
        const [term, value] = root.children[i].children;
        setText(term, name);
        setText(value, text);
        setAttr(value, 'title', title);
        setClass(value, mark);
      });
    },
  };
}
