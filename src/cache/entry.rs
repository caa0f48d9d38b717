//! What the L1 keeps for one key: an entry per profile that has read it, each a reply in wire form with the facts that
//! decide whether it may still be served. Entries never change; a new reading replaces them.

use smallvec::SmallVec;

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
    /// When the command that read it was sent.
    pub(crate) t_sent: u64,
    pub(crate) pattern: PatternId,
    pub(crate) value: Value,
}

/// GET's reply.
#[derive(Clone, Debug)]
pub(crate) enum Value {
    /// No such key; the bytes depend on the client's protocol.
    Nil,
    /// `$<len>\r\n<payload>\r\n`, the same in RESP2 and RESP3.
    Bulk(Box<[u8]>),
}

impl Value {
    pub(crate) fn wire_len(&self) -> usize {
        match self {
            Value::Nil => 0,
            Value::Bulk(b) => b.len(),
        }
    }
}

/// All entries of one key name: one in practice, more where several databases or users read the same name.
#[derive(Clone, Debug, Default)]
pub(crate) struct Forms {
    pub(crate) entries: SmallVec<[Entry; 1]>,
}

impl Forms {
    /// This key's forms with `entry` in place of what the same lane stored before.
    pub(crate) fn with(&self, entry: Entry) -> Forms {
        let mut entries: SmallVec<[Entry; 1]> = self.entries.iter().filter(|e| e.lane != entry.lane).cloned().collect();
        entries.push(entry);
        Forms { entries }
    }

    pub(crate) fn bytes(&self) -> usize {
        self.entries.iter().map(|e| std::mem::size_of::<Entry>() + e.value.wire_len()).sum()
    }
}
