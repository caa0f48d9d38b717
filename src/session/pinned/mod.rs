//! A session on an upstream connection of its own (R19): bytes are relayed in both directions, in the client's own
//! protocol, while this file keeps track of when the state that needed the connection is over. The L1 is bypassed
//! meanwhile, and every reply moves the session's fence (R21).
//!
//! Large requests are streamed up, large replies streamed down, both with back-pressure: neither side is ever read faster
//! than the other takes it.

mod exec;
mod explain;
mod from_client;
mod from_upstream;
mod own_names;
mod redo;
mod upload;

use explain::{Asked, is_new};
use upload::Upload;

use std::collections::VecDeque;
use std::rc::Rc;

use bytes::BytesMut;
use tokio::io::AsyncReadExt;
use tokio::task::yield_now;
use tokio::time::{Instant, sleep_until};

use crate::coherence::{self, Ends, Hold, Op};
use crate::command::strip::Stripper;
use crate::command::table::{self, Lookup};
use crate::command::{Request, Spec, Why};
use crate::net::read_some;
use crate::observe::clock;
use crate::observe::reasons::{Bypass, Dropped, Flush, Peer, Source, Timed};
use crate::resp::reply::FrameScanner;
use crate::resp::request::ProtocolError;
use crate::session::batch::Batch;
use crate::session::dispatch::{Owned, Step, Work};
use crate::session::local::Local;
use crate::session::transaction::{Expect, Queued, Subscriptions, Walk, What};
use crate::session::{BACKPRESSURE, Client, Session};
use crate::upstream::pinned::Dedicated;
use crate::worker::Ctx;

/// Bytes read from upstream or kept for it at once; what one client may have on its way.
const CHUNK: usize = 256 * 1024;

/// Key bytes remembered of one streamed request; a request that names more flushes the L1 instead.
const KEYS_MAX: usize = 1 << 20;

/// For CLIENT LIST and CLIENT UNBLOCK: what the session's own connection is doing.
#[derive(Clone, Debug, Default)]
pub(in crate::session) struct Shown {
    /// Its id upstream; 0: not pinned.
    pub(super) id: i64,
    pub(super) blocked: bool,
    /// Commands queued by MULTI; -1: no MULTI.
    pub(super) multi: i64,
    pub(super) subscriptions: Subscriptions,
    pub(super) watching: bool,
    pub(super) monitor: bool,
}

/// How a request is taken up that had to wait.
type Dispatch = fn(&Rc<Session>, &Rc<Ctx>, &mut Batch, &Request<'_>) -> Option<Step>;

/// Why the client is told something and closed, behind the replies it is owed.
enum Broken {
    /// What it sent is no request.
    Protocol(ProtocolError),
    /// It may not have sent this, and part of it is upstream already, which waits for the rest.
    Refused(String),
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
    /// RESET does not clear it, so nobody else may use it: upstream's table of tracked keys knows its id, its scripts run in
    /// the debugger, or it has said what nobody here knows.
    spent: bool,
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
    /// Bytes of the reply that is being delivered.
    size: usize,
    /// Messages that go out before what is staged is passed on (`pubsub` mode).
    tells: Vec<Box<[u8]>>,
    hold: Option<(Rc<Hold>, Instant)>,
    /// A frame too large to collect is passing through.
    streaming: bool,
    /// Its client does not want it.
    streaming_mute: bool,
    /// It names keys (`upstream.key_prefix`).
    stripper: Option<Stripper>,
    upload: Option<Upload>,
    /// A local command that waits until all before it is answered.
    local: Option<Owned>,
    broken: Option<Broken>,
    /// A rate limit holds the client's next request back until then.
    paced: Option<u64>,
    /// A name that upstream is being asked about, because the command policy has to know it.
    asked: Option<Asked>,
    /// The client said QUIT.
    quit: bool,
}

/// What a session on its own connection starts with.
pub(in crate::session) enum First {
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
    pub(in crate::session) async fn suspended(&mut self, ctx: &Rc<Ctx>, work: Work) -> bool {
        let mut next = Some(work);
        while let Some(work) = next.take() {
            let step = match work {
                Work::AwaitLane(req) => {
                    ctx.await_lane(&self.session.lane(ctx)).await;
                    self.again(ctx, &req, Session::dispatch_again)
                }
                Work::Settle(req) => {
                    if !self.settled(ctx).await {
                        return false;
                    }
                    self.again(ctx, &req, Session::dispatch_again)
                }
                Work::Refill(req) => match self.await_place(ctx).await {
                    true => {
                        let step = self.again(ctx, &req, Session::dispatch_again);
                        self.session.place.take();
                        step
                    }
                    false => None,
                },
                Work::Learn(req) => {
                    if !self.settled(ctx).await {
                        return false;
                    }
                    self.learn(ctx, &req).await
                }
                Work::Pinned(why, req) => {
                    if !(self.settled(ctx).await && self.pinned(ctx, why, First::Request(req)).await) {
                        return false;
                    }
                    None
                }
                Work::Announce(applied, spec, req) => {
                    applied.done(ctx).await;
                    let step = self.session.announced(ctx, &req.request(), spec);
                    self.session.flush(ctx);
                    step
                }
                Work::Large => {
                    self.explained_large(ctx).await;
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
                    let done = self.local_slow(ctx, spec, &req, mute).await;
                    self.session.introduce();
                    match done {
                        Local::Done => None,
                        Local::Close => {
                            self.finish(ctx).await;
                            return false;
                        }
                        Local::Upstream => {
                            self.session.unmute(mute);
                            Some(Step::Suspend(Work::Pinned(Why::Verify, req)))
                        }
                    }
                }
            };
            match step {
                Some(Step::Suspend(work)) => next = Some(work),
                Some(Step::Close) => {
                    self.finish(ctx).await;
                    return false;
                }
                _ => {}
            }
        }
        true
    }

    /// Asks upstream what a name is, and looks at the request once more.
    async fn learn(&mut self, ctx: &Rc<Ctx>, req: &Owned) -> Option<Step> {
        let lane = self.session.lane(ctx);
        // Without a prefix no name is asked about before there is somebody to ask.
        ctx.await_lane(&lane).await;
        ctx.learn(&lane, req.request().arg(0)).await;
        // Only now can the command policy be asked.
        self.again(ctx, req, if ctx.prefix.is_none() { Session::dispatch } else { Session::receive_learned })
    }

    /// Dispatches a request that had to wait.
    fn again(&mut self, ctx: &Rc<Ctx>, req: &Owned, dispatch: Dispatch) -> Option<Step> {
        let session = self.session.clone();
        let mut batch = Batch::new(ctx, &session);
        let step = dispatch(&session, ctx, &mut batch, &req.request());
        session.flush(ctx);
        step
    }

    /// Runs the session on a connection of its own, starting with `first`, until its state is over. False: close the client.
    pub(in crate::session) async fn pinned(&mut self, ctx: &Rc<Ctx>, why: Why, first: First) -> bool {
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
        let conn = match ctx.checkout(&profile, proto).await {
            Ok(conn) => conn,
            Err(none) => {
                if matches!(first, First::Nothing) {
                    session.redirected.set(false);
                    return true;
                }
                if none.outage && session.closes_in_outage(ctx) {
                    self.flushed(ctx).await;
                    return false;
                }
                session.answer_error(session.state.borrow_mut().mute(), &none.text);
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
        // A client may redirect to itself.
        pin.show(self);
        match first {
            First::Request(first) => pin.first(ctx, self, &first.request()),
            First::Large => pin.upload = Some(Upload::new(ctx, self)),
            First::Nothing => {}
        }
        let end = pin.run(ctx, self).await;
        *session.pinned.borrow_mut() = Shown::default();
        // Whoever redirects to it would go on sending to its next user.
        pin.spent |= session.redirected.replace(false);
        match end {
            End::Released => {
                pin.give_back(ctx);
                true
            }
            End::Close => {
                pin.abandon(ctx, &session);
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
            spent: false,
            bypass: match why {
                Why::NoLane => Bypass::NoLane,
                Why::Large => Bypass::Large,
                _ => Bypass::Pinned,
            },
            sticky: matches!(why, Why::NoLane | Why::Unknown),
            redirect: (0, 0),
            walk: None,
            staged: BytesMut::new(),
            size: 0,
            tells: Vec::new(),
            hold: None,
            streaming: false,
            streaming_mute: false,
            stripper: None,
            upload: None,
            local: None,
            broken: None,
            paced: None,
            asked: None,
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
            if (client.eof && self.gives_up_at_eof(client))
                || (ctx.draining.get() && self.owes_nothing(client) && !self.subs.any())
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

    /// Everything asked for is answered, and the client has it: nothing is held back, half streamed or unwritten.
    fn owes_nothing(&self, client: &Client) -> bool {
        self.expect.is_empty()
            && self.hold.is_none()
            && self.staged.is_empty()
            && !self.streaming
            && self.walk.is_none()
            && client.session.outbox.borrow().ready.is_empty()
    }

    /// A client that has closed its side still gets what it asked for, unless that may never come.
    fn gives_up_at_eof(&self, client: &Client) -> bool {
        self.owes_nothing(client)
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
            && self.paced.is_none()
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
            read = read_some(&mut client.rd, &mut client.rbuf, &ctx.scratch), if from_client => {
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
                if self.hold.take().is_some_and(|(hold, _)| !hold.is_released()) {
                    ctx.raise_floor();
                }
                self.unstage(client);
                if let Err(why) = self.read_upstream(ctx, client) {
                    return Some(End::Lost(why));
                }
            }
            () = session.wake.called() => {}
            () = super::until(self.paced), if self.paced.is_some() => {}
            () = super::idle_for(idle), if idle.is_some() => {
                session.drop_for(ctx, Dropped::IdleTimeout, "idle for listen.idle_timeout");
            }
        }
        None
    }

    /// As in Redis: an open MULTI or WATCH does not keep a silent client, what it waits for does.
    fn is_idle(&self) -> bool {
        let waits = !self.expect.is_empty() || self.hold.is_some() || self.paced.is_some();
        !waits && !self.subs.any() && !self.monitor && !self.streaming
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

    /// The state is over: the connection goes to the pool, after RESET where its state is not known to be clean; or is closed.
    fn give_back(self, ctx: &Rc<Ctx>) {
        if self.spent {
            return;
        }
        if self.soiled {
            let ctx = ctx.clone();
            tokio::task::spawn_local(async move { ctx.pool.give_back_after_reset(self.conn).await });
        } else {
            ctx.pool.give_back(self.conn);
        }
    }

    /// The client is gone: the connection is closed, and with it what upstream blocks on for it. What was on its way may
    /// still execute (fact 43); the push then tells the lane.
    fn abandon(&mut self, ctx: &Rc<Ctx>, session: &Session) {
        for expect in std::mem::take(&mut self.expect) {
            settle(ctx, &expect);
            self.tell(&expect);
        }
        self.send_tells(ctx, session, None);
    }

    /// P2 for what is written on a connection of its own: true where the others are to be told before the reply goes on. What
    /// was executed and not answered counts as well: it may have been.
    fn tell(&mut self, expect: &Expect) -> bool {
        self.tells.extend(expect.tell.clone());
        expect.tell.is_some()
    }

    fn send_tells(&mut self, ctx: &Rc<Ctx>, session: &Session, hold: Option<&Rc<Hold>>) {
        if self.tells.is_empty() {
            return;
        }
        let (lane, now) = (session.lane(ctx), clock::now());
        self.tells.drain(..).for_each(|tell| lane.tell(now, &tell, hold));
    }

    /// The connection is gone: what is outstanding is answered with an error.
    fn fail(&mut self, ctx: &Rc<Ctx>, client: &Client) {
        self.unstage(client);
        client.session.set_fence();
        ctx.now.set(clock::now());
        for expect in std::mem::take(&mut self.expect) {
            settle(ctx, &expect);
            self.tell(&expect);
            note_answer(ctx, &expect, true);
            let text = if expect.write {
                "NEARSIDE upstream connection lost: outcome unknown"
            } else {
                "NEARSIDE upstream connection lost"
            };
            client.session.answer_error(expect.mute, text);
        }
        self.send_tells(ctx, &client.session, None);
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
    if expect.unseen {
        ctx.end_unseen();
    }
    expect.hold
}

/// A command is answered: how long that took, and whether by an error. Not what may wait as long as it likes, nor what no
/// client has asked for, nor what was refused here, which is no error of upstream's.
fn note_answer(ctx: &Ctx, expect: &Expect, failed: bool) {
    if matches!(expect.what, What::Blocking | What::Told | What::Refused(_) | What::Aborted(_)) {
        return;
    }
    let timed = if failed { Timed::PinnedError } else { Timed::PinnedOk };
    ctx.metrics.request(timed, ctx.now.get().saturating_sub(expect.at));
    if failed {
        ctx.metrics.failed.inc();
    }
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

/// The PUBLISH that belongs to a write of `named` keys, or of all, where the session's lane announces writes.
fn tells(ctx: &Rc<Ctx>, session: &Session, named: &[Box<[u8]>], flush: bool) -> Option<Box<[u8]>> {
    let any = flush || !named.is_empty();
    let publishes = any && session.lane(ctx).publishes();
    publishes.then(|| coherence::told(ctx, if flush { Op::Flush } else { Op::Key }, if flush { &[] } else { named }))
}

async fn released(hold: Option<(Rc<Hold>, Instant)>) {
    if let Some((hold, limit)) = hold {
        tokio::select! {
            () = hold.released() => {}
            () = sleep_until(limit) => {}
        }
    }
}
