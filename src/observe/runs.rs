//! The connections of clients, from accept to close: how many there were, how they ended, how long they lasted, and what the
//! newest ten did. The session that owns a run counts in it, once for each batch of requests; the side port's thread reads.
//! Addresses and names only, never a key or an argument.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::SystemTime;

use hdrhistogram::Histogram;
use parking_lot::Mutex;

use super::clock;
use super::counters::Counter;
use super::reasons::{Dropped, RunEnd};

/// Runs that are shown.
pub(crate) const RECENT_MAX: usize = 10;

/// Of an address or a name that a client has given itself; a whole name may have half a gigabyte.
const TEXT_MAX: usize = 64;

/// A pooled connection may live for months; longer ones count as this long.
const LONGEST_MS: u64 = 90 * 24 * 3_600_000;

/// What one digit less would hide, a factor of 1.1, nobody looks for in how long clients stay. 6 KiB.
const DIGITS: u8 = 2;

/// Upper bounds of the histogram that is shown, in milliseconds: from a script's connection to a pool's.
pub(crate) const BOUNDS_MS: [u64; 9] =
    [10, 100, 1_000, 10_000, 60_000, 600_000, 3_600_000, 6 * 3_600_000, 24 * 3_600_000];

/// One connection. Its session writes the counters, on one thread; the front of another worker has a `Tally` of its own.
pub(crate) struct Run {
    pub(crate) id: u64,
    pub(crate) addr: String,
    pub(crate) started: SystemTime,
    began: u64,
    pub(crate) commands: Counter,
    /// Requests, as `misses` and `errors` are.
    pub(crate) hits: Counter,
    pub(crate) misses: Counter,
    pub(crate) errors: Counter,
    pub(crate) bytes_in: Counter,
    pub(crate) bytes_out: Counter,
    /// By `clock`; 0: it lives.
    ended: AtomicU64,
    /// What another worker has answered it.
    front: Option<Arc<Tally>>,
    who: Mutex<Who>,
}

/// What a front counts of its client: its own cells, so that each has one writer.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) hits: Counter,
    pub(crate) bytes_in: Counter,
    pub(crate) bytes_out: Counter,
}

/// What a client has told of itself, and what became of it.
#[derive(Clone, Default)]
pub(crate) struct Who {
    pub(crate) name: Option<String>,
    pub(crate) user: Option<String>,
    pub(crate) end: Option<End>,
}

/// Why a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Client(RunEnd),
    Here(Dropped),
}

impl End {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            End::Client(end) => end.as_str(),
            End::Here(why) => why.as_str(),
        }
    }

    /// The client did not get what it came for. Who is idle, killed by an operator or drained has had its time.
    pub(crate) fn failed(self) -> bool {
        match self {
            End::Client(_) => false,
            End::Here(why) => !matches!(why, Dropped::IdleTimeout | Dropped::Killed | Dropped::Drain),
        }
    }
}

impl Run {
    pub(crate) fn call(&self, name: Option<&[u8]>, user: Option<&[u8]>) {
        let text = |bytes: &[u8]| cut(&String::from_utf8_lossy(bytes));
        let mut who = self.who.lock();
        who.name = name.filter(|name| !name.is_empty()).map(text);
        who.user = user.map(text);
    }

    pub(crate) fn who(&self) -> Who {
        self.who.lock().clone()
    }

    /// Commands, hits, bytes in and out, by all workers.
    pub(crate) fn counted(&self) -> [u64; 4] {
        let own = [&self.commands, &self.hits, &self.bytes_in, &self.bytes_out].map(Counter::get);
        let Some(front) = &self.front else { return own };
        let theirs = [&front.hits, &front.hits, &front.bytes_in, &front.bytes_out].map(Counter::get);
        std::array::from_fn(|i| own[i] + theirs[i])
    }

    pub(crate) fn is_over(&self) -> bool {
        self.ended.load(Relaxed) > 0
    }

    /// How long it lasted, or has lasted, in milliseconds.
    pub(crate) fn duration_ms(&self) -> f64 {
        let until = match self.ended.load(Relaxed) {
            0 => clock::now(),
            ended => ended,
        };
        until.saturating_sub(self.began) as f64 / 1e6
    }
}

#[derive(Default)]
pub(crate) struct Runs(Mutex<Book>);

struct Book {
    started: u64,
    completed: u64,
    failed: u64,
    durations: Histogram<u64>,
    sum_ms: f64,
    /// Oldest first.
    recent: VecDeque<Arc<Run>>,
}

impl Default for Book {
    fn default() -> Book {
        let durations = Histogram::new_with_bounds(1, LONGEST_MS, DIGITS).expect("bounds that hdrhistogram accepts");
        Book { started: 0, completed: 0, failed: 0, durations, sum_ms: 0.0, recent: VecDeque::new() }
    }
}

/// All of it at one moment.
pub(crate) struct Seen {
    pub(crate) total: u64,
    pub(crate) completed: u64,
    pub(crate) failed: u64,
    /// Of those that are over.
    pub(crate) avg_ms: Option<f64>,
    /// Median, p95, p99.
    pub(crate) quantiles_ms: Option<[f64; 3]>,
    /// Runs that took no longer than each of `BOUNDS_MS` and longer than the one before, and those that took longer.
    pub(crate) histogram: [u64; BOUNDS_MS.len() + 1],
    /// Newest first.
    pub(crate) recent: Vec<Arc<Run>>,
}

impl Seen {
    pub(crate) fn active(&self) -> u64 {
        self.total - self.over()
    }

    pub(crate) fn over(&self) -> u64 {
        self.completed + self.failed
    }
}

impl Runs {
    pub(crate) fn begin(&self, id: u64, addr: &str, front: Option<Arc<Tally>>) -> Arc<Run> {
        let run = Arc::new(Run {
            id,
            addr: cut(addr),
            started: SystemTime::now(),
            began: clock::now(),
            commands: Counter::default(),
            hits: Counter::default(),
            misses: Counter::default(),
            errors: Counter::default(),
            bytes_in: Counter::default(),
            bytes_out: Counter::default(),
            ended: AtomicU64::new(0),
            front,
            who: Mutex::default(),
        });
        let mut book = self.0.lock();
        book.started += 1;
        if book.recent.len() == RECENT_MAX {
            book.recent.pop_front();
        }
        book.recent.push_back(run.clone());
        run
    }

    pub(crate) fn end(&self, run: &Run, end: End) {
        run.who.lock().end = Some(end);
        run.ended.store(clock::now().max(1), Relaxed);
        let ms = run.duration_ms();
        let mut book = self.0.lock();
        book.durations.saturating_record((ms as u64).max(1));
        book.sum_ms += ms;
        if end.failed() {
            book.failed += 1;
        } else {
            book.completed += 1;
        }
    }

    pub(crate) fn seen(&self) -> Seen {
        let book = self.0.lock();
        let over = book.completed + book.failed;
        let mut histogram = [0; BOUNDS_MS.len() + 1];
        let mut from = 0;
        for (count, bound) in histogram.iter_mut().zip(BOUNDS_MS.into_iter().chain([u64::MAX])) {
            *count = book.durations.count_between(from, bound);
            from = book.durations.highest_equivalent(bound.min(LONGEST_MS)) + 1;
        }
        Seen {
            total: book.started,
            completed: book.completed,
            failed: book.failed,
            avg_ms: (over > 0).then(|| book.sum_ms / over as f64),
            quantiles_ms: (over > 0).then(|| [0.5, 0.95, 0.99].map(|q| book.durations.value_at_quantile(q) as f64)),
            histogram,
            recent: book.recent.iter().rev().cloned().collect(),
        }
    }
}

/// What a client calls itself is shown as text; control characters have no business in it.
fn cut(text: &str) -> String {
    text.chars().take(TEXT_MAX).map(|c| if c.is_control() { '?' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn lasting(runs: &Runs, id: u64, ms: u64, end: End) {
        clock::fake::set(SECOND);
        let run = runs.begin(id, "127.0.0.1:1", None);
        clock::fake::set(SECOND + ms * 1_000_000);
        runs.end(&run, end);
    }

    #[test]
    fn what_is_over_has_succeeded_or_failed() {
        let runs = Runs::default();
        lasting(&runs, 1, 5, End::Client(RunEnd::Closed));
        lasting(&runs, 2, 50, End::Here(Dropped::OutputLimit));
        lasting(&runs, 3, 50, End::Here(Dropped::IdleTimeout));
        let _alive = runs.begin(4, "127.0.0.1:4", None);
        let seen = runs.seen();
        assert_eq!((seen.total, seen.active(), seen.completed, seen.failed), (4, 1, 2, 1));
        assert_eq!(seen.avg_ms, Some(35.0));
        assert_eq!(seen.quantiles_ms, Some([50.0; 3]));
        assert_eq!(seen.histogram[..3], [1, 2, 0]);
        assert!(!seen.recent[0].is_over() && seen.recent[1].who().end == Some(End::Here(Dropped::IdleTimeout)));
    }

    #[test]
    fn every_run_is_in_one_bucket_of_the_histogram() {
        let runs = Runs::default();
        for (i, bound) in BOUNDS_MS.into_iter().enumerate() {
            lasting(&runs, 2 * i as u64, bound, End::Client(RunEnd::Closed));
            lasting(&runs, 2 * i as u64 + 1, bound + bound / 10, End::Client(RunEnd::Reset));
        }
        let seen = runs.seen();
        assert_eq!(seen.histogram.iter().sum::<u64>(), seen.over());
        assert_eq!(seen.histogram, [1, 2, 2, 2, 2, 2, 2, 2, 2, 1]);
    }

    #[test]
    fn the_newest_are_kept_and_texts_are_cut() {
        let runs = Runs::default();
        for id in 0..RECENT_MAX as u64 + 3 {
            runs.begin(id, &"x".repeat(1000), None).call(Some("é\n".repeat(500).as_bytes()), None);
        }
        let seen = runs.seen();
        assert_eq!(seen.recent.iter().map(|run| run.id).collect::<Vec<_>>(), (3..13).rev().collect::<Vec<_>>());
        let name = seen.recent[0].who().name.unwrap();
        assert_eq!((name.chars().count(), name.contains('\n'), seen.recent[0].addr.len()), (TEXT_MAX, false, TEXT_MAX));
    }

    #[test]
    fn without_runs_nothing_is_claimed() {
        let seen = Runs::default().seen();
        assert_eq!((seen.avg_ms, seen.quantiles_ms, seen.active()), (None, None, 0));
    }
}
