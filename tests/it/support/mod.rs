//! What every integration test stands on: a real redis-server, the built proxy, a relay and a scripted upstream between
//! them, and a client that sees bytes. Everything lives in a temporary directory of its own, so tests run side by side.
//! Nothing here knows how the proxy works inside.
#![allow(dead_code)] // a toolbox: not each tool has a user in each stage of the product

pub(crate) mod client;
pub(crate) mod fake;
pub(crate) mod http;
pub(crate) mod prometheus;
pub(crate) mod proxy;
pub(crate) mod redis;
pub(crate) mod relay;
pub(crate) mod version;

pub(crate) use client::{Client, Reply, encode, shown};
pub(crate) use fake::Fake;
pub(crate) use proxy::Proxy;
pub(crate) use redis::Redis;
pub(crate) use relay::{Dir, Relay, Scope};
pub(crate) use version::{holds, needs, no_tracking, version};

use std::process::Child;
use std::time::{Duration, Instant};

/// The bound of every wait that should be over at once: generous, because two cores may be shared by many test processes.
pub(crate) const PATIENCE: Duration = Duration::from_secs(15);

/// How often a condition is looked at: often enough that a wait adds nothing to feel, rarely enough to leave the CPU to others.
const POLL: Duration = Duration::from_millis(3);

/// Waits until `condition` holds; fails with `what` when it does not within `deadline`.
#[track_caller]
pub(crate) fn eventually(deadline: Duration, what: &str, mut condition: impl FnMut() -> bool) {
    let found = poll(deadline, || condition().then_some(()));
    assert!(found.is_some(), "not within {deadline:?}: {what}");
}

/// The first `Some` of `attempt` within `deadline`.
pub(crate) fn poll<T>(deadline: Duration, mut attempt: impl FnMut() -> Option<T>) -> Option<T> {
    let end = Instant::now() + deadline;
    loop {
        if let Some(found) = attempt() {
            return Some(found);
        }
        if Instant::now() >= end {
            return None;
        }
        std::thread::sleep(POLL);
    }
}

/// Unix socket paths end at 107 bytes, so the directory's name is short.
pub(crate) fn temp_dir() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("ns").tempdir().expect("a temporary directory")
}

/// The process's id, in the form that rustix sends signals to.
fn rustix_pid(child: &Child) -> rustix::process::Pid {
    let raw = i32::try_from(child.id()).expect("a pid fits i32");
    rustix::process::Pid::from_raw(raw).expect("a child's pid is not 0")
}

/// A child that was reaped already has no pid of its own any more: the signal is then not sent.
fn signal(child: &mut Child, signal: rustix::process::Signal) {
    if let Ok(None) = child.try_wait() {
        let _ = rustix::process::kill_process(rustix_pid(child), signal);
    }
}

/// Ends a child for good and reaps it; also when it is stopped by SIGSTOP.
pub(crate) fn end(child: &mut Child) {
    let _ = child.kill();
    let _ = child.wait();
}
