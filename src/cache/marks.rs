//! What the L1 keeps with a stored value for its books: its number, its tags, the share of its rule. Most values have none of
//! it. Marks are made where a value is stored and are given back once, by moka's listener when the value has left.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::shares::{self, Share, Shares};
use super::tags::{Place, Tags};
use super::{Forms, L1, Token, weigh};
use crate::observe::reasons::Discard;

/// What a rule says of an entry beside its life. Empty for most.
#[derive(Debug, Default)]
pub(crate) struct Labels<'r> {
    pub(crate) tags: Vec<Tag<'r>>,
    pub(crate) share: Option<ShareOf<'r>>,
}

#[derive(Debug)]
pub(crate) struct Tag<'r> {
    pub(crate) text: Vec<u8>,
    /// What it was filled in from.
    pub(crate) template: &'r str,
}

/// The part of the L1 that a rule's entries take at most.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ShareOf<'r> {
    pub(crate) rule: &'r str,
    pub(crate) max_bytes: u64,
}

#[derive(Debug)]
pub(crate) struct Marks {
    pub(super) number: u64,
    pub(super) places: Box<[Place]>,
    /// Invalidations of tags before the oldest reading in it was asked for.
    since: u64,
    share: Option<Arc<Share>>,
    /// It goes to make room within its share.
    for_share: AtomicBool,
}

impl Marks {
    /// What the value takes for them, records included.
    pub(super) fn bytes(&self, key: &[u8]) -> usize {
        let places: usize = self.places.iter().map(|place| size_of::<Place>() + place.bytes(key)).sum();
        let share = if self.share.is_some() { shares::RECORD + key.len() } else { 0 };
        size_of::<Marks>() + places + share
    }

    pub(crate) fn tags(&self) -> impl Iterator<Item = &[u8]> {
        self.places.iter().map(Place::name)
    }

    pub(super) fn goes_for_share(&self) -> bool {
        self.for_share.load(Ordering::Relaxed)
    }
}

impl L1 {
    /// Writes into the books that `forms` is about to be stored under `key`, and leaves in it what the books must be told
    /// when it leaves. What stood there before has its tags still in it, as long as anything of it is kept. An error means
    /// that it may not be stored, and that nothing is in the books.
    pub(super) fn mark(
        &self,
        key: &[u8],
        token: &Token,
        labels: &Labels<'_>,
        old: Option<&Marks>,
        forms: &mut Forms,
    ) -> Result<(), Discard> {
        if labels.tags.is_empty() && labels.share.is_none() && old.is_none_or(|old| old.places.is_empty()) {
            return Ok(());
        }
        let number = self.books.number();
        let mut places: Vec<Place> = Vec::with_capacity(labels.tags.len());
        let kept = old.map_or(&[][..], |old| &old.places);
        let wanted = labels.tags.iter().map(|tag| (&tag.text[..], tag.template));
        for (tag, template) in wanted.chain(kept.iter().map(|place| (place.name(), place.template()))) {
            if !places.iter().any(|place| place.name() == tag) {
                places.push(self.books.tags.enter(tag, template, key, number));
            }
        }
        let since = old.map_or(token.tag_gen, |old| old.since.min(token.tag_gen));
        let share = labels.share.map(|share| self.books.shares.of(share.rule));
        let marks = Marks { number, places: places.into(), since, share, for_share: AtomicBool::new(false) };
        forms.marks = Some(Box::new(marks));
        self.verdict(key, token, labels, forms).inspect_err(|_| {
            if let Some(marks) = forms.marks.take() {
                self.books.leave(&marks);
            }
        })
    }

    /// The records of `forms` are written; whether it may be stored, which then counts towards its rule's share.
    fn verdict(&self, key: &[u8], token: &Token, labels: &Labels<'_>, forms: &Forms) -> Result<(), Discard> {
        let Some(marks) = &forms.marks else { return Ok(()) };
        if self.books.voids(token.tag_gen, marks) {
            return Err(Discard::Sweep);
        }
        let (Some(limit), Some(share)) = (labels.share, &marks.share) else { return Ok(()) };
        let weight = weigh(self.floor, key, forms);
        if u64::from(weight) > limit.max_bytes {
            return Err(Discard::TooLarge);
        }
        share.enter(marks.number, key, weight);
        Ok(())
    }

    /// The value numbered `own` has been stored; the oldest of its rule go until the rule is within its share. Outside of
    /// any stripe's lock.
    pub(super) fn make_room(&self, limit: ShareOf<'_>, own: u64) {
        let share = self.books.shares.of(limit.rule);
        for _ in 0..shares::EVICTED_MAX {
            let Some((number, key)) = share.too_much(limit.max_bytes, own) else { return };
            self.evict(&key, number);
        }
    }

    /// As moka does for want of room: nothing has happened to the key, so readings of it that are under way may be stored.
    fn evict(&self, key: &[u8], number: u64) {
        let _alone = self.stripes[self.stripe(key).0 as usize].lock();
        let forms = self.store.get(key);
        // Else another value has been stored there since, or none is left.
        if let Some(marks) = forms.as_ref().and_then(|forms| forms.marks.as_ref()).filter(|m| m.number == number) {
            marks.for_share.store(true, Ordering::Relaxed);
            self.store.invalidate(key);
        }
    }

    /// What the entries of this rule take, where it has a share.
    pub(crate) fn share_bytes(&self, rule: &str) -> Option<u64> {
        self.books.shares.bytes(rule)
    }

    /// What `tag` was filled in from, if anything that is stored has it.
    pub(crate) fn tag_template(&self, tag: &[u8]) -> Option<Box<str>> {
        self.books.tags.template(tag)
    }
}

/// What is known of stored values beside the store. Written under a stripe's lock, and by moka's listener on any thread.
pub(super) struct Books {
    pub(super) tags: Tags,
    pub(super) shares: Shares,
    numbers: AtomicU64,
}

impl Books {
    pub(super) fn new(max_bytes: u64) -> Books {
        Books { tags: Tags::new(max_bytes), shares: Shares::default(), numbers: AtomicU64::new(0) }
    }

    /// That no stored value has had; ascending under one stripe's lock, and never 0.
    fn number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Whether a tag among `marks` has been invalidated since there were `generation` such invalidations.
    fn voids(&self, generation: u64, marks: &Marks) -> bool {
        marks.tags().any(|tag| self.tags.voids(generation, tag))
    }

    /// Whether an invalidation of a tag that has begun drops this value, or has done so already.
    pub(super) fn is_void(&self, forms: &Forms) -> bool {
        forms.marks.as_ref().is_some_and(|marks| self.voids(marks.since, marks))
    }

    /// A value has left the store, whatever for, or is not stored after all.
    pub(super) fn leave(&self, marks: &Marks) {
        marks.places.iter().for_each(|place| self.tags.leave(place, marks.number));
        if let Some(share) = &marks.share {
            share.leave(marks.number);
        }
    }
}
