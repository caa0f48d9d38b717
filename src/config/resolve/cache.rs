//! `cache`, `local` and `warm`: what is kept, how much of it, for how long, and what is loaded at start.

use std::path::PathBuf;
use std::time::Duration;

use super::{CONNECTIONS_MAX, KIB, MIB, Resolver, TTL_MAX, VALUE_MAX, millis, secs};
use crate::command::cacheable::Caching;
use crate::command::table;
use crate::config::units::{self, DURATION_MAX, SIZE_MAX, shown};
use crate::config::{Cache, CacheMode, Eviction, OnWrite, Warm, WarmFrom};
use crate::observe::reasons::Method;

/// What applications ask for most, and what one change of a key drops least of.
const COMMANDS_DEFAULT: [&str; 2] = ["GET", "MGET"];

/// `cache.max_bytes: auto` where memory is not limited further. A sidecar that takes more without being asked would
/// surprise.
const CACHE_AUTO: u64 = 256 * MIB;

/// Below this an L1 holds hardly one value of the default `max_value_bytes`.
const CACHE_MIN: u64 = MIB;

/// The clock that upstream's LRU figures are kept by ticks once a second.
const TOUCH_MIN: Duration = secs(1);

/// Upstream answers hardly more, and clients want to be answered as well.
const WARM_RATE_MAX: u32 = 100_000;

/// Their names are remembered while it lasts, so that what SCAN returns twice is loaded once.
const WARM_KEYS_MAX: u64 = 10_000_000;

/// A process that begins with more of its last run's keys than this means a list or a glob.
const LAST_RUN_KEYS_MAX: u64 = 1000;

impl Resolver<'_> {
    pub(in crate::config) fn cache(&mut self, memory: Option<u64>) -> Cache {
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

    /// A share of memory, in bytes or `auto`.
    pub(super) fn budget(&mut self, key: &str, memory: Option<u64>) -> u64 {
        self.one(key, cache_auto(memory), |text| cache_bytes(text, memory))
    }

    pub(super) fn warm(&mut self) -> Warm {
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
}

/// Refused by what the table says of the command, so that nobody waits for hits that cannot come.
pub(in crate::config) fn kept_command(text: &str) -> Result<Method, String> {
    let shown = shown(&text.to_ascii_uppercase());
    match table::caching(text) {
        Some(Caching::Kept(kept)) => Ok(kept.method),
        Some(Caching::Never(never)) => Err(format!("{shown} is never cached: {}", never.why())),
        None => Err(format!("{shown} is no command that can be cached; those are {}", Method::WORDS.join(", "))),
    }
}

fn touch_interval(text: &str) -> Result<Option<Duration>, String> {
    let interval = units::duration(text, Duration::ZERO..=TTL_MAX)?;
    if !interval.is_zero() && interval < TOUCH_MIN {
        return Err(format!("{} is less than 1s; use 0s to tell upstream nothing", shown(text)));
    }
    Ok((!interval.is_zero()).then_some(interval))
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
