//! The sampled keys of one group in the order in which they were last read, with the size of each reply: answers how many
//! bytes of other replies have been read since, which is the size of an LRU cache that would still have had this one. Also
//! when each was last fetched by a cache of each TTL. A binary indexed tree over places in that order; when the places are
//! used up they are given out anew, so nothing grows with time.

use std::collections::HashMap;

use foldhash::fast::RandomState;
use smallvec::SmallVec;

use super::{TTL_MAX_MS, TTLS, TTLS_MS};

/// Places that an empty group has.
const PLACES_MIN: usize = 64;

/// One reply of a sampled key: to GET and MGET, or to a command with these very words.
struct Form {
    form: u64,
    place: u32,
    bytes: u32,
    /// It says that the key is not there: such a copy lives for `cache.negative_ttl` at the most.
    absent: bool,
    /// When a cache of each TTL has last fetched it, in milliseconds modulo 2^32. What is older than the longest TTL is
    /// forgotten every minute, so that this never comes round.
    fetched: [u32; TTLS],
}

/// A reply that was read before, and not written since.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reuse {
    /// Bytes of distinct replies from the last reading to this one, its own included.
    pub(super) distance: u64,
    /// Whether a cache of each TTL, large enough, would have answered.
    pub(super) fresh: [bool; TTLS],
}

/// What a reply takes in the cache.
#[derive(Clone, Copy, Debug)]
pub(super) struct Size {
    pub(super) bytes: u32,
    /// For how long at the most, where the key is not there.
    pub(super) absent_ms: Option<u32>,
}

#[derive(Default)]
pub(super) struct Stack {
    keys: HashMap<u64, SmallVec<[Form; 1]>, RandomState>,
    /// Bytes by place, as a binary indexed tree.
    sums: Vec<i64>,
    next: usize,
    total: i64,
    forms: usize,
}

impl Stack {
    pub(super) fn forms(&self) -> usize {
        self.forms
    }

    /// A reply was read. None: it was not there, or had been written.
    pub(super) fn read(&mut self, key: u64, form: u64, size: Size, now: u32) -> Option<Reuse> {
        if self.next == self.sums.len() {
            self.renumber();
        }
        let place = self.next;
        self.next += 1;
        let of_key = self.keys.entry(key).or_default();
        let known = of_key.iter().position(|known| known.form == form);
        let bytes = size.bytes;
        let reuse = match known.map(|i| &mut of_key[i]) {
            None => {
                let (place, absent) = (place as u32, size.absent_ms.is_some());
                of_key.push(Form { form, place, bytes, absent, fetched: [now; TTLS] });
                self.forms += 1;
                None
            }
            Some(known) => {
                let fresh = std::array::from_fn(|i| {
                    let most = if known.absent { size.absent_ms.unwrap_or(u32::MAX) } else { u32::MAX };
                    let fresh = now.wrapping_sub(known.fetched[i]) < TTLS_MS[i].min(most);
                    if !fresh {
                        known.fetched[i] = now;
                    }
                    fresh
                });
                let (before, old) = (known.place as usize, known.bytes);
                (known.place, known.bytes, known.absent) = (place as u32, bytes, size.absent_ms.is_some());
                let newer = self.total - self.up_to(before);
                self.add(before, -i64::from(old));
                Some(Reuse { distance: newer.max(0) as u64 + u64::from(old), fresh })
            }
        };
        self.add(place, i64::from(bytes));
        reuse
    }

    /// A key was written, or read as something that is not kept: all its replies are gone.
    pub(super) fn forget(&mut self, key: u64) {
        let Some(forms) = self.keys.remove(&key) else { return };
        for form in &forms {
            self.add(form.place as usize, -i64::from(form.bytes));
        }
        self.forms -= forms.len();
        // What is kept for growth is at most four times what is used.
        if self.keys.capacity() > PLACES_MIN && self.keys.len() * 4 < self.keys.capacity() {
            self.shrink();
        }
    }

    /// Forgets what no TTL would still hold, and keys that are not sampled any more.
    pub(super) fn retain(&mut self, now: u32, sampled: impl Fn(u64) -> bool) {
        self.keys.retain(|key, forms| {
            let live = |form: &Form| now.wrapping_sub(form.fetched[TTLS - 1]) < TTL_MAX_MS;
            forms.retain(|form| live(form) && sampled(*key));
            !forms.is_empty()
        });
        self.forms = self.keys.values().map(SmallVec::len).sum();
        self.shrink();
    }

    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        let place = size_of::<(u64, SmallVec<[Form; 1]>)>() + 1;
        let spilled: usize =
            self.keys.values().filter(|f| f.spilled()).map(|forms| forms.capacity() * size_of::<Form>()).sum();
        self.keys.capacity() * 8 / 7 * place + self.sums.capacity() * size_of::<i64>() + spilled
    }

    fn shrink(&mut self) {
        self.keys.shrink_to_fit();
        self.renumber();
        self.sums.shrink_to_fit();
    }

    /// Gives the replies the lowest places, in their order.
    fn renumber(&mut self) {
        let mut all: Vec<&mut Form> = self.keys.values_mut().flatten().collect();
        all.sort_unstable_by_key(|form| form.place);
        let places = (all.len() * 2).next_power_of_two().max(PLACES_MIN);
        self.sums.clear();
        self.sums.resize(places, 0);
        self.total = 0;
        for (place, form) in all.iter_mut().enumerate() {
            form.place = place as u32;
            self.sums[place] = i64::from(form.bytes);
            self.total += i64::from(form.bytes);
        }
        self.next = all.len();
        // From single values to sums: each is added to the one that has it.
        for i in 1..=places {
            let above = i + (i & i.wrapping_neg());
            if above <= places {
                self.sums[above - 1] += self.sums[i - 1];
            }
        }
    }

    fn add(&mut self, place: usize, bytes: i64) {
        self.total += bytes;
        let mut i = place + 1;
        while i <= self.sums.len() {
            self.sums[i - 1] += bytes;
            i += i & i.wrapping_neg();
        }
    }

    /// Bytes at this place and below.
    fn up_to(&self, place: usize) -> i64 {
        let (mut i, mut sum) = (place + 1, 0);
        while i > 0 {
            sum += self.sums[i - 1];
            i &= i - 1;
        }
        sum
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn size(bytes: u32) -> Size {
        Size { bytes, absent_ms: None }
    }

    proptest! {
        /// Distances are those of a list that is searched from its front.
        #[test]
        fn the_tree_is_the_list(steps in prop::collection::vec((0u64..20, 1u32..1000, 0u8..10), 1..400)) {
            let (mut stack, mut list) = (Stack::default(), Vec::<(u64, u32)>::new());
            for (i, (key, bytes, what)) in steps.into_iter().enumerate() {
                let at = list.iter().position(|(other, _)| *other == key);
                match what {
                    0 => {
                        stack.forget(key);
                        at.map(|at| list.remove(at));
                    }
                    1 if i % 7 == 0 => {
                        stack.retain(0, |key| key % 2 == 0);
                        list.retain(|(key, _)| key % 2 == 0);
                    }
                    _ => {
                        let found = stack.read(key, 0, size(bytes), 0);
                        let wanted = at.map(|at| list[..=at].iter().map(|(_, bytes)| u64::from(*bytes)).sum::<u64>());
                        prop_assert_eq!(found.map(|reuse| reuse.distance), wanted);
                        at.map(|at| list.remove(at));
                        list.insert(0, (key, bytes));
                    }
                }
                prop_assert_eq!(stack.forms(), list.len());
            }
        }
    }

    #[test]
    fn a_copy_lives_for_its_ttl_from_when_it_was_fetched() {
        let mut stack = Stack::default();
        let mut at = |ms: u32| stack.read(1, 0, size(10), ms).map(|reuse| reuse.fresh);
        assert_eq!(at(0), None);
        assert_eq!(at(999), Some([true; TTLS]));
        // A hit does not make it younger; then it is fetched anew by the cache of 1 s.
        assert_eq!(at(1000), Some([false, true, true, true, true]));
        assert_eq!(at(1999), Some([true; TTLS]));
        assert_eq!(at(10_500), Some([false, false, true, true, true]));
    }

    #[test]
    fn what_is_not_there_lives_shorter() {
        let (mut stack, absent) = (Stack::default(), Size { bytes: 10, absent_ms: Some(30_000) });
        stack.read(1, 0, absent, 0);
        let reuse = stack.read(1, 0, absent, 30_000).expect("it was read before");
        assert_eq!(reuse.fresh, [false; TTLS]);
    }

    #[test]
    fn time_may_come_round() {
        let mut stack = Stack::default();
        stack.read(1, 0, size(10), u32::MAX - 10);
        assert_eq!(stack.read(1, 0, size(10), 500).map(|reuse| reuse.fresh), Some([true; TTLS]));
        stack.retain(500 + TTL_MAX_MS, |_| true);
        assert_eq!(stack.forms(), 0);
    }

    #[test]
    fn forms_of_a_key_go_together() {
        let mut stack = Stack::default();
        (0..5).for_each(|form| assert_eq!(stack.read(1, form, size(10), 0), None));
        assert_eq!(stack.read(1, 0, size(10), 0).map(|reuse| reuse.distance), Some(50));
        stack.forget(1);
        assert_eq!((stack.forms(), stack.read(1, 3, size(10), 0)), (0, None));
    }
}
