//! `refresh_ahead` and `stale_while_revalidate`: what is hit near the end of its ttl, or beyond it, is read again behind the
//! reply, once for all who read it and within a budget; and nothing of it outlives what the rule, the key and the mode allow.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::proxy::Builder;
use crate::support::{Client, Dir, PATIENCE, Proxy, Redis, Relay, Reply, Scope, encode, eventually};

const LANE: Scope = Scope::One(0);

/// No lapsed lease may pass for the end of an entry.
const LONG_LEASE: &str = "30s";

struct Real {
    proxy: Proxy,
    relay: Relay,
    redis: Redis,
}

impl Real {
    #[track_caller]
    fn start(rule: Value, configure: impl FnOnce(Builder) -> Builder) -> Real {
        let redis = Redis::start();
        let relay = Relay::to(&redis);
        // GETs are counted here, so nobody else sends any.
        let builder = Proxy::upstream(&relay.url())
            .set("coherence.max_staleness", LONG_LEASE)
            .set("coherence.canary", "off")
            .set("coherence.sample_per_second", 0)
            .set("rules", json!([rule]));
        let proxy = configure(builder).start();
        eventually(PATIENCE, "a lane", || proxy.stats()["coherence"] != "probing");
        Real { proxy, relay, redis }
    }

    fn calls(&self, command: &str) -> u64 {
        calls(&self.redis, command)
    }

    fn stat(&self, name: &str) -> u64 {
        self.proxy.stat(name) as u64
    }
}

fn calls(redis: &Redis, command: &str) -> u64 {
    let stats = redis.cmd(&["INFO", "commandstats"]).text();
    let start = format!("cmdstat_{command}:calls=");
    stats.lines().find_map(|line| line.strip_prefix(&start)?.split(',').next()?.parse().ok()).unwrap_or(0)
}

fn is_stored(client: &mut Client, key: &str) -> bool {
    client.cmd(&["NEARSIDE", "ENTRY", key]) != Reply::Nil
}

/// Reads `key` until the L1 has it; between these two instants the reading was sent that is stored.
#[track_caller]
fn fill(client: &mut Client, key: &str, value: &str) -> (Instant, Instant) {
    let before = Instant::now();
    assert_eq!(client.cmd(&["GET", key]), Reply::bulk(value));
    let after = Instant::now();
    eventually(PATIENCE, "the entry", || is_stored(client, key));
    (before, after)
}

/// Asks for `key` until the answer is another one than `old`; when the last request was sent that `old` was the answer to.
#[track_caller]
fn last_old(client: &mut Client, key: &str, old: &str) -> Option<Instant> {
    let (began, mut last) = (Instant::now(), None);
    loop {
        let sent = Instant::now();
        if client.cmd(&["GET", key]) != Reply::bulk(old) {
            return last;
        }
        last = Some(sent);
        assert!(began.elapsed() < PATIENCE, "{old} never ends");
    }
}

#[test]
fn a_hot_key_is_read_again_before_its_end_once_for_fifty_readers() {
    let real = Real::start(json!({"pattern": "*", "ttl": "5s", "refresh_ahead": "4900ms"}), |b| b);
    real.redis.cmd(&["SET", "k", "1"]);
    let mut clients: Vec<Client> = (0..50).map(|_| real.proxy.client()).collect();
    fill(&mut clients[0], "k", "1");
    let misses = real.stat("misses");
    // All fifty ask many times over while one reading is under way.
    real.relay.delay(LANE, Dir::Down, Duration::from_millis(40));
    eventually(PATIENCE, "four readings", || {
        for client in &mut clients {
            assert_eq!(client.cmd(&["GET", "k"]), Reply::bulk("1"));
        }
        real.stat("refreshes_ahead_stored") >= 4
    });
    // The last one may be under way still.
    let (read, counted) = (real.calls("get"), real.stat("refreshes_ahead_stored"));
    assert!((counted + 1..=counted + 2).contains(&read), "{read} GETs for {counted} readings and one miss");
    assert_eq!(real.stat("misses"), misses, "it never ended");
    assert_eq!(real.proxy.metric("nearside_refreshes_total{cause=\"stale\",result=\"stored\"}"), 0.0);
    // It is as coherent as ever.
    real.redis.cmd(&["SET", "k", "2"]);
    eventually(PATIENCE, "the new value", || clients[7].cmd(&["GET", "k"]) == Reply::bulk("2"));
}

#[test]
fn a_cold_key_is_left_to_end() {
    let real = Real::start(json!({"pattern": "*", "ttl": "300ms", "refresh_ahead": "200ms"}), |b| b);
    real.redis.cmd(&["SET", "k", "1"]);
    let mut c1 = real.proxy.client();
    fill(&mut c1, "k", "1");
    eventually(PATIENCE, "its end", || {
        let entry = c1.cmd(&["NEARSIDE", "ENTRY", "k"]);
        entry == Reply::Nil || entry.get("ttl_ms") == Reply::bulk("0")
    });
    assert_eq!(real.calls("get"), 1);
}

#[test]
fn stale_is_served_while_upstream_is_slow_and_no_longer() {
    let real = Real::start(json!({"pattern": "*", "ttl": "200ms", "stale_while_revalidate": "800ms"}), |b| b);
    real.redis.cmd(&["SET", "k", "1"]);
    let mut c1 = real.proxy.client();
    let (_, read) = fill(&mut c1, "k", "1");
    real.relay.stall(LANE, Dir::Down);
    // Its invalidation is stalled as well, and the lease is long: only the entry's own end ends it.
    real.redis.cmd(&["SET", "k", "2"]);
    let misses = real.stat("misses");
    let last = std::thread::scope(|scope| {
        // Once it is no hit any more.
        scope.spawn(|| {
            eventually(PATIENCE, "a miss", || real.stat("misses") > misses);
            real.relay.resume(LANE, Dir::Down);
        });
        last_old(&mut c1, "k", "1").expect("a hit")
    });
    assert!(last > read + Duration::from_millis(200), "nothing was served beyond its ttl");
    assert!(last <= read + Duration::from_millis(1000), "served beyond ttl and stale_while_revalidate");
    assert_eq!(c1.cmd(&["GET", "k"]), Reply::bulk("2"));
    // The reading from before the write stored nothing.
    eventually(PATIENCE, "the reading's end", || real.stat("refreshes_stale_discarded") == 1);
}

#[test]
fn stale_never_passes_upstreams_own_expiry() {
    let rule = json!({"pattern": "*", "ttl": "100ms", "refresh_ahead": "20ms", "stale_while_revalidate": "1h"});
    let real = Real::start(rule, |b| b);
    let mut c1 = real.proxy.client();
    real.redis.cmd(&["SET", "k", "1", "PX", "600"]);
    let set = Instant::now();
    fill(&mut c1, "k", "1");
    let last = last_old(&mut c1, "k", "1").expect("a hit");
    assert!(last > set + Duration::from_millis(100), "nothing was served beyond its ttl");
    // Redis itself answers with it for a little longer: its clock stands still while a turn of its loop lasts.
    assert!(last < set + Duration::from_millis(610), "served after it had expired: {:?}", last - set);
    assert_eq!(c1.cmd(&["GET", "k"]), Reply::Nil);
    // Near its key's end it is not read again and again: that end stays where it is. In the last 5 ms (`cache.ttl_buffer`)
    // nothing is served, and every GET is a miss; thousands were asked before.
    let (asked, hits) = (real.calls("get"), real.stat("hits"));
    assert!(asked < 200 && asked * 5 < hits, "{asked} GETs upstream, {hits} hits");
}

#[test]
fn a_foreign_write_ends_a_stale_entry_at_once() {
    let real = Real::start(json!({"pattern": "*", "ttl": "1ms", "stale_while_revalidate": "1h"}), |b| b);
    real.redis.cmd(&["SET", "k", "1"]);
    let mut c1 = real.proxy.client();
    fill(&mut c1, "k", "1");
    // The second reading does not reach upstream; what upstream says reaches us.
    real.relay.stall(LANE, Dir::Up);
    assert_eq!(c1.cmd(&["GET", "k"]), Reply::bulk("1"), "stale");
    assert_eq!(c1.cmd(&["GET", "k"]), Reply::bulk("1"), "and not read twice");
    real.redis.cmd(&["SET", "k", "2"]);
    eventually(PATIENCE, "the invalidation", || !is_stored(&mut c1, "k"));
    real.relay.resume(LANE, Dir::Up);
    assert_eq!(c1.cmd(&["GET", "k"]), Reply::bulk("2"));
    assert_eq!(real.stat("refreshes_stale_over_budget"), 0);
}

/// 10,000 keys of which every hit asks to be read again: counted by upstream itself.
#[test]
fn what_is_read_again_is_a_share_of_what_goes_upstream() {
    const KEYS: usize = 10_000;
    let real = Real::start(json!({"pattern": "*", "ttl": "1h", "stale_while_revalidate": "1h"}), |b| {
        b.set("coherence.ttl_cap.tracking", "1ms")
    });
    let mut direct = real.redis.client();
    let mut c1 = real.proxy.client();
    let names: Vec<String> = (0..KEYS).map(|i| format!("k:{i}")).collect();
    for chunk in names.chunks(50) {
        let pairs: Vec<&str> = chunk.iter().flat_map(|name| [name.as_str(), "v"]).collect();
        direct.cmd(&[&["MSET"][..], &pairs].concat());
        let mget: Vec<&str> = std::iter::once("MGET").chain(chunk.iter().map(String::as_str)).collect();
        c1.cmd(&mget);
    }
    eventually(PATIENCE, "all entries", || real.stat("entries") == KEYS as u64);
    let misses = real.stat("misses");
    let all: Vec<u8> = names.iter().flat_map(|name| encode(&["GET", name])).collect();
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(3) {
        c1.send(&all);
        for _ in 0..KEYS {
            assert_eq!(c1.reply(), Reply::bulk("v"));
        }
    }
    let seconds = began.elapsed().as_secs() + 1;
    // In the second after the loading a tenth of its 10,200 commands, in each of the others 50 readings.
    let most = (KEYS as u64 + 200) / 20 + 50 * (seconds + 1);
    let read = real.calls("get");
    assert!(read <= most, "{read} GETs in {seconds} s are more than {most}");
    assert!(read >= 50, "only {read} were read again");
    assert!(real.stat("refreshes_stale_over_budget") > 1000);
    assert_eq!(real.stat("misses"), misses, "all were hits");
}

#[test]
fn nothing_is_read_again_while_upstream_is_gone_and_a_lost_reading_is_forgotten() {
    let mut real = Real::start(json!({"pattern": "*", "ttl": "1ms", "stale_while_revalidate": "1h"}), |b| b);
    real.redis.cmd(&["SET", "k", "1"]);
    let mut c1 = real.proxy.client();
    fill(&mut c1, "k", "1");
    // A hit while filling may have begun a reading; that one is answered.
    let in_flight = || real.proxy.metric("nearside_upstream_in_flight");
    eventually(PATIENCE, "the end of earlier readings", || in_flight() == 0.0);
    real.relay.stall(LANE, Dir::Up);
    eventually(PATIENCE, "a reading that gets no answer", || {
        assert_eq!(c1.cmd(&["GET", "k"]), Reply::bulk("1"));
        in_flight() > 0.0
    });
    real.relay.cut(LANE);
    eventually(PATIENCE, "its loss", || real.stat("refreshes_stale_lost") == 1);
    // On the next connection the key is read and read again as before.
    eventually(PATIENCE, "another reading", || {
        c1.cmd(&["GET", "k"]);
        real.stat("refreshes_stale_stored") >= 1
    });
    real.redis.stop();
    // What is read from then on is served as it was when upstream went (`outage.reads`): those are no hits of the lane.
    eventually(PATIENCE, "the loss of upstream", || {
        c1.cmd(&["GET", "k"]);
        real.stat("stale_served") > 0
    });
    let before = real.proxy.metric_sum("nearside_refreshes_total");
    for _ in 0..20 {
        assert_eq!(c1.cmd(&["GET", "k"]), Reply::bulk("1"), "from before");
    }
    assert_eq!(real.proxy.metric_sum("nearside_refreshes_total"), before);
}

#[test]
fn nothing_is_read_again_on_a_lane_that_is_held_up() {
    let real = Real::start(json!({"pattern": "*", "ttl": "1ms", "stale_while_revalidate": "1h"}), |b| {
        // Held up after 3 s; hits go on for the rest.
        b.set("coherence.max_staleness", "20s")
    });
    real.redis.cmd(&["MSET", "k", "1", "other", "1"]);
    let (mut c1, mut writer) = (real.proxy.client(), real.proxy.client());
    fill(&mut c1, "k", "1");
    real.redis.cmd(&["CLIENT", "PAUSE", "60000", "WRITE"]);
    writer.send_cmd(&["SET", "other", "2"]);
    eventually(PATIENCE, "a spare connection", || real.proxy.metric("nearside_lanes_held_up_total") == 1.0);
    assert_eq!(c1.cmd(&["GET", "k"]), Reply::bulk("1"));
    assert_eq!(real.stat("refreshes_stale_held_up"), 1);
    real.redis.cmd(&["CLIENT", "UNPAUSE"]);
    assert_eq!(writer.reply(), Reply::ok());
    eventually(PATIENCE, "a reading", || {
        c1.cmd(&["GET", "k"]);
        real.stat("refreshes_stale_stored") >= 1
    });
}

#[test]
fn other_commands_and_mget_have_their_keys_read_again() {
    let rule = json!({"pattern": "*", "commands": ["LRANGE", "MGET"], "ttl": "1ms", "stale_while_revalidate": "1h"});
    let real = Real::start(rule, |b| b);
    real.redis.cmd(&["RPUSH", "l", "a", "b"]);
    real.redis.cmd(&["MSET", "x", "1", "y", "2"]);
    let mut c1 = real.proxy.client();
    let lrange = ["LRANGE", "l", "0", "-1"];
    assert_eq!(c1.cmd(&lrange), Reply::bulks(&["a", "b"]));
    eventually(PATIENCE, "the form read again", || {
        assert_eq!(c1.cmd(&lrange), Reply::bulks(&["a", "b"]));
        real.stat("refreshes_stale_stored") >= 1
    });
    let (forms, gets) = (real.stat("refreshes_stale_stored"), real.calls("get"));
    assert!(real.calls("lrange") > forms && gets == 0, "LRANGE is read again by LRANGE");
    let mget = ["MGET", "x", "y"];
    eventually(PATIENCE, "both keys read again", || {
        assert_eq!(c1.cmd(&mget), Reply::bulks(&["1", "2"]));
        real.calls("get") >= 2
    });
    assert_eq!(real.calls("mget"), 1, "the one miss");
    // A split MGET's hits as well.
    let (gets, mut others) = (real.calls("get"), 0);
    eventually(PATIENCE, "the hit read again", || {
        // One of them is never there, so each is split; a hit on what was read this very moment is not due.
        others += 1;
        let other = format!("z{others}");
        real.redis.cmd(&["SET", &other, "3"]);
        assert_eq!(c1.cmd(&["MGET", "x", &other]), Reply::bulks(&["1", "3"]));
        real.calls("get") > gets
    });
    real.redis.cmd(&["RPUSH", "l", "c"]);
    eventually(PATIENCE, "the change", || c1.cmd(&lrange) == Reply::bulks(&["a", "b", "c"]));
}

#[test]
fn clients_of_other_workers_have_keys_read_again() {
    let rule = json!({"pattern": "*", "ttl": "5s", "refresh_ahead": "4900ms"});
    let real = Real::start(rule, |b| b.set("workers", 3));
    real.redis.cmd(&["SET", "k", "1"]);
    let mut clients: Vec<Client> = (0..6).map(|_| real.proxy.client()).collect();
    fill(&mut clients[0], "k", "1");
    let misses = real.stat("misses");
    // Each of them alone keeps it in the cache: none loses the reading.
    for client in &mut clients {
        let before = real.stat("refreshes_ahead_stored");
        eventually(PATIENCE, "a reading", || {
            assert_eq!(client.cmd(&["GET", "k"]), Reply::bulk("1"));
            real.stat("refreshes_ahead_stored") > before
        });
    }
    assert_eq!(real.stat("misses"), misses);
    let by_worker = real.proxy.stats()["hits_by_worker"].clone();
    assert!(by_worker.split(',').all(|hits| hits != "0"), "{by_worker}");
}

/// There the promise is the cap; a rule that asks for more has cap and `stale_while_revalidate`.
#[test]
fn in_ttl_mode_the_bound_is_cap_and_stale_while_revalidate() {
    let rule = json!({"pattern": "*", "ttl": "1h", "stale_while_revalidate": "700ms"});
    let real = Real::start(rule, |b| b.set("coherence.mode", "ttl").set("coherence.ttl_cap.ttl", "300ms"));
    real.redis.cmd(&["SET", "k", "1"]);
    let mut c1 = real.proxy.client();
    let (_, read) = fill(&mut c1, "k", "1");
    real.redis.cmd(&["SET", "k", "2"]);
    real.relay.stall(LANE, Dir::Down);
    let misses = real.stat("misses");
    let last = std::thread::scope(|scope| {
        // Once it is no hit any more.
        scope.spawn(|| {
            eventually(PATIENCE, "a miss", || real.stat("misses") > misses);
            real.relay.resume(LANE, Dir::Down);
        });
        last_old(&mut c1, "k", "1").expect("a hit")
    });
    assert!(last > read + Duration::from_millis(300), "nothing was served beyond the cap");
    assert!(last <= read + Duration::from_millis(1000), "served beyond cap and stale_while_revalidate");
    // Where upstream answers, the second reading brings the new value long before that.
    eventually(PATIENCE, "the new value", || c1.cmd(&["GET", "k"]) == Reply::bulk("2"));
    real.redis.cmd(&["SET", "k", "3"]);
    eventually(PATIENCE, "the newest value", || c1.cmd(&["GET", "k"]) == Reply::bulk("3"));
}

/// The cap is less than `refresh_ahead`: half of it is.
#[test]
fn a_hot_key_stays_in_ttl_and_pubsub_mode() {
    for mode in ["ttl", "pubsub"] {
        let rule = json!({"pattern": "*", "ttl": "1h", "refresh_ahead": "59m"});
        let cap = format!("coherence.ttl_cap.{mode}");
        let real = Real::start(rule, |b| b.set("coherence.mode", mode).set(&cap, "3s"));
        eventually(PATIENCE, "its mode", || real.proxy.stats()["session_coherence"] == mode);
        real.redis.cmd(&["SET", "k", "1"]);
        let mut c1 = real.proxy.client();
        eventually(PATIENCE, "an entry", || {
            assert_eq!(c1.cmd(&["GET", "k"]), Reply::bulk("1"));
            is_stored(&mut c1, "k")
        });
        let misses = real.stat("misses");
        eventually(PATIENCE, "two readings", || {
            assert_eq!(c1.cmd(&["GET", "k"]), Reply::bulk("1"));
            real.stat("refreshes_ahead_stored") >= 2
        });
        assert_eq!(real.stat("misses"), misses, "{mode}: it never ended");
        // An own write is seen at once, also across a reading that is under way.
        for n in 2..40 {
            let value = n.to_string();
            c1.cmd(&["GET", "k"]);
            assert_eq!(c1.cmd(&["SET", "k", &value]), Reply::ok());
            assert_eq!(c1.cmd(&["GET", "k"]), Reply::bulk(&value), "{mode}");
        }
    }
}

#[test]
fn entry_and_rules_say_when() {
    let real = Real::start(json!({"name": "r", "pattern": "*", "ttl": "1h", "refresh_ahead": "10m"}), |b| b);
    real.redis.cmd(&["SET", "k", "1"]);
    real.redis.cmd(&["SET", "short", "1", "EX", "60"]);
    let mut c1 = real.proxy.client();
    fill(&mut c1, "k", "1");
    let left: u64 = c1.cmd(&["NEARSIDE", "ENTRY", "k"]).get("refresh_in_ms").text().parse().expect("milliseconds");
    assert!((2_990_000..=3_000_000).contains(&left), "{left}");
    // It ends with its key, which reading it again would not change.
    fill(&mut c1, "short", "1");
    assert_eq!(c1.cmd(&["NEARSIDE", "ENTRY", "short"]).get("refresh_in_ms"), Reply::bulk(""));
    let rule = c1.cmd(&["NEARSIDE", "RULES"]).items()[0].clone();
    assert_eq!(rule.get("refresh_ahead_ms"), Reply::bulk("600000"));
    assert_eq!(rule.get("stale_while_revalidate_ms"), Reply::bulk("0"));
}
