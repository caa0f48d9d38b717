//! `GET /api/v1/events`: server-sent events. `beat` takes a sample of the history once a second; where anybody listens it also
//! makes one snapshot, for all streams. What has changed in the process goes out as soon as it happens.
//!
//! A stream keeps no queue. It holds the id of what it has sent last, and when its connection has room it takes what is newest:
//! the snapshot, and those of the last `KEPT_MAX` events that it has not sent. A reader that is slow skips snapshots; one that
//! does not read at all is not asked for room any more, and its connection ends with `Timeouts::write`. Nobody waits for it.
//!
//! Ids grow over a restart too, because they are counted from the time of day; `Last-Event-ID` brings back what was missed, as
//! far as it is kept.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use hyper::header::HeaderMap;
use hyper::{Method, Request};
use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio_util::sync::{CancellationToken, ReusableBoxFuture};

use super::busy;
use super::history::Point;
use super::snapshot::{Snapshot, fitted};
use crate::http::alerts::Item;
use crate::http::live::Told;
use crate::http::routes::{Answer, Refusal, Routes, event_stream, to_text};
use crate::observe::events::Event;
use crate::observe::{View, clock, stamp};

/// Events that a reader can have missed and still gets: a minute of somebody changing rules by hand.
const KEPT_MAX: usize = 64;

/// A snapshot for somebody who has just come may be so old.
const FRESH: u64 = 1_000_000_000;

const BEAT: Duration = Duration::from_secs(1);

/// What a stream begins with: a comment, so that the head goes out, and how long to wait before connecting again.
const OPENING: &[u8] = b": keep-alive\nretry: 2000\n\n";

/// What the streams are told.
pub(in crate::http) struct Hub {
    told: watch::Sender<Arc<Newest>>,
    places: Arc<Semaphore>,
    max: usize,
    last: AtomicU64,
}

#[derive(Clone, Default)]
struct Newest {
    snapshot: Option<Frame>,
    /// When it was made.
    made: u64,
    /// Oldest first.
    events: VecDeque<Frame>,
    over: bool,
}

#[derive(Clone)]
struct Frame {
    id: u64,
    text: Bytes,
}

/// One reader.
pub(in crate::http) struct Stream {
    opening: Option<Bytes>,
    changed: ReusableBoxFuture<'static, (watch::Receiver<Arc<Newest>>, bool)>,
    /// The newest event that it has sent, and the newest snapshot.
    seen: u64,
    _place: OwnedSemaphorePermit,
}

impl Hub {
    /// For a port of so many connections. An eighth of them is kept for probes and scrapes, which dashboards that somebody
    /// has left open must not lock out.
    pub(in crate::http) fn new(connections: usize) -> Hub {
        let max = (connections - connections / 8).clamp(1, Semaphore::MAX_PERMITS);
        let first = stamp::unix_ms();
        let told = watch::channel(Arc::default()).0;
        Hub { told, places: Arc::new(Semaphore::new(max)), max, last: AtomicU64::new(first) }
    }

    fn next(&self) -> u64 {
        self.last.fetch_add(1, Relaxed) + 1
    }

    pub(in crate::http) fn open<B>(&self, request: &Request<B>, routes: &Routes) -> Result<Answer, Refusal> {
        if request.method() == Method::HEAD {
            return Ok(event_stream(None));
        }
        let Ok(place) = self.places.clone().try_acquire_owned() else {
            let max = self.max;
            return Err(busy(format!("{max} streams are open, all that http.max_connections leaves room for")));
        };
        self.refresh(routes);
        let mut newest = self.told.subscribe();
        let now = newest.borrow_and_update().clone();
        let last = self.last.load(Relaxed);
        let seen = last_event_id(request.headers()).map_or(last, |id| id.min(last));
        let mut opening = BytesMut::from(OPENING);
        now.write(seen, &mut opening);
        // The newcomer's first picture, whatever it has seen before.
        if now.snapshot.as_ref().is_some_and(|snapshot| snapshot.id <= seen) {
            opening.extend(now.snapshot.iter().flat_map(|snapshot| &snapshot.text[..]));
        }
        let changed = ReusableBoxFuture::new(wait(newest));
        let stream = Stream { opening: Some(opening.freeze()), changed, seen: last, _place: place };
        Ok(event_stream(Some(stream)))
    }

    /// Makes a snapshot unless there is a fresh one: however many come at once, it is made once a second.
    fn refresh(&self, routes: &Routes) {
        let now = clock::now();
        let fresh = {
            let newest = self.told.borrow();
            newest.snapshot.is_some() && now.saturating_sub(newest.made) < FRESH
        };
        if !fresh {
            self.tell_snapshot(routes, now);
        }
    }

    fn tell_snapshot(&self, routes: &Routes, now: u64) {
        let config = routes.running.load().config.clone();
        let last = Last(routes.view.history.last());
        let live = |snapshot| to_text(&Live { snapshot, last: &last });
        let Some(text) = fitted(&routes.view, &config, live) else { return };
        let snapshot = self.frame("snapshot", &text);
        self.told.send_modify(|newest| {
            let newest = Arc::make_mut(newest);
            (newest.snapshot, newest.made) = (Some(snapshot), now);
        });
    }

    fn frame(&self, event: &str, data: &str) -> Frame {
        let id = self.next();
        Frame { id, text: format!("event: {event}\nid: {id}\ndata: {data}\n\n").into() }
    }

    /// Tells what has happened since the event `known`, the newest that was told.
    fn tell_events(&self, view: &View, known: &mut u64) {
        let (recent, total) = view.status.events.recent(KEPT_MAX);
        let news: Vec<Frame> = recent
            .into_iter()
            .filter(|event| event.id > *known)
            .rev()
            .filter_map(|event| Some(self.frame(event.kind.as_str(), &data(event)?)))
            .collect();
        *known = total;
        if news.is_empty() {
            return;
        }
        self.told.send_modify(|newest| {
            let events = &mut Arc::make_mut(newest).events;
            events.extend(news);
            let surplus = events.len().saturating_sub(KEPT_MAX);
            events.drain(..surplus);
        });
    }

    fn end(&self) {
        self.told.send_modify(|newest| Arc::make_mut(newest).over = true);
    }
}

/// Runs as long as the server: samples, and tells.
pub(in crate::http) async fn beat(routes: &Routes, stop: &CancellationToken) {
    let (hub, view) = (&routes.hub, &routes.view);
    let mut beats = tokio::time::interval(BEAT);
    beats.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    // What happened before the port was there is in /api/v1/events/recent.
    let mut known = view.status.events.recent(0).1;
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return hub.end(),
            () = view.status.events.added() => hub.tell_events(view, &mut known),
            _ = beats.tick() => {
                let config = routes.running.load().config.clone();
                let rules: Vec<&str> = config.rules.iter().map(|rule| rule.name.as_str()).collect();
                view.history.sample(view, &rules);
                if hub.told.receiver_count() > 0 {
                    hub.tell_snapshot(routes, clock::now());
                }
            }
        }
    }
}

impl Newest {
    /// Whatever is newer than `seen`, in the order of the ids.
    fn write(&self, seen: u64, out: &mut BytesMut) {
        let at =
            self.snapshot.as_ref().map_or(0, |snapshot| self.events.partition_point(|event| event.id < snapshot.id));
        let (before, behind) = (self.events.range(..at), self.events.range(at..));
        for frame in before.chain(&self.snapshot).chain(behind).filter(|frame| frame.id > seen) {
            out.extend_from_slice(&frame.text);
        }
    }

    fn last(&self) -> u64 {
        self.events.iter().chain(&self.snapshot).map(|frame| frame.id).max().unwrap_or(0)
    }
}

impl Stream {
    /// The next bytes, when there are any; none at the end.
    pub(in crate::http) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        if let Some(opening) = self.opening.take() {
            return Poll::Ready(Some(opening));
        }
        loop {
            let (mut newest, alive) = ready!(self.changed.poll(cx));
            let now = newest.borrow_and_update().clone();
            self.changed.set(wait(newest));
            if !alive || now.over {
                return Poll::Ready(None);
            }
            let seen = self.seen;
            self.seen = now.last().max(seen);
            // Mostly there is nothing but a snapshot, which all streams share.
            if now.events.back().is_none_or(|event| event.id <= seen) {
                match &now.snapshot {
                    Some(snapshot) if snapshot.id > seen => return Poll::Ready(Some(snapshot.text.clone())),
                    _ => continue,
                }
            }
            let mut out = BytesMut::new();
            now.write(seen, &mut out);
            return Poll::Ready(Some(out.freeze()));
        }
    }
}

/// An alert as /api/v1/alerts has it, anything else as /api/v1/events/recent does. No envelope: an item has a time of its own.
fn data(mut event: Event) -> Option<String> {
    let alert = event.alert.take();
    alert.map_or_else(|| serde_json::to_string(&Told::of(event)), |alert| serde_json::to_string(&Item::of(alert))).ok()
}

async fn wait(mut newest: watch::Receiver<Arc<Newest>>) -> (watch::Receiver<Arc<Newest>>, bool) {
    let alive = newest.changed().await.is_ok();
    (newest, alive)
}

fn last_event_id(headers: &HeaderMap) -> Option<u64> {
    headers.get("last-event-id")?.to_str().ok()?.trim().parse().ok()
}

/// The whole snapshot, and the newest second of the history.
#[derive(Serialize)]
struct Live<'a> {
    #[serde(flatten)]
    snapshot: Snapshot,
    last: &'a Last,
}

struct Last(Vec<(&'static str, f64)>);

impl Serialize for Last {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, value)| (name, Point(*value))))
    }
}
