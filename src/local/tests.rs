//! The engine against a real server, command by command and byte by byte, and what no server can be asked: its budget, its
//! effects, its clock.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use super::*;
use crate::command::keys;
use crate::command::table::{self, Lookup};
use crate::resp::real::{Connection, Server};
use crate::resp::reply;
use crate::resp::request::{Scan, Scanner};

const CLIENT: u64 = 1;

/// One client of an engine of its own.
struct Local {
    engine: Engine,
    now: i64,
    db: u32,
    proto: Proto,
}

impl Local {
    fn new(max_bytes: u64) -> Local {
        Local { engine: Engine::new(max_bytes, 7), now: 1_000_000, db: 0, proto: Proto::Resp2 }
    }

    fn run<T>(
        &mut self,
        words: &[&[u8]],
        run: impl FnOnce(&mut Engine, Command, &Call<'_>, &mut BytesMut) -> T,
    ) -> (T, Vec<u8>) {
        let mut raw = BytesMut::new();
        build::command(&mut raw, words);
        let mut scanner = Scanner::new(1 << 30, 1 << 30);
        assert!(matches!(scanner.scan(&raw), Scan::Request { .. } | Scan::Large), "{words:?}");
        let req = Request { raw: &raw, args: scanner.args() };
        let Lookup::Known(spec) = table::lookup(&req) else { panic!("no row: {words:?}") };
        let command = command(spec.name).unwrap_or_else(|| panic!("not the engine's: {}", spec.name));
        let call =
            Call { now: self.now, db: self.db, proto: self.proto, name: spec.name, req: &req, reply_max: 1 << 30 };
        let mut out = BytesMut::new();
        let result = run(&mut self.engine, command, &call, &mut out);
        (result, out.to_vec())
    }

    fn raw(&mut self, words: &[&[u8]]) -> Vec<u8> {
        let (done, out) = self.run(words, |engine, command, call, out| engine.execute(command, call, out));
        assert_eq!(done, Ok(()));
        out
    }

    #[track_caller]
    fn cmd(&mut self, line: &str) -> String {
        let words: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
        String::from_utf8_lossy(&self.raw(&words)).into_owned()
    }

    fn effects(&mut self, line: &str) -> Vec<Effect> {
        let words: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
        self.run(&words, |engine, command, call, out| engine.apply(command, call, out)).0.unwrap()
    }
}

// ---- against a real server ----

/// xorshift: the same commands in every run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 33) as usize % n
    }

    fn of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())]
    }
}

const KEYS: &[&[u8]] = &[b"a", b"b", b"c", b"d", b"key:1", b"key:2", b"", b"\x00\r\n\xff", b"n", b"f"];

const VALUES: &[&[u8]] = &[
    b"",
    b"x",
    b"hello world",
    b"\x00\x01\r\n\xff\xfe",
    b"10",
    b"-7",
    b"007",
    b"9223372036854775807",
    b"-9223372036854775808",
    b"9223372036854775808",
    b"3.14",
    b"1e3",
    b"nan",
    b"inf",
    b"-inf",
    b"0x1f",
    b"1e5000",
    b"-0",
    b"+5",
    b" 1",
    b"12345678901234567890123456789012345678901234",
    b"123456789012345678901234567890123456789012345",
];

const NUMBERS: &[&[u8]] = &[
    b"0",
    b"1",
    b"-1",
    b"2",
    b"5",
    b"-3",
    b"10",
    b"100",
    b"4611686018427387904",
    b"9223372036854775807",
    b"-9223372036854775808",
    b"9223372036854775808",
    b"x",
    b"",
    b"1.5",
    b"01",
    b"+1",
    b"536870911",
    b"536870912",
    b"15",
    b"16",
    b"3",
];

const FLOATS: &[&[u8]] = &[
    b"0.1",
    b"0.2",
    b"-0.3",
    b"1e-5",
    b"3.0e3",
    b"1e17",
    b"1e300",
    b"-1e300",
    b"123456789.123456789",
    b"0.00000000000000001",
    b"1e4000",
    b"inf",
    b"-inf",
    b"nan",
    b"0x1.8p3",
    b"5.",
    b".5",
    b"1e",
    b"",
    b"1.0000000000000000001",
    b"99999999999999999.5",
    b"-1",
    b"1e-4940",
    b"2.5",
];

/// Times that are over, or will not be for long.
const TIMES: &[&[u8]] = &[
    b"0",
    b"-1",
    b"1",
    b"10000000",
    b"9999999999",
    b"9999999999999",
    b"9223372036854775807",
    b"-9223372036854775808",
    b"9223372036854775",
    b"9223372036854776",
    b"x",
    b"",
];

const OPTIONS: &[&[u8]] = &[
    b"NX", b"xx", b"GET", b"KEEPTTL", b"PERSIST", b"EX", b"PX", b"exat", b"PXAT", b"GT", b"LT", b"REPLACE", b"DB",
    b"MATCH", b"COUNT", b"TYPE", b"ASYNC", b"SYNC", b"bogus", b"EX\x00",
];

const PATTERNS: &[&[u8]] = &[b"*", b"key:*", b"?", b"[ab]", b"", b"*[", b"\\*", b"string", b"list"];

/// Not `TYPE none`, by which SCAN finds keys that have just expired.
/// What an argument is drawn from: k, v, n(umber), f(loat), t(ime), o(ption), p(attern), c(ursor), d(atabase).
const SHAPES: &[&str] = &[
    "GET k",
    "SET k v",
    "SET k v o",
    "SET k v o t",
    "SET k v o t o",
    "SET k v o o",
    "SET k v EX t",
    "SET k v PXAT t",
    "SET k f",
    "SET k n",
    "SETNX k v",
    "SETEX k t v",
    "PSETEX k t v",
    "MGET k k k",
    "MSET k v k v",
    "MSET k v k",
    "MSETNX k v k v",
    "GETSET k v",
    "GETDEL k",
    "GETEX k",
    "GETEX k o",
    "GETEX k o t",
    "GETEX k o t o",
    "APPEND k v",
    "APPEND k n",
    "STRLEN k",
    "SETRANGE k n v",
    "GETRANGE k n n",
    "SUBSTR k n n",
    "INCR k",
    "DECR k",
    "INCRBY k n",
    "DECRBY k n",
    "INCRBYFLOAT k f",
    "INCRBYFLOAT f f",
    "INCRBYFLOAT f f",
    "INCRBYFLOAT f f",
    "SET f f",
    "INCRBY n n",
    "SET n v",
    "DEL k k",
    "UNLINK k",
    "EXISTS k k",
    "TOUCH k k",
    "TYPE k",
    "TTL k",
    "PTTL k",
    "EXPIRETIME k",
    "PEXPIRETIME k",
    "EXPIRE k t",
    "EXPIRE k t o",
    "PEXPIRE k t",
    "PEXPIRE k t",
    "PEXPIRE k t o",
    "PEXPIRE k t o o",
    "EXPIREAT k t",
    "EXPIREAT k t o",
    "PEXPIREAT k t o",
    "PEXPIREAT k t o o",
    "PERSIST k",
    "RENAME k k",
    "RENAMENX k k",
    "COPY k k",
    "COPY k k o",
    "COPY k k DB n",
    "COPY k k o n o",
    "MOVE k n",
    "OBJECT ENCODING k",
    "OBJECT ENCODING n",
    "OBJECT ENCODING f",
    "OBJECT FREQ k",
    "KEYS p",
    "SCAN 0 COUNT 1000",
    "SCAN 0 MATCH p COUNT 1000",
    "SCAN 0 COUNT 1000 TYPE p",
    "SCAN n o n",
    "SCAN 0 o p",
    "SCAN v",
    "DBSIZE",
    "RANDOMKEY",
    "SWAPDB n n",
    "FLUSHDB o",
    "FLUSHALL o",
    "FLUSHDB o o",
    "PUBSUB CHANNELS p",
    "PUBSUB NUMSUB k k",
    "PUBSUB NUMPAT",
];

fn words(dice: &mut Dice) -> Vec<Vec<u8>> {
    let shape = dice.of(SHAPES);
    let word = |word: &str, dice: &mut Dice| match word {
        "k" => dice.of(KEYS).to_vec(),
        "v" => dice.of(VALUES).to_vec(),
        "n" => dice.of(NUMBERS).to_vec(),
        "f" => dice.of(FLOATS).to_vec(),
        "t" => dice.of(TIMES).to_vec(),
        "o" => dice.of(OPTIONS).to_vec(),
        "p" => dice.of(PATTERNS).to_vec(),
        other => other.as_bytes().to_vec(),
    };
    let mut all: Vec<Vec<u8>> = Vec::new();
    for (i, w) in shape.split(' ').enumerate() {
        let mut drawn = if i == 0 { w.into() } else { word(w, dice) };
        // A moment from now would be over for one of the two only.
        let absolute = |w: &Vec<u8>| w.to_ascii_uppercase().ends_with(b"AT");
        if w == "t" && drawn == b"1" && !absolute(&all[0]) && !all.last().is_some_and(absolute) {
            drawn = b"1000000".to_vec();
        }
        all.push(drawn);
    }
    all
}

fn wall() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as i64
}

/// Whether two replies are the same, as far as the clock and the order in a hash table allow.
fn same(words: &[Vec<u8>], theirs: &[u8], ours: &[u8]) -> bool {
    if theirs == ours {
        return true;
    }
    let name = words[0].to_ascii_uppercase();
    let sorted = |frame: &[u8]| {
        let mut all: Vec<Vec<u8>> = reply::elements(frame).map(<[u8]>::to_vec).collect();
        all.sort();
        all
    };
    match name.as_slice() {
        b"KEYS" => sorted(theirs) == sorted(ours),
        // Where a walk is not over the two are at different places.
        b"SCAN" => {
            let whole = |frame: &[u8]| reply::elements(frame).map(<[u8]>::to_vec).collect::<Vec<_>>();
            let (a, b) = (whole(theirs), whole(ours));
            let over = a.len() == 2 && a[0] == b"$1\r\n0\r\n" && b[0] == a[0];
            a.len() == b.len() && (!over || words[1] != b"0" || sorted(&a[1]) == sorted(&b[1]))
        }
        b"RANDOMKEY" => theirs[0] == ours[0],
        b"TTL" | b"PTTL" | b"EXPIRETIME" | b"PEXPIRETIME" => match (reply::integer(theirs), reply::integer(ours)) {
            (Some(a), Some(b)) => a > 0 && b > 0 && (a - b).abs() <= 2000,
            _ => false,
        },
        _ => false,
    }
}

/// The engine is a Redis 7.0; others word some errors differently.
fn is_the_one(redis: &mut Connection) -> bool {
    let info = redis.call(&[b"INFO", b"server"]);
    let found = memchr::memmem::find(&info, b"redis_version:7.0.").is_some();
    if !found {
        eprintln!("SKIPPED: the engine is compared with Redis 7.0");
    }
    found
}

fn differential(seed: u64, proto: Proto, rounds: usize) {
    let server = Server::start();
    let mut redis = server.connect();
    if !is_the_one(&mut redis) {
        return;
    }
    // Its timer, which deletes what is past its time, is to come between any two commands.
    redis.call(&[b"CONFIG", b"SET", b"hz", b"500"]);
    if proto == Proto::Resp3 {
        redis.call(&[b"HELLO", b"3"]);
    }
    let mut local = Local { proto, ..Local::new(1 << 30) };
    let mut dice = Dice(seed);
    let mut seen: BTreeMap<String, [usize; 2]> = BTreeMap::new();
    for round in 0..rounds {
        let words = words(&mut dice);
        let refs: Vec<&[u8]> = words.iter().map(Vec::as_slice).collect();
        if !has_arity(&refs) || is_large(&words) {
            continue;
        }
        if words.iter().any(|word| word.eq_ignore_ascii_case(b"GT") || word.eq_ignore_ascii_case(b"LT")) {
            // The two look at the clock one after the other, so a deadline may differ by a millisecond. One that is now set by
            // the same time to live must be later than that in both.
            let until = wall() + 3;
            while wall() < until {
                std::thread::yield_now();
            }
        }
        local.now = wall();
        if words[0].eq_ignore_ascii_case(b"DBSIZE") {
            // Counted are keys that are past their time (`SET a x PXAT 1`) until somebody finds them: in Redis its own timer too,
            // some time or other. After a walk there are none left in either.
            let walk: &[&[u8]] = &[b"SCAN", b"0", b"COUNT", b"1000"];
            redis.call(walk);
            local.raw(walk);
        }
        let (theirs, ours) = (redis.call(&refs), local.raw(&refs));
        let shown = || words.iter().map(|w| format!("\"{}\"", w.escape_ascii())).collect::<Vec<_>>().join(" ");
        assert!(
            same(&words, &theirs, &ours),
            "round {round}, {proto:?}: {}\nredis:    {}\nnearside: {}",
            shown(),
            theirs.escape_ascii(),
            ours.escape_ascii()
        );
        let count = seen.entry(String::from_utf8_lossy(&words[0]).into_owned()).or_default();
        count[usize::from(reply::is_error(&ours))] += 1;
    }
    data_agree(&mut redis, &mut local);
    let few: Vec<_> = seen.iter().filter(|(name, [ok, _])| *ok < 1 && *name != "SWAPDB").collect();
    assert!(few.is_empty(), "hardly compared: {few:?}");
}

fn has_arity(words: &[&[u8]]) -> bool {
    let mut raw = BytesMut::new();
    build::command(&mut raw, words);
    let mut scanner = Scanner::new(1 << 20, 1 << 20);
    scanner.scan(&raw);
    let req = Request { raw: &raw, args: scanner.args() };
    matches!(table::lookup(&req), Lookup::Known(spec) if keys::arity_ok(spec, req.argc()))
}

/// Half a gigabyte of zeros is the same in both, and takes a second each time.
fn is_large(words: &[Vec<u8>]) -> bool {
    words[0] == b"SETRANGE" && words[2] == b"536870911"
}

/// Every key with its value, expiry and encoding, in every database.
fn data_agree(redis: &mut Connection, local: &mut Local) {
    for db in 0..DATABASES {
        redis.call(&[b"SELECT", db.to_string().as_bytes()]);
        local.db = db;
        for key in KEYS {
            for words in [&[b"GET", *key][..], &[b"PEXPIRETIME", key], &[b"OBJECT", b"ENCODING", key]] {
                local.now = wall();
                let (theirs, ours) = (redis.call(words), local.raw(words));
                let owned: Vec<Vec<u8>> = words.iter().map(|w| w.to_vec()).collect();
                let (theirs_shown, ours_shown) = (theirs.escape_ascii().to_string(), ours.escape_ascii().to_string());
                assert!(same(&owned, &theirs, &ours), "db {db} {owned:?}: {theirs_shown} but {ours_shown}");
            }
        }
    }
}

#[test]
fn random_commands_are_answered_as_redis_answers_them_in_resp2() {
    differential(0x2545_f491_4f6c_dd1d, Proto::Resp2, 8_000);
}

#[test]
fn random_commands_are_answered_as_redis_answers_them_in_resp3() {
    differential(0x9e37_79b9_7f4a_7c15, Proto::Resp3, 8_000);
}

/// Long decimals of all sizes: a last digit that differs shows.
#[test]
fn floats_are_added_as_redis_adds_them() {
    let server = Server::start();
    let mut redis = server.connect();
    let mut local = Local::new(1 << 20);
    let mut dice = Dice(0x1234_5678_9abc_def1);
    let mut differ = 0;
    for round in 0..1500 {
        let mut number = |digits_max: usize| {
            let digits: String =
                (0..=dice.below(digits_max)).map(|_| char::from(b'0' + dice.below(10) as u8)).collect();
            let sign = dice.of(&["", "-", "+"]);
            let exponent = match dice.below(6) {
                0 => format!("e{}", dice.below(40) as i64 - 20),
                1 => format!("e{}", dice.below(10_000) as i64 - 5000),
                2 => format!("e-{}", dice.below(30)),
                _ => String::new(),
            };
            match dice.below(3) {
                0 => format!("{sign}{digits}{exponent}"),
                1 => format!("{sign}{digits}.{}{exponent}", dice.below(1_000_000_000)),
                _ => format!("{sign}0x{digits}.8p{}", dice.below(90) as i64 - 60),
            }
        };
        let (a, b) = (number(60), number(25));
        for words in [&[b"SET".as_slice(), b"f", a.as_bytes()][..], &[b"INCRBYFLOAT", b"f", b.as_bytes()]] {
            let (theirs, ours) = (redis.call(words), local.raw(words));
            assert_eq!(ours.escape_ascii().to_string(), theirs.escape_ascii().to_string(), "round {round}: {a} + {b}");
            differ += usize::from(reply::bulk(&theirs).is_some());
        }
    }
    assert!(differ > 600, "hardly any sum was compared: {differ}");
}

/// A walk by SCAN with keys coming and going returns at least every key that was there all along.
#[test]
fn scan_misses_nothing_that_stays() {
    let mut local = Local::new(1 << 30);
    (0..2000).for_each(|n| drop(local.cmd(&format!("SET stay:{n} x"))));
    (0..2000).for_each(|n| drop(local.cmd(&format!("SET go:{n} x"))));
    let (mut cursor, mut seen, mut gone) = ("0".to_owned(), std::collections::BTreeSet::new(), 0);
    loop {
        let reply = local.raw(&[b"SCAN", cursor.as_bytes(), b"COUNT", b"7"]);
        let parts: Vec<&[u8]> = reply::elements(&reply).collect();
        cursor = String::from_utf8_lossy(reply::bulk(parts[0]).unwrap()).into_owned();
        seen.extend(reply::elements(parts[1]).filter_map(reply::bulk).map(<[u8]>::to_vec));
        for _ in 0..5 {
            local.cmd(&format!("DEL go:{}", gone * 7 % 2000));
            local.cmd(&format!("SET new:{gone} x"));
            gone += 1;
        }
        if cursor == "0" {
            break;
        }
    }
    let missing: Vec<u32> = (0..2000).filter(|n| !seen.contains(format!("stay:{n}").as_bytes())).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

// ---- budget ----

#[test]
fn the_budget_holds_whatever_is_written() {
    const MAX: u64 = 200_000;
    let mut local = Local::new(MAX);
    let mut dice = Dice(99);
    for n in 0..20_000 {
        local.now += 1;
        let key = format!("k{}", dice.below(3000));
        let value = "v".repeat(dice.below(if n % 50 == 0 { 60_000 } else { 100 }));
        match dice.below(6) {
            0 => local.raw(&[b"APPEND", key.as_bytes(), value.as_bytes()]),
            1 => local.raw(&[b"SETRANGE", key.as_bytes(), dice.below(50_000).to_string().as_bytes(), b"x"]),
            2 => local.raw(&[b"MSET", key.as_bytes(), value.as_bytes(), b"other", value.as_bytes()]),
            3 => local.raw(&[b"COPY", key.as_bytes(), b"copy", b"REPLACE"]),
            4 => local.raw(&[b"RENAME", key.as_bytes(), b"a much longer name than it had before"]),
            _ => local.raw(&[b"SET", key.as_bytes(), value.as_bytes(), b"PX", b"100"]),
        };
        let (keys, bytes) = local.engine.size();
        assert!(bytes <= MAX && bytes >= keys * db::OVERHEAD as u64, "{bytes} bytes, {keys} keys");
    }
    assert!(local.engine.counts().evicted > 1000, "{:?}", local.engine.counts());
}

#[test]
fn what_can_never_fit_is_refused_and_evicts_nothing() {
    let mut local = Local::new(10_000);
    local.cmd("SET small x");
    let refused = "-OOM command not allowed when used memory > 'maxmemory'.\r\n";
    for line in [
        format!("SET k {}", "v".repeat(20_000)),
        "SETRANGE k 20000 x".to_owned(),
        format!("MSET a {0} b {0}", "v".repeat(6000)),
    ] {
        assert_eq!(local.cmd(&line), refused);
    }
    assert_eq!(local.cmd("GET small"), "$1\r\nx\r\n");
    assert_eq!(local.cmd("EXISTS k a b"), ":0\r\n");
    assert_eq!(local.engine.counts().refused, 3);
}

#[test]
fn the_least_recently_used_goes_first() {
    let mut local = Local::new(100 * (db::OVERHEAD as u64 + 10));
    for n in 0..90 {
        local.now += 1;
        local.cmd(&format!("SET k{n} x"));
    }
    for _ in 0..50 {
        local.now += 1000;
        (0..10).for_each(|n| drop(local.cmd(&format!("GET k{n}"))));
        local.cmd(&format!("SET new{} x", local.now));
    }
    let kept = (0..10).filter(|n| local.cmd(&format!("EXISTS k{n}")) == ":1\r\n").count();
    assert!(kept >= 9, "{kept} of 10 hot keys are left");
}

#[test]
fn an_evicted_key_fails_the_transaction_that_watches_it() {
    let mut local = Local::new(3 * (db::OVERHEAD as u64 + 100));
    local.cmd("SET k x");
    local.engine.watch(local.now, CLIENT, 0, b"k");
    assert!(!local.engine.is_fouled(local.now, CLIENT));
    local.now += 10;
    local.cmd(&format!("SET big {}", "v".repeat(500)));
    assert_eq!(local.cmd("EXISTS k"), ":0\r\n");
    assert!(local.engine.is_fouled(local.now, CLIENT));
}

#[test]
fn a_reply_beyond_its_bound_is_given_up() {
    let mut local = Local::new(1 << 24);
    local.cmd(&format!("SET k {}", "v".repeat(100_000)));
    let words = [&b"MGET"[..], b"k", b"k", b"k", b"k", b"k"];
    let (done, out) = local
        .run(&words, |engine, command, call, out| engine.execute(command, &Call { reply_max: 150_000, ..*call }, out));
    assert_eq!(done, Err(TooLong));
    assert!(out.len() < 300_000, "{}", out.len());
}

// ---- time ----

#[test]
fn a_key_past_its_time_is_gone_for_everybody_and_counted() {
    let mut local = Local::new(1 << 20);
    local.cmd("SET k v PX 100");
    local.now += 100;
    assert_eq!(local.cmd("GET k"), "$1\r\nv\r\n");
    local.now += 1;
    for line in ["EXISTS k", "TTL k", "DBSIZE"] {
        let gone = if line == "TTL k" { ":-2\r\n" } else { ":0\r\n" };
        assert_eq!(local.cmd(line), gone, "{line}");
    }
    assert_eq!(local.engine.counts().expired, 1);
}

#[test]
fn the_sweep_finds_what_nobody_asks_for() {
    let mut local = Local::new(1 << 24);
    (0..5000).for_each(|n| drop(local.cmd(&format!("SET short{n} v PX 10"))));
    (0..5000).for_each(|n| drop(local.cmd(&format!("SET long{n} v"))));
    local.now += 1000;
    for _ in 0..20 {
        local.engine.sweep(local.now);
    }
    assert_eq!(local.cmd("DBSIZE"), ":5000\r\n");
    assert_eq!(local.engine.keyspace().collect::<Vec<_>>(), [(0, 5000, 0)]);
}

// ---- effects ----

#[test]
fn effects_say_what_a_command_has_done() {
    let mut local = Local::new(1 << 20);
    let set = |key: &str, value: &str, at: Option<i64>| Effect::Set {
        db: 0,
        key: key.as_bytes().into(),
        value: value.into(),
        expire_at_ms: at,
    };
    let del = |key: &str| Effect::Del { db: 0, key: key.as_bytes().into() };
    let at = Some(local.now + 10_000);
    for (line, expected) in [
        ("SET k v", vec![set("k", "v", None)]),
        ("SET k 5 EX 10", vec![set("k", "5", at)]),
        ("INCR k", vec![set("k", "6", at)]),
        ("APPEND k 0", vec![set("k", "60", at)]),
        ("PERSIST k", vec![set("k", "60", None)]),
        ("PERSIST k", vec![]),
        ("SET k v NX", vec![]),
        ("GET k", vec![]),
        ("MSET a 1 a 2 b 3", vec![set("a", "2", None), set("b", "3", None)]),
        ("RENAME a c", vec![set("c", "2", None), del("a")]),
        ("EXPIRE c -1", vec![del("c")]),
        ("DEL b none", vec![del("b")]),
        ("INCRBY k x", vec![]),
        ("FLUSHDB", vec![Effect::Database { db: 0 }]),
    ] {
        let mut effects = local.effects(line);
        effects.sort_by_key(|e| format!("{e:?}").replace("Del", "Z"));
        let mut expected = expected;
        expected.sort_by_key(|e| format!("{e:?}").replace("Del", "Z"));
        assert_eq!(effects, expected, "{line}");
    }
}

/// What is known from elsewhere is the base that a queued write is applied to.
#[test]
fn a_value_from_elsewhere_is_a_base() {
    let mut local = Local::new(1 << 20);
    assert!(local.engine.put(local.now, 3, b"n", b"41", Some(local.now + 1)));
    local.db = 3;
    assert_eq!(local.cmd("INCR n"), ":42\r\n");
    assert_eq!(local.cmd("OBJECT ENCODING n"), "$3\r\nint\r\n");
    assert!(!local.engine.put(local.now, 3, b"big", &[0; 2 << 20], None));
}
