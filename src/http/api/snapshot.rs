//! `GET /api/v1/dashboard`: all sections at one moment, each cut so that the whole stays below 10 KB. The same object goes out
//! on the stream of events once a second.

use serde::Serialize;
use serde_json::Value;

use super::super::policy::Policy;
use super::cache::Cache;
use super::numbers::Numbers;
use super::runs::Runs;
use crate::config::Config;
use crate::observe::View;

/// What is promised is 10 KB; the stream's `last` is within it.
const BYTES_MAX: usize = 10_000;

/// How much of each list there is room for.
#[derive(Clone, Copy)]
struct Detail {
    lists: usize,
    runs: usize,
    alerts: usize,
}

/// From the usual one down to what fits whatever names there are: long ones make lists shorter, not the answer longer. Each
/// list says its total.
const DETAILS: [Detail; 3] = [
    Detail { lists: 5, runs: 3, alerts: 20 },
    Detail { lists: 3, runs: 2, alerts: 10 },
    Detail { lists: 1, runs: 1, alerts: 5 },
];

#[derive(Serialize)]
pub(in crate::http) struct Snapshot {
    health: Section,
    metrics: Numbers,
    cache: Cache,
    policy: Policy,
    costs: Section,
    runs: Runs,
    alerts: Section,
}

/// A section that is built elsewhere; null until it is there.
type Section = Option<Value>;

/// The snapshot as `write` puts it into text, with as much detail as there is room for.
pub(in crate::http) fn fitted(
    view: &View,
    config: &Config,
    write: impl Fn(Snapshot) -> Option<String>,
) -> Option<String> {
    let texts = DETAILS.iter().map(|detail| write(Snapshot::of(view, config, *detail)));
    let mut last = None;
    for text in texts {
        last = text;
        if last.as_ref().is_none_or(|text| text.len() <= BYTES_MAX) {
            break;
        }
    }
    last
}

impl Snapshot {
    fn of(view: &View, config: &Config, detail: Detail) -> Snapshot {
        Snapshot {
            health: health(view),
            metrics: Numbers::brief(view),
            cache: Cache::of(view, config, detail.lists),
            policy: Policy::without_recent(&view.metrics),
            costs: costs(view, detail.lists),
            runs: Runs::of(&view.metrics.runs, detail.runs),
            alerts: alerts(view, detail.alerts),
        }
    }
}

/// As `/api/v1/dashboard/health`.
fn health(_: &View) -> Section {
    None
}

/// As `/api/v1/dashboard/costs`, without `sessions`, its trend cut to 15.
fn costs(_: &View, _max: usize) -> Section {
    None
}

/// As `/api/v1/alerts`.
fn alerts(_: &View, _max: usize) -> Section {
    None
}
