//! What upstream owes: writes that a sidecar has acknowledged while upstream was, or may have been, gone. Pure bookkeeping;
//! `truth` adds to it, `outages` settles it when the sidecar says that its queue is empty.
//!
//! **Keys with one writer.** Their versions only grow, so once the queue is empty upstream must have the last acknowledged
//! version or a later one; an older one, or none that was deleted later, is a lost write. Nothing is wrongly called lost:
//! the sidecar was asked for its queue's depth after the write was acknowledged, so the write was in the queue, and is done,
//! or was upstream's before.
//!
//! **Keys that are fought for.** A client queues writes of the key while others write it upstream; nobody writes it at any
//! other time. With `outage.queue_conflict: overwrite` the queue is done behind all that was written upstream meanwhile, so
//! the last acknowledged write must be what is there afterwards: or a later one of the same client (whose reply was lost or
//! came after upstream was back), or one of the others' that is not known to have executed before upstream was back for the
//! sidecar. Versions here say who wrote, not what was first.

use std::collections::BTreeMap;

use super::truth::{Key, Known, Micros};

/// The newest acknowledged version of a key.
#[derive(Clone, Copy, Debug)]
pub(super) struct Debt {
    pub(super) last: Known,
    /// Acknowledged writes of it, this one among them, that were certainly queued.
    pub(super) queued: u64,
}

#[derive(Debug, Default)]
struct Fight {
    /// The newest version that was certainly queued.
    queued: Option<Known>,
    /// Acknowledged writes that were certainly queued.
    count: u64,
    /// Of the others: when each was known to have executed, `Micros::MAX` if that is not known.
    foreign: BTreeMap<i64, Micros>,
}

/// What became of a fight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Nothing was queued.
    Nothing,
    /// So many queued writes: the last of them, or something later, is there.
    Kept(u64),
    Lost(Known),
}

#[derive(Debug)]
pub(super) struct Owed {
    places: Vec<BTreeMap<Key, Debt>>,
    fights: BTreeMap<Key, Fight>,
    /// Writes that were certainly queued, and of those the ones that are there, or were overwritten by a later one.
    pub(super) acknowledged: u64,
    pub(super) found: u64,
}

impl Owed {
    pub(super) fn new(places: usize) -> Owed {
        Owed { places: vec![BTreeMap::new(); places], fights: BTreeMap::new(), acknowledged: 0, found: 0 }
    }

    /// `queued`: certainly so.
    pub(super) fn add(&mut self, place: usize, key: Key, known: Known, queued: bool) {
        let debt = self.places[place].entry(key).or_insert(Debt { last: known, queued: 0 });
        debt.queued += u64::from(queued);
        self.acknowledged += u64::from(queued);
        if debt.last.version < known.version {
            debt.last = known;
        }
    }

    /// Everything that was acknowledged there until then.
    pub(super) fn take(&mut self, place: usize, until: Micros) -> Vec<(Key, Debt)> {
        let (taken, left) =
            std::mem::take(&mut self.places[place]).into_iter().partition(|(_, d)| d.last.known <= until);
        self.places[place] = left;
        let taken: BTreeMap<Key, Debt> = taken;
        taken.into_iter().collect()
    }

    /// Another outage begins.
    pub(super) fn begin_fight(&mut self, key: Key) {
        self.fights.insert(key, Fight::default());
    }

    pub(super) fn fought_queued(&mut self, key: Key, known: Known) {
        if let Some(fight) = self.fights.get_mut(&key) {
            (fight.queued, fight.count) = (Some(known), fight.count + 1);
            self.acknowledged += 1;
        }
    }

    /// A foreign write is sent (`Micros::MAX`), or is known to have executed.
    pub(super) fn fought_foreign(&mut self, key: Key, version: i64, known: Micros) {
        if let Some(fight) = self.fights.get_mut(&key) {
            fight.foreign.insert(version, known);
        }
    }

    /// `got`: what upstream has once the queue is done. `back`: until then nothing of it can have been done.
    pub(super) fn outcome(&self, key: Key, got: i64, back: Micros) -> Outcome {
        let Some(fight) = self.fights.get(&key) else { return Outcome::Nothing };
        let Some(queued) = fight.queued else { return Outcome::Nothing };
        let stands = match fight.foreign.get(&got) {
            Some(known) => *known >= back,
            None => got >= queued.version,
        };
        if stands { Outcome::Kept(fight.count) } else { Outcome::Lost(queued) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::truth::Actor;

    fn known(version: i64, known: Micros) -> Known {
        Known { version, sent: 0, known, by: Actor::Session(0), how: "SET" }
    }

    #[test]
    fn the_newest_version_is_owed_until_it_is_asked_for() {
        let mut owed = Owed::new(2);
        owed.add(0, 5, known(3, 10), true);
        owed.add(0, 5, known(4, 20), true);
        owed.add(0, 6, known(1, 30), false);
        owed.add(1, 7, known(1, 10), true);
        let taken = owed.take(0, 20);
        assert_eq!(taken.iter().map(|(k, d)| (*k, d.last.version, d.queued)).collect::<Vec<_>>(), [(5, 4, 2)]);
        assert_eq!((owed.take(0, 29).len(), owed.take(0, 30).len(), owed.take(0, 99).len()), (0, 1, 0));
        assert_eq!(owed.acknowledged, 3);
    }

    #[test]
    fn the_last_queued_write_stands_or_something_later() {
        let mut owed = Owed::new(1);
        assert_eq!(owed.outcome(1, 9, 100), Outcome::Nothing);
        owed.begin_fight(1);
        owed.fought_foreign(1, 1, 50);
        assert_eq!(owed.outcome(1, 1, 100), Outcome::Nothing, "nothing was queued");
        owed.fought_queued(1, known(2, 60));
        owed.fought_foreign(1, 3, 70);
        owed.fought_queued(1, known(4, 80));
        owed.fought_foreign(1, 5, 99);
        owed.fought_foreign(1, 6, 100);
        owed.fought_foreign(1, 7, Micros::MAX);
        // What is there afterwards, and whether that is right.
        for (got, stands) in
            [(0, false), (1, false), (2, false), (3, false), (4, true), (5, false), (6, true), (7, true), (8, true)]
        {
            let wanted = if stands { Outcome::Kept(2) } else { Outcome::Lost(known(4, 80)) };
            assert_eq!(owed.outcome(1, got, 100), wanted, "{got}");
        }
        owed.begin_fight(1);
        assert_eq!(owed.outcome(1, 4, 200), Outcome::Nothing, "each outage by itself");
    }
}
