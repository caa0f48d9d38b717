//! `GET /api/v1/history`: what the counters were over time, as `observe::history` has kept it.

use std::collections::BTreeMap;

use serde::Serialize;
use serde::ser::{SerializeMap, SerializeSeq, Serializer};

use super::rounded;
use crate::observe::history::{self, Range, RuleShown, Shown};
use crate::observe::stamp;

#[derive(Serialize)]
pub(super) struct History {
    range: &'static str,
    step_ms: u64,
    /// When the last step ended; null before the first is over.
    end: Option<String>,
    length: usize,
    series: Series,
    rules: BTreeMap<String, Rule>,
}

struct Series(Vec<(&'static str, Vec<f64>)>);

/// Oldest first; what nobody saw is null.
struct Points(Vec<f64>);

#[derive(Serialize)]
struct Rule {
    hits: Points,
    misses: Points,
    /// By minutes only.
    #[serde(skip_serializing_if = "Option::is_none")]
    saved: Option<Points>,
}

impl History {
    pub(super) fn of(history: &history::History, range: Range) -> History {
        let Shown { range, step_ms, ended, length, series, rules } = history.shown(range);
        let rule = |rule: RuleShown| {
            let RuleShown { name, hits, misses, saved } = rule;
            (name, Rule { hits: Points(hits), misses: Points(misses), saved: saved.map(Points) })
        };
        History {
            range: range.as_str(),
            step_ms,
            end: ended.map(stamp::ago),
            length,
            series: Series(series),
            rules: rules.into_iter().map(rule).collect(),
        }
    }
}

impl Serialize for Series {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (name, points) in &self.0 {
            map.serialize_entry(name, &AsPoints(points))?;
        }
        map.end()
    }
}

impl Serialize for Points {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        AsPoints(&self.0).serialize(serializer)
    }
}

struct AsPoints<'a>(&'a [f64]);

impl Serialize for AsPoints<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut list = serializer.serialize_seq(Some(self.0.len()))?;
        for value in self.0 {
            list.serialize_element(&Point(*value))?;
        }
        list.end()
    }
}

/// A whole number without `.0`, which half of the bytes of a day's answer would be.
pub(super) struct Point(pub(super) f64);

impl Serialize for Point {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let value = rounded(self.0);
        match value {
            _ if value.is_nan() => serializer.serialize_none(),
            _ if value.fract() == 0.0 && value.abs() < 9e15 => serializer.serialize_i64(value as i64),
            _ => serializer.serialize_f64(value),
        }
    }
}
