//! To the lane: which connection takes a command, what keeps it from there, and how it is sent. What the L1 must do about a
//! write is in `writes`. Nothing here waits for a reply.

use std::rc::Rc;

use super::Session;
use super::batch::Batch;
use super::dispatch::{Command, Step, Work};
use super::outbox::{Asked, KeyCopy};
use crate::cache::StripeId;
use crate::coherence::{self, Applied, Availability, Lane, Relay};
use crate::command::{Effect, Keys, Kind, Request, Spec, Why, keys, prefix};
use crate::observe::reasons::{Class, Source, Timed};
use crate::resp::Proto;
use crate::worker::Ctx;

impl Session {
    /// The connection that takes this command: the lane, or its spare while it is held up (decision 9). R18: what is
    /// outstanding is on one of the two.
    pub(super) fn carrier(
        self: &Rc<Self>,
        ctx: &Rc<Ctx>,
        b: &Batch,
        cmd: &Command<'_>,
    ) -> Result<Rc<Lane>, Option<Step>> {
        if let Some(stop) = self.lane_stop(ctx, b, cmd) {
            return Err(stop);
        }
        let outstanding = self.outbox.borrow().outstanding() > 0;
        match b.lane.spare_for(cmd.spec) {
            Some(spare) if self.on_spare.get() || !outstanding => {
                self.on_spare.set(true);
                Ok(spare)
            }
            None if self.on_spare.get() && outstanding => Err(Some(Step::Suspend(Work::Settle(cmd.owned())))),
            _ => {
                self.on_spare.set(false);
                Ok(b.lane.clone())
            }
        }
    }

    /// What keeps a command from the lane now, if anything does.
    pub(super) fn lane_stop(self: &Rc<Self>, ctx: &Rc<Ctx>, b: &Batch, cmd: &Command<'_>) -> Option<Option<Step>> {
        let replaying = b.lane.replaying();
        if let Some(last) = replaying
            && let Some(stop) = self.while_replaying(ctx, b, cmd, last)
        {
            return Some(stop);
        }
        if ctx.may_be_behind()
            && b.lane.is_ready()
            && let Some(stop) = self.behind(ctx, b, cmd)
        {
            return Some(stop);
        }
        if b.lane.is_ready() || replaying.is_some() {
            // Upstream has stopped speaking RESP3 while this client does: it is upstream that tells it so.
            let foreign = self.proto() == Proto::Resp3 && b.lane.speaks_resp2();
            return foreign.then(|| Some(Step::Suspend(Work::Pinned(Why::NoLane, cmd.owned()))));
        }
        if b.lane.is_gone() {
            return Some(self.in_outage(ctx, b, cmd));
        }
        Some(match b.lane.availability() {
            Availability::Starting if !ctx.is_gone() => Some(Step::Suspend(Work::AwaitLane(cmd.owned()))),
            Availability::Refused(_) => Some(Step::Suspend(Work::Pinned(Why::NoLane, cmd.owned()))),
            _ => self.in_outage(ctx, b, cmd),
        })
    }

    /// A command that the L1 has no part in; if it could have, that is counted.
    pub(super) fn pass_by(self: &Rc<Self>, ctx: &Rc<Ctx>, b: &mut Batch, cmd: &Command<'_>) -> Option<Step> {
        let step = self.forward(ctx, b, cmd, None);
        let Command { req, spec, .. } = *cmd;
        if step.is_none() && spec.effect == Effect::Read {
            self.note_passed(ctx, spec, req);
        }
        step
    }

    /// Any other command for the lane. `effect`: what the L1 must do about it; `None`: nothing.
    pub(super) fn forward(
        self: &Rc<Self>,
        ctx: &Rc<Ctx>,
        b: &mut Batch,
        cmd: &Command<'_>,
        effect: Option<Effect>,
    ) -> Option<Step> {
        let lane = match self.carrier(ctx, b, cmd) {
            Ok(lane) => lane,
            Err(stop) => return stop,
        };
        let Command { req, spec, mute } = *cmd;
        let asked = match spec.effect {
            _ if spec.keys == Keys::None => Asked::other(b.now),
            Effect::Read => Asked::read(b.now, Timed::ReadBypass),
            _ => Asked::write(b.now),
        };
        let asked = asked.named(spec.name, first_key(ctx, spec, req));
        let blocks = matches!(effect, Some(Effect::Opaque | Effect::SwapDb | Effect::Flush)) || self.on_spare.get();
        let slot = self.slot(mute, blocks, asked);
        if ctx.prefix.is_some() {
            self.outbox.borrow_mut().strips(slot, prefix::strip(spec));
        }
        let mut relay = Relay::plain(self.clone(), slot, keys::form(spec, req), spec.resend);
        relay.write = spec.effect != Effect::Read;
        relay.unseen = relay.write && !ctx.cache_serves();
        relay.info = spec.kind == Kind::Info && super::nearside::wants_own_info(req);
        relay.watched = ctx.watch(b.lane.id, req, spec);
        ctx.watch_write(Some(spec), req);
        match effect {
            None if ctx.cache_serves() => keys::for_each(spec, req, |key| {
                self.note_named(ctx.l1.stripe(key));
                lane.overtake(ctx, key, matches!(spec.kind, Kind::Get | Kind::Mget));
            }),
            None => {}
            Some(effect) => self.begin(ctx, b, cmd, effect, &mut relay),
        }
        ctx.metrics.commands.inc(if relay.write { Class::Write } else { Class::Read });
        let flush = relay.flush;
        lane.relay(ctx, b.now, req.raw, relay);
        if flush {
            coherence::publish_flush(ctx, &b.lane, b.now);
        }
        None
    }

    pub(super) fn names_any(&self, ctx: &Ctx, spec: &Spec, req: &Request<'_>) -> bool {
        let mut any = false;
        keys::for_each(spec, req, |key| any |= self.named.get() & bit(ctx.l1.stripe(key)) != 0);
        any
    }

    pub(super) fn note_named(&self, stripe: StripeId) {
        self.named.set(self.named.get() | bit(stripe));
    }

    pub(super) fn slot(&self, mute: bool, blocks: bool, asked: Asked) -> u64 {
        if blocks {
            self.blockers.set(self.blockers.get() + 1);
        }
        self.outbox.borrow_mut().reserve(self.proto(), mute, blocks, asked)
    }

    /// A PUBLISH on the sidecars' channel: what it names is dropped here before its publisher has the reply, then it is
    /// forwarded. What is malformed is only forwarded: every sidecar, this one too, counts it when it comes back.
    pub(super) fn announce(self: &Rc<Self>, ctx: &Rc<Ctx>, b: &mut Batch, cmd: &Command<'_>) -> Option<Step> {
        if let Some(stop) = self.lane_stop(ctx, b, cmd) {
            return stop;
        }
        match coherence::parse(cmd.req.arg(2)).and_then(|m| coherence::apply(ctx, &m, Source::Publish)) {
            Ok(applied @ Applied::Sweeping(_)) => Some(Step::Suspend(Work::Announce(applied, cmd.spec, cmd.owned()))),
            _ => self.forward(ctx, b, cmd, None),
        }
    }

    /// The rest of `announce`.
    pub(super) fn announced(self: &Rc<Self>, ctx: &Rc<Ctx>, req: &Request<'_>, spec: &'static Spec) -> Option<Step> {
        let mute = self.special.get() && self.state.borrow_mut().mute();
        let mut batch = Batch::new(ctx, self);
        let step = self.forward(ctx, &mut batch, &Command { req, spec, mute }, None);
        if matches!(step, Some(Step::Suspend(_))) {
            self.unmute(mute);
        }
        step
    }
}

/// The first key, for the slow log.
fn first_key(ctx: &Ctx, spec: &Spec, req: &Request<'_>) -> Option<KeyCopy> {
    let (mut found, mut first) = (None, true);
    if spec.keys != Keys::None && ctx.metrics.slow.threshold().is_some() {
        keys::for_each(spec, req, |key| {
            if std::mem::take(&mut first) {
                found = KeyCopy::of(key);
            }
        });
    }
    found
}

pub(super) fn announces(ctx: &Ctx, spec: &Spec, req: &Request<'_>) -> bool {
    spec.kind == Kind::Publish && req.argc() == 3 && req.arg(1) == ctx.config.coherence.channel.as_bytes()
}

/// The bit of a key in a session's filter of outstanding keys.
fn bit(stripe: StripeId) -> u64 {
    1 << (stripe.number() % 64)
}
