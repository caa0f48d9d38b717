//! The same scripts through sidecars that do more, or have less, upstream than usual: writes that are wrapped into
//! transactions of ours, an upstream that speaks RESP2 only, and no upstream at all. Clients must not be able to tell.

use serde_json::json;

use super::*;
use crate::support::proxy::Builder;

/// Runs a section with everything cached that can be, and fails with every line that differs.
#[track_caller]
fn hold(name: &str, args: &[&str], mode: &str, resp3: &[bool], configure: impl Fn(Builder) -> Builder) {
    hold_under(name, args, mode, resp3, "", configure);
}

#[track_caller]
fn hold_under(
    name: &str,
    args: &[&str],
    mode: &str,
    resp3: &[bool],
    prefix: &'static str,
    configure: impl Fn(Builder) -> Builder,
) {
    let section = SECTIONS.iter().find(|s| s.name == name).expect("a section");
    let server = || Redis::builder().args(args).start();
    let (direct, upstream) = (server(), server());
    let proxy = configure(Proxy::to(&upstream).set("coherence.canary", "off")).start();
    if std::env::var_os("NEARSIDE_TEST_DIRECT").is_none() {
        eventually(PATIENCE, "its mode", || proxy.stats()["coherence"] == mode);
    }
    let mut complaints = Vec::new();
    // A sidecar is subscribed to the sidecars' channel, which PUBSUB CHANNELS shows.
    let mut subscriber = direct.client();
    if name == "pubsub" {
        subscriber.cmd(&["SUBSCRIBE", CHANNEL]);
    }
    for &resp3 in resp3 {
        let paces = if name == "large" { &[Pace::OneByOne][..] } else { &[Pace::OneByOne, Pace::Pipelined] };
        for &pace in paces {
            let run = Run { cache: Cache::All, resp3, pace, prefixed: !prefix.is_empty() };
            let mut sides =
                [Side::new(section, &direct, direct.socket()), Side::new(section, &upstream, proxy.socket())];
            sides[1].prefix = prefix;
            // The data were cleaned past the sidecar, which nobody tells it of in these modes.
            assert!(
                std::env::var_os("NEARSIDE_TEST_DIRECT").is_some()
                    || proxy.client().cmd(&["NEARSIDE", "FLUSH"]).int() >= 0
            );
            complaints.extend(Oracle { section, run, sides, complaints: Vec::new() }.run());
        }
    }
    if std::env::var_os("NEARSIDE_TEST_DIRECT").is_none() {
        assert_eq!(proxy.stats()["coherence"], mode, "it has not left its mode");
    }
    assert!(complaints.is_empty(), "{} differ:\n{}", complaints.len(), complaints.join("\n"));
}

macro_rules! in_mode {
    ($hold:ident: $($name:ident)*) => {
        pub(super) mod $hold {
            $(#[test] fn $name() { super::$hold(stringify!($name)); })*
        }
    };
}

/// Every write is one of a transaction of ours.
fn pubsub(name: &str) {
    hold(name, &[], "pubsub", &[false, true], |b| b.set("coherence.mode", "pubsub").set("cache.commands", reads::ALL));
}

/// Every write is followed by its message.
fn pubsub_not_atomic(name: &str) {
    hold(name, &[], "pubsub", &[true], |b| b.set("coherence.mode", "pubsub").set("coherence.pubsub_atomic", false));
}

/// An upstream without HELLO, which has `pubsub` all the same.
fn resp2_upstream(name: &str) {
    hold(name, &["--rename-command", "HELLO", ""], "pubsub", &[false], |b| b.set("cache.commands", reads::ALL));
}

fn ttl(name: &str) {
    hold(name, &["--rename-command", "HELLO", ""], "ttl", &[false], |b| b.set("coherence.mode", "ttl"));
}

/// A policy that judges and paces every command, and has nothing against any.
fn under_policy(name: &str) {
    let overrides = json!([{"client": "nobody", "deny": ["@all"]}, {"user": "*", "deny": ["graph.query"]}]);
    let rate = json!([{"per_second": 1_000_000, "burst": 1_000_000}, {"per_second": 1_000_000, "on_limit": "error"}]);
    hold(name, &[], "tracking", &[false, true], |b| {
        b.set("commands.allow", json!(["@all"]))
            .set("commands.overrides", overrides.clone())
            .set("commands.rate", rate.clone())
    });
}

in_mode! { under_policy: strings keys transactions scripting blocking errors inline large }
in_mode! { pubsub: strings bitmaps keys hashes lists sets sorted_sets geo hyperloglog streams scripting transactions
blocking errors inline large }
in_mode! { pubsub_not_atomic: strings transactions errors }
in_mode! { resp2_upstream: strings keys hashes lists sorted_sets streams scripting transactions blocking errors inline }
in_mode! { ttl: strings keys transactions errors }

// ---- upstream.key_prefix ----

const PREFIX: &str = "app:";

/// What a sidecar with a prefix answers otherwise than Redis, and why; the longest match counts, before `DIFFERENCES`.
const WITH_PREFIX: &[(&str, Compare, &str)] = &[
    ("DBSIZE", Compare::Refused, "it counts everybody's keys"),
    ("SLOWLOG", Compare::Refused, "it shows everybody's commands"),
    ("SLOWLOG HELP", Compare::Exact, "a text"),
    ("COMMANDLOG", Compare::Refused, "it shows everybody's commands"),
    ("COMMANDLOG HELP", Compare::Exact, "a text"),
    ("ACL LOG", Compare::Refused, "it shows everybody's keys"),
    ("FUNCTION STATS", Compare::Refused, "it shows everybody's commands"),
    ("SWAPDB", Compare::Refused, "it exchanges everybody's keys"),
    ("FAILOVER", Compare::Refused, "it replaces everybody's keys"),
    ("REPLICAOF", Compare::Refused, "it replaces everybody's keys"),
    ("SLAVEOF", Compare::Refused, "it replaces everybody's keys"),
    ("CLUSTER BOGUS", Compare::Refused, "a newer server's may name keys"),
    ("CLUSTER COUNTKEYSINSLOT", Compare::Refused, "it counts everybody's keys"),
    ("CLUSTER GETKEYSINSLOT", Compare::Refused, "it shows everybody's keys"),
    // Ours has just said CLIENT ID on the connection that this goes to, and Redis 8 takes the full name for the same again.
    ("CLIENT|ID", Compare::Errors, "a name that no server has"),
    ("CLUSTER KEYSLOT", Compare::Digits, "the slot is that of upstream's name"),
    ("CLUSTER DELSLOTS", Compare::Refused, "it moves everybody's keys"),
    ("CLUSTER DELSLOTSRANGE", Compare::Refused, "it moves everybody's keys"),
    ("CLUSTER FAILOVER", Compare::Refused, "it replaces everybody's keys"),
    ("CLUSTER FLUSHSLOTS", Compare::Refused, "it moves everybody's keys"),
    ("CLUSTER REPLICATE", Compare::Refused, "it replaces everybody's keys"),
    ("CLUSTER RESET", Compare::Refused, "it drops everybody's keys"),
    ("CLUSTER SETSLOT", Compare::Refused, "it moves everybody's keys"),
    ("CLUSTER FLUSHSLOT", Compare::Refused, "a newer server's"),
    ("CLUSTER MIGRATESLOTS", Compare::Refused, "a newer server's"),
    ("CLUSTER GETSLOTMIGRATIONS", Compare::Refused, "a newer server's"),
    ("CLUSTER CANCELSLOTMIGRATIONS", Compare::Refused, "a newer server's"),
    ("CLUSTER SYNCSLOTS", Compare::Refused, "a newer server's"),
    ("FT.SEARCH", Compare::Refused, "a module's"),
    ("CLUSTERSCAN", Compare::Refused, "the table does not have it"),
    ("DEBUG SDSLEN", Compare::Digits, "the key is longer upstream"),
    ("DEBUG DIGEST", Compare::Refused, "which keys it means is not known"),
    ("DEBUG BOGUS", Compare::Refused, "which keys it means is not known"),
    ("DEBUG RELOAD", Compare::Refused, "which keys it means is not known"),
    ("DEBUG LOG", Compare::Refused, "which keys it means is not known"),
    ("DEBUG HTSTATS", Compare::Refused, "which keys it means is not known"),
    ("DEBUG CHANGE-REPL-ID", Compare::Refused, "which keys it means is not known"),
    ("OBJECT NONSENSE", Compare::Refused, "a newer server's may name keys"),
    ("XGROUP BOGUS", Compare::Refused, "a newer server's may name keys"),
    ("XINFO BOGUS", Compare::Refused, "a newer server's may name keys"),
    ("MEMORY BOGUS", Compare::Refused, "a newer server's may name keys"),
];

/// How a reply is compared where the sidecar has a prefix.
pub(super) fn with_prefix(run: Run, words: &[String], redis: &[u8]) -> Option<Compare> {
    // A name that nobody knows may be a module's tomorrow.
    let unknown = redis.starts_with(b"-ERR unknown command").then_some(Compare::Refused);
    listed(WITH_PREFIX, words).or(unknown).filter(|_| run.prefixed)
}

pub(super) fn is_refusal(reply: &[u8]) -> bool {
    reply.starts_with(b"-NEARSIDE ") && String::from_utf8_lossy(reply).contains("is refused with upstream.key_prefix")
}

/// Every key has a prefix upstream, and clients cannot tell, save where they are told.
fn key_prefix(name: &str) {
    let configure = |b: Builder| b.set("cache.commands", reads::ALL).set("upstream.key_prefix", PREFIX);
    hold_under(name, &[], "tracking", &[false, true], PREFIX, configure);
}

/// Every write is one of a transaction of ours, under upstream's names.
fn key_prefix_pubsub(name: &str) {
    let configure = |b: Builder| b.set("coherence.mode", "pubsub").set("upstream.key_prefix", PREFIX);
    hold_under(name, &[], "pubsub", &[false, true], PREFIX, configure);
}

/// Replies of the lane are RESP2's, and name keys at other places.
fn key_prefix_resp2_upstream(name: &str) {
    let configure = |b: Builder| b.set("cache.commands", reads::ALL).set("upstream.key_prefix", PREFIX);
    hold_under(name, &["--rename-command", "HELLO", ""], "pubsub", &[false], PREFIX, configure);
}

in_mode! { key_prefix_pubsub: strings keys lists streams scripting transactions blocking }
in_mode! { key_prefix_resp2_upstream: keys lists sorted_sets streams transactions blocking }
in_mode! { key_prefix: strings bitmaps keys databases hashes lists sets sorted_sets geo hyperloglog streams blocking pubsub
scripting transactions handshake clients tracking server cluster debug errors inline large newer }

// ---- the in-memory engine ----

/// As much of a section as the engine answers; the rest is left out on both sides. The engine is a Redis 7.0, and words its
/// errors so.
#[track_caller]
fn embedded(name: &str, at_least: usize) {
    if !version().at_least(7, 0) || version().at_least(7, 2) {
        eprintln!("SKIPPED: the engine is compared with Redis 7.0");
        return;
    }
    let section = SECTIONS.iter().find(|s| s.name == name).expect("a section");
    let direct = Redis::start();
    let proxy = Proxy::upstream("embedded").start();
    let mut complaints = Vec::new();
    for resp3 in [false, true] {
        for pace in [Pace::OneByOne, Pace::Pipelined] {
            let run = Run { cache: Cache::Default, resp3, pace, prefixed: false };
            let sides = [Side::plain(direct.socket()), Side::plain(proxy.socket())];
            let mut oracle = Oracle { section, run, sides, complaints: Vec::new() };
            let mut judge = proxy.client();
            let lines: Vec<Line> =
                section.lines(run).into_iter().filter(|line| is_answered(&mut judge, name, line)).collect();
            assert!(lines.len() >= at_least, "{} lines of {name} are left", lines.len());
            oracle.say(&lines);
            oracle.leftovers();
            let [theirs, ours] = oracle.sides.each_mut().map(|side| contents(&mut side.control));
            if theirs != ours {
                oracle.complain(&format!("{name}: the data differ at the end:\n    {theirs:?}\n    {ours:?}"));
            }
            complaints.extend(oracle.complaints);
        }
    }
    assert!(complaints.is_empty(), "{} differ:\n{}", complaints.len(), complaints.join("\n"));
}

fn is_answered(judge: &mut Client, section: &str, line: &Line) -> bool {
    let Step::Exchange(exchange) = &line.step else { return true };
    // Keyspace events, which cannot be switched on.
    if section == "pubsub" && exchange.connection == "e" {
        return false;
    }
    let words = exchange.words();
    let Some(first) = words.first() else { return true };
    // A setting of each server's own; and bytes that no line of text can carry.
    if first.eq_ignore_ascii_case("config") || first.is_empty() {
        return false;
    }
    let mut asked = vec!["NEARSIDE", "EXPLAIN"];
    asked.extend(words.iter().take(2).map(String::as_str));
    !judge.cmd(&asked).get("reason").text().contains("needs an upstream")
}

/// All keys of all databases, with value and expiry.
fn contents(control: &mut Client) -> Vec<String> {
    let mut all = Vec::new();
    for db in 0..16 {
        assert_eq!(control.cmd(&["SELECT", &db.to_string()]), Reply::ok());
        for key in control.cmd(&["KEYS", "*"]).items() {
            let Reply::Bulk(key) = key else { panic!("{key:?}") };
            let (value, expires) = (control.cmd(&[b"GET", &key[..]]), control.cmd(&[b"PEXPIRETIME", &key[..]]));
            // What expires within a day was said relative to a clock.
            let far = if expires.int() > 9_000_000_000_000 { expires.int() } else { expires.int().signum() };
            all.push(format!("{db} {:?} {value:?} {far}", shown(&key)));
        }
    }
    all.sort();
    all
}

macro_rules! of_engine {
    ($($name:ident $at_least:literal)*) => {
        pub(super) mod engine {
            $(#[test] fn $name() { super::embedded(stringify!($name), $at_least); })*
        }
    };
}

of_engine! { strings 140 keys 60 databases 50 transactions 120 pubsub 60 errors 20 inline 30 handshake 40 }
