//! The spare connection of a held-up lane, from outside: a pause (C61), a script (C62), a command that blocks (C63).

use std::time::Instant;

use super::{LANE, Stand, ms, secs, wait_tracking, warm, within};
use crate::support::fake::Conn;
use crate::support::{Client, Dir, Fake, PATIENCE, Proxy, Redis, Relay, Reply, Scope, eventually};

/// A pause much longer than anything that must not wait for it.
const PAUSE: &str = "60000";

#[track_caller]
fn wait_held_up(proxy: &Proxy) {
    eventually(PATIENCE, "a held-up lane", || proxy.metric("nearside_lanes_held_up_total") >= 1.0);
}

/// A write of `client`'s is on the lane, and upstream postpones it.
#[track_caller]
fn postponed(s: &Stand, client: &mut Client, key: &str) {
    assert_eq!(s.redis.cmd(&["CLIENT", "PAUSE", PAUSE, "WRITE"]), Reply::ok());
    client.send_cmd(&["SET", key, "1"]);
    eventually(PATIENCE, "the write to be postponed", || {
        s.redis.cmd(&["INFO", "clients"]).text().contains("blocked_clients:1")
    });
}

#[test]
fn c61_paused_writes() {
    let b = secs(1);
    let s = Stand::bound(b);
    s.redis.cmd(&["SET", "other", "7"]);
    let (mut c1, mut c2, mut c3) = (s.proxy.client(), s.proxy.client(), s.proxy.client3());
    let epoch = s.proxy.stat("lane_epoch");
    postponed(&s, &mut c1, "k");
    let asked = Instant::now();
    // Sent behind the write, so they move; whoever asks later goes to the spare connection at once.
    c3.send_cmd(&["INFO", "server"]);
    assert_eq!(c2.cmd(&["GET", "other"]), Reply::bulk("7"));
    assert!(c3.reply().text().contains("redis_version"));
    assert!(asked.elapsed() < secs(20), "{:?}: it waited for the pause", asked.elapsed());
    wait_held_up(&s.proxy);
    assert_eq!(c2.cmd(&["MGET", "other", "none"]), Reply::Array(vec![Reply::bulk("7"), Reply::Nil]));
    assert_eq!(c3.cmd(&["HGETALL", "none"]), Reply::Map(vec![]));
    assert!(c2.cmd(&["INFO", "server"]).text().contains("redis_version"));
    assert_eq!(c3.cmd(&["CLIENT", "UNPAUSE"]), Reply::ok());
    assert_eq!(c1.reply(), Reply::ok());
    assert_eq!(c1.cmd(&["GET", "k"]), Reply::bulk("1"));
    assert_eq!(s.proxy.stat("lane_epoch"), epoch, "the lane was killed");
    assert_eq!(s.proxy.metric("nearside_lanes_held_up_total"), 1.0);
}

/// Its `OK` is not lost, nothing is executed twice or out of order, and the pause stays a pause for writes.
#[test]
fn c61_writes_and_what_is_behind_them_wait() {
    let s = Stand::bound(secs(1));
    let (mut c1, mut c2, mut c3, mut c4) = (s.proxy.client(), s.proxy.client(), s.proxy.client(), s.proxy.client());
    postponed(&s, &mut c1, "k");
    c1.send_cmd(&["GET", "k"]);
    c4.send_cmd(&["APPEND", "own", "a"]);
    c4.send_cmd(&["GET", "own"]);
    assert_eq!(c2.cmd(&["GET", "none"]), Reply::Nil);
    // On the spare connection first, then on the lane, and the read behind the write not before it.
    c2.send(&crate::support::encode(&["STRLEN", "mine"]));
    assert_eq!(c2.reply(), Reply::Int(0));
    for words in [&["GET", "mine"][..], &["APPEND", "mine", "x"], &["GET", "mine"]] {
        c2.send_cmd(words);
    }
    assert_eq!(c2.reply(), Reply::Nil);
    c3.send_cmd(&["PUBLISH", "c", "m"]);
    let library = "#!lua name=f\nredis.register_function('f', function() return 1 end)";
    let mut c5 = s.proxy.client();
    c5.send_cmd(&["FUNCTION", "LOAD", library]);
    for waiting in [&mut c1, &mut c2, &mut c3, &mut c4, &mut c5] {
        waiting.expect_silence(ms(300));
    }
    s.redis.cmd(&["CLIENT", "UNPAUSE"]);
    assert_eq!((c1.reply(), c1.reply()), (Reply::ok(), Reply::bulk("1")));
    assert_eq!((c2.reply(), c2.reply()), (Reply::Int(1), Reply::bulk("x")));
    assert_eq!((c3.reply(), c5.reply()), (Reply::Int(0), Reply::bulk("f")));
    assert_eq!((c4.reply(), c4.reply()), (Reply::Int(1), Reply::bulk("a")));
}

/// When the lane moves again its sessions are back on it, and the spare connection is only kept for a while.
#[test]
fn c61_sessions_return_to_the_lane() {
    let s = Stand::bound(ms(400));
    let (mut c1, mut c2) = (s.proxy.client(), s.proxy.client());
    postponed(&s, &mut c1, "k");
    assert_eq!(c2.cmd(&["GET", "other"]), Reply::Nil);
    s.redis.cmd(&["CLIENT", "UNPAUSE"]);
    assert_eq!(c1.reply(), Reply::ok());
    // Only what the lane has read is stored.
    assert_eq!(warm(&s.proxy, &mut c2, "other"), Reply::Nil);
    let names = || s.redis.cmd(&["CLIENT", "LIST"]).text().matches("name=nearside:").count();
    let with_spare = names();
    eventually(secs(60), "the spare connection to be closed", || names() < with_spare);
}

/// R21: what the spare has told is newer than what the lane has proved. The lease of the old copy lasts all the while.
#[track_caller]
fn assert_no_read_goes_back_behind_one_of_the_spare(mode: &str) {
    let redis = Redis::start();
    let relay = Relay::to(&redis);
    let proxy = within(secs(10), Proxy::upstream(&relay.url()))
        .set("coherence.mode", mode)
        .set("coherence.ttl_cap.pubsub", "1h")
        .set("coherence.ttl_cap.ttl", "1h")
        .set("coherence.sample_per_second", 0)
        .start();
    let (mut c1, mut c2) = (proxy.client(), proxy.client());
    redis.cmd(&["SET", "k", "1"]);
    eventually(PATIENCE, mode, || proxy.stats()["coherence"] == mode);
    warm(&proxy, &mut c1, "k");
    relay.stall(LANE, Dir::Down);
    // A write may be held up by a pause, so the lane is not dead.
    c2.send_cmd(&["APPEND", "waits", "x"]);
    wait_held_up(&proxy);
    redis.cmd(&["SET", "k", "2"]);
    // The second one takes no hit, because the first is on the spare still.
    assert_eq!(c1.pipeline(&[&["GET", "none"], &["GET", "k"]]), [Reply::Nil, Reply::bulk("2")]);
    assert_eq!(c1.cmd(&["GET", "k"]), Reply::bulk("2"), "back in time");
    relay.resume(LANE, Dir::Down);
    assert_eq!(c2.reply(), Reply::Int(1));
    assert_eq!(c1.cmd(&["GET", "k"]), Reply::bulk("2"));
}

#[test]
fn no_read_goes_back_behind_one_of_the_spare() {
    assert_no_read_goes_back_behind_one_of_the_spare("tracking");
}

#[test]
fn no_read_goes_back_behind_one_of_the_spare_in_pubsub_mode() {
    assert_no_read_goes_back_behind_one_of_the_spare("pubsub");
}

#[test]
fn no_read_goes_back_behind_one_of_the_spare_in_ttl_mode() {
    assert_no_read_goes_back_behind_one_of_the_spare("ttl");
}

#[test]
fn c62_busy_script() {
    for db in ["0", "3"] {
        let redis = Redis::builder().args(&["--busy-reply-threshold", "100"]).start();
        let proxy = within(ms(400), Proxy::to(&redis)).start();
        wait_tracking(&proxy);
        let mut clients: Vec<Client> = (0..4).map(|_| proxy.client()).collect();
        for c in &mut clients {
            c.cmd(&["SELECT", db]);
            c.cmd(&["EXISTS", "k"]);
        }
        let epoch = proxy.stat("lane_epoch");
        let [c1, c2, c3, c4] = &mut clients[..] else { panic!("four clients") };
        c1.send_cmd(&["EVAL", "while true do end", "0"]);
        c1.send_cmd(&["GET", "k"]);
        // Two clients' commands have no order, least of all with two workers.
        eventually(PATIENCE, "the script to run", || c2.cmd(&["PING"]).text().starts_with("BUSY"));
        assert!(c2.cmd(&["GET", "k"]).text().starts_with("BUSY"));
        for words in [&["SET", "k", "1"][..], &["EVAL", "return 1", "0"], &["MSET", "k", "1", "l", "1"]] {
            assert!(c4.cmd(words).text().starts_with("BUSY"), "{words:?} in database {db}");
        }
        c4.send_cmd(&["GET", "k"]);
        c4.send_cmd(&["SET", "k", "2"]);
        assert!(c4.reply().text().starts_with("BUSY") && c4.reply().text().starts_with("BUSY"));
        assert_eq!(c3.cmd(&["SCRIPT", "KILL"]), Reply::ok());
        let killed = c1.reply();
        assert!(killed.text().contains("Script killed"), "{killed:?}");
        assert_eq!(c1.reply(), Reply::Nil);
        assert_eq!(c2.cmd(&["PING"]), Reply::status("PONG"));
        assert_eq!(c4.cmd(&["SET", "k", "3"]), Reply::ok());
        assert_eq!(c2.cmd(&["GET", "k"]), Reply::bulk("3"));
        assert_eq!(redis.cmd(&["EXISTS", "k"]), Reply::Int(i64::from(db == "0")), "written to another database");
        assert_eq!(proxy.stat("lane_epoch"), epoch, "the lane was killed");
        assert_eq!(proxy.stat("pending_writes"), 0.0);
    }
}

/// An upstream with a module's command that blocks its client, called BLOCKS.
struct Blocked {
    lane: Conn,
    proxy: Proxy,
    fake: Fake,
}

impl Blocked {
    #[track_caller]
    fn start() -> Blocked {
        let module = "*1\r\n*7\r\n$6\r\nblocks\r\n:-1\r\n*1\r\n+module\r\n:0\r\n:0\r\n:0\r\n*0\r\n";
        let fake = Fake::builder().answer("COMMAND INFO", module).start();
        // What is read is kept at once, not after the canary.
        let proxy = within(secs(2), Proxy::upstream(&fake.url())).set("coherence.canary", "off").start();
        let lane = fake.lane();
        Blocked { lane, proxy, fake }
    }

    #[track_caller]
    fn blocks(&mut self) -> Client {
        let mut c = self.proxy.client3();
        c.send_cmd(&["BLOCKS", "x"]);
        self.lane.expect(&["BLOCKS", "x"]);
        c
    }
}

#[test]
fn c63_blocking_module_command() {
    let mut b = Blocked::start();
    let (mut c1, mut c2, mut c3) = (b.blocks(), b.proxy.client(), b.proxy.client());
    c3.send_cmd(&["SET", "k", "1"]);
    c3.send_cmd(&["GET", "k"]);
    b.lane.expect(&["SET", "k", "1"]);
    c2.send_cmd(&["GET", "other"]);
    b.lane.expect(&["GET", "k"]); // refreshed, and then read
    let mut spare = b.fake.other();
    spare.expect(&["GET", "other"]).reply("$1\r\n7\r\n");
    assert_eq!(c2.reply(), Reply::bulk("7"));
    // Invalidations reach a connection whose commands wait: they are no sign of life.
    for i in 0..8 {
        b.lane.invalidate(&["elsewhere"]);
        c2.send_cmd(&["STRLEN", "other"]);
        spare.expect(&["STRLEN", "other"]).reply(format!(":{i}\r\n"));
        assert_eq!(c2.reply(), Reply::Int(i));
        std::thread::sleep(ms(100)); // the time that passes is the test's subject
    }
    assert!(spare.try_next(ms(50)).is_none(), "a read was moved away from a write of its own session");
    c1.expect_silence(ms(1));
    b.lane.reply(":1\r\n");
    assert_eq!(c1.reply(), Reply::Int(1));
    c2.send_cmd(&["STRLEN", "other"]);
    assert!(spare.try_next(ms(100)).is_none(), "the lane answers again");
    assert!(!b.proxy.logged("lost the connection"));
    drop(c3);
}

/// R21: what was read on the spare connection is newer than what the lane has proved.
#[test]
fn c63_no_hit_behind_a_read_on_the_spare_connection() {
    let mut b = Blocked::start();
    let (mut c2, mut c3) = (b.proxy.client(), b.proxy.client());
    for c in [&mut c2, &mut c3] {
        c.cmd(&["NEARSIDE", "ENTRY", "k"]);
    }
    c2.send_cmd(&["GET", "k"]);
    b.lane.expect(&["GET", "k"]).reply("$1\r\n1\r\n").expect(&["PTTL", "k"]).reply(":-1\r\n");
    assert_eq!(c2.reply(), Reply::bulk("1"));
    eventually(PATIENCE, "a hit", || super::served(&mut c3, "k").as_deref() == Some("yes"));
    let mut c1 = b.blocks();
    c2.send_cmd(&["STRLEN", "other"]);
    b.lane.expect(&["STRLEN", "other"]);
    let mut spare = b.fake.other();
    spare.expect(&["STRLEN", "other"]);
    // One pipeline, and behind the reply.
    c2.send_cmd(&["GET", "k"]);
    spare.expect(&["GET", "k"]).reply(":0\r\n").reply("$1\r\n2\r\n");
    assert_eq!((c2.reply(), c2.reply()), (Reply::Int(0), Reply::bulk("2")));
    c2.send_cmd(&["GET", "k"]);
    spare.expect(&["GET", "k"]).reply("$1\r\n2\r\n");
    assert_eq!(c2.reply(), Reply::bulk("2"));
    b.lane.reply(":1\r\n");
    c1.reply();
}

/// What was on its way on the spare connection when it broke is sent again where R26 allows it: on the lane.
#[test]
fn c63_a_lost_spare_connection_hands_its_reads_back() {
    let mut b = Blocked::start();
    let (mut c1, mut c2) = (b.blocks(), b.proxy.client());
    c2.send_cmd(&["GET", "k"]);
    b.lane.expect(&["GET", "k"]);
    let mut spare = b.fake.other();
    spare.expect(&["GET", "k"]);
    spare.close();
    b.lane.expect(&["PTTL", "k"]).expect(&["GET", "k"]);
    b.lane.reply(":1\r\n").reply("$1\r\n1\r\n").reply(":-1\r\n").reply("$1\r\n1\r\n");
    assert_eq!((c1.reply(), c2.reply()), (Reply::Int(1), Reply::bulk("1")));
}

#[test]
fn c63_a_lost_lane_takes_its_spare_connection_along() {
    let mut b = Blocked::start();
    let (mut c1, mut c2) = (b.blocks(), b.proxy.client());
    c2.send_cmd(&["GET", "k"]);
    b.lane.expect(&["GET", "k"]);
    let mut spare = b.fake.other();
    spare.expect(&["GET", "k"]);
    b.lane.close();
    assert!(c1.reply().text().contains("outcome unknown"));
    b.lane = b.fake.lane();
    b.lane.expect(&["GET", "k"]).reply("$1\r\n1\r\n");
    assert_eq!(c2.reply(), Reply::bulk("1"));
    eventually(PATIENCE, "the spare connection to be closed", || spare.is_closed());
}

/// A server that answers nobody is busy itself: there is nothing to be gained elsewhere.
#[test]
fn c63_nothing_moves_while_the_server_answers_nobody() {
    let s = Stand::bound(ms(400));
    let mut c = s.proxy.client();
    s.relay.stall(Scope::All, Dir::Down);
    c.send_cmd(&["GET", "k"]);
    c.expect_silence(ms(1200));
    assert_eq!(s.proxy.metric("nearside_lanes_held_up_total"), 0.0);
    s.relay.resume(Scope::All, Dir::Down);
    assert_eq!(c.reply(), Reply::Nil);
}

/// A lane whose answers do not come through is as good as held up: reads go on, with upstream's present values.
#[test]
fn c21_reads_go_on_while_only_the_lane_is_stalled() {
    let b = ms(400);
    let s = Stand::bound(b);
    let mut c = s.proxy.client();
    s.redis.cmd(&["SET", "k", "1"]);
    warm(&s.proxy, &mut c, "k");
    s.relay.stall(LANE, Dir::Down);
    s.redis.cmd(&["SET", "k", "2"]);
    let acked = Instant::now();
    let mut last_old = acked;
    loop {
        let sent = Instant::now();
        if c.cmd(&["GET", "k"]) == Reply::bulk("2") {
            break;
        }
        last_old = sent;
    }
    assert!(last_old <= acked + b, "the old value was served {:?} too late", last_old - (acked + b));
    for _ in 0..100 {
        assert_eq!(c.cmd(&["GET", "k"]), Reply::bulk("2"));
    }
    s.relay.resume(LANE, Dir::Down);
    assert_eq!(warm(&s.proxy, &mut c, "k"), Reply::bulk("2"));
}
