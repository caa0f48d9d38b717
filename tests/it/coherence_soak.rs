//! C59: clients of two users read and write in every way there is while foreign writers change the same keys and the
//! network stalls, splits, delays and breaks. Every value is a version that only grows, so each reply can be judged when it
//! comes: not older than what this session has written or seen, not older than what the sidecar had acknowledged to anybody
//! when the request was sent, not older than what a foreign writer knew of B before it. Keys that are only written together
//! are never seen apart. At rest the cache holds what upstream holds.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::client::decode;
use crate::support::{Client, Dir, Fake, PATIENCE, Proxy, Redis, Relay, Reply, Scope, encode, eventually};

const B: Duration = Duration::from_millis(150);
const SESSIONS: usize = 8;

/// Sessions that read one key over and over: those that do more are soon waiting for a stalled lane, and show nothing of
/// what a hit would have been.
const POLLERS: [&str; 4] = ["pa0", "x", "pa1", "y"];

/// Keys that everybody counts up.
const COUNTERS: [&str; 4] = ["k0", "k1", "k2", "k3"];

/// Written together only, by foreign writers in a transaction.
const PAIRS: [[&str; 2]; 2] = [["pa0", "pb0"], ["pa1", "pb1"]];

/// Written in this order by one foreign writer, so x is never behind y.
const ORDERED: [&str; 2] = ["x", "y"];

/// Numbers without a pattern (xorshift).
struct Dice(u64);

impl Dice {
    fn new(seed: u64) -> Dice {
        Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }

    fn of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len() as u64) as usize]
    }

    fn pause(&mut self, up_to: Duration) {
        thread::sleep(Duration::from_micros(self.below(up_to.as_micros() as u64 + 1)));
    }
}

/// What is known to be true, for all threads.
struct Truth {
    /// The newest version that the sidecar has acknowledged to anybody.
    acked: HashMap<String, AtomicI64>,
    /// When foreign writers learned of their versions, by key.
    foreign: HashMap<String, Mutex<Vec<(Instant, i64)>>>,
    violations: Mutex<Vec<String>>,
    over: AtomicBool,
    reads: AtomicU64,
    writes: AtomicU64,
}

impl Truth {
    fn new() -> Truth {
        let keys = all_keys();
        Truth {
            acked: keys.iter().map(|k| (k.clone(), AtomicI64::new(0))).collect(),
            foreign: keys.iter().map(|k| (k.clone(), Mutex::default())).collect(),
            violations: Mutex::default(),
            over: AtomicBool::new(false),
            reads: AtomicU64::new(0),
            writes: AtomicU64::new(0),
        }
    }

    fn acknowledge(&self, key: &str, version: i64) {
        self.acked[key].fetch_max(version, SeqCst);
        self.writes.fetch_add(1, SeqCst);
    }

    fn acked(&self, key: &str) -> i64 {
        self.acked[key].load(SeqCst)
    }

    fn foreign_knows(&self, key: &str, version: i64) {
        self.foreign[key].lock().expect("no panic").push((Instant::now(), version));
    }

    /// The newest version a foreign writer knew of at `time`.
    fn foreign_at(&self, key: &str, time: Instant) -> i64 {
        let known = self.foreign[key].lock().expect("no panic");
        known.iter().rev().find(|(at, _)| *at < time).map_or(0, |(_, version)| *version)
    }

    fn violated(&self, what: String) {
        self.violations.lock().expect("no panic").push(what);
        self.over.store(true, SeqCst);
    }

    fn is_over(&self) -> bool {
        self.over.load(SeqCst)
    }
}

fn all_keys() -> Vec<String> {
    let fixed = COUNTERS.iter().chain(PAIRS.as_flattened()).chain(&ORDERED).map(|k| (*k).to_owned());
    let own = (0..SESSIONS).flat_map(|i| [format!("s{i}"), format!("ma{i}"), format!("mb{i}")]);
    fixed.chain(own).collect()
}

fn version(reply: &Reply) -> i64 {
    match reply {
        Reply::Nil => 0,
        other => other.text().parse().unwrap_or(0), // GETRANGE of nothing is an empty text
    }
}

/// One client connection; a new one where the old one was closed.
struct Talk {
    client: Client,
    received: Vec<u8>,
}

impl Talk {
    fn open(proxy: &std::path::Path, user: bool) -> Option<Talk> {
        let client = Client::try_unix(proxy).ok()?;
        let mut talk = Talk { client, received: Vec::new() };
        if user {
            let said = talk.ask(&[&["AUTH", "other", "secret"]])?;
            (said[0] == Reply::ok()).then_some(())?;
        }
        Some(talk)
    }

    /// Sends commands in one write; `None` when the connection was closed before all were answered.
    fn ask(&mut self, commands: &[&[&str]]) -> Option<Vec<Reply>> {
        let bytes: Vec<u8> = commands.iter().flat_map(|words| encode(words)).collect();
        self.client.try_send(&bytes).ok()?;
        let mut replies = Vec::new();
        while replies.len() < commands.len() {
            match decode(&self.received, &mut Vec::new()) {
                Some((reply, used)) if used <= self.received.len() && !self.received.is_empty() => {
                    self.received.drain(..used);
                    replies.push(reply);
                }
                _ => match self.client.try_read(PATIENCE) {
                    Some(more) if !more.is_empty() => self.received.extend(more),
                    Some(_) => return None,
                    None => panic!("no answer to {commands:?} within {PATIENCE:?}"),
                },
            }
        }
        Some(replies)
    }
}

struct Session {
    number: usize,
    truth: Arc<Truth>,
    talk: Talk,
    dice: Dice,
    /// What this connection has written or seen.
    seen: HashMap<String, i64>,
    /// Of the keys that only this session writes.
    next: i64,
}

impl Session {
    fn run(proxy: &std::path::Path, number: usize, truth: &Arc<Truth>) {
        let mut next = 0;
        while !truth.is_over() {
            let Some(talk) = Talk::open(proxy, number % 3 == 2) else { continue };
            let dice = Dice::new(number as u64 + 100 + next as u64);
            let mut session = Session { number, truth: truth.clone(), talk, dice, seen: HashMap::new(), next };
            while !truth.is_over() && session.turn().is_some() {
                session.dice.pause(Duration::from_millis(2));
            }
            next = session.next;
        }
    }

    /// One thing to do; `None` when the connection is gone.
    fn turn(&mut self) -> Option<()> {
        let k = self.dice.of(&COUNTERS);
        if let Some(key) = self.number.checked_sub(SESSIONS) {
            return self.poll(POLLERS[key]);
        }
        match self.dice.below(40) {
            0..14 => self.get(k),
            14..19 => self.pair(),
            19..22 => self.ordered(),
            22..25 => self.mixed(k),
            25..27 => self.others(),
            27..29 => self.pipeline(k),
            29 => self.pinned_read(k),
            30..32 => self.increment(k),
            32 => self.script(k),
            33 => self.transaction(k, &["INCR", k]),
            34 => self.transaction(k, &["EVAL", "return redis.call('INCR', ARGV[1])", "0", k]),
            35..38 => self.set(),
            _ => self.mset(),
        }
    }

    /// Reads keys with one command (or some that are sent together) and judges what comes; `None` per value: an error.
    fn read(&mut self, keys: &[&str], commands: &[&[&str]]) -> Option<Option<Vec<i64>>> {
        let sent = Instant::now();
        let floors: Vec<i64> = keys.iter().map(|k| self.truth.acked(k)).collect();
        let replies = self.talk.ask(commands)?;
        if let Some(error) = replies.iter().find(|r| r.is_error()) {
            self.expect_loss(error);
            return Some(None);
        }
        let flat: Vec<Reply> = replies
            .iter()
            .flat_map(|r| if let Reply::Array(all) = r { all.clone() } else { vec![r.clone()] })
            .collect();
        let versions: Vec<i64> = flat.iter().map(version).collect();
        for ((key, got), floor) in keys.iter().zip(&versions).zip(floors) {
            self.judge(key, *got, floor, sent, commands);
        }
        Some(Some(versions))
    }

    fn judge(&mut self, key: &str, got: i64, floor: i64, sent: Instant, commands: &[&[&str]]) {
        self.truth.reads.fetch_add(1, SeqCst);
        let seen = self.seen.entry(key.to_owned()).or_default();
        let foreign = sent.checked_sub(B).map_or(0, |limit| self.truth.foreign_at(key, limit));
        if got < *seen || got < floor || got < foreign {
            self.truth.violated(format!(
                "session {} read {key} as {got} by {commands:?}: this session knew of {seen}, the sidecar had acknowledged \
                 {floor}, foreign writers had known of {foreign} for longer than B",
                self.number
            ));
        }
        *seen = (*seen).max(got);
    }

    /// Only what a lost connection explains.
    fn expect_loss(&self, error: &Reply) {
        if !error.text().starts_with("NEARSIDE upstream") {
            self.truth.violated(format!("session {} was answered {error:?}", self.number));
        }
    }

    fn written(&mut self, key: &str, version: i64) {
        self.truth.acknowledge(key, version);
        let seen = self.seen.entry(key.to_owned()).or_default();
        *seen = (*seen).max(version);
    }

    /// Some now and then on a connection of their own, whose reply no later hit may fall behind (R21); for the others only
    /// the lease ends the hits while the lane is stalled.
    fn poll(&mut self, key: &str) -> Option<()> {
        if self.number < SESSIONS + 2 && self.dice.below(20) == 0 { self.pinned_read(key) } else { self.get(key) }
    }

    fn get(&mut self, k: &str) -> Option<()> {
        self.read(&[k], &[&["GET", k]]).map(drop)
    }

    /// G5: what is only written together is read together.
    fn pair(&mut self) -> Option<()> {
        let [a, b] = self.dice.of(&PAIRS);
        if self.dice.below(2) == 0 {
            self.get(a)?;
        }
        self.together(a, b)
    }

    fn together(&mut self, a: &str, b: &str) -> Option<()> {
        if let Some(got) = self.read(&[a, b], &[&["MGET", a, b]])?
            && got[0] != got[1]
        {
            self.truth.violated(format!("session {} saw {a} and {b} torn: {got:?}", self.number));
        }
        Some(())
    }

    /// G5: x is written before y, so whoever has seen y sees x.
    fn ordered(&mut self) -> Option<()> {
        let [x, y] = ORDERED;
        let Some(later) = self.read(&[y], &[&["GET", y]])? else { return Some(()) };
        if let Some(earlier) = self.read(&[x], &[&["GET", x]])?
            && earlier[0] < later[0]
        {
            self.truth.violated(format!("session {} saw y {} and then x {}", self.number, later[0], earlier[0]));
        }
        Some(())
    }

    fn mixed(&mut self, k: &str) -> Option<()> {
        let [a, b] = self.dice.of(&PAIRS);
        if let Some(got) = self.read(&[a, k, b], &[&["MGET", a, k, b]])?
            && got[0] != got[2]
        {
            self.truth.violated(format!("session {} saw {a} and {b} torn around {k}: {got:?}", self.number));
        }
        Some(())
    }

    /// Keys that another session of this sidecar writes through the lane, with refreshes.
    fn others(&mut self) -> Option<()> {
        let other = self.dice.below(SESSIONS as u64);
        self.get(&format!("s{other}"))?;
        self.together(&format!("ma{other}"), &format!("mb{other}"))
    }

    /// R22: replies of one pipeline do not go back in time.
    fn pipeline(&mut self, k: &str) -> Option<()> {
        self.read(&[k, k, k], &[&["GETRANGE", k, "0", "-1"], &["GET", k], &["MGET", k]]).map(drop)
    }

    fn pinned_read(&mut self, k: &str) -> Option<()> {
        let floor = self.truth.acked(k);
        let sent = Instant::now();
        let replies = self.talk.ask(&[&["MULTI"], &["GET", k], &["EXEC"]])?;
        match &replies[2] {
            Reply::Array(got) => self.judge(k, version(&got[0]), floor, sent, &[&["EXEC"]]),
            error => self.expect_loss(error),
        }
        self.get(k)
    }

    fn increment(&mut self, k: &str) -> Option<()> {
        self.change(k, &[&["INCR", k]], |replies| Some(replies[0].clone()))
    }

    fn script(&mut self, k: &str) -> Option<()> {
        let script = ["EVAL", "return redis.call('INCR', ARGV[1])", "0", k];
        self.change(k, &[&script], |replies| Some(replies[0].clone()))
    }

    fn transaction(&mut self, k: &str, command: &[&str]) -> Option<()> {
        self.change(k, &[&["MULTI"], command, &["EXEC"]], |replies| match &replies[2] {
            Reply::Array(all) => all.first().cloned(),
            other => Some(other.clone()),
        })
    }

    /// A write whose reply is its version, and a read behind it.
    fn change(&mut self, k: &str, commands: &[&[&str]], result: impl Fn(&[Reply]) -> Option<Reply>) -> Option<()> {
        let replies = self.talk.ask(commands)?;
        match result(&replies) {
            Some(Reply::Int(version)) => self.written(k, version),
            Some(error) => self.expect_loss(&error),
            None => self.truth.violated(format!("no result in {replies:?}")),
        }
        self.get(k)
    }

    fn set(&mut self) -> Option<()> {
        let key = format!("s{}", self.number);
        self.next += 1;
        let (version, value) = (self.next, self.next.to_string());
        let reply = self.talk.ask(&[&["SET", &key, &value]])?.remove(0);
        if reply == Reply::ok() {
            self.written(&key, version)
        } else {
            self.expect_loss(&reply)
        }
        self.get(&key)
    }

    fn mset(&mut self) -> Option<()> {
        let (a, b) = (format!("ma{}", self.number), format!("mb{}", self.number));
        self.next += 1;
        let (version, value) = (self.next, self.next.to_string());
        let reply = self.talk.ask(&[&["MSET", &a, &value, &b, &value]])?.remove(0);
        if reply == Reply::ok() {
            self.written(&a, version);
            self.written(&b, version);
        } else {
            self.expect_loss(&reply);
        }
        self.together(&a, &b)
    }
}

/// Changes keys past the sidecar.
fn foreign(redis: &std::path::Path, number: u64, truth: &Truth) {
    let mut client = Client::unix(redis);
    let mut dice = Dice::new(number + 1);
    while !truth.is_over() {
        match dice.below(3) {
            // One writer only, or the order of x and y would not be theirs.
            0 if number == 0 => {
                for key in ORDERED {
                    truth.foreign_knows(key, client.cmd(&["INCR", key]).int());
                }
            }
            1 => {
                let [a, b] = dice.of(&PAIRS);
                client.pipeline(&[&["MULTI"], &["INCR", a], &["INCR", b]]);
                let both = client.cmd(&["EXEC"]).items();
                truth.foreign_knows(a, both[0].int());
                truth.foreign_knows(b, both[1].int());
            }
            _ => {
                let key = dice.of(&COUNTERS);
                truth.foreign_knows(key, client.cmd(&["INCR", key]).int());
            }
        }
        dice.pause(Duration::from_millis(20));
    }
}

/// A bad network. Mostly a lane alone is stalled: what was read elsewhere is then newer than what the lane has brought.
fn chaos(relay: &Relay, truth: &Truth, long: bool) {
    let mut dice = Dice::new(7);
    let mut rounds = 0;
    while !truth.is_over() {
        dice.pause(Duration::from_millis(150));
        rounds += 1;
        match dice.below(12) {
            0..6 => stall(relay, &mut dice, Dir::Down),
            6 => stall(relay, &mut dice, Dir::Up),
            7..9 => {
                let by = Duration::from_micros(dice.below(4000));
                relay.delay(Scope::All, dice.of(&[Dir::Up, Dir::Down]), by);
            }
            9 if rounds % 3 == 0 || long => relay.cut(Scope::Existing),
            10 => relay.connections().iter().take(1).for_each(|lane| relay.cut(Scope::One(*lane))),
            _ => relay.cut(Scope::Newest),
        }
    }
    for dir in [Dir::Up, Dir::Down] {
        relay.resume(Scope::All, dir);
        relay.delay(Scope::All, dir, Duration::ZERO);
    }
}

fn stall(relay: &Relay, dice: &mut Dice, dir: Dir) {
    // The lanes are made first, and at once after a loss: they are the oldest links.
    let lanes: Vec<Scope> = relay.connections().iter().take(2).map(|number| Scope::One(*number)).collect();
    let scope = if lanes.is_empty() || dice.below(4) == 0 { Scope::All } else { dice.of(&lanes) };
    relay.stall(scope, dir);
    let longest = if dice.below(3) == 0 { 4 * B } else { B / 2 };
    dice.pause(longest);
    relay.resume(scope, dir);
}

fn play(redis: &Redis, relay: &Relay, proxy: &Proxy, truth: &Arc<Truth>, lasts: Duration, long: bool) {
    thread::scope(|threads| {
        for number in 0..3 {
            threads.spawn(move || foreign(redis.socket(), number, truth));
        }
        for number in 0..SESSIONS + POLLERS.len() {
            threads.spawn(move || Session::run(proxy.socket(), number, truth));
        }
        threads.spawn(move || chaos(relay, truth, long));
        let end = Instant::now() + lasts;
        while Instant::now() < end && !truth.is_over() {
            thread::sleep(Duration::from_millis(20));
        }
        truth.over.store(true, SeqCst);
    });
}

/// At rest every read is what upstream has, at once: a script's reply waits until all lanes have passed what lay before it.
fn assert_settled(redis: &Redis, proxy: &Proxy) {
    for user in [false, true] {
        let mut talk = None;
        eventually(PATIENCE, "both users' lanes to be back", || {
            talk = Talk::open(proxy.socket(), user);
            let said = talk.as_mut().and_then(|t| t.ask(&[&["EVAL", "return 1", "0"]]));
            said.is_some_and(|replies| replies[0] == Reply::Int(1))
        });
        let mut talk = talk.expect("a connection");
        for key in all_keys() {
            for _ in 0..2 {
                let said = talk.ask(&[&["GET", &key]]).expect("a connection that stays");
                assert_eq!(said[0], redis.cmd(&["GET", &key]), "{key} at rest");
            }
        }
    }
    eventually(PATIENCE, "no write pending", || proxy.metric("nearside_pending_writes") == 0.0);
}

#[test]
fn c59_soak() {
    let long = std::env::var_os("NEARSIDE_TEST_LONG").is_some();
    let redis = Redis::start();
    redis.cmd(&["ACL", "SETUSER", "other", "on", ">secret", "~*", "&*", "+@all"]);
    let relay = Relay::to(&redis);
    let proxy = Proxy::upstream(&relay.url()).set("coherence.max_staleness", "150ms").start();
    let truth = Arc::new(Truth::new());
    play(&redis, &relay, &proxy, &truth, Duration::from_secs(if long { 60 } else { 8 }), long);
    let violations = truth.violations.lock().expect("no panic");
    assert!(violations.is_empty(), "{} violations:\n{}", violations.len(), violations.join("\n"));
    drop(violations);
    assert_settled(&redis, &proxy);
    let (reads, writes, hits) = (truth.reads.load(SeqCst), truth.writes.load(SeqCst), proxy.stat("hits"));
    let updates = proxy.metric("nearside_updates_total");
    println!("{reads} reads, {writes} writes acknowledged, {hits} hits, {updates} refreshes stored");
    // It must have tested something, on a machine that is busy with other tests, too.
    assert!(reads > 500 && writes > 50 && hits > 100.0 && updates > 5.0, "{reads} {writes} {hits} {updates}");
}

/// R15: "a hold ends after B at the latest", also where nothing else comes that would write the reply out.
#[test]
fn a_script_is_answered_after_b_though_its_pong_never_comes() {
    let upstream = Fake::builder().scripted("PING").start();
    let proxy = Proxy::upstream(&upstream.url()).set("coherence.max_staleness", "100ms").start();
    let mut client = proxy.client();
    client.send_cmd(&["EVAL", "return 1", "0"]);
    let mut lane = upstream.lane();
    lane.expect(&["EVAL", "return 1", "0"]).reply(":1\r\n");
    assert_eq!(client.reply(), Reply::Int(1));
}

/// Found by the soak, which was told of an EXEC without MULTI.
#[test]
fn a_transaction_that_gets_no_connection_executes_nothing() {
    let redis = Redis::start();
    let relay = Relay::to(&redis);
    let proxy = Proxy::upstream(&relay.url()).start();
    let mut client = proxy.client();
    assert_eq!(client.cmd(&["INCR", "before"]), Reply::Int(1));
    relay.refuse();
    let words: [&[&str]; 3] = [&["MULTI"], &["INCR", "k"], &["EXEC"]];
    client.send(&words.iter().flat_map(|w| encode(w)).collect::<Vec<u8>>());
    assert!(client.reply().text().starts_with("NEARSIDE upstream unavailable"));
    assert_eq!(client.expect_closed(), b"");
    assert_eq!(redis.cmd(&["GET", "k"]), Reply::Nil);
}
