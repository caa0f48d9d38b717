//! The rules in force: which of them a key belongs to, and what it says. The first that matches wins. Asked when a key is
//! missed, written or read again. A hit does not ask: an entry is there because a rule allowed it, and when the rules change
//! the entries that another answer would be given for are dropped before the change is acknowledged (`same_fate`).
//!
//! **Cost.** Rules are found by the literal text that their patterns begin with: one look-up for each different length of
//! such a text, and a match for each rule that begins as the key does. Patterns that begin with `*` are tried for every key.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use foldhash::fast::RandomState;

use super::assign;
use crate::command::cacheable::KeptCommands;
use crate::config::{self, OnWrite, OutageWrites, RuleMode, WriteMode};
use crate::observe::arms::ArmId;
use crate::observe::patterns::{PatternId, Patterns};
use crate::observe::reasons::{Bypass, Method};

/// A rule in force.
#[derive(Debug)]
pub(crate) struct Rule {
    pub(crate) terms: config::Rule,
    /// What its keys are counted under; none: each under its own family.
    pub(crate) label: Option<PatternId>,
    /// Of its keys that are cached, in hundredths of a percent: what is written, or as far as its rollout has come.
    pub(crate) share: u16,
    pub(crate) arms: RuleArms,
}

/// Where a rule's experiment counts; nowhere, where it has none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct RuleArms {
    pub(crate) control: ArmId,
    /// By variant; one where there are none.
    pub(crate) cached: Box<[ArmId]>,
}

impl RuleArms {
    pub(crate) fn all(&self) -> impl Iterator<Item = ArmId> {
        self.cached.iter().copied().chain([self.control]).filter(|arm| arm.is_some())
    }
}

pub(crate) struct Rules {
    list: Box<[Arc<Rule>]>,
    /// Rules by the literal text in front of their patterns, each list in the order of the file.
    by_prefix: HashMap<Box<[u8]>, Vec<u16>, RandomState>,
    /// Of those texts, ascending.
    lengths: Box<[usize]>,
    /// What any of them names.
    commands: KeptCommands,
    /// Some rule has writes refresh what is cached.
    refresh: bool,
    /// There are none: everything is cached as `cache` says.
    implicit: bool,
    /// Any of them says `stale_if_error`.
    any_stale: bool,
    /// Any of them says `outage_writes`.
    any_writes: bool,
    /// Any of them says `write: behind`.
    any_behind: bool,
}

/// How the replies about one key are kept.
#[derive(Clone, Debug)]
pub(crate) struct Keep {
    pub(crate) rule: Arc<Rule>,
    /// What the key is counted under.
    pub(crate) pattern: PatternId,
    /// Which of the rule's variants it belongs to.
    variant: Option<u8>,
}

/// What is said of one read.
pub(crate) struct Judged {
    /// What the key is counted under, kept or not.
    pub(crate) pattern: PatternId,
    /// The part of its rule's experiment that it belongs to.
    pub(crate) arm: ArmId,
    pub(crate) keep: Result<Keep, Bypass>,
}

/// Where a key falls.
struct Place<'r> {
    rule: &'r Arc<Rule>,
    /// None: the control group.
    arm: Option<Option<u8>>,
}

impl Rules {
    /// `cache` is what holds where there are no rules. Rules that say the same as before keep their place in memory.
    pub(crate) fn new(rules: &[config::Rule], cache: &config::Cache, patterns: &Patterns) -> Rules {
        let implicit = rules.is_empty();
        let list: Box<[Arc<Rule>]> = if implicit {
            [Arc::new(Rule::new(config::Rule::of_cache(cache), None))].into()
        } else {
            let in_force =
                |terms: &config::Rule| Arc::new(Rule::new(terms.clone(), Some(patterns.of_rule(&terms.name))));
            rules.iter().map(in_force).collect()
        };
        let mut by_prefix: HashMap<Box<[u8]>, Vec<u16>, RandomState> = HashMap::default();
        for (i, rule) in list.iter().enumerate() {
            by_prefix.entry(rule.terms.pattern.literal_prefix().into()).or_default().push(i as u16);
        }
        let mut lengths: Vec<usize> = by_prefix.keys().map(|prefix| prefix.len()).collect();
        lengths.sort_unstable();
        lengths.dedup();
        let serving = list.iter().filter(|rule| rule.terms.mode == RuleMode::Serve);
        let refresh = serving.clone().any(|rule| rule.terms.on_write != OnWrite::Invalidate);
        let commands = serving.flat_map(|rule| rule.terms.commands.iter()).collect();
        let any_stale = list.iter().any(|rule| rule.terms.stale_if_error.is_some());
        let any_behind = list.iter().any(|rule| rule.terms.write == WriteMode::Behind);
        let any_writes = list.iter().any(|rule| rule.terms.outage_writes.is_some());
        Rules {
            list,
            by_prefix,
            lengths: lengths.into(),
            commands,
            refresh,
            implicit,
            any_stale,
            any_writes,
            any_behind,
        }
    }

    /// What any rule keeps.
    pub(crate) fn commands(&self) -> KeptCommands {
        self.commands
    }

    /// Some rule has its keys' reads measured.
    pub(crate) fn observes(&self) -> bool {
        self.list.iter().any(|rule| rule.terms.mode == RuleMode::Observe)
    }

    /// In the order in which they are asked; empty where the user has written none.
    pub(crate) fn list(&self) -> &[Arc<Rule>] {
        if self.implicit { &[] } else { &self.list }
    }

    /// Some rule has writes refresh what is cached.
    pub(crate) fn refresh(&self) -> bool {
        self.refresh
    }

    /// The same, to be told how far their rollouts have come before anybody is asked.
    pub(super) fn list_mut(&mut self) -> impl Iterator<Item = &mut Rule> {
        let list = if self.implicit { &mut [][..] } else { &mut self.list[..] };
        list.iter_mut().filter_map(Arc::get_mut)
    }

    /// The first rule whose pattern matches.
    pub(crate) fn find(&self, key: &[u8]) -> Option<&Arc<Rule>> {
        if self.implicit {
            return self.list.first();
        }
        let mut best: Option<u16> = None;
        for len in self.lengths.iter().take_while(|len| **len <= key.len()) {
            let Some(rules) = self.by_prefix.get(&key[..*len]) else { continue };
            let earlier = rules.iter().take_while(|i| best.is_none_or(|best| **i < best));
            let found = earlier.copied().find(|i| self.list[usize::from(*i)].terms.pattern.matches(key));
            best = found.or(best);
        }
        best.map(|i| &self.list[usize::from(i)])
    }

    /// What its rule says instead of `outage.max_stale`.
    pub(crate) fn stale_if_error(&self, key: &[u8]) -> Option<Duration> {
        if !self.any_stale {
            return None;
        }
        self.find(key)?.terms.stale_if_error
    }

    pub(crate) fn any_stale_if_error(&self) -> bool {
        self.any_stale
    }

    /// What its rule says instead of `outage.writes`.
    pub(crate) fn outage_writes(&self, key: &[u8]) -> Option<OutageWrites> {
        if !self.any_writes {
            return None;
        }
        self.find(key)?.terms.outage_writes
    }

    /// Some rule's writes are answered before upstream has them.
    pub(crate) fn any_behind(&self) -> bool {
        self.any_behind
    }

    /// This key's are.
    pub(crate) fn is_behind(&self, key: &[u8]) -> bool {
        self.any_behind && self.find(key).is_some_and(|rule| rule.terms.write == WriteMode::Behind)
    }

    /// Some rule's keys are queued.
    pub(crate) fn any_queues(&self) -> bool {
        self.any_behind || self.list.iter().any(|rule| rule.terms.outage_writes == Some(OutageWrites::Queue))
    }

    /// The longest that any rule's entries are served so.
    pub(crate) fn longest_stale(&self) -> Duration {
        self.list.iter().filter_map(|rule| rule.terms.stale_if_error).max().unwrap_or_default()
    }

    /// What becomes of a read of `key` by this command.
    pub(crate) fn judge(&self, patterns: &Patterns, key: &[u8], method: Method) -> Judged {
        let place = self.place(key);
        let label = place.as_ref().and_then(|place| place.rule.label);
        let pattern = label.unwrap_or_else(|| patterns.id(key));
        let not = |why: Bypass| (ArmId::NONE, Err(why));
        let (arm, keep) = match place {
            None => not(Bypass::NoRule),
            Some(place) if place.rule.terms.mode == RuleMode::Off => not(Bypass::RuleOff),
            Some(place) if place.rule.terms.mode == RuleMode::Observe => not(Bypass::RuleObserve),
            Some(place) if !place.rule.terms.commands.has(method) => not(Bypass::Command),
            Some(Place { rule, arm }) => match arm {
                None => (rule.arms.control, Err(Bypass::Control)),
                Some(variant) => (rule.counts_in(variant), Ok(Keep { rule: rule.clone(), pattern, variant })),
            },
        };
        Judged { pattern, arm, keep }
    }

    /// What `key` is counted under.
    pub(crate) fn family(&self, patterns: &Patterns, key: &[u8]) -> PatternId {
        self.find(key).and_then(|rule| rule.label).unwrap_or_else(|| patterns.id(key))
    }

    /// The same, where `last` was that of the key before.
    pub(crate) fn family_after(&self, patterns: &Patterns, key: &[u8], last: PatternId) -> PatternId {
        self.find(key).and_then(|rule| rule.label).unwrap_or_else(|| patterns.id_after(key, last))
    }

    fn place(&self, key: &[u8]) -> Option<Place<'_>> {
        let rule = self.find(key)?;
        Some(Place { rule, arm: rule.arm(key) })
    }

    /// Whether an entry of `key` that was stored under these rules is what `next` would have stored, and would keep.
    pub(crate) fn same_fate(&self, next: &Rules, key: &[u8]) -> bool {
        match (self.place(key), next.place(key)) {
            // Nothing is stored of it.
            (None, None) => true,
            (Some(old), Some(new)) => {
                let arms = match (old.arm, new.arm) {
                    (None, None) => true,
                    // An entry counts its hits in its arm, so it does not outlive that.
                    (Some(old_variant), Some(new_variant)) => {
                        old.rule.terms.variant(old_variant) == new.rule.terms.variant(new_variant)
                            && old.rule.counts_in(old_variant) == new.rule.counts_in(new_variant)
                    }
                    _ => false,
                };
                arms && old.rule.terms.keeps_alike(&new.rule.terms)
            }
            _ => false,
        }
    }
}

impl Keep {
    pub(crate) fn terms(&self) -> &config::Rule {
        &self.rule.terms
    }

    /// Where hits on its entry count.
    pub(crate) fn arm(&self) -> ArmId {
        self.rule.counts_in(self.variant)
    }

    pub(crate) fn variant_name(&self) -> Option<&str> {
        self.terms().variant(self.variant).map(|variant| variant.name.as_str())
    }

    pub(crate) fn ttl(&self) -> Duration {
        self.terms().variant(self.variant).map_or(self.terms().ttl, |variant| variant.ttl)
    }
}

impl Rule {
    fn new(terms: config::Rule, label: Option<PatternId>) -> Rule {
        Rule { share: terms.rollout.share, arms: RuleArms::default(), terms, label }
    }

    /// Which part of the rule's keys this one is in: none is the control group, else its variant where there are any.
    fn arm(&self, key: &[u8]) -> Option<Option<u8>> {
        let seed = self.terms.name.as_bytes();
        if self.share < config::WHOLE && assign::point(seed, key) >= self.share {
            return None;
        }
        let variants = self.terms.variants.len();
        Some((variants > 0).then(|| assign::variant(seed, key, variants) as u8))
    }

    fn counts_in(&self, variant: Option<u8>) -> ArmId {
        self.arms.cached.get(usize::from(variant.unwrap_or(0))).copied().unwrap_or(ArmId::NONE)
    }
}

impl config::Rule {
    /// The tags of a key of this rule, each with the text that it is filled in from.
    pub(crate) fn tags_of(&self, key: &[u8]) -> Vec<(Vec<u8>, &str)> {
        let captures = if self.tags.is_empty() { None } else { self.pattern.captures(key) };
        let filled = |captures| self.tags.iter().map(|tag| (tag.fill(&captures, key), tag.text())).collect();
        captures.map_or_else(Vec::new, filled)
    }

    fn variant(&self, variant: Option<u8>) -> Option<&config::Variant> {
        self.variants.get(usize::from(variant?))
    }

    /// Whether entries of the same arm are the same under both.
    fn keeps_alike(&self, other: &config::Rule) -> bool {
        let config::Rule { name, commands, ttl, negative_ttl, max_value_bytes, mode, .. } = self;
        let one_ttl = !self.variants.is_empty() || *ttl == other.ttl;
        one_ttl
            && *name == other.name
            && *commands == other.commands
            && *negative_ttl == other.negative_ttl
            && *max_value_bytes == other.max_value_bytes
            && *mode == other.mode
            && self.refresh_ahead == other.refresh_ahead
            && self.stale_while_revalidate == other.stale_while_revalidate
            && self.tags == other.tags
            && self.tags_alike(other)
            && self.share_alike(other)
    }

    /// What was stored while the rule had no share has not been counted.
    fn share_alike(&self, other: &config::Rule) -> bool {
        self.max_share.is_some() || other.max_share.is_none()
    }

    /// A tag's text is filled in from the pattern's captures.
    fn tags_alike(&self, other: &config::Rule) -> bool {
        self.tags.is_empty() || self.pattern == other.pattern
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::config::Config;

    fn rules_of(yaml: &str) -> (Rules, Patterns) {
        let config = Config::for_tests_with_rules(yaml);
        let patterns = Patterns::new(":", 100);
        (Rules::new(&config.rules, &config.cache, &patterns), patterns)
    }

    fn name<'r>(rules: &'r Rules, key: &str) -> Option<&'r str> {
        rules.find(key.as_bytes()).map(|rule| rule.terms.name.as_str())
    }

    fn verdict(yaml: &str, key: &str) -> Result<Duration, Bypass> {
        let (rules, patterns) = rules_of(yaml);
        rules.judge(&patterns, key.as_bytes(), Method::Get).keep.map(|keep| keep.ttl())
    }

    #[test]
    fn the_first_that_matches_wins() {
        let (rules, _) = rules_of(
            "[{name: a, pattern: 'user:{id}:name'}, {name: b, pattern: 'user:*'}, {name: c, pattern: '*:x'}, {name: d, pattern: 'us*'}]",
        );
        for (key, wanted) in [
            ("user:1:name", Some("a")),
            ("user:1", Some("b")),
            ("a:x", Some("c")),
            ("us", Some("d")),
            ("u", None),
            ("user:x", Some("b")),
        ] {
            assert_eq!(name(&rules, key), wanted, "{key}");
        }
    }

    #[test]
    fn without_rules_all_is_cached_under_its_family() {
        let (rules, patterns) = rules_of("[]");
        let judged = rules.judge(&patterns, b"user:1", Method::Get);
        assert_eq!(patterns.name(judged.pattern), "user");
        assert_eq!(judged.keep.map(|keep| keep.ttl()).ok(), Some(Duration::from_secs(300)));
        assert!(rules.list().is_empty());
    }

    #[test]
    fn each_no_has_its_name() {
        assert_eq!(verdict("[{pattern: 'a:*'}]", "b:1"), Err(Bypass::NoRule));
        assert_eq!(verdict("[{pattern: '*', mode: off}]", "b:1"), Err(Bypass::RuleOff));
        assert_eq!(verdict("[{pattern: '*', mode: observe}]", "b:1"), Err(Bypass::RuleObserve));
        assert_eq!(verdict("[{pattern: '*', commands: [STRLEN]}]", "b:1"), Err(Bypass::Command));
        assert_eq!(verdict("[{pattern: '*', rollout: 0}]", "b:1"), Err(Bypass::Control));
        assert_eq!(verdict("[{pattern: '*', ttl: 7s}]", "b:1"), Ok(Duration::from_secs(7)));
    }

    #[test]
    fn a_share_of_the_keys_is_cached_and_stays_cached_as_it_grows() {
        let share = |percent: u32| -> Vec<bool> {
            let (rules, patterns) = rules_of(&format!("[{{name: r, pattern: '*', rollout: {percent}}}]"));
            let kept = |i: u32| rules.judge(&patterns, format!("k:{i}").as_bytes(), Method::Get).keep.is_ok();
            (0..10_000).map(kept).collect()
        };
        let (quarter, half) = (share(25), share(50));
        let count = quarter.iter().filter(|kept| **kept).count();
        assert!((2300..2700).contains(&count), "{count}");
        assert!(quarter.iter().zip(&half).all(|(small, large)| !small || *large));
    }

    #[test]
    fn variants_share_what_is_cached() {
        let (rules, patterns) =
            rules_of("[{name: r, pattern: '*', rollout: 50, variants: {short: {ttl: 5m}, long: {ttl: 1h}}}]");
        let mut seen = [0, 0];
        for i in 0..4000 {
            if let Ok(keep) = rules.judge(&patterns, format!("k{i}").as_bytes(), Method::Get).keep {
                let long = keep.variant_name() == Some("long");
                assert_eq!(keep.ttl(), Duration::from_secs(if long { 3600 } else { 300 }));
                seen[usize::from(long)] += 1;
            }
        }
        assert!(seen.iter().all(|n| (850..1150).contains(n)), "{seen:?}");
    }

    #[test]
    fn what_a_change_leaves_as_it_was_keeps_its_entries() {
        let fate = |old: &str, new: &str, key: &str| rules_of(old).0.same_fate(&rules_of(new).0, key.as_bytes());
        let base = "[{name: a, pattern: 'a:*', ttl: 1m}, {name: b, pattern: 'b:*'}]";
        assert!(fate(base, base, "a:1") && fate(base, base, "c:1"));
        for (new, a, b) in [
            ("[{name: a, pattern: 'a:*', ttl: 2m}, {name: b, pattern: 'b:*'}]", false, true),
            ("[{name: b, pattern: 'b:*'}]", false, true),
            ("[{name: b, pattern: 'b:*'}, {name: a, pattern: 'a:*', ttl: 1m}]", true, true),
            ("[{name: a, pattern: 'a:*', ttl: 1m, on_write: invalidate}, {name: b, pattern: 'b:*'}]", true, true),
            ("[{name: a, pattern: 'a:*', ttl: 1m, mode: off}, {name: b, pattern: 'b:*', rollout: 0}]", false, false),
            ("[]", false, false),
        ] {
            assert_eq!((fate(base, new, "a:1"), fate(base, new, "b:1")), (a, b), "{new}");
        }
        let shared = |share: &str| format!("[{{name: r, pattern: '*', {share}}}]");
        assert!(!fate(&shared("ttl: 1m"), &shared("ttl: 1m, max_share: 0.5"), "a"), "it was never counted");
        assert!(fate(&shared("max_share: 0.5"), &shared("max_share: 0.1"), "a"));
        assert!(fate(&shared("ttl: 1m, max_share: 0.5"), &shared("ttl: 1m"), "a"));
        let ramp = |share: u32| format!("[{{name: r, pattern: '*', rollout: {share}}}]");
        assert!((0..500).any(|i| fate(&ramp(10), &ramp(50), &format!("k{i}"))));
        assert!(!fate(
            "[{pattern: '*:{x}', name: r, tags: ['{x}']}]",
            "[{pattern: '{x}:*', name: r, tags: ['{x}']}]",
            "a:b"
        ));
    }

    proptest! {
        /// The index finds what asking one rule after the other finds.
        #[test]
        fn the_index_is_the_list(
            patterns in prop::collection::vec("[ab]{0,2}(\\*|:|\\{x\\}:)[ab*?]{0,3}", 1..12),
            keys in prop::collection::vec("[ab:]{0,6}", 30),
        ) {
            let mut wanted = Vec::new();
            for (i, text) in patterns.iter().enumerate() {
                if crate::policy::pattern::Pattern::parse(text).is_ok() {
                    wanted.push(format!("{{name: r{i}, pattern: '{text}'}}"));
                }
            }
            let (rules, _) = rules_of(&format!("[{}]", wanted.join(", ")));
            for key in keys {
                let naive = rules.list.iter().find(|rule| rule.terms.pattern.matches(key.as_bytes()));
                let naive = naive.map(|rule| rule.terms.name.as_str());
                if !rules.list().is_empty() {
                    prop_assert_eq!(name(&rules, &key), naive);
                }
            }
        }
    }
}
