//! Several keys at one moment, for threads that are not the writer's: without its thread, an invalidation can be applied
//! between two look-ups, and an old value of one key stand beside a new one of another.

use std::sync::Arc;

use smallvec::SmallVec;

use super::{Forms, L1, StripeId};

impl L1 {
    /// The forms of all keys as they stood together at one moment of this call; none where one is missing, is not `usable`,
    /// or where something has happened to any of their stripes meanwhile.
    ///
    /// Each stripe's generation is read *before* its key is looked up, and once more after the *last* look-up. Whatever
    /// drops a key raises the generation in the same step. So where none has moved, every key that was found was still
    /// there when the last one was.
    pub(crate) fn at_one_moment<'k>(
        &self,
        keys: impl Iterator<Item = &'k [u8]>,
        usable: impl Fn(&Forms) -> bool,
    ) -> Option<SmallVec<[Arc<Forms>; 16]>> {
        let flush_gen = self.flush_gen();
        let mut seen: SmallVec<[(StripeId, u64); 16]> = SmallVec::new();
        let mut found = SmallVec::new();
        for key in keys {
            let stripe = self.stripe(key);
            seen.push((stripe, self.generation(stripe)));
            found.push(self.get(key).filter(|forms| usable(forms))?);
        }
        let unmoved = seen.iter().all(|(stripe, generation)| self.generation(*stripe) == *generation);
        (unmoved && self.flush_gen() == flush_gen).then_some(found)
    }
}
