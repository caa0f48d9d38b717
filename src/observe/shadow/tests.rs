use std::collections::{BTreeMap, HashMap};

use super::*;

const SECOND: u64 = 1_000_000_000;

/// The bound that docs/observe.md states, as a share of the reads. Measured: 0.007 to 0.015.
const ERROR_MAX: f64 = 0.03;

/// splitmix64, seeded: a run is the same each time.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}

fn mix(seed: u64) -> u64 {
    let z = (seed ^ (seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// An LRU cache of some bytes in which a copy lives for its TTL from when it was fetched: exact, and slow.
struct Exact {
    ttl: u64,
    max_bytes: u64,
    bytes: u64,
    /// By key: place in the order, bytes, fetched.
    keys: HashMap<u64, (u64, u32, u64)>,
    order: BTreeMap<u64, u64>,
    clock: u64,
    hits: u64,
    reads: u64,
}

impl Exact {
    fn new(ttl_ms: u32, max_bytes: u64) -> Exact {
        let (bytes, clock, hits, reads) = (0, 0, 0, 0);
        let (keys, order) = Default::default();
        Exact { ttl: u64::from(ttl_ms) * MS, max_bytes, bytes, keys, order, clock, hits, reads }
    }

    fn read(&mut self, key: u64, bytes: u32, now: u64) {
        self.reads += 1;
        self.clock += 1;
        let known = self.keys.get(&key).copied();
        let hit = known.is_some_and(|(.., fetched)| now - fetched < self.ttl);
        self.hits += u64::from(hit);
        self.forget(key);
        let fetched = known.filter(|_| hit).map_or(now, |(.., fetched)| fetched);
        self.keys.insert(key, (self.clock, bytes, fetched));
        self.order.insert(self.clock, key);
        self.bytes += u64::from(bytes);
        while self.bytes > self.max_bytes {
            let Some((_, oldest)) = self.order.first_key_value() else { break };
            self.forget(*oldest);
        }
    }

    fn forget(&mut self, key: u64) {
        if let Some((place, bytes, _)) = self.keys.remove(&key) {
            self.order.remove(&place);
            self.bytes -= u64::from(bytes);
        }
    }

    fn rate(&self) -> f64 {
        self.hits as f64 / self.reads as f64
    }
}

/// Traffic whose ranks are zipf with exponent `s`.
struct Zipf(Vec<f64>);

impl Zipf {
    fn new(keys: usize, s: f64) -> Zipf {
        let mut sum = 0.0;
        let mut all: Vec<f64> = (1..=keys)
            .map(|rank| {
                sum += (rank as f64).powf(-s);
                sum
            })
            .collect();
        all.iter_mut().for_each(|part| *part /= sum);
        Zipf(all)
    }

    fn rank(&self, dice: &mut Dice) -> u64 {
        let point = dice.unit();
        self.0.partition_point(|part| *part < point) as u64
    }
}

fn seen(pattern: u16, key: u64) -> Seen {
    Seen { pattern: PatternId(pattern), key, form: key, separator: b':' }
}

fn came(bytes: u32) -> Option<Came> {
    Some(Came { value: bytes, weight: Some(bytes), absent_ms: None })
}

/// The largest difference between what the shadow says and what exact caches have, over all their TTLs and sizes.
fn worst(seed: u64, keys: usize, exponent: f64, reads: u64, per_second: u64, writes: f64) -> f64 {
    let (shadow, zipf, mut dice) = (Shadow::default(), Zipf::new(keys, exponent), Dice(seed));
    shadow.observe(0, true);
    let sizes = [1 << 20, u64::MAX];
    let ttls = [0, 1];
    let mut exact: Vec<(usize, Exact)> =
        ttls.iter().flat_map(|ttl| sizes.map(|size| (*ttl, Exact::new(TTLS_MS[*ttl], size)))).collect();
    for i in 0..reads {
        let now = SECOND + i * SECOND / per_second;
        let key = mix(zipf.rank(&mut dice) ^ seed.rotate_left(32));
        if dice.unit() < writes {
            shadow.wrote(PatternId(2), key);
            exact.iter_mut().for_each(|(_, cache)| cache.forget(key));
            continue;
        }
        let bytes = 500 + (key % 1000) as u32;
        shadow.read("user", &seen(2, key), Method::Get, Some(1000), came(bytes), now);
        exact.iter_mut().for_each(|(_, cache)| cache.read(key, bytes, now));
    }
    let told = shadow.snapshot(SECOND + reads * SECOND / per_second);
    let group = &told.groups[0];
    let error = |(ttl, cache): &(usize, Exact)| {
        let max = Some(cache.max_bytes).filter(|max| *max < u64::MAX);
        (group.learned.hit_rate(*ttl, max).expect("reads") - cache.rate()).abs()
    };
    exact.iter().map(error).fold(0.0, f64::max)
}

#[test]
fn the_would_be_hit_rate_is_that_of_an_exact_cache_within_its_bound() {
    for seed in 1..=2 {
        for (keys, exponent, writes) in [(30_000, 0.99, 0.0), (30_000, 0.7, 0.05), (2_000, 0.99, 0.1)] {
            let error = worst(seed, keys, exponent, 40_000, 1000, writes);
            assert!(error <= ERROR_MAX, "seed {seed}, {keys} keys, zipf {exponent}, {writes} written: {error:.4}");
        }
    }
}

#[test]
fn a_flood_stays_within_its_bound() {
    let (shadow, mut dice) = (Shadow::default(), Dice(7));
    shadow.observe(0, true);
    // Few large groups, then as many as there may be, each of which grows and is emptied again.
    for i in 0..150_000u64 {
        let key = dice.next();
        let family = if i < 75_000 { i % 12 } else { i / 250 };
        let now = SECOND + i * 10_000;
        shadow.read(&format!("f{family}"), &seen(family as u16, key), Method::Get, Some(1), came(100), now);
        if i % 5_000 == 0 {
            assert!(shadow.bytes() <= BYTES_MAX, "{} bytes after {i}", shadow.bytes());
        }
    }
    let told = shadow.snapshot(SECOND);
    assert!(told.tracked <= TRACKED_MAX + 1, "{}", told.tracked);
    assert_eq!(told.groups.len(), GROUPS_MAX);
    assert!(told.missed > 0, "what finds no group is told");
    assert!(shadow.bytes() <= BYTES_MAX, "{}", shadow.bytes());
    assert!(shadow.save(SECOND).is_some_and(|file| file.len() as u64 <= FILE_MAX));
}

#[test]
fn the_rate_adapts_and_the_sample_stands_for_all() {
    let (shadow, mut dice) = (Shadow::default(), Dice(3));
    shadow.observe(0, true);
    for _ in 0..60_000 {
        shadow.read("a", &seen(2, dice.next()), Method::Get, None, came(1000), SECOND);
    }
    let told = shadow.snapshot(SECOND);
    let group = &told.groups[0];
    assert!(told.tracked <= GROUP_MAX);
    assert!(told.sample_rate.is_some_and(|rate| (0.03..0.6).contains(&rate)), "{:?}", told.sample_rate);
    assert!((group.distinct / 60_000.0 - 1.0).abs() < 0.1, "{}", group.distinct);
}

#[test]
fn one_command_of_one_family_is_a_group_and_mget_is_get() {
    let shadow = Shadow::default();
    shadow.observe(0, true);
    shadow.read("a", &seen(2, 1), Method::Get, Some(5_000_000), came(10), SECOND);
    shadow.read("a", &seen(2, 1), Method::Mget, Some(9_000_000), came(10), SECOND);
    shadow.read("a", &seen(2, 1), Method::Hget, Some(1000), came(10), SECOND);
    shadow.read("a", &seen(2, 1), Method::Hget, Some(1000), None, SECOND);
    let told = shadow.snapshot(61 * SECOND);
    let [get, hget] = &told.groups[..] else { panic!("{:?}", told.groups) };
    assert_eq!((get.method, hget.method), (Method::Get, Method::Hget));
    let counts = |told: &Told| [0, 1].map(|i| told.learned.traffic[i].as_ref().map_or(0.0, |hist| hist.count));
    assert_eq!((counts(get), counts(hget)), ([1.0, 1.0], [2.0, 0.0]));
    assert_eq!(get.learned.hit_rate(0, None), Some(0.5), "MGET reads what GET has brought");
    assert_eq!(hget.learned.reads, 1.0, "an error is a request and no reading");
    assert!((get.minutes - 61.0 / 60.0).abs() < 0.001);
    shadow.wrote(PatternId(2), 1);
    shadow.read("a", &seen(2, 1), Method::Get, None, came(10), SECOND);
    assert_eq!(shadow.snapshot(SECOND).groups[0].learned.hit_rate(0, None), Some(1.0 / 3.0), "it was written");
    assert_eq!(shadow.would_be(), [("a".into(), 1.0, 3.0)]);
}

#[test]
fn observed_time_is_what_was_observed_and_keys_are_forgotten_at_its_end() {
    let shadow = Shadow::default();
    shadow.observe(0, true);
    shadow.read("a", &seen(2, 1), Method::Get, Some(1), came(10), SECOND);
    shadow.observe(120 * SECOND, false);
    shadow.observe(1000 * SECOND, true);
    let told = shadow.snapshot(1060 * SECOND);
    assert_eq!((told.tracked, told.groups[0].minutes), (0, 3.0));
}

#[test]
fn a_fortnight_is_whole_and_then_all_is_halved() {
    const DAY: u64 = 86_400 * SECOND;
    let shadow = Shadow::default();
    shadow.observe(0, true);
    shadow.read("a", &seen(2, 1), Method::Get, Some(1), came(10), SECOND);
    shadow.tick(13 * DAY);
    assert_eq!(shadow.snapshot(13 * DAY).groups[0].learned.reads, 1.0);
    let rate = |told: Snapshot| told.groups[0].learned.reads / told.groups[0].minutes;
    let before = rate(shadow.snapshot(14 * DAY));
    shadow.tick(14 * DAY);
    let told = shadow.snapshot(14 * DAY);
    assert_eq!(told.groups[0].learned.reads, 0.5);
    assert!((rate(told) / before - 1.0).abs() < 1e-9, "rates are what they were");
}

fn with_something() -> Shadow {
    let (shadow, mut dice) = (Shadow::default(), Dice(5));
    shadow.observe(0, true);
    for i in 0..2000 {
        let key = dice.next() % 100;
        shadow.read("user", &seen(2, key), Method::Get, Some(1000 * i), came(100), SECOND + i * MS);
    }
    shadow
}

#[test]
fn what_was_learned_survives_a_restart() {
    let shadow = with_something();
    let file = shadow.save(61 * SECOND).expect("something was learned");
    let other = Shadow::default();
    assert_eq!(other.restore(&file), Ok(()));
    let (old, new) = (shadow.snapshot(61 * SECOND), other.snapshot(0));
    assert_eq!((old.began, &old.groups[0].learned), (new.began, &new.groups[0].learned));
    assert_eq!((old.groups[0].minutes, new.tracked), (new.groups[0].minutes, 0));
    // It goes on in the same group, whatever its family's number is now.
    other.observe(0, true);
    other.read("user", &seen(9, 1), Method::Get, Some(1), came(10), SECOND);
    let told = other.snapshot(SECOND);
    assert_eq!((told.groups.len(), told.groups[0].learned.reads), (1, 2001.0));
    assert_eq!(Shadow::default().save(SECOND), None, "nothing was learned");
}

#[test]
fn a_file_that_is_not_ours_or_torn_teaches_nothing() {
    let file = with_something().save(61 * SECOND).expect("something was learned");
    let read = |bytes: &[u8]| {
        let shadow = Shadow::default();
        let result = shadow.restore(bytes);
        assert!(shadow.snapshot(0).groups.is_empty() || result.is_ok());
        result
    };
    for foreign in [&b""[..], b"hello", b"{}", br#"{"nearside_observe":2,"x":1}"#] {
        assert!(matches!(read(foreign), Err(NotRead::Foreign(_))), "{}", String::from_utf8_lossy(foreign));
    }
    for cut in [MAGIC_LEN, file.len() / 2, file.len() - 1] {
        assert!(matches!(read(&file[..cut]), Err(NotRead::Damaged(_))), "{cut}");
    }
    let text = String::from_utf8(file).expect("JSON");
    for (from, to) in [("\"GET\"", "\"NOPE\""), ("\"reads\":", "\"reads\":-"), ("[1000,", "[1001,")] {
        assert!(text.contains(from), "{from}");
        assert!(matches!(read(text.replacen(from, to, 1).as_bytes()), Err(NotRead::Damaged(_))), "{from}");
    }
}

/// `{"nearside_observe":1`.
const MAGIC_LEN: usize = 21;
