//! Changes of the running process: the configuration is read again (SIGHUP, a changed file, `POST /api/v1/reload`), a rule is
//! put or taken away, the mode is changed. Runs on the data thread. What cannot be valid is refused whole, before anything is
//! touched; what is valid comes into force in one step (`put_in_force`), and is acknowledged when no entry is left that it
//! forbids. Reading and checking happen on threads that may block.
//!
//! **One at a time.** Whoever computes a next configuration from the present one holds the turn from before it looks until
//! the entries are gone, so no change is lost between look and write. A change of the mode is one step without a wait and
//! needs no turn: whoever holds it takes what runs as it is at the moment of the step, the mode included.

mod running;
mod watch;

use std::cell::{Cell, OnceCell};
use std::rc::Rc;
use std::sync::Arc;

use serde::Serialize;
use tokio::sync::{Mutex, MutexGuard};

pub(crate) use running::{Running, State};
pub(crate) use watch::watch;

use crate::config::{self, CacheMode, Changed, Config, ConfigError, Digest, Layers, Place, Rule};
use crate::observe::events::Actor;
use crate::observe::log::LogLevel;
use crate::observe::reasons::{EventKind, Reload};
use crate::observe::stamp;
use crate::policy::Rules;
use crate::policy::commands::Policy;
use crate::worker::Ctx;

/// Changes that wait for their turn. People and a few tools make them; more is a loop that has gone wrong.
const WAITING_MAX: usize = 16;

/// What the data thread keeps for changes.
pub(crate) struct Live {
    running: Arc<Running>,
    turn: Mutex<()>,
    waiting: Cell<usize>,
    /// None in tests, which have nothing to read again.
    origin: OnceCell<Origin>,
    /// The text of the file that was last looked at, whatever came of it, or written by us.
    seen: Cell<Option<Digest>>,
}

/// Where the configuration came from.
pub(crate) struct Origin {
    pub(crate) layers: Arc<Layers>,
    /// Of the file as it was loaded at start.
    pub(crate) digest: Option<Digest>,
    pub(crate) level: LogLevel,
}

/// What somebody wants changed.
#[derive(Debug)]
pub(crate) enum Change {
    Reload,
    Mode(CacheMode),
    PutRule { name: String, body: String, place: Place, wish: Wish },
    DeleteRule { name: String, wish: Wish },
}

/// How a rule is to be changed.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Wish {
    /// Only if the rules are still those of this generation.
    pub(crate) generation: Option<u64>,
    /// In the file too.
    pub(crate) persist: bool,
}

/// What has come of a change, in JSON.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Done {
    /// Of the rules; it grows whenever they change.
    pub(crate) generation: u64,
    /// Keys of the configuration that have another value now.
    changed: Vec<&'static str>,
    /// Keys that the file gives other values than those that run.
    needs_restart: Vec<&'static str>,
    /// What had been changed by hand, and is as the file says again.
    undone: Vec<String>,
    /// Entries that are gone.
    dropped: usize,
    /// The file has the rules as they are now.
    persisted: bool,
    warnings: Vec<String>,
}

/// Why nothing was changed.
#[derive(Debug)]
pub(crate) enum Refused {
    /// All that is wrong, a sentence each.
    Bad(Vec<String>),
    NoSuchRule(String),
    /// The rules are of that generation now.
    Generation(u64),
    /// The file cannot be written; the reason.
    NotPersisted(String),
    Busy(&'static str),
}

impl Live {
    pub(crate) fn new(config: Arc<Config>) -> Live {
        Live {
            running: Arc::new(Running::new(config)),
            turn: Mutex::new(()),
            waiting: Cell::new(0),
            origin: OnceCell::new(),
            seen: Cell::new(None),
        }
    }

    /// `loaded` is the configuration as it was given, before it was fitted to the host.
    pub(crate) fn begin(&self, loaded: Config, origin: Origin) {
        self.running.set(State::first(Arc::new(loaded)));
        self.seen.set(origin.digest);
        // Called once, at start.
        let _ = self.origin.set(origin);
    }

    /// Says which lines of the log were held back because they said the same.
    pub(crate) fn tell_repeats(&self, all: bool) {
        if let Some(origin) = self.origin.get() {
            origin.level.tell_repeats(all);
        }
    }

    /// What runs, for other threads too.
    pub(crate) fn running(&self) -> &Arc<Running> {
        &self.running
    }

    /// Waits until nobody else is changing anything.
    async fn turn(&self) -> Result<MutexGuard<'_, ()>, Refused> {
        if self.waiting.get() >= WAITING_MAX {
            return Err(Refused::Busy("too many changes are waiting"));
        }
        let _waiting = Waiting::new(&self.waiting);
        Ok(self.turn.lock().await)
    }
}

/// One that waits, also where it is given up.
struct Waiting<'c>(&'c Cell<usize>);

impl Waiting<'_> {
    fn new(count: &Cell<usize>) -> Waiting<'_> {
        count.set(count.get() + 1);
        Waiting(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

/// Does what an order from outside says. To be run to its end: whoever may go away leaves it to a task.
pub(crate) async fn change(ctx: &Rc<Ctx>, change: Change, actor: &Actor) -> Result<Done, Refused> {
    match change {
        Change::Reload => reload(ctx, actor).await,
        Change::Mode(_) if ctx.embedded().is_some() => {
            Err(Refused::Bad(vec!["there is nothing to cache in front of the in-memory engine".to_owned()]))
        }
        Change::Mode(mode) => Ok(set_mode(ctx, mode, actor)),
        Change::PutRule { name, body, place, wish } => {
            let what = format!("rule {name} put");
            let read = move |base: &Config| config::put_rule(base, &name, &body, &place).map_err(Refused::from);
            change_rules(ctx, actor, &what, wish, read).await
        }
        Change::DeleteRule { name, wish } => {
            let what = format!("rule {name} deleted");
            let read = move |base: &Config| match config::without_rule(base, &name) {
                Some(changed) => changed.map_err(Refused::from),
                None => Err(Refused::NoSuchRule(config::no_such_rule(base, &name))),
            };
            change_rules(ctx, actor, &what, wish, read).await
        }
    }
}

/// The cache's mode, until somebody changes it again or the configuration is read again. Entries are gone when this
/// returns.
pub(crate) fn set_mode(ctx: &Rc<Ctx>, mode: CacheMode, actor: &Actor) -> Done {
    let old = ctx.live.running.load();
    if old.config.cache.mode == mode {
        return Done { generation: old.generation, ..Done::default() };
    }
    let mut next = (*old.config).clone();
    next.cache.mode = mode;
    ctx.live.running.set(State { config: Arc::new(next), ..(*old).clone() });
    let dropped = flush_for_mode(ctx, mode);
    let message = format!("cache mode is {} now", mode.as_str());
    ctx.status.events.add(EventKind::Mode, actor, &message, vec![("dropped", dropped.to_string())]);
    Done { generation: old.generation, changed: vec!["cache.mode"], dropped, ..Done::default() }
}

fn flush_for_mode(ctx: &Rc<Ctx>, mode: CacheMode) -> usize {
    ctx.l1.settle();
    let (entries, _) = ctx.l1.size();
    ctx.set_mode(mode);
    entries as usize
}

async fn change_rules(
    ctx: &Rc<Ctx>,
    actor: &Actor,
    what: &str,
    wish: Wish,
    read: impl FnOnce(&Config) -> Result<Changed, Refused> + Send + 'static,
) -> Result<Done, Refused> {
    let _turn = ctx.live.turn().await?;
    let base = ctx.live.running.load();
    if wish.generation.is_some_and(|wanted| wanted != base.generation) {
        return Err(Refused::Generation(base.generation));
    }
    let config = base.config.clone();
    let Changed { rules, warnings } = blocking(move || read(&config)).await??;
    let mut filed = base.filed.clone();
    if wish.persist {
        persist(ctx, &rules).await?;
        filed = Arc::new(Config { rules: rules.clone(), ..(*filed).clone() });
    }
    let done = put_rules(ctx, actor, what, rules, warnings, filed).await;
    Ok(Done { persisted: wish.persist, ..done })
}

/// First the file, then the process: what fails here has changed nothing at all, and what comes after cannot fail.
async fn persist(ctx: &Rc<Ctx>, rules: &[Rule]) -> Result<(), Refused> {
    let Some(origin) = ctx.live.origin.get() else {
        return Err(Refused::NotPersisted("there is no configuration file".to_owned()));
    };
    let (layers, rules, known) = (origin.layers.clone(), rules.to_vec(), ctx.live.seen.get());
    let written = blocking(move || layers.persist(&rules, known)).await?;
    // Before the turn is given up, so that the watch does not take it for somebody else's.
    ctx.live.seen.set(Some(written.map_err(Refused::NotPersisted)?));
    Ok(())
}

async fn put_rules(
    ctx: &Rc<Ctx>,
    actor: &Actor,
    what: &str,
    rules: Vec<Rule>,
    warnings: Vec<String>,
    filed: Arc<Config>,
) -> Done {
    let running = ctx.live.running.load();
    let next = Config { rules, ..(*running.config).clone() };
    let done = Done { warnings, ..put_in_force(ctx, next, filed).await };
    if !done.changed.is_empty() {
        let detail = vec![("generation", done.generation.to_string()), ("dropped", done.dropped.to_string())];
        ctx.status.events.add(EventKind::Rules, actor, what, detail);
    }
    done
}

/// Reads the configuration again. What can be changed comes into force, the rest is named; a bad one changes nothing.
pub(crate) async fn reload(ctx: &Rc<Ctx>, actor: &Actor) -> Result<Done, Refused> {
    let _turn = ctx.live.turn().await?;
    reload_in_turn(ctx, actor).await
}

/// The file has this text now, and has had it for a while. Nothing is done where that is known, or where it is away again.
async fn file_changed(ctx: &Rc<Ctx>, digest: Digest) {
    let Ok(_turn) = ctx.live.turn().await else { return };
    if ctx.live.seen.get() != Some(digest) {
        // What is wrong with it has been logged.
        let _ = reload_in_turn(ctx, &Actor::File).await;
    }
}

async fn reload_in_turn(ctx: &Rc<Ctx>, actor: &Actor) -> Result<Done, Refused> {
    let Some(origin) = ctx.live.origin.get() else { return Err(Refused::Busy("there is nothing to read again")) };
    let layers = origin.layers.clone();
    let loaded = blocking(move || layers.can_be_read_again().map(|()| layers.load())).await?;
    let loaded = match loaded {
        Ok(loaded) => loaded,
        Err(problem) => return Err(not_reloaded(ctx, actor, vec![problem])),
    };
    if loaded.digest.is_some() {
        ctx.live.seen.set(loaded.digest);
    }
    match loaded.result {
        Ok((next, warnings)) => Ok(reloaded(ctx, actor, &next, warnings).await),
        // It was there a moment ago: between two versions of a file there may be none.
        Err(_) if *actor == Actor::File && loaded.digest.is_none() => Err(Refused::Busy("the file is away")),
        Err(error) => Err(not_reloaded(ctx, actor, error.into_problems())),
    }
}

async fn reloaded(ctx: &Rc<Ctx>, actor: &Actor, next: &Config, warnings: Vec<String>) -> Done {
    ctx.metrics.reloads.inc(Reload::Ok);
    ctx.metrics.reloaded_at.set(stamp::unix_ms());
    ctx.status.set_config_error(None);
    warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
    let running = ctx.live.running.load();
    let adopted = running.config.adopting(next);
    let needs_restart = config::differing(&adopted, next);
    let undone = running.undone_by(&adopted);
    let filed = Arc::new(adopted.clone());
    let done = put_in_force(ctx, adopted, filed).await;
    if !needs_restart.is_empty() {
        tracing::warn!(
            "these keys have other values in the configuration and need a restart: {}",
            needs_restart.join(", ")
        );
    }
    if !undone.is_empty() {
        tracing::warn!("changed by hand, and now as the configuration says again: {}", undone.join(", "));
    }
    let message = match done.changed.is_empty() {
        true => "configuration read again, nothing changed",
        false => "configuration read again",
    };
    let lists = [
        ("changed", done.changed.join(", ")),
        ("needs_restart", needs_restart.join(", ")),
        ("undone", undone.join(", ")),
    ];
    let mut detail: Vec<(&str, String)> = lists.into_iter().filter(|(_, list)| !list.is_empty()).collect();
    detail.extend([("generation", done.generation.to_string()), ("dropped", done.dropped.to_string())]);
    ctx.status.events.add(EventKind::Reload, actor, message, detail);
    Done { needs_restart, undone, warnings, ..done }
}

/// In the log and to whoever asked with the token, all of it; for everybody who may see /health only where it is.
fn not_reloaded(ctx: &Rc<Ctx>, actor: &Actor, problems: Vec<String>) -> Refused {
    problems.iter().for_each(|problem| tracing::error!("the configuration is refused: {problem}"));
    ctx.metrics.reloads.inc(Reload::Failed);
    let places: Vec<String> = problems.iter().map(|problem| place(problem)).collect();
    let more = if places.len() > 1 { format!(" (and {} more)", places.len() - 1) } else { String::new() };
    let first = places.first().cloned().unwrap_or_default();
    ctx.status.set_config_error(Some(format!("{first}{more}; the log says what is wrong")));
    let detail = vec![("problems", places.join("; "))];
    ctx.status.events.add(EventKind::Reload, actor, "configuration refused, what runs stays", detail);
    Refused::Bad(problems)
}

/// `x.yaml:3: cache.mode` of `x.yaml:3: cache.mode: "on" is not ...`: a value may be a password that stands in a wrong place.
fn place(problem: &str) -> String {
    problem.splitn(3, ": ").take(2).collect::<Vec<_>>().join(": ")
}

/// The one place where another configuration comes into force. `next` is what runs with some of `config::live`'s keys changed;
/// `filed` is what the file says of them.
///
/// Between the first step and the sweep's beginning nothing is awaited: on this thread, where all is decided that is not a
/// hit, nobody sees a part of it. Other threads see each value whole. Whoever is told that it is done is told after the
/// sweep: no entry is left then that the new rules forbid, and none can come (the argument is at `Ctx::set_rules`).
async fn put_in_force(ctx: &Rc<Ctx>, next: Config, filed: Arc<Config>) -> Done {
    let old = ctx.live.running.load();
    let other_rules = rules_differ(&old.config, &next);
    let generation = old.generation + u64::from(other_rules);
    let changed = config::differing(&old.config, &next);
    let next = Arc::new(next);
    ctx.live.running.set(State { config: next.clone(), filed, generation });
    let mut dropped = 0;
    if old.config.cache.mode != next.cache.mode {
        dropped += flush_for_mode(ctx, next.cache.mode);
    }
    if old.config.log.level != next.log.level
        && let Some(origin) = ctx.live.origin.get()
    {
        origin.level.set(next.log.level);
    }
    ctx.set_slow_log(&next);
    if old.config.commands != next.commands {
        ctx.set_policy(Arc::new(Policy::new(&next.commands)));
    }
    if other_rules {
        dropped += ctx.set_rules(Rules::new(&next.rules, &next.cache, &ctx.metrics.patterns)).await;
    }
    Done { generation, changed, dropped, ..Done::default() }
}

/// Where none are written the `cache` section is the only rule.
fn rules_differ(a: &Config, b: &Config) -> bool {
    let implicit = a.rules.is_empty() || b.rules.is_empty();
    a.rules != b.rules || implicit && Rule::of_cache(&a.cache) != Rule::of_cache(&b.cache)
}

/// Off this thread, which has clients to serve.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Refused> {
    tokio::task::spawn_blocking(work).await.map_err(|_| Refused::Busy("the process is about to end"))
}

impl From<ConfigError> for Refused {
    fn from(error: ConfigError) -> Refused {
        Refused::Bad(error.into_problems())
    }
}
