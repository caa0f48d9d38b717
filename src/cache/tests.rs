//! The L1 alone: its bounds, what ends an entry, who may store.

use super::*;
use crate::observe::patterns::PatternId;

/// What tests of other modules break, to prove that their judge sees it.
impl L1 {
    pub(crate) fn forget_generation(&self, key: &[u8]) {
        self.stripes[self.stripe(key).0 as usize].lock().generation = 0;
    }

    pub(crate) fn forget_flushes(&self) {
        self.flush_gen.store(0, Ordering::Release);
    }

    /// Hides a stripe's pending writes; returns how many.
    pub(crate) fn hide_pending(&self, key: &[u8]) -> u32 {
        std::mem::take(&mut self.stripes[self.stripe(key).0 as usize].lock().pending)
    }

    /// Keeps a stripe's lock for as long as `during` runs: no sweep gets past it.
    pub(crate) fn with_stripe_locked<T>(&self, key: &[u8], during: impl FnOnce() -> T) -> T {
        let _locked = self.stripes[self.stripe(key).0 as usize].lock();
        during()
    }

    /// What no rule says anything of.
    pub(crate) fn insert(&self, key: &[u8], token: &Token, entry: Entry) -> Result<(), Discard> {
        self.keep(key, token, &Labels::default(), entry)
    }

    pub(crate) fn insert_form(&self, key: &[u8], token: &Token, form: FormEntry) -> Result<Displaced, Discard> {
        self.keep_form(key, token, &Labels::default(), form)
    }

    pub(crate) fn show_pending(&self, key: &[u8], count: u32) {
        self.stripes[self.stripe(key).0 as usize].lock().pending += count;
    }
}

pub(super) const EPOCH: u64 = 7;
pub(super) const HOUR: u64 = 3_600_000_000_000;

fn bounds(max_bytes: u64) -> Bounds {
    Bounds { max_bytes, max_entries: None, lru: false }
}

fn l1(bounds: Bounds) -> L1 {
    L1::new(bounds, Arc::new(Metrics::new(":", 10)))
}

pub(super) fn large() -> L1 {
    l1(bounds(64 << 20))
}

pub(super) fn small() -> L1 {
    l1(bounds(1 << 20))
}

/// `text` as read by a lane under `EPOCH + lane`.
pub(super) fn entry(l1: &L1, lane: u32, text: &[u8]) -> Entry {
    let mut frame = bytes::BytesMut::new();
    crate::resp::build::bulk(&mut frame, text);
    let now = clock::now();
    Entry {
        epoch: EPOCH + u64::from(lane),
        lane,
        flush_gen: l1.flush_gen(),
        deadline: now + HOUR,
        soft: u64::MAX,
        touch: Due::never(),
        expires: u64::MAX,
        t_sent: now,
        pattern: PatternId::PLAIN,
        arm: crate::observe::arms::ArmId::NONE,
        value: Value::Bulk(frame[..].into()),
    }
}

pub(super) fn store(l1: &L1, key: &[u8], lane: u32, text: &[u8]) -> Result<(), Discard> {
    let token = l1.token(key, EPOCH).expect("nothing pending");
    l1.insert(key, &token, entry(l1, lane, text))
}

/// What a lane may serve of `key` at this moment, as wire bytes.
fn served(l1: &L1, key: &[u8], lane: u32) -> Option<Vec<u8>> {
    let forms = l1.get(key)?;
    match &usable(&forms, EPOCH + u64::from(lane), l1.flush_gen(), clock::now())?.value {
        Value::Bulk(frame) => Some(frame.to_vec()),
        Value::Nil => Some(Vec::new()),
    }
}

fn name(i: usize) -> Vec<u8> {
    format!("key:{i:08}").into_bytes()
}

// ---- bounds ----

fn fill(l1: &L1, n: usize, value: &[u8]) -> (u64, u64) {
    for i in 0..n {
        store(l1, &name(i), 0, value).expect("nothing in its way");
    }
    l1.settle();
    l1.size()
}

#[test]
fn the_weight_of_all_entries_stays_below_max_bytes() {
    for lru in [false, true] {
        let l1 = l1(Bounds { max_bytes: 200_000, max_entries: None, lru });
        let (entries, bytes) = fill(&l1, 1000, &[b'x'; 1000]);
        assert!(bytes <= 200_000, "{bytes}");
        assert!(entries > 100 && entries < 200, "{entries}");
        let readable = (0..1000).filter(|i| l1.get(&name(*i)).is_some()).count();
        assert_eq!(readable as u64, entries);
    }
}

#[test]
fn the_number_of_entries_stays_below_max_entries() {
    let l1 = l1(Bounds { max_bytes: 100 << 20, max_entries: Some(50), lru: true });
    let (entries, _) = fill(&l1, 500, b"v");
    assert!((45..=50).contains(&entries), "{entries}");
}

#[test]
fn an_entry_weighs_its_overhead_its_key_and_each_of_its_forms() {
    let l1 = small();
    let form = std::mem::size_of::<Entry>() + b"$5\r\nhello\r\n".len();
    store(&l1, b"key", 0, b"hello").expect("stored");
    l1.settle();
    assert_eq!(l1.size(), (1, (OVERHEAD + 3 + form) as u64));
    store(&l1, b"key", 1, b"hello").expect("stored");
    l1.settle();
    assert_eq!(l1.size(), (1, (OVERHEAD + 3 + 2 * form) as u64));
}

// ---- what ends an entry ----

#[test]
fn an_entry_is_served_until_its_deadline_and_to_its_own_epoch() {
    let l1 = small();
    store(&l1, b"k", 0, b"v").expect("stored");
    let forms = l1.get(b"k").expect("stored");
    let deadline = forms.entries[0].deadline;
    assert!(usable(&forms, EPOCH, 0, deadline - 1).is_some());
    assert!(usable(&forms, EPOCH, 0, deadline).is_none());
    assert!(usable(&forms, EPOCH + 1, 0, deadline - 1).is_none());
    assert!(usable(&forms, EPOCH, 1, deadline - 1).is_none());
}

#[test]
fn memory_is_freed_after_the_deadline() {
    let l1 = small();
    let token = l1.token(b"k", EPOCH).expect("nothing pending");
    let short = Entry { deadline: clock::now() + 1_000_000, ..entry(&l1, 0, b"v") };
    l1.insert(b"k", &token, short).expect("stored");
    let end = Instant::now() + Duration::from_secs(10);
    while l1.size().0 > 0 || l1.get(b"k").is_some() {
        assert!(Instant::now() < end, "still there");
        l1.settle();
    }
}

#[test]
fn an_invalidation_drops_a_key_for_every_profile() {
    let l1 = small();
    store(&l1, b"k", 0, b"of 0").expect("stored");
    store(&l1, b"k", 1, b"of 1").expect("stored");
    store(&l1, b"k", 0, b"newer").expect("stored");
    assert_eq!(served(&l1, b"k", 0).as_deref(), Some(&b"$5\r\nnewer\r\n"[..]));
    assert_eq!(served(&l1, b"k", 1).as_deref(), Some(&b"$4\r\nof 1\r\n"[..]));
    assert_eq!(served(&l1, b"k", 2), None);
    assert_eq!(l1.invalidate(b"k"), 2);
    assert_eq!(l1.invalidate(b"k"), 0);
    assert!(l1.get(b"k").is_none());
}

#[test]
fn a_write_drops_its_key_when_it_begins() {
    let l1 = small();
    store(&l1, b"k", 0, b"v").expect("stored");
    let stripe = l1.begin_write(b"k");
    assert!(l1.get(b"k").is_none());
    l1.end_write(stripe);
    assert!(l1.get(b"k").is_none());
}

#[test]
fn a_flush_ends_everything() {
    let l1 = small();
    store(&l1, b"k", 0, b"v").expect("stored");
    let held = l1.get(b"k").expect("stored");
    l1.flush();
    assert!(l1.get(b"k").is_none());
    // Also for whoever has looked it up already.
    assert!(usable(&held, EPOCH, l1.flush_gen(), clock::now()).is_none());
    store(&l1, b"k", 0, b"after").expect("stored");
    assert_eq!(served(&l1, b"k", 0).as_deref(), Some(&b"$5\r\nafter\r\n"[..]));
}

#[test]
fn a_key_that_was_replaced_counts_as_no_eviction() {
    let metrics = Arc::new(Metrics::new(":", 10));
    let l1 = L1::new(bounds(1 << 20), metrics.clone());
    store(&l1, b"k", 0, b"1").expect("stored");
    store(&l1, b"k", 0, b"2").expect("stored");
    l1.settle();
    assert_eq!(metrics.evictions.sum(), 0);
    l1.invalidate(b"k");
    l1.settle();
    assert_eq!(metrics.evictions.sum(), 1);
}

// ---- who may store (R11, R12) ----

/// The reading began before `meanwhile`; whether it may be stored after, and whether the token said so beforehand.
fn after<T>(meanwhile: impl Fn(&L1) -> T) -> (Result<(), Discard>, bool) {
    let l1 = small();
    let token = l1.token(b"k", EPOCH).expect("nothing pending");
    let entry = entry(&l1, 0, b"old");
    meanwhile(&l1);
    let alive = l1.alive(&token);
    let stored = l1.insert(b"k", &token, entry);
    assert_eq!(stored.is_ok(), l1.get(b"k").is_some());
    (stored, alive)
}

#[test]
fn a_reading_is_stored_only_where_nothing_has_happened_since_it_began() {
    assert_eq!(after(|_| ()), (Ok(()), true));
    assert_eq!(after(|l1| l1.begin_write(b"other")), (Ok(()), true));
    assert_eq!(after(|l1| l1.invalidate(b"k")), (Err(Discard::Push), false));
    assert_eq!(after(|l1| l1.begin_write(b"k")), (Err(Discard::Write), false));
    assert_eq!(after(|l1| l1.end_write(l1.begin_write(b"k"))), (Err(Discard::Push), false));
    assert_eq!(after(L1::flush), (Err(Discard::Flush), false));
}

#[test]
fn there_is_no_token_while_a_write_is_pending() {
    let l1 = small();
    let (first, second) = (l1.begin_write(b"k"), l1.begin_write(b"k"));
    assert_eq!(l1.token(b"k", EPOCH), None);
    l1.end_write(first);
    assert_eq!(l1.token(b"k", EPOCH), None);
    l1.end_write(second);
    assert!(l1.token(b"k", EPOCH).is_some());
}

#[test]
fn a_refresh_stores_where_only_its_own_write_has_ended() {
    let l1 = small();
    let stripe = l1.begin_write(b"k");
    let token = l1.refresh_token(stripe, EPOCH);
    let carried = Token { generation: token.generation + 1, ..token };
    assert_eq!(l1.insert(b"k", &carried, entry(&l1, 0, b"v")), Err(Discard::Write));
    l1.end_write(stripe);
    assert_eq!(l1.insert(b"k", &token, entry(&l1, 0, b"v")), Err(Discard::Push));
    assert_eq!(l1.insert(b"k", &carried, entry(&l1, 0, b"v")), Ok(()));
}

#[test]
fn pending_writes_add_up_over_all_stripes() {
    let l1 = small();
    let begun: Vec<StripeId> = (0..100).map(|i| l1.begin_write(&name(i % 60))).collect();
    assert_eq!(l1.pending(), 100);
    begun.into_iter().for_each(|stripe| l1.end_write(stripe));
    assert_eq!(l1.pending(), 0);
    assert!(l1.stripes.iter().all(|s| s.lock().pending == 0));
}

// ---- whether the weigher tells the truth ----

fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number of kB");
    kib * 1024
}

/// Memory that 500,000 entries of 100 bytes really take, against what they weigh. Slow without optimisation.
#[test]
#[ignore = "soak"]
fn entries_weigh_what_they_take() {
    const ENTRIES: usize = 500_000;
    let l1 = l1(bounds(1 << 30));
    fill(&l1, 1000, &[b'x'; 100]);
    let (before, weighed_before) = (resident(), l1.size().1);
    let (entries, weighed) = fill(&l1, ENTRIES, &[b'x'; 100]);
    assert_eq!(entries, ENTRIES as u64);
    let each = |bytes: u64| bytes as f64 / (ENTRIES - 1000) as f64;
    let (taken, weighed) = (each(resident() - before), each(weighed - weighed_before));
    println!("{taken:.0} bytes taken by an entry, {weighed:.0} weighed, overhead {OVERHEAD}");
    assert!((taken / weighed - 1.0).abs() < 0.15, "{taken:.0} taken, {weighed:.0} weighed");
}

/// The same for keys with several forms of 100 bytes each.
#[test]
#[ignore = "soak"]
fn forms_weigh_what_they_take() {
    const KEYS: usize = 100_000;
    const FORMS: usize = 8;
    let l1 = l1(bounds(1 << 30));
    let fill = |keys: std::ops::Range<usize>| {
        keys.for_each(|i| {
            (0..FORMS).for_each(|n| {
                form::tests::store(&l1, &name(i), form::tests::lrange(&l1, n));
            })
        });
        l1.settle();
        l1.size().1
    };
    let weighed_before = fill(0..1000);
    let before = resident();
    let weighed = fill(1000..KEYS) - weighed_before;
    let each = |bytes: u64| bytes as f64 / ((KEYS - 1000) * FORMS) as f64;
    let (taken, weighed) = (each(resident() - before), each(weighed));
    println!("{taken:.0} bytes taken by a form, {weighed:.0} weighed");
    assert!((taken / weighed - 1.0).abs() < 0.15, "{taken:.0} taken, {weighed:.0} weighed");
}
