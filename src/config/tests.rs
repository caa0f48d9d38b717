use std::{io::Write as _, time::Duration};

use proptest::prelude::*;

use super::{keys::KEYS, *};
use crate::command::table;
use crate::observe::reasons::Method;

const DOCUMENTED: &str = include_str!("../../config/nearside.yaml");

fn env<'e>(vars: &'e [(&'e str, &'e str)]) -> impl Iterator<Item = (String, String)> + 'e {
    vars.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
}

/// A file that stays for the length of a test, and the overrides that name it.
struct Written {
    file: tempfile::NamedTempFile,
}

impl Written {
    fn new(yaml: &str) -> Written {
        let mut file = tempfile::Builder::new().suffix(".yaml").tempfile().unwrap();
        file.write_all(yaml.as_bytes()).unwrap();
        Written { file }
    }

    fn path(&self) -> String {
        self.file.path().display().to_string()
    }

    fn overrides(&self) -> Overrides {
        let mut overrides = Overrides::default();
        overrides.file(Some(self.path()));
        overrides
    }

    fn load(&self, vars: &[(&str, &str)]) -> Result<(Config, Vec<String>), ConfigError> {
        load_within(&self.overrides(), env(vars), None)
    }
}

const UPSTREAM: (&str, &str) = ("NEARSIDE_UPSTREAM__URL", "redis://h");

fn loaded(yaml: &str) -> Config {
    Written::new(yaml).load(&[UPSTREAM]).unwrap().0
}

/// The problems, with the file's own path taken away.
fn problems(yaml: &str) -> Vec<String> {
    let file = Written::new(yaml);
    let error = file.load(&[UPSTREAM]).unwrap_err();
    error.problems.iter().map(|p| p.replace(&file.path(), "x.yaml")).collect()
}

fn from_env(vars: &[(&str, &str)]) -> Result<(Config, Vec<String>), ConfigError> {
    load_within(&Overrides::default(), env(vars), None)
}

fn env_problem(vars: &[(&str, &str)]) -> String {
    from_env(vars).unwrap_err().to_string()
}

#[test]
fn the_defaults_are_those_of_the_design() {
    let config = Config::for_tests("redis://127.0.0.1:6379");
    assert_eq!(config.environment, Environment::Development);
    assert_eq!(config.listen.tcp.len(), 2);
    assert!(config.listen.tcp_is_default);
    assert_eq!(config.listen.unix_mode, 0o660);
    assert_eq!(config.listen.output_limit, 64 << 20);
    assert_eq!(config.listen.query_limit, 1 << 30);
    assert_eq!(config.listen.idle_timeout, None);
    assert_eq!(config.listen.drain_timeout, Duration::from_secs(10));
    assert_eq!(config.upstream.request_timeout, None);
    assert_eq!(config.upstream.retry.base_delay, Duration::from_millis(50));
    assert_eq!(config.cache.max_bytes, 256 << 20);
    assert_eq!(config.cache.default_ttl, Duration::from_secs(300));
    assert_eq!(config.cache.on_write, OnWrite::Update);
    assert_eq!(config.coherence.max_staleness, Duration::from_secs(1));
    assert_eq!(config.coherence.channel, "nearside:invalidate");
    assert_eq!(config.coherence.sample_per_second, 1);
    assert_eq!(config.coherence.mode, CoherenceMode::Auto);
    assert_eq!(config.coherence.ttl_cap.pubsub, Duration::from_secs(5));
    assert_eq!(config.coherence.canary, Canary::Start);
    assert_eq!(config.upstream.stall_timeout, Some(Duration::from_secs(8)));
    assert_eq!(config.cache.refills_max, 256);
    assert_eq!(config.outage.max_stale, Duration::from_secs(300));
    assert_eq!((config.outage.reads.as_str(), config.outage.writes.as_str()), ("stale", "fail"));
    assert_eq!(config.outage.error, OutageError::Reply);
    assert_eq!((config.outage.journal_dir.as_deref(), config.outage.journal_max_bytes), (None, 256 << 20));
    assert_eq!(config.outage.journal_fsync.as_str(), "everysec");
    assert_eq!(config.http.listen, ["127.0.0.1:9380".parse().unwrap()]);
    assert_eq!(config.log.level, tracing::Level::INFO);
}

#[test]
fn the_documented_file_is_the_defaults() {
    let (config, warnings) = Written::new(DOCUMENTED).load(&[UPSTREAM]).unwrap();
    assert_eq!(config, Config::for_tests("redis://h"));
    assert!(warnings.is_empty(), "{warnings:?}");
}

#[test]
fn the_documented_file_names_every_key_with_a_comment_above_its_line_or_section() {
    let mut sections: Vec<&str> = Vec::new();
    let mut named: Vec<String> = Vec::new();
    let mut commented = false;
    for line in DOCUMENTED.lines() {
        let text = line.trim_start();
        let Some((word, rest)) = text.split_once(':').filter(|_| !text.starts_with('#')) else {
            commented = text.starts_with('#') || (commented && !text.is_empty());
            continue;
        };
        sections.truncate((line.len() - text.len()) / 2);
        if rest.is_empty() {
            sections.push(word);
        } else {
            assert!(commented, "{word} has no comment");
            named.push([sections.as_slice(), &[word]].concat().join("."));
        }
    }
    assert_eq!(named, KEYS);
}

#[test]
fn every_key_is_read() {
    for key in KEYS {
        let variable = format!("NEARSIDE_{}", key.replace('.', "__").to_uppercase());
        // A list of lists is right nowhere.
        let text = env_problem(&[UPSTREAM, (&variable, "[[1]]")]);
        assert!(text.starts_with(&format!("{variable}: {key}: ")), "{text}");
    }
}

#[test]
fn a_key_prefix_has_a_bound() {
    let prefix =
        |len: usize| Written::new(&format!("upstream: {{key_prefix: \"{}\"}}", "x".repeat(len))).load(&[UPSTREAM]);
    assert_eq!(prefix(128).unwrap().0.upstream.key_prefix.len(), 128);
    let error = prefix(129).unwrap_err().to_string();
    assert!(
        error.contains(".yaml:1: upstream.key_prefix: ") && error.ends_with("has 129 bytes; 128 are allowed"),
        "{error}"
    );
    assert_eq!(Config::for_tests("redis://h").upstream.key_prefix, "");
}

#[test]
fn every_key_is_printed_in_order() {
    assert_eq!(print::printed_keys(&Config::for_tests("redis://h")), KEYS);
}

const UNUSUAL: &str = r#"
environment: production
listen: {tcp: ["0.0.0.0:0"], unix: "/tmp/a b.sock", unix_mode: 0600, protected: false, max_clients: 5, idle_timeout: 90s,
         output_limit: 100000, query_limit: 2MiB, buffers_max: 200000, drain_delay: 1500ms, drain_timeout: 1m}
upstream: {url: "unix:///run/r%3F.sock?db=3", connect_timeout: 20ms, request_timeout: 3s, info_poll: 0s, lanes_max: 2, pinned_max: 3,
           pinned_idle: 1, key_prefix: "tenant[7]:", retry: {max_attempts: 0, base_delay: 1ms, max_delay: 2ms}}
admin: {resp: off}
workers: 1
cache: {mode: off, commands: [hgetall, Json.Get], max_bytes: 3MiB, max_entries: 7, max_value_bytes: 9KiB, default_ttl: 1h, negative_ttl: 0s, ttl_buffer: 0,
        eviction: lru, on_write: resident, update_max_bytes: 8KiB, touch_interval: 0s}
local: {max_bytes: 5MiB}
rules:
  - {pattern: "tenant:{id}:*", name: "a: b", commands: [hgetall, get], ttl: 2h, negative_ttl: 0, max_value_bytes: 1KiB, on_write: invalidate,
     rollout: 12.5, variants: {short: {ttl: 5m}, long: {ttl: 1h}}, tags: ["tenant:{id}", "{1}"], max_share: 0.125, cost_per_miss: 0.06, refresh_ahead: 1s, stale_while_revalidate: 2s, stale_if_error: 1h, write: behind}
  - {pattern: '\{user\}:*', mode: off, rollout: {percent: 0}}
warm: {keys: ["a b", "1"], patterns: ["u:*"], rate: 7, max_keys: 9, before_ready: true, timeout: 3s}
coherence: {mode: pubsub, max_staleness: 10ms, fence: session, channel: "app:drop", sample_per_second: 5, ttl_cap: {tracking: 1h, pubsub: 1m, ttl: 1ms}, pubsub_atomic: false, canary: 90s}
commands: {shutdown: true, deny: ["@Dangerous", client kill, "~s:*"], allow: ["@all", ft.search, "~é\"*"], enforce: false,
           overrides: [{client: "b-*", user: u, listener: unix, deny: []}, {listener: "0.0.0.0:0", allow: [get], enforce: true}],
           rate: [{client: "b-*", per_second: 5, burst: 9, on_limit: error, scope: connection}, {listener: tcp, per_second: 7}]}
http: {listen: [], allowed_hosts: [Nearside.Example], max_connections: 3, dashboard: false}
outage: {journal_dir: "/var/lib/a b", journal_fsync: no, journal_max_bytes: 3MiB}
log: {level: trace, format: json}
"#;

#[test]
fn what_is_printed_loads_as_the_same_configuration() {
    for yaml in [DOCUMENTED, UNUSUAL] {
        let vars: &[(&str, &str)] = if yaml == DOCUMENTED { &[UPSTREAM] } else { &[] };
        let config = Written::new(yaml).load(vars).unwrap().0;
        let again = Written::new(&print::yaml(&config)).load(&[]).unwrap().0;
        assert_eq!(again, config);
    }
}

#[test]
fn unusual_values_arrive() {
    let config = Written::new(UNUSUAL).load(&[]).unwrap().0;
    assert_eq!(config.listen.unix_mode, 0o600);
    assert!(!config.listen.tcp_is_default);
    assert_eq!(config.listen.idle_timeout, Some(Duration::from_secs(90)));
    assert_eq!(config.upstream.endpoint, Endpoint::Unix("/run/r?.sock".into()));
    assert_eq!(config.cache.mode, CacheMode::Off);
    assert_eq!(config.cache.max_entries, Some(7));
    assert_eq!(config.cache.commands.iter().collect::<Vec<_>>(), [Method::Hgetall, Method::JsonGet]);
    assert_eq!(config.admin.resp, AdminResp::Off);
    assert_eq!(config.http.allowed_hosts, ["nearside.example"]);
    let commands = &config.commands;
    let shown = |words: &[Word]| words.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
    assert_eq!(shown(&commands.deny), "@dangerous client|kill ~s:*");
    assert_eq!(shown(commands.allow.as_deref().unwrap()), "@all ft.search ~é\"*");
    assert_eq!(commands.overrides[0].deny.as_deref(), Some(&[][..]));
    assert_eq!(commands.overrides[1].who.listener.map(|l| l.to_string()).as_deref(), Some("0.0.0.0:0"));
    assert_eq!((commands.rate[0].burst, commands.rate[1].burst), (9, 7));
}

/// What is wrong with one value of a key of `commands`, without file and key.
fn wrong(key: &str, value: &str) -> Vec<String> {
    let all = problems(&format!("commands:\n  {key}: {value}\n"));
    let place = |p: &String| p.strip_prefix("x.yaml:2: commands.").unwrap_or_else(|| panic!("{p}")).to_owned();
    all.iter().map(place).collect()
}

#[test]
fn words_of_a_policy_that_are_none() {
    for (word, what) in [
        ("gett", "deny: \"gett\" is no command that Nearside knows; did you mean get?"),
        ("client|kil", "deny: \"client|kil\" is no command that Nearside knows; did you mean client|kill?"),
        ("'@dangerus'", "deny: \"@dangerus\" is no category; did you mean @dangerous?"),
        (
            "'~a[b'",
            "deny: \"a[b\" is not a pattern: a [ is not closed by ]; write it as for KEYS, for example session:*",
        ),
        ("'~'", "deny: \"\" is not a pattern: it is empty; write it as for KEYS, for example session:*"),
        ("+get", "deny: \"+get\": write the command without + or -; deny and allow say which it is"),
        ("'%R~a'", "deny: \"%R~a\": only ~pattern, for reading and writing, is known here"),
        ("[get]", "deny: has an element that is not a plain value"),
    ] {
        assert_eq!(wrong("deny", &format!("[{word}]")), [what]);
    }
    assert!(wrong("deny", "[wipeitall]")[0].contains("use Redis's own name (also where upstream has renamed it)"));
    assert!(wrong("deny", "['@zzzz']")[0].ends_with("there are @all, @keyspace, @read, @write, @set, @sortedset, @list, \
        @hash, @string, @bitmap, @hyperloglog, @geo, @stream, @pubsub, @admin, @fast, @blocking, @dangerous, @connection, \
        @transaction, @scripting, @slow"));
    assert_eq!(wrong("deny", "get"), ["deny: a list is wanted here, for example [\"a\", \"b\"]"]);
    let empty = "an empty list would refuse every command; null allows all, else name what is allowed";
    assert_eq!(wrong("allow", "[]"), [format!("allow: {empty}")]);
    assert_eq!(loaded("commands: {allow: null, deny: []}").commands, Config::for_tests("redis://h").commands);
}

#[test]
fn entries_of_a_policy_that_are_none() {
    let one = |key: &str, entry: &str| wrong(key, &format!("[{entry}]"));
    for (entry, what) in [
        (
            "{cleint: a, deny: [get]}",
            &[
                "overrides[0]: \"cleint\": unknown key; did you mean client?",
                "overrides[0]: does not say for whom it is; give client, user, listener",
            ][..],
        ),
        ("{client: a}", &["overrides[0]: says nothing; give deny, allow or enforce"]),
        (
            "{client: a, allow: []}",
            &[
                "overrides[0].allow: an empty list would refuse every command; null allows all, else name what is allowed",
            ],
        ),
        (
            "{client: a, deny: [gte]}",
            &["overrides[0].deny: \"gte\" is no command that Nearside knows; did you mean get?"],
        ),
        ("{client: a, deny: get}", &["overrides[0].deny: a list is wanted here, for example [\"@dangerous\"]"]),
        (
            "{client: 'a[', deny: [get]}",
            &[
                "overrides[0].client: \"a[\" is not a pattern: a [ is not closed by ]; write it as for KEYS, for example session:*",
            ],
        ),
        (
            "{listener: '10.0.0.1:1', deny: [get]}",
            &[
                "overrides[0].listener: \"10.0.0.1:1\" is not tcp, unix or one of listen.tcp (127.0.0.1:6380, [::1]:6380)",
            ],
        ),
        ("{client: a, enforce: perhaps}", &["overrides[0].enforce: \"perhaps\" is not true or false"]),
        ("get", &["overrides: each element is a map here, for example [{client: \"batch-*\", deny: [\"@write\"]}]"]),
    ] {
        assert_eq!(one("overrides", entry), what, "{entry}");
    }
    for (entry, what) in [
        ("{client: a}", "rate[0]: does not say how many commands a second; give per_second"),
        ("{per_second: 0}", "rate[0].per_second: \"0\" is too small; at least 1"),
        ("{per_second: 5, burst: 0}", "rate[0].burst: \"0\" is too small; at least 1"),
        ("{per_second: fast}", "rate[0].per_second: \"fast\" is not a whole number"),
        ("{per_second: 5, on_limit: drop}", "rate[0].on_limit: \"drop\" is not one of wait, error"),
        ("{per_second: 5, scope: each}", "rate[0].scope: \"each\" is not one of shared, connection"),
        ("{per_second: 5, per_secnd: 4}", "rate[0]: \"per_secnd\": unknown key; did you mean per_second?"),
    ] {
        assert_eq!(one("rate", entry), [what], "{entry}");
    }
    assert_eq!(
        problems("commands:\n  rate:\n    - {per_second: 1}\n    - per_second: 0\n      burst: 1\n"),
        ["x.yaml:4: commands.rate[1].per_second: \"0\" is too small; at least 1"]
    );
    assert_eq!(
        wrong("rate", "{per_second: 1}"),
        ["rate: a list of maps is wanted here, for example [{client: \"batch-*\", per_second: 1000}]"]
    );
}

#[test]
fn a_flag_wins_over_the_environment_and_that_over_the_file() {
    let file = Written::new("upstream: {url: redis://file, lanes_max: 1, pinned_max: 9}\nlog: {format: text}\n");
    let mut overrides = file.overrides();
    overrides.value("--upstream", "upstream.url", Some("redis://flag".to_owned()));
    let vars = [
        ("NEARSIDE_UPSTREAM__URL", "redis://env"),
        ("NEARSIDE_UPSTREAM__LANES_MAX", "2"),
        ("NEARSIDE_CONFIG", "/nowhere"),
    ];
    let config = load_within(&overrides, env(&vars), None).unwrap().0;
    assert_eq!(config.upstream.display(), "redis://flag:6379/0");
    assert_eq!((config.upstream.lanes_max, config.upstream.pinned_max), (2, 9));
}

#[test]
fn the_environment_names_the_file_and_may_hold_lists_and_sections() {
    let file = Written::new("upstream: {url: redis://file}\n");
    let (config, warnings) = from_env(&[
        ("NEARSIDE_CONFIG", &file.path()),
        ("NEARSIDE_LISTEN__TCP", "[\"127.0.0.1:7000\"]"),
        ("NEARSIDE_UPSTREAM__RETRY", "{base_delay: 7ms, max_attempts: 9}"),
        ("NEARSIDE_UPSTREAM__RETRY__BASE_DELAY", "8ms"),
        ("NEARSIDE_CACHE__MODE", "false"),
        ("NEARSIDE_CACHE__MAX_ENTRIES", ""),
    ])
    .unwrap();
    assert_eq!(config.listen.tcp, ["127.0.0.1:7000".parse().unwrap()]);
    assert_eq!(config.upstream.retry.max_attempts, 9);
    assert_eq!(config.upstream.retry.base_delay, Duration::from_millis(8));
    assert_eq!(config.cache.mode, CacheMode::Off);
    assert!(warnings.is_empty(), "{warnings:?}");
}

#[test]
fn variables_that_kubernetes_injects_are_only_a_warning() {
    let vars = [
        UPSTREAM,
        ("NEARSIDE_PORT", "tcp://10.0.0.1:6380"),
        ("NEARSIDE_SERVICE_HOST", "10.0.0.1"),
        ("OTHER", "x"),
        ("NEARSIDE_UPSTREAM__URI", "redis://:hunter2@h"),
    ];
    let (_, warnings) = from_env(&vars).unwrap();
    assert_eq!(
        warnings,
        [
            "ignored environment variables that are no settings: NEARSIDE_PORT, NEARSIDE_SERVICE_HOST, NEARSIDE_UPSTREAM__URI (did you mean NEARSIDE_UPSTREAM__URL?)"
        ]
    );
}

#[test]
fn off_may_arrive_as_a_boolean() {
    for word in ["off", "\"off\"", "false"] {
        assert_eq!(loaded(&format!("cache: {{mode: {word}}}")).cache.mode, CacheMode::Off, "{word}");
        assert_eq!(loaded(&format!("admin: {{resp: {word}}}")).admin.resp, AdminResp::Off, "{word}");
        assert_eq!(loaded(&format!("coherence: {{canary: {word}}}")).coherence.canary, Canary::Off, "{word}");
    }
    assert_eq!(loaded("admin: {resp: true}").admin.resp, AdminResp::On);
}

#[test]
fn problems_name_file_line_key_and_what_would_be_right() {
    for (yaml, problem) in [
        (
            "listen:\n  output_limit: 64MB\n",
            "x.yaml:2: listen.output_limit: \"64MB\" is not a size; use bytes or KiB, MiB, GiB, for example 64MiB",
        ),
        (
            "listen:\n  ouput_limit: 64MiB\n",
            "x.yaml:2: listen.ouput_limit: unknown key; did you mean listen.output_limit?",
        ),
        ("\nlistne: {}\n", "x.yaml:2: listne: unknown key; did you mean listen?"),
        (
            "coherence:\n\n  frob: 1\n",
            "x.yaml:3: coherence.frob: unknown key; known keys here: mode, max_staleness, fence, channel, sample_per_second, ttl_cap, pubsub_atomic, canary",
        ),
        (
            "cache: {default_ttl: 300}",
            "x.yaml:1: cache.default_ttl: \"300\" is not a duration; use ms, s, m or h, for example 500ms",
        ),
        ("cache: {default_ttl: 48h}", "x.yaml:1: cache.default_ttl: \"48h\" is too large; at most 24h"),
        (
            "cache: {commands: [GET, ttl]}",
            "x.yaml:1: cache.commands: \"TTL\" is never cached: its answer changes as time passes, and Redis does not signal that",
        ),
        ("cache: {commands: [SET]}", "x.yaml:1: cache.commands: \"SET\" is never cached: it is not a read"),
        ("cache: {commands: GET}", "x.yaml:1: cache.commands: a list is wanted here, for example [\"a\", \"b\"]"),
        ("cache: {max_bytes: 10}", "x.yaml:1: cache.max_bytes: \"10\" is too small; at least 1MiB"),
        (
            "cache: {max_bytes: lots}",
            "x.yaml:1: cache.max_bytes: \"lots\" is not a size; use bytes or KiB, MiB, GiB, for example 64MiB, or auto",
        ),
        ("cache:\n  max_value_bytes: 2MiB\n", "x.yaml:2: cache.max_value_bytes: \"2MiB\" is too large; at most 1MiB"),
        (
            "cache: {on_write: writeback}",
            "x.yaml:1: cache.on_write: \"writeback\" is not one of update, resident, invalidate",
        ),
        (
            "coherence: {channel: a b}",
            "x.yaml:1: coherence.channel: \"a b\" has blanks or control characters; write one word, for example nearside:invalidate",
        ),
        (
            "coherence: {channel: \"a\\tb\"}",
            "x.yaml:1: coherence.channel: \"a\\tb\" has blanks or control characters; write one word, for example nearside:invalidate",
        ),
        (
            "upstream: {key_prefix: \"app*:\"}",
            "x.yaml:1: upstream.key_prefix: \"app*:\" has a *, blanks or control characters; write one word, for example app1:",
        ),
        (
            "upstream: {key_prefix: \"my app:\"}",
            "x.yaml:1: upstream.key_prefix: \"my app:\" has a *, blanks or control characters; write one word, for example app1:",
        ),
        ("coherence: {fence: none}", "x.yaml:1: coherence.fence: \"none\" is not one of hold, session"),
        ("coherence: {mode: psync}", "x.yaml:1: coherence.mode: \"psync\" is not one of auto, tracking, pubsub, ttl"),
        ("coherence: {ttl_cap: {ttl: 0s}}", "x.yaml:1: coherence.ttl_cap.ttl: \"0s\" is too small; at least 1ms"),
        (
            "coherence: {ttl_cap: {pubsub: 25h}}",
            "x.yaml:1: coherence.ttl_cap.pubsub: \"25h\" is too large; at most 24h",
        ),
        ("coherence: {pubsub_atomic: 2}", "x.yaml:1: coherence.pubsub_atomic: \"2\" is not true or false"),
        ("coherence: {canary: 500ms}", "x.yaml:1: coherence.canary: \"500ms\" is too small; at least 1s"),
        (
            "coherence: {canary: often}",
            "x.yaml:1: coherence.canary: \"often\" is not off, start or an interval, for example 60s",
        ),
        (
            "coherence: {sample_per_second: 1001}",
            "x.yaml:1: coherence.sample_per_second: \"1001\" is too large; at most 1000",
        ),
        ("coherence: {max_staleness: 5ms}", "x.yaml:1: coherence.max_staleness: \"5ms\" is too small; at least 10ms"),
        ("workers: 65", "x.yaml:1: workers: \"65\" is not auto or a number from 1 to 64"),
        ("workers: many", "x.yaml:1: workers: \"many\" is not auto or a number from 1 to 64"),
        (
            "listen:\n  tcp:\n    - 127.0.0.1:1\n    - localhost:2\n",
            "x.yaml:4: listen.tcp: \"localhost:2\" is not an address; use ip:port, for example 127.0.0.1:6380, 0.0.0.0:6380 or [::1]:6380",
        ),
        ("listen: {tcp: \"127.0.0.1:1\"}", "x.yaml:1: listen.tcp: a list is wanted here, for example [\"a\", \"b\"]"),
        (
            "listen: {unix_mode: 888}",
            "x.yaml:1: listen.unix_mode: \"888\" is not a file mode; use octal digits from 0000 to 0777, for example \"0660\"",
        ),
        ("listen: {protected: maybe}", "x.yaml:1: listen.protected: \"maybe\" is not true or false"),
        ("listen: {max_clients: 0}", "x.yaml:1: listen.max_clients: \"0\" is too small; at least 1"),
        ("listen: {max_clients: many}", "x.yaml:1: listen.max_clients: \"many\" is not a whole number"),
        ("listen: 6380", "x.yaml:1: listen: keys and values are wanted here, not a single value"),
        ("just text", "x.yaml:1: the file: keys and values are wanted here, not a single value"),
        (
            "listen: {max_clients: {a: 1}}",
            "x.yaml:1: listen.max_clients: one value is wanted here, not a list or a map",
        ),
        (
            "http: {allowed_hosts: [\"http://x\"]}",
            "x.yaml:1: http.allowed_hosts: \"http://x\" is not a host name; write it without scheme and port",
        ),
    ] {
        assert_eq!(problems(yaml), [problem], "{yaml}");
    }
}

#[test]
fn every_read_that_may_be_kept_can_be_named_and_every_other_command_is_refused_with_the_reason() {
    let all = format!("cache: {{commands: [{}]}}", Method::WORDS.join(", "));
    assert_eq!(loaded(&all).cache.commands.iter().count(), Method::COUNT);
    let refused = |name: &str| problems(&format!("cache: {{commands: [\"{name}\"]}}")).remove(0);
    let mut reasons = std::collections::BTreeSet::new();
    for row in table::all().filter(|row| !Method::WORDS.iter().any(|word| word.eq_ignore_ascii_case(row.name))) {
        let problem = refused(&row.name.replace('|', " "));
        let (_, why) = problem.split_once(" is never cached: ").unwrap_or_else(|| panic!("{problem}"));
        reasons.insert(why.to_owned());
    }
    assert_eq!(reasons.len(), 12, "{reasons:#?}");
    assert!(refused("OBJECT").contains("how upstream keeps the key"));
    let unknown = refused("HGETALLL");
    assert!(
        unknown.contains("\"HGETALLL\" is no command that can be cached; those are GET, MGET, STRLEN"),
        "{unknown}"
    );
}

#[test]
fn all_problems_come_at_once() {
    let found = problems("workers: 0\ncache:\n  modus: off\n  eviction: fifo\n");
    assert_eq!(found.len(), 3, "{found:?}");
}

#[test]
fn broken_yaml_names_the_line() {
    let found = problems("listen:\n  unix: [\nlog: {}}\n");
    assert!(
        found[0].starts_with("x.yaml:3: not valid YAML: ") || found[0].starts_with("x.yaml:2: not valid YAML: "),
        "{found:?}"
    );
}

#[test]
fn a_key_given_twice_is_an_error() {
    let found = problems("cache:\n  mode: off\n  mode: serve\n");
    assert_eq!(found, ["x.yaml:3: not valid YAML: the same key is given twice"]);
}

#[test]
fn keys_that_are_no_words_are_named_by_line() {
    for yaml in ["log: {}\n? [1]\n: 2\n", "log: {}\nnull: 3\n"] {
        assert_eq!(problems(yaml), ["x.yaml:2: a key must be a plain word"]);
    }
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let mut overrides = Overrides::default();
    overrides.file(Some("/nowhere/x.yaml".to_owned()));
    let error = load_within(&overrides, env(&[]), None).unwrap_err().to_string();
    assert_eq!(error.lines().count(), 1, "{error}");
    assert!(error.starts_with("/nowhere/x.yaml: cannot be read: No such file"), "{error}");
}

#[test]
fn a_device_is_not_read_for_ever() {
    let mut overrides = Overrides::default();
    overrides.file(Some("/dev/zero".to_owned()));
    let error = load_within(&overrides, env(&[UPSTREAM]), None).unwrap_err().to_string();
    assert!(error.contains("longer than 1 MiB"), "{error}");
}

#[test]
fn without_an_upstream_the_error_says_how_to_give_one() {
    let message =
        "no upstream: set upstream.url, for example redis://127.0.0.1:6379, or 'embedded' for the in-memory engine";
    assert_eq!(env_problem(&[("NEARSIDE_ENVIRONMENT", "production")]), message);
    assert_eq!(Written::new("upstream: {url: \"\"}").load(&[]).unwrap_err().to_string(), message);
    assert_eq!(Written::new(DOCUMENTED).load(&[]).unwrap_err().to_string(), message);
}

#[test]
fn who_names_nothing_gets_the_engine() {
    assert_eq!(from_env(&[]).unwrap().0.upstream.backend, Backend::Local);
    let named = from_env(&[("NEARSIDE_UPSTREAM__URL", "embedded"), ("NEARSIDE_ENVIRONMENT", "production")]).unwrap();
    assert_eq!((named.0.upstream.backend, named.1.len()), (Backend::Local, 1));
    assert_eq!(from_env(&[UPSTREAM]).unwrap().0.upstream.backend, Backend::Upstream);
    let problem =
        env_problem(&[("NEARSIDE_UPSTREAM__USERNAME", "me"), ("NEARSIDE_UPSTREAM__PASSWORD_FILE", "/dev/null")]);
    assert!(problem.contains("upstream.password_file"), "{problem}");
}

#[test]
fn secrets_stay_out_of_messages_debug_and_print() {
    let config = from_env(&[("NEARSIDE_UPSTREAM__URL", "redis://me:hunter2@h/1")]).unwrap().0;
    assert_eq!(config.upstream.password.as_ref().map(Secret::expose), Some("hunter2"));
    assert!(!format!("{config:?} {}", config.upstream.display()).contains("hunter2"));
    let printed = print::yaml(&config);
    assert!(!printed.contains("hunter2"), "{printed}");
    assert!(printed.contains("  # password_file: \"***\""), "{printed}");
    assert!(Written::new(&printed).load(&[]).is_ok(), "{printed}");

    let wrong = env_problem(&[
        ("NEARSIDE_UPSTREAM__URL", "http://me:hunter2@h"),
        ("NEARSIDE_LISTEN__TCP", "[\"redis://:hunter2@h\"]"),
        ("NEARSIDE_WORKERS", "redis://:hunter2@h"),
    ]);
    assert!(!wrong.contains("hunter2"), "{wrong}");
}

#[test]
fn a_password_file_loses_its_newline_only() {
    let file = Written::new(" s3cret \n");
    let yaml = format!(
        "upstream: {{username: me, password_file: {:?}}}\nadmin: {{password_file: {:?}}}",
        file.path(),
        file.path()
    );
    let config = loaded(&yaml);
    assert_eq!(config.upstream.password.as_ref().map(Secret::expose), Some(" s3cret "));
    assert_eq!(config.upstream.username.as_deref(), Some("me"));
    assert_eq!(config.admin.password.as_ref().map(Secret::expose), Some(" s3cret "));
    let again = Written::new(&print::yaml(&config)).load(&[]).unwrap().0;
    assert_eq!(again, config);
}

#[test]
fn a_password_file_that_cannot_be_used_is_named() {
    let missing = problems("upstream:\n  password_file: /nowhere/pw\n");
    assert_eq!(missing.len(), 1);
    assert!(
        missing[0].starts_with("x.yaml:2: upstream.password_file: \"/nowhere/pw\" cannot be read: No such file"),
        "{missing:?}"
    );
    let empty = Written::new("\n");
    let found = problems(&format!("admin: {{password_file: {:?}}}", empty.path()));
    assert!(found[0].ends_with("is empty"), "{found:?}");
}

#[test]
fn credentials_given_twice_or_by_half_are_refused() {
    let file = Written::new("pw");
    let both =
        env_problem(&[("NEARSIDE_UPSTREAM__URL", "redis://:x@h"), ("NEARSIDE_UPSTREAM__PASSWORD_FILE", &file.path())]);
    assert_eq!(
        both,
        "NEARSIDE_UPSTREAM__PASSWORD_FILE: upstream.password_file: upstream.url has a password too; keep one of them"
    );
    let users = env_problem(&[("NEARSIDE_UPSTREAM__URL", "redis://a:x@h"), ("NEARSIDE_UPSTREAM__USERNAME", "b")]);
    assert!(users.contains("user name too"), "{users}");
    let half = env_problem(&[("NEARSIDE_UPSTREAM__URL", "redis://hunter2@h")]);
    assert!(half.contains("a user name without a password") && !half.contains("hunter2"), "{half}");
    let config =
        from_env(&[("NEARSIDE_UPSTREAM__URL", "redis://me@h"), ("NEARSIDE_UPSTREAM__PASSWORD_FILE", &file.path())])
            .unwrap()
            .0;
    assert_eq!(config.upstream.username.as_deref(), Some("me"));
}

#[test]
fn tls_to_upstream_is_named_as_missing() {
    let text = env_problem(&[("NEARSIDE_UPSTREAM__URL", "rediss://h")]);
    assert_eq!(
        text,
        "NEARSIDE_UPSTREAM__URL: upstream.url: TLS to upstream is not supported yet; use redis:// or unix://"
    );
}

#[test]
fn addresses_that_collide_are_refused() {
    for (yaml, problem) in [
        (
            "listen: {tcp: [\"127.0.0.1:1\", \"127.0.0.1:1\"]}",
            "x.yaml:1: listen.tcp: 127.0.0.1:1 is taken by 127.0.0.1:1, also in this configuration",
        ),
        (
            "listen: {tcp: [\"0.0.0.0:9380\"]}",
            "http.listen: 127.0.0.1:9380 is taken by 0.0.0.0:9380, also in this configuration",
        ),
        (
            "listen: {tcp: []}",
            "x.yaml:1: listen.tcp: nothing to listen on; name an address here or a path in listen.unix",
        ),
    ] {
        assert_eq!(problems(yaml), [problem], "{yaml}");
    }
    loaded("listen: {tcp: [\"127.0.0.1:0\", \"127.0.0.1:0\", \"[::]:9380\"]}");
    loaded("listen: {tcp: [], unix: /tmp/x}");
}

#[test]
fn keys_must_agree_but_defaults_follow() {
    assert_eq!(
        problems("cache: {max_value_bytes: 1KiB, update_max_bytes: 2KiB}"),
        ["x.yaml:1: cache.update_max_bytes: is more than cache.max_value_bytes"]
    );
    assert_eq!(
        problems("upstream: {pinned_max: 4, pinned_idle: 5}"),
        ["x.yaml:1: upstream.pinned_idle: is more than upstream.pinned_max"]
    );
    assert_eq!(
        problems("upstream: {retry: {base_delay: 10s}}"),
        ["x.yaml:1: upstream.retry.base_delay: is more than upstream.retry.max_delay"]
    );
    assert_eq!(loaded("cache: {max_value_bytes: 1KiB}").cache.update_max_bytes, 1024);
    assert_eq!(loaded("upstream: {pinned_max: 4}").upstream.pinned_idle, 4);
}

#[test]
fn what_is_loaded_and_told_is_checked() {
    for (yaml, problem) in [
        (
            "upstream: {info_poll: 900ms}",
            "upstream.info_poll: \"900ms\" is less than 1s; use 0s to ask upstream nothing",
        ),
        (
            "cache: {touch_interval: 500ms}",
            "cache.touch_interval: \"500ms\" is less than 1s; use 0s to tell upstream nothing",
        ),
        ("warm: {keys: a}", "warm.keys: a list is wanted here, for example [\"a\", \"b\"]"),
        ("warm: {patterns: [\"\"]}", "warm.patterns: has an empty element"),
    ] {
        assert_eq!(problems(yaml), [format!("x.yaml:1: {problem}")], "{yaml}");
    }
    for yaml in
        ["warm: {rate: 0}", "warm: {max_keys: 0}", "warm: {timeout: 0s}", "warm: {before_ready: 3}", "warm: {key: [a]}"]
    {
        let problems = problems(yaml);
        assert!(problems.len() == 1 && problems[0].starts_with("x.yaml:1: warm."), "{problems:?}");
    }
    assert_eq!(loaded("cache: {touch_interval: 0s}").cache.touch_interval, None);
    assert_eq!(loaded("upstream: {info_poll: 0s}").upstream.info_poll, None);
    assert_eq!(loaded("").upstream.info_poll, Some(Duration::from_secs(10)));
    assert_eq!(loaded("cache: {touch_interval: 90s}").cache.touch_interval, Some(Duration::from_secs(90)));
    let (_, warnings) = Written::new("warm: {before_ready: true}").load(&[UPSTREAM]).unwrap();
    assert!(
        warnings.iter().any(|w| w.starts_with("warm.before_ready is true and nothing is to be loaded")),
        "{warnings:?}"
    );
}

#[test]
fn what_is_observed_is_checked() {
    let separators =
        "is not 1 to 8 separators; write ASCII characters that are no letters, digits or blanks, for example \":/\"";
    for (yaml, key, problem) in [
        ("observe: {separators: ':a'}", "observe.separators", format!("\":a\" {separators}")),
        ("observe: {separators: ': '}", "observe.separators", format!("\": \" {separators}")),
        ("observe: {separators: '·'}", "observe.separators", format!("\"·\" {separators}")),
        ("observe: {separators: ':/|.,;_-+'}", "observe.separators", format!("\":/|.,;_-+\" {separators}")),
        (
            "warm: {from: last_run}",
            "warm.from",
            "last_run needs a file; name one that outlives the process in warm.last_run_file".to_owned(),
        ),
        (
            "warm: {from: last_run, last_run_file: /tmp/x, last_run_keys: 600}",
            "warm.last_run_keys",
            "is more than observe.hot_keys (512), which are followed".to_owned(),
        ),
        ("warm: {last_run_file: /tmp/}", "warm.last_run_file", "\"/tmp/\" is not the path of a file".to_owned()),
    ] {
        assert_eq!(problems(yaml), [format!("x.yaml:1: {key}: {problem}")], "{yaml}");
    }
    for yaml in [
        "observe: {slow_log: fast}",
        "observe: {slow_log: -1ms}",
        "observe: {keys: all}",
        "observe: {hot_keys: 10001}",
        "observe: {max_key_patterns: 0}",
        "observe: {max_key_patterns: 1001}",
        "observe: {separator: ':'}",
    ] {
        let problems = problems(yaml);
        assert!(problems.len() == 1 && problems[0].starts_with("x.yaml:1: observe."), "{problems:?}");
    }
    let two = "observe: {hot_keys: 0}\nwarm: {from: last_run, last_run_file: /tmp/x}";
    assert_eq!(
        problems(two),
        ["x.yaml:2: warm.from: last_run needs to know which keys are asked for most; observe.hot_keys is 0"]
    );
    let observe = loaded("observe: {separators: ':/', slow_log: 0s, hot_keys: 0, keys: hide}").observe;
    assert_eq!((observe.separators.as_str(), observe.slow_log, observe.hot_keys), (":/", None, 0));
    assert_eq!(loaded("workers: 1").observe.slow_log, Some(Duration::from_millis(10)));
    let (_, warnings) = Written::new("warm: {last_run_file: /tmp/x}").load(&[UPSTREAM]).unwrap();
    assert!(
        warnings.iter().any(|w| w.starts_with("warm.last_run_file is given and nothing is written")),
        "{warnings:?}"
    );
}

#[test]
fn the_memory_limit_halves_and_warns() {
    let none = Overrides::default();
    let auto = |limit| load_within(&none, env(&[UPSTREAM]), limit).unwrap().0.cache.max_bytes;
    assert_eq!(auto(Some(128 << 20)), 64 << 20);
    assert_eq!(auto(Some(8 << 30)), 256 << 20);
    assert_eq!(auto(Some(1000)), 1 << 20);
    let vars = [UPSTREAM, ("NEARSIDE_CACHE__MAX_BYTES", "100MiB")];
    let (_, warnings) = load_within(&none, env(&vars), Some(128 << 20)).unwrap();
    assert!(
        warnings[0].contains("(100MiB) is more than three quarters of the memory limit of this process (128MiB)"),
        "{warnings:?}"
    );
}

#[test]
fn protected_mode_off_is_a_warning() {
    let (_, warnings) = Written::new("listen: {protected: false}").load(&[UPSTREAM]).unwrap();
    assert!(warnings[0].starts_with("listen.protected is false"), "{warnings:?}");
}

#[test]
fn the_side_port_is_known_without_an_upstream() {
    let listen = http_listen(&Overrides::default(), env(&[("NEARSIDE_HTTP__LISTEN", "[\"0.0.0.0:1\"]")])).unwrap();
    assert_eq!(listen, ["0.0.0.0:1".parse().unwrap()]);
}

proptest! {
    /// Whatever stands in a file or a variable ends in a configuration or in a message, on lines of its own.
    #[test]
    fn no_text_makes_it_panic(key in 0..KEYS.len(), text in "(\\PC|[0-9:/@?%\\[\\]{}.,\n -]){0,40}") {
        let sections = KEYS[key].matches('.').count();
        let file = Written::new(&format!("{}: {text}{}", KEYS[key].replace('.', ": {"), "}".repeat(sections)));
        let _ = file.load(&[UPSTREAM]);
        let _ = Written::new(&text).load(&[UPSTREAM]);
        let variable = format!("NEARSIDE_{}", KEYS[key].replace('.', "__").to_uppercase());
        let _ = from_env(&[UPSTREAM, (&variable, &text)]);
    }

    /// However a URL is broken, what stands before the '@' is in no message.
    #[test]
    fn a_broken_url_never_shows_its_password(scheme in "(redis|unix|http|)(://|:|/|)", rest in "[a-z0-9:/?=\\[\\]#%]{0,12}") {
        let url = format!("{scheme}u:hunter2@{rest}");
        for name in ["NEARSIDE_UPSTREAM__URL", "NEARSIDE_LISTEN__MAX_CLIENTS", "NEARSIDE_LOG__LEVEL"] {
            if let Err(error) = from_env(&[UPSTREAM, (name, &url)]) {
                prop_assert!(!error.to_string().contains("hunter2"), "{error}");
            }
        }
    }
}

// ---- rules ----

#[test]
fn what_a_rule_leaves_out_is_the_caches() {
    let config =
        loaded("cache: {default_ttl: 7s, on_write: resident, commands: [GET, STRLEN]}\nrules: [{pattern: 'a:*'}]");
    let rule = &config.rules[0];
    assert_eq!(rule.name, "a:*");
    assert_eq!((rule.ttl, rule.on_write), (Duration::from_secs(7), OnWrite::Resident));
    assert_eq!(rule.commands, config.cache.commands);
    assert_eq!(rule.rollout.share, WHOLE);
    assert_eq!(rule.max_value_bytes, config.cache.max_value_bytes);
    let rule = &loaded("rules: [{pattern: 'a:*', name: x, rollout: 0.5, max_share: 0.0625}]").rules[0];
    assert_eq!((rule.name.as_str(), rule.rollout.share, rule.max_share), ("x", 50, Some(625)));
}

#[test]
fn a_bad_rule_is_refused_with_line_rule_key_and_remedy() {
    for (rule, problem) in [
        ("{ttl: 5m}", "pattern is missing: which keys is it for? For example pattern: \"session:*\""),
        ("{pattern: 'a[b'}", "a[b: pattern: \"a[b\" has a [ without its ]; a literal one is \\["),
        (
            "{pattern: '{u:1}'}",
            "{u:1}: pattern: \"{u:1}\" has {u:1}, which is no name of letters, digits and _; a literal brace is \\{",
        ),
        (
            "{pattern: 'a:*', tags: ['t:{id}']}",
            "a:*: tags: \"t:{id}\": the pattern a:* has no capture {id}; it has {1}",
        ),
        (
            "{pattern: '*', name: r, rollout: 120}",
            "r: rollout: \"120\" is not a share of the keys; use 0 to 100 percent, for example 25 or 0.5",
        ),
        (
            "{pattern: '*', name: r, rollout: {percent: -1}}",
            "r: rollout: percent: \"-1\" is not a share of the keys; use 0 to 100 percent, for example 25 or 0.5",
        ),
        (
            "{pattern: '*', name: r, rollout: 0.005}",
            "r: rollout: \"0.005\" is not a share of the keys; use 0 to 100 percent, for example 25 or 0.5",
        ),
        (
            "{pattern: '*', name: r, max_share: 25}",
            "r: max_share: \"25\" is not a share of cache.max_bytes; use more than 0 up to 1, for example 0.25",
        ),
        (
            "{pattern: '*', name: r, max_share: 0}",
            "r: max_share: \"0\" is not a share of cache.max_bytes; use more than 0 up to 1, for example 0.25",
        ),
        ("{pattern: '*', name: r, tll: 5m}", "r: \"tll\": unknown key; did you mean ttl?"),
        ("{pattern: '*', name: r, ttl: 5}", "r: ttl: \"5\" is not a duration; use ms, s, m or h, for example 500ms"),
        ("{pattern: '*', name: r, ttl: 25h}", "r: ttl: \"25h\" is too large; at most 24h"),
        ("{pattern: '*', name: r, commands: [SET]}", "r: commands: \"SET\" is never cached: it is not a read"),
        (
            "{pattern: '*', name: r, commands: []}",
            "r: commands: names no command; write mode: off for keys that shall pass through",
        ),
        (
            "{pattern: '*', name: r, on_write: never}",
            "r: on_write: \"never\" is not one of update, resident, invalidate",
        ),
        ("{pattern: '*', name: r, mode: watch}", "r: mode: \"watch\" is not one of serve, observe, off"),
        ("{pattern: '*', name: _r}", "_r: name: \"_r\" is no name: 1 to 64 printable bytes, no _ in front"),
        (
            "{pattern: '*', name: r, refresh_ahead: 5m}",
            "r: refresh_ahead: 5m is not less than the rule's ttl of 5m: every hit would have the key read again",
        ),
        (
            "{pattern: '*', name: r, variants: {a: {ttl: 1m}}}",
            "r: variants: 1 of them; 2 to 16 share the cached keys, for example {short: {ttl: 5m}, long: {ttl: 1h}}",
        ),
        ("{pattern: '*', name: r, variants: {a: {ttl: 1m}, b: {}}}", "r: variants: b: ttl is missing"),
        (
            "{pattern: '*', name: r, variants: {a: {ttl: 1m}, b: {ttl: 1m, x: 1}}}",
            "r: variants: b: \"x\": unknown key; known keys here: ttl",
        ),
        (
            "{pattern: '*', name: r, frob: behind}",
            "r: \"frob\": unknown key; known keys here: name, pattern, commands, ttl, negative_ttl, max_value_bytes, on_write, write, mode, refresh_ahead, stale_while_revalidate, stale_if_error, outage_writes, rollout, variants, tags, max_share, cost_per_miss",
        ),
        ("just text", "rule 1: keys and values are wanted here"),
    ] {
        let wanted = match problem.split_once(": ") {
            _ if problem.starts_with("pattern is missing") => format!("x.yaml:2: rules: rule 1: {problem}"),
            _ => format!("x.yaml:2: rules: {problem}"),
        };
        assert_eq!(problems(&format!("rules:\n  - {rule}\n")), [wanted], "{rule}");
    }
    assert_eq!(
        problems("rules: {a: 1}"),
        ["x.yaml:1: rules: a list of rules is wanted here, for example [{pattern: \"session:*\", ttl: 5m}]"]
    );
}

#[test]
fn rules_must_agree_with_each_other() {
    assert_eq!(
        problems("rules:\n- {name: a, pattern: 'x'}\n- {name: a, pattern: 'y'}\n"),
        ["x.yaml:3: rules: a: name: \"a\" is taken by the rule at x.yaml:2"]
    );
    assert_eq!(
        problems("rules:\n- {name: a, pattern: 'x', max_share: 0.7}\n- {name: b, pattern: 'y', max_share: 0.4}\n"),
        ["x.yaml:2: rules: the max_share of a, b come to 1.1 of cache.max_bytes; 1 is all of it"]
    );
}

#[test]
fn rules_that_are_never_asked_or_outlive_their_mode_are_warned_of() {
    let warnings = |yaml: &str| Written::new(yaml).load(&[UPSTREAM]).unwrap().1;
    assert_eq!(
        warnings("rules: [{name: wide, pattern: 'user:*'}, {name: narrow, pattern: 'user:{id}:name'}, {pattern: '*'}]"),
        ["rules: narrow (user:{id}:name) is never asked: every key it matches is taken by wide (user:*) before it"]
    );
    assert_eq!(
        warnings("rules: [{name: a, pattern: 'u:*', ttl: 1m}, {name: b, pattern: 'u:*', ttl: 2m}, {pattern: '*'}]"),
        ["rules: b (u:*) is contradicted: every key it matches is taken by a (u:*) before it"]
    );
    assert_eq!(
        warnings(
            "coherence: {mode: ttl, ttl_cap: {ttl: 2s}}\nrules: [{name: a, pattern: 'u:*', ttl: 1m}, {pattern: '*', ttl: 1s}]"
        ),
        ["rules: a has a ttl of 1m, and coherence.ttl_cap.ttl ends its entries after 2s"]
    );
    assert_eq!(
        warnings("rules: [{pattern: 'u:*'}]"),
        [
            "rules: keys that match no rule pass through uncached; end with {pattern: \"*\"} to keep the defaults for them"
        ]
    );
}

#[test]
fn what_is_done_without_upstream_is_said_in_known_words() {
    for (yaml, wanted) in [
        ("outage: {writes: later}", "outage.writes: \"later\" is not one of fail, queue, local"),
        ("outage: {reads: some}", "outage.reads: \"some\" is not one of stale, fail, local"),
        ("outage: {queue_max: 0}", "outage.queue_max: \"0\" is too small"),
        ("outage: {queue_max_bytes: 1}", "outage.queue_max_bytes: \"1\" is too small"),
        ("outage: {queue_conflict: merge}", "outage.queue_conflict: \"merge\" is not one of overwrite, skip"),
        ("rules: [{pattern: '*', write: later}]", "write: \"later\" is not one of through, behind"),
        ("rules: [{pattern: '*', outage_writes: later}]", "outage_writes: \"later\" is not one of fail, queue, local"),
        ("outage: {error: drop}", "outage.error: \"drop\" is not one of reply, close"),
        ("outage: {max_stale: 0s}", "outage.max_stale: \"0s\" is too small"),
        ("outage: {journal_fsync: never}", "outage.journal_fsync: \"never\" is not one of everysec, always, no"),
        ("outage: {journal_max_bytes: 1KiB}", "outage.journal_max_bytes: \"1KiB\" is too small"),
        ("cache: {refills_max: 0}", "cache.refills_max: \"0\" is too small"),
        ("rules: [{pattern: '*', stale_if_error: 25h}]", "stale_if_error: \"25h\" is too large"),
    ] {
        let found = problems(yaml);
        assert!(found.len() == 1 && found[0].contains(wanted), "{yaml}: {found:?}");
    }
}

#[test]
fn a_short_stall_timeout_is_a_warning_that_says_why() {
    for (limit, warned) in [("6s", true), ("10ms", true), ("6001ms", false), ("0s", false)] {
        let file = Written::new(&format!("upstream: {{stall_timeout: {limit}}}"));
        let warnings = file.load(&[UPSTREAM]).unwrap().1;
        assert_eq!(warnings.iter().any(|w| w.contains("stall_timeout") && w.contains("-BUSY")), warned, "{limit}");
    }
}

#[test]
fn what_the_in_memory_engine_does_not_do_is_refused() {
    for (yaml, key) in [
        ("commands: {deny: [get]}", "commands.deny"),
        ("commands: {rate: [{per_second: 1}]}", "commands.rate"),
        ("warm: {keys: [a]}", "warm.keys"),
        ("warm: {from: last_run, last_run_file: /tmp/x}", "warm.from"),
        ("outage: {journal_dir: /tmp/j}", "outage.journal_dir"),
    ] {
        let error = Written::new(&format!("upstream: {{url: embedded}}\n{yaml}")).load(&[]).unwrap_err().to_string();
        assert!(error.contains(&format!("{key}: the in-memory engine has nothing of the kind")), "{error}");
    }
    let (_, warnings) = Written::new("upstream: {url: embedded}\nrules: [{pattern: '*'}]").load(&[]).unwrap();
    assert_eq!(warnings, ["rules: nothing is cached in front of the in-memory engine, they do nothing"]);
}

#[test]
fn observe_mode_and_its_keys() {
    let config = loaded("cache: {mode: observe}\nrules: [{pattern: '*', mode: observe}]\n");
    assert_eq!((config.cache.mode, config.rules[0].mode), (CacheMode::Observe, RuleMode::Observe));
    let candidates = loaded("observe: {candidates: {min_per_minute: 7, min_latency: 500ms}}").observe.candidates;
    assert_eq!((candidates.min_per_minute, candidates.min_latency), (7, Duration::from_millis(500)));
    assert_eq!(loaded("observe: {file: ./observed}").observe.file, Some("./observed".into()));
    for (yaml, problem) in [
        ("cache: {mode: watch}", "x.yaml:1: cache.mode: \"watch\" is not one of serve, observe, off"),
        ("observe: {file: /}", "x.yaml:1: observe.file: \"/\" is a directory; name a file in it"),
        (
            "observe: {file: /no/such/file}",
            "x.yaml:1: observe.file: \"/no/such/file\": there is no directory \"/no/such\"",
        ),
        (
            "upstream: {url: embedded}\ncache: {mode: observe}",
            "x.yaml:2: cache.mode: the in-memory engine has nothing of the kind; name an upstream in upstream.url",
        ),
    ] {
        let file = Written::new(yaml);
        let given = if yaml.contains("embedded") { file.load(&[]) } else { file.load(&[UPSTREAM]) };
        let error = given.unwrap_err();
        let found: Vec<String> = error.problems.iter().map(|p| p.replace(&file.path(), "x.yaml")).collect();
        assert_eq!(found, [problem]);
    }
}
