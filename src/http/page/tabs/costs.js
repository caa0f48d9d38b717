// Costs: what went upstream is spent, what did not is saved, by the prices of the configuration.

import { bars, lines, scatter, swatch } from '../charts.js';
import { el, setText } from '../dom.js';
import * as format from '../format.js';
import { card, grid, heading, table, tile, tiles } from '../parts.js';

const COSTS = '/api/v1/dashboard/costs';
// What hits were answered with, by key; counted for as many keys as are asked for.
const KEYS = '/api/v1/keys?by=bytes&n=100';
const ABSENT = 'Costs are not counted by this version.';

export function create(page) {
  let currency = '';
  const money = (value) => format.money(value, currency);
  // In a column whose card says the currency.
  const plain = (value) => format.money(value, '');
  const saved = tile('Saved', 'What requests that did not go upstream would have cost, since the start', 'costs.saved');
  const spent = tile('Spent', 'What requests that went upstream cost, since the start', 'costs.spent');
  const share = tile('Share saved', 'Of what it would have cost without the cache', 'costs.share');
  const perSaved = tile('Saved per 1,000 requests', 'Since the start', 'costs.per_saved');
  const perSpent = tile('Spent per 1,000 requests', 'Since the start', 'costs.per_spent');
  const monthly = tile('Saved per month', 'If it goes on as in the last minutes', 'costs.monthly');

  const trend = lines({ label: 'Spent and saved per minute', format: money, axis: format.exact });
  const trendCard = card('Spent against saved', { size: 'wide', note: 'Per minute, the last 60 minutes.' }, trend.root);
  const rules = bars({ label: 'Spent and saved by rule', heads: ['Rule', '', [swatch('saved'), ' Saved'], [swatch('spent'), ' Spent']], none: 'No request has been priced yet: set prices under costs.' });
  const ruleCard = card('By rule', {}, rules.root);
  const points = scatter({
    label: 'Hit rate against bytes, by pattern', xName: 'Bytes answered from the cache', yName: 'Hit rate', xFormat: format.bytes,
    none: 'Nothing has been answered from the cache yet.',
  });
  const pointCard = card('Hit rate against bytes', { size: 'wide' }, points.root);
  const amounts = (key, name, extra = []) => [
    { key, name, of: (r) => ({ text: r[key], title: r[key] }), by: (r) => r[key] },
    ...extra,
    { key: 'requests', name: 'Requests', num: true, of: (r) => ({ text: format.count(r.requests), title: format.exact(r.requests) }), by: (r) => r.requests },
    ...[['spent', 'Spent'], ['saved', 'Saved']].map(([of, head]) => ({ key: of, name: head, num: true, of: (r) => ({ text: plain(r[of]), title: format.exact(r[of]) }), by: (r) => r[of] })),
  ];
  const arms = table({
    label: 'Costs by rollout arm', sortable: true, sort: 'requests', none: 'No rule has a rollout.',
    columns: amounts('rule', 'Rule', [{ key: 'arm', name: 'Arm', of: (r) => r.arm, by: (r) => r.arm }]),
  });
  const sessions = table({
    label: 'Costs by client session', sortable: true, sort: 'saved', none: 'No session yet.',
    columns: amounts('client', 'Client', [{ key: 'id', name: 'Id', num: true, of: (r) => r.id, by: (r) => r.id }]),
  });
  const armCard = card('By rollout arm', {}, arms.root);
  const sessionCard = card('By client session', { size: 'wide' }, sessions.root);
  const projected = el('p', { class: 'figure' });
  const projectedNote = el('p', { class: 'note' });
  const assumptions = el('ul', { class: 'plain-list' });
  const projectionCard = card('Projection and assumptions', {}, projected, projectedNote, assumptions);

  const root = el('div', {}, heading('Costs'), tiles(saved, spent, share, perSaved, perSpent, monthly),
    grid(trendCard, ruleCard, pointCard, projectionCard, sessionCard, armCard));

  function drawTiles(costs) {
    const all = costs.spent + costs.saved;
    saved.update({ value: money(costs.saved), title: format.exact(costs.saved), sub: 'since start', series: costs.trend.saved, mark: 'saved' });
    spent.update({ value: money(costs.spent), title: format.exact(costs.spent), sub: 'since start', series: costs.trend.spent, mark: 'spent' });
    share.update({ value: format.share(all > 0 ? costs.saved / all : null), sub: 'of the price without a cache' });
    perSaved.update({ value: money(costs.per_1000_requests.saved), title: format.exact(costs.per_1000_requests.saved), sub: 'since start' });
    perSpent.update({ value: money(costs.per_1000_requests.spent), title: format.exact(costs.per_1000_requests.spent), sub: 'since start' });
    const p = costs.projection;
    monthly.update({ value: money(p?.monthly_saved ?? null), sub: p ? `from ${format.exact(p.basis_minutes)} min · ${money(p.monthly_spent)} spent` : 'not enough minutes yet' });
  }

  function drawPoints() {
    const keys = pointCard.data(page.answer(KEYS), 'Keys are not counted by this version.');
    if (!keys) return;
    const found = new Map();
    for (const { pattern, bytes, hits, misses } of keys.items) {
      const sum = found.get(pattern) ?? { bytes: 0, hits: 0, misses: 0 };
      found.set(pattern, { bytes: sum.bytes + (bytes ?? 0), hits: sum.hits + hits, misses: sum.misses + misses });
    }
    const some = [...found].filter(([, sum]) => sum.bytes > 0 && sum.hits + sum.misses > 0);
    pointCard.note(`By pattern, of the ${keys.items.length} keys that most bytes were answered for; the larger the point, the more requests.`);
    points.update(some.map(([name, { bytes, hits, misses }]) => ({ name, x: bytes, y: hits / (hits + misses), weight: hits + misses })));
  }

  function draw({ snapshot }) {
    drawPoints();
    const answer = page.answer(COSTS);
    const brief = snapshot.costs;
    const all = trendCard.data(answer, ABSENT);
    for (const one of [ruleCard, projectionCard, armCard, sessionCard]) one.data(answer, ABSENT);
    const costs = all ?? brief;
    if (!costs) return;
    currency = costs.currency;
    // Sums are those of this second; the trend is the detail's, which has the whole hour.
    drawTiles({ ...costs, ...(brief ? { spent: brief.spent, saved: brief.saved, per_1000_requests: brief.per_1000_requests, projection: brief.projection } : {}) });
    if (!all) return;
    for (const one of [ruleCard, armCard, sessionCard]) one.note(`In ${currency}, since the start.`);
    const priced = costs.spent > 0 || costs.saved > 0;
    trendCard.note(priced ? 'Per minute, the last 60 minutes.' : 'Nothing has a price yet: set costs.per_million_requests, costs.per_gib, or cost_per_miss of a rule.');
    trend.update({
      end: Date.parse(all.trend.end) || page.now(), step: all.trend.step_ms,
      series: [{ name: 'saved', mark: 'saved', values: all.trend.saved }, { name: 'spent', mark: 'spent', values: all.trend.spent }],
    });
    rules.update(all.rules.items.map((r) => ({
      name: r.rule, texts: [plain(r.saved), plain(r.spent)], exact: `saved ${format.exact(r.saved)}, spent ${format.exact(r.spent)}, ${format.exact(r.requests)} requests`,
      parts: [{ value: r.saved, mark: 'saved', name: `saved ${money(r.saved)}` }, { value: r.spent, mark: 'spent', name: `spent ${money(r.spent)}` }],
    })));
    arms.update(all.arms.items, all.arms.total);
    sessions.update(all.sessions.items, all.sessions.total);
    const p = all.projection;
    setText(projected, p ? `${money(p.monthly_saved)} saved and ${money(p.monthly_spent)} spent a month` : 'No projection yet');
    setText(projectedNote, p ? `If it goes on as in the last ${format.exact(p.basis_minutes)} minutes.` : 'It needs some complete minutes.');
    assumptions.replaceChildren(...all.assumptions.map((text) => el('li', {}, text)));
  }

  return { root, needs: () => [COSTS, KEYS], draw };
}
