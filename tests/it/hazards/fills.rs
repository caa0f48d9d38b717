//! What a miss may store, and how long it is served: C01 to C09.

use std::time::{Duration, Instant};

use super::{Real, Scripted, bulk, fill, is_served, is_stored, sleep_until, wait_served};
use crate::support::{Dir, PATIENCE, Reply, Scope, eventually, fake};

/// Redis counts whole milliseconds, and a key lives through the one in which it expires.
const GRAIN: Duration = Duration::from_millis(2);

#[test]
fn c01_basic() {
    let real = Real::start();
    real.redis.cmd(&["SET", "k", "1"]);
    let mut c1 = real.proxy.client();
    fill(&mut c1, "k", "1");
    assert_eq!(c1.cmd(&["GET", "k"]), Reply::bulk("1"));
    assert_eq!((real.calls("get"), real.calls("pttl")), (1, 1));
    assert_eq!(real.proxy.stat("hits"), 1.0);
}

#[test]
fn c02_foreign_write() {
    let real = Real::start();
    real.redis.cmd(&["SET", "k", "1"]);
    let mut c1 = real.proxy.client();
    fill(&mut c1, "k", "1");
    real.redis.cmd(&["SET", "k", "2"]);
    eventually(PATIENCE, "the push", || real.proxy.stat("invalidations_push") == 1.0);
    assert_eq!(c1.cmd(&["GET", "k"]), Reply::bulk("2"));
    assert_eq!(real.calls("get"), 2);
}

#[test]
fn c03_missing_key() {
    let real = Real::start();
    let mut c1 = real.proxy.client();
    fill(&mut c1, "nx", None);
    assert_eq!(c1.cmd(&["GET", "nx"]), Reply::Nil);
    assert_eq!(real.calls("get"), 1, "the second nil is a hit");
    real.redis.cmd(&["SET", "nx", "1"]);
    eventually(PATIENCE, "the push", || real.proxy.stat("invalidations_push") == 1.0);
    assert_eq!(c1.cmd(&["GET", "nx"]), Reply::bulk("1"));
}

#[test]
fn c04_push_inside_the_window() {
    let mut s = Scripted::start();
    let mut c1 = s.proxy.client();
    c1.send_cmd(&["GET", "k"]);
    s.lane.expect(&["GET", "k"]).reply([bulk("v1").into_bytes(), fake::invalidation(&["k"])].concat());
    s.lane.expect(&["PTTL", "k"]).reply(":-1\r\n");
    assert_eq!(c1.reply(), Reply::bulk("v1"));
    eventually(PATIENCE, "the refusal", || s.proxy.stat("fills_discarded_push") == 1.0);
    assert!(!is_stored(&mut c1, "k"));
    s.miss(&mut c1, "k");
}

#[test]
fn c05_push_before_the_get_reply() {
    let mut s = Scripted::start();
    let mut c1 = s.proxy.client();
    c1.send_cmd(&["GET", "k"]);
    s.lane.expect(&["GET", "k"]).invalidate(&["k"]).reply(bulk("v2")).expect(&["PTTL", "k"]).reply(":-1\r\n");
    assert_eq!(c1.reply(), Reply::bulk("v2"));
    // R12 as built is stricter than it has to be: any push between send and last reply takes the right to store.
    eventually(PATIENCE, "the refusal", || s.proxy.stat("fills_discarded_push") == 1.0);
    assert!(!is_stored(&mut c1, "k"));
}

#[test]
fn c06_get_and_pttl_disagree() {
    let mut s = Scripted::start();
    let mut c1 = s.proxy.client3();
    let cases =
        [("gone", bulk("v"), ":-2\r\n"), ("came", "_\r\n".into(), ":5000\r\n"), ("still", "_\r\n".into(), ":-1\r\n")];
    for (n, (key, value, pttl)) in cases.iter().enumerate() {
        c1.send_cmd(&["GET", key]);
        s.lane.expect(&["GET", *key]).reply(value).expect(&["PTTL", *key]).reply(pttl);
        assert_eq!(c1.read_reply_raw(), value.as_bytes(), "{key}");
        let refused = (n + 1) as f64;
        eventually(PATIENCE, "the refusal", || s.proxy.stat("fills_discarded_inconsistent") == refused);
        assert!(!is_stored(&mut c1, key), "{key}");
    }
}

#[test]
fn c07_logical_expiry() {
    let real = Real::start();
    real.redis.cmd(&["DEBUG", "SET-ACTIVE-EXPIRE", "0"]);
    let mut c1 = real.proxy.client();
    real.redis.cmd(&["SET", "k", "v", "PX", "1000"]);
    let gone = Instant::now() + Duration::from_millis(1000) + GRAIN;
    assert_eq!(c1.cmd(&["GET", "k"]), Reply::bulk("v"));
    wait_served(&mut c1, "k");
    sleep_until(gone);
    assert_eq!(real.proxy.stat("invalidations_push"), 0.0, "nothing has told us");
    let asked = real.calls("get");
    assert_eq!(c1.cmd(&["GET", "k"]), Reply::Nil);
    assert_eq!(real.calls("get"), asked + 1);
}

#[test]
fn c08_expiry_edge() {
    let real = Real::start();
    let mut c1 = real.proxy.client();
    fill(&mut c1, "other", None);
    let travel = Duration::from_millis(100);
    real.relay.delay(Scope::Existing, Dir::Up, travel);
    real.relay.delay(Scope::Existing, Dir::Down, travel);
    assert_eq!(real.redis.cmd(&["SET", "k", "v", "PX", "1200"]), Reply::ok());
    let expired = Instant::now() + Duration::from_millis(1200) + GRAIN;
    assert_eq!(c1.cmd(&["GET", "k"]), Reply::bulk("v"));
    wait_served(&mut c1, "k");
    // By the time of receipt the entry would be served up to 100 ms too long, and only then told of the expiry.
    let mut late = None;
    while Instant::now() < expired + 3 * travel {
        let asked = Instant::now();
        if c1.cmd(&["GET", "k"]) != Reply::Nil && asked >= expired {
            late = Some(asked - expired);
        }
    }
    assert_eq!(late, None, "served after its expiry");
    assert!(real.proxy.stat("hits") > 0.0);
}

/// What is no hit: who joins a read under way has its answer, sent when the key was there. Nothing of it is stored.
#[test]
fn a_read_that_joins_another_has_its_answer_and_the_next_one_finds_the_key_gone() {
    let real = Real::start();
    let (mut c1, mut c2) = (real.proxy.client(), real.proxy.client());
    fill(&mut c1, "other", None);
    let (calls, joined) = (real.calls("get"), real.proxy.stat("coalesced"));
    real.relay.stall(Scope::Existing, Dir::Down);
    assert_eq!(real.redis.cmd(&["SET", "k", "v", "PX", "150"]), Reply::ok());
    c1.send_cmd(&["GET", "k"]);
    eventually(PATIENCE, "the first to be answered upstream", || real.calls("get") > calls);
    eventually(PATIENCE, "the key to be gone", || real.redis.cmd(&["EXISTS", "k"]) == Reply::Int(0));
    c2.send_cmd(&["GET", "k"]);
    eventually(PATIENCE, "the second to join", || real.proxy.stat("coalesced") > joined);
    real.relay.resume(Scope::Existing, Dir::Down);
    assert_eq!((c1.frame(), c2.frame()), (Reply::bulk("v"), Reply::bulk("v")));
    assert_eq!(c2.cmd(&["GET", "k"]), Reply::Nil);
}

#[test]
fn c09_expired_during_a_pause() {
    let real = Real::start();
    real.redis.cmd(&["DEBUG", "SET-ACTIVE-EXPIRE", "0"]);
    let (mut c1, mut w) = (real.proxy.client(), real.redis.client());
    w.cmd(&["SET", "k", "v", "PX", "1000"]);
    let gone = Instant::now() + Duration::from_millis(1000) + GRAIN;
    assert_eq!(c1.cmd(&["GET", "k"]), Reply::bulk("v"));
    w.cmd(&["CLIENT", "PAUSE", "60000", "WRITE"]);
    sleep_until(gone);
    // Redis says nil and keeps the key until the pause ends: nil and -2 are one state, so a nil may be kept.
    assert_eq!(c1.cmd(&["GET", "k"]), Reply::Nil);
    wait_served(&mut c1, "k");
    assert_eq!(c1.cmd(&["GET", "k"]), Reply::Nil);
    assert_eq!(real.proxy.stat("invalidations_push"), 0.0, "nothing is deleted during the pause");
    w.cmd(&["CLIENT", "UNPAUSE"]);
    w.cmd(&["SET", "k", "2"]);
    eventually(PATIENCE, "the push", || !is_served(&mut c1, "k"));
    assert_eq!(c1.cmd(&["GET", "k"]), Reply::bulk("2"));
}
