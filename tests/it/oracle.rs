//! The oracle: what a redis-server answers is right. The scripts beside this file go to one server directly and to another,
//! fresh one through Nearside, in both protocols, one by one and pipelined, with the cache as it is by default, for every read
//! that can be kept, and off; the bytes must be the same. Where they cannot be, `DIFFERENCES` says how they are compared and why. Every command of the server is in a script
//! or in `NOT_TESTABLE`. What is cached is sent three times in a row, so that hits are compared as well as misses.

mod modes;
mod script;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use self::script::{Compare, Exchange, Line, Only, Replies, Step};
use crate::reads;
use crate::support::client::{decode, shown};
use crate::support::{Client, PATIENCE, Proxy, Redis, Reply, encode, eventually, needs, version};

/// Where sidecars tell each other what to drop.
const CHANNEL: &str = "nearside:invalidate";

/// What two servers do not answer alike, or a sidecar rightly answers in its own way: the first words of a command, how its
/// replies are compared, and the reason. The longest match counts.
const DIFFERENCES: &[(&str, Compare, &str)] = &[
    // Clients are those of the server that one speaks to.
    ("CLIENT ID", Compare::Type, "each server counts its own clients"),
    ("CLIENT INFO", Compare::Type, "ids, addresses, ages, buffers"),
    ("CLIENT LIST", Compare::Type, "the clients of the sidecar, with its ids and addresses"),
    ("CLIENT LIST TYPE bogus", Compare::Exact, "an error"),
    ("CLIENT LIST ID x", Compare::Exact, "an error"),
    ("CLIENT LIST BOGUS", Compare::Exact, "an error"),
    ("HELLO", Compare::Digits, "the client's id"),
    // The clock and chance.
    ("TIME", Compare::Shape, "the clock"),
    ("LASTSAVE", Compare::Digits, "the clock"),
    ("TTL", Compare::Digits, "the clock"),
    ("PTTL", Compare::Digits, "the clock"),
    ("OBJECT IDLETIME", Compare::Digits, "the clock"),
    ("XADD s *", Compare::Digits, "the clock"),
    ("XPENDING s g - +", Compare::Digits, "idle times"),
    ("XPENDING s g IDLE", Compare::Digits, "idle times"),
    ("XINFO CONSUMERS", Compare::Digits, "idle times"),
    ("XINFO STREAM s FULL", Compare::Digits, "delivery times"),
    ("RANDOMKEY", Compare::Type, "chance"),
    ("HRANDFIELD h", Compare::Shape, "chance"),
    ("SPOP many", Compare::Shape, "chance"),
    ("SRANDMEMBER many", Compare::Shape, "chance"),
    ("LOLWUT", Compare::Type, "chance"),
    ("VLINKS v", Compare::Type, "chance"),
    ("ZRANDMEMBER z", Compare::Shape, "chance"),
    ("ACL GENPASS", Compare::Type, "chance"),
    // Hash tables have a random seed, and with it their order.
    ("SMEMBERS", Compare::Unordered, "hash order"),
    ("SUNION", Compare::Unordered, "hash order"),
    ("SINTER", Compare::Unordered, "hash order"),
    ("SDIFF", Compare::Unordered, "hash order"),
    ("SSCAN", Compare::Unordered, "hash order"),
    ("HGETALL big", Compare::Unordered, "hash order"),
    ("HKEYS big", Compare::Unordered, "hash order"),
    ("HVALS big", Compare::Unordered, "hash order"),
    ("KEYS", Compare::Unordered, "hash order"),
    ("SCAN", Compare::Unordered, "hash order"),
    ("PUBSUB CHANNELS", Compare::Unordered, "hash order"),
    ("FUNCTION LIST", Compare::Unordered, "hash order"),
    ("COMMAND", Compare::Unordered, "hash order"),
    ("ACL CAT", Compare::Unordered, "hash order"),
    ("CONFIG GET", Compare::Unordered, "hash order"),
    ("LATENCY HISTOGRAM", Compare::Type, "durations, and which commands have run"),
    // What a server says about itself.
    ("INFO", Compare::Type, "figures of the server; the sidecar appends its own section"),
    ("MEMORY STATS", Compare::Type, "figures of the server: more or fewer clients and databases"),
    ("MEMORY DOCTOR", Compare::Type, "figures of the server"),
    ("MEMORY MALLOC-STATS", Compare::Type, "figures of the server"),
    ("DEBUG OBJECT k", Compare::Shape, "an address in memory"),
    ("DEBUG HTSTATS", Compare::Type, "hash tables"),
    ("FUNCTION DUMP", Compare::Type, "hash order of the libraries"),
    // Refused by design (DESIGN 3).
    ("SHUTDOWN", Compare::Errors, "the sidecar does not let it pass"),
    ("REPLCONF", Compare::Errors, "the sidecar does not proxy replication"),
];

/// Commands without a step, and why.
const NOT_TESTABLE: &[(&str, &str)] = &[
    ("sync", "turns the connection into a replication stream; the sidecar refuses it"),
    ("psync", "turns the connection into a replication stream; the sidecar refuses it"),
];

struct Section {
    name: &'static str,
    script: &'static str,
    /// The default user's password at both servers.
    password: Option<&'static str>,
}

macro_rules! sections {
    ($($name:ident)*) => {
        const SECTIONS: &[Section] = &[
            $(Section { name: stringify!($name), script: include_str!(concat!("oracle/", stringify!($name), ".txt")), password: None },)*
            Section { name: "password", script: include_str!("oracle/password.txt"), password: Some("pass") },
        ];
        $(#[test] fn $name() { hold(stringify!($name)); })*
        #[test] fn password() { hold("password"); }
    };
}

sections! {
    strings bitmaps keys databases hashes lists sets sorted_sets geo hyperloglog streams blocking pubsub scripting
    transactions handshake clients tracking server cluster debug errors inline large newer
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pace {
    OneByOne,
    /// Neighbours on the same connection go in one write.
    Pipelined,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cache {
    Off,
    /// GET and MGET.
    Default,
    /// Every read that `cache.commands` takes.
    All,
}

/// Sections whose scripts have so many reads of one type that hits must show.
const RICH: &[&str] = &["strings", "bitmaps", "hashes", "lists", "sets", "sorted_sets"];

#[derive(Clone, Copy, Debug)]
struct Run {
    cache: Cache,
    resp3: bool,
    pace: Pace,
    /// The sidecar has `upstream.key_prefix: app:`.
    prefixed: bool,
}

/// Runs a section in all ways and fails with every line that differs.
#[track_caller]
fn hold(name: &str) {
    let section = SECTIONS.iter().find(|s| s.name == name).expect("a section");
    let (direct, upstream) = (section.server(), section.server());
    let mut complaints = Vec::new();
    // A sidecar is subscribed to the sidecars' channel, which PUBSUB CHANNELS shows. So is the other side then.
    let mut subscriber = direct.client();
    if name == "pubsub" {
        subscriber.cmd(&["SUBSCRIBE", CHANNEL]);
    }
    for cache in [Cache::Default, Cache::All, Cache::Off] {
        let builder = Proxy::to(&upstream).set("cache.mode", if cache == Cache::Off { "off" } else { "serve" });
        let builder = if cache == Cache::All { builder.set("cache.commands", reads::ALL) } else { builder };
        // DBSIZE, KEYS and the ACL log show a canary, as they show any other client's key.
        let proxy = builder.set("coherence.canary", "off").start();
        if name == "pubsub" {
            eventually(PATIENCE, "one subscription", || {
                upstream.cmd(&["PUBSUB", "NUMSUB", CHANNEL]).items()[1] == Reply::Int(1)
            });
        }
        for resp3 in [false, true] {
            // Long values are never sent together with others.
            let paces = if name == "large" { &[Pace::OneByOne][..] } else { &[Pace::OneByOne, Pace::Pipelined] };
            for &pace in paces {
                let run = Run { cache, resp3, pace, prefixed: false };
                let sides =
                    [Side::new(section, &direct, direct.socket()), Side::new(section, &upstream, proxy.socket())];
                complaints.extend(Oracle { section, run, sides, complaints: Vec::new() }.run());
            }
        }
        let hits = match cache {
            Cache::Default if name == "strings" => 100.0,
            // Where fields can expire, hashes are not kept.
            Cache::All if name == "hashes" && version().has_field_expiry() => continue,
            Cache::All if RICH.contains(&name) => 40.0,
            _ => continue,
        };
        if std::env::var_os("NEARSIDE_TEST_DIRECT").is_none() {
            assert!(proxy.stat("hits") > hits, "the comparison of hits has compared few: {:?}", proxy.stats());
        }
    }
    assert!(complaints.is_empty(), "{} differ:\n{}", complaints.len(), complaints.join("\n"));
}

impl Section {
    fn server(&self) -> Redis {
        let auth = self.password.map(|p| ["--requirepass", p]);
        Redis::builder().args(auth.as_ref().map_or(&[], |a| a.as_slice())).start()
    }

    fn lines(&self, run: Run) -> Vec<Line> {
        let applies = |line: &Line| match line.only {
            Only::Always => true,
            Only::Resp2 => !run.resp3,
            Only::Resp3 => run.resp3,
            Only::Plain => !run.prefixed,
            Only::Server(condition) => version().is(condition),
            Only::Once => run.cache == Cache::Default && !run.resp3 && run.pace == Pace::OneByOne,
        };
        script::parse(self.script).into_iter().filter(applies).collect()
    }
}

/// One of the two servers, as its clients see it.
struct Side<'a> {
    socket: &'a std::path::Path,
    /// Past the proxy, for what both sides must wait for.
    control: Client,
    connections: BTreeMap<String, Client>,
    kept: HashMap<String, Vec<u8>>,
    /// What the sidecar puts in front of every key.
    prefix: &'static str,
}

impl<'a> Side<'a> {
    fn new(section: &Section, redis: &'a Redis, socket: &'a std::path::Path) -> Side<'a> {
        let mut control = redis.client();
        if let Some(password) = section.password {
            assert_eq!(control.cmd(&["AUTH", password]), Reply::ok());
        }
        for clean in [&["FLUSHALL"][..], &["SCRIPT", "FLUSH"], &["CONFIG", "RESETSTAT"]] {
            assert_eq!(control.cmd(clean), Reply::ok());
        }
        if version().at_least(7, 0) {
            assert_eq!(control.cmd(&["FUNCTION", "FLUSH"]), Reply::ok());
        }
        Side { socket, control, connections: BTreeMap::new(), kept: HashMap::new(), prefix: "" }
    }

    /// A server that has nothing but strings, and so knows no other way of being cleaned.
    fn plain(socket: &'a std::path::Path) -> Side<'a> {
        let mut control = Client::unix(socket);
        assert_eq!(control.cmd(&["FLUSHALL"]), Reply::ok());
        Side { socket, control, connections: BTreeMap::new(), kept: HashMap::new(), prefix: "" }
    }

    fn connection(&mut self, name: &str, resp3: bool) -> &mut Client {
        self.connections.entry(name.into()).or_insert_with(|| {
            let client = Client::unix(self.socket);
            if resp3 && !name.starts_with('n') { client.hello3() } else { client }
        })
    }

    /// Renames what has the prefix, so that both servers should hold the same data.
    fn take_prefix_off(&mut self) {
        for db in (0..16).filter(|_| !self.prefix.is_empty()) {
            self.control.cmd(&["SELECT", &db.to_string()]);
            let keys = self.control.cmd(&["KEYS", "*"]);
            for key in keys.items() {
                let Reply::Bulk(name) = key else { panic!("a key was expected, not {key:?}") };
                let Some(own) = name.strip_prefix(self.prefix.as_bytes()) else { continue };
                assert_eq!(self.control.cmd(&[b"RENAME", &name[..], own]), Reply::ok());
            }
        }
    }

    #[track_caller]
    fn await_info(&mut self, section: &str, text: &str) {
        let control = &mut self.control;
        let says = |control: &mut Client| control.cmd(&["INFO", section]).text().lines().any(|line| line == text);
        eventually(PATIENCE, text, || says(control));
    }
}

/// Says where a script stands when something panics there.
struct At<'a>(&'a str);

impl Drop for At<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- at {}", self.0);
        }
    }
}

struct Oracle<'a> {
    section: &'a Section,
    run: Run,
    /// Redis itself, and redis behind Nearside.
    sides: [Side<'a>; 2],
    complaints: Vec<String>,
}

impl Oracle<'_> {
    fn run(mut self) -> Vec<String> {
        let lines = self.section.lines(self.run);
        self.say(&lines);
        self.leftovers();
        self.data();
        self.complaints
    }

    /// Sends and compares all lines.
    fn say(&mut self, lines: &[Line]) {
        let mut rest = lines;
        while let Some(first) = rest.first() {
            let taken = match &first.step {
                Step::Exchange(exchange) => {
                    let batch = self.batch(rest, exchange);
                    let (rounds, each) = match times(exchange, self.run.cache) {
                        // Each after the answer to the one before, or none would be a hit.
                        n if self.run.pace == Pace::OneByOne => (n, false),
                        _ => (1, true),
                    };
                    (0..rounds).for_each(|_| self.exchange(&rest[..batch], each));
                    batch
                }
                Step::AwaitInfo { section, text } => {
                    self.sides.iter_mut().for_each(|side| side.await_info(section, text));
                    1
                }
                Step::AwaitGone { key } => {
                    let name = |side: &Side<'_>| format!("{}{key}", side.prefix);
                    let gone = |side: &mut Side<'_>| {
                        let name = name(side);
                        side.control.cmd(&["EXISTS", &name]) == Reply::Int(0)
                    };
                    self.sides.iter_mut().for_each(|side| eventually(PATIENCE, "it has expired", || gone(side)));
                    1
                }
                Step::Drop { connection } => {
                    self.sides.iter_mut().for_each(|side| drop(side.connections.remove(connection)));
                    1
                }
            };
            rest = &rest[taken..];
        }
    }

    /// How many lines go in one write.
    fn batch(&self, lines: &[Line], first: &Exchange) -> usize {
        if self.run.pace == Pace::OneByOne {
            return 1;
        }
        let joins = |line: &&Line| match &line.step {
            Step::Exchange(e) => {
                let loses = version().loses_refusals() && e.asks_for_entry();
                e.may_be_batched() && e.connection == first.connection && !loses
            }
            _ => false,
        };
        lines.iter().take_while(joins).count().max(1)
    }

    /// Sends the lines to both sides and compares what comes.
    fn exchange(&mut self, lines: &[Line], repeated: bool) {
        let cache = self.run.cache;
        let times = |e: &Exchange| if repeated { times(e, cache) } else { 1 };
        let exchanges: Vec<(&Line, &Exchange)> = lines
            .iter()
            .filter_map(|line| match &line.step {
                Step::Exchange(e) => Some((line, e)),
                _ => None,
            })
            .collect();
        let resp3 = self.run.resp3;
        for side in &mut self.sides {
            // Not flattened byte by byte: some are megabytes, and this is a debug build.
            let each = exchanges.iter().map(|(_, e)| script::bytes(&e.send, &side.kept).repeat(times(e)));
            let bytes = each.collect::<Vec<_>>().concat();
            // A server that has closed the connection already shows by what it sent before.
            let _ = side.connection(&exchanges[0].1.connection, resp3).try_send(&bytes);
        }
        for (line, exchange) in exchanges {
            let frames = match exchange.replies {
                Replies::Frames(n) => n * times(exchange),
                Replies::UntilClosed => 1,
            };
            (0..frames).for_each(|_| self.compare(line, exchange));
        }
    }

    fn compare(&mut self, line: &Line, exchange: &Exchange) {
        let place = format!("{}:{} {}", self.section.name, line.number, cut(line.text));
        let resp3 = self.run.resp3;
        let [expected, got] = ["redis", "nearside"].map(|who| {
            let place = format!("{place} {:?}, {who}", self.run);
            let _at = At(&place);
            let client = self.sides[usize::from(who == "nearside")].connection(&exchange.connection, resp3);
            match exchange.replies {
                Replies::Frames(_) => client.read_reply_raw(),
                Replies::UntilClosed => client.expect_closed(),
            }
        });
        let how = modes::with_prefix(self.run, &exchange.words(), &expected)
            .unwrap_or_else(|| exchange.compare.unwrap_or_else(|| how(&exchange.words())));
        if !same(how, &expected, &got) {
            let (expected, got) = differing(&expected, &got);
            self.complain(&format!("{place}\n    redis:    {expected}\n    nearside: {got}"));
        }
        if let Some(name) = &exchange.keep {
            for (side, raw) in self.sides.iter_mut().zip([expected, got]) {
                side.kept.insert(name.clone(), payload(&raw));
            }
        }
    }

    fn complain(&mut self, text: &str) {
        let Run { cache, resp3, pace, .. } = self.run;
        let how = format!("[RESP{} cache {cache:?} {pace:?}]", if resp3 { 3 } else { 2 });
        self.complaints.push(format!("{how} {text}"));
    }

    /// Nothing more may have come than was compared, and a client that closes its side is closed.
    fn leftovers(&mut self) {
        let names: Vec<String> = self.sides[0].connections.keys().cloned().collect();
        for name in names {
            let place = format!("{}: the end of connection {name} {:?}", self.section.name, self.run);
            let _at = At(&place);
            let [expected, got] = [0, 1].map(|i| {
                let mut client = self.sides[i].connections.remove(&name).expect("both sides have it");
                client.finish_writing();
                client.expect_closed()
            });
            if expected != got || !expected.is_empty() {
                // Bytes left at redis itself mean that the script reads too little, and has compared shifted replies.
                self.complain(&format!("{place}\n    redis:    {}\n    nearside: {}", shown(&expected), shown(&got)));
            }
        }
    }

    /// Both servers hold the same data.
    fn data(&mut self) {
        self.sides[1].take_prefix_off();
        let [direct, upstream] = self.sides.each_mut().map(|side| side.control.cmd(&["DEBUG", "DIGEST"]));
        if direct != upstream {
            self.complain(&format!("{}: the data differ at the end", self.section.name));
        }
    }
}

fn cut(text: &str) -> &str {
    text.char_indices().nth(120).map_or(text, |(end, _)| &text[..end])
}

/// A cacheable read is a miss, perhaps a joined flight, and then a hit.
fn times(exchange: &Exchange, cache: Cache) -> usize {
    let words = exchange.words();
    let cached: &[&str] = if cache == Cache::All { reads::ALL } else { &["GET", "MGET"] };
    let cacheable = words.first().is_some_and(|w| cached.iter().any(|name| name.eq_ignore_ascii_case(w)));
    if cacheable && exchange.replies == Replies::Frames(1) { 3 } else { 1 }
}

/// The comparison that `DIFFERENCES` has for a command.
fn how(words: &[String]) -> Compare {
    listed(DIFFERENCES, words).unwrap_or(Compare::Exact)
}

fn listed(differences: &[(&str, Compare, &str)], words: &[String]) -> Option<Compare> {
    let matches = |prefix: &str| {
        let mut prefix = prefix.split(' ');
        let mut words = words.iter();
        prefix.all(|p| words.next().is_some_and(|w| w.eq_ignore_ascii_case(p)))
    };
    let found = differences.iter().filter(|(prefix, ..)| matches(prefix));
    found.max_by_key(|(prefix, ..)| prefix.len()).map(|(_, how, _)| *how)
}

fn same(how: Compare, expected: &[u8], got: &[u8]) -> bool {
    let by = |view: fn(&Reply) -> String| view(&whole(expected)) == view(&whole(got));
    match how {
        _ if expected == got => true,
        Compare::Refused => modes::is_refusal(got),
        Compare::Exact => false,
        Compare::Digits => without_digits(expected) == without_digits(got),
        _ if expected.first() != got.first() => false,
        Compare::Errors => expected.first() == Some(&b'-'),
        // An error is never a matter of chance.
        _ if expected.first() == Some(&b'-') => false,
        Compare::Type => true,
        Compare::Unordered => by(sorted),
        Compare::Shape => by(shape),
    }
}

fn whole(raw: &[u8]) -> Reply {
    decode(raw, &mut Vec::new()).expect("a whole frame").0
}

fn without_digits(raw: &[u8]) -> Vec<u8> {
    let mut masked: Vec<u8> = raw.iter().map(|b| if b.is_ascii_digit() { b'0' } else { *b }).collect();
    masked.dedup_by(|a, b| *a == b'0' && *b == b'0');
    masked
}

/// Everything in the reply, with the elements of each level in an order of their own.
fn sorted(reply: &Reply) -> String {
    let all = |open: char, items: &[Reply]| {
        let mut items: Vec<String> = items.iter().map(sorted).collect();
        items.sort();
        format!("{open}{}[{}]", items.len(), items.join(" "))
    };
    match reply {
        Reply::Array(items) => all('*', items),
        Reply::Set(items) => all('~', items),
        Reply::Push(items) => all('>', items),
        Reply::Map(pairs) => {
            let pairs: Vec<Reply> = pairs.iter().map(|(k, v)| Reply::Array(vec![k.clone(), v.clone()])).collect();
            all('%', &pairs)
        }
        scalar => format!("{scalar:?}"),
    }
}

/// Types, and how many elements the aggregates have.
fn shape(reply: &Reply) -> String {
    let all = |open: char, items: &[Reply]| {
        let items: Vec<String> = items.iter().map(shape).collect();
        format!("{open}{}[{}]", items.len(), items.join(" "))
    };
    match reply {
        Reply::Array(items) => all('*', items),
        Reply::Set(items) => all('~', items),
        Reply::Push(items) => all('>', items),
        Reply::Map(_) => all('%', &reply.items()),
        Reply::Nil => "nil".into(),
        scalar => format!("{scalar:?}").chars().next().map_or_else(String::new, String::from),
    }
}

/// What a script keeps of a reply.
fn payload(raw: &[u8]) -> Vec<u8> {
    match whole(raw) {
        Reply::Bulk(bytes) | Reply::Status(bytes) | Reply::Verbatim(bytes) => bytes,
        other => other.text().into_bytes(),
    }
}

/// Both sides from shortly before where they part.
fn differing(expected: &[u8], got: &[u8]) -> (String, String) {
    const BEFORE: usize = 60;
    let common = expected.iter().zip(got).take_while(|(a, b)| a == b).count();
    let from = common.saturating_sub(BEFORE);
    let view = |bytes: &[u8]| match from {
        0 => shown(bytes),
        _ => format!("...{} (from byte {from} of {})", shown(&bytes[from..]), bytes.len()),
    };
    (view(expected), view(got))
}

// ---- pipelines that arrive in pieces ----

/// A pipeline with something of everything, which leaves the same data whenever it has run: bytes, and how many frames
/// answer them.
fn pieces() -> Vec<(Vec<u8>, usize)> {
    let inline = |text: &str, frames| (text.as_bytes().to_vec(), frames);
    let words = |line: &str| (encode(&line.split(' ').collect::<Vec<_>>()), 1);
    let mut all = vec![words("DEL c:a c:b c:l")];
    all.push((encode(&[b"SET".as_slice(), b"c:a", b"v\r\n$3\r\nabc\r\n\0"]), 1));
    all.extend(["GET c:a", "GET c:a", "MGET c:a c:none c:a"].map(words));
    all.extend([inline("GET c:a\r\n", 1), inline("\r\n", 0), inline("set c:b \"\\x00 \\r\\n\"\n", 1)]);
    all.extend(["GET c:b", "GET", "NOSUCH x", "CLIENT SETNAME cut", "CLIENT GETNAME"].map(words));
    all.extend(["SELECT 1", "SET c:a one", "GET c:a", "SELECT 0", "GET c:a"].map(words));
    all.extend(["RPUSH c:l 1 2", "BLPOP c:l 0", "GET c:a"].map(words));
    all.extend(["MULTI", "SET c:a tx", "GET c:a", "HGETALL c:none", "EXEC", "GET c:a"].map(words));
    all.extend(["WATCH c:a", "GET c:a", "UNWATCH", "EVAL return{1,{2}} 0"].map(words));
    all.extend([inline("*0\r\n", 0), inline("*-1\r\n", 0)]);
    all.extend(["LRANGE c:l 0 -1", "GET c:none", "DEL c:a c:b c:l"].map(words));
    all
}

/// Sends the pipeline in two writes, for each byte at which it can be cut. The first write starts with a PING of its own
/// and the second waits for all that the first one brings: so the proxy has read the one without the other, and no luck
/// is needed.
#[track_caller]
fn cut_everywhere(resp3: bool, mode: &str) {
    let (direct, upstream) = (Redis::start(), Redis::start());
    let proxy = Proxy::to(&upstream).set("cache.mode", mode).start();
    let connect = |socket| if resp3 { Client::unix(socket).hello3() } else { Client::unix(socket) };
    let read = |client: &mut Client, frames: usize| (0..frames).map(|_| client.read_reply_raw()).collect::<Vec<_>>();
    let pieces = pieces();
    let whole: Vec<u8> = pieces.iter().flat_map(|(bytes, _)| bytes.clone()).collect();
    let frames: usize = pieces.iter().map(|(_, frames)| frames).sum();
    let mut redis = connect(direct.socket());
    redis.send(&whole);
    let expected = read(&mut redis, frames);
    let mut client = connect(proxy.socket());
    for cut in 0..=whole.len() {
        let place = format!("cut before byte {cut}: {}", shown(&whole[cut.saturating_sub(30)..cut]));
        let _at = At(&place);
        client.send(&[b"PING\r\n", &whole[..cut]].concat());
        assert_eq!(client.read_reply_raw(), b"+PONG\r\n");
        let mut got = read(&mut client, answered(&pieces, cut));
        client.send(&whole[cut..]);
        got.extend(read(&mut client, frames - got.len()));
        let differs = expected.iter().zip(&got).position(|(a, b)| a != b);
        assert!(differs.is_none(), "{place}: reply {differs:?}: {:?}", differs.map(|i| shown(&got[i])));
    }
}

/// How many frames the pieces bring that end before `cut`.
fn answered(pieces: &[(Vec<u8>, usize)], cut: usize) -> usize {
    let ends = pieces.iter().scan(0, |end, (bytes, frames)| {
        *end += bytes.len();
        Some((*end, *frames))
    });
    ends.take_while(|(end, _)| *end <= cut).map(|(_, frames)| frames).sum()
}

#[test]
fn a_pipeline_cut_anywhere_over_resp2() {
    cut_everywhere(false, "serve");
}

#[test]
fn a_pipeline_cut_anywhere_over_resp3() {
    cut_everywhere(true, "serve");
}

#[test]
fn a_pipeline_cut_anywhere_with_the_cache_off() {
    cut_everywhere(false, "off");
}

// ---- the scripts' own completeness ----

/// The canonical names (`client|kill`) of all commands in a server's COMMAND.
fn server_commands(redis: &Redis) -> BTreeSet<String> {
    fn collect(commands: &Reply, into: &mut BTreeSet<String>) {
        for command in commands.items() {
            let fields = command.items();
            // Those of modules that come with Redis 8 are in capitals.
            into.insert(fields[0].text().to_lowercase());
            collect(&fields[9], into);
        }
    }
    let mut names = BTreeSet::new();
    collect(&redis.cmd(&["COMMAND"]), &mut names);
    names
}

/// The canonical names the scripts send, spelled so that the server executes them or words the error.
fn script_commands(known: &BTreeSet<String>) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for line in SECTIONS.iter().flat_map(|s| script::parse(s.script)) {
        let Step::Exchange(exchange) = &line.step else { continue };
        let words = exchange.words();
        let [first, ..] = words.as_slice() else { continue };
        names.insert(first.to_lowercase());
        let full = format!("{}|{}", first, words.get(1).map_or("", String::as_str)).to_lowercase();
        if known.contains(&full) {
            names.insert(full);
        }
    }
    names
}

#[test]
fn every_command_of_the_server_is_in_a_script() {
    if !needs(7, 0, "subcommands in COMMAND") {
        return;
    }
    let known = server_commands(&Redis::start());
    assert!(known.len() > 300 && known.contains("client|kill"), "COMMAND was misread: {known:?}");
    let sent = script_commands(&known);
    let excused: BTreeSet<String> = NOT_TESTABLE.iter().map(|(name, _)| (*name).to_owned()).collect();
    let missing: Vec<&String> = known.iter().filter(|name| !sent.contains(*name) && !excused.contains(*name)).collect();
    assert!(missing.is_empty(), "in no script: {missing:?}");
    let stale: Vec<&String> = excused.iter().filter(|name| sent.contains(*name) || !known.contains(*name)).collect();
    assert!(stale.is_empty(), "excused without need: {stale:?}");
}

#[test]
fn every_difference_is_used() {
    let lines: Vec<Line> = SECTIONS.iter().flat_map(|s| script::parse(s.script)).collect();
    let starts = |prefix: &str| {
        lines.iter().any(|line| match &line.step {
            Step::Exchange(e) => e.words().join(" ").to_lowercase().starts_with(&prefix.to_lowercase()),
            _ => false,
        })
    };
    let unused: Vec<&str> = DIFFERENCES.iter().map(|(prefix, ..)| *prefix).filter(|prefix| !starts(prefix)).collect();
    assert!(unused.is_empty(), "{unused:?}");
}

#[test]
fn the_comparisons_see() {
    let both = |how, a: &str, b: &str| same(how, a.as_bytes(), b.as_bytes());
    assert!(!both(Compare::Exact, "+OK\r\n", "+Ok\r\n"));
    assert!(both(Compare::Digits, ":100\r\n", ":99\r\n") && !both(Compare::Digits, ":100\r\n", ":-1\r\n"));
    let (ab, ba) = ("*2\r\n$1\r\na\r\n$1\r\nb\r\n", "*2\r\n$1\r\nb\r\n$1\r\na\r\n");
    assert!(both(Compare::Unordered, ab, ba) && !both(Compare::Unordered, ab, "*2\r\n$1\r\na\r\n$1\r\na\r\n"));
    assert!(!both(Compare::Unordered, ab, &ba.replacen('*', "~", 1)));
    assert!(
        both(Compare::Shape, ab, "*2\r\n$1\r\nx\r\n$1\r\ny\r\n") && !both(Compare::Shape, ab, "*2\r\n:1\r\n:2\r\n")
    );
    assert!(both(Compare::Type, "$1\r\na\r\n", "$2\r\nbc\r\n") && !both(Compare::Type, "$1\r\na\r\n", "-ERR\r\n"));
    assert!(both(Compare::Errors, "-ERR a\r\n", "-ERR b\r\n") && !both(Compare::Errors, "+OK\r\n", "+PONG\r\n"));
}
