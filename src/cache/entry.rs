//! What the L1 keeps for one key: an entry per profile that has read it, each a reply in wire form with the facts that
//! decide whether it may still be served. Entries never change, save when a hit on one is next looked at more closely
//! ([`Due`]); a new reading replaces them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use smallvec::SmallVec;

use super::form::FormEntry;
use super::marks::Marks;
use crate::mutation::{self, Rule};
use crate::observe::arms::ArmId;
use crate::observe::patterns::PatternId;

/// One profile's reading of one key.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    /// The process-wide number of the lane connection that read it (R1). Because no two connections share a number, it
    /// also says which profile the entry belongs to: a lookup compares nothing else.
    pub(crate) epoch: u64,
    /// The lane's identity across reconnects, so that a newer reading replaces the older one of the same profile.
    pub(crate) lane: u32,
    /// `flush_gen` of the token it was stored with.
    pub(crate) flush_gen: u64,
    /// From here on it is not served (nanoseconds of CLOCK_BOOTTIME).
    pub(crate) deadline: u64,
    /// From here on a hit has it read again; `u64::MAX`: never, else before `deadline`.
    pub(crate) soft: u64,
    /// From here on a hit is told upstream by TOUCH.
    pub(crate) touch: Due,
    /// From here on upstream has expired it; `u64::MAX`: never, 0: there was no such key.
    pub(crate) expires: u64,
    /// When the command that read it was sent.
    pub(crate) t_sent: u64,
    pub(crate) pattern: PatternId,
    /// The part of its rule's experiment that it counts in.
    pub(crate) arm: ArmId,
    pub(crate) value: Value,
}

impl Entry {
    /// Whether a lane connection numbered `epoch` may serve it at `now`.
    pub(crate) fn may_serve(&self, epoch: u64, flush_gen: u64, now: u64) -> bool {
        let ours = self.epoch == epoch || mutation::off(Rule::Epoch);
        ours && self.flush_gen == flush_gen && now < self.deadline
    }

    /// Until when it may be of use, to an outage at the last: that serves it for `linger` behind its deadline, never past
    /// upstream's own expiry, and never the absence of a key.
    pub(super) fn needed_until(&self, linger: u64) -> u64 {
        self.deadline.max(self.deadline.saturating_add(linger).min(self.expires))
    }

    /// Whether more than an answer is to be made of a hit at `now`.
    pub(crate) fn is_due(&self, now: u64) -> bool {
        now >= self.soft || now >= self.touch.at()
    }

    /// It can never be served any more, now that the same lane has read `newer`: another connection's, from before a flush,
    /// or past its deadline when `newer` was sent.
    pub(super) fn is_void_beside(&self, newer: &Entry) -> bool {
        self.lane == newer.lane && !self.may_serve(newer.epoch, newer.flush_gen, newer.t_sent)
    }
}

/// A time that is put off while the entry stays. It decides nothing about what is served, so any order of memory will do;
/// the data thread alone writes it.
#[derive(Debug)]
pub(crate) struct Due(AtomicU64);

impl Due {
    pub(crate) fn from(time: u64) -> Due {
        Due(AtomicU64::new(time))
    }

    pub(crate) fn never() -> Due {
        Due::from(u64::MAX)
    }

    pub(crate) fn at(&self) -> u64 {
        self.0.load(Relaxed)
    }

    pub(crate) fn put_off(&self, until: u64) {
        self.0.store(until, Relaxed);
    }
}

impl Clone for Due {
    fn clone(&self) -> Due {
        Due::from(self.at())
    }
}

/// GET's reply, or another command's.
#[derive(Clone, Debug)]
pub(crate) enum Value {
    /// GET: no such key; the bytes depend on the client's protocol.
    Nil,
    /// GET: `$<len>\r\n<payload>\r\n`, the same in RESP2 and RESP3. Another command: the whole reply as the lane read it.
    Bulk(Box<[u8]>),
}

impl Value {
    /// The reply in the lane's protocol.
    pub(crate) fn frame(&self) -> &[u8] {
        match self {
            Value::Nil => b"_\r\n",
            Value::Bulk(frame) => frame,
        }
    }

    pub(crate) fn wire_len(&self) -> usize {
        match self {
            Value::Nil => 0,
            Value::Bulk(b) => b.len(),
        }
    }
}

/// All entries of one key name: one in practice, more where several databases or users read the same name.
#[derive(Debug, Default)]
pub(crate) struct Forms {
    /// GET's.
    pub(crate) entries: SmallVec<[Entry; 1]>,
    /// Other commands', oldest first. Apart, so that a GET never looks at them.
    pub(crate) others: Box<[Arc<FormEntry>]>,
    /// For the L1's books; none for most. Of one stored value: what replaces it gets its own.
    pub(crate) marks: Option<Box<Marks>>,
}

impl Forms {
    /// This key's forms with `entry` in place of what the same lane stored before.
    pub(crate) fn with(&self, entry: Entry) -> Forms {
        let mut entries: SmallVec<[Entry; 1]> = self.entries.iter().filter(|e| e.lane != entry.lane).cloned().collect();
        entries.push(entry);
        Forms { entries, others: self.others.clone(), marks: None }
    }

    /// All of them, whatever the command.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter().chain(self.others.iter().map(|form| &form.entry))
    }

    pub(crate) fn tags(&self) -> impl Iterator<Item = &[u8]> {
        self.marks.iter().flat_map(|marks| marks.tags())
    }

    pub(crate) fn bytes(&self) -> usize {
        let gets = self.entries.iter().map(|e| std::mem::size_of::<Entry>() + e.value.wire_len());
        gets.chain(self.others.iter().map(|form| form.bytes())).sum()
    }
}
