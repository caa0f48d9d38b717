//! Draws the board. Wide terminals have two columns of lists, narrow ones one below the other; what does not fit is cut at
//! the bottom. Colours only say again what words say.

use std::time::Duration;

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Style, Stylize};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Borders, Paragraph, Sparkline};
use serde_json::Value;

use super::board::{Board, Past, clean};

/// From so many columns on lists stand side by side: a key's name and three numbers need forty.
const WIDE: u16 = 90;

/// Below this the sparklines stand below each other.
const SPARKS_SIDE_BY_SIDE: u16 = 60;

pub(super) fn draw(frame: &mut Frame, board: &Board) {
    let wide = frame.area().width >= WIDE;
    let sparks = if frame.area().width >= SPARKS_SIDE_BY_SIDE { 5 } else { 12 };
    let rows = Layout::vertical([
        Constraint::Length(3),
        Constraint::Length(sparks),
        Constraint::Length(7),
        Constraint::Min(0),
        Constraint::Length(1),
    ]);
    let [head, rates, times, lists, foot] = rows.areas(frame.area());
    frame.render_widget(Paragraph::new(header(board)), head);
    draw_rates(frame, rates, board);
    frame.render_widget(Paragraph::new(latencies(board)).block(titled("latency, ms")), times);
    draw_lists(frame, lists, board, wide);
    frame.render_widget(Paragraph::new(Line::from("q quit").dim()), foot);
}

fn titled(title: &str) -> Block<'_> {
    Block::new().borders(Borders::TOP).title(Span::raw(title).bold())
}

// ---- who it is, and how it is ----

fn header(board: &Board) -> Vec<Line<'static>> {
    vec![identity(board), condition(board), link(board)]
}

fn identity(board: &Board) -> Line<'static> {
    let version = board.word("/version");
    let uptime = board.number("/health/uptime_ms").map_or_else(|| "?".to_owned(), |ms| span(ms / 1000.0));
    Line::from(vec![
        Span::raw(format!("nearside {version}")).bold(),
        Span::raw(format!(
            "  mode {}  backend {}  coherence {}  up {uptime}",
            board.word("/cache/mode"),
            board.word("/cache/upstream/backend"),
            board.word("/cache/coherence_mode"),
        )),
    ])
}

fn condition(board: &Board) -> Line<'static> {
    let status = board.word("/health/status");
    let up = board.is("/cache/upstream/up");
    let upstream = format!("{} {}", board.word("/cache/upstream/server"), board.word("/cache/upstream/version"));
    let state = match up {
        Some(true) => Span::raw("up").green(),
        Some(false) => Span::raw(format!("down ({})", board.word("/cache/upstream/state"))).red(),
        None => Span::raw("?"),
    };
    let clients = board.number("/runs/active").map_or_else(|| "?".to_owned(), count);
    let memory = board.number("/health/rss_bytes").map_or_else(|| "?".to_owned(), size);
    let cpu =
        board.number("/health/cpu_share").map_or_else(|| "?".to_owned(), |share| format!("{:.0} %", 100.0 * share));
    Line::from(vec![
        Span::styled(status.clone(), colour(&status)),
        Span::raw(format!("  upstream {upstream} ")),
        state,
        Span::raw(format!("  clients {clients}  memory {memory}  cpu {cpu}")),
    ])
}

/// What is wrong with the connection to the side port, or where that is.
fn link(board: &Board) -> Line<'static> {
    match board.lost_for() {
        Some((why, since)) => {
            let old = if board.knows() { "; below is what was seen before" } else { "" };
            let since = span(since.as_secs_f64());
            Line::from(format!("NO ANSWER for {since}: {}, trying again{old}", clean(why))).red().bold()
        }
        None if board.knows() => Line::from(board.place.clone()).dim(),
        None => Line::from(format!("{}: asking ...", board.place)).dim(),
    }
}

fn colour(status: &str) -> Style {
    match status {
        "healthy" | "ok" => Style::new().fg(Color::Green),
        "degraded" | "warning" => Style::new().fg(Color::Yellow),
        "critical" => Style::new().fg(Color::Red),
        _ => Style::new(),
    }
}

// ---- rates ----

fn draw_rates(frame: &mut Frame, area: Rect, board: &Board) {
    let three = [Constraint::Ratio(1, 3); 3];
    let side_by_side = area.width >= SPARKS_SIDE_BY_SIDE;
    let places: [Rect; 3] = if side_by_side {
        Layout::horizontal(three).spacing(1).areas(area)
    } else {
        Layout::vertical(three).areas(area)
    };
    let per_second = |path: &str| board.number(path).map_or_else(|| "?".to_owned(), |n| format!("{}/s", count(n)));
    let overall = share(board.number("/cache/hit_rate"));
    let minute = share(board.number("/metrics/windows/1m/hit_rate"));
    let all = [
        (format!("requests {}", per_second("/metrics/requests_per_second")), &board.requests, None),
        (format!("upstream {}", per_second("/metrics/upstream_requests_per_second")), &board.upstream, None),
        (format!("hit rate {overall}, 1 min {minute}"), &board.hit_rate, Some(100)),
    ];
    for (place, (title, past, most)) in places.into_iter().zip(all) {
        draw_spark(frame, place, &title, past, most);
    }
}

fn draw_spark(frame: &mut Frame, area: Rect, title: &str, past: &Past, most: Option<u64>) {
    let data = past.last(area.width.into());
    let highest = most.unwrap_or_else(|| data.iter().copied().max().unwrap_or(0).max(1));
    frame.render_widget(Sparkline::default().block(titled(title)).data(&data).max(highest).cyan(), area);
}

// ---- latencies ----

fn latencies(board: &Board) -> Vec<Line<'static>> {
    let head = format!("{:<10}{:>9}{:>9}{:>9}{:>9}   {}", "", "p50", "p95", "p99", "count", "last minute p50 / p99");
    let row = |name: &str| {
        let of = |window: &str, what: &str| {
            let path = format!("/metrics{window}/durations/{name}/{what}_ms");
            board.number(&path).map_or_else(|| "-".to_owned(), |ms| format!("{ms:.3}"))
        };
        let seen = board.number(&format!("/metrics/durations/{name}/count")).map_or_else(|| "-".to_owned(), count);
        let minute = format!("{} / {}", of("/windows/1m", "p50"), of("/windows/1m", "p99"));
        Line::from(format!(
            "{name:<10}{:>9}{:>9}{:>9}{seen:>9}   {minute}",
            of("", "p50"),
            of("", "p95"),
            of("", "p99")
        ))
    };
    let errors = format!(
        "errors    {} in all, {} of the last minute",
        board.number("/metrics/errors").map_or_else(|| "?".to_owned(), count),
        share(board.number("/metrics/windows/1m/error_rate")),
    );
    let mut lines = vec![Line::from(head).dim()];
    lines.extend(["all", "hit", "miss", "upstream"].map(row));
    lines.push(Line::from(errors));
    lines
}

// ---- lists ----

/// What is in trouble stands above what is merely hot.
fn draw_lists(frame: &mut Frame, area: Rect, board: &Board, wide: bool) {
    let [left, right] = Layout::horizontal([Constraint::Ratio(1, 2); 2]).spacing(2).areas(area);
    let width = usize::from(if wide { left.width } else { area.width });
    let alerts = ("alerts", alerts(board));
    let rules = ("rules", groups(board, "rules", "rule", width));
    let patterns = ("patterns", groups(board, "patterns", "pattern", width));
    let keys = ("top keys", keys(board, width));
    let events = ("events", events(board));
    if wide {
        draw_stack(frame, left, vec![alerts, rules, patterns]);
        draw_stack(frame, right, vec![keys, events]);
    } else {
        draw_stack(frame, area, vec![alerts, rules, patterns, keys, events]);
    }
}

/// One below the other, each as long as it is, as far as there is room.
fn draw_stack(frame: &mut Frame, area: Rect, lists: Vec<(&str, Vec<Line<'static>>)>) {
    let mut top = area.y;
    for (title, lines) in lists {
        let wanted = u16::try_from(lines.len()).unwrap_or(u16::MAX).saturating_add(1);
        let height = wanted.min(area.bottom().saturating_sub(top));
        let place = Rect { y: top, height, ..area };
        frame.render_widget(Paragraph::new(lines).block(titled(title)), place);
        top += height;
    }
}

fn groups(board: &Board, list: &str, name: &str, width: usize) -> Vec<Line<'static>> {
    let room = width.saturating_sub(26).max(8);
    let items = board.list(&format!("/cache/{list}/items"));
    let row = |item: &Value| {
        let rate = share(item.pointer("/hit_rate").and_then(Value::as_f64));
        format!("{}{:>9}{:>9}{rate:>8}", fitted(text(item, name), room), number(item, "hits"), number(item, "misses"))
    };
    table(format!("{:<room$}{:>9}{:>9}{:>8}", "", "hits", "misses", "rate"), items.iter().map(row))
}

fn keys(board: &Board, width: usize) -> Vec<Line<'static>> {
    let room = width.saturating_sub(28).max(8);
    let row = |item: &Value| {
        let bytes = item["bytes"].as_f64().map_or_else(|| "-".to_owned(), size);
        let name = if item["key"].is_string() { text(item, "key") } else { format!("({})", text(item, "pattern")) };
        format!("{}{:>9}{:>9}{bytes:>10}", fitted(name, room), number(item, "hits"), number(item, "misses"))
    };
    table(format!("{:<room$}{:>9}{:>9}{:>10}", "", "hits", "misses", "bytes"), board.keys().iter().map(row))
}

/// Nothing to show is said, so that it does not look like a fault.
fn table(head: String, rows: impl Iterator<Item = String>) -> Vec<Line<'static>> {
    let mut lines = vec![Line::from(head).dim()];
    lines.extend(rows.map(Line::from));
    if lines.len() == 1 {
        return vec![Line::from("none").dim()];
    }
    lines
}

fn alerts(board: &Board) -> Vec<Line<'static>> {
    let firing = board.list("/alerts/items").iter().filter(|item| item["state"] == "firing");
    let row = |item: &Value| {
        let severity = text(item, "severity");
        let line =
            format!("{severity}: {} since {}: {}", text(item, "name"), clock(item, "since"), text(item, "message"));
        Line::styled(line, colour(&severity))
    };
    let lines: Vec<Line> = firing.map(row).collect();
    if lines.is_empty() { vec![Line::from("none").dim()] } else { lines }
}

fn events(board: &Board) -> Vec<Line<'static>> {
    let row =
        |item: &Value| Line::from(format!("{} {}: {}", clock(item, "at"), text(item, "kind"), text(item, "message")));
    let lines: Vec<Line> = board.events().iter().map(row).collect();
    if lines.is_empty() { vec![Line::from("none").dim()] } else { lines }
}

// ---- words and numbers ----

fn text(item: &Value, field: &str) -> String {
    item[field].as_str().map_or_else(|| "?".to_owned(), clean)
}

fn number(item: &Value, field: &str) -> String {
    item[field].as_f64().map_or_else(|| "-".to_owned(), count)
}

/// Hours, minutes and seconds of an RFC 3339 time.
fn clock(item: &Value, field: &str) -> String {
    let time = text(item, field);
    time.split_once('T').map_or_else(|| time.clone(), |(_, clock)| clock.chars().take(8).collect())
}

/// Exactly `room` columns of ASCII; other text may be narrower or wider, and only moves its own numbers.
fn fitted(name: String, room: usize) -> String {
    if name.chars().count() < room {
        return format!("{name:<room$}");
    }
    let cut: String = name.chars().take(room.saturating_sub(2)).collect();
    format!("{cut}~ ")
}

fn share(of_one: Option<f64>) -> String {
    of_one.map_or_else(|| "-".to_owned(), |share| format!("{:.1} %", 100.0 * share))
}

/// 1234 as it is, 12345 as 12.3k.
fn count(n: f64) -> String {
    match n {
        n if n < 100.0 && n.fract() > 0.0 => format!("{n:.1}"),
        n if n < 10_000.0 => format!("{n:.0}"),
        n if n < 1e6 => format!("{:.1}k", n / 1e3),
        n if n < 1e9 => format!("{:.1}M", n / 1e6),
        n => format!("{:.1}G", n / 1e9),
    }
}

fn size(bytes: f64) -> String {
    match bytes {
        b if b < 1024.0 => format!("{b:.0} B"),
        b if b < 1024.0 * 1024.0 => format!("{:.1} KiB", b / 1024.0),
        b if b < 1024.0 * 1024.0 * 1024.0 => format!("{:.1} MiB", b / 1024.0 / 1024.0),
        b => format!("{:.1} GiB", b / 1024.0 / 1024.0 / 1024.0),
    }
}

/// The two largest units.
pub(in crate::cli) fn span(seconds: f64) -> String {
    let s = Duration::from_secs_f64(seconds.max(0.0)).as_secs();
    match s {
        0..60 => format!("{s} s"),
        60..3600 => format!("{} min {} s", s / 60, s % 60),
        3600..86_400 => format!("{} h {} min", s / 3600, s % 3600 / 60),
        _ => format!("{} d {} h", s / 86_400, s % 86_400 / 3600),
    }
}
