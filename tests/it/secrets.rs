//! What clients store, and how their keys are called, marked and looked for in everything that a sidecar says: each page of the
//! side port, the stream of events, NEARSIDE, the metrics and the log at `trace`. They go through as many kinds of trouble as
//! there are: wrong types, words in the wrong place, values too large to keep, refused commands, slow ones, an outage with a
//! queue and a journal, and an upstream that repeats in its error what it was asked.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::path::Path;

use serde_json::{Value, json};

use crate::logs::{mistaken, ordinary, pinned};
use crate::support::{Client, PATIENCE, Proxy, Redis, Relay, Reply, eventually, proxy, temp_dir};

const VALUE: &str = "v4lue-s3cret";
const KEY: &str = "k3y-s3cret";

/// What was said, and where.
type Said = Vec<(String, String)>;

fn side_port(proxy: &Proxy, said: &mut Said) {
    let described = proxy.get("/api/v1/openapi.json").json();
    let paths = described["paths"].as_object().expect("paths");
    let read = paths
        .iter()
        .filter(|(_, path)| path["get"].is_object() || path["$ref"].is_string())
        .map(|(path, _)| path.as_str());
    let more = [
        "/api/v1/keys?by=misses&n=100",
        "/api/v1/keys?by=bytes&n=100",
        "/api/v1/candidates?n=300",
        "/api/v1/events/recent?n=200",
        "/api/v1/history?range=24h",
    ];
    for path in read.filter(|path| *path != "/api/v1/events").chain(more) {
        said.push((path.to_owned(), proxy.get(path).body));
    }
    assert!(said.len() > 40, "{} pages", said.len());
}

/// Everything that the stream has kept, and two snapshots.
fn stream(proxy: &Proxy, said: &mut Said) {
    let mut stream = TcpStream::connect(proxy.http_address()).expect("the side port");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    stream.write_all(b"GET /api/v1/events HTTP/1.1\r\nHost: localhost\r\nLast-Event-ID: 1\r\n\r\n").expect("asked");
    let (mut text, mut snapshots) = (String::new(), 0);
    for line in BufReader::new(stream).lines().map(|line| line.expect("a line")) {
        snapshots += usize::from(line.starts_with("event: snapshot"));
        if snapshots > 2 {
            break;
        }
        text += &line;
    }
    said.push(("/api/v1/events".to_owned(), text));
}

fn resp(proxy: &Proxy, said: &mut Said) {
    for words in [
        "STATS",
        "INFO",
        "TOP 100 BY hits",
        "TOP 100 BY misses",
        "TOP 100 BY bytes",
        "SLOWLOG 128",
        "RULES",
        "CANDIDATES 300",
    ] {
        let mut client = proxy.client();
        let command: Vec<&str> = ["NEARSIDE"].into_iter().chain(words.split(' ')).collect();
        client.send_cmd(&command);
        said.push((format!("NEARSIDE {words}"), String::from_utf8_lossy(&client.read_reply_raw()).into_owned()));
    }
    let mut client = proxy.client();
    client.send_cmd(&["INFO", "nearside"]);
    said.push(("INFO".to_owned(), String::from_utf8_lossy(&client.read_reply_raw()).into_owned()));
}

fn all(proxy: &Proxy) -> Said {
    let mut said = Said::new();
    side_port(proxy, &mut said);
    stream(proxy, &mut said);
    resp(proxy, &mut said);
    said.extend(proxy.lines_logged("").into_iter().map(|line| ("the log".to_owned(), line)));
    said
}

/// `named`: where keys may be called by their names.
#[track_caller]
fn none_is_seen(when: &str, said: &Said, named: &[&str]) {
    for (place, text) in said {
        assert!(!text.contains(VALUE), "{when}: a value in {place}: {text}");
        let may = named.iter().any(|start| place.starts_with(start));
        assert!(may || !text.contains(KEY), "{when}: a key in {place}: {text}");
    }
}

fn sidecar(upstream: &str, dir: &Path, names: &str) -> proxy::Builder {
    let journal = dir.join("journal").display().to_string();
    Proxy::upstream(upstream)
        .set("log.level", "trace")
        .set("observe", json!({"keys": names, "slow_log": "1ms", "candidates": {"min_per_minute": 1}}))
        .set("commands.deny", json!(["keys", "flushall"]))
        .set("cache.max_value_bytes", "1KiB")
        .set(
            "rules",
            json!([{"name": "seen", "pattern": "seen:*", "mode": "observe"}, {"name": "all", "pattern": "*"}]),
        )
        .set("outage", json!({"writes": "queue", "journal_dir": journal, "journal_fsync": "always"}))
        .set("upstream.retry.max_delay", "100ms")
        .set("alerts", json!({"error_rate": 0.001, "for": "1s", "min_requests_per_minute": 1}))
}

/// Hits, misses, large values, observed keys, slow and refused commands.
fn trouble(proxy: &Proxy) {
    let mut client = proxy.client();
    let large = VALUE.repeat(1000);
    for words in [
        &["SET", "user:k3y-s3cret", VALUE][..],
        &["SET", "seen:k3y-s3cret", VALUE],
        &["SET", "user:k3y-s3cret:large", &large],
        &["SET", KEY, VALUE],
    ] {
        assert_eq!(client.cmd(words), Reply::ok());
    }
    for _ in 0..30 {
        for key in ["user:k3y-s3cret", "seen:k3y-s3cret", "user:k3y-s3cret:large", "user:k3y-s3cret:none", KEY] {
            client.cmd(&["GET", key]);
        }
    }
    mistaken(&mut proxy.client());
    assert!(client.cmd(&["HGET", "user:k3y-s3cret", VALUE]).is_error(), "of another type");
    pinned(proxy);
    let slow = "local t = 0; for i = 1, 3000000 do t = t + i end; return ARGV[1]";
    client.cmd(&["EVAL", slow, "1", "user:k3y-s3cret", VALUE]);
    proxy.wait_logged("slow command: eval");
}

fn queued(client: &mut Client) {
    eventually(PATIENCE, "a queued write", || client.cmd(&["SET", "user:k3y-s3cret:queued", VALUE]) == Reply::ok());
    for words in [
        &["APPEND", "user:k3y-s3cret:queued", VALUE][..],
        &["LPUSH", "user:k3y-s3cret", VALUE],
        &["SETRANGE", KEY, "1", VALUE],
    ] {
        client.cmd(words);
    }
}

fn shown(answer: &Value, list: &str) -> usize {
    answer.pointer(list).and_then(Value::as_array).map_or(0, Vec::len)
}

/// Keys, slow commands, denials, alerts: what is looked through is not empty.
fn there_is_something(proxy: &Proxy) {
    let keys = proxy.get("/api/v1/keys").json();
    for list in ["/items", "/big_values", "/slow_log/items"] {
        assert!(shown(&keys, list) > 0, "{list}: {keys}");
    }
    assert!(shown(&proxy.get("/api/v1/dashboard/policy").json(), "/recent/items") > 0);
    assert!(shown(&proxy.get("/api/v1/candidates").json(), "/items") > 0);
    eventually(PATIENCE, "an alert", || shown(&proxy.get("/api/v1/alerts").json(), "/items") > 0);
}

fn attacked(names: &str, named: &[&str]) {
    let (mut redis, dir) = (Redis::start(), temp_dir());
    let relay = Relay::to(&redis);
    let mut proxy = sidecar(&relay.url(), dir.path(), names).start();
    trouble(&proxy);
    there_is_something(&proxy);
    none_is_seen("in service", &all(&proxy), named);
    redis.stop();
    eventually(PATIENCE, "upstream to be gone", || {
        ordinary(&mut proxy.client()) || proxy.stats()["upstream_state"] != "closed"
    });
    queued(&mut proxy.client());
    none_is_seen("in an outage", &all(&proxy), named);
    proxy.sigterm();
    proxy.wait_exit(PATIENCE);
    let lines = proxy.lines_logged("").into_iter().map(|line| ("the log".to_owned(), line)).collect();
    none_is_seen("at the end", &lines, named);
    // What is in the journal goes to a server that has no SET any more, and that says what it was asked.
    let poor = Redis::builder().args(&["--rename-command", "SET", ""]).start();
    let proxy = sidecar(&poor.url(), dir.path(), names).start();
    proxy.wait_logged("lost");
    none_is_seen("at the replay", &all(&proxy), named);
}

#[test]
fn no_value_is_seen_anywhere_and_no_key_where_names_are_hidden() {
    attacked("hide", &[]);
}

#[test]
fn keys_that_are_shown_are_shown_in_their_lists_only() {
    attacked("show", &["/api/v1/keys", "NEARSIDE TOP"]);
}

/// Keys that may not be touched, commands that are not allowed, and a name that is the value of somebody who has lost count.
#[test]
fn what_is_refused_is_told_without_what_it_was_given() {
    for enforce in [true, false] {
        let redis = Redis::start();
        let proxy = Proxy::to(&redis)
            .set("log.level", "trace")
            .set("observe.keys", "hide")
            .set("commands", json!({"deny": ["~user:*", "eval"], "allow": ["@read", "@write"], "enforce": enforce}))
            .start();
        let mut client = proxy.client();
        for words in [
            &["GET", "user:k3y-s3cret"][..],
            &["MSET", "user:k3y-s3cret", VALUE, KEY, VALUE],
            &["EVAL", VALUE, "1", "user:k3y-s3cret"],
            &[VALUE, "user:k3y-s3cret"],
            &["CLIENT", VALUE, KEY],
            &["CONFIG", "SET", KEY, VALUE],
        ] {
            client.cmd(words);
        }
        let policy = proxy.get("/api/v1/dashboard/policy").json();
        let of = |field: &str| policy[field].as_u64().unwrap_or(0);
        assert!(of("denied") + of("logged") >= 6, "{policy}");
        none_is_seen(if enforce { "enforced" } else { "logged only" }, &all(&proxy), &[]);
    }
}
