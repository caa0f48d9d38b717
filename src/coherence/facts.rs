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

use std::sync::atomic::{AtomicU64, Ordering};

use crate::cache::L1;
use crate::observe::reasons::Bypass;

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
        if now.saturating_sub(f) > max_staleness {
            return Err(Bypass::Lease);
        }
        if f <= fence {
            return Err(Bypass::Fence);
        }
        // Behind F: a flush that lies before it in the stream is seen here.
        Ok(Vouched { epoch, flush_gen: l1.flush_gen() })
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
