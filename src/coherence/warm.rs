//! What is loaded at start (`warm`): listed keys, those of the last run (`last_run`), and what SCAN finds for the listed globs, each by the GET and PTTL of a
//! miss, on the lane of the sidecar's own credential, under the rules. Runs once, from the lane's first connection on,
//! beside everything else: at a rate, with few under way, and what is above a bound is left out. It ends early when the
//! process drains and when the cache is nearly full, where each further key would push out one that was just loaded.
//!
//! What it does not do: it does not begin again when the lane is lost, which voids what was
//! loaded before; the rest is loaded on the next connection.

use std::cell::Cell;
use std::collections::HashSet;
use std::hash::BuildHasher;
use std::rc::Rc;
use std::time::Duration;

use foldhash::fast::RandomState;
use tokio::sync::Notify;
use tokio::time::sleep;

use super::again::get;
use super::lane::{Availability, Lane};
use super::wait::{End, Fetch, FetchRead, Origin, Refused};
use crate::cache;
use crate::observe::clock;
use crate::observe::reasons::{Method, Warmed};
use crate::resp::reply;
use crate::upstream::handshake::error_text;
use crate::worker::Ctx;

/// Readings under way at once: enough for 64,000 a second at a round trip of 1 ms, and what a slow upstream is asked for.
const UNDER_WAY_MAX: usize = 64;

/// Names that one SCAN looks at; upstream is busy with it for some 50 us.
const SCAN_COUNT: &[u8] = b"100";

/// Longer names are not loaded.
const KEY_MAX: usize = 16 * 1024;

/// The timer's own grain: shorter waits are made together.
const GRAIN: u64 = 2_000_000;

/// Between two looks at a lane that is not there yet.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Between two lines of progress in the log.
const PROGRESS_EVERY: u64 = 5_000_000_000;

const SECOND: u64 = 1_000_000_000;

/// What has become of the keys so far.
#[derive(Default)]
pub(super) struct Loading {
    under_way: Cell<usize>,
    counts: [Cell<u64>; Warmed::COUNT],
    landed: Notify,
}

impl Loading {
    fn count(&self, ctx: &Ctx, what: Warmed) {
        let cell = &self.counts[what as usize];
        cell.set(cell.get() + 1);
        ctx.metrics.warmed.inc(what);
    }

    /// One of the readings has come to its end.
    pub(super) fn ended(&self, ctx: &Ctx, end: End) {
        let what = match end {
            End::Stored { absent: false } => Warmed::Stored,
            End::Stored { absent: true } => Warmed::Absent,
            End::Refused(Refused::WrongType) => Warmed::WrongType,
            End::Refused(Refused::Large) => Warmed::TooLarge,
            End::Refused(Refused::Denied | Refused::Error) | End::Discarded(_) => Warmed::Discarded,
            End::Lost => Warmed::Lost,
        };
        self.count(ctx, what);
        self.under_way.set(self.under_way.get() - 1);
        self.landed.notify_one();
    }

    fn of(&self, what: Warmed) -> u64 {
        self.counts[what as usize].get()
    }

    /// Whether they are in the cache now.
    fn loaded(&self) -> u64 {
        self.of(Warmed::Stored) + self.of(Warmed::Present)
    }

    /// Waits until no more than so many are under way.
    async fn at_most(&self, count: usize) {
        while self.under_way.get() > count {
            self.landed.notified().await;
        }
    }
}

/// Why not everything is loaded.
#[derive(Debug, PartialEq, Eq)]
enum Stop {
    Draining,
    MaxKeys,
    Full,
    /// Upstream's words, or why there is no lane.
    Refused(String),
}

impl Stop {
    fn why(&self) -> String {
        match self {
            Stop::Draining => "the sidecar ends".to_owned(),
            Stop::MaxKeys => "warm.max_keys is reached".to_owned(),
            Stop::Full => "the cache is nearly full (cache.max_bytes)".to_owned(),
            Stop::Refused(why) => format!("upstream refuses: {why}"),
        }
    }
}

/// So many steps a second; none is saved up.
struct Pace {
    each: u64,
    next: u64,
}

impl Pace {
    fn new(per_second: u32) -> Pace {
        Pace { each: SECOND / u64::from(per_second), next: 0 }
    }

    /// How long the step that comes at `now` has to wait.
    fn step(&mut self, now: u64) -> Duration {
        let wait = self.next.saturating_sub(now);
        self.next = self.next.max(now) + self.each;
        if wait < GRAIN { Duration::ZERO } else { Duration::from_nanos(wait) }
    }

    async fn turn(&mut self) {
        let wait = self.step(clock::now());
        if !wait.is_zero() {
            sleep(wait).await;
        }
    }
}

/// Begins to load what the configuration names, if anything.
pub(crate) fn warm(ctx: &Rc<Ctx>) {
    let config = &ctx.config.warm;
    if config.is_empty() {
        return;
    }
    if !ctx.cache_serves() {
        return tracing::warn!("nothing is loaded at start: cache.mode is off");
    }
    ctx.status.set_warming(config.before_ready);
    tokio::task::spawn_local(run(ctx.clone()));
}

async fn run(ctx: Rc<Ctx>) {
    let mut loading = std::pin::pin!(load(&ctx));
    if ctx.config.warm.before_ready {
        tokio::select! {
            () = &mut loading => return ctx.status.set_warming(false),
            () = sleep(ctx.config.warm.timeout) => {
                tracing::warn!("ready before everything is loaded: warm.timeout is over");
                ctx.status.set_warming(false);
            }
        }
    }
    loading.await;
}

async fn load(ctx: &Rc<Ctx>) {
    let lane = match first_lane(ctx).await {
        Ok(lane) => lane,
        Err(Stop::Draining) => return,
        Err(why) => return tracing::warn!("nothing is loaded at start: {}", why.why()),
    };
    let now = clock::now();
    let mut warming = Warming {
        ctx,
        lane,
        loading: Rc::default(),
        pace: Pace::new(ctx.config.warm.rate),
        seen: HashSet::default(),
        hasher: RandomState::default(),
        began: now,
        logged: now,
    };
    let stopped = warming.all().await.err();
    warming.loading.at_most(0).await;
    warming.say_end(stopped.as_ref());
}

/// The lane, when it stores; it may be that upstream is not there yet.
async fn first_lane(ctx: &Rc<Ctx>) -> Result<Rc<Lane>, Stop> {
    loop {
        let lane = ctx.lane(&ctx.default_profile);
        if lane.is_live() && lane.caches() {
            return Ok(lane);
        }
        if let Availability::Refused(why) = lane.availability() {
            return Err(Stop::Refused(why));
        }
        if ctx.status.draining() {
            return Err(Stop::Draining);
        }
        sleep(LOOK_EVERY).await;
    }
}

struct Warming<'c> {
    ctx: &'c Rc<Ctx>,
    lane: Rc<Lane>,
    loading: Rc<Loading>,
    pace: Pace,
    /// Hashes of the keys so far: SCAN may return one twice. Two keys of one hash would cost a miss.
    seen: HashSet<u64>,
    hasher: RandomState,
    began: u64,
    logged: u64,
}

impl Warming<'_> {
    async fn all(&mut self) -> Result<(), Stop> {
        let config = &self.ctx.config.warm;
        for key in &config.keys {
            self.one(&self.ctx.upstream_name(key.as_bytes())).await?;
        }
        for key in self.ctx.last_run.keys() {
            self.one(&self.ctx.upstream_name(&key)).await?;
        }
        for glob in &config.patterns {
            self.found_by(glob.as_bytes()).await?;
        }
        Ok(())
    }

    async fn found_by(&mut self, glob: &[u8]) -> Result<(), Stop> {
        let glob = &*self.ctx.upstream_glob(glob);
        let mut cursor = b"0".to_vec();
        loop {
            self.ready().await?;
            self.pace.turn().await;
            let words: [&[u8]; 6] = [b"SCAN", &cursor, b"MATCH", glob, b"COUNT", SCAN_COUNT];
            // A cursor is upstream's own: where the lane is lost, it is asked again on the next connection.
            let Ok(frame) = self.lane.ask(clock::now(), &words).await else { continue };
            let (next, found) = reply::scanned(&frame).ok_or_else(|| Stop::Refused(error_text(&frame)))?;
            for key in &found {
                self.one(key).await?;
            }
            if next == b"0" {
                return Ok(());
            }
            cursor = next;
            self.say_progress();
        }
    }

    async fn one(&mut self, key: &[u8]) -> Result<(), Stop> {
        let hash = self.hasher.hash_one(key);
        if self.seen.contains(&hash) {
            return Ok(());
        }
        if self.seen.len() >= self.ctx.config.warm.max_keys {
            return Err(Stop::MaxKeys);
        }
        let (_, bytes) = self.ctx.l1.size();
        if bytes > self.ctx.config.cache.max_bytes / 10 * 9 {
            return Err(Stop::Full);
        }
        self.loading.at_most(UNDER_WAY_MAX - 1).await;
        self.pace.turn().await;
        self.ready().await?;
        self.seen.insert(hash);
        if let Err(what) = self.send(key) {
            self.loading.count(self.ctx, what);
        }
        self.say_progress();
        Ok(())
    }

    /// The lane is there and takes more.
    async fn ready(&self) -> Result<(), Stop> {
        loop {
            if self.ctx.status.draining() {
                return Err(Stop::Draining);
            }
            if let Availability::Refused(why) = self.lane.availability() {
                return Err(Stop::Refused(why));
            }
            if self.lane.is_live() && self.lane.is_ready() && self.lane.caches() && !self.lane.is_held_up() {
                return Ok(());
            }
            sleep(LOOK_EVERY).await;
        }
    }

    /// Sends one key's reading; or what became of it already.
    fn send(&self, key: &[u8]) -> Result<(), Warmed> {
        let (ctx, lane, now) = (self.ctx, &self.lane, clock::now());
        if key.len() > KEY_MAX {
            return Err(Warmed::TooLarge);
        }
        let keep = ctx.judge(key, Method::Get).keep.map_err(|_| Warmed::NoRule)?;
        let flight = (Rc::from(key), None);
        let usable = |forms: &cache::Forms| cache::usable(forms, lane.epoch(), ctx.l1.flush_gen(), now).is_some();
        if ctx.l1.get(key).is_some_and(|forms| usable(&forms)) || lane.inner.borrow().flights.contains_key(&flight) {
            return Err(Warmed::Present);
        }
        let token = ctx.l1.token(key, lane.epoch()).ok_or(Warmed::Discarded)?;
        // Whoever has it loaded means to read it: the lease is kept young for that, so that the first GET is a hit.
        lane.note_read(now);
        lane.note_miss(ctx, now);
        self.loading.under_way.set(self.loading.under_way.get() + 1);
        let origin = Origin::Warming(self.loading.clone());
        lane.send_fetch(now, &get(key), Fetch::unasked(flight.0, FetchRead::GET, token, now, keep, origin));
        Ok(())
    }

    fn say_progress(&mut self) {
        let now = clock::now();
        if now.saturating_sub(self.logged) < PROGRESS_EVERY {
            return;
        }
        self.logged = now;
        let config = &self.ctx.config.warm;
        let of = if config.patterns.is_empty() {
            format!(" of {}", grouped((config.keys.len() + self.ctx.last_run.keys().len()) as u64))
        } else {
            String::new()
        };
        let each = self.seen.len() as u64 * SECOND / now.saturating_sub(self.began).max(1);
        tracing::info!("warming: {} keys{of}, {} a second", grouped(self.seen.len() as u64), grouped(each));
    }

    /// `warmed 12,345 of 12,400 keys in 3.2 s; 55 skipped: 40 absent, 15 wrong type`.
    fn say_end(&self, stopped: Option<&Stop>) {
        let tenths = clock::now().saturating_sub(self.began) / (SECOND / 10);
        let mut line = format!(
            "warmed {} of {} keys in {}.{} s",
            grouped(self.loading.loaded()),
            grouped(self.seen.len() as u64),
            tenths / 10,
            tenths % 10
        );
        let skipped = self.seen.len() as u64 - self.loading.loaded();
        if skipped > 0 {
            let others = Warmed::ALL.iter().filter(|what| !matches!(what, Warmed::Stored | Warmed::Present));
            let named = others.filter(|what| self.loading.of(**what) > 0);
            let named: Vec<String> = named
                .map(|what| format!("{} {}", grouped(self.loading.of(*what)), what.as_str().replace('_', " ")))
                .collect();
            line += &format!("; {} skipped: {}", grouped(skipped), named.join(", "));
        }
        match stopped {
            None => tracing::info!("{line}"),
            Some(stop) => tracing::warn!("{line}; stopped: {}", stop.why()),
        }
    }
}

/// `12345` as `12,345`.
fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_by_people() {
        for (n, text) in [(0, "0"), (999, "999"), (1000, "1,000"), (12_345, "12,345"), (1_234_567, "1,234,567")] {
            assert_eq!(grouped(n), text);
        }
    }

    #[test]
    fn no_second_has_more_than_the_rate_and_nothing_is_saved_up() {
        for rate in [1, 7, 1000, 100_000] {
            let mut pace = Pace::new(rate);
            let mut now = 5 * SECOND;
            let mut sent: Vec<u64> = Vec::new();
            for i in 0..3 * rate {
                // A slow reader in between.
                if i == rate {
                    now += 10 * SECOND;
                }
                let wait = pace.step(now);
                now += wait.as_nanos() as u64;
                sent.push(now);
            }
            let burst = (GRAIN / pace.each + 1) as usize;
            let most = rate as usize + burst;
            let fast = sent.windows(most + 1).find(|window| window[most] - window[0] < SECOND);
            assert_eq!(fast, None, "more than {most} in a second at {rate}");
        }
    }
}
