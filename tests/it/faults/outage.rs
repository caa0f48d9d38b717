use std::time::Instant;

use super::{LANE, Stand, barrier, ms, secs, warm};
use crate::support::{Dir, Fake, PATIENCE, Proxy, Redis, Reply, Scope, eventually, poll};

const UNAVAILABLE: &str = "NEARSIDE upstream unavailable: ";
const UNKNOWN: &str = "NEARSIDE upstream connection lost: outcome unknown";

#[test]
fn starts_with_upstream_absent_and_serves_when_it_comes() {
    let mut redis = Redis::start();
    redis.stop();
    let proxy = Proxy::start(&redis);
    let mut c = proxy.client();
    for words in [&["GET", "k"][..], &["SET", "k", "1"], &["MGET", "k", "l"], &["BLPOP", "q", "0"], &["MULTI"]] {
        let start = Instant::now();
        let reply = c.cmd(words);
        assert!(reply.text().starts_with(UNAVAILABLE), "{words:?}: {reply:?}");
        assert!(start.elapsed() < secs(2), "{words:?} took {:?}", start.elapsed());
    }
    // What has come together with a MULTI must not be executed one by one when upstream comes back in between.
    let mut pipelined = proxy.client();
    pipelined.send(b"MULTI\r\nSET k 1\r\nEXEC\r\n");
    assert!(pipelined.reply().text().starts_with(UNAVAILABLE));
    pipelined.expect_closed();
    assert_eq!(proxy.get("/health/ready").status, 200, "commands are accepted");
    assert!(proxy.get("/health").body.contains("degraded"));
    redis.restart();
    eventually(PATIENCE, "upstream to be used", || c.cmd(&["SET", "k", "1"]) == Reply::ok());
    assert_eq!(c.cmd(&["GET", "k"]), Reply::bulk("1"));
    assert_eq!(warm(&proxy, &mut c, "k"), Reply::bulk("1"));
    let (greeting, text) = (redis.cmd(&["HELLO", "2"]), |v: Reply| v.text());
    let (server, version) = (text(greeting.get("server")), text(greeting.get("version")));
    proxy.wait_logged(&format!("is back: {server} {version}"));
}

#[test]
fn commands_fail_fast_while_upstream_is_gone_and_nothing_old_is_served_after() {
    let mut redis = Redis::start();
    let proxy = Proxy::to(&redis).set("outage.reads", "fail").start();
    let mut c = proxy.client();
    c.cmd(&["SET", "k", "old"]);
    warm(&proxy, &mut c, "k");
    redis.stop();
    eventually(PATIENCE, "the loss to be known", || c.cmd(&["GET", "k"]).is_error());
    eventually(PATIENCE, "upstream to be gone", || c.cmd(&["GET", "k"]).text().starts_with(UNAVAILABLE));
    let start = Instant::now();
    for _ in 0..100 {
        let replies = c.pipeline(&[&["GET", "k"][..], &["SET", "k", "new"], &["EVAL", "return 1", "0"], &["PING"]]);
        assert!(replies.iter().all(|reply| reply.text().starts_with(UNAVAILABLE)), "{replies:?}");
    }
    assert!(start.elapsed() < secs(3), "400 refusals took {:?}", start.elapsed());
    // Each connection is still in step, and what needs no upstream is answered.
    assert!(matches!(c.cmd(&["CLIENT", "ID"]), Reply::Int(_)));
    assert_eq!(c.cmd(&["CLIENT", "SETNAME", "me"]), Reply::ok());
    assert!(!c.cmd(&["NEARSIDE", "STATS"]).is_error());
    redis.restart();
    // It comes back empty; an entry from before would say otherwise.
    let back = poll(PATIENCE, || Some(c.cmd(&["GET", "k"])).filter(|reply| !reply.is_error()));
    assert_eq!(back, Some(Reply::Nil));
    assert_eq!(proxy.stat("pending_writes"), 0.0);
}

#[test]
fn loss_and_return_are_one_log_line_each() {
    let mut redis = Redis::start();
    let proxy = Proxy::to(&redis).set("upstream.retry.max_delay", "50ms").set("outage.reads", "fail").start();
    let mut clients: Vec<_> = (0..4).map(|_| proxy.client()).collect();
    // Several lanes are one upstream.
    for (db, c) in clients.iter_mut().enumerate() {
        c.cmd(&["SELECT", &db.to_string()]);
        c.cmd(&["SET", "k", "1"]);
    }
    for round in 1..=3 {
        redis.stop();
        for c in &mut clients {
            eventually(PATIENCE, "upstream to be gone", || c.cmd(&["GET", "k"]).text().starts_with(UNAVAILABLE));
        }
        redis.restart();
        for c in &mut clients {
            eventually(PATIENCE, "upstream to be back", || !c.cmd(&["GET", "k"]).is_error());
        }
        let logged = || (proxy.count_logged("lost the connection to upstream"), proxy.count_logged("is back"));
        eventually(PATIENCE, "both lines", || logged() >= (round, round));
        assert_eq!(logged(), (round, round), "after {round} losses");
    }
}

#[test]
fn reads_in_flight_are_sent_again() {
    let s = Stand::start();
    s.redis.cmd(&["MSET", "a", "1", "b", "2"]);
    s.redis.cmd(&["RPUSH", "l", "x"]);
    let mut clients: Vec<_> = (0..5).map(|_| s.proxy.client()).collect();
    s.relay.stall(LANE, Dir::Down);
    let asked: [&[&str]; 5] =
        [&["GET", "a"], &["MGET", "a", "b"], &["LRANGE", "l", "0", "-1"], &["STRLEN", "b"], &["GET", "none"]];
    for (c, words) in clients.iter_mut().zip(asked) {
        c.send_cmd(words);
    }
    eventually(PATIENCE, "all to be in flight", || s.proxy.stat("in_flight") >= 5.0);
    s.relay.cut(LANE);
    let replies: Vec<Reply> = clients.iter_mut().map(|c| c.reply()).collect();
    let expected = [Reply::bulk("1"), Reply::bulks(&["1", "2"]), Reply::bulks(&["x"]), Reply::Int(1), Reply::Nil];
    assert_eq!(replies, expected);
}

#[test]
fn a_read_is_sent_again_so_often_and_not_for_ever() {
    let upstream = Fake::start();
    let proxy = Proxy::upstream(&upstream.url()).set("upstream.retry.max_attempts", 2).start();
    let mut c = proxy.client();
    c.send_cmd(&["STRLEN", "k"]);
    for _ in 0..3 {
        upstream.lane().expect(&["STRLEN", "k"]).close();
    }
    assert_eq!(c.reply().text(), "NEARSIDE upstream connection lost");
    c.send_cmd(&["STRLEN", "k"]);
    upstream.lane().expect(&["STRLEN", "k"]).reply(":7\r\n");
    assert_eq!(c.reply(), Reply::Int(7), "the next command is as good as the first");
}

#[test]
fn writes_in_flight_are_told_that_their_outcome_is_unknown() {
    let s = Stand::start();
    let mut reader = s.proxy.client();
    let executed = [
        (&["SET", "k", "2"][..], &["GET", "k"][..], Reply::bulk("2")),
        (&["INCR", "n"], &["GET", "n"], Reply::bulk("1")),
        (&["EVAL", "return redis.call('SET', 'e', '1')", "0"], &["GET", "e"], Reply::bulk("1")),
        (&["RPUSH", "q", "x"], &["LLEN", "q"], Reply::Int(1)),
    ];
    s.redis.cmd(&["SET", "k", "1"]);
    for (write, look, value) in &executed {
        warm(&s.proxy, &mut reader, look[1]).is_error(); // l and q: an error is as good, the key is known to the lane
        let lane = Scope::One(*s.relay.connections().last().expect("a lane"));
        let mut c = s.proxy.client();
        s.relay.stall(lane, Dir::Down);
        c.send_cmd(write);
        eventually(PATIENCE, "upstream to execute it", || s.redis.cmd(look) == *value);
        s.relay.cut(lane);
        assert_eq!(c.reply().text(), UNKNOWN, "{write:?}");
        assert_eq!(c.cmd(look), *value, "the same client sees what became of it");
        assert_eq!(reader.cmd(look), *value, "and so do the others");
    }
    assert_eq!(s.proxy.stat("pending_writes"), 0.0);
}

#[test]
fn what_comes_during_a_reconnection_waits_for_it() {
    let s = Stand::with(|proxy| proxy.set("upstream.connect_timeout", "10s"));
    s.redis.cmd(&["SET", "k", "1"]);
    let (mut reader, mut writer) = (s.proxy.client(), s.proxy.client());
    let epoch = s.proxy.stat("lane_epoch");
    s.relay.stall(Scope::All, Dir::Down);
    s.relay.cut(Scope::Existing);
    eventually(PATIENCE, "the loss", || s.proxy.stat("lane_epoch") != epoch);
    reader.send_cmd(&["GET", "k"]);
    writer.send_cmd(&["SET", "w", "1"]);
    writer.expect_silence(ms(100));
    s.relay.resume(Scope::All, Dir::Down);
    assert_eq!(reader.reply(), Reply::bulk("1"));
    assert_eq!(writer.reply(), Reply::ok(), "a write that was never sent is not lost");
    assert_eq!(s.redis.cmd(&["GET", "w"]), Reply::bulk("1"));
}

/// A server that accepts and says nothing: DESIGN 5 lets commands wait for `connect_timeout`, not longer.
#[test]
fn a_reconnection_is_waited_for_no_longer_than_connect_timeout() {
    let s = Stand::with(|proxy| proxy.set("upstream.connect_timeout", "500ms"));
    let mut c = s.proxy.client();
    s.relay.stall(Scope::All, Dir::Down);
    s.relay.cut(LANE);
    let start = Instant::now();
    let reply = c.cmd(&["GET", "k"]);
    assert!(reply.text().starts_with(UNAVAILABLE), "{reply:?}");
    assert!(start.elapsed() < secs(3), "it took {:?}", start.elapsed());
    // From now on nothing waits.
    let start = Instant::now();
    assert!(c.cmd(&["SET", "k", "1"]).text().starts_with(UNAVAILABLE));
    assert!(start.elapsed() < ms(400), "it took {:?}", start.elapsed());
    s.relay.resume(Scope::All, Dir::Down);
    eventually(PATIENCE, "upstream to be back", || c.cmd(&["SET", "k", "1"]) == Reply::ok());
}

#[test]
fn a_restarted_upstream_is_cached_as_the_first_one() {
    let mut redis = Redis::start();
    let proxy = Proxy::start(&redis);
    let mut c = proxy.client();
    for round in 0..3 {
        let value = round.to_string();
        redis.cmd(&["SET", "k", &value]);
        eventually(PATIENCE, "upstream's value", || c.cmd(&["GET", "k"]) == Reply::bulk(&value));
        assert_eq!(warm(&proxy, &mut c, "k"), Reply::bulk(&value));
        redis.cmd(&["SET", "k", "pushed"]);
        barrier(&mut c);
        assert_eq!(c.cmd(&["GET", "k"]), Reply::bulk("pushed"));
        redis.restart();
    }
}
