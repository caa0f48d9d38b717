//! The configuration read again: by order, by signal, because the file has changed; and a bad one, which changes nothing.

use std::os::unix::fs::symlink;

use serde_json::{Value, json};

use super::Stand;
use crate::sessions::{run, warm};
use crate::support::http;
use crate::support::{PATIENCE, Proxy, Redis, Reply, eventually, temp_dir};

const ONE: &str = "rules: [{name: one, pattern: 'one:*'}]\n";
const TWO: &str = "rules: [{name: one, pattern: 'one:*'}, {name: two, pattern: 'two:*'}]\n";

fn list(value: &Value) -> Vec<&str> {
    value.as_array().expect("a list").iter().map(|v| v.as_str().expect("a text")).collect()
}

#[test]
fn a_reload_by_order_puts_into_force_what_can_be_and_names_the_rest() {
    let stand = Stand::with_file(ONE);
    assert_eq!(stand.rules()["generation"], 1);
    stand.write(&format!("{TWO}cache: {{default_ttl: 1m, max_bytes: 5MiB}}\nworkers: 3\n"));
    let done = stand.reload();
    let told = stand.last_reload();
    assert_eq!((&told["changed"], &told["generation"]), (&json!("cache.default_ttl, rules"), &json!("2")));
    assert_eq!(list(&done["needs_restart"]), ["workers", "cache.max_bytes"]);
    assert_eq!(told["needs_restart"], "workers, cache.max_bytes");
    assert_eq!((done["generation"].as_u64(), stand.names()), (Some(2), vec!["one".to_owned(), "two".to_owned()]));
    stand.proxy.wait_logged("need a restart: workers, cache.max_bytes");
    // What runs is what counts: nothing is new now, and the restart is still needed.
    let again = stand.reload();
    assert_eq!((list(&again["changed"]), list(&again["needs_restart"])), (vec![], vec!["workers", "cache.max_bytes"]));
    assert_eq!(again["generation"], 2);
    let shown = stand.proxy.get("/api/v1/config").json();
    assert_eq!(shown["config"]["cache"]["default_ttl"], "1m");
    assert_eq!(shown["config"]["workers"], 1);
    assert!(stand.reloads("ok") >= 2.0);
}

#[test]
fn a_hangup_reads_the_configuration_again() {
    let mut stand = Stand::with_file(ONE);
    std::fs::write(stand.file(), stand.text(TWO)).expect("another text");
    stand.proxy.sighup();
    stand.wait_rules(&["one", "two"]);
    let mut client = stand.proxy.client();
    assert_eq!(run(&mut client, "NEARSIDE EXPLAIN GET two:1").get("rule"), Reply::bulk("two"));
    eventually(PATIENCE, "the event", || {
        let events = stand.proxy.get("/api/v1/events/recent").json();
        let by = |actor: &str| events["events"].as_array().is_some_and(|all| all.iter().any(|e| e["actor"] == actor));
        // Whoever saw it first.
        by("SIGHUP") || by("file")
    });
}

#[test]
fn a_file_that_has_changed_is_read_again() {
    let stand = Stand::with_file(ONE);
    stand.write(TWO);
    stand.wait_rules(&["one", "two"]);
    std::fs::write(stand.file(), stand.text(ONE)).expect("written in place");
    stand.wait_rules(&["one"]);
    // A comment is a change of the file, and none of the configuration.
    let reloads = stand.reloads("ok");
    stand.write(&format!("{ONE}# a comment\n"));
    eventually(PATIENCE, "the reload", || stand.reloads("ok") > reloads);
    let event = stand.proxy.get("/api/v1/events/recent?n=1").json()["events"][0].clone();
    assert_eq!(
        (&event["message"], &event["actor"]),
        (&json!("configuration read again, nothing changed"), &json!("file"))
    );
    assert_eq!(stand.rules()["generation"], 3);
}

/// As Kubernetes mounts a ConfigMap: the file is a link into `..data`, which is a link that changes its target.
#[test]
fn a_config_map_that_is_swapped_is_read_again() {
    let redis = Redis::start();
    let dir = temp_dir();
    let at = |path: &str| dir.path().join(path);
    let url = json!(redis.url());
    let version = |name: &str, rules: &str| {
        std::fs::create_dir(at(name)).expect("a version");
        let rest = "listen: {tcp: []}\nhttp: {listen: ['127.0.0.1:0']}";
        std::fs::write(at(name).join("own.yaml"), format!("upstream: {{url: {url}}}\n{rest}\n{rules}"))
            .expect("its file");
        symlink(name, at("..new")).expect("a link");
        std::fs::rename(at("..new"), at("..data")).expect("swapped");
    };
    version("..1", ONE);
    symlink("..data/own.yaml", at("own.yaml")).expect("a link");
    let proxy = Proxy::upstream(&redis.url()).file(&at("own.yaml")).start();
    version("..2", TWO);
    let names = || super::names(&proxy.get("/api/v1/rules").json());
    eventually(PATIENCE, "the new rules", || names() == ["one", "two"]);
    std::fs::remove_dir_all(at("..1")).expect("the old version is gone");
    assert_eq!(proxy.metric("nearside_config_reloads_total{result=\"ok\"}"), 1.0);
    assert_eq!(proxy.metric("nearside_config_reloads_total{result=\"failed\"}"), 0.0);
}

#[test]
fn a_file_that_is_away_for_a_moment_is_no_change() {
    let stand = Stand::with_file(&format!("{ONE}log: {{level: debug}}\n"));
    std::fs::remove_file(stand.file()).expect("gone");
    stand.proxy.wait_logged("cannot be read just now");
    stand.write(&format!("{TWO}log: {{level: debug}}\n"));
    stand.wait_rules(&["one", "two"]);
    assert_eq!((stand.reloads("ok"), stand.reloads("failed")), (1.0, 0.0));
    // Asked for by somebody, it is an error like any other.
    std::fs::remove_file(stand.file()).expect("gone");
    let answer = stand.send("POST", "/api/v1/reload", "");
    assert_eq!(answer.status, 400, "{}", answer.body);
    assert!(answer.json()["error"]["problems"][0].as_str().is_some_and(|p| p.contains("cannot be read")));
    assert_eq!(stand.names(), ["one", "two"]);
}

#[test]
fn a_bad_file_changes_nothing_and_everybody_can_see_why() {
    let stand = Stand::with_file(ONE);
    let mut client = stand.proxy.client();
    warm(&stand.proxy, &mut client, "one:1");
    let loaded_at = stand.proxy.metric("nearside_config_last_reload_timestamp_seconds");
    assert!(loaded_at > 1.6e9, "{loaded_at}");
    assert_eq!(stand.proxy.metric("nearside_config_last_reload_successful"), 1.0);
    let bad =
        "cache: {mode: off, default_ttl: 5}\nrules: [{name: one, pattern: 'one:*', rollout: 120}, {pattern: '[x'}]\n";
    stand.write(bad);
    eventually(PATIENCE, "the refusal", || stand.reloads("failed") == 1.0);
    assert_eq!(stand.proxy.metric("nearside_config_last_reload_successful"), 0.0);
    assert_eq!(stand.proxy.metric("nearside_config_last_reload_timestamp_seconds"), loaded_at);
    // All problems, in the log and in the answer; in public only where they are.
    for what in ["default_ttl: \"5\" is not a duration", "\"120\" is not a share of the keys", "pattern: \"[x\""] {
        stand.proxy.wait_logged(what);
    }
    let answer = stand.send("POST", "/api/v1/reload", "");
    let problems = answer.json()["error"]["problems"].as_array().map(Vec::len);
    assert_eq!((answer.status, problems), (400, Some(3)), "{}", answer.body);
    let health = stand.proxy.get("/health");
    assert_eq!((health.status, &health.json()["status"]), (200, &json!("degraded")));
    let why = list(&health.json()["degraded"])
        .iter()
        .find(|why| why.starts_with("config: reload failed: "))
        .map(|w| (*w).to_owned());
    assert!(why.as_ref().is_some_and(|why| why.contains("cache.default_ttl") && why.contains("2 more")), "{why:?}");
    // Nothing of it is in force, not even the part that is right.
    assert_eq!(run(&mut client, "NEARSIDE MODE"), Reply::bulk("serve"));
    assert_eq!((stand.names(), stand.rules()["generation"].as_u64()), (vec!["one".to_owned()], Some(1)));
    assert_eq!(run(&mut client, "NEARSIDE EXPLAIN GET one:1").get("in_l1"), Reply::bulk("yes"));
    stand.write(TWO);
    stand.wait_rules(&["one", "two"]);
    assert_eq!(stand.proxy.metric("nearside_config_last_reload_successful"), 1.0);
    eventually(PATIENCE, "health", || stand.proxy.get("/health").json()["degraded"] == json!([]));
}

#[test]
fn what_was_changed_by_hand_is_as_the_file_says_after_a_reload_and_that_is_said() {
    let stand = Stand::with_file(TWO);
    stand.put("/api/v1/rules/one", &json!({"pattern": "one:*", "ttl": "1s"}));
    stand.put("/api/v1/rules/three", &json!({"pattern": "three:*"}));
    stand.delete("/api/v1/rules/two");
    assert_eq!(run(&mut stand.proxy.client(), "NEARSIDE MODE off"), Reply::ok());
    let by_hand = ["cache.mode", "rules: one", "rules: three", "rules: two"];
    assert_eq!(list(&stand.rules()["by_hand"]), by_hand);
    let done = stand.reload();
    assert_eq!(list(&done["undone"]), by_hand);
    assert_eq!(list(&done["changed"]), ["cache.mode", "rules"]);
    stand.proxy.wait_logged("changed by hand, and now as the configuration says again: cache.mode, rules: one");
    assert_eq!((stand.names(), list(&stand.rules()["by_hand"]).len()), (vec!["one".to_owned(), "two".to_owned()], 0));
    assert_eq!(run(&mut stand.proxy.client(), "NEARSIDE MODE"), Reply::bulk("serve"));
}

#[test]
fn the_log_level_the_token_and_the_allowed_hosts_follow_the_file() {
    let stand = Stand::with_file(ONE);
    let mut before = stand.proxy.client();
    run(&mut before, "CLIENT SETNAME before");
    std::fs::write(stand.dir.path().join("token"), "other").expect("another token");
    let file = stand.text(&format!("{ONE}log: {{level: debug}}\n"));
    let file = file.replace("http: {", "http: {allowed_hosts: [Cache.Example], ");
    let host = |name: &str| {
        let head = format!("X-Nothing: 1\r\nHost: {name}\r\n");
        let answer = raw_request(&stand.proxy, &head);
        answer.split(' ').nth(1).map(str::to_owned)
    };
    assert_eq!(host("cache.example").as_deref(), Some("403"));
    std::fs::write(stand.file(), file).expect("another text");
    eventually(PATIENCE, "the reload", || stand.reloads("ok") == 1.0);
    assert_eq!(stand.last_reload()["changed"], "http.allowed_hosts, log.level, http.token_file");
    assert_eq!(host("cache.example").as_deref(), Some("200"));
    assert_eq!(stand.send("POST", "/api/v1/reload", "").status, 401, "the old token");
    let answer = http::send(stand.proxy.http_address(), "POST", "/api/v1/reload", "other", "", "");
    assert_eq!(answer.status, 200, "{}", answer.body);
    // Which is said at that level only.
    std::fs::remove_file(stand.file()).expect("gone");
    stand.proxy.wait_logged("cannot be read just now");
    // A client that came before has no span.
    let mut behind = stand.proxy.client();
    run(&mut behind, "CLIENT SETNAME behind");
    drop((before, behind));
    stand.proxy.wait_logged("name=\"behind\"}: client disconnected");
    assert!(!stand.proxy.logged("name=\"before\""));
}

/// One request with a head of its own.
fn raw_request(proxy: &Proxy, head: &str) -> String {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect(proxy.http_address()).expect("the side port");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    write!(stream, "GET /health/live HTTP/1.1\r\n{head}Connection: close\r\n\r\n").expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    answer
}

/// The layers above the file hold at every reload, as they did at start.
#[test]
fn what_the_environment_says_wins_over_the_file_again() {
    let stand = Stand::with(|builder| builder.env("NEARSIDE_CACHE__DEFAULT_TTL", "7s"));
    let done = stand.reload();
    assert_eq!((list(&done["changed"]).len(), list(&done["needs_restart"]).len()), (0, 0), "{done}");
    assert_eq!(stand.proxy.get("/api/v1/config").json()["config"]["cache"]["default_ttl"], "7s");
}
