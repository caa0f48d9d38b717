//! The one table of all metric families: name, type, help, labels, and where the numbers come from. Runs when somebody
//! scrapes, on the side port's thread; counts nothing itself. Tests hold README against `families()`.

use prometheus::TextEncoder;
use prometheus::proto;

use super::View;
use super::costs::Money;
use super::counters::{Histogram, Labeled};
use super::patterns::Row;
use super::reasons::{
    Action, Again, BreakerState, ChannelState, Coherence, Decision, Health, JournalState, Link, Method, Mode, Peer,
    Timed,
};
use super::sizes::Counted;
use super::{clock, process};

/// `impl` of everything the L1 itself counts.
const L1: &str = "l1";

/// `impl` of what it would have counted had it served what is only observed.
const OBSERVE: &str = "observe";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Counter,
    Gauge,
    Histogram,
}

pub(crate) struct Family {
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    pub(crate) help: &'static str,
    pub(crate) labels: &'static [&'static str],
    read: fn(&View, &mut Series),
}

#[cfg(test)]
pub(crate) fn families() -> &'static [Family] {
    FAMILIES
}

/// The whole scrape in Prometheus's text format 0.0.4.
pub(crate) fn render(view: &View) -> prometheus::Result<String> {
    let families: Vec<_> = FAMILIES.iter().map(|family| family.collect(view)).collect();
    TextEncoder::new().encode_to_string(&families)
}

macro_rules! family {
    ($kind:ident $name:literal [$($label:literal),*] $help:literal, $read:expr) => {
        Family { name: $name, kind: Kind::$kind, help: $help, labels: &[$($label),*], read: $read }
    };
}

const FAMILIES: &[Family] = &[
    family!(Counter "cache_hits_total" ["impl", "key_pattern"] "Keys answered from the local cache.",
        hits),
    family!(Counter "cache_miss_total" ["impl", "key_pattern"] "Keys of cached commands that the local cache did not have.",
        misses),
    family!(Counter "cache_set_total" ["impl", "key_pattern"] "Entries stored in the local cache.",
        |v, out| by_pattern(v, out, |row| row.sets.get())),
    family!(Counter "cache_del_total" ["impl", "key_pattern"] "Entries removed from the local cache for any cause but replacement.",
        |v, out| by_pattern(v, out, |row| row.dels.get())),
    family!(Counter "cache_errors_total" ["impl", "error_type"] "Commands of the cache's that failed, by kind of failure.",
        |v, out| by_word_l1(out, &v.metrics.errors)),
    family!(Counter "cache_invalidate_total" ["impl", "tag"] "Invalidations applied to the local cache, by what they named.",
        invalidated),
    family!(Gauge "cache_enabled" ["impl"] "1 while the local cache answers reads; the label says what it does instead.",
        enabled),
    family!(Counter "cache_candidate_requests" ["route", "method"] "Requests that could be answered from the cache and are not, because no rule, mode or list of commands asks for it.",
        candidates),
    family!(Counter "nearside_bypass_total" ["reason"] "Reads of cacheable commands that were not looked up in the local cache.",
        |v, out| by_word(out, &v.metrics.bypass)),
    family!(Counter "nearside_fills_discarded_total" ["reason"] "Replies that were not stored although they had been asked for to be stored.",
        |v, out| by_word(out, &v.metrics.discarded)),
    family!(Counter "nearside_invalidations_total" ["source"] "Keys and flushes that invalidated, by where they came from.",
        |v, out| by_word(out, &v.metrics.invalidations)),
    family!(Counter "nearside_evictions_total" ["cause"] "Entries that left the local cache.",
        |v, out| by_word(out, &v.metrics.evictions)),
    family!(Counter "nearside_flushes_total" ["reason"] "Times the whole local cache was dropped.",
        |v, out| by_word(out, &v.metrics.flushes)),
    family!(Counter "nearside_rollout_changes_total" ["change"] "Times the share of a rule's keys that is cached changed by itself.",
        |v, out| by_word(out, &v.metrics.rollout)),
    family!(Gauge "nearside_l1_entries" [] "Entries in the local cache.",
        |v, out| out.push(&[], v.metrics.entries.get() as f64)),
    family!(Gauge "nearside_l1_bytes" [] "Bytes in the local cache, overhead included.",
        |v, out| out.push(&[], v.metrics.bytes.get() as f64)),
    family!(Gauge "nearside_l1_max_bytes" [] "What the local cache may take (cache.max_bytes).",
        |v, out| out.push(&[], v.metrics.max_bytes.get() as f64)),
    family!(Counter "nearside_coalesced_total" [] "Misses that joined a fetch of the same key under way.",
        |v, out| out.push(&[], v.metrics.coalesced.get() as f64)),
    family!(Counter "nearside_updates_total" [] "Writes that refreshed the local cache.",
        |v, out| out.push(&[], v.metrics.updates.get() as f64)),
    family!(Gauge "nearside_pending_writes" [] "Writes sent upstream and not answered yet.",
        |v, out| out.push(&[], v.metrics.pending.get() as f64)),
    family!(Counter "nearside_refreshes_total" ["cause", "result"] "Hits on entries near or past the end of their ttl, by what became of reading them again.",
        rereads),
    family!(Counter "nearside_touches_total" ["result"] "Keys hit here of which upstream was to be told by TOUCH.",
        |v, out| by_word(out, &v.metrics.touches)),
    family!(Counter "nearside_warmed_keys_total" ["result"] "Keys that were to be loaded at start.",
        |v, out| by_word(out, &v.metrics.warmed)),
    family!(Gauge "nearside_coherence_mode" ["mode"] "1 for what keeps the local cache coherent now, 0 for the others.",
        |v, out| one_of(out, Coherence::WORDS, v.status.coherence().as_str())),
    family!(Gauge "nearside_link_up" [] "1 while every lane's invalidation link is live and there is one.",
        link_up),
    family!(Gauge "nearside_link_state" ["state"] "Lanes by the state of their link.",
        link_state),
    family!(Gauge "nearside_lease_age_seconds" [] "Age of the oldest lane's last proof of coherence; 0 before the first.",
        lease_age),
    family!(Histogram "nearside_invalidation_lag_seconds" [] "From a canary's write on another connection to its invalidation applied here.",
        |v, out| out.push_histogram(&[], &v.metrics.lag)),
    family!(Gauge "nearside_lane_epoch" [] "The newest lane's epoch: it grows whenever a lane is lost.",
        |v, out| out.push(&[], v.status.lanes().iter().map(|lane| lane.epoch()).max().unwrap_or(0) as f64)),
    family!(Gauge "nearside_channel_state" ["state"] "1 for the state of the subscription to the sidecars' channel, 0 for the others.",
        |v, out| one_of(out, ChannelState::WORDS, v.status.channel.state().as_str())),
    family!(Counter "nearside_channel_malformed_total" [] "Messages on the sidecars' channel that were not understood and had no effect.",
        |v, out| out.push(&[], v.metrics.malformed.get() as f64)),
    family!(Counter "nearside_audit_checked_total" [] "Entries compared with upstream in service (coherence.sample_per_second).",
        |v, out| out.push(&[], v.metrics.audit_checked.get() as f64)),
    family!(Counter "nearside_audit_stale_total" [] "Of those, entries that differed although nothing had invalidated them.",
        |v, out| out.push(&[], v.metrics.audit_stale.get() as f64)),
    family!(Gauge "nearside_audit_age_seconds" [] "Age of the entry that was compared last.",
        |v, out| out.push(&[], v.metrics.audit_age.get() as f64 / 1e9)),
    family!(Histogram "nearside_request_duration_seconds" ["class", "result"] "From a request read to its reply ready to be written.",
        requests),
    family!(Counter "nearside_slow_commands_total" ["class"] "Commands over the lane that took longer than observe.slow_log.",
        |v, out| by_word(out, v.metrics.slow.counts())),
    family!(Counter "nearside_commands_total" ["kind"] "Commands of clients.",
        |v, out| by_word(out, &v.metrics.commands)),
    family!(Counter "nearside_policy_decisions_total" ["decision", "kind"] "Commands that the command policy judged, by what they do.",
        decisions),
    family!(Counter "nearside_rate_limited_total" ["action"] "Commands that a rate limit held back or refused.",
        |v, out| by_word(out, &v.metrics.policy.limited)),
    family!(Counter "nearside_rate_waited_seconds_total" [] "Time that clients have waited for a rate limit, all of them added up.",
        |v, out| out.push(&[], v.metrics.policy.waited.get() as f64 / 1e9)),
    family!(Histogram "nearside_upstream_duration_seconds" [] "From a command sent upstream to its reply.",
        |v, out| out.push_histogram(&[], &v.metrics.upstream)),
    family!(Gauge "nearside_upstream_up" [] "1 while upstream answers.",
        |v, out| out.push(&[], f64::from(v.status.upstream_up()))),
    family!(Gauge "nearside_upstream_state" ["state"] "1 for the state of upstream's circuit breaker, 0 for the others.",
        |v, out| one_of(out, BreakerState::WORDS, v.status.breaker().as_str())),
    family!(Counter "nearside_stale_served_total" [] "Keys answered from the local cache while upstream was gone.",
        |v, out| out.push(&[], v.metrics.stale_served.get() as f64)),
    family!(Counter "nearside_outage_failed_total" ["class"] "Commands refused because upstream was gone.",
        |v, out| by_word(out, &v.metrics.outage_failed)),
    family!(Gauge "nearside_queue_depth" [] "Writes that were acknowledged and wait for upstream.",
        |v, out| out.push(&[], v.metrics.queue.depth.get() as f64)),
    family!(Gauge "nearside_queue_bytes" [] "Bytes of those writes, and of what their replies rest on.",
        |v, out| out.push(&[], v.metrics.queue.bytes.get() as f64)),
    family!(Gauge "nearside_queue_age_seconds" [] "Age of the oldest of them; 0 where there is none.",
        |v, out| out.push(&[], v.metrics.queue.age() as f64 / 1e9)),
    family!(Counter "nearside_queued_writes_total" [] "Writes that were acknowledged while upstream was gone, by the keys they changed.",
        |v, out| out.push(&[], v.metrics.queue.queued.get() as f64)),
    family!(Counter "nearside_queue_replayed_total" ["result"] "Queued writes by what became of them when upstream was back.",
        |v, out| by_word(out, &v.metrics.queue.replayed)),
    family!(Counter "nearside_queue_refused_total" ["reason"] "Writes that could not be queued.",
        |v, out| by_word(out, &v.metrics.queue.refused)),
    family!(Counter "nearside_queue_reads_total" [] "Reads answered from queued or local writes while upstream was gone.",
        |v, out| out.push(&[], v.metrics.queue.reads.get() as f64)),
    family!(Counter "nearside_local_writes_total" [] "Writes to the local engine only (outage.writes: local), by the keys they changed.",
        |v, out| out.push(&[], v.metrics.queue.local_writes.get() as f64)),
    family!(Counter "nearside_local_writes_dropped_total" [] "Of those, forgotten when upstream was back.",
        |v, out| out.push(&[], v.metrics.queue.local_dropped.get() as f64)),
    family!(Gauge "nearside_journal_state" ["state"] "1 for the state of the write queue's journal on disk, 0 for the others.",
        |v, out| one_of(out, JournalState::WORDS, JournalState::WORDS[v.metrics.journal.state.get() as usize])),
    family!(Gauge "nearside_journal_bytes" [] "Bytes of the journal's files.",
        |v, out| out.push(&[], v.metrics.journal.bytes.get() as f64)),
    family!(Gauge "nearside_journal_segments" [] "Files of the journal.",
        |v, out| out.push(&[], v.metrics.journal.segments.get() as f64)),
    family!(Counter "nearside_journal_appended_total" [] "Writes that the journal has.",
        |v, out| out.push(&[], v.metrics.journal.appended.get() as f64)),
    family!(Counter "nearside_journal_lost_total" [] "Writes that the journal had taken and could not write; their clients were told.",
        |v, out| out.push(&[], v.metrics.journal.lost.get() as f64)),
    family!(Counter "nearside_journal_refused_total" ["reason"] "Writes that the journal did not take.",
        |v, out| by_word(out, &v.metrics.journal.refused)),
    family!(Histogram "nearside_journal_fsync_seconds" [] "Time that the journal's fdatasync took.",
        |v, out| out.push_histogram(&[], &v.metrics.journal.fsync)),
    family!(Histogram "nearside_reply_bytes" [] "Sizes of single replies to clients, and of messages to subscribers.",
        |v, out| out.push_sizes(&v.metrics.reply_sizes())),
    family!(Gauge "nearside_upstream_memory_bytes" [] "What upstream says that it uses (used_memory); 0 while that is not known.",
        |v, out| out.push(&[], v.metrics.upstream_size.memory().unwrap_or(0) as f64)),
    family!(Gauge "nearside_upstream_keys" [] "Keys in all databases of upstream; 0 while that is not known.",
        |v, out| out.push(&[], v.metrics.upstream_size.keys().unwrap_or(0) as f64)),
    family!(Gauge "nearside_refills_waiting" [] "Reads that wait for their turn while a lane recovers (cache.refills_max).",
        |v, out| out.push(&[], v.metrics.refills_waiting.get() as f64)),
    family!(Counter "nearside_upstream_reconnects_total" [] "Lanes that were connected again.",
        |v, out| out.push(&[], v.metrics.reconnects.get() as f64)),
    family!(Counter "nearside_lanes_held_up_total" [] "Times a lane waited for one command while upstream served others, and a spare connection took its reads.",
        |v, out| out.push(&[], v.metrics.held_up.get() as f64)),
    family!(Gauge "nearside_upstream_in_flight" [] "Commands sent upstream and not answered yet.",
        |v, out| out.push(&[], v.metrics.in_flight.get() as f64)),
    family!(Gauge "nearside_pinned_connections" [] "Upstream connections for single clients, lent to one now or idle.",
        |v, out| out.push(&[], v.metrics.pinned_connections.get() as f64)),
    family!(Counter "nearside_pinned_total" ["why"] "Times a client got an upstream connection of its own.",
        |v, out| by_word(out, &v.metrics.pinned)),
    family!(Gauge "nearside_local_keys" [] "Keys in the local engine; 0 while it is not used.",
        |v, out| out.push(&[], v.metrics.local.keys.get() as f64)),
    family!(Gauge "nearside_local_bytes" [] "Bytes in the local engine, overhead included.",
        |v, out| out.push(&[], v.metrics.local.bytes.get() as f64)),
    family!(Counter "nearside_local_removed_total" ["cause"] "Keys that the local engine removed by itself.",
    |v, out| {
        out.push(&["expired"], v.metrics.local.expired.get() as f64);
        out.push(&["evicted"], v.metrics.local.evicted.get() as f64);
    }),
    family!(Counter "nearside_local_refused_total" [] "Writes that the local engine refused because there was no room.",
        |v, out| out.push(&[], v.metrics.local.refused.get() as f64)),
    family!(Gauge "nearside_clients" [] "Connected clients.",
        |v, out| out.push(&[], v.metrics.clients.get() as f64)),
    family!(Counter "nearside_clients_total" [] "Clients that have connected.",
        |v, out| out.push(&[], v.metrics.clients_accepted.get() as f64)),
    family!(Counter "nearside_clients_rejected_total" ["reason"] "Clients turned away.",
        |v, out| by_word(out, &v.metrics.clients_rejected)),
    family!(Counter "nearside_clients_dropped_total" ["reason"] "Clients whose connection this side closed.",
        |v, out| by_word(out, &v.metrics.clients_dropped)),
    family!(Counter "nearside_protocol_errors_total" ["peer"] "Byte streams that were not RESP.",
        |v, out| by_word(out, &v.metrics.protocol_errors)),
    family!(Counter "nearside_bytes_total" ["peer", "direction"] "Bytes read (in) and written (out).",
        bytes),
    family!(Counter "nearside_cost_spent_total" ["rule"] "What upstream has cost, in costs.currency, by rule or key pattern; _rest is what none of them asked for.",
        |v, out| costs(v, out, |money| money.spent)),
    family!(Counter "nearside_cost_saved_total" ["rule"] "What hits have saved, in costs.currency, by rule or key pattern.",
        |v, out| costs(v, out, |money| money.saved)),
    family!(Gauge "nearside_health" ["status"] "1 for how the process is by its checks, 0 for the others.",
        |v, out| one_of(out, Health::WORDS, v.status.vitals.health().as_str())),
    family!(Gauge "nearside_alert_active" ["alert"] "1 while the alert fires.",
        |v, out| v.status.vitals.by_name().for_each(|(name, active, _)| out.push(&[name], f64::from(active)))),
    family!(Counter "nearside_alerts_total" ["alert"] "Times the alert was raised.",
        |v, out| v.status.vitals.by_name().for_each(|(name, _, total)| out.push(&[name], total as f64))),
    family!(Counter "nearside_config_reloads_total" ["result"] "Times the configuration was read again, by what came of it.",
        |v, out| by_word(out, &v.metrics.reloads)),
    family!(Gauge "nearside_config_last_reload_successful" [] "1 while the last attempt to read the configuration succeeded, the one at start included.",
        |v, out| out.push(&[], f64::from(v.status.config_error().is_none()))),
    family!(Gauge "nearside_config_last_reload_timestamp_seconds" [] "When the configuration that runs was read, in seconds since 1970.",
        |v, out| out.push(&[], v.metrics.reloaded_at.get() as f64 / 1e3)),
    family!(Gauge "nearside_build_info" ["version"] "Always 1; the label is the version that runs.",
        |_, out| out.push(&[env!("CARGO_PKG_VERSION")], 1.0)),
    family!(Gauge "process_start_time_seconds" [] "When the process started, in seconds since 1970.",
        |v, out| out.push(&[], v.metrics.started_at)),
    family!(Counter "process_cpu_seconds_total" [] "CPU time used, user and system.",
        |_, out| out.push(&[], clock::cpu() as f64 / 1e9)),
    family!(Gauge "process_resident_memory_bytes" [] "Resident memory.",
        |_, out| out.push(&[], process::resident_bytes() as f64)),
    family!(Gauge "process_open_fds" [] "Open file descriptors.",
        |_, out| out.push(&[], process::open_files() as f64)),
    family!(Gauge "process_max_fds" [] "How many of them there may be.",
        |_, out| out.push(&[], process::files_max())),
    family!(Gauge "process_virtual_memory_bytes" [] "Virtual memory.",
        |_, out| out.push(&[], process::virtual_bytes() as f64)),
];

fn by_pattern(view: &View, out: &mut Series, read: impl Fn(&Row) -> u64) {
    for (_, name, row) in view.metrics.patterns.iter() {
        out.push(&[L1, name], read(row) as f64);
    }
}

fn hits(view: &View, out: &mut Series) {
    for (i, name, row) in view.metrics.patterns.iter() {
        out.push(&[L1, name], view.metrics.hits_of(i, row) as f64);
    }
    // Estimates from a sample (`shadow`): whole ones, because a counter that is none would surprise.
    view.metrics.shadow.would_be().iter().for_each(|(name, hits, _)| out.push(&[OBSERVE, name], hits.floor()));
}

fn misses(view: &View, out: &mut Series) {
    by_pattern(view, out, |row| row.misses.get());
    view.metrics.shadow.would_be().iter().for_each(|(name, _, misses)| out.push(&[OBSERVE, name], misses.floor()));
}

fn costs(view: &View, out: &mut Series, of: impl Fn(&Money) -> f64) {
    for (name, money) in view.metrics.costs.by_name(clock::now(), &view.metrics) {
        out.push(&[&name], of(&money));
    }
}

fn by_word<const N: usize>(out: &mut Series, counters: &Labeled<N>) {
    for (word, count) in counters.iter() {
        out.push(&[word], count as f64);
    }
}

fn by_word_l1<const N: usize>(out: &mut Series, counters: &Labeled<N>) {
    for (word, count) in counters.iter() {
        out.push(&[L1, word], count as f64);
    }
}

fn invalidated(view: &View, out: &mut Series) {
    by_word_l1(out, &view.metrics.invalidated);
    for (template, count) in view.metrics.templates.list() {
        out.push(&[L1, &template], count as f64);
    }
}

fn rereads(view: &View, out: &mut Series) {
    for (cause, counters) in Again::WORDS.iter().zip(&view.metrics.rereads) {
        for (result, count) in counters.iter() {
            out.push(&[cause, result], count as f64);
        }
    }
}

fn one_of(out: &mut Series, words: &[&str], now: &str) {
    for word in words {
        out.push(&[word], f64::from(*word == now));
    }
}

/// One series, that of the mode in force: `sum(cache_enabled)` over all pods is then the number of caches that serve.
fn enabled(view: &View, out: &mut Series) {
    match view.status.mode() {
        Mode::Serve => out.push(&[L1], 1.0),
        other => out.push(&[other.as_str()], 0.0),
    }
}

/// A pair appears with its first request; those of `_other` and the commands cached by default are there from the start.
fn candidates(view: &View, out: &mut Series) {
    for (i, name, row) in view.metrics.patterns.iter() {
        for method in Method::ALL {
            let count = row.candidates[*method as usize].get();
            if count > 0 || (i == 0 && matches!(method, Method::Get | Method::Mget)) {
                out.push(&[name, method.as_str()], count as f64);
            }
        }
    }
}

fn decisions(view: &View, out: &mut Series) {
    for action in Action::ALL {
        for decision in Decision::ALL {
            let count = view.metrics.decided(*action, *decision);
            out.push(&[decision.as_str(), action.as_str()], count as f64);
        }
    }
}

fn link_up(view: &View, out: &mut Series) {
    let lanes = view.status.lanes();
    out.push(&[], f64::from(!lanes.is_empty() && lanes.iter().all(|lane| lane.live())));
}

fn link_state(view: &View, out: &mut Series) {
    let lanes = view.status.lanes();
    for link in Link::ALL {
        let count = lanes.iter().filter(|lane| lane.link() == *link).count();
        out.push(&[link.as_str()], count as f64);
    }
}

fn lease_age(view: &View, out: &mut Series) {
    let oldest = view.status.lanes().iter().filter_map(|lane| lane.lease_age()).max();
    out.push(&[], oldest.unwrap_or(0) as f64 / 1e9);
}

fn requests(view: &View, out: &mut Series) {
    for (which, (class, result)) in Timed::LABELS.iter().enumerate() {
        out.push_histogram(&[class, result], &view.metrics.durations(which));
    }
}

fn bytes(view: &View, out: &mut Series) {
    let m = &view.metrics;
    let (fronts_in, fronts_out) = m.bytes_of_shards();
    for (direction, counters, fronts) in [("in", &m.bytes_in, fronts_in), ("out", &m.bytes_out, fronts_out)] {
        for (peer, count) in counters.iter() {
            let of_fronts = if peer == Peer::Client.as_str() { fronts } else { 0 };
            out.push(&[peer, direction], (count + of_fronts) as f64);
        }
    }
}

impl Family {
    fn collect(&'static self, view: &View) -> proto::MetricFamily {
        let mut series = Series { family: self, metrics: Vec::new() };
        (self.read)(view, &mut series);
        let mut family = proto::MetricFamily::default();
        family.set_name(self.name.to_owned());
        family.set_help(self.help.to_owned());
        family.set_field_type(match self.kind {
            Kind::Counter => proto::MetricType::COUNTER,
            Kind::Gauge => proto::MetricType::GAUGE,
            Kind::Histogram => proto::MetricType::HISTOGRAM,
        });
        family.set_metric(series.metrics);
        family
    }
}

/// The series of one family while they are collected.
struct Series {
    family: &'static Family,
    metrics: Vec<proto::Metric>,
}

impl Series {
    /// `labels` are the values in the order of the family's names.
    fn push(&mut self, labels: &[&str], value: f64) {
        let mut metric = self.labeled(labels);
        match self.family.kind {
            Kind::Gauge => {
                let mut gauge = proto::Gauge::default();
                gauge.set_value(value);
                metric.set_gauge(gauge);
            }
            Kind::Counter | Kind::Histogram => {
                let mut counter = proto::Counter::default();
                counter.set_value(value);
                metric.set_counter(counter);
            }
        }
        self.metrics.push(metric);
    }

    /// The count is that of the buckets as they were read, so that the buckets never add up to more than it says.
    fn push_histogram(&mut self, labels: &[&str], source: &Histogram) {
        let mut metric = self.labeled(labels);
        let mut histogram = proto::Histogram::default();
        let bounds: Vec<_> = source.cumulative().map(|(bound, count)| bucket(bound, count)).collect();
        histogram.set_bucket(bounds);
        histogram.set_sample_count(source.count());
        histogram.set_sample_sum(source.sum_seconds());
        metric.set_histogram(histogram);
        self.metrics.push(metric);
    }

    fn push_sizes(&mut self, sizes: &Counted) {
        let mut metric = self.labeled(&[]);
        let mut histogram = proto::Histogram::default();
        let mut total = 0;
        let bounds = sizes.cells().filter_map(|(bound, count)| {
            total += count;
            Some(bucket(bound? as f64, total))
        });
        histogram.set_bucket(bounds.collect::<Vec<_>>());
        histogram.set_sample_count(sizes.count());
        histogram.set_sample_sum(sizes.sum as f64);
        metric.set_histogram(histogram);
        self.metrics.push(metric);
    }

    fn labeled(&self, values: &[&str]) -> proto::Metric {
        let pairs = self.family.labels.iter().zip(values).map(|(name, value)| {
            let mut pair = proto::LabelPair::default();
            pair.set_name((*name).to_owned());
            pair.set_value((*value).to_owned());
            pair
        });
        proto::Metric::from_label(pairs.collect())
    }
}

fn bucket(bound: f64, count: u64) -> proto::Bucket {
    let mut bucket = proto::Bucket::default();
    bucket.set_upper_bound(bound);
    bucket.set_cumulative_count(count);
    bucket
}

#[cfg(test)]
mod tests;
