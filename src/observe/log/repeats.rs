//! The same line again and again says nothing new and fills a disk. Of lines with one text at one level, `SAME_MAX` are shown
//! in a window of a minute; what comes beyond is counted, and told once when the window is over: `repeated 812 times more in
//! 60 s: <text>`. The text is the message alone, without fields: a storm of clients that are dropped for one reason
//! differs in nothing but addresses. Bounded: `LINES_MAX` texts are told apart; further ones share one count, and
//! `OTHERS_MAX` of them are shown. So a minute has at most 2,660 lines at `info` and above, whatever happens.
//!
//! A window ends in `tell` only, which runs on the data thread every `TOLD_EVERY`: nothing is logged from within a line.

use std::collections::HashMap;
use std::fmt;
use std::hash::BuildHasher;
use std::time::Duration;

use foldhash::fast::RandomState;
use parking_lot::Mutex;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

use crate::observe::clock;

/// Of one text in one window: enough to see that it goes on, and how fast.
const SAME_MAX: u64 = 10;

/// A window, in nanoseconds.
const WINDOW: u64 = 60_000_000_000;

/// Texts that are told apart in one window. All places that log are fewer than 100; texts with a reason or a rule's name
/// in them are some more.
const LINES_MAX: usize = 256;

/// Of all further texts together.
const OTHERS_MAX: u64 = 100;

/// Bytes of a text that are kept to name it by.
const TEXT_MAX: usize = 160;

/// How often whoever owns the log asks for what was held back.
pub(crate) const TOLD_EVERY: Duration = Duration::from_secs(10);

/// Of lines about lines; they are never held back.
const OWN: &str = "nearside::repeats";

#[derive(Default)]
pub(super) struct Repeats {
    seed: RandomState,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    lines: HashMap<u64, Count>,
    others: Option<Count>,
}

/// One text in its window.
struct Count {
    since: u64,
    seen: u64,
    most: u64,
    level: Level,
    text: String,
}

impl Count {
    fn is_shown(&mut self) -> bool {
        self.seen += 1;
        self.seen <= self.most
    }

    /// How many were held back, if it is over.
    fn ended(&self, now: u64, all: bool) -> Option<u64> {
        let over = all || now.saturating_sub(self.since) >= WINDOW;
        over.then(|| self.seen.saturating_sub(self.most))
    }
}

/// What was held back of one text.
#[derive(Debug, PartialEq)]
struct Told {
    level: Level,
    times: u64,
    seconds: u64,
    text: String,
}

impl Repeats {
    fn is_shown(&self, now: u64, level: Level, text: &str) -> bool {
        let key = self.seed.hash_one((text, level.as_str()));
        let mut table = self.table.lock();
        if let Some(count) = table.lines.get_mut(&key) {
            return count.is_shown();
        }
        if table.lines.len() >= LINES_MAX {
            let others = || Count { since: now, seen: 0, most: OTHERS_MAX, level, text: "other lines".to_owned() };
            let count = table.others.get_or_insert_with(others);
            // As loud as the loudest of them.
            count.level = count.level.min(level);
            return count.is_shown();
        }
        let text = text.chars().take(TEXT_MAX).collect();
        table.lines.insert(key, Count { since: now, seen: 1, most: SAME_MAX, level, text });
        true
    }

    pub(super) fn tell(&self, all: bool) {
        for Told { level, times, seconds, text } in self.ended(clock::now(), all) {
            // The level of a macro is a constant.
            match level {
                Level::ERROR => tracing::error!(target: OWN, "repeated {times} times more in {seconds} s: {text}"),
                Level::WARN => tracing::warn!(target: OWN, "repeated {times} times more in {seconds} s: {text}"),
                _ => tracing::info!(target: OWN, "repeated {times} times more in {seconds} s: {text}"),
            }
        }
    }

    /// Takes out what is over.
    fn ended(&self, now: u64, all: bool) -> Vec<Told> {
        let mut told = Vec::new();
        let mut stays = |count: &mut Count| {
            let Some(times) = count.ended(now, all) else { return true };
            if times > 0 {
                let seconds = now.saturating_sub(count.since) / 1_000_000_000;
                told.push(Told { level: count.level, times, seconds, text: std::mem::take(&mut count.text) });
            }
            false
        };
        let mut table = self.table.lock();
        table.lines.retain(|_, count| stays(count));
        if table.others.as_mut().is_some_and(|count| !stays(count)) {
            table.others = None;
        }
        told
    }
}

/// The layer that asks.
pub(super) struct Held(pub(super) std::sync::Arc<Repeats>);

impl<S: Subscriber> Layer<S> for Held {
    /// No line is logged in here, so that none waits for itself.
    fn event_enabled(&self, event: &Event<'_>, _: Context<'_, S>) -> bool {
        let (level, target) = (*event.metadata().level(), event.metadata().target());
        if level > Level::INFO || target == OWN {
            return true;
        }
        let mut message = Message::default();
        event.record(&mut message);
        self.0.is_shown(clock::now(), level, &message.0)
    }
}

/// The text of an event.
#[derive(Default)]
struct Message(String);

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            self.0 = format!("{value:?}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_of_a_text_are_shown_and_the_rest_is_told_when_the_minute_is_over() {
        let repeats = Repeats::default();
        let shown = (0..500).filter(|i| repeats.is_shown(*i, Level::WARN, "the same")).count();
        assert_eq!(shown as u64, SAME_MAX);
        assert!(repeats.is_shown(0, Level::WARN, "another") && repeats.is_shown(0, Level::INFO, "the same"));
        assert!(repeats.ended(WINDOW - 1, false).is_empty());
        let told = Told { level: Level::WARN, times: 490, seconds: 60, text: "the same".into() };
        assert_eq!(repeats.ended(WINDOW, false), [told]);
        assert!(repeats.ended(WINDOW, true).is_empty(), "it is told once");
        assert!(repeats.is_shown(WINDOW, Level::WARN, "the same"), "a new window");
    }

    #[test]
    fn texts_without_number_are_bounded() {
        let repeats = Repeats::default();
        let shown = (0..10_000).filter(|i| repeats.is_shown(1, Level::INFO, &format!("text {i}"))).count();
        assert_eq!(shown, LINES_MAX + OTHERS_MAX as usize);
        assert_eq!(LINES_MAX as u64 * SAME_MAX + OTHERS_MAX, 2660, "docs/monitoring.md says so");
        repeats.is_shown(1, Level::ERROR, "one more");
        let held = 10_001 - (LINES_MAX as u64 + OTHERS_MAX);
        let told = Told { level: Level::ERROR, times: held, seconds: 0, text: "other lines".into() };
        assert_eq!(repeats.ended(2, true), [told]);
        assert!(repeats.table.lock().lines.is_empty());
    }

    #[test]
    fn a_long_text_is_cut_where_it_is_told_and_told_apart_whole() {
        let repeats = Repeats::default();
        let (a, b) = ("x".repeat(5000) + "a", "x".repeat(5000) + "b");
        for _ in 0..20 {
            repeats.is_shown(0, Level::INFO, &a);
            repeats.is_shown(0, Level::INFO, &b);
        }
        let told = repeats.ended(WINDOW, false);
        assert_eq!(told.iter().map(|t| (t.times, t.text.len())).collect::<Vec<_>>(), [(10, TEXT_MAX), (10, TEXT_MAX)]);
    }
}
