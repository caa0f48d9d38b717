//! `upstream.key_prefix` at a client's edge: a request is rewritten right after it has been scanned, and everything behind
//! that knows upstream's names only; a reply that names keys loses the prefix on its way into the outbox. What upstream
//! pushes about keys is passed on under the client's names, and not at all where it is about somebody else's.

use std::rc::Rc;

use bytes::BytesMut;

use super::Session;
use super::batch::Batch;
use super::dispatch::{Owned, STRANGER, Step, Work};
use super::relay::announces;
use crate::coherence;
use crate::command::prefix::{self, Outcome, Prefix, Words};
use crate::command::strip::{self, Strip, Stripper};
use crate::command::table::{self, Lookup};
use crate::command::{Request, Spec, Why};
use crate::limits::LARGE;
use crate::policy::glob;
use crate::resp::{build, reply};
use crate::router::Stranger;
use crate::worker::Ctx;

/// What a request's name says about its keys.
pub(super) enum Named {
    Known(&'static Spec),
    /// No server takes its words for a key; upstream words the error.
    Keyless,
    /// Upstream has not been asked about it yet.
    New,
    Unknown,
}

pub(super) fn named(ctx: &Ctx, req: &Request<'_>) -> Named {
    match table::lookup(req) {
        Lookup::Known(spec) => Named::Known(spec),
        Lookup::UnknownSub if req.argc() == 1 || !prefix::may_name_keys(req.arg(0)) => Named::Keyless,
        Lookup::UnknownSub => Named::Unknown,
        Lookup::Unknown => match ctx.learned(req.arg(0)) {
            Ok(spec) => Named::Known(spec),
            Err(Stranger::New) => Named::New,
            Err(Stranger::Module { reads_one: true }) if req.is(0, table::JSON_GET.name) => {
                Named::Known(&table::JSON_GET)
            }
            Err(_) => Named::Unknown,
        },
    }
}

/// Rewrites a request of the client's into `words`.
pub(super) fn rewrite(ctx: &Ctx, own: &Prefix, spec: &Spec, req: &Request<'_>, words: &mut Words) -> Outcome {
    // An app that tells the sidecars what to drop names its keys as it knows them; on the channel all names are upstream's.
    if announces(ctx, spec, req)
        && let Ok(message) = coherence::parse(req.arg(2))
    {
        let payload = ctx.channel.payload(&ctx.name, &message.upstreams(own));
        words.set(&[req.arg(0), req.arg(1), &payload]);
        return Outcome::Changed;
    }
    own.rewrite(spec, req, words)
}

/// The refusal of a name of which nothing is known, where that is refused. None of them should have come as far.
pub(super) fn refuses_stranger(ctx: &Ctx, req: &Request<'_>) -> Option<String> {
    ctx.prefix.as_ref()?;
    matches!(named(ctx, req), Named::Unknown | Named::New).then(|| prefix::stranger_refusal(req))
}

impl Session {
    /// A request as the client sent it; `dispatch` is for what has been here.
    #[inline]
    pub(super) fn receive(self: &Rc<Self>, ctx: &Rc<Ctx>, b: &mut Batch, req: &Request<'_>) -> Option<Step> {
        match &ctx.prefix {
            None => self.dispatch(ctx, b, req),
            Some(own) => self.receive_own(ctx, own, b, req),
        }
    }

    fn receive_own(self: &Rc<Self>, ctx: &Rc<Ctx>, own: &Prefix, b: &mut Batch, req: &Request<'_>) -> Option<Step> {
        match named(ctx, req) {
            Named::Known(spec) => self.rewritten(ctx, own, b, spec, req),
            Named::Keyless => self.dispatch(ctx, b, req),
            _ if table::is_cross_protocol(req.arg(0)) => self.dispatch(ctx, b, req),
            Named::New if self.special.get() && self.refused_by_protection(&STRANGER, req) => None,
            Named::New => Some(Step::Suspend(Work::Learn(Owned::of(req)))),
            Named::Unknown => {
                self.refuse_name(&STRANGER, req, &prefix::stranger_refusal(req));
                None
            }
        }
    }

    /// The same behind `Work::Learn`: what is unknown now stays so.
    pub(super) fn receive_learned(self: &Rc<Self>, ctx: &Rc<Ctx>, b: &mut Batch, req: &Request<'_>) -> Option<Step> {
        if matches!(named(ctx, req), Named::New) {
            self.refuse_name(&STRANGER, req, &prefix::stranger_refusal(req));
            return None;
        }
        self.receive(ctx, b, req)
    }

    fn rewritten(
        self: &Rc<Self>,
        ctx: &Rc<Ctx>,
        own: &Prefix,
        b: &mut Batch,
        spec: &'static Spec,
        req: &Request<'_>,
    ) -> Option<Step> {
        let mut words = ctx.words.take();
        let step = match rewrite(ctx, own, spec, req, &mut words) {
            Outcome::Same => self.dispatch(ctx, b, req),
            Outcome::Changed => {
                let req = words.request();
                // Many short keys may have become a large request, which is nothing for a lane.
                let large = req.raw.len() > LARGE && !self.state.borrow().locked;
                if large && self.is_refused(ctx, Ok(spec), &req) {
                    None
                } else if large {
                    Some(Step::Suspend(Work::Pinned(Why::Large, Owned::of(&req))))
                } else {
                    self.dispatch(ctx, b, &req)
                }
            }
            Outcome::Own if self.special.get() && self.refused_by_protection(spec, req) => None,
            Outcome::Own if self.is_refused(ctx, Ok(spec), req) => None,
            Outcome::Own => Some(Step::Suspend(Work::Local(spec, Owned::of(req)))),
            Outcome::Refused(why) => {
                self.refuse_name(spec, req, &prefix::refusal(spec.name, why));
                None
            }
        };
        words.release();
        ctx.words.set(words);
        step
    }

    fn refuse_name(&self, spec: &Spec, req: &Request<'_>, text: &str) {
        self.last_command.set(spec.name);
        if self.special.get() && self.refused_by_protection(spec, req) {
            return;
        }
        let mute = self.special.get() && self.state.borrow_mut().mute();
        self.answer_error(mute, text);
    }

    /// Upstream's reply for `slot` as the client is to have it; none: as it came.
    #[inline]
    pub(super) fn own_reply(&self, ctx: &Ctx, slot: u64, frame: &[u8]) -> Option<Vec<u8>> {
        let own = ctx.prefix.as_ref()?;
        let strip = self.outbox.borrow().strip(slot);
        let names = strip != Strip::None || reply::is_error(frame);
        names.then(|| strip::whole(own, strip, frame, &|_| None))
    }

    /// The same for the oldest slot's reply, which is streamed.
    pub(super) fn own_stream(&self, ctx: &Ctx) -> Option<Stripper> {
        ctx.prefix.as_ref()?;
        let outbox = self.outbox.borrow();
        outbox.head().map(|head| Stripper::new(outbox.strip(head)))
    }
}

/// A frame of the pub/sub family, or an invalidation, under the client's names. None: it is about somebody else's keys.
pub(super) fn own_push(own: &Prefix, frame: &[u8]) -> Option<Vec<u8>> {
    let elements: Vec<&[u8]> = reply::elements(frame).collect();
    let text = |i: usize| elements.get(i).copied().and_then(reply::bulk);
    let mut parts: Vec<Vec<u8>> = elements.iter().map(|element| element.to_vec()).collect();
    let mut set = |i: usize, name: &[u8]| parts[i] = bulk(name);
    match (text(0)?, text(1), text(2)) {
        (b"invalidate", ..) => parts[1] = own_keys(own, elements.get(1)?)?,
        (b"subscribe" | b"unsubscribe", Some(channel), _) => {
            set(1, &own.own_channel(channel).unwrap_or_else(|| channel.to_vec()));
        }
        (b"psubscribe" | b"punsubscribe", Some(glob), _) => set(1, &own.own_channel_glob(glob)),
        // Tracking in RESP2: a message whose text is a list of keys.
        (b"message", Some(b"__redis__:invalidate"), _) => parts[2] = own_keys(own, elements.get(2)?)?,
        (b"message", Some(channel), payload) => {
            set(1, &own.own_channel(channel)?);
            if prefix::is_keyevent(channel) {
                set(2, own.own(payload?)?);
            }
        }
        (b"pmessage", Some(glob), Some(channel)) => {
            let (glob, shown) = (own.own_channel_glob(glob), own.own_channel(channel)?);
            // What it matched may have been the prefix.
            if !glob::matches(&glob, &shown) {
                return None;
            }
            if prefix::is_keyevent(channel) {
                set(3, own.own(text(3)?)?);
            }
            set(1, &glob);
            set(2, &shown);
        }
        _ => {}
    }
    let mut out = BytesMut::new();
    build::header(&mut out, *frame.first()?, parts.len());
    parts.iter().for_each(|part| out.extend_from_slice(part));
    Some(out.to_vec())
}

/// The own ones among invalidated keys; what is no list (a flush) stays. None: there are none.
fn own_keys(own: &Prefix, keys: &[u8]) -> Option<Vec<u8>> {
    if !keys.starts_with(b"*") || reply::is_null(keys) {
        return Some(keys.to_vec());
    }
    let found: Vec<&[u8]> = reply::elements(keys).filter_map(reply::bulk).filter_map(|key| own.own(key)).collect();
    let mut out = BytesMut::new();
    build::array(&mut out, found.len());
    found.iter().for_each(|key| build::bulk(&mut out, key));
    (!found.is_empty()).then(|| out.to_vec())
}

fn bulk(text: &[u8]) -> Vec<u8> {
    let mut out = BytesMut::new();
    build::bulk(&mut out, text);
    out.to_vec()
}
