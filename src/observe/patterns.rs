//! Which family a key belongs to, as a small number that an entry keeps, so that a hit counts by index. `id` runs on a miss
//! or a fill, never on a hit. Names are only ever added: a reader of the table takes no lock, and the 100 names of the
//! first hour are those of the last. Half of the places go to the first families seen, the other half to those with many
//! requests, so that a scan over unheard-of keys cannot use up all of them. Measured: 17 ns for a known family, 50 for a
//! number, 120 in a flood of new names. A rule's keys are counted under its
//! name, which comes from above and takes its place before any key is seen.
//!
//! **A rule that is gone** (`keep_rules`) hides its row: it is in no scrape, and its place is free for others. Its number is
//! not given to anybody else, because somebody may hold it still; asked for again, by a rule or by keys of that name, it
//! is there again with its old counts. Twice as many names as there are places can ever have had a row; what comes
//! later counts as `_other`.

use std::collections::HashMap;
use std::hash::BuildHasher;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use foldhash::fast::RandomState;
use parking_lot::Mutex;

use super::counters::Counter;
use super::reasons::Method;

/// The longest text that still is a family's name.
const NAME_MAX: usize = 64;

/// No configuration gets more families than this: each is a dozen series in every scrape.
const PATTERNS_MAX: usize = 1000;

/// A family that came too late for the first half of the places gets one after this many misses.
const PROMOTE_AT: u32 = 100;

/// Families that are being counted towards a place: some 100 KiB at the most, ten times what could ever be promoted by
/// default.
const CANDIDATES_MAX: usize = 1024;

/// `cache_candidate_requests` has at most this many (route, method) pairs; the rest count under the route `_other`.
const PAIRS_MAX: usize = 300;

/// A family of keys: an index that is valid for the life of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct PatternId(pub(crate) u16);

impl PatternId {
    pub(crate) const OTHER: Self = Self(0);
    pub(crate) const PLAIN: Self = Self(1);
}

/// The names of the two that are always there, in the order of their ids.
const RESERVED: [&str; 2] = ["_other", "_plain"];

pub(crate) struct Patterns {
    /// The bytes that end a name (`observe.separators`).
    separators: Box<[u8]>,
    hasher: RandomState,
    /// Open addressing with linear probing, never more than half full, nothing is ever removed.
    table: Box<[OnceLock<(u64, u16)>]>,
    /// By id.
    rows: Box<[Row]>,
    /// Rows that have a name. Released after the name is in its place.
    len: AtomicUsize,
    /// How many of them may be shown at once, the reserved ones included.
    shown_max: usize,
    /// How many are not. Written with the lock on `newcomers`.
    hidden: AtomicUsize,
    newcomers: Mutex<HashMap<Box<[u8]>, u32, RandomState>>,
    /// (route, method) pairs with a count of their own, those of `_other` included.
    pairs: AtomicUsize,
}

/// What is counted for one family.
pub(crate) struct Row {
    name: OnceLock<Box<str>>,
    /// Some rule in force has this name. Written with the lock on `newcomers`, as the next one.
    of_rule: AtomicBool,
    /// It was a rule's, and nobody has asked for it since.
    hidden: AtomicBool,
    pub(crate) hits: Counter,
    pub(crate) misses: Counter,
    pub(crate) sets: Counter,
    pub(crate) dels: Counter,
    pub(crate) candidates: [Counter; Method::COUNT],
    /// Whether the pair has a count of its own, decided at its first request.
    pairs: [OnceLock<bool>; Method::COUNT],
    updates_since_read: AtomicU32,
    pub(super) cost: RowCost,
}

/// What money is made of (`costs`).
#[derive(Default)]
pub(super) struct RowCost {
    /// Of the replies that hits saved.
    pub(super) saved_bytes: Counter,
    /// Hits that saved no request of their own: the others of an MGET.
    pub(super) riders: Counter,
    /// Keys that were not answered here, and what upstream answered for them.
    pub(super) unserved: Counter,
    pub(super) requests: Counter,
    pub(super) bytes: Counter,
    /// Of a key that is not answered here, in billionths; written by the side port's thread.
    per_miss: AtomicU64,
}

impl Default for Row {
    fn default() -> Row {
        let (name, of_rule, hidden, hits, misses, sets, dels, updates_since_read, cost) = Default::default();
        let candidates = std::array::from_fn(|_| Counter::default());
        let pairs = std::array::from_fn(|_| OnceLock::new());
        Row { name, of_rule, hidden, hits, misses, sets, dels, candidates, pairs, updates_since_read, cost }
    }
}

/// What another worker than the data thread counts for each family: every cell has one writer.
pub(crate) struct ShardRows(Box<[ShardRow]>);

#[derive(Default)]
pub(crate) struct ShardRow {
    pub(crate) hits: Counter,
    pub(super) saved_bytes: Counter,
    pub(super) riders: Counter,
}

impl ShardRows {
    pub(crate) fn hit(&self, id: PatternId) {
        self.row(usize::from(id.0)).hits.inc();
    }

    /// A hit saved so many bytes of reply.
    pub(crate) fn saved(&self, id: PatternId, bytes: u64) {
        self.row(usize::from(id.0)).saved_bytes.add(bytes);
    }

    /// That hit saved no request of its own.
    pub(crate) fn rider(&self, id: PatternId) {
        self.row(usize::from(id.0)).riders.inc();
    }

    pub(super) fn hits(&self) -> u64 {
        self.0.iter().map(|row| row.hits.get()).sum()
    }

    pub(crate) fn row(&self, index: usize) -> &ShardRow {
        self.0.get(index).unwrap_or(&self.0[0])
    }
}

impl Patterns {
    /// `separators`: each of its bytes ends a name. `max`: how many names beside `_other` and `_plain`.
    pub(crate) fn new(separators: &str, max: usize) -> Self {
        let max = max.min(PATTERNS_MAX);
        let this = Self {
            separators: separators.as_bytes().into(),
            hasher: RandomState::default(),
            table: (0..(4 * max).next_power_of_two()).map(|_| OnceLock::new()).collect(),
            rows: (0..2 * max + RESERVED.len()).map(|_| Row::default()).collect(),
            len: AtomicUsize::new(RESERVED.len()),
            shown_max: max + RESERVED.len(),
            hidden: AtomicUsize::new(0),
            newcomers: Mutex::default(),
            pairs: AtomicUsize::new(Method::COUNT),
        };
        for (row, name) in this.rows.iter().zip(RESERVED) {
            let _ = row.name.set(name.into());
        }
        this
    }

    /// The family of `key`, which is asked for when it was missed or is stored.
    pub(crate) fn id(&self, key: &[u8]) -> PatternId {
        let Some(end) = self.separator(key) else {
            return PatternId::PLAIN;
        };
        let text = &key[..end];
        if end > NAME_MAX {
            return PatternId::OTHER;
        }
        let hash = self.hasher.hash_one(text);
        match self.find(hash, text) {
            Some(id) if !self.row(id).hidden.load(Ordering::Relaxed) => id,
            Some(id) => self.bring_back(id),
            None if is_name(text) => self.newcomer(hash, text),
            None => PatternId::OTHER,
        }
    }

    /// The same, where `last` was the family of a key before. Clients ask for one family over and over: then nothing is hashed
    /// and nothing looked up. A name that stands in front of a key's separator and has none within is the key's family; which
    /// is why a rule's name, which may have one, is not taken for it, nor are the two reserved ones.
    pub(crate) fn id_after(&self, key: &[u8], last: PatternId) -> PatternId {
        let (row, name) = (self.row(last), self.name(last).as_bytes());
        let ends = |byte: &u8| self.separators.contains(byte);
        let again = usize::from(last.0) >= RESERVED.len()
            && key.get(name.len()).is_some_and(ends)
            && key.starts_with(name)
            && !row.of_rule.load(Ordering::Relaxed)
            && !row.hidden.load(Ordering::Relaxed);
        if again { last } else { self.id(key) }
    }

    /// The family that a rule's keys are counted under: its name, if there is a place left.
    pub(crate) fn of_rule(&self, name: &str) -> PatternId {
        if name.len() > NAME_MAX || !name.chars().all(printable) || RESERVED.contains(&name) {
            return PatternId::OTHER;
        }
        let hash = self.hasher.hash_one(name.as_bytes());
        let _alone = self.newcomers.lock();
        let id = match self.find(hash, name.as_bytes()) {
            Some(id) => self.show(id),
            None if self.has_room() => self.add(hash, name.as_bytes()),
            None => PatternId::OTHER,
        };
        if id != PatternId::OTHER {
            self.row(id).of_rule.store(true, Ordering::Relaxed);
        }
        id
    }

    /// The same without giving a place to one that has none.
    pub(crate) fn named(&self, name: &str) -> PatternId {
        self.find(self.hasher.hash_one(name.as_bytes()), name.as_bytes()).unwrap_or(PatternId::OTHER)
    }

    /// These are the rules in force: rows of others that were rules' are hidden.
    pub(crate) fn keep_rules(&self, in_force: &[PatternId]) {
        let _alone = self.newcomers.lock();
        let len = self.len.load(Ordering::Relaxed);
        for (i, row) in self.rows[..len].iter().enumerate() {
            let gone = row.of_rule.load(Ordering::Relaxed) && !in_force.contains(&PatternId(i as u16));
            if gone {
                row.of_rule.store(false, Ordering::Relaxed);
                row.hidden.store(true, Ordering::Relaxed);
                self.hidden.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    pub(crate) fn hit(&self, id: PatternId) {
        self.row(id).hits.inc();
    }

    /// A hit saved so many bytes of reply. Answers what the key would have cost besides, in billionths.
    pub(crate) fn saved(&self, id: PatternId, bytes: u64) -> u64 {
        let cost = &self.row(id).cost;
        cost.saved_bytes.add(bytes);
        cost.per_miss.load(Ordering::Relaxed)
    }

    /// That hit saved no request of its own.
    pub(crate) fn rider(&self, id: PatternId) {
        self.row(id).cost.riders.inc();
    }

    /// What a key costs besides that is not answered here, in billionths.
    pub(crate) fn per_miss(&self, id: PatternId) -> u64 {
        self.row(id).cost.per_miss.load(Ordering::Relaxed)
    }

    /// A key was not answered here. Answers what it costs besides, in billionths.
    pub(crate) fn unserved(&self, id: PatternId) -> u64 {
        self.row(id).cost.unserved.inc();
        self.per_miss(id)
    }

    /// Upstream answered a request of this family with so many bytes.
    pub(crate) fn fetched(&self, id: PatternId, bytes: u64) {
        let cost = &self.row(id).cost;
        cost.requests.inc();
        cost.bytes.add(bytes);
    }

    /// What a key of each row costs from now on, in billionths.
    pub(super) fn set_costs(&self, of: impl Fn(usize) -> u64) {
        self.rows.iter().enumerate().for_each(|(i, row)| row.cost.per_miss.store(of(i), Ordering::Relaxed));
    }

    pub(crate) fn miss(&self, id: PatternId) {
        self.row(id).misses.inc();
    }

    /// An entry was stored.
    pub(crate) fn set(&self, id: PatternId) {
        self.row(id).sets.inc();
    }

    /// An entry was removed, for any cause but replacement. By any thread.
    pub(crate) fn del(&self, id: PatternId) {
        self.row(id).dels.add_shared(1);
    }

    /// A request that could be answered from the cache, and is not because nobody has asked for it. By the data thread only:
    /// other workers answer hits, which are none.
    pub(crate) fn candidate(&self, id: PatternId, method: Method) {
        self.row(self.route(id, method)).candidates[method as usize].inc();
    }

    /// Cells for another worker.
    pub(crate) fn shard(&self) -> ShardRows {
        ShardRows(self.rows.iter().map(|_| ShardRow::default()).collect())
    }

    /// A write refreshed the L1. Answers how many have since somebody last read a key of the family, this one included.
    pub(crate) fn note_update(&self, id: PatternId) -> u32 {
        let cell = &self.row(id).updates_since_read;
        let updates = cell.load(Ordering::Relaxed).saturating_add(1);
        cell.store(updates, Ordering::Relaxed);
        updates
    }

    /// A key of the family was read.
    pub(crate) fn note_read(&self, id: PatternId) {
        // Mostly it is none, and workers need not take the line from each other.
        let cell = &self.row(id).updates_since_read;
        if cell.load(Ordering::Relaxed) > 0 {
            cell.store(0, Ordering::Relaxed);
        }
    }

    #[cfg(test)]
    pub(crate) fn updates_since_read(&self, id: PatternId) -> u32 {
        self.row(id).updates_since_read.load(Ordering::Relaxed)
    }

    pub(crate) fn name(&self, id: PatternId) -> &str {
        self.row(id).name.get().map_or(RESERVED[0], |name| name)
    }

    /// Every family that is shown, by its number, with what was counted for it.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (usize, &str, &Row)> {
        self.all().filter(|(_, _, row)| !row.hidden.load(Ordering::Relaxed))
    }

    /// With those that are not: sums must not shrink.
    pub(super) fn all(&self) -> impl Iterator<Item = (usize, &str, &Row)> {
        let named = &self.rows[..self.len.load(Ordering::Acquire)];
        named.iter().enumerate().filter_map(|(i, row)| Some((i, &**row.name.get()?, row)))
    }

    /// An id of another process, or a made-up one, counts as `_other`.
    pub(super) fn row(&self, id: PatternId) -> &Row {
        self.rows.get(usize::from(id.0)).unwrap_or(&self.rows[0])
    }

    fn separator(&self, key: &[u8]) -> Option<usize> {
        match *self.separators {
            [one] => memchr::memchr(one, key),
            [one, two] => memchr::memchr2(one, two, key),
            _ => key.iter().position(|byte| self.separators.contains(byte)),
        }
    }

    fn find(&self, hash: u64, text: &[u8]) -> Option<PatternId> {
        for slot in self.probe(hash) {
            let &(other, id) = slot.get()?;
            if other == hash && self.name(PatternId(id)).as_bytes() == text {
                return Some(PatternId(id));
            }
        }
        None
    }

    fn probe(&self, hash: u64) -> impl Iterator<Item = &OnceLock<(u64, u16)>> {
        let mask = self.table.len() - 1;
        (0..self.table.len()).map(move |step| &self.table[(hash as usize).wrapping_add(step) & mask])
    }

    /// `text` could be a name and is not in the table: it gets a place now, is counted towards one, or never gets one.
    #[cold]
    fn newcomer(&self, hash: u64, text: &[u8]) -> PatternId {
        let mut newcomers = self.newcomers.lock();
        // Another thread may have added it before this one got the lock.
        if let Some(id) = self.find(hash, text) {
            return id;
        }
        let max = self.shown_max - RESERVED.len();
        let taken = self.shown() - RESERVED.len();
        let room = self.has_room();
        if room && taken < max.div_ceil(2) {
            return self.add(hash, text);
        }
        if !room || !promoted(&mut newcomers, text) {
            return PatternId::OTHER;
        }
        if taken + 1 == max {
            *newcomers = HashMap::default();
        }
        self.add(hash, text)
    }

    fn shown(&self) -> usize {
        self.len.load(Ordering::Relaxed) - self.hidden.load(Ordering::Relaxed)
    }

    /// For one more name. With the lock on `newcomers`.
    fn has_room(&self) -> bool {
        self.shown() < self.shown_max && self.len.load(Ordering::Relaxed) < self.rows.len()
    }

    /// Keys of a family ask for it again.
    #[cold]
    fn bring_back(&self, id: PatternId) -> PatternId {
        let _alone = self.newcomers.lock();
        self.show(id)
    }

    /// With the lock on `newcomers`. `_other` where there is no room.
    fn show(&self, id: PatternId) -> PatternId {
        let row = self.row(id);
        if row.hidden.load(Ordering::Relaxed) {
            if self.shown() == self.shown_max {
                return PatternId::OTHER;
            }
            row.hidden.store(false, Ordering::Relaxed);
            self.hidden.fetch_sub(1, Ordering::Relaxed);
        }
        id
    }

    /// Gives `text` the next place. Only with the lock on `newcomers`, and only where a place is free.
    fn add(&self, hash: u64, text: &[u8]) -> PatternId {
        let id = self.len.load(Ordering::Relaxed);
        let Ok(name) = str::from_utf8(text) else {
            return PatternId::OTHER;
        };
        let _ = self.rows[id].name.set(name.into());
        self.len.store(id + 1, Ordering::Release);
        // `set` fails where the slot is taken, and the next one is tried.
        self.probe(hash).find(|slot| slot.set((hash, id as u16)).is_ok());
        PatternId(id as u16)
    }

    /// Under which route the pair is counted.
    fn route(&self, id: PatternId, method: Method) -> PatternId {
        let own = self.row(id).pairs[method as usize].get_or_init(|| {
            let take = |n: usize| (n < PAIRS_MAX).then_some(n + 1);
            id == PatternId::OTHER || self.pairs.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok()
        });
        if *own { id } else { PatternId::OTHER }
    }
}

/// Counts one miss of `text`; true once it has earned a place. When there is no room for a new text all counts are halved
/// and the zeros dropped: what is asked for again and again survives that, what was asked for once does not. A halving
/// costs a walk over all, and at least as many misses have to pass before the next that drops nothing new.
fn promoted(newcomers: &mut HashMap<Box<[u8]>, u32, RandomState>, text: &[u8]) -> bool {
    if let Some(count) = newcomers.get_mut(text) {
        *count += 1;
        let done = *count >= PROMOTE_AT;
        if done {
            newcomers.remove(text);
        }
        return done;
    }
    if newcomers.len() >= CANDIDATES_MAX {
        newcomers.retain(|_, count| {
            *count /= 2;
            *count > 0
        });
    }
    if newcomers.len() < CANDIDATES_MAX {
        newcomers.insert(text.into(), 1);
    }
    false
}

/// Text that may stand as a family's name: printable, and naming a family and not one member of it.
fn is_name(text: &[u8]) -> bool {
    let Ok(text) = str::from_utf8(text) else {
        return false;
    };
    !text.is_empty() && text.chars().all(printable) && !is_number(text) && !is_uuid(text) && !RESERVED.contains(&text)
}

/// Beyond ASCII letters and digits only: marks that turn or hide text would spoil every page that shows the name.
fn printable(c: char) -> bool {
    if c.is_ascii() { c == ' ' || c.is_ascii_graphic() } else { c.is_alphanumeric() }
}

/// Digits with what may stand between them: 42, -1, 3.14, 2024-01-31, +49.30.
fn is_number(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'+'))
        && text.bytes().any(|b| b.is_ascii_digit())
}

/// 32 hexadecimal digits, with or without the hyphens of a UUID.
fn is_uuid(text: &str) -> bool {
    let hyphens = matches!(text.len(), 36);
    (hyphens || text.len() == 32)
        && text.bytes().enumerate().all(|(i, b)| match i {
            8 | 13 | 18 | 23 if hyphens => b == b'-',
            _ => b.is_ascii_hexdigit(),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name_of(key: impl AsRef<[u8]>) -> String {
        let patterns = Patterns::new(":", 100);
        let id = patterns.id(key.as_ref());
        patterns.name(id).to_owned()
    }

    #[test]
    fn the_name_is_the_text_before_the_first_separator() {
        assert_eq!(name_of("user:123"), "user");
        assert_eq!(name_of("user:123:name"), "user");
        assert_eq!(name_of("größe:1"), "größe");
        assert_eq!(name_of("a b:1"), "a b");
        assert_eq!(name_of("user123"), "_plain");
        assert_eq!(name_of(""), "_plain");
        assert_eq!(name_of(b"\xff\x00"), "_plain");
    }

    #[test]
    fn what_is_no_name_is_other() {
        for key in [":x", "123:x", "-1:x", "3.14:x", "2024-01-31:x", "a\nb:x", "a\u{202e}b:x", "_plain:x", "_other:x"] {
            assert_eq!(name_of(key), "_other", "{key}");
        }
        assert_eq!(name_of("3f2504e0-4f89-11d3-9a0c-0305e82c3301:x"), "_other");
        assert_eq!(name_of("3F2504E04F8911D39A0C0305E82C3301:x"), "_other");
        assert_eq!(name_of(b"\xff\xfe:x"), "_other");
        assert_eq!(name_of(format!("{}:x", "a".repeat(65))), "_other");
        assert_eq!(name_of(format!("{}:x", "a".repeat(64))), "a".repeat(64));
    }

    #[test]
    fn every_separator_ends_a_name() {
        let patterns = Patterns::new(":/|", 10);
        for key in ["a:1", "a/1", "a|1"] {
            assert_eq!(patterns.name(patterns.id(key.as_bytes())), "a");
        }
        let none = Patterns::new("", 10);
        assert_eq!(none.id(b"a:1"), PatternId::PLAIN);
    }

    #[test]
    fn an_id_is_for_life() {
        let patterns = Patterns::new(":", 100);
        let ids: Vec<_> = (0..50).map(|i| patterns.id(format!("f{i}:x").as_bytes())).collect();
        for (i, id) in ids.iter().enumerate() {
            assert_eq!(patterns.id(format!("f{i}:y").as_bytes()), *id);
            assert_eq!(patterns.name(*id), format!("f{i}"));
        }
    }

    #[test]
    fn the_second_half_has_to_be_earned() {
        let patterns = Patterns::new(":", 4);
        assert_ne!(patterns.id(b"first:1"), PatternId::OTHER);
        assert_ne!(patterns.id(b"second:1"), PatternId::OTHER);
        for _ in 1..PROMOTE_AT {
            assert_eq!(patterns.id(b"late:1"), PatternId::OTHER);
        }
        assert_eq!(patterns.name(patterns.id(b"late:1")), "late");
        for _ in 0..PROMOTE_AT {
            patterns.id(b"later:1");
        }
        assert_eq!(patterns.name(patterns.id(b"later:1")), "later");
        for _ in 0..2 * PROMOTE_AT {
            assert_eq!(patterns.id(b"latest:1"), PatternId::OTHER);
        }
        assert_eq!(patterns.iter().count(), 6);
        assert!(patterns.newcomers.lock().is_empty());
    }

    #[test]
    fn a_flood_of_names_is_bounded_and_does_not_starve_a_busy_one() {
        let patterns = Patterns::new(":", 10);
        for i in 0..100_000 {
            patterns.id(format!("flood{i}:x").as_bytes());
            if i % 5 == 4 {
                patterns.id(b"busy:x");
            }
        }
        assert!(patterns.newcomers.lock().len() <= CANDIDATES_MAX);
        assert_eq!(patterns.name(patterns.id(b"busy:x")), "busy");
        assert_eq!(patterns.iter().count(), 2 + 5 + 1);
    }

    #[test]
    fn no_places_is_a_setting_too() {
        let patterns = Patterns::new(":", 0);
        assert_eq!(patterns.id(b"a:1"), PatternId::OTHER);
        assert_eq!(patterns.id(b"a"), PatternId::PLAIN);
        assert_eq!(patterns.iter().map(|(_, name, _)| name).collect::<Vec<_>>(), ["_other", "_plain"]);
    }

    #[test]
    fn pairs_are_capped_and_the_rest_is_other() {
        let patterns = Patterns::new(":", 1000);
        for i in 0..400 {
            let id = patterns.id(format!("f{i}:x").as_bytes());
            patterns.candidate(id, Method::Get);
        }
        let routes = patterns.iter().filter(|(_, _, row)| row.candidates[0].get() > 0).count();
        assert_eq!(routes, PAIRS_MAX - Method::COUNT + 1);
        let total: u64 = patterns.iter().map(|(_, _, row)| row.candidates[0].get()).sum();
        assert_eq!(total, 400);
    }

    #[test]
    fn the_family_of_the_key_before_is_taken_only_where_it_is_this_keys() {
        let patterns = Patterns::new(":/", 20);
        let rules = ["user:admin", "order"].map(|name| patterns.of_rule(name));
        let seen = [b"user:1".as_slice(), b"cart/1", b"us:1", b"order:1"].map(|key| patterns.id(key));
        let keys: [&[u8]; 14] = [
            b"user:2",
            b"user/2",
            b"user",
            b"users:2",
            b"use:2",
            b"cart:2",
            b"cart",
            b"us:2",
            b"user:admin:1",
            b"order:7",
            b"_plain:1",
            b"_other:1",
            b"",
            b":",
        ];
        let check = || {
            for last in seen.iter().chain(&rules).copied().chain([PatternId::OTHER, PatternId::PLAIN]) {
                for key in keys {
                    assert_eq!(patterns.id_after(key, last), patterns.id(key), "{} after {last:?}", key.escape_ascii());
                }
            }
        };
        check();
        // The rules are gone: their rows are hidden until keys of that name ask for them.
        patterns.keep_rules(&[]);
        assert_eq!(patterns.id_after(b"order:8", seen[3]), seen[3]);
        assert!(shown(&patterns).contains(&"order"), "asked for, it is shown again");
        check();
    }

    #[test]
    fn updates_are_counted_until_the_next_read() {
        let patterns = Patterns::new(":", 10);
        let id = patterns.id(b"a:1");
        assert_eq!(patterns.note_update(id), 1);
        assert_eq!(patterns.note_update(id), 2);
        patterns.note_read(id);
        assert_eq!(patterns.updates_since_read(id), 0);
        assert_eq!(patterns.note_update(id), 1);
    }

    fn shown(patterns: &Patterns) -> Vec<&str> {
        patterns.iter().map(|(_, name, _)| name).collect()
    }

    #[test]
    fn a_rule_that_is_gone_is_hidden_and_comes_back_with_its_counts() {
        let patterns = Patterns::new(":", 4);
        let (a, b) = (patterns.of_rule("a"), patterns.of_rule("b"));
        patterns.hit(a);
        patterns.keep_rules(&[b]);
        assert_eq!(shown(&patterns), ["_other", "_plain", "b"]);
        assert_eq!(patterns.all().map(|(_, _, row)| row.hits.get()).sum::<u64>(), 1);
        assert_eq!(patterns.named("a"), a);
        assert_eq!(shown(&patterns), ["_other", "_plain", "b"], "looking is not asking");
        assert_eq!(patterns.of_rule("a"), a);
        assert_eq!((shown(&patterns).len(), patterns.row(a).hits.get()), (4, 1));
        patterns.keep_rules(&[]);
        assert_eq!(patterns.id(b"b:1"), b, "a family of keys from now on");
        patterns.keep_rules(&[]);
        assert_eq!(shown(&patterns), ["_other", "_plain", "b"]);
    }

    #[test]
    fn rules_that_come_and_go_give_their_places_back() {
        let patterns = Patterns::new(":", 4);
        for round in 0..2 {
            let ids: Vec<PatternId> = (0..4).map(|i| patterns.of_rule(&format!("r{round}.{i}"))).collect();
            assert!(ids.iter().all(|id| *id != PatternId::OTHER), "round {round}");
            assert_eq!(patterns.of_rule("one more"), PatternId::OTHER);
            assert_eq!(patterns.id(b"key:1"), PatternId::OTHER);
            patterns.keep_rules(&[]);
        }
        // Twice as many names have had a row now.
        assert_eq!(patterns.of_rule("new"), PatternId::OTHER);
        assert_ne!(patterns.of_rule("r0.1"), PatternId::OTHER);
        assert_eq!(shown(&patterns), ["_other", "_plain", "r0.1"]);
        (0..3).for_each(|i| assert_ne!(patterns.of_rule(&format!("r1.{i}")), PatternId::OTHER));
        assert_eq!(patterns.id(b"r1.3:1"), PatternId::OTHER, "no room");
    }

    #[test]
    fn a_made_up_id_counts_as_other() {
        let patterns = Patterns::new(":", 1);
        patterns.hit(PatternId(999));
        assert_eq!(patterns.row(PatternId::OTHER).hits.get(), 1);
    }
}
