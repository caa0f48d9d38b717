//! Confidence intervals of 95 % for what two arms of an experiment are compared by. Pure arithmetic, on counts, moments
//! and ranks; it is asked when somebody looks or a guard judges, not per request.
//!
//! What they speak of: requests that come as they did, one independent of the other. Arms are made of keys, though, so
//! with few keys, or one that is much busier than all others, two arms differ by what these keys are like, and no interval
//! over requests knows that. Two variants with the same TTL (an A/A test) show how much it is.

use super::latency::{Bucket, Moments, Sample};

/// The two-sided 95 % point of the standard normal distribution.
const Z: f64 = 1.959_963_984_540_054;

/// What each end of an interval of 95 % leaves out.
const TAIL: f64 = 0.025;

/// Below so many values a mean is not yet normally distributed, and latencies are skewed: no interval is better than a
/// wrong one.
const MEAN_MIN: u64 = 30;

/// From this variance on (n q (1 - q)) the binomial distribution of ranks is taken for a normal one: its error is then a
/// thousandth of the coverage. Below, it is summed.
const NORMAL_FROM: f64 = 1000.0;

/// A figure and the interval that holds the truth in 95 of 100 cases.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Estimate {
    pub(crate) value: f64,
    pub(crate) low: f64,
    /// Infinite where so few values have no upper bound.
    pub(crate) high: f64,
}

/// So many of `n`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Share {
    pub(crate) x: u64,
    pub(crate) n: u64,
}

/// The share itself, by Wilson's score interval (E. B. Wilson, JASA 22, 1927): (p + z²/2n ± z sqrt(p(1-p)/n + z²/4n²)) /
/// (1 + z²/n). Unlike p ± z sqrt(p(1-p)/n) it holds what it says for rare events, also for none at all.
pub(crate) fn rate(share: Share) -> Option<Estimate> {
    if share.n == 0 {
        return None;
    }
    let (p, n, z2) = (share.x as f64 / share.n as f64, share.n as f64, Z * Z);
    let middle = p + z2 / (2.0 * n);
    let reach = Z * (p * (1.0 - p) / n + z2 / (4.0 * n * n)).sqrt();
    let scale = 1.0 + z2 / n;
    // At the ends rounding would put the interval beside the value.
    let (low, high) = ((middle - reach) / scale, (middle + reach) / scale);
    Some(Estimate { value: p, low: low.clamp(0.0, p), high: high.clamp(p, 1.0) })
}

/// `a` minus `b`, by Newcombe's hybrid score interval (R. G. Newcombe, Statistics in Medicine 17, 1998, method 10).
pub(crate) fn rate_difference(a: Share, b: Share) -> Option<Estimate> {
    Some(difference(rate(a)?, rate(b)?))
}

/// `a` minus `b`, from the interval of each: d - sqrt((a - a.low)² + (b.high - b)²) and d + sqrt((a.high - a)² + (b -
/// b.low)²). For shares it is Newcombe's; that it serves for other figures whose intervals are known is due to G. Y. Zou
/// and A. Donner (Statistics in Medicine 27, 2008).
pub(crate) fn difference(a: Estimate, b: Estimate) -> Estimate {
    let value = a.value - b.value;
    let low = value - (a.value - a.low).hypot(b.high - b.value);
    let high = value + (a.high - a.value).hypot(b.value - b.low);
    Estimate { value, low, high }
}

/// The mean: x̄ ± z s / sqrt(n).
pub(crate) fn mean(a: Moments) -> Option<Estimate> {
    excess(a, Moments { n: u64::MAX, mean: 0.0, variance: 0.0 }, 1.0)
}

/// The mean of `a` minus `factor` times that of `b`, as B. L. Welch has it (Biometrika 34, 1947), with the normal
/// distribution in place of t, which is the same from some hundred values on: d ± z sqrt(s_a²/n_a + f² s_b²/n_b).
pub(crate) fn excess(a: Moments, b: Moments, factor: f64) -> Option<Estimate> {
    if a.n.min(b.n) < MEAN_MIN {
        return None;
    }
    let value = a.mean - factor * b.mean;
    let reach = Z * (a.variance / a.n as f64 + factor * factor * b.variance / b.n as f64).sqrt();
    Some(Estimate { value, low: value - reach, high: value + reach })
}

/// A quantile of durations with the interval between two order statistics (H. A. David and H. N. Nagaraja, Order
/// Statistics, 3rd ed., 7.1): how many of n values lie below the true quantile is binomial (n, q), whatever their
/// distribution. The ends are the outer bounds of their buckets.
pub(crate) fn quantile<C: hdrhistogram::Counter>(sample: &Sample<C>, q: f64) -> Option<Estimate> {
    let value = sample.quantile(q)?.middle() as f64;
    let (low, high) = ranks(sample.count(), q);
    let bound = |rank: u64, end: fn(Bucket) -> u64| sample.ranked(rank).map(|bucket| end(bucket) as f64);
    Some(Estimate {
        value,
        low: if low == 0 { 0.0 } else { bound(low, |b| b.low).unwrap_or(0.0) },
        high: bound(high, |b| b.high).unwrap_or(f64::INFINITY),
    })
}

/// The ranks l and u (from 1) of n sorted values between which the q-quantile lies: P(B < l) + P(B >= u) is at most 5 %, B
/// binomial (n, q). l = 0: no value is surely below; u = n + 1: none is surely above.
fn ranks(n: u64, q: f64) -> (u64, u64) {
    let (mean, variance) = (n as f64 * q, n as f64 * q * (1.0 - q));
    if variance >= NORMAL_FROM {
        let reach = Z * variance.sqrt();
        // Half a rank for the continuity, outwards.
        let (low, high) = ((mean - reach - 0.5).floor() + 1.0, (mean + reach + 0.5).ceil());
        return (low.max(0.0) as u64, (high as u64).min(n + 1));
    }
    summed_ranks(n, q)
}

/// The same by adding the probabilities up. Only those within 10 standard deviations matter, and below `NORMAL_FROM` these
/// are at most 640.
fn summed_ranks(n: u64, q: f64) -> (u64, u64) {
    let (mean, reach) = (n as f64 * q, 10.0 * (n as f64 * q * (1.0 - q)).sqrt() + 10.0);
    let from = (mean - reach).floor().max(0.0) as u64;
    let to = ((mean + reach).ceil() as u64).min(n);
    // Weights relative to the mode, so that none is lost to underflow; they are divided by their sum.
    let mode = (mean.round() as u64).clamp(from, to);
    let odds = q / (1.0 - q);
    let mut weights = vec![0.0; (to - from + 1) as usize];
    weights[(mode - from) as usize] = 1.0;
    for k in mode + 1..=to {
        let ratio = (n - k + 1) as f64 / k as f64 * odds;
        weights[(k - from) as usize] = weights[(k - 1 - from) as usize] * ratio;
    }
    for k in (from..mode).rev() {
        let ratio = (k + 1) as f64 / ((n - k) as f64 * odds);
        weights[(k - from) as usize] = weights[(k + 1 - from) as usize] * ratio;
    }
    narrowest(from, &weights).unwrap_or((0, n + 1))
}

/// `weights` are proportional to the probabilities of `from` and what follows. Equal tails first; then, because the steps
/// of a discrete distribution leave some of both unused, one end goes a rank inwards where the 5 % allow it.
fn narrowest(from: u64, weights: &[f64]) -> Option<(u64, u64)> {
    let sum: f64 = weights.iter().sum();
    // P(B < from + i).
    let below: Vec<f64> = std::iter::once(0.0)
        .chain(weights.iter().scan(0.0, |sum_below, weight| {
            *sum_below += weight / sum;
            Some(*sum_below)
        }))
        .collect();
    let low = below.iter().rposition(|p| *p <= TAIL)?;
    let high = below.iter().position(|p| 1.0 - p <= TAIL)?;
    let missed = |low: usize, high: usize| below[low] + 1.0 - below[high];
    let (low, high) = if low + 1 < high && missed(low, high - 1) <= 2.0 * TAIL {
        (low, high - 1)
    } else if low + 1 < high && missed(low + 1, high) <= 2.0 * TAIL {
        (low + 1, high)
    } else {
        (low, high)
    };
    Some((from + low as u64, from + high as u64))
}

#[cfg(test)]
mod tests;
