//! The server as a client on the wire sees it, on a port of the kernel's choice.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::Value;

use super::*;
use crate::observe::clock;
use crate::observe::metrics::Metrics;
use crate::observe::reasons::{Coherence, Link, Mode};
use crate::observe::status::Status;

/// Far above what any answer takes: reaching it is a failure, not a wait.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

pub(super) struct Server {
    pub(super) http: Http,
    pub(super) view: Arc<View>,
}

impl Server {
    pub(super) fn start() -> Self {
        Self::with(|_| ())
    }

    pub(super) fn with(change: impl FnOnce(&mut HttpConfig)) -> Self {
        Self::impatient(Timeouts::default(), change)
    }

    pub(super) fn impatient(timeouts: Timeouts, change: impl FnOnce(&mut HttpConfig)) -> Self {
        let view =
            Arc::new(View::new(Arc::new(Metrics::new(":", 100)), Arc::new(Status::new("upstream", Mode::Serve))));
        let mut running = crate::config::Config::for_tests("redis://h");
        running.http.allowed_hosts = vec!["cache.example".to_owned()];
        let mut config = HttpConfig {
            listen: vec![([127, 0, 0, 1], 0).into()],
            max_connections: 8,
            production: false,
            running: Arc::new(Running::new(running.into())),
            orders: mpsc::channel(1).0,
        };
        change(&mut config);
        Self { http: start_with(config, timeouts, view.clone()).unwrap(), view }
    }

    pub(super) fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.http.addresses[0]).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// Sends `request` as it is and reads until the server closes.
    pub(super) fn raw(&self, request: &str) -> String {
        let mut stream = self.connect();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    pub(super) fn ask(&self, method: &str, path: &str) -> (u16, String, String) {
        split(&self.raw(&format!("{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")))
    }

    pub(super) fn get(&self, path: &str) -> (u16, Value) {
        let (status, _, body) = self.ask("GET", path);
        (status, serde_json::from_str(&body).unwrap())
    }

    fn host(&self, host: &str) -> u16 {
        split(&self.raw(&format!("GET /health/live HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"))).0
    }
}

/// (status, head, body)
pub(super) fn split(answer: &str) -> (u16, String, String) {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, head.to_owned(), body.to_owned())
}

#[test]
fn metrics_under_both_names() {
    let server = Server::start();
    server.view.metrics.patterns.hit(server.view.metrics.patterns.id(b"user:1"));
    for path in ["/metrics", "/metrics/prom", "/metrics?name=x"] {
        let (status, head, body) = server.ask("GET", path);
        assert_eq!(status, 200);
        assert!(head.contains("content-type: text/plain; version=0.0.4"), "{head}");
        assert!(body.contains("cache_hits_total{impl=\"l1\",key_pattern=\"user\"} 1\n"));
    }
}

#[test]
fn health_follows_start_and_drain() {
    let server = Server::start();
    let codes = || ["live", "ready", "startup"].map(|probe| server.get(&format!("/health/{probe}")).0);
    assert_eq!(codes(), [200, 503, 503]);
    assert_eq!(server.get("/health").1["status"], "starting");
    server.view.status.set_started();
    assert_eq!(codes(), [200, 200, 200]);
    server.view.status.set_draining();
    assert_eq!(codes(), [200, 503, 200]);
    assert_eq!(server.get("/health").1["status"], "draining");
}

#[test]
fn health_says_what_is_degraded_and_stays_ready() {
    let server = Server::start();
    let status = &server.view.status;
    status.set_started();
    status.set_upstream_down("Connection refused");
    let (code, body) = server.get("/health");
    assert_eq!(code, 200);
    assert_eq!(body["status"], "degraded");
    assert_eq!(body["backend"], "upstream");
    assert_eq!(body["upstream"]["up"], false);
    assert_eq!(body["degraded"][0], "upstream: Connection refused");

    status.set_upstream_up();
    status.set_coherence(Coherence::Tracking, "");
    let body = server.get("/health").1;
    assert_eq!(body["status"], "ok");
    assert_eq!(body["coherence"], "tracking");
    assert_eq!(body["upstream"]["error"], Value::Null);
}

#[test]
fn json_starts_with_version_and_time() {
    let server = Server::start();
    for path in ["/health", "/health/live", "/internal/cache", "/nowhere"] {
        let (_, _, body) = server.ask("GET", path);
        let start = format!("{{\"version\":\"{}\",\"at\":\"", env!("CARGO_PKG_VERSION"));
        assert!(body.starts_with(&start), "{body}");
    }
}

#[test]
fn internal_cache_shows_lanes_and_counts() {
    let server = Server::start();
    let lane = server.view.status.add_lane(2, "app");
    lane.set_link(Link::Live);
    lane.set_epoch(7);
    lane.set_proved_at(clock::now());
    let body = server.get("/internal/cache").1;
    assert_eq!(body["hit_rate"], Value::Null);
    assert_eq!(body["lanes"][0]["db"], 2);
    assert_eq!(body["lanes"][0]["user"], "app");
    assert_eq!(body["lanes"][0]["epoch"], 7);
    assert!(body["lanes"][0]["lease_age_ms"].as_f64().unwrap() >= 0.0);

    let id = server.view.metrics.patterns.id(b"a:1");
    server.view.metrics.patterns.miss(id);
    assert_eq!(server.get("/internal/cache").1["hit_rate"], 0.0);
}

#[test]
fn production_has_no_internal_pages() {
    let server = Server::with(|config| config.production = true);
    let (status, body) = server.get("/internal/cache");
    assert_eq!((status, &body["error"]["code"]), (404, &Value::from("not_found")));
}

#[test]
fn other_paths_are_not_found() {
    let server = Server::start();
    for path in [
        "/page",
        "/page/",
        "/page/../metrics",
        "/page/tests.rs",
        "/metrics/",
        "//metrics",
        "/x/../metrics",
        "/%6detrics",
        "/health/../metrics",
        "/HEALTH",
    ] {
        assert_eq!(server.get(path).0, 404, "{path}");
    }
}

#[test]
fn only_get_and_head() {
    let server = Server::start();
    for method in ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "BREW"] {
        let (status, head, body) = server.ask(method, "/metrics");
        assert_eq!(status, 405, "{method}");
        assert!(head.contains("allow: GET, HEAD"), "{head}");
        assert!(body.contains("method_not_allowed"));
    }
    let (status, head, body) = server.ask("HEAD", "/health/live");
    assert_eq!((status, body.as_str()), (200, ""));
    assert!(head.contains("content-length: "));
}

#[test]
fn a_body_is_refused_and_the_connection_closed() {
    let server = Server::start();
    for framing in ["Content-Length: 5", "Transfer-Encoding: chunked"] {
        let answer = server.raw(&format!("GET /metrics HTTP/1.1\r\nHost: localhost\r\n{framing}\r\n\r\n"));
        assert_eq!(split(&answer).0, 413, "{framing}");
    }
}

#[test]
fn addresses_localhost_and_named_hosts_may_ask() {
    let server = Server::start();
    for host in
        ["127.0.0.1:9380", "10.1.2.3", "[::1]:9380", "[fd00::1]", "LOCALHOST:1", "localhost.", "cache.example:80"]
    {
        assert_eq!(server.host(host), 200, "{host}");
    }
    for host in ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example:80", "[::1].evil", "", "a b"] {
        assert_ne!(server.host(host), 200, "{host}");
    }
    let get = "GET /health/live HTTP/1.1\r\nConnection: close\r\n";
    assert_eq!(split(&server.raw(&format!("{get}\r\n"))).0, 400);
    assert_eq!(split(&server.raw(&format!("{get}Host: localhost\r\nHost: evil.example\r\n\r\n"))).0, 400);
    let absolute = "GET http://evil.example/health/live HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    assert_eq!(split(&server.raw(absolute)).0, 403);
    assert_eq!(split(&server.raw("GET /health/live HTTP/1.0\r\n\r\n")).0, 200);
}

#[test]
fn heads_are_bounded() {
    let server = Server::start();
    let long = server.raw(&format!("GET /health HTTP/1.1\r\nHost: localhost\r\nX: {}\r\n\r\n", "x".repeat(16 * 1024)));
    assert_eq!(split(&long).0, 431);
    let many = server.raw(&format!("GET /health HTTP/1.1\r\nHost: localhost\r\n{}\r\n", "X: y\r\n".repeat(100)));
    assert_eq!(split(&many).0, 431);
    assert_eq!(split(&server.raw("\x16\x03\x01\r\n\r\n")).0, 400);
}

#[test]
fn connections_are_bounded_and_come_free_again() {
    let server = Server::with(|config| config.max_connections = 1);
    let mut first = server.connect();
    first.write_all(b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    first.read_exact(&mut [0; 12]).unwrap();
    let mut refused = String::new();
    server.connect().read_to_string(&mut refused).unwrap();
    assert_eq!(split(&refused).0, 503);
    drop(first);
    let free = || {
        let mut answer = String::new();
        let mut stream = server.connect();
        let asked = stream.write_all(b"GET /health/live HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        asked.and_then(|()| stream.read_to_string(&mut answer)).is_ok() && answer.contains(" 200 ")
    };
    let deadline = std::time::Instant::now() + PATIENCE;
    while !free() {
        assert!(std::time::Instant::now() < deadline, "the place of a closed connection stays taken");
    }
}

#[test]
fn half_a_head_is_not_waited_for_forever() {
    let head = Duration::from_millis(100);
    let server = Server::impatient(Timeouts { head, ..Timeouts::default() }, |_| ());
    for half in ["", "GET /health/live HT", "GET /health/live HTTP/1.1\r\nHost: loc"] {
        let answer = server.raw(half);
        assert!(!answer.contains("200 OK"), "{half:?}: {answer}");
    }
}

/// Asks for far more than the buffers of both ends hold and never reads: the connection's place must come free.
#[test]
fn a_client_that_never_reads_loses_its_connection() {
    let write = Duration::from_millis(300);
    let server = Server::impatient(Timeouts { write, ..Timeouts::default() }, |config| config.max_connections = 1);
    let mut asleep = server.connect();
    asleep.set_write_timeout(Some(PATIENCE)).unwrap();
    let many = "GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(100);
    // Ends when the server has given the connection up; until then it writes, or waits for the server to read on.
    let gone =
        (0..10_000).any(|_| asleep.write_all(many.as_bytes()).is_err_and(|e| e.kind() != io::ErrorKind::WouldBlock));
    assert!(gone, "still served after {PATIENCE:?}");
}

#[test]
fn several_requests_on_one_connection() {
    let server = Server::start();
    let request = "GET /health/live HTTP/1.1\r\nHost: localhost\r\n";
    let answer = server.raw(&format!("{request}\r\n{request}Connection: close\r\n\r\n"));
    assert_eq!(answer.matches("HTTP/1.1 200 OK").count(), 2);
}

#[test]
fn shutdown_closes_idle_connections_and_frees_the_port() {
    let server = Server::start();
    let address = server.http.addresses[0];
    let mut idle = server.connect();
    idle.write_all(b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    idle.read_exact(&mut [0; 12]).unwrap();
    server.http.shutdown();
    let mut rest = Vec::new();
    idle.read_to_end(&mut rest).unwrap();
    assert!(TcpListener::bind(address).is_ok());
}

#[test]
fn both_wildcards_share_a_port() {
    let Ok(probe) = TcpListener::bind("[::1]:0") else {
        return;
    };
    let port = probe.local_addr().unwrap().port();
    drop(probe);
    let all = [([0, 0, 0, 0], port).into(), SocketAddr::from(([0; 16], port))];
    let _v6 = bind(all[1], &all).unwrap();
    let _v4 = bind(all[0], &all).unwrap();
}

#[test]
fn a_taken_address_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let error = bind(address, &[address]).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    assert!(error.to_string().contains(&address.to_string()), "{error}");
}
