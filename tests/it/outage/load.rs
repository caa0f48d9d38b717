//! Clients go on while upstream is frozen, cut off and killed. Whatever they are told is judged: their own writes are never
//! undone by a read, nothing is older than the bounds say, and nobody waits for longer than is stated.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::{lasting, ms, quick, secs, wait_back, wait_gone};
use crate::support::{Client, Dir, Proxy, Redis, Relay, Reply, Scope};

/// Clients that write and read, and clients that only read: a write on its way to a silent server is waited for.
const WRITERS: usize = 4;
const READERS: usize = 3;

/// The write of a foreign key, and its place in time: versions that upstream has acknowledged.
type History = Arc<Mutex<Vec<(u64, Instant)>>>;

const B: Duration = ms(500);
const MAX_STALE: Duration = secs(3);

/// A command is answered or refused within this, whatever happens: `stall_timeout` (1 s), `connect_timeout` (1 s), and what
/// a machine that is busy with other tests adds.
const PATIENT: Duration = secs(10);

struct Worker {
    c: Client,
    own: String,
    /// What was acknowledged last, and what was sent last.
    acked: u64,
    sent: u64,
    /// The newest version of the foreign key it has seen.
    seen: u64,
    foreign: History,
    counts: Arc<Counts>,
}

#[derive(Default)]
struct Counts {
    answered: AtomicU64,
    refused: AtomicU64,
}

impl Worker {
    fn write(&mut self) {
        self.sent += 1;
        let reply = self.ask(&["SET", &self.own.clone(), &self.sent.to_string()]);
        if reply == Reply::ok() {
            self.acked = self.sent;
        }
    }

    /// Its own key: nothing older than what it was told is written, nothing that it never sent.
    fn read_own(&mut self) {
        let reply = self.ask(&["GET", &self.own.clone()]);
        let Some(version) = version(&reply) else { return };
        assert!((self.acked..=self.sent).contains(&version), "{version} of {} to {}", self.acked, self.sent);
        // A write of unknown outcome that shows has happened.
        self.acked = version;
    }

    /// A key that is written past the sidecar: never older than the bound.
    fn read_foreign(&mut self) {
        let asked = Instant::now();
        let reply = self.ask(&["GET", "foreign"]);
        let Some(version) = version(&reply) else { return };
        let history = self.foreign.lock().expect("a history");
        let next = history.iter().find(|(v, _)| *v > version).map(|(_, at)| *at);
        let limit = MAX_STALE + B;
        assert!(
            next.is_none_or(|at| at + limit >= asked),
            "{version} was replaced {:?} before",
            next.map(|at| asked - at)
        );
        self.seen = self.seen.max(version);
    }

    /// A key that nobody writes: this or an error.
    fn read_fixed(&mut self) {
        let reply = self.ask(&["GET", "fixed"]);
        assert!(reply.is_error() || reply == Reply::bulk("1"), "{reply:?}");
    }

    #[track_caller]
    fn ask(&mut self, words: &[&str]) -> Reply {
        let start = Instant::now();
        let reply = self.c.cmd(words);
        assert!(start.elapsed() < PATIENT, "{words:?} took {:?}", start.elapsed());
        if reply.is_error() {
            assert!(reply.text().starts_with("NEARSIDE upstream "), "{words:?}: {reply:?}");
            self.counts.refused.fetch_add(1, Relaxed);
        } else {
            self.counts.answered.fetch_add(1, Relaxed);
        }
        reply
    }
}

fn version(reply: &Reply) -> Option<u64> {
    match reply {
        Reply::Bulk(_) => reply.text().parse().ok(),
        _ => None,
    }
}

/// Writes the foreign key until told to stop. What fails is retried: only what is acknowledged counts.
fn write_foreign(socket: &std::path::Path, history: &History, over: &AtomicBool) {
    let mut n = 0u64;
    while !over.load(Relaxed) {
        let Ok(client) = Client::try_unix(socket) else {
            std::thread::sleep(ms(20));
            continue;
        };
        let mut client = client.with_patience(ms(300));
        while !over.load(Relaxed) {
            n += 1;
            let request = crate::support::encode(&["SET", "foreign", &n.to_string()]);
            let sent = client.try_send(&request).is_ok();
            match sent.then(|| client.try_read(ms(300))).flatten() {
                Some(bytes) if bytes.starts_with(b"+OK") => {
                    history.lock().expect("a history").push((n, Instant::now()));
                }
                // Whether it was executed nobody knows: a connection whose replies are out of step is given up.
                _ => break,
            }
            std::thread::sleep(ms(5));
        }
    }
}

/// Runs clients while `trouble` does what it does; returns how many commands were answered and refused.
fn under_load(proxy: &Proxy, redis_socket: &std::path::Path, trouble: impl FnOnce()) -> (u64, u64) {
    Client::unix(redis_socket).cmd(&["SET", "fixed", "1"]);
    super::warm(proxy, &mut proxy.client(), "fixed");
    let (over, counts, foreign) = (AtomicBool::new(false), Arc::new(Counts::default()), History::default());
    std::thread::scope(|scope| {
        scope.spawn(|| write_foreign(redis_socket, &foreign, &over));
        for i in 0..WRITERS + READERS {
            let (foreign, counts, over) = (foreign.clone(), counts.clone(), &over);
            let c = proxy.client().with_patience(PATIENT);
            scope.spawn(move || {
                let own = format!("own:{i}");
                let mut worker = Worker { c, own, acked: 0, sent: 0, seen: 0, foreign, counts };
                while !over.load(Relaxed) {
                    if i < WRITERS {
                        worker.write();
                    }
                    worker.read_fixed();
                    for _ in 0..4 {
                        worker.read_own();
                        worker.read_foreign();
                    }
                    std::thread::sleep(ms(2));
                }
            });
        }
        trouble();
        over.store(true, Relaxed);
    });
    (counts.answered.load(Relaxed), counts.refused.load(Relaxed))
}

fn proxy(url: &str) -> Proxy {
    let builder = quick(Proxy::upstream(url)).set("upstream.stall_timeout", "1s").set("outage.max_stale", "3s");
    builder.set("coherence.max_staleness", "500ms").start()
}

#[track_caller]
fn at_rest(proxy: &Proxy, (answered, refused): (u64, u64)) {
    assert!(answered > 100 && refused > 0, "{answered} answered, {refused} refused");
    assert!(proxy.metric("nearside_stale_served_total") > 0.0);
    crate::support::eventually(crate::support::PATIENCE, "nothing to be pending", || {
        proxy.stat("pending_writes") == 0.0
    });
}

/// A server that goes away twice, under load.
fn goes_and_comes(redis: Redis, go: fn(&mut Redis), come: fn(&mut Redis)) {
    let (url, socket) = (redis.url(), redis.socket().to_path_buf());
    let redis = Mutex::new(redis);
    let proxy = proxy(&url);
    let counts = under_load(&proxy, &socket, || {
        for _ in 0..2 {
            std::thread::sleep(ms(300));
            go(&mut redis.lock().expect("a server"));
            wait_gone(&proxy);
            std::thread::sleep(ms(500));
            come(&mut redis.lock().expect("a server"));
            wait_back(&proxy);
        }
        std::thread::sleep(ms(300));
    });
    at_rest(&proxy, counts);
}

#[test]
fn a_server_that_is_frozen_and_goes_on() {
    goes_and_comes(Redis::start(), |redis| redis.sigstop(), |redis| redis.sigcont());
}

#[test]
fn a_server_that_is_killed_and_comes_back_with_its_data() {
    goes_and_comes(lasting(), Redis::stop, Redis::restart);
}

/// (A write on its way into a black hole has no answer until TCP gives it up: `detect` has the reads.)
#[test]
fn a_network_that_refuses_stalls_and_heals() {
    let redis = Redis::start();
    let relay = Relay::to(&redis);
    let proxy = proxy(&relay.url());
    let counts = under_load(&proxy, redis.socket(), || {
        for round in 0..3 {
            std::thread::sleep(ms(300));
            match round {
                0 => {
                    relay.refuse();
                    relay.cut(Scope::Existing);
                }
                1 => relay.stall(Scope::All, Dir::Down),
                _ => relay.stall(Scope::All, Dir::Up),
            }
            wait_gone(&proxy);
            std::thread::sleep(ms(300));
            relay.resume(Scope::All, Dir::Down);
            relay.resume(Scope::All, Dir::Up);
            relay.heal();
            wait_back(&proxy);
        }
        std::thread::sleep(ms(300));
    });
    at_rest(&proxy, counts);
}
