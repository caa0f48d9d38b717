//! What is counted: scenarios that know every byte in and out, and the process that plays one of them.

use std::time::Instant;

use nearside::bench::{Requests, Scrape, Sidecar};

/// Keys that every scenario finds in the L1, as redis-benchmark names them.
const KEYS: usize = 1000;

/// Keys that one scenario asks for: enough for moka's housekeeping, which comes with every 64th read, to count in full.
const ASKED: usize = 6400;

/// Scrapes that are counted: each takes as long as thousands of hits.
const SCRAPES: usize = 20;

/// Keys of an MGET.
const MGET: usize = 10;

pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    pub(crate) what: &'static str,
    /// Requests that arrive together.
    pipeline: usize,
    env: &'static [(&'static str, &'static str)],
    /// So many rules; the last of them is that of all keys. 0: none are written.
    rules: usize,
    round: fn(&mut Draw, usize) -> Round,
}

impl Scenario {
    /// How many requests are counted.
    pub(crate) fn requests(&self) -> usize {
        match self.name {
            "scrape" => SCRAPES,
            name if name.starts_with("mget") => ASKED / MGET,
            _ => ASKED,
        }
    }
}

pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario { name: "hit_1", what: "GET from the L1", pipeline: 1, env: &[], rules: 0, round: hits },
    Scenario { name: "hit_64", what: "the same, 64 in one read", pipeline: 64, env: &[], rules: 0, round: hits },
    Scenario { name: "mget_10", what: "MGET of 10 keys, all in the L1", pipeline: 1, env: &[], rules: 0, round: mget },
    Scenario { name: "hit_1_off", what: "hit_1, nothing observed", pipeline: 1, env: OFF, rules: 0, round: hits },
    Scenario { name: "hit_64_off", what: "hit_64, nothing observed", pipeline: 64, env: OFF, rules: 0, round: hits },
    Scenario { name: "mget_off", what: "mget_10, nothing observed", pipeline: 1, env: OFF, rules: 0, round: mget },
    Scenario { name: "hit_stale_1", what: "hit_1 in an outage", pipeline: 1, env: OUTAGE, rules: 0, round: stale },
    Scenario { name: "hit_stale_64", what: "hit_64 in an outage", pipeline: 64, env: OUTAGE, rules: 0, round: stale },
    Scenario {
        name: "mget_stale",
        what: "mget_10 in an outage",
        pipeline: 1,
        env: OUTAGE,
        rules: 0,
        round: mget_stale,
    },
    Scenario {
        name: "hit_64_fail",
        what: "hit_64, outage.reads: fail",
        pipeline: 64,
        env: FAIL,
        rules: 0,
        round: hits,
    },
    Scenario { name: "relay_1", what: "EXISTS and its reply", pipeline: 1, env: &[], rules: 0, round: relay },
    Scenario { name: "relay_64", what: "the same, 64 in one read", pipeline: 64, env: &[], rules: 0, round: relay },
    Scenario {
        name: "get_off_64",
        what: "GET and its reply, mode: off",
        pipeline: 64,
        env: CACHE_OFF,
        rules: 0,
        round: gets,
    },
    Scenario {
        name: "get_seen_64",
        what: "the same, mode: observe",
        pipeline: 64,
        env: OBSERVE,
        rules: 0,
        round: gets,
    },
    Scenario {
        name: "write_64",
        what: "SET and its reply, on_write: invalidate",
        pipeline: 64,
        env: INVALIDATE,
        rules: 0,
        round: write,
    },
    Scenario {
        name: "miss_1",
        what: "GET, PTTL, their replies, stored",
        pipeline: 1,
        env: &[],
        rules: 0,
        round: misses,
    },
    Scenario { name: "miss_64", what: "the same, 64 in one read", pipeline: 64, env: &[], rules: 0, round: misses },
    Scenario { name: "rule_1", what: "hit_64 under one rule", pipeline: 64, env: &[], rules: 1, round: hits },
    Scenario { name: "rule_1000", what: "hit_64 under 1,000 rules", pipeline: 64, env: &[], rules: 1000, round: hits },
    Scenario {
        name: "scan_64",
        what: "a GET through the request scanner alone",
        pipeline: 64,
        env: &[],
        rules: 0,
        round: hits,
    },
    Scenario { name: "scrape", what: "the largest scrape of /metrics", pipeline: 1, env: &[], rules: 0, round: hits },
];

/// No key is followed, no command is slow.
const OFF: &[(&str, &str)] = &[("NEARSIDE_OBSERVE__HOT_KEYS", "0"), ("NEARSIDE_OBSERVE__SLOW_LOG", "0s")];

/// Upstream is gone, and what was read before is served.
const OUTAGE: &[(&str, &str)] = &[("NEARSIDE_OUTAGE__READS", "stale"), ("NEARSIDE_OUTAGE__MAX_STALE", "1h")];

/// Nothing is served in an outage: what is there for that must cost a hit nothing.
const FAIL: &[(&str, &str)] = &[("NEARSIDE_OUTAGE__READS", "fail")];

const CACHE_OFF: &[(&str, &str)] = &[("NEARSIDE_CACHE__MODE", "off")];

const OBSERVE: &[(&str, &str)] = &[("NEARSIDE_CACHE__MODE", "observe")];

const INVALIDATE: &[(&str, &str)] = &[("NEARSIDE_CACHE__ON_WRITE", "invalidate")];

/// What goes in, and what must come out.
#[derive(Default)]
struct Round {
    ask: Vec<u8>,
    sent: Vec<u8>,
    answer: Vec<u8>,
    replies: Vec<u8>,
    hits: u64,
    /// Keys that are answered although upstream is gone.
    stale: u64,
}

/// Keys in an order that is the same in every run.
struct Draw {
    state: u64,
    fresh: usize,
}

impl Draw {
    /// One of the keys in the L1.
    fn known(&mut self) -> String {
        // Knuth's MMIX generator: the low bits are poor, the high ones good enough.
        self.state = self.state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        key((self.state >> 33) as usize % KEYS)
    }

    /// One that nobody has asked for yet.
    fn fresh(&mut self) -> String {
        self.fresh += 1;
        key(self.fresh - 1)
    }
}

/// None has anything to do with the keys but the last.
fn rules(n: usize) -> String {
    let others = (1..n).map(|i| format!("{{pattern: 'service{i}:{{id}}:*'}}"));
    let all: Vec<String> = others.chain((n > 0).then(|| "{pattern: 'key:*'}".to_owned())).collect();
    format!("[{}]", all.join(", "))
}

fn key(n: usize) -> String {
    format!("key:{n:012}")
}

fn value(key: &str) -> String {
    format!("{key:x<100}")
}

fn bulk(text: &str) -> String {
    format!("${}\r\n{text}\r\n", text.len())
}

fn command(words: &[&str]) -> Vec<u8> {
    let words: Vec<String> = words.iter().map(|w| bulk(w)).collect();
    format!("*{}\r\n{}", words.len(), words.concat()).into_bytes()
}

fn hits(draw: &mut Draw, n: usize) -> Round {
    let mut round = Round { hits: n as u64, ..Round::default() };
    for _ in 0..n {
        let key = draw.known();
        round.ask.extend(command(&["GET", &key]));
        round.replies.extend(bulk(&value(&key)).into_bytes());
    }
    round
}

fn mget(draw: &mut Draw, _: usize) -> Round {
    let keys: Vec<String> = (0..MGET).map(|_| draw.known()).collect();
    let words: Vec<&str> = std::iter::once("MGET").chain(keys.iter().map(String::as_str)).collect();
    let values: String = keys.iter().map(|k| bulk(&value(k))).collect();
    Round {
        ask: command(&words),
        replies: format!("*{MGET}\r\n{values}").into_bytes(),
        hits: MGET as u64,
        ..Round::default()
    }
}

fn in_outage(round: Round) -> Round {
    Round { hits: 0, stale: round.hits, ..round }
}

fn stale(draw: &mut Draw, n: usize) -> Round {
    in_outage(hits(draw, n))
}

fn mget_stale(draw: &mut Draw, n: usize) -> Round {
    in_outage(mget(draw, n))
}

/// Passed on, because nothing is kept.
fn gets(draw: &mut Draw, n: usize) -> Round {
    let round = hits(draw, n);
    Round { sent: round.ask.clone(), answer: round.replies.clone(), hits: 0, ..round }
}

/// What is passed on as it is, both ways.
fn passed(n: usize, mut request: impl FnMut() -> Vec<u8>, reply: &[u8]) -> Round {
    let ask: Vec<u8> = (0..n).flat_map(|_| request()).collect();
    let replies = reply.repeat(n);
    Round { sent: ask.clone(), ask, answer: replies.clone(), replies, ..Round::default() }
}

fn relay(draw: &mut Draw, n: usize) -> Round {
    passed(n, || command(&["EXISTS", &draw.known()]), b":1\r\n")
}

fn write(draw: &mut Draw, n: usize) -> Round {
    let set = || {
        let key = draw.known();
        command(&["SET", &key, &value(&key)])
    };
    passed(n, set, b"+OK\r\n")
}

fn misses(draw: &mut Draw, n: usize) -> Round {
    let mut round = Round::default();
    for _ in 0..n {
        let key = draw.fresh();
        round.ask.extend(command(&["GET", &key]));
        round.sent.extend(command(&["GET", &key]));
        round.sent.extend(command(&["PTTL", &key]));
        let value = bulk(&value(&key)).into_bytes();
        round.answer.extend(&value);
        round.answer.extend(b":-1\r\n");
        round.replies.extend(value);
    }
    round
}

/// callgrind knows it by this name.
pub(crate) const MEASURED: &str = "hot_path::work::measured*";

#[inline(never)]
fn measured<T>(work: impl FnOnce() -> T) -> T {
    std::hint::black_box(work())
}

/// Plays a scenario; callgrind counts what `measured` does.
pub(crate) fn measure(scenario: &Scenario) {
    let rounds = scenario.requests() / scenario.pipeline;
    let mut draw = Draw { state: 1, fresh: 0 };
    if scenario.name == "scan_64" {
        return scan(rounds, &mut draw);
    }
    if scenario.name == "scrape" {
        return scrape(rounds);
    }
    // What is answered stays vouched for while valgrind takes its time.
    let env = [
        ("NEARSIDE_UPSTREAM__URL", "redis://127.0.0.1:1"),
        ("NEARSIDE_COHERENCE__MAX_STALENESS", "1h"),
        ("NEARSIDE_COHERENCE__CANARY", "off"),
    ];
    let rules = rules(scenario.rules);
    let mut sidecar = Sidecar::new(&[&env, scenario.env, &[("NEARSIDE_RULES", rules.as_str())]].concat());
    if !scenario.name.starts_with("get_") {
        (0..KEYS / 10).for_each(|_| play(&mut sidecar, &misses(&mut draw, 10), false));
    }
    if scenario.name.contains("stale") {
        sidecar.lose_upstream();
    }
    for counted in [false, true] {
        for _ in 0..rounds {
            let round = (scenario.round)(&mut draw, scenario.pipeline);
            play(&mut sidecar, &round, counted);
        }
    }
    assert_eq!(sidecar.in_flight(), 0);
    // A write drops what it names; all else that was ever read is there.
    let stored = if scenario.name.starts_with("write") { 0 } else { draw.fresh as u64 };
    assert!(sidecar.entries() >= stored, "{} of {stored} entries", sidecar.entries());
}

fn play(sidecar: &mut Sidecar, round: &Round, counted: bool) {
    let (hits, stale) = (sidecar.hits(), sidecar.stale());
    if counted {
        measured(|| turn(sidecar, round));
    } else {
        turn(sidecar, round);
    }
    let same = |what: &str, got: &[u8], want: &[u8]| {
        let text = String::from_utf8_lossy;
        assert!(got == want, "{what}: {} instead of {}", text(got), text(want));
    };
    same("upstream was sent", &sidecar.sent(), &round.sent);
    same("the client was sent", &sidecar.replies(), &round.replies);
    assert_eq!((sidecar.hits() - hits, sidecar.stale() - stale), (round.hits, round.stale), "hits, stale hits");
}

fn turn(sidecar: &mut Sidecar, round: &Round) {
    sidecar.ask(&round.ask);
    if !round.answer.is_empty() {
        sidecar.answer(&round.answer);
    }
}

/// Says how long one takes too: on its own that is a time, under valgrind it is none.
fn scrape(rounds: usize) {
    let scrape = Scrape::default();
    let text = scrape.text();
    let series = text.lines().filter(|line| !line.starts_with('#')).count();
    assert!(series > 5500, "{series}");
    let began = Instant::now();
    for _ in 0..rounds {
        // Its length is not always the same: it tells the process's time.
        assert!(measured(|| scrape.text()).len() > text.len() / 2);
    }
    let each = began.elapsed() / u32::try_from(rounds).expect("few");
    println!("{series} series, {} bytes, {each:?} each", text.len());
}

fn scan(rounds: usize, draw: &mut Draw) {
    let mut requests = Requests::default();
    for _ in 0..rounds {
        let bytes = hits(draw, 64).ask;
        assert_eq!(measured(|| requests.count(&bytes)), (64, 128));
    }
}
