//! What upstream has cost and what hits have saved, in money: counts that the data path keeps anyway or adds up beside them,
//! times prices. Counts become money on the side port's thread, once a second and whenever somebody asks, at the prices of
//! that moment: another price changes no past, and a total never falls.
//!
//! A hit saves one request (of an MGET's hits the first, if all are hits), its reply's bytes, and its rule's
//! `cost_per_miss`. A key that is not answered here costs that same sum: the request, its reply's bytes, `cost_per_miss`.
//! Writes, other commands, what goes over clients' own connections, and what Nearside sends by itself (PTTL, PING, TOUCH)
//! are `_rest`: the commands and bytes that were measured on upstream's connections, less those of the rules.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::counters::Counter;
use super::history::Took;
use super::latency::MINUTE;
use super::metrics::Metrics;
use super::patterns::Row;
use super::reasons::Peer;

/// Minutes that are shown.
pub(crate) const TREND: usize = 60;

/// A projection from less would be one from the first requests of a cold cache.
pub(crate) const BASIS_MIN: usize = 5;

/// 730 hours: a year's twelfth.
pub(crate) const MONTH_MINUTES: f64 = 43_800.0;

/// What no rule and no family of keys has asked for.
pub(crate) const REST: &str = "_rest";

/// Sessions that have ended are swept out of the list when it has doubled, from here on.
const SWEEP_FROM: usize = 64;

/// A `cost_per_miss` in whole numbers, so that a counter holds it.
const BILLION: f64 = 1e9;

/// Of one session, or of what another worker answers for it: each has one writer.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) requests: Counter,
    pub(crate) bytes: Counter,
    /// Sum of `cost_per_miss`, in billionths.
    pub(crate) billionths: Counter,
}

impl Tally {
    pub(crate) fn add(&self, requests: u64, bytes: u64, billionths: u64) {
        self.requests.add(requests);
        self.bytes.add(bytes);
        self.billionths.add(billionths);
    }

    fn money(&self, prices: &Prices) -> f64 {
        let (requests, bytes) = (self.requests.get() as f64, self.bytes.get() as f64);
        requests * prices.per_request + bytes * prices.per_byte + self.billionths.get() as f64 / BILLION
    }
}

/// What one client's session saves and spends.
#[derive(Debug)]
pub(crate) struct Meter {
    id: u64,
    client: String,
    pub(crate) saved: Tally,
    pub(crate) spent: Tally,
    /// By the worker that has its socket.
    front: Option<Arc<Tally>>,
}

/// Counts of one arm, under its lock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ArmCounts {
    pub(crate) saved_requests: u64,
    pub(crate) saved_keys: u64,
    pub(crate) saved_bytes: u64,
    pub(crate) spent_requests: u64,
    pub(crate) spent_keys: u64,
    pub(crate) spent_bytes: u64,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Prices {
    pub(crate) currency: String,
    pub(crate) per_request: f64,
    pub(crate) per_byte: f64,
    /// `cost_per_miss` by the rule's place among the families; none: 0.
    pub(crate) per_miss: Vec<f64>,
}

impl Prices {
    pub(crate) fn of_miss(&self, index: usize) -> f64 {
        self.per_miss.get(index).copied().unwrap_or_default()
    }
}

pub(crate) fn billionths(price: f64) -> u64 {
    (price * BILLION).round() as u64
}

/// What has come together under one name.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Money {
    pub(crate) requests: u64,
    pub(crate) spent: f64,
    pub(crate) saved: f64,
}

impl Money {
    fn add(&mut self, other: Money) {
        self.requests += other.requests;
        self.spent += other.spent;
        self.saved += other.saved;
    }
}

#[derive(Default)]
pub(crate) struct Costs {
    /// Neither a byte nor a rule's miss has a price. Written by the side port's thread with the lock on `ledger`.
    weightless: AtomicBool,
    ledger: Mutex<Ledger>,
    meters: Mutex<Meters>,
}

#[derive(Default)]
struct Ledger {
    /// Before that, what is counted waits for its price.
    priced: bool,
    prices: Prices,
    /// By family, as of the last look.
    seen: Vec<Counts>,
    rows: Vec<Money>,
    seen_rest: (u64, u64),
    rest: Money,
    /// The minute of the first look.
    first: Option<u64>,
    /// The running minute last; minutes without a look are not in it.
    minutes: VecDeque<(u64, Money)>,
}

#[derive(Default)]
struct Meters {
    all: Vec<Weak<Meter>>,
    sweep_at: usize,
}

/// Of one family of keys, since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    /// Keys that were answered here, and of them those that saved no request of their own.
    pub(super) hits: u64,
    pub(super) riders: u64,
    pub(super) saved_bytes: u64,
    /// Keys that were not answered here, and the requests and bytes of replies that it took.
    pub(super) unserved: u64,
    pub(super) requests: u64,
    pub(super) bytes: u64,
}

impl Counts {
    fn of(metrics: &Metrics, index: usize, row: &Row) -> Counts {
        let cost = &row.cost;
        Counts {
            hits: metrics.hits_of(index, row),
            riders: metrics.riders_of(index, row),
            saved_bytes: metrics.saved_bytes_of(index, row),
            unserved: cost.unserved.get(),
            requests: cost.requests.get(),
            bytes: cost.bytes.get(),
        }
    }

    fn less(&self, old: &Counts) -> Counts {
        Counts {
            hits: self.hits.saturating_sub(old.hits),
            riders: self.riders.saturating_sub(old.riders),
            saved_bytes: self.saved_bytes.saturating_sub(old.saved_bytes),
            unserved: self.unserved.saturating_sub(old.unserved),
            requests: self.requests.saturating_sub(old.requests),
            bytes: self.bytes.saturating_sub(old.bytes),
        }
    }

    fn money(&self, prices: &Prices, per_miss: f64) -> Money {
        let whole = self.hits.saturating_sub(self.riders);
        let of = |requests: u64, bytes: u64, keys: u64| {
            requests as f64 * prices.per_request + bytes as f64 * prices.per_byte + keys as f64 * per_miss
        };
        Money {
            requests: whole + self.requests,
            spent: of(self.requests, self.bytes, self.unserved),
            saved: of(whole, self.saved_bytes, self.hits),
        }
    }
}

/// Everything at one moment.
#[derive(Debug)]
pub(crate) struct Snapshot {
    pub(crate) currency: String,
    pub(crate) total: Money,
    /// Per 1,000 commands of clients; none before the first.
    pub(crate) per_thousand: Option<(f64, f64)>,
    /// By rule or family where something was counted, `_rest` last.
    pub(crate) rules: Vec<(String, Money)>,
    pub(crate) arms: Vec<(String, String, Money)>,
    /// Of connected clients.
    pub(crate) sessions: Vec<(String, u64, Money)>,
    /// Oldest first, the running minute last.
    pub(crate) trend: Vec<Money>,
    pub(crate) projection: Option<Projection>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Projection {
    pub(crate) spent: f64,
    pub(crate) saved: f64,
    pub(crate) minutes: usize,
}

impl Costs {
    /// A session begins. `front`: what another worker counts for it.
    pub(crate) fn meter(&self, id: u64, client: &str, front: Option<Arc<Tally>>) -> Arc<Meter> {
        let (saved, spent) = Default::default();
        let meter = Arc::new(Meter { id, client: client.to_owned(), saved, spent, front });
        let mut meters = self.meters.lock();
        if meters.all.len() >= meters.sweep_at.max(SWEEP_FROM) {
            meters.all.retain(|meter| meter.strong_count() > 0);
            meters.sweep_at = 2 * meters.all.len();
        }
        meters.all.push(Arc::downgrade(&meter));
        meter
    }

    /// Whether the bytes that hits save, and what their rules say, are to be added up; asked once for each read of a socket.
    /// True until the prices are known. Others come rarely and on another thread: a hit that looked just before them is
    /// counted without its weight, as one that came just before them.
    pub(crate) fn weighs(&self) -> bool {
        !self.weightless.load(Ordering::Relaxed)
    }

    /// From now on it costs this; what was counted before it cost what it did.
    pub(crate) fn set_prices(&self, now: u64, metrics: &Metrics, prices: Prices) {
        let mut ledger = self.ledger.lock();
        ledger.accrue(now, metrics);
        metrics.patterns.set_costs(|index| billionths(prices.of_miss(index)));
        let weighs = prices.per_byte > 0.0 || prices.per_miss.iter().any(|price| *price > 0.0);
        self.weightless.store(!weighs, Ordering::Relaxed);
        ledger.prices = prices;
        ledger.priced = true;
    }

    /// Counts become money.
    pub(crate) fn accrue(&self, now: u64, metrics: &Metrics) {
        self.ledger.lock().accrue(now, metrics);
    }

    /// Spent and saved by name, for the scrape.
    pub(super) fn by_name(&self, now: u64, metrics: &Metrics) -> Vec<(String, Money)> {
        let mut ledger = self.ledger.lock();
        ledger.accrue(now, metrics);
        ledger.by_name(metrics)
    }

    /// All that was spent and saved.
    pub(super) fn total(&self, now: u64, metrics: &Metrics) -> Money {
        let mut total = Money::default();
        self.by_name(now, metrics).iter().for_each(|(_, money)| total.add(*money));
        total
    }

    /// What hits on the keys of one rule have saved.
    pub(super) fn saved_by(&self, now: u64, metrics: &Metrics, rule: &str) -> f64 {
        let all = self.by_name(now, metrics);
        all.iter().find(|(name, _)| name == rule).map_or(0.0, |(_, money)| money.saved)
    }

    pub(crate) fn snapshot(&self, now: u64, metrics: &Metrics) -> Snapshot {
        let mut ledger = self.ledger.lock();
        ledger.accrue(now, metrics);
        let mut rules = ledger.by_name(metrics);
        rules.retain(|(name, money)| money.requests > 0 || name == REST);
        let mut total = Money::default();
        rules.iter().for_each(|(_, money)| total.add(*money));
        let commands: u64 = metrics.durations_of(Took::All).count();
        let per = |money: f64| money / commands as f64 * 1000.0;
        Snapshot {
            currency: ledger.prices.currency.clone(),
            total,
            per_thousand: (commands > 0).then(|| (per(total.spent), per(total.saved))),
            rules,
            arms: arms(metrics, &ledger.prices),
            sessions: self.sessions(&ledger.prices),
            trend: ledger.trend(now),
            projection: ledger.projection(now),
        }
    }

    fn sessions(&self, prices: &Prices) -> Vec<(String, u64, Money)> {
        let meters: Vec<Arc<Meter>> = self.meters.lock().all.iter().filter_map(Weak::upgrade).collect();
        meters.iter().map(|meter| (meter.client.clone(), meter.id, meter.money(prices))).collect()
    }
}

impl Meter {
    fn money(&self, prices: &Prices) -> Money {
        let saved = || std::iter::once(&self.saved).chain(self.front.as_deref());
        Money {
            requests: saved().map(|tally| tally.requests.get()).sum::<u64>() + self.spent.requests.get(),
            spent: self.spent.money(prices),
            saved: saved().map(|tally| tally.money(prices)).sum(),
        }
    }
}

/// At the prices of now: arms are compared with each other, so they need the same.
fn arms(metrics: &Metrics, prices: &Prices) -> Vec<(String, String, Money)> {
    let mut out = Vec::new();
    for experiment in metrics.arms.shown().iter() {
        let per_miss = prices.of_miss(usize::from(metrics.patterns.of_rule(&experiment.rule).0));
        let control = experiment.control.map(|arm| ("control", arm));
        let cached = experiment.cached.iter().map(|(name, arm)| (name.as_str(), *arm));
        for (name, arm) in cached.chain(control) {
            let counts = metrics.arms.costs(arm);
            out.push((experiment.rule.clone(), name.to_owned(), counts.money(prices, per_miss)));
        }
    }
    out
}

impl ArmCounts {
    fn money(&self, prices: &Prices, per_miss: f64) -> Money {
        let of = |requests: u64, bytes: u64, keys: u64| {
            requests as f64 * prices.per_request + bytes as f64 * prices.per_byte + keys as f64 * per_miss
        };
        Money {
            requests: self.saved_requests + self.spent_requests,
            spent: of(self.spent_requests, self.spent_bytes, self.spent_keys),
            saved: of(self.saved_requests, self.saved_bytes, self.saved_keys),
        }
    }
}

impl Ledger {
    fn accrue(&mut self, now: u64, metrics: &Metrics) {
        if !self.priced {
            return;
        }
        let mut news = Money::default();
        let mut rows = (0, 0);
        for (i, _, row) in metrics.patterns.all() {
            if self.seen.len() <= i {
                self.seen.push(Counts::default());
                self.rows.push(Money::default());
            }
            let counts = Counts::of(metrics, i, row);
            let money = counts.less(&self.seen[i]).money(&self.prices, self.prices.of_miss(i));
            self.seen[i] = counts;
            self.rows[i].add(money);
            news.add(money);
            (rows.0, rows.1) = (rows.0 + counts.requests, rows.1 + counts.bytes);
        }
        let bytes = metrics.bytes_in.get(Peer::Upstream) + metrics.bytes_out.get(Peer::Upstream);
        // A reply may be counted for its rule a moment before its bytes are, so this never goes back.
        let requests = metrics.upstream_answers.get().saturating_sub(rows.0).max(self.seen_rest.0);
        let bytes = bytes.saturating_sub(rows.1).max(self.seen_rest.1);
        let (more, more_bytes) = (requests - self.seen_rest.0, bytes - self.seen_rest.1);
        self.seen_rest = (requests, bytes);
        let spent = more as f64 * self.prices.per_request + more_bytes as f64 * self.prices.per_byte;
        let rest = Money { requests: more, spent, saved: 0.0 };
        self.rest.add(rest);
        news.add(rest);
        self.running(now / MINUTE).add(news);
    }

    /// What the running minute has.
    fn running(&mut self, minute: u64) -> &mut Money {
        self.first.get_or_insert(minute);
        if self.minutes.back().is_none_or(|(last, _)| *last < minute) {
            if self.minutes.len() > TREND {
                self.minutes.pop_front();
            }
            self.minutes.push_back((minute, Money::default()));
        }
        let last = self.minutes.len() - 1;
        &mut self.minutes[last].1
    }

    fn of(&self, minute: u64) -> Money {
        let found = self.minutes.iter().find(|(number, _)| *number == minute);
        found.map_or_else(Money::default, |(_, money)| *money)
    }

    fn trend(&self, now: u64) -> Vec<Money> {
        let running = now / MINUTE;
        (0..TREND as u64)
            .rev()
            .map(|ago| running.checked_sub(ago).map_or_else(Money::default, |m| self.of(m)))
            .collect()
    }

    /// From the last complete minutes, up to an hour of them. The first one was not whole.
    fn projection(&self, now: u64) -> Option<Projection> {
        let running = now / MINUTE;
        let from = (self.first? + 1).max(running.saturating_sub(TREND as u64));
        let minutes = running.saturating_sub(from) as usize;
        if minutes < BASIS_MIN {
            return None;
        }
        let mut sum = Money::default();
        (from..running).for_each(|minute| sum.add(self.of(minute)));
        let monthly = |money: f64| money / minutes as f64 * MONTH_MINUTES;
        Some(Projection { spent: monthly(sum.spent), saved: monthly(sum.saved), minutes })
    }

    fn by_name(&self, metrics: &Metrics) -> Vec<(String, Money)> {
        let names = metrics.patterns.all().map(|(_, name, _)| name.to_owned());
        names.zip(self.rows.iter().copied()).chain([(REST.to_owned(), self.rest)]).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::metrics::Setup;
    use super::*;

    /// A request is 1, a byte a quarter, a miss of the rule `r` 10.
    fn priced() -> Metrics {
        let metrics =
            Metrics::with(&Setup { separators: ":", max_key_patterns: 10, hot_keys: 8, key_prefix: "", workers: 1 });
        let row = usize::from(metrics.patterns.of_rule("r").0);
        let mut per_miss = vec![0.0; row + 1];
        per_miss[row] = 10.0;
        let prices = Prices { currency: "EUR".into(), per_request: 1.0, per_byte: 0.25, per_miss };
        metrics.costs.set_prices(0, &metrics, prices);
        metrics
    }

    fn of(metrics: &Metrics, now: u64, name: &str) -> (u64, f64, f64) {
        let all = metrics.costs.snapshot(now, metrics).rules;
        all.iter().find(|(n, _)| n == name).map_or((0, 0.0, 0.0), |(_, m)| (m.requests, m.spent, m.saved))
    }

    #[test]
    fn a_hit_saves_what_a_miss_costs() {
        let metrics = priced();
        let r = metrics.patterns.of_rule("r");
        metrics.patterns.hit(r);
        assert_eq!(metrics.patterns.saved(r, 8), 10_000_000_000);
        assert_eq!(of(&metrics, 0, "r"), (1, 0.0, 1.0 + 2.0 + 10.0));
        metrics.patterns.unserved(r);
        metrics.patterns.fetched(r, 8);
        assert_eq!(of(&metrics, 0, "r"), (2, 13.0, 13.0));
        // Another worker's hit, and a key of an MGET that is no request of its own.
        metrics.shards[0].rows.hit(r);
        metrics.shards[0].rows.saved(r, 4);
        metrics.shards[0].rows.rider(r);
        assert_eq!(of(&metrics, 0, "r"), (2, 13.0, 13.0 + 1.0 + 10.0));
        metrics.patterns.hit(r);
        metrics.patterns.saved(r, 0);
        metrics.patterns.rider(r);
        assert_eq!(of(&metrics, 0, "r"), (2, 13.0, 24.0 + 10.0));
    }

    #[test]
    fn the_rest_is_what_was_measured_less_the_rules() {
        let metrics = priced();
        let r = metrics.patterns.of_rule("r");
        metrics.upstream_answers.add(5);
        metrics.bytes_in.add(Peer::Upstream, 100);
        metrics.bytes_out.add(Peer::Upstream, 20);
        metrics.patterns.fetched(r, 40);
        assert_eq!(of(&metrics, 0, REST), (4, 4.0 + 20.0, 0.0));
        let all = metrics.costs.snapshot(0, &metrics);
        assert_eq!(all.total, Money { requests: 5, spent: 5.0 + 30.0, saved: 0.0 });
    }

    #[test]
    fn another_price_changes_no_past() {
        let metrics = priced();
        let r = metrics.patterns.of_rule("r");
        metrics.patterns.fetched(r, 4);
        metrics.costs.set_prices(0, &metrics, Prices { per_request: 100.0, ..Prices::default() });
        assert_eq!(of(&metrics, 0, "r"), (1, 2.0, 0.0));
        metrics.patterns.fetched(r, 4);
        assert_eq!(of(&metrics, 0, "r"), (2, 102.0, 0.0));
        assert_eq!(metrics.patterns.saved(r, 0), 0);
    }

    #[test]
    fn a_hit_is_weighed_only_where_its_weight_has_a_price() {
        let metrics = Metrics::new(":", 10);
        let costs = &metrics.costs;
        assert!(costs.weighs(), "nobody has said what it costs");
        let says = |prices: Prices| {
            costs.set_prices(0, &metrics, prices);
            costs.weighs()
        };
        assert!(!says(Prices::default()));
        assert!(!says(Prices { per_request: 1.0, ..Prices::default() }), "requests are counted anyway");
        assert!(says(Prices { per_byte: 1.0, ..Prices::default() }));
        assert!(says(Prices { per_miss: vec![0.0, 2.0], ..Prices::default() }));
        assert!(!says(Prices::default()));
    }

    #[test]
    fn the_trend_ends_with_the_running_minute_and_the_projection_waits() {
        let metrics = priced();
        let r = metrics.patterns.of_rule("r");
        let start = 1000 * MINUTE;
        for minute in 0..100 {
            let now = start + minute * MINUTE;
            metrics.costs.accrue(now, &metrics);
            (0..=minute).for_each(|_| metrics.patterns.fetched(r, 0));
            let all = metrics.costs.snapshot(now, &metrics);
            assert_eq!(all.trend.len(), TREND);
            assert_eq!(all.trend[TREND - 1].spent, (minute + 1) as f64, "minute {minute}");
            assert_eq!(all.trend[0].spent, if minute < 59 { 0.0 } else { (minute - 58) as f64 });
            // The first minute is not whole, the running one neither.
            let complete = minute.saturating_sub(1).min(60);
            let basis = all.projection.map(|projection| projection.minutes as u64);
            assert_eq!(basis, (complete >= 5).then_some(complete), "minute {minute}");
        }
        let last = metrics.costs.snapshot(start + 99 * MINUTE, &metrics).projection.expect("an hour");
        // Minutes 39 to 98 cost 40 to 99: 69.5 on the average.
        assert!((last.spent - 69.5 * MONTH_MINUTES).abs() < 1e-6, "{last:?}");
    }

    #[test]
    fn a_session_has_its_own_and_is_gone_with_its_client() {
        let metrics = priced();
        let front = Arc::new(Tally::default());
        let meter = metrics.costs.meter(7, "127.0.0.1:5", Some(front.clone()));
        meter.saved.add(1, 4, billionths(10.0));
        front.add(2, 0, 0);
        meter.spent.add(1, 4, 0);
        let all = metrics.costs.snapshot(0, &metrics).sessions;
        assert_eq!(all, [("127.0.0.1:5".to_owned(), 7, Money { requests: 4, spent: 2.0, saved: 14.0 })]);
        drop(meter);
        assert!(metrics.costs.snapshot(0, &metrics).sessions.is_empty());
        (0..10_000).for_each(|id| drop(metrics.costs.meter(id, "x", None)));
        assert!(metrics.costs.meters.lock().all.len() <= SWEEP_FROM);
    }
}
