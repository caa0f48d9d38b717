//! What holds for all requests of one read, found once: the time, the lane and whether it vouches, and what is counted once
//! at the end. Reads nothing and answers nothing.

use std::rc::Rc;

use super::Session;
use crate::cache::{self, Forms};
use crate::coherence::{Lane, Question, StaleView};
use crate::observe::arms::{Common, Hits};
use crate::observe::clock;
use crate::observe::reasons::{Action, Bypass, Coherence, Method, Operation, Timed};
use crate::resp::Proto;
use crate::worker::Ctx;

/// What holds for all requests of one read: they were received at `now`.
pub(super) struct Batch {
    pub(super) now: u64,
    pub(super) lane: Rc<Lane>,
    /// R8: read from the lane before any entry is looked up.
    pub(super) vouched: Result<u64, Bypass>,
    /// What the router would make of any GET of this read, as long as nothing outstanding forbids it.
    pub(super) straight: Option<u64>,
    /// The same while upstream is gone, where the lane vouches for nothing.
    pub(super) stale: Option<StaleView>,
    /// Entries read before this time are not served (0: all may be): where no invalidation tells of what this session has
    /// seen or done elsewhere, only a later reading can know of it.
    since: u64,
    pub(super) flush_gen: u64,
    hits: u64,
    /// Of these, those of experiments.
    arms: Hits,
    /// Something has a price that is not a request's own: hits are to be weighed.
    weighs: bool,
    /// What hits saved: keys' bytes, and what their rules say, in billionths.
    saved_bytes: u64,
    saved_cost: u64,
    /// GETs that the command policy was not asked about, because it lets them all pass.
    pub(super) passed: u64,
    /// GETs that were answered from before an outage.
    pub(super) stale_hits: u64,
    /// There are more requests behind the present one.
    pub(super) more: bool,
}

/// A lane at a moment: what is true of its entries, its outage and its queue.
#[derive(Clone, Copy)]
pub(super) struct LaneAt<'l> {
    pub(super) lane: &'l Lane,
    pub(super) now: u64,
}

impl Batch {
    pub(super) fn new(ctx: &Rc<Ctx>, session: &Rc<Session>) -> Batch {
        let now = clock::now();
        ctx.now.set(now);
        let lane = session.lane(ctx);
        let vouched = vouched(ctx, &lane, session, now);
        let straight = straight(ctx, &lane, session, vouched);
        let stale = stale(ctx, LaneAt { lane: &lane, now }, session, vouched);
        let since = since(&lane, session);
        let arms = Hits::default();
        let flush_gen = ctx.l1.flush_gen();
        let (weighs, saved_bytes, saved_cost) = (ctx.metrics.costs.weighs(), 0, 0);
        Batch {
            now,
            lane,
            vouched,
            straight,
            stale,
            since,
            flush_gen,
            hits: 0,
            arms,
            weighs,
            saved_bytes,
            saved_cost,
            passed: 0,
            stale_hits: 0,
            more: false,
        }
    }

    pub(super) fn usable<'f>(&self, forms: &'f Forms, epoch: u64) -> Option<&'f cache::Entry> {
        cache::usable(forms, epoch, self.flush_gen, self.now).filter(|e| self.is_recent(e))
    }

    pub(super) fn is_recent(&self, entry: &cache::Entry) -> bool {
        entry.t_sent > self.since
    }

    pub(super) fn after_mget_hit(&self, ctx: &Ctx, key: &[u8], entry: Option<&cache::Entry>) {
        let Some(entry) = entry else { return };
        ctx.metrics.hot.hit(0, key, entry.value.wire_len(), entry.pattern);
        if entry.is_due(self.now) {
            self.lane.after_hit(ctx, self.now, key, entry, || Question::Get(Method::Mget));
        }
    }

    pub(super) fn lane(&self) -> &Rc<Lane> {
        &self.lane
    }

    /// The same with the time of the read.
    pub(super) fn lane_at(&self) -> LaneAt<'_> {
        LaneAt { lane: &self.lane, now: self.now }
    }

    /// What an entry has to stand up to.
    pub(super) fn at(&self, epoch: u64) -> (u64, u64, u64) {
        (epoch, self.flush_gen, self.now)
    }

    /// A request for one key was answered from the L1.
    pub(super) fn count_hit(&mut self, ctx: &Ctx, entry: &cache::Entry) {
        self.hits += 1;
        self.arms.one(entry.arm, entry.value.frame().len() as u64);
        ctx.metrics.patterns.hit(entry.pattern);
        self.saves(ctx, entry);
    }

    /// An MGET was answered from the L1: one request, whatever it names.
    pub(super) fn count_mget(&mut self, ctx: &Ctx, entries: &[&cache::Entry]) {
        self.hits += 1;
        let mut common = Common::NoKey;
        for (i, entry) in entries.iter().enumerate() {
            self.arms.key(entry.arm, entry.value.frame().len() as u64);
            common = common.and(entry.arm);
            ctx.metrics.patterns.hit(entry.pattern);
            self.saves(ctx, entry);
            if i > 0 {
                ctx.metrics.patterns.rider(entry.pattern);
            }
        }
        self.arms.request(common.arm());
    }

    /// Its reply, and what its rule says of a key that is not answered here. Where neither has a price nobody needs to know.
    #[inline]
    pub(super) fn saves(&mut self, ctx: &Ctx, entry: &cache::Entry) {
        if self.weighs {
            self.weigh(ctx, entry);
        }
    }

    fn weigh(&mut self, ctx: &Ctx, entry: &cache::Entry) {
        let bytes = entry.value.frame().len() as u64;
        self.saved_bytes += bytes;
        self.saved_cost += ctx.metrics.patterns.saved(entry.pattern, bytes);
    }

    /// A local command may have changed the profile: what stands behind it in the same read belongs on another lane, and
    /// under another fence (R18).
    pub(super) fn follow(&mut self, ctx: &Rc<Ctx>, session: &Rc<Session>) {
        let lane = session.lane(ctx);
        if !Rc::ptr_eq(&lane, &self.lane) {
            if self.hits > 0 {
                self.lane.note_read(self.now);
            }
            self.lane = lane;
        }
        self.vouched = vouched(ctx, &self.lane, session, self.now);
        self.straight = straight(ctx, &self.lane, session, self.vouched);
        self.stale = stale(ctx, self.lane_at(), session, self.vouched);
        self.since = since(&self.lane, session);
    }

    pub(super) fn account(&self, ctx: &Ctx, session: &Session) {
        session.last.set(self.now);
        if self.passed > 0 {
            ctx.metrics.operations.add(Operation::Get, self.passed);
            session.run.commands.add(self.passed);
            if ctx.policy.judges() {
                ctx.metrics.policy.allowed(Action::Read, self.passed);
            }
        }
        if self.hits > 0 || self.saved_bytes > 0 {
            session.meter.saved.add(self.hits, self.saved_bytes, self.saved_cost);
        }
        if self.stale_hits > 0 {
            session.count_stale(ctx, self.stale_hits);
        }
        let Some(hits) = std::num::NonZeroU64::new(self.hits) else { return };
        session.told.set(true);
        session.run.hits.add(self.hits);
        self.lane.note_read(self.now);
        let each = clock::now().saturating_sub(self.now) / hits;
        ctx.metrics.request_n(Timed::ReadHit, each, self.hits);
        self.arms.count(&ctx.metrics.arms, self.now, each);
    }
}

fn vouched(ctx: &Ctx, lane: &Lane, session: &Session, now: u64) -> Result<u64, Bypass> {
    // What a RESP2 lane has read is no answer to a client that speaks RESP3.
    if lane.speaks_resp2() && session.proto() == Proto::Resp3 {
        return Err(Bypass::NoLane);
    }
    lane.vouches(now, session.fence.get(), ctx.max_staleness)
}

/// Entries that were read before this are none for this session.
pub(super) fn since(lane: &Lane, session: &Session) -> u64 {
    if lane.mode() == Coherence::Tracking { 0 } else { session.fence.get() }
}

/// The part of the router's view that is the same for every GET of one read.
fn straight(ctx: &Ctx, lane: &Lane, session: &Session, vouched: Result<u64, Bypass>) -> Option<u64> {
    let keeps = ctx.kept().has(Method::Get);
    let open = keeps && ctx.cache_serves() && lane.caches() && ctx.large.borrow().is_empty();
    if open && session.gets_freely(ctx) { vouched.ok() } else { None }
}

/// The breaker is looked at here only: a lane that vouches for its entries needs none of it.
fn stale(ctx: &Ctx, at: LaneAt<'_>, session: &Session, vouched: Result<u64, Bypass>) -> Option<StaleView> {
    if vouched.is_ok() { None } else { session.stale_straight(ctx, at) }
}
