//! Which keys are asked for most: by hits, by misses, and by the bytes that hits were answered with. Space-Saving sketches
//! (Metwally et al., 2005) of `observe.hot_keys` keys each, fed with samples; and the largest values seen. Written by the
//! threads that answer clients, read when somebody asks. It knows neither databases nor users: the same name in two of them
//! is one key here. Counts are since the start, nothing is forgotten by time.
//!
//! **What it costs.** The first thousand hits are all entered, so that a first look shows what was asked. From then on a hit
//! counts down one cell of its own thread. At zero, 64 hits later on average, the hit is entered
//! with a weight of 64: under a lock that only a reader could hold, and then the sample is dropped, so that nobody waits. A
//! key's name is copied into a buffer of the key that it displaces. The gaps between samples are drawn, because a client
//! that asks for 64 keys in turn would have one of them sampled for ever. A miss, which costs ten times as much anyway, is
//! entered every fourth time.
//!
//! **How far it is off.** A shown count is what was entered since the key was last taken up; what it may lack is at most the
//! smallest count of its sketch (`error_bound`, N/K of N entered and K followed, and 0 while not all places are taken). So
//! a key with more than 1/K of all hits is always among them. Sampling adds a standard error of 8 x sqrt(n) to a count of n
//! hits, and 2 x sqrt(n) to one of misses.
//!
//! **Memory.** Three sketches for the data thread, two for every other worker; a place takes at most `PLACE_BYTES`, so the
//! default of 512 places is 930 KiB where all keys are as long as is followed, and 150 KiB where they have 20 bytes.

use std::collections::HashMap;
use std::hash::BuildHasher;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use foldhash::fast::RandomState;
use parking_lot::Mutex;

use super::patterns::PatternId;

/// Longer names are not followed: a bound for memory. Redis's own advice is to stay well below it.
pub(crate) const KEY_MAX: usize = 512;

/// What one place of a sketch takes at most: the name, and 104 bytes for the place, its heap's and its index's share.
#[cfg(test)]
const PLACE_BYTES: usize = KEY_MAX + 104;

/// Hits of each thread, and misses, that are all entered before samples are taken.
const EXACT: u32 = 1000;

/// Of so many hits one is entered, on average.
const HIT_STEP: u32 = 64;

/// Of so many misses.
const MISS_STEP: u32 = 4;

/// Largest values that are kept in mind: more than a page shows.
const BIG_MAX: usize = 20;

/// By what keys are ranked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum By {
    Hits,
    Misses,
    Bytes,
}

impl By {
    pub(crate) const ALL: [By; 3] = [By::Hits, By::Misses, By::Bytes];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            By::Hits => "hits",
            By::Misses => "misses",
            By::Bytes => "bytes",
        }
    }

    /// In any case.
    pub(crate) fn named(word: &[u8]) -> Option<By> {
        By::ALL.into_iter().find(|by| by.as_str().as_bytes().eq_ignore_ascii_case(word))
    }
}

/// One key as it is shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Hot {
    /// As clients name it.
    pub(crate) key: Vec<u8>,
    pub(crate) pattern: PatternId,
    /// 0: fewer than `error_bound` of its sketch.
    pub(crate) hits: u64,
    pub(crate) misses: u64,
    /// None: not among the keys that most bytes were answered of.
    pub(crate) bytes: Option<u64>,
}

pub(crate) struct Top {
    /// What a count may lack.
    pub(crate) error_bound: u64,
    pub(crate) keys: Vec<Hot>,
}

/// The largest value that was read of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Big {
    pub(crate) key: Vec<u8>,
    pub(crate) bytes: u64,
    pub(crate) pattern: PatternId,
}

pub(crate) struct HotKeys {
    /// Places of each sketch; 0: no key is followed.
    places: usize,
    /// In front of every key (`upstream.key_prefix`); clients do not know it.
    prefix: Box<[u8]>,
    hasher: RandomState,
    /// The data thread's, then those of the other workers.
    workers: Box<[Worker]>,
    missed: Countdown,
    misses: Mutex<Sketch>,
    /// The smallest of the largest values, once there are `BIG_MAX`.
    floor: AtomicU64,
    big: Mutex<Vec<Big>>,
    /// For names that may not be shown: nobody can hash a guess and compare, because the key of the hash never leaves this
    /// process.
    secret: std::hash::RandomState,
}

/// What one thread enters.
struct Worker {
    left: Countdown,
    served: Mutex<Served>,
}

struct Served {
    hits: Sketch,
    bytes: Sketch,
}

impl HotKeys {
    /// `workers`: how many beside the data thread.
    pub(crate) fn new(places: usize, prefix: &str, workers: usize) -> HotKeys {
        let worker = |index: usize| Worker {
            left: Countdown::new(places, index as u64),
            served: Mutex::new(Served { hits: Sketch::new(places), bytes: Sketch::new(places) }),
        };
        HotKeys {
            places,
            prefix: prefix.as_bytes().into(),
            hasher: RandomState::default(),
            workers: (0..=workers).map(worker).collect(),
            missed: Countdown::new(places, u64::MAX / 2),
            misses: Mutex::new(Sketch::new(places)),
            floor: AtomicU64::new(0),
            big: Mutex::default(),
            secret: std::hash::RandomState::new(),
        }
    }

    /// A key was answered from the L1 with so many bytes, by this worker (the data thread is 0).
    #[inline]
    pub(crate) fn hit(&self, worker: usize, key: &[u8], bytes: usize, pattern: PatternId) {
        if let Some(own) = self.workers.get(worker)
            && own.left.is_over()
        {
            self.enter_hit(own, key, bytes, pattern);
        }
    }

    #[cold]
    fn enter_hit(&self, own: &Worker, key: &[u8], bytes: usize, pattern: PatternId) {
        if self.places == 0 {
            return own.left.put_off();
        }
        let weight = own.left.take(HIT_STEP);
        if key.len() > KEY_MAX {
            return;
        }
        let hash = self.hasher.hash_one(key);
        if let Some(mut served) = own.served.try_lock() {
            served.hits.add(hash, key, weight, pattern);
            served.bytes.add(hash, key, weight * bytes as u64, pattern);
        }
    }

    /// A key was asked for and was not there. By the data thread, as all misses are.
    #[inline]
    pub(crate) fn miss(&self, key: &[u8], pattern: PatternId) {
        if self.missed.is_over() {
            self.enter_miss(key, pattern);
        }
    }

    #[cold]
    fn enter_miss(&self, key: &[u8], pattern: PatternId) {
        if self.places == 0 {
            return self.missed.put_off();
        }
        let weight = self.missed.take(MISS_STEP);
        if key.len() <= KEY_MAX
            && let Some(mut misses) = self.misses.try_lock()
        {
            misses.add(self.hasher.hash_one(key), key, weight, pattern);
        }
    }

    /// A value of so many bytes came from upstream, stored or not.
    #[inline]
    pub(crate) fn value(&self, key: &[u8], bytes: usize, pattern: PatternId) {
        if bytes as u64 > self.floor.load(Relaxed) && self.places > 0 && key.len() <= KEY_MAX {
            self.enter_value(key, bytes as u64, pattern);
        }
    }

    #[cold]
    fn enter_value(&self, key: &[u8], bytes: u64, pattern: PatternId) {
        let Some(mut big) = self.big.try_lock() else { return };
        match big.iter_mut().find(|known| known.key == key) {
            Some(known) => known.bytes = known.bytes.max(bytes),
            None => big.push(Big { key: key.to_vec(), bytes, pattern }),
        }
        big.sort_by_key(|known| std::cmp::Reverse(known.bytes));
        big.truncate(BIG_MAX);
        let floor = big.last().filter(|_| big.len() == BIG_MAX).map_or(0, |least| least.bytes);
        self.floor.store(floor, Relaxed);
    }

    /// The first `n` keys of a ranking.
    pub(crate) fn top(&self, by: By, n: usize) -> Top {
        let hits = self.of_workers(|served| &served.hits);
        let bytes = self.of_workers(|served| &served.bytes);
        let misses = Counted::of([self.misses.lock().clone()]);
        let ranked = match by {
            By::Hits => &hits,
            By::Misses => &misses,
            By::Bytes => &bytes,
        };
        let mut order: Vec<(&u64, &Seen)> = ranked.keys.iter().filter(|(_, seen)| seen.count > 0).collect();
        order.sort_by(|(_, a), (_, b)| b.count.cmp(&a.count).then_with(|| a.key.cmp(&b.key)));
        let count = |of: &Counted, hash: &u64| of.keys.get(hash).map(|seen| seen.count);
        let hot = |(hash, seen): (&u64, &Seen)| Hot {
            key: self.own_name(&seen.key).to_vec(),
            pattern: seen.pattern,
            hits: count(&hits, hash).unwrap_or(0),
            misses: count(&misses, hash).unwrap_or(0),
            bytes: count(&bytes, hash),
        };
        Top { error_bound: ranked.error_bound, keys: order.into_iter().take(n).map(hot).collect() }
    }

    /// Names of the keys that were asked for most, whatever came of it.
    pub(crate) fn busiest(&self, n: usize) -> Vec<Vec<u8>> {
        let mut keys = Counted::of([self.misses.lock().clone()]).keys;
        for (hash, seen) in self.of_workers(|served| &served.hits).keys {
            keys.entry(hash).and_modify(|known| known.count += seen.count).or_insert(seen);
        }
        let mut order: Vec<Seen> = keys.into_values().filter(|seen| seen.count > 0).collect();
        order.sort_by(|a, b| b.count.cmp(&a.count).then_with(|| a.key.cmp(&b.key)));
        order.into_iter().take(n).map(|seen| self.own_name(&seen.key).to_vec()).collect()
    }

    /// Largest first.
    pub(crate) fn big_values(&self) -> Vec<Big> {
        let big = self.big.lock().clone();
        big.into_iter().map(|value| Big { key: self.own_name(&value.key).to_vec(), ..value }).collect()
    }

    /// A name that stands for `key` as long as this process lives, and tells nothing of it.
    pub(crate) fn alias(&self, key: &[u8]) -> String {
        format!("{:016x}", self.secret.hash_one(key))
    }

    fn own_name<'k>(&self, key: &'k [u8]) -> &'k [u8] {
        key.strip_prefix(&*self.prefix).unwrap_or(key)
    }

    /// Each worker's is copied while its thread drops samples, 50 us at the default, and added up afterwards.
    fn of_workers(&self, which: impl Fn(&Served) -> &Sketch) -> Counted {
        Counted::of(self.workers.iter().map(|worker| which(&worker.served.lock()).clone()))
    }
}

/// How many more until the next sample. One thread writes it.
struct Countdown {
    left: AtomicU32,
    /// How many the sample that comes next stands for.
    weight: AtomicU32,
    /// So many more are all entered: who has just begun to look sees what was asked.
    exact: AtomicU32,
    state: AtomicU64,
}

impl Countdown {
    fn new(places: usize, seed: u64) -> Countdown {
        let left = if places == 0 { u32::MAX } else { 1 };
        let (weight, exact) = (AtomicU32::new(1), AtomicU32::new(EXACT));
        Countdown {
            left: AtomicU32::new(left),
            weight,
            exact,
            state: AtomicU64::new(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1),
        }
    }

    #[inline]
    fn is_over(&self) -> bool {
        let left = self.left.load(Relaxed).wrapping_sub(1);
        self.left.store(left, Relaxed);
        left == 0
    }

    /// Nothing is to be sampled.
    fn put_off(&self) {
        self.left.store(u32::MAX, Relaxed);
    }

    /// What the sample that is due stands for; counts down to the next.
    fn take(&self, step: u32) -> u64 {
        let weight = self.weight.load(Relaxed);
        match self.exact.load(Relaxed) {
            0 => {
                self.weight.store(step, Relaxed);
                self.draw(step);
            }
            exact => {
                self.exact.store(exact - 1, Relaxed);
                self.left.store(1, Relaxed);
            }
        }
        weight.into()
    }

    /// 1 to 2 x `step` - 1 with equal chances, `step` on average (xorshift64).
    fn draw(&self, step: u32) {
        let mut state = self.state.load(Relaxed);
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        self.state.store(state, Relaxed);
        let range = u64::from(2 * step - 1);
        self.left.store(1 + (state >> 33).wrapping_rem(range) as u32, Relaxed);
    }
}

/// Space-Saving: a key that is not followed takes the place of the one with the smallest count, and inherits that count as
/// what it may be too high by.
#[derive(Clone)]
struct Sketch {
    max: usize,
    places: Vec<Place>,
    /// Places by count, the smallest first.
    heap: Vec<u16>,
    /// Places by hash. Two keys of one hash of 64 bits would be one here; it is seeded, so nobody can bring that about.
    index: HashMap<u64, u16, RandomState>,
}

#[derive(Clone)]
struct Place {
    hash: u64,
    count: u64,
    /// Of that, what was there before this key.
    inherited: u64,
    /// Where in the heap.
    at: u16,
    pattern: PatternId,
    key: Vec<u8>,
}

impl Sketch {
    fn new(max: usize) -> Sketch {
        let max = max.min(usize::from(u16::MAX));
        Sketch { max, places: Vec::new(), heap: Vec::new(), index: HashMap::default() }
    }

    fn add(&mut self, hash: u64, key: &[u8], weight: u64, pattern: PatternId) {
        if let Some(&known) = self.index.get(&hash) {
            let place = &mut self.places[usize::from(known)];
            place.count += weight;
            place.pattern = pattern;
            let at = usize::from(place.at);
            return self.sink(at);
        }
        if self.places.len() < self.max {
            let number = self.places.len() as u16;
            self.places.push(Place { hash, count: weight, inherited: 0, at: number, pattern, key: key.to_vec() });
            self.heap.push(number);
            self.index.insert(hash, number);
            return self.rise(usize::from(number));
        }
        let Some(&least) = self.heap.first() else { return };
        let place = &mut self.places[usize::from(least)];
        self.index.remove(&place.hash);
        place.inherited = place.count;
        place.count += weight;
        (place.hash, place.pattern) = (hash, pattern);
        place.key.clear();
        place.key.extend_from_slice(key);
        self.index.insert(hash, least);
        self.sink(0);
    }

    /// A key that is not followed has no more than this; 0 while there is room for all.
    fn least(&self) -> u64 {
        let full = self.places.len() == self.max;
        self.heap.first().filter(|_| full).map_or(0, |least| self.places[usize::from(*least)].count)
    }

    fn count_at(&self, at: usize) -> u64 {
        self.places[usize::from(self.heap[at])].count
    }

    fn swap(&mut self, a: usize, b: usize) {
        self.heap.swap(a, b);
        self.places[usize::from(self.heap[a])].at = a as u16;
        self.places[usize::from(self.heap[b])].at = b as u16;
    }

    /// The count at `at` has grown.
    fn sink(&mut self, mut at: usize) {
        loop {
            let (left, right) = (2 * at + 1, 2 * at + 2);
            let mut least = at;
            for child in [left, right] {
                if child < self.heap.len() && self.count_at(child) < self.count_at(least) {
                    least = child;
                }
            }
            if least == at {
                return;
            }
            self.swap(at, least);
            at = least;
        }
    }

    /// The count at `at` is new.
    fn rise(&mut self, mut at: usize) {
        while at > 0 && self.count_at(at) < self.count_at((at - 1) / 2) {
            self.swap(at, (at - 1) / 2);
            at = (at - 1) / 2;
        }
    }
}

/// What several sketches have seen together.
struct Counted {
    error_bound: u64,
    keys: HashMap<u64, Seen, RandomState>,
}

struct Seen {
    key: Vec<u8>,
    pattern: PatternId,
    count: u64,
}

impl Counted {
    fn of(sketches: impl IntoIterator<Item = Sketch>) -> Counted {
        let mut all = Counted { error_bound: 0, keys: HashMap::default() };
        for sketch in sketches {
            all.error_bound += sketch.least();
            for Place { hash, count, inherited, pattern, key, .. } in sketch.places {
                let seen = all.keys.entry(hash).or_insert(Seen { key, pattern, count: 0 });
                seen.count += count - inherited;
            }
        }
        all
    }
}

#[cfg(test)]
mod tests;
