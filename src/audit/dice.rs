//! Numbers without a pattern (xorshift), from a seed that the report names, so that a run can be tried again. Not the
//! same run: the network and the scheduler have dice of their own.

use std::time::Duration;

pub(super) struct Dice(u64);

impl Dice {
    pub(super) fn new(seed: u64, of: u64) -> Dice {
        let mixed = seed.wrapping_add(of.wrapping_mul(0x9e37_79b9_7f4a_7c15)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        Dice(mixed | 1)
    }

    pub(super) fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n.max(1)
    }

    /// One of some, of which there is at least one.
    pub(super) fn of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len() as u64) as usize]
    }

    pub(super) fn time(&mut self, up_to: Duration) -> Duration {
        Duration::from_micros(self.below(up_to.as_micros() as u64 + 1))
    }
}
