//! Tags of keys, invalidated by whoever may: every key goes, in every sidecar, and what was being read goes with it. And
//! `max_share`: a rule's entries leave the others their room.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use serde_json::json;

use crate::support::{Client, Dir, PATIENCE, Proxy, Redis, Relay, Reply, Scope, eventually, http, poll, temp_dir};

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

/// A hundred at a time.
fn get_all(client: &mut Client, keys: impl Iterator<Item = String>) {
    let keys: Vec<String> = keys.collect();
    for some in keys.chunks(100) {
        let words: Vec<[&str; 2]> = some.iter().map(|key| ["GET", key]).collect();
        let commands: Vec<&[&str]> = words.iter().map(|words| &words[..]).collect();
        assert_eq!(client.pipeline(&commands).len(), some.len());
    }
}

fn texts(reply: &Reply) -> Vec<String> {
    reply.items().iter().map(Reply::text).collect()
}

/// Somebody who invalidates a tag, and what they are told.
type Way<'w> = &'w dyn Fn(&mut Client) -> Option<i64>;

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
    let ways: [Way<'_>; 4] = [
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
    const KEYS: u64 = 4;
    const READERS: u64 = 4;
    const ROUNDS: u64 = 80;
    let redis = Redis::start();
    // What upstream has answered is under way for a while: long enough to write past the sidecar and to invalidate.
    let relay = Relay::to(&redis);
    relay.delay(Scope::All, Dir::Down, Duration::from_millis(5));
    let proxy = Proxy::upstream(&relay.url())
        .set("rules", rules())
        .set("workers", 2)
        .set("coherence.mode", "ttl")
        .set("coherence.ttl_cap.ttl", "1h")
        .start();
    eventually(PATIENCE, "a subscription", || proxy.stats()["channel"] == "up");
    let (floor, over, reads) = (AtomicU64::new(0), AtomicBool::new(false), AtomicU64::new(0));
    let key = |i: u64| format!("tenant:1:{}", i % KEYS);
    let set = |client: &mut Client, version: u64| {
        (0..KEYS).for_each(|i| assert_eq!(client.cmd(&["SET", &key(i), &version.to_string()]), Reply::ok()));
    };
    let (mut writer, mut asker) = (redis.client(), proxy.client());
    set(&mut writer, 0);
    let read = |seed: u64| {
        let mut client = proxy.client();
        for i in seed.. {
            if over.load(SeqCst) {
                return;
            }
            let least = floor.load(SeqCst);
            let read: u64 = client.cmd(&["GET", &key(i)]).text().parse().expect("a version");
            if read < least {
                over.store(true, SeqCst);
                panic!("{read} was read after {least} had been acknowledged");
            }
            reads.fetch_add(1, SeqCst);
        }
    };
    std::thread::scope(|scope| {
        (0..READERS).for_each(|i| drop(scope.spawn(move || read(i))));
        for version in 1..=ROUNDS {
            set(&mut writer, version);
            asker.cmd(&["NEARSIDE", "INVALIDATE", "TAG", "tenant:1"]).int();
            floor.store(version, SeqCst);
            // In every other round it is invalidated anew while the keys are still being read for the first time.
            let enough = reads.load(SeqCst) + if version % 2 == 0 { 8 * KEYS } else { 0 };
            let go_on = || (reads.load(SeqCst) >= enough || over.load(SeqCst)).then_some(());
            if poll(PATIENCE, go_on).is_none() {
                break;
            }
        }
        over.store(true, SeqCst);
    });
    let (hits, void) = (proxy.stat("hits"), proxy.stat("fills_discarded_sweep"));
    assert!(void > 0.0, "no reading was under way");
    println!("{} reads, {hits} of them hits, {void} readings void", reads.load(SeqCst));
    assert_eq!(floor.load(SeqCst), ROUNDS);
    assert!(hits > ROUNDS as f64, "{hits} hits: it must not pass for want of them");
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
        .set("cache.negative_ttl", "1h")
        .start();
    let mut client = proxy.client();
    warm(&proxy, &mut client, &["GET", "tenant:0:a"]);
    let key = |i: usize| format!("order:{i}:{i}");
    get_all(&mut client, (0..KEYS).map(key));
    let stored: Vec<usize> = (0..KEYS).filter(|i| resident(&mut client, &key(*i))).collect();
    assert!(stored.len() > 600, "{} are stored", stored.len());
    let counted = |tag: &str| proxy.metric(&format!("cache_invalidate_total{{impl=\"l1\",tag=\"{tag}\"}}"));
    for i in stored.iter().rev().take(20).chain(stored.iter().take(20)) {
        client.cmd(&["NEARSIDE", "INVALIDATE", "TAG", &format!("tenant:{i}")]);
        assert!(!resident(&mut client, &key(*i)), "{i}");
    }
    let left = stored.iter().filter(|i| resident(&mut client, &key(**i))).count();
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
        .set("cache.negative_ttl", "1h")
        .start();
    let mut client = proxy.client();
    warm(&proxy, &mut client, &["GET", "other"]);
    let others: Vec<String> = (0..100).map(|i| format!("other:{i}")).collect();
    get_all(&mut client, others.iter().cloned());
    let resident_others = |client: &mut Client| others.iter().filter(|key| resident(client, key)).count();
    eventually(PATIENCE, "them to be stored", || resident_others(&mut client) == 100);
    // Ten times what fits.
    get_all(&mut client, (0..2000).map(|i| format!("s:{i}")));
    eventually(PATIENCE, "the last one to be stored", || resident(&mut client, "s:1999"));
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
