//! From bytes to routes: reads every whole request in the buffer and carries out the router's decision. Nothing here waits;
//! what must wait suspends the session with a copy of the request.

use std::rc::Rc;
use std::sync::Arc;

use smallvec::SmallVec;

use super::outbox::{Asked, KeyCopy};
use super::{BACKPRESSURE, Client, OUTSTANDING_MAX, Session};
use crate::cache::{self, Forms, StripeId, Value};
use crate::coherence::{
    self, Applied, Availability, Ends, FetchRead, FetchRequest, Hold, Lane, MgetRequest, Miss, Op, Part, Question,
    Refresh, RefreshKey, Relay, StaleView,
};
use crate::command::cacheable::{Caching, Kept, Never};
use crate::command::table;
use crate::command::{Effect, Keys, Kind, Need, Request, Resp2, Spec, Why, keys, prefix};
use crate::config::{Fence, OnWrite};
use crate::net::drop_front;
use crate::observe::arms::{ArmId, Common, Hits};
use crate::observe::clock;
use crate::observe::reasons::{
    Action, Bypass, Class, Coherence, Dropped, Flush, Method, Operation, Peer, Source, Timed,
};
use crate::observe::runs::End;
use crate::policy::{Judged, Keep, explain};
use crate::resp::Proto;
use crate::resp::build;
use crate::resp::request::{Arg, ProtocolError, Scan};
use crate::router::{self, Route, Stranger, View};
use crate::worker::Ctx;

/// A pattern whose values were refreshed so often without being read is only invalidated (decision 5).
const UPDATES_UNREAD_MAX: u32 = 1000;

/// How the keys of one write are kept, in its order.
type Keeps = SmallVec<[Keep; 1]>;

/// An MSET with more pairs is not read back.
const MSET_REFRESH_MAX: usize = 64;

/// How a name that the table does not have is carried over the lane: everything about it is unknown (decision 1).
pub(super) static STRANGER: Spec = Spec {
    row: u16::MAX,
    name: "unknown",
    arity: -1,
    keys: Keys::None,
    effect: Effect::Opaque,
    need: Need::Lane,
    resp2: Resp2::Same,
    resend: false,
    kind: Kind::Other,
    caching: Caching::Never(Never::Module),
};

/// What the session's task does next.
pub(super) enum Step {
    NeedInput,
    /// Too much is outstanding: wait until it is less.
    Throttled,
    /// The lane has too much to send: it wakes the session when it may go on.
    LaneFull,
    /// A rate limit: not before this time.
    Paced(u64),
    Suspend(Work),
    Close,
}

/// Why the session cannot look at the next request yet.
pub(super) enum Work {
    /// The lane has never been connected: wait what comes of it.
    AwaitLane(Owned),
    /// What is outstanding is on another connection than this belongs on (R18).
    Settle(Owned),
    /// Its lane recovers, and others are before it.
    Refill(Owned),
    /// Ask upstream what this name is.
    Learn(Owned),
    /// The session needs a connection of its own, and this is its first command there.
    Pinned(Why, Owned),
    /// A local command that has to ask upstream, or must come after everything before it.
    Local(&'static Spec, Owned),
    /// A PUBLISH on the sidecars' channel, to be forwarded when it has been applied here.
    Announce(Applied, &'static Spec, Owned),
    /// The request at the front of the buffer is large: it is streamed.
    Large,
}

/// A request with bytes of its own.
pub(super) struct Owned {
    pub(super) raw: Vec<u8>,
    pub(super) args: Vec<Arg>,
}

impl Owned {
    pub(super) fn of(req: &Request<'_>) -> Owned {
        Owned { raw: req.raw.to_vec(), args: req.args.to_vec() }
    }

    pub(super) fn request(&self) -> Request<'_> {
        Request { raw: &self.raw, args: &self.args }
    }
}

/// What holds for all requests of one read: they were received at `now`.
pub(super) struct Batch {
    pub(super) now: u64,
    lane: Rc<Lane>,
    /// R8: read from the lane before any entry is looked up.
    vouched: Result<u64, Bypass>,
    /// What the router would make of any GET of this read, as long as nothing outstanding forbids it.
    straight: Option<u64>,
    /// The same while upstream is gone, where the lane vouches for nothing.
    stale: Option<StaleView>,
    /// Entries read before this time are not served (0: all may be): where no invalidation tells of what this session has
    /// seen or done elsewhere, only a later reading can know of it.
    since: u64,
    flush_gen: u64,
    hits: u64,
    /// Of these, those of experiments.
    arms: Hits,
    /// What hits saved: keys' bytes, and what their rules say, in billionths.
    saved_bytes: u64,
    saved_cost: u64,
    /// GETs that the command policy was not asked about, because it lets them all pass.
    passed: u64,
    /// GETs that were answered from before an outage.
    stale_hits: u64,
    /// There are more requests behind the present one.
    more: bool,
}

impl Batch {
    pub(super) fn new(ctx: &Rc<Ctx>, session: &Rc<Session>) -> Batch {
        let now = clock::now();
        ctx.now.set(now);
        let lane = session.lane(ctx);
        let vouched = vouched(ctx, &lane, session, now);
        let straight = straight(ctx, &lane, session, vouched);
        let stale = stale(ctx, &lane, session, now, vouched);
        let since = since(&lane, session);
        let arms = Hits::default();
        let flush_gen = ctx.l1.flush_gen();
        let (saved_bytes, saved_cost) = (0, 0);
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
            saved_bytes,
            saved_cost,
            passed: 0,
            stale_hits: 0,
            more: false,
        }
    }

    fn usable<'f>(&self, forms: &'f Forms, epoch: u64) -> Option<&'f cache::Entry> {
        cache::usable(forms, epoch, self.flush_gen, self.now).filter(|e| self.is_recent(e))
    }

    pub(super) fn is_recent(&self, entry: &cache::Entry) -> bool {
        entry.t_sent > self.since
    }

    fn after_mget_hit(&self, ctx: &Ctx, key: &[u8], entry: Option<&cache::Entry>) {
        let Some(entry) = entry else { return };
        ctx.metrics.hot.hit(0, key, entry.value.wire_len(), entry.pattern);
        if entry.is_due(self.now) {
            self.lane.after_hit(ctx, self.now, key, entry, || Question::Get(Method::Mget));
        }
    }
}

fn vouched(ctx: &Ctx, lane: &Lane, session: &Session, now: u64) -> Result<u64, Bypass> {
    // What a RESP2 lane has read is no answer to a client that speaks RESP3.
    if lane.speaks_resp2() && session.proto() == Proto::Resp3 {
        return Err(Bypass::NoLane);
    }
    lane.vouches(now, session.fence.get(), ctx.max_staleness)
}

fn since(lane: &Lane, session: &Session) -> u64 {
    if lane.mode() == Coherence::Tracking { 0 } else { session.fence.get() }
}

/// The part of the router's view that is the same for every GET of one read.
fn straight(ctx: &Ctx, lane: &Lane, session: &Session, vouched: Result<u64, Bypass>) -> Option<u64> {
    let keeps = ctx.kept().has(Method::Get);
    let open = keeps && ctx.cache_serves() && lane.caches() && ctx.large.borrow().is_empty();
    if open && session.gets_freely(ctx) { vouched.ok() } else { None }
}

/// The breaker is looked at here only: a lane that vouches for its entries needs none of it.
fn stale(ctx: &Ctx, lane: &Lane, session: &Session, now: u64, vouched: Result<u64, Bypass>) -> Option<StaleView> {
    if vouched.is_ok() { None } else { session.stale_straight(ctx, lane, now) }
}

impl Client {
    /// Dispatches every whole request in the buffer.
    pub(super) fn process(&mut self, ctx: &Rc<Ctx>) -> Step {
        if self.rbuf.is_empty() {
            return Step::NeedInput;
        }
        if ctx.embedded().is_some() {
            return self.serve_embedded(ctx);
        }
        let session = self.session.clone();
        let mut batch = Batch::new(ctx, &session);
        if batch.lane.is_full(&session) {
            return Step::LaneFull;
        }
        // No other policy comes while nothing is awaited.
        let paces = ctx.policy.paces();
        let mut at = 0;
        let step = loop {
            if session.is_throttled() {
                break Step::Throttled;
            }
            if paces
                && at < self.rbuf.len()
                && let Some(until) = session.pace(ctx)
            {
                break Step::Paced(until);
            }
            let (len, step) = match self.scanner.scan(&self.rbuf[at..]) {
                Scan::Incomplete => break Step::NeedInput,
                Scan::Nothing { len } => (len, None),
                Scan::Request { len } => {
                    let req = Request { raw: &self.rbuf[at..at + len], args: self.scanner.args() };
                    batch.more = at + len < self.rbuf.len();
                    (len, session.next(ctx, &mut batch, &req, paces))
                }
                Scan::Inline { len } => {
                    let req = Request { raw: self.scanner.inline(), args: self.scanner.args() };
                    batch.more = at + len < self.rbuf.len();
                    (len, session.next(ctx, &mut batch, &req, paces))
                }
                Scan::Large if session.refused_unread() => break Step::Close,
                Scan::Large => break Step::Suspend(Work::Large),
                Scan::Error(e) => {
                    session.protocol_error(ctx, &e);
                    break Step::Close;
                }
            };
            at += len;
            if let Some(step) = step {
                break step;
            }
        };
        drop_front(&mut self.rbuf, at);
        self.release_buffer();
        batch.account(ctx, &session);
        step
    }

    /// A connection that has been quiet keeps no large buffer.
    pub(super) fn release_buffer(&mut self) {
        if self.rbuf.is_empty() && self.rbuf.capacity() > BACKPRESSURE {
            self.rbuf = bytes::BytesMut::new();
        }
    }
}

impl Batch {
    pub(super) fn lane(&self) -> &Rc<Lane> {
        &self.lane
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
    fn count_mget(&mut self, ctx: &Ctx, entries: &[&cache::Entry]) {
        self.hits += 1;
        let mut common = Common::NoKey;
        for (i, entry) in entries.iter().enumerate() {
            self.arms.key(entry.arm, entry.value.frame().len() as u64);
            common = common.and(entry.arm);
            self.saves(ctx, entry);
            if i > 0 {
                ctx.metrics.patterns.rider(entry.pattern);
            }
        }
        self.arms.request(common.arm());
    }

    /// Its reply, and what its rule says of a key that is not answered here.
    fn saves(&mut self, ctx: &Ctx, entry: &cache::Entry) {
        let bytes = entry.value.frame().len() as u64;
        self.saved_bytes += bytes;
        self.saved_cost += ctx.metrics.patterns.saved(entry.pattern, bytes);
    }

    /// A local command may have changed the profile: what stands behind it in the same read belongs on another lane, and
    /// under another fence (R18).
    fn follow(&mut self, ctx: &Rc<Ctx>, session: &Rc<Session>) {
        let lane = session.lane(ctx);
        if !Rc::ptr_eq(&lane, &self.lane) {
            if self.hits > 0 {
                self.lane.note_read(self.now);
            }
            self.lane = lane;
        }
        self.vouched = vouched(ctx, &self.lane, session, self.now);
        self.straight = straight(ctx, &self.lane, session, self.vouched);
        self.stale = stale(ctx, &self.lane, session, self.now, self.vouched);
        self.since = since(&self.lane, session);
    }

    fn account(&self, ctx: &Ctx, session: &Session) {
        session.last.set(self.now);
        if self.passed > 0 {
            ctx.metrics.operations.add(Operation::Get, self.passed);
            session.run.commands.add(self.passed);
            if ctx.policy.judges() {
                ctx.metrics.policy.allowed(Action::Read, self.passed);
            }
        }
        if self.saved_bytes > 0 {
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

impl Session {
    pub(super) fn is_throttled(&self) -> bool {
        let outbox = self.outbox.borrow();
        self.closing.get()
            || self.halted.get()
            || outbox.bytes() + self.held.get() > BACKPRESSURE
            || outbox.outstanding() >= OUTSTANDING_MAX
    }

    pub(super) fn protocol_error(&self, ctx: &Ctx, error: &ProtocolError) {
        ctx.metrics.protocol_errors.inc(Peer::Client);
        let limit = matches!(error, ProtocolError::QueryLimit);
        let why = if limit { Dropped::QueryLimit } else { Dropped::Protocol };
        ctx.metrics.clients_dropped.inc(why);
        self.ends(End::Here(why));
        self.answer(false, |out| error.reply(out));
    }

    /// The lane of the session's present profile.
    pub(super) fn lane(&self, ctx: &Rc<Ctx>) -> Rc<Lane> {
        let mut lane = self.lane.borrow_mut();
        if let Some(lane) = lane.as_ref().filter(|l| !l.is_over()) {
            return lane.clone();
        }
        let fresh = ctx.lane(&self.state.borrow().profile());
        *lane = Some(fresh.clone());
        fresh
    }

    /// One request out of the buffer, where there are rate limits. `None`: done, look at the next. Cold, and like the flags
    /// beside it outside of what is done for every hit: the calls alone cost a hit 60 instructions.
    #[inline]
    fn next(self: &Rc<Self>, ctx: &Rc<Ctx>, b: &mut Batch, req: &Request<'_>, paces: bool) -> Option<Step> {
        if paces && let Some(refused) = self.spend(ctx, Some(req)) {
            self.refuse(req, &refused);
            return None;
        }
        self.receive(ctx, b, req)
    }

    /// One request that the command policy has not been asked about. `None`: done, look at the next.
    pub(super) fn dispatch(self: &Rc<Self>, ctx: &Rc<Ctx>, b: &mut Batch, req: &Request<'_>) -> Option<Step> {
        let spec = match self.spec(ctx, req) {
            Ok(spec) => spec,
            Err(_) if table::is_cross_protocol(req.arg(0)) => {
                tracing::warn!(client = %self.addr, "closed: an HTTP request on the Redis port, a cross-protocol attack perhaps");
                return Some(Step::Close);
            }
            // What it is has to be known first.
            Err(Stranger::New) => return self.stranger(ctx, b, req, Stranger::New),
            Err(stranger) => {
                self.count(ctx, Operation::Other);
                let refused = self.is_refused(ctx, Err(stranger), req);
                return if refused { None } else { self.stranger(ctx, b, req, stranger) };
            }
        };
        self.last_command.set(spec.name);
        if let Some(epoch) = b.straight
            && spec.kind == Kind::Get
            && req.argc() == 2
            && self.is_free()
        {
            debug_assert_eq!(router::route(spec, req, &self.view(ctx, b, req, spec)), Route::Cached(epoch));
            b.passed += 1;
            return self.get(ctx, b, req, spec, false, Ok(epoch));
        }
        if let Some(view) = &b.stale
            && spec.kind == Kind::Get
            && req.argc() == 2
            && self.is_free()
            && self.get_stale(ctx, view, req.arg(1))
        {
            b.passed += 1;
            b.stale_hits += 1;
            return None;
        }
        self.count(ctx, spec.operation());
        if self.is_refused(ctx, Ok(spec), req) {
            return None;
        }
        self.known(ctx, b, req, spec)
    }

    /// One that may run, and had to wait for something else.
    pub(super) fn dispatch_again(self: &Rc<Self>, ctx: &Rc<Ctx>, b: &mut Batch, req: &Request<'_>) -> Option<Step> {
        match self.spec(ctx, req) {
            Ok(spec) => self.known(ctx, b, req, spec),
            Err(stranger) => self.stranger(ctx, b, req, stranger),
        }
    }

    /// Answers what may not run.
    #[inline]
    pub(super) fn is_refused(&self, ctx: &Ctx, spec: Result<&'static Spec, Stranger>, req: &Request<'_>) -> bool {
        if ctx.policy.is_open() {
            return false;
        }
        self.answers_refusal(ctx, spec, req)
    }

    #[inline(never)]
    fn answers_refusal(&self, ctx: &Ctx, spec: Result<&'static Spec, Stranger>, req: &Request<'_>) -> bool {
        let refused = self.judge(ctx, spec, req);
        if let Some(text) = &refused {
            self.refuse(req, text);
        }
        refused.is_some()
    }

    fn refuse(&self, req: &Request<'_>, error: &str) {
        // CLIENT REPLY OFF and SKIP speak of the commands behind them.
        let reply = req.is(0, "client") && req.is(1, "reply");
        let mute = self.special.get() && !reply && self.state.borrow_mut().mute();
        self.answer_error(mute, error);
    }

    /// Nothing about this session asks the router for more than the batch knows.
    fn is_free(&self) -> bool {
        !self.special.get() && self.blockers.get() == 0 && self.named.get() == 0
    }

    fn known(self: &Rc<Self>, ctx: &Rc<Ctx>, b: &mut Batch, req: &Request<'_>, spec: &'static Spec) -> Option<Step> {
        let mute = self.special.get() && {
            if self.refused_by_protection(spec, req) {
                return None;
            }
            // CLIENT REPLY OFF and SKIP speak of the commands behind them.
            spec.name != "client|reply" && self.state.borrow_mut().mute()
        };
        let view = self.view(ctx, b, req, spec);
        if spec.kind == Kind::Info && super::nearside::is_own_info(req) {
            self.own_info(ctx, b.now, mute);
            return None;
        }
        let step = self.take(ctx, b, req, spec, mute, router::route(spec, req, &view));
        if matches!(step, Some(Step::Suspend(_))) {
            // It is looked at again when its turn comes, and asks again then.
            self.unmute(mute);
        }
        step
    }

    fn take(
        self: &Rc<Self>,
        ctx: &Rc<Ctx>,
        b: &mut Batch,
        req: &Request<'_>,
        spec: &'static Spec,
        mute: bool,
        route: Route,
    ) -> Option<Step> {
        match route {
            Route::Cached(epoch) if spec.kind == Kind::Get => self.get(ctx, b, req, spec, mute, Ok(epoch)),
            Route::Cached(epoch) if spec.kind == Kind::Mget => self.mget(ctx, b, req, spec, mute, Ok(epoch)),
            Route::Cached(epoch) => self.read(ctx, b, req, spec, mute, Ok(epoch)),
            Route::Fetch(why) if spec.kind == Kind::Get => self.get(ctx, b, req, spec, mute, Err(why)),
            Route::Fetch(why) if spec.kind != Kind::Mget => self.read(ctx, b, req, spec, mute, Err(why)),
            Route::Fetch(Bypass::CacheOff | Bypass::TrackingRefused) => self.pass_by(ctx, b, req, spec, mute),
            Route::Fetch(why) => self.mget(ctx, b, req, spec, mute, Err(why)),
            Route::Lane => self.pass_by(ctx, b, req, spec, mute),
            Route::Write => self.forward(ctx, b, req, spec, mute, Some(Effect::Write)),
            Route::Opaque => self.forward(ctx, b, req, spec, mute, Some(Effect::Opaque)),
            Route::SwapDb => self.forward(ctx, b, req, spec, mute, Some(Effect::SwapDb)),
            Route::Announce => self.announce(ctx, b, req, spec, mute),
            Route::Pinned(why) => Some(Step::Suspend(Work::Pinned(why, Owned::of(req)))),
            Route::Local if spec.kind == Kind::Hello && b.lane.availability() == Availability::Starting => {
                // Which protocols there are is upstream's to say, as long as it may say so soon.
                Some(Step::Suspend(Work::AwaitLane(Owned::of(req))))
            }
            Route::Local => {
                let step = self.local(ctx, b.now, req, spec, mute);
                b.follow(ctx, self);
                step
            }
            Route::Learn => Some(Step::Suspend(Work::Learn(Owned::of(req)))),
            Route::Refuse(text) => {
                self.answer_error(mute, text);
                None
            }
        }
    }

    fn stranger(self: &Rc<Self>, ctx: &Rc<Ctx>, b: &mut Batch, req: &Request<'_>, what: Stranger) -> Option<Step> {
        if self.special.get() && self.refused_by_protection(&STRANGER, req) {
            return None;
        }
        self.last_command.set("unknown");
        if let Some(refusal) = super::own_names::refuses_stranger(ctx, req) {
            self.answer_error(self.special.get() && self.state.borrow_mut().mute(), &refusal);
            return None;
        }
        let view = self.view(ctx, b, req, &STRANGER);
        let owned = || Owned::of(req);
        match router::route_stranger(what, &view) {
            Route::Learn => self
                .lane_stop(ctx, b, req, &STRANGER, false)
                .unwrap_or_else(|| Some(Step::Suspend(Work::Learn(owned())))),
            Route::Pinned(why) => Some(Step::Suspend(Work::Pinned(why, owned()))),
            route => {
                let effect = (route == Route::Opaque).then_some(Effect::Opaque);
                let mute = self.special.get() && self.state.borrow_mut().mute();
                let step = self.forward(ctx, b, req, &STRANGER, mute, effect);
                if matches!(step, Some(Step::Suspend(_))) {
                    self.unmute(mute);
                }
                step
            }
        }
    }

    pub(super) fn view(&self, ctx: &Ctx, b: &Batch, req: &Request<'_>, spec: &Spec) -> View {
        let serves = ctx.cache_serves();
        // Of what is not served nothing more needs to be known.
        let kept = super::forms::kept(ctx, req, spec);
        let reads = serves && kept.is_some();
        View {
            serves,
            // Of other commands a copy is kept in RESP3, which is exact for clients of both protocols.
            kept: kept.is_some() && (!b.lane.speaks_resp2() || matches!(spec.kind, Kind::Get | Kind::Mget)),
            fields_expire: kept.is_some_and(Kept::of_fields) && !b.lane.fields_stay(),
            // An arming lane caches in a moment, and says itself that it does not vouch for anything yet.
            caches: !reads || b.lane.caches() || b.lane.is_arming(),
            vouched: b.vouched,
            blocked: self.blockers.get() > 0,
            named: reads && self.named.get() != 0 && self.names_any(ctx, spec, req),
            large: spec.effect == Effect::Read
                && !ctx.large.borrow().is_empty()
                && ctx.large.borrow().has(req, spec, b.now),
            resp3: self.proto() == Proto::Resp3,
            allow_shutdown: ctx.config.commands.shutdown,
            announces: announces(ctx, spec, req),
        }
    }

    pub(super) fn names_any(&self, ctx: &Ctx, spec: &Spec, req: &Request<'_>) -> bool {
        let mut any = false;
        keys::for_each(spec, req, |key| any |= self.named.get() & bit(ctx.l1.stripe(key)) != 0);
        any
    }

    pub(super) fn note_named(&self, stripe: StripeId) {
        self.named.set(self.named.get() | bit(stripe));
    }

    /// GET: a hit, a flight to join, or a fetch.
    fn get(
        self: &Rc<Self>,
        ctx: &Rc<Ctx>,
        b: &mut Batch,
        req: &Request<'_>,
        spec: &'static Spec,
        mute: bool,
        epoch: Result<u64, Bypass>,
    ) -> Option<Step> {
        let key = req.arg(1);
        if let Ok(epoch) = epoch
            && let Some(forms) = ctx.l1.get(key)
            && let Some(entry) = b.usable(&forms, epoch)
        {
            b.count_hit(ctx, entry);
            ctx.metrics.patterns.note_read(entry.pattern);
            ctx.metrics.patterns.candidate(entry.pattern, Method::Get);
            ctx.metrics.hot.hit(0, key, entry.value.wire_len(), entry.pattern);
            self.answer_hit(mute, &entry.value);
            if entry.is_due(b.now) {
                b.lane.after_hit(ctx, b.now, key, entry, || Question::Get(Method::Get));
            }
            return None;
        }
        let lane = match self.carrier(ctx, b, req, spec, mute) {
            Ok(lane) => lane,
            Err(stop) => return stop,
        };
        let may_join = epoch.is_ok() || matches!(epoch, Err(Bypass::Fence | Bypass::Lease | Bypass::NotLive));
        let place = match self.refill(ctx, b, &lane, req, may_join.then_some((key, None))) {
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

    /// What the rules say of a key that was not served from the L1, counted: a candidate, and a miss where the L1 was asked
    /// and could have had it, else a bypass.
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
        if method != Method::Mget {
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
    fn mget(
        self: &Rc<Self>,
        ctx: &Rc<Ctx>,
        b: &mut Batch,
        req: &Request<'_>,
        spec: &'static Spec,
        mute: bool,
        epoch: Result<u64, Bypass>,
    ) -> Option<Step> {
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
            ctx.metrics.patterns.candidate(family(), Method::Mget);
            let entries: SmallVec<[&cache::Entry; 16]> = found
                .iter()
                .flatten()
                .filter_map(|forms| cache::usable(forms, epoch.ok()?, b.flush_gen, b.now))
                .collect();
            self.answer_mget(ctx, mute, &entries);
            (0..found.len()).for_each(|i| b.after_mget_hit(ctx, req.arg(i + 1), entry(i)));
            b.count_mget(ctx, &entries);
            return None;
        }
        let lane = match self.carrier(ctx, b, req, spec, mute) {
            Ok(lane) => lane,
            Err(stop) => return stop,
        };
        let place = match self.refill(ctx, b, &lane, req, None) {
            Ok(place) => place,
            Err(stop) => return stop,
        };
        let family = family();
        ctx.metrics.patterns.candidate(family, Method::Mget);
        let asked = asked(b, epoch).about(spec.name, family);
        if lane.is_spare() {
            let slot = self.slot(mute, true, asked);
            lane.relay(ctx, b.now, req.raw, Relay::plain(self.clone(), slot, keys::form(spec, req), spec.resend));
            return None;
        }
        let mut parts = Vec::with_capacity(found.len());
        let mut misses = Vec::new();
        let mut common = Common::NoKey;
        // The first key that is missing pays for the request.
        let mut payer = None;
        let mut saved: SmallVec<[&cache::Entry; 16]> = SmallVec::new();
        for i in 0..found.len() {
            let key = req.arg(i + 1);
            let stripe = ctx.l1.stripe(key);
            self.note_named(stripe);
            // Not split where more of the session follows: a split may have to be read again, which must not overtake it.
            if let Some(e) = entry(i).filter(|_| !b.more) {
                self.halted.set(true);
                ctx.metrics.patterns.hit(e.pattern);
                ctx.metrics.arms.served(e.arm, b.now, 0, 0, 1, e.value.frame().len() as u64);
                ctx.metrics.patterns.rider(e.pattern);
                saved.push(e);
                common = common.and(e.arm);
                let generation = ctx.l1.generation(stripe);
                parts.push(Part::Hit { stripe, generation, deadline: e.deadline, value: e.value.clone() });
                b.after_mget_hit(ctx, key, Some(e));
            } else {
                let Judged { arm, pattern, keep } = self.note_lookup(ctx, b, key, Method::Mget, epoch);
                payer = payer.or(Some(pattern));
                common = common.and(arm);
                let keep = keep.ok().filter(|_| b.lane.caches());
                let right = keep.and_then(|keep| Some((keep, ctx.l1.token(key, b.lane.epoch())?)));
                if right.is_none() {
                    lane.overtake(ctx, key);
                }
                let seen = ctx.seen(b.lane.id, key, Method::Mget, None);
                misses.push(Miss { key: key.into(), right, seen, value: None });
                parts.push(Part::Miss);
            }
        }
        let asked = Asked { payer, ..asked.of(common.arm()) };
        saved.into_iter().for_each(|entry| b.saves(ctx, entry));
        let slot = self.outbox.borrow_mut().reserve(self.proto(), mute, false, asked);
        b.lane.note_read(b.now);
        let request = MgetRequest { slot, raw: req.raw.into(), parts, misses, epoch: b.lane.epoch(), place };
        lane.mget(ctx, b.now, self, request);
        None
    }

    fn answer_mget(&self, ctx: &Ctx, mute: bool, entries: &[&cache::Entry]) {
        let proto = self.proto();
        self.answer(mute, |out| {
            build::array(out, entries.len());
            for entry in entries {
                ctx.metrics.patterns.hit(entry.pattern);
                match &entry.value {
                    Value::Bulk(bytes) => out.extend_from_slice(bytes),
                    Value::Nil => build::null(out, proto),
                }
            }
        });
    }

    /// The connection that takes this command: the lane, or its spare while it is held up (decision 9). R18: what is
    /// outstanding is on one of the two.
    pub(super) fn carrier(
        self: &Rc<Self>,
        ctx: &Rc<Ctx>,
        b: &Batch,
        req: &Request<'_>,
        spec: &'static Spec,
        mute: bool,
    ) -> Result<Rc<Lane>, Option<Step>> {
        if let Some(stop) = self.lane_stop(ctx, b, req, spec, mute) {
            return Err(stop);
        }
        let outstanding = self.outbox.borrow().outstanding() > 0;
        match b.lane.spare_for(spec) {
            Some(spare) if self.on_spare.get() || !outstanding => {
                self.on_spare.set(true);
                Ok(spare)
            }
            None if self.on_spare.get() && outstanding => Err(Some(Step::Suspend(Work::Settle(Owned::of(req))))),
            _ => {
                self.on_spare.set(false);
                Ok(b.lane.clone())
            }
        }
    }

    pub(super) fn slot(&self, mute: bool, blocks: bool, asked: Asked) -> u64 {
        if blocks {
            self.blockers.set(self.blockers.get() + 1);
        }
        self.outbox.borrow_mut().reserve(self.proto(), mute, blocks, asked)
    }

    /// What keeps a command from the lane now, if anything does.
    fn lane_stop(
        self: &Rc<Self>,
        ctx: &Rc<Ctx>,
        b: &Batch,
        req: &Request<'_>,
        spec: &'static Spec,
        mute: bool,
    ) -> Option<Option<Step>> {
        let replaying = b.lane.replaying();
        if let Some(last) = replaying
            && let Some(stop) = self.while_replaying(ctx, b, req, spec, last, mute)
        {
            return Some(stop);
        }
        if ctx.may_be_behind()
            && b.lane.is_ready()
            && let Some(stop) = self.behind(ctx, b, req, spec, mute)
        {
            return Some(stop);
        }
        if b.lane.is_ready() || replaying.is_some() {
            // Upstream has stopped speaking RESP3 while this client does: it is upstream that tells it so.
            let foreign = self.proto() == Proto::Resp3 && b.lane.speaks_resp2();
            return foreign.then(|| Some(Step::Suspend(Work::Pinned(Why::NoLane, Owned::of(req)))));
        }
        if b.lane.is_gone() {
            return Some(self.in_outage(ctx, b, req, spec, mute));
        }
        Some(match b.lane.availability() {
            Availability::Starting if !ctx.is_gone() => Some(Step::Suspend(Work::AwaitLane(Owned::of(req)))),
            Availability::Refused(_) => Some(Step::Suspend(Work::Pinned(Why::NoLane, Owned::of(req)))),
            _ => self.in_outage(ctx, b, req, spec, mute),
        })
    }

    /// A command that the L1 has no part in; if it could have, that is counted.
    fn pass_by(
        self: &Rc<Self>,
        ctx: &Rc<Ctx>,
        b: &mut Batch,
        req: &Request<'_>,
        spec: &'static Spec,
        mute: bool,
    ) -> Option<Step> {
        let step = self.forward(ctx, b, req, spec, mute, None);
        let kept = explain::kept(spec, req).filter(|_| step.is_none() && keys::arity_ok(spec, req.argc()));
        if let Some(kept) = kept {
            let pattern = ctx.judge(req.arg(1), kept.method).pattern;
            ctx.metrics.patterns.candidate(pattern, kept.method);
        }
        step
    }

    /// Any other command for the lane. `effect`: what the L1 must do about it; `None`: nothing.
    pub(super) fn forward(
        self: &Rc<Self>,
        ctx: &Rc<Ctx>,
        b: &mut Batch,
        req: &Request<'_>,
        spec: &'static Spec,
        mute: bool,
        effect: Option<Effect>,
    ) -> Option<Step> {
        let lane = match self.carrier(ctx, b, req, spec, mute) {
            Ok(lane) => lane,
            Err(stop) => return stop,
        };
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
                lane.overtake(ctx, key);
            }),
            None => {}
            Some(effect) => self.begin(ctx, b, req, spec, effect, &mut relay),
        }
        ctx.metrics.commands.inc(if relay.write { Class::Write } else { Class::Read });
        let flush = relay.flush;
        lane.relay(ctx, b.now, req.raw, relay);
        if flush {
            coherence::publish_flush(ctx, &b.lane, b.now);
        }
        None
    }

    /// A PUBLISH on the sidecars' channel: what it names is dropped here before its publisher has the reply, then it is
    /// forwarded. What is malformed is only forwarded: every sidecar, this one too, counts it when it comes back.
    fn announce(
        self: &Rc<Self>,
        ctx: &Rc<Ctx>,
        b: &mut Batch,
        req: &Request<'_>,
        spec: &'static Spec,
        mute: bool,
    ) -> Option<Step> {
        if let Some(stop) = self.lane_stop(ctx, b, req, spec, mute) {
            return stop;
        }
        match coherence::parse(req.arg(2)).and_then(|m| coherence::apply(ctx, &m, Source::Publish)) {
            Ok(applied @ Applied::Sweeping(_)) => Some(Step::Suspend(Work::Announce(applied, spec, Owned::of(req)))),
            _ => self.forward(ctx, b, req, spec, mute, None),
        }
    }

    /// The rest of `announce`.
    pub(super) fn announced(self: &Rc<Self>, ctx: &Rc<Ctx>, req: &Request<'_>, spec: &'static Spec) -> Option<Step> {
        let mute = self.special.get() && self.state.borrow_mut().mute();
        let mut batch = Batch::new(ctx, self);
        let step = self.forward(ctx, &mut batch, req, spec, mute, None);
        if matches!(step, Some(Step::Suspend(_))) {
            self.unmute(mute);
        }
        step
    }

    /// R14, R15, R16: the L1's side of a write, in the same step as its sending.
    fn begin(
        &self,
        ctx: &Rc<Ctx>,
        b: &Batch,
        req: &Request<'_>,
        spec: &'static Spec,
        effect: Effect,
        relay: &mut Relay,
    ) {
        let refreshes = if effect == Effect::Write { self.wants_refresh(ctx, b, req, spec) } else { None };
        let mut stripes: SmallVec<[StripeId; 4]> = SmallVec::new();
        keys::for_each(spec, req, |key| {
            let stripe = ctx.l1.begin_write(key);
            ctx.metrics.invalidations.inc(Source::OwnWrite);
            self.note_named(stripe);
            stripes.push(stripe);
        });
        if let Some(keeps) = refreshes {
            // Who has it stored means to read it: the lease is kept young for that, so that the first GET is a hit.
            b.lane.note_read(b.now);
            relay.refresh = Some(self.refresh(ctx, b, req, spec, &stripes, keeps));
        }
        if b.lane.publishes() && !stripes.is_empty() {
            let mut named: SmallVec<[Box<[u8]>; 4]> = SmallVec::new();
            keys::for_each(spec, req, |key| named.push(key.into()));
            relay.tell = Some(coherence::told(ctx, Op::Key, &named));
        }
        relay.ends = Ends::from_vec(stripes);
        match effect {
            Effect::Opaque if ctx.config.coherence.fence == Fence::Session => relay.fence = true,
            Effect::Opaque => relay.hold = Some(Rc::new(Hold::default())),
            Effect::SwapDb | Effect::Flush => {
                ctx.l1.flush();
                ctx.metrics.flushes.inc(Flush::Swapdb);
                relay.flush = true;
            }
            _ => {}
        }
    }

    /// Decision 5: how the L1 should keep upstream's answer right behind this write, key by key; none: not at all.
    fn wants_refresh(&self, ctx: &Ctx, b: &Batch, req: &Request<'_>, spec: &Spec) -> Option<Keeps> {
        // In `pubsub` mode the write's own message would void what is read back.
        if !ctx.refreshes() || !b.lane.caches() || !b.lane.is_live() || b.lane.publishes() {
            return None;
        }
        let size = match spec.kind {
            Kind::Set if spec.name == "set" || spec.name == "getset" => req.arg(2).len(),
            Kind::Set => req.arg(3).len(),
            Kind::Mset if req.argc() % 2 == 1 && req.argc() / 2 <= MSET_REFRESH_MAX => req.raw.len(),
            _ => return None,
        };
        if size > ctx.config.cache.update_max_bytes {
            return None;
        }
        let mut keeps = Keeps::new();
        let mut wanted = true;
        let mut unread = false;
        keys::for_each(spec, req, |key| {
            let Some(keep) = ctx.judge(key, Method::Get).keep.ok() else {
                wanted = false;
                return;
            };
            wanted &= match keep.terms().on_write {
                OnWrite::Update => true,
                OnWrite::Resident => ctx.l1.get(key).is_some(),
                OnWrite::Invalidate => false,
            };
            if wanted {
                unread |= ctx.metrics.patterns.note_update(keep.pattern) > UPDATES_UNREAD_MAX;
            }
            keeps.push(keep);
        });
        if unread {
            ctx.metrics.bypass.inc(Bypass::PausedUpdate);
        }
        (wanted && !unread).then_some(keeps)
    }

    /// The tokens of a refresh, taken right after its own `begin_write`s (R17).
    fn refresh(
        &self,
        ctx: &Ctx,
        b: &Batch,
        req: &Request<'_>,
        spec: &Spec,
        stripes: &[StripeId],
        keeps: Keeps,
    ) -> Rc<Refresh> {
        let mut of_keys = stripes.iter().zip(keeps);
        let mut refreshed: SmallVec<[RefreshKey; 1]> = SmallVec::new();
        keys::for_each(spec, req, |key| {
            let Some((&stripe, keep)) = of_keys.next() else { return };
            let token = ctx.l1.refresh_token(stripe, b.lane.epoch());
            // `MSET k 1 k 2`: one reading of k is enough.
            if refreshed.iter().all(|r| *r.key != *key) {
                refreshed.push(RefreshKey { key: key.into(), token, keep, value: None });
            }
        });
        Refresh::new(b.now, refreshed)
    }
}

pub(super) fn asked(b: &Batch, epoch: Result<u64, Bypass>) -> Asked {
    Asked::read(b.now, if epoch.is_ok() { Timed::ReadMiss } else { Timed::ReadBypass })
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
