//! How long to wait before the next connection attempt: exponential with full jitter above half, so that a fleet of
//! sidecars does not come back in step.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

pub(crate) struct Backoff {
    base: Duration,
    max: Duration,
    attempt: u32,
}

impl Backoff {
    pub(crate) fn new(base: Duration, max: Duration) -> Backoff {
        Backoff { base, max, attempt: 0 }
    }

    /// The next delay: `base * 2^attempt`, at most `max`, of which a random half to whole.
    pub(crate) fn next(&mut self) -> Duration {
        let full = self.base.saturating_mul(1u32 << self.attempt.min(20)).min(self.max);
        self.attempt = self.attempt.saturating_add(1);
        // A fresh RandomState is seeded by the system: enough randomness for jitter without a dependency.
        let half = u64::try_from(full.as_nanos() / 2).unwrap_or(u64::MAX);
        let jitter = if half == 0 { 0 } else { RandomState::new().hash_one(self.attempt) % (half + 1) };
        full / 2 + Duration::from_nanos(jitter)
    }

    pub(crate) fn reset(&mut self) {
        self.attempt = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_to_its_maximum_and_starts_over() {
        let mut b = Backoff::new(Duration::from_millis(50), Duration::from_secs(5));
        let first = b.next();
        assert!(first >= Duration::from_millis(25) && first <= Duration::from_millis(50), "{first:?}");
        for _ in 0..40 {
            b.next();
        }
        let late = b.next();
        assert!(late >= Duration::from_millis(2500) && late <= Duration::from_secs(5), "{late:?}");
        b.reset();
        assert!(b.next() <= Duration::from_millis(50));
    }
}
