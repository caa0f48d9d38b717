//! The dashboard page in a real Chromium, by tests/browser/page.mjs: one test a part of it. Where Chromium or its driver is
//! missing this is a visible skip; tests/run installs both, and then a driver that is missing is a failure.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::json;

use crate::clients::installed;
use crate::support::{Proxy, Redis, holds};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// What it is called by distributions.
const CHROMIUM: [&str; 3] = ["chromium", "chromium-browser", "google-chrome-stable"];

fn chromium() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs: Vec<PathBuf> = std::env::split_paths(&path).collect();
    CHROMIUM.iter().flat_map(|name| dirs.iter().map(move |dir| dir.join(name))).find(|file| file.is_file())
}

/// A name that a page which makes markup of it would run.
const EVIL_RULE: &str = "<img src=x onerror=window.pwned=1>";

fn run(part: &str) {
    let driver = installed("node/node_modules/playwright-core");
    let has_driver = driver.exists();
    assert!(has_driver || std::env::var_os("NEARSIDE_TEST_CLIENTS").is_none(), "{} is not there", driver.display());
    let Some(chromium) = chromium().filter(|_| has_driver) else {
        holds(false, "the page in a browser (chromium or playwright-core is missing; tests/run installs them)");
        return;
    };
    let redis = Redis::builder().tcp().start();
    let proxy = Proxy::to(&redis)
        .tcp()
        .set("coherence.max_staleness", "60s")
        .set("commands.deny", json!(["flushall"]))
        // The load's errors and what it asks for are an alert, a candidate, slow and have a price.
        .set("alerts", json!({"error_rate": 0.001, "for": "1s", "min_requests_per_minute": 10}))
        .set("costs", json!({"currency": "EUR", "per_million_requests": 150, "per_gib": 0.09}))
        .set("observe.candidates.min_per_minute", 10)
        .set("observe.slow_log", "1ms")
        .set(
            "rules",
            json!([
                {"pattern": "user:*", "name": "users"},
                {"pattern": "item:*", "name": EVIL_RULE, "ttl": "5m"},
                {"pattern": "price:*", "name": "prices", "ttl": "5s", "rollout": 50, "cost_per_miss": 0.001},
                {"pattern": "seen:*", "name": "seen", "mode": "observe"},
            ]),
        )
        .start();
    let (host, port) = (proxy.address().ip().to_string(), proxy.address().port().to_string());
    let output = Command::new("node")
        .arg(Path::new(ROOT).join("tests/browser/page.mjs"))
        .args([&host, &port, &proxy.http_address().port().to_string()])
        .arg(chromium)
        .arg(part)
        .current_dir(ROOT)
        .env("NEARSIDE_NODE_DIR", installed("node"))
        .stdin(Stdio::null())
        .output()
        .expect("node");
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    println!("{out}");
    assert!(output.status.success(), "{part} ({}):\n{out}{err}", output.status);
    assert!(out.lines().any(|line| line.starts_with("ok ")), "nothing was checked:\n{out}{err}");
}

#[test]
fn the_page_is_turned_off_by_configuration_and_its_figures_stay() {
    let redis = Redis::start();
    let proxy = Proxy::to(&redis).set("http.dashboard", false).start();
    for path in ["/", "/page/main.js"] {
        let answer = proxy.get(path);
        assert_eq!((answer.status, &answer.json()["error"]["code"]), (404, &json!("dashboard_off")), "{path}");
        assert!(answer.body.contains("http.dashboard: false"), "{}", answer.body);
    }
    assert_eq!(proxy.get("/api/v1/dashboard").status, 200);
}

#[test]
fn the_page_is_of_its_own_origin_and_asked_for_anew() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis);
    let page = proxy.get("/");
    assert_eq!((page.status, page.header("cache-control").as_deref()), (200, Some("no-cache")));
    assert_eq!(page.header("content-type").as_deref(), Some("text/html; charset=utf-8"));
    let policy = page.header("content-security-policy").expect("a policy");
    assert!(policy.starts_with("default-src 'none'; script-src 'self'; style-src 'self'"), "{policy}");
    // Each file that it names is there, as what it is.
    let named = page.body.split('"').filter(|word| word.starts_with("/page/"));
    let mut seen = 0;
    for path in named {
        let file = proxy.get(path);
        let kind = match Path::new(path).extension().and_then(|end| end.to_str()) {
            Some("js") => "text/javascript; charset=utf-8",
            Some("css") => "text/css; charset=utf-8",
            _ => "image/svg+xml",
        };
        assert_eq!((file.status, file.header("content-type").as_deref()), (200, Some(kind)), "{path}");
        assert_eq!(file.header("x-content-type-options").as_deref(), Some("nosniff"));
        seen += 1;
    }
    assert!(seen > 10, "{}", page.body);
}

#[test]
fn every_tab_shows_under_load_what_the_api_says() {
    run("tabs");
}

#[test]
fn keyboards_phones_the_dark_and_hostile_names() {
    run("people");
}

#[test]
fn a_lost_stream_is_said_and_comes_back() {
    run("lost");
}
