//! What a client gets while upstream is gone (DESIGN 5): reads of cached commands from before the outage, where
//! `outage.reads` allows it and `coherence::stale` says that the entry is true enough; PING; an error for everything else.
//! Nothing here waits, and nothing is sent. A hit in normal running never comes here: its lane vouches for it.

use std::rc::Rc;
use std::sync::Arc;

use bytes::BytesMut;
use smallvec::SmallVec;

use super::batch::{Batch, LaneAt};
use super::dispatch::{Command, Step, Work};
use super::outage_writes::Beside;
use super::{Client, Session};
use crate::cache::{Entry, FormId, Forms};
use crate::coherence::{Lane, Place, StaleView};
use crate::command::cacheable::Caching;
use crate::command::table::{self, Lookup};
use crate::command::{Effect, Kind, Request, Spec, keys};
use crate::config::{OutageError, OutageReads};
use crate::observe::clock;
use crate::observe::reasons::{Bypass, Class, Dropped, ErrorType, Timed};
use crate::observe::runs::End;
use crate::resp::build;
use crate::resp::downgrade::Form;
use crate::resp::request::{Scan, Scanner};
use crate::worker::Ctx;

/// There is an outage, and its text has just been asked for; should it be over this moment, this is what is left to say.
const UNAVAILABLE: &str = "NEARSIDE upstream unavailable";

const TIMED_OUT: &str = "NEARSIDE no answer from upstream within upstream.request_timeout";

impl Session {
    /// A command that would go to the lane, which is gone.
    pub(super) fn in_outage(self: &Rc<Self>, ctx: &Rc<Ctx>, b: &Batch, cmd: &Command<'_>) -> Option<Step> {
        let Command { req, spec, mute } = *cmd;
        if spec.name == "ping" && req.argc() <= 2 && ctx.config.outage.reads != OutageReads::Fail {
            self.answer(mute, |out| match req.argc() {
                1 => build::simple(out, "PONG"),
                _ => build::bulk(out, req.arg(1)),
            });
            return None;
        }
        let at = b.lane_at();
        if spec.kind == Kind::Info && req.argc() == 1 {
            // Libraries ask on a new connection whether the server is loading, and go on where INFO does not say so.
            self.own_info(ctx, b.now, mute);
            return None;
        }
        if spec.effect == Effect::Write {
            return self.write_in_outage(ctx, at, cmd);
        }
        if let Some(reply) = self.reads_held(ctx, at, cmd, Beside::Nothing) {
            self.answer_safely(ctx, b.now, reply, mute);
            return None;
        }
        let may_be_old = self.may_be_told_old(ctx, spec, req);
        let stale = match may_be_old {
            true => self.with_stale(ctx, at, cmd, |frame, form| self.answer_kept(mute, frame, form)),
            false => None,
        };
        let mixed = || self.reads_held(ctx, at, cmd, Beside::Cache).filter(|_| may_be_old);
        match stale.map(|()| BytesMut::new()).or_else(mixed) {
            Some(reply) => {
                if !reply.is_empty() {
                    self.answer_safely(ctx, b.now, reply, mute);
                }
                None
            }
            None => self.refuse_gone(ctx, at, class(spec), mute),
        }
    }

    /// What libraries say on a new connection, and go on without where a server does not know it, as none before 8.2 does.
    /// With `outage.error: close` they could not connect, or not stay, to be answered from here.
    pub(super) fn greets_in_outage(&self, ctx: &Ctx, cmd: &Command<'_>) -> bool {
        let greets = cmd.spec.name == "client|maint_notifications" && ctx.is_gone();
        if greets {
            self.answer_error(cmd.mute, "ERR unknown subcommand 'MAINT_NOTIFICATIONS'. Try CLIENT HELP.");
        }
        greets
    }

    /// What a GET of this read is held against that asks nothing of upstream: what `in_outage` would come to, decided once for
    /// all of them. `None`: each is looked at by itself.
    #[cold]
    pub(super) fn stale_straight(&self, ctx: &Ctx, at: LaneAt<'_>) -> Option<StaleView> {
        let LaneAt { lane, now } = at;
        let waits_for_nothing = lane.is_gone() && lane.replaying().is_none() && ctx.large.borrow().is_empty();
        let free = waits_for_nothing && ctx.serves_stale() && self.gets_freely(ctx);
        free.then(|| lane.stale_view(ctx, self, now))
    }

    /// A GET out of the L1 although upstream is gone. False: it is not answered like this.
    pub(super) fn get_stale(&self, ctx: &Ctx, view: &StaleView, key: &[u8]) -> bool {
        // A write of the same read may have been queued: then what is queued is asked first.
        if ctx.may_be_behind() {
            return false;
        }
        let Some(forms) = ctx.l1.get(key) else { return false };
        let Some(entry) = forms.entries.iter().find(|entry| view.allows(ctx, key, entry)) else { return false };
        self.answer_hit(false, &entry.value);
        true
    }

    /// The same of an MGET: all of it, or nothing.
    pub(super) fn mget_stale(&self, ctx: &Ctx, view: &StaleView, cmd: &Command<'_>) -> bool {
        let Command { req, mute, .. } = *cmd;
        if ctx.may_be_behind() {
            return false;
        }
        all_stale(ctx, view, req, |entries| self.answer_mget(mute, entries)).is_some()
    }

    /// Keys were answered from before the outage.
    pub(super) fn count_stale(&self, ctx: &Ctx, keys: u64) {
        self.told.set(true);
        ctx.metrics.stale_served.add(keys);
        ctx.metrics.bypass.add(Bypass::Outage, keys);
    }

    /// R22, as for any hit: nothing outstanding may change the key, or be told later than this and be older.
    pub(super) fn may_be_told_old(&self, ctx: &Ctx, spec: &Spec, req: &Request<'_>) -> bool {
        self.blockers.get() == 0 && !(self.named.get() != 0 && self.names_any(ctx, spec, req))
    }

    /// An answer from before the outage, as the lane read it, handed to `f`. An MGET is answered if all of it can be.
    fn with_stale<T>(
        &self,
        ctx: &Ctx,
        at: LaneAt<'_>,
        cmd: &Command<'_>,
        f: impl FnOnce(&[u8], Form) -> T,
    ) -> Option<T> {
        let (LaneAt { lane, now }, Command { req, spec, .. }) = (at, *cmd);
        if !ctx.serves_stale() || !keys::arity_ok(spec, req.argc()) {
            return None;
        }
        let view = lane.stale_view(ctx, self, now);
        let servable = |key: &[u8], entry: &Entry| view.allows(ctx, key, entry);
        let form = keys::form(spec, req);
        let (told, count) = match (spec.kind, spec.caching) {
            (Kind::Get, _) => {
                let forms = ctx.l1.get(req.arg(1))?;
                let entry = forms.entries.iter().find(|entry| servable(req.arg(1), entry))?;
                (f(entry.value.frame(), form), 1)
            }
            (Kind::Mget, _) => {
                let told = all_stale(ctx, &view, req, |entries| {
                    let mut frame = BytesMut::new();
                    build::array(&mut frame, entries.len());
                    entries.iter().for_each(|entry| frame.extend_from_slice(entry.value.frame()));
                    f(&frame, form)
                })?;
                (told, req.argc() as u64 - 1)
            }
            (_, Caching::Kept(kept)) => {
                let forms = ctx.l1.get(req.arg(1))?;
                let id = FormId::of(kept.method, req);
                let entry = forms.others.iter().find(|e| e.id == id && servable(req.arg(1), &e.entry))?;
                (f(entry.entry.value.frame(), form), 1)
            }
            (_, Caching::Never(_)) => return None,
        };
        self.count_stale(ctx, count);
        Some(told)
    }

    /// Upstream is gone, and this is not answered from before.
    pub(super) fn refuse_gone(&self, ctx: &Ctx, at: LaneAt<'_>, class: Class, mute: bool) -> Option<Step> {
        self.refuse_with(ctx, class, mute, &outage_text(ctx, at))
    }

    pub(super) fn refuse_with(&self, ctx: &Ctx, class: Class, mute: bool, text: &str) -> Option<Step> {
        ctx.metrics.outage_failed.inc(class);
        ctx.metrics.errors.inc(ErrorType::Upstream);
        ctx.metrics.failed.inc();
        if self.closes_in_outage(ctx) {
            return Some(Step::Close);
        }
        self.answer_error(mute, text);
        ctx.metrics.request(refused_as(class), 0);
        None
    }

    /// `outage.error: close`.
    pub(super) fn closes_in_outage(&self, ctx: &Ctx) -> bool {
        let closes = ctx.config.outage.error == OutageError::Close;
        if closes {
            ctx.metrics.clients_dropped.inc(Dropped::Outage);
            self.ends(End::Here(Dropped::Outage));
            tracing::debug!(client = %self.addr, id = self.id, "client closed: upstream is gone, and outage.error is close");
        }
        closes
    }

    /// A read that was on its way, or waited to be, when upstream went.
    pub(crate) fn settle_without_upstream(self: &Rc<Self>, ctx: &Rc<Ctx>, lane: &Lane, slot: u64, raw: &[u8]) {
        let mut scanner = Scanner::new(raw.len(), raw.len().max(1));
        if let Scan::Request { .. } = scanner.scan(raw) {
            let req = Request { raw, args: scanner.args() };
            if let Lookup::Known(spec) = table::lookup(&req) {
                let at = LaneAt { lane, now: clock::now() };
                let cmd = Command { req: &req, spec, mute: false };
                let told = self.with_stale(ctx, at, &cmd, |frame, form| {
                    self.asks_nothing(slot);
                    self.complete(ctx, slot, frame, form);
                });
                if told.is_some() {
                    return;
                }
                if let Some(reply) = self.reads_held(ctx, at, &cmd, Beside::Cache) {
                    return self.complete_safely(ctx, slot, reply);
                }
            }
        }
        self.refuse_slot(ctx, lane, slot, false);
    }

    /// A command that was on its way, and was never sent or may be sent again.
    pub(crate) fn refuse_slot(self: &Rc<Self>, ctx: &Ctx, lane: &Lane, slot: u64, write: bool) {
        ctx.metrics.outage_failed.inc(if write { Class::Write } else { Class::Read });
        ctx.metrics.errors.inc(ErrorType::Upstream);
        if ctx.config.outage.error == OutageError::Close {
            return self.drop_for(ctx, Dropped::Outage, "upstream is gone, and outage.error is close");
        }
        self.complete_error(ctx, slot, &outage_text(ctx, LaneAt { lane, now: clock::now() }));
    }

    // ---- after it ----

    /// Its lane is back, and does what was queued. `None`: the command may go there.
    pub(super) fn while_replaying(
        self: &Rc<Self>,
        ctx: &Rc<Ctx>,
        b: &Batch,
        cmd: &Command<'_>,
        last: bool,
    ) -> Option<Option<Step>> {
        let Command { req, spec, .. } = *cmd;
        // Which keys it reads has to be known.
        let reads = spec.effect == Effect::Read && spec.keys != crate::command::Keys::None;
        if reads && !self.names_held(ctx, b.lane(), req, spec) {
            return None;
        }
        match last {
            true => Some(Some(Step::Suspend(Work::AwaitLane(cmd.owned())))),
            false => Some(self.in_outage(ctx, b, cmd)),
        }
    }

    /// The right to one fetch while the lane recovers (`cache.refills_max`): none is needed by who joins another fetch, or
    /// by what is not kept. `Err`: wait for one.
    pub(super) fn refill(
        &self,
        ctx: &Ctx,
        b: &Batch,
        lane: &Lane,
        cmd: &Command<'_>,
        joins: Option<(&[u8], Option<FormId>)>,
    ) -> Result<Option<Place>, Option<Step>> {
        if !lane.is_recovering(b.now) || lane.is_spare() || !lane.caches() {
            return Ok(None);
        }
        if let Some((key, id)) = joins
            && lane.would_join(ctx, b.now, self, key, id)
        {
            return Ok(None);
        }
        match self.place.take().or_else(|| lane.try_place()) {
            Some(place) => Ok(Some(place)),
            None => Err(Some(Step::Suspend(Work::Refill(cmd.owned())))),
        }
    }
}

/// All keys of an MGET by their entries from before the outage, handed to `f`; none where one of them may not be served.
fn all_stale<T>(ctx: &Ctx, view: &StaleView, req: &Request<'_>, f: impl FnOnce(&[&Entry]) -> T) -> Option<T> {
    let found: SmallVec<[Arc<Forms>; 16]> = (1..req.argc()).map_while(|i| ctx.l1.get(req.arg(i))).collect();
    let allowed = |i: usize, entry: &&Entry| view.allows(ctx, req.arg(i + 1), entry);
    let entries: SmallVec<[&Entry; 16]> =
        found.iter().enumerate().map_while(|(i, forms)| forms.entries.iter().find(|e| allowed(i, e))).collect();
    (entries.len() == req.argc() - 1).then(|| f(&entries))
}

impl Client {
    /// Waits until the lane has a place for one more fetch, or is not what it was. False: `upstream.request_timeout` came
    /// first, and the client has been told.
    pub(super) async fn await_place(&self, ctx: &Rc<Ctx>) -> bool {
        let session = &self.session;
        let lane = session.lane(ctx);
        let waiting = &ctx.metrics.refills_waiting;
        waiting.set(waiting.get() + 1);
        let place = match ctx.config.upstream.request_timeout {
            Some(limit) => tokio::time::timeout(limit, lane.place()).await,
            None => Ok(lane.place().await),
        };
        waiting.set(waiting.get() - 1);
        match place {
            Ok(place) => {
                *session.place.borrow_mut() = place;
                true
            }
            Err(_) => {
                ctx.metrics.errors.inc(ErrorType::Timeout);
                session.answer_error(session.state.borrow_mut().mute(), TIMED_OUT);
                session.flush(ctx);
                false
            }
        }
    }
}

pub(super) fn outage_text(ctx: &Ctx, at: LaneAt<'_>) -> String {
    at.lane.outage_text(at.now).or_else(|| ctx.outage_text()).unwrap_or_else(|| UNAVAILABLE.to_owned())
}

fn class(spec: &Spec) -> Class {
    match spec.effect {
        Effect::Read => Class::Read,
        _ => Class::Write,
    }
}

/// What a command counts as that was refused at once.
fn refused_as(class: Class) -> Timed {
    match class {
        Class::Read => Timed::ReadError,
        Class::Write => Timed::WriteError,
        Class::Local | Class::Other => Timed::OtherError,
    }
}
