//! Counts by size, in buckets that are a quarter or an eighth of an octave wide: of reuse distances in bytes and of latencies
//! in nanoseconds. Weights instead of whole numbers, because a sampled key stands for many, and so that all of it can be
//! halved when it ages.

/// What a histogram is of: where it begins and how fine it is. What lies outside counts in the first or last bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scale {
    /// 256 B to 4 TiB, 25 % at most a bucket.
    Bytes,
    /// 4 µs to 68 s, 12 % at most a bucket.
    Nanos,
}

impl Scale {
    /// The exponent of the lowest bucket, buckets for each doubling (as an exponent), doublings.
    const fn shape(self) -> (u32, u32, u32) {
        match self {
            Scale::Bytes => (8, 2, 34),
            Scale::Nanos => (12, 3, 24),
        }
    }

    const fn buckets(self) -> usize {
        let (_, fine, octaves) = self.shape();
        (octaves as usize) << fine
    }

    fn bucket(self, value: u64) -> usize {
        let (low, fine, _) = self.shape();
        let value = value.max(1 << low);
        let octave = value.ilog2();
        let part = (value >> (octave - fine)) & ((1 << fine) - 1);
        let index = (u64::from(octave - low) << fine) + part;
        usize::try_from(index).unwrap_or(usize::MAX).min(self.buckets() - 1)
    }

    /// Where bucket `index` begins.
    fn start(self, index: usize) -> f64 {
        let (low, fine, _) = self.shape();
        let (octave, part) = (index >> fine, index & ((1 << fine) - 1));
        let whole = f64::from(low + octave as u32).exp2();
        whole * (1.0 + part as f64 / f64::from(1u32 << fine))
    }
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Hist {
    scale: Scale,
    counts: Box<[f64]>,
    pub(crate) count: f64,
    /// Of what was recorded, each with its weight.
    pub(crate) sum: f64,
}

impl Hist {
    pub(super) fn new(scale: Scale) -> Hist {
        Hist { scale, counts: vec![0.0; scale.buckets()].into(), count: 0.0, sum: 0.0 }
    }

    pub(super) fn add(&mut self, value: u64, weight: f64) {
        self.counts[self.scale.bucket(value)] += weight;
        self.count += weight;
        self.sum += value as f64 * weight;
    }

    /// How much of it is at most `limit`; within a bucket as if it were spread evenly.
    pub(crate) fn up_to(&self, limit: u64) -> f64 {
        let last = self.scale.bucket(limit);
        let whole: f64 = self.counts[..last].iter().sum();
        let (from, to) = (self.scale.start(last), self.scale.start(last + 1));
        whole + self.counts[last] * ((limit as f64 - from) / (to - from)).clamp(0.0, 1.0)
    }

    /// The end of the bucket in which a share of `q` is reached; none where nothing was counted.
    pub(crate) fn quantile(&self, q: f64) -> Option<f64> {
        if self.count <= 0.0 {
            return None;
        }
        let (mut below, wanted) = (0.0, self.count * q);
        let found = self.counts.iter().position(|count| {
            below += count;
            *count > 0.0 && below >= wanted * (1.0 - 1e-9)
        });
        found.map(|index| self.scale.start(index + 1))
    }

    pub(crate) fn mean(&self) -> Option<f64> {
        (self.count > 0.0).then(|| self.sum / self.count)
    }

    pub(super) fn halve(&mut self) {
        self.counts.iter_mut().for_each(|count| *count /= 2.0);
        self.count /= 2.0;
        self.sum /= 2.0;
    }

    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        self.counts.len() * size_of::<f64>()
    }

    /// The buckets that hold anything, for the file.
    pub(super) fn pairs(&self) -> Vec<(usize, f64)> {
        self.counts.iter().copied().enumerate().filter(|(_, count)| *count > 0.0).collect()
    }

    /// The same read back; none where it cannot have come from here.
    pub(super) fn of(scale: Scale, pairs: &[(usize, f64)], sum: f64) -> Option<Hist> {
        let mut hist = Hist::new(scale);
        for (index, count) in pairs {
            *hist.counts.get_mut(*index).filter(|_| count.is_finite() && *count >= 0.0)? += count;
            hist.count += count;
        }
        hist.sum = Some(sum).filter(|sum| sum.is_finite() && *sum >= 0.0)?;
        Some(hist)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_begins_where_the_one_before_ends() {
        for scale in [Scale::Bytes, Scale::Nanos] {
            for index in 0..scale.buckets() {
                let start = scale.start(index).ceil() as u64;
                assert_eq!(scale.bucket(start), index, "{scale:?} {index}");
                assert!(scale.start(index + 1) / scale.start(index) <= 1.26);
            }
            assert_eq!(scale.bucket(0), 0);
            assert_eq!(scale.bucket(u64::MAX), scale.buckets() - 1);
        }
    }

    #[test]
    fn quantiles_and_parts_are_within_a_bucket_of_the_truth() {
        let mut hist = Hist::new(Scale::Nanos);
        (1..=10_000u64).for_each(|i| hist.add(i * 1000, 1.0));
        for q in [0.5, 0.95, 0.99] {
            let (found, true_one) = (hist.quantile(q).expect("counted"), q * 1e7);
            assert!((found / true_one - 1.0).abs() < 0.13, "{q}: {found}");
        }
        assert!((hist.up_to(5_000_000) / 5000.0 - 1.0).abs() < 0.02);
        assert_eq!(hist.mean(), Some(5_000_500.0));
        hist.halve();
        assert_eq!((hist.count, hist.mean()), (5000.0, Some(5_000_500.0)));
    }

    #[test]
    fn what_is_written_is_read_back_and_nothing_else() {
        let mut hist = Hist::new(Scale::Bytes);
        [1, 1000, 1 << 50].iter().for_each(|value| hist.add(*value, 2.5));
        assert_eq!(Hist::of(Scale::Bytes, &hist.pairs(), hist.sum).as_ref(), Some(&hist));
        assert_eq!(Hist::of(Scale::Bytes, &[(100_000, 1.0)], 0.0), None);
        assert_eq!(Hist::of(Scale::Bytes, &[(1, -1.0)], 0.0), None);
    }
}
