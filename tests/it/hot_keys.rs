//! Keys, values and commands that stand out: found within what is promised, shown to whom it may concern, and kept for the
//! next process by name.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use serde_json::{Value, json};

use crate::sessions::warm;
use crate::support::proxy::Builder;
use crate::support::{Client, Dir, PATIENCE, Proxy, Redis, Relay, Reply, Scope, eventually, http, temp_dir};

/// Every hit is counted on here, so a busy machine must not cost the lease.
fn to(redis: &Redis) -> Builder {
    let builder = Proxy::upstream(&redis.url()).set("coherence.canary", "off");
    builder.set("coherence.sample_per_second", 0).set("coherence.max_staleness", "60s")
}

/// So many hits, and a few on the way to the first: what is sent before the key is stored is none.
fn hit(proxy: &Proxy, client: &mut Client, key: &str, times: usize) {
    warm(proxy, client, key);
    let one: &[&str] = &["GET", key];
    for _ in 0..times.div_ceil(100) {
        client.pipeline(&vec![one; times.min(100)]);
    }
}

fn keys(proxy: &Proxy, query: &str) -> Value {
    let answer = proxy.get(&format!("/api/v1/keys{query}"));
    assert_eq!(answer.status, 200, "{}", answer.body);
    answer.json()
}

fn names(list: &Value) -> Vec<&str> {
    list.as_array().expect("a list").iter().map(|item| item["key"].as_str().expect("a name")).collect()
}

#[test]
fn the_keys_that_are_asked_for_most_come_first() {
    let redis = Redis::start();
    redis.cmd(&["MSET", "hot:1", "v", "hot:2", &"x".repeat(2000), "warm:1", "v"]);
    let proxy = to(&redis).set("workers", 2).start();
    // One on each worker.
    let (mut one, mut other) = (proxy.client(), proxy.client());
    for client in [&mut one, &mut other] {
        for _ in 0..20 {
            hit(&proxy, client, "hot:1", 100);
            hit(&proxy, client, "hot:2", 25);
            client.cmd(&["MGET", "hot:1", "hot:2", "warm:1"]);
        }
    }
    for _ in 0..200 {
        one.cmd(&["DEL", "gone:1"]);
        one.cmd(&["GET", "gone:1"]);
    }
    let by_hits = keys(&proxy, "");
    assert_eq!((by_hits["by"].as_str(), by_hits["shown"].as_str()), (Some("hits"), Some("show")));
    assert_eq!(names(&by_hits["items"])[..2], ["hot:1", "hot:2"]);
    assert_eq!(by_hits["error_bound"], 0, "there is room for all");
    // Some 4,040 and 1,040 hits: six standard errors of sampling.
    let hits = |i: usize| by_hits["items"][i]["hits"].as_f64().expect("hits");
    assert!((hits(0) - 4060.0).abs() < 2200.0 && hits(1) < 2100.0, "{by_hits}");
    assert_eq!(by_hits["items"][0]["pattern"], "hot");
    assert_eq!(names(&keys(&proxy, "?by=bytes&n=1")["items"]), ["hot:2"]);
    let by_misses = keys(&proxy, "?by=misses&n=1");
    assert_eq!(names(&by_misses["items"]), ["gone:1"]);
    let misses = by_misses["items"][0]["misses"].as_f64().expect("misses");
    assert!((misses - 200.0).abs() < 170.0, "{misses}");
}

#[test]
fn the_largest_values_are_known_also_those_that_are_never_kept() {
    let redis = Redis::start();
    for (key, size) in [("big:kept", 5_000), ("big:refused", 500_000), ("big:streamed", 3_000_000)] {
        redis.cmd(&["SET", key, &"x".repeat(size)]);
    }
    redis.cmd(&["SET", "small", "x"]);
    let proxy = to(&redis).set("cache.max_value_bytes", "10KiB").set("cache.update_max_bytes", "1KiB").start();
    let mut client = proxy.client();
    for key in ["small", "big:kept", "big:refused", "big:streamed"] {
        client.cmd(&["GET", key]);
    }
    let values = keys(&proxy, "")["big_values"].clone();
    assert_eq!(names(&values), ["big:streamed", "big:refused", "big:kept", "small"]);
    assert_eq!(values[0]["bytes"], 3_000_000);
    assert!(values[2]["bytes"].as_u64().is_some_and(|bytes| (5_000..5_020).contains(&bytes)), "{values}");
}

#[test]
fn names_are_shown_to_whom_they_may_be_shown() {
    let redis = Redis::start();
    redis.cmd(&["SET", "secret:7", "v"]);
    let dir = temp_dir();
    let token = dir.path().join("token");
    fs::write(&token, "t0ken").expect("a token");
    let far = |names: &str| {
        let builder = to(&redis).set("http.listen", json!(["0.0.0.0:0"])).set("observe.keys", names);
        builder.set("http.token_file", token.display().to_string()).start()
    };
    for (setting, without, with) in
        [("auto", "hash", "show"), ("show", "show", "show"), ("hash", "hash", "hash"), ("hide", "hide", "hide")]
    {
        let proxy = far(setting);
        hit(&proxy, &mut proxy.client(), "secret:7", 200);
        let asked = |token: &str| {
            let answer = http::send(proxy.http_address(), "GET", "/api/v1/keys", token, "", "");
            assert_eq!(answer.status, 200, "{}", answer.body);
            (answer.json(), answer.body.contains("secret:7"))
        };
        for (token, shown) in [("t0ken", with), ("guess", without)] {
            let (answer, named) = asked(token);
            assert_eq!((answer["shown"].as_str(), named), (Some(shown), shown == "show"), "{setting}: {answer}");
            let key = &answer["items"][0]["key"];
            assert_eq!(key.is_null(), shown == "hide", "{answer}");
            assert!(shown != "hash" || key.as_str().is_some_and(|hash| hash.len() == 16), "{answer}");
        }
    }
}

#[test]
fn what_is_asked_wrongly_is_refused_by_name() {
    let redis = Redis::start();
    let proxy = to(&redis).start();
    for (query, code, word) in [
        ("?by=size", "malformed", "hits, misses or bytes"),
        ("?n=101", "malformed", "1 to 100"),
        ("?limit=3", "unknown_parameter", "by, n"),
    ] {
        let answer = proxy.get(&format!("/api/v1/keys{query}"));
        let error = &answer.json()["error"];
        assert_eq!((answer.status, error["code"].as_str()), (400, Some(code)), "{query}");
        assert!(error["message"].as_str().is_some_and(|text| text.contains(word)), "{error}");
    }
    let mut client = proxy.client();
    for (words, error) in [
        (&["TOP", "0"][..], "ERR '0' is no number from 1 to 100"),
        (&["TOP", "BY", "size"], "ERR unknown order 'size'; use hits, misses or bytes"),
        (&["TOP", "5", "BY"], "ERR syntax error, try NEARSIDE TOP [n] [BY hits|misses|bytes]"),
        (&["SLOWLOG", "129"], "ERR '129' is no number from 1 to 128"),
    ] {
        let reply = client.cmd(&[&["NEARSIDE"], words].concat());
        assert!(reply.is_error() && reply.text() == error, "{words:?}: {reply:?}");
    }
}

#[test]
fn top_is_a_map_in_resp3_and_flat_in_resp2() {
    let redis = Redis::start();
    redis.cmd(&["SET", "app:k:1", "v"]);
    let proxy = to(&redis).set("upstream.key_prefix", "app:").start();
    hit(&proxy, &mut proxy.client(), "k:1", 400);
    let map = proxy.client3().cmd(&["NEARSIDE", "TOP", "3", "BY", "bytes"]);
    assert!(matches!(map, Reply::Map(_)), "{map:?}");
    assert_eq!((map.get("by"), map.get("shown")), (Reply::bulk("bytes"), Reply::bulk("show")));
    let first = map.get("keys").items().remove(0);
    // As clients name it, not as upstream does.
    assert_eq!((first.get("key"), first.get("key_pattern")), (Reply::bulk("k:1"), Reply::bulk("k")));
    assert_eq!(map.get("big_values").items()[0].get("key"), Reply::bulk("k:1"));
    let flat = proxy.client().cmd(&["NEARSIDE", "TOP"]).items();
    assert_eq!(flat[..2], [Reply::bulk("by"), Reply::bulk("hits")]);
    assert_eq!((flat.len(), &flat[6]), (10, &Reply::bulk("keys")));
    let flat = flat[7].items()[0].items();
    assert_eq!(flat[..2], [Reply::bulk("key"), Reply::bulk("k:1")]);
}

#[test]
fn slow_commands_are_kept_without_keys_and_values() {
    let redis = Redis::start();
    let relay = Relay::to(&redis);
    let builder = Proxy::upstream(&relay.url()).set("coherence.canary", "off").set("coherence.max_staleness", "60s");
    let mut proxy = builder.set("observe.slow_log", "500ms").start();
    let mut client = proxy.client();
    client.cmd(&["SET", "user:quick", "v"]);
    relay.delay(Scope::All, Dir::Down, Duration::from_millis(700));
    client.cmd(&["SET", "user:seventh", "private"]);
    client.cmd(&["GET", "order:eighth"]);
    client.cmd(&["BLPOP", "queue:ninth", "0.8"]);
    let log = keys(&proxy, "")["slow_log"].clone();
    assert_eq!((log["threshold_ms"].as_f64(), log["items"].as_array().map(Vec::len)), (Some(500.0), Some(2)), "{log}");
    let shown =
        |i: usize| ["class", "command", "pattern"].map(|field| log["items"][i][field].as_str().expect("a word"));
    assert_eq!((shown(0), shown(1)), (["read", "get", "order"], ["write", "set", "user"]));
    assert!(log["items"][0]["duration_ms"].as_f64().is_some_and(|ms| ms >= 700.0), "{log}");
    for secret in ["seventh", "eighth", "ninth", "private", "quick", "queue"] {
        assert!(!log["items"].to_string().contains(secret), "{log}");
    }
    let log = client.cmd(&["NEARSIDE", "SLOWLOG", "1"]).items();
    assert_eq!((&log[2], &log[3], &log[4]), (&Reply::bulk("total"), &Reply::bulk("2"), &Reply::bulk("commands")));
    assert_eq!(log[5].items().len(), 1);
    assert_eq!(proxy.metric("nearside_slow_commands_total{class=\"write\"}"), 1.0);
    // Redis's own is upstream's.
    assert!(matches!(client.cmd(&["SLOWLOG", "LEN"]), Reply::Int(_)));
    proxy.sigterm();
    assert!(proxy.wait_exit(PATIENCE).success());
}

// ---- the last run ----

fn last_run(redis: &Redis, file: &std::path::Path) -> Builder {
    to(redis).set("warm.from", "last_run").set("warm.last_run_file", file.display().to_string())
}

fn ask(redis: &Redis, proxy: &Proxy) {
    redis.cmd(&["MSET", "hot:1", "PRIVATE", "hot:2", "PRIVATE", "cold:1", "PRIVATE"]);
    let mut client = proxy.client();
    for (key, times) in [("hot:1", 400), ("hot:2", 200)] {
        hit(proxy, &mut client, key, times);
    }
    client.cmd(&["GET", "cold:1"]);
}

fn calls(redis: &Redis) -> u64 {
    let stats = redis.cmd(&["INFO", "commandstats"]).text();
    let start = "cmdstat_get:calls=";
    stats.lines().find_map(|line| line.strip_prefix(start)?.split(',').next()?.parse().ok()).unwrap_or(0)
}

#[test]
fn the_keys_of_the_last_run_are_hits_from_the_first_request_on() {
    let (redis, dir) = (Redis::start(), temp_dir());
    let file = dir.path().join("last_run");
    let mut proxy = last_run(&redis, &file).set("warm.last_run_keys", 2).start();
    proxy.wait_logged("is not there yet");
    ask(&redis, &proxy);
    proxy.sigterm();
    assert!(proxy.wait_exit(PATIENCE).success());
    assert_eq!(fs::metadata(&file).expect("the file").permissions().mode() & 0o777, 0o600);
    let text = fs::read_to_string(&file).expect("the file");
    assert!(text.contains("hot:1") && text.contains("hot:2") && !text.contains("cold"), "{text}");
    assert!(!text.contains("PRIVATE"), "{text}");
    assert_eq!(fs::read_dir(dir.path()).expect("the directory").count(), 1, "no draft is left");

    let mut proxy = last_run(&redis, &file).set("warm.last_run_keys", 2).start();
    proxy.wait_logged("warmed 2 of 2 keys in");
    let asked = calls(&redis);
    let mut client = proxy.client();
    assert_eq!(client.cmd(&["GET", "hot:1"]), Reply::bulk("PRIVATE"));
    assert_eq!(client.cmd(&["GET", "hot:2"]), Reply::bulk("PRIVATE"));
    assert_eq!(calls(&redis), asked, "hits");
    // This one was asked for hardly anything: its successor has the list all the same.
    proxy.sigterm();
    assert!(proxy.wait_exit(PATIENCE).success());
    last_run(&redis, &file).start().wait_logged("warmed 2 of 2 keys in");
}

#[test]
fn a_process_that_is_killed_leaves_its_list() {
    let (redis, dir) = (Redis::start(), temp_dir());
    let file = dir.path().join("last_run");
    let proxy = last_run(&redis, &file).start();
    ask(&redis, &proxy);
    eventually(PATIENCE, "the list", || file.exists());
    drop(proxy);
    last_run(&redis, &file).start().wait_logged(" keys in");
    assert!(fs::read_to_string(&file).expect("the file").contains("hot:1"));
}

#[test]
fn a_file_that_is_torn_or_cannot_be_written_is_a_warning() {
    let (redis, dir) = (Redis::start(), temp_dir());
    let file = dir.path().join("last_run");
    for text in ["*3\r\n$19\r\nnearside:last_run:1\r\n$5\r\nho", "root:x:0:0\n", ""] {
        fs::write(&file, text).expect("a file");
        let proxy = last_run(&redis, &file).start();
        proxy.wait_logged("nothing is known of the last run: warm.last_run_file");
        assert_eq!(proxy.client().cmd(&["SET", "a", "1"]), Reply::ok());
    }
    let mut proxy = last_run(&redis, &dir.path().join("nowhere/last_run")).start();
    ask(&redis, &proxy);
    proxy.sigterm();
    assert!(proxy.wait_exit(PATIENCE).success());
    proxy.wait_logged("cannot be written");
    assert_eq!(proxy.count_logged("cannot be written"), 1);
}
