//! The token bucket of one rate limit, as one number: when the bucket would be empty of claims (GCRA). A command that must wait
//! has its token already, at a time of its own: those who wait are served in the order they came, each is woken once, and a
//! limit that many share needs no list of them.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::Rate;

const SECOND: u64 = 1_000_000_000;

/// Timers wake to the millisecond, so a bucket holds what flows in within two: a smaller one would run over while everybody
/// sleeps, and the rate never be reached.
const TICK: u64 = 2_000_000;

/// Only the data thread takes from it; atomic because the policy that holds it is shared.
#[derive(Debug)]
pub(crate) struct Bucket {
    /// Between two tokens.
    interval: u64,
    /// What a full bucket is worth, less the one token that is due.
    tolerance: u64,
    /// When all tokens given out so far will have flowed in.
    paid_until: AtomicU64,
}

impl Bucket {
    pub(crate) fn new(rate: &Rate) -> Bucket {
        let interval = SECOND / u64::from(rate.per_second.max(1));
        let burst = u64::from(rate.burst.max(1) - 1) * interval;
        Bucket { interval, tolerance: burst.max(TICK.saturating_sub(interval)), paid_until: AtomicU64::new(0) }
    }

    /// Takes a token: from when on it may be spent, `now` where there is one.
    pub(crate) fn reserve(&self, now: u64) -> u64 {
        let paid_until = self.paid_until.load(Relaxed);
        self.paid_until.store(paid_until.max(now) + self.interval, Relaxed);
        self.due(paid_until).max(now)
    }

    /// Whether there is a token now.
    pub(crate) fn has(&self, now: u64) -> bool {
        self.due(self.paid_until.load(Relaxed)) <= now
    }

    fn due(&self, paid_until: u64) -> u64 {
        paid_until.saturating_sub(self.tolerance)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::commands::{OnLimit, Scope, Who};

    fn bucket(per_second: u32, burst: u32) -> Bucket {
        Bucket::new(&Rate { who: Who::default(), per_second, burst, on_limit: OnLimit::Wait, scope: Scope::Shared })
    }

    #[test]
    fn a_burst_and_then_the_rate() {
        let (bucket, now) = (bucket(10, 3), 50 * SECOND);
        assert_eq!([0; 3].map(|_| bucket.reserve(now)), [now; 3]);
        assert!(!bucket.has(now));
        assert_eq!(bucket.reserve(now), now + SECOND / 10);
        assert_eq!(bucket.reserve(now), now + SECOND / 5);
        assert!(bucket.has(now + 3 * SECOND / 10));
    }

    #[test]
    fn what_flows_in_while_nobody_asks_is_kept_up_to_the_burst() {
        let (bucket, now) = (bucket(10, 2), 50 * SECOND);
        bucket.reserve(now);
        let later = now + 100 * SECOND;
        assert_eq!([0; 3].map(|_| bucket.reserve(later)), [later, later, later + SECOND / 10]);
    }

    #[test]
    fn a_fast_rate_is_reached_by_one_who_wakes_every_millisecond() {
        let bucket = bucket(100_000, 1);
        let (mut now, mut served) = (SECOND, 0);
        while now < 2 * SECOND {
            let due = bucket.reserve(now);
            // Sleeps to the next whole millisecond behind it.
            now = if due > now { due.next_multiple_of(1_000_000) } else { now };
            served += 1;
        }
        assert!((95_000..=101_000).contains(&served), "{served}");
    }
}
