//! The local engine: strings, keys, expiry, publish and subscribe, and what WATCH needs, as a Redis 7.0 does it, in this
//! process's memory. It serves where no upstream is named (`upstream.url: embedded`), and is made to be the state of
//! writes that wait for an upstream that is gone.
//!
//! Pure: no socket, no clock, no chance of its own. Time comes with the call, randomness from a seed, so the same calls
//! give the same replies and the same data. What is a client's (protocol, database, an open MULTI) is the session's; the
//! engine knows a client by number, for what it watches and listens to.
//!
//! **Memory.** Keys, values and what they cost besides (`db::OVERHEAD`) are counted and stay within a budget: a write that
//! needs room evicts the least recently used of a few keys drawn by lot, again and again, as `allkeys-lru` does; one that
//! has no room even so changes nothing and is refused with Redis's own `-OOM`.
//!
//! **Expiry.** A key past its time is gone for everybody: whoever meets it deletes it. `sweep` finds those that nobody
//! asks for, a bounded piece at a time.

mod db;
mod keys;
mod long_double;
mod scan;
mod strings;
mod topics;
mod watch;

#[cfg(test)]
mod tests;

use std::borrow::Cow;

use bytes::BytesMut;

use crate::command::Request;
use crate::resp::Proto;
use crate::resp::build;

pub(crate) use topics::{Space, Topics};

use db::{Db, Entry, NEVER};
use watch::{Change, Watches};

/// As Redis has by default.
pub(crate) const DATABASES: u32 = 16;

/// Keys drawn for one eviction, as Redis's `maxmemory-samples` by default.
const SAMPLES: usize = 5;

/// Entries that one sweep looks at in each database before it asks whether to go on, and how often it goes on while a
/// quarter of them were expired. Together under a millisecond.
const SWEEP_STEP: usize = 1000;
const SWEEP_STEPS_MAX: usize = 16;

/// One command for the engine. `req` has the right number of words for its row in the table.
#[derive(Clone, Copy)]
pub(crate) struct Call<'a> {
    /// Milliseconds since 1970.
    pub(crate) now: i64,
    /// Below `DATABASES`.
    pub(crate) db: u32,
    pub(crate) proto: Proto,
    /// Canonical name, in lower case; errors name it.
    pub(crate) name: &'static str,
    pub(crate) req: &'a Request<'a>,
    /// A reply that would become longer is given up (`Engine::execute`).
    pub(crate) reply_max: usize,
}

/// An error reply, with its code. Nothing was changed.
type Refusal = Cow<'static, str>;

type Outcome = Result<(), Refusal>;

type Handler = fn(&mut Engine, &Call<'_>, &mut BytesMut) -> Outcome;

/// A command the engine has.
#[derive(Clone, Copy)]
pub(crate) struct Command(Handler);

/// The reply has become longer than `Call::reply_max`. What is in the buffer is not whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TooLong;

/// What a command has done to a key: enough to do it again, once or twice, to another server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    /// `SET key value`, with `PXAT` where it expires.
    Set {
        db: u32,
        key: Box<[u8]>,
        value: Vec<u8>,
        expire_at_ms: Option<i64>,
    },
    Del {
        db: u32,
        key: Box<[u8]>,
    },
    /// All of a database has changed (FLUSHDB, FLUSHALL, SWAPDB): no list of keys says how.
    Database {
        db: u32,
    },
}

/// Keys as they were.
pub(crate) struct Saved(Vec<(u32, Box<[u8]>, Option<Entry>)>);

/// What a recording remembers until it is asked for effects.
#[derive(Debug, PartialEq, Eq)]
enum Changed {
    Key(u32, Box<[u8]>),
    Database(u32),
}

/// Counted since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) evicted: u64,
    pub(crate) expired: u64,
    /// Writes that were refused because there was no room.
    pub(crate) refused: u64,
    pub(crate) hits: u64,
    pub(crate) misses: u64,
}

pub(crate) struct Engine {
    dbs: Vec<Db>,
    max_bytes: usize,
    watches: Watches,
    pub(crate) topics: Topics,
    recording: Option<Vec<Changed>>,
    /// Where there is no room something is evicted; else the write is refused.
    evicts: bool,
    counts: Counts,
    random: u64,
}

/// The command with this canonical name, if the engine has it.
pub(crate) fn command(name: &str) -> Option<Command> {
    let handler: Handler = match name {
        "get" => strings::get,
        "set" => strings::set,
        "mget" => strings::mget,
        "mset" | "msetnx" => strings::mset,
        "setnx" => strings::setnx,
        "setex" | "psetex" => strings::setex,
        "getset" => strings::getset,
        "getdel" => strings::getdel,
        "getex" => strings::getex,
        "append" => strings::append,
        "strlen" => strings::strlen,
        "setrange" => strings::setrange,
        "getrange" | "substr" => strings::getrange,
        "incr" | "decr" | "incrby" | "decrby" => strings::incr,
        "incrbyfloat" => strings::incrbyfloat,
        "del" | "unlink" => keys::del,
        "exists" | "touch" => keys::exists,
        "type" => keys::kind,
        "ttl" | "pttl" | "expiretime" | "pexpiretime" => keys::ttl,
        "expire" | "pexpire" | "expireat" | "pexpireat" => keys::expire,
        "persist" => keys::persist,
        "rename" | "renamenx" => keys::rename,
        "copy" => keys::copy,
        "move" => keys::move_key,
        "object|encoding" | "object|idletime" | "object|freq" => keys::object,
        "swapdb" => keys::swapdb,
        "flushdb" | "flushall" => keys::flush,
        "dbsize" => scan::dbsize,
        "keys" => scan::keys,
        "scan" => scan::scan,
        "randomkey" => scan::randomkey,
        "pubsub|channels" | "pubsub|shardchannels" => scan::channels,
        "pubsub|numsub" | "pubsub|shardnumsub" => scan::numsub,
        "pubsub|numpat" => scan::numpat,
        _ => return None,
    };
    Some(Command(handler))
}

impl Engine {
    /// `seed`: what all chance comes from.
    pub(crate) fn new(max_bytes: u64, seed: u64) -> Engine {
        Engine {
            dbs: (0..DATABASES).map(|_| Db::default()).collect(),
            max_bytes: usize::try_from(max_bytes).unwrap_or(usize::MAX),
            watches: Watches::default(),
            topics: Topics::default(),
            recording: None,
            evicts: true,
            counts: Counts::default(),
            // xorshift stays at zero.
            random: seed | 1,
        }
    }

    /// One that keeps everything it is given: a write beyond its bound is refused, nothing is evicted. What it holds has
    /// been acknowledged, or is what an acknowledgement rests on.
    pub(crate) fn keeping(seed: u64) -> Engine {
        Engine { evicts: false, ..Engine::new(0, seed) }
    }

    /// Bounds it anew.
    pub(crate) fn set_max_bytes(&mut self, max_bytes: u64) {
        self.max_bytes = usize::try_from(max_bytes).unwrap_or(usize::MAX);
    }

    /// Carries out one command and appends its reply.
    pub(crate) fn execute(&mut self, command: Command, call: &Call<'_>, out: &mut BytesMut) -> Result<(), TooLong> {
        let start = out.len();
        if let Err(refusal) = (command.0)(self, call, out) {
            debug_assert_eq!(out.len(), start, "a refused command has answered");
            build::error(out, &refusal);
        }
        if out.len() - start > call.reply_max { Err(TooLong) } else { Ok(()) }
    }

    /// The same, and what it has done. A key that was changed twice has one effect; one that only expired has none.
    pub(crate) fn apply(
        &mut self,
        command: Command,
        call: &Call<'_>,
        out: &mut BytesMut,
    ) -> Result<Vec<Effect>, TooLong> {
        self.recording = Some(Vec::new());
        let done = self.execute(command, call, out);
        let changed = self.recording.take().unwrap_or_default();
        done.map(|()| changed.into_iter().map(|changed| self.effect(changed)).collect())
    }

    fn effect(&self, changed: Changed) -> Effect {
        match changed {
            Changed::Database(db) => Effect::Database { db },
            Changed::Key(db, key) => match self.dbs[db as usize].get(&key) {
                None => Effect::Del { db, key },
                Some(entry) => {
                    let expire_at_ms = (entry.expires != NEVER).then_some(entry.expires);
                    Effect::Set { db, key, value: entry.value.clone(), expire_at_ms }
                }
            },
        }
    }

    /// Puts in what is known of a key from elsewhere, as if it had been set before. False: there is no room.
    pub(crate) fn put(&mut self, now: i64, db: u32, key: &[u8], value: &[u8], expire_at_ms: Option<i64>) -> bool {
        if self.make_room(now, db::weight(key.len(), value.len()), &[]).is_err() {
            return false;
        }
        let expires = expire_at_ms.unwrap_or(NEVER);
        let entry = Entry { value: value.to_vec(), expires, used: now as u32, form: db::Form::Sent };
        self.dbs[db as usize].insert(key, entry);
        true
    }

    /// Some keys as they are, to be put back by `restore`.
    pub(crate) fn save<'k>(&self, db: u32, keys: impl Iterator<Item = &'k [u8]>) -> Saved {
        Saved(keys.map(|key| (db, key.into(), self.dbs[db as usize].get(key).cloned())).collect())
    }

    pub(crate) fn restore(&mut self, saved: Saved) {
        for (db, key, entry) in saved.0 {
            match entry {
                Some(entry) => self.dbs[db as usize].insert(&key, entry),
                None => drop(self.dbs[db as usize].remove(&key)),
            }
        }
    }

    /// As if it had never been there.
    pub(crate) fn forget_key(&mut self, db: u32, key: &[u8]) {
        self.dbs[db as usize].remove(key);
    }

    /// A key's value and expiry, without a trace of having looked; none: there is no such key now.
    pub(crate) fn value(&self, now: i64, db: u32, key: &[u8]) -> Option<(&[u8], Option<i64>)> {
        let entry = self.dbs[db as usize].get(key).filter(|entry| !entry.is_expired(now))?;
        Some((&entry.value, (entry.expires != NEVER).then_some(entry.expires)))
    }

    pub(crate) fn counts(&self) -> Counts {
        self.counts
    }

    /// Keys and bytes of all databases.
    pub(crate) fn size(&self) -> (u64, u64) {
        (self.dbs.iter().map(|db| db.len() as u64).sum(), self.weight() as u64)
    }

    pub(crate) fn max_bytes(&self) -> u64 {
        self.max_bytes as u64
    }

    /// Databases that hold something: number, keys, keys with an expiry.
    pub(crate) fn keyspace(&self) -> impl Iterator<Item = (usize, usize, usize)> {
        let dbs = self.dbs.iter().enumerate().filter(|(_, db)| db.len() > 0);
        dbs.map(|(n, db)| (n, db.len(), db.expiring()))
    }

    /// Deletes expired keys that nobody asks for, in bounded time.
    pub(crate) fn sweep(&mut self, now: i64) {
        for db in 0..DATABASES {
            for _ in 0..SWEEP_STEPS_MAX {
                let looks = self.dbs[db as usize].len().min(SWEEP_STEP);
                let expired = (0..looks).filter(|_| self.sweep_one(db, now)).count();
                if expired * 4 < SWEEP_STEP {
                    break;
                }
            }
        }
    }

    fn sweep_one(&mut self, db: u32, now: i64) -> bool {
        if self.dbs[db as usize].expiring() == 0 {
            return false;
        }
        let Some(at) = self.dbs[db as usize].next_to_sweep() else { return false };
        let found = self.dbs[db as usize].at(at).filter(|(_, entry)| entry.is_expired(now));
        let Some(key) = found.map(|(key, _)| key.to_vec()) else { return false };
        self.reap(now, db, &key)
    }

    // ---- what a client watches ----

    /// True where this is new.
    pub(crate) fn watch(&mut self, now: i64, client: u64, db: u32, key: &[u8]) -> bool {
        let expired = self.dbs[db as usize].get(key).is_some_and(|entry| entry.is_expired(now));
        self.watches.watch(client, db, key, expired)
    }

    pub(crate) fn unwatch(&mut self, client: u64) {
        self.watches.unwatch(client);
    }

    /// Whether a key that the client watches has changed, or has expired since it began to.
    pub(crate) fn is_fouled(&self, now: i64, client: u64) -> bool {
        let expired =
            |(db, key): (u32, &[u8])| self.dbs[db as usize].get(key).is_some_and(|entry| entry.is_expired(now));
        self.watches.is_dirty(client) || self.watches.of(client).any(expired)
    }

    /// The client has gone.
    pub(crate) fn forget(&mut self, client: u64) {
        self.watches.unwatch(client);
        self.topics.forget(client);
    }
}

/// What the commands are made of.
impl Engine {
    fn weight(&self) -> usize {
        self.dbs.iter().map(Db::weight).sum()
    }

    /// Deletes the key if its time is over. True: it was.
    fn reap(&mut self, now: i64, db: u32, key: &[u8]) -> bool {
        let there = &mut self.dbs[db as usize];
        if !there.get(key).is_some_and(|entry| entry.is_expired(now)) {
            return false;
        }
        there.remove(key);
        self.counts.expired += 1;
        self.watches.touch(db, key, false);
        true
    }

    /// The entry as it is now, without a trace of having looked.
    fn peek(&mut self, call: &Call<'_>, db: u32, key: &[u8]) -> Option<&Entry> {
        self.reap(call.now, db, key);
        self.dbs[db as usize].get(key)
    }

    /// The entry as a command that reads or writes it finds it.
    fn find(&mut self, call: &Call<'_>, key: &[u8]) -> Option<&Entry> {
        self.reap(call.now, call.db, key);
        let db = &mut self.dbs[call.db as usize];
        db.change(key, |entry| entry.used = call.now as u32)?;
        db.get(key)
    }

    /// The same, counted as INFO counts reads.
    fn read(&mut self, call: &Call<'_>, key: &[u8]) -> Option<&Entry> {
        let there = self.find(call, key).is_some();
        self.counts.hits += u64::from(there);
        self.counts.misses += u64::from(!there);
        self.dbs[call.db as usize].get(key)
    }

    /// A key has been changed by a command.
    fn touched(&mut self, db: u32, key: &[u8]) {
        let there = self.dbs[db as usize].get(key).is_some();
        self.watches.touch(db, key, there);
        self.record(|| Changed::Key(db, key.into()));
    }

    fn record(&mut self, changed: impl FnOnce() -> Changed) {
        if let Some(recorded) = &mut self.recording {
            let changed = changed();
            if !recorded.contains(&changed) {
                recorded.push(changed);
            }
        }
    }

    /// Sets a key as SET does. There must be room.
    fn put_entry(&mut self, call: &Call<'_>, db: u32, key: &[u8], entry: Entry) {
        let entry = Entry { used: call.now as u32, ..entry };
        self.dbs[db as usize].insert(key, entry);
        self.touched(db, key);
    }

    fn delete(&mut self, db: u32, key: &[u8]) -> bool {
        let there = self.dbs[db as usize].remove(key).is_some();
        if there {
            self.touched(db, key);
        }
        there
    }

    /// Makes room for `bytes` more, by evicting anything but `kept`.
    fn make_room(&mut self, now: i64, bytes: usize, kept: &[(u32, &[u8])]) -> Outcome {
        let own: usize = kept.iter().filter_map(|(db, key)| self.entry_weight(*db, key)).sum();
        if own.saturating_add(bytes) > self.max_bytes {
            self.counts.refused += 1;
            return Err("OOM command not allowed when used memory > 'maxmemory'.".into());
        }
        while self.weight() + bytes > self.max_bytes {
            let Some((db, key)) = self.evicts.then(|| self.draw(now, kept)).flatten() else {
                self.counts.refused += 1;
                return Err("OOM command not allowed when used memory > 'maxmemory'.".into());
            };
            self.dbs[db as usize].remove(&key);
            self.counts.evicted += 1;
            self.watches.touch(db, &key, false);
        }
        Ok(())
    }

    fn entry_weight(&self, db: u32, key: &[u8]) -> Option<usize> {
        self.dbs[db as usize].get(key).map(|entry| db::weight(key.len(), entry.value.capacity()))
    }

    /// The key to evict: of a few drawn by lot the one that was unused for longest, an expired one before all others.
    fn draw(&mut self, now: i64, kept: &[(u32, &[u8])]) -> Option<(u32, Vec<u8>)> {
        let total: usize = self.dbs.iter().map(Db::len).sum();
        let mut oldest: Option<(bool, u32, u32, Vec<u8>)> = None;
        // Where only a few are left the draw may meet none but `kept`: then they are looked at in turn.
        let turns = if total <= SAMPLES + kept.len() { total } else { SAMPLES };
        for turn in 0..turns {
            let nth = if turns == total { turn } else { self.next_random() as usize % total };
            let Some((db, key, entry)) = self.nth(nth) else { continue };
            if kept.iter().any(|(kept_db, kept_key)| *kept_db == db && *kept_key == key) {
                continue;
            }
            let age = (now as u32).wrapping_sub(entry.used);
            let better = oldest.as_ref().is_none_or(|(dead, best, ..)| (entry.is_expired(now), age) > (*dead, *best));
            if better {
                oldest = Some((entry.is_expired(now), age, db, key.to_vec()));
            }
        }
        let found = oldest.map(|(_, _, db, key)| (db, key));
        if found.is_none() && turns < total { self.draw(now, kept) } else { found }
    }

    /// The nth entry, all databases in a row.
    fn nth(&self, mut n: usize) -> Option<(u32, &[u8], &Entry)> {
        for (number, db) in (0..).zip(&self.dbs) {
            if n < db.len() {
                return db.at(n).map(|(key, entry)| (number, key, entry));
            }
            n -= db.len();
        }
        None
    }

    fn next_random(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random >> 11
    }

    /// All of a database is about to become what `next` is; none: empty.
    fn about_to_replace(&mut self, now: i64, db: u32, next: Option<u32>) {
        let (old, next) = (&self.dbs[db as usize], next.map(|n| &self.dbs[n as usize]));
        self.watches.touch_all(db, |key| {
            let then = next.and_then(|db| db.get(key));
            Change {
                was_there: old.get(key).is_some(),
                is_there: then.is_some(),
                is_expired: then.is_some_and(|entry| entry.is_expired(now)),
            }
        });
        self.record(|| Changed::Database(db));
    }
}

// ---- words and numbers as Redis reads them ----

/// Whether a word is this option (`option` in lower case). Redis compares C strings, so nothing behind a NUL counts.
fn is(word: &[u8], option: &str) -> bool {
    word.split(|b| *b == 0).next().unwrap_or_default().eq_ignore_ascii_case(option.as_bytes())
}

fn shown(word: &[u8]) -> Cow<'_, str> {
    String::from_utf8_lossy(word.split(|b| *b == 0).next().unwrap_or_default())
}

const SYNTAX: Refusal = Cow::Borrowed("ERR syntax error");
const NOT_AN_INTEGER: Refusal = Cow::Borrowed("ERR value is not an integer or out of range");

fn integer(word: &[u8]) -> Result<i64, Refusal> {
    crate::resp::integer(word).ok_or(NOT_AN_INTEGER)
}

/// The number of a database, as SELECT, MOVE and COPY read it.
pub(crate) fn database(word: &[u8]) -> Result<u32, Cow<'static, str>> {
    let n = integer(word)?;
    if i32::try_from(n).is_err() {
        return Err("ERR value is out of range, value must between -2147483648 and 2147483647".into());
    }
    u32::try_from(n).ok().filter(|n| *n < DATABASES).ok_or("ERR DB index is out of range".into())
}
