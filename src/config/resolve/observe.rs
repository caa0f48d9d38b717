//! `observe`, `alerts`, `costs` and `log`: what is measured, shown and said.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{CONNECTIONS_MAX, Resolver, millis, secs};
use crate::config::units::{self, DURATION_MAX, shown};
use crate::config::{Alerts, Candidates, Costs, KeyNames, Log, LogFormat, Observe};

/// What takes longer than the last bucket of the histograms (10.5 s) is not told apart.
const P99_MAX: Duration = secs(10);

/// A million of anything for a million requests, or a GiB: who writes more has the unit wrong.
const PRICE_MAX: f64 = 1e6;

/// `USD`, or a word such as `credits`.
const CURRENCY_MAX: usize = 12;

/// More would make of every key a family of its own.
const SEPARATORS_MAX: usize = 8;

/// Each family is a dozen series in every scrape.
const KEY_PATTERNS_MAX: u64 = 1000;

/// Each followed key takes up to 2 KiB, in three sketches.
const HOT_KEYS_MAX: u64 = 10_000;

/// The first word is the default.
const LEVELS: [(&str, tracing::Level); 5] = [
    ("info", tracing::Level::INFO),
    ("error", tracing::Level::ERROR),
    ("warn", tracing::Level::WARN),
    ("debug", tracing::Level::DEBUG),
    ("trace", tracing::Level::TRACE),
];

impl Resolver<'_> {
    pub(super) fn observe(&mut self) -> Observe {
        let slow = self.duration("observe.slow_log", millis(10), Duration::ZERO..=DURATION_MAX);
        Observe {
            separators: self.one("observe.separators", ":".to_owned(), separators),
            max_key_patterns: self.count("observe.max_key_patterns", 100, 1..=KEY_PATTERNS_MAX),
            keys: self.word("observe.keys", &KeyNames::ALL),
            hot_keys: self.count("observe.hot_keys", 512, 0..=HOT_KEYS_MAX),
            slow_log: (!slow.is_zero()).then_some(slow),
            file: self.one("observe.file", None, state_file),
            candidates: Candidates {
                min_per_minute: self.small("observe.candidates.min_per_minute", 100, 0..=u32::MAX),
                min_latency: self.duration(
                    "observe.candidates.min_latency",
                    Duration::ZERO,
                    Duration::ZERO..=DURATION_MAX,
                ),
            },
        }
    }

    pub(super) fn alerts(&mut self) -> Alerts {
        let share = |text: &str| units::decimal(text, 0.0..=1.0, "a share from 0 to 1, for example 0.05");
        Alerts {
            error_rate: self.one("alerts.error_rate", 0.05, share),
            p99: self.duration("alerts.p99", secs(1), millis(1)..=P99_MAX),
            hit_rate: self.one("alerts.hit_rate", 0.6, share),
            min_requests_per_minute: self.count("alerts.min_requests_per_minute", 100, 1..=CONNECTIONS_MAX) as u64,
            hold: self.duration("alerts.for", secs(30), secs(1)..=secs(3600)),
        }
    }

    pub(super) fn costs(&mut self) -> Costs {
        Costs {
            currency: self.one("costs.currency", "USD".to_owned(), currency),
            per_million_requests: self.one("costs.per_million_requests", 0.0, price),
            per_gib: self.one("costs.per_gib", 0.0, price),
        }
    }

    pub(super) fn log(&mut self) -> Log {
        let level = self.word("log.level", &LEVELS);
        let format = self.word("log.format", &[("text", LogFormat::Text), ("json", LogFormat::Json)]);
        Log { level, format }
    }
}

/// A file that Nearside writes itself: its directory has to be there already, or every write would fail.
fn state_file(text: &str) -> Result<Option<PathBuf>, String> {
    let path = PathBuf::from(text);
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    match () {
        () if path.file_name().is_none() || path.is_dir() => {
            Err(format!("{} is a directory; name a file in it", shown(text)))
        }
        () if !dir.is_dir() => {
            Err(format!("{}: there is no directory {}", shown(text), shown(&dir.display().to_string())))
        }
        () => Ok(Some(path)),
    }
}

/// Letters and digits are what names are made of, and a blank is a slip.
fn separators(text: &str) -> Result<String, String> {
    let odd = text.chars().find(|c| !c.is_ascii_graphic() || c.is_ascii_alphanumeric());
    if text.is_empty() || odd.is_some() || text.len() > SEPARATORS_MAX {
        return Err(format!(
            "{} is not 1 to {SEPARATORS_MAX} separators; write ASCII characters that are no letters, digits or blanks, for example \":/\"",
            shown(text)
        ));
    }
    Ok(text.to_owned())
}

fn currency(text: &str) -> Result<String, String> {
    let plain = (1..=CURRENCY_MAX).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric());
    let what = || format!("{} is not a currency; use up to {CURRENCY_MAX} letters, for example USD", shown(text));
    if plain { Ok(text.to_owned()) } else { Err(what()) }
}

/// Of a million requests, or of a GiB.
fn price(text: &str) -> Result<f64, String> {
    units::decimal(text, 0.0..=PRICE_MAX, "a price from 0 to 1000000, for example 0.2")
}
