//! A session whose client's socket another worker has (`front`). It is the same session; what is its own here is only to
//! tell the front when hits are in order (see `front::link`), and to know of what the front has answered.

use std::cell::Cell;
use std::sync::Arc;
use std::time::Duration;

use super::Session;
use super::state::Replies;
use crate::front::{Grant, Link};
use crate::net::{ReadHalf, WriteHalf};
use crate::observe::clock;
use crate::worker::Ctx;

pub(super) struct Agent {
    link: Arc<Link>,
    /// Bytes read of the client's, while the session's task waits for more and has none unfinished.
    at_rest: Cell<Option<u64>>,
    /// Bytes read and written at the last grant, if it stands.
    granted: Cell<Option<(u64, u64)>>,
}

impl Agent {
    pub(super) fn new(link: Arc<Link>) -> Agent {
        Agent { link, at_rest: Cell::new(None), granted: Cell::new(None) }
    }

    pub(super) fn buffered(&self) -> usize {
        self.link.buffered()
    }

    /// Lets the front answer, if nothing is under way and nothing needs the session's eyes. Called whenever that may have
    /// become so: when the task comes to rest, and when replies are about to be written. Before, not after: the client's
    /// next request may be here before this thread runs again, and the grant says itself that it counts from those bytes on.
    pub(super) fn grant(&self, ctx: &Ctx, session: &Session) {
        let Some(consumed) = self.at_rest.get() else { return };
        let Some(written) = session.written_soon() else { return };
        if self.granted.get() == Some((consumed, written)) || !session.is_quiet() || !session.reads_freely(ctx) {
            return;
        }
        // A session that has never asked for anything of the lane has none yet.
        let Some(lane) = session.lane.borrow().clone().filter(|lane| !lane.is_over()) else { return };
        let facts = lane.facts.clone();
        self.granted.set(Some((consumed, written)));
        let (proto, judged) = (session.proto(), ctx.policy.judges());
        self.link.grant(Some(Grant { consumed, written, fence: session.fence.get(), proto, facts, judged }));
    }

    /// For what changes without a byte of the client's.
    pub(super) fn revoke(&self) {
        if self.granted.take().is_some() {
            self.link.grant(None);
        }
    }
}

/// The session's task waits for bytes with none unfinished; over when dropped.
pub(super) struct Rest<'s>(Option<&'s Agent>);

impl Drop for Rest<'_> {
    fn drop(&mut self) {
        if let Some(agent) = self.0 {
            agent.at_rest.set(None);
        }
    }
}

impl Session {
    /// Begins a rest, where `resting` says that this is one; without an await before `wait`.
    pub(super) fn comes_to_rest(&self, resting: bool, rd: &ReadHalf) {
        if let (Some(agent), ReadHalf::Piped(reader)) = (&self.agent, rd) {
            agent.at_rest.set(resting.then(|| reader.read()));
        }
    }

    /// The rest itself, over when what this returns is dropped.
    pub(super) fn rests(&self, ctx: &Ctx, resting: bool, rd: &ReadHalf) -> Rest<'_> {
        self.comes_to_rest(resting, rd);
        if let Some(agent) = &self.agent {
            agent.grant(ctx, self);
        }
        Rest(self.agent.as_ref())
    }

    /// Nothing is outstanding, and nothing about the client asks for more than a hit knows.
    fn is_quiet(&self) -> bool {
        // Not `special`, which a SKIP that is used up leaves behind.
        let state = self.state.borrow();
        self.outbox.borrow().outstanding() == 0
            && !state.locked
            && state.replies == Replies::On
            && !self.closing.get()
            && !self.redirected.get()
            && self.redo.borrow().is_empty()
    }

    /// Bytes ever given to the front, once those that are ready have been.
    fn written_soon(&self) -> Option<u64> {
        match self.writer.borrow().as_deref() {
            Some(WriteHalf::Piped(writer)) => Some(writer.written() + self.outbox.borrow().ready.len() as u64),
            _ => None,
        }
    }

    /// When the client last asked for something, and what.
    pub(super) fn last_seen(&self) -> (u64, &'static str) {
        let own = (self.last.get(), self.last_command.get());
        let by_front = self.agent.as_ref().map(|agent| agent.link.last_hit());
        by_front.filter(|(at, _)| *at > own.0).unwrap_or(own)
    }

    /// How much of `limit` is left before the client may count as idle: counted from its last request, where the task has
    /// not seen all of them.
    pub(super) fn idle_left(&self, limit: Duration) -> Duration {
        match &self.agent {
            Some(_) if self.outbox.borrow().outstanding() == 0 => limit.saturating_sub(self.quiet_for()),
            _ => limit,
        }
    }

    /// The front has answered the client less than `limit` ago.
    pub(super) fn was_answered_within(&self, limit: Duration) -> bool {
        self.agent.is_some() && self.quiet_for() < limit
    }

    fn quiet_for(&self) -> Duration {
        Duration::from_nanos(clock::now().saturating_sub(self.last_seen().0))
    }
}
