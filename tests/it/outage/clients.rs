//! What redis-py, ioredis and node-redis, each with its defaults, make of an outage: the table in docs/outage.md. A script of
//! tests/clients runs the library and takes commands from here, so that upstream can be killed and started in between.

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use super::queue::{queueing, wait_replayed};
use super::{lasting, wait_back, wait_gone, warm};
use crate::clients::{Suite, installed, is_skipped};
use crate::support::{PATIENCE, Proxy, Redis, Reply, end, eventually};

/// No answer of a script takes longer, whatever its library tries.
const ANSWER: Duration = Duration::from_secs(45);

/// A script with its library.
struct Library {
    child: Child,
    stdin: ChildStdin,
    lines: Receiver<String>,
}

impl Library {
    fn start(suite: Suite, address: SocketAddr) -> Library {
        let (script, further) = match suite {
            Suite::RedisPy => ("outage.py", None),
            Suite::Ioredis => ("outage.mjs", Some("ioredis")),
            _ => ("outage.mjs", Some("redis")),
        };
        let mut child = Command::new(suite.interpreter())
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients").join(script))
            .args([address.ip().to_string(), address.port().to_string()])
            .args(further)
            .env("NEARSIDE_NODE_DIR", installed("node"))
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|e| panic!("{script}: {e}"));
        let (tx, lines) = channel();
        let out = BufReader::new(child.stdout.take().expect("its stdout"));
        std::thread::spawn(move || out.lines().map_while(Result::ok).for_each(|line| drop(tx.send(line))));
        let stdin = child.stdin.take().expect("its stdin");
        Library { child, stdin, lines }
    }

    #[track_caller]
    fn ask(&mut self, command: &str) -> String {
        writeln!(self.stdin, "{command}").expect("a script that reads");
        self.lines.recv_timeout(ANSWER).unwrap_or_else(|_| panic!("no answer to {command:?}"))
    }
}

impl Drop for Library {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

/// An outage as a client library lives through it.
struct Outage {
    redis: Redis,
    proxy: Proxy,
    library: Library,
}

impl Outage {
    /// Upstream was there, and is gone now.
    fn begin(suite: Suite, error: &str) -> Outage {
        let mut redis = lasting();
        redis.cmd(&["SET", "cached", "1"]);
        let proxy = queueing(&redis).set("outage.error", error).tcp().start();
        assert_eq!(warm(&proxy, &mut proxy.client(), "cached"), Reply::bulk("1"));
        let mut library = Library::start(suite, proxy.address());
        assert_eq!(library.ask("get cached"), "value 1");
        redis.stop();
        wait_gone(&proxy);
        Outage { redis, proxy, library }
    }

    /// What the library says, and how many of its connections were closed for it.
    #[track_caller]
    fn ask(&mut self, command: &str) -> (String, u32) {
        let closed = || self.proxy.metric("nearside_clients_dropped_total{reason=\"outage\"}") as u32;
        let before = closed();
        let said = self.library.ask(command);
        (said, closed() - before)
    }

    /// Upstream is there again, and has what was queued.
    fn over(&mut self) {
        self.redis.restart();
        wait_replayed(&self.proxy);
        wait_back(&self.proxy);
    }

    /// What was never answered before is answered now, by the same client.
    #[track_caller]
    fn works_again(&mut self) {
        assert_eq!(self.redis.cmd(&["GET", "queued"]), Reply::bulk("v"));
        let mut said = String::new();
        eventually(PATIENCE, "an answer of upstream", || {
            said = self.library.ask("get queued");
            said == "value v"
        });
        assert!(self.library.ask("get miss").to_lowercase().starts_with("value n"), "None or null");
    }
}

const REASON: &str = "NEARSIDE upstream unavailable: ";

/// The name that each has for an error that a server answers, and its word for OK.
fn words(suite: Suite) -> (&'static str, &'static str) {
    match suite {
        Suite::RedisPy => ("ResponseError", "value True"),
        _ => ("SimpleError", "value OK"),
    }
}

fn here(said: &str) -> (String, u32) {
    (said.to_owned(), 0)
}

/// An ordinary error of one command; the connection goes on.
fn with_reply(suite: Suite) {
    if is_skipped(suite) {
        return;
    }
    let (error, ok) = words(suite);
    let mut outage = Outage::begin(suite, "reply");
    assert_eq!(outage.ask("get cached"), here("value 1"), "stale");
    for command in ["get miss", "lpush list x"] {
        let (said, closed) = outage.ask(command);
        assert!(said.starts_with(&format!("error {error}: {REASON}")) && closed == 0, "{command}: {said}");
    }
    assert_eq!(outage.ask("set queued v"), here(ok));
    assert_eq!(outage.ask("get queued"), here("value v"));
    // Whoever connects now is greeted, and answered too.
    assert_eq!(Library::start(suite, outage.proxy.address()).ask("get cached"), "value 1");
    outage.over();
    outage.works_again();
    assert_eq!(outage.redis.cmd(&["EXISTS", "list"]), Reply::Int(0), "a refused write is not sent again");
}

#[test]
fn redis_py_and_replies() {
    with_reply(Suite::RedisPy);
}

#[test]
fn ioredis_and_replies() {
    with_reply(Suite::Ioredis);
}

#[test]
fn node_redis_and_replies() {
    with_reply(Suite::NodeRedis);
}

/// What could be answered is; what not ends the connection `closed` times, and then this is raised.
fn with_close(suite: Suite, raised: &str, closed: u32) {
    if is_skipped(suite) {
        return;
    }
    let mut outage = Outage::begin(suite, "close");
    for command in ["get miss", "lpush list x"] {
        assert_eq!(outage.ask(command), (format!("error {raised}"), closed), "{command}");
        // On the next connection, which was made without being asked for.
        assert_eq!(outage.ask("get cached"), here("value 1"));
    }
    assert_eq!(outage.ask("set queued v"), here(words(suite).1));
    outage.over();
    outage.works_again();
    assert_eq!(outage.redis.cmd(&["EXISTS", "list"]), Reply::Int(0), "nor is it sent again later");
}

/// Ten times again, also a write.
#[test]
fn redis_py_and_the_end_of_connections() {
    with_close(Suite::RedisPy, "ConnectionError: Connection closed by server.", 11);
}

#[test]
fn node_redis_and_the_end_of_connections() {
    with_close(Suite::NodeRedis, "SocketClosedUnexpectedlyError: Socket closed unexpectedly", 1);
}

/// It sends the command again on each new connection, also a write, and what it is asked meanwhile waits behind it.
#[test]
fn ioredis_and_the_end_of_connections() {
    if is_skipped(Suite::Ioredis) {
        return;
    }
    let mut outage = Outage::begin(Suite::Ioredis, "close");
    assert_eq!(outage.ask("get cached"), here("value 1"));
    assert_eq!(outage.ask("set queued v"), here("value OK"));
    let (said, closed) = outage.ask("lpush list x");
    assert!(said == "pending" && closed >= 2, "{said}, {closed} times");
    let (said, closed) = outage.ask("get cached");
    assert!(said == "pending" && closed >= 2, "{said}, {closed} times");
    outage.over();
    assert_eq!(outage.library.ask("settled"), "value 1", "what waited is answered");
    assert_eq!(outage.redis.cmd(&["LLEN", "list"]), Reply::Int(1), "the refused write is done in the end");
    outage.works_again();
}
