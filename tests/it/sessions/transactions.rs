use std::time::Duration;

use super::{run, same_as_redis, upstream_clients, wait_upstream, warm};
use crate::support::{Client, PATIENCE, Proxy, Redis, Reply, eventually};

/// The sidecar's own connections carry this name upstream.
const OURS: &str = "name=nearside:";

/// What such a line says of a client between MULTI and EXEC.
const IN_MULTI: &str = "flags=x";

fn blocked(proxy: &Proxy) -> impl FnMut() -> bool {
    let mut watcher = proxy.client();
    move || run(&mut watcher, "CLIENT LIST").text().lines().any(|line| line.contains("flags=b"))
}

#[test]
fn a_transaction_gives_its_connection_back() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis);
    let mut client = proxy.client();
    assert_eq!(run(&mut client, "MULTI"), Reply::ok());
    wait_upstream(&redis, IN_MULTI, 1);
    assert_eq!(run(&mut client, "SET k 1"), Reply::status("QUEUED"));
    assert_eq!(run(&mut client, "EXEC"), Reply::Array(vec![Reply::ok()]));
    assert_eq!(run(&mut client, "MULTI"), Reply::ok());
    assert_eq!(run(&mut client, "DISCARD"), Reply::ok());
    let before = upstream_clients(&redis, OURS).len();
    // The next client uses the same one.
    let mut second = proxy.client();
    for _ in 0..20 {
        assert_eq!(run(&mut second, "MULTI"), Reply::ok());
        assert_eq!(run(&mut second, "EXEC"), Reply::Array(vec![]));
    }
    assert_eq!(upstream_clients(&redis, OURS).len(), before);
    assert_eq!(upstream_clients(&redis, IN_MULTI), Vec::<String>::new());
    // Back on the lane, its reads hit.
    warm(&proxy, &mut client, "k");
}

#[test]
fn watch_sees_every_writer() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis);
    let (mut one, mut two) = (proxy.client(), proxy.client());
    let mut attempt = |write: &mut dyn FnMut()| {
        assert_eq!(run(&mut one, "WATCH k"), Reply::ok());
        run(&mut one, "GET k");
        write();
        assert_eq!(run(&mut one, "MULTI"), Reply::ok());
        run(&mut one, "SET k mine");
        run(&mut one, "EXEC")
    };
    assert_eq!(attempt(&mut || {}), Reply::Array(vec![Reply::ok()]));
    assert_eq!(attempt(&mut || drop(run(&mut two, "SET k theirs"))), Reply::Nil);
    assert_eq!(attempt(&mut || drop(redis.cmd(&["SET", "k", "foreign"]))), Reply::Nil);
    assert_eq!(attempt(&mut || {}), Reply::Array(vec![Reply::ok()]));
}

#[test]
fn a_watch_given_up_is_forgotten_upstream() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis);
    let mut client = proxy.client();
    for end in ["UNWATCH", "RESET", "DISCARD"] {
        assert_eq!(run(&mut client, "WATCH k"), Reply::ok());
        if end == "DISCARD" {
            run(&mut client, "MULTI");
        }
        assert!(!run(&mut client, end).is_error());
        redis.cmd(&["INCR", "k"]);
        assert_eq!(run(&mut client, "MULTI"), Reply::ok());
        assert_eq!(run(&mut client, "GET k").text(), "QUEUED");
        assert!(matches!(run(&mut client, "EXEC"), Reply::Array(_)), "after {end}");
    }
}

#[test]
fn errors_inside_a_transaction_are_redis_own() {
    let (plain, redis) = (Redis::start(), Redis::start());
    let proxy = Proxy::start(&redis);
    let scripts: &[&[&str]] = &[
        &["EXEC", "DISCARD", "MULTI", "MULTI", "WATCH a", "EXEC"],
        &["MULTI", "NOSUCH", "SET a 1", "EXEC", "GET a"],
        &["MULTI", "SET a", "EXEC"],
        &["MULTI", "SET a x", "INCR a", "GET a", "EXEC", "GET a"],
        &["MULTI", "CLIENT SETNAME n", "CLIENT GETNAME", "SELECT 3", "SET a 3", "EXEC", "GET a", "CLIENT GETNAME"],
        &["SELECT 0", "MULTI", "SELECT 99", "GET a", "EXEC", "GET a"],
        &["MULTI", "BLPOP none 0", "EXEC", "PING"],
        &["WATCH a b", "SET a 5", "MULTI", "GET a", "EXEC", "GET a"],
        &["MULTI", "SET a 1", "RESET", "EXEC"],
    ];
    for script in scripts {
        same_as_redis(&mut plain.client(), &mut proxy.client(), script);
    }
}

#[test]
fn a_transaction_in_resp3_and_resp2_has_the_forms_of_each() {
    let (plain, redis) = (Redis::start(), Redis::start());
    let proxy = Proxy::start(&redis);
    let script = [
        "MULTI",
        "HSET h f 1",
        "HGETALL h",
        "GET none",
        "BLPOP none 0",
        "ZADD z 1.5 a",
        "ZSCORE z a",
        "CLIENT GETNAME",
        "HELLO 3",
        "EXEC",
        "HGETALL h",
    ];
    // HELLO's reply has an id, which differs.
    let without: Vec<&str> = script.iter().copied().filter(|l| *l != "HELLO 3").collect();
    same_as_redis(&mut plain.client(), &mut proxy.client(), &without);
    same_as_redis(&mut plain.client().hello3(), &mut proxy.client3(), &without);
    let mut client = proxy.client();
    for line in &script[..script.len() - 2] {
        run(&mut client, line);
    }
    let exec = run(&mut client, "EXEC").items();
    assert!(matches!(exec.last(), Some(Reply::Map(_))), "{exec:?}");
    assert!(matches!(run(&mut client, "HGETALL h"), Reply::Map(_)));
}

#[test]
fn a_blocking_command_times_out_as_upstream_says() {
    let (plain, redis) = (Redis::start(), Redis::start());
    let proxy = Proxy::start(&redis);
    let script = [
        "BLPOP q 0.02",
        "BZPOPMIN z 0.02",
        "BLMOVE a b LEFT LEFT 0.02",
        "XREAD BLOCK 20 STREAMS s $",
        "BLPOP q x",
        "PING",
    ];
    same_as_redis(&mut plain.client(), &mut proxy.client(), &script);
    same_as_redis(&mut plain.client().hello3(), &mut proxy.client3(), &script);
}

#[test]
fn a_blocked_client_that_goes_away_frees_its_upstream_connection() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis);
    let mut client = proxy.client();
    client.send_cmd(&["BLPOP", "q", "0"]);
    wait_upstream(&redis, "cmd=blpop", 1);
    drop(client);
    wait_upstream(&redis, "cmd=blpop", 0);
    // What is pushed now stays where it is.
    redis.cmd(&["RPUSH", "q", "x"]);
    assert_eq!(redis.cmd(&["LLEN", "q"]), Reply::Int(1));
    eventually(PATIENCE, "no pinned connection", || proxy.stat("pinned_connections") == 0.0);
}

#[test]
fn a_blocked_client_is_unblocked_by_its_id_here() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis);
    let (mut client, mut other) = (proxy.client(), proxy.client());
    let id = run(&mut client, "CLIENT ID").int().to_string();
    let mut is_blocked = blocked(&proxy);
    for (how, expected) in [
        (None, "*-1\r\n"),
        (Some("TIMEOUT"), "*-1\r\n"),
        (Some("ERROR"), "-UNBLOCKED client unblocked via CLIENT UNBLOCK\r\n"),
    ] {
        client.send_cmd(&["BLPOP", "q", "0"]);
        eventually(PATIENCE, "it blocks", &mut is_blocked);
        let order: Vec<&str> = ["CLIENT", "UNBLOCK", &id].into_iter().chain(how).collect();
        assert_eq!(other.cmd(&order), Reply::Int(1), "{how:?}");
        assert_eq!(client.read_reply_raw(), expected.as_bytes(), "{how:?}");
    }
    assert_eq!(other.cmd(&["CLIENT", "UNBLOCK", &id]), Reply::Int(0));
    assert_eq!(other.cmd(&["CLIENT", "UNBLOCK", "99999"]), Reply::Int(0));
    assert_eq!(run(&mut client, "PING"), Reply::status("PONG"));
}

#[test]
fn commands_behind_a_blocking_one_wait_for_it() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis);
    let mut client = proxy.client();
    client.send(b"BLPOP q 0\r\nINCR n\r\nGET n\r\n");
    wait_upstream(&redis, "cmd=blpop", 1);
    assert_eq!(redis.cmd(&["EXISTS", "n"]), Reply::Int(0));
    redis.cmd(&["RPUSH", "q", "x"]);
    let replies: Vec<Reply> = (0..3).map(|_| client.reply()).collect();
    assert_eq!(replies, [Reply::bulks(&["q", "x"]), Reply::Int(1), Reply::bulk("1")]);
}

#[test]
fn a_pop_that_blocked_leaves_no_old_value_in_the_cache() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis);
    let (mut client, mut other) = (proxy.client(), proxy.client());
    assert_eq!(warm(&proxy, &mut client, "dst"), Reply::Nil);
    client.send_cmd(&["BLMOVE", "src", "dst", "LEFT", "LEFT", "0"]);
    wait_upstream(&redis, "cmd=blmove", 1);
    run(&mut other, "RPUSH src x");
    assert_eq!(client.reply(), Reply::bulk("x"));
    assert!(run(&mut client, "GET dst").text().starts_with("WRONGTYPE"));
}

#[test]
fn wait_counts_the_clients_own_writes() {
    let redis = Redis::builder().tcp().start();
    let replica = Redis::builder().tcp().start();
    let port = redis.address().port().to_string();
    replica.cmd(&["REPLICAOF", "127.0.0.1", &port]);
    eventually(PATIENCE, "a replica", || redis.cmd(&["INFO", "replication"]).text().contains("state=online"));
    let proxy = Proxy::start(&redis);
    let mut client = proxy.client();
    assert_eq!(run(&mut client, "SET k v"), Reply::ok());
    assert_eq!(run(&mut client, "WAIT 1 10000"), Reply::Int(1));
    assert_eq!(replica.cmd(&["GET", "k"]), Reply::bulk("v"));
    // In one pipeline as well, and nothing of what WAIT needs is seen.
    let replies = client.pipeline(&[&["SET", "k", "w"][..], &["WAIT", "1", "10000"], &["GET", "k"]]);
    assert_eq!(replies, [Reply::ok(), Reply::Int(1), Reply::bulk("w")]);
    assert_eq!(run(&mut client, "WAIT 2 20"), Reply::Int(1));
}

#[test]
fn a_script_that_runs_for_ever_can_be_killed_through_the_sidecar() {
    let redis = Redis::builder().args(&["--lua-time-limit", "50"]).start();
    let proxy = Proxy::start(&redis);
    let (mut busy, mut other): (Client, Client) = (proxy.client(), proxy.client());
    busy.send_cmd(&["EVAL", "while true do end", "0"]);
    eventually(PATIENCE, "BUSY", || redis.cmd(&["PING"]).is_error());
    assert_eq!(run(&mut other, "SCRIPT KILL"), Reply::ok());
    assert!(busy.reply().text().contains("Script killed by user"));
    assert_eq!(run(&mut other, "SET k v"), Reply::ok());
    assert_eq!(run(&mut busy, "GET k"), Reply::bulk("v"));
}

#[test]
fn the_loss_of_a_pinned_connection_closes_a_client_with_state() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis);
    let mut client = proxy.client();
    run(&mut client, "MULTI");
    run(&mut client, "SET k v");
    let line = upstream_clients(&redis, "multi=1").remove(0);
    let id = line.split(' ').next().and_then(|f| f.strip_prefix("id=")).expect("an id").to_string();
    assert_eq!(redis.cmd(&["CLIENT", "KILL", "ID", &id]), Reply::Int(1));
    client.expect_closed();
    // One that was only waiting is told, and goes on.
    let mut client = proxy.client();
    client.send_cmd(&["BLPOP", "q", "0"]);
    wait_upstream(&redis, "cmd=blpop", 1);
    let line = upstream_clients(&redis, "cmd=blpop").remove(0);
    let id = line.split(' ').next().and_then(|f| f.strip_prefix("id=")).expect("an id").to_string();
    redis.cmd(&["CLIENT", "KILL", "ID", &id]);
    let reply = client.reply();
    assert!(reply.is_error() && reply.text().contains("outcome unknown"), "{reply:?}");
    client.with_patience(Duration::from_secs(5)).expect(&["PING"], "+PONG\r\n");
}
