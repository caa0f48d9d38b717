//! GET and MGET: hits from the L1, flights to join, fetches over the lane. The other reads that are kept are in `forms`.

use std::rc::Rc;
use std::sync::Arc;

use smallvec::SmallVec;

use super::Session;
use super::batch::Batch;
use super::dispatch::{Command, Step};
use super::forms::is_candidate;
use super::outbox::Asked;
use crate::cache::{self, Forms, Value};
use crate::coherence::{FetchRead, FetchRequest, MgetRequest, Miss, Part, Question, Relay};
use crate::command::keys;
use crate::observe::arms::{ArmId, Common};
use crate::observe::reasons::{Bypass, Method, Timed};
use crate::policy::Judged;
use crate::resp::build;
use crate::worker::Ctx;

/// An MGET that is not answered at once: what of it is here, what is to be fetched, and who is charged for it.
struct Split {
    parts: Vec<Part>,
    misses: Vec<Miss>,
    asked: Asked,
}

impl Session {
    /// GET: a hit, a flight to join, or a fetch.
    pub(super) fn get(
        self: &Rc<Self>,
        ctx: &Rc<Ctx>,
        b: &mut Batch,
        cmd: &Command<'_>,
        epoch: Result<u64, Bypass>,
    ) -> Option<Step> {
        let Command { req, spec, mute } = *cmd;
        let key = req.arg(1);
        if let Ok(epoch) = epoch
            && let Some(forms) = ctx.l1.get(key)
            && let Some(entry) = b.usable(&forms, epoch)
        {
            b.count_hit(ctx, entry);
            ctx.metrics.patterns.note_read(entry.pattern);
            ctx.metrics.hot.hit(0, key, entry.value.wire_len(), entry.pattern);
            self.answer_hit(mute, &entry.value);
            if entry.is_due(b.now) {
                b.lane.after_hit(ctx, b.now, key, entry, || Question::Get(Method::Get));
            }
            return None;
        }
        let lane = match self.carrier(ctx, b, cmd) {
            Ok(lane) => lane,
            Err(stop) => return stop,
        };
        let may_join = epoch.is_ok() || matches!(epoch, Err(Bypass::Fence | Bypass::Lease | Bypass::NotLive));
        let place = match self.refill(ctx, b, &lane, cmd, may_join.then_some((key, None))) {
            Ok(place) => place,
            Err(stop) => return stop,
        };
        let judged = self.note_lookup(ctx, b, key, Method::Get, epoch);
        let watched = ctx.watch_one(b.lane.id, req, Method::Get, &judged);
        let Judged { pattern, arm, keep } = judged;
        let slot = self.slot(mute, self.on_spare.get(), asked(b, epoch).of(arm).paid_by(spec.name, pattern));
        let get = FetchRequest { raw: req.raw, read: FetchRead::GET, keep: keep.ok(), may_join, place, watched };
        b.lane.note_read(b.now);
        lane.fetch(ctx, b.now, self, slot, key, get);
        if ctx.cache_serves() {
            self.note_named(ctx.l1.stripe(key));
        }
        None
    }

    pub(super) fn answer_hit(&self, mute: bool, value: &Value) {
        match value {
            Value::Bulk(bytes) => self.answer(mute, |out| out.extend_from_slice(bytes)),
            Value::Nil => {
                let proto = self.proto();
                self.answer(mute, |out| build::null(out, proto));
            }
        }
    }

    /// What the rules say of a key that was not served from the L1, counted: a candidate where only they keep it from being
    /// cached; a miss where the L1 was asked and could have had it, else a bypass.
    pub(super) fn note_lookup(
        &self,
        ctx: &Ctx,
        b: &Batch,
        key: &[u8],
        method: Method,
        epoch: Result<u64, Bypass>,
    ) -> Judged {
        let Judged { pattern, arm, keep } = ctx.judge(key, method);
        // MGET is one request, whatever it names: its caller counts it.
        if method != Method::Mget && is_candidate(epoch, &keep) {
            ctx.metrics.patterns.candidate(pattern, method);
        }
        match epoch.err().or(keep.as_ref().err().copied()) {
            Some(why) => ctx.metrics.bypass.inc(why),
            None => {
                ctx.metrics.patterns.miss(pattern);
                ctx.metrics.hot.miss(key, pattern);
                ctx.metrics.arms.looked_up(arm, b.now, 0, 1);
            }
        }
        self.meter.spent.billionths.add(ctx.metrics.patterns.unserved(pattern));
        ctx.metrics.arms.unserved(arm);
        if b.lane.caches() {
            ctx.metrics.patterns.note_read(pattern);
        }
        // What is off is no experiment; a lane that cannot serve for a moment is part of what one is about.
        let arm = if ctx.cache_serves() { arm } else { ArmId::NONE };
        Judged { pattern, arm, keep }
    }

    /// MGET: all hits answer at once; else the misses are fetched with one MGET and the hits checked at its reply.
    pub(super) fn mget(
        self: &Rc<Self>,
        ctx: &Rc<Ctx>,
        b: &mut Batch,
        cmd: &Command<'_>,
        epoch: Result<u64, Bypass>,
    ) -> Option<Step> {
        let Command { req, spec, mute } = *cmd;
        if let Some(view) = &b.stale
            && self.may_be_told_old(ctx, spec, req)
            && self.mget_stale(ctx, view, cmd)
        {
            b.stale_hits += req.argc() as u64 - 1;
            return None;
        }
        let found: Vec<Option<Arc<Forms>>> = match epoch {
            Ok(_) => req.args[1..].iter().map(|a| ctx.l1.get(&req.raw[a.range()])).collect(),
            Err(_) => vec![None; req.argc() - 1],
        };
        let entry = |i: usize| {
            let forms: &Arc<Forms> = found[i].as_ref()?;
            b.usable(forms, epoch.ok()?)
        };
        // One request, whatever it names: its first key's family stands for it.
        let family = || entry(0).map_or_else(|| ctx.judge(req.arg(1), Method::Mget).pattern, |e| e.pattern);
        if (0..found.len()).all(|i| entry(i).is_some()) {
            let entries: SmallVec<[&cache::Entry; 16]> = found
                .iter()
                .flatten()
                .filter_map(|forms| cache::usable(forms, epoch.ok()?, b.flush_gen, b.now))
                .collect();
            self.answer_mget(mute, &entries);
            (0..found.len()).for_each(|i| b.after_mget_hit(ctx, req.arg(i + 1), entry(i)));
            b.count_mget(ctx, &entries);
            return None;
        }
        let lane = match self.carrier(ctx, b, cmd) {
            Ok(lane) => lane,
            Err(stop) => return stop,
        };
        let place = match self.refill(ctx, b, &lane, cmd, None) {
            Ok(place) => place,
            Err(stop) => return stop,
        };
        let family = family();
        let asked = asked(b, epoch).about(spec.name, family);
        if lane.is_spare() {
            if is_candidate(epoch, &ctx.judge(req.arg(1), Method::Mget).keep) {
                ctx.metrics.patterns.candidate(family, Method::Mget);
            }
            let slot = self.slot(mute, true, asked);
            lane.relay(ctx, b.now, req.raw, Relay::plain(self.clone(), slot, keys::form(spec, req), spec.resend));
            return None;
        }
        let entries: SmallVec<[Option<&cache::Entry>; 16]> = (0..found.len()).map(entry).collect();
        let Split { parts, misses, asked } = self.split(ctx, b, cmd, &entries, epoch, asked);
        let slot = self.outbox.borrow_mut().reserve(self.proto(), mute, false, asked);
        b.lane.note_read(b.now);
        let request = MgetRequest { slot, raw: req.raw.into(), parts, misses, epoch: b.lane.epoch(), place };
        lane.mget(ctx, b.now, self, request);
        None
    }

    /// Key by key, each counted.
    fn split(
        &self,
        ctx: &Ctx,
        b: &mut Batch,
        cmd: &Command<'_>,
        entries: &[Option<&cache::Entry>],
        epoch: Result<u64, Bypass>,
        asked: Asked,
    ) -> Split {
        let mut parts = Vec::with_capacity(entries.len());
        let mut misses = Vec::new();
        let mut common = Common::NoKey;
        // The first key that is missing pays for the request; the first that nobody has asked to be cached makes it a candidate.
        let (mut payer, mut candidate) = (None, None);
        for (i, entry) in entries.iter().enumerate() {
            let key = cmd.req.arg(i + 1);
            let stripe = ctx.l1.stripe(key);
            self.note_named(stripe);
            // Not split where more of the session follows: a split may have to be read again, which must not overtake it.
            if let Some(e) = entry.filter(|_| !b.more) {
                self.halted.set(true);
                ctx.metrics.patterns.hit(e.pattern);
                ctx.metrics.arms.served(e.arm, b.now, 0, 0, 1, e.value.frame().len() as u64);
                ctx.metrics.patterns.rider(e.pattern);
                b.saves(ctx, e);
                common = common.and(e.arm);
                let generation = ctx.l1.generation(stripe);
                parts.push(Part::Hit { stripe, generation, deadline: e.deadline, value: e.value.clone() });
                b.after_mget_hit(ctx, key, Some(e));
            } else {
                let Judged { arm, pattern, keep } = self.note_lookup(ctx, b, key, Method::Mget, epoch);
                payer = payer.or(Some(pattern));
                candidate = candidate.or(is_candidate(epoch, &keep).then_some(pattern));
                common = common.and(arm);
                let keep = keep.ok().filter(|_| b.lane.caches());
                let right = keep.and_then(|keep| Some((keep, ctx.l1.token(key, b.lane.epoch())?)));
                if right.is_none() {
                    b.lane.supersede(ctx, key);
                }
                let seen = ctx.seen(b.lane.id, key, Method::Mget, None);
                misses.push(Miss { key: key.into(), right, seen, value: None });
                parts.push(Part::Miss);
            }
        }
        if let Some(pattern) = candidate {
            ctx.metrics.patterns.candidate(pattern, Method::Mget);
        }
        Split { parts, misses, asked: Asked { payer, ..asked.of(common.arm()) } }
    }

    pub(super) fn answer_mget(&self, mute: bool, entries: &[&cache::Entry]) {
        let proto = self.proto();
        self.answer(mute, |out| {
            build::array(out, entries.len());
            for entry in entries {
                match &entry.value {
                    Value::Bulk(bytes) => out.extend_from_slice(bytes),
                    Value::Nil => build::null(out, proto),
                }
            }
        });
    }
}

pub(super) fn asked(b: &Batch, epoch: Result<u64, Bypass>) -> Asked {
    Asked::read(b.now, if epoch.is_ok() { Timed::ReadMiss } else { Timed::ReadBypass })
}
