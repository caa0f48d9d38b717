//! Which mode a lane is in, why, and how it gets there: from the answer to CLIENT TRACKING over the proof by canary down to
//! what remains. A lane is *arming* from its handshake until this is decided: it forwards everything and stores nothing,
//! and nothing of this ever delays a client's command.
//!
//! **The canary** (decision 7). The lane reads a key of its own, then another connection of the same user writes it. Redis
//! appends the invalidation to the lane's output when the write executes (fact 1), and the writer's OK follows that. So a
//! PING that is sent on the lane *after the OK was read* is answered behind the invalidation. If its answer comes first,
//! whatever stands behind this connection does not do what all our proofs rest on, however soon the invalidation may come
//! after. No time limit is needed: a stalled lane stays unproved, and would serve nothing for want of a lease.
//!
//! Each mode's guarantees are in docs/guarantees.md. What this file does not do: it moves no entry. A change of
//! mode ends the epoch, which makes all entries of the lane void at once.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use super::hold::Hold;
use super::lane::Lane;
use super::payload::Op;
use super::wait::Waiting;
use crate::config::{Canary as Wanted, CoherenceMode};
use crate::observe::clock;
use crate::observe::reasons::{ChannelState, Coherence, Link};
use crate::resp::{Proto, build, reply};
use crate::upstream::handshake::{self, Refusal};
use crate::worker::Ctx;

/// How the keys of canaries begin.
pub(super) const CANARY: &str = "nearside:canary:";

/// A canary that nobody takes away is gone by itself after so long (milliseconds).
const CANARY_TTL: &[u8] = b"1000";

const AS_CONFIGURED: &str = "as configured";
const PROVED: &str = "the canary's invalidation has come";
const TRUSTED: &str = "upstream has accepted CLIENT TRACKING";
const NO_RIGHT: &str = "canary: no right to write";
const NOT_WRITTEN: &str = "canary: not written";
const UNSEEN: &str = "the canary's invalidation has not come";
const NO_TRACKING: &str = "upstream refused CLIENT TRACKING";
pub(super) const NOT_ASKED: &str = "CLIENT TRACKING is being asked for";
const NO_RESP3: &str = "upstream speaks no RESP3";
const NO_MASTER: &str = "upstream is no master";
pub(super) const DENIED: &str = "upstream denies this user what the cache needs";
const HEARD: &str = "the channel has brought a message back";
const UNHEARD: &str = "what was published did not come back over the channel";

/// Why a lane is in its mode. Health is for everybody: upstream's own words, which may name users, are not in `plain`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Why {
    pub(crate) plain: String,
    detail: String,
}

impl Why {
    pub(super) fn of(plain: &str) -> Why {
        Why { plain: plain.to_owned(), detail: String::new() }
    }

    pub(super) fn with(plain: &str, detail: &str) -> Why {
        Why { plain: plain.to_owned(), detail: detail.to_owned() }
    }

    /// The reason before this one.
    pub(super) fn after(self, before: Why) -> Why {
        if before == Why::default() {
            return self;
        }
        Why { plain: format!("{}; {}", before.plain, self.plain), detail: join(&before.detail, &self.detail) }
    }

    /// For the log and for those of the same user.
    pub(crate) fn full(&self) -> String {
        join(&self.plain, &self.detail)
    }
}

fn join(a: &str, b: &str) -> String {
    if a.is_empty() || b.is_empty() { format!("{a}{b}") } else { format!("{a}: {b}") }
}

/// A lane's mode and what decides it.
pub(super) struct Arming {
    mode: Cell<Coherence>,
    why: RefCell<Why>,
    canary: RefCell<Option<Canary>>,
    /// When the last canary began.
    canary_at: Cell<u64>,
    /// Why the modes above `pubsub` are not.
    pub(super) no_better: RefCell<Why>,
    /// Writes are announced on the channel.
    pub(super) publishes: Cell<bool>,
    /// Upstream refuses MULTI to this user: writes are announced behind themselves.
    pub(super) no_multi: Cell<bool>,
    /// Messages were lost: the next thing published is a flush.
    pub(super) owes: Cell<bool>,
    /// What has been said in the log.
    said: RefCell<Option<(Coherence, Why)>>,
}

impl Default for Arming {
    fn default() -> Arming {
        Arming {
            mode: Cell::new(Coherence::Probing),
            why: RefCell::default(),
            canary: RefCell::default(),
            canary_at: Cell::new(0),
            no_better: RefCell::default(),
            publishes: Cell::new(false),
            no_multi: Cell::new(false),
            owes: Cell::new(false),
            said: RefCell::default(),
        }
    }
}

impl Arming {
    pub(super) fn mode(&self) -> Coherence {
        self.mode.get()
    }
}

/// A canary on its way.
struct Canary {
    /// What is waited for on its account says the same.
    number: u64,
    key: Vec<u8>,
    /// When its write was sent; 0 before.
    sent: u64,
}

/// What a lane waits for on its canary's account.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// The reading that makes upstream remember the key for this lane.
    Read,
    /// The answer that the invalidation must precede.
    Bar,
    /// The parts of the message that proves `pubsub`.
    Multi,
    Queued,
    Published,
}

impl Lane {
    pub(crate) fn mode(&self) -> Coherence {
        self.arming.mode.get()
    }

    /// Why it is in that mode, in all detail.
    pub(crate) fn why(&self) -> String {
        self.arming.why.borrow().full()
    }

    /// The same for everybody.
    pub(crate) fn why_plain(&self) -> String {
        self.arming.why.borrow().plain.clone()
    }

    pub(crate) fn is_arming(&self) -> bool {
        self.mode() == Coherence::Probing
    }

    /// As a spare: it never has a mode. A lane that arms sends reads as flights that others may join and that set no fence,
    /// because what it has read so far is in its own stream; what a spare reads is in another one (R21).
    pub(super) fn never_arms(&self) {
        self.arming.mode.set(Coherence::None);
    }

    /// The connection is up; `tracking` is upstream's answer to CLIENT TRACKING ON.
    pub(super) fn arm(self: &Rc<Self>, ctx: &Rc<Ctx>, tracking: Result<(), Refusal>) {
        self.forget_canary();
        self.arming.publishes.set(false);
        self.arming.no_multi.set(false);
        if !ctx.cache_serves() {
            return self.enter(ctx, Coherence::None, Why::of(&ctx.why_not_serving()));
        }
        let role = self.upstream_role.borrow().clone();
        if role != "master" {
            // R25: a replica learns of expiry and of its own promotion too late for what we promise.
            return self.enter(ctx, Coherence::None, Why::with(NO_MASTER, &format!("it is a {role}")));
        }
        match (ctx.config.coherence.mode, tracking) {
            (CoherenceMode::Ttl, _) => self.enter(ctx, Coherence::Ttl, Why::of(AS_CONFIGURED)),
            (CoherenceMode::Pubsub, _) => self.without_tracking(ctx, Why::default()),
            (CoherenceMode::Auto | CoherenceMode::Tracking, Ok(())) => self.prove_tracking(ctx),
            (CoherenceMode::Auto | CoherenceMode::Tracking, Err(refusal)) => {
                let why = match refusal {
                    Refusal::NoResp3(reply) => Why::with(NO_RESP3, &reply),
                    Refusal::Tracking(reply) => Why::with(NO_TRACKING, &reply),
                    Refusal::NotAsked => Why::of(NOT_ASKED),
                };
                self.without_tracking(ctx, why);
            }
        }
    }

    /// The next best.
    fn without_tracking(self: &Rc<Self>, ctx: &Rc<Ctx>, why: Why) {
        if ctx.config.coherence.mode == CoherenceMode::Tracking {
            return self.enter(ctx, Coherence::None, why);
        }
        *self.arming.no_better.borrow_mut() = why;
        // Whatever becomes of this lane's own copies: others live by these messages.
        self.arming.publishes.set(true);
        self.try_pubsub(ctx);
    }

    /// The channel has come up, is lost, or could not be had.
    pub(crate) fn channel_changed(self: &Rc<Self>, ctx: &Rc<Ctx>) {
        if self.is_live() && self.publishes() && ctx.cache_serves() {
            self.try_pubsub(ctx);
        }
    }

    fn try_pubsub(self: &Rc<Self>, ctx: &Rc<Ctx>) {
        self.forget_canary();
        let before = self.arming.no_better.borrow().clone();
        let state = ctx.status.channel.state();
        if ctx.channel.is_confirmed() {
            self.enter(
                ctx,
                Coherence::Probing,
                Why::of("waiting for the channel to bring a message back").after(before),
            );
            return self.send_message(ctx);
        }
        if state == ChannelState::Connecting {
            return self.enter(ctx, Coherence::Probing, Why::of("waiting for the channel").after(before));
        }
        let why = Why::with(&format!("the channel is {}", state.as_str()), &ctx.status.channel.why()).after(before);
        let mode = match ctx.config.coherence.mode {
            CoherenceMode::Pubsub => Coherence::None,
            _ => Coherence::Ttl,
        };
        self.enter(ctx, mode, why);
    }

    /// The proof of `pubsub`: an invalidation of a key that nobody has, published as this user's writes will be, which the
    /// channel must bring back before it answers a PING that was sent after upstream's answer to the PUBLISH.
    fn send_message(&self, ctx: &Ctx) {
        let now = clock::now();
        let (number, key) = self.new_canary(ctx, now);
        let tell = super::tell::told(ctx, Op::Key, &[key.into()]);
        let atomic = ctx.config.coherence.pubsub_atomic;
        if atomic {
            self.send_own(now, super::tell::MULTI, Waiting::Canary(Step::Multi, number));
        }
        self.send_own(now, &tell, Waiting::Canary(if atomic { Step::Queued } else { Step::Published }, number));
        if atomic {
            self.send_own(now, super::tell::EXEC, Waiting::Canary(Step::Published, number));
        }
    }

    fn on_message_step(self: &Rc<Self>, ctx: &Rc<Ctx>, key: Vec<u8>, step: Step, frame: &[u8]) {
        let failed = reply::is_error(frame);
        match step {
            // Then the PUBLISH behind it is executed at once, and is all that is needed.
            Step::Multi => self.arming.no_multi.set(failed),
            Step::Queued if failed => self.publish_refused(ctx, &handshake::error_text(frame)),
            Step::Published if failed && !self.arming.no_multi.get() => {
                self.publish_refused(ctx, &handshake::error_text(frame));
            }
            Step::Published => {
                let (lane, ctx) = (self.clone(), ctx.clone());
                tokio::task::spawn_local(async move {
                    let hold = Rc::new(Hold::default());
                    ctx.channel.fence(clock::now(), &hold);
                    if hold.is_waiting() {
                        hold.released().await;
                    }
                    if ctx.channel.is_confirmed() && lane.awaits(&key) {
                        lane.forget_canary();
                        let before = lane.arming.no_better.borrow().clone();
                        lane.enter(&ctx, Coherence::Ttl, Why::of(UNHEARD).after(before));
                    }
                });
            }
            Step::Queued | Step::Read | Step::Bar => {}
        }
    }

    /// The channel's PONG to a PING that was sent at `f`.
    pub(crate) fn channel_proved(&self, f: u64) {
        if self.mode() == Coherence::Pubsub {
            self.f.set(self.f.get().max(f));
            self.publish();
        }
    }

    /// The channel has brought an invalidation of a canary's key.
    pub(crate) fn heard_canary(self: &Rc<Self>, ctx: &Rc<Ctx>, key: &[u8]) {
        let heard = self.arming.canary.borrow_mut().take_if(|c| c.key == key);
        let Some(canary) = heard else { return };
        ctx.metrics.lag.observe(clock::now().saturating_sub(canary.sent));
        if self.mode() == Coherence::Probing {
            let before = self.arming.no_better.borrow().clone();
            // Only the channel's PONGs count from here on.
            self.f.set(0);
            self.enter(ctx, Coherence::Pubsub, Why::of(HEARD).after(before));
            ctx.channel.want(clock::now(), 0);
        }
    }

    /// Takes on a mode. What was stored in another one is void.
    pub(super) fn enter(self: &Rc<Self>, ctx: &Rc<Ctx>, mode: Coherence, why: Why) {
        let before = self.arming.mode.replace(mode);
        let stores = |mode| matches!(mode, Coherence::Tracking | Coherence::Pubsub | Coherence::Ttl);
        if stores(before) && before != mode && self.is_live() {
            self.arming.mode.set(before);
            self.note_end();
            self.arming.mode.set(mode);
            self.epoch.set(ctx.next_epoch());
        }
        *self.uncached.borrow_mut() = (!stores(mode)).then(|| why.full());
        *self.arming.why.borrow_mut() = why;
        self.publish();
        self.show(ctx);
        self.say(ctx);
    }

    /// What health and metrics show.
    fn show(&self, ctx: &Ctx) {
        let link = match (self.is_live(), self.mode()) {
            (false, _) => Link::Down,
            (true, Coherence::Probing) => Link::Arming,
            (true, Coherence::None) if ctx.cache_serves() => Link::Untracked,
            (true, _) => Link::Live,
        };
        self.status.set_link(link);
        self.status.set_epoch(self.epoch.get());
        let asked = matches!(ctx.config.coherence.mode, CoherenceMode::Pubsub) && self.mode() == Coherence::Pubsub;
        self.status.set_mode(self.mode(), asked, &self.arming.why.borrow().plain);
        ctx.show_coherence();
    }

    /// One line of the log at each change of mode, a warning where it is not what was asked for. Before the line that says
    /// what runs nothing is said; whoever writes that one calls this again.
    pub(crate) fn say(&self, ctx: &Ctx) {
        let (mode, why) = (self.mode(), self.arming.why.borrow().clone());
        let now = Some((mode, why.clone()));
        if mode == Coherence::Probing || !ctx.status.started() || *self.arming.said.borrow() == now {
            return;
        }
        *self.arming.said.borrow_mut() = now;
        let (user, db, why) = (self.profile.user(), self.profile.db, why.full());
        match mode {
            Coherence::None if ctx.cache_serves() => tracing::warn!(user, db, "served uncached: {why}"),
            Coherence::None => tracing::info!(user, db, "served uncached: {why}"),
            _ if falls_short(ctx.config.coherence.mode, mode) => {
                tracing::warn!(user, db, "coherence falls back to {}: {why}", mode.as_str());
            }
            _ => tracing::info!(user, db, "coherence is {}: {why}", mode.as_str()),
        }
    }

    // ---- the canary ----

    fn prove_tracking(self: &Rc<Self>, ctx: &Rc<Ctx>) {
        if ctx.config.coherence.canary == Wanted::Off {
            return self.enter(ctx, Coherence::Tracking, Why::of(TRUSTED));
        }
        self.enter(ctx, Coherence::Probing, Why::of("waiting for the canary's invalidation"));
        self.send_canary(ctx);
    }

    /// Has this lane read its key, which makes upstream remember it.
    fn send_canary(&self, ctx: &Ctx) {
        let now = clock::now();
        let (number, key) = self.new_canary(ctx, now);
        let mut raw = bytes::BytesMut::new();
        build::command(&mut raw, &[b"GET", &key]);
        if let Some(canary) = self.arming.canary.borrow_mut().as_mut() {
            canary.sent = 0;
        }
        self.send_own(now, &raw, Waiting::Canary(Step::Read, number));
    }

    /// A name of its own each time: what becomes of an earlier one must not be taken for this one's invalidation.
    fn new_canary(&self, ctx: &Ctx, now: u64) -> (u64, Vec<u8>) {
        let number = ctx.next_canary();
        let key = ctx.upstream_name(format!("{CANARY}{}-{number}", ctx.instance).as_bytes()).into_owned();
        *self.arming.canary.borrow_mut() = Some(Canary { number, key: key.clone(), sent: now });
        self.arming.canary_at.set(now);
        (number, key)
    }

    /// `coherence.canary` as an interval; called with every tick.
    pub(super) fn repeat_canary(&self, ctx: &Ctx, now: u64) {
        let Wanted::Every(interval) = ctx.config.coherence.canary else { return };
        let under_way = self.arming.canary.borrow().is_some();
        if under_way || now.saturating_sub(self.arming.canary_at.get()) < super::reader::nanos(interval) {
            return;
        }
        match self.mode() {
            Coherence::Tracking => self.send_canary(ctx),
            Coherence::Pubsub => self.send_message(ctx),
            Coherence::Probing | Coherence::Ttl | Coherence::None => {}
        }
    }

    /// An answer on a canary's account, if it is that of the one under way: a PING that was sent for an earlier one may be
    /// answered on a connection that has never read its key.
    pub(super) fn on_canary(self: &Rc<Self>, ctx: &Rc<Ctx>, step: Step, number: u64, frame: &[u8]) {
        let canary = self.arming.canary.borrow();
        let Some(key) = canary.as_ref().filter(|c| c.number == number).map(|c| c.key.clone()) else { return };
        drop(canary);
        match step {
            Step::Read if reply::is_error(frame) => {
                let error = handshake::error_text(frame);
                self.trust(ctx, Why::with(NO_RIGHT, &error));
            }
            Step::Read => {
                let (lane, ctx) = (self.clone(), ctx.clone());
                tokio::task::spawn_local(async move { lane.write_canary(&ctx, number, key).await });
            }
            // The invalidation takes the canary away, so it has not come.
            Step::Bar => self.distrust(ctx),
            Step::Multi | Step::Queued | Step::Published => self.on_message_step(ctx, key, step, frame),
        }
    }

    /// Writes the key over another connection. Whatever keeps it from being written is no evidence against tracking.
    async fn write_canary(self: Rc<Self>, ctx: &Rc<Ctx>, number: u64, key: Vec<u8>) {
        let repeats = matches!(ctx.config.coherence.canary, Wanted::Every(_));
        let opened = match repeats {
            true => ctx.pool.checkout(&self.profile, self.proto.get()).await,
            false => ctx.pool.fresh(&self.profile, self.proto.get()).await,
        };
        let mut conn = match opened {
            Ok(conn) => conn,
            Err(e) => return self.unwritten(ctx, &key, Why::with(NOT_WRITTEN, &e.to_string())),
        };
        let sent = clock::now();
        if let Some(canary) = self.arming.canary.borrow_mut().as_mut().filter(|c| c.key == key) {
            canary.sent = sent;
        }
        let nonce = sent.to_string();
        match conn.link.ask(&[b"SET", &key, nonce.as_bytes(), b"PX", CANARY_TTL]).await {
            Ok(frame) if reply::is_error(&frame) => {
                self.unwritten(ctx, &key, Why::with(NO_RIGHT, &handshake::error_text(&frame)));
            }
            Ok(_) => {
                if self.awaits(&key) {
                    self.ping(clock::now(), Waiting::Canary(Step::Bar, number));
                    // What becomes of the key before that is answered must be the write's doing.
                    let _ = self.inquire(clock::now(), &[b"PING"]).await;
                }
                // Its second is for a sidecar that dies here.
                let _ = conn.link.ask(&[b"DEL", &key]).await;
                if repeats {
                    ctx.pool.give_back(conn);
                }
            }
            Err(e) => self.unwritten(ctx, &key, Why::with(NOT_WRITTEN, &e.to_string())),
        }
    }

    fn unwritten(self: &Rc<Self>, ctx: &Rc<Ctx>, key: &[u8], why: Why) {
        if self.awaits(key) {
            self.trust(ctx, why);
        }
    }

    pub(super) fn forget_canary(&self) {
        *self.arming.canary.borrow_mut() = None;
    }

    /// `key` is that of the canary under way, and its invalidation has not come.
    fn awaits(&self, key: &[u8]) -> bool {
        self.arming.canary.borrow().as_ref().is_some_and(|c| c.key == key)
    }

    /// A key was invalidated on this lane (none: all of them). True: it was the canary's. It counts also where it comes
    /// before our write, because upstream's table of tracked keys was full or flushed: it has come on this lane.
    pub(super) fn saw_canary(self: &Rc<Self>, ctx: &Rc<Ctx>, key: Option<&[u8]>) -> bool {
        let seen = self.arming.canary.borrow_mut().take_if(|c| key.is_none_or(|key| c.key == key));
        let Some(canary) = seen else { return false };
        if canary.sent > 0 && key.is_some() {
            ctx.metrics.lag.observe(clock::now().saturating_sub(canary.sent));
        }
        self.trust(ctx, Why::of(PROVED));
        true
    }

    fn trust(self: &Rc<Self>, ctx: &Rc<Ctx>, why: Why) {
        self.forget_canary();
        if matches!(self.mode(), Coherence::Probing | Coherence::Tracking) {
            self.enter(ctx, Coherence::Tracking, why);
        }
    }

    /// Upstream said OK to CLIENT TRACKING and does not do it.
    fn distrust(self: &Rc<Self>, ctx: &Rc<Ctx>) {
        self.forget_canary();
        let mut raw = bytes::BytesMut::new();
        build::command(&mut raw, &[b"CLIENT", b"TRACKING", b"OFF"]);
        self.send_own(clock::now(), &raw, Waiting::Track(false));
        self.without_tracking(ctx, Why::of(UNSEEN));
    }

    /// Whether the lane waits for an invalidation of its own key: the one thing that a push has to look at.
    pub(super) fn awaits_canary(&self) -> bool {
        self.arming.canary.borrow().is_some()
    }

    pub(crate) fn speaks_resp2(&self) -> bool {
        self.proto.get() == Proto::Resp2
    }
}

/// Less than what the configuration asks for.
fn falls_short(asked: CoherenceMode, mode: Coherence) -> bool {
    match asked {
        CoherenceMode::Auto | CoherenceMode::Tracking => mode != Coherence::Tracking,
        CoherenceMode::Pubsub => mode != Coherence::Pubsub,
        CoherenceMode::Ttl => false,
    }
}
