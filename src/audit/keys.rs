//! The keys of one audit, below a prefix of its own, and who may write which.

use std::time::Duration;

use super::truth::{Key, Truth};

pub(super) struct Keys {
    /// Counted up by everybody, in every way there is.
    pub(super) counters: Vec<Key>,
    /// Of each writer: written together only.
    pub(super) pairs: Vec<[Key; 2]>,
    /// Of each writer: the first is always written before the second.
    pub(super) ordered: Vec<[Key; 2]>,
    /// Of each writer: set anew now and then, with an expiry.
    pub(super) mortal: Vec<Key>,
    /// Of each session: its own, by SET; and two that it writes by MSET.
    pub(super) own: Vec<Key>,
    pub(super) own_pairs: Vec<[Key; 2]>,
    /// Of each session, where outages are played: it queues writes of it while others write it upstream.
    pub(super) fought: Vec<Key>,
    /// Where writers put what they have written, for somebody to pop.
    pub(super) queue: String,
    /// Where they announce it.
    pub(super) channel: String,
    pub(super) prefix: String,
}

impl Keys {
    pub(super) fn new(
        truth: &mut Truth,
        prefix: &str,
        counters: usize,
        writers: usize,
        sessions: usize,
        life: Duration,
        outages: bool,
    ) -> Keys {
        let mut add = |name: String, life| truth.add_key(format!("{prefix}{name}"), life);
        Keys {
            counters: (0..counters).map(|i| add(format!("count:{i}"), None)).collect(),
            pairs: (0..writers).map(|i| ["a", "b"].map(|w| add(format!("pair:{w}{i}"), None))).collect(),
            ordered: (0..writers).map(|i| ["x", "y"].map(|w| add(format!("order:{w}{i}"), None))).collect(),
            mortal: (0..writers).map(|i| add(format!("mortal:{i}"), Some(life))).collect(),
            own: (0..sessions).map(|i| add(format!("own:{i}"), None)).collect(),
            own_pairs: (0..sessions).map(|i| ["a", "b"].map(|w| add(format!("own:{w}{i}"), None))).collect(),
            fought: (0..if outages { sessions } else { 0 }).map(|i| add(format!("fought:{i}"), None)).collect(),
            queue: format!("{prefix}queue"),
            channel: format!("{prefix}news"),
            prefix: prefix.to_owned(),
        }
    }

    /// Written upstream and read through a place, to see whether it is back.
    pub(super) fn probe(&self, place: usize) -> String {
        format!("{}probe:{place}", self.prefix)
    }

    /// What a session reads over and over: a bit of everything, the first ones first.
    pub(super) fn polled(&self, n: usize) -> Key {
        let all: Vec<Key> = (0..self.counters.len().max(self.pairs.len()))
            .flat_map(|i| {
                let writers = [self.pairs.get(i).map(|p| p[0]), self.ordered.get(i).map(|o| o[0])];
                [self.counters.get(i).copied()].into_iter().chain(writers)
            })
            .flatten()
            .collect();
        all[n % all.len()]
    }
}
