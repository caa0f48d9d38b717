//! An upstream that answers nothing at all (DESIGN 5). A lane may honestly wait long for one command, and `spare` sees to it
//! that others do not wait with it; but where for `upstream.stall_timeout` neither the lane nor a fresh connection is
//! answered, not even with an error, upstream is gone: new commands, and reads that nothing but reads stands before, are
//! answered by the table of outages. The connection is kept for as long as TCP keeps it, because what else is on its way may
//! yet be executed and answered. The first answer, on the lane or to our own handshake or PING on a fresh connection, ends it.

use std::collections::{HashMap, VecDeque};
use std::rc::Rc;

use super::lane::{Availability, Inner, Lane};
use super::loss::Lost;
use super::reader::nanos;
use super::wait::{Relay, Waiter, Waiting};
use crate::observe::clock;
use crate::outage::Outage;
use crate::resp::downgrade::Form;
use crate::upstream::Backoff;
use crate::worker::Ctx;

impl Lane {
    /// Every B/4, or more often: whether it has been silent for too long.
    pub(super) fn watch_silence(self: &Rc<Self>, ctx: &Rc<Ctx>, now: u64) {
        let Some(limit) = ctx.config.upstream.stall_timeout.map(nanos) else { return };
        let stuck = self.stuck_for(now);
        if !self.is_live() || self.held.silent.get() || stuck == 0 {
            return;
        }
        let since = now.saturating_sub(stuck).max(self.held.heard.get());
        if now.saturating_sub(since) >= limit {
            self.falls_silent(ctx, since);
        }
    }

    pub(super) fn falls_silent(&self, ctx: &Rc<Ctx>, since: u64) {
        let limit = ctx.config.upstream.stall_timeout.unwrap_or_default();
        let why = format!("nothing answered for {limit:?} (upstream.stall_timeout)");
        self.held.silent.set(true);
        ctx.upstream_silent(since, &why);
        self.inner.borrow_mut().availability = Availability::Gone(Outage { since, why });
        self.changed.notify_waiters();
        let reads = take_reads(&mut self.inner.borrow_mut());
        self.answer_without_upstream(ctx, reads);
        ctx.flush_dirty();
    }

    /// Upstream has answered, here or on a fresh connection.
    pub(super) fn heard(self: &Rc<Self>, ctx: &Rc<Ctx>) {
        let lane = self.original().unwrap_or_else(|| self.clone());
        lane.held.heard.set(clock::now());
        lane.held.next_try.set(0);
        lane.held.backoff.borrow_mut().take();
        if !lane.held.silent.replace(false) {
            return;
        }
        ctx.upstream_answered();
        if lane.is_live() {
            lane.recovers(clock::now());
            lane.serves_again(ctx);
        }
    }

    /// A fresh connection could not be had: while upstream is gone each next attempt waits longer, as a lane's own do.
    pub(super) fn try_again_later(&self, ctx: &Ctx) {
        if !self.held.silent.get() {
            return;
        }
        let retry = &ctx.config.upstream.retry;
        let mut backoff = self.held.backoff.borrow_mut();
        let backoff = backoff.get_or_insert_with(|| Backoff::new(retry.base_delay, retry.max_delay));
        self.held.next_try.set(clock::now() + nanos(backoff.next()));
    }
}

/// Takes the reads off the lane that have nothing but such reads before them in their sessions. Their replies, if they come,
/// are read off and dropped.
fn take_reads(inner: &mut Inner) -> VecDeque<Lost> {
    // By slot, not by place: a session that has joined an older fetch is found there before what it asked earlier.
    let mut barred: HashMap<u64, u64> = HashMap::new();
    for waiter in inner.fifo.iter().filter(|waiter| !waiter.kind.may_resend()) {
        waiter.kind.each_session(|session, slot| {
            let first = barred.entry(session).or_insert(slot);
            *first = slot.min(*first);
        });
    }
    let free = |session: u64, slot: u64| barred.get(&session).is_none_or(|first| slot < *first);
    let mut taken = VecDeque::new();
    let mut offset = 0;
    let Inner { fifo, log, .. } = inner;
    for waiter in fifo.iter_mut() {
        let raw = log.at(offset, waiter.len as usize);
        offset += waiter.len as usize;
        let mut take = |session, slot, raw: &[u8]| {
            let relay = Relay::plain(session, slot, Form::Same, true);
            let waiter = Waiter { t_sent: waiter.t_sent, len: 0, attempts: 0, kind: Waiting::Relay(relay) };
            taken.push_back(Lost::sent(waiter, raw));
        };
        match &mut waiter.kind {
            Waiting::Relay(relay) if relay.resend => {
                let slot = relay.slot;
                if let Some(session) = relay.session.take_if(|session| free(session.id, slot)) {
                    take(session, slot, raw);
                }
            }
            Waiting::Mget(fetch) => {
                if let Some(session) = fetch.session.borrow_mut().take_if(|session| free(session.id, fetch.slot)) {
                    take(session, fetch.slot, &fetch.raw);
                }
            }
            Waiting::Fetch(fetch) if fetch.read.resend => {
                let mut kept = fetch.waiters.borrow_mut();
                let all = std::mem::take(&mut *kept);
                for (session, slot) in all {
                    match free(session.id, slot) {
                        true => take(session, slot, raw),
                        false => kept.push((session, slot)),
                    }
                }
            }
            _ => {}
        }
    }
    taken
}
