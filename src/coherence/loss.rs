//! What becomes of commands in flight: when a lane is lost, when a reply is too large for it, when a client's patience
//! ends. A command is sent a second time only where R26 allows: a core read without effects, and only if every later
//! command that its session has in flight is such a read too (`[LRANGE q 0 -1, DEL q]` must never answer from after the
//! DEL). Writes are never sent twice: their fate is unknown and the client is told so.

use std::cell::RefMut;
use std::collections::{HashSet, VecDeque};
use std::rc::Rc;

use super::lane::{Availability, Inner, Lane};
use super::wait::{End, Fetch, Waiter, Waiting};
use crate::observe::clock;
use crate::observe::reasons::{ErrorType, Flush, Link};
use crate::resp::downgrade::Form;
use crate::session::Session;
use crate::worker::Ctx;

const LOST_READ: &str = "NEARSIDE upstream connection lost";
const LOST_WRITE: &str = "NEARSIDE upstream connection lost: outcome unknown";
const TIMED_OUT: &str = "NEARSIDE no answer from upstream within upstream.request_timeout";
const TIMED_OUT_WRITE: &str = "NEARSIDE no answer from upstream within upstream.request_timeout: outcome unknown";
const TOO_LARGE: &str = "NEARSIDE reply larger than listen.buffers_max";

/// A read that its session sends again on a connection of its own (decision 10).
#[derive(Debug)]
pub(crate) struct Redo {
    pub(crate) slot: u64,
    pub(crate) raw: Vec<u8>,
    pub(crate) form: Form,
    pub(crate) info: bool,
}

/// A command that was in flight, with its bytes.
pub(super) struct Lost {
    pub(super) waiter: Waiter,
    pub(super) raw: Vec<u8>,
    unsent: bool,
}

impl Lost {
    /// It was written to the connection.
    pub(super) fn sent(waiter: Waiter, raw: &[u8]) -> Lost {
        Lost { waiter, raw: raw.to_vec(), unsent: false }
    }
}

impl Lane {
    /// R6: the connection is gone. The epoch ends first, so nothing of it is served or stored from here on.
    pub(super) fn lost(self: &Rc<Self>, ctx: &Rc<Ctx>, why: &str) {
        self.note_end();
        self.epoch.set(0);
        self.f.set(0);
        self.forget_canary();
        self.uncover(ctx);
        self.publish();
        ctx.upstream_lost(why);
        ctx.pool.retire();
        ctx.metrics.flushes.inc(Flush::Lane);
        self.status.set_link(Link::Connecting);
        self.status.set_epoch(0);
        let lost = self.take_in_flight();
        let again = self.sort_out(ctx, lost);
        // What comes now waits for the reconnection, which either succeeds or fails everything that waited. Where upstream is
        // known to be gone nothing waits.
        // Where writes are queued what comes now waits outside of the log: it must not be sent before them.
        let next = if ctx.held.waits(&self.profile) { Availability::Starting } else { Availability::Ready };
        self.inner.borrow_mut().availability = ctx.outage().map_or(next, Availability::Gone);
        self.changed.notify_waiters();
        self.go_on_with(ctx, again);
        self.end_spare(ctx, "its lane was lost");
        ctx.flush_dirty();
    }

    /// What may be sent again waits for the connection to come, or is answered as while upstream is gone.
    pub(super) fn go_on_with(&self, ctx: &Rc<Ctx>, again: VecDeque<Lost>) {
        if self.is_gone() {
            return self.answer_without_upstream(ctx, again);
        }
        let now = clock::now();
        for Lost { waiter, raw, .. } in again {
            self.resume(ctx, now, waiter, &raw);
        }
    }

    /// By the table of outages: reads from the L1 where that is allowed, all else with an error. Nothing of it is executed.
    pub(super) fn answer_without_upstream(&self, ctx: &Rc<Ctx>, all: VecDeque<Lost>) {
        for Lost { mut waiter, raw, .. } in all {
            let again = waiter.kind.may_resend();
            match &mut waiter.kind {
                Waiting::Fetch(fetch) => {
                    let waiters = std::mem::take(&mut *fetch.waiters.borrow_mut());
                    waiters.iter().for_each(|(session, slot)| session.settle_without_upstream(ctx, self, *slot, &raw));
                }
                Waiting::Mget(fetch) => {
                    if let Some(session) = fetch.session.borrow_mut().take() {
                        session.settle_without_upstream(ctx, self, fetch.slot, &fetch.raw);
                    }
                }
                Waiting::Relay(relay) | Waiting::StandIn(relay, _) => {
                    match relay.session.take() {
                        Some(session) if again => session.settle_without_upstream(ctx, self, relay.slot, &raw),
                        Some(session) => session.refuse_slot(ctx, self, relay.slot, relay.write),
                        None => {}
                    }
                    self.fail(ctx, waiter.kind, |_| "");
                }
                _ => self.fail(ctx, waiter.kind, |_| LOST_READ),
            }
        }
    }

    /// Upstream cannot be reached: everything that waits is answered with `error`.
    pub(super) fn fail_all(&self, ctx: &Rc<Ctx>, error: &str) {
        for lost in self.take_in_flight() {
            self.fail(ctx, lost.waiter.kind, |_| error);
        }
    }

    pub(super) fn take_in_flight(&self) -> VecDeque<Lost> {
        let mut inner = self.inner.borrow_mut();
        inner.flights.clear();
        inner.refreshing.clear();
        let log = std::mem::take(&mut inner.log);
        let waiters = std::mem::take(&mut inner.fifo);
        for session in inner.throttled.drain(..) {
            session.wake.call();
        }
        let mut offset = 0;
        let with_bytes = |waiter: Waiter| {
            let len = waiter.len as usize;
            let lost = Lost { raw: log.at(offset, len).to_vec(), unsent: log.unsent(offset), waiter };
            offset += len;
            lost
        };
        waiters.into_iter().map(with_bytes).collect()
    }

    /// Answers what is lost and returns, in order, what may be sent again.
    pub(super) fn sort_out(&self, ctx: &Rc<Ctx>, mut lost: VecDeque<Lost>) -> VecDeque<Lost> {
        let attempts = ctx.config.upstream.retry.max_attempts;
        // From the newest to the oldest: a session with something that cannot be sent again loses all that lies before it.
        let mut barred: HashSet<u64> = HashSet::new();
        let mut keep = vec![false; lost.len()];
        for (i, l) in lost.iter_mut().enumerate().rev() {
            let unsent = l.unsent || matches!(l.waiter.kind, Waiting::StandIn(..));
            let again = unsent || (l.waiter.kind.may_resend() && u32::from(l.waiter.attempts) < attempts);
            keep[i] = match &l.waiter.kind {
                Waiting::Fetch(fetch) => {
                    if !again {
                        barred.extend(fetch.waiters.borrow().iter().map(|(s, _)| s.id));
                    }
                    again
                }
                kind => match kind.session() {
                    Some(session) if again && !barred.contains(&session.id) => true,
                    Some(session) => {
                        barred.insert(session.id);
                        false
                    }
                    None => false,
                },
            };
            if let (true, Waiting::Fetch(fetch)) = (keep[i], &l.waiter.kind) {
                fail_barred(ctx, fetch, &barred);
                keep[i] = !fetch.waiters.borrow().is_empty();
            }
        }
        let mut again = VecDeque::new();
        for (l, keep) in lost.into_iter().zip(keep) {
            if keep {
                again.push_back(l);
            } else {
                self.fail(ctx, l.waiter.kind, |write| if write { LOST_WRITE } else { LOST_READ });
            }
        }
        again
    }

    /// Sends one command again, or for the first time, on the connection to come.
    pub(super) fn resume(&self, ctx: &Rc<Ctx>, now: u64, waiter: Waiter, raw: &[u8]) {
        let attempts = waiter.attempts + 1;
        let again = |kind| Waiter { t_sent: now, len: raw.len() as u32, attempts, kind };
        match waiter.kind {
            Waiting::StandIn(relay, raw) => self.resume(ctx, now, again(Waiting::Relay(relay)), &raw),
            // Its token is void with its epoch. The sessions that wait get their answer, nothing is stored.
            Waiting::Fetch(fetch) => self.resend(now, raw, again(Waiting::Fetch(fetch))),
            // Hits taken under the old epoch are void: the client's whole MGET goes up.
            Waiting::Mget(fetch) => {
                let Some(session) = fetch.session.borrow_mut().take() else { return };
                let relay = super::Relay::plain(session, fetch.slot, Form::Bulk, true);
                let raw = fetch.raw.clone();
                let waiter = Waiter { t_sent: now, len: raw.len() as u32, attempts, kind: Waiting::Relay(relay) };
                self.resend(now, &raw, waiter);
            }
            Waiting::Relay(mut relay) => {
                relay.refresh = None;
                // Its EXEC was never sent, so nothing of it was executed.
                let wrapped = relay.wrapped.take();
                let raw = wrapped.as_ref().map_or(raw, |w| &w.raw);
                if relay.hold.is_some() || relay.tell.is_some() {
                    // The PING behind it was lost with the connection. It was never sent itself, so this is its first time.
                    relay.hold = relay.hold.map(|_| Rc::default());
                    return self.relay(ctx, now, raw, relay);
                }
                self.resend(now, raw, again(Waiting::Relay(relay)));
            }
            other => self.fail(ctx, other, |_| LOST_READ),
        }
    }

    /// Ends one wait without a reply. Every `begin_write` has its `end_write` here or at the reply, never both (R14).
    fn fail<'e>(&self, ctx: &Rc<Ctx>, kind: Waiting, error: impl Fn(bool) -> &'e str) {
        ctx.metrics.errors.inc(ErrorType::Upstream);
        match kind {
            Waiting::Relay(relay) | Waiting::StandIn(relay, _) => {
                for &stripe in relay.ends.as_slice() {
                    ctx.l1.end_write(stripe);
                }
                if relay.flush {
                    ctx.l1.flush();
                }
                if let Some(session) = relay.session {
                    session.complete_error(ctx, relay.slot, error(relay.write));
                }
            }
            Waiting::Fetch(fetch) => {
                for (session, slot) in fetch.waiters.borrow_mut().drain(..) {
                    session.complete_error(ctx, slot, error(false));
                }
            }
            Waiting::FetchTtl(fetch) => self.over(ctx, &fetch, End::Lost),
            Waiting::Mget(fetch) => {
                if let Some(session) = fetch.session.borrow_mut().take() {
                    session.complete_error(ctx, fetch.slot, error(false));
                }
            }
            Waiting::Fence(hold) => hold.lost(ctx),
            Waiting::Published(hold) => self.lost_message(ctx, hold.as_ref()),
            _ => {}
        }
    }

    /// Whether anything of this session is on its way over this lane.
    pub(super) fn has_in_flight(&self, session: &Rc<Session>) -> bool {
        self.inner.borrow().fifo.iter().any(|w| w.kind.names(session))
    }

    /// Decision 10: the frame at the front is large. Where R26 allows, every session that waits for it asks again on a
    /// connection of its own, together with all that it has in flight behind; then the frame need not be kept.
    pub(super) fn reissue_front(&self, ctx: &Rc<Ctx>) -> bool {
        let mut inner = self.inner.borrow_mut();
        let sessions: Vec<Rc<Session>> = match inner.fifo.front().map(|w| &w.kind) {
            Some(Waiting::Relay(relay)) => match &relay.session {
                Some(session) if relay.resend => vec![session.clone()],
                Some(_) => return false,
                None => Vec::new(),
            },
            Some(Waiting::Fetch(fetch)) => fetch.waiters.borrow().iter().map(|(s, _)| s.clone()).collect(),
            Some(Waiting::Mget(fetch)) => fetch.session.borrow().iter().cloned().collect(),
            Some(Waiting::Ask(_) | Waiting::Inquire(_) | Waiting::StandIn(..)) | None => return false,
            Some(_) => Vec::new(),
        };
        let free = |s: &Rc<Session>| inner.fifo.iter().filter(|w| w.kind.names(s)).all(|w| w.kind.may_resend());
        if !sessions.iter().all(free) {
            return false;
        }
        ctx.large.borrow_mut().note(inner.log.at(0, inner.fifo[0].len as usize), clock::now());
        for session in &sessions {
            let mut redo: Vec<Redo> =
                detach(&mut inner, |s| s.id == session.id).into_iter().map(|(_, redo)| redo).collect();
            redo.sort_by_key(|r| r.slot);
            session.redo(redo);
        }
        self.drop_front(inner);
        true
    }

    /// Nobody waits for the front frame any more. A refresh or a miss that is too large to keep is simply not kept; a
    /// client's command still ends its writes and its hold when the frame is over.
    fn drop_front(&self, mut inner: RefMut<'_, Inner>) {
        if matches!(inner.fifo[0].kind, Waiting::Relay(_)) {
            return;
        }
        let was = std::mem::replace(&mut inner.fifo[0].kind, Waiting::Dropped);
        if let Waiting::Fetch(fetch) = &was {
            inner.land(fetch);
        }
        drop(inner);
        if let Waiting::Refresh(refresh) = was {
            self.forget_refresh(&refresh);
        }
    }

    /// A reply that may not be asked for twice has outgrown `listen.buffers_max`: its client is dropped, the lane lives.
    pub(super) fn drop_front_client(&self, ctx: &Rc<Ctx>) {
        let mut inner = self.inner.borrow_mut();
        let Some(front) = inner.fifo.front_mut() else { return };
        let sessions: Vec<Rc<Session>> = match &mut front.kind {
            Waiting::Relay(relay) => relay.session.take().into_iter().collect(),
            // A module's read, which may not be asked for twice.
            Waiting::Fetch(fetch) => fetch.waiters.borrow_mut().drain(..).map(|(session, _)| session).collect(),
            _ => Vec::new(),
        };
        drop(inner);
        sessions.iter().for_each(|session| session.drop_client(ctx, TOO_LARGE));
    }

    /// `upstream.request_timeout`: who was sent before `limit` and waits is told; the reply will be read off and dropped.
    pub(super) fn time_out(&self, ctx: &Rc<Ctx>, limit: u64) {
        let mut due = Vec::new();
        for waiter in self.inner.borrow_mut().fifo.iter_mut().take_while(|w| w.t_sent < limit) {
            match &mut waiter.kind {
                Waiting::Relay(relay) | Waiting::StandIn(relay, _) => {
                    due.extend(relay.session.take().map(|s| (s, relay.slot, relay.write)))
                }
                Waiting::Fetch(fetch) => {
                    due.extend(fetch.waiters.borrow_mut().drain(..).map(|(s, slot)| (s, slot, false)))
                }
                Waiting::Mget(fetch) => due.extend(fetch.session.borrow_mut().take().map(|s| (s, fetch.slot, false))),
                _ => {}
            }
        }
        for (session, slot, write) in due {
            ctx.metrics.errors.inc(ErrorType::Timeout);
            session.complete_error(ctx, slot, if write { TIMED_OUT_WRITE } else { TIMED_OUT });
        }
        ctx.flush_dirty();
    }
}

impl Waiting {
    /// The one session that waits for this reply (a fetch may have several, see `names`).
    pub(super) fn session(&self) -> Option<Rc<Session>> {
        match self {
            Waiting::Relay(relay) | Waiting::StandIn(relay, _) => relay.session.clone(),
            Waiting::Mget(fetch) => fetch.session.borrow().clone(),
            _ => None,
        }
    }

    pub(super) fn may_resend(&self) -> bool {
        match self {
            Waiting::Relay(relay) => relay.resend,
            Waiting::Fetch(fetch) => fetch.read.resend,
            Waiting::Mget(_) | Waiting::Sample(_) => true,
            _ => false,
        }
    }

    /// Each session that waits for this reply, and its slot.
    pub(super) fn each_session(&self, mut each: impl FnMut(u64, u64)) {
        match self {
            Waiting::Relay(relay) | Waiting::StandIn(relay, _) => {
                relay.session.iter().for_each(|session| each(session.id, relay.slot));
            }
            Waiting::Mget(fetch) => fetch.session.borrow().iter().for_each(|session| each(session.id, fetch.slot)),
            Waiting::Fetch(fetch) => fetch.waiters.borrow().iter().for_each(|(session, slot)| each(session.id, *slot)),
            _ => {}
        }
    }

    fn names(&self, session: &Rc<Session>) -> bool {
        match self {
            Waiting::Fetch(fetch) => fetch.waiters.borrow().iter().any(|(s, _)| Rc::ptr_eq(s, session)),
            kind => kind.session().is_some_and(|s| Rc::ptr_eq(&s, session)),
        }
    }
}

/// Sessions of a fetch that have something behind it which cannot be sent again lose this read too.
fn fail_barred(ctx: &Rc<Ctx>, fetch: &Fetch, barred: &HashSet<u64>) {
    let mut failed = Vec::new();
    fetch.waiters.borrow_mut().retain(|(session, slot)| {
        let bar = barred.contains(&session.id);
        if bar {
            failed.push((session.clone(), *slot));
        }
        !bar
    });
    for (session, slot) in failed {
        session.complete_error(ctx, slot, LOST_READ);
    }
}

/// Takes everything that such sessions have in flight off the lane, with the bytes to send it again. (A session that has
/// joined an older fetch is found there first.)
pub(super) fn detach(inner: &mut Inner, which: impl Fn(&Session) -> bool) -> Vec<(Rc<Session>, Redo)> {
    let mut redo = Vec::new();
    let mut offset = 0;
    let Inner { fifo, log, .. } = inner;
    for waiter in fifo.iter_mut() {
        let len = waiter.len as usize;
        match &mut waiter.kind {
            Waiting::Relay(relay) => {
                if let Some(session) = relay.session.take_if(|s| which(s)) {
                    let raw = log.at(offset, len).to_vec();
                    redo.push((session, Redo { slot: relay.slot, raw, form: relay.form, info: relay.info }));
                }
            }
            Waiting::Mget(fetch) => {
                if let Some(session) = fetch.session.borrow_mut().take_if(|s| which(s)) {
                    let raw = fetch.raw.to_vec();
                    redo.push((session, Redo { slot: fetch.slot, raw, form: Form::Bulk, info: false }));
                }
            }
            Waiting::Fetch(fetch) => {
                let form = fetch.read.form;
                fetch.waiters.borrow_mut().retain(|(session, slot)| {
                    let ours = which(session);
                    if ours {
                        let raw = log.at(offset, len).to_vec();
                        redo.push((session.clone(), Redo { slot: *slot, raw, form, info: false }));
                    }
                    !ours
                });
            }
            _ => {}
        }
        offset += len;
    }
    redo
}
