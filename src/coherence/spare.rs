//! Held-up lanes (decision 9). Redis may honestly take long over one command of a lane (a script, a write that CLIENT PAUSE
//! postpones, a module's command that blocks its client), and everything behind it on that connection waits, although the
//! server serves other connections. So where something is outstanding and no reply has come for B/2, a *spare* connection of
//! the profile is opened and PINGed:
//!
//! - no answer: the server itself is busy, and nothing moves;
//! - an answer: the server serves. Reads of sessions that have nothing outstanding on the lane go to the spare, and those
//!   whose outstanding commands may all be sent again (R26) move there. Writes, and what a pause postpones with them, still
//!   queue on the lane: on the spare they would hold up everybody a second time;
//! - `-BUSY`: a script runs. Everything goes to the spare and gets what a direct client gets.
//!
//! The spare is a [`Lane`] that neither tracks nor stores: to the L1 it is any dedicated connection. A session has commands
//! in flight on one of the two at a time (R18), takes no hit while they are on the spare, and each reply from there sets its
//! fence (R21); writes begin and end as everywhere (R20). When the lane answers again, sessions return to it as soon as they
//! have nothing outstanding, and after a while without use the spare is closed. It ends with the lane, too.
//!
//! The same PING tells a stuck lane from a dead one (`judge`).

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashSet};
use std::rc::{Rc, Weak};
use std::time::Duration;

use tokio::time::error::Elapsed;
use tokio::time::timeout;

use super::judge::SILENCE;
use super::lane::{Availability, Lane};
use super::loss::detach;
use super::reader::{nanos, pump};
use super::wait::{Relay, Waiting};
use crate::command::{Effect, Kind, Spec};
use crate::observe::clock;
use crate::session::Session;
use crate::upstream::handshake::{self, HandshakeError, Link};
use crate::upstream::{Backoff, ConnectError, connect};
use crate::worker::Ctx;

/// A spare that nobody has used for so long is closed: the next hold-up is more likely soon than late.
const IDLE: u64 = 10_000_000_000;

/// A connection that is not open, or a PING that is not answered, after this proves nothing and is given up; longer than
/// the 5 s after which a server with a running script begins to answer -BUSY.
const PATIENCE: Duration = Duration::from_secs(7);

/// A half-open lane whose oldest command is a write is no case for `judge`: a pause could hold it up. So where the lane is
/// silent, and the server is not (or does not even take a connection), TCP itself gives up what is not acknowledged for so
/// long. Never while the server may be busy, since Linux counts a full receive window too and killed lanes to busy servers;
/// and not always, since keepalive would then wait as long before it ends an idle half-open connection.
pub(super) const UNDELIVERED_MAX: Duration = Duration::from_secs(30);

/// What the spare has heard while its lane is silent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The server serves; it is this lane that waits.
    Serves,
    /// `-BUSY`: a script keeps the server from all but a few commands.
    Busy,
}

/// A lane's side of it.
#[derive(Default)]
pub(super) struct HeldUp {
    /// When a fresh connection was last answered.
    pub(super) heard: Cell<u64>,
    /// Nothing has been answered for `upstream.stall_timeout`.
    pub(super) silent: Cell<bool>,
    /// No fresh connection is tried before.
    pub(super) next_try: Cell<u64>,
    pub(super) backoff: RefCell<Option<Backoff>>,
    /// Set while the lane is held up and the spare takes commands.
    verdict: Cell<Option<Verdict>>,
    spare: RefCell<Option<Rc<Lane>>>,
    opening: Cell<bool>,
    /// When the PING that is outstanding on the spare was sent; 0: none is.
    pinged: Cell<u64>,
    /// The lane's connection is to end when the other end does not acknowledge what was sent on it for `UNDELIVERED_MAX`.
    pub(super) gives_up: Cell<bool>,
    /// When a reply, or part of one, was last read from the lane. Invalidations do not count: they reach a connection whose
    /// commands wait, too.
    pub(super) progress: Cell<u64>,
}

/// A spare's side of it.
pub(super) struct SpareOf {
    lane: Weak<Lane>,
    /// Upstream answered -BUSY to its SELECT: it is in database 0 still, and nothing may be executed there.
    unselected: Cell<bool>,
    /// SELECTs that are outstanding in the place of commands; others queue up behind those.
    standing_in: Cell<u32>,
}

impl Lane {
    /// Every B/4: whether this lane is held up, and what a fresh connection says to that.
    pub(super) fn watch(self: &Rc<Self>, ctx: &Rc<Ctx>, now: u64) {
        // Before its silence may count as upstream's, a fresh connection has had its chance.
        let early = ctx.config.upstream.stall_timeout.map_or(SILENCE, |limit| nanos(limit) / 2);
        if !self.is_live() || self.stuck_for(now) < (ctx.max_staleness / 2).min(SILENCE).min(early) {
            return;
        }
        let spare = self.held.spare.borrow().clone();
        match (spare, self.held.pinged.get()) {
            (None, _) => self.open_spare(ctx),
            (Some(spare), 0) => self.ask_spare(now, &spare),
            (Some(spare), sent) if now.saturating_sub(sent) > nanos(PATIENCE) && spare.carries_reads_only() => {
                spare.kill("it does not answer either");
            }
            _ => {}
        }
    }

    /// How long something has been outstanding without any reply; 0 when nothing is.
    pub(super) fn stuck_for(&self, now: u64) -> u64 {
        let oldest = self.inner.borrow().fifo.front().map(|w| w.t_sent);
        oldest.map_or(0, |sent| now.saturating_sub(sent.max(self.held.progress.get())))
    }

    fn open_spare(self: &Rc<Self>, ctx: &Rc<Ctx>) {
        if clock::now() < self.held.next_try.get() || self.held.opening.replace(true) {
            return;
        }
        let (lane, ctx, epoch) = (self.clone(), ctx.clone(), self.epoch());
        tokio::task::spawn_local(async move {
            let opened = timeout(PATIENCE, open(&ctx, &lane)).await;
            lane.held.opening.set(false);
            lane.note_fresh(&ctx, &opened);
            match opened {
                // What was opened before the lane was lost may belong to a server that is gone.
                Ok(Ok((link, unselected))) if lane.epoch() == epoch => run(&ctx, &lane, link, unselected).await,
                Ok(Ok(_)) => {}
                Ok(Err(Unopened::Unreachable(why))) => {
                    lane.held.gives_up.set(true);
                    tracing::debug!(db = lane.profile.db, "no spare connection for a held-up lane: {why}");
                }
                Ok(Err(Unopened::Handshake(why))) => {
                    tracing::debug!(db = lane.profile.db, "no spare connection for a held-up lane: {why}")
                }
                Err(_) => tracing::debug!(db = lane.profile.db, "no spare connection for a held-up lane: no answer"),
            }
        });
    }

    fn ask_spare(&self, now: u64, spare: &Lane) {
        self.held.pinged.set(now);
        spare.ping(now, Waiting::Verdict);
    }

    /// Whether a fresh connection was answered, if only to be refused; when the next one is tried, where there is none.
    fn note_fresh(self: &Rc<Self>, ctx: &Rc<Ctx>, opened: &Result<Result<(Link, bool), Unopened>, Elapsed>) {
        match opened {
            Ok(Ok(_) | Err(Unopened::Handshake(HandshakeError::Refused { .. }))) => self.heard(ctx),
            Ok(Err(_)) | Err(_) => self.try_again_later(ctx),
        }
    }

    /// The spare's PING, sent at `sent`, has been answered.
    fn on_verdict(self: &Rc<Self>, ctx: &Rc<Ctx>, sent: u64, frame: &[u8]) {
        self.heard(ctx);
        self.held.pinged.set(0);
        let verdict = match frame {
            _ if frame.starts_with(b"-BUSY") => Verdict::Busy,
            _ if [&b"+PONG"[..], b"-NOPERM", b"-MISCONF"].iter().any(|w| frame.starts_with(w)) => Verdict::Serves,
            _ => return,
        };
        let now = clock::now();
        if verdict == Verdict::Serves && self.is_dead(now, sent) {
            return self.kill("silent for 3 s while a fresh connection is answered");
        }
        if self.stuck_for(now) < ctx.max_staleness / 2 {
            return;
        }
        self.held.gives_up.set(verdict == Verdict::Serves);
        self.changed.notify_waiters();
        if self.held.verdict.replace(Some(verdict)).is_none() {
            ctx.metrics.held_up.inc();
            tracing::info!(user = %self.profile.user(), db = self.profile.db,
                "a lane is held up while upstream {}: reads take a spare connection",
                if verdict == Verdict::Busy { "runs a script" } else { "serves others" });
        }
        let spare = self.held.spare.borrow().clone();
        if let Some(spare) = spare {
            self.move_reads(ctx, now, &spare);
        }
    }

    /// R26: sessions all of whose outstanding commands may be sent again go on, on the spare.
    fn move_reads(&self, ctx: &Ctx, now: u64, spare: &Lane) {
        let mut inner = self.inner.borrow_mut();
        let mut barred = HashSet::new();
        for waiter in inner.fifo.iter().filter(|w| !w.kind.may_resend()) {
            barred.extend(waiter.kind.session().map(|s| s.id));
        }
        let mut moving: BTreeMap<u64, (Rc<Session>, Vec<u64>)> = BTreeMap::new();
        let mut commands = detach(&mut inner, |session| !barred.contains(&session.id));
        drop(inner);
        commands.sort_by_key(|(session, redo)| (session.id, redo.slot));
        for (session, redo) in commands {
            moving.entry(session.id).or_insert_with(|| (session.clone(), Vec::new())).1.push(redo.slot);
            let relay = Relay { info: redo.info, ..Relay::plain(session, redo.slot, redo.form, true) };
            spare.relay(ctx, now, &redo.raw, relay);
        }
        for (session, slots) in moving.into_values() {
            session.moved_to_spare(&slots);
        }
    }

    /// Its reads take the spare.
    pub(super) fn is_held_up(&self) -> bool {
        self.held.verdict.get().is_some()
    }

    /// The lane has answered something.
    pub(super) fn moves(self: &Rc<Self>, ctx: &Rc<Ctx>) {
        self.held.progress.set(self.last_byte.get());
        if self.held.silent.get() {
            self.heard(ctx);
        }
        self.held.gives_up.set(false);
        if self.held.verdict.take().is_some() {
            tracing::info!(user = %self.profile.user(), db = self.profile.db, "a lane that was held up moves again");
        }
    }

    /// Where a command of this kind goes, other than to the lane.
    pub(crate) fn spare_for(&self, spec: &Spec) -> Option<Rc<Lane>> {
        let rides = match self.held.verdict.get()? {
            // What has to be announced with it (`pubsub` mode) goes where it is announced.
            Verdict::Busy => spec.effect == Effect::Read || !self.publishes(),
            Verdict::Serves => spec.effect == Effect::Read && !is_postponed(spec),
        };
        if rides { self.held.spare.borrow().clone() } else { None }
    }

    /// Whether the spare, which takes what the lane does not, has more to send than it should keep.
    pub(super) fn spare_is_full(&self, session: &Rc<Session>) -> bool {
        self.held.verdict.get().is_some() && self.held.spare.borrow().as_ref().is_some_and(|s| s.is_full(session))
    }

    /// The spare ends: what it carried goes back to the lane as R26 allows.
    pub(super) fn end_spare(&self, ctx: &Rc<Ctx>, why: &str) {
        let Some(spare) = self.held.spare.borrow_mut().take() else { return };
        self.held.verdict.set(None);
        self.held.pinged.set(0);
        spare.kill(why);
        let lost = spare.take_in_flight();
        for session in lost.iter().filter_map(|l| l.waiter.kind.session()) {
            session.leaves_spare();
        }
        let again = spare.sort_out(ctx, lost);
        self.go_on_with(ctx, again);
    }
}

/// What CLIENT PAUSE WRITE postpones although it changes no data: what is replicated, or may be. (PFCOUNT's row says that
/// it writes.)
fn is_postponed(spec: &Spec) -> bool {
    const REPLICATED: [&str; 6] =
        ["publish", "spublish", "function|load", "function|delete", "function|flush", "function|restore"];
    spec.kind == Kind::Script || REPLICATED.contains(&spec.name)
}

/// Why there is no spare connection.
enum Unopened {
    Unreachable(ConnectError),
    Handshake(HandshakeError),
}

/// A connection as for one session, in its lane's protocol. True: still in database 0, because a running script forbids SELECT.
async fn open(ctx: &Ctx, lane: &Lane) -> Result<(Link, bool), Unopened> {
    let limit = ctx.config.upstream.connect_timeout;
    let stream = connect(&ctx.config.upstream.endpoint, limit).await.map_err(Unopened::Unreachable)?;
    handshake::spare(stream, &lane.profile, lane.proto.get(), &ctx.name).await.map_err(Unopened::Handshake)
}

/// The task of a spare.
async fn run(ctx: &Rc<Ctx>, lane: &Rc<Lane>, link: Link, unselected: bool) {
    let spare = Rc::new(Lane::spare(ctx, lane, unselected));
    *lane.held.spare.borrow_mut() = Some(spare.clone());
    lane.ask_spare(clock::now(), &spare);
    let why = pump(ctx, &spare, link).await;
    tracing::debug!(db = lane.profile.db, "spare connection closed: {why}");
    // A later one is none of its business.
    if lane.held.spare.borrow().as_ref().is_some_and(|s| Rc::ptr_eq(s, &spare)) {
        lane.end_spare(ctx, &why);
        ctx.flush_dirty();
    }
}

/// As a spare.
impl Lane {
    fn spare(ctx: &Ctx, lane: &Rc<Lane>, unselected: bool) -> Lane {
        let mut spare = Lane::new(ctx, lane.profile.clone());
        spare.retire(&ctx.status);
        spare.never_arms();
        spare.spare_of =
            Some(SpareOf { lane: Rc::downgrade(lane), unselected: Cell::new(unselected), standing_in: Cell::new(0) });
        *spare.uncached.borrow_mut() = Some("a spare connection does not track".to_owned());
        spare.proto.set(lane.proto.get());
        spare.inner.borrow_mut().availability = Availability::Ready;
        let now = clock::now();
        spare.last_sent.set(now);
        spare.last_byte.set(now);
        spare
    }

    pub(crate) fn is_spare(&self) -> bool {
        self.spare_of.is_some()
    }

    /// The lane it stands in for.
    pub(super) fn original(&self) -> Option<Rc<Lane>> {
        self.spare_of.as_ref()?.lane.upgrade()
    }

    fn carries_reads_only(&self) -> bool {
        self.inner.borrow().fifo.iter().all(|w| w.kind.may_resend() || matches!(w.kind, Waiting::Verdict))
    }

    pub(super) fn on_probed(&self, ctx: &Rc<Ctx>, sent: u64, frame: &[u8]) {
        if let Some(lane) = self.original() {
            lane.on_verdict(ctx, sent, frame);
        }
    }

    /// Every B/4: timeouts as on the lane, and whether it is needed still.
    pub(super) fn spare_tick(&self, ctx: &Rc<Ctx>, now: u64) {
        if let Some(limit) = ctx.config.upstream.request_timeout {
            self.time_out(ctx, now.saturating_sub(nanos(limit)));
        }
        let idle = self.inner.borrow().fifo.is_empty() && now.saturating_sub(self.last_sent.get()) > IDLE;
        match self.original() {
            None => self.kill("its lane has ended"),
            Some(_) if idle => self.kill("idle"),
            Some(_) => {}
        }
    }

    /// A script forbids SELECT: until that is over a SELECT goes up in the command's place, so that nothing is ever executed
    /// in the wrong database. Its refusal is what the command would have been told.
    pub(super) fn stands_in(&self) -> bool {
        let Some(spare) = &self.spare_of else { return false };
        let stands_in = spare.unselected.get() || spare.standing_in.get() > 0;
        spare.standing_in.set(spare.standing_in.get() + u32::from(stands_in));
        stands_in
    }

    /// The answer to a SELECT in the place of `relay`.
    pub(super) fn on_stand_in(
        self: &Rc<Self>,
        ctx: &Rc<Ctx>,
        relay: Relay,
        raw: &[u8],
        sent: u64,
        frame: &[u8],
    ) -> Result<(), String> {
        let selected = frame.starts_with(b"+OK");
        if let Some(spare) = &self.spare_of {
            spare.standing_in.set(spare.standing_in.get() - 1);
            spare.unselected.set(!selected && spare.unselected.get());
        }
        if !selected {
            return self.on_relay(ctx, relay, sent, frame);
        }
        self.send(&mut self.inner.borrow_mut(), clock::now(), raw, Waiting::Relay(relay));
        Ok(())
    }
}
