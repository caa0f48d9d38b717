//! Which keys have which tag. Written where entries are stored and removed, read when somebody invalidates a tag: that costs
//! what the tag has keys, however many there are beside them. It does not know what tags mean; the rules give them.
//!
//! **Records.** Every value that is stored under a key has a number of its own. A tag's set holds a record for each stored
//! value with that tag: number and key. A record is written before its value is stored and taken out, by its number, when
//! moka says that the value has left, on whichever thread. So a late removal only ever takes out its own record, never that
//! of a value which has been stored under the same key since; and whatever is resident has its record.
//!
//! **Why nothing old is left.** To invalidate a tag is (a) to raise `generation` and note it in `last` under the tag's hash;
//! (b) to find the tag's set and lock it once, which fixes the newest number that is looked at; (c) to drop every key that
//! has a record up to that number. To store a value is, under its stripe's lock, (1) to write its records, (2) to compare
//! its token with `last` for each of its tags, (3) to store, or to take the records back.
//! - (1) before (b), for one and the same lock: (b) has the record, and (c) drops the key. It waits for the stripe's lock, so
//!   the store is over, one way or the other.
//! - (1) after (b): the comparison in (2) follows (a) and sees it. A token from before (a) does not store.
//! - A token from after (a): its reading was sent after the invalidation began and may stay. But a value holds the readings
//!   of all profiles, and what is stored takes those of the others over, into a record that (c) does not look at. So before
//!   (1) what is there is compared as well (`Books::is_void`), by the oldest of its readings, and not taken over if it is to
//!   go. If (a) comes behind that comparison, it also comes behind the token, and (2) sees it or (b) the record.
//!
//! The set may not exist at (b), or have been emptied and given up between two steps. Then map and not set is the one lock:
//! who finds no set in it, or a given-up one, has it before whoever puts the next one there. Two invalidations of one tag do
//! not hide records from each other: a record goes only when its value has gone.
//!
//! Only readings of the tag are void, not all that are under way: a `Token` carries the generation, and `last` says which
//! tags were named since. Two tags of one place in `last` cost each other a store now and then.
//!
//! **Memory.** A record is weighed with its entry (`Marks::bytes`), so records take their place within `cache.max_bytes`.
//! They and the sets take at most a quarter of it (`SHARE`). A value that finds no room is counted, not recorded: in its
//! tag's set, or in `unnamed` where the set itself had no room. While a tag has such values (while any tag has, in the second
//! case) its invalidation looks through the whole L1 instead. When they have left it is exact again.
//!
//! **Locks.** A stripe's lock comes before a set's, and nothing else is called while a set or a shard of the map is locked.
//! moka calls `leave` while it holds a lock of its own, so nothing here calls moka.

use std::collections::BTreeMap;
use std::hash::BuildHasher;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use dashmap::DashMap;
use foldhash::fast::RandomState;
use parking_lot::Mutex;

use super::Key;
use crate::sync;

/// Of `cache.max_bytes`, the part that records and sets take at most: one of so many.
const SHARE: u64 = 4;

/// A record beside its key: its place in the tree, whose leaves are little more than half full when they are filled in
/// ascending order, and the key's allocation. Measured with keys of 12 bytes: 104 for both, where a tag has 1,000 keys, and
/// 494 with the set of a tag of one (`the_index_takes_what_it_counts`).
pub(super) const RECORD: usize = 92;

/// A set beside its records and its name, which it has twice: mostly the first leaf of its tree.
const SET: usize = 360;

/// Places of `last`: 8 KiB.
const PLACES: usize = 1024;

/// Keys that are taken from a set in one go, as a sweep takes them from the L1.
const BATCH: usize = 128;

pub(super) struct Tags {
    sets: DashMap<Box<[u8]>, Arc<TagSet>, RandomState>,
    /// Values stored with a tag that had no room for a set of its own.
    unnamed: Mutex<u64>,
    /// Invalidations of tags so far.
    generation: AtomicU64,
    /// By a tag's hash, the newest generation that named it.
    last: Box<[AtomicU64]>,
    hasher: RandomState,
    /// Of records and sets.
    bytes: AtomicU64,
    bytes_max: u64,
}

#[derive(Debug)]
pub(crate) struct TagSet {
    name: Box<[u8]>,
    /// The text it was filled in from first: what its invalidations are counted under.
    template: Box<str>,
    members: Mutex<Members>,
}

#[derive(Debug, Default)]
struct Members {
    records: BTreeMap<u64, Key>,
    /// Stored values that have no record.
    unlisted: u64,
    /// Emptied and given up: nothing is written to it any more.
    dead: bool,
}

/// A tag of one stored value.
#[derive(Debug)]
pub(super) enum Place {
    Listed(Arc<TagSet>),
    /// Its set had no room for a record.
    Unlisted(Arc<TagSet>),
    /// There was no room for its set.
    Unnamed(Box<[u8]>),
}

/// What is to be looked at to invalidate a tag.
pub(super) enum Found {
    Nothing,
    Records(Walk),
    /// Not all are known.
    Everything,
}

/// The keys of one tag that are still to be dropped.
pub(super) struct Walk {
    set: Arc<TagSet>,
    behind: u64,
    last: u64,
}

impl Tags {
    pub(super) fn new(max_bytes: u64) -> Tags {
        Tags {
            sets: DashMap::default(),
            unnamed: Mutex::default(),
            generation: AtomicU64::new(0),
            last: (0..PLACES).map(|_| AtomicU64::new(0)).collect(),
            hasher: RandomState::default(),
            bytes: AtomicU64::new(0),
            bytes_max: max_bytes / SHARE,
        }
    }

    pub(super) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    fn last(&self, tag: &[u8]) -> &AtomicU64 {
        &self.last[self.hasher.hash_one(tag) as usize % PLACES]
    }

    /// (1): `key` is about to be stored with `tag`, as the value of this number.
    pub(super) fn enter(&self, tag: &[u8], template: &str, key: &[u8], number: u64) -> Place {
        loop {
            let Some(set) = self.set(tag, template) else {
                *self.unnamed.lock() += 1;
                return Place::Unnamed(tag.into());
            };
            sync::point();
            let mut members = set.members.lock();
            if !members.dead {
                let listed = self.reserve(record_bytes(key));
                match listed {
                    true => drop(members.records.insert(number, key.into())),
                    false => members.unlisted += 1,
                }
                drop(members);
                return if listed { Place::Listed(set) } else { Place::Unlisted(set) };
            }
            drop(members);
            self.give_up(&set);
        }
    }

    /// (2): whether `tag` has been invalidated since there were `generation` invalidations.
    pub(super) fn voids(&self, generation: u64, tag: &[u8]) -> bool {
        sync::point();
        self.last(tag).load(Ordering::Acquire) > generation
    }

    /// The value of this number has left, or is not stored after all. Exactly once for each `enter`.
    pub(super) fn leave(&self, place: &Place, number: u64) {
        let (Place::Listed(set) | Place::Unlisted(set)) = place else {
            *self.unnamed.lock() -= 1;
            return;
        };
        let mut members = set.members.lock();
        if matches!(place, Place::Unlisted(_)) {
            members.unlisted -= 1;
        } else if let Some(key) = members.records.remove(&number) {
            self.release(record_bytes(&key));
        }
        members.dead = members.records.is_empty() && members.unlisted == 0;
        let dead = members.dead;
        drop(members);
        if dead {
            self.give_up(set);
        }
    }

    /// (a): readings of `tag` that are under way are void.
    pub(super) fn raise(&self, tag: &[u8]) {
        sync::point();
        let generation = self.generation.fetch_add(1, Ordering::AcqRel) + 1;
        sync::point();
        self.last(tag).fetch_max(generation, Ordering::AcqRel);
    }

    /// (b), behind (a).
    pub(super) fn find(&self, tag: &[u8]) -> Found {
        sync::point();
        let set = self.known(tag);
        sync::point();
        if *self.unnamed.lock() > 0 {
            return Found::Everything;
        }
        let Some(set) = set else { return Found::Nothing };
        let members = set.members.lock();
        let last = members.records.last_key_value().map(|(number, _)| *number);
        let complete = members.unlisted == 0;
        drop(members);
        match last {
            _ if !complete => Found::Everything,
            Some(last) => Found::Records(Walk { set, behind: 0, last }),
            None => Found::Nothing,
        }
    }

    /// What the tag's text was filled in from, where anything stored has it.
    pub(super) fn template(&self, tag: &[u8]) -> Option<Box<str>> {
        self.known(tag).map(|set| set.template.clone())
    }

    /// No guard of the map outlives this.
    fn known(&self, tag: &[u8]) -> Option<Arc<TagSet>> {
        self.sets.get(tag).map(|found| found.value().clone())
    }

    /// The set of a tag, made if there is none and there is room for it.
    fn set(&self, tag: &[u8], template: &str) -> Option<Arc<TagSet>> {
        if let Some(known) = self.known(tag) {
            return Some(known);
        }
        if !self.reserve(set_bytes(tag)) {
            return None;
        }
        let fresh = Arc::new(TagSet { name: tag.into(), template: template.into(), members: Mutex::default() });
        let kept = self.sets.entry(tag.into()).or_insert_with(|| fresh.clone()).value().clone();
        if !Arc::ptr_eq(&kept, &fresh) {
            self.release(set_bytes(tag));
        }
        Some(kept)
    }

    /// Takes a dead set out of the map, once.
    fn give_up(&self, set: &Arc<TagSet>) {
        if self.sets.remove_if(&set.name, |_, known| Arc::ptr_eq(known, set)).is_some() {
            self.release(set_bytes(&set.name));
        }
    }

    fn reserve(&self, bytes: u64) -> bool {
        let fits = self.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes <= self.bytes_max;
        if !fits {
            self.release(bytes);
        }
        fits
    }

    fn release(&self, bytes: u64) {
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}

fn record_bytes(key: &[u8]) -> u64 {
    (RECORD + key.len()) as u64
}

fn set_bytes(tag: &[u8]) -> u64 {
    (SET + 2 * tag.len()) as u64
}

impl Place {
    pub(super) fn name(&self) -> &[u8] {
        match self {
            Place::Listed(set) | Place::Unlisted(set) => &set.name,
            Place::Unnamed(name) => name,
        }
    }

    pub(super) fn template(&self) -> &str {
        match self {
            Place::Listed(set) | Place::Unlisted(set) => &set.template,
            Place::Unnamed(_) => "",
        }
    }

    /// What the value takes for it, beside the place itself.
    pub(super) fn bytes(&self, key: &[u8]) -> usize {
        match self {
            Place::Listed(_) => RECORD + key.len(),
            Place::Unlisted(_) => 0,
            Place::Unnamed(name) => name.len(),
        }
    }
}

impl Walk {
    /// (c): the next keys, none when all have been given out. What has left meanwhile is passed over.
    pub(super) fn next(&mut self) -> Vec<Key> {
        if self.behind >= self.last {
            return Vec::new();
        }
        sync::point();
        let members = self.set.members.lock();
        let rest = members.records.range(self.behind + 1..=self.last);
        let (numbers, keys): (Vec<u64>, Vec<Key>) =
            rest.take(BATCH).map(|(number, key)| (*number, key.clone())).unzip();
        drop(members);
        self.behind = numbers.last().copied().unwrap_or(self.last);
        keys
    }
}

#[cfg(test)]
mod tests;
