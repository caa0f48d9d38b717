//! Each alert by its condition, and the time that it takes to fire and to be over, with a clock that the test turns.

use super::*;
use crate::observe::health::tests::{good, limits};
use crate::observe::health::{Minute, Upstream};

const SECOND: u64 = 1_000_000_000;

fn minute(change: impl FnOnce(&mut Minute)) -> Facts {
    let mut facts = good();
    change(&mut facts.minute);
    facts
}

fn troubles(facts: &Facts) -> Vec<&'static str> {
    let held = AlertName::ALL.iter().filter(|name| trouble(**name, facts, &limits()).is_some());
    held.map(|name| name.as_str()).collect()
}

#[test]
fn each_condition_by_its_figure_and_its_least_traffic() {
    let errors = |requests, errors| troubles(&minute(|m| (m.requests, m.errors) = (requests, errors)));
    assert_eq!(errors(100, 6), ["error_rate"]);
    assert_eq!((errors(100, 5), errors(99, 99)), (vec![], vec![]));
    let slow = |requests, p99| troubles(&minute(|m| (m.requests, m.p99) = (requests, Some(p99))));
    assert_eq!(slow(100, SECOND + 1), ["p99"]);
    assert_eq!((slow(100, SECOND), slow(99, 5 * SECOND)), (vec![], vec![]));
    let hits = |hits, misses| troubles(&minute(|m| (m.hits, m.misses) = (hits, misses)));
    assert_eq!(hits(59, 41), ["hit_rate"]);
    assert_eq!((hits(60, 40), hits(0, 99), hits(0, 0)), (vec![], vec![], vec![]));
    let evicted = |evicted, hits| troubles(&minute(|m| (m.evicted, m.hits) = (evicted, hits)));
    assert_eq!(evicted(200, 150), ["evictions_thrash"]);
    assert_eq!(evicted(200, 0), ["evictions_thrash"]);
    assert_eq!((evicted(200, 200), evicted(99, 0)), (vec![], vec![]));
}

#[test]
fn each_condition_by_its_state() {
    let of = |change: fn(&mut Facts)| {
        let mut facts = good();
        change(&mut facts);
        troubles(&facts)
    };
    assert_eq!(of(|_| ()), [""; 0]);
    assert_eq!(of(|f| f.upstream = Some(Upstream::Down("gone".into()))), ["upstream_down"]);
    assert_eq!(of(|f| f.lanes_live = 1), ["coherence_lost"]);
    assert_eq!(of(|f| f.lanes_fallen = 1), ["coherence_lost"]);
    assert_eq!(of(|f| f.lanes_weak = 1), [""; 0], "what was asked for is not lost");
    assert_eq!(of(|f| f.rss = 90), ["memory"]);
    assert_eq!(of(|f| f.config_error = Some("x:1".into())), ["reload_failed"]);
    assert_eq!(of(|f| (f.queue_depth, f.minute.queued) = (5, 1)), ["queue_growing"]);
    assert_eq!(of(|f| (f.queue_depth, f.minute.queued) = (5, -1)), [""; 0]);
    assert_eq!(of(|f| (f.queue_depth, f.queue_age) = (5, 61_000_000_000)), ["queue_growing"]);
    assert_eq!(of(|f| f.minute.refused = 2), ["queue_failed"]);
    // A lost upstream has lost its lanes as well: one alert.
    let both = |f: &mut Facts| (f.upstream, f.lanes_live) = (Some(Upstream::Down("x".into())), 0);
    assert_eq!(of(both), ["upstream_down"]);
    let off = |f: &mut Facts| {
        f.mode = Mode::Off;
        f.lanes_live = 0;
        (f.minute.hits, f.minute.misses) = (0, 1000);
    };
    assert_eq!(of(off), [""; 0], "what is switched off hits nothing and loses nothing");
}

/// Steps once a second through facts, and says at which second what happened.
fn play(seconds: u64, at: impl Fn(u64) -> Facts) -> (Alerts, Vec<String>) {
    let (mut alerts, mut told) = (Alerts::default(), Vec::new());
    for second in 0..seconds {
        for turn in alerts.step(&at(second), &limits(), second * SECOND, 1_000_000 + second * 1000) {
            told.push(match turn {
                Turn::Raised(alert) => format!("{second}: {} since {}", alert.name.as_str(), alert.since),
                Turn::Resolved(alert) => format!("{second}: {} over", alert.name.as_str()),
            });
        }
    }
    (alerts, told)
}

fn low(second: u64, from: u64, to: u64) -> Facts {
    minute(|m| (m.hits, m.misses) = if (from..to).contains(&second) { (10, 990) } else { (900, 100) })
}

#[test]
fn a_figure_fires_after_it_has_lasted_and_is_over_after_it_was_away_as_long() {
    let (alerts, told) = play(200, |second| low(second, 10, 100));
    assert_eq!(told, ["40: hit_rate since 1010000", "130: hit_rate over"]);
    let (ring, total) = alerts.recent();
    assert_eq!((ring.len(), total), (1, 1));
    assert_eq!((ring[0].value, ring[0].threshold, ring[0].resolved), (0.01, 0.6, Some(1_130_000)));
    assert_eq!(alerts.active(), Firing::default());
}

#[test]
fn what_is_short_raises_nothing_and_what_sways_raises_one() {
    assert_eq!(play(200, |second| low(second, 10, 39)).1, [""; 0]);
    let (alerts, told) = play(200, |second| {
        let gap = second > 50 && second % 20 < 10;
        if gap { low(second, 0, 0) } else { low(second, 10, 200) }
    });
    assert_eq!(told, ["40: hit_rate since 1010000"]);
    assert!(alerts.is_active(AlertName::HitRate));
}

#[test]
fn an_idle_pod_raises_nothing_and_one_that_becomes_idle_is_over() {
    assert_eq!(play(300, |_| minute(|m| (m.hits, m.misses) = (0, 50))).1, [""; 0]);
    let (_, told) = play(300, |second| if second < 100 { low(second, 0, 100) } else { good() });
    assert_eq!(told, ["30: hit_rate since 1000000", "130: hit_rate over"]);
}

#[test]
fn a_lost_upstream_fires_soon_and_a_bad_file_at_once() {
    let down = |second| {
        let mut facts = good();
        if (10..20).contains(&second) {
            facts.upstream = Some(Upstream::Down("Connection refused".into()));
            facts.config_error = Some("x.yaml:3".into());
        }
        facts
    };
    let (alerts, told) = play(60, down);
    let expected = [
        "10: reload_failed since 1010000",
        "13: upstream_down since 1010000",
        "20: reload_failed over",
        "23: upstream_down over",
    ];
    assert_eq!(told, expected);
    assert_eq!(alerts.total(AlertName::UpstreamDown), 1);
}

#[test]
fn the_ring_keeps_what_fires_and_drops_what_is_over() {
    let facts = |second: u64| {
        let mut facts = good();
        facts.rss = 95;
        // In force from the 30th second on: a file that is refused every other second.
        facts.config_error = (second >= 30 && second.is_multiple_of(2)).then(|| "x".to_owned());
        facts
    };
    let (alerts, _) = play(200, facts);
    let (ring, total) = alerts.recent();
    assert_eq!((ring.len(), total), (ALERTS_MAX, 1 + 85));
    assert!(ring.iter().any(|alert| alert.name == AlertName::Memory && alert.resolved.is_none()), "it fires still");
    const { assert!(ALERTS_MAX > AlertName::COUNT) };
    assert_eq!(alerts.active(), Firing { count: 1, critical: false });
}
