// System: the process itself, the link to upstream, who is connected, and what has happened.

import { lines } from '../charts.js';
import { el } from '../dom.js';
import * as format from '../format.js';
import { card, facts, grid, heading, table, tile, tiles } from '../parts.js';

const HEALTH = '/api/v1/dashboard/health';
const RUNS = '/api/v1/dashboard/runs';
const EVENTS = '/api/v1/events/recent';
const KEYS = '/api/v1/keys?by=hits&n=20';
const METRICS = '/metrics';

// The API has the last 128; this many are looked at here.
const SLOW_MAX = 12;

const TONES = { healthy: 'tone-good', degraded: 'tone-warn', critical: 'tone-bad' };

export function create(page) {
  const up = tile('Uptime', 'Since the process started', 'health.uptime_ms');
  const memory = tile('Memory', 'Resident memory of the process', 'health.rss_bytes');
  const cpu = tile('CPU', 'Share of one core over the last second', 'health.cpu_share');
  const upstream = tile('Upstream', 'As the circuit breaker sees it', 'upstream.state');
  const coherence = tile('Coherence', 'How changes upstream are learnt of', 'coherence_mode');
  const errors = tile('Error rate', 'Of the last minute', 'error_rate');
  const clients = tile('Sessions', 'Connections of clients', 'runs.active');
  const queue = tile('Write queue', 'Writes that wait for upstream', 'queue_depth');

  const memoryChart = lines({ label: 'Resident memory', format: format.bytes });
  const cpuChart = lines({ label: 'CPU, share of one core', format: format.share });
  const errorChart = lines({ label: 'Error rate', format: format.share });
  const bytesChart = lines({ label: 'Bytes per second', format: format.bytes });
  const checks = table({
    label: 'Health checks', none: 'No checks.',
    columns: [
      { key: 'status', name: 'Status', of: (c) => ({ text: c.status, mark: TONES[c.status] ?? '' }) },
      { key: 'name', name: 'Check', of: (c) => format.words(c.name) },
      { key: 'value', name: 'Value', num: true, of: (c) => ({ text: format.inUnit(c.value, c.unit), title: String(c.value) }) },
      { key: 'threshold', name: 'Threshold', num: true, of: (c) => format.inUnit(c.threshold, c.unit) },
      { key: 'since', name: 'Since', num: true, of: (c) => ({ text: format.ago(c.since, page.now()), title: c.since }) },
      { key: 'message', name: 'What it says', of: (c) => ({ text: c.message, title: c.message, mark: 'long' }) },
    ],
  });
  const checkCard = card('Health checks', { size: 'full' }, checks.root);
  const pool = facts('Upstream');
  const link = facts('Coherence');
  const poolCard = card('Upstream and its connections', {}, pool.root);
  const linkCard = card('Coherence and lag', {}, link.root);
  const runs = table({
    label: 'Sessions', none: 'No client has connected yet.',
    columns: [
      { key: 'id', name: 'Id', of: (r) => r.id },
      { key: 'name', name: 'Client', of: (r) => ({ text: r.name ?? r.addr, title: `${r.name ?? ''} ${r.addr}`.trim() }) },
      { key: 'user', name: 'User', of: (r) => ({ text: r.user, title: r.user }) },
      { key: 'state', name: 'State', of: (r) => (r.ended === null ? { text: 'open', mark: 'tone-good' } : { text: format.words(r.end), title: r.ended, mark: r.failed ? 'tone-bad' : '' }) },
      { key: 'started', name: 'Started', num: true, of: (r) => ({ text: format.ago(r.started, page.now()), title: r.started }) },
      { key: 'duration', name: 'Duration', num: true, of: (r) => ({ text: format.ms(r.duration_ms), title: `${format.exact(r.duration_ms)} ms` }) },
      ...[['commands', 'Commands'], ['hits', 'Hits'], ['misses', 'Misses'], ['errors', 'Errors']].map(([key, name]) => ({ key, name, num: true, of: (r) => ({ text: format.count(r[key]), title: format.exact(r[key]) }) })),
      ...[['bytes_in', 'In'], ['bytes_out', 'Out']].map(([key, name]) => ({ key, name, num: true, of: (r) => ({ text: format.bytes(r[key]), title: format.exact(r[key]) }) })),
    ],
  });
  const runCard = card('Sessions', { size: 'full' }, runs.root);
  const slow = table({
    label: 'Slow commands', none: 'No command has been slow.',
    columns: [
      { key: 'at', name: 'When', of: (s) => ({ text: format.ago(s.at, page.now()), title: s.at }) },
      { key: 'duration', name: 'Took', num: true, of: (s) => ({ text: format.ms(s.duration_ms), title: `${format.exact(s.duration_ms)} ms` }) },
      { key: 'command', name: 'Command', of: (s) => ({ text: s.command, mark: 'mono' }) },
      { key: 'pattern', name: 'Pattern', of: (s) => ({ text: s.pattern, title: s.pattern, mark: 'short' }) },
      { key: 'class', name: 'Class', of: (s) => format.words(s.class) },
    ],
  });
  const slowCard = card('Slow log', {}, slow.root);
  const events = table({
    label: 'Recent events', none: 'Nothing has changed since the start.',
    columns: [
      { key: 'at', name: 'When', of: (e) => ({ text: format.ago(e.at, page.now()), title: e.at }) },
      { key: 'kind', name: 'Kind', of: (e) => format.words(e.kind) },
      { key: 'message', name: 'What', of: (e) => ({ text: e.message, title: [e.message, ...Object.entries(e.detail ?? {}).map(([name, value]) => `${name}: ${value}`)].join('\n'), mark: 'long' }) },
      { key: 'actor', name: 'By', of: (e) => ({ text: e.actor, title: e.actor }) },
    ],
  });
  const eventCard = card('Recent events', { size: 'wide' }, events.root);

  const root = el('div', {}, heading('System'), tiles(up, memory, cpu, upstream, coherence, errors, clients, queue),
    grid(
      card('Memory', {}, memoryChart.root), card('CPU', {}, cpuChart.root), card('Error rate', {}, errorChart.root),
      poolCard, linkCard, card('Bytes per second', {}, bytesChart.root),
      checkCard, runCard, eventCard, slowCard,
    ));

  function drawTiles(snapshot, past) {
    const { health, cache, metrics, runs: seen } = snapshot;
    const newest = (name) => past.values(name).at(-1) ?? null;
    up.update({ value: format.ms(health?.uptime_ms ?? null), sub: health ? `${health.status} for ${format.ago(health.since, page.now()).replace(' ago', '')}` : 'not told by this version' });
    const rss = health?.rss_bytes ?? newest('rss_bytes');
    memory.update({ value: format.bytes(rss), title: `${format.exact(rss)} bytes`, sub: `${format.bytes(cache.bytes)} of it entries`, series: past.values('rss_bytes'), mark: 'memory' });
    const share = health?.cpu_share ?? newest('cpu_share');
    cpu.update({ value: format.share(share), sub: 'of one core', series: past.values('cpu_share'), mark: 'c5' });
    const behind = cache.upstream;
    upstream.update({
      value: behind.backend !== 'upstream' ? behind.backend : behind.up ? 'up' : 'down', tone: behind.up ? '' : 'bad',
      sub: [behind.server, behind.version].filter(Boolean).join(' ') + (behind.backend === 'upstream' ? ` · breaker ${format.words(behind.state)}` : ''),
    });
    coherence.update({ value: cache.coherence_mode, tone: cache.coherence_mode === 'tracking' || behind.backend !== 'upstream' ? '' : 'warn', sub: `mode ${cache.mode}` });
    const minute = metrics.windows['1m'];
    errors.update({ value: format.share(minute.error_rate), sub: `${format.count(metrics.errors)} since start`, series: past.ratio('errors', 'requests'), mark: 'error', tone: minute.error_rate > 0.05 ? 'bad' : '' });
    clients.update({ value: format.count(seen.active), sub: `${format.count(seen.total)} since start · ${format.count(seen.failed)} failed`, series: past.values('clients'), mark: 'all' });
    queue.update({ value: format.count(newest('queue_depth')), sub: newest('queue_depth') === null ? 'there is none' : 'writes', series: past.values('queue_depth'), mark: 'c4' });
  }

  function drawLinks(all) {
    const sum = (name, labels = {}) => (all.get(name) ?? []).filter((s) => Object.entries(labels).every(([k, v]) => s.labels[k] === v)).reduce((total, s) => total + s.value, 0);
    const has = (name) => all.has(name);
    const state = (name) => (all.get(name) ?? []).filter((s) => s.value > 0).map((s) => format.words(s.labels.state ?? s.labels.mode)).join(', ') || format.NONE;
    const number = (name) => (has(name) ? format.count(sum(name)) : format.NONE);
    const time = (name) => (has(name) ? format.ms(sum(name) * 1000) : format.NONE);
    pool.update([
      ['Up', has('nearside_upstream_up') ? (sum('nearside_upstream_up') > 0 ? 'yes' : 'no') : format.NONE],
      ['Breaker', state('nearside_upstream_state')],
      ['In flight', number('nearside_upstream_in_flight'), 'Commands sent and not answered'],
      ['Pinned connections', number('nearside_pinned_connections'), 'Connections of the pool that are open'],
      ['Pinned since start', number('nearside_pinned_total'), 'Times a session needed a connection of its own'],
      ['Reconnects', number('nearside_upstream_reconnects_total')],
      ['Held up', number('nearside_lanes_held_up_total'), 'Times the shared connection did not answer in time'],
      ['Mean duration', mean(all, 'nearside_upstream_duration_seconds')],
    ]);
    link.update([
      ['Mode', state('nearside_coherence_mode')],
      ['Link', state('nearside_link_state')],
      ['Channel', state('nearside_channel_state'), 'The sidecars’ own channel'],
      ['Proved', has('nearside_lease_age_seconds') ? `${time('nearside_lease_age_seconds')} ago` : format.NONE, 'Age of the last proof that nothing was missed'],
      ['Lag, mean', mean(all, 'nearside_invalidation_lag_seconds'), 'From a write to its invalidation, as probes measured it'],
      ['Lag, p99', quantile(all, 'nearside_invalidation_lag_seconds', 0.99)],
      ['Pending writes', number('nearside_pending_writes'), 'Writes of ours that are on their way'],
    ]);
  }

  function draw({ snapshot }) {
    const past = page.history();
    drawTiles(snapshot, past);
    memoryChart.update(past.axis([{ name: 'resident', mark: 'memory', values: past.values('rss_bytes') }, { name: 'entries', mark: 'hit', values: past.values('l1_bytes') }]));
    cpuChart.update(past.axis([{ name: 'CPU', mark: 'c5', values: past.values('cpu_share') }]));
    errorChart.update(past.axis([{ name: 'errors', mark: 'error', values: past.ratio('errors', 'requests') }]));
    bytesChart.update(past.axis([{ name: 'to clients', mark: 'hit', values: past.perSecond('bytes_client_out') }, { name: 'from upstream', mark: 'upstream', values: past.perSecond('bytes_upstream_in') }]));
    const health = checkCard.data(snapshot.health ? { data: snapshot.health } : page.answer(HEALTH), 'Checks are not told by this version.');
    if (health) checks.update(health.checks);
    const metrics = poolCard.data(page.answer(METRICS));
    linkCard.data(page.answer(METRICS));
    if (metrics) drawLinks(metrics);
    const sessions = runCard.data(page.answer(RUNS));
    if (sessions) runs.update(sessions.recent.items, sessions.recent.total);
    const hot = slowCard.data(page.answer(KEYS), 'Slow commands are not kept by this version.');
    if (hot) {
      const { threshold_ms: from, total, items } = hot.slow_log;
      slowCard.note(from === null ? 'The slow log is off.' : `Commands that took longer than ${format.ms(from)}.`);
      slow.update(items.slice(0, SLOW_MAX), total);
    }
    const happened = eventCard.data(page.answer(EVENTS));
    if (happened) events.update(happened.events, happened.total);
  }

  return { root, needs: () => [METRICS, RUNS, EVENTS, KEYS, ...(page.snapshot?.health ? [] : [HEALTH])], draw };
}

function mean(all, name) {
  const of = (suffix) => (all.get(`${name}_${suffix}`) ?? []).reduce((total, s) => total + s.value, 0);
  return of('count') > 0 ? format.ms((of('sum') / of('count')) * 1000) : format.NONE;
}

// The bucket's end that the quantile lies in, as Prometheus would say at most.
function quantile(all, name, q) {
  const found = new Map();
  for (const { labels, value } of all.get(`${name}_bucket`) ?? []) {
    const end = labels.le === '+Inf' ? Infinity : Number(labels.le);
    found.set(end, (found.get(end) ?? 0) + value);
  }
  const ends = [...found].sort((a, b) => a[0] - b[0]);
  const count = ends.at(-1)?.[1] ?? 0;
  if (count === 0) return format.NONE;
  const [end] = ends.find(([, below]) => below >= q * count);
  return end === Infinity ? 'above the largest bucket' : `≤ ${format.ms(end * 1000)}`;
}
