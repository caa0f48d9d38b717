//! What Redis's own test suite and the client libraries' suites found: one test a bug, each smaller than what found it.

use crate::support::{Proxy, Redis, Reply};

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
