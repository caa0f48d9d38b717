//! Tracking that is not on yet, or is refused: C27, C28.

use super::{LONG_LEASE, QUIET, Real, Scripted, bulk, calls, fill, is_served, is_stored, wait_served};
use crate::support::{Client, Fake, PATIENCE, Proxy, Redis, Reply, eventually, no_tracking};

#[test]
fn c27_nothing_is_stored_before_tracking_is_on() {
    let fake = Fake::builder().scripted("CLIENT TRACKING").start();
    let proxy = Proxy::upstream(&fake.url()).set("coherence.max_staleness", LONG_LEASE);
    let proxy = proxy.set("coherence.canary", "off").start();
    let mut lane = fake.accept();
    lane.expect(&["CLIENT", "TRACKING", "ON"]);
    let mut c1 = proxy.client();
    c1.send_cmd(&["GET", "k"]);
    // Replies have an order: what is sent now is answered behind the OK. So it may as well wait for it.
    let early = lane.try_next(QUIET);
    lane.reply("+OK\r\n");
    let first = early.clone().unwrap_or_else(|| lane.next());
    assert_eq!(first, [b"GET".to_vec(), b"k".to_vec()]);
    lane.reply(bulk("1"));
    assert_eq!(c1.reply(), Reply::bulk("1"));
    if early.is_some() {
        c1.send_cmd(&["GET", "k"]);
        lane.expect(&["GET", "k"]);
    }
}

#[test]
fn c27_tracking_switched_on_under_way() {
    let fake = Fake::builder().scripted("CLIENT TRACKING").start();
    let proxy = Proxy::upstream(&fake.url()).set("coherence.max_staleness", LONG_LEASE);
    let proxy = proxy.set("coherence.canary", "off").start();
    let mut lane = fake.accept();
    lane.expect(&["CLIENT", "TRACKING", "ON"]).reply("+OK\r\n");
    let mut c1 = proxy.client();
    eventually(PATIENCE, "a lane", || proxy.stats()["coherence"] == "tracking");
    assert_eq!(c1.cmd(&["NEARSIDE", "MODE", "off"]), Reply::ok());
    lane.expect(&["CLIENT", "TRACKING", "OFF"]).reply("+OK\r\n");
    assert_eq!(c1.cmd(&["NEARSIDE", "MODE", "serve"]), Reply::ok());
    lane.expect(&["CLIENT", "TRACKING", "ON"]);
    c1.send_cmd(&["GET", "k"]);
    lane.expect(&["GET", "k"]).reply("+OK\r\n").reply(bulk("1"));
    assert_eq!(c1.reply(), Reply::bulk("1"));
    assert_eq!(lane.try_next(QUIET), None, "no PTTL: what was asked before the OK is not stored");
    assert!(!is_stored(&mut c1, "k"));
    c1.send_cmd(&["GET", "k"]);
    lane.expect(&["GET", "k"]).reply(bulk("1")).expect(&["PTTL", "k"]).reply(":-1\r\n");
    assert_eq!(c1.reply(), Reply::bulk("1"));
    wait_served(&mut c1, "k");
}

/// A user without the right to CLIENT TRACKING, beside the default user who has it.
fn two_users() -> (Real, Client, Client) {
    let real = Real::with(|builder| builder.set("coherence.mode", "tracking"));
    let rights = ["on", ">pw", "~*", "&*", "+@all"];
    let made = real.redis.cmd(&[&["ACL", "SETUSER", "limited"][..], &rights, &no_tracking()].concat());
    assert_eq!(made, Reply::ok());
    real.redis.cmd(&["SET", "k", "1"]);
    let (full, mut limited) = (real.proxy.client(), real.proxy.client());
    assert_eq!(limited.cmd(&["AUTH", "limited", "pw"]), Reply::ok());
    (real, full, limited)
}

#[test]
fn c28_a_user_without_the_right_is_served_uncached_and_no_other() {
    let (real, mut full, mut limited) = two_users();
    fill(&mut full, "k", "1");
    for n in 1..=3 {
        assert_eq!(limited.cmd(&["GET", "k"]), Reply::bulk("1"));
        assert_eq!(limited.cmd(&["MGET", "k", "k"]), Reply::bulks(&["1", "1"]));
        assert_eq!(real.calls("get"), 1 + n, "each is asked upstream");
    }
    assert!(is_stored(&mut full, "k"), "the copies of others stay");
    real.redis.cmd(&["SET", "k", "2"]);
    assert_eq!(limited.cmd(&["GET", "k"]), Reply::bulk("2"));
    assert!(!is_stored(&mut limited, "k"));
    eventually(PATIENCE, "the push", || !is_stored(&mut full, "k"));
    fill(&mut full, "k", "2");
    let asked = real.calls("get");
    assert_eq!(full.cmd(&["GET", "k"]), Reply::bulk("2"));
    assert_eq!(real.calls("get"), asked, "a hit");
}

#[test]
fn c28_the_refusal_shows() {
    let (real, mut full, mut limited) = two_users();
    fill(&mut full, "k", "1");
    assert_eq!(limited.cmd(&["GET", "k"]), Reply::bulk("1"));
    let stats = real.proxy.stats();
    assert_eq!(stats["coherence"], "tracking", "the default user's");
    assert_eq!(stats["bypass_tracking_refused"], "1");
    assert!(real.proxy.get("/health").body.contains("lanes: 1 of 2 untracked"));
    let why = limited.cmd(&["NEARSIDE", "EXPLAIN", "GET", "k"]).get("not_stored_because").text();
    assert!(why.contains("NOPERM"), "{why}");
    real.proxy.wait_logged("served uncached");
}

/// What the limited user writes is gone from everybody's L1 when it is told OK, whether the push has come or not.
#[test]
fn c28_its_writes_evict_for_all() {
    for write in [&["SET", "k", "2"][..], &["APPEND", "k", "2"], &["DEL", "k"]] {
        let (real, mut full, mut limited) = two_users();
        fill(&mut full, "k", "1");
        assert!(!limited.cmd(&["STRLEN", "k"]).is_error()); // its lane is there
        real.stall_lane();
        assert!(!limited.cmd(write).is_error());
        full.send_cmd(&["GET", "k"]);
        full.expect_silence(QUIET);
        real.resume_lane();
        assert_eq!(full.reply(), real.redis.cmd(&["GET", "k"]), "{write:?}");
    }
}

/// An undeclared key of its script: its reply waits for the lanes that have entries, though its own has none.
#[test]
fn c28_its_scripts_wait_for_the_lanes_that_cache() {
    let (real, mut full, mut limited) = two_users();
    fill(&mut full, "k", "1");
    assert!(!limited.cmd(&["STRLEN", "k"]).is_error());
    real.stall_lane();
    limited.send_cmd(&["EVAL", "return redis.call('SET','k','2')", "0"]);
    limited.expect_silence(QUIET);
    assert!(is_served(&mut full, "k"));
    real.resume_lane();
    assert_eq!(limited.reply(), Reply::ok());
    assert_eq!(full.cmd(&["GET", "k"]), Reply::bulk("2"));
}

#[test]
fn c28_an_upstream_without_tracking() {
    let fake = Fake::builder().answer("CLIENT TRACKING", "-ERR unknown subcommand 'TRACKING'\r\n").start();
    let mut s = Scripted::over(fake, |builder| builder.set("coherence.mode", "tracking"));
    let mut c1 = s.proxy.client();
    for value in ["1", "2"] {
        c1.send_cmd(&["GET", "k"]);
        s.lane.expect(&["GET", "k"]).reply(bulk(value));
        assert_eq!(c1.reply(), Reply::bulk(value));
    }
    c1.send_cmd(&["SET", "k", "3"]);
    s.lane.expect(&["SET", "k", "3"]).reply("+OK\r\n");
    assert_eq!(c1.reply(), Reply::ok());
    assert_eq!(s.lane.try_next(QUIET), None, "nothing is read back that cannot be stored");
    let stats = s.proxy.stats();
    assert_eq!((stats["coherence"].as_str(), stats["entries"].as_str()), ("none", "0"));
    assert!(s.proxy.get("/health").body.contains("lanes: 1 of 1 untracked"));
}

/// No RESP3, so no tracking, which is what was asked for: nothing is cached, and that is said.
#[test]
fn c28_an_upstream_without_resp3() {
    let redis = Redis::builder().args(&["--rename-command", "HELLO", ""]).start();
    let proxy = Proxy::upstream(&redis.url()).set("coherence.mode", "tracking").start();
    let (mut c1, mut c2) = (proxy.client(), proxy.client());
    assert_eq!(c1.cmd(&["SET", "k", "1"]), Reply::ok());
    assert_eq!(c2.cmd(&["GET", "k"]), Reply::bulk("1"));
    redis.cmd(&["SET", "k", "2"]);
    assert_eq!(c2.cmd(&["GET", "k"]), Reply::bulk("2"));
    assert_eq!(calls(&redis, "get"), 2);
    assert_eq!(proxy.stats()["coherence"], "none");
    let health = proxy.get("/health").body;
    assert!(health.contains("coherence: none on 1 of 1 lanes: upstream speaks no RESP3"), "{health}");
}
