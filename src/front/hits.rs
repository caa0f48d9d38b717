//! What a worker answers by itself: GET and MGET of keys that are all in the L1 and that the lane vouches for. Everything
//! else, also a miss, is the session's.

use std::sync::Arc;

use bytes::BytesMut;
use smallvec::SmallVec;

use super::client::Local;
use super::link::{Grant, Link};
use crate::cache::{self, Entry, Forms, Value};
use crate::coherence::Vouched;
use crate::command::cacheable::KeptCommands;
use crate::command::table::{self, Lookup};
use crate::command::{Kind, Request, Spec};
use crate::observe::arms::{Common, Hits};
use crate::observe::clock;
use crate::observe::reasons::Method;
use crate::resp::build;
use crate::resp::request::{Scan, Scanner};

/// Why no more was answered.
pub(super) enum Rest {
    /// What is left is no whole request.
    Partial,
    /// The next request is not for the front.
    Unanswered,
    /// The client should first take what it has been answered.
    Throttled,
}

/// One read's worth of requests.
struct Batch<'a> {
    local: &'a Local,
    grant: &'a Grant,
    vouched: Vouched,
    commands: KeptCommands,
    now: u64,
    hits: u64,
    /// Of these, those of experiments.
    arms: Hits,
    /// Of these, MGETs, and whether the last one was.
    mgets: u64,
    mget: bool,
    weighs: bool,
    /// As in a session's batch.
    saved_bytes: u64,
    saved_cost: u64,
}

/// Answers requests of `rbuf` into `out` from the front on; how many bytes of them were answered, and why not more.
pub(super) fn answer(
    local: &Local,
    link: &Link,
    grant: &Grant,
    scanner: &mut Scanner,
    rbuf: &[u8],
    out: &mut BytesMut,
    out_max: usize,
) -> (usize, Rest) {
    // After the read of the socket, before any look-up (R8).
    let now = clock::now();
    let shared = &local.shared;
    let vouched = match grant.facts.vouch(&shared.l1, now, grant.fence, shared.max_staleness) {
        Ok(vouched) => vouched,
        Err(_) => return (0, Rest::Unanswered),
    };
    let commands = shared.rules.load().commands();
    let (hits, arms, mgets, mget, saved_bytes, saved_cost) = Default::default();
    let weighs = shared.metrics.costs.weighs();
    let mut batch =
        Batch { local, grant, vouched, commands, now, hits, arms, mgets, mget, weighs, saved_bytes, saved_cost };
    let before = out.len();
    let mut at = 0;
    let rest = loop {
        if out.len() >= out_max {
            break Rest::Throttled;
        }
        match scanner.scan(&rbuf[at..]) {
            Scan::Incomplete => break Rest::Partial,
            Scan::Nothing { len } => at += len,
            Scan::Request { len } => {
                let req = Request { raw: &rbuf[at..at + len], args: scanner.args() };
                if !batch.request(&req, out) {
                    break Rest::Unanswered;
                }
                at += len;
            }
            Scan::Inline { .. } | Scan::Large | Scan::Error(_) => break Rest::Unanswered,
        }
    };
    batch.account(link, at, out.len() - before);
    (at, rest)
}

impl Batch<'_> {
    /// False: not answered, and nothing written.
    fn request(&mut self, req: &Request<'_>, out: &mut BytesMut) -> bool {
        let Lookup::Known(spec) = table::lookup(req) else { return false };
        let before = out.len();
        let asked = match spec.kind {
            Kind::Get => req.argc() == 2 && self.commands.has(Method::Get),
            Kind::Mget => req.argc() >= 2 && self.commands.has(Method::Mget),
            _ => false,
        };
        let answered = asked
            && match &self.local.shared.prefix {
                None => self.look_up(spec, req, out),
                Some(prefix) => {
                    let mut words = self.local.words.take();
                    prefix.rewrite(spec, req, &mut words);
                    let answered = self.look_up(spec, &words.request(), out);
                    words.release();
                    self.local.words.set(words);
                    answered
                }
            };
        if answered {
            self.hits += 1;
            self.local.shard().reply_sizes.note(out.len() - before);
            self.mget = spec.kind == Kind::Mget;
            self.mgets += u64::from(self.mget);
        }
        answered
    }

    fn look_up(&mut self, spec: &Spec, req: &Request<'_>, out: &mut BytesMut) -> bool {
        if spec.kind == Kind::Mget { self.mget(req, out) } else { self.get(req.arg(1), out) }
    }

    fn get(&mut self, key: &[u8], out: &mut BytesMut) -> bool {
        let Some(forms) = self.local.shared.l1.get(key) else { return false };
        let Some(entry) = self.usable(&forms) else { return false };
        self.count(key, entry, false);
        self.arms.one(entry.arm, entry.value.frame().len() as u64);
        self.write(entry, out);
        true
    }

    /// R8, second half: all entries must have been there at one moment.
    fn mget(&mut self, req: &Request<'_>, out: &mut BytesMut) -> bool {
        let keys = req.args[1..].iter().map(|arg| &req.raw[arg.range()]);
        let Some(found) = self.local.shared.l1.at_one_moment(keys, |forms| self.usable(forms).is_some()) else {
            return false;
        };
        // As many as there are keys, or none of them.
        let entries: SmallVec<[&Entry; 16]> =
            found.iter().filter_map(|forms: &Arc<Forms>| self.usable(forms)).collect();
        build::array(out, entries.len());
        let mut common = Common::NoKey;
        for (i, (arg, entry)) in req.args[1..].iter().zip(&entries).enumerate() {
            self.count(&req.raw[arg.range()], entry, i > 0);
            self.arms.key(entry.arm, entry.value.frame().len() as u64);
            common = common.and(entry.arm);
            self.write(entry, out);
        }
        self.arms.request(common.arm());
        true
    }

    /// An entry that more than an answer is to be made of is the session's: it has the lane.
    fn usable<'f>(&self, forms: &'f Forms) -> Option<&'f Entry> {
        let entry = cache::usable(forms, self.vouched.epoch, self.vouched.flush_gen, self.now);
        entry.filter(|entry| !entry.is_due(self.now))
    }

    /// A rider is the second key of an MGET, or a later one.
    fn count(&mut self, key: &[u8], entry: &Entry, rider: bool) {
        let (rows, metrics) = (&self.local.shard().rows, &self.local.shared.metrics);
        rows.hit(entry.pattern);
        if rider {
            rows.rider(entry.pattern);
        }
        metrics.hot.hit(self.local.index + 1, key, entry.value.wire_len(), entry.pattern);
        metrics.patterns.note_read(entry.pattern);
        if self.weighs {
            let bytes = entry.value.frame().len() as u64;
            rows.saved(entry.pattern, bytes);
            self.saved_bytes += bytes;
            self.saved_cost += metrics.patterns.per_miss(entry.pattern);
        }
    }

    fn write(&self, entry: &Entry, out: &mut BytesMut) {
        match &entry.value {
            Value::Bulk(bytes) => out.extend_from_slice(bytes),
            Value::Nil => build::null(out, self.grant.proto),
        }
    }

    fn account(&self, link: &Link, read: usize, written: usize) {
        let shard = self.local.shard();
        shard.bytes_in.add(read as u64);
        shard.bytes_out.add(written as u64);
        link.tally.bytes_in.add(read as u64);
        link.tally.bytes_out.add(written as u64);
        let Some(hits) = std::num::NonZeroU64::new(self.hits) else { return };
        if self.grant.judged {
            shard.judged.add(self.hits);
        }
        self.grant.facts.note_read(self.now);
        link.note_hit(self.now, self.mget);
        link.tally.hits.add(self.hits);
        link.saved.add(self.hits, self.saved_bytes, self.saved_cost);
        let each = clock::now().saturating_sub(self.now) / hits;
        shard.read_hits.observe_n(each, self.hits);
        shard.gets.add(self.hits - self.mgets);
        shard.mgets.add(self.mgets);
        self.arms.count(&self.local.shared.metrics.arms, self.now, each);
    }
}
