//! `GET /api/v1/experiments`: what the arms of each rule's experiment have seen, and by how much they differ, each figure
//! with the interval that holds the truth in 95 of 100 cases. Read from `observe`, added up when somebody asks: 4 ms
//! for each arm that has been busy for an hour, on the side port's own thread.

use serde::Serialize;

use crate::observe::arms::{Arms, Experiment, GuardShown, RampShown, Why};
use crate::observe::clock;
use crate::observe::interval::{self, Estimate, Share};
use crate::observe::latency::{Seen, Window};

const MS: f64 = 1e6;

#[derive(Serialize)]
pub(super) struct Experiments {
    experiments: Vec<One>,
}

#[derive(Serialize)]
struct One {
    rule: String,
    /// `steady`, `ramping` or `rolled_back`.
    state: &'static str,
    /// How long it has been so, where it matters.
    for_ms: Option<f64>,
    /// Of the rule's keys that are cached.
    share: f64,
    rolled_back_because: Option<Reason>,
    ramp: Option<Ramp>,
    auto_rollback: Option<Guard>,
    arms: Vec<Arm>,
    /// Each cached arm against the control arm, or, where all keys are cached, against the first variant.
    differences: Vec<Difference>,
}

#[derive(Serialize)]
struct Reason {
    code: &'static str,
    message: String,
}

#[derive(Serialize)]
struct Ramp {
    steps: Vec<f64>,
    hold_ms: f64,
    /// The next step waits for a window that is judged good.
    waits_for_guard: bool,
}

#[derive(Serialize)]
struct Guard {
    error_rate: f64,
    latency: f64,
    min_requests: u64,
    window_ms: f64,
    windows_judged: u64,
    /// What the last window showed, if it regressed: one more like it rolls back.
    regressed: Option<Reason>,
}

#[derive(Serialize)]
struct Arm {
    arm: String,
    cached: bool,
    windows: Windows<Figures>,
}

#[derive(Serialize)]
struct Difference {
    arm: String,
    against: String,
    windows: Windows<Differences>,
}

/// The same for each length of time.
#[derive(Serialize)]
struct Windows<T> {
    #[serde(rename = "1m")]
    minute: T,
    #[serde(rename = "15m")]
    quarter: T,
    #[serde(rename = "60m")]
    hour: T,
    start: T,
}

#[derive(Serialize)]
struct Figures {
    /// How much of the window was measured: a minute more than its name says at most.
    measured_ms: f64,
    requests: u64,
    errors: u64,
    error_rate: Option<Interval>,
    hits: u64,
    misses: u64,
    hit_rate: Option<Interval>,
    mean_ms: Option<Interval>,
    p50_ms: Option<Interval>,
    p95_ms: Option<Interval>,
    p99_ms: Option<Interval>,
}

#[derive(Serialize)]
struct Differences {
    error_rate: Option<Interval>,
    hit_rate: Option<Interval>,
    mean_ms: Option<Interval>,
    p50_ms: Option<Interval>,
    p99_ms: Option<Interval>,
}

/// A figure and its interval of 95 %. `high` is null where so few requests have no upper bound.
#[derive(Serialize)]
struct Interval {
    value: f64,
    low: f64,
    high: Option<f64>,
}

/// What an arm has seen, before it is put into words.
struct Raw {
    name: String,
    cached: bool,
    seen: [(Seen, u64); 4],
}

impl Experiments {
    pub(super) fn of(arms: &Arms) -> Experiments {
        let now = clock::now();
        Experiments { experiments: arms.shown().iter().map(|experiment| One::of(experiment, arms, now)).collect() }
    }
}

impl One {
    fn of(experiment: &Experiment, arms: &Arms, now: u64) -> One {
        let raw = |name: &str, cached, arm| {
            let seen = Window::ALL.map(|window| arms.seen(arm, now, window));
            Raw { name: name.to_owned(), cached, seen }
        };
        let control = experiment.control.map(|arm| raw("control", false, arm));
        let cached = experiment.cached.iter().map(|(name, arm)| raw(name, true, *arm));
        let all: Vec<Raw> = control.into_iter().chain(cached).collect();
        let differences = match all.split_first() {
            Some((base, others)) => others.iter().map(|arm| Difference::of(arm, base)).collect(),
            None => Vec::new(),
        };
        One {
            rule: experiment.rule.clone(),
            state: experiment.state.as_str(),
            for_ms: experiment.since.map(|since| now.saturating_sub(since) as f64 / MS),
            share: share(experiment.share),
            rolled_back_because: experiment.why.as_ref().map(Reason::of),
            ramp: experiment.ramp.as_ref().map(Ramp::of),
            auto_rollback: experiment.guard.as_ref().map(Guard::of),
            differences,
            arms: all.into_iter().map(Arm::of).collect(),
        }
    }
}

fn share(hundredths_of_percent: u16) -> f64 {
    f64::from(hundredths_of_percent) / 10_000.0
}

impl Reason {
    fn of(why: &Why) -> Reason {
        Reason { code: why.word, message: why.sentence.clone() }
    }
}

impl Ramp {
    fn of(ramp: &RampShown) -> Ramp {
        Ramp {
            steps: ramp.steps.iter().map(|step| share(*step)).collect(),
            hold_ms: ramp.hold as f64 / MS,
            waits_for_guard: ramp.waits,
        }
    }
}

impl Guard {
    fn of(guard: &GuardShown) -> Guard {
        Guard {
            error_rate: guard.error_rate,
            latency: guard.latency,
            min_requests: guard.min_requests,
            window_ms: guard.window as f64 / MS,
            windows_judged: guard.judged,
            regressed: guard.regressed.as_ref().map(Reason::of),
        }
    }
}

impl<T> Windows<T> {
    fn of(each: [T; 4]) -> Windows<T> {
        let [minute, quarter, hour, start] = each;
        Windows { minute, quarter, hour, start }
    }
}

impl Arm {
    fn of(raw: Raw) -> Arm {
        let windows = Windows::of(raw.seen.map(|(seen, measured)| Figures::of(&seen, measured)));
        Arm { arm: raw.name, cached: raw.cached, windows }
    }
}

impl Difference {
    fn of(arm: &Raw, base: &Raw) -> Difference {
        let each = std::array::from_fn(|i| Differences::of(&arm.seen[i].0, &base.seen[i].0));
        Difference { arm: arm.name.clone(), against: base.name.clone(), windows: Windows::of(each) }
    }
}

impl Figures {
    fn of(seen: &Seen, measured: u64) -> Figures {
        let in_ms = |estimate: Option<Estimate>| estimate.map(|estimate| Interval::of(estimate, MS));
        let quantile = |q: f64| in_ms(interval::quantile(seen, q));
        let rate = |share: Share| interval::rate(share).map(|rate| Interval::of(rate, 1.0));
        Figures {
            measured_ms: measured as f64 / MS,
            requests: seen.count(),
            errors: seen.errors,
            error_rate: rate(errors(seen)),
            hits: seen.hits,
            misses: seen.misses,
            hit_rate: rate(hits(seen)),
            mean_ms: in_ms(seen.moments().and_then(interval::mean)),
            p50_ms: quantile(0.5),
            p95_ms: quantile(0.95),
            p99_ms: quantile(0.99),
        }
    }
}

impl Differences {
    fn of(arm: &Seen, base: &Seen) -> Differences {
        let rate =
            |of: fn(&Seen) -> Share| interval::rate_difference(of(arm), of(base)).map(|rate| Interval::of(rate, 1.0));
        let quantile = |q: f64| {
            let (a, b) = (interval::quantile(arm, q)?, interval::quantile(base, q)?);
            Some(Interval::of(interval::difference(a, b), MS)).filter(|difference| difference.low.is_finite())
        };
        let mean = arm.moments().zip(base.moments()).and_then(|(a, b)| interval::excess(a, b, 1.0));
        Differences {
            error_rate: rate(errors),
            hit_rate: rate(hits),
            mean_ms: mean.map(|mean| Interval::of(mean, MS)),
            p50_ms: quantile(0.5),
            p99_ms: quantile(0.99),
        }
    }
}

fn errors(seen: &Seen) -> Share {
    Share { x: seen.errors, n: seen.count() }
}

fn hits(seen: &Seen) -> Share {
    Share { x: seen.hits, n: seen.lookups() }
}

impl Interval {
    fn of(estimate: Estimate, unit: f64) -> Interval {
        // A nanosecond, or one in a million.
        let figure = |value: f64| (value / unit * 1e6).round() / 1e6;
        let high = Some(figure(estimate.high)).filter(|high| high.is_finite());
        Interval { value: figure(estimate.value), low: figure(estimate.low), high }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::observe::arms::ArmId;
    use crate::observe::reasons::RolloutState;

    fn experiment(control: Option<ArmId>, cached: &[(&str, ArmId)]) -> Experiment {
        Experiment {
            rule: "r".to_owned(),
            share: 2_500,
            state: RolloutState::Steady,
            since: None,
            why: None,
            ramp: None,
            guard: None,
            control,
            cached: cached.iter().map(|(name, arm)| ((*name).to_owned(), *arm)).collect(),
        }
    }

    fn shown(arms: &Arms) -> Value {
        serde_json::to_value(Experiments::of(arms)).expect("JSON")
    }

    #[test]
    fn figures_are_those_of_the_arms_in_the_units_of_their_names() {
        let (arms, now) = (Arms::default(), clock::now());
        let (control, cached) = (arms.claim(now, "r", "control"), arms.claim(now, "r", "cached"));
        arms.show(vec![experiment(Some(control), &[("cached", cached)])]);
        for i in 0..1000 {
            arms.answered(control, now, 2_000_000, i % 10 == 0);
            arms.answered(cached, now, 1_000_000, false);
        }
        arms.looked_up(cached, now, 300, 100);
        let all = shown(&arms);
        let one = &all["experiments"][0];
        assert_eq!((one["share"].as_f64(), one["state"].as_str()), (Some(0.25), Some("steady")));
        assert_eq!(one["arms"][0]["arm"], "control");
        let [control, cached] = [0, 1].map(|i| &one["arms"][i]["windows"]["1m"]);
        assert_eq!((control["requests"].as_u64(), control["errors"].as_u64()), (Some(1000), Some(100)));
        assert_eq!(control["hit_rate"], Value::Null);
        assert_eq!(cached["hit_rate"]["value"].as_f64(), Some(0.75));
        assert_eq!(cached["mean_ms"]["value"].as_f64(), Some(1.0));
        let near = |value: &Value, wanted: f64| (value.as_f64().expect("a number") - wanted).abs() < 0.01;
        assert!(near(&control["p50_ms"]["value"], 2.0) && near(&control["p99_ms"]["value"], 2.0));
        let difference = &one["differences"][0];
        assert_eq!((difference["arm"].as_str(), difference["against"].as_str()), (Some("cached"), Some("control")));
        let start = &difference["windows"]["start"];
        assert_eq!(start["mean_ms"]["value"].as_f64(), Some(-1.0));
        assert_eq!(start["error_rate"]["value"].as_f64(), Some(-0.1));
        assert!(start["error_rate"]["high"].as_f64().is_some_and(|high| high < -0.07));
    }

    #[test]
    fn without_a_control_arm_variants_are_compared_with_the_first() {
        let (arms, now) = (Arms::default(), clock::now());
        let (short, long) = (arms.claim(now, "r", "short"), arms.claim(now, "r", "long"));
        arms.show(vec![experiment(None, &[("short", short), ("long", long)])]);
        arms.looked_up(short, now, 50, 50);
        arms.looked_up(long, now, 90, 10);
        let difference = &shown(&arms)["experiments"][0]["differences"][0];
        assert_eq!((difference["arm"].as_str(), difference["against"].as_str()), (Some("long"), Some("short")));
        let rate = &difference["windows"]["60m"]["hit_rate"];
        assert!((rate["value"].as_f64().expect("a rate") - 0.4).abs() < 1e-9);
        assert!(rate["low"].as_f64().is_some_and(|low| low > 0.25));
        assert_eq!(difference["windows"]["1m"]["mean_ms"], Value::Null);
    }

    /// 30 values have no upper bound for their p99, and one that is not finite is no JSON.
    #[test]
    fn what_is_not_known_is_null() {
        let (arms, now) = (Arms::default(), clock::now());
        let cached = arms.claim(now, "r", "cached");
        arms.show(vec![experiment(None, &[("cached", cached)])]);
        let figures = &shown(&arms)["experiments"][0]["arms"][0]["windows"]["1m"].clone();
        assert_eq!((&figures["mean_ms"], &figures["error_rate"]), (&Value::Null, &Value::Null));
        (0..30).for_each(|_| arms.answered(cached, now, 1_000_000, false));
        let figures = &shown(&arms)["experiments"][0]["arms"][0]["windows"]["1m"].clone();
        assert_eq!(figures["p99_ms"]["high"], Value::Null);
        assert!(figures["p99_ms"]["low"].as_f64().is_some());
    }
}
