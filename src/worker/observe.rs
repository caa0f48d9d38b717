//! Observe mode on the data thread: which reads and writes the shadow (`observe::shadow`) is told of, and the file that brings
//! what was learned over a restart. While neither the cache nor a rule observes, each command pays one look at a cell.
//!
//! What is not told: reads inside MULTI and of other pinned connections, which no cache would answer; replies so large that
//! they are streamed; module commands. Writes are told as they are sent: a script's keys as far as it declares them.

use std::cell::Cell;
use std::fs::{self, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use smallvec::SmallVec;
use tokio::time::{MissedTickBehavior, interval};

use super::Ctx;
use crate::cache;
use crate::command::{Effect, Kind, Request, Spec, keys};
use crate::config::CacheMode;
use crate::observe::clock;
use crate::observe::reasons::{Bypass, Method};
use crate::observe::shadow::{Came, FILE_MAX, NotRead, Seen};
use crate::policy::{Judged, explain};
use crate::resp::reply;

/// How often old keys are forgotten and what was learned is written down: at the most this much is lost with a crash.
const EVERY: Duration = Duration::from_secs(60);

/// Whose reads are told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Of {
    #[default]
    Nobody,
    /// Keys of rules that say `mode: observe`; the others are served.
    Rules,
    /// All, save those of rules that say `mode: off`.
    All,
}

/// What the data thread keeps for it.
#[derive(Default)]
pub(crate) struct Observing {
    of: Cell<Of>,
    /// `observe.file` may be written: it is ours, or was not there.
    keeps: Cell<bool>,
    /// That it cannot be written has been said.
    complained: Cell<bool>,
}

/// A read on its way, as it is to be told.
pub(crate) struct Watched {
    method: Method,
    /// Its keys in order; none: one that is not told of.
    keys: SmallVec<[Option<Seen>; 1]>,
}

impl Ctx {
    /// After a change of the mode or the rules.
    pub(super) fn begin_or_end_observing(&self) {
        let rules = self.rules.load().observes();
        let of = match self.mode.get() {
            CacheMode::Observe => Of::All,
            CacheMode::Serve if rules => Of::Rules,
            CacheMode::Serve | CacheMode::Off => Of::Nobody,
        };
        self.observing.of.set(of);
        self.metrics.shadow.observe(clock::now(), of != Of::Nobody);
    }

    /// What the shadow will be told of this request's reply, sent on this lane.
    #[inline]
    pub(crate) fn watch(&self, lane: u32, req: &Request<'_>, spec: &Spec) -> Option<Box<Watched>> {
        if self.observing.of.get() == Of::Nobody { None } else { self.watched(lane, req, spec) }
    }

    /// The same of a read of one key that the rules have been asked about already.
    #[inline]
    pub(crate) fn watch_one(
        &self,
        lane: u32,
        req: &Request<'_>,
        method: Method,
        judged: &Judged,
    ) -> Option<Box<Watched>> {
        if self.observing.of.get() == Of::Nobody {
            return None;
        }
        let words = (method != Method::Get).then_some(req);
        let seen = self.seen_as(lane, req.arg(1), judged, words)?;
        Some(Box::new(Watched { method, keys: SmallVec::from_buf([Some(seen)]) }))
    }

    #[cold]
    fn watched(&self, lane: u32, req: &Request<'_>, spec: &Spec) -> Option<Box<Watched>> {
        let method = explain::kept(spec, req).filter(|_| keys::arity_ok(spec, req.argc()))?.method;
        let last = if spec.kind == Kind::Mget { req.argc() } else { 2 };
        let words = (method != Method::Get && method != Method::Mget).then_some(req);
        let keys: SmallVec<[Option<Seen>; 1]> = (1..last).map(|i| self.seen(lane, req.arg(i), method, words)).collect();
        keys.iter().any(Option::is_some).then(|| Box::new(Watched { method, keys }))
    }

    /// A key that is read with these words (none: its string), where it is observed.
    pub(crate) fn seen(&self, lane: u32, key: &[u8], method: Method, words: Option<&Request<'_>>) -> Option<Seen> {
        if self.observing.of.get() == Of::Nobody {
            return None;
        }
        self.seen_as(lane, key, &self.judge(key, method), words)
    }

    fn seen_as(&self, lane: u32, key: &[u8], judged: &Judged, words: Option<&Request<'_>>) -> Option<Seen> {
        let told = match judged.keep {
            Err(Bypass::RuleObserve) => true,
            Err(Bypass::RuleOff) => false,
            _ => self.observing.of.get() == Of::All,
        };
        let (shadow, patterns) = (&self.metrics.shadow, &self.metrics.patterns);
        told.then(|| Seen {
            pattern: judged.pattern,
            key: shadow.key(key),
            form: match words {
                None => shadow.form(lane, [key].into_iter()),
                Some(req) => shadow.form(lane, (0..req.argc()).map(|i| req.arg(i))),
            },
            separator: separator(self.own_name(key), patterns.name(judged.pattern)),
        })
    }

    /// The reply to a read has come, `took` nanoseconds after it was sent.
    pub(crate) fn tell(&self, watched: &Watched, took: u64, frame: &[u8]) {
        if reply::is_error(frame) || watched.method != Method::Mget {
            let first = watched.keys.iter().find_map(Option::as_ref);
            return self.tell_one(first, watched.method, &mut Some(took), frame);
        }
        let mut took = Some(took);
        for (seen, frame) in watched.keys.iter().zip(reply::elements(frame)) {
            self.tell_one(seen.as_ref(), Method::Mget, &mut took, frame);
        }
    }

    /// One key's reply; `took` is the request's, and is told with the first key that is observed.
    pub(crate) fn tell_one(&self, seen: Option<&Seen>, method: Method, took: &mut Option<u64>, frame: &[u8]) {
        let Some(seen) = seen else { return };
        let negative = u32::try_from(self.config.cache.negative_ttl.as_millis()).unwrap_or(u32::MAX);
        let came = (!reply::is_error(frame)).then(|| Came {
            value: u32::try_from(frame.len()).unwrap_or(u32::MAX),
            weight: (frame.len() <= self.config.cache.max_value_bytes)
                .then(|| u32::try_from(cache::weight(frame.len())).unwrap_or(u32::MAX)),
            absent_ms: reply::is_null(frame).then_some(negative),
        });
        let name = self.metrics.patterns.name(seen.pattern);
        self.metrics.shadow.read(name, seen, method, took.take(), came, clock::now());
    }

    /// A command that may write is about to be sent, on whatever connection.
    #[inline]
    pub(crate) fn watch_write(&self, spec: Option<&Spec>, req: &Request<'_>) {
        if self.observing.of.get() == Of::Nobody {
            return;
        }
        // Of a name that nobody knows it is not known what it writes.
        let Some(spec) = spec.filter(|spec| spec.effect != Effect::Read) else { return };
        let mut named: SmallVec<[&[u8]; 4]> = SmallVec::new();
        keys::for_each(spec, req, |key| named.push(key));
        self.watch_writes(spec.effect, named.into_iter());
    }

    /// The same of keys that have been found already.
    #[cold]
    pub(crate) fn watch_writes<'k>(&self, effect: Effect, named: impl Iterator<Item = &'k [u8]>) {
        let shadow = &self.metrics.shadow;
        match effect {
            _ if self.observing.of.get() == Of::Nobody => {}
            Effect::Read => {}
            Effect::Flush | Effect::SwapDb => shadow.flushed(),
            Effect::Write | Effect::Opaque => {
                named.for_each(|key| shadow.wrote(self.judge(key, Method::Get).pattern, shadow.key(key)));
            }
        }
    }

    // ---- the file ----

    /// Takes over what an earlier run has learned. Called once, before clients are served.
    fn recall(&self) {
        let Some(path) = &self.config.observe.file else { return };
        let read = match read(path) {
            Ok(None) => Ok(()),
            Ok(Some(content)) => self.metrics.shadow.restore(&content),
            Err(e) => Err(NotRead::Foreign(format!("it cannot be read: {e}"))),
        };
        self.observing.keeps.set(!matches!(read, Err(NotRead::Foreign(_))));
        if let Err(why) = read {
            tracing::warn!("observe.file {}: {why}", path.display());
        }
    }

    /// What is to be written, and where.
    fn to_keep(&self) -> Option<(PathBuf, Vec<u8>)> {
        let path = self.config.observe.file.as_ref().filter(|_| self.observing.keeps.get())?;
        Some((path.clone(), self.metrics.shadow.save(clock::now())?))
    }

    fn was_kept(&self, path: &Path, result: io::Result<()>) {
        match result {
            Ok(()) => self.observing.complained.set(false),
            Err(e) if !self.observing.complained.replace(true) => {
                tracing::warn!(
                    "observe.file {} cannot be written, what is learned is lost with this process: {e}",
                    path.display()
                );
            }
            Err(_) => {}
        }
    }

    /// Writes down what was learned, at the end of the process.
    pub(crate) fn keep_observed(&self) {
        if let Some((path, content)) = self.to_keep() {
            self.was_kept(&path, write(&path, &content));
        }
    }
}

/// Recalls, and then once a minute forgets old keys and writes down what was learned, as long as something is observed.
pub(crate) async fn run(ctx: Rc<Ctx>) {
    let mut every = interval(EVERY);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    every.tick().await;
    loop {
        every.tick().await;
        if ctx.observing.of.get() == Of::Nobody {
            continue;
        }
        ctx.metrics.shadow.tick(clock::now());
        let Some((path, content)) = ctx.to_keep() else { continue };
        let target = path.clone();
        // A process that is about to end writes it itself.
        if let Ok(result) = tokio::task::spawn_blocking(move || write(&target, &content)).await {
            ctx.was_kept(&path, result);
        }
    }
}

/// `recall`, and the task that keeps.
pub(crate) fn start(ctx: &Rc<Ctx>) {
    ctx.recall();
    tokio::task::spawn_local(run(ctx.clone()));
}

/// The byte behind the family's name, where the key begins with it.
fn separator(key: &[u8], name: &str) -> u8 {
    key.strip_prefix(name.as_bytes()).and_then(<[u8]>::first).copied().unwrap_or(0)
}

/// None: there is no file.
fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let file = match fs::File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e),
    };
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no file"));
    }
    let mut content = Vec::new();
    file.take(FILE_MAX + 1).read_to_end(&mut content)?;
    if content.len() as u64 > FILE_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("it is larger than {FILE_MAX} bytes")));
    }
    Ok(Some(content))
}

/// Whole or not at all: another file beside it takes its place. For its owner only.
fn write(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.new", std::process::id()));
    let fresh = path.with_file_name(name);
    let written = (|| {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&fresh, path)
    })();
    if written.is_err() {
        // What is left of it is of no use to anybody.
        let _ = fs::remove_file(&fresh);
    }
    written
}
