use std::time::Instant;

use super::{barrier, ms, secs, wait_tracking, warm, within};
use crate::support::{Dir, PATIENCE, Proxy, Redis, Relay, Reply, Scope, encode, eventually};

#[test]
fn c36_table_overflow() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis);
    let mut c = proxy.client();
    redis.cmd(&["CONFIG", "SET", "tracking-table-max-keys", "5"]);
    let names: Vec<String> = (0..100).map(|i| format!("k{i}")).collect();
    for round in 0..5 {
        let value = format!("{round}");
        let words = names.iter().flat_map(|name| [name.as_str(), &value]);
        redis.cmd(&[&["MSET"][..], &words.collect::<Vec<_>>()].concat());
        barrier(&mut c);
        for name in &names {
            assert_eq!(c.cmd(&["GET", name]), Reply::bulk(&value));
        }
    }
    // Each of 5 rounds registers 100 keys in a table of 5: what does not fit is pushed, not forgotten.
    assert!(proxy.stat("invalidations_push") >= 400.0);
    assert_eq!(proxy.stat("flushes_lane"), 0.0);
}

#[test]
fn c37_eviction() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis);
    let mut c = proxy.client();
    let names: Vec<String> = (0..20).map(|i| format!("k{i}")).collect();
    for name in &names {
        redis.cmd(&["SET", name, "1"]);
        assert_eq!(warm(&proxy, &mut c, name), Reply::bulk("1"));
    }
    // One at a time: Redis 6.2 takes no more.
    for (name, value) in [("maxmemory-policy", "allkeys-random"), ("maxmemory", "1")] {
        assert_eq!(redis.cmd(&["CONFIG", "SET", name, value]), Reply::ok());
    }
    eventually(PATIENCE, "everything to be evicted", || redis.cmd(&["DBSIZE"]) == Reply::Int(0));
    barrier(&mut c);
    for name in &names {
        assert_eq!(c.cmd(&["GET", name]), Reply::Nil, "{name} was evicted upstream");
    }
}

#[test]
fn c38_swapdb_through_the_sidecar_is_seen_at_once() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis);
    let (mut zero, mut one) = (proxy.client(), proxy.client());
    one.cmd(&["SELECT", "1"]);
    zero.cmd(&["SET", "k", "zero"]);
    one.cmd(&["SET", "k", "one"]);
    for swapped in [true, false] {
        warm(&proxy, &mut zero, "k");
        warm(&proxy, &mut one, "k");
        assert_eq!(zero.cmd(&["SWAPDB", "0", "1"]), Reply::ok());
        let (first, second) = if swapped { ("one", "zero") } else { ("zero", "one") };
        assert_eq!(zero.cmd(&["GET", "k"]), Reply::bulk(first));
        assert_eq!(one.cmd(&["GET", "k"]), Reply::bulk(second));
    }
    // In one pipeline, and inside a transaction.
    warm(&proxy, &mut zero, "k");
    let replies = zero.pipeline(&[&["GET", "k"][..], &["SWAPDB", "0", "1"], &["GET", "k"]]);
    assert_eq!(replies, [Reply::bulk("zero"), Reply::ok(), Reply::bulk("one")]);
    warm(&proxy, &mut zero, "k");
    zero.pipeline(&[&["MULTI"][..], &["SWAPDB", "0", "1"], &["EXEC"]]);
    assert_eq!(zero.cmd(&["GET", "k"]), Reply::bulk("zero"));
    assert_eq!(one.cmd(&["GET", "k"]), Reply::bulk("one"));
}

/// Redis signals no SWAPDB (fact 25): the entry's TTL is the bound, as documented.
#[test]
fn c38_foreign_swapdb_is_stale_for_the_ttl_at_most() {
    let ttl = ms(700);
    let redis = Redis::start();
    let proxy = Proxy::to(&redis).set("cache.default_ttl", "700ms").start();
    let mut c = proxy.client();
    redis.client().pipeline(&[&["SET", "k", "zero"][..], &["SELECT", "1"], &["SET", "k", "one"]]);
    warm(&proxy, &mut c, "k");
    redis.cmd(&["SWAPDB", "0", "1"]);
    let acked = Instant::now();
    let mut old = 0;
    eventually(PATIENCE, "the other database's value", || {
        let sent = Instant::now();
        if c.cmd(&["GET", "k"]) == Reply::bulk("one") {
            return true;
        }
        assert!(sent <= acked + ttl, "stale {:?} beyond the TTL", sent - acked - ttl);
        old += 1;
        false
    });
    assert!(old > 0, "no stale hit: Redis has begun to signal SWAPDB, and this test tests nothing");
}

#[test]
fn c39_ttl_only_change() {
    let redis = Redis::start();
    redis.cmd(&["DEBUG", "SET-ACTIVE-EXPIRE", "0"]); // nothing but a look at the key finds it expired
    let proxy = Proxy::start(&redis);
    let mut c = proxy.client();
    redis.cmd(&["SET", "k", "1"]);
    warm(&proxy, &mut c, "k");
    let pushes = proxy.stat("invalidations_push");
    redis.cmd(&["PEXPIRE", "k", "300"]);
    // A key lives until the clock of Redis, in whole milliseconds, is *past* its deadline: to the end of
    // that millisecond, on Redis itself as here.
    let gone_by = Instant::now() + ms(301);
    eventually(PATIENCE, "the push", || proxy.stat("invalidations_push") > pushes);
    let mut before = 0;
    eventually(PATIENCE, "the key to expire", || {
        let sent = Instant::now();
        match c.cmd(&["GET", "k"]) {
            Reply::Nil => return true,
            reply => assert_eq!(reply, Reply::bulk("1")),
        }
        assert!(sent <= gone_by, "served {:?} after its expiry", sent - gone_by);
        before += 1;
        false
    });
    assert!(before > 1, "no read before the expiry");
}

/// A master and its replica, both on TCP.
fn pair() -> (Redis, Redis) {
    let master = Redis::builder().tcp().args(&["--repl-diskless-sync-delay", "0"]).start();
    let port = master.address().port().to_string();
    let replica = Redis::builder().tcp().args(&["--replicaof", "127.0.0.1", &port]).start();
    eventually(PATIENCE, "the replica to be in step", || {
        master.cmd(&["INFO", "replication"]).text().contains("state=online")
    });
    (master, replica)
}

fn role(redis: &Redis) -> String {
    redis.cmd(&["ROLE"]).items()[0].text()
}

fn over_tcp(redis: &Redis) -> Proxy {
    let proxy = within(ms(300), Proxy::upstream(&format!("redis://{}", redis.address()))).start();
    wait_tracking(&proxy);
    proxy
}

#[test]
fn c40_demotion_is_noticed_by_the_role_check() {
    let (master, replica) = pair();
    let proxy = over_tcp(&master);
    let mut c = proxy.client();
    c.cmd(&["SET", "k", "1"]);
    warm(&proxy, &mut c, "k");
    master.cmd(&["FAILOVER"]);
    eventually(PATIENCE, "the replica to take over", || role(&replica) == "master" && role(&master) == "slave");
    let demoted = Instant::now();
    eventually(PATIENCE, "the lane to be killed", || proxy.logged("role changed to replica"));
    // A check each second, and B; the rest is for a machine that is shared.
    assert!(demoted.elapsed() < secs(4), "noticed only after {:?}", demoted.elapsed());
    eventually(PATIENCE, "nothing to be cached from a replica", || proxy.stats()["coherence"] == "none");
    replica.cmd(&["SET", "k", "2"]);
    eventually(PATIENCE, "the new master's value", || c.cmd(&["GET", "k"]) == Reply::bulk("2"));
    assert!(c.cmd(&["SET", "k", "3"]).text().starts_with("READONLY"));
}

#[test]
fn c40_demotion_loses_no_write_silently() {
    let (master, replica) = pair();
    let proxy = over_tcp(&master);
    let mut c = proxy.client();
    let mut acked = 0;
    let mut failover = Some(());
    for i in 1.. {
        match c.cmd(&["SET", "n", &i.to_string()]) {
            Reply::Status(_) => acked = i,
            Reply::Error(text) if text.starts_with(b"READONLY") => break,
            other => {
                let text = other.text();
                assert!(text.ends_with("outcome unknown") || text.contains("upstream unavailable"), "{text}");
            }
        }
        if i > 200 && failover.take().is_some() {
            master.cmd(&["FAILOVER"]);
        }
    }
    assert!(acked >= 200);
    eventually(PATIENCE, "the replica to take over", || role(&replica) == "master");
    let kept: u64 = replica.cmd(&["GET", "n"]).text().parse().expect("a number");
    assert!(kept >= acked, "{acked} was acknowledged, the new master has {kept}");
    proxy.wait_logged("-READONLY");
}

/// Decision 9: on a role change what is in flight is left to be answered for B first. The answers come one by one.
#[test]
fn c40_every_write_of_a_pipeline_gets_upstreams_own_answer() {
    let (master, replica) = (Redis::start(), Redis::builder().tcp().start());
    let relay = Relay::to(&master);
    let proxy = Proxy::upstream(&relay.url()).set("coherence.canary", "off").start();
    wait_tracking(&proxy);
    relay.split(Scope::All, Dir::Down, 32);
    let (mut c, mut late) = (proxy.client(), proxy.client());
    master.cmd(&["REPLICAOF", "127.0.0.1", &replica.address().port().to_string()]);
    let writes: Vec<[&str; 3]> = vec![["SET", "k", "1"]; 50];
    c.send(&writes.iter().flat_map(|words| encode(words)).collect::<Vec<u8>>());
    for i in 0..50 {
        let reply = c.reply();
        assert!(reply.text().starts_with("READONLY"), "{i}: {reply:?}, where a direct client is told the truth");
        // What comes while the lane is being left goes to the next one, and is not lost with this one.
        late.send_cmd(&["SET", "k", "1"]);
    }
    assert!((0..50).all(|_| late.reply().text().starts_with("READONLY")));
    proxy.wait_logged("-READONLY");
    eventually(PATIENCE, "nothing to be cached from a replica", || proxy.stats()["coherence"] == "none");
}
