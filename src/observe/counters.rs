//! The cells that the data path counts in. Each has ONE writer, the data thread or (in `metrics::Shard`) another worker, so
//! that an increment is a load and a store (1.3 ns measured for a hit, 2.7 ns for a duration) and no locked instruction;
//! the side port's thread only reads, and may see a value some nanoseconds old. Two writers would lose counts, nothing
//! worse.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use parking_lot::Mutex;

/// Counts up only.
#[derive(Debug, Default)]
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

    pub(crate) fn list(&self) -> Vec<(Box<str>, u64)> {
        self.0.lock().iter().map(|(name, n)| (name.clone(), *n)).collect()
    }
}

/// The first bound of a scrape. A hit takes about 1 µs, a round trip on loopback 30: a finer one would only add series.
const FIRST_BOUND_NANOS: u64 = 10_000;

/// Bounds 10 µs, 20 µs ... 10.5 s: 2^20 times the first; what takes longer is above every timeout one alerts on.
const BOUNDS: usize = 21;

/// Cells for each doubling: they are 1.6 % wide, so that a quantile is good to 0.8 %, as two digits of an HDR histogram are.
const CELLS_A_DOUBLING: usize = 64;

/// A unit is a 1024th of the first bound, 9.8 ns; up to twice `CELLS_A_DOUBLING` of them each has a cell of its own.
const UNITS_A_BOUND: u64 = 1024;

/// The first cell of the durations above the first bound.
const FIRST_CELLS: usize = 5 * CELLS_A_DOUBLING;

/// Those of the last bound, and one for all that is longer.
pub(super) const CELLS: usize = FIRST_CELLS + (BOUNDS - 1) * CELLS_A_DOUBLING + 1;

/// Durations in cells as an HDR histogram has them: linear at the bottom, then the same number for each doubling. Each of a
/// scrape's bounds is the end of a cell, so a scrape is exact. 12.5 KiB.
pub(crate) struct Histogram {
    /// The last one has no upper bound.
    cells: Box<[Counter; CELLS]>,
    sum_nanos: Counter,
}

impl Default for Histogram {
    fn default() -> Histogram {
        let cells: Box<[Counter]> = (0..CELLS).map(|_| Counter::default()).collect();
        let Ok(cells) = cells.try_into() else { unreachable!("{CELLS} cells were made") };
        Histogram { cells, sum_nanos: Counter::default() }
    }
}

impl Histogram {
    pub(crate) fn observe(&self, nanos: u64) {
        self.observe_n(nanos, 1);
    }

    /// `n` requests that took `nanos` each: the hits of one batch, which share one pair of clock reads.
    pub(crate) fn observe_n(&self, nanos: u64, n: u64) {
        self.cells[cell(nanos)].add(n);
        self.sum_nanos.add(nanos.wrapping_mul(n));
    }

    /// Adds what another one has seen so far.
    pub(super) fn absorb(&self, other: &Histogram) {
        self.cells.iter().zip(&*other.cells).for_each(|(own, cell)| own.add(cell.get()));
        self.sum_nanos.add(other.sum_nanos.get());
    }

    pub(crate) fn count(&self) -> u64 {
        self.cells.iter().map(Counter::get).sum()
    }

    pub(super) fn cells(&self) -> impl Iterator<Item = u64> + '_ {
        self.cells.iter().map(Counter::get)
    }

    pub(super) fn sum_nanos(&self) -> u64 {
        self.sum_nanos.get()
    }

    pub(crate) fn sum_seconds(&self) -> f64 {
        self.sum_nanos.get() as f64 / 1e9
    }

    /// (upper bound in seconds, observations at or below it), without the last bucket.
    pub(crate) fn cumulative(&self) -> impl Iterator<Item = (f64, u64)> + '_ {
        let (first, rest) = self.cells.split_at(FIRST_CELLS);
        let buckets = std::iter::once(first).chain(rest.chunks_exact(CELLS_A_DOUBLING));
        let mut total = 0;
        buckets.enumerate().map(move |(i, bucket)| {
            total += bucket.iter().map(Counter::get).sum::<u64>();
            ((FIRST_BOUND_NANOS << i) as f64 / 1e9, total)
        })
    }
}

/// The cell of a duration: whole units as they are, then by their highest bits. A bound is the last duration of its cell.
fn cell(nanos: u64) -> usize {
    let units = nanos.saturating_sub(1).min(FIRST_BOUND_NANOS << BOUNDS) * 64 / 625;
    // 64 units and more keep their seven highest bits, and where those stand says which doubling it is.
    let shift = (units | 127).ilog2() - 6;
    ((units >> shift) as usize + shift as usize * CELLS_A_DOUBLING).min(CELLS - 1)
}

/// The middle of a cell in nanoseconds; of the last one its beginning.
pub(super) fn middle(cell: usize) -> u64 {
    let shift = (cell / CELLS_A_DOUBLING).saturating_sub(1);
    let begins = ((cell - shift * CELLS_A_DOUBLING) as u64) << shift;
    let half = if cell == CELLS - 1 { 0.0 } else { (1_u64 << shift) as f64 / 2.0 };
    ((begins as f64 + half) * FIRST_BOUND_NANOS as f64 / UNITS_A_BOUND as f64) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_belongs_to_its_own_bucket() {
        for i in 0..BOUNDS {
            let bound = FIRST_BOUND_NANOS << i;
            let end = FIRST_CELLS + i * CELLS_A_DOUBLING;
            assert_eq!((cell(bound), cell(bound + 1)), (end - 1, end));
        }
        assert_eq!(cell(0), 0);
        assert_eq!(cell(u64::MAX), CELLS - 1);
    }

    #[test]
    fn a_duration_is_near_the_middle_of_its_cell() {
        let mut nanos = 1_000;
        while nanos < FIRST_BOUND_NANOS << (BOUNDS - 1) {
            let off = middle(cell(nanos)).abs_diff(nanos) as f64 / nanos as f64;
            assert!(off < 0.0082, "{nanos} is off by {off}");
            nanos += nanos / 97;
        }
        assert!((0..CELLS - 1).map(|c| cell(middle(c))).eq(0..CELLS - 1));
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
