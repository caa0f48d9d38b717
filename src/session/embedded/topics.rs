//! SUBSCRIBE and its kin, and PUBLISH, of a session whose backend is the engine. Confirmations and messages pass CLIENT
//! REPLY OFF, as in Redis.

use std::rc::Rc;

use bytes::BytesMut;

use super::transaction::cost;
use crate::command::{Kind, Request, Spec};
use crate::local::Space;
use crate::observe::reasons::Dropped;
use crate::resp::{Proto, build};
use crate::session::Session;
use crate::worker::Ctx;

/// What a RESP2 client may still say while it listens.
pub(super) fn may_while_listening(spec: &Spec) -> bool {
    crate::session::transaction::is_subscription(spec.kind)
        || matches!(spec.kind, Kind::Ping | Kind::Quit | Kind::Reset)
}

fn space(kind: Kind) -> (Space, &'static str) {
    match kind {
        Kind::Subscribe => (Space::Channel, "subscribe"),
        Kind::Psubscribe => (Space::Pattern, "psubscribe"),
        Kind::Ssubscribe => (Space::Shard, "ssubscribe"),
        Kind::Punsubscribe => (Space::Pattern, "punsubscribe"),
        Kind::Sunsubscribe => (Space::Shard, "sunsubscribe"),
        _ => (Space::Channel, "unsubscribe"),
    }
}

impl Session {
    /// Whether the client is subscribed to anything.
    pub(super) fn listens(&self, ctx: &Ctx) -> bool {
        let engine = self.engine(ctx).borrow();
        [Space::Channel, Space::Pattern, Space::Shard].iter().any(|space| engine.topics.count(self.id, *space) > 0)
    }

    pub(super) fn subscribe(&self, ctx: &Ctx, req: &Request<'_>, kind: Kind) {
        let (space, word) = space(kind);
        for i in 1..req.argc() {
            if self.engine(ctx).borrow_mut().topics.subscribe(self.id, space, req.arg(i)) {
                self.seat.borrow_mut().listened += 2 * cost(req.arg(i));
            }
            self.confirm(ctx, space, word, Some(req.arg(i)));
        }
        self.show_topics(ctx);
    }

    /// Of the names that are given, or of all.
    pub(super) fn unsubscribe(&self, ctx: &Ctx, req: &Request<'_>, kind: Kind) {
        let (space, word) = space(kind);
        let mut names: Vec<Box<[u8]>> = (1..req.argc()).map(|i| req.arg(i).into()).collect();
        if names.is_empty() {
            names = self.engine(ctx).borrow().topics.of(self.id, space).to_vec();
            if names.is_empty() {
                self.confirm(ctx, space, word, None);
            }
        }
        for name in &names {
            self.leave(ctx, space, name);
            self.confirm(ctx, space, word, Some(name));
        }
        self.show_topics(ctx);
    }

    fn leave(&self, ctx: &Ctx, space: Space, name: &[u8]) {
        if self.engine(ctx).borrow_mut().topics.unsubscribe(self.id, space, name) {
            self.seat.borrow_mut().listened -= 2 * cost(name);
        }
    }

    /// RESET: without a word.
    pub(super) fn leave_all(&self, ctx: &Ctx) {
        self.engine(ctx).borrow_mut().topics.forget(self.id);
        self.seat.borrow_mut().listened = 0;
        self.show_topics(ctx);
    }

    /// Channels and patterns share one count.
    fn confirm(&self, ctx: &Ctx, space: Space, word: &str, name: Option<&[u8]>) {
        let engine = self.engine(ctx).borrow();
        let count = |space| engine.topics.count(self.id, space);
        let count = match space {
            Space::Shard => count(Space::Shard),
            _ => count(Space::Channel) + count(Space::Pattern),
        };
        let proto = self.proto();
        self.answer(false, |out| {
            build::push_or_array(out, proto, 3);
            build::bulk(out, word.as_bytes());
            match name {
                Some(name) => build::bulk(out, name),
                None => build::null(out, proto),
            }
            build::integer(out, count as i64);
        });
    }

    /// For CLIENT LIST.
    fn show_topics(&self, ctx: &Ctx) {
        let engine = self.engine(ctx).borrow();
        let count = |space| engine.topics.count(self.id, space) as i64;
        let mut shown = self.pinned.borrow_mut();
        shown.subscriptions.channels = count(Space::Channel);
        shown.subscriptions.patterns = count(Space::Pattern);
        shown.subscriptions.shards = count(Space::Shard);
    }

    /// PUBLISH and SPUBLISH.
    pub(super) fn publish(self: &Rc<Self>, ctx: &Ctx, req: &Request<'_>, space: Space, mute: bool) {
        let (channel, payload) = (req.arg(1), req.arg(2));
        let receivers = self.engine(ctx).borrow().topics.receivers(space, channel);
        for receiver in &receivers {
            let found = ctx.sessions.borrow().get(&receiver.client).cloned();
            let Some(session) = found.filter(|s| !s.closing.get()) else { continue };
            let proto = session.proto();
            session.answer(false, |out| message(out, proto, space, receiver.pattern.as_deref(), channel, payload));
            if session.unsent() > ctx.config.listen.output_limit {
                session.drop_for(ctx, Dropped::OutputLimit, "it did not read its messages (listen.output_limit)");
            } else if session.id != self.id {
                ctx.mark_dirty(&session);
            }
        }
        self.answer(mute, |out| build::integer(out, receivers.len() as i64));
    }
}

fn message(out: &mut BytesMut, proto: Proto, space: Space, pattern: Option<&[u8]>, channel: &[u8], payload: &[u8]) {
    let word: &[u8] = match (space, pattern) {
        (Space::Shard, _) => b"smessage",
        (_, Some(_)) => b"pmessage",
        _ => b"message",
    };
    build::push_or_array(out, proto, if pattern.is_some() { 4 } else { 3 });
    build::bulk(out, word);
    pattern.iter().for_each(|pattern| build::bulk(out, pattern));
    build::bulk(out, channel);
    build::bulk(out, payload);
}
