//! Health and alerts against a real server: what fires and what does not, and what configurations are refused.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::support::{Client, PATIENCE, Proxy, Redis, Reply, eventually, http, temp_dir};

fn proxy(redis: &Redis) -> crate::support::proxy::Builder {
    Proxy::to(redis).set("alerts.for", "1s").set("upstream.retry.max_delay", "100ms")
}

fn alert(proxy: &Proxy, name: &str) -> Option<Value> {
    let all = proxy.get("/api/v1/alerts").json();
    all["items"].as_array().expect("a list").iter().find(|item| item["name"] == name).cloned()
}

fn is(proxy: &Proxy, name: &str, state: &str) -> bool {
    alert(proxy, name).is_some_and(|alert| alert["state"] == state)
}

fn health(proxy: &Proxy) -> Value {
    proxy.get("/api/v1/dashboard/health").json()
}

fn check(health: &Value, name: &str) -> Value {
    let all = health["checks"].as_array().expect("a list");
    all.iter().find(|check| check["name"] == name).cloned().unwrap_or_else(|| panic!("{name} in {health}"))
}

fn misses(client: &mut Client, from: usize, n: usize) {
    (from..from + n).for_each(|i| drop(client.cmd(&["GET", &format!("none:{i}")])));
}

#[test]
fn a_lost_upstream_is_critical_and_an_alert_until_it_is_back() {
    let mut redis = Redis::start();
    let proxy = proxy(&redis).start();
    eventually(PATIENCE, "all is well", || health(&proxy)["status"] == "healthy");
    let body = health(&proxy);
    assert_eq!(body["checks"].as_array().map(Vec::len), Some(10));
    assert!(body["uptime_ms"].as_u64().is_some() && body["rss_bytes"].as_u64() > Some(1 << 20), "{body}");
    // Coherence may have taken more than a moment to be proved at first.
    eventually(PATIENCE, "no alert", || !is(&proxy, "coherence_lost", "firing"));
    let alerts = || {
        let told = proxy.get("/api/v1/events/recent").json();
        told["events"].as_array().expect("a list").iter().filter(|event| event["kind"] == "alert").count()
    };
    let before = alerts();
    redis.stop();
    eventually(PATIENCE, "critical", || health(&proxy)["status"] == "critical");
    let upstream = check(&health(&proxy), "upstream");
    assert_eq!((upstream["status"].as_str(), upstream["value"].as_f64()), (Some("critical"), Some(0.0)), "{upstream}");
    assert!(upstream["message"].as_str().is_some_and(|text| text.starts_with("down: ")), "{upstream}");
    eventually(PATIENCE, "the alert", || is(&proxy, "upstream_down", "firing"));
    assert_eq!(proxy.metric("nearside_alert_active{alert=\"upstream_down\"}"), 1.0);
    assert_eq!(proxy.metric("nearside_health{status=\"critical\"}"), 1.0);
    assert!(proxy.logged("alert upstream_down: upstream is down"));
    assert!(!is(&proxy, "coherence_lost", "firing"), "one cause, one alert");
    // A process that answers is alive, and takes commands.
    assert_eq!(proxy.get("/health/live").status, 200);
    let plain = proxy.get("/health");
    assert_eq!((plain.status, &plain.json()["health"]), (200, &Value::from("critical")));
    redis.restart();
    eventually(PATIENCE, "its end", || is(&proxy, "upstream_down", "resolved"));
    eventually(PATIENCE, "all is well again", || health(&proxy)["status"] == "healthy");
    assert_eq!(proxy.metric("nearside_alert_active{alert=\"upstream_down\"}"), 0.0);
    assert_eq!(proxy.metric("nearside_alerts_total{alert=\"upstream_down\"}"), 1.0);
    assert_eq!(alerts() - before, 2, "raised and over");
    let m1 = proxy.get("/api/m1/dashboard/health").json();
    assert_eq!(m1["status"], "healthy");
}

/// The lost upstream is the clock: when its alert fires, one that had as much reason before would have fired as well.
#[test]
fn a_low_hit_rate_is_an_alert_with_traffic_and_none_without() {
    let mut redis = Redis::start();
    let (busy, idle) = (proxy(&redis).start(), proxy(&redis).start());
    misses(&mut busy.client(), 0, 150);
    misses(&mut idle.client(), 0, 50);
    eventually(PATIENCE, "the alert", || is(&busy, "hit_rate", "firing"));
    let fired = alert(&busy, "hit_rate").expect("it fires");
    assert_eq!(
        (&fired["severity"], &fired["threshold"], &fired["unit"]),
        (&"warning".into(), &0.6.into(), &"share".into())
    );
    assert_eq!((fired["value"].as_f64(), &fired["resolved"]), (Some(0.0), &Value::Null));
    let body = health(&busy);
    assert_eq!((&body["status"], &check(&body, "hit_rate")["status"]), (&"degraded".into(), &"degraded".into()));
    assert_eq!(check(&body, "alerts")["value"], 1.0);
    redis.stop();
    eventually(PATIENCE, "the idle one's clock", || is(&idle, "upstream_down", "firing"));
    assert_eq!(alert(&idle, "hit_rate"), None);
    assert_eq!(check(&health(&idle), "hit_rate")["status"], "healthy");
}

/// Its client has an OK, so nobody but an alert can say that the write is not there.
#[test]
fn an_acknowledged_write_that_upstream_refuses_is_critical_at_once() {
    let redis = Redis::start();
    let rules = serde_json::json!([{"name": "behind", "pattern": "b:*", "write": "behind"}]);
    let proxy = proxy(&redis).set("rules", rules).start();
    let mut c = proxy.client();
    assert_eq!(c.cmd(&["SET", "b:good", "1"]), Reply::ok());
    eventually(PATIENCE, "the write", || redis.cmd(&["GET", "b:good"]) == Reply::bulk("1"));
    assert_eq!(alert(&proxy, "queue_failed"), None);
    redis.cmd(&["ACL", "SETUSER", "default", "-set"]);
    assert_eq!(c.cmd(&["SET", "b:bad", "1"]), Reply::ok());
    eventually(PATIENCE, "the alert", || is(&proxy, "queue_failed", "firing"));
    let raised = alert(&proxy, "queue_failed").expect("the alert");
    assert_eq!((raised["severity"].as_str(), raised["value"].as_f64()), (Some("critical"), Some(1.0)), "{raised}");
    assert_eq!(check(&health(&proxy), "queue")["status"], "degraded");
    proxy.wait_logged("an acknowledged write is lost: upstream refuses it for good: NOPERM");
}

#[test]
fn commands_that_fail_are_an_alert_and_a_reload_changes_the_threshold() {
    let redis = Redis::start();
    let dir = temp_dir();
    let file = dir.path().join("nearside.yaml");
    let write = |rate: &str| {
        let text = format!(
            "upstream: {{url: '{}'}}\nhttp: {{listen: ['127.0.0.1:0']}}\nalerts: {{for: 1s, error_rate: {rate}}}\n",
            redis.url()
        );
        std::fs::write(&file, text).expect("a file");
    };
    write("0.05");
    let mut proxy = Proxy::to(&redis).file(&file).start();
    let mut client = proxy.client();
    client.cmd(&["LPUSH", "list", "x"]);
    (0..150).for_each(|_| drop(client.cmd(&["INCR", "list"])));
    eventually(PATIENCE, "the alert", || is(&proxy, "error_rate", "firing"));
    eventually(PATIENCE, "critical", || check(&health(&proxy), "error_rate")["status"] == "critical");
    write("1");
    proxy.sighup();
    eventually(PATIENCE, "its end", || is(&proxy, "error_rate", "resolved"));
    write("7");
    proxy.sighup();
    eventually(PATIENCE, "the refusal", || is(&proxy, "reload_failed", "firing"));
    assert_eq!(check(&health(&proxy), "policy")["status"], "degraded");
    write("0.9");
    proxy.sighup();
    eventually(PATIENCE, "a good file", || is(&proxy, "reload_failed", "resolved"));
}

#[test]
fn what_cannot_be_a_threshold_or_a_price_is_refused_with_its_line() {
    for (text, expected) in [
        ("alerts:\n  error_rate: 1.5\n", "2: alerts.error_rate: \"1.5\" is not a share from 0 to 1, for example 0.05"),
        ("alerts:\n  p99: 1s\n  hit_rate: 60%\n", "3: alerts.hit_rate: \"60%\" is not a share from 0 to 1"),
        ("alerts:\n  hit_rate: .nan\n", "2: not valid YAML: non-finite float"),
        ("costs:\n  per_gib: 'NaN'\n", "2: costs.per_gib: \"NaN\" is not a price"),
        ("alerts:\n  p99: 11s\n", "2: alerts.p99: \"11s\" is too large; at most 10s"),
        ("alerts:\n  min_requests_per_minute: 0\n", "2: alerts.min_requests_per_minute: "),
        ("costs:\n  per_gib: -1\n", "2: costs.per_gib: \"-1\" is not a price from 0 to 1000000, for example 0.2"),
        ("costs:\n  per_million_requests: 2e9\n", "2: costs.per_million_requests: \"2e9\" is not a price"),
        ("costs:\n  per_gib: 1000001\n", "2: costs.per_gib: \"1000001\" is not a price"),
        ("costs:\n  currency: 'US $'\n", "2: costs.currency: "),
        (
            "rules:\n- {pattern: 'a:*',\n   cost_per_miss: -0.06}\n",
            "3: rules: a:*: cost_per_miss: \"-0.06\" is not a price",
        ),
        ("rules:\n- {pattern: 'a:*', cost_per_miss: 1001}\n", "2: rules: a:*: cost_per_miss: \"1001\" is not a price"),
    ] {
        let dir = temp_dir();
        let file = dir.path().join("x.yaml");
        std::fs::write(&file, format!("{text}upstream: {{url: 'redis://h'}}\n")).expect("a file");
        let told = refused(&file);
        assert!(told.contains(&format!("x.yaml:{expected}")), "{text}: {told}");
    }
}

fn refused(file: &Path) -> String {
    let mut check = Command::new(env!("CARGO_BIN_EXE_nearside"));
    let output = check.args(["--check-config", "--config"]).arg(file).output().expect("the program");
    assert!(!output.status.success());
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn the_page_of_alerts_is_there_from_the_start() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis);
    let answer = http::get(proxy.http_address(), "/api/v1/alerts").json();
    assert_eq!((&answer["active"], &answer["total"], &answer["items"]), (&0.into(), &0.into(), &serde_json::json!([])));
    for name in ["error_rate", "p99", "hit_rate", "coherence_lost", "upstream_down", "memory", "evictions_thrash"] {
        assert_eq!(proxy.metric(&format!("nearside_alert_active{{alert=\"{name}\"}}")), 0.0);
    }
}

fn costs(proxy: &Proxy) -> Value {
    proxy.get("/api/v1/dashboard/costs").json()
}

/// Of the item of this list that has `value` under `key`.
fn item(costs: &Value, list: &str, key: &str, value: &str) -> Value {
    let all = costs[list]["items"].as_array().expect("a list");
    all.iter().find(|item| item[key] == value).cloned().unwrap_or_else(|| panic!("no {value} in {costs}"))
}

fn sum(costs: &Value, list: &str, figure: &str) -> f64 {
    let all = costs[list]["items"].as_array().expect("a list");
    all.iter().filter_map(|item| item[figure].as_f64()).sum()
}

#[track_caller]
fn close(found: &Value, expected: f64) {
    let found = found.as_f64().expect("a number");
    assert!((found - expected).abs() < 1e-6, "{found}, not {expected}");
}

/// A request is 1, a byte 0.0005, a key of the rule 0.06.
fn priced(redis: &Redis, rule: &Value) -> Proxy {
    let builder = Proxy::to(redis).set("coherence.max_staleness", "60s").set("rules", serde_json::json!([rule]));
    let proxy = builder.set("costs.per_million_requests", 1_000_000).set("costs.per_gib", "536870.912").start();
    // A session's hits are worth what they are at that moment: not before the side port's thread has read the prices.
    eventually(PATIENCE, "the prices", || costs(&proxy)["currency"] == "USD");
    proxy
}

#[test]
fn costs_add_up_exactly_for_what_was_asked() {
    let redis = Redis::start();
    let proxy = priced(&redis, &serde_json::json!({"name": "r", "pattern": "r:*", "cost_per_miss": 0.06}));
    redis.cmd(&["SET", "r:1", "hello"]);
    let mut client = proxy.client();
    // Until it is a hit, each is a request of its own: $5 hello, 11 bytes.
    let mut asked = 0.0;
    eventually(PATIENCE, "a hit", || {
        client.cmd(&["GET", "r:1"]);
        asked += 1.0;
        proxy.stat("hits") > 0.0
    });
    (0..5).for_each(|_| drop(client.cmd(&["GET", "r:1"])));
    let (gets, up) = (proxy.stat("hits"), asked + 5.0 - proxy.stat("hits"));
    // Two keys, one request saved; and a key that upstream does not have: _, 3 bytes.
    client.cmd(&["MGET", "r:1", "r:1"]);
    client.cmd(&["GET", "r:none"]);
    let spent = (up + 1.0) + 0.0005 * (11.0 * up + 3.0) + 0.06 * (up + 1.0);
    let saved = (gets + 1.0) + 0.0005 * 11.0 * (gets + 2.0) + 0.06 * (gets + 2.0);
    let all = costs(&proxy);
    let rule = item(&all, "rules", "rule", "r");
    close(&rule["spent"], spent);
    close(&rule["saved"], saved);
    close(&rule["requests"], up + 1.0 + gets + 1.0);
    // The session is the only one that has asked anything; it has no part in the rest.
    let session = all["sessions"]["items"].as_array().expect("a list").iter().find(|item| item["requests"] != 0);
    let session = session.expect("the client's");
    close(&session["spent"], spent);
    close(&session["saved"], saved);
    // The rest is at least the PTTL of the fill; everything together is the total, and the trend.
    assert!(item(&all, "rules", "rule", "_rest")["spent"].as_f64() > Some(1.0), "{all}");
    close(&all["spent"], sum(&all, "rules", "spent"));
    close(&all["saved"], saved);
    let trend =
        |name: &str| all["trend"][name].as_array().expect("a list").iter().filter_map(Value::as_f64).sum::<f64>();
    close(&all["spent"], trend("spent"));
    close(&all["saved"], trend("saved"));
    assert_eq!(all["trend"]["saved"].as_array().map(Vec::len), Some(60));
    assert_eq!((&all["projection"], &all["currency"]), (&Value::Null, &"USD".into()), "too early for a month");
    assert!(all["assumptions"].as_array().is_some_and(|all| all.len() > 3));
    let metric = proxy.metric("nearside_cost_saved_total{rule=\"r\"}");
    assert!((metric - saved).abs() < 1e-6, "{metric}");
    assert_eq!(proxy.get("/api/m1/dashboard/cost-breakdown").json()["saved"], all["saved"]);
}

#[test]
fn arms_share_their_rules_costs() {
    let redis = Redis::start();
    let rule = serde_json::json!({"name": "r", "pattern": "r:*", "cost_per_miss": 0.5, "rollout": 50});
    let proxy = priced(&redis, &rule);
    let mut client = proxy.client();
    for i in 0..40 {
        redis.cmd(&["SET", &format!("r:{i}"), "v"]);
    }
    eventually(PATIENCE, "hits", || {
        (0..40).for_each(|i| drop(client.cmd(&["GET", &format!("r:{i}")])));
        proxy.stat("hits") >= 20.0
    });
    let all = costs(&proxy);
    let (rule, control) = (item(&all, "rules", "rule", "r"), item(&all, "arms", "arm", "control"));
    close(&rule["spent"], sum(&all, "arms", "spent"));
    close(&rule["saved"], sum(&all, "arms", "saved"));
    assert_eq!(control["saved"], 0.0);
    // $1 v: 7 bytes.
    close(&control["spent"], control["requests"].as_f64().expect("a number") * (1.0 + 0.0035 + 0.5));
    assert!(item(&all, "arms", "arm", "cached")["saved"].as_f64() > Some(20.0));
}
