//! The hazards of COHERENCE.md section 7 that come from faults: links that stall, vanish or break, servers that freeze, are
//! demoted or throw clients out, a sidecar that is stopped. Each test is named after its case there. They judge by what a
//! client can see: a value is too old when it was *asked for* more than B after the write that replaced it was acknowledged.

/// Clients and servers that could take others down with them.
mod bystanders;
/// A lane waits for one command, and nobody else does: the spare connection (C61 to C63).
mod held_up;
/// Hits end when nobody vouches for them, and go on when somebody does.
mod lease;
/// Connections that break, and what becomes of entries and of commands in flight.
mod loss;
/// Upstream gone and back, as clients and operators see it.
mod outage;
/// Races between writers, refreshes and split reads.
mod races;
/// What a server does on its own: eviction, overflow, SWAPDB, expiry, demotion.
mod server;
/// What may be answered while upstream is gone (C71).
mod stale;

use std::time::{Duration, Instant};

use crate::support::{Client, PATIENCE, Proxy, Redis, Relay, Reply, Scope, eventually, proxy};

/// The lane is the first connection the sidecar makes.
const LANE: Scope = Scope::One(0);

/// A sidecar with a relay before its upstream.
struct Stand {
    proxy: Proxy,
    relay: Relay,
    redis: Redis,
}

impl Stand {
    #[track_caller]
    fn start() -> Stand {
        Stand::with(|proxy| proxy)
    }

    /// B for this test.
    #[track_caller]
    fn bound(b: Duration) -> Stand {
        Stand::with(|proxy| within(b, proxy))
    }

    #[track_caller]
    fn with(configure: impl FnOnce(proxy::Builder) -> proxy::Builder) -> Stand {
        let redis = Redis::start();
        let relay = Relay::to(&redis);
        // The lane is the first connection of a sidecar, and the newest after a loss: no canary's comes between.
        let proxy = configure(Proxy::upstream(&relay.url()).set("coherence.canary", "off")).start();
        wait_tracking(&proxy);
        Stand { proxy, relay, redis }
    }
}

fn within(b: Duration, proxy: proxy::Builder) -> proxy::Builder {
    proxy.set("coherence.max_staleness", format!("{}ms", b.as_millis()))
}

#[track_caller]
fn wait_tracking(proxy: &Proxy) {
    eventually(PATIENCE, "a lane that tracks", || {
        proxy.stats().get("coherence").is_some_and(|mode| mode == "tracking") && proxy.stat("lane_epoch") > 0.0
    });
}

/// Reads `key` until a read of it is a hit; what it is then.
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

/// Its reply follows every push that upstream has queued for the lane until now.
#[track_caller]
fn barrier(client: &mut Client) {
    client.cmd(&["EXISTS", "nobody-writes-this"]);
}

/// What an L1 hit on `key` would be refused for, or `yes`; `None`: there is no entry.
#[track_caller]
fn served(client: &mut Client, key: &str) -> Option<String> {
    match client.cmd(&["NEARSIDE", "ENTRY", key]) {
        Reply::Nil => None,
        entry => Some(entry.get("served").text()),
    }
}

/// GETs of `key`, one after the other, until one is not answered within `silence` (its reply is then still to come): when
/// each was sent, and its bytes.
#[track_caller]
fn read_until_silent(client: &mut Client, key: &str, silence: Duration) -> Vec<(Instant, Vec<u8>)> {
    let mut seen = Vec::new();
    let end = Instant::now() + PATIENCE;
    loop {
        let sent = Instant::now();
        assert!(sent < end, "GET {key} is answered still; {} times", seen.len());
        client.send_cmd(&["GET", key]);
        match client.try_read(silence) {
            Some(bytes) => seen.push((sent, bytes)),
            None => return seen,
        }
    }
}

/// All that was seen is `old`, and none of it was asked for after `limit`. At least one: else nothing was tested.
#[track_caller]
fn assert_old_until(limit: Instant, seen: &[(Instant, Vec<u8>)], old: &[u8]) {
    assert!(!seen.is_empty(), "no hit at all");
    for (sent, bytes) in seen {
        assert_eq!(bytes.escape_ascii().to_string(), old.escape_ascii().to_string());
        assert!(*sent <= limit, "the old value was served {:?} too late", *sent - limit);
    }
}

/// How long the tests that wait for an accident last: a few seconds, and longer where `tests/run --all` asks for it.
fn soak(short: Duration, long: Duration) -> Duration {
    if std::env::var_os("NEARSIDE_TEST_LONG").is_some() { long } else { short }
}

const fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

const fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}
