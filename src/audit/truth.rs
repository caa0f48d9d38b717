//! What is known to be true, and the judgement of every reply by it. Every value is a version that only grows, so whether
//! a reply is too old is a comparison of two numbers.
//!
//! **No false alarm.** Times are stamped by one clock in one process: `sent` before the bytes are handed over, `known`
//! after the reply has been read. A write has executed somewhere between the two, so at `known` at the latest; a read was
//! received at `sent` at the earliest. A reply is called stale only if a newer version was *known* more than B before the
//! read was *sent*, which leaves both uncertainties to the sidecar's credit. Write replies that never came count as nothing:
//! their version may or may not exist, until somebody reads it.
//!
//! **While upstream is gone for a sidecar** (`absence` says when that may be) three things are different, and all else is
//! judged as ever. Its replies may be older, by `max_stale` in place of B: an entry that is served was true at its lane's
//! last proof, which is at most `max_stale` before the reply, so a version that was known before *that* must show. What it
//! acknowledges may be queued, so it holds at once for who reads through this sidecar, and for nobody else before upstream
//! has it (`owed`); nor does what is read there show that upstream has it. And a deletion is a version like any other:
//! *missing* is judged as the newest deletion that anybody may have sent, the most that can be said for it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::absence::Absences;
use super::owed::Owed;
use super::promise::Promise;

/// Microseconds since the audit's start.
pub(super) type Micros = u64;

/// Index of a key.
pub(super) type Key = usize;

/// Violations of each property whose evidence is kept; all are counted.
const EVIDENCE_EACH: usize = 5;

/// Versions that are forgotten together.
const FORGET_AT_ONCE: usize = 1000;

/// Redis keeps expiry in whole milliseconds and looks at its clock once per command.
const EXPIRY_GRAIN: Micros = 5_000;

/// What is verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Property {
    /// Nothing older than what this connection has had acknowledged.
    ReadYourWrites,
    /// Nothing older than what the sidecar had acknowledged to anybody when the request was sent.
    SidecarWrites,
    /// Nothing older than what this connection has read.
    Monotonic,
    /// Who has seen the later of two writes sees the earlier one.
    Prefix,
    /// Keys that are written together are read together.
    Torn,
    /// Nothing that was outdated for longer than B, or what else the sidecar's mode promises.
    Staleness,
    /// Nothing past its expiry.
    Expiry,
    /// Nothing that nobody wrote.
    Invented,
    /// With everything quiet, what upstream has.
    AtRest,
    /// The comparisons that a sidecar makes by itself, in service, found nothing.
    Sampled,
    /// What was acknowledged while upstream was gone is there when the queue is done.
    Queued,
    /// When upstream is back the sidecar reads from it, and its queue is done, within a stated time.
    Recovery,
    /// Every request is answered.
    Unanswered,
}

impl Property {
    pub(super) const ALL: [Property; 13] = [
        Property::ReadYourWrites,
        Property::SidecarWrites,
        Property::Monotonic,
        Property::Prefix,
        Property::Torn,
        Property::Staleness,
        Property::Expiry,
        Property::Invented,
        Property::AtRest,
        Property::Sampled,
        Property::Queued,
        Property::Recovery,
        Property::Unanswered,
    ];

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Property::ReadYourWrites => "read_your_writes",
            Property::SidecarWrites => "sidecar_writes",
            Property::Monotonic => "monotonic_reads",
            Property::Prefix => "cross_key_prefix",
            Property::Torn => "torn_multi_key",
            Property::Staleness => "bounded_staleness",
            Property::Expiry => "expiry",
            Property::Invented => "invented_value",
            Property::AtRest => "at_rest",
            Property::Sampled => "in_service_samples",
            Property::Queued => "queued_writes",
            Property::Recovery => "recovery",
            Property::Unanswered => "unanswered",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Actor {
    Session(usize),
    Writer(usize),
}

impl std::fmt::Display for Actor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Actor::Session(n) => write!(f, "session {n}"),
            Actor::Writer(n) => write!(f, "writer {n}"),
        }
    }
}

/// A version that has certainly executed: acknowledged to its writer, or read by somebody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Known {
    pub(super) version: i64,
    pub(super) sent: Micros,
    pub(super) known: Micros,
    pub(super) by: Actor,
    pub(super) how: &'static str,
}

/// A reply about one key, as the session has it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Read {
    pub(super) key: Key,
    pub(super) got: i64,
    pub(super) sent: Micros,
    pub(super) replied: Micros,
    pub(super) session: usize,
    pub(super) sidecar: usize,
    /// Whose promises it is judged by.
    pub(super) place: usize,
    pub(super) how: &'static str,
}

/// Who answered: a sidecar, as one of its users sees it.
#[derive(Clone, Copy, Debug)]
pub(super) struct At {
    pub(super) place: usize,
    /// Several places may lead to one.
    pub(super) sidecar: usize,
}

/// What a reply may not fall behind.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Floors {
    pub(super) written: Option<Known>,
    pub(super) seen: Option<Known>,
    /// As it stood when the request was sent.
    pub(super) sidecar: Option<Known>,
}

#[derive(Debug)]
pub(super) struct Violation {
    pub(super) property: Property,
    pub(super) key: String,
    pub(super) read: Option<Read>,
    /// What says that the reply is wrong.
    pub(super) because: Option<Known>,
    pub(super) note: String,
}

struct History {
    name: String,
    /// Written with this expiry each time.
    life: Option<Micros>,
    /// The newest version that anybody may have written.
    begun: i64,
    /// The newest of those that is a deletion.
    deleted: i64,
    /// Versions in the order in which they were known, only those that were news.
    known: Vec<Known>,
    /// Of those, the ones that a sidecar has announced to the others.
    announced: Vec<Known>,
    /// The newest that each sidecar has acknowledged.
    acknowledged: Vec<Acknowledged>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Acknowledged {
    /// By writes that name their keys.
    named: Option<Known>,
    /// And by scripts that do not, and by hand-overs.
    any: Option<Known>,
}

pub(super) struct Truth {
    start: Instant,
    /// Of each place.
    promises: Vec<Promise>,
    /// No reply may be older than this, whoever gave it.
    longest: Micros,
    /// Requests are answered within this time, or never.
    memory: Micros,
    keys: Vec<History>,
    pub(super) checks: BTreeMap<Property, u64>,
    pub(super) violated: BTreeMap<Property, u64>,
    pub(super) evidence: Vec<Violation>,
    pub(super) reads: u64,
    pub(super) writes: u64,
    /// Replies that were known to be outdated when they were asked for, and by how much at the most.
    pub(super) outdated: u64,
    pub(super) oldest: Micros,
    /// The same of replies that were given while upstream may have been gone.
    pub(super) stale: u64,
    pub(super) oldest_stale: Micros,
    pub(super) absences: Absences,
    pub(super) owed: Owed,
}

impl Truth {
    /// `patience`: how long a request may wait for its answer.
    pub(super) fn new(promises: Vec<Promise>, patience: Duration) -> Truth {
        Truth {
            start: Instant::now(),
            longest: micros(promises.iter().map(Promise::longest_ever).max().unwrap_or_default()),
            absences: Absences::new(promises.len()),
            owed: Owed::new(promises.len()),
            promises,
            memory: micros(patience * 2),
            keys: Vec::new(),
            checks: BTreeMap::new(),
            violated: BTreeMap::new(),
            evidence: Vec::new(),
            reads: 0,
            writes: 0,
            outdated: 0,
            oldest: 0,
            stale: 0,
            oldest_stale: 0,
        }
    }

    pub(super) fn add_key(&mut self, name: String, life: Option<Duration>) -> Key {
        let acknowledged = vec![Acknowledged::default(); self.promises.len()];
        let (life, known, announced) = (life.map(micros), Vec::new(), Vec::new());
        self.keys.push(History { name, life, begun: 0, deleted: 0, known, announced, acknowledged });
        self.keys.len() - 1
    }

    pub(super) fn now(&self) -> Micros {
        micros(self.start.elapsed())
    }

    pub(super) fn name(&self, key: Key) -> &str {
        &self.keys[key].name
    }

    pub(super) fn names(&self) -> impl Iterator<Item = (Key, &str)> {
        self.keys.iter().enumerate().map(|(key, history)| (key, history.name.as_str()))
    }

    pub(super) fn violations(&self) -> u64 {
        self.violated.values().sum()
    }

    /// A count is about to be sent: from now on one more version may exist.
    pub(super) fn begin_count(&mut self, key: Key) {
        self.keys[key].begun += 1;
    }

    /// A value is about to be sent, by the key's only writer.
    pub(super) fn begin_set(&mut self, key: Key) -> i64 {
        self.begin_count(key);
        self.keys[key].begun
    }

    /// A deletion is about to be sent, by the key's only writer.
    pub(super) fn begin_delete(&mut self, key: Key) -> i64 {
        let version = self.begin_set(key);
        self.keys[key].deleted = version;
        version
    }

    /// The version that a reply of this one shows at the most; missing is version 0.
    pub(super) fn at_most(&self, key: Key, got: i64) -> i64 {
        if got == 0 { self.keys[key].deleted } else { got }
    }

    /// No reply is judged any more that was there before this time.
    pub(super) fn horizon(&self) -> Micros {
        self.now().saturating_sub(self.longest.saturating_add(self.memory))
    }

    pub(super) fn promise(&self, place: usize) -> &Promise {
        &self.promises[place]
    }

    pub(super) fn promises(&self) -> &[Promise] {
        &self.promises
    }

    /// The floor for requests that are sent there from now on.
    pub(super) fn acknowledged(&self, key: Key, at: At) -> Option<Known> {
        let floor = self.keys[key].acknowledged[at.sidecar];
        if self.promises[at.place].covers_unnamed { floor.any } else { floor.named }
    }

    /// A write was acknowledged there, which had said which key it writes.
    pub(super) fn acknowledge(&mut self, key: Key, known: Known, at: At) {
        let history = &mut self.keys[key];
        let floor = &mut history.acknowledged[at.sidecar];
        (floor.named, floor.any) = (newer(floor.named, known), newer(floor.any, known));
        if self.may_be_queued(at.place, known.sent, known.known) {
            // Nothing sent since then has reached upstream, so it is the queue that has it.
            let queued = self.absences.away(at.place).is_some_and(|away| away.since <= known.sent);
            return self.owed.add(at.place, key, known, queued);
        }
        let history = &mut self.keys[key];
        if self.promises[at.place].announces && newer(history.announced.last().copied(), known) == Some(known) {
            history.announced.push(known);
        }
        self.learn(key, known);
    }

    /// A write was acknowledged there that did not say so, or was handed over.
    pub(super) fn hand_over(&mut self, key: Key, known: Known, at: At) {
        if self.promises[at.place].covers_unnamed {
            let floor = &mut self.keys[key].acknowledged[at.sidecar];
            floor.any = newer(floor.any, known);
        }
        self.learn(key, known);
    }

    /// Whether what was told there between the two may be the queue's, of which upstream knows nothing.
    fn may_be_queued(&self, place: usize, sent: Micros, replied: Micros) -> bool {
        self.promises[place].outage.queues && self.absences.covers(place, sent, replied)
    }

    /// A version certainly exists since `known.known` at the latest.
    pub(super) fn learn(&mut self, key: Key, known: Known) {
        let history = &mut self.keys[key];
        if history.known.last().is_none_or(|last| last.version < known.version) {
            history.known.push(known);
        }
        // What no reply can be held against any more is forgotten: an audit may last for days.
        let horizon = known.known.saturating_sub(self.longest.saturating_add(self.memory));
        for all in [&mut history.known, &mut history.announced] {
            let old = all.partition_point(|k| k.known < horizon).saturating_sub(1);
            if old >= FORGET_AT_ONCE {
                all.drain(..old);
            }
        }
    }

    /// The newest version that this read had to know, by how old its answer may be.
    fn limit(&self, read: &Read) -> Option<Known> {
        let (history, promise) = (&self.keys[read.key], &self.promises[read.place]);
        let before = |known: &[Known], age: Duration| {
            let time = read.sent.checked_sub(micros(age))?;
            known[..known.partition_point(|k| k.known < time)].last().copied()
        };
        let (announced, others) = match self.may_be_stale(read) {
            Some(max_stale) => promise.while_gone(max_stale),
            None => (promise.announced, promise.others),
        };
        let announced = before(&history.announced, announced);
        let others = before(&history.known, others);
        others.map_or(announced, |others| newer(announced, others))
    }

    /// `outage.max_stale`, if it may have been given while upstream was gone and that sidecar serves stale values then.
    fn may_be_stale(&self, read: &Read) -> Option<Duration> {
        let max_stale = self.promises[read.place].outage.max_stale?;
        self.absences.covers(read.place, read.sent, read.replied).then_some(max_stale)
    }

    /// Holds one reply against all that is known.
    pub(super) fn judge(&mut self, reply: Read, floors: Floors) {
        self.reads += 1;
        let read = Read { got: self.at_most(reply.key, reply.got), ..reply };
        let begun = self.keys[read.key].begun;
        let note = || format!("only {begun} versions had ever been sent");
        self.check(Property::Invented, &read, None, (0..=begun).contains(&read.got), note);
        if let Some(life) = self.keys[read.key].life {
            return self.judge_mortal(read, floors, life);
        }
        self.not_behind(Property::ReadYourWrites, &read, floors.written);
        self.not_behind(Property::Monotonic, &read, self.ordered(&read, floors.seen));
        self.not_behind(Property::SidecarWrites, &read, floors.sidecar);
        self.note_age(&read);
        self.not_behind(Property::Staleness, &read, self.limit(&read));
        // Missing shows nothing for certain.
        if reply.got != 0 && !self.may_be_queued(read.place, read.sent, read.replied) {
            self.has_read(&read);
        }
    }

    /// A key that comes and goes: nothing past its expiry, and *missing* only where it may be.
    fn judge_mortal(&mut self, read: Read, floors: Floors, life: Micros) {
        let limit = self.limit(&read);
        if read.got == 0 {
            // Missing is wrong only if a version was there all the time the bound before the request until the reply.
            let alive = limit.filter(|known| known.sent + life > read.replied);
            return self.not_behind(Property::Staleness, &read, alive);
        }
        self.not_behind(Property::Monotonic, &read, self.ordered(&read, floors.seen));
        self.not_behind(Property::Staleness, &read, limit);
        let written = self.keys[read.key].known.iter().rev().find(|k| k.version == read.got).copied();
        if let Some(written) = written.filter(|w| matches!(w.by, Actor::Writer(_)) && w.how != READ) {
            // Who joins a read under way has its answer, and that one was sent before this one, by no more than a copy may be
            // old. From outside a read that has joined is no different from a hit, so hits have that grace too; that they
            // need none is tested where one can see them (c08).
            let joined = micros(self.promises[read.place].others);
            let over = written.known + life + joined + EXPIRY_GRAIN;
            let note = || format!("it had expired at {} ms", over / 1000);
            self.check(Property::Expiry, &read, Some(written), read.sent <= over, note);
        }
    }

    fn ordered(&self, read: &Read, seen: Option<Known>) -> Option<Known> {
        seen.filter(|_| self.promises[read.place].orders(read.how))
    }

    fn has_read(&mut self, read: &Read) {
        let Read { key, got: version, sent, replied: known, session, .. } = *read;
        self.learn(key, Known { version, sent, known, by: Actor::Session(session), how: READ });
    }

    fn note_age(&mut self, read: &Read) {
        let known = &self.keys[read.key].known;
        let successor = known[known.partition_point(|k| k.version <= read.got)..].first();
        if let Some(successor) = successor.filter(|s| s.known < read.sent) {
            let age = read.sent - successor.known;
            let (count, oldest) = match self.may_be_stale(read) {
                Some(_) => (&mut self.stale, &mut self.oldest_stale),
                None => (&mut self.outdated, &mut self.oldest),
            };
            *count += 1;
            *oldest = age.max(*oldest);
        }
    }

    fn not_behind(&mut self, property: Property, read: &Read, floor: Option<Known>) {
        if let Some(floor) = floor {
            self.check(property, read, Some(floor), read.got >= floor.version, String::new);
        }
    }

    /// One thing that was verified of a reply, if whoever gave it promises it.
    pub(super) fn check(
        &mut self,
        property: Property,
        read: &Read,
        because: Option<Known>,
        holds: bool,
        note: impl FnOnce() -> String,
    ) {
        if !self.promises[read.place].judges(property) {
            return;
        }
        *self.checks.entry(property).or_default() += 1;
        if !holds {
            let key = self.keys[read.key].name.clone();
            self.violate(Violation { property, key, read: Some(*read), because, note: note() });
        }
    }

    /// Something that is wrong without a reply that could be held against anything.
    pub(super) fn check_at_large(&mut self, property: Property, key: &str, holds: bool, note: impl FnOnce() -> String) {
        *self.checks.entry(property).or_default() += 1;
        if !holds {
            self.violate(Violation { property, key: key.to_owned(), read: None, because: None, note: note() });
        }
    }

    /// What a sidecar has compared by itself meanwhile.
    pub(super) fn note_samples(&mut self, sidecar: &str, checked: u64, stale: u64) {
        *self.checks.entry(Property::Sampled).or_default() += checked;
        if stale > 0 {
            let note = format!("{sidecar} found {stale} of its own entries stale; its log names their hashes");
            self.violate(Violation {
                property: Property::Sampled,
                key: String::new(),
                read: None,
                because: None,
                note,
            });
        }
    }

    fn violate(&mut self, violation: Violation) {
        *self.violated.entry(violation.property).or_default() += 1;
        // The first of each kind says most; of one that comes in thousands the others say nothing new.
        let same = self.evidence.iter().filter(|v| v.property == violation.property).count();
        if same < EVIDENCE_EACH {
            self.evidence.push(violation);
        }
    }
}

fn newer(floor: Option<Known>, known: Known) -> Option<Known> {
    floor.filter(|floor| floor.version >= known.version).or(Some(known))
}

const READ: &str = "read";

pub(super) fn micros(d: Duration) -> Micros {
    u64::try_from(d.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
