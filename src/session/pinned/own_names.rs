//! `upstream.key_prefix` on a connection of the session's own: the same as in [`super::super::own_names`], where requests
//! come one by one and replies may be streamed, or be EXEC's.

use std::borrow::Cow;
use std::rc::Rc;

use bytes::BytesMut;

use super::Pin;
use super::from_client::refused;
use crate::command::Request;
use crate::command::prefix::{self, Outcome, Words};
use crate::command::strip::{self, Strip, Stripper};
use crate::command::table::{self, Lookup};
use crate::resp::{Proto, reply};
use crate::session::Client;
use crate::session::dispatch::Owned;
use crate::session::own_names::{Named, named, own_push, rewrite};
use crate::session::transaction::{Queued, What, pubsub};
use crate::worker::Ctx;

const NOT_IN_MULTI: &str = "inside MULTI, and to a subscriber of RESP2, as it takes several commands of ours";

impl Pin {
    /// A request as the client sent it; `request` is for what has been here.
    pub(super) fn receive(&mut self, ctx: &Rc<Ctx>, client: &Client, owned: Owned) {
        let Some(own) = &ctx.prefix else { return self.request(ctx, client, &owned.request()) };
        let req = owned.request();
        let spec = match named(ctx, &req) {
            Named::Known(spec) => spec,
            Named::Keyless => return self.request(ctx, client, &req),
            Named::New => {
                self.local = Some(owned);
                return;
            }
            Named::Unknown => return self.refuse_name(&client.session, prefix::stranger_refusal(&req).into()),
        };
        let mut words = Words::default();
        match rewrite(ctx, own, spec, &req, &mut words) {
            Outcome::Same => self.request(ctx, client, &req),
            Outcome::Changed => self.request(ctx, client, &words.request()),
            Outcome::Own if self.may_run(&req) => match refused(ctx, client, &req) {
                Some(why) => self.refuse(&client.session, &req, why),
                None => self.local = Some(owned),
            },
            Outcome::Own => self.refuse_name(&client.session, prefix::refusal(spec.name, NOT_IN_MULTI).into()),
            Outcome::Refused(why) => self.refuse_name(&client.session, prefix::refusal(spec.name, why).into()),
        }
    }

    /// Whether the command that waits until all before it is answered has a name that upstream has to be asked about.
    pub(super) fn waits_to_learn(&self, ctx: &Ctx) -> bool {
        let new = |owned: &Owned| matches!(named(ctx, &owned.request()), Named::New);
        ctx.prefix.is_some() && self.local.as_ref().is_some_and(new)
    }

    /// Asks upstream what it is, and looks at it once more: what is unknown now stays so.
    pub(super) async fn learn(&mut self, ctx: &Rc<Ctx>, client: &Client) {
        let Some(owned) = self.local.take() else { return };
        let lane = client.session.lane(ctx);
        ctx.await_lane(&lane).await;
        ctx.learn(&lane, owned.request().arg(0)).await;
        match named(ctx, &owned.request()) {
            Named::New => self.refuse_name(&client.session, prefix::stranger_refusal(&owned.request()).into()),
            _ => self.receive(ctx, client, owned),
        }
    }

    /// Whether a command that takes several of ours may run now; `run_local` looks its name up.
    fn may_run(&self, req: &Request<'_>) -> bool {
        let restricted = self.subs.any() && self.conn.proto == Proto::Resp2;
        self.queue.is_none() && !restricted && matches!(table::lookup(req), Lookup::Known(_))
    }

    /// A whole frame of upstream's as the client is to have it. None: it is about somebody else's keys.
    pub(super) fn own_frame<'f>(&self, ctx: &Ctx, frame: &'f [u8]) -> Option<Cow<'f, [u8]>> {
        let Some(own) = &ctx.prefix else { return Some(Cow::Borrowed(frame)) };
        let push = |frame: &[u8]| own_push(own, frame);
        let front = self.expect.front().map(|e| &e.what);
        let queued = self.walk.as_ref().and_then(|walk| walk.queue.front());
        let confirms = queued.is_some_and(|q| matches!(q.role, crate::session::transaction::Role::Subscription { .. }));
        let listening = self.subs.any() || matches!(front, Some(What::Subscription { .. })) || confirms;
        let listening = listening && self.conn.proto == Proto::Resp2;
        if (frame[0] == b'>' || listening) && pubsub(frame).is_some() {
            return push(frame).map(Cow::Owned);
        }
        let strip = match (queued, front) {
            (Some(queued), _) => queued.strip,
            (None, Some(What::Exec(queue))) => {
                return Some(Cow::Owned(strip::exec(own, strips(queue), frame, &push)));
            }
            // Where its MULTI was refused it has been executed at once.
            (None, Some(What::Queued(queued))) => queued.strip,
            (None, _) => self.expect.front().map_or(Strip::None, |e| e.strip),
        };
        // A client of RESP3 that tracks or listens may find pushes in the midst of a reply.
        let pushes = (self.tracking || self.subs.any()) && matches!(frame[0], b'*' | b'%' | b'~');
        let plain = strip == Strip::None && !reply::is_error(frame) && !pushes;
        Some(if plain { Cow::Borrowed(frame) } else { Cow::Owned(strip::whole(own, strip, frame, &push)) })
    }

    /// What takes the prefix off a frame that is about to be streamed.
    pub(super) fn own_stream(&self, ctx: &Ctx) -> Option<Stripper> {
        ctx.prefix.as_ref()?;
        if self.conn.link.rbuf.first() == Some(&b'>') {
            return Some(Stripper::invalidation());
        }
        if let Some(queued) = self.walk.as_ref().and_then(|walk| walk.queue.front()) {
            return Some(Stripper::new(queued.strip));
        }
        let expect = self.expect.front()?;
        Some(match &expect.what {
            What::Exec(queue) => Stripper::exec(strips(queue)),
            What::Queued(queued) => Stripper::new(queued.strip),
            _ => Stripper::new(expect.strip),
        })
    }
}

fn strips(queue: &[Queued]) -> Vec<Strip> {
    queue.iter().map(|queued| queued.strip).collect()
}

/// The next bytes of a frame that is streamed.
pub(in crate::session) fn own_piece(ctx: &Ctx, stripper: Option<&mut Stripper>, bytes: BytesMut) -> BytesMut {
    let (Some(own), Some(stripper)) = (&ctx.prefix, stripper) else { return bytes };
    let mut out = BytesMut::with_capacity(bytes.len());
    stripper.feed(own, &bytes, &mut out, &|push| own_push(own, push));
    out
}
