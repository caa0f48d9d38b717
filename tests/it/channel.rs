//! The sidecars' channel: what is published there is dropped by every sidecar, whoever publishes it; what happens when the
//! subscription is lost, refused, or has to wait for a credential.

use std::time::Duration;

use serde_json::Value;

use crate::support::{Client, Dir, PATIENCE, Proxy, Redis, Relay, Reply, Scope, eventually, http};

const CHANNEL: &str = "nearside:invalidate";

/// A server and sidecars of it that are subscribed, every other one with a second worker. Their entries can only be ended by the channel: keys are read once and
/// never change upstream.
fn fleet(n: usize) -> (Redis, Vec<Proxy>) {
    let redis = Redis::start();
    let proxies: Vec<Proxy> = (0..n).map(|i| Proxy::to(&redis).set("workers", 1 + i % 2).start()).collect();
    proxies.iter().for_each(wait_subscribed);
    (redis, proxies)
}

#[track_caller]
fn wait_subscribed(proxy: &Proxy) {
    eventually(PATIENCE, "a subscription", || proxy.stats()["channel"] == "up");
}

/// Reads `key` until it comes from the L1.
#[track_caller]
fn warm(proxy: &Proxy, client: &mut Client, key: &[u8]) {
    eventually(PATIENCE, "a hit", || {
        let before = proxy.stat("hits");
        client.cmd(&[&b"GET"[..], key]);
        proxy.stat("hits") > before
    });
}

fn resident(client: &mut Client, key: &[u8]) -> bool {
    client.cmd(&[&b"NEARSIDE"[..], b"ENTRY", key]) != Reply::Nil
}

fn health(proxy: &Proxy) -> Value {
    serde_json::from_str(&proxy.get("/health").body).expect("JSON")
}

#[test]
fn a_message_drops_the_key_in_every_sidecar_and_no_other() {
    let (redis, proxies) = fleet(2);
    let mut clients: Vec<Client> = proxies.iter().map(Proxy::client).collect();
    for payload in [
        &b"key \xff\x00 k\r\n"[..],
        br#"{"v":1,"op":"key","args":["/wAgaw0K"],"base64":true,"db":3}"#,
        br#"{"v":1,"op":"key","args":["other","/wAgaw0K"],"base64":true,"from":"app","seq":1}"#,
    ] {
        // The last one is wrong in its first argument's length for base64, and so has no effect at all.
        let effective = !payload.windows(5).any(|w| w == b"other");
        for (proxy, client) in proxies.iter().zip(&mut clients) {
            warm(proxy, client, b"\xff\x00 k\r\n");
            warm(proxy, client, b"bystander");
        }
        let malformed: Vec<f64> = proxies.iter().map(|p| p.stat("channel_malformed")).collect();
        assert_eq!(redis.cmd(&[&b"PUBLISH"[..], CHANNEL.as_bytes(), payload]), Reply::Int(2));
        for ((proxy, client), malformed) in proxies.iter().zip(&mut clients).zip(malformed) {
            if effective {
                eventually(PATIENCE, "the key to be dropped", || !resident(client, b"\xff\x00 k\r\n"));
            } else {
                eventually(PATIENCE, "it to be counted", || proxy.stat("channel_malformed") == malformed + 1.0);
                assert!(resident(client, b"\xff\x00 k\r\n"));
            }
            assert!(resident(client, b"bystander"));
        }
    }
}

#[test]
fn what_is_not_understood_is_counted_and_shown_once_a_second_at_most() {
    let (redis, proxies) = fleet(1);
    let mut client = proxies[0].client();
    warm(&proxies[0], &mut client, b"k");
    for payload in ["KEY k", "key\tk\x1b[31m", "{\"v\":1", "flush now", ""] {
        redis.cmd(&["PUBLISH", CHANNEL, payload]);
    }
    eventually(PATIENCE, "them to be counted", || proxies[0].stat("channel_malformed") == 5.0);
    assert!(resident(&mut client, b"k"), "nothing of it may have an effect");
    assert_eq!(proxies[0].metric("nearside_channel_malformed_total"), 5.0);
    let shown = proxies[0].count_logged("has no effect");
    assert!((1..=2).contains(&shown), "{shown} lines");
    assert!(proxies[0].logged("no such operation") && proxies[0].logged("bytes=5"));
    assert!(!proxies[0].logged("KEY k"), "a message may name a key");
}

#[test]
fn a_lost_subscription_shows_and_ends_what_may_have_been_missed() {
    let redis = Redis::start();
    let relay = Relay::to(&redis);
    let proxy = Proxy::upstream(&relay.url()).start();
    let mut client = proxy.client();
    wait_subscribed(&proxy);
    warm(&proxy, &mut client, b"k");
    let epoch = proxy.stat("channel_epoch");
    relay.cut(relay.channel());
    proxy.wait_logged("not subscribed to the channel nearside:invalidate: upstream closed the connection");
    eventually(PATIENCE, "it to be back", || proxy.stat("channel_epoch") > epoch && proxy.stats()["channel"] == "up");
    assert!(!resident(&mut client, b"k"), "a message may have been missed");
    assert_eq!(proxy.stat("flushes_channel"), 1.0);
    assert_eq!(proxy.count_logged("not subscribed to the channel"), 1);
    // The log is read by a thread of its own, which may be behind.
    eventually(PATIENCE, "two confirmations and one loss", || proxy.count_logged(" subscribed to the channel") == 3);
    assert_eq!(health(&proxy)["channel"]["state"], "up");
    assert_eq!(proxy.metric("nearside_channel_state{state=\"up\"}"), 1.0);
    warm(&proxy, &mut client, b"k");
    redis.cmd(&["PUBLISH", CHANNEL, "key k"]);
    eventually(PATIENCE, "the key to be dropped", || !resident(&mut client, b"k"));
}

#[test]
fn a_user_without_the_channel_is_told_of_and_served() {
    let redis = Redis::start();
    redis.cmd(&["ACL", "SETUSER", "near", "on", ">n", "~*", "+@all", "resetchannels"]);
    let url = redis.url().replace("unix://", "unix://near:n@");
    let proxy = Proxy::upstream(&url).start();
    let mut client = proxy.client();
    proxy.wait_logged("not subscribed to the channel nearside:invalidate: SUBSCRIBE: NOPERM");
    warm(&proxy, &mut client, b"k");
    let body = health(&proxy);
    assert_eq!((&body["status"], &body["channel"]["state"]), (&"degraded".into(), &"refused".into()), "{body}");
    assert!(body["channel"]["error"].as_str().is_some_and(|e| e.contains("NOPERM")), "{body}");
}

#[test]
fn without_a_credential_of_its_own_it_takes_that_of_a_client_that_upstream_has_accepted() {
    let redis = Redis::builder().args(&["--requirepass", "secret"]).start();
    let proxy = Proxy::to(&redis).start();
    eventually(PATIENCE, "it to wait", || proxy.stats()["channel"] == "waiting");
    assert_eq!(health(&proxy)["channel"]["state"], "waiting");
    let mut client = proxy.client();
    assert_eq!(client.cmd(&["AUTH", "secret"]), Reply::ok());
    warm(&proxy, &mut client, b"k");
    wait_subscribed(&proxy);
    let mut direct = redis.client();
    direct.cmd(&["AUTH", "secret"]);
    direct.cmd(&["PUBLISH", CHANNEL, "key k"]);
    eventually(PATIENCE, "the key to be dropped", || !resident(&mut client, b"k"));
}

/// A message of more than 1 MiB is not collected. Somebody wanted something dropped: everything is.
#[test]
fn a_message_too_large_to_look_at_flushes() {
    let (redis, proxies) = fleet(1);
    let mut client = proxies[0].client();
    warm(&proxies[0], &mut client, b"k");
    let large = [b"key ".as_slice(), &vec![b'x'; 3 << 20]].concat();
    redis.cmd(&[&b"PUBLISH"[..], CHANNEL.as_bytes(), &large]);
    eventually(PATIENCE, "the entry to go", || !resident(&mut client, b"k"));
    warm(&proxies[0], &mut client, b"k");
    redis.cmd(&["PUBLISH", CHANNEL, "key k"]);
    eventually(PATIENCE, "the subscription to go on", || !resident(&mut client, b"k"));
}

/// S silent while a fresh connection is answered: half-open, as after a firewall's reboot.
#[test]
fn a_half_open_subscription_is_replaced() {
    let redis = Redis::start();
    let relay = Relay::to(&redis);
    let proxy = Proxy::upstream(&relay.url()).start();
    wait_subscribed(&proxy);
    let epoch = proxy.stat("channel_epoch");
    relay.blackhole(relay.channel());
    proxy.wait_logged("silent for 3 s while a fresh connection is answered");
    eventually(PATIENCE, "another one", || proxy.stat("channel_epoch") > epoch);
    let mut client = proxy.client();
    warm(&proxy, &mut client, b"k");
    redis.cmd(&["PUBLISH", CHANNEL, "key k"]);
    eventually(PATIENCE, "the key to be dropped", || !resident(&mut client, b"k"));
}

/// Every kind in both forms; names that must go and names that must stay, in a sidecar that the publisher is not on.
const KINDS: &[(&str, &[&str], &[&str])] = &[
    ("key user:1", &["user:1"], &["user:12", "order:1"]),
    ("prefix user:", &["user:1", "user:12"], &["order:1", "xuser:1"]),
    ("pattern user:?", &["user:1"], &["user:12", "order:1"]),
    ("pattern *:1", &["user:1", "order:1", "xuser:1"], &["user:12"]),
    ("regex ^user:\\d$", &["user:1"], &["user:12", "xuser:1"]),
    ("regex r:1", &["user:1", "user:12", "order:1", "xuser:1"], &["plain"]),
    ("tag tenant:1", &[], &["user:1", "order:1"]),
    ("flush", &["user:1", "user:12", "order:1", "plain"], &[]),
    (r#"{"v":1,"op":"key","args":["user:1","order:1"]}"#, &["user:1", "order:1"], &["user:12"]),
    (r#"{"v":1,"op":"prefix","args":["user:","x"],"db":0}"#, &["user:1", "user:12", "xuser:1"], &["order:1"]),
    (r#"{"v":1,"op":"pattern","args":["user:[1]"],"from":"app","seq":3}"#, &["user:1"], &["user:12"]),
    (r#"{"v":1,"op":"regex","args":["^(user|order):1$"]}"#, &["user:1", "order:1"], &["xuser:1"]),
    (r#"{"v":1,"op":"prefix","args":["dXNlcjo="],"base64":true}"#, &["user:1", "user:12"], &["order:1"]),
    (r#"{"v":1,"op":"flush"}"#, &["user:1", "plain"], &[]),
];

const NAMES: &[&str] = &["user:1", "user:12", "order:1", "xuser:1", "plain"];

/// Every message from before this has been applied in the client's sidecar, its sweep included: an INVALIDATE is answered
/// behind its own message's return, and that is looked at behind the sweeps before it.
fn settle(client: &mut Client) {
    let reply = client.cmd(&["NEARSIDE", "INVALIDATE", "KEY", "settled"]);
    assert!(!reply.is_error(), "{}", reply.text());
}

/// An application publishes through its sidecar: dropped there before it has its reply, and in the other one.
#[test]
fn a_clients_publish_is_applied_before_its_reply_and_everywhere() {
    let (_redis, proxies) = fleet(2);
    let (mut here, mut there) = (proxies[0].client(), proxies[1].client());
    for (payload, gone, kept) in KINDS {
        for name in NAMES {
            warm(&proxies[0], &mut here, name.as_bytes());
            warm(&proxies[1], &mut there, name.as_bytes());
        }
        assert_eq!(here.cmd(&["PUBLISH", CHANNEL, payload]), Reply::Int(2), "{payload}");
        for name in *gone {
            assert!(!resident(&mut here, name.as_bytes()), "{payload}: {name} at the publisher's");
            eventually(PATIENCE, payload, || !resident(&mut there, name.as_bytes()));
        }
        settle(&mut here);
        settle(&mut there);
        for name in *kept {
            assert!(resident(&mut here, name.as_bytes()) && resident(&mut there, name.as_bytes()), "{payload}: {name}");
        }
    }
    assert!(proxies[0].metric("nearside_invalidations_total{source=\"publish\"}") >= KINDS.len() as f64);
    assert!(proxies[1].metric("nearside_invalidations_total{source=\"channel\"}") >= KINDS.len() as f64);
    for tag in ["_key", "_prefix", "_pattern", "_regex", "_flush"] {
        assert!(proxies[1].metric(&format!("cache_invalidate_total{{impl=\"l1\",tag=\"{tag}\"}}")) > 0.0, "{tag}");
    }
}

/// On the lane, and on a connection of its own: inside MULTI, and as a RESP3 subscriber. Stalled, the channel cannot have
/// done it.
#[test]
fn a_pinned_clients_publish_is_applied_before_its_reply() {
    let redis = Redis::start();
    let relay = Relay::to(&redis);
    let proxy = Proxy::upstream(&relay.url()).set("coherence.max_staleness", "10s").start();
    wait_subscribed(&proxy);
    let mut reader = proxy.client();
    // What was published before comes back, and is applied again, before anything is read again.
    let echoed = || {
        relay.resume(relay.channel(), Dir::Down);
        settle(&mut proxy.client());
    };
    for payload in ["key user:1", "prefix user:", "flush"] {
        echoed();
        warm(&proxy, &mut reader, b"user:1");
        relay.stall(relay.channel(), Dir::Down);
        let mut client = proxy.client();
        assert_eq!(client.cmd(&["PUBLISH", CHANNEL, payload]), Reply::Int(1));
        assert!(!resident(&mut reader, b"user:1"), "{payload} on the lane");
        echoed();
        warm(&proxy, &mut reader, b"user:1");
        relay.stall(relay.channel(), Dir::Down);
        client.cmd(&["MULTI"]);
        assert_eq!(client.cmd(&["PUBLISH", CHANNEL, payload]), Reply::status("QUEUED"));
        assert!(resident(&mut reader, b"user:1"), "nothing has been published yet");
        assert_eq!(client.cmd(&["EXEC"]), Reply::Array(vec![Reply::Int(1)]));
        assert!(!resident(&mut reader, b"user:1"), "{payload} in MULTI");
        echoed();
        warm(&proxy, &mut reader, b"user:1");
        relay.stall(relay.channel(), Dir::Down);
        let mut subscriber = proxy.client3();
        subscriber.send_cmd(&["SUBSCRIBE", "c"]);
        subscriber.push();
        assert_eq!(subscriber.cmd(&["PUBLISH", CHANNEL, payload]), Reply::Int(1));
        assert!(!resident(&mut reader, b"user:1"), "{payload} of a subscriber");
    }
}

/// A fetch that is under way while a prefix is published stores nothing: what it brings may be from before.
#[test]
fn a_fetch_across_a_sweep_stores_nothing() {
    let redis = Redis::start();
    let relay = Relay::to(&redis);
    let proxy = Proxy::upstream(&relay.url()).set("coherence.max_staleness", "10s").start();
    wait_subscribed(&proxy);
    let (mut fetching, mut asking) = (proxy.client(), proxy.client());
    warm(&proxy, &mut asking, b"other");
    relay.stall(Scope::One(0), Dir::Down);
    fetching.send_cmd(&["GET", "user:1"]);
    eventually(PATIENCE, "it to be sent", || proxy.stat("in_flight") >= 2.0);
    redis.cmd(&["PUBLISH", CHANNEL, "prefix user:"]);
    eventually(PATIENCE, "it to be applied", || proxy.stat("invalidations_channel") == 1.0);
    relay.resume(Scope::One(0), Dir::Down);
    assert_eq!(fetching.reply(), Reply::Nil);
    eventually(PATIENCE, "it to be discarded", || proxy.stat("fills_discarded_sweep") == 1.0);
    assert!(!resident(&mut asking, b"user:1"));
    warm(&proxy, &mut asking, b"user:1");
}

#[test]
fn nearside_invalidate_and_flush_reach_the_other_sidecars_and_count_the_own_entries() {
    let (_redis, proxies) = fleet(2);
    let (mut here, mut there) = (proxies[0].client(), proxies[1].client());
    for (words, n, gone) in [
        (&["INVALIDATE", "KEY", "user:1", "order:1", "nosuch"][..], 2, &["user:1", "order:1"][..]),
        (&["invalidate", "prefix", "user:", "pl"], 3, &["user:1", "user:12", "plain"]),
        (&["INVALIDATE", "PATTERN", "*:1"], 3, &["user:1", "order:1", "xuser:1"]),
        (&["INVALIDATE", "REGEX", "^x", "2$"], 2, &["xuser:1", "user:12"]),
        (&["INVALIDATE", "TAG", "tenant:1"], 0, &[]),
        (&["FLUSH"], 5, NAMES),
    ] {
        assert!(!here.cmd(&["NEARSIDE", "FLUSH"]).is_error());
        for name in NAMES {
            warm(&proxies[0], &mut here, name.as_bytes());
            warm(&proxies[1], &mut there, name.as_bytes());
        }
        let line = [&["NEARSIDE"][..], words].concat();
        assert_eq!(here.cmd(&line), Reply::Int(n), "{line:?}");
        for name in NAMES {
            let goes = gone.contains(name);
            assert_eq!(resident(&mut here, name.as_bytes()), !goes, "{line:?}: {name}");
            if goes {
                eventually(PATIENCE, name, || !resident(&mut there, name.as_bytes()));
            }
        }
    }
    warm(&proxies[0], &mut here, b"k");
    let route = here.cmd(&["NEARSIDE", "EXPLAIN", "PUBLISH", CHANNEL, "flush"]);
    assert_eq!((route.get("route").text().as_str(), resident(&mut here, b"k")), ("announce", true), "{route:?}");
    for (line, error) in [
        (&["NEARSIDE", "INVALIDATE", "REGEX", "user:("][..], "ERR no regular expression: unclosed group"),
        (&["NEARSIDE", "INVALIDATE", "KEY"], "ERR use NEARSIDE INVALIDATE KEY|PREFIX|PATTERN|REGEX|TAG <x> [<x> ...]"),
        (
            &["NEARSIDE", "INVALIDATE", "FLUSH", "x"],
            "ERR use NEARSIDE INVALIDATE KEY|PREFIX|PATTERN|REGEX|TAG <x> [<x> ...]",
        ),
        (&["NEARSIDE", "FLUSH", "x"], "ERR NEARSIDE FLUSH takes no argument"),
        (&["NEARSIDE", "DELETE", "KEY", "x"], "ERR use NEARSIDE DELETE PATTERN <glob> [<glob> ...]"),
    ] {
        assert_eq!(here.cmd(line).text(), error, "{line:?}");
    }
}

/// Binary names travel between sidecars, and what comes back to the one that sent it is applied again.
#[test]
fn a_binary_name_reaches_the_other_sidecar() {
    let (redis, proxies) = fleet(2);
    let (mut here, mut there) = (proxies[0].client(), proxies[1].client());
    let name = b"\xff\x00:1";
    warm(&proxies[0], &mut here, name);
    warm(&proxies[1], &mut there, name);
    let mut listening = redis.client();
    listening.cmd(&["SUBSCRIBE", CHANNEL]);
    assert_eq!(here.cmd(&[&b"NEARSIDE"[..], b"INVALIDATE", b"KEY", name]), Reply::Int(1));
    eventually(PATIENCE, "the name to be dropped", || !resident(&mut there, name));
    let said = listening.reply().items()[2].text();
    let said: Value = serde_json::from_str(&said).expect("JSON");
    assert_eq!((&said["op"], &said["args"][0], &said["base64"]), (&"key".into(), &"/wA6MQ==".into(), &true.into()));
    assert!(said["from"].as_str().is_some_and(|from| from.ends_with(&format!(":{}", proxies[0].pid()))), "{said}");
    assert_eq!(proxies[0].stat("invalidations_channel"), 1.0, "its own message came back before the reply");
}

/// It is published with the client's own rights; the error says what has been done and what has not.
#[test]
fn a_client_without_the_right_to_publish_is_told() {
    let (redis, proxies) = fleet(2);
    redis.cmd(&["ACL", "SETUSER", "app", "on", ">a", "~*", "+@all", "resetchannels"]);
    let (mut here, mut there) = (proxies[0].client(), proxies[1].client());
    warm(&proxies[1], &mut there, b"k");
    assert_eq!(here.cmd(&["AUTH", "app", "a"]), Reply::ok());
    warm(&proxies[0], &mut here, b"k");
    let error = here.cmd(&["NEARSIDE", "INVALIDATE", "KEY", "k"]).text();
    assert!(error.starts_with("NOPERM applied here (1 dropped), but not told to the other sidecars: "), "{error}");
    assert!(!resident(&mut here, b"k") && resident(&mut there, b"k"));
    assert!(here.cmd(&["PUBLISH", CHANNEL, "key k"]).text().starts_with("NOPERM"));
    assert!(resident(&mut there, b"k"));
}

#[test]
fn without_upstream_it_is_applied_here_and_said_so() {
    let mut redis = Redis::start();
    let proxy = Proxy::start(&redis);
    wait_subscribed(&proxy);
    let mut client = proxy.client();
    warm(&proxy, &mut client, b"k");
    redis.stop();
    proxy.wait_logged("is gone, trying again");
    let error = client.cmd(&["NEARSIDE", "INVALIDATE", "PREFIX", "k"]).text();
    let starts = "NEARSIDE applied here (1 dropped), but not told to the other sidecars: upstream unavailable:";
    assert!(error.starts_with(starts), "{error}");
}

#[test]
fn delete_pattern_deletes_upstream_in_batches_and_in_its_own_database() {
    let (redis, proxies) = fleet(2);
    let mut direct = redis.client();
    let fill = "for i = 1, 3000 do redis.call('SET', 'user:' .. i, i); redis.call('SET', 'keep:' .. i, i) end";
    for db in ["0", "1"] {
        direct.cmd(&["SELECT", db]);
        direct.cmd(&["EVAL", fill, "0"]);
    }
    let (mut here, mut there) = (proxies[0].client3(), proxies[1].client());
    warm(&proxies[0], &mut here, b"user:7");
    warm(&proxies[1], &mut there, b"user:7");
    let reply = here.cmd(&["NEARSIDE", "DELETE", "PATTERN", "user:1*", "user:[^1]*"]);
    assert_eq!((reply.get("scanned").int(), reply.get("deleted").int()), (3000, 3000), "{reply:?}");
    assert!(reply.get("batches").int() >= 10, "{reply:?}");
    assert_eq!(here.cmd(&["GET", "user:7"]), Reply::Nil);
    eventually(PATIENCE, "the push", || there.cmd(&["GET", "user:7"]) == Reply::Nil);
    assert_eq!(direct.cmd(&["DBSIZE"]), Reply::Int(6000), "database 1 is untouched");
    direct.cmd(&["SELECT", "0"]);
    assert_eq!(direct.cmd(&["DBSIZE"]), Reply::Int(3000));
    assert_eq!(proxies[0].stat("pending_writes"), 0.0);
    proxies[0].wait_logged("NEARSIDE DELETE is over");
}

/// The client goes away in the middle: no more is deleted, and nothing stays pending.
#[test]
fn delete_pattern_stops_when_its_client_leaves() {
    for workers in [1, 2] {
        a_client_leaves_its_delete(workers);
    }
}

fn a_client_leaves_its_delete(workers: u64) {
    let redis = Redis::start();
    let relay = Relay::to(&redis);
    let proxy = Proxy::upstream(&relay.url()).set("workers", workers).start();
    wait_subscribed(&proxy);
    redis.cmd(&["EVAL", "for i = 1, 20000 do redis.call('SET', 'user:' .. i, i) end", "0"]);
    relay.delay(Scope::One(0), Dir::Down, Duration::from_millis(30));
    let mut leaving = proxy.client();
    leaving.send_cmd(&["NEARSIDE", "DELETE", "PATTERN", "user:*"]);
    eventually(PATIENCE, "some to be deleted", || redis.cmd(&["DBSIZE"]) != Reply::Int(20000));
    drop(leaving);
    proxy.wait_logged("NEARSIDE DELETE is over");
    let Reply::Int(left) = redis.cmd(&["DBSIZE"]) else { panic!("a number") };
    assert!(left > 0, "it has gone on to the end");
    assert_eq!(proxy.stat("pending_writes"), 0.0);
}

/// C38, with two sidecars: Redis signals no SWAPDB, so the one it went through tells the other; on the lane and in EXEC.
#[test]
fn c38_a_swapdb_reaches_the_other_sidecar() {
    let (redis, proxies) = fleet(2);
    redis.cmd(&["SET", "k", "zero"]);
    let mut one = redis.client();
    one.cmd(&["SELECT", "1"]);
    one.cmd(&["SET", "k", "one"]);
    let (mut here, mut there) = (proxies[0].client(), proxies[1].client());
    warm(&proxies[0], &mut here, b"k");
    warm(&proxies[1], &mut there, b"k");
    assert_eq!(here.cmd(&["SWAPDB", "0", "1"]), Reply::ok());
    assert_eq!(here.cmd(&["GET", "k"]), Reply::bulk("one"));
    eventually(PATIENCE, "the swap to be seen", || there.cmd(&["GET", "k"]) == Reply::bulk("one"));
    warm(&proxies[1], &mut there, b"k");
    here.cmd(&["MULTI"]);
    here.cmd(&["SWAPDB", "0", "1"]);
    here.cmd(&["EXEC"]);
    eventually(PATIENCE, "the swap back to be seen", || there.cmd(&["GET", "k"]) == Reply::bulk("zero"));
}

#[test]
fn changes_over_http_need_the_token_and_reach_every_sidecar() {
    let redis = Redis::start();
    let dir = crate::support::temp_dir();
    let file = dir.path().join("token");
    std::fs::write(&file, "secret\n").expect("a file");
    let proxy = Proxy::to(&redis).set("http.token_file", file.display().to_string()).start();
    let other = Proxy::start(&redis);
    [&proxy, &other].into_iter().for_each(wait_subscribed);
    let (mut here, mut there) = (proxy.client(), other.client());
    let post = |path: &str, token: Option<&str>, body: &str| http::post(proxy.http_address(), path, token, body);
    for (token, status) in [(None, 401), (Some("wrong!"), 401), (Some("secret"), 200)] {
        warm(&proxy, &mut here, b"user:1");
        warm(&other, &mut there, b"user:1");
        let answer = post("/api/v1/invalidate", token, r#"{"prefix":["user:"],"key":["x"]}"#);
        assert_eq!(answer.status, status, "{}", answer.body);
        assert_eq!(resident(&mut here, b"user:1"), status == 401);
    }
    eventually(PATIENCE, "the other one to follow", || !resident(&mut there, b"user:1"));
    warm(&proxy, &mut here, b"user:1");
    let answer = post("/api/v1/invalidate", Some("secret"), r#"{"op":"regex","args":["^u.*1$"]}"#).json();
    assert_eq!((&answer["dropped"], &answer["version"].is_string()), (&1.into(), &true), "{answer}");
    warm(&proxy, &mut here, b"user:1");
    warm(&other, &mut there, b"user:1");
    assert_eq!(post("/api/v1/flush", Some("secret"), "").json()["dropped"], 1);
    eventually(PATIENCE, "the other one to follow", || !resident(&mut there, b"user:1"));
    for (body, why) in [
        ("", "the body is not as it should be"),
        ("{}", "name what to drop"),
        (r#"{"keys":["a"]}"#, "unknown field `keys`"),
        (r#"{"args":["a"]}"#, "args belong to an op"),
        (r#"{"op":"drop","args":["a"]}"#, "no such operation"),
        (r#"{"regex":["("]}"#, "no regular expression: unclosed group"),
        (r#"{"key":["?"],"base64":true}"#, "no base64"),
    ] {
        let answer = post("/api/v1/invalidate", Some("secret"), body);
        let message = answer.json()["error"]["message"].as_str().unwrap_or_default().to_owned();
        assert!(answer.status == 400 && message.contains(why), "{body}: {} {message}", answer.status);
    }
    let got = proxy.get("/api/v1/flush");
    assert_eq!((got.status, got.header("allow")), (405, Some("POST".to_owned())));
    let refused = http::post(other.http_address(), "/api/v1/flush", Some("secret"), "");
    assert_eq!((refused.status, &refused.json()["error"]["code"]), (403, &"no_token_configured".into()));
    assert_eq!(proxy.metric("nearside_invalidations_total{source=\"http\"}"), 4.0);
}

/// A lane that sees its server demoted leaves it; the subscription must not stay there, where the new master's messages may
/// never come.
#[test]
fn a_demotion_ends_the_subscription_too() {
    let (redis, proxies) = fleet(1);
    let mut client = proxies[0].client();
    warm(&proxies[0], &mut client, b"k");
    let epoch = proxies[0].stat("channel_epoch");
    redis.cmd(&["REPLICAOF", "127.0.0.1", "1"]);
    eventually(PATIENCE, "another subscription", || {
        client.cmd(&["GET", "k"]);
        proxies[0].stat("channel_epoch") > epoch
    });
    proxies[0].wait_logged("not subscribed to the channel nearside:invalidate: upstream's role changed to");
}
