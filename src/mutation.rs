//! The mutation guard's switch: one rule of the coherence protocol turned off, to prove that the audit would see it
//! missing. For tests only: it exists in builds with debug assertions, named by an environment variable that no setting of
//! the product resembles. A release build has neither variable nor branch: [`off`] is a constant `false` there, so every
//! `if` that asks it is gone before code is generated, on the hot path too.

/// A rule that can be turned off, each by the one line that asks for it.
#[cfg_attr(not(debug_assertions), allow(dead_code, reason = "only builds with the switch have something to turn off"))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rule {
    /// A hit may be older than what its session has seen elsewhere, and nothing is held back (R21).
    Fence,
    /// A hit needs no young proof (R8).
    Lease,
    /// Entries outlive the connection that vouched for them (R1, R6).
    Epoch,
    /// Own writes neither evict nor bar stores (R14).
    BeginEnd,
    /// Whatever has happened since it was asked for, a reading is stored (R12).
    Token,
    /// What was sent while the cache did not serve ends nothing when it is answered (`Ctx::end_unseen`).
    Unseen,
    /// While upstream is gone entries are served however old they are (`outage.max_stale`).
    MaxStale,
    /// One queued write in eight is not done upstream, and counts as done.
    Replay,
}

#[cfg(not(debug_assertions))]
pub(crate) const fn off(_: Rule) -> bool {
    false
}

#[cfg(debug_assertions)]
pub(crate) use switch::off;

/// Says so in the log, loudly, when a rule is off; refuses a word that is none, because a test that believes a rule to be
/// off and is wrong proves nothing.
pub(crate) fn announce() -> Result<(), String> {
    #[cfg(debug_assertions)]
    if let Some(rule) = switch::read()? {
        tracing::warn!("{}: THE CACHE IS WRONG ON PURPOSE, rule {rule:?} is off", switch::VARIABLE);
    }
    Ok(())
}

#[cfg(debug_assertions)]
mod switch {
    use std::sync::OnceLock;

    use super::Rule;

    pub(super) const VARIABLE: &str = "TEST_ONLY_NEARSIDE_BREAK";

    const WORDS: [(&str, Rule); 8] = [
        ("fence", Rule::Fence),
        ("lease", Rule::Lease),
        ("epoch", Rule::Epoch),
        ("begin_end", Rule::BeginEnd),
        ("token", Rule::Token),
        ("unseen", Rule::Unseen),
        ("max_stale", Rule::MaxStale),
        ("replay", Rule::Replay),
    ];

    /// The process's, because the rules are asked for where nothing is at hand that could carry it.
    static BROKEN: OnceLock<Option<Rule>> = OnceLock::new();

    pub(crate) fn off(rule: Rule) -> bool {
        *BROKEN.get_or_init(|| read().ok().flatten()) == Some(rule)
    }

    pub(super) fn read() -> Result<Option<Rule>, String> {
        match std::env::var_os(VARIABLE) {
            None => Ok(None),
            Some(word) => named(&word.to_string_lossy()).map(Some),
        }
    }

    fn named(word: &str) -> Result<Rule, String> {
        let found = WORDS.iter().find(|(name, _)| *name == word);
        let names = || WORDS.map(|(name, _)| name).join(", ");
        found.map(|(_, rule)| *rule).ok_or_else(|| format!("{VARIABLE}: {word:?} is not one of {}", names()))
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn a_word_that_is_no_rule_is_refused() {
            assert_eq!(named("token"), Ok(Rule::Token));
            let error = named("tokens").unwrap_err();
            assert!(error.contains("fence, lease, epoch, begin_end, token, unseen, max_stale, replay"), "{error}");
        }

        #[test]
        fn no_rule_is_off_unless_somebody_says_so() {
            assert!(WORDS.iter().all(|(_, rule)| !off(*rule)));
        }
    }
}
