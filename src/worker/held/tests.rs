use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::command::table::{self, Lookup};
use crate::command::{Request, keys};
use crate::resp::request::{Scan, Scanner};
use crate::resp::{Proto, build};

const NOW: i64 = 1_000_000;
const ROOM: Room = Room { count: 1000, bytes: 1 << 20 };

/// One command, with what the L1 has of its keys.
fn write(held: &mut Held, how: How, words: &[&str], l1: &[(&str, &str)], room: Room) -> Result<String, NotTaken> {
    let mut raw = BytesMut::new();
    let words: Vec<&[u8]> = words.iter().map(|word| word.as_bytes()).collect();
    build::command(&mut raw, &words);
    let mut scanner = Scanner::new(1 << 20, 1 << 20);
    assert!(matches!(scanner.scan(&raw), Scan::Request { .. }));
    let req = Request { raw: &raw, args: scanner.args() };
    let Lookup::Known(spec) = table::lookup(&req) else { panic!("no such command") };
    let command = local::command(spec.name).expect("the engine has it");
    let call = Call { now: NOW, db: DB, proto: Proto::Resp2, name: spec.name, req: &req, reply_max: 1 << 20 };
    let mut names = Vec::new();
    keys::for_each(spec, &req, |key| {
        let value = l1.iter().find(|(k, _)| k.as_bytes() == key && !held.knows(key));
        let found = value.map(|(_, value)| Found { value: value.as_bytes().to_vec(), expire_at_ms: None });
        names.push(Named { key, found });
    });
    let mut out = BytesMut::new();
    let taken = held.write(how, (command, &call), &names, (room, 7), &mut out);
    taken.map(|_| String::from_utf8_lossy(&out).into_owned())
}

fn queue(held: &mut Held, words: &[&str]) -> String {
    write(held, How::Queue, words, &[("n", "41")], ROOM).expect("room")
}

fn value(held: &Held, key: &str) -> Option<String> {
    held.value(NOW, key.as_bytes()).map(|(value, _)| String::from_utf8_lossy(value).into_owned())
}

fn bases(held: &Held) -> Vec<Option<Base>> {
    held.queue.front(99, usize::MAX).map(|item| held.queue.to_compare(item).cloned()).collect()
}

#[test]
fn a_reply_rests_on_what_the_l1_has_and_then_on_what_was_written() {
    let mut held = Held::new();
    assert_eq!(queue(&mut held, &["INCR", "n"]), ":42\r\n");
    assert_eq!(queue(&mut held, &["INCR", "n"]), ":43\r\n");
    assert_eq!((held.queue.len(), value(&held, "n").as_deref()), (2, Some("43")));
    let base = Base::Value { value: b"41"[..].into(), expire_at_ms: None };
    assert_eq!(bases(&held)[0], Some(base));
}

#[test]
fn what_is_only_looked_at_stays_the_l1s() {
    let mut held = Held::new();
    assert_eq!(queue(&mut held, &["SET", "n", "1", "NX"]), "$-1\r\n");
    assert_eq!((held.queue.len(), held.knows(b"n"), value(&held, "n"), held.bytes()), (0, false, None, 0));
}

#[test]
fn the_base_of_another_series_is_what_was_written_before() {
    let mut held = Held::new();
    queue(&mut held, &["SET", "n", "1"]);
    queue(&mut held, &["DEL", "n"]);
    held.applied(held.queue.last());
    queue(&mut held, &["SET", "n", "2"]);
    assert_eq!(bases(&held), [Some(Base::Absent)]);
    // Nothing was known, and nothing is known of what was kept here.
    write(&mut held, How::Local, &["SET", "l", "1"], &[], ROOM).expect("room");
    queue(&mut held, &["SET", "l", "2"]);
    assert_eq!(bases(&held)[1], Some(Base::Unknown));
    assert_eq!(held.local_writes(), 1);
}

#[test]
fn what_is_forgotten_leaves_nothing() {
    let mut held = Held::new();
    queue(&mut held, &["SET", "n", "1"]);
    held.forget(b"n", Replayed::Skipped);
    held.applied(held.queue.last());
    assert_eq!((held.knows(b"n"), value(&held, "n"), held.bytes()), (false, None, 0));
}

#[test]
fn without_room_nothing_changes() {
    let mut held = Held::new();
    queue(&mut held, &["SET", "n", "1"]);
    let before = held.bytes();
    let small = |count, bytes| Room { count, bytes };
    let mut refused = |words: &[&str], room| write(&mut held, How::Queue, words, &[("l1", "x")], room);
    assert_eq!(refused(&["MSET", "a", "1", "n", "2"], small(1, 1 << 20)), Err(NotTaken::Count));
    assert_eq!(refused(&["APPEND", "n", "more"], small(9, 10)), Err(NotTaken::Bytes));
    assert_eq!(refused(&["SETRANGE", "n", "400000000", "x"], small(9, 1 << 20)), Err(NotTaken::Bytes));
    assert_eq!(refused(&["APPEND", "l1", "more"], small(9, 300)), Err(NotTaken::Bytes));
    assert_eq!((held.queue.len(), value(&held, "n").as_deref()), (1, Some("1")));
    assert!(held.bytes() <= before);
    assert!(!held.knows(b"a") && !held.knows(b"l1"));
}

fn words() -> impl Strategy<Value = Vec<String>> {
    let key = || prop::sample::select(vec!["a", "b", "c"]);
    (0..8u8, key(), key(), 0..200u32).prop_map(|(which, k, l, n)| {
        let n = n.to_string();
        let text = "x".repeat(n.len() * 20);
        let words: Vec<&str> = match which {
            0 => vec!["SET", k, &n],
            1 => vec!["INCRBY", k, &n],
            2 => vec!["APPEND", k, &text],
            3 => vec!["DEL", k, l],
            4 => vec!["MSET", k, &n, l, &text],
            5 => vec!["SETRANGE", k, &n, "y"],
            6 => vec!["RENAME", k, l],
            _ => vec!["SET", k, &text, "XX"],
        };
        words.into_iter().map(str::to_owned).collect()
    })
}

proptest! {
    /// Whatever is taken or refused, done or not: the effects in their order lead to what the engine shows, and the books
    /// agree.
    #[test]
    fn effects_lead_to_what_is_shown(
        all in prop::collection::vec((words(), 0..1500usize, any::<bool>()), 0..80)
    ) {
        let mut held = Held::new();
        let mut upstream: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
        let mut apply = |held: &mut Held, count: usize| {
            let mut last = 0;
            for item in held.queue.front(count, usize::MAX) {
                match &item.effect {
                    Effect::Set { key, value, .. } => drop(upstream.insert(key.to_vec(), value.to_vec())),
                    Effect::Del { key } => drop(upstream.remove(&**key)),
                }
                last = item.seq;
            }
            held.applied(last);
            upstream.clone()
        };
        for (words, bytes, some) in all {
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            let before = (held.queue.len(), held.bytes(), value(&held, "a"), value(&held, "b"), value(&held, "c"));
            let taken = write(&mut held, How::Queue, &words, &[], Room { count: 2, bytes });
            let after = (held.queue.len(), held.bytes(), value(&held, "a"), value(&held, "b"), value(&held, "c"));
            match taken {
                Ok(_) => prop_assert!(after.1 <= before.1 + bytes, "{words:?}: {} + {bytes} < {}", before.1, after.1),
                // Room that the engine had in reserve may be given back.
                Err(_) => {
                    prop_assert!(after.1 <= before.1);
                    prop_assert_eq!((before.0, before.2, before.3, before.4), (after.0, after.2, after.3, after.4));
                }
            }
            if some {
                apply(&mut held, 2);
            }
        }
        let done = apply(&mut held, usize::MAX);
        for key in ["a", "b", "c"] {
            let shown = value(&held, key).map(String::into_bytes);
            prop_assert_eq!(shown.as_ref(), done.get(key.as_bytes()));
        }
        prop_assert!(held.queue.is_empty() && held.queue.bytes() == 0);
    }
}
