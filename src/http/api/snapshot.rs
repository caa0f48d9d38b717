//! `GET /api/v1/dashboard`: all sections at one moment, each cut so that the whole stays below 10 KB. The same object goes out
//! on the stream of events once a second.

use serde::Serialize;
use serde_json::Value;

use super::super::policy::Policy;
use super::LIST_MAX_IN_SNAPSHOT;
use super::cache::Cache;
use super::numbers::Numbers;
use super::runs::Runs;
use crate::config::Config;
use crate::observe::View;

/// Of the sessions; each has some 300 bytes.
const RUNS_MAX: usize = 3;

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

impl Snapshot {
    pub(in crate::http) fn of(view: &View, config: &Config) -> Snapshot {
        Snapshot {
            health: health(view),
            metrics: Numbers::brief(view),
            cache: Cache::of(view, config, LIST_MAX_IN_SNAPSHOT),
            policy: Policy::without_recent(&view.metrics),
            costs: costs(view),
            runs: Runs::of(&view.metrics.runs, RUNS_MAX),
            alerts: alerts(view),
        }
    }
}

/// As `/api/v1/dashboard/health`.
fn health(_: &View) -> Section {
    None
}

/// As `/api/v1/dashboard/costs`, without `sessions`, its trend cut to 15.
fn costs(_: &View) -> Section {
    None
}

/// As `/api/v1/alerts`.
fn alerts(_: &View) -> Section {
    None
}
