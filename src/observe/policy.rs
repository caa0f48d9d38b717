//! What the command policy has decided, and whom its rate limits have held back. Counted on the data thread (hits of other
//! workers in their shard), read by the side port and by NEARSIDE INFO. Where no policy is configured nothing is counted.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};
use std::time::SystemTime;

use parking_lot::Mutex;

use super::counters::{Counter, Labeled};
use super::reasons::{Action, Decision, Limited, PolicyMode};

/// How many commands the list of those refused most often has.
pub(crate) const TOP: usize = 5;

/// Denials that are kept to be shown.
const RECENT_MAX: usize = 10;

pub(crate) struct PolicyCounts {
    /// A `PolicyMode`.
    mode: AtomicU8,
    /// By what the command does.
    decisions: [Labeled<{ Decision::COUNT }>; Action::COUNT],
    /// Denied and logged, by command; names of the table, so there are no more than it has rows. A refusal may cost a lock.
    refused: Mutex<HashMap<&'static str, Refused>>,
    /// Newest first.
    recent: Mutex<VecDeque<Refusal>>,
    pub(crate) limited: Labeled<{ Limited::COUNT }>,
    /// Nanoseconds that clients have waited for a rate limit.
    pub(crate) waited: Counter,
}

/// How often a command was refused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Refused {
    pub(crate) denied: u64,
    pub(crate) logged: u64,
}

/// One command that was denied, without its arguments.
#[derive(Clone, Debug)]
pub(crate) struct Refusal {
    pub(crate) at: SystemTime,
    pub(crate) command: &'static str,
    pub(crate) action: Action,
    /// The place of the policy that forbids it.
    pub(crate) why: String,
    /// Its address.
    pub(crate) client: String,
}

impl PolicyCounts {
    pub(super) fn new() -> PolicyCounts {
        PolicyCounts {
            mode: AtomicU8::new(PolicyMode::Off as u8),
            decisions: std::array::from_fn(|_| Labeled::new(Decision::WORDS)),
            refused: Mutex::default(),
            recent: Mutex::default(),
            limited: Labeled::new(Limited::WORDS),
            waited: Counter::default(),
        }
    }

    pub(crate) fn set_mode(&self, mode: PolicyMode) {
        self.mode.store(mode as u8, Relaxed);
    }

    pub(crate) fn mode(&self) -> PolicyMode {
        PolicyMode::ALL.get(usize::from(self.mode.load(Relaxed))).copied().unwrap_or(PolicyMode::Off)
    }

    /// `n` commands may run.
    pub(crate) fn allowed(&self, action: Action, n: u64) {
        self.decisions[action as usize].add(Decision::Allowed, n);
    }

    /// A command may not run, or only because nothing is enforced.
    pub(crate) fn refused(&self, action: Action, decision: Decision, command: &'static str) {
        self.decisions[action as usize].inc(decision);
        let mut refused = self.refused.lock();
        let of = refused.entry(command).or_default();
        match decision {
            Decision::Logged => of.logged += 1,
            _ => of.denied += 1,
        }
    }

    /// Keeps a denial for `recent`.
    pub(crate) fn note(&self, refusal: Refusal) {
        let mut recent = self.recent.lock();
        recent.truncate(RECENT_MAX - 1);
        recent.push_front(refusal);
    }

    /// The last denials, newest first.
    pub(crate) fn recent(&self) -> Vec<Refusal> {
        self.recent.lock().iter().cloned().collect()
    }

    /// How often, without what other workers have counted.
    pub(super) fn count(&self, action: Action, decision: Decision) -> u64 {
        self.decisions[action as usize].get(decision)
    }

    /// The commands that were refused most often, at most `TOP`; and how many there are.
    pub(crate) fn top(&self) -> (Vec<(&'static str, Refused)>, usize) {
        let mut all: Vec<_> = self.refused.lock().iter().map(|(name, of)| (*name, *of)).collect();
        // By name where they are even, so that the list does not jump about.
        all.sort_unstable_by_key(|(name, of)| (std::cmp::Reverse(of.denied + of.logged), *name));
        let count = all.len();
        all.truncate(TOP);
        (all, count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_has_the_most_frequent_in_order() {
        let counts = PolicyCounts::new();
        for (name, n) in [("a", 1), ("b", 3), ("c", 2), ("d", 2), ("e", 9), ("f", 1)] {
            (0..n).for_each(|_| counts.refused(Action::Admin, Decision::Denied, name));
        }
        counts.refused(Action::Read, Decision::Logged, "a");
        let (top, count) = counts.top();
        assert_eq!(top.iter().map(|(name, _)| *name).collect::<Vec<_>>(), ["e", "b", "a", "c", "d"]);
        assert_eq!((top[2].1, count), (Refused { denied: 1, logged: 1 }, 6));
        assert_eq!(counts.count(Action::Admin, Decision::Denied), 18);
        assert_eq!(counts.count(Action::Read, Decision::Logged), 1);
    }

    #[test]
    fn nothing_is_asked_before_a_policy_is_set() {
        let counts = PolicyCounts::new();
        assert_eq!(counts.mode(), PolicyMode::Off);
        counts.set_mode(PolicyMode::Log);
        assert_eq!(counts.mode(), PolicyMode::Log);
        assert_eq!(counts.top(), (Vec::new(), 0));
    }
}
