//! The keys that were asked for most, in a file for the next process (`warm.from: last_run`): names alone, no values, the
//! busiest first, at most `warm.last_run_keys`. Read once at start, when `warm` loads what it names; written 5 s after the
//! start, then less and less often, a minute apart at last, and when the process ends. Another thread writes, so that no
//! client waits for a disk.
//!
//! **The file** is an array of RESP: a word that says what it is, the names, and a word at the end. It is written beside its
//! place and renamed, so there is the old one or the new one, never a half. What is not such a file is a warning: a cold
//! start is better than none. Names of keys may tell something, so the file is for its owner only (0600).
//!
//! What this process was not asked for is kept behind what it was, from the file it read: a process that ends after a
//! second must not leave its successor with one key.

use std::cell::{Cell, RefCell};
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use bytes::BytesMut;
use tokio::time::sleep;

use crate::observe::hot_keys::KEY_MAX;
use crate::resp::build;
use crate::resp::request::{Scan, Scanner};
use crate::worker::Ctx;

/// What the file begins and ends with.
const MAGIC: &[u8] = b"nearside:last_run:1";
const END: &[u8] = b"end";

/// 1,000 names of 512 bytes each, the most that is ever written, and what is around them.
const FILE_MAX: u64 = 1 << 20;

const FIRST_SAVE: Duration = Duration::from_secs(5);

/// What a process that is killed may lose.
const SAVE_EVERY: Duration = Duration::from_secs(60);

/// What this process knows of the file.
#[derive(Default)]
pub(crate) struct LastRun {
    /// As they were read at start.
    keys: RefCell<Vec<Vec<u8>>>,
    /// It could not be written, and that was said.
    warned: Cell<bool>,
    /// Drafts so far: each has a name of its own.
    drafts: Cell<u64>,
}

impl LastRun {
    pub(super) fn keys(&self) -> Vec<Vec<u8>> {
        self.keys.borrow().clone()
    }
}

/// Reads the file, if there is to be one, and has it written from now on.
pub(crate) fn begin_last_run(ctx: &Rc<Ctx>) {
    let Some(path) = ctx.config.warm.last_run() else { return };
    match read(path) {
        Ok(keys) => {
            let most = ctx.config.warm.last_run_keys;
            ctx.last_run.keys.replace(keys.into_iter().take(most).collect());
        }
        Err(e) if e.kind() == ErrorKind::NotFound => {
            tracing::info!("warm.last_run_file {} is not there yet", path.display());
        }
        Err(e) => tracing::warn!("nothing is known of the last run: warm.last_run_file {}: {e}", path.display()),
    }
    tokio::task::spawn_local(keep(ctx.clone(), path.clone()));
}

async fn keep(ctx: Rc<Ctx>, path: PathBuf) {
    let mut pause = FIRST_SAVE;
    loop {
        sleep(pause).await;
        pause = (2 * pause).min(SAVE_EVERY);
        let Some((draft, text)) = due(&ctx, &path) else { continue };
        let target = path.clone();
        let written = tokio::task::spawn_blocking(move || write(&target, &draft, &text)).await;
        // The other thread ends early only with the process.
        if let Ok(written) = written {
            ctx.last_run.say(&path, written);
        }
    }
}

/// Writes it now, on this thread: the process is about to end.
pub(crate) fn save_last_run(ctx: &Ctx) {
    let Some(path) = ctx.config.warm.last_run() else { return };
    if let Some((draft, text)) = due(ctx, path) {
        ctx.last_run.say(path, write(path, &draft, &text));
    }
}

/// What there is to be written, and under which name first; nothing where this process was asked for nothing.
fn due(ctx: &Ctx, path: &Path) -> Option<(PathBuf, BytesMut)> {
    let most = ctx.config.warm.last_run_keys;
    let mut keys = ctx.metrics.hot.busiest(most);
    if keys.is_empty() {
        return None;
    }
    for old in ctx.last_run.keys.borrow().iter() {
        if keys.len() < most && !keys.contains(old) {
            keys.push(old.clone());
        }
    }
    Some((ctx.last_run.draft(path), text(&keys)))
}

impl LastRun {
    fn draft(&self, path: &Path) -> PathBuf {
        self.drafts.set(self.drafts.get() + 1);
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        path.with_file_name(format!(".{name}.{}.{}", std::process::id(), self.drafts.get()))
    }

    /// Once, until it can be written again.
    fn say(&self, path: &Path, written: io::Result<()>) {
        let failed = written.is_err();
        if let Err(e) = written
            && !self.warned.get()
        {
            tracing::warn!("warm.last_run_file {} cannot be written: {e}", path.display());
        }
        self.warned.set(failed);
    }
}

fn text(keys: &[Vec<u8>]) -> BytesMut {
    let words: Vec<&[u8]> = [MAGIC].into_iter().chain(keys.iter().map(Vec::as_slice)).chain([END]).collect();
    let mut out = BytesMut::new();
    build::command(&mut out, &words);
    out
}

fn write(path: &Path, draft: &Path, text: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(draft)?;
    let written = file.write_all(text).and_then(|()| file.sync_all()).and_then(|()| fs::rename(draft, path));
    if written.is_err() {
        // It was ours, and is of no use to anybody.
        let _ = fs::remove_file(draft);
    }
    written
}

fn read(path: &Path) -> io::Result<Vec<Vec<u8>>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(FILE_MAX + 1).read_to_end(&mut bytes)?;
    names(&bytes).ok_or_else(|| io::Error::new(ErrorKind::InvalidData, "not a whole file of Nearside's"))
}

/// None: it is torn, or somebody else's.
fn names(bytes: &[u8]) -> Option<Vec<Vec<u8>>> {
    if bytes.len() as u64 > FILE_MAX || bytes.is_empty() {
        return None;
    }
    let mut scanner = Scanner::new(bytes.len(), bytes.len());
    let Scan::Request { len } = scanner.scan(bytes) else { return None };
    let words: Vec<&[u8]> = scanner.args().iter().map(|arg| &bytes[arg.range()]).collect();
    match words.as_slice() {
        [MAGIC, keys @ .., END]
            if len == bytes.len() && keys.iter().all(|key| !key.is_empty() && key.len() <= KEY_MAX) =>
        {
            Some(keys.iter().map(|key| key.to_vec()).collect())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn keys() -> Vec<Vec<u8>> {
        vec![b"a".to_vec(), b"with \r\n and \0".to_vec(), "größe:1".as_bytes().to_vec(), vec![255; KEY_MAX]]
    }

    #[test]
    fn names_come_back_as_they_were_for_their_owner_only() {
        let dir = tempfile::tempdir().expect("a directory");
        let (path, draft) = (dir.path().join("keys"), dir.path().join(".draft"));
        write(&path, &draft, &text(&keys())).expect("written");
        assert_eq!(read(&path).expect("read"), keys());
        let mode = fs::metadata(&path).expect("the file").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).expect("the directory").count(), 1, "no draft is left");
        let error = write(&dir.path().join("no/keys"), &dir.path().join("no/.draft"), b"").expect_err("no directory");
        assert_eq!(error.kind(), ErrorKind::NotFound);
        // The place is taken by a directory.
        fs::create_dir(dir.path().join("taken")).expect("a directory");
        assert!(write(&dir.path().join("taken"), &draft, b"x").is_err() && !draft.exists());
    }

    #[test]
    fn what_is_torn_or_foreign_is_no_list() {
        let whole = text(&keys());
        assert_eq!(names(&whole).map(|keys| keys.len()), Some(4));
        for len in 0..whole.len() {
            assert_eq!(names(&whole[..len]), None, "cut at {len}");
        }
        assert_eq!(names(&[&whole[..], b"x"].concat()), None);
        let foreign: [&[u8]; 6] =
            [b"", b"a\nb\n", b"{\"keys\": []}", b"*2\r\n$3\r\nfoo\r\n$3\r\nend\r\n", b"PING\r\n", &[0; 5000]];
        for bytes in foreign {
            assert_eq!(names(bytes), None, "{bytes:?}");
        }
        assert_eq!(names(&text(&[vec![1; KEY_MAX + 1]])), None);
        assert_eq!(names(&text(&[Vec::new()])), None);
        assert_eq!(names(&vec![b'x'; FILE_MAX as usize + 1]), None);
    }
}
