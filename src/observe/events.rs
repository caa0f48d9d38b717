//! What was changed in the running process, by whom and when, and what became of upstream: the last 200, for `GET /api/v1/events/recent`. Changes are
//! rare, so a lock and text of its own for each cost nothing that matters. Never a key's value, never a secret.

use std::collections::VecDeque;
use std::fmt;
use std::time::SystemTime;

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::alerts::Alert;
use super::reasons::EventKind;

/// Events that are kept: what a person reads through to see what happened today.
pub(crate) const EVENTS_MAX: usize = 200;

/// Details are lists of names at times, and those of rules come from users.
const TEXT_MAX: usize = 1000;

type Detail = Vec<(&'static str, String)>;

/// Who wanted something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Actor {
    /// Over the side port, from this address.
    Http(String),
    /// Over RESP.
    Client {
        id: u64,
        addr: String,
    },
    /// The configuration file was found to have changed.
    File,
    Sighup,
    /// A program of the sidecar's own, by its name.
    Own(&'static str),
}

impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Actor::Http(addr) => write!(f, "http {addr}"),
            Actor::Client { id, addr } => write!(f, "client id={id} addr={addr}"),
            Actor::File => f.write_str("file"),
            Actor::Sighup => f.write_str("SIGHUP"),
            Actor::Own(name) => f.write_str(name),
        }
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Event {
    /// Counted from 1 since the start, so that who reads again sees what is new and what was missed.
    pub(crate) id: u64,
    pub(crate) at: SystemTime,
    pub(crate) kind: EventKind,
    pub(crate) actor: String,
    pub(crate) message: String,
    pub(crate) detail: Detail,
    /// What was raised or resolved, as it was then.
    pub(crate) alert: Option<Alert>,
}

#[derive(Default)]
pub(crate) struct Events {
    ring: Mutex<Ring>,
    added: Notify,
}

#[derive(Default)]
struct Ring {
    last: u64,
    events: VecDeque<Event>,
}

impl Events {
    /// Keeps it, and says it in the log.
    pub(crate) fn add(&self, kind: EventKind, actor: &Actor, message: &str, detail: Detail) {
        let (message, detail) = plain(message, detail);
        let shown: String = detail.iter().map(|(name, value)| format!("; {name}: {value}")).collect();
        tracing::info!("{message} (by {actor}){shown}");
        self.keep(kind, actor, message, detail, None);
    }

    /// Keeps what the log has been told already, in words of its own.
    pub(crate) fn note(&self, kind: EventKind, actor: &Actor, message: &str, detail: Detail) {
        let (message, detail) = plain(message, detail);
        self.keep(kind, actor, message, detail, None);
    }

    /// The same of an alert that was raised or resolved.
    pub(crate) fn turned(&self, alert: Alert, message: &str) {
        let detail = vec![
            ("alert", alert.name.as_str().to_owned()),
            ("severity", alert.name.severity().as_str().to_owned()),
            ("value", alert.value.to_string()),
            ("threshold", alert.threshold.to_string()),
        ];
        let (message, detail) = plain(message, detail);
        self.keep(EventKind::Alert, &Actor::Own("alerts"), message, detail, Some(alert));
    }

    fn keep(&self, kind: EventKind, actor: &Actor, message: String, detail: Detail, alert: Option<Alert>) {
        let mut ring = self.ring.lock();
        ring.last += 1;
        if ring.events.len() == EVENTS_MAX {
            ring.events.pop_front();
        }
        let (id, at) = (ring.last, SystemTime::now());
        ring.events.push_back(Event { id, at, kind, actor: actor.to_string(), message, detail, alert });
        drop(ring);
        self.added.notify_one();
    }

    /// Waits until there is one more, for one who waits.
    pub(crate) async fn added(&self) {
        self.added.notified().await;
    }

    /// The newest `n`, newest first, and how many there have been since the start.
    pub(crate) fn recent(&self, n: usize) -> (Vec<Event>, u64) {
        let ring = self.ring.lock();
        (ring.events.iter().rev().take(n).cloned().collect(), ring.last)
    }
}

/// A rule's name may be a pattern, and that may have anything in it; a line of the log stays one.
fn plain(message: &str, detail: Detail) -> (String, Detail) {
    let plain = |c: char| if c.is_control() { '?' } else { c };
    let cut = |text: &str| text.chars().take(TEXT_MAX).map(plain).collect::<String>();
    (cut(message), detail.into_iter().map(|(name, value)| (name, cut(&value))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ring_keeps_the_last_and_counts_all() {
        let events = Events::default();
        for i in 0..EVENTS_MAX + 5 {
            events.add(EventKind::Mode, &Actor::Sighup, &format!("event {i}"), Vec::new());
        }
        let (all, total) = events.recent(usize::MAX);
        assert_eq!((all.len(), total), (EVENTS_MAX, 205));
        assert_eq!((all[0].id, all[0].message.as_str()), (205, "event 204"));
        assert_eq!(all[EVENTS_MAX - 1].id, 6);
        assert_eq!(events.recent(3).0.len(), 3);
    }

    #[test]
    fn actors_are_named_as_other_places_name_them() {
        let client = Actor::Client { id: 7, addr: "127.0.0.1:5".to_owned() };
        let all = [Actor::Http("127.0.0.1:4".to_owned()), client, Actor::File, Actor::Sighup, Actor::Own("ramp")];
        let names = all.map(|actor| actor.to_string());
        assert_eq!(names, ["http 127.0.0.1:4", "client id=7 addr=127.0.0.1:5", "file", "SIGHUP", "ramp"]);
    }

    #[test]
    fn long_details_are_cut_between_characters_and_lines_stay_lines() {
        let events = Events::default();
        events.add(EventKind::Rules, &Actor::File, "a\nb", vec![("names", "é".repeat(5000))]);
        let event = &events.recent(1).0[0];
        assert_eq!((event.detail[0].1.chars().count(), event.message.as_str()), (TEXT_MAX, "a?b"));
    }
}
