//! What the data path tells the world about itself: counters (`counters`, `metrics`, `patterns`), the words for every
//! reason (`reasons`), keys, values and commands that stand out (`hot_keys`, `slow_log`), the state of links and start (`status`), what was changed and by whom (`events`), the clock of leases
//! and fences (`clock`), how much is logged (`log`). Written by the
//! data path all the time, read by the side port's thread when somebody asks. Decides nothing and imports nothing from
//! above; the text that Prometheus scrapes is built in `families`, at scrape time only.

pub(crate) mod alerts;
pub(crate) mod arms;
pub(crate) mod clock;
pub(crate) mod costs;
pub(crate) mod counters;
pub(crate) mod durations;
pub(crate) mod events;
pub(crate) mod families;
pub(crate) mod health;
pub(crate) mod history;
pub(crate) mod hot_keys;
pub(crate) mod interval;
pub(crate) mod latency;
pub(crate) mod log;
pub(crate) mod metrics;
pub(crate) mod patterns;
pub(crate) mod policy;
mod process;
pub(crate) mod reasons;
pub(crate) mod runs;
pub(crate) mod shadow;
pub(crate) mod sizes;
pub(crate) mod slow_log;
pub(crate) mod stamp;
pub(crate) mod status;
pub(crate) mod upstream_size;
pub(crate) mod vitals;

use std::sync::Arc;

/// What the side port may look at.
pub(crate) struct View {
    pub(crate) metrics: Arc<metrics::Metrics>,
    pub(crate) status: Arc<status::Status>,
    /// Written and read by the side port alone.
    pub(crate) history: history::History,
}

impl View {
    pub(crate) fn new(metrics: Arc<metrics::Metrics>, status: Arc<status::Status>) -> View {
        View { metrics, status, history: history::History::default() }
    }
}
