//! Shares in the L1: what goes, what stays, and whether the books agree with a recount.

use proptest::prelude::*;

use super::super::marks::{Labels, ShareOf};
use super::super::tests::{EPOCH, entry, small};
use super::super::*;
use super::EVICTED_MAX;

const RULE: &str = "sessions";

fn l1(max_bytes: u64) -> (L1, Arc<Metrics>) {
    let metrics = Arc::new(Metrics::new(":", 10));
    (L1::new(Bounds { max_bytes, max_entries: None, lru: true }, metrics.clone()), metrics)
}

fn keep(l1: &L1, key: &str, share: Option<(&str, u64)>, bytes: usize) -> Result<(), Discard> {
    let token = l1.token(key.as_bytes(), EPOCH).expect("nothing pending");
    let share = share.map(|(rule, max_bytes)| ShareOf { rule, max_bytes });
    l1.keep(key.as_bytes(), &token, &Labels { tags: Vec::new(), share }, entry(l1, 0, &vec![b'x'; bytes]))
}

fn has(l1: &L1, key: &str) -> bool {
    l1.get(key.as_bytes()).is_some()
}

/// What moka weighs of the entries of a rule, and how many there are.
fn recount(l1: &L1, prefix: &str) -> (u64, usize) {
    (0..20).for_each(|_| l1.settle());
    let of_rule = l1.store.iter().filter(|(key, _)| key.starts_with(prefix.as_bytes()));
    let weights: Vec<u64> = of_rule.map(|(key, forms)| u64::from(weigh(l1.floor, &key, &forms))).collect();
    (weights.iter().sum(), weights.len())
}

#[test]
fn a_rule_stays_within_its_share_and_leaves_the_others_alone() {
    const MAX: u64 = 500_000;
    let (l1, metrics) = l1(MAX);
    for i in 0..150 {
        keep(&l1, &format!("other:{i}"), None, 100).expect("stored");
    }
    let others = recount(&l1, "other:");
    let mut stored = 0;
    while recount_of_stores(stored) < MAX {
        keep(&l1, &format!("s:{stored}"), Some((RULE, MAX / 10)), 100).expect("stored");
        stored += 1;
        assert!(l1.share_bytes(RULE).is_some_and(|bytes| bytes <= MAX / 10));
    }
    let (bytes, left) = recount(&l1, "s:");
    assert!(bytes <= MAX / 10 && bytes > MAX / 10 - 1000, "{bytes}");
    assert_eq!(l1.share_bytes(RULE), Some(bytes));
    assert_eq!(recount(&l1, "other:"), others);
    // The oldest have gone.
    assert!((0..stored - left).all(|i| !has(&l1, &format!("s:{i}"))));
    assert!((stored - left..stored).all(|i| has(&l1, &format!("s:{i}"))));
    assert_eq!(metrics.evictions.get(Evict::Share), (stored - left) as u64);
    assert_eq!(metrics.evictions.sum(), (stored - left) as u64);
}

/// At least what so many of its entries weigh.
fn recount_of_stores(n: usize) -> u64 {
    (n * (OVERHEAD + 100)) as u64
}

#[test]
fn what_is_read_again_is_new_and_counts_once() {
    let (l1, _) = l1(1 << 20);
    keep(&l1, "s:a", Some((RULE, 1 << 20)), 100).expect("stored");
    let (one, _) = recount(&l1, "s:");
    let room_for_two = Some((RULE, 2 * one));
    for key in ["s:b", "s:a", "s:c"] {
        keep(&l1, key, room_for_two, 100).expect("stored");
    }
    assert_eq!((has(&l1, "s:a"), has(&l1, "s:b"), has(&l1, "s:c")), (true, false, true));
    assert_eq!(l1.share_bytes(RULE), Some(2 * one));
}

#[test]
fn what_is_larger_than_the_share_is_not_stored_and_makes_nothing_go() {
    let (l1, metrics) = l1(1 << 20);
    keep(&l1, "s:a", Some((RULE, 5000)), 100).expect("stored");
    assert_eq!(keep(&l1, "s:b", Some((RULE, 5000)), 5000), Err(Discard::TooLarge));
    assert!(has(&l1, "s:a") && !has(&l1, "s:b"));
    assert_eq!((l1.share_bytes(RULE), metrics.evictions.sum()), (Some(recount(&l1, "s:").0), 0));
}

#[test]
fn a_share_that_shrinks_is_kept_to_from_the_next_store_on() {
    let (l1, metrics) = l1(1 << 20);
    for i in 0..100 {
        keep(&l1, &format!("s:{i}"), Some((RULE, 1 << 20)), 1).expect("stored");
    }
    keep(&l1, "s:x", Some((RULE, 10_000)), 1).expect("stored");
    let (bytes, left) = recount(&l1, "s:");
    assert!(bytes <= 10_000 && l1.share_bytes(RULE) == Some(bytes), "{bytes}");
    assert!(has(&l1, "s:x") && has(&l1, "s:99") && !has(&l1, "s:0"));
    assert_eq!(metrics.evictions.get(Evict::Share), (101 - left) as u64);
}

/// Whoever stores does not stand still for as long as a million entries take.
#[test]
fn one_store_makes_so_many_go_and_no_more() {
    let (l1, _) = l1(1 << 20);
    let list = l1.books.shares.of(RULE);
    let before = 2 * EVICTED_MAX;
    (0..before).for_each(|i| list.enter((1 << 40) + i as u64, format!("s:{i}").as_bytes(), 600));
    let left = || list.list.lock().records.len();
    keep(&l1, "s:x", Some((RULE, 10_000)), 1).expect("stored");
    assert_eq!(left(), before + 1 - EVICTED_MAX);
    (0..2).for_each(|i| keep(&l1, &format!("s:y{i}"), Some((RULE, 10_000)), 1).expect("stored"));
    assert!(l1.share_bytes(RULE).is_some_and(|bytes| bytes <= 10_000) && has(&l1, "s:y1"));
}

#[test]
fn rules_are_counted_apart_and_forgotten_when_nothing_of_them_is_left() {
    let (l1, _) = l1(1 << 20);
    for rule in ["a", "b"] {
        keep(&l1, &format!("{rule}:1"), Some((rule, 1 << 20)), 100).expect("stored");
    }
    assert_eq!(l1.share_bytes("a"), l1.share_bytes("b"));
    l1.invalidate(b"a:1");
    assert_eq!(l1.share_bytes("a"), Some(0));
    // moka lets go of what it has removed when it finds the time.
    let end = Instant::now() + Duration::from_secs(15);
    for i in 0.. {
        keep(&l1, "c:1", Some((&format!("c{i}"), 1 << 20)), 100).expect("stored");
        l1.settle();
        if l1.share_bytes("a").is_none() {
            break;
        }
        assert!(Instant::now() < end, "still there");
    }
    assert!(l1.share_bytes("b").is_some_and(|bytes| bytes > 0));
}

/// A flush leaves its entries to moka's housekeeping; those that are stored behind it must not go for them.
#[test]
fn a_flush_makes_room_at_once_for_what_comes_after() {
    let (l1, _) = l1(1 << 20);
    (0..100).for_each(|i| keep(&l1, &format!("s:{i}"), Some((RULE, 50_000)), 1).expect("stored"));
    l1.flush();
    (0..5).for_each(|i| keep(&l1, &format!("s:n{i}"), Some((RULE, 50_000)), 1).expect("stored"));
    assert!((0..5).all(|i| has(&l1, &format!("s:n{i}"))));
}

#[derive(Clone, Debug)]
enum Op {
    /// Key, of rule a, b or none, bytes.
    Keep(u8, u8, u16),
    Invalidate(u8),
    Write(u8),
    Flush,
    Settle,
    /// A short L1 evicts by itself.
    Fill,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        12 => (0..30_u8, 0..3_u8, 0..800_u16).prop_map(|(key, rule, bytes)| Op::Keep(key, rule, bytes)),
        3 => (0..30_u8).prop_map(Op::Invalidate),
        2 => (0..30_u8).prop_map(Op::Write),
        1 => Just(Op::Flush),
        2 => Just(Op::Settle),
        1 => Just(Op::Fill),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever happens, the books say what is resident, and no rule takes more than its share.
    #[test]
    fn the_books_are_what_a_recount_finds(ops in prop::collection::vec(op(), 1..120)) {
        let (l1, _) = l1(12_000);
        let shares = [("a", 3_000_u64), ("b", 8_000)];
        for op in ops {
            match op {
                Op::Keep(key, rule, bytes) => {
                    let share = shares.get(usize::from(rule)).copied();
                    let prefix = share.map_or("none", |(name, _)| name);
                    let _ = keep(&l1, &format!("{prefix}:{key}"), share, bytes.into());
                }
                Op::Invalidate(key) => assert!(l1.invalidate(format!("b:{key}").as_bytes()) < 2),
                Op::Write(key) => l1.end_write(l1.begin_write(format!("a:{key}").as_bytes())),
                Op::Flush => l1.flush(),
                Op::Settle => l1.settle(),
                Op::Fill => (0..20).for_each(|i| keep(&l1, &format!("none:f{i}"), None, 400).expect("stored")),
            }
            for (rule, max) in shares {
                prop_assert!(l1.share_bytes(rule).unwrap_or(0) <= max);
            }
        }
        for (rule, _) in shares {
            let counted = recount(&l1, &format!("{rule}:")).0;
            prop_assert_eq!(l1.share_bytes(rule).unwrap_or(0), counted);
        }
    }
}

#[test]
fn what_no_rule_limits_has_no_marks() {
    let l1 = small();
    keep(&l1, "k", None, 1).expect("stored");
    assert!(l1.get(b"k").is_some_and(|forms| forms.marks.is_none()));
}
