//! Holds the harness itself against a plain redis-server: the client decodes, the relay stalls, delays, loses and cuts,
//! the scripted upstream keeps order. Needs no proxy.

use std::time::{Duration, Instant};

use crate::support::{Client, Dir, Fake, PATIENCE, Redis, Relay, Reply, Scope, eventually, fake, proxy::is_pong};

#[test]
fn a_server_starts_stops_and_starts_again_at_the_same_place() {
    let mut redis = Redis::builder().tcp().start();
    assert_eq!(redis.cmd(&["SET", "k", "v"]), Reply::ok());
    assert_eq!(Client::tcp(redis.address()).cmd(&["GET", "k"]), Reply::bulk("v"));
    let first = redis.pid();
    redis.restart();
    assert_ne!(redis.pid(), first);
    assert_eq!(Client::tcp(redis.address()).cmd(&["GET", "k"]), Reply::Nil);
}

#[test]
fn the_client_decodes_both_protocols_and_keeps_pushes_apart() {
    let redis = Redis::start();
    let (mut two, mut three) = (redis.client(), redis.client().hello3());
    two.cmd(&["HSET", "h", "f", "1"]);
    assert_eq!(two.cmd(&["HGETALL", "h"]), Reply::bulks(&["f", "1"]));
    assert_eq!(three.cmd(&["HGETALL", "h"]).get("f"), Reply::bulk("1"));
    three.expect(&["GET", "none"], "_\r\n");
    two.expect(&["GET", "none"], "$-1\r\n");
    assert_eq!(two.cmd(&["EVAL", "return {1,{2,'x'},false}", "0"]).items().len(), 3);
    let Reply::Double(double) = three.cmd(&["DEBUG", "PROTOCOL", "double"]) else { panic!("no double") };
    assert!(double.starts_with("3.141"), "{double}");
    assert_eq!(three.cmd(&["DEBUG", "PROTOCOL", "attrib"]).text(), "Some real reply following the attribute");
    three.cmd(&["CLIENT", "TRACKING", "ON"]);
    three.cmd(&["GET", "h2"]);
    two.cmd(&["SET", "h2", "v"]);
    assert_eq!(three.cmd(&["PING"]), Reply::status("PONG"));
    assert_eq!(three.push(), Reply::Push(vec![Reply::bulk("invalidate"), Reply::bulks(&["h2"])]));
}

#[test]
fn a_push_inside_an_aggregate_is_not_counted() {
    let redis = Redis::builder().args(&["--notify-keyspace-events", "KEm"]).start();
    let mut client = redis.client().hello3();
    client.cmd(&["SET", "b", "2"]);
    client.send_cmd(&["SUBSCRIBE", "__keyevent@0__:keymiss"]);
    client.push();
    let reply = client.cmd(&["MGET", "a", "b"]);
    assert_eq!(reply, Reply::Array(vec![Reply::Nil, Reply::bulk("2")]));
    assert_eq!(client.push().items()[2], Reply::bulk("a"));
    assert_eq!(client.cmd(&["PING"]), Reply::status("PONG"));
}

#[test]
fn a_large_value_passes_the_client_and_the_relay() {
    let redis = Redis::start();
    let relay = Relay::to(&redis);
    let mut client = Client::unix(&relay.socket());
    let value = vec![b'x'; 5 << 20];
    assert_eq!(client.cmd(&[b"SET".as_slice(), b"big", &value]), Reply::ok());
    assert_eq!(client.cmd(&["GET", "big"]), Reply::Bulk(value));
    assert!(relay.bytes(Scope::All, Dir::Down) > 5 << 20);
}

#[test]
fn the_relay_stalls_one_direction_and_loses_nothing() {
    let redis = Redis::start();
    let relay = Relay::to(&redis);
    let mut client = Client::unix(&relay.socket());
    assert!(is_pong(&client.cmd(&["PING"])));
    relay.stall(Scope::Existing, Dir::Down);
    client.send_cmd(&["SET", "k", "v"]);
    eventually(PATIENCE, "the SET to arrive", || redis.cmd(&["GET", "k"]) == Reply::bulk("v"));
    client.expect_silence(Duration::from_millis(30));
    let mut other = Client::unix(&relay.socket()); // made after the stall: not concerned
    assert!(is_pong(&other.cmd(&["PING"])));
    relay.resume(Scope::Existing, Dir::Down);
    assert_eq!(client.reply(), Reply::ok());
}

#[test]
fn the_relay_delays_without_slowing_a_stream_down() {
    let redis = Redis::start();
    let relay = Relay::to(&redis);
    relay.delay(Scope::All, Dir::Up, Duration::from_millis(80));
    let mut client = Client::unix(&relay.socket());
    let start = Instant::now();
    for _ in 0..20 {
        client.send_cmd(&["PING"]);
    }
    (0..20).for_each(|_| assert!(is_pong(&client.reply())));
    let took = start.elapsed();
    assert!(took >= Duration::from_millis(80) && took < Duration::from_millis(800), "{took:?}");
}

#[test]
fn the_relay_delivers_in_pieces_and_loses_nothing() {
    let redis = Redis::start();
    let relay = Relay::to(&redis);
    let mut client = Client::unix(&relay.socket());
    let text = "x".repeat(1000);
    relay.split(Scope::All, Dir::Up, 5);
    let start = Instant::now();
    assert_eq!(client.cmd(&["ECHO", &text]), Reply::bulk(&text));
    assert!(start.elapsed() >= Duration::from_millis(20), "200 pieces came in {:?}", start.elapsed());
}

#[test]
fn a_hole_closes_nothing_and_a_cut_closes_both_ends() {
    let redis = Redis::start();
    let relay = Relay::to(&redis);
    let mut lost = Client::unix(&relay.socket());
    assert!(is_pong(&lost.cmd(&["PING"])));
    relay.blackhole(Scope::One(0));
    lost.send_cmd(&["SET", "k", "v"]);
    lost.expect_silence(Duration::from_millis(30));
    assert_eq!(redis.cmd(&["EXISTS", "k"]), Reply::Int(0));
    let mut client = Client::unix(&relay.socket());
    assert!(is_pong(&client.cmd(&["PING"])));
    assert_eq!(relay.connections(), [0, 1]);
    relay.cut(Scope::Newest);
    assert_eq!(client.expect_closed(), b"");
    assert_eq!(relay.connections(), [0]);
    relay.refuse();
    assert_eq!(Client::unix(&relay.socket()).expect_closed(), b"");
    relay.heal();
    assert!(is_pong(&Client::unix(&relay.socket()).cmd(&["PING"])));
}

#[test]
fn the_fake_answers_housekeeping_in_order_and_leaves_the_rest_to_the_script() {
    let upstream = Fake::start();
    let mut sidecar = Client::unix(upstream.socket()).hello3();
    sidecar.cmd(&["CLIENT", "TRACKING", "ON"]);
    let mut lane = upstream.lane();
    sidecar.send_cmd(&["GET", "k"]);
    sidecar.send_cmd(&["PING"]);
    lane.expect(&["GET", "k"]);
    sidecar.expect_silence(Duration::from_millis(30));
    lane.invalidate(&["other"]);
    lane.reply([b"$1\r\n1\r\n".to_vec(), fake::invalidation(&["k"])].concat());
    assert_eq!(sidecar.push().items()[1], Reply::bulks(&["other"]));
    assert_eq!(sidecar.frame(), Reply::bulk("1"));
    assert_eq!(sidecar.push().items()[1], Reply::bulks(&["k"]));
    assert!(is_pong(&sidecar.frame()));
    let mut pinned = Client::unix(upstream.socket());
    pinned.send_cmd(&["BLPOP", "q", "0"]);
    upstream.other().expect(&["BLPOP", "q", "0"]).reply("*-1\r\n").close();
    assert_eq!(pinned.reply(), Reply::Nil);
    assert_eq!(pinned.expect_closed(), b"");
}

#[test]
fn the_fake_pushes_the_canary_to_the_lane_that_has_read_it() {
    let upstream = Fake::builder().scripted("PING").start();
    let mut lane = Client::unix(upstream.socket()).hello3();
    lane.cmd(&["CLIENT", "TRACKING", "ON"]);
    assert_eq!(lane.cmd(&["GET", "nearside:canary:1"]), Reply::Nil);
    let mut second = Client::unix(upstream.socket());
    assert_eq!(second.cmd(&["SET", "nearside:canary:1", "1", "PX", "1000"]), Reply::ok());
    assert_eq!(lane.push().items()[1], Reply::bulks(&["nearside:canary:1"]));
    lane.send_cmd(&["PING"]);
    upstream.lane().expect(&["PING"]).reply("+PONG\r\n");
    assert!(is_pong(&lane.reply()));
}
