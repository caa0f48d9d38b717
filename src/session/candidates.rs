//! `NEARSIDE CANDIDATES [n]`: what observe mode has found to be worth caching, as `GET /api/v1/candidates` has it, one map
//! each.

use super::Session;
use crate::observe::clock;
use crate::observe::shadow::TTLS_MS;
use crate::policy::candidates::{Candidate, Candidates};
use crate::resp::build;
use crate::worker::Ctx;

/// As many as fit a screen.
const SHOWN: usize = 10;

/// More families than this there are not.
const MOST: usize = 300;

impl Session {
    pub(super) fn candidates(&self, ctx: &Ctx, most: Option<&[u8]>, mute: bool) {
        let number = |text: &[u8]| std::str::from_utf8(text).ok()?.parse().ok().filter(|n| (1..=MOST).contains(n));
        let Some(most) = most.map_or(Some(SHOWN), number) else {
            return self.answer_error(mute, &format!("ERR how many candidates? a number from 1 to {MOST} is wanted"));
        };
        let config = ctx.live.running().load().config.clone();
        let found = Candidates::of(&ctx.metrics.shadow, &config, ctx.mode(), clock::now(), most);
        let proto = self.proto();
        self.answer(mute, |out| {
            build::array(out, found.items.len());
            for item in &found.items {
                let fields = fields(item);
                build::map_or_array(out, proto, fields.len());
                for (name, value) in &fields {
                    build::bulk(out, name.as_bytes());
                    build::bulk(out, value.as_bytes());
                }
            }
        });
    }
}

/// Empty: nothing is known, or there is none.
fn fields(item: &Candidate) -> Vec<(String, String)> {
    let number = |n: Option<f64>| n.map_or_else(String::new, |n| format!("{n:.3}"));
    let whole = |n: Option<f64>| n.map_or_else(String::new, |n| format!("{n:.0}"));
    let mut fields = vec![
        ("pattern", item.pattern.clone()),
        ("command", item.command.to_owned()),
        ("requests_per_minute", number(Some(item.requests_per_minute))),
        ("upstream_avg_ms", number(item.upstream.avg_ms)),
        ("upstream_p50_ms", number(item.upstream.p50_ms)),
        ("upstream_p99_ms", number(item.upstream.p99_ms)),
        ("value_bytes_avg", whole(item.value_bytes_avg)),
        ("distinct_keys", whole(Some(item.distinct_keys))),
        ("memory_bytes", item.memory_bytes.map_or_else(String::new, |bytes| bytes.to_string())),
        ("saved_requests_per_minute", number(Some(item.saved_per_minute.requests))),
        ("saved_bytes_per_minute", whole(Some(item.saved_per_minute.bytes))),
        ("saved_cost_per_minute", number(item.saved_per_minute.cost)),
        ("already_cached", if item.already_cached { "yes" } else { "no" }.to_owned()),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), value))
    .collect::<Vec<_>>();
    for ttl in TTLS_MS {
        let rate = item.hit_rate.iter().find(|rate| rate.ttl_ms == ttl && rate.max_bytes.is_none());
        fields.push((format!("hit_rate_ttl_{ttl}_ms"), number(rate.and_then(|rate| rate.hit_rate))));
    }
    fields.push(("rule_yaml".to_owned(), item.rule_yaml.clone().unwrap_or_default()));
    fields
}
