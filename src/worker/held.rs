//! What is acknowledged here and not done upstream: one `Held` for each profile that wrote while upstream was gone. It is
//! the queue of its writes and, beside it, a local engine that knows every key that was written, so that the next command
//! on such a key has its reply. Everything is by upstream's names of keys; the engine's database 0 is the profile's own.
//!
//! **All or nothing.** A command is carried out on the engine first; what it did becomes effects. Where there is no room
//! for them, or the journal does not take them, the engine is put back as it was and the client is refused. So the
//! engine never shows what was not acknowledged, and nothing acknowledged is missing in the queue.
//!
//! What it does not do: it sends nothing (`coherence::replay`), and does not decide who may write (`session`).

use std::cell::{OnceCell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use bytes::BytesMut;
use foldhash::fast::RandomState;

use super::Ctx;
use super::ledger::{Ledger, who};
use crate::local::{self, Call, Command, Engine, TooLong};
use crate::observe::reasons::Replayed;
use crate::outage::journal::{Refused, Who, Write};
use crate::outage::queue::{Base, Effect, New, Queue};
use crate::upstream::Profile;

/// The engine's only database that is used.
pub(crate) const DB: u32 = 0;

/// What one name costs in the map of those that are known.
const NAME_OVERHEAD: usize = 96;

/// What becomes of a write when upstream is back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum How {
    /// It is done there.
    Queue,
    /// It is forgotten.
    Local,
}

/// A key's value as the L1 has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) value: Vec<u8>,
    pub(crate) expire_at_ms: Option<i64>,
}

/// A key of a command, and what the L1 has of it where the engine knows nothing.
pub(crate) struct Named<'k> {
    pub(crate) key: &'k [u8],
    pub(crate) found: Option<Found>,
}

/// What is still free of the bounds of all queues together.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Room {
    pub(crate) count: usize,
    pub(crate) bytes: usize,
}

/// Why a write was not taken. Nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NotTaken {
    /// `outage.queue_max`.
    Count,
    /// `outage.queue_max_bytes`.
    Bytes,
    /// The reply would be longer than `listen.output_limit`.
    TooLong,
    /// The journal did not take it.
    Journal(Refused),
}

/// How the engine came to know a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Known {
    /// What it has of it is, or will be, what upstream has.
    Upstream,
    /// It was written here only.
    Here,
}

pub(crate) struct Held {
    pub(crate) queue: Queue,
    engine: Engine,
    known: HashMap<Box<[u8]>, Known, RandomState>,
    names: usize,
    /// Effects of writes that are to be forgotten.
    local_writes: u64,
    replayed: [u64; Replayed::COUNT],
    /// Where there is a journal: it, and whose this is in its words.
    ledger: Option<(Rc<Ledger>, Arc<Who>)>,
}

impl Held {
    fn new() -> Held {
        Held {
            queue: Queue::default(),
            engine: Engine::keeping(1),
            known: HashMap::default(),
            names: 0,
            local_writes: 0,
            replayed: [0; Replayed::COUNT],
            ledger: None,
        }
    }

    /// What was acknowledged before this process, as the journal has it.
    pub(super) fn restore(&mut self, at: u64, write: Write) {
        self.engine.set_max_bytes(u64::MAX);
        for new in &write.effects {
            match &new.effect {
                Effect::Set { key, value, expire_at_ms } => {
                    self.engine.put(0, DB, key, value, *expire_at_ms);
                }
                Effect::Del { key } => self.engine.forget_key(DB, key),
            }
            self.know(new.effect.key(), Known::Upstream);
        }
        self.queue.restore(at, write.effects, write.first);
    }

    fn know(&mut self, key: &[u8], known: Known) {
        if self.known.insert(key.into(), known).is_none() {
            self.names += key.len() + NAME_OVERHEAD;
        }
    }

    pub(crate) fn knows(&self, key: &[u8]) -> bool {
        self.known.contains_key(key)
    }

    pub(crate) fn local_writes(&self) -> u64 {
        self.local_writes
    }

    /// What it weighs: the queue, and what the replies rest on.
    pub(crate) fn bytes(&self) -> usize {
        self.queue.bytes() + self.engine.size().1 as usize + self.names
    }

    /// A key's value as the next command would find it; none: no such key.
    pub(crate) fn value(&self, now: i64, key: &[u8]) -> Option<(&[u8], Option<i64>)> {
        self.engine.value(now, DB, key)
    }

    /// Everything up to `seq` is done upstream, or is given up.
    ///
    /// The one place where the queue becomes shorter: the journal is told here.
    pub(crate) fn applied(&mut self, seq: u64) {
        if let Some((ledger, who)) = &self.ledger
            && let Some(mark) = self.queue.mark_of(seq)
        {
            ledger.applied(who, mark);
        }
        self.queue.applied(seq);
    }

    pub(crate) fn count(&mut self, what: Replayed) {
        self.replayed[what as usize] += 1;
    }

    /// What has become of its writes so far.
    pub(crate) fn replayed(&self) -> impl Iterator<Item = (&'static str, u64)> {
        Replayed::WORDS.iter().copied().zip(self.replayed.iter().copied())
    }

    pub(crate) fn known(&self) -> impl Iterator<Item = &[u8]> {
        self.known.keys().map(|key| &**key)
    }

    /// Its series is not to be done, so what was answered of it holds no longer.
    pub(crate) fn forget(&mut self, key: &[u8], why: Replayed) {
        self.queue.skip(key, why);
        if self.known.remove(key).is_some() {
            self.names -= key.len() + NAME_OVERHEAD;
        }
        self.engine.forget_key(DB, key);
    }

    /// Upstream has all that was queued of the key: it is upstream's to answer again.
    pub(crate) fn release(&mut self, key: &[u8]) {
        if self.known.get(key) == Some(&Known::Upstream) && !self.queue.has(key) {
            self.known.remove(key);
            self.names -= key.len() + NAME_OVERHEAD;
            self.engine.forget_key(DB, key);
        }
    }

    /// Answers a read. What the L1 has of its keys is lent to the engine for that long.
    pub(crate) fn read(
        &mut self,
        command: Command,
        call: &Call<'_>,
        keys: &[Named<'_>],
        out: &mut BytesMut,
    ) -> Result<(), TooLong> {
        self.engine.set_max_bytes(u64::MAX);
        let lent = || keys.iter().filter(|named| named.found.is_some() && !self.known.contains_key(named.key));
        let saved = self.engine.save(DB, lent().map(|named| named.key));
        for named in lent() {
            if let Some(found) = &named.found {
                self.engine.put(call.now, DB, named.key, &found.value, found.expire_at_ms);
            }
        }
        let done = self.engine.execute(command, call, out);
        self.engine.restore(saved);
        done
    }

    /// Carries out a write; its reply is in `out` then. Returns the keys it has changed.
    pub(crate) fn write(
        &mut self,
        how: How,
        (command, call): (Command, &Call<'_>),
        keys: &[Named<'_>],
        (room, at): (Room, u64),
        out: &mut BytesMut,
    ) -> Result<Vec<Box<[u8]>>, NotTaken> {
        let start = out.len();
        let before = self.engine.size().1;
        self.engine.set_max_bytes(before + room.bytes as u64);
        let saved = self.engine.save(DB, keys.iter().map(|named| named.key));
        let bases: Vec<Base> = keys.iter().map(|named| self.base(call.now, named)).collect();
        let taken = self.carry_out(command, call, keys, out).and_then(|effects| {
            let grown = self.engine.size().1.saturating_sub(before) as usize;
            let new = effects.into_iter().map(|effect| based(effect, keys, &bases)).collect();
            self.take(how, new, room, grown, at)
        });
        match taken {
            Ok(changed) => {
                self.unlend(keys, &changed);
                Ok(changed)
            }
            Err(why) => {
                self.engine.restore(saved);
                out.truncate(start);
                Err(why)
            }
        }
    }

    /// On the engine, which knows all that is known of the keys while it does so.
    fn carry_out(
        &mut self,
        command: Command,
        call: &Call<'_>,
        keys: &[Named<'_>],
        out: &mut BytesMut,
    ) -> Result<Vec<Effect>, NotTaken> {
        for named in keys.iter().filter(|named| !self.known.contains_key(named.key)) {
            if let Some(found) = &named.found
                && !self.engine.put(call.now, DB, named.key, &found.value, found.expire_at_ms)
            {
                return Err(NotTaken::Bytes);
            }
        }
        let refused = self.engine.counts().refused;
        let effects = self.engine.apply(command, call, out).map_err(|TooLong| NotTaken::TooLong)?;
        if self.engine.counts().refused > refused {
            return Err(NotTaken::Bytes);
        }
        Ok(effects.into_iter().filter_map(effect).collect())
    }

    /// The effects of one command become the queue's, or are only counted.
    ///
    /// The one place where a write becomes acknowledged: the journal is appended to here, before the queue is.
    fn take(&mut self, how: How, new: Vec<New>, room: Room, grown: usize, at: u64) -> Result<Vec<Box<[u8]>>, NotTaken> {
        let fresh = |new: &&New| !self.known.contains_key(new.effect.key());
        let names: usize = new.iter().filter(fresh).map(|new| new.effect.key().len() + NAME_OVERHEAD).sum();
        let queued: usize = if how == How::Queue { new.iter().map(New::bytes).sum() } else { 0 };
        if grown + names + queued > room.bytes && !new.is_empty() {
            return Err(NotTaken::Bytes);
        }
        if how == How::Queue && new.len() > room.count {
            return Err(NotTaken::Count);
        }
        let changed: Vec<Box<[u8]>> = new.iter().map(|new| new.effect.key().into()).collect();
        match how {
            How::Queue => {
                // Before the queue: what the journal cannot take was never acknowledged.
                let mark = self.book(&new)?;
                self.queue.push_marked(at, new, mark);
            }
            How::Local => self.local_writes += new.len() as u64,
        }
        for key in &changed {
            // What is written here only stays unknown upstream, whatever is made of it later.
            let known = if how == How::Queue { Known::Upstream } else { Known::Here };
            self.know(key, known);
        }
        Ok(changed)
    }

    /// Hands the effects to the journal. The number of the first; 0: there is no journal.
    fn book(&self, new: &[New]) -> Result<u64, NotTaken> {
        match &self.ledger {
            Some((ledger, who)) if !new.is_empty() => {
                let last = ledger.append(who, new).map_err(NotTaken::Journal)?;
                Ok(last + 1 - new.len() as u64)
            }
            _ => Ok(0),
        }
    }

    /// What upstream has of the key before this command, as far as is known here.
    fn base(&self, now: i64, named: &Named<'_>) -> Base {
        let base = |value: &[u8], expire_at_ms| Base::Value { value: value.into(), expire_at_ms };
        match self.known.get(named.key) {
            // Asked only where nothing of it is queued any more: then it is done.
            Some(Known::Upstream) if !self.queue.has(named.key) => {
                self.engine.value(now, DB, named.key).map_or(Base::Absent, |(value, at)| base(value, at))
            }
            Some(_) => Base::Unknown,
            None => named.found.as_ref().map_or(Base::Unknown, |found| base(&found.value, found.expire_at_ms)),
        }
    }

    /// Keys that the command has only looked at are the L1's again.
    fn unlend(&mut self, keys: &[Named<'_>], changed: &[Box<[u8]>]) {
        for named in keys.iter().filter(|named| named.found.is_some()) {
            if !self.known.contains_key(named.key) && !changed.iter().any(|key| **key == *named.key) {
                self.engine.forget_key(DB, named.key);
            }
        }
    }
}

fn based(effect: Effect, keys: &[Named<'_>], bases: &[Base]) -> New {
    let base = keys.iter().position(|named| named.key == effect.key()).map(|i| bases[i].clone());
    New { effect, base: base.unwrap_or(Base::Unknown) }
}

fn effect(effect: local::Effect) -> Option<Effect> {
    match effect {
        local::Effect::Set { key, value, expire_at_ms, .. } => {
            Some(Effect::Set { key, value: value.into(), expire_at_ms })
        }
        local::Effect::Del { key, .. } => Some(Effect::Del { key }),
        // No command that is accepted changes a whole database.
        local::Effect::Database { .. } => None,
    }
}

/// All of them.
#[derive(Default)]
pub(crate) struct AllHeld {
    by_profile: RefCell<HashMap<Profile, Rc<RefCell<Held>>>>,
    /// Knows nothing.
    empty: OnceCell<Rc<RefCell<Held>>>,
    ledger: OnceCell<Rc<Ledger>>,
}

impl AllHeld {
    pub(crate) fn of(&self, profile: &Profile) -> Option<Rc<RefCell<Held>>> {
        self.by_profile.borrow().get(profile).cloned()
    }

    pub(crate) fn begin(&self, profile: &Profile) -> Rc<RefCell<Held>> {
        let ledger = || self.ledger().map(|ledger| (ledger, who(profile)));
        let fresh = || Rc::new(RefCell::new(Held { ledger: ledger(), ..Held::new() }));
        self.by_profile.borrow_mut().entry(profile.clone()).or_insert_with(fresh).clone()
    }

    pub(super) fn set_ledger(&self, ledger: Rc<Ledger>) {
        debug_assert!(self.by_profile.borrow().is_empty(), "something was queued past the journal");
        let _ = self.ledger.set(ledger);
    }

    pub(crate) fn ledger(&self) -> Option<Rc<Ledger>> {
        self.ledger.get().cloned()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.by_profile.borrow().is_empty()
    }

    /// Profiles with something that waits.
    pub(super) fn waiting_profiles(&self) -> Vec<Profile> {
        let waits = |held: &Rc<RefCell<Held>>| !held.borrow().queue.is_empty();
        self.by_profile.borrow().iter().filter(|(_, held)| waits(held)).map(|(profile, _)| profile.clone()).collect()
    }

    /// What answers reads of a profile that has written nothing.
    pub(crate) fn nobodys(&self) -> Rc<RefCell<Held>> {
        self.empty.get_or_init(|| Rc::new(RefCell::new(Held::new()))).clone()
    }

    /// Upstream has all of it, or it is given up.
    pub(crate) fn end(&self, profile: &Profile) -> Option<Rc<RefCell<Held>>> {
        self.by_profile.borrow_mut().remove(profile)
    }

    /// Whether something of this profile waits for upstream.
    pub(crate) fn waits(&self, profile: &Profile) -> bool {
        self.of(profile).is_some_and(|held| !held.borrow().queue.is_empty())
    }

    /// Effects that wait, of all profiles.
    pub(crate) fn depth(&self) -> usize {
        self.by_profile.borrow().values().map(|held| held.borrow().queue.len()).sum()
    }

    pub(crate) fn bytes(&self) -> usize {
        self.by_profile.borrow().values().map(|held| held.borrow().bytes()).sum()
    }

    /// When the oldest was acknowledged.
    pub(crate) fn oldest(&self) -> Option<u64> {
        self.by_profile.borrow().values().filter_map(|held| held.borrow().queue.oldest()).min()
    }
}

#[cfg(test)]
mod tests;

impl Ctx {
    /// What the bounds of all queues leave.
    pub(crate) fn room(&self) -> Room {
        let outage = &self.config.outage;
        Room {
            count: outage.queue_max.saturating_sub(self.held.depth()),
            bytes: outage.queue_max_bytes.saturating_sub(self.held.bytes()),
        }
    }

    /// Figures for others, after anything of it has changed.
    pub(crate) fn show_held(&self) {
        let queue = &self.metrics.queue;
        queue.depth.set(self.held.depth() as u64);
        queue.bytes.set(self.held.bytes() as u64);
        queue.oldest.set(self.held.oldest().unwrap_or(0));
    }
}
