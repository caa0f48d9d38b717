// The page's frame: tabs, time range, theme, what state the stream is in, and who is told when something has come. It keeps the
// newest snapshot and answers; the tabs draw them, and only the one that is on screen does.

import { ask } from './api.js';
import { el, setAttr, setClass, setText, show } from './dom.js';
import * as format from './format.js';
import { Families, Seconds, View } from './history.js';
import { open } from './stream.js';
import * as overview from './tabs/overview.js';
import * as cache from './tabs/cache.js';
import * as policy from './tabs/policy.js';
import * as costs from './tabs/costs.js';
import * as system from './tabs/system.js';

// How often a tab's own lists are asked for, and the day's history, which has a value a minute.
const POLL_MS = 4000;
const DAY_MS = 60000;
// Gaps are filled no more often than this.
const REPAIR_MS = 10000;

const byId = (id) => document.getElementById(id);
const TABS = { overview, cache, policy, costs, system };
const RANGES = ['15m', '24h'];
const THEMES = ['auto', 'light', 'dark'];

const seconds = new Seconds();
const families = new Families();
const page = {
  snapshot: null,
  range: '15m',
  families,
  day: null,
  answers: new Map(),
  // The server's clock, so that "3 s ago" is right on a machine whose own is not.
  now: () => Date.now() + skew,
  answer: (path) => page.answers.get(path),
  history: () => (page.range === '24h'
    ? new View({ end: Date.parse(page.day?.end ?? '') || undefined, step: 60000, series: page.day?.series ?? {} })
    : new View({ end: seconds.end, step: 1000, series: seconds.series })),
  // A tab wants something that it has not asked for before.
  refresh: () => poll(),
};
let skew = 0;
let current = 'overview';
const built = {};

// What a browser that keeps nothing still allows: the default.
const kept = {
  get: (name) => { try { return localStorage.getItem(name); } catch { return null; } },
  set: (name, value) => { try { localStorage.setItem(name, value); } catch { /* private mode: for this visit only */ } },
};

function tab(name) {
  built[name] ??= TABS[name].create(page);
  const panel = byId(`panel-${name}`);
  if (!panel.firstChild) panel.append(built[name].root);
  return built[name];
}

function select(name, { focus = false } = {}) {
  current = name;
  for (const other of Object.keys(TABS)) {
    const button = byId(`tab-${other}`);
    setAttr(button, 'aria-selected', String(other === name));
    setAttr(button, 'tabindex', other === name ? '0' : '-1');
    show(byId(`panel-${other}`), other === name);
  }
  document.title = `${byId(`tab-${name}`).textContent} · Nearside`;
  if (focus) byId(`tab-${name}`).focus();
  if (location.hash !== `#${name}`) history.replaceState(null, '', `#${name}`);
  tab(name);
  draw();
  poll();
}

function draw() {
  if (document.hidden || !page.snapshot) return;
  try {
    built[current].draw(page);
    show(byId('broken'), false);
  } catch (error) {
    // A figure that this page does not understand: say so instead of showing old ones as if they were new.
    setText(byId('broken'), `Part of this tab cannot be drawn: ${error.message}`);
    show(byId('broken'), true);
    console.error(error);
  }
}

let polling = false;
let again = false;
async function poll() {
  if (document.hidden) return;
  if (polling) {
    again = true;
    return;
  }
  polling = true;
  do {
    again = false;
    // What this version does not have is not asked for again until there may be another one: after a lost stream.
    const wanted = tab(current).needs().filter((path) => !page.answers.get(path)?.missing);
    await Promise.all(wanted.map(async (path) => {
      const answer = await ask(path);
      // Older figures are better than none, with a line that says so.
      const before = page.answers.get(path);
      page.answers.set(path, answer.error && before?.data ? { ...before, error: answer.error } : answer);
    }));
    draw();
  } while (again);
  polling = false;
}

async function loadSeconds() {
  const { data } = await ask('/api/v1/history?range=15m');
  if (data) {
    seconds.load(data);
    families.load(data);
  }
  draw();
}

// A second that the stream has skipped, because the machine or the network was busy, is known to the side port.
let repaired = 0;
function repair() {
  if (Date.now() - repaired < REPAIR_MS) return;
  repaired = Date.now();
  loadSeconds();
}

async function loadDay() {
  if (document.hidden) return;
  const { data } = await ask('/api/v1/history?range=24h');
  if (data) page.day = data;
  draw();
}

// ---- the head of the page

let state = { name: 'connecting' };
let wasLost = false;

function onState(next) {
  const back = next.name === 'live' && state.name !== 'live';
  if (next.name === 'lost' || next.name === 'paused') wasLost = true;
  // While it tries again, what is said stays what is true: it is lost.
  if (next.name === 'connecting' && wasLost) return;
  state = next;
  if (back) {
    if (wasLost) {
      families.clear();
      page.answers.clear();
    }
    wasLost = false;
    loadSeconds();
    loadDay();
    poll();
  }
  sayState();
}

function sayState() {
  const { name, why, next } = state;
  const left = next ? Math.max(0, Math.ceil((next - Date.now()) / 1000)) : 0;
  setClass(byId('stream'), `stream ${name}`);
  setText(byId('stream-text'), { live: 'Live', connecting: 'Connecting…', lost: 'Not live', paused: 'Paused while hidden' }[name]);
  show(byId('retry'), name === 'lost');
  show(byId('lost'), name === 'lost');
  if (name === 'lost') {
    const since = page.snapshot ? ` The figures are those of ${format.clock(Date.parse(page.snapshot.at))}.` : '';
    // The countdown is for the eye: read out every second it would drown everything else.
    const banner = byId('lost');
    const said = `The stream of events is lost: ${why}.${since}`;
    if (banner.firstChild?.textContent !== said) banner.replaceChildren(el('span', {}, said), ' ', el('span', { 'aria-hidden': 'true' }));
    setText(banner.lastChild, left > 0 ? `Trying again in ${left} s.` : 'Trying again…');
  }
}

function chip(name, text, tone, title) {
  return el('span', { class: `chip ${tone}`, title }, el('span', { class: 'soft' }, `${name} `), text);
}

function head(snapshot) {
  const { health, cache: l1 } = snapshot;
  setText(byId('version'), snapshot.version);
  const tones = { healthy: 'good', degraded: 'warn', critical: 'bad' };
  const upstream = l1?.upstream;
  const chips = [
    health && chip('health', health.status, tones[health.status] ?? '', 'The worst of the checks on the System tab'),
    l1 && chip('mode', l1.mode, l1.mode === 'serve' ? '' : 'warn', 'What the cache does: serve, observe or off'),
    l1 && chip('coherence', l1.coherence_mode, l1.coherence_mode === 'tracking' ? '' : 'warn', 'How it learns of changes upstream'),
    upstream && chip('upstream', upstream.backend !== 'upstream' ? upstream.backend : upstream.up ? 'up' : 'down', upstream.up ? 'good' : 'bad',
      [upstream.server, upstream.version].filter(Boolean).join(' ')),
  ].filter(Boolean);
  // Written only when they change: a tooltip that is open stays open.
  const wanted = chips.map((one) => one.className + one.textContent).join('|');
  if (byId('chips').dataset.shown !== wanted) {
    byId('chips').dataset.shown = wanted;
    byId('chips').replaceChildren(...chips);
  }
  const firing = (snapshot.alerts?.items ?? []).filter((item) => item.state === 'firing');
  const banner = byId('firing');
  show(banner, firing.length > 0);
  setClass(banner, `banner ${firing.some((item) => item.severity === 'critical') ? 'bad' : 'warn'}`);
  setText(banner, firing.map((item) => `${format.words(item.name)}: ${item.message}`).join(' · '));
  const time = byId('updated');
  setText(time, format.clock(Date.parse(snapshot.at)));
  setAttr(time, 'datetime', snapshot.at);
}

function onSnapshot(snapshot) {
  page.snapshot = snapshot;
  skew = Date.parse(snapshot.at) - Date.now();
  if (seconds.push(snapshot)) repair();
  families.push(snapshot);
  head(snapshot);
  draw();
}

// An alert is shown when it is told, before the snapshot that has it too.
function onAlert(alert) {
  const list = page.snapshot?.alerts;
  if (!list) return;
  const others = list.items.filter(({ name, since }) => name !== alert.name || since !== alert.since);
  if (others.length === list.items.length) list.total += 1;
  list.items = [alert, ...others];
  list.active = list.items.filter(({ state: is }) => is === 'firing').length;
  head(page.snapshot);
  draw();
}

function onEvent(kind, data) {
  if (kind === 'alert') onAlert(data);
  poll();
}

// ---- what people press

function range(name) {
  page.range = name;
  kept.set('nearside-range', name);
  for (const button of document.querySelectorAll('[data-range]')) setAttr(button, 'aria-pressed', String(button.dataset.range === name));
  if (name === '24h' && !page.day) loadDay();
  draw();
}

function theme(name) {
  kept.set('nearside-theme', name);
  setText(byId('theme'), `Theme: ${name}`);
  if (name === 'auto') delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = name;
}

function onTabKey(event) {
  const names = Object.keys(TABS);
  const here = names.indexOf(current);
  const to = { ArrowLeft: here - 1, ArrowRight: here + 1, Home: 0, End: names.length - 1 }[event.key];
  if (to === undefined) return;
  event.preventDefault();
  select(names[(to + names.length) % names.length], { focus: true });
}

const named = () => {
  const name = location.hash.slice(1);
  return name in TABS ? name : 'overview';
};

for (const name of Object.keys(TABS)) byId(`tab-${name}`).addEventListener('click', () => select(name));
document.querySelector('[role=tablist]').addEventListener('keydown', onTabKey);
for (const button of document.querySelectorAll('[data-range]')) button.addEventListener('click', () => range(button.dataset.range));
byId('theme').addEventListener('click', () => {
  const now = document.documentElement.dataset.theme ?? 'auto';
  theme(THEMES[(THEMES.indexOf(now) + 1) % THEMES.length]);
});
window.addEventListener('hashchange', () => { if (location.hash.slice(1) in TABS) select(named()); });
document.addEventListener('visibilitychange', () => { if (!document.hidden) { draw(); poll(); } });

theme(THEMES.includes(kept.get('nearside-theme')) ? kept.get('nearside-theme') : 'auto');
const wanted = kept.get('nearside-range');
if (RANGES.includes(wanted)) range(wanted);
select(named());
// The first figures come by an ordinary request, so that they are there even if no stream is to be had.
ask('/api/v1/dashboard').then(({ data }) => { if (data && !page.snapshot) onSnapshot(data); });
loadSeconds();
loadDay();
const stream = open({ onSnapshot, onState, onEvent });
byId('retry').addEventListener('click', () => stream.now());
setInterval(poll, POLL_MS);
setInterval(loadDay, DAY_MS);
setInterval(sayState, 500);
