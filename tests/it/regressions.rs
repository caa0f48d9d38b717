//! What Redis's own test suite and the client libraries' suites found: one test a bug, each smaller than what found it.

use crate::support::{PATIENCE, Proxy, Redis, Relay, Reply, encode, eventually};

/// unit/scripting "Script return recursive object": a table that contains itself, as deep as Lua's stack allows.
#[test]
fn a_script_may_return_a_table_that_contains_itself() {
    const SCRIPT: &str = "local a = {}; a[1] = a; return a";
    let redis = Redis::start();
    let proxy = Proxy::start(&redis);
    let mut direct = redis.client();
    direct.send_cmd(&["EVAL", SCRIPT, "0"]);
    let expected = direct.read_reply_raw();
    assert!(expected.len() > 10_000 && expected.starts_with(b"*1\r\n*1\r\n"));
    for mut client in [proxy.client(), proxy.client3()] {
        client.expect(&["EVAL", SCRIPT, "0"], &expected);
        assert_eq!(client.cmd(&["PING"]), Reply::status("PONG"));
    }
}

/// unit/scripting "Script ACL check": the user came to its database before it said AUTH, and may not SELECT itself.
#[test]
fn a_user_without_select_stays_in_the_database_where_it_said_auth() {
    let redis = Redis::start();
    redis.cmd(&["ACL", "SETUSER", "bob", "on", ">secret", "~*", "+@all", "-select"]);
    let proxy = Proxy::start(&redis);
    for (mut client, key) in [(proxy.client(), "two"), (proxy.client3(), "three")] {
        assert_eq!(client.cmd(&["SELECT", "9"]), Reply::ok());
        assert_eq!(client.cmd(&["AUTH", "bob", "secret"]), Reply::ok());
        assert_eq!(client.cmd(&["SET", key, "v"]), Reply::ok());
        assert_eq!(client.cmd(&["GET", key]), Reply::bulk("v"));
        assert_eq!(client.pipeline(&[&["MULTI"], &["GET", key], &["EXEC"]])[2], Reply::bulks(&["v"]));
        assert_eq!(redis.cmd(&["EXISTS", key]), Reply::Int(0));
    }
}

/// unit/pubsub "PubSub messages with CLIENT REPLY OFF".
#[test]
fn confirmations_of_subscriptions_pass_client_reply_off() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis);
    for mut client in [proxy.client(), proxy.client3()] {
        client.send_cmd(&["CLIENT", "REPLY", "OFF"]);
        client.send_cmd(&["SUBSCRIBE", "c"]);
        assert_eq!(client.frame().items()[0], Reply::bulk("subscribe"));
        redis.cmd(&["PUBLISH", "c", "hello"]);
        assert_eq!(client.frame().items()[2], Reply::bulk("hello"));
        client.send_cmd(&["UNSUBSCRIBE", "c"]);
        assert_eq!(client.frame().items()[0], Reply::bulk("unsubscribe"));
    }
}

/// unit/tracking "RESP3 based basic redirect invalidation with client reply off": the target has no connection of its own.
#[test]
fn tracking_is_redirected_to_any_client() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis);
    let (mut target, mut reader) = (proxy.client3(), proxy.client());
    let id = target.cmd(&["CLIENT", "ID"]).text();
    assert_eq!(reader.cmd(&["CLIENT", "TRACKING", "ON", "REDIRECT", &id]), Reply::ok());
    assert_eq!(reader.cmd(&["CLIENT", "GETREDIR"]).text(), id);
    reader.cmd(&["GET", "k"]);
    redis.cmd(&["SET", "k", "v"]);
    assert_eq!(target.push(), Reply::Push(vec![Reply::bulk("invalidate"), Reply::bulks(&["k"])]));
    assert_eq!(target.cmd(&["PING"]), Reply::status("PONG"));
}

/// A connection that invalidations are redirected to is not lent to the next client.
#[test]
fn the_target_of_a_redirection_takes_its_connection_with_it() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis);
    let (mut target, mut reader) = (proxy.client3(), proxy.client());
    let id = target.cmd(&["CLIENT", "ID"]).text();
    target.cmd(&["MULTI"]);
    assert_eq!(reader.cmd(&["CLIENT", "TRACKING", "ON", "REDIRECT", &id]), Reply::ok());
    target.cmd(&["EXEC"]);
    reader.cmd(&["GET", "k"]);
    let mut other = proxy.client3();
    assert_eq!(other.cmd(&["MULTI"]), Reply::ok());
    redis.cmd(&["SET", "k", "v"]);
    assert_eq!(target.push(), Reply::Push(vec![Reply::bulk("invalidate"), Reply::bulks(&["k"])]));
    assert_eq!(other.cmd(&["EXEC"]), Reply::Array(Vec::new()));
    assert_eq!(other.pushes_seen(), 0);
}

/// unit/tracking "CLIENT TRACKINGINFO ... redir broken": the target is gone, its id here is still the answer.
#[test]
fn a_broken_redirection_names_its_target_as_the_client_did() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis);
    let (mut target, mut reader) = (proxy.client3(), proxy.client3());
    let id = target.cmd(&["CLIENT", "ID"]).text();
    assert_eq!(reader.cmd(&["CLIENT", "TRACKING", "ON", "REDIRECT", &id]), Reply::ok());
    reader.cmd(&["GET", "k"]);
    assert_eq!(target.cmd(&["QUIT"]), Reply::ok());
    target.expect_closed();
    eventually(PATIENCE, "the redirection to break", || {
        redis.cmd(&["SET", "k", "v"]);
        reader.cmd(&["GET", "k"]);
        reader.pushes_seen() > 0
    });
    assert_eq!(reader.cmd(&["CLIENT", "TRACKINGINFO"]).get("redirect").text(), id);
}

/// unit/multi "MULTI and script timeout": SELECT is refused while a script runs, SCRIPT KILL is not.
#[test]
fn script_kill_works_from_any_database() {
    let redis = Redis::builder().args(&["--lua-time-limit", "1"]).start();
    let proxy = Proxy::start(&redis);
    let (mut busy, mut killer, mut other) = (proxy.client(), proxy.client(), proxy.client());
    for client in [&mut killer, &mut other] {
        assert_eq!(client.cmd(&["SELECT", "9"]), Reply::ok());
    }
    busy.send_cmd(&["EVAL", "while true do end", "0"]);
    eventually(PATIENCE, "the script to be busy", || redis.client().cmd(&["PING"]).is_error());
    // Valkey 9 lets a client SELECT meanwhile.
    let selects = redis.client().cmd(&["SELECT", "9"]) == Reply::ok();
    let multi = other.cmd(&["MULTI"]);
    assert!(if selects { multi == Reply::ok() } else { multi.text().starts_with("BUSY ") }, "{multi:?}");
    assert_eq!(killer.cmd(&["SCRIPT", "KILL"]), Reply::ok());
    assert!(busy.reply().is_error());
    other.cmd(&["DISCARD"]);
    assert_eq!(other.cmd(&["MULTI"]), Reply::ok());
}

/// unit/tracking: upstream's table of tracked keys outlives RESET, so a connection that tracked is not lent again.
#[test]
fn what_one_client_tracked_does_not_invalidate_at_the_next() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis);
    let (mut first, mut next) = (proxy.client3(), proxy.client3());
    for round in 0..10 {
        let key = format!("k{round}");
        assert_eq!(first.cmd(&["CLIENT", "TRACKING", "ON"]), Reply::ok());
        first.cmd(&["GET", &key]);
        assert_eq!(first.cmd(&["CLIENT", "TRACKING", "OFF"]), Reply::ok());
        let pooled =
            || redis.cmd(&["CLIENT", "LIST"]).text().lines().filter(|l| l.contains("cmd=client|tracking")).count();
        eventually(PATIENCE, "the connection to be given back", || pooled() <= 1);
        assert_eq!(next.cmd(&["CLIENT", "TRACKING", "ON"]), Reply::ok());
        redis.cmd(&["SET", &key, "v"]);
        assert_eq!(next.cmd(&["PING"]), Reply::status("PONG"));
        assert_eq!(next.pushes_seen(), 0, "round {round}");
        assert_eq!(next.cmd(&["CLIENT", "TRACKING", "OFF"]), Reply::ok());
    }
}

/// redis-py's test_client_tracking: invalidations may be redirected to the asker itself.
#[test]
fn a_client_may_redirect_its_tracking_to_itself() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis);
    let mut client = proxy.client3();
    let id = client.cmd(&["CLIENT", "ID"]).text();
    assert_eq!(client.cmd(&["CLIENT", "TRACKING", "ON", "REDIRECT", &id]), Reply::ok());
    assert_eq!(client.cmd(&["CLIENT", "GETREDIR"]).text(), id);
}

/// redis-py's test_auth: a client stays who it is when upstream drops the default user's password, its connections follow.
#[test]
fn a_password_that_upstream_has_dropped_still_serves_who_gave_it() {
    let redis = Redis::start();
    redis.cmd(&["CONFIG", "SET", "requirepass", "secret"]);
    let proxy = Proxy::to(&redis).start();
    let mut client = proxy.client();
    assert_eq!(client.cmd(&["AUTH", "secret"]), Reply::ok());
    assert_eq!(client.cmd(&["CONFIG", "SET", "requirepass", ""]), Reply::ok());
    for db in ["0", "3"] {
        assert_eq!(client.cmd(&["SELECT", db]), Reply::ok());
        assert_eq!(client.cmd(&["MULTI"]), Reply::ok());
        assert_eq!(client.cmd(&["EXEC"]), Reply::Array(Vec::new()));
    }
}

/// Found by a soak, which was told of an EXEC without MULTI.
#[test]
fn a_transaction_that_gets_no_connection_executes_nothing() {
    let redis = Redis::start();
    let relay = Relay::to(&redis);
    let proxy = Proxy::upstream(&relay.url()).start();
    let mut client = proxy.client();
    assert_eq!(client.cmd(&["INCR", "before"]), Reply::Int(1));
    relay.refuse();
    let words: [&[&str]; 3] = [&["MULTI"], &["INCR", "k"], &["EXEC"]];
    client.send(&words.iter().flat_map(|w| encode(w)).collect::<Vec<u8>>());
    assert!(client.reply().text().starts_with("NEARSIDE upstream unavailable"));
    assert_eq!(client.expect_closed(), b"");
    assert_eq!(redis.cmd(&["GET", "k"]), Reply::Nil);
}
