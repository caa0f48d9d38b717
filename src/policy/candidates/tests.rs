use super::*;
use crate::observe::patterns::PatternId;
use crate::observe::shadow::{Came, Seen};

const SECOND: u64 = 1_000_000_000;

fn config(rules: &str) -> Config {
    Config::for_tests_with_rules(rules)
}

/// `requests` of a family in the first minute, each of one of ten keys, 1 ms each.
fn read(shadow: &Shadow, id: u16, name: &str, separator: u8, method: Method, requests: u64) {
    for i in 0..requests {
        let key = i % 10 + 1000 * u64::from(id);
        let seen = Seen { pattern: PatternId(id), key, form: key, separator };
        let came = Came { value: 100, weight: Some(600), absent_ms: None };
        shadow.read(name, &seen, method, Some(1_000_000), Some(came), i * 60 * SECOND / requests);
    }
}

fn observed() -> Shadow {
    let shadow = Shadow::default();
    shadow.observe(0, true);
    shadow
}

fn told(shadow: &Shadow, config: &Config, mode: CacheMode) -> Candidates {
    Candidates::of(shadow, config, mode, 60 * SECOND, 10)
}

#[test]
fn only_what_is_busy_and_slow_enough_is_one() {
    let shadow = observed();
    read(&shadow, 2, "busy", b':', Method::Get, 100);
    read(&shadow, 3, "quiet", b':', Method::Get, 99);
    read(&shadow, 4, "busier", b':', Method::Hgetall, 500);
    let mut config = config("[]");
    let names = |config: &Config| -> Vec<String> {
        told(&shadow, config, CacheMode::Observe).items.into_iter().map(|item| item.pattern).collect()
    };
    assert_eq!(names(&config), ["busier", "busy"], "what saves most comes first");
    config.observe.candidates.min_per_minute = 99;
    assert_eq!(names(&config).len(), 3);
    config.observe.candidates.min_latency = Duration::from_millis(2);
    assert!(names(&config).is_empty());
}

#[test]
fn what_is_told_of_one_adds_up() {
    let shadow = observed();
    read(&shadow, 2, "user", b':', Method::Get, 600);
    let found = told(&shadow, &config("[]"), CacheMode::Observe);
    assert_eq!((found.mode, found.total, found.sample_rate, found.tracked_keys), ("observe", 1, Some(1.0), 10));
    let item = &found.items[0];
    assert_eq!((item.command, item.requests_per_minute, item.distinct_keys), ("GET", 600.0, 10.0));
    assert_eq!((item.value_bytes_avg, item.upstream.count), (Some(100.0), 600));
    assert_eq!(item.upstream.avg_ms, Some(1.0));
    // Each key once a second: a TTL of 1 s has nothing, 10 s nine of ten, 60 s all but the first of ten keys.
    let rate = |ttl: u32, max: Option<u64>| {
        item.hit_rate.iter().find(|rate| rate.ttl_ms == ttl && rate.max_bytes == max).and_then(|rate| rate.hit_rate)
    };
    assert_eq!((rate(1000, None), rate(10_000, None)), (Some(0.0), Some(0.9)));
    assert_eq!((rate(60_000, None), rate(60_000, Some(1 << 20))), (Some(590.0 / 600.0), Some(590.0 / 600.0)));
    assert!((item.saved_per_minute.requests - 590.0).abs() < 0.001);
    assert!((item.saved_per_minute.bytes - 59_000.0).abs() < 0.1);
    assert!(item.memory_bytes.is_some_and(|bytes| (6000..=8000).contains(&bytes)), "{:?}", item.memory_bytes);
}

/// What is offered to be pasted is what the configuration takes, and caches what it was offered for.
#[test]
fn the_rule_can_be_pasted() {
    let shadow = observed();
    read(&shadow, 2, "user", b':', Method::Get, 600);
    read(&shadow, 2, "user", b':', Method::Hgetall, 600);
    read(&shadow, 3, "odd *[x]{y}? '\\ name", b':', Method::Mget, 600);
    read(&shadow, 4, "_plain", 0, Method::Get, 600);
    let none = config("[]");
    let items = told(&shadow, &none, CacheMode::Observe).items;
    assert_eq!(items.len(), 4);
    for (name, commands) in [
        ("user", &[Method::Get, Method::Mget, Method::Hgetall][..]),
        ("odd *[x]{y}? '\\ name", &[Method::Get, Method::Mget]),
    ] {
        let item = items.iter().find(|item| item.pattern == name).expect(name);
        let yaml = item.rule_yaml.as_deref().expect(name);
        let pasted = config(yaml);
        let rule = &pasted.rules[0];
        assert!(rule.pattern.matches(format!("{name}:1").as_bytes()) && !rule.pattern.matches(b"x:1"), "{yaml}");
        assert!(rule.name == name && rule.mode == RuleMode::Serve, "{yaml}");
        assert!(commands.iter().all(|method| rule.commands.has(*method)), "{yaml}");
        assert!(told(&shadow, &pasted, CacheMode::Serve).items.iter().any(|i| i.pattern == name && i.already_cached));
    }
    assert_eq!(items.iter().find(|item| item.pattern == "_plain").and_then(|item| item.rule_yaml.clone()), None);
}

#[test]
fn what_is_cached_already_is_told() {
    let shadow = observed();
    read(&shadow, 2, "user", b':', Method::Get, 600);
    let cached = |rules: &str, mode: CacheMode| told(&shadow, &config(rules), mode).items[0].already_cached;
    assert!(cached("[]", CacheMode::Serve));
    assert!(!cached("[]", CacheMode::Observe));
    assert!(!cached("[{pattern: 'user:*', mode: observe}]", CacheMode::Serve));
    assert!(!cached("[{pattern: 'user:*', commands: [HGETALL]}]", CacheMode::Serve));
    assert!(cached("[{name: people, pattern: 'us*'}]", CacheMode::Serve));
}

#[test]
fn a_rule_that_observes_is_offered_as_one_that_serves() {
    let shadow = observed();
    read(&shadow, 2, "people", 0, Method::Get, 600);
    let observing = config("[{name: people, pattern: 'u{id}', mode: observe}]");
    let yaml = told(&shadow, &observing, CacheMode::Serve).items[0].rule_yaml.clone().expect("a rule");
    let pasted = config(&yaml);
    assert_eq!((pasted.rules[0].pattern.text(), pasted.rules[0].mode), ("u{id}", RuleMode::Serve));
}
