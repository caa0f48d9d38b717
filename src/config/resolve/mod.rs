//! From settings to the resolved `Config`: defaults, types, ranges and what must agree between keys. Runs once at start;
//! all problems are collected, so that a file is corrected in one go. It opens nothing but password files. Here: what every
//! key is read with; a file for each section, and `agree` for what two of them say together.

mod agree;
mod cache;
mod coherence;
mod listen;
mod observe;
mod outage;
mod upstream;

use std::fs::File;
use std::io::Read;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::file::{Node, Value};
use super::settings::Settings;
use super::units::{self, DURATION_MAX, shown};
use super::{Config, Environment, Local, Secret, cpu};

pub(super) use cache::kept_command;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// Loopback only: whoever wants more says so.
pub(super) const TCP_DEFAULT: [&str; 2] = ["127.0.0.1:6380", "[::1]:6380"];

/// No entry lives longer in any mode (DESIGN 4): what Redis never signals must end some day.
pub(super) const TTL_MAX: Duration = Duration::from_secs(24 * 3600);

/// Larger values leave the lane for a connection of their own (`limits::LARGE`), where nothing is cached.
pub(super) const VALUE_MAX: u64 = crate::limits::LARGE as u64;

/// One thread feeds them all; what more of them bring beyond this nobody has measured.
const WORKERS_MAX: u64 = 64;

/// More than one connection for each of the ports a host has makes no sense; it also bounds what is allocated per limit.
const CONNECTIONS_MAX: u64 = 1_000_000;

/// Passwords are short; the bound keeps a wrong path from filling memory.
const PASSWORD_MAX: u64 = 64 * KIB;

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

    fn environment(&mut self) -> Environment {
        let words = [("development", Environment::Development), ("production", Environment::Production)];
        self.word("environment", &words)
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
