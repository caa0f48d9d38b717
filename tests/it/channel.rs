//! The sidecars' channel: what is published there is dropped by every sidecar, whoever publishes it; what happens when the
//! subscription is lost, refused, or has to wait for a credential.

use serde_json::Value;

use crate::support::{Client, PATIENCE, Proxy, Redis, Relay, Reply, eventually};

const CHANNEL: &str = "nearside:invalidate";

/// A server and sidecars of it that are subscribed. Their entries can only be ended by the channel: keys are read once and
/// never change upstream.
fn fleet(n: usize) -> (Redis, Vec<Proxy>) {
    let redis = Redis::start();
    let proxies: Vec<Proxy> = (0..n).map(|_| Proxy::start(&redis)).collect();
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
    assert!(proxies[0].logged("\"KEY k\""));
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
    assert_eq!(proxy.count_logged(" subscribed to the channel"), 3, "two confirmations and one loss");
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
