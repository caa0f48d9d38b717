// Policy: who was allowed what, what went past the cache and why, and how the arms of rollouts compare.

import { bars, columns, intervals, lines, ring } from '../charts.js';
import { el } from '../dom.js';
import * as format from '../format.js';
import { card, grid, heading, table, tile, tiles } from '../parts.js';

const POLICY = '/api/v1/dashboard/policy';
const METRICS = '/api/v1/dashboard/metrics';
const EXPERIMENTS = '/api/v1/experiments';

const KINDS = { read: 'hit', write: 'c2', execute: 'c4', admin: 'error' };

export function create(page) {
  const checks = tile('Checks', 'Commands that the policy was asked about, since the start', 'policy.checks');
  const allowed = tile('Allowed', 'Of all checks', 'policy.allow_rate');
  const denied = tile('Denied', 'Answered with an error', 'policy.denied');
  const logged = tile('Logged only', 'Would have been denied, were commands.enforce on', 'policy.logged');
  const waited = tile('Held back', 'Commands that a rate limit made wait', 'policy.waited');
  const refused = tile('Over the limit', 'Commands that a rate limit answered with an error', 'policy.refused');

  const over = lines({ label: 'Decisions per second', format: format.rate });
  const overCard = card('Allowed and denied over time', { size: 'wide' }, over.root);
  const kinds = ring({ label: 'Decisions by kind of command', none: 'The policy is asked once commands.deny, allow, overrides or rate say something.' });
  const byKind = table({
    label: 'Decisions by kind', none: 'Nothing decided yet.',
    columns: [
      { key: 'kind', name: 'Kind', of: (k) => k.kind },
      ...['checks', 'allowed', 'denied', 'logged'].map((of) => ({ key: of, name: of[0].toUpperCase() + of.slice(1), num: true, of: (k) => ({ text: format.count(k[of]), title: format.exact(k[of]) }) })),
    ],
  });
  const top = bars({ label: 'Commands denied most', none: 'No command has been denied.' });
  const recent = table({
    label: 'Recent denials', none: 'No command has been denied.',
    columns: [
      { key: 'at', name: 'When', of: (d) => ({ text: format.ago(d.at, page.now()), title: d.at }) },
      { key: 'command', name: 'Command', of: (d) => ({ text: d.command, mark: 'mono' }) },
      { key: 'action', name: 'Kind', of: (d) => d.action },
      { key: 'why', name: 'Why', of: (d) => ({ text: format.words(d.why), title: d.why }) },
      { key: 'client', name: 'Client', of: (d) => ({ text: d.client, title: d.client }) },
    ],
  });
  const recentCard = card('Recent denials', { size: 'wide', note: 'Without arguments, which are never kept.' }, recent.root);
  const sizes = columns({ label: 'Reply sizes', unit: '', none: 'No reply has been sent yet.' });
  const sizeCard = card('Reply sizes', { note: 'Single replies to clients, since the start.' }, sizes.root);
  const bypass = bars({ label: 'Reads past the cache, by reason', none: 'No read has gone past the cache.' });
  const bypassCard = card('Reads past the cache', { size: 'wider' }, bypass.root);
  const arms = el('div', { class: 'arms' });
  const armCard = card('Rollout arms', { size: 'full' }, arms);

  const root = el('div', {}, heading('Policy'),
    tiles(checks, allowed, denied, logged, waited, refused),
    grid(overCard, card('Decisions by kind', {}, kinds.root, byKind.root),
      card('Denied most', {}, top.root), recentCard,
      sizeCard, bypassCard, armCard));

  const made = new Map();
  function drawArms(data) {
    const names = new Set();
    const nodes = data.experiments.map((one) => {
      names.add(one.rule);
      if (!made.has(one.rule)) made.set(one.rule, experiment());
      made.get(one.rule).update(one);
      return made.get(one.rule).root;
    });
    for (const name of made.keys()) if (!names.has(name)) made.delete(name);
    if (nodes.length === 0) nodes.push(arms.querySelector('.empty') ?? el('p', { class: 'empty' }, 'No rule has a rollout, a ramp or variants. A rule with rollout: 10 caches a tenth of its keys, and both arms are compared here.'));
    if (nodes.length !== arms.children.length || nodes.some((node, i) => node !== arms.children[i])) arms.replaceChildren(...nodes);
  }

  function draw({ snapshot }) {
    const { policy } = snapshot;
    const past = page.history();
    const note = { off: 'The policy is off: nothing is asked.', log: 'Nothing is denied: commands.enforce is off.' }[policy.mode] ?? '';
    checks.update({ value: format.count(policy.checks), title: format.exact(policy.checks), sub: `mode ${policy.mode}` });
    allowed.update({ value: format.share(policy.allow_rate), title: format.exact(policy.allowed), sub: `${format.count(policy.allowed)} allowed`, series: past.perSecond('allowed'), mark: 'hit' });
    denied.update({ value: format.count(policy.denied), title: format.exact(policy.denied), sub: `${policy.denied_commands} different commands`, tone: policy.denied > 0 ? 'warn' : '', series: past.perSecond('denied'), mark: 'error' });
    logged.update({ value: format.count(policy.logged), title: format.exact(policy.logged), sub: 'not enforced' });
    waited.update({ value: format.count(policy.rate.waited), sub: `${format.ms(policy.rate.waited_ms)} together` });
    refused.update({ value: format.count(policy.rate.refused), sub: 'answered with an error' });
    overCard.note(note);
    over.update(past.axis([
      { name: 'allowed', mark: 'hit', values: past.perSecond('allowed') },
      { name: 'denied', mark: 'error', values: past.perSecond('denied') },
    ]));
    const all = Object.entries(policy.breakdown);
    kinds.update(all.map(([name, counts]) => ({ name, value: counts.checks, mark: KINDS[name] ?? 'rest' })));
    byKind.update(all.map(([kind, counts]) => ({ kind, ...counts })));
    top.update(policy.top_denied.map(({ command, denied: no, logged: only }) => ({
      name: command,
      parts: [{ value: no, mark: 'error', name: `denied ${format.exact(no)}` }, { value: only, mark: 'miss', name: `logged ${format.exact(only)}` }],
      text: format.count(no + only),
    })));
    const detail = recentCard.data(page.answer(POLICY));
    if (detail?.recent) recent.update(detail.recent.items, detail.recent.total);
    const counted = sizeCard.data(page.answer(POLICY))?.reply_sizes;
    if (counted) sizes.update(counted.map(({ le_bytes: le, count }) => ({ name: le === null ? 'more' : `≤ ${format.bytes(le)}`, value: count })), 'upstream');
    const numbers = bypassCard.data(page.answer(METRICS));
    if (numbers?.bypass) {
      const some = Object.entries(numbers.bypass).filter(([, value]) => value > 0).sort((a, b) => b[1] - a[1]);
      bypass.update(some.map(([name, value]) => ({ name: format.words(name), parts: [{ value, mark: 'miss' }], text: format.count(value), exact: format.exact(value) })));
    }
    const experiments = armCard.data(page.answer(EXPERIMENTS));
    if (experiments) drawArms(experiments);
  }

  return { root, needs: () => [POLICY, METRICS, EXPERIMENTS], draw };
}

// One rule's arms: median latency, hit rate and error rate over the last 15 minutes, each with the interval that holds the
// truth in 95 of 100 cases.
function experiment() {
  const name = el('h4');
  const state = el('span', { class: 'chip' });
  const why = el('p', { class: 'note' });
  const FIGURES = [['p50_ms', 'Median latency', format.ms], ['p99_ms', '99th percentile', format.ms], ['hit_rate', 'Hit rate', format.share], ['error_rate', 'Error rate', format.share]];
  const drawn = FIGURES.map(([key, title, form]) => ({ key, title, form, chart: intervals({ label: title, none: 'Not enough requests yet.' }) }));
  const root = el('article', { class: 'experiment' }, el('div', { class: 'candidate-head' }, name, state), why,
    el('div', { class: 'quarters' }, ...drawn.map(({ title, chart }) => el('div', {}, el('h5', {}, title), chart.root))));

  function update(one) {
    name.textContent = one.rule;
    state.textContent = `${format.words(one.state)} · ${format.share(one.share)} cached`;
    state.className = `chip ${one.state === 'rolled_back' ? 'bad' : ''}`;
    const shown = one.arms.map(({ arm, windows }) => `${arm}: ${format.count(windows['15m'].requests)} requests`).join(' · ');
    why.textContent = `${one.rolled_back_because ? `${one.rolled_back_because.message}. ` : ''}Last 15 minutes, intervals of 95 %: ${shown}`;
    for (const { key, form, chart } of drawn) {
      const known = one.arms.filter(({ windows }) => windows['15m'][key] !== null);
      chart.update(known.map(({ arm, cached, windows }) => {
        const { value, low, high } = windows['15m'][key];
        return { name: arm, value, low, high, mark: cached ? 'hit' : 'upstream', text: form(value), between: high === null ? `(${form(low)} or more)` : `(${form(low)} to ${form(high)})` };
      }));
    }
  }

  return { root, update };
}
