use serde_json::{Value, json};

use super::{denying, noperm, section};
use crate::sessions::{run, words};
use crate::support::{Proxy, Redis, Reply};

#[test]
fn the_section_says_what_was_judged() {
    let redis = Redis::start();
    let proxy = denying(&redis, &["flushall", "keys", "config", "~secret:*"]).start();
    let before = section(&proxy);
    assert_eq!(
        (&before["mode"], &before["checks"], &before["allow_rate"]),
        (&json!("enforce"), &json!(0), &Value::Null)
    );
    assert_eq!(before["top_denied"], json!([]));
    assert!(before["version"].is_string() && before["at"].is_string());
    let mut client = proxy.client();
    let lines = [
        "SET a 1",
        "GET a",
        "GET a",
        "GET secret:1",
        "KEYS *",
        "KEYS a",
        "FLUSHALL",
        "CONFIG GET a",
        "CONFIG GET b",
        "CONFIG GET c",
        "EVAL return{1} 0",
        "PING",
        "INFO server",
    ];
    client.pipeline(&lines.map(words).each_ref().map(Vec::as_slice));
    let after = section(&proxy);
    assert_eq!(
        (&after["checks"], &after["allowed"], &after["denied"], &after["logged"]),
        (&json!(13), &json!(6), &json!(7), &json!(0))
    );
    assert!(after["allow_rate"].as_f64().is_some_and(|rate| (rate - 6.0 / 13.0).abs() < 1e-9), "{after}");
    let top = after["top_denied"].as_array().expect("a list");
    let names: Vec<&str> = top.iter().filter_map(|of| of["command"].as_str()).collect();
    assert_eq!(names, ["config|get", "keys", "flushall", "get"]);
    assert_eq!((&top[0]["denied"], &after["denied_commands"]), (&json!(3), &json!(4)));
    let of = |kind: &str| ["checks", "allowed", "denied"].map(|field| after["breakdown"][kind][field].as_u64());
    assert_eq!(of("read"), [Some(5), Some(2), Some(3)]);
    assert_eq!(of("write"), [Some(2), Some(1), Some(1)]);
    assert_eq!(of("execute"), [Some(2), Some(2), Some(0)]);
    assert_eq!(of("admin"), [Some(4), Some(1), Some(3)]);
    for alias in ["/api/v1/dashboard/policy-stats", "/api/m1/dashboard/policy", "/api/m1/dashboard/policy-stats"] {
        let mut page = proxy.get(alias).json();
        page["at"] = after["at"].clone();
        assert_eq!(page, after, "{alias}");
    }
    assert_eq!(proxy.metric("nearside_policy_decisions_total{decision=\"denied\",kind=\"admin\"}"), 3.0);
    assert_eq!(proxy.metric("cache_errors_total{impl=\"l1\",error_type=\"policy\"}"), 7.0);
    let stats = proxy.stats();
    let stat = |name: &str| stats[name].as_str();
    assert_eq!((stat("policy_mode"), stat("policy_denied"), stat("policy_logged")), ("enforce", "7", "0"));
}

#[test]
fn without_a_policy_nothing_is_counted() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis);
    run(&mut proxy.client(), "GET k");
    let page = section(&proxy);
    assert_eq!((&page["mode"], &page["checks"], &page["allow_rate"]), (&json!("off"), &json!(0), &Value::Null));
    assert_eq!(run(&mut proxy.client(), "NEARSIDE EXPLAIN FLUSHALL").get("policy"), Reply::bulk("allowed"));
}

#[test]
fn what_is_not_enforced_is_counted_and_logged_and_runs() {
    let redis = Redis::start();
    let overrides = json!([{"client": "strict", "enforce": true}]);
    let proxy = denying(&redis, &["flushall", "~secret:*"])
        .set("commands.enforce", false)
        .set("commands.overrides", overrides)
        .start();
    let mut client = proxy.client();
    assert_eq!(run(&mut client, "SET secret:key value"), Reply::ok());
    let replies = client.pipeline(&["MULTI", "FLUSHALL", "EXEC"].map(words).each_ref().map(Vec::as_slice));
    assert_eq!(replies[2], Reply::Array(vec![Reply::ok()]));
    let logged = Reply::bulk("logged (by commands.deny: flushall)");
    assert_eq!(run(&mut client, "NEARSIDE EXPLAIN FLUSHALL").get("policy"), logged);
    run(&mut client, "CLIENT SETNAME strict");
    assert_eq!(run(&mut client, "FLUSHALL"), noperm("flushall", "commands.deny: flushall"));
    let denied = Reply::bulk("denied (by commands.deny: ~secret:*)");
    assert_eq!(run(&mut client, "NEARSIDE EXPLAIN GET secret:x").get("policy"), denied);
    let page = section(&proxy);
    assert_eq!((&page["logged"], &page["denied"]), (&json!(2), &json!(1)));
    let flushall = page["top_denied"].as_array().and_then(|top| top.iter().find(|of| of["command"] == "flushall"));
    assert_eq!(flushall.map(|of| (of["denied"].as_u64(), of["logged"].as_u64())), Some((Some(1), Some(1))));
    proxy.wait_logged("command policy: set would be denied by commands.deny: ~secret:*");
    // Neither keys nor values.
    assert!(!proxy.logged("secret:key") && !proxy.logged("value"));
}

#[test]
fn a_flood_of_refusals_is_a_line_a_second() {
    let redis = Redis::start();
    let proxy = denying(&redis, &["flushall"]).start();
    let mut client = proxy.client();
    let started = std::time::Instant::now();
    let flood = vec![&["FLUSHALL"][..]; 2000];
    client.pipeline(&flood);
    assert_eq!(section(&proxy)["denied"], json!(2000));
    proxy.wait_logged("command policy: flushall denied by commands.deny: flushall");
    let lines = proxy.count_logged("command policy:");
    assert!(lines as u64 <= 1 + started.elapsed().as_secs(), "{lines}");
}
