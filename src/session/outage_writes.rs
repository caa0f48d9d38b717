//! Writes while upstream is gone (`outage.writes`), and the reads that see them. A write is acknowledged where its reply is
//! what upstream's would be: because that does not depend on what upstream holds (`outage::accept`), or because the state
//! of its keys is known here: resident in the L1 and good enough to be served, or written here before. Everything else is
//! refused, and told why.
//!
//! Nothing here waits. What is outstanding of this session was sent before upstream went: it is executed before what is
//! queued now, or not at all, and its replies come first.

use std::rc::Rc;

use bytes::BytesMut;
use smallvec::SmallVec;

use super::Session;
use super::batch::{self, LaneAt};
use super::dispatch::{Command, Step};
use super::outbox::Asked;
use crate::cache;
use crate::coherence::Lane;
use crate::command::{Effect, Kind, Request, Spec, keys};
use crate::config::{OutageReads, OutageWrites};
use crate::local::{self, Call};
use crate::observe::clock;
use crate::observe::reasons::{Bypass, Class, Dropped, NotQueued};
use crate::observe::stamp;
use crate::outage::accept::{self, Needs};
use crate::resp::{build, reply};
use crate::worker::Ctx;
use crate::worker::held::{DB, Found, How, Named, NotTaken};

pub(super) type Names<'k> = SmallVec<[Named<'k>; 2]>;

/// Which of a read's keys may come from elsewhere than the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Beside {
    Nothing,
    /// The L1; and where reads are `local`, what nobody knows is not there.
    Cache,
}

/// A write as it is done here.
pub(super) struct Write<'k> {
    pub(super) how: How,
    pub(super) command: local::Command,
    /// Its keys, and what is known of them.
    pub(super) names: Names<'k>,
}

/// What becomes of a write while upstream is gone.
pub(super) enum Plan<'k> {
    /// Such writes fail.
    Fail,
    /// They do not, but this one is not acknowledged.
    Refuse(NotQueued),
    /// It has too many words, or too few.
    Arity,
    /// It is carried out here, where there is room.
    Take(Write<'k>),
}

impl Session {
    /// A write whose lane is gone.
    pub(super) fn write_in_outage(self: &Rc<Self>, ctx: &Rc<Ctx>, at: LaneAt<'_>, cmd: &Command<'_>) -> Option<Step> {
        match self.plan_write(ctx, at, cmd) {
            Plan::Fail => self.refuse_gone(ctx, at, Class::Write, cmd.mute),
            Plan::Refuse(why) => self.refuse_write(ctx, at, why, cmd.mute),
            Plan::Arity => {
                self.answer_error(cmd.mute, &format!("ERR wrong number of arguments for '{}' command", cmd.spec.name));
                None
            }
            Plan::Take(write) => self.acknowledge(ctx, at, cmd, &write),
        }
    }

    /// What becomes of a write whose lane is gone; EXPLAIN asks it of a lane that is there, as if it were.
    pub(super) fn plan_write<'k>(&self, ctx: &Ctx, at: LaneAt<'_>, cmd: &Command<'k>) -> Plan<'k> {
        let (lane, Command { req, spec, .. }) = (at.lane, *cmd);
        let how = match self.how_to_write(ctx, lane, req, spec) {
            Ok(Some(how)) => how,
            Ok(None) => return Plan::Fail,
            Err(why) => return Plan::Refuse(why),
        };
        if !keys::arity_ok(spec, req.argc()) {
            return Plan::Arity;
        }
        let (Some(needs), Some(command)) = (accept::needs(spec.name, req), local::command(spec.name)) else {
            return Plan::Refuse(NotQueued::Command);
        };
        let names = self.names(ctx, at, cmd);
        let held = ctx.held.of(&lane.profile);
        let known = |named: &Named<'_>| {
            named.found.is_some() || held.as_ref().is_some_and(|held| held.borrow().knows(named.key))
        };
        if how == How::Queue && needs == Needs::Keys && !names.iter().all(known) {
            return Plan::Refuse(NotQueued::Unknown);
        }
        Plan::Take(Write { how, command, names })
    }

    /// What the rules of its keys say. `None`: such writes fail.
    fn how_to_write(&self, ctx: &Ctx, lane: &Lane, req: &Request<'_>, spec: &Spec) -> Result<Option<How>, NotQueued> {
        let mut asked: Option<OutageWrites> = None;
        let mut mixed = false;
        keys::for_each(spec, req, |key| {
            let writes = ctx.outage_writes(key);
            mixed |= asked.is_some_and(|first| first != writes);
            // Where one of them fails all do.
            asked = if asked == Some(OutageWrites::Fail) { asked } else { Some(writes) };
        });
        match asked.unwrap_or(ctx.config.outage.writes) {
            OutageWrites::Fail => Ok(None),
            _ if mixed => Err(NotQueued::Mixed),
            OutageWrites::Queue if !ctx.is_accepted(&lane.profile) => Err(NotQueued::Credential),
            OutageWrites::Queue => Ok(Some(How::Queue)),
            OutageWrites::Local => Ok(Some(How::Local)),
        }
    }

    /// Carries it out here, and says so.
    fn acknowledge(
        self: &Rc<Self>,
        ctx: &Rc<Ctx>,
        at: LaneAt<'_>,
        cmd: &Command<'_>,
        write: &Write<'_>,
    ) -> Option<Step> {
        let mute = cmd.mute;
        match self.accept(ctx, at, cmd, write) {
            Ok(()) => None,
            Err(NotTaken::Count) => self.refuse_write(ctx, at, NotQueued::Full, mute),
            Err(NotTaken::Bytes) => self.refuse_write(ctx, at, NotQueued::Bytes, mute),
            Err(NotTaken::Journal(why)) => self.refuse_write(ctx, at, NotQueued::of(why.word()), mute),
            Err(NotTaken::TooLong) => {
                self.drop_for(ctx, Dropped::OutputLimit, "a reply would be longer than listen.output_limit");
                None
            }
        }
    }

    /// The same; where it is not taken nothing has changed, and nobody was told.
    pub(super) fn accept(
        self: &Rc<Self>,
        ctx: &Rc<Ctx>,
        at: LaneAt<'_>,
        cmd: &Command<'_>,
        write: &Write<'_>,
    ) -> Result<(), NotTaken> {
        let (LaneAt { lane, now }, Command { req, spec, mute }) = (at, *cmd);
        let call = self.call(ctx, req, spec);
        let mut out = BytesMut::new();
        let held = ctx.held.begin(&lane.profile);
        let room = ctx.room();
        let changed =
            held.borrow_mut().write(write.how, (write.command, &call), &write.names, (room, now), &mut out)?;
        for key in &changed {
            // From here on the L1 has nothing of it: what is being read is not stored either.
            ctx.l1.invalidate(key);
            lane.cover_queued(ctx, key);
        }
        let counter = if write.how == How::Queue { &ctx.metrics.queue.queued } else { &ctx.metrics.queue.local_writes };
        counter.add(changed.len() as u64);
        ctx.metrics.commands.inc(Class::Write);
        ctx.show_held();
        self.told.set(true);
        self.answer_safely(ctx, now, out, mute);
        Ok(())
    }

    /// An answer that tells of queued data: when that is as safe as it is to be, and at once where there is no journal.
    pub(super) fn answer_safely(self: &Rc<Self>, ctx: &Ctx, now: u64, out: BytesMut, mute: bool) {
        let ledger = ctx.held.ledger();
        match ledger.as_ref().and_then(|ledger| ledger.unsafe_up_to()) {
            Some(number) => {
                let slot = self.slot(mute, false, Asked::write(now));
                if let Some(ledger) = ledger {
                    ledger.wait(number, self.clone(), slot, out);
                }
            }
            None => self.answer(mute, |to| to.extend_from_slice(&out)),
        }
    }

    /// The same for a slot.
    pub(super) fn complete_safely(self: &Rc<Self>, ctx: &Ctx, slot: u64, reply: BytesMut) {
        let ledger = ctx.held.ledger();
        match ledger.as_ref().and_then(|ledger| Some((ledger, ledger.unsafe_up_to()?))) {
            Some((ledger, number)) => ledger.wait(number, self.clone(), slot, reply),
            None => self.complete_here(ctx, slot, &reply),
        }
    }

    fn call<'r>(&self, ctx: &Ctx, req: &'r Request<'r>, spec: &'static Spec) -> Call<'r> {
        Call {
            now: stamp::unix_ms() as i64,
            db: DB,
            proto: self.proto(),
            name: spec.name,
            req,
            reply_max: ctx.config.listen.output_limit,
        }
    }

    /// A write that is not acknowledged although its keys' writes may be.
    fn refuse_write(&self, ctx: &Ctx, at: LaneAt<'_>, why: NotQueued, mute: bool) -> Option<Step> {
        ctx.metrics.queue.refused.inc(why);
        let text = format!("{}; {}", super::outage::outage_text(ctx, at), reason(why));
        self.refuse_with(ctx, Class::Write, mute, &text)
    }

    /// A read of keys that were written here; `beside`: and of others that are known. False: not all of it is.
    pub(super) fn reads_held(&self, ctx: &Ctx, at: LaneAt<'_>, cmd: &Command<'_>, beside: Beside) -> Option<BytesMut> {
        let Command { req, spec, .. } = *cmd;
        let held = ctx.held.of(&at.lane.profile);
        let local = ctx.config.outage.reads == OutageReads::Local;
        if held.is_none() && !(local && beside == Beside::Cache) {
            return None;
        }
        let command = local::command(spec.name).filter(|_| spec.effect == Effect::Read)?;
        if spec.keys == crate::command::Keys::None || !keys::arity_ok(spec, req.argc()) {
            return None;
        }
        let held = held.unwrap_or_else(|| ctx.held.nobodys());
        let mut names: Names<'_> = SmallVec::new();
        keys::for_each(spec, req, |key| names.push(Named { key, found: None }));
        let missing = |named: &Named<'_>| !held.borrow().knows(named.key);
        if names.iter().any(missing) {
            let mixes = spec.kind == Kind::Mget || local;
            if beside == Beside::Nothing || !mixes || !ctx.serves_stale() && !local {
                return None;
            }
            for named in names.iter_mut().filter(|named| missing(named)) {
                named.found = self.found(ctx, at, named.key);
                if named.found.is_none() && !local {
                    return None;
                }
            }
        }
        let mut out = BytesMut::new();
        let done = held.borrow_mut().read(command, &self.call(ctx, req, spec), &names, &mut out);
        if done.is_err() {
            out.clear();
            build::error(&mut out, "NEARSIDE the reply would be longer than listen.output_limit");
        }
        self.told.set(true);
        ctx.metrics.queue.reads.inc();
        ctx.metrics.bypass.add(Bypass::Outage, names.len() as u64);
        Some(out)
    }

    /// The keys of a command, each with what the L1 has of it where nothing was written here.
    pub(super) fn names<'k>(&self, ctx: &Ctx, at: LaneAt<'_>, cmd: &Command<'k>) -> Names<'k> {
        let held = ctx.held.of(&at.lane.profile);
        let mut names = SmallVec::new();
        keys::for_each(cmd.spec, cmd.req, |key| {
            let known = held.as_ref().is_some_and(|held| held.borrow().knows(key));
            names.push(Named { key, found: if known { None } else { self.found(ctx, at, key) } });
        });
        names
    }

    /// What the L1 has of a key, if that may be served to this session.
    fn found(&self, ctx: &Ctx, at: LaneAt<'_>, key: &[u8]) -> Option<Found> {
        let LaneAt { lane, now } = at;
        if !ctx.cache_serves() {
            return None;
        }
        let forms = ctx.l1.get(key)?;
        let entry = match lane.is_ready() || lane.replaying().is_some() {
            // It is live: what it vouches for is true now, as far as this session has not seen or done more elsewhere.
            true => {
                let epoch = lane.vouches(now, self.fence.get(), ctx.max_staleness).ok()?;
                let since = batch::since(lane, self);
                cache::usable(&forms, epoch, ctx.l1.flush_gen(), now).filter(|entry| entry.t_sent > since)?
            }
            false => {
                let view = lane.stale_view(ctx, self, now);
                forms.entries.iter().find(|entry| view.allows(ctx, key, entry))?
            }
        };
        let value = reply::bulk(entry.value.frame())?.to_vec();
        let left = |expires: u64| i64::try_from(expires.saturating_sub(clock::now()) / 1_000_000).unwrap_or(i64::MAX);
        let wall = stamp::unix_ms() as i64;
        let expire_at_ms = (entry.expires != u64::MAX).then(|| wall.saturating_add(left(entry.expires)));
        Some(Found { value, expire_at_ms })
    }

    /// NEARSIDE ENTRY of a key that was written here and not done upstream.
    pub(super) fn held_entry(&self, ctx: &Ctx, lane: &Lane, key: &[u8]) -> Option<Vec<(&'static str, String)>> {
        let held = ctx.held.of(&lane.profile).filter(|held| held.borrow().knows(key))?;
        let held = held.borrow();
        let wall = stamp::unix_ms() as i64;
        let value = held.value(wall, key);
        let left = value.and_then(|(_, at)| at).map_or(String::new(), |at| (at - wall).max(0).to_string());
        Some(vec![
            ("kind", if value.is_some() { "string" } else { "absent" }.to_owned()),
            ("value_bytes", value.map_or(0, |(value, _)| value.len()).to_string()),
            ("expires_ms", left),
            ("served", "queue".to_owned()),
            ("waits_for_upstream", if held.queue.has(key) { "yes" } else { "no" }.to_owned()),
        ])
    }

    /// Whether any key of a read has writes that wait: then it is not upstream's to answer.
    pub(super) fn names_held(&self, ctx: &Ctx, lane: &Lane, req: &Request<'_>, spec: &Spec) -> bool {
        let Some(held) = ctx.held.of(&lane.profile) else { return false };
        let mut any = false;
        keys::for_each(spec, req, |key| any |= held.borrow().knows(key));
        any
    }
}

/// What the client is told beside the outage.
fn reason(why: NotQueued) -> &'static str {
    match why {
        NotQueued::Command => "this write cannot be queued: it needs an upstream",
        NotQueued::Unknown => "this write cannot be queued: the value of its key is not known here",
        NotQueued::Mixed => "this write cannot be queued: the rules of its keys do not agree on outage_writes",
        NotQueued::Credential => "this write cannot be queued: upstream has not accepted this user yet",
        NotQueued::Full => "this write cannot be queued: the queue is full (outage.queue_max)",
        NotQueued::JournalFull => "this write cannot be queued: the journal is full (outage.journal_max_bytes)",
        NotQueued::JournalDisk => "this write cannot be queued: no room on the disk of outage.journal_dir",
        NotQueued::JournalBehind => "this write cannot be queued: the disk of outage.journal_dir is too slow",
        NotQueued::JournalFailed => {
            "this write cannot be queued: the journal has failed (see the log) until nearside is started again"
        }
        NotQueued::Bytes => "this write cannot be queued: the queue is full (outage.queue_max_bytes)",
    }
}
