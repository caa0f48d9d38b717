//! How much upstream holds, as it last said (`coherence::size` asks): nothing while that is not known.

use super::counters::Gauge;

#[derive(Default)]
pub(crate) struct UpstreamSize {
    /// One more than it is; 0: not known.
    memory: Gauge,
    keys: Gauge,
}

impl UpstreamSize {
    /// Bytes that it uses, and keys in all of its databases.
    pub(crate) fn set(&self, memory: Option<u64>, keys: Option<u64>) {
        let shifted = |value: Option<u64>| value.map_or(0, |value| value.saturating_add(1));
        self.memory.set(shifted(memory));
        self.keys.set(shifted(keys));
    }

    pub(crate) fn memory(&self) -> Option<u64> {
        self.memory.get().checked_sub(1)
    }

    pub(crate) fn keys(&self) -> Option<u64> {
        self.keys.get().checked_sub(1)
    }
}
