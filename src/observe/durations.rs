//! A copy of what a duration histogram has counted, to be compared with an earlier one and asked for quantiles. Made on the
//! side port's thread, once a second or when somebody asks; the data path knows nothing of it.

use super::counters::{CELLS, Histogram, middle};

/// How many requests took how long: 12.5 KiB.
#[derive(Clone)]
pub(crate) struct Durations {
    cells: Box<[u64]>,
    sum_nanos: u64,
}

impl Default for Durations {
    fn default() -> Durations {
        Durations { cells: vec![0; CELLS].into(), sum_nanos: 0 }
    }
}

/// What happened between two copies, as it is kept for an hour: few of the cells are in use in any minute. At most 12.5 KiB.
pub(crate) struct Delta {
    /// Cell and count.
    cells: Box<[(u16, u32)]>,
    sum_nanos: u64,
}

impl Durations {
    pub(crate) fn add(&mut self, of: &Histogram) {
        self.cells.iter_mut().zip(of.cells()).for_each(|(own, count)| *own += count);
        self.sum_nanos = self.sum_nanos.wrapping_add(of.sum_nanos());
    }

    pub(crate) fn absorb(&mut self, delta: &Delta) {
        for (cell, count) in &delta.cells {
            self.cells[usize::from(*cell)] += u64::from(*count);
        }
        self.sum_nanos = self.sum_nanos.wrapping_add(delta.sum_nanos);
    }

    /// What has come since `earlier`.
    pub(crate) fn since(&self, earlier: &Durations) -> Delta {
        let grown = self.cells.iter().zip(&earlier.cells).map(|(now, then)| now.saturating_sub(*then));
        let cells = grown.enumerate().filter(|(_, n)| *n > 0);
        let cells = cells.map(|(cell, n)| (cell as u16, u32::try_from(n).unwrap_or(u32::MAX))).collect();
        Delta { cells, sum_nanos: self.sum_nanos.wrapping_sub(earlier.sum_nanos) }
    }

    pub(crate) fn count(&self) -> u64 {
        self.cells.iter().sum()
    }

    /// None: there was no request.
    pub(crate) fn mean_ms(&self) -> Option<f64> {
        let n = self.count();
        (n > 0).then(|| self.sum_nanos as f64 / n as f64 / 1e6)
    }

    /// The duration that a share of `q` of the requests did not exceed, to 0.8 %.
    pub(crate) fn quantile_ms(&self, q: f64) -> Option<f64> {
        let counts = self.cells.iter().enumerate().map(|(cell, n)| (cell, *n));
        quantile(counts, self.count(), q)
    }
}

impl Delta {
    pub(crate) fn quantile_ms(&self, q: f64) -> Option<f64> {
        let counts = || self.cells.iter().map(|(cell, n)| (usize::from(*cell), u64::from(*n)));
        quantile(counts(), counts().map(|(_, n)| n).sum(), q)
    }
}

fn quantile(counts: impl Iterator<Item = (usize, u64)>, total: u64, q: f64) -> Option<f64> {
    let rank = ((q * total as f64).ceil() as u64).clamp(1, total.max(1));
    let mut below = 0;
    let found = counts.into_iter().find(|(_, n)| {
        below += n;
        below >= rank
    });
    found.map(|(cell, _)| middle(cell) as f64 / 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(h: &Histogram) -> Durations {
        let mut all = Durations::default();
        all.add(h);
        all
    }

    #[test]
    fn quantiles_are_those_of_what_was_counted() {
        let h = Histogram::default();
        (1..=1000).for_each(|i| h.observe(i * 1_000));
        let all = of(&h);
        for (q, expected) in [(0.5, 0.5), (0.95, 0.95), (0.99, 0.99)] {
            let ms = all.quantile_ms(q).unwrap();
            assert!((ms - expected).abs() < 0.01 * expected, "{q}: {ms}");
        }
        assert!((all.mean_ms().unwrap() - 0.5005).abs() < 1e-9);
        assert_eq!((Durations::default().mean_ms(), Durations::default().quantile_ms(0.5)), (None, None));
    }

    #[test]
    fn what_has_come_since_is_all_but_what_was_there() {
        let h = Histogram::default();
        h.observe_n(1_000_000, 1000);
        let before = of(&h);
        h.observe_n(9_000_000, 3);
        let since = of(&h).since(&before);
        assert!((since.quantile_ms(0.5).unwrap() - 9.0).abs() < 0.09);
        let mut window = Durations::default();
        window.absorb(&since);
        assert_eq!((window.count(), window.mean_ms()), (3, Some(9.0)));
        assert_eq!(before.since(&before).quantile_ms(0.5), None);
    }
}
