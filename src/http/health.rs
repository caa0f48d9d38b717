//! `GET /api/v1/dashboard/health`: how the process is, by named checks, and the loop that looks once a second. `/health` shows
//! the same checks beside what it always said. Liveness asks none of them.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use tokio::time::MissedTickBehavior;

use super::costs::prices;
use crate::config::{self, CoherenceMode, Config};
use crate::live::Running;
use crate::observe::health::{Check, Limits};
use crate::observe::reasons::Coherence;
use crate::observe::{View, clock, stamp, vitals};

/// Between two looks. Alerts are minutes apart; a look is some microseconds.
const INTERVAL: Duration = Duration::from_secs(1);

/// Looks for as long as the side port runs. What is too much is read anew each time: it can be changed.
pub(super) async fn watch(running: Arc<Running>, view: Arc<View>) {
    let memory = config::memory_limit();
    let mut ticks = tokio::time::interval(INTERVAL);
    // After a suspend one look is as good as a thousand.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut priced = None;
    loop {
        ticks.tick().await;
        let config = running.load().config.clone();
        view.status.vitals.set_limits(limits(&config, memory));
        let now = clock::now();
        if priced.as_ref().is_none_or(|old| !Arc::ptr_eq(old, &config)) {
            view.metrics.costs.set_prices(now, &view.metrics, prices(&config, &view.metrics));
            priced = Some(config);
        }
        view.metrics.costs.accrue(now, &view.metrics);
        view.status.vitals.look(&view);
    }
}

fn limits(config: &Config, memory: Option<u64>) -> Limits {
    let alerts = &config.alerts;
    Limits {
        error_rate: alerts.error_rate,
        p99: alerts.p99.as_nanos() as u64,
        hit_rate: alerts.hit_rate,
        min_requests: alerts.min_requests_per_minute,
        hold: alerts.hold.as_nanos() as u64,
        memory,
        chosen: match config.coherence.mode {
            CoherenceMode::Auto => None,
            CoherenceMode::Tracking => Some(Coherence::Tracking),
            CoherenceMode::Pubsub => Some(Coherence::Pubsub),
            CoherenceMode::Ttl => Some(Coherence::Ttl),
        },
    }
}

#[derive(Serialize)]
pub(super) struct Vitals {
    status: &'static str,
    since: String,
    uptime_ms: u64,
    rss_bytes: u64,
    /// Of one core, over the last 10 s.
    cpu_share: Option<f64>,
    checks: Vec<Shown>,
}

/// The same for a body that has a `status` of its own.
#[derive(Serialize)]
pub(super) struct Checks {
    health: &'static str,
    health_since: String,
    checks: Vec<Shown>,
}

#[derive(Serialize)]
struct Shown {
    name: &'static str,
    status: &'static str,
    value: Option<f64>,
    threshold: Option<f64>,
    unit: &'static str,
    since: String,
    message: String,
}

impl Vitals {
    pub(super) fn of(view: &View) -> Vitals {
        let report = view.status.vitals.look(view);
        Vitals {
            status: report.status.as_str(),
            since: stamp::ago(report.for_nanos),
            uptime_ms: vitals::uptime_ms(view),
            rss_bytes: report.rss,
            cpu_share: report.cpu_share,
            checks: report.checks.into_iter().map(Shown::of).collect(),
        }
    }
}

impl Checks {
    pub(super) fn of(view: &View) -> Checks {
        let report = view.status.vitals.look(view);
        Checks {
            health: report.status.as_str(),
            health_since: stamp::ago(report.for_nanos),
            checks: report.checks.into_iter().map(Shown::of).collect(),
        }
    }
}

impl Shown {
    fn of((check, for_nanos): (Check, u64)) -> Shown {
        let Check { name, status, value, threshold, unit, message } = check;
        let (name, status, since) = (name.as_str(), status.as_str(), stamp::ago(for_nanos));
        Shown { name, status, value, threshold, unit, since, message }
    }
}
