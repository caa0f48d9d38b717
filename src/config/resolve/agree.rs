//! What must agree between keys. Asked only where every key is good in itself.

use std::net::SocketAddr;

use super::{Resolver, secs};
use crate::config::units;
use crate::config::{Backend, CacheMode, Config, Environment, WarmFrom};

/// Redis says -BUSY after 5 s (`busy-reply-threshold`), and that has to arrive.
const STALL_SOUND: std::time::Duration = secs(6);

impl Resolver<'_> {
    pub(super) fn check(&mut self, config: &Config, memory: Option<u64>) {
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

/// Whether the second listener could not be opened after the first. Port 0 is a free port each time. A wildcard takes
/// the port on all addresses of its family.
fn collide(a: &SocketAddr, b: &SocketAddr) -> bool {
    let same_port = a.port() == b.port() && a.port() != 0 && a.is_ipv4() == b.is_ipv4();
    same_port && (a.ip() == b.ip() || a.ip().is_unspecified() || b.ip().is_unspecified())
}
