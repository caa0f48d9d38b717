//! The smoke suites of tests/clients, one test a suite: through Nearside, and against redis alone, so that a suite that
//! is wrong itself is told apart. A library that is missing is a visible skip; tests/run installs them and sets
//! NEARSIDE_TEST_CLIENTS=required, and then it is a failure.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::support::{Proxy, Redis};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Suite {
    RedisPy,
    Ioredis,
    NodeRedis,
    RedisCli,
}

impl Suite {
    pub(crate) fn script(self) -> &'static str {
        match self {
            Suite::RedisPy => "redis_py.py",
            Suite::Ioredis => "ioredis.mjs",
            Suite::NodeRedis => "node_redis.mjs",
            Suite::RedisCli => "redis_cli.sh",
        }
    }

    pub(crate) fn interpreter(self) -> PathBuf {
        match self {
            Suite::RedisPy => installed("venv/bin/python"),
            Suite::Ioredis | Suite::NodeRedis => "node".into(),
            Suite::RedisCli => "bash".into(),
        }
    }

    /// What must be there for the suite to run at all.
    fn missing(self) -> Option<String> {
        let needed = match self {
            Suite::RedisPy => self.interpreter(),
            Suite::Ioredis => installed("node/node_modules/ioredis"),
            Suite::NodeRedis => installed("node/node_modules/redis"),
            Suite::RedisCli => return None,
        };
        (!needed.exists()).then(|| format!("{} is not there", needed.display()))
    }
}

/// Where tests/run puts the libraries.
pub(crate) fn installed(path: &str) -> PathBuf {
    Path::new(ROOT).join("target/clients").join(path)
}

fn run(suite: Suite, address: SocketAddr) {
    let (host, port) = (address.ip().to_string(), address.port().to_string());
    let output = Command::new(suite.interpreter())
        .arg(Path::new(ROOT).join("tests/clients").join(suite.script()))
        .args([host, port])
        .env("NEARSIDE_NODE_DIR", installed("node"))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|e| panic!("{}: {e}", suite.script()));
    let out = String::from_utf8_lossy(&output.stdout);
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{} ({}):\n{out}{err}", suite.script(), output.status);
    assert!(out.lines().any(|line| line.starts_with("ok ")), "nothing was checked:\n{out}{err}");
}

pub(crate) fn is_skipped(suite: Suite) -> bool {
    let Some(missing) = suite.missing() else {
        return false;
    };
    assert!(std::env::var_os("NEARSIDE_TEST_CLIENTS").is_none(), "{missing}");
    eprintln!("SKIPPED {}: {missing}; tests/run installs it", suite.script());
    true
}

fn alone(suite: Suite) {
    if !is_skipped(suite) {
        let redis = Redis::builder().tcp().start();
        run(suite, redis.address());
    }
}

fn through(suite: Suite) {
    if !is_skipped(suite) {
        let redis = Redis::builder().tcp().start();
        let proxy = Proxy::to(&redis).tcp().start();
        run(suite, proxy.address());
    }
}

#[test]
fn redis_py_through_nearside() {
    through(Suite::RedisPy);
}

#[test]
fn redis_py_alone() {
    alone(Suite::RedisPy);
}

#[test]
fn ioredis_through_nearside() {
    through(Suite::Ioredis);
}

#[test]
fn ioredis_alone() {
    alone(Suite::Ioredis);
}

#[test]
fn node_redis_through_nearside() {
    through(Suite::NodeRedis);
}

#[test]
fn node_redis_alone() {
    alone(Suite::NodeRedis);
}

#[test]
fn redis_cli_through_nearside() {
    through(Suite::RedisCli);
}

#[test]
fn redis_cli_alone() {
    alone(Suite::RedisCli);
}
