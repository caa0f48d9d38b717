use proptest::prelude::*;

use super::*;

fn set(key: &str, value: &str) -> New {
    let effect = Effect::Set { key: key.as_bytes().into(), value: value.as_bytes().into(), expire_at_ms: None };
    New { effect, base: Base::Unknown }
}

fn based(key: &str, to: &str, base: &str) -> New {
    New { base: value(base), ..set(key, to) }
}

fn value(text: &str) -> Base {
    Base::Value { value: text.as_bytes().into(), expire_at_ms: None }
}

fn seqs(queue: &Queue, count: usize, bytes: usize) -> Vec<u64> {
    queue.front(count, bytes).map(|item| item.seq).collect()
}

#[test]
fn the_row_keeps_its_order_and_its_books() {
    let mut q = Queue::default();
    assert_eq!((q.len(), q.bytes(), q.oldest(), q.last()), (0, 0, None, 0));
    q.push(5, vec![set("a", "1"), set("b", "2")]);
    q.push(7, vec![set("a", "3")]);
    assert_eq!((q.len(), q.last(), q.oldest()), (3, 3, Some(5)));
    assert_eq!(q.bytes(), 3 * (OVERHEAD + 3));
    assert_eq!(seqs(&q, 2, usize::MAX), [1, 2]);
    assert_eq!(seqs(&q, 9, 1), [1, 2], "one command goes whatever it weighs");
    q.applied(1);
    assert!(q.has(b"a"), "its second effect waits");
    q.applied(3);
    assert_eq!((q.len(), q.bytes(), q.has(b"a"), q.last()), (0, 0, false, 3));
    q.push(9, vec![set("a", "4")]);
    assert_eq!(seqs(&q, 9, usize::MAX), [4], "no number is used twice");
}

/// A command of many keys is done in one piece, however many go at once.
#[test]
fn a_command_is_not_cut() {
    let mut q = Queue::default();
    q.push(1, vec![set("a", "1")]);
    q.push(1, vec![set("a", "2"), set("b", "2"), set("c", "2")]);
    q.push(1, vec![set("a", "3")]);
    for (count, bytes, want) in [
        (1, usize::MAX, &[1][..]),
        (2, usize::MAX, &[1]),
        (3, usize::MAX, &[1]),
        (4, usize::MAX, &[1, 2, 3, 4]),
        (9, usize::MAX, &[1, 2, 3, 4, 5]),
        (9, 4 * (OVERHEAD + 3), &[1, 2, 3, 4]),
        (9, 4 * (OVERHEAD + 3) - 1, &[1]),
    ] {
        assert_eq!(seqs(&q, count, bytes), want, "{count} {bytes}");
    }
    q.applied(1);
    assert_eq!(seqs(&q, 1, 1), [2, 3, 4], "one alone goes whatever it weighs");
    q.applied(2);
    assert_eq!(seqs(&q, 1, 1), [3, 4], "and so does what is left of it");
}

#[test]
fn a_base_that_has_expired_is_nobodys_change() {
    let base = Base::Value { value: b"v"[..].into(), expire_at_ms: Some(100) };
    assert!(base.is(Some(b"v"), 50) && base.is(Some(b"v"), 150));
    assert!(!base.is(Some(b"w"), 150) && !base.is(None, 99) && base.is(None, 100));
    assert!(!value("v").is(None, i64::MAX));
    assert!(Base::Absent.is(None, 0) && !Base::Absent.is(Some(b""), 0));
    assert!(!Base::Unknown.is(None, 0));
}

#[test]
fn a_series_is_compared_once_with_its_first_base() {
    let mut q = Queue::default();
    q.push(1, vec![based("k", "1", "old")]);
    q.push(2, vec![based("k", "2", "1")]);
    let to_compare =
        |q: &Queue| -> Vec<Option<Base>> { q.front(9, usize::MAX).map(|item| q.to_compare(item).cloned()).collect() };
    let old = Some(value("old"));
    assert_eq!(to_compare(&q), [old.clone(), old]);
    q.begin(b"k", Replayed::Applied);
    assert_eq!(to_compare(&q), [None, None]);
    q.applied(2);
    q.push(3, vec![based("k", "3", "2")]);
    assert_eq!(to_compare(&q), [Some(value("2"))], "another series, another base");
}

#[test]
fn what_is_skipped_is_skipped_to_its_end_and_no_further() {
    let mut q = Queue::default();
    q.push(1, vec![set("k", "1"), set("other", "1"), set("k", "2")]);
    q.skip(b"k", Replayed::Skipped);
    q.push(2, vec![set("k", "3")]);
    let skipped: Vec<bool> = q.front(9, usize::MAX).map(|item| q.skipped(item).is_some()).collect();
    assert_eq!(skipped, [true, false, true, false]);
    q.applied(3);
    assert_eq!((q.len(), q.has(b"k"), q.skipped.len()), (1, true, 0));
    q.applied(4);
    assert!(q.is_empty() && q.keys.is_empty());
}

/// What was found before the first effect is counted once, with the first, whatever is lost and done again in between.
#[test]
fn what_a_key_was_found_to_be_is_counted_with_its_first_effect() {
    let mut q = Queue::default();
    q.push(1, vec![set("k", "1"), set("bad", "1"), set("k", "2"), set("late", "1"), set("k", "3")]);
    q.begin(b"k", Replayed::Overwritten);
    q.begin(b"bad", Replayed::UnknownBase);
    q.begin(b"late", Replayed::UnknownBase);
    q.not_begun(b"late");
    q.skip(b"bad", Replayed::Failed);
    assert!(q.outcomes(0).is_empty());
    assert_eq!(q.outcomes(3), [Replayed::Overwritten, Replayed::Failed, Replayed::Applied]);
    q.applied(3);
    let late = q.front(9, usize::MAX).next().expect("one that waits");
    assert!(q.to_compare(late).is_some(), "it is compared again");
    q.begin(b"late", Replayed::Overwritten);
    assert_eq!(q.outcomes(5), [Replayed::Overwritten, Replayed::Applied]);
}

#[test]
fn only_what_is_from_the_journal_may_have_been_done_before() {
    let mut q = Queue::default();
    q.restore(
        1,
        vec![
            based("k", "2", "1"),
            set("gone", "x"),
            New { effect: Effect::Del { key: b"gone"[..].into() }, ..set("gone", "") },
        ],
        7,
    );
    q.push(2, vec![set("k", "3"), based("here", "2", "1")]);
    for (key, upstream, own) in [
        ("k", Some("2"), true),
        ("k", Some("3"), false),
        ("k", Some("theirs"), false),
        ("k", None, false),
        ("gone", None, true),
        ("here", Some("2"), false),
        ("nobody's", None, false),
    ] {
        assert_eq!(q.may_be_own(key.as_bytes(), upstream.map(str::as_bytes), 0), own, "{key} {upstream:?}");
    }
    q.applied(1);
    assert!(!q.may_be_own(b"k", Some(b"2"), 0), "it is known to be done");
    q.applied(5);
    q.push(3, vec![based("k", "4", "3")]);
    assert!(!q.may_be_own(b"k", Some(b"4"), 0), "another series");
}

#[derive(Clone, Debug)]
enum Step {
    Push(Vec<(u8, u8)>),
    /// So many of the front are done.
    Applied(usize),
    Skip(u8),
    Begin(u8),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => prop::collection::vec((0..4u8, any::<u8>()), 1..4).prop_map(Step::Push),
        3 => (0..5usize).prop_map(Step::Applied),
        1 => (0..4u8).prop_map(Step::Skip),
        1 => (0..4u8).prop_map(Step::Begin),
    ]
}

proptest! {
    /// Against a plain list: order, depth, keys and bytes, and what is skipped, whatever happens.
    #[test]
    fn it_is_a_list(steps in prop::collection::vec(step(), 0..60)) {
        let mut q = Queue::default();
        // Number, key, skipped.
        let mut list: Vec<(u64, u8, bool)> = Vec::new();
        let mut last = 0;
        for step in steps {
            match step {
                Step::Push(pairs) => {
                    q.push(1, pairs.iter().map(|(k, v)| set(&k.to_string(), &v.to_string())).collect());
                    for (key, _) in pairs {
                        last += 1;
                        list.push((last, key, false));
                    }
                }
                Step::Applied(count) => {
                    let Some((seq, ..)) = list.get(count.saturating_sub(1)).copied().filter(|_| count > 0) else { continue };
                    q.applied(seq);
                    list.drain(..count);
                }
                Step::Skip(key) => {
                    q.skip(key.to_string().as_bytes(), Replayed::Failed);
                    list.iter_mut().filter(|(_, k, _)| *k == key).for_each(|one| one.2 = true);
                }
                Step::Begin(key) => q.begin(key.to_string().as_bytes(), Replayed::Applied),
            }
            let seen: Vec<(u64, bool)> = q.front(usize::MAX, usize::MAX).map(|i| (i.seq, q.skipped(i).is_some())).collect();
            let wanted: Vec<(u64, bool)> = list.iter().map(|(seq, _, skipped)| (*seq, *skipped)).collect();
            prop_assert_eq!(seen, wanted);
            for key in 0..4u8 {
                let waits = list.iter().any(|(_, k, skipped)| *k == key && !skipped);
                prop_assert_eq!(q.has(key.to_string().as_bytes()), waits);
            }
            prop_assert_eq!(q.bytes() == 0, list.is_empty());
        }
    }
}
