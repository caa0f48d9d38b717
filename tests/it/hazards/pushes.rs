//! Invalidations in all their shapes: C29 to C35.

use super::{QUIET, Real, Scripted, bulk, fill, is_served, is_stored, wait_served};
use crate::support::{Client, Fake, PATIENCE, Reply, encode, eventually, fake};

#[test]
fn c29_foreign_flush() {
    for flush in [&[&["FLUSHALL"][..]][..], &[&["SELECT", "5"], &["FLUSHDB"]]] {
        let real = Real::start();
        let mut c1 = real.proxy.client();
        real.redis.cmd(&["MSET", "a", "1", "b", "2"]);
        fill(&mut c1, "a", "1");
        fill(&mut c1, "b", "2");
        real.redis.client().pipeline(flush);
        eventually(PATIENCE, "the null push", || real.proxy.stat("flushes_push") == 1.0);
        for key in ["a", "b"] {
            assert!(!is_stored(&mut c1, key), "{flush:?}");
            assert_eq!(c1.cmd(&["GET", key]), real.redis.cmd(&["GET", key]), "{flush:?}");
        }
    }
}

#[test]
fn c29_own_flush_in_a_pipeline() {
    let real = Real::start();
    let (mut c1, mut c2) = (real.proxy.client(), real.proxy.client());
    real.redis.cmd(&["SET", "k", "1"]);
    fill(&mut c1, "k", "1");
    let replies = c1.pipeline(&[&["GET", "k"][..], &["FLUSHALL"], &["GET", "k"]]);
    assert_eq!(replies, [Reply::bulk("1"), Reply::ok(), Reply::Nil]);
    assert_eq!(c2.cmd(&["GET", "k"]), Reply::Nil);
}

/// FLUSH* run on a connection of the session's own; at its reply nobody is served what was.
#[test]
fn c29_own_flush_against_the_push() {
    for flush in [&[&["FLUSHALL"][..]][..], &[&["FLUSHDB", "ASYNC"]], &[&["MULTI"], &["FLUSHALL"], &["EXEC"]]] {
        let real = Real::start();
        let (mut c1, mut c2) = (real.proxy.client(), real.proxy.client());
        real.redis.cmd(&["SET", "k", "1"]);
        fill(&mut c1, "k", "1");
        real.stall_lane();
        assert!(!c1.pipeline(flush).iter().any(Reply::is_error));
        c2.send_cmd(&["GET", "k"]);
        c2.expect_silence(QUIET);
        real.resume_lane();
        assert_eq!(c2.reply(), Reply::Nil, "{flush:?}");
    }
}

/// What is read between FLUSHALL and its OK may be from before it.
#[test]
fn c29_fetch_between_an_own_flush_and_its_reply() {
    let mut s = Scripted::start();
    let (mut c1, mut c2) = (s.proxy.client(), s.proxy.client());
    c1.send_cmd(&["FLUSHALL"]);
    let mut pinned = s.fake.other();
    pinned.expect(&["FLUSHALL"]);
    c2.send_cmd(&["GET", "k"]);
    s.lane.expect(&["GET", "k"]).expect(&["PTTL", "k"]);
    pinned.reply("+OK\r\n");
    assert_eq!(c1.reply(), Reply::ok());
    s.lane.reply(bulk("old")).reply(":-1\r\n");
    assert_eq!(c2.reply(), Reply::bulk("old"));
    eventually(PATIENCE, "the refusal", || s.proxy.stat("fills_discarded_flush") == 1.0);
    assert!(!is_stored(&mut c2, "k"));
}

#[test]
fn c30_null_push_while_fetching() {
    let mut s = Scripted::start();
    let mut c1 = s.proxy.client();
    c1.send_cmd(&["GET", "k"]);
    s.lane.expect(&["GET", "k"]).reply(bulk("v1")).flush().expect(&["PTTL", "k"]).reply(":-1\r\n");
    assert_eq!(c1.reply(), Reply::bulk("v1"));
    eventually(PATIENCE, "the refusal", || s.proxy.stat("fills_discarded_flush") == 1.0);
    s.miss(&mut c1, "k");
}

/// More pushes at once than the sidecar can take at that moment: hits are answered all the while.
#[test]
fn a_storm_of_pushes_does_not_keep_hits_waiting() {
    const PUSHES: usize = 60_000;
    let mut s = Scripted::start();
    let mut c1 = s.proxy.client();
    s.fill(&mut c1, "k", "1");
    let all: Vec<u8> = (0..PUSHES).flat_map(|i| fake::invalidation(&[format!("other{i}")])).collect();
    let (lane, proxy) = (&mut s.lane, &s.proxy);
    std::thread::scope(|scope| {
        scope.spawn(|| lane.send(&all));
        eventually(PATIENCE, "the storm", || proxy.stat("invalidations_push") > 0.0);
        let mut hits = 0;
        while proxy.stat("invalidations_push") < PUSHES as f64 {
            assert_eq!(c1.cmd(&["GET", "k"]), Reply::bulk("1"));
            hits += 1;
        }
        // One in every few turns; where whole buffers go first it is one in thousands.
        assert!(hits >= 60, "{hits} answers while {PUSHES} pushes were applied");
    });
}

#[test]
fn c31_multi_key_push() {
    let mut s = Scripted::start();
    let mut c1 = s.proxy.client();
    for key in ["a", "b", "c", "d"] {
        s.fill(&mut c1, key, "1");
    }
    s.lane.invalidate(&["a", "b", "c"]);
    eventually(PATIENCE, "the push", || s.proxy.stat("invalidations_push") == 3.0);
    assert_eq!(["a", "b", "c", "d"].map(|key| is_stored(&mut c1, key)), [false, false, false, true]);
}

#[test]
fn c32_a_push_inside_an_mget() {
    let mut s = Scripted::start();
    let mut c1 = s.proxy.client();
    s.fill(&mut c1, "other", "1");
    c1.send_cmd(&["MGET", "m1", "m2"]);
    let inner = fake::invalidation(&["m2", "other"]);
    s.lane.expect(&["MGET", "m1", "m2"]).reply([b"*2\r\n$1\r\na\r\n".as_slice(), &inner, b"_\r\n"].concat());
    assert_eq!(c1.read_reply_raw(), b"*2\r\n$1\r\na\r\n$-1\r\n");
    s.lane.expect(&["PTTL", "m1"]).expect(&["PTTL", "m2"]).reply(":-1\r\n").reply(":-2\r\n");
    wait_served(&mut c1, "m1");
    eventually(PATIENCE, "the refusal", || s.proxy.stat("fills_discarded_push") == 1.0);
    assert!(!is_stored(&mut c1, "m2") && !is_stored(&mut c1, "other"));
    s.miss(&mut c1, "m2");
}

/// A pushed frame in the middle of what is relayed byte for byte: an array inside an array, at the front, at the end.
#[test]
fn c32_a_push_inside_a_relayed_reply() {
    let mut s = Scripted::start();
    let mut c1 = s.proxy.client3();
    s.fill(&mut c1, "k", "1");
    let inner = fake::invalidation(&["k"]);
    c1.send_cmd(&["LRANGE", "l", "0", "-1"]);
    let nested = [b"*2\r\n".as_slice(), &inner, b"*1\r\n$1\r\nx\r\n", &inner, b"$1\r\ny\r\n"].concat();
    s.lane.expect(&["LRANGE", "l", "0", "-1"]).reply(nested);
    assert_eq!(c1.read_reply_raw(), b"*2\r\n*1\r\n$1\r\nx\r\n$1\r\ny\r\n");
    assert!(!is_stored(&mut c1, "k"));
    s.fill(&mut c1, "k", "2");
}

/// What upstream embeds in the EXEC of a client that tracks by itself is that client's, as it comes.
#[test]
fn c32_a_push_inside_an_exec() {
    let s = Scripted::start();
    let mut c1 = s.proxy.client3();
    c1.send(&[encode(&["MULTI"]), encode(&["SET", "k", "1"]), encode(&["EXEC"]), encode(&["ECHO", "x"])].concat());
    let mut pinned = s.fake.other();
    pinned.expect(&["MULTI"]).reply("+OK\r\n").expect(&["SET", "k", "1"]).reply("+QUEUED\r\n");
    let exec = [b"*1\r\n".as_slice(), &fake::invalidation(&["k"]), b"+OK\r\n"].concat();
    pinned.expect(&["EXEC"]).reply(&exec);
    assert_eq!((c1.reply(), c1.reply()), (Reply::ok(), Reply::status("QUEUED")));
    assert_eq!(c1.read_reply_raw(), exec);
    // Whichever connection it takes: the stream is in step.
    let mut lane = s.lane;
    match pinned.try_next(QUIET) {
        Some(_) => pinned.reply(bulk("x")),
        None => lane.expect(&["ECHO", "x"]).reply(bulk("x")),
    };
    assert_eq!(c1.reply(), Reply::bulk("x"));
}

#[test]
fn c33_push_before_the_own_reply() {
    let mut s = Scripted::over(Fake::start(), |builder| builder.set("cache.on_write", "invalidate"));
    let (mut c1, mut c2) = (s.proxy.client(), s.proxy.client());
    s.fill(&mut c2, "k", "1");
    c1.send_cmd(&["SET", "k", "2"]);
    s.lane.expect(&["SET", "k", "2"]).invalidate(&["k"]).reply("+OK\r\n");
    assert_eq!(c1.reply(), Reply::ok());
    s.miss(&mut c2, "k");
    s.lane.reply(bulk("2")).expect(&["PTTL", "k"]).reply(":-1\r\n");
    assert_eq!(c2.reply(), Reply::bulk("2"));
    wait_served(&mut c2, "k");
    assert_eq!(s.proxy.stat("pending_writes"), 0.0);
}

/// An own push before or behind the reply is part of what a refresh reads: GET's value has it.
#[test]
fn c33_an_update_survives_its_own_push_on_either_side() {
    for push_first in [true, false] {
        let mut s = Scripted::start();
        let mut c1 = s.proxy.client();
        s.fill(&mut c1, "k", "1");
        c1.send_cmd(&["SET", "k", "2"]);
        s.lane.expect(&["SET", "k", "2"]);
        let (push, ok) = (fake::invalidation(&["k"]), b"+OK\r\n".to_vec());
        s.lane.reply(if push_first { [push, ok].concat() } else { [ok, push].concat() });
        assert_eq!(c1.reply(), Reply::ok());
        s.lane.expect(&["GET", "k"]).reply(bulk("2")).expect(&["PTTL", "k"]).reply(":-1\r\n");
        wait_served(&mut c1, "k");
        assert_eq!(s.proxy.stat("refreshes_stored"), 1.0);
    }
}

/// 7.4 says FLUSHALL's null push before its OK, 7.0 behind it, and on the lane it is not ordered with either.
#[test]
fn c33_null_push_around_an_own_flush() {
    for push_first in [true, false] {
        let mut s = Scripted::start();
        let (mut c1, mut c2) = (s.proxy.client(), s.proxy.client());
        s.fill(&mut c2, "k", "1");
        c1.send_cmd(&["FLUSHALL"]);
        let mut pinned = s.fake.other();
        pinned.expect(&["FLUSHALL"]);
        assert!(!is_stored(&mut c2, "k"), "gone before it is sent");
        if push_first {
            s.lane.flush();
            eventually(PATIENCE, "the null push", || s.proxy.stat("flushes_push") == 1.0);
        }
        pinned.reply("+OK\r\n");
        assert_eq!(c1.reply(), Reply::ok());
        s.miss(&mut c2, "k");
        s.lane.reply("_\r\n").expect(&["PTTL", "k"]).reply(":-2\r\n");
        assert_eq!(c2.reply(), Reply::Nil);
    }
}

#[test]
fn c34_other_db() {
    let real = Real::start();
    let mut c1 = real.proxy.client();
    real.redis.cmd(&["SET", "k", "1"]);
    fill(&mut c1, "k", "1");
    real.redis.client().pipeline(&[&["SELECT", "3"][..], &["SET", "k", "x"]]);
    eventually(PATIENCE, "the push", || !is_stored(&mut c1, "k"));
    assert_eq!(c1.cmd(&["GET", "k"]), Reply::bulk("1"));
}

/// The same name in two databases: each client is served its own, and a write in one of them drops both.
#[test]
fn c34_entries_of_two_databases() {
    let real = Real::start();
    let (mut zero, mut three) = (real.proxy.client(), real.proxy.client());
    zero.cmd(&["SET", "k", "zero"]);
    three.cmd(&["SELECT", "3"]);
    fill(&mut three, "k", None);
    three.cmd(&["SET", "k", "three"]);
    for (client, value) in [(&mut three, "three"), (&mut zero, "zero")] {
        // The pushes of the two SETs come on two connections, in any order: one may still drop what has just been read.
        eventually(PATIENCE, value, || {
            assert_eq!(client.cmd(&["GET", "k"]), Reply::bulk(value));
            is_served(client, "k")
        });
    }
    assert_eq!(three.cmd(&["GET", "k"]), Reply::bulk("three"));
    zero.cmd(&["DEL", "k"]);
    assert!(!is_stored(&mut three, "k"));
    assert_eq!(three.cmd(&["GET", "k"]), Reply::bulk("three"));
    assert_eq!(zero.cmd(&["GET", "k"]), Reply::Nil);
}

/// Commands with several keys, and those of them that change.
const SEVERAL: &[(&[&str], &[&str])] = &[
    (&["RENAME", "a", "b"], &["a", "b"]),
    (&["RENAMENX", "a", "new"], &["a", "new"]),
    (&["COPY", "a", "b", "REPLACE"], &["b"]),
    (&["MSET", "a", "7", "b", "8", "new", "9"], &["a", "b", "new"]),
    (&["MSETNX", "new", "7", "new2", "8"], &["new", "new2"]),
    (&["DEL", "a", "b", "c"], &["a", "b", "c"]),
    (&["UNLINK", "a", "b"], &["a", "b"]),
    (&["BITOP", "AND", "b", "a", "c"], &["b"]),
    (&["SORT", "a", "STORE", "b"], &["b"]),
    (&["MOVE", "a", "4"], &["a"]),
];

const ALL: [&str; 5] = ["a", "b", "c", "new", "new2"];

#[test]
fn c35_foreign_commands_with_several_keys() {
    let real = Real::start();
    let mut c1 = real.proxy.client();
    for (command, changed) in SEVERAL.iter().filter(|(command, _)| command[0] != "SORT") {
        let flushed = real.proxy.stat("flushes_push");
        real.redis.cmd(&["FLUSHALL"]);
        eventually(PATIENCE, "the null push", || real.proxy.stat("flushes_push") > flushed);
        real.redis.cmd(&["MSET", "a", "1", "b", "2", "c", "3"]);
        read_all(&mut c1);
        assert!(!real.redis.cmd(command).is_error(), "{command:?}");
        eventually(PATIENCE, &format!("{command:?}"), || !changed.iter().any(|key| is_stored(&mut c1, key)));
        for key in ALL {
            assert_eq!(c1.cmd(&["GET", key]), real.redis.cmd(&["GET", key]), "{key} after {command:?}");
        }
    }
}

fn read_all(client: &mut Client) {
    ALL.iter().for_each(|key| drop(client.cmd(&["GET", key])));
    ALL.iter().for_each(|key| wait_served(client, key));
}

/// Own ones: dropped before they are sent, and once more at their reply, without any push.
#[test]
fn c35_own_commands_with_several_keys() {
    for (command, changed) in SEVERAL {
        let mut s = Scripted::over(Fake::start(), |builder| builder.set("cache.on_write", "invalidate"));
        let (mut c1, mut c2) = (s.proxy.client(), s.proxy.client());
        changed.iter().for_each(|key| s.fill(&mut c2, key, "1"));
        c1.send_cmd(command);
        s.lane.expect(command);
        assert!(!changed.iter().any(|key| is_stored(&mut c2, key)), "{command:?} is sent");
        // What is read while it is under way may be from before it.
        for key in *changed {
            s.miss(&mut c2, key);
        }
        assert_eq!(s.lane.try_next(QUIET), None, "no PTTL: nothing may be stored now");
        s.lane.reply(":1\r\n");
        assert_eq!(c1.reply(), Reply::Int(1));
        for _ in *changed {
            s.lane.reply(bulk("1"));
        }
        changed.iter().for_each(|_| assert_eq!(c2.reply(), Reply::bulk("1")));
        assert!(!changed.iter().any(|key| is_stored(&mut c2, key)), "{command:?} is answered");
        assert_eq!(s.proxy.stat("pending_writes"), 0.0);
    }
}
