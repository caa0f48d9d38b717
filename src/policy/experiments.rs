//! The experiments of the rules in force: how far each rollout has come, and where its arms count. When rules are about to
//! change, `adopt` tells the new ones; a rollout that reads as before goes on where it was, whatever else has changed.
//! `tick` lets time pass and says what has to change. The shares are in the rules, so a change of one is a change of rules,
//! carried out as any other is.

use std::collections::HashMap;
use std::time::Duration;

use super::rollout::{Act, Course, Regression, Stage};
use super::rules::{Rule, RuleArms, Rules};
use crate::config::{AutoRollback, Ramp, WHOLE};
use crate::observe::arms::{ArmId, Arms, Experiment, GuardShown, RampShown, Why};
use crate::observe::reasons::RolloutState;

/// The arm of the keys that are cached, where the rule has no variants.
const CACHED: &str = "cached";

/// The arm of those that are not. The configuration lets no variant have this name.
const CONTROL: &str = "control";

#[derive(Default)]
pub(crate) struct Experiments {
    /// By the rule's name.
    courses: HashMap<String, Course>,
}

/// What a rollout does, of which rule. The share is that from now on.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Change {
    pub(crate) rule: String,
    pub(crate) act: Act,
}

impl Experiments {
    /// Tells rules that are not in force yet how much of them is cached, and where their keys count. `old`: the rules in
    /// force, none at start. The arms of both have places until `settle`.
    pub(crate) fn adopt(&mut self, now: u64, old: Option<&Rules>, next: &mut Rules, arms: &Arms) {
        if let Some(old) = old {
            self.release(old, arms);
        }
        let mut before = std::mem::take(&mut self.courses);
        for rule in next.list_mut().filter(|rule| rule.terms.is_experiment()) {
            let plan = &rule.terms.rollout;
            let known = before.remove(&rule.terms.name).filter(|course| course.plan() == plan);
            let course = known.unwrap_or_else(|| Course::new(plan, now));
            rule.share = course.share();
            rule.arms = claim(now, rule, arms);
            rule.arms.all().for_each(|arm| arms.watch(arm, course.guard().is_some()));
            self.courses.insert(rule.terms.name.clone(), course);
        }
    }

    /// The change is complete, no entry is left that carries an arm of other rules than these: so it is shown, and the
    /// other arms are given up.
    pub(crate) fn settle(&self, in_force: &Rules, arms: &Arms) {
        self.show(in_force, arms);
        self.release(in_force, arms);
    }

    fn release(&self, in_force: &Rules, arms: &Arms) {
        let in_use: Vec<ArmId> = in_force.list().iter().flat_map(|rule| rule.arms.all()).collect();
        arms.keep_only(&in_use);
    }

    /// Whether `tick` has anything to look at.
    pub(crate) fn move_by_themselves(&self) -> bool {
        self.courses.values().any(Course::moves)
    }

    /// Time has passed. What is returned has happened in here; the rules have to follow, by way of `adopt`.
    pub(crate) fn tick(&mut self, now: u64, rules: &Rules, arms: &Arms) -> Vec<Change> {
        let (mut changes, mut judged) = (Vec::new(), false);
        for rule in rules.list() {
            let Some(course) = self.courses.get_mut(&rule.terms.name) else { continue };
            let act = course.tick(now, |least| {
                let groups: [&[ArmId]; 2] = [&rule.arms.cached, &[rule.arms.control]];
                let enough = groups.iter().all(|group| arms.watched_count(group) >= least);
                enough.then(|| (arms.watched(groups[0]), arms.watched(groups[1])))
            });
            if act != Act::Nothing {
                judged = true;
                rule.arms.all().for_each(|arm| arms.watch_anew(arm));
            }
            if matches!(act, Act::Step(_) | Act::RollBack(_)) {
                changes.push(Change { rule: rule.terms.name.clone(), act });
            }
        }
        // A change is shown when it is complete.
        if judged && changes.is_empty() {
            self.show(rules, arms);
        }
        changes
    }

    fn show(&self, rules: &Rules, arms: &Arms) {
        let shown = |rule: &Rule| Some(shown(rule, self.courses.get(&rule.terms.name)?));
        arms.show(rules.list().iter().filter_map(|rule| shown(rule)).collect());
    }
}

fn claim(now: u64, rule: &Rule, arms: &Arms) -> RuleArms {
    let terms = &rule.terms;
    let claim = |name: &str| arms.claim(now, &terms.name, name);
    let cached = if terms.variants.is_empty() {
        [claim(CACHED)].into()
    } else {
        terms.variants.iter().map(|variant| claim(&variant.name)).collect()
    };
    let control = if terms.rollout.has_control() { claim(CONTROL) } else { ArmId::NONE };
    RuleArms { control, cached }
}

fn shown(rule: &Rule, course: &Course) -> Experiment {
    let names = rule.terms.variants.iter().map(|variant| variant.name.clone());
    let names = names.chain(rule.terms.variants.is_empty().then(|| CACHED.to_owned()));
    let state = match course.stage() {
        Stage::Settled => RolloutState::Steady,
        Stage::Ramping { .. } => RolloutState::Ramping,
        Stage::RolledBack { .. } => RolloutState::RolledBack,
    };
    Experiment {
        rule: rule.terms.name.clone(),
        share: course.share(),
        state,
        since: course.since(),
        why: match course.stage() {
            Stage::RolledBack { why, .. } => Some(said(*why)),
            Stage::Settled | Stage::Ramping { .. } => None,
        },
        ramp: course.plan().ramp.as_ref().map(|ramp| ramp_shown(ramp, course)),
        guard: course.plan().auto_rollback.as_ref().map(|guard| guard_shown(guard, course)),
        control: Some(rule.arms.control).filter(|arm| arm.is_some()),
        cached: names.zip(rule.arms.cached.iter().copied()).collect(),
    }
}

fn ramp_shown(ramp: &Ramp, course: &Course) -> RampShown {
    RampShown { steps: ramp.steps.clone(), hold: nanos(ramp.hold), waits: course.waits() }
}

fn guard_shown(guard: &AutoRollback, course: &Course) -> GuardShown {
    let (judged, regressed) = course.judged();
    GuardShown {
        error_rate: f64::from(guard.error_rate) / f64::from(WHOLE),
        latency: f64::from(guard.latency) / 100.0,
        min_requests: guard.min_requests,
        window: nanos(guard.window),
        judged,
        regressed: regressed.map(said),
    }
}

fn said(why: Regression) -> Why {
    Why { word: why.as_str(), sentence: why.to_string() }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::observe::latency::Window;
    use crate::observe::patterns::Patterns;
    use crate::observe::reasons::Method;

    const SECOND: u64 = 1_000_000_000;
    const GUARDED: &str =
        "[{name: r, pattern: 'r:*', rollout: {percent: 50, auto_rollback: {min_requests: 50, window: 1s}}}]";

    struct World {
        experiments: Experiments,
        arms: Arms,
        patterns: Patterns,
        rules: Option<Rules>,
    }

    impl World {
        fn new(yaml: &str) -> World {
            let patterns = Patterns::new(":", 100);
            let mut world = World { experiments: Experiments::default(), arms: Arms::default(), patterns, rules: None };
            world.load(0, yaml);
            world
        }

        /// As a reload does it.
        fn load(&mut self, now: u64, yaml: &str) {
            let config = Config::for_tests_with_rules(yaml);
            let mut next = Rules::new(&config.rules, &config.cache, &self.patterns);
            self.experiments.adopt(now, self.rules.as_ref(), &mut next, &self.arms);
            self.experiments.settle(&next, &self.arms);
            self.rules = Some(next);
        }

        fn rules(&self) -> &Rules {
            self.rules.as_ref().expect("loaded")
        }

        fn tick(&mut self, now: u64) -> Vec<Change> {
            let rules = self.rules.as_ref().expect("loaded");
            self.experiments.tick(now, rules, &self.arms)
        }

        /// A window in which both arms have a hundred requests; those of the cached one fail or not.
        fn window(&self, now: u64, failed: bool) {
            let arms = &self.rules().list()[0].arms;
            for _ in 0..100 {
                self.arms.answered(arms.cached[0], now, 100_000, failed);
                self.arms.answered(arms.control, now, 100_000, false);
            }
        }

        fn shown(&self) -> Experiment {
            self.arms.shown()[0].clone()
        }

        fn cached(&self, keys: u32) -> usize {
            let kept = |i: &u32| {
                let key = format!("r:{i}");
                self.rules().judge(&self.patterns, key.as_bytes(), Method::Get).keep.is_ok()
            };
            (0..keys).filter(kept).count()
        }
    }

    #[test]
    fn every_key_of_an_experiment_has_its_arm_and_other_keys_have_none() {
        let world = World::new(
            "[{name: r, pattern: 'r:*', rollout: 50, variants: {short: {ttl: 5m}, long: {ttl: 1h}}}, {name: s, pattern: '*'}]",
        );
        let judge = |key: &str, method| world.rules().judge(&world.patterns, key.as_bytes(), method);
        let arms = &world.rules().list()[0].arms;
        assert_eq!(arms.all().count(), 3);
        for i in 0..200 {
            let judged = judge(&format!("r:{i}"), Method::Get);
            match judged.keep {
                Ok(keep) => {
                    // In the order of their names.
                    let arm = arms.cached[usize::from(keep.variant_name() == Some("short"))];
                    assert_eq!((judged.arm, keep.arm()), (arm, arm));
                }
                Err(_) => assert_eq!(judged.arm, arms.control),
            }
        }
        assert_eq!(judge("r:1", Method::Hget).arm, ArmId::NONE);
        assert_eq!(judge("other", Method::Get).arm, ArmId::NONE);
        let shown = world.shown();
        assert_eq!((shown.rule.as_str(), shown.share, shown.state), ("r", 5_000, RolloutState::Steady));
        assert_eq!(shown.cached.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["long", "short"]);
    }

    #[test]
    fn a_regression_takes_the_rule_back_and_a_reload_does_not_bring_it_again() {
        let mut world = World::new(GUARDED);
        assert!(world.cached(1000) > 400);
        world.window(1, true);
        assert_eq!(world.tick(2 * SECOND), []);
        assert_eq!(
            world.shown().guard.map(|g| (g.judged, g.regressed.map(|why| why.word))),
            Some((1, Some("error_rate")))
        );
        world.window(2 * SECOND, true);
        let changes = world.tick(4 * SECOND);
        assert!(matches!(&changes[..], [Change { act: Act::RollBack(_), .. }]), "{changes:?}");
        assert_eq!(world.shown().state, RolloutState::Steady, "it is shown when no entry is left");
        world.load(4 * SECOND, GUARDED);
        assert_eq!(world.cached(1000), 0);
        assert_eq!((world.shown().state, world.shown().since), (RolloutState::RolledBack, Some(4 * SECOND)));
        // Another rule beside it, and other terms of its own, are no reason to try again.
        world.load(9 * SECOND, &GUARDED.replace("pattern", "ttl: 1m, pattern"));
        assert_eq!((world.cached(1000), world.shown().state), (0, RolloutState::RolledBack));
        // A rollout that is written anew is.
        world.load(9 * SECOND, &GUARDED.replace("percent: 50", "percent: 49"));
        assert!(world.cached(1000) > 400);
        assert_eq!(world.shown().state, RolloutState::Steady);
    }

    #[test]
    fn a_window_goes_on_over_a_reload_and_its_figures_are_kept() {
        let mut world = World::new(GUARDED);
        world.window(1, true);
        world.load(2, GUARDED);
        assert_eq!(world.tick(2 * SECOND), []);
        assert_eq!(world.shown().guard.map(|guard| guard.judged), Some(1));
        let cached = world.rules().list()[0].arms.cached[0];
        assert_eq!(world.arms.seen(cached, 2 * SECOND, Window::Start).0.count(), 100);
    }

    #[test]
    fn a_ramp_grows_the_share_and_what_was_cached_stays_so() {
        let yaml = "[{name: r, pattern: 'r:*', rollout: {ramp: {steps: [10, 50, 100], hold: 1s}}}]";
        let mut world = World::new(yaml);
        let arm_of = |world: &World, key: &[u8]| world.rules().judge(&world.patterns, key, Method::Get).arm;
        let first = (0..1000)
            .map(|i| format!("r:{i}"))
            .find(|key| world.rules().judge(&world.patterns, key.as_bytes(), Method::Get).keep.is_ok());
        let first = first.expect("one in ten");
        let arm = arm_of(&world, first.as_bytes());
        for (at, share, wanted) in [(0, 1_000, 60..140), (1, 5_000, 440..560), (2, WHOLE, 1000..1001)] {
            if at > 0 {
                let changes = world.tick(at * SECOND);
                assert_eq!(changes, [Change { rule: "r".to_owned(), act: Act::Step(share) }]);
                world.load(at * SECOND, yaml);
            }
            assert!(wanted.contains(&world.cached(1000)), "{share}: {}", world.cached(1000));
            assert_eq!(arm_of(&world, first.as_bytes()), arm);
            assert_eq!(world.shown().share, share);
        }
        assert_eq!(world.shown().state, RolloutState::Steady);
        assert_eq!(world.tick(99 * SECOND), []);
    }

    #[test]
    fn arms_that_are_over_give_their_places_up() {
        let mut world = World::new("[]");
        for i in 0..500 {
            world.load(i, &format!("[{{name: r{i}, pattern: '*', rollout: 50}}]"));
            assert_eq!(world.rules().list()[0].arms.all().count(), 2, "load {i}");
        }
        world.load(500, "[{pattern: '*'}]");
        assert_eq!(world.arms.shown().len(), 0);
        assert_eq!(world.rules().list()[0].arms, RuleArms::default());
    }
}
