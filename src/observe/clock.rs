//! The one clock of lease, fences and deadlines: CLOCK_BOOTTIME, because a laptop or a VM that was suspended must come
//! back with every lease run out (CLOCK_MONOTONIC stands still meanwhile). Not a time of day.

use rustix::time::{ClockId, Timespec, clock_gettime};

const NANOS_PER_SEC: u64 = 1_000_000_000;

/// Nanoseconds since boot, time in suspend included. Read from the vDSO: no system call.
pub(crate) fn now() -> u64 {
    #[cfg(test)]
    if let Some(now) = fake::now() {
        return now;
    }
    nanos(clock_gettime(ClockId::Boottime))
}

/// Nanoseconds of CPU that all threads of this process have used, user and system.
pub(crate) fn cpu() -> u64 {
    nanos(clock_gettime(ClockId::ProcessCPUTime))
}

/// Neither clock is ever negative; 64 bits of nanoseconds last 584 years.
fn nanos(time: Timespec) -> u64 {
    (time.tv_sec as u64).wrapping_mul(NANOS_PER_SEC).wrapping_add(time.tv_nsec as u64)
}

/// A clock that stands still until it is set, for tests whose subject is time. It is the thread's own.
#[cfg(test)]
pub(crate) mod fake {
    use std::cell::Cell;

    thread_local!(static NOW: Cell<Option<u64>> = const { Cell::new(None) });

    pub(crate) fn set(now: u64) {
        NOW.set(Some(now));
    }

    pub(super) fn now() -> Option<u64> {
        NOW.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn now_moves_forward() {
        let first = now();
        assert!(first > 0);
        assert!((0..1000).map(|_| now()).is_sorted());
        assert!(now() >= first);
    }

    #[test]
    fn cpu_counts_work() {
        let before = cpu();
        while cpu() == before {
            std::hint::spin_loop();
        }
    }
}
