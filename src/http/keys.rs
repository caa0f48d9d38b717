//! `GET /api/v1/keys?by=hits|misses|bytes&n=20`: the keys that are asked for most, the largest values and the last slow
//! commands. Names are shown on a loopback listener or to whoever brings the token, as `observe.keys` says; else a hash
//! stands for each.

use hyper::header::HeaderMap;
use hyper::{Request, StatusCode};
use serde::Serialize;

use super::change::{malformed, refusal};
use super::query::decoded;
use super::routes::{Answer, Refusal, Routes, json};
use crate::config::KeyNames;
use crate::observe::hot_keys::{Big, By, Hot};
use crate::observe::metrics::Metrics;
use crate::observe::slow_log::{SLOW_MAX, Slow};
use crate::observe::stamp;

pub(super) const PATH: &str = "/api/v1/keys";

/// Keys that are shown unless more are asked for, and at most.
const SHOWN: usize = 20;
const SHOWN_MAX: usize = 100;

const KNOWN: [&str; 2] = ["by", "n"];

impl Routes {
    /// `near`: over a loopback listener.
    pub(super) fn keys<B>(&self, near: bool, request: &Request<B>) -> Result<Answer, Refusal> {
        let (by, n) = asked(request.uri().query().unwrap_or_default())?;
        let names = self.key_names(near, request.headers());
        Ok(json(StatusCode::OK, Keys::of(&self.view.metrics, by, n, names)))
    }

    /// How names of keys are shown to whoever asks.
    pub(super) fn key_names(&self, near: bool, headers: &HeaderMap) -> KeyNames {
        let names = self.running.load().config.observe.keys;
        names.shown_to(near || self.authorize(headers).is_ok())
    }
}

fn asked(query: &str) -> Result<(By, usize), Refusal> {
    let (mut by, mut n) = (None, None);
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let Some((key, value)) = decoded(key).zip(decoded(value)) else {
            return Err(malformed("what stands behind ? is no text in UTF-8".to_owned()));
        };
        let twice = match key.as_str() {
            "by" => by
                .replace(
                    By::named(value.as_bytes())
                        .ok_or_else(|| malformed(format!("by: {value:?} is not hits, misses or bytes")))?,
                )
                .is_some(),
            "n" => {
                let number = value.parse().ok().filter(|n| (1..=SHOWN_MAX).contains(n));
                n.replace(number.ok_or_else(|| malformed(format!("n: {value:?} is no number from 1 to {SHOWN_MAX}")))?)
                    .is_some()
            }
            _ => {
                let message = format!("{key:?} is not known behind ?; known here: {}", KNOWN.join(", "));
                return Err(refusal(StatusCode::BAD_REQUEST, "unknown_parameter", message));
            }
        };
        if twice {
            return Err(malformed(format!("{key} is given twice")));
        }
    }
    Ok((by.unwrap_or(By::Hits), n.unwrap_or(SHOWN)))
}

#[derive(Serialize)]
pub(super) struct Keys {
    by: &'static str,
    shown: &'static str,
    error_bound: u64,
    items: Vec<Key>,
    big_values: Vec<BigValue>,
    slow_log: SlowCommands,
}

#[derive(Serialize)]
struct Key {
    key: Option<String>,
    hits: u64,
    misses: u64,
    bytes: Option<u64>,
    pattern: String,
}

#[derive(Serialize)]
struct BigValue {
    key: Option<String>,
    bytes: u64,
    pattern: String,
}

#[derive(Serialize)]
struct SlowCommands {
    /// None: off.
    threshold_ms: Option<f64>,
    total: u64,
    items: Vec<SlowCommand>,
}

#[derive(Serialize)]
struct SlowCommand {
    at: String,
    class: &'static str,
    command: &'static str,
    pattern: String,
    duration_ms: f64,
}

impl Keys {
    fn of(metrics: &Metrics, by: By, n: usize, names: KeyNames) -> Keys {
        let pattern = |id| metrics.patterns.name(id).to_owned();
        let name = |key: &[u8]| names.of(&metrics.hot, key);
        let top = metrics.hot.top(by, n);
        let key = |Hot { key, pattern: id, hits, misses, bytes }: Hot| Key {
            key: name(&key),
            hits,
            misses,
            bytes,
            pattern: pattern(id),
        };
        let big = |Big { key, bytes, pattern: id }: Big| BigValue { key: name(&key), bytes, pattern: pattern(id) };
        let (slow, total) = metrics.slow.last(SLOW_MAX);
        let command = |Slow { at, class, command, pattern: id, nanos }: Slow| SlowCommand {
            at: stamp::at_ms(at),
            class: class.as_str(),
            command,
            pattern: pattern(id),
            duration_ms: nanos as f64 / 1e6,
        };
        Keys {
            by: by.as_str(),
            shown: names.as_str(),
            error_bound: top.error_bound,
            items: top.keys.into_iter().map(key).collect(),
            big_values: metrics.hot.big_values().into_iter().map(big).collect(),
            slow_log: SlowCommands {
                threshold_ms: metrics.slow.threshold().map(|nanos| nanos as f64 / 1e6),
                total,
                items: slow.into_iter().map(command).collect(),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_is_read_or_refused_by_name() {
        assert!(matches!(asked(""), Ok((By::Hits, SHOWN))));
        assert!(matches!(asked("n=100&by=bytes"), Ok((By::Bytes, SHOWN_MAX))));
        for (query, code, word) in [
            ("by=size", "malformed", "hits, misses or bytes"),
            ("n=0", "malformed", "1 to 100"),
            ("n=101", "malformed", "1 to 100"),
            ("n=", "malformed", "1 to 100"),
            ("n=1&n=2", "malformed", "twice"),
            ("by=%ff", "malformed", "UTF-8"),
            ("limit=3", "unknown_parameter", "\"limit\" is not known behind ?; known here: by, n"),
        ] {
            let refusal = asked(query).err().unwrap_or_else(|| panic!("{query}"));
            assert_eq!((refusal.status, refusal.code), (StatusCode::BAD_REQUEST, code), "{query}");
            assert!(refusal.message.contains(word), "{query}: {}", refusal.message);
        }
    }
}
