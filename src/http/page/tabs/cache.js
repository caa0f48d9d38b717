// Cache: what it holds, how often it had what was asked for, why entries went, and what more would be worth keeping.

import { bars, lines } from '../charts.js';
import { el, setAttr, setText, show } from '../dom.js';
import * as format from '../format.js';
import { card, facts, grid, heading, table, tile, tiles } from '../parts.js';

const CACHE = '/api/v1/dashboard/cache';
const CANDIDATES = '/api/v1/candidates';
const keysBy = (by) => `/api/v1/keys?by=${by}&n=20`;

// More lines than this cannot be told apart.
const LINES_MAX = 8;

const counted = (of) => Object.entries(of ?? {}).filter(([, value]) => value > 0).sort((a, b) => b[1] - a[1]);
const asBars = (of, mark) => counted(of).map(([name, value]) => ({ name: format.words(name), parts: [{ value, mark }], text: format.count(value), exact: format.exact(value) }));

export const rateCell = (value) => ({ text: format.share(value), title: format.exact(value) });
const numberCell = (value) => ({ text: format.count(value), title: format.exact(value) });

function families(key, name, extra = []) {
  return [
    { key, name, of: (r) => ({ text: r[key], title: r[key] }), by: (r) => r[key] },
    ...extra,
    { key: 'hit_rate', name: 'Hit rate', num: true, of: (r) => rateCell(r.hit_rate), by: (r) => r.hit_rate },
    ...['hits', 'misses', 'sets', 'dels'].map((of) => ({
      key: of, name: { hits: 'Hits', misses: 'Misses', sets: 'Stored', dels: 'Removed' }[of], num: true, of: (r) => numberCell(r[of]), by: (r) => r[of],
    })),
  ];
}

export function create(page) {
  const rate = tile('Hit rate', 'Hits of all look-ups, since the start', 'cache.hit_rate');
  const entries = tile('Entries', 'Values that are held now', 'cache.entries');
  const size = tile('Memory', 'Bytes that entries take, of cache.max_bytes', 'cache.bytes');
  const coalesced = tile('Coalesced', 'Requests that waited for a fetch of somebody else’s instead of making one', 'cache.coalesced');
  const stale = tile('Served stale', 'Reads answered while upstream was gone, marked as such', 'cache.stale_served');
  const discarded = tile('Fills discarded', 'Values that were not stored, because the key may have changed meanwhile', 'cache.fills_discarded');

  const byRule = lines({ label: 'Hit rate by rule', format: format.share, max: 1, height: 200 });
  const ruleLines = card('Hit rate by rule over time', { size: 'wide' }, byRule.root);
  const held = lines({ label: 'Entries', format: format.count });
  const taken = lines({ label: 'Bytes of entries', format: format.bytes });
  const evictions = bars({ label: 'Evictions by cause', none: 'Nothing has been evicted.' });
  const invalidations = bars({ label: 'Invalidations by source', none: 'Nothing has been invalidated.' });
  const discards = bars({ label: 'Discarded fills by reason', none: 'Every value that came was stored.' });
  const rules = table({
    label: 'Rules', sortable: true, sort: 'hits',
    none: 'There are no rules: every readable key is cached as the section cache says. Add rules to say what holds for which keys.',
    columns: families('rule', 'Rule', [{ key: 'mode', name: 'Mode', of: (r) => r.mode, by: (r) => r.mode }]),
  });
  const patterns = table({
    label: 'Patterns', sortable: true, sort: 'hits',
    none: 'Nothing has been looked up here: every key that is cached belongs to a rule.',
    columns: families('pattern', 'Pattern'),
  });
  const ruleCard = card('Rules', { size: 'wide' }, rules.root);
  const patternCard = card('Patterns', { size: 'full', note: 'Keys without a rule, by the text in front of their first separator.' }, patterns.root);

  // ---- keys
  let by = 'hits';
  const choice = el('select', { id: 'keys-by', on: { change: () => { by = choice.value; page.refresh(); draw(page); } } },
    ...['hits', 'misses', 'bytes'].map((name) => el('option', { value: name }, name)));
  const keyName = (k) => (k.key === null ? { text: 'hidden', mark: 'soft' } : { text: k.key, title: k.key, mark: 'mono' });
  const keys = table({
    label: 'Top keys', none: 'No key has been asked for yet.',
    columns: [
      { key: 'key', name: 'Key', of: keyName },
      { key: 'pattern', name: 'Pattern', of: (k) => ({ text: k.pattern, title: k.pattern }) },
      { key: 'hits', name: 'Hits', num: true, of: (k) => numberCell(k.hits) },
      { key: 'misses', name: 'Misses', num: true, of: (k) => numberCell(k.misses) },
      { key: 'bytes', name: 'Bytes served', num: true, of: (k) => ({ text: format.bytes(k.bytes), title: format.exact(k.bytes) }) },
    ],
  });
  const big = table({
    label: 'Largest values', none: 'No miss has brought a value yet.',
    columns: [
      { key: 'key', name: 'Key', of: keyName },
      { key: 'pattern', name: 'Pattern', of: (k) => ({ text: k.pattern, title: k.pattern }) },
      { key: 'bytes', name: 'Bytes', num: true, of: (k) => ({ text: format.bytes(k.bytes), title: format.exact(k.bytes) }) },
    ],
  });
  const keyCard = card('Top keys', { size: 'wide' }, el('p', { class: 'field' }, el('label', { for: 'keys-by' }, 'By '), choice), keys.root);
  const bigCard = card('Largest values', { note: 'Of the replies that misses have brought, stored or not.' }, big.root);

  const candidates = el('div', { class: 'candidates' });
  const candidateCard = card('Candidates', { size: 'full' }, candidates);

  const root = el('div', {}, heading('Cache'),
    tiles(rate, entries, size, coalesced, stale, discarded),
    grid(
      ruleLines, card('Evictions by cause', {}, evictions.root),
      card('Entries', {}, held.root), card('Bytes', {}, taken.root), card('Invalidations by source', {}, invalidations.root),
      ruleCard, card('Fills discarded', {}, discards.root),
      patternCard, keyCard, bigCard, candidateCard,
    ));

  function drawRules() {
    const lineOf = ({ name, values }, i) => ({ name, mark: `c${i + 1}`, values });
    if (page.range === '15m') {
      const some = page.families.rates().slice(0, LINES_MAX);
      const pad = Math.max(0, 120 - (some[0]?.values.length ?? 0));
      const padded = some.map(({ name, values }) => ({ name, values: [...Array(pad).fill(null), ...values] }));
      ruleLines.note(some.length ? 'Over 10 seconds at each point. Patterns, which have no rule, since this page was opened.' : 'No look-ups in the last 15 minutes.');
      byRule.update({ end: page.families.end(), step: 1000, series: padded.map(lineOf) });
      return;
    }
    const all = Object.entries(page.day?.rules ?? {});
    const sum = (values) => values.reduce((total, value) => total + (value ?? 0), 0);
    all.sort((a, b) => sum(b[1].hits) + sum(b[1].misses) - sum(a[1].hits) - sum(a[1].misses));
    const some = all.slice(0, LINES_MAX).map(([name, { hits, misses }]) => {
      const values = hits.map((value, i) => (value + misses[i] > 0 ? value / (value + misses[i]) : null));
      return { name, values: [...Array(Math.max(0, 120 - values.length)).fill(null), ...values] };
    });
    ruleLines.note(some.length ? 'By the minute, as the sidecar has kept it.' : 'No minute is complete yet, or there are no rules.');
    byRule.update({ end: page.day?.end ? Date.parse(page.day.end) : page.now(), step: 60000, series: some.map(lineOf) });
  }

  // Cards of candidates are made once each, so that an open rule stays open and a curve keeps its place.
  const made = new Map();
  function drawCandidates(data) {
    const observing = data.mode === 'observe';
    candidateCard.note(`${observing ? 'Observe mode' : `Mode ${data.mode}`}, since ${new Date(data.observed_since).toLocaleString('en-GB')}; ${format.count(data.tracked_keys)} keys tracked, ${format.share(data.sample_rate)} of them sampled. `
      + `${data.total} found${data.total > data.items.length ? `, ${data.items.length} shown` : ''}.`);
    const names = new Set();
    const nodes = data.items.map((item) => {
      const name = `${item.pattern} ${item.command}`;
      names.add(name);
      if (!made.has(name)) made.set(name, candidate());
      made.get(name).update(item, page.snapshot.costs?.currency);
      return made.get(name).root;
    });
    for (const name of made.keys()) if (!names.has(name)) made.delete(name);
    const none = el('p', { class: 'empty' }, observing
      ? 'Nothing is asked for often enough yet (observe.candidates says how often that is).'
      : 'Nothing found. In observe mode (NEARSIDE MODE observe) nothing is served from the cache, and what would be worth it is measured.');
    const wanted = nodes.length ? nodes : [none];
    if (wanted.length !== candidates.children.length || wanted.some((node, i) => node !== candidates.children[i])) {
      if (!(nodes.length === 0 && candidates.firstChild?.textContent === none.textContent)) candidates.replaceChildren(...wanted);
    }
  }

  function draw({ snapshot }) {
    const l1 = snapshot.cache;
    const past = page.history();
    const lookups = l1.hits + l1.misses;
    rate.update({
      value: format.share(l1.hit_rate), title: format.exact(l1.hit_rate), sub: `${format.count(l1.hits)} hits · ${format.count(l1.misses)} misses`,
      series: past.share('hits', 'misses'), mark: 'hit', top: 1,
    });
    entries.update({ value: format.count(l1.entries), title: format.exact(l1.entries), sub: `${format.count(l1.sets)} stored since start`, series: past.values('entries'), mark: 'all' });
    const full = l1.max_bytes > 0 ? l1.bytes / l1.max_bytes : null;
    size.update({
      value: format.bytes(l1.bytes), title: `${format.exact(l1.bytes)} bytes`, sub: `${format.share(full)} of ${format.bytes(l1.max_bytes)}`,
      series: past.values('l1_bytes'), mark: 'memory', top: l1.max_bytes,
    });
    coalesced.update({ value: format.count(l1.coalesced), title: format.exact(l1.coalesced), sub: `${format.share(lookups ? l1.coalesced / lookups : null)} of look-ups` });
    stale.update({ value: format.count(l1.stale_served), title: format.exact(l1.stale_served), sub: 'while upstream was gone' });
    const sum = Object.values(l1.fills_discarded).reduce((a, b) => a + b, 0);
    discarded.update({ value: format.count(sum), title: format.exact(sum), sub: `${format.share(l1.sets + sum ? sum / (l1.sets + sum) : null)} of fills` });
    drawRules();
    held.update(past.axis([{ name: 'entries', mark: 'all', values: past.values('entries') }]));
    taken.update(past.axis([{ name: 'bytes', mark: 'memory', values: past.values('l1_bytes') }]));
    evictions.update(asBars(l1.evictions, 'miss'));
    invalidations.update(asBars(l1.invalidations, 'c2'));
    discards.update(asBars(l1.fills_discarded, 'c4'));

    const lists = ruleCard.data(page.answer(CACHE)) ?? l1;
    patternCard.data(page.answer(CACHE));
    rules.update(lists.rules.items, lists.rules.total);
    const asked = lists.patterns.items.filter((item) => item.hits + item.misses + item.sets + item.dels > 0);
    patterns.update(asked, lists.patterns.total - lists.patterns.items.length + asked.length);

    const answer = page.answer(keysBy(by));
    const hot = keyCard.data(answer, 'Keys are not counted by this version.');
    bigCard.data(answer, 'Keys are not counted by this version.');
    if (hot) {
      const why = { hash: 'Names are hashed here: ask from the host itself, or set observe.keys. ', hide: 'Names are hidden (observe.keys). ' }[hot.shown] ?? '';
      keyCard.note(`${why}Counts are ${hot.error_bound > 0 ? `right to within ${format.exact(hot.error_bound)}` : 'whole so far: there are no more keys than places to count them'}.`);
      keys.update(hot.items);
      big.update(hot.big_values);
    }
    const found = candidateCard.data(page.answer(CANDIDATES), 'Candidates are not looked for by this version.');
    if (found) drawCandidates(found);
  }

  return { root, needs: () => [CACHE, keysBy(by), CANDIDATES], draw };
}

// One pattern that could be cached: what it costs, what it would save, and the rule to paste.
function candidate() {
  const name = el('h4');
  const state = el('span', { class: 'chip good', hidden: true }, 'cached already');
  const figures = facts('What it would save');
  figures.root.classList.add('candidate-facts');
  const rows = el('tbody');
  const heads = el('tr');
  const curve = el('table', { class: 'curve' }, el('caption', {}, 'Hit rate it would have, by time to live and memory'), el('thead', {}, heads), rows);
  const rule = el('pre', { tabindex: 0 });
  const copy = el('button', { type: 'button', class: 'plain' }, 'Copy');
  copy.addEventListener('click', async () => {
    let said = 'Copied';
    try {
      await navigator.clipboard.writeText(rule.textContent);
    } catch {
      // No clipboard without a secure origin: mark the text, for the keyboard.
      getSelection().selectAllChildren(rule);
      said = 'Marked: press Ctrl+C';
    }
    setText(copy, said);
    setTimeout(() => setText(copy, 'Copy'), 3000);
  });
  const root = el('article', { class: 'candidate' }, el('div', { class: 'candidate-head' }, name, state), figures.root,
    el('div', { class: 'scroll', tabindex: 0, role: 'group', 'aria-label': 'Hit rates' }, curve),
    el('details', {}, el('summary', {}, 'Rule to paste'), rule, copy));

  function update(item, currency) {
    setText(name, `${item.pattern} · ${item.command}`);
    show(state, item.already_cached);
    const { upstream, saved_per_minute: spared } = item;
    figures.update([
      ['Requests a minute', format.rate(item.requests_per_minute)],
      ['Upstream, median', format.ms(upstream.p50_ms)],
      ['Upstream, p99', format.ms(upstream.p99_ms)],
      ['Keys', format.count(item.distinct_keys), 'Read in the last half hour, estimated from the sample'],
      ['Mean value', format.bytes(item.value_bytes_avg)],
      ['Memory needed', format.bytes(item.memory_bytes)],
      ['Requests saved a minute', format.rate(spared.requests)],
      ['Bytes saved a minute', format.bytes(spared.bytes)],
      ['Money saved a minute', format.money(spared.cost, currency), 'By the prices under costs'],
    ]);
    const ttls = [...new Set(item.hit_rate.map((point) => point.ttl_ms))];
    const sizes = [...new Set(item.hit_rate.map((point) => point.max_bytes))];
    const at = (ttl, size) => item.hit_rate.find((point) => point.ttl_ms === ttl && point.max_bytes === size)?.hit_rate ?? null;
    heads.replaceChildren(el('th', { scope: 'col' }, 'Time to live'), ...sizes.map((size) => el('th', { scope: 'col', class: 'num' }, size === null ? 'no bound' : format.bytes(size))));
    rows.replaceChildren(...ttls.map((ttl) => el('tr', {}, el('th', { scope: 'row' }, format.ms(ttl)),
      ...sizes.map((size) => el('td', { class: 'num', title: format.exact(at(ttl, size)) }, format.share(at(ttl, size)))))));
    setText(rule, item.rule_yaml);
    setAttr(rule, 'aria-label', `Rule for ${item.pattern}`);
  }

  return { root, update };
}
