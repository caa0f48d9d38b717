//! Reading again what is hit near the end of its ttl (`refresh_ahead`) or beyond it (`stale_while_revalidate`). The hit has
//! been answered; behind it the same read and its PTTL go up, as for a miss, with a token of their own and nobody who waits.
//!
//! **Why this breaks nothing.** To the L1 it is a fetch like any other (R11, R12): it stores only what its token allows, and
//! what it stores is upstream's state at its position of the stream. Until then, and if it stores nothing, the entry is what
//! it was: every invalidation, write, flush and loss of the lane ends it, and the lease is asked at every hit.
//!
//! **How many.** One at a time for a key, and in a second at most a tenth of the commands that the lane has sent in the one
//! before, or [`FLOOR`]. What is above that is counted and not done: the entry then ends when it ends, and the next read of
//! it is a miss. While a lane is held up, lost or silent nothing is read again. While a lane recovers (`recovery`) these readings
//! need no place of `cache.refills_max`: hits alone cause them, which is what there is none of then, and they have the
//! bound above.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use bytes::BytesMut;
use smallvec::SmallVec;

use super::lane::Lane;
use super::wait::{End, Fetch, FetchRead, Origin};
use crate::cache::{Entry, FormId, StripeId};
use crate::config::Rule;
use crate::observe::reasons::{Again, Method, Reread};
use crate::resp::build;
use crate::worker::Ctx;

/// Of the commands that a lane sends, one in so many may be on this account.
const SHARE: u64 = 10;

/// A reading is two commands, the read and its PTTL.
const COMMANDS: u64 = 2;

/// A lane that hits keep quiet sends hardly anything, and has the most to read again: so many readings a second are always
/// allowed. A server that answers 100,000 commands a second does not notice 100.
const FLOOR: u64 = 50;

/// Under way at once on one lane: a slow upstream is not asked for more than that.
const UNDER_WAY_MAX: usize = 64;

const SECOND: u64 = 1_000_000_000;

/// What reads an entry again.
pub(crate) enum Question<'a> {
    /// GET; the hit was by this command.
    Get(Method),
    Form {
        method: Method,
        raw: &'a [u8],
        read: FetchRead,
    },
}

impl Question<'_> {
    fn method(&self) -> Method {
        match self {
            Question::Get(method) | Question::Form { method, .. } => *method,
        }
    }

    fn id(&self) -> Option<FormId> {
        match self {
            Question::Get(_) => None,
            Question::Form { read, .. } => read.id.clone(),
        }
    }
}

/// What a lane has read again, and what it may.
#[derive(Default)]
pub(super) struct Rereads {
    /// When the present second began.
    since: Cell<u64>,
    /// Commands sent in it, ours included.
    sent: Cell<u64>,
    /// Commands sent in the second before.
    before: Cell<u64>,
    /// Readings sent in the present second.
    spent: Cell<u64>,
    /// The stripes of the keys that are being read again; two keys of one stripe wait for each other.
    under_way: RefCell<SmallVec<[StripeId; 8]>>,
}

impl Rereads {
    /// A command goes up, whoever's.
    pub(super) fn note_sent(&self) {
        self.sent.set(self.sent.get() + 1);
    }

    #[cfg(test)]
    pub(super) fn are_over(&self) -> bool {
        self.under_way.borrow().is_empty()
    }

    fn reads(&self, stripe: StripeId) -> bool {
        self.under_way.borrow().contains(&stripe)
    }

    fn allow(&self, now: u64) -> bool {
        let passed = now.saturating_sub(self.since.get());
        if passed >= SECOND {
            // After a longer while the mean of it stands for its last second.
            self.before.set(self.sent.take().saturating_mul(SECOND) / passed);
            self.spent.set(0);
            self.since.set(now);
        }
        let most = (self.before.get() / (SHARE * COMMANDS)).max(FLOOR);
        self.spent.get() < most && self.under_way.borrow().len() < UNDER_WAY_MAX
    }

    fn begin(&self, stripe: StripeId) {
        self.spent.set(self.spent.get() + 1);
        self.under_way.borrow_mut().push(stripe);
    }

    pub(super) fn end(&self, stripe: StripeId) {
        let mut under_way = self.under_way.borrow_mut();
        if let Some(at) = under_way.iter().position(|other| *other == stripe) {
            under_way.swap_remove(at);
        }
    }
}

impl Lane {
    /// A hit has been answered from an entry that is due: tells upstream, or has it read again.
    #[cold]
    pub(crate) fn after_hit<'a>(
        &self,
        ctx: &Ctx,
        now: u64,
        key: &[u8],
        entry: &Entry,
        question: impl FnOnce() -> Question<'a>,
    ) {
        if now >= entry.touch.at() {
            ctx.touches.note(self, ctx, key, entry, now);
        }
        if now >= entry.soft {
            self.read_again(ctx, now, key, entry, &question());
        }
    }

    fn read_again(&self, ctx: &Ctx, now: u64, key: &[u8], entry: &Entry, question: &Question<'_>) {
        let stripe = ctx.l1.stripe(key);
        if !self.caches() || !self.is_live() || self.rereads.reads(stripe) {
            return;
        }
        // The rules may have changed, and drop the entry in a moment.
        let Ok(keep) = ctx.judge(key, question.method()).keep else { return };
        let cause = cause(keep.terms(), entry, now);
        let count = |result: Reread| ctx.metrics.rereads[cause as usize].inc(result);
        if self.is_held_up() || self.is_gone() {
            return count(Reread::HeldUp);
        }
        if !self.rereads.allow(now) {
            return count(Reread::OverBudget);
        }
        let flight = (Rc::from(key), question.id());
        // A client whose fence is newer than the entry is asking already.
        if self.inner.borrow().flights.contains_key(&flight) {
            return;
        }
        let Some(token) = ctx.l1.token(key, self.epoch()) else { return };
        self.rereads.begin(stripe);
        let origin = Origin::Again(cause);
        match question {
            Question::Get(_) => {
                let fetch = Fetch::unasked(flight.0, FetchRead::GET, token, now, keep, origin);
                self.send_fetch(now, &get(key), fetch);
            }
            Question::Form { raw, read, .. } => {
                let fetch = Fetch::unasked(flight.0, read.clone(), token, now, keep, origin);
                self.send_fetch(now, raw, fetch);
            }
        }
    }

    /// A reading has come to its end.
    pub(super) fn over(&self, ctx: &Ctx, fetch: &Fetch, end: End) {
        match &fetch.origin {
            Origin::Clients => {}
            Origin::Again(cause) => {
                self.rereads.end(fetch.token.stripe);
                let result = match end {
                    End::Stored { .. } => Reread::Stored,
                    End::Lost => Reread::Lost,
                    End::Refused(_) | End::Discarded(_) => Reread::Discarded,
                };
                ctx.metrics.rereads[*cause as usize].inc(result);
            }
            Origin::Warming(loading) => loading.ended(ctx, end),
        }
    }
}

fn cause(terms: &Rule, entry: &Entry, now: u64) -> Again {
    let until = |ahead| entry.soft.saturating_add(super::reader::nanos(ahead));
    match terms.refresh_ahead {
        Some(ahead) if terms.stale_while_revalidate.is_zero() || now < until(ahead) => Again::Ahead,
        _ => Again::Stale,
    }
}

/// `GET key`.
pub(super) fn get(key: &[u8]) -> BytesMut {
    let mut raw = BytesMut::new();
    build::command(&mut raw, &[b"GET", key]);
    raw
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many readings are allowed in each of these seconds, each ended at once, while others send so many commands.
    fn allowed(rereads: &Rereads, from: u64, others: &[u64]) -> Vec<u64> {
        let in_second = |(i, others): (usize, &u64)| {
            let now = from + i as u64 * SECOND;
            let mut count = 0;
            while rereads.allow(now) {
                rereads.begin(StripeId::numbered(1));
                rereads.end(StripeId::numbered(1));
                (0..COMMANDS).for_each(|_| rereads.note_sent());
                count += 1;
            }
            (0..*others).for_each(|_| rereads.note_sent());
            count
        };
        others.iter().enumerate().map(in_second).collect()
    }

    #[test]
    fn a_tenth_of_what_was_sent_and_a_few_on_a_quiet_lane() {
        let rereads = Rereads::default();
        assert_eq!(allowed(&rereads, SECOND, &[0, 0, 100_000, 100_000, 0, 0, 0]), [50, 50, 50, 5005, 5500, 550, 55]);
        // A tenth of all commands, these included, is a ninth of the others'.
        assert_eq!(allowed(&rereads, 100 * SECOND, &[10_000; 9])[8], 555);
    }

    #[test]
    fn nothing_is_saved_up() {
        let rereads = Rereads::default();
        (0..100_000).for_each(|_| rereads.note_sent());
        assert_eq!(allowed(&rereads, 1000 * SECOND, &[0]), [50]);
    }

    #[test]
    fn no_more_under_way_than_upstream_can_be_asked_at_once() {
        let rereads = Rereads::default();
        (0..1_000_000).for_each(|_| rereads.note_sent());
        let mut stripes = (0..).map(StripeId::numbered);
        while rereads.allow(SECOND) {
            rereads.begin(stripes.next().unwrap());
        }
        assert_eq!(rereads.under_way.borrow().len(), UNDER_WAY_MAX);
        rereads.end(StripeId::numbered(3));
        assert!(rereads.allow(SECOND) && !rereads.reads(StripeId::numbered(3)));
    }
}
