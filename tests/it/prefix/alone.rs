//! One sidecar with a prefix: names in the L1 and in metrics, commands about a whole database, what is refused.

use super::*;
use crate::support::version;

#[test]
fn the_l1_and_the_metrics_know_the_clients_names() {
    let redis = Redis::start();
    for workers in [1, 2] {
        let proxy = with(&redis, "app:").set("workers", workers).start();
        let mut clients: Vec<Client> = (0..4).map(|_| proxy.client()).collect();
        assert_eq!(say(&mut clients[0], "MSET user:1 v user:2 w"), "+OK");
        eventually(PATIENCE, "both entries", || {
            clients.iter_mut().for_each(|client| drop(say(client, "MGET user:1 user:2")));
            proxy.stat("hits") >= 100.0
        });
        let before = proxy.stat("hits");
        for client in &mut clients {
            client.cmd(&["PING"]);
            for _ in 0..10 {
                assert_eq!(say(client, "GET user:1"), r#""v""#);
                assert_eq!(say(client, "MGET user:2 user:1"), r#"["w", "v"]"#);
            }
        }
        assert_eq!(proxy.stat("hits") - before, 4.0 * 30.0, "{workers} workers");
        assert!(proxy.metric("cache_hits_total{impl=\"l1\",key_pattern=\"user\"}") >= 120.0);
        let by_worker = proxy.stats()["hits_by_worker"].clone();
        assert!(by_worker.split(',').count() == workers && !by_worker.split(',').any(|n| n == "0"), "{by_worker}");
        // A foreign write to the key's upstream name is seen.
        redis.cmd(&["SET", "app:user:1", "foreign"]);
        eventually(PATIENCE, "the new value", || clients.iter_mut().all(|c| say(c, "GET user:1") == r#""foreign""#));
        redis.cmd(&["SET", "user:1", "not ours"]);
        assert_eq!(say(&mut clients[1], "GET user:1"), r#""foreign""#);
    }
}

#[test]
fn flushes_delete_own_keys_only() {
    let redis = Redis::start();
    let proxy = app(&redis);
    for (flush, left) in
        [("FLUSHDB", vec!["1"]), ("FLUSHDB ASYNC", vec!["1"]), ("FLUSHALL", vec![]), ("FLUSHALL SYNC", vec![])]
    {
        let mut client = proxy.client3();
        redis.cmd(&["SET", "app", "foreign"]);
        redis.cmd(&["SET", "other:k", "foreign"]);
        for i in 0..1200 {
            redis.cmd(&["SET", &format!("app:k{i}"), "v"]);
        }
        say(&mut client, "SELECT 3");
        say(&mut client, "SET k1 three");
        say(&mut client, "SELECT 0");
        warm(&proxy, &mut client, "k1");
        assert_eq!(say(&mut client, flush), "+OK");
        assert_eq!(say(&mut client, "GET k1"), "nil", "{flush}: no old copy");
        assert_eq!(say(&mut client, "KEYS *"), "[]", "{flush}");
        assert_eq!(upstream_keys(&redis), ["app", "other:k"], "{flush}");
        say(&mut client, "SELECT 3");
        assert_eq!(client.cmd(&["KEYS", "*"]).items().len(), left.len(), "{flush}");
        say(&mut client, "DEL k1");
    }
    let mut client = proxy.client();
    assert_eq!(say(&mut client, "FLUSHDB NOW"), "-ERR syntax error");
    assert_eq!(say(&mut client, "FLUSHALL SYNC ASYNC"), "-ERR syntax error");
}

#[test]
fn a_flush_is_refused_in_a_transaction_and_breaks_a_watch() {
    let redis = Redis::start();
    let proxy = app(&redis);
    for mut client in both(&proxy) {
        say(&mut client, "SET k v");
        for line in ["FLUSHDB", "FLUSHALL", "RANDOMKEY"] {
            assert_eq!(say(&mut client, "MULTI"), "+OK");
            let refusal = say(&mut client, line);
            assert!(
                refusal.starts_with(&format!("-NEARSIDE {line} is refused with upstream.key_prefix: ")),
                "{refusal}"
            );
            assert!(say(&mut client, "EXEC").starts_with("-EXECABORT"));
        }
        assert_eq!(say(&mut client, "GET k"), r#""v""#);
        say(&mut client, "WATCH k");
        assert_eq!(say(&mut client, "RANDOMKEY"), r#""k""#);
        assert_eq!(say(&mut client, "FLUSHDB"), "+OK");
        say(&mut client, "MULTI");
        say(&mut client, "GET k");
        assert_eq!(say(&mut client, "EXEC"), "nil", "the flush has touched what was watched");
    }
}

/// Refused by name, wherever they are met.
const REFUSED: &[&str] = &[
    "MONITOR",
    "SLOWLOG GET",
    "SLOWLOG LEN",
    "SLOWLOG RESET",
    "DBSIZE",
    "SWAPDB 0 1",
    "ACL LOG",
    "FUNCTION STATS",
    "DEBUG RELOAD",
    "DEBUG POPULATE 5",
    "CLUSTER GETKEYSINSLOT 0 10",
    "REPLICAOF NO ONE",
    "FT.SEARCH i q",
    "NOSUCH k",
    "OBJECT NOSUCH k",
    "XINFO NOSUCH k",
    "ACL DRYRUN default NOSUCH k",
];

#[test]
fn commands_about_everybodys_keys_are_refused_by_name() {
    let redis = Redis::start();
    let proxy = app(&redis);
    for mut client in both(&proxy) {
        for line in REFUSED {
            let refusal = say(&mut client, line);
            let (name, _) = refusal
                .split_once(" is refused with upstream.key_prefix: ")
                .unwrap_or_else(|| panic!("{line}: {refusal}"));
            let name = name.strip_prefix("-NEARSIDE ").expect("our code");
            assert!(line.starts_with(name), "{line}: {refusal}");
            assert_eq!(say(&mut client, "MULTI"), "+OK");
            assert_eq!(say(&mut client, line), refusal);
            assert!(say(&mut client, "EXEC").starts_with("-EXECABORT"), "{line}");
            client.send(format!("{line}\r\nPING\r\n").as_bytes());
            assert_eq!(format!("{:?}", client.reply()), refusal, "inline");
            assert_eq!(format!("{:?}", client.reply()), "+PONG");
        }
        // Not answered, as CLIENT REPLY says.
        client.send(b"CLIENT REPLY SKIP\r\nDBSIZE\r\nPING\r\n");
        assert_eq!(format!("{:?}", client.reply()), "+PONG");
        let large = client.cmd(&["SORT", "k", "BY", &"x".repeat(2 << 20)]).text();
        assert!(large.starts_with("NEARSIDE SORT is refused with upstream.key_prefix: larger than 1 MiB"), "{large}");
        assert_eq!(say(&mut client, "PING"), "+PONG");
    }
}

#[test]
fn renamed_commands_are_known_by_what_upstream_says_of_them() {
    let redis = Redis::builder().args(&["--rename-command", "GET", "HOLE"]).start();
    let proxy = app(&redis);
    redis.cmd(&["SET", "app:k", "v"]);
    for mut client in both(&proxy) {
        assert_eq!(say(&mut client, "HOLE k"), r#""v""#);
        say(&mut client, "MULTI");
        assert_eq!(say(&mut client, "HOLE k"), "+QUEUED");
        assert_eq!(say(&mut client, "EXEC"), r#"["v"]"#);
    }
    // Met for the first time on a connection of the session's own.
    let other = with(&redis, "app:").start();
    let mut client = other.client();
    say(&mut client, "MULTI");
    assert_eq!(say(&mut client, "HOLE k"), "+QUEUED");
    assert_eq!(say(&mut client, "EXEC"), r#"["v"]"#);
}

#[test]
fn a_user_bound_to_the_prefix_is_served_cached_and_one_who_is_not_is_said_so() {
    let redis = Redis::start();
    let free = app(&redis);
    free.wait_logged("no ACL binds upstream's user to it");
    let rule = "ACL SETUSER bound on >pw +@all ~app:* &*";
    assert_eq!(redis.cmd(&rule.split(' ').collect::<Vec<_>>()), Reply::ok());
    let password = free.dir().join("password");
    std::fs::write(&password, "pw").expect("a file");
    let proxy = with(&redis, "app:")
        .set("upstream.username", "bound")
        .set("upstream.password_file", password.display().to_string())
        .start();
    let mut client = proxy.client();
    // The canary, the entries and the refresh behind a write all have names that the ACL allows.
    eventually(PATIENCE, "tracking", || proxy.stats()["coherence"] == "tracking");
    say(&mut client, "SET k v");
    warm(&proxy, &mut client, "k");
    let escaped = client.cmd(&["EVAL", "return redis.call('SET', 'k', 'x')", "0"]);
    assert!(escaped.is_error(), "{escaped:?}");
    assert_eq!(redis.cmd(&["EXISTS", "k"]), Reply::Int(0));
    // Its own keys are not all keys, which is what upstream asks of who sorts by others.
    let sorted = say(&mut client, "SORT l BY w_*");
    assert!(sorted.starts_with("-ERR BY option of SORT denied") || !version().at_least(7, 0), "{sorted}");
    assert_eq!(say(&mut client, "GET k"), r#""v""#);
    assert_eq!(say(&mut client, "FLUSHDB"), "+OK");
    assert!(!proxy.logged("no ACL binds"));
}
