//! Writes that wait for upstream, of one profile, in the order in which they were acknowledged: a pure, bounded row. Runs
//! in an outage and until what it left is done; sends nothing, knows no reply and no clock.
//!
//! It holds *effects*, not commands: what a key is to be afterwards, with an absolute expiry. So doing one twice, or a run
//! of them again from any point before its end, leaves the same state as doing it once. That is what makes a cut in the
//! middle of a replay harmless: it goes on from the first effect that is not known to be done (`applied`).
//!
//! **Series.** The effects of one key that wait at the same time are a series. Its first one remembers what upstream held as
//! far as was known here (its *base*), which is compared before the series begins; whether the key is overwritten or
//! skipped then holds for all of the series.

use std::collections::{HashMap, VecDeque};

use foldhash::fast::RandomState;

use crate::observe::reasons::Replayed;

/// What an effect costs besides its bytes: its place in the row, its key's in the map, three allocations.
const OVERHEAD: usize = 192;

/// What is to be done upstream to one key, by upstream's name of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    /// `SET key value`, with `PXAT` where it expires; milliseconds since 1970.
    Set {
        key: Box<[u8]>,
        value: Box<[u8]>,
        expire_at_ms: Option<i64>,
    },
    Del {
        key: Box<[u8]>,
    },
}

impl Effect {
    pub(crate) fn key(&self) -> &[u8] {
        match self {
            Effect::Set { key, .. } | Effect::Del { key } => key,
        }
    }

    /// What the key holds behind it.
    fn leaves(&self, now: i64) -> Option<&[u8]> {
        match self {
            Effect::Set { value, expire_at_ms, .. } if expire_at_ms.is_none_or(|at| at > now) => Some(value),
            Effect::Set { .. } | Effect::Del { .. } => None,
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Effect::Set { key, value, .. } => key.len() + value.len(),
            Effect::Del { key } => key.len(),
        }
    }
}

/// What upstream held of a key, as far as was known here when its first effect was acknowledged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Base {
    Unknown,
    Absent,
    Value {
        value: Box<[u8]>,
        /// When upstream expires it, which is nobody's change.
        expire_at_ms: Option<i64>,
    },
}

impl Base {
    /// Whether upstream, which has this value now, or none, is what it was.
    pub(crate) fn is(&self, upstream: Option<&[u8]>, now: i64) -> bool {
        match (self, upstream) {
            (Base::Unknown, _) => false,
            (Base::Absent, upstream) => upstream.is_none(),
            (Base::Value { value, .. }, Some(upstream)) => **value == *upstream,
            (Base::Value { expire_at_ms, .. }, None) => expire_at_ms.is_some_and(|at| at <= now),
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Base::Value { value, .. } => value.len(),
            Base::Unknown | Base::Absent => 0,
        }
    }
}

/// An effect to be queued, and its key's base should it begin a series.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct New {
    pub(crate) effect: Effect,
    pub(crate) base: Base,
}

impl New {
    /// What it will cost of `max_bytes`.
    pub(crate) fn bytes(&self) -> usize {
        OVERHEAD + self.effect.bytes() + self.effect.key().len() + self.base.bytes()
    }
}

/// One that waits.
#[derive(Debug)]
pub(crate) struct Item {
    /// Grows by one with every effect of this profile, and is never used again.
    pub(crate) seq: u64,
    /// When it was acknowledged.
    pub(crate) at: u64,
    pub(crate) effect: Effect,
    /// Its number in the journal; 0: there is none.
    mark: u64,
    series: u64,
    bytes: usize,
    /// Effects of the same command stand behind it.
    more: bool,
}

#[derive(Debug)]
struct Series {
    number: u64,
    base: Base,
    left: usize,
    stage: Stage,
    /// Numbers of its effects that are from the journal, which need not know yet what of them is upstream already.
    restored: Vec<u64>,
}

/// How far a series has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Nothing of it is upstream.
    Waits,
    /// Its key was found to be so, and something of it may be upstream. That is kept until its first effect is counted: a
    /// connection may be lost in between, and what is upstream then may be this series' own.
    Begun(Replayed),
    Counted,
}

/// A series that is not to be done.
#[derive(Clone, Copy, Debug)]
struct Skipped {
    left: usize,
    why: Replayed,
}

#[derive(Debug, Default)]
pub(crate) struct Queue {
    items: VecDeque<Item>,
    /// The series that each key has now.
    keys: HashMap<Box<[u8]>, Series, RandomState>,
    /// Series that are not to be done, and how many of their effects still stand in the row.
    skipped: HashMap<u64, Skipped, RandomState>,
    bytes: usize,
    last: u64,
    series: u64,
}

impl Queue {
    pub(crate) fn len(&self) -> usize {
        self.items.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// When the oldest was acknowledged.
    pub(crate) fn oldest(&self) -> Option<u64> {
        self.items.front().map(|item| item.at)
    }

    /// The number of the effect that was queued last; 0: none ever was.
    pub(crate) fn last(&self) -> u64 {
        self.last
    }

    pub(crate) fn has(&self, key: &[u8]) -> bool {
        self.keys.contains_key(key)
    }

    /// All keys that have something to be done.
    pub(crate) fn keys(&self) -> impl Iterator<Item = &[u8]> {
        self.keys.keys().map(|key| &**key)
    }

    /// Appends the effects of one command, all of them; whether there is room is the caller's to have asked.
    #[cfg(test)]
    fn push(&mut self, at: u64, effects: Vec<New>) {
        self.push_marked(at, effects, 0);
    }

    /// The same of effects that have numbers in the journal, from `mark` on; 0: they have none.
    pub(crate) fn push_marked(&mut self, at: u64, effects: Vec<New>, mark: u64) {
        let end = effects.len();
        for (i, new) in effects.into_iter().enumerate() {
            let mark = if mark == 0 { 0 } else { mark + i as u64 };
            let bytes = new.bytes();
            let key: Box<[u8]> = new.effect.key().into();
            let next = self.series + 1;
            let series = self.keys.entry(key).or_insert_with(|| Series {
                number: next,
                base: new.base,
                left: 0,
                stage: Stage::Waits,
                restored: Vec::new(),
            });
            self.series = self.series.max(series.number);
            series.left += 1;
            self.last += 1;
            self.bytes += bytes;
            let (seq, series, more) = (self.last, series.number, i + 1 < end);
            self.items.push_back(Item { seq, at, effect: new.effect, mark, series, bytes, more });
        }
    }

    /// The same of effects that a process before this one has queued.
    pub(crate) fn restore(&mut self, at: u64, effects: Vec<New>, mark: u64) {
        let before = self.items.len();
        self.push_marked(at, effects, mark);
        for item in self.items.range(before..) {
            if let Some(series) = self.keys.get_mut(item.effect.key()) {
                series.restored.push(item.seq);
            }
        }
    }

    /// Whether what upstream has of the key, a value or none, may be this queue's own doing, of a process that ended before
    /// its journal had the mark. A foreign write of the same value is not told apart.
    pub(crate) fn may_be_own(&self, key: &[u8], upstream: Option<&[u8]>, now: i64) -> bool {
        let (Some(series), Some(first)) = (self.keys.get(key), self.items.front()) else { return false };
        let places = series.restored.iter().filter_map(|seq| seq.checked_sub(first.seq));
        let own = places.filter_map(|at| self.items.get(at as usize));
        own.map(|item| item.effect.leaves(now)).any(|left| left == upstream)
    }

    /// The oldest ones, up to `count` and no more than `bytes` of them; but whole commands, and at least one. What a command
    /// has written is seen upstream all at once, as if it had been sent there.
    pub(crate) fn front(&self, count: usize, bytes: usize) -> impl Iterator<Item = &Item> {
        let (mut whole, mut sum) = (0, 0);
        for (i, item) in self.items.iter().enumerate() {
            sum += item.bytes;
            if whole > 0 && (i >= count || sum > bytes) {
                break;
            }
            if !item.more {
                whole = i + 1;
            }
        }
        self.items.iter().take(whole)
    }

    /// Why its series is not to be done, if so.
    pub(crate) fn skipped(&self, item: &Item) -> Option<Replayed> {
        self.skipped.get(&item.series).map(|skipped| skipped.why)
    }

    /// The base to compare before this effect, if its series has not begun.
    pub(crate) fn to_compare(&self, item: &Item) -> Option<&Base> {
        let series = self.keys.get(item.effect.key())?;
        (series.number == item.series && series.stage == Stage::Waits).then_some(&series.base)
    }

    /// The key's series is about to be done, and its key was found to be so: what is upstream from here on may be its own.
    pub(crate) fn begin(&mut self, key: &[u8], found: Replayed) {
        if let Some(series) = self.keys.get_mut(key) {
            series.stage = Stage::Begun(found);
        }
    }

    /// It has turned out that nothing of it was done: what its key is then is to be asked again.
    pub(crate) fn not_begun(&mut self, key: &[u8]) {
        if let Some(series) = self.keys.get_mut(key) {
            series.stage = Stage::Waits;
        }
    }

    /// Nothing of the key's series is to be done; what is queued for it later begins another.
    pub(crate) fn skip(&mut self, key: &[u8], why: Replayed) {
        if let Some(series) = self.keys.remove(key) {
            self.skipped.insert(series.number, Skipped { left: series.left, why });
        }
    }

    /// The journal's number of the last effect up to this one; none: the journal has none of them.
    pub(crate) fn mark_of(&self, seq: u64) -> Option<u64> {
        let last = self.items.iter().take_while(|item| item.seq <= seq).last();
        last.map(|item| item.mark).filter(|mark| *mark > 0)
    }

    /// What each effect up to this number counts as, now that it is done or will never be; asked once, before `applied`.
    pub(crate) fn outcomes(&mut self, seq: u64) -> Vec<Replayed> {
        let Queue { items, keys, skipped, .. } = self;
        let outcome = |item: &Item| {
            if let Some(skipped) = skipped.get(&item.series) {
                return skipped.why;
            }
            let series = keys.get_mut(item.effect.key()).filter(|series| series.number == item.series);
            match series.map(|series| std::mem::replace(&mut series.stage, Stage::Counted)) {
                Some(Stage::Begun(found)) => found,
                _ => Replayed::Applied,
            }
        };
        items.iter().take_while(|item| item.seq <= seq).map(outcome).collect()
    }

    /// Everything up to this number is done, or will never be.
    pub(crate) fn applied(&mut self, seq: u64) {
        while self.items.front().is_some_and(|item| item.seq <= seq) {
            let Some(item) = self.items.pop_front() else { return };
            self.bytes -= item.bytes;
            if let Some(skipped) = self.skipped.get_mut(&item.series) {
                skipped.left -= 1;
                if skipped.left == 0 {
                    self.skipped.remove(&item.series);
                }
                continue;
            }
            let key = item.effect.key();
            if let Some(series) = self.keys.get_mut(key) {
                series.left -= 1;
                if series.left == 0 {
                    self.keys.remove(key);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
