//! The course of one rule's rollout: which share of its keys is cached now, when the next step of its ramp comes, and
//! whether caching has to be taken back. A state machine without a clock: whoever drives it brings the time and what both
//! arms have seen, and carries out what it says.
//!
//! **The rule.** A window lasts `window`, and longer until both arms have `min_requests`. At its end the cached arm (all
//! variants together) is judged against the control arm. It has *regressed* if, with 95 % confidence, one of these holds:
//! its error rate is higher by more than `error_rate` (the lower end of Newcombe's interval for the difference); its mean
//! duration is more than `latency` times the control's (the lower end of Welch's interval for the one minus that many times
//! the other is above zero); its p99 is (the lower end of its interval is above that many times the upper end of the
//! control's). Two regressed windows in a row roll the rule back to 0 %, until its rollout is written anew or the process
//! starts again. One could be chance: where the truth lies just at one of the limits, 1 window in 40 says so, and two in a
//! row 1 in 1,600; the smaller the difference really is, the rarer.
//!
//! A ramp's step lasts `hold`. With `auto_rollback` the next one also needs a window of this step that has not regressed: a
//! step that nobody has seen is no reason for a larger one.

use std::fmt;

use crate::config::{AutoRollback, Rollout, WHOLE};
use crate::observe::interval::{self, Estimate, Share};
use crate::observe::latency::{Moments, Seen};

/// Regressed windows in a row that roll back.
const REGRESSIONS: u32 = 2;

#[derive(Debug)]
pub(crate) struct Course {
    plan: Rollout,
    stage: Stage,
    watch: Watch,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Stage {
    /// The share is what it shall be.
    Settled,
    /// This step of the ramp, since then.
    Ramping { step: usize, since: u64 },
    /// Nothing is cached any more, since then.
    RolledBack { since: u64, why: Regression },
}

/// The guard's window.
#[derive(Debug)]
struct Watch {
    since: u64,
    /// Regressed ones up to the last, without one that was good.
    regressions: u32,
    /// Of this share.
    judged: u64,
    last: Option<Regression>,
}

impl Watch {
    fn new(now: u64) -> Watch {
        Watch { since: now, regressions: 0, judged: 0, last: None }
    }
}

/// What has to be done.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Act {
    Nothing,
    /// The window is judged: both arms are watched from nothing.
    NextWindow,
    /// From now on this share is cached, and a new window begins.
    Step(u16),
    RollBack(Regression),
}

/// In what the cached arm is worse; durations in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Regression {
    Errors { cached: f64, control: f64, at_least: f64, allowed: f64 },
    Mean { cached: f64, control: f64, allowed: f64 },
    P99 { cached: f64, control: f64, allowed: f64 },
}

impl Course {
    pub(crate) fn new(plan: &Rollout, now: u64) -> Course {
        let stage = if plan.ramp.is_some() { Stage::Ramping { step: 0, since: now } } else { Stage::Settled };
        Course { plan: plan.clone(), stage, watch: Watch::new(now) }
    }

    pub(crate) fn plan(&self) -> &Rollout {
        &self.plan
    }

    pub(crate) fn stage(&self) -> &Stage {
        &self.stage
    }

    /// When the present stage began, where that is known.
    pub(crate) fn since(&self) -> Option<u64> {
        match &self.stage {
            Stage::Settled => None,
            Stage::Ramping { since, .. } | Stage::RolledBack { since, .. } => Some(*since),
        }
    }

    /// Windows judged since the share last changed, and what the last one showed, if it regressed.
    pub(crate) fn judged(&self) -> (u64, Option<Regression>) {
        (self.watch.judged, self.watch.last)
    }

    /// The share that is cached now, in hundredths of a percent.
    pub(crate) fn share(&self) -> u16 {
        let last = self.plan.ramp.as_ref().and_then(|ramp| ramp.steps.last().copied());
        match &self.stage {
            Stage::Settled => last.unwrap_or(self.plan.share),
            Stage::Ramping { step, .. } => self.step(*step).unwrap_or(self.plan.share),
            Stage::RolledBack { .. } => 0,
        }
    }

    /// Whether somebody has to compare: at 100 % there is nothing to compare with.
    pub(crate) fn guard(&self) -> Option<&AutoRollback> {
        let guarded = !matches!(self.stage, Stage::RolledBack { .. }) && (1..WHOLE).contains(&self.share());
        self.plan.auto_rollback.as_ref().filter(|_| guarded)
    }

    /// Whether time changes anything: a ramp goes on, or a guard watches.
    pub(crate) fn moves(&self) -> bool {
        matches!(self.stage, Stage::Ramping { .. }) || self.guard().is_some()
    }

    fn step(&self, step: usize) -> Option<u16> {
        self.plan.ramp.as_ref()?.steps.get(step).copied()
    }

    /// `look` says what the cached arm and the control arm have seen since the window began, unless one of them has seen
    /// fewer requests than it is given.
    pub(crate) fn tick(&mut self, now: u64, look: impl FnOnce(u64) -> Option<(Seen, Seen)>) -> Act {
        let judged = self.judge_window(now, look);
        if let Act::RollBack(why) = judged {
            self.stage = Stage::RolledBack { since: now, why };
            return judged;
        }
        self.climb(now).map_or(judged, Act::Step)
    }

    fn judge_window(&mut self, now: u64, look: impl FnOnce(u64) -> Option<(Seen, Seen)>) -> Act {
        let Some(rule) = self.guard().copied() else { return Act::Nothing };
        if u128::from(now.saturating_sub(self.watch.since)) < rule.window.as_nanos() {
            return Act::Nothing;
        }
        let Some((cached, control)) = look(rule.min_requests) else { return Act::Nothing };
        let found = judge(&rule, &cached, &control);
        let regressions = if found.is_some() { self.watch.regressions + 1 } else { 0 };
        self.watch = Watch { since: now, regressions, judged: self.watch.judged + 1, last: found };
        match found {
            Some(why) if regressions >= REGRESSIONS => Act::RollBack(why),
            _ => Act::NextWindow,
        }
    }

    /// The next step of the ramp, if it is time for it.
    fn climb(&mut self, now: u64) -> Option<u16> {
        let Stage::Ramping { step, since } = self.stage else { return None };
        let hold = self.plan.ramp.as_ref()?.hold;
        if u128::from(now.saturating_sub(since)) < hold.as_nanos() || self.waits() {
            return None;
        }
        let next = step + 1;
        let share = self.step(next)?;
        let is_last = self.step(next + 1).is_none();
        self.stage = if is_last { Stage::Settled } else { Stage::Ramping { step: next, since: now } };
        self.watch = Watch::new(now);
        Some(share)
    }

    /// The ramp's next step waits for a window that is judged good.
    pub(crate) fn waits(&self) -> bool {
        self.guard().is_some() && (self.watch.judged == 0 || self.watch.regressions > 0)
    }
}

/// In what the cached arm has regressed, if it has.
fn judge(rule: &AutoRollback, cached: &Seen, control: &Seen) -> Option<Regression> {
    errors(rule, cached, control).or_else(|| mean(rule, cached, control)).or_else(|| p99(rule, cached, control))
}

fn errors(rule: &AutoRollback, cached: &Seen, control: &Seen) -> Option<Regression> {
    let allowed = f64::from(rule.error_rate) / f64::from(WHOLE);
    let share = |seen: &Seen| Share { x: seen.errors, n: seen.count() };
    let (cached, control) = (share(cached), share(control));
    let more = interval::rate_difference(cached, control).filter(|more| more.low > allowed)?;
    let rate = |share: Share| share.x as f64 / share.n as f64;
    Some(Regression::Errors { cached: rate(cached), control: rate(control), at_least: more.low, allowed })
}

fn mean(rule: &AutoRollback, cached: &Seen, control: &Seen) -> Option<Regression> {
    let allowed = factor(rule);
    let (a, b): (Moments, Moments) = (cached.moments()?, control.moments()?);
    interval::excess(a, b, allowed).filter(|more| more.low > 0.0)?;
    Some(Regression::Mean { cached: a.mean, control: b.mean, allowed })
}

fn p99(rule: &AutoRollback, cached: &Seen, control: &Seen) -> Option<Regression> {
    let allowed = factor(rule);
    let of = |seen: &Seen| interval::quantile(seen, 0.99);
    let (a, b): (Estimate, Estimate) = (of(cached)?, of(control)?);
    (a.low > allowed * b.high).then_some(Regression::P99 { cached: a.value, control: b.value, allowed })
}

fn factor(rule: &AutoRollback) -> f64 {
    f64::from(rule.latency) / 100.0
}

impl Regression {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Regression::Errors { .. } => "error_rate",
            Regression::Mean { .. } => "latency_mean",
            Regression::P99 { .. } => "latency_p99",
        }
    }
}

/// A sentence for the log, RULES and the side port.
impl fmt::Display for Regression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent = |rate: f64| rate * 100.0;
        let ms = |nanos: f64| nanos / 1e6;
        match *self {
            Regression::Errors { cached, control, at_least, allowed } => write!(
                f,
                "errors: {:.2} % of the cached arm's requests and {:.2} % of the control's, at least {:.2} % more \
                 (95 % confidence), where {:.2} % are allowed",
                percent(cached),
                percent(control),
                percent(at_least),
                percent(allowed)
            ),
            Regression::Mean { cached, control, allowed } => {
                write!(
                    f,
                    "mean latency: {:.3} ms in the cached arm and {:.3} ms in the control's, ",
                    ms(cached),
                    ms(control)
                )?;
                write!(f, "more than {allowed} times as long (95 % confidence)")
            }
            Regression::P99 { cached, control, allowed } => {
                write!(
                    f,
                    "p99 latency: {:.3} ms in the cached arm and {:.3} ms in the control's, ",
                    ms(cached),
                    ms(control)
                )?;
                write!(f, "more than {allowed} times as long (95 % confidence)")
            }
        }
    }
}

#[cfg(test)]
mod tests;
