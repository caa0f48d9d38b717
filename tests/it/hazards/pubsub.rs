//! `pubsub` mode: writes that go through any sidecar are announced with the write, C51 to C54 and what a client may notice
//! of it, which is nothing.

use std::time::{Duration, Instant};

use super::{QUIET, calls, fill, is_served, is_stored, wait_served};
use crate::support::proxy::Builder;
use crate::support::{Client, Dir, PATIENCE, Proxy, Redis, Relay, Reply, Scope, eventually, no_tracking};

const LANE: Scope = Scope::One(0);

fn builder(url: &str) -> Builder {
    Proxy::upstream(url).set("coherence.mode", "pubsub").set("coherence.ttl_cap.pubsub", "1h")
}

#[track_caller]
fn started(builder: Builder) -> Proxy {
    let proxy = builder.start();
    wait_pubsub(&proxy);
    proxy
}

#[track_caller]
fn wait_pubsub(proxy: &Proxy) {
    eventually(PATIENCE, "pubsub", || proxy.stats()["coherence"] == "pubsub");
}

/// Two sidecars of one upstream.
fn two() -> (Redis, Proxy, Proxy) {
    let redis = Redis::start();
    let (a, b) = (started(builder(&redis.url())), started(builder(&redis.url())));
    (redis, a, b)
}

/// Until the other sidecar has been told.
#[track_caller]
fn wait_gone(client: &mut Client, key: &str) {
    eventually(PATIENCE, &format!("{key} to be dropped"), || !is_stored(client, key));
}

#[test]
fn every_kind_of_write_is_told_to_the_other_sidecar() {
    let (_redis, a, b) = two();
    let (mut writer, mut reader) = (a.client(), b.client());
    let large = "x".repeat(2 << 20);
    let script = "return redis.call('APPEND', KEYS[1], 'x')";
    let writes: &[&[&[&str]]] = &[
        &[&["SET", "k", "2"]],
        &[&["MSET", "l", "1", "k", "3"]],
        &[&["APPEND", "k", "4"]],
        &[&["DEL", "k"]],
        &[&["EVAL", script, "1", "k"]],
        &[&["MULTI"], &["APPEND", "k", "5"], &["EXEC"]],
        &[&["SET", "k", "6"]],
        &[&["FLUSHALL"]],
        &[&["RPUSH", "k", "1"]],
        &[&["BLPOP", "k", "1"]],
        &[&["SET", "k", "7", "PX", "100000"]],
        &[&["PERSIST", "k"]],
        &[&["RENAME", "k", "k2"]],
        // The last one: large values have a way of their own from then on.
        &[&["SET", "k", &large]],
    ];
    for commands in writes {
        // As it is before, whatever that is: absent, a string, or of a type that GET refuses.
        let before = reader.cmd(&["GET", "k"]);
        if before == Reply::Nil || (!before.is_error() && before.text().len() < 1000) {
            wait_served(&mut reader, "k");
        }
        for command in *commands {
            let reply = writer.cmd(command);
            assert!(!reply.is_error(), "{reply:?}");
        }
        wait_gone(&mut reader, "k");
        assert_eq!(reader.cmd(&["TYPE", "k"]), writer.cmd(&["TYPE", "k"]));
    }
    assert_eq!(a.stat("pending_writes"), 0.0);
}

#[test]
fn a_write_is_one_transaction_with_its_message() {
    let redis = Redis::start();
    let proxy = started(builder(&redis.url()));
    redis.cmd(&["CONFIG", "RESETSTAT"]);
    let mut c1 = proxy.client();
    for i in 0..10 {
        assert_eq!(c1.cmd(&["SET", "k", &i.to_string()]), Reply::ok());
    }
    for command in ["multi", "set", "publish", "exec"] {
        assert_eq!(calls(&redis, command), 10, "{command}");
    }
    assert_eq!(calls(&redis, "get"), 0, "nothing is read back");
}

#[test]
fn the_cheap_form_is_the_write_and_its_message() {
    let redis = Redis::start();
    let proxy = started(builder(&redis.url()).set("coherence.pubsub_atomic", false));
    redis.cmd(&["CONFIG", "RESETSTAT"]);
    let mut c1 = proxy.client();
    assert_eq!(c1.cmd(&["SET", "k", "1"]), Reply::ok());
    assert_eq!(c1.cmd(&["LPUSH", "k", "1"]).text(), redis.cmd(&["LPUSH", "k", "1"]).text());
    eventually(PATIENCE, "both messages", || calls(&redis, "publish") == 2);
    assert_eq!(calls(&redis, "multi"), 0);
}

/// Its own transaction keeps its shape: results, aborts, and what WATCH makes of it.
#[test]
fn a_clients_transaction_is_its_own() {
    let (redis, a, b) = two();
    for mut c1 in [a.client(), a.client3()] {
        let mut reader = b.client();
        redis.cmd(&["SET", "k", "1"]);
        assert!(!reader.cmd(&["NEARSIDE", "INVALIDATE", "KEY", "k"]).is_error(), "a writer past the sidecars");
        fill(&mut reader, "k", "1");
        redis.cmd(&["CONFIG", "RESETSTAT"]);
        assert_eq!(c1.cmd(&["WATCH", "k"]), Reply::ok());
        redis.cmd(&["SET", "k", "1"]);
        c1.cmd(&["MULTI"]);
        assert_eq!(c1.cmd(&["SET", "k", "2"]), Reply::status("QUEUED"));
        assert_eq!(c1.cmd(&["EXEC"]), Reply::Nil, "aborted by WATCH");
        assert_eq!(calls(&redis, "publish"), 0, "and nobody is told of what was not done");
        assert_eq!(c1.cmd(&["MULTI"]), Reply::ok());
        assert_eq!(c1.cmd(&["GET", "k"]), Reply::status("QUEUED"));
        assert_eq!(c1.cmd(&["EXEC"]), Reply::bulks(&["1"]), "nothing is written, so nothing told");
        assert_eq!(calls(&redis, "publish"), 0);
        let all = c1.pipeline(&[&["MULTI"][..], &["INCR", "k"], &["NONSENSE"], &["EXEC"]]);
        assert!(all[3].text().starts_with("EXECABORT"), "{all:?}");
        let all =
            c1.pipeline(&[&["MULTI"][..], &["INCR", "k"], &["LPUSH", "k", "1"], &["GET", "k"], &["EXEC"], &["PING"]]);
        let results = all[4].items();
        assert_eq!((results.len(), &results[0], &results[2]), (3, &Reply::Int(2), &Reply::bulk("2")), "{all:?}");
        assert!(results[1].is_error());
        assert_eq!(all[5], Reply::status("PONG"));
        wait_gone(&mut reader, "k");
        assert_eq!(reader.cmd(&["GET", "k"]), Reply::bulk("2"));
    }
}

/// Token and message may come in either order: each stream is held up in turn while the other sidecar writes.
#[test]
fn c51_pubsub_token_race() {
    let redis = Redis::start();
    let relay = Relay::to(&redis);
    let a = started(builder(&relay.url()).set("coherence.max_staleness", "300ms"));
    let b = started(builder(&redis.url()));
    let (mut reader, mut writer) = (a.client(), b.client());
    let channel = relay.channel();
    for round in 0..30 {
        let (old, new) = (format!("{round}"), format!("{round}b"));
        assert_eq!(writer.cmd(&["SET", "k", &old]), Reply::ok());
        let (slow, dir) = if round % 2 == 0 { (channel, Dir::Down) } else { (LANE, Dir::Down) };
        relay.stall(slow, dir);
        reader.send_cmd(&["GET", "k"]);
        if round % 2 == 0 {
            reader.reply();
        }
        assert_eq!(writer.cmd(&["SET", "k", &new]), Reply::ok());
        let written = Instant::now();
        relay.resume(slow, dir);
        if round % 2 == 1 {
            reader.reply();
        }
        eventually(PATIENCE, "the new value", || {
            let asked = Instant::now();
            let got = reader.cmd(&["GET", "k"]);
            assert!(got == Reply::bulk(&new) || asked - written < Duration::from_millis(300), "{got:?} too late");
            got == Reply::bulk(&new)
        });
        assert_eq!(reader.cmd(&["GET", "k"]), Reply::bulk(&new), "and no way back");
    }
}

/// While S says nothing, hits end with the lease, whatever the lane says.
#[test]
fn c51_the_lease_is_the_channels() {
    let redis = Redis::start();
    let relay = Relay::to(&redis);
    let a = started(builder(&relay.url()).set("coherence.max_staleness", "400ms"));
    let b = started(builder(&redis.url()));
    let (mut reader, mut writer) = (a.client(), b.client());
    writer.cmd(&["SET", "k", "1"]);
    wait_served_again(&mut reader, "k");
    let channel = relay.channel();
    relay.stall(channel, Dir::Down);
    assert_eq!(writer.cmd(&["SET", "k", "2"]), Reply::ok());
    let written = Instant::now();
    let mut old = 0;
    loop {
        let asked = Instant::now();
        if reader.cmd(&["GET", "k"]) == Reply::bulk("2") {
            break;
        }
        old += 1;
        assert!(asked - written <= Duration::from_millis(400), "a hit older than B");
    }
    assert!(old > 0, "no hit was old: nothing was tested");
    relay.resume(channel, Dir::Down);
    wait_served_again(&mut reader, "k");
}

/// Reads until there is a copy: the message of the write before may take one away.
#[track_caller]
fn wait_served_again(client: &mut Client, key: &str) {
    eventually(PATIENCE, "a hit again", || {
        client.cmd(&["GET", key]);
        is_served(client, key)
    });
}

#[test]
fn c52_pubsub_resubscribe() {
    let redis = Redis::start();
    let relay = Relay::to(&redis);
    let a = started(builder(&relay.url()));
    let b = started(builder(&redis.url()));
    let (mut reader, mut writer) = (a.client(), b.client());
    writer.cmd(&["SET", "k", "1"]);
    wait_served_again(&mut reader, "k");
    let epoch = a.stat("lane_epoch");
    relay.cut(relay.channel());
    eventually(PATIENCE, "its loss to be noticed", || a.stat("lane_epoch") > epoch);
    assert_eq!(writer.cmd(&["SET", "k", "2"]), Reply::ok());
    assert_eq!(reader.cmd(&["GET", "k"]), Reply::bulk("2"), "whatever was missed");
    wait_pubsub(&a);
    assert_eq!(reader.cmd(&["GET", "k"]), Reply::bulk("2"));
    wait_served_again(&mut reader, "k");
    writer.cmd(&["SET", "k", "3"]);
    wait_gone(&mut reader, "k");
}

/// A sidecar that dies between a write and its message, where they are two commands: the cap is the bound.
#[test]
fn c53_pubsub_lost_publisher() {
    let redis = Redis::start();
    let reader = started(builder(&redis.url()).set("coherence.ttl_cap.pubsub", "700ms"));
    let mut c1 = reader.client();
    redis.cmd(&["SET", "k", "1"]);
    fill(&mut c1, "k", "1");
    // As upstream sees such a sidecar: the write, and nothing more. The same is C54's writer.
    redis.cmd(&["SET", "k", "2"]);
    let written = Instant::now();
    while c1.cmd(&["GET", "k"]) == Reply::bulk("1") {
        assert!(written.elapsed() < Duration::from_millis(700) + QUIET, "older than the cap");
    }
    assert_eq!(c1.cmd(&["GET", "k"]), Reply::bulk("2"));
}

/// The atomic form has no between: a connection that is cut behind MULTI and the write has written nothing.
#[test]
fn c53_half_a_transaction_is_none() {
    let redis = Redis::start();
    let relay = Relay::to(&redis);
    let a = started(builder(&relay.url()));
    let mut c1 = a.client();
    redis.cmd(&["SET", "k", "1"]);
    // MULTI and the write arrive, the rest does not.
    let half = "*1\r\n$5\r\nMULTI\r\n".len() + "*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$1\r\n2\r\n".len();
    relay.split(LANE, Dir::Up, half);
    relay.delay(LANE, Dir::Up, Duration::from_millis(100));
    c1.send_cmd(&["SET", "k", "2"]);
    let before = relay.bytes(LANE, Dir::Up);
    eventually(PATIENCE, "half of it", || relay.bytes(LANE, Dir::Up) > before);
    relay.cut(LANE);
    let reply = c1.reply();
    let stored = redis.cmd(&["GET", "k"]);
    // Either it was cut in time, or all of it had arrived.
    assert!(stored == Reply::bulk("1") || stored == Reply::bulk("2"));
    assert!(reply == Reply::ok() || reply.text().contains("outcome unknown"), "{reply:?}");
    assert!(reply != Reply::ok() || stored == Reply::bulk("2"), "an OK that is not true");
    eventually(PATIENCE, "rest", || a.stat("pending_writes") == 0.0);
}

#[test]
fn c54_pubsub_bypass_writer_and_keys_that_come_by_name() {
    let redis = Redis::start();
    let proxy = started(builder(&redis.url()));
    let mut c1 = proxy.client();
    let key = b"\xff\x00 k\r\n";
    redis.cmd(&[&b"SET"[..], key, b"1"]);
    assert_eq!(c1.cmd(&[&b"GET"[..], key]), Reply::bulk("1"));
    eventually(PATIENCE, "it to be stored", || c1.cmd(&[&b"NEARSIDE"[..], b"ENTRY", key]) != Reply::Nil);
    redis.cmd(&[&b"SET"[..], key, b"2"]);
    assert_eq!(c1.cmd(&[&b"GET"[..], key]), Reply::bulk("1"), "nobody has told, so the cap is the bound");
    // Whoever bypasses the sidecars may tell.
    let message = [&b"key "[..], key].concat();
    assert_eq!(redis.cmd(&[&b"PUBLISH"[..], b"nearside:invalidate", &message]), Reply::Int(1));
    eventually(PATIENCE, "the new value", || c1.cmd(&[&b"GET"[..], key]) == Reply::bulk("2"));
}

/// The right to publish is taken away: the write is made all the same, once, and the user goes on with less.
#[test]
fn a_refused_message_takes_no_write_with_it() {
    let redis = Redis::start();
    redis.cmd(&["ACL", "SETUSER", "app", "on", ">pw", "~*", "&*", "+@all"]);
    let proxy = started(builder(&redis.url().replace("unix://", "unix://app:pw@")));
    let mut c1 = proxy.client();
    assert_eq!(c1.cmd(&["RPUSH", "q", "1"]), Reply::Int(1));
    redis.cmd(&["ACL", "SETUSER", "app", "-publish"]);
    assert_eq!(c1.cmd(&["RPUSH", "q", "2"]), Reply::Int(2));
    assert_eq!(proxy.stats()["coherence"], "ttl");
    proxy.wait_logged("coherence falls back to ttl");
    assert_eq!(c1.cmd(&["RPUSH", "q", "3"]), Reply::Int(3));
    assert_eq!(redis.cmd(&["LRANGE", "q", "0", "-1"]), Reply::bulks(&["1", "2", "3"]));
}

/// With more of the session behind it, the refused write is not made up for: what is behind was answered from before it.
#[test]
fn a_refused_message_never_reorders_a_pipeline() {
    let redis = Redis::start();
    redis.cmd(&["ACL", "SETUSER", "app", "on", ">pw", "~*", "&*", "+@all"]);
    let proxy = started(builder(&redis.url().replace("unix://", "unix://app:pw@")));
    let mut c1 = proxy.client();
    redis.cmd(&["ACL", "SETUSER", "app", "-publish"]);
    let replies = c1.pipeline(&[&["INCR", "n"][..], &["STRLEN", "n"], &["INCR", "n"]]);
    let made = redis.cmd(&["GET", "n"]);
    assert!(replies[0].text().contains("not executed"), "{replies:?}");
    assert_eq!(replies[1], Reply::Int(0), "from before any of them");
    assert!(replies[2] == Reply::Int(1) && made == Reply::bulk("1"), "{replies:?}, {made:?}");
}

/// A user who may not publish has `ttl` from the start, whoever else is there.
#[test]
fn c28_a_user_who_may_not_publish() {
    let redis = Redis::start();
    let rights = ["ACL", "SETUSER", "mute", "on", ">pw", "~*", "&*", "+@all", "-publish"];
    assert_eq!(redis.cmd(&[&rights[..], &no_tracking()].concat()), Reply::ok());
    let proxy = Proxy::upstream(&redis.url()).start();
    let mut c1 = proxy.client();
    assert_eq!(c1.cmd(&["AUTH", "mute", "pw"]), Reply::ok());
    c1.cmd(&["STRLEN", "k"]);
    proxy.wait_logged("coherence falls back to ttl");
    eventually(PATIENCE, "tracking", || proxy.stats()["coherence"] == "tracking");
    let body = proxy.get("/health").body;
    let why = "upstream refused CLIENT TRACKING; upstream refused PUBLISH on the channel";
    assert!(body.contains(&format!("coherence: ttl on 1 of 2 lanes: {why}")), "{body}");
    assert!(!body.contains("mute"), "no names of users");
}

/// A message or a job that another sidecar's client sends behind its write does not overtake the invalidation (C19, C20).
#[test]
fn c19_in_pubsub_mode() {
    let redis = Redis::start();
    let relay = Relay::to(&redis);
    let a = started(builder(&relay.url()).set("coherence.max_staleness", super::LONG_LEASE));
    let b = started(builder(&redis.url()));
    let (mut listener, mut reader, mut writer) = (a.client(), a.client(), b.client());
    // Past the sidecars: no message of this one is on its way.
    redis.cmd(&["SET", "k", "1"]);
    fill(&mut reader, "k", "1");
    assert!(!listener.cmd(&["SUBSCRIBE", "news"]).is_error());
    let channel = relay.channel();
    relay.stall(channel, Dir::Down);
    assert_eq!(writer.cmd(&["SET", "k", "2"]), Reply::ok());
    assert_eq!(writer.cmd(&["PUBLISH", "news", "k"]), Reply::Int(1));
    listener.expect_silence(QUIET);
    assert!(is_served(&mut reader, "k"), "the invalidation has not come");
    relay.resume(channel, Dir::Down);
    assert_eq!(listener.frame(), Reply::bulks(&["message", "news", "k"]));
    assert_eq!(reader.cmd(&["GET", "k"]), Reply::bulk("2"));
}

/// Its own user's rights decide, so the lane that comes back proves it again.
#[test]
fn c25_in_pubsub_mode() {
    let (redis, a, b) = two();
    let (mut reader, mut writer) = (a.client(), b.client());
    writer.cmd(&["SET", "k", "1"]);
    wait_served_again(&mut reader, "k");
    redis.cmd(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "no"]);
    redis.cmd(&["CLIENT", "KILL", "TYPE", "pubsub"]);
    redis.cmd(&["SET", "k", "2"]);
    eventually(PATIENCE, "the new value", || reader.cmd(&["GET", "k"]) == Reply::bulk("2"));
    wait_pubsub(&a);
    wait_pubsub(&b);
    wait_served_again(&mut reader, "k");
    eventually(PATIENCE, "a write", || b.client().cmd(&["SET", "k", "3"]) == Reply::ok());
    wait_gone(&mut reader, "k");
}

/// What a read that is not kept has seen, no later GET of the session contradicts: not with what was stored before it, and
/// not with a fetch that was under way.
#[test]
fn no_way_back_behind_a_read_that_is_not_kept() {
    let redis = Redis::start();
    let relay = Relay::to(&redis);
    let a = started(builder(&relay.url()).set("coherence.max_staleness", super::LONG_LEASE));
    let b = started(builder(&redis.url()));
    let (mut reader, mut other, mut writer) = (a.client(), a.client(), b.client());
    // Past the sidecars: no message of these is on its way.
    redis.cmd(&["MSET", "stored", "1", "fetched", "1"]);
    fill(&mut reader, "stored", "1");
    let channel = relay.channel();
    relay.stall(channel, Dir::Down);
    assert_eq!(writer.cmd(&["SET", "stored", "22"]), Reply::ok());
    assert!(is_served(&mut reader, "stored"), "its message has not come");
    let both = reader.pipeline(&[&["STRLEN", "stored"][..], &["GET", "stored"]]);
    assert_eq!(both, [Reply::Int(2), Reply::bulk("22")]);
    wait_served(&mut reader, "stored");

    relay.stall(LANE, Dir::Down);
    let gets = calls(&redis, "get");
    other.send_cmd(&["GET", "fetched"]);
    eventually(PATIENCE, "it to be read", || calls(&redis, "get") > gets);
    assert_eq!(writer.cmd(&["SET", "fetched", "22"]), Reply::ok());
    let lens = calls(&redis, "strlen");
    reader.send_cmd(&["STRLEN", "fetched"]);
    eventually(PATIENCE, "its length to be read", || calls(&redis, "strlen") > lens);
    relay.resume(LANE, Dir::Down);
    assert_eq!((other.reply(), reader.reply()), (Reply::bulk("1"), Reply::Int(2)));
    assert_eq!(reader.cmd(&["GET", "fetched"]), Reply::bulk("22"));
    relay.resume(channel, Dir::Down);
}

/// NEARSIDE DELETE tells of each batch with its UNLINK: what is gone when its client leaves in the middle was told.
#[test]
fn a_delete_tells_the_other_sidecar_batch_by_batch() {
    let redis = Redis::start();
    let relay = Relay::to(&redis);
    let (a, b) = (started(builder(&relay.url())), started(builder(&redis.url())));
    redis.cmd(&["EVAL", "for i = 1, 20000 do redis.call('SET', 'user:' .. i, i) end", "0"]);
    let mut reader = b.client();
    let keys: Vec<String> = (1..=400).map(|i| format!("user:{i}")).collect();
    for key in &keys {
        reader.cmd(&["GET", key]);
        wait_served(&mut reader, key);
    }
    relay.delay(LANE, Dir::Down, Duration::from_millis(30));
    let mut leaving = a.client();
    leaving.send_cmd(&["NEARSIDE", "DELETE", "PATTERN", "user:*"]);
    eventually(PATIENCE, "some to be deleted", || redis.cmd(&["DBSIZE"]).int() < 15000);
    drop(leaving);
    a.wait_logged("NEARSIDE DELETE is over");
    assert!(redis.cmd(&["DBSIZE"]).int() > 0, "it has gone on to the end");
    let gone: Vec<&String> = keys.iter().filter(|key| redis.cmd(&["EXISTS", key]) == Reply::Int(0)).collect();
    assert!(!gone.is_empty() && gone.len() < keys.len(), "{}", gone.len());
    gone.iter().for_each(|key| wait_gone(&mut reader, key));
    let kept = keys.iter().filter(|key| is_stored(&mut reader, key)).count();
    assert!(kept > 0, "not a flush");

    relay.delay(LANE, Dir::Down, Duration::ZERO);
    redis.cmd(&["CONFIG", "RESETSTAT"]);
    let left = redis.cmd(&["DBSIZE"]).int();
    let reply = a.client().cmd(&["NEARSIDE", "DELETE", "PATTERN", "user:*"]);
    assert_eq!(reply.get("deleted").int(), left, "{reply:?}");
    let batches = reply.get("batches").int() as u64;
    for command in ["multi", "unlink", "publish", "exec"] {
        assert_eq!(calls(&redis, command), batches, "{command}");
    }
    keys.iter().for_each(|key| wait_gone(&mut reader, key));
}
