// The dashboard page in a real Chromium: page.mjs HOST PORT HTTP_PORT CHROMIUM PART. Prints `ok NAME` a check; exit 1 if any
// failed. PART is `tabs` (live figures, equal to the API's), `people` (keyboard, narrow, dark, hostile names, what axe-core finds)
// or `lost` (the stream cut and resumed, sections that are missing). Everything goes through a relay of its own, which can be cut.
// Screenshots are in target/browser.
import assert from 'node:assert/strict';
import { mkdirSync, readFileSync } from 'node:fs';
import net from 'node:net';
import { check as checkWithin, finish, host, port, require } from '../clients/check.mjs';

const [httpPort, executablePath, part] = [Number(process.argv[4]), process.argv[5], process.argv[6]];
const { chromium } = require('playwright-core');
const { createClient } = require('redis');

const TABS = ['overview', 'cache', 'policy', 'costs', 'system'];
const EVIL_PATTERN = '<img src=y onerror=window.pwned=3>';
const EVIL_CLIENT = '<img/src=x/onerror=window.pwned=2>';
const SHOTS = 'target/browser';
mkdirSync(SHOTS, { recursive: true });

// A browser is slow on a busy machine. A condition fails before its check does, so that it is named.
const CHECK_MS = 60000;
const UNTIL_MS = 45000;
const check = (name, fn) => checkWithin(name, fn, CHECK_MS);
async function until(what, condition) {
  const end = Date.now() + UNTIL_MS;
  while (Date.now() < end) {
    if (await condition()) return;
    await new Promise((done) => setTimeout(done, 50));
  }
  throw new Error(`not within ${UNTIL_MS / 1000} s: ${what}`);
}

// ---- what stands around the browser

class Relay {
  constructor() {
    this.open = new Set();
    this.refusing = false;
    this.server = net.createServer((from) => {
      if (this.refusing) return from.destroy();
      const to = net.connect(httpPort, host);
      for (const [one, other] of [[from, to], [to, from]]) {
        this.open.add(one);
        one.on('error', () => other.destroy());
        one.on('close', () => { this.open.delete(one); other.destroy(); });
        one.pipe(other);
      }
    });
  }

  async start() {
    await new Promise((done) => this.server.listen(0, '127.0.0.1', done));
    this.origin = `http://127.0.0.1:${this.server.address().port}`;
  }

  cut() {
    this.refusing = true;
    for (const socket of this.open) socket.destroy();
  }
}

// What the applications do meanwhile; `stop` leaves the counters still.
class Load {
  async start() {
    const connect = async (name) => {
      const client = createClient({ socket: { host, port }, name });
      client.on('error', (error) => console.log(`# load: ${error.message}`));
      return client.connect();
    };
    this.client = await connect('app');
    this.evil = await connect(EVIL_CLIENT);
    const c = this.client;
    for (let i = 0; i < 50; i++) await c.set(`user:${i}`, 'x'.repeat(100 + i));
    for (const key of ['item:1', 'price:1', `${EVIL_PATTERN}:1`, 'plain', 'seen:1', 'seen:2']) await c.set(key, 'value');
    await c.set('user:big', 'x'.repeat(90000));
    await c.eval('local t = 0; for i = 1, 1000000 do t = t + i end; return t', { keys: ['user:1'] });
    this.running = true;
    this.over = this.run();
  }

  async run() {
    for (let n = 0; this.running; n++) {
      const c = n % 5 ? this.client : this.evil;
      const reads = Array.from({ length: 10 }, (_, i) => c.get(`user:${(n * 7 + i) % 50}`));
      const others = [c.get('item:1'), c.get('price:1'), c.get(`price:${n % 40}`), c.get(`seen:${n % 3}`), n % 7 ? null : c.get('user:big'), c.get(`${EVIL_PATTERN}:1`), c.mGet(['user:1', 'user:2']), c.hGet('user:1', 'f'),
        n % 5 ? null : c.set(`user:${n % 50}`, 'y'), n % 9 ? null : c.sendCommand(['FLUSHALL']), n % 11 ? null : c.publish('topic', 'x')];
      await Promise.allSettled([...reads, ...others]);
      if (n % 25 === 0) {
        const short = await this.client.duplicate().connect();
        await short.ping();
        await short.quit();
      }
      await new Promise((done) => setTimeout(done, 15));
    }
  }

  async stop() {
    this.running = false;
    await this.over;
  }

  close() {
    this.client.destroy();
    this.evil.destroy();
  }
}

const relay = new Relay();
await relay.start();
const load = new Load();
await load.start();
const browser = await chromium.launch({
  executablePath,
  args: ['--no-sandbox', '--disable-gpu', '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync'],
});

const api = async (path) => {
  const answer = await fetch(`http://${host}:${httpPort}${path}`);
  return { status: answer.status, body: await answer.json() };
};
// Sections that this build does not have: the page shows that, and Chromium reports the answer on its console.
const absent = [];
for (const path of ['/api/v1/keys', '/api/v1/candidates', '/api/v1/dashboard/costs', '/api/v1/dashboard/health']) {
  if ((await api(path)).status === 404) absent.push(path);
}
if (absent.length) console.log(`# not in this build: ${absent.join(', ')}`);

// A page that remembers what should not have happened: errors, and requests to anywhere else.
async function open(options = {}, { path = '/', prepare } = {}) {
  const context = await browser.newContext({ viewport: { width: 1440, height: 900 }, ...options });
  const page = await context.newPage();
  page.setDefaultTimeout(25000);
  const wrong = [];
  page.on('console', (message) => {
    const { pathname } = new URL(message.location().url || relay.origin);
    if (message.type() === 'error' && !absent.includes(pathname)) wrong.push(`${message.text()} (${message.location().url})`);
  });
  page.on('pageerror', (error) => wrong.push(error.stack));
  page.on('request', (request) => { if (new URL(request.url()).origin !== relay.origin) wrong.push(`a request to ${request.url()}`); });
  if (prepare) await prepare(page);
  await page.goto(relay.origin + path);
  return { page, wrong, close: () => context.close() };
}

const live = (page) => page.waitForSelector('#stream.live');
const text = (page, selector) => page.textContent(selector);
const tile = (page, key) => page.textContent(`[data-key="${key}"]`);
const shot = (page, name) => page.screenshot({ path: `${SHOTS}/${name}.png`, fullPage: true });
async function turnTo(page, tab) {
  await page.click(`#tab-${tab}`);
  await page.waitForSelector(`#panel-${tab}:not([hidden]) .card`);
}

// The text of the row whose first cell is `name`, cell by cell.
const row = (page, label, name) => page.evaluate(([l, n]) => {
  const rows = [...document.querySelectorAll('table:has(caption) tbody tr')];
  const found = rows.find((one) => one.closest('table').caption?.textContent === l && one.children[0].textContent.trim() === n);
  return found ? [...found.children].map((cell) => cell.textContent.trim()) : null;
}, [label, name]);

// Every row of the table of this name that is on screen, cell by cell; a title where the text is rounded or grows old.
const tableRows = (page, label, titles = []) => page.evaluate(([l, titled]) => {
  const found = [...document.querySelectorAll('[role=tabpanel]:not([hidden]) table')].find((one) => one.caption?.textContent === l);
  // Drawings have titles of their own, which are no text of the row.
  const said = (cell, i) => (cell.querySelector('svg') ? '' : titled.includes(i) ? cell.querySelector('[title]')?.title ?? cell.title : cell.textContent.trim());
  return found ? [...found.tBodies[0].children].map((tr) => [...tr.children].map(said)) : null;
}, [label, titles]);

// Formats as the page does, with the page's own module.
const shown = (page, calls) => page.evaluate(async (all) => {
  const format = await import('/page/format.js');
  return all.map(([name, ...values]) => format[name](...values));
}, calls);

// ---- tabs: live, and true

async function tabs() {
  const { page, wrong, close } = await open();

  await check('the page paints and goes live', async () => {
    await live(page);
    const paints = await page.evaluate(() => performance.getEntriesByType('paint').map((entry) => `${entry.name} ${Math.round(entry.startTime)} ms`));
    console.log(`# ${paints.join(', ')}`);
    assert.ok(paints.length > 0);
  });

  const moving = { overview: 'requests_per_second', cache: 'cache.hit_rate', policy: 'policy.checks', costs: 'costs.saved', system: 'runs.active' };
  for (const tab of TABS) {
    await check(`${tab} shows figures under load`, async () => {
      await turnTo(page, tab);
      const panel = `#panel-${tab}`;
      if (moving[tab]) await until(`${moving[tab]} has a value`, async () => !['–', '–/s'].includes(await tile(page, moving[tab])));
      await until('a line is drawn', () => page.evaluate((p) => [...document.querySelectorAll(`${p} .chart .line`)].some((line) => (line.getAttribute('d') ?? '').length > 20), panel));
      const said = await page.innerText(panel);
      for (const broken of ['undefined', 'NaN', '[object', 'null', 'Infinity']) assert.ok(!said.includes(broken), `${tab} says ${broken}: ${said}`);
      assert.ok(await page.isHidden('#broken'), await text(page, '#broken'));
      await shot(page, tab);
    });
  }

  await check('figures move without anybody asking', async () => {
    await turnTo(page, 'policy');
    const before = await tile(page, 'policy.checks');
    await until('another number of checks', async () => (await tile(page, 'policy.checks')) !== before);
  });

  await check('24 hours are shown as well', async () => {
    await turnTo(page, 'overview');
    await page.click('[data-range="24h"]');
    await page.waitForSelector('[data-range="24h"][aria-pressed="true"]');
    await page.click('[data-range="15m"]');
    assert.ok(await page.isHidden('#broken'));
  });

  await load.stop();
  // Compares once the counters stand still and the page has the newest of them.
  const equal = (what, calls, read) => until(what, async () => {
    const snapshot = (await api('/api/v1/dashboard')).body;
    const wanted = await shown(page, calls(snapshot));
    const is = await read();
    const same = JSON.stringify(is) === JSON.stringify(wanted);
    equal.last = `${what}: on screen ${JSON.stringify(is)}, wanted ${JSON.stringify(wanted)}`;
    return same;
  }).catch((error) => { throw new Error(`${error.message}; ${equal.last}`); });
  const tileTexts = (...keys) => () => Promise.all(keys.map((key) => tile(page, key)));

  await check('Overview says what the API says', async () => {
    await turnTo(page, 'overview');
    await equal('tiles', ({ metrics, runs }) => [['count', metrics.upstream_requests_saved], ['share', metrics.windows['1m'].hit_rate], ['share', metrics.windows['1m'].error_rate], ['count', runs.active], ['share', runs.success_rate]],
      tileTexts('upstream_requests_saved', 'hit_rate', 'errors', 'clients', 'success_rate'));
    await equal('commands by kind', ({ metrics: { operations: of } }) => [['count', of.get], ['count', of.set], ['count', of.mget]],
      async () => Promise.all(['get', 'set', 'mget'].map(async (name) => (await row(page, 'Commands by kind', name))?.[1])));
  });

  await check('Cache says what the API says', async () => {
    await turnTo(page, 'cache');
    await equal('tiles', ({ cache }) => [['share', cache.hit_rate], ['count', cache.entries], ['bytes', cache.bytes], ['count', cache.coalesced]],
      tileTexts('cache.hit_rate', 'cache.entries', 'cache.bytes', 'cache.coalesced'));
    const ruleOf = (snapshot) => snapshot.cache.rules.items.find(({ rule }) => rule === 'users');
    await equal('the row of a rule', (s) => [['share', ruleOf(s).hit_rate], ...['hits', 'misses', 'sets', 'dels'].map((name) => ['count', ruleOf(s)[name]])],
      async () => (await row(page, 'Rules', 'users'))?.slice(2));
    // A page that is opened now draws what was before: the sidecar has kept it.
    const history = (await api('/api/v1/history?range=15m')).body;
    const rates = await page.evaluate(async (kept) => {
      const { Families } = await import('/page/history.js');
      const families = new Families();
      families.load(kept);
      return families.rates();
    }, history);
    const users = rates.find(({ name }) => name === 'users');
    assert.ok(users?.values.filter((value) => value > 0 && value <= 1).length > 3, JSON.stringify(users));
    assert.equal(users.values.length, history.length);
    await until('its line', async () => (await page.innerText('#panel-cache')).includes('Over 10 seconds at each point'));
    await equal('invalidations', ({ cache }) => [['count', cache.invalidations.own_write]], async () => [(await row(page, 'Invalidations by source', 'own write'))?.[2]]);
  });

  // The tables that are asked for apart from the stream: all rows, all cells.
  const [count, bytes, money] = [(value) => ['count', value], (value) => ['bytes', value], (value, currency) => ['money', value, currency]];
  const as = (value) => ['words', value];
  const equalRows = (label, path, wanted, titles) => until(`${label} as ${path} has it`, async () => {
    const rows = wanted((await api(path)).body);
    const flat = rows.flat();
    const texts = await shown(page, flat.filter(Array.isArray));
    const cells = flat.map((cell) => (Array.isArray(cell) ? texts.shift() : cell));
    const is = await tableRows(page, label, titles);
    equalRows.last = `${label}: on screen ${JSON.stringify(is)}, wanted ${JSON.stringify(cells)}`;
    equalRows.seen = rows.length;
    return rows.length > 0 && is?.length === rows.length && JSON.stringify(is.flat()) === JSON.stringify(cells);
  }).catch((error) => { throw new Error(`${error.message}; ${equalRows.last}`); });

  await check('Keys are those of the API, by each order', async () => {
    await turnTo(page, 'cache');
    for (const by of ['misses', 'bytes', 'hits']) {
      await page.selectOption('#keys-by', by);
      await equalRows('Top keys', `/api/v1/keys?by=${by}&n=20`, ({ items }) => items.map((k) => [k.key, k.pattern, count(k.hits), count(k.misses), bytes(k.bytes)]));
      assert.ok(equalRows.seen >= 15, `${equalRows.seen} keys`);
    }
    await equalRows('Largest values', '/api/v1/keys?by=hits&n=20', ({ big_values: big }) => big.map((k) => [k.key, k.pattern, bytes(k.bytes)]));
    const { error_bound: bound } = (await api('/api/v1/keys?by=hits&n=20')).body;
    const said = bound === 0 ? 'Counts are whole so far' : `Counts are right to within ${(await shown(page, [['exact', bound]]))[0]}.`;
    await until(said, async () => (await page.innerText('#panel-cache')).includes(said));
  });

  await check('Candidates are those of the API', async () => {
    // Their rates are of the time since they were first seen, so what the page was answered is compared.
    await until('the answer and the screen agree', async () => {
      const answer = await page.waitForResponse((response) => response.url().endsWith('/api/v1/candidates'));
      const { items, total } = await answer.json();
      const wanted = [];
      for (const c of items) {
        const { currency } = (await api('/api/v1/dashboard/costs')).body;
        const [requests, p50, p99, keys, average, memory, saved, savedBytes, cost] = await shown(page, [['rate', c.requests_per_minute], ['ms', c.upstream.p50_ms], ['ms', c.upstream.p99_ms], count(c.distinct_keys),
          bytes(c.value_bytes_avg), bytes(c.memory_bytes), ['rate', c.saved_per_minute.requests], bytes(c.saved_per_minute.bytes), money(c.saved_per_minute.cost, currency)]);
        const ttls = [...new Set(c.hit_rate.map((point) => point.ttl_ms))];
        const rates = await Promise.all(ttls.map(async (ttl) => shown(page, [['ms', ttl], ...c.hit_rate.filter((point) => point.ttl_ms === ttl).map((point) => ['share', point.hit_rate])])));
        wanted.push({ name: `${c.pattern} · ${c.command}`, facts: [requests, p50, p99, keys, average, memory, saved, savedBytes, cost], rates, rule: c.rule_yaml ?? '' });
      }
      const is = await page.evaluate(() => [...document.querySelectorAll('article.candidate')].map((one) => ({
        name: one.querySelector('h4').textContent, facts: [...one.querySelectorAll('.candidate-facts dd')].map((dd) => dd.textContent),
        rates: [...one.querySelectorAll('.curve tbody tr')].map((tr) => [...tr.children].map((cell) => cell.textContent)), rule: one.querySelector('pre').textContent,
      })));
      const note = await page.innerText('#panel-cache');
      equal.last = `on screen ${JSON.stringify(is)}, wanted ${JSON.stringify(wanted)}`;
      return wanted.length > 0 && note.includes(`${total} found`) && JSON.stringify(is) === JSON.stringify(wanted);
    }).catch((error) => { throw new Error(`${error.message}; ${equal.last}`); });
  });

  await check('Alerts are those of the API, as the stream told them', async () => {
    await turnTo(page, 'overview');
    await equalRows('Alerts', '/api/v1/alerts', ({ items }) => items.map((a) => [a.state, as(a.name), a.message, ['inUnit', a.value, a.unit], ['inUnit', a.threshold, a.unit], a.since]), [5]);
    const { items } = (await api('/api/v1/alerts')).body;
    assert.ok(items.some(({ name, state }) => name === 'error_rate' && state === 'firing'), JSON.stringify(items));
    assert.ok((await text(page, '#firing')).includes('error rate: '), await text(page, '#firing'));
  });

  await check('Health is that of the API, check by check', async () => {
    await turnTo(page, 'system');
    await equalRows('Health checks', '/api/v1/dashboard/health', ({ checks }) => checks.map((c) => [c.status, as(c.name), ['inUnit', c.value, c.unit], ['inUnit', c.threshold, c.unit], c.since, c.message ?? '–']), [4]);
    assert.equal(equalRows.seen, 10);
    await until('its chip', async () => (await page.innerText('#chips')).includes((await api('/api/v1/dashboard/health')).body.status));
    await equalRows('Slow commands', '/api/v1/keys?by=hits&n=20', ({ slow_log: log }) => log.items.slice(0, 12).map((s) => [s.at, ['ms', s.duration_ms], s.command, s.pattern, as(s.class)]), [0]);
    await equalRows('Recent events', '/api/v1/events/recent', ({ events }) => events.map((e) => [e.at, as(e.kind), e.message, e.actor]), [0]);
  });

  await check('Policy says what the API says', async () => {
    await turnTo(page, 'policy');
    await equal('tiles', ({ policy }) => [['count', policy.checks], ['share', policy.allow_rate], ['count', policy.denied]],
      tileTexts('policy.checks', 'policy.allow_rate', 'policy.denied'));
    await equal('denied most', ({ policy }) => [['count', policy.top_denied[0].denied]], async () => [(await row(page, 'Commands denied most', 'flushall'))?.[2]]);
    const { recent } = (await api('/api/v1/dashboard/policy')).body;
    if (recent) await until('recent denials', async () => (await page.innerText('#panel-policy')).includes(recent.items[0].client));
    await until('sizes of replies', async () => !(await page.innerText('#panel-policy')).includes('No reply has been sent yet'));
    const arms = await page.locator('#panel-policy .experiment').innerText();
    assert.ok(arms.includes('prices') && arms.includes('control'), arms);
  });

  await check('Costs say what the API says, or that there are none', async () => {
    await turnTo(page, 'costs');
    const { status, body } = await api('/api/v1/dashboard/costs');
    if (status === 404) {
      await until('an honest empty state', async () => (await page.innerText('#panel-costs')).includes('not counted by this version'));
      return;
    }
    await equal('tiles', ({ costs: c }) => [money(c.spent, c.currency), money(c.saved, c.currency), ['share', c.saved / (c.spent + c.saved)], money(c.per_1000_requests.saved, c.currency), money(c.per_1000_requests.spent, c.currency)],
      tileTexts('costs.spent', 'costs.saved', 'costs.share', 'costs.per_saved', 'costs.per_spent'));
    assert.ok(body.spent > 0 && body.saved > 0, JSON.stringify(body));
    const { currency } = body;
    const amounts = (r) => [count(r.requests), money(r.spent, ''), money(r.saved, '')];
    const path = '/api/v1/dashboard/costs';
    await equalRows('Spent and saved by rule', path, ({ rules }) => rules.items.map((r) => [r.rule, '', money(r.saved, ''), money(r.spent, '')]));
    await equalRows('Costs by rollout arm', path, ({ arms }) => arms.items.toSorted((x, y) => y.requests - x.requests).map((r) => [r.rule, r.arm, ...amounts(r)]));
    await equalRows('Costs by client session', path, ({ sessions }) => sessions.items.toSorted((x, y) => y.saved - x.saved).map((r) => [r.client, String(r.id), ...amounts(r)]));
    await page.locator('#panel-costs .chart summary').first().click();
    await until('the trend, minute by minute', async () => {
      const { trend } = (await api(path)).body;
      const picked = trend.saved.map((value, i) => [money(value, currency), money(trend.spent[i], currency)]).filter((_, i) => i % 2 === 1).reverse();
      const wanted = await shown(page, picked.flat());
      const is = await page.evaluate(() => [...document.querySelectorAll('#panel-costs .chart details tbody')][0].innerText.split('\n').flatMap((line) => line.split('\t').slice(1)).map((cell) => cell.trim()));
      equal.last = `on screen ${JSON.stringify(is)}, wanted ${JSON.stringify(wanted)}`;
      return JSON.stringify(is) === JSON.stringify(wanted);
    }).catch((error) => { throw new Error(`${error.message}; ${equal.last}`); });
    await until('the projection', async () => {
      const { projection: p } = (await api(path)).body;
      const said = await page.innerText('#panel-costs');
      if (!p) return said.includes('No projection yet');
      const [saved, spent] = await shown(page, [money(p.monthly_saved, currency), money(p.monthly_spent, currency)]);
      return said.includes(`${saved} saved and ${spent} spent a month`);
    });
    for (const line of body.assumptions) assert.ok((await page.innerText('#panel-costs')).includes(line), line);
  });

  await check('System says what the API says', async () => {
    await turnTo(page, 'system');
    await equal('sessions', ({ runs }) => [['count', runs.active]], tileTexts('runs.active'));
    const { recent } = (await api('/api/v1/dashboard/runs')).body;
    const [one] = recent.items;
    const [commands] = await shown(page, [['count', one.commands]]);
    await until('the newest session', async () => (await row(page, 'Sessions', String(one.id)))?.[6] === commands);
    await until('the state of the link', async () => (await page.innerText('#panel-system')).includes('closed'));
  });

  await check('no error on the console, no request elsewhere', async () => assert.deepEqual(wrong, []));
  await close();
}

// ---- people: keyboards, phones, the dark, and names that are no names

// What a screen reader would say nothing of. Runs in the page.
function nameless() {
  const named = (one) => one.getAttribute('aria-label') || document.getElementById(one.getAttribute('aria-labelledby'))?.textContent || one.textContent.trim() || one.labels?.length;
  const inScroll = (table) => table.caption?.textContent || table.closest('[role=group]')?.getAttribute('aria-label');
  const all = (selector, holds) => [...document.querySelectorAll(selector)].filter((one) => !holds(one)).map((one) => one.outerHTML.slice(0, 200));
  return [
    ...all('button, select, summary, [tabindex="0"], section', named),
    ...all('table', inScroll),
    ...all('table', (table) => table.tBodies[0].rows.length === 0 || table.tHead || table.querySelector('th[scope=row]')),
    ...all('thead th', (th) => th.scope === 'col' && th.textContent.trim()),
    // A drawing is named, or is beside a table that says the same.
    ...all('svg', (svg) => svg.getAttribute('aria-hidden') === 'true' || (svg.getAttribute('role') === 'img' && svg.getAttribute('aria-label'))),
    ...all('figure.chart', (figure) => figure.querySelector('details table')),
  ];
}

// What axe-core says against the tab, with everything opened that opens.
let axe = null;
try {
  axe = readFileSync(require.resolve('axe-core/axe.min.js'), 'utf8');
} catch (error) {
  if (process.env.NEARSIDE_TEST_CLIENTS !== undefined) throw error;
  console.log('# SKIPPED axe-core is not there; tests/run installs it');
}
async function faultless(page, tab) {
  if (!axe) return;
  await page.evaluate(axe);
  await turnTo(page, tab);
  await page.evaluate(() => document.querySelectorAll('details').forEach((one) => { one.open = true; }));
  const found = await page.evaluate(async () => {
    const { violations } = await window.axe.run(document, { resultTypes: ['violations'], preload: false });
    return violations.flatMap(({ id, nodes }) => nodes.map(({ html, failureSummary }) => `${id}: ${html.slice(0, 160)} ${failureSummary}`));
  });
  assert.deepEqual(found, [], tab);
}

// Elements that stand out of the screen, but for those that scroll in their own place. Runs in the page.
function tooWide() {
  const screen = document.documentElement.clientWidth;
  const inPlace = '.scroll, .unseen, .skip, .tip, svg, pre';
  const out = (one) => !one.closest(inPlace) && one.getClientRects().length > 0 && one.getBoundingClientRect().right > screen + 0.5;
  return [document.documentElement.scrollWidth > screen && `the page is ${document.documentElement.scrollWidth} wide`, ...[...document.querySelectorAll('body *')].filter(out).map((one) => one.outerHTML.slice(0, 120))].filter(Boolean);
}

async function people() {
  const { page, wrong, close } = await open({ colorScheme: 'light' });
  await live(page);

  await check('the files are guarded and kept', async () => {
    for (const path of ['/', '/page/main.js', '/page/style.css']) {
      const answer = await fetch(relay.origin + path);
      const policy = answer.headers.get('content-security-policy') ?? '';
      for (const word of ["default-src 'none'", "script-src 'self'", "frame-ancestors 'none'", "base-uri 'none'", "form-action 'none'"]) assert.ok(policy.includes(word), `${path}: ${policy}`);
      assert.ok(!policy.includes('unsafe'), policy);
      const again = await fetch(relay.origin + path, { headers: { 'if-none-match': answer.headers.get('etag') } });
      assert.equal(again.status, 304, path);
      await answer.text();
    }
  });

  await check('hostile names are text', async () => {
    await turnTo(page, 'cache');
    const evilRule = (await api('/api/v1/dashboard/cache')).body.cache?.rules ?? (await api('/api/v1/dashboard/cache')).body.rules;
    const name = evilRule.items.map(({ rule }) => rule).find((rule) => rule.startsWith('<img'));
    assert.ok(name, 'there is a rule with a hostile name');
    await until('the rule', async () => (await row(page, 'Rules', name)) !== null);
    await turnTo(page, 'costs');
    await until('the pattern', async () => (await row(page, 'Spent and saved by rule', EVIL_PATTERN)) !== null);
    await turnTo(page, 'system');
    await until('the client', async () => (await page.innerText('#panel-system')).includes(EVIL_CLIENT));
    for (const tab of TABS) {
      await turnTo(page, tab);
      assert.equal(await page.locator('main img').count(), 0, tab);
    }
    assert.equal(await page.evaluate(() => window.pwned), undefined);
  });

  await check('tabs are turned by keyboard', async () => {
    await turnTo(page, 'overview');
    await page.focus('#tab-overview');
    const selected = () => page.evaluate(() => [document.activeElement.id, document.querySelector('[role=tab][aria-selected=true]').id]);
    const steps = [['ArrowRight', 'cache'], ['ArrowRight', 'policy'], ['ArrowLeft', 'cache'], ['End', 'system'], ['ArrowRight', 'overview'], ['ArrowLeft', 'system'], ['Home', 'overview']];
    for (const [key, tab] of steps) {
      await page.keyboard.press(key);
      assert.deepEqual(await selected(), [`tab-${tab}`, `tab-${tab}`], key);
      assert.equal(await page.locator('[role=tabpanel]:not([hidden])').count(), 1);
    }
    const outline = () => page.evaluate(() => getComputedStyle(document.activeElement).outlineStyle);
    assert.notEqual(await outline(), 'none', 'the focus on a tab is seen');
    await page.keyboard.press('Tab');
    assert.equal(await page.evaluate(() => document.activeElement.id), 'panel-overview', 'one stop for all tabs, then the panel');
    assert.notEqual(await outline(), 'none', 'and on the panel');
  });

  await check('a chart is read by keyboard, and as a table', async () => {
    const chart = page.locator('#panel-overview .chart').first();
    await chart.locator('svg').focus();
    await page.keyboard.press('ArrowLeft');
    await chart.locator('.tip').waitFor({ state: 'visible' });
    assert.match(await chart.locator('svg').getAttribute('aria-label'), /hits/);
    await page.keyboard.press('Escape');
    assert.ok(await chart.locator('.tip').isHidden());
    await chart.locator('summary').focus();
    await page.keyboard.press('Enter');
    await until('rows', async () => (await chart.locator('tbody tr').count()) > 5);
    await page.keyboard.press('Enter');
  });

  await check('a table is sorted by keyboard', async () => {
    await turnTo(page, 'cache');
    const sort = page.locator('.scroll[aria-label="Rules"] th', { hasText: 'Misses' });
    await sort.locator('button').focus();
    await page.keyboard.press('Enter');
    assert.equal(await sort.getAttribute('aria-sort'), 'descending');
    await page.keyboard.press('Enter');
    assert.equal(await sort.getAttribute('aria-sort'), 'ascending');
  });

  await check('every control, table and drawing has a name, every panel its tab', async () => {
    for (const tab of TABS) {
      await turnTo(page, tab);
      assert.deepEqual(await page.evaluate(nameless), [], tab);
    }
    const panels = await page.evaluate(() => [...document.querySelectorAll('[role=tab]')].every((tab) => document.getElementById(tab.getAttribute('aria-controls')).getAttribute('aria-labelledby') === tab.id));
    assert.ok(panels);
  });

  for (const tab of TABS) await check(`axe-core finds nothing on ${tab}, in the light`, () => faultless(page, tab));

  await check('the theme can be chosen, and is kept', async () => {
    const background = () => page.evaluate(() => getComputedStyle(document.body).backgroundColor);
    const light = await background();
    await page.click('#theme');
    await page.click('#theme');
    assert.equal(await text(page, '#theme'), 'Theme: dark');
    assert.notEqual(await background(), light);
    await page.reload();
    await live(page);
    assert.equal(await text(page, '#theme'), 'Theme: dark');
    await page.click('#theme');
    assert.equal(await background(), light);
  });
  await check('no error on the console, no request elsewhere', async () => assert.deepEqual(wrong, []));
  await close();

  const phone = await open({ colorScheme: 'dark', viewport: { width: 360, height: 780 }, hasTouch: true, reducedMotion: 'reduce' }, { path: '/#cache' });
  await live(phone.page);
  await check('a link to a tab opens it', async () => assert.equal(await phone.page.getAttribute('#tab-cache', 'aria-selected'), 'true'));
  for (const tab of TABS) {
    await check(`${tab} is no wider than a phone, and axe-core finds nothing in the dark`, async () => {
      await turnTo(phone.page, tab);
      await until('everything is loaded', async () => (await phone.page.locator(`#panel-${tab} .failure:visible`).count()) === 0);
      assert.deepEqual(await phone.page.evaluate(tooWide), [], tab);
      await shot(phone.page, `${tab}-phone-dark`);
      await faultless(phone.page, tab);
      assert.deepEqual(await phone.page.evaluate(tooWide), [], `${tab}, with everything open`);
    });
  }
  await check('it is dark, and nothing moves', async () => {
    const [red, green, blue] = (await phone.page.evaluate(() => getComputedStyle(document.body).backgroundColor)).match(/\d+/g).map(Number);
    assert.ok(red + green + blue < 150, 'a dark background');
    const moves = await phone.page.evaluate(() => getComputedStyle(document.querySelector('.dot')).animationName);
    assert.equal(moves, 'none', 'nothing moves for whoever asks for that');
  });
  await check('no error there either', async () => assert.deepEqual(phone.wrong, []));
  await phone.close();
}

// ---- lost: the stream, and sections

async function lost() {
  const { page, close } = await open();
  await live(page);

  await check('a stream that is cut is said so, and comes back', async () => {
    await turnTo(page, 'policy');
    relay.cut();
    await page.waitForSelector('#lost:not([hidden])');
    assert.equal(await text(page, '#stream-text'), 'Not live');
    assert.match(await text(page, '#lost'), /stream of events is lost.*figures are those of \d\d:\d\d:\d\d/);
    await shot(page, 'lost');
    const before = await tile(page, 'policy.checks');
    relay.refusing = false;
    await page.waitForSelector('#stream.live');
    assert.ok(await page.isHidden('#lost'));
    await until('figures move again', async () => (await tile(page, 'policy.checks')) !== before);
  });

  await check('one does not have to wait for the next attempt', async () => {
    relay.cut();
    await page.waitForSelector('#retry:not([hidden])');
    relay.refusing = false;
    await page.click('#retry');
    await page.waitForSelector('#stream.live');
  });
  await close();

  await check('a page that nobody looks at gives its connection back', async () => {
    const other = await open({}, { prepare: (one) => one.clock.install() });
    await live(other.page);
    const look = (hidden) => other.page.evaluate((is) => {
      Object.defineProperty(document, 'hidden', { value: is, configurable: true });
      document.dispatchEvent(new Event('visibilitychange'));
    }, hidden);
    await look(true);
    await other.page.clock.fastForward(61000);
    await until('the stream is paused', async () => (await text(other.page, '#stream-text')) === 'Paused while hidden');
    assert.ok(await other.page.isHidden('#lost'), 'that is no fault');
    await look(false);
    await live(other.page);
    await other.close();
  });

  await load.stop();
  await check('sections that are missing or fail leave the others alone', async () => {
    const refuse = (status, message) => (route) => route.fulfill({ status, contentType: 'application/json', body: JSON.stringify({ error: { code: 'x', message } }) });
    const cut = (snapshot) => ({ ...snapshot, health: null, costs: null, alerts: null });
    const broken = await open({}, {
      prepare: async (one) => {
        await one.route('**/api/v1/keys*', refuse(404, 'nothing here'));
        await one.route('**/api/v1/candidates', refuse(500, 'it is broken'));
        await one.route('**/api/v1/dashboard/costs', refuse(404, 'nothing here'));
        await one.route('**/api/v1/dashboard/health', refuse(404, 'nothing here'));
        await one.route('**/api/v1/events', (route) => route.abort());
        await one.route('**/api/v1/dashboard', async (route) => route.fulfill({ json: cut(await (await route.fetch()).json()) }));
      },
    });
    const said = (tab, words) => until(`${tab} says: ${words}`, async () => (await broken.page.innerText(`#panel-${tab}`)).includes(words));
    await said('overview', 'Alerts are not told by this version');
    await until('what is there is shown', async () => (await tile(broken.page, 'clients')) === '2');
    await turnTo(broken.page, 'cache');
    await said('cache', 'Keys are not counted by this version');
    await said('cache', 'it is broken');
    await turnTo(broken.page, 'costs');
    await said('costs', 'Costs are not counted by this version');
    await turnTo(broken.page, 'system');
    await said('system', 'Checks are not told by this version');
    assert.ok(await broken.page.isHidden('#broken'));
    await broken.close();
  });
}

await { tabs, people, lost }[part]();
await load.stop();
await browser.close();
load.close();
finish();
