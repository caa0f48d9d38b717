//! What is worth caching: the shadow's figures (`observe::shadow`), with the configuration's thresholds, as a list that is
//! ordered by how many requests a minute upstream would be spared, each with a rule that can be pasted. For
//! `GET /api/v1/candidates` and NEARSIDE CANDIDATES; made when somebody asks.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use crate::command::cacheable::KeptCommands;
use crate::config::{CacheMode, Config, Rule, RuleMode, suggested};
use crate::observe::reasons::Method;
use crate::observe::shadow::{Hist, Learned, Shadow, TTLS_MS, Told};
use crate::observe::stamp;

/// The sizes at which hit rates are told, beside that of a cache without bound.
const SIZES: [u64; 4] = [1 << 20, 8 << 20, 64 << 20, 512 << 20];

/// The shortest TTL is suggested that has so much of what the longest would bring.
const NEAR_ENOUGH: f64 = 0.95;

const NANOS_PER_MS: f64 = 1e6;
const GIB: f64 = (1 << 30) as f64;

#[derive(Clone, Debug, Serialize)]
pub(crate) struct Candidates {
    pub(crate) mode: &'static str,
    /// Null: never.
    pub(crate) observed_since: Option<String>,
    /// Of all reads, those of keys that are followed.
    pub(crate) sample_rate: Option<f64>,
    pub(crate) tracked_keys: usize,
    /// Reads that are in no figure here, because there are too many families.
    pub(crate) not_observed: u64,
    /// How many there are, shown or not.
    pub(crate) total: usize,
    pub(crate) items: Vec<Candidate>,
}

#[derive(Clone, Debug, Serialize)]
pub(crate) struct Candidate {
    pub(crate) pattern: String,
    pub(crate) command: &'static str,
    pub(crate) requests_per_minute: f64,
    pub(crate) upstream: Durations,
    pub(crate) value_bytes_avg: Option<f64>,
    /// Read in the last half hour, about.
    pub(crate) distinct_keys: f64,
    pub(crate) hit_rate: Vec<Rate>,
    /// With which a cache of the suggested TTL has 99 of 100 hits.
    pub(crate) memory_bytes: Option<u64>,
    pub(crate) saved_per_minute: Saved,
    pub(crate) already_cached: bool,
    /// Null: no pattern names these keys.
    pub(crate) rule_yaml: Option<String>,
}

#[derive(Clone, Debug, Serialize)]
pub(crate) struct Durations {
    pub(crate) count: u64,
    pub(crate) avg_ms: Option<f64>,
    pub(crate) p50_ms: Option<f64>,
    pub(crate) p95_ms: Option<f64>,
    pub(crate) p99_ms: Option<f64>,
}

#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Rate {
    pub(crate) ttl_ms: u32,
    /// Null: without bound.
    pub(crate) max_bytes: Option<u64>,
    pub(crate) hit_rate: Option<f64>,
}

#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Saved {
    pub(crate) requests: f64,
    pub(crate) bytes: f64,
    pub(crate) cost: Option<f64>,
}

/// One command of a family, before it is known how its rule would look.
struct Found<'t> {
    told: &'t Told,
    method: Method,
    per_minute: f64,
    /// Of `TTLS_MS`.
    ttl: usize,
    traffic: &'t Hist,
}

impl Candidates {
    /// At most `most` items.
    pub(crate) fn of(shadow: &Shadow, config: &Config, mode: CacheMode, now: u64, most: usize) -> Candidates {
        let told = shadow.snapshot(now);
        let mut found: Vec<Found<'_>> = told.groups.iter().flat_map(|told| found(told, config)).collect();
        found.sort_by(|a, b| b.saved(config).partial_cmp(&a.saved(config)).unwrap_or(Ordering::Equal));
        let total = found.len();
        let rules = rules(&found, config);
        let items = found.iter().take(most).map(|found| found.candidate(config, mode, &rules)).collect();
        Candidates {
            mode: mode.as_str(),
            observed_since: (told.began > 0).then(|| stamp::at_ms(told.began)),
            sample_rate: told.sample_rate,
            tracked_keys: told.tracked,
            not_observed: told.missed,
            total,
            items,
        }
    }
}

/// What the commands of one group are, as far as they are above the thresholds.
fn found<'t>(told: &'t Told, config: &Config) -> impl Iterator<Item = Found<'t>> {
    let limits = config.observe.candidates;
    let methods = [told.method, Method::Mget];
    let traffic =
        told.learned.traffic.iter().zip(methods).filter_map(|(traffic, method)| Some((traffic.as_ref()?, method)));
    traffic.filter_map(move |(traffic, method)| {
        let per_minute = traffic.count / told.minutes;
        let slow = Duration::from_nanos(traffic.mean()? as u64) >= limits.min_latency;
        let busy = per_minute >= f64::from(limits.min_per_minute);
        (slow && busy).then(|| Found { told, method, per_minute, ttl: ttl(&told.learned), traffic })
    })
}

/// The shortest TTL that is about as good as the longest, of `TTLS_MS`.
fn ttl(learned: &Learned) -> usize {
    let rate = |i: usize| learned.hit_rate(i, None).unwrap_or(0.0);
    let best = rate(TTLS_MS.len() - 1);
    (0..TTLS_MS.len()).find(|i| rate(*i) >= best * NEAR_ENOUGH).unwrap_or(TTLS_MS.len() - 1)
}

/// The rule that each family would be given: of several commands one, since the first that matches wins.
fn rules(found: &[Found<'_>], config: &Config) -> BTreeMap<String, String> {
    let mut by_family: BTreeMap<&str, (u8, Vec<Method>, usize)> = BTreeMap::new();
    for found in found {
        let learned = &found.told.learned;
        let family = by_family.entry(&found.told.name).or_insert((learned.separator, Vec::new(), found.ttl));
        // What is cached of GET is there for MGET, and the other way round.
        let both = matches!(found.method, Method::Get | Method::Mget);
        let methods = if both { &[Method::Get, Method::Mget][..] } else { std::slice::from_ref(&found.method) };
        family.1.extend(methods);
        family.2 = family.2.min(found.ttl);
    }
    let yaml = |(name, (separator, methods, ttl)): (&str, (u8, Vec<Method>, usize))| {
        let pattern = pattern_of(name, separator, config)?;
        let commands: KeptCommands = methods.into_iter().collect();
        let ttl = Duration::from_millis(u64::from(TTLS_MS[ttl]));
        Some((name.to_owned(), suggested(name, &pattern, commands, ttl, &config.cache)?))
    };
    by_family.into_iter().filter_map(yaml).collect()
}

/// The pattern of a family's keys: that of the rule by which it is called, else its name up to the separator.
fn pattern_of(name: &str, separator: u8, config: &Config) -> Option<String> {
    if let Some(rule) = rule_called(name, config) {
        return Some(rule.pattern.text().to_owned());
    }
    if separator == 0 || !separator.is_ascii_graphic() {
        return None;
    }
    let mut pattern = String::new();
    for c in name.chars().chain([char::from(separator)]) {
        if "*?[]{}\\".contains(c) {
            pattern.push('\\');
        }
        pattern.push(c);
    }
    pattern.push('*');
    Some(pattern)
}

fn rule_called<'c>(name: &str, config: &'c Config) -> Option<&'c Rule> {
    config.rules.iter().find(|rule| rule.name == name)
}

impl Found<'_> {
    fn rate(&self, max_bytes: Option<u64>) -> f64 {
        self.told.learned.hit_rate(self.ttl, max_bytes).unwrap_or(0.0)
    }

    /// Requests a minute that upstream would be spared by the suggested rule with all of the cache to itself.
    fn saved(&self, config: &Config) -> f64 {
        self.per_minute * self.rate(Some(config.cache.max_bytes))
    }

    fn candidate(&self, config: &Config, mode: CacheMode, rules: &BTreeMap<String, String>) -> Candidate {
        let learned = &self.told.learned;
        let average = (learned.reads > 0.0).then(|| learned.value_bytes / learned.reads);
        let requests = self.saved(config);
        let sizes = SIZES.into_iter().map(Some).chain([None]);
        let rates = (0..TTLS_MS.len()).flat_map(|i| {
            sizes.clone().map(move |max_bytes| Rate {
                ttl_ms: TTLS_MS[i],
                max_bytes,
                hit_rate: learned.hit_rate(i, max_bytes),
            })
        });
        let bytes = requests * average.unwrap_or(0.0) * self.keys_per_request();
        Candidate {
            pattern: self.told.name.to_string(),
            command: self.method.as_str(),
            requests_per_minute: self.per_minute,
            upstream: Durations::of(self.traffic),
            value_bytes_avg: average,
            distinct_keys: self.told.distinct,
            hit_rate: rates.collect(),
            memory_bytes: learned.memory(self.ttl),
            saved_per_minute: Saved { requests, bytes, cost: cost(config, &self.told.name, requests, bytes) },
            already_cached: is_cached(config, mode, self),
            rule_yaml: rules.get(&*self.told.name).cloned(),
        }
    }

    /// MGET reads several at once; those of a group are not counted apart.
    fn keys_per_request(&self) -> f64 {
        let requests: f64 = self.told.learned.traffic.iter().flatten().map(|traffic| traffic.count).sum();
        if requests > 0.0 { (self.told.learned.reads / requests).max(1.0) } else { 1.0 }
    }
}

/// What so many requests and bytes less save a minute, by the prices of the configuration and by what a miss of the rule of
/// that name costs; none where nothing has a price.
fn cost(config: &Config, pattern: &str, requests: f64, bytes: f64) -> Option<f64> {
    let (costs, rule) = (&config.costs, config.rules.iter().find(|rule| rule.name == pattern));
    let per_miss = rule.map_or(0.0, |rule| rule.cost_per_miss);
    let cost = requests * (costs.per_million_requests / 1e6 + per_miss) + bytes / GIB * costs.per_gib;
    (per_miss > 0.0 || costs.per_million_requests > 0.0 || costs.per_gib > 0.0).then_some(cost)
}

/// Whether the rules in force keep it, as far as the family's name tells: a rule that takes only some of its keys is found by
/// a key that is called like the family.
fn is_cached(config: &Config, mode: CacheMode, found: &Found<'_>) -> bool {
    if mode != CacheMode::Serve {
        return false;
    }
    if config.rules.is_empty() {
        return config.cache.commands.has(found.method);
    }
    let name = &found.told.name;
    let example = format!("{name}{}0", char::from(found.told.learned.separator));
    let matching = || config.rules.iter().find(|rule| rule.pattern.matches(example.as_bytes()));
    let rule = rule_called(name, config).or_else(matching);
    rule.is_some_and(|rule| rule.mode == RuleMode::Serve && rule.commands.has(found.method))
}

impl Durations {
    fn of(hist: &Hist) -> Durations {
        let at = |q: f64| hist.quantile(q).map(|nanos| nanos / NANOS_PER_MS);
        Durations {
            count: hist.count.round() as u64,
            avg_ms: hist.mean().map(|nanos| nanos / NANOS_PER_MS),
            p50_ms: at(0.5),
            p95_ms: at(0.95),
            p99_ms: at(0.99),
        }
    }
}

#[cfg(test)]
mod tests;
