//! What a client gets while upstream is gone (DESIGN 5), how that is noticed, and how it ends. Each kind of trouble is made
//! with a real server or a relay before it; a scripted upstream only where exact frames matter.

/// What looks like trouble and is an answer: a slow, busy, read-only, full server.
mod answers;
/// Writes that upstream gets behind their reply, by a rule.
mod behind;
/// Each cell of the table, as a client sees it.
mod cells;
/// What the client libraries of applications make of it.
mod clients;
/// How it is noticed that upstream is gone, and that it is back.
mod detect;
/// What was on its way to a server that answers no more.
mod in_flight;
/// What outlives the process.
mod journal;
/// Clients that go on while upstream comes and goes; every reply is judged.
mod load;
/// Queued writes in the other coherence modes, and to servers before 6.2.
mod modes;
/// Upstream's name has no address, or another one.
mod names;
/// Writes that wait for upstream.
mod queue;
/// Everything is read again, and nobody is overrun.
mod recovery;
/// Upstream refuses queued writes, for now or for good.
mod refusals;
/// Queued writes are done, in order and once.
mod replay;
/// Which reads are served, how long, and how that shows.
mod stale;
/// Starting and greeting clients without an upstream.
mod start;
/// Reads by writes, for each kind of trouble.
mod table;

use std::time::Duration;

use crate::support::{Client, PATIENCE, Proxy, Redis, Reply, eventually, proxy};

const UNAVAILABLE: &str = "NEARSIDE upstream unavailable: ";

/// What the breaker is in now.
#[track_caller]
fn state(proxy: &Proxy) -> String {
    proxy.stats()["upstream_state"].clone()
}

#[track_caller]
fn wait_gone(proxy: &Proxy) {
    eventually(PATIENCE, "upstream to be gone", || state(proxy) != "closed");
}

#[track_caller]
fn wait_back(proxy: &Proxy) {
    eventually(PATIENCE, "upstream to be back", || state(proxy) == "closed");
}

/// Reads `key` until it is a hit; what it is then.
#[track_caller]
fn warm(proxy: &Proxy, client: &mut Client, key: &str) -> Reply {
    let mut reply = Reply::Nil;
    eventually(PATIENCE, &format!("a hit on {key}"), || {
        let before = proxy.stat("hits");
        reply = client.cmd(&["GET", key]);
        proxy.stat("hits") > before
    });
    reply
}

/// Asks until upstream itself answers.
#[track_caller]
fn until_answered(client: &mut Client, words: &[&str]) -> Reply {
    let mut reply = Reply::Nil;
    eventually(PATIENCE, &format!("an answer to {words:?}"), || {
        reply = client.cmd(words);
        !reply.is_error()
    });
    reply
}

/// Reconnects soon, so that tests need not wait for it.
fn quick(proxy: proxy::Builder) -> proxy::Builder {
    proxy.set("upstream.retry.max_delay", "100ms")
}

/// A server that keeps its data when it is killed.
fn lasting() -> Redis {
    Redis::builder().args(&["--appendonly", "yes", "--appendfsync", "always"]).start()
}

#[track_caller]
fn refused(reply: &Reply) -> String {
    let text = reply.text();
    assert!(reply.is_error() && text.starts_with(UNAVAILABLE) && text.ends_with(" s)"), "{reply:?}");
    text
}

const fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

const fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}
