//! `rollout` of a rule: which share of its keys is cached, how the share grows by itself, and when it is taken back.

use std::time::Duration;

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
