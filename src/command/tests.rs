//! The table and the key finder against what they must agree with: a real server's COMMAND and COMMAND GETKEYS, and the
//! observed reply forms in `tests/fixtures/resp-forms.tsv`.

mod prefix;

use std::collections::{BTreeMap, BTreeSet};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use redis::Value;

use super::table::{self, Lookup};
use super::{Effect, Keys, Kind, Need, Request, Resp2, Spec, Why, keys};
use crate::resp::downgrade::Form;
use crate::resp::request::Arg;

/// Rows that Redis 7.0 does not have.
const NEWER: &[&str] = &[
    "client|capa",
    "client|import-source",
    "client|maint_notifications",
    "client|no-touch",
    "client|setinfo",
    "cluster|myshardid",
    "cluster|slot-stats",
    "commandlog|get",
    "commandlog|help",
    "commandlog|len",
    "commandlog|reset",
    "hexpire",
    "hexpireat",
    "hexpiretime",
    "hgetdel",
    "hgetex",
    "hpersist",
    "hpexpire",
    "hpexpireat",
    "hpexpiretime",
    "hpttl",
    "hsetex",
    "httl",
    "nearside",
    "script|show",
    "vadd",
    "vcard",
    "vdim",
    "vemb",
    "vgetattr",
    "vinfo",
    "vismember",
    "vlinks",
    "vrandmember",
    "vrem",
    "vsetattr",
    "vsim",
    "waitaof",
];

/// Flagged write, but what they change is the function library, which no key names and no L1 entry depends on.
const WRITES_WITHOUT_KEYS: &[&str] = &["function|delete", "function|flush", "function|load", "function|restore"];

/// Not flagged write, but they change keys that nobody names: scripts, DEBUG's tools, a new master, moved slots.
const OPAQUE_WITHOUT_FLAG: &[&str] = &[
    "cluster|delslots",
    "cluster|delslotsrange",
    "cluster|failover",
    "cluster|flushslots",
    "cluster|replicate",
    "cluster|reset",
    "cluster|setslot",
    "debug",
    "eval",
    "evalsha",
    "failover",
    "fcall",
    "replicaof",
    "slaveof",
];

/// Flagged readonly, but not sent again: PFCOUNT stores its result in the key, a script may have run for long.
const READS_ONCE: &[&str] = &["eval_ro", "evalsha_ro", "fcall_ro", "pfcount"];

/// Not flagged readonly, but free of effects.
const KEYLESS_AGAIN: &[&str] = &["info", "echo", "ping", "time"];

/// Newer servers take fewer or more words: WITHSCORE since 7.2, COMMAND GETKEYS of one word since 7.4.
const LOOSENED: &[&str] = &["command|getkeys", "command|getkeysandflags", "zrank", "zrevrank"];

#[test]
fn rows_agree_with_the_servers_command() {
    let mut server = Server::start();
    let infos = server.commands();
    assert!(infos.len() > 300, "COMMAND gave {} entries", infos.len());
    let mut wrong = Vec::new();
    for (name, info) in &infos {
        match table::by_name(name.as_bytes()) {
            Some(row) => wrong.extend(contradictions(row, info).into_iter().map(|w| format!("{name}: {w}"))),
            None if info.container => wrong.extend((!is_container(name)).then(|| format!("{name}: no container"))),
            None => wrong.push(format!("{name}: no row")),
        }
    }
    for row in table::all().filter(|row| !infos.contains_key(row.name)) {
        if !NEWER.contains(&row.name) {
            wrong.push(format!("{}: a row the server does not know", row.name));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

fn contradictions(row: &Spec, info: &Info) -> Vec<String> {
    let has = |flag: &str| info.flags.contains(flag);
    let lists = |names: &[&str]| names.contains(&row.name);
    let mut wrong = Vec::new();
    let mut check = |ok: bool, what: &str| {
        if !ok {
            wrong.push(format!("{what}: {row:?} against {info:?}"));
        }
    };
    // As loose as the server at least: what it takes, `arity_ok` must let through.
    let looser = lists(LOOSENED) && row.arity < 0 && row.arity.abs() <= info.arity.abs();
    check(info.arity == row.arity || looser, "arity");
    let reads = row.effect == Effect::Read;
    check(!has("write") || !reads || lists(WRITES_WITHOUT_KEYS), "a write without effect");
    check(!has("readonly") || reads || row.name == "pfcount", "a read with an effect");
    let bare = !has("write") && !has("readonly");
    check(!bare || reads || lists(OPAQUE_WITHOUT_FLAG), "an effect that no flag explains");
    check(!row.resend || has("readonly") || lists(KEYLESS_AGAIN), "sent again");
    check(row.resend || !has("readonly") || lists(READS_ONCE), "a read not sent again");
    let may_wait = matches!(row.need, Need::LaneUnlessBlock | Need::Pinned(Why::Blocking));
    check(may_wait == (has("blocking") || row.kind == Kind::Wait), "blocking");
    check(!has("no_multi") || row.need != Need::Lane, "refused in MULTI, yet on the lane");
    check(!has("pubsub") || row.need != Need::Lane || !subscribes(row), "subscribes on the lane");
    check(keys_agree(row, info), "keys");
    wrong
}

fn subscribes(row: &Spec) -> bool {
    row.name.ends_with("subscribe")
}

/// `first, last, step` where they tell everything; where the server finds keys by code, our variant must be one of those
/// that `finds_the_keys_the_server_finds` exercises.
fn keys_agree(row: &Spec, info: &Info) -> bool {
    match row.keys {
        _ if info.not_keys => row.keys == Keys::None,
        Keys::None => info.first == 0 && !info.movable,
        Keys::Range { first, last, step } => {
            // SORT_RO moves only for BY and GET patterns, which name no single key.
            let stands = !info.movable || row.name == "sort_ro";
            stands && (i64::from(first), i64::from(last), i64::from(step)) == (info.first, info.last, info.step)
        }
        _ => info.movable,
    }
}

fn is_container(name: &str) -> bool {
    let lone = Words::new([name]);
    let unknown = Words::new([name, "no-such-subcommand"]);
    let alone = table::lookup(&lone.request());
    matches!(table::lookup(&unknown.request()), Lookup::UnknownSub)
        && (matches!(alone, Lookup::UnknownSub) || name == "command")
}

/// One request a line; what COMMAND GETKEYS answers is what `for_each` must find. `''` is the empty argument.
const REQUESTS: &str = "
    get k
    GET k
    mget a b c a
    mset a 1 b 2 c 3
    msetnx a 1 b 2
    set k v EX 10 GET
    getex k PERSIST
    lcs a b IDX
    append k v
    del a b c
    unlink a b
    exists a b a
    touch a b
    rename a b
    renamenx a b
    copy a b DB 3 REPLACE
    move k 1
    dump k
    restore k 0 payload REPLACE
    restore-asking k 0 payload
    expire k 10 NX
    object encoding k
    OBJECT Freq k
    object refcount k
    memory usage k SAMPLES 5
    xgroup create s g $ MKSTREAM
    xgroup createconsumer s g c
    xgroup delconsumer s g c
    xgroup destroy s g
    xgroup setid s g 0
    xinfo stream s FULL
    xinfo groups s
    xinfo consumers s g
    sort k
    sort k STORE d
    sort k by nosort get store store d
    sort k LIMIT 0 store ALPHA
    sort k LIMIT 0 1 GET # GET by STORE d
    sort k STORE d STORE e
    sort_ro k BY w_* GET #
    migrate host 6379 k 0 5000
    migrate host 6379 '' 0 5000 KEYS a b c
    migrate host 6379 '' 0 5000 COPY REPLACE AUTH keys KEYS a b
    migrate host 6379 '' 0 5000 AUTH2 keys keys KEYS a b
    lmpop 2 a b LEFT COUNT 3
    blmpop 0 3 a b c RIGHT
    zmpop 1 a MIN
    bzmpop 0.5 2 a b MAX COUNT 2
    blpop a b 0
    brpop a 1
    bzpopmin a b c 0
    bzpopmax a 0
    blmove a b LEFT RIGHT 0
    brpoplpush a b 0
    lmove a b LEFT RIGHT
    rpoplpush a b
    smove a b m
    sdiffstore d a b
    sinterstore d a b
    sunionstore d a
    sdiff a b
    sintercard 2 a b LIMIT 1
    zintercard 2 a b LIMIT 1
    zunionstore d 2 a b WEIGHTS 1 2 AGGREGATE MAX
    zinterstore d 1 a
    zdiffstore d 2 a b
    zunion 2 a b WITHSCORES
    zinter 2 a b WITHSCORES
    zdiff 2 a b
    zrangestore d s 0 -1
    zrange k 0 -1 WITHSCORES
    zadd k NX INCR 1 m
    bitop AND d a b c
    bitop NOT d a
    bitfield k GET u8 0
    bitfield_ro k GET u8 0
    georadius k 1 2 3 km
    georadius k 1 2 3 km STORE d
    georadius k 1 2 3 km WITHDIST COUNT 5 STOREDIST d
    georadius k 1 2 3 km STORE d STOREDIST e
    georadius k 1 2 3 km STORE
    georadiusbymember k m 3 km STORE d
    georadiusbymember k store 3 km
    georadius_ro k 1 2 3 km
    georadiusbymember_ro k m 3 km
    geosearchstore d s FROMMEMBER m BYRADIUS 1 km STOREDIST
    geosearch k FROMMEMBER m BYRADIUS 1 km
    eval return 0
    eval return 2 a b c
    eval return 1 a
    evalsha 0000 2 a b
    eval_ro return 2 a b x
    evalsha_ro 0000 1 a
    fcall f 2 a b x
    fcall_ro f 1 a
    xread STREAMS a 0
    xread COUNT 2 STREAMS a b 0 0
    xread BLOCK 0 COUNT 2 STREAMS a b c 0 0 0
    xread count 2 block 5 streams streams $
    xreadgroup GROUP g c STREAMS a >
    xreadgroup GROUP streams c COUNT 2 NOACK STREAMS a b > >
    xreadgroup group g streams block 0 streams a b > >
    xadd s MAXLEN 5 * f v
    xack s g 1-1
    xclaim s g c 0 1-1
    xautoclaim s g c 0 0
    xpending s g
    pfcount a b
    pfmerge d a b
    pfadd k e
    pfdebug decode k
    watch a b
    hrandfield k 2 WITHVALUES
    hset k f v
    spop k 2
    echo m
    scan 0 MATCH a COUNT 5
    publish c m
    swapdb 0 1
    flushall ASYNC
    script load x
    client setname k
    config set a b
";

#[test]
fn finds_the_keys_the_server_finds() {
    let mut server = Server::start();
    let mut wrong = Vec::new();
    for line in REQUESTS.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let words = Words::new(line.split_whitespace().map(|word| if word == "''" { "" } else { word }));
        let (ours, theirs) = (words.keys(), server.getkeys(&words));
        if ours != theirs {
            wrong.push(format!("{line}: {ours:?}, the server {theirs:?}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Every row that has its keys at fixed places, with as many words as its arity asks for and with up to three more.
#[test]
fn finds_the_keys_of_every_range_row() {
    let mut server = Server::start();
    let known = server.commands();
    for row in table::all().filter(|row| known.contains_key(row.name)) {
        let Keys::Range { .. } = row.keys else {
            continue;
        };
        for more in 0..4 {
            let words = Words::new(words_of(row, usize::from(row.arity.unsigned_abs()) + more));
            // COMMAND GETKEYS takes two words or more, and refuses half a pair and PFMERGE without a source.
            let refused = words.args.len() < 2
                || row.name == "pfmerge" && words.args.len() == 2
                || matches!(row.keys, Keys::Range { step: 2, .. }) && words.args.len().is_multiple_of(2);
            if keys::arity_ok(row, words.args.len()) && !refused && !LOOSENED.contains(&row.name) {
                assert_eq!(words.keys(), server.getkeys(&words), "{words:?}");
            }
        }
    }
}

fn words_of(row: &Spec, argc: usize) -> Vec<String> {
    let name = row.name.split('|').map(str::to_owned);
    let len = row.name.split('|').count();
    name.chain((len..argc).map(|i| format!("w{i}"))).collect()
}

/// The server's finder gives up on these; what can be found is still worth dropping, and nothing may panic.
#[test]
fn finds_what_is_there_in_malformed_requests() {
    let found = |line: &str| Words::new(line.split(' ')).keys();
    assert_eq!(found("eval return 5 a b"), ["a", "b"]);
    assert_eq!(found("eval return -1 a b"), [""; 0]);
    assert_eq!(found("eval return x a b"), [""; 0]);
    assert_eq!(found("eval return 99999999999999999999999999 a"), ["a"]);
    assert_eq!(found("eval return"), [""; 0]);
    assert_eq!(found("zunionstore d"), ["d"]);
    assert_eq!(found("mset a 1 b"), ["a", "b"]);
    assert_eq!(found("blpop"), [""; 0]);
    assert_eq!(found("copy a"), ["a"]);
    assert_eq!(found("migrate h 1 k 0 1 KEYS a"), ["k"]);
    assert_eq!(found("xread STREAMS"), [""; 0]);
    assert_eq!(found("sort"), [""; 0]);
    assert_eq!(found("sort k store"), ["k"]);
    assert_eq!(found("sort k STORE\0x d"), ["k", "d"]);
}

#[test]
fn blocks_where_upstream_would_wait() {
    let blocks = |line: &str| {
        let words = Words::new(line.split(' '));
        keys::blocks(words.row(), &words.request())
    };
    assert!(blocks("xread BLOCK 0 STREAMS a $"));
    assert!(blocks("xread COUNT 5 block 0 STREAMS a $"));
    assert!(blocks("xread BLOCK\0 0 STREAMS a $"));
    assert!(blocks("xreadgroup GROUP g c NOACK BLOCK 0 STREAMS a >"));
    assert!(blocks("xreadgroup GROUP g c CLAIM 5 BLOCK 0 STREAMS a >"));
    assert!(!blocks("xread STREAMS block 0"));
    assert!(!blocks("xread COUNT 5 STREAMS block 0"));
    assert!(!blocks("xreadgroup GROUP block c STREAMS a >"));
    assert!(!blocks("xreadgroup GROUP g block STREAMS a >"));
    assert!(!blocks("get block"));
}

#[test]
fn looks_up_as_a_server_does() {
    let lookup = |line: &str| {
        let words = Words::new(line.split_whitespace());
        match table::lookup(&words.request()) {
            Lookup::Known(spec) => spec.name,
            Lookup::UnknownSub => "(sub)",
            Lookup::Unknown => "(unknown)",
        }
    };
    assert_eq!(lookup("GeT k"), "get");
    assert_eq!(lookup("SET k v"), "set");
    assert_eq!(lookup("mGET k"), "mget");
    assert_eq!(lookup("\u{7}et k"), "(unknown)");
    assert_eq!(lookup("zRangeByScore k 0 1"), "zrangebyscore");
    assert_eq!(lookup("CLIENT SetName x"), "client|setname");
    assert_eq!(lookup("Restore-Asking k"), "restore-asking");
    assert_eq!(lookup("client"), "(sub)");
    assert_eq!(lookup("client no-such"), "(sub)");
    assert_eq!(lookup("client|setname x"), "(sub)");
    assert_eq!(lookup("client |setname"), "(sub)");
    assert_eq!(lookup("get|k"), "(sub)");
    assert_eq!(lookup("command"), "command");
    assert_eq!(lookup("command count"), "command|count");
    assert_eq!(lookup("command no-such"), "(sub)");
    assert_eq!(lookup("debug no-such"), "debug");
    assert_eq!(lookup("nearside stats"), "nearside");
    assert_eq!(lookup("ft.search i q"), "(unknown)");
    assert_eq!(lookup(""), "(unknown)");
    assert_eq!(lookup(&"x".repeat(1 << 20)), "(unknown)");
    let nothing = Request { raw: b"", args: &[] };
    assert!(matches!(table::lookup(&nothing), Lookup::Unknown));
}

#[test]
fn every_row_is_found_by_its_name_in_any_case() {
    let mut seen = BTreeSet::new();
    for row in table::all() {
        assert!(seen.insert(row.name), "{} has two rows", row.name);
        assert_eq!(row.name, row.name.to_ascii_lowercase());
        let upper = row.name.to_ascii_uppercase();
        assert!(std::ptr::eq(table::by_name(upper.as_bytes()).unwrap(), row));
        let words = Words::new(upper.split('|'));
        assert!(std::ptr::eq(words.row(), row), "{words:?}");
    }
    assert!(table::by_name(b"client").is_none());
    assert!(table::by_name(&[b'x'; 5000]).is_none());
}

#[test]
fn knows_the_names_that_browsers_send() {
    for name in ["POST", "post", "Host:", "post\0anything"] {
        assert!(table::is_cross_protocol(name.as_bytes()), "{name:?}");
    }
    for name in ["", "host", "posts", "get", "\0post"] {
        assert!(!table::is_cross_protocol(name.as_bytes()), "{name:?}");
    }
}

/// Rules of the brief that no flag of the server tells.
#[test]
fn connection_needs_follow_the_routing_table() {
    for row in table::all() {
        let pinned = matches!(row.need, Need::Pinned(_));
        match row.effect {
            Effect::Flush => assert_eq!(row.need, Need::Pinned(Why::MayBlock), "{}", row.name),
            Effect::SwapDb => assert_eq!(row.need, Need::Lane),
            Effect::Opaque => assert!(pinned || row.kind == Kind::Script, "{}", row.name),
            Effect::Read | Effect::Write => {}
        }
        assert!(!row.resend || row.effect == Effect::Read, "{}", row.name);
        assert!(!row.resend || matches!(row.need, Need::Lane | Need::LaneUnlessBlock), "{}", row.name);
        assert!(row.kind != Kind::BlockingPop || row.need == Need::Pinned(Why::Blocking), "{}", row.name);
        assert_eq!(row.kind == Kind::Client, row.name.starts_with("client|"), "{}", row.name);
        assert!(row.resp2 != Resp2::Direct || pinned, "{}: only ever pinned", row.name);
    }
}

/// Every observed form of every command's reply is one that the row's conversion gives exactly.
#[test]
fn reply_forms_agree_with_the_observed_ones() {
    let tsv = include_str!("../../tests/fixtures/resp-forms.tsv");
    let mut classes: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for line in tsv.lines().skip(1) {
        let cells: Vec<&str> = line.split('\t').collect();
        let &[command, form, class, null, _versions] = cells.as_slice() else { panic!("{line}") };
        let row = observed_row(command).unwrap_or_else(|| panic!("{command}: no row"));
        assert!(form_fits(row, form, class, null), "{line}: {:?} {:?}", row.resp2, row.need);
        classes.entry(row.name).or_default().insert(class);
    }
    for row in table::all() {
        let same = classes.get(row.name).is_some_and(|c| c.iter().all(|class| *class == "same"));
        assert!(!same || row.resp2 == Resp2::Same, "{}: converted for nothing", row.name);
        let newer = NEWER.contains(&row.name);
        assert!(newer || classes.contains_key(row.name), "{}: never observed", row.name);
    }
}

/// All DEBUG subcommands share one row.
fn observed_row(command: &str) -> Option<&'static Spec> {
    let name = if command.starts_with("DEBUG ") { "debug".into() } else { command.replace(' ', "|") };
    table::by_name(name.as_bytes())
}

fn form_fits(row: &Spec, form: &str, class: &str, null: &str) -> bool {
    let pinned_or_local = matches!(row.need, Need::Pinned(_) | Need::Local);
    match (class, null) {
        // The generic conversion leaves such bytes alone; Flatten and Pairs act on shapes that these forms do not have.
        ("same", _) => !matches!(row.resp2, Resp2::Pairs),
        (_, "direct=*-1;exec=$-1") => row.resp2 == Resp2::Direct,
        (_, "[1]=$-1;[2]=$-1;[3]=*-1") => resolved(row, form) == Form::Xpending,
        ("native", "*-1") => row.resp2 == Resp2::Pairs,
        // Pushes, HELLO, CLIENT LIST ...: not from a lane, where `native` is not Flatten. PING's is its subscribed form.
        ("native", _) => row.resp2 == Resp2::Flatten || pinned_or_local || row.kind == Kind::Ping,
        ("downgrade", "-") => matches!(resolved(row, form), Form::Bulk | Form::Array | Form::Flatten),
        ("downgrade", "$-1") => matches!(resolved(row, form), Form::Bulk | Form::Flatten),
        ("downgrade", "*-1") => resolved(row, form) == Form::Array,
        _ => false,
    }
}

/// The form of a request with as many words as the observed form names.
fn resolved(row: &Spec, form: &str) -> Form {
    let shown = if form == "-" { 0 } else { form.split(' ').count() };
    let words = Words::new(words_of(row, row.name.split('|').count() + shown));
    keys::form(row, &words.request())
}

#[test]
fn forms_depend_on_the_number_of_words() {
    let form = |line: &str| {
        let words = Words::new(line.split(' '));
        keys::form(words.row(), &words.request())
    };
    assert_eq!(form("lpop k"), Form::Bulk);
    assert_eq!(form("lpop k 2"), Form::Array);
    assert_eq!(form("zrank k m"), Form::Bulk);
    assert_eq!(form("zrank k m withscore"), Form::Array);
    assert_eq!(form("xpending s g"), Form::Xpending);
    assert_eq!(form("xpending s g - + 10"), Form::Same);
    assert_eq!(form("get k"), Form::Bulk);
    assert_eq!(form("blmove a b left left 0"), Form::Array);
}

fn any_word() -> impl Strategy<Value = Vec<u8>> {
    let words = [
        "",
        "0",
        "1",
        "2",
        "-1",
        "7",
        "18446744073709551615",
        "STREAMS",
        "block",
        "count",
        "GROUP",
        "store",
        "STOREDIST",
        "KEYS",
        "auth",
        "auth2",
        "by",
        "get",
        "limit",
        "a",
        "streams\0",
    ];
    prop_oneof![
        4 => prop::sample::select(words.to_vec()).prop_map(|word| word.as_bytes().to_vec()),
        1 => prop::collection::vec(any::<u8>(), 0..6),
    ]
}

proptest! {
    #[test]
    fn arbitrary_words_never_panic(words in prop::collection::vec(any_word(), 0..14)) {
        let words = Words::new(words);
        let req = words.request();
        let _ = table::lookup(&req);
        for row in table::all() {
            let mut found = 0;
            keys::for_each(row, &req, |key| {
                assert!(req.raw.as_ptr_range().contains(&key.as_ptr()) || key.is_empty());
                found += 1;
            });
            prop_assert!(found <= req.argc());
            let _ = (keys::blocks(row, &req), keys::form(row, &req), keys::arity_ok(row, req.argc()));
            for i in 0..req.argc() + 2 {
                prop_assert!(!keys::is_key_position(row, req.argc(), i) || i < req.argc());
            }
        }
    }

    #[test]
    fn arbitrary_names_never_panic(name in prop::collection::vec(any::<u8>(), 0..40), sub in any_word()) {
        let _ = (table::by_name(&name), table::is_cross_protocol(&name));
        let _ = table::lookup(&Words::new([name, sub]).request());
    }

    #[test]
    fn positions_are_those_of_the_keys(argc in 1usize..24) {
        for row in table::all().filter(|row| matches!(row.keys, Keys::Range { .. } | Keys::None)) {
            let words = Words::new((0..argc).map(|i| format!("w{i}")));
            let mut keys = Vec::new();
            keys::for_each(row, &words.request(), |key| keys.push(String::from_utf8_lossy(key).into_owned()));
            let positions = (0..argc).filter(|i| keys::is_key_position(row, argc, *i));
            prop_assert_eq!(keys, positions.map(|i| format!("w{i}")).collect::<Vec<_>>());
        }
    }
}

/// A request that owns its bytes.
#[derive(PartialEq)]
struct Words {
    raw: Vec<u8>,
    args: Vec<Arg>,
}

impl Words {
    fn new(words: impl IntoIterator<Item = impl AsRef<[u8]>>) -> Self {
        let (mut raw, mut args) = (Vec::new(), Vec::new());
        for word in words {
            let start = raw.len() as u32;
            raw.extend_from_slice(word.as_ref());
            args.push(Arg { start, end: raw.len() as u32 });
        }
        Self { raw, args }
    }

    fn request(&self) -> Request<'_> {
        Request { raw: &self.raw, args: &self.args }
    }

    fn row(&self) -> &'static Spec {
        match table::lookup(&self.request()) {
            Lookup::Known(row) => row,
            other => panic!("{self:?}: {other:?}"),
        }
    }

    fn keys(&self) -> Vec<String> {
        let mut found = Vec::new();
        keys::for_each(self.row(), &self.request(), |key| found.push(String::from_utf8_lossy(key).into_owned()));
        found
    }
}

impl std::fmt::Debug for Words {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let req = self.request();
        f.debug_list().entries((0..req.argc()).map(|i| String::from_utf8_lossy(req.arg(i)))).finish()
    }
}

/// What COMMAND says about one name.
#[derive(Debug)]
struct Info {
    arity: i16,
    flags: BTreeSet<String>,
    first: i64,
    last: i64,
    step: i64,
    /// The server finds the keys by code, not by `first, last, step` alone.
    movable: bool,
    /// All key specs are channels (SPUBLISH, SSUBSCRIBE).
    not_keys: bool,
    container: bool,
}

/// A redis-server of this test's own, on a socket in a directory that goes with it.
struct Server {
    con: redis::Connection,
    _process: Process,
    _dir: tempfile::TempDir,
}

/// Ends with its owner, also where a test gives up on it.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Server {
    /// It answers within milliseconds; a busy machine may take seconds to start a process.
    const START_MAX: Duration = Duration::from_secs(20);

    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("redis.sock");
        let process = Command::new("redis-server")
            .args(["--port", "0", "--save", "", "--unixsocket"])
            .arg(&socket)
            .current_dir(dir.path())
            .stdout(Stdio::null())
            .spawn()
            .map(Process)
            .expect("redis-server must be installed (tests/run does it)");
        let client = redis::Client::open(format!("redis+unix://{}", socket.display())).unwrap();
        let deadline = Instant::now() + Self::START_MAX;
        let con = loop {
            match client.get_connection() {
                Ok(con) => break con,
                Err(error) => assert!(Instant::now() < deadline, "no answer: {error}"),
            }
            std::thread::sleep(Duration::from_millis(2));
        };
        Self { con, _process: process, _dir: dir }
    }

    fn commands(&mut self) -> BTreeMap<String, Info> {
        let reply: Vec<Value> = redis::cmd("COMMAND").query(&mut self.con).unwrap();
        let mut infos = BTreeMap::new();
        reply.iter().for_each(|entry| collect_infos(entry, &mut infos));
        infos
    }

    fn getkeys(&mut self, words: &Words) -> Vec<String> {
        let req = words.request();
        let mut cmd = redis::cmd("COMMAND");
        cmd.arg("GETKEYS");
        for i in 0..req.argc() {
            cmd.arg(req.arg(i));
        }
        match cmd.query(&mut self.con) {
            Ok(keys) => keys,
            Err(error) if error.to_string().contains("no key arguments") => Vec::new(),
            Err(error) => panic!("{words:?}: {error}"),
        }
    }
}

fn collect_infos(entry: &Value, infos: &mut BTreeMap<String, Info>) {
    let cells = list(entry);
    let [name, arity, flags, first, last, step, _acl, _tips, specs, subs] = &cells[..] else { panic!("{entry:?}") };
    let flags: BTreeSet<String> = list(flags).iter().map(text).collect();
    let specs: Vec<Vec<String>> = list(specs).iter().map(spec_flags).collect();
    let info = Info {
        arity: redis::from_redis_value_ref(arity).unwrap(),
        movable: flags.contains("movablekeys"),
        flags,
        first: redis::from_redis_value_ref(first).unwrap(),
        last: redis::from_redis_value_ref(last).unwrap(),
        step: redis::from_redis_value_ref(step).unwrap(),
        not_keys: !specs.is_empty() && specs.iter().all(|flags| flags.iter().any(|flag| flag == "not_key")),
        container: !list(subs).is_empty(),
    };
    list(subs).iter().for_each(|sub| collect_infos(sub, infos));
    infos.insert(text(name), info);
}

/// The value behind `flags` of one key spec, a flat map in RESP2.
fn spec_flags(spec: &Value) -> Vec<String> {
    let cells = list(spec);
    let at = cells.iter().step_by(2).position(|key| text(key) == "flags").unwrap();
    list(&cells[at * 2 + 1]).iter().map(text).collect()
}

fn list(value: &Value) -> Vec<Value> {
    match value {
        Value::Array(cells) => cells.clone(),
        other => panic!("no array: {other:?}"),
    }
}

fn text(value: &Value) -> String {
    redis::from_redis_value_ref(value).unwrap_or_else(|_| panic!("no text: {value:?}"))
}
