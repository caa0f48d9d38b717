//! The configuration that runs, for whoever wants to look at it, on any thread. Written by the data thread only.

use std::collections::HashMap;
use std::sync::Arc;

use arc_swap::ArcSwap;

use crate::config::{Config, Rule};

pub(crate) struct Running(ArcSwap<State>);

#[derive(Clone)]
pub(crate) struct State {
    /// What was loaded at start, with all changes since.
    pub(crate) config: Arc<Config>,
    /// The same as of the last time it was read or written: what differs was changed by hand.
    pub(crate) filed: Arc<Config>,
    /// Grows with every change of the rules.
    pub(crate) generation: u64,
}

impl Running {
    pub(crate) fn new(config: Arc<Config>) -> Running {
        Running(ArcSwap::from_pointee(State::first(config)))
    }

    pub(crate) fn load(&self) -> Arc<State> {
        self.0.load_full()
    }

    pub(super) fn set(&self, state: State) {
        self.0.store(Arc::new(state));
    }
}

impl State {
    pub(super) fn first(config: Arc<Config>) -> State {
        State { filed: config.clone(), config, generation: 1 }
    }

    /// What was changed in the process alone, and is lost when the configuration is read again.
    pub(crate) fn by_hand(&self) -> Vec<String> {
        by_name(&self.config, &self.filed)
    }

    /// Of that, what will be otherwise where `next` runs.
    pub(super) fn undone_by(&self, next: &Config) -> Vec<String> {
        let other = by_name(&self.config, next);
        self.by_hand().into_iter().filter(|what| other.contains(what)).collect()
    }
}

/// In what two configurations differ of that which can be changed by hand.
fn by_name(a: &Config, b: &Config) -> Vec<String> {
    let index = |config: &Config| -> HashMap<String, Rule> {
        config.rules.iter().map(|rule| (rule.name.clone(), rule.clone())).collect()
    };
    let mut found = Vec::new();
    if a.cache.mode != b.cache.mode {
        found.push("cache.mode".to_owned());
    }
    if a.rules == b.rules {
        return found;
    }
    let (of_a, of_b) = (index(a), index(b));
    let names = a.rules.iter().chain(b.rules.iter().filter(|rule| !of_a.contains_key(&rule.name)));
    let other = names.map(|rule| &rule.name).filter(|name| of_a.get(*name) != of_b.get(*name));
    let before = found.len();
    found.extend(other.map(|name| format!("rules: {name}")));
    if found.len() == before {
        found.push("rules: their order".to_owned());
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::CacheMode;

    fn with(rules: &str) -> Config {
        Config::for_tests_with_rules(rules)
    }

    const FILED: &str = "[{name: a, pattern: 'a*'}, {name: b, pattern: 'b*'}]";

    fn by_hand(rules: &str) -> Vec<String> {
        State { config: Arc::new(with(rules)), filed: Arc::new(with(FILED)), generation: 1 }.by_hand()
    }

    #[test]
    fn what_was_changed_by_hand_has_its_name() {
        assert!(by_hand(FILED).is_empty());
        assert_eq!(
            by_hand("[{name: a, pattern: 'a*', ttl: 1s}, {name: c, pattern: 'c*'}]"),
            ["rules: a", "rules: c", "rules: b"]
        );
        assert_eq!(by_hand("[{name: b, pattern: 'b*'}, {name: a, pattern: 'a*'}]"), ["rules: their order"]);
        let mut off = with(FILED);
        off.cache.mode = CacheMode::Off;
        let state = State { config: Arc::new(off.clone()), filed: Arc::new(with(FILED)), generation: 1 };
        assert_eq!(state.by_hand(), ["cache.mode"]);
        assert_eq!(state.undone_by(&with(FILED)), ["cache.mode"]);
        assert!(state.undone_by(&off).is_empty());
    }
}
