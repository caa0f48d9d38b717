//! `GET /api/v1/alerts`: what fires, and the last that were raised, newest first.

use serde::Serialize;

use crate::observe::alerts::Alert;
use crate::observe::{View, stamp};

#[derive(Serialize)]
pub(super) struct Alerts {
    /// How many fire now.
    active: usize,
    /// Raised since the start.
    total: u64,
    items: Vec<Item>,
}

#[derive(Serialize)]
pub(super) struct Item {
    name: &'static str,
    severity: &'static str,
    state: &'static str,
    since: String,
    resolved: Option<String>,
    value: f64,
    threshold: f64,
    unit: &'static str,
    message: String,
}

impl Alerts {
    pub(super) fn of(view: &View, max: usize) -> Alerts {
        let (recent, total, firing) = view.status.vitals.alerts();
        Alerts { active: firing.count, total, items: recent.into_iter().take(max).map(Item::of).collect() }
    }
}

impl Item {
    pub(super) fn of(alert: Alert) -> Item {
        Item {
            name: alert.name.as_str(),
            severity: alert.name.severity().as_str(),
            state: if alert.resolved.is_some() { "resolved" } else { "firing" },
            since: stamp::at_ms(alert.since),
            resolved: alert.resolved.map(stamp::at_ms),
            value: alert.value,
            threshold: alert.threshold,
            unit: alert.name.unit(),
            message: alert.message,
        }
    }
}
