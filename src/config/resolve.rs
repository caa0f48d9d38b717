//! From settings to the resolved `Config`: defaults, types, ranges and what must agree between keys. Runs once at start;
//! all problems are collected, so that a file is corrected in one go. It opens nothing but password files.

use std::{
    fs::File,
    io::Read,
    net::SocketAddr,
    ops::RangeInclusive,
    path::{Path, PathBuf},
    time::Duration,
};

use super::{
    Admin, AdminResp, Alerts, Backend, Cache, CacheMode, Canary, Candidates, Coherence, CoherenceMode, Config, Costs,
    Environment, Eviction, Fence, Http, JournalFsync, KeyNames, Listen, Local, Log, LogFormat, Observe, OnWrite,
    Outage, OutageError, OutageReads, OutageWrites, QueueConflict, Retry, Secret, TtlCap, Upstream, Warm, WarmFrom,
    cpu,
    file::{Node, Value},
    settings::Settings,
    units::{self, DURATION_MAX, SIZE_MAX, shown},
    url::{self, Url},
};

use crate::command::cacheable::Caching;
use crate::command::prefix::PREFIX_MAX;
use crate::command::table;
use crate::observe::reasons::Method;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// Loopback only: whoever wants more says so.
pub(super) const TCP_DEFAULT: [&str; 2] = ["127.0.0.1:6380", "[::1]:6380"];
const HTTP_DEFAULT: &str = "127.0.0.1:9380";

/// What applications ask for most, and what one change of a key drops least of.
const COMMANDS_DEFAULT: [&str; 2] = ["GET", "MGET"];

const NO_UPSTREAM: &str =
    "no upstream: set upstream.url, for example redis://127.0.0.1:6379, or 'embedded' for the in-memory engine";

/// `cache.max_bytes: auto` where memory is not limited further. A sidecar that takes more without being asked would
/// surprise.
const CACHE_AUTO: u64 = 256 * MIB;

/// Writes that wait for upstream: a minute and a half of a thousand a second, replayed in a second or two.
const QUEUE_MAX: u64 = 100_000;

/// What they may weigh: a sidecar's spare memory, and enough for all of them at 300 bytes each.
const QUEUE_BYTES: u64 = 64 * MIB;

/// One thread feeds them all; what more of them bring beyond this nobody has measured.
const WORKERS_MAX: u64 = 64;

/// Below this an L1 holds hardly one value of the default `max_value_bytes`.
const CACHE_MIN: u64 = MIB;

/// Larger values leave the lane for a connection of their own (`limits::LARGE`), where nothing is cached.
pub(super) const VALUE_MAX: u64 = crate::limits::LARGE as u64;

/// A client that is given less could not even receive an answer of usual size.
const OUTPUT_MIN: u64 = 16 * KIB;

/// The least that Redis allows for `client-query-buffer-limit`.
const QUERY_MIN: u64 = MIB;

/// Probes go out every quarter of it; under 10 ms a single scheduling delay would suspend every hit.
const STALENESS_MIN: Duration = Duration::from_millis(10);

/// The sidecars' channel: the same for all sidecars of an upstream, so it has a default that fits all.
const CHANNEL: &str = "nearside:invalidate";

/// More would be a load of its own, and it is held to 1 % of the commands sent anyway.
const SAMPLES_MAX: u64 = 1000;

/// Redis says -BUSY after 5 s (`busy-reply-threshold`), and that has to arrive.
const STALL_SOUND: Duration = secs(6);

/// No entry lives longer in any mode (DESIGN 4): what Redis never signals must end some day.
pub(super) const TTL_MAX: Duration = Duration::from_secs(24 * 3600);

/// The longest path a unix socket address holds on Linux, without its closing zero.
const SOCKET_PATH_MAX: usize = 107;

/// More than one connection for each of the ports a host has makes no sense; it also bounds what is allocated per limit.
const CONNECTIONS_MAX: u64 = 1_000_000;

/// Passwords are short; the bound keeps a wrong path from filling memory.
const PASSWORD_MAX: u64 = 64 * KIB;

/// What takes longer than the last bucket of the histograms (10.5 s) is not told apart.
const P99_MAX: Duration = secs(10);

/// A million of anything for a million requests, or a GiB: who writes more has the unit wrong.
const PRICE_MAX: f64 = 1e6;

/// `USD`, or a word such as `credits`.
const CURRENCY_MAX: usize = 12;

/// The clock that upstream's LRU figures are kept by ticks once a second.
const TOUCH_MIN: Duration = secs(1);

/// Upstream answers hardly more, and clients want to be answered as well.
const WARM_RATE_MAX: u32 = 100_000;

/// Their names are remembered while it lasts, so that what SCAN returns twice is loaded once.
const WARM_KEYS_MAX: u64 = 10_000_000;

/// A process that begins with more of its last run's keys than this means a list or a glob.
const LAST_RUN_KEYS_MAX: u64 = 1000;

/// More would make of every key a family of its own.
const SEPARATORS_MAX: usize = 8;

/// Each family is a dozen series in every scrape.
const KEY_PATTERNS_MAX: u64 = 1000;

/// Each followed key takes up to 2 KiB, in three sketches.
const HOT_KEYS_MAX: u64 = 10_000;
/// What a pod may take of its node's disk without being asked about it, and room for 10,000 writes of 16 KiB with some to
/// spare for what is applied and not removed yet.
const JOURNAL_BYTES: u64 = 256 * MIB;

/// Its files are a sixteenth of it, and one holds some hundred writes at least.
const JOURNAL_MIN: u64 = MIB;

pub(super) struct Resolver<'s> {
    pub(super) settings: &'s Settings,
    pub(super) problems: Vec<String>,
    pub(super) warnings: Vec<String>,
}

impl<'s> Resolver<'s> {
    pub(super) fn new(settings: &'s Settings) -> Resolver<'s> {
        Resolver { settings, problems: Vec::new(), warnings: Vec::new() }
    }

    /// The whole configuration; only valid where `problems` is empty afterwards. `memory` is the cgroup's limit.
    pub(super) fn config(&mut self, memory: Option<u64>) -> Config {
        let cache = self.cache(memory);
        let environment = self.environment();
        let config = Config {
            environment,
            listen: self.listen(),
            upstream: self.upstream(environment),
            admin: self.admin(),
            workers: self.workers(),
            rules: self.rules(&cache),
            cache,
            local: Local { max_bytes: self.budget("local.max_bytes", memory) },
            warm: self.warm(),
            coherence: self.coherence(),
            outage: self.outage(),
            observe: self.observe(),
            commands: self.commands(),
            http: self.http(),
            alerts: self.alerts(),
            costs: self.costs(),
            log: self.log(),
        };
        // What disagrees only because a value fell back to its default would be noise.
        if self.problems.is_empty() {
            self.check(&config, memory);
        }
        config
    }

    /// `http.listen` alone: the health command needs no upstream.
    pub(super) fn http_listen(&mut self) -> Vec<SocketAddr> {
        self.list("http.listen", &[HTTP_DEFAULT], address)
    }

    fn environment(&mut self) -> Environment {
        let words = [("development", Environment::Development), ("production", Environment::Production)];
        self.word("environment", &words)
    }

    fn listen(&mut self) -> Listen {
        let tcp = self.list("listen.tcp", &TCP_DEFAULT, address);
        // By value, so that the printed configuration behaves as the one it was printed from.
        let tcp_is_default = tcp.iter().map(SocketAddr::to_string).eq(TCP_DEFAULT);
        Listen {
            tcp,
            tcp_is_default,
            unix: self.one("listen.unix", None, |text| socket_path(text).map(Some)),
            unix_mode: self.one("listen.unix_mode", 0o660, file_mode),
            protected: self.one("listen.protected", true, units::boolean),
            max_clients: self.count("listen.max_clients", 10_000, 1..=CONNECTIONS_MAX),
            idle_timeout: self.timeout("listen.idle_timeout"),
            output_limit: self.size("listen.output_limit", 64 * MIB, OUTPUT_MIN..=SIZE_MAX),
            query_limit: self.size("listen.query_limit", GIB, QUERY_MIN..=SIZE_MAX),
            buffers_max: self.size("listen.buffers_max", 128 * MIB, OUTPUT_MIN..=SIZE_MAX),
            drain_delay: self.duration("listen.drain_delay", Duration::ZERO, Duration::ZERO..=DURATION_MAX),
            drain_timeout: self.duration("listen.drain_timeout", secs(10), Duration::ZERO..=DURATION_MAX),
        }
    }

    fn upstream(&mut self, environment: Environment) -> Upstream {
        let (backend, url) = self.backend(environment);
        let (username, password, password_file) = match backend {
            Backend::Upstream => self.upstream_login(&url),
            Backend::Local => self.no_login(),
        };
        let pinned_max = self.count("upstream.pinned_max", 1024, 1..=CONNECTIONS_MAX);
        Upstream {
            backend,
            endpoint: url.endpoint,
            db: url.db,
            username,
            password,
            password_file,
            connect_timeout: self.duration("upstream.connect_timeout", secs(1), millis(1)..=DURATION_MAX),
            request_timeout: self.timeout("upstream.request_timeout"),
            stall_timeout: self.stall_timeout(),
            info_poll: self.one("upstream.info_poll", Some(secs(10)), info_poll),
            retry: self.retry(),
            lanes_max: self.count("upstream.lanes_max", 64, 1..=CONNECTIONS_MAX),
            pinned_max,
            pinned_idle: self.count("upstream.pinned_idle", 8.min(pinned_max as u64), 0..=CONNECTIONS_MAX),
            key_prefix: self.one("upstream.key_prefix", String::new(), key_prefix),
        }
    }

    /// Who takes the trouble to write a file, or runs in production, means an upstream, and is told that it is missing;
    /// who just starts the program gets the engine.
    fn backend(&mut self, environment: Environment) -> (Backend, Url) {
        if self.settings.get("upstream.url").is_none() {
            if self.settings.has_file || environment == Environment::Production {
                self.problems.push(NO_UPSTREAM.to_owned());
            }
            return (Backend::Local, Url::nowhere());
        }
        let embedded = (Backend::Local, Url::nowhere());
        self.one("upstream.url", embedded, |text| match text {
            url::EMBEDDED => Ok((Backend::Local, Url::nowhere())),
            _ => url::parse(text).map(|url| (Backend::Upstream, url)),
        })
    }

    /// The credentials of the URL, or those of the keys beside it; never a mixture that leaves open which one counts.
    fn upstream_login(&mut self, url: &Url) -> (Option<String>, Option<Secret>, Option<PathBuf>) {
        let named = self.one("upstream.username", None, |text| Ok(Some(text.to_owned())));
        let (from_file, path) = self.password("upstream.password_file");
        if url.password.is_some() && path.is_some() {
            self.problem("upstream.password_file", "upstream.url has a password too; keep one of them");
        }
        if url.username.is_some() && named.is_some() {
            self.problem("upstream.username", "upstream.url has a user name too; keep one of them");
        }
        let username = named.or_else(|| url.username.clone());
        if username.is_some() && url.password.is_none() && path.is_none() {
            let key = if url.username.is_some() { "upstream.url" } else { "upstream.username" };
            self.problem(key, "a user name without a password; set upstream.password_file, or write user:password@ (:password@ without a user) in upstream.url");
        }
        (username, url.password.clone().or(from_file), path)
    }

    fn no_login(&mut self) -> (Option<String>, Option<Secret>, Option<PathBuf>) {
        for key in ["upstream.username", "upstream.password_file"] {
            if self.settings.get(key).is_some() {
                self.problem(key, "is for an upstream, and none is named; set upstream.url");
            }
        }
        (None, None, None)
    }

    /// A share of memory, in bytes or `auto`.
    fn budget(&mut self, key: &str, memory: Option<u64>) -> u64 {
        self.one(key, cache_auto(memory), |text| cache_bytes(text, memory))
    }

    fn retry(&mut self) -> Retry {
        Retry {
            max_attempts: self.small("upstream.retry.max_attempts", 3, 0..=100),
            base_delay: self.duration("upstream.retry.base_delay", millis(50), millis(1)..=DURATION_MAX),
            max_delay: self.duration("upstream.retry.max_delay", secs(5), millis(1)..=DURATION_MAX),
        }
    }

    fn admin(&mut self) -> Admin {
        let words = [("auto", AdminResp::Auto), ("on", AdminResp::On), ("off", AdminResp::Off)];
        let resp = self.word("admin.resp", &words);
        let (password, password_file) = self.password("admin.password_file");
        Admin { resp, password, password_file }
    }

    fn workers(&mut self) -> usize {
        self.one("workers", 1, |text| match text {
            "auto" => Ok(cpu::workers(Path::new("/"))),
            _ => match units::number(text, 1..=WORKERS_MAX) {
                Ok(n) => Ok(n as usize),
                Err(_) => Err(format!("{} is not auto or a number from 1 to {WORKERS_MAX}", shown(text))),
            },
        })
    }

    pub(super) fn cache(&mut self, memory: Option<u64>) -> Cache {
        let max_value_bytes = self.size("cache.max_value_bytes", MIB, 1..=VALUE_MAX);
        let ttl = |least| least..=TTL_MAX;
        Cache {
            mode: self.word("cache.mode", &CacheMode::ALL),
            commands: self.list("cache.commands", &COMMANDS_DEFAULT, kept_command).into_iter().collect(),
            max_bytes: self.budget("cache.max_bytes", memory),
            max_entries: self.one("cache.max_entries", None, |text| units::number(text, 1..=u64::MAX).map(Some)),
            max_value_bytes,
            default_ttl: self.duration("cache.default_ttl", secs(300), ttl(millis(1))),
            negative_ttl: self.duration("cache.negative_ttl", secs(30), ttl(Duration::ZERO)),
            ttl_buffer: self.duration("cache.ttl_buffer", millis(5), ttl(Duration::ZERO)),
            eviction: self.word("cache.eviction", &[("tiny_lfu", Eviction::TinyLfu), ("lru", Eviction::Lru)]),
            on_write: self.word("cache.on_write", &OnWrite::ALL),
            update_max_bytes: self.size(
                "cache.update_max_bytes",
                (16 * KIB).min(max_value_bytes as u64),
                0..=VALUE_MAX,
            ),
            refills_max: self.count("cache.refills_max", 256, 1..=CONNECTIONS_MAX),
            touch_interval: self.one("cache.touch_interval", Some(secs(60)), touch_interval),
        }
    }

    fn warm(&mut self) -> Warm {
        Warm {
            from: self.word("warm.from", &WarmFrom::ALL),
            keys: self.list("warm.keys", &[], key_name),
            patterns: self.list("warm.patterns", &[], key_name),
            rate: self.small("warm.rate", 1000, 1..=WARM_RATE_MAX),
            max_keys: self.count("warm.max_keys", 100_000, 1..=WARM_KEYS_MAX),
            before_ready: self.one("warm.before_ready", false, units::boolean),
            timeout: self.duration("warm.timeout", secs(60), millis(1)..=DURATION_MAX),
            last_run_file: self.one("warm.last_run_file", None, file_path),
            last_run_keys: self.count("warm.last_run_keys", 20, 1..=LAST_RUN_KEYS_MAX),
        }
    }

    fn observe(&mut self) -> Observe {
        let slow = self.duration("observe.slow_log", millis(10), Duration::ZERO..=DURATION_MAX);
        Observe {
            separators: self.one("observe.separators", ":".to_owned(), separators),
            max_key_patterns: self.count("observe.max_key_patterns", 100, 1..=KEY_PATTERNS_MAX),
            keys: self.word("observe.keys", &KeyNames::ALL),
            hot_keys: self.count("observe.hot_keys", 512, 0..=HOT_KEYS_MAX),
            slow_log: (!slow.is_zero()).then_some(slow),
            file: self.one("observe.file", None, state_file),
            candidates: Candidates {
                min_per_minute: self.small("observe.candidates.min_per_minute", 100, 0..=u32::MAX),
                min_latency: self.duration(
                    "observe.candidates.min_latency",
                    Duration::ZERO,
                    Duration::ZERO..=DURATION_MAX,
                ),
            },
        }
    }

    fn coherence(&mut self) -> Coherence {
        use CoherenceMode::{Auto, Pubsub, Tracking, Ttl};
        let words = [Auto, Tracking, Pubsub, Ttl].map(|mode| (mode.as_str(), mode));
        let cap = millis(1)..=TTL_MAX;
        Coherence {
            mode: self.word("coherence.mode", &words),
            max_staleness: self.duration("coherence.max_staleness", secs(1), STALENESS_MIN..=DURATION_MAX),
            fence: self.word("coherence.fence", &[("hold", Fence::Hold), ("session", Fence::Session)]),
            channel: self.one("coherence.channel", CHANNEL.to_owned(), channel),
            sample_per_second: self.count("coherence.sample_per_second", 1, 0..=SAMPLES_MAX),
            ttl_cap: TtlCap {
                tracking: self.duration("coherence.ttl_cap.tracking", TTL_MAX, cap.clone()),
                pubsub: self.duration("coherence.ttl_cap.pubsub", secs(5), cap.clone()),
                ttl: self.duration("coherence.ttl_cap.ttl", secs(1), cap),
            },
            pubsub_atomic: self.one("coherence.pubsub_atomic", true, units::boolean),
            canary: self.one("coherence.canary", Canary::Start, canary),
        }
    }

    fn outage(&mut self) -> Outage {
        Outage {
            reads: self.word("outage.reads", &OutageReads::ALL),
            max_stale: self.duration("outage.max_stale", secs(300), millis(1)..=TTL_MAX),
            writes: self.word("outage.writes", &OutageWrites::ALL),
            queue_max: self.count("outage.queue_max", QUEUE_MAX, 1..=100 * QUEUE_MAX),
            queue_max_bytes: self.size("outage.queue_max_bytes", QUEUE_BYTES, 64 * KIB..=64 * GIB),
            queue_conflict: self.word("outage.queue_conflict", &QueueConflict::ALL),
            error: self.word("outage.error", &OutageError::ALL),
            journal_dir: self.one("outage.journal_dir", None, |text| Ok(Some(PathBuf::from(text)))),
            journal_fsync: self.word("outage.journal_fsync", &JournalFsync::ALL),
            journal_max_bytes: self.size("outage.journal_max_bytes", JOURNAL_BYTES, JOURNAL_MIN..=SIZE_MAX) as u64,
        }
    }

    /// 0 means never.
    fn stall_timeout(&mut self) -> Option<Duration> {
        let limit = self.duration("upstream.stall_timeout", secs(8), Duration::ZERO..=DURATION_MAX);
        (!limit.is_zero()).then_some(limit)
    }

    fn http(&mut self) -> Http {
        let (token, token_file) = self.password("http.token_file");
        Http {
            token,
            token_file,
            listen: self.http_listen(),
            allowed_hosts: self.list("http.allowed_hosts", &[], host_name),
            max_connections: self.count("http.max_connections", 256, 1..=CONNECTIONS_MAX),
            dashboard: self.one("http.dashboard", true, units::boolean),
        }
    }

    fn alerts(&mut self) -> Alerts {
        let share = |text: &str| units::decimal(text, 0.0..=1.0, "a share from 0 to 1, for example 0.05");
        Alerts {
            error_rate: self.one("alerts.error_rate", 0.05, share),
            p99: self.duration("alerts.p99", secs(1), millis(1)..=P99_MAX),
            hit_rate: self.one("alerts.hit_rate", 0.6, share),
            min_requests_per_minute: self.count("alerts.min_requests_per_minute", 100, 1..=CONNECTIONS_MAX) as u64,
            hold: self.duration("alerts.for", secs(30), secs(1)..=secs(3600)),
        }
    }

    fn costs(&mut self) -> Costs {
        Costs {
            currency: self.one("costs.currency", "USD".to_owned(), currency),
            per_million_requests: self.one("costs.per_million_requests", 0.0, price),
            per_gib: self.one("costs.per_gib", 0.0, price),
        }
    }

    fn log(&mut self) -> Log {
        let level = self.word("log.level", &LEVELS);
        let format = self.word("log.format", &[("text", LogFormat::Text), ("json", LogFormat::Json)]);
        Log { level, format }
    }
}

/// The first word is the default.
const LEVELS: [(&str, tracing::Level); 5] = [
    ("info", tracing::Level::INFO),
    ("error", tracing::Level::ERROR),
    ("warn", tracing::Level::WARN),
    ("debug", tracing::Level::DEBUG),
    ("trace", tracing::Level::TRACE),
];

/// What must agree between keys.
impl Resolver<'_> {
    fn check(&mut self, config: &Config, memory: Option<u64>) {
        self.check_addresses(config);
        self.check_sizes(config, memory);
        self.check_pairs(config);
        self.check_last_run(config);
        self.check_embedded(config);
        self.check_backend(config);
        self.check_rules(config);
        if !config.listen.protected {
            self.warnings.push(
                "listen.protected is false: whoever reaches a listening address acts with the sidecar's own rights upstream".to_owned(),
            );
        }
    }

    fn check_addresses(&mut self, config: &Config) {
        if config.listen.tcp.is_empty() && config.listen.unix.is_none() {
            self.problem("listen.tcp", "nothing to listen on; name an address here or a path in listen.unix");
        }
        let mut seen: Vec<SocketAddr> = Vec::new();
        let clients = config.listen.tcp.iter().map(|a| ("listen.tcp", a));
        for (key, address) in clients.chain(config.http.listen.iter().map(|a| ("http.listen", a))) {
            if let Some(other) = seen.iter().find(|other| collide(other, address)) {
                self.problem(key, &format!("{address} is taken by {other}, also in this configuration"));
            }
            seen.push(*address);
        }
        if config.listen.unix.is_some() && config.listen.unix.as_ref() == config.upstream.endpoint.path() {
            self.problem("listen.unix", "is the socket of upstream itself; choose another path");
        }
    }

    fn check_sizes(&mut self, config: &Config, memory: Option<u64>) {
        let cache = &config.cache;
        if cache.max_value_bytes as u64 > cache.max_bytes {
            self.problem("cache.max_value_bytes", "is more than cache.max_bytes");
        }
        if cache.update_max_bytes > cache.max_value_bytes {
            self.problem("cache.update_max_bytes", "is more than cache.max_value_bytes");
        }
        if config.listen.output_limit > config.listen.buffers_max {
            self.warnings.push("listen.output_limit is more than listen.buffers_max, which then decides".to_owned());
        }
        // Three quarters: the rest is needed for buffers, tables and the program itself.
        if let Some(limit) = memory.filter(|limit| cache.max_bytes > limit / 4 * 3) {
            self.warnings.push(format!(
                "cache.max_bytes ({}) is more than three quarters of the memory limit of this process ({}): it may be killed when the cache is full",
                units::show_size(cache.max_bytes),
                units::show_size(limit)
            ));
        }
    }

    /// What the in-memory engine does not carry out must not look as if it did.
    fn check_embedded(&mut self, config: &Config) {
        let commands = &config.commands;
        for (key, given) in [
            ("upstream.key_prefix", !config.upstream.key_prefix.is_empty()),
            ("commands.deny", !commands.deny.is_empty()),
            ("commands.allow", commands.allow.is_some()),
            ("commands.overrides", !commands.overrides.is_empty()),
            ("commands.rate", !commands.rate.is_empty()),
            ("warm.from", config.warm.from == WarmFrom::LastRun),
            ("cache.mode", config.cache.mode == CacheMode::Observe),
            ("observe.file", config.observe.file.is_some()),
            ("warm.keys", !config.warm.keys.is_empty()),
            ("outage.journal_dir", config.outage.journal_dir.is_some()),
            ("warm.patterns", !config.warm.patterns.is_empty()),
        ] {
            if given && config.upstream.backend == Backend::Local {
                self.problem(key, "the in-memory engine has nothing of the kind; name an upstream in upstream.url");
            }
        }
        if config.upstream.backend == Backend::Local && !config.rules.is_empty() {
            self.warnings.push("rules: nothing is cached in front of the in-memory engine, they do nothing".to_owned());
        }
    }

    fn check_pairs(&mut self, config: &Config) {
        let upstream = &config.upstream;
        if upstream.retry.base_delay > upstream.retry.max_delay {
            self.problem("upstream.retry.base_delay", "is more than upstream.retry.max_delay");
        }
        if let Some(limit) = upstream.stall_timeout.filter(|limit| *limit <= STALL_SOUND) {
            self.warnings.push(format!(
                "upstream.stall_timeout is {}: a Redis that runs a long script answers nothing for 5 s and -BUSY from then on, so up to {} it is taken for gone",
                units::show_duration(limit),
                units::show_duration(STALL_SOUND)
            ));
        }
        if config.warm.before_ready && config.warm.is_empty() {
            self.warnings.push(
                "warm.before_ready is true and nothing is to be loaded: name keys in warm.keys or globs in warm.patterns"
                    .to_owned(),
            );
        }
        if upstream.pinned_idle > upstream.pinned_max {
            self.problem("upstream.pinned_idle", "is more than upstream.pinned_max");
        }
    }

    fn check_last_run(&mut self, config: &Config) {
        let (warm, followed) = (&config.warm, config.observe.hot_keys);
        if warm.from == WarmFrom::Lists {
            if warm.last_run_file.is_some() {
                self.warnings.push(
                    "warm.last_run_file is given and nothing is written to it: set warm.from to last_run".to_owned(),
                );
            }
            return;
        }
        if warm.last_run_file.is_none() {
            self.problem(
                "warm.from",
                "last_run needs a file; name one that outlives the process in warm.last_run_file",
            );
        }
        if followed == 0 {
            self.problem("warm.from", "last_run needs to know which keys are asked for most; observe.hot_keys is 0");
        } else if warm.last_run_keys > followed {
            self.problem(
                "warm.last_run_keys",
                &format!("is more than observe.hot_keys ({followed}), which are followed"),
            );
        }
    }
}

impl Resolver<'_> {
    fn check_backend(&mut self, config: &Config) {
        if config.upstream.backend == Backend::Upstream {
            return;
        }
        if config.environment == Environment::Production {
            self.warnings.push(
                "upstream.url is embedded in production: nothing is kept when this process ends, and no other one sees it"
                    .to_owned(),
            );
        }
    }
}

/// A file that Nearside writes itself: its directory has to be there already, or every write would fail.
fn state_file(text: &str) -> Result<Option<PathBuf>, String> {
    let path = PathBuf::from(text);
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    match () {
        () if path.file_name().is_none() || path.is_dir() => {
            Err(format!("{} is a directory; name a file in it", shown(text)))
        }
        () if !dir.is_dir() => {
            Err(format!("{}: there is no directory {}", shown(text), shown(&dir.display().to_string())))
        }
        () => Ok(Some(path)),
    }
}

/// Whether the second listener could not be opened after the first. Port 0 is a free port each time. A wildcard takes
/// the port on all addresses of its family.
fn collide(a: &SocketAddr, b: &SocketAddr) -> bool {
    let same_port = a.port() == b.port() && a.port() != 0 && a.is_ipv4() == b.is_ipv4();
    same_port && (a.ip() == b.ip() || a.ip().is_unspecified() || b.ip().is_unspecified())
}

/// One key each: default where nothing was given, else the value, else a problem that says where and what.
impl Resolver<'_> {
    pub(super) fn one<T>(&mut self, key: &str, default: T, read: impl Fn(&str) -> Result<T, String>) -> T {
        let Some(setting) = self.settings.get(key) else {
            return default;
        };
        let result = match &setting.node.value {
            Value::Text(text) => read(text),
            _ => Err("one value is wanted here, not a list or a map".to_owned()),
        };
        result.unwrap_or_else(|what| {
            self.problem(key, &what);
            default
        })
    }

    pub(super) fn list<T>(&mut self, key: &str, default: &[&str], read: impl Fn(&str) -> Result<T, String>) -> Vec<T> {
        let Some(setting) = self.settings.get(key) else {
            return default.iter().filter_map(|text| read(text).ok()).collect();
        };
        let items: &[Node] = match &setting.node.value {
            Value::List(items) => items,
            _ => {
                self.problem(key, "a list is wanted here, for example [\"a\", \"b\"]");
                return Vec::new();
            }
        };
        let mut out = Vec::new();
        for item in items {
            let result = match &item.value {
                Value::Text(text) => read(text),
                _ => Err("has an element that is not a plain value".to_owned()),
            };
            match result {
                Ok(value) => out.push(value),
                Err(what) => self.problems.push(format!("{}: {key}: {what}", setting.place(item.line))),
            }
        }
        out
    }

    /// The first word is the default.
    fn word<T: Copy>(&mut self, key: &str, words: &[(&str, T)]) -> T {
        self.one(key, words[0].1, |text| units::word(text, words))
    }

    fn size(&mut self, key: &str, default: u64, range: RangeInclusive<u64>) -> usize {
        let bytes = self.one(key, default, |text| units::size(text, range.clone()));
        usize::try_from(bytes).unwrap_or(usize::MAX)
    }

    fn count(&mut self, key: &str, default: u64, range: RangeInclusive<u64>) -> usize {
        let number = self.one(key, default, |text| units::number(text, range.clone()));
        usize::try_from(number).unwrap_or(usize::MAX)
    }

    fn small(&mut self, key: &str, default: u32, range: RangeInclusive<u32>) -> u32 {
        let range = u64::from(*range.start())..=u64::from(*range.end());
        let number = self.one(key, u64::from(default), |text| units::number(text, range.clone()));
        u32::try_from(number).unwrap_or(default)
    }

    fn duration(&mut self, key: &str, default: Duration, range: RangeInclusive<Duration>) -> Duration {
        self.one(key, default, |text| units::duration(text, range.clone()))
    }

    /// A timeout where 0 means none, which is the default.
    fn timeout(&mut self, key: &str) -> Option<Duration> {
        let value = self.duration(key, Duration::ZERO, Duration::ZERO..=DURATION_MAX);
        (!value.is_zero()).then_some(value)
    }

    fn password(&mut self, key: &str) -> (Option<Secret>, Option<PathBuf>) {
        let path = self.one(key, None, |text| Ok(Some(PathBuf::from(text))));
        let secret = self.one(key, None, |text| read_password(Path::new(text)).map(Some));
        (secret, path)
    }

    pub(super) fn problem(&mut self, key: &str, what: &str) {
        self.problems.push(match self.settings.get(key) {
            Some(setting) => format!("{setting}: {key}: {what}"),
            None => format!("{key}: {what}"),
        });
    }
}

fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| {
        format!(
            "{} is not an address; use ip:port, for example 127.0.0.1:6380, 0.0.0.0:6380 or [::1]:6380",
            shown(text)
        )
    })
}

/// A channel's name is any bytes for Redis. Blanks and control characters in one are a slip, and could not be typed again.
fn channel(text: &str) -> Result<String, String> {
    if text.chars().any(|c| c.is_whitespace() || c.is_control()) {
        let what = "has blanks or control characters; write one word, for example";
        return Err(format!("{} {what} {CHANNEL}", shown(text)));
    }
    Ok(text.to_owned())
}

/// `*` would mean something in SORT's BY and GET, where nothing escapes it; and no ACL pattern can hold a blank.
fn key_prefix(text: &str) -> Result<String, String> {
    if text.chars().any(|c| c == '*' || c.is_whitespace() || c.is_control()) {
        return Err(format!(
            "{} has a *, blanks or control characters; write one word, for example app1:",
            shown(text)
        ));
    }
    if text.len() > PREFIX_MAX {
        return Err(format!("{} has {} bytes; {PREFIX_MAX} are allowed", shown(text), text.len()));
    }
    Ok(text.to_owned())
}

/// More often would be a write a moment to every upstream for a figure that nobody reads so often.
const CANARY_MIN: Duration = secs(1);

/// More often would show in upstream's own figures.
const INFO_MIN: Duration = secs(1);

fn info_poll(text: &str) -> Result<Option<Duration>, String> {
    let period = units::duration(text, Duration::ZERO..=TTL_MAX)?;
    if !period.is_zero() && period < INFO_MIN {
        return Err(format!("{} is less than 1s; use 0s to ask upstream nothing", shown(text)));
    }
    Ok((!period.is_zero()).then_some(period))
}

fn touch_interval(text: &str) -> Result<Option<Duration>, String> {
    let interval = units::duration(text, Duration::ZERO..=TTL_MAX)?;
    if !interval.is_zero() && interval < TOUCH_MIN {
        return Err(format!("{} is less than 1s; use 0s to tell upstream nothing", shown(text)));
    }
    Ok((!interval.is_zero()).then_some(interval))
}

/// Letters and digits are what names are made of, and a blank is a slip.
fn separators(text: &str) -> Result<String, String> {
    let odd = text.chars().find(|c| !c.is_ascii_graphic() || c.is_ascii_alphanumeric());
    if text.is_empty() || odd.is_some() || text.len() > SEPARATORS_MAX {
        return Err(format!(
            "{} is not 1 to {SEPARATORS_MAX} separators; write ASCII characters that are no letters, digits or blanks, for example \":/\"",
            shown(text)
        ));
    }
    Ok(text.to_owned())
}

fn file_path(text: &str) -> Result<Option<PathBuf>, String> {
    if text.is_empty() || text.ends_with('/') {
        return Err(format!("{} is not the path of a file", shown(text)));
    }
    Ok(Some(PathBuf::from(text)))
}

/// Any bytes are a key to Redis, also none; in a list here an empty one is a slip.
fn key_name(text: &str) -> Result<String, String> {
    if text.is_empty() { Err("has an empty element".to_owned()) } else { Ok(text.to_owned()) }
}

fn canary(text: &str) -> Result<Canary, String> {
    match text {
        // As Helm renders `off`.
        "off" | "false" => Ok(Canary::Off),
        "start" => Ok(Canary::Start),
        _ => units::duration(text, CANARY_MIN..=DURATION_MAX).map(Canary::Every).map_err(|what| {
            let unclear = what.contains("is not a duration");
            if unclear { format!("{} is not off, start or an interval, for example 60s", shown(text)) } else { what }
        }),
    }
}

fn currency(text: &str) -> Result<String, String> {
    let plain = (1..=CURRENCY_MAX).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric());
    let what = || format!("{} is not a currency; use up to {CURRENCY_MAX} letters, for example USD", shown(text));
    if plain { Ok(text.to_owned()) } else { Err(what()) }
}

/// Of a million requests, or of a GiB.
fn price(text: &str) -> Result<f64, String> {
    units::decimal(text, 0.0..=PRICE_MAX, "a price from 0 to 1000000, for example 0.2")
}

/// Names only: addresses are always allowed, and a port is not part of what is compared.
fn host_name(text: &str) -> Result<String, String> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'.' || b == b'_';
    if text.is_empty() || !text.bytes().all(plain) {
        return Err(format!("{} is not a host name; write it without scheme and port", shown(text)));
    }
    Ok(text.to_ascii_lowercase())
}

fn socket_path(text: &str) -> Result<PathBuf, String> {
    if text.len() > SOCKET_PATH_MAX || text.contains('\0') {
        return Err(format!("a socket's path has at most {SOCKET_PATH_MAX} bytes, and no zero"));
    }
    Ok(PathBuf::from(text))
}

fn file_mode(text: &str) -> Result<u32, String> {
    let digits = text.strip_prefix("0o").unwrap_or(text);
    let octal = !digits.is_empty() && digits.bytes().all(|b| (b'0'..=b'7').contains(&b));
    let mode = u32::from_str_radix(digits, 8).ok().filter(|mode| octal && *mode <= 0o777);
    mode.ok_or_else(|| {
        format!("{} is not a file mode; use octal digits from 0000 to 0777, for example \"0660\"", shown(text))
    })
}

/// Refused by what the table says of the command, so that nobody waits for hits that cannot come.
pub(super) fn kept_command(text: &str) -> Result<Method, String> {
    let shown = shown(&text.to_ascii_uppercase());
    match table::caching(text) {
        Some(Caching::Kept(kept)) => Ok(kept.method),
        Some(Caching::Never(never)) => Err(format!("{shown} is never cached: {}", never.why())),
        None => Err(format!("{shown} is no command that can be cached; those are {}", Method::WORDS.join(", "))),
    }
}

fn cache_bytes(text: &str, memory: Option<u64>) -> Result<u64, String> {
    if text == "auto" {
        return Ok(cache_auto(memory));
    }
    units::size(text, CACHE_MIN..=SIZE_MAX)
        .map_err(|what| if what.contains("is not a size") { format!("{what}, or auto") } else { what })
}

/// Half of the limit: the other half is for buffers, tables, and the application where the limit is the pod's.
fn cache_auto(memory: Option<u64>) -> u64 {
    memory.map_or(CACHE_AUTO, |limit| (limit / 2).clamp(CACHE_MIN, CACHE_AUTO))
}

/// One newline at the end belongs to the file, not to the password: editors and `kubectl create secret` leave it there.
fn read_password(path: &Path) -> Result<Secret, String> {
    let failed = |why: &dyn std::fmt::Display| format!("{:?} cannot be read: {why}", path.display().to_string());
    let mut text = String::new();
    let file = File::open(path).map_err(|e| failed(&e))?;
    file.take(PASSWORD_MAX).read_to_string(&mut text).map_err(|e| failed(&e))?;
    let line = text.strip_suffix('\n').unwrap_or(&text);
    let line = line.strip_suffix('\r').unwrap_or(line);
    if line.is_empty() {
        return Err(format!("{:?} is empty", path.display().to_string()));
    }
    Ok(Secret::new(line.to_owned()))
}

const fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

const fn millis(n: u64) -> Duration {
    Duration::from_millis(n)
}
