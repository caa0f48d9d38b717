//! Queued writes are done upstream: in order, once, whatever happens on the way.

use std::collections::{BTreeMap, BTreeSet};

use super::queue::{cut_off, lose, queueing, replayed, wait_replayed};
use super::{lasting, ms, quick, until_answered, wait_gone, warm};
use crate::support::{Client, Dir, PATIENCE, Proxy, Redis, Reply, Scope, eventually, shown};

/// Chance with a seed: which commands come is the same in every run.
struct Lot(u64);

impl Lot {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % n
    }

    fn of<'a>(&mut self, all: &[&'a str]) -> &'a str {
        all[self.below(all.len() as u64) as usize]
    }
}

/// Known keys, keys that are not known, and one that is no number.
const KEYS: [&str; 7] = ["k0", "k1", "k2", "text", "u0", "u1", "new"];

fn command(lot: &mut Lot) -> Vec<String> {
    let (k, l, v) = (lot.of(&KEYS), lot.of(&KEYS), lot.below(1000).to_string());
    let shapes: [&[&str]; 33] = [
        &["SET", k, &v],
        &["SET", k, &v, "EX", "1000"],
        &["SET", k, &v, "PXAT", "1"],
        &["SET", k, &v, "NX"],
        &["SET", k, &v, "XX", "GET"],
        &["SET", k, &v, "KEEPTTL"],
        &["SET", k, &v, "EX", "0"],
        &["SET", k, &v, "NONSENSE"],
        &["SETEX", k, "2000", &v],
        &["PSETEX", k, "2000000", &v],
        &["SETNX", k, &v],
        &["MSET", k, &v, l, "w"],
        &["MSETNX", k, &v, l, "w"],
        &["GETSET", k, &v],
        &["GETDEL", k],
        &["GETEX", k, "EX", "3000"],
        &["GETEX", k, "PERSIST"],
        &["APPEND", k, &v],
        &["SETRANGE", k, "3", &v],
        &["INCR", k],
        &["DECRBY", k, &v],
        &["INCRBYFLOAT", k, "0.5"],
        &["DEL", k, l],
        &["UNLINK", k],
        &["EXPIRE", k, "4000"],
        &["EXPIRE", k, "5000", "GT"],
        &["PEXPIREAT", k, "1"],
        &["PERSIST", k],
        &["RENAME", k, l],
        &["COPY", k, l, "REPLACE"],
        &["GET", k],
        &["MGET", k, l],
        &["GETRANGE", k, "0", "1"],
    ];
    let shape = shapes[lot.below(shapes.len() as u64) as usize];
    shape.iter().map(|word| (*word).to_owned()).collect()
}

fn raw(c: &mut Client, words: &[String]) -> String {
    c.send_cmd(words);
    shown(&c.read_reply_raw())
}

fn same_state(redis: &Redis, model: &Redis, round: u64) {
    for key in KEYS {
        let of = |server: &Redis| (server.cmd(&["GET", key]), server.cmd(&["PTTL", key]).int());
        let ((value, ttl), (wanted, wanted_ttl)) = (of(redis), of(model));
        assert_eq!(value, wanted, "round {round}: {key}");
        // The two were told of it a moment apart.
        let alike = ttl == wanted_ttl || ttl > 0 && wanted_ttl > 0 && ttl.abs_diff(wanted_ttl) < 20_000;
        assert!(alike, "round {round}: {key} has {ttl} ms left, not {wanted_ttl}");
    }
}

/// Random commands: what is accepted is answered as a server of that state answers it, byte for byte, and upstream's state
/// is that server's in the end.
#[test]
fn the_end_is_that_of_a_server_that_was_never_gone() {
    let (mut redis, model) = (lasting(), Redis::start());
    let proxy = queueing(&redis).start();
    let mut accepted = 0;
    for round in 1..=4 {
        let mut lot = Lot(0x9E37_79B9 * round);
        for server in [&redis, &model] {
            server.cmd(&["FLUSHALL"]);
            server.cmd(&["MSET", "k0", "10", "k1", "0", "text", "abc", "u0", "7", "u1", "x"]);
            server.cmd(&["SET", "k2", "5", "EX", "6000"]);
        }
        let mut c = proxy.client();
        until_answered(&mut c, &["PING"]);
        ["k0", "k1", "k2", "text"].iter().for_each(|key| drop(warm(&proxy, &mut c, key)));
        redis.stop();
        wait_gone(&proxy);
        let mut model_client = model.client();
        for _ in 0..400 {
            let words = command(&mut lot);
            let reply = raw(&mut c, &words);
            if !reply.starts_with("-NEARSIDE ") {
                accepted += 1;
                assert_eq!(reply, raw(&mut model_client, &words), "round {round}: {words:?}");
            }
        }
        redis.restart();
        wait_replayed(&proxy);
        same_state(&redis, &model, round);
    }
    assert!(accepted > 1000, "only {accepted} of 1600");
    assert_eq!(replayed(&proxy, "conflict_overwritten"), 0.0);
    assert_eq!(replayed(&proxy, "failed"), 0.0);
    assert_eq!(proxy.stat("pending_writes"), 0.0);
}

/// A connection that ends in the middle, again and again: it goes on from what is not known to be done.
#[test]
fn a_cut_in_the_middle_is_gone_on_from() {
    let (redis, relay, proxy, mut c) = cut_off(|b| b, &["n"]);
    for i in 0..1500 {
        assert_eq!(c.cmd(&["INCR", "n"]), Reply::Int(i + 2));
        assert_eq!(c.cmd(&["SET", &format!("k{}", i % 50), &i.to_string()]), Reply::ok());
    }
    let depth = || proxy.metric("nearside_queue_depth");
    assert_eq!(depth(), 3000.0);
    relay.delay(Scope::All, Dir::Down, ms(20));
    let mut cuts = 0;
    let mut left = depth();
    relay.heal();
    relay.delay(Scope::All, Dir::Down, ms(20));
    while left > 0.0 && cuts < 4 {
        eventually(PATIENCE, "some of it to be done", || depth() < left);
        left = depth();
        if left > 0.0 {
            relay.cut(Scope::Existing);
            cuts += 1;
        }
    }
    assert!(cuts >= 2, "it was done before it could be cut");
    wait_replayed(&proxy);
    assert_eq!(redis.cmd(&["GET", "n"]), Reply::bulk("1501"));
    for i in 0..50 {
        assert_eq!(redis.cmd(&["GET", &format!("k{i}")]), Reply::bulk((1450 + i).to_string()));
    }
    assert_eq!(proxy.metric_sum("nearside_queue_replayed_total"), 3000.0, "each is counted once");
    assert_eq!(until_answered(&mut c, &["INCR", "n"]), Reply::Int(1502));
    assert_eq!(proxy.stat("pending_writes"), 0.0);
}

/// Others see what one command has written all at once, however many effects go together.
#[test]
fn a_command_of_many_keys_is_done_in_one_piece() {
    let (redis, relay, proxy, mut c) = cut_off(|b| b, &[]);
    let mset: Vec<String> =
        std::iter::once("MSET".to_owned()).chain((0..500).flat_map(|i| [format!("k{i}"), "v".to_owned()])).collect();
    for round in 0..100 {
        assert_eq!(c.cmd(&["SET", &format!("before{round}"), "v"]), Reply::ok());
    }
    assert_eq!(c.cmd(&mset.iter().map(String::as_str).collect::<Vec<_>>()), Reply::ok());
    assert_eq!(c.cmd(&["SET", "after", "v"]), Reply::ok());
    let mut monitor = redis.client();
    assert_eq!(monitor.cmd(&["MONITOR"]), Reply::ok());
    relay.heal();
    wait_replayed(&proxy);
    redis.cmd(&["ECHO", "the end"]);
    // The number of the transaction that each key was written in.
    let (mut transactions, mut of) = (0, BTreeMap::new());
    loop {
        let line = monitor.reply().text().to_owned();
        let words: Vec<&str> = line.split('"').skip(1).step_by(2).collect();
        match words[..] {
            [word] if word.eq_ignore_ascii_case("multi") => transactions += 1,
            [word, key, ..] if word.eq_ignore_ascii_case("set") => drop(of.insert(key.to_owned(), transactions)),
            ["ECHO", "the end"] => break,
            _ => {}
        }
    }
    let of_many: BTreeSet<i32> = (0..500).map(|i| of[&format!("k{i}")]).collect();
    assert_eq!(of_many.len(), 1, "{of_many:?}");
    let others: BTreeSet<i32> = ["before0", "before99", "after"].iter().map(|key| of[*key]).collect();
    assert_eq!(others.len(), 2, "in two other ones: {others:?}");
    assert!(others.is_disjoint(&of_many), "{others:?} {of_many:?}");
}

#[test]
fn conflicts_are_overwritten_and_counted() {
    let (redis, relay, proxy, mut c) = cut_off(|b| b, &["same", "changed", "listed"]);
    for key in ["same", "changed", "listed"] {
        assert_eq!(c.cmd(&["INCR", key]), Reply::Int(2));
    }
    assert_eq!(c.cmd(&["SET", "unknown", "mine"]), Reply::ok());
    redis.cmd(&["MSET", "changed", "100", "unknown", "theirs"]);
    redis.cmd(&["DEL", "listed"]);
    redis.cmd(&["RPUSH", "listed", "a"]);
    relay.heal();
    wait_replayed(&proxy);
    assert_eq!(redis.cmd(&["MGET", "same", "changed", "listed", "unknown"]), Reply::bulks(&["2", "2", "2", "mine"]));
    let of = |what| replayed(&proxy, what);
    assert_eq!((of("applied"), of("conflict_overwritten"), of("unknown_base")), (1.0, 2.0, 1.0));
    proxy.wait_logged("queued writes are done");
}

#[test]
fn conflicts_are_skipped_and_counted() {
    let (redis, relay, proxy, mut c) = cut_off(|b| b.set("outage.queue_conflict", "skip"), &["same", "changed"]);
    for n in 2..=3 {
        assert_eq!(c.cmd(&["INCR", "same"]), Reply::Int(n));
        assert_eq!(c.cmd(&["INCR", "changed"]), Reply::Int(n));
    }
    redis.cmd(&["SET", "changed", "theirs"]);
    relay.heal();
    wait_replayed(&proxy);
    assert_eq!(redis.cmd(&["MGET", "same", "changed"]), Reply::bulks(&["3", "theirs"]));
    assert_eq!((replayed(&proxy, "applied"), replayed(&proxy, "conflict_skipped")), (2.0, 2.0));
    assert_eq!(until_answered(&mut c, &["GET", "changed"]), Reply::bulk("theirs"));
    assert_eq!(proxy.stat("pending_writes"), 0.0);
}

/// A key that expires upstream while it is gone was changed by nobody.
#[test]
fn expiry_is_no_conflict() {
    let (redis, relay, proxy, mut c) = cut_off(|b| b.set("outage.queue_conflict", "skip"), &[]);
    relay.heal();
    redis.cmd(&["SET", "k", "1", "PX", "1500"]);
    until_answered(&mut c, &["GET", "k"]);
    warm(&proxy, &mut c, "k");
    lose(&relay, &proxy);
    assert_eq!(c.cmd(&["SET", "k", "2"]), Reply::ok());
    eventually(PATIENCE, "it to expire", || redis.cmd(&["EXISTS", "k"]) == Reply::Int(0));
    relay.heal();
    wait_replayed(&proxy);
    assert_eq!(redis.cmd(&["GET", "k"]), Reply::bulk("2"));
    assert_eq!(replayed(&proxy, "conflict_skipped"), 0.0);
}

#[test]
fn what_expires_while_it_waits_is_gone() {
    let (redis, relay, proxy, mut c) = cut_off(|b| b, &["k"]);
    assert_eq!(c.cmd(&["SET", "k", "2", "PX", "50"]), Reply::ok());
    eventually(PATIENCE, "it to expire", || c.cmd(&["GET", "k"]) == Reply::Nil);
    relay.heal();
    wait_replayed(&proxy);
    assert_eq!(redis.cmd(&["EXISTS", "k"]), Reply::Int(0));
}

#[test]
fn a_full_server_is_waited_for() {
    let (redis, relay, proxy, mut c) = cut_off(|b| b, &["n", "other"]);
    assert_eq!(c.cmd(&["INCR", "n"]), Reply::Int(2));
    redis.cmd(&["CONFIG", "SET", "maxmemory", "1"]);
    relay.heal();
    proxy.wait_logged("queued writes wait: it is back and refuses queued writes: OOM");
    assert_eq!(
        until_answered(&mut c, &["GET", "other"]),
        Reply::bulk("1"),
        "what is not queued is upstream's to answer"
    );
    assert_eq!(c.cmd(&["GET", "n"]), Reply::bulk("2"));
    assert_eq!(c.cmd(&["INCR", "n"]), Reply::Int(3), "they go on being queued");
    super::refused(&c.cmd(&["MULTI"]));
    assert_eq!(redis.cmd(&["GET", "n"]), Reply::bulk("1"));
    redis.cmd(&["CONFIG", "SET", "maxmemory", "0"]);
    wait_replayed(&proxy);
    assert_eq!(redis.cmd(&["GET", "n"]), Reply::bulk("3"));
    assert_eq!(replayed(&proxy, "failed"), 0.0);
    assert_eq!(until_answered(&mut c, &["MULTI"]), Reply::ok());
}

#[test]
fn so_is_one_that_is_no_master() {
    let (redis, relay, proxy, mut c) = cut_off(|b| b, &["n"]);
    assert_eq!(c.cmd(&["INCR", "n"]), Reply::Int(2));
    redis.cmd(&["REPLICAOF", "127.0.0.1", "1"]);
    relay.heal();
    proxy.wait_logged("refuses queued writes: READONLY");
    assert_eq!(redis.cmd(&["GET", "n"]), Reply::bulk("1"));
    redis.cmd(&["REPLICAOF", "NO", "ONE"]);
    wait_replayed(&proxy);
    assert_eq!(redis.cmd(&["GET", "n"]), Reply::bulk("2"));
    assert_eq!(replayed(&proxy, "failed"), 0.0);
}

/// A server that stands still keeps its connections: what was on its way is executed before what is queued.
#[test]
fn behind_what_a_frozen_server_was_sent() {
    let mut redis = Redis::start();
    let proxy = queueing(&redis).set("upstream.stall_timeout", "1s").start();
    let mut c = proxy.client();
    redis.cmd(&["SET", "k", "0"]);
    warm(&proxy, &mut c, "k");
    redis.sigstop();
    let mut before = proxy.client();
    before.send_cmd(&["SET", "k", "before"]);
    wait_gone(&proxy);
    assert_eq!(c.cmd(&["SET", "k", "queued"]), Reply::ok());
    assert_eq!(c.cmd(&["GET", "k"]), Reply::bulk("queued"));
    redis.sigcont();
    assert_eq!(before.reply(), Reply::ok());
    wait_replayed(&proxy);
    assert_eq!(redis.cmd(&["GET", "k"]), Reply::bulk("queued"));
    assert_eq!(until_answered(&mut c, &["GET", "k"]), Reply::bulk("queued"));
    assert_eq!(proxy.stat("pending_writes"), 0.0);
}

/// Nobody reads from before the queue when it is over, in whatever moment.
#[test]
fn no_read_goes_back_while_it_is_replayed() {
    let (redis, relay, proxy, mut c) = cut_off(|b| b, &["n"]);
    for i in 0..2000 {
        assert_eq!(c.cmd(&["INCR", "n"]), Reply::Int(i + 2));
    }
    relay.heal();
    relay.delay(Scope::All, Dir::Down, ms(5));
    let mut next = 2002;
    while proxy.metric("nearside_queue_depth") > 0.0 || next < 2100 {
        let shown = c.cmd(&["GET", "n"]);
        assert_eq!(shown, Reply::bulk((next - 1).to_string()));
        let reply = c.cmd(&["INCR", "n"]);
        assert_eq!(reply, Reply::Int(next), "{reply:?}");
        next += 1;
    }
    wait_replayed(&proxy);
    assert_eq!(redis.cmd(&["GET", "n"]), Reply::bulk((next - 1).to_string()));
}

/// Clients write all the while; upstream is killed and comes back. What was acknowledged is there.
#[test]
fn under_load_every_acknowledged_write_is_there() {
    let mut redis = lasting();
    let proxy = quick(Proxy::to(&redis)).set("outage.writes", "queue").start();
    let over = std::sync::atomic::AtomicBool::new(false);
    let acked: Vec<Vec<String>> = std::thread::scope(|scope| {
        let writers: Vec<_> = (0..3)
            .map(|w| {
                let (proxy, over) = (&proxy, &over);
                scope.spawn(move || {
                    let mut c = proxy.client();
                    let mut acked = Vec::new();
                    for i in 0.. {
                        if over.load(std::sync::atomic::Ordering::Relaxed) {
                            break;
                        }
                        let key = format!("w{w}:{i}");
                        if c.cmd(&["SET", &key, "1"]) == Reply::ok() {
                            acked.push(key);
                        }
                        std::thread::sleep(ms(1));
                    }
                    acked
                })
            })
            .collect();
        for _ in 0..3 {
            let depth = || proxy.metric("nearside_queued_writes_total");
            let before = depth();
            redis.stop();
            eventually(PATIENCE, "some to be queued", || depth() > before + 50.0);
            redis.restart();
            wait_replayed(&proxy);
        }
        over.store(true, std::sync::atomic::Ordering::Relaxed);
        writers.into_iter().map(|writer| writer.join().expect("a writer")).collect()
    });
    wait_replayed(&proxy);
    let mut c = redis.client();
    for key in acked.iter().flatten() {
        assert_eq!(c.cmd(&["EXISTS", key]), Reply::Int(1), "{key} was acknowledged");
    }
    assert!(acked.iter().flatten().count() > 150, "those that were queued alone are more");
    assert_eq!(proxy.stat("pending_writes"), 0.0);
}
