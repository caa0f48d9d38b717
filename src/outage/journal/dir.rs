//! The journal's directory: its lock, its segment files, and what they say at start. Runs once, before anything is served,
//! and blocks while it reads. It changes nothing but the torn end of the newest segment.

use std::collections::{BTreeMap, HashMap};
use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write as _};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::format::{self, Bad, BadHeader, HEADER, Record, VERSION, Who, Write};

/// Who has the directory; the file stays, the lock goes with its process.
const LOCK: &str = "lock";

const SUFFIX: &str = ".journal";

/// Keys and values are nobody else's business.
const FILE_MODE: u32 = 0o600;
const DIR_MODE: u32 = 0o700;

#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    #[error("outage.journal_dir: {}: {what}: {source}", path.display())]
    Io { path: PathBuf, what: &'static str, source: io::Error },
    #[error(
        "outage.journal_dir: {} is in use by another process (its lock file is locked): give each sidecar a directory of \
         its own",
        .0.display()
    )]
    InUse(PathBuf),
    #[error(
        "outage.journal_dir: {} is a journal of format version {found}, and this version of nearside reads {VERSION}: \
         start the version that wrote it until its writes are upstream, or move the directory away to give them up",
        path.display()
    )]
    Version { path: PathBuf, found: u32 },
    #[error(
        "outage.journal_dir: {} is damaged at byte {offset}: {why}. Nothing was changed. Restore the file from a copy; \
         or, to give up the writes from there on, move the directory away and start again with an empty one",
        path.display()
    )]
    Damaged { path: PathBuf, offset: usize, why: String },
    #[error(
        "outage.journal_dir: {} is missing between the others. Nothing was changed. Restore it from a copy; or, to give \
         up what it held, move the directory away and start again with an empty one",
        .0.display()
    )]
    Missing(PathBuf),
}

/// A file of the journal.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) index: u64,
    pub(super) len: u64,
    /// The last effect that it has of each.
    pub(super) last: HashMap<Who, u64>,
}

impl Segment {
    pub(super) fn holds(&mut self, who: &Who, effect: u64) {
        match self.last.get_mut(who) {
            Some(last) => *last = (*last).max(effect),
            None => drop(self.last.insert(who.clone(), effect)),
        }
    }

    pub(super) fn is_applied(&self, applied: &HashMap<Who, u64>) -> bool {
        self.last.iter().all(|(who, last)| applied.get(who).is_some_and(|up_to| up_to >= last))
    }
}

/// The newest file ended within a record, and was cut there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Cut {
    pub(crate) path: PathBuf,
    pub(crate) bytes: u64,
}

/// What a directory holds.
#[derive(Debug)]
pub(super) struct Found {
    /// Oldest first; none: there is no journal yet.
    pub(super) segments: Vec<Segment>,
    /// In order, as they were written: some of their effects may be applied.
    pub(super) writes: BTreeMap<u64, Write>,
    pub(super) applied: HashMap<Who, u64>,
    /// The number of the next effect.
    pub(super) next: u64,
    pub(super) cut: Option<Cut>,
}

fn failed(path: &Path, what: &'static str) -> impl FnOnce(io::Error) -> OpenError {
    move |source| OpenError::Io { path: path.to_owned(), what, source }
}

/// Makes the directory where there is none. As long as the file lives no other process has the lock.
pub(super) fn lock(dir: &Path) -> Result<File, OpenError> {
    DirBuilder::new().recursive(true).mode(DIR_MODE).create(dir).map_err(failed(dir, "cannot make it"))?;
    let path = dir.join(LOCK);
    let options = OpenOptions::new().write(true).create(true).truncate(false).mode(FILE_MODE).open(&path);
    let mut file = options.map_err(failed(&path, "cannot write there"))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(OpenError::InUse(dir.to_owned())),
        Err(TryLockError::Error(e)) => return Err(failed(&path, "cannot lock it")(e)),
    }
    let pid = format!("{}\n", std::process::id());
    file.set_len(0).and_then(|()| file.write_all(pid.as_bytes())).map_err(failed(&path, "cannot write there"))?;
    Ok(file)
}

pub(super) fn path_of(dir: &Path, index: u64) -> PathBuf {
    dir.join(format!("{index:012}{SUFFIX}"))
}

/// A new, empty segment; it is in the directory whatever happens next.
pub(super) fn create(dir: &Path, index: u64, first: u64) -> io::Result<(File, Segment)> {
    let path = path_of(dir, index);
    // `create_new` is not asked for: what a failed attempt has left is overwritten.
    let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(true).mode(FILE_MODE).open(&path)?;
    file.write_all(&format::header(first))?;
    file.sync_all()?;
    sync_dir(dir)?;
    Ok((file, Segment { index, len: HEADER as u64, last: HashMap::new() }))
}

pub(super) fn open(dir: &Path, index: u64) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open(path_of(dir, index))
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

fn indices(dir: &Path) -> io::Result<Vec<u64>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let name = entry?.file_name();
        // Files of others (lost+found) are left alone.
        let index: Option<u64> = name.to_str().and_then(|name| name.strip_suffix(SUFFIX)).and_then(|n| n.parse().ok());
        found.extend(index);
    }
    found.sort_unstable();
    Ok(found)
}

/// Reads all segments. The newest one's torn end is cut off.
pub(super) fn load(dir: &Path) -> Result<Found, OpenError> {
    let indices = indices(dir).map_err(failed(dir, "cannot read it"))?;
    let mut found =
        Found { segments: Vec::new(), writes: BTreeMap::new(), applied: HashMap::new(), next: 1, cut: None };
    for (i, index) in indices.iter().enumerate() {
        let path = path_of(dir, *index);
        if i > 0 && *index != indices[i - 1] + 1 {
            return Err(OpenError::Missing(path_of(dir, indices[i - 1] + 1)));
        }
        let mut bytes = Vec::new();
        let read = File::open(&path).and_then(|mut file| file.read_to_end(&mut bytes));
        read.map_err(failed(&path, "cannot read it"))?;
        let newest = i + 1 == indices.len();
        let keep = found.segment(&path, *index, &bytes, newest)?;
        if keep < bytes.len() {
            cut(&path, keep).map_err(failed(&path, "cannot cut its torn end"))?;
            found.cut = Some(Cut { path, bytes: (bytes.len() - keep) as u64 });
        }
    }
    Ok(found)
}

/// To nothing where not even its header is whole.
fn cut(path: &Path, keep: usize) -> io::Result<()> {
    if keep == 0 {
        return std::fs::remove_file(path);
    }
    let file = OpenOptions::new().write(true).open(path)?;
    file.set_len(keep as u64)?;
    file.sync_all()
}

impl Found {
    /// Takes over what one file says. How many of its bytes are good; fewer than there are only in the newest.
    fn segment(&mut self, path: &Path, index: u64, file: &[u8], newest: bool) -> Result<usize, OpenError> {
        let damaged = |offset, why: &str| OpenError::Damaged { path: path.to_owned(), offset, why: why.to_owned() };
        let first = match format::read_header(file) {
            Ok(first) => first,
            Err(BadHeader::Version(found)) => return Err(OpenError::Version { path: path.to_owned(), found }),
            // A crash came between the file's making and its header.
            Err(BadHeader::Short) if newest => return Ok(0),
            Err(_) if newest && file.iter().all(|b| *b == 0) => return Ok(0),
            Err(BadHeader::Short) => return Err(damaged(0, "its header is not whole")),
            Err(BadHeader::NotOurs) => return Err(damaged(0, "it does not begin as a journal does")),
            Err(BadHeader::Checksum) => return Err(damaged(0, "the checksum of its header differs")),
        };
        if !self.segments.is_empty() && first != self.next {
            return Err(damaged(0, &format!("it begins with effect {first}, and effect {} is the next", self.next)));
        }
        self.next = first;
        let mut segment = Segment { index, len: 0, last: HashMap::new() };
        let mut at = HEADER;
        while at < file.len() {
            let (record, end) = match format::read(file, at) {
                Ok(read) => read,
                Err(bad) if newest && is_torn(file, at, bad) => break,
                Err(bad) => return Err(damaged(at, &format!("the record there is no good: {}", bad.as_str()))),
            };
            self.record(&mut segment, record).map_err(|why| damaged(at, &why))?;
            at = end;
        }
        segment.len = at as u64;
        self.segments.push(segment);
        Ok(at)
    }

    fn record(&mut self, segment: &mut Segment, record: Record) -> Result<(), String> {
        match record {
            Record::Write(write) => {
                if write.first != self.next {
                    return Err(format!("it holds effect {}, and effect {} is the next", write.first, self.next));
                }
                self.next = write.last() + 1;
                segment.holds(&write.who, write.last());
                self.writes.insert(write.first, write);
            }
            Record::Carried(write) => {
                segment.holds(&write.who, write.last());
                self.writes.insert(write.first, write);
            }
            Record::Applied { who, up_to } => {
                let applied = self.applied.entry(who).or_default();
                *applied = (*applied).max(up_to);
            }
            Record::Gap { next } => self.next = self.next.max(next),
        }
        Ok(())
    }

    /// What upstream has not got yet, in order.
    pub(super) fn unapplied(&mut self) -> Vec<Write> {
        let writes = std::mem::take(&mut self.writes).into_values();
        writes.filter_map(|write| unapplied(write, &self.applied)).collect()
    }
}

/// The write without its effects that are applied; `None`: all are.
pub(super) fn unapplied(mut write: Write, applied: &HashMap<Who, u64>) -> Option<Write> {
    let up_to = applied.get(&write.who).copied().unwrap_or(0);
    let done = (up_to + 1).saturating_sub(write.first).min(write.effects.len() as u64);
    write.effects.drain(..done as usize);
    write.first += done;
    (!write.effects.is_empty()).then_some(write)
}

/// A crash ends a file within a record, or leaves behind its last whole one bytes that never were one (a page that was not
/// written is zeros). Where a whole record stands behind the bad one, it was no crash.
fn is_torn(file: &[u8], at: usize, bad: Bad) -> bool {
    match bad {
        Bad::Short => true,
        Bad::Head | Bad::Body => !format::any_after(file, at),
        Bad::Meaning => false,
    }
}
