use std::io::Write;
use std::time::Duration;

use super::{run, same_as_redis, transcript, warm};
use crate::support::{Dir, PATIENCE, Proxy, Redis, Relay, Reply, Scope, encode, eventually};

/// Every route in one pipeline: hits, misses, writes, local answers, pinned connections, scripts, errors.
const MIXED: &[&str] = &[
    "GET hit",
    "GET miss",
    "SET k 1",
    "GET k",
    "CLIENT GETNAME",
    "CLIENT SETNAME me",
    "GET hit",
    "MULTI",
    "INCR k",
    "GET k",
    "EXEC",
    "GET k",
    "CLIENT GETNAME",
    "LPUSH q a b c",
    "BLPOP q 1",
    "GET hit",
    "MGET hit k miss",
    "EVAL return{1,2,{3}} 0",
    "SELECT 1",
    "GET hit",
    "SET hit other",
    "GET hit",
    "SELECT 0",
    "GET hit",
    "NOSUCH command",
    "LPUSH k x",
    "WATCH k",
    "MULTI",
    "SET k 9",
    "DISCARD",
    "UNWATCH",
    "PING",
    "ECHO hello",
    "WAIT 0 0",
    "BRPOPLPUSH q r 1",
    "GET",
    "SET k 2 XX GET",
    "GET k",
    "SELECT 99",
    "GET hit",
    "RESET",
    "CLIENT GETNAME",
    "GET hit",
];

#[test]
fn replies_keep_the_order_of_the_requests_across_every_route() {
    let (plain, redis) = (Redis::start(), Redis::start());
    let proxy = Proxy::start(&redis);
    for direct in [&plain, &redis] {
        direct.cmd(&["SET", "hit", "v"]);
    }
    warm(&proxy, &mut proxy.client(), "hit");
    same_as_redis(&mut plain.client(), &mut proxy.client(), MIXED);
    for direct in [&plain, &redis] {
        direct.cmd(&["FLUSHALL"]);
        direct.cmd(&["SET", "hit", "v"]);
    }
    // Without RESET: it would go back to RESP2.
    let three: Vec<&str> = MIXED.iter().filter(|l| **l != "RESET").copied().collect();
    same_as_redis(&mut plain.client().hello3(), &mut proxy.client3(), &three);
}

#[test]
fn a_pipeline_cut_into_small_pieces_is_answered_the_same() {
    let (plain, redis) = (Redis::start(), Redis::start());
    let proxy = Proxy::start(&redis);
    let expected = transcript(&mut plain.client(), MIXED);
    let mut client = proxy.client();
    let bytes: Vec<u8> = MIXED.iter().flat_map(|line| encode(&super::words(line))).collect();
    let mut writer = client.writer();
    let sender = std::thread::spawn(move || {
        for piece in bytes.chunks(7) {
            writer.write_all(piece).expect("a piece");
            std::thread::yield_now();
        }
    });
    let got: Vec<String> = MIXED.iter().map(|_| client.read_reply_raw().escape_ascii().to_string()).collect();
    sender.join().expect("the sender");
    assert_eq!(got, expected);
}

#[test]
fn ten_thousand_requests_in_one_write_are_answered_in_order() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis);
    redis.cmd(&["SET", "hit", "h"]);
    warm(&proxy, &mut proxy.client(), "hit");
    let mut client = proxy.client();
    let mut bytes = Vec::new();
    for i in 0..10_000 {
        bytes.extend(match i % 4 {
            0 => encode(&["GET", "hit"]),
            1 => encode(&["INCR", "n"]),
            2 => encode(&["ECHO", &i.to_string()]),
            _ => encode(&["GET", &format!("none{i}")]),
        });
    }
    let mut writer = client.writer();
    let sender = std::thread::spawn(move || writer.write_all(&bytes).expect("all of it"));
    for i in 0..10_000i64 {
        let expected = match i % 4 {
            0 => Reply::bulk("h"),
            1 => Reply::Int(i / 4 + 1),
            2 => Reply::bulk(i.to_string()),
            _ => Reply::Nil,
        };
        assert_eq!(client.reply(), expected, "reply {i}");
    }
    sender.join().expect("the sender");
}

#[test]
fn both_protocols_are_served_at_once_from_the_same_entry() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis);
    redis.cmd(&["HSET", "h", "f", "1"]);
    let (mut two, mut three) = (proxy.client(), proxy.client3());
    assert_eq!(warm(&proxy, &mut two, "none"), Reply::Nil);
    two.expect(&["GET", "none"], "$-1\r\n");
    three.expect(&["GET", "none"], "_\r\n");
    two.expect(&["MGET", "none"], "*1\r\n$-1\r\n");
    three.expect(&["MGET", "none"], "*1\r\n_\r\n");
    two.expect(&["HGETALL", "h"], "*2\r\n$1\r\nf\r\n$1\r\n1\r\n");
    three.expect(&["HGETALL", "h"], "%1\r\n$1\r\nf\r\n$1\r\n1\r\n");
    two.expect(&["BLPOP", "none", "0.01"], "*-1\r\n");
    three.expect(&["BLPOP", "none", "0.01"], "_\r\n");
    // A client may change its mind, in the middle of a pipeline.
    let replies = transcript(&mut two, &["GET none", "HELLO 3", "GET none", "HELLO 2", "GET none"]);
    assert_eq!([&replies[0], &replies[2], &replies[4]], ["$-1\\r\\n", "_\\r\\n", "$-1\\r\\n"]);
}

#[test]
fn a_client_that_closes_its_side_gets_its_replies_first() {
    let redis = Redis::start();
    let relay = Relay::to(&redis);
    let proxy = Proxy::upstream(&relay.url()).start();
    redis.cmd(&["SET", "k", "v"]);
    let mut client = proxy.client();
    assert_eq!(run(&mut client, "PING"), Reply::status("PONG"), "its lane is there");
    relay.stall(Scope::Existing, Dir::Down);
    client.send(b"PING\r\nGET k\r\nMULTI\r\nGET k\r\nEXEC\r\n");
    client.finish_writing();
    eventually(PATIENCE, "the requests to be on their way", || proxy.stat("in_flight") > 0.0);
    relay.resume(Scope::Existing, Dir::Down);
    let replies = client.expect_closed();
    assert_eq!(
        replies.escape_ascii().to_string(),
        "+PONG\\r\\n$1\\r\\nv\\r\\n+OK\\r\\n+QUEUED\\r\\n*1\\r\\n$1\\r\\nv\\r\\n"
    );
}

/// The same where the reply is held until the lane's PONG (R21), and where it is streamed: nothing is outstanding on the
/// pinned connection then, and the client has not got it all the same.
#[test]
fn a_client_that_closes_its_side_gets_held_and_large_replies_too() {
    let redis = Redis::start();
    let relay = Relay::to(&redis);
    let proxy = Proxy::upstream(&relay.url()).set("coherence.max_staleness", "10s").start();
    redis.cmd(&["SET", "large", &"x".repeat(8 << 20)]);
    let mut client = proxy.client();
    assert_eq!(run(&mut client, "GET k"), Reply::Nil, "the lane has something to serve");
    relay.stall(Scope::Existing, Dir::Down);
    client.send(b"MULTI\r\nEVAL \"return 7\" 0\r\nEXEC\r\n");
    client.finish_writing();
    client.expect_silence(Duration::from_millis(100));
    relay.resume(Scope::Existing, Dir::Down);
    assert_eq!(client.expect_closed(), b"+OK\r\n+QUEUED\r\n*1\r\n:7\r\n");
    // The first client shows how large it is; the second gets a connection of its own for it.
    for _ in 0..2 {
        let mut client = proxy.client();
        client.send(b"GET large\r\n");
        client.finish_writing();
        assert_eq!(client.expect_closed().len(), (8 << 20) + 12);
    }
}

#[test]
fn quit_answers_what_came_before_it_and_nothing_after() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis);
    let mut client = proxy.client();
    client.send(b"SET k v\r\nGET k\r\nQUIT\r\nSET k w\r\nPING\r\n");
    assert_eq!(client.expect_closed(), b"+OK\r\n$1\r\nv\r\n+OK\r\n");
    let mut pinned = proxy.client();
    pinned.send(b"MULTI\r\nSET k x\r\nQUIT\r\nPING\r\n");
    assert_eq!(pinned.expect_closed(), b"+OK\r\n+QUEUED\r\n+OK\r\n");
    assert_eq!(redis.cmd(&["GET", "k"]), Reply::bulk("v"));
}

#[test]
fn protocol_errors_come_after_the_replies_before_them_and_close() {
    let (plain, redis) = (Redis::start(), Redis::start());
    let proxy = Proxy::start(&redis);
    let streams: &[&[u8]] = &[
        b"PING\r\n*1\r\n$4\r\nPING\r\n*x\r\n",
        b"GET a\r\n*1\r\n+PING\r\n",
        b"GET a\r\n*1\r\n$-5\r\n",
        b"PING \"unbalanced\r\n",
        b"*2147483648\r\n",
        b"*1\r\n$536870913\r\n",
        b"MULTI\r\nSET a 1\r\n*1\r\n!\r\n",
        b"SUBSCRIBE c\r\n*1\r\n!\r\n",
    ];
    for stream in streams {
        let [expected, got] = [plain.client(), proxy.client()].map(|mut client| {
            client.send(stream);
            client.expect_closed().escape_ascii().to_string()
        });
        assert_eq!(got, expected, "after {}", stream.escape_ascii());
    }
    assert_eq!(redis.cmd(&["EXISTS", "a"]), Reply::Int(0));
}

#[test]
fn what_one_client_waits_for_keeps_nobody_else() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis);
    let (mut blocked, mut other) = (proxy.client(), proxy.client());
    blocked.send_cmd(&["BLPOP", "q", "0"]);
    eventually(PATIENCE, "it blocks", || run(&mut other, "CLIENT LIST").text().contains("flags=bU"));
    for i in 0..100 {
        assert_eq!(run(&mut other, &format!("ECHO {i}")), Reply::bulk(i.to_string()));
    }
    blocked.expect_silence(Duration::from_millis(1));
    assert_eq!(run(&mut other, "RPUSH q x"), Reply::Int(1));
    assert_eq!(blocked.reply(), Reply::bulks(&["q", "x"]));
}
