//! The cells that the data path counts in. Each has ONE writer, the data thread or (in `metrics::Shard`) another worker, so
//! that an increment is a load and a store (1.3 ns measured for a hit, 2.7 ns for a duration) and no locked instruction;
//! the side port's thread only reads, and may see a value some nanoseconds old. Two writers would lose counts, nothing
//! worse.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use parking_lot::Mutex;

/// Counts up only.
#[derive(Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn inc(&self) {
        self.add(1);
    }

    pub(crate) fn add(&self, n: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(n), Relaxed);
    }

    /// For the few cells that several threads write: all of them must use this.
    pub(crate) fn add_shared(&self, n: u64) {
        self.0.fetch_add(n, Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// A number that goes up and down, never below zero.
#[derive(Default)]
pub(crate) struct Gauge(AtomicU64);

impl Gauge {
    pub(crate) fn set(&self, value: u64) {
        self.0.store(value, Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// One counter for each word of a closed list; the words are given once, so counting formats nothing.
pub(crate) struct Labeled<const N: usize> {
    labels: &'static [&'static str; N],
    cells: [Counter; N],
}

impl<const N: usize> Labeled<N> {
    pub(crate) fn new(labels: &'static [&'static str; N]) -> Self {
        Self { labels, cells: std::array::from_fn(|_| Counter::default()) }
    }

    /// Counts one; `which` is an enum of `reasons` or an index. What lies past the list counts nowhere.
    pub(crate) fn inc(&self, which: impl Into<usize>) {
        self.add(which, 1);
    }

    pub(crate) fn add(&self, which: impl Into<usize>, n: u64) {
        if let Some(cell) = self.cells.get(which.into()) {
            cell.add(n);
        }
    }

    /// See `Counter::add_shared`.
    pub(crate) fn add_shared(&self, which: impl Into<usize>, n: u64) {
        if let Some(cell) = self.cells.get(which.into()) {
            cell.add_shared(n);
        }
    }

    pub(crate) fn get(&self, which: impl Into<usize>) -> u64 {
        self.cells.get(which.into()).map_or(0, Counter::get)
    }

    pub(crate) fn sum(&self) -> u64 {
        self.cells.iter().map(Counter::get).sum()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        self.labels.iter().copied().zip(self.cells.iter().map(Counter::get))
    }
}

/// Names that a configuration brings, and reloads may bring more of; beyond it they count nowhere here.
const NAMES_MAX: usize = 1000;

/// A counter for each of a few names that are not known beforehand. Locks: for what happens rarely.
#[derive(Default)]
pub(crate) struct Named(Mutex<BTreeMap<Box<str>, u64>>);

impl Named {
    /// False: there are too many names already.
    pub(crate) fn add(&self, name: &str, n: u64) -> bool {
        let mut cells = self.0.lock();
        if let Some(cell) = cells.get_mut(name) {
            *cell += n;
            return true;
        }
        let free = cells.len() < NAMES_MAX;
        if free {
            cells.insert(name.into(), n);
        }
        free
    }

    /// Drops all other names, and what was counted for them.
    pub(crate) fn keep_only(&self, keeps: impl Fn(&str) -> bool) {
        self.0.lock().retain(|name, _| keeps(name));
    }

    pub(crate) fn list(&self) -> Vec<(Box<str>, u64)> {
        self.0.lock().iter().map(|(name, n)| (name.clone(), *n)).collect()
    }
}

/// The first bucket's upper bound. A hit takes about 1 µs, a round trip on loopback 30: finer would only count noise.
const FIRST_BOUND_NANOS: u64 = 10_000;

/// Bounds 10 µs, 20 µs ... 10.5 s: 2^20 times the first; what takes longer is above every timeout one alerts on.
const BOUNDS: usize = 21;

/// Durations in exponential buckets.
#[derive(Default)]
pub(crate) struct Histogram {
    /// The last one has no upper bound.
    buckets: [Counter; BOUNDS + 1],
    sum_nanos: Counter,
}

impl Histogram {
    pub(crate) fn observe(&self, nanos: u64) {
        self.observe_n(nanos, 1);
    }

    /// `n` requests that took `nanos` each: the hits of one batch, which share one pair of clock reads.
    pub(crate) fn observe_n(&self, nanos: u64, n: u64) {
        self.buckets[bucket(nanos)].add(n);
        self.sum_nanos.add(nanos.wrapping_mul(n));
    }

    /// Adds what another one has seen so far.
    pub(super) fn absorb(&self, other: &Histogram) {
        self.buckets.iter().zip(&other.buckets).for_each(|(own, cell)| own.add(cell.get()));
        self.sum_nanos.add(other.sum_nanos.get());
    }

    pub(crate) fn count(&self) -> u64 {
        self.buckets.iter().map(Counter::get).sum()
    }

    pub(crate) fn sum_seconds(&self) -> f64 {
        self.sum_nanos.get() as f64 / 1e9
    }

    /// (upper bound in seconds, observations at or below it), without the last bucket.
    pub(crate) fn cumulative(&self) -> impl Iterator<Item = (f64, u64)> + '_ {
        let mut total = 0;
        self.buckets[..BOUNDS].iter().enumerate().map(move |(i, cell)| {
            total += cell.get();
            ((FIRST_BOUND_NANOS << i) as f64 / 1e9, total)
        })
    }
}

/// The first bucket whose bound is not below `nanos`: the number of bits that its whole multiples of the first bound need.
fn bucket(nanos: u64) -> usize {
    let multiples = nanos.saturating_sub(1) / FIRST_BOUND_NANOS;
    ((u64::BITS - multiples.leading_zeros()) as usize).min(BOUNDS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_belongs_to_its_own_bucket() {
        for i in 0..BOUNDS {
            let bound = FIRST_BOUND_NANOS << i;
            assert_eq!(bucket(bound), i);
            assert_eq!(bucket(bound + 1), i + 1);
        }
        assert_eq!(bucket(0), 0);
        assert_eq!(bucket(u64::MAX), BOUNDS);
    }

    #[test]
    fn buckets_add_up_and_the_sum_is_in_seconds() {
        let h = Histogram::default();
        h.observe_n(5_000, 3);
        h.observe(15_000);
        h.observe(60_000_000_000);
        let bounds: Vec<_> = h.cumulative().collect();
        assert_eq!(bounds.len(), BOUNDS);
        assert_eq!(bounds[0], (0.000_01, 3));
        assert_eq!(bounds[1], (0.000_02, 4));
        assert_eq!(bounds[BOUNDS - 1].1, 4);
        assert_eq!(h.count(), 5);
        assert!((h.sum_seconds() - 60.000_03).abs() < 1e-9);
    }

    #[test]
    fn names_are_bounded() {
        let named = Named::default();
        assert!((0..NAMES_MAX).all(|i| named.add(&format!("n{i}"), 1)));
        assert!(!named.add("one more", 1) && named.add("n7", 2));
        assert_eq!(named.list().len(), NAMES_MAX);
        assert!(named.list().contains(&("n7".into(), 3)));
        named.keep_only(|name| name == "n7");
        assert_eq!(named.list(), [("n7".into(), 3)]);
    }

    #[test]
    fn an_index_past_the_list_is_ignored() {
        let labeled = Labeled::new(&["a", "b"]);
        labeled.inc(1_usize);
        labeled.inc(2_usize);
        assert_eq!(labeled.iter().collect::<Vec<_>>(), [("a", 0), ("b", 1)]);
        assert_eq!(labeled.get(2_usize), 0);
    }
}
