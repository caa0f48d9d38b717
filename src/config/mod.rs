//! The resolved configuration: plain values, validated when they are read, cloned to whoever needs a part of it. `Layers` reads
//! flags over environment over file, at start and again while the process runs. Nothing here is global, and no value
//! changes: another configuration is another value. What the keys mean to users is in `config/nearside.yaml`.

mod commands;
mod cpu;
mod fields;
mod file;
mod keys;
mod layers;
mod live;
mod memory;
mod names;
mod persist;
mod print;
mod resolve;
mod rollout;
mod rule_change;
mod rules;
mod settings;
#[cfg(test)]
mod tests;
mod units;
mod url;

use std::{fmt, net::SocketAddr, path::PathBuf, time::Duration};

pub(crate) use layers::{Layers, look};
pub(crate) use live::differing;
pub(crate) use names::KeyNames;
pub(crate) use print::{json, rule_json, yaml};
pub(crate) use rollout::{AutoRollback, Ramp, Rollout, WHOLE};
pub(crate) use rule_change::{Changed, Place, no_such_rule, put_rule, without_rule};
pub(crate) use rules::{Rule, RuleMode, Variant, show_percent, suggested};
pub(crate) use settings::{Digest, Overrides};
pub(crate) use units::duration;
pub(crate) use url::{Url, parse as parse_url};

use crate::command::cacheable::KeptCommands;
use crate::policy::commands::{Override, Rate, Word};
use resolve::Resolver;
use settings::Settings;

/// Bytes that this process may use, where a control group bounds it.
pub(crate) fn memory_limit() -> Option<u64> {
    memory::limit(std::path::Path::new("/"))
}

/// The word of `cache.mode`.
pub(crate) fn cache_mode(text: &str) -> Result<CacheMode, String> {
    units::word(text, &CacheMode::ALL)
}

/// Reads and checks everything. `env` is the process environment; only `NEARSIDE_*` is looked at. The strings beside the
/// configuration are warnings, one sentence each.
pub(crate) fn load(
    overrides: &Overrides,
    env: impl Iterator<Item = (String, String)>,
) -> Result<(Config, Vec<String>), ConfigError> {
    load_within(overrides, env, memory::limit(std::path::Path::new("/")))
}

fn load_within(
    overrides: &Overrides,
    env: impl Iterator<Item = (String, String)>,
    memory: Option<u64>,
) -> Result<(Config, Vec<String>), ConfigError> {
    resolve(&Settings::gather(overrides, env), memory)
}

fn resolve(settings: &Settings, memory: Option<u64>) -> Result<(Config, Vec<String>), ConfigError> {
    let mut resolver = Resolver::new(settings);
    let config = resolver.config(memory);
    let warnings = [settings.warnings.as_slice(), &resolver.warnings].concat();
    check(settings, &resolver)?;
    Ok((config, warnings))
}

/// Where the side port listens, from the same layers, for commands that talk to a running process and need no upstream.
pub(crate) fn http_listen(
    overrides: &Overrides,
    env: impl Iterator<Item = (String, String)>,
) -> Result<Vec<SocketAddr>, ConfigError> {
    let settings = Settings::gather(overrides, env);
    let mut resolver = Resolver::new(&settings);
    let listen = resolver.http_listen();
    check(&settings, &resolver)?;
    Ok(listen)
}

/// What is cached of which keys, from the same layers, for commands that need no upstream.
pub(crate) fn rules(
    overrides: &Overrides,
    env: impl Iterator<Item = (String, String)>,
) -> Result<(Cache, Vec<Rule>), ConfigError> {
    rules_of(&Settings::gather(overrides, env))
}

/// The same of a configuration that a running process shows; `place` is where it came from.
pub(crate) fn rules_in(place: &str, text: &str) -> Result<(Cache, Vec<Rule>), ConfigError> {
    let mut overrides = Overrides::default();
    overrides.file(Some(place.to_owned()));
    rules_of(&Settings::gather_with(&overrides, std::iter::empty(), Some(text)))
}

fn rules_of(settings: &Settings) -> Result<(Cache, Vec<Rule>), ConfigError> {
    let mut resolver = Resolver::new(settings);
    let cache = resolver.cache(memory::limit(std::path::Path::new("/")));
    let rules = resolver.rules(&cache);
    check(settings, &resolver)?;
    Ok((cache, rules))
}

fn check(settings: &Settings, resolver: &Resolver<'_>) -> Result<(), ConfigError> {
    let mut problems = settings.problems.clone();
    if !settings.incomplete {
        problems.extend_from_slice(&resolver.problems);
    }
    if problems.is_empty() { Ok(()) } else { Err(ConfigError { problems }) }
}

/// Everything that is wrong, one sentence each, with file and line, variable or flag in front.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", problems.join("\n"))]
pub(crate) struct ConfigError {
    problems: Vec<String>,
}

impl ConfigError {
    pub(crate) fn into_problems(self) -> Vec<String> {
        self.problems
    }
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Config {
    pub(crate) environment: Environment,
    pub(crate) listen: Listen,
    pub(crate) upstream: Upstream,
    pub(crate) admin: Admin,
    pub(crate) workers: usize,
    pub(crate) cache: Cache,
    pub(crate) local: Local,
    /// In the order in which they are asked; none: every key is cached as `cache` says.
    pub(crate) rules: Vec<Rule>,
    pub(crate) warm: Warm,
    pub(crate) coherence: Coherence,
    pub(crate) outage: Outage,
    pub(crate) observe: Observe,
    pub(crate) commands: Commands,
    pub(crate) http: Http,
    pub(crate) alerts: Alerts,
    pub(crate) costs: Costs,
    pub(crate) log: Log,
}

impl Config {
    /// Whether a write may ever wait here for upstream.
    pub(crate) fn may_queue(&self) -> bool {
        let may = |rule: &Rule| rule.write == WriteMode::Behind || rule.outage_writes == Some(OutageWrites::Queue);
        self.outage.writes == OutageWrites::Queue || self.rules.iter().any(may)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Environment {
    Development,
    /// `/internal/cache` answers 404.
    Production,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Listen {
    /// May be empty where `unix` is set. Port 0 means any free port.
    pub(crate) tcp: Vec<SocketAddr>,
    /// The addresses are the default ones: an address family that the host lacks is skipped.
    pub(crate) tcp_is_default: bool,
    pub(crate) unix: Option<PathBuf>,
    /// File mode of the socket, at most 0o777.
    pub(crate) unix_mode: u32,
    pub(crate) protected: bool,
    pub(crate) max_clients: usize,
    pub(crate) idle_timeout: Option<Duration>,
    /// Bytes waiting for one client before it is dropped.
    pub(crate) output_limit: usize,
    /// Bytes of one unfinished request.
    pub(crate) query_limit: usize,
    /// Bytes of all clients' buffers together.
    pub(crate) buffers_max: usize,
    pub(crate) drain_delay: Duration,
    pub(crate) drain_timeout: Duration,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Upstream {
    pub(crate) backend: Backend,
    /// Of nowhere where the backend is not it.
    pub(crate) endpoint: Endpoint,
    pub(crate) db: u32,
    /// Never set without a password.
    pub(crate) username: Option<String>,
    pub(crate) password: Option<Secret>,
    /// Where the password was read from; `None` where it stood in the URL.
    pub(crate) password_file: Option<PathBuf>,
    pub(crate) connect_timeout: Duration,
    pub(crate) request_timeout: Option<Duration>,
    /// An upstream that answers nothing for so long is gone; none: never for that.
    pub(crate) stall_timeout: Option<Duration>,
    /// How often it is asked how much it holds; none: never.
    pub(crate) info_poll: Option<Duration>,
    pub(crate) retry: Retry,
    pub(crate) lanes_max: usize,
    pub(crate) pinned_max: usize,
    /// At most `pinned_max`.
    pub(crate) pinned_idle: usize,
    /// In front of every key upstream; empty: none.
    pub(crate) key_prefix: String,
}

impl Upstream {
    /// The URL without credentials.
    pub(crate) fn display(&self) -> String {
        match self.backend {
            Backend::Upstream => url::show(&self.endpoint, self.db),
            Backend::Local => url::EMBEDDED.to_owned(),
        }
    }
}

/// Who answers what is not answered from the L1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Backend {
    /// The Redis or Valkey behind.
    Upstream,
    /// The local engine: `upstream.url: embedded`, or nothing named by anybody.
    Local,
}

impl Backend {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Backend::Upstream => "upstream",
            Backend::Local => "embedded",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Endpoint {
    /// `host` is a name or an address, an IPv6 one without brackets; names are resolved anew at every attempt.
    Tcp {
        host: String,
        port: u16,
    },
    Unix(PathBuf),
}

impl Endpoint {
    fn path(&self) -> Option<&PathBuf> {
        match self {
            Endpoint::Tcp { .. } => None,
            Endpoint::Unix(path) => Some(path),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Retry {
    /// How often an idempotent read is sent again; reconnecting itself never gives up.
    pub(crate) max_attempts: u32,
    pub(crate) base_delay: Duration,
    /// At least `base_delay`.
    pub(crate) max_delay: Duration,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Admin {
    pub(crate) resp: AdminResp,
    pub(crate) password: Option<Secret>,
    pub(crate) password_file: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AdminResp {
    /// On loopback and unix listeners.
    Auto,
    On,
    Off,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Cache {
    pub(crate) mode: CacheMode,
    pub(crate) commands: KeptCommands,
    pub(crate) max_bytes: u64,
    pub(crate) max_entries: Option<u64>,
    /// At most `limits::LARGE` and `max_bytes`.
    pub(crate) max_value_bytes: usize,
    pub(crate) default_ttl: Duration,
    /// Zero: what is absent is not cached.
    pub(crate) negative_ttl: Duration,
    pub(crate) ttl_buffer: Duration,
    pub(crate) eviction: Eviction,
    pub(crate) on_write: OnWrite,
    /// At most `max_value_bytes`.
    pub(crate) update_max_bytes: usize,
    /// Fetches of one lane under way while it recovers.
    pub(crate) refills_max: usize,
    /// How often upstream is told of keys that are hit here; none: never.
    pub(crate) touch_interval: Option<Duration>,
}

/// What is loaded at start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Warm {
    pub(crate) from: WarmFrom,
    pub(crate) keys: Vec<String>,
    /// Globs, as SCAN takes them.
    pub(crate) patterns: Vec<String>,
    /// Keys, or SCANs, a second; at least 1.
    pub(crate) rate: u32,
    /// Keys altogether.
    pub(crate) max_keys: usize,
    /// Not ready before it is done, or `timeout` has passed.
    pub(crate) before_ready: bool,
    pub(crate) timeout: Duration,
    /// Given where `from` is the last run.
    pub(crate) last_run_file: Option<PathBuf>,
    /// Keys that are kept in it.
    pub(crate) last_run_keys: usize,
}

impl Warm {
    pub(crate) fn is_empty(&self) -> bool {
        self.keys.is_empty() && self.patterns.is_empty() && self.from == WarmFrom::Lists
    }

    /// The file to be read and written, if there is to be one.
    pub(crate) fn last_run(&self) -> Option<&PathBuf> {
        self.last_run_file.as_ref().filter(|_| self.from == WarmFrom::LastRun)
    }
}

/// Where the names of keys to be loaded come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WarmFrom {
    /// The configuration.
    Lists,
    /// The same, and what the process before this one was asked for most.
    LastRun,
}

impl WarmFrom {
    /// The first word is the default.
    pub(crate) const ALL: [(&str, WarmFrom); 2] = [("lists", WarmFrom::Lists), ("last_run", WarmFrom::LastRun)];

    pub(crate) fn as_str(self) -> &'static str {
        Self::ALL[self as usize].0
    }
}

/// What is measured beside the bare counts, and what of it is shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Observe {
    /// Each of its characters ends the name of a key's family.
    pub(crate) separators: String,
    pub(crate) max_key_patterns: usize,
    pub(crate) keys: KeyNames,
    /// Keys that are followed; 0: none.
    pub(crate) hot_keys: usize,
    /// From how long on a command is kept; none: never.
    pub(crate) slow_log: Option<Duration>,
    /// What observe mode has learned is kept here over a restart; none: it is not.
    pub(crate) file: Option<PathBuf>,
    pub(crate) candidates: Candidates,
}

/// From where on a family of keys is worth caching.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Candidates {
    pub(crate) min_per_minute: u32,
    /// Of upstream's answers, on average.
    pub(crate) min_latency: Duration,
}

/// The local engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Local {
    pub(crate) max_bytes: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CacheMode {
    Serve,
    /// Nothing is stored or served; what could be is measured.
    Observe,
    Off,
}

impl CacheMode {
    /// The first word is the default.
    const ALL: [(&str, CacheMode); 3] =
        [("serve", CacheMode::Serve), ("observe", CacheMode::Observe), ("off", CacheMode::Off)];

    pub(crate) fn as_str(self) -> &'static str {
        Self::ALL[self as usize].0
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Eviction {
    TinyLfu,
    Lru,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OnWrite {
    Update,
    Resident,
    Invalidate,
}

impl OnWrite {
    /// The first word is the default.
    pub(crate) const ALL: [(&str, OnWrite); 3] =
        [("update", OnWrite::Update), ("resident", OnWrite::Resident), ("invalidate", OnWrite::Invalidate)];

    pub(crate) fn as_str(self) -> &'static str {
        Self::ALL[self as usize].0
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Coherence {
    pub(crate) mode: CoherenceMode,
    /// B of the lease, at least 10 ms.
    pub(crate) max_staleness: Duration,
    pub(crate) fence: Fence,
    /// Where sidecars and applications publish what is to be dropped; one word.
    pub(crate) channel: String,
    /// Entries compared with upstream; 0: none.
    pub(crate) sample_per_second: usize,
    pub(crate) ttl_cap: TtlCap,
    /// In `pubsub` mode a write and its message are one transaction.
    pub(crate) pubsub_atomic: bool,
    pub(crate) canary: Canary,
}

/// What clients get while upstream is gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Outage {
    pub(crate) reads: OutageReads,
    /// How old the last proof of an entry may be, unless its rule says otherwise.
    pub(crate) max_stale: Duration,
    /// For keys whose rule does not say.
    pub(crate) writes: OutageWrites,
    /// Writes that wait, over all databases and users.
    pub(crate) queue_max: usize,
    /// What they and the values they rest on may weigh.
    pub(crate) queue_max_bytes: usize,
    pub(crate) queue_conflict: QueueConflict,
    pub(crate) error: OutageError,
    /// Where queued writes are kept on disk; none: they end with the process.
    pub(crate) journal_dir: Option<PathBuf>,
    pub(crate) journal_fsync: JournalFsync,
    /// Of its files.
    pub(crate) journal_max_bytes: u64,
}

/// When the journal's bytes are on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum JournalFsync {
    /// Within a second.
    Everysec,
    /// Before a write is acknowledged.
    Always,
    /// When the system thinks fit.
    No,
}

/// When a write is answered (`rules[].write`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WriteMode {
    /// When upstream has acknowledged it.
    Through,
    /// At once; upstream is told behind the reply.
    Behind,
}

impl WriteMode {
    /// The first word is the default.
    pub(crate) const ALL: [(&str, WriteMode); 2] = [("through", WriteMode::Through), ("behind", WriteMode::Behind)];

    pub(crate) fn as_str(self) -> &'static str {
        Self::ALL[self as usize].0
    }
}

impl JournalFsync {
    /// The first word is the default.
    pub(crate) const ALL: [(&str, JournalFsync); 3] =
        [("everysec", JournalFsync::Everysec), ("always", JournalFsync::Always), ("no", JournalFsync::No)];

    pub(crate) fn as_str(self) -> &'static str {
        Self::ALL[self as usize].0
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OutageReads {
    /// What the L1 had when upstream went.
    Stale,
    Fail,
    /// The same as `Stale`, and what the L1 did not have from the local engine: no such key, where nobody wrote it here.
    Local,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OutageWrites {
    Fail,
    /// Acknowledged here, done upstream when it is back.
    Queue,
    /// Done in the local engine only, and forgotten when upstream is back.
    Local,
}

/// What becomes of queued writes to a key that somebody else has changed meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum QueueConflict {
    Overwrite,
    Skip,
}

/// How a client is told that there is no upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OutageError {
    Reply,
    /// Its connection is closed, as a dead Redis would.
    Close,
}

impl OutageReads {
    /// The first word is the default.
    pub(crate) const ALL: [(&str, OutageReads); 3] =
        [("stale", OutageReads::Stale), ("fail", OutageReads::Fail), ("local", OutageReads::Local)];

    pub(crate) fn as_str(self) -> &'static str {
        Self::ALL[self as usize].0
    }
}

impl OutageWrites {
    pub(crate) const ALL: [(&str, OutageWrites); 3] =
        [("fail", OutageWrites::Fail), ("queue", OutageWrites::Queue), ("local", OutageWrites::Local)];

    pub(crate) fn as_str(self) -> &'static str {
        Self::ALL[self as usize].0
    }
}

impl QueueConflict {
    pub(crate) const ALL: [(&str, QueueConflict); 2] =
        [("overwrite", QueueConflict::Overwrite), ("skip", QueueConflict::Skip)];

    pub(crate) fn as_str(self) -> &'static str {
        Self::ALL[self as usize].0
    }
}

impl OutageError {
    pub(crate) const ALL: [(&str, OutageError); 2] = [("reply", OutageError::Reply), ("close", OutageError::Close)];

    pub(crate) fn as_str(self) -> &'static str {
        Self::ALL[self as usize].0
    }
}

/// What waits for the invalidations of changes that a reply or message announces without naming them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fence {
    /// The reply or message itself.
    Hold,
    /// The next read of the session that got it.
    Session,
}

impl Fence {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Fence::Hold => "hold",
            Fence::Session => "session",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CoherenceMode {
    Auto,
    Tracking,
    Pubsub,
    Ttl,
}

impl CoherenceMode {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            CoherenceMode::Auto => "auto",
            CoherenceMode::Tracking => "tracking",
            CoherenceMode::Pubsub => "pubsub",
            CoherenceMode::Ttl => "ttl",
        }
    }

    /// A lane asks upstream for CLIENT TRACKING.
    pub(crate) fn wants_tracking(self) -> bool {
        matches!(self, CoherenceMode::Auto | CoherenceMode::Tracking)
    }
}

/// No entry outlives its mode's cap, whatever the key's TTL. At least 1 ms, at most 24 h.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TtlCap {
    pub(crate) tracking: Duration,
    pub(crate) pubsub: Duration,
    pub(crate) ttl: Duration,
}

/// When a lane proves with a key of its own that invalidations reach it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Canary {
    Off,
    /// At each connect.
    Start,
    /// At each connect, and again so often; at least 1 s.
    Every(Duration),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Commands {
    pub(crate) shutdown: bool,
    pub(crate) deny: Vec<Word>,
    /// None: whatever `deny` does not refuse. Not empty.
    pub(crate) allow: Option<Vec<Word>>,
    /// False: what is refused is only counted and logged.
    pub(crate) enforce: bool,
    pub(crate) overrides: Vec<Override>,
    pub(crate) rate: Vec<Rate>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Http {
    /// Empty: no side port.
    pub(crate) listen: Vec<SocketAddr>,
    /// Lower case, without port.
    pub(crate) allowed_hosts: Vec<String>,
    /// What a change over HTTP must bring.
    pub(crate) token: Option<Secret>,
    pub(crate) token_file: Option<PathBuf>,
    pub(crate) max_connections: usize,
    /// Whether `GET /` is the page.
    pub(crate) dashboard: bool,
}

/// From where on somebody should look. What is counted in the last minute is held against it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Alerts {
    /// More of all commands than this share is answered with an error.
    pub(crate) error_rate: f64,
    pub(crate) p99: Duration,
    /// Less of the look-ups than this share is a hit.
    pub(crate) hit_rate: f64,
    /// With fewer commands, or look-ups, a share says nothing.
    pub(crate) min_requests_per_minute: u64,
    /// For how long before it is an alert, and before it is none any more.
    pub(crate) hold: Duration,
}

/// What upstream costs, in `currency`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Costs {
    pub(crate) currency: String,
    pub(crate) per_million_requests: f64,
    pub(crate) per_gib: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Log {
    pub(crate) level: tracing::Level,
    pub(crate) format: LogFormat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LogFormat {
    Text,
    Json,
}

/// A password. It shows itself only where asked by name.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Secret(String);

impl Secret {
    pub(crate) fn new(text: String) -> Secret {
        Secret(text)
    }

    pub(crate) fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

#[cfg(test)]
impl Config {
    /// The defaults with this upstream, for tests of other modules; the machine's memory limit is left out of account.
    pub(crate) fn for_tests(url: &str) -> Config {
        let mut overrides = Overrides::default();
        overrides.value("--upstream", "upstream.url", Some(url.to_owned()));
        load_within(&overrides, std::iter::empty(), None).expect("defaults are valid").0
    }

    /// The same with these rules, a list in YAML's flow style.
    pub(crate) fn for_tests_with_rules(rules: &str) -> Config {
        let env = [("NEARSIDE_UPSTREAM__URL", "redis://h"), ("NEARSIDE_RULES", rules)];
        let env = env.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned()));
        load_within(&Overrides::default(), env, None).unwrap_or_else(|e| panic!("{rules}: {e}")).0
    }
}
