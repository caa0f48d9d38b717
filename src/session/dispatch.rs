//! From bytes to routes: reads every whole request in the buffer and carries out the router's decision (`take`): what is read
//! from the L1 or into it is in `reads` and `forms`, what goes to the lane in `relay` and `writes`. Nothing here waits; what
//! must wait suspends the session with a copy of the request.

use std::rc::Rc;

use super::batch::Batch;
use super::{BACKPRESSURE, Client, OUTSTANDING_MAX, Session};
use crate::coherence::{Applied, Availability, Lane};
use crate::command::cacheable::{Caching, Kept, Never};
use crate::command::table;
use crate::command::{Effect, Keys, Kind, Need, Request, Resp2, Spec, Why};
use crate::net::drop_front;
use crate::observe::reasons::{Bypass, Dropped, Operation, Peer};
use crate::observe::runs::End;
use crate::resp::Proto;
use crate::resp::request::{Arg, ProtocolError, Scan};
use crate::router::{self, Route, Stranger, View};
use crate::worker::Ctx;

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

/// One command under way: what was asked, what the table says of it, whether its client is told.
#[derive(Clone, Copy)]
pub(super) struct Command<'r> {
    pub(super) req: &'r Request<'r>,
    pub(super) spec: &'static Spec,
    /// CLIENT REPLY OFF or SKIP: it is carried out, and nothing is said.
    pub(super) mute: bool,
}

impl Command<'_> {
    /// How it is suspended.
    pub(super) fn owned(&self) -> Owned {
        Owned::of(self.req)
    }
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
            return self.get(ctx, b, &Command { req, spec, mute: false }, Ok(epoch));
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
        let step = self.take(ctx, b, &Command { req, spec, mute }, router::route(spec, req, &view));
        if matches!(step, Some(Step::Suspend(_))) {
            // It is looked at again when its turn comes, and asks again then.
            self.unmute(mute);
        }
        step
    }

    fn take(self: &Rc<Self>, ctx: &Rc<Ctx>, b: &mut Batch, cmd: &Command<'_>, route: Route) -> Option<Step> {
        match route {
            Route::Cached(epoch) if cmd.spec.kind == Kind::Get => self.get(ctx, b, cmd, Ok(epoch)),
            Route::Cached(epoch) if cmd.spec.kind == Kind::Mget => self.mget(ctx, b, cmd, Ok(epoch)),
            Route::Cached(epoch) => self.read(ctx, b, cmd, Ok(epoch)),
            Route::Fetch(why) if cmd.spec.kind == Kind::Get => self.get(ctx, b, cmd, Err(why)),
            Route::Fetch(why) if cmd.spec.kind != Kind::Mget => self.read(ctx, b, cmd, Err(why)),
            Route::Fetch(Bypass::CacheOff) => self.pass_by(ctx, b, cmd),
            Route::Fetch(Bypass::TrackingRefused) => self.forward(ctx, b, cmd, None),
            Route::Fetch(why) => self.mget(ctx, b, cmd, Err(why)),
            Route::Lane => self.pass_by(ctx, b, cmd),
            Route::Write => self.forward(ctx, b, cmd, Some(Effect::Write)),
            Route::Opaque => self.forward(ctx, b, cmd, Some(Effect::Opaque)),
            Route::SwapDb => self.forward(ctx, b, cmd, Some(Effect::SwapDb)),
            Route::Announce => self.announce(ctx, b, cmd),
            Route::Pinned(_) if self.greets_in_outage(ctx, cmd) => None,
            Route::Pinned(why) => Some(Step::Suspend(Work::Pinned(why, cmd.owned()))),
            Route::Local if cmd.spec.kind == Kind::Hello && b.lane.availability() == Availability::Starting => {
                // Which protocols there are is upstream's to say, as long as it may say so soon.
                Some(Step::Suspend(Work::AwaitLane(cmd.owned())))
            }
            Route::Local => {
                let step = self.local(ctx, b.now, cmd.req, cmd.spec, cmd.mute);
                b.follow(ctx, self);
                step
            }
            Route::Learn => Some(Step::Suspend(Work::Learn(cmd.owned()))),
            Route::Refuse(text) => {
                self.answer_error(cmd.mute, text);
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
        match router::route_stranger(what, &view) {
            Route::Learn => {
                let cmd = Command { req, spec: &STRANGER, mute: false };
                self.lane_stop(ctx, b, &cmd).unwrap_or_else(|| Some(Step::Suspend(Work::Learn(cmd.owned()))))
            }
            Route::Pinned(why) => Some(Step::Suspend(Work::Pinned(why, Owned::of(req)))),
            route => {
                let effect = (route == Route::Opaque).then_some(Effect::Opaque);
                let mute = self.special.get() && self.state.borrow_mut().mute();
                let step = self.forward(ctx, b, &Command { req, spec: &STRANGER, mute }, effect);
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
            announces: super::relay::announces(ctx, spec, req),
        }
    }
}
