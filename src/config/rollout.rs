//! `rollout` of a rule: which share of its keys is cached, how the share grows by itself, and when it is taken back.

use std::ops::RangeInclusive;
use std::time::Duration;

use super::fields::Fields;
use super::file::{Node, Value};
use super::rules::{decimal, percent, show_percent};
use super::units::{self, DURATION_MAX, shown};

/// Whole of what is dealt out, in hundredths of a percent.
pub(crate) const WHOLE: u16 = 10_000;

/// Which keys of a rule are cached; the others are its control group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rollout {
    /// Hundredths of a percent, at most `WHOLE`; the first step's where there is a ramp.
    pub(crate) share: u16,
    pub(crate) auto_rollback: Option<AutoRollback>,
    pub(crate) ramp: Option<Ramp>,
}

/// When a rollout is taken back: caching made requests worse, by more than this, with 95 % confidence, in two windows
/// one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AutoRollback {
    /// By how much the share of errors may be higher than the control group's, in hundredths of a percent.
    pub(crate) error_rate: u16,
    /// How many times as long as in the control group requests may take, in hundredths; at least 100.
    pub(crate) latency: u16,
    /// Requests of each group that a window must have; it lasts longer until then.
    pub(crate) min_requests: u64,
    pub(crate) window: Duration,
}

/// Shares that follow one another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ramp {
    /// Hundredths of a percent, ascending, at least two.
    pub(crate) steps: Vec<u16>,
    /// How long each lasts at least.
    pub(crate) hold: Duration,
}

/// Steps of a ramp: more would be a slope.
const STEPS_MAX: usize = 16;

/// The guard is asked so often at most, and a window of less has seen too little.
const SECOND: Duration = Duration::from_secs(1);

/// A window of fewer requests says nothing: the intervals are those of many.
const REQUESTS_MIN: u64 = 50;

/// What is not written under `auto_rollback`. An error more in a hundred requests is what a user notices; half again as
/// slow is more than what a miss adds to the direct way; 500 requests find such a rate of errors in two windows.
impl Default for AutoRollback {
    fn default() -> AutoRollback {
        AutoRollback { error_rate: 100, latency: 150, min_requests: 500, window: Duration::from_secs(60) }
    }
}

/// What is not written under `ramp`: each step ten windows of the guard.
impl Default for Ramp {
    fn default() -> Ramp {
        Ramp { steps: vec![100, 1_000, 5_000, WHOLE], hold: Duration::from_secs(600) }
    }
}

impl Rollout {
    pub(crate) const ALL: Rollout = Rollout { share: WHOLE, auto_rollback: None, ramp: None };

    /// Some keys are not cached, or are not at first.
    pub(crate) fn has_control(&self) -> bool {
        self.share < WHOLE
    }

    pub(super) fn yaml(&self) -> String {
        let percent = show_percent(self.share);
        if self.auto_rollback.is_none() && self.ramp.is_none() {
            return percent;
        }
        let mut out = vec![format!("percent: {percent}")];
        if let Some(ramp) = &self.ramp {
            let steps: Vec<String> = ramp.steps.iter().map(|step| show_percent(*step)).collect();
            let hold = units::show_duration(ramp.hold);
            out = vec![format!("ramp: {{steps: [{}], hold: {hold}}}", steps.join(", "))];
        }
        out.extend(self.auto_rollback.map(|rule| {
            let AutoRollback { error_rate, latency, min_requests, window } = rule;
            format!(
                "auto_rollback: {{error_rate: {}, latency: {}, min_requests: {min_requests}, window: {}}}",
                show_decimal(error_rate, 4),
                show_decimal(latency, 2),
                units::show_duration(window)
            )
        }));
        format!("{{{}}}", out.join(", "))
    }
}

/// A share of the keys, or a map.
pub(super) fn read(fields: &mut Fields<'_>) -> Option<Rollout> {
    if !matches!(fields.node("rollout")?.value, Value::Map(_)) {
        return fields.one("rollout", percent).map(|share| Rollout { share, ..Rollout::ALL });
    }
    let mut map = fields.map("rollout")?;
    map.only(&["percent", "auto_rollback", "ramp"]);
    let share = map.one("percent", percent);
    let ramp = ramp(&mut map);
    let auto_rollback = auto_rollback(&mut map);
    let rollout = Rollout { share: first_share(share, ramp.as_ref()), auto_rollback, ramp };
    check(&mut map, &rollout, share);
    Some(rollout)
}

fn first_share(percent: Option<u16>, ramp: Option<&Ramp>) -> u16 {
    ramp.and_then(|ramp| ramp.steps.first().copied()).or(percent).unwrap_or(WHOLE)
}

/// What must agree between the keys of one rollout.
fn check(map: &mut Fields<'_>, rollout: &Rollout, percent: Option<u16>) {
    if rollout.ramp.is_some() && percent.is_some() {
        map.problem_of("percent", "the steps of ramp say it; keep one of the two");
    }
    let Some(rule) = rollout.auto_rollback else { return };
    match &rollout.ramp {
        Some(ramp) if ramp.hold < 2 * rule.window => {
            let what = format!(
                "hold: {} is shorter than two windows of auto_rollback ({} each), which is what a rollback takes",
                units::show_duration(ramp.hold),
                units::show_duration(rule.window)
            );
            map.problem_of("ramp", &what);
        }
        None if !rollout.has_control() => {
            map.problem_of(
                "auto_rollback",
                "compares with the keys that are not cached: set percent below 100, or a ramp",
            );
        }
        _ => {}
    }
}

/// `true` is the map with its defaults, `false` as if nothing were written.
enum Written {
    No,
    Defaults,
    Map,
}

fn written(map: &mut Fields<'_>, key: &str) -> Written {
    match map.node(key) {
        None => Written::No,
        Some(Node { value: Value::Map(_), .. }) => Written::Map,
        Some(_) => match map.one(key, |text| units::boolean(text).map_err(|what| format!("{what}, and not a map"))) {
            Some(true) => Written::Defaults,
            Some(false) | None => Written::No,
        },
    }
}

fn auto_rollback(rollout: &mut Fields<'_>) -> Option<AutoRollback> {
    let defaults = AutoRollback::default();
    let mut map = match written(rollout, "auto_rollback") {
        Written::No => return None,
        Written::Defaults => return Some(defaults),
        Written::Map => rollout.map("auto_rollback")?,
    };
    map.only(&["error_rate", "latency", "min_requests", "window"]);
    Some(AutoRollback {
        error_rate: map.one("error_rate", error_rate).unwrap_or(defaults.error_rate),
        latency: map.one("latency", latency).unwrap_or(defaults.latency),
        min_requests: map
            .one("min_requests", |text| units::number(text, REQUESTS_MIN..=1_000_000_000))
            .unwrap_or(defaults.min_requests),
        window: map.duration("window", at_least(SECOND)).unwrap_or(defaults.window),
    })
}

fn ramp(rollout: &mut Fields<'_>) -> Option<Ramp> {
    let defaults = Ramp::default();
    let mut map = match written(rollout, "ramp") {
        Written::No => return None,
        Written::Defaults => return Some(defaults),
        Written::Map => rollout.map("ramp")?,
    };
    map.only(&["steps", "hold"]);
    let hold = map.duration("hold", at_least(SECOND)).unwrap_or(defaults.hold);
    let Some(steps) = map.list("steps", percent) else { return Some(Ramp { hold, ..defaults }) };
    let ascending = steps.windows(2).all(|pair| pair[0] < pair[1]);
    if !ascending || !(2..=STEPS_MAX).contains(&steps.len()) || steps.first() == Some(&0) {
        let what = format!(
            "2 to {STEPS_MAX} percentages above 0, each more than the one before, for example [1, 10, 50, 100]"
        );
        map.problem_of("steps", &what);
        return Some(Ramp { hold, ..defaults });
    }
    Some(Ramp { steps, hold })
}

fn at_least(least: Duration) -> RangeInclusive<Duration> {
    least..=DURATION_MAX
}

/// 0 to 1 with at most four decimals, in ten-thousandths.
fn error_rate(text: &str) -> Result<u16, String> {
    decimal(text, 4).filter(|n| *n <= WHOLE).ok_or_else(|| {
        format!(
            "{} is not a share of the requests; use 0 to 1, for example 0.01 for one more error in a hundred",
            shown(text)
        )
    })
}

/// 1 to 100 with at most two decimals, in hundredths.
fn latency(text: &str) -> Result<u16, String> {
    decimal(text, 2).filter(|n| (100..=WHOLE).contains(n)).ok_or_else(|| {
        format!("{} is not how many times as long requests may take; use 1 to 100, for example 1.5", shown(text))
    })
}

/// `n` / 10^`places` without zeros at its end.
fn show_decimal(n: u16, places: usize) -> String {
    let scale = 10_u16.pow(places as u32);
    super::rules::trimmed(format!("{}.{:0places$}", n / scale, n % scale))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, ConfigError, Overrides, load_within};

    fn of(rollout: &str) -> Rollout {
        let mut rules = Config::for_tests_with_rules(&format!("[{{pattern: 'a:*', rollout: {rollout}}}]")).rules;
        rules.remove(0).rollout
    }

    fn refused(rule: &str) -> String {
        let env = [
            ("NEARSIDE_UPSTREAM__URL", "redis://h".to_owned()),
            ("NEARSIDE_RULES", format!("[{{pattern: 'a:*', {rule}}}]")),
        ];
        let env = env.into_iter().map(|(name, value)| (name.to_owned(), value));
        let Err(ConfigError { problems }) = load_within(&Overrides::default(), env, None) else {
            panic!("{rule} is taken");
        };
        problems.join(" / ")
    }

    #[test]
    fn the_forms_mean_what_they_say() {
        assert_eq!(of("25"), Rollout { share: 2_500, ..Rollout::ALL });
        assert_eq!(of("{percent: 0.5}"), Rollout { share: 50, ..Rollout::ALL });
        assert_eq!(of("{percent: 25, auto_rollback: false, ramp: false}"), of("25"));
        let guarded = of("{percent: 25, auto_rollback: true}");
        assert_eq!(guarded.auto_rollback, Some(AutoRollback::default()));
        let own = of("{percent: 25, auto_rollback: {error_rate: 0.002, latency: 2, min_requests: 50, window: 1s}}");
        let wanted = AutoRollback { error_rate: 20, latency: 200, min_requests: 50, window: SECOND };
        assert_eq!(own.auto_rollback, Some(wanted));
        let ramp = of("{ramp: true}");
        assert_eq!((ramp.share, ramp.ramp), (100, Some(Ramp::default())));
        let ramp = of("{ramp: {steps: [0.5, 100], hold: 2m}, auto_rollback: {}}");
        assert_eq!((ramp.share, ramp.auto_rollback), (50, Some(AutoRollback::default())));
        assert_eq!(ramp.ramp, Some(Ramp { steps: vec![50, WHOLE], hold: Duration::from_secs(120) }));
    }

    #[test]
    fn no_more_is_measured_than_there_are_places() {
        let rules = |n: usize| -> String {
            let rule = |i: usize| format!("{{name: r{i}, pattern: '{i}:*', rollout: 50}}");
            format!("[{}]", (0..n).map(rule).collect::<Vec<_>>().join(", "))
        };
        let env = |rules: String| {
            let env = [("NEARSIDE_UPSTREAM__URL", "redis://h".to_owned()), ("NEARSIDE_RULES", rules)];
            env.into_iter().map(|(name, value)| (name.to_owned(), value))
        };
        let loaded = |n: usize| load_within(&Overrides::default(), env(rules(n)), None);
        assert!(loaded(32).is_ok());
        let said = loaded(33).expect_err("66 groups").to_string();
        assert!(
            said.contains("rules: the rollouts and variants make 66 groups of keys; 64 are measured at once"),
            "{said}"
        );
    }

    #[test]
    fn what_is_printed_reads_back() {
        for rollout in [
            "25",
            "0.25",
            "{percent: 25, auto_rollback: true}",
            "{percent: 0.5, auto_rollback: {error_rate: 0.0105, latency: 1.05, min_requests: 60, window: 90s}}",
            "{ramp: true}",
            "{ramp: {steps: [0.5, 2, 30], hold: 1h}, auto_rollback: {window: 1s}}",
        ] {
            assert_eq!(of(&of(rollout).yaml()), of(rollout), "{rollout} -> {}", of(rollout).yaml());
        }
    }

    #[test]
    fn bad_input_is_named_with_what_would_be_right() {
        for (rule, words) in [
            ("rollout: 120", "NEARSIDE_RULES: rules: a:*: rollout: \"120\" is not a share of the keys; use 0 to 100"),
            ("rollout: {percent: 25, rampe: 1}", "did you mean ramp?"),
            ("rollout: {percent: 25, ramp: true}", "percent: the steps of ramp say it; keep one of the two"),
            (
                "rollout: {ramp: {steps: [10, 1, 50]}}",
                "steps: 2 to 16 percentages above 0, each more than the one before",
            ),
            ("rollout: {ramp: {steps: [10, 10]}}", "each more than the one before"),
            ("rollout: {ramp: {steps: [10]}}", "2 to 16 percentages"),
            ("rollout: {ramp: {steps: [0, 10]}}", "above 0"),
            ("rollout: {ramp: {steps: [1, 120]}}", "\"120\" is not a share of the keys"),
            ("rollout: {ramp: {hold: 0}}", "rollout: ramp: hold: \"0\" is too small; at least 1s"),
            (
                "rollout: {ramp: {hold: 90s}, auto_rollback: true}",
                "shorter than two windows of auto_rollback (1m each)",
            ),
            ("rollout: {auto_rollback: true}", "set percent below 100, or a ramp"),
            (
                "rollout: {percent: 25, auto_rollback: {error_rate: 2}}",
                "\"2\" is not a share of the requests; use 0 to 1",
            ),
            ("rollout: {percent: 25, auto_rollback: {latency: 0.5}}", "use 1 to 100, for example 1.5"),
            (
                "rollout: {percent: 25, auto_rollback: {min_requests: 1}}",
                "min_requests: \"1\" is too small; at least 50",
            ),
            ("rollout: {percent: 25, auto_rollback: {window: 0}}", "window: \"0\" is too small; at least 1s"),
            (
                "rollout: {percent: 25, auto_rollback: maybe}",
                "auto_rollback: \"maybe\" is not true or false, and not a map",
            ),
            (
                "variants: {control: {ttl: 5m}, long: {ttl: 1h}}",
                "control: is what the keys are called that are not cached",
            ),
            ("variants: {short: {ttl: 5m}, long: {}}", "variants: long: ttl is missing"),
            ("variants: {short: {ttl: 5m}, long: {ttl: 1h, max: 1}}", "\"max\": unknown key; known keys here: ttl"),
        ] {
            let said = refused(rule);
            assert!(said.contains(words), "{rule}\n said {said}\n not  {words}");
        }
    }
}
