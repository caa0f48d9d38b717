//! `outage.journal_dir`: what was acknowledged is there after the process, however that ended.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tempfile::TempDir;

use super::queue::{queueing, wait_replayed};
use super::{lasting, ms, secs, wait_gone};
use crate::support::{PATIENCE, Proxy, Redis, Reply, eventually, proxy};

fn journaled(redis: &Redis, dir: &Path) -> proxy::Builder {
    queueing(redis).set("outage.journal_dir", dir.display().to_string()).set("outage.journal_fsync", "always")
}

fn newest(dir: &Path) -> PathBuf {
    let files = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    files.filter(|path| path.extension().is_some_and(|e| e == "journal")).max().expect("a journal")
}

/// Ends the sidecar as a crash would.
fn kill(proxy: Proxy) {
    drop(proxy);
}

/// Writes `key:0`, `key:1` and so on, eight at a time, until the connection ends. How many were acknowledged.
fn write_until_the_end(socket: &Path, key: &str) -> usize {
    const AT_ONCE: usize = 8;
    const OK: &[u8] = b"+OK\r\n";
    let mut stream = UnixStream::connect(socket).expect("a connection");
    let (mut sent, mut acknowledged, mut rest) = (0, 0, Vec::new());
    let mut buffer = [0; 4096];
    loop {
        while sent < acknowledged + AT_ONCE {
            if write!(stream, "SET {key}:{sent} value:{sent}\r\n").is_err() {
                return acknowledged;
            }
            sent += 1;
        }
        match stream.read(&mut buffer) {
            Ok(0) | Err(_) => return acknowledged,
            Ok(n) => rest.extend_from_slice(&buffer[..n]),
        }
        while rest.len() >= OK.len() {
            assert_eq!(&rest[..OK.len()], OK, "{}", String::from_utf8_lossy(&rest));
            rest.drain(..OK.len());
            acknowledged += 1;
        }
    }
}

/// Killed at any moment, under clients that write: what each was told is there, here at once and upstream in the end.
#[test]
fn every_acknowledged_write_outlives_kill_9() {
    let rounds = if std::env::var_os("NEARSIDE_TEST_LONG").is_some() { 100 } else { 10 };
    // On a busy machine a round may be over before anything was written.
    const ROUNDS_MAX: u32 = 200;
    let dir = TempDir::new().unwrap();
    let mut redis = lasting();
    redis.stop();
    let seed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().subsec_nanos();
    let mut acknowledged: Vec<(String, usize)> = Vec::new();
    for round in 0..ROUNDS_MAX {
        if round >= rounds && acknowledged.iter().map(|(_, count)| count).sum::<usize>() > 50 {
            break;
        }
        let proxy = journaled(&redis, dir.path()).set("outage.queue_max", 1_000_000).start();
        wait_gone(&proxy);
        let mut c = proxy.client();
        for (key, count) in &acknowledged {
            for n in [0, count / 2, count - 1] {
                assert_eq!(c.cmd(&["GET", &format!("{key}:{n}")]), Reply::bulk(format!("value:{n}")), "{key}, {seed}");
            }
        }
        let socket = proxy.socket().to_owned();
        let writers: Vec<_> = (0..2)
            .map(|writer| {
                let (socket, key) = (socket.clone(), format!("{round}:{writer}"));
                std::thread::spawn(move || (key.clone(), write_until_the_end(&socket, &key)))
            })
            .collect();
        // Somewhere in a write, in a sync, between the two.
        std::thread::sleep(Duration::from_micros(u64::from(seed.rotate_left(round) % 120_000)));
        kill(proxy);
        let told = writers.into_iter().map(|writer| writer.join().expect("a writer"));
        acknowledged.extend(told.filter(|(_, count)| *count > 0));
    }
    let total: usize = acknowledged.iter().map(|(_, count)| count).sum();
    assert!(total > 50, "only {total} writes, {seed}");
    let proxy = journaled(&redis, dir.path()).set("outage.queue_max", 1_000_000).start();
    proxy.wait_logged("writes that were acknowledged before wait for upstream");
    redis.restart();
    wait_replayed(&proxy);
    for (key, count) in acknowledged {
        for n in 0..count {
            assert_eq!(redis.cmd(&["GET", &format!("{key}:{n}")]), Reply::bulk(format!("value:{n}")), "{key}, {seed}");
        }
    }
}

#[test]
fn sigterm_in_an_outage_keeps_the_queue_and_does_not_wait() {
    let dir = TempDir::new().unwrap();
    let mut redis = lasting();
    redis.cmd(&["SET", "old", "there"]);
    let mut proxy = journaled(&redis, dir.path()).start();
    redis.stop();
    wait_gone(&proxy);
    let mut c = proxy.client();
    assert_eq!(c.cmd(&["SET", "k", "1", "PX", "600000"]), Reply::ok());
    assert_eq!(c.cmd(&["INCR", "k"]), Reply::Int(2));
    assert_eq!(c.cmd(&["MSET", "a", "x", "old", "y"]), Reply::ok());
    assert_eq!(c.cmd(&["DEL", "old"]), Reply::Int(1));
    drop(c);
    proxy.sigterm();
    assert!(proxy.wait_exit(PATIENCE).success());
    proxy.wait_logged("5 acknowledged writes stay in outage.journal_dir, for the next start");
    let proxy = journaled(&redis, dir.path()).start();
    wait_gone(&proxy);
    let mut c = proxy.client();
    assert_eq!(c.cmd(&["MGET", "k", "a", "old"]).items(), [Reply::bulk("2"), Reply::bulk("x"), Reply::Nil]);
    assert_eq!(c.cmd(&["INCR", "k"]), Reply::Int(3), "the state is known");
    redis.restart();
    wait_replayed(&proxy);
    assert_eq!(redis.cmd(&["MGET", "k", "a", "old"]).items(), [Reply::bulk("3"), Reply::bulk("x"), Reply::Nil]);
    assert!(matches!(redis.cmd(&["PTTL", "k"]), Reply::Int(500_000..=600_000)));
    // What is done is done: a third start has nothing to do.
    drop(proxy);
    redis.cmd(&["SET", "k", "foreign"]);
    let proxy = journaled(&redis, dir.path()).start();
    assert_eq!(proxy.client().cmd(&["GET", "k"]), Reply::bulk("foreign"));
    assert_eq!(proxy.stats()["queue_depth"], "0");
}

#[test]
fn a_torn_end_is_cut_and_said() {
    let dir = TempDir::new().unwrap();
    let mut redis = lasting();
    redis.stop();
    let proxy = journaled(&redis, dir.path()).start();
    wait_gone(&proxy);
    assert_eq!(proxy.client().cmd(&["SET", "a", "1"]), Reply::ok());
    kill(proxy);
    let whole = std::fs::read(newest(dir.path())).unwrap();
    // The beginning of the same record once more.
    let torn = [&whole[..], &whole[24..whole.len() - 3]].concat();
    std::fs::write(newest(dir.path()), torn).unwrap();
    let proxy = journaled(&redis, dir.path()).start();
    proxy.wait_logged(&format!("{} bytes are cut off", whole.len() - 24 - 3));
    assert_eq!(proxy.client().cmd(&["GET", "a"]), Reply::bulk("1"));
    assert_eq!(proxy.client().cmd(&["SET", "b", "2"]), Reply::ok());
    kill(proxy);
    let proxy = journaled(&redis, dir.path()).start();
    wait_gone(&proxy);
    assert_eq!(proxy.client().cmd(&["MGET", "a", "b"]).items(), [Reply::bulk("1"), Reply::bulk("2")]);
    assert!(!proxy.logged("are cut off"));
}

/// Ends with an error, and says this.
#[track_caller]
fn fails_to_start(builder: proxy::Builder, wanted: &[&str]) {
    let mut proxy = builder.without_waiting().start();
    assert!(!proxy.wait_exit(PATIENCE).success());
    for text in wanted {
        proxy.wait_logged(text);
    }
}

#[test]
fn a_journal_that_cannot_be_trusted_is_an_error_at_start() {
    let dir = TempDir::new().unwrap();
    let mut redis = lasting();
    redis.stop();
    let proxy = journaled(&redis, dir.path()).start();
    wait_gone(&proxy);
    let mut c = proxy.client();
    for key in ["a", "b", "c"] {
        assert_eq!(c.cmd(&["SET", key, "a value"]), Reply::ok());
    }
    fails_to_start(journaled(&redis, dir.path()), &["is in use by another process"]);
    kill(proxy);
    let file = newest(dir.path());
    let good = std::fs::read(&file).unwrap();
    let mut bad = good.clone();
    bad[40] ^= 1;
    std::fs::write(&file, &bad).unwrap();
    let named = format!("{} is damaged at byte 24: ", file.display());
    fails_to_start(journaled(&redis, dir.path()), &[&named, "move the directory away"]);
    assert_eq!(std::fs::read(&file).unwrap(), bad, "nothing was changed");
    let mut newer = good.clone();
    newer[8] = 2;
    std::fs::write(&file, newer).unwrap();
    fails_to_start(journaled(&redis, dir.path()), &["is a journal of format version 2"]);
    std::fs::write(&file, good).unwrap();
    let proxy = journaled(&redis, dir.path()).start();
    assert_eq!(proxy.stats()["queue_depth"], "3");
    drop(proxy);
    let below = file.join("below a file");
    fails_to_start(journaled(&redis, &below), &["outage.journal_dir: ", "below a file: cannot make it"]);
}

#[test]
fn a_full_journal_refuses_and_says_so() {
    let dir = TempDir::new().unwrap();
    let mut redis = lasting();
    let proxy = journaled(&redis, dir.path()).set("outage.journal_max_bytes", "1MiB").start();
    redis.stop();
    wait_gone(&proxy);
    let mut c = proxy.client();
    let value = "x".repeat(100_000);
    let mut taken = 0;
    let refused = loop {
        match c.cmd(&["SET", &format!("k{taken}"), &value]) {
            reply if reply.is_error() => break reply.text(),
            _ => taken += 1,
        }
        assert!(taken < 20);
    };
    assert_eq!(taken, 10);
    assert!(
        refused.ends_with("this write cannot be queued: the journal is full (outage.journal_max_bytes)"),
        "{refused}"
    );
    assert!(c.cmd(&["GET", "k10"]).is_error(), "it was not done here either");
    assert_eq!(c.cmd(&["STRLEN", "k9"]), Reply::Int(100_000));
    assert_eq!(proxy.metric("nearside_journal_refused_total{reason=\"full\"}"), 1.0);
    redis.restart();
    wait_replayed(&proxy);
    assert_eq!(redis.cmd(&["KEYS", "k*"]).items().len(), 10);
    eventually(PATIENCE, "what is done to be given back", || proxy.metric("nearside_journal_bytes") < 200_000.0);
}

#[test]
fn writes_of_another_user_wait_for_that_user() {
    let dir = TempDir::new().unwrap();
    let mut redis = Redis::builder().args(&["--user", "anna", "on", ">secret", "~*", "&*", "+@all"]).start();
    let proxy = journaled(&redis, dir.path()).start();
    let mut anna = proxy.client();
    assert_eq!(anna.cmd(&["AUTH", "anna", "secret"]), Reply::ok());
    anna.cmd(&["SELECT", "3"]);
    anna.cmd(&["GET", "k"]);
    redis.stop();
    wait_gone(&proxy);
    assert_eq!(anna.cmd(&["SET", "k", "hers"]), Reply::ok());
    assert_eq!(proxy.client().cmd(&["SET", "k", "everybody's"]), Reply::ok());
    let file = newest(dir.path());
    kill(proxy);
    let bytes = std::fs::read(file).unwrap();
    let has = |text: &str| bytes.windows(text.len()).any(|w| w == text.as_bytes());
    assert!(has("anna") && !has("secret"));
    let proxy = journaled(&redis, dir.path()).start();
    assert_eq!(proxy.stats()["journal_orphans"], "1");
    redis.restart();
    eventually(PATIENCE, "the sidecar's own", || redis.cmd(&["GET", "k"]) == Reply::bulk("everybody's"));
    let in_3 = |key: &str| {
        let mut c = redis.client();
        c.cmd(&["SELECT", "3"]);
        c.cmd(&["GET", key])
    };
    assert_eq!(in_3("k"), Reply::Nil, "nobody has said who she is");
    assert_eq!(proxy.client().cmd(&["AUTH", "anna", "secret"]), Reply::ok());
    eventually(PATIENCE, "hers", || in_3("k") == Reply::bulk("hers"));
    eventually(PATIENCE, "no more of them", || proxy.stats()["journal_orphans"] == "0");
}

#[test]
fn policies_that_do_not_wait_for_the_disk_outlive_the_process_too() {
    for policy in ["everysec", "no"] {
        let dir = TempDir::new().unwrap();
        let mut redis = lasting();
        redis.stop();
        let proxy = journaled(&redis, dir.path()).set("outage.journal_fsync", policy).start();
        wait_gone(&proxy);
        assert_eq!(proxy.client().cmd(&["SET", "k", policy]), Reply::ok());
        kill(proxy);
        let proxy = journaled(&redis, dir.path()).start();
        wait_gone(&proxy);
        assert_eq!(proxy.client().with_patience(secs(5)).cmd(&["GET", "k"]), Reply::bulk(policy));
        redis.restart();
        wait_replayed(&proxy);
        eventually(PATIENCE + ms(1), "it upstream", || redis.cmd(&["GET", "k"]) == Reply::bulk(policy));
    }
}

/// What of a key's writes is upstream already, and not marked as such when the process was killed, is no foreign change: with
/// `queue_conflict: skip` the rest of them would be lost.
#[test]
fn what_was_done_before_the_kill_is_no_conflict() {
    let dir = TempDir::new().unwrap();
    let mut redis = lasting();
    redis.cmd(&["MSET", "n", "1", "theirs", "1", "gone", "1"]);
    let with_skip = |redis: &Redis| journaled(redis, dir.path()).set("outage.queue_conflict", "skip");
    let proxy = with_skip(&redis).start();
    let mut c = proxy.client();
    ["n", "theirs", "gone"].iter().for_each(|key| drop(super::warm(&proxy, &mut c, key)));
    redis.stop();
    wait_gone(&proxy);
    for i in 2..=4 {
        assert_eq!(c.cmd(&["INCR", "n"]), Reply::Int(i));
    }
    assert_eq!(c.cmd(&["INCR", "theirs"]), Reply::Int(2));
    assert_eq!(c.cmd(&["DEL", "gone"]), Reply::Int(1));
    assert_eq!(c.cmd(&["SET", "gone", "new"]), Reply::ok());
    kill(proxy);
    redis.restart();
    // As if upstream had got two of n's writes and one of gone's.
    let loaded = || redis.cmd(&["MSET", "n", "3", "theirs", "100"]) == Reply::ok();
    eventually(PATIENCE, "it to have loaded its data", loaded);
    assert_eq!(redis.cmd(&["DEL", "gone"]), Reply::Int(1));
    let proxy = with_skip(&redis).start();
    wait_replayed(&proxy);
    assert_eq!(redis.cmd(&["MGET", "n", "theirs", "gone"]), Reply::bulks(&["4", "100", "new"]));
    let replayed = |what| super::queue::replayed(&proxy, what);
    assert_eq!((replayed("applied"), replayed("conflict_skipped")), (5.0, 1.0));
}
