//! `GET /api/v1/dashboard/runs`: the connections of clients.

use std::sync::Arc;

use serde::Serialize;

use super::{List, rounded, share};
use crate::observe::runs::{self, BOUNDS_MS, Run, Seen};
use crate::observe::stamp;

#[derive(Serialize)]
pub(super) struct Runs {
    total: u64,
    active: u64,
    completed: u64,
    failed: u64,
    /// Of those that are over.
    success_rate: Option<f64>,
    durations: Durations,
    duration_histogram: Vec<Bucket>,
    recent: List<One>,
}

#[derive(Serialize)]
struct Durations {
    count: u64,
    avg_ms: Option<f64>,
    median_ms: Option<f64>,
    p95_ms: Option<f64>,
    p99_ms: Option<f64>,
}

/// How many took no longer than this and longer than the bucket before says; null: any longer.
#[derive(Serialize)]
struct Bucket {
    le_ms: Option<u64>,
    count: u64,
}

#[derive(Serialize)]
struct One {
    id: u64,
    addr: String,
    name: Option<String>,
    user: Option<String>,
    started: String,
    /// Null while it lives.
    ended: Option<String>,
    duration_ms: f64,
    commands: u64,
    hits: u64,
    misses: u64,
    errors: u64,
    bytes_in: u64,
    bytes_out: u64,
    end: Option<&'static str>,
    failed: bool,
}

impl Runs {
    pub(super) fn of(runs: &runs::Runs, max: usize) -> Runs {
        let seen = runs.seen();
        let quantile = |i: usize| seen.quantiles_ms.map(|all| all[i]);
        let bounds = BOUNDS_MS.into_iter().map(Some).chain([None]);
        Runs {
            total: seen.total,
            active: seen.active(),
            completed: seen.completed,
            failed: seen.failed,
            success_rate: share(seen.completed, seen.over()),
            durations: Durations {
                count: seen.over(),
                avg_ms: seen.avg_ms.map(rounded),
                median_ms: quantile(0),
                p95_ms: quantile(1),
                p99_ms: quantile(2),
            },
            duration_histogram: bounds.zip(seen.histogram).map(|(le_ms, count)| Bucket { le_ms, count }).collect(),
            recent: Runs::recent(&seen, max),
        }
    }

    fn recent(seen: &Seen, max: usize) -> List<One> {
        List { total: seen.total, items: seen.recent.iter().take(max).map(One::of).collect() }
    }
}

impl One {
    fn of(run: &Arc<Run>) -> One {
        let who = run.who();
        let duration_ms = run.duration_ms();
        let [commands, hits, bytes_in, bytes_out] = run.counted();
        let ended =
            run.is_over().then(|| stamp::at(run.started + std::time::Duration::from_secs_f64(duration_ms / 1e3)));
        One {
            id: run.id,
            addr: run.addr.clone(),
            name: who.name,
            user: who.user,
            started: stamp::at(run.started),
            ended,
            duration_ms: rounded(duration_ms),
            commands,
            hits,
            misses: run.misses.get(),
            errors: run.errors.get(),
            bytes_in,
            bytes_out,
            end: who.end.map(runs::End::as_str),
            failed: who.end.is_some_and(runs::End::failed),
        }
    }
}
