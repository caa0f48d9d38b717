//! `upstream.key_prefix`: what is upstream has the prefix, what clients say and see has not; whoever shares the Redis with
//! another prefix is never met. The scripts of the oracle run with a prefix as well (`oracle::modes`).

mod alone;
mod events;
mod replies;
mod shared;
mod tools;

use crate::support::proxy::Builder;
use crate::support::{Client, PATIENCE, Proxy, Redis, Reply, eventually};

fn with(redis: &Redis, prefix: &str) -> Builder {
    Proxy::upstream(&redis.url()).set("upstream.key_prefix", prefix)
}

/// A sidecar with the prefix `app:`; a canary would be one more key of its.
fn app(redis: &Redis) -> Proxy {
    with(redis, "app:").set("coherence.canary", "off").start()
}

/// Sends a line's words; its reply as `Reply` shows itself.
#[track_caller]
fn say(client: &mut Client, line: &str) -> String {
    format!("{:?}", client.cmd(&line.split(' ').collect::<Vec<_>>()))
}

/// Names in a reply, sorted.
#[track_caller]
fn sorted(reply: &Reply) -> Vec<String> {
    let mut names: Vec<String> = reply.items().iter().map(Reply::text).collect();
    names.sort();
    names
}

/// All keys of upstream's database 0.
fn upstream_keys(redis: &Redis) -> Vec<String> {
    sorted(&redis.cmd(&["KEYS", "*"]))
}

/// A client of each protocol.
fn both(proxy: &Proxy) -> [Client; 2] {
    [proxy.client(), proxy.client3()]
}

/// Reads a key until it comes from the L1.
#[track_caller]
fn warm(proxy: &Proxy, client: &mut Client, key: &str) {
    eventually(PATIENCE, "a hit", || {
        let before = proxy.stat("hits");
        client.cmd(&["GET", key]);
        proxy.stat("hits") > before
    });
}
