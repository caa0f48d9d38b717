//! The L1: ready entries in moka, and beside them our own *stripes*, which decide who may store. Keys are bare names:
//! databases and users live inside an entry, so that a push or a write of anybody drops the name for all (R7, R14).
//!
//! **Who may store.** A reading may be stored only with a [`Token`] taken before its command was sent, and only if nothing
//! has happened to the key's stripe since: every write, push and invalidation bumps the stripe's generation (R11, R12).
//! Storing, bumping and removing happen under the stripe's lock, so a store that lost the race is never seen, not even for
//! a moment.
//!
//! **Why a hit needs no lock.** `begin_write` removes the entry and raises `pending` in one step under the lock, and nothing
//! is stored while `pending > 0`. So an entry that is found was valid when no write of ours was under way; a hit is ordered
//! before any write that begins after the look-up, and that write is sent only afterwards. `end_write` has nothing to
//! remove for the same reason.
//!
//! What this module does not do: it knows no lane, no lease and no fence. The caller has checked those *before* it looks
//! here (R8) and hands over the epoch it checked.

mod entry;
mod form;
mod large;
mod marks;
mod shares;
mod snapshot;
mod sweep;
mod tags;

use std::hash::BuildHasher;
use std::sync::atomic::Ordering;
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use moka::notification::RemovalCause;
use moka::policy::EvictionPolicy;
use moka::sync::Cache;

pub(crate) use entry::{Due, Entry, Forms, Value};
pub(crate) use form::{Displaced, FormEntry, FormId};
pub(crate) use large::Large;
pub(crate) use marks::{Labels, ShareOf, Tag};
pub(crate) use sweep::{Matcher, Sweep};

use crate::mutation::{self, Rule};
use crate::observe::clock;
use crate::observe::metrics::Metrics;
use crate::observe::reasons::{Discard, Evict};
use crate::sync::{self, AtomicU64, Mutex};
use marks::{Books, Marks};

/// Stripes of generations and pending writes. 65,536 x 16 bytes = 1 MiB; with a million keys in use a write touches the
/// generation of 15 others, which costs those at most a store they were just about to make.
const STRIPES: usize = 1 << 16;

/// What moka, the allocator and our own headers add to an entry of one form. Measured: 500,000 entries of 10 and of 100
/// bytes under keys of 12 take 445 and 451 bytes each beside key, reply and `Entry` (`entries_weigh_what_they_take`).
const OVERHEAD: usize = 450;

pub(crate) type Key = Box<[u8]>;

/// How the L1 is bounded; see `cache` in the configuration.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    pub(crate) max_bytes: u64,
    pub(crate) max_entries: Option<u64>,
    pub(crate) lru: bool,
}

#[derive(Default)]
struct Stripe {
    /// Grows with everything that may have changed a key of this stripe.
    generation: u64,
    /// Writes of ours that have been sent, or are about to be, and are not answered.
    pending: u32,
}

/// A stripe's number; all that a write must remember of its keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct StripeId(u16);

impl StripeId {
    pub(crate) fn number(self) -> u16 {
        self.0
    }

    #[cfg(test)]
    pub(crate) fn numbered(number: u16) -> StripeId {
        StripeId(number)
    }
}

/// The right to store one reading: void as soon as anything happens to the key's stripe, to the L1 or to the lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Token {
    pub(crate) stripe: StripeId,
    pub(crate) generation: u64,
    pub(crate) flush_gen: u64,
    pub(crate) sweep_gen: u64,
    /// Invalidations of tags before it.
    pub(crate) tag_gen: u64,
    pub(crate) epoch: u64,
}

pub(crate) struct L1 {
    store: Cache<Key, Arc<Forms>, foldhash::fast::RandomState>,
    /// How long entries stay behind their deadline.
    linger: Arc<std::sync::atomic::AtomicU64>,
    stripes: Arc<[Mutex<Stripe>]>,
    flush_gen: AtomicU64,
    /// Grows with every sweep: what was sent before is not stored after. Entries do not carry it, the sweep finds them.
    sweep_gen: AtomicU64,
    sweeper: OnceLock<Option<SyncSender<sweep::Job>>>,
    /// Tags and shares of what is stored.
    books: Arc<Books>,
    /// What every entry weighs at least.
    floor: u64,
    /// The sum of all stripes' `pending`.
    pending: AtomicU64,
    hasher: foldhash::fast::RandomState,
}

/// Entries are freed by moka when nobody will be served their last form any more: at its deadline, or so much later as an
/// outage may need it. This only frees memory: whether an entry may be served is decided by its own deadline, on our clock
/// (decision 2), and in an outage by `coherence::stale`.
struct FreeAtDeadline {
    linger: Arc<std::sync::atomic::AtomicU64>,
}

impl FreeAtDeadline {
    fn remaining(&self, forms: &Forms) -> Option<Duration> {
        let linger = self.linger.load(Ordering::Relaxed);
        let last = forms.all().map(|e| e.needed_until(linger)).max().unwrap_or(0);
        Some(Duration::from_nanos(last.saturating_sub(clock::now())))
    }
}

impl moka::Expiry<Key, Arc<Forms>> for FreeAtDeadline {
    fn expire_after_create(&self, _: &Key, forms: &Arc<Forms>, _: Instant) -> Option<Duration> {
        self.remaining(forms)
    }

    fn expire_after_update(&self, _: &Key, forms: &Arc<Forms>, _: Instant, _: Option<Duration>) -> Option<Duration> {
        self.remaining(forms)
    }
}

impl L1 {
    pub(crate) fn new(bounds: Bounds, metrics: Arc<Metrics>) -> L1 {
        // An entry never weighs less than its share of `max_bytes`, so `max_entries` holds as well (moka counts one weight).
        let floor = bounds.max_entries.map_or(0, |n| bounds.max_bytes.div_ceil(n.max(1)));
        let books = Arc::new(Books::new(bounds.max_bytes));
        let in_listener = books.clone();
        let policy = if bounds.lru { EvictionPolicy::lru() } else { EvictionPolicy::tiny_lfu() };
        let linger: Arc<std::sync::atomic::AtomicU64> = Arc::default();
        let store = Cache::builder()
            .max_capacity(bounds.max_bytes)
            .eviction_policy(policy)
            .weigher(move |key: &Key, forms: &Arc<Forms>| weigh(floor, key, forms))
            .expire_after(FreeAtDeadline { linger: linger.clone() })
            .eviction_listener(move |_, forms, cause| note_removal(&metrics, &in_listener, &forms, cause))
            .build_with_hasher(foldhash::fast::RandomState::default());
        let stripes = (0..STRIPES).map(|_| Mutex::default()).collect();
        L1 {
            store,
            linger,
            stripes,
            flush_gen: AtomicU64::new(0),
            sweep_gen: AtomicU64::new(0),
            sweeper: OnceLock::new(),
            books,
            floor,
            pending: AtomicU64::new(0),
            hasher: foldhash::fast::RandomState::default(),
        }
    }

    /// What is stored from now on stays so much longer than it is served, for outages.
    pub(crate) fn set_linger(&self, linger: Duration) {
        self.linger.store(u64::try_from(linger.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// The forms of `key` that are stored now. The caller picks the one of its epoch with [`usable`].
    pub(crate) fn get(&self, key: &[u8]) -> Option<Arc<Forms>> {
        sync::point();
        self.store.get(key)
    }

    pub(crate) fn stripe(&self, key: &[u8]) -> StripeId {
        StripeId(self.hasher.hash_one(key) as u16)
    }

    pub(crate) fn flush_gen(&self) -> u64 {
        self.flush_gen.load(Ordering::Acquire)
    }

    fn sweep_gen(&self) -> u64 {
        self.sweep_gen.load(Ordering::Acquire)
    }

    /// A write of ours to the stripe is not answered.
    pub(crate) fn is_pending(&self, stripe: StripeId) -> bool {
        self.stripes[stripe.0 as usize].lock().pending > 0
    }

    pub(crate) fn generation(&self, stripe: StripeId) -> u64 {
        self.stripes[stripe.0 as usize].lock().generation
    }

    /// The right to store what a command that is sent from now on reads of `key`; none while a write of ours is pending.
    pub(crate) fn token(&self, key: &[u8], epoch: u64) -> Option<Token> {
        let stripe = self.stripe(key);
        let s = self.stripes[stripe.0 as usize].lock();
        (s.pending == 0).then(|| self.token_at(stripe, s.generation, epoch))
    }

    /// The token of a refresh: taken right after its own `begin_write`, while that write is pending (R17).
    pub(crate) fn refresh_token(&self, stripe: StripeId, epoch: u64) -> Token {
        self.token_at(stripe, self.generation(stripe), epoch)
    }

    fn token_at(&self, stripe: StripeId, generation: u64, epoch: u64) -> Token {
        let (flush_gen, sweep_gen, tag_gen) = (self.flush_gen(), self.sweep_gen(), self.books.tags.generation());
        Token { stripe, generation, flush_gen, sweep_gen, tag_gen, epoch }
    }

    /// Whether `token` still gives the right to store, were it used now. Which tags its reading will have is not known here,
    /// so any that was invalidated since counts.
    pub(crate) fn alive(&self, token: &Token) -> bool {
        let s = self.stripes[token.stripe.0 as usize].lock();
        self.books.tags.generation() == token.tag_gen && self.voids(token, &s).is_none()
    }

    /// Stores `entry` under `labels` if `token` is still good; else says what took the right away. The caller has compared the
    /// epoch with its lane's.
    pub(crate) fn keep(&self, key: &[u8], token: &Token, labels: &Labels<'_>, entry: Entry) -> Result<(), Discard> {
        self.replace(key, token, labels, |old| (old.with(entry), ()))
    }

    /// The same for the reply to another command than GET; says what had to go for it.
    pub(crate) fn keep_form(
        &self,
        key: &[u8],
        token: &Token,
        labels: &Labels<'_>,
        form: FormEntry,
    ) -> Result<Displaced, Discard> {
        self.replace(key, token, labels, |old| old.with_form(form))
    }

    fn replace<T>(
        &self,
        key: &[u8],
        token: &Token,
        labels: &Labels<'_>,
        with: impl FnOnce(&Forms) -> (Forms, T),
    ) -> Result<T, Discard> {
        let s = self.stripes[token.stripe.0 as usize].lock();
        if let Some(why) = self.voids(token, &s).filter(|_| !mutation::off(Rule::Token)) {
            return Err(why);
        }
        let (old, nothing) = (self.get(key).filter(|old| !self.books.is_void(old)), Forms::default());
        let old = old.as_deref().unwrap_or(&nothing);
        let (mut forms, said) = with(old);
        self.mark(key, token, labels, old.marks.as_deref(), &mut forms)?;
        let own = forms.marks.as_ref().map(|marks| marks.number);
        sync::point();
        self.store.insert(key.into(), Arc::new(forms));
        drop(s);
        if let (Some(limit), Some(own)) = (labels.share, own) {
            self.make_room(limit, own);
        }
        Ok(said)
    }

    /// What has taken the right to store away, if anything has.
    fn voids(&self, token: &Token, stripe: &Stripe) -> Option<Discard> {
        if self.flush_gen() != token.flush_gen {
            Some(Discard::Flush)
        } else if self.sweep_gen() != token.sweep_gen {
            Some(Discard::Sweep)
        } else if stripe.pending > 0 {
            Some(Discard::Write)
        } else {
            (stripe.generation != token.generation).then_some(Discard::Push)
        }
    }

    /// A write of ours that names `key` is about to be sent: drop, bump, and let nobody store until it has ended.
    pub(crate) fn begin_write(&self, key: &[u8]) -> StripeId {
        let stripe = self.stripe(key);
        if mutation::off(Rule::BeginEnd) {
            return stripe;
        }
        let mut s = self.stripes[stripe.0 as usize].lock();
        s.generation += 1;
        s.pending += 1;
        self.pending.fetch_add(1, Ordering::Relaxed);
        sync::point();
        self.store.invalidate(key);
        stripe
    }

    /// The write that `begin_write` announced is answered or lost. Exactly once for each `begin_write`.
    pub(crate) fn end_write(&self, stripe: StripeId) {
        if mutation::off(Rule::BeginEnd) {
            return;
        }
        let mut s = self.stripes[stripe.0 as usize].lock();
        s.generation += 1;
        debug_assert!(s.pending > 0, "end_write without begin_write");
        if s.pending > 0 {
            s.pending -= 1;
            self.pending.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// `key` has changed upstream, or somebody says so: drop it for all profiles. Returns how many entries that were.
    pub(crate) fn invalidate(&self, key: &[u8]) -> usize {
        let stripe = self.stripe(key);
        let mut s = self.stripes[stripe.0 as usize].lock();
        s.generation += 1;
        sync::point();
        self.store.remove(key).map_or(0, |forms| forms.all().count())
    }

    /// What is stored for `key` goes; what is being fetched may still be stored.
    pub(crate) fn displace(&self, key: &[u8]) {
        let _stripe = self.stripes[self.stripe(key).0 as usize].lock();
        sync::point();
        self.store.remove(key);
    }

    /// Everything is void from here on, whatever is stored or being fetched.
    pub(crate) fn flush(&self) {
        self.flush_gen.fetch_add(1, Ordering::AcqRel);
        sync::point();
        self.store.invalidate_all();
    }

    /// Entries and weighed bytes, as moka last counted them (it settles its books every few hundred operations).
    pub(crate) fn size(&self) -> (u64, u64) {
        (self.store.entry_count(), self.store.weighted_size())
    }

    /// Settles moka's books now; for tests, `NEARSIDE` and idle moments, never between two replies.
    pub(crate) fn settle(&self) {
        self.store.run_pending_tasks();
    }

    /// Writes of ours that are not answered, over all stripes: zero at rest (C72).
    pub(crate) fn pending(&self) -> u64 {
        self.pending.load(Ordering::Relaxed)
    }
}

/// The entry that a lane connection numbered `epoch` may serve at `now`, if there is one.
pub(crate) fn usable(forms: &Forms, epoch: u64, flush_gen: u64, now: u64) -> Option<&Entry> {
    forms.entries.iter().find(|e| e.may_serve(epoch, flush_gen, now))
}

/// What a copy of a reply of so many bytes would cost of `max_bytes`, about: its key is not counted.
pub(crate) fn weight(reply: usize) -> usize {
    OVERHEAD + size_of::<Entry>() + reply
}

/// What an entry costs of `max_bytes`.
fn weigh(floor: u64, key: &[u8], forms: &Forms) -> u32 {
    let marks = forms.marks.as_ref().map_or(0, |marks| marks.bytes(key));
    let true_bytes = (OVERHEAD + key.len() + forms.bytes() + marks) as u64;
    u32::try_from(true_bytes.max(floor)).unwrap_or(u32::MAX)
}

fn note_removal(metrics: &Metrics, books: &Books, forms: &Forms, cause: RemovalCause) {
    let marks = forms.marks.as_deref();
    if let Some(marks) = marks {
        books.leave(marks);
    }
    // A replacement is no removal (DESIGN 8).
    let evict = match cause {
        RemovalCause::Replaced => return,
        RemovalCause::Size => Evict::Size,
        RemovalCause::Expired => Evict::Expired,
        RemovalCause::Explicit if marks.is_some_and(Marks::goes_for_share) => Evict::Share,
        RemovalCause::Explicit => Evict::Invalidated,
    };
    for entry in forms.all() {
        // Whichever thread moka settles its books on.
        metrics.evictions.add_shared(evict, 1);
        metrics.patterns.del(entry.pattern);
    }
}

#[cfg(test)]
mod schedules;
#[cfg(test)]
mod tests;
