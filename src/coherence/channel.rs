//! The sidecars' channel: one connection of the process ("S") that is subscribed to `coherence.channel`. Whatever is
//! published there is applied to the L1, message by message, in the order in which upstream sent it; nothing is ignored,
//! also not what this sidecar has published itself (a write of ours that timed out may execute later, R23).
//!
//! S runs on the data thread as a task of its own and speaks RESP2, in which a subscribed connection answers PING
//! (`pong`); a PONG behind a prefix or pattern is looked at when that sweep is over. Upstream appends a message to S's output at the instant the PUBLISH executes (fact 50), so a PONG to a PING
//! that was sent at `t` says: every message published before `t` has been applied here. `f` is the newest such `t`.
//!
//! **Loss.** While S is away messages are missed, and nobody repeats them. So the L1 is flushed when S is back, unless
//! nothing can have been stored before: the first confirmation after the start.
//!
//! What it does not do: it does not publish (that takes a client's own right, on the client's lane), and whether S is
//! needed for a hit is for the mode to say.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::AsyncReadExt;
use tokio::sync::Notify;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};

use super::Hold;
use super::events::{self, Events};
use super::invalidate::{Applied, apply};
use super::mode::CANARY;
use super::payload::{self, Message, Op, Sender};
use crate::net::{ReadHalf, WriteHalf, drop_front};
use crate::observe::clock;
use crate::observe::reasons::{ChannelState, Flush, Peer, Source};
use crate::resp::build;
use crate::resp::reply::{self, Frame, FrameScanner};
use crate::upstream::handshake::{self, HandshakeError, Link};
use crate::upstream::{Backoff, Credential, connect};
use crate::wake::Wake;
use crate::worker::Ctx;

/// Without anybody who needs S's word S is asked so often: while a half-open S is not noticed, messages are missed.
const KEEPALIVE: u64 = 5_000_000_000;

/// S is kept young for so long after `note_read` (as R5 for a lane).
const READ_RECENTLY: u64 = 30_000_000_000;

/// Silence of S with a PING outstanding before a fresh connection is asked (decision 9).
const SILENCE: u64 = 3_000_000_000;

const HANDSHAKE_LIMIT: Duration = Duration::from_secs(5);

/// A credential that upstream refused is refused again a moment later, and each attempt is a line of its ACL LOG.
const REFUSED_PAUSE: Duration = Duration::from_secs(30);

/// One read of S at the most.
const READ: usize = 64 * 1024;

/// So many messages are applied before the sessions have their turn, as on a lane.
const MESSAGES_A_TURN: usize = 128;

pub(crate) struct Channel {
    /// Number of the subscription in force, of the same sequence as the lanes' epochs; 0: not confirmed.
    epoch: Cell<u64>,
    /// Send time of the newest answered PING under the present epoch; 0 before the first.
    f: Cell<u64>,
    pings: RefCell<VecDeque<Ping>>,
    out: RefCell<BytesMut>,
    wake: Wake,
    kill: RefCell<Option<String>>,
    last_sent: Cell<u64>,
    last_byte: Cell<u64>,
    last_read: Cell<u64>,
    judging: Cell<bool>,
    /// It was confirmed before: messages may have been missed since.
    known: Cell<bool>,
    /// Sweeps that messages have begun and that are not over.
    sweeping: Cell<usize>,
    /// Tells the task that upstream has answered a lane.
    news: Notify,
    seq: Cell<u64>,
    /// The second subscription.
    pub(super) events: Events,
}

/// A PING on its way, or something else that S answers in its place in the order, and what the answer releases.
struct Ping {
    t_sent: u64,
    answer: Answer,
    hold: Option<Rc<Hold>>,
}

/// What answers a command on S.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Pong,
    /// The confirmation of the subscription to keyspace events, and of its end.
    Events,
    EventsEnd,
}

/// Why there is no subscription.
enum Failure {
    /// Upstream answered and said no.
    Refused(String),
    Gone(String),
}

impl Channel {
    pub(crate) fn new() -> Rc<Channel> {
        Rc::new(Channel {
            epoch: Cell::new(0),
            f: Cell::new(0),
            pings: RefCell::default(),
            out: RefCell::default(),
            wake: Wake::default(),
            kill: RefCell::new(None),
            last_sent: Cell::new(0),
            last_byte: Cell::new(0),
            last_read: Cell::new(0),
            judging: Cell::new(false),
            known: Cell::new(false),
            sweeping: Cell::new(0),
            news: Notify::new(),
            seq: Cell::new(0),
            events: Events::default(),
        })
    }

    /// Starts S's task; it ends with the process.
    pub(crate) fn spawn(ctx: &Rc<Ctx>) {
        tokio::task::spawn_local(run(ctx.clone(), ctx.channel.clone()));
    }

    /// Upstream has confirmed the subscription, and it still stands as far as we know.
    pub(crate) fn is_confirmed(&self) -> bool {
        self.epoch.get() != 0
    }

    /// Number of the subscription in force; another one after every loss. 0: none.
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch.get()
    }

    /// Everything that was published before this time has been applied; 0: nothing is known.
    pub(crate) fn f(&self) -> u64 {
        self.f.get()
    }

    /// Somebody relies on `f`: it is kept young for a while, and is asked for now unless that was less than `young` ago.
    pub(crate) fn want(&self, now: u64, young: u64) {
        self.last_read.set(now);
        if self.is_confirmed() && now.saturating_sub(self.last_sent.get()) >= young {
            self.ping(now, None);
        }
    }

    /// One more PONG for `hold` to wait for. Without a subscription there is nothing to wait for.
    pub(crate) fn fence(&self, now: u64, hold: &Rc<Hold>) {
        if self.is_confirmed() {
            hold.expect();
            self.ping(now, Some(hold.clone()));
        }
    }

    /// Upstream has answered a lane: it is there, and perhaps a credential is known that it takes.
    pub(crate) fn try_now(&self) {
        self.news.notify_one();
    }

    /// A message of this sidecar's, numbered.
    pub(crate) fn payload(&self, from: &str, message: &Message) -> Vec<u8> {
        self.seq.set(self.seq.get() + 1);
        payload::written(message.op, &message.args, None, Sender { from, seq: self.seq.get() })
    }

    fn ping(&self, now: u64, hold: Option<Rc<Hold>>) {
        self.ask(now, &[b"PING"], Answer::Pong, hold);
    }

    /// A command of our own on S.
    pub(super) fn send(&self, now: u64, words: &[&[u8]], answer: Answer) {
        self.ask(now, words, answer, None);
    }

    fn ask(&self, now: u64, words: &[&[u8]], answer: Answer, hold: Option<Rc<Hold>>) {
        // Stamped before it is written (R4): early is the safe side.
        self.pings.borrow_mut().push_back(Ping { t_sent: now, answer, hold });
        self.last_sent.set(now);
        build::command(&mut self.out.borrow_mut(), words);
        self.wake.call();
    }

    /// The present connection is of no use any more; another one is made.
    pub(super) fn end(&self, why: &str) {
        if !self.is_confirmed() {
            return;
        }
        self.kill.borrow_mut().get_or_insert_with(|| why.to_owned());
        self.wake.call();
    }

    /// What depends on the subscription learns here that it stands.
    fn came_up(&self, ctx: &Rc<Ctx>, credential: Option<Rc<Credential>>) {
        let now = clock::now();
        self.events.came_up(credential);
        self.f.set(0);
        self.last_byte.set(now);
        self.last_sent.set(now);
        self.epoch.set(ctx.next_epoch());
        let missed = self.known.replace(true);
        if missed {
            ctx.l1.flush();
            ctx.metrics.flushes.inc(Flush::Channel);
        }
        if ctx.status.channel.set(ChannelState::Up, "") {
            tracing::info!("subscribed to the channel {}", ctx.config.coherence.channel);
        }
        ctx.channel_changed();
        // F is wanted soon, and an answer shows that S works.
        self.ping(now, None);
    }

    /// What depends on the subscription learns here that it is over. The epoch ends first.
    fn lost(&self, ctx: &Rc<Ctx>, why: &str) {
        self.epoch.set(0);
        self.f.set(0);
        self.out.borrow_mut().clear();
        let pings = std::mem::take(&mut *self.pings.borrow_mut());
        self.events.lost(ctx);
        for hold in pings.into_iter().filter_map(|ping| ping.hold) {
            hold.lost(ctx);
        }
        self.down(ctx, ChannelState::Down, why);
        ctx.flush_dirty();
    }

    fn down(&self, ctx: &Rc<Ctx>, state: ChannelState, why: &str) {
        if ctx.status.channel.set(state, why) {
            tracing::warn!("not subscribed to the channel {}: {why}", ctx.config.coherence.channel);
            ctx.channel_changed();
        }
    }
}

async fn run(ctx: Rc<Ctx>, channel: Rc<Channel>) {
    let retry = &ctx.config.upstream.retry;
    let mut backoff = Backoff::new(retry.base_delay, retry.max_delay);
    // Lanes come first: they say whether upstream is there and whose credential it takes.
    channel.news.notified().await;
    loop {
        while ctx.is_gone() {
            // It says nothing that matters while nobody can publish, and its return would drop what an outage lives on. (Who
            // loads its data takes subscriptions already.)
            let _ = timeout(REFUSED_PAUSE, channel.news.notified()).await;
        }
        match open(&ctx).await {
            Ok((link, credential)) => {
                let since = Instant::now();
                channel.came_up(&ctx, credential);
                let why = serve(&ctx, &channel, link).await;
                channel.lost(&ctx, &why);
                if since.elapsed() > retry.max_delay {
                    backoff.reset();
                }
                sleep(backoff.next()).await;
            }
            Err(Failure::Refused(why)) => {
                // NOAUTH only says that clients bring credentials of their own: the first of them ends the wait.
                let waits = why.contains("NOAUTH");
                channel.down(&ctx, if waits { ChannelState::Waiting } else { ChannelState::Refused }, &why);
                let _ = timeout(REFUSED_PAUSE, channel.news.notified()).await;
            }
            Err(Failure::Gone(why)) => {
                channel.down(&ctx, ChannelState::Down, &why);
                sleep(backoff.next()).await;
            }
        }
    }
}

/// Subscribes with the sidecar's own credential, or none; where upstream refuses that, with those of the live lanes, which
/// upstream has accepted from clients.
async fn open(ctx: &Rc<Ctx>) -> Result<(Link, Option<Rc<Credential>>), Failure> {
    let own = ctx.default_profile.credential.clone();
    let mut candidates = vec![own];
    for lane in ctx.lanes.borrow().values().filter(|lane| lane.is_live()) {
        if !candidates.contains(&lane.profile.credential) {
            candidates.push(lane.profile.credential.clone());
        }
    }
    let mut refused = String::new();
    for credential in candidates {
        match open_as(ctx, credential.clone()).await {
            Err(Failure::Refused(why)) => refused = why,
            other => return other.map(|link| (link, credential)),
        }
    }
    Err(Failure::Refused(refused))
}

async fn open_as(ctx: &Ctx, credential: Option<Rc<Credential>>) -> Result<Link, Failure> {
    let gone = |e: &dyn std::fmt::Display| Failure::Gone(e.to_string());
    let upstream = &ctx.config.upstream;
    let stream = connect(&upstream.endpoint, upstream.connect_timeout).await.map_err(|e| gone(&e))?;
    let channel = ctx.config.coherence.channel.as_bytes();
    let name = format!("{}:channel", ctx.name);
    match timeout(HANDSHAKE_LIMIT, handshake::subscriber(stream, credential, &name, channel)).await {
        Ok(Ok(link)) => Ok(link),
        Ok(Err(HandshakeError::Refused { command, reply })) if !is_passing(&reply) => {
            Err(Failure::Refused(format!("{command}: {reply}")))
        }
        Ok(Err(e)) => Err(gone(&e)),
        Err(_) => Err(Failure::Gone(format!("no answer to the handshake within {HANDSHAKE_LIMIT:?}"))),
    }
}

/// Errors that another attempt a moment later may not meet again.
fn is_passing(reply: &str) -> bool {
    ["LOADING", "BUSY", "MASTERDOWN", "CLUSTERDOWN"].iter().any(|start| reply.starts_with(start))
}

/// Where S stands in its stream.
struct Stream {
    rd: ReadHalf,
    wr: WriteHalf,
    rbuf: BytesMut,
    scanner: FrameScanner,
    /// The frame at the front is being read off without being kept.
    discarding: bool,
    /// The frame at the front waits until the sweeps are over; nothing is read meanwhile.
    waiting: bool,
    /// Messages were left in the buffer for the next turn.
    more: bool,
}

/// Serves one subscription until it ends; returns why it did.
async fn serve(ctx: &Rc<Ctx>, channel: &Rc<Channel>, link: Link) -> String {
    let mut s = Stream {
        rd: link.rd,
        wr: link.wr,
        rbuf: link.rbuf,
        scanner: FrameScanner::new(),
        discarding: false,
        waiting: false,
        more: false,
    };
    let mut tick = interval(Duration::from_nanos(ctx.max_staleness / 4));
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        // What came right behind the confirmation is in the buffer already.
        if let Err(why) = process(ctx, channel, &mut s) {
            return why;
        }
        ctx.flush_dirty();
        match s.wr.drain(&mut channel.out.borrow_mut()) {
            Ok(sent) => ctx.metrics.bytes_out.add(Peer::Upstream, sent as u64),
            Err(e) => return format!("write: {e}"),
        }
        let blocked = !channel.out.borrow().is_empty();
        if s.rbuf.capacity() - s.rbuf.len() < READ / 4 {
            s.rbuf.reserve(READ);
        }
        tokio::select! {
            () = tokio::task::yield_now(), if s.more => {}
            read = s.rd.read_buf(&mut s.rbuf), if !s.waiting && !s.more => match read {
                Ok(0) => return "upstream closed the connection".to_owned(),
                Ok(n) => {
                    ctx.metrics.bytes_in.add(Peer::Upstream, n as u64);
                    channel.last_byte.set(clock::now());
                }
                Err(e) => return format!("read: {e}"),
            },
            () = channel.wake.called() => {}
            _ = s.wr.writable(), if blocked => {}
            _ = tick.tick() => channel.tick(ctx),
        }
        if let Some(why) = channel.kill.borrow_mut().take() {
            return why;
        }
    }
}

/// Applies every whole frame in the buffer, or as many as one turn may.
fn process(ctx: &Rc<Ctx>, channel: &Rc<Channel>, s: &mut Stream) -> Result<(), String> {
    let garbage = |e: &dyn std::fmt::Display| {
        ctx.metrics.protocol_errors.inc(Peer::Upstream);
        format!("garbage from upstream: {e}")
    };
    let (mut at, mut applied) = (0, 0);
    s.waiting = false;
    s.more = false;
    loop {
        if s.discarding {
            let step = s.scanner.advance(&s.rbuf[at..]).map_err(|e| garbage(&e))?;
            at += step.take;
            if !step.done {
                break;
            }
            s.discarding = false;
            // Too large to be looked at, but somebody wanted something dropped: everything is.
            channel.flush_all(ctx);
            continue;
        }
        match s.scanner.scan(&s.rbuf[at..]).map_err(|e| garbage(&e))? {
            // What a PONG proves includes the sweeps: it is looked at when they are over.
            Frame::Complete { len } if channel.sweeping.get() > 0 && !is_message(&s.rbuf[at..at + len]) => {
                s.scanner.reset();
                s.waiting = true;
                break;
            }
            Frame::Complete { len } => {
                channel.apply(ctx, &s.rbuf[at..at + len])?;
                s.scanner.reset();
                at += len;
                applied += 1;
                s.more = applied == MESSAGES_A_TURN;
                if s.more {
                    break;
                }
            }
            Frame::Incomplete => break,
            Frame::Large => s.discarding = true,
        }
    }
    drop_front(&mut s.rbuf, at);
    Ok(())
}

fn is_message(frame: &[u8]) -> bool {
    matches!(reply::elements(frame).next().and_then(reply::bulk), Some(b"message" | b"pmessage"))
}

impl Channel {
    /// One frame's effect.
    fn apply(self: &Rc<Self>, ctx: &Rc<Ctx>, frame: &[u8]) -> Result<(), String> {
        let mut parts = reply::elements(frame);
        match parts.next().and_then(reply::bulk) {
            Some(b"message") => {
                if let Some(payload) = parts.nth(1).and_then(reply::bulk) {
                    self.message(ctx, payload);
                }
                Ok(())
            }
            Some(b"pmessage") => {
                if let (Some(channel), Some(event)) = (parts.nth(1).and_then(reply::bulk), parts.next()) {
                    events::apply(ctx, channel, reply::bulk(event).unwrap_or_default());
                }
                Ok(())
            }
            Some(b"unsubscribe") => Err("upstream has ended the subscription".to_owned()),
            Some(b"pong") => self.answered(ctx, Some(Answer::Pong), frame),
            Some(b"psubscribe") => self.answered(ctx, Some(Answer::Events), frame),
            Some(b"punsubscribe") => self.answered(ctx, Some(Answer::EventsEnd), frame),
            // An error answers a PING as well (-BUSY, -MISCONF, -NOPERM): in its place in the order, so it proves as much.
            None if reply::is_error(frame) => self.answered(ctx, None, frame),
            _ => Err("an unexpected message from upstream".to_owned()),
        }
    }

    /// `answer`: what it is; an error may be the answer to anything.
    fn answered(&self, ctx: &Rc<Ctx>, answer: Option<Answer>, frame: &[u8]) -> Result<(), String> {
        let ping = self.pings.borrow_mut().pop_front();
        let ping = ping.filter(|ping| answer.is_none_or(|answer| answer == ping.answer));
        let ping = ping.ok_or("a reply from upstream that nothing asked for")?;
        self.events_answered(ctx, ping.answer, frame);
        self.f.set(self.f.get().max(ping.t_sent));
        ctx.channel_proved(self.f.get());
        if let Some(hold) = ping.hold {
            hold.passed(ctx);
        }
        Ok(())
    }

    fn message(self: &Rc<Self>, ctx: &Rc<Ctx>, bytes: &[u8]) {
        let parsed = payload::parse(bytes);
        let is_canary = |key: &[u8]| ctx.own_name(key).starts_with(CANARY.as_bytes());
        let canary = parsed.as_ref().is_ok_and(|m| m.op == Op::Key && is_canary(&m.args[0]));
        if let (true, Ok(message)) = (canary, &parsed) {
            ctx.heard_canary(&message.args[0]);
        }
        match parsed.and_then(|message| apply(ctx, &message, Source::Channel)) {
            Ok(Applied::Done(_)) => {}
            Ok(sweeping) => {
                self.sweeping.set(self.sweeping.get() + 1);
                let (channel, ctx) = (self.clone(), ctx.clone());
                tokio::task::spawn_local(async move {
                    sweeping.done(&ctx).await;
                    channel.sweeping.set(channel.sweeping.get() - 1);
                    channel.wake.call();
                });
            }
            Err(why) => ctx.malformed(bytes, &why),
        }
    }

    fn flush_all(&self, ctx: &Ctx) {
        let message = Message { op: Op::Flush, args: Vec::new() };
        // A flush is done at once and cannot be malformed.
        let _ = apply(ctx, &message, Source::Channel);
    }

    /// Every B/4: keeps F young where it is wanted, and finds out whether S is dead.
    fn tick(self: &Rc<Self>, ctx: &Rc<Ctx>) {
        let now = clock::now();
        let since_sent = now.saturating_sub(self.last_sent.get());
        let wanted = self.last_read.get() > 0 && now.saturating_sub(self.last_read.get()) < READ_RECENTLY;
        if (wanted && since_sent >= ctx.max_staleness / 4) || (since_sent >= KEEPALIVE && ctx.cache_serves()) {
            self.ping(now, None);
        }
        self.tick_events(ctx, now);
        self.judge(ctx, now);
    }

    fn is_silent(&self, now: u64) -> bool {
        let oldest = self.pings.borrow().front().map_or(0, |ping| now.saturating_sub(ping.t_sent));
        self.sweeping.get() == 0 && oldest > SILENCE && now.saturating_sub(self.last_byte.get()) > SILENCE
    }

    /// S is dead when a fresh connection is answered while S is not (decision 9): a server that is busy answers neither.
    fn judge(self: &Rc<Self>, ctx: &Rc<Ctx>, now: u64) {
        if self.judging.get() || !self.is_silent(now) {
            return;
        }
        self.judging.set(true);
        let (channel, ctx) = (self.clone(), ctx.clone());
        tokio::task::spawn_local(async move {
            let epoch = channel.epoch.get();
            let asked = async { ctx.pool.bare().await.ok()?.ask(&[b"PING"]).await.ok() };
            let answered = matches!(timeout(HANDSHAKE_LIMIT, asked).await, Ok(Some(_)));
            if answered && channel.epoch.get() == epoch && channel.is_silent(clock::now()) {
                channel.end("silent for 3 s while a fresh connection is answered");
            }
            channel.judging.set(false);
        });
    }
}

#[cfg(test)]
mod tests;
