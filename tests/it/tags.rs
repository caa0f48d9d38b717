//! Tags of keys, invalidated by whoever may: every key goes, in every sidecar, and what was being read goes with it. And
//! `max_share`: a rule's entries leave the others their room.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::{Client, PATIENCE, Proxy, Redis, Reply, eventually, http, temp_dir};

fn rules() -> serde_json::Value {
    json!([
        {"name": "tenants", "pattern": "tenant:{id}:*", "commands": ["GET", "MGET", "HGETALL"],
         "tags": ["tenant:{id}", "kind:{1}", "all"]},
        {"name": "orders", "pattern": "order:{n}:{id}", "tags": ["tenant:{id}"]},
        {"pattern": "*"},
    ])
}

/// Reads a key until it comes from the L1.
#[track_caller]
fn warm(proxy: &Proxy, client: &mut Client, command: &[&str]) {
    eventually(PATIENCE, "a hit", || {
        let before = proxy.stat("hits");
        client.cmd(command);
        proxy.stat("hits") > before
    });
}

fn resident(client: &mut Client, key: &str) -> bool {
    client.cmd(&["NEARSIDE", "ENTRY", key]) != Reply::Nil
}

fn texts(reply: &Reply) -> Vec<String> {
    reply.items().iter().map(Reply::text).collect()
}

const OF_42: [&[&str]; 5] = [
    &["GET", "tenant:42:name"],
    &["GET", "tenant:42:absent"],
    &["HGETALL", "tenant:42:hash"],
    &["MGET", "tenant:42:other"],
    &["GET", "order:7:42"],
];

#[test]
fn a_tag_drops_all_its_keys_in_every_sidecar_whoever_says_so() {
    let redis = Redis::start();
    let dir = temp_dir();
    let file = dir.path().join("token");
    std::fs::write(&file, "secret\n").expect("a file");
    let token = file.display().to_string();
    let fleet =
        |i: i32| Proxy::to(&redis).set("rules", rules()).set("http.token_file", &*token).set("workers", i).start();
    let proxies = [fleet(1), fleet(2)];
    proxies.iter().for_each(|p| eventually(PATIENCE, "a subscription", || p.stats()["channel"] == "up"));
    let mut clients: Vec<Client> = proxies.iter().map(Proxy::client).collect();
    redis.cmd(&["SET", "tenant:42:name", "n"]);
    redis.cmd(&["HSET", "tenant:42:hash", "f", "v"]);
    let ways: [&dyn Fn(&mut Client) -> Option<i64>; 4] = [
        &|client| Some(client.cmd(&["NEARSIDE", "INVALIDATE", "TAG", "tenant:42", "none"]).int()),
        &|_| {
            let answer =
                http::post(proxies[0].http_address(), "/api/v1/invalidate", Some("secret"), r#"{"tag":["tenant:42"]}"#);
            assert_eq!(answer.status, 200, "{}", answer.body);
            answer.json()["dropped"].as_i64()
        },
        &|_| {
            redis.cmd(&["PUBLISH", "nearside:invalidate", "tag tenant:42"]);
            None
        },
        &|_| {
            redis.cmd(&["PUBLISH", "nearside:invalidate", r#"{"v":1,"op":"tag","args":["tenant:42"]}"#]);
            None
        },
    ];
    for way in ways {
        for (proxy, client) in proxies.iter().zip(&mut clients) {
            OF_42.iter().for_each(|command| warm(proxy, client, command));
            warm(proxy, client, &["GET", "tenant:43:name"]);
            warm(proxy, client, &["GET", "kind:name"]);
        }
        let dropped = way(&mut clients[0]);
        assert!(dropped.is_none_or(|n| n == OF_42.len() as i64), "{dropped:?}");
        for client in &mut clients {
            for command in OF_42 {
                eventually(PATIENCE, "all of the tag to go", || !resident(client, command[1]));
            }
            assert!(resident(client, "tenant:43:name") && resident(client, "kind:name"));
        }
    }
    let counted = |tag: &str| proxies[0].metric(&format!("cache_invalidate_total{{impl=\"l1\",tag=\"{tag}\"}}"));
    // A message comes back to whoever has sent it.
    assert!(counted("tenant:{id}") >= 4.0 && counted("_tag") >= 1.0);
    assert_eq!((counted("all"), counted("kind:{1}")), (0.0, 0.0), "a series from the start");
}

#[test]
fn a_tag_spans_databases_and_users_and_is_shown() {
    let redis = Redis::start();
    let proxy = Proxy::to(&redis).set("rules", rules()).start();
    let (mut zero, mut one) = (proxy.client(), proxy.client());
    one.cmd(&["SELECT", "1"]);
    warm(&proxy, &mut zero, &["GET", "tenant:1:a"]);
    warm(&proxy, &mut one, &["GET", "tenant:1:a"]);
    let entry = zero.cmd(&["NEARSIDE", "ENTRY", "tenant:1:a"]);
    assert_eq!(texts(&entry.get("tags")), ["tenant:1", "kind:a", "all"]);
    let explained = zero.cmd(&["NEARSIDE", "EXPLAIN", "GET", "order:7:9"]);
    assert_eq!(texts(&explained.get("tags")), ["tenant:9"]);
    assert!(texts(&zero.cmd(&["NEARSIDE", "EXPLAIN", "PING"]).get("tags")).is_empty());
    assert_eq!(zero.cmd(&["NEARSIDE", "INVALIDATE", "TAG", "kind:a"]).int(), 2);
    assert!(!resident(&mut zero, "tenant:1:a") && !resident(&mut one, "tenant:1:a"));
}

/// In `ttl` mode nothing else would end a copy of what was written past the sidecar: after the answer to INVALIDATE TAG, and
/// only because of it, every client reads what was written before it was asked.
#[test]
fn after_the_answer_nobody_reads_what_was_there_before() {
    const KEYS: usize = 4;
    let redis = Redis::start();
    let proxy = Proxy::to(&redis)
        .set("rules", rules())
        .set("workers", 2)
        .set("coherence.mode", "ttl")
        .set("coherence.ttl_cap.ttl", "1h")
        .start();
    eventually(PATIENCE, "a subscription", || proxy.stats()["channel"] == "up");
    let (floor, over) = (AtomicU64::new(0), AtomicBool::new(false));
    let key = |i: usize| format!("tenant:1:{}", i % KEYS);
    let version = |reply: Reply| reply.text().parse::<u64>().unwrap_or(0);
    let read = |seed: usize| {
        let mut client = proxy.client();
        let mut reads = 0;
        while !over.load(SeqCst) {
            let least = floor.load(SeqCst);
            let read = version(client.cmd(&["GET", &key(seed + reads)]));
            if read < least {
                over.store(true, SeqCst);
                panic!("{read} was read after {least} had been acknowledged");
            }
            reads += 1;
        }
        reads
    };
    let reads: usize = std::thread::scope(|scope| {
        let readers: Vec<_> = (0..4).map(|i| scope.spawn(move || read(i))).collect();
        let (mut writer, mut asker) = (redis.client(), proxy.client());
        let end = Instant::now() + Duration::from_secs(4);
        for version in 1.. {
            if Instant::now() > end || over.load(SeqCst) {
                break;
            }
            (0..KEYS).for_each(|i| assert_eq!(writer.cmd(&["SET", &key(i), &version.to_string()]), Reply::ok()));
            asker.cmd(&["NEARSIDE", "INVALIDATE", "TAG", "tenant:1"]).int();
            floor.store(version, SeqCst);
        }
        over.store(true, SeqCst);
        readers.into_iter().map(|reader| reader.join().expect("no reader was wrong")).sum()
    });
    let (hits, rounds) = (proxy.stat("hits"), floor.load(SeqCst));
    println!("{rounds} rounds, {reads} reads, {hits} of them hits, {} void", proxy.stat("fills_discarded_sweep"));
    assert!(hits > 100.0 && rounds > 20, "{rounds} rounds, {hits} hits: it must not pass for want of them");
}

/// The index has a quarter of 1 MiB: less than tags of one key each need.
#[test]
fn tags_that_have_no_room_in_the_index_lose_no_key() {
    const KEYS: usize = 900;
    let redis = Redis::start();
    let proxy = Proxy::to(&redis)
        .set("rules", rules())
        .set("cache.max_bytes", "1MiB")
        .set("cache.max_value_bytes", "1KiB")
        .set("cache.update_max_bytes", "1KiB")
        .start();
    let mut client = proxy.client();
    warm(&proxy, &mut client, &["GET", "tenant:0:a"]);
    for i in 0..KEYS {
        client.cmd(&["GET", &format!("order:{i}:{i}")]);
    }
    let stored: Vec<usize> = (0..KEYS).filter(|i| resident(&mut client, &format!("order:{i}:{i}"))).collect();
    assert!(stored.len() > 300, "{} are stored", stored.len());
    let counted = |tag: &str| proxy.metric(&format!("cache_invalidate_total{{impl=\"l1\",tag=\"{tag}\"}}"));
    for i in stored.iter().rev().take(20).chain(stored.iter().take(20)) {
        client.cmd(&["NEARSIDE", "INVALIDATE", "TAG", &format!("tenant:{i}")]);
        assert!(!resident(&mut client, &format!("order:{i}:{i}")), "{i}");
    }
    let left = stored.iter().filter(|i| resident(&mut client, &format!("order:{i}:{i}"))).count();
    assert!(left + 60 > stored.len(), "{left} of {} are left: only those that were named may go", stored.len());
    assert!(counted("_tag") > 0.0, "some had no set");
}

#[test]
fn a_rule_with_a_share_leaves_the_others_their_room() {
    const SHARE: u64 = (1 << 20) / 10;
    let redis = Redis::start();
    let rules = json!([{"name": "sessions", "pattern": "s:*", "max_share": 0.1}, {"name": "rest", "pattern": "*"}]);
    let proxy = Proxy::to(&redis)
        .set("rules", rules)
        .set("cache.max_bytes", "1MiB")
        .set("cache.max_value_bytes", "1KiB")
        .set("cache.update_max_bytes", "1KiB")
        .start();
    let mut client = proxy.client();
    warm(&proxy, &mut client, &["GET", "other"]);
    let others: Vec<String> = (0..100).map(|i| format!("other:{i}")).collect();
    others.iter().for_each(|key| drop(client.cmd(&["GET", key])));
    let resident_others = |client: &mut Client| others.iter().filter(|key| resident(client, key)).count();
    eventually(PATIENCE, "them to be stored", || resident_others(&mut client) == 100);
    // Ten times what fits.
    for i in 0..2000 {
        client.cmd(&["GET", &format!("s:{i}")]);
    }
    let rows = client.cmd(&["NEARSIDE", "RULES"]).items();
    let taken: u64 = rows[0].get("share_bytes").text().parse().expect("a number");
    assert_eq!(rows[0].get("max_share_bytes").text(), SHARE.to_string());
    assert!(taken <= SHARE && taken > SHARE / 2, "{taken}");
    assert_eq!(resident_others(&mut client), 100);
    assert!(resident(&mut client, "s:1999") && !resident(&mut client, "s:0"), "oldest first");
    assert!(proxy.metric("nearside_evictions_total{cause=\"share\"}") > 1500.0);
    assert_eq!(proxy.metric("nearside_evictions_total{cause=\"size\"}"), 0.0);
    assert_eq!(rows[1].get("share_bytes").text(), "");
}
