//! `outage`: what clients get, and what becomes of their writes, while upstream is gone.

use std::path::PathBuf;

use super::{GIB, KIB, MIB, Resolver, TTL_MAX, millis, secs};
use crate::config::units::SIZE_MAX;
use crate::config::{JournalFsync, Outage, OutageError, OutageReads, OutageWrites, QueueConflict};

/// Writes that wait for upstream: a minute and a half of a thousand a second, replayed in a second or two.
const QUEUE_MAX: u64 = 100_000;

/// What they may weigh: a sidecar's spare memory, and enough for all of them at 300 bytes each.
const QUEUE_BYTES: u64 = 64 * MIB;

/// What a pod may take of its node's disk without being asked about it, and room for 10,000 writes of 16 KiB with some to
/// spare for what is applied and not removed yet.
const JOURNAL_BYTES: u64 = 256 * MIB;

/// Its files are a sixteenth of it, and one holds some hundred writes at least.
const JOURNAL_MIN: u64 = MIB;

impl Resolver<'_> {
    pub(super) fn outage(&mut self) -> Outage {
        Outage {
            reads: self.word("outage.reads", &OutageReads::ALL),
            max_stale: self.duration("outage.max_stale", secs(300), millis(1)..=TTL_MAX),
            writes: self.word("outage.writes", &OutageWrites::ALL),
            queue_max: self.count("outage.queue_max", QUEUE_MAX, 1..=100 * QUEUE_MAX),
            queue_max_bytes: self.size("outage.queue_max_bytes", QUEUE_BYTES, 64 * KIB..=64 * GIB),
            queue_conflict: self.word("outage.queue_conflict", &QueueConflict::ALL),
            error: self.word("outage.error", &OutageError::ALL),
            journal_dir: self.one("outage.journal_dir", None, |text| Ok(Some(PathBuf::from(text)))),
            journal_fsync: self.word("outage.journal_fsync", &JournalFsync::ALL),
            journal_max_bytes: self.size("outage.journal_max_bytes", JOURNAL_BYTES, JOURNAL_MIN..=SIZE_MAX) as u64,
        }
    }
}
