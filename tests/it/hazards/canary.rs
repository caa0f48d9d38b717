//! Tracking is trusted when an invalidation has come, not because OK was said (decision 7).

use serde_json::Value;

use super::{LONG_LEASE, QUIET, bulk, is_stored, wait_served};
use crate::support::{Fake, PATIENCE, Proxy, Redis, Reply, eventually};

fn mode(proxy: &Proxy) -> String {
    proxy.stats()["coherence"].clone()
}

#[test]
fn c27_an_arming_lane_forwards_and_stores_nothing() {
    // The canary's write stays unanswered: nothing is proved, and nobody waits for it.
    let fake = Fake::builder().scripted("SET").start();
    let proxy = Proxy::upstream(&fake.url()).set("coherence.max_staleness", LONG_LEASE).start();
    let (mut lane, mut c1) = (fake.lane(), proxy.client());
    let mut other = fake.other();
    for value in ["1", "2"] {
        c1.send_cmd(&["GET", "k"]);
        lane.expect(&["GET", "k"]).reply(bulk(value));
        assert_eq!(c1.reply(), Reply::bulk(value));
    }
    c1.send_cmd(&["MGET", "k", "l"]);
    lane.expect(&["MGET", "k", "l"]).reply("*2\r\n_\r\n_\r\n");
    assert_eq!(c1.reply(), Reply::Array(vec![Reply::Nil, Reply::Nil]));
    assert!(!is_stored(&mut c1, "k"));
    let stats = proxy.stats();
    assert_eq!((stats["coherence"].as_str(), stats["bypass_not_live"].as_str()), ("probing", "4"));
    assert!(proxy.get("/health").body.contains("lanes: 1 of 1 arming"));
    // The invalidation, and from then on everything is as usual.
    let set = other.next();
    assert_eq!((set[0].as_slice(), &set[3..]), (&b"SET"[..], &[b"PX".to_vec(), b"1000".to_vec()][..]));
    lane.invalidate(&[&set[1]]);
    eventually(PATIENCE, "tracking", || mode(&proxy) == "tracking");
    c1.send_cmd(&["GET", "k"]);
    lane.expect(&["GET", "k"]).reply(bulk("3")).expect(&["PTTL", "k"]).reply(":-1\r\n");
    assert_eq!(c1.reply(), Reply::bulk("3"));
    wait_served(&mut c1, "k");
}

/// OK to CLIENT TRACKING, and then no invalidation: an upstream that lies.
#[test]
fn c28_an_upstream_that_only_says_ok() {
    let fake = Fake::builder().answer("SET", "+OK\r\n").start();
    let proxy = Proxy::upstream(&fake.url()).set("coherence.mode", "tracking").start();
    let mut lane = fake.accept();
    eventually(PATIENCE, "its end", || mode(&proxy) == "none");
    let mut c1 = proxy.client();
    c1.send_cmd(&["GET", "k"]);
    lane.expect(&["GET", "k"]).reply(bulk("1"));
    assert_eq!(c1.reply(), Reply::bulk("1"));
    assert_eq!(lane.try_next(QUIET), None, "nothing is stored");
    let stats = proxy.stats();
    assert_eq!(stats["coherence_why"], "the canary's invalidation has not come");
    proxy.wait_logged("served uncached");
    assert_eq!(proxy.metric("nearside_coherence_mode{mode=\"none\"}"), 1.0);
    assert_eq!(proxy.metric("nearside_invalidation_lag_seconds_count"), 0.0);
}

#[test]
fn c28_auto_takes_the_next_best_of_an_upstream_that_lies() {
    let fake = Fake::builder().answer("SET", "+OK\r\n").answer("MULTI", "-NOPERM no\r\n").answer("EXEC", "-ERR no\r\n");
    let fake = fake.answer("PUBLISH", "-NOPERM no\r\n").start();
    let proxy = Proxy::upstream(&fake.url()).start();
    eventually(PATIENCE, "the last resort", || mode(&proxy) == "ttl");
    let why = &proxy.stats()["coherence_why"];
    assert!(
        why.starts_with("the canary's invalidation has not come; upstream refused PUBLISH on the channel"),
        "{why}"
    );
    proxy.wait_logged("coherence falls back to ttl");
}

#[test]
fn the_canary_is_seen_and_gone() {
    let redis = Redis::start();
    let proxy = Proxy::upstream(&redis.url()).start();
    eventually(PATIENCE, "tracking", || mode(&proxy) == "tracking");
    assert_eq!(proxy.stats()["coherence_why"], "the canary's invalidation has come");
    assert_eq!(proxy.metric("nearside_invalidation_lag_seconds_count"), 1.0);
    eventually(PATIENCE, "an empty upstream", || redis.cmd(&["DBSIZE"]) == Reply::Int(0));
    let body: Value = serde_json::from_str(&proxy.get("/health").body).expect("JSON");
    assert_eq!((&body["coherence"], &body["status"]), (&Value::from("tracking"), &Value::from("ok")));
    proxy.wait_logged("coherence is tracking");
}

#[test]
fn an_interval_repeats_it() {
    let redis = Redis::start();
    let proxy = Proxy::upstream(&redis.url()).set("coherence.canary", "1s").start();
    eventually(PATIENCE, "three samples", || proxy.metric("nearside_invalidation_lag_seconds_count") >= 3.0);
    assert_eq!(mode(&proxy), "tracking");
    assert_eq!(proxy.count_logged("coherence is tracking"), 1, "a change is logged, not each proof");
}

/// Its keys are none of this user's: then OK has to do, and health says so.
#[test]
fn without_the_right_to_write_tracking_is_trusted() {
    let redis = Redis::start();
    redis.cmd(&["ACL", "SETUSER", "app", "on", ">pw", "~app:*", "&*", "+@all"]);
    redis.cmd(&["SET", "app:k", "1"]);
    let proxy = Proxy::upstream(&redis.url().replace("unix://", "unix://app:pw@")).start();
    eventually(PATIENCE, "tracking", || mode(&proxy) == "tracking");
    let why = &proxy.stats()["coherence_why"];
    assert!(why.starts_with("canary: no right to write: NOPERM"), "{why}");
    let body: Value = serde_json::from_str(&proxy.get("/health").body).expect("JSON");
    assert_eq!(body["coherence_why"], "canary: no right to write");
    assert_eq!(body["status"], "ok");
    let mut c1 = proxy.client();
    assert_eq!(c1.cmd(&["GET", "app:k"]), Reply::bulk("1"));
    wait_served(&mut c1, "app:k");
}

/// Between reading and writing its key everything is flushed: that is an invalidation too.
#[test]
fn c28_a_flush_under_way_is_no_lie() {
    let fake = Fake::builder().scripted("SET").start();
    let proxy = Proxy::upstream(&fake.url()).start();
    let mut lane = fake.lane();
    let mut other = fake.other();
    other.next();
    lane.flush();
    other.reply("+OK\r\n");
    eventually(PATIENCE, "tracking", || mode(&proxy) == "tracking");
}
