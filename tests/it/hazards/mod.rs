//! The hazards of COHERENCE.md section 7, each test named after its id: first those of fills, writes, fences, arming and
//! pushes (C01 to C20, C27 to C35) over one upstream. Where frames must be exact the upstream is scripted; where it must be
//! Redis's own doing it is a real server, and a foreign writer works beside the sidecar.
//!
//! A test here shows that an old value is *not* served. So each first proves that it would have been: the entry is there
//! (`NEARSIDE ENTRY` says `served: yes`) before the event that must end it.

mod arming;
mod canary;
mod fences;
mod fills;
mod keyspace;
mod pubsub;
mod pushes;
mod ttl;
mod writes;

use std::time::{Duration, Instant};

use crate::support::fake::Conn;
use crate::support::proxy::Builder;
use crate::support::{Client, Dir, Fake, PATIENCE, Proxy, Redis, Relay, Reply, Scope, eventually};

/// B where a test stalls the lane and nothing may pass for a lapsed lease: longer than the stall, shorter than patience.
const LONG_LEASE: &str = "10s";

/// Long enough for an answer that should not come: a hit takes microseconds.
const QUIET: Duration = Duration::from_millis(120);

/// The lane is the first connection that the sidecar makes.
const LANE: Scope = Scope::One(0);

/// A real upstream behind a relay.
struct Real {
    proxy: Proxy,
    relay: Relay,
    redis: Redis,
}

impl Real {
    #[track_caller]
    fn start() -> Real {
        Real::with(|builder| builder)
    }

    #[track_caller]
    fn with(configure: impl FnOnce(Builder) -> Builder) -> Real {
        let redis = Redis::start();
        let relay = Relay::to(&redis);
        let builder = Proxy::upstream(&relay.url()).set("coherence.max_staleness", LONG_LEASE);
        // Calls and connections are counted here; `modes` is about the canary.
        let builder = builder.set("coherence.canary", "off").set("upstream.info_poll", "0s");
        let proxy = configure(builder).start();
        eventually(PATIENCE, "a lane", || proxy.stats()["coherence"] != "probing");
        assert_eq!(relay.accepted(), 1, "the lane is the first connection");
        Real { proxy, relay, redis }
    }

    /// What upstream says arrives no more: replies and pushes of the lane wait.
    fn stall_lane(&self) {
        self.relay.stall(LANE, Dir::Down);
    }

    fn resume_lane(&self) {
        self.relay.resume(LANE, Dir::Down);
    }

    /// How often upstream has executed a command.
    fn calls(&self, command: &str) -> u64 {
        calls(&self.redis, command)
    }
}

/// A scripted upstream, whose lane is in the test's hands.
struct Scripted {
    lane: Conn,
    proxy: Proxy,
    fake: Fake,
}

impl Scripted {
    #[track_caller]
    fn start() -> Scripted {
        Scripted::over(Fake::start(), |builder| builder)
    }

    #[track_caller]
    fn over(fake: Fake, configure: impl FnOnce(Builder) -> Builder) -> Scripted {
        let builder = Proxy::upstream(&fake.url()).set("coherence.max_staleness", LONG_LEASE);
        // Nothing of the sidecar's own is on the lane, which would be asked for that.
        let builder = builder.set("coherence.canary", "off").set("upstream.info_poll", "0s");
        let proxy = configure(builder).start();
        let lane = fake.lane();
        Scripted { lane, proxy, fake }
    }

    /// Has `client` read `key`, upstream answer `value` without expiry, and the L1 take it.
    #[track_caller]
    fn fill(&mut self, client: &mut Client, key: &str, value: &str) {
        client.send_cmd(&["GET", key]);
        self.lane.expect(&["GET", key]).reply(bulk(value)).expect(&["PTTL", key]).reply(":-1\r\n");
        assert_eq!(client.reply(), Reply::bulk(value));
        wait_served(client, key);
    }

    /// Has `client` read `key` with nothing of it in the L1: upstream must be asked.
    #[track_caller]
    fn miss(&mut self, client: &mut Client, key: &str) {
        client.send_cmd(&["GET", key]);
        self.lane.expect(&["GET", key]);
    }
}

fn bulk(value: &str) -> String {
    format!("${}\r\n{value}\r\n", value.len())
}

fn calls(redis: &Redis, command: &str) -> u64 {
    let stats = redis.cmd(&["INFO", "commandstats"]).text();
    let start = format!("cmdstat_{command}:calls=");
    let count = stats.lines().find_map(|line| line.strip_prefix(&start)?.split(',').next()?.parse().ok());
    count.unwrap_or(0)
}

/// Whether a GET of this client would be a hit now.
#[track_caller]
fn is_served(client: &mut Client, key: &str) -> bool {
    let entry = client.cmd(&["NEARSIDE", "ENTRY", key]);
    entry != Reply::Nil && entry.get("served") == Reply::bulk("yes")
}

/// Whether the L1 has anything of the key for this client, usable or not.
#[track_caller]
fn is_stored(client: &mut Client, key: &str) -> bool {
    client.cmd(&["NEARSIDE", "ENTRY", key]) != Reply::Nil
}

/// The answer to a GET comes before the one to its PTTL, which is what stores.
#[track_caller]
fn wait_served(client: &mut Client, key: &str) {
    eventually(PATIENCE, &format!("{key:?} in the L1"), || is_served(client, key));
}

/// Reads `key`, holds the answer against `value`, and waits until the L1 has it.
#[track_caller]
fn fill(client: &mut Client, key: &str, value: impl Into<Option<&'static str>>) {
    let expected = value.into().map_or(Reply::Nil, Reply::bulk);
    assert_eq!(client.cmd(&["GET", key]), expected);
    wait_served(client, key);
}

/// Sleeps until an instant that the test is about, such as an expiry.
fn sleep_until(when: Instant) {
    std::thread::sleep(when.saturating_duration_since(Instant::now()));
}
