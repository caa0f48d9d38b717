//! `/metrics` as Prometheus sees it: promtool finds nothing, a real Prometheus reads it from a sidecar under load, and what
//! is no more is in no scrape. Where Prometheus is not installed the first two say so (`holds`).

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::sessions::warm;
use crate::support::{PATIENCE, Proxy, Redis, Reply, eventually, holds, http, poll, temp_dir};

/// Whether this program of Debian's package `prometheus` is there.
fn has(program: &str) -> bool {
    let version = Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    holds(version.is_ok_and(|status| status.success()), &format!("needs {program}, which is not installed"))
}

/// What `promtool check metrics` says of a scrape, one line each.
fn promtool(scrape: &str) -> Vec<String> {
    let command =
        Command::new("promtool").args(["check", "metrics"]).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = command.expect("promtool");
    child.stdin.take().expect("its input").write_all(scrape.as_bytes()).expect("taken");
    let output = child.wait_with_output().expect("its end");
    String::from_utf8_lossy(&output.stderr).lines().map(str::to_owned).collect()
}

#[test]
fn promtool_finds_nothing_but_the_required_name() {
    if !has("promtool") {
        return;
    }
    let redis = Redis::start();
    let rules = json!([{"pattern": "user:{id}", "tags": ["user:{id}"]}, {"name": "a \"b\" \\ c", "pattern": "q*"}]);
    let proxy = Proxy::to(&redis).set("rules", rules).start();
    let fresh = promtool(&proxy.get("/metrics").body);
    let mut client = proxy.client();
    for key in ["user:1", "q1", "größe:1", "plain", "\u{1}:1"] {
        client.cmd(&["SET", key, "v"]);
        client.cmd(&["GET", key]);
        client.cmd(&["GET", key]);
    }
    client.cmd(&["NEARSIDE", "FLUSH"]);
    let used = promtool(&proxy.get("/metrics").body);
    for said in [fresh, used] {
        assert_eq!(said, ["cache_candidate_requests counter metrics should have \"_total\" suffix"]);
    }
}

/// A Prometheus that scrapes one sidecar five times a second.
struct Prometheus {
    child: Child,
    address: SocketAddr,
    _dir: tempfile::TempDir,
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Prometheus {
    fn of(proxy: &Proxy) -> Prometheus {
        let dir = temp_dir();
        let file = dir.path().join("prometheus.yml");
        let config = json!({
            "global": {"scrape_interval": "200ms", "scrape_timeout": "200ms"},
            "scrape_configs": [{
                "job_name": "nearside",
                "static_configs": [{"targets": [proxy.http_address().to_string()]}],
            }],
        });
        std::fs::write(&file, config.to_string()).expect("a configuration");
        let mut child = Command::new("prometheus")
            .arg(format!("--config.file={}", file.display()))
            .arg(format!("--storage.tsdb.path={}", dir.path().join("data").display()))
            .arg("--web.listen-address=127.0.0.1:0")
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("prometheus");
        let mut lines = BufReader::new(child.stderr.take().expect("its log")).lines();
        let listening = lines.by_ref().map_while(Result::ok).find_map(|line| {
            let (_, address) = line.split_once("msg=\"Listening on\" address=")?;
            address.trim().parse().ok()
        });
        let address = listening.expect("the address that it listens on");
        // Its log is read to the end, so that it never waits for us.
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(drop));
        Prometheus { child, address, _dir: dir }
    }

    /// The value of a query that has one result; none before it has.
    fn value(&self, query: &str) -> Option<f64> {
        let encoded: String = query.bytes().map(|b| format!("%{b:02x}")).collect();
        let answer = http::try_request(self.address, "GET", &format!("/api/v1/query?query={encoded}")).ok()?;
        let answer: Value = serde_json::from_str(&answer.body).ok()?;
        assert_eq!(answer["status"], "success", "{query}: {answer}");
        answer["data"]["result"].as_array()?.first()?["value"][1].as_str()?.parse().ok()
    }

    fn wait(&self, query: &str, wanted: impl Fn(f64) -> bool) {
        let mut last = None;
        let found = poll(2 * PATIENCE, || {
            last = self.value(query);
            last.filter(|value| wanted(*value))
        });
        assert!(found.is_some(), "{query}: {last:?}");
    }
}

#[test]
fn a_real_prometheus_reads_a_sidecar_under_load() {
    if !has("prometheus") {
        return;
    }
    let redis = Redis::start();
    let proxy = Proxy::to(&redis).set("coherence.max_staleness", "60s").start();
    let prometheus = Prometheus::of(&proxy);
    redis.cmd(&["SET", "user:1", "v"]);
    let mut client = proxy.client();
    warm(&proxy, &mut client, "user:1");
    let end = Instant::now() + 2 * PATIENCE;
    let rate = "sum(rate(cache_hits_total{impl=\"l1\",key_pattern=\"user\"}[10s]))";
    while prometheus.value(rate).is_none_or(|rate| rate == 0.0) {
        assert!(Instant::now() < end, "no rate of hits");
        let one: &[&str] = &["GET", "user:1"];
        client.pipeline(&[one; 200]);
    }
    prometheus.wait("up{job=\"nearside\"}", |up| up == 1.0);
    // Nobody asks any more: what it has in the end is what there is.
    let (hits, misses) = (proxy.metric_sum("cache_hits_total"), proxy.metric_sum("cache_miss_total"));
    assert!(hits >= 200.0, "{hits}");
    prometheus.wait("sum(cache_hits_total)", |read| read == hits);
    prometheus.wait("sum(cache_miss_total)", |read| read == misses);
    // EXISTS is not among the commands that are cached.
    (0..3).for_each(|_| drop(client.cmd(&["EXISTS", "user:1"])));
    prometheus.wait("sum(cache_candidate_requests{route=\"user\",method=\"EXISTS\"})", |read| read == 3.0);
    prometheus.wait(
        "histogram_quantile(0.99, sum by (le) (nearside_request_duration_seconds_bucket{result=\"hit\"}))",
        |p99| p99 > 0.0 && p99 < 1.0,
    );
    prometheus.wait("nearside_l1_entries / nearside_l1_max_bytes", |share| share >= 0.0);
    prometheus.wait("process_open_fds < process_max_fds", |open| open > 2.0);
    prometheus.wait("nearside_coherence_mode{mode=\"tracking\"}", |tracking| tracking == 1.0);
}

fn series(scrape: &str) -> usize {
    scrape.lines().filter(|line| !line.starts_with('#')).count()
}

#[test]
fn a_removed_rule_takes_its_series_with_it() {
    let redis = Redis::start();
    let proxy = Proxy::to(&redis)
        .set("rules", json!([{"name": "kept", "pattern": "k*"}, {"name": "gone", "pattern": "g*", "tags": ["t:{1}"]}]))
        .set("http.token_file", token())
        .start();
    let scrape = proxy.get("/metrics").body;
    for line in [
        "cache_hits_total{impl=\"l1\",key_pattern=\"gone\"} 0",
        "cache_set_total{impl=\"l1\",key_pattern=\"kept\"} 0",
        "cache_invalidate_total{impl=\"l1\",tag=\"t:{1}\"} 0",
    ] {
        assert!(scrape.contains(line), "from the start: {line}");
    }
    let before = proxy.stat("hits");
    let mut client = proxy.client();
    client.cmd(&["SET", "g1", "v"]);
    eventually(PATIENCE, "a hit", || {
        client.cmd(&["GET", "g1"]);
        proxy.stat("hits") > before
    });
    let hits = proxy.stat("hits");
    let answer = http::send(proxy.http_address(), "DELETE", "/api/v1/rules/gone", "t0ken", "", "");
    assert_eq!(answer.status, 200, "{}", answer.body);
    let after = proxy.get("/metrics").body;
    assert!(
        !after.contains("key_pattern=\"gone\"") && !after.contains("route=\"gone\"") && !after.contains("tag=\"t:"),
        "{after}"
    );
    assert!(after.contains("key_pattern=\"kept\"") && series(&after) < series(&scrape) + 5);
    assert!(proxy.stat("hits") >= hits, "sums do not shrink");
    let body = r#"{"pattern": "g*"}"#;
    let answer = http::send(proxy.http_address(), "PUT", "/api/v1/rules/gone", "t0ken", "", body);
    assert_eq!(answer.status, 200, "{}", answer.body);
    let again = proxy.metric("cache_hits_total{impl=\"l1\",key_pattern=\"gone\"}");
    assert!(again >= 1.0, "with its counts: {again}");
}

/// A file with the token `t0ken`, for as long as the test process lives.
fn token() -> String {
    static FILE: std::sync::OnceLock<tempfile::NamedTempFile> = std::sync::OnceLock::new();
    let file = FILE.get_or_init(|| {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), "t0ken").expect("a token");
        file
    });
    file.path().display().to_string()
}

#[test]
fn separators_and_places_are_the_configurations() {
    let redis = Redis::start();
    let proxy = Proxy::to(&redis).set("observe.separators", "/|").set("observe.max_key_patterns", 2).start();
    let mut client = proxy.client();
    for key in ["a/1", "b|1", "c:1"] {
        client.cmd(&["GET", key]);
    }
    let scrape = proxy.get("/metrics").body;
    let patterns: Vec<&str> = scrape
        .lines()
        .filter_map(|line| line.strip_prefix("cache_miss_total{impl=\"l1\",key_pattern=\"")?.split('"').next())
        .collect();
    // One place of two is for the first that comes, the other has to be earned.
    assert_eq!(patterns, ["_other", "_plain", "a"]);
    for _ in 0..120 {
        client.cmd(&["DEL", "b|1"]);
        client.cmd(&["GET", "b|1"]);
    }
    assert!(proxy.metric("cache_miss_total{impl=\"l1\",key_pattern=\"b\"}") > 0.0);
}

/// The largest scrape there can be, again and again, while clients are served: all of it is answered, and so are they.
#[test]
fn scrapes_of_thousands_of_series_keep_nobody_waiting() {
    let redis = Redis::start();
    let proxy = Proxy::to(&redis)
        .set("observe.max_key_patterns", 1000)
        .set(
            "rules",
            json!(
                (0..1000)
                    .map(|i| json!({"name": format!("rule-{i}"), "pattern": format!("r{i}:*")}))
                    .collect::<Vec<_>>()
            ),
        )
        .set("coherence.max_staleness", "60s")
        .start();
    let mut client = proxy.client();
    client.cmd(&["SET", "r7:1", "v"]);
    let address = proxy.http_address();
    let scraper = std::thread::spawn(move || (0..10).map(|_| series(&http::get(address, "/metrics").body)).min());
    let mut slowest = Duration::ZERO;
    while !scraper.is_finished() {
        let began = Instant::now();
        assert_eq!(client.cmd(&["GET", "r7:1"]), Reply::bulk("v"));
        slowest = slowest.max(began.elapsed());
    }
    let fewest = scraper.join().expect("no panic").expect("scrapes");
    assert!(fewest > 4000, "{fewest}");
    assert!(slowest < Duration::from_secs(2), "{slowest:?}");
}

/// How many replies were of each size, by the upper bound; null is the last.
fn reply_sizes(proxy: &Proxy) -> Vec<(Option<u64>, u64)> {
    let policy = proxy.get("/api/v1/dashboard/policy").json();
    let sizes = policy["reply_sizes"].as_array().expect("a list").iter();
    sizes.map(|size| (size["le_bytes"].as_u64(), size["count"].as_u64().expect("a count"))).collect()
}

/// A hit, a fetch, a transaction, a message and a value that is streamed, on one worker and on two.
#[test]
fn every_reply_is_counted_by_its_size() {
    for workers in [1, 2] {
        let redis = Redis::start();
        let proxy = Proxy::to(&redis).set("workers", workers).set("coherence.max_staleness", "60s").start();
        redis.cmd(&["MSET", "small", "v", "middle", &"m".repeat(200), "large", &"l".repeat(3 << 20)]);
        let mut client = proxy.client();
        warm(&proxy, &mut client, "small");
        let (before, hits) = (reply_sizes(&proxy), proxy.metric_sum("cache_hits_total"));
        let sum = |what: &str| proxy.metric(&format!("nearside_reply_bytes_{what}"));
        let (count, bytes) = (sum("count"), sum("sum"));
        for line in ["GET small", "GET small", "MGET small small", "PING", "TYPE small", "GET middle", "GET middle"] {
            client.cmd(&line.split(' ').collect::<Vec<_>>());
        }
        // A pipeline's replies are single ones; one that CLIENT REPLY keeps back is none.
        client.pipeline(&[&["GET", "small"], &["TTL", "small"], &["GET", "middle"]]);
        for line in ["MULTI", "GET small", "GET middle", "EXEC", "GET large"] {
            client.cmd(&line.split(' ').collect::<Vec<_>>());
        }
        assert!(proxy.metric_sum("cache_hits_total") >= hits + 4.0, "workers {workers}");
        let grown: Vec<(Option<u64>, u64)> = reply_sizes(&proxy)
            .iter()
            .zip(&before)
            .map(|((bound, now), (_, then))| (*bound, now - then))
            .filter(|(_, grown)| *grown > 0)
            .collect();
        // Small: five before the pipeline, two in it, +OK and two +QUEUED. Middle: three, and what EXEC says.
        assert_eq!(grown, [(Some(64), 10), (Some(256), 4), (Some(4 << 20), 1)], "workers {workers}");
        assert_eq!(sum("count") - count, 15.0);
        let large = f64::from(3 << 20);
        assert!((large + 800.0..large + 1200.0).contains(&(sum("sum") - bytes)), "{}", sum("sum") - bytes);
        assert_eq!(sum("bucket{le=\"+Inf\"}"), sum("count"));
    }
}

#[test]
fn commands_on_a_connection_of_the_clients_own_are_timed_and_their_errors_counted() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis);
    redis.cmd(&["SET", "small", "v"]);
    let counts = || {
        let of = |result: &str| {
            proxy.metric(&format!("nearside_request_duration_seconds_count{{class=\"pinned\",result=\"{result}\"}}"))
        };
        let errors = proxy.get("/api/v1/dashboard/metrics").json()["errors"].as_f64().expect("a number");
        (of("ok"), of("error"), errors)
    };
    assert_eq!(counts(), (0.0, 0.0, 0.0), "there from the start");
    let mut client = proxy.client();
    // +OK, +QUEUED, the array; +OK, an error, +OK; and two that may wait as long as they like.
    let lines = ["MULTI", "GET small", "EXEC", "WATCH small", "LPUSH small x", "UNWATCH", "BLPOP none 0.01"];
    for line in lines.iter().chain(&["BLPOP none 0.02"]) {
        client.cmd(&line.split(' ').collect::<Vec<_>>());
    }
    assert_eq!(counts(), (5.0, 1.0, 1.0));
    let took = proxy.metric("nearside_request_duration_seconds_sum{class=\"pinned\",result=\"ok\"}");
    assert!(took > 0.0 && took < 5.0 * PATIENCE.as_secs_f64(), "{took}");
}
