//! The side port as a scraper, a kubelet and a developer see it: metrics that move with what clients do, health that
//! follows upstream, and nothing to debug by in production.

use crate::sessions::{run, warm};
use crate::support::{Client, Dir, PATIENCE, Proxy, Redis, Relay, Reply, Scope, eventually, http};

/// The names that dashboards are built on (DESIGN 8).
const REQUIRED: [&str; 8] = [
    "cache_hits_total",
    "cache_miss_total",
    "cache_set_total",
    "cache_del_total",
    "cache_errors_total",
    "cache_invalidate_total",
    "cache_enabled",
    "cache_candidate_requests",
];

#[test]
fn every_required_family_has_a_series_from_the_start() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis);
    let answer = proxy.get("/metrics");
    assert_eq!(answer.status, 200);
    assert!(answer.header("content-type").is_some_and(|t| t.starts_with("text/plain")));
    for name in REQUIRED {
        let has_series = answer.body.lines().any(|line| line.starts_with(&format!("{name}{{")));
        assert!(has_series, "no series of {name}");
        assert!(answer.body.contains(&format!("# TYPE {name} ")), "no type of {name}");
    }
    let families: Vec<&str> =
        answer.body.lines().filter_map(|l| l.strip_prefix("# TYPE ")?.split(' ').next()).collect();
    let alias = proxy.get("/metrics/prom").body;
    assert!(families.iter().all(|name| alias.contains(&format!("# TYPE {name} "))));
}

#[test]
fn counters_move_with_hits_misses_fills_and_invalidations() {
    let redis = Redis::start();
    // Every hit is counted on here, so a busy machine must not cost the lease.
    let proxy = Proxy::to(&redis).set("coherence.max_staleness", "60s").start();
    let mut client = proxy.client();
    redis.cmd(&["MSET", "user:1", "a", "user:2", "b"]);
    warm(&proxy, &mut client, "user:1");
    let hit = "cache_hits_total{impl=\"l1\",key_pattern=\"user\"}";
    let miss = "cache_miss_total{impl=\"l1\",key_pattern=\"user\"}";
    let set = "cache_set_total{impl=\"l1\",key_pattern=\"user\"}";
    let del = "cache_del_total{impl=\"l1\",key_pattern=\"user\"}";
    let names = [hit, miss, set, del];
    let before = names.map(|name| proxy.metric(name));
    let moved = |name: &str| proxy.metric(name) - before[names.iter().position(|n| *n == name).expect("listed")];
    for _ in 0..3 {
        run(&mut client, "GET user:1");
    }
    assert_eq!((moved(hit), moved(miss)), (3.0, 0.0));
    assert_eq!(run(&mut client, "MGET user:1 user:2"), Reply::bulks(&["a", "b"]));
    assert_eq!((moved(hit), moved(miss)), (4.0, 1.0));
    eventually(PATIENCE, "the fill", || moved(set) == 1.0);
    let pushed = proxy.metric("nearside_invalidations_total{source=\"push\"}");
    redis.cmd(&["SET", "user:2", "c"]);
    eventually(PATIENCE, "the eviction", || moved(del) == 1.0);
    assert_eq!(proxy.metric("nearside_invalidations_total{source=\"push\"}"), pushed + 1.0);
    assert_eq!(proxy.metric_sum("cache_candidate_requests"), 0.0, "what is cached is no candidate for it");
    assert_eq!(proxy.stat("hits"), proxy.metric_sum("cache_hits_total"));
    assert_eq!(proxy.stat("misses"), proxy.metric_sum("cache_miss_total"));
}

#[test]
fn the_cache_page_agrees_with_the_metrics() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis);
    let mut client = proxy.client();
    warm(&proxy, &mut client, "k");
    let answer = proxy.get("/internal/cache");
    assert_eq!((answer.status, answer.header("content-type").as_deref()), (200, Some("application/json")));
    let page = answer.json();
    assert_eq!(page["hits"].as_f64(), Some(proxy.stat("hits")));
    assert_eq!(page["misses"].as_f64(), Some(proxy.stat("misses")));
    assert_eq!(page["mode"], "serve");
    assert_eq!(page["coherence"], "tracking");
    assert_eq!(page["lanes"][0]["live"], true);
    assert_eq!(page["lanes"][0]["user"], "default");
    eventually(PATIENCE, "its entry", || proxy.get("/internal/cache").json()["entries"] == 1);
    for field in ["version", "at", "hit_rate", "size_bytes"] {
        assert!(!page[field].is_null(), "{field} in {page}");
    }
}

#[test]
fn in_production_there_is_nothing_to_debug_by() {
    let redis = Redis::start();
    let proxy = Proxy::to(&redis).set("environment", "production").start();
    let answer = proxy.get("/internal/cache");
    assert_eq!(answer.status, 404);
    assert_eq!(answer.json()["error"]["code"], "not_found");
    assert_eq!(proxy.get("/metrics").status, 200);
    assert_eq!(proxy.get("/health/ready").status, 200);
}

#[test]
fn health_follows_upstream_and_stays_ready() {
    let mut redis = Redis::start();
    let proxy = Proxy::start(&redis);
    let health = || proxy.get("/health").json();
    eventually(PATIENCE, "a lane that is proved", || health()["status"] == "ok");
    for path in ["/health/live", "/health/ready", "/health/startup", "/health"] {
        let answer = proxy.get(path);
        assert_eq!((answer.status, answer.json()["status"].as_str()), (200, Some("ok")), "{path}");
    }
    assert_eq!(proxy.metric("nearside_upstream_up"), 1.0);
    redis.stop();
    eventually(PATIENCE, "degraded", || health()["status"] == "degraded" && health()["upstream"]["up"] == false);
    assert!(health()["degraded"].as_array().is_some_and(|all| !all.is_empty()));
    assert!(health()["upstream"]["error"].is_string());
    for path in ["/health/live", "/health/ready", "/health/startup"] {
        assert_eq!(proxy.get(path).status, 200, "{path}");
    }
    assert_eq!(proxy.metric("nearside_upstream_up"), 0.0);
    assert_eq!(proxy.metric("nearside_link_up"), 0.0);
    let error = run(&mut proxy.client(), "GET k").text();
    assert!(error.starts_with("NEARSIDE upstream unavailable: "), "{error}");
    redis.restart();
    eventually(PATIENCE, "ok", || health()["status"] == "ok");
    assert_eq!(proxy.metric("nearside_upstream_up"), 1.0);
    assert!(proxy.metric("nearside_upstream_reconnects_total") >= 1.0);
    assert_eq!(run(&mut proxy.client(), "SET k v"), Reply::ok());
}

#[test]
fn it_starts_and_is_ready_without_an_upstream() {
    let mut redis = Redis::start();
    redis.stop();
    let proxy = Proxy::upstream(&redis.url()).start();
    assert_eq!(proxy.get("/health/ready").status, 200);
    assert_eq!(proxy.get("/health").json()["status"], "degraded");
    let mut client = proxy.client();
    assert!(run(&mut client, "GET k").text().starts_with("NEARSIDE upstream unavailable: "));
    assert_eq!(run(&mut client, "CLIENT SETNAME x"), Reply::ok());
    assert_eq!(run(&mut client, "HELLO 2").get("version"), Reply::bulk("7.0.0"));
    assert!(run(&mut client, "MULTI").text().starts_with("NEARSIDE upstream unavailable: "));
    redis.restart();
    eventually(PATIENCE, "upstream", || run(&mut client, "SET k v") == Reply::ok());
    warm(&proxy, &mut client, "k");
    let says = |client: &mut Client| run(client, "HELLO 2").get("version");
    assert_eq!(says(&mut client), says(&mut redis.client()));
}

#[test]
fn behind_a_password_that_clients_bring_health_is_ok() {
    let redis = Redis::builder().args(&["--requirepass", "secret"]).start();
    let proxy = Proxy::start(&redis);
    let mut client = proxy.client();
    assert_eq!(run(&mut client, "AUTH secret"), Reply::ok());
    warm(&proxy, &mut client, "k");
    eventually(PATIENCE, "ok", || proxy.get("/health").json()["status"] == "ok");
    let lanes = proxy.get("/internal/cache").json()["lanes"].clone();
    assert_eq!(lanes.as_array().map(Vec::len), Some(1), "{lanes}");
}

#[test]
fn gauges_follow_clients_and_pinned_connections() {
    let redis = Redis::start();
    let proxy = Proxy::to(&redis).set("upstream.pinned_idle", 0).start();
    // The harness has connected to see whether it is there.
    eventually(PATIENCE, "it to have gone", || {
        proxy.metric("nearside_clients_total") == 1.0 && proxy.metric("nearside_clients") == 0.0
    });
    let total = proxy.metric("nearside_clients_total");
    let mut clients: Vec<Client> = (0..3).map(|_| proxy.client()).collect();
    for (client, line) in clients.iter_mut().zip(["MULTI", "SUBSCRIBE c", "PING"]) {
        assert!(!run(client, line).is_error(), "{line}");
    }
    assert_eq!(proxy.metric("nearside_clients"), 3.0);
    assert_eq!(proxy.metric("nearside_clients_total"), total + 3.0);
    // Measured now and then only.
    eventually(PATIENCE, "two pinned", || proxy.metric("nearside_pinned_connections") == 2.0);
    assert_eq!(proxy.metric("nearside_pinned_total{why=\"transaction\"}"), 1.0);
    assert_eq!(proxy.metric("nearside_pinned_total{why=\"subscribe\"}"), 1.0);
    drop(clients);
    eventually(PATIENCE, "none", || {
        proxy.metric("nearside_clients") == 0.0 && proxy.metric("nearside_pinned_connections") == 0.0
    });
}

#[test]
fn bypasses_are_counted_by_their_reason() {
    let redis = Redis::start();
    let proxy = Proxy::to(&redis).set("cache.mode", "off").start();
    let mut client = proxy.client();
    for _ in 0..3 {
        run(&mut client, "GET k");
    }
    assert_eq!(proxy.metric("nearside_bypass_total{reason=\"cache_off\"}"), 3.0);
    assert_eq!(proxy.metric_sum("cache_hits_total"), 0.0);
    assert_eq!(proxy.metric_sum("cache_miss_total"), 0.0);
    assert_eq!(proxy.metric("cache_enabled{impl=\"off\"}"), 0.0);
}

#[test]
fn a_slow_upstream_does_not_slow_the_side_port() {
    let redis = Redis::start();
    let relay = Relay::to(&redis);
    let proxy = Proxy::upstream(&relay.url()).start();
    let mut client = proxy.client();
    assert_eq!(run(&mut client, "PING"), Reply::status("PONG"), "its lane is there");
    relay.stall(Scope::All, Dir::Down);
    client.send_cmd(&["GET", "k"]);
    eventually(PATIENCE, "it to wait", || proxy.metric("nearside_upstream_in_flight") > 0.0);
    assert_eq!(proxy.get("/health/live").status, 200);
    assert_eq!(proxy.get("/health/ready").status, 200);
    relay.resume(Scope::All, Dir::Down);
    assert_eq!(client.reply(), Reply::Nil);
}

#[test]
fn what_is_not_there_and_who_may_not_ask_get_json_errors() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis);
    let answer = proxy.get("/nonsense");
    assert_eq!((answer.status, &answer.json()["error"]["code"]), (404, &"not_found".into()));
    let answer = http::try_request(proxy.http_address(), "POST", "/metrics").expect("an answer");
    assert_eq!((answer.status, answer.header("allow").as_deref()), (405, Some("GET, HEAD")));
}
