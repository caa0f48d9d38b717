//! Which server the tests run against, what it does differently, and the visible line where it lacks what a test needs.

use std::io::Write;
use std::process::Command;
use std::sync::OnceLock;

/// Another server version is tested by naming its binary.
pub(super) fn binary() -> String {
    std::env::var("NEARSIDE_TEST_REDIS").unwrap_or_else(|_| "redis-server".into())
}

/// And another way of running it by its arguments: `--io-threads 3`.
pub(super) fn further_args() -> Vec<String> {
    let args = std::env::var("NEARSIDE_TEST_REDIS_ARGS").unwrap_or_default();
    args.split_whitespace().map(str::to_owned).collect()
}

/// Which server the tests run against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Version {
    valkey: bool,
    major: u32,
    minor: u32,
}

impl Version {
    /// Valkey speaks as Redis 7.2 and more: what came to Redis later it need not have.
    pub(crate) fn at_least(self, major: u32, minor: u32) -> bool {
        let own = if self.valkey { (7, 2) } else { (self.major, self.minor) };
        own >= (major, minor)
    }

    /// Whether hashes can have fields that expire.
    pub(crate) fn has_field_expiry(self) -> bool {
        if self.valkey { self.major >= 9 } else { self.at_least(7, 4) }
    }

    /// The conditions a line of the oracle's scripts can name.
    pub(crate) fn is(self, condition: &str) -> bool {
        match condition {
            "auth" => !self.loses_refusals(),
            // Valkey 9 reads `"a"b` as ab.
            "quotes" => !(self.valkey && self.major >= 9),
            since => match since.trim_end_matches('+').split_once('.').map(|(a, b)| (a.parse(), b.parse())) {
                Some((Ok(major), Ok(minor))) => self.at_least(major, minor),
                _ => panic!("no such condition: {condition}"),
            },
        }
    }

    /// Messages that wait for a subscriber count against its limit. Valkey 9 keeps each once for all, and counts none.
    pub(crate) fn counts_messages(self) -> bool {
        !(self.valkey && self.major >= 9)
    }

    /// A refused AUTH is not answered behind replies that wait to be written (Redis 7.2 to 8, Valkey before 9).
    pub(crate) fn loses_refusals(self) -> bool {
        if self.valkey { self.major < 9 } else { self.at_least(7, 2) }
    }
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}.{}", if self.valkey { "Valkey" } else { "Redis" }, self.major, self.minor)
    }
}

/// Whether the server has `what`, which came with Redis `major.minor`; where it has not, the line that says so is printed,
/// and collected for tests/run.
pub(crate) fn needs(major: u32, minor: u32, what: &str) -> bool {
    holds(version().at_least(major, minor), &format!("{what} (since Redis {major}.{minor})"))
}

/// `needs`, for what has no release.
pub(crate) fn holds(has: bool, what: &str) -> bool {
    if !has {
        let test = std::thread::current().name().unwrap_or("?").to_owned();
        let line = format!("skipped: {}: {test}: {what}\n", version());
        eprint!("{line}");
        if let Some(path) = std::env::var_os("NEARSIDE_TEST_SKIPS") {
            let file = std::fs::OpenOptions::new().append(true).create(true).open(&path);
            file.and_then(|mut f| f.write_all(line.as_bytes())).expect("the file of skips");
        }
    }
    has
}

/// The rule that takes CLIENT TRACKING from a user, and nothing else.
pub(crate) fn no_tracking() -> Vec<&'static str> {
    if version().at_least(7, 0) {
        return vec!["-client|tracking"];
    }
    // Redis 6.2 can add subcommands only.
    let kept = "+client|id +client|info +client|list +client|kill +client|getname +client|setname +client|reply \
                +client|pause +client|unpause +client|unblock +client|getredir +client|trackinginfo +client|help";
    ["-client"].into_iter().chain(kept.split(' ')).collect()
}

/// `Redis server v=7.0.15 sha=...`, `Valkey server v=8.1.1 sha=...`.
pub(crate) fn version() -> Version {
    static VERSION: OnceLock<Version> = OnceLock::new();
    *VERSION.get_or_init(|| {
        let output = Command::new(binary()).arg("--version").output();
        let output = output.unwrap_or_else(|e| panic!("{} --version: {e}", binary()));
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let numbers = text.split_once("v=").map(|(_, rest)| rest.split(['.', ' ']).map(str::parse));
        match numbers.map(|mut n| (n.next(), n.next())) {
            Some((Some(Ok(major)), Some(Ok(minor)))) => Version { valkey: text.starts_with("Valkey"), major, minor },
            _ => panic!("{} --version says no version: {text}", binary()),
        }
    })
}
