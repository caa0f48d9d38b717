//! The dashboard's JSON: what each section says, and the snapshot that has them all. Everything is read from `observe` when
//! somebody asks, on the side port's thread; nothing of it touches the data path. What is not known is null, never 0.
//!
//! `events` is the stream; the other files are a section each. Shapes are for others to build on: a field may come, none
//! goes or changes its meaning within `/api/v1`.

mod cache;
pub(super) mod events;
mod history;
mod numbers;
mod runs;
mod snapshot;
#[cfg(test)]
mod tests;

use hyper::body::Body;
use hyper::{Request, StatusCode};
use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};

use super::change::{malformed, refusal};
use super::query::query;
use super::routes::{Answer, Refusal, Routes, json, json_text, readable, to_text};
use crate::observe::durations::Durations;
use crate::observe::history::Range;

/// Items of a list; the whole snapshot has less room.
const LIST_MAX: usize = 10;

/// Characters of a text that comes from elsewhere.
const TEXT_MAX: usize = 100;

/// The sections that are asked for by a path of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Section {
    Snapshot,
    Numbers,
    Cache,
    Runs,
    History,
    Events,
    OpenApi,
}

/// The description of everything on the port.
pub(super) const OPENAPI: &str = include_str!("openapi.json");

impl Routes {
    pub(super) fn section<B: Body>(&self, section: Section, request: &Request<B>) -> Result<Answer, Refusal> {
        readable(request)?;
        let known: &[&str] = if section == Section::History { &["range"] } else { &[] };
        let asked = query(request, known)?;
        let (view, running) = (&*self.view, self.running.load());
        Ok(match section {
            Section::Snapshot => json_text(snapshot::fitted(view, &running.config, |snapshot| to_text(&snapshot))),
            Section::Numbers => json(StatusCode::OK, numbers::Numbers::of(view)),
            Section::Cache => json(StatusCode::OK, cache::Cache::of(view, &running.config, LIST_MAX)),
            Section::Runs => json(StatusCode::OK, runs::Runs::of(&view.metrics.runs, LIST_MAX)),
            Section::History => json(StatusCode::OK, history::History::of(&view.history, range(&asked)?)),
            Section::OpenApi => json_text(Some(OPENAPI)),
            Section::Events => self.hub.open(request, self)?,
        })
    }
}

fn range(asked: &[(String, String)]) -> Result<Range, Refusal> {
    let Some((_, word)) = asked.first() else { return Ok(Range::Quarter) };
    Range::parse(word).ok_or_else(|| malformed(format!("range: {word:?} is none of {}", Range::WORDS.join(", "))))
}

pub(super) fn busy(message: String) -> Refusal {
    refusal(StatusCode::SERVICE_UNAVAILABLE, "busy", message)
}

/// The first of a longer list, and how long that is.
#[derive(Serialize)]
pub(super) struct List<T> {
    pub(super) total: u64,
    pub(super) items: Vec<T>,
}

impl<T> List<T> {
    fn first(items: Vec<T>, max: usize) -> List<T> {
        let total = items.len() as u64;
        List { total, items: items.into_iter().take(max).collect() }
    }
}

/// Counts by word, in the words' order.
struct Words(Vec<(&'static str, u64)>);

impl Serialize for Words {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (word, count) in &self.0 {
            map.serialize_entry(word, count)?;
        }
        map.end()
    }
}

/// A summary of durations.
#[derive(Serialize)]
struct Q {
    count: u64,
    avg_ms: Option<f64>,
    p50_ms: Option<f64>,
    p95_ms: Option<f64>,
    p99_ms: Option<f64>,
}

impl Q {
    fn of(durations: &Durations) -> Q {
        let quantile = |q| durations.quantile_ms(q).map(rounded);
        Q {
            count: durations.count(),
            avg_ms: durations.mean_ms().map(rounded),
            p50_ms: quantile(0.5),
            p95_ms: quantile(0.95),
            p99_ms: quantile(0.99),
        }
    }
}

/// To six places: a nanosecond of a millisecond, a millionth of a share.
fn rounded(value: f64) -> f64 {
    (value * 1e6).round() / 1e6
}

/// None of nothing is no share.
fn share(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| rounded(part as f64 / whole as f64))
}

/// A text of somebody else's, at a length that a list has room for.
pub(super) fn cut(text: &str) -> String {
    text.chars().take(TEXT_MAX).collect()
}
