//! Lanes, sessions and L1 under every order of events, against a model that knows what may be read when.

mod server;
mod world;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use crate::config::CacheMode;
use world::{Ask, Broken, Foreign, KEYS, Layout, Lives, Own, SESSIONS, Step, World};

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
        3 => (key(), 0..2usize).prop_map(|(k, form)| Ask::Form(k, form)),
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
        10 => (0..2usize).prop_map(Step::Settle),
        2 => (1..400u64).prop_map(Step::Pass),
        2 => (0..2usize).prop_map(Step::Ping),
        1 => (0..2usize, 0..4usize).prop_map(|(w, n)| Step::Cut(w, n)),
        2 => (0..2usize).prop_map(Step::Reconnect),
        4 => (0..2usize).prop_map(Step::Gone),
        1 => Just(Step::Orphan),
        1 => key().prop_map(Step::Drop),
        1 => Just(Step::Flush),
        2 => mode().prop_map(Step::Mode),
    ]
}

/// Mostly there and back: what is served by is what can be wrong.
fn mode() -> impl Strategy<Value = CacheMode> {
    prop_oneof![3 => Just(CacheMode::Serve), 1 => Just(CacheMode::Observe), 1 => Just(CacheMode::Off)]
}

fn layout() -> impl Strategy<Value = Layout> {
    prop_oneof![Just(Layout::OneLane), Just(Layout::TwoUsers), Just(Layout::TwoDatabases)]
}

fn lives() -> impl Strategy<Value = Lives> {
    prop_oneof![3 => Just(Lives::Long), 2 => Just(Lives::Ahead), 2 => Just(Lives::Stale), 2 => Just(Lives::Both)]
}

fn history() -> impl Strategy<Value = (Layout, Lives, bool, Vec<Step>)> {
    (layout(), lives(), any::<bool>(), vec(step(), 1..150))
}

/// What a history came to, so that a test can say whether it has tried anything.
#[derive(Clone, Copy, Debug, Default)]
struct Played {
    hits: u64,
    /// Refreshes behind writes that were stored.
    refreshed: u64,
    /// Hits that had their entry read again.
    read_again: u64,
    /// Keys that were answered while upstream was gone.
    stale: u64,
}

impl Played {
    fn plus(self, other: Played) -> Played {
        Played {
            hits: self.hits + other.hits,
            refreshed: self.refreshed + other.refreshed,
            read_again: self.read_again + other.read_again,
            stale: self.stale + other.stale,
        }
    }
}

/// Plays a history to its end.
fn play(layout: Layout, own_pushes_first: bool, steps: &[Step], broken: Option<Broken>) -> Result<Played, String> {
    play_with(layout, Lives::Long, own_pushes_first, steps, broken)
}

fn play_with(
    layout: Layout,
    lives: Lives,
    own_pushes_first: bool,
    steps: &[Step],
    broken: Option<Broken>,
) -> Result<Played, String> {
    let mut world = World::new(layout, lives, own_pushes_first, broken);
    for (i, step) in steps.iter().enumerate() {
        world.step(step).map_err(|why| format!("at step {i}, {step:?}: {why}"))?;
    }
    world.rest().map_err(|why| format!("at rest: {why}"))?;
    let (hits, refreshed) = (world.hits(), world.refreshed());
    Ok(Played { hits, refreshed, read_again: world.read_again(), stale: world.stale() })
}

/// As many histories as PROPTEST_CASES says, or `cases`.
fn runner(cases: u32) -> TestRunner {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(cases);
    let config = Config { cases, failure_persistence: None, max_shrink_iters: 20_000, ..Config::default() };
    TestRunner::new(config)
}

/// Without hits, refreshes, second and stale readings a run would have proved nothing.
fn tried_enough(all: Played) -> bool {
    all.hits > 150 && all.refreshed > 50 && all.read_again > 30 && all.stale > 5
}

/// Histories are random, so how often each thing happens in 400 of them is as well: up to ten times as many are played.
#[test]
fn no_reply_is_older_than_it_may_be() {
    let all = std::cell::Cell::new(Played::default());
    for _ in 0..10 {
        let outcome = runner(400).run(&history(), |(layout, lives, own_pushes_first, steps)| {
            let played = play_with(layout, lives, own_pushes_first, &steps, None).map_err(TestCaseError::fail)?;
            all.set(all.get().plus(played));
            Ok(())
        });
        if let Err(e) = outcome {
            panic!("{e}");
        }
        if tried_enough(all.get()) {
            return;
        }
    }
    panic!("too little was tried: {:?}", all.get());
}

// ---- each rule, with it and without it ----

/// The history is explained with all rules in force, and is not without this one: so the judge would see it.
#[track_caller]
fn needs(rule: Broken, layout: Layout, steps: &[Step]) {
    play(layout, false, steps, None).expect("coherent with all rules");
    let broken = play(layout, false, steps, Some(rule));
    assert!(broken.is_err(), "without {rule:?} nothing was seen");
}

fn warm(session: usize, key: usize) -> [Step; 3] {
    [Step::Foreign(Foreign::Set(key, None)), Step::Ask(session, vec![Ask::Get(key)]), Step::Settle(session)]
}

fn whole(session: usize, key: usize, what: Own) -> [Step; 3] {
    [(); 3].map(|()| Step::Own(session, key, what))
}

#[test]
fn a_push_between_get_and_pttl_voids_the_token() {
    needs(
        Broken::Token,
        Layout::OneLane,
        &[
            Step::Foreign(Foreign::Set(2, None)),
            Step::Ask(0, vec![Ask::Get(2)]),
            Step::Execute(0, 1),
            Step::Foreign(Foreign::Set(2, None)),
            Step::Settle(0),
        ],
    );
}

/// The same for a form, of which another one is stored already.
#[test]
fn a_push_between_a_form_and_its_pttl_voids_the_token() {
    needs(
        Broken::Token,
        Layout::OneLane,
        &[
            Step::Foreign(Foreign::Set(2, None)),
            Step::Ask(0, vec![Ask::Form(2, 0)]),
            Step::Settle(0),
            Step::Ask(0, vec![Ask::Form(2, 1)]),
            Step::Execute(0, 1),
            Step::Foreign(Foreign::Set(2, None)),
            Step::Settle(0),
        ],
    );
}

#[test]
fn nothing_is_stored_under_a_pending_write() {
    let [send, execute, answer] = whole(1, 2, Own::Write);
    needs(
        Broken::Pending,
        Layout::OneLane,
        &[send, Step::Ask(0, vec![Ask::Get(2)]), Step::Settle(0), execute, answer, Step::Ask(2, vec![Ask::Get(2)])],
    );
}

#[test]
fn a_flush_voids_what_is_being_fetched() {
    needs(
        Broken::FlushGeneration,
        Layout::OneLane,
        &[
            Step::Foreign(Foreign::Set(2, None)),
            Step::Ask(0, vec![Ask::Get(2)]),
            Step::Execute(0, 1),
            Step::Foreign(Foreign::FlushAll),
            Step::Foreign(Foreign::Set(2, None)),
            Step::Settle(0),
        ],
    );
}

#[test]
fn what_a_lost_connection_has_read_is_not_served() {
    let mut steps = warm(0, 2).to_vec();
    steps.extend([Step::Cut(0, 0), Step::Foreign(Foreign::Set(2, None)), Step::Reconnect(0)]);
    needs(Broken::Epoch, Layout::OneLane, &steps);
}

#[test]
fn a_refresh_dies_with_an_exec_on_another_connection() {
    let [send, execute, answer] = whole(1, 2, Own::Write);
    let set = Step::Ask(0, vec![Ask::Set(2, None)]);
    let steps = [set, send, Step::Execute(0, 3), execute, answer, Step::Deliver(0, 3), Step::Ask(2, vec![Ask::Get(2)])];
    needs(Broken::Carry, Layout::OneLane, &steps);
}

#[test]
fn hits_end_with_the_lease() {
    let mut steps = warm(0, 2).to_vec();
    steps.extend([Step::Foreign(Foreign::Set(2, None)), Step::Pass(1500), Step::Ask(0, vec![Ask::Get(2)])]);
    needs(Broken::Lease, Layout::OneLane, &steps);
}

#[test]
fn hits_of_a_form_end_with_the_lease() {
    let set = || Step::Foreign(Foreign::Set(2, None));
    let ask = || Step::Ask(0, vec![Ask::Form(2, 0)]);
    needs(Broken::Lease, Layout::OneLane, &[set(), ask(), Step::Settle(0), set(), Step::Pass(1500), ask()]);
}

#[test]
fn a_form_of_a_key_that_an_outstanding_command_names_is_no_hit() {
    let mut steps = vec![Step::Foreign(Foreign::Set(2, None)), Step::Ask(0, vec![Ask::Form(2, 0)]), Step::Settle(0)];
    steps.push(Step::Foreign(Foreign::Set(2, None)));
    steps.extend([Step::Ask(0, vec![Ask::Form(2, 1)]), Step::Ask(0, vec![Ask::Form(2, 0)])]);
    needs(Broken::Named, Layout::OneLane, &steps);
}

#[test]
fn a_read_on_a_connection_of_its_own_fences_hits() {
    let mut steps = warm(0, 2).to_vec();
    steps.push(Step::Foreign(Foreign::Set(2, None)));
    steps.extend(whole(0, 2, Own::Read));
    steps.push(Step::Ask(0, vec![Ask::Get(2)]));
    needs(Broken::Fence, Layout::OneLane, &steps);
}

#[test]
fn a_script_is_acknowledged_when_the_other_lanes_have_passed_it() {
    let mut steps = warm(1, 2).to_vec();
    steps.extend([Step::Ask(0, vec![Ask::Script(2)]), Step::Settle(0), Step::Ask(1, vec![Ask::Get(2)])]);
    needs(Broken::Hold, Layout::TwoUsers, &steps);
}

#[test]
fn a_key_that_an_outstanding_command_names_is_no_hit() {
    let mut steps = warm(0, 2).to_vec();
    steps.push(Step::Foreign(Foreign::Set(2, None)));
    steps.extend([Step::Ask(0, vec![Ask::Range(2)]), Step::Ask(0, vec![Ask::Get(2)])]);
    needs(Broken::Named, Layout::OneLane, &steps);
}

/// A script is acknowledged while the lane with the old entry is lost: nobody is told that entry afterwards.
#[test]
fn nothing_stale_from_before_a_script_that_no_pong_followed() {
    let mut steps = warm(0, 2).to_vec();
    steps.push(Step::Cut(0, 0));
    steps.extend(whole(1, 2, Own::Script));
    steps.extend([Step::Pass(1500), Step::Gone(0), Step::Ask(2, vec![Ask::Get(2)])]);
    needs(Broken::Floor, Layout::OneLane, &steps);
}

#[test]
fn nothing_stale_from_before_a_read_on_a_connection_of_its_own() {
    let mut steps = warm(0, 2).to_vec();
    steps.extend([Step::Cut(0, 0), Step::Foreign(Foreign::Set(2, None))]);
    steps.extend(whole(0, 2, Own::Read));
    steps.extend([Step::Gone(0), Step::Ask(0, vec![Ask::Get(2)])]);
    needs(Broken::Fence, Layout::OneLane, &steps);
}

/// The lane lives and is silent; the session's own script, which may change anything, is on its way.
#[test]
fn nothing_stale_behind_an_outstanding_command_that_names_the_key() {
    let mut steps = warm(0, 2).to_vec();
    steps.extend([Step::Foreign(Foreign::Set(2, None)), Step::Ask(0, vec![Ask::Set(3, None), Ask::Range(2)])]);
    steps.extend([Step::Execute(0, usize::MAX), Step::Gone(0), Step::Ask(0, vec![Ask::Get(2)])]);
    needs(Broken::Named, Layout::OneLane, &steps);
}

#[test]
fn stale_reads_are_as_old_as_they_may_be() {
    let mut steps = warm(0, 2).to_vec();
    steps.extend([Step::Cut(0, 0), Step::Foreign(Foreign::Set(2, None)), Step::Gone(0), Step::Pass(60_000)]);
    steps.extend([Step::Ask(0, vec![Ask::Get(2)]), Step::Ask(0, vec![Ask::Mget(vec![2, 2])])]);
    let had = play(Layout::OneLane, false, &steps, None).expect("coherent");
    assert_eq!(had.stale, 3);
    steps.push(Step::Pass(240_000));
    steps.push(Step::Ask(0, vec![Ask::Get(2)]));
    let had = play(Layout::OneLane, false, &steps, None).expect("coherent");
    assert_eq!(had.stale, 3, "and no older");
}

// ---- the mode changes ----

/// A write of another lane, or of a connection of its own, that was sent while nothing was kept: nothing of the L1's knows
/// of it, and its reply may come before the push that another lane's copy of the key waits for.
#[test]
fn what_was_written_while_off_is_seen_when_it_is_answered() {
    let mode = |mode| Step::Mode(mode);
    let (set, script) = (Step::Ask(0, vec![Ask::Set(2, None)]), Step::Ask(0, vec![Ask::Script(2)]));
    for off in [CacheMode::Off, CacheMode::Observe] {
        for write in [&set, &script] {
            let steps = [
                &[Step::Foreign(Foreign::Set(2, None)), mode(off), write.clone(), mode(CacheMode::Serve)][..],
                // The other lane is armed, and has read the key.
                &[Step::Settle(1), Step::Ask(1, vec![Ask::Get(2)]), Step::Settle(1)],
                // The write is executed and answered; the push to the other lane is on its way.
                &[Step::Settle(0), Step::Ask(3, vec![Ask::Get(2)])],
            ];
            needs(Broken::Unseen, Layout::TwoUsers, &steps.concat());
        }
        for own in [Own::Write, Own::Script] {
            let [send, execute, answer] = whole(1, 2, own);
            let steps = [
                &[Step::Foreign(Foreign::Set(2, None)), mode(off), send, mode(CacheMode::Serve), Step::Settle(0)][..],
                &[Step::Ask(0, vec![Ask::Get(2)]), Step::Settle(0), execute, answer, Step::Ask(2, vec![Ask::Get(2)])],
            ];
            needs(Broken::Unseen, Layout::OneLane, &steps.concat());
        }
    }
}

#[test]
fn a_lane_serves_again_when_it_is_tracked_again() {
    let switch = [Step::Mode(CacheMode::Off), Step::Settle(0), Step::Mode(CacheMode::Serve), Step::Settle(0)];
    let read = [Step::Foreign(Foreign::Set(2, None)), Step::Ask(0, vec![Ask::Get(2)]), Step::Settle(0)];
    let written = [Step::Foreign(Foreign::Set(2, None)), Step::Ping(0), Step::Settle(0)];
    let steps = [&switch[..], &read[..], &written[..], &[Step::Ask(2, vec![Ask::Get(2)])]].concat();
    needs(Broken::Tracking, Layout::OneLane, &steps);
}

/// Nothing is tracked in between, so what was read before, or was being read, may be old.
#[test]
fn nothing_from_before_a_switch_is_served_behind_it() {
    let get = || Step::Ask(0, vec![Ask::Get(2)]);
    let [off, on] = [CacheMode::Off, CacheMode::Serve].map(|mode| move || Step::Mode(mode));
    let foreign = || Step::Foreign(Foreign::Set(2, None));
    let befores: &[&[Step]] =
        &[&[get(), Step::Settle(0)], &[get()], &[get(), Step::Execute(0, 1)], &[get(), Step::Execute(0, 2)]];
    let betweens: &[&[Step]] = &[
        &[foreign()],
        &[Step::Settle(0), foreign()],
        &[Step::Execute(0, 9), foreign(), Step::Deliver(0, 9)],
        &[on(), off(), Step::Execute(0, 4), foreign()],
        &[Step::Cut(0, 1), foreign(), Step::Reconnect(0)],
        &[Step::Cut(0, 1), on(), Step::Reconnect(0), off(), Step::Execute(0, 1), foreign()],
    ];
    let afters: &[&[Step]] =
        &[&[], &[Step::Settle(0)], &[Step::Execute(0, 2), get(), foreign()], &[off(), on(), get()]];
    for before in befores {
        for between in betweens {
            for after in afters {
                let parts = [&[foreign()], *before, &[off()], between, &[on()], after];
                let steps = [&parts.concat()[..], &[get(), Step::Settle(0), get()]].concat();
                play(Layout::OneLane, false, &steps, None).unwrap_or_else(|why| panic!("{steps:?}: {why}"));
            }
        }
    }
}

// ---- what is read again ----

const AGAIN: [Lives; 3] = [Lives::Ahead, Lives::Stale, Lives::Both];

/// The key is in the L1, and a hit of session 2 has it read again: nothing of that has been executed yet.
fn read_again(key: usize) -> Vec<Step> {
    let mut steps = warm(0, key).to_vec();
    steps.extend([Step::Pass(10), Step::Ask(2, vec![Ask::Get(key)])]);
    steps
}

/// The reading stores what upstream has then, or nothing: whatever comes between its GET and its PTTL, or behind them.
#[test]
fn what_is_read_again_is_stored_as_a_miss_is() {
    let foreign = || Step::Foreign(Foreign::Set(2, None));
    let [send, execute, answer] = whole(1, 2, Own::Write);
    let between: &[&[Step]] = &[
        &[],
        &[foreign()],
        &[Step::Execute(0, 1), foreign(), Step::Execute(0, 1)],
        &[Step::Execute(0, 2), foreign()],
        &[Step::Execute(0, 1), Step::Foreign(Foreign::FlushAll), foreign()],
        &[Step::Ask(0, vec![Ask::Set(2, None)])],
        &[Step::Execute(0, 2), Step::Ask(0, vec![Ask::Set(2, Some(5))]), Step::Settle(0), Step::Pass(10)],
        &[send, Step::Execute(0, 2), execute, Step::Deliver(0, 2), answer],
        &[Step::Execute(0, 1), Step::Deliver(0, 1), Step::Drop(2), foreign()],
        &[Step::Cut(0, 1), foreign(), Step::Reconnect(0)],
        &[Step::Execute(0, 1), Step::Foreign(Foreign::Del(2))],
        &[Step::Ask(1, vec![Ask::Script(2)]), Step::Ask(0, vec![Ask::Get(2)])],
    ];
    for lives in AGAIN {
        for middle in between {
            let mut steps = read_again(2);
            steps.extend_from_slice(middle);
            steps.extend([Step::Ask(3, vec![Ask::Get(2)]), Step::Settle(0), Step::Ask(0, vec![Ask::Get(2)])]);
            play_with(Layout::OneLane, lives, false, &steps, None)
                .unwrap_or_else(|why| panic!("{lives:?} with {middle:?}: {why}"));
        }
        let mut steps = read_again(2);
        steps.push(Step::Settle(0));
        let played = play_with(Layout::OneLane, lives, false, &steps, None).expect("coherent");
        assert!(played.read_again >= 1, "{lives:?}");
    }
}

#[test]
fn what_is_read_again_needs_its_token_as_a_miss_does() {
    let mut steps = read_again(2);
    steps.extend([Step::Execute(0, 1), Step::Foreign(Foreign::Set(2, None)), Step::Settle(0)]);
    for lives in AGAIN {
        play_with(Layout::OneLane, lives, false, &steps, None).expect("coherent with all rules");
        let broken = play_with(Layout::OneLane, lives, false, &steps, Some(Broken::Token));
        assert!(broken.is_err(), "without its token nothing was seen: {lives:?}");
    }
}

/// A key that ends upstream is never served beyond that, however long its rule lets it be served stale.
#[test]
fn nothing_is_served_stale_past_its_keys_end() {
    let set = |ms| Step::Foreign(Foreign::Set(2, Some(ms)));
    let get = || Step::Ask(0, vec![Ask::Get(2)]);
    for lives in AGAIN {
        for ends in [150, 250, 350, 600] {
            let mut steps = vec![set(ends), get(), Step::Settle(0), Step::Ping(0), Step::Settle(0)];
            for _ in 0..80 {
                steps.extend([Step::Pass(8), get(), Step::Execute(0, 1), Step::Deliver(0, 1)]);
            }
            play_with(Layout::OneLane, lives, false, &steps, None)
                .unwrap_or_else(|why| panic!("{lives:?} {ends}: {why}"));
        }
    }
}

// ---- what the property test has found, or a reader ----

#[track_caller]
fn is_coherent(layout: Layout, steps: &[Step]) {
    play(layout, false, steps, None).expect("coherent");
}

#[test]
fn a_split_mget_is_not_read_again_behind_a_later_write() {
    let mut steps = warm(0, 0).to_vec();
    steps.push(Step::Ask(0, vec![Ask::Mget(vec![0, 2]), Ask::Set(0, None)]));
    is_coherent(Layout::OneLane, &steps);
    steps.pop();
    steps.extend([Step::Ask(0, vec![Ask::Mget(vec![0, 2])]), Step::Ask(0, vec![Ask::Set(0, None)])]);
    is_coherent(Layout::OneLane, &steps);
}

#[test]
fn an_mget_without_hits_is_not_read_again_after_a_flush() {
    is_coherent(
        Layout::OneLane,
        &[
            Step::Ask(3, vec![Ask::Mget(vec![0, 0])]),
            Step::Foreign(Foreign::FlushAll),
            Step::Ask(3, vec![Ask::Get(0)]),
            Step::Ask(1, vec![Ask::Script(0)]),
        ],
    );
}

/// R17: keys 0 and 1 share a stripe, so each push of one is one bump of both.
#[test]
fn a_push_is_excused_once_for_two_keys_of_one_stripe() {
    let [send, execute, answer] = whole(1, 0, Own::Write);
    let mut steps = [warm(0, 0), warm(0, 1)].concat();
    steps.extend([Step::Foreign(Foreign::Set(0, None)), Step::Foreign(Foreign::Set(1, None))]);
    steps.extend([Step::Ask(0, vec![Ask::Mset(0, 1)]), send, Step::Execute(0, 4), execute, answer]);
    steps.extend([Step::Deliver(0, 6), Step::Ask(2, vec![Ask::Get(0)])]);
    is_coherent(Layout::OneLane, &steps);
}

/// R15: "every other lane that has an entry or a populatable fetch in flight".
#[test]
fn a_script_waits_for_lanes_that_have_an_mget_in_flight() {
    let mget = Step::Ask(1, vec![Ask::Mget(vec![2, 3])]);
    let (script, get) = (Step::Ask(0, vec![Ask::Script(2)]), Step::Ask(3, vec![Ask::Get(2)]));
    is_coherent(Layout::TwoUsers, &[mget, Step::Execute(1, 3), script, Step::Settle(0), Step::Deliver(1, 3), get]);
}

#[test]
fn a_script_waits_for_lanes_that_have_read_a_value_and_not_its_ttl() {
    let first = Step::Ask(1, vec![Ask::Get(2)]);
    let (script, get) = (Step::Ask(0, vec![Ask::Script(2)]), Step::Ask(3, vec![Ask::Get(2)]));
    let steps = [first, Step::Execute(1, 2), Step::Deliver(1, 1), script, Step::Settle(0), Step::Deliver(1, 1), get];
    is_coherent(Layout::TwoUsers, &steps);
}

#[test]
fn a_script_waits_for_lanes_that_have_a_refresh_in_flight() {
    let set = Step::Ask(1, vec![Ask::Set(2, None)]);
    let (script, get) = (Step::Ask(0, vec![Ask::Script(2)]), Step::Ask(3, vec![Ask::Get(2)]));
    is_coherent(Layout::TwoUsers, &[set, Step::Execute(1, 3), script, Step::Settle(0), Step::Deliver(1, 3), get]);
}

/// C72: `GETSET k v` with a large old value, `upstream.request_timeout` over before its reply came.
#[test]
fn a_write_that_timed_out_ends_with_its_large_reply() {
    let mut world = World::new(Layout::OneLane, Lives::Long, false, None);
    world.step(&Step::Ask(0, vec![Ask::Set(2, None)])).expect("coherent");
    world.step(&Step::Execute(0, 3)).expect("coherent");
    world.time_out_before_a_large_reply(0);
    world.settle().expect("coherent");
    world.check_at_rest().expect("nothing is pending");
}
