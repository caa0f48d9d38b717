//! `outage.writes: queue`: what is acknowledged while upstream is gone, what is read of it, and what upstream has of it
//! afterwards.

use super::{lasting, quick, wait_back, wait_gone, warm};
use crate::support::{PATIENCE, Proxy, Redis, Reply, eventually, proxy};

/// A sidecar that queues.
pub(super) fn queueing(redis: &Redis) -> proxy::Builder {
    quick(Proxy::to(redis)).set("outage.writes", "queue")
}

/// Whether everything that was queued has come to its end.
#[track_caller]
pub(super) fn wait_replayed(proxy: &Proxy) {
    eventually(PATIENCE, "the queue to be done", || proxy.metric("nearside_queue_depth") == 0.0);
}

pub(super) fn replayed(proxy: &Proxy, result: &str) -> f64 {
    proxy.metric(&format!("nearside_queue_replayed_total{{result=\"{result}\"}}"))
}

pub(super) fn not_queued(reply: &Reply, why: &str) {
    let text = reply.text();
    assert!(reply.is_error() && text.starts_with(super::UNAVAILABLE), "{reply:?}");
    assert!(text.contains(" s); this write cannot be queued: ") && text.contains(why), "{text}");
}

#[test]
fn writes_are_acknowledged_read_and_done() {
    let mut redis = lasting();
    redis.cmd(&["MSET", "n", "41", "gone", "x", "other", "o"]);
    redis.cmd(&["SET", "ttl", "v", "PX", "600000"]);
    let proxy = queueing(&redis).start();
    let mut c = proxy.client();
    for key in ["n", "gone", "ttl", "other"] {
        warm(&proxy, &mut c, key);
    }
    redis.stop();
    wait_gone(&proxy);
    assert_eq!(c.cmd(&["SET", "new", "1", "EX", "100"]), Reply::ok());
    assert_eq!(c.cmd(&["INCR", "n"]), Reply::Int(42));
    assert_eq!(c.cmd(&["INCRBY", "n", "8"]), Reply::Int(50));
    assert_eq!(c.cmd(&["DEL", "gone"]), Reply::Int(1));
    assert_eq!(c.cmd(&["APPEND", "ttl", "w"]), Reply::Int(2));
    assert_eq!(c.cmd(&["GETDEL", "new"]), Reply::bulk("1"));
    assert_eq!(c.cmd(&["SET", "new", "2", "NX"]), Reply::ok());
    not_queued(&c.cmd(&["INCR", "unknown"]), "the value of its key is not known here");
    not_queued(&c.cmd(&["LPUSH", "list", "a"]), "it needs an upstream");
    not_queued(&c.cmd(&["DEL", "n", "unknown"]), "not known here");
    assert_eq!(c.cmd(&["GET", "n"]), Reply::bulk("50"));
    assert_eq!(c.cmd(&["STRLEN", "ttl"]), Reply::Int(2));
    assert_eq!(
        c.cmd(&["MGET", "n", "gone", "other", "new"]).items(),
        [Reply::bulk("50"), Reply::Nil, Reply::bulk("o"), Reply::bulk("2")]
    );
    assert!(proxy.metric("nearside_queue_depth") >= 6.0);
    redis.restart();
    wait_replayed(&proxy);
    wait_back(&proxy);
    assert_eq!(
        redis.cmd(&["MGET", "n", "gone", "ttl", "new"]).items(),
        [Reply::bulk("50"), Reply::Nil, Reply::bulk("vw"), Reply::bulk("2")]
    );
    assert!(matches!(redis.cmd(&["PTTL", "ttl"]), Reply::Int(left) if left > 500_000));
    assert_eq!(redis.cmd(&["PTTL", "new"]), Reply::Int(-1));
    assert_eq!(c.cmd(&["GET", "n"]), Reply::bulk("50"));
    assert_eq!(c.cmd(&["INCR", "n"]), Reply::Int(51), "by upstream again");
    assert_eq!(proxy.stat("pending_writes"), 0.0);
    assert_eq!(replayed(&proxy, "conflict_overwritten"), 0.0);
    assert_eq!(replayed(&proxy, "unknown_base"), 1.0, "of `new` nothing was known");
}
