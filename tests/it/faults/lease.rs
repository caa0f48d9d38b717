use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::{Stand, assert_old_until, barrier, ms, read_until_silent, secs, served, wait_tracking, warm, within};
use crate::support::{Client, Dir, PATIENCE, Proxy, Redis, Relay, Reply, Scope, encode, eventually};

#[test]
fn c21_lease_on_stall() {
    let b = ms(400);
    let s = Stand::bound(b);
    let mut c = s.proxy.client();
    s.redis.cmd(&["MSET", "k", "1", "other", "1"]);
    warm(&s.proxy, &mut c, "k");
    warm(&s.proxy, &mut c, "other");
    let before = s.proxy.stats();
    // No other connection answers either: else reads would take the spare one.
    s.relay.stall(Scope::All, Dir::Down);
    s.redis.cmd(&["SET", "k", "2"]);
    let acked = Instant::now();
    let seen = read_until_silent(&mut c, "k", b * 3);
    assert_old_until(acked + b, &seen, b"$1\r\n1\r\n");
    s.relay.resume(Scope::All, Dir::Down);
    assert_eq!(c.reply(), Reply::bulk("2"));
    // A stall loses nothing, so nothing is flushed: the entry that nobody touched is good again.
    eventually(PATIENCE, "hits after the stall", || served(&mut c, "other").as_deref() == Some("yes"));
    let after = s.proxy.stats();
    assert_eq!((&after["lane_epoch"], &after["flushes_lane"]), (&before["lane_epoch"], &before["flushes_lane"]));
    assert_eq!(warm(&s.proxy, &mut c, "k"), Reply::bulk("2"));
}

#[test]
fn c21_a_stall_of_requests_ends_the_lease_as_well() {
    let b = ms(400);
    let s = Stand::bound(b);
    let mut c = s.proxy.client();
    s.redis.cmd(&["SET", "k", "1"]);
    warm(&s.proxy, &mut c, "k");
    s.relay.stall(Scope::All, Dir::Up);
    let stalled = Instant::now();
    let seen = read_until_silent(&mut c, "k", b * 2);
    assert_old_until(stalled + b, &seen, b"$1\r\n1\r\n");
    // Pushes still come through: no reason to serve what nobody vouches for, but a new value is never missed.
    s.redis.cmd(&["SET", "k", "2"]);
    s.relay.resume(Scope::All, Dir::Up);
    assert_eq!(c.reply(), Reply::bulk("2"));
}

#[test]
fn c22_half_open() {
    let b = ms(400);
    let s = Stand::bound(b);
    let mut c = s.proxy.client();
    s.redis.cmd(&["MSET", "k", "1", "old", "1"]);
    warm(&s.proxy, &mut c, "k");
    warm(&s.proxy, &mut c, "old");
    let epoch = s.proxy.stat("lane_epoch");
    s.relay.blackhole(Scope::Existing);
    let hole = Instant::now();
    s.redis.cmd(&["MSET", "k", "2", "old", "2"]);
    let acked = Instant::now();
    let mut seen = Vec::new();
    loop {
        let sent = Instant::now();
        let reply = c.cmd(&["GET", "k"]);
        if reply == Reply::bulk("2") {
            break;
        }
        seen.push((sent, format!("${}\r\n{}\r\n", reply.text().len(), reply.text()).into_bytes()));
    }
    assert_old_until(acked + b, &seen, b"$1\r\n1\r\n");
    // Reads were answered by the spare connection meanwhile.
    eventually(PATIENCE, "the lane to be killed", || s.proxy.stat("lane_epoch") != epoch);
    let took = hole.elapsed();
    assert!(took >= ms(2500) && took < secs(8), "the lane was killed after {took:?}, not after about 3 s");
    s.proxy.wait_logged("silent for 3 s");
    eventually(PATIENCE, "the next lane", || s.proxy.stat("lane_epoch") > epoch);
    let hits = s.proxy.stat("hits");
    assert_eq!(c.cmd(&["GET", "old"]), Reply::bulk("2"));
    assert_eq!(s.proxy.stat("hits"), hits, "an entry of the old epoch was a hit");
}

/// The lane dies with a question of the sidecar's own at its front, here INFO (`upstream.info_poll`): with B so long no
/// heartbeat comes before it. Nobody would have another reason to doubt the lane.
#[test]
fn c22_half_open_behind_a_question_of_our_own() {
    let redis = Redis::start();
    let relay = Relay::to(&redis);
    let proxy = within(secs(8), Proxy::upstream(&relay.url()))
        .set("upstream.info_poll", "1s")
        .set("coherence.sample_per_second", 0)
        .start();
    wait_tracking(&proxy);
    let asked = || redis.cmd(&["INFO", "commandstats"]).text().contains("cmdstat_info:calls=");
    eventually(PATIENCE, "the first question", asked);
    let epoch = proxy.stat("lane_epoch");
    relay.blackhole(Scope::Existing);
    eventually(secs(30), "the lane to be killed", || proxy.stat("lane_epoch") != epoch);
    proxy.wait_logged("silent for 3 s");
}

#[test]
fn c23_sidecar_frozen() {
    let b = ms(150);
    let redis = Redis::start();
    let relay = Relay::to(&redis);
    let mut proxy = within(b, Proxy::upstream(&relay.url())).start();
    wait_tracking(&proxy);
    let mut c = proxy.client();
    for round in 0..8 {
        let (old, new) = (format!("old{round}"), format!("new{round}"));
        redis.cmd(&["SET", "k", &old]);
        eventually(PATIENCE, "a hit", || warm(&proxy, &mut c, "k") == Reply::bulk(&old));
        // In every other round the push is not there yet when the sidecar goes on: then nothing but the lease can tell.
        if round % 2 == 0 {
            relay.stall(Scope::All, Dir::Down);
        }
        proxy.sigstop();
        redis.cmd(&["SET", "k", &new]);
        std::thread::sleep(b * 3); // the time that passes is the fault
        c.send_cmd(&["GET", "k"]);
        proxy.sigcont();
        if round % 2 == 0 {
            c.expect_silence(ms(100));
            relay.resume(Scope::All, Dir::Down);
        }
        assert_eq!(c.reply(), Reply::bulk(&new), "round {round}");
    }
}

/// R8 as it can be seen from outside: the sidecar is stopped at a moving place of a burst of hits, and when it goes on, the
/// next request and the push lie in its sockets together.
#[test]
fn c24_lease_before_entry_wherever_the_sidecar_is_stopped() {
    let b = ms(100);
    let redis = Redis::start();
    let mut proxy = within(b, Proxy::to(&redis)).start();
    let mut c = proxy.client();
    let burst = encode(&["GET", "k"]).repeat(200);
    for round in 0..20u64 {
        let (old, new) = (Reply::bulk(format!("old{round}")), Reply::bulk(format!("new{round}")));
        redis.cmd(&["SET", "k", &old.text()]);
        eventually(PATIENCE, "a hit", || warm(&proxy, &mut c, "k") == old);
        c.send(&burst);
        std::thread::sleep(Duration::from_micros(round * 50));
        proxy.sigstop();
        redis.cmd(&["SET", "k", &new.text()]);
        std::thread::sleep(b + ms(50)); // the time that passes is the fault
        c.send_cmd(&["GET", "k"]);
        proxy.sigcont();
        let replies: Vec<Reply> = (0..201).map(|_| c.reply()).collect();
        assert_eq!(replies[200], new, "round {round}");
        assert!(replies.is_sorted_by_key(|reply| *reply == new), "round {round} goes back in time: {replies:?}");
    }
}

#[test]
fn c47_busy_script() {
    let b = ms(300);
    // How long the script takes is the machine's affair; it is never "slow".
    let redis = Redis::builder().args(&["--lua-time-limit", "600000"]).start();
    // Nor is it gone, however long the machine takes.
    let proxy = within(b, Proxy::to(&redis)).set("upstream.stall_timeout", "0s").start();
    let mut c = proxy.client();
    redis.cmd(&["MSET", "k", "1", "other", "1"]);
    warm(&proxy, &mut c, "k");
    warm(&proxy, &mut c, "other");
    let epoch = proxy.stat("lane_epoch");
    let mut w = redis.client();
    // A script's clock stands still in some versions, so it counts.
    let count = |w: &mut Client, turns: u64| {
        let start = Instant::now();
        w.cmd(&["EVAL", "for i = 1, tonumber(ARGV[1]) do end", "0", &turns.to_string()]);
        start.elapsed()
    };
    // The fastest of some: what is slow only for the moment would make a script that is over before hits have to end.
    let fastest = (0..5).map(|_| count(&mut w, 2_000_000)).min().unwrap_or_default();
    let turns = (2_000_000.0 * 2.0 / fastest.as_secs_f64()) as u64;
    // Answers when it has written, by the server's clock (this machine's, too), then keeps the server busy for about 2 s.
    let script = "local t = redis.call('TIME') redis.call('SET', 'k', '2') for i = 1, tonumber(ARGV[1]) do end
        return t[1] * 1000 + math.floor(t[2] / 1000)";
    let mut hits = 0;
    // On a machine that is busy with other things the lease may be over before the first read.
    for _ in 0..5 {
        w.cmd(&["SET", "k", "1"]);
        // The lease has aged meanwhile.
        warm(&proxy, &mut c, "k");
        w.send_cmd(&["EVAL", script, "0", &turns.to_string()]);
        let offset = wall_ms_of(Instant::now());
        let seen = read_until_silent(&mut c, "k", b * 2);
        assert_eq!(c.reply(), Reply::bulk("2"), "after the script");
        let written = w.reply().int();
        for (sent, bytes) in &seen {
            let age = offset(*sent) - written;
            assert!(bytes == b"$1\r\n2\r\n" || age <= b.as_millis() as i64 + 1, "old {age} ms after it was replaced");
        }
        hits += seen.len();
        if hits > 0 {
            break;
        }
    }
    assert!(hits > 0, "no hit at all");
    eventually(PATIENCE, "hits go on", || served(&mut c, "other").as_deref() == Some("yes"));
    assert_eq!(proxy.stat("lane_epoch"), epoch, "a busy server is no dead lane");
}

/// Milliseconds since 1970 of any instant.
fn wall_ms_of(now: Instant) -> impl Fn(Instant) -> i64 {
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock after 1970").as_millis() as i64;
    move |at| {
        wall + at.saturating_duration_since(now).as_millis() as i64
            - now.saturating_duration_since(at).as_millis() as i64
    }
}

#[test]
fn c48_ping_is_answered_misconf() {
    let b = ms(800);
    let dir = tempfile::tempdir().expect("a directory to lose");
    let path = dir.path().display().to_string();
    let redis = Redis::builder().args(&["--save", "3600", "1", "--dir", &path]).start();
    let proxy = within(b, Proxy::to(&redis)).start();
    let mut c = proxy.client();
    redis.cmd(&["MSET", "k", "1", "gone", "1"]);
    warm(&proxy, &mut c, "k");
    dir.close().expect("the directory is empty");
    redis.cmd(&["BGSAVE"]);
    eventually(PATIENCE, "the save to fail", || redis.cmd(&["PING"]).text().starts_with("MISCONF"));
    let before = (proxy.stat("bypass_lease"), proxy.stat("lane_epoch"));
    let end = Instant::now() + b * 3;
    while Instant::now() < end {
        assert_eq!(c.cmd(&["GET", "k"]), Reply::bulk("1"));
    }
    // An error in its place proves as much as a PONG. One lapse is the machine's.
    let lapses = proxy.stat("bypass_lease") - before.0;
    assert!(lapses <= 1.0, "the lease lapsed {lapses} times in 3 B");
    assert_eq!(proxy.stat("lane_epoch"), before.1);
    redis.cmd(&["CONFIG", "SET", "stop-writes-on-bgsave-error", "no"]);
    redis.cmd(&["SET", "k", "2"]);
    barrier(&mut c);
    assert_eq!(c.cmd(&["GET", "k"]), Reply::bulk("2"));
}

#[test]
fn c49_idle_with_hits_is_kept_alive() {
    let s = Stand::bound(ms(200));
    s.redis.cmd(&["CONFIG", "SET", "timeout", "1"]);
    let mut c = s.proxy.client();
    s.redis.cmd(&["SET", "k", "1"]);
    warm(&s.proxy, &mut c, "k");
    let epoch = s.proxy.stat("lane_epoch");
    std::thread::sleep(secs(3)); // idleness is the fault
    assert_eq!(s.proxy.stat("lane_epoch"), epoch, "upstream's `timeout` closed a lane that serves");
    assert_eq!(served(&mut c, "k").as_deref(), Some("yes"), "the first read after a pause is a hit");
}

#[test]
fn c49_idle_lane_that_is_closed_is_never_stale() {
    let s = Stand::start();
    s.redis.cmd(&["CONFIG", "SET", "timeout", "1"]);
    let mut c = s.proxy.client();
    s.redis.cmd(&["SET", "k", "1"]);
    // No cacheable read: nothing keeps the lane open.
    s.proxy.wait_logged("lost the connection to upstream");
    s.redis.cmd(&["SET", "k", "2"]);
    assert_eq!(c.cmd(&["GET", "k"]), Reply::bulk("2"));
    assert_eq!(c.cmd(&["SET", "k", "3"]), Reply::ok());
    assert_eq!(c.cmd(&["GET", "k"]), Reply::bulk("3"));
}
