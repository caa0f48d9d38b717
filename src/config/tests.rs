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
fn every_key_is_printed_in_order() {
    assert_eq!(print::printed_keys(&Config::for_tests("redis://h")), KEYS);
}

const UNUSUAL: &str = r#"
environment: production
listen: {tcp: ["0.0.0.0:0"], unix: "/tmp/a b.sock", unix_mode: 0600, protected: false, max_clients: 5, idle_timeout: 90s,
         output_limit: 100000, query_limit: 2MiB, buffers_max: 200000, drain_delay: 1500ms, drain_timeout: 1m}
upstream: {url: "unix:///run/r%3F.sock?db=3", connect_timeout: 20ms, request_timeout: 3s, lanes_max: 2, pinned_max: 3,
           pinned_idle: 1, retry: {max_attempts: 0, base_delay: 1ms, max_delay: 2ms}}
admin: {resp: off}
workers: 1
cache: {mode: off, commands: [hgetall, Json.Get], max_bytes: 3MiB, max_entries: 7, max_value_bytes: 9KiB, default_ttl: 1h, negative_ttl: 0s, ttl_buffer: 0,
        eviction: lru, on_write: resident, update_max_bytes: 8KiB, touch_interval: 0s}
warm: {keys: ["a b", "1"], patterns: ["u:*"], rate: 7, max_keys: 9, before_ready: true, timeout: 3s}
coherence: {mode: pubsub, max_staleness: 10ms, fence: session, channel: "app:drop", sample_per_second: 5, ttl_cap: {tracking: 1h, pubsub: 1m, ttl: 1ms}, pubsub_atomic: false, canary: 90s}
commands: {shutdown: true}
http: {listen: [], allowed_hosts: [Nearside.Example], max_connections: 3}
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
    let message = "no upstream: set upstream.url, for example redis://127.0.0.1:6379";
    assert_eq!(env_problem(&[]), message);
    assert_eq!(env_problem(&[("NEARSIDE_ENVIRONMENT", "production")]), message);
    assert_eq!(Written::new("upstream: {url: \"\"}").load(&[]).unwrap_err().to_string(), message);
    assert_eq!(Written::new(DOCUMENTED).load(&[]).unwrap_err().to_string(), message);
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
    assert_eq!(loaded("cache: {touch_interval: 90s}").cache.touch_interval, Some(Duration::from_secs(90)));
    let (_, warnings) = Written::new("warm: {before_ready: true}").load(&[UPSTREAM]).unwrap();
    assert!(
        warnings.iter().any(|w| w.starts_with("warm.before_ready is true and nothing is to be loaded")),
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
