//! An EXEC reply that is read element by element, because some of its elements are ours to answer or change the session.

use std::rc::Rc;

use bytes::BytesMut;

use super::{Pin, note_answer, settle};
use crate::command::Request;
use crate::resp::build;
use crate::resp::reply;
use crate::session::Client;
use crate::session::transaction::{PubSub, Queued, Role, Walk, What, pubsub};
use crate::worker::Ctx;

impl Pin {
    pub(super) fn begins_walk(&self) -> bool {
        let walks = match self.expect.front().map(|e| &e.what) {
            Some(What::Exec(queue)) => queue.iter().any(Queued::needs_walk),
            _ => false,
        };
        walks && self.walk.is_none() && self.conn.link.rbuf.first() == Some(&b'*')
    }

    /// Reads EXEC's array header. False: more bytes are needed.
    pub(super) fn begin_walk(&mut self, ctx: &Rc<Ctx>, client: &Client, hold: &mut bool) -> bool {
        let Some(end) = memchr::memchr(b'\n', &self.conn.link.rbuf) else { return false };
        let header = self.conn.link.rbuf.split_to(end + 1);
        let Some(expect) = self.expect.pop_front() else { return false };
        note_answer(ctx, &expect, false);
        self.announce(ctx, client, &expect);
        *hold |= settle(ctx, &expect) | self.tell(&expect);
        client.session.set_fence();
        self.watching = false;
        let told = matches!(&expect.what, What::Exec(q) if q.last().is_some_and(|q| matches!(q.role, Role::Told)));
        if told && !header.starts_with(b"*-") {
            let mut own = BytesMut::new();
            build::array(&mut own, reply::elements(&header).left().saturating_sub(1));
            self.deliver(expect.mute, &own);
        } else {
            self.deliver(expect.mute, &header);
        }
        if let What::Exec(queue) = expect.what
            && !header.starts_with(b"*-")
        {
            self.walk = Some(Walk { queue: queue.into(), confirmations: None, mute: expect.mute });
        }
        true
    }

    pub(super) fn walk_frame(&mut self, ctx: &Rc<Ctx>, client: &Client, frame: &[u8]) -> bool {
        let mut own = BytesMut::new();
        let subs = self.subs;
        let Some(walk) = self.walk.as_mut() else { return false };
        let mut mute = walk.mute && frame[0] != b'>';
        let mut next = true;
        match walk.queue.front().map(|q| &q.role) {
            Some(Role::Subscription { kind, words }) => {
                if let Some(PubSub::Confirmation { kind: of, count }) = pubsub(frame) {
                    let left = walk.confirmations.unwrap_or_else(|| subs.confirmations(*kind, *words));
                    walk.confirmations = (left > 1).then_some(left - 1);
                    next = left <= 1;
                    self.subs.confirmed(of, count);
                }
            }
            _ if frame[0] == b'>' => next = false,
            Some(Role::Told) => mute = true,
            Some(Role::Local { raw, args }) => {
                let req = Request { raw, args };
                own = client.session.local_in_exec(ctx, &req);
            }
            Some(Role::Hello(greeting)) if !reply::is_error(frame) => {
                let greeting = greeting.clone();
                own = self.said_hello(ctx, client, greeting, frame);
            }
            Some(Role::Tracking(on)) if !reply::is_error(frame) => self.tracking = *on,
            // Upstream may have left out its refusal (`asks_for_entry`): then this is the next command's reply.
            Some(Role::Auth(c)) if frame == b"+OK\r\n" => client.session.authenticated(ctx, c.clone()),
            Some(Role::Select(db)) if !reply::is_error(frame) => {
                client.session.state.borrow_mut().db = *db;
                client.session.forget_lane();
            }
            _ => {}
        }
        let bytes: &[u8] = if own.is_empty() { frame } else { &own };
        self.deliver(mute, bytes);
        if next {
            self.walk.take_if(Walk::step);
        }
        false
    }
}
