use std::time::{Duration, Instant};

use super::loss::wait_busy;
use super::{Stand, barrier, ms, secs, wait_tracking, warm, within};
use crate::support::{Client, Fake, PATIENCE, Proxy, Redis, Reply, encode, eventually};

/// The worst time a small write and read of another client take while `over` is false.
#[track_caller]
fn worst_latency(client: &mut Client, mut over: impl FnMut() -> bool) -> Duration {
    let mut worst = Duration::ZERO;
    let end = Instant::now() + PATIENCE;
    for i in 0.. {
        let start = Instant::now();
        assert!(start < end, "not over yet");
        let value = i.to_string();
        assert_eq!(client.cmd(&["SET", "small", &value]), Reply::ok());
        assert_eq!(client.cmd(&["GET", "small"]), Reply::bulk(&value));
        worst = worst.max(start.elapsed());
        if over() {
            break;
        }
    }
    worst
}

#[test]
fn c45_slow_sidecar_client() {
    let redis = Redis::start();
    let proxy = Proxy::to(&redis).set("listen.output_limit", "4MiB").start();
    wait_tracking(&proxy);
    redis.cmd(&["SET", "big", &"x".repeat(500_000)]);
    let (mut slow, mut other) = (proxy.client(), proxy.client());
    warm(&proxy, &mut other, "small");
    // All in one read of the sidecar: what back-pressure could still hold off is asked for already.
    slow.send(&encode(&["STRLEN", "big"]).repeat(2));
    slow.send(&encode(&["GETRANGE", "big", "0", "-1"]).repeat(64));
    let mut oldest: f64 = 0.0;
    let dropped = "nearside_clients_dropped_total{reason=\"output_limit\"}";
    let worst = worst_latency(&mut other, || {
        oldest = oldest.max(proxy.stat("lease_age_ms"));
        proxy.metric(dropped) == 1.0
    });
    assert!(oldest < 1000.0, "F was {oldest} ms old: a slow client held up its lane");
    assert!(worst < secs(3), "{worst:?} for a SET and a GET of another client");
    let got = slow.expect_closed().len();
    assert!(got < 64 * 500_000, "it got everything");
}

/// Back-pressure: a client that does not read for a while, but stays below the limits, misses nothing.
#[test]
fn c45_a_client_that_reads_late_gets_everything() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis);
    wait_tracking(&proxy);
    redis.cmd(&["SET", "big", &"x".repeat(500_000)]);
    redis.cmd(&["SET", "huge", &"y".repeat(3_000_000)]);
    let (mut slow, mut other) = (proxy.client(), proxy.client());
    let asked = [encode(&["GET", "big"]).repeat(12), encode(&["GET", "huge"]).repeat(3)].concat();
    slow.send(&asked);
    let end = Instant::now() + ms(500);
    let worst = worst_latency(&mut other, || Instant::now() > end);
    assert!(worst < secs(3), "{worst:?} for a SET and a GET of another client");
    for i in 0..15 {
        let length = slow.reply().text().len();
        assert_eq!(length, if i < 12 { 500_000 } else { 3_000_000 }, "reply {i}");
    }
}

/// What one client says to end or change *its* connection reaches no shared one.
#[test]
fn c69_connection_enders() {
    let s = Stand::start();
    let mut c = s.proxy.client();
    s.redis.cmd(&["SET", "k", "0"]);
    warm(&s.proxy, &mut c, "k");
    let epoch = s.proxy.stat("lane_epoch");
    let mut round = 0;
    let mut still_coherent = |what: &str| {
        round += 1;
        s.redis.cmd(&["SET", "k", &round.to_string()]);
        barrier(&mut c);
        assert_eq!(c.cmd(&["GET", "k"]), Reply::bulk(round.to_string()), "after {what}");
        assert_eq!(warm(&s.proxy, &mut c, "k"), Reply::bulk(round.to_string()), "after {what}");
        assert_eq!(s.proxy.stat("lane_epoch"), epoch, "the lane was lost: {what}");
        assert_eq!(c.cmd(&["EVAL", "return 7", "0"]), Reply::Int(7), "scripts run as ever after {what}");
        let exec = c.pipeline(&[&["MULTI"][..], &["EVAL", "return 8", "0"], &["EXEC"]]).remove(2);
        assert_eq!(exec, Reply::Array(vec![Reply::Int(8)]), "on pinned connections as well, after {what}");
    };
    for line in ["POST / HTTP/1.1\r\n", "Host: example.org\r\n", "post x\r\n"] {
        let mut one = s.proxy.client();
        one.send(line.as_bytes());
        assert_eq!(one.expect_closed(), b"", "{line:?}");
        still_coherent(line);
    }
    for commands in [
        &[&["SCRIPT", "DEBUG", "YES"][..]][..],
        &[&["CLIENT", "TRACKING", "ON"], &["CLIENT", "TRACKING", "OFF"]],
        &[&["CLIENT", "REPLY", "ON"]],
        &[&["CLIENT", "NO-EVICT", "ON"], &["CLIENT", "SETNAME", "me"]],
        &[&["HELLO", "2"]],
        &[&["RESET"]],
        &[&["MULTI"], &["SET", "other", "1"], &["RESET"]],
        &[&["SELECT", "3"]],
        &[&["QUIT"]],
    ] {
        let mut one = s.proxy.client3();
        for words in commands {
            one.cmd(words);
        }
        still_coherent(&format!("{commands:?}"));
        drop(one);
        still_coherent(&format!("the end of a client that said {commands:?}"));
    }
}

/// A renamed CLIENT would turn the lane's tracking off if it went there as a command nobody knows.
#[test]
fn c69_a_renamed_client_command_is_no_stranger() {
    let info = "*1\r\n*7\r\n$6\r\nclient\r\n:-2\r\n*0\r\n:0\r\n:0\r\n:0\r\n*0\r\n";
    let upstream = Fake::builder().answer("COMMAND INFO", info).scripted("XCLIENT").start();
    let proxy = Proxy::upstream(&upstream.url()).start();
    let mut lane = upstream.lane();
    let mut c = proxy.client();
    c.send_cmd(&["XCLIENT", "TRACKING", "OFF"]);
    eventually(PATIENCE, "an answer, or a connection of its own", || {
        c.try_read(ms(1)).is_some() || upstream.accepted() > 1
    });
    assert!(lane.try_next(ms(50)).is_none(), "it went to the lane");
    wait_tracking(&proxy);
    let mut other = proxy.client();
    other.send_cmd(&["GET", "k"]);
    lane.expect(&["GET", "k"]).expect(&["PTTL", "k"]).reply("$1\r\n1\r\n").reply(":-1\r\n");
    assert_eq!(other.reply(), Reply::bulk("1"));
    assert_eq!(warm(&proxy, &mut other, "k"), Reply::bulk("1"));
}

#[test]
fn c70_busy_upstream() {
    let redis = Redis::builder().tcp().start();
    let proxy = within(secs(1), Proxy::upstream(&format!("redis://{}", redis.address()))).start();
    wait_tracking(&proxy);
    let mut c = proxy.client();
    redis.cmd(&["SET", "k", "1"]);
    warm(&proxy, &mut c, "k"); // heartbeats and role checks are under way, too
    let epoch = proxy.stat("lane_epoch");
    let mut sleeper = redis.client();
    let start = Instant::now();
    sleeper.send_cmd(&["DEBUG", "SLEEP", "8"]);
    wait_busy(&redis);
    // A heartbeat is the lane's oldest command: age alone would be held against it.
    eventually(PATIENCE, "a heartbeat to be outstanding", || proxy.stat("in_flight") > 0.0);
    let value = "v".repeat(1024);
    let names: Vec<String> = (0..512).map(|i| format!("k{i}")).collect();
    let writes: Vec<[&str; 3]> = names.iter().map(|name| ["SET", name, &value]).collect();
    let writes: Vec<&[&str]> = writes.iter().map(|w| w.as_slice()).collect();
    let replies = c.pipeline(&writes);
    assert!(start.elapsed() >= secs(8), "the server was not busy");
    assert!(replies.iter().all(|reply| *reply == Reply::ok()), "{:?}", replies.iter().find(|r| **r != Reply::ok()));
    assert_eq!(proxy.stat("lane_epoch"), epoch);
    assert_eq!(redis.cmd(&["DBSIZE"]), Reply::Int(513));
    assert!(!proxy.logged("lost the connection"));
}
