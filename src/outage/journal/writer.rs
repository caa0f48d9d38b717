//! The journal's own thread: appends what the data thread hands over, a group at a time, has it on disk as the policy says,
//! and only then says so. Nothing it does can hold up the data thread; it never waits for that either.
//!
//! **Groups.** Whatever has come while the disk was busy is written with one `write` and made durable with one `fdatasync`:
//! with `always`, clients that write at the same time share the disk's latency.
//!
//! **Failure.** A write that finds no room is taken back (the file is cut to what it was), its clients are told, and the
//! journal goes on. After any other failure, and after a failed `fdatasync`, nobody knows what the disk has: the kernel
//! drops the pages it could not write, and the next `fdatasync` says that all is well. So the journal is *failed* until the
//! process starts again, and takes nothing more.
//!
//! **Room.** Blocks are reserved ahead of what is written, where the file system can do that. So a disk that fills up is
//! noticed while what has been accepted still fits.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use rustix::fs::{FallocateFlags, fallocate};
use tokio::sync::mpsc::UnboundedSender;

use super::dir::{self, Segment};
use super::format::{self, HEADER, Record, Who};
use super::{Done, Refused, Shared};
use crate::config::JournalFsync;
use crate::observe::clock;
use crate::observe::reasons::JournalState;

/// Bytes of one group: more would make those who wait for its end wait for others' bytes. Nor is it longer than a segment.
const GROUP_MAX: usize = 1 << 20;

/// Reserved ahead. What is on its way between the threads when the disk is found full still has to fit.
const AHEAD: u64 = 4 << 20;

/// `everysec`, and how often a full disk is asked again.
const SECOND: Duration = Duration::from_secs(1);

/// What the data thread asks.
pub(super) enum Job {
    /// An encoded record, its numbers and whose it is.
    Write {
        first: u64,
        last: u64,
        who: Arc<Who>,
        record: Vec<u8>,
    },
    Applied {
        who: Arc<Who>,
        up_to: u64,
    },
}

/// How a file system's room is known.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Room {
    /// Reserved up to this length of the current file.
    UpTo(u64),
    /// This file system reserves nothing.
    Unknown,
}

/// What a test makes go wrong.
#[cfg(test)]
#[derive(Default)]
pub(super) struct Faults {
    /// No more than so many bytes fit on the disk, all segments together.
    pub(super) disk: std::sync::Mutex<Option<u64>>,
    pub(super) sync_fails: std::sync::atomic::AtomicBool,
}

pub(super) struct Writer {
    pub(super) dir: PathBuf,
    /// Held as long as the thread runs.
    pub(super) _lock: File,
    pub(super) policy: JournalFsync,
    pub(super) segment_bytes: u64,
    pub(super) max_bytes: u64,
    /// Oldest first; the last one is written to.
    segments: VecDeque<Segment>,
    file: File,
    room: Room,
    applied: HashMap<Who, u64>,
    /// The number of the next effect, as the files have it.
    next: u64,
    /// Since when something is written and not synced.
    unsynced: Option<Instant>,
    shared: Arc<Shared>,
    done: UnboundedSender<Done>,
}

/// One group.
#[derive(Default)]
struct Group {
    bytes: Vec<u8>,
    writes: Vec<(u64, u64, Arc<Who>)>,
    applied: HashMap<Arc<Who>, u64>,
}

impl Group {
    fn take(&mut self, job: Job) {
        match job {
            Job::Write { first, last, who, record } => {
                self.bytes.extend_from_slice(&record);
                self.writes.push((first, last, who));
            }
            Job::Applied { who, up_to } => {
                let applied = self.applied.entry(who).or_default();
                *applied = (*applied).max(up_to);
            }
        }
    }
}

impl Writer {
    pub(super) fn new(
        (dir, lock): (PathBuf, File),
        (policy, segment_bytes, max_bytes): (JournalFsync, u64, u64),
        found: dir::Found,
        (shared, done): (Arc<Shared>, UnboundedSender<Done>),
    ) -> io::Result<Writer> {
        let dir::Found { mut segments, applied, next, .. } = found;
        let file = match segments.last() {
            Some(last) => dir::open(&dir, last.index)?,
            None => {
                let (file, segment) = dir::create(&dir, 1, next)?;
                segments.push(segment);
                file
            }
        };
        let segments = segments.into();
        let room = Room::UpTo(0);
        let mut writer = Writer {
            dir,
            _lock: lock,
            policy,
            segment_bytes,
            max_bytes,
            segments,
            file,
            room,
            applied,
            next,
            unsynced: None,
            shared,
            done,
        };
        writer.reserve();
        writer.shared.stored.store(writer.bytes(), Ordering::Release);
        writer.remove_applied();
        Ok(writer)
    }

    /// Until the data thread has let go of its end; then all is synced.
    pub(super) fn run(mut self, jobs: &Receiver<Job>) {
        loop {
            match jobs.recv_timeout(self.patience()) {
                Ok(job) => {
                    let group = gather(job, jobs, GROUP_MAX.min(self.segment_bytes as usize));
                    self.group(group);
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            self.sync_if_due();
            if self.shared.state() == JournalState::DiskFull {
                self.reserve();
            }
        }
        if self.unsynced.is_some() {
            self.sync();
        }
    }

    fn patience(&self) -> Duration {
        match self.unsynced {
            Some(since) if self.policy == JournalFsync::Everysec => SECOND.saturating_sub(since.elapsed()),
            _ => SECOND,
        }
    }

    fn bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.len).sum()
    }

    fn current(&mut self) -> &mut Segment {
        self.segments.back_mut().expect("there is always a current segment")
    }

    fn group(&mut self, group: Group) {
        let handed = group.bytes.len() as u64;
        let outcome = self.append(&group);
        self.shared.on_the_way.fetch_sub(handed, Ordering::AcqRel);
        self.publish();
        if let Some((_, last, _)) = group.writes.last() {
            self.shared.counted(group.writes.len() as u64, outcome.is_err());
            // Whoever waits is gone only with the whole process.
            let _ = self.done.send(Done { up_to: *last, outcome });
        }
        self.remove_applied();
    }

    fn append(&mut self, group: &Group) -> Result<(), Refused> {
        if self.shared.state() == JournalState::Failed {
            return Err(Refused::Failed);
        }
        if self.current().len >= self.segment_bytes {
            self.rotate();
        }
        let mut bytes = Vec::new();
        if let Some((first, ..)) = group.writes.first()
            && *first != self.next
        {
            format::write(&mut bytes, &Record::Gap { next: *first });
        }
        bytes.extend_from_slice(&group.bytes);
        for (who, up_to) in &group.applied {
            format::write(&mut bytes, &Record::Applied { who: Who::clone(who), up_to: *up_to });
        }
        self.write(&bytes)?;
        for (_, last, who) in &group.writes {
            self.current().holds(who, *last);
            self.next = last + 1;
        }
        for (who, up_to) in &group.applied {
            let applied = self.applied.entry(Who::clone(who)).or_default();
            *applied = (*applied).max(*up_to);
        }
        // A mark that is lost costs a replay that changes nothing: it is not worth a sync of its own.
        if self.policy == JournalFsync::Always && !group.writes.is_empty() {
            self.sync();
        }
        if self.shared.state() == JournalState::Failed { Err(Refused::Failed) } else { Ok(()) }
    }

    /// Appends, or leaves the file as it was.
    fn write(&mut self, bytes: &[u8]) -> Result<(), Refused> {
        let at = self.current().len;
        let end = at + bytes.len() as u64;
        if matches!(self.room, Room::UpTo(room) if room < end + AHEAD / 2) {
            self.reserve();
        }
        match self.write_at(bytes, at) {
            Ok(()) => {
                self.current().len = end;
                self.unsynced.get_or_insert_with(Instant::now);
                Ok(())
            }
            Err(e) if is_no_room(&e) => {
                self.say(JournalState::DiskFull, &e);
                // Also what was reserved behind it is given back.
                self.room = Room::UpTo(at);
                match self.file.set_len(at) {
                    Ok(()) => Err(Refused::DiskFull),
                    Err(e) => {
                        self.say(JournalState::Failed, &e);
                        Err(Refused::Failed)
                    }
                }
            }
            Err(e) => {
                self.say(JournalState::Failed, &e);
                Err(Refused::Failed)
            }
        }
    }

    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        #[cfg(test)]
        if let Some(most) = *self.shared.faults.disk.lock().unwrap()
            && self.bytes() + bytes.len() as u64 > most
        {
            self.file.write_all_at(&bytes[..bytes.len() / 2], at)?;
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.file.write_all_at(bytes, at)
    }

    /// Reserves blocks for what is to come. Also how a full disk is asked whether it still is.
    fn reserve(&mut self) {
        let len = self.current().len;
        let up_to = len + AHEAD;
        match self.fallocate(len, AHEAD) {
            Ok(()) => self.room = Room::UpTo(up_to),
            Err(e) if is_no_room(&e) => {
                let reserved = if let Room::UpTo(room) = self.room { room } else { 0 };
                self.room = Room::UpTo(reserved);
                return self.say(JournalState::DiskFull, &e);
            }
            // Not every file system can; then its write says so.
            Err(_) => self.room = Room::Unknown,
        }
        if self.shared.state() == JournalState::DiskFull {
            tracing::info!("outage.journal_dir: there is room again, writes are accepted");
            self.shared.set_state(JournalState::Working);
        }
        self.publish();
    }

    fn fallocate(&self, at: u64, len: u64) -> io::Result<()> {
        #[cfg(test)]
        if let Some(most) = *self.shared.faults.disk.lock().unwrap()
            && self.bytes() + len > most
        {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(fallocate(&self.file, FallocateFlags::KEEP_SIZE, at, len)?)
    }

    fn say(&self, state: JournalState, e: &io::Error) {
        if self.shared.state() == JournalState::Failed || self.shared.state() == state {
            return;
        }
        let dir = self.dir.display();
        match state {
            JournalState::Failed => tracing::error!(
                "outage.journal_dir: {dir}: {e}: nobody knows what the disk has of it, so the journal takes nothing more \
                 until nearside is started again, and writes that need it are refused"
            ),
            _ => tracing::error!("outage.journal_dir: {dir}: {e}: writes are refused until there is room again"),
        }
        self.shared.set_state(state);
    }

    fn sync_if_due(&mut self) {
        let due = self.unsynced.is_some_and(|since| since.elapsed() >= SECOND);
        if due && self.policy == JournalFsync::Everysec {
            self.sync();
        }
    }

    fn sync(&mut self) {
        let begun = clock::now();
        self.unsynced = None;
        if let Err(e) = self.sync_file() {
            self.say(JournalState::Failed, &e);
        }
        self.shared.metrics.journal.fsync.observe(clock::now().saturating_sub(begun));
    }

    fn sync_file(&self) -> io::Result<()> {
        #[cfg(test)]
        if self.shared.faults.sync_fails.load(Ordering::Acquire) {
            return Err(io::Error::other("fdatasync failed"));
        }
        self.file.sync_data()
    }

    // ---- segments ----

    /// Begins a new file. The old one is whole on disk before: damage in it is no torn end. Where there is no room for a
    /// new one, the old one goes on.
    fn rotate(&mut self) {
        if self.unsynced.is_some() {
            self.sync();
        }
        if self.shared.state() != JournalState::Working {
            return;
        }
        let (index, len) = (self.current().index + 1, self.current().len);
        match dir::create(&self.dir, index, self.next) {
            Ok((file, segment)) => {
                // What is reserved behind its end is given back; it is removed sooner or later anyway.
                let _ = self.file.set_len(len);
                self.file = file;
                self.segments.push_back(segment);
                self.room = Room::UpTo(0);
                self.reserve();
                self.carry();
            }
            Err(e) => {
                // An empty leftover would be taken for the newest segment at the next start.
                let _ = std::fs::remove_file(dir::path_of(&self.dir, index));
                self.say(if is_no_room(&e) { JournalState::DiskFull } else { JournalState::Failed }, &e);
            }
        }
    }

    /// Removes what is applied from the front, and the current file too where it is large and all of it is.
    fn remove_applied(&mut self) {
        let all = self.segments.iter().all(|segment| segment.is_applied(&self.applied));
        if all && self.current().len > self.segment_bytes / 2 && self.shared.state() == JournalState::Working {
            self.rotate();
        }
        while self.segments.len() > 1 && self.segments[0].is_applied(&self.applied) && self.remove_first() {}
        self.publish();
    }

    fn remove_first(&mut self) -> bool {
        let path = dir::path_of(&self.dir, self.segments[0].index);
        match std::fs::remove_file(&path) {
            Ok(()) => {
                self.segments.pop_front();
                true
            }
            Err(e) => {
                tracing::warn!("outage.journal_dir: cannot remove {}: {e}", path.display());
                false
            }
        }
    }

    /// A few effects that nobody can replay yet must not keep all that came after them: when half of the journal's bytes
    /// are used, what is not applied of the oldest file is written anew, if it is little, and the file is removed.
    fn carry(&mut self) {
        while self.segments.len() > 1 && self.bytes() > self.max_bytes / 2 {
            let Some((bytes, last)) = self.left_of_first() else { return };
            if bytes.len() as u64 > self.segments[0].len / 4 || self.write(&bytes).is_err() {
                return;
            }
            self.sync();
            if self.shared.state() != JournalState::Working {
                return;
            }
            last.iter().for_each(|(who, last)| self.current().holds(who, *last));
            if !self.remove_first() {
                return;
            }
        }
    }

    /// The records of the oldest file's writes that are not applied.
    fn left_of_first(&self) -> Option<(Vec<u8>, HashMap<Who, u64>)> {
        let file = std::fs::read(dir::path_of(&self.dir, self.segments[0].index)).ok()?;
        let (mut out, mut last, mut at) = (Vec::new(), HashMap::new(), HEADER);
        while at < self.segments[0].len as usize {
            let (record, end) = format::read(&file, at).ok()?;
            if let Record::Write(write) | Record::Carried(write) = record
                && dir::unapplied(write.clone(), &self.applied).is_some()
            {
                // In order, so the last one counts.
                last.insert(write.who.clone(), write.last());
                format::write(&mut out, &Record::Carried(write));
            }
            at = end;
        }
        Some((out, last))
    }

    /// What the data thread goes by.
    fn publish(&mut self) {
        let len = self.current().len;
        let room = match self.room {
            Room::UpTo(room) => room.saturating_sub(len),
            Room::Unknown => 0,
        };
        self.shared.room.store(room, Ordering::Release);
        self.shared.stored.store(self.bytes(), Ordering::Release);
        self.shared.metrics.journal.bytes.set(self.bytes());
        self.shared.metrics.journal.segments.set(self.segments.len() as u64);
    }
}

/// What has come so far, up to a group's size.
fn gather(first: Job, jobs: &Receiver<Job>, most: usize) -> Group {
    let mut group = Group::default();
    group.take(first);
    while group.bytes.len() < most
        && let Ok(job) = jobs.try_recv()
    {
        group.take(job);
    }
    group
}

fn is_no_room(e: &io::Error) -> bool {
    use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    matches!(e.kind(), StorageFull | QuotaExceeded | FileTooLarge)
}
