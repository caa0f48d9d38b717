use std::collections::HashSet;
use std::sync::Arc;

use super::*;
use crate::observe::metrics::Metrics;
use crate::observe::reasons::{Bypass, Peer, Tag};
use crate::observe::status::Status;

fn view() -> View {
    View::new(Arc::new(Metrics::new(":", 100)), Arc::new(Status::new("upstream", Mode::Serve)))
}

fn lines(view: &View) -> Vec<String> {
    render(view).unwrap().lines().map(str::to_owned).collect()
}

/// Name and labels of a sample line.
fn series(line: &str) -> &str {
    line.rsplit_once(' ').unwrap().0
}

#[test]
fn the_required_families_are_there_under_their_names() {
    let names: HashSet<_> = families().iter().map(|f| (f.name, f.labels)).collect();
    let required: [(&str, &[&str]); 8] = [
        ("cache_hits_total", &["impl", "key_pattern"]),
        ("cache_miss_total", &["impl", "key_pattern"]),
        ("cache_set_total", &["impl", "key_pattern"]),
        ("cache_del_total", &["impl", "key_pattern"]),
        ("cache_errors_total", &["impl", "error_type"]),
        ("cache_invalidate_total", &["impl", "tag"]),
        ("cache_enabled", &["impl"]),
        ("cache_candidate_requests", &["route", "method"]),
    ];
    for family in required {
        assert!(names.contains(&family), "{family:?}");
    }
}

#[test]
fn names_are_unique_and_follow_the_conventions() {
    let names: HashSet<_> = families().iter().map(|f| f.name).collect();
    assert_eq!(names.len(), families().len());
    for family in families() {
        assert!(family.help.ends_with('.'), "{}", family.name);
        let by_convention = family.name.ends_with("_total") == (family.kind == Kind::Counter);
        assert!(by_convention || family.name == "cache_candidate_requests", "{}", family.name);
    }
}

#[test]
fn every_family_has_a_series_from_the_start() {
    let lines = lines(&view());
    for family in families() {
        let sample = |line: &String| {
            line.strip_prefix(family.name)
                .is_some_and(|rest| rest.starts_with(['{', ' ']) || rest.starts_with("_bucket"))
        };
        assert!(lines.iter().any(sample), "{}", family.name);
        assert!(lines.contains(&format!("# HELP {} {}", family.name, family.help)));
    }
}

#[test]
fn no_series_appears_twice_and_every_label_is_named() {
    let view = view();
    for i in 0..500 {
        let id = view.metrics.patterns.id(format!("f{i}:1").as_bytes());
        view.metrics.patterns.candidate(id, Method::Mget);
    }
    let mut seen = HashSet::new();
    for line in lines(&view).iter().filter(|line| !line.starts_with('#')) {
        assert!(seen.insert(series(line).to_owned()), "{line}");
        assert!(line.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap().is_finite(), "{line}");
    }
    for family in families() {
        let labels = family.collect(&view).get_metric().iter().map(|m| m.get_label().len()).collect::<HashSet<_>>();
        assert_eq!(labels, HashSet::from([family.labels.len()]), "{}", family.name);
    }
}

#[test]
fn what_is_counted_is_what_is_shown() {
    let view = view();
    let m = &view.metrics;
    let user = m.patterns.id(b"user:1");
    m.patterns.hit(user);
    m.patterns.hit(user);
    m.patterns.miss(user);
    m.patterns.candidate(user, Method::Get);
    m.bypass.inc(Bypass::Fence);
    m.invalidated.inc(Tag::Push);
    m.bytes_in.add(Peer::Upstream, 7);
    m.request_n(Timed::ReadHit, 1_000, 3);
    view.status.set_coherence(Coherence::Tracking, "");
    let lane = view.status.add_lane(0, "default");
    lane.set_link(Link::Live);
    let lines = lines(&view);
    for line in [
        r#"cache_hits_total{impl="l1",key_pattern="user"} 2"#,
        r#"cache_miss_total{impl="l1",key_pattern="user"} 1"#,
        r#"cache_hits_total{impl="l1",key_pattern="_plain"} 0"#,
        r#"cache_candidate_requests{route="user",method="GET"} 1"#,
        r#"cache_candidate_requests{route="_other",method="GET"} 0"#,
        r#"cache_invalidate_total{impl="l1",tag="_push"} 1"#,
        r#"cache_enabled{impl="l1"} 1"#,
        r#"nearside_bypass_total{reason="fence"} 1"#,
        r#"nearside_bytes_total{peer="upstream",direction="in"} 7"#,
        r#"nearside_coherence_mode{mode="tracking"} 1"#,
        r#"nearside_coherence_mode{mode="ttl"} 0"#,
        "nearside_link_up 1",
        r#"nearside_link_state{state="live"} 1"#,
        r#"nearside_request_duration_seconds_bucket{class="read",result="hit",le="0.00001"} 3"#,
        r#"nearside_request_duration_seconds_bucket{class="read",result="hit",le="+Inf"} 3"#,
        r#"nearside_request_duration_seconds_count{class="read",result="hit"} 3"#,
        r#"nearside_request_duration_seconds_sum{class="read",result="hit"} 0.000003"#,
    ] {
        assert!(lines.iter().any(|l| l == line), "{line} is missing");
    }
}

#[test]
fn a_cache_that_does_not_serve_is_not_enabled() {
    let view = view();
    view.status.set_mode(Mode::Off);
    let lines = lines(&view);
    assert!(lines.iter().any(|l| l == r#"cache_enabled{impl="off"} 0"#));
    assert!(!lines.iter().any(|l| l.starts_with(r#"cache_enabled{impl="l1"}"#)));
}
