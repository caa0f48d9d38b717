use std::time::Instant;

use super::{ms, quick, refused, secs, state, until_answered, wait_back, wait_gone, warm};
use crate::support::{Client, Dir, Fake, PATIENCE, Proxy, Redis, Relay, Reply, Scope, eventually, proxy};

/// A sidecar for which a second of silence is an outage.
fn impatient(builder: proxy::Builder) -> Proxy {
    let builder = quick(builder).set("upstream.stall_timeout", "1s").set("coherence.max_staleness", "400ms");
    builder.set("coherence.canary", "off").start()
}

fn send(proxy: &Proxy, words: &[&str]) -> Client {
    let mut c = proxy.client();
    c.send_cmd(words);
    c
}

#[test]
fn a_frozen_server_is_gone_after_stall_timeout_and_its_lane_is_kept() {
    let mut redis = Redis::start();
    let proxy = impatient(Proxy::to(&redis));
    let mut c = proxy.client();
    redis.cmd(&["SET", "k", "1"]);
    warm(&proxy, &mut c, "k");
    let epoch = proxy.stat("lane_epoch");
    redis.sigstop();
    let frozen = Instant::now();
    // The write's own key is no hit any more, so this does not end in a hit within B.
    let mut writer = send(&proxy, &["SET", "w", "1"]);
    let mut behind = proxy.client();
    behind.send(b"SET x 1\r\nGET k\r\n");
    let mut before = proxy.client();
    before.send(b"GET miss\r\nGET k\r\nSET y 1\r\nGET k\r\n");
    let mut reader = send(&proxy, &["GET", "none"]);
    // Reads that nothing but reads stand before are answered when upstream is given up.
    refused(&reader.reply());
    assert!(frozen.elapsed() >= ms(900), "given up after {:?}", frozen.elapsed());
    refused(&before.reply());
    assert_eq!(before.reply(), Reply::bulk("1"));
    wait_gone(&proxy);
    // From now on nothing waits, and the others keep waiting.
    let start = Instant::now();
    for _ in 0..50 {
        assert_eq!(c.cmd(&["GET", "k"]), Reply::bulk("1"));
        let text = refused(&c.cmd(&["SET", "k", "2"]));
        assert!(text.contains("nothing answered for 1s (upstream.stall_timeout)"), "{text}");
    }
    assert!(start.elapsed() < secs(3), "100 answers took {:?}", start.elapsed());
    for c in [&mut writer, &mut behind, &mut before] {
        c.expect_silence(ms(50));
    }
    redis.sigcont();
    assert_eq!(writer.reply(), Reply::ok());
    assert_eq!((behind.reply(), behind.reply()), (Reply::ok(), Reply::bulk("1")));
    assert_eq!((before.reply(), before.reply()), (Reply::ok(), Reply::bulk("1")));
    wait_back(&proxy);
    assert_eq!(until_answered(&mut c, &["SET", "k", "3"]), Reply::ok());
    assert_eq!(c.cmd(&["GET", "k"]), Reply::bulk("3"));
    assert_eq!(proxy.stat("lane_epoch"), epoch, "the connection was never lost");
    assert_eq!(proxy.stat("pending_writes"), 0.0);
}

/// A session's own write is on its way: what was read before it is no answer behind it.
#[test]
fn no_stale_read_of_a_key_that_a_waiting_command_names() {
    let mut redis = Redis::start();
    let proxy = impatient(Proxy::to(&redis));
    let mut c = proxy.client();
    redis.cmd(&["MSET", "k", "1", "other", "1"]);
    warm(&proxy, &mut c, "k");
    warm(&proxy, &mut c, "other");
    redis.sigstop();
    let mut script = send(&proxy, &["EVAL", "redis.call('SET', 'k', '2') return 1", "0"]);
    c.send_cmd(&["SET", "k", "2"]);
    wait_gone(&proxy);
    // The script may have changed anything; the write names k only.
    script.send_cmd(&["GET", "other"]);
    c.send(b"GET k\r\nGET other\r\n");
    c.expect_silence(ms(50));
    redis.sigcont();
    assert_eq!(script.reply(), Reply::Int(1));
    refused(&script.reply());
    assert_eq!(c.reply(), Reply::ok());
    refused(&c.reply());
    assert_eq!(c.reply(), Reply::bulk("1"));
}

#[test]
fn a_connection_that_is_lost_during_the_silence_does_not_begin_a_new_wait() {
    let redis = Redis::start();
    let relay = Relay::to(&redis);
    let proxy = impatient(Proxy::upstream(&relay.url()));
    let mut c = proxy.client();
    redis.cmd(&["SET", "k", "1"]);
    warm(&proxy, &mut c, "k");
    relay.stall(Scope::All, Dir::Down);
    let mut writer = send(&proxy, &["SET", "w", "1"]);
    wait_gone(&proxy);
    relay.cut(Scope::Existing);
    assert_eq!(writer.reply().text(), "NEARSIDE upstream connection lost: outcome unknown");
    let start = Instant::now();
    refused(&c.cmd(&["SET", "k", "2"]));
    assert_eq!(c.cmd(&["GET", "k"]), Reply::bulk("1"));
    assert!(start.elapsed() < ms(900), "it took {:?}", start.elapsed());
    relay.resume(Scope::All, Dir::Down);
    assert_eq!(until_answered(&mut c, &["SET", "k", "2"]), Reply::ok());
    assert_eq!(c.cmd(&["GET", "k"]), Reply::bulk("2"));
    assert_eq!(proxy.stat("pending_writes"), 0.0);
}

#[test]
fn a_black_hole_is_an_outage_and_ends_when_the_network_heals() {
    let redis = Redis::start();
    let relay = Relay::to(&redis);
    let proxy = impatient(Proxy::upstream(&relay.url()));
    let mut c = proxy.client();
    redis.cmd(&["SET", "k", "1"]);
    warm(&proxy, &mut c, "k");
    relay.blackhole(Scope::All);
    let mut reader = send(&proxy, &["GET", "none"]);
    refused(&reader.reply());
    assert_eq!(c.cmd(&["GET", "k"]), Reply::bulk("1"));
    redis.cmd(&["SET", "k", "2"]);
    relay.heal();
    // The lane itself is half-open for good: a fresh connection is answered, and it is judged by that.
    assert_eq!(until_answered(&mut c, &["SET", "w", "1"]), Reply::ok());
    eventually(PATIENCE, "the new value", || c.cmd(&["GET", "k"]) == Reply::bulk("2"));
    wait_back(&proxy);
}

#[test]
fn with_zero_silence_is_waited_for() {
    let mut redis = Redis::start();
    let proxy = quick(Proxy::to(&redis)).set("upstream.stall_timeout", "0s").start();
    let mut c = proxy.client();
    redis.sigstop();
    c.send_cmd(&["GET", "k"]);
    c.expect_silence(secs(2));
    assert_eq!(state(&proxy), "closed");
    redis.sigcont();
    assert_eq!(c.reply(), Reply::Nil);
}

#[test]
fn a_killed_server_is_gone_at_the_first_failed_attempt_and_says_since_when() {
    let mut redis = Redis::start();
    let proxy = quick(Proxy::to(&redis)).start();
    let mut c = proxy.client();
    until_answered(&mut c, &["SET", "k", "1"]);
    redis.stop();
    wait_gone(&proxy);
    let since = |text: &str| text.rsplit_once("(for ").and_then(|(_, s)| s.strip_suffix(" s)")?.parse::<u64>().ok());
    eventually(PATIENCE, "two seconds of it", || since(&refused(&c.cmd(&["SET", "k", "2"]))).is_some_and(|s| s >= 2));
    let metric = |state: &str| proxy.metric(&format!("nearside_upstream_state{{state=\"{state}\"}}"));
    assert_eq!(metric("closed"), 0.0);
    assert_eq!(metric("open") + metric("half_open"), 1.0);
    redis.restart();
    wait_back(&proxy);
    assert_eq!(until_answered(&mut c, &["GET", "k"]), Reply::Nil, "it came back empty");
    assert_eq!(metric("closed"), 1.0);
    assert_eq!(proxy.count_logged("is gone, trying again"), 1);
    proxy.wait_logged("commands refused");
}

#[test]
fn a_refused_port_is_an_outage() {
    let mut redis = Redis::builder().tcp().start();
    let url = format!("redis://{}", redis.address());
    let proxy = quick(Proxy::upstream(&url)).start();
    let mut c = proxy.client();
    redis.cmd(&["SET", "k", "1"]);
    warm(&proxy, &mut c, "k");
    redis.stop();
    wait_gone(&proxy);
    // A server that is just dying may still take one connection from its queue, and reset it.
    eventually(PATIENCE, "the reason", || {
        refused(&c.cmd(&["SET", "k", "2"])).to_lowercase().contains("connection refused")
    });
    assert_eq!(c.cmd(&["GET", "k"]), Reply::bulk("1"));
    redis.restart();
    assert_eq!(until_answered(&mut c, &["SET", "k", "2"]), Reply::ok());
}

#[test]
fn connections_that_are_closed_again_are_an_outage() {
    let redis = Redis::start();
    let relay = Relay::to(&redis);
    let proxy = quick(Proxy::upstream(&relay.url())).start();
    let mut c = proxy.client();
    redis.cmd(&["SET", "k", "1"]);
    warm(&proxy, &mut c, "k");
    relay.refuse();
    relay.cut(Scope::Existing);
    wait_gone(&proxy);
    assert_eq!(c.cmd(&["GET", "k"]), Reply::bulk("1"));
    refused(&c.cmd(&["SET", "k", "2"]));
    relay.heal();
    assert_eq!(until_answered(&mut c, &["SET", "k", "2"]), Reply::ok());
}

/// The handshake is answered each time, and nothing after it.
#[test]
fn so_are_connections_that_end_as_soon_as_they_are_made() {
    let fake = Fake::start();
    let proxy = quick(Proxy::upstream(&fake.url())).set("coherence.canary", "off").start();
    let noticed = "connections end as soon as they are made";
    // One that lived for a second, on a busy machine, begins the count anew.
    for round in 0..40 {
        let mut lane = fake.lane();
        if round > 0 {
            eventually(PATIENCE, "it to be up", || proxy.count_logged("is back") >= round);
        }
        if proxy.logged(noticed) {
            break;
        }
        lane.close();
    }
    assert!(proxy.logged(noticed));
}

/// One lane that cannot be had says nothing about upstream while another is answered.
#[test]
fn killed_connections_are_no_outage() {
    let redis = Redis::start();
    let proxy = Proxy::to(&redis).start();
    let mut c = proxy.client();
    redis.cmd(&["SET", "k", "1"]);
    warm(&proxy, &mut c, "k");
    for round in 1..=3 {
        let value = round.to_string();
        redis.cmd(&["CLIENT", "KILL", "TYPE", "normal"]);
        redis.cmd(&["SET", "k", &value]);
        assert_eq!(until_answered(&mut c, &["SET", "w", "1"]), Reply::ok());
        assert_eq!(until_answered(&mut c, &["GET", "k"]), Reply::bulk(&value));
    }
    assert_eq!(proxy.metric("nearside_stale_served_total"), 0.0);
    assert!(!proxy.logged("is gone"));
}
