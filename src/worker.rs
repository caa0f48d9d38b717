//! What one data thread owns: its lanes, its pinned connections, its sessions, and the few things they share. Everything in
//! here is single-threaded; only `l1`, `metrics` and `status` are shared with other threads.

pub(crate) mod held;
pub(crate) mod ledger;
pub(crate) mod observe;
pub(crate) mod rollout;
mod upstream;

use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use dashmap::DashMap;

use self::observe::Observing;
use crate::cache::{L1, Large, Matcher};
use crate::coherence::{Availability, Channel, Hold, Lane, LastRun, Malformed, Samples, Touches};
use crate::command::Spec;
use crate::command::cacheable::KeptCommands;
use crate::command::categories::Categories;
use crate::command::prefix::{Prefix, Words};
use crate::command::table;
use crate::config::{Backend, CacheMode, Config, OutageReads, OutageWrites};
use crate::live::Live;
use crate::local::Engine;
use crate::mutation::{self, Rule};
use crate::observe::clock;
use crate::observe::metrics::{Metrics, Setup};
use crate::observe::patterns::PatternId;
use crate::observe::reasons::{Coherence, Dropped, Flush, Method, Mode};
use crate::observe::status::Status;
use crate::outage::Breaker;
use crate::policy::commands::Policy;
use crate::policy::{Current, Experiments, Judged, Rules};
use crate::router::Stranger;
use crate::session::{InForce, Session};
use crate::upstream::handshake::{self, Learned, ServerInfo};
use crate::upstream::pinned::{Pool, Settings};
use crate::upstream::{Credential, Profile};

/// Bytes read from a client at once.
const SCRATCH: usize = 64 * 1024;

/// Names that upstream was asked about and that are remembered.
const LEARNED_MAX: usize = 1000;

/// A profile whose lane upstream refused is tried again after so long.
const REFUSED_FOR: u64 = 5_000_000_000;

const SECOND: u64 = 1_000_000_000;

pub(crate) struct Ctx {
    /// As at start. What of it can change, and how it is now, is in `live`.
    pub(crate) config: Arc<Config>,
    pub(crate) live: Live,
    pub(crate) l1: Arc<L1>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) status: Arc<Status>,
    pub(crate) pool: Pool,
    /// The process's subscription to the sidecars' channel.
    pub(crate) channel: Rc<Channel>,
    /// What CLIENT SETNAME says upstream: `nearside:<host>:<pid>`.
    pub(crate) name: String,
    /// No other sidecar has it.
    pub(crate) instance: String,
    /// `upstream.key_prefix`, where it is set.
    pub(crate) prefix: Option<Prefix>,
    /// A request with the prefix in its names, while it is dispatched.
    pub(crate) words: Cell<Words>,
    /// B, in nanoseconds.
    pub(crate) max_staleness: u64,
    /// What a client is before it says AUTH or SELECT.
    pub(crate) default_profile: Profile,
    pub(crate) lanes: RefCell<HashMap<Profile, Rc<Lane>>>,
    pub(crate) sessions: RefCell<BTreeMap<u64, Rc<Session>>>,
    /// What upstream last said of itself.
    pub(crate) server: RefCell<ServerInfo>,
    pub(crate) large: RefCell<Large>,
    /// Entries that are compared with upstream in service.
    pub(crate) samples: Samples,
    /// Keys that were hit here and of which upstream is to be told.
    pub(crate) touches: Touches,
    /// What the process before this one was asked for most.
    pub(crate) last_run: LastRun,
    pub(crate) scratch: RefCell<Vec<u8>>,
    pub(crate) draining: Cell<bool>,
    /// The clock as last read by whoever read a socket: good enough to measure with, never to decide with.
    pub(crate) now: Cell<u64>,
    /// By `clock::now`.
    pub(crate) started: u64,
    /// The backend, where no upstream is named.
    engine: Option<RefCell<Engine>>,
    mode: Cell<CacheMode>,
    /// What is read is told to the shadow: of all keys, or of those of some rules.
    observing: Observing,
    rules: Arc<Current>,
    /// How far their rollouts have come.
    experiments: RefCell<Experiments>,
    /// What any rule keeps: asked of every read.
    kept: Cell<KeptCommands>,
    /// Any rule has writes refresh the L1: asked of every write.
    refreshes: Cell<bool>,
    /// Any rule's writes are answered before upstream has them.
    behind: Cell<bool>,
    /// Who may run what (`commands`).
    pub(crate) policy: InForce,
    /// Sessions that have something to write since the batch began.
    dirty: RefCell<Vec<Rc<Session>>>,
    /// Replies held back, oldest first, and when they are let go at the latest.
    holds: RefCell<VecDeque<(u64, Rc<Hold>)>>,
    /// When something was last handed out that not every lane had proved (decision 6).
    floor: Cell<u64>,
    /// Of the process, not of a thread: what upstream says of a name is the same for all.
    learned: DashMap<Vec<u8>, (Learned, Categories)>,
    /// One `Rc` per credential in use, so that equal ones compare fast and are kept once.
    credentials: RefCell<Vec<Rc<Credential>>>,
    refused: RefCell<HashMap<Profile, (u64, Rc<Lane>)>>,
    breaker: RefCell<Breaker>,
    /// Writes that are acknowledged and not done upstream.
    pub(crate) held: held::AllHeld,
    /// Stale reads and refusals as they were counted when upstream went.
    before_outage: Cell<(u64, u64)>,
    /// Credentials that upstream has accepted.
    accepted: RefCell<Vec<Rc<Credential>>>,
    /// When a malformed message was last logged.
    malformed_logged: Cell<u64>,
    next: Cell<u64>,
    next_session: Cell<u64>,
}

/// What a process of this configuration counts, and how much of it.
pub(crate) fn setup(config: &Config) -> Setup<'_> {
    let observe = &config.observe;
    Setup {
        separators: &observe.separators,
        max_key_patterns: observe.max_key_patterns,
        hot_keys: observe.hot_keys,
        key_prefix: &config.upstream.key_prefix,
        workers: config.workers - 1,
    }
}

impl Ctx {
    pub(crate) fn new(config: Arc<Config>, l1: Arc<L1>, metrics: Arc<Metrics>, status: Arc<Status>) -> Rc<Ctx> {
        let up = &config.upstream;
        let default_profile = Profile::configured(up);
        let credential = default_profile.credential.clone();
        let name = client_name();
        let pool = Pool::new(Settings {
            endpoint: up.endpoint.clone(),
            connect_timeout: up.connect_timeout,
            max: up.pinned_max,
            idle: up.pinned_idle,
            name: name.clone(),
        });
        let max_staleness = u64::try_from(config.coherence.max_staleness.as_nanos()).unwrap_or(u64::MAX);
        let mut rules = Rules::new(&config.rules, &config.cache, &metrics.patterns);
        let mut experiments = Experiments::default();
        experiments.adopt(clock::now(), None, &mut rules, &metrics.arms);
        experiments.settle(&rules, &metrics.arms);
        name_tags(&metrics, &rules);
        l1.set_linger(linger(&config, &rules));
        let engine = (up.backend == Backend::Local)
            .then(|| RefCell::new(Engine::new(config.local.max_bytes, RandomState::new().hash_one(0))));
        let samples = Samples::new(config.coherence.sample_per_second, clock::now());
        let touches = Touches::new(config.cache.touch_interval, clock::now());
        let ctx = Rc::new(Ctx {
            default_profile,
            started: clock::now(),
            // Nothing is cached in front of memory.
            mode: Cell::new(if engine.is_some() { CacheMode::Off } else { config.cache.mode }),
            observing: Observing::default(),
            engine,
            prefix: Prefix::new(&config.upstream.key_prefix),
            words: Cell::default(),
            kept: Cell::new(rules.commands()),
            refreshes: Cell::new(rules.refresh()),
            behind: Cell::new(rules.any_behind()),
            rules: Arc::new(Current::from_pointee(rules)),
            experiments: RefCell::new(experiments),
            policy: InForce::nothing(),
            live: Live::new(config.clone()),
            config,
            l1,
            metrics,
            status,
            pool,
            channel: Channel::new(),
            name,
            instance: instance(),
            max_staleness,
            lanes: RefCell::default(),
            sessions: RefCell::default(),
            server: RefCell::default(),
            large: RefCell::default(),
            samples,
            touches,
            last_run: LastRun::default(),
            scratch: RefCell::new(vec![0; SCRATCH]),
            draining: Cell::new(false),
            now: Cell::new(0),
            dirty: RefCell::default(),
            holds: RefCell::default(),
            floor: Cell::new(0),
            learned: DashMap::new(),
            credentials: RefCell::new(credential.into_iter().collect()),
            refused: RefCell::default(),
            breaker: RefCell::default(),
            held: held::AllHeld::default(),
            before_outage: Cell::default(),
            accepted: RefCell::default(),
            malformed_logged: Cell::new(0),
            next: Cell::new(1),
            next_session: Cell::new(1),
        });
        ctx.set_policy(Arc::new(Policy::new(&ctx.config.commands)));
        ctx.set_slow_log(&ctx.config);
        ctx.metrics.max_bytes.set(ctx.config.cache.max_bytes);
        ctx.begin_or_end_observing();
        ctx
    }

    /// From how long on a command is a slow one.
    pub(crate) fn set_slow_log(&self, config: &Config) {
        let nanos = config.observe.slow_log.map(|limit| u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX - 1));
        self.metrics.slow.set_threshold(nanos);
    }

    fn number(&self) -> u64 {
        let n = self.next.get();
        self.next.set(n + 1);
        n
    }

    /// A number no lane connection has had (R1); 0 means none.
    pub(crate) fn next_epoch(&self) -> u64 {
        self.number()
    }

    pub(crate) fn next_lane(&self) -> u32 {
        self.number() as u32
    }

    pub(crate) fn next_canary(&self) -> u64 {
        self.number()
    }

    pub(crate) fn next_session(&self) -> u64 {
        let n = self.next_session.get();
        self.next_session.set(n + 1);
        n
    }

    /// The local engine, where it is the backend: then there are no lanes, no pinned connections and no channel.
    pub(crate) fn embedded(&self) -> Option<&RefCell<Engine>> {
        self.engine.as_ref()
    }

    // ---- the cache's mode ----

    pub(crate) fn cache_serves(&self) -> bool {
        self.mode.get() == CacheMode::Serve
    }

    pub(crate) fn mode_word(&self) -> &'static str {
        self.mode.get().as_str()
    }

    /// Asked for through `live::set_mode`, which keeps who and when. Nothing stored before is served after; lanes arm or
    /// disarm their tracking (the argument is at `Lane::change_mode`).
    pub(crate) fn set_mode(self: &Rc<Self>, mode: CacheMode) {
        // In front of memory nothing is cached, whatever a reload says.
        if self.engine.is_some() {
            return;
        }
        let before = self.mode.replace(mode);
        if before == mode {
            return;
        }
        self.l1.flush();
        self.metrics.flushes.inc(Flush::Mode);
        self.status.set_mode(shown(mode));
        let lanes: Vec<Rc<Lane>> = self.lanes.borrow().values().cloned().collect();
        lanes.iter().for_each(|lane| lane.change_mode(self, before));
        self.begin_or_end_observing();
    }

    /// A write that was sent while the cache did not serve is answered. Where it serves again, other lanes may have read
    /// what the write was about before it executed (one that has a connection of its own: any lane), and what bars that of
    /// a write has never begun: no `begin_write`, no hold of a script's reply, no flush of SWAPDB, no message. So whatever
    /// was read before this moment goes, and what is being read is not stored; what is sent from here on executes behind it.
    pub(crate) fn end_unseen(&self) {
        if self.cache_serves() && !mutation::off(Rule::Unseen) {
            self.l1.flush();
            self.metrics.flushes.inc(Flush::Mode);
        }
    }

    pub(crate) fn mode(&self) -> CacheMode {
        self.mode.get()
    }

    /// Why nothing is stored through any lane.
    pub(crate) fn why_not_serving(&self) -> String {
        format!("cache.mode is {}", self.mode_word())
    }

    // ---- rules ----

    /// The rules in force, for other threads too.
    pub(crate) fn rules(&self) -> &Arc<Current> {
        &self.rules
    }

    /// What any rule keeps.
    pub(crate) fn kept(&self) -> KeptCommands {
        self.kept.get()
    }

    /// Any rule has writes refresh the L1.
    pub(crate) fn refreshes(&self) -> bool {
        self.refreshes.get()
    }

    /// Writes may wait for upstream while it is there: asked of everything that goes to a lane.
    pub(crate) fn may_be_behind(&self) -> bool {
        self.behind.get() || !self.held.is_empty()
    }

    /// What the rules say of a read of `key` by this command.
    pub(crate) fn judge(&self, key: &[u8], method: Method) -> Judged {
        self.rules.load().judge(&self.metrics.patterns, self.own_name(key), method)
    }

    /// What `key` is counted under.
    pub(crate) fn family(&self, key: &[u8]) -> PatternId {
        self.rules.load().family(&self.metrics.patterns, self.own_name(key))
    }

    /// Puts other rules into force. When this is done no entry is left that they forbid or would have kept otherwise;
    /// returns how many were dropped.
    ///
    /// The argument. Between the change and the sweep's beginning nothing else runs on this thread, the only one that
    /// stores. What is being fetched under the old rules has a token from before the sweep, and is not stored. What is
    /// stored already the sweep finds. Whatever is judged from here on is judged by the new rules.
    /// Rollouts that read as before go on where they were.
    pub(crate) async fn set_rules(self: &Rc<Self>, mut next: Rules) -> usize {
        let arms = &self.metrics.arms;
        self.experiments.borrow_mut().adopt(clock::now(), Some(&self.rules.load()), &mut next, arms);
        let next = Arc::new(next);
        name_tags(&self.metrics, &next);
        let old = self.rules.swap(next.clone());
        self.kept.set(next.commands());
        self.refreshes.set(next.refresh());
        self.begin_or_end_observing();
        self.behind.set(next.any_behind());
        self.l1.set_linger(linger(&self.config, &next));
        let sweep = self.l1.sweep(vec![Matcher::Rules { old, next, prefix: self.prefix.clone() }]);
        self.lanes.borrow().values().for_each(|lane| lane.asks_for_field_expiry(self));
        let dropped = sweep.finish(&self.l1).await;
        let rules = self.rules.load();
        self.experiments.borrow().settle(&rules, arms);
        keep_series(&self.metrics, &rules);
        dropped
    }

    // ---- the command policy ----

    /// Holds for the next command of every session, whatever was found out about it before. A front's right to answer ends
    /// here too: what it answers later than this call it has asked its session for.
    pub(crate) fn set_policy(&self, policy: Arc<Policy>) {
        self.metrics.policy.set_mode(policy.mode());
        self.policy.set(policy);
        self.sessions.borrow().values().for_each(|session| session.changed_policy());
    }

    // ---- lanes ----

    /// The lane of a profile, started if it is the first time it is asked for.
    pub(crate) fn lane(self: &Rc<Self>, profile: &Profile) -> Rc<Lane> {
        if let Some(lane) = self.lanes.borrow().get(profile) {
            return lane.clone();
        }
        if let Some((since, lane)) = self.refused.borrow().get(profile)
            && clock::now().saturating_sub(*since) < REFUSED_FOR
        {
            return lane.clone();
        }
        if self.lanes.borrow().len() >= self.config.upstream.lanes_max && !self.end_unused_lane() {
            return Lane::none(self, profile.clone(), "upstream.lanes_max is reached");
        }
        let lane = Lane::spawn(self, profile.clone());
        self.lanes.borrow_mut().insert(profile.clone(), lane.clone());
        lane
    }

    /// Makes room for another lane: one that no client is on and that has nothing in flight. Its entries end with it.
    fn end_unused_lane(&self) -> bool {
        let in_use: HashSet<Profile> =
            self.sessions.borrow().values().map(|s| s.profile()).chain([self.default_profile.clone()]).collect();
        let unused = self
            .lanes
            .borrow()
            .values()
            .find(|l| l.in_flight() == 0 && !in_use.contains(&l.profile) && !self.held.waits(&l.profile))
            .cloned();
        let Some(lane) = unused else { return false };
        self.lanes.borrow_mut().remove(&lane.profile);
        lane.end(&self.status);
        true
    }

    /// The lane of clients that say neither AUTH nor SELECT.
    pub(crate) fn home_lane(&self) -> Option<Rc<Lane>> {
        self.lanes.borrow().get(&self.default_profile).cloned()
    }

    pub(crate) fn has_live_lane(&self, profile: &Profile) -> bool {
        self.lanes.borrow().get(profile).is_some_and(|lane| lane.is_live())
    }

    /// Upstream refuses what a lane of this profile needs. It is tried again when somebody asks after a while.
    pub(crate) fn lane_refused(&self, lane: &Rc<Lane>, reply: &str) {
        tracing::warn!(user = %lane.profile.user(), db = lane.profile.db,
            "upstream refuses a lane, this user is served uncached on connections of its own: {reply}");
        self.lanes.borrow_mut().remove(&lane.profile);
        lane.retire(&self.status);
        self.channel.try_now();
        // NOAUTH only says that clients bring credentials of their own; any other refusal leaves nothing to cache through.
        if lane.profile == self.default_profile && !reply.contains("NOAUTH") {
            self.status.set_coherence(Coherence::None, &format!("upstream refuses a lane: {}", first_word(reply)));
        }
        let mut refused = self.refused.borrow_mut();
        if refused.len() >= LEARNED_MAX {
            refused.clear();
        }
        refused.insert(lane.profile.clone(), (clock::now(), lane.clone()));
    }

    /// Waits until it is known whether a lane can be had.
    pub(crate) async fn await_lane(&self, lane: &Rc<Lane>) {
        loop {
            let changed = lane.changed.notified();
            if !lane.may_be_ready_soon() {
                return;
            }
            changed.await;
        }
    }

    /// Whether upstream has told this profile to authenticate first.
    pub(crate) fn needs_auth(&self, profile: &Profile) -> bool {
        let refused = self.refused.borrow();
        let noauth = |lane: &Rc<Lane>| matches!(lane.availability(), Availability::Refused(r) if r.contains("NOAUTH"));
        // It was tried again after a while, and may have been let in.
        refused.get(profile).is_some_and(|(_, lane)| noauth(lane)) && !self.has_live_lane(profile)
    }

    /// What keeps the L1 coherent now, in a word: the default profile's mode; where that has no lane, the worst of the
    /// lanes there are.
    pub(crate) fn show_coherence(&self) {
        let lanes = self.lanes.borrow();
        let worst = || lanes.values().max_by_key(|lane| lane.mode() as usize);
        if let Some(lane) = lanes.get(&self.default_profile).or_else(worst) {
            self.status.set_coherence(lane.mode(), &lane.why_plain());
        }
    }

    // ---- fences ----

    /// R15: one PING on every other lane, for a reply that is held already.
    pub(crate) fn fence_others(&self, own: &Lane, hold: &Rc<Hold>) {
        let now = clock::now();
        for lane in self.lanes.borrow().values().filter(|l| l.id != own.id) {
            self.fence(lane, now, hold);
        }
        self.fence_channel(now, hold);
        if !hold.is_waiting() {
            return hold.release(self);
        }
        self.holds.borrow_mut().push_back((now + self.max_staleness, hold.clone()));
    }

    /// R21: one PING on every lane that has anything to serve. False: none has, nothing needs to be held.
    pub(crate) fn fence_all(&self, hold: &Rc<Hold>) -> bool {
        let now = clock::now();
        hold.announce();
        self.lanes.borrow().values().for_each(|lane| self.fence(lane, now, hold));
        self.fence_channel(now, hold);
        hold.is_waiting() && !mutation::off(Rule::Fence)
    }

    /// P5: for lanes that live by the channel, its PONG.
    fn fence_channel(&self, now: u64, hold: &Rc<Hold>) {
        if self.lives_by_channel() {
            self.channel.fence(now, hold);
        }
    }

    /// A lane's copies are true because of what the channel says.
    pub(crate) fn lives_by_channel(&self) -> bool {
        self.lanes.borrow().values().any(|lane| lane.mode() == Coherence::Pubsub)
    }

    /// A lane that is lost answers no PING, but its entries may be asked for while upstream is gone.
    fn fence(&self, lane: &Lane, now: u64, hold: &Rc<Hold>) {
        if lane.is_live() {
            lane.fence(now, hold);
        } else {
            self.raise_floor();
        }
    }

    /// Something that announces changes is handed out now, although not every lane has proved that it has seen them
    /// (decision 6).
    pub(crate) fn raise_floor(&self) {
        self.floor.set(clock::now());
    }

    #[cfg(test)]
    pub(crate) fn forget_floor(&self) {
        self.floor.set(0);
    }

    pub(crate) fn floor(&self) -> u64 {
        self.floor.get()
    }

    /// A hold ends after B at the latest.
    pub(crate) fn release_overdue_holds(&self, now: u64) {
        loop {
            let due = {
                let mut holds = self.holds.borrow_mut();
                match holds.front() {
                    Some((limit, hold)) if *limit <= now || hold.is_released() => holds.pop_front(),
                    _ => None,
                }
            };
            let Some((_, hold)) = due else { return };
            if !hold.is_released() {
                self.raise_floor();
            }
            hold.release(self);
        }
    }

    // ---- the sidecars' channel ----

    /// The subscription stands, is lost, or could not be had: lanes that live by it learn of that.
    pub(crate) fn channel_changed(self: &Rc<Self>) {
        let lanes: Vec<Rc<Lane>> = self.lanes.borrow().values().cloned().collect();
        lanes.iter().for_each(|lane| lane.channel_changed(self));
    }

    /// Everything that was published before `f` has been applied.
    pub(crate) fn channel_proved(&self, f: u64) {
        self.lanes.borrow().values().for_each(|lane| lane.channel_proved(f));
    }

    /// A message names the key of a canary.
    pub(crate) fn heard_canary(self: &Rc<Self>, key: &[u8]) {
        let lanes: Vec<Rc<Lane>> = self.lanes.borrow().values().cloned().collect();
        lanes.iter().for_each(|lane| lane.heard_canary(self, key));
    }

    /// A message that has no effect: counted, and shown once a second at most, escaped and cut, because anybody who may
    /// publish decides what is in it.
    pub(crate) fn malformed(&self, payload: &[u8], why: &Malformed) {
        self.metrics.malformed.inc();
        let now = clock::now();
        if self.malformed_logged.get() != 0 && now.saturating_sub(self.malformed_logged.get()) < SECOND {
            return;
        }
        self.malformed_logged.set(now);
        // Neither the message nor a part of it: it may have a key, or whatever somebody took this channel for.
        tracing::warn!(
            bytes = payload.len(),
            "a message on the channel {} has no effect: {}",
            self.config.coherence.channel,
            why.kind()
        );
    }

    // ---- sessions ----

    /// `session` has something to write, or to be told, when the batch is over.
    pub(crate) fn mark_dirty(&self, session: &Rc<Session>) {
        if session.becomes_dirty() {
            self.dirty.borrow_mut().push(session.clone());
        }
    }

    /// The batch is over: writes what has been completed.
    pub(crate) fn flush_dirty(&self) {
        let mut dirty = std::mem::take(&mut *self.dirty.borrow_mut());
        for session in dirty.drain(..) {
            session.flush_for(self);
        }
        let mut place = self.dirty.borrow_mut();
        if place.is_empty() {
            *place = dirty;
        }
    }

    /// `listen.buffers_max`: while all clients together keep more, the one that keeps most is dropped. Looked at whenever
    /// one client keeps much, and every B/4 for many that keep a little each.
    pub(crate) fn check_buffers(&self) {
        let mut kept: Vec<(usize, Rc<Session>)> =
            self.sessions.borrow().values().map(|s| (s.buffered(), s.clone())).filter(|(n, _)| *n > 0).collect();
        let mut total: usize = kept.iter().map(|(n, _)| n).sum();
        if total <= self.config.listen.buffers_max {
            return;
        }
        kept.sort_unstable_by_key(|(n, _)| std::cmp::Reverse(*n));
        for (n, session) in kept {
            if total <= self.config.listen.buffers_max {
                return;
            }
            session.drop_for(self, Dropped::BuffersMax, "all clients together keep more than listen.buffers_max");
            total -= n;
        }
    }

    pub(crate) fn count_clients(&self) {
        self.metrics.clients.set(self.sessions.borrow().len() as u64);
    }

    /// Protected mode for a client that comes from far: it has to authenticate where the sidecar would otherwise lend it
    /// rights, its own credential's or an upstream's that asks for none.
    pub(crate) fn locks_out(&self, near: bool) -> bool {
        let lends_rights = self.default_profile.credential.is_some() || !self.needs_auth(&self.default_profile);
        self.config.listen.protected && !near && lends_rights
    }

    /// Begins the end: every session closes as soon as nothing is outstanding.
    pub(crate) fn drain(&self) {
        self.draining.set(true);
        self.sessions.borrow().values().for_each(|s| s.wake.call());
    }

    /// Gauges that change too often to be kept at every change; once per tick.
    pub(crate) fn measure(&self) {
        let lanes = self.lanes.borrow();
        let in_flight: usize = lanes.values().map(|l| l.in_flight()).sum();
        if in_flight == 0 {
            self.l1.settle();
        }
        let (entries, bytes) = self.l1.size();
        self.metrics.entries.set(entries);
        self.metrics.bytes.set(bytes);
        self.metrics.pending.set(self.l1.pending());
        self.metrics.in_flight.set(in_flight as u64);
        self.metrics.pinned_connections.set(self.pool.open() as u64);
        if let Some(engine) = &self.engine {
            let engine = engine.borrow();
            let ((keys, bytes), counts, local) = (engine.size(), engine.counts(), &self.metrics.local);
            local.keys.set(keys);
            local.bytes.set(bytes);
            local.expired.set(counts.expired);
            local.evicted.set(counts.evicted);
            local.refused.set(counts.refused);
        }
    }

    // ---- identity ----

    /// What upstream answers to a client that is nobody yet, on a connection of its own (AUTH, RESET); or an error of ours.
    pub(crate) async fn verify(&self, words: &[&[u8]]) -> Result<Vec<u8>, String> {
        if let Some(text) = self.outage_text() {
            return Err(text);
        }
        let unavailable = |e: &dyn std::fmt::Display| format!("NEARSIDE upstream unavailable: {e}");
        let mut link = self.pool.bare().await.map_err(|e| unavailable(&e))?;
        let limit = Duration::from_secs(5);
        match tokio::time::timeout(limit, link.ask(words)).await {
            Ok(Ok(reply)) => Ok(reply),
            Ok(Err(e)) => Err(unavailable(&e)),
            Err(_) => Err(unavailable(&"no answer within 5 s")),
        }
    }

    pub(crate) fn intern(&self, credential: Credential) -> Rc<Credential> {
        let mut all = self.credentials.borrow_mut();
        if let Some(known) = all.iter().find(|c| ***c == credential) {
            return known.clone();
        }
        // Those that nobody holds any more are forgotten.
        all.retain(|c| Rc::strong_count(c) > 1);
        let fresh = Rc::new(credential);
        all.push(fresh.clone());
        fresh
    }

    // ---- names of keys ----

    /// The client's name of a key: what rules and patterns are about.
    pub(crate) fn own_name<'k>(&self, key: &'k [u8]) -> &'k [u8] {
        self.prefix.as_ref().and_then(|prefix| prefix.own(key)).unwrap_or(key)
    }

    /// Upstream's name of a client's key.
    pub(crate) fn upstream_name<'k>(&self, key: &'k [u8]) -> Cow<'k, [u8]> {
        self.prefix.as_ref().map_or(Cow::Borrowed(key), |prefix| Cow::Owned(prefix.key(key)))
    }

    /// The same of a glob.
    pub(crate) fn upstream_glob<'g>(&self, glob: &'g [u8]) -> Cow<'g, [u8]> {
        self.prefix.as_ref().map_or(Cow::Borrowed(glob), |prefix| Cow::Owned(prefix.glob(glob)))
    }

    // ---- names the table does not have ----

    /// What is known of a name that the table does not have.
    pub(crate) fn learned(&self, name: &[u8]) -> Result<&'static Spec, Stranger> {
        let known = self.learned.get(&name.to_ascii_lowercase()).map(|l| l.value().0.clone());
        match known {
            None => Err(Stranger::New),
            Some(Learned::Module { reads_one }) => Err(Stranger::Module { reads_one }),
            Some(Learned::Unknown | Learned::Refused) => Err(Stranger::Unknown),
            Some(Learned::Renamed(canonical)) => table::by_name(canonical.as_bytes()).ok_or(Stranger::Unknown),
        }
    }

    /// All that upstream has said of such a name; none: it has not been asked.
    pub(crate) fn explanation(&self, name: &[u8]) -> Option<(Learned, Categories)> {
        self.learned.get(&name.to_ascii_lowercase()).map(|known| known.value().clone())
    }

    /// Asks upstream once what `name` is (decision 1).
    pub(crate) async fn learn(&self, lane: &Rc<Lane>, name: &[u8]) {
        let name = name.to_ascii_lowercase();
        let answer = match lane.is_ready() {
            // COMMAND INFO knows subcommands by such names; as a command there is none.
            true if name.contains(&b'|') => Some(b"*1\r\n_\r\n".to_vec()),
            true => lane.ask(clock::now(), &[b"COMMAND", b"INFO", &name]).await.ok(),
            false => None,
        };
        // No answer: the lane is lost, and the name is asked about again.
        let Some(frame) = answer else { return };
        let learned = (handshake::learned(&frame), handshake::categories(&frame));
        if self.learned.len() >= LEARNED_MAX {
            self.learned.clear();
        }
        self.learned.insert(name, learned);
    }
}

/// How long entries stay in memory behind their end, for outages.
fn linger(config: &Config, rules: &Rules) -> Duration {
    // A write that needs to know its key asks for it too.
    let queues = config.outage.writes == OutageWrites::Queue || rules.any_queues();
    match config.outage.reads {
        OutageReads::Fail if !queues => Duration::ZERO,
        _ => config.outage.max_stale.max(rules.longest_stale()),
    }
}

/// Every tag's template has its series from the start.
fn name_tags(metrics: &Metrics, rules: &Rules) {
    let templates = rules.list().iter().flat_map(|rule| rule.terms.tags.iter());
    for tag in templates {
        // Where there are too many, they count as `_tag`.
        let _ = metrics.templates.add(tag.text(), 0);
    }
}

/// Series of rules and tags that are no more end here.
fn keep_series(metrics: &Metrics, rules: &Rules) {
    let labels: Vec<PatternId> = rules.list().iter().filter_map(|rule| rule.label).collect();
    metrics.patterns.keep_rules(&labels);
    let names = |name: &str| rules.list().iter().any(|rule| rule.terms.tags.iter().any(|tag| tag.text() == name));
    metrics.templates.keep_only(names);
}

/// The mode as health and metrics have it.
pub(crate) fn shown(mode: CacheMode) -> Mode {
    match mode {
        CacheMode::Serve => Mode::Serve,
        CacheMode::Observe => Mode::Observe,
        CacheMode::Off => Mode::Off,
    }
}

/// What everybody may know of an error: its code, without names.
fn first_word(reply: &str) -> &str {
    let error = reply.split_once(": ").map_or(reply, |(_, error)| error);
    error.split(' ').next().unwrap_or(error)
}

/// Tells this process's keys and messages from those of all others, also where pods share a host name and a pid.
fn instance() -> String {
    format!("{:016x}", RandomState::new().hash_one(std::process::id()))
}

fn client_name() -> String {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let host: String = host.chars().map(|c| if c.is_ascii_graphic() { c } else { '-' }).collect();
    format!("nearside:{host}:{}", std::process::id())
}
