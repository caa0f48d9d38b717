//! Writes that were on their way when upstream fell silent: nobody knows whether they are executed, and they say so.

use std::time::Instant;

use super::{ms, quick, refused, secs, until_answered, wait_back, wait_gone, warm};
use crate::support::{Client, Dir, PATIENCE, Proxy, Redis, Relay, Reply, Scope, eventually};

const TIMED_OUT: &str = "NEARSIDE no answer from upstream within upstream.request_timeout: outcome unknown";

const LOST: &str = "NEARSIDE upstream connection lost: outcome unknown";

/// Silence for a second is an outage; `request_timeout`, if it is set.
fn silent_soon(relay: &Relay, request_timeout: Option<&str>) -> Proxy {
    let builder = quick(Proxy::upstream(&relay.url())).set("upstream.stall_timeout", "1s");
    let builder = builder.set("coherence.max_staleness", "400ms").set("coherence.canary", "off");
    let builder = builder.set("outage.writes", "queue");
    match request_timeout {
        Some(limit) => builder.set("upstream.request_timeout", limit).start(),
        None => builder.start(),
    }
}

fn send(proxy: &Proxy, words: &[&str]) -> Client {
    let mut c = proxy.client();
    c.send_cmd(words);
    c
}

/// Requests and replies are lost, and nobody is told.
#[test]
fn with_request_timeout_a_write_into_a_black_hole_is_of_unknown_outcome() {
    let redis = Redis::start();
    let relay = Relay::to(&redis);
    let proxy = silent_soon(&relay, Some("600ms"));
    let mut c = proxy.client();
    redis.cmd(&["SET", "k", "0"]);
    warm(&proxy, &mut c, "k");
    relay.blackhole(Scope::All);
    let start = Instant::now();
    let mut writer = send(&proxy, &["APPEND", "k", "1"]);
    assert_eq!(writer.reply().text(), TIMED_OUT);
    assert!(start.elapsed() >= ms(590), "after {:?}", start.elapsed());
    wait_gone(&proxy);
    // What was there before it may be over, so it is no stale answer, and no base for a queued write.
    refused(&c.cmd(&["GET", "k"]));
    assert!(c.cmd(&["APPEND", "k", "2"]).text().contains("the value of its key is not known here"));
    relay.heal();
    wait_back(&proxy);
    assert_eq!(until_answered(&mut c, &["GET", "k"]), Reply::bulk("0"), "it was not executed, and is not sent again");
    // Its connection may still bring an answer; TCP's keepalive ends it.
    relay.cut(Scope::One(0));
    eventually(PATIENCE, "its end", || proxy.stat("pending_writes") == 0.0);
}

/// The same where it is executed and only its answer does not come.
#[test]
fn with_request_timeout_a_late_answer_is_nobodys() {
    let redis = Redis::start();
    let relay = Relay::to(&redis);
    let proxy = silent_soon(&relay, Some("600ms"));
    let mut c = proxy.client();
    until_answered(&mut c, &["SET", "k", "0"]);
    relay.stall(Scope::All, Dir::Down);
    let mut writer = send(&proxy, &["APPEND", "k", "1"]);
    assert_eq!(writer.reply().text(), TIMED_OUT);
    assert_eq!(redis.cmd(&["GET", "k"]), Reply::bulk("01"));
    relay.resume(Scope::All, Dir::Down);
    assert_eq!(until_answered(&mut writer, &["GET", "k"]), Reply::bulk("01"), "once, and the replies are in step");
    assert_eq!(writer.cmd(&["ECHO", "still"]), Reply::bulk("still"));
    assert_eq!(proxy.stat("pending_writes"), 0.0);
}

#[test]
fn without_it_the_write_waits_and_gets_the_late_answer() {
    let redis = Redis::start();
    let relay = Relay::to(&redis);
    let proxy = silent_soon(&relay, None);
    let mut c = proxy.client();
    redis.cmd(&["SET", "k", "0"]);
    warm(&proxy, &mut c, "k");
    relay.stall(Scope::All, Dir::Down);
    let mut writer = send(&proxy, &["APPEND", "k", "1"]);
    wait_gone(&proxy);
    assert!(c.cmd(&["SET", "other", "queued"]) == Reply::ok(), "nobody else waits");
    writer.expect_silence(secs(1));
    relay.resume(Scope::All, Dir::Down);
    assert_eq!(writer.reply(), Reply::Int(2));
    wait_back(&proxy);
    eventually(PATIENCE, "the queue to be done", || redis.cmd(&["GET", "other"]) == Reply::bulk("queued"));
    assert_eq!(redis.cmd(&["GET", "k"]), Reply::bulk("01"));
    assert_eq!(proxy.stat("pending_writes"), 0.0);
}

/// If the answer never comes, the write waits until its connection is known to be lost, also when others are served again.
#[test]
fn without_it_a_write_into_a_black_hole_waits_for_the_end_of_its_connection() {
    let redis = Redis::start();
    let relay = Relay::to(&redis);
    let proxy = silent_soon(&relay, None);
    let mut c = proxy.client();
    until_answered(&mut c, &["SET", "k", "0"]);
    relay.blackhole(Scope::All);
    let mut writer = send(&proxy, &["APPEND", "k", "1"]);
    wait_gone(&proxy);
    relay.heal();
    wait_back(&proxy);
    assert_eq!(until_answered(&mut c, &["GET", "k"]), Reply::bulk("0"));
    writer.expect_silence(secs(1));
    // As TCP's keepalive does it, where nothing at all comes back.
    relay.cut(Scope::One(0));
    assert_eq!(writer.reply().text(), LOST);
    assert_eq!(until_answered(&mut c, &["GET", "k"]), Reply::bulk("0"), "not sent again");
    eventually(PATIENCE, "its end", || proxy.stat("pending_writes") == 0.0);
}
