//! `upstream.key_prefix`: every row of the table is rewritten so that a real server finds prefixed keys in it, or is refused
//! by name; and replies lose the prefix where they name keys, in one piece or in many.

use super::*;
use crate::command::prefix::{self, Outcome, Prefix};
use crate::command::strip::{self, Strip, Stripper};
use crate::resp::request::{Scan, Scanner};

const PREFIX: &str = "app[1]:";

fn own() -> Prefix {
    Prefix::new(PREFIX).expect("a prefix")
}

/// The request as it goes up; none where it is refused or takes several commands.
fn rewritten(words: &Words) -> Result<Words, Outcome> {
    let mut out = prefix::Words::default();
    let outcome = own().rewrite(words.row(), &words.request(), &mut out);
    let up = match outcome {
        Outcome::Same => words.request(),
        Outcome::Changed => out.request(),
        other => return Err(other),
    };
    Ok(Words::new((0..up.argc()).map(|i| up.arg(i).to_vec())))
}

fn of(line: &str) -> Words {
    Words::new(line.split_whitespace().map(|word| if word == "''" { "" } else { word }))
}

fn prefixed(keys: Vec<String>) -> Vec<String> {
    keys.into_iter().map(|key| format!("{PREFIX}{key}")).collect()
}

#[test]
fn the_server_finds_prefixed_keys_in_every_request() {
    let mut server = Server::start();
    let mut asked = 0;
    for line in REQUESTS.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let words = of(line);
        let Ok(up) = rewritten(&words) else { continue };
        assert_eq!(server.getkeys(&up), prefixed(server.getkeys(&words)), "{line}: {up:?}");
        asked += 1;
    }
    assert!(asked > 100, "{asked} requests were compared");
}

#[test]
fn the_server_finds_prefixed_keys_of_every_range_row() {
    let mut server = Server::start();
    let known = server.commands();
    for row in table::all().filter(|row| known.contains_key(row.name) && matches!(row.keys, Keys::Range { .. })) {
        // Half a pair and PFMERGE without a source are no requests.
        let argc = usize::from(row.arity.unsigned_abs());
        let words = Words::new(words_of(row, if row.arity < 0 { argc.max(3) } else { argc }));
        let up = rewritten(&words).expect("a row with keys");
        assert_eq!(server.getkeys(&up), prefixed(server.getkeys(&words)), "{words:?}");
    }
}

/// Rows without keys that go up as they are: nothing in them names a key, and nothing they answer or change is somebody
/// else's data. A new row without keys has to be judged and put here, into `prefix::rule`, or both.
const KEYLESS: &[&str] = &[
    "acl|cat",
    "acl|deluser",
    "acl|genpass",
    "acl|getuser",
    "acl|help",
    "acl|list",
    "acl|load",
    "acl|save",
    "acl|setuser",
    "acl|users",
    "acl|whoami",
    "asking",
    "auth",
    "bgrewriteaof",
    "bgsave",
    "client|caching",
    "client|capa",
    "client|getname",
    "client|getredir",
    "client|help",
    "client|id",
    "client|import-source",
    "client|info",
    "client|kill",
    "client|list",
    "client|maint_notifications",
    "client|no-evict",
    "client|no-touch",
    "client|pause",
    "client|reply",
    "client|setinfo",
    "client|setname",
    "client|trackinginfo",
    "client|unblock",
    "client|unpause",
    "cluster|addslots",
    "cluster|addslotsrange",
    "cluster|bumpepoch",
    "cluster|count-failure-reports",
    "cluster|forget",
    "cluster|help",
    "cluster|info",
    "cluster|links",
    "cluster|meet",
    "cluster|myid",
    "cluster|myshardid",
    "cluster|nodes",
    "cluster|replicas",
    "cluster|saveconfig",
    "cluster|set-config-epoch",
    "cluster|shards",
    "cluster|slaves",
    "cluster|slot-stats",
    "cluster|slots",
    "command",
    "commandlog|help",
    "command|count",
    "command|docs",
    "command|getkeys",
    "command|getkeysandflags",
    "command|help",
    "command|info",
    "command|list",
    "config|get",
    "config|help",
    "config|resetstat",
    "config|rewrite",
    "config|set",
    "discard",
    "echo",
    "exec",
    "function|delete",
    "function|dump",
    "function|flush",
    "function|help",
    "function|kill",
    "function|list",
    "function|load",
    "function|restore",
    "hello",
    "info",
    "lastsave",
    "latency|doctor",
    "latency|graph",
    "latency|help",
    "latency|histogram",
    "latency|history",
    "latency|latest",
    "latency|reset",
    "lolwut",
    "memory|doctor",
    "memory|help",
    "memory|malloc-stats",
    "memory|purge",
    "memory|stats",
    "module|help",
    "module|list",
    "module|load",
    "module|loadex",
    "module|unload",
    "multi",
    "nearside",
    "object|help",
    "pfselftest",
    "ping",
    "psync",
    "pubsub|help",
    "pubsub|numpat",
    "pubsub|shardchannels",
    "pubsub|shardnumsub",
    "quit",
    "readonly",
    "readwrite",
    "replconf",
    "reset",
    "role",
    "save",
    "script|debug",
    "script|exists",
    "script|flush",
    "script|help",
    "script|kill",
    "script|load",
    "script|show",
    "select",
    "shutdown",
    "slowlog|help",
    "spublish",
    "ssubscribe",
    "sunsubscribe",
    "sync",
    "time",
    "unwatch",
    "wait",
    "waitaof",
    "xgroup|help",
    "xinfo|help",
];

/// Rows that `prefix::rule` treats by name.
const BY_NAME: &[&str] = &[
    "acl|dryrun",
    "client|tracking",
    "cluster|keyslot",
    "debug",
    "keys",
    "psubscribe",
    "publish",
    "pubsub|channels",
    "pubsub|numsub",
    "punsubscribe",
    "scan",
    "subscribe",
    "unsubscribe",
];

const SEVERAL: &[&str] = &["flushall", "flushdb", "randomkey"];

/// Refused, whatever their words are.
const REFUSED: &[&str] = &[
    "acl|log",
    "cluster|countkeysinslot",
    "cluster|delslots",
    "cluster|delslotsrange",
    "cluster|failover",
    "cluster|flushslots",
    "cluster|getkeysinslot",
    "cluster|replicate",
    "cluster|reset",
    "cluster|setslot",
    "commandlog|get",
    "commandlog|len",
    "commandlog|reset",
    "dbsize",
    "failover",
    "function|stats",
    "monitor",
    "replicaof",
    "slaveof",
    "slowlog|get",
    "slowlog|len",
    "slowlog|reset",
    "swapdb",
];

#[test]
fn every_row_is_rewritten_or_refused_by_name() {
    for row in table::all() {
        let words = Words::new(words_of(row, usize::from(row.arity.unsigned_abs()).max(row.name.split('|').count())));
        let outcome = rewritten(&words);
        if row.keys != Keys::None {
            let up = outcome.unwrap_or_else(|o| panic!("{}: {o:?}", row.name));
            let keys = prefixed(words.keys());
            assert_eq!(up.keys(), keys, "{}", row.name);
            continue;
        }
        let expected = |list: &[&str]| list.contains(&row.name);
        let placed = [expected(KEYLESS), expected(BY_NAME), expected(SEVERAL), expected(REFUSED)];
        assert_eq!(placed.iter().filter(|in_it| **in_it).count(), 1, "{}: judge it", row.name);
        match outcome {
            Ok(up) => assert!(expected(BY_NAME) || (expected(KEYLESS) && up.raw == words.raw), "{}: {up:?}", row.name),
            Err(Outcome::Own) => assert!(expected(SEVERAL), "{}", row.name),
            Err(_) => assert!(expected(REFUSED) || row.name == "debug" || row.name == "acl|dryrun", "{}", row.name),
        }
    }
}

#[test]
fn patterns_options_and_channels_are_rewritten() {
    // P is the prefix, G the same in a glob.
    for (line, up) in [
        ("KEYS *", "KEYS G*"),
        ("KEYS h[ae]llo", "KEYS Gh[ae]llo"),
        ("SCAN 0", "SCAN 0 MATCH G*"),
        ("SCAN 5 COUNT 10 TYPE hash", "SCAN 5 MATCH G* COUNT 10 TYPE hash"),
        ("scan 0 match u:* count 3 MATCH v", "scan 0 match Gu:* count 3 MATCH Gv"),
        ("SCAN 0 COUNT", "SCAN 0 MATCH G* COUNT"),
        ("SCAN 0 COUNT match", "SCAN 0 MATCH G* COUNT match"),
        ("SORT k BY w_* GET # GET o_*->f STORE d", "SORT Pk BY Pw_* GET # GET Po_*->f STORE Pd"),
        ("SORT k BY nosort LIMIT 0 by GET get", "SORT Pk BY Pnosort LIMIT 0 by GET Pget"),
        ("sort_ro k by w_* get #", "sort_ro Pk by Pw_* get #"),
        ("SORT k GET", "SORT Pk GET"),
        ("GEORADIUS k 1 2 3 km STORE store STOREDIST d", "GEORADIUS Pk 1 2 3 km STORE Pstore STOREDIST Pd"),
        ("GEORADIUSBYMEMBER k m 3 km COUNT 5 STORE d", "GEORADIUSBYMEMBER Pk m 3 km COUNT 5 STORE Pd"),
        ("XREAD COUNT 2 STREAMS a b 0 0", "XREAD COUNT 2 STREAMS Pa Pb 0 0"),
        ("MIGRATE h 1 '' 0 9 KEYS a b", "MIGRATE h 1 '' 0 9 KEYS Pa Pb"),
        ("EVAL return 1 a arg", "EVAL return 1 Pa arg"),
        ("SUBSCRIBE c __keyspace@0__:k __keyevent@0__:del", "SUBSCRIBE c __keyspace@0__:Pk __keyevent@0__:del"),
        ("PSUBSCRIBE __keyspace@*__:k* __key*__:*", "PSUBSCRIBE __keyspace@*__:Gk* __key*__:*"),
        ("UNSUBSCRIBE __keyspace@0__:k", "UNSUBSCRIBE __keyspace@0__:Pk"),
        ("SUBSCRIBE c", "SUBSCRIBE c"),
        ("PUBLISH c m", "PUBLISH c m"),
        ("PUBLISH __keyspace@0__:k set", "PUBLISH __keyspace@0__:Pk set"),
        ("PUBLISH __keyevent@0__:set k", "PUBLISH __keyevent@0__:set Pk"),
        ("PUBSUB NUMSUB c __keyspace@0__:k", "PUBSUB NUMSUB c __keyspace@0__:Pk"),
        ("PUBSUB CHANNELS __keyspace@0__:*", "PUBSUB CHANNELS __keyspace@0__:G*"),
        ("CLIENT TRACKING ON", "CLIENT TRACKING ON"),
        ("CLIENT TRACKING ON BCAST", "CLIENT TRACKING ON BCAST PREFIX P"),
        ("CLIENT TRACKING ON BCAST PREFIX u: prefix v", "CLIENT TRACKING ON BCAST PREFIX Pu: prefix Pv"),
        ("CLIENT TRACKING ON REDIRECT bcast", "CLIENT TRACKING ON REDIRECT bcast"),
        ("CLUSTER KEYSLOT k", "CLUSTER KEYSLOT Pk"),
        ("COMMAND GETKEYS MGET a b", "COMMAND GETKEYS MGET a b"),
        ("ACL DRYRUN u MGET a b", "ACL DRYRUN u MGET Pa Pb"),
        ("ACL DRYRUN u SCAN 0", "ACL DRYRUN u SCAN 0 MATCH G*"),
        ("ACL DRYRUN u PING", "ACL DRYRUN u PING"),
        ("DEBUG OBJECT k", "DEBUG OBJECT Pk"),
        ("DEBUG DIGEST-VALUE a b", "DEBUG DIGEST-VALUE Pa Pb"),
        ("DEBUG SLEEP 0", "DEBUG SLEEP 0"),
        ("OBJECT ENCODING k", "OBJECT ENCODING Pk"),
        ("COPY a b DB 3 REPLACE", "COPY Pa Pb DB 3 REPLACE"),
    ] {
        let up = of(up);
        let expected: Vec<Vec<u8>> = (0..up.request().argc()).map(|i| expand(&up, i)).collect();
        assert_eq!(rewritten(&of(line)).expect(line), Words::new(expected), "{line}");
    }
}

/// A word of the table above: a P or G in front of what is behind, or within a channel, stands for the prefix.
fn expand(words: &Words, i: usize) -> Vec<u8> {
    let word = words.request().arg(i).to_vec();
    let text = String::from_utf8(word).expect("text");
    let command =
        ["PUBLISH", "PUBSUB", "PSUBSCRIBE", "GET", "GEORADIUS", "GEORADIUSBYMEMBER", "PREFIX", "PING", "GETKEYS"];
    let glob = "app\\[1]:";
    if command.contains(&text.as_str()) {
        return text.into_bytes();
    }
    let at = |mark: char| match text.split_once("__:") {
        Some((db, key)) if key.starts_with(mark) => Some((format!("{db}__:"), key[1..].to_owned())),
        _ => text.strip_prefix(mark).map(|key| (String::new(), key.to_owned())),
    };
    match (at('P'), at('G')) {
        (Some((db, key)), _) => format!("{db}{PREFIX}{key}").into_bytes(),
        (_, Some((db, key))) => format!("{db}{glob}{key}").into_bytes(),
        _ => text.into_bytes(),
    }
}

#[test]
fn what_cannot_be_told_is_refused() {
    for line in ["DEBUG RELOAD", "DEBUG POPULATE 5", "ACL DRYRUN u MODULE.CMD k", "ACL DRYRUN u DBSIZE"] {
        assert!(matches!(rewritten(&of(line)), Err(Outcome::Refused(_))), "{line}");
    }
    assert!(
        prefix::may_name_keys(b"OBJECT") && prefix::may_name_keys(b"object|x") && !prefix::may_name_keys(b"client")
    );
}

/// The scanner reads what was written, and finds the same words.
#[test]
fn a_rewritten_request_is_one() {
    let mut out = prefix::Words::default();
    let words = of("MSET a 1 b 22 c 333");
    assert_eq!(own().rewrite(words.row(), &words.request(), &mut out), Outcome::Changed);
    let up = out.request();
    let mut scanner = Scanner::new(1 << 20, 1 << 20);
    assert_eq!(scanner.scan(up.raw), Scan::Request { len: up.raw.len() });
    assert_eq!(scanner.args(), up.args);
}

#[test]
fn keys_of_a_streamed_request_are_those_of_a_whole_one() {
    let streamed =
        ["mset a 1 b 2", "del a b c", "set k v", "eval return 2 a b c", "zunionstore d 2 a b", "bitop AND d a b"];
    for line in streamed {
        let words = of(line);
        let (row, req) = (words.row(), words.request());
        let mut counted = 0;
        let mut found = Vec::new();
        for i in 0..req.argc() {
            if prefix::key_in_part(row, req.argc(), i, counted).expect(line) {
                found.push(String::from_utf8_lossy(req.arg(i)).into_owned());
            }
            counted = prefix::counted(row, i, req.arg(i)).unwrap_or(counted);
        }
        assert_eq!(found, words.keys(), "{line}");
    }
    for line in
        ["sort k STORE d", "xread STREAMS a 0", "keys *", "georadius k 1 2 3 km", "dbsize", "scan 0", "flushall"]
    {
        assert_eq!(prefix::key_in_part(of(line).row(), 9, 3, 0), None, "{line}");
    }
}

/// A shape, a reply of upstream's with the prefix as P, and what the client gets.
const REPLIES: &[(Strip, &str, &str)] = &[
    (Strip::Keys, "*3 $P $Pa $Pbc", "*3 $ $a $bc"),
    (Strip::Keys, "*0", "*0"),
    (Strip::Scan, "*2 $17 *2 $Pa $Pb", "*2 $17 *2 $a $b"),
    (Strip::First, "*2 $Pq $Pvalue", "*2 $q $Pvalue"),
    (Strip::First, "*3 $Pz $m ,1.5", "*3 $z $m ,1.5"),
    (Strip::First, "*2 $Pz *2 *2 $Pm $1 *2 $n $2", "*2 $z *2 *2 $Pm $1 *2 $n $2"),
    (Strip::First, "_", "_"),
    (Strip::First, "*-1", "*-1"),
    (Strip::Streams, "%2 $Ps *1 *2 $1-1 *2 $Pf $v $Pt *0", "%2 $s *1 *2 $1-1 *2 $Pf $v $t *0"),
    (Strip::Streams, "*2 *2 $Ps *1 *2 $1-1 *2 $Pf $v *2 $Pt *0", "*2 *2 $s *1 *2 $1-1 *2 $Pf $v *2 $t *0"),
    (Strip::ChannelCounts, "*4 $c :1 $__keyspace@0__:Pk :2", "*4 $c :1 $__keyspace@0__:k :2"),
    (
        Strip::Prefixes,
        "%3 $flags ~1 $bcast $redirect :-1 $prefixes *2 $P $Pu:",
        "%3 $flags ~1 $bcast $redirect :-1 $prefixes *2 $ $u:",
    ),
    (Strip::None, "*2 $Pa $Pb", "*2 $Pa $Pb"),
    (Strip::Keys, "|1 $k $v *1 $Pa", "|1 $k $v *1 $a"),
];

/// One word is one frame's line; a bulk's text stands behind its `$`.
fn frames(text: &str, prefix: &str) -> Vec<u8> {
    let mut out = Vec::new();
    for word in text.split(' ') {
        let word = word.replace('P', prefix);
        match word.strip_prefix('$') {
            Some(text) => out.extend_from_slice(format!("${}\r\n{text}\r\n", text.len()).as_bytes()),
            None => out.extend_from_slice(format!("{word}\r\n").as_bytes()),
        }
    }
    out
}

#[test]
fn replies_lose_the_prefix_where_they_name_keys() {
    for (strip, upstream, client) in REPLIES {
        let frame = frames(upstream, PREFIX);
        let got = strip::whole(&own(), *strip, &frame, &|_| None);
        assert_eq!(got.escape_ascii().to_string(), frames(client, PREFIX).escape_ascii().to_string(), "{upstream}");
        // Cut anywhere, it is the same.
        for cut in 0..frame.len() {
            let mut out = bytes::BytesMut::new();
            let mut stripper = Stripper::new(*strip);
            stripper.feed(&own(), &frame[..cut], &mut out, &|_| None);
            stripper.feed(&own(), &frame[cut..], &mut out, &|_| None);
            assert_eq!(out, got, "{upstream} cut at {cut}");
        }
    }
}

#[test]
fn an_exec_is_stripped_by_what_was_queued_and_pushes_in_its_midst_are_asked_about() {
    let frame = frames("*4 $Pa *2 $0 *1 $Pb >2 $invalidate *1 $Px *1 $Pc +Pd", PREFIX);
    let queued = vec![Strip::None, Strip::Scan, Strip::Keys, Strip::None];
    let push = |frame: &[u8]| frame.starts_with(b">2").then(|| b">1\r\n$1\r\np\r\n".to_vec());
    let got = strip::exec(&own(), queued.clone(), &frame, &push);
    let expected = frames("*4 $Pa *2 $0 *1 $b >1 $p *1 $c +Pd", PREFIX);
    assert_eq!(got.escape_ascii().to_string(), expected.escape_ascii().to_string());
    let mut out = bytes::BytesMut::new();
    let mut stripper = Stripper::exec(queued);
    frame.iter().for_each(|byte| stripper.feed(&own(), &[*byte], &mut out, &push));
    assert_eq!(out, expected);
}

#[test]
fn somebody_elses_keyspace_channels_are_left_out() {
    let channels = frames("*3 $c $__keyspace@0__:Pk $__keyspace@0__:other:k", PREFIX);
    let got = strip::whole(&own(), Strip::Channels, &channels, &|_| None);
    assert_eq!(got, frames("*2 $c $__keyspace@0__:k", PREFIX));
    // In a reply that is streamed, their number has been said before they are seen.
    let mut out = bytes::BytesMut::new();
    Stripper::new(Strip::Channels).feed(&own(), &channels, &mut out, &|_| None);
    assert_eq!(out, frames("*3 $c $__keyspace@0__:k $", PREFIX));
}

#[test]
fn errors_quote_the_clients_names() {
    let of = |text: &str| strip::whole(&own(), Strip::None, text.as_bytes(), &|_| None);
    assert_eq!(of("-ERR 'app[1]:k' and 'app[1]:l'\r\n"), b"-ERR 'k' and 'l'\r\n");
    assert_eq!(of("-WRONGTYPE nothing to quote\r\n"), b"-WRONGTYPE nothing to quote\r\n");
    let dry = frames("$the_'Pk'_key", PREFIX);
    assert_eq!(strip::whole(&own(), Strip::Quoted, &dry, &|_| None), frames("$the_'k'_key", PREFIX));
}

#[test]
fn a_prefix_is_escaped_in_globs_only() {
    let odd = Prefix::new("a?[\\]:").expect("a prefix");
    assert_eq!(odd.glob(b"*"), b"a\\?\\[\\\\]:*");
    assert_eq!(odd.key(b"k"), b"a?[\\]:k");
    assert_eq!(odd.own(b"a?[\\]:k"), Some(&b"k"[..]));
    assert_eq!(odd.own(b"ax[\\]:k"), None);
    assert!(Prefix::new("").is_none());
}

proptest! {
    #[test]
    fn arbitrary_requests_never_panic(words in prop::collection::vec(any_word(), 1..14)) {
        let words = Words::new(words);
        for row in table::all() {
            let mut out = prefix::Words::default();
            if own().rewrite(row, &words.request(), &mut out) == Outcome::Changed {
                let up = out.request();
                prop_assert!(up.argc() >= words.args.len());
                prop_assert!(up.args.last().is_none_or(|arg| arg.end as usize + 2 == up.raw.len()));
            }
            for i in 0..words.args.len() {
                let _ = prefix::key_in_part(row, words.args.len(), i, 3);
            }
        }
    }
}
