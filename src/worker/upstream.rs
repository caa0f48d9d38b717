//! Upstream as a whole, as the data thread knows it: its breaker, the three lines of an outage, and what is still allowed
//! while it is gone. Lanes say what they meet; what a client then gets is decided in `session::outage`.

use std::rc::Rc;
use std::time::Duration;

use tokio::time::timeout;

use super::Ctx;
use crate::config::{OutageReads, OutageWrites};
use crate::observe::clock;
use crate::observe::events::Actor;
use crate::observe::reasons::{Class, EventKind};
use crate::outage::{Outage, Turn};
use crate::resp::Proto;
use crate::upstream::handshake::ServerInfo;
use crate::upstream::pinned::Dedicated;
use crate::upstream::{Credential, Profile};

/// Credentials that are remembered as accepted, for outages; the oldest go.
const ACCEPTED_MAX: usize = 1000;

/// A database without a lane that may be selected while nobody can be asked: Redis's default of 16.
const DATABASES: u32 = 16;

const REPLAYING: &str = "NEARSIDE upstream unavailable: writes that were queued are not done yet";

/// Why there is no connection for a session.
pub(crate) struct NoConnection {
    /// What its client is told.
    pub(crate) text: String,
    /// Upstream is gone; nothing was tried.
    pub(crate) outage: bool,
}

impl Ctx {
    /// Upstream is gone: nothing waits for it.
    pub(crate) fn outage(&self) -> Option<Outage> {
        self.breaker.borrow().outage().cloned()
    }

    pub(crate) fn is_gone(&self) -> bool {
        self.breaker.borrow().outage().is_some()
    }

    /// What clients are told while it is.
    pub(crate) fn outage_text(&self) -> Option<String> {
        self.breaker.borrow().outage().map(|outage| outage.text(clock::now()))
    }

    pub(crate) fn serves_stale(&self) -> bool {
        self.config.outage.reads != OutageReads::Fail && self.cache_serves()
    }

    /// How old the last proof of this key's entry may be to be served in an outage, in nanoseconds.
    pub(crate) fn max_stale(&self, key: &[u8]) -> u64 {
        nanos(self.rules.load().stale_if_error(self.own_name(key)).unwrap_or(self.config.outage.max_stale))
    }

    /// The same where no rule has a say in it.
    pub(crate) fn max_stale_of_all(&self) -> Option<u64> {
        (!self.rules.load().any_stale_if_error()).then(|| nanos(self.config.outage.max_stale))
    }

    /// What becomes of a write to this key, by upstream's name of it.
    pub(crate) fn outage_writes(&self, key: &[u8]) -> OutageWrites {
        if self.is_behind(key) {
            return OutageWrites::Queue;
        }
        self.rules.load().outage_writes(self.own_name(key)).unwrap_or(self.config.outage.writes)
    }

    /// Whether writes to this key, by upstream's name of it, are answered before upstream has them.
    pub(crate) fn is_behind(&self, key: &[u8]) -> bool {
        self.behind.get() && self.rules.load().is_behind(self.own_name(key))
    }

    /// An attempt to connect begins.
    pub(crate) fn upstream_probed(&self) {
        self.breaker.borrow_mut().probe();
        self.show_breaker();
    }

    /// A lane is up.
    pub(crate) fn upstream_back(&self, info: &ServerInfo) {
        *self.server.borrow_mut() = info.clone();
        self.status.set_server(&info.server, &info.version);
        self.channel.try_now();
        self.upstream_answered();
    }

    /// A connection was answered, whatever the answer.
    pub(crate) fn upstream_answered(&self) {
        let turn = self.breaker.borrow_mut().answered(clock::now());
        if turn.is_some() {
            self.status.set_upstream_up();
        }
        self.turned(turn);
    }

    pub(crate) fn upstream_lost(&self, why: &str) {
        let turn = self.breaker.borrow_mut().lost(clock::now(), why);
        self.turned(turn);
    }

    /// An attempt has failed. Another lane that was heard lately says that it is this one only.
    pub(crate) fn upstream_gone(&self, why: &str) {
        self.upstream_silent(clock::now(), why);
    }

    /// Nothing was heard since then.
    pub(crate) fn upstream_silent(&self, since: u64, why: &str) {
        let now = clock::now();
        let limit = self.config.upstream.stall_timeout.unwrap_or(Duration::from_secs(8));
        let recently = now.saturating_sub(u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX));
        if self.lanes.borrow().values().any(|lane| lane.was_heard_since(recently)) {
            return tracing::debug!("a lane cannot be had, others can: {why}");
        }
        let turn = self.breaker.borrow_mut().stalled(now, since, why);
        self.turned(turn);
    }

    fn turned(&self, turn: Option<Turn>) {
        if let Some(outage) = self.breaker.borrow().outage() {
            self.status.set_upstream_down(&outage.why);
        }
        match &turn {
            Some(Turn::Gone { .. }) => {
                self.before_outage.set((self.metrics.stale_served.get(), self.metrics.outage_failed.sum()));
                self.status.set_stale_since(if self.serves_stale() { clock::now() } else { 0 });
            }
            Some(Turn::Back { .. }) => {
                self.channel.try_now();
                self.metrics.reconnects.inc();
                self.status.set_stale_since(0);
            }
            Some(Turn::First | Turn::Lost { .. }) | None => {}
        }
        self.show_breaker();
        if let Some(turn) = turn {
            self.say_turn(&turn);
        }
    }

    fn show_breaker(&self) {
        self.status.set_breaker(self.breaker.borrow().state());
    }

    /// Lost, gone, back: one line and one event each, here and nowhere else.
    fn say_turn(&self, turn: &Turn) {
        let upstream = self.config.upstream.display();
        let event = |message: &str, detail| {
            self.status.events.note(EventKind::Upstream, &Actor::Own("upstream"), message, detail);
        };
        match turn {
            Turn::First => {
                let server = self.server.borrow();
                tracing::debug!("upstream {upstream} is up: {} {}", server.server, server.version);
            }
            Turn::Lost { why } => {
                tracing::warn!("lost the connection to upstream {upstream}: {why}");
                event("upstream lost", vec![("why", why.clone())]);
            }
            Turn::Gone { why } => {
                let reads = match self.serves_stale() {
                    true => format!("stale reads for up to {:?}", self.config.outage.max_stale),
                    false => "reads fail".to_owned(),
                };
                let writes = match self.config.outage.writes {
                    OutageWrites::Fail => "writes fail",
                    OutageWrites::Queue => "writes are queued",
                    OutageWrites::Local => "writes are kept here and forgotten afterwards",
                };
                tracing::warn!("upstream {upstream} is gone, trying again: {why}; {reads}, {writes}");
                event("upstream gone", vec![("why", why.clone()), ("reads", reads), ("writes", writes.to_owned())]);
            }
            Turn::Back { after, open } => {
                let server = self.server.borrow();
                let (stale, failed) = self.since_outage(*open);
                let seconds = format!("{:.1}", *after as f64 / 1e9);
                tracing::info!(
                    "upstream {upstream} is back: {} {}, after {seconds} s; {stale} keys answered stale, {failed} commands refused",
                    server.server,
                    server.version,
                );
                let counts =
                    [("after_seconds", seconds), ("stale", stale.to_string()), ("refused", failed.to_string())];
                event("upstream back", counts.into());
            }
        }
    }

    /// Keys that were answered stale, and commands refused, in the outage that is over; none where it was none.
    fn since_outage(&self, open: bool) -> (u64, u64) {
        let (stale, failed) = self.before_outage.get();
        match open {
            true => (self.metrics.stale_served.get() - stale, self.metrics.outage_failed.sum() - failed),
            false => (0, 0),
        }
    }

    /// A connection for one session. While upstream is gone there is none, at once; `upstream.request_timeout` bounds the
    /// wait as it bounds that for an answer.
    pub(crate) async fn checkout(&self, profile: &Profile, proto: Proto) -> Result<Dedicated, NoConnection> {
        if let Some(text) = self.outage_text() {
            self.metrics.outage_failed.inc(Class::Other);
            return Err(NoConnection { text, outage: true });
        }
        if let Some(text) = self.before_replay(profile).await {
            self.metrics.outage_failed.inc(Class::Other);
            return Err(NoConnection { text, outage: true });
        }
        let checkout = self.pool.checkout(profile, proto);
        let limit = self.config.upstream.request_timeout.unwrap_or(Duration::MAX);
        match timeout(limit, checkout).await {
            Ok(Ok(conn)) => Ok(conn),
            Ok(Err(e)) => Err(NoConnection { text: e.reply(), outage: false }),
            Err(_) => {
                let text = "NEARSIDE no connection to upstream within upstream.request_timeout".to_owned();
                Err(NoConnection { text, outage: false })
            }
        }
    }

    /// What a connection past the lane would read is older than what its client was told, while writes of its profile wait.
    async fn before_replay(&self, profile: &Profile) -> Option<String> {
        if !self.held.waits(profile) {
            return None;
        }
        let lane = self.lanes.borrow().get(profile).cloned();
        if let Some(lane) = &lane {
            lane.drain_first();
            self.await_lane(lane).await;
        }
        let text = || lane.and_then(|lane| lane.outage_text(clock::now())).unwrap_or_else(|| REPLAYING.to_owned());
        self.held.waits(profile).then(text)
    }

    // ---- what upstream said before ----

    /// Upstream has accepted this credential.
    pub(crate) fn note_accepted(&self, credential: &Rc<Credential>) {
        let mut accepted = self.accepted.borrow_mut();
        if accepted.iter().any(|known| known == credential) {
            return;
        }
        if accepted.len() >= ACCEPTED_MAX {
            accepted.remove(0);
        }
        accepted.push(credential.clone());
        drop(accepted);
        self.adopt(credential);
    }

    /// Whether upstream has let this profile in before; one without a credential has nothing to be refused.
    pub(crate) fn is_accepted(&self, profile: &Profile) -> bool {
        profile.credential.as_ref().is_none_or(|own| self.accepted.borrow().iter().any(|known| known == own))
    }

    /// It does so no more.
    pub(crate) fn forget_accepted(&self, user: &[u8], password: &[u8]) {
        self.accepted.borrow_mut().retain(|known| !known.is(user, password));
    }

    /// Compared without telling by the time it takes how much of a password agrees.
    pub(crate) fn was_accepted(&self, user: &[u8], password: &[u8]) -> bool {
        self.accepted.borrow().iter().fold(false, |found, known| known.is(user, password) | found)
    }

    /// Whether a database may be selected although upstream cannot be asked: one that has been, or that every Redis has.
    pub(crate) fn may_select(&self, db: u32) -> bool {
        db < DATABASES || self.lanes.borrow().keys().any(|profile| profile.db == db)
    }
}

fn nanos(limit: Duration) -> u64 {
    u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX)
}
