//! `max_share`: what the entries of one rule take together. Written where entries of such a rule are stored and removed; the
//! others know nothing of it. What is too much goes oldest first, in the order in which it was stored: a reading that is
//! repeated counts as new, a hit does not.
//!
//! A rule's list has a record for each stored value, by the value's own number (as a tag's set has, see `tags`), and
//! `bytes` is the sum of the records' weights, at every moment. A record goes when moka says that its value has left, or when
//! it is taken to make room, whichever is first. Records are weighed with their entries, so the list is bounded by the share.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use parking_lot::Mutex;

use super::Key;

/// A record beside its key, as in `tags`.
pub(super) const RECORD: usize = super::tags::RECORD;

/// Entries that one store makes go, some milliseconds' work. It is many only where a large entry takes the place of small
/// ones, or where the share has shrunk: then the stores that follow go on.
pub(super) const EVICTED_MAX: usize = 4096;

/// By the rule's name.
#[derive(Default)]
pub(super) struct Shares {
    lists: Mutex<HashMap<Box<str>, Arc<Share>>>,
}

#[derive(Debug, Default)]
pub(crate) struct Share {
    list: Mutex<List>,
}

#[derive(Debug, Default)]
struct List {
    records: BTreeMap<u64, (Key, u32)>,
    bytes: u64,
}

impl Shares {
    /// The rule's list. Those of rules that are gone go when their last entry has.
    pub(super) fn of(&self, rule: &str) -> Arc<Share> {
        let mut lists = self.lists.lock();
        if let Some(share) = lists.get(rule) {
            return share.clone();
        }
        lists.retain(|_, share| Arc::strong_count(share) > 1);
        lists.entry(rule.into()).or_default().clone()
    }

    /// What the entries of a rule with a share take now.
    pub(super) fn bytes(&self, rule: &str) -> Option<u64> {
        let share = self.lists.lock().get(rule).cloned();
        share.map(|share| share.bytes())
    }
}

impl Share {
    pub(super) fn bytes(&self) -> u64 {
        self.list.lock().bytes
    }

    pub(super) fn enter(&self, number: u64, key: &[u8], weight: u32) {
        let mut list = self.list.lock();
        list.bytes += u64::from(weight);
        list.records.insert(number, (key.into(), weight));
    }

    pub(super) fn leave(&self, number: u64) {
        let mut list = self.list.lock();
        if let Some((_, weight)) = list.records.remove(&number) {
            list.bytes -= u64::from(weight);
        }
    }

    /// While the rule takes more than `max` bytes, its oldest value but the one numbered `own`; it counts no more from here.
    pub(super) fn too_much(&self, max: u64, own: u64) -> Option<(u64, Key)> {
        let mut list = self.list.lock();
        if list.bytes <= max {
            return None;
        }
        let number = *list.records.keys().find(|number| **number != own)?;
        let (key, weight) = list.records.remove(&number)?;
        list.bytes -= u64::from(weight);
        Some((number, key))
    }
}

#[cfg(test)]
mod tests;
