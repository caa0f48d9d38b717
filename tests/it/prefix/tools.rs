//! NEARSIDE and the side port speak the client's names.

use super::*;
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
    redis.cmd(&["MSET", "user:9", "foreign", "other:user:9", "foreign", "app:user:9", "own"]);
    let deleted = client.cmd(&["NEARSIDE", "DELETE", "PATTERN", "user:*"]);
    assert_eq!(deleted.get("deleted"), Reply::Int(2));
    assert_eq!(
        upstream_keys(&redis).iter().filter(|key| !key.contains("canary")).collect::<Vec<_>>(),
        ["other:user:9", "user:9"]
    );
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
