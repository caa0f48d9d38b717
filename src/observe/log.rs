//! Where log lines go, how much is said, and how often the same. Begun once by the command line; the level can be another
//! one later. No line has a value, an argument of a command or a password, and none has a key.
//!
//! **What a level that is off costs.** `LevelFilter` is the only filter by level, so it is also that of the macros: each
//! compares one static number and goes on; nothing is formatted. A hit passes no macro at all. The span of a client is made
//! at `debug` and below only (`session::start`); above, its task is not even wrapped in one.
//!
//! **Repeats** of lines at `info` and above are held back (`repeats`), whatever the level is; those at `debug` are all said.

mod repeats;

use std::io::IsTerminal as _;
use std::sync::Arc;

use tracing::Level;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Registry, fmt, reload};

use super::reasons::Class;
use repeats::Repeats;

/// Sets what is logged from now on.
pub(crate) struct LogLevel {
    filter: reload::Handle<LevelFilter, Registry>,
    repeats: Arc<Repeats>,
}

impl LogLevel {
    /// Lines go to standard error: standard output belongs to what a command was asked for.
    pub(crate) fn start(level: Level, json: bool) -> LogLevel {
        let (filter, handle) = reload::Layer::new(LevelFilter::from_level(level));
        let lines = fmt::layer().with_writer(std::io::stderr).with_target(false);
        let repeats = Arc::<Repeats>::default();
        let registry = tracing_subscriber::registry().with(filter).with(repeats::Held(repeats.clone()));
        // A second subscriber in one process only happens in tests; the first one stays.
        let _ = if json {
            registry.with(lines.json().flatten_event(true)).try_init()
        } else {
            registry.with(lines.with_ansi(std::io::stderr().is_terminal())).try_init()
        };
        LogLevel { filter: handle, repeats }
    }

    pub(crate) fn set(&self, level: Level) {
        if let Err(e) = self.filter.modify(|filter| *filter = LevelFilter::from_level(level)) {
            tracing::warn!("the log level stays what it was: {e}");
        }
    }

    /// Says which lines were held back in windows that are over, or in all of them. To be called every `repeats::TOLD_EVERY`,
    /// and at the end.
    pub(crate) fn tell_repeats(&self, all: bool) {
        self.repeats.tell(all);
    }
}

pub(crate) use repeats::TOLD_EVERY;

/// What somebody else has chosen (a client's name, a user), as one line of a log may have it: no control characters, and
/// not half a gigabyte.
pub(crate) fn name(bytes: &[u8]) -> String {
    /// Longer ones are cut.
    const NAME_MAX: usize = 64;
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(4 * NAME_MAX)]);
    text.chars().take(NAME_MAX).map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// A command took longer than `observe.slow_log`. The pattern is that of its first key, as metrics show it; the text has the
/// command, so that repeats are held back for each by itself.
#[cold]
pub(crate) fn slow(class: Class, command: &str, pattern: &str, nanos: u64) {
    let duration_ms = nanos / 1_000_000;
    tracing::warn!(class = class.as_str(), pattern, duration_ms, "slow command: {command}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_on_their_line() {
        assert_eq!(name(b"web-1"), "web-1");
        assert_eq!(name(b"a\r\nb\x1b[31m"), "a??b?[31m");
        assert_eq!(name(&[b'x'; 1000]).len(), 64);
    }
}
