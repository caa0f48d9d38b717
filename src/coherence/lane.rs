//! One lane: the multiplexed upstream connection of a profile, as sessions see it. They append commands, it remembers what
//! each reply is for. The task that connects, reads and writes is in `reader`; what happens when the connection is lost in
//! `loss`.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;

use smallvec::SmallVec;
use tokio::sync::{Notify, oneshot};

use super::again::Rereads;
use super::facts::LaneFacts;
use super::hold::Hold;
use super::log::Log;
use super::mode::{Arming, Why};
use super::recovery::{Place, Recovery};
use super::spare::{HeldUp, SpareOf};
use super::stale::LostLane;
use super::touch::Touching;
use super::wait::{Fetch, FetchRead, MgetFetch, Miss, Origin, Part, Refresh, RefreshKey, Relay, Waiter, Waiting};
use crate::cache::{FormId, StripeId, Token};
use crate::config::CacheMode;
use crate::mutation::{self, Rule};
use crate::observe::reasons::{Bypass, Coherence, Discard};
use crate::observe::status::{LaneStatus, Status};
use crate::outage::Outage;
use crate::policy::Keep;
use crate::resp::{Proto, build};
use crate::session::Session;
use crate::upstream::Profile;
use crate::upstream::handshake::{self, Refusal};
use crate::wake::Wake;
use crate::worker::Ctx;
use crate::worker::observe::Watched;

/// Bytes of commands that a lane takes before sessions must wait: enough for 60,000 small commands in flight, and the most
/// that a stuck upstream makes a lane keep.
const LOG_MAX: usize = 32 << 20;

/// A split MGET asks for the TTLs of at most so many misses; beyond it nothing is stored (decision 4).
pub(crate) const MGET_POPULATE_MAX: usize = 64;

/// What a lane can do for a session now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Availability {
    /// Takes commands: connected, or on its way back after a loss.
    Ready,
    /// Has never been connected; whether it can be is not known yet.
    Starting,
    /// Upstream refused what a lane needs (HELLO 3, its credential): sessions get connections of their own.
    Refused(String),
    /// Upstream is gone, or this lane cannot be had: the last attempt to connect failed, or nothing is answered.
    Gone(Outage),
    /// Upstream is back, and writes that were queued meanwhile are being done. It takes reads of other keys.
    Replaying {
        outage: Outage,
        /// What was queued when it came back is done: everything else waits for the rest.
        last: bool,
    },
}

pub(crate) struct Lane {
    pub(crate) profile: Profile,
    /// Identity across reconnects.
    pub(crate) id: u32,
    /// Number of the live connection; 0 while there is none, which no entry carries.
    pub(super) epoch: Cell<u64>,
    /// Send time of the newest answered command (`F`); 0 before the first.
    pub(super) f: Cell<u64>,
    /// The same two, and `caches`, for other threads.
    pub(crate) facts: Arc<LaneFacts>,
    /// What was lost last (decision 6).
    pub(super) lost: Cell<LostLane>,
    /// Why nothing may be stored through this lane, if so.
    pub(super) uncached: RefCell<Option<String>>,
    pub(super) inner: RefCell<Inner>,
    /// Which mode it is in, and what decides that.
    pub(super) arming: Arming,
    /// What the present connection speaks; RESP2 only where upstream has no RESP3 for it.
    pub(super) proto: Cell<Proto>,
    /// What health and metrics show of it.
    pub(super) status: Arc<LaneStatus>,
    /// Wakes the lane's task: bytes to write, or a reason to end.
    pub(super) wake: Wake,
    /// Wakes sessions that wait for `Starting` to end.
    pub(crate) changed: Notify,
    pub(super) kill: RefCell<Option<String>>,
    /// Upstream is no master any more: nothing more is sent on this connection, which ends when what it has been sent is
    /// answered, at this time at the latest, for this reason (decision 9).
    pub(super) leaving: RefCell<Option<(u64, String)>>,
    /// When a cacheable read was last asked of it, hits included (R5).
    pub(super) last_read: Cell<u64>,
    pub(super) last_sent: Cell<u64>,
    /// Commands since the last tick.
    pub(super) sent: Cell<u64>,
    pub(super) last_byte: Cell<u64>,
    pub(super) last_role_check: Cell<u64>,
    pub(super) role_check: Cell<bool>,
    /// Upstream lets no field of a hash expire on its own (R9).
    pub(super) fields_stay: Cell<bool>,
    pub(super) upstream_id: Cell<i64>,
    pub(super) upstream_role: RefCell<String>,
    /// How many reads may go up at once while it recovers.
    pub(super) recovery: Recovery,
    /// What is done while it is held up, and by which connection (decision 9).
    pub(super) held: HeldUp,
    /// It is itself the spare connection of a lane.
    pub(super) spare_of: Option<SpareOf>,
    /// Nobody needs it any more.
    pub(super) ended: Cell<bool>,
    /// Something was stored under the present epoch (else it needs no fence).
    pub(super) populated: Cell<bool>,
    /// What is read again of what is hit.
    pub(super) rereads: Rereads,
    /// Whether upstream is told what is hit.
    pub(super) touching: Touching,
    /// The connection that queued writes are being done on; 0: none.
    pub(super) replaying: Cell<u64>,
    /// Stripes of keys that are not to be stored before they are.
    pub(super) covered: RefCell<HashMap<Box<[u8]>, StripeId>>,
}

pub(super) struct Inner {
    pub(super) availability: Availability,
    pub(super) log: Log,
    pub(super) fifo: VecDeque<Waiter>,
    /// Fetches that others may join (R13), by key.
    pub(super) flights: Flights,
    /// Refreshes whose GET has not been read yet, by stripe (R17).
    pub(super) refreshing: HashMap<StripeId, SmallVec<[Rc<Refresh>; 1]>, foldhash::fast::RandomState>,
    /// Sessions that wait until the log is shorter.
    pub(super) throttled: Vec<Rc<Session>>,
}

/// A fetch's key and, if it is no GET, its words.
type Flights = HashMap<(Rc<[u8]>, Option<FormId>), Rc<Fetch>, foldhash::fast::RandomState>;

impl Inner {
    /// `fetch` is answered: nobody may join it any more.
    pub(super) fn land(&mut self, fetch: &Rc<Fetch>) {
        let flight = (fetch.key.clone(), fetch.read.id.clone());
        if self.flights.get(&flight).is_some_and(|f| Rc::ptr_eq(f, fetch)) {
            self.flights.remove(&flight);
        }
    }

    /// Wakes the sessions that wait for a shorter log, once it is half as long.
    pub(super) fn let_go(&mut self) {
        if !self.throttled.is_empty() && self.log.len() < LOG_MAX / 2 {
            self.throttled.drain(..).for_each(|session| session.wake.call());
        }
    }
}

/// A split MGET as the session prepared it.
pub(crate) struct MgetRequest {
    pub(crate) slot: u64,
    pub(crate) raw: Box<[u8]>,
    pub(crate) parts: Vec<Part>,
    pub(crate) misses: Vec<Miss>,
    pub(crate) epoch: u64,
    /// Where the lane recovers.
    pub(crate) place: Option<Place>,
}

impl Lane {
    pub(super) fn new(ctx: &Ctx, profile: Profile) -> Lane {
        Lane {
            id: ctx.next_lane(),
            status: ctx.status.add_lane(profile.db, &profile.user()),
            profile,
            epoch: Cell::new(0),
            f: Cell::new(0),
            facts: Arc::default(),
            lost: Cell::default(),
            uncached: RefCell::new((!ctx.cache_serves()).then(|| ctx.why_not_serving())),
            inner: RefCell::new(Inner {
                availability: Availability::Starting,
                log: Log::default(),
                fifo: VecDeque::new(),
                flights: HashMap::default(),
                refreshing: HashMap::default(),
                throttled: Vec::new(),
            }),
            arming: Arming::default(),
            proto: Cell::new(Proto::Resp3),
            wake: Wake::default(),
            changed: Notify::new(),
            kill: RefCell::new(None),
            leaving: RefCell::new(None),
            last_read: Cell::new(0),
            last_sent: Cell::new(0),
            sent: Cell::new(0),
            last_byte: Cell::new(0),
            last_role_check: Cell::new(0),
            role_check: Cell::new(false),
            fields_stay: Cell::new(false),
            upstream_id: Cell::new(0),
            upstream_role: RefCell::default(),
            recovery: Recovery::new(ctx.config.cache.refills_max),
            held: HeldUp::default(),
            spare_of: None,
            ended: Cell::new(false),
            populated: Cell::new(false),
            rereads: Rereads::default(),
            touching: Touching::default(),
            replaying: Cell::new(0),
            covered: RefCell::default(),
        }
    }

    /// A lane that cannot be had, for the profiles beyond `upstream.lanes_max`.
    pub(crate) fn none(ctx: &Ctx, profile: Profile, why: &str) -> Rc<Lane> {
        let lane = Lane::new(ctx, profile);
        lane.retire(&ctx.status);
        lane.inner.borrow_mut().availability = Availability::Refused(why.to_owned());
        Rc::new(lane)
    }

    /// Its connection is closed for good: no client is on it.
    pub(crate) fn end(&self, status: &Status) {
        self.ended.set(true);
        self.inner.borrow_mut().availability = Availability::Refused("the lane has ended".to_owned());
        self.retire(status);
        self.kill("no client needs it");
    }

    /// It will not be shown any more.
    pub(crate) fn retire(&self, status: &Status) {
        status.remove_lane(&self.status);
    }

    /// Refused: whoever holds it should ask for another one.
    pub(crate) fn is_over(&self) -> bool {
        matches!(self.inner.borrow().availability, Availability::Refused(_))
    }

    /// The cache's mode was `before`: arms or disarms a live lane, over the connection it has.
    ///
    /// **No stale value over a switch.** Away from `serve`: the L1 is flushed and this lane enters `none` in the same step,
    /// which ends the epoch of everything stored or under way; a fetch that is answered later finds another epoch (R12).
    /// Back: until upstream's answer to the *last* CLIENT TRACKING ON has been read the lane is in `none`, where no fetch has
    /// a token and no PTTL is sent; from there it arms as a new connection does, and only reads that are sent behind that
    /// answer may be stored. Stream order makes that enough: an older answer (on, off, on again before the first is
    /// answered) can only arm the lane when all three commands have been written before, so what is read after it is
    /// executed behind the last of them. A connection that was still being made is put right in `came_up`.
    pub(crate) fn change_mode(self: &Rc<Self>, ctx: &Rc<Ctx>, before: CacheMode) {
        let (on, was_on) = (ctx.cache_serves(), before == CacheMode::Serve);
        let tracks = self.is_live() && !self.speaks_resp2() && ctx.config.coherence.mode.wants_tracking();
        if tracks && on != was_on {
            self.ask_for_tracking(on);
        }
        if !on || (self.is_live() && !tracks) {
            let no_resp3 = self.speaks_resp2().then(|| Refusal::NoResp3(String::new()));
            self.arm(ctx, Err(no_resp3.unwrap_or(Refusal::NotAsked)));
        }
    }

    pub(super) fn ask_for_tracking(&self, on: bool) {
        let word: &[u8] = if on { b"ON" } else { b"OFF" };
        let mut raw = bytes::BytesMut::new();
        build::command(&mut raw, &[b"CLIENT", b"TRACKING", word]);
        self.send_own(crate::observe::clock::now(), &raw, Waiting::Track(on));
    }

    pub(crate) fn availability(&self) -> Availability {
        self.inner.borrow().availability.clone()
    }

    pub(crate) fn is_ready(&self) -> bool {
        matches!(self.inner.borrow().availability, Availability::Ready)
    }

    /// Whether the table of outages is what answers its commands now.
    pub(crate) fn is_gone(&self) -> bool {
        matches!(self.inner.borrow().availability, Availability::Gone(_))
    }

    /// What its clients are told then.
    pub(crate) fn outage_text(&self, now: u64) -> Option<String> {
        match &self.inner.borrow().availability {
            Availability::Gone(outage) | Availability::Replaying { outage, .. } => Some(outage.text(now)),
            _ => None,
        }
    }

    /// Upstream has said something on it since then.
    pub(crate) fn was_heard_since(&self, since: u64) -> bool {
        self.is_live() && self.last_byte.get() >= since
    }

    pub(crate) fn is_live(&self) -> bool {
        self.epoch.get() != 0
    }

    pub(crate) fn epoch(&self) -> u64 {
        self.epoch.get()
    }

    /// Nanoseconds since the send time of the newest answered command; none before the first.
    pub(crate) fn lease_age(&self, now: u64) -> Option<u64> {
        (self.is_live() && self.f.get() > 0).then(|| now.saturating_sub(self.f.get()))
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.inner.borrow().fifo.len()
    }

    /// Why nothing is stored through this lane, if so.
    pub(crate) fn uncached(&self) -> Option<String> {
        self.uncached.borrow().clone()
    }

    /// Whether replies about fields of a hash may be kept.
    pub(crate) fn fields_stay(&self) -> bool {
        self.fields_stay.get()
    }

    /// Reads of hashes are kept from now on: where the connection was not asked about the expiry of fields when it came up,
    /// it is asked now.
    pub(crate) fn asks_for_field_expiry(self: &Rc<Self>, ctx: &Rc<Ctx>) {
        if !self.is_live() || !ctx.kept().reads_fields() || self.fields_stay() {
            return;
        }
        let asked = self.inquire(crate::observe::clock::now(), &handshake::field_expiry_question());
        let (lane, ctx, epoch) = (self.clone(), ctx.clone(), self.epoch());
        tokio::task::spawn_local(async move {
            // A connection that is lost meanwhile asks anew when it comes up.
            if let Ok(frame) = asked.await
                && lane.epoch() == epoch
            {
                lane.fields_stay.set(handshake::fields_stay(&ctx.server.borrow(), &frame));
            }
        });
    }

    pub(crate) fn caches(&self) -> bool {
        self.uncached.borrow().is_none()
    }

    /// R8, first half: whether entries of this lane may be served at `now` to a session with this fence, and under which
    /// epoch. Must be called before the entry is looked up.
    pub(crate) fn vouches(&self, now: u64, fence: u64, max_staleness: u64) -> Result<u64, Bypass> {
        debug_assert!(self.facts.promise_no_more(self.vouchable(), self.f.get()), "a lane's facts were not published");
        let epoch = self.epoch.get();
        if epoch == 0 {
            return Err(Bypass::NotLive);
        }
        match self.arming.mode() {
            // T1: nothing tells this lane of changes, so nothing needs to be proved of it.
            Coherence::Ttl => return Ok(epoch),
            Coherence::Tracking | Coherence::Pubsub => {}
            Coherence::Probing | Coherence::None => return Err(Bypass::NotLive),
        }
        let f = self.f.get();
        if now.saturating_sub(f) > max_staleness && !mutation::off(Rule::Lease) {
            return Err(Bypass::Lease);
        }
        if f <= fence && !mutation::off(Rule::Fence) {
            return Err(Bypass::Fence);
        }
        Ok(epoch)
    }

    /// Tells other threads what this lane vouches for, after whatever has changed it.
    pub(super) fn publish(&self) {
        self.facts.publish(self.vouchable(), self.f.get());
    }

    /// The epoch whose entries other threads may serve; 0: none. What the other modes ask of a hit is asked on this thread
    /// only: there the others hand everything over.
    fn vouchable(&self) -> u64 {
        if self.caches() && self.mode() == Coherence::Tracking { self.epoch.get() } else { 0 }
    }

    /// When a cacheable read was last asked of it, by this thread or another.
    pub(super) fn read_at(&self) -> u64 {
        self.last_read.get().max(self.facts.last_read())
    }

    /// `note_read` for a read that goes upstream: in `pubsub` mode the lease is the channel's.
    pub(super) fn note_miss(&self, ctx: &Ctx, now: u64) {
        if self.mode() == Coherence::Pubsub {
            ctx.channel.want(now, ctx.max_staleness / 4);
        }
    }

    /// A cacheable read was asked of this lane, hit or miss: keeps its heartbeat going (R5).
    pub(crate) fn note_read(&self, now: u64) {
        self.last_read.set(now);
    }

    /// Whether the lane's backlog is so long that the session should wait; it is woken when it may go on.
    pub(crate) fn is_full(&self, session: &Rc<Session>) -> bool {
        let mut inner = self.inner.borrow_mut();
        let full = inner.log.len() > LOG_MAX;
        if full {
            inner.throttled.push(session.clone());
        }
        full || self.spare_is_full(session)
    }

    /// Sends a client's command.
    pub(crate) fn relay(&self, ctx: &Ctx, now: u64, raw: &[u8], mut relay: Relay) {
        let refresh = relay.refresh.clone();
        let hold = relay.hold.clone();
        if refresh.is_some() && !self.caches() {
            relay.refresh = None;
        }
        if self.stands_in() {
            return self.send_own(now, &select(self.profile.db), Waiting::StandIn(relay, raw.into()));
        }
        match relay.tell.clone().filter(|_| self.publishes()) {
            Some(tell) => self.send_told(ctx, now, raw, relay, &tell),
            None => self.send_own(now, raw, Waiting::Relay(relay)),
        }
        let mut inner = self.inner.borrow_mut();
        if let Some(refresh) = refresh.filter(|_| self.caches()) {
            self.send_refresh(&mut inner, now, refresh);
        }
        // A PONG of a connection that does not track proves nothing.
        if let Some(hold) = hold.filter(|_| !self.is_spare()) {
            hold.expect();
            self.send(&mut inner, now, PING, Waiting::Fence(hold));
        }
    }

    pub(super) fn send(&self, inner: &mut Inner, now: u64, raw: &[u8], kind: Waiting) {
        let len = u32::try_from(raw.len()).unwrap_or(u32::MAX);
        debug_assert_eq!(len as usize, raw.len(), "large requests never go over the lane");
        inner.log.extend(raw);
        inner.fifo.push_back(Waiter { t_sent: now, len, attempts: 0, kind });
        self.sent.set(self.sent.get() + 1);
        self.rereads.note_sent();
        self.last_sent.set(now);
        self.wake.call();
    }

    /// A command on the lane's own account.
    pub(super) fn send_own(&self, now: u64, raw: &[u8], kind: Waiting) {
        self.send(&mut self.inner.borrow_mut(), now, raw, kind);
    }

    /// Sends again what a lost connection did not answer (R26), or what was never written to it.
    pub(super) fn resend(&self, now: u64, raw: &[u8], waiter: Waiter) {
        let mut inner = self.inner.borrow_mut();
        inner.log.extend(raw);
        inner.fifo.push_back(waiter);
        self.last_sent.set(now);
        self.wake.call();
    }

    /// GET, or another read that is kept, on a miss: joins a flight that is still good for this session (R13), else sends
    /// the read and PTTL with a token (R11); without the right to store only the read.
    pub(crate) fn fetch(
        &self,
        ctx: &Ctx,
        now: u64,
        session: &Rc<Session>,
        slot: u64,
        key: &[u8],
        get: FetchRequest<'_>,
    ) {
        let flight = (Rc::from(key), get.read.id.clone());
        self.note_miss(ctx, now);
        let kept_out = get.keep.is_none();
        if kept_out && ctx.cache_serves() {
            self.overtake(ctx, key, get.read.id.is_none());
        }
        if get.may_join && !kept_out && self.join(ctx, now, session, slot, &flight) {
            return;
        }
        // While it arms, or is not connected, a reading is not to be stored; yet of a crowd that waits for one key one read
        // goes up. (Epoch 0 is nobody's, so its token gives no right.)
        let epoch = if self.is_arming() { 0 } else { self.epoch.get() };
        let flies = !kept_out && (self.caches() || self.is_arming());
        let token = if flies { ctx.l1.token(key, epoch) } else { None };
        let (Some(keep), Some(token)) = (get.keep, token) else {
            if !kept_out && self.caches() {
                ctx.metrics.bypass.inc(Bypass::Pending);
                self.supersede(ctx, key);
            }
            let mut relay = Relay::plain(session.clone(), slot, get.read.form, get.read.resend);
            relay.watched = get.watched;
            return self.send(&mut self.inner.borrow_mut(), now, get.raw, Waiting::Relay(relay));
        };
        let mut fetch = Fetch::unasked(flight.0, get.read, token, now, keep, Origin::Clients);
        fetch.place = get.place;
        fetch.waiters.borrow_mut().push((session.clone(), slot));
        self.send_fetch(now, get.raw, fetch);
    }

    /// A read and, where its token gives a right to store it, its PTTL; from here on others may join it.
    pub(super) fn send_fetch(&self, now: u64, raw: &[u8], fetch: Fetch) {
        let fetch = Rc::new(fetch);
        let mut inner = self.inner.borrow_mut();
        self.send(&mut inner, now, raw, Waiting::Fetch(fetch.clone()));
        if fetch.token.epoch != 0 {
            let pttl = pttl(&fetch.key);
            self.send(&mut inner, now, &pttl, Waiting::FetchTtl(fetch.clone()));
        }
        inner.flights.insert((fetch.key.clone(), fetch.read.id.clone()), fetch);
    }

    fn join(&self, ctx: &Ctx, now: u64, session: &Rc<Session>, slot: u64, to: &(Rc<[u8]>, Option<FormId>)) -> bool {
        let inner = self.inner.borrow();
        let Some(flight) = inner.flights.get(to).filter(|flight| self.may_join(ctx, now, session, flight)) else {
            return false;
        };
        flight.waiters.borrow_mut().push((session.clone(), slot));
        session.asks_nothing(slot);
        ctx.metrics.coalesced.inc();
        true
    }

    fn may_join(&self, ctx: &Ctx, now: u64, session: &Session, flight: &Fetch) -> bool {
        // Upstream may have answered it as soon as it was sent, so it is no better than a copy of that age.
        let young = now.saturating_sub(flight.t_sent) <= ctx.max_staleness.min(self.ttl_cap(ctx));
        // Epoch 0: it was sent before there were copies, by this connection or the one to come. It is not answered yet, so
        // nobody has been told anything by this lane that was executed behind it; what is told on another connection waits for
        // this lane's PONG, which is behind it, or fences its session.
        let ours = flight.token.epoch == self.epoch.get() || flight.token.epoch == 0;
        young && ours && flight.t_sent > session.fence.get() && ctx.l1.alive(&flight.token)
    }

    /// `fetch` would join another one now.
    pub(crate) fn would_join(&self, ctx: &Ctx, now: u64, session: &Session, key: &[u8], id: Option<FormId>) -> bool {
        let inner = self.inner.borrow();
        let flight = inner.flights.get(&(Rc::from(key), id));
        flight.is_some_and(|flight| self.may_join(ctx, now, session, flight))
    }

    /// MGET of which some keys are missing: asks for those, and for their TTLs where they may be stored.
    pub(crate) fn mget(&self, ctx: &Ctx, now: u64, session: &Rc<Session>, request: MgetRequest) {
        self.note_miss(ctx, now);
        let misses = &request.misses;
        let populate = misses.len() <= MGET_POPULATE_MAX && self.caches();
        let asked = |m: &Miss| populate && m.right.is_some();
        let mut words: Vec<&[u8]> = vec![b"MGET"];
        words.extend(misses.iter().map(|m| &*m.key));
        let mut raw = bytes::BytesMut::new();
        build::command(&mut raw, &words);
        let ttls: Vec<(usize, Vec<u8>)> =
            misses.iter().enumerate().filter(|(_, m)| asked(m)).map(|(i, m)| (i, pttl(&m.key))).collect();
        let fetch = Rc::new(MgetFetch {
            session: RefCell::new(Some(session.clone())),
            slot: request.slot,
            raw: request.raw,
            parts: request.parts,
            misses: RefCell::new(request.misses),
            epoch: request.epoch,
            flush_gen: ctx.l1.flush_gen(),
            t_sent: now,
            _place: request.place,
        });
        let mut inner = self.inner.borrow_mut();
        self.send(&mut inner, now, &raw, Waiting::Mget(fetch.clone()));
        for (i, ttl) in &ttls {
            self.send(&mut inner, now, ttl, Waiting::MgetTtl(fetch.clone(), *i));
        }
    }

    /// GET (or MGET) and PTTL behind a write: upstream's own answer is what the L1 may keep (decision 5).
    fn send_refresh(&self, inner: &mut Inner, now: u64, refresh: Rc<Refresh>) {
        let keys = refresh.keys.borrow();
        let mut words: Vec<&[u8]> = vec![if keys.len() == 1 { b"GET" } else { b"MGET" }];
        words.extend(keys.iter().map(|k| &*k.key));
        let mut raw = bytes::BytesMut::new();
        build::command(&mut raw, &words);
        self.send(inner, now, &raw, Waiting::Refresh(refresh.clone()));
        for (i, key) in keys.iter().enumerate() {
            self.send(inner, now, &pttl(&key.key), Waiting::RefreshTtl(refresh.clone(), i));
            let of_stripe = inner.refreshing.entry(key.token.stripe).or_default();
            // Once, also where two keys share the stripe: one push is one bump, and excuses no second one.
            if of_stripe.last().is_none_or(|last| !Rc::ptr_eq(last, &refresh)) {
                of_stripe.push(refresh.clone());
            }
        }
    }

    /// A command of our own whose reply the caller awaits.
    pub(crate) fn ask(&self, now: u64, words: &[&[u8]]) -> oneshot::Receiver<Vec<u8>> {
        let mut raw = bytes::BytesMut::new();
        build::command(&mut raw, words);
        self.ask_raw(now, &raw)
    }

    /// The same of what changes nothing and waits for nothing.
    pub(crate) fn inquire(&self, now: u64, words: &[&[u8]]) -> oneshot::Receiver<Vec<u8>> {
        let mut raw = bytes::BytesMut::new();
        build::command(&mut raw, words);
        self.ask_as(now, &raw, Waiting::Inquire)
    }

    pub(super) fn ask_raw(&self, now: u64, raw: &[u8]) -> oneshot::Receiver<Vec<u8>> {
        self.ask_as(now, raw, Waiting::Ask)
    }

    fn ask_as(
        &self,
        now: u64,
        raw: &[u8],
        kind: fn(oneshot::Sender<Vec<u8>>) -> Waiting,
    ) -> oneshot::Receiver<Vec<u8>> {
        let (tx, rx) = oneshot::channel();
        self.send_own(now, raw, kind(tx));
        rx
    }

    /// One more PING for `hold` to wait for, where this lane has anything that a hit could come from.
    pub(crate) fn fence(&self, now: u64, hold: &Rc<Hold>) {
        let mut inner = self.inner.borrow_mut();
        // Whatever is outstanding may yet be stored: a fetch is a flight only until GET's answer, an MGET never is one.
        // In the other modes it is not this lane that brings invalidations.
        let brings = self.mode() == Coherence::Tracking || self.is_arming();
        if !self.is_live() || !brings || (!self.populated.get() && inner.fifo.is_empty()) {
            return;
        }
        hold.expect();
        self.send(&mut inner, now, PING, Waiting::Fence(hold.clone()));
    }

    pub(super) fn ping(&self, now: u64, kind: Waiting) {
        let raw = if matches!(kind, Waiting::RoleCheck) { HELLO } else { PING };
        self.send_own(now, raw, kind);
    }

    /// Ends the present connection; the lane reconnects.
    pub(crate) fn kill(&self, why: &str) {
        self.kill.borrow_mut().get_or_insert_with(|| why.to_owned());
        self.wake.call();
    }

    /// Stops storing through this lane for as long as its connection lives.
    pub(super) fn stop_caching(self: &Rc<Self>, ctx: &Rc<Ctx>, why: Why) {
        ctx.metrics.discarded.inc(Discard::NoPerm);
        self.enter(ctx, Coherence::None, why);
    }
}

/// A GET, or another read that is kept, on its way to the lane.
pub(crate) struct FetchRequest<'a> {
    pub(crate) raw: &'a [u8],
    pub(crate) read: FetchRead,
    /// None: it is not to be stored.
    pub(crate) keep: Option<Keep>,
    pub(crate) may_join: bool,
    /// Where the lane recovers.
    pub(crate) place: Option<Place>,
    /// As observe mode is told of it, where it is not to be stored.
    pub(crate) watched: Option<Box<Watched>>,
}

impl Refresh {
    /// Keys with the tokens that were taken right after their own `begin_write`s.
    pub(crate) fn new(now: u64, keys: SmallVec<[RefreshKey; 1]>) -> Rc<Refresh> {
        Rc::new(Refresh { t_sent: now, keys: RefCell::new(keys), got: Cell::new(false) })
    }

    /// A bump of `stripe` that R17 excuses.
    pub(super) fn carry(&self, stripe: StripeId) {
        if self.got.get() {
            return;
        }
        for key in self.keys.borrow_mut().iter_mut().filter(|k| k.token.stripe == stripe) {
            key.token = Token { generation: key.token.generation + 1, ..key.token };
        }
    }
}

pub(super) const PING: &[u8] = b"*1\r\n$4\r\nPING\r\n";
/// With its version, because Redis 6.0 knows no HELLO without.
const HELLO: &[u8] = b"*2\r\n$5\r\nHELLO\r\n$1\r\n3\r\n";

fn select(db: u32) -> Vec<u8> {
    let mut raw = bytes::BytesMut::new();
    build::command(&mut raw, &[b"SELECT", db.to_string().as_bytes()]);
    raw.into()
}

fn pttl(key: &[u8]) -> Vec<u8> {
    let mut raw = bytes::BytesMut::new();
    build::command(&mut raw, &[b"PTTL", key]);
    raw.into()
}
