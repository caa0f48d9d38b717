//! One client connection. Its task reads requests and dispatches them (`dispatch`); replies come back through the outbox,
//! written by whoever completes them. A request that needs a connection of the session's own, or an answer before the next
//! one may be looked at, *suspends* the session: what is outstanding is awaited first (R18), then `pinned` or `local` takes
//! over.

mod agent;
mod batch;
mod behind;
mod candidates;
mod counts;
mod dispatch;
mod embedded;
mod forms;
mod gate;
mod inspect;
mod invalidate;
mod local;
mod nearside;
mod outage;
mod outage_writes;
mod outbox;
mod own_keys;
mod own_names;
mod pinned;
#[cfg(any(test, feature = "bench"))]
mod probe;
mod reads;
mod relay;
mod span;
mod state;
mod top;
mod transaction;
mod writes;

use std::cell::{Cell, RefCell};
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use tokio::sync::Notify;

use crate::coherence::{Lane, Place, Redo};
use crate::command::{Spec, Why};
use crate::front::Link;
use crate::limits;
use crate::net::{ReadHalf, Stream, WriteHalf, read_some};
use crate::observe::clock;
use crate::observe::costs::Meter;
use crate::observe::log;
use crate::observe::patterns::PatternId;
use crate::observe::reasons::{Dropped, ErrorType, Operation, Peer, RunEnd, Timed};
use crate::observe::runs::{End, Run};
use crate::observe::slow_log::Slow;
use crate::observe::stamp;
use crate::resp::Proto;
use crate::resp::build;
use crate::resp::downgrade::Form;
use crate::resp::request::Scanner;
use crate::wake::Wake;
use crate::worker::Ctx;

pub(crate) use embedded::tick;
pub(crate) use gate::InForce;
pub(crate) use nearside::with_own_info;
#[cfg(any(test, feature = "bench"))]
pub(crate) use probe::Probe;
pub(crate) use span::start;

use dispatch::{Owned, Step};
use local::Local;
use outbox::{Family, Outbox};
use pinned::First;
use state::State;

/// A client whose replies it does not read is not read either, from so many bytes on: what is queued then is at most this
/// and what its requests in flight bring.
const BACKPRESSURE: usize = 1 << 20;

/// Requests of one client that may be outstanding; more wait in its socket.
const OUTSTANDING_MAX: usize = 10_000;

/// One client.
pub(crate) struct Session {
    pub(crate) id: u64,
    /// As CLIENT LIST shows them.
    pub(crate) addr: String,
    pub(crate) laddr: String,
    /// Loopback or unix socket: what `protected` and `admin.resp: auto` ask.
    pub(crate) near: bool,
    pub(crate) unix: bool,
    /// The address it came in by, as configured; none: the unix socket.
    listener: Option<SocketAddr>,
    pub(crate) since: u64,
    writer: RefCell<Option<Rc<WriteHalf>>>,
    outbox: RefCell<Outbox>,
    state: RefCell<State>,
    /// R21: no hit whose lane has not proved something newer than this.
    pub(crate) fence: Cell<u64>,
    /// It has been told something of upstream's data, over its lane or from the L1: a change of profile is to fence that.
    told: Cell<bool>,
    /// Outstanding commands that forbid hits (R22).
    blockers: Cell<u32>,
    /// Hashes of keys that outstanding commands name, six bits each (R22).
    named: Cell<u64>,
    /// A split MGET is outstanding, which may have to be read again: nothing may be sent behind it (R26).
    halted: Cell<bool>,
    /// What is outstanding was sent on the spare connection of the session's lane (R18).
    on_spare: Cell<bool>,
    /// Bytes of replies that are held back.
    held: Cell<usize>,
    dirty: Cell<bool>,
    /// Bytes of requests that are not dispatched yet.
    unfinished: Cell<usize>,
    /// The task waits for the outbox to empty or to shrink.
    waiting: Cell<bool>,
    /// The state asks for more than the hot path knows: muted replies, or protected mode.
    special: Cell<bool>,
    closing: Cell<bool>,
    /// The client has closed its side while a command that takes long was running.
    left: Cell<bool>,
    redo: RefCell<Vec<Redo>>,
    /// What it has waited for while its lane recovers.
    place: RefCell<Option<Place>>,
    /// Wakes the session's task.
    pub(crate) wake: Wake,
    lane: RefCell<Option<Rc<Lane>>>,
    /// For CLIENT LIST: when it last asked, what, and where it is pinned.
    last: Cell<u64>,
    last_command: Cell<&'static str>,
    pinned: RefCell<pinned::Shown>,
    /// A client's CLIENT TRACKING is redirected here: the session keeps a connection of its own, by whose id upstream knows it.
    redirected: Cell<bool>,
    /// Tells that `pinned` has an id now.
    pin_shown: Notify,
    /// The client's socket is another worker's.
    agent: Option<agent::Agent>,
    /// Where the local engine is the backend: its open transaction, and what it costs.
    seat: RefCell<embedded::Seat>,
    /// What it has done so far, for the side port to look at.
    run: Arc<Run>,
    /// How it ends, once that is known.
    end: Cell<Option<End>>,
    /// What the command policy says of it, once it was asked.
    gate: RefCell<Option<Rc<gate::Gate>>>,
    /// From when on its next request may go, by a rate limit; 0: not asked yet.
    due: Cell<u64>,
    /// What it saves and spends.
    meter: Arc<Meter>,
    /// That of the last key that went by the cache: most likely the next one's.
    family: Cell<PatternId>,
}

impl Session {
    pub(crate) fn new(ctx: &Ctx, stream: Stream, peer: Peering) -> (Rc<Session>, ReadHalf) {
        let (rd, wr) = stream.split();
        let now = clock::now();
        let id = ctx.next_session();
        let (run, saved) =
            (peer.link.as_ref().map(|link| link.tally.clone()), peer.link.as_ref().map(|link| link.saved.clone()));
        let session = Session {
            id,
            run: ctx.metrics.runs.begin(id, &peer.addr, run),
            meter: ctx.metrics.costs.meter(id, &peer.addr, saved),
            end: Cell::new(None),
            addr: peer.addr,
            laddr: peer.laddr,
            near: peer.near,
            unix: peer.unix,
            listener: peer.listener,
            since: now,
            writer: RefCell::new(Some(Rc::new(wr))),
            outbox: RefCell::new(Outbox::new(ctx.metrics.reply_sizes.clone())),
            state: RefCell::new(State::new(&ctx.default_profile, ctx.locks_out(peer.near))),
            fence: Cell::new(0),
            told: Cell::new(false),
            blockers: Cell::new(0),
            named: Cell::new(0),
            halted: Cell::new(false),
            on_spare: Cell::new(false),
            held: Cell::new(0),
            dirty: Cell::new(false),
            unfinished: Cell::new(0),
            waiting: Cell::new(false),
            special: Cell::new(ctx.locks_out(peer.near)),
            closing: Cell::new(false),
            left: Cell::new(false),
            redo: RefCell::default(),
            place: RefCell::default(),
            wake: Wake::default(),
            lane: RefCell::new(None),
            last: Cell::new(now),
            last_command: Cell::new("NULL"),
            pinned: RefCell::default(),
            redirected: Cell::new(false),
            pin_shown: Notify::new(),
            agent: peer.link.map(agent::Agent::new),
            seat: RefCell::default(),
            gate: RefCell::default(),
            due: Cell::new(0),
            family: Cell::new(PatternId::OTHER),
        };
        (Rc::new(session), rd)
    }

    /// A reply of upstream's (RESP3) for `slot`.
    pub(crate) fn complete(self: &Rc<Self>, ctx: &Ctx, slot: u64, frame: &[u8], form: Form) {
        self.complete_of(ctx, slot, frame, form, frame.len());
    }

    /// The same, where upstream's own reply had so many bytes.
    pub(crate) fn complete_of(self: &Rc<Self>, ctx: &Ctx, slot: u64, frame: &[u8], form: Form, bytes: usize) {
        self.told.set(true);
        let own = self.own_reply(ctx, slot, frame);
        let frame = own.as_deref().unwrap_or(frame);
        let done = self.outbox.borrow_mut().complete(slot, frame, form);
        if done.as_ref().is_some_and(|done| done.failed) && frame.starts_with(b"-OOM") {
            ctx.metrics.errors.inc(ErrorType::Oom);
        }
        self.completed(ctx, done, Some(bytes));
    }

    /// The reply for `slot` has already been passed on as it came.
    fn finish_slot(self: &Rc<Self>, ctx: &Ctx, slot: u64) {
        let done = self.outbox.borrow_mut().complete_raw(slot, &[]);
        self.completed(ctx, done, Some(0));
    }

    /// True the first time in a batch.
    pub(crate) fn becomes_dirty(&self) -> bool {
        !self.dirty.replace(true)
    }

    /// An error of our own for `slot`.
    pub(crate) fn complete_error(self: &Rc<Self>, ctx: &Ctx, slot: u64, error: &str) {
        let mut bytes = BytesMut::new();
        build::error(&mut bytes, error);
        let done = self.outbox.borrow_mut().complete_raw(slot, &bytes);
        self.completed(ctx, done, None);
    }

    /// `slot` is answered by what another request has asked for, or from before an outage: upstream is not asked for it.
    pub(crate) fn asks_nothing(&self, slot: u64) {
        self.outbox.borrow_mut().free(slot);
    }

    /// An answer of our own for `slot`, in the client's form.
    pub(crate) fn complete_here(self: &Rc<Self>, ctx: &Ctx, slot: u64, bytes: &[u8]) {
        let done = self.outbox.borrow_mut().complete_raw(slot, bytes);
        self.completed(ctx, done, None);
    }

    /// `bytes`: of upstream's reply; none: it is an error of ours.
    fn completed(self: &Rc<Self>, ctx: &Ctx, done: Option<outbox::Completed>, bytes: Option<usize>) {
        let Some(done) = done else { return };
        if let Some((pattern, bytes)) = done.asked.payer.zip(bytes) {
            ctx.metrics.patterns.fetched(pattern, bytes as u64);
            self.meter.spent.add(1, bytes as u64, 0);
            ctx.metrics.arms.fetched(done.asked.arm, bytes as u64);
        }
        let timed = if done.failed { done.asked.failed } else { done.asked.ok };
        let now = ctx.now.get();
        let took = now.saturating_sub(done.asked.at);
        ctx.metrics.request(timed, took);
        if ctx.metrics.slow.is_slow(took) {
            let (class, at) = (timed.class(), stamp::unix_ms());
            let command = done.asked.command;
            let pattern = match &done.asked.family {
                Family::Known(pattern) => *pattern,
                Family::Of(key) => ctx.family(key.key()),
            };
            log::slow(class, command, ctx.metrics.patterns.name(pattern), took);
            ctx.metrics.slow.note(Slow { at, class, command, pattern, nanos: took });
        }
        if done.failed {
            ctx.metrics.failed.inc();
            self.run.errors.inc();
        } else if timed == Timed::ReadMiss {
            self.run.misses.inc();
        }
        if done.asked.arm.is_some() {
            ctx.metrics.arms.answered(done.asked.arm, now, took, done.failed);
        }
        if done.unblocked {
            self.blockers.set(self.blockers.get() - 1);
        }
        if self.outbox.borrow().outstanding() == 0 {
            self.named.set(0);
            self.halted.set(false);
            self.on_spare.set(false);
        }
        ctx.mark_dirty(self);
    }

    /// Once per batch, by whoever has completed something for this client: writes, and wakes the client's own task where
    /// that has to go on.
    pub(crate) fn flush_for(self: &Rc<Self>, ctx: &Ctx) {
        self.flush(ctx);
        if self.waiting.get() || !self.outbox.borrow().ready.is_empty() {
            self.wake.call();
        }
    }

    /// Writes what the client's socket takes now.
    fn flush(self: &Rc<Self>, ctx: &Ctx) {
        self.dirty.set(false);
        if let Some(agent) = &self.agent {
            agent.grant(ctx, self);
        }
        let mut outbox = self.outbox.borrow_mut();
        let writer = self.writer.borrow();
        let Some(writer) = writer.as_ref() else {
            return outbox.clear();
        };
        match writer.drain(&mut outbox.ready) {
            Ok(sent) => {
                ctx.metrics.bytes_out.add(Peer::Client, sent as u64);
                self.run.bytes_out.add(sent as u64);
            }
            Err(_) => {
                self.ends(End::Client(RunEnd::Reset));
                self.closing.set(true);
                self.wake.call();
            }
        }
        let left = outbox.bytes() + self.held.get();
        if left == 0 && outbox.ready.capacity() > 4 * BACKPRESSURE {
            outbox.ready = BytesMut::new();
        }
        if left > ctx.config.listen.output_limit {
            drop(outbox);
            return self.drop_for(ctx, Dropped::OutputLimit, "it did not read its replies (listen.output_limit)");
        }
        drop(outbox);
        if left > BACKPRESSURE {
            ctx.check_buffers();
        }
    }

    /// Bytes of replies kept for this client.
    fn unsent(&self) -> usize {
        self.outbox.borrow().bytes() + self.held.get()
    }

    /// All bytes kept for this client: replies it has not taken, requests it has not finished.
    pub(crate) fn buffered(&self) -> usize {
        self.unsent() + self.unfinished.get() + self.agent.as_ref().map_or(0, agent::Agent::buffered)
    }

    /// A reply of so many bytes is held back for this client.
    pub(crate) fn keeps(self: &Rc<Self>, ctx: &Ctx, bytes: usize) {
        self.held.set(self.held.get() + bytes);
        if self.unsent() > ctx.config.listen.output_limit {
            self.drop_for(ctx, Dropped::OutputLimit, "replies held for it are more than listen.output_limit");
        }
    }

    /// It is held back no longer.
    pub(crate) fn kept(&self, bytes: usize) {
        self.held.set(self.held.get() - bytes);
    }

    /// Ends the connection because of what it would cost to go on.
    pub(crate) fn drop_client(self: &Rc<Self>, ctx: &Ctx, why: &str) {
        self.drop_for(ctx, Dropped::BuffersMax, why);
    }

    pub(crate) fn drop_for(self: &Rc<Self>, ctx: &Ctx, cause: Dropped, why: &str) {
        if !self.closing.replace(true) {
            tracing::info!(client = %self.addr, id = self.id, "client dropped: {why}");
            ctx.metrics.clients_dropped.inc(cause);
            self.ends(End::Here(cause));
        }
        self.wake.call();
    }

    /// Decision 10: these reads are to be sent again on a connection of the session's own, before anything else.
    pub(crate) fn redo(&self, redo: Vec<Redo>) {
        self.redo.borrow_mut().extend(redo);
        self.wake.call();
    }

    /// All that is outstanding, in these slots, was sent again on the spare connection: no hit meanwhile (R22).
    pub(crate) fn moved_to_spare(&self, slots: &[u64]) {
        self.on_spare.set(true);
        let mut outbox = self.outbox.borrow_mut();
        let blocked = slots.iter().filter(|slot| outbox.block(**slot)).count();
        self.blockers.set(self.blockers.get() + u32::try_from(blocked).unwrap_or(u32::MAX));
    }

    /// The spare connection has ended; what was outstanding there is on the lane again.
    pub(crate) fn leaves_spare(&self) {
        self.on_spare.set(false);
        self.set_fence();
    }

    pub(crate) fn set_fence(&self) {
        self.fence.set(clock::now());
    }

    pub(crate) fn profile(&self) -> crate::upstream::Profile {
        self.state.borrow().profile()
    }

    /// A request that is no hit has been looked at.
    fn count(&self, ctx: &Ctx, what: Operation) {
        ctx.metrics.operations.inc(what);
        self.run.commands.inc();
    }

    /// Why it ends; the first reason is the one.
    fn ends(&self, why: End) {
        self.end.set(self.end.get().or(Some(why)));
    }

    /// Who it is may have changed.
    fn introduce(&self) {
        let state = self.state.borrow();
        let before = self.run.who();
        self.run.call(Some(&state.name), state.authenticated.then(|| state.user()));
        span::introduce(&before, &self.run.who());
    }

    fn proto(&self) -> Proto {
        self.state.borrow().proto
    }

    /// Appends an answer of our own.
    fn answer(&self, mute: bool, write: impl FnOnce(&mut BytesMut)) {
        self.outbox.borrow_mut().push(mute, write);
    }

    fn answer_error(&self, mute: bool, text: &str) {
        self.run.errors.inc();
        self.answer(mute, |out| build::error(out, text));
    }

    /// The client's socket is closed at once, whoever still holds this session.
    fn close(&self) {
        self.closing.set(true);
        self.writer.borrow_mut().take();
        self.outbox.borrow_mut().clear();
    }

    async fn writable(&self) {
        let writer = self.writer.borrow().clone();
        if let Some(writer) = writer {
            // An error shows at the next write.
            let _ = writer.writable().await;
        }
    }
}

/// Who is at the other end.
pub(crate) struct Peering {
    pub(crate) addr: String,
    pub(crate) laddr: String,
    pub(crate) near: bool,
    pub(crate) unix: bool,
    pub(crate) listener: Option<SocketAddr>,
    /// Where the socket is another worker's: what is shared with that.
    pub(crate) link: Option<Arc<Link>>,
}

/// What the task of a session owns alone.
struct Client {
    session: Rc<Session>,
    rd: ReadHalf,
    rbuf: BytesMut,
    scanner: Scanner,
    /// The client has closed its side: what it asked is answered, then we close.
    eof: bool,
    /// A rate limit holds its next request back until then.
    paced: Option<u64>,
}

/// The task of one client, from accept to close.
async fn run(ctx: Rc<Ctx>, session: Rc<Session>, rd: ReadHalf) {
    let scanner = Scanner::new(limits::BULK_MAX, ctx.config.listen.query_limit);
    let mut client = Client { session: session.clone(), rd, rbuf: BytesMut::new(), scanner, eof: false, paced: None };
    client.serve(&ctx).await;
    session.leaves_embedded(&ctx);
    session.introduce();
    let drained = ctx.draining.get() && !client.eof;
    session.ends(if drained { End::Here(Dropped::Drain) } else { End::Client(RunEnd::Closed) });
    if let Some(end) = session.end.get() {
        span::closed(&session, end.as_str());
        ctx.metrics.runs.end(&session.run, end);
    }
    ctx.sessions.borrow_mut().remove(&session.id);
    session.close();
    ctx.count_clients();
}

impl Client {
    async fn serve(&mut self, ctx: &Rc<Ctx>) {
        loop {
            if self.session.closing.get() {
                return;
            }
            if !self.session.redo.borrow().is_empty() {
                if !self.redo_large(ctx).await {
                    return;
                }
                continue;
            }
            if self.session.redirected.get() {
                if let Some(agent) = &self.session.agent {
                    agent.revoke();
                }
                if !(self.settled(ctx).await && self.pinned(ctx, Why::Tracking, First::Nothing).await) {
                    return;
                }
                continue;
            }
            let step = self.process(ctx);
            self.paced = if let Step::Paced(until) = step { Some(until) } else { None };
            let resting = matches!(step, Step::NeedInput) && self.rbuf.is_empty() && !self.eof;
            self.session.comes_to_rest(resting, &self.rd);
            self.session.flush(ctx);
            let go_on = match step {
                // The flush has made room: nobody else would wake us.
                Step::Throttled if !self.session.is_throttled() => {
                    tokio::task::yield_now().await;
                    true
                }
                Step::NeedInput => self.wait(ctx, true).await,
                Step::Throttled | Step::LaneFull | Step::Paced(_) => self.wait(ctx, false).await,
                Step::Close => {
                    self.finish(ctx).await;
                    false
                }
                Step::Suspend(work) => self.suspended(ctx, work).await,
            };
            if !go_on {
                return;
            }
        }
    }

    /// Waits until there is something to do. False when the client is gone.
    async fn wait(&mut self, ctx: &Rc<Ctx>, want_input: bool) -> bool {
        let session = self.session.clone();
        let (unsent, outstanding) = {
            let outbox = session.outbox.borrow();
            (!outbox.ready.is_empty(), outbox.outstanding())
        };
        // What is left of a request at the end of the stream is no request.
        let nothing_to_come = self.eof || (ctx.draining.get() && self.rbuf.is_empty());
        if want_input && nothing_to_come && outstanding == 0 && !unsent {
            return false;
        }
        session.unfinished.set(self.rbuf.len() + session.seat.borrow().bytes());
        let may_read = want_input && !self.eof && session.unsent() < BACKPRESSURE;
        session.waiting.set(!may_read || ctx.draining.get());
        let rest = session.rests(ctx, may_read && self.rbuf.is_empty(), &self.rd);
        // Who is held back is not idle.
        let idle =
            ctx.config.listen.idle_timeout.filter(|_| self.paced.is_none()).map(|limit| session.idle_left(limit));
        // In order, without drawing lots: whatever is ready here, `serve` looks at everything next.
        let go_on = tokio::select! {
            biased;
            () = session.wake.called() => true,
            read = read_some(&mut self.rd, &mut self.rbuf, &ctx.scratch), if may_read => self.was_read(ctx, read),
            () = session.writable(), if unsent => {
                session.flush(ctx);
                true
            }
            () = until(self.paced), if self.paced.is_some() => true,
            () = idle_for(idle), if idle.is_some() => {
                // Replies do not wake this task, so what is outstanding is asked now.
                let limit = ctx.config.listen.idle_timeout.unwrap_or_default();
                let is_idle = session.outbox.borrow().outstanding() == 0
                    && !session.was_answered_within(limit)
                    && !session.pinned.borrow().subscriptions.any();
                if is_idle {
                    session.drop_for(ctx, Dropped::IdleTimeout, "idle for listen.idle_timeout");
                }
                !is_idle
            }
        };
        session.waiting.set(false);
        drop(rest);
        go_on
    }

    fn was_read(&mut self, ctx: &Ctx, read: io::Result<usize>) -> bool {
        match read {
            Ok(0) => {
                self.eof = true;
                true
            }
            Ok(n) => {
                ctx.metrics.bytes_in.add(Peer::Client, n as u64);
                self.session.run.bytes_in.add(n as u64);
                true
            }
            Err(_) => {
                self.session.ends(End::Client(RunEnd::Reset));
                false
            }
        }
    }

    /// A local command that asks upstream. What the client sends meanwhile is read, so that its leaving is noticed.
    async fn local_slow(&mut self, ctx: &Rc<Ctx>, spec: &'static Spec, req: &Owned, mute: bool) -> Local {
        let session = self.session.clone();
        let request = req.request();
        let mut slow = std::pin::pin!(session.local_slow(ctx, spec, &request, mute));
        loop {
            let may_read = !self.eof && self.rbuf.len() < BACKPRESSURE;
            tokio::select! {
                biased;
                done = &mut slow => return done,
                read = read_some(&mut self.rd, &mut self.rbuf, &ctx.scratch), if may_read => {
                    self.eof |= !self.was_read(ctx, read);
                    session.left.set(self.eof);
                }
            }
        }
    }

    /// Waits until everything asked so far is answered (R18). False when the client is gone.
    async fn settled(&mut self, ctx: &Rc<Ctx>) -> bool {
        while self.session.outbox.borrow().outstanding() > 0 {
            if self.session.closing.get() {
                return false;
            }
            if !self.session.redo.borrow().is_empty() {
                if !self.redo_large(ctx).await {
                    return false;
                }
                continue;
            }
            if !self.wait(ctx, false).await {
                return false;
            }
        }
        !self.session.closing.get()
    }

    /// Lets everything that is owed reach the client, for a moment, before the connection is closed.
    async fn finish(&mut self, ctx: &Rc<Ctx>) {
        /// A client that asked to be closed and does not read is not waited for longer.
        const LINGER: Duration = Duration::from_secs(1);
        let session = self.session.clone();
        let all_sent = async {
            if self.settled(ctx).await {
                self.flushed(ctx).await;
            }
        };
        if tokio::time::timeout(LINGER, all_sent).await.is_err() {
            tracing::debug!(id = session.id, "closed with replies unsent");
        }
    }

    /// Waits until the client has taken all that is ready.
    async fn flushed(&mut self, ctx: &Rc<Ctx>) -> bool {
        let session = self.session.clone();
        loop {
            session.flush(ctx);
            if session.closing.get() {
                return false;
            }
            if session.outbox.borrow().ready.is_empty() {
                return true;
            }
            tokio::select! {
                () = session.writable() => {}
                () = session.wake.called() => {}
            }
        }
    }
}

/// A timer is only made where one is wanted: `select!` evaluates its futures also where their condition does not hold.
async fn idle_for(limit: Option<Duration>) {
    if let Some(limit) = limit {
        tokio::time::sleep(limit).await;
    }
}

/// The same for a time of `clock`.
async fn until(due: Option<u64>) {
    idle_for(due.map(|due| Duration::from_nanos(due.saturating_sub(clock::now())))).await;
}
