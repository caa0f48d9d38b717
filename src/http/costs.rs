//! `GET /api/v1/dashboard/costs` (also `cost-breakdown`): what upstream has cost and what hits have saved since the start,
//! with the assumptions that the figures rest on.

use std::time::SystemTime;

use serde::Serialize;

use crate::config::Config;
use crate::observe::costs::{MONTH_MINUTES, Money, Prices, Projection, Snapshot, TREND};
use crate::observe::latency::MINUTE;
use crate::observe::metrics::Metrics;
use crate::observe::{clock, stamp};

/// Items of a list.
const SHOWN: usize = 10;

/// Minutes of the trend in the snapshot.
const TREND_BRIEF: usize = 15;

const GIB: f64 = (1 << 30) as f64;

/// What a configuration says that things cost. Rules that found no place of their own among the families have no
/// `cost_per_miss` here: their keys count under `_other` with those of everybody else.
pub(super) fn prices(config: &Config, metrics: &Metrics) -> Prices {
    let mut per_miss = Vec::new();
    for rule in config.rules.iter().filter(|rule| rule.cost_per_miss > 0.0) {
        let index = usize::from(metrics.patterns.of_rule(&rule.name).0);
        if index == 0 {
            continue;
        }
        per_miss.resize(per_miss.len().max(index + 1), 0.0);
        per_miss[index] = rule.cost_per_miss;
    }
    let costs = &config.costs;
    Prices {
        currency: costs.currency.clone(),
        per_request: costs.per_million_requests / 1e6,
        per_byte: costs.per_gib / GIB,
        per_miss,
    }
}

#[derive(Serialize)]
pub(super) struct Costs {
    currency: String,
    spent: f64,
    saved: f64,
    per_1000_requests: PerThousand,
    rules: List<Rule>,
    arms: List<Arm>,
    /// Not in the snapshot.
    #[serde(skip_serializing_if = "Option::is_none")]
    sessions: Option<List<Session>>,
    trend: Trend,
    projection: Option<Monthly>,
    assumptions: Vec<String>,
}

/// Null before the first command.
#[derive(Serialize)]
struct PerThousand {
    spent: Option<f64>,
    saved: Option<f64>,
}

#[derive(Serialize)]
struct List<T> {
    total: usize,
    items: Vec<T>,
}

#[derive(Serialize)]
struct Rule {
    rule: String,
    #[serde(flatten)]
    figures: Figures,
}

#[derive(Serialize)]
struct Arm {
    rule: String,
    arm: String,
    #[serde(flatten)]
    figures: Figures,
}

#[derive(Serialize)]
struct Session {
    client: String,
    id: u64,
    #[serde(flatten)]
    figures: Figures,
}

#[derive(Serialize)]
struct Figures {
    requests: u64,
    spent: f64,
    saved: f64,
}

#[derive(Serialize)]
struct Trend {
    step_ms: u64,
    /// When the last minute ends, which is the running one.
    end: String,
    spent: Vec<f64>,
    saved: Vec<f64>,
}

#[derive(Serialize)]
struct Monthly {
    monthly_spent: f64,
    monthly_saved: f64,
    basis_minutes: usize,
}

impl Costs {
    pub(super) fn of(metrics: &Metrics) -> Costs {
        let now = clock::now();
        let Snapshot { currency, total, per_thousand, rules, arms, sessions, trend, projection } =
            metrics.costs.snapshot(now, metrics);
        let assumptions = assumptions(projection);
        let left = std::time::Duration::from_nanos(MINUTE - now % MINUTE);
        Costs {
            currency,
            spent: total.spent,
            saved: total.saved,
            per_1000_requests: PerThousand {
                spent: per_thousand.map(|(spent, _)| spent),
                saved: per_thousand.map(|(_, saved)| saved),
            },
            rules: List::largest(rules, |(_, money)| *money, |(rule, money)| Rule { rule, figures: money.into() }),
            arms: List::largest(
                arms,
                |(_, _, money)| *money,
                |(rule, arm, money)| Arm { rule, arm, figures: money.into() },
            ),
            sessions: Some(List::largest(
                sessions,
                |(_, _, money)| *money,
                |(client, id, money)| Session { client, id, figures: money.into() },
            )),
            trend: Trend {
                step_ms: MINUTE / 1_000_000,
                end: stamp::at(SystemTime::now() + left),
                spent: trend.iter().map(|money| money.spent).collect(),
                saved: trend.iter().map(|money| money.saved).collect(),
            },
            projection: projection.map(|p| Monthly {
                monthly_spent: p.spent,
                monthly_saved: p.saved,
                basis_minutes: p.minutes,
            }),
            assumptions,
        }
    }

    /// As the snapshot has it: without sessions, its lists and its trend cut.
    pub(super) fn brief(metrics: &Metrics, max: usize) -> Costs {
        let mut costs = Costs::of(metrics);
        costs.sessions = None;
        costs.rules.items.truncate(max);
        costs.arms.items.truncate(max);
        costs.trend.spent.drain(..costs.trend.spent.len().saturating_sub(TREND_BRIEF));
        costs.trend.saved.drain(..costs.trend.saved.len().saturating_sub(TREND_BRIEF));
        costs
    }
}

impl<T> List<T> {
    /// Those that most money goes through, the largest first.
    fn largest<A>(mut all: Vec<A>, money: impl Fn(&A) -> Money, item: impl Fn(A) -> T) -> List<T> {
        let total = all.len();
        let weight = |one: &A| money(one).spent + money(one).saved;
        all.sort_by(|a, b| weight(b).total_cmp(&weight(a)).then(money(b).requests.cmp(&money(a).requests)));
        all.truncate(SHOWN);
        List { total, items: all.into_iter().map(item).collect() }
    }
}

impl From<Money> for Figures {
    fn from(money: Money) -> Figures {
        Figures { requests: money.requests, spent: money.spent, saved: money.saved }
    }
}

fn assumptions(projection: Option<Projection>) -> Vec<String> {
    let basis = match projection {
        Some(p) => format!("the month is {MONTH_MINUTES} minutes (730 h) like the last {} complete ones", p.minutes),
        None => "no projection yet: it needs 5 complete minutes".to_owned(),
    };
    let mut all: Vec<String> = [
        "a hit saves one request, its reply's bytes and its rule's cost_per_miss; an MGET that hits whole saves one request",
        "a key that is not answered from the cache costs its request, its reply's bytes and its rule's cost_per_miss, whether upstream had it or not",
        "_rest is every other command and byte on upstream's connections: writes, clients' own connections, and what Nearside sends by itself",
        "a read that joins another one's fetch costs no request, and saves none",
        "rules and totals at the prices of the time, arms and sessions at those of now",
    ]
    .map(str::to_owned)
    .into();
    all.push(basis);
    all
}

// The trend's length is part of the contract.
const _: () = assert!(TREND == 60);
