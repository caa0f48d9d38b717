//! `upstream` and `admin`: who is behind, with which credentials, and how long it is waited for.

use std::path::PathBuf;
use std::time::Duration;

use super::{CONNECTIONS_MAX, Resolver, TTL_MAX, millis, secs};
use crate::command::prefix::PREFIX_MAX;
use crate::config::units::{self, DURATION_MAX, shown};
use crate::config::url::{self, Url};
use crate::config::{Admin, AdminResp, Backend, Environment, Retry, Secret, Upstream};

/// More often would show in upstream's own figures.
const INFO_MIN: Duration = secs(1);

const NO_UPSTREAM: &str =
    "no upstream: set upstream.url, for example redis://127.0.0.1:6379, or 'embedded' for the in-memory engine";

impl Resolver<'_> {
    pub(super) fn upstream(&mut self, environment: Environment) -> Upstream {
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

    fn retry(&mut self) -> Retry {
        Retry {
            max_attempts: self.small("upstream.retry.max_attempts", 3, 0..=100),
            base_delay: self.duration("upstream.retry.base_delay", millis(50), millis(1)..=DURATION_MAX),
            max_delay: self.duration("upstream.retry.max_delay", secs(5), millis(1)..=DURATION_MAX),
        }
    }

    /// 0 means never.
    fn stall_timeout(&mut self) -> Option<Duration> {
        let limit = self.duration("upstream.stall_timeout", secs(8), Duration::ZERO..=DURATION_MAX);
        (!limit.is_zero()).then_some(limit)
    }

    pub(super) fn admin(&mut self) -> Admin {
        let words = [("auto", AdminResp::Auto), ("on", AdminResp::On), ("off", AdminResp::Off)];
        let resp = self.word("admin.resp", &words);
        let (password, password_file) = self.password("admin.password_file");
        Admin { resp, password, password_file }
    }
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

fn info_poll(text: &str) -> Result<Option<Duration>, String> {
    let period = units::duration(text, Duration::ZERO..=TTL_MAX)?;
    if !period.is_zero() && period < INFO_MIN {
        return Err(format!("{} is less than 1s; use 0s to ask upstream nothing", shown(text)));
    }
    Ok((!period.is_zero()).then_some(period))
}
