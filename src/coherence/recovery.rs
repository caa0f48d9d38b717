//! The first while after upstream was away. No entry from before is trusted, so every read is a miss, and all clients that
//! were refused come at once. One flight a key is the rule anyway; beside it only so many fetches of a lane are under way at
//! once (`cache.refills_max`). Whoever comes beyond waits for a place, in order, with no more than the one request that it
//! stands at: its client is not read meanwhile, so what waits is bounded by the clients there are.
//!
//! The limit holds from the lane's return until for a while nobody has had to wait: then what is asked for is read, and the
//! limit would only cost.

use std::cell::Cell;
use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::lane::Lane;
use crate::observe::clock;

/// For so long after the last wait, or after the lane's return, places are given out.
const QUIET: u64 = 10_000_000_000;

/// The right to one fetch; dropping it gives it back.
pub(crate) type Place = OwnedSemaphorePermit;

pub(super) struct Recovery {
    /// Fair: who waits comes before who asks now.
    places: Arc<Semaphore>,
    until: Cell<u64>,
}

impl Recovery {
    pub(super) fn new(places: usize) -> Recovery {
        Recovery { places: Arc::new(Semaphore::new(places)), until: Cell::new(0) }
    }
}

impl Lane {
    /// It is back, or somebody has to wait.
    pub(crate) fn recovers(&self, now: u64) {
        self.recovery.until.set(now + QUIET);
    }

    pub(crate) fn is_recovering(&self, now: u64) -> bool {
        now < self.recovery.until.get()
    }

    /// A place, where there is one and nobody waits for it.
    pub(crate) fn try_place(&self) -> Option<Place> {
        self.recovery.places.clone().try_acquire_owned().ok()
    }

    /// A place when it is this caller's turn; none where the lane is not what it was: lost, gone, held up or back.
    pub(crate) async fn place(&self) -> Option<Place> {
        let changed = self.changed.notified();
        self.recovers(clock::now());
        tokio::select! {
            biased;
            place = self.recovery.places.clone().acquire_owned() => place.ok(),
            () = changed => None,
        }
    }
}
