//! Dropping what a prefix, a glob, a regular expression or a tag names. Of tags there is an index (`tags`), and what is said
//! here concerns only those that it does not know whole. Beside it the L1 has no order by name, so all of it has to be
//! looked at; that is done by a thread of its own, which only *finds*. What it finds is dropped by whoever asked, a few
//! names at a time, so that hits of other clients go on in between.
//!
//! **Why nothing old is left.** A sweep first raises `sweep_gen`, which every token carries. Then the walk begins: the
//! thread takes and gives back the lock of every stripe once, and only then looks at the store.
//! - A store whose token is from before the sweep compares generations under its stripe's lock. Had it compared before the
//!   walk's turn at that lock, it has also stored before it, and the walk finds the entry. If it compares after, it sees
//!   the new generation, which was raised before the walk was ordered, and does not store.
//! - A reading under a token from after the sweep was sent after it, and upstream has answered from then: it may stay. If
//!   the walk finds it, it is dropped for nothing.
//! - moka's iterator finds every entry that is there when it begins and is not removed or replaced; what replaces one has
//!   been stored after, under a new token.
//!
//! Nobody joins a fetch from before the sweep either (`alive`). Until the walk is over, hits may still be answered with
//! what is about to be dropped; whoever asked is told only then.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};

use crate::sync::Mutex;
use moka::sync::Cache;
use regex::bytes::{Regex, RegexBuilder};
use tokio::sync::mpsc;

use super::tags::{Found as OfTag, Walk};
use super::{Forms, Key, L1, Stripe};
use crate::command::prefix::Prefix;
use crate::policy::{Rules, glob};

/// Sweeps that wait for the walk under way. One more and the L1 is flushed instead, which is more than was asked for.
const WAITING_MAX: usize = 64;

/// Names dropped between two looks at anything else: about 0.1 ms.
const BATCH: usize = 128;

/// Batches found and not dropped yet, per sweep.
const BATCHES_MAX: usize = 16;

/// A compiled regular expression takes at most this much. The default of the crate is 10 MiB, for one that a stranger may
/// have published.
const REGEX_SIZE_MAX: usize = 1 << 20;

/// What a sweep drops.
pub(crate) enum Matcher {
    Prefix(Vec<u8>),
    Glob(Vec<u8>),
    Regex(Box<Regex>),
    /// Keys that have been stored with one of these tags. The entry knows its tags: rules may have changed since.
    Tags(Vec<Vec<u8>>),
    /// Keys whose entries would not be the same under other rules.
    Rules {
        old: Arc<Rules>,
        next: Arc<Rules>,
        /// Rules are about names without it.
        prefix: Option<Prefix>,
    },
}

impl Matcher {
    /// Linear in time, unanchored, over bytes. The error says what is wrong with the expression.
    pub(crate) fn regex(text: &[u8]) -> Result<Matcher, String> {
        let text = std::str::from_utf8(text).map_err(|_| "an expression is text in UTF-8".to_owned())?;
        let built = RegexBuilder::new(text).size_limit(REGEX_SIZE_MAX).dfa_size_limit(REGEX_SIZE_MAX).build();
        match built {
            Ok(regex) => Ok(Matcher::Regex(Box::new(regex))),
            // Its last line is the cause; those before draw a picture of it.
            Err(e) => {
                let text = e.to_string();
                let cause = text.lines().last().unwrap_or_default().trim();
                Err(cause.strip_prefix("error: ").unwrap_or(cause).to_owned())
            }
        }
    }

    fn matches(&self, key: &[u8], forms: &Forms) -> bool {
        match self {
            Matcher::Prefix(prefix) => key.starts_with(prefix),
            Matcher::Glob(pattern) => glob::matches(pattern, key),
            Matcher::Regex(regex) => regex.is_match(key),
            Matcher::Tags(tags) => forms.tags().any(|tag| tags.iter().any(|wanted| **wanted == *tag)),
            Matcher::Rules { old, next, prefix } => {
                let key = prefix.as_ref().and_then(|prefix| prefix.own(key)).unwrap_or(key);
                !old.same_fate(next, key)
            }
        }
    }
}

type Found = Vec<Arc<Key>>;

/// A sweep for the thread.
pub(super) struct Job {
    matchers: Vec<Matcher>,
    batch: Found,
    found: mpsc::Sender<Found>,
}

/// A sweep under way: nothing from before it is stored any more. What is stored already is dropped by [`Sweep::finish`].
#[must_use = "nothing is dropped before it is finished"]
pub(crate) struct Sweep {
    found: mpsc::Receiver<Found>,
    flushed: usize,
    /// Keys that need not be searched for.
    walks: Vec<Walk>,
}

impl L1 {
    /// Begins to drop whatever one of `matchers` names, for all profiles.
    pub(crate) fn sweep(&self, matchers: Vec<Matcher>) -> Sweep {
        self.sweep_gen.fetch_add(1, Ordering::AcqRel);
        let (found, receiver) = mpsc::channel(BATCHES_MAX);
        let job = Job { matchers, batch: Vec::new(), found };
        let sweeper = self.sweeper.get_or_init(|| spawn(self.store.clone(), self.stripes.clone()));
        let flushed = match sweeper.as_ref().map(|sweeper| sweeper.try_send(job)) {
            Some(Ok(())) => 0,
            // No thread, or too much for it already.
            None | Some(Err(TrySendError::Full(_) | TrySendError::Disconnected(_))) => {
                let (entries, _) = self.size();
                self.flush();
                entries as usize
            }
        };
        Sweep { found: receiver, flushed, walks: Vec::new() }
    }

    /// Begins to drop what has one of these tags. Why nothing old is left is argued in `tags`; for a tag of which not every
    /// key is known, as for every other sweep.
    pub(crate) fn sweep_tags(&self, names: &[Vec<u8>]) -> Sweep {
        let tags = &self.books.tags;
        names.iter().for_each(|tag| tags.raise(tag));
        let (mut walks, mut unknown) = (Vec::new(), Vec::new());
        for name in names {
            match tags.find(name) {
                OfTag::Nothing => {}
                OfTag::Records(walk) => walks.push(walk),
                OfTag::Everything => unknown.push(name.clone()),
            }
        }
        let sweep = if unknown.is_empty() { Sweep::nothing() } else { self.sweep(vec![Matcher::Tags(unknown)]) };
        Sweep { walks, ..sweep }
    }
}

impl Sweep {
    fn nothing() -> Sweep {
        let (_, found) = mpsc::channel(1);
        Sweep { found, flushed: 0, walks: Vec::new() }
    }

    /// Drops what is found until all has been looked at; returns how many entries that were. To be awaited to its end:
    /// whoever may go away in between leaves it to a task.
    pub(crate) async fn finish(mut self, l1: &L1) -> usize {
        let mut dropped = self.flushed;
        for mut walk in self.walks {
            loop {
                let keys = walk.next();
                if keys.is_empty() {
                    break;
                }
                dropped += keys.iter().map(|key| l1.invalidate(key)).sum::<usize>();
                tokio::task::yield_now().await;
            }
        }
        while let Some(batch) = self.found.recv().await {
            dropped += batch.iter().map(|key| l1.invalidate(key)).sum::<usize>();
            tokio::task::yield_now().await;
        }
        dropped
    }
}

/// The thread that looks through the store; it ends with the L1. None where the system gives no thread.
fn spawn(
    store: Cache<Key, Arc<Forms>, foldhash::fast::RandomState>,
    stripes: Arc<[Mutex<Stripe>]>,
) -> Option<SyncSender<Job>> {
    let (sender, jobs) = sync_channel(WAITING_MAX);
    let work = move || run(&store, &stripes, &jobs);
    match std::thread::Builder::new().name("nearside-sweep".to_owned()).spawn(work) {
        Ok(_) => Some(sender),
        Err(e) => {
            tracing::warn!("no thread for sweeps, the L1 is flushed instead: {e}");
            None
        }
    }
}

fn run(store: &Cache<Key, Arc<Forms>, foldhash::fast::RandomState>, stripes: &[Mutex<Stripe>], jobs: &Receiver<Job>) {
    while let Ok(first) = jobs.recv() {
        // All that wait are done in one walk.
        let mut together = vec![first];
        together.extend(jobs.try_iter());
        stripes.iter().for_each(|stripe| drop(stripe.lock()));
        for (key, forms) in store {
            together.iter_mut().for_each(|job| job.look_at(&key, &forms));
        }
        together.iter_mut().for_each(Job::hand_over);
    }
}

impl Job {
    fn look_at(&mut self, key: &Arc<Key>, forms: &Forms) {
        if self.matchers.iter().any(|m| m.matches(key, forms)) {
            self.batch.push(key.clone());
            if self.batch.len() == BATCH {
                self.hand_over();
            }
        }
    }

    /// Waits while the other side has enough to do. An error means that nobody wants it any more: the process ends.
    fn hand_over(&mut self) {
        if !self.batch.is_empty() {
            let _ = self.found.blocking_send(std::mem::take(&mut self.batch));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::time::{Duration, Instant};

    use super::super::tests::{EPOCH, entry, small, store};
    use super::*;
    use crate::observe::reasons::Discard;

    async fn dropped(l1: &L1, matcher: Matcher) -> usize {
        l1.sweep(vec![matcher]).finish(l1).await
    }

    fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
        let end = Instant::now() + Duration::from_secs(15);
        while !holds() {
            assert!(Instant::now() < end, "{what}");
            std::thread::yield_now();
        }
    }

    #[tokio::test]
    async fn each_kind_drops_what_it_names_for_all_profiles() {
        let names: [&[u8]; 6] = [b"user:1", b"user:22", b"user:", b"xuser:1", b"a\xffb", b""];
        for (matcher, gone) in [
            (Matcher::Prefix(b"user:".to_vec()), &names[..3]),
            (Matcher::Prefix(Vec::new()), &names[..]),
            (Matcher::Glob(b"user:?".to_vec()), &names[..1]),
            (Matcher::Glob(b"*".to_vec()), &names[..]),
            (Matcher::regex(b"user:\\d").expect("a regex"), &[b"user:1", b"user:22", b"xuser:1"]),
            (Matcher::regex(b"^user:\\d$").expect("a regex"), &[b"user:1"]),
            (Matcher::regex(b"(?-u)\\xff").expect("a regex"), &[b"a\xffb"]),
        ] {
            let l1 = small();
            for name in names {
                for lane in 0..2 {
                    store(&l1, name, lane, b"v").expect("stored");
                }
            }
            assert_eq!(dropped(&l1, matcher).await, 2 * gone.len());
            for name in names {
                assert_eq!(l1.get(name).is_none(), gone.contains(&name), "{name:?}");
            }
        }
    }

    #[test]
    fn a_bad_expression_says_what_is_wrong_and_a_huge_one_is_refused() {
        for (text, why) in [
            (&b"user:("[..], "unclosed group"),
            (b"a\xff", "an expression is text in UTF-8"),
            (b"(a{1000}){1000}", "Compiled regex exceeds size limit of 1048576 bytes."),
        ] {
            let error = Matcher::regex(text).err().expect("an error");
            assert_eq!(error, why);
        }
    }

    #[tokio::test]
    async fn what_was_sent_before_a_sweep_is_not_stored_after() {
        let l1 = small();
        let before = l1.token(b"user:1", EPOCH).expect("a token");
        let sweep = l1.sweep(vec![Matcher::Prefix(b"user:".to_vec())]);
        assert!(!l1.alive(&before), "a read of later would join it");
        assert_eq!(l1.insert(b"user:1", &before, entry(&l1, 0, b"old")), Err(Discard::Sweep));
        store(&l1, b"other", 0, b"new").expect("what is sent from now on is stored");
        assert_eq!(sweep.finish(&l1).await, 0);
        assert!(l1.get(b"user:1").is_none() && l1.get(b"other").is_some());
    }

    /// The counterexample to a walk that begins at once: another thread has compared generations, under its stripe's lock,
    /// and has not stored yet.
    #[tokio::test]
    async fn a_store_that_has_compared_already_is_waited_for_and_found() {
        let l1 = small();
        store(&l1, b"user:0", 0, b"old").expect("stored");
        let stripe = l1.stripes[l1.stripe(b"user:1").0 as usize].lock();
        let mut sweep = l1.sweep(vec![Matcher::Prefix(b"user:".to_vec())]);
        std::thread::sleep(Duration::from_millis(30));
        assert!(sweep.found.try_recv().is_err(), "the walk has begun");
        // Nobody else has been kept waiting meanwhile.
        assert!(l1.get(b"user:0").is_some());
        let forms = Forms::default().with(entry(&l1, 0, b"old"));
        l1.store.insert(b"user:1"[..].into(), Arc::new(forms));
        drop(stripe);
        assert_eq!(sweep.finish(&l1).await, 2);
        assert!(l1.get(b"user:1").is_none());
    }

    /// However much is found at once, others have their turn after every batch.
    #[tokio::test]
    async fn hits_go_on_between_the_batches() {
        let l1 = super::super::tests::large();
        let all = BATCH * BATCHES_MAX;
        for i in 0..all {
            store(&l1, format!("user:{i}").as_bytes(), 0, b"v").expect("stored");
        }
        store(&l1, b"hot", 0, b"v").expect("stored");
        let sweep = l1.sweep(vec![Matcher::Prefix(b"user:".to_vec())]);
        eventually("the walk to have found all", || sweep.found.len() == BATCHES_MAX);
        let (hits, over) = (Cell::new(0), Cell::new(false));
        let finish = async {
            let dropped = sweep.finish(&l1).await;
            over.set(true);
            dropped
        };
        let hit = async {
            while !over.get() {
                assert!(l1.get(b"hot").is_some());
                hits.set(hits.get() + 1);
                tokio::task::yield_now().await;
            }
        };
        let (dropped, ()) = tokio::join!(finish, hit);
        assert_eq!(dropped, all);
        assert!(hits.get() >= BATCHES_MAX, "{} turns", hits.get());
    }

    /// A queue of sweeps that nobody keeps up with ends in a flush, which is more than was asked.
    #[tokio::test]
    async fn too_many_at_once_flush() {
        let l1 = small();
        store(&l1, b"a", 0, b"v").expect("stored");
        let stripe = l1.stripes[0].lock();
        let flushes = l1.flush_gen();
        // The thread takes what waits when it looks, and then stands before the stripe's lock.
        let mut sweeps = Vec::new();
        eventually("a flush", || {
            sweeps.push(l1.sweep(vec![Matcher::Prefix(b"z".to_vec())]));
            l1.flush_gen() > flushes
        });
        assert!(sweeps.len() > WAITING_MAX && l1.get(b"a").is_none());
        drop(stripe);
        for sweep in sweeps {
            sweep.finish(&l1).await;
        }
    }
}
