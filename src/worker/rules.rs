//! The cache's mode, the rules and the command policy in force, and how others take their place while clients are served.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::Ctx;
use crate::cache::Matcher;
use crate::coherence::Lane;
use crate::command::cacheable::KeptCommands;
use crate::config::{CacheMode, Config, OutageReads, OutageWrites};
use crate::mutation::{self, Rule};
use crate::observe::clock;
use crate::observe::metrics::Metrics;
use crate::observe::patterns::PatternId;
use crate::observe::reasons::{Flush, Method, Mode};
use crate::policy::commands::Policy;
use crate::policy::{Current, Judged, Rules};

impl Ctx {
    pub(crate) fn cache_serves(&self) -> bool {
        self.mode.get() == CacheMode::Serve
    }

    pub(crate) fn mode_word(&self) -> &'static str {
        self.mode.get().as_str()
    }

    /// Asked for through `live::set_mode`, which keeps who and when. Nothing stored before is served after; lanes arm or
    /// disarm their tracking (the argument is at `Lane::change_mode`).
    pub(crate) fn set_mode(self: &Rc<Self>, mode: CacheMode) {
        // In front of memory nothing is cached, whatever a reload says.
        if self.engine.is_some() {
            return;
        }
        let before = self.mode.replace(mode);
        if before == mode {
            return;
        }
        self.l1.flush();
        self.metrics.flushes.inc(Flush::Mode);
        self.status.set_mode(shown(mode));
        let lanes: Vec<Rc<Lane>> = self.lanes.borrow().values().cloned().collect();
        lanes.iter().for_each(|lane| lane.change_mode(self, before));
        self.begin_or_end_observing();
    }

    /// A write that was sent while the cache did not serve is answered. Where it serves again, other lanes may have read
    /// what the write was about before it executed (one that has a connection of its own: any lane), and what bars that of
    /// a write has never begun: no `begin_write`, no hold of a script's reply, no flush of SWAPDB, no message. So whatever
    /// was read before this moment goes, and what is being read is not stored; what is sent from here on executes behind it.
    pub(crate) fn end_unseen(&self) {
        if self.cache_serves() && !mutation::off(Rule::Unseen) {
            self.l1.flush();
            self.metrics.flushes.inc(Flush::Mode);
        }
    }

    pub(crate) fn mode(&self) -> CacheMode {
        self.mode.get()
    }

    /// Why nothing is stored through any lane.
    pub(crate) fn why_not_serving(&self) -> String {
        format!("cache.mode is {}", self.mode_word())
    }

    /// The rules in force, for other threads too.
    pub(crate) fn rules(&self) -> &Arc<Current> {
        &self.rules
    }

    /// What any rule keeps.
    pub(crate) fn kept(&self) -> KeptCommands {
        self.kept.get()
    }

    /// Any rule has writes refresh the L1.
    pub(crate) fn refreshes(&self) -> bool {
        self.refreshes.get()
    }

    /// Writes may wait for upstream while it is there: asked of everything that goes to a lane.
    pub(crate) fn may_be_behind(&self) -> bool {
        self.behind.get() || !self.held.is_empty()
    }

    /// What the rules say of a read of `key` by this command.
    pub(crate) fn judge(&self, key: &[u8], method: Method) -> Judged {
        self.rules.load().judge(&self.metrics.patterns, self.own_name(key), method)
    }

    /// What `key` is counted under.
    pub(crate) fn family(&self, key: &[u8]) -> PatternId {
        self.rules.load().family(&self.metrics.patterns, self.own_name(key))
    }

    /// The same, where `last` was that of the client's key before.
    pub(crate) fn family_after(&self, key: &[u8], last: PatternId) -> PatternId {
        self.rules.load().family_after(&self.metrics.patterns, self.own_name(key), last)
    }

    /// Puts other rules into force. When this is done no entry is left that they forbid or would have kept otherwise;
    /// returns how many were dropped.
    ///
    /// The argument. Between the change and the sweep's beginning nothing else runs on this thread, the only one that
    /// stores. What is being fetched under the old rules has a token from before the sweep, and is not stored. What is
    /// stored already the sweep finds. Whatever is judged from here on is judged by the new rules.
    /// Rollouts that read as before go on where they were.
    pub(crate) async fn set_rules(self: &Rc<Self>, mut next: Rules) -> usize {
        let arms = &self.metrics.arms;
        self.experiments.borrow_mut().adopt(clock::now(), Some(&self.rules.load()), &mut next, arms);
        let next = Arc::new(next);
        name_tags(&self.metrics, &next);
        let old = self.rules.swap(next.clone());
        self.kept.set(next.commands());
        self.refreshes.set(next.refresh());
        self.begin_or_end_observing();
        self.behind.set(next.any_behind());
        self.l1.set_linger(linger(&self.config, &next));
        let sweep = self.l1.sweep(vec![Matcher::Rules { old, next, prefix: self.prefix.clone() }]);
        self.lanes.borrow().values().for_each(|lane| lane.asks_for_field_expiry(self));
        let dropped = sweep.finish(&self.l1).await;
        let rules = self.rules.load();
        self.experiments.borrow().settle(&rules, arms);
        keep_series(&self.metrics, &rules);
        dropped
    }

    /// Holds for the next command of every session, whatever was found out about it before. A front's right to answer ends
    /// here too: what it answers later than this call it has asked its session for.
    pub(crate) fn set_policy(&self, policy: Arc<Policy>) {
        self.metrics.policy.set_mode(policy.mode());
        self.policy.set(policy);
        self.sessions.borrow().values().for_each(|session| session.changed_policy());
    }
}

/// How long entries stay in memory behind their end, for outages.
pub(super) fn linger(config: &Config, rules: &Rules) -> Duration {
    // A write that needs to know its key asks for it too.
    let queues = config.outage.writes == OutageWrites::Queue || rules.any_queues();
    match config.outage.reads {
        OutageReads::Fail if !queues => Duration::ZERO,
        _ => config.outage.max_stale.max(rules.longest_stale()),
    }
}

/// Every tag's template has its series from the start.
pub(super) fn name_tags(metrics: &Metrics, rules: &Rules) {
    let templates = rules.list().iter().flat_map(|rule| rule.terms.tags.iter());
    for tag in templates {
        // Where there are too many, they count as `_tag`.
        let _ = metrics.templates.add(tag.text(), 0);
    }
}

/// Series of rules and tags that are no more end here.
fn keep_series(metrics: &Metrics, rules: &Rules) {
    let labels: Vec<PatternId> = rules.list().iter().filter_map(|rule| rule.label).collect();
    metrics.patterns.keep_rules(&labels);
    let names = |name: &str| rules.list().iter().any(|rule| rule.terms.tags.iter().any(|tag| tag.text() == name));
    metrics.templates.keep_only(names);
}

/// The mode as health and metrics have it.
pub(crate) fn shown(mode: CacheMode) -> Mode {
    match mode {
        CacheMode::Serve => Mode::Serve,
        CacheMode::Observe => Mode::Observe,
        CacheMode::Off => Mode::Off,
    }
}
