use std::time::{Duration, Instant};

use serde_json::json;

use super::section;
use crate::sessions::{run, warm, words};
use crate::support::{Client, PATIENCE, Proxy, Redis, Reply, encode, eventually};

/// So many INCRs in one write, and their replies; how long that took.
fn counted(client: &mut Client, key: &str, n: usize) -> (Vec<i64>, Duration) {
    let started = Instant::now();
    client.send(&encode(&["INCR", key]).repeat(n));
    let replies = (0..n).map(|_| client.reply().int()).collect();
    (replies, started.elapsed())
}

fn named(proxy: &Proxy, name: &str) -> Client {
    let mut client = proxy.client();
    assert_eq!(run(&mut client, &format!("CLIENT SETNAME {name}")), Reply::ok());
    client
}

#[test]
fn a_limited_client_waits_in_order_and_others_do_not() {
    let redis = Redis::start();
    let rate = json!([{"client": "batch-*", "per_second": 50, "burst": 5}]);
    let proxy = Proxy::to(&redis).set("commands.rate", rate).start();
    let mut batch = named(&proxy, "batch-1");
    let started = Instant::now();
    batch.send(&encode(&["INCR", "n"]).repeat(30));
    // 25 of them have to wait, half a second together; meanwhile others go on.
    let mut other = proxy.client();
    for i in 1..=200 {
        assert_eq!(run(&mut other, "INCR other"), Reply::Int(i));
    }
    for i in 1..=30 {
        assert_eq!(batch.reply(), Reply::Int(i));
    }
    let took = started.elapsed();
    assert!(took >= Duration::from_millis(450), "{took:?}");
    let page = section(&proxy);
    assert_eq!(page["mode"], "off");
    let (waited, ms) = (page["rate"]["waited"].as_u64(), page["rate"]["waited_ms"].as_f64());
    assert!(waited.is_some_and(|n| (1..=25).contains(&n)), "{page}");
    assert!(ms.is_some_and(|ms| ms > 0.0 && ms <= 25.0 * 20.0), "{page}");
    assert_eq!(proxy.metric("nearside_rate_limited_total{action=\"wait\"}"), proxy.stat("rate_limit_waits"));
    assert!(proxy.metric("nearside_rate_waited_seconds_total") > 0.0);
    // Another name, and it waits no longer.
    run(&mut batch, "CLIENT SETNAME free");
    let (replies, _) = counted(&mut batch, "n", 500);
    assert_eq!(replies.last(), Some(&530));
    assert_eq!(proxy.stat("rate_limit_waits"), proxy.metric("nearside_rate_limited_total{action=\"wait\"}"));
    assert!(proxy.stat("rate_limit_waits") <= 27.0);
}

#[test]
fn a_shared_limit_is_one_for_all_and_the_others_each_their_own() {
    let redis = Redis::start();
    for (scope, least) in [("shared", 900), ("connection", 400)] {
        let rate = json!([{"client": "b-*", "per_second": 20, "burst": 1, "scope": scope}]);
        let proxy = Proxy::to(&redis).set("commands.rate", rate).start();
        let mut clients = [named(&proxy, "b-1"), named(&proxy, "b-2")];
        let started = Instant::now();
        clients.iter_mut().for_each(|client| client.send(&b"PING\r\n".repeat(10)));
        for client in &mut clients {
            (0..10).for_each(|_| assert_eq!(client.reply(), Reply::status("PONG")));
        }
        let took = started.elapsed();
        assert!(took >= Duration::from_millis(least), "{scope}: {took:?}");
    }
}

#[test]
fn a_change_of_name_fills_no_bucket() {
    let redis = Redis::start();
    let rate = json!([{"client": "b-*", "per_second": 1, "burst": 3, "scope": "connection", "on_limit": "error"}]);
    let proxy = Proxy::to(&redis).set("commands.rate", rate).start();
    let mut client = named(&proxy, "b-1");
    let limit = Reply::Error(b"NEARSIDE rate limit: more than 1 commands a second (commands.rate[0])".to_vec());
    // One write, so that it is judged at one time.
    let lines =
        ["PING", "PING", "PING", "PING", "HELLO 2", "NEARSIDE MODE", "RESET", "PING", "CLIENT SETNAME b-2", "PING"];
    let replies = client.pipeline(&lines.map(words).each_ref().map(Vec::as_slice));
    let pong = Reply::status("PONG");
    assert_eq!(replies[..4], [pong.clone(), pong.clone(), pong.clone(), limit.clone()]);
    // What one needs to come, to go and to find out is answered.
    assert!(!replies[4].is_error() && !replies[5].is_error(), "{replies:?}");
    assert_eq!(replies[6..], [Reply::status("RESET"), pong, Reply::ok(), limit]);
    assert_eq!(section(&proxy)["rate"]["refused"], json!(2));
}

#[test]
fn an_error_inside_multi_aborts_it_and_a_limited_exec_discards() {
    let redis = Redis::start();
    let rate = json!([{"client": "b", "per_second": 1, "burst": 3, "on_limit": "error"}]);
    let proxy = Proxy::to(&redis).set("commands.rate", rate).start();
    let mut client = named(&proxy, "b");
    let lines = ["MULTI", "SET a 1", "SET a 2", "EXEC"];
    let started = Instant::now();
    let replies = client.pipeline(&lines.map(words).each_ref().map(Vec::as_slice));
    if started.elapsed() < Duration::from_millis(900) {
        assert_eq!(replies[..2], [Reply::ok(), Reply::status("QUEUED")]);
        let exec = replies[3].text();
        assert!(exec.starts_with("EXECABORT Transaction discarded because of: NEARSIDE rate limit: "), "{exec}");
        assert_eq!(redis.cmd(&["EXISTS", "a"]), Reply::Int(0));
    }
    // It is not in MULTI any more, whatever was refused.
    eventually(PATIENCE, "a token", || run(&mut client, "SET a 3") == Reply::ok());
}

#[test]
fn on_a_connection_of_its_own_it_waits_as_well() {
    let redis = Redis::start();
    let rate = json!([{"per_second": 50, "burst": 2}]);
    let proxy = Proxy::to(&redis).set("commands.rate", rate).start();
    let mut client = proxy.client();
    let started = Instant::now();
    let mut lines = vec!["MULTI"];
    lines.extend(["INCR n"; 20]);
    lines.push("EXEC");
    let commands: Vec<Vec<&str>> = lines.iter().map(|line| words(line)).collect();
    let replies = client.pipeline(&commands.iter().map(Vec::as_slice).collect::<Vec<_>>());
    assert!(started.elapsed() >= Duration::from_millis(350), "{:?}", started.elapsed());
    let counted: Vec<Reply> = (1..=20).map(Reply::Int).collect();
    assert_eq!(replies[21], Reply::Array(counted));
    // A large request is one request.
    let big = "x".repeat(3 << 20);
    for _ in 0..4 {
        assert_eq!(client.cmd(&["SET", "big", &big]), Reply::ok());
    }
}

/// A waiting client that leaves, or is killed, holds nobody up.
#[test]
fn a_waiting_client_can_be_killed() {
    let redis = Redis::start();
    let rate = json!([{"client": "slow", "per_second": 1, "burst": 1}]);
    let proxy = Proxy::to(&redis).set("commands.rate", rate).start();
    let mut slow = named(&proxy, "slow");
    slow.send(&b"PING\r\n".repeat(30));
    eventually(PATIENCE, "it to wait", || proxy.stat("rate_limit_waits") >= 1.0);
    let mut other = proxy.client();
    let list = run(&mut other, "CLIENT LIST").text();
    let line = list.lines().find(|line| line.contains("name=slow")).expect("its line");
    let id = line.split(' ').find_map(|field| field.strip_prefix("id=")).expect("its id");
    assert_eq!(run(&mut other, &format!("CLIENT KILL ID {id}")), Reply::Int(1));
    slow.expect_closed();
}

/// Hits that another worker could answer are counted against the limit like everything else.
#[test]
fn hits_on_every_worker_are_limited() {
    let redis = Redis::start();
    let rate = json!([{"client": "b-*", "per_second": 100, "burst": 10}]);
    let proxy = Proxy::to(&redis).set("commands.rate", rate).set("workers", 2).start();
    redis.cmd(&["SET", "k", "v"]);
    warm(&proxy, &mut proxy.client(), "k");
    for i in 0..4 {
        let mut client = named(&proxy, &format!("b-{i}"));
        let started = Instant::now();
        for _ in 0..60 {
            assert_eq!(run(&mut client, "GET k"), Reply::bulk("v"));
        }
        assert!(started.elapsed() >= Duration::from_millis(450), "{:?}", started.elapsed());
    }
}
