//! The journal of the write queue on disk (`outage.journal_dir`): what a client was told is accepted is there after a crash.
//! Append-only segment files in one directory; this is the data thread's end of it, `writer` the thread that writes, `dir`
//! what happens at start, `format` the bytes.
//!
//! It keeps effects and how far each profile's have come, and gives them back at the next start. It knows nothing of
//! sessions, lanes and conflicts, and never a password.
//!
//! **What is promised.** With `always`, `Done` for an effect comes when it is on disk; with `everysec` and `no`, when the
//! kernel has it: that survives the process, and of the host's last second (or more, with `no`) what the disk has. Nothing is
//! dropped: what does not fit is refused before it is accepted.

mod dir;
mod format;
#[cfg(test)]
mod tests;
mod writer;

use std::cell::{Cell, RefCell};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::mpsc::Sender;
use std::thread::JoinHandle;

use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use crate::config::JournalFsync;
use crate::observe::metrics::Metrics;
use crate::observe::reasons::{JournalRefusal, JournalState};
use crate::outage::queue::New;

pub(crate) use dir::{Cut, OpenError};
pub(crate) use format::{Who, Write};

#[cfg(test)]
use format::Record;

use writer::{Job, Writer};

/// On their way to the disk. A disk that is so far behind is not catching up within anybody's patience, and memory is
/// bounded whatever it does.
const ON_THE_WAY_MAX: u64 = 32 << 20;

/// A sixteenth of the journal, so that what is applied is given back long before it is full; not less than some hundred
/// small writes, and not more than is read in a moment at start.
const SEGMENT_MIN: u64 = 64 << 10;
const SEGMENT_MAX: u64 = 8 << 20;

/// Why a write is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// `outage.journal_max_bytes`.
    Full,
    DiskFull,
    Behind,
    /// A write or a sync has failed, and nobody knows what the disk has.
    Failed,
}

impl Refused {
    pub(crate) fn text(self) -> &'static str {
        match self {
            Refused::Full => "the journal is full (outage.journal_max_bytes)",
            Refused::DiskFull => "no room on the disk of outage.journal_dir",
            Refused::Behind => "the disk of outage.journal_dir is too slow",
            Refused::Failed => "the journal has failed (see the log); it is used again after a restart of nearside",
        }
    }

    pub(crate) fn word(self) -> JournalRefusal {
        match self {
            Refused::Full => JournalRefusal::Full,
            Refused::DiskFull => JournalRefusal::DiskFull,
            Refused::Behind => JournalRefusal::Behind,
            Refused::Failed => JournalRefusal::Failed,
        }
    }
}

/// All effects up to this one that nothing was said of yet are as safe as `outage.journal_fsync` asks; or could not be
/// written, and are not in the journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Done {
    pub(crate) up_to: u64,
    pub(crate) outcome: Result<(), Refused>,
}

/// What both threads see.
struct Shared {
    metrics: Arc<Metrics>,
    state: AtomicU8,
    /// Bytes of all segments.
    stored: AtomicU64,
    /// Bytes handed over and not written yet.
    on_the_way: AtomicU64,
    /// What still fits where the disk is full.
    room: AtomicU64,
    #[cfg(test)]
    faults: writer::Faults,
}

impl Shared {
    fn new(metrics: Arc<Metrics>) -> Shared {
        let shared = Shared {
            metrics,
            state: AtomicU8::new(0),
            stored: AtomicU64::new(0),
            on_the_way: AtomicU64::new(0),
            room: AtomicU64::new(0),
            #[cfg(test)]
            faults: writer::Faults::default(),
        };
        shared.set_state(JournalState::Working);
        shared
    }

    fn state(&self) -> JournalState {
        JournalState::ALL[usize::from(self.state.load(Ordering::Acquire))]
    }

    fn set_state(&self, state: JournalState) {
        self.state.store(state as u8, Ordering::Release);
        self.metrics.journal.state.set(state as u64);
    }

    fn counted(&self, writes: u64, failed: bool) {
        let journal = &self.metrics.journal;
        if failed {
            journal.lost.add(writes)
        } else {
            journal.appended.add(writes)
        };
    }
}

pub(crate) struct Settings<'c> {
    pub(crate) dir: &'c Path,
    pub(crate) fsync: JournalFsync,
    pub(crate) max_bytes: u64,
}

/// The data thread's end.
pub(crate) struct Journal {
    jobs: RefCell<Option<Sender<Job>>>,
    shared: Arc<Shared>,
    next: Cell<u64>,
    max_bytes: u64,
    thread: RefCell<Option<JoinHandle<()>>>,
}

/// What opening it gives.
pub(crate) struct Opened {
    pub(crate) journal: Journal,
    /// What was accepted before this process and is not upstream yet, in order.
    pub(crate) writes: Vec<Write>,
    pub(crate) cut: Option<Cut>,
    /// What becomes of what is appended, in order. At most one for each write outstanding, and those are bounded by their
    /// bytes.
    pub(crate) done: UnboundedReceiver<Done>,
}

impl Journal {
    /// Takes the directory, reads what is there, and starts the thread.
    pub(crate) fn open(settings: &Settings<'_>, metrics: Arc<Metrics>) -> Result<Opened, OpenError> {
        let failed = |what: &'static str| move |source| OpenError::Io { path: settings.dir.to_owned(), what, source };
        let lock = dir::lock(settings.dir)?;
        let mut found = dir::load(settings.dir)?;
        let (writes, next, cut) = (found.unapplied(), found.next, found.cut.clone());
        let shared = Arc::new(Shared::new(metrics));
        let (tell, done) = unbounded_channel();
        let segment = (settings.max_bytes / 16).clamp(SEGMENT_MIN, SEGMENT_MAX);
        let bounds = (settings.fsync, segment, settings.max_bytes);
        let place = (settings.dir.to_owned(), lock);
        let writer = Writer::new(place, bounds, found, (shared.clone(), tell)).map_err(failed("cannot write there"))?;
        let (jobs, inbox) = std::sync::mpsc::channel();
        let thread = std::thread::Builder::new().name("journal".to_owned()).spawn(move || writer.run(&inbox));
        let journal = Journal {
            jobs: RefCell::new(Some(jobs)),
            shared,
            next: Cell::new(next),
            max_bytes: settings.max_bytes,
            thread: RefCell::new(Some(thread.map_err(failed("cannot start its thread"))?)),
        };
        Ok(Opened { journal, writes, cut, done })
    }

    /// The number that the next effect will have.
    pub(crate) fn next(&self) -> u64 {
        self.next.get()
    }

    #[cfg(test)]
    fn state(&self) -> JournalState {
        self.shared.state()
    }

    #[cfg(test)]
    fn bytes(&self) -> u64 {
        self.shared.stored.load(Ordering::Acquire) + self.shared.on_the_way.load(Ordering::Acquire)
    }

    /// Hands over what one command does; all of it is kept, or none. The number of its last effect: `Done` says what has
    /// become of it. Never waits.
    pub(crate) fn append(&self, who: &Arc<Who>, effects: &[New]) -> Result<u64, Refused> {
        debug_assert!(!effects.is_empty());
        let first = self.next.get();
        let last = first + effects.len() as u64 - 1;
        let mut record = Vec::new();
        let fits = format::write_new(&mut record, first, who, effects);
        let taken = if fits { self.admit(record.len() as u64) } else { Err(Refused::Full) };
        if let Err(refused) = taken {
            self.shared.metrics.journal.refused.inc(refused.word());
            return Err(refused);
        }
        self.shared.on_the_way.fetch_add(record.len() as u64, Ordering::AcqRel);
        self.next.set(last + 1);
        self.hand_over(Job::Write { first, last, who: who.clone(), record });
        Ok(last)
    }

    fn admit(&self, len: u64) -> Result<(), Refused> {
        let on_the_way = self.shared.on_the_way.load(Ordering::Acquire);
        match self.shared.state() {
            JournalState::Failed => return Err(Refused::Failed),
            JournalState::DiskFull if on_the_way + len > self.shared.room.load(Ordering::Acquire) => {
                return Err(Refused::DiskFull);
            }
            _ => {}
        }
        if on_the_way + len > ON_THE_WAY_MAX.max(len) {
            return Err(Refused::Behind);
        }
        if self.shared.stored.load(Ordering::Acquire) + on_the_way + len > self.max_bytes {
            return Err(Refused::Full);
        }
        Ok(())
    }

    /// All effects of `who` up to this number are upstream's, or were given up.
    pub(crate) fn applied(&self, who: &Arc<Who>, up_to: u64) {
        self.hand_over(Job::Applied { who: who.clone(), up_to });
    }

    fn hand_over(&self, job: Job) {
        if let Some(jobs) = self.jobs.borrow().as_ref() {
            // The thread ends when this end is let go of, not before.
            let _ = jobs.send(job);
        }
    }

    /// Writes and syncs what is on its way, and waits for that.
    pub(crate) fn close(&self) {
        drop(self.jobs.borrow_mut().take());
        if let Some(thread) = self.thread.borrow_mut().take()
            && thread.join().is_err()
        {
            tracing::error!("outage.journal_dir: the journal's thread has panicked");
        }
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        self.close();
    }
}
