//! Each interval against the truth it is to cover: thousands of seeded experiments whose truth is known, and the share of
//! intervals that held it. Discreteness and buckets move that share, so 93 to 97 of 100 are asked for.

use super::*;
use crate::observe::latency::Seen;

/// SplitMix64 (Steele, Lea, Flood 2014): seeded, so that a failing run fails again.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Above 0, below 1.
    fn unit(&mut self) -> f64 {
        ((self.next() >> 11) as f64 + 0.5) / (1_u64 << 53) as f64
    }

    fn successes(&mut self, n: u64, p: f64) -> Share {
        Share { x: (0..n).filter(|_| self.unit() < p).count() as u64, n }
    }

    fn normal(&mut self) -> f64 {
        (-2.0 * self.unit().ln()).sqrt() * (std::f64::consts::TAU * self.unit()).cos()
    }

    /// Skewed as latencies are: median `median`, and e^sigma times it one standard deviation up.
    fn latency(&mut self, median: f64, sigma: f64) -> f64 {
        median * (sigma * self.normal()).exp()
    }

    fn latencies(&mut self, n: u64, median: f64, sigma: f64) -> Seen {
        let mut seen = Seen::default();
        (0..n).for_each(|_| seen.record_n(self.latency(median, sigma) as u64, 1));
        seen
    }
}

fn covered(runs: u32, what: &str, truth: f64, mut run: impl FnMut(&mut Dice) -> Option<Estimate>) {
    let mut dice = Dice(0x5eed);
    let holds = |estimate: Estimate| (estimate.low..=estimate.high).contains(&truth);
    let held = (0..runs).filter(|_| run(&mut dice).is_some_and(holds)).count();
    let share = held as f64 / f64::from(runs);
    assert!((0.93..=0.97).contains(&share), "{what}: {share} of {runs} intervals hold {truth}");
}

#[test]
fn a_rates_interval_covers_it() {
    for (p, n) in [(0.3, 500), (0.9, 200), (0.01, 1000), (0.004, 2000), (0.5, 50)] {
        covered(4000, &format!("{p} of {n}"), p, |dice| rate(dice.successes(n, p)));
    }
}

#[test]
fn the_difference_of_two_rates_is_covered() {
    for (p, n, q, m) in [(0.9, 300, 0.8, 500), (0.02, 1000, 0.01, 500), (0.5, 100, 0.5, 2000)] {
        let run = |dice: &mut Dice| rate_difference(dice.successes(n, p), dice.successes(m, q));
        covered(3000, &format!("{p} of {n} - {q} of {m}"), p - q, run);
    }
}

#[test]
fn the_difference_of_two_means_is_covered() {
    // The mean of what is lognormal is the median times e^(sigma² / 2).
    let mean = |median: f64, sigma: f64| median * (sigma * sigma / 2.0).exp();
    for (n, m, factor) in [(500, 500, 1.0), (200, 2000, 1.0), (1000, 500, 1.5)] {
        let truth = mean(300_000.0, 0.7) - factor * mean(500_000.0, 0.5);
        covered(1500, &format!("{n} against {factor} times {m}"), truth, |dice| {
            let (a, b) = (dice.latencies(n, 300_000.0, 0.7), dice.latencies(m, 500_000.0, 0.5));
            excess(a.moments()?, b.moments()?, factor)
        });
    }
    covered(1500, "one mean", mean(300_000.0, 0.7), |dice| mean_of(&dice.latencies(500, 300_000.0, 0.7)));
}

fn mean_of(seen: &Seen) -> Option<Estimate> {
    super::mean(seen.moments()?)
}

#[test]
fn quantiles_are_covered() {
    // The 99 % point of the standard normal distribution.
    const Z99: f64 = 2.326_347_874;
    for (n, q, z) in [(200, 0.5, 0.0), (1000, 0.5, 0.0), (5000, 0.5, 0.0), (1000, 0.99, Z99)] {
        let (median, sigma) = (400_000.0, 2.0);
        let runs = if n > 1000 { 1000 } else { 2000 };
        let run = |dice: &mut Dice| quantile(&dice.latencies(n, median, sigma), q);
        covered(runs, &format!("{q} of {n}"), median * (sigma * z).exp(), run);
    }
}

#[test]
fn the_difference_of_two_quantiles_is_covered() {
    let truth = 400_000.0 - 700_000.0;
    covered(2000, "medians of 1000 and 400", truth, |dice| {
        let (a, b) = (dice.latencies(1000, 400_000.0, 1.5), dice.latencies(400, 700_000.0, 1.5));
        Some(difference(quantile(&a, 0.5)?, quantile(&b, 0.5)?))
    });
}

/// The definition, term by term.
fn missed(n: u64, q: f64, (low, high): (u64, u64)) -> f64 {
    let ln_factorial: Vec<f64> = std::iter::once(0.0)
        .chain((1..=n).scan(0.0, |ln, i| {
            *ln += (i as f64).ln();
            Some(*ln)
        }))
        .collect();
    let probability = |k: u64| {
        let ways = ln_factorial[n as usize] - ln_factorial[k as usize] - ln_factorial[(n - k) as usize];
        (ways + k as f64 * q.ln() + (n - k) as f64 * (1.0 - q).ln()).exp()
    };
    (0..=n).filter(|k| *k < low || *k >= high).map(probability).sum()
}

#[test]
fn ranks_are_those_of_the_binomial_distribution() {
    for n in [1, 2, 5, 30, 59, 100, 299, 1000, 5000] {
        for q in [0.5, 0.95, 0.99] {
            let (low, high) = ranks(n, q);
            assert!(missed(n, q, (low, high)) <= 0.05 + 1e-9, "{n} {q}: {low} {high}");
            let narrower = [(low + 1, high), (low, high - 1)].map(|ends| missed(n, q, ends));
            // One rank less at either end would leave too much out, in one tail or in both.
            assert!(low + 1 >= high || narrower.iter().any(|m| *m > 0.05), "{n} {q}: {low} {high} {narrower:?}");
        }
    }
    // Textbook: of 100 values the median lies between the 40th and the 61st; 96.5 %, and one rank less is 95.4.
    assert_eq!(ranks(100, 0.5), (40, 60));
    for (n, q) in [(4000, 0.5), (10_000, 0.5), (101_100, 0.99), (1_000_000, 0.99)] {
        let (normal, summed) = (ranks(n, q), summed_ranks(n, q));
        assert!(normal.0.abs_diff(summed.0) <= 1 && normal.1.abs_diff(summed.1) <= 1, "{n}: {normal:?} {summed:?}");
    }
    let (low, high) = ranks(1_000_000_000_000, 0.99);
    assert!(low.abs_diff(989_999_804_987) < 10 && high.abs_diff(990_000_195_013) < 10, "{low} {high}");
}

#[test]
fn too_few_values_have_no_bound_or_no_interval() {
    assert_eq!(rate(Share { x: 0, n: 0 }), None);
    let none = rate(Share { x: 0, n: 500 }).expect("an estimate");
    assert_eq!((none.value, none.low), (0.0, 0.0));
    assert!((0.006..0.009).contains(&none.high), "{none:?}");
    let all = rate(Share { x: 500, n: 500 }).expect("an estimate");
    assert_eq!((all.value, all.high), (1.0, 1.0));

    let mut seen = Seen::default();
    assert_eq!(quantile(&seen, 0.99), None);
    seen.record_n(1_000_000, 100);
    let p99 = quantile(&seen, 0.99).expect("an estimate");
    assert_eq!(p99.high, f64::INFINITY);
    assert!(p99.low > 0.0 && p99.low <= p99.value);
    let few = Moments { n: MEAN_MIN - 1, mean: 1.0, variance: 1.0 };
    assert_eq!(mean(few), None);
    assert_eq!(excess(Moments { n: 1000, ..few }, few, 1.0), None);
}

/// Published: Newcombe 1998, table II, contrast (a) 56/70 - 48/80: 0.0524 to 0.3339; (c) 6/7 - 2/7: 0.0582 to 0.8062.
/// Wilson's own: Newcombe's companion paper (1998, 857), 81 of 263: 0.2553 to 0.3662, 15 of 148: 0.0624 to 0.1605.
#[test]
fn the_papers_own_examples_come_out() {
    let close = |a: f64, b: f64| (a - b).abs() < 5e-5;
    for (x, n, low, high) in [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605)] {
        let share = rate(Share { x, n }).expect("an estimate");
        assert!(close(share.low, low) && close(share.high, high), "{share:?}");
    }
    for (a, b, low, high) in [((56, 70), (48, 80), 0.0524, 0.3339), ((6, 7), (2, 7), 0.0582, 0.8062)] {
        let share = |(x, n)| Share { x, n };
        let found = rate_difference(share(a), share(b)).expect("an estimate");
        assert!(close(found.low, low) && close(found.high, high), "{found:?}");
    }
}
