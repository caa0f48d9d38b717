//! Upstream is back and refuses queued writes, in the middle of them: for now, for good, some of them, by users who may do
//! without transactions. Nothing is lost, each key's writes keep their order, and each is counted once as what it was.

use super::queue::{cut_off, lose, replayed, wait_replayed};
use super::{ms, quick, until_answered, warm};
use crate::support::{Client, Dir, PATIENCE, Proxy, Redis, Relay, Reply, Scope, eventually, needs};

/// What became of all queued writes: applied, overwritten, unknown, failed.
fn outcomes(proxy: &Proxy) -> [f64; 4] {
    ["applied", "conflict_overwritten", "unknown_base", "failed"].map(|what| replayed(proxy, what))
}

/// A sidecar with a client of `user`, who is let in and then cut off, with `warmed` keys known to be 1. `rights` are what the
/// user has from then on.
fn as_user(rights: &[&str], warmed: &[&str]) -> (Redis, Relay, Proxy, Client) {
    let redis = Redis::start();
    redis.cmd(&["ACL", "SETUSER", "app", "on", ">pw", "~*", "&*", "+@all"]);
    let relay = Relay::to(&redis);
    let proxy = quick(Proxy::upstream(&relay.url())).set("outage.writes", "queue").start();
    let mut c = proxy.client();
    assert_eq!(c.cmd(&["AUTH", "app", "pw"]), Reply::ok());
    for key in warmed {
        redis.cmd(&["SET", key, "1"]);
        warm(&proxy, &mut c, key);
    }
    lose(&relay, &proxy);
    eventually(PATIENCE, "its lane to be gone", || c.cmd(&["SET", "ok:first", "0"]) == Reply::ok());
    let words = [&["ACL", "SETUSER", "app"], rights].concat();
    assert_eq!(redis.cmd(&words), Reply::ok());
    (redis, relay, proxy, c)
}

/// Several batches are in, then the server is full.
#[test]
fn a_server_that_fills_up_in_the_middle_is_waited_for() {
    const WRITES: usize = 1500;
    let (redis, relay, proxy, mut c) = cut_off(|b| b, &["n", "changed"]);
    let value = "x".repeat(2000);
    assert_eq!(c.cmd(&["INCR", "changed"]), Reply::Int(2));
    for i in 0..WRITES {
        assert_eq!(c.cmd(&["SET", &format!("k{i}"), &format!("{value}{i}")]), Reply::ok());
        assert_eq!(c.cmd(&["INCR", "n"]), Reply::Int(i as i64 + 2));
    }
    assert_eq!(c.cmd(&["INCR", "changed"]), Reply::Int(3));
    redis.cmd(&["SET", "changed", "theirs"]);
    let used = redis.cmd(&["INFO", "memory"]).text();
    let used = used.lines().find_map(|line| line.strip_prefix("used_memory:")?.trim().parse::<u64>().ok());
    let limit = used.expect("used_memory") + 1_000_000;
    redis.cmd(&["CONFIG", "SET", "maxmemory", &limit.to_string()]);
    relay.heal();
    proxy.wait_logged("refuses queued writes: OOM");
    let left = proxy.metric("nearside_queue_depth");
    assert!((1.0..2.0 * WRITES as f64).contains(&left), "{left} of {} wait: not the middle", 2 * WRITES + 2);
    assert_eq!(c.cmd(&["GET", "n"]), Reply::bulk((WRITES + 1).to_string()), "of the queue");
    redis.cmd(&["CONFIG", "SET", "maxmemory", "0"]);
    wait_replayed(&proxy);
    let mut direct = redis.client();
    for i in 0..WRITES {
        assert_eq!(direct.cmd(&["GET", &format!("k{i}")]), Reply::bulk(format!("{value}{i}")), "k{i}");
    }
    assert_eq!(direct.cmd(&["MGET", "n", "changed"]), Reply::bulks(&[&(WRITES + 1).to_string(), "3"]));
    assert_eq!(outcomes(&proxy), [WRITES as f64 + 1.0, 1.0, WRITES as f64, 0.0]);
    assert_eq!(proxy.count_logged("queued writes wait"), 1, "it is said once");
    assert_eq!(until_answered(&mut c, &["INCR", "n"]), Reply::Int(WRITES as i64 + 2));
    assert_eq!(proxy.stat("pending_writes"), 0.0);
}

/// The master is one no more while its queue is done, and is it again later.
#[test]
fn a_master_that_is_demoted_in_the_middle_is_waited_for() {
    const WRITES: i64 = 3000;
    let (redis, relay, proxy, mut c) = cut_off(|b| b, &["n", "changed"]);
    assert_eq!(c.cmd(&["INCR", "changed"]), Reply::Int(2));
    for i in 0..WRITES {
        assert_eq!(c.cmd(&["INCR", "n"]), Reply::Int(i + 2));
    }
    redis.cmd(&["SET", "changed", "theirs"]);
    relay.heal();
    relay.delay(Scope::All, Dir::Down, ms(20));
    let depth = || proxy.metric("nearside_queue_depth");
    eventually(PATIENCE, "some to be done", || depth() < WRITES as f64);
    redis.cmd(&["REPLICAOF", "127.0.0.1", "1"]);
    proxy.wait_logged("refuses queued writes: READONLY");
    assert!(depth() > 0.0, "it was done before it was demoted");
    redis.cmd(&["REPLICAOF", "NO", "ONE"]);
    wait_replayed(&proxy);
    assert_eq!(redis.cmd(&["MGET", "n", "changed"]), Reply::bulks(&[&(WRITES + 1).to_string(), "2"]));
    assert_eq!(outcomes(&proxy), [WRITES as f64, 1.0, 0.0, 0.0]);
}

/// Rights to some keys are gone: those writes are lost and counted, and the others are what they were.
fn some_keys_are_forbidden(rights: &[&str]) {
    const EACH: i64 = 150;
    let rights = [&["resetkeys", "~ok:*"], rights].concat();
    let (redis, relay, proxy, mut c) = as_user(&rights, &["ok:n", "ok:changed", "no:n"]);
    for i in 0..EACH {
        assert_eq!(c.cmd(&["INCR", "ok:n"]), Reply::Int(i + 2));
        assert_eq!(c.cmd(&["INCR", "no:n"]), Reply::Int(i + 2));
        assert_eq!(c.cmd(&["SET", &format!("no:{i}"), "v"]), Reply::ok());
        assert_eq!(c.cmd(&["SET", &format!("ok:{i}"), "v"]), Reply::ok());
        assert_eq!(c.cmd(&["INCR", "ok:changed"]), Reply::Int(i + 2));
    }
    redis.cmd(&["SET", "ok:changed", "theirs"]);
    relay.heal();
    wait_replayed(&proxy);
    let last = (EACH + 1).to_string();
    assert_eq!(redis.cmd(&["MGET", "ok:n", "ok:changed", "no:n"]), Reply::bulks(&[&last, &last, "1"]));
    for i in 0..EACH {
        let (ok, no) = (format!("ok:{i}"), format!("no:{i}"));
        assert_eq!(redis.cmd(&["MGET", &ok, &no]).items(), [Reply::bulk("v"), Reply::Nil]);
    }
    let each = EACH as f64;
    // ok:n and ok:changed but its first; that one; ok:0 and so on, and ok:first; all of no:.
    assert_eq!(outcomes(&proxy), [2.0 * each - 1.0, 1.0, each + 1.0, 2.0 * each]);
    proxy.wait_logged("an acknowledged write is lost: upstream refuses it for good: NOPERM");
    assert_eq!(until_answered(&mut c, &["INCR", "ok:n"]), Reply::Int(EACH + 2), "it is over");
    assert!(c.cmd(&["INCR", "no:n"]).text().starts_with("NOPERM"));
    assert_eq!(proxy.stat("pending_writes"), 0.0);
}

#[test]
fn keys_that_are_forbidden_take_no_others_along() {
    if needs(7, 0, "refusals by key in a transaction") {
        some_keys_are_forbidden(&[]);
    }
}

#[test]
fn nor_where_each_write_goes_by_itself() {
    some_keys_are_forbidden(&["-multi"]);
}

/// Who may begin a transaction and not end it does without, and is not waited for.
#[test]
fn nor_where_transactions_cannot_be_ended() {
    some_keys_are_forbidden(&["-exec"]);
}

/// One that will never be done stands before one that will be done later: it is not taken for done.
#[test]
fn what_is_lost_before_what_must_wait_is_counted_as_lost() {
    let (redis, relay, proxy, mut c) = as_user(&["resetkeys", "~ok:*", "-multi"], &["ok:n"]);
    assert_eq!(c.cmd(&["SET", "no:k", "1"]), Reply::ok());
    assert_eq!(c.cmd(&["INCR", "ok:n"]), Reply::Int(2));
    redis.cmd(&["CONFIG", "SET", "maxmemory", "1"]);
    relay.heal();
    proxy.wait_logged("refuses queued writes: OOM");
    assert_eq!(redis.cmd(&["GET", "ok:n"]), Reply::bulk("1"));
    // Nothing of it was done, so it is compared again.
    redis.cmd(&["CONFIG", "SET", "maxmemory", "0"]);
    wait_replayed(&proxy);
    assert_eq!(redis.cmd(&["MGET", "ok:n", "no:k"]).items(), [Reply::bulk("2"), Reply::Nil]);
    assert_eq!(outcomes(&proxy), [1.0, 0.0, 1.0, 1.0]);
}

/// What was not done because upstream was full is compared with what upstream has when it is done.
#[test]
fn a_change_while_upstream_refuses_is_a_conflict() {
    for rights in [&["-multi"][..], &["+multi"]] {
        let (redis, relay, proxy, mut c) = as_user(rights, &["n", "same"]);
        assert_eq!(c.cmd(&["INCR", "n"]), Reply::Int(2));
        assert_eq!(c.cmd(&["INCR", "same"]), Reply::Int(2));
        redis.cmd(&["CONFIG", "SET", "maxmemory", "1"]);
        relay.heal();
        proxy.wait_logged("refuses queued writes: OOM");
        // Deleting is allowed.
        redis.cmd(&["DEL", "n"]);
        redis.cmd(&["CONFIG", "SET", "maxmemory", "0"]);
        wait_replayed(&proxy);
        assert_eq!(redis.cmd(&["MGET", "n", "same"]), Reply::bulks(&["2", "2"]));
        assert_eq!(outcomes(&proxy), [1.0, 1.0, 1.0, 0.0], "{rights:?}");
    }
}

/// A cut between a batch and its replies: what was found before it is counted once it is known to be done.
#[test]
fn a_conflict_stays_one_over_a_cut() {
    let (redis, relay, proxy, mut c) = cut_off(|b| b, &["n", "same"]);
    for i in 2..=3 {
        assert_eq!(c.cmd(&["INCR", "n"]), Reply::Int(i));
        assert_eq!(c.cmd(&["INCR", "same"]), Reply::Int(i));
    }
    redis.cmd(&["SET", "n", "theirs"]);
    relay.heal();
    relay.delay(Scope::All, Dir::Down, ms(150));
    // Upstream has it, and the replies are on their way.
    eventually(PATIENCE, "it to be executed", || redis.cmd(&["GET", "n"]) == Reply::bulk("3"));
    relay.cut(Scope::Existing);
    relay.delay(Scope::All, Dir::Down, ms(0));
    wait_replayed(&proxy);
    assert_eq!(redis.cmd(&["MGET", "n", "same"]), Reply::bulks(&["3", "3"]));
    assert_eq!(outcomes(&proxy), [3.0, 1.0, 0.0, 0.0]);
}
