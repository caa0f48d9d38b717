//! A session on an upstream connection of its own (R19): bytes are relayed in both directions, in the client's own
//! protocol, while this file keeps track of when the state that needed the connection is over. The L1 is bypassed
//! meanwhile, and every reply moves the session's fence (R21).
//!
//! Large requests are streamed up, large replies streamed down, both with back-pressure: neither side is ever read faster
//! than the other takes it.

use std::collections::VecDeque;
use std::rc::Rc;

use bytes::{Buf, BytesMut};
use tokio::io::AsyncReadExt;
use tokio::task::yield_now;
use tokio::time::{Instant, sleep_until};

use super::dispatch::{Owned, Work};
use super::local::{Local, greeting};
use super::transaction::{
    Expect, Greeting, PubSub, Queued, Role, Subscriptions, Walk, What, confirms, is_subscription, pubsub,
};
use super::{BACKPRESSURE, Client, Session, read_some};
use crate::coherence::{Ends, Hold};
use crate::command::table::{self, Lookup};
use crate::command::{Effect, Kind, Need, Request, Spec, Why, keys};
use crate::observe::clock;
use crate::observe::reasons::{Bypass, Dropped, Flush, Peer, Source};
use crate::resp::reply::{self, Frame, FrameScanner};
use crate::resp::request::{ProtocolError, Scan};
use crate::resp::{Proto, build};
use crate::router;
use crate::upstream::Credential;
use crate::upstream::handshake::ServerInfo;
use crate::upstream::pinned::Dedicated;
use crate::worker::Ctx;

/// Bytes read from upstream or kept for it at once; what one client may have on its way.
const CHUNK: usize = 256 * 1024;

/// Key bytes remembered of one streamed request; a request that names more flushes the L1 instead.
const KEYS_MAX: usize = 1 << 20;

/// For CLIENT LIST and CLIENT UNBLOCK: what the session's own connection is doing.
#[derive(Clone, Debug, Default)]
pub(super) struct Shown {
    /// Its id upstream; 0: not pinned.
    pub(super) id: i64,
    pub(super) blocked: bool,
    /// Commands queued by MULTI; -1: no MULTI.
    pub(super) multi: i64,
    pub(super) subscriptions: Subscriptions,
    pub(super) watching: bool,
    pub(super) monitor: bool,
}

struct Pin {
    conn: Dedicated,
    scanner: FrameScanner,
    /// For upstream.
    out: BytesMut,
    expect: VecDeque<Expect>,
    /// The queue of an open MULTI.
    queue: Option<Vec<Queued>>,
    watching: bool,
    subs: Subscriptions,
    monitor: bool,
    tracking: bool,
    /// RESET has to prove it clean before somebody else may use it.
    soiled: bool,
    /// What a cacheable read here is counted as.
    bypass: Bypass,
    /// Stays pinned when nothing else asks for it.
    sticky: bool,
    /// Where its invalidations are redirected: the client's id upstream and here (which may be gone by now).
    redirect: (i64, i64),
    /// An EXEC reply that is read element by element.
    walk: Option<Walk>,
    /// Replies that wait for a hold, in order.
    staged: BytesMut,
    hold: Option<(Rc<Hold>, Instant)>,
    /// A frame too large to collect is passing through.
    streaming: bool,
    /// Its client does not want it.
    streaming_mute: bool,
    upload: Option<Upload>,
    /// A local command that waits until all before it is answered.
    local: Option<Owned>,
    /// What the client sent is no request: it is told so behind the replies it is owed, then closed.
    broken: Option<ProtocolError>,
    /// The client said QUIT.
    quit: bool,
}

/// A large request on its way up.
struct Upload {
    spec: Option<&'static Spec>,
    argc: usize,
    name: Vec<u8>,
    keys: Vec<Box<[u8]>>,
    key_bytes: usize,
    mute: bool,
}

/// What a session on its own connection starts with.
pub(super) enum First {
    Request(Owned),
    /// The large request at the front of the client's buffer.
    Large,
    /// It only has to be there, as the target of another client's CLIENT TRACKING.
    Nothing,
}

/// Why the loop ends.
enum End {
    /// The state is over; the session goes on on the lane.
    Released,
    /// The client is gone, or is to be closed.
    Close,
    /// Upstream closed the connection.
    Lost(String),
}

impl Client {
    /// Carries out what suspended the session. False: close it.
    pub(super) async fn suspended(&mut self, ctx: &Rc<Ctx>, work: Work) -> bool {
        let mut next = Some(work);
        while let Some(work) = next.take() {
            let step = match work {
                Work::AwaitLane(req) => {
                    ctx.await_lane(&self.session.lane(ctx)).await;
                    self.again(ctx, &req)
                }
                Work::Learn(req) => {
                    if !self.settled(ctx).await {
                        return false;
                    }
                    ctx.learn(&self.session.lane(ctx), req.request().arg(0)).await;
                    self.again(ctx, &req)
                }
                Work::Pinned(why, req) => {
                    if !(self.settled(ctx).await && self.pinned(ctx, why, First::Request(req)).await) {
                        return false;
                    }
                    None
                }
                Work::Large => {
                    if !(self.settled(ctx).await && self.pinned(ctx, Why::Large, First::Large).await) {
                        return false;
                    }
                    None
                }
                Work::Local(spec, req) => {
                    if !self.settled(ctx).await {
                        return false;
                    }
                    let mute = self.session.state.borrow_mut().mute();
                    match self.session.local_slow(ctx, spec, &req.request(), mute).await {
                        Local::Done => None,
                        Local::Close => {
                            self.finish(ctx).await;
                            return false;
                        }
                        Local::Upstream => {
                            self.session.unmute(mute);
                            Some(super::dispatch::Step::Suspend(Work::Pinned(Why::Verify, req)))
                        }
                    }
                }
            };
            match step {
                Some(super::dispatch::Step::Suspend(work)) => next = Some(work),
                Some(super::dispatch::Step::Close) => {
                    self.finish(ctx).await;
                    return false;
                }
                _ => {}
            }
        }
        true
    }

    /// Dispatches a request that had to wait.
    fn again(&mut self, ctx: &Rc<Ctx>, req: &Owned) -> Option<super::dispatch::Step> {
        let session = self.session.clone();
        let mut batch = super::dispatch::Batch::new(ctx, &session);
        let step = session.dispatch(ctx, &mut batch, &req.request());
        session.flush(ctx);
        step
    }

    /// Runs the session on a connection of its own, starting with `first`, until its state is over. False: close the client.
    pub(super) async fn pinned(&mut self, ctx: &Rc<Ctx>, why: Why, first: First) -> bool {
        let session = self.session.clone();
        let (mut profile, proto) = {
            let state = session.state.borrow();
            (state.profile(), state.proto)
        };
        if first.is_kill() {
            // While a script runs upstream refuses SELECT, and this command is of no database.
            profile.db = 0;
        }
        ctx.metrics.pinned.inc(why as usize);
        let conn = match ctx.pool.checkout(&profile, proto).await {
            Ok(conn) => conn,
            Err(e) => {
                if matches!(first, First::Nothing) {
                    session.redirected.set(false);
                    return true;
                }
                session.answer_error(session.state.borrow_mut().mute(), &e.reply());
                session.flush(ctx);
                // What has come with it counts on the MULTI or WATCH and must not be executed without. A client that waits for
                // its answer is told, as Redis tells it -BUSY.
                if matches!(why, Why::Transaction | Why::Watch) && !self.rbuf.is_empty() {
                    session.drop_for(ctx, Dropped::Upstream, "there is no upstream connection for its transaction");
                    self.flushed(ctx).await;
                    return false;
                }
                // The rest of a large request cannot be told from new ones without reading it.
                return matches!(first, First::Request(_));
            }
        };
        let mut pin = Pin::new(conn, why);
        match first {
            First::Request(first) => pin.request(ctx, self, &first.request()),
            First::Large => pin.upload = Some(Upload::new(self)),
            First::Nothing => {}
        }
        let end = pin.run(ctx, self).await;
        *session.pinned.borrow_mut() = Shown::default();
        let redirected = session.redirected.replace(false);
        match end {
            // Whoever redirects to it would go on sending to its next user.
            End::Released if redirected => true,
            End::Released => {
                pin.give_back(ctx);
                true
            }
            End::Close => {
                pin.abandon(ctx);
                if pin.quit {
                    self.finish(ctx).await;
                }
                false
            }
            End::Lost(why) => {
                tracing::debug!(client = %session.addr, "pinned connection lost: {why}");
                let stateful = pin.is_stateful();
                pin.fail(ctx, self);
                session.flush(ctx);
                if stateful {
                    session.drop_for(ctx, Dropped::Upstream, "its own upstream connection was lost");
                    self.flushed(ctx).await;
                }
                !stateful
            }
        }
    }

    /// Sends reads again whose replies are too large for the lane (decision 10). False: close the client.
    pub(super) async fn redo_large(&mut self, ctx: &Rc<Ctx>) -> bool {
        let session = self.session.clone();
        let redo = std::mem::take(&mut *session.redo.borrow_mut());
        let (profile, proto) = {
            let state = session.state.borrow();
            (state.profile(), state.proto)
        };
        ctx.metrics.pinned.inc(Why::Large as usize);
        let mut conn = match ctx.pool.checkout(&profile, proto).await {
            Ok(conn) => conn,
            Err(e) => {
                for r in &redo {
                    session.complete_error(ctx, r.slot, &format!("NEARSIDE upstream unavailable: {e}"));
                }
                session.flush(ctx);
                return true;
            }
        };
        let all: Vec<u8> = redo.iter().flat_map(|r| r.raw.iter().copied()).collect();
        let mut scanner = FrameScanner::new();
        let mut failed = conn.link.wr.write_all(&all).await.is_err();
        for r in &redo {
            while !failed && session.outbox.borrow().head().is_some_and(|head| head < r.slot) {
                if !self.wait(ctx, false).await || session.closing.get() {
                    return false;
                }
            }
            if !failed {
                failed = !self.stream_reply(ctx, &mut conn, &mut scanner).await;
            }
            if failed && session.closing.get() {
                return false;
            }
            if failed {
                session.complete_error(ctx, r.slot, "NEARSIDE upstream connection lost");
            } else {
                session.set_fence();
                session.finish_slot(ctx, r.slot);
            }
        }
        session.flush(ctx);
        if !failed {
            ctx.pool.give_back(conn);
        }
        true
    }

    /// Passes one reply on as it comes. False: upstream or the client is gone. What was already passed on cannot be taken
    /// back, so a reply that breaks off in the middle closes the client.
    async fn stream_reply(&mut self, ctx: &Rc<Ctx>, conn: &mut Dedicated, scanner: &mut FrameScanner) -> bool {
        let session = self.session.clone();
        let mute = session.outbox.borrow().head_is_mute();
        let mut begun = false;
        loop {
            let Ok(step) = scanner.advance(&conn.link.rbuf) else {
                session.closing.set(begun);
                return false;
            };
            let bytes = conn.link.rbuf.split_to(step.take);
            if !mute {
                session.outbox.borrow_mut().ready.extend_from_slice(&bytes);
            }
            begun |= step.take > 0;
            if step.done {
                scanner.reset();
                return true;
            }
            if session.outbox.borrow().ready.len() >= CHUNK && !self.flushed(ctx).await {
                return false;
            }
            conn.link.rbuf.reserve(CHUNK);
            let read = tokio::select! {
                read = conn.link.rd.read_buf(&mut conn.link.rbuf) => read,
                () = session.wake.called() => {
                    if session.closing.get() {
                        return false;
                    }
                    continue;
                }
            };
            match read {
                Ok(n) if n > 0 => ctx.metrics.bytes_in.add(Peer::Upstream, n as u64),
                _ => {
                    session.closing.set(begun);
                    return false;
                }
            }
            yield_now().await;
        }
    }
}

impl Pin {
    fn new(conn: Dedicated, why: Why) -> Pin {
        Pin {
            conn,
            scanner: FrameScanner::new(),
            out: BytesMut::new(),
            expect: VecDeque::new(),
            queue: None,
            watching: false,
            subs: Subscriptions::default(),
            monitor: false,
            tracking: false,
            soiled: !matches!(why, Why::Transaction | Why::Watch | Why::Blocking | Why::MayBlock | Why::Large),
            bypass: match why {
                Why::NoLane => Bypass::NoLane,
                Why::Large => Bypass::Large,
                _ => Bypass::Pinned,
            },
            sticky: matches!(why, Why::NoLane | Why::Unknown),
            redirect: (0, 0),
            walk: None,
            staged: BytesMut::new(),
            hold: None,
            streaming: false,
            streaming_mute: false,
            upload: None,
            local: None,
            broken: None,
            quit: false,
        }
    }

    /// Something that only this connection knows.
    fn is_stateful(&self) -> bool {
        self.queue.is_some()
            || self.watching
            || self.subs.any()
            || self.monitor
            || self.tracking
            || self.streaming
            || self.upload.is_some()
            || self.walk.is_some()
    }

    fn is_over(&self) -> bool {
        !self.sticky
            && self.expect.is_empty()
            && !self.is_stateful()
            && self.hold.is_none()
            && self.staged.is_empty()
            && self.out.is_empty()
            && self.local.is_none()
            && self.broken.is_none()
            && self.conn.link.rbuf.is_empty()
    }

    async fn run(&mut self, ctx: &Rc<Ctx>, client: &mut Client) -> End {
        loop {
            self.sticky |= client.session.redirected.get();
            if let Some(end) = self.read_client(ctx, client).await {
                return end;
            }
            if let Err(e) = self.conn.link.wr.drain(&mut self.out) {
                return End::Lost(e.to_string());
            }
            client.session.flush(ctx);
            self.show(client);
            if client.session.closing.get() {
                return End::Close;
            }
            if self.is_over() && !client.session.redirected.get() {
                return End::Released;
            }
            if (client.eof && self.gives_up_at_eof())
                || (ctx.draining.get() && self.expect.is_empty() && !self.subs.any())
            {
                return End::Close;
            }
            if let Some(end) = self.wait(ctx, client).await {
                return end;
            }
            if self.streaming || self.upload.is_some() {
                // A stream never waits for long, and would keep the thread to itself for megabytes on end.
                yield_now().await;
            }
        }
    }

    /// A client that has closed its side still gets what it asked for, unless that may never come.
    fn gives_up_at_eof(&self) -> bool {
        self.expect.is_empty()
            || self.subs.any()
            || self.monitor
            || self.expect.iter().any(|e| matches!(e.what, What::Blocking))
    }

    async fn wait(&mut self, ctx: &Rc<Ctx>, client: &mut Client) -> Option<End> {
        let session = client.session.clone();
        let unsent = !session.outbox.borrow().ready.is_empty();
        let from_client = !client.eof
            && self.local.is_none()
            && self.broken.is_none()
            && self.out.len() < CHUNK
            && client.rbuf.len() < CHUNK;
        let from_upstream = self.hold.is_none() && session.unsent() < BACKPRESSURE;
        session.unfinished.set(client.rbuf.len() + self.out.len() + self.staged.len() + self.conn.link.rbuf.len());
        let hold = self.hold.clone();
        let idle = ctx.config.listen.idle_timeout.filter(|_| self.is_idle());
        if self.conn.link.rbuf.capacity() - self.conn.link.rbuf.len() < 4096 {
            self.conn.link.rbuf.reserve(if self.streaming { CHUNK } else { 16 * 1024 });
        }
        tokio::select! {
            read = read_some(&mut client.rd, &mut client.rbuf, ctx), if from_client => {
                if !client.was_read(ctx, read) {
                    return Some(End::Close);
                }
            }
            read = self.conn.link.rd.read_buf(&mut self.conn.link.rbuf), if from_upstream => match read {
                Ok(0) => return Some(End::Lost("upstream closed it".to_owned())),
                Ok(n) => {
                    ctx.metrics.bytes_in.add(Peer::Upstream, n as u64);
                    if let Err(why) = self.read_upstream(ctx, client) {
                        return Some(End::Lost(why));
                    }
                }
                Err(e) => return Some(End::Lost(e.to_string())),
            },
            () = session.writable(), if unsent => {}
            _ = self.conn.link.wr.writable(), if !self.out.is_empty() => {}
            () = released(hold), if self.hold.is_some() => {
                self.hold = None;
                self.unstage(client);
                if let Err(why) = self.read_upstream(ctx, client) {
                    return Some(End::Lost(why));
                }
            }
            () = session.wake.called() => {}
            () = super::idle_for(idle), if idle.is_some() => {
                session.drop_for(ctx, Dropped::IdleTimeout, "idle for listen.idle_timeout");
            }
        }
        None
    }

    /// As in Redis: an open MULTI or WATCH does not keep a silent client, what it waits for does.
    fn is_idle(&self) -> bool {
        self.expect.is_empty() && !self.subs.any() && !self.monitor && !self.streaming && self.hold.is_none()
    }

    fn show(&self, client: &Client) {
        *client.session.pinned.borrow_mut() = Shown {
            id: self.conn.id,
            blocked: self.expect.iter().any(|e| matches!(e.what, What::Blocking)),
            multi: self.queue.as_ref().map_or(-1, |q| q.len() as i64),
            subscriptions: self.subs,
            watching: self.watching,
            monitor: self.monitor,
        };
        client.session.pin_shown.notify_waiters();
    }

    // ---- from the client ----

    /// Forwards what the client has sent, as far as it may go now.
    async fn read_client(&mut self, ctx: &Rc<Ctx>, client: &mut Client) -> Option<End> {
        loop {
            if let Some(end) = self.run_local(ctx, client).await {
                return Some(end);
            }
            // What comes after the state is over belongs on the lane (and may hit).
            if self.local.is_some()
                || self.broken.is_some()
                || self.quit
                || self.out.len() >= CHUNK
                || self.is_over()
                || client.rbuf.is_empty()
            {
                return None;
            }
            if self.upload.is_some() {
                if self.upload(ctx, client) {
                    continue;
                }
                return None;
            }
            if self.waits_for_state(client) {
                return None;
            }
            let (len, owned) = match client.scanner.scan(&client.rbuf) {
                Scan::Incomplete => return None,
                Scan::Nothing { len } => (len, None),
                Scan::Request { len } => {
                    let req = Request { raw: &client.rbuf[..len], args: client.scanner.args() };
                    (len, Some(Owned::of(&req)))
                }
                Scan::Inline { len } => {
                    let req = Request { raw: client.scanner.inline(), args: client.scanner.args() };
                    (len, Some(Owned::of(&req)))
                }
                Scan::Large => {
                    self.upload = Some(Upload::new(client));
                    continue;
                }
                Scan::Error(e) => {
                    self.broken = Some(e);
                    continue;
                }
            };
            client.rbuf.advance(len);
            if let Some(owned) = owned {
                self.request(ctx, client, &owned.request());
            }
        }
    }

    /// Whether the next request must wait, because what is outstanding decides where it belongs: after a blocking command
    /// or an EXEC the session may be free to go back to the lane, and Redis would not look at it either.
    fn waits_for_state(&self, _client: &Client) -> bool {
        match self.expect.back().map(|e| &e.what) {
            Some(What::Blocking | What::Exec(_) | What::Discard | What::Unwatch) => true,
            Some(What::Hello(_) | What::Auth(_) | What::Select(_) | What::Tracking(_)) => true,
            Some(What::Subscription { .. }) => true,
            Some(What::Command) => !self.sticky && !self.is_stateful(),
            _ => false,
        }
    }

    /// One request of the client's.
    fn request(&mut self, ctx: &Rc<Ctx>, client: &Client, req: &Request<'_>) {
        let spec = match table::lookup(req) {
            Lookup::Known(spec) => Some(spec),
            Lookup::UnknownSub => None,
            Lookup::Unknown => ctx.learned(req.arg(0)).ok(),
        };
        let session = &client.session;
        session.last_command.set(spec.map_or("unknown", |s| s.name));
        session.last.set(clock::now());
        if spec.is_none() {
            self.soiled = true;
        }
        if matches!(spec.map(|s| s.kind), Some(Kind::Get | Kind::Mget)) {
            ctx.metrics.bypass.inc(self.bypass);
        }
        let known = spec.filter(|s| keys::arity_ok(s, req.argc()));
        if let Some(why) = known.and_then(|s| self.refusal(ctx, s)) {
            let mute = session.state.borrow_mut().mute();
            build::command(&mut self.out, &[b"NEARSIDE"]);
            self.expect.push_back(Expect::of(What::Refused(why), mute));
            return;
        }
        let restricted = self.subs.any() && self.conn.proto == Proto::Resp2;
        if let Some(spec) = known.filter(|_| !restricted) {
            if self.queue.is_some() && self.stands_in(ctx, client, spec, req) {
                return;
            }
            let at_once = matches!(spec.kind, Kind::Reset | Kind::Quit);
            if at_once || (self.queue.is_none() && spec.need == Need::Local && is_own(spec)) {
                self.local = Some(Owned::of(req));
                return;
            }
        }
        if matches!(known.map(|s| s.kind), Some(Kind::Reset | Kind::Quit)) {
            self.local = Some(Owned::of(req));
            return;
        }
        if self.queue.is_none() && known.is_some_and(|s| super::inspect::redirects(ctx, s, req).is_some()) {
            // Its target may have to be given a connection first.
            self.local = Some(Owned::of(req));
            return;
        }
        self.send(ctx, client, known, req);
    }

    fn send(&mut self, ctx: &Rc<Ctx>, client: &Client, known: Option<&'static Spec>, req: &Request<'_>) {
        let mute = client.session.state.borrow_mut().mute();
        let expect = self.expectation(ctx, client, known, req, mute);
        self.translate_and_send(ctx, known, req);
        self.expect.push_back(expect);
    }

    /// What upstream must not see: what is never proxied, and inside MULTI what is the sidecar's own.
    fn refusal(&self, ctx: &Ctx, spec: &Spec) -> Option<&'static str> {
        let own = self.queue.is_some() && spec.kind == Kind::Nearside;
        let own = own.then_some("ERR NEARSIDE is not allowed inside MULTI");
        own.or_else(|| router::refused(spec, ctx.config.commands.shutdown))
    }

    /// Inside MULTI: a command that we answer ourselves is queued upstream as a PING, so that EXEC's array has its place.
    fn stands_in(&mut self, ctx: &Ctx, client: &Client, spec: &'static Spec, req: &Request<'_>) -> bool {
        let ours = spec.kind == Kind::Client && spec.need == Need::Local && super::local::answers(ctx, req, spec);
        if !ours {
            return false;
        }
        let mute = client.session.state.borrow_mut().mute();
        let role = Role::Local { raw: req.raw.to_vec(), args: req.args.to_vec() };
        let queued = Queued { spec: Some(spec), effect: Effect::Read, keys: Vec::new(), role };
        build::command(&mut self.out, &[b"PING"]);
        self.expect.push_back(Expect::of(What::Queued(queued), mute));
        true
    }

    /// What the reply to `req` will mean. The writes it may do begin here (R20).
    fn expectation(
        &mut self,
        ctx: &Rc<Ctx>,
        client: &Client,
        spec: Option<&'static Spec>,
        req: &Request<'_>,
        mute: bool,
    ) -> Expect {
        let kind = spec.map_or(Kind::Other, |s| s.kind);
        if is_subscription(kind)
            || matches!(kind, Kind::Monitor | Kind::Hello | Kind::Auth | Kind::Select | Kind::Client)
        {
            self.soiled = true;
        }
        if self.queue.is_some() {
            return self.expectation_in_multi(ctx, spec, req, mute);
        }
        let what = match kind {
            Kind::Multi => What::Multi,
            Kind::Exec => What::Exec(Vec::new()),
            Kind::Discard => What::Discard,
            Kind::Watch => What::Watch,
            Kind::Unwatch => What::Unwatch,
            Kind::Monitor => What::Monitor,
            kind if is_subscription(kind) => {
                What::Subscription { kind, left: (req.argc() > 1).then(|| req.argc() - 1) }
            }
            Kind::Hello => What::Hello(greeting(req, self.conn.proto)),
            Kind::Auth => What::Auth(credential(req)),
            Kind::Select => select_db(req).map_or(What::Command, What::Select),
            Kind::Client => match spec.map(|s| s.name) {
                Some("client|tracking") => What::Tracking(req.is(2, "on")),
                Some("client|getredir" | "client|trackinginfo") => What::Redirect,
                _ => What::Command,
            },
            Kind::BlockingPop | Kind::Wait => What::Blocking,
            _ if spec.is_some_and(|s| keys::blocks(s, req)) => What::Blocking,
            _ => What::Command,
        };
        if matches!(what, What::Multi) {
            // From here on, not from its +OK on: what the client has pipelined behind it is queued too.
            self.queue = Some(Vec::new());
        }
        let mut expect = Expect::of(what, mute);
        self.begin(ctx, client, spec, req, &mut expect);
        expect
    }

    fn begin(&self, ctx: &Rc<Ctx>, _c: &Client, spec: Option<&'static Spec>, req: &Request<'_>, expect: &mut Expect) {
        let effect = spec.map_or(Effect::Opaque, |s| s.effect);
        expect.write = effect != Effect::Read;
        if !ctx.cache_serves() {
            return;
        }
        match effect {
            Effect::Read => {}
            Effect::Flush | Effect::SwapDb => {
                flush(ctx, spec);
                expect.flush = true;
            }
            Effect::Write | Effect::Opaque => {
                let mut named: Vec<Box<[u8]>> = Vec::new();
                if let Some(spec) = spec {
                    keys::for_each(spec, req, |key| named.push(key.into()));
                }
                expect.hold = effect == Effect::Opaque;
                if matches!(expect.what, What::Blocking) {
                    expect.hold = true;
                    expect.drops = named;
                } else {
                    expect.ends = begin_all(ctx, &named);
                }
            }
        }
    }

    fn expectation_in_multi(
        &mut self,
        ctx: &Rc<Ctx>,
        spec: Option<&'static Spec>,
        req: &Request<'_>,
        mute: bool,
    ) -> Expect {
        let role = match spec.map(|s| s.kind) {
            Some(Kind::Exec) => return self.expect_exec(ctx, mute),
            Some(Kind::Discard) => {
                self.queue = None;
                return Expect::of(What::Discard, mute);
            }
            // Refused inside MULTI, by upstream's own words.
            Some(Kind::Multi | Kind::Watch) => return Expect::of(What::Command, mute),
            Some(kind) if is_subscription(kind) => Role::Subscription { kind, words: req.argc() - 1 },
            Some(Kind::Hello) => Role::Hello(greeting(req, self.conn.proto)),
            Some(Kind::Auth) => Role::Auth(credential(req)),
            Some(Kind::Select) => select_db(req).map_or(Role::Plain, Role::Select),
            Some(Kind::Client) if spec.is_some_and(|s| s.name == "client|tracking") => Role::Tracking(req.is(2, "on")),
            _ => Role::Plain,
        };
        Expect::of(What::Queued(Queued::of(spec, req, role)), mute)
    }

    /// EXEC has the union of its queue's effects. Commands whose +QUEUED has not come yet are part of it too.
    fn expect_exec(&mut self, ctx: &Rc<Ctx>, mute: bool) -> Expect {
        let mut queue = self.queue.take().unwrap_or_default();
        for waiting in &mut self.expect {
            if matches!(waiting.what, What::Queued(_))
                && let What::Queued(queued) = std::mem::replace(&mut waiting.what, What::Command)
            {
                queue.push(queued);
            }
        }
        let mut expect = Expect::of(What::Command, mute);
        expect.write = queue.iter().any(|q| q.effect != Effect::Read);
        if ctx.cache_serves() {
            let named: Vec<Box<[u8]>> = queue.iter().flat_map(|q| q.keys.iter().cloned()).collect();
            expect.ends = begin_all(ctx, &named);
            expect.hold = queue.iter().any(|q| q.effect == Effect::Opaque);
            if let Some(q) = queue.iter().find(|q| matches!(q.effect, Effect::Flush | Effect::SwapDb)) {
                flush(ctx, q.spec);
                expect.flush = true;
            }
        }
        expect.what = What::Exec(queue);
        expect
    }

    fn translate_and_send(&mut self, ctx: &Rc<Ctx>, spec: Option<&'static Spec>, req: &Request<'_>) {
        // WAIT counts from the connection's own last write; this one brings it up to the lanes' (fact 46). Inside MULTI it
        // would be an element too many, and WAIT does not wait there.
        if self.queue.is_none() && spec.is_some_and(|s| s.kind == Kind::Wait) {
            build::command(&mut self.out, &[b"PUBLISH", b"nearside:wait", b""]);
            let mut expect = Expect::of(What::Command, true);
            expect.hold = false;
            self.expect.push_back(expect);
        }
        let translated = match spec.map(|s| s.name) {
            Some("client|tracking") => super::inspect::translate_redirect(ctx, req, &mut self.redirect),
            Some("client|unblock") if self.queue.is_some() => super::inspect::translate_unblock(ctx, req),
            _ => None,
        };
        if let Some(words) = translated {
            let words: Vec<&[u8]> = words.iter().map(|w| w.as_slice()).collect();
            return build::command(&mut self.out, &words);
        }
        self.out.extend_from_slice(req.raw);
    }

    /// Runs a local command once everything before it is answered.
    async fn run_local(&mut self, ctx: &Rc<Ctx>, client: &mut Client) -> Option<End> {
        if !self.expect.is_empty() || self.hold.is_some() || self.streaming {
            return None;
        }
        if let Some(e) = self.broken.take() {
            client.session.protocol_error(ctx, &e);
            self.quit = true;
            return Some(End::Close);
        }
        let owned = self.local.take()?;
        let req = owned.request();
        let Lookup::Known(spec) = table::lookup(&req) else { return None };
        let session = client.session.clone();
        if let Some(target) = super::inspect::redirects(ctx, spec, &req) {
            target.show_pin(ctx).await;
            self.send(ctx, client, Some(spec), &req);
            return None;
        }
        let mute = session.state.borrow_mut().mute();
        match spec.kind {
            Kind::Reset => {
                session.reset(ctx);
                self.queue = None;
                self.watching = false;
                self.subs = Subscriptions::default();
                self.monitor = false;
                self.tracking = false;
                self.sticky = false;
                self.soiled = true;
                // Its protocol and user are not the session's any more; released at once.
                return Some(End::Released);
            }
            Kind::Quit => {
                session.answer(mute, |out| build::simple(out, "OK"));
                self.quit = true;
                return Some(End::Close);
            }
            _ => {}
        }
        match session.local_slow(ctx, spec, &req, mute).await {
            Local::Done => None,
            Local::Close => {
                self.quit = true;
                Some(End::Close)
            }
            Local::Upstream => {
                self.soiled = true;
                self.out.extend_from_slice(req.raw);
                self.expect.push_back(Expect::of(What::Command, mute));
                None
            }
        }
    }

    /// Moves a piece of a large request up. True: something happened.
    fn upload(&mut self, ctx: &Rc<Ctx>, client: &mut Client) -> bool {
        let Some(upload) = self.upload.as_mut() else { return false };
        let step = client.scanner.stream(&client.rbuf, &mut |i, arg| upload.saw(i, arg));
        let step = match step {
            Ok(step) => step,
            Err(e) => {
                self.broken = Some(e);
                return true;
            }
        };
        let refused = upload.spec.and_then(|spec| router::refused(spec, ctx.config.commands.shutdown));
        if let Some(why) = refused {
            // Nothing of it has been sent, and the rest of it cannot be told from new requests without reading it.
            client.session.drop_for(ctx, Dropped::Protocol, why);
            return false;
        }
        if step.done {
            // R20: the L1's side begins when the last byte is about to be sent.
            let upload = self.upload.take().expect("an upload is under way");
            let expect = self.uploaded(ctx, upload);
            self.expect.push_back(expect);
        }
        self.out.extend_from_slice(&client.rbuf[..step.take]);
        client.rbuf.advance(step.take);
        if client.rbuf.is_empty() && client.rbuf.capacity() > BACKPRESSURE {
            client.rbuf = BytesMut::new();
        }
        step.take > 0 || step.done
    }

    fn uploaded(&mut self, ctx: &Rc<Ctx>, upload: Upload) -> Expect {
        let Upload { spec, keys: named, key_bytes, mute, argc, .. } = upload;
        let effect = spec.map_or(Effect::Opaque, |s| s.effect);
        let kind = spec.map_or(Kind::Other, |s| s.kind);
        if self.queue.is_some() {
            let role = if is_subscription(kind) { Role::Subscription { kind, words: argc - 1 } } else { Role::Plain };
            return Expect::of(What::Queued(Queued { spec, effect, keys: named, role }), mute);
        }
        self.soiled |= spec.is_none_or(|s| s.need != Need::Lane);
        let what = match kind {
            kind if is_subscription(kind) => What::Subscription { kind, left: Some(argc.saturating_sub(1)) },
            Kind::BlockingPop => What::Blocking,
            _ => What::Command,
        };
        let mut expect = Expect::of(what, mute);
        expect.write = effect != Effect::Read;
        if ctx.cache_serves() && effect != Effect::Read {
            if key_bytes > KEYS_MAX || matches!(effect, Effect::Flush | Effect::SwapDb) {
                flush(ctx, spec);
                expect.flush = true;
            }
            expect.ends = begin_all(ctx, &named);
            expect.hold = effect == Effect::Opaque || matches!(expect.what, What::Blocking);
        }
        expect
    }

    // ---- from upstream ----

    fn read_upstream(&mut self, ctx: &Rc<Ctx>, client: &Client) -> Result<(), String> {
        let mut hold = false;
        while self.hold.is_none() && !self.conn.link.rbuf.is_empty() {
            if self.streaming {
                if !self.stream_on()? {
                    break;
                }
                continue;
            }
            if self.begins_walk() {
                if !self.begin_walk(ctx, client, &mut hold) {
                    break;
                }
                continue;
            }
            match self.scanner.scan(&self.conn.link.rbuf).map_err(|e| format!("garbage from upstream: {e}"))? {
                Frame::Complete { len } => {
                    let frame = self.conn.link.rbuf.split_to(len);
                    self.scanner.reset();
                    hold |= self.frame(ctx, client, &frame)?;
                }
                Frame::Incomplete => break,
                Frame::Large => {
                    hold |= self.large_frame(ctx, client);
                }
            }
        }
        client.session.set_fence();
        if hold {
            self.start_hold(ctx, client);
        }
        if self.hold.is_none() {
            self.unstage(client);
        }
        Ok(())
    }

    /// R21: one PING per lane for everything read in this turn; delivered at the last PONG, after B at the latest.
    fn start_hold(&mut self, ctx: &Rc<Ctx>, _client: &Client) {
        let hold = Rc::new(Hold::default());
        if ctx.fence_all(&hold) {
            let limit = Instant::now() + std::time::Duration::from_nanos(ctx.max_staleness);
            self.hold = Some((hold, limit));
        }
    }

    fn unstage(&mut self, client: &Client) {
        if self.staged.is_empty() {
            return;
        }
        client.session.outbox.borrow_mut().ready.extend_from_slice(&self.staged);
        if self.staged.capacity() > BACKPRESSURE {
            self.staged = BytesMut::new();
        }
        self.staged.clear();
    }

    fn deliver(&mut self, mute: bool, bytes: &[u8]) {
        if !mute {
            self.staged.extend_from_slice(bytes);
        }
    }

    /// A whole frame; true: it must be held.
    fn frame(&mut self, ctx: &Rc<Ctx>, client: &Client, frame: &[u8]) -> Result<bool, String> {
        if self.walk.is_some() {
            return Ok(self.walk_frame(ctx, client, frame));
        }
        if self.monitor && is_monitor_line(frame) {
            self.deliver(false, frame);
            return Ok(false);
        }
        let listening =
            self.subs.any() || matches!(self.expect.front().map(|e| &e.what), Some(What::Subscription { .. }));
        if frame[0] == b'>' || listening {
            match pubsub(frame) {
                Some(PubSub::Confirmation { kind, count }) => {
                    self.confirmation(ctx, kind, count, frame);
                    return Ok(false);
                }
                Some(PubSub::Message) => {
                    self.deliver(false, frame);
                    return Ok(ctx.cache_serves());
                }
                Some(PubSub::Other) => {
                    self.deliver(false, frame);
                    return Ok(false);
                }
                None => {}
            }
        }
        let Some(expect) = self.expect.pop_front() else {
            return Err("a reply from upstream that nothing asked for".to_owned());
        };
        self.answered(ctx, client, expect, frame)
    }

    fn confirmation(&mut self, ctx: &Ctx, kind: &[u8], count: i64, frame: &[u8]) {
        let mut mute = false;
        let mut done = false;
        let subs = self.subs;
        if let Some(Expect { what: What::Subscription { kind: of, left }, mute: m, .. }) = self.expect.front_mut()
            && confirms(*of, kind)
        {
            mute = *m && !ctx.server.borrow().pushes_unmuted();
            let n = left.unwrap_or_else(|| subs.confirmations(*of, 0));
            *left = Some(n.saturating_sub(1));
            done = n <= 1;
        }
        self.subs.confirmed(kind, count);
        if done {
            self.expect.pop_front();
        }
        // As a push it passes CLIENT REPLY OFF and SKIP, where upstream lets it.
        self.deliver(mute, frame);
    }

    /// The reply to the oldest command has come.
    fn answered(&mut self, ctx: &Rc<Ctx>, client: &Client, expect: Expect, frame: &[u8]) -> Result<bool, String> {
        let failed = reply::is_error(frame);
        let hold = settle(ctx, &expect) && !(matches!(expect.what, What::Blocking) && reply::is_null(frame));
        let session = &client.session;
        match expect.what {
            What::Multi if failed => self.queue = None,
            What::Queued(queued) if frame.starts_with(b"+QUEUED") => {
                if let Some(queue) = self.queue.as_mut() {
                    queue.push(queued);
                }
            }
            // Its MULTI was refused, so it was executed at once.
            What::Queued(queued) if !failed => {
                for key in &queued.keys {
                    ctx.l1.invalidate(key);
                }
            }
            What::Exec(_) => {
                // An EXEC without MULTI is an error and ends nothing; any other ends the transaction and the WATCH.
                self.watching &= frame.starts_with(b"-ERR EXEC without MULTI");
            }
            What::Discard => self.watching &= failed,
            What::Unwatch => self.watching &= failed,
            What::Watch if !failed => self.watching = true,
            What::Monitor if !failed => self.monitor = true,
            What::Tracking(on) if !failed => self.tracking = on,
            What::Hello(greeting) if !failed => {
                let own = self.said_hello(ctx, client, greeting, frame);
                self.deliver(expect.mute, &own);
                return Ok(hold);
            }
            What::Auth(credential) if !failed => {
                session.authenticated(ctx, credential);
                self.sticky = false;
            }
            What::Select(db) if !failed => {
                session.state.borrow_mut().db = db;
                session.forget_lane();
                // The other database may have a lane.
                self.sticky = false;
            }
            What::Refused(why) => {
                let mut own = BytesMut::new();
                build::error(&mut own, why);
                self.deliver(expect.mute, &own);
                return Ok(hold);
            }
            What::Redirect if !failed => {
                self.deliver(expect.mute, &super::inspect::own_redirect(ctx, frame, self.redirect));
                return Ok(hold);
            }
            What::Subscription { .. } if !failed => {
                return Err("an answer to a subscription that is none".to_owned());
            }
            _ => {}
        }
        self.deliver(expect.mute, frame);
        Ok(hold)
    }

    fn said_hello(&mut self, ctx: &Ctx, client: &Client, greeting: Greeting, frame: &[u8]) -> BytesMut {
        let Greeting { proto, credential, name } = greeting;
        self.conn.proto = proto;
        if let Some(credential) = credential {
            client.session.authenticated(ctx, credential);
            self.sticky = false;
        }
        let mut state = client.session.state.borrow_mut();
        state.proto = proto;
        if let Some(name) = name {
            state.name = name;
        }
        drop(state);
        let mut own = BytesMut::new();
        match ServerInfo::parse(frame) {
            Some(info) => super::local::hello_reply(&mut own, &info, proto, client.session.id),
            None => own.extend_from_slice(frame),
        }
        own
    }

    /// A frame too large to collect: its effects come first (the command has executed), then it passes through.
    fn large_frame(&mut self, ctx: &Rc<Ctx>, client: &Client) -> bool {
        self.streaming = true;
        self.streaming_mute = false;
        let message = self.conn.link.rbuf.first() == Some(&b'>');
        if message {
            return ctx.cache_serves();
        }
        if let Some(walk) = &self.walk {
            self.streaming_mute = walk.mute;
            self.walk.take_if(Walk::step);
            return false;
        }
        let Some(expect) = self.expect.pop_front() else { return false };
        self.streaming_mute = expect.mute;
        match expect.what {
            What::Exec(_) => self.watching = false,
            What::Queued(_) | What::Multi | What::Watch => self.soiled = true,
            _ => {}
        }
        client.session.set_fence();
        let hold = settle(ctx, &Expect { what: What::Command, ..expect });
        if hold {
            self.start_hold(ctx, client);
        }
        false
    }

    /// True: there may be more to read.
    fn stream_on(&mut self) -> Result<bool, String> {
        let step = self.scanner.advance(&self.conn.link.rbuf).map_err(|e| format!("garbage from upstream: {e}"))?;
        let bytes = self.conn.link.rbuf.split_to(step.take);
        self.deliver(self.streaming_mute, &bytes);
        if step.done {
            self.scanner.reset();
            self.streaming = false;
        }
        Ok(step.done)
    }

    // ---- EXEC, element by element ----

    fn begins_walk(&self) -> bool {
        let walks = match self.expect.front().map(|e| &e.what) {
            Some(What::Exec(queue)) => queue.iter().any(Queued::needs_walk),
            _ => false,
        };
        walks && self.walk.is_none() && self.conn.link.rbuf.first() == Some(&b'*')
    }

    /// Reads EXEC's array header. False: more bytes are needed.
    fn begin_walk(&mut self, ctx: &Rc<Ctx>, client: &Client, hold: &mut bool) -> bool {
        let Some(end) = memchr::memchr(b'\n', &self.conn.link.rbuf) else { return false };
        let header = self.conn.link.rbuf.split_to(end + 1);
        let Some(expect) = self.expect.pop_front() else { return false };
        *hold |= settle(ctx, &expect);
        client.session.set_fence();
        self.watching = false;
        self.deliver(expect.mute, &header);
        if let What::Exec(queue) = expect.what
            && !header.starts_with(b"*-")
        {
            self.walk = Some(Walk { queue: queue.into(), confirmations: None, mute: expect.mute });
        }
        true
    }

    fn walk_frame(&mut self, ctx: &Rc<Ctx>, client: &Client, frame: &[u8]) -> bool {
        let mut own = BytesMut::new();
        let subs = self.subs;
        let Some(walk) = self.walk.as_mut() else { return false };
        let mute = walk.mute && frame[0] != b'>';
        let mut next = true;
        match walk.queue.front().map(|q| &q.role) {
            Some(Role::Subscription { kind, words }) => {
                if let Some(PubSub::Confirmation { kind: of, count }) = pubsub(frame) {
                    let left = walk.confirmations.unwrap_or_else(|| subs.confirmations(*kind, *words));
                    walk.confirmations = (left > 1).then_some(left - 1);
                    next = left <= 1;
                    self.subs.confirmed(of, count);
                }
            }
            _ if frame[0] == b'>' => next = false,
            Some(Role::Local { raw, args }) => {
                let req = Request { raw, args };
                own = client.session.local_in_exec(ctx, &req);
            }
            Some(Role::Hello(greeting)) if !reply::is_error(frame) => {
                let greeting = greeting.clone();
                own = self.said_hello(ctx, client, greeting, frame);
            }
            Some(Role::Tracking(on)) if !reply::is_error(frame) => self.tracking = *on,
            Some(Role::Auth(c)) if !reply::is_error(frame) => client.session.authenticated(ctx, c.clone()),
            Some(Role::Select(db)) if !reply::is_error(frame) => {
                client.session.state.borrow_mut().db = *db;
                client.session.forget_lane();
            }
            _ => {}
        }
        let bytes: &[u8] = if own.is_empty() { frame } else { &own };
        self.deliver(mute, bytes);
        if next {
            self.walk.take_if(Walk::step);
        }
        false
    }

    // ---- the end ----

    /// The state is over: the connection goes to the pool, after RESET where its state is not known to be clean.
    fn give_back(self, ctx: &Rc<Ctx>) {
        if self.soiled {
            let ctx = ctx.clone();
            tokio::task::spawn_local(async move { ctx.pool.give_back_after_reset(self.conn).await });
        } else {
            ctx.pool.give_back(self.conn);
        }
    }

    /// The client is gone: the connection is closed, and with it what upstream blocks on for it. What was on its way may
    /// still execute (fact 43); the push then tells the lane.
    fn abandon(&mut self, ctx: &Rc<Ctx>) {
        for expect in self.expect.drain(..) {
            settle(ctx, &expect);
        }
    }

    /// The connection is gone: what is outstanding is answered with an error.
    fn fail(&mut self, ctx: &Rc<Ctx>, client: &Client) {
        self.unstage(client);
        client.session.set_fence();
        for expect in self.expect.drain(..) {
            settle(ctx, &expect);
            let text = if expect.write {
                "NEARSIDE upstream connection lost: outcome unknown"
            } else {
                "NEARSIDE upstream connection lost"
            };
            client.session.answer_error(expect.mute, text);
        }
    }
}

impl First {
    /// What ends a script that keeps upstream busy.
    fn is_kill(&self) -> bool {
        let First::Request(first) = self else { return false };
        matches!(table::lookup(&first.request()), Lookup::Known(s) if matches!(s.name, "script|kill" | "function|kill"))
    }
}

impl Session {
    /// Has this session take a connection of its own and keep it, so that upstream knows it by an id.
    async fn show_pin(&self, ctx: &Ctx) {
        self.redirected.set(true);
        self.wake.call();
        let shown = async {
            loop {
                let shown = self.pin_shown.notified();
                if self.pinned.borrow().id != 0 || self.closing.get() {
                    return;
                }
                shown.await;
            }
        };
        // Without one it is a client that upstream does not know; two that wait for each other end here too.
        let _ = tokio::time::timeout(ctx.config.upstream.connect_timeout, shown).await;
    }
}

impl Upload {
    fn new(client: &Client) -> Upload {
        Upload {
            spec: None,
            argc: client.scanner.argc_declared(),
            name: Vec::new(),
            keys: Vec::new(),
            key_bytes: 0,
            mute: client.session.state.borrow_mut().mute(),
        }
    }

    /// An argument has passed; those that may be keys are remembered.
    fn saw(&mut self, i: usize, arg: Option<&[u8]>) {
        match (i, arg) {
            (0, Some(name)) => {
                self.name = name.to_vec();
                self.spec = table::by_name(name);
            }
            (1, Some(sub)) if self.spec.is_none() => {
                let full = [&self.name, &b"|"[..], sub].concat();
                self.spec = table::by_name(&full);
            }
            _ => {}
        }
        let Some(spec) = self.spec.filter(|s| i > 0 && keys::is_key_position(s, self.argc, i)) else { return };
        match arg {
            Some(key) if spec.effect != Effect::Read => {
                self.key_bytes += key.len();
                if self.key_bytes <= KEYS_MAX {
                    self.keys.push(key.into());
                }
            }
            // A key of more than 64 KiB cannot be dropped by name.
            None => self.key_bytes = KEYS_MAX + 1,
            Some(_) => {}
        }
    }
}

/// R14 for a dedicated connection: both ends of a write, and the drops of a pop. Returns whether the reply is to be held.
fn settle(ctx: &Ctx, expect: &Expect) -> bool {
    for &stripe in expect.ends.as_slice() {
        ctx.l1.end_write(stripe);
    }
    for key in &expect.drops {
        ctx.l1.invalidate(key);
    }
    if expect.flush {
        ctx.l1.flush();
    }
    expect.hold
}

fn begin_all(ctx: &Ctx, named: &[Box<[u8]>]) -> Ends {
    ctx.metrics.invalidations.add(Source::OwnWrite, named.len() as u64);
    Ends::from_vec(named.iter().map(|key| ctx.l1.begin_write(key)).collect())
}

fn flush(ctx: &Ctx, spec: Option<&'static Spec>) {
    ctx.l1.flush();
    ctx.metrics.flushes.inc(match spec.map(|s| s.name) {
        Some("flushdb") => Flush::Flushdb,
        Some("flushall") => Flush::Flushall,
        Some("swapdb") => Flush::Swapdb,
        _ => Flush::Command,
    });
}

async fn released(hold: Option<(Rc<Hold>, Instant)>) {
    if let Some((hold, limit)) = hold {
        tokio::select! {
            () = hold.released() => {}
            () = sleep_until(limit) => {}
        }
    }
}

/// A local command that a pinned session may run without its connection. HELLO, AUTH and SELECT change the connection.
fn is_own(spec: &Spec) -> bool {
    !matches!(spec.kind, Kind::Hello | Kind::Auth | Kind::Select | Kind::Readonly)
}

fn is_monitor_line(frame: &[u8]) -> bool {
    frame.len() > 2 && frame[0] == b'+' && frame[1].is_ascii_digit() && memchr::memchr(b'[', frame).is_some()
}

fn credential(req: &Request<'_>) -> Credential {
    let user: &[u8] = if req.argc() > 2 { req.arg(1) } else { b"default" };
    Credential { user: user.into(), password: req.arg(req.argc() - 1).into() }
}

fn select_db(req: &Request<'_>) -> Option<u32> {
    u32::try_from(crate::resp::integer(req.arg(1))?).ok()
}
