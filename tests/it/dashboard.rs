//! The dashboard's JSON and its stream, held against what clients did, a fuzzer that has read the description, and readers
//! by the thousand.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};

use crate::sessions::{run, warm};
use crate::support::{PATIENCE, Proxy, Redis, Reply, eventually, http, poll, temp_dir};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

fn patient(redis: &Redis) -> crate::support::proxy::Builder {
    // Every hit is counted on here, so a busy machine must not cost the lease.
    Proxy::to(redis).set("coherence.max_staleness", "60s")
}

#[track_caller]
fn api(proxy: &Proxy, path: &str) -> Value {
    let answer = proxy.get(&format!("/api/v1/{path}"));
    assert_eq!(answer.status, 200, "{path}: {}", answer.body);
    answer.json()
}

// ---- numbers ----

#[test]
fn operations_and_durations_are_those_of_the_clients() {
    let redis = Redis::start();
    let proxy = patient(&redis).start();
    let mut client = proxy.client();
    redis.cmd(&["MSET", "user:1", "a", "user:2", "b"]);
    warm(&proxy, &mut client, "user:1");
    let before = api(&proxy, "dashboard/metrics");
    for command in ["GET user:1", "GET user:1", "GET user:2", "MGET user:1 user:2", "SET user:3 x", "DEL user:3"] {
        run(&mut client, command);
    }
    for command in
        ["PING", "LLEN user:1", "RPUSH l x", "PUBLISH topic x", "INFO server", "NEARSIDE STATS", "EVAL return 0"]
    {
        run(&mut client, command);
    }
    let after = api(&proxy, "dashboard/metrics");
    let moved = |at: &str| {
        after.pointer(at).and_then(Value::as_u64).unwrap() - before.pointer(at).and_then(Value::as_u64).unwrap()
    };
    for (word, expected) in [
        ("get", 3),
        ("mget", 1),
        ("set", 1),
        ("del", 1),
        ("connection", 1),
        ("read_other", 1),
        ("write_other", 1),
        ("publish", 1),
        ("admin", 1),
        ("nearside", 1),
        ("other", 1),
        ("total", 13),
    ] {
        assert_eq!(moved(&format!("/operations/{word}")), expected, "{word}");
    }
    assert_eq!(moved("/durations/hit/count") + moved("/durations/miss/count"), 4);
    assert!(moved("/durations/hit/count") >= 2 && moved("/durations/upstream/count") > 0);
    // LLEN of a string.
    assert_eq!(moved("/errors"), 1);
    assert!(after["durations"]["all"]["p99_ms"].as_f64() >= after["durations"]["all"]["p50_ms"].as_f64());
    assert_eq!(after["windows"]["60m"]["requests"].as_u64(), after["windows"]["1m"]["requests"].as_u64());
}

#[test]
fn the_cache_section_agrees_with_the_metrics_and_knows_its_upstream() {
    let redis = Redis::start();
    let proxy = patient(&redis)
        .set("rules", json!([{"name": "sessions", "pattern": "s:*"}, {"name": "rest", "pattern": "*"}]))
        .start();
    let mut client = proxy.client();
    redis.cmd(&["MSET", "s:1", "a", "t:1", "b"]);
    for key in ["s:1", "s:1", "t:1"] {
        warm(&proxy, &mut client, key);
    }
    let cache = api(&proxy, "dashboard/cache");
    assert_eq!(cache["hits"].as_f64(), Some(proxy.metric_sum("cache_hits_total")));
    assert_eq!(cache["misses"].as_f64(), Some(proxy.metric_sum("cache_miss_total")));
    assert_eq!((cache["rules"]["total"].as_u64(), &cache["rules"]["items"][0]["rule"]), (Some(2), &json!("sessions")));
    assert_eq!((&cache["impl"], &cache["coherence_mode"]), (&json!("l1"), &json!("tracking")));
    assert_eq!((&cache["upstream"]["up"], &cache["upstream"]["backend"]), (&json!(true), &json!("upstream")));
    assert!(cache["upstream"]["version"].is_string(), "{cache}");
}

#[test]
fn denials_are_shown_without_what_they_were_given() {
    let redis = Redis::start();
    let proxy = Proxy::to(&redis).set("commands.deny", json!(["keys", "flushall"])).start();
    let mut client = proxy.client();
    run(&mut client, "KEYS secret:*");
    run(&mut client, "FLUSHALL");
    let answer = proxy.get("/api/v1/dashboard/policy");
    let recent = &answer.json()["recent"];
    assert_eq!(recent["total"], 2);
    let items = recent["items"].as_array().unwrap();
    let shown: Vec<_> = items.iter().map(|item| item["command"].as_str().unwrap()).collect();
    assert_eq!(shown, ["flushall", "keys"]);
    assert!(
        items.iter().all(|item| item["why"].as_str().unwrap().contains("commands.deny") && item["client"].is_string())
    );
    assert!(!answer.body.contains("secret"));
}

// ---- sessions ----

#[test]
fn sessions_say_who_they_were_what_they_did_and_how_they_ended() {
    let redis = Redis::start();
    let proxy = patient(&redis).start();
    let mut named = proxy.client();
    run(&mut named, "CLIENT SETNAME worker-7");
    run(&mut named, "SET k v");
    run(&mut named, "LLEN k");
    let run_of = |name: &str| {
        let runs = api(&proxy, "dashboard/runs");
        let items = runs["recent"]["items"].as_array().unwrap().clone();
        items.into_iter().find(|item| item["name"] == name)
    };
    let alive = poll(PATIENCE, || run_of("worker-7")).expect("the session");
    assert_eq!(
        (&alive["ended"], &alive["end"], &alive["commands"], &alive["errors"]),
        (&Value::Null, &Value::Null, &json!(3), &json!(1))
    );
    assert!(alive["bytes_in"].as_u64() > Some(0) && alive["bytes_out"].as_u64() > Some(0));
    drop(named);
    eventually(PATIENCE, "its end", || {
        run_of("worker-7").is_some_and(|run| run["end"] == "closed" && run["failed"] == false)
    });
    let before = api(&proxy, "dashboard/runs");
    let mut broken = proxy.client();
    broken.send(b"*1\r\n!nonsense\r\n");
    eventually(PATIENCE, "a failure", || {
        api(&proxy, "dashboard/runs")["failed"].as_u64() == before["failed"].as_u64().map(|n| n + 1)
    });
    let after = api(&proxy, "dashboard/runs");
    assert_eq!(after["recent"]["items"][0]["end"], "protocol");
    assert_eq!(after["recent"]["items"][0]["failed"], true);
    let histogram: u64 =
        after["duration_histogram"].as_array().unwrap().iter().filter_map(|b| b["count"].as_u64()).sum();
    assert_eq!(
        (Some(histogram), after["durations"]["count"].as_u64()),
        (
            after["durations"]["count"].as_u64(),
            after["completed"].as_u64().map(|n| n + after["failed"].as_u64().unwrap())
        )
    );
}

#[test]
fn hits_of_other_workers_count_for_the_session_and_the_process() {
    let redis = Redis::start();
    let proxy = patient(&redis).set("workers", 2).start();
    redis.cmd(&["SET", "k", "v"]);
    let mut clients: Vec<_> = (0..4).map(|_| proxy.client()).collect();
    warm(&proxy, &mut clients[0], "k");
    let get = |answer: &Value| answer["operations"]["get"].as_u64().unwrap();
    let before = get(&api(&proxy, "dashboard/metrics"));
    for client in &mut clients {
        (0..25).for_each(|_| assert_eq!(run(client, "GET k"), Reply::bulk("v")));
    }
    assert_eq!(get(&api(&proxy, "dashboard/metrics")), before + 100);
    let runs = api(&proxy, "dashboard/runs");
    let of_clients = runs["recent"]["items"].as_array().unwrap().iter().filter(|run| run["hits"].as_u64() >= Some(25));
    assert_eq!(of_clients.count(), 4, "{runs}");
}

// ---- over time ----

#[test]
fn history_shows_the_load_and_a_gap_where_the_process_stood_still() {
    let redis = Redis::start();
    let (mut proxy, other) = (patient(&redis).start(), patient(&redis).start());
    let mut client = proxy.client();
    redis.cmd(&["SET", "k", "v"]);
    warm(&proxy, &mut client, "k");
    (0..50).for_each(|_| drop(run(&mut client, "GET k")));
    let sum = |series: &Value| series.as_array().unwrap().iter().filter_map(Value::as_f64).sum::<f64>();
    eventually(PATIENCE, "the load", || sum(&api(&proxy, "history")["series"]["hits"]) >= 50.0);
    let seen = api(&proxy, "history")["length"].as_u64().unwrap() as usize;
    proxy.sigstop();
    // It stands still for more than two whole steps, by the clock of one that does not.
    let before = api(&other, "history")["length"].as_u64();
    eventually(PATIENCE, "four seconds", || api(&other, "history")["length"].as_u64() >= before.map(|n| n + 4));
    proxy.sigcont();
    let gap = || {
        let clients =
            api(&proxy, "history")["series"]["clients"].as_array().unwrap()[seen.saturating_sub(1)..].to_vec();
        let nulls = clients.iter().filter(|value| value.is_null()).count();
        nulls >= 2 && clients.last().is_some_and(Value::is_number)
    };
    eventually(PATIENCE, "a gap and what came behind it", gap);
}

// ---- many at once ----

/// A stream, or what was answered instead.
fn open(proxy: &Proxy) -> Option<TcpStream> {
    let mut stream = TcpStream::connect(proxy.http_address()).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    write!(stream, "GET /api/v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n").ok()?;
    let mut start = [0; 12];
    stream.read_exact(&mut start).ok()?;
    (&start == b"HTTP/1.1 200").then_some(stream)
}

/// Takes what has come.
fn drain(stream: &mut TcpStream) {
    stream.set_nonblocking(true).expect("a socket");
    let mut chunk = [0; 1 << 16];
    while stream.read(&mut chunk).is_ok_and(|n| n > 0) {}
}

#[test]
fn ten_thousand_streams_are_bounded_and_clients_do_not_notice() {
    let redis = Redis::start();
    let proxy = patient(&redis).set("http.max_connections", 128).start();
    let mut client = proxy.client();
    redis.cmd(&["SET", "k", "v"]);
    warm(&proxy, &mut client, "k");
    let before = proxy.rss();
    let mut held = Vec::new();
    for i in 0..10_000 {
        held.extend(open(&proxy));
        if i % 100 == 0 {
            assert_eq!(run(&mut client, "GET k"), Reply::bulk("v"));
            // Whoever takes nothing for ten seconds gives its place away, and a busy machine takes longer for all of this.
            held.iter_mut().for_each(drain);
        }
    }
    assert_eq!(held.len(), 112, "seven eighths of the connections");
    assert_eq!(proxy.get("/health/live").status, 200);
    let grown = proxy.rss().saturating_sub(before);
    assert!(grown < 64 << 20, "{grown} bytes more");
    drop(held);
    eventually(PATIENCE, "free places", || open(&proxy).is_some());
}

#[test]
fn a_scrape_storm_delays_no_client_and_is_bounded() {
    let redis = Redis::start();
    let proxy = patient(&redis).set("http.max_connections", 16).start();
    let mut client = proxy.client();
    redis.cmd(&["SET", "k", "v"]);
    warm(&proxy, &mut client, "k");
    let (over, before) = (AtomicBool::new(false), proxy.rss());
    std::thread::scope(|scope| {
        for _ in 0..32 {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    for path in ["/metrics", "/api/v1/dashboard", "/api/v1/history"] {
                        // Refused, cut off or answered: all the same here.
                        let _ = http::try_request(proxy.http_address(), "GET", path);
                    }
                }
            });
        }
        (0..2_000).for_each(|_| assert_eq!(run(&mut client, "GET k"), Reply::bulk("v")));
        over.store(true, Ordering::Relaxed);
    });
    let grown = proxy.rss().saturating_sub(before);
    assert!(grown < 64 << 20, "{grown} bytes more");
    eventually(PATIENCE, "an answer after the storm", || proxy.get("/api/v1/dashboard").status == 200);
}

// ---- the description, fuzzed ----

/// The stream has no end that a fuzzer could wait for.
const LEFT_OUT: &str = "^/api/v1/events$";

/// What holds for every answer, whatever was asked: no 5xx, and the status, type, head and body that the description has.
const CHECKS: &str = "not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,\
                      response_schema_conformance,negative_data_rejection,unsupported_method,allow_header_conformance";

fn fuzz(proxy: &Proxy, more: &[&str]) {
    let program = Path::new(ROOT).join("target/clients/venv/bin/schemathesis");
    if !program.exists() {
        assert!(std::env::var_os("NEARSIDE_TEST_CLIENTS").is_none(), "{} is not there", program.display());
        eprintln!("SKIPPED schemathesis: {} is not there; tests/run installs it", program.display());
        return;
    }
    eventually(PATIENCE, "ready", || proxy.get("/health/ready").status == 200);
    let root = format!("http://{}", proxy.http_address());
    let output = Command::new(program)
        .args(["run", &format!("{root}/api/v1/openapi.json"), "--url", &root, "--no-color"])
        .args(["--exclude-path-regex", LEFT_OUT, "--checks", CHECKS, "--seed", "7"])
        .args(["--request-timeout", "15", "--generation-database", "none", "--phases", "examples,coverage,fuzzing"])
        .args(more)
        .current_dir(proxy.dir())
        .stdin(Stdio::null())
        .output()
        .expect("schemathesis");
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}\n{out}{err}", output.status);
    assert!(out.contains("Tested: ") || out.contains("generated"), "nothing was checked:\n{out}{err}");
    assert_eq!(proxy.get("/health/live").status, 200);
}

/// What upstream holds: asked while the cache serves, by a user who may; else nobody knows.
#[test]
fn upstream_is_asked_how_much_it_holds() {
    let mut redis = Redis::start();
    redis.cmd(&["MSET", "a", "1", "b", "2"]);
    let mut other = redis.client();
    other.cmd(&["SELECT", "3"]);
    other.cmd(&["SET", "c", "3"]);
    let proxy = Proxy::to(&redis).set("upstream.info_poll", "1s").start();
    let upstream = || api(&proxy, "dashboard/cache")["upstream"].clone();
    eventually(PATIENCE, "its keys, of all databases", || upstream()["keys"] == 3);
    assert!(upstream()["memory_bytes"].as_u64() > Some(100_000), "{}", upstream());
    assert_eq!(proxy.metric("nearside_upstream_keys"), 3.0);
    assert!(proxy.metric("nearside_upstream_memory_bytes") > 100_000.0);
    redis.cmd(&["SET", "d", "4"]);
    eventually(PATIENCE, "one more", || upstream()["keys"] == 4);
    let mut client = proxy.client();
    for mode in ["observe", "off"] {
        client.cmd(&["NEARSIDE", "MODE", mode]);
        eventually(PATIENCE, "nothing known in a mode that asks nothing", || upstream()["keys"].is_null());
        client.cmd(&["NEARSIDE", "MODE", "serve"]);
        eventually(PATIENCE, "it is known again", || upstream()["keys"] == 4);
    }
    redis.stop();
    eventually(PATIENCE, "nothing known of one that is gone", || upstream()["memory_bytes"].is_null());
    assert_eq!(proxy.metric("nearside_upstream_memory_bytes"), 0.0);
}

#[test]
fn an_upstream_that_refuses_info_is_asked_once_a_connection_and_it_is_said() {
    let redis = Redis::start();
    redis.cmd(&["ACL", "SETUSER", "default", "-info"]);
    let proxy = Proxy::to(&redis).set("upstream.info_poll", "1s").start();
    proxy.wait_logged("upstream refuses INFO");
    // Two seconds more than it takes to ask again.
    eventually(PATIENCE, "time to ask again", || api(&proxy, "history")["length"].as_u64() >= Some(4));
    assert!(api(&proxy, "dashboard/cache")["upstream"]["keys"].is_null());
    let log = redis.cmd(&["ACL", "LOG"]).items();
    let asked = |entry: &&Reply| entry.get("object").text().starts_with("info");
    let times: i64 = log.iter().filter(asked).map(|entry| entry.get("count").int()).sum();
    assert!((1..=2).contains(&times), "{times} refusals in upstream's log");
    let mut client = proxy.client();
    assert_eq!(client.cmd(&["SET", "k", "v"]), Reply::ok(), "served as before");
}

#[test]
fn upstream_is_not_asked_where_the_configuration_says_so() {
    let redis = Redis::start();
    let proxy = Proxy::to(&redis).set("upstream.info_poll", "0s").start();
    eventually(PATIENCE, "time to have asked", || api(&proxy, "history")["length"].as_u64() >= Some(3));
    let stats = redis.cmd(&["INFO", "commandstats"]).text();
    assert!(!stats.contains("cmdstat_info:"), "{stats}");
    assert!(api(&proxy, "dashboard/cache")["upstream"]["keys"].is_null());
}

#[test]
fn rules_have_a_history_by_the_second() {
    let redis = Redis::start();
    let rules = serde_json::json!([{"name": "users", "pattern": "user:*"}, {"name": "carts", "pattern": "cart:*"}]);
    let proxy = Proxy::to(&redis).set("rules", rules).start();
    let mut client = proxy.client();
    // What came before the first look at a rule is not in its history.
    eventually(PATIENCE, "the first second", || api(&proxy, "history")["rules"]["users"].is_object());
    eventually(PATIENCE, "hits and misses of it", || {
        (0..5).for_each(|_| drop(client.cmd(&["GET", "user:1"])));
        let history = api(&proxy, "history");
        let of = |rule: &str, what: &str| {
            history["rules"][rule][what].as_array().unwrap().iter().filter_map(Value::as_f64).sum::<f64>()
        };
        of("users", "hits") >= 20.0 && of("users", "misses") >= 1.0 && of("carts", "hits") == 0.0
    });
    let history = api(&proxy, "history");
    let users = &history["rules"]["users"];
    assert_eq!(users["hits"].as_array().map(Vec::len), history["series"]["hits"].as_array().map(Vec::len));
    assert!(users.get("saved").is_none(), "by minutes only");
}

#[test]
fn a_fuzzer_finds_no_answer_that_is_not_described() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis);
    fuzz(&proxy, &["--max-examples", "5"]);
}

/// Whoever has the token changes rules, the mode and the cache, and reads the configuration again, in any order and with any
/// body. What runs afterwards is a sidecar still.
#[test]
fn a_fuzzer_that_may_change_things_finds_none_either() {
    let (redis, dir) = (Redis::start(), temp_dir());
    let token = dir.path().join("token");
    std::fs::write(&token, TOKEN).expect("a token");
    let proxy = Proxy::to(&redis).set("http.token_file", token.display().to_string()).start();
    fuzz(
        &proxy,
        &["--include-tag", "change", "--max-examples", "15", "--header", &format!("Authorization: Bearer {TOKEN}")],
    );
    let changed = api(&proxy, "events/recent?n=200");
    let kinds: BTreeSet<&str> =
        changed["events"].as_array().unwrap().iter().filter_map(|e| e["kind"].as_str()).collect();
    println!("{} changes: {kinds:?}", changed["total"]);
    assert!(["mode", "reload", "rules"].iter().all(|kind| kinds.contains(kind)), "it was not let in: {changed}");
    assert!(proxy.metric_sum("nearside_flushes_total") + proxy.metric_sum("nearside_invalidations_total") > 0.0);
    let mut client = proxy.client();
    assert_eq!(run(&mut client, "SET after fuzzing"), Reply::ok());
    assert_eq!(run(&mut client, "GET after"), Reply::bulk("fuzzing"));
}

const TOKEN: &str = "the-token-of-the-fuzzer";
