//! The last commands that took longer than `observe.slow_log`, from a request read to its reply ready to be written: class,
//! command, family of its first key, duration; never a key, an argument or a value. What goes over the lane is in it, and
//! over its spare connection. What waits on purpose (blocking commands, transactions, subscribers) has a connection of its
//! own and is not; neither is a hit, which nothing can hold up but its own thread. Written by the data thread.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use parking_lot::Mutex;

use super::counters::Labeled;
use super::patterns::PatternId;
use super::reasons::Class;

/// As many as Redis keeps (`slowlog-max-len`).
pub(crate) const SLOW_MAX: usize = 128;

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Slow {
    /// When it was answered, in milliseconds since 1970.
    pub(crate) at: u64,
    pub(crate) class: Class,
    pub(crate) command: &'static str,
    pub(crate) pattern: PatternId,
    pub(crate) nanos: u64,
}

pub(crate) struct SlowLog {
    /// `u64::MAX`: off.
    threshold: AtomicU64,
    /// All there have ever been, by class.
    counts: Labeled<{ Class::COUNT }>,
    last: Mutex<VecDeque<Slow>>,
}

impl Default for SlowLog {
    /// Off.
    fn default() -> SlowLog {
        SlowLog { threshold: AtomicU64::new(u64::MAX), counts: Labeled::new(Class::WORDS), last: Mutex::default() }
    }
}

impl SlowLog {
    /// From how many nanoseconds on; none: off.
    pub(crate) fn set_threshold(&self, nanos: Option<u64>) {
        self.threshold.store(nanos.unwrap_or(u64::MAX), Relaxed);
    }

    /// None: off.
    pub(crate) fn threshold(&self) -> Option<u64> {
        Some(self.threshold.load(Relaxed)).filter(|nanos| *nanos < u64::MAX)
    }

    #[inline]
    pub(crate) fn is_slow(&self, nanos: u64) -> bool {
        nanos >= self.threshold.load(Relaxed)
    }

    #[cold]
    pub(crate) fn note(&self, slow: Slow) {
        self.counts.inc(slow.class);
        let mut last = self.last.lock();
        if last.len() >= SLOW_MAX {
            last.pop_front();
        }
        last.push_back(slow);
    }

    /// The newest first, and how many there have ever been.
    pub(crate) fn last(&self, n: usize) -> (Vec<Slow>, u64) {
        let last = self.last.lock();
        (last.iter().rev().take(n).cloned().collect(), self.counts.sum())
    }

    pub(crate) fn counts(&self) -> &Labeled<{ Class::COUNT }> {
        &self.counts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slow(at: u64) -> Slow {
        Slow { at, class: Class::Read, command: "get", pattern: PatternId::PLAIN, nanos: 7 }
    }

    #[test]
    fn the_last_ones_are_kept_and_all_are_counted() {
        let log = SlowLog::default();
        (0..300).for_each(|at| log.note(slow(at)));
        let (last, total) = log.last(1000);
        assert_eq!((last.len(), total), (SLOW_MAX, 300));
        assert_eq!((last[0].at, last[SLOW_MAX - 1].at), (299, 300 - SLOW_MAX as u64));
        assert_eq!(log.last(2).0, [slow(299), slow(298)]);
    }

    #[test]
    fn off_is_never_slow() {
        let log = SlowLog::default();
        assert!(!log.is_slow(u64::MAX - 1) && log.threshold().is_none());
        log.set_threshold(Some(10));
        assert!(log.is_slow(10) && !log.is_slow(9) && log.threshold() == Some(10));
        log.set_threshold(None);
        assert!(!log.is_slow(u64::MAX - 1));
    }
}
