//! Alerts: what is watched for, when it counts as such, and a ring of the last ones. Pure: every step gets the facts and the
//! time. Asked once a second by `vitals`.
//!
//! **Hysteresis.** A condition has to hold for a time before its alert fires, and has to be away for as long before it is
//! resolved; in between nothing changes, so a figure that sways around its threshold raises one alert. That time is
//! `alerts.for`, and less for what is no figure: a lost upstream is known when it is lost.
//!
//! **Minimum traffic.** Shares and quantiles are of the last minute, and with fewer commands than
//! `alerts.min_requests_per_minute` in it they are no condition at all: an idle pod raises nothing, and an alert whose
//! traffic has gone away is resolved.

use std::collections::VecDeque;

use super::health::{Facts, Firing, Limits, MEMORY_DEGRADED, Upstream};
use super::reasons::{AlertName, Mode};

/// Alerts that are kept. More than there are kinds, so one that fires is never pushed out by those that are over.
pub(crate) const ALERTS_MAX: usize = 20;

/// Upstream may come back within a second or two, as it does after a failover.
const DOWN_HOLD: u64 = 3_000_000_000;

/// A lane arms in some milliseconds, and a reconnect makes all of them do so.
const LINK_HOLD: u64 = 5_000_000_000;

/// One entry thrown out for each hit: what is stored leaves before it has been of use.
const THRASH: f64 = 1.0;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Severity {
    Warning,
    /// Clients are not served as they should be.
    Critical,
}

impl Severity {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Severity::Warning => "warning",
            Severity::Critical => "critical",
        }
    }
}

impl AlertName {
    pub(crate) fn severity(self) -> Severity {
        match self {
            AlertName::ErrorRate | AlertName::UpstreamDown | AlertName::QueueFailed => Severity::Critical,
            _ => Severity::Warning,
        }
    }

    pub(crate) fn unit(self) -> &'static str {
        match self {
            AlertName::ErrorRate | AlertName::HitRate | AlertName::Memory => "share",
            AlertName::P99 => "ms",
            AlertName::CoherenceLost => "lanes",
            AlertName::UpstreamDown => "up",
            AlertName::EvictionsThrash => "evictions_per_hit",
            AlertName::QueueGrowing | AlertName::QueueFailed => "writes",
            AlertName::ReloadFailed => "failed",
        }
    }

    /// How long the condition has to hold, and to be away.
    fn hold(self, limits: &Limits) -> u64 {
        match self {
            AlertName::ReloadFailed | AlertName::QueueFailed => 0,
            AlertName::UpstreamDown => DOWN_HOLD.min(limits.hold),
            AlertName::CoherenceLost => LINK_HOLD.min(limits.hold),
            _ => limits.hold,
        }
    }
}

/// A condition that holds.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Trouble {
    pub(crate) value: f64,
    pub(crate) threshold: f64,
    pub(crate) message: String,
}

/// Whether the condition of this alert holds.
pub(crate) fn trouble(name: AlertName, facts: &Facts, limits: &Limits) -> Option<Trouble> {
    let (value, threshold, message) = match name {
        AlertName::ErrorRate => error_rate(facts, limits)?,
        AlertName::P99 => p99(facts, limits)?,
        AlertName::HitRate => hit_rate(facts, limits)?,
        AlertName::CoherenceLost => coherence_lost(facts)?,
        AlertName::UpstreamDown => upstream_down(facts)?,
        AlertName::Memory => memory(facts, limits)?,
        AlertName::EvictionsThrash => thrash(facts, limits)?,
        AlertName::QueueGrowing => queue_growing(facts)?,
        AlertName::QueueFailed => queue_failed(facts)?,
        AlertName::ReloadFailed => reload_failed(facts)?,
    };
    Some(Trouble { value, threshold, message })
}

type Found = Option<(f64, f64, String)>;

fn error_rate(facts: &Facts, limits: &Limits) -> Found {
    let minute = &facts.minute;
    let rate =
        minute.error_rate().filter(|rate| *rate > limits.error_rate && minute.requests >= limits.min_requests)?;
    let message = format!("{} of {} commands were answered with an error", minute.errors, minute.requests);
    Some((rate, limits.error_rate, message))
}

fn p99(facts: &Facts, limits: &Limits) -> Found {
    let minute = &facts.minute;
    let p99 = minute.p99.filter(|p99| *p99 > limits.p99 && minute.requests >= limits.min_requests)?;
    let (value, threshold) = (p99 as f64 / 1e6, limits.p99 as f64 / 1e6);
    Some((value, threshold, format!("one command in a hundred takes longer than {value:.0} ms")))
}

fn hit_rate(facts: &Facts, limits: &Limits) -> Found {
    let minute = &facts.minute;
    let counts = facts.mode == Mode::Serve && minute.lookups() >= limits.min_requests;
    let rate = minute.hit_rate().filter(|rate| counts && *rate < limits.hit_rate)?;
    Some((rate, limits.hit_rate, format!("{} of {} look-ups were hits", minute.hits, minute.lookups())))
}

/// A lost upstream has lost its lanes too, and has an alert of its own.
fn coherence_lost(facts: &Facts) -> Found {
    if facts.mode != Mode::Serve || facts.upstream != Some(Upstream::Up) {
        return None;
    }
    let lost = (facts.lanes - facts.lanes_live).max(facts.lanes_fallen);
    let why = if facts.lanes_fallen > 0 { facts.coherence_why.as_str() } else { "their invalidations are not proved" };
    (lost > 0).then(|| (lost as f64, 0.0, format!("{lost} of {} lanes: {why}", facts.lanes)))
}

fn upstream_down(facts: &Facts) -> Found {
    match &facts.upstream {
        Some(Upstream::Down(why)) => Some((0.0, 1.0, format!("upstream is down: {why}"))),
        _ => None,
    }
}

fn memory(facts: &Facts, limits: &Limits) -> Found {
    let used = facts.memory(limits).filter(|used| *used >= MEMORY_DEGRADED)?;
    let limit = limits.memory.unwrap_or_default();
    Some((used, MEMORY_DEGRADED, format!("{} of {limit} bytes are resident", facts.rss)))
}

fn thrash(facts: &Facts, limits: &Limits) -> Found {
    let minute = &facts.minute;
    let per_hit = minute.evicted as f64 / minute.hits.max(1) as f64;
    let holds = minute.evicted >= limits.min_requests && per_hit > THRASH;
    let message = || format!("{} entries left for want of room, {} hits: cache.max_bytes", minute.evicted, minute.hits);
    holds.then(|| (per_hit, THRASH, message()))
}

fn queue_growing(facts: &Facts) -> Found {
    facts.queue_grows().then(|| {
        let (depth, oldest) = (facts.queue_depth, facts.queue_age / 1_000_000_000);
        (depth as f64, 0.0, format!("{depth} acknowledged writes wait for upstream, the oldest for {oldest} s"))
    })
}

/// Their clients have an OK: somebody has to look, whatever the traffic.
fn queue_failed(facts: &Facts) -> Found {
    let refused = facts.minute.refused;
    let message = || format!("upstream has refused {refused} acknowledged writes: the log has why");
    (refused > 0).then(|| (refused as f64, 0.0, message()))
}

fn reload_failed(facts: &Facts) -> Found {
    facts.config_error.as_ref().map(|why| (1.0, 0.0, format!("the configuration was refused, what runs stays: {why}")))
}

/// Raised once.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Alert {
    pub(crate) name: AlertName,
    /// Since when its condition held, and when it was away, in milliseconds since 1970.
    pub(crate) since: u64,
    pub(crate) resolved: Option<u64>,
    /// As of the last time that the condition held.
    pub(crate) value: f64,
    pub(crate) threshold: f64,
    pub(crate) message: String,
}

/// How far one alert is. Times are `clock::now`'s.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Phase {
    #[default]
    Quiet,
    /// Its condition holds since then.
    Pending(u64),
    Firing,
    /// It fires, and its condition is away since then.
    Leaving(u64),
}

/// What a step has changed.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Turn {
    Raised(Alert),
    Resolved(Alert),
}

#[derive(Default)]
pub(crate) struct Alerts {
    phases: [Phase; AlertName::COUNT],
    /// Oldest first.
    ring: VecDeque<Alert>,
    /// Raised since the start.
    totals: [u64; AlertName::COUNT],
}

impl Alerts {
    /// One look at everything. `now` is the clock's, `wall` milliseconds since 1970.
    pub(crate) fn step(&mut self, facts: &Facts, limits: &Limits, now: u64, wall: u64) -> Vec<Turn> {
        let one = |name: &AlertName| self.one(*name, trouble(*name, facts, limits), name.hold(limits), now, wall);
        AlertName::ALL.iter().filter_map(one).collect()
    }

    fn one(&mut self, name: AlertName, trouble: Option<Trouble>, hold: u64, now: u64, wall: u64) -> Option<Turn> {
        let lasted = |since: u64| now.saturating_sub(since) >= hold;
        let (phase, turn) = match (self.phases[name as usize], trouble) {
            (Phase::Quiet, Some(trouble)) if hold == 0 => (Phase::Firing, Some(self.raise(name, trouble, wall))),
            (Phase::Quiet, Some(_)) => (Phase::Pending(now), None),
            (Phase::Pending(since), Some(trouble)) if lasted(since) => {
                let began = wall.saturating_sub(now.saturating_sub(since) / 1_000_000);
                (Phase::Firing, Some(self.raise(name, trouble, began)))
            }
            (Phase::Pending(since), Some(_)) => (Phase::Pending(since), None),
            (Phase::Quiet | Phase::Pending(_), None) => (Phase::Quiet, None),
            (Phase::Firing | Phase::Leaving(_), Some(trouble)) => {
                self.note(name, trouble);
                (Phase::Firing, None)
            }
            (Phase::Firing, None) if hold > 0 => (Phase::Leaving(now), None),
            (Phase::Leaving(since), None) if !lasted(since) => (Phase::Leaving(since), None),
            (Phase::Firing | Phase::Leaving(_), None) => (Phase::Quiet, self.resolve(name, wall)),
        };
        self.phases[name as usize] = phase;
        turn
    }

    fn raise(&mut self, name: AlertName, trouble: Trouble, since: u64) -> Turn {
        if self.ring.len() == ALERTS_MAX {
            // There are more places than kinds, so one is over.
            let over = self.ring.iter().position(|alert| alert.resolved.is_some()).unwrap_or(0);
            self.ring.remove(over);
        }
        let Trouble { value, threshold, message } = trouble;
        let alert = Alert { name, since, resolved: None, value, threshold, message };
        self.totals[name as usize] += 1;
        self.ring.push_back(alert.clone());
        Turn::Raised(alert)
    }

    fn note(&mut self, name: AlertName, trouble: Trouble) {
        if let Some(alert) = self.firing(name) {
            (alert.value, alert.threshold, alert.message) = (trouble.value, trouble.threshold, trouble.message);
        }
    }

    fn resolve(&mut self, name: AlertName, wall: u64) -> Option<Turn> {
        let alert = self.firing(name)?;
        alert.resolved = Some(wall);
        Some(Turn::Resolved(alert.clone()))
    }

    fn firing(&mut self, name: AlertName) -> Option<&mut Alert> {
        self.ring.iter_mut().find(|alert| alert.name == name && alert.resolved.is_none())
    }

    pub(crate) fn is_active(&self, name: AlertName) -> bool {
        matches!(self.phases[name as usize], Phase::Firing | Phase::Leaving(_))
    }

    /// How often it was raised since the start.
    pub(crate) fn total(&self, name: AlertName) -> u64 {
        self.totals[name as usize]
    }

    pub(crate) fn active(&self) -> Firing {
        let firing = || AlertName::ALL.iter().filter(|name| self.is_active(**name));
        Firing { count: firing().count(), critical: firing().any(|name| name.severity() == Severity::Critical) }
    }

    /// Newest first, and how many there have been.
    pub(crate) fn recent(&self) -> (Vec<Alert>, u64) {
        (self.ring.iter().rev().cloned().collect(), self.totals.iter().sum())
    }
}

#[cfg(test)]
mod tests;
