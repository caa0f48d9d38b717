use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use super::{LANE, Stand, barrier, ms, secs, soak, wait_tracking, warm};
use crate::support::{Client, Dir, PATIENCE, Proxy, Redis, Reply, Scope, eventually};

/// Numbers without a pattern, the same in every run (xorshift).
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }
}

/// Own writes race foreign ones, which also execute between a write and the reads that refresh the L1 behind it: the lane
/// reaches upstream in pieces. Behind a barrier, what the L1 serves is what upstream has. Answers the share of hits.
fn raced_writes(on_write: &str, own: impl Fn(&mut Client, &str, &str)) -> f64 {
    let s = Stand::with(|proxy| proxy.set("cache.on_write", on_write));
    s.relay.split(LANE, Dir::Up, 24);
    let (mut writer, mut reader, mut foreign) = (s.proxy.client(), s.proxy.client(), s.redis.client());
    let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
    let end = Instant::now() + soak(secs(3), secs(60));
    let (mut round, before) = (0, s.proxy.stat("hits"));
    while Instant::now() < end {
        round += 1;
        let key = format!("k{}", dice.below(4));
        if dice.below(2) == 0 {
            reader.cmd(&["GET", &key]);
        }
        let strangers = dice.below(3);
        own(&mut writer, &key, &format!("ours{round}"));
        for stranger in 0..strangers {
            std::thread::sleep(Duration::from_micros(dice.below(1000))); // the race
            foreign.send_cmd(&["SET", &key, &format!("theirs{round}.{stranger}")]);
        }
        writer.reply();
        (0..strangers).for_each(|_| drop(foreign.reply()));
        barrier(&mut writer);
        let (served, truth) = (reader.cmd(&["GET", &key]), foreign.cmd(&["GET", &key]));
        assert_eq!(served, truth, "round {round}, {on_write}: {key}");
    }
    let hits = s.proxy.stat("hits") - before;
    assert!(round > 100, "{round} rounds prove nothing");
    hits / f64::from(round)
}

#[test]
fn c50_populate_variants_update() {
    let set = |c: &mut Client, key: &str, value: &str| c.send_cmd(&["SET", key, value]);
    assert!(raced_writes("update", set) > 0.1, "refreshes store next to nothing: the race was not tested");
}

#[test]
fn c50_populate_variants_update_by_mset() {
    let set = |c: &mut Client, key: &str, value: &str| c.send_cmd(&["MSET", "k0", value, key, value, "k3", value]);
    assert!(raced_writes("update", set) > 0.1, "refreshes store next to nothing: the race was not tested");
}

#[test]
fn c50_populate_variants_resident() {
    let set = |c: &mut Client, key: &str, value: &str| c.send_cmd(&["SET", key, value, "EX", "100"]);
    assert!(raced_writes("resident", set) > 0.1, "refreshes store next to nothing: the race was not tested");
}

#[test]
fn c50_populate_variants_invalidate() {
    raced_writes("invalidate", |c, key, value| c.send_cmd(&["SET", key, value]));
}

/// A refresh's GET and PTTL lie behind a SET on the lane; an EXEC elsewhere overtakes their replies. Readers ask at every
/// moment of the time in which the old value comes in and the push behind it does not yet.
#[test]
fn c65_refresh_against_exec() {
    let s = Stand::start();
    let (mut one, mut two) = (s.proxy.client(), s.proxy.client());
    let mut readers: Vec<Client> = (0..30).map(|_| s.proxy.client()).collect();
    warm(&s.proxy, &mut one, "k");
    s.relay.delay(LANE, Dir::Down, ms(15));
    let end = Instant::now() + soak(secs(2), secs(30));
    let mut round = 0;
    while Instant::now() < end || round < 10 {
        round += 1;
        let (a, b) = (format!("a{round}"), format!("b{round}"));
        one.send_cmd(&["SET", "k", &a]);
        eventually(PATIENCE, "the SET to execute", || s.redis.cmd(&["GET", "k"]) == Reply::bulk(&a));
        let exec = two.pipeline(&[&["MULTI"][..], &["SET", "k", &b], &["EXEC"]]).remove(2);
        assert_eq!(exec, Reply::Array(vec![Reply::ok()]));
        for reader in &mut readers {
            reader.send_cmd(&["GET", "k"]);
            std::thread::sleep(Duration::from_micros(700)); // the next moment
        }
        let seen: Vec<Reply> = readers.iter_mut().map(|reader| reader.reply()).collect();
        assert!(seen.iter().all(|value| *value == Reply::bulk(&b)), "round {round}: {seen:?} after EXEC set {b}");
        assert_eq!(one.reply(), Reply::ok());
    }
}

#[test]
fn c67_pipeline_hit() {
    let s = Stand::start();
    let mut c = s.proxy.client();
    for round in 1..40usize {
        s.redis.cmd(&["SET", "k", &"x".repeat(round)]);
        barrier(&mut c);
        assert_eq!(warm(&s.proxy, &mut c, "k"), Reply::bulk("x".repeat(round)));
        // The push is on its way, and everything else that the lane says as well.
        s.relay.delay(LANE, Dir::Down, ms(15));
        s.redis.cmd(&["SET", "k", &"x".repeat(round + 1)]);
        let replies = match round % 3 {
            0 => c.pipeline(&[&["STRLEN", "k"][..], &["GET", "k"]]),
            1 => c.pipeline(&[&["GETRANGE", "k", "0", "-1"][..], &["MGET", "other", "k"]]),
            _ => c.pipeline(&[&["EVAL", "return redis.call('STRLEN', 'k')", "0"][..], &["GET", "k"]]),
        };
        let length = |reply: &Reply| match reply {
            Reply::Int(n) => *n as usize,
            Reply::Array(items) => items[1].text().len(),
            reply => reply.text().len(),
        };
        assert!(length(&replies[0]) <= length(&replies[1]), "round {round}: {replies:?} goes back in time");
        assert_eq!(length(&replies[1]), round + 1);
        s.relay.delay(LANE, Dir::Down, Duration::ZERO);
    }
}

#[test]
fn c68_torn_mget() {
    let redis = Redis::start();
    let proxy = Proxy::to(&redis).set("cache.on_write", "invalidate").start();
    wait_tracking(&proxy);
    redis.cmd(&["MSET", "a", "0", "b", "0", "c", "0"]);
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut w = redis.client();
            for i in 1u64.. {
                if over.load(Relaxed) {
                    return;
                }
                let value = i.to_string();
                // Now and then all three, so that every mixture of hits and misses comes up.
                let words = ["MSET", "b", &value, "c", &value, "a", &value];
                w.cmd(if i % 8 == 0 { &words } else { &words[..5] });
            }
        });
        let readers: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    let mut c = proxy.client();
                    let end = Instant::now() + soak(secs(2), secs(30));
                    let mut last = 0;
                    let mut reads = 0;
                    while Instant::now() < end {
                        reads += 1;
                        let values = c.cmd(&["MGET", "a", "b", "c"]).items();
                        let [a, b, c] = [0, 1, 2].map(|i| values[i].text().parse::<u64>().expect("a number"));
                        assert_eq!(b, c, "torn, at a = {a}");
                        assert!(a <= b, "a = {a} was written together with b and c, which say {b}");
                        assert!(last <= b, "back in time from {last} to {b}");
                        last = b;
                    }
                    reads
                })
            })
            .collect();
        let reads: u64 = readers.into_iter().map(|reader| reader.join().expect("a reader")).sum();
        over.store(true, Relaxed);
        assert!(reads > 100, "{reads} reads prove nothing");
    });
    assert!(proxy.metric_sum("nearside_fills_discarded_total") > 0.0, "no read met a write: nothing was tested");
}

/// A write that is never ended keeps its stripe from being stored for ever.
#[test]
fn c72_pending_leak() {
    let s = Stand::with(|proxy| proxy.set("upstream.retry.max_delay", "50ms"));
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (s, over) = (&s, &over);
        for seed in 1..5 {
            scope.spawn(move || write_until(s, over, seed));
        }
        let mut dice = Dice(72);
        let end = Instant::now() + soak(secs(3), secs(60));
        while Instant::now() < end {
            std::thread::sleep(ms(10 + dice.below(60))); // between two accidents
            match dice.below(4) {
                0 => drop(s.redis.cmd(&["CLIENT", "KILL", "TYPE", "normal"])),
                1 => s.relay.cut(Scope::Newest),
                _ => s.relay.cut(Scope::Existing),
            }
        }
        over.store(true, Relaxed);
    });
    let rest = || (s.proxy.stat("pending_writes"), s.proxy.stat("in_flight"));
    eventually(PATIENCE, "nothing pending at rest", || rest() == (0.0, 0.0));
    assert!(s.proxy.stat("upstream_reconnects") > 5.0);
    let mut c = s.proxy.client();
    for i in 0..8 {
        warm(&s.proxy, &mut c, &format!("k{i}"));
    }
}

/// Writes of every kind, without looking at what becomes of them; every other client leaves without its replies.
fn write_until(s: &Stand, over: &AtomicBool, seed: u64) {
    let mut dice = Dice(seed);
    while !over.load(Relaxed) {
        let mut c = s.proxy.client();
        for _ in 0..dice.below(8) {
            let (k, l) = (format!("k{}", dice.below(8)), format!("k{}", dice.below(8)));
            let commands: &[&[&str]] = match dice.below(8) {
                0 => &[&["SET", &k, "1"]],
                1 => &[&["MSET", &k, "1", &l, "2"], &["GET", &k]],
                2 => &[&["DEL", &k, &l, &k], &["MGET", &k, &l]],
                3 => &[&["EVAL", "return redis.call('SET', KEYS[1], '3')", "1", &k]],
                4 => &[&["MULTI"], &["SET", &k, "4"], &["INCR", &l], &["EXEC"]],
                5 => &[&["SET", &k, "5", "EX", "100"], &["SET", &k, "6", "NX"], &["GET", &k]],
                6 => &[&["RENAME", &k, &l], &["APPEND", &k, "x"]],
                _ => &[&["SET", &k]], // an error
            };
            let bytes: Vec<u8> = commands.iter().flat_map(|words| crate::support::encode(words)).collect();
            if c.try_send(&bytes).is_err() {
                break;
            }
            if dice.below(2) == 0 {
                // A pinned connection that is lost takes its client along: an end of stream is as good as a reply.
                let _ = c.try_read(ms(50));
            }
        }
    }
}
