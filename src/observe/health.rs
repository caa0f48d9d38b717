//! Health from named checks: each says how one part is, by what figure, against which threshold. Pure: facts in, checks out;
//! `vitals` gathers the facts once a second and remembers since when a check says what it says. The whole is as bad as its
//! worst check. Liveness asks none of this: a process that answers at all is alive.

use super::reasons::{CheckName, Coherence, Health, Mode, PolicyMode};

/// Write-behind is done in milliseconds: what has waited for so long, in nanoseconds, waits for something to be mended.
const QUEUE_AGE: u64 = 60_000_000_000;

/// Of the memory limit: from here on somebody should look, from there on the kernel is about to.
pub(crate) const MEMORY_DEGRADED: f64 = 0.90;
const MEMORY_CRITICAL: f64 = 0.97;

/// Where at least half of all commands fail, whatever the threshold is, clients are not served.
const ERRORS_CRITICAL: f64 = 0.5;

/// What the configuration says is too much, as health and alerts need it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Limits {
    pub(crate) error_rate: f64,
    /// Nanoseconds.
    pub(crate) p99: u64,
    pub(crate) hit_rate: f64,
    /// In the last minute; with fewer a share says nothing.
    pub(crate) min_requests: u64,
    /// How long before an alert, in nanoseconds.
    pub(crate) hold: u64,
    /// Bytes this process may use; none: not bounded.
    pub(crate) memory: Option<u64>,
    /// The coherence mode that was asked for; none: the best there is.
    pub(crate) chosen: Option<Coherence>,
}

impl Default for Limits {
    /// Until the configuration has been looked at: nothing is too much.
    fn default() -> Limits {
        let (error_rate, p99, hit_rate, min_requests) = (1.0, u64::MAX, 0.0, u64::MAX);
        Limits { error_rate, p99, hit_rate, min_requests, hold: 0, memory: None, chosen: None }
    }
}

/// What was counted in the last minute, or since the start where that was later.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Minute {
    pub(crate) requests: u64,
    pub(crate) errors: u64,
    pub(crate) hits: u64,
    pub(crate) misses: u64,
    pub(crate) denied: u64,
    /// Entries that left because room was needed.
    pub(crate) evicted: u64,
    /// Nanoseconds.
    pub(crate) p99: Option<u64>,
    /// How much deeper the queue of writes is than it was.
    pub(crate) queued: i64,
    /// Writes that were acknowledged here and that upstream has refused since.
    pub(crate) refused: u64,
}

impl Minute {
    pub(crate) fn error_rate(&self) -> Option<f64> {
        share(self.errors, self.requests)
    }

    pub(crate) fn hit_rate(&self) -> Option<f64> {
        share(self.hits, self.hits + self.misses)
    }

    pub(crate) fn lookups(&self) -> u64 {
        self.hits + self.misses
    }
}

pub(crate) fn share(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| part as f64 / whole as f64)
}

/// Everything that is judged, as of one moment.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Facts {
    pub(crate) minute: Minute,
    /// `starting`, `warming`, `draining`, `ok`.
    pub(crate) phase: &'static str,
    pub(crate) mode: Mode,
    pub(crate) entries: u64,
    /// None: there is none to be had (the in-memory engine).
    pub(crate) upstream: Option<Upstream>,
    pub(crate) coherence: Coherence,
    pub(crate) coherence_why: String,
    pub(crate) lanes: usize,
    /// Of them, those whose invalidations are proved to arrive.
    pub(crate) lanes_live: usize,
    /// Of them, those that promise less than one would wish for, and those that promise less than was asked for.
    pub(crate) lanes_weak: usize,
    pub(crate) lanes_fallen: usize,
    pub(crate) policy: PolicyMode,
    pub(crate) config_error: Option<String>,
    pub(crate) rss: u64,
    pub(crate) queue_depth: u64,
    /// Of the oldest write in it, in nanoseconds.
    pub(crate) queue_age: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Upstream {
    Up,
    /// Why.
    Down(String),
}

impl Facts {
    /// Upstream gets fewer of the acknowledged writes than come in, or none at all.
    pub(crate) fn queue_grows(&self) -> bool {
        self.queue_depth > 0 && (self.minute.queued > 0 || self.queue_age > QUEUE_AGE)
    }

    /// Of the limit; none where there is none.
    pub(crate) fn memory(&self, limits: &Limits) -> Option<f64> {
        limits.memory.and_then(|limit| share(self.rss, limit))
    }
}

/// What one check says now.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Check {
    pub(crate) name: CheckName,
    pub(crate) status: Health,
    /// None: nothing was counted, or there is no figure.
    pub(crate) value: Option<f64>,
    pub(crate) threshold: Option<f64>,
    pub(crate) unit: &'static str,
    pub(crate) message: String,
}

/// Alerts that fire now: how many, and whether one of them is critical.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Firing {
    pub(crate) count: usize,
    pub(crate) critical: bool,
}

/// All checks, in the order in which they are shown.
pub(crate) fn checks(facts: &Facts, limits: &Limits, firing: Firing) -> [Check; CheckName::COUNT] {
    [
        cache(facts),
        coherence_link(facts),
        coherence_mode(facts),
        upstream(facts),
        hit_rate(facts, limits),
        error_rate(facts, limits),
        policy(facts),
        memory(facts, limits),
        queue(facts),
        alerts(firing),
    ]
}

/// The worst of them.
pub(crate) fn worst<'c>(checks: impl IntoIterator<Item = &'c Check>) -> Health {
    checks.into_iter().map(|check| check.status).max_by_key(|status| *status as u8).unwrap_or(Health::Healthy)
}

fn cache(facts: &Facts) -> Check {
    let status = if facts.phase == "ok" { Health::Healthy } else { Health::Degraded };
    let message = match facts.phase {
        "ok" => format!("mode {}", facts.mode.as_str()),
        phase => format!("mode {}, {phase}", facts.mode.as_str()),
    };
    Check {
        name: CheckName::Cache,
        status,
        value: Some(facts.entries as f64),
        threshold: None,
        unit: "entries",
        message,
    }
}

fn coherence_link(facts: &Facts) -> Check {
    let (live, all) = (facts.lanes_live, facts.lanes);
    let status = if live < all { Health::Degraded } else { Health::Healthy };
    let message = match all {
        0 => "no lane: nothing is cached".to_owned(),
        _ => format!("{live} of {all} lanes live"),
    };
    let value = share(live as u64, all as u64);
    Check { name: CheckName::CoherenceLink, status, value, threshold: Some(1.0), unit: "share", message }
}

fn coherence_mode(facts: &Facts) -> Check {
    // A cache that was switched off is a choice, not a fault.
    let weak = facts.lanes_weak > 0 && facts.mode == Mode::Serve;
    let status = if weak { Health::Degraded } else { Health::Healthy };
    let message = match facts.coherence_why.as_str() {
        "" => facts.coherence.as_str().to_owned(),
        why => format!("{}: {why}", facts.coherence.as_str()),
    };
    let value = Some(facts.lanes_weak as f64);
    Check { name: CheckName::CoherenceMode, status, value, threshold: Some(0.0), unit: "lanes", message }
}

fn upstream(facts: &Facts) -> Check {
    let (status, value, message) = match &facts.upstream {
        None => (Health::Healthy, None, "the in-memory engine answers".to_owned()),
        Some(Upstream::Up) => (Health::Healthy, Some(1.0), "up".to_owned()),
        Some(Upstream::Down(why)) => (Health::Critical, Some(0.0), format!("down: {why}")),
    };
    Check { name: CheckName::Upstream, status, value, threshold: Some(1.0), unit: "up", message }
}

fn hit_rate(facts: &Facts, limits: &Limits) -> Check {
    let rate = facts.minute.hit_rate();
    let enough = facts.mode == Mode::Serve && facts.minute.lookups() >= limits.min_requests;
    let low = enough && rate.is_some_and(|rate| rate < limits.hit_rate);
    let status = if low { Health::Degraded } else { Health::Healthy };
    let message = counted(enough, facts.minute.lookups(), "look-ups");
    Check { name: CheckName::HitRate, status, value: rate, threshold: Some(limits.hit_rate), unit: "share", message }
}

fn error_rate(facts: &Facts, limits: &Limits) -> Check {
    let rate = facts.minute.error_rate();
    let enough = facts.minute.requests >= limits.min_requests;
    let over = |limit: f64| enough && rate.is_some_and(|rate| rate > limit);
    let status = match () {
        () if over(limits.error_rate) && over(ERRORS_CRITICAL) => Health::Critical,
        () if over(limits.error_rate) => Health::Degraded,
        () => Health::Healthy,
    };
    let message = counted(enough, facts.minute.requests, "commands");
    let threshold = Some(limits.error_rate);
    Check { name: CheckName::ErrorRate, status, value: rate, threshold, unit: "share", message }
}

fn counted(enough: bool, count: u64, of: &str) -> String {
    let judged = if enough { "" } else { ", too few to judge" };
    format!("{count} {of} in the last minute{judged}")
}

/// What is denied is no fault. That the rules in force are not those of the file is.
fn policy(facts: &Facts) -> Check {
    let (status, message) = match &facts.config_error {
        Some(why) => (Health::Degraded, format!("what runs is not what the configuration says: {why}")),
        None => (Health::Healthy, format!("command policy: {}", facts.policy.as_str())),
    };
    let value = Some(facts.minute.denied as f64);
    Check { name: CheckName::Policy, status, value, threshold: None, unit: "denied_per_minute", message }
}

fn memory(facts: &Facts, limits: &Limits) -> Check {
    let used = facts.memory(limits);
    let status = match used {
        Some(used) if used >= MEMORY_CRITICAL => Health::Critical,
        Some(used) if used >= MEMORY_DEGRADED => Health::Degraded,
        _ => Health::Healthy,
    };
    let mib = |bytes: u64| bytes >> 20;
    let message = match limits.memory {
        Some(limit) => format!("{} of {} MiB resident", mib(facts.rss), mib(limit)),
        None => format!("{} MiB resident, no limit", mib(facts.rss)),
    };
    let threshold = limits.memory.map(|_| MEMORY_DEGRADED);
    Check { name: CheckName::Memory, status, value: used, threshold, unit: "share", message }
}

fn queue(facts: &Facts) -> Check {
    let depth = facts.queue_depth;
    let status = if facts.queue_grows() || facts.minute.refused > 0 { Health::Degraded } else { Health::Healthy };
    let message = match facts.minute.refused {
        0 => format!("{depth} writes wait for upstream"),
        refused => format!("{depth} writes wait for upstream, which has refused {refused} acknowledged ones"),
    };
    Check { name: CheckName::Queue, status, value: Some(depth as f64), threshold: None, unit: "writes", message }
}

fn alerts(firing: Firing) -> Check {
    let status = match firing {
        Firing { count: 0, .. } => Health::Healthy,
        Firing { critical: true, .. } => Health::Critical,
        Firing { .. } => Health::Degraded,
    };
    let message = format!("{} firing", firing.count);
    let (value, threshold) = (Some(firing.count as f64), Some(0.0));
    Check { name: CheckName::Alerts, status, value, threshold, unit: "alerts", message }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(crate) fn good() -> Facts {
        Facts {
            minute: Minute::default(),
            phase: "ok",
            mode: Mode::Serve,
            entries: 5,
            upstream: Some(Upstream::Up),
            coherence: Coherence::Tracking,
            coherence_why: String::new(),
            lanes: 2,
            lanes_live: 2,
            lanes_weak: 0,
            lanes_fallen: 0,
            policy: PolicyMode::Off,
            config_error: None,
            rss: 50,
            queue_depth: 0,
            queue_age: 0,
        }
    }

    pub(crate) fn limits() -> Limits {
        let (error_rate, p99, hit_rate, min_requests) = (0.05, 1_000_000_000, 0.6, 100);
        Limits { error_rate, p99, hit_rate, min_requests, hold: 30_000_000_000, memory: Some(100), chosen: None }
    }

    fn minute(requests: u64, errors: u64, hits: u64, misses: u64) -> Minute {
        Minute { requests, errors, hits, misses, ..Minute::default() }
    }

    /// What is not healthy, and how the whole is.
    fn says(change: impl FnOnce(&mut Facts)) -> (Vec<(&'static str, &'static str)>, &'static str) {
        let mut facts = good();
        change(&mut facts);
        let all = checks(&facts, &limits(), Firing::default());
        let bad = all.iter().filter(|check| check.status != Health::Healthy);
        (bad.map(|check| (check.name.as_str(), check.status.as_str())).collect(), worst(&all).as_str())
    }

    #[test]
    fn the_checks_are_all_there_in_order() {
        let names = checks(&good(), &limits(), Firing::default()).map(|check| check.name.as_str());
        assert_eq!(&names, CheckName::WORDS);
    }

    #[test]
    fn each_check_by_its_figure() {
        assert_eq!(says(|_| ()), (vec![], "healthy"));
        let one = |name, status| (vec![(name, status)], status);
        assert_eq!(says(|f| f.phase = "warming"), one("cache", "degraded"));
        assert_eq!(says(|f| f.mode = Mode::Off), (vec![], "healthy"));
        assert_eq!(says(|f| f.lanes_live = 1), one("coherence_link", "degraded"));
        assert_eq!(says(|f| f.lanes_weak = 1), one("coherence_mode", "degraded"));
        assert_eq!(says(|f| f.upstream = Some(Upstream::Down("gone".into()))), one("upstream", "critical"));
        assert_eq!(says(|f| f.upstream = None), (vec![], "healthy"));
        assert_eq!(says(|f| f.minute = minute(0, 0, 59, 41)), one("hit_rate", "degraded"));
        assert_eq!(says(|f| f.minute = minute(0, 0, 60, 40)), (vec![], "healthy"));
        assert_eq!(says(|f| f.minute = minute(0, 0, 0, 99)), (vec![], "healthy"), "too little to judge");
        assert_eq!(says(|f| f.minute = minute(100, 5, 0, 0)), (vec![], "healthy"), "the threshold itself is good");
        assert_eq!(says(|f| f.minute = minute(100, 6, 0, 0)), one("error_rate", "degraded"));
        assert_eq!(says(|f| f.minute = minute(100, 51, 0, 0)), one("error_rate", "critical"));
        assert_eq!(says(|f| f.minute = minute(99, 99, 0, 0)), (vec![], "healthy"));
        assert_eq!(says(|f| f.config_error = Some("x.yaml:3".into())), one("policy", "degraded"));
        assert_eq!(says(|f| f.rss = 89), (vec![], "healthy"));
        assert_eq!(says(|f| f.rss = 90), one("memory", "degraded"));
        assert_eq!(says(|f| f.rss = 97), one("memory", "critical"));
        assert_eq!(says(|f| f.queue_depth = 7), (vec![], "healthy"), "deep, but not growing");
        let growing = |f: &mut Facts| (f.queue_depth, f.minute.queued) = (7, 3);
        assert_eq!(says(growing), one("queue", "degraded"));
        let stuck = |f: &mut Facts| (f.queue_depth, f.queue_age) = (7, QUEUE_AGE + 1);
        assert_eq!(says(stuck), one("queue", "degraded"), "not growing, but none of it gets upstream");
        assert_eq!(says(|f| f.minute.refused = 1), one("queue", "degraded"));
    }

    #[test]
    fn the_whole_is_as_bad_as_the_worst() {
        let both = says(|f| {
            f.lanes_live = 0;
            f.upstream = Some(Upstream::Down("gone".into()));
        });
        assert_eq!(both, (vec![("coherence_link", "degraded"), ("upstream", "critical")], "critical"));
    }

    #[test]
    fn alerts_count_as_bad_as_they_are() {
        for (firing, expected) in [((0, false), "healthy"), ((2, false), "degraded"), ((1, true), "critical")] {
            let firing = Firing { count: firing.0, critical: firing.1 };
            assert_eq!(worst(&checks(&good(), &limits(), firing)).as_str(), expected);
        }
    }

    #[test]
    fn what_is_not_known_is_null_and_no_fault() {
        let mut facts = good();
        facts.lanes = 0;
        facts.lanes_live = 0;
        let all = checks(&facts, &Limits::default(), Firing::default());
        assert_eq!(worst(&all), Health::Healthy);
        let value = |name: CheckName| all[name as usize].value;
        assert_eq!(value(CheckName::CoherenceLink), None);
        assert_eq!(value(CheckName::HitRate), None);
        assert_eq!(value(CheckName::Memory), None);
    }
}
