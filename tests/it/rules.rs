//! Rules decide what is cached of which keys, for every way in which a key can come into the cache.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{Client, PATIENCE, Proxy, Redis, Reply, eventually};

struct Ruled {
    redis: Redis,
    proxy: Proxy,
    c: Client,
}

fn ruled(rules: Value) -> Ruled {
    ruled_with(rules, |b| b)
}

fn ruled_with(
    rules: Value,
    more: impl FnOnce(crate::support::proxy::Builder) -> crate::support::proxy::Builder,
) -> Ruled {
    let redis = Redis::start();
    let proxy = more(Proxy::to(&redis).set("rules", rules)).start();
    eventually(PATIENCE, "a lane", || proxy.stats()["coherence"] == "tracking");
    let c = proxy.client();
    Ruled { redis, proxy, c }
}

impl Ruled {
    fn cmd(&mut self, line: &str) -> Reply {
        self.c.cmd(&line.split(' ').collect::<Vec<_>>())
    }

    fn hits(&self) -> f64 {
        self.proxy.stat("hits")
    }

    fn bypass(&self, reason: &str) -> f64 {
        self.proxy.metric(&format!("nearside_bypass_total{{reason=\"{reason}\"}}"))
    }

    /// Whether this read becomes a hit, asked again and again: a reading is stored behind its reply.
    fn is_cached(&mut self, line: &str) -> bool {
        let before = self.hits();
        (0..20).any(|_| {
            self.cmd(line);
            self.hits() > before
        })
    }

    /// A map's field, as NEARSIDE's flat arrays have it.
    fn field(reply: &Reply, name: &str) -> String {
        let words: Vec<String> = reply
            .items()
            .iter()
            .map(|item| if matches!(item, Reply::Array(_)) { String::new() } else { item.text() })
            .collect();
        let at = words.iter().position(|word| word == name).unwrap_or_else(|| panic!("no {name} in {words:?}"));
        words[at + 1].clone()
    }
}

fn candidates(proxy: &Proxy) -> Vec<(String, f64)> {
    let body = proxy.get("/metrics").body;
    let of_family = body.lines().filter_map(|line| line.strip_prefix("cache_candidate_requests{"));
    let counted = of_family.filter_map(|line| {
        let (labels, count) = line.split_once("} ")?;
        let mut words = labels.split('"');
        let (route, method) = (words.nth(1)?, words.nth(1)?);
        Some((format!("{method} {route}"), count.parse().ok()?))
    });
    let mut counted: Vec<(String, f64)> = counted.filter(|(_, count)| *count > 0.0).collect();
    counted.sort_by(|a, b| a.0.cmp(&b.0));
    counted
}

/// Each read is sent so often that a count of misses or hits among them would show.
#[test]
fn a_candidate_is_a_read_that_could_be_cached_and_is_not() {
    let mut r = ruled(json!([
        {"name": "sets", "pattern": "set:*", "commands": ["SMEMBERS"]},
        {"name": "users", "pattern": "user:*"},
        {"name": "carts", "pattern": "cart:*", "mode": "off"},
        {"name": "looked-at", "pattern": "look:*", "mode": "observe"},
        {"name": "half", "pattern": "half:*", "rollout": 0},
    ]));
    assert!(r.is_cached("GET user:1"));
    let reads = [
        // Cached, or compared with what is.
        "GET user:1",
        "MGET user:1 user:2",
        "GET half:1",
        "SMEMBERS set:1",
        // Never to be cached.
        "TTL user:1",
        "SCAN 0",
        "EXISTS user:1 user:2",
        "PING",
        "SET user:9 1",
        "GET",
        "STRLEN",
        // Candidates. An MGET counts once, for the first key that is not cached.
        "GET other:1",
        "MGET user:1 other:1 third:1",
        "GET cart:1",
        "GET look:1",
        "GET set:2",
        "STRLEN user:1",
        "STRLEN 12345:x",
        "STRLEN plain",
        "LLEN cart:1",
    ];
    for line in reads {
        (0..3).for_each(|_| drop(r.cmd(line)));
    }
    let in_transaction = ["MULTI", "GET other:1", "STRLEN user:1", "EXEC"];
    in_transaction.iter().for_each(|line| drop(r.cmd(line)));
    let wanted = [
        "GET carts",
        "GET looked-at",
        "GET other",
        "GET sets",
        "LLEN carts",
        "MGET other",
        "STRLEN _other",
        "STRLEN _plain",
        "STRLEN users",
    ];
    let wanted: Vec<(String, f64)> = wanted.iter().map(|name| ((*name).to_owned(), 3.0)).collect();
    assert_eq!(candidates(&r.proxy), wanted);
}

/// Another mode than `serve` makes a candidate of every read that could be cached.
#[test]
fn where_nothing_is_served_every_read_that_could_be_is_a_candidate() {
    for mode in ["off", "observe"] {
        let redis = Redis::start();
        let proxy = Proxy::to(&redis).set("cache.mode", mode).start();
        let mut client = proxy.client();
        for line in ["GET user:1", "MGET user:1 cart:1", "HGETALL user:1", "HGETALL user:2", "TTL user:1"] {
            client.cmd(&line.split(' ').collect::<Vec<_>>());
        }
        let wanted = [("GET user", 1.0), ("HGETALL user", 2.0), ("MGET user", 1.0)];
        assert_eq!(candidates(&proxy), wanted.map(|(name, n)| (name.to_owned(), n)), "{mode}");
    }
}

#[test]
fn the_first_rule_that_matches_decides_and_other_keys_pass_through() {
    let mut r = ruled(json!([
        {"name": "names", "pattern": "user:{id}:name"},
        {"name": "users", "pattern": "user:*", "mode": "off"},
    ]));
    for key in ["user:1:name", "user:1:mail", "other"] {
        r.redis.cmd(&["SET", key, "v"]);
    }
    assert!(r.is_cached("GET user:1:name"));
    assert!(!r.is_cached("GET user:1:mail"));
    assert!(!r.is_cached("GET other"));
    assert_eq!((r.bypass("rule_off"), r.bypass("no_rule")), (20.0, 20.0));
    assert_eq!(r.proxy.metric("cache_miss_total{impl=\"l1\",key_pattern=\"users\"}"), 0.0);
    assert!(r.proxy.metric("cache_hits_total{impl=\"l1\",key_pattern=\"names\"}") >= 1.0);
    r.proxy.wait_logged("keys that match no rule pass through uncached");
}

#[test]
fn explain_and_rules_say_which_rule_and_why() {
    let mut r = ruled(json!([
        {"name": "short", "pattern": "s:*", "ttl": "7s"},
        {"name": "none", "pattern": "n:*", "mode": "off"},
        {"name": "half", "pattern": "h:*", "rollout": 0},
        {"name": "lengths", "pattern": "l:*", "commands": ["STRLEN"]},
    ]));
    for (command, rule, says) in [
        ("GET s:1", "short", "GET for 7000 ms"),
        ("SET s:1 v", "short", "GET for 7000 ms"),
        ("GET n:1", "none", "rule_off"),
        ("GET h:1", "half", "control"),
        ("GET l:1", "lengths", "command"),
        ("STRLEN l:1", "lengths", "STRLEN for 300000 ms"),
        ("GET x:1", "", "no_rule"),
    ] {
        let reply = r.cmd(&format!("NEARSIDE EXPLAIN {command}"));
        assert_eq!(
            (Ruled::field(&reply, "rule"), Ruled::field(&reply, "rule_says")),
            (rule.into(), says.into()),
            "{command}"
        );
    }
    r.is_cached("GET s:1");
    let rows = r.cmd("NEARSIDE RULES").items();
    assert_eq!(
        rows.iter().map(|row| Ruled::field(row, "name")).collect::<Vec<_>>(),
        ["short", "none", "half", "lengths"]
    );
    assert_eq!(Ruled::field(&rows[0], "ttl_ms"), "7000");
    assert_eq!(Ruled::field(&rows[0], "misses"), "1");
    assert_eq!(Ruled::field(&rows[2], "rollout_percent"), "0");
}

#[test]
fn explain_asks_the_running_process() {
    let r = ruled(
        json!([{"name": "short", "pattern": "{kind}:*", "ttl": "7s"}, {"name": "none", "pattern": "*", "mode": "off"}]),
    );
    let explain = |words: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_nearside"));
        let output = command.arg("explain").args(words).env_remove("NEARSIDE_CONFIG").output().expect("the program");
        (output.status.code(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
    };
    let url = format!("http://{}", r.proxy.http_address());
    let (code, said) = explain(&["--url", &url, "GET", "s:1"]);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("rule: short\nrule_says: GET for 7000 ms\n"), "{said}");
    assert!(explain(&["--url", &url, "GET", "s"]).1.contains("rule: none\nrule_says: rule_off\n"));
    let (code, said) = explain(&["--url", "http://127.0.0.1:1", "GET", "s"]);
    assert_eq!(code, Some(1));
    assert!(said.contains("http://127.0.0.1:1/api/v1/config") && said.contains("--config FILE"), "{said}");
}

#[test]
fn each_command_is_kept_where_its_rule_names_it() {
    let mut r = ruled(json!([
        {"pattern": "h:*", "commands": ["HGETALL"]},
        {"pattern": "*", "commands": ["GET", "MGET"]},
    ]));
    r.redis.cmd(&["HSET", "h:1", "f", "v"]);
    r.redis.cmd(&["HSET", "x", "f", "v"]);
    r.redis.cmd(&["SET", "h:2", "v"]);
    assert!(r.is_cached("HGETALL h:1"));
    assert!(!r.is_cached("HGETALL x"));
    assert!(!r.is_cached("GET h:2"));
    assert!(r.is_cached("GET y"));
    assert_eq!(r.bypass("command"), 40.0);
}

#[test]
fn an_mget_keeps_what_each_keys_rule_says() {
    let mut r = ruled(json!([{"pattern": "a:*"}, {"pattern": "b:*", "mode": "off"}]));
    r.redis.cmd(&["MSET", "a:1", "1", "b:1", "2", "a:2", "3"]);
    let all = Reply::bulks(&["1", "2", "3"]);
    assert_eq!(r.cmd("MGET a:1 b:1 a:2"), all);
    let mut hits = 0.0;
    eventually(PATIENCE, "both of a are hits", || {
        let before = r.hits();
        assert_eq!(r.cmd("MGET a:1 b:1 a:2"), all);
        hits = r.hits() - before;
        hits == 2.0
    });
    // Another's write reaches each of them.
    r.redis.cmd(&["MSET", "a:1", "4", "b:1", "5"]);
    eventually(PATIENCE, "the new values", || r.cmd("MGET a:1 b:1 a:2") == Reply::bulks(&["4", "5", "3"]));
    assert!(r.is_cached("MGET a:1 a:2"));
    assert!(!r.is_cached("MGET b:1"));
}

#[test]
fn a_write_refreshes_where_the_keys_rule_says_so() {
    let mut r = ruled(json!([
        {"pattern": "u:*", "on_write": "update"},
        {"pattern": "i:*", "on_write": "invalidate"},
        {"pattern": "o:*", "on_write": "update", "mode": "off"},
        {"pattern": "r:*", "on_write": "resident"},
    ]));
    let stored = |r: &Ruled| r.proxy.metric("nearside_updates_total");
    for (line, more) in [
        ("SET u:1 v", 1.0),
        ("SET i:1 v", 0.0),
        ("SET o:1 v", 0.0),
        ("SET r:1 v", 0.0),
        ("MSET u:1 a u:2 b", 2.0),
        ("MSET u:1 a i:1 b", 0.0),
    ] {
        let before = stored(&r);
        assert_eq!(r.cmd(line), Reply::ok(), "{line}");
        // Its refresh is answered before the PING behind it.
        r.cmd("PING x");
        r.cmd("DBSIZE");
        assert_eq!(stored(&r) - before, more, "{line}");
    }
    assert!(r.is_cached("GET r:1"));
    let before = stored(&r);
    r.cmd("SET r:1 w");
    r.cmd("DBSIZE");
    assert_eq!(stored(&r) - before, 1.0);
    assert_eq!(r.cmd("GET r:1"), Reply::bulk("w"));
}

#[test]
fn a_rules_ttl_ends_its_entries() {
    let mut r = ruled(json!([
        {"name": "brief", "pattern": "b:*", "ttl": "60ms", "negative_ttl": "60ms"},
        {"name": "none", "pattern": "n:*", "negative_ttl": "0s"},
        {"name": "small", "pattern": "s:*", "max_value_bytes": 20},
        {"name": "rest", "pattern": "*"},
    ]));
    r.redis.cmd(&["MSET", "b:1", "v", "s:1", "12345678901234567890", "s:2", "1234", "x", "v"]);
    let ttl = |r: &mut Ruled, key: &str| {
        r.cmd(&format!("GET {key}"));
        r.cmd("DBSIZE");
        let entry = r.cmd(&format!("NEARSIDE ENTRY {key}"));
        if matches!(entry, Reply::Nil) {
            None
        } else {
            Some(Ruled::field(&entry, "ttl_ms").parse::<u64>().expect("ms"))
        }
    };
    assert!(ttl(&mut r, "b:1").is_none_or(|ms| ms <= 60));
    assert!(ttl(&mut r, "b:absent").is_none_or(|ms| ms <= 60));
    assert!(ttl(&mut r, "x").is_some_and(|ms| ms > 200_000));
    assert_eq!(ttl(&mut r, "n:absent"), None);
    assert_eq!(ttl(&mut r, "s:1"), None);
    assert!(ttl(&mut r, "s:2").is_some());
    eventually(Duration::from_secs(5), "b:1 is read again", || {
        let misses = |r: &Ruled| r.proxy.metric("cache_miss_total{impl=\"l1\",key_pattern=\"brief\"}");
        let before = misses(&r);
        r.cmd("GET b:1");
        misses(&r) > before
    });
}

#[test]
fn a_share_of_the_keys_is_cached_the_same_on_every_sidecar() {
    let rules = json!([{"name": "part", "pattern": "k:*", "rollout": 25}]);
    let mut a = ruled(rules.clone());
    let proxy = Proxy::to(&a.redis).set("rules", rules).start();
    let mut b = proxy.client();
    let mut cached = 0;
    for i in 0..400 {
        let words = ["NEARSIDE", "EXPLAIN", "GET", &format!("k:{i}")];
        let (of_a, of_b) = (Ruled::field(&a.c.cmd(&words), "rule_says"), Ruled::field(&b.cmd(&words), "rule_says"));
        assert_eq!(of_a, of_b, "k:{i}");
        cached += usize::from(of_a != "control");
    }
    assert!((70..130).contains(&cached), "{cached} of 400");
    let control =
        (0..400).find(|i| Ruled::field(&a.cmd(&format!("NEARSIDE EXPLAIN GET k:{i}")), "rule_says") == "control");
    assert!(!a.is_cached(&format!("GET k:{}", control.expect("most of them are"))));
    assert!(a.bypass("control") > 0.0);
}

#[test]
fn a_worker_answers_hits_under_rules_too() {
    let mut r = ruled_with(json!([{"pattern": "a:*"}, {"pattern": "b:*", "mode": "off"}]), |b| b.set("workers", 3));
    r.redis.cmd(&["MSET", "a:1", "1", "b:1", "2"]);
    for _ in 0..4 {
        let mut c = r.proxy.client();
        std::mem::swap(&mut r.c, &mut c);
        assert!(r.is_cached("GET a:1"));
        assert!(!r.is_cached("GET b:1"));
    }
}

#[test]
fn a_bad_rule_ends_the_start_with_its_line() {
    let redis = Redis::start();
    let mut proxy =
        Proxy::to(&redis).set("rules", json!([{"pattern": "a:*", "rollout": 120}])).without_waiting().start();
    assert_eq!(proxy.wait_exit(PATIENCE).code(), Some(2));
    proxy.wait_logged("rules: a:*: rollout: \"120\" is not a share of the keys; use 0 to 100 percent");
}
