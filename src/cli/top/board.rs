//! What `nearside top` knows: the newest look, the last minutes for the sparklines, and since when nothing has come. Numbers
//! are taken from the JSON by their path; one that is not there is unknown, never 0.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::feed::{Look, News};

/// Seconds of the sparklines: as many as the widest terminal has columns for.
const PAST_MAX: usize = 300;

pub(super) struct Board {
    /// Where it is asked, for the header.
    pub(super) place: String,
    look: Option<Look>,
    /// Why the last question had no answer, and since when none has had one.
    pub(super) lost: Option<(String, Instant)>,
    pub(super) requests: Past,
    pub(super) upstream: Past,
    /// Hits in 100 look-ups of a second.
    pub(super) hit_rate: Past,
    /// Hits and look-ups when they were last seen.
    counted: Option<(f64, f64)>,
}

/// One number a second, oldest first.
#[derive(Default)]
pub(super) struct Past(VecDeque<u64>);

impl Past {
    fn push(&mut self, value: f64) {
        if self.0.len() == PAST_MAX {
            self.0.pop_front();
        }
        self.0.push_back(value.max(0.0).round() as u64);
    }

    /// The newest `n`, as many as there are.
    pub(super) fn last(&self, n: usize) -> Vec<u64> {
        self.0.iter().skip(self.0.len().saturating_sub(n)).copied().collect()
    }
}

impl Board {
    pub(super) fn new(place: String) -> Board {
        Board {
            place,
            look: None,
            lost: None,
            requests: Past::default(),
            upstream: Past::default(),
            hit_rate: Past::default(),
            counted: None,
        }
    }

    pub(super) fn hear(&mut self, news: News) {
        match news {
            News::Past(history) => self.seed(history),
            News::Lost(why) => {
                let since = self.lost.take().map_or_else(Instant::now, |(_, since)| since);
                self.lost = Some((why, since));
                // Rates of before say nothing about now.
                self.counted = None;
            }
            News::Snapshot(look) => self.see(*look),
        }
    }

    /// `/api/v1/history` in steps of a second.
    pub(super) fn seed(&mut self, history: Value) {
        let series = |name: &str| {
            let list = history.pointer(&format!("/series/{name}")).and_then(Value::as_array);
            list.into_iter().flatten().filter_map(Value::as_f64).collect::<Vec<_>>()
        };
        series("requests").into_iter().for_each(|n| self.requests.push(n));
        series("upstream_requests").into_iter().for_each(|n| self.upstream.push(n));
        let lookups = series("hits").into_iter().zip(series("misses"));
        lookups.for_each(|(hits, misses)| self.hit_rate.push(percent(hits, hits + misses)));
    }

    fn see(&mut self, look: Look) {
        self.lost = None;
        let number = |path: &str| look.dashboard.pointer(path).and_then(Value::as_f64);
        self.requests.push(number("/metrics/requests_per_second").unwrap_or(0.0));
        self.upstream.push(number("/metrics/upstream_requests_per_second").unwrap_or(0.0));
        if let (Some(hits), Some(misses)) = (number("/cache/hits"), number("/cache/misses")) {
            let (before, asked) = self.counted.unwrap_or((hits, hits + misses));
            // Counts start again with the process.
            if hits + misses >= asked && self.counted.is_some() {
                self.hit_rate.push(percent(hits - before, hits + misses - asked));
            }
            self.counted = Some((hits, hits + misses));
        }
        self.look = Some(look);
    }

    fn dashboard(&self) -> &Value {
        self.look.as_ref().map_or(&Value::Null, |look| &look.dashboard)
    }

    pub(super) fn number(&self, path: &str) -> Option<f64> {
        self.dashboard().pointer(path)?.as_f64()
    }

    /// A word of the snapshot; `?` where it is unknown.
    pub(super) fn word(&self, path: &str) -> String {
        self.dashboard().pointer(path).and_then(Value::as_str).map_or_else(|| "?".to_owned(), clean)
    }

    pub(super) fn is(&self, path: &str) -> Option<bool> {
        self.dashboard().pointer(path)?.as_bool()
    }

    pub(super) fn list(&self, path: &str) -> &[Value] {
        items(self.dashboard(), path)
    }

    pub(super) fn keys(&self) -> &[Value] {
        self.look.as_ref().map_or(&[], |look| items(&look.keys, "/items"))
    }

    pub(super) fn events(&self) -> &[Value] {
        self.look.as_ref().map_or(&[], |look| items(&look.events, "/events"))
    }

    /// Something was seen at least once.
    pub(super) fn knows(&self) -> bool {
        self.look.is_some()
    }

    pub(super) fn lost_for(&self) -> Option<(&str, Duration)> {
        self.lost.as_ref().map(|(why, since)| (why.as_str(), since.elapsed()))
    }
}

fn items<'v>(value: &'v Value, path: &str) -> &'v [Value] {
    value.pointer(path).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn percent(part: f64, whole: f64) -> f64 {
    if whole > 0.0 { 100.0 * part / whole } else { 0.0 }
}

/// Names come from clients: nothing in them may speak to the terminal.
pub(in crate::cli) fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}
