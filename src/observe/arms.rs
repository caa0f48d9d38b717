//! What the arms of experiments see: durations, errors, and how often the L1 had the key. An *arm* is a part of one rule's
//! keys, as a small number that an entry keeps, so that a hit counts by index and asks no rule: `cached` or one of the
//! rule's variants, and `control`, the keys that the rule leaves uncached. Keys of rules without an experiment have
//! [`ArmId::NONE`] and cost one compare.
//!
//! Each arm has a lock of its own, because any worker may answer a key and the side port reads; nobody holds one for longer
//! than a copy of a slice (5 µs). What arms there are is decided when rules change, above.

use std::sync::Arc;

use parking_lot::Mutex;
use smallvec::SmallVec;

use super::costs::ArmCounts;
use super::latency::{self, Rolling, Seen, Slice, Window};
use super::reasons::RolloutState;

/// Arms that are measured at once, all rules together: 0.8 MiB each after an hour with traffic in every minute.
pub(crate) const ARMS_MAX: usize = 64;

/// Places: twice as many, because the arms of new rules are claimed before those of the old ones are given up.
const PLACES: usize = 2 * ARMS_MAX;

/// An arm's place, counted from 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct ArmId(u16);

impl ArmId {
    /// The key belongs to no experiment.
    pub(crate) const NONE: ArmId = ArmId(0);

    pub(crate) fn is_some(self) -> bool {
        self != Self::NONE
    }

    fn index(self) -> Option<usize> {
        usize::from(self.0).checked_sub(1)
    }
}

pub(crate) struct Arms {
    places: [Mutex<Place>; PLACES],
    /// What experiments there are, for whoever shows them.
    shown: Mutex<Arc<[Experiment]>>,
}

/// One rule's experiment as it stands.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Experiment {
    pub(crate) rule: String,
    /// Of its keys that are cached, in hundredths of a percent.
    pub(crate) share: u16,
    pub(crate) state: RolloutState,
    /// When that began, where it matters (nanoseconds since boot).
    pub(crate) since: Option<u64>,
    /// Why it was rolled back.
    pub(crate) why: Option<Why>,
    pub(crate) ramp: Option<RampShown>,
    pub(crate) guard: Option<GuardShown>,
    /// The keys that are not cached, where there are any.
    pub(crate) control: Option<ArmId>,
    /// The others, by name: `cached`, or each variant.
    pub(crate) cached: Vec<(String, ArmId)>,
}

/// A regression: its word and its sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Why {
    pub(crate) word: &'static str,
    pub(crate) sentence: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RampShown {
    /// Hundredths of a percent.
    pub(crate) steps: Vec<u16>,
    /// Nanoseconds.
    pub(crate) hold: u64,
    /// The next step waits for a window that is judged good.
    pub(crate) waits: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct GuardShown {
    pub(crate) error_rate: f64,
    pub(crate) latency: f64,
    pub(crate) min_requests: u64,
    /// Nanoseconds.
    pub(crate) window: u64,
    /// Windows judged since the share last changed.
    pub(crate) judged: u64,
    /// What the last one showed, if it regressed.
    pub(crate) regressed: Option<Why>,
}

/// Free, or an arm's.
#[derive(Default)]
struct Place(Option<Box<Arm>>);

struct Arm {
    rule: Box<str>,
    name: Box<str>,
    rolling: Rolling,
    /// What was seen since its guard last looked, where it has one.
    watched: Option<Box<Slice>>,
    costs: ArmCounts,
}

impl Default for Arms {
    fn default() -> Arms {
        Arms { places: std::array::from_fn(|_| Mutex::default()), shown: Mutex::new([].into()) }
    }
}

impl Arms {
    /// The arm `name` of the rule `rule`: the one there is, or a free place from `now` on. NONE where all are taken.
    pub(crate) fn claim(&self, now: u64, rule: &str, name: &str) -> ArmId {
        let is_it =
            |place: &Mutex<Place>| place.lock().0.as_ref().is_some_and(|arm| &*arm.rule == rule && &*arm.name == name);
        let found = self.places.iter().position(is_it).or_else(|| {
            let free = self.places.iter().position(|place| place.lock().0.is_none())?;
            let arm = Arm {
                rule: rule.into(),
                name: name.into(),
                rolling: Rolling::new(now),
                watched: None,
                costs: ArmCounts::default(),
            };
            self.places[free].lock().0 = Some(Box::new(arm));
            Some(free)
        });
        found.map_or(ArmId::NONE, |index| ArmId(index as u16 + 1))
    }

    /// Gives up all others: the rules that had them are gone, and so is every entry that carries one of them.
    pub(crate) fn keep_only(&self, in_use: &[ArmId]) {
        for (index, place) in self.places.iter().enumerate() {
            if !in_use.iter().any(|arm| arm.index() == Some(index)) {
                place.lock().0 = None;
            }
        }
    }

    /// A request of this arm was answered by upstream after `nanos`, with an error or not.
    pub(crate) fn answered(&self, arm: ArmId, now: u64, nanos: u64, failed: bool) {
        self.with(arm, |arm| {
            arm.rolling.record(now, nanos, failed);
            if let Some(watched) = &mut arm.watched {
                watched.record_n(nanos, 1);
                watched.errors += u64::from(failed);
            }
        });
    }

    /// `requests` of this arm were answered from the L1 after `nanos` each, with so many keys and bytes of theirs.
    pub(crate) fn served(&self, arm: ArmId, now: u64, nanos: u64, requests: u32, keys: u32, bytes: u64) {
        self.with(arm, |arm| {
            arm.costs.saved_requests += u64::from(requests);
            arm.costs.saved_keys += u64::from(keys);
            arm.costs.saved_bytes += bytes;
            arm.rolling.look_ups(now, keys.into(), 0);
            if requests > 0 {
                arm.rolling.record_n(now, nanos, requests);
                arm.watched.iter_mut().for_each(|watched| watched.record_n(nanos, requests));
            }
        });
    }

    /// Upstream answered a request of this arm with so many bytes.
    pub(crate) fn fetched(&self, arm: ArmId, bytes: u64) {
        self.with(arm, |arm| {
            arm.costs.spent_requests += 1;
            arm.costs.spent_bytes += bytes;
        });
    }

    /// A key of this arm was not answered here.
    pub(crate) fn unserved(&self, arm: ArmId) {
        self.with(arm, |arm| arm.costs.spent_keys += 1);
    }

    pub(super) fn costs(&self, arm: ArmId) -> ArmCounts {
        self.with(arm, |arm| arm.costs).unwrap_or_default()
    }

    /// The L1 was asked for so many keys of this arm, and had them or not.
    pub(crate) fn looked_up(&self, arm: ArmId, now: u64, hits: u64, misses: u64) {
        self.with(arm, |arm| arm.rolling.look_ups(now, hits, misses));
    }

    /// From now on, or no longer, what this arm sees is kept for a guard.
    pub(crate) fn watch(&self, arm: ArmId, on: bool) {
        self.with(arm, |arm| match &arm.watched {
            Some(_) if on => {}
            _ => arm.watched = on.then(Box::default),
        });
    }

    /// What it has seen for its guard is forgotten.
    pub(crate) fn watch_anew(&self, arm: ArmId) {
        self.with(arm, |arm| arm.watched.iter_mut().for_each(|watched| watched.reset()));
    }

    /// What these arms together have seen since they are watched.
    pub(crate) fn watched(&self, arms: &[ArmId]) -> Seen {
        let mut seen = Seen::default();
        for arm in arms {
            let copy = self.with(*arm, |arm| arm.watched.clone()).flatten();
            copy.iter().for_each(|slice| seen.absorb(slice));
        }
        seen
    }

    /// How many requests that are.
    pub(crate) fn watched_count(&self, arms: &[ArmId]) -> u64 {
        let count = |arm: &ArmId| self.with(*arm, |arm| arm.watched.as_ref().map_or(0, |slice| slice.count()));
        arms.iter().filter_map(count).sum()
    }

    /// What an arm has seen in the window that ends at `now`, and how long it was measured in it (nanoseconds).
    pub(crate) fn seen(&self, arm: ArmId, now: u64, window: Window) -> (Seen, u64) {
        let mut seen = Seen::default();
        for step in latency::steps(now, window) {
            // One lock a step: who counts meanwhile waits for a copy, not for the sum.
            let part = self.with(arm, |arm| arm.rolling.part(step));
            part.iter().for_each(|part| part.add_to(&mut seen));
        }
        let started = self.with(arm, |arm| arm.rolling.started());
        (seen, started.map_or(0, |started| window.covers(started, now)))
    }

    /// What experiments there are is this from now on.
    pub(crate) fn show(&self, experiments: Vec<Experiment>) {
        *self.shown.lock() = experiments.into();
    }

    pub(crate) fn shown(&self) -> Arc<[Experiment]> {
        self.shown.lock().clone()
    }

    fn with<T>(&self, arm: ArmId, f: impl FnOnce(&mut Arm) -> T) -> Option<T> {
        let mut place = self.places.get(arm.index()?)?.lock();
        place.0.as_deref_mut().map(f)
    }
}

/// Which arm a request of several keys belongs to: the one of all its keys.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Common {
    #[default]
    NoKey,
    Of(ArmId),
    /// Its duration is no arm's.
    Mixed,
}

impl Common {
    pub(crate) fn and(self, arm: ArmId) -> Common {
        match self {
            Common::NoKey => Common::Of(arm),
            Common::Of(same) if same == arm => self,
            Common::Of(_) | Common::Mixed => Common::Mixed,
        }
    }

    pub(crate) fn arm(self) -> ArmId {
        match self {
            Common::Of(arm) => arm,
            Common::NoKey | Common::Mixed => ArmId::NONE,
        }
    }
}

/// The hits of one read of a socket, by arm: its requests took the same time each, and are counted when it is over. Two arms
/// in one read are usual, more than a rule's variants are not.
#[derive(Default)]
pub(crate) struct Hits(SmallVec<[ArmHits; 2]>);

struct ArmHits {
    arm: ArmId,
    requests: u32,
    keys: u32,
    bytes: u64,
}

impl Hits {
    /// A request of one key.
    pub(crate) fn one(&mut self, arm: ArmId, bytes: u64) {
        if arm.is_some() {
            let hits = self.of(arm);
            hits.requests += 1;
            hits.keys += 1;
            hits.bytes += bytes;
        }
    }

    pub(crate) fn key(&mut self, arm: ArmId, bytes: u64) {
        if arm.is_some() {
            let hits = self.of(arm);
            hits.keys += 1;
            hits.bytes += bytes;
        }
    }

    /// A request whose keys were counted one by one.
    pub(crate) fn request(&mut self, arm: ArmId) {
        if arm.is_some() {
            self.of(arm).requests += 1;
        }
    }

    #[cold]
    fn of(&mut self, arm: ArmId) -> &mut ArmHits {
        let at = self.0.iter().position(|hits| hits.arm == arm).unwrap_or_else(|| {
            self.0.push(ArmHits { arm, requests: 0, keys: 0, bytes: 0 });
            self.0.len() - 1
        });
        &mut self.0[at]
    }

    /// Counts them: each request took `nanos`.
    pub(crate) fn count(&self, arms: &Arms, now: u64, nanos: u64) {
        self.0.iter().for_each(|hits| arms.served(hits.arm, now, nanos, hits.requests, hits.keys, hits.bytes));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_arm_keeps_its_place_and_its_figures_for_as_long_as_it_is_used() {
        let arms = Arms::default();
        let cached = arms.claim(0, "r", "cached");
        let control = arms.claim(0, "r", "control");
        assert!(cached.is_some() && control.is_some() && cached != control);
        assert_eq!(arms.claim(5, "r", "cached"), cached);
        arms.served(cached, 10, 500, 3, 5, 0);
        arms.answered(cached, 10, 70_000, true);
        arms.looked_up(cached, 10, 1, 1);
        arms.answered(control, 10, 60_000, false);
        let (seen, measured) = arms.seen(cached, 20, Window::Minute);
        assert_eq!((seen.count(), seen.errors, seen.hits, seen.misses, measured), (4, 1, 6, 1, 20));
        arms.keep_only(&[cached]);
        assert_eq!(arms.seen(control, 20, Window::Start).0.count(), 0);
        assert_eq!(arms.seen(cached, 20, Window::Start).0.count(), 4);
        // Its place is another's now, who begins with nothing.
        assert_eq!(arms.claim(30, "s", "cached"), control);
        assert_eq!(arms.seen(control, 40, Window::Start), (Seen::default(), 10));
    }

    #[test]
    fn no_arm_counts_nowhere_and_a_full_table_gives_none() {
        let arms = Arms::default();
        arms.served(ArmId::NONE, 0, 1, 1, 1, 0);
        arms.answered(ArmId(u16::MAX), 0, 1, false);
        assert_eq!(arms.seen(ArmId::NONE, 0, Window::Start).0.count(), 0);
        let all: Vec<ArmId> = (0..PLACES).map(|i| arms.claim(0, &i.to_string(), "cached")).collect();
        assert!(all.iter().all(|arm| arm.is_some()));
        assert_eq!(arms.claim(0, "one more", "cached"), ArmId::NONE);
        assert_eq!(arms.claim(0, "0", "cached"), all[0]);
    }

    #[test]
    fn a_guard_sees_what_came_since_it_looked_and_only_where_it_watches() {
        let arms = Arms::default();
        let (a, b) = (arms.claim(0, "r", "short"), arms.claim(0, "r", "long"));
        arms.served(a, 0, 500, 1, 1, 0);
        assert_eq!(arms.watched(&[a, b]).count(), 0);
        arms.watch(a, true);
        arms.watch(b, true);
        arms.served(a, 0, 500, 2, 2, 0);
        arms.answered(b, 0, 500, true);
        let seen = arms.watched(&[a, b, ArmId::NONE]);
        assert_eq!((seen.count(), seen.errors), (3, 1));
        assert_eq!(arms.watched_count(&[a, b, ArmId::NONE]), 3);
        arms.watch(a, true);
        assert_eq!(arms.watched(&[a, b]).count(), 3);
        arms.watch_anew(a);
        assert_eq!(arms.watched(&[a, b]).count(), 1);
        arms.watch(b, false);
        arms.served(b, 0, 500, 1, 1, 0);
        assert_eq!(arms.watched(&[a, b]).count(), 0);
    }

    #[test]
    fn a_reads_hits_count_once_it_is_over_each_in_its_arm() {
        let arms = Arms::default();
        let (a, b) = (arms.claim(0, "r", "short"), arms.claim(0, "r", "long"));
        let mut hits = Hits::default();
        [a, b, a, ArmId::NONE].into_iter().for_each(|arm| hits.one(arm, 0));
        // MGET of both arms, and of one.
        [a, b].into_iter().for_each(|arm| hits.key(arm, 0));
        hits.request([a, b].into_iter().fold(Common::NoKey, Common::and).arm());
        [a, a].into_iter().for_each(|arm| hits.key(arm, 0));
        hits.request([a, a].into_iter().fold(Common::NoKey, Common::and).arm());
        hits.count(&arms, 0, 700);
        let seen = |arm| arms.seen(arm, 0, Window::Minute).0;
        assert_eq!((seen(a).count(), seen(a).hits, seen(b).count(), seen(b).hits), (3, 5, 1, 2));
    }
}
