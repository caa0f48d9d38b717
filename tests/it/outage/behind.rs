//! `rules[].write: behind`: the reply comes from here, upstream follows; everybody here reads what was written.

use serde_json::json;
use tempfile::TempDir;

use super::queue::wait_replayed;
use super::{lasting, ms, quick, refused, wait_back, wait_gone, warm};
use crate::support::{PATIENCE, Proxy, Redis, Reply, eventually, proxy};

/// Keys that begin with `b:` are written behind.
fn behind(redis: &Redis) -> proxy::Builder {
    let rules = json!([{"name": "b", "pattern": "b:*", "write": "behind"}, {"pattern": "*"}]);
    quick(Proxy::to(redis)).set("rules", rules)
}

/// Keys of these; the canary is none.
fn count(redis: &Redis) -> usize {
    redis.cmd(&["KEYS", "b:*"]).items().len()
}

#[test]
fn the_reply_does_not_wait_for_upstream_and_reads_here_see_it() {
    let mut redis = Redis::start();
    redis.cmd(&["SET", "b:n", "41"]);
    let proxy = behind(&redis).start();
    let (mut c, mut other) = (proxy.client(), proxy.client());
    warm(&proxy, &mut c, "b:n");
    redis.sigstop();
    assert_eq!(c.cmd(&["SET", "b:k", "value", "PX", "600000"]), Reply::ok());
    assert_eq!(c.cmd(&["INCR", "b:n"]), Reply::Int(42));
    for client in [&mut c, &mut other] {
        assert_eq!(client.cmd(&["GET", "b:k"]), Reply::bulk("value"));
        assert_eq!(client.cmd(&["STRLEN", "b:k"]), Reply::Int(5));
        assert_eq!(client.cmd(&["GETRANGE", "b:k", "1", "2"]), Reply::bulk("al"));
        assert_eq!(client.cmd(&["EXISTS", "b:k", "b:n"]), Reply::Int(2));
        assert_eq!(client.cmd(&["TYPE", "b:k"]), Reply::status("string"));
        assert!(matches!(client.cmd(&["PTTL", "b:k"]), Reply::Int(500_000..=600_000)));
        assert_eq!(client.cmd(&["MGET", "b:n", "b:k"]).items(), [Reply::bulk("42"), Reply::bulk("value")]);
    }
    assert_eq!(other.cmd(&["APPEND", "b:k", "!"]), Reply::Int(6), "of what the queue knows");
    assert_eq!(proxy.metric("nearside_queue_depth"), 3.0);
    assert!(proxy.metric("nearside_queue_age_seconds") > 0.0);
    redis.sigcont();
    wait_replayed(&proxy);
    assert_eq!(redis.cmd(&["MGET", "b:k", "b:n"]).items(), [Reply::bulk("value!"), Reply::bulk("42")]);
    assert!(matches!(redis.cmd(&["PTTL", "b:k"]), Reply::Int(500_000..=600_000)));
    eventually(PATIENCE, "nothing pending", || proxy.stat("pending_writes") == 0.0);
    assert_eq!(warm(&proxy, &mut c, "b:k"), Reply::bulk("value!"));
}

/// Whatever form a command on the key has, it finds what was written before it in the same pipeline.
#[test]
fn every_other_command_finds_what_was_written_before_it() {
    let redis = Redis::start();
    let proxy = behind(&redis).start();
    let (mut c, mut other) = (proxy.client(), proxy.client());
    for i in 0..60 {
        let value = format!("v{i}");
        let set: &[&str] = &["SET", "b:k", &value];
        let replies = c.pipeline(&[
            set,
            &["GET", "b:k"],
            &["EVAL", "return redis.call('get', KEYS[1])", "1", "b:k"],
            set,
            &["EVAL", "return redis.call('get', 'b:' .. 'k')", "0"],
            &["SET", "b:k", "in between"],
            &["BITCOUNT", "b:k"],
            set,
            &["LPUSH", "b:k", "x"],
            &["SETRANGE", "b:k", "0", "V"],
            &["MULTI"],
            &["GET", "b:k"],
            &["EXEC"],
            &["SET", "b:k", "again"],
            &["DBSIZE"],
            &["RENAME", "b:k", "b:renamed"],
            &["GET", "b:renamed"],
            &["DEL", "b:renamed", "b:k"],
            &["EXISTS", "b:renamed", "b:k"],
        ]);
        let upper = Reply::bulk(format!("V{i}"));
        assert_eq!(replies[1], Reply::bulk(&value));
        assert_eq!(replies[2], Reply::bulk(&value));
        assert_eq!(replies[4], Reply::bulk(&value));
        assert_eq!(replies[6], Reply::Int(b"in between".iter().map(|b| i64::from(b.count_ones())).sum()));
        assert!(replies[8].text().starts_with("WRONGTYPE"), "{:?}", replies[8]);
        assert_eq!(replies[9], Reply::Int(value.len() as i64));
        assert_eq!(replies[12].items(), [upper]);
        assert!(matches!(replies[14], Reply::Int(1..)));
        assert_eq!((&replies[15], &replies[16]), (&Reply::ok(), &Reply::bulk("again")));
        assert_eq!(replies[18], Reply::Int(0), "{i}: {replies:?}");
        assert_eq!(other.cmd(&["EXISTS", "b:renamed", "b:k"]), Reply::Int(0));
    }
    wait_replayed(&proxy);
    assert_eq!(count(&redis), 0);
}

/// Two clients count on one key, each seeing the other's counts: none is lost, and nobody sees the count go down.
#[test]
fn counts_of_several_clients_add_up() {
    const EACH: i64 = 400;
    let redis = Redis::start();
    let proxy = behind(&redis).start();
    let clients: Vec<_> = (0..3)
        .map(|_| {
            let mut c = proxy.client();
            std::thread::spawn(move || {
                let mut last = 0;
                for _ in 0..EACH {
                    let replies = c.pipeline(&[&["INCR", "b:count"][..], &["GET", "b:count"]]);
                    let (Reply::Int(now), read) = (&replies[0], replies[1].text()) else { panic!("{replies:?}") };
                    let read: i64 = read.parse().expect("a number");
                    assert!(*now > last && read >= *now, "{last} {replies:?}");
                    last = read;
                }
            })
        })
        .collect();
    clients.into_iter().for_each(|client| client.join().expect("a client"));
    wait_replayed(&proxy);
    assert_eq!(redis.cmd(&["GET", "b:count"]), Reply::bulk((3 * EACH).to_string()));
    assert_eq!(proxy.metric("nearside_queue_replayed_total{result=\"conflict_overwritten\"}"), 0.0);
}

#[test]
fn other_keys_are_written_through_meanwhile() {
    let redis = Redis::start();
    let proxy = behind(&redis).start();
    let mut c = proxy.client();
    let replies = c.pipeline(&[
        &["SET", "b:k", "1"][..],
        &["SET", "t:k", "2"],
        &["GET", "t:k"],
        &["MSET", "b:k", "3", "t:k", "4"],
    ]);
    assert_eq!(replies, [Reply::ok(), Reply::ok(), Reply::bulk("2"), Reply::ok()]);
    assert_eq!(redis.cmd(&["MGET", "b:k", "t:k"]).items(), [Reply::bulk("3"), Reply::bulk("4")], "a mixed MSET waits");
}

#[test]
fn an_outage_changes_nothing_for_these_keys_whatever_others_do() {
    let mut redis = lasting();
    let proxy = behind(&redis).start();
    let mut c = proxy.client();
    assert_eq!(c.cmd(&["SET", "b:k", "1"]), Reply::ok());
    wait_replayed(&proxy);
    redis.stop();
    wait_gone(&proxy);
    assert_eq!(c.cmd(&["SET", "b:k", "2"]), Reply::ok());
    assert_eq!(c.cmd(&["APPEND", "b:k", "3"]), Reply::Int(2));
    refused(&c.cmd(&["SET", "other", "1"]));
    assert_eq!(c.cmd(&["GET", "b:k"]), Reply::bulk("23"));
    redis.restart();
    wait_replayed(&proxy);
    wait_back(&proxy);
    assert_eq!(redis.cmd(&["GET", "b:k"]), Reply::bulk("23"));
    assert_eq!(c.cmd(&["SET", "b:k", "4"]), Reply::ok());
    eventually(PATIENCE, "it upstream", || redis.cmd(&["GET", "b:k"]) == Reply::bulk("4"));
}

#[test]
fn another_sidecar_sees_it_when_upstream_has_it() {
    let redis = Redis::start();
    redis.cmd(&["SET", "b:k", "old"]);
    let (here, there) = (behind(&redis).start(), behind(&redis).start());
    let mut reader = there.client();
    assert_eq!(warm(&there, &mut reader, "b:k"), Reply::bulk("old"));
    assert_eq!(here.client().cmd(&["SET", "b:k", "new"]), Reply::ok());
    eventually(PATIENCE, "its copy to be gone", || reader.cmd(&["GET", "b:k"]) == Reply::bulk("new"));
}

#[test]
fn a_stop_waits_for_what_is_behind() {
    let mut redis = Redis::start();
    let mut proxy = behind(&redis).start();
    let mut c = proxy.client();
    c.cmd(&["PING"]);
    redis.sigstop();
    for i in 0..100 {
        assert_eq!(c.cmd(&["SET", &format!("b:{i}"), "v"]), Reply::ok());
    }
    drop(c);
    proxy.sigterm();
    proxy.wait_logged("draining");
    redis.sigcont();
    assert!(proxy.wait_exit(PATIENCE).success());
    assert_eq!(count(&redis), 100);
}

#[test]
fn the_journal_keeps_what_is_behind() {
    let dir = TempDir::new().unwrap();
    let mut redis = lasting();
    let with_journal = |redis: &Redis| {
        behind(redis).set("outage.journal_dir", dir.path().display().to_string()).set("outage.journal_fsync", "always")
    };
    let proxy = with_journal(&redis).start();
    let mut c = proxy.client();
    c.cmd(&["PING"]);
    redis.sigstop();
    let sets: Vec<Vec<String>> = (0..50).map(|i| vec!["SET".into(), format!("b:{i}"), i.to_string()]).collect();
    let sets: Vec<Vec<&str>> = sets.iter().map(|words| words.iter().map(String::as_str).collect()).collect();
    let sets: Vec<&[&str]> = sets.iter().map(Vec::as_slice).collect();
    assert!(c.pipeline(&sets).iter().all(|reply| *reply == Reply::ok()));
    drop(proxy); // SIGKILL
    redis.sigcont();
    let proxy = with_journal(&redis).start();
    wait_replayed(&proxy);
    assert_eq!(count(&redis), 50);
    assert_eq!(redis.cmd(&["GET", "b:49"]), Reply::bulk("49"));
}

#[test]
fn what_upstream_refuses_for_now_waits_and_holds_back_what_depends_on_it() {
    let redis = Redis::start();
    let proxy = behind(&redis).start();
    let mut c = proxy.client();
    c.cmd(&["PING"]);
    redis.cmd(&["CONFIG", "SET", "maxmemory", "1"]);
    assert_eq!(c.cmd(&["SET", "b:k", "1"]), Reply::ok());
    proxy.wait_logged("queued writes wait");
    let told = c.cmd(&["EVAL", "return 1", "1", "b:k"]).text();
    assert!(told.contains("refuses queued writes: OOM"), "{told}");
    assert_eq!(c.cmd(&["GET", "b:k"]), Reply::bulk("1"));
    redis.cmd(&["CONFIG", "SET", "maxmemory", "0"]);
    wait_replayed(&proxy);
    assert_eq!(redis.cmd(&["GET", "b:k"]), Reply::bulk("1"));
    eventually(PATIENCE, "scripts again", || c.cmd(&["EVAL", "return 1", "1", "b:k"]) == Reply::Int(1));
}

#[test]
fn a_full_queue_writes_through() {
    let mut redis = Redis::start();
    let proxy = behind(&redis).set("outage.queue_max", 2).start();
    let mut c = proxy.client();
    c.cmd(&["PING"]);
    redis.sigstop();
    assert_eq!(c.cmd(&["SET", "b:1", "v"]), Reply::ok());
    assert_eq!(c.cmd(&["SET", "b:2", "v"]), Reply::ok());
    c.send_cmd(&["SET", "b:3", "v"]);
    c.expect_silence(ms(50));
    redis.sigcont();
    assert_eq!(c.reply(), Reply::ok());
    assert_eq!(redis.cmd(&["EXISTS", "b:3"]), Reply::Int(1), "its reply was upstream's");
}

/// Where a write would go now, and what would become of it if upstream were gone.
#[test]
fn explain_says_what_is_written_behind_and_what_an_outage_would_make_of_it() {
    let redis = Redis::start();
    let rules = json!([
        {"pattern": "b:*", "write": "behind"},
        {"pattern": "q:*", "outage_writes": "queue"},
        {"pattern": "l:*", "outage_writes": "local"},
        {"pattern": "*"},
    ]);
    let proxy = quick(Proxy::to(&redis)).set("rules", rules).start();
    let mut c = proxy.client();
    for key in ["b:known", "q:known"] {
        redis.cmd(&["SET", key, "1"]);
        warm(&proxy, &mut c, key);
    }
    for (command, write, outage) in [
        ("SET b:k v EX 5", "behind", "queue"),
        ("INCR b:known", "behind", "queue"),
        ("INCR b:new", "through: unknown_key", "refused: unknown_key"),
        ("LPUSH b:k v", "through: command", "refused: command"),
        ("MSET b:k v b:known v", "behind", "queue"),
        ("MSET b:k v q:k v", "through", "queue"),
        ("MSET b:k v other v", "through", "fail"),
        ("MSET q:k v l:k v", "through", "refused: mixed_rules"),
        ("DEL q:known", "through", "queue"),
        ("DEL q:new", "through", "refused: unknown_key"),
        ("INCR l:new", "through", "local"),
        ("LPUSH l:new v", "through", "refused: command"),
        ("SET other v", "through", "fail"),
        ("SET b:k", "through", "wrong number of arguments"),
    ] {
        let words: Vec<&str> = ["NEARSIDE", "EXPLAIN"].into_iter().chain(command.split(' ')).collect();
        let explained = c.cmd(&words);
        let of = |name| explained.get(name).text();
        assert_eq!((of("write"), of("outage_writes")), (write.to_owned(), outage.to_owned()), "{command}");
    }
    let read = c.cmd(&["NEARSIDE", "EXPLAIN", "GET", "b:k"]);
    assert!(!format!("{read:?}").contains("outage_writes"), "{read:?}");
    assert_eq!(redis.cmd(&["DBSIZE"]), Reply::Int(2), "nothing was executed");
    // What it said is what happens.
    assert_eq!(c.cmd(&["INCR", "b:known"]), Reply::Int(2));
    assert_eq!(proxy.metric("nearside_queued_writes_total"), 1.0);
}

/// In `pubsub` mode a script that does not name what it writes announces nothing, and leaves the copy: its own client is not
/// told from it, nor counted on from it.
#[test]
fn counts_go_on_from_what_the_clients_own_script_has_written() {
    let redis = Redis::start();
    let proxy = behind(&redis).set("coherence.mode", "pubsub").set("coherence.ttl_cap.pubsub", "1h").start();
    redis.cmd(&["SET", "b:n", "1"]);
    let mut c = proxy.client();
    warm(&proxy, &mut c, "b:n");
    assert_eq!(c.cmd(&["EVAL", "return redis.call('SET', 'b:n', '5')", "0"]), Reply::ok());
    assert_eq!(c.cmd(&["INCR", "b:n"]), Reply::Int(6));
    eventually(PATIENCE, "upstream's", || redis.cmd(&["GET", "b:n"]) == Reply::bulk("6"));
}
