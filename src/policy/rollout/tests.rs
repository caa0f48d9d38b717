use std::time::Duration;

use super::*;
use crate::config::Ramp;

const SECOND: u64 = 1_000_000_000;
const MINUTE: u64 = 60 * SECOND;

const GUARD: AutoRollback =
    AutoRollback { error_rate: 100, latency: 150, min_requests: 500, window: Duration::from_secs(60) };

fn plan(share: u16, steps: &[u16]) -> Rollout {
    let ramp = (!steps.is_empty()).then(|| Ramp { steps: steps.to_vec(), hold: Duration::from_secs(600) });
    Rollout { share, auto_rollback: Some(GUARD), ramp }
}

/// SplitMix64, seeded.
struct Dice(u64);

impl Dice {
    fn unit(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (((z ^ (z >> 31)) >> 11) as f64 + 0.5) / (1_u64 << 53) as f64
    }

    fn normal(&mut self) -> f64 {
        (-2.0 * self.unit().ln()).sqrt() * (std::f64::consts::TAU * self.unit()).cos()
    }

    /// Requests whose median is `median` nanoseconds, skewed as latencies are, and of which `errors` fail.
    fn arm(&mut self, n: u64, median: f64, errors: f64) -> Seen {
        let mut seen = Seen::default();
        for _ in 0..n {
            seen.record_n((median * (0.8 * self.normal()).exp()) as u64, 1);
            seen.errors += u64::from(self.unit() < errors);
        }
        seen
    }
}

/// As an arm's place answers: nothing while there is too little.
fn enough((cached, control): (Seen, Seen), least: u64) -> Option<(Seen, Seen)> {
    (cached.count().min(control.count()) >= least).then_some((cached, control))
}

/// One window after the other of these, until it is rolled back; how many it took.
fn rolled_back_after(windows: u64, mut arms: impl FnMut() -> (Seen, Seen)) -> Option<(u64, Regression)> {
    let mut course = Course::new(&plan(2_500, &[]), 0);
    (1..=windows).find_map(|i| match course.tick(i * MINUTE, |least| enough(arms(), least)) {
        Act::RollBack(why) => Some((i, why)),
        Act::NextWindow => None,
        other => panic!("{other:?}"),
    })
}

#[test]
fn equal_arms_are_left_alone() {
    for seed in 0..40 {
        let mut dice = Dice(seed);
        let found = rolled_back_after(20, || (dice.arm(500, 300_000.0, 0.02), dice.arm(1500, 300_000.0, 0.02)));
        assert_eq!(found, None, "seed {seed}");
    }
}

/// Worse, but within what is allowed: one false window in 40 at most, and hardly ever two in a row.
#[test]
fn what_is_just_allowed_is_left_alone() {
    let back = (0..40).filter(|seed| {
        let mut dice = Dice(*seed);
        let arms = || (dice.arm(500, 420_000.0, 0.025), dice.arm(1500, 300_000.0, 0.02));
        rolled_back_after(20, arms).is_some()
    });
    assert_eq!(back.count(), 0);
}

#[test]
fn a_regression_is_found_in_two_windows() {
    for seed in 0..10 {
        let mut dice = Dice(seed);
        let errors = rolled_back_after(3, || (dice.arm(800, 300_000.0, 0.08), dice.arm(1500, 300_000.0, 0.01)));
        assert!(matches!(errors, Some((2, Regression::Errors { .. }))), "seed {seed}: {errors:?}");
        let mean = rolled_back_after(3, || (dice.arm(800, 600_000.0, 0.0), dice.arm(1500, 300_000.0, 0.0)));
        assert!(matches!(mean, Some((2, Regression::Mean { .. }))), "seed {seed}: {mean:?}");
        // Mostly hits, and yet a tail that is much longer than without a cache.
        let tail = || {
            let mut cached = dice.arm(950, 1_000.0, 0.0);
            cached.absorb(&dice.arm(50, 5_000_000.0, 0.0));
            (cached, dice.arm(1500, 300_000.0, 0.0))
        };
        let p99 = rolled_back_after(3, tail);
        assert!(matches!(p99, Some((2, Regression::P99 { .. }))), "seed {seed}: {p99:?}");
    }
}

fn good(dice: &mut Dice) -> (Seen, Seen) {
    (dice.arm(600, 100_000.0, 0.0), dice.arm(600, 300_000.0, 0.0))
}

fn bad(dice: &mut Dice) -> (Seen, Seen) {
    (dice.arm(600, 100_000.0, 0.5), dice.arm(600, 300_000.0, 0.0))
}

#[test]
fn one_bad_window_between_good_ones_is_chance() {
    let (mut dice, mut course) = (Dice(1), Course::new(&plan(2_500, &[]), 0));
    for i in 0..6 {
        let act = course
            .tick((i + 1) * MINUTE, |least| enough(if i % 2 == 0 { bad(&mut dice) } else { good(&mut dice) }, least));
        assert_eq!(act, Act::NextWindow, "window {i}");
        assert_eq!(course.judged().1.is_some(), i % 2 == 0);
    }
    assert_eq!((course.share(), course.judged().0), (2_500, 6));
}

#[test]
fn a_window_lasts_until_both_arms_have_enough() {
    let (mut dice, mut course) = (Dice(1), Course::new(&plan(2_500, &[]), 0));
    assert_eq!(course.tick(MINUTE - 1, |_| panic!("too early")), Act::Nothing);
    let few = dice.arm(499, 100_000.0, 1.0);
    let many = dice.arm(500, 300_000.0, 0.0);
    for minute in 1..5 {
        assert_eq!(course.tick(minute * MINUTE, |least| enough((few.clone(), many.clone()), least)), Act::Nothing);
    }
    let plenty = dice.arm(500, 100_000.0, 1.0);
    assert_eq!(course.tick(5 * MINUTE, |least| enough((plenty.clone(), many.clone()), least)), Act::NextWindow);
    assert!(matches!(course.tick(6 * MINUTE, |least| enough((plenty.clone(), many.clone()), least)), Act::RollBack(_)));
}

#[test]
fn rolled_back_stays_rolled_back() {
    let (mut dice, mut course) = (Dice(1), Course::new(&plan(2_500, &[]), 0));
    course.tick(MINUTE, |least| enough(bad(&mut dice), least));
    assert!(matches!(
        course.tick(2 * MINUTE, |least| enough(bad(&mut dice), least)),
        Act::RollBack(Regression::Errors { .. })
    ));
    assert_eq!((course.share(), course.moves()), (0, false));
    assert!(matches!(course.stage(), Stage::RolledBack { since, .. } if *since == 2 * MINUTE));
    for minute in 3..100 {
        assert_eq!(course.tick(minute * MINUTE, |_| panic!("nothing to see")), Act::Nothing);
    }
}

#[test]
fn a_ramp_climbs_when_it_is_time_and_its_step_was_seen_to_be_good() {
    let mut dice = Dice(1);
    let mut course = Course::new(&plan(100, &[100, 1_000, WHOLE]), 0);
    assert_eq!((course.share(), course.waits()), (100, true));
    // Not seen: however late it is.
    let few = |least| enough((Dice(2).arm(3, 100_000.0, 0.0), Dice(3).arm(600, 100_000.0, 0.0)), least);
    assert_eq!(course.tick(30 * MINUTE, few), Act::Nothing);
    assert_eq!(course.tick(31 * MINUTE, |least| enough(good(&mut dice), least)), Act::Step(1_000));
    assert_eq!(course.share(), 1_000);
    // Good, but not long enough.
    assert_eq!(course.tick(33 * MINUTE, |least| enough(good(&mut dice), least)), Act::NextWindow);
    assert!(!course.waits());
    // Regressed once: the step waits for the next window.
    assert_eq!(course.tick(41 * MINUTE, |least| enough(bad(&mut dice), least)), Act::NextWindow);
    assert!(course.waits());
    assert_eq!(course.tick(42 * MINUTE, |least| enough(good(&mut dice), least)), Act::Step(WHOLE));
    // All are cached: there is nothing to compare with, and nothing more to do.
    assert_eq!((course.share(), course.stage(), course.guard()), (WHOLE, &Stage::Settled, None));
    assert!(!course.moves());
    assert_eq!(course.tick(90 * MINUTE, |_| panic!("no control arm")), Act::Nothing);
}

#[test]
fn a_ramp_is_rolled_back_from_any_step() {
    let mut dice = Dice(1);
    let mut course = Course::new(&plan(100, &[100, 1_000, 5_000]), 0);
    assert_eq!(course.tick(10 * MINUTE, |least| enough(good(&mut dice), least)), Act::Step(1_000));
    assert_eq!(course.tick(11 * MINUTE, |least| enough(bad(&mut dice), least)), Act::NextWindow);
    assert!(matches!(course.tick(12 * MINUTE, |least| enough(bad(&mut dice), least)), Act::RollBack(_)));
    assert_eq!(course.share(), 0);
    assert_eq!(course.tick(60 * MINUTE, |_| panic!("nothing to see")), Act::Nothing);
}

#[test]
fn a_ramp_without_a_guard_goes_by_time_alone() {
    let mut course = Course::new(&Rollout { auto_rollback: None, ..plan(100, &[100, 1_000, 5_000]) }, 7);
    let mut tick = |now: u64| course.tick(now, |_| panic!("nobody watches"));
    assert_eq!(tick(10 * MINUTE), Act::Nothing);
    assert_eq!(tick(10 * MINUTE + 7), Act::Step(1_000));
    assert_eq!(tick(10 * MINUTE + 8), Act::Nothing);
    assert_eq!(tick(21 * MINUTE), Act::Step(5_000));
    assert_eq!(tick(90 * MINUTE), Act::Nothing);
    assert_eq!((course.share(), course.stage()), (5_000, &Stage::Settled));
}

#[test]
fn reasons_are_sentences_with_their_numbers() {
    let why = Regression::Errors { cached: 0.0321, control: 0.001, at_least: 0.021, allowed: 0.01 };
    assert_eq!(
        why.to_string(),
        "errors: 3.21 % of the cached arm's requests and 0.10 % of the control's, at least 2.10 % more (95 % confidence), where 1.00 % are allowed"
    );
    let why = Regression::Mean { cached: 2e6, control: 1e6, allowed: 1.5 };
    assert_eq!(
        why.to_string(),
        "mean latency: 2.000 ms in the cached arm and 1.000 ms in the control's, more than 1.5 times as long (95 % confidence)"
    );
}
