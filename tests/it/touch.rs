//! `cache.touch_interval`: an upstream that evicts by use learns of hits that it never sees, and no other upstream is told
//! anything.

use std::time::{Duration, Instant};

use crate::support::proxy::Builder;
use crate::support::{Client, PATIENCE, Proxy, Redis, Reply, eventually};

/// No number: keys with the same small number have one object there, and one figure of use.
const V: &str = "value";

fn upstream(policy: &str, more: &[&str]) -> Redis {
    Redis::builder().args(&["--maxmemory-policy", policy]).args(more).start()
}

fn start(redis: &Redis, interval: &str, configure: impl FnOnce(Builder) -> Builder) -> Proxy {
    // Entries that are compared with upstream are read there.
    let builder = Proxy::upstream(&redis.url()).set("coherence.sample_per_second", 0);
    let proxy = configure(builder.set("cache.touch_interval", interval)).start();
    eventually(PATIENCE, "a lane", || proxy.stats()["coherence"] != "probing");
    proxy
}

fn calls(redis: &Redis, command: &str) -> u64 {
    let stats = redis.cmd(&["INFO", "commandstats"]).text();
    let start = format!("cmdstat_{command}:calls=");
    stats.lines().find_map(|line| line.strip_prefix(&start)?.split(',').next()?.parse().ok()).unwrap_or(0)
}

#[track_caller]
fn fill(client: &mut Client, key: &str) {
    eventually(PATIENCE, "the entry", || {
        assert_eq!(client.cmd(&["GET", key]), Reply::bulk(V));
        let entry = client.cmd(&["NEARSIDE", "ENTRY", key]);
        entry != Reply::Nil && entry.get("served") == Reply::bulk("yes")
    });
}

/// Seconds since upstream last saw a key used.
fn idle(redis: &Redis, key: &str) -> i64 {
    redis.cmd(&["OBJECT", "IDLETIME", key]).int()
}

/// Waits for as long as a negative is to be watched: so many intervals of 1 s.
fn watch(seconds: u64, mut meanwhile: impl FnMut()) {
    let end = Instant::now() + Duration::from_secs(seconds);
    while Instant::now() < end {
        meanwhile();
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_key_that_is_only_hit_here_does_not_look_idle_there() {
    let redis = upstream("allkeys-lru", &[]);
    let (told, untold) = (start(&redis, "1s", |b| b), start(&redis, "0s", |b| b));
    redis.cmd(&["MSET", "hot", V, "untold", V, "cold", V]);
    let (mut c1, mut c2) = (told.client(), untold.client());
    fill(&mut c1, "hot");
    fill(&mut c1, "cold");
    fill(&mut c2, "untold");
    let mut most = 0;
    eventually(PATIENCE, "idle keys", || {
        assert_eq!(c1.cmd(&["GET", "hot"]), Reply::bulk(V));
        assert_eq!(c2.cmd(&["GET", "untold"]), Reply::bulk(V));
        most = most.max(idle(&redis, "hot"));
        // "cold" was hit while it was filled, and told of once.
        idle(&redis, "untold") >= 8 && idle(&redis, "cold") >= 6
    });
    // An interval, the grain of upstream's clock, and a busy machine.
    assert!(most <= 4, "idle for {most} s");
    assert!(told.stat("touches_touched") >= 3.0, "{}", told.stat("touches_touched"));
    assert_eq!(untold.stat("touches_touched"), 0.0);
    // It stays as coherent as it was, and a key that is gone is said to be.
    redis.cmd(&["SET", "hot", "2"]);
    eventually(PATIENCE, "the new value", || c1.cmd(&["GET", "hot"]) == Reply::bulk("2"));
}

#[test]
fn a_key_that_is_only_hit_here_is_counted_by_lfu() {
    let redis = upstream("allkeys-lfu", &["--lfu-log-factor", "0"]);
    // Fronts hand over what is to be told.
    let proxy = start(&redis, "1s", |b| b.set("workers", 2));
    redis.cmd(&["MSET", "hot", V, "cold", V]);
    let mut clients: Vec<Client> = (0..4).map(|_| proxy.client()).collect();
    fill(&mut clients[0], "hot");
    let freq = |key: &str| redis.cmd(&["OBJECT", "FREQ", key]).int();
    let (before, cold) = (freq("hot"), freq("cold"));
    eventually(PATIENCE, "its use", || {
        for client in &mut clients {
            assert_eq!(client.cmd(&["GET", "hot"]), Reply::bulk(V));
        }
        freq("hot") >= before + 3
    });
    assert!(freq("cold") <= cold);
    // Once in an interval for all clients, not once for each hit.
    assert!(calls(&redis, "touch") <= 20, "{}", calls(&redis, "touch"));
}

#[test]
fn an_upstream_that_does_not_evict_by_use_is_told_nothing() {
    let redis = upstream("noeviction", &[]);
    let proxy = start(&redis, "1s", |b| b);
    redis.cmd(&["SET", "k", V]);
    let mut c1 = proxy.client();
    fill(&mut c1, "k");
    watch(3, || assert_eq!(c1.cmd(&["GET", "k"]), Reply::bulk(V)));
    assert_eq!(calls(&redis, "touch"), 0);
    assert_eq!(proxy.metric_sum("nearside_touches_total"), 0.0);
    // From the next sending on it is asked again, and what is stored from then on is told of.
    redis.cmd(&["CONFIG", "SET", "maxmemory-policy", "volatile-lfu"]);
    let mut n = 0;
    eventually(PATIENCE, "a touch", || {
        n += 1;
        let key = format!("k{n}");
        redis.cmd(&["SET", &key, V]);
        c1.cmd(&["GET", &key]);
        c1.cmd(&["GET", &key]);
        c1.cmd(&["GET", &key]);
        calls(&redis, "touch") > 0
    });
}

#[test]
fn a_user_who_may_not_touch_is_told_once_and_served_as_before() {
    let redis = upstream("allkeys-lru", &[]);
    redis.cmd(&["ACL", "SETUSER", "default", "-touch"]);
    let proxy = start(&redis, "1s", |b| b);
    redis.cmd(&["SET", "k", V]);
    let mut c1 = proxy.client();
    fill(&mut c1, "k");
    let get = |c1: &mut Client| assert_eq!(c1.cmd(&["GET", "k"]), Reply::bulk(V));
    eventually(PATIENCE, "the refusal", || {
        get(&mut c1);
        proxy.logged("upstream refuses TOUCH")
    });
    let refused = proxy.metric("nearside_touches_total{result=\"refused\"}");
    assert_eq!(refused, 1.0);
    watch(3, || get(&mut c1));
    assert_eq!(proxy.count_logged("upstream refuses TOUCH"), 1);
    assert_eq!(proxy.metric("nearside_touches_total{result=\"refused\"}"), refused, "asked once");
    assert_eq!(calls(&redis, "touch"), 0);
}

#[test]
fn in_pubsub_mode_over_resp2_too() {
    let redis = upstream("allkeys-lru", &["--rename-command", "HELLO", ""]);
    let proxy = start(&redis, "1s", |b| b);
    eventually(PATIENCE, "its mode", || proxy.stats()["coherence"] == "pubsub");
    redis.cmd(&["SET", "k", V]);
    let mut c1 = proxy.client();
    eventually(PATIENCE, "three touches", || {
        c1.cmd(&["GET", "k"]);
        proxy.stat("touches_touched") >= 3.0
    });
}
