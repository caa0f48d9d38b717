//! Tags alone, in the L1, and under a systematic scheduler with each step of the argument broken once.

use std::future::Future;
use std::sync::atomic::{AtomicU64 as Plain, AtomicUsize, Ordering::SeqCst};
use std::task::{Context, Poll, Waker};

use super::super::marks::{Labels, Tag};
use super::super::tests::{EPOCH, HOUR, entry, large, small};
use super::super::*;
use super::*;
use crate::cache::form::tests::lrange;
use crate::observe::patterns::PatternId;
use crate::sync::{model, point};

fn labels<'r>(tags: &[&str]) -> Labels<'r> {
    let tags = tags.iter().map(|tag| Tag { text: tag.as_bytes().to_vec(), template: "t:{id}" }).collect();
    Labels { tags, share: None }
}

fn keep(l1: &L1, key: &[u8], lane: u32, tags: &[&str]) -> Result<(), Discard> {
    let token = l1.token(key, EPOCH).expect("nothing pending");
    l1.keep(key, &token, &labels(tags), entry(l1, lane, b"v"))
}

fn drop_tags(l1: &L1, tags: &[&str]) -> usize {
    let names: Vec<Vec<u8>> = tags.iter().map(|tag| tag.as_bytes().to_vec()).collect();
    finished(l1, l1.sweep_tags(&names))
}

/// Without a runtime, and on the thread that asks: it only ever lets others go first.
fn finished(l1: &L1, sweep: Sweep) -> usize {
    let mut finish = std::pin::pin!(sweep.finish(l1));
    loop {
        if let Poll::Ready(dropped) = finish.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            return dropped;
        }
        point();
    }
}

/// A sweep's thread has to be waited for.
async fn swept(l1: &L1, tag: &str) -> usize {
    l1.sweep_tags(&[tag.as_bytes().to_vec()]).finish(l1).await
}

fn has(l1: &L1, key: &str) -> bool {
    l1.get(key.as_bytes()).is_some()
}

fn tags_of(l1: &L1, key: &str) -> Vec<String> {
    let forms = l1.get(key.as_bytes()).expect("stored");
    forms.tags().map(|tag| String::from_utf8_lossy(tag).into_owned()).collect()
}

#[test]
fn a_tag_drops_its_keys_with_all_their_profiles_and_forms_and_no_other() {
    let l1 = small();
    for lane in 0..2 {
        keep(&l1, b"a", lane, &["t:1", "all"]).expect("stored");
        keep(&l1, b"b", lane, &["t:2", "all"]).expect("stored");
    }
    keep(&l1, b"c", 0, &[]).expect("stored");
    let token = l1.token(b"a", EPOCH).expect("nothing pending");
    l1.keep_form(b"a", &token, &labels(&["t:1", "all"]), lrange(&l1, 1)).expect("stored");
    assert_eq!(drop_tags(&l1, &["t:1", "none"]), 3);
    assert_eq!((has(&l1, "a"), has(&l1, "b"), has(&l1, "c")), (false, true, true));
    keep(&l1, b"a", 0, &["t:1", "all"]).expect("what is read from now on is stored");
    assert_eq!(drop_tags(&l1, &["t:1", "all", "all"]), 3, "a key of two tags counts once");
    assert_eq!((has(&l1, "a"), has(&l1, "b"), has(&l1, "c")), (false, false, true));
}

#[test]
fn a_tag_of_ten_keys_among_a_hundred_thousand_looks_at_ten() {
    let l1 = L1::new(Bounds { max_bytes: 1 << 30, max_entries: None, lru: true }, Arc::new(Metrics::new(":", 10)));
    for i in 0..100_000 {
        let (key, tag) = (format!("k:{i}"), format!("t:{}", i / 10));
        match i {
            // Only these are stored; to store the others as well would take a minute without optimisation.
            7770..7780 => keep(&l1, key.as_bytes(), 0, &[&tag]).expect("stored"),
            _ => drop(l1.books.tags.enter(tag.as_bytes(), "t:{id}", key.as_bytes(), 1_000_000 + i)),
        }
    }
    keep(&l1, b"other", 0, &["t:778"]).expect("stored");
    // Whatever is invalidated raises its stripe's generation by one.
    let looks = || l1.stripes.iter().map(|stripe| stripe.lock().generation).sum::<u64>();
    let before = looks();
    assert_eq!(drop_tags(&l1, &["t:777"]), 10);
    assert_eq!(looks() - before, 10);
    assert!((7770..7780).all(|i| !has(&l1, &format!("k:{i}"))) && has(&l1, "other"));
}

#[test]
fn only_readings_of_the_tag_that_are_under_way_are_void() {
    let l1 = small();
    let token = |key: &[u8]| l1.token(key, EPOCH).expect("nothing pending");
    let (of_tag, of_another, of_none) = (token(b"a"), token(b"b"), token(b"c"));
    assert_eq!(drop_tags(&l1, &["t:1"]), 0, "there is nothing yet");
    assert!(!l1.alive(&of_tag), "a read of later would join it");
    let store = |key: &[u8], token: &Token, tags: &[&str]| l1.keep(key, token, &labels(tags), entry(&l1, 0, b"old"));
    assert_eq!(store(b"a", &of_tag, &["t:2", "t:1"]), Err(Discard::Sweep));
    assert_eq!(store(b"b", &of_another, &["t:2"]), Ok(()));
    assert_eq!(store(b"c", &of_none, &[]), Ok(()));
    assert!(!has(&l1, "a"));
    assert_eq!(l1.books.tags.template(b"t:1"), None, "what is not stored is in no set");
    assert_eq!(store(b"a", &token(b"a"), &["t:1"]), Ok(()));
}

/// The other profile's reading would else be carried into a record that the walk does not look at.
#[test]
fn what_is_about_to_be_dropped_is_not_taken_over_by_a_newer_reading_of_another_profile() {
    let l1 = small();
    keep(&l1, b"a", 0, &["t:1"]).expect("stored");
    let sweep = l1.sweep_tags(&[b"t:1".to_vec()]);
    keep(&l1, b"a", 1, &["t:1"]).expect("sent after it began");
    let forms = l1.get(b"a").expect("stored");
    assert_eq!(forms.all().map(|entry| entry.lane).collect::<Vec<_>>(), [1]);
    finished(&l1, sweep);
    assert!(has(&l1, "a"), "it may stay");
}

#[test]
fn a_removal_that_comes_late_takes_out_its_own_record_only() {
    let tags = Tags::new(1 << 20);
    let first = tags.enter(b"t", "t", b"k", 1);
    let second = tags.enter(b"t", "t", b"k", 2);
    tags.leave(&first, 1);
    let Found::Records(mut walk) = tags.find(b"t") else { panic!("the newer value is resident") };
    assert_eq!((walk.next(), walk.next()), (vec![Key::from(&b"k"[..])], vec![]));
    tags.leave(&second, 2);
    assert!(matches!(tags.find(b"t"), Found::Nothing) && tags.sets.is_empty());
    assert_eq!(tags.bytes.load(SeqCst), 0);
}

#[test]
fn a_walk_gives_out_what_was_there_when_it_began_in_batches() {
    let tags = Tags::new(1 << 20);
    let enter = |n: u64| tags.enter(b"t", "t", format!("k{n}").as_bytes(), n);
    let places: Vec<Place> = (1..=300).map(enter).collect();
    let Found::Records(mut walk) = tags.find(b"t") else { panic!("records") };
    tags.leave(&places[200], 201);
    enter(301);
    let sizes: Vec<usize> = std::iter::from_fn(|| Some(walk.next().len()).filter(|n| *n > 0)).collect();
    assert_eq!(sizes, [BATCH, BATCH, 300 - 2 * BATCH - 1]);
}

#[test]
fn tags_of_other_rules_stay_with_what_is_taken_over() {
    let l1 = small();
    keep(&l1, b"a", 0, &["old"]).expect("stored");
    keep(&l1, b"a", 1, &["new"]).expect("stored");
    assert_eq!(tags_of(&l1, "a"), ["new", "old"]);
    assert_eq!(drop_tags(&l1, &["old"]), 2);
    keep(&l1, b"a", 1, &["new"]).expect("stored");
    assert_eq!(tags_of(&l1, "a"), ["new"]);
}

// ---- bounds ----

/// Leaves 500 bytes for the index: a set with one record, and no more. Returns what it has taken.
fn tighten(l1: &L1) -> u64 {
    let tags = &l1.books.tags;
    let taken = tags.bytes_max - 500;
    assert!(tags.reserve(taken));
    taken
}

#[tokio::test]
async fn a_tag_that_has_no_room_is_searched_for_until_its_keys_have_left() {
    let l1 = large();
    tighten(&l1);
    for key in ["a", "b", "c"] {
        keep(&l1, key.as_bytes(), 0, &["t:1"]).expect("stored");
    }
    keep(&l1, b"x", 0, &[]).expect("stored");
    let swept_before = l1.sweep_gen();
    assert_eq!(swept(&l1, "t:1").await, 3);
    assert!(l1.sweep_gen() > swept_before, "two of them had no record");
    assert!(has(&l1, "x"));
    keep(&l1, b"a", 0, &["t:1"]).expect("stored");
    let swept_before = l1.sweep_gen();
    assert_eq!((swept(&l1, "t:1").await, l1.sweep_gen()), (1, swept_before), "it is whole again");
}

#[tokio::test]
async fn tags_without_a_set_are_searched_for_and_cost_the_others_no_more_than_a_search() {
    let l1 = large();
    let taken = tighten(&l1);
    keep(&l1, b"a", 0, &["t:1"]).expect("stored");
    keep(&l1, b"b", 0, &["t:2"]).expect("stored");
    assert_eq!(tags_of(&l1, "b"), ["t:2"]);
    assert_eq!(swept(&l1, "t:2").await, 1);
    assert!(!has(&l1, "b") && has(&l1, "a"));
    keep(&l1, b"b", 0, &["t:2"]).expect("stored");
    let before = l1.sweep_gen();
    assert_eq!(swept(&l1, "t:1").await, 1);
    assert_eq!(l1.sweep_gen(), before + 1);
    assert!(has(&l1, "b"));
    assert_eq!(swept(&l1, "t:2").await, 1);
    l1.books.tags.release(taken);
    assert_eq!((recount(&l1).records, *l1.books.tags.unnamed.lock()), (0, 0));
}

struct Recount {
    records: usize,
    bytes: u64,
}

/// What the index should have, by what is resident; what it has must agree.
fn recount(l1: &L1) -> Recount {
    // Dead entries leave over several rounds of moka's housekeeping.
    (0..20).for_each(|_| l1.settle());
    let mut wanted: Vec<(Vec<u8>, u64, Vec<u8>)> = Vec::new();
    let mut bytes = 0;
    for (key, forms) in &l1.store {
        let Some(marks) = &forms.marks else { continue };
        for place in marks.places.iter().filter(|place| matches!(place, Place::Listed(_))) {
            wanted.push((place.name().to_vec(), marks.number, key.to_vec()));
            bytes += record_bytes(&key);
        }
    }
    let mut found: Vec<(Vec<u8>, u64, Vec<u8>)> = Vec::new();
    for set in l1.books.tags.sets.iter() {
        let members = set.members.lock();
        assert!(!members.records.is_empty() || members.unlisted > 0, "a set that nobody needs");
        found.extend(members.records.iter().map(|(number, key)| (set.name.to_vec(), *number, key.to_vec())));
        bytes += set_bytes(&set.name);
    }
    wanted.sort();
    found.sort();
    let gone: Vec<_> = found.iter().filter(|record| !wanted.contains(record)).collect();
    let missing: Vec<_> = wanted.iter().filter(|record| !found.contains(record)).collect();
    assert!(gone.is_empty() && missing.is_empty(), "of nobody: {gone:?}, missing: {missing:?}");
    assert_eq!(l1.books.tags.bytes.load(SeqCst), bytes);
    Recount { records: found.len(), bytes }
}

/// Real threads, moka's own evictions, flushes: afterwards the index has what is resident, record for record.
#[test]
fn the_index_is_what_a_recount_finds() {
    let l1 = L1::new(Bounds { max_bytes: 60_000, max_entries: None, lru: false }, Arc::new(Metrics::new(":", 10)));
    let work = |thread: u64| {
        let mut x = 0x9e37_79b9_7f4a_7c15 ^ (thread + 1);
        let mut random = move |n: u64| {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            (x >> 33) % n
        };
        for _ in 0..1200 {
            let (key, tag) = (format!("k{}", random(120)), format!("t{}", random(7)));
            match random(40) {
                0 if random(10) == 0 => l1.flush(),
                1..5 => drop(l1.invalidate(key.as_bytes())),
                5 => drop(drop_tags(&l1, &[&tag])),
                _ => {
                    if let Some(token) = l1.token(key.as_bytes(), EPOCH) {
                        let lane = random(2) as u32;
                        let _ = l1.keep(key.as_bytes(), &token, &labels(&[&tag, "all"]), entry(&l1, lane, b"v"));
                    }
                }
            }
        }
    };
    std::thread::scope(|scope| (0..4).for_each(|thread| drop(scope.spawn(move || work(thread)))));
    let left = recount(&l1);
    println!("{} records in {} bytes are left", left.records, left.bytes);
    (0..40).for_each(|i| keep(&l1, format!("k{i}").as_bytes(), 0, &["t1", "all"]).expect("stored"));
    assert!(recount(&l1).records > 20, "it must not pass for want of records");
    drop_tags(&l1, &["all"]);
    assert_eq!(recount(&l1).bytes, 0);
}

/// What the index really takes, against what is counted, for tags of many keys and of one.
#[test]
#[ignore = "soak"]
fn the_index_takes_what_it_counts() {
    const KEYS: u64 = 300_000;
    for per_tag in [1000, 1] {
        let tags = Tags::new(1 << 40);
        let mut places = Vec::with_capacity(KEYS as usize);
        let before = resident();
        for i in 0..KEYS {
            let (key, tag) = (format!("key:{i:08}"), format!("tenant:{:08}", i / per_tag));
            places.push(tags.enter(tag.as_bytes(), "tenant:{id}", key.as_bytes(), i + 1));
        }
        let each = |bytes: u64| bytes as f64 / KEYS as f64;
        // Places are part of the entries.
        let in_entries = KEYS * size_of::<Place>() as u64;
        let (taken, counted) = (each(resident() - before - in_entries), each(tags.bytes.load(SeqCst)));
        println!("{per_tag} keys a tag: {taken:.0} bytes taken by a key, {counted:.0} counted");
        assert!((taken / counted - 1.0).abs() < 0.25, "{taken:.0} taken, {counted:.0} counted");
    }
}

fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number of kB") * 1024
}

// ---- every order of steps ----

/// Schedules of a scene without a broken step, and of one with: a broken step shows within a few hundred, and no more are
/// tried then.
const SCHEDULES: usize = 400;
const AT_ONCE: usize = 200;
const ATTEMPTS: u64 = 16;
const TAG: &str = "t:1";

/// A step of the argument that is not kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Broken {
    Nothing,
    /// (b) before (a).
    LooksBeforeItRaises,
    /// No (a).
    RaisesNothing,
    /// (2) before (1).
    ComparesBeforeItRecords,
    /// (3) before (1).
    StoresBeforeItRecords,
    /// The readings of other profiles are taken over, whatever has happened.
    TakesOver,
    /// A removal takes out the newest record of its key, not its own.
    ForgetsTheNewest,
}

struct World {
    l1: Arc<L1>,
    broken: Broken,
    key: Vec<u8>,
    tag: String,
    upstream: Plain,
    /// The newest version whose tag's invalidation has ended.
    floor: Plain,
    stale: Arc<AtomicUsize>,
    hits: Arc<AtomicUsize>,
}

impl World {
    fn entry(&self, lane: u32, version: u64, token: &Token) -> Entry {
        let mut frame = bytes::BytesMut::new();
        crate::resp::build::bulk(&mut frame, version.to_string().as_bytes());
        Entry {
            epoch: EPOCH + u64::from(lane),
            lane,
            flush_gen: token.flush_gen,
            deadline: clock::now() + HOUR,
            soft: u64::MAX,
            touch: crate::cache::Due::never(),
            expires: u64::MAX,
            t_sent: 0,
            pattern: PatternId::PLAIN,
            arm: crate::observe::arms::ArmId::NONE,
            value: Value::Bulk(frame[..].into()),
        }
    }

    fn fill(&self, lane: u32) {
        let Some(token) = self.l1.token(&self.key, EPOCH) else { return };
        point();
        let entry = self.entry(lane, self.upstream.load(SeqCst), &token);
        let labels = labels(&[&self.tag]);
        match self.broken {
            Broken::ComparesBeforeItRecords | Broken::StoresBeforeItRecords | Broken::TakesOver => {
                self.store(&token, &labels, entry)
            }
            _ => drop(self.l1.keep(&self.key, &token, &labels, entry)),
        }
    }

    /// `L1::replace` with its steps in another order.
    fn store(&self, token: &Token, labels: &Labels<'_>, entry: Entry) {
        let l1 = &self.l1;
        let s = l1.stripes[token.stripe.0 as usize].lock();
        if l1.voids(token, &s).is_some() {
            return;
        }
        let take_over = |old: &Arc<Forms>| self.broken == Broken::TakesOver || !l1.books.is_void(old);
        let old = l1.get(&self.key).filter(take_over).unwrap_or_default();
        let mut forms = old.with(entry.clone());
        let unchecked = Token { tag_gen: u64::MAX, ..*token };
        if self.broken == Broken::TakesOver {
            if l1.mark(&self.key, token, labels, old.marks.as_deref(), &mut forms).is_err() {
                return;
            }
        } else {
            if l1.books.tags.voids(token.tag_gen, self.tag.as_bytes()) {
                return;
            }
            point();
            if self.broken == Broken::StoresBeforeItRecords {
                l1.store.insert(self.key[..].into(), Arc::new(old.with(entry)));
                point();
            }
            l1.mark(&self.key, &unchecked, labels, old.marks.as_deref(), &mut forms).expect("nothing is compared");
        }
        point();
        l1.store.insert(self.key[..].into(), Arc::new(forms));
    }

    fn invalidated(&self) {
        let version = self.upstream.fetch_add(1, SeqCst) + 1;
        point();
        let tags = &self.l1.books.tags;
        match self.broken {
            Broken::LooksBeforeItRaises | Broken::RaisesNothing => {
                let found = tags.find(self.tag.as_bytes());
                point();
                if self.broken == Broken::LooksBeforeItRaises {
                    tags.raise(self.tag.as_bytes());
                }
                if let Found::Records(mut walk) = found {
                    walk.next().iter().for_each(|key| assert!(self.l1.invalidate(key) < 3));
                }
            }
            _ => drop(drop_tags(&self.l1, &[&self.tag])),
        }
        self.floor.fetch_max(version, SeqCst);
    }

    /// moka makes room.
    fn evicted(&self) {
        point();
        if self.broken != Broken::ForgetsTheNewest {
            return self.l1.store.invalidate(&self.key[..]);
        }
        // The value leaves, its record does later.
        let Some(forms) = self.l1.store.remove(&self.key[..]) else { return };
        point();
        let Some(set) = self.l1.books.tags.known(self.tag.as_bytes()) else { return };
        drop(forms);
        set.members.lock().records.pop_last();
    }

    fn read(&self) {
        let floor = self.floor.load(SeqCst);
        let Some(forms) = self.l1.get(&self.key) else { return };
        for lane in 0..2 {
            let Some(entry) = usable(&forms, EPOCH + lane, 0, clock::now()) else { continue };
            self.hits.fetch_add(1, SeqCst);
            let Value::Bulk(frame) = &entry.value else { panic!("a value") };
            let text = std::str::from_utf8(frame).expect("text");
            let version: u64 = text.split("\r\n").nth(1).expect("a payload").parse().expect("a version");
            if version < floor {
                self.stale.fetch_add(1, SeqCst);
            }
        }
    }
}

type Step = fn(&World);

const FILL: Step = |world| world.fill(0);
const FILL_OTHER: Step = |world| world.fill(1);
const READER: &[Step] = &[World::read, World::read, World::read];
const FILLS: &[&[Step]] = &[&[World::invalidated, World::read], &[FILL, FILL], READER, &[FILL]];
const TWO_FILLS: &[&[Step]] = &[&[World::invalidated, World::read], &[FILL], &[FILL]];
/// The key has no record of before when it begins.
const NO_RECORD: &[&[Step]] = &[&[World::evicted, World::invalidated, World::read], &[FILL]];
const PROFILES: &[&[Step]] = &[&[World::invalidated, World::read], &[FILL_OTHER, FILL_OTHER], &[FILL], READER];
const ANOTHER: &[&[Step]] = &[&[World::invalidated, World::read], &[FILL_OTHER]];
const TWO: &[&[Step]] = &[&[World::invalidated, World::read], &[World::invalidated, World::read], &[FILL, FILL_OTHER]];
const EVICTIONS: &[&[Step]] =
    &[&[World::evicted, World::evicted], &[FILL, FILL_OTHER, FILL], &[World::invalidated, World::read], READER];

/// How many readings were older than an invalidation that had ended, and how many there were.
fn judged(seed: u64, schedules: usize, broken: Broken, threads: &'static [&'static [Step]]) -> (usize, usize) {
    let (l1, keys) = (Arc::new(small()), Arc::<AtomicUsize>::default());
    let (stale, hits) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
    let (seen, read) = (stale.clone(), hits.clone());
    model::check(seed, schedules, move || {
        let n = keys.fetch_add(1, SeqCst);
        let (key, tag) = (format!("key:{n}").into_bytes(), format!("{TAG}:{n}"));
        let (upstream, floor) = (Plain::new(1), Plain::new(1));
        let (stale, hits) = (stale.clone(), hits.clone());
        let world = Arc::new(World { l1: l1.clone(), broken, key, tag, upstream, floor, stale, hits });
        world.fill(0);
        let run = |steps: &'static [Step]| {
            let world = world.clone();
            shuttle::thread::spawn(move || steps.iter().for_each(|step| step(&world)))
        };
        let running: Vec<_> = threads.iter().map(|steps| run(steps)).collect();
        running.into_iter().for_each(|thread| thread.join().expect("no panic"));
        world.read();
        world.l1.invalidate(&world.key);
        if broken == Broken::Nothing {
            assert!(matches!(world.l1.books.tags.find(world.tag.as_bytes()), Found::Nothing), "a record has stayed");
            assert!(world.l1.books.tags.known(world.tag.as_bytes()).is_none(), "a set has stayed");
        }
    });
    (seen.load(SeqCst), read.load(SeqCst))
}

#[test]
fn no_look_up_goes_behind_a_tag_s_invalidation_that_has_ended() {
    let mut all_hits = 0;
    for (seed, threads) in [FILLS, TWO_FILLS, NO_RECORD, PROFILES, TWO, EVICTIONS].into_iter().enumerate() {
        let (stale, hits) = judged(seed as u64, model::schedules(SCHEDULES), Broken::Nothing, threads);
        assert_eq!(stale, 0, "scene {seed}");
        all_hits += hits;
    }
    assert!(all_hits > SCHEDULES, "{all_hits} hits: the scenes must not pass for want of readings");
}

#[test]
fn each_step_of_the_argument_is_needed() {
    for (broken, threads) in [
        (Broken::LooksBeforeItRaises, TWO_FILLS),
        (Broken::RaisesNothing, NO_RECORD),
        (Broken::ComparesBeforeItRecords, NO_RECORD),
        (Broken::StoresBeforeItRecords, NO_RECORD),
        (Broken::TakesOver, ANOTHER),
        (Broken::ForgetsTheNewest, EVICTIONS),
    ] {
        let seen = (1..=ATTEMPTS).find(|seed| judged(*seed, AT_ONCE, broken, threads).0 > 0);
        println!("{broken:?}: seen at {seen:?}");
        assert!(seen.is_some(), "{broken:?} was not seen in {ATTEMPTS} times {AT_ONCE} schedules");
    }
}
