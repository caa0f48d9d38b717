//! `outage.writes: queue`: what is acknowledged while upstream is gone, what is read of it, and what upstream has of it
//! afterwards.

use super::{lasting, quick, wait_back, wait_gone, warm};
use crate::support::{Client, PATIENCE, Proxy, Redis, Relay, Reply, Scope, encode, eventually, proxy};

/// A sidecar that queues.
pub(super) fn queueing(redis: &Redis) -> proxy::Builder {
    quick(Proxy::to(redis)).set("outage.writes", "queue")
}

/// Whether everything that was queued has come to its end.
#[track_caller]
pub(super) fn wait_replayed(proxy: &Proxy) {
    eventually(PATIENCE, "the queue to be done", || proxy.metric("nearside_queue_depth") == 0.0);
}

pub(super) fn replayed(proxy: &Proxy, result: &str) -> f64 {
    proxy.metric(&format!("nearside_queue_replayed_total{{result=\"{result}\"}}"))
}

pub(super) fn not_queued(reply: &Reply, why: &str) {
    let text = reply.text();
    assert!(reply.is_error() && text.starts_with(super::UNAVAILABLE), "{reply:?}");
    assert!(text.contains(" s); this write cannot be queued: ") && text.contains(why), "{text}");
}

#[test]
fn writes_are_acknowledged_read_and_done() {
    let mut redis = lasting();
    redis.cmd(&["MSET", "n", "41", "gone", "x", "other", "o"]);
    redis.cmd(&["SET", "ttl", "v", "PX", "600000"]);
    let proxy = queueing(&redis).start();
    let mut c = proxy.client();
    for key in ["n", "gone", "ttl", "other"] {
        warm(&proxy, &mut c, key);
    }
    redis.stop();
    wait_gone(&proxy);
    assert_eq!(c.cmd(&["SET", "new", "1", "EX", "100"]), Reply::ok());
    assert_eq!(c.cmd(&["INCR", "n"]), Reply::Int(42));
    assert_eq!(c.cmd(&["INCRBY", "n", "8"]), Reply::Int(50));
    assert_eq!(c.cmd(&["DEL", "gone"]), Reply::Int(1));
    assert_eq!(c.cmd(&["APPEND", "ttl", "w"]), Reply::Int(2));
    assert_eq!(c.cmd(&["GETDEL", "new"]), Reply::bulk("1"));
    assert_eq!(c.cmd(&["SET", "new", "2", "NX"]), Reply::ok());
    not_queued(&c.cmd(&["INCR", "unknown"]), "the value of its key is not known here");
    not_queued(&c.cmd(&["LPUSH", "list", "a"]), "it needs an upstream");
    not_queued(&c.cmd(&["DEL", "n", "unknown"]), "not known here");
    assert_eq!(c.cmd(&["GET", "n"]), Reply::bulk("50"));
    assert_eq!(c.cmd(&["STRLEN", "ttl"]), Reply::Int(2));
    assert_eq!(
        c.cmd(&["MGET", "n", "gone", "other", "new"]).items(),
        [Reply::bulk("50"), Reply::Nil, Reply::bulk("o"), Reply::bulk("2")]
    );
    assert!(proxy.metric("nearside_queue_depth") >= 6.0);
    redis.restart();
    wait_replayed(&proxy);
    wait_back(&proxy);
    assert_eq!(
        redis.cmd(&["MGET", "n", "gone", "ttl", "new"]).items(),
        [Reply::bulk("50"), Reply::Nil, Reply::bulk("vw"), Reply::bulk("2")]
    );
    assert!(matches!(redis.cmd(&["PTTL", "ttl"]), Reply::Int(left) if left > 500_000));
    assert_eq!(redis.cmd(&["PTTL", "new"]), Reply::Int(-1));
    assert_eq!(c.cmd(&["GET", "n"]), Reply::bulk("50"));
    assert_eq!(c.cmd(&["INCR", "n"]), Reply::Int(51), "by upstream again");
    assert_eq!(proxy.stat("pending_writes"), 0.0);
    assert_eq!(replayed(&proxy, "conflict_overwritten"), 0.0);
    assert_eq!(replayed(&proxy, "unknown_base"), 1.0, "of `new` nothing was known");
}

/// A proxy behind a relay whose connections are refused: upstream lives, and others write to it.
pub(super) fn cut_off(
    builder: impl Fn(proxy::Builder) -> proxy::Builder,
    warmed: &[&str],
) -> (Redis, Relay, Proxy, Client) {
    let redis = Redis::start();
    let relay = Relay::to(&redis);
    let proxy = builder(quick(Proxy::upstream(&relay.url())).set("outage.writes", "queue")).start();
    let mut c = proxy.client();
    for key in warmed {
        redis.cmd(&["SET", key, "1"]);
        warm(&proxy, &mut c, key);
    }
    lose(&relay, &proxy);
    (redis, relay, proxy, c)
}

pub(super) fn lose(relay: &Relay, proxy: &Proxy) {
    relay.refuse();
    relay.cut(Scope::Existing);
    wait_gone(proxy);
}

#[test]
fn a_pipeline_sees_its_own_writes_and_mutes_hold() {
    let (redis, relay, proxy, mut c) = cut_off(|b| b, &["n"]);
    let all = c.pipeline(
        &[
            &["INCR", "n"][..],
            &["GET", "n"],
            &["CLIENT", "REPLY", "SKIP"],
            &["SET", "m", "1"],
            &["INCR", "m"],
            &["MULTI"],
            &["EXISTS", "m", "n"],
            &["TYPE", "m"],
        ][..2],
    );
    assert_eq!(all, [Reply::Int(2), Reply::bulk("2")]);
    c.send(&[encode(&["CLIENT", "REPLY", "SKIP"]), encode(&["SET", "m", "1"]), encode(&["INCR", "m"])].concat());
    assert_eq!(c.reply(), Reply::Int(2));
    super::refused(&c.cmd(&["MULTI"]));
    super::refused(&c.cmd(&["WATCH", "m"]));
    assert_eq!(c.cmd(&["EXISTS", "m", "n"]), Reply::Int(2));
    assert_eq!(c.cmd(&["TYPE", "m"]), Reply::status("string"));
    let mut c3 = proxy.client3();
    assert_eq!(c3.cmd(&["GETDEL", "m"]), Reply::bulk("2"));
    assert_eq!(c3.cmd(&["GET", "m"]), Reply::Nil);
    let entry = c.cmd(&["NEARSIDE", "ENTRY", "n"]);
    assert_eq!(entry.get("waits_for_upstream"), Reply::bulk("yes"));
    relay.heal();
    wait_replayed(&proxy);
    assert_eq!(redis.cmd(&["MGET", "n", "m"]).items(), [Reply::bulk("2"), Reply::Nil]);
    assert_eq!(super::until_answered(&mut c, &["GET", "n"]), Reply::bulk("2"));
}

#[test]
fn a_full_queue_refuses_and_drops_nothing() {
    let (redis, relay, proxy, mut c) =
        cut_off(|b| b.set("outage.queue_max", 3).set("outage.queue_max_bytes", "64KiB"), &["n"]);
    assert_eq!(c.cmd(&["INCR", "n"]), Reply::Int(2));
    not_queued(&c.cmd(&["MSET", "a", "1", "b", "2", "c", "3"]), "outage.queue_max)");
    assert_eq!(c.cmd(&["GET", "n"]), Reply::bulk("2"));
    super::refused(&c.cmd(&["GET", "a"]));
    not_queued(&c.cmd(&["SET", "big", &"x".repeat(60 << 10)]), "outage.queue_max_bytes)");
    not_queued(&c.cmd(&["SETRANGE", "n", "100000000", "x"]), "outage.queue_max_bytes)");
    assert_eq!(c.cmd(&["GET", "n"]), Reply::bulk("2"), "as it was before the refusal");
    assert_eq!(c.cmd(&["MSET", "a", "1", "b", "2"]), Reply::ok());
    not_queued(&c.cmd(&["SET", "one", "more"]), "outage.queue_max)");
    not_queued(&c.cmd(&["INCR", "n"]), "outage.queue_max)");
    assert_eq!(c.cmd(&["GET", "n"]), Reply::bulk("2"));
    assert_eq!(proxy.metric("nearside_queue_depth"), 3.0);
    assert_eq!(proxy.metric("nearside_queue_refused_total{reason=\"queue_max\"}"), 3.0);
    assert_eq!(proxy.metric("nearside_queue_refused_total{reason=\"queue_max_bytes\"}"), 2.0);
    relay.heal();
    wait_replayed(&proxy);
    assert_eq!(
        redis.cmd(&["MGET", "n", "a", "b", "c", "big", "one"]).items(),
        [Reply::bulk("2"), Reply::bulk("1"), Reply::bulk("2"), Reply::Nil, Reply::Nil, Reply::Nil]
    );
    assert_eq!(proxy.metric("nearside_queue_bytes"), 0.0);
}

#[test]
fn databases_and_users_have_queues_of_their_own() {
    let redis = Redis::start();
    redis.cmd(&["ACL", "SETUSER", "ann", "on", ">a", "~*", "&*", "+@all"]);
    let relay = Relay::to(&redis);
    let proxy = quick(Proxy::upstream(&relay.url())).set("outage.writes", "queue").start();
    let (mut zero, mut one, mut ann) = (proxy.client(), proxy.client(), proxy.client());
    one.cmd(&["SELECT", "1"]);
    assert_eq!(ann.cmd(&["AUTH", "ann", "a"]), Reply::ok());
    for c in [&mut zero, &mut one, &mut ann] {
        super::until_answered(c, &["GET", "k"]);
    }
    lose(&relay, &proxy);
    for (c, value) in [(&mut zero, "zero"), (&mut one, "one"), (&mut ann, "ann")] {
        eventually(PATIENCE, "its lane to be gone", || c.cmd(&["SET", "k", value]) == Reply::ok());
    }
    assert_eq!(ann.cmd(&["SET", "of_ann", "1"]), Reply::ok());
    assert_eq!(zero.cmd(&["GET", "k"]), Reply::bulk("zero"), "ann's is not its own");
    assert_eq!(one.cmd(&["GET", "k"]), Reply::bulk("one"));
    assert!(proxy.client().cmd(&["AUTH", "ann", "wrong"]).is_error());
    redis.cmd(&["ACL", "SETUSER", "ann", "resetkeys", "~k"]);
    relay.heal();
    wait_replayed(&proxy);
    let value = |db: &str| {
        let mut c = redis.client();
        c.cmd(&["SELECT", db]);
        c.cmd(&["GET", "k"]).text()
    };
    assert_eq!(value("1"), "one");
    assert!(["zero", "ann"].contains(&value("0").as_str()), "both wrote it, in no order among users");
    assert_eq!(redis.cmd(&["EXISTS", "of_ann"]), Reply::Int(0));
    assert_eq!(replayed(&proxy, "failed"), 1.0, "what upstream refuses for good is counted");
    proxy.wait_logged("an acknowledged write is lost");
}

#[test]
fn rules_choose_and_must_agree() {
    let rules = serde_json::json!([
        {"pattern": "q:*", "outage_writes": "queue"},
        {"pattern": "l:*", "outage_writes": "local"},
        {"pattern": "f:*", "outage_writes": "fail"},
        {"pattern": "*"},
    ]);
    let (redis, relay, proxy, mut c) = cut_off(|b| b.set("rules", rules.clone()).set("upstream.key_prefix", "p:"), &[]);
    assert_eq!(c.cmd(&["SET", "q:a", "1"]), Reply::ok());
    assert_eq!(c.cmd(&["INCR", "l:a"]), Reply::Int(1), "locally nothing need be known");
    super::refused(&c.cmd(&["SET", "f:a", "1"]));
    not_queued(&c.cmd(&["MSET", "q:a", "2", "l:a", "2"]), "do not agree");
    super::refused(&c.cmd(&["MSET", "q:a", "2", "f:a", "2"]));
    assert_eq!(c.cmd(&["MGET", "q:a", "l:a"]), Reply::bulks(&["1", "1"]));
    relay.heal();
    wait_replayed(&proxy);
    eventually(PATIENCE, "upstream to answer", || c.cmd(&["GET", "l:a"]) == Reply::Nil);
    assert_eq!(redis.cmd(&["GET", "p:q:a"]), Reply::bulk("1"), "by upstream's name");
    assert_eq!(redis.cmd(&["EXISTS", "p:l:a", "l:a"]), Reply::Int(0));
    assert_eq!(proxy.metric("nearside_local_writes_dropped_total"), 1.0);
}

#[test]
fn what_is_queued_at_the_end_is_done_or_named() {
    let (redis, relay, mut proxy, mut c) =
        cut_off(|b| b.set("listen.drain_delay", "0s").set("listen.drain_timeout", "10s"), &[]);
    c.cmd(&["SET", "k", "1"]);
    proxy.sigterm();
    proxy.wait_logged("drain");
    relay.heal();
    assert!(proxy.wait_exit(PATIENCE).success());
    assert_eq!(redis.cmd(&["GET", "k"]), Reply::bulk("1"));
    let (_redis, _relay, mut proxy, mut c) =
        cut_off(|b| b.set("listen.drain_delay", "0s").set("listen.drain_timeout", "300ms"), &[]);
    c.cmd(&["SET", "k", "1"]);
    proxy.sigterm();
    assert!(proxy.wait_exit(PATIENCE).success());
    proxy.wait_logged("1 acknowledged writes are lost");
}

/// `outage.error: close`: what is accepted is answered, what is not ends the connection behind those answers, and nothing
/// that stands behind it is done.
#[test]
fn with_close_what_is_accepted_is_answered_and_the_rest_ends_the_connection() {
    for journal in [false, true] {
        let dir = tempfile::TempDir::new().expect("a directory");
        let at = dir.path().display().to_string();
        let (redis, relay, proxy, mut c) = cut_off(
            |b| {
                match journal {
                    true => b.set("outage.journal_dir", at.as_str()).set("outage.journal_fsync", "always"),
                    false => b,
                }
                .set("outage.error", "close")
            },
            &["n"],
        );
        assert_eq!(c.cmd(&["SET", "a", "1"]), Reply::ok());
        assert_eq!(c.cmd(&["INCR", "n"]), Reply::Int(2));
        let refused: [&[&str]; 5] =
            [&["LPUSH", "l", "x"], &["INCR", "unknown"], &["GET", "miss"], &["MULTI"], &["FLUSHALL"]];
        for (i, words) in refused.iter().enumerate() {
            let mut c = proxy.client();
            let (before, behind) = (format!("before:{i}"), format!("behind:{i}"));
            c.send(&[encode(&["SET", &before, "1"]), encode(words), encode(&["SET", &behind, "1"])].concat());
            assert_eq!(c.reply(), Reply::ok(), "{words:?}, journal: {journal}");
            assert!(c.expect_closed().is_empty(), "{words:?}");
        }
        assert_eq!(c.cmd(&["MGET", "a", "n", "before:4"]), Reply::bulks(&["1", "2", "1"]), "others are not touched");
        relay.heal();
        wait_replayed(&proxy);
        assert_eq!(redis.cmd(&["MGET", "a", "n"]), Reply::bulks(&["1", "2"]));
        for i in 0..refused.len() {
            let found = redis.cmd(&["MGET", &format!("before:{i}"), &format!("behind:{i}")]).items();
            assert_eq!(found, [Reply::bulk("1"), Reply::Nil], "what was acknowledged, and nothing else");
        }
        assert_eq!(redis.cmd(&["EXISTS", "l", "unknown"]), Reply::Int(0));
        assert_eq!(replayed(&proxy, "failed"), 0.0);
        assert_eq!(super::until_answered(&mut c, &["LPUSH", "l", "x"]), Reply::Int(1), "its connection lives");
    }
}

/// The lane is the first connection that the sidecar makes.
const LANE: Scope = Scope::One(0);

/// A client with a connection of its own, however it came by it, is as a foreign one: upstream has its writes at once, and
/// what is queued comes later.
#[test]
fn a_client_that_was_pinned_before_writes_past_the_queue() {
    let redis = Redis::start();
    let relay = Relay::to(&redis);
    let proxy = quick(Proxy::upstream(&relay.url())).set("outage.writes", "queue").start();
    let mut c = proxy.client();
    let keys = ["watch", "multi", "subscribe"];
    for key in keys {
        redis.cmd(&["SET", key, "0"]);
        warm(&proxy, &mut c, key);
    }
    let (mut watch, mut multi, mut subscribe) = (proxy.client(), proxy.client(), proxy.client3());
    assert_eq!(watch.cmd(&["WATCH", "other"]), Reply::ok());
    assert_eq!(multi.cmd(&["MULTI"]), Reply::ok());
    subscribe.send_cmd(&["SUBSCRIBE", "channel"]);
    subscribe.push();
    relay.refuse();
    relay.cut(LANE);
    wait_gone(&proxy);
    for key in keys {
        assert_eq!(c.cmd(&["SET", key, "queued"]), Reply::ok());
    }
    assert_eq!(watch.cmd(&["SET", "watch", "past"]), Reply::ok());
    assert_eq!(multi.cmd(&["SET", "multi", "past"]), Reply::status("QUEUED"));
    assert_eq!(multi.cmd(&["EXEC"]).items(), [Reply::ok()]);
    assert_eq!(subscribe.cmd(&["SET", "subscribe", "past"]), Reply::ok());
    let all = ["MGET", "watch", "multi", "subscribe"];
    assert_eq!(redis.cmd(&all), Reply::bulks(&["past"; 3]), "at once");
    assert_eq!(c.cmd(&all), Reply::bulks(&["queued"; 3]), "and not seen by who reads what is queued");
    relay.heal();
    wait_replayed(&proxy);
    assert_eq!(redis.cmd(&all), Reply::bulks(&["queued"; 3]));
    assert_eq!(replayed(&proxy, "conflict_overwritten"), 3.0);
}
