//! What the counters were over time: a ring of a second's steps for a quarter of an hour and one of a minute's for a day, and
//! the durations of the last hour by minutes. `sample` runs once a second on the side port's thread; the data thread knows
//! nothing of it. A step that nobody saw (the process stood still) is NaN, which is `null` in JSON.
//!
//! Memory: 150 KiB of seconds and 240 KiB of minutes, 340 KiB for twenty rules after a day and 140 KiB for their seconds, and for the windows of the
//! durations 12.5 KiB a minute and kind at the very most (3 MiB), 2 KiB under an even load.

use std::collections::VecDeque;

use parking_lot::Mutex;

use super::clock;
use super::durations::{Delta, Durations};
use super::reasons::{Decision, Peer};
use super::{View, process};

const SECOND: u64 = 1_000_000_000;

/// The series that are differences of counters.
const COUNTED: [&str; 11] = [
    "requests",
    "hits",
    "misses",
    "errors",
    "upstream_requests",
    "bytes_client_out",
    "bytes_upstream_in",
    "allowed",
    "denied",
    "spent",
    "saved",
];

/// The others, as they are at the end of the step or over it.
const MEASURED: [&str; 10] = [
    "clients",
    "entries",
    "l1_bytes",
    "rss_bytes",
    "queue_depth",
    "cpu_share",
    "p50_hit_ms",
    "p99_hit_ms",
    "p50_upstream_ms",
    "p99_upstream_ms",
];

const SERIES: usize = COUNTED.len() + MEASURED.len();

/// A quarter of an hour of seconds, a day of minutes.
const SECONDS: usize = 900;
const MINUTES: usize = 1440;

/// Rules whose own counts are kept: those of the configuration's first.
pub(crate) const RULES_MAX: usize = 20;

/// The longest window of durations, in minutes.
const WINDOW_MAX: usize = 60;

/// A rate is over so many seconds.
const RATE_SECONDS: usize = 10;

type Row = [f64; SERIES];

/// Which of the two rings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Range {
    Quarter,
    Day,
}

impl Range {
    pub(crate) const WORDS: [&str; 2] = ["15m", "24h"];

    pub(crate) fn parse(word: &str) -> Option<Range> {
        match word {
            "15m" => Some(Range::Quarter),
            "24h" => Some(Range::Day),
            _ => None,
        }
    }

    pub(crate) fn as_str(self) -> &'static str {
        Range::WORDS[self as usize]
    }

    fn step(self) -> u64 {
        match self {
            Range::Quarter => SECOND,
            Range::Day => 60 * SECOND,
        }
    }

    fn steps(self) -> usize {
        match self {
            Range::Quarter => SECONDS,
            Range::Day => MINUTES,
        }
    }
}

/// Durations by what became of the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Took {
    All,
    Hit,
    Miss,
    Upstream,
}

impl Took {
    pub(crate) const ALL: [Took; 4] = [Took::All, Took::Hit, Took::Miss, Took::Upstream];
}

/// A window of durations, and what was counted in it.
#[derive(Default)]
pub(crate) struct Window {
    pub(crate) requests: u64,
    pub(crate) hits: u64,
    pub(crate) misses: u64,
    pub(crate) errors: u64,
    /// By `Took`.
    pub(crate) durations: [Durations; 4],
}

/// One ring as it is to be shown, oldest first.
pub(crate) struct Shown {
    pub(crate) range: Range,
    pub(crate) step_ms: u64,
    /// How long ago its last step ended, in nanoseconds; none before the first.
    pub(crate) ended: Option<u64>,
    pub(crate) length: usize,
    pub(crate) series: Vec<(&'static str, Vec<f64>)>,
    pub(crate) rules: Vec<RuleShown>,
}

pub(crate) struct RuleShown {
    pub(crate) name: String,
    pub(crate) hits: Vec<f64>,
    pub(crate) misses: Vec<f64>,
    /// Not by seconds: it takes a look at all families.
    pub(crate) saved: Option<Vec<f64>>,
}

#[derive(Default)]
pub(crate) struct History(Mutex<Option<Rings>>);

struct Rings {
    fine: Track,
    coarse: Track,
    windows: Windows,
    rules: Vec<RuleTrack>,
}

/// One ring.
struct Track {
    range: Range,
    rows: VecDeque<Row>,
    /// The step that is running, counted like the clock.
    step: u64,
    /// What was counted up to the end of the last step that was seen.
    before: Totals,
    hit: Durations,
    upstream: Durations,
}

/// Counters of a moment.
#[derive(Clone)]
struct Totals {
    counted: [f64; COUNTED.len()],
    cpu: u64,
    at: u64,
}

/// All that is read at once.
struct Reading {
    totals: Totals,
    gauges: [f64; 5],
    durations: [Durations; 4],
}

/// The last hour's durations.
struct Windows {
    minutes: VecDeque<Minute>,
    before: [Durations; 4],
    totals: Totals,
}

struct Minute {
    counted: [u64; 4],
    durations: [Delta; 4],
}

struct RuleTrack {
    name: String,
    /// Hits and misses.
    fine: RuleRing<2>,
    /// The same, and what was saved.
    coarse: RuleRing<3>,
}

struct RuleRing<const N: usize> {
    rows: VecDeque<[f32; N]>,
    before: [f64; N],
}

impl History {
    /// Once a second, by the side port's thread. `rules`: the names of those in force, in their order.
    pub(crate) fn sample(&self, view: &View, rules: &[&str]) {
        let now = clock::now();
        let reading = Reading::of(view, now);
        let mut rings = self.0.lock();
        match rings.as_mut() {
            Some(rings) => rings.take(view, reading, now, rules),
            None => *rings = Some(Rings::begin(view, reading, now, rules)),
        }
    }

    pub(crate) fn shown(&self, range: Range) -> Shown {
        let rings = self.0.lock();
        let Some(rings) = rings.as_ref() else {
            let series = names().map(|name| (name, Vec::new())).collect();
            let step_ms = range.step() / 1_000_000;
            return Shown { range, step_ms, ended: None, length: 0, series, rules: Vec::new() };
        };
        let track = match range {
            Range::Quarter => &rings.fine,
            Range::Day => &rings.coarse,
        };
        let series = names().enumerate().map(|(i, name)| (name, track.rows.iter().map(|row| row[i]).collect()));
        let rules = rings.rules.iter().map(|rule| rule.shown(range)).collect();
        Shown {
            range,
            step_ms: range.step() / 1_000_000,
            ended: Some(clock::now().saturating_sub(track.step * range.step())),
            length: track.rows.len(),
            series: series.collect(),
            rules,
        }
    }

    /// The newest second of each series; of none is anything known before the first is over.
    pub(crate) fn last(&self) -> Vec<(&'static str, f64)> {
        let rings = self.0.lock();
        let row = rings.as_ref().and_then(|rings| rings.fine.rows.back());
        let value = |i: usize| row.map_or(f64::NAN, |row| row[i]);
        names().enumerate().map(|(i, name)| (name, value(i))).collect()
    }

    /// How many a second there were of a counted series in the last ten seconds; none before the first is over.
    pub(crate) fn rate(&self, series: &str) -> Option<f64> {
        let index = names().position(|name| name == series)?;
        let rings = self.0.lock();
        let rows = rings.as_ref()?.fine.rows.iter().rev().take(RATE_SECONDS);
        let seen: Vec<f64> = rows.map(|row| row[index]).filter(|value| !value.is_nan()).collect();
        (!seen.is_empty()).then(|| seen.iter().sum::<f64>() / seen.len() as f64)
    }

    /// All durations since the start, and what has come in the running minute and so many complete ones before it, for each
    /// number of them: read once, so that they are of one moment.
    pub(crate) fn windows<const N: usize>(&self, view: &View, minutes: [usize; N]) -> ([Durations; 4], [Window; N]) {
        let reading = Reading::of(view, clock::now());
        let rings = self.0.lock();
        let over = |minutes| rings.as_ref().map(|rings| rings.windows.over(&reading, minutes)).unwrap_or_default();
        let windows = minutes.map(over);
        (reading.durations, windows)
    }
}

fn names() -> impl Iterator<Item = &'static str> {
    COUNTED.into_iter().chain(MEASURED)
}

impl Rings {
    fn begin(view: &View, reading: Reading, now: u64, rules: &[&str]) -> Rings {
        let track = |range| Track::new(range, now, &reading);
        let (fine, coarse) = (track(Range::Quarter), track(Range::Day));
        let totals = reading.totals.clone();
        let windows = Windows { minutes: VecDeque::new(), before: reading.durations, totals };
        let mut rings = Rings { fine, coarse, windows, rules: Vec::new() };
        rings.adopt(view, rules);
        rings
    }

    fn take(&mut self, view: &View, reading: Reading, now: u64, rules: &[&str]) {
        let (seconds, minutes) = (self.fine.take(&reading, now), self.coarse.take(&reading, now));
        for rule in &mut self.rules {
            if seconds > 0 {
                rule.fine.take(rule_counts(view, &rule.name), seconds, SECONDS);
            }
            if minutes > 0 {
                rule.coarse.take(rule_money(view, &rule.name), minutes, MINUTES);
            }
        }
        self.adopt(view, rules);
        if minutes > 0 {
            self.windows.take(reading, minutes);
        }
    }

    /// Rules that are gone are forgotten; new ones begin, with the steps before them unknown.
    fn adopt(&mut self, view: &View, rules: &[&str]) {
        let names = &rules[..rules.len().min(RULES_MAX)];
        self.rules.retain(|rule| names.contains(&rule.name.as_str()));
        let (seconds, minutes) = (self.fine.rows.len(), self.coarse.rows.len());
        for name in names {
            if !self.rules.iter().any(|rule| rule.name == *name) {
                self.rules.push(RuleTrack {
                    name: (*name).to_owned(),
                    fine: RuleRing::new(rule_counts(view, name), seconds),
                    coarse: RuleRing::new(rule_money(view, name), minutes),
                });
            }
        }
    }
}

impl Track {
    fn new(range: Range, now: u64, reading: &Reading) -> Track {
        Track {
            range,
            rows: VecDeque::with_capacity(range.steps()),
            step: now / range.step(),
            before: reading.totals.clone(),
            hit: reading.durations[Took::Hit as usize].clone(),
            upstream: reading.durations[Took::Upstream as usize].clone(),
        }
    }

    /// How many steps are over since the last time. What was counted over several is shown as its mean in the last one: the
    /// others were not seen.
    fn take(&mut self, reading: &Reading, now: u64) -> usize {
        let step = now / self.range.step();
        let steps = step.saturating_sub(self.step);
        if steps == 0 {
            return 0;
        }
        self.step = step;
        let steps = usize::try_from(steps).unwrap_or(usize::MAX);
        for _ in 1..steps.min(self.range.steps() + 1) {
            self.push([f64::NAN; SERIES]);
        }
        let row = self.row(reading, steps as f64);
        self.push(row);
        self.before = reading.totals.clone();
        self.hit.clone_from(&reading.durations[Took::Hit as usize]);
        self.upstream.clone_from(&reading.durations[Took::Upstream as usize]);
        steps
    }

    fn row(&self, reading: &Reading, steps: f64) -> Row {
        let (now, then) = (&reading.totals, &self.before);
        let counted = now.counted.iter().zip(then.counted).map(|(now, then)| (now - then) / steps);
        let passed = now.at.saturating_sub(then.at);
        let cpu = if passed == 0 { f64::NAN } else { now.cpu.saturating_sub(then.cpu) as f64 / passed as f64 };
        let hit = reading.durations[Took::Hit as usize].since(&self.hit);
        let upstream = reading.durations[Took::Upstream as usize].since(&self.upstream);
        let quantiles = [&hit, &upstream].into_iter().flat_map(|took| [0.5, 0.99].map(|q| took.quantile_ms(q)));
        let quantiles = quantiles.map(|ms| ms.unwrap_or(f64::NAN));
        let mut row = [f64::NAN; SERIES];
        let values = counted.chain(reading.gauges).chain([cpu]).chain(quantiles);
        row.iter_mut().zip(values).for_each(|(place, value)| *place = value);
        row
    }

    fn push(&mut self, row: Row) {
        push(&mut self.rows, row, self.range.steps());
    }
}

fn push<T>(ring: &mut VecDeque<T>, item: T, max: usize) {
    if ring.len() == max {
        ring.pop_front();
    }
    ring.push_back(item);
}

impl Reading {
    fn of(view: &View, now: u64) -> Reading {
        let metrics = &view.metrics;
        let decided = |decision| metrics.decided_of_all(decision) as f64;
        let costs = metrics.costs.total(now, metrics);
        let counted = [
            metrics.operations().total as f64,
            metrics.hits() as f64,
            metrics.misses() as f64,
            metrics.failed.get() as f64,
            metrics.upstream.count() as f64,
            metrics.bytes_of_clients().1 as f64,
            metrics.bytes_in.get(Peer::Upstream) as f64,
            decided(Decision::Allowed),
            decided(Decision::Denied),
            costs.spent,
            costs.saved,
        ];
        let gauges = [
            metrics.clients.get() as f64,
            metrics.entries.get() as f64,
            metrics.bytes.get() as f64,
            process::resident_bytes() as f64,
            metrics.queue.depth.get() as f64,
        ];
        let totals = Totals { counted, cpu: clock::cpu(), at: now };
        let durations = Took::ALL.map(|took| metrics.durations_of(took));
        Reading { totals, gauges, durations }
    }
}

impl Windows {
    fn take(&mut self, reading: Reading, steps: usize) {
        for _ in 1..steps.min(WINDOW_MAX + 1) {
            let nothing = Durations::default();
            let durations = std::array::from_fn(|_| nothing.since(&nothing));
            push(&mut self.minutes, Minute { counted: [0; 4], durations }, WINDOW_MAX);
        }
        let durations = std::array::from_fn(|i| reading.durations[i].since(&self.before[i]));
        let minute = Minute { counted: reading.totals.since(&self.totals), durations };
        push(&mut self.minutes, minute, WINDOW_MAX);
        self.before = reading.durations;
        self.totals = reading.totals;
    }

    fn over(&self, now: &Reading, minutes: usize) -> Window {
        let mut window = Window::default();
        let mut counted = now.totals.since(&self.totals);
        for (i, all) in window.durations.iter_mut().enumerate() {
            all.absorb(&now.durations[i].since(&self.before[i]));
        }
        for minute in self.minutes.iter().rev().take(minutes) {
            counted.iter_mut().zip(minute.counted).for_each(|(sum, n)| *sum += n);
            window.durations.iter_mut().zip(&minute.durations).for_each(|(all, delta)| all.absorb(delta));
        }
        [window.requests, window.hits, window.misses, window.errors] = counted;
        window
    }
}

impl Totals {
    /// Requests, hits, misses and errors since then: the first four.
    fn since(&self, then: &Totals) -> [u64; 4] {
        std::array::from_fn(|i| (self.counted[i] - then.counted[i]) as u64)
    }
}

/// Hits and misses.
fn rule_counts(view: &View, name: &str) -> [f64; 2] {
    let counts = view.metrics.counts_of(Some(view.metrics.patterns.named(name)));
    [counts.hits as f64, counts.misses as f64]
}

/// The same, and what was saved.
fn rule_money(view: &View, name: &str) -> [f64; 3] {
    let [hits, misses] = rule_counts(view, name);
    [hits, misses, view.metrics.costs.saved_by(clock::now(), &view.metrics, name)]
}

impl RuleTrack {
    fn shown(&self, range: Range) -> RuleShown {
        let (hits, misses, saved) = match range {
            Range::Quarter => (self.fine.series(0), self.fine.series(1), None),
            Range::Day => (self.coarse.series(0), self.coarse.series(1), Some(self.coarse.series(2))),
        };
        RuleShown { name: self.name.clone(), hits, misses, saved }
    }
}

impl<const N: usize> RuleRing<N> {
    /// One that begins behind so many steps, of which nothing is known.
    fn new(before: [f64; N], steps: usize) -> RuleRing<N> {
        RuleRing { rows: std::iter::repeat_n([f32::NAN; N], steps).collect(), before }
    }

    fn take(&mut self, now: [f64; N], steps: usize, max: usize) {
        for _ in 1..steps.min(max + 1) {
            push(&mut self.rows, [f32::NAN; N], max);
        }
        let means = std::array::from_fn(|i| ((now[i] - self.before[i]).max(0.0) / steps as f64) as f32);
        push(&mut self.rows, means, max);
        self.before = now;
    }

    fn series(&self, i: usize) -> Vec<f64> {
        self.rows.iter().map(|row| f64::from(row[i])).collect()
    }
}

#[cfg(test)]
mod tests;
