use super::{ms, quick, state, until_answered, wait_back, wait_gone, warm};
use crate::support::{Client, PATIENCE, Proxy, Redis, Reply, eventually};

/// Nothing of what follows is an outage: no breaker, no stale read.
#[track_caller]
fn no_outage(proxy: &Proxy) {
    assert_eq!(state(proxy), "closed");
    assert!(!proxy.logged("is gone"));
    assert_eq!(proxy.metric("nearside_stale_served_total"), 0.0);
}

#[test]
fn a_busy_server_answers_and_is_waited_for() {
    let redis = Redis::builder().args(&["--lua-time-limit", "100"]).start();
    let builder = quick(Proxy::to(&redis)).set("upstream.stall_timeout", "1500ms");
    let proxy = builder.set("coherence.max_staleness", "400ms").start();
    let mut c = proxy.client();
    warm(&proxy, &mut c, "k");
    let mut w = redis.client();
    w.send_cmd(&["EVAL", "while true do end", "0"]);
    eventually(PATIENCE, "BUSY", || redis.cmd(&["PING"]).text().starts_with("BUSY"));
    // For twice the time after which silence would be an outage.
    let end = std::time::Instant::now() + ms(3000);
    let mut busy = 0;
    while std::time::Instant::now() < end {
        let reply = proxy.client().cmd(&["SET", "k", "1"]);
        assert!(reply.text().starts_with("BUSY "), "{reply:?}");
        busy += 1;
    }
    assert!(busy > 0);
    no_outage(&proxy);
    assert_eq!(redis.cmd(&["SCRIPT", "KILL"]), Reply::ok());
    assert_eq!(until_answered(&mut c, &["SET", "k", "1"]), Reply::ok());
}

/// DEBUG SLEEP keeps it from answering anything at all: that is silence, and it ends by itself.
#[test]
fn a_server_that_sleeps_longer_than_stall_timeout_is_gone_meanwhile() {
    let redis = Redis::start();
    let builder = quick(Proxy::to(&redis)).set("upstream.stall_timeout", "1s");
    let proxy = builder.set("coherence.max_staleness", "400ms").start();
    let mut c = proxy.client();
    redis.cmd(&["SET", "k", "1"]);
    warm(&proxy, &mut c, "k");
    let mut w = redis.client();
    w.send_cmd(&["DEBUG", "SLEEP", "6"]);
    let mut writer = proxy.client();
    writer.send_cmd(&["SET", "w", "1"]);
    wait_gone(&proxy);
    assert_eq!(c.cmd(&["GET", "k"]), Reply::bulk("1"));
    assert_eq!(writer.reply(), Reply::ok());
    wait_back(&proxy);
    assert_eq!(c.cmd(&["GET", "k"]), Reply::bulk("1"));
}

#[test]
fn a_read_only_server_refuses_writes_in_its_own_words() {
    let redis = Redis::start();
    let proxy = quick(Proxy::to(&redis)).start();
    let mut c = proxy.client();
    redis.cmd(&["SET", "k", "1"]);
    warm(&proxy, &mut c, "k");
    redis.cmd(&["REPLICAOF", "127.0.0.1", "1"]);
    eventually(PATIENCE, "READONLY", || c.cmd(&["SET", "k", "2"]).text().starts_with("READONLY "));
    assert_eq!(until_answered(&mut c, &["GET", "k"]), Reply::bulk("1"));
    no_outage(&proxy);
    redis.cmd(&["REPLICAOF", "NO", "ONE"]);
    assert_eq!(until_answered(&mut c, &["SET", "k", "2"]), Reply::ok());
}

#[test]
fn a_full_server_refuses_writes_and_answers_reads() {
    let redis = Redis::start();
    let proxy = quick(Proxy::to(&redis)).start();
    let mut c = proxy.client();
    redis.cmd(&["SET", "k", "1"]);
    warm(&proxy, &mut c, "k");
    redis.cmd(&["CONFIG", "SET", "maxmemory", "1"]);
    for _ in 0..3 {
        assert!(c.cmd(&["SET", "k", "2"]).text().starts_with("OOM "));
        assert_eq!(c.cmd(&["GET", "k"]), Reply::bulk("1"));
    }
    no_outage(&proxy);
    redis.cmd(&["CONFIG", "SET", "maxmemory", "0"]);
    assert_eq!(c.cmd(&["SET", "k", "2"]), Reply::ok());
    assert_eq!(c.cmd(&["GET", "k"]), Reply::bulk("2"));
}

#[test]
fn a_server_that_cannot_save_refuses_writes_and_answers_reads() {
    let dir = tempfile::tempdir().expect("a directory to lose");
    let path = dir.path().display().to_string();
    let redis = Redis::builder().args(&["--save", "3600", "1", "--dir", &path]).start();
    let proxy = quick(Proxy::to(&redis)).start();
    let mut c = proxy.client();
    redis.cmd(&["SET", "k", "1"]);
    warm(&proxy, &mut c, "k");
    dir.close().expect("the directory is empty");
    redis.cmd(&["BGSAVE"]);
    let misconf = |c: &mut Client| c.cmd(&["SET", "w", "2"]).text().starts_with("MISCONF ");
    eventually(PATIENCE, "the save to fail", || misconf(&mut c));
    // Its connection is lost besides: a MISCONF to our PING is as good as a PONG.
    redis.cmd(&["CLIENT", "KILL", "TYPE", "normal"]);
    eventually(PATIENCE, "it to be back", || misconf(&mut c));
    assert_eq!(until_answered(&mut c, &["GET", "k"]), Reply::bulk("1"));
    no_outage(&proxy);
}
