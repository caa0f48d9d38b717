//! What of the configuration can change while the process runs, and in what two configurations differ. Knows nothing of how
//! a change is brought about (`crate::live`).

use super::print::entries;
use super::{Commands, Config};

/// Keys that a reload puts into force; all others need a restart. `docs/configuration.md` marks the same ones (a test).
#[cfg(test)]
pub(crate) const LIVE: &[&str] = &[
    "cache.mode",
    "cache.commands",
    "cache.max_value_bytes",
    "cache.default_ttl",
    "cache.negative_ttl",
    "cache.on_write",
    "rules",
    "observe.keys",
    "observe.slow_log",
    "observe.candidates.min_per_minute",
    "observe.candidates.min_latency",
    "commands.deny",
    "commands.allow",
    "commands.enforce",
    "commands.overrides",
    "commands.rate",
    "http.allowed_hosts",
    "http.token_file",
    "http.dashboard",
    "alerts.error_rate",
    "alerts.p99",
    "alerts.hit_rate",
    "alerts.min_requests_per_minute",
    "alerts.for",
    "costs.currency",
    "costs.per_million_requests",
    "costs.per_gib",
    "log.level",
];

impl Config {
    /// This configuration with what can be changed as `next` has it: the keys of `LIVE`, and nothing else.
    pub(crate) fn adopting(&self, next: &Config) -> Config {
        let mut out = self.clone();
        out.cache.mode = next.cache.mode;
        out.cache.commands = next.cache.commands;
        out.cache.max_value_bytes = next.cache.max_value_bytes;
        out.cache.default_ttl = next.cache.default_ttl;
        out.cache.negative_ttl = next.cache.negative_ttl;
        out.cache.on_write = next.cache.on_write;
        out.rules.clone_from(&next.rules);
        out.observe.keys = next.observe.keys;
        out.observe.slow_log = next.observe.slow_log;
        out.observe.candidates = next.observe.candidates;
        // Whether SHUTDOWN may pass is looked up where it is asked for, at any time of a connection.
        out.commands = Commands { shutdown: self.commands.shutdown, ..next.commands.clone() };
        out.http.allowed_hosts.clone_from(&next.http.allowed_hosts);
        out.http.token.clone_from(&next.http.token);
        out.http.token_file.clone_from(&next.http.token_file);
        out.http.dashboard = next.http.dashboard;
        out.alerts = next.alerts;
        out.costs.clone_from(&next.costs);
        out.log.level = next.log.level;
        out
    }
}

/// The keys whose values are not the same, in the order of the documentation. A secret counts under the key that it comes
/// from.
pub(crate) fn differing(a: &Config, b: &Config) -> Vec<&'static str> {
    let pairs = entries(a).into_iter().zip(entries(b));
    let mut keys: Vec<&'static str> = pairs.filter(|(a, b)| a.1 != b.1).map(|(a, _)| a.0).collect();
    let password = if b.upstream.password_file.is_some() { "upstream.password_file" } else { "upstream.url" };
    let secrets = [
        (password, a.upstream.password == b.upstream.password),
        ("admin.password_file", a.admin.password == b.admin.password),
        ("http.token_file", a.http.token == b.http.token),
    ];
    for (key, same) in secrets {
        if !same && !keys.contains(&key) {
            keys.push(key);
        }
    }
    keys
}

#[cfg(test)]
mod tests {
    use super::super::keys::KEYS;
    use super::*;
    use crate::config::{Overrides, load_within};

    /// Everything is another than the default.
    fn all_other() -> Config {
        let token = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(token.path(), "secret").expect("a secret");
        let secret = token.path().display().to_string();
        let text = format!(
            "environment: production
listen: {{tcp: ['127.0.0.1:1'], unix: /tmp/x, unix_mode: '0600', protected: false, max_clients: 1, idle_timeout: 1s,
  output_limit: 1MiB, query_limit: 1MiB, buffers_max: 1MiB, drain_delay: 1s, drain_timeout: 1s}}
upstream: {{url: 'redis://other', username: u, password_file: {secret}, connect_timeout: 2s, request_timeout: 1s, stall_timeout: 9s, info_poll: 9s,
  retry: {{max_attempts: 1, base_delay: 1ms, max_delay: 1s}}, lanes_max: 1, pinned_max: 9, pinned_idle: 1, key_prefix: 'p:'}}
admin: {{resp: off, password_file: {secret}}}
workers: 3
cache: {{mode: off, commands: [GET], max_bytes: 2MiB, max_entries: 5, max_value_bytes: 1KiB, default_ttl: 1s,
  negative_ttl: 1s, ttl_buffer: 1ms, eviction: lru, on_write: invalidate, update_max_bytes: 1KiB,
  refills_max: 1, touch_interval: 1s}}
local: {{max_bytes: 3MiB}}
rules: [{{pattern: '*'}}]
warm: {{from: last_run, keys: [k], patterns: [p], rate: 1, max_keys: 1, before_ready: true, timeout: 1s,
  last_run_file: /tmp/l, last_run_keys: 3}}
observe: {{separators: '/', max_key_patterns: 7, keys: hide, hot_keys: 9, slow_log: 1s, file: /tmp/o,
  candidates: {{min_per_minute: 1, min_latency: 1s}}}}
coherence: {{mode: ttl, max_staleness: 2s, fence: session, channel: c, sample_per_second: 2,
  ttl_cap: {{tracking: 1s, pubsub: 2s, ttl: 2s}}, pubsub_atomic: false, canary: off}}
outage: {{reads: fail, max_stale: 1s, writes: queue, queue_max: 1, queue_max_bytes: 1MiB, queue_conflict: skip, error: close,
  journal_dir: /tmp/j, journal_fsync: always, journal_max_bytes: 2MiB}}
commands: {{shutdown: true, deny: [get], allow: [set], enforce: false, overrides: [{{client: c, deny: []}}],
  rate: [{{client: c, per_second: 1}}]}}
http: {{listen: [], allowed_hosts: [x], token_file: {secret}, max_connections: 1, dashboard: false}}
alerts: {{error_rate: 0.1, p99: 2s, hit_rate: 0.5, min_requests_per_minute: 1, for: 1s}}
costs: {{currency: EUR, per_million_requests: 1, per_gib: 2}}
log: {{level: warn, format: json}}
"
        );
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), text).expect("a configuration");
        let mut overrides = Overrides::default();
        overrides.file(Some(file.path().display().to_string()));
        load_within(&overrides, std::iter::empty(), None).unwrap_or_else(|e| panic!("{e}")).0
    }

    #[test]
    fn what_is_adopted_are_the_live_keys_and_no_others() {
        let (running, next) = (Config::for_tests("redis://h"), all_other());
        let all = differing(&running, &next);
        assert_eq!(all, KEYS, "every key differs");
        let adopted = running.adopting(&next);
        let mut changed = differing(&running, &adopted);
        let mut left = differing(&adopted, &next);
        changed.sort_unstable();
        let mut live = LIVE.to_vec();
        live.sort_unstable();
        assert_eq!(changed, live);
        left.retain(|key| LIVE.contains(key));
        assert!(left.is_empty(), "{left:?}");
    }

    #[test]
    fn a_secret_that_changed_is_a_difference_of_its_file() {
        let running = all_other();
        let mut next = running.clone();
        next.upstream.password = Some(crate::config::Secret::new("new".to_owned()));
        next.http.token = None;
        assert_eq!(differing(&running, &next), ["upstream.password_file", "http.token_file"]);
        assert!(differing(&running, &running).is_empty());
    }
}
