//! From a miss to what ends the hits, for every read that can be kept.

use std::time::{Duration, Instant};

use super::{ALL, All, is_kept, raw, run, wait_kept};
use crate::support::{PATIENCE, Proxy, Redis, Reply, eventually};

const STRING: &str = "SET k hello";
const HASH: &str = "HSET k f v1 n 1";
const LIST: &str = "RPUSH k a b c a";
const SET: &str = "SADD k m 1 2";
const ZSET: &str = "ZADD k 1 a 2.5 b 3 c";
/// For the ranges by name.
const NAMES: &str = "ZADD k 0 a 0 b 0 c";

/// A read, what makes its key, and two writes that each change the answer.
const READS: &[(&str, &str, [&str; 2])] = &[
    ("GET k", STRING, ["SET k 2", "APPEND k 3"]),
    ("MGET k", STRING, ["SET k 2", "APPEND k 3"]),
    ("STRLEN k", STRING, ["APPEND k !", "SET k 3"]),
    ("GETRANGE k 1 -1", STRING, ["SETRANGE k 1 X", "SET k 3"]),
    ("SUBSTR k 0 1", STRING, ["SETRANGE k 1 X", "SET k 3"]),
    ("GETBIT k 1", STRING, ["SETBIT k 1 0", "SETBIT k 1 1"]),
    ("BITCOUNT k 0 -1", STRING, ["SETBIT k 0 1", "SETBIT k 7 1"]),
    ("BITPOS k 1", STRING, ["SETBIT k 0 1", "SET k \0"]),
    ("EXISTS k", STRING, ["DEL k", "SET k 1"]),
    ("TYPE k", LIST, ["DEL k", "SADD k 1"]),
    ("HGET k f", HASH, ["HSET k f v2", "HDEL k f"]),
    ("HMGET k f none n", HASH, ["HINCRBY k n 1", "HDEL k f"]),
    ("HGETALL k", HASH, ["HSET k f v2", "HDEL k f"]),
    ("HLEN k", HASH, ["HSET k g 1", "HDEL k f"]),
    ("HEXISTS k f", HASH, ["HDEL k f", "HSET k f 1"]),
    ("HKEYS k", HASH, ["HSET k g 1", "HDEL k f"]),
    ("HVALS k", HASH, ["HSET k g 1", "HDEL k f"]),
    ("HSTRLEN k f", HASH, ["HSET k f longer", "HDEL k f"]),
    ("LRANGE k 0 -1", LIST, ["LPUSH k z", "LTRIM k 0 0"]),
    ("LLEN k", LIST, ["LPUSH k z", "LTRIM k 0 0"]),
    ("LINDEX k 0", LIST, ["LPUSH k z", "LSET k 0 y"]),
    ("LPOS k a RANK 2", LIST, ["LPUSH k z", "LREM k 0 a"]),
    ("LPOS k a COUNT 0", LIST, ["LPUSH k z", "LREM k 0 a"]),
    ("SMEMBERS k", SET, ["SADD k n", "SREM k m"]),
    ("SISMEMBER k m", SET, ["SREM k m", "SADD k m"]),
    ("SMISMEMBER k m x", SET, ["SREM k m", "SADD k x"]),
    ("SCARD k", SET, ["SADD k n", "SPOP k"]),
    ("ZRANGE k 0 -1 WITHSCORES", ZSET, ["ZINCRBY k 1.5 a", "ZREM k b"]),
    ("ZRANGE k 3 1 BYSCORE REV LIMIT 0 1", ZSET, ["ZADD k 9 c", "ZREM k b"]),
    ("ZREVRANGE k 0 -1 WITHSCORES", ZSET, ["ZINCRBY k 1.5 a", "ZREM k b"]),
    ("ZRANGEBYSCORE k -inf +inf WITHSCORES", ZSET, ["ZINCRBY k 1.5 a", "ZREM k b"]),
    ("ZREVRANGEBYSCORE k +inf 2 WITHSCORES", ZSET, ["ZINCRBY k 1.5 a", "ZREM k b"]),
    ("ZRANGEBYLEX k - +", NAMES, ["ZADD k 0 d", "ZREM k a"]),
    ("ZREVRANGEBYLEX k + -", NAMES, ["ZADD k 0 d", "ZREM k a"]),
    ("ZSCORE k b", ZSET, ["ZINCRBY k 1 b", "ZREM k b"]),
    ("ZMSCORE k a none", ZSET, ["ZINCRBY k 1 a", "ZREM k a"]),
    ("ZCARD k", ZSET, ["ZADD k 1 z", "ZPOPMIN k"]),
    ("ZCOUNT k 1 3", ZSET, ["ZADD k 1 z", "ZPOPMIN k"]),
    ("ZLEXCOUNT k - +", NAMES, ["ZADD k 0 d", "ZREM k a"]),
    ("ZRANK k b", ZSET, ["ZADD k 0 z", "ZREM k b"]),
    ("ZREVRANK k b", ZSET, ["ZADD k 9 z", "ZREM k b"]),
];

/// The reads that are kept before this server, each with a number.
fn reads(all: &All) -> impl Iterator<Item = (usize, &'static (&'static str, &'static str, [&'static str; 2]))> {
    let fields_expire = all.fields_expire();
    READS.iter().enumerate().filter(move |(_, (read, ..))| !(fields_expire && read.starts_with('H')))
}

/// A key of its own for each read.
fn on(line: &str, n: usize) -> String {
    line.replacen(" k", &format!(" k{n}"), 1)
}

#[test]
fn no_read_is_left_out() {
    for name in ALL.iter().filter(|name| **name != "JSON.GET") {
        assert!(READS.iter().any(|(read, ..)| read.split(' ').next() == Some(name)), "{name}");
    }
}

#[test]
fn every_read_is_a_miss_then_hits_until_a_foreign_or_an_own_write() {
    let all = All::start();
    let (mut two, mut three) = (all.proxy.client(), all.proxy.client3());
    let (mut redis2, mut redis3) = (all.redis.client(), all.redis.client().hello3());
    for (n, (read, make, [foreign, own])) in reads(&all) {
        let (read, foreign, own) = (on(read, n), on(foreign, n), on(own, n));
        run(&mut redis2, &on(make, n));
        let first = raw(&mut redis2, &read);
        assert_eq!(raw(&mut two, &read), first, "{read}: miss");
        wait_kept(&mut two, &read);
        assert_eq!(run(&mut two, &format!("NEARSIDE EXPLAIN {read}")).get("route"), Reply::bulk("l1"), "{read}");

        let expected = raw(&mut redis3, &read);
        let calls = all.calls(&read);
        let hits = all.proxy.stat("hits");
        assert_eq!(raw(&mut two, &read), first, "{read}: hit, RESP2");
        assert_eq!(raw(&mut three, &read), expected, "{read}: hit, RESP3");
        // The name in another case is the same question.
        assert_eq!(raw(&mut three, &read.replacen(&read[..3], &read[..3].to_lowercase(), 1)), expected, "{read}");
        assert_eq!(all.proxy.stat("hits"), hits + 3.0, "{read}");
        assert_eq!(all.calls(&read), calls, "{read}: hits ask nobody");

        run(&mut redis2, &foreign);
        let second = raw(&mut redis2, &read);
        assert_ne!(second, first, "{read}: {foreign} changes the answer");
        eventually(PATIENCE, "the push", || !is_kept(&mut two, &read));
        assert_eq!(raw(&mut two, &read), second, "{read}: after {foreign}");

        wait_kept(&mut two, &read);
        run(&mut three, &own);
        let third = raw(&mut two, &read);
        assert_ne!(third, second, "{read}: {own} changes the answer");
        assert_eq!(third, raw(&mut redis2, &read), "{read}: after {own}");
    }
    assert_eq!(all.proxy.stat("fills_discarded_inconsistent"), 0.0);
}

#[test]
fn that_a_key_is_not_there_is_kept_too_until_it_is() {
    let all = All::start();
    let (mut client, mut redis) = (all.proxy.client(), all.redis.client());
    for (n, (read, make, _)) in reads(&all) {
        let (read, make) = (on(read, n), on(make, n));
        let nothing = raw(&mut redis, &read);
        assert_eq!(raw(&mut client, &read), nothing, "{read}");
        wait_kept(&mut client, &read);
        let calls = all.calls(&read);
        assert_eq!(raw(&mut client, &read), nothing, "{read}");
        assert_eq!(all.calls(&read), calls, "{read}: the second is a hit");
        run(&mut redis, &make);
        eventually(PATIENCE, "the push", || !is_kept(&mut client, &read));
        assert_eq!(raw(&mut client, &read), raw(&mut redis, &read), "{read}: after {make}");
    }
    assert_eq!(all.proxy.stat("fills_discarded_inconsistent"), 0.0);
}

#[test]
fn a_wrong_type_is_an_error_each_time() {
    let all = All::start();
    let mut client = all.proxy.client();
    run(&mut client, "XADD k 1-1 f v");
    // EXISTS and TYPE know every type; MGET says nil, which is not kept either (decision 4).
    for (read, ..) in
        READS.iter().filter(|(read, ..)| !["EXISTS", "TYPE", "MGET"].contains(&&read[..read.find(' ').unwrap()]))
    {
        let calls = all.calls(read);
        for _ in 0..3 {
            let reply = run(&mut client, read);
            assert!(reply.text().starts_with("WRONGTYPE"), "{read}: {reply:?}");
        }
        assert_eq!(all.calls(read), calls + 3, "{read}");
        assert!(!is_kept(&mut client, read), "{read}");
    }
}

#[test]
fn one_write_drops_every_form_of_its_key_and_no_other() {
    let all = All::start();
    let mut client = all.proxy.client3();
    let forms = ["LRANGE l 0 -1", "LRANGE l 0 0", "LRANGE l -1 -1", "LLEN l", "LINDEX l 0", "TYPE l", "EXISTS l"];
    for line in ["RPUSH l a b", "RPUSH m c"] {
        run(&mut client, line);
    }
    for line in forms.iter().chain(&["LLEN m"]) {
        run(&mut client, line);
        wait_kept(&mut client, line);
    }
    let entry = run(&mut client, "NEARSIDE ENTRY l");
    assert_eq!(entry.get("kind"), Reply::bulk("none"));
    let listed: Vec<String> = entry.get("forms").items().iter().map(|form| form.get("command").text()).collect();
    let without_key: Vec<String> = forms.iter().map(|line| line.replacen(" l", "", 1)).collect();
    assert_eq!(listed, without_key);
    assert!(entry.get("forms").items().iter().all(|form| form.get("served") == Reply::bulk("yes")), "{entry:?}");
    assert_eq!(run(&mut client, "NEARSIDE INVALIDATE KEY m"), Reply::Int(1));
    run(&mut client, "LLEN m");
    wait_kept(&mut client, "LLEN m");
    run(&mut client, "LPUSH l z");
    assert!(!forms.iter().any(|line| is_kept(&mut client, line)));
    assert!(is_kept(&mut client, "LLEN m"));
    assert_eq!(run(&mut client, "NEARSIDE ENTRY l"), Reply::Nil);
    assert_eq!(all.proxy.metric_sum("cache_candidate_requests"), 0.0, "all of them are cached already");
}

#[test]
fn no_form_outlives_its_key() {
    let all = All::start();
    run(&mut all.redis.client(), "DEBUG SET-ACTIVE-EXPIRE 0");
    let mut client = all.proxy.client();
    run(&mut client, "RPUSH l a");
    run(&mut client, "PEXPIRE l 700");
    let gone = Instant::now() + Duration::from_millis(702);
    assert_eq!(run(&mut client, "LRANGE l 0 -1"), Reply::bulks(&["a"]));
    wait_kept(&mut client, "LRANGE l 0 -1");
    std::thread::sleep(gone.saturating_duration_since(Instant::now()));
    assert_eq!(all.proxy.stat("invalidations_push"), 0.0, "nobody has told us");
    assert_eq!(run(&mut client, "LRANGE l 0 -1"), Reply::Array(Vec::new()));
}

#[test]
fn a_key_keeps_so_many_forms_and_no_more() {
    let all = All::start();
    let mut client = all.proxy.client3();
    run(&mut client, "RPUSH l a");
    let last = "LRANGE l 0 99";
    for stop in 0..100 {
        run(&mut client, &format!("LRANGE l 0 {stop}"));
    }
    wait_kept(&mut client, last);
    assert_eq!(run(&mut client, "NEARSIDE ENTRY l").get("forms").items().len(), 64);
    assert!(!is_kept(&mut client, "LRANGE l 0 0") && is_kept(&mut client, "LRANGE l 0 36"));
    assert_eq!(all.proxy.metric("nearside_evictions_total{cause=\"size\"}"), 36.0);
    assert_eq!(all.proxy.metric_sum("cache_set_total") - all.proxy.metric_sum("cache_del_total"), 64.0);
}

#[test]
fn large_replies_and_large_questions_are_not_kept() {
    let redis = Redis::start();
    let proxy = Proxy::to(&redis).set("cache.commands", ALL).set("cache.max_value_bytes", 100).start();
    eventually(PATIENCE, "a lane", || proxy.stats()["coherence"] == "tracking");
    let mut client = proxy.client();
    run(&mut client, "SADD s m");
    run(&mut client, &format!("SET k {}", "x".repeat(200)));
    let refused = |n: f64| eventually(PATIENCE, "refused", || proxy.stat("fills_discarded_too_large") == n);
    run(&mut client, "GETRANGE k 0 150");
    refused(1.0);
    run(&mut client, &format!("SISMEMBER s {}", "x".repeat(100)));
    refused(2.0);
    run(&mut client, "GETRANGE k 0 50");
    wait_kept(&mut client, "GETRANGE k 0 50");
}

#[test]
fn a_reply_beyond_a_mebibyte_takes_its_own_way_and_is_not_kept() {
    let all = All::start();
    let mut client = all.proxy.client();
    for _ in 0..3 {
        let half = "x".repeat(512 << 10);
        client.cmd(&["RPUSH", "l", &half]);
    }
    for _ in 0..2 {
        assert_eq!(run(&mut client, "LRANGE l 0 -1").items().len(), 3);
    }
    assert!(!is_kept(&mut client, "LRANGE l 0 -1"));
    assert!(all.proxy.stat("pinned_large") >= 1.0);
}

#[test]
fn inside_multi_and_after_watch_every_read_goes_upstream() {
    let all = All::start();
    let (mut client, mut other) = (all.proxy.client(), all.proxy.client());
    run(&mut client, "SADD s m");
    run(&mut other, "SMEMBERS s");
    wait_kept(&mut other, "SMEMBERS s");
    let calls = all.calls("SMEMBERS");
    for line in ["WATCH s", "SMEMBERS s", "MULTI", "SMEMBERS s", "EXEC"] {
        run(&mut client, line);
    }
    assert_eq!(all.calls("SMEMBERS"), calls + 2);
    assert_eq!(run(&mut client, "SMEMBERS s").items().len(), 1);
}
