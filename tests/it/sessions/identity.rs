use std::time::Duration;

use super::{run, same_as_redis, upstream_clients, warm};
use crate::support::{Client, Fake, PATIENCE, Proxy, Redis, Reply, encode, eventually, needs, no_tracking};

const PASSWORD: [&str; 2] = ["--requirepass", "secret"];

/// A server with two users who may do everything, and one who may read `open:*` and nothing of CLIENT TRACKING.
fn with_users() -> Redis {
    let redis = Redis::start();
    for rule in [
        "ACL SETUSER ann on >a ~* &* +@all",
        "ACL SETUSER bob on >b ~* &* +@all",
        "ACL SETUSER eve on >e ~open:* &* +@all",
    ] {
        assert_eq!(redis.cmd(&super::words(rule)), Reply::ok());
    }
    let tim = ["ACL", "SETUSER", "tim", "on", ">t", "~*", "&*", "+@all"];
    assert_eq!(redis.cmd(&[&tim[..], &no_tracking()].concat()), Reply::ok());
    redis
}

#[track_caller]
fn login(proxy: &Proxy, user: &str, password: &str) -> Client {
    let mut client = proxy.client();
    assert_eq!(client.cmd(&["AUTH", user, password]), Reply::ok(), "{user}");
    client
}

#[test]
fn without_a_password_clients_are_refused_exactly_as_by_redis() {
    let (plain, redis) = (Redis::builder().args(&PASSWORD).start(), Redis::builder().args(&PASSWORD).start());
    let proxy = Proxy::start(&redis);
    let lines = [
        "GET k",
        "SET k v",
        "MGET a b",
        "MULTI",
        "EXEC",
        "SUBSCRIBE c",
        "BLPOP q 1",
        "CLIENT GETNAME",
        "CLIENT SETNAME x",
        "SELECT 1",
        "PING",
        "NOSUCH",
        "HELLO",
        "HELLO 3",
        "HELLO 3 AUTH default wrong",
        "AUTH wrong",
        "AUTH nobody secret",
        "AUTH secret",
        "CLIENT GETNAME",
        "SET k v",
        "GET k",
        "AUTH default wrong",
        "GET k",
    ];
    same_as_redis(&mut plain.client(), &mut proxy.client(), &lines);
    for line in &lines[..17] {
        same_as_redis(
            &mut plain.client(),
            &mut proxy.client(),
            &[line, "GET k", "RESET", "PING", "AUTH secret", "GET k"],
        );
    }
}

#[test]
fn after_auth_a_client_is_served_from_the_cache() {
    let redis = Redis::builder().args(&PASSWORD).start();
    let proxy = Proxy::start(&redis);
    for way in ["AUTH secret", "AUTH default secret", "HELLO 2 AUTH default secret", "HELLO 3 AUTH default secret"] {
        let mut client = proxy.client();
        // A command before it has pinned the client.
        assert_eq!(run(&mut client, "GET k").text(), "NOAUTH Authentication required.");
        assert!(!run(&mut client, way).is_error(), "{way}");
        assert_eq!(run(&mut client, "SET k v"), Reply::ok());
        assert_eq!(warm(&proxy, &mut client, "k"), Reply::bulk("v"), "{way}");
        assert!(run(&mut client, "CLIENT INFO").text().contains("user=default"));
    }
    // The next client is a stranger all the same.
    assert_eq!(run(&mut proxy.client(), "GET k").text(), "NOAUTH Authentication required.");
}

#[test]
fn hello_with_auth_and_name_works_on_a_pinned_connection_too() {
    let redis = Redis::builder().args(&PASSWORD).start();
    let proxy = Proxy::start(&redis);
    let mut client = proxy.client();
    run(&mut client, "GET k");
    let hello = run(&mut client, "HELLO 3 AUTH default secret SETNAME mine");
    let id = run(&mut client, "CLIENT ID");
    assert_eq!(hello.get("id"), id);
    assert_eq!(run(&mut client, "CLIENT GETNAME"), Reply::bulk("mine"));
    assert_eq!(run(&mut client, "MULTI"), Reply::ok());
    assert_eq!(run(&mut client, "SET k v"), Reply::status("QUEUED"));
    assert_eq!(run(&mut client, "EXEC"), Reply::Array(vec![Reply::ok()]));
    assert_eq!(warm(&proxy, &mut client, "k"), Reply::bulk("v"));
}

#[test]
fn the_sidecars_own_credentials_serve_clients_that_have_none() {
    let redis = Redis::builder().args(&PASSWORD).start();
    let proxy = Proxy::upstream(&redis.url().replace("unix://", "unix://:secret@")).without_waiting().start();
    drop(proxy);
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), "secret\n").expect("a password file");
    let path = file.path().display().to_string();
    let proxy = Proxy::to(&redis).set("upstream.password_file", path).start();
    let mut client = proxy.client();
    assert_eq!(run(&mut client, "SET k v"), Reply::ok());
    assert_eq!(warm(&proxy, &mut client, "k"), Reply::bulk("v"));
    assert_eq!(run(&mut client, "MULTI"), Reply::ok());
    run(&mut client, "GET k");
    assert_eq!(run(&mut client, "EXEC"), Reply::bulks(&["v"]));
}

#[test]
fn no_hit_crosses_users() {
    let redis = with_users();
    let proxy = Proxy::start(&redis);
    redis.cmd(&["MSET", "k", "v", "open:k", "o"]);
    let (mut ann, mut bob, mut eve) = (login(&proxy, "ann", "a"), login(&proxy, "bob", "b"), login(&proxy, "eve", "e"));
    assert_eq!(warm(&proxy, &mut ann, "k"), Reply::bulk("v"));
    // Eve may not read it, whoever else has it cached; EXPLAIN does not tell her that somebody has.
    let denied = redis.client().pipeline(&[&["AUTH", "eve", "e"][..], &["GET", "k"]]).remove(1);
    assert!(denied.text().starts_with("NOPERM"));
    for _ in 0..3 {
        assert_eq!(run(&mut eve, "GET k"), denied);
        assert!(run(&mut eve, "MGET k open:k").text().starts_with("NOPERM"));
    }
    assert_eq!(run(&mut eve, "NEARSIDE ENTRY k"), Reply::Nil);
    assert_eq!(run(&mut eve, "NEARSIDE EXPLAIN GET k").get("in_l1"), Reply::bulk("no"));
    assert_eq!(run(&mut ann, "NEARSIDE EXPLAIN GET k").get("in_l1"), Reply::bulk("yes"));
    assert_eq!(warm(&proxy, &mut eve, "open:k"), Reply::bulk("o"));
    // Bob's first read is none of the others' hits.
    let hits = proxy.stat("hits");
    assert_eq!(run(&mut bob, "GET k"), Reply::bulk("v"));
    assert_eq!(proxy.stat("hits"), hits);
    warm(&proxy, &mut bob, "k");
    // A write of either evicts for both.
    assert_eq!(run(&mut bob, "SET k w"), Reply::ok());
    eventually(PATIENCE, "the new value", || run(&mut ann, "GET k") == Reply::bulk("w"));
}

#[test]
fn a_user_without_the_right_to_track_is_served_uncached() {
    let redis = with_users();
    let proxy = Proxy::to(&redis).set("coherence.mode", "tracking").start();
    redis.cmd(&["SET", "k", "v"]);
    let (mut tim, mut ann) = (login(&proxy, "tim", "t"), login(&proxy, "ann", "a"));
    for i in 0..5 {
        redis.cmd(&["SET", "k", &i.to_string()]);
        assert_eq!(run(&mut tim, "GET k"), Reply::bulk(i.to_string()));
    }
    assert_eq!(proxy.stat("hits"), 0.0);
    let why = run(&mut tim, "NEARSIDE EXPLAIN GET k").get("not_stored_because").text();
    assert!(why.contains("NOPERM"), "{why}");
    warm(&proxy, &mut ann, "k");
}

#[test]
fn no_hit_crosses_databases() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis);
    let mut client = proxy.client();
    run(&mut client, "SET k zero");
    warm(&proxy, &mut client, "k");
    run(&mut client, "SELECT 3");
    assert_eq!(run(&mut client, "GET k"), Reply::Nil);
    run(&mut client, "SET k three");
    assert_eq!(warm(&proxy, &mut client, "k"), Reply::bulk("three"));
    run(&mut client, "SELECT 0");
    assert_eq!(warm(&proxy, &mut client, "k"), Reply::bulk("zero"));
    let in_database = |redis: &Redis, db| redis.client().pipeline(&[&["SELECT", db][..], &["GET", "k"]]).remove(1);
    assert_eq!(in_database(&redis, "3"), Reply::bulk("three"));
    // The database travels with the session onto a connection of its own and back.
    run(&mut client, "SELECT 3");
    run(&mut client, "MULTI");
    run(&mut client, "GET k");
    run(&mut client, "SELECT 0");
    run(&mut client, "GET k");
    assert_eq!(run(&mut client, "EXEC"), Reply::Array(vec![Reply::bulk("three"), Reply::ok(), Reply::bulk("zero")]));
    assert_eq!(run(&mut client, "GET k"), Reply::bulk("zero"));
    assert!(run(&mut client, "CLIENT INFO").text().contains(" db=0 "));
}

#[test]
fn auth_and_hello_change_the_user_while_pinned() {
    let redis = with_users();
    let proxy = Proxy::start(&redis);
    redis.cmd(&["SET", "k", "v"]);
    for way in ["AUTH eve e", "HELLO 3 AUTH eve e"] {
        let mut client = login(&proxy, "ann", "a");
        run(&mut client, "WATCH k");
        assert!(!run(&mut client, way).is_error(), "{way}");
        assert!(run(&mut client, "GET k").text().starts_with("NOPERM"), "{way}");
        assert!(!run(&mut client, "UNWATCH").is_error());
        // Back on the lane it is still Eve.
        assert_eq!(run(&mut client, "ACL WHOAMI"), Reply::bulk("eve"), "{way}");
        assert!(run(&mut client, "GET k").text().starts_with("NOPERM"), "{way}");
        assert!(run(&mut client, "CLIENT INFO").text().contains("user=eve"), "{way}");
    }
    let mut client = login(&proxy, "ann", "a");
    run(&mut client, "MULTI");
    run(&mut client, "HELLO 2 AUTH eve e SETNAME inside");
    run(&mut client, "ACL WHOAMI");
    let exec = run(&mut client, "EXEC").items();
    assert_eq!(exec[1], Reply::bulk("eve"));
    assert_eq!(run(&mut client, "ACL WHOAMI"), Reply::bulk("eve"));
    assert_eq!(run(&mut client, "CLIENT GETNAME"), Reply::bulk("inside"));
}

#[test]
fn a_failed_auth_changes_nothing() {
    let redis = with_users();
    let proxy = Proxy::start(&redis);
    let mut client = login(&proxy, "ann", "a");
    let expected = redis.cmd(&["AUTH", "bob", "wrong"]);
    assert_eq!(run(&mut client, "AUTH bob wrong"), expected);
    assert_eq!(run(&mut client, "HELLO 3 AUTH bob wrong"), expected);
    assert_eq!(run(&mut client, "ACL WHOAMI"), Reply::bulk("ann"));
    // Neither has HELLO's protocol been taken over.
    client.expect(&["GET", "none"], "$-1\r\n");
}

/// Redis 7.2 to 8 and Valkey 8 do not answer a refused AUTH while replies before it wait to be written.
#[test]
fn a_pinned_client_says_auth_with_nothing_before_it() {
    let fake = Fake::builder().scripted("AUTH").start();
    let proxy = Proxy::upstream(&fake.url()).start();
    let mut client = proxy.client3();
    let commands = [&["MONITOR"][..], &["ECHO", "1"], &["AUTH", "ann", "wrong"], &["ECHO", "2"]];
    client.send(&commands.map(encode).concat());
    let mut pinned = fake.other();
    pinned.expect(&["MONITOR"]).reply("+OK\r\n").expect(&["ECHO", "1"]);
    assert_eq!(pinned.try_next(Duration::from_millis(30)), None, "AUTH is pipelined");
    pinned.reply("$1\r\n1\r\n").expect(&["AUTH", "ann", "wrong"]).reply("-WRONGPASS no\r\n");
    pinned.expect(&["ECHO", "2"]).reply("$1\r\n2\r\n");
    let replies: Vec<String> = commands.iter().map(|_| client.reply().text()).collect();
    assert_eq!(replies, ["OK", "1", "WRONGPASS no", "2"]);
}

/// There the array of EXEC lacks the element, and the one that follows must not be taken for it.
#[test]
fn an_auth_that_upstream_did_not_answer_in_exec_has_not_succeeded() {
    let fake = Fake::builder().scripted("AUTH").start();
    let proxy = Proxy::upstream(&fake.url()).start();
    let (mut client, mut other) = (proxy.client(), proxy.client());
    client.send(&[&["MULTI"][..], &["AUTH", "ann", "wrong"], &["ECHO", "1"], &["EXEC"]].map(encode).concat());
    let mut pinned = fake.other();
    for reply in ["+OK\r\n", "+QUEUED\r\n", "+QUEUED\r\n", "*2\r\n$1\r\n1\r\n"] {
        pinned.next();
        pinned.reply(reply);
    }
    (0..3).for_each(|_| drop(client.reply()));
    eventually(PATIENCE, "the element to come", || client.try_read(Duration::from_millis(5)).is_some());
    let list = other.cmd(&["CLIENT", "LIST"]).text();
    assert_eq!(list.matches(" user=default ").count(), 2, "{list}");
}

#[test]
fn reset_is_a_fresh_client() {
    let redis = with_users();
    let proxy = Proxy::start(&redis);
    let mut client = login(&proxy, "ann", "a").hello3();
    for line in ["CLIENT SETNAME x", "SELECT 3", "WATCH k"] {
        assert_eq!(run(&mut client, line), Reply::ok());
    }
    let newer = needs(7, 0, "CLIENT NO-EVICT, and resp in CLIENT LIST");
    assert_eq!(run(&mut client, "CLIENT NO-EVICT on") == Reply::ok(), newer);
    assert_eq!(run(&mut client, "RESET"), Reply::status("RESET"));
    client.expect(&["GET", "none"], "$-1\r\n");
    let info = run(&mut client, "CLIENT INFO").text();
    assert!(info.contains(" name= ") && info.contains(" db=0 ") && info.contains("user=default"), "{info}");
    assert!(info.contains("flags=U ") && info.contains("resp=2") == newer, "{info}");
    assert_eq!(run(&mut client, "ACL WHOAMI"), Reply::bulk("default"));
}

#[test]
fn beyond_lanes_max_clients_are_served_uncached() {
    let redis = Redis::start();
    let proxy = Proxy::to(&redis).set("upstream.lanes_max", 2).start();
    let mut clients: Vec<Client> = (0..5)
        .map(|db| {
            let mut client = proxy.client();
            assert_eq!(run(&mut client, &format!("SELECT {db}")), Reply::ok());
            assert_eq!(run(&mut client, &format!("SET k {db}")), Reply::ok());
            client
        })
        .collect();
    for (db, client) in clients.iter_mut().enumerate() {
        for _ in 0..3 {
            assert_eq!(run(client, "GET k"), Reply::bulk(db.to_string()));
        }
    }
    warm(&proxy, &mut clients[0], "k");
    drop(clients);
    eventually(PATIENCE, "pinned connections to go", || upstream_clients(&redis, "db=4").is_empty());
}
