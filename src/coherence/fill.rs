//! What a lane's reader stores: the replies to fetches, split MGETs and refreshes, each with the PTTL behind it, under the
//! token that was taken before they were sent (R11, R12, R17).

use std::rc::Rc;

use bytes::BytesMut;

use super::lane::{Lane, MGET_POPULATE_MAX};
use super::life::{Life, Terms};
use super::mode::Why;
use super::reader::nanos;
use super::wait::{End, Fetch, MgetFetch, Part, Refresh, Refused, Relay, Waiting};
use crate::cache::{Due, Entry, FormEntry, FormId, Labels, ShareOf, Tag, Token, Value};
use crate::command::cacheable::Shape;
use crate::config::{Rule, WHOLE};
use crate::observe::clock;
use crate::observe::reasons::{Coherence, Discard, Evict, Method};
use crate::policy::Keep;
use crate::resp::downgrade::Form;
use crate::resp::reply;
use crate::upstream::handshake;
use crate::worker::Ctx;

const MS: u64 = 1_000_000;

impl Lane {
    pub(super) fn on_fetch(&self, ctx: &Rc<Ctx>, fetch: &Rc<Fetch>, frame: &[u8]) {
        self.inner.borrow_mut().land(fetch);
        ctx.metrics.hot.value(&fetch.key, frame.len(), fetch.keep.pattern);
        *fetch.value.borrow_mut() = match &fetch.read.id {
            None => cacheable(ctx, &fetch.keep, frame),
            Some(id) => cacheable_form(ctx, &fetch.keep, id, frame),
        };
        fetch.refused.set(Refused::of(frame));
        self.displace(ctx, &fetch.key);
        ctx.metrics.upstream.observe(self.last_byte.get().saturating_sub(fetch.t_sent));
        for (session, slot) in fetch.waiters.borrow_mut().drain(..) {
            session.complete(ctx, slot, frame, fetch.read.form);
        }
    }

    /// The frame at the front, which begins with `head`, is one that is never kept; its size is worth knowing.
    pub(super) fn note_large_value(&self, ctx: &Ctx, head: &[u8]) {
        let inner = self.inner.borrow();
        let Some(Waiting::Fetch(fetch)) = inner.fifo.front().map(|waiting| &waiting.kind) else { return };
        let digits = head.strip_prefix(b"$").and_then(|rest| rest.split(|b| *b == b'\r').next());
        let bytes = digits.and_then(|digits| str::from_utf8(digits).ok()?.parse::<usize>().ok());
        if let Some(bytes) = bytes {
            ctx.metrics.hot.value(&fetch.key, bytes, fetch.keep.pattern);
        }
    }

    pub(super) fn on_fetch_ttl(self: &Rc<Self>, ctx: &Rc<Ctx>, fetch: &Fetch, frame: &[u8]) {
        let Some(value) = fetch.value.borrow_mut().take() else {
            if fetch.refused.get() != Refused::Denied {
                self.note_denied(ctx, frame);
            }
            self.supersede(ctx, &fetch.key);
            return self.over(ctx, fetch, End::Refused(fetch.refused.get()));
        };
        let absent = matches!(value, Value::Nil);
        let read = Reading {
            key: &fetch.key,
            id: fetch.read.id.clone(),
            shape: fetch.read.shape,
            token: fetch.token,
            t_sent: fetch.t_sent,
            keep: &fetch.keep,
            value,
        };
        let end = match self.store(ctx, read, frame) {
            Ok(()) => End::Stored { absent },
            Err(why) => End::Discarded(why),
        };
        self.over(ctx, fetch, end);
    }

    /// R12: stores a reading if everything still says that it may be.
    fn store(self: &Rc<Self>, ctx: &Rc<Ctx>, read: Reading<'_>, pttl: &[u8]) -> Result<(), Discard> {
        let key = read.key;
        let stored = self.try_store(ctx, read, pttl);
        match stored {
            Ok(()) => self.populated.set(true),
            Err(why) => {
                ctx.metrics.discarded.inc(why);
                self.supersede(ctx, key);
            }
        }
        stored
    }

    /// A reading (GET or MGET) that is not stored has been passed on all the same, or will be, and is newer than what is stored
    /// (which was no hit, because nothing vouched for it just then, and may be one in a moment) and than what fetches in flight
    /// would still store, which lose their tokens. Where changes are announced to the lane they have taken the older one away;
    /// elsewhere this does, or the next hit would go back in time. A fetch that is sent from here on executes behind it.
    pub(crate) fn supersede(&self, ctx: &Ctx, key: &[u8]) {
        if self.stores_unannounced() {
            ctx.l1.invalidate(key);
        }
    }

    /// It has copies, and CLIENT TRACKING does not tell it of changes. (A lane without copies leaves those of others alone.)
    fn stores_unannounced(&self) -> bool {
        matches!(self.mode(), Coherence::Pubsub | Coherence::Ttl)
    }

    /// A reading is passed on now, and stored when its PTTL has come, which may be in a later packet: until then the next hit
    /// must not be what an earlier reading has stored meanwhile. Fetches of `key` that are under way were sent behind this one
    /// and are newer, so their tokens stay. Where CLIENT TRACKING is on, the invalidation lies before the answer.
    fn displace(&self, ctx: &Ctx, key: &[u8]) {
        if self.stores_unannounced() {
            ctx.l1.displace(key);
        }
    }

    /// A read of `key` that is not kept goes up now. In `pubsub` mode its answer may be from behind a write whose message is
    /// still on its way, and what is stored from before it: the next hit would go back in time. So from here on there is
    /// nothing from before it: what is stored goes, and fetches in flight, which execute before it, lose their tokens. A fetch
    /// that is sent from here on is behind it in the same stream, and executes behind it. (At the reply it would be too late
    /// for a hit in the same pipeline, and would void the later fetches for nothing.) Where CLIENT TRACKING is on, the
    /// invalidation lies before the answer. `ttl` promises it of GETs and MGETs only: one of the two may be kept where the other
    /// is not.
    pub(crate) fn overtake(&self, ctx: &Ctx, key: &[u8], is_get: bool) {
        let mode = self.mode();
        if mode == Coherence::Pubsub || mode == Coherence::Ttl && is_get {
            ctx.l1.invalidate(key);
        }
    }

    fn try_store(self: &Rc<Self>, ctx: &Rc<Ctx>, read: Reading<'_>, pttl: &[u8]) -> Result<(), Discard> {
        if read.token.epoch != self.epoch.get() || !self.caches() {
            return Err(Discard::Epoch);
        }
        let Some(ttl) = reply::integer(pttl) else {
            self.note_denied(ctx, pttl);
            return Err(Discard::NoPerm);
        };
        let absent = read.shape.agrees(read.value.frame(), ttl).ok_or(Discard::Inconsistent)?;
        let life = self.life(ctx, read.keep, absent, ttl).ok_or(Discard::Ttl)?;
        let expires = match ttl {
            _ if absent => 0,
            0.. => read.t_sent + ttl as u64 * MS,
            _ => u64::MAX,
        };
        let entry = Entry {
            epoch: read.token.epoch,
            lane: self.id,
            flush_gen: read.token.flush_gen,
            deadline: read.t_sent.saturating_add(life.end),
            soft: read.t_sent.saturating_add(life.soft),
            touch: if absent { Due::never() } else { ctx.touches.first(self, read.t_sent) },
            expires,
            t_sent: read.t_sent,
            pattern: read.keep.pattern,
            arm: read.keep.arm(),
            value: read.value,
        };
        let labels = labels(ctx, read.keep, read.key);
        match read.id {
            None => ctx.l1.keep(read.key, &read.token, &labels, entry)?,
            Some(id) => {
                let displaced = ctx.l1.keep_form(read.key, &read.token, &labels, FormEntry { id, entry })?;
                ctx.metrics.evictions.add_shared(Evict::Size, displaced.oldest as u64);
                ctx.metrics.evictions.add_shared(Evict::Invalidated, displaced.void as u64);
                (0..displaced.oldest + displaced.void).for_each(|_| ctx.metrics.patterns.del(read.keep.pattern));
            }
        }
        ctx.samples.note(self.id, read.key, read.token.stripe);
        ctx.metrics.patterns.set(read.keep.pattern);
        Ok(())
    }

    /// `pttl`: what upstream says is left of the key, in milliseconds; below 0: it does not end.
    fn life(&self, ctx: &Ctx, keep: &Keep, absent: bool, pttl: i64) -> Option<Life> {
        let rule = keep.terms();
        let own = if absent { rule.negative_ttl } else { keep.ttl() };
        let terms = Terms {
            ttl: nanos(own).min(self.ttl_cap(ctx)),
            ahead: rule.refresh_ahead,
            stale: rule.stale_while_revalidate,
        };
        let left = u64::try_from(pttl).ok().map(|ms| ms.saturating_mul(MS));
        Life::of(&terms, left.map(|left| left.saturating_sub(nanos(ctx.config.cache.ttl_buffer))))
    }

    /// No entry outlives this, whatever the key's TTL, by more than its rule's `stale_while_revalidate`.
    pub(super) fn ttl_cap(&self, ctx: &Ctx) -> u64 {
        let cap = &ctx.config.coherence.ttl_cap;
        nanos(match self.mode() {
            Coherence::Pubsub => cap.pubsub,
            Coherence::Ttl => cap.ttl,
            Coherence::Tracking | Coherence::Probing | Coherence::None => cap.tracking,
        })
    }

    /// An error where our own GET or PTTL should have been answered: NOPERM ends caching for this profile, because each
    /// attempt writes upstream's ACL LOG (decision 5).
    fn note_denied(self: &Rc<Self>, ctx: &Rc<Ctx>, frame: &[u8]) {
        if frame.starts_with(b"-NOPERM") && self.caches() {
            let text = handshake::error_text(frame);
            self.stop_caching(ctx, Why::with(super::mode::DENIED, &text));
        }
    }

    /// Decision 4: the hits taken at parse time count only if nothing has touched them until here; then the whole answer is
    /// upstream's state at this position of the stream.
    pub(super) fn on_mget(&self, ctx: &Rc<Ctx>, fetch: &Rc<MgetFetch>, frame: &[u8]) {
        ctx.metrics.upstream.observe(self.last_byte.get().saturating_sub(fetch.t_sent));
        let session = fetch.session.borrow_mut().take();
        let mut misses = fetch.misses.borrow_mut();
        let replies: Vec<&[u8]> = reply::elements(frame).collect();
        let whole = frame.first() == Some(&b'*') && replies.len() == misses.len();
        if whole {
            let mut took = Some(self.last_byte.get().saturating_sub(fetch.t_sent));
            for (miss, frame) in misses.iter_mut().zip(&replies) {
                ctx.tell_one(miss.seen.as_ref(), Method::Mget, &mut took, frame);
                miss.value = miss.right.as_ref().and_then(|(keep, _)| cacheable(ctx, keep, frame));
            }
            misses.iter().for_each(|miss| self.displace(ctx, &miss.key));
            let read_back = misses.len() <= MGET_POPULATE_MAX;
            misses.iter().filter(|m| !read_back || m.value.is_none()).for_each(|m| self.supersede(ctx, &m.key));
        }
        let Some(session) = session else { return };
        if !whole {
            return session.complete(ctx, fetch.slot, frame, Form::Bulk);
        }
        if !self.still_valid(ctx, fetch) {
            ctx.metrics.discarded.inc(Discard::Push);
            // What this reading would still store is older than what is read again now.
            let words = reply::elements(&fetch.raw).skip(1);
            words.filter_map(reply::bulk).for_each(|key| self.supersede(ctx, key));
            return self.relay(ctx, clock::now(), &fetch.raw, Relay::plain(session, fetch.slot, Form::Bulk, true));
        }
        let answer = assemble(fetch, &replies);
        session.complete_of(ctx, fetch.slot, &answer, Form::Bulk, frame.len());
    }

    fn still_valid(&self, ctx: &Ctx, fetch: &MgetFetch) -> bool {
        if fetch.parts.iter().all(|part| matches!(part, Part::Miss)) {
            return true; // all of it is upstream's own answer
        }
        let now = clock::now();
        fetch.epoch == self.epoch.get()
            && fetch.flush_gen == ctx.l1.flush_gen()
            && fetch.parts.iter().all(|part| match part {
                Part::Hit { stripe, generation, deadline, .. } => {
                    ctx.l1.generation(*stripe) == *generation && now < *deadline
                }
                Part::Miss => true,
            })
    }

    pub(super) fn on_mget_ttl(self: &Rc<Self>, ctx: &Rc<Ctx>, fetch: &MgetFetch, i: usize, frame: &[u8]) {
        let mut misses = fetch.misses.borrow_mut();
        let Some(miss) = misses.get_mut(i) else { return };
        let (Some(value), Some((keep, token))) = (miss.value.take(), &miss.right) else { return };
        let read = Reading::get(&miss.key, *token, fetch.t_sent, keep, value);
        // A wrong type reads as nil in MGET; its PTTL then says -1 or more, and `store` finds the two inconsistent.
        let _ = self.store(ctx, read, frame);
    }

    pub(super) fn on_refresh(self: &Rc<Self>, ctx: &Rc<Ctx>, refresh: &Rc<Refresh>, frame: &[u8]) {
        self.forget_refresh(refresh);
        let mut keys = refresh.keys.borrow_mut();
        if let [key] = keys.as_mut_slice() {
            key.value = cacheable(ctx, &key.keep, frame);
        } else {
            for (key, frame) in keys.iter_mut().zip(reply::elements(frame)) {
                key.value = cacheable(ctx, &key.keep, frame);
            }
        }
        drop(keys);
        self.note_denied(ctx, frame);
    }

    /// From here on no bump is excused for it (R17).
    pub(super) fn forget_refresh(&self, refresh: &Rc<Refresh>) {
        refresh.got.set(true);
        let mut inner = self.inner.borrow_mut();
        for stripe in refresh.keys.borrow().iter().map(|k| k.token.stripe) {
            if let Some(active) = inner.refreshing.get_mut(&stripe) {
                active.retain(|r| !Rc::ptr_eq(r, refresh));
                if active.is_empty() {
                    inner.refreshing.remove(&stripe);
                }
            }
        }
    }

    pub(super) fn on_refresh_ttl(self: &Rc<Self>, ctx: &Rc<Ctx>, refresh: &Refresh, i: usize, frame: &[u8]) {
        let mut keys = refresh.keys.borrow_mut();
        let Some(key) = keys.get_mut(i) else { return };
        let Some(value) = key.value.take() else { return };
        let read = Reading::get(&key.key, key.token, refresh.t_sent, &key.keep, value);
        if self.store(ctx, read, frame).is_ok() {
            ctx.metrics.updates.inc();
        }
    }
}

struct Reading<'a> {
    key: &'a [u8],
    /// `None`: GET.
    id: Option<FormId>,
    shape: Shape,
    token: Token,
    t_sent: u64,
    keep: &'a Keep,
    value: Value,
}

impl<'a> Reading<'a> {
    fn get(key: &'a [u8], token: Token, t_sent: u64, keep: &'a Keep, value: Value) -> Reading<'a> {
        Reading { key, id: None, shape: Shape::GET, token, t_sent, keep, value }
    }
}

/// What the rule of `key` calls its entry, and lets its entries take.
fn labels<'k>(ctx: &Ctx, keep: &'k Keep, key: &[u8]) -> Labels<'k> {
    let terms = keep.terms();
    let tags = terms.tags_of(ctx.own_name(key)).into_iter().map(|(text, template)| Tag { text, template }).collect();
    Labels { tags, share: share_of(ctx, terms) }
}

/// `max_share` in bytes.
pub(crate) fn share_of<'r>(ctx: &Ctx, terms: &'r Rule) -> Option<ShareOf<'r>> {
    let bytes = |part: u16| ctx.config.cache.max_bytes.saturating_mul(part.into()) / u64::from(WHOLE);
    terms.max_share.map(|part| ShareOf { rule: &terms.name, max_bytes: bytes(part) })
}

/// The reply of a GET (or an element of MGET's) as the L1 keeps it; none for errors and for what is too large.
fn cacheable(ctx: &Ctx, keep: &Keep, frame: &[u8]) -> Option<Value> {
    if reply::is_null(frame) {
        return Some(Value::Nil);
    }
    if frame.first() != Some(&b'$') {
        ctx.metrics.discarded.inc(Discard::Error);
        return None;
    }
    if frame.len() > keep.terms().max_value_bytes {
        ctx.metrics.discarded.inc(Discard::TooLarge);
        return None;
    }
    Some(Value::Bulk(frame.into()))
}

/// The same for another command's, whatever its type; its words are kept with it.
fn cacheable_form(ctx: &Ctx, keep: &Keep, id: &FormId, frame: &[u8]) -> Option<Value> {
    if reply::is_error(frame) {
        ctx.metrics.discarded.inc(Discard::Error);
        return None;
    }
    if id.len() + frame.len() > keep.terms().max_value_bytes {
        ctx.metrics.discarded.inc(Discard::TooLarge);
        return None;
    }
    Some(Value::Bulk(frame.into()))
}

/// The whole MGET reply in RESP3, hits and fetched values in the request's order.
fn assemble(fetch: &MgetFetch, replies: &[&[u8]]) -> Vec<u8> {
    let mut out = BytesMut::new();
    crate::resp::build::array(&mut out, fetch.parts.len());
    let mut fetched = replies.iter();
    for part in &fetch.parts {
        match part {
            Part::Hit { value: Value::Bulk(bytes), .. } => out.extend_from_slice(bytes),
            Part::Hit { value: Value::Nil, .. } => out.extend_from_slice(b"_\r\n"),
            Part::Miss => out.extend_from_slice(fetched.next().copied().unwrap_or(b"_\r\n")),
        }
    }
    out.to_vec()
}
