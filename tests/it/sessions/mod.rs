//! What a session does through the real binary: order, state, and that none of it outlives the client or reaches another.
//! Wherever Redis itself knows the answer, it is asked, and the bytes are compared.

/// The CLIENT command: the sidecar is the server its clients see.
mod client_command;
/// Who a client is, and that no other user's or database's values reach it.
mod identity;
/// Connections that one client after the other uses keep nothing of either.
mod leaks;
/// Replies in the order of their requests, whatever route each takes.
mod pipelines;
/// SUBSCRIBE and its family, MONITOR, and client-side caching asked for by the app.
mod pubsub;
/// MULTI, WATCH, blocking commands, WAIT, scripts that run too long.
mod transactions;

use crate::support::{Client, PATIENCE, Proxy, Redis, Reply, encode, eventually, version};

/// Commands of a script; words without blanks in them.
pub(crate) fn words(line: &str) -> Vec<&str> {
    line.split(' ').collect()
}

#[track_caller]
pub(crate) fn run(client: &mut Client, line: &str) -> Reply {
    client.cmd(&words(line))
}

/// The bytes of the replies to `lines`, sent in one write (where the server may forget a reply: up to what it may forget).
#[track_caller]
pub(crate) fn transcript(client: &mut Client, lines: &[&str]) -> Vec<String> {
    let apart = |next: &&str| version().loses_refusals() && next.split(' ').any(|word| word == "AUTH");
    let mut replies = Vec::new();
    for lines in lines.chunk_by(|_, next| !apart(next)) {
        client.send(&lines.iter().flat_map(|line| encode(&words(line))).collect::<Vec<u8>>());
        replies.extend(lines.iter().map(|_| client.read_reply_raw().escape_ascii().to_string()));
    }
    replies
}

/// Holds the proxy's replies to `lines` against those of a server of its own, byte for byte.
#[track_caller]
pub(crate) fn same_as_redis(redis: &mut Client, proxy: &mut Client, lines: &[&str]) {
    let (expected, got) = (transcript(redis, lines), transcript(proxy, lines));
    for ((line, expected), got) in lines.iter().zip(&expected).zip(&got) {
        assert_eq!(got, expected, "reply to {line:?} in {lines:?}");
    }
}

/// Reads `key` until it comes from the L1.
#[track_caller]
pub(crate) fn warm(proxy: &Proxy, client: &mut Client, key: &str) -> Reply {
    let mut value = Reply::Nil;
    eventually(PATIENCE, &format!("a hit for {key}"), || {
        let before = proxy.stat("hits");
        value = client.cmd(&["GET", key]);
        proxy.stat("hits") > before
    });
    value
}

/// Lines of upstream's CLIENT LIST with `text` in them, without that of the sidecars' channel.
#[track_caller]
pub(crate) fn upstream_clients(redis: &Redis, text: &str) -> Vec<String> {
    let list = redis.cmd(&["CLIENT", "LIST"]).text();
    let lines = list.lines().filter(|line| !line.contains(":channel "));
    lines.filter(|line| line.contains(text)).map(String::from).collect()
}

#[track_caller]
pub(crate) fn wait_upstream(redis: &Redis, text: &str, count: usize) {
    eventually(PATIENCE, &format!("{count} upstream clients with {text:?}"), || {
        upstream_clients(redis, text).len() == count
    });
}
