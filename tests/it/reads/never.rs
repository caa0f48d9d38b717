//! What is never kept, and that it is not, with everything in `cache.commands` that it takes (R9, facts 13, 14, 29, 30).

use super::{ALL, All, is_kept, run};
use crate::support::{Fake, PATIENCE, Proxy, Redis, Reply, eventually};

/// Reads that go upstream each time, and why: the word that EXPLAIN has for it.
const NEVER: &[(&str, &str)] = &[
    ("TTL k", "time passes"),
    ("PTTL k", "time passes"),
    ("EXPIRETIME k", "time passes"),
    ("PEXPIRETIME k", "time passes"),
    ("RANDOMKEY", "chance"),
    ("HRANDFIELD h", "chance"),
    ("SRANDMEMBER s", "chance"),
    ("ZRANDMEMBER z", "chance"),
    ("SCAN 0", "cursor"),
    ("HSCAN h 0", "cursor"),
    ("SSCAN s 0", "cursor"),
    ("ZSCAN z 0", "cursor"),
    ("KEYS k*", "reads no key"),
    ("DBSIZE", "reads no key"),
    ("DUMP k", "how upstream keeps"),
    ("OBJECT ENCODING k", "how upstream keeps"),
    ("OBJECT IDLETIME k", "how upstream keeps"),
    ("OBJECT REFCOUNT k", "how upstream keeps"),
    ("MEMORY USAGE k", "how upstream keeps"),
    ("TOUCH k", "how upstream keeps"),
    ("XRANGE x - +", "stream"),
    ("XREVRANGE x + -", "stream"),
    ("XLEN x", "stream"),
    ("XREAD STREAMS x 0", "stream"),
    ("XPENDING x g", "stream"),
    ("XINFO STREAM x", "stream"),
    ("XINFO GROUPS x", "stream"),
    ("XINFO CONSUMERS x g", "stream"),
    ("SORT_RO l", "does not name"),
    ("SINTER s s2", "several keys"),
    ("SUNION s s2", "several keys"),
    ("SDIFF s s2", "several keys"),
    ("SINTERCARD 2 s s2", "several keys"),
    ("SINTERCARD 1 s", "several keys"),
    ("ZINTER 1 z", "several keys"),
    ("ZUNION 1 z", "several keys"),
    ("ZDIFF 1 z", "several keys"),
    ("ZINTERCARD 1 z", "several keys"),
    ("LCS k k2", "several keys"),
    ("EXISTS k k2", "several keys"),
    ("EVAL_RO return{} 1 k", "script"),
    ("BITFIELD_RO k GET u8 0", "this version"),
    ("GEOPOS z a", "this version"),
    ("GEOHASH z a", "this version"),
    ("GEODIST z a b", "this version"),
    ("GETEX k", "not a read"),
    ("PFCOUNT p", "not a read"),
    ("SORT l", "not a read"),
    ("GEORADIUS z 0 0 1 m", "not a read"),
];

#[test]
fn what_is_never_kept_is_asked_each_time() {
    let all = All::start();
    let mut client = all.proxy.client3();
    for line in [
        "SET k v",
        "SET k2 v",
        "HSET h f v",
        "SADD s a b",
        "SADD s2 a",
        "RPUSH l 2 1",
        "PFADD p a",
        "GEOADD z 1 1 a 2 2 b",
        "XADD x 1-1 f v",
        "XGROUP CREATE x g 0",
    ] {
        assert!(!run(&mut client, line).is_error(), "{line}");
    }
    for (line, why) in NEVER {
        let calls = all.calls(line);
        for _ in 0..3 {
            let reply = run(&mut client, line);
            assert!(!reply.is_error(), "{line}: {reply:?}");
        }
        let asked = all.calls(line) - calls;
        assert!(asked >= 3, "{line}: asked {asked} times");
        let explain = run(&mut client, &format!("NEARSIDE EXPLAIN {line}"));
        assert_eq!(explain.get("in_l1"), Reply::bulk("no"), "{line}");
        let said = explain.get("not_kept_because").text();
        assert!(said.contains(why), "{line}: {said}");
    }
    assert_eq!(all.proxy.stat("hits"), 0.0);
}

/// Fact 14: SORT_RO registers only the key it names, so nothing would tell of a change of the weights.
#[test]
fn sort_ro_sees_changes_of_the_keys_that_by_names() {
    let all = All::start();
    let mut client = all.proxy.client();
    for line in ["RPUSH l a b", "MSET w_a 1 w_b 2"] {
        run(&mut client, line);
    }
    assert_eq!(run(&mut client, "SORT_RO l BY w_* ALPHA"), Reply::bulks(&["a", "b"]));
    run(&mut all.redis.client(), "SET w_a 3");
    assert_eq!(run(&mut client, "SORT_RO l BY w_* ALPHA"), Reply::bulks(&["b", "a"]));
}

/// Fact 30: XACK is not signalled.
#[test]
fn xpending_sees_what_others_acknowledge() {
    let all = All::start();
    let mut client = all.proxy.client();
    for line in ["XADD x 1-1 f v", "XGROUP CREATE x g 0", "XREADGROUP GROUP g c STREAMS x >"] {
        run(&mut client, line);
    }
    assert_eq!(run(&mut client, "XPENDING x g").items()[0], Reply::Int(1));
    run(&mut all.redis.client(), "XACK x g 1-1");
    assert_eq!(run(&mut client, "XPENDING x g").items()[0], Reply::Int(0));
}

#[test]
fn what_is_not_configured_is_not_kept() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis);
    let all = All { proxy, redis };
    let mut client = all.proxy.client();
    run(&mut client, "HSET h f v");
    for _ in 0..2 {
        run(&mut client, "HGETALL h");
    }
    assert_eq!(all.calls("HGETALL"), 2);
    let explain = run(&mut client, "NEARSIDE EXPLAIN HGETALL h");
    assert_eq!(explain.get("route"), Reply::bulk("lane"));
    assert_eq!(explain.get("not_kept_because"), Reply::bulk("HGETALL is not in cache.commands"));
    let only = Proxy::to(&all.redis).set("cache.commands", ["HGETALL"].as_slice()).start();
    let mut client = only.client();
    run(&mut client, "SET k v");
    let calls = all.calls("GET");
    for _ in 0..3 {
        assert_eq!(run(&mut client, "GET k"), Reply::bulk("v"));
    }
    // The refresh of the SET is one more.
    assert!(all.calls("GET") >= calls + 3);
    assert_eq!(only.stat("hits"), 0.0);
}

/// Fact 29, by a server that has it.
#[test]
fn a_field_that_has_expired_is_never_served() {
    let all = All::start();
    if !all.fields_expire() {
        println!("skipped: this server has no HEXPIRE");
        return;
    }
    let mut client = all.proxy.client();
    run(&mut all.redis.client(), "DEBUG SET-ACTIVE-EXPIRE 0");
    for line in ["HSET h f v g w", "HPEXPIRE h 300 FIELDS 1 f"] {
        run(&mut client, line);
    }
    let seen = |client: &mut crate::support::Client| run(client, "HGETALL h").items().len();
    assert_eq!(seen(&mut client), 4);
    eventually(PATIENCE, "the field's end", || seen(&mut client) == 2);
    assert_eq!(all.proxy.stat("hits"), 0.0);
    assert!(all.proxy.stat("bypass_field_expiry") >= 2.0);
}

/// The same by what a server says of itself.
#[test]
fn hashes_are_kept_only_where_their_fields_stay() {
    for (server, version, expiry, kept) in [
        ("redis", "7.0.15", false, true),
        ("redis", "7.2.4", false, true),
        ("redis", "7.4.0", false, false),
        ("redis", "8.0.2", true, false),
        ("valkey", "8.1.1", false, true),
        ("valkey", "9.0.0", true, false),
        // Valkey 9 that was told to say it were Redis.
        ("redis", "7.2.4", true, false),
        ("somebody", "1.0", false, false),
    ] {
        let text = |s: &str| format!("${}\r\n{s}\r\n", s.len());
        let hello: String = ["server", server, "version", version, "mode", "standalone", "role", "master"]
            .iter()
            .map(|s| text(s))
            .collect();
        let info = if expiry { "*3\r\n*1\r\n$7\r\nhexpire\r\n_\r\n_\r\n" } else { "*3\r\n_\r\n_\r\n_\r\n" };
        let fake = Fake::builder()
            .answer("HELLO", &format!("%6\r\n{hello}{}:7\r\n{}*0\r\n", text("id"), text("modules")))
            .answer("COMMAND INFO", info)
            .start();
        let proxy = Proxy::upstream(&fake.url()).set("cache.commands", ALL).set("coherence.canary", "off").start();
        let mut lane = fake.lane();
        let mut client = proxy.client3();
        client.send_cmd(&["HGET", "h", "f"]);
        lane.expect(&["HGET", "h", "f"]).reply("$1\r\nv\r\n");
        if kept {
            lane.expect(&["PTTL", "h"]).reply(":-1\r\n");
        }
        assert_eq!(client.reply(), Reply::bulk("v"), "{server} {version}");
        if kept {
            eventually(PATIENCE, "kept", || is_kept(&mut client, "HGET h f"));
            continue;
        }
        assert_eq!(proxy.stat("bypass_field_expiry"), 1.0, "{server} {version} {expiry}");
        let explain = run(&mut client, "NEARSIDE EXPLAIN HGET h f");
        assert_eq!(explain.get("reason"), Reply::bulk("field_expiry"));
        // Reads of other types are kept there as everywhere.
        client.send_cmd(&["LLEN", "l"]);
        lane.expect(&["LLEN", "l"]).reply(":1\r\n").expect(&["PTTL", "l"]).reply(":-1\r\n");
        client.reply();
        eventually(PATIENCE, "kept", || is_kept(&mut client, "LLEN l"));
    }
}
