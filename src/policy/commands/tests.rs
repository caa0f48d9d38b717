use super::*;
use crate::command::Request;
use crate::command::table::Lookup;
use crate::config::Config;
use crate::resp::request::{Scan, Scanner};

fn words(words: &[&str]) -> Vec<Word> {
    let word = |text: &&str| match text.chars().next() {
        Some('~') => Word::Key(text[1..].to_owned()),
        Some('@') if *text == "@all" => Word::All,
        Some('@') => Word::Category(text[1..].to_owned()),
        _ => Word::Command((*text).to_owned()),
    };
    words.iter().map(word).collect()
}

fn commands(deny: &[&str], allow: Option<&[&str]>) -> Commands {
    Commands { deny: words(deny), allow: allow.map(words), ..Config::for_tests("redis://h").commands }
}

/// Why the request is refused, in the words of its client.
fn refusal(rights: &Rights, line: &str) -> Option<String> {
    let mut scanner = Scanner::new(1 << 20, 1 << 20);
    let line = format!("{line}\r\n");
    assert!(matches!(scanner.scan(line.as_bytes()), Scan::Inline { .. }), "{line}");
    let req = Request { raw: scanner.inline(), args: scanner.args() };
    let Lookup::Known(spec) = table::lookup(&req) else { panic!("{line}: no row") };
    let found = rights.refuses(spec, &req, None);
    assert_eq!(found.is_none(), rights.leaves_free(spec) || found.is_none());
    found.map(|denial| denial.text(spec.name))
}

/// The rule that refuses each line; `-` for none.
fn assert_refused(deny: &[&str], allow: Option<&[&str]>, rows: &[(&str, &str)]) {
    let policy = Policy::new(&commands(deny, allow));
    for (line, by) in rows {
        let text = refusal(policy.rights(0), line);
        let told = text.as_deref().map_or("-", |text| text.rsplit_once('(').expect("a rule").1.trim_end_matches(')'));
        assert_eq!(told, *by, "{line} under deny {deny:?} allow {allow:?}: {text:?}");
    }
}

#[test]
fn nothing_is_refused_by_default() {
    let policy = Policy::new(&Config::for_tests("redis://h").commands);
    assert!(policy.is_open());
    assert_eq!(policy.mode(), PolicyMode::Off);
    for spec in table::all() {
        assert!(policy.rights(0).leaves_free(spec), "{}", spec.name);
    }
}

#[test]
fn names_subcommands_and_categories() {
    let dangerous = "commands.deny: @dangerous";
    assert_refused(
        &["@dangerous", "client|kill", "object"],
        None,
        &[
            ("FLUSHALL", dangerous),
            ("keys *", dangerous),
            ("CONFIG GET x", dangerous),
            ("CLIENT KILL 1", dangerous),
            ("CLIENT GETNAME", "-"),
            ("OBJECT ENCODING k", "commands.deny: object"),
            ("OBJECT HELP", "commands.deny: object"),
            ("GET k", "-"),
            ("MULTI", "-"),
        ],
    );
    assert_refused(&["client|kill"], None, &[("CLIENT KILL 1", "commands.deny: client|kill"), ("CLIENT LIST", "-")]);
    assert_refused(&["@all"], None, &[("PING", "commands.deny: @all"), ("GET k", "commands.deny: @all")]);
    // Not a prefix of letters: `get` is not `getset`.
    assert_refused(&["get"], None, &[("GET k", "commands.deny: get"), ("GETSET k v", "-"), ("GETEX k", "-")]);
}

#[test]
fn the_first_word_that_covers_it_is_named() {
    assert_refused(&["~x", "@write", "set"], None, &[("SET k v", "commands.deny: @write")]);
}

#[test]
fn the_way_in_and_our_own_are_refused_only_by_name() {
    let rows = [("AUTH p", "-"), ("HELLO 3", "-"), ("QUIT", "-"), ("RESET", "-"), ("NEARSIDE STATS", "-")];
    assert_refused(&["@all"], None, &rows);
    assert_refused(&["@connection"], Some(&["get"]), &rows);
    assert_refused(
        &["reset", "nearside"],
        None,
        &[("RESET", "commands.deny: reset"), ("NEARSIDE STATS", "commands.deny: nearside"), ("QUIT", "-")],
    );
}

#[test]
fn whatever_allow_does_not_name() {
    assert_refused(
        &[],
        Some(&["@read", "set", "client|setname"]),
        &[
            ("GET k", "-"),
            ("SET k v", "-"),
            ("CLIENT SETNAME x", "-"),
            ("CLIENT GETNAME", "commands.allow: not named"),
            ("DEL k", "commands.allow: not named"),
            ("MULTI", "commands.allow: not named"),
        ],
    );
    // deny decides first.
    assert_refused(&["keys"], Some(&["@read"]), &[("KEYS *", "commands.deny: keys"), ("GET k", "-")]);
    assert_refused(&[], Some(&["@all"]), &[("SHUTDOWN", "-")]);
}

#[test]
fn keys_that_deny_matches() {
    let by = "commands.deny: ~secret:*";
    assert_refused(
        &["~secret:*"],
        None,
        &[
            ("GET secret:1", by),
            ("GET open:1", "-"),
            ("MGET a b secret:2", by),
            ("MSET a secret:1 secret:2 x", by),
            ("MSET a secret:1", "-"),
            ("EVAL x 2 a secret:1", by),
            ("EVAL x 1 a secret:1", "-"),
            ("XREAD STREAMS a secret:s 0 0", by),
            ("SORT k STORE secret:d", by),
            ("SORT k BY nosort GET #", "-"),
            ("SORT k BY w_*", by),
            ("SORT_RO k GET data_*", by),
            ("COPY a secret:b", by),
            ("OBJECT ENCODING secret:1", by),
            ("MIGRATE h 1 '' 0 5 KEYS a secret:1", by),
            ("NEARSIDE DELETE PATTERN *", by),
            ("NEARSIDE ENTRY secret:1", "-"),
            ("FLUSHALL", "-"),
            ("KEYS secret:*", "-"),
        ],
    );
}

#[test]
fn keys_that_allow_does_not_match() {
    let out = "commands.allow: no pattern matches";
    assert_refused(
        &[],
        Some(&["~app:*", "~shared"]),
        &[
            ("GET app:1", "-"),
            ("SET shared v", "-"),
            ("GET other", out),
            ("MGET app:1 other", out),
            ("PING", "-"),
            ("NEARSIDE DELETE PATTERN x", "commands.allow: has patterns of keys"),
        ],
    );
    assert_refused(
        &["~app:secret"],
        Some(&["~app:*", "@read"]),
        &[
            ("GET app:1", "-"),
            ("SET app:1 v", "commands.allow: not named"),
            ("GET app:secret", "commands.deny: ~app:secret"),
        ],
    );
}

#[test]
fn errors_are_worded_as_clients_know_them() {
    let policy = Policy::new(&commands(&["~s*", "flushall"], Some(&["@all"])));
    let told = |line| refusal(policy.rights(0), line).expect(line);
    assert_eq!(
        told("FLUSHALL"),
        "NOPERM nearside policy: no permissions to run the 'flushall' command (commands.deny: flushall)"
    );
    assert_eq!(
        told("GET s1"),
        "NOPERM nearside policy: no permissions to access one of the keys used as arguments of 'get' (commands.deny: ~s*)"
    );
    assert_eq!(
        told("SORT k BY a_*"),
        "NOPERM nearside policy: no permissions to run the 'sort' command, whose keys are not known (commands.deny: ~s*)"
    );
    let what =
        Unlisted { name: "x", categories: Categories::NONE, surely: Categories::NONE, keys: UnlistedKeys::Unknown };
    let text =
        policy.rights(0).refuses_unlisted(&what).expect("hidden keys").text(&("x\r\n".to_owned() + &"y".repeat(100)));
    assert!(text.starts_with("NOPERM nearside policy: no permissions to run the 'x\\r\\nyyy"), "{text}");
    assert!(text.len() < 200, "{text}");
}

#[test]
fn a_command_that_the_table_does_not_have() {
    let named = |word| Categories::named(word).expect("a category");
    let (write, read) = (named("write"), named("read"));
    let told = |deny: &[&str], allow: Option<&[&str]>, name: &str, surely: Categories, keys: UnlistedKeys<'_>| {
        let policy = Policy::new(&commands(deny, allow));
        let categories = surely.union(if name.contains('|') { named("dangerous") } else { Categories::NONE });
        policy.rights(0).refuses_unlisted(&Unlisted { name, categories, surely, keys }).map(|denial| denial.by)
    };
    let by = |rule: &str| Some(rule.to_owned());
    let none = UnlistedKeys::None;
    assert_eq!(told(&["ft.search"], None, "ft.search", read, none), by("commands.deny: ft.search"));
    assert_eq!(told(&["@write"], None, "json.set", write, none), by("commands.deny: @write"));
    assert_eq!(told(&["@write"], None, "json.get", read, none), None);
    assert_eq!(told(&[], Some(&["@read"]), "json.get", read, none), None);
    assert_eq!(told(&[], Some(&["@read"]), "nonsense", Categories::NONE, none), by("commands.allow: not named"));
    // A container's new subcommand: the worst for deny, nothing for allow.
    assert_eq!(told(&["@dangerous"], None, "client|new", read, none), by("commands.deny: @dangerous"));
    assert_eq!(told(&[], Some(&["@dangerous"]), "client|new", read, none), by("commands.allow: not named"));
    assert_eq!(told(&["client"], None, "client|new", read, none), by("commands.deny: client"));
    // Keys.
    assert_eq!(told(&["~s"], None, "json.get", read, UnlistedKeys::One(b"s")), by("commands.deny: ~s"));
    assert_eq!(told(&["~s"], None, "json.get", read, UnlistedKeys::One(b"t")), None);
    assert_eq!(told(&["~s"], None, "json.set", write, UnlistedKeys::Unknown), by("commands.deny: ~s"));
    assert_eq!(told(&["get"], None, "json.set", write, UnlistedKeys::Unknown), None);
    let unexplained = Policy::new(&commands(&["get"], None)).rights(0).refuses_unexplained();
    assert!(unexplained.is_some_and(|denial| denial.by.contains("could not be asked")));
    assert_eq!(Policy::open().rights(0).refuses_unexplained(), None);
}

fn who(client: Option<&str>, user: Option<&str>, listener: Option<Listener>) -> Who {
    Who { client: client.map(str::to_owned), user: user.map(str::to_owned), listener }
}

#[test]
fn the_first_override_that_fits_decides_as_far_as_it_says() {
    let tcp: SocketAddr = "127.0.0.1:6380".parse().expect("an address");
    let of = |who, deny: Option<&[&str]>, allow: Option<&[&str]>, enforce| Override {
        who,
        deny: deny.map(words),
        allow: allow.map(words),
        enforce,
    };
    let overrides = vec![
        of(who(Some("batch-*"), None, Some(Listener::Unix)), Some(&[]), None, None),
        of(who(Some("batch-*"), None, None), None, Some(&["get"]), None),
        of(who(None, Some("ops"), Some(Listener::Address(tcp))), None, None, Some(false)),
    ];
    let policy = Policy::new(&Commands { overrides, ..commands(&["flushall"], None) });
    let number = |name: &str, user: &str, listener: Option<SocketAddr>| {
        policy.rights_of(&Caller { name: name.as_bytes(), user: user.as_bytes(), listener })
    };
    assert_eq!(number("", "default", Some(tcp)), 0);
    assert_eq!(number("batch-1", "default", None), 1);
    assert_eq!(number("batch-1", "default", Some(tcp)), 2);
    assert_eq!(number("x", "ops", Some(tcp)), 3);
    assert_eq!(number("x", "ops", "127.0.0.1:1".parse().ok()), 0);
    assert_eq!(refusal(policy.rights(1), "FLUSHALL"), None);
    let by =
        |number, line| refusal(policy.rights(number), line).expect(line).rsplit_once('(').expect("a rule").1.to_owned();
    // What it does not give is as in commands.
    assert_eq!(by(2, "FLUSHALL"), "commands.deny: flushall)");
    assert_eq!(by(2, "SET k v"), "commands.overrides[1].allow: not named)");
    assert_eq!(by(3, "FLUSHALL"), "commands.deny: flushall)");
    assert!(policy.rights(2).enforces() && !policy.rights(3).enforces());
    assert_eq!(policy.mode(), PolicyMode::Enforce);
}

#[test]
fn an_override_alone_is_a_policy_and_rates_alone_judge_nothing() {
    let deny = Override { who: who(Some("x"), None, None), deny: Some(words(&["get"])), ..Override::default() };
    let policy = Policy::new(&Commands { overrides: vec![deny], ..commands(&[], None) });
    assert!(!policy.is_open() && policy.rights(0).is_open());
    assert!(refusal(policy.rights(1), "GET k").is_some_and(|text| text.contains("(commands.overrides[0].deny: get)")));
    let rate = Rate {
        who: who(None, Some("app"), Some(Listener::Tcp)),
        per_second: 5,
        burst: 5,
        on_limit: OnLimit::Wait,
        scope: Scope::Shared,
    };
    let policy = Policy::new(&Commands { rate: vec![rate], ..commands(&[], None) });
    assert!(!policy.is_open() && policy.judges_nothing() && policy.paces());
    let rates = |user: &str, listener: Option<&str>| {
        let listener = listener.map(|at| at.parse().expect("an address"));
        policy.rates_of(&Caller { name: b"", user: user.as_bytes(), listener }).count()
    };
    assert_eq!((rates("app", Some("[::1]:1")), rates("app", None), rates("b", Some("[::1]:1"))), (1, 0, 0));
}

#[test]
fn what_is_only_logged() {
    let policy = Policy::new(&Commands { enforce: false, ..commands(&["get"], None) });
    assert_eq!(policy.mode(), PolicyMode::Log);
    assert!(!policy.rights(0).enforces() && refusal(policy.rights(0), "GET k").is_some());
}

#[test]
fn every_command_reads_writes_executes_or_administers() {
    let policy = Policy::new(&commands(&["get"], None));
    let of = |name: &[u8]| policy.action(table::by_name(name).expect("a row"));
    for (name, action) in [
        (&b"get"[..], Action::Read),
        (b"keys", Action::Read),
        (b"set", Action::Write),
        (b"flushall", Action::Write),
        (b"eval", Action::Execute),
        (b"function|load", Action::Execute),
        (b"multi", Action::Execute),
        (b"publish", Action::Execute),
        (b"ping", Action::Execute),
        (b"config|set", Action::Admin),
        (b"info", Action::Admin),
        (b"client|kill", Action::Admin),
    ] {
        assert_eq!(of(name), action, "{}", String::from_utf8_lossy(name));
    }
    assert_eq!(policy.action(&table::JSON_GET), Action::Read);
}
