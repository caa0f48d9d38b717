//! The cache's mode, and a rule's, are switched over and over while clients write and read back, in every mode of coherence and
//! by every way there is: no error, no connection lost, everybody sees what was acknowledged, and nothing is older than the
//! mode of coherence allows.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::json;

use super::Stand;
use crate::sessions::run;
use crate::support::{Client, Dir, PATIENCE, Proxy, Redis, Relay, Reply, Scope, eventually, proxy};

const B: Duration = Duration::from_millis(300);
const PUBSUB_CAP: Duration = Duration::from_millis(900);
const TTL_CAP: Duration = Duration::from_millis(400);

const SWITCHES: usize = 50;

/// Of one rule, in each of the three modes: by the API each waits until nothing is left that it forbids. The last one lets its keys be served.
const SWITCHES_OF_A_RULE: usize = 21;
const CLIENTS: usize = 4;

/// Keys that are written past the sidecar.
const FOREIGN: usize = 3;

/// What was written past the sidecar to each key, ascending, and when that was acknowledged.
type Written = Arc<Mutex<[Vec<(u64, Instant)>; FOREIGN]>>;

/// What all clients of a run share.
#[derive(Clone, Default)]
struct Shared {
    stop: Arc<AtomicBool>,
    written: Written,
    /// The newest number that each client was told OK for.
    acked: [Arc<AtomicU64>; CLIENTS],
    /// Rounds of each client.
    rounds: [Arc<AtomicU64>; CLIENTS],
}

impl Shared {
    /// The oldest number that a read which is sent now may answer with.
    fn floor(&self, key: usize, bound: Duration) -> u64 {
        let Some(oldest) = Instant::now().checked_sub(bound) else { return 0 };
        let written = self.written.lock().expect("no panic");
        let over = written[key].partition_point(|(_, at)| *at < oldest);
        over.checked_sub(1).map_or(0, |i| written[key][i].0)
    }
}

fn number(reply: &Reply) -> u64 {
    if *reply == Reply::Nil { 0 } else { reply.text().parse().unwrap_or_else(|_| panic!("a number, not {reply:?}")) }
}

/// Writes its own keys in every way there is and reads back; reads what the others and foreigners write.
struct Worker {
    me: usize,
    client: Client,
    shared: Shared,
    bound: Duration,
    newest: [u64; FOREIGN],
}

impl Worker {
    fn run(mut self) {
        for n in 1.. {
            if self.shared.stop.load(SeqCst) {
                return;
            }
            self.write(n);
            self.read_others();
            self.read_foreign();
            self.shared.rounds[self.me].fetch_add(1, SeqCst);
        }
    }

    /// By turns on the shared connection, on one of its own, and by a script that does not say what it writes.
    fn write(&mut self, n: u64) {
        let key = format!("own:{}", self.me);
        match n % 3 {
            0 => assert_eq!(run(&mut self.client, &format!("SET {key} {n}")), Reply::ok()),
            1 => {
                let set = format!("SET {key} {n}");
                let said: Vec<Reply> = ["MULTI", &set, "EXEC"].iter().map(|line| run(&mut self.client, line)).collect();
                assert_eq!(said[2], Reply::Array(vec![Reply::ok()]), "{said:?}");
            }
            _ => {
                let script = format!("redis.call('SET', 'script:{}', {n})", self.me);
                assert_eq!(self.client.cmd(&["EVAL", &script, "0"]), Reply::Nil);
                let read = number(&run(&mut self.client, &format!("GET script:{}", self.me)));
                assert_eq!(read, n, "its own script's write is not read");
                return;
            }
        }
        self.shared.acked[self.me].store(n, SeqCst);
        for _ in 0..2 {
            assert_eq!(number(&run(&mut self.client, &format!("GET {key}"))), n, "its own write is not read");
        }
    }

    fn read_others(&mut self) {
        for other in (0..CLIENTS).filter(|other| *other != self.me) {
            let floor = self.shared.acked[other].load(SeqCst);
            let read = number(&run(&mut self.client, &format!("GET own:{other}")));
            assert!(read >= floor, "own:{other} is {read} behind the OK to {floor}");
        }
    }

    fn read_foreign(&mut self) {
        for key in 0..FOREIGN {
            for mget in [false, true] {
                let floor = self.shared.floor(key, self.bound);
                let read = match mget {
                    false => number(&run(&mut self.client, &format!("GET foreign:{key}"))),
                    true => number(&run(&mut self.client, &format!("MGET foreign:{key} own:{}", self.me)).items()[0]),
                };
                assert!(read >= floor, "foreign:{key} is {read}, {floor} is older than {:?}", self.bound);
                let newest = &mut self.newest[key];
                assert!(read >= *newest, "foreign:{key} went back from {newest} to {read}");
                *newest = read;
            }
        }
    }
}

/// Clients at work, one of them as another user, and somebody who writes past the sidecar.
struct Load {
    shared: Shared,
    threads: Vec<JoinHandle<()>>,
}

impl Load {
    fn start(stand: &Stand, bound: Duration) -> Load {
        let shared = Shared::default();
        stand.redis.cmd(&["ACL", "SETUSER", "other", "on", ">secret", "~*", "&*", "+@all"]);
        let worker = |me: usize| {
            let mut client = stand.proxy.client();
            if me == 0 {
                assert_eq!(run(&mut client, "AUTH other secret"), Reply::ok());
            }
            let worker = Worker { me, client, shared: shared.clone(), bound, newest: [0; FOREIGN] };
            std::thread::spawn(move || worker.run())
        };
        let mut threads: Vec<JoinHandle<()>> = (0..CLIENTS).map(worker).collect();
        let (mut foreigner, own) = (stand.redis.client(), shared.clone());
        threads.push(std::thread::spawn(move || {
            for n in 1.. {
                if own.stop.load(SeqCst) {
                    return;
                }
                let key = n as usize % FOREIGN;
                assert_eq!(run(&mut foreigner, &format!("SET foreign:{key} {n}")), Reply::ok());
                own.written.lock().expect("no panic")[key].push((n, Instant::now()));
                std::thread::park_timeout(Duration::from_millis(2)); // its pace
            }
        }));
        Load { shared, threads }
    }

    /// Every client has gone on, or one of them has panicked, which `end` tells.
    fn wait_rounds(&self, more: u64) {
        let rounds = || self.shared.rounds.iter().map(|rounds| rounds.load(SeqCst));
        let before: Vec<u64> = rounds().collect();
        eventually(PATIENCE, "every client to go on", || {
            self.threads.iter().any(JoinHandle::is_finished)
                || rounds().zip(&before).all(|(now, then)| now >= then + more)
        });
    }

    #[track_caller]
    fn end(self) {
        self.shared.stop.store(true, SeqCst);
        self.threads.into_iter().for_each(|thread| thread.join().expect("a client that nothing has disturbed"));
    }
}

/// Of what is configured apart from the mode of the cache.
fn settings(coherence: &str) -> String {
    format!(
        "workers: 2\ncoherence: {{mode: {coherence}, max_staleness: {}ms, ttl_cap: {{pubsub: {}ms, ttl: {}ms}}}}\n",
        B.as_millis(),
        PUBSUB_CAP.as_millis(),
        TTL_CAP.as_millis()
    )
}

/// In a third of the switches back the next one follows at once; in the others clients have gone on, or have had hits again.
#[track_caller]
fn switch_under_load(coherence: &str, bound: Duration) {
    let stand = Stand::with_file(&settings(coherence));
    let load = Load::start(&stand, bound);
    let mut admin = stand.proxy.client();
    let mut hits = 0.0;
    for i in 0..SWITCHES {
        let mode = ["observe", "serve", "off", "serve", "observe", "off", "serve"][i % 7];
        match i % 3 {
            0 => assert_eq!(run(&mut admin, &format!("NEARSIDE MODE {mode}")), Reply::ok()),
            1 => drop(stand.put("/api/v1/mode", &json!({"mode": mode}))),
            _ => {
                stand.write(&format!("{}cache: {{mode: {mode}}} # {i}\n", settings(coherence)));
                stand.reload();
            }
        }
        match (mode, i % 4) {
            (_, 0) => {}
            ("serve", 3) => {
                let before = stand.proxy.stat("hits");
                eventually(PATIENCE, "hits", || {
                    load.threads.iter().any(JoinHandle::is_finished) || stand.proxy.stat("hits") > before
                });
                hits += stand.proxy.stat("hits") - before;
            }
            _ => load.wait_rounds(2),
        }
    }
    assert_eq!(run(&mut admin, "NEARSIDE MODE serve"), Reply::ok());
    load.wait_rounds(5);
    load.end();
    assert!(hits > 0.0, "nothing was served, so nothing could be wrong");
    assert_eq!(stand.proxy.stat("upstream_reconnects"), 0.0, "all over the same connections");
    assert_eq!(stand.proxy.stat("pending_writes"), 0.0);
}

#[test]
fn fifty_switches_under_load_in_tracking_mode() {
    switch_under_load("tracking", B);
}

#[test]
fn fifty_switches_under_load_in_pubsub_mode() {
    switch_under_load("pubsub", PUBSUB_CAP);
}

#[test]
fn fifty_switches_under_load_in_ttl_mode() {
    switch_under_load("ttl", TTL_CAP);
}

/// The same for one rule, by the API, while the others' keys are served all the time.
#[test]
fn switches_of_a_rule_under_load() {
    for (coherence, bound) in [("tracking", B), ("pubsub", PUBSUB_CAP), ("ttl", TTL_CAP)] {
        let rules = "rules: [{name: foreign, pattern: 'foreign:*'}, {name: own, pattern: 'own:*'}, {name: all, pattern: '*'}]\n";
        let stand = Stand::with_file(&format!("{}{rules}", settings(coherence)));
        let load = Load::start(&stand, bound);
        for i in 0..SWITCHES_OF_A_RULE {
            let mode = ["observe", "serve", "off", "serve", "observe", "off", "serve"][i % 7];
            let (name, at) = [("foreign", 0), ("own", 1)][i % 2];
            let body = json!({"pattern": format!("{name}:*"), "mode": mode});
            stand.put(&format!("/api/v1/rules/{name}?at={at}"), &body);
            if i % 3 > 0 {
                load.wait_rounds(1);
            }
        }
        let before = stand.proxy.stat("hits");
        load.wait_rounds(5);
        load.end();
        assert!(stand.proxy.stat("hits") > before, "{coherence}: hits while one of the rules was switched");
        assert_eq!(stand.proxy.stat("upstream_reconnects"), 0.0);
    }
}

/// A write that was sent while nothing was kept is answered while something is: what was read in between, before it
/// executed, is not served behind its reply. In `ttl` mode nothing else would ever tell.
#[test]
fn what_was_sent_while_off_is_seen_behind_its_reply() {
    for off in ["off", "observe"] {
        for (command, now) in [("SET k new", Reply::bulk("new")), ("SWAPDB 0 1", Reply::Nil)] {
            assert_eq!(sent_while_off(off, command, |builder| builder), now, "{off}, {command}");
        }
        // SWAPDB is told to all sidecars, this one too, so it may be seen without the rule; a SET is not.
        let old = sent_while_off(off, "SET k new", |builder| builder.env("TEST_ONLY_NEARSIDE_BREAK", "unseen"));
        assert_eq!(old, Reply::bulk("old"), "{off}: without the rule this test sees nothing");
    }
}

/// What another client reads behind the reply.
#[track_caller]
fn sent_while_off(off: &str, command: &str, change: impl FnOnce(proxy::Builder) -> proxy::Builder) -> Reply {
    let redis = Redis::start();
    redis.cmd(&["SET", "k", "old"]);
    let relay = Relay::to(&redis);
    let builder = Proxy::upstream(&relay.url()).set("cache.mode", off).set("coherence.mode", "ttl");
    // The old value stays for as long as nobody ends it, and no sample finds it.
    let builder = builder.set("coherence.ttl_cap.ttl", "1h").set("coherence.sample_per_second", 0);
    let proxy = change(builder).start();
    let (mut writer, mut reader) = (proxy.client(), proxy.client());
    assert_eq!(run(&mut reader, "GET k"), Reply::bulk("old"));
    let before = relay.connections();
    // On a connection of the writer's own, which only then is too slow.
    assert_eq!(run(&mut writer, "MULTI"), Reply::ok());
    assert_eq!(run(&mut writer, command), Reply::status("QUEUED"));
    let own = relay.connections().into_iter().find(|link| !before.contains(link)).expect("the writer's connection");
    relay.stall(Scope::One(own), Dir::Up);
    writer.send_cmd(&["EXEC"]);
    eventually(PATIENCE, "EXEC on its way", || run(&mut reader, "CLIENT LIST").text().contains("cmd=exec"));
    assert_eq!(run(&mut reader, "NEARSIDE MODE serve"), Reply::ok());
    eventually(PATIENCE, "a hit of the old value", || {
        let before = proxy.stat("hits");
        assert_eq!(run(&mut reader, "GET k"), Reply::bulk("old"));
        proxy.stat("hits") > before
    });
    relay.resume(Scope::One(own), Dir::Up);
    assert_eq!(writer.reply(), Reply::Array(vec![Reply::ok()]));
    run(&mut reader, "GET k")
}
