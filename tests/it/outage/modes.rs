//! Queued writes where coherence is not `tracking`, and where the server is older than 6.2.

use std::path::PathBuf;

use serde_json::json;

use super::queue::{lose, replayed, wait_replayed};
use super::{quick, wait_gone, warm};
use crate::support::{Client, Fake, PATIENCE, Proxy, Redis, Relay, Reply, eventually, holds, proxy};

/// So long that no copy ends by itself within a test.
const LONG: &str = "1h";

fn in_mode(mode: &str, url: &str, cap: &str) -> proxy::Builder {
    let builder = quick(Proxy::upstream(url)).set("outage.writes", "queue").set("coherence.mode", mode);
    builder.set(&format!("coherence.ttl_cap.{mode}"), cap)
}

#[track_caller]
fn started(builder: proxy::Builder, mode: &str) -> Proxy {
    let proxy = builder.start();
    eventually(PATIENCE, mode, || proxy.stats()["coherence"] == mode);
    proxy
}

/// What the sidecar's cache serves; none: it has nothing.
fn cached(c: &mut Client, key: &str) -> Option<String> {
    match c.cmd(&["NEARSIDE", "ENTRY", key]) {
        Reply::Nil => None,
        entry => Some(entry.get("served").text()),
    }
}

/// Another sidecar has copies of what is queued here; nothing but the message of the replay can end them.
fn told(rights: &[&str]) {
    let redis = Redis::start();
    redis.cmd(&[&["ACL", "SETUSER", "default"], rights].concat());
    let relay = Relay::to(&redis);
    let here = started(in_mode("pubsub", &relay.url(), LONG), "pubsub");
    let there = started(in_mode("pubsub", &redis.url(), LONG), "pubsub");
    let (mut writer, mut reader) = (here.client(), there.client());
    let keys = ["set", "count", "gone", "bystander"];
    for key in keys {
        redis.cmd(&["SET", key, "1"]);
        warm(&here, &mut writer, key);
        warm(&there, &mut reader, key);
    }
    lose(&relay, &here);
    assert_eq!(writer.cmd(&["SET", "set", "2", "EX", "1000"]), Reply::ok());
    assert_eq!(writer.cmd(&["INCR", "count"]), Reply::Int(2));
    assert_eq!(writer.cmd(&["DEL", "gone"]), Reply::Int(1));
    assert_eq!(reader.cmd(&["MGET", "set", "count", "gone"]), Reply::bulks(&["1", "1", "1"]), "still only here");
    relay.heal();
    wait_replayed(&here);
    for key in &keys[..3] {
        eventually(PATIENCE, &format!("the copy of {key} to be dropped"), || cached(&mut reader, key).is_none());
    }
    let now = reader.cmd(&["MGET", "set", "count", "gone"]).items();
    assert_eq!(now, [Reply::bulk("2"), Reply::bulk("2"), Reply::Nil]);
    assert_eq!(cached(&mut reader, "bystander").as_deref(), Some("yes"), "nothing else was");
    assert_eq!(replayed(&here, "conflict_overwritten"), 0.0);
    assert_eq!(here.stat("pending_writes"), 0.0);
}

#[test]
fn in_pubsub_mode_the_others_are_told_of_what_is_done_late() {
    told(&["+@all"]);
}

/// Each write and the message go by themselves then.
#[test]
fn also_by_users_who_may_not_use_transactions() {
    told(&["-multi"]);
}

/// Writes behind their reply are told when upstream has them, too.
#[test]
fn in_pubsub_mode_the_others_are_told_of_what_is_written_behind() {
    let redis = Redis::start();
    let rules = json!([{"pattern": "b:*", "write": "behind"}, {"pattern": "*"}]);
    let here = started(in_mode("pubsub", &redis.url(), LONG).set("rules", rules), "pubsub");
    let there = started(in_mode("pubsub", &redis.url(), LONG), "pubsub");
    redis.cmd(&["SET", "b:k", "1"]);
    let mut reader = there.client();
    warm(&there, &mut reader, "b:k");
    assert_eq!(here.client().cmd(&["SET", "b:k", "2"]), Reply::ok());
    eventually(PATIENCE, "the copy to be dropped", || cached(&mut reader, "b:k").is_none());
    assert_eq!(reader.cmd(&["GET", "b:k"]), Reply::bulk("2"));
}

/// In `ttl` mode nobody is told of any write: other sidecars' copies end by their time, as without an outage. Here it is
/// read back at once.
#[test]
fn in_ttl_mode_copies_elsewhere_end_by_their_time() {
    let redis = Redis::start();
    let relay = Relay::to(&redis);
    let here = started(in_mode("ttl", &relay.url(), LONG), "ttl");
    let there = started(in_mode("ttl", &redis.url(), "700ms"), "ttl");
    let (mut writer, mut reader) = (here.client(), there.client());
    redis.cmd(&["SET", "k", "1"]);
    warm(&here, &mut writer, "k");
    lose(&relay, &here);
    assert_eq!(writer.cmd(&["INCR", "k"]), Reply::Int(2));
    relay.heal();
    warm(&there, &mut reader, "k");
    wait_replayed(&here);
    assert_eq!(redis.cmd(&["GET", "k"]), Reply::bulk("2"));
    assert_eq!(super::until_answered(&mut writer, &["GET", "k"]), Reply::bulk("2"));
    eventually(PATIENCE, "the copy's time to be over", || reader.cmd(&["GET", "k"]) == Reply::bulk("2"));
    assert_eq!(replayed(&here, "conflict_overwritten"), 0.0);
}

// ---- before 6.2 ----

const HELLO_6_0: &str = "%7\r\n$6\r\nserver\r\n$5\r\nredis\r\n$7\r\nversion\r\n$6\r\n6.0.16\r\n$5\r\nproto\r\n:3\r\n\
                         $2\r\nid\r\n:1\r\n$4\r\nmode\r\n$10\r\nstandalone\r\n$4\r\nrole\r\n$6\r\nmaster\r\n\
                         $7\r\nmodules\r\n*0\r\n";

/// Exactly what such a server is told.
#[test]
fn a_server_before_6_2_is_told_how_long_is_left() {
    let fake = Fake::builder().answer("HELLO", HELLO_6_0).start();
    let rules = json!([{"pattern": "b:*", "write": "behind"}, {"pattern": "*"}]);
    let proxy = quick(Proxy::upstream(&fake.url())).set("rules", rules).set("coherence.canary", "off").start();
    let mut lane = fake.lane();
    let mut c = proxy.client();
    for (words, value) in [(&["SET", "b:k", "v", "PX", "600000"][..], "v"), (&["SETEX", "b:k", "600", "w"], "w")] {
        assert_eq!(c.cmd(words), Reply::ok());
        lane.expect(&["MULTI"]);
        let told: Vec<String> = lane.next().iter().map(|word| String::from_utf8_lossy(word).into_owned()).collect();
        assert_eq!(told[..4], ["SET", "b:k", value, "PX"], "{told:?}");
        let left: u64 = told[4].parse().expect("milliseconds");
        assert!((580_000..=600_000).contains(&left), "{left}");
        lane.expect(&["EXEC"]).reply("+OK\r\n").reply("+QUEUED\r\n").reply("*1\r\n+OK\r\n");
        wait_replayed(&proxy);
    }
}

/// A real one, where tests/servers has been asked for it.
fn redis_5() -> Option<PathBuf> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("target/servers/redis-5.0");
    holds(path.exists(), "Redis 5.0 (tests/servers redis-5.0 builds it)").then_some(path)
}

#[test]
fn queued_times_arrive_at_redis_5() {
    let Some(binary) = redis_5() else { return };
    let mut redis = Redis::builder().server(binary).args(&["--appendonly", "yes", "--appendfsync", "always"]).start();
    let proxy = quick(Proxy::to(&redis)).set("outage.writes", "queue").start();
    redis.cmd(&["SET", "old", "v", "PX", "600000"]);
    redis.cmd(&["SET", "n", "1", "PX", "600000"]);
    let mut c = proxy.client();
    warm(&proxy, &mut c, "old");
    warm(&proxy, &mut c, "n");
    redis.stop();
    wait_gone(&proxy);
    assert_eq!(c.cmd(&["SET", "px", "v", "PX", "500000"]), Reply::ok());
    assert_eq!(c.cmd(&["SETEX", "ex", "500", "v"]), Reply::ok());
    assert_eq!(c.cmd(&["PERSIST", "old"]), Reply::Int(1));
    assert_eq!(c.cmd(&["INCR", "n"]), Reply::Int(2));
    assert_eq!(c.cmd(&["SET", "short", "v", "PX", "1"]), Reply::ok());
    eventually(PATIENCE, "it to expire", || c.cmd(&["GET", "short"]) == Reply::Nil);
    redis.restart();
    wait_replayed(&proxy);
    let left = |key: &str| redis.cmd(&["PTTL", key]).int();
    for key in ["px", "ex"] {
        assert!((400_000..=500_000).contains(&left(key)), "{key} has {} ms", left(key));
    }
    assert!((500_000..=600_000).contains(&left("n")), "its own time is kept: {} ms", left("n"));
    assert_eq!((left("old"), left("short")), (-1, -2));
    assert_eq!(redis.cmd(&["GET", "n"]), Reply::bulk("2"));
    assert_eq!(replayed(&proxy, "failed"), 0.0);
}
