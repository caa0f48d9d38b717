//! How large the replies to clients were, one by one. A hit knows its reply's length: it pays a shift and two additions.
//! Counted is what goes out for one request, and a message to a subscriber; inside an EXEC an answer of ours counts beside
//! the whole. What CLIENT REPLY keeps back is no reply. One writer each, as in `counters`.

use super::counters::Counter;

/// The first bound: an OK, a number, a short value.
const FIRST_BOUND: u64 = 64;

/// Each bound is four times the one before.
const BITS_A_BOUND: u32 = 2;

/// 64 B, 256 B ... 64 MiB: what is larger is far beyond what is cached.
const BOUNDS: usize = 11;

/// The last one has no bound.
const CELLS: usize = BOUNDS + 1;

#[derive(Debug, Default)]
pub(crate) struct Sizes {
    cells: [Counter; CELLS],
    sum: Counter,
}

/// What some of them have counted together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counted {
    cells: [u64; CELLS],
    /// Bytes of all.
    pub(crate) sum: u64,
}

impl Sizes {
    /// A reply of so many bytes; none: it has gone past, and is counted where it went.
    #[inline]
    pub(crate) fn note(&self, bytes: usize) {
        if bytes > 0 {
            self.cells[cell(bytes as u64)].inc();
            self.sum.add(bytes as u64);
        }
    }
}

/// A bound belongs to its own cell.
#[inline]
fn cell(bytes: u64) -> usize {
    let above = (bytes - 1) / FIRST_BOUND;
    let bits = u64::BITS - above.leading_zeros();
    (bits.div_ceil(BITS_A_BOUND) as usize).min(CELLS - 1)
}

impl Counted {
    pub(super) fn add(&mut self, of: &Sizes) {
        self.cells.iter_mut().zip(&of.cells).for_each(|(own, cell)| *own += cell.get());
        self.sum += of.sum.get();
    }

    pub(super) fn count(&self) -> u64 {
        self.cells.iter().sum()
    }

    /// Upper bound and how many were at most so large and larger than the bound before; none: of any size.
    pub(crate) fn cells(&self) -> impl Iterator<Item = (Option<u64>, u64)> + '_ {
        let bound = |i: usize| (i < BOUNDS).then_some(FIRST_BOUND << (BITS_A_BOUND * i as u32));
        self.cells.iter().enumerate().map(move |(i, count)| (bound(i), *count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_is_the_last_size_of_its_cell() {
        let counted = Counted::default();
        let bounds: Vec<u64> = counted.cells().filter_map(|(bound, _)| bound).collect();
        assert_eq!((bounds.len(), bounds[0], bounds[BOUNDS - 1]), (BOUNDS, 64, 64 << 20));
        for (i, bound) in bounds.iter().enumerate() {
            assert_eq!((cell(*bound), cell(bound + 1)), (i, i + 1), "{bound}");
        }
        assert_eq!((cell(1), cell(u64::MAX)), (0, BOUNDS));
    }

    #[test]
    fn what_is_noted_is_counted_and_nothing_is_no_reply() {
        let (one, other) = (Sizes::default(), Sizes::default());
        [0, 5, 64, 65, 1 << 30].iter().for_each(|bytes| one.note(*bytes));
        other.note(100);
        let mut counted = Counted::default();
        counted.add(&one);
        counted.add(&other);
        let found: Vec<(Option<u64>, u64)> = counted.cells().filter(|(_, count)| *count > 0).collect();
        assert_eq!(found, [(Some(64), 2), (Some(256), 2), (None, 1)]);
        assert_eq!((counted.count(), counted.sum), (5, 5 + 64 + 65 + (1 << 30) + 100));
    }
}
