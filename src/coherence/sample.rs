//! The audit in service: now and then a random resident entry is compared with upstream, so that a coherence that fails
//! in production is a metric and a line in the log, not a rumour (`coherence.sample_per_second`).
//!
//! **An honest comparison** calls no race stale. The entry's token is taken before the entry is looked at, GET is sent on
//! the entry's own lane, and when its reply is read the two are compared only if the token is still good. Then nothing that
//! the sidecar knew of has touched the key from before the look until here. A change by anybody else that executed before
//! GET lies before GET's reply in the lane's stream and has been applied, which would have voided the token. So a reply
//! that differs is a change that nobody announced: the entry was wrong when it was looked at.
//!
//! **Which entry.** Walking the L1 would cost what the sample is to protect. Keys are noted as they are stored, in a table
//! of a few thousand places by stripe, the last one of each place; a random place is a random key. A key that is stored
//! often holds its own place only, so those that were stored once and are hit ever since are found as well.
//!
//! **How many.** At most `sample_per_second`, and at most 1 % of the commands that the lanes send anyway, save one a minute,
//! so that an idle sidecar looks as well.
//!
//! Only while tracking keeps the L1 coherent: elsewhere a change is announced on another connection, or not at all.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use super::lane::Lane;
use super::wait::Waiting;
use crate::cache::{Entry, FormId, StripeId, Token, Value};
use crate::observe::clock;
use crate::observe::reasons::{Coherence, Method};
use crate::resp::build;
use crate::resp::reply;
use crate::worker::Ctx;

/// Places for keys: of a million entries each is found with the same chance, about one in 250 is in the table at a time.
const PLACES: usize = 4096;

/// Longer keys are not noted: the table would be as large as the cache.
const KEY_MAX: usize = 1024;

/// Larger values are not fetched again for this.
const VALUE_MAX: usize = 16 * 1024;

/// Places that are tried for one sample: most of them may be empty, or name what is not resident any more.
const TRIES: usize = 64;

/// Of the commands that are sent anyway, one in so many may be ours.
const SHARE: u64 = 100;

const SECOND: u64 = 1_000_000_000;

/// An idle sidecar still looks once in a while.
const AT_LEAST_EVERY: u64 = 60 * SECOND;

struct Place {
    lane: u32,
    key: Box<[u8]>,
}

/// The keys to choose from, and what may be spent.
pub(crate) struct Samples {
    /// 0: off.
    per_second: u64,
    /// Empty until the first key is noted.
    places: RefCell<Vec<Option<Place>>>,
    /// Commands that were sent and have not been counted towards a sample yet.
    sent: Cell<u64>,
    /// Time that has not been counted towards one, in nanoseconds times `per_second`.
    idle: Cell<u64>,
    looked: Cell<u64>,
    /// When the last one was sent.
    last: Cell<u64>,
    dice: Cell<u64>,
}

/// One comparison under way.
pub(super) struct Sample {
    key: Box<[u8]>,
    /// The command that is asked again; none: GET.
    form: Option<FormId>,
    token: Token,
    value: Value,
    /// When the entry's value was asked for.
    t_sent: u64,
    deadline: u64,
}

impl Samples {
    pub(crate) fn new(per_second: usize, now: u64) -> Samples {
        Samples {
            per_second: per_second as u64,
            places: RefCell::default(),
            sent: Cell::new(0),
            idle: Cell::new(0),
            looked: Cell::new(now),
            last: Cell::new(now),
            dice: Cell::new(now | 1),
        }
    }

    /// `key` has been stored through this lane.
    pub(super) fn note(&self, lane: u32, key: &[u8], stripe: StripeId) {
        if self.per_second == 0 || key.len() > KEY_MAX {
            return;
        }
        let mut places = self.places.borrow_mut();
        if places.is_empty() {
            places.resize_with(PLACES, || None);
        }
        let place = &mut places[usize::from(stripe.number()) % PLACES];
        match place {
            Some(noted) if *noted.key == *key => noted.lane = lane,
            _ => *place = Some(Place { lane, key: key.into() }),
        }
    }

    /// How many may be sent now, given that the lanes have sent so many commands since the last call.
    fn due(&self, now: u64, sent: u64) -> u64 {
        // Nothing is saved up for longer than a second: a burst after a quiet hour is a burst.
        let most = self.per_second * SHARE;
        self.sent.set((self.sent.get() + sent).min(most));
        let passed = now.saturating_sub(self.looked.replace(now)).min(SECOND);
        self.idle.set((self.idle.get() + passed * self.per_second).min(self.per_second * SECOND));
        let by_share = self.sent.get() / SHARE;
        let by_time = self.idle.get() / SECOND;
        let overdue = u64::from(now.saturating_sub(self.last.get()) >= AT_LEAST_EVERY);
        by_time.min(by_share.max(overdue))
    }

    fn spend(&self, now: u64) {
        self.sent.set(self.sent.get().saturating_sub(SHARE));
        self.idle.set(self.idle.get().saturating_sub(SECOND));
        self.last.set(now);
    }

    /// A noted key and its lane, by chance. A place that leads nowhere is given up by `forget`.
    fn pick(&self) -> Option<(usize, u32, Box<[u8]>)> {
        let places = self.places.borrow();
        if places.is_empty() {
            return None;
        }
        let start = self.roll() as usize % PLACES;
        // From there to the next one that is taken: a few keys in a large table are found too.
        let at = (0..PLACES).map(|i| (start + i) % PLACES).find(|i| places[*i].is_some())?;
        places[at].as_ref().map(|place| (at, place.lane, place.key.clone()))
    }

    fn forget(&self, at: usize) {
        self.places.borrow_mut()[at] = None;
    }

    /// xorshift.
    fn roll(&self) -> u64 {
        let mut x = self.dice.get();
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        self.dice.set(x);
        x
    }
}

/// Sends what is due; every B/4, by each lane.
pub(super) fn turn(ctx: &Rc<Ctx>, now: u64, sent: u64) {
    if ctx.samples.per_second == 0 {
        return;
    }
    for _ in 0..ctx.samples.due(now, sent) {
        if !(0..TRIES).any(|_| try_one(ctx, now)) {
            return;
        }
    }
}

fn try_one(ctx: &Rc<Ctx>, now: u64) -> bool {
    let Some((at, lane, key)) = ctx.samples.pick() else { return false };
    let lane = ctx.lanes.borrow().values().find(|l| l.id == lane).cloned();
    let sample = lane.as_ref().and_then(|lane| look(ctx, lane, key, now));
    match (lane, sample) {
        (Some(lane), Some(sample)) => {
            ctx.samples.spend(now);
            lane.compare(now, sample);
            true
        }
        _ => {
            ctx.samples.forget(at);
            false
        }
    }
}

/// The entry that this lane would serve. The lease is not asked: the comparison holds without.
fn look(ctx: &Ctx, lane: &Lane, key: Box<[u8]>, now: u64) -> Option<Sample> {
    let epoch = lane.epoch();
    if epoch == 0 || !lane.caches() || lane.mode() != Coherence::Tracking {
        return None;
    }
    let token = ctx.l1.token(&key, epoch)?;
    let forms = ctx.l1.get(&key)?;
    let gets = forms.entries.iter().map(|entry| (None, entry));
    let others = forms.others.iter().map(|form| (Some(&form.id), &form.entry));
    let fits = |entry: &Entry| entry.may_serve(epoch, token.flush_gen, now) && entry.value.wire_len() <= VALUE_MAX;
    let all: Vec<(Option<&FormId>, &Entry)> = gets.chain(others).filter(|(_, entry)| fits(entry)).collect();
    let (form, entry) = *all.get(ctx.samples.roll() as usize % all.len().max(1))?;
    let (value, t_sent, deadline) = (entry.value.clone(), entry.t_sent, entry.deadline);
    Some(Sample { form: form.cloned(), key, token, value, t_sent, deadline })
}

impl Sample {
    fn method(&self) -> Method {
        self.form.as_ref().map_or(Method::Get, FormId::method)
    }

    fn same(&self, frame: &[u8]) -> bool {
        match &self.value {
            Value::Nil => reply::is_null(frame),
            Value::Bulk(kept) => **kept == *frame || (self.is_unordered() && sorted(kept) == sorted(frame)),
        }
    }

    /// Redis walks its hash tables while it grows or shrinks them: the order of what it finds there may change although
    /// the key has not.
    fn is_unordered(&self) -> bool {
        matches!(self.method(), Method::Smembers | Method::Hgetall | Method::Hkeys | Method::Hvals)
    }
}

/// The elements of an aggregate, or the pairs of a map, in an order of their own.
fn sorted(frame: &[u8]) -> Vec<Vec<&[u8]>> {
    let of_one = if frame.first() == Some(&b'%') { 2 } else { 1 };
    let all: Vec<&[u8]> = reply::elements(frame).collect();
    let mut groups: Vec<Vec<&[u8]>> = all.chunks(of_one).map(<[&[u8]]>::to_vec).collect();
    groups.sort_unstable();
    groups
}

impl Lane {
    fn compare(&self, now: u64, sample: Sample) {
        let mut raw = bytes::BytesMut::new();
        let mut words: Vec<&[u8]> = vec![sample.method().as_str().as_bytes(), &sample.key];
        words.extend(sample.form.iter().flat_map(FormId::words));
        build::command(&mut raw, &words);
        self.send(&mut self.inner.borrow_mut(), now, &raw, Waiting::Sample(Box::new(sample)));
    }

    pub(super) fn on_sample(&self, ctx: &Rc<Ctx>, sample: &Sample, frame: &[u8]) {
        let now = clock::now();
        let undisturbed =
            ctx.l1.alive(&sample.token) && sample.token.epoch == self.epoch.get() && now < sample.deadline;
        let wrong_type = frame.starts_with(b"-WRONGTYPE");
        // Any other error (-BUSY, -LOADING, -NOPERM) says nothing about the value.
        if !undisturbed || (reply::is_error(frame) && !wrong_type) {
            return;
        }
        ctx.metrics.audit_checked.inc();
        ctx.metrics.audit_age.set(now.saturating_sub(sample.t_sent));
        if sample.same(frame) {
            return;
        }
        ctx.metrics.audit_stale.inc();
        ctx.l1.invalidate(&sample.key);
        // The key may be a secret, a person's name; its pattern and a hash are enough to find it by.
        tracing::error!(
            key_hash = %format_args!("{:016x}", hash(&sample.key)), db = self.profile.db, user = %self.profile.user(),
            command = sample.method().as_str(),
            "a cached value differed from upstream's although nothing had invalidated it; age {} ms; it was dropped",
            now.saturating_sub(sample.t_sent) / 1_000_000
        );
    }
}

/// FNV-1a of 64 bits, so that whoever knows the key can compute it.
fn hash(key: &[u8]) -> u64 {
    key.iter().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: u64 = 1_000 * SECOND;

    /// Lets time pass in steps of a quarter second, spends what is due, and returns how many that were.
    fn spent(samples: &Samples, seconds: u64, sent_per_second: u64) -> u64 {
        let from = samples.looked.get();
        let mut total = 0;
        for step in 1..=seconds * 4 {
            let now = from + step * SECOND / 4;
            let due = samples.due(now, sent_per_second / 4);
            (0..due).for_each(|_| samples.spend(now));
            total += due;
        }
        total
    }

    #[test]
    fn one_a_second_is_one_a_second() {
        assert_eq!(spent(&Samples::new(1, START), 100, 1_000_000), 100);
        assert_eq!(spent(&Samples::new(1000, START), 100, 1_000_000), 100_000);
    }

    #[test]
    fn no_more_than_one_percent_of_what_is_sent_anyway() {
        assert_eq!(spent(&Samples::new(1000, START), 100, 400), 400);
        assert_eq!(spent(&Samples::new(1, START), 100, 40), 40);
    }

    #[test]
    fn an_idle_sidecar_looks_once_a_minute() {
        assert_eq!(spent(&Samples::new(1, START), 600, 0), 10);
    }

    #[test]
    fn nothing_is_saved_up() {
        let samples = Samples::new(10, START);
        spent(&samples, 3600, 0);
        let late = samples.looked.get() + 3600 * SECOND;
        assert!(samples.due(late, 1_000_000) <= 10);
    }

    #[test]
    fn a_place_holds_the_last_key_of_its_stripes() {
        let samples = Samples::new(1, START);
        assert!(samples.pick().is_none());
        let stripe = StripeId::numbered(7);
        samples.note(1, b"a", stripe);
        samples.note(2, b"a", stripe);
        let (at, lane, key) = samples.pick().unwrap();
        assert_eq!((lane, &*key), (2, &b"a"[..]));
        samples.note(2, b"b", stripe);
        assert_eq!(&*samples.pick().unwrap().2, b"b");
        samples.forget(at);
        assert!(samples.pick().is_none());
    }

    #[test]
    fn off_is_off() {
        let samples = Samples::new(0, START);
        samples.note(1, b"a", StripeId::numbered(7));
        assert!(samples.pick().is_none());
        assert_eq!(spent(&samples, 600, 1000), 0);
    }

    #[test]
    fn an_unordered_reply_may_come_in_any_order() {
        let token =
            Token { stripe: StripeId::numbered(7), generation: 0, flush_gen: 0, sweep_gen: 0, tag_gen: 0, epoch: 1 };
        let same = |method: Method, kept: &[u8], frame: &[u8]| {
            let form = Some(FormId::for_test(method));
            let value = Value::Bulk(kept.into());
            Sample { key: b"k"[..].into(), form, token, value, t_sent: 0, deadline: 1 }.same(frame)
        };
        assert!(same(Method::Smembers, b"~2\r\n:1\r\n:2\r\n", b"~2\r\n:2\r\n:1\r\n"));
        assert!(!same(Method::Smembers, b"~2\r\n:1\r\n:2\r\n", b"~2\r\n:2\r\n:3\r\n"));
        assert!(!same(Method::Lrange, b"*2\r\n:1\r\n:2\r\n", b"*2\r\n:2\r\n:1\r\n"));
        let (kept, turned) = (b"%2\r\n:1\r\n:8\r\n:2\r\n:9\r\n", b"%2\r\n:2\r\n:9\r\n:1\r\n:8\r\n");
        assert!(same(Method::Hgetall, kept, turned));
        let exchanged = b"%2\r\n:1\r\n:9\r\n:2\r\n:8\r\n";
        assert!(!same(Method::Hgetall, kept, exchanged));
    }

    #[test]
    fn the_hash_is_fnv_1a() {
        assert_eq!(hash(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(hash(b"a"), 0xaf63_dc4c_8601_ec8c);
    }
}
