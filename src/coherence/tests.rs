//! Lanes, sessions and L1 under every order of events, against a model that knows what may be read when.

mod server;
mod world;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestError, TestRng, TestRunner};

use world::{Ask, Broken, Foreign, KEYS, Layout, Own, SESSIONS, Step, World};

fn key() -> impl Strategy<Value = usize> {
    // Few keys meet more often.
    prop_oneof![3 => 0..2usize, 1 => 0..KEYS]
}

fn ttl() -> impl Strategy<Value = Option<u64>> {
    prop_oneof![4 => Just(None), 1 => (1..800u64).prop_map(Some)]
}

fn ask() -> impl Strategy<Value = Ask> {
    prop_oneof![
        8 => key().prop_map(Ask::Get),
        3 => vec(key(), 2..4).prop_map(Ask::Mget),
        1 => key().prop_map(Ask::Range),
        3 => (key(), ttl()).prop_map(|(k, t)| Ask::Set(k, t)),
        1 => (key(), key()).prop_map(|(a, b)| Ask::Mset(a, b)),
        1 => key().prop_map(Ask::Del),
        1 => key().prop_map(Ask::Script),
    ]
}

fn foreign() -> impl Strategy<Value = Foreign> {
    prop_oneof![
        6 => (key(), ttl()).prop_map(|(k, t)| Foreign::Set(k, t)),
        3 => (key(), key()).prop_map(|(a, b)| Foreign::Mset(a, b)),
        1 => key().prop_map(Foreign::Del),
        1 => Just(Foreign::FlushAll),
    ]
}

fn own() -> impl Strategy<Value = Own> {
    prop_oneof![Just(Own::Read), Just(Own::Write), Just(Own::Script)]
}

fn step() -> impl Strategy<Value = Step> {
    let asks = prop_oneof![4 => vec(ask(), 1..2), 1 => vec(ask(), 2..4)];
    prop_oneof![
        20 => (0..SESSIONS, asks).prop_map(|(s, asks)| Step::Ask(s, asks)),
        8 => (0..SESSIONS, key(), own()).prop_map(|(s, k, what)| Step::Own(s, k, what)),
        6 => foreign().prop_map(Step::Foreign),
        10 => (0..2usize, 1..6usize).prop_map(|(w, n)| Step::Execute(w, n)),
        10 => (0..2usize, 1..6usize).prop_map(|(w, n)| Step::Deliver(w, n)),
        2 => (1..400u64).prop_map(Step::Pass),
        2 => (0..2usize).prop_map(Step::Ping),
        1 => (0..2usize, 0..4usize).prop_map(|(w, n)| Step::Cut(w, n)),
        2 => (0..2usize).prop_map(Step::Reconnect),
        1 => Just(Step::Orphan),
        1 => key().prop_map(Step::Drop),
        1 => Just(Step::Flush),
    ]
}

fn layout() -> impl Strategy<Value = Layout> {
    prop_oneof![Just(Layout::OneLane), Just(Layout::TwoUsers), Just(Layout::TwoDatabases)]
}

fn history() -> impl Strategy<Value = (Layout, bool, Vec<Step>)> {
    (layout(), any::<bool>(), vec(step(), 1..150))
}

/// Plays a history to its end; returns hits and refreshes that were stored.
fn play(layout: Layout, own_pushes_first: bool, steps: &[Step], broken: Option<Broken>) -> Result<(u64, u64), String> {
    let mut world = World::new(layout, own_pushes_first, broken);
    for (i, step) in steps.iter().enumerate() {
        world.step(step).map_err(|why| format!("at step {i}, {step:?}: {why}"))?;
    }
    world.rest().map_err(|why| format!("at rest: {why}"))?;
    Ok((world.hits(), world.refreshed()))
}

/// As many histories as PROPTEST_CASES says, or `cases`.
fn runner(cases: u32) -> TestRunner {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(cases);
    let config = Config { cases, failure_persistence: None, max_shrink_iters: 20_000, ..Config::default() };
    TestRunner::new(config)
}

#[test]
fn no_reply_is_older_than_it_may_be() {
    let (hits, refreshed) = (std::cell::Cell::new(0), std::cell::Cell::new(0));
    let outcome = runner(400).run(&history(), |(layout, own_pushes_first, steps)| {
        let (h, r) = play(layout, own_pushes_first, &steps, None).map_err(TestCaseError::fail)?;
        hits.set(hits.get() + h);
        refreshed.set(refreshed.get() + r);
        Ok(())
    });
    if let Err(e) = outcome {
        panic!("{e}");
    }
    // Without hits and refreshes it would have proved nothing.
    assert!(hits.get() > 500, "only {} hits", hits.get());
    assert!(refreshed.get() > 200, "only {} refreshes stored", refreshed.get());
}

/// The judge must see the rule's absence; the same histories every time.
#[track_caller]
fn is_seen(broken: Broken) {
    let config = Config { cases: 5_000, failure_persistence: None, max_shrink_iters: 0, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha));
    let outcome = runner.run(&history(), |(layout, own_pushes_first, steps)| {
        play(layout, own_pushes_first, &steps, Some(broken)).map(drop).map_err(TestCaseError::fail)
    });
    match outcome {
        Err(TestError::Fail(why, _)) => println!("{broken:?}: {why}"),
        other => panic!("{broken:?} was not seen: {other:?}"),
    }
}

#[test]
fn a_token_that_outlives_a_push_is_seen() {
    is_seen(Broken::Token);
}

#[test]
fn storing_under_a_pending_write_is_seen() {
    is_seen(Broken::Pending);
}

#[test]
fn storing_across_a_flush_is_seen() {
    is_seen(Broken::FlushGeneration);
}

#[test]
fn serving_what_a_lost_connection_read_is_seen() {
    is_seen(Broken::Epoch);
}

#[test]
fn a_refresh_that_carries_too_much_is_seen() {
    is_seen(Broken::Carry);
}

#[test]
fn hits_without_a_lease_are_seen() {
    is_seen(Broken::Lease);
}

#[test]
fn hits_without_a_fence_are_seen() {
    is_seen(Broken::Fence);
}

#[test]
fn opaque_replies_without_a_hold_are_seen() {
    is_seen(Broken::Hold);
}

#[test]
fn hits_on_keys_of_outstanding_commands_are_seen() {
    is_seen(Broken::Named);
}

#[test]
fn debug_one() {
    let steps = [
        Step::Ask(3, vec![Ask::Mget(vec![0, 0])]),
        Step::Foreign(Foreign::FlushAll),
        Step::Ask(3, vec![Ask::Get(0)]),
        Step::Ask(1, vec![Ask::Script(0)]),
    ];
    println!("{:?}", play(Layout::TwoUsers, false, &steps, None));
}
