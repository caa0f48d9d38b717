//! Changes while clients keep reading: nobody is dropped, and what was acknowledged holds for every read from then on.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread::JoinHandle;

use serde_json::json;

use super::Stand;
use crate::sessions::{run, warm};
use crate::support::{PATIENCE, Reply, eventually};

const READERS: usize = 4;
const KEYS: usize = 50;

/// Clients that read `hot:<n>` for as long as they are not told to stop, each on one connection.
struct Readers {
    stop: Arc<AtomicBool>,
    reads: Vec<Arc<AtomicU64>>,
    threads: Vec<JoinHandle<()>>,
}

impl Readers {
    fn start(stand: &Stand) -> Readers {
        let stop = Arc::new(AtomicBool::new(false));
        let reads: Vec<Arc<AtomicU64>> = (0..READERS).map(|_| Arc::default()).collect();
        let spawn = |count: &Arc<AtomicU64>| {
            let (mut client, stop, count) = (stand.proxy.client(), stop.clone(), count.clone());
            std::thread::spawn(move || {
                for i in (0..KEYS).cycle() {
                    if stop.load(SeqCst) {
                        return;
                    }
                    // A connection that is dropped, or an error, ends the test here.
                    let reply = client.cmd(&["GET", &format!("hot:{i}")]);
                    assert_eq!(reply, Reply::bulk("v"));
                    count.fetch_add(1, SeqCst);
                }
            })
        };
        let threads = reads.iter().map(spawn).collect();
        Readers { stop, reads, threads }
    }

    /// Every reader has read so many more: what was on its way before has been answered.
    #[track_caller]
    fn wait_more(&self, more: u64) {
        let before: Vec<u64> = self.reads.iter().map(|count| count.load(SeqCst)).collect();
        eventually(PATIENCE, "every reader to go on", || {
            self.reads.iter().zip(&before).all(|(count, before)| count.load(SeqCst) >= before + more)
        });
    }

    #[track_caller]
    fn end(self) {
        self.wait_more(1);
        self.stop.store(true, SeqCst);
        self.threads.into_iter().for_each(|thread| thread.join().expect("a reader that was never disturbed"));
    }
}

fn stand() -> Stand {
    let stand = Stand::with(|builder| {
        let rules = json!([{"name": "hot", "pattern": "hot:*"}, {"name": "cold", "pattern": "cold:*"}]);
        builder.set("workers", 2).set("rules", rules)
    });
    for i in 0..KEYS {
        stand.redis.cmd(&["SET", &format!("hot:{i}"), "v"]);
    }
    stand
}

fn hits(stand: &Stand) -> f64 {
    stand.proxy.metric_sum("cache_hits_total")
}

#[track_caller]
fn wait_hits(stand: &Stand) {
    let before = hits(stand);
    eventually(PATIENCE, "hits", || hits(stand) >= before + 20.0);
}

/// From the acknowledgement on no read that is sent is a hit.
#[track_caller]
fn no_hit_any_more(stand: &Stand, readers: &Readers) {
    readers.wait_more(2);
    let before = hits(stand);
    readers.wait_more(20);
    assert_eq!(hits(stand), before, "a hit of what is forbidden");
}

#[test]
fn a_rule_taken_and_given_under_load_drops_nobody_and_nothing_it_forbids_is_served() {
    let stand = stand();
    let readers = Readers::start(&stand);
    for _ in 0..5 {
        wait_hits(&stand);
        let done = stand.delete("/api/v1/rules/hot");
        assert!(done["dropped"].as_u64() > Some(0), "{done}");
        no_hit_any_more(&stand, &readers);
        stand.put("/api/v1/rules/hot?at=0", &json!({"pattern": "hot:*"}));
    }
    wait_hits(&stand);
    readers.end();
}

/// So many entries that to look through them takes a while: an answer that came earlier would be seen here.
#[test]
fn the_answer_comes_when_all_is_gone() {
    const MANY: usize = 6000;
    let stand = stand();
    let mut client = stand.proxy.client();
    let keys: Vec<String> = (0..MANY).map(|i| format!("hot:{i}")).collect();
    let pairs: Vec<&str> = std::iter::once("MSET").chain(keys.iter().flat_map(|key| [key.as_str(), "v"])).collect();
    stand.redis.cmd(&pairs);
    let commands: Vec<[&str; 2]> = keys.iter().map(|key| ["GET", key]).collect();
    let commands: Vec<&[&str]> = commands.iter().map(|command| &command[..]).collect();
    eventually(PATIENCE, "all in the L1", || {
        client.pipeline(&commands);
        stand.proxy.stat("entries") == MANY as f64
    });
    for change in [json!({"pattern": "hot:*", "mode": "off"}), json!({"pattern": "hot:*"})] {
        let before = stand.proxy.stat("hits");
        let done = stand.put("/api/v1/rules/hot", &change);
        let replies = client.pipeline(&commands);
        assert!(replies.iter().all(|reply| *reply == Reply::bulk("v")));
        let hits = stand.proxy.stat("hits") - before;
        if change["mode"] == "off" {
            assert_eq!((done["dropped"].as_u64(), hits), (Some(MANY as u64), 0.0), "{done}");
            assert_eq!(stand.proxy.stat("entries"), 0.0);
        } else {
            assert_eq!(done["dropped"], 0);
        }
    }
}

/// What passes through is as fresh as upstream: a hit here would be an old value at once.
#[test]
fn after_the_answer_every_read_sees_what_others_have_written_before() {
    let stand = stand();
    let readers = Readers::start(&stand);
    let (mut client, mut writer) = (stand.proxy.client(), stand.redis.client());
    run(&mut writer, "SET hot:x 0");
    warm(&stand.proxy, &mut client, "hot:x");
    stand.put("/api/v1/rules/hot", &json!({"pattern": "hot:*", "mode": "off"}));
    for i in 1..=200 {
        run(&mut writer, &format!("SET hot:x {i}"));
        assert_eq!(run(&mut client, "GET hot:x"), Reply::bulk(i.to_string()));
    }
    readers.end();
}

#[test]
fn a_mode_changed_under_load_drops_nobody_and_nothing_is_served_from_before() {
    let stand = stand();
    let readers = Readers::start(&stand);
    for by_client in [false, true, false] {
        let set = |mode: &str| {
            if by_client {
                assert_eq!(run(&mut stand.proxy.client(), &format!("NEARSIDE MODE {mode}")), Reply::ok());
            } else {
                stand.put("/api/v1/mode", &json!({ "mode": mode }));
            }
        };
        wait_hits(&stand);
        set("off");
        no_hit_any_more(&stand, &readers);
        set("serve");
    }
    wait_hits(&stand);
    readers.end();
}

/// The whole configuration is another one, over and over, with the same clients.
#[test]
fn reloads_under_load_drop_nobody() {
    let hot = "rules: [{name: hot, pattern: 'hot:*'}]\n";
    let other = "rules: [{name: other, pattern: 'other:*'}]\ncache: {mode: off}\n";
    let stand = Stand::with_file(&format!("workers: 2\n{hot}"));
    for i in 0..KEYS {
        stand.redis.cmd(&["SET", &format!("hot:{i}"), "v"]);
    }
    let readers = Readers::start(&stand);
    for _ in 0..5 {
        wait_hits(&stand);
        stand.write(&format!("workers: 2\n{other}"));
        stand.reload();
        no_hit_any_more(&stand, &readers);
        stand.write(&format!("workers: 2\n{hot}"));
        stand.reload();
    }
    readers.end();
}
