//! The task of a lane: connects, writes what sessions have appended, reads frames and applies each one's effect before it
//! looks at the next (R2), keeps the lease young (R5). It never waits for a session (R3): replies go into the session's
//! outbox, and a session whose outbox overflows is dropped.

use std::rc::Rc;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::AsyncReadExt;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use super::lane::{Availability, Lane};
use super::mode::{NOT_ASKED, Why};
use super::spare::UNDELIVERED_MAX;
use super::wait::{Relay, Waiting};
use crate::net::{ReadHalf, WriteHalf, drop_front};
use crate::observe::clock;
use crate::observe::reasons::{Coherence, ErrorType, Flush, Peer, Source, Tag};
use crate::outage::Outage;
use crate::resp::downgrade::Form;
use crate::resp::push::{self, Push};
use crate::resp::reply::{self, Frame, FrameScanner};
use crate::upstream::handshake::{self, HandshakeError, LaneLink, Link, Refusal, ServerInfo};
use crate::upstream::{Backoff, connect};
use crate::worker::Ctx;

/// One read of the lane's socket at the most: large enough for a batch of a thousand small replies.
const READ: usize = 64 * 1024;

/// So many pushes are applied before the sessions have their turn: 2 to 5 us each where the key is in the L1, so that a hit
/// waits some 50 us, and hits go on where the storm is more than this thread can take. A turn more costs one look at the
/// sockets, about 1 us. With 128 a hit met turns of half a millisecond, and a storm's p99 was 4 times the quiet one.
const PUSHES_A_TURN: usize = 16;

/// A lane that nobody reads through is still pinged so often that upstream's `timeout` does not close it (R5). Not where
/// nothing is cached: there upstream sees what it would see without us, and a lane that it closes is opened again.
const KEEPALIVE: u64 = 30_000_000_000;

/// The lease is kept young for so long after the last cacheable read (R5).
const READ_RECENTLY: u64 = 30_000_000_000;

/// A lane looks after itself at least so often, and no more often for the sake of `upstream.stall_timeout`.
const TICK_MAX: Duration = Duration::from_secs(1);
const TICK_MIN: Duration = Duration::from_millis(10);

const ROLE_CHECK_EVERY: u64 = 1_000_000_000;

/// The handshake is a handful of small commands; a server that is busy with a script answers HELLO all the same.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(5);

/// A connection that lived for less and answered nothing counts as a failed attempt; so many of them in a row are an outage:
/// else a server that takes connections and drops them would be asked anew at once, for ever.
const LIVED: u64 = 1_000_000_000;
const FLAPS_MAX: u32 = 4;

/// Where a reader stands in its stream.
pub(super) struct Stream {
    rd: ReadHalf,
    pub(super) wr: WriteHalf,
    pub(super) rbuf: BytesMut,
    scanner: FrameScanner,
    /// The frame at the front is being read off without being kept (decision 10).
    discarding: bool,
    /// The frame at the front is large and has to be kept.
    keeping: bool,
    /// Frames were left in the buffer for the next turn.
    more: bool,
}

impl Stream {
    pub(super) fn new(link: handshake::Link) -> Stream {
        let scanner = FrameScanner::new();
        Stream { rd: link.rd, wr: link.wr, rbuf: link.rbuf, scanner, discarding: false, keeping: false, more: false }
    }
}

impl Lane {
    /// It had a connection before, or could not be had.
    fn was_away(&self) -> bool {
        self.lost.get().at > 0 || self.is_gone()
    }

    /// Starts the lane's task; it ends with the process, when upstream refuses what a lane needs, or
    /// when nobody is on it and another needs its place.
    pub(crate) fn spawn(ctx: &Rc<Ctx>, profile: crate::upstream::Profile) -> Rc<Lane> {
        let lane = Rc::new(Lane::new(ctx, profile));
        tokio::task::spawn_local(run(ctx.clone(), lane.clone()));
        lane
    }

    pub(super) fn set_availability(&self, to: Availability) {
        self.inner.borrow_mut().availability = to;
        self.changed.notify_waiters();
    }
}

async fn run(ctx: Rc<Ctx>, lane: Rc<Lane>) {
    let mut backoff = Backoff::new(ctx.config.upstream.retry.base_delay, ctx.config.upstream.retry.max_delay);
    let mut flaps = 0;
    while !lane.ended.get() {
        match open_or_give_up_waiting(&ctx, &lane).await {
            Ok(link) => {
                let up_since = clock::now();
                let why = serve(&ctx, &lane, link).await;
                if lane.ended.get() {
                    lane.epoch.set(0);
                    lane.publish();
                    return;
                }
                let answered = lane.held.progress.get() > up_since;
                lane.lost(&ctx, &why);
                if answered || clock::now().saturating_sub(up_since) >= LIVED {
                    backoff.reset();
                    flaps = 0;
                    continue;
                }
                flaps += 1;
                if flaps >= FLAPS_MAX {
                    lane.gone(&ctx, &format!("connections end as soon as they are made, the last one: {why}"));
                }
                sleep(backoff.next()).await;
            }
            Err(Failure::Refused(reply)) => {
                ctx.upstream_answered();
                lane.set_availability(Availability::Refused(reply.clone()));
                lane.give_up_queue(&ctx, &reply);
                lane.fail_all(&ctx, &format!("NEARSIDE upstream refused the sidecar: {reply}"));
                ctx.lane_refused(&lane, &reply);
                ctx.flush_dirty();
                return;
            }
            Err(Failure::Gone(why)) => {
                lane.gone(&ctx, &why);
                sleep(backoff.next()).await;
            }
        }
    }
}

/// Opens the connection. Commands wait for that at most `connect_timeout`; the attempt itself may take longer (a server
/// that is busy with a script answers late, but it answers).
async fn open_or_give_up_waiting(ctx: &Rc<Ctx>, lane: &Rc<Lane>) -> Result<LaneLink, Failure> {
    let limit = ctx.config.upstream.connect_timeout;
    ctx.upstream_probed();
    let mut opening = std::pin::pin!(open(ctx, lane));
    tokio::select! {
        result = &mut opening => return result,
        () = sleep(limit) => lane.gone(ctx, &format!("no connection within {limit:?}")),
    }
    ctx.upstream_probed();
    opening.await
}

enum Failure {
    /// Upstream answered, and said no to what every lane of this profile needs.
    Refused(String),
    Gone(String),
}

async fn open(ctx: &Rc<Ctx>, lane: &Rc<Lane>) -> Result<LaneLink, Failure> {
    let limit = ctx.config.upstream.connect_timeout;
    let stream = connect(&ctx.config.upstream.endpoint, limit).await.map_err(|e| Failure::Gone(e.to_string()))?;
    let track = ctx.cache_serves() && ctx.config.coherence.mode.wants_tracking();
    let hello = async {
        let mut link = handshake::lane(stream, &lane.profile, &ctx.name, track).await?;
        if ctx.kept().reads_fields() {
            link.ask_for_field_expiry().await?;
        }
        if lane.was_away() {
            link.serves().await?;
        }
        Ok(link)
    };
    match timeout(HANDSHAKE_LIMIT, hello).await {
        Ok(Ok(link)) => Ok(link),
        Ok(Err(HandshakeError::Refused { command, reply })) if is_refusal(&reply) => {
            Err(Failure::Refused(format!("{command}: {reply}")))
        }
        Ok(Err(e)) => Err(Failure::Gone(e.to_string())),
        Err(_) => Err(Failure::Gone(format!("no answer to the handshake within {HANDSHAKE_LIMIT:?}"))),
    }
}

/// Errors that another attempt a moment later would meet again.
fn is_refusal(reply: &str) -> bool {
    [
        "NOAUTH",
        "WRONGPASS",
        "NOPERM",
        "NOPROTO",
        "ERR unknown command",
        "ERR Client sent AUTH",
        "ERR AUTH",
        "ERR DB index",
    ]
    .iter()
    .any(|start| reply.starts_with(start))
}

/// Serves one connection until it ends; returns why it did.
async fn serve(ctx: &Rc<Ctx>, lane: &Rc<Lane>, link: LaneLink) -> String {
    lane.came_up(ctx, &link);
    pump(ctx, lane, link.link).await
}

/// Moves bytes in both directions until the connection ends; returns why it did.
pub(super) async fn pump(ctx: &Rc<Ctx>, lane: &Rc<Lane>, link: Link) -> String {
    let mut s = Stream::new(link);
    let mut tick = interval(tick_every(ctx));
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut gives_up = false;
    let ended = loop {
        let blocked = match write_out(ctx, lane, &s.wr) {
            Ok(blocked) => blocked,
            Err(e) => break format!("write: {e}"),
        };
        if s.rbuf.capacity() - s.rbuf.len() < READ / 4 {
            s.rbuf.reserve(READ);
        }
        tokio::select! {
            // What is left in the buffer is as if it had not been read yet: it has not moved F.
            () = tokio::task::yield_now(), if s.more => if let Err(why) = lane.go_on(ctx, &mut s) {
                break why;
            },
            read = s.rd.read_buf(&mut s.rbuf), if !s.more => match read {
                Ok(0) => break "upstream closed the connection".to_owned(),
                Ok(n) => if let Err(why) = lane.received(ctx, &mut s, n) {
                    break why;
                },
                Err(e) => break format!("read: {e}"),
            },
            () = lane.wake.called() => {}
            _ = s.wr.writable(), if blocked => {}
            _ = tick.tick() => {
                lane.tick(ctx);
                ctx.flush_dirty();
                if lane.held.gives_up.get() != gives_up {
                    gives_up = !gives_up;
                    if let Err(e) = s.wr.keep_trying(gives_up.then_some(UNDELIVERED_MAX)) {
                        tracing::debug!("TCP_USER_TIMEOUT to upstream: {e}");
                    }
                }
            }
        }
        let killed = lane.kill.borrow_mut().take();
        if let Some(why) = killed.or_else(|| lane.has_left()) {
            break why;
        }
    };
    *lane.kill.borrow_mut() = None;
    *lane.leaving.borrow_mut() = None;
    ended
}

/// B/4 for the lease; more often where a long B would make silence be noticed late.
fn tick_every(ctx: &Ctx) -> Duration {
    let silence = ctx.config.upstream.stall_timeout.map_or(TICK_MAX, |limit| limit / 4);
    Duration::from_nanos(ctx.max_staleness / 4).min(silence.clamp(TICK_MIN, TICK_MAX))
}

/// Writes what the kernel takes; true where it took less than there is.
pub(super) fn write_out(ctx: &Ctx, lane: &Lane, wr: &WriteHalf) -> std::io::Result<bool> {
    if lane.leaving.borrow().is_some() {
        return Ok(false);
    }
    let mut inner = lane.inner.borrow_mut();
    while !inner.log.unwritten().is_empty() {
        match wr.try_write(inner.log.unwritten()) {
            Ok(n) => {
                inner.log.wrote(n);
                ctx.metrics.bytes_out.add(Peer::Upstream, n as u64);
            }
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => return Ok(true),
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(false)
}

impl Lane {
    /// Upstream cannot be reached: whoever waits is answered by the table of outages, and so is whoever asks from now on.
    pub(super) fn gone(&self, ctx: &Rc<Ctx>, why: &str) {
        ctx.upstream_gone(why);
        let since = match (self.availability(), ctx.outage()) {
            (_, Some(outage)) => outage.since,
            (Availability::Gone(outage), None) => outage.since,
            (_, None) if self.lost.get().at > 0 => self.lost.get().at,
            (_, None) => clock::now(),
        };
        self.set_availability(Availability::Gone(Outage { since, why: why.to_owned() }));
        let waiting = self.take_in_flight();
        self.answer_without_upstream(ctx, waiting);
        ctx.flush_dirty();
    }

    /// R1: alive from the end of the handshake on, under a number no other connection has had.
    pub(super) fn came_up(self: &Rc<Self>, ctx: &Rc<Ctx>, link: &LaneLink) {
        let now = clock::now();
        self.f.set(0);
        self.populated.set(false);
        self.touching.reset();
        self.epoch.set(ctx.next_epoch());
        self.role_check.set(link.role_check);
        self.fields_stay.set(link.fields_stay);
        self.upstream_id.set(link.info.id);
        *self.upstream_role.borrow_mut() = link.info.role.clone();
        self.last_byte.set(now);
        self.last_sent.set(now);
        self.last_role_check.set(now);
        self.held.silent.set(false);
        if self.was_away() {
            self.recovers(now);
        }
        if let Some(credential) = &self.profile.credential {
            ctx.note_accepted(credential);
        }
        ctx.upstream_back(&link.info);
        self.proto.set(link.proto);
        self.arm_fresh(ctx, link.tracking.clone());
        self.settle_debts(ctx);
        self.serves_again(ctx);
    }

    /// `n` bytes have been read: everything they bring, as far as the clients' sockets.
    pub(super) fn received(self: &Rc<Self>, ctx: &Rc<Ctx>, s: &mut Stream, n: usize) -> Result<(), String> {
        ctx.metrics.bytes_in.add(Peer::Upstream, n as u64);
        self.last_byte.set(clock::now());
        self.go_on(ctx, s)
    }

    fn go_on(self: &Rc<Self>, ctx: &Rc<Ctx>, s: &mut Stream) -> Result<(), String> {
        ctx.now.set(clock::now());
        self.process(ctx, s)?;
        if !s.rbuf.is_empty() {
            self.moves(ctx); // a part of a reply
        }
        ctx.flush_dirty();
        Ok(())
    }

    /// Applies every whole frame in the buffer, or as many as one turn may.
    fn process(self: &Rc<Self>, ctx: &Rc<Ctx>, s: &mut Stream) -> Result<(), String> {
        let (mut at, mut pushes) = (0, 0);
        s.more = false;
        let result = loop {
            if s.discarding {
                match self.discard(ctx, s, &mut at) {
                    Ok(true) => continue,
                    Ok(false) => break Ok(()),
                    Err(why) => break Err(why),
                }
            }
            match s.scanner.scan(&s.rbuf[at..]) {
                Ok(Frame::Complete { len }) => {
                    let frame = at..at + len;
                    pushes += usize::from(s.rbuf[at] == b'>');
                    let applied = self.apply(ctx, &s.rbuf[frame], s.scanner.pushes());
                    s.scanner.reset();
                    s.keeping = false;
                    at += len;
                    if let Err(why) = applied {
                        break Err(why);
                    }
                    s.more = pushes >= PUSHES_A_TURN;
                    if s.more {
                        break Ok(());
                    }
                }
                Ok(Frame::Incomplete) => {
                    if s.keeping && s.rbuf.len() - at > ctx.config.listen.buffers_max {
                        self.drop_front_client(ctx);
                        s.discarding = true;
                        continue;
                    }
                    break Ok(());
                }
                Ok(Frame::Large) => {
                    self.note_large_value(ctx, &s.rbuf[at..]);
                    s.discarding = self.reissue_front(ctx);
                    s.keeping = !s.discarding;
                }
                Err(e) => {
                    ctx.metrics.protocol_errors.inc(Peer::Upstream);
                    ctx.metrics.errors.inc(ErrorType::Protocol);
                    break Err(format!("garbage from upstream: {e}"));
                }
            }
        };
        drop_front(&mut s.rbuf, at);
        if s.rbuf.is_empty() && s.rbuf.capacity() > 16 * READ {
            s.rbuf = BytesMut::new();
        }
        result
    }

    /// Reads the front frame off without keeping it; true when its end was reached.
    fn discard(self: &Rc<Self>, ctx: &Rc<Ctx>, s: &mut Stream, at: &mut usize) -> Result<bool, String> {
        let step = s.scanner.advance(&s.rbuf[*at..]).map_err(|e| format!("garbage from upstream: {e}"))?;
        *at += step.take;
        if step.done {
            s.scanner.reset();
            s.discarding = false;
            self.apply(ctx, b"_\r\n", &[])?;
        }
        Ok(step.done)
    }

    /// One frame's effect, and then what other threads may make of it: never the other way round (see `facts`).
    pub(super) fn apply(
        self: &Rc<Self>,
        ctx: &Rc<Ctx>,
        frame: &[u8],
        nested: &[std::ops::Range<usize>],
    ) -> Result<(), String> {
        let applied = self.take(ctx, frame, nested);
        self.publish();
        applied
    }

    fn take(self: &Rc<Self>, ctx: &Rc<Ctx>, frame: &[u8], nested: &[std::ops::Range<usize>]) -> Result<(), String> {
        if frame.first() == Some(&b'>') {
            return self.on_push(ctx, frame);
        }
        if nested.is_empty() {
            return self.on_reply(ctx, frame);
        }
        // Redis before 6.2.7 writes pushes into the middle of aggregates (fact 3); they were queued before the reply ended.
        for range in nested {
            self.on_push(ctx, &frame[range.clone()])?;
        }
        let mut clean = BytesMut::new();
        reply::copy_without(frame, nested, &mut clean);
        self.on_reply(ctx, &clean)
    }

    /// R7.
    fn on_push(self: &Rc<Self>, ctx: &Rc<Ctx>, frame: &[u8]) -> Result<(), String> {
        match push::push(frame) {
            Some(Push::Invalidate(keys)) => {
                for key in keys {
                    self.invalidated(ctx, key);
                }
                Ok(())
            }
            Some(Push::InvalidateAll) => {
                self.saw_canary(ctx, None);
                ctx.l1.flush();
                ctx.metrics.flushes.inc(Flush::Push);
                ctx.metrics.invalidated.inc(Tag::Flush);
                Ok(())
            }
            Some(Push::Other { kind }) => {
                Err(format!("an unexpected push from upstream: {}", String::from_utf8_lossy(kind)))
            }
            None => Err("a push without a kind from upstream".to_owned()),
        }
    }

    fn invalidated(self: &Rc<Self>, ctx: &Rc<Ctx>, key: &[u8]) {
        let stripe = ctx.l1.stripe(key);
        ctx.l1.invalidate(key);
        if self.awaits_canary() && self.saw_canary(ctx, Some(key)) {
            return;
        }
        ctx.metrics.invalidations.inc(Source::Push);
        ctx.metrics.invalidated.inc(Tag::Push);
        // A push lies before the GET of a refresh that has not been read yet, so that GET's value has it (R17).
        if let Some(refreshes) = self.inner.borrow().refreshing.get(&stripe) {
            refreshes.iter().for_each(|r| r.carry(stripe));
        }
    }

    fn on_reply(self: &Rc<Self>, ctx: &Rc<Ctx>, frame: &[u8]) -> Result<(), String> {
        let waiter = {
            let mut inner = self.inner.borrow_mut();
            let Some(waiter) = inner.fifo.pop_front() else {
                return Err("a reply from upstream that nothing asked for".to_owned());
            };
            inner.log.answer(waiter.len as usize);
            inner.let_go();
            waiter
        };
        self.moves(ctx);
        ctx.metrics.upstream_answers.inc();
        // R4. Nothing can look between here and the end of this frame's effects: there is one thread and no await.
        // In `pubsub` mode the channel's PONGs count instead.
        if self.mode() != Coherence::Pubsub {
            self.f.set(self.f.get().max(waiter.t_sent));
        }
        match waiter.kind {
            Waiting::Relay(relay) => return self.on_relay(ctx, relay, waiter.t_sent, frame),
            Waiting::Fetch(fetch) => self.on_fetch(ctx, &fetch, frame),
            Waiting::FetchTtl(fetch) => self.on_fetch_ttl(ctx, &fetch, frame),
            Waiting::Mget(fetch) => self.on_mget(ctx, &fetch, frame),
            Waiting::MgetTtl(fetch, i) => self.on_mget_ttl(ctx, &fetch, i, frame),
            Waiting::Refresh(refresh) => self.on_refresh(ctx, &refresh, frame),
            Waiting::RefreshTtl(refresh, i) => self.on_refresh_ttl(ctx, &refresh, i, frame),
            Waiting::Fence(hold) => hold.passed(ctx),
            Waiting::RoleCheck => return self.on_role_check(ctx, frame),
            Waiting::Sample(sample) => self.on_sample(ctx, &sample, frame),
            Waiting::Ask(tx) | Waiting::Inquire(tx) => drop(tx.send(frame.to_vec())),
            Waiting::Track(on) => self.on_track(ctx, on, frame),
            Waiting::Canary(step, number) => self.on_canary(ctx, step, number, frame),
            Waiting::Part(wrapped, part) => wrapped.answered(part, frame),
            Waiting::Published(hold) => self.on_published(ctx, hold.as_ref(), frame),
            Waiting::Verdict => self.on_probed(ctx, waiter.t_sent, frame),
            Waiting::StandIn(relay, raw) => return self.on_stand_in(ctx, relay, &raw, waiter.t_sent, frame),
            Waiting::Ping | Waiting::Dropped => {}
        }
        Ok(())
    }

    pub(super) fn on_relay(
        self: &Rc<Self>,
        ctx: &Rc<Ctx>,
        mut relay: Relay,
        t_sent: u64,
        frame: &[u8],
    ) -> Result<(), String> {
        if let Some(wrapped) = relay.wrapped.take() {
            return match self.unwrapped(ctx, &wrapped, relay, frame) {
                Some((relay, frame)) => self.on_relay(ctx, relay, t_sent, &frame),
                None => Ok(()),
            };
        }
        for &stripe in relay.ends.as_slice() {
            ctx.l1.end_write(stripe);
            if let Some(refresh) = &relay.refresh {
                refresh.carry(stripe);
            }
        }
        if relay.flush {
            ctx.l1.flush();
            ctx.metrics.flushes.inc(Flush::Swapdb);
        }
        if relay.unseen {
            ctx.end_unseen();
        }
        let took = self.last_byte.get().saturating_sub(t_sent);
        ctx.metrics.upstream.observe(took);
        if let Some(watched) = &relay.watched {
            ctx.tell(watched, took, frame);
        }
        // On a RESP2 lane all clients speak RESP2, and nothing needs converting.
        let form = if self.speaks_resp2() { Form::Same } else { relay.form };
        let demoted = relay.write && frame.starts_with(b"-READONLY");
        if let Some(session) = relay.session {
            if self.is_spare() || relay.fence {
                session.fence.set(clock::now()); // R21
            }
            if relay.fence {
                ctx.raise_floor();
            }
            // What a running script forbids has not been executed, and waits for nothing.
            match relay.hold.filter(|_| !(self.is_spare() && frame.starts_with(b"-BUSY"))) {
                Some(hold) => {
                    if self.mode() != Coherence::Tracking {
                        // No invalidation comes of what it has changed without naming it: to this session at least only
                        // later readings are served.
                        session.set_fence();
                    }
                    hold.keep(ctx, session, relay.slot, frame, form);
                    ctx.fence_others(self, &hold);
                }
                None if relay.info => {
                    let whole = crate::session::with_own_info(ctx, frame);
                    session.complete(ctx, relay.slot, &whole, relay.form);
                }
                None => session.complete(ctx, relay.slot, frame, form),
            }
        } else if let Some(hold) = relay.hold {
            hold.release(ctx);
        }
        if demoted {
            let lane = self.original();
            lane.as_deref()
                .unwrap_or(self)
                .leave(ctx, "upstream answered a write with -READONLY: it is no master any more".to_owned());
        }
        Ok(())
    }

    /// The answer to CLIENT TRACKING after a change of mode: what is read from here on may be stored.
    fn on_track(self: &Rc<Self>, ctx: &Rc<Ctx>, on: bool, frame: &[u8]) {
        if on && ctx.cache_serves() {
            let refused = reply::is_error(frame).then(|| Refusal::Tracking(handshake::error_text(frame)));
            self.arm(ctx, refused.map_or(Ok(()), Err));
        }
    }

    /// Arms a connection that has just come up; the mode may have changed while its handshake was under way. Where tracking
    /// has to be asked for still, nothing is stored until `on_track`.
    fn arm_fresh(self: &Rc<Self>, ctx: &Rc<Ctx>, tracking: Result<(), Refusal>) {
        let wants = ctx.cache_serves() && ctx.config.coherence.mode.wants_tracking();
        match tracking {
            Err(Refusal::NotAsked) if wants => {
                self.enter(ctx, Coherence::Probing, Why::of(NOT_ASKED));
                self.ask_for_tracking(true);
            }
            Ok(()) if !wants => {
                self.ask_for_tracking(false);
                self.arm(ctx, Err(Refusal::NotAsked));
            }
            other => self.arm(ctx, other),
        }
    }

    /// R5: the server behind the connection is still the same one, and still what it was.
    fn on_role_check(self: &Rc<Self>, ctx: &Rc<Ctx>, frame: &[u8]) -> Result<(), String> {
        match ServerInfo::parse(frame) {
            Some(info) if info.id != self.upstream_id.get() => {
                Err(format!("upstream's client id changed from {} to {}", self.upstream_id.get(), info.id))
            }
            Some(info) if info.role != *self.upstream_role.borrow() => {
                self.leave(ctx, format!("upstream's role changed to {}", info.role));
                Ok(())
            }
            // An error (-BUSY, -LOADING, NOPERM) says nothing about the role.
            _ => Ok(()),
        }
    }

    /// A role change (decision 9): nothing is stored or served any more, and nothing more is sent; what upstream has been
    /// sent it may still answer, for B.
    fn leave(&self, ctx: &Ctx, why: String) {
        let mut leaving = self.leaving.borrow_mut();
        if leaving.is_none() {
            *self.uncached.borrow_mut() = Some(why.clone());
            // Whoever is subscribed there hears nothing of the new master's.
            ctx.channel.end(&why);
            *leaving = Some((clock::now() + ctx.max_staleness, why));
        }
    }

    /// Why the connection is to end now, if it is being left and nothing is worth waiting for.
    fn has_left(&self) -> Option<String> {
        let leaving = self.leaving.borrow();
        let (limit, why) = leaving.as_ref()?;
        let inner = self.inner.borrow();
        let answered = inner.fifo.is_empty() || inner.log.unsent(0);
        (answered || clock::now() >= *limit).then(|| why.clone())
    }

    /// Every B/4: the lease, the idle keepalive, timeouts, and whether the lane is stuck.
    fn tick(self: &Rc<Self>, ctx: &Rc<Ctx>) {
        let now = clock::now();
        if self.is_spare() {
            return self.spare_tick(ctx, now);
        }
        ctx.release_overdue_holds(now);
        ctx.measure();
        ctx.check_buffers();
        self.status.set_proved_at(self.f.get());
        let since_sent = now.saturating_sub(self.last_sent.get());
        let reading = self.caches() && now.saturating_sub(self.read_at()) < READ_RECENTLY && self.read_at() > 0;
        if reading && self.mode() == Coherence::Pubsub {
            ctx.channel.want(now, ctx.max_staleness / 4);
        }
        // Only in `tracking` is it this lane's answers that keep the lease young.
        let renew = reading && self.mode() == Coherence::Tracking;
        let role_check_every = ROLE_CHECK_EVERY.max(ctx.max_staleness / 4);
        if reading && self.role_check.get() && now.saturating_sub(self.last_role_check.get()) >= role_check_every {
            self.last_role_check.set(now);
            self.ping(now, Waiting::RoleCheck);
        } else if (renew && since_sent >= ctx.max_staleness / 4) || (since_sent >= KEEPALIVE && ctx.cache_serves()) {
            self.ping(now, Waiting::Ping);
        }
        if let Some(limit) = ctx.config.upstream.request_timeout {
            self.time_out(ctx, now.saturating_sub(nanos(limit)));
        }
        self.repeat_canary(ctx, now);
        self.watch(ctx, now);
        self.watch_silence(ctx, now);
        super::sample::turn(ctx, now, self.sent.take());
    }
}

pub(super) fn nanos(d: Duration) -> u64 {
    u64::try_from(d.as_nanos()).unwrap_or(u64::MAX)
}
