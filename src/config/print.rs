//! The resolved configuration as YAML that loads again, for `--print-config`. Secrets are never in it: a password given
//! inside the URL leaves a comment. It does not say where a value came from.

use std::fmt::Write as _;

use super::{
    AdminResp, Canary, Commands, Config, Environment, Eviction, LogFormat, Rule,
    commands::{overrides_yaml, rates_yaml, words_yaml},
    file::quoted,
    units::{show_duration, show_size},
};

/// The YAML, one key a line.
pub(crate) fn yaml(config: &Config) -> String {
    let mut out = String::new();
    let mut open: Vec<&str> = Vec::new();
    for (key, value) in entries(config) {
        let words: Vec<&str> = key.split('.').collect();
        let (word, sections) = words.split_last().map_or((key, &[][..]), |(w, s)| (*w, s));
        open_sections(&mut out, &mut open, sections);
        let indent = "  ".repeat(sections.len());
        // Writing to a String cannot fail.
        let _ = match value {
            Shown::Value(text) => writeln!(out, "{indent}{word}: {text}"),
            Shown::Hidden(why) => writeln!(out, "{indent}# {word}: {why}"),
        };
    }
    out
}

/// The same as JSON: values are texts where YAML's are no numbers and no booleans.
pub(crate) fn json(config: &Config) -> serde_json::Value {
    as_json(&yaml(config))
}

/// A rule as `PUT /api/v1/rules/{name}` takes it, with its name.
pub(crate) fn rule_json(rule: &Rule) -> serde_json::Value {
    let mut value = as_json(&rule.yaml());
    if let Some(map) = value.as_object_mut() {
        map.insert("name".to_owned(), rule.name.clone().into());
    }
    value
}

/// What this module prints is valid; should it ever not be, that is shown in its place.
fn as_json(yaml: &str) -> serde_json::Value {
    super::file::as_json(yaml).unwrap_or_else(|error| error.message.into())
}

fn open_sections<'k>(out: &mut String, open: &mut Vec<&'k str>, sections: &[&'k str]) {
    let same = open.iter().zip(sections).take_while(|(a, b)| a == b).count();
    for (depth, section) in sections.iter().enumerate().skip(same) {
        let _ = writeln!(out, "{}{section}:", "  ".repeat(depth));
    }
    open.clear();
    open.extend_from_slice(sections);
}

#[derive(PartialEq, Eq)]
pub(super) enum Shown {
    Value(String),
    /// Written as a comment.
    Hidden(&'static str),
}

/// Every key with its value, in the order of `keys::KEYS` (a test compares the two).
pub(super) fn entries(config: &Config) -> Vec<(&'static str, Shown)> {
    let mut out = Entries(Vec::new());
    let Config {
        environment,
        listen,
        upstream,
        admin,
        workers,
        cache,
        local,
        rules,
        warm,
        coherence,
        outage,
        observe,
        commands,
        http,
        alerts,
        costs,
        log,
    } = config;
    out.value("environment", environment_word(*environment));
    out.listen(listen);
    out.upstream(upstream);
    out.value("admin.resp", admin_word(admin.resp));
    out.path("admin.password_file", admin.password_file.as_deref());
    out.value("workers", workers);
    out.cache(cache);
    out.value("local.max_bytes", show_size(local.max_bytes));
    out.rules(rules);
    out.warm(warm);
    out.coherence(coherence);
    out.outage(outage);
    out.observe(observe);
    out.commands(commands);
    out.list("http.listen", http.listen.iter().map(ToString::to_string));
    out.list("http.allowed_hosts", http.allowed_hosts.iter().cloned());
    out.path("http.token_file", http.token_file.as_deref());
    out.value("http.max_connections", http.max_connections);
    out.value("http.dashboard", http.dashboard);
    out.alerts(alerts);
    out.costs(costs);
    out.value("log.level", log.level.to_string().to_ascii_lowercase());
    out.value("log.format", log_word(log.format));
    out.0
}

struct Entries(Vec<(&'static str, Shown)>);

impl Entries {
    fn listen(&mut self, listen: &super::Listen) {
        self.list("listen.tcp", listen.tcp.iter().map(ToString::to_string));
        self.path("listen.unix", listen.unix.as_deref());
        self.value("listen.unix_mode", quoted(&format!("{:04o}", listen.unix_mode)));
        self.value("listen.protected", listen.protected);
        self.value("listen.max_clients", listen.max_clients);
        self.value("listen.idle_timeout", show_duration(listen.idle_timeout.unwrap_or_default()));
        self.size("listen.output_limit", listen.output_limit);
        self.size("listen.query_limit", listen.query_limit);
        self.size("listen.buffers_max", listen.buffers_max);
        self.value("listen.drain_delay", show_duration(listen.drain_delay));
        self.value("listen.drain_timeout", show_duration(listen.drain_timeout));
    }

    fn upstream(&mut self, upstream: &super::Upstream) {
        let inline = upstream.password.is_some() && upstream.password_file.is_none();
        self.value("upstream.url", quoted(&upstream.display()));
        match &upstream.username {
            // Without its password a user name would be refused when this is loaded.
            Some(_) if inline => self.hidden("upstream.username", "given in upstream.url"),
            Some(name) => self.value("upstream.username", quoted(name)),
            None => self.value("upstream.username", "null"),
        }
        if inline {
            self.hidden("upstream.password_file", "\"***\" (the password was given in upstream.url)");
        } else {
            self.path("upstream.password_file", upstream.password_file.as_deref());
        }
        self.value("upstream.connect_timeout", show_duration(upstream.connect_timeout));
        self.value("upstream.request_timeout", show_duration(upstream.request_timeout.unwrap_or_default()));
        self.value("upstream.stall_timeout", show_duration(upstream.stall_timeout.unwrap_or_default()));
        self.value("upstream.info_poll", show_duration(upstream.info_poll.unwrap_or_default()));
        self.value("upstream.retry.max_attempts", upstream.retry.max_attempts);
        self.value("upstream.retry.base_delay", show_duration(upstream.retry.base_delay));
        self.value("upstream.retry.max_delay", show_duration(upstream.retry.max_delay));
        self.value("upstream.lanes_max", upstream.lanes_max);
        self.value("upstream.pinned_max", upstream.pinned_max);
        self.value("upstream.pinned_idle", upstream.pinned_idle);
        self.value("upstream.key_prefix", quoted(&upstream.key_prefix));
    }

    fn cache(&mut self, cache: &super::Cache) {
        self.value("cache.mode", cache.mode.as_str());
        self.list("cache.commands", cache.commands.iter().map(|method| method.as_str().to_owned()));
        self.value("cache.max_bytes", show_size(cache.max_bytes));
        match cache.max_entries {
            Some(n) => self.value("cache.max_entries", n),
            None => self.value("cache.max_entries", "null"),
        }
        self.size("cache.max_value_bytes", cache.max_value_bytes);
        self.value("cache.default_ttl", show_duration(cache.default_ttl));
        self.value("cache.negative_ttl", show_duration(cache.negative_ttl));
        self.value("cache.ttl_buffer", show_duration(cache.ttl_buffer));
        self.value("cache.eviction", eviction_word(cache.eviction));
        self.value("cache.on_write", cache.on_write.as_str());
        self.size("cache.update_max_bytes", cache.update_max_bytes);
        self.value("cache.refills_max", cache.refills_max);
        self.value("cache.touch_interval", show_duration(cache.touch_interval.unwrap_or_default()));
    }

    /// One rule a line.
    fn rules(&mut self, rules: &[super::Rule]) {
        let lines: Vec<String> = rules.iter().map(|rule| format!("\n  - {}", rule.yaml())).collect();
        self.value("rules", if lines.is_empty() { "[]".to_owned() } else { lines.concat() });
    }

    fn warm(&mut self, warm: &super::Warm) {
        self.value("warm.from", warm.from.as_str());
        self.list("warm.keys", warm.keys.iter().cloned());
        self.list("warm.patterns", warm.patterns.iter().cloned());
        self.value("warm.rate", warm.rate);
        self.value("warm.max_keys", warm.max_keys);
        self.value("warm.before_ready", warm.before_ready);
        self.value("warm.timeout", show_duration(warm.timeout));
        self.path("warm.last_run_file", warm.last_run_file.as_deref());
        self.value("warm.last_run_keys", warm.last_run_keys);
    }

    fn observe(&mut self, observe: &super::Observe) {
        self.value("observe.separators", quoted(&observe.separators));
        self.value("observe.max_key_patterns", observe.max_key_patterns);
        self.value("observe.keys", observe.keys.as_str());
        self.value("observe.hot_keys", observe.hot_keys);
        self.value("observe.slow_log", show_duration(observe.slow_log.unwrap_or_default()));
        self.path("observe.file", observe.file.as_deref());
        self.value("observe.candidates.min_per_minute", observe.candidates.min_per_minute);
        self.value("observe.candidates.min_latency", show_duration(observe.candidates.min_latency));
    }

    fn coherence(&mut self, coherence: &super::Coherence) {
        self.value("coherence.mode", coherence.mode.as_str());
        self.value("coherence.max_staleness", show_duration(coherence.max_staleness));
        self.value("coherence.fence", coherence.fence.as_str());
        self.value("coherence.channel", quoted(&coherence.channel));
        self.value("coherence.sample_per_second", coherence.sample_per_second);
        self.value("coherence.ttl_cap.tracking", show_duration(coherence.ttl_cap.tracking));
        self.value("coherence.ttl_cap.pubsub", show_duration(coherence.ttl_cap.pubsub));
        self.value("coherence.ttl_cap.ttl", show_duration(coherence.ttl_cap.ttl));
        self.value("coherence.pubsub_atomic", coherence.pubsub_atomic);
        self.value("coherence.canary", canary_word(coherence.canary));
    }

    fn outage(&mut self, outage: &super::Outage) {
        self.value("outage.reads", outage.reads.as_str());
        self.value("outage.max_stale", show_duration(outage.max_stale));
        self.value("outage.writes", outage.writes.as_str());
        self.value("outage.queue_max", outage.queue_max);
        self.value("outage.queue_max_bytes", show_size(outage.queue_max_bytes as u64));
        self.value("outage.queue_conflict", outage.queue_conflict.as_str());
        self.value("outage.error", outage.error.as_str());
        self.path("outage.journal_dir", outage.journal_dir.as_deref());
        self.value("outage.journal_fsync", outage.journal_fsync.as_str());
        self.value("outage.journal_max_bytes", show_size(outage.journal_max_bytes));
    }

    fn commands(&mut self, commands: &Commands) {
        self.value("commands.deny", words_yaml(&commands.deny));
        self.value("commands.allow", commands.allow.as_deref().map_or("null".to_owned(), words_yaml));
        self.value("commands.enforce", commands.enforce);
        self.value("commands.overrides", overrides_yaml(&commands.overrides));
        self.value("commands.rate", rates_yaml(&commands.rate));
        self.value("commands.shutdown", commands.shutdown);
    }

    fn alerts(&mut self, alerts: &super::Alerts) {
        self.value("alerts.error_rate", alerts.error_rate);
        self.value("alerts.p99", show_duration(alerts.p99));
        self.value("alerts.hit_rate", alerts.hit_rate);
        self.value("alerts.min_requests_per_minute", alerts.min_requests_per_minute);
        self.value("alerts.for", show_duration(alerts.hold));
    }

    fn costs(&mut self, costs: &super::Costs) {
        self.value("costs.currency", quoted(&costs.currency));
        self.value("costs.per_million_requests", costs.per_million_requests);
        self.value("costs.per_gib", costs.per_gib);
    }

    fn value(&mut self, key: &'static str, value: impl ToString) {
        self.0.push((key, Shown::Value(value.to_string())));
    }

    fn hidden(&mut self, key: &'static str, why: &'static str) {
        self.0.push((key, Shown::Hidden(why)));
    }

    fn size(&mut self, key: &'static str, bytes: usize) {
        self.value(key, show_size(bytes as u64));
    }

    fn path(&mut self, key: &'static str, path: Option<&std::path::Path>) {
        self.value(key, path.map_or("null".to_owned(), |p| quoted(&p.to_string_lossy())));
    }

    fn list(&mut self, key: &'static str, items: impl Iterator<Item = String>) {
        let items: Vec<String> = items.map(|item| quoted(&item)).collect();
        self.value(key, format!("[{}]", items.join(", ")));
    }
}

fn environment_word(environment: Environment) -> &'static str {
    match environment {
        Environment::Development => "development",
        Environment::Production => "production",
    }
}

fn admin_word(resp: AdminResp) -> &'static str {
    match resp {
        AdminResp::Auto => "auto",
        AdminResp::On => "on",
        AdminResp::Off => "off",
    }
}

fn eviction_word(eviction: Eviction) -> &'static str {
    match eviction {
        Eviction::TinyLfu => "tiny_lfu",
        Eviction::Lru => "lru",
    }
}

fn canary_word(canary: Canary) -> String {
    match canary {
        Canary::Off => "off".to_owned(),
        Canary::Start => "start".to_owned(),
        Canary::Every(interval) => show_duration(interval),
    }
}

fn log_word(format: LogFormat) -> &'static str {
    match format {
        LogFormat::Text => "text",
        LogFormat::Json => "json",
    }
}

#[cfg(test)]
pub(super) fn printed_keys(config: &Config) -> Vec<&'static str> {
    entries(config).into_iter().map(|(key, _)| key).collect()
}
