use std::sync::Arc;

use super::*;
use crate::observe::metrics::Metrics;
use crate::observe::reasons::{Mode, Operation, Timed};
use crate::observe::status::Status;

const MS: u64 = 1_000_000;

fn view() -> View {
    View::new(Arc::new(Metrics::new(":", 100)), Arc::new(Status::new("upstream", Mode::Serve)))
}

/// A process that is sampled once a second from minute 100 on.
struct World {
    view: View,
    now: u64,
}

impl World {
    fn new() -> World {
        let world = World { view: view(), now: 6000 * SECOND };
        world.sample(&[]);
        world
    }

    fn sample(&self, rules: &[&str]) {
        clock::fake::set(self.now);
        self.view.history.sample(&self.view, rules);
    }

    fn after(&mut self, seconds: u64) {
        self.now += seconds * SECOND;
        self.sample(&[]);
    }

    fn requests(&self, n: u64) {
        self.view.metrics.operations.add(Operation::Get, n);
    }

    fn window(&self, minutes: usize) -> Window {
        let (_, [window]) = self.view.history.windows(&self.view, [minutes]);
        window
    }

    fn series(&self, range: Range, name: &str) -> Vec<f64> {
        let shown = self.view.history.shown(range);
        shown.series.into_iter().find(|(other, _)| *other == name).expect("a series").1
    }
}

/// NaN equals NaN.
fn same(values: &[f64], expected: &[f64]) {
    let same = values.iter().zip(expected).all(|(a, b)| a == b || (a.is_nan() && b.is_nan()));
    assert!(same && values.len() == expected.len(), "{values:?} is not {expected:?}");
}

#[test]
fn a_step_shows_what_came_in_it() {
    let mut world = World::new();
    world.requests(5);
    world.after(1);
    world.after(1);
    world.requests(7);
    world.view.metrics.clients.set(3);
    world.after(1);
    same(&world.series(Range::Quarter, "requests"), &[5.0, 0.0, 7.0]);
    same(&world.series(Range::Quarter, "clients"), &[0.0, 0.0, 3.0]);
    assert!(world.series(Range::Day, "requests").is_empty());
    assert_eq!(world.view.history.rate("requests"), Some(4.0));
    assert!(world.view.history.last().contains(&("requests", 7.0)));
}

#[test]
fn what_nobody_saw_is_unknown_and_what_was_counted_meanwhile_is_a_mean() {
    let mut world = World::new();
    world.after(1);
    world.requests(12);
    world.after(4);
    let nan = f64::NAN;
    same(&world.series(Range::Quarter, "requests"), &[0.0, nan, nan, nan, 3.0]);
    same(&world.series(Range::Quarter, "clients"), &[0.0, nan, nan, nan, 0.0]);
    world.after(10 * 86_400);
    let shown = world.view.history.shown(Range::Quarter);
    assert_eq!((shown.length, shown.ended), (SECONDS, Some(0)));
    assert!(world.series(Range::Quarter, "entries")[..SECONDS - 1].iter().all(|value| value.is_nan()));
    assert_eq!(world.view.history.shown(Range::Day).length, MINUTES);
}

#[test]
fn rings_are_as_long_as_they_say() {
    let mut world = World::new();
    for _ in 0..120 {
        world.requests(10);
        world.after(10);
    }
    assert_eq!(world.view.history.shown(Range::Quarter).length, SECONDS);
    same(&world.series(Range::Day, "requests"), &[60.0; 20]);
}

#[test]
fn time_within_a_step_and_time_that_runs_back_add_no_step() {
    let mut world = World::new();
    world.now += 300 * MS;
    world.sample(&[]);
    world.now -= 200 * MS;
    world.sample(&[]);
    assert_eq!(world.view.history.shown(Range::Quarter).length, 0);
}

#[test]
fn quantiles_of_a_step_are_those_of_its_requests_alone() {
    let mut world = World::new();
    world.view.metrics.request_n(Timed::ReadHit, 1_000, 1000);
    world.after(1);
    world.view.metrics.request_n(Timed::ReadHit, 5 * MS, 10);
    world.after(1);
    world.after(1);
    let p50 = world.series(Range::Quarter, "p50_hit_ms");
    assert!((p50[0] - 0.001).abs() < 0.000_02 && (p50[1] - 5.0).abs() < 0.05 && p50[2].is_nan(), "{p50:?}");
}

#[test]
fn windows_hold_the_running_minute_and_those_they_are_named_after() {
    let mut world = World::new();
    let count = |world: &World, minutes| world.window(minutes).requests;
    world.requests(1);
    world.view.metrics.request(Timed::ReadMiss, 2 * MS);
    assert_eq!([1, 15, 60].map(|minutes| count(&world, minutes)), [1, 1, 1]);
    for (minutes, expected) in [(1, [1, 1, 1]), (2, [0, 1, 1]), (15, [0, 1, 1]), (16, [0, 0, 1]), (61, [0, 0, 0])] {
        let mut world = World::new();
        world.requests(1);
        (0..minutes).for_each(|_| world.after(60));
        assert_eq!([1, 15, 60].map(|window| count(&world, window)), expected, "after {minutes} minutes");
    }
    (0..90).for_each(|_| world.after(1));
    let window = world.window(15);
    let miss = &window.durations[Took::Miss as usize];
    assert!(miss.count() == 1 && miss.quantile_ms(0.99).is_some_and(|ms| (ms - 2.0).abs() < 0.02));
    assert_eq!(window.durations[Took::Hit as usize].count(), 0);
    // Suspended for two hours: nothing of before is in any window.
    world.after(2 * 3600);
    assert_eq!(count(&world, 60), 0);
}

#[test]
fn rules_come_and_go_and_are_few() {
    let mut world = World::new();
    let minute = |world: &mut World, rules: &[&str]| {
        world.now += 60 * SECOND;
        world.sample(rules);
    };
    minute(&mut world, &["a"]);
    let id = world.view.metrics.patterns.of_rule("a");
    (0..6).for_each(|_| world.view.metrics.patterns.hit(id));
    minute(&mut world, &["a", "b"]);
    let shown = world.view.history.shown(Range::Day);
    assert_eq!(shown.rules.iter().map(|rule| rule.name.as_str()).collect::<Vec<_>>(), ["a", "b"]);
    same(&shown.rules[0].hits, &[f64::NAN, 6.0]);
    same(&shown.rules[1].hits, &[f64::NAN, f64::NAN]);
    let many: Vec<String> = (0..100).map(|i| format!("r{i}")).collect();
    minute(&mut world, &many.iter().map(String::as_str).collect::<Vec<_>>());
    let shown = world.view.history.shown(Range::Day);
    assert_eq!((shown.rules.len(), shown.rules[0].name.as_str()), (RULES_MAX, "r0"));
    assert!(shown.rules.iter().all(|rule| rule.hits.len() == shown.length));
}

#[test]
fn rules_have_their_seconds_too() {
    let mut world = World::new();
    let id = world.view.metrics.patterns.of_rule("a");
    let second = |world: &mut World, seconds: u64, hits: usize, rules: &[&str]| {
        (0..hits).for_each(|_| world.view.metrics.patterns.hit(id));
        world.view.metrics.patterns.miss(id);
        world.now += seconds * SECOND;
        world.sample(rules);
    };
    second(&mut world, 1, 1, &["a"]);
    second(&mut world, 1, 3, &["a", "b"]);
    second(&mut world, 2, 4, &["a", "b"]);
    let nan = f64::NAN;
    let shown = world.view.history.shown(Range::Quarter);
    assert_eq!(shown.rules.iter().map(|rule| rule.name.as_str()).collect::<Vec<_>>(), ["a", "b"]);
    same(&shown.rules[0].hits, &[nan, 3.0, nan, 2.0]);
    same(&shown.rules[0].misses, &[nan, 1.0, nan, 0.5]);
    same(&shown.rules[1].hits, &[nan, nan, nan, 0.0]);
    assert!(shown.rules[0].saved.is_none());
    (0..100).for_each(|_| second(&mut world, 10, 10, &["a"]));
    let shown = world.view.history.shown(Range::Quarter);
    assert_eq!((shown.rules.len(), shown.length), (1, SECONDS));
    let seen: Vec<f64> = shown.rules[0].hits.iter().copied().filter(|hits| !hits.is_nan()).collect();
    same(&seen, &[1.0; SECONDS / 10]);
    assert!(world.view.history.shown(Range::Day).rules[0].saved.is_some());
}

#[test]
fn before_the_first_sample_everything_is_empty() {
    let view = view();
    let shown = view.history.shown(Range::Quarter);
    assert_eq!((shown.length, shown.ended, shown.series.len()), (0, None, SERIES));
    assert_eq!(view.history.rate("requests"), None);
    assert!(view.history.last().iter().all(|(_, value)| value.is_nan()));
}
