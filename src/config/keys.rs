//! The names of all configuration keys, and what was probably meant by one that is not among them. Used while a layer
//! (file, environment, flags) is read. It does not know types or defaults: those are in `resolve`.

/// Every key, in the order in which the documentation and `--print-config` show them. A dot separates sections.
pub(super) const KEYS: &[&str] = &[
    "environment",
    "listen.tcp",
    "listen.unix",
    "listen.unix_mode",
    "listen.protected",
    "listen.max_clients",
    "listen.idle_timeout",
    "listen.output_limit",
    "listen.query_limit",
    "listen.buffers_max",
    "listen.drain_delay",
    "listen.drain_timeout",
    "upstream.url",
    "upstream.username",
    "upstream.password_file",
    "upstream.connect_timeout",
    "upstream.request_timeout",
    "upstream.stall_timeout",
    "upstream.info_poll",
    "upstream.retry.max_attempts",
    "upstream.retry.base_delay",
    "upstream.retry.max_delay",
    "upstream.lanes_max",
    "upstream.pinned_max",
    "upstream.pinned_idle",
    "upstream.key_prefix",
    "admin.resp",
    "admin.password_file",
    "workers",
    "cache.mode",
    "cache.commands",
    "cache.max_bytes",
    "cache.max_entries",
    "cache.max_value_bytes",
    "cache.default_ttl",
    "cache.negative_ttl",
    "cache.ttl_buffer",
    "cache.eviction",
    "cache.on_write",
    "cache.update_max_bytes",
    "cache.refills_max",
    "cache.touch_interval",
    "local.max_bytes",
    "rules",
    "warm.from",
    "warm.keys",
    "warm.patterns",
    "warm.rate",
    "warm.max_keys",
    "warm.before_ready",
    "warm.timeout",
    "warm.last_run_file",
    "warm.last_run_keys",
    "coherence.mode",
    "coherence.max_staleness",
    "coherence.fence",
    "coherence.channel",
    "coherence.sample_per_second",
    "coherence.ttl_cap.tracking",
    "coherence.ttl_cap.pubsub",
    "coherence.ttl_cap.ttl",
    "coherence.pubsub_atomic",
    "coherence.canary",
    "outage.reads",
    "outage.max_stale",
    "outage.writes",
    "outage.queue_max",
    "outage.queue_max_bytes",
    "outage.queue_conflict",
    "outage.error",
    "outage.journal_dir",
    "outage.journal_fsync",
    "outage.journal_max_bytes",
    "observe.separators",
    "observe.max_key_patterns",
    "observe.keys",
    "observe.hot_keys",
    "observe.slow_log",
    "observe.file",
    "observe.candidates.min_per_minute",
    "observe.candidates.min_latency",
    "commands.deny",
    "commands.allow",
    "commands.enforce",
    "commands.overrides",
    "commands.rate",
    "commands.shutdown",
    "http.listen",
    "http.allowed_hosts",
    "http.token_file",
    "http.max_connections",
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
    "log.format",
];

/// What a dotted name stands for.
pub(super) enum Name {
    Key(&'static str),
    Section,
    Unknown,
}

pub(super) fn find(name: &str) -> Name {
    if let Some(key) = KEYS.iter().find(|key| **key == name) {
        return Name::Key(key);
    }
    if KEYS.iter().any(|key| below(key, name).is_some()) {
        return Name::Section;
    }
    Name::Unknown
}

/// The end of the message about an unknown key: the nearest key, else what its section has.
pub(super) fn hint(name: &str) -> String {
    match nearest(name) {
        Some(key) => format!("did you mean {key}?"),
        None => format!("known keys here: {}", siblings(parent(name)).join(", ")),
    }
}

/// The key or section that `name` was probably meant to be: a near spelling in the same section, else the same last word
/// elsewhere (`max_bytes` written under `listen`).
pub(super) fn nearest(name: &str) -> Option<String> {
    let section = parent(name);
    let last = last_word(name);
    let spelled = nearest_of(last, siblings(section).into_iter()).map(|sibling| join(section, sibling));
    spelled.or_else(|| {
        let moved = KEYS.iter().find(|key| last_word(key) == last);
        moved.map(|key| (*key).to_owned())
    })
}

/// Which of `words` was probably meant, by its spelling.
pub(super) fn nearest_of<'w>(name: &str, words: impl Iterator<Item = &'w str>) -> Option<&'w str> {
    let near = words.map(|word| (distance(name, word), word));
    let near = near.filter(|(d, word)| *d <= near_enough(name.len().min(word.len())));
    near.min_by_key(|(d, _)| *d).map(|(_, word)| word)
}

pub(super) fn join(section: &str, word: &str) -> String {
    if section.is_empty() { word.to_owned() } else { format!("{section}.{word}") }
}

/// The words directly below a section, in order; of the top level for an empty or unknown section.
fn siblings(section: &str) -> Vec<&'static str> {
    let mut found: Vec<&'static str> = Vec::new();
    for key in KEYS {
        let Some(rest) = below(key, section) else {
            continue;
        };
        let word = rest.split('.').next().unwrap_or(rest);
        if !found.contains(&word) {
            found.push(word);
        }
    }
    found
}

fn below<'k>(key: &'k str, section: &str) -> Option<&'k str> {
    if section.is_empty() {
        return Some(key);
    }
    key.strip_prefix(section)?.strip_prefix('.')
}

fn parent(name: &str) -> &str {
    name.rsplit_once('.').map_or("", |(section, _)| section)
}

fn last_word(name: &str) -> &str {
    name.rsplit_once('.').map_or(name, |(_, word)| word)
}

/// Two slips in a long word, one in a short one: more would suggest `tcp` for `ttl`.
fn near_enough(len: usize) -> usize {
    if len >= 5 { 2 } else { 1 }
}

/// How many slips lie between two words: letters left out, added, exchanged for another, or two neighbours swapped.
/// Quadratic, but the file's own size limit bounds `a`, and our words are short.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i; b.len() + 1];
        for j in 1..=b.len() {
            let exchanged = last[j - 1] + usize::from(a[i - 1] != b[j - 1]);
            row[j] = exchanged.min(last[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                row[j] = row[j].min(before[j - 2] + 1);
            }
        }
        before = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_are_recognised_within_the_section() {
        for (wrong, right) in [
            ("listen.ouput_limit", "listen.output_limit"),
            ("listne", "listen"),
            ("upstream.uri", "upstream.url"),
            ("listen.unxi", "listen.unix"),
            ("upstream.retry.base_dealy", "upstream.retry.base_delay"),
            ("cache.maxbytes", "cache.max_bytes"),
            ("worker", "workers"),
        ] {
            assert_eq!(nearest(wrong).as_deref(), Some(right), "{wrong}");
        }
    }

    #[test]
    fn a_key_in_the_wrong_section_is_found_by_its_last_word() {
        assert_eq!(nearest("listen.max_entries").as_deref(), Some("cache.max_entries"));
        assert_eq!(nearest("password_file").as_deref(), Some("upstream.password_file"));
    }

    #[test]
    fn without_a_likely_key_the_section_is_listed() {
        assert_eq!(
            hint("coherence.frobnicate"),
            "known keys here: mode, max_staleness, fence, channel, sample_per_second, ttl_cap, pubsub_atomic, canary"
        );
        assert!(hint("frobnicate").starts_with("known keys here: environment, listen, upstream,"));
    }

    #[test]
    fn names_are_keys_sections_or_unknown() {
        assert!(matches!(find("upstream.retry"), Name::Section));
        assert!(matches!(find("upstream.retry.max_delay"), Name::Key(_)));
        assert!(matches!(find("upstream.ret"), Name::Unknown));
    }
}
