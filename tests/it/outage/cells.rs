use super::{UNAVAILABLE, quick, refused, wait_gone, warm};
use crate::support::{Client, PATIENCE, Proxy, Redis, Reply, encode, eventually};

/// A sidecar whose upstream is gone, and which had `hit` and `other` in its cache.
fn gone(reads: &str, error: &str) -> (Proxy, Redis) {
    let mut redis = Redis::start();
    let proxy = quick(Proxy::to(&redis)).set("outage.reads", reads).set("outage.error", error).start();
    let mut c = proxy.client();
    redis.cmd(&["MSET", "hit", "1", "other", "2"]);
    warm(&proxy, &mut c, "hit");
    warm(&proxy, &mut c, "other");
    redis.stop();
    wait_gone(&proxy);
    (proxy, redis)
}

/// What needs upstream whatever the table says of reads.
const NEVER: [&[&str]; 13] = [
    &["GET", "miss"],
    &["MGET", "hit", "miss"],
    &["STRLEN", "hit"],
    &["SET", "k", "v"],
    &["SET", "hit", "v"],
    &["INCR", "n"],
    &["EVAL", "return 1", "0"],
    &["MULTI"],
    &["SUBSCRIBE", "c"],
    &["BLPOP", "q", "0"],
    &["KEYS", "*"],
    &["NO.SUCH", "x"],
    &["INFO", "server"],
];

/// What is answered here whatever the table says.
fn greets(c: &mut Client) {
    assert_eq!(c.cmd(&["SELECT", "3"]), Reply::ok());
    assert_eq!(c.cmd(&["SELECT", "0"]), Reply::ok());
    assert_eq!(c.cmd(&["CLIENT", "SETNAME", "me"]), Reply::ok());
    assert_eq!(c.cmd(&["CLIENT", "SETINFO", "lib-name", "x"]), Reply::ok());
    assert!(!c.cmd(&["NEARSIDE", "STATS"]).is_error());
    let unknown = c.cmd(&["CLIENT", "MAINT_NOTIFICATIONS", "ON"]).text();
    assert!(unknown.starts_with("ERR unknown subcommand 'MAINT_NOTIFICATIONS'"), "{unknown}");
    let info = c.cmd(&["INFO"]).text();
    assert!(info.contains("# Nearside\r\n") && info.contains("upstream_state:"), "{info}");
    assert!(!info.contains("redis_version:"), "nothing of upstream's is made up");
    assert!(matches!(c.cmd(&["HELLO", "3"]), Reply::Map(_)));
}

#[test]
fn stale_reads_are_answered_and_all_else_is_refused() {
    let (proxy, _redis) = gone("stale", "reply");
    for mut c in [proxy.client(), proxy.client3()] {
        assert_eq!(c.cmd(&["GET", "hit"]), Reply::bulk("1"));
        assert_eq!(c.cmd(&["MGET", "other", "hit", "hit"]), Reply::bulks(&["2", "1", "1"]));
        assert_eq!(c.cmd(&["PING"]), Reply::status("PONG"));
        assert_eq!(c.cmd(&["PING", "x"]), Reply::bulk("x"));
        for words in NEVER {
            refused(&c.cmd(words));
        }
        greets(&mut c);
    }
    let mut c = proxy.client();
    // A refused write was not executed, so what was there is the truth still.
    assert_eq!(c.cmd(&["GET", "hit"]), Reply::bulk("1"));
    let all = c.pipeline(&[&["GET", "hit"][..], &["SET", "hit", "9"], &["MGET", "hit", "other"], &["GET", "miss"]]);
    assert_eq!((&all[0], &all[2]), (&Reply::bulk("1"), &Reply::bulks(&["1", "2"])));
    refused(&all[1]);
    refused(&all[3]);
    let failed = |class| proxy.metric(&format!("nearside_outage_failed_total{{class=\"{class}\"}}"));
    assert!(failed("read") > 0.0 && failed("write") > 0.0 && failed("other") > 0.0);
    assert_eq!(proxy.stat("pending_writes"), 0.0);
}

#[test]
fn with_fail_nothing_is_answered_but_greetings() {
    let (proxy, _redis) = gone("fail", "reply");
    let mut c = proxy.client();
    for words in [&["GET", "hit"][..], &["MGET", "hit", "other"], &["PING"]].iter().chain(&NEVER) {
        refused(&c.cmd(words));
    }
    greets(&mut c);
    assert_eq!(proxy.metric("nearside_stale_served_total"), 0.0);
    assert!(!proxy.get("/health").body.contains("serving stale reads"));
}

#[test]
fn with_close_a_client_loses_its_connection_instead() {
    let (proxy, _redis) = gone("stale", "close");
    for words in NEVER {
        let mut c = proxy.client();
        // What could be answered before it is.
        c.send(&[encode(&["GET", "hit"]), encode(words)].concat());
        assert_eq!(c.reply(), Reply::bulk("1"));
        let rest = c.expect_closed();
        assert!(rest.is_empty(), "{words:?} was answered {:?}", rest.escape_ascii().to_string());
    }
    let mut c = proxy.client();
    assert_eq!(c.cmd(&["MGET", "other", "hit"]), Reply::bulks(&["2", "1"]));
    assert_eq!(c.cmd(&["PING"]), Reply::status("PONG"));
    greets(&mut c);
    assert!(proxy.metric("nearside_clients_dropped_total{reason=\"outage\"}") >= NEVER.len() as f64);
}

/// Commands that wait while a lane reconnects, at the moment when that fails.
#[test]
fn what_waited_for_the_connection_is_answered_by_the_table() {
    for error in ["reply", "close"] {
        let redis = Redis::start();
        let relay = crate::support::Relay::to(&redis);
        let builder = Proxy::upstream(&relay.url()).set("coherence.canary", "off").set("outage.error", error);
        let proxy = builder.set("upstream.connect_timeout", "1500ms").start();
        let mut c = proxy.client();
        redis.cmd(&["SET", "hit", "1"]);
        warm(&proxy, &mut c, "hit");
        let epoch = proxy.stat("lane_epoch");
        // A connection is made and nothing is answered on it, until connect_timeout is over.
        relay.stall(crate::support::Scope::All, crate::support::Dir::Down);
        relay.cut(crate::support::Scope::Existing);
        eventually(PATIENCE, "the loss", || proxy.stat("lane_epoch") != epoch);
        let mut all: Vec<(Client, &[&str])> = Vec::new();
        for words in [&["GET", "hit"][..], &["MGET", "hit"], &["GET", "miss"], &["SET", "k", "v"]] {
            let mut c = proxy.client();
            c.send_cmd(words);
            all.push((c, words));
        }
        for (mut c, words) in all {
            match (words[0], words[1], error) {
                ("GET", "hit", _) => assert_eq!(c.reply(), Reply::bulk("1")),
                ("MGET", ..) => assert_eq!(c.reply(), Reply::bulks(&["1"])),
                (.., "reply") => assert!(c.reply().text().starts_with(UNAVAILABLE), "{words:?}"),
                _ => assert!(c.expect_closed().is_empty(), "{words:?}"),
            }
        }
        assert_eq!(proxy.stat("pending_writes"), 0.0);
        assert_eq!(redis.cmd(&["EXISTS", "k"]), Reply::Int(0), "a refused write was never sent");
    }
}
