//! `ttl` mode, where nothing but expiry and this sidecar's own writes end a copy; and upstreams without RESP3.

use std::time::{Duration, Instant};

use super::{LONG_LEASE, bulk, calls, fill, is_served, sleep_until, wait_served};
use crate::support::{Client, Dir, Fake, PATIENCE, Proxy, Redis, Relay, Reply, Scope, eventually};

const CAP: Duration = Duration::from_millis(700);

fn start(redis: &Redis) -> Proxy {
    Proxy::upstream(&redis.url()).set("coherence.mode", "ttl").set("coherence.ttl_cap.ttl", "700ms").start()
}

#[test]
fn c55_ttl_mode() {
    let redis = Redis::start();
    let proxy = start(&redis);
    let (mut c1, mut c2) = (proxy.client(), proxy.client3());
    redis.cmd(&["SET", "k", "1"]);
    fill(&mut c1, "k", "1");
    redis.cmd(&["SET", "k", "2"]);
    let written = Instant::now();
    let mut last_old = None;
    loop {
        let sent = Instant::now();
        if c1.cmd(&["GET", "k"]) != Reply::bulk("1") {
            break;
        }
        last_old = Some(sent - written);
        assert!(written.elapsed() < CAP + PATIENCE, "it never ends");
    }
    // It was read before it was written past us, so its time was over CAP after that, whenever the answer was noticed.
    assert!(last_old.expect("it was never a hit") < CAP, "{last_old:?}");
    // Own writes are seen at once, by everybody here.
    fill(&mut c2, "k", "2");
    assert_eq!(c1.cmd(&["SET", "k", "3"]), Reply::ok());
    assert_eq!(c2.cmd(&["GET", "k"]), Reply::bulk("3"));
    assert_eq!(c2.cmd(&["GET", "k"]), Reply::bulk("3"));
}

/// A reading that is still under way is no better than a copy of its age: upstream may have answered it at once.
#[test]
fn c55_nobody_joins_a_fetch_that_is_older_than_the_cap() {
    let redis = Redis::start();
    let relay = Relay::to(&redis);
    let builder = Proxy::upstream(&relay.url()).set("coherence.mode", "ttl").set("coherence.ttl_cap.ttl", "50ms");
    let proxy = builder.set("coherence.max_staleness", LONG_LEASE).start();
    let (mut c1, mut c2) = (proxy.client(), proxy.client());
    redis.cmd(&["SET", "k", "1"]);
    eventually(PATIENCE, "the lane", || proxy.stats()["session_coherence"] == "ttl");
    relay.stall(Scope::One(0), Dir::Down);
    c1.send_cmd(&["GET", "k"]);
    eventually(PATIENCE, "the first GET to be executed", || calls(&redis, "get") == 1);
    redis.cmd(&["SET", "k", "2"]);
    sleep_until(Instant::now() + Duration::from_millis(60));
    c2.send_cmd(&["GET", "k"]);
    eventually(PATIENCE, "the second GET", || calls(&redis, "get") == 2 || proxy.stat("coalesced") == 1.0);
    relay.resume(Scope::One(0), Dir::Down);
    assert_eq!((c1.reply(), c2.reply()), (Reply::bulk("1"), Reply::bulk("2")));
}

/// Two readings of one key under way, the second one's PTTL late: once its answer has been passed on, nobody meets the first.
#[test]
fn c55_a_reading_ends_the_older_copy_when_it_is_passed_on() {
    let fake = Fake::start();
    let builder = Proxy::upstream(&fake.url()).set("coherence.mode", "ttl").set("coherence.ttl_cap.ttl", "1h");
    let proxy = builder.set("coherence.max_staleness", LONG_LEASE).start();
    let (mut lane, mut c1, mut c2) = (fake.accept(), proxy.client(), proxy.client());
    eventually(PATIENCE, "the lane", || proxy.stats()["session_coherence"] == "ttl");
    c1.send_cmd(&["GET", "k"]);
    lane.expect(&["GET", "k"]).expect(&["PTTL", "k"]);
    c2.send_cmd(&["MGET", "k", "l"]);
    lane.expect(&["MGET", "k", "l"]).expect(&["PTTL", "k"]).expect(&["PTTL", "l"]);
    lane.send(bulk("1")).send(":-1\r\n");
    assert_eq!(c1.reply(), Reply::bulk("1"));
    wait_served(&mut c1, "k");
    lane.send(format!("*2\r\n{}_\r\n", bulk("2")));
    assert_eq!(c2.reply(), Reply::Array(vec![Reply::bulk("2"), Reply::Nil]));
    c2.send_cmd(&["GET", "k"]);
    assert_eq!(lane.try_next(PATIENCE), Some(vec![b"GET".to_vec(), b"k".to_vec()]), "the older copy was served");
    lane.expect(&["PTTL", "k"]).send(":-1\r\n:-2\r\n").send(bulk("2")).send(":-1\r\n");
    assert_eq!(c2.reply(), Reply::bulk("2"));
}

/// A hit of an MGET is no longer good when the rest of it comes, so all of it is read again. What the first reading would
/// still store is older than what is passed on then.
#[test]
fn c55_an_mget_that_is_read_again_ends_the_older_copies() {
    let fake = Fake::start();
    let builder = Proxy::upstream(&fake.url()).set("coherence.mode", "ttl").set("coherence.ttl_cap.ttl", "1h");
    let proxy = builder.set("coherence.max_staleness", LONG_LEASE).set("cache.on_write", "invalidate").start();
    let (mut lane, mut c1, mut c2) = (fake.accept(), proxy.client(), proxy.client());
    eventually(PATIENCE, "the lane", || proxy.stats()["session_coherence"] == "ttl");
    c1.send_cmd(&["GET", "k"]);
    lane.expect(&["GET", "k"]).expect(&["PTTL", "k"]).send(bulk("1")).send(":-1\r\n");
    assert_eq!(c1.reply(), Reply::bulk("1"));
    wait_served(&mut c1, "k");
    c1.send_cmd(&["MGET", "k", "l"]);
    lane.expect(&["MGET", "l"]).expect(&["PTTL", "l"]);
    c2.send_cmd(&["SET", "k", "2"]);
    lane.expect(&["SET", "k", "2"]).send(format!("*1\r\n{}:-1\r\n+OK\r\n", bulk("1")));
    lane.expect(&["MGET", "k", "l"]).send(format!("*2\r\n{}{}", bulk("2"), bulk("2")));
    assert_eq!(c1.reply(), Reply::bulks(&["2", "2"]));
    c1.send_cmd(&["GET", "l"]);
    assert_eq!(lane.try_next(PATIENCE), Some(vec![b"GET".to_vec(), b"l".to_vec()]), "the older copy was served");
}

/// GETs are not kept, and MGETs are: whatever a GET has shown, no MGET goes back behind it.
#[test]
fn c55_no_mget_goes_back_behind_a_get_that_is_not_kept() {
    let redis = Redis::start();
    let builder = Proxy::upstream(&redis.url()).set("coherence.mode", "ttl").set("coherence.ttl_cap.ttl", "1h");
    let proxy = builder.set("cache.commands", serde_json::json!(["MGET"])).start();
    let mut c = proxy.client();
    redis.cmd(&["SET", "k", "1"]);
    assert_eq!(c.cmd(&["MGET", "k"]), Reply::bulks(&["1"]));
    barrier(&mut c);
    redis.cmd(&["SET", "k", "2"]);
    assert_eq!(c.cmd(&["MGET", "k"]), Reply::bulks(&["1"]), "a hit");
    assert_eq!(c.cmd(&["GET", "k"]), Reply::bulk("2"));
    assert_eq!(c.cmd(&["MGET", "k"]), Reply::bulks(&["2"]));
}

#[test]
fn c55_ttl_says_that_it_is_degraded() {
    let redis = Redis::start();
    let proxy = start(&redis);
    eventually(PATIENCE, "a lane", || proxy.stats()["coherence"] == "ttl");
    let stats = proxy.stats();
    assert_eq!((stats["coherence_mode"].as_str(), stats["coherence_why"].as_str()), ("ttl", "as configured"));
    for path in ["/health", "/health/ready"] {
        let answer = proxy.get(path);
        assert!(answer.body.contains("coherence: ttl on 1 of 1 lanes: as configured"), "{path}: {}", answer.body);
        assert_eq!(answer.status, 200, "{path}");
    }
    assert_eq!(proxy.metric("nearside_coherence_mode{mode=\"ttl\"}"), 1.0);
}

/// Not tracked: the deadline is counted from the sending, like everywhere.
#[test]
fn c55_upstreams_own_ttl_counts_too() {
    let redis = Redis::start();
    let proxy = start(&redis);
    let mut c1 = proxy.client();
    redis.cmd(&["SET", "k", "1", "PX", "300"]);
    let set = Instant::now();
    fill(&mut c1, "k", "1");
    while c1.cmd(&["GET", "k"]) == Reply::bulk("1") {
        assert!(set.elapsed() < Duration::from_millis(310), "past its expiry");
    }
}

/// What a session has read or written on a connection of its own asks for later readings from then on.
#[test]
fn c55_no_way_back_behind_a_transaction() {
    let redis = Redis::start();
    let proxy = Proxy::upstream(&redis.url()).set("coherence.mode", "ttl").set("coherence.ttl_cap.ttl", "1h").start();
    let (mut c1, mut c2) = (proxy.client(), proxy.client());
    redis.cmd(&["SET", "k", "1"]);
    fill(&mut c1, "k", "1");
    redis.cmd(&["SET", "k", "2"]);
    assert_eq!(c1.cmd(&["GET", "k"]), Reply::bulk("1"), "a hit: nobody has told");
    c1.cmd(&["MULTI"]);
    c1.cmd(&["GET", "k"]);
    assert_eq!(c1.cmd(&["EXEC"]), Reply::bulks(&["2"]));
    assert_eq!(c1.cmd(&["GET", "k"]), Reply::bulk("2"));
    // And what a script of its own has written without naming it.
    fill(&mut c2, "k", "2");
    assert_eq!(c2.cmd(&["EVAL", "return redis.call('SET','k','3')", "0"]), Reply::ok());
    assert_eq!(c2.cmd(&["GET", "k"]), Reply::bulk("3"));
}

/// A newer value that may not be stored does not leave the older one behind.
#[test]
fn c55_a_reading_that_is_not_stored_ends_the_older_one() {
    let redis = Redis::start();
    let proxy = Proxy::upstream(&redis.url())
        .set("coherence.mode", "ttl")
        .set("coherence.ttl_cap.ttl", "1h")
        .set("cache.max_value_bytes", 100)
        .set("cache.update_max_bytes", 100)
        .start();
    let mut c1 = proxy.client();
    redis.cmd(&["SET", "k", "1"]);
    fill(&mut c1, "k", "1");
    let large = "x".repeat(200);
    redis.cmd(&["SET", "k", &large]);
    // Behind an outstanding command of the same key it is read upstream.
    let replies = c1.pipeline(&[&["STRLEN", "k"][..], &["GET", "k"]]);
    assert_eq!(replies, [Reply::Int(200), Reply::bulk(&large)]);
    barrier(&mut c1);
    assert_eq!(c1.cmd(&["GET", "k"]), Reply::bulk(&large));
}

fn barrier(client: &mut Client) {
    client.cmd(&["EXISTS", "nobody-writes-this"]);
}

fn without_hello() -> Redis {
    Redis::builder().args(&["--rename-command", "HELLO", ""]).start()
}

#[test]
fn c28_auto_over_resp2_is_pubsub() {
    let redis = without_hello();
    let proxy = Proxy::upstream(&redis.url()).start();
    eventually(PATIENCE, "its mode", || proxy.stats()["coherence"] == "pubsub");
    let why = &proxy.stats()["coherence_why"];
    assert!(why.starts_with("upstream speaks no RESP3; the channel has brought a message back"), "{why}");
    assert!(proxy.get("/health").body.contains("coherence: pubsub on 1 of 1 lanes: upstream speaks no RESP3"));
    let mut c1 = proxy.client();
    assert_eq!(c1.cmd(&["SET", "k", "1"]), Reply::ok());
    fill(&mut c1, "k", "1");
    let asked = calls(&redis, "get");
    assert_eq!(c1.cmd(&["GET", "k"]), Reply::bulk("1"));
    assert_eq!(calls(&redis, "get"), asked, "a hit");
    assert_eq!(c1.cmd(&["INFO", "server"]).text().lines().next(), Some("# Server"));
    assert!(c1.cmd(&["INFO"]).text().contains("# Nearside"));
}

/// HELLO is upstream's to answer there.
#[test]
fn c28_hello_is_answered_as_upstream_would() {
    let redis = without_hello();
    let proxy = Proxy::upstream(&redis.url()).start();
    let (mut c1, mut direct) = (proxy.client(), redis.client());
    for words in [&["HELLO", "3"][..], &["HELLO"], &["HELLO", "2"]] {
        assert_eq!(c1.cmd(words), direct.cmd(words), "{words:?}");
    }
    assert_eq!(c1.cmd(&["SET", "k", "1"]), Reply::ok());
    assert_eq!(c1.cmd(&["GET", "k"]), Reply::bulk("1"));
}

/// An upstream that lets this user not say HELLO: its words decide, and its RESP2 bytes are passed on as they are.
#[test]
fn c28_a_user_without_hello_has_a_lane() {
    let fake = Fake::builder().answer("HELLO", "-NOPERM this user has no permissions to run the 'hello' command\r\n");
    let fake = fake.answer("PING", "+PONG\r\n").answer("INFO", "$0\r\n\r\n").start();
    let proxy = Proxy::upstream(&fake.url()).set("coherence.mode", "ttl").start();
    let mut lane = fake.accept();
    eventually(PATIENCE, "its mode", || proxy.stats()["coherence"] == "ttl");
    let mut c1 = proxy.client();
    c1.send_cmd(&["GET", "k"]);
    lane.expect(&["GET", "k"]).reply("$-1\r\n").expect(&["PTTL", "k"]).reply(":-2\r\n");
    assert_eq!(c1.read_reply_raw(), b"$-1\r\n");
    wait_served(&mut c1, "k");
    assert_eq!(c1.cmd(&["GET", "k"]), Reply::Nil);
    // An array of pairs is what upstream says it is.
    c1.send_cmd(&["ZRANGE", "z", "0", "-1", "WITHSCORES"]);
    lane.expect(&["ZRANGE", "z", "0", "-1", "WITHSCORES"]).reply("*1\r\n*2\r\n$1\r\na\r\n$1\r\n1\r\n");
    assert_eq!(c1.read_reply_raw(), b"*1\r\n*2\r\n$1\r\na\r\n$1\r\n1\r\n");
    assert!(c1.cmd(&["HELLO", "3"]).text().starts_with("NOPERM"));
}

/// An old server with a password: AUTH, and NOAUTH where nobody has brought one.
#[test]
fn c28_resp2_and_a_password() {
    let redis = Redis::builder().args(&["--rename-command", "HELLO", "", "--requirepass", "pass"]).start();
    let proxy = Proxy::upstream(&redis.url()).start();
    let mut c1 = proxy.client();
    assert!(c1.cmd(&["GET", "k"]).text().starts_with("NOAUTH"));
    assert_eq!(c1.cmd(&["AUTH", "pass"]), Reply::ok());
    assert_eq!(c1.cmd(&["SET", "k", "1"]), Reply::ok());
    // Its mode is decided a second time when the channel has been let in, which ends what was stored before.
    eventually(PATIENCE, "\"k\" in the L1", || {
        assert_eq!(c1.cmd(&["GET", "k"]), Reply::bulk("1"));
        is_served(&mut c1, "k")
    });
}
