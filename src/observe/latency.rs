//! How long requests took and what became of them, over the last minute, quarter of an hour, hour, and since the start: HDR
//! histograms in slices of a minute, a ring of them. Experiments count their arms in it, and whatever shows quantiles over
//! time can. It has no clock: every call brings the time, so a test can let an hour pass.
//!
//! Quantiles come from buckets, which are 0.8 % wide; means and variances from exact sums, because the difference of two
//! means may be smaller than a bucket. Measured: 25 ns a record, 35 under a lock that nobody else wants; 40 µs more for the
//! first one of a minute, which adds the last minute up. Memory is taken when a minute's slice is first used and kept for
//! ever: 12.5 KiB a slice, 0.8 MiB a ring after an hour; from then on nothing is allocated.

use std::ops::RangeInclusive;

use hdrhistogram::{Counter, Histogram};

pub(crate) const MINUTE: u64 = 60_000_000_000;

/// Nanoseconds that are one bucket at the bottom. A hit takes some 300, so its quantiles are good to 10 % there, and to
/// 0.8 % from 8 µs on; a finer bottom would cost 128 counters for each halving.
const LOWEST: u64 = 64;

/// What takes longer counts as this long: no minute's quantile tells more by then.
const HIGHEST: u64 = MINUTE;

/// Significant digits: 128 buckets for each doubling. One digit less would hide a 5 % change, one more is eight times the
/// memory.
const DIGITS: u8 = 2;

/// The longest window, in minutes.
const MINUTES: u64 = 60;

/// The running minute and all complete ones of the longest window.
const SLICES: usize = MINUTES as usize + 1;

/// What was seen in some time: the durations of requests, and outcomes that are counted beside them.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Sample<C: Counter> {
    counts: Histogram<C>,
    sum: u128,
    squares: u128,
    /// Requests that were answered with an error.
    pub(crate) errors: u64,
    /// Keys that were answered from the L1, and those it was asked for and did not have.
    pub(crate) hits: u64,
    pub(crate) misses: u64,
}

/// What one minute or one window of a guard counts in: 71 million requests a second would be too many for 32 bits.
pub(crate) type Slice = Sample<u32>;

/// What is read, and counted since the start.
pub(crate) type Seen = Sample<u64>;

/// The bucket that some quantile lies in, in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bucket {
    pub(crate) low: u64,
    pub(crate) high: u64,
}

impl Bucket {
    pub(crate) fn middle(self) -> u64 {
        self.low + (self.high - self.low) / 2
    }
}

/// All that a comparison of means needs: how many, their mean and their variance (nanoseconds, squared).
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Moments {
    pub(crate) n: u64,
    pub(crate) mean: f64,
    pub(crate) variance: f64,
}

impl<C: Counter> Default for Sample<C> {
    fn default() -> Self {
        let counts = Histogram::new_with_bounds(LOWEST, HIGHEST, DIGITS).expect("bounds that hdrhistogram accepts");
        Sample { counts, sum: 0, squares: 0, errors: 0, hits: 0, misses: 0 }
    }
}

impl<C: Counter> Sample<C> {
    /// `n` requests took `nanos` each.
    pub(crate) fn record_n(&mut self, nanos: u64, n: C) {
        let (nanos, times) = (nanos.min(HIGHEST), u128::from(n.as_u64()));
        self.counts.saturating_record_n(nanos, n);
        self.sum += u128::from(nanos) * times;
        self.squares += u128::from(nanos) * u128::from(nanos) * times;
    }

    pub(crate) fn reset(&mut self) {
        self.counts.reset();
        (self.sum, self.squares, self.errors, self.hits, self.misses) = (0, 0, 0, 0, 0);
    }

    pub(crate) fn count(&self) -> u64 {
        self.counts.len()
    }

    /// Key look-ups of the L1.
    pub(crate) fn lookups(&self) -> u64 {
        self.hits + self.misses
    }

    /// None: there was no request.
    pub(crate) fn moments(&self) -> Option<Moments> {
        let n = self.count();
        if n == 0 {
            return None;
        }
        // Around the whole part of the mean, so that nothing overflows and nothing is rounded: with values up to 6e10 the
        // terms stay below 2^128 for 10^16 requests. What the fraction adds to the squares is below n.
        let (times, whole) = (u128::from(n), self.sum / u128::from(n));
        let rest = self.sum - whole * times;
        let squares = self.squares + times * whole * whole - 2 * whole * self.sum;
        let mean = whole as f64 + rest as f64 / n as f64;
        let spread = squares as f64 - (rest as f64) * (rest as f64) / n as f64;
        let variance = if n > 1 { spread.max(0.0) / (n - 1) as f64 } else { 0.0 };
        Some(Moments { n, mean, variance })
    }

    /// Where the `rank`-th shortest request lies, counted from 1. None: there were not so many.
    pub(crate) fn ranked(&self, rank: u64) -> Option<Bucket> {
        let mut below = 0;
        let value = self.counts.iter_recorded().find_map(|bucket| {
            below += bucket.count_since_last_iteration();
            (below >= rank).then(|| bucket.value_iterated_to())
        });
        let counts = &self.counts;
        value.map(|v| Bucket { low: counts.lowest_equivalent(v), high: counts.highest_equivalent(v) })
    }

    /// The smallest duration that a share of `q` of the requests did not exceed.
    pub(crate) fn quantile(&self, q: f64) -> Option<Bucket> {
        let rank = (q * self.count() as f64).ceil().max(1.0) as u64;
        self.ranked(rank.min(self.count()))
    }
}

impl Seen {
    pub(crate) fn absorb<C: Counter>(&mut self, other: &Sample<C>) {
        for bucket in other.counts.iter_recorded() {
            self.counts.saturating_record_n(bucket.value_iterated_to(), bucket.count_since_last_iteration());
        }
        self.sum += other.sum;
        self.squares += other.squares;
        self.errors += other.errors;
        self.hits += other.hits;
        self.misses += other.misses;
    }
}

/// How far back one looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Window {
    Minute,
    Quarter,
    Hour,
    Start,
}

impl Window {
    pub(crate) const ALL: [Window; 4] = [Window::Minute, Window::Quarter, Window::Hour, Window::Start];

    /// The minutes it covers at `now`: the running one and as many complete ones as it is long, so that it never shows less
    /// than its name says, and at most a minute more. None: all since the start.
    fn minutes(self, now: u64) -> Option<RangeInclusive<u64>> {
        let complete = match self {
            Window::Minute => 1,
            Window::Quarter => 15,
            Window::Hour => MINUTES,
            Window::Start => return None,
        };
        let running = now / MINUTE;
        Some(running.saturating_sub(complete)..=running)
    }

    /// How many nanoseconds of a ring that began at `started` it covers at `now`.
    pub(crate) fn covers(self, started: u64, now: u64) -> u64 {
        let from = self.minutes(now).map_or(0, |minutes| minutes.start() * MINUTE);
        now.saturating_sub(from.max(started))
    }
}

/// The last hour by minutes, and all that was before.
pub(crate) struct Rolling {
    started: u64,
    /// The running minute, counted like the clock from boot.
    minute: u64,
    /// Each minute's place is its number modulo the ring's length. None: not used yet.
    slices: [Option<Box<Minute>>; SLICES],
    /// Complete minutes.
    total: Seen,
}

struct Minute {
    number: u64,
    slice: Slice,
}

impl Rolling {
    pub(crate) fn new(now: u64) -> Rolling {
        let slices = std::array::from_fn(|_| None);
        Rolling { started: now, minute: now / MINUTE, slices, total: Seen::default() }
    }

    pub(crate) fn started(&self) -> u64 {
        self.started
    }

    /// A request took `nanos` and was answered, with an error or not.
    pub(crate) fn record(&mut self, now: u64, nanos: u64, failed: bool) {
        let slice = self.running(now);
        slice.record_n(nanos, 1);
        slice.errors += u64::from(failed);
    }

    /// `n` requests took `nanos` each; none failed.
    pub(crate) fn record_n(&mut self, now: u64, nanos: u64, n: u32) {
        self.running(now).record_n(nanos, n);
    }

    /// Keys that the L1 was asked for.
    pub(crate) fn look_ups(&mut self, now: u64, hits: u64, misses: u64) {
        let slice = self.running(now);
        slice.hits += hits;
        slice.misses += misses;
    }

    /// The slice of the minute of `now`. Time that runs backwards by a little, as it does between threads, counts in the
    /// minute that has begun.
    fn running(&mut self, now: u64) -> &mut Slice {
        let minute = now / MINUTE;
        if minute > self.minute {
            self.turn(minute);
        }
        let (minute, place) = (self.minute, place(self.minute));
        let slot =
            self.slices[place].get_or_insert_with(|| Box::new(Minute { number: minute, slice: Slice::default() }));
        if slot.number != minute {
            slot.number = minute;
            slot.slice.reset();
        }
        &mut slot.slice
    }

    /// A minute is over: it goes into the total. Those in between saw nothing.
    #[cold]
    fn turn(&mut self, minute: u64) {
        if let Some(done) = self.slices[place(self.minute)].as_ref().filter(|m| m.number == self.minute) {
            self.total.absorb(&done.slice);
        }
        self.minute = minute;
    }

    /// What was seen in the window that ends at `now`, where nobody else waits for the ring; else see `part`.
    #[cfg(test)]
    pub(crate) fn over(&self, now: u64, window: Window) -> Seen {
        let mut seen = Seen::default();
        steps(now, window).for_each(|step| self.part(step).add_to(&mut seen));
        seen
    }

    /// A copy of one part of a window, some 40 KiB at most. Who shares a ring under a lock holds it for this only, 5 µs, and
    /// adds the parts up without it: an hour takes 2 ms.
    pub(crate) fn part(&self, step: Step) -> Part {
        let of = |number: u64| {
            let minute = self.slices[place(number)].as_ref().filter(|m| m.number == number)?;
            Some(minute.slice.clone())
        };
        match step {
            Step::Minute(number) => Part { total: None, slice: of(number) },
            // The running minute is not in the total yet, whenever it began.
            Step::Start => Part { total: Some(self.total.clone()), slice: of(self.minute) },
        }
    }
}

/// A copy of what a ring has for one step.
pub(crate) struct Part {
    total: Option<Seen>,
    slice: Option<Slice>,
}

impl Part {
    pub(crate) fn add_to(&self, seen: &mut Seen) {
        self.total.iter().for_each(|total| seen.absorb(total));
        self.slice.iter().for_each(|slice| seen.absorb(slice));
    }
}

/// A part of a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Minute(u64),
    Start,
}

/// The parts of a window at `now`.
pub(crate) fn steps(now: u64, window: Window) -> impl Iterator<Item = Step> {
    let minutes = window.minutes(now);
    let start = minutes.is_none().then_some(Step::Start);
    minutes.into_iter().flatten().map(Step::Minute).chain(start)
}

fn place(minute: u64) -> usize {
    (minute % SLICES as u64) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn counts(ring: &Rolling, now: u64) -> [u64; 4] {
        Window::ALL.map(|window| ring.over(now, window).count())
    }

    #[test]
    fn windows_show_what_their_name_says_and_a_minute_more_at_most() {
        let start = 1000 * MINUTE + 30 * SECOND;
        let mut ring = Rolling::new(start);
        ring.record(start, 500, false);
        assert_eq!(counts(&ring, start), [1, 1, 1, 1]);
        for (minutes, expected) in [
            (1, [1, 1, 1, 1]),
            (2, [0, 1, 1, 1]),
            (15, [0, 1, 1, 1]),
            (16, [0, 0, 1, 1]),
            (60, [0, 0, 1, 1]),
            (61, [0, 0, 0, 1]),
            (10_000, [0, 0, 0, 1]),
        ] {
            assert_eq!(counts(&ring, start + minutes * MINUTE), expected, "after {minutes} minutes");
        }
    }

    #[test]
    fn a_place_is_used_again_an_hour_later_and_nothing_is_lost() {
        let mut ring = Rolling::new(0);
        for minute in 0..200 {
            ring.record_n(minute * MINUTE, 1000, 3);
            ring.look_ups(minute * MINUTE + SECOND, 2, 1);
            let expected = [2, 16, 61, minute + 1].map(|n| 3 * n.min(minute + 1));
            assert_eq!(counts(&ring, minute * MINUTE), expected, "minute {minute}");
        }
        let all = ring.over(200 * MINUTE, Window::Start);
        assert_eq!((all.count(), all.hits, all.misses, all.lookups(), all.errors), (600, 400, 200, 600, 0));
    }

    #[test]
    fn silence_longer_than_the_ring_leaves_nothing_behind() {
        let mut ring = Rolling::new(0);
        ring.record(5 * MINUTE, 1000, true);
        ring.record(5 * MINUTE + SLICES as u64 * MINUTE, 2000, false);
        let now = (5 + SLICES as u64) * MINUTE;
        assert_eq!(counts(&ring, now), [1, 1, 1, 2]);
        assert_eq!((ring.over(now, Window::Hour).errors, ring.over(now, Window::Start).errors), (0, 1));
    }

    #[test]
    fn a_clock_of_another_thread_that_is_behind_counts_in_the_running_minute() {
        let mut ring = Rolling::new(0);
        ring.record(3 * MINUTE + 10, 1000, false);
        ring.record(3 * MINUTE - 10, 1000, false);
        assert_eq!(ring.over(3 * MINUTE + 20, Window::Minute).count(), 2);
        assert_eq!(ring.over(4 * MINUTE + 20, Window::Start).count(), 2);
    }

    #[test]
    fn what_a_window_covers_begins_with_the_ring() {
        assert_eq!(Window::Minute.covers(MINUTE, MINUTE + 5 * SECOND), 5 * SECOND);
        assert_eq!(Window::Minute.covers(0, 10 * MINUTE + 5 * SECOND), MINUTE + 5 * SECOND);
        assert_eq!(Window::Start.covers(3, 10 * MINUTE), 10 * MINUTE - 3);
    }

    #[test]
    fn quantiles_are_the_ranked_values_within_a_bucket() {
        let mut seen = Seen::default();
        (1..=1000).for_each(|i| seen.record_n(i * 10_000, 1));
        for (q, expected) in [(0.0, 10_000), (0.5, 5_000_000), (0.95, 9_500_000), (0.99, 9_900_000), (1.0, 10_000_000)]
        {
            let bucket = seen.quantile(q).expect("a thousand values");
            assert!((bucket.low..=bucket.high).contains(&expected), "{q}: {bucket:?}");
            assert!(bucket.high - bucket.low <= (expected / 100).max(LOWEST), "{q}: {bucket:?}");
            assert!((bucket.low..=bucket.high).contains(&bucket.middle()));
        }
        assert_eq!(seen.ranked(1001), None);
        assert_eq!(Seen::default().quantile(0.5), None);
    }

    #[test]
    fn moments_are_exact_where_buckets_are_not() {
        let mut slice = Slice::default();
        assert_eq!(slice.moments(), None);
        // All in one bucket, far from zero: mean 10^9 + 1, variance 1 (n - 1).
        for nanos in [1_000_000_000, 1_000_000_001, 1_000_000_002] {
            slice.record_n(nanos, 1);
        }
        assert_eq!(slice.moments(), Some(Moments { n: 3, mean: 1_000_000_001.0, variance: 1.0 }));
        slice.reset();
        slice.record_n(7, 4);
        slice.record_n(8, 4);
        let moments = slice.moments().expect("eight values");
        assert_eq!(moments.mean, 7.5);
        assert!((moments.variance - 2.0 / 7.0).abs() < 1e-12);
    }

    #[test]
    fn what_is_longer_than_a_minute_is_a_minute() {
        let mut slice = Slice::default();
        slice.record_n(u64::MAX, u32::MAX);
        slice.record_n(0, 1);
        let bucket = slice.quantile(0.5).expect("values");
        assert!((bucket.low..=bucket.high).contains(&HIGHEST), "{bucket:?}");
        assert!(slice.moments().expect("values").mean <= HIGHEST as f64);
    }

    #[test]
    fn a_slice_takes_the_memory_that_is_said() {
        let slice = Slice::default();
        let bytes = slice.counts.distinct_values() * size_of::<u32>() + size_of::<Minute>();
        assert!((12_000..12_900).contains(&bytes), "{bytes}");
        assert!(!slice.counts.is_auto_resize());
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig::with_cases(48))]
        #[test]
        fn adding_slices_is_the_same_as_recording_everything(
            values in proptest::collection::vec((0..2 * HIGHEST, 1_u32..5, 0_u64..200), 1..200)
        ) {
            let (mut ring, mut all, mut now) = (Rolling::new(0), Seen::default(), 0);
            for (nanos, n, pause) in values {
                now += pause * SECOND;
                ring.record_n(now, nanos, n);
                all.record_n(nanos, n.into());
            }
            let seen = ring.over(now, Window::Start);
            proptest::prop_assert_eq!(seen.moments(), all.moments());
            proptest::prop_assert_eq!(seen.count(), all.count());
            for q in [0.0, 0.5, 0.95, 0.99, 1.0] {
                proptest::prop_assert_eq!(seen.quantile(q), all.quantile(q));
            }
        }
    }
}
