//! `GET /api/v1/dashboard/metrics`: how many commands of what kind, how long they took, what failed.

use serde::Serialize;

use super::{Q, Words, rounded, share};
use crate::observe::View;
use crate::observe::durations::Durations;
use crate::observe::history::{Took, Window};
use crate::observe::reasons::Peer;

#[derive(Serialize)]
pub(super) struct Numbers {
    operations: Operations,
    /// Over the last ten seconds; null before the first is over.
    requests_per_second: Option<f64>,
    upstream_requests_per_second: Option<f64>,
    /// Requests answered from the L1, and those that joined a fetch of somebody else's.
    upstream_requests_saved: u64,
    hit_rate: Option<f64>,
    /// Replies that were errors, whoever's, and refusals while upstream was gone.
    errors: u64,
    error_rate: Option<f64>,
    /// Those that the sidecar knows the reason of.
    errors_by_type: Words,
    durations: Summaries,
    windows: Windows,
    bytes: Bytes,
    /// Absent in the whole snapshot.
    #[serde(skip_serializing_if = "Option::is_none")]
    bypass: Option<Words>,
}

#[derive(Serialize)]
struct Operations {
    total: u64,
    #[serde(flatten)]
    by_word: Words,
}

#[derive(Serialize)]
struct Summaries {
    all: Q,
    hit: Q,
    miss: Q,
    upstream: Q,
}

/// The last two are absent in the whole snapshot.
#[derive(Serialize)]
struct Windows {
    #[serde(rename = "1m")]
    minute: Counted,
    #[serde(rename = "15m", skip_serializing_if = "Option::is_none")]
    quarter: Option<Counted>,
    #[serde(rename = "60m", skip_serializing_if = "Option::is_none")]
    hour: Option<Counted>,
}

/// The running minute and as many complete ones as the window's name says.
#[derive(Serialize)]
struct Counted {
    requests: u64,
    hits: u64,
    misses: u64,
    hit_rate: Option<f64>,
    errors: u64,
    error_rate: Option<f64>,
    durations: Summaries,
}

#[derive(Serialize)]
struct Bytes {
    client_in: u64,
    client_out: u64,
    upstream_in: u64,
    upstream_out: u64,
}

impl Numbers {
    pub(super) fn of(view: &View) -> Numbers {
        let (durations, [minute, quarter, hour]) = view.history.windows(view, [1, 15, 60]);
        let brief = Numbers::new(view, &durations, &minute);
        let (quarter, hour) = (Some(Counted::of(&quarter)), Some(Counted::of(&hour)));
        let windows = Windows { quarter, hour, ..brief.windows };
        Numbers { windows, bypass: Some(Words(view.metrics.bypass.iter().collect())), ..brief }
    }

    /// As the whole snapshot has it.
    pub(super) fn brief(view: &View) -> Numbers {
        let (durations, [minute]) = view.history.windows(view, [1]);
        Numbers::new(view, &durations, &minute)
    }

    fn new(view: &View, durations: &[Durations; 4], minute: &Window) -> Numbers {
        let metrics = &view.metrics;
        let operations = metrics.operations();
        let (hits, misses) = (metrics.hits(), metrics.misses());
        let errors = metrics.failed.get();
        let (client_in, client_out) = metrics.bytes_of_clients();
        Numbers {
            requests_per_second: view.history.rate("requests").map(rounded),
            upstream_requests_per_second: view.history.rate("upstream_requests").map(rounded),
            upstream_requests_saved: durations[Took::Hit as usize].count() + metrics.coalesced.get(),
            hit_rate: share(hits, hits + misses),
            errors,
            error_rate: share(errors, operations.total),
            errors_by_type: Words(metrics.errors.iter().collect()),
            durations: Summaries::of(durations),
            windows: Windows { minute: Counted::of(minute), quarter: None, hour: None },
            bytes: Bytes {
                client_in,
                client_out,
                upstream_in: metrics.bytes_in.get(Peer::Upstream),
                upstream_out: metrics.bytes_out.get(Peer::Upstream),
            },
            bypass: None,
            operations: Operations { total: operations.total, by_word: Words(operations.by_word.into()) },
        }
    }
}

impl Summaries {
    fn of(durations: &[Durations; 4]) -> Summaries {
        let of = |took: Took| Q::of(&durations[took as usize]);
        Summaries { all: of(Took::All), hit: of(Took::Hit), miss: of(Took::Miss), upstream: of(Took::Upstream) }
    }
}

impl Counted {
    fn of(window: &Window) -> Counted {
        let Window { requests, hits, misses, errors, ref durations } = *window;
        Counted {
            requests,
            hits,
            misses,
            hit_rate: share(hits, hits + misses),
            errors,
            error_rate: share(errors, requests),
            durations: Summaries::of(durations),
        }
    }
}
