//! What a lane vouches for, as threads other than its own see it (R8, decision 3). The lane's owner writes, after the
//! effects of every frame; workers that answer hits read.
//!
//! **The order.** A reader takes `F`, then the epoch, then the L1's `flush_gen`, and only then looks an entry up. The owner
//! applies a frame to the L1 first and publishes `F` after it. So whoever sees an `F` sees every effect of the frames before
//! it: an entry that is still found then is upstream's state at that frame's position or a later one. The other way round
//! an entry could be taken, its invalidation be applied behind the reader's back, and the stale entry be served on the
//! `F` that was published after the invalidation (C24).
//!
//! `F` before the epoch, because each connection has its own `F`: the owner publishes the new epoch before the first `F` of
//! it, so a reader that sees the new `F` sees the new epoch too. The other way round the old epoch's entries could be
//! served on the new connection's lease. The old `F` with the new epoch is harmless: entries of the new epoch were all read
//! by commands sent after the old `F`.

use std::sync::atomic::Ordering;

use crate::cache::L1;
use crate::mutation::{self, Rule};
use crate::observe::reasons::Bypass;
use crate::sync::AtomicU64;

/// A reader on another thread notes a read no more often than this: the lane looks for reads within the last 30 s, and a
/// line of memory that two cores write to costs more than a hit.
const NOTE_EVERY: u64 = 10_000_000;

#[derive(Debug, Default)]
pub(crate) struct LaneFacts {
    /// 0: nothing may be served, for whatever reason.
    epoch: AtomicU64,
    f: AtomicU64,
    /// When another thread last answered a hit, or had to ask (R5).
    last_read: Apart,
}

/// On a line of its own: readers write to it, and must not take from each other the line they read.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Apart(AtomicU64);

/// What a reader may serve: entries of this epoch and this `flush_gen`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Vouched {
    pub(crate) epoch: u64,
    pub(crate) flush_gen: u64,
}

impl LaneFacts {
    /// By the lane's owner, after a frame's effects. `epoch` 0: nothing may be served.
    pub(super) fn publish(&self, epoch: u64, f: u64) {
        // Mostly neither has changed, and a line that is not written stays with its readers.
        if self.epoch.load(Ordering::Relaxed) != epoch {
            self.epoch.store(epoch, Ordering::Release);
        }
        if self.f.load(Ordering::Relaxed) != f {
            self.f.store(f, Ordering::Release);
        }
    }

    /// R8, first half, for a reader on another thread. To be called before an entry is looked up.
    pub(crate) fn vouch(&self, l1: &L1, now: u64, fence: u64, max_staleness: u64) -> Result<Vouched, Bypass> {
        let f = self.f.load(Ordering::Acquire);
        let epoch = self.epoch.load(Ordering::Acquire);
        if epoch == 0 {
            return Err(Bypass::NotLive);
        }
        if now.saturating_sub(f) > max_staleness && !mutation::off(Rule::Lease) {
            return Err(Bypass::Lease);
        }
        if f <= fence && !mutation::off(Rule::Fence) {
            return Err(Bypass::Fence);
        }
        // Behind F: a flush that lies before it in the stream is seen here.
        Ok(Vouched { epoch, flush_gen: l1.flush_gen() })
    }

    /// Whether other threads are told nothing that the lane itself would not say now. Less is harmless.
    pub(super) fn promise_no_more(&self, epoch: u64, f: u64) -> bool {
        let told = self.epoch.load(Ordering::Relaxed);
        told == 0 || (told == epoch && self.f.load(Ordering::Relaxed) <= f)
    }

    /// A cacheable read was asked for at `now`.
    pub(crate) fn note_read(&self, now: u64) {
        if now.saturating_sub(self.last_read.0.load(Ordering::Relaxed)) > NOTE_EVERY {
            self.last_read.0.store(now, Ordering::Relaxed);
        }
    }

    pub(super) fn last_read(&self) -> u64 {
        self.last_read.0.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    //! The orders that a reader on another thread depends on, under a systematic scheduler, and each of them reversed (C24).

    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;
    use std::sync::atomic::Ordering::SeqCst;

    use super::*;
    use crate::cache::{self, Bounds, Due, Entry, Value};
    use crate::observe::metrics::Metrics;
    use crate::observe::patterns::PatternId;
    use crate::sync::{model, point};

    const OLD: u64 = 5;
    const NEW: u64 = 6;

    /// B. A command is answered that was sent at 10; a foreign write executes at 20; another command, sent at 30, is answered.
    /// At 35 only the second one vouches for anything, and no entry from before 20 may be served.
    const B: u64 = 10;
    const NOW: u64 = 35;

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Wrong {
        Nothing,
        /// The entry is looked up before F is read.
        EntryFirst,
        /// The epoch is read before F.
        EpochFirst,
        /// F is published before the frame has been applied.
        PublishedFirst,
        /// F is published before the epoch.
        FPublishedFirst,
    }

    #[derive(Clone, Copy)]
    enum Scene {
        /// The write is announced on the lane.
        Push,
        /// The connection is lost, and the write happens before there is another.
        Loss,
    }

    fn store(l1: &L1, key: &[u8]) {
        let token = l1.token(key, OLD).expect("nothing pending");
        let entry = Entry {
            epoch: OLD,
            lane: 1,
            flush_gen: token.flush_gen,
            deadline: u64::MAX,
            soft: u64::MAX,
            touch: Due::never(),
            expires: u64::MAX,
            t_sent: 1,
            pattern: PatternId::PLAIN,
            arm: crate::observe::arms::ArmId::NONE,
            value: Value::Nil,
        };
        l1.insert(key, &token, entry).expect("stored");
    }

    fn publish(facts: &LaneFacts, wrong: Wrong, epoch: u64, f: u64) {
        if wrong == Wrong::FPublishedFirst {
            facts.f.store(f, Ordering::Release);
        }
        facts.publish(epoch, f);
    }

    /// The lane's own thread.
    fn own(scene: Scene, wrong: Wrong, l1: &L1, facts: &LaneFacts, key: &[u8]) {
        match scene {
            Scene::Push => {
                if wrong == Wrong::PublishedFirst {
                    publish(facts, wrong, OLD, 30);
                }
                l1.invalidate(key);
                publish(facts, wrong, OLD, 30);
            }
            // The frames of one read are applied in one go, so what a reader sees need not have every state between.
            Scene::Loss => {
                point();
                publish(facts, wrong, NEW, 30);
            }
        }
    }

    /// Whether the old entry is served.
    fn serves(wrong: Wrong, l1: &L1, facts: &LaneFacts, key: &[u8]) -> bool {
        let early = if wrong == Wrong::EntryFirst { l1.get(key) } else { None };
        let vouched = if wrong == Wrong::EpochFirst {
            let epoch = facts.epoch.load(Ordering::Acquire);
            let f = facts.f.load(Ordering::Acquire);
            (NOW - f <= B && epoch != 0).then(|| Vouched { epoch, flush_gen: l1.flush_gen() })
        } else {
            facts.vouch(l1, NOW, 0, B).ok()
        };
        let Some(vouched) = vouched else { return false };
        let found = if wrong == Wrong::EntryFirst { early } else { l1.get(key) };
        found.is_some_and(|forms| cache::usable(&forms, vouched.epoch, vouched.flush_gen, NOW).is_some())
    }

    fn served(scene: Scene, wrong: Wrong, schedules: usize) -> usize {
        let bounds = Bounds { max_bytes: 1 << 20, max_entries: None, lru: true };
        let l1 = Arc::new(L1::new(bounds, Arc::new(Metrics::new(":", 10))));
        let (keys, stale) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
        let seen = stale.clone();
        model::check(24, schedules, move || {
            let key = format!("key:{}", keys.fetch_add(1, SeqCst)).into_bytes();
            let facts = Arc::<LaneFacts>::default();
            store(&l1, &key);
            facts.publish(OLD, 10);
            let lane = {
                let (l1, facts, key) = (l1.clone(), facts.clone(), key.clone());
                shuttle::thread::spawn(move || own(scene, wrong, &l1, &facts, &key))
            };
            if serves(wrong, &l1, &facts, &key) {
                stale.fetch_add(1, SeqCst);
            }
            lane.join().expect("no panic");
            l1.invalidate(&key);
        });
        seen.load(SeqCst)
    }

    #[test]
    fn f_is_read_before_the_entry_and_published_after_the_frame() {
        assert_eq!(served(Scene::Push, Wrong::Nothing, model::schedules(5_000)), 0);
        assert!(served(Scene::Push, Wrong::EntryFirst, 2_000) > 0);
        assert!(served(Scene::Push, Wrong::PublishedFirst, 2_000) > 0);
    }

    #[test]
    fn f_is_read_before_the_epoch_and_published_after_it() {
        assert_eq!(served(Scene::Loss, Wrong::Nothing, model::schedules(5_000)), 0);
        assert!(served(Scene::Loss, Wrong::EpochFirst, 2_000) > 0);
        assert!(served(Scene::Loss, Wrong::FPublishedFirst, 2_000) > 0);
    }

    #[test]
    fn what_is_not_vouched_for_has_its_reason() {
        let bounds = Bounds { max_bytes: 1 << 20, max_entries: None, lru: true };
        let l1 = L1::new(bounds, Arc::new(Metrics::new(":", 10)));
        let facts = LaneFacts::default();
        assert_eq!(facts.vouch(&l1, 35, 0, 10), Err(Bypass::NotLive));
        facts.publish(OLD, 20);
        assert_eq!(facts.vouch(&l1, 35, 0, 10), Err(Bypass::Lease));
        assert_eq!(facts.vouch(&l1, 30, 20, 10), Err(Bypass::Fence));
        assert_eq!(facts.vouch(&l1, 30, 19, 10), Ok(Vouched { epoch: OLD, flush_gen: 0 }));
        facts.publish(0, 20);
        assert_eq!(facts.vouch(&l1, 30, 19, 10), Err(Bypass::NotLive));
    }
}
