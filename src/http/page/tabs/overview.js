// Overview: is it well, what does it do, what does it save.

import { columns, lines, ring } from '../charts.js';
import { el } from '../dom.js';
import * as format from '../format.js';
import { card, grid, heading, table, tile, tiles } from '../parts.js';

// One colour for each kind of command, everywhere the same.
const MIX = { get: 'hit', mget: 'c1', set: 'c2', del: 'c3', publish: 'c4', read_other: 'c5', write_other: 'c6', connection: 'c7', admin: 'c8', nearside: 'c9', other: 'rest' };

const bound = (le) => (le === null ? 'longer' : `≤ ${format.ms(le)}`);

export function create(page) {
  const rate = tile('Hit rate', 'Keys answered from the cache, of all keys of cached commands that were asked for', 'hit_rate');
  const requests = tile('Requests', 'Commands of clients, over the last 10 seconds', 'requests_per_second');
  const saved = tile('Upstream requests saved', 'Answered from the cache, or by a fetch that was under way, since the start', 'upstream_requests_saved');
  const hit = tile('Hit latency', 'From the request being read to its reply being ready, over the last minute', 'hit');
  const upstream = tile('Upstream latency', 'From sending a command to its reply, over the last minute', 'upstream');
  const errors = tile('Errors', 'Replies that were errors, whoever’s they are', 'errors');
  const clients = tile('Active clients', 'Connections of clients that are open', 'clients');
  const sessions = tile('Session success', 'Of the connections that are over, those that ended without an error', 'success_rate');

  const traffic = lines({ label: 'Requests per second', format: format.rate });
  const latency = lines({ label: 'Latency, 99th percentile', format: format.ms, log: true });
  const hits = lines({ label: 'Hit rate', format: format.share, max: 1 });
  const mix = ring({ label: 'Commands by kind', none: 'No command has come yet. Point a client at the address that Nearside listens on.' });
  const histogram = columns({ label: 'Session durations', unit: 'sessions', none: 'No session is over yet: connections are counted here when they end.' });
  const facts = el('p', { class: 'note' });
  const alerts = table({
    label: 'Alerts',
    none: 'No alert has been raised.',
    columns: [
      { key: 'state', name: 'State', of: (a) => ({ text: a.state, mark: a.state !== 'firing' ? 'tone-good' : a.severity === 'critical' ? 'tone-bad' : 'tone-warn' }) },
      { key: 'name', name: 'Alert', of: (a) => format.words(a.name) },
      { key: 'message', name: 'What', of: (a) => ({ text: a.message, title: a.message, mark: 'long' }) },
      { key: 'value', name: 'Value', num: true, of: (a) => format.inUnit(a.value, a.unit) },
      { key: 'threshold', name: 'Threshold', num: true, of: (a) => format.inUnit(a.threshold, a.unit) },
      { key: 'since', name: 'Since', num: true, of: (a) => ({ text: format.ago(a.since, page.now()), title: a.since }) },
    ],
  });

  const alertCard = card('Alerts', { size: 'full' }, alerts.root);
  const root = el('div', {}, heading('Overview'),
    tiles(rate, requests, saved, hit, upstream, errors, clients, sessions),
    grid(
      card('Requests per second', { size: 'wide' }, traffic.root),
      card('Commands by kind', {}, mix.root),
      card('Hit rate', {}, hits.root),
      card('Latency, 99th percentile', {}, latency.root),
      card('Session durations', {}, histogram.root, facts),
      alertCard,
    ));

  function draw({ snapshot }) {
    const { metrics, runs } = snapshot;
    const past = page.history();
    const minute = metrics.windows['1m'];
    rate.update({
      value: format.share(minute.hit_rate), title: `${format.exact(minute.hits)} hits, ${format.exact(minute.misses)} misses in the last minute`,
      sub: `last minute · ${format.share(metrics.hit_rate)} since start`,
      series: past.share('hits', 'misses'), mark: 'hit', top: 1,
    });
    requests.update({
      value: `${format.rate(metrics.requests_per_second)}/s`, title: `${format.exact(metrics.requests_per_second)} a second`,
      sub: `${format.count(metrics.operations.total)} since start`,
      series: past.perSecond('requests'), mark: 'all',
    });
    const of = metrics.operations.total > 0 ? metrics.upstream_requests_saved / metrics.operations.total : null;
    saved.update({
      value: format.count(metrics.upstream_requests_saved), title: format.exact(metrics.upstream_requests_saved),
      sub: `${format.share(of)} of all requests`,
      series: past.perSecond('hits'), mark: 'saved',
    });
    for (const [shown, q, name] of [[hit, minute.durations.hit, 'hit'], [upstream, minute.durations.upstream, 'upstream']]) {
      shown.update({
        value: format.ms(q.p50_ms), title: `median of ${format.exact(q.count)}: ${format.exact(q.p50_ms)} ms`,
        sub: `median · p95 ${format.ms(q.p95_ms)} · p99 ${format.ms(q.p99_ms)}`,
        series: past.values(`p99_${name}_ms`), mark: name === 'hit' ? 'hit' : 'upstream',
      });
    }
    errors.update({
      value: format.share(minute.error_rate), title: `${format.exact(minute.errors)} of ${format.exact(minute.requests)} in the last minute`,
      sub: `${format.count(metrics.errors)} since start`, tone: minute.error_rate > 0.05 ? 'bad' : '',
      series: past.ratio('errors', 'requests'), mark: 'error',
    });
    clients.update({
      value: format.count(runs.active), sub: `${format.count(runs.total)} since start`,
      series: past.values('clients'), mark: 'all',
    });
    sessions.update({
      value: format.share(runs.success_rate), title: `${format.exact(runs.completed)} completed, ${format.exact(runs.failed)} failed`,
      sub: `${format.count(runs.completed)} completed · ${format.count(runs.failed)} failed`, tone: runs.success_rate !== null && runs.success_rate < 0.95 ? 'warn' : '',
    });
    traffic.update(past.axis([
      { name: 'all', mark: 'all', values: past.perSecond('requests') },
      { name: 'hits', mark: 'hit', values: past.perSecond('hits') },
      { name: 'misses', mark: 'miss', values: past.perSecond('misses') },
      { name: 'upstream', mark: 'upstream', values: past.perSecond('upstream_requests') },
    ]));
    hits.update(past.axis([{ name: 'hit rate', mark: 'hit', values: past.share('hits', 'misses') }]));
    latency.update(past.axis([
      { name: 'hit', mark: 'hit', values: past.values('p99_hit_ms') },
      { name: 'upstream', mark: 'upstream', values: past.values('p99_upstream_ms') },
    ]));
    const { total: _, ...kinds } = metrics.operations;
    mix.update(Object.entries(kinds).map(([name, value]) => ({ name: format.words(name), value, mark: MIX[name] ?? 'rest' })));
    histogram.update(runs.duration_histogram.map(({ le_ms: le, count }) => ({ name: bound(le), value: count })), 'all');
    const d = runs.durations;
    facts.textContent = d.count > 0
      ? `average ${format.ms(d.avg_ms)} · median ${format.ms(d.median_ms)} · p95 ${format.ms(d.p95_ms)} · p99 ${format.ms(d.p99_ms)}` : '';
    const list = alertCard.data(snapshot.alerts ? { data: snapshot.alerts } : { missing: true }, 'Alerts are not told by this version.');
    if (list) {
      alertCard.note(`${list.active} active`);
      alerts.update(list.items, list.total);
    }
  }

  return { root, needs: () => [], draw };
}
