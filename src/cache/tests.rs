//! The L1 alone: bounds, expiry, who may store.

use super::*;

/// What tests of other modules break, to prove that their judge sees it.
impl L1 {
    pub(crate) fn forget_generation(&self, key: &[u8]) {
        self.stripes[self.stripe(key).0 as usize].lock().generation = 0;
    }

    pub(crate) fn forget_flushes(&self) {
        self.flush_gen.store(0, Ordering::Release);
    }

    /// Hides a stripe's pending writes; returns how many.
    pub(crate) fn hide_pending(&self, key: &[u8]) -> u32 {
        std::mem::take(&mut self.stripes[self.stripe(key).0 as usize].lock().pending)
    }

    pub(crate) fn show_pending(&self, key: &[u8], count: u32) {
        self.stripes[self.stripe(key).0 as usize].lock().pending += count;
    }
}
