//! Keyspace events as `pubsub` mode's second source (P8): what bypasses the sidecars ends copies too. The cap is out of reach
//! here, so nothing but an event can have ended one.

use super::{LANE, LONG_LEASE, calls, fill, is_served, is_stored};
use crate::support::proxy::Builder;
use crate::support::{Client, Dir, PATIENCE, Proxy, Redis, Relay, Reply, eventually, needs};

fn builder(url: &str) -> Builder {
    Proxy::upstream(url).set("coherence.mode", "pubsub").set("coherence.ttl_cap.pubsub", "1h")
}

fn upstream(flags: &str) -> Redis {
    Redis::builder().args(&["--notify-keyspace-events", flags]).start()
}

#[track_caller]
fn wait_events(proxy: &Proxy, what: &str) {
    eventually(PATIENCE, what, || proxy.stats()["keyspace_events"] == what);
    assert_eq!(proxy.stats()["coherence"], "pubsub");
}

/// Reads until there is a copy: the event of the change before may take one away.
#[track_caller]
fn warm(client: &mut Client, key: &str) {
    eventually(PATIENCE, "a copy", || {
        client.cmd(&["GET", key]);
        is_served(client, key)
    });
}

#[track_caller]
fn wait_gone(client: &mut Client, key: &str) {
    eventually(PATIENCE, &format!("{key} to be dropped"), || !is_stored(client, key));
}

#[test]
fn c54_keyspace_events_tell_of_writers_that_bypass_the_sidecars() {
    let redis = upstream("KA");
    let proxy = builder(&redis.url()).start();
    wait_events(&proxy, "used");
    let mut c1 = proxy.client();
    let mut elsewhere = redis.client();
    elsewhere.cmd(&["SELECT", "3"]);
    elsewhere.cmd(&["SET", "k", "of another database"]);
    redis.cmd(&["SET", "other", "1"]);
    let mut changes: Vec<(&mut dyn FnMut(), Reply)> = Vec::new();
    let mut set = || drop(redis.cmd(&["SET", "k", "2"]));
    let mut append = || drop(redis.cmd(&["APPEND", "k", "2"]));
    let mut script = || drop(redis.cmd(&["EVAL", "redis.call('SET', 'k', '3')", "0"]));
    let mut rename = || drop(redis.cmd(&["RENAME", "other", "k"]));
    let mut remove = || drop(redis.cmd(&["DEL", "k"]));
    let mut far = || drop(elsewhere.cmd(&["INCRBY", "k:3", "1"]));
    redis.cmd(&["SET", "k", "1"]);
    changes.push((&mut set, Reply::bulk("2")));
    changes.push((&mut append, Reply::bulk("22")));
    changes.push((&mut script, Reply::bulk("3")));
    changes.push((&mut rename, Reply::bulk("1")));
    changes.push((&mut remove, Reply::Nil));
    for (change, then) in changes {
        warm(&mut c1, "k");
        change();
        wait_gone(&mut c1, "k");
        assert_eq!(c1.cmd(&["GET", "k"]), then);
    }
    fill(&mut c1, "k:3", None);
    far();
    wait_gone(&mut c1, "k:3");
    let body = proxy.get("/health").body;
    assert!(body.contains("pubsub+keyspace") && body.contains("\"keyspace_events\":\"used\""), "{body}");
    proxy.wait_logged("coherence is pubsub+keyspace");
}

#[test]
fn keyspace_events_name_keys_byte_for_byte() {
    let redis = upstream("KA");
    let proxy = builder(&redis.url()).start();
    wait_events(&proxy, "used");
    let mut c1 = proxy.client();
    for key in [&b"\xff\x00 k\r\n"[..], b"__keyspace@0__:k", b"__:", b"", b"*"] {
        redis.cmd(&[&b"SET"[..], key, b"1"]);
        assert_eq!(c1.cmd(&[&b"GET"[..], key]), Reply::bulk("1"));
        eventually(PATIENCE, "it to be stored", || {
            c1.cmd(&[&b"GET"[..], key]);
            c1.cmd(&[&b"NEARSIDE"[..], b"ENTRY", key]) != Reply::Nil
        });
        redis.cmd(&[&b"SET"[..], key, b"2"]);
        eventually(PATIENCE, "the new value", || c1.cmd(&[&b"GET"[..], key]) == Reply::bulk("2"));
    }
}

#[test]
fn keyspace_events_tell_of_expiry_and_eviction() {
    let redis = upstream("KA");
    let proxy = builder(&redis.url()).start();
    wait_events(&proxy, "used");
    let mut c1 = proxy.client();
    redis.cmd(&["MSET", "k", "1", "victim", "1"]);
    let told = || proxy.stat("invalidations_keyspace");
    eventually(PATIENCE, "both events", || told() == 2.0);
    fill(&mut c1, "k", "1");
    redis.cmd(&["PEXPIRE", "k", "60000"]);
    wait_gone(&mut c1, "k");
    redis.cmd(&["PEXPIRE", "k", "20"]);
    eventually(PATIENCE, "two settings of a time, and its end", || told() == 5.0);
    assert_eq!(c1.cmd(&["GET", "k"]), Reply::Nil);
    fill(&mut c1, "victim", "1");
    redis.cmd(&["CONFIG", "SET", "maxmemory-policy", "allkeys-random"]);
    redis.cmd(&["CONFIG", "SET", "maxmemory", "1"]);
    wait_gone(&mut c1, "victim");
    redis.cmd(&["CONFIG", "SET", "maxmemory", "0"]);
    assert_eq!(c1.cmd(&["GET", "victim"]), Reply::Nil);
}

/// They have no events: the cap is what bounds them (README's table).
#[test]
fn a_flush_past_the_sidecars_has_no_event() {
    let redis = upstream("KA");
    let proxy = builder(&redis.url()).start();
    wait_events(&proxy, "used");
    let mut c1 = proxy.client();
    redis.cmd(&["SET", "k", "1"]);
    redis.cmd(&["SET", "later", "1"]);
    eventually(PATIENCE, "their events", || proxy.stat("invalidations_keyspace") == 2.0);
    fill(&mut c1, "later", "1");
    fill(&mut c1, "k", "1");
    redis.cmd(&["FLUSHALL"]);
    redis.cmd(&["SET", "later", "2"]);
    wait_gone(&mut c1, "later");
    assert!(is_served(&mut c1, "k"), "S has brought what came behind it");
}

/// A script that names no keys: everybody here reads what it wrote from its reply on, which waits for S.
#[test]
fn c16_with_keyspace_events() {
    let redis = upstream("KA");
    let relay = Relay::to(&redis);
    let proxy = builder(&relay.url()).set("coherence.max_staleness", LONG_LEASE).start();
    let (mut c1, mut c2) = (proxy.client(), proxy.client());
    wait_events(&proxy, "used");
    redis.cmd(&["SET", "k", "1"]);
    eventually(PATIENCE, "its event", || proxy.stat("invalidations_keyspace") == 1.0);
    fill(&mut c2, "k", "1");
    let channel = relay.channel();
    relay.stall(channel, Dir::Down);
    c1.send_cmd(&["EVAL", "return redis.call('SET', 'k', '2')", "0"]);
    c1.expect_silence(super::QUIET);
    assert!(is_served(&mut c2, "k"), "the event has not come");
    relay.resume(channel, Dir::Down);
    assert_eq!(c1.reply(), Reply::ok());
    assert_eq!(c2.cmd(&["GET", "k"]), Reply::bulk("2"));
}

/// What was stored before the subscription stood, and changed since, had no event: it goes when the subscription stands.
#[test]
fn what_was_missed_before_the_subscription_is_dropped_at_its_confirmation() {
    if !needs(7, 0, "command statistics by subcommand") {
        return;
    }
    let redis = upstream("KA");
    redis.cmd(&["ACL", "SETUSER", "app", "on", ">pw", "~*", "&*", "+@all", "-publish"]);
    let relay = Relay::to(&redis);
    let proxy = builder(&relay.url().replace("unix://", "unix://app:pw@")).start();
    eventually(PATIENCE, "S, and a lane that does not live by it", || {
        proxy.stats()["channel"] == "up" && proxy.stats()["coherence"] == "ttl"
    });
    // Valkey 9 has asked itself, as it started.
    redis.cmd(&["CONFIG", "RESETSTAT"]);
    // The lane that comes back does, and what S says from then on does not arrive.
    redis.cmd(&["ACL", "SETUSER", "app", "+publish"]);
    redis.cmd(&["SET", "k", "1"]);
    relay.stall(relay.channel(), Dir::Up);
    relay.cut(LANE);
    eventually(PATIENCE, "the question", || calls(&redis, "config|get") > 0);
    let mut c1 = proxy.client();
    eventually(PATIENCE, "a copy", || {
        c1.cmd(&["GET", "k"]);
        is_stored(&mut c1, "k")
    });
    redis.cmd(&["SET", "k", "2"]);
    assert!(is_stored(&mut c1, "k"), "nobody has told of it");
    relay.resume(relay.channel(), Dir::Up);
    wait_events(&proxy, "used");
    assert_eq!(c1.cmd(&["GET", "k"]), Reply::bulk("2"));
}

/// With S the second subscription is lost, and asked for again.
#[test]
fn c52_with_keyspace_events() {
    let redis = upstream("KA");
    let relay = Relay::to(&redis);
    let proxy = builder(&relay.url()).start();
    wait_events(&proxy, "used");
    let mut c1 = proxy.client();
    redis.cmd(&["SET", "k", "1"]);
    eventually(PATIENCE, "its event", || proxy.stat("invalidations_keyspace") == 1.0);
    fill(&mut c1, "k", "1");
    relay.cut(relay.channel());
    eventually(PATIENCE, "its loss", || proxy.stats()["keyspace_events"] != "used");
    redis.cmd(&["SET", "k", "2"]);
    wait_events(&proxy, "used");
    assert_eq!(c1.cmd(&["GET", "k"]), Reply::bulk("2"));
    warm(&mut c1, "k");
    redis.cmd(&["SET", "k", "3"]);
    wait_gone(&mut c1, "k");
}

#[test]
fn events_that_do_not_tell_of_everything_are_not_used() {
    for flags in ["", "KE$lg", "AE"] {
        let redis = upstream(flags);
        let proxy = builder(&redis.url()).start();
        wait_events(&proxy, "not used: notify-keyspace-events has not K and A");
        assert_eq!(calls(&redis, "psubscribe"), 0);
        let mut c1 = proxy.client();
        redis.cmd(&["SET", "k", "1"]);
        fill(&mut c1, "k", "1");
        redis.cmd(&["SET", "k", "2"]);
        assert_eq!(c1.cmd(&["GET", "k"]), Reply::bulk("1"), "the cap is the bound");
    }
}

/// The mode does not depend on them: a user without the right to ask, or to listen, has `pubsub` without them.
#[test]
fn a_user_without_the_right_to_keyspace_events() {
    for denied in [&["&*", "-config"][..], &["resetchannels", "&nearside:*"]] {
        let redis = upstream("KA");
        redis.cmd(&[&["ACL", "SETUSER", "app", "on", ">pw", "~*", "&*", "+@all"][..], denied].concat());
        let proxy = builder(&redis.url().replace("unix://", "unix://app:pw@")).start();
        wait_events(&proxy, "not used: upstream denies them to this user");
        assert!(!proxy.get("/health").body.contains("app"), "no names of users");
        let epoch = proxy.stat("channel_epoch");
        let mut c1 = proxy.client();
        assert_eq!(c1.cmd(&["SET", "k", "1"]), Reply::ok());
        warm(&mut c1, "k");
        assert_eq!(proxy.stat("channel_epoch"), epoch, "S goes on");
    }
}

/// They cost a message for every write upstream, so nobody listens who does not live by them: not where tracking is there,
/// and not any more where the last lane in `pubsub` has lost it.
#[test]
fn events_are_listened_to_only_where_a_lane_lives_by_them() {
    if !needs(7, 0, "command statistics by subcommand") {
        return;
    }
    let redis = upstream("KA");
    redis.cmd(&["ACL", "SETUSER", "app", "on", ">pw", "~*", "&*", "+@all"]);
    // Valkey 9 has asked itself, as it started.
    redis.cmd(&["CONFIG", "RESETSTAT"]);
    let tracks = Proxy::upstream(&redis.url()).set("coherence.max_staleness", "100ms").start();
    eventually(PATIENCE, "tracking", || tracks.stats()["coherence"] == "tracking");
    eventually(PATIENCE, "S", || tracks.stats()["channel"] == "up");
    let proxy = builder(&redis.url().replace("unix://", "unix://app:pw@")).start();
    wait_events(&proxy, "used");
    // B/4 of the other one is a tenth of this one's.
    assert_eq!((calls(&redis, "config|get"), calls(&redis, "psubscribe")), (1, 1));
    assert_eq!(tracks.stats()["keyspace_events"], "");
    redis.cmd(&["ACL", "SETUSER", "app", "-publish"]);
    assert_eq!(proxy.client().cmd(&["SET", "k", "1"]), Reply::ok());
    assert_eq!(proxy.stats()["coherence"], "ttl");
    eventually(2 * PATIENCE, "the subscription to be given back", || calls(&redis, "punsubscribe") == 1);
    eventually(PATIENCE, "it to be known", || proxy.stats()["keyspace_events"].is_empty());
    assert_eq!(proxy.stats()["channel"], "up");
}

/// A miss has an event as well (`m`): it must not take away that the key is absent.
#[test]
fn a_miss_is_no_change() {
    let redis = upstream("KAm");
    let proxy = builder(&redis.url()).start();
    wait_events(&proxy, "used");
    let mut c1 = proxy.client();
    fill(&mut c1, "absent", None);
    redis.cmd(&["GET", "absent"]);
    redis.cmd(&["SET", "marker", "1"]);
    eventually(PATIENCE, "the marker's event", || proxy.stat("invalidations_keyspace") == 1.0);
    assert!(is_served(&mut c1, "absent"));
}
