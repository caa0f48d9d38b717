//! Everything that is counted, as fields that the data path bumps by name; `families` knows how each is called outside.
//! One writer each (see `counters`), shared by `Arc` with the side port's thread.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use super::arms::Arms;
use super::clock;
use super::costs::Costs;
use super::counters::{Counter, Gauge, Histogram, Labeled, Named};
use super::durations::Durations;
use super::history::Took;
use super::hot_keys::HotKeys;
use super::patterns::{PatternId, Patterns, Row, ShardRows};
use super::policy::PolicyCounts;
use super::reasons::{
    Action, Again, Bypass, Class, Decision, Discard, Dropped, ErrorType, Evict, Flush, JournalRefusal, NotQueued,
    Operation, Peer, Pin, Reject, Reload, Replayed, Reread, RolloutChange, Source, Tag, Timed, Touched, Warmed,
};
use super::runs::Runs;
use super::shadow::Shadow;
use super::sizes::{Counted, Sizes};
use super::slow_log::SlowLog;
use super::upstream_size::UpstreamSize;

/// What a worker other than the data thread counts: hits, which are all it answers. Cells of its own, so that each keeps one
/// writer; added up when somebody asks.
pub(crate) struct Shard {
    pub(crate) rows: ShardRows,
    pub(crate) read_hits: Histogram,
    /// The same requests by command.
    pub(crate) gets: Counter,
    pub(crate) mgets: Counter,
    /// Hits that a command policy was in force for; it allowed them, or they would not have been answered here.
    pub(crate) judged: Counter,
    pub(crate) reply_sizes: Sizes,
    /// Of clients, as far as the data thread has not counted them.
    pub(crate) bytes_in: Counter,
    pub(crate) bytes_out: Counter,
}

/// Of one family.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    pub(crate) hits: u64,
    pub(crate) misses: u64,
    pub(crate) sets: u64,
    pub(crate) dels: u64,
}

/// Commands by what they are.
pub(crate) struct Operations {
    pub(crate) total: u64,
    pub(crate) by_word: [(&'static str, u64); Operation::COUNT],
}

/// What the local engine has counted, as of its last tick.
#[derive(Default)]
pub(crate) struct LocalEngine {
    pub(crate) keys: Gauge,
    pub(crate) bytes: Gauge,
    pub(crate) expired: Gauge,
    pub(crate) evicted: Gauge,
    /// Writes for which there was no room.
    pub(crate) refused: Gauge,
}

/// The journal of the write queue. `refused` is the data thread's, all else the journal's own thread's.
pub(crate) struct JournalCounts {
    /// By `reasons::JournalState as usize`.
    pub(crate) state: Gauge,
    pub(crate) bytes: Gauge,
    pub(crate) segments: Gauge,
    /// Writes that it has.
    pub(crate) appended: Counter,
    /// Writes that it had taken, and could not write.
    pub(crate) lost: Counter,
    pub(crate) refused: Labeled<{ JournalRefusal::COUNT }>,
    pub(crate) fsync: Histogram,
}

impl JournalCounts {
    fn new() -> JournalCounts {
        JournalCounts {
            state: Gauge::default(),
            bytes: Gauge::default(),
            segments: Gauge::default(),
            appended: Counter::default(),
            lost: Counter::default(),
            refused: Labeled::new(JournalRefusal::WORDS),
            fsync: Histogram::default(),
        }
    }
}

/// Writes that are acknowledged and not done upstream.
pub(crate) struct QueueCounts {
    pub(crate) depth: Gauge,
    pub(crate) bytes: Gauge,
    /// When the oldest was acknowledged, by `clock`; 0: there is none.
    pub(crate) oldest: Gauge,
    pub(crate) queued: Counter,
    pub(crate) replayed: Labeled<{ Replayed::COUNT }>,
    pub(crate) refused: Labeled<{ NotQueued::COUNT }>,
    /// Keys that were answered from it.
    pub(crate) reads: Counter,
    pub(crate) local_writes: Counter,
    pub(crate) local_dropped: Counter,
}

impl QueueCounts {
    /// Of the oldest that waits, in nanoseconds.
    pub(crate) fn age(&self) -> u64 {
        match self.oldest.get() {
            0 => 0,
            oldest => clock::now().saturating_sub(oldest),
        }
    }

    fn new() -> QueueCounts {
        QueueCounts {
            depth: Gauge::default(),
            bytes: Gauge::default(),
            oldest: Gauge::default(),
            queued: Counter::default(),
            replayed: Labeled::new(Replayed::WORDS),
            refused: Labeled::new(NotQueued::WORDS),
            reads: Counter::default(),
            local_writes: Counter::default(),
            local_dropped: Counter::default(),
        }
    }
}

/// How much is kept, as the configuration says.
pub(crate) struct Setup<'c> {
    /// `observe.separators`, `observe.max_key_patterns`, `observe.hot_keys`, `upstream.key_prefix`.
    pub(crate) separators: &'c str,
    pub(crate) max_key_patterns: usize,
    pub(crate) hot_keys: usize,
    pub(crate) key_prefix: &'c str,
    /// How many threads count beside the data thread.
    pub(crate) workers: usize,
}

pub(crate) struct Metrics {
    /// Hits, misses, sets, dels and candidates, by family of keys.
    pub(crate) patterns: Patterns,
    pub(crate) errors: Labeled<{ ErrorType::COUNT }>,
    pub(crate) invalidated: Labeled<{ Tag::COUNT }>,
    /// The same for tags of rules, by what they were filled in from.
    pub(crate) templates: Named,

    pub(crate) bypass: Labeled<{ Bypass::COUNT }>,
    pub(crate) discarded: Labeled<{ Discard::COUNT }>,
    pub(crate) invalidations: Labeled<{ Source::COUNT }>,
    pub(crate) evictions: Labeled<{ Evict::COUNT }>,
    pub(crate) flushes: Labeled<{ Flush::COUNT }>,
    pub(crate) rollout: Labeled<{ RolloutChange::COUNT }>,
    /// Messages on the sidecars' channel that were not understood.
    pub(crate) malformed: Counter,
    pub(crate) entries: Gauge,
    pub(crate) bytes: Gauge,
    /// Misses that joined a fill under way.
    pub(crate) coalesced: Counter,
    /// Writes that stored their own result (dual write).
    pub(crate) updates: Counter,
    /// Own writes that are sent and not answered.
    pub(crate) pending: Gauge,
    /// Hits on entries that were to be read again, by why.
    pub(crate) rereads: [Labeled<{ Reread::COUNT }>; Again::COUNT],
    /// Keys named in TOUCH.
    pub(crate) touches: Labeled<{ Touched::COUNT }>,
    /// Keys to be loaded at start.
    pub(crate) warmed: Labeled<{ Warmed::COUNT }>,

    /// Entries that were compared with upstream in service, and how many of them differed.
    pub(crate) audit_checked: Counter,
    pub(crate) audit_stale: Counter,
    /// Of the one compared last, in nanoseconds.
    pub(crate) audit_age: Gauge,

    pub(crate) requests: [Histogram; Timed::COUNT],
    pub(crate) commands: Labeled<{ Class::COUNT }>,
    /// Of the data thread; see the function of the same name.
    pub(crate) operations: Labeled<{ Operation::COUNT }>,
    /// Of the data thread; see the function of the same name.
    pub(crate) reply_sizes: Arc<Sizes>,
    /// Replies to timed requests that were errors, and refusals while upstream was gone.
    pub(crate) failed: Counter,
    pub(crate) upstream: Histogram,
    /// Replies of upstream's to anything that was sent to it.
    pub(crate) upstream_answers: Counter,
    pub(crate) costs: Costs,
    /// From a canary's write to its invalidation.
    pub(crate) lag: Histogram,
    pub(crate) reconnects: Counter,
    /// Times a lane was held up and its spare connection took over.
    pub(crate) held_up: Counter,
    /// How much it holds.
    pub(crate) upstream_size: UpstreamSize,
    /// Keys that were answered while upstream was gone.
    pub(crate) stale_served: Counter,
    /// Commands that were refused because it was.
    pub(crate) outage_failed: Labeled<{ Class::COUNT }>,
    /// Reads that wait for their turn while a lane recovers.
    pub(crate) refills_waiting: Gauge,
    pub(crate) in_flight: Gauge,
    pub(crate) pinned_connections: Gauge,
    /// By `command::Why as usize`.
    pub(crate) pinned: Labeled<{ Pin::COUNT }>,

    /// Connected now.
    pub(crate) clients: Gauge,
    pub(crate) clients_accepted: Counter,
    pub(crate) clients_rejected: Labeled<{ Reject::COUNT }>,
    pub(crate) clients_dropped: Labeled<{ Dropped::COUNT }>,
    pub(crate) protocol_errors: Labeled<{ Peer::COUNT }>,
    pub(crate) bytes_in: Labeled<{ Peer::COUNT }>,
    pub(crate) bytes_out: Labeled<{ Peer::COUNT }>,

    /// What observe mode has learned.
    pub(crate) shadow: Shadow,
    /// What the arms of experiments see.
    pub(crate) arms: Arms,
    pub(crate) policy: PolicyCounts,
    pub(crate) runs: Runs,
    pub(crate) reloads: Labeled<{ Reload::COUNT }>,
    /// When the configuration that runs was loaded, in milliseconds since 1970.
    pub(crate) reloaded_at: Gauge,
    pub(crate) local: LocalEngine,
    pub(crate) journal: JournalCounts,
    pub(crate) queue: QueueCounts,

    /// The keys that are asked for most, and the largest values.
    pub(crate) hot: HotKeys,
    pub(crate) slow: SlowLog,
    /// `cache.max_bytes`.
    pub(crate) max_bytes: Gauge,

    /// One for each worker beside the data thread.
    pub(crate) shards: Box<[Shard]>,

    /// Seconds since 1970.
    pub(super) started_at: f64,
}

impl Metrics {
    #[cfg(test)]
    pub(crate) fn new(separators: &str, max_key_patterns: usize) -> Self {
        Self::with(&Setup { separators, max_key_patterns, hot_keys: 64, key_prefix: "", workers: 0 })
    }

    pub(crate) fn with(setup: &Setup<'_>) -> Self {
        let Setup { separators, max_key_patterns, hot_keys, key_prefix, workers } = *setup;
        let patterns = Patterns::new(separators, max_key_patterns);
        let shard = |_| Shard {
            rows: patterns.shard(),
            read_hits: Histogram::default(),
            gets: Counter::default(),
            mgets: Counter::default(),
            judged: Counter::default(),
            reply_sizes: Sizes::default(),
            bytes_in: Counter::default(),
            bytes_out: Counter::default(),
        };
        Self {
            shards: (0..workers).map(shard).collect(),
            local: LocalEngine::default(),
            hot: HotKeys::new(hot_keys, key_prefix, workers),
            slow: SlowLog::default(),
            max_bytes: Gauge::default(),
            journal: JournalCounts::new(),
            queue: QueueCounts::new(),
            patterns,
            errors: Labeled::new(ErrorType::WORDS),
            invalidated: Labeled::new(Tag::WORDS),
            templates: Named::default(),
            bypass: Labeled::new(Bypass::WORDS),
            discarded: Labeled::new(Discard::WORDS),
            invalidations: Labeled::new(Source::WORDS),
            evictions: Labeled::new(Evict::WORDS),
            flushes: Labeled::new(Flush::WORDS),
            rollout: Labeled::new(RolloutChange::WORDS),
            malformed: Counter::default(),
            entries: Gauge::default(),
            bytes: Gauge::default(),
            coalesced: Counter::default(),
            updates: Counter::default(),
            pending: Gauge::default(),
            rereads: std::array::from_fn(|_| Labeled::new(Reread::WORDS)),
            touches: Labeled::new(Touched::WORDS),
            warmed: Labeled::new(Warmed::WORDS),
            audit_checked: Counter::default(),
            audit_stale: Counter::default(),
            audit_age: Gauge::default(),
            requests: std::array::from_fn(|_| Histogram::default()),
            commands: Labeled::new(Class::WORDS),
            operations: Labeled::new(Operation::WORDS),
            reply_sizes: Arc::default(),
            failed: Counter::default(),
            upstream: Histogram::default(),
            upstream_answers: Counter::default(),
            costs: Costs::default(),
            lag: Histogram::default(),
            reconnects: Counter::default(),
            held_up: Counter::default(),
            upstream_size: UpstreamSize::default(),
            stale_served: Counter::default(),
            outage_failed: Labeled::new(Class::WORDS),
            refills_waiting: Gauge::default(),
            in_flight: Gauge::default(),
            pinned_connections: Gauge::default(),
            pinned: Labeled::new(Pin::WORDS),
            clients: Gauge::default(),
            clients_accepted: Counter::default(),
            clients_rejected: Labeled::new(Reject::WORDS),
            clients_dropped: Labeled::new(Dropped::WORDS),
            protocol_errors: Labeled::new(Peer::WORDS),
            bytes_in: Labeled::new(Peer::WORDS),
            bytes_out: Labeled::new(Peer::WORDS),
            shadow: Shadow::default(),
            arms: Arms::default(),
            policy: PolicyCounts::new(),
            runs: Runs::default(),
            reloads: Labeled::new(Reload::WORDS),
            reloaded_at: Gauge::default(),
            started_at: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64()),
        }
    }

    /// A request of this class and result took `nanos`, from its last byte read to its reply in the outbox.
    pub(crate) fn request(&self, what: Timed, nanos: u64) {
        self.requests[what as usize].observe(nanos);
    }

    /// `n` of them took `nanos` each.
    pub(crate) fn request_n(&self, what: Timed, nanos: u64, n: u64) {
        self.requests[what as usize].observe_n(nanos, n);
    }

    pub(crate) fn hits(&self) -> u64 {
        self.patterns.all().map(|(i, _, row)| self.hits_of(i, row)).sum()
    }

    /// By worker, the data thread first.
    pub(crate) fn hits_by_worker(&self) -> Vec<u64> {
        let own = self.patterns.all().map(|(_, _, row)| row.hits.get()).sum();
        std::iter::once(own).chain(self.shards.iter().map(|shard| shard.rows.hits())).collect()
    }

    /// By all workers, of the family with this number.
    pub(super) fn hits_of(&self, index: usize, row: &Row) -> u64 {
        row.hits.get() + self.shards.iter().map(|shard| shard.rows.row(index).hits.get()).sum::<u64>()
    }

    /// Bytes of replies that its hits saved, and the hits that saved no request of their own.
    pub(super) fn saved_bytes_of(&self, index: usize, row: &Row) -> u64 {
        let of_shard = |shard: &Shard| shard.rows.row(index).saved_bytes.get();
        row.cost.saved_bytes.get() + self.shards.iter().map(of_shard).sum::<u64>()
    }

    pub(super) fn riders_of(&self, index: usize, row: &Row) -> u64 {
        let of_shard = |shard: &Shard| shard.rows.row(index).riders.get();
        row.cost.riders.get() + self.shards.iter().map(of_shard).sum::<u64>()
    }

    /// Clients' bytes, in and out, that only other workers have counted.
    pub(super) fn bytes_of_shards(&self) -> (u64, u64) {
        let (read, written) = (|s: &Shard| s.bytes_in.get(), |s: &Shard| s.bytes_out.get());
        (self.shards.iter().map(read).sum(), self.shards.iter().map(written).sum())
    }

    /// Clients' bytes in and out, by all workers.
    pub(crate) fn bytes_of_clients(&self) -> (u64, u64) {
        let (read, written) = self.bytes_of_shards();
        (self.bytes_in.get(Peer::Client) + read, self.bytes_out.get(Peer::Client) + written)
    }

    /// Commands by what they are, those that other workers answered included: each of these is a hit.
    pub(crate) fn operations(&self) -> Operations {
        let mut by_word: [(&str, u64); Operation::COUNT] = std::array::from_fn(|i| (Operation::WORDS[i], 0));
        by_word.iter_mut().zip(self.operations.iter()).for_each(|(own, (_, count))| own.1 = count);
        for shard in &self.shards {
            by_word[Operation::Get as usize].1 += shard.gets.get();
            by_word[Operation::Mget as usize].1 += shard.mgets.get();
        }
        Operations { total: by_word.iter().map(|(_, count)| count).sum(), by_word }
    }

    pub(crate) fn durations_of(&self, took: Took) -> Durations {
        let mut sum = Durations::default();
        match took {
            Took::All => self.requests.iter().for_each(|h| sum.add(h)),
            Took::Hit => sum.add(&self.requests[Timed::ReadHit as usize]),
            Took::Miss => sum.add(&self.requests[Timed::ReadMiss as usize]),
            Took::Upstream => sum.add(&self.upstream),
        }
        if matches!(took, Took::All | Took::Hit) {
            self.shards.iter().for_each(|shard| sum.add(&shard.read_hits));
        }
        sum
    }

    /// How large the replies to clients were, by all workers.
    pub(crate) fn reply_sizes(&self) -> Counted {
        let mut counted = Counted::default();
        counted.add(&self.reply_sizes);
        self.shards.iter().for_each(|shard| counted.add(&shard.reply_sizes));
        counted
    }

    /// How often the command policy said so of commands that do this, by all workers.
    pub(crate) fn decided(&self, action: Action, decision: Decision) -> u64 {
        let by_shards: u64 = match (action, decision) {
            (Action::Read, Decision::Allowed) => self.shards.iter().map(|shard| shard.judged.get()).sum(),
            _ => 0,
        };
        self.policy.count(action, decision) + by_shards
    }

    /// The same of all commands.
    pub(crate) fn decided_of_all(&self, decision: Decision) -> u64 {
        Action::ALL.iter().map(|action| self.decided(*action, decision)).sum()
    }

    /// The durations of one class and result, by all workers.
    pub(super) fn durations(&self, what: usize) -> Histogram {
        let sum = Histogram::default();
        sum.absorb(&self.requests[what]);
        if what == Timed::ReadHit as usize {
            self.shards.iter().for_each(|shard| sum.absorb(&shard.read_hits));
        }
        sum
    }

    /// Commands that were answered with an error.
    pub(super) fn errors_answered(&self) -> u64 {
        let labels = Timed::LABELS.iter().zip(&self.requests);
        labels.filter(|((_, result), _)| *result == "error").map(|(_, durations)| durations.count()).sum()
    }

    /// What is counted for one family, by all workers.
    pub(crate) fn counts_of(&self, id: Option<PatternId>) -> Counts {
        let Some((id, row)) = id.map(|id| (id, self.patterns.row(id))) else { return Counts::default() };
        Counts {
            hits: self.hits_of(usize::from(id.0), row),
            misses: row.misses.get(),
            sets: row.sets.get(),
            dels: row.dels.get(),
        }
    }

    /// Every family with its counts, by all workers.
    pub(crate) fn by_family(&self) -> impl Iterator<Item = (&str, Counts)> {
        self.patterns.iter().map(|(i, name, row)| {
            let (misses, sets, dels) = (row.misses.get(), row.sets.get(), row.dels.get());
            (name, Counts { hits: self.hits_of(i, row), misses, sets, dels })
        })
    }

    pub(crate) fn misses(&self) -> u64 {
        self.patterns.all().map(|(_, _, row)| row.misses.get()).sum()
    }
}
