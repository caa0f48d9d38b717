//! The locks and atomics of what several threads share in the L1. In the product these are parking_lot's and the standard
//! library's, and `point` is nothing. In unit tests each operation is also a place where a systematic scheduler (shuttle)
//! may let another thread go first, if the test runs under one (`model`).
//!
//! What that leaves out: moka itself, whose operations are one step each here (they are linearizable for one key, which is
//! all that is asked of them), and memory orders weaker than sequential consistency, which shuttle does not model; those
//! are argued where they are used (`coherence::facts`).

#[cfg(not(test))]
pub(crate) use parking_lot::Mutex;
#[cfg(not(test))]
pub(crate) use std::sync::atomic::AtomicU64;

/// Another thread may go first here.
#[cfg(not(test))]
#[inline(always)]
pub(crate) fn point() {}

#[cfg(test)]
pub(crate) use model::{AtomicU64, Mutex, point};

#[cfg(test)]
pub(crate) mod model {
    use std::sync::atomic::Ordering;

    use shuttle::scheduler::{PctScheduler, RandomScheduler};

    /// Runs `threads` under that many schedules, half of them drawn at random, half by priorities that change at a few
    /// points (which finds orders that need one thread to stand still for long).
    pub(crate) fn check(seed: u64, schedules: usize, threads: impl Fn() + Send + Sync + Clone + 'static) {
        /// moka's calls without optimisation need more than shuttle's 60 KiB.
        const STACK: usize = 1 << 20;
        let mut config = shuttle::Config::new();
        config.stack_size = STACK;
        let half = schedules.div_ceil(2);
        shuttle::Runner::new(RandomScheduler::new_from_seed(seed, half), config.clone()).run(threads.clone());
        shuttle::Runner::new(PctScheduler::new_from_seed(seed, 3, half), config).run(threads);
    }

    /// How many schedules a test tries; the long form is asked for by NEARSIDE_TEST_LONG.
    pub(crate) fn schedules(short: usize) -> usize {
        if std::env::var_os("NEARSIDE_TEST_LONG").is_some() { short * 50 } else { short }
    }

    pub(crate) fn point() {
        if shuttle::current::try_get_current_task().is_some() {
            shuttle::sync::atomic::AtomicBool::new(false).load(Ordering::SeqCst);
        }
    }

    /// A real lock, which is never waited for under the scheduler: who does not get it lets others go on.
    #[derive(Debug, Default)]
    pub(crate) struct Mutex<T>(parking_lot::Mutex<T>);

    impl<T> Mutex<T> {
        pub(crate) fn lock(&self) -> parking_lot::MutexGuard<'_, T> {
            point();
            loop {
                if let Some(guard) = self.0.try_lock() {
                    return guard;
                }
                if shuttle::current::try_get_current_task().is_none() {
                    return self.0.lock();
                }
                shuttle::thread::yield_now();
            }
        }
    }

    #[derive(Debug, Default)]
    pub(crate) struct AtomicU64(std::sync::atomic::AtomicU64);

    impl AtomicU64 {
        pub(crate) const fn new(value: u64) -> AtomicU64 {
            AtomicU64(std::sync::atomic::AtomicU64::new(value))
        }

        pub(crate) fn load(&self, order: Ordering) -> u64 {
            point();
            self.0.load(order)
        }

        pub(crate) fn store(&self, value: u64, order: Ordering) {
            point();
            self.0.store(value, order);
        }

        pub(crate) fn fetch_add(&self, value: u64, order: Ordering) -> u64 {
            point();
            self.0.fetch_add(value, order)
        }

        pub(crate) fn fetch_sub(&self, value: u64, order: Ordering) -> u64 {
            point();
            self.0.fetch_sub(value, order)
        }
    }
}
