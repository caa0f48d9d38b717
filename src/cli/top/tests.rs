//! Frames of a board that is fed with the side port's own shapes.

use serde_json::{Value, json};

use super::board::Board;
use super::feed::{Look, News};
use super::{on_screen, text};

fn dashboard() -> Value {
    let q = |p50: f64| json!({"count": 12345, "avg_ms": p50, "p50_ms": p50, "p95_ms": 2.0 * p50, "p99_ms": 4.0 * p50});
    let durations = json!({"all": q(0.1), "hit": q(0.02), "miss": q(0.5), "upstream": q(0.4)});
    let counts =
        |name: &str, of: &str| json!({name: of, "hits": 900, "misses": 100, "hit_rate": 0.9, "sets": 90, "dels": 3});
    json!({
        "version": "0.1.0", "at": "2026-11-28T20:00:00.000Z",
        "health": {"status": "degraded", "uptime_ms": 3_723_000, "rss_bytes": 50_331_648, "cpu_share": 0.07, "checks": []},
        "metrics": {
            "requests_per_second": 1234.5, "upstream_requests_per_second": 99.5, "hit_rate": 0.9, "errors": 7,
            "durations": durations,
            "windows": {"1m": {"hit_rate": 0.75, "error_rate": 0.01, "durations": durations}},
        },
        "cache": {
            "mode": "serve", "coherence_mode": "tracking", "hits": 900, "misses": 100, "hit_rate": 0.9,
            "rules": {"total": 1, "items": [counts("rule", "sessions")]},
            "patterns": {"total": 2, "items": [counts("pattern", "user"), counts("pattern", "<img onerror=x>\u{1b}[31m")]},
            "upstream": {"up": true, "state": "closed", "server": "redis", "version": "7.0.15", "backend": "upstream"},
        },
        "runs": {"active": 42},
        "alerts": {"active": 1, "total": 1, "items": [
            {"name": "hit_rate", "severity": "warning", "state": "firing", "since": "2026-11-28T19:59:00.000Z", "message": "below 60 %"},
            {"name": "p99", "severity": "warning", "state": "resolved", "since": "2026-11-28T19:50:00.000Z", "message": "long ago"},
        ]},
    })
}

fn look(dashboard: Value) -> News {
    let keys = json!({"items": [
        {"key": "user:1", "hits": 500, "misses": 1, "bytes": 2048, "pattern": "user"},
        {"key": null, "hits": 400, "misses": 2, "bytes": null, "pattern": "session"},
    ]});
    let events = json!({"total": 1, "events": [
        {"id": 1, "at": "2026-11-28T19:58:01.000Z", "kind": "reload", "actor": "file", "message": "read again", "detail": {}},
    ]});
    News::Snapshot(Box::new(Look { dashboard, keys, events }))
}

fn board() -> Board {
    let mut board = Board::new("http://127.0.0.1:9380".into());
    board.hear(News::Past(json!({"series": {"requests": [1, 5, 9], "upstream_requests": [1, 1, null], "hits": [1, 2, 3], "misses": [1, 0, 0]}})));
    board.hear(look(dashboard()));
    board
}

#[track_caller]
fn has(frame: &str, parts: &[&str]) {
    for part in parts {
        assert!(frame.contains(part), "no {part:?} in\n{frame}");
    }
}

#[test]
fn a_wide_frame_has_everything() {
    let frame = text(&board(), 120, 40);
    has(&frame, &["nearside 0.1.0  mode serve  backend upstream  coherence tracking  up 1 h 2 min"]);
    has(&frame, &["degraded  upstream redis 7.0.15 up  clients 42  memory 48.0 MiB  cpu 7 %"]);
    has(&frame, &["requests 1234/s", "upstream 99.5/s", "hit rate 90.0 %, 1 min 75.0 %"]);
    has(
        &frame,
        &[
            "hit           0.020    0.040    0.080    12.3k   0.020 / 0.080",
            "errors    7 in all, 1.0 % of the last minute",
        ],
    );
    has(&frame, &["sessions", "user", "900", "100", "90.0 %", "user:1", "2.0 KiB", "(session)"]);
    has(&frame, &["warning: hit_rate since 19:59:00: below 60 %", "19:58:01 reload: read again", "q quit"]);
    assert!(!frame.contains("long ago"), "an alert that is resolved is no news\n{frame}");
}

#[test]
fn what_clients_have_named_is_text_only() {
    let frame = text(&board(), 120, 40);
    has(&frame, &["<img onerror=x>?[31m"]);
    assert!(!frame.contains('\u{1b}'));
}

#[test]
fn a_narrow_frame_has_all_lists_below_each_other() {
    let frame = text(&board(), 50, 60);
    assert!(frame.lines().all(|line| line.chars().count() <= 50), "{frame}");
    has(&frame, &["requests 1234/s", "upstream 99.5/s", "alerts", "rules", "patterns", "top keys", "events", "user:1"]);
}

#[test]
fn any_size_can_be_drawn() {
    for (width, height) in [(1, 1), (3, 2), (20, 5), (59, 9), (300, 3), (89, 100), (90, 100)] {
        text(&board(), width, height);
        text(&Board::new("http://x".into()), width, height);
    }
}

#[test]
fn a_sidecar_that_is_gone_is_said_so_and_what_was_seen_stays() {
    let mut board = Board::new("http://127.0.0.1:9380".into());
    has(&text(&board, 120, 40), &["http://127.0.0.1:9380: asking ...", "mode ?"]);
    board.hear(News::Lost("Connection refused".into()));
    let frame = text(&board, 120, 40);
    has(&frame, &["NO ANSWER for 0 s: Connection refused, trying again"]);
    assert!(!frame.contains("seen before"));
    board.hear(look(dashboard()));
    assert!(!text(&board, 120, 40).contains("NO ANSWER"));
    board.hear(News::Lost("Connection refused".into()));
    has(&text(&board, 120, 40), &["trying again; below is what was seen before", "requests 1234/s"]);
}

#[test]
fn the_hit_rate_of_a_second_is_of_what_came_in_it() {
    let mut board = Board::new(String::new());
    let with = |hits: u64, misses: u64| {
        let mut seen = dashboard();
        (seen["cache"]["hits"], seen["cache"]["misses"]) = (json!(hits), json!(misses));
        look(seen)
    };
    // The first look has nothing to compare with; a sidecar that was started again counts from 0.
    for (hits, misses) in [(900, 100), (930, 110), (930, 110), (5, 5), (6, 5)] {
        board.hear(with(hits, misses));
    }
    assert_eq!(board.hit_rate.last(10), [75, 0, 100]);
}

#[test]
fn what_a_sidecar_does_not_have_is_unknown() {
    let mut board = Board::new(String::new());
    board.hear(News::Snapshot(Box::new(Look {
        dashboard: json!({"version": "9"}),
        keys: Value::Null,
        events: Value::Null,
    })));
    has(&text(&board, 120, 40), &["nearside 9  mode ?", "hit rate -", "clients ?", "none"]);
}

/// Tells the process that it is the one of `a_panic_gives_the_terminal_back`.
const ON_THE_SCREEN: &str = "TEST_ONLY_PANICS_ON_THE_SCREEN";

/// Run in a terminal by `a_panic_gives_the_terminal_back`, as a process of its own; by itself it does nothing.
#[test]
fn panics_on_the_screen() {
    if std::env::var_os(ON_THE_SCREEN).is_none() {
        return;
    }
    let _ = on_screen(|terminal| {
        terminal.draw(|_| ())?;
        panic!("seen on the first screen");
    });
}

#[test]
fn a_panic_gives_the_terminal_back() {
    let this = std::env::current_exe().expect("this program");
    let test = "cli::top::tests::panics_on_the_screen";
    let command = format!("stty -a; {} --exact {test} --nocapture; stty -a", this.display());
    let script = std::process::Command::new("script")
        .args(["-qec", &command, "/dev/null"])
        .env("TERM", "xterm-256color")
        .env(ON_THE_SCREEN, "1")
        .stdin(std::process::Stdio::null())
        .output();
    let Ok(output) = script else {
        return eprintln!("SKIPPED needs util-linux's script, which is not installed");
    };
    let seen = String::from_utf8_lossy(&output.stdout);
    let at = |what: &str| seen.rfind(what).unwrap_or_else(|| panic!("no {what:?} in {seen:?}"));
    let (back, shown, told) = (at("\u{1b}[?1049l"), at("\u{1b}[?25h"), at("seen on the first screen"));
    assert!(at("\u{1b}[?1049h") < back && at("\u{1b}[?25l") < shown && back < told, "{seen:?}");
    // Lines, echo and signals of keys are as they were before.
    let settings =
        |text: &str| text.split_whitespace().filter(|word| MODES.contains(&word.trim_end_matches(';'))).count();
    assert_eq!(settings(&seen), 2 * MODES.len(), "{seen:?}");
}

/// What raw mode turns off.
const MODES: [&str; 4] = ["icanon", "echo", "isig", "opost"];
