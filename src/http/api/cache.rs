//! `GET /api/v1/dashboard/cache`: what the L1 holds, how often it had what was asked for, by rule and by family of keys, why
//! entries went, and what is behind it.

use std::cmp::Reverse;
use std::collections::HashSet;

use serde::Serialize;

use super::{List, Words, share};
use crate::config::Config;
use crate::observe::View;
use crate::observe::metrics::Metrics;
use crate::observe::reasons::Mode;
use crate::observe::status::Status;

#[derive(Serialize)]
pub(super) struct Cache {
    mode: &'static str,
    /// As the label of `cache_enabled`: `l1` while it serves.
    #[serde(rename = "impl")]
    implementation: &'static str,
    coherence_mode: &'static str,
    entries: u64,
    bytes: u64,
    max_bytes: u64,
    hits: u64,
    misses: u64,
    hit_rate: Option<f64>,
    stale_served: u64,
    coalesced: u64,
    sets: u64,
    dels: u64,
    evictions: Words,
    invalidations: Words,
    fills_discarded: Words,
    rules: List<Rule>,
    patterns: List<Pattern>,
    upstream: Upstream,
}

#[derive(Serialize)]
struct Rule {
    rule: String,
    /// `serve` or `off`, as the rule says.
    mode: &'static str,
    #[serde(flatten)]
    counts: Counts,
}

#[derive(Serialize)]
struct Pattern {
    pattern: String,
    #[serde(flatten)]
    counts: Counts,
}

#[derive(Clone, Copy, Default, Serialize)]
struct Counts {
    hits: u64,
    misses: u64,
    hit_rate: Option<f64>,
    sets: u64,
    dels: u64,
}

#[derive(Serialize)]
struct Upstream {
    up: bool,
    /// Of the circuit breaker.
    state: &'static str,
    server: Option<String>,
    version: Option<String>,
    /// Of the embedded engine, or as upstream last said; none while that is not known.
    memory_bytes: Option<u64>,
    keys: Option<u64>,
    backend: &'static str,
}

impl Cache {
    /// With at most `max` rules and patterns, those with the most look-ups.
    pub(super) fn of(view: &View, config: &Config, max: usize) -> Cache {
        let (metrics, status) = (&view.metrics, &view.status);
        let (hits, misses) = (metrics.hits(), metrics.misses());
        let all: Vec<(String, Counts)> = counts(metrics);
        let sum = |read: fn(&Counts) -> u64| all.iter().map(|(_, counts)| read(counts)).sum();
        let (sets, dels) = (sum(|c| c.sets), sum(|c| c.dels));
        let mode = status.mode();
        Cache {
            mode: mode.as_str(),
            implementation: if mode == Mode::Serve { "l1" } else { mode.as_str() },
            coherence_mode: status.coherence().as_str(),
            entries: metrics.entries.get(),
            bytes: metrics.bytes.get(),
            max_bytes: config.cache.max_bytes,
            hits,
            misses,
            hit_rate: share(hits, hits + misses),
            stale_served: metrics.stale_served.get(),
            coalesced: metrics.coalesced.get(),
            sets,
            dels,
            evictions: Words(metrics.evictions.iter().collect()),
            invalidations: Words(metrics.invalidations.iter().collect()),
            fills_discarded: Words(metrics.discarded.iter().collect()),
            rules: rules(&all, config, max),
            patterns: patterns(all, config, max),
            upstream: Upstream::of(metrics, status),
        }
    }
}

fn counts(metrics: &Metrics) -> Vec<(String, Counts)> {
    let of = |(name, of): (&str, crate::observe::metrics::Counts)| {
        let (hits, misses) = (of.hits, of.misses);
        let counts = Counts { hits, misses, hit_rate: share(hits, hits + misses), sets: of.sets, dels: of.dels };
        (name.to_owned(), counts)
    };
    metrics.by_family().map(of).collect()
}

fn rules(all: &[(String, Counts)], config: &Config, max: usize) -> List<Rule> {
    let count = |name: &str| all.iter().find(|(other, _)| other == name).map(|(_, counts)| *counts);
    let one = |rule: &crate::config::Rule| Rule {
        rule: rule.name.clone(),
        mode: rule.mode.as_str(),
        counts: count(&rule.name).unwrap_or_default(),
    };
    let mut items: Vec<Rule> = config.rules.iter().map(one).collect();
    // Stable: rules of the same weight stand as they are asked.
    items.sort_by_key(|item| Reverse(item.counts.hits + item.counts.misses));
    List::first(items, max)
}

/// Families of keys that are counted under no rule of the present ones.
fn patterns(all: Vec<(String, Counts)>, config: &Config, max: usize) -> List<Pattern> {
    let of_rules: HashSet<&str> = config.rules.iter().map(|rule| rule.name.as_str()).collect();
    let others = all.into_iter().filter(|(name, _)| !of_rules.contains(name.as_str()));
    let mut items: Vec<Pattern> = others.map(|(pattern, counts)| Pattern { pattern, counts }).collect();
    items.sort_by_key(|item| Reverse(item.counts.hits + item.counts.misses));
    List::first(items, max)
}

impl Upstream {
    fn of(metrics: &Metrics, status: &Status) -> Upstream {
        let embedded = status.backend() != "upstream";
        let (server, version) = status.server().unzip();
        Upstream {
            up: embedded || status.upstream_up(),
            state: status.breaker().as_str(),
            server,
            version,
            memory_bytes: if embedded { Some(metrics.local.bytes.get()) } else { metrics.upstream_size.memory() },
            keys: if embedded { Some(metrics.local.keys.get()) } else { metrics.upstream_size.keys() },
            backend: status.backend(),
        }
    }
}
