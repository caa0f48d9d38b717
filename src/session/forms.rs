//! Reads other than GET and MGET that are kept: from the L1 under their words, or fetched like a GET. What may be kept at
//! all says the table (`command::cacheable`), what is kept the configuration.

use std::rc::Rc;

use super::Session;
use super::batch::Batch;
use super::dispatch::{Command, Step};
use super::reads::asked;
use crate::cache::FormId;
use crate::coherence::{FetchRead, FetchRequest, Question};
use crate::command::cacheable::{Caching, Kept};
use crate::command::table::{self, Lookup};
use crate::command::{Kind, Request, Spec, keys};
use crate::observe::reasons::{Bypass, Method};
use crate::policy::{Judged, explain};
use crate::resp::Proto;
use crate::resp::downgrade;
use crate::router::Stranger;
use crate::worker::Ctx;

/// How this process keeps the replies to a request, if it does.
pub(super) fn kept(ctx: &Ctx, req: &Request<'_>, spec: &Spec) -> Option<Kept> {
    explain::kept(spec, req).filter(|kept| ctx.kept().has(kept.method))
}

fn read_of(kept: Kept, req: &Request<'_>, spec: &Spec) -> FetchRead {
    FetchRead {
        id: Some(FormId::of(kept.method, req)),
        shape: kept.shape(req),
        form: keys::form(spec, req),
        resend: spec.resend,
    }
}

/// Whether a read that is not served could be, if the configuration asked for it.
pub(super) fn is_candidate<T>(served: Result<u64, Bypass>, kept: &Result<T, Bypass>) -> bool {
    match (served, kept) {
        (Err(why), _) if why.by_choice() || why.for_good() => why.by_choice(),
        (_, Err(why)) => why.by_choice(),
        _ => false,
    }
}

impl Session {
    /// The row of a request's name, also of one that upstream has explained. Inlined, because a call and its answer in
    /// memory cost every hit 26 instructions.
    #[inline(always)]
    pub(super) fn spec(&self, ctx: &Ctx, req: &Request<'_>) -> Result<&'static Spec, Stranger> {
        match table::lookup(req) {
            Lookup::Known(spec) => Ok(spec),
            other => self.explained(ctx, req, other),
        }
    }

    #[cold]
    fn explained(&self, ctx: &Ctx, req: &Request<'_>, found: Lookup) -> Result<&'static Spec, Stranger> {
        match found {
            Lookup::Known(spec) => Ok(spec),
            Lookup::UnknownSub => Err(Stranger::Unknown),
            Lookup::Unknown => match ctx.learned(req.arg(0)) {
                Err(Stranger::Module { reads_one: true }) if self.reads_json(ctx, req) => Ok(&table::JSON_GET),
                other => other,
            },
        }
    }

    /// JSON.GET, where it is configured. Of RESP3 clients only: without a path its reply is another one in RESP2, and what a
    /// module answers is not converted (decision 1).
    fn reads_json(&self, ctx: &Ctx, req: &Request<'_>) -> bool {
        req.is(0, table::JSON_GET.name)
            && ctx.kept().has(Method::JsonGet)
            && ctx.cache_serves()
            && self.proto() == Proto::Resp3
    }

    /// A read that is kept: a hit, a flight to join, or a fetch.
    pub(super) fn read(
        self: &Rc<Self>,
        ctx: &Rc<Ctx>,
        b: &mut Batch,
        cmd: &Command<'_>,
        epoch: Result<u64, Bypass>,
    ) -> Option<Step> {
        let Command { req, spec, mute } = *cmd;
        let Some(kept) = kept(ctx, req, spec) else { return self.forward(ctx, b, cmd, None) };
        let (key, method) = (req.arg(1), kept.method);
        if let Ok(epoch) = epoch
            && let Some(forms) = ctx.l1.get(key)
            && let Some(entry) = forms.usable(method, req, b.at(epoch)).filter(|e| b.is_recent(e))
        {
            b.count_hit(ctx, entry);
            ctx.metrics.patterns.note_read(entry.pattern);
            ctx.metrics.hot.hit(0, key, entry.value.wire_len(), entry.pattern);
            self.answer_kept(mute, entry.value.frame(), keys::form(spec, req));
            if entry.is_due(b.now) {
                let question = || Question::Form { method, raw: req.raw, read: read_of(kept, req, spec) };
                b.lane().after_hit(ctx, b.now, key, entry, question);
            }
            return None;
        }
        let lane = match self.carrier(ctx, b, cmd) {
            Ok(lane) => lane,
            Err(stop) => return stop,
        };
        if matches!(epoch, Err(Bypass::CacheOff | Bypass::TrackingRefused | Bypass::FieldExpiry)) {
            self.note_lookup(ctx, b, key, method, epoch);
            return self.forward(ctx, b, cmd, None);
        }
        let may_join = epoch.is_ok() || matches!(epoch, Err(Bypass::Fence | Bypass::Lease | Bypass::NotLive));
        let read = read_of(kept, req, spec);
        let place = match self.refill(ctx, b, &lane, cmd, may_join.then(|| (key, read.id.clone()))) {
            Ok(place) => place,
            Err(stop) => return stop,
        };
        let judged = self.note_lookup(ctx, b, key, method, epoch);
        let watched = ctx.watch_one(b.lane().id, req, method, &judged);
        let Judged { pattern, arm, keep } = judged;
        let slot = self.slot(mute, self.on_spare.get(), asked(b, epoch).of(arm).paid_by(spec.name, pattern));
        b.lane().note_read(b.now);
        let fetch = FetchRequest { raw: req.raw, read, keep: keep.ok(), may_join, place, watched };
        lane.fetch(ctx, b.now, self, slot, key, fetch);
        self.note_named(ctx.l1.stripe(key));
        None
    }

    /// A command that goes by the cache. If it could be answered from there, that is counted.
    pub(super) fn note_passed(&self, ctx: &Ctx, spec: &Spec, req: &Request<'_>) {
        let kept = explain::kept(spec, req).filter(|_| keys::arity_ok(spec, req.argc()));
        if let Some(kept) = kept {
            let family = ctx.family_after(req.arg(1), self.family.get());
            self.family.set(family);
            ctx.metrics.patterns.candidate(family, kept.method);
        }
    }

    /// One reply in the lane's form is kept for both protocols: the conversion is exact, and a copy in RESP2 would cost
    /// memory for as long as the entry lives to save one pass over bytes that are copied anyway.
    pub(super) fn answer_kept(&self, mute: bool, frame: &[u8], form: downgrade::Form) {
        let proto = self.proto();
        self.answer(mute, |out| match proto {
            Proto::Resp3 => out.extend_from_slice(frame),
            Proto::Resp2 => downgrade::to_resp2(frame, form, out),
        });
    }

    /// Whether the L1 has an answer to this very request, usable or not. Only of the asker's own lane: that another user has a
    /// key cached is not for everybody to know.
    pub(super) fn holds(&self, ctx: &Ctx, lane: u32, req: &Request<'_>, spec: &Spec) -> bool {
        let Some(forms) = (req.argc() > 1).then(|| ctx.l1.get(req.arg(1))).flatten() else { return false };
        match spec.caching {
            _ if matches!(spec.kind, Kind::Get | Kind::Mget) => forms.entries.iter().any(|e| e.lane == lane),
            Caching::Kept(kept) => {
                let id = FormId::of(kept.method, req);
                forms.others.iter().any(|form| form.entry.lane == lane && form.id == id)
            }
            Caching::Never(_) => false,
        }
    }
}
