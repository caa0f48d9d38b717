//! `rules`: what is cached of which keys, from the list of maps to checked values. Each problem names the line, the rule and
//! its key. What a rule leaves out is the `cache` section's.

use std::time::Duration;

use super::fields::{Fields, Kind};
use super::file::{Node, Value};
use super::resolve::{Resolver, TTL_MAX, VALUE_MAX, kept_command};
use super::units::{self, shown};
use super::{Cache, CoherenceMode, Config, OnWrite, OutageWrites, Rollout, WHOLE, WriteMode, rollout};
use crate::command::cacheable::KeptCommands;
use crate::observe::arms::ARMS_MAX;
use crate::policy::overlap;
use crate::policy::pattern::Pattern;
use crate::policy::tag::TagTemplate;

/// Each costs a few hundred bytes, and 1 µs of a miss where none of them begins with a text of its own.
pub(super) const RULES_MAX: usize = 4096;

/// A rule's name is a metric label.
pub(super) const NAME_MAX: usize = 64;

/// Variants of one rule: an experiment with more would never come to an end.
const VARIANTS_MAX: usize = 16;

/// The arm of the keys that are not cached, as it is shown.
const CONTROL: &str = "control";

/// Tags of one rule; each takes a place in the index for every key.
const TAGS_MAX: usize = 8;

/// What is cached of the keys that a pattern matches. Complete: what was not given has come from `cache`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Rule {
    pub(crate) name: String,
    pub(crate) pattern: Pattern,
    pub(crate) commands: KeptCommands,
    pub(crate) ttl: Duration,
    /// Zero: what is absent is not cached.
    pub(crate) negative_ttl: Duration,
    pub(crate) max_value_bytes: usize,
    pub(crate) on_write: OnWrite,
    pub(crate) mode: RuleMode,
    /// A hit that comes so shortly before the entry's end has it read again; less than every `ttl` of the rule.
    pub(crate) refresh_ahead: Option<Duration>,
    /// How long an entry is served beyond its `ttl` while it is read again.
    pub(crate) stale_while_revalidate: Duration,
    /// How old the last proof of an entry may be while upstream is gone; none: `outage.max_stale`.
    pub(crate) stale_if_error: Option<Duration>,
    /// What becomes of writes while upstream is gone; none: `outage.writes`.
    pub(crate) outage_writes: Option<OutageWrites>,
    pub(crate) write: WriteMode,
    pub(crate) rollout: Rollout,
    /// Empty: all keys have `ttl`.
    pub(crate) variants: Vec<Variant>,
    pub(crate) tags: Vec<TagTemplate>,
    /// Of `cache.max_bytes`, in hundredths of a percent.
    pub(crate) max_share: Option<u16>,
    /// What a key costs besides whenever it is not answered here, in `costs.currency`.
    pub(crate) cost_per_miss: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RuleMode {
    Serve,
    /// Its keys pass through and are measured.
    Observe,
    /// Its keys pass through.
    Off,
}

/// A part of a rule's cached keys, with a TTL of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Variant {
    pub(crate) name: String,
    pub(crate) ttl: Duration,
}

const RULE_KEYS: &[&str] = &[
    "name",
    "pattern",
    "commands",
    "ttl",
    "negative_ttl",
    "max_value_bytes",
    "on_write",
    "write",
    "mode",
    "refresh_ahead",
    "stale_while_revalidate",
    "stale_if_error",
    "outage_writes",
    "rollout",
    "variants",
    "tags",
    "max_share",
    "cost_per_miss",
];

impl Resolver<'_> {
    pub(super) fn rules(&mut self, cache: &Cache) -> Vec<Rule> {
        let Some(setting) = self.settings.get("rules") else { return Vec::new() };
        let Value::List(items) = &setting.node.value else {
            self.problem("rules", "a list of rules is wanted here, for example [{pattern: \"session:*\", ttl: 5m}]");
            return Vec::new();
        };
        if items.len() > RULES_MAX {
            self.problem("rules", &format!("{} rules are more than {RULES_MAX}", items.len()));
            return Vec::new();
        }
        let mut rules: Vec<Rule> = Vec::new();
        let mut lines: Vec<u64> = Vec::new();
        for (i, item) in items.iter().enumerate() {
            let what = match title(item) {
                Some(title) => format!("rules: {title}"),
                None => format!("rules: rule {}", i + 1),
            };
            let Some(mut fields) = Fields::new(Kind::Titled, what, item, setting, &mut self.problems) else { continue };
            let Some(rule) = rule(&mut fields, cache) else { continue };
            if let Some(other) = rules.iter().position(|other| other.name == rule.name) {
                let place = setting.place(lines[other]);
                fields.problem(&format!("name: {} is taken by the rule at {place}", shown(&rule.name)));
            }
            rules.push(rule);
            lines.push(item.line);
        }
        rules
    }

    /// What must agree between rules, and between them and the rest.
    pub(super) fn check_rules(&mut self, config: &Config) {
        let shares: u32 = config.rules.iter().filter_map(|rule| rule.max_share).map(u32::from).sum();
        if shares > u32::from(WHOLE) {
            let named: Vec<&str> =
                config.rules.iter().filter(|rule| rule.max_share.is_some()).map(|rule| rule.name.as_str()).collect();
            self.problem(
                "rules",
                &format!(
                    "the max_share of {} come to {} of cache.max_bytes; 1 is all of it",
                    named.join(", "),
                    show_fraction(shares)
                ),
            );
        }
        let arms: usize = config.rules.iter().map(Rule::arms).sum();
        if arms > ARMS_MAX {
            self.problem(
                "rules",
                &format!(
                    "the rollouts and variants make {arms} groups of keys; {ARMS_MAX} are measured at once: end some of them \
                     (rollout: 100 without variants, or mode: off)"
                ),
            );
        }
        self.warn_of_shadows(&config.rules);
        self.warn_of_caps(config);
        if !config.rules.is_empty() && config.rules.iter().all(|rule| rule.pattern.text() != "*") {
            self.warnings.push(
                "rules: keys that match no rule pass through uncached; end with {pattern: \"*\"} to keep the defaults for them"
                    .to_owned(),
            );
        }
    }

    fn warn_of_shadows(&mut self, rules: &[Rule]) {
        for (i, rule) in rules.iter().enumerate() {
            let Some(first) = rules[..i].iter().find(|first| overlap::covers(&first.pattern, &rule.pattern)) else {
                continue;
            };
            let same = first.pattern.text() == rule.pattern.text();
            let what = if same { "is contradicted" } else { "is never asked" };
            self.warnings.push(format!(
                "rules: {} ({}) {what}: every key it matches is taken by {} ({}) before it",
                rule.name,
                rule.pattern.text(),
                first.name,
                first.pattern.text()
            ));
        }
    }

    /// DESIGN 6: no entry outlives its mode's cap. Under `auto` that is the cap of the best mode: what a fallback costs is
    /// said when it happens.
    fn warn_of_caps(&mut self, config: &Config) {
        let cap = &config.coherence.ttl_cap;
        let (mode, cap) = match config.coherence.mode {
            CoherenceMode::Auto | CoherenceMode::Tracking => (CoherenceMode::Tracking, cap.tracking),
            CoherenceMode::Pubsub => (CoherenceMode::Pubsub, cap.pubsub),
            CoherenceMode::Ttl => (CoherenceMode::Ttl, cap.ttl),
        };
        for rule in config.rules.iter().filter(|rule| rule.longest_ttl() > cap) {
            self.warnings.push(format!(
                "rules: {} has a ttl of {}, and coherence.ttl_cap.{} ends its entries after {}",
                rule.name,
                units::show_duration(rule.longest_ttl()),
                mode.as_str(),
                units::show_duration(cap)
            ));
        }
    }
}

impl Rule {
    /// What holds for every key where no rules are written.
    pub(crate) fn of_cache(cache: &Cache) -> Rule {
        Rule {
            name: String::new(),
            pattern: Pattern::all(),
            commands: cache.commands,
            ttl: cache.default_ttl,
            negative_ttl: cache.negative_ttl,
            max_value_bytes: cache.max_value_bytes,
            on_write: cache.on_write,
            mode: RuleMode::Serve,
            refresh_ahead: None,
            stale_while_revalidate: Duration::ZERO,
            stale_if_error: None,
            outage_writes: None,
            write: WriteMode::Through,
            rollout: Rollout::ALL,
            variants: Vec::new(),
            tags: Vec::new(),
            max_share: None,
            cost_per_miss: 0.0,
        }
    }

    /// Its keys are in arms that are compared: not all of them are cached, or not all alike.
    pub(crate) fn is_experiment(&self) -> bool {
        let plan = &self.rollout;
        self.mode == RuleMode::Serve && (plan.has_control() || plan.ramp.is_some() || !self.variants.is_empty())
    }

    /// How many arms that makes.
    fn arms(&self) -> usize {
        if !self.is_experiment() {
            return 0;
        }
        self.variants.len().max(1) + usize::from(self.rollout.has_control())
    }

    fn ttls(&self) -> impl Iterator<Item = Duration> {
        let own = self.variants.is_empty().then_some(self.ttl);
        self.variants.iter().map(|variant| variant.ttl).chain(own)
    }

    fn longest_ttl(&self) -> Duration {
        self.ttls().max().unwrap_or(self.ttl)
    }

    /// As a map in one line of YAML that reads back as the same rule.
    pub(super) fn yaml(&self) -> String {
        let pairs: Vec<String> = self.fields().iter().map(|(key, value)| format!("{key}: {value}")).collect();
        format!("{{{}}}", pairs.join(", "))
    }

    /// The keys that are not as `cache` says, as block YAML: the first line is `- ` and its first key.
    pub(super) fn yaml_block(&self, cache: &Cache, indent: &str, eol: &str) -> String {
        let plain = Rule { name: self.name.clone(), pattern: self.pattern.clone(), ..Rule::of_cache(cache) }.fields();
        let told = |pair: &(&str, String)| matches!(pair.0, "name" | "pattern") || !plain.contains(pair);
        let fields = self.fields();
        let lines = fields.iter().filter(|pair| told(pair)).enumerate().map(|(i, (key, value))| {
            let lead = if i == 0 { "- " } else { "  " };
            format!("{indent}{lead}{key}: {value}{eol}")
        });
        lines.collect()
    }

    /// Keys and values as YAML has them, all but those that say nothing. A name that is the pattern's text is none of its
    /// own, and might not even be allowed as one.
    fn fields(&self) -> Vec<(&'static str, String)> {
        let quoted = |text: &str| super::file::quoted(text);
        let list = |words: Vec<String>| format!("[{}]", words.join(", "));
        let mut out = vec![("pattern", quoted(self.pattern.text()))];
        if self.name != self.pattern.text() {
            out.insert(0, ("name", quoted(&self.name)));
        }
        out.extend([
            ("commands", list(self.commands.iter().map(|m| quoted(m.as_str())).collect())),
            ("ttl", units::show_duration(self.ttl)),
            ("negative_ttl", units::show_duration(self.negative_ttl)),
            ("max_value_bytes", units::show_size(self.max_value_bytes as u64)),
            ("on_write", self.on_write.as_str().to_owned()),
            ("write", self.write.as_str().to_owned()),
            ("mode", self.mode.as_str().to_owned()),
            ("rollout", self.rollout.yaml()),
            ("stale_while_revalidate", units::show_duration(self.stale_while_revalidate)),
        ]);
        out.extend(self.refresh_ahead.map(|d| ("refresh_ahead", units::show_duration(d))));
        out.extend(self.stale_if_error.map(|d| ("stale_if_error", units::show_duration(d))));
        out.extend(self.outage_writes.map(|writes| ("outage_writes", writes.as_str().to_owned())));
        if !self.variants.is_empty() {
            let variant = |v: &Variant| format!("{}: {{ttl: {}}}", quoted(&v.name), units::show_duration(v.ttl));
            let variants: Vec<String> = self.variants.iter().map(variant).collect();
            out.push(("variants", format!("{{{}}}", variants.join(", "))));
        }
        if !self.tags.is_empty() {
            out.push(("tags", list(self.tags.iter().map(|tag| quoted(tag.text())).collect())));
        }
        out.extend(self.max_share.map(|share| ("max_share", show_fraction(share.into()))));
        if self.cost_per_miss > 0.0 {
            out.push(("cost_per_miss", self.cost_per_miss.to_string()));
        }
        out
    }
}

/// A rule that caches these commands of the keys `pattern`, as a list's element in block YAML that can be pasted under
/// `rules`. None: such a rule would be refused, because of its name or its pattern.
pub(crate) fn suggested(
    name: &str,
    pattern: &str,
    commands: KeptCommands,
    ttl: Duration,
    cache: &Cache,
) -> Option<String> {
    let (name, pattern) = (rule_name(name).ok()?, Pattern::parse(pattern).ok()?);
    Some(Rule { name, pattern, commands, ttl, ..Rule::of_cache(cache) }.yaml_block(cache, "", "\n"))
}

impl RuleMode {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            RuleMode::Serve => "serve",
            RuleMode::Observe => "observe",
            RuleMode::Off => "off",
        }
    }
}

/// What a problem calls the rule by.
fn title(item: &Node) -> Option<String> {
    let Value::Map(pairs) = &item.value else { return None };
    let of = |key: &str| {
        pairs.iter().find_map(|(k, v)| match (&k.value, &v.value) {
            (Value::Text(k), Value::Text(v)) if k == key => Some(v.chars().take(NAME_MAX).collect::<String>()),
            _ => None,
        })
    };
    of("name").or_else(|| of("pattern"))
}

fn rule(fields: &mut Fields<'_>, cache: &Cache) -> Option<Rule> {
    fields.only(RULE_KEYS);
    if fields.node("pattern").is_none() {
        fields.problem("pattern is missing: which keys is it for? For example pattern: \"session:*\"");
        return None;
    }
    let pattern = fields.one("pattern", |text| Pattern::parse(text).map_err(|e| format!("{} {e}", shown(text))))?;
    let name = match fields.one("name", rule_name) {
        Some(name) => name,
        // A pattern that is no name counts as `_other`; it still is what the rule is called.
        None => pattern.text().to_owned(),
    };
    let commands = fields.list("commands", kept_command).map_or(cache.commands, |list| list.into_iter().collect());
    let ttl = fields.duration("ttl", Duration::from_millis(1)..=TTL_MAX).unwrap_or(cache.default_ttl);
    let rule = Rule {
        name,
        commands,
        ttl,
        negative_ttl: fields.duration("negative_ttl", Duration::ZERO..=TTL_MAX).unwrap_or(cache.negative_ttl),
        max_value_bytes: max_value_bytes(fields, cache),
        on_write: fields.one("on_write", |text| units::word(text, &OnWrite::ALL)).unwrap_or(cache.on_write),
        mode: fields.one("mode", rule_mode).unwrap_or(RuleMode::Serve),
        refresh_ahead: fields.duration("refresh_ahead", Duration::from_millis(1)..=TTL_MAX),
        stale_while_revalidate: fields.duration("stale_while_revalidate", Duration::ZERO..=TTL_MAX).unwrap_or_default(),
        stale_if_error: fields.duration("stale_if_error", Duration::ZERO..=TTL_MAX),
        write: fields.one("write", |text| units::word(text, &WriteMode::ALL)).unwrap_or(WriteMode::Through),
        outage_writes: fields.one("outage_writes", |text| units::word(text, &OutageWrites::ALL)),
        rollout: rollout::read(fields).unwrap_or(Rollout::ALL),
        variants: variants(fields),
        tags: tags(fields, &pattern),
        max_share: fields.one("max_share", fraction),
        cost_per_miss: fields.one("cost_per_miss", cost).unwrap_or_default(),
        pattern,
    };
    check_rule(fields, &rule);
    Some(rule)
}

fn check_rule(fields: &mut Fields<'_>, rule: &Rule) {
    if let Some(ahead) = rule.refresh_ahead
        && let Some(shortest) = rule.ttls().min().filter(|shortest| ahead >= *shortest)
    {
        let what = format!(
            "{} is not less than the rule's ttl of {}: every hit would have the key read again",
            units::show_duration(ahead),
            units::show_duration(shortest)
        );
        fields.problem_of("refresh_ahead", &what);
    }
    if fields.node("commands").is_some_and(|node| node.value == Value::List(Vec::new())) {
        fields.problem("commands: names no command; write mode: off for keys that shall pass through");
    }
}

fn max_value_bytes(fields: &mut Fields<'_>, cache: &Cache) -> usize {
    let most = VALUE_MAX.min(cache.max_bytes);
    let bytes = fields.one("max_value_bytes", |text| units::size(text, 1..=most));
    bytes.map_or(cache.max_value_bytes, |bytes| bytes as usize)
}

/// It stands in metrics and in JSON; `_` is where the names begin that are nobody's.
fn rule_name(text: &str) -> Result<String, String> {
    let plain = text.chars().all(|c| !c.is_control()) && text.len() <= NAME_MAX && !text.starts_with('_');
    if plain {
        Ok(text.to_owned())
    } else {
        Err(format!("{} is no name: 1 to {NAME_MAX} printable bytes, no _ in front", shown(text)))
    }
}

fn rule_mode(text: &str) -> Result<RuleMode, String> {
    units::word(text, &[("serve", RuleMode::Serve), ("observe", RuleMode::Observe), ("off", RuleMode::Off)])
}

fn variants(fields: &mut Fields<'_>) -> Vec<Variant> {
    let Some(map) = fields.map("variants") else { return Vec::new() };
    let names = map.names();
    if !(2..=VARIANTS_MAX).contains(&names.len()) {
        fields.problem(&format!(
            "variants: {} of them; 2 to {VARIANTS_MAX} share the cached keys, for example {{short: {{ttl: 5m}}, long: {{ttl: 1h}}}}",
            names.len()
        ));
    }
    let mut variants = Vec::new();
    for name in names {
        let Some(mut all) = fields.map("variants") else { continue };
        let Some(mut one) = all.map(&name) else { continue };
        one.only(&["ttl"]);
        let ttl = one.duration("ttl", Duration::from_millis(1)..=TTL_MAX);
        if one.node("ttl").is_none() {
            one.problem("ttl is missing");
        }
        if name == CONTROL {
            one.problem("is what the keys are called that are not cached; choose another name");
        }
        match (ttl, rule_name(&name)) {
            (Some(ttl), Ok(name)) => variants.push(Variant { name, ttl }),
            (_, Err(what)) => one.problem(&what),
            (None, Ok(_)) => {}
        }
    }
    // A map has no order, and JSON's loses the one it was written in: which keys are whose must not depend on it.
    variants.sort_by(|a: &Variant, b: &Variant| a.name.cmp(&b.name));
    variants
}

fn tags(fields: &mut Fields<'_>, pattern: &Pattern) -> Vec<TagTemplate> {
    let read = |text: &str| TagTemplate::parse(text, pattern).map_err(|e| format!("{}: {e}", shown(text)));
    let tags = fields.list("tags", read).unwrap_or_default();
    if tags.len() > TAGS_MAX {
        fields.problem(&format!("tags: {} are more than {TAGS_MAX}", tags.len()));
    }
    tags
}

/// 0 to 100 with at most two decimals, in hundredths of a percent.
pub(super) fn percent(text: &str) -> Result<u16, String> {
    decimal(text, 2).filter(|n| *n <= WHOLE).ok_or_else(|| {
        format!("{} is not a share of the keys; use 0 to 100 percent, for example 25 or 0.5", shown(text))
    })
}

/// More than 0 and at most 1, with at most four decimals, in the same unit.
fn fraction(text: &str) -> Result<u16, String> {
    decimal(text, 4).filter(|n| (1..=WHOLE).contains(n)).ok_or_else(|| {
        format!("{} is not a share of cache.max_bytes; use more than 0 up to 1, for example 0.25", shown(text))
    })
}

/// A call of a model is cents; who writes more than a thousand has the unit wrong. With it what is added up in billionths
/// (`observe::costs`) does not overflow before 18 billion.
const COST_MAX: f64 = 1000.0;

fn cost(text: &str) -> Result<f64, String> {
    units::decimal(text, 0.0..=COST_MAX, "a price from 0 to 1000, for example 0.06")
}

/// `text` times 10^`places`, where it has no more decimals than that.
pub(super) fn decimal(text: &str, places: usize) -> Option<u16> {
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    let digits = |s: &str| s.bytes().all(|b| b.is_ascii_digit());
    if whole.is_empty() || !digits(whole) || !digits(part) || part.len() > places {
        return None;
    }
    let padded = format!("{whole}{part:0<places$}");
    padded.parse::<u32>().ok().and_then(|n| u16::try_from(n).ok())
}

pub(crate) fn show_percent(share: u16) -> String {
    trimmed(format!("{}.{:02}", share / 100, share % 100))
}

fn show_fraction(share: u32) -> String {
    trimmed(format!("{}.{:04}", share / u32::from(WHOLE), share % u32::from(WHOLE)))
}

pub(super) fn trimmed(text: String) -> String {
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}
