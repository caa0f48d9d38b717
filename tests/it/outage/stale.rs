use std::time::Instant;

use serde_json::json;

use super::{ms, quick, refused, secs, wait_gone, warm};
use crate::support::{Client, Fake, PATIENCE, Proxy, Redis, Reply, eventually};

#[track_caller]
fn entry(c: &mut Client, key: &str, field: &str) -> String {
    match c.cmd(&["NEARSIDE", "ENTRY", key]) {
        Reply::Nil => "none".to_owned(),
        entry => entry.get(field).text(),
    }
}

#[test]
fn what_is_served_stale_is_counted_and_marked() {
    let mut redis = Redis::start();
    let proxy = quick(Proxy::to(&redis)).start();
    let mut c = proxy.client();
    redis.cmd(&["MSET", "a", "1", "b", "2"]);
    warm(&proxy, &mut c, "a");
    warm(&proxy, &mut c, "b");
    let (hits, misses) = (proxy.stat("hits"), proxy.stat("misses"));
    redis.stop();
    wait_gone(&proxy);
    assert_eq!((entry(&mut c, "a", "served"), entry(&mut c, "a", "stale_servable")), ("stale".into(), "yes".into()));
    c.cmd(&["GET", "a"]);
    c.cmd(&["MGET", "a", "b"]);
    refused(&c.cmd(&["GET", "none"]));
    assert_eq!(proxy.metric("nearside_stale_served_total"), 3.0);
    assert_eq!(proxy.stat("stale_served"), 3.0);
    assert_eq!((proxy.stat("hits"), proxy.stat("misses")), (hits, misses), "neither hits nor misses");
    for path in ["/health", "/health/ready"] {
        let body = proxy.get(path).body;
        assert!(body.contains("outage: serving stale reads since 20"), "{body}");
    }
    redis.restart();
    eventually(PATIENCE, "upstream's answer", || c.cmd(&["GET", "a"]) == Reply::Nil);
    assert!(!proxy.get("/health").body.contains("serving stale reads"));
    let (stale, failed) = (proxy.stat("stale_served"), proxy.metric_sum("nearside_outage_failed_total"));
    proxy.wait_logged(&format!("{stale} keys answered stale, {failed} commands refused"));
}

#[test]
fn nothing_that_was_deleted_invalidated_absent_or_has_expired_is_served() {
    let mut redis = Redis::start();
    let proxy = quick(Proxy::to(&redis)).start();
    let mut c = proxy.client();
    redis.cmd(&["MSET", "good", "1", "deleted", "1", "pushed", "1", "named", "1", "dropped", "1"]);
    redis.cmd(&["SET", "expiring", "1", "PX", "4000"]);
    let expires = Instant::now() + ms(4000);
    for key in ["good", "deleted", "pushed", "named", "dropped", "expiring", "absent"] {
        warm(&proxy, &mut c, key);
    }
    c.cmd(&["DEL", "deleted"]);
    redis.cmd(&["SET", "pushed", "2"]);
    c.cmd(&["NEARSIDE", "INVALIDATE", "KEY", "named"]);
    c.cmd(&["EXISTS", "nobody-writes-this"]); // behind every push so far
    redis.stop();
    wait_gone(&proxy);
    assert_eq!(c.cmd(&["GET", "good"]), Reply::bulk("1"));
    for key in ["deleted", "pushed", "named", "absent"] {
        refused(&c.cmd(&["GET", key]));
        refused(&c.cmd(&["MGET", "good", key]));
    }
    // An invalidation by hand counts as ever, told to others or not.
    assert_eq!(c.cmd(&["GET", "dropped"]), Reply::bulk("1"));
    c.cmd(&["NEARSIDE", "INVALIDATE", "KEY", "dropped"]);
    refused(&c.cmd(&["GET", "dropped"]));
    let mut last = None;
    eventually(PATIENCE, "the expiry", || {
        let asked = Instant::now();
        let served = !c.cmd(&["GET", "expiring"]).is_error();
        last = if served { Some(asked) } else { last };
        !served
    });
    assert!(last.is_none_or(|at| at <= expires), "served {:?} after its expiry", last.map(|at| at - expires));
    assert_eq!(c.cmd(&["GET", "good"]), Reply::bulk("1"));
}

/// A write whose fate is unknown: neither its old value nor its new one may be told.
#[test]
fn a_write_of_unknown_outcome_ends_the_old_value() {
    let mut redis = Redis::start();
    let proxy = quick(Proxy::to(&redis)).start();
    let (mut c, mut other) = (proxy.client(), proxy.client());
    redis.cmd(&["MSET", "k", "1", "l", "1"]);
    warm(&proxy, &mut c, "k");
    warm(&proxy, &mut c, "l");
    redis.sigstop();
    c.send_cmd(&["SET", "k", "2"]);
    eventually(PATIENCE, "it to be on its way", || proxy.stat("pending_writes") == 1.0);
    redis.stop();
    assert_eq!(c.reply().text(), "NEARSIDE upstream connection lost: outcome unknown");
    wait_gone(&proxy);
    for c in [&mut c, &mut other] {
        refused(&c.cmd(&["GET", "k"]));
        assert_eq!(c.cmd(&["GET", "l"]), Reply::bulk("1"));
    }
    assert_eq!(proxy.stat("pending_writes"), 0.0);
}

/// Asks until it is refused: when it was last served, as asked.
#[track_caller]
fn last_served(c: &mut Client, key: &str) -> Instant {
    let mut last = None;
    eventually(PATIENCE, &format!("the end of {key}"), || {
        let asked = Instant::now();
        match c.cmd(&["GET", key]).is_error() {
            true => true,
            false => {
                last = Some(asked);
                false
            }
        }
    });
    last.expect("it was never served")
}

#[test]
fn max_stale_bounds_it_and_a_rule_may_say_otherwise() {
    let mut redis = Redis::start();
    let rules = json!([
        {"name": "never", "pattern": "never:*", "stale_if_error": "0s"},
        {"name": "long", "pattern": "long:*", "stale_if_error": "1h"},
        {"name": "rest", "pattern": "*"},
    ]);
    let max_stale = secs(4);
    let proxy = quick(Proxy::to(&redis)).set("outage.max_stale", "4s").set("rules", rules).start();
    let mut c = proxy.client();
    redis.cmd(&["MSET", "never:k", "1", "long:k", "1", "k", "1"]);
    for key in ["never:k", "long:k", "k"] {
        warm(&proxy, &mut c, key);
    }
    redis.stop();
    let stopped = Instant::now();
    wait_gone(&proxy);
    refused(&c.cmd(&["GET", "never:k"]));
    let last = last_served(&mut c, "k");
    assert!(last <= stopped + max_stale, "served {:?} too late", last - (stopped + max_stale));
    assert_eq!(c.cmd(&["GET", "long:k"]), Reply::bulk("1"));
    assert_eq!(entry(&mut c, "k", "stale_servable"), "age");
}

/// What was resident when upstream went is served although its own time is over.
#[test]
fn an_entry_outlives_its_ttl_by_max_stale() {
    let mut redis = Redis::start();
    let proxy = quick(Proxy::to(&redis)).set("cache.default_ttl", "2s").start();
    let mut c = proxy.client();
    redis.cmd(&["SET", "k", "1"]);
    warm(&proxy, &mut c, "k");
    redis.stop();
    wait_gone(&proxy);
    eventually(PATIENCE, "its time to be over", || entry(&mut c, "k", "ttl_ms") == "0");
    std::thread::sleep(ms(1200)); // moka looks at what has expired in steps of a second
    assert_eq!(c.cmd(&["GET", "k"]), Reply::bulk("1"));
    assert_eq!(entry(&mut c, "k", "served"), "stale");
}

#[test]
fn forms_are_served_in_both_protocols() {
    let mut redis = Redis::start();
    let builder = quick(Proxy::to(&redis)).set("cache.commands", json!(["GET", "LRANGE", "ZRANGE", "STRLEN"]));
    let proxy = builder.start();
    redis.cmd(&["RPUSH", "l", "a", "b"]);
    redis.cmd(&["ZADD", "z", "1.5", "m"]);
    let (mut two, mut three) = (proxy.client(), proxy.client3());
    let asked: [&[&str]; 2] = [&["LRANGE", "l", "0", "-1"], &["ZRANGE", "z", "0", "-1", "WITHSCORES"]];
    let mut expected = Vec::new();
    for words in asked {
        eventually(PATIENCE, "a hit", || {
            let before = proxy.stat("hits");
            two.cmd(words);
            proxy.stat("hits") > before
        });
        expected.push((two.cmd(words), three.cmd(words)));
    }
    redis.stop();
    wait_gone(&proxy);
    for (words, (in_two, in_three)) in asked.iter().zip(&expected) {
        assert_eq!((&two.cmd(words), &three.cmd(words)), (in_two, in_three), "{words:?}");
    }
    refused(&two.cmd(&["LRANGE", "l", "0", "0"]));
    refused(&two.cmd(&["STRLEN", "l"]));
}

/// Each database and user has its own, in an outage too.
#[test]
fn nothing_crosses_databases() {
    let mut redis = Redis::start();
    let proxy = quick(Proxy::to(&redis)).start();
    let (mut zero, mut one) = (proxy.client(), proxy.client());
    one.cmd(&["SELECT", "1"]);
    zero.cmd(&["SET", "k", "0"]);
    one.cmd(&["SET", "only", "1"]);
    warm(&proxy, &mut zero, "k");
    warm(&proxy, &mut one, "only");
    redis.stop();
    wait_gone(&proxy);
    for _ in 0..2 {
        eventually(PATIENCE, "both to be gone", || {
            zero.cmd(&["GET", "k"]) == Reply::bulk("0") && one.cmd(&["GET", "only"]) == Reply::bulk("1")
        });
    }
    assert!(one.cmd(&["GET", "k"]).is_error() && zero.cmd(&["GET", "only"]).is_error());
    zero.cmd(&["SELECT", "1"]);
    // A session's fence moves with its SELECT: what was proved before is not enough for it.
    refused(&zero.cmd(&["GET", "k"]));
}

/// Clients of other threads are answered as those of the data thread.
#[test]
fn with_several_workers_all_clients_are_served() {
    let mut redis = Redis::start();
    let proxy = quick(Proxy::to(&redis)).set("workers", 3).start();
    let mut clients: Vec<Client> = (0..6).map(|_| proxy.client()).collect();
    redis.cmd(&["SET", "k", "1"]);
    warm(&proxy, &mut clients[0], "k");
    clients.iter_mut().for_each(|c| assert_eq!(c.cmd(&["GET", "k"]), Reply::bulk("1")));
    redis.stop();
    wait_gone(&proxy);
    for c in &mut clients {
        assert_eq!(c.cmd(&["GET", "k"]), Reply::bulk("1"));
        refused(&c.cmd(&["SET", "k", "2"]));
    }
    redis.restart();
    for c in &mut clients {
        eventually(PATIENCE, "upstream's answer", || c.cmd(&["GET", "k"]) == Reply::Nil);
    }
}

/// While a lane merely reconnects nothing is stale: whoever asks waits.
#[test]
fn a_reconnection_serves_nothing_old() {
    let fake = Fake::start();
    let proxy = Proxy::upstream(&fake.url()).set("coherence.canary", "off").set("upstream.connect_timeout", "30s");
    let proxy = proxy.start();
    let mut lane = fake.lane();
    let mut c = proxy.client();
    c.send_cmd(&["GET", "k"]);
    lane.expect(&["GET", "k"]).reply("$1\r\n1\r\n").expect(&["PTTL", "k"]).reply(":-1\r\n");
    assert_eq!(c.reply(), Reply::bulk("1"));
    eventually(PATIENCE, "an entry", || entry(&mut c, "k", "served") == "yes");
    lane.close();
    let mut next = fake.lane();
    c.send_cmd(&["GET", "k"]);
    next.expect(&["GET", "k"]).reply("$1\r\n2\r\n");
    assert_eq!(c.reply(), Reply::bulk("2"));
    assert_eq!(proxy.metric("nearside_stale_served_total"), 0.0);
}

/// The lane dies right behind the channel that it lived by: what it had is served all the same.
#[test]
fn in_pubsub_and_ttl_mode_too() {
    for mode in ["pubsub", "ttl"] {
        let mut redis = Redis::start();
        let builder =
            quick(Proxy::to(&redis)).set("coherence.mode", mode).set("coherence.ttl_cap", json!({"ttl": "30s"}));
        let proxy = builder.start();
        eventually(PATIENCE, mode, || proxy.stats()["coherence"] == mode);
        let mut c = proxy.client();
        redis.cmd(&["SET", "k", "1"]);
        warm(&proxy, &mut c, "k");
        redis.stop();
        wait_gone(&proxy);
        let why = entry(&mut c, "k", "stale_servable");
        assert_eq!(c.cmd(&["GET", "k"]), Reply::bulk("1"), "{mode}: {why}");
    }
}
