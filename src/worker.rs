//! What one data thread owns: its lanes, its pinned connections, its sessions, and the few things they share. Everything in
//! here is single-threaded; only `l1`, `metrics` and `status` are shared with other threads. Here is what there is and how it
//! begins; what is done with it stands in a file for each theme.

mod fences;
pub(crate) mod held;
mod lanes;
pub(crate) mod ledger;
mod names;
pub(crate) mod observe;
pub(crate) mod rollout;
mod rules;
mod sessions;
mod upstream;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::rc::Rc;
use std::sync::Arc;

use dashmap::DashMap;

use self::observe::Observing;
use crate::cache::{L1, Large};
use crate::coherence::{Channel, Hold, Lane, LastRun, Samples, Touches};
use crate::command::cacheable::KeptCommands;
use crate::command::categories::Categories;
use crate::command::prefix::{Prefix, Words};
use crate::config::{Backend, CacheMode, Config};
use crate::live::Live;
use crate::local::Engine;
use crate::observe::clock;
use crate::observe::metrics::{Metrics, Setup};
use crate::observe::status::Status;
use crate::outage::Breaker;
use crate::policy::commands::Policy;
use crate::policy::{Current, Experiments, Rules};
use crate::session::{InForce, Session};
use crate::upstream::handshake::{Learned, ServerInfo};
use crate::upstream::pinned::{Pool, Settings};
use crate::upstream::{Credential, Profile};

pub(crate) use rules::shown;

use rules::{linger, name_tags};

/// Bytes read from a client at once.
const SCRATCH: usize = 64 * 1024;

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
