//! The dashboard and the alert rules in `config/` are about what a sidecar exports: every expression of both is put to a real
//! Prometheus that scrapes a sidecar at work, and the rules have unit tests of their own.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::Duration;

use regex::Regex;
use serde_json::{Value, json};

use crate::support::prometheus::{Answer, Prometheus, installed, promtool};
use crate::support::{Proxy, Redis, eventually};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
const DASHBOARD: &str = "config/grafana/nearside.json";
const ALERTS: &str = "config/prometheus/alerts.yaml";

/// A scrape a second, three for a rate, and Prometheus's own start, on a machine that has other things to do.
const LOADED: Duration = Duration::from_secs(60);

#[test]
fn the_alert_rules_are_right_and_fire_when_they_shall() {
    if !installed() {
        return;
    }
    for args in [&["check", "rules", ALERTS][..], &["test", "rules", "tests/prometheus/alerts_test.yaml"]] {
        let output = promtool(args);
        let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "promtool {args:?}: {said}");
    }
}

/// Every rule has a unit test, and its runbook is a heading that exists.
#[test]
fn every_alert_has_a_test_and_a_page() {
    let (rules, tests, page) = (read(ALERTS), read("tests/prometheus/alerts_test.yaml"), read("docs/monitoring.md"));
    let names: Vec<&str> = rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    assert!(names.len() >= 9, "{names:?}");
    for name in names {
        assert!(tests.contains(&format!("- alertname: {name}\n")), "no unit test of {name}");
        let anchor = name.to_lowercase();
        assert!(rules.contains(&format!("runbook_url: docs/monitoring.md#{anchor}\n")), "no runbook of {name}");
        assert!(
            page.lines().any(|line| line.trim_start_matches('#').trim() == name && line.starts_with('#')),
            "{name}"
        );
    }
}

#[test]
fn every_expression_has_data_from_a_sidecar_at_work() {
    if !installed() {
        return;
    }
    let redis = Redis::start();
    let proxy = Proxy::to(&redis)
        .set("observe.slow_log", "1ms")
        .set("commands.deny", json!(["flushall"]))
        .set("rules", json!([{"name": "users", "pattern": "user:*"}, {"pattern": "*"}]))
        .start();
    let load = Load::on(&proxy);
    let prometheus = Prometheus::scraping(&proxy, &[&Path::new(ROOT).join(ALERTS)]);
    eventually(
        LOADED,
        "a rate over three scrapes",
        || matches!(prometheus.query("count_over_time(nearside_build_info[1h]) > 3"), Some(Answer::Series(s)) if !s.is_empty()),
    );
    let exported: BTreeSet<String> = names(&prometheus);
    let dashboard = serde_json::from_str(&read(DASHBOARD)).expect("JSON");
    let expressions = expressions(&dashboard);
    assert!(expressions.len() > 80, "{} expressions", expressions.len());
    for (panel, expression) in &expressions {
        check(&prometheus, &exported, panel, expression);
    }
    rules_are_evaluated(&prometheus, &exported);
    load.end();
}

/// It parses, names only what is exported, and has data.
fn check(prometheus: &Prometheus, exported: &BTreeSet<String>, panel: &str, expression: &str) {
    let expression = filled_in(expression);
    let named = metrics(&expression);
    let unknown: Vec<&String> = named.difference(exported).collect();
    assert!(unknown.is_empty(), "{panel}: no family is called {unknown:?}");
    let has_data = || match prometheus.query(&expression) {
        Some(Answer::Series(series)) => !series.is_empty(),
        Some(Answer::Refused(why)) => panic!("{panel}: {expression}: {why}"),
        None => false,
    };
    eventually(LOADED, &format!("data for {panel:?}: {expression}"), has_data);
}

/// Each rule has been evaluated without an error, and none but what holds fires.
fn rules_are_evaluated(prometheus: &Prometheus, exported: &BTreeSet<String>) {
    let rules = || {
        let answer = prometheus.get("/api/v1/rules").unwrap_or_default();
        answer["data"]["groups"][0]["rules"].as_array().cloned().unwrap_or_default()
    };
    let evaluated = |rules: Vec<Value>| rules.len() >= 9 && rules.iter().all(|rule| rule["health"] == "ok");
    eventually(LOADED, "every rule to be evaluated", || evaluated(rules()));
    for rule in rules() {
        let query = rule["query"].as_str().expect("its expression");
        let unknown: Vec<String> = metrics(query).into_iter().filter(|name| !exported.contains(name)).collect();
        assert!(unknown.is_empty() && !metrics(query).is_empty(), "{}: {unknown:?}", rule["name"]);
        assert_ne!(rule["state"], "firing", "{rule}");
    }
}

/// The names of all series that were scraped.
fn names(prometheus: &Prometheus) -> BTreeSet<String> {
    let answer = prometheus.get("/api/v1/label/__name__/values").expect("an answer");
    let names = answer["data"].as_array().expect("names").iter().filter_map(Value::as_str).map(str::to_owned);
    let names: BTreeSet<String> = names.collect();
    assert!(names.len() > 60, "{names:?}");
    names
}

/// The metrics that an expression names: what selects series, and what reads like one of ours.
fn metrics(expression: &str) -> BTreeSet<String> {
    let named = Regex::new(r"([a-zA-Z_:][a-zA-Z0-9_:]*)\s*\{|\b((?:cache|nearside|process)_[a-z0-9_]+|up)\b")
        .expect("a pattern");
    let found = named.captures_iter(expression).filter_map(|found| found.get(1).or(found.get(2)));
    found.map(|name| name.as_str().to_owned()).collect()
}

/// As Grafana fills it in.
fn filled_in(expression: &str) -> String {
    let all = expression.replace("$job", ".*").replace("$instance", ".*");
    all.replace("$__rate_interval", "10s").replace("$__range", "1m")
}

/// Of all panels, and of the variables, each with the title of its place.
fn expressions(dashboard: &Value) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let mut found = Vec::new();
    for panel in list(&dashboard["panels"]) {
        let targets = list(&panel["targets"]);
        assert_eq!(targets.is_empty(), panel["type"] == "row", "{}", panel["title"]);
        found.extend(targets.iter().map(|target| (text(&panel["title"]), text(&target["expr"]))));
    }
    let variables = list(&dashboard["templating"]["list"]);
    assert_eq!(variables.iter().map(|v| text(&v["name"])).collect::<Vec<_>>(), ["datasource", "job", "instance"]);
    for variable in variables.iter().filter(|variable| variable["type"] == "query") {
        let query = text(&variable["query"]["query"]);
        let inner = query.strip_prefix("label_values(").and_then(|q| q.rsplit_once(", ")).expect("label_values");
        found.push((text(&variable["name"]), inner.0.to_owned()));
    }
    found
}

fn read(path: &str) -> String {
    std::fs::read_to_string(Path::new(ROOT).join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// A client that does a little of everything, until it is told to stop.
struct Load {
    over: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Load {
    fn on(proxy: &Proxy) -> Load {
        let (over, mut client) = (Arc::new(AtomicBool::new(false)), proxy.client());
        let stop = over.clone();
        let thread = std::thread::spawn(move || {
            for round in 0_u64.. {
                if stop.load(Relaxed) {
                    return;
                }
                let (key, session) = (format!("user:{}", round % 50), format!("session:{round}"));
                for words in [
                    &["SET", &key, "v"][..],
                    &["GET", &key],
                    &["GET", &key],
                    &["MGET", &key, &session],
                    &["PTTL", &key],
                    &["EVAL", "return 1", "0"],
                    &["FLUSHALL"],
                    &["PING"],
                ] {
                    client.cmd(words);
                }
                // A few hundred commands a second are load enough for rates, on cores that others need.
                std::thread::park_timeout(Duration::from_millis(20));
            }
        });
        Load { over, thread }
    }

    fn end(self) {
        self.over.store(true, Relaxed);
        self.thread.thread().unpark();
        self.thread.join().expect("the load goes on to the end");
    }
}
