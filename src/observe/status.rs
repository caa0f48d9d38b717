//! The state of the process as health and metrics show it: start, drain, upstream, coherence, lanes. Set by the data path
//! when something changes, read by the side port's thread at any time. A lane's proof of coherence is kept as a time, not
//! as an age: while the data path stalls, the age that others see must grow.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering::Relaxed};

use parking_lot::Mutex;

use super::clock;
use super::events::Events;
use super::reasons::{BreakerState, ChannelState, Coherence, Link, Mode};

/// An upstream error as health shows it is cut here: some servers put a whole command into theirs.
const ERROR_MAX: usize = 200;

pub(crate) struct Status {
    started: AtomicBool,
    draining: AtomicBool,
    /// What is to be loaded before it is ready is not loaded yet.
    warming: AtomicBool,
    upstream_up: AtomicBool,
    /// Why upstream is not up; empty while it is.
    upstream_error: Mutex<String>,
    breaker: AtomicU8,
    /// Since when reads are answered from before an outage; 0: they are not.
    stale_since: AtomicU64,
    /// Kind and version of the server behind the lane that was connected last; none before the first.
    server: Mutex<Option<(String, String)>>,
    coherence: AtomicU8,
    /// Why it is that.
    coherence_why: Mutex<String>,
    mode: AtomicU8,
    /// Why the configuration could not be read again, where the last attempt failed.
    config_error: Mutex<Option<String>>,
    backend: &'static str,
    /// As many as there are profiles with a lane, so `upstream.lanes_max` at most.
    lanes: Mutex<Vec<Arc<LaneStatus>>>,
    pub(crate) channel: ChannelStatus,
    pub(crate) events: Events,
}

impl Status {
    /// `backend` is `upstream` or `embedded`.
    pub(crate) fn new(backend: &'static str, mode: Mode) -> Self {
        Self {
            started: AtomicBool::new(false),
            draining: AtomicBool::new(false),
            warming: AtomicBool::new(false),
            upstream_up: AtomicBool::new(false),
            upstream_error: Mutex::new(String::new()),
            breaker: AtomicU8::new(BreakerState::Closed as u8),
            stale_since: AtomicU64::new(0),
            server: Mutex::new(None),
            coherence: AtomicU8::new(Coherence::Probing as u8),
            coherence_why: Mutex::new(String::new()),
            mode: AtomicU8::new(mode as u8),
            config_error: Mutex::new(None),
            backend,
            lanes: Mutex::new(Vec::new()),
            channel: ChannelStatus::default(),
            events: Events::default(),
        }
    }

    /// Listeners accept from now on.
    pub(crate) fn set_started(&self) {
        self.started.store(true, Relaxed);
    }

    pub(crate) fn set_draining(&self) {
        self.draining.store(true, Relaxed);
    }

    /// Readiness waits while this is true.
    pub(crate) fn set_warming(&self, warming: bool) {
        self.warming.store(warming, Relaxed);
    }

    pub(crate) fn set_upstream_up(&self) {
        self.upstream_error.lock().clear();
        self.upstream_up.store(true, Relaxed);
    }

    /// `why` is shown to whoever may see /health: it must hold no secret.
    pub(crate) fn set_upstream_down(&self, why: &str) {
        *self.upstream_error.lock() = why.chars().take(ERROR_MAX).collect();
        self.upstream_up.store(false, Relaxed);
    }

    /// What upstream says that it is: `redis`, `7.2.4`.
    pub(crate) fn set_server(&self, server: &str, version: &str) {
        let cut = |text: &str| text.chars().take(ERROR_MAX).collect();
        *self.server.lock() = Some((cut(server), cut(version)));
    }

    pub(crate) fn server(&self) -> Option<(String, String)> {
        self.server.lock().clone()
    }

    pub(crate) fn set_breaker(&self, state: BreakerState) {
        self.breaker.store(state as u8, Relaxed);
    }

    pub(crate) fn breaker(&self) -> BreakerState {
        decode(BreakerState::ALL, &self.breaker)
    }

    /// Reads are answered from before an outage since then (`clock::now`); 0: not any more.
    pub(crate) fn set_stale_since(&self, since: u64) {
        self.stale_since.store(since, Relaxed);
    }

    /// For how long they have been, in nanoseconds.
    pub(crate) fn stale_for(&self) -> Option<u64> {
        match self.stale_since.load(Relaxed) {
            0 => None,
            since => Some(clock::now().saturating_sub(since)),
        }
    }

    /// `why` is for everybody, as in `set_upstream_down`.
    pub(crate) fn set_coherence(&self, mode: Coherence, why: &str) {
        *self.coherence_why.lock() = why.to_owned();
        self.coherence.store(mode as u8, Relaxed);
    }

    pub(crate) fn set_mode(&self, mode: Mode) {
        self.mode.store(mode as u8, Relaxed);
    }

    /// What the last attempt to read the configuration again came to. For everybody, as in `set_upstream_down`.
    pub(crate) fn set_config_error(&self, why: Option<String>) {
        *self.config_error.lock() = why;
    }

    pub(crate) fn config_error(&self) -> Option<String> {
        self.config_error.lock().clone()
    }

    /// A lane comes into being. Its owner keeps the handle, writes to it, and gives it back to `remove_lane`.
    pub(crate) fn add_lane(&self, db: u32, user: &str) -> Arc<LaneStatus> {
        let lane = Arc::new(LaneStatus::new(db, user));
        self.lanes.lock().push(lane.clone());
        lane
    }

    pub(crate) fn remove_lane(&self, lane: &Arc<LaneStatus>) {
        self.lanes.lock().retain(|other| !Arc::ptr_eq(other, lane));
    }

    pub(crate) fn started(&self) -> bool {
        self.started.load(Relaxed)
    }

    pub(crate) fn draining(&self) -> bool {
        self.draining.load(Relaxed)
    }

    pub(crate) fn warming(&self) -> bool {
        self.warming.load(Relaxed)
    }

    /// Commands are accepted, whatever state upstream is in, and what is to be loaded first is.
    pub(crate) fn ready(&self) -> bool {
        self.started() && !self.draining() && !self.warming()
    }

    pub(crate) fn upstream_up(&self) -> bool {
        self.upstream_up.load(Relaxed)
    }

    pub(crate) fn upstream_error(&self) -> String {
        self.upstream_error.lock().clone()
    }

    pub(crate) fn coherence(&self) -> Coherence {
        decode(Coherence::ALL, &self.coherence)
    }

    pub(crate) fn coherence_why(&self) -> String {
        self.coherence_why.lock().clone() + self.channel.second_source(self.coherence())
    }

    pub(crate) fn mode(&self) -> Mode {
        decode(Mode::ALL, &self.mode)
    }

    pub(crate) fn backend(&self) -> &'static str {
        self.backend
    }

    /// The lanes as they are now; the lock is held for the copy of their handles only.
    pub(crate) fn lanes(&self) -> Vec<Arc<LaneStatus>> {
        self.lanes.lock().clone()
    }

    /// What an operator should know although commands are accepted. Empty is healthy. A cache that was switched off is a
    /// choice, not a fault.
    pub(crate) fn degraded(&self) -> Vec<String> {
        let mut reasons = Vec::new();
        if self.backend == "upstream" && !self.upstream_up() {
            reasons.push(match self.upstream_error() {
                why if why.is_empty() => "upstream: not connected yet".to_owned(),
                why => format!("upstream: {why}"),
            });
        }
        if self.mode() == Mode::Serve {
            reasons.extend(self.coherence_troubles());
        }
        reasons.extend(self.lane_troubles());
        reasons.extend(self.channel.trouble());
        reasons.extend(self.config_error().map(|why| format!("config: reload failed: {why}")));
        reasons
    }

    /// Lanes in a mode that promises less than was asked for, or hardly anything, with the reason; once for all lanes that
    /// have the same.
    fn coherence_troubles(&self) -> Vec<String> {
        let lanes = self.lanes();
        if lanes.is_empty() {
            let none = self.coherence() == Coherence::None;
            return none.then(|| format!("coherence: none: {}", self.coherence_why())).into_iter().collect();
        }
        let all: Vec<_> = lanes.iter().filter(|lane| lane.is_weak()).map(|lane| (lane.mode(), lane.why())).collect();
        let mut texts = Vec::new();
        for (mode, why) in &all {
            let count = all.iter().filter(|other| **other == (*mode, why.clone())).count();
            let text = format!("coherence: {} on {count} of {} lanes: {why}", mode.as_str(), lanes.len());
            if !texts.contains(&text) {
                texts.push(text);
            }
        }
        texts
    }

    /// How many lanes are in each state but the good one. No names of users: everybody may see /health.
    fn lane_troubles(&self) -> impl Iterator<Item = String> {
        let lanes = self.lanes();
        let troubles = Link::ALL.iter().filter(|link| **link != Link::Live);
        troubles.filter_map(move |link| {
            let count = lanes.iter().filter(|lane| lane.link() == *link).count();
            (count > 0).then(|| format!("lanes: {count} of {} {}", lanes.len(), link.as_str()))
        })
    }
}

/// What `ChannelStatus::events` says where they are used.
pub(crate) const EVENTS_USED: &str = "used";

/// The subscription to the sidecars' channel.
#[derive(Default)]
pub(crate) struct ChannelStatus {
    state: AtomicU8,
    /// When the state changed last, by `clock::now`; 0 = never.
    since: AtomicU64,
    why: Mutex<String>,
    events: Mutex<String>,
}

impl ChannelStatus {
    /// Whether keyspace events are used beside it, and why not; empty where nobody wants them.
    pub(crate) fn set_events(&self, what: &str) {
        what.clone_into(&mut self.events.lock());
    }

    pub(crate) fn events(&self) -> String {
        self.events.lock().clone()
    }

    /// What a lane in `pubsub` mode has besides the channel, to be said behind why it is in that mode.
    pub(crate) fn second_source(&self, mode: Coherence) -> &'static str {
        let used = mode == Coherence::Pubsub && *self.events.lock() == EVENTS_USED;
        if used { "; with keyspace events: pubsub+keyspace" } else { "" }
    }

    /// True where this is news: another state, or another reason for it.
    pub(crate) fn set(&self, state: ChannelState, why: &str) -> bool {
        let why: String = why.chars().take(ERROR_MAX).collect();
        let mut known = self.why.lock();
        if self.state() == state && *known == why && self.since.load(Relaxed) > 0 {
            return false;
        }
        if self.state() != state || self.since.load(Relaxed) == 0 {
            self.since.store(clock::now(), Relaxed);
        }
        *known = why;
        self.state.store(state as u8, Relaxed);
        true
    }

    pub(crate) fn state(&self) -> ChannelState {
        decode(ChannelState::ALL, &self.state)
    }

    /// Why it is in this state; empty while it is up.
    pub(crate) fn why(&self) -> String {
        self.why.lock().clone()
    }

    /// For how long it has been in this state, in nanoseconds.
    pub(crate) fn age(&self) -> Option<u64> {
        match self.since.load(Relaxed) {
            0 => None,
            since => Some(clock::now().saturating_sub(since)),
        }
    }

    /// Other sidecars' invalidations do not arrive. Waiting for a client's credential is how such an upstream starts.
    fn trouble(&self) -> Option<String> {
        let state = self.state();
        matches!(state, ChannelState::Down | ChannelState::Refused)
            .then(|| format!("channel: {}: {}", state.as_str(), self.why()))
    }
}

/// One lane: what its owner knows, written with plain stores as often as it likes.
pub(crate) struct LaneStatus {
    pub(crate) db: u32,
    /// The upstream user; `default` where no credentials were given.
    pub(crate) user: String,
    link: AtomicU8,
    mode: AtomicU8,
    /// `mode` is less than one would wish for.
    weak: AtomicBool,
    why: Mutex<String>,
    epoch: AtomicU64,
    /// F (COHERENCE decision 2): when the newest answered command was sent, by `clock::now`; 0 = never.
    proved_at: AtomicU64,
}

impl LaneStatus {
    fn new(db: u32, user: &str) -> Self {
        Self {
            db,
            user: user.to_owned(),
            link: AtomicU8::new(Link::Connecting as u8),
            mode: AtomicU8::new(Coherence::Probing as u8),
            weak: AtomicBool::new(false),
            why: Mutex::new(String::new()),
            epoch: AtomicU64::new(0),
            proved_at: AtomicU64::new(0),
        }
    }

    pub(crate) fn set_link(&self, link: Link) {
        self.link.store(link as u8, Relaxed);
    }

    /// What keeps its entries coherent. `chosen`: the configuration asks for just that, so it is no fault where the mode
    /// promises a bound of its own.
    pub(crate) fn set_mode(&self, mode: Coherence, chosen: bool, why: &str) {
        *self.why.lock() = why.to_owned();
        let weak = match mode {
            Coherence::Probing | Coherence::Tracking => false,
            Coherence::Pubsub => !chosen,
            Coherence::Ttl | Coherence::None => true,
        };
        self.weak.store(weak, Relaxed);
        self.mode.store(mode as u8, Relaxed);
    }

    pub(crate) fn mode(&self) -> Coherence {
        decode(Coherence::ALL, &self.mode)
    }

    pub(crate) fn why(&self) -> String {
        self.why.lock().clone()
    }

    fn is_weak(&self) -> bool {
        self.weak.load(Relaxed)
    }

    pub(crate) fn set_epoch(&self, epoch: u64) {
        self.epoch.store(epoch, Relaxed);
    }

    pub(crate) fn set_proved_at(&self, nanos: u64) {
        self.proved_at.store(nanos, Relaxed);
    }

    pub(crate) fn link(&self) -> Link {
        decode(Link::ALL, &self.link)
    }

    pub(crate) fn live(&self) -> bool {
        self.link() == Link::Live
    }

    pub(crate) fn epoch(&self) -> u64 {
        self.epoch.load(Relaxed)
    }

    /// How old the last proof of coherence is, in nanoseconds; none before the first one.
    pub(crate) fn lease_age(&self) -> Option<u64> {
        match self.proved_at.load(Relaxed) {
            0 => None,
            at => Some(clock::now().saturating_sub(at)),
        }
    }
}

/// The cells hold nothing but variants of the enum that `all` lists.
fn decode<T: Copy>(all: &[T], cell: &AtomicU8) -> T {
    all[usize::from(cell.load(Relaxed)).min(all.len() - 1)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_between_start_and_drain() {
        let status = Status::new("upstream", Mode::Serve);
        assert!(!status.ready());
        status.set_started();
        assert!(status.ready());
        status.set_warming(true);
        assert!(!status.ready());
        status.set_warming(false);
        assert!(status.ready());
        status.set_draining();
        assert!(!status.ready() && status.started());
    }

    #[test]
    fn every_trouble_has_its_reason() {
        let status = Status::new("upstream", Mode::Serve);
        assert_eq!(status.degraded(), ["upstream: not connected yet"]);
        status.set_upstream_down("Connection refused");
        assert_eq!(status.degraded(), ["upstream: Connection refused"]);
        status.set_upstream_up();
        let lane = status.add_lane(3, "app");
        lane.set_link(Link::Untracked);
        assert_eq!(status.degraded(), ["lanes: 1 of 1 untracked"]);
        lane.set_link(Link::Live);
        assert!(status.degraded().is_empty());
        lane.set_mode(Coherence::Ttl, false, "why not");
        assert_eq!(status.degraded(), ["coherence: ttl on 1 of 1 lanes: why not"]);
        let other = status.add_lane(3, "other");
        other.set_link(Link::Live);
        other.set_mode(Coherence::Pubsub, true, "as asked");
        assert_eq!(status.degraded(), ["coherence: ttl on 1 of 2 lanes: why not"]);
        other.set_mode(Coherence::Ttl, false, "why not");
        assert_eq!(status.degraded(), ["coherence: ttl on 2 of 2 lanes: why not"]);
        other.set_mode(Coherence::None, false, "nothing");
        assert_eq!(status.degraded()[1], "coherence: none on 1 of 2 lanes: nothing");
        status.set_mode(Mode::Off);
        assert!(status.degraded().is_empty(), "switched off is no fault");
        status.set_config_error(Some("why".to_owned()));
        assert_eq!(status.degraded(), ["config: reload failed: why"]);
    }

    #[test]
    fn a_lost_channel_is_a_trouble_and_news_once() {
        let status = Status::new("upstream", Mode::Serve);
        status.set_upstream_up();
        assert!(status.degraded().is_empty() && status.channel.age().is_none());
        assert!(status.channel.set(ChannelState::Waiting, "NOAUTH"));
        assert!(status.degraded().is_empty());
        assert!(status.channel.set(ChannelState::Down, "cut") && !status.channel.set(ChannelState::Down, "cut"));
        assert_eq!(status.degraded(), ["channel: down: cut"]);
        assert!(status.channel.set(ChannelState::Up, ""));
        assert!(status.degraded().is_empty());
    }

    #[test]
    fn a_removed_lane_is_gone_and_its_twin_stays() {
        let status = Status::new("upstream", Mode::Serve);
        let first = status.add_lane(0, "default");
        let _second = status.add_lane(0, "default");
        status.remove_lane(&first);
        assert_eq!(status.lanes().len(), 1);
    }

    #[test]
    fn the_lease_ages_while_nobody_writes() {
        let lane = LaneStatus::new(0, "default");
        assert_eq!(lane.lease_age(), None);
        lane.set_proved_at(clock::now() - 5_000_000);
        assert!(lane.lease_age().is_some_and(|age| age >= 5_000_000));
    }

    #[test]
    fn a_long_error_is_cut_between_characters() {
        let status = Status::new("upstream", Mode::Serve);
        status.set_upstream_down(&"é".repeat(5000));
        assert_eq!(status.upstream_error().chars().count(), ERROR_MAX);
    }
}
