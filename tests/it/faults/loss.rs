use super::{LANE, Stand, barrier, ms, secs, wait_tracking, warm, within};
use crate::support::{Dir, Fake, PATIENCE, Proxy, Redis, Relay, Reply, Scope, eventually};

const UNKNOWN: &str = "NEARSIDE upstream connection lost: outcome unknown";

/// Waits until the sidecar has noticed that its lane is gone.
#[track_caller]
fn wait_lost(proxy: &Proxy, epoch: f64) {
    eventually(PATIENCE, "the lane to be lost", || proxy.stat("lane_epoch") != epoch);
}

#[test]
fn c25_kill() {
    let s = Stand::with(|proxy| proxy.set("outage.reads", "fail"));
    let mut c = s.proxy.client();
    s.redis.cmd(&["MSET", "k", "1", "other", "1"]);
    warm(&s.proxy, &mut c, "k");
    warm(&s.proxy, &mut c, "other");
    let (epoch, flushes) = (s.proxy.stat("lane_epoch"), s.proxy.stat("flushes_lane"));
    s.relay.refuse();
    s.redis.cmd(&["CLIENT", "KILL", "TYPE", "normal"]);
    wait_lost(&s.proxy, epoch);
    s.redis.cmd(&["MSET", "k", "2", "other", "2"]);
    let down = c.cmd(&["GET", "k"]);
    assert!(down.is_error(), "an entry of a lost lane was served: {down:?}");
    s.relay.heal();
    eventually(PATIENCE, "the new value", || match c.cmd(&["GET", "k"]) {
        Reply::Error(_) => false,
        reply => {
            assert_eq!(reply, Reply::bulk("2"));
            true
        }
    });
    assert_eq!(c.cmd(&["GET", "other"]), Reply::bulk("2"));
    assert_eq!(s.proxy.stat("flushes_lane"), flushes + 1.0);
    assert_eq!(warm(&s.proxy, &mut c, "k"), Reply::bulk("2"), "the new lane serves as the old one did");
}

#[test]
fn c26_a_fetch_that_was_half_answered_stores_nothing() {
    let upstream = Fake::start();
    let proxy = Proxy::upstream(&upstream.url()).set("coherence.canary", "off").start();
    let mut lane = upstream.lane();
    let mut c = proxy.client();
    c.send_cmd(&["GET", "k"]);
    lane.expect(&["GET", "k"]).expect(&["PTTL", "k"]).reply("$1\r\n1\r\n");
    assert_eq!(c.reply(), Reply::bulk("1"));
    lane.close();
    let mut lane = upstream.lane();
    c.send_cmd(&["GET", "k"]);
    lane.expect(&["GET", "k"]).reply("$1\r\n2\r\n");
    assert_eq!(c.reply(), Reply::bulk("2"));
}

#[test]
fn c26_a_fetch_that_was_sent_again_stores_nothing_with_its_old_token() {
    let upstream = Fake::start();
    let proxy = Proxy::upstream(&upstream.url()).set("coherence.canary", "off").start();
    let mut lane = upstream.lane();
    let mut c = proxy.client();
    c.send_cmd(&["GET", "k"]);
    lane.expect(&["GET", "k"]).expect(&["PTTL", "k"]).close();
    let mut lane = upstream.lane();
    lane.expect(&["GET", "k"]).reply("$1\r\n1\r\n");
    assert_eq!(c.reply(), Reply::bulk("1"));
    // Only what a fetch of this lane's own brings may be stored.
    if let Some(words) = lane.try_next(ms(50)) {
        assert_eq!(words, [b"PTTL", b"k".as_slice()]);
        lane.reply(":-1\r\n");
    }
    eventually(PATIENCE, "the lane to be at rest", || proxy.stat("in_flight") == 0.0);
    c.send_cmd(&["GET", "k"]);
    lane.expect(&["GET", "k"]).expect(&["PTTL", "k"]).reply("$1\r\n2\r\n").reply(":-1\r\n");
    assert_eq!(c.reply(), Reply::bulk("2"));
    assert_eq!(warm(&proxy, &mut c, "k"), Reply::bulk("2"));
}

/// The same against a real server, with the old lane's answer let go after the new lane has spoken.
#[test]
fn c26_in_flight_across_reconnect() {
    let s = Stand::start();
    let mut c = s.proxy.client();
    let mut other = s.proxy.client();
    for round in 0..20 {
        let (old, new) = (format!("old{round}"), format!("new{round}"));
        s.redis.cmd(&["SET", "k", &old]);
        barrier(&mut other);
        let lane = Scope::One(*s.relay.connections().last().expect("a lane"));
        let tracked = || s.redis.cmd(&["INFO", "stats"]).text();
        let items = |info: String| info.lines().find(|l| l.starts_with("tracking_total_keys")).map(str::to_owned);
        s.redis.cmd(&["FLUSHDB"]);
        s.redis.cmd(&["SET", "k", &old]);
        barrier(&mut other);
        let before = items(tracked());
        s.relay.stall(lane, Dir::Down);
        c.send_cmd(&["GET", "k"]);
        eventually(PATIENCE, "upstream to execute the GET", || items(tracked()) != before);
        s.relay.cut(lane);
        s.redis.cmd(&["SET", "k", &new]);
        let reply = c.reply();
        assert!(reply == Reply::bulk(&old) || reply == Reply::bulk(&new), "{reply:?}");
        barrier(&mut other);
        assert_eq!(other.cmd(&["GET", "k"]), Reply::bulk(&new), "round {round}");
        assert_eq!(c.cmd(&["GET", "k"]), Reply::bulk(&new), "round {round}");
    }
}

#[test]
fn c44_orphan_write() {
    let s = Stand::start();
    s.redis.cmd(&["SET", "k", "1"]);
    let mut c = s.proxy.client();
    warm(&s.proxy, &mut c, "k");
    let mut writer = s.proxy.client();
    assert_eq!(writer.cmd(&["MULTI"]), Reply::ok());
    assert_eq!(writer.cmd(&["SET", "k", "2"]), Reply::status("QUEUED"));
    let pinned = *s.relay.connections().last().expect("the pinned connection");
    assert_ne!(pinned, 0, "MULTI is on a connection of its own");
    let mut sleeper = s.redis.client();
    sleeper.send_cmd(&["DEBUG", "SLEEP", "0.7"]);
    wait_busy(&s.redis);
    let sent = s.relay.bytes(Scope::One(pinned), Dir::Up);
    writer.send_cmd(&["EXEC"]);
    eventually(PATIENCE, "EXEC on its way", || s.relay.bytes(Scope::One(pinned), Dir::Up) > sent);
    s.relay.cut(Scope::One(pinned));
    assert_eq!(writer.reply().text(), UNKNOWN);
    // Between the loss and the execution: either value, but what is read now may not stay.
    c.send_cmd(&["GET", "k"]);
    assert_eq!(sleeper.reply(), Reply::ok());
    let between = c.reply();
    assert!([Reply::bulk("1"), Reply::bulk("2")].contains(&between), "{between:?}");
    eventually(PATIENCE, "the orphan to execute", || s.redis.cmd(&["GET", "k"]) == Reply::bulk("2"));
    barrier(&mut c);
    assert_eq!(c.cmd(&["GET", "k"]), Reply::bulk("2"));
    assert_eq!(s.proxy.stat("pending_writes"), 0.0);
    assert_eq!(warm(&s.proxy, &mut c, "k"), Reply::bulk("2"));
}

/// Waits until the server does not answer.
#[track_caller]
pub(super) fn wait_busy(redis: &Redis) {
    let mut client = redis.client();
    eventually(PATIENCE, "a busy server", || {
        client.send_cmd(&["PING"]);
        client.try_read(ms(100)).is_none()
    });
}

#[test]
fn c46_server_kills_slow_lane() {
    // B is long, so that nothing but the loss itself can end the old entries.
    let redis = Redis::builder().args(&["--client-output-buffer-limit", "normal", "200kb", "0", "0"]).start();
    let mut proxy = within(secs(60), Proxy::to(&redis)).start();
    wait_tracking(&proxy);
    let names: Vec<String> = (0..1000).map(|i| format!("k{i:0>1000}")).collect();
    let set = |value: &str| {
        let words = names.iter().flat_map(|name| [name.as_str(), value]);
        redis.cmd(&[&["MSET"][..], &words.collect::<Vec<_>>()].concat());
    };
    set("1");
    let mut c = proxy.client();
    names.iter().for_each(|name| drop(c.cmd(&["GET", name])));
    let hits = proxy.stat("hits");
    assert!(names.iter().all(|name| c.cmd(&["GET", name]) == Reply::bulk("1")));
    assert_eq!(proxy.stat("hits"), hits + 1000.0);
    let epoch = proxy.stat("lane_epoch");
    proxy.sigstop();
    set("2");
    let lane = |line: &&str| line.contains("name=nearside:") && !line.contains(":channel ");
    let lanes = |list: Reply| list.text().lines().filter(lane).count();
    eventually(PATIENCE, "upstream to close the lane", || lanes(redis.cmd(&["CLIENT", "LIST"])) == 0);
    proxy.sigcont();
    wait_lost(&proxy, epoch);
    for name in &names {
        assert_eq!(c.cmd(&["GET", name]), Reply::bulk("2"));
    }
}

#[test]
fn c64_a_large_read_is_never_sent_again_past_an_own_write() {
    let s = Stand::start();
    let mut c = s.proxy.client();
    let element = vec![b'x'; 64 * 1024];
    let push: Vec<&[u8]> = [b"RPUSH".as_slice(), b"q"].into_iter().chain((0..32).map(|_| element.as_slice())).collect();
    for round in 0..5 {
        s.redis.cmd(&push);
        let replies = c.pipeline(&[&["LRANGE", "q", "0", "-1"][..], &["DEL", "q"]]);
        assert_eq!(replies[0].items().len(), 32, "round {round}");
        assert_eq!(replies[1], Reply::Int(1));
    }
}

#[test]
fn c64_a_lost_read_is_never_sent_again_past_an_own_write() {
    let s = Stand::start();
    let mut c = s.proxy.client();
    for (setup, read, write, left) in [
        (&["RPUSH", "q", "a"][..], &["LRANGE", "q", "0", "-1"][..], &["DEL", "q"][..], &["EXISTS", "q"][..]),
        (&["SET", "q", "a"], &["GET", "q"], &["DEL", "q"], &["EXISTS", "q"]),
        (&["SET", "q", "a"], &["MGET", "q", "r"], &["DEL", "q"], &["EXISTS", "q"]),
        (
            &["SET", "q", "a"],
            &["STRLEN", "q"],
            &["EVAL", "return redis.call('DEL', KEYS[1])", "1", "q"],
            &["EXISTS", "q"],
        ),
    ] {
        s.redis.cmd(setup);
        barrier(&mut c);
        let lane = Scope::One(*s.relay.connections().last().expect("a lane"));
        s.relay.stall(lane, Dir::Down);
        c.send_cmd(read);
        c.send_cmd(write);
        eventually(PATIENCE, "upstream to execute both", || s.redis.cmd(left) == Reply::Int(0));
        s.relay.cut(lane);
        assert_eq!(c.reply().text(), "NEARSIDE upstream connection lost", "{read:?} before {write:?}");
        assert_eq!(c.reply().text(), UNKNOWN, "{write:?} behind {read:?}");
    }
}

/// Of two sessions that wait for one fetch, only the one without a write behind it may have it sent again.
#[test]
fn c64_a_joined_fetch_is_sent_again_for_those_who_may() {
    let s = Stand::start();
    let (mut reader, mut writer) = (s.proxy.client(), s.proxy.client());
    s.redis.cmd(&["MSET", "k", "1", "mark", "1"]);
    warm(&s.proxy, &mut reader, "warm-up"); // so that the lane is vouched for and reads join
    s.relay.stall(LANE, Dir::Down);
    reader.send_cmd(&["GET", "k"]);
    let joined = s.proxy.stat("coalesced");
    eventually(PATIENCE, "the fetch to be under way", || s.proxy.stat("in_flight") > 0.0);
    writer.send_cmd(&["GET", "k"]);
    eventually(PATIENCE, "the second reader to join", || s.proxy.stat("coalesced") > joined);
    writer.send_cmd(&["DEL", "mark"]);
    eventually(PATIENCE, "the DEL to execute", || s.redis.cmd(&["EXISTS", "mark"]) == Reply::Int(0));
    s.relay.cut(LANE);
    assert_eq!(writer.reply().text(), "NEARSIDE upstream connection lost");
    assert_eq!(writer.reply().text(), UNKNOWN);
    assert_eq!(reader.reply(), Reply::bulk("1"));
}

#[test]
fn c64_no_value_newer_than_a_later_reply() {
    let redis = Redis::start();
    let relay = Relay::to(&redis);
    let proxy = Proxy::upstream(&relay.url()).start();
    let mut c = proxy.client();
    let over = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            // Each value is longer than the one before, and larger than what a lane carries.
            let mut w = redis.client();
            for size in (0..).map(|i| (1 << 20) + 1000 + i * 100) {
                if over.load(std::sync::atomic::Ordering::Relaxed) {
                    return;
                }
                w.cmd(&[b"SET".as_slice(), b"big", &vec![b'x'; size]]);
            }
        });
        eventually(PATIENCE, "a first value", || redis.cmd(&["EXISTS", "big"]) == Reply::Int(1));
        for round in 0..60 {
            // Even: both are large for a lane that has forgotten the key; odd: the remembered way.
            let replies = c.pipeline(&[&["GET", "big"][..], &["STRLEN", "big"]]);
            let (got, length) = (replies[0].text().len() as i64, replies[1].int());
            assert!(got <= length, "round {round}: GET brought {got} bytes, STRLEN behind it says {length}");
        }
        over.store(true, std::sync::atomic::Ordering::Relaxed);
        writer.join().expect("the writer");
    });
}
