//! Looks at everything once a second on the side port's thread: gathers the facts, judges health (`health`) and alerts
//! (`alerts`), and says in the log and in the events what was raised and what is over. Whoever asks for health in between
//! gets a fresh look. Holds a ring of the last minute's counts, so that what is judged is of now and not since the start.
//! The data path knows nothing of it.

use std::collections::VecDeque;
use std::time::{SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;

use super::alerts::{Alert, Alerts, Turn};
use super::durations::{Delta, Durations};
use super::health::{self, Check, Facts, Firing, Limits, Minute, Upstream};
use super::history::Took;
use super::reasons::{AlertName, CheckName, Decision, Evict, Health, Replayed};
use super::{View, clock, process, stamp};

const SECOND: u64 = 1_000_000_000;

/// How far back one looks.
const WINDOW: u64 = 60 * SECOND;

/// One a second, or a little less where a timer is early: a window has 67 of them at most.
const APART: u64 = SECOND * 9 / 10;
const SAMPLES_MAX: usize = 70;

/// Of the samples, those that the share of the CPU is taken from.
const CPU_WINDOW: u64 = 10 * SECOND;

#[derive(Default)]
pub(crate) struct Vitals(Mutex<State>);

struct State {
    limits: Limits,
    /// Oldest first.
    ring: VecDeque<Sample>,
    /// All commands up to the newest of them.
    durations: Durations,
    alerts: Alerts,
    /// Since when each check says what it says, and the whole; `clock::now`.
    since: [(Health, u64); CheckName::COUNT],
    overall: (Health, u64),
}

impl Default for State {
    fn default() -> State {
        let from = (Health::Healthy, clock::now());
        let since = [from; CheckName::COUNT];
        let (limits, ring, durations, alerts) = Default::default();
        State { limits, ring, durations, alerts, since, overall: from }
    }
}

/// What was counted up to a moment.
struct Sample {
    at: u64,
    cpu: u64,
    /// The commands since the sample before it, by how long they took.
    came: Delta,
    errors: u64,
    hits: u64,
    misses: u64,
    denied: u64,
    evicted: u64,
    queue_depth: u64,
    refused: u64,
}

/// Health as it is now, with its checks.
pub(crate) struct Report {
    pub(crate) status: Health,
    /// Since when, in nanoseconds ago; the same of each check.
    pub(crate) for_nanos: u64,
    pub(crate) rss: u64,
    /// Of one core, over the last 10 s; none in the first second.
    pub(crate) cpu_share: Option<f64>,
    pub(crate) checks: Vec<(Check, u64)>,
}

impl Vitals {
    /// What is too much from now on.
    pub(crate) fn set_limits(&self, limits: Limits) {
        self.0.lock().limits = limits;
    }

    /// Once a second, and whenever somebody asks.
    pub(crate) fn look(&self, view: &View) -> Report {
        let now = clock::now();
        let mut state = self.0.lock();
        let sample = Sample::of(view, now, &state.durations);
        let minute = state.minute(&sample);
        let cpu_share = state.cpu_share(&sample);
        state.keep(sample);
        let facts = facts(view, minute, &state.limits);
        let limits = state.limits;
        let turns = state.alerts.step(&facts, &limits, now, stamp::unix_ms());
        turns.iter().for_each(|turn| tell(view, turn));
        let checks = health::checks(&facts, &limits, state.alerts.active());
        let status = health::worst(&checks);
        let for_nanos = lasts(&mut state.overall, status, now);
        let since = &mut state.since;
        let checks = checks.into_iter().zip(since).map(|(check, since)| {
            let lasted = lasts(since, check.status, now);
            (check, lasted)
        });
        Report { status, for_nanos, rss: facts.rss, cpu_share, checks: checks.collect() }
    }

    /// The last alerts, newest first, how many there have been, and how many fire now.
    pub(crate) fn alerts(&self) -> (Vec<Alert>, u64, Firing) {
        let state = self.0.lock();
        let (recent, total) = state.alerts.recent();
        (recent, total, state.alerts.active())
    }

    /// By kind: whether it fires, and how often it was raised.
    pub(super) fn by_name(&self) -> impl Iterator<Item = (&'static str, bool, u64)> {
        let state = self.0.lock();
        let one = |name: &AlertName| (name.as_str(), state.alerts.is_active(*name), state.alerts.total(*name));
        AlertName::ALL.iter().map(one).collect::<Vec<_>>().into_iter()
    }

    /// As of the last look.
    pub(super) fn health(&self) -> Health {
        self.0.lock().overall.0
    }
}

impl State {
    fn keep(&mut self, sample: Sample) {
        let newest = self.ring.back().map(|newest| newest.at);
        // Looks in between leave no sample: the ring would no longer hold a minute.
        if newest.is_some_and(|newest| sample.at.saturating_sub(newest) < APART) {
            return;
        }
        while self.ring.len() >= SAMPLES_MAX
            || self.ring.front().is_some_and(|oldest| sample.at.saturating_sub(oldest.at) > WINDOW)
        {
            self.ring.pop_front();
        }
        self.durations.absorb(&sample.came);
        self.ring.push_back(sample);
    }

    fn minute(&self, now: &Sample) -> Minute {
        let Some(at) = self.ring.iter().position(|sample| now.at.saturating_sub(sample.at) <= WINDOW) else {
            return Minute::default();
        };
        let mut durations = Durations::default();
        self.ring.range(at + 1..).chain([now]).for_each(|sample| durations.absorb(&sample.came));
        now.since(&self.ring[at], &durations)
    }

    fn cpu_share(&self, now: &Sample) -> Option<f64> {
        let from = self.ring.iter().find(|sample| now.at.saturating_sub(sample.at) <= CPU_WINDOW)?;
        health::share(now.cpu.saturating_sub(from.cpu), now.at.saturating_sub(from.at))
    }
}

impl Sample {
    fn of(view: &View, at: u64, before: &Durations) -> Sample {
        let metrics = &view.metrics;
        Sample {
            at,
            cpu: clock::cpu(),
            came: metrics.durations_of(Took::All).since(before),
            errors: metrics.errors_answered(),
            hits: metrics.hits(),
            misses: metrics.misses(),
            denied: metrics.decided_of_all(Decision::Denied),
            evicted: metrics.evictions.get(Evict::Size),
            queue_depth: metrics.queue.depth.get(),
            refused: metrics.queue.replayed.get(Replayed::Failed),
        }
    }

    fn since(&self, from: &Sample, durations: &Durations) -> Minute {
        Minute {
            requests: durations.count(),
            errors: self.errors.saturating_sub(from.errors),
            hits: self.hits.saturating_sub(from.hits),
            misses: self.misses.saturating_sub(from.misses),
            denied: self.denied.saturating_sub(from.denied),
            evicted: self.evicted.saturating_sub(from.evicted),
            p99: durations.quantile_ms(0.99).map(|ms| (ms * 1e6) as u64),
            queued: self.queue_depth as i64 - from.queue_depth as i64,
            refused: self.refused.saturating_sub(from.refused),
        }
    }
}

fn facts(view: &View, minute: Minute, limits: &Limits) -> Facts {
    let (metrics, status) = (&view.metrics, &view.status);
    let lanes = status.lanes();
    let upstream = (status.backend() == "upstream").then(|| match status.upstream_up() {
        true => Upstream::Up,
        false => Upstream::Down(Some(status.upstream_error()).filter(|why| !why.is_empty()).unwrap_or_else(not_yet)),
    });
    let fallen = lanes.iter().filter(|lane| lane.is_weak() && Some(lane.mode()) != limits.chosen);
    Facts {
        minute,
        phase: status.phase(),
        mode: status.mode(),
        entries: metrics.entries.get(),
        upstream,
        coherence: status.coherence(),
        coherence_why: status.coherence_why(),
        lanes: lanes.len(),
        lanes_live: lanes.iter().filter(|lane| lane.live()).count(),
        lanes_weak: lanes.iter().filter(|lane| lane.is_weak()).count(),
        lanes_fallen: fallen.count(),
        policy: metrics.policy.mode(),
        config_error: status.config_error(),
        rss: process::resident_bytes(),
        queue_depth: metrics.queue.depth.get(),
        queue_age: metrics.queue.age(),
    }
}

fn not_yet() -> String {
    "not connected yet".to_owned()
}

/// For how long it has been so, and from when on where it is new.
fn lasts(known: &mut (Health, u64), status: Health, now: u64) -> u64 {
    if known.0 != status {
        *known = (status, now);
    }
    now.saturating_sub(known.1)
}

/// In the log, louder than other events, and among them.
fn tell(view: &View, turn: &Turn) {
    let (alert, message) = match turn {
        Turn::Raised(alert) => {
            let name = alert.name.as_str();
            tracing::warn!("alert {name}: {}", alert.message);
            (alert, format!("alert {name} raised: {}", alert.message))
        }
        Turn::Resolved(alert) => {
            let name = alert.name.as_str();
            tracing::info!("alert {name} is over");
            (alert, format!("alert {name} is over"))
        }
    };
    view.status.events.turned(alert.clone(), &message);
}

/// For how long the process has run, in milliseconds.
pub(crate) fn uptime_ms(view: &View) -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64());
    ((now - view.metrics.started_at).max(0.0) * 1e3) as u64
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::metrics::Metrics;
    use super::super::reasons::{Mode, Timed};
    use super::super::status::Status;
    use super::*;

    fn view() -> View {
        let status = Arc::new(Status::new("upstream", Mode::Serve));
        status.set_started();
        status.set_upstream_up();
        View::new(Arc::new(Metrics::new(":", 10)), status)
    }

    fn value(report: &Report, name: CheckName) -> Option<f64> {
        report.checks[name as usize].0.value
    }

    #[test]
    fn what_is_judged_is_of_the_last_minute() {
        let view = view();
        let vitals = &view.status.vitals;
        vitals.set_limits(Limits { memory: None, ..health::tests::limits() });
        let id = view.metrics.patterns.id(b"a:1");
        for second in 0..200 {
            clock::fake::set(1000 * SECOND + second * SECOND);
            // A minute of misses, then hits.
            let count = |hit: bool| {
                if hit {
                    view.metrics.patterns.hit(id)
                } else {
                    view.metrics.patterns.miss(id)
                };
            };
            (0..10).for_each(|_| count(second >= 60));
            view.metrics.request_n(Timed::ReadMiss, 50_000, 10);
            let report = vitals.look(&view);
            let rate = value(&report, CheckName::HitRate);
            match second {
                0 => assert_eq!(rate, None),
                1..60 => assert_eq!(rate, Some(0.0), "{second}"),
                119 => assert_eq!(rate, Some(1.0 - 0.0), "{second}"),
                _ => assert!(rate.is_some(), "{second}"),
            }
        }
        let (alerts, total, _) = vitals.alerts();
        assert_eq!(total, 1, "{alerts:?}");
        assert_eq!(alerts[0].name, AlertName::HitRate);
        assert!(alerts[0].resolved.is_some());
        let (events, _) = view.status.events.recent(10);
        let told: Vec<&str> = events.iter().map(|event| event.message.as_str()).collect();
        assert!(told[0] == "alert hit_rate is over" && told[1].starts_with("alert hit_rate raised: "), "{told:?}");
    }

    #[test]
    fn a_check_says_since_when() {
        let view = view();
        let vitals = &view.status.vitals;
        let upstream = |report: &Report| {
            let (check, lasted) = &report.checks[CheckName::Upstream as usize];
            (check.status, lasted / SECOND)
        };
        for (second, up, expected) in [
            (0, true, (Health::Healthy, 0)),
            (5, true, (Health::Healthy, 5)),
            (6, false, (Health::Critical, 0)),
            (9, false, (Health::Critical, 3)),
            (10, true, (Health::Healthy, 0)),
        ] {
            clock::fake::set(1000 * SECOND + second * SECOND);
            if second == 0 {
                // The view was made by the real clock.
                vitals.0.lock().since = [(Health::Healthy, 1000 * SECOND); CheckName::COUNT];
            }
            if up {
                view.status.set_upstream_up()
            } else {
                view.status.set_upstream_down("gone")
            };
            assert_eq!(upstream(&vitals.look(&view)), expected, "{second}");
        }
    }

    #[test]
    fn looks_in_between_leave_the_ring_a_minute_long() {
        let view = view();
        let vitals = &view.status.vitals;
        for tenth in 0..2000 {
            clock::fake::set(1000 * SECOND + tenth * SECOND / 10);
            vitals.look(&view);
        }
        let ring = &vitals.0.lock().ring;
        assert!((55..=SAMPLES_MAX).contains(&ring.len()), "{}", ring.len());
        let span = ring.back().expect("samples").at - ring.front().expect("samples").at;
        assert!((WINDOW - 2 * SECOND..=WINDOW).contains(&span), "{span}");
    }
}
