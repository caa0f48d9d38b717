//! `warm`: listed keys and what globs find are loaded at start, by the rules, at a rate, within bounds; and what that means
//! for readiness.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::proxy::Builder;
use crate::support::{Dir, PATIENCE, Proxy, Redis, Relay, Reply, Scope, eventually};

fn calls(redis: &Redis, command: &str) -> u64 {
    let stats = redis.cmd(&["INFO", "commandstats"]).text();
    let start = format!("cmdstat_{command}:calls=");
    stats.lines().find_map(|line| line.strip_prefix(&start)?.split(',').next()?.parse().ok()).unwrap_or(0)
}

fn to(redis: &Redis) -> Builder {
    Proxy::upstream(&redis.url()).set("coherence.canary", "off").set("coherence.sample_per_second", 0)
}

fn fill(redis: &Redis, prefix: &str, count: usize) {
    let mut direct = redis.client();
    for i in 0..count {
        direct.cmd(&["SET", &format!("{prefix}{i}"), "v"]);
    }
}

fn warmed(proxy: &Proxy, result: &str) -> f64 {
    proxy.metric(&format!("nearside_warmed_keys_total{{result=\"{result}\"}}"))
}

#[test]
fn listed_keys_and_found_ones_are_hits_from_the_first_request_on() {
    let redis = Redis::start();
    fill(&redis, "user:", 1000);
    redis.cmd(&["RPUSH", "user:list", "a"]);
    redis.cmd(&["SET", "user:large", &"x".repeat(300)]);
    redis.cmd(&["SET", "one", "1"]);
    let proxy = to(&redis)
        .set("cache.max_value_bytes", 200)
        .set("cache.update_max_bytes", 100)
        .set("warm.keys", json!(["one", "user:1", "nobody", "one"]))
        .set("warm.patterns", json!(["user:*"]))
        .set("warm.rate", 100_000)
        .start();
    proxy.wait_logged("warmed 1,001 of 1,004 keys in");
    proxy.wait_logged("; 3 skipped: 1 absent, 1 wrong type, 1 too large");
    let counted = ["stored", "absent", "present", "no_rule", "wrong_type", "too_large", "lost", "discarded"];
    let counts: Vec<f64> = counted.iter().map(|result| warmed(&proxy, result)).collect();
    assert_eq!(counts, [1001.0, 1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0], "{counted:?}");
    let asked = calls(&redis, "get");
    let mut c1 = proxy.client();
    assert_eq!(c1.cmd(&["GET", "one"]), Reply::bulk("1"));
    for i in [0, 1, 500, 999] {
        assert_eq!(c1.cmd(&["GET", &format!("user:{i}")]), Reply::bulk("v"));
    }
    assert_eq!(c1.cmd(&["GET", "nobody"]), Reply::Nil);
    assert_eq!(calls(&redis, "get"), asked, "hits");
    // What was loaded is as coherent as what was missed.
    redis.cmd(&["SET", "user:1", "new"]);
    eventually(PATIENCE, "the new value", || c1.cmd(&["GET", "user:1"]) == Reply::bulk("new"));
}

#[test]
fn the_rules_say_what_is_loaded() {
    let redis = Redis::start();
    fill(&redis, "user:", 10);
    fill(&redis, "off:", 10);
    fill(&redis, "none:", 10);
    let rules = json!([{"pattern": "user:*"}, {"pattern": "off:*", "mode": "off"}]);
    let proxy = to(&redis).set("rules", rules).set("warm.patterns", json!(["*"])).start();
    proxy.wait_logged("warmed 10 of 30 keys in");
    proxy.wait_logged("; 20 skipped: 20 no rule");
    assert_eq!(calls(&redis, "get"), 10, "nothing else is read");
}

#[test]
fn nothing_is_loaded_faster_than_the_rate() {
    const KEYS: usize = 400;
    let redis = Redis::start();
    fill(&redis, "k:", KEYS);
    let began = Instant::now();
    let proxy = to(&redis).set("warm.patterns", json!(["k:*"])).set("warm.rate", 200).start();
    let mut seen = 0;
    eventually(PATIENCE, "the end", || {
        let (since, read) = (began.elapsed(), calls(&redis, "get"));
        seen = seen.max(read);
        // What has been counted by now was sent by now.
        let most = (began.elapsed().as_secs_f64() * 200.0) as u64 + 2;
        assert!(read <= most, "{read} GETs after {since:?}");
        proxy.logged("warmed 400 of 400 keys in")
    });
    assert!(began.elapsed() >= Duration::from_secs_f64((KEYS - 1) as f64 / 200.0 - 0.01), "{:?}", began.elapsed());
}

/// What was loaded over it is void with it; the rest is loaded over the next one.
#[test]
fn a_lost_connection_is_waited_for() {
    let redis = Redis::start();
    fill(&redis, "k:", 400);
    let relay = Relay::to(&redis);
    let proxy = Proxy::upstream(&relay.url())
        .set("coherence.canary", "off")
        .set("warm.patterns", json!(["k:*"]))
        .set("warm.rate", 200)
        .start();
    eventually(PATIENCE, "a beginning", || warmed(&proxy, "stored") > 20.0);
    relay.cut(Scope::Existing);
    proxy.wait_logged(" of 400 keys in");
    // What was on its way is lost, or came too late to be stored.
    let (stored, lost) = (warmed(&proxy, "stored"), warmed(&proxy, "lost") + warmed(&proxy, "discarded"));
    assert_eq!(stored + lost, 400.0);
    assert!(lost <= 64.0, "{lost}");
    assert!(proxy.stat("entries") >= 200.0, "the rest is there");
}

#[test]
fn it_says_how_far_it_is() {
    let redis = Redis::start();
    fill(&redis, "k:", 60);
    let proxy = to(&redis).set("warm.patterns", json!(["k:*"])).set("warm.rate", 10).start();
    proxy.wait_logged("warming: ");
    proxy.wait_logged("warmed 60 of 60 keys in");
}

#[test]
fn few_are_under_way_at_once() {
    let redis = Redis::start();
    fill(&redis, "k:", 300);
    let relay = Relay::to(&redis);
    relay.delay(Scope::All, Dir::Down, Duration::from_millis(100));
    let proxy = Proxy::upstream(&relay.url())
        .set("coherence.canary", "off")
        .set("warm.patterns", json!(["k:*"]))
        .set("warm.rate", 100_000)
        .start();
    eventually(PATIENCE, "the end", || {
        let under_way = proxy.stat("in_flight");
        // A reading is two commands; a SCAN and our own questions come on top.
        assert!(under_way <= 2.0 * 64.0 + 10.0, "{under_way}");
        proxy.logged("warmed 300 of 300 keys in")
    });
}

#[test]
fn what_is_above_the_bound_is_left_out() {
    let redis = Redis::start();
    fill(&redis, "k:", 500);
    let proxy = to(&redis).set("warm.patterns", json!(["k:*"])).set("warm.max_keys", 100).start();
    proxy.wait_logged("warmed 100 of 100 keys in");
    proxy.wait_logged("stopped: warm.max_keys is reached");
    assert_eq!(calls(&redis, "get"), 100);
}

#[test]
fn a_full_cache_ends_it() {
    let redis = Redis::start();
    let mut direct = redis.client();
    for i in 0..2000 {
        direct.cmd(&["SET", &format!("k:{i}"), &"x".repeat(1000)]);
    }
    let proxy =
        to(&redis).set("cache.max_bytes", "1MiB").set("warm.patterns", json!(["k:*"])).set("warm.rate", 50_000).start();
    proxy.wait_logged("stopped: the cache is nearly full (cache.max_bytes)");
    assert!(calls(&redis, "get") < 1500, "{}", calls(&redis, "get"));
}

#[test]
fn readiness_waits_for_it_where_it_is_asked_to() {
    let mut redis = Redis::start();
    redis.stop();
    let proxy = to(&redis)
        .set("warm.keys", json!(["a", "b"]))
        .set("warm.before_ready", true)
        .set("upstream.retry.max_delay", "100ms")
        .start();
    for (path, status, word) in
        [("/health/ready", 503, "warming"), ("/health", 503, "warming"), ("/health/startup", 200, "ok")]
    {
        let answer = proxy.get(path);
        assert_eq!(answer.status, status, "{path}: {}", answer.body);
        assert!(answer.body.contains(&format!("\"status\":\"{word}\"")), "{path}: {}", answer.body);
    }
    proxy.wait_logged("serving, not ready: warming first: cache: serve");
    // Clients are served meanwhile, as far as upstream is there.
    eventually(PATIENCE, "an answer of our own", || {
        proxy.client().cmd(&["ECHO", "x"]).text().starts_with("NEARSIDE upstream unavailable")
    });
    redis.restart();
    eventually(PATIENCE, "readiness", || proxy.get("/health/ready").status == 200);
    // The keys are gone with the server that had them.
    proxy.wait_logged("warmed 0 of 2 keys in");
    assert_eq!(warmed(&proxy, "absent"), 2.0);
}

#[test]
fn readiness_waits_no_longer_than_its_timeout() {
    let mut redis = Redis::start();
    redis.stop();
    let proxy = to(&redis)
        .set("warm.keys", json!(["a"]))
        .set("warm.before_ready", true)
        .set("warm.timeout", "300ms")
        .set("upstream.retry.max_delay", "100ms")
        .start();
    proxy.wait_logged("ready before everything is loaded: warm.timeout is over");
    eventually(PATIENCE, "readiness", || proxy.get("/health/ready").status == 200);
    // It is loaded all the same, once upstream is there.
    redis.restart();
    redis.cmd(&["SET", "a", "1"]);
    proxy.wait_logged(" of 1 keys in");
}

#[test]
fn a_start_is_not_kept_waiting_where_nobody_asked_for_it() {
    let mut redis = Redis::start();
    redis.stop();
    let proxy = to(&redis).set("warm.keys", json!(["a"])).start();
    assert_eq!(proxy.get("/health/ready").status, 200);
    proxy.wait_logged("INFO ready: cache: serve");
}

#[test]
fn the_end_of_the_sidecar_ends_it() {
    let redis = Redis::start();
    fill(&redis, "k:", 200);
    let mut proxy = to(&redis).set("warm.patterns", json!(["k:*"])).set("warm.rate", 1).start();
    eventually(PATIENCE, "a beginning", || calls(&redis, "get") > 0);
    proxy.sigterm();
    assert!(proxy.wait_exit(PATIENCE).success());
}

#[test]
fn a_credential_that_is_refused_loads_nothing_and_says_so() {
    let redis = Redis::builder().args(&["--requirepass", "secret"]).start();
    let proxy = to(&redis).set("warm.keys", json!(["a"])).set("warm.before_ready", true).start();
    proxy.wait_logged("nothing is loaded at start: upstream refuses: ");
    eventually(PATIENCE, "readiness", || proxy.get("/health/ready").status == 200);
    let proxy = to(&redis).set("warm.keys", json!(["a"])).set("cache.mode", "off").start();
    proxy.wait_logged("nothing is loaded at start: cache.mode is off");
}
