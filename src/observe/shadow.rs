//! The shadow of observe mode: what a cache *would* have done, without one. It is told of each read's reply (its key as a
//! hash, its size, how long upstream took) and of each write, and answers by family and command how often, how slow, and
//! which share would have been hits at several TTLs and sizes. Data thread only, but for `snapshot`; nothing of it runs
//! while neither the cache nor a rule is in observe mode.
//!
//! **How.** A miss-ratio curve from reuse distances, as SHARDS has it: whether a key is followed is decided by its hash
//! alone, so what is followed is a random part of the keys with all of their reads, and stands for 1/rate as many. A
//! reading whose distance (bytes of other replies of its group since the last one) is at most S is a hit of an LRU cache of
//! S bytes for this group alone. Each followed reply also knows when a cache of each TTL would have fetched it. The rate of
//! a group starts at 1 and is halved whenever the group follows more than `GROUP_MAX` replies, or it is the largest and all
//! follow more than `TRACKED_MAX`; it never grows again in a process. What reads the sample has missed or counted twice
//! because few keys get many reads is put right by counting all reads beside it (SHARDS_adj): the difference are hits.
//!
//! **What it does not know.** Writes that do not pass this sidecar; how long upstream lets a key live (no PTTL is sent);
//! that another TTL or size would have kept a key which a smaller cache had to fetch again (a TTL runs on from the fetch of
//! a cache without bound of size). Measured against an exact LRU with TTLs: `tests`.
//!
//! **Memory** is at most `BYTES_MAX`, whatever is read. Keys are kept as hashes under a seed of the process, and are
//! forgotten half an hour after they were fetched, and when observing ends; what was learned of their group stays.
//!
//! **Ageing.** All counts are halved whenever two weeks have been observed: a week is whole, older weeks fade.

mod file;
mod hist;
mod stack;

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasher, Hasher};

use foldhash::fast::RandomState as FastState;
use foldhash::quality::RandomState;
use parking_lot::Mutex;

use super::patterns::PatternId;
use super::reasons::Method;
use super::stamp;
pub(crate) use file::{FILE_MAX, NotRead};
pub(crate) use hist::Hist;
use hist::Scale;
use stack::{Size, Stack};

/// The TTLs at which hit rates are told, ascending, in milliseconds.
pub(crate) const TTLS_MS: [u32; TTLS] = [1_000, 10_000, 60_000, 300_000, TTL_MAX_MS];
pub(crate) const TTLS: usize = 5;
const TTL_MAX_MS: u32 = 1_800_000;

/// Families with a command each. As many as `cache_candidate_requests` has pairs; what comes later is counted as missed.
const GROUPS_MAX: usize = 300;

/// Replies that one group follows: SHARDS is good to 1 or 2 points with a few thousand.
const GROUP_MAX: usize = 4096;

/// Replies that all groups follow together.
const TRACKED_MAX: usize = 32_768;

/// What all of it takes at the most: about 300 bytes a reply with the room that tables keep for growth, 6 KiB a group
/// (`a_flood_stays_within_its_bound`).
#[cfg(test)]
const BYTES_MAX: usize = 16 << 20;

/// Observed for so long, everything is halved.
const AGE_AT_MS: f64 = 14.0 * 24.0 * 3_600_000.0;

/// A threshold at which every key is followed.
const ALL: u64 = 1 << 32;

const MS: u64 = 1_000_000;

/// What MGET's reads count as beside those of GET, with which it shares its copies.
const OF_MGET: usize = 1;

/// One reply that was read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seen {
    pub(crate) pattern: PatternId,
    /// Of the key alone, so that a write is the key's whoever reads it how.
    pub(crate) key: u64,
    /// Of who reads what of it.
    pub(crate) form: u64,
    /// The byte that ended the family's name in this key; 0: none did.
    pub(crate) separator: u8,
}

/// What came back.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Came {
    /// Bytes of the value as it is on the wire.
    pub(crate) value: u32,
    /// What it would take in the cache; none: it would not be kept.
    pub(crate) weight: Option<u32>,
    /// The key is not there: such a copy lives for so long at the most.
    pub(crate) absent_ms: Option<u32>,
}

#[derive(Default)]
pub(crate) struct Shadow {
    /// Seeded for the process, for key and form.
    hasher: RandomState,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    groups: Vec<Group>,
    /// Where each (family, command) has its group.
    index: HashMap<(PatternId, u8), usize, FastState>,
    /// The groups of a family, for writes.
    of_family: HashMap<PatternId, Vec<usize>, FastState>,
    /// Observing since then (`clock::now`), as far as it is not in `observed_ms` yet.
    since: Option<u64>,
    observed_ms: f64,
    /// When it began, in milliseconds since 1970; 0: never.
    began: u64,
    /// Reads for which there was no group.
    missed: u64,
    /// Replies that are followed.
    tracked: usize,
}

struct Group {
    name: Box<str>,
    /// GET for MGET too.
    method: Method,
    /// Keys whose hash is below are followed.
    threshold: u64,
    stack: Stack,
    learned: Learned,
    /// Of this process, never halved: would-be hits and misses of the metrics.
    hits: f64,
    misses: f64,
}

/// What a group has taught.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Learned {
    pub(crate) separator: u8,
    /// `observed_ms` when it was first seen.
    born_ms: f64,
    /// Keys that were looked up.
    pub(crate) reads: f64,
    /// The same as the sample has it.
    sampled: f64,
    /// Readings that were followed, each as one.
    followed: f64,
    pub(crate) value_bytes: f64,
    /// Requests with upstream's latency: the group's own command, and MGET.
    pub(crate) traffic: [Option<Hist>; 2],
    /// Reads that a cache of each TTL would have answered, by the size that it takes.
    hits: [Hist; TTLS],
}

/// A group as it is told.
#[derive(Clone, Debug)]
pub(crate) struct Told {
    pub(crate) name: Box<str>,
    pub(crate) method: Method,
    pub(crate) learned: Learned,
    /// Distinct replies that were fetched in the last half hour, about.
    pub(crate) distinct: f64,
    /// For how long it has been looked at, in minutes; at least one.
    pub(crate) minutes: f64,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Snapshot {
    /// In milliseconds since 1970; 0: never.
    pub(crate) began: u64,
    pub(crate) tracked: usize,
    /// Of all readings, those of keys that were followed. None before the first.
    pub(crate) sample_rate: Option<f64>,
    pub(crate) missed: u64,
    pub(crate) groups: Vec<Told>,
}

impl Shadow {
    /// The hash of a key.
    pub(crate) fn key(&self, key: &[u8]) -> u64 {
        self.hasher.hash_one(key)
    }

    /// The hash of what a lane reads of a key.
    pub(crate) fn form<'w>(&self, lane: u32, words: impl Iterator<Item = &'w [u8]>) -> u64 {
        let mut hasher = self.hasher.build_hasher();
        hasher.write_u32(lane);
        words.for_each(|word| {
            hasher.write_usize(word.len());
            hasher.write(word);
        });
        hasher.finish()
    }

    /// Observing begins, goes on or ends. When it ends all keys are forgotten.
    pub(crate) fn observe(&self, now: u64, on: bool) {
        let mut inner = self.inner.lock();
        inner.count_time(now);
        match (on, inner.since) {
            (true, None) => {
                inner.since = Some(now);
                if inner.began == 0 {
                    inner.began = stamp::unix_ms();
                }
            }
            (false, Some(_)) => {
                inner.since = None;
                inner.forget_keys();
            }
            _ => {}
        }
    }

    /// Once a minute while it observes: forgets keys of half an hour ago, lets everything age.
    pub(crate) fn tick(&self, now: u64) {
        let mut inner = self.inner.lock();
        inner.count_time(now);
        for group in &mut inner.groups {
            group.forget_old(now);
        }
        inner.count();
        if inner.observed_ms >= AGE_AT_MS {
            inner.halve();
        }
    }

    /// One key of a request was answered. Its family's name is `name`. `took`: how long upstream took, with the first key of
    /// each request, whose family stands for it. `came`: none, it was an error.
    pub(crate) fn read(
        &self,
        name: &str,
        seen: &Seen,
        method: Method,
        took: Option<u64>,
        came: Option<Came>,
        now: u64,
    ) {
        let mut inner = self.inner.lock();
        let Some(group) = inner.group(name, seen, method) else {
            inner.missed += 1;
            return;
        };
        if let Some(took) = took {
            let of = usize::from(method == Method::Mget) * OF_MGET;
            group.learned.traffic[of].get_or_insert_with(|| Hist::new(Scale::Nanos)).add(took, 1.0);
        }
        let Some(came) = came else { return };
        let before = group.stack.forms();
        group.read(seen, came, now);
        if group.stack.forms() > GROUP_MAX {
            group.halve_rate(now);
        }
        let after = group.stack.forms();
        inner.tracked = inner.tracked + after - before;
        if inner.tracked > TRACKED_MAX {
            inner.make_room(now);
        }
    }

    /// A key of this family was written, or may have been.
    pub(crate) fn wrote(&self, pattern: PatternId, key: u64) {
        let mut inner = self.inner.lock();
        let Inner { groups, of_family, tracked, .. } = &mut *inner;
        for place in of_family.get(&pattern).into_iter().flatten() {
            let Some(group) = groups.get_mut(*place) else { continue };
            let before = group.stack.forms();
            group.stack.forget(key);
            *tracked = *tracked + group.stack.forms() - before;
        }
    }

    /// All keys were written.
    pub(crate) fn flushed(&self) {
        self.inner.lock().forget_keys();
    }

    /// For the side port and for redis-cli: everything at about one moment. The lock is held for one group at a time, so
    /// that the data thread waits for the copy of some 6 KiB at the most.
    pub(crate) fn snapshot(&self, now: u64) -> Snapshot {
        let (began, groups, missed) = {
            let inner = self.inner.lock();
            (inner.began, inner.groups.len(), inner.missed)
        };
        let mut told = Snapshot { began, missed, ..Default::default() };
        let (mut reads, mut followed) = (0.0, 0.0);
        for i in 0..groups {
            let inner = self.inner.lock();
            let Some(group) = inner.groups.get(i) else { break };
            told.tracked += group.stack.forms();
            reads += group.learned.reads;
            followed += group.learned.followed;
            told.groups.push(group.told(inner.observed(now)));
        }
        told.sample_rate = (reads > 0.0).then(|| (followed / reads).min(1.0));
        told
    }

    /// Would-be hits and misses of this process by family, for the metrics: at the TTL of five minutes, without bound of
    /// size.
    pub(crate) fn would_be(&self) -> Vec<(Box<str>, f64, f64)> {
        let figures = |group: &Group| (group.name.clone(), group.hits, group.misses);
        let groups: Vec<_> = self.inner.lock().groups.iter().map(figures).collect();
        // Added up without the lock: the data thread may be waiting for it.
        let mut families: BTreeMap<Box<str>, (f64, f64)> = BTreeMap::new();
        for (name, hits, misses) in groups {
            let family = families.entry(name).or_default();
            (family.0, family.1) = (family.0 + hits, family.1 + misses);
        }
        families.into_iter().map(|(name, (hits, misses))| (name, hits, misses)).collect()
    }

    /// What it takes.
    #[cfg(test)]
    fn bytes(&self) -> usize {
        let inner = self.inner.lock();
        let index = (inner.index.capacity() + inner.of_family.capacity()) * 64;
        index + inner.groups.iter().map(Group::bytes).sum::<usize>()
    }
}

impl Inner {
    /// The time since the last call is observed time.
    fn count_time(&mut self, now: u64) {
        self.observed_ms = self.observed(now);
        self.since = self.since.map(|_| now);
    }

    fn observed(&self, now: u64) -> f64 {
        self.observed_ms + self.since.map_or(0.0, |since| now.saturating_sub(since) as f64 / MS as f64)
    }

    fn group(&mut self, name: &str, seen: &Seen, method: Method) -> Option<&mut Group> {
        let method = if method == Method::Mget { Method::Get } else { method };
        let place = match self.index.get(&(seen.pattern, method as u8)) {
            Some(place) => *place,
            None => self.place(name, seen, method)?,
        };
        self.groups.get_mut(place)
    }

    /// A new group, or one that the file has brought and that nobody has read of in this process.
    #[cold]
    fn place(&mut self, name: &str, seen: &Seen, method: Method) -> Option<usize> {
        let known = self.groups.iter().position(|group| *group.name == *name && group.method == method);
        let place = match known {
            Some(place) => place,
            None if self.groups.len() < GROUPS_MAX => {
                self.groups.push(Group::new(name, method, Learned::new(seen.separator, self.observed_ms)));
                self.groups.len() - 1
            }
            None => return None,
        };
        self.index.insert((seen.pattern, method as u8), place);
        self.of_family.entry(seen.pattern).or_default().push(place);
        Some(place)
    }

    fn make_room(&mut self, now: u64) {
        if let Some(largest) = self.groups.iter_mut().max_by_key(|group| group.stack.forms()) {
            largest.halve_rate(now);
        }
        self.count();
    }

    fn forget_keys(&mut self) {
        self.groups.iter_mut().for_each(|group| group.stack = Stack::default());
        self.tracked = 0;
    }

    fn count(&mut self) {
        self.tracked = self.groups.iter().map(|group| group.stack.forms()).sum();
    }

    fn halve(&mut self) {
        self.observed_ms /= 2.0;
        let now = stamp::unix_ms();
        self.began = now - (now - self.began.min(now)) / 2;
        self.groups.iter_mut().for_each(|group| group.learned.halve());
    }
}

impl Group {
    fn new(name: &str, method: Method, learned: Learned) -> Group {
        let stack = Stack::default();
        Group { name: name.into(), method, threshold: ALL, stack, learned, hits: 0.0, misses: 0.0 }
    }

    fn follows(threshold: u64, key: u64) -> bool {
        key >> 32 < threshold
    }

    fn read(&mut self, seen: &Seen, came: Came, now: u64) {
        let learned = &mut self.learned;
        learned.reads += 1.0;
        learned.value_bytes += f64::from(came.value);
        if !Group::follows(self.threshold, seen.key) {
            return;
        }
        let weight = ALL as f64 / self.threshold as f64;
        learned.sampled += weight;
        learned.followed += 1.0;
        let Some(bytes) = came.weight else {
            self.misses += weight;
            return self.stack.forget(seen.key);
        };
        let size = Size { bytes, absent_ms: came.absent_ms };
        let reuse = self.stack.read(seen.key, seen.form, size, (now / MS) as u32);
        let fresh = reuse.map(|reuse| reuse.fresh).unwrap_or_default();
        if fresh[METRICS_TTL] {
            self.hits += weight;
        } else {
            self.misses += weight;
        }
        let Some(reuse) = reuse else { return };
        let distance = (reuse.distance as f64 * weight) as u64;
        let hits = learned.hits.iter_mut().zip(fresh).filter(|(_, fresh)| *fresh);
        hits.for_each(|(hist, _)| hist.add(distance, weight));
    }

    fn forget_old(&mut self, now: u64) {
        let threshold = self.threshold;
        self.stack.retain((now / MS) as u32, |key| Group::follows(threshold, key));
    }

    /// Follows half as many keys from here on, unless to forget old ones is enough.
    fn halve_rate(&mut self, now: u64) {
        let before = self.stack.forms();
        self.forget_old(now);
        if self.stack.forms() * 4 > before * 3 {
            self.threshold = (self.threshold / 2).max(1);
            self.forget_old(now);
        }
    }

    fn told(&self, observed_ms: f64) -> Told {
        Told {
            name: self.name.clone(),
            method: self.method,
            learned: self.learned.clone(),
            distinct: self.stack.forms() as f64 * (ALL as f64 / self.threshold as f64),
            minutes: ((observed_ms - self.learned.born_ms) / 60_000.0).max(1.0),
        }
    }

    #[cfg(test)]
    fn bytes(&self) -> usize {
        size_of::<Group>() + self.name.len() + self.stack.bytes() + self.learned.bytes()
    }
}

/// Of `TTLS_MS`: five minutes, the default of `cache.default_ttl`.
const METRICS_TTL: usize = 3;

impl Learned {
    fn new(separator: u8, born_ms: f64) -> Learned {
        let hits = std::array::from_fn(|_| Hist::new(Scale::Bytes));
        let (reads, sampled, followed, value_bytes) = Default::default();
        Learned { separator, born_ms, reads, sampled, followed, value_bytes, traffic: [None, None], hits }
    }

    /// The share of reads that a cache of this TTL (of `TTLS_MS`) and size, for this group alone, would have answered. None:
    /// nothing was read.
    pub(crate) fn hit_rate(&self, ttl: usize, max_bytes: Option<u64>) -> Option<f64> {
        let hits = &self.hits[ttl];
        let found = max_bytes.map_or(hits.count, |max| hits.up_to(max));
        // What the sample has not seen are reads of hot keys, and what it has seen too much of, too.
        let unseen = self.reads - self.sampled;
        (self.reads > 0.0).then(|| ((found + unseen) / self.reads).clamp(0.0, 1.0))
    }

    /// The size with which a cache of this TTL has all but one in a hundred of the hits that it could have. None: it has none.
    pub(crate) fn memory(&self, ttl: usize) -> Option<u64> {
        self.hits[ttl].quantile(0.99).map(|bytes| bytes as u64)
    }

    fn halve(&mut self) {
        self.born_ms /= 2.0;
        let counts = [&mut self.reads, &mut self.sampled, &mut self.followed, &mut self.value_bytes];
        counts.into_iter().for_each(|count| *count /= 2.0);
        self.traffic.iter_mut().flatten().chain(&mut self.hits).for_each(Hist::halve);
    }

    #[cfg(test)]
    fn bytes(&self) -> usize {
        self.traffic.iter().flatten().chain(&self.hits).map(Hist::bytes).sum()
    }
}

#[cfg(test)]
mod tests;
