//! NEARSIDE and the side port speak the client's names.

use super::*;
use crate::preflight::preflight;
use crate::support::http;

fn resident(client: &mut Client, key: &str) -> bool {
    client.cmd(&["NEARSIDE", "ENTRY", key]) != Reply::Nil
}

#[test]
fn nearside_commands_name_keys_as_clients_do() {
    let redis = Redis::start();
    let proxy = app(&redis);
    let mut client = proxy.client();
    assert_eq!(proxy.stats()["key_prefix"], "app:");
    for what in ["KEY user:1", "PREFIX user:", "PATTERN user:[1-9]", "REGEX ^app:user:", "PREFIX us ap"] {
        say(&mut client, "SET user:1 v");
        warm(&proxy, &mut client, "user:1");
        assert!(resident(&mut client, "user:1"));
        assert_eq!(say(&mut client, &format!("NEARSIDE INVALIDATE {what}")), ":1", "{what}");
        assert!(!resident(&mut client, "user:1"));
    }
    assert!(say(&mut client, "NEARSIDE INVALIDATE PREFIX app:").starts_with(":0"));
    let entry = {
        warm(&proxy, &mut client, "user:1");
        client.cmd(&["NEARSIDE", "ENTRY", "user:1"])
    };
    assert_eq!(entry.get("key_pattern"), Reply::bulk("user"));
    let explained = client.cmd(&["NEARSIDE", "EXPLAIN", "GET", "user:1"]);
    assert_eq!(explained.get("in_l1"), Reply::bulk("yes"));
    assert_eq!(explained.get("keys"), Reply::bulks(&["user:1"]));
    let refused = client.cmd(&["NEARSIDE", "EXPLAIN", "DBSIZE"]);
    assert_eq!(refused.get("route"), Reply::bulk("refuse"));
    assert!(refused.get("reason").text().contains("DBSIZE is refused with upstream.key_prefix"));
    let flush = client.cmd(&["NEARSIDE", "EXPLAIN", "FLUSHDB"]);
    assert_eq!(flush.get("route"), Reply::bulk("local"));
    redis.cmd(&["MSET", "user:9", "foreign", "other:user:9", "foreign", "app:user:9", "own"]);
    let deleted = client.cmd(&["NEARSIDE", "DELETE", "PATTERN", "user:*"]);
    assert_eq!(deleted.get("deleted"), Reply::Int(2));
    assert_eq!(upstream_keys(&redis), ["other:user:9", "user:9"]);
}

#[test]
fn the_side_port_names_keys_as_clients_do() {
    let redis = Redis::start();
    let dir = crate::support::temp_dir();
    let file = dir.path().join("token");
    std::fs::write(&file, "secret").expect("a file");
    let proxy = with(&redis, "app:").set("http.token_file", file.display().to_string()).start();
    let mut client = proxy.client();
    say(&mut client, "SET user:1 v");
    for body in [r#"{"key":["user:1"]}"#, r#"{"prefix":["user:"]}"#, r#"{"pattern":["user:?"]}"#] {
        warm(&proxy, &mut client, "user:1");
        let answer = http::post(proxy.http_address(), "/api/v1/invalidate", Some("secret"), body);
        assert_eq!((answer.status, answer.json()["dropped"].as_u64()), (200, Some(1)), "{body}: {}", answer.body);
        assert!(!resident(&mut client, "user:1"));
    }
}

fn prefixed(url: &str, prefix: &str) -> (String, Option<i32>) {
    preflight(&["--upstream", url], &[("NEARSIDE_UPSTREAM__KEY_PREFIX", prefix)])
}

#[test]
fn preflight_says_whether_an_acl_binds_the_user_to_the_prefix() {
    let redis = Redis::builder().tcp().start();
    for (user, rules) in [("bound", "~app:* &* +@all"), ("wide", "~ap* &* +@all"), ("none", "~b:* &* +@all")] {
        let words = ["ACL", "SETUSER", user, "on", ">pw"].into_iter().chain(rules.split(' '));
        assert_eq!(redis.cmd(&words.collect::<Vec<_>>()), Reply::ok());
    }
    let url = |user: &str| format!("redis://{user}:pw@{}", redis.address());
    let (said, code) = prefixed(&url("bound"), "app:");
    let lines: Vec<&str> = said.lines().collect();
    let names: Vec<&str> = lines.iter().filter_map(|line| line.split_whitespace().next()).collect();
    assert_eq!(names, ["upstream", "tracking", "rights", "key_prefix", "memory", "ports"], "{said}");
    assert!(lines.iter().all(|line| line.contains(" ok ")), "{said}");
    assert_eq!(code, Some(0));
    for (user, word) in [("wide", "may touch keys that do not begin with app:"), ("none", "may not even touch keys")] {
        let (said, code) = prefixed(&url(user), "app:");
        assert!(said.contains(&format!("key_prefix  FAIL user {user} {word}")), "{said}");
        assert_eq!(code, Some(1));
    }
    let (said, code) = prefixed(&url("bound"), "");
    assert!(
        !said.contains("key_prefix") && code == Some(0),
        "without a prefix there is nothing to be bound to: {said}"
    );
    let (said, code) = prefixed("redis://127.0.0.1:1", "app:");
    assert!(said.starts_with("upstream    FAIL ") && code == Some(1), "{said}");
    assert_eq!(prefixed("redis://127.0.0.1:1", "a*"), (String::new(), Some(2)));
}
