//! Telling upstream what is hit here (`cache.touch_interval`). A server that evicts by use (LRU, LFU) sees of a key that
//! lives in the L1 nothing but its readings, takes it for unused, and evicts what is asked for most. So the names of keys
//! that had a hit since they were last told are sent up by TOUCH, in batches, once in an interval.
//!
//! **On the hit.** An entry knows from when on a hit on it is to be noted (`Entry::touch`): at once when it is stored, after
//! the next sending when it has been noted. So a hit compares one number, and in an interval one hit of each entry does more.
//! Other workers hand that one to the data thread. Where upstream does not evict by use, nobody is told and nothing noted.
//!
//! **What upstream makes of it.** TOUCH changes no value and sends no invalidation; it counts as a read of the key by the
//! lane's user, also for CLIENT TRACKING, which may remember the key for a lane that holds it no more: an invalidation that
//! drops nothing. Its reply proves what any reply proves.
//!
//! `maxmemory-policy` is asked by INFO before each sending, so a change counts from the next one on, and for entries that
//! were stored while it said otherwise from their next reading on.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

use tokio::time::sleep;

use super::lane::Lane;
use super::reader::nanos;
use crate::cache::{Due, Entry};
use crate::observe::clock;
use crate::observe::reasons::Touched;
use crate::resp::reply;
use crate::upstream::handshake;
use crate::worker::Ctx;

/// Keys noted in one interval: with the bound on bytes this is the most that it costs.
const KEYS_MAX: usize = 100_000;

/// Bytes of their names, 80 for each of so many.
const BYTES_MAX: usize = 8 << 20;

/// Of one TOUCH: some 30 us of upstream's time.
const BATCH: usize = 128;

/// A batch is no larger than this, but for its last key.
const BATCH_BYTES: usize = 64 * 1024;

/// Longer names are not noted: one would be a batch of its own.
const KEY_MAX: usize = 16 * 1024;

/// Between the answer to one batch and the next: at most 25,000 keys a second.
const PAUSE: Duration = Duration::from_millis(5);

/// A note is not made again before this, should the sending be late.
const LATE: u64 = 100_000_000;

/// What a lane knows of upstream in this.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    /// Not asked yet: hits are noted, the answer will come before they are sent.
    #[default]
    Unknown,
    On,
    /// Upstream does not evict by use, or does not say.
    Off,
    /// It refuses TOUCH to this user.
    Denied,
}

#[derive(Default)]
pub(super) struct Touching {
    state: Cell<State>,
    /// The refusal has been logged.
    said: Cell<bool>,
    /// A sending is under way.
    busy: Cell<bool>,
}

impl Touching {
    /// A new connection may have other rights, and another server behind it.
    pub(super) fn reset(&self) {
        self.state.set(State::Unknown);
    }

    fn is_wanted(&self) -> bool {
        matches!(self.state.get(), State::Unknown | State::On)
    }
}

/// The keys to tell of, of all lanes.
pub(crate) struct Touches {
    interval: Option<Duration>,
    noted: RefCell<Noted>,
    /// When they are sent next.
    next: Cell<u64>,
}

#[derive(Default)]
struct Noted {
    /// With the lane's id.
    keys: Vec<(u32, Box<[u8]>)>,
    bytes: usize,
}

impl Touches {
    pub(crate) fn new(interval: Option<Duration>, now: u64) -> Touches {
        let next = now.saturating_add(interval.map_or(0, nanos));
        Touches { interval, noted: RefCell::default(), next: Cell::new(next) }
    }

    /// From when on a hit on what this lane read at `t_sent` is to be noted.
    pub(super) fn first(&self, lane: &Lane, t_sent: u64) -> Due {
        let wanted = self.interval.is_some() && lane.touching.is_wanted();
        if wanted { Due::from(t_sent) } else { Due::never() }
    }

    /// A hit of a key that upstream has not been told of in this interval.
    pub(super) fn note(&self, lane: &Lane, ctx: &Ctx, key: &[u8], entry: &Entry, now: u64) {
        if !lane.touching.is_wanted() {
            return entry.touch.put_off(u64::MAX);
        }
        entry.touch.put_off(self.next.get().max(now.saturating_add(LATE)));
        let mut noted = self.noted.borrow_mut();
        if noted.keys.len() >= KEYS_MAX || noted.bytes + key.len() > BYTES_MAX || key.len() > KEY_MAX {
            return ctx.metrics.touches.inc(Touched::Overflow);
        }
        noted.bytes += key.len();
        noted.keys.push((lane.id, key.into()));
    }

    /// What has been noted, by lane; the next interval begins.
    fn take(&self, now: u64) -> HashMap<u32, Vec<Box<[u8]>>> {
        self.next.set(now.saturating_add(self.interval.map_or(0, nanos)));
        let mut by_lane: HashMap<u32, Vec<Box<[u8]>>> = HashMap::new();
        for (lane, key) in self.noted.take().keys {
            by_lane.entry(lane).or_default().push(key);
        }
        for keys in by_lane.values_mut() {
            // Once, also where several forms of a key were hit.
            keys.sort_unstable();
            keys.dedup();
        }
        by_lane
    }
}

/// Sends what has been noted, once in an interval, for as long as the process runs.
pub(crate) async fn run(ctx: Rc<Ctx>) {
    let Some(interval) = ctx.touches.interval else { return };
    loop {
        sleep(interval).await;
        let mut noted = ctx.touches.take(clock::now());
        let lanes: Vec<Rc<Lane>> = ctx.lanes.borrow().values().cloned().collect();
        for lane in lanes {
            let keys = noted.remove(&lane.id).unwrap_or_default();
            // Each by itself: one that is stuck keeps no other waiting.
            tokio::task::spawn_local(tell(ctx.clone(), lane, keys));
        }
    }
}

async fn tell(ctx: Rc<Ctx>, lane: Rc<Lane>, keys: Vec<Box<[u8]>>) {
    let count = |what: Touched, n: usize| ctx.metrics.touches.add(what, n as u64);
    if lane.touching.busy.replace(true) {
        return count(Touched::Overflow, keys.len());
    }
    lane.ask_policy().await;
    let mut rest = &keys[..];
    while !rest.is_empty() && lane.may_tell() {
        let batch = batch(rest);
        rest = &rest[batch.len()..];
        match lane.touch(batch).await {
            Some(found) => {
                count(Touched::Told, found);
                count(Touched::Gone, batch.len() - found);
            }
            None => count(Touched::Refused, batch.len()),
        }
        sleep(PAUSE).await;
    }
    // Else they were noted before it was known that upstream does not want to be told.
    if lane.touching.is_wanted() {
        count(Touched::Refused, rest.len());
    }
    lane.touching.busy.set(false);
}

/// The first of `keys` that one command names.
fn batch(keys: &[Box<[u8]>]) -> &[Box<[u8]>] {
    let mut bytes = 0;
    let full = keys.iter().position(|key| {
        let full = bytes >= BATCH_BYTES;
        bytes += key.len();
        full
    });
    &keys[..full.unwrap_or(keys.len()).min(BATCH)]
}

impl Lane {
    /// Whether anything may be asked on this account now: what is held up or lost has other things to do.
    fn may_ask(&self) -> bool {
        self.is_live() && self.is_ready() && self.caches() && !self.is_held_up()
    }

    fn may_tell(&self) -> bool {
        self.may_ask() && self.touching.state.get() == State::On
    }

    /// Whether upstream evicts by use.
    async fn ask_policy(&self) {
        if !self.may_ask() || self.touching.state.get() == State::Denied {
            return;
        }
        let epoch = self.epoch();
        // No answer: the lane is lost, and is asked again in the next interval.
        let Ok(frame) = self.ask(clock::now(), &[b"INFO", b"memory"]).await else { return };
        if self.epoch() != epoch {
            return;
        }
        let on = reply::bulk(&frame).is_some_and(evicts_by_use);
        let state = if on { State::On } else { State::Off };
        if self.touching.state.replace(state) != state {
            tracing::debug!(user = %self.profile.user(), db = self.profile.db,
                "upstream {} told what is hit here: it {} by use", if on { "is" } else { "is not" },
                if on { "evicts" } else { "does not evict, or does not say that it evicts," });
        }
    }

    /// How many of them upstream has; none where it refuses, or the lane is lost.
    async fn touch(&self, keys: &[Box<[u8]>]) -> Option<usize> {
        let words: Vec<&[u8]> = std::iter::once(&b"TOUCH"[..]).chain(keys.iter().map(|key| &**key)).collect();
        let frame = self.ask(clock::now(), &words).await.ok()?;
        if frame.starts_with(b"-NOPERM") {
            self.touching.state.set(State::Denied);
            if !self.touching.said.replace(true) {
                tracing::warn!(user = %self.profile.user(), db = self.profile.db,
                    "upstream refuses TOUCH, it will not know which keys are hit here (cache.touch_interval): {}",
                    handshake::error_text(&frame));
            }
        }
        reply::integer(&frame).and_then(|found| usize::try_from(found).ok()).map(|found| found.min(keys.len()))
    }
}

/// `maxmemory_policy:allkeys-lru` and its kin in what INFO says.
fn evicts_by_use(info: &[u8]) -> bool {
    let policy = String::from_utf8_lossy(info)
        .lines()
        .find_map(|line| line.trim().strip_prefix("maxmemory_policy:").map(str::to_owned))
        .unwrap_or_default();
    policy.ends_with("-lru") || policy.ends_with("-lfu")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lru_and_lfu_and_nothing_else() {
        for (policy, is) in [
            ("allkeys-lru", true),
            ("volatile-lru", true),
            ("allkeys-lfu", true),
            ("volatile-lfu", true),
            ("noeviction", false),
            ("allkeys-random", false),
            ("volatile-ttl", false),
            ("", false),
        ] {
            let info = format!("# Memory\r\nused_memory:1\r\nmaxmemory_policy:{policy}\r\nallocator_rss:2\r\n");
            assert_eq!(evicts_by_use(info.as_bytes()), is, "{policy}");
        }
        assert!(!evicts_by_use(b"# Memory\r\n"));
    }

    #[test]
    fn a_batch_is_bounded_by_number_and_by_bytes() {
        let keys = |n: usize, len: usize| -> Vec<Box<[u8]>> { vec![vec![b'k'; len].into(); n] };
        assert_eq!(batch(&keys(3, 10)).len(), 3);
        assert_eq!(batch(&keys(1000, 10)).len(), BATCH);
        assert_eq!(batch(&keys(100, KEY_MAX)).len(), BATCH_BYTES / KEY_MAX);
        assert_eq!(batch(&keys(3, BATCH_BYTES * 2)).len(), 1);
    }

    #[test]
    fn what_was_noted_goes_once_and_by_lane() {
        let touches = Touches::new(Some(Duration::from_secs(60)), 5);
        assert_eq!(touches.next.get(), 60_000_000_005);
        for (lane, key) in [(1, "b"), (2, "a"), (1, "a"), (1, "b")] {
            touches.noted.borrow_mut().keys.push((lane, key.as_bytes().into()));
        }
        let taken = touches.take(7);
        assert_eq!(taken[&1], [b"a"[..].into(), b"b"[..].into()]);
        assert_eq!(taken[&2].len(), 1);
        assert!(touches.take(8).is_empty());
        assert_eq!(touches.next.get(), 60_000_000_008);
    }
}
