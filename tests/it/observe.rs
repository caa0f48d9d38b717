//! Observe mode: upstream sees the clients' commands and no others, nothing is served from the L1, the figures are true and
//! survive a restart, and switching between observe, serve and off under load serves nobody an old value.

use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use serde_json::{Value, json};

use crate::sessions::{run, warm};
use crate::support::proxy::Builder;
use crate::support::{Client, Dir, PATIENCE, Proxy, Redis, Relay, Reply, Scope, eventually, temp_dir};

/// Short, so that a heartbeat would come often: several times in `WATCHED`.
const B: &str = "200ms";

/// Longer than every interval at which something is sent on our own account while we cache (the channel's is 5 s).
const WATCHED: Duration = Duration::from_millis(5500);

/// A key that is written when all is over.
const LAST: &str = "the-last-one";

const MODES: [&str; 3] = ["serve", "observe", "off"];

fn observing(redis: &Redis) -> Builder {
    Proxy::to(redis).set("cache.mode", "observe").set("coherence.max_staleness", B)
}

#[track_caller]
fn candidates(proxy: &Proxy) -> Value {
    let answer = proxy.get("/api/v1/candidates");
    assert_eq!(answer.status, 200, "{}", answer.body);
    answer.json()
}

#[track_caller]
fn item(found: &Value, pattern: &str, command: &str) -> Value {
    let items = found["items"].as_array().expect("items");
    let is = |item: &&Value| item["pattern"] == pattern && item["command"] == command;
    items.iter().find(is).unwrap_or_else(|| panic!("no {command} of {pattern} in {found}")).clone()
}

#[track_caller]
fn rate(item: &Value, ttl_ms: u64) -> f64 {
    let rates = item["hit_rate"].as_array().expect("rates");
    let is = |rate: &&Value| rate["ttl_ms"] == ttl_ms && rate["max_bytes"].is_null();
    rates.iter().find(is).and_then(|rate| rate["hit_rate"].as_f64()).expect("a rate")
}

/// The words of each command that upstream executes from here on.
struct Monitor(Client);

impl Monitor {
    fn of(redis: &Redis) -> Monitor {
        let mut client = redis.client();
        assert_eq!(run(&mut client, "MONITOR"), Reply::ok());
        Monitor(client)
    }

    /// All of them up to the one that writes `LAST`.
    fn seen(mut self) -> Vec<String> {
        let mut seen = Vec::new();
        loop {
            let line = self.0.reply().text();
            let words = line.split_once("] ").map_or(&*line, |(_, words)| words).replace('"', "");
            if words.contains(LAST) {
                return seen;
            }
            seen.push(words);
        }
    }
}

#[test]
fn upstream_sees_the_clients_commands_and_no_others() {
    let commands = [
        "GET user:1",
        "GET user:1",
        "MGET user:1 user:2",
        "SET user:1 x",
        "GET user:1",
        "HSET h f v",
        "HGETALL h",
        "HGETALL h",
        "EVAL return_1 0",
        "DEL user:1",
        "GET user:1",
        "PUBLISH c m",
        "SADD s a",
        "SMEMBERS s",
    ];
    let exactly = |mode: &str, watched: Duration| {
        let redis = Redis::start();
        let proxy = Proxy::to(&redis).set("coherence.max_staleness", B).start();
        let mut client = proxy.client();
        // Over a lane that has served: it must stop what it does for that.
        warm(&proxy, &mut client, "user:9");
        assert_eq!(run(&mut client, &format!("NEARSIDE MODE {mode}")), Reply::ok());
        // Behind whatever the change has sent.
        run(&mut client, "GET behind");
        run(&mut client, "GET behind");
        let monitor = Monitor::of(&redis);
        for command in commands {
            let words: Vec<String> = command.split(' ').map(|word| word.replace('_', " ")).collect();
            client.cmd(&words);
        }
        std::thread::sleep(watched);
        run(&mut redis.client(), &format!("SET {LAST} 1"));
        monitor.seen() == commands.map(|command| command.replace("return_1", "return 1"))
    };
    assert!(exactly("observe", WATCHED));
    assert!(exactly("off", Duration::from_millis(500)));
    assert!(!exactly("serve", Duration::ZERO), "this test sees what is sent on our own account");
}

#[test]
fn nothing_is_served_and_what_would_be_is_measured() {
    let redis = Redis::start();
    let proxy = observing(&redis).start();
    let (mut client, mut client3) = (proxy.client(), proxy.client3());
    for i in 0..10 {
        run(&mut redis.client(), &format!("SET user:{i} {i}"));
    }
    for round in 0..30 {
        for i in 0..10 {
            // What others write is seen at once: nothing is a copy.
            assert_eq!(run(&mut client, &format!("GET user:{i}")), Reply::bulk(i.to_string()), "{round}");
        }
    }
    for _ in 0..5 {
        run(&mut client, "SET user:0 0");
        run(&mut client3, "MGET user:0 user:1");
    }
    assert_eq!((proxy.stat("hits"), proxy.stat("entries")), (0.0, 0.0));
    let found = candidates(&proxy);
    assert_eq!((&found["mode"], &found["sample_rate"]), (&json!("observe"), &json!(1.0)));
    assert!(found["observed_since"].is_string() && found["tracked_keys"].as_u64() >= Some(10), "{found}");
    let user = item(&found, "user", "GET");
    assert!(user["requests_per_minute"].as_f64() >= Some(100.0), "{user}");
    assert_eq!((&user["upstream"]["count"], &user["distinct_keys"]), (&json!(300), &json!(10.0)));
    // 310 keys were read, by GET and MGET, in RESP2 and RESP3: ten for the first time, five behind a write.
    let wanted = 295.0 / 310.0;
    assert!((rate(&user, 1_800_000) - wanted).abs() < 1e-9, "{user}");
    assert_eq!(user["already_cached"], false);
    assert!(user["rule_yaml"].as_str().is_some_and(|yaml| yaml.contains("pattern: \"user:*\"")), "{user}");
    let hits = proxy.metric("cache_hits_total{impl=\"observe\",key_pattern=\"user\"}");
    let misses = proxy.metric("cache_miss_total{impl=\"observe\",key_pattern=\"user\"}");
    assert_eq!((hits, misses), (295.0, 15.0));
    assert_eq!(proxy.metric("cache_enabled{impl=\"observe\"}"), 0.0);
    assert_eq!(proxy.metric("cache_candidate_requests{route=\"user\",method=\"MGET\"}"), 5.0);
    for client in [&mut client, &mut client3] {
        let all = run(client, "NEARSIDE CANDIDATES").items();
        let first = all.first().expect("a candidate");
        assert_eq!((first.get("pattern").text(), first.get("command").text()), ("user".to_owned(), "GET".to_owned()));
        assert_eq!(first.get("hit_rate_ttl_1800000_ms").text(), format!("{wanted:.3}"));
        assert_eq!(first.get("rule_yaml").text(), user["rule_yaml"].as_str().unwrap_or_default());
    }
    assert!(run(&mut client, "NEARSIDE CANDIDATES 0").text().starts_with("ERR how many candidates?"));
    assert_eq!(proxy.get("/api/v1/candidates?n=0").status, 400);
    assert_eq!(proxy.get("/api/v1/candidates?x=1").status, 400);
}

#[test]
fn what_is_written_in_any_way_is_no_hit() {
    let redis = Redis::start();
    let proxy = observing(&redis).set("observe.candidates.min_per_minute", 0).start();
    let mut client = proxy.client();
    let writes: [&[&str]; 5] = [
        &["SET k:1 a"],
        &["MULTI", "SET k:1 b", "EXEC"],
        &["EVAL return_1 1 k:1"],
        &["SELECT 1", "SWAPDB 0 1", "SELECT 0"],
        &["FLUSHALL"],
    ];
    let told = |client: &mut Client| {
        run(client, "GET k:1");
        run(client, "GET k:1");
        rate(&item(&candidates(&proxy), "k", "GET"), 1_800_000)
    };
    assert_eq!(told(&mut client), 0.5);
    for write in writes {
        for command in write {
            let words: Vec<String> = command.split(' ').map(|word| word.replace('_', " ")).collect();
            let reply = client.cmd(&words);
            assert!(!reply.is_error(), "{command}: {reply:?}");
        }
        assert_eq!(told(&mut client), 0.5, "{write:?}: one hit for each miss");
    }
}

#[test]
fn a_rule_that_observes_leaves_the_others_their_hits() {
    let redis = Redis::start();
    let rules = json!([{"name": "seen", "pattern": "seen:*", "mode": "observe"}, {"name": "all", "pattern": "*"}]);
    let proxy = Proxy::to(&redis).set("coherence.max_staleness", "60s").set("rules", rules);
    let proxy = proxy.set("observe.candidates.min_per_minute", 0).start();
    let mut client = proxy.client();
    for key in ["seen:1", "served:1"] {
        run(&mut redis.client(), &format!("SET {key} v"));
    }
    warm(&proxy, &mut client, "served:1");
    for _ in 0..4 {
        assert_eq!(run(&mut client, "GET seen:1"), Reply::bulk("v"));
        assert_eq!(run(&mut client, "MGET served:1 seen:1"), Reply::bulks(&["v", "v"]));
        run(&mut client, "GET served:1");
    }
    assert!(proxy.stat("hits") >= 4.0);
    assert_eq!(run(&mut client, "NEARSIDE ENTRY seen:1"), Reply::Nil);
    assert_eq!(run(&mut client, "NEARSIDE EXPLAIN GET seen:1").get("rule_says").text(), "rule_observe");
    assert_eq!(proxy.metric("nearside_bypass_total{reason=\"rule_observe\"}"), 8.0);
    let found = candidates(&proxy);
    assert_eq!(found["total"], 2, "GET and MGET of one family: {found}");
    let seen = item(&found, "seen", "GET");
    assert_eq!(rate(&seen, 1_800_000), 7.0 / 8.0);
    assert!(seen["rule_yaml"].as_str().is_some_and(|yaml| !yaml.contains("observe")), "{seen}");
}

#[test]
fn what_was_learned_survives_a_restart_and_a_strange_file_is_left_alone() {
    let (redis, dir) = (Redis::start(), temp_dir());
    let path = dir.path().join("observed");
    let start = || {
        let file = path.display().to_string();
        observing(&redis).set("observe.file", file).set("observe.candidates.min_per_minute", 0).start()
    };
    let mut proxy = start();
    let mut client = proxy.client();
    for _ in 0..4 {
        run(&mut client, "GET user:1");
    }
    let before = item(&candidates(&proxy), "user", "GET");
    drop(client);
    proxy.sigterm();
    assert!(proxy.wait_exit(PATIENCE).success());
    let mode = std::fs::metadata(&path).expect("the file").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let proxy = start();
    let after = item(&candidates(&proxy), "user", "GET");
    assert_eq!((&after["upstream"], &after["hit_rate"]), (&before["upstream"], &before["hit_rate"]));
    run(&mut proxy.client(), "GET user:1");
    assert_eq!(item(&candidates(&proxy), "user", "GET")["upstream"]["count"], 5);
    drop(proxy);

    std::fs::write(&path, "somebody's letter").expect("a file");
    let mut proxy = start();
    assert_eq!(proxy.count_logged("observe.file"), 1);
    proxy.wait_logged("it is left as it is");
    run(&mut proxy.client(), "GET user:1");
    proxy.sigterm();
    assert!(proxy.wait_exit(PATIENCE).success());
    assert_eq!(std::fs::read_to_string(&path).expect("the file"), "somebody's letter");
}

/// The lane has to be armed and disarmed over and over, also before it has answered the last change, while others write past
/// us. A copy from before a switch that came back after it would be older than what the same client has just read.
#[test]
fn switching_under_load_drops_nobody_and_serves_no_old_value() {
    const KEYS: usize = 8;
    let redis = Redis::start();
    for i in 0..KEYS {
        run(&mut redis.client(), &format!("SET n:{i} 0"));
    }
    let proxy = Proxy::to(&redis).set("workers", 2).start();
    let stop = Arc::new(AtomicBool::new(false));
    let writer = {
        let (mut client, stop) = (redis.client(), stop.clone());
        std::thread::spawn(move || {
            for n in 1.. {
                if stop.load(SeqCst) {
                    return;
                }
                (0..KEYS).for_each(|i| drop(client.cmd(&["SET", &format!("n:{i}"), &n.to_string()])));
            }
        })
    };
    let reader = || {
        let (mut client, stop) = (proxy.client(), stop.clone());
        std::thread::spawn(move || {
            let mut newest = [0i64; KEYS];
            let mut reads = 0u64;
            while !stop.load(SeqCst) {
                for (i, newest) in newest.iter_mut().enumerate() {
                    let read: i64 = run(&mut client, &format!("GET n:{i}")).text().parse().expect("a number");
                    assert!(read >= *newest, "n:{i} went back from {newest} to {read}");
                    *newest = read;
                    reads += 1;
                }
            }
            reads
        })
    };
    let readers: Vec<_> = (0..3).map(|_| reader()).collect();
    let mut admin = proxy.client();
    for i in 0..120 {
        let mode = MODES[[0, 1, 0, 2, 1, 0, 2, 1][i % 8]];
        assert_eq!(run(&mut admin, &format!("NEARSIDE MODE {mode}")), Reply::ok());
        // Some follow at once, others when there are hits, or reads that go through.
        if mode == "serve" && i % 16 == 0 {
            let before = proxy.stat("hits");
            eventually(PATIENCE, "hits", || proxy.stat("hits") > before);
        } else if i % 3 == 0 {
            (0..20).for_each(|_| drop(run(&mut admin, "GET n:0")));
        }
    }
    assert_eq!(run(&mut admin, "NEARSIDE MODE serve"), Reply::ok());
    let before = proxy.stat("hits");
    eventually(PATIENCE, "hits after all that", || proxy.stat("hits") > before);
    stop.store(true, SeqCst);
    writer.join().expect("the writer");
    let reads: u64 = readers.into_iter().map(|reader| reader.join().expect("a reader nobody has disturbed")).sum();
    assert!(reads > 0);
    assert_eq!(proxy.stat("upstream_reconnects"), 0.0, "all over the same connection");
    for i in 0..KEYS {
        let key = format!("n:{i}");
        let last = run(&mut redis.client(), &format!("GET {key}"));
        eventually(PATIENCE, "the last value", || run(&mut admin, &format!("GET {key}")) == last);
    }
}

/// The mode changes while the handshake is under way: the connection is put right when it is up.
#[test]
fn a_switch_during_a_handshake_is_made_up_for() {
    let tracking = |redis: &Redis| {
        let info = redis.cmd(&["INFO", "clients"]).text();
        info.lines().find_map(|line| line.strip_prefix("tracking_clients:").map(str::to_owned)).expect("the count")
    };
    for (from, to, wanted) in [("observe", "serve", "1"), ("serve", "observe", "0")] {
        let redis = Redis::start();
        let relay = Relay::to(&redis);
        relay.stall(Scope::All, Dir::Down);
        let proxy = Proxy::upstream(&relay.url()).set("cache.mode", from).set("upstream.connect_timeout", "4s").start();
        relay.wait_accepted(1);
        let mut client = proxy.client();
        assert_eq!(run(&mut client, &format!("NEARSIDE MODE {to}")), Reply::ok());
        relay.resume(Scope::All, Dir::Down);
        assert_eq!(run(&mut client, "GET k"), Reply::Nil);
        eventually(PATIENCE, "the link as the mode wants it", || tracking(&redis) == wanted);
        if to == "serve" {
            eventually(PATIENCE, "tracking", || proxy.stats()["coherence"] == "tracking");
            warm(&proxy, &mut client, "k");
            redis.cmd(&["SET", "k", "new"]);
            eventually(PATIENCE, "the new value", || run(&mut client, "GET k") == Reply::bulk("new"));
        } else {
            assert_eq!(proxy.stats()["coherence_why"], "cache.mode is observe");
        }
    }
}
