//! Queued writes are done upstream when it is back, over the lane, before the lane is ready for anything else about their
//! keys. Runs from the moment a lane with a queue is up, or is heard again, until the queue is empty.
//!
//! **The ordering argument.** The queue of a profile is done in its order, batch by batch, on the one connection of its
//! lane. A batch leaves the queue when its replies have been read; so what is not known to be done is done (again) on the
//! next connection, from the first such effect on. Effects say what a key is to be afterwards, so doing them again, in
//! order and to the end, leaves what doing them once does. And a client's new command on a queued key comes after it:
//! while the queue is not empty such commands are answered by the table of outages (they are queued behind), and no
//! connection is lent past the lane (`Ctx::checkout`). What was in flight on a lane that was silent stands before the
//! effects in the same stream.
//!
//! **It ends.** What was queued when upstream came back is done while clients go on queueing. From there on they wait: what
//! they have queued meanwhile is bounded, and nothing is added to it.
//!
//! **What the L1 shows.** The keys were evicted when they were queued. While they wait on a live connection each counts as a
//! write that is sent and not answered (`begin_write`), so nothing that is read of them is stored; each is evicted once
//! more before the lane is ready.
//!
//! **Conflicts.** Before a key's first effect its value is compared with what was known of it here when that was queued.
//! WATCH, the GETs, and MULTI with the batch's effects: where somebody changes a key between the two, EXEC does nothing and
//! the batch is compared again. Users without these commands, and keys that keep being changed, go without; then a change in
//! that moment is overwritten and not counted.

use std::collections::{HashMap, HashSet};
use std::rc::Rc;
use std::time::Duration;

use bytes::BytesMut;
use tokio::sync::oneshot::Receiver;
use tokio::time::sleep;

use super::lane::{Availability, Lane};
use super::payload::Op;
use super::tell::{EXEC, MULTI, told};
use crate::config::QueueConflict;
use crate::mutation::{self, Rule};
use crate::observe::clock;
use crate::observe::events::Actor;
use crate::observe::reasons::{EventKind, Replayed};
use crate::observe::stamp;
use crate::outage::Outage;
use crate::outage::queue::{Base, Effect};
use crate::resp::{build, reply};
use crate::upstream::Backoff;
use crate::upstream::handshake::error_text;
use crate::worker::Ctx;

/// Effects that are under way at once: at a round trip of 1 ms some 60,000 a second, and what upstream executes in one
/// piece (MULTI), about 0.1 ms. A command of more keys is one batch: it is seen whole.
const BATCH: usize = 128;

/// And no more bytes of them, unless it is one command alone.
const BATCH_BYTES: usize = 1 << 20;

/// Between two attempts while upstream answers and refuses (`-OOM`, `-READONLY`, ...).
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(2);

/// A batch that was changed under our hands so often is done without WATCH.
const AGAIN_MAX: u32 = 8;

/// Errors of a server that will take the write later, or of one that another connection attempt may replace.
const TRANSIENT: [&str; 9] =
    ["OOM", "READONLY", "MISCONF", "LOADING", "BUSY", "MASTERDOWN", "NOREPLICAS", "CLUSTERDOWN", "TRYAGAIN"];

/// So EXEC begins that was refused itself, before the reason.
const ABORTED: &str = "EXECABORT Transaction discarded because of: ";

/// What has become of one batch.
enum Went {
    /// There was none.
    Empty,
    Done,
    /// Nothing was done, and it may be tried again at once.
    Again,
    /// Upstream refuses for now.
    Refused(String),
    /// The connection is gone.
    Lost,
}

/// What this user may do, as far as is known.
struct Means {
    watch: bool,
    multi: bool,
    /// Batches in a row that were changed under our hands.
    again: u32,
}

/// One effect of a batch.
struct Todo {
    seq: u64,
    effect: Effect,
    compare: Option<Base>,
    skipped: Option<Replayed>,
}

/// What a key was found to be before its first effect.
type Verdicts = HashMap<Box<[u8]>, Replayed>;

impl Lane {
    /// The lane is up, or is heard again: it is ready, unless writes wait for it.
    pub(super) fn serves_again(self: &Rc<Self>, ctx: &Rc<Ctx>) {
        if self.is_spare() || !ctx.held.waits(&self.profile) {
            self.forget_held(ctx);
            return self.set_availability(Availability::Ready);
        }
        let since = ctx.held.oldest().unwrap_or_else(clock::now);
        let outage = Outage { since, why: "it is back, and queued writes are being done".to_owned() };
        self.set_availability(Availability::Replaying { outage, last: false });
        if self.replaying.replace(self.epoch()) == self.epoch() {
            return; // it was silent in the middle of it
        }
        if let Some(held) = ctx.held.of(&self.profile) {
            held.borrow().queue.keys().for_each(|key| self.cover(ctx, key));
        }
        tokio::task::spawn_local(replay(ctx.clone(), self.clone(), self.epoch(), false));
    }

    /// A write of a rule with `write: behind` was queued while the lane is ready: it is done while the lane serves.
    pub(crate) fn do_behind(self: &Rc<Self>, ctx: &Rc<Ctx>) {
        if !self.is_ready() || !self.is_live() || self.is_spare() || self.replaying.get() == self.epoch() {
            return;
        }
        self.replaying.set(self.epoch());
        if let Some(held) = ctx.held.of(&self.profile) {
            held.borrow().queue.keys().for_each(|key| self.cover(ctx, key));
        }
        tokio::task::spawn_local(replay(ctx.clone(), self.clone(), self.epoch(), true));
    }

    /// What comes from now on waits until the queue is empty, and nothing is added to it.
    pub(crate) fn drain_first(&self) {
        if self.is_ready() {
            let outage = Outage { since: clock::now(), why: "writes behind their replies are being done".to_owned() };
            self.set_availability(Availability::Replaying { outage, last: true });
        }
    }

    /// Keys of which nothing waits any more are upstream's to answer again, while others still wait.
    fn release(&self, ctx: &Ctx) {
        let Some(held) = ctx.held.of(&self.profile) else { return };
        let mut held = held.borrow_mut();
        self.covered.borrow_mut().retain(|key, stripe| {
            let waits = held.queue.has(key);
            if !waits {
                held.release(key);
                ctx.l1.end_write(*stripe);
            }
            waits
        });
    }

    /// Whether queued writes of its profile are being done; `Some(true)`: everything waits for the last of them.
    pub(crate) fn replaying(&self) -> Option<bool> {
        match self.inner.borrow().availability {
            Availability::Replaying { last, .. } => Some(last),
            _ => None,
        }
    }

    /// Whoever waits for it need not wait long.
    pub(crate) fn may_be_ready_soon(&self) -> bool {
        matches!(self.inner.borrow().availability, Availability::Starting | Availability::Replaying { last: true, .. })
    }

    /// Nothing that is read of this key is stored before its writes are done.
    pub(crate) fn cover(&self, ctx: &Ctx, key: &[u8]) {
        let mut covered = self.covered.borrow_mut();
        if !covered.contains_key(key) {
            covered.insert(key.into(), ctx.l1.begin_write(key));
        }
    }

    /// The same for a key that has just been queued.
    pub(crate) fn cover_queued(&self, ctx: &Ctx, key: &[u8]) {
        if self.is_live() && self.replaying.get() == self.epoch() {
            self.cover(ctx, key);
        }
    }

    /// They are, or the connection is lost and nothing is read.
    pub(super) fn uncover(&self, ctx: &Ctx) {
        self.covered.borrow_mut().drain().for_each(|(_, stripe)| ctx.l1.end_write(stripe));
    }

    /// Nothing waits any more: what was kept for replies goes, and what was written here only is forgotten.
    fn forget_held(&self, ctx: &Ctx) {
        let Some(held) = ctx.held.end(&self.profile) else { return };
        let held = held.borrow();
        held.known().for_each(|key| {
            ctx.l1.invalidate(key);
        });
        if held.local_writes() > 0 {
            ctx.metrics.queue.local_dropped.add(held.local_writes());
            let text = format!("{} writes to the local engine are forgotten", held.local_writes());
            self.say_queue(ctx, &text, Vec::new());
        }
        ctx.show_held();
    }

    /// The last effect is done: nothing can be queued between here and the lane's being ready, there is no await.
    fn replayed(self: &Rc<Self>, ctx: &Rc<Ctx>, took: u64) {
        if let Some(held) = ctx.held.of(&self.profile) {
            let held = held.borrow();
            let counts: Vec<(&'static str, String)> = held.replayed().map(|(what, n)| (what, n.to_string())).collect();
            let shown: Vec<String> = counts.iter().map(|(what, n)| format!("{what} {n}")).collect();
            let text = format!("queued writes are done, in {:.1} s: {}", took as f64 / 1e9, shown.join(", "));
            self.say_queue(ctx, &text, counts);
        }
        self.replaying.set(0);
        self.uncover(ctx);
        self.forget_held(ctx);
        self.recovers(clock::now());
        self.set_availability(Availability::Ready);
    }

    /// The same where the lane has served all the while: nobody need hear of it.
    fn caught_up(self: &Rc<Self>, ctx: &Rc<Ctx>) {
        self.replaying.set(0);
        self.uncover(ctx);
        self.forget_held(ctx);
        self.set_availability(Availability::Ready);
    }

    /// From here on it is as after an outage: what upstream will not take holds back everything that depends on it.
    fn refuses_behind(&self, why: &str) {
        let outage = Outage { since: clock::now(), why: why.to_owned() };
        self.set_availability(Availability::Replaying { outage, last: false });
    }

    fn say_queue(&self, ctx: &Ctx, text: &str, detail: Vec<(&'static str, String)>) {
        tracing::info!(user = %self.profile.user(), db = self.profile.db, "{text}");
        ctx.status.events.note(EventKind::Queue, &Actor::Own("queue"), text, detail);
    }

    /// Upstream refuses this profile altogether: its writes will never be done.
    pub(super) fn give_up_queue(&self, ctx: &Ctx, why: &str) {
        let lost = ctx.held.of(&self.profile).map_or(0, |held| held.borrow().queue.len());
        if lost > 0 {
            ctx.metrics.queue.replayed.add(Replayed::Failed, lost as u64);
            tracing::error!(user = %self.profile.user(), db = self.profile.db,
                "{lost} acknowledged writes are lost: upstream refuses their user: {why}");
            let detail = vec![("why", why.to_owned()), ("lost", lost.to_string())];
            ctx.status.events.note(EventKind::Queue, &Actor::Own("queue"), "queued writes are lost", detail);
        }
        self.forget_held(ctx);
    }

    /// Says what is in the way, where it is not what was said before.
    fn held_back(&self, ctx: &Ctx, why: &str) {
        let mut inner = self.inner.borrow_mut();
        let Availability::Replaying { outage, last } = &mut inner.availability else { return };
        *last = false;
        let why = format!("it is back and refuses queued writes: {why}");
        if outage.why != why {
            tracing::warn!(user = %self.profile.user(), db = self.profile.db, "queued writes wait: {why}");
            let detail = vec![("why", why.clone())];
            ctx.status.events.note(EventKind::Queue, &Actor::Own("queue"), "queued writes wait", detail);
            outage.why = why;
        }
        drop(inner);
        self.changed.notify_waiters();
    }

    /// From here on everybody waits for what is left.
    fn wait_for_the_rest(&self) {
        if let Availability::Replaying { last, .. } = &mut self.inner.borrow_mut().availability {
            *last = true;
        }
    }
}

/// `behind`: nothing was wrong, the lane serves meanwhile; until upstream refuses something.
async fn replay(ctx: Rc<Ctx>, lane: Rc<Lane>, epoch: u64, mut behind: bool) {
    let start = clock::now();
    let mut pause = Backoff::new(RETRY_FIRST, RETRY_MAX);
    // While the lane serves in `pubsub` mode, others' writes are transactions too: their EXEC would answer for our WATCH.
    let mut means = Means { watch: !(behind && lane.publishes()), multi: true, again: 0 };
    let goal = ctx.held.of(&lane.profile).map_or(0, |held| held.borrow().queue.last());
    while lane.epoch() == epoch {
        // It was silent meanwhile: now it ends as after an outage does.
        behind &= lane.replaying() != Some(false);
        match batch(&ctx, &lane, &mut means).await {
            Went::Empty if behind => return lane.caught_up(&ctx),
            Went::Empty => return lane.replayed(&ctx, clock::now().saturating_sub(start)),
            Went::Done => {
                pause.reset();
                let left =
                    ctx.held.of(&lane.profile).and_then(|held| held.borrow().queue.front(1, 0).next().map(|i| i.seq));
                if behind {
                    lane.release(&ctx);
                } else if left.is_some_and(|seq| seq > goal) {
                    lane.wait_for_the_rest();
                }
            }
            Went::Again => {}
            Went::Refused(why) => {
                if std::mem::take(&mut behind) {
                    lane.refuses_behind(&why);
                }
                lane.held_back(&ctx, &why);
                sleep(pause.next()).await;
                // A replica: the name may lead to the new master by now. Not at once: it has only just been connected.
                if why.starts_with("READONLY") && lane.epoch() == epoch {
                    sleep(RETRY_MAX).await;
                    lane.kill("upstream answered a queued write with -READONLY: it is no master any more");
                    return;
                }
            }
            Went::Lost => return,
        }
        ctx.show_held();
        ctx.flush_dirty();
    }
}

/// Compares and does the front of the queue.
async fn batch(ctx: &Rc<Ctx>, lane: &Rc<Lane>, means: &mut Means) -> Went {
    let todo = take(ctx, lane);
    let Some(last) = todo.last().map(|todo| todo.seq) else { return Went::Empty };
    let mut verdicts = match compare(ctx, lane, means, &todo).await {
        Ok(verdicts) => verdicts,
        Err(went) => return went,
    };
    let Some(held) = ctx.held.of(&lane.profile) else { return Went::Empty };
    if ctx.config.outage.queue_conflict == QueueConflict::Skip {
        for (key, _) in verdicts.iter().filter(|(_, verdict)| **verdict == Replayed::Overwritten) {
            held.borrow_mut().forget(key, Replayed::Skipped);
        }
        verdicts.retain(|_, verdict| *verdict != Replayed::Overwritten);
    }
    // Again: what was just skipped is no more to be done.
    let todo = take_until(ctx, lane, last);
    let dropped = |todo: &Todo| mutation::off(Rule::Replay) && todo.seq.is_multiple_of(8);
    let wanted: Vec<&Todo> = todo.iter().filter(|todo| todo.skipped.is_none() && !dropped(todo)).collect();
    verdicts.iter().for_each(|(key, found)| held.borrow_mut().queue.begin(key, *found));
    let not_begun = |key: &[u8]| held.borrow_mut().queue.not_begun(key);
    match execute(ctx, lane, means, &wanted).await {
        Ok(()) => {
            settle(ctx, lane, last);
            means.again = 0;
            Went::Done
        }
        Err(Stopped::Nothing(why)) => {
            verdicts.keys().for_each(|key| not_begun(key));
            match why {
                Some(why) => Went::Refused(why),
                None => {
                    means.again += 1;
                    means.watch &= means.again < AGAIN_MAX;
                    Went::Again
                }
            }
        }
        Err(Stopped::Some(refused)) => {
            refused.undone.iter().filter(|key| verdicts.contains_key(*key)).for_each(|key| not_begun(key));
            refused.for_good.iter().for_each(|(key, why)| give_up(ctx, lane, key, why));
            settle(ctx, lane, refused.until.unwrap_or(last));
            refused.for_now.map_or(Went::Done, Went::Refused)
        }
        Err(Stopped::Lost) => Went::Lost,
    }
}

fn take(ctx: &Ctx, lane: &Lane) -> Vec<Todo> {
    collect(ctx, lane, u64::MAX)
}

fn take_until(ctx: &Ctx, lane: &Lane, last: u64) -> Vec<Todo> {
    collect(ctx, lane, last)
}

fn collect(ctx: &Ctx, lane: &Lane, last: u64) -> Vec<Todo> {
    let Some(held) = ctx.held.of(&lane.profile) else { return Vec::new() };
    let held = held.borrow();
    let items = held.queue.front(BATCH, BATCH_BYTES).take_while(|item| item.seq <= last);
    let todo = |item| {
        let (skipped, compare) = (held.queue.skipped(item), held.queue.to_compare(item).cloned());
        Todo { seq: item.seq, effect: item.effect.clone(), compare, skipped }
    };
    items.map(todo).collect()
}

/// Everything up to `until` is over: counted, and out of the queue.
fn settle(ctx: &Ctx, lane: &Lane, until: u64) {
    let Some(held) = ctx.held.of(&lane.profile) else { return };
    let mut held = held.borrow_mut();
    for what in held.queue.outcomes(until) {
        ctx.metrics.queue.replayed.inc(what);
        held.count(what);
    }
    held.applied(until);
}

/// Upstream will not have this key's writes: all that are queued, said once.
fn give_up(ctx: &Ctx, lane: &Lane, key: &[u8], why: &str) {
    let Some(held) = ctx.held.of(&lane.profile).filter(|held| held.borrow().queue.has(key)) else { return };
    held.borrow_mut().forget(key, Replayed::Failed);
    tracing::error!(user = %lane.profile.user(), db = lane.profile.db,
        "an acknowledged write is lost: upstream refuses it for good: {why}");
    let detail = vec![("why", why.to_owned())];
    ctx.status.events.note(EventKind::Queue, &Actor::Own("queue"), "a queued write is lost", detail);
}

/// What upstream holds of the keys whose first effect is among these, against what was known.
async fn compare(ctx: &Ctx, lane: &Lane, means: &mut Means, todo: &[Todo]) -> Result<Verdicts, Went> {
    let mut verdicts = Verdicts::default();
    let mut asked: Vec<(&[u8], &Base)> = Vec::new();
    for one in todo.iter().filter(|one| one.skipped.is_none()) {
        let key = one.effect.key();
        let Some(base) = &one.compare else { continue };
        if verdicts.insert(key.into(), Replayed::UnknownBase).is_none() && *base != Base::Unknown {
            asked.push((key, base));
        }
    }
    if asked.is_empty() {
        return Ok(verdicts);
    }
    let now = clock::now();
    let watch = means.watch && means.multi;
    let watched = watch.then(|| {
        let words: Vec<&[u8]> = std::iter::once(&b"WATCH"[..]).chain(asked.iter().map(|(key, _)| *key)).collect();
        lane.inquire(now, &words)
    });
    let replies: Vec<_> = asked.iter().map(|(key, _)| lane.inquire(now, &[b"GET", key])).collect();
    let mut refused = None;
    if let Some(watched) = watched {
        let frame = watched.await.map_err(|_| Went::Lost)?;
        if reply::is_error(&frame) {
            refused = transient(&frame);
            means.watch = false;
        }
    }
    let wall = stamp::unix_ms() as i64;
    for ((key, base), reply) in asked.iter().zip(replies) {
        let frame = reply.await.map_err(|_| Went::Lost)?;
        refused = refused.or_else(|| transient(&frame));
        let mut found = verdict(base, &frame, wall);
        if found == Replayed::Overwritten && may_be_own(ctx, lane, key, &frame, wall) {
            found = Replayed::Applied;
        }
        verdicts.insert((*key).into(), found);
    }
    match refused {
        Some(why) => {
            means.watch = true;
            let unwatched = lane.inquire(clock::now(), &[b"UNWATCH"]);
            unwatched.await.map_err(|_| Went::Lost)?;
            ctx.show_held();
            Err(Went::Refused(why))
        }
        None => Ok(verdicts),
    }
}

/// Whether this answer to GET shows what a process before this one has done of the same journal.
fn may_be_own(ctx: &Ctx, lane: &Lane, key: &[u8], frame: &[u8], now: i64) -> bool {
    let value = reply::bulk(frame).filter(|_| !reply::is_error(frame));
    let is_answer = value.is_some() || reply::is_null(frame);
    is_answer && ctx.held.of(&lane.profile).is_some_and(|held| held.borrow().queue.may_be_own(key, value, now))
}

fn verdict(base: &Base, frame: &[u8], now: i64) -> Replayed {
    let same = match reply::bulk(frame) {
        Some(value) if !reply::is_error(frame) => base.is(Some(value), now),
        _ if reply::is_null(frame) => base.is(None, now),
        // It is no string any more, or may not be read by this user.
        _ if frame.starts_with(b"-WRONGTYPE") => false,
        _ => return Replayed::UnknownBase,
    };
    if same { Replayed::Applied } else { Replayed::Overwritten }
}

/// The error, if the server will take it later.
fn transient(frame: &[u8]) -> Option<String> {
    let text = reply::is_error(frame).then(|| error_text(frame))?;
    is_transient(&text).then_some(text)
}

fn is_transient(text: &str) -> bool {
    TRANSIENT.contains(&text.split(' ').next().unwrap_or_default())
}

/// Why not all of a batch was done.
enum Stopped {
    /// Nothing was: somebody changed a key meanwhile, or upstream refuses for now, and says why.
    Nothing(Option<String>),
    /// Each effect has its own fate.
    Some(Refused),
    Lost,
}

/// What upstream has refused of a batch.
#[derive(Debug, Default, PartialEq, Eq)]
struct Refused {
    /// Keys whose writes it will never do, and why.
    for_good: Vec<(Box<[u8]>, String)>,
    /// Why it will do some only later; none: it has done all the others.
    for_now: Option<String>,
    /// Keys of which nothing was done.
    undone: Vec<Box<[u8]>>,
    /// So far everything is done, or will never be; none: all of the batch.
    until: Option<u64>,
}

/// Does the effects, in one transaction where this user may.
async fn execute(ctx: &Ctx, lane: &Lane, means: &mut Means, todo: &[&Todo]) -> Result<(), Stopped> {
    if todo.is_empty() {
        let unwatched = lane.inquire(clock::now(), &[b"UNWATCH"]);
        return unwatched.await.map(drop).map_err(|_| Stopped::Lost);
    }
    let now = clock::now();
    let wrapped = means.multi;
    let multi = wrapped.then(|| lane.ask_raw(now, MULTI));
    let commands: Vec<Receiver<Vec<u8>>> =
        todo.iter().map(|one| lane.ask_raw(now, &command(ctx, &one.effect))).collect();
    let publish = lane.publishes().then(|| {
        let keys: Vec<Box<[u8]>> = todo.iter().map(|one| one.effect.key().into()).collect();
        lane.ask_raw(now, &told(ctx, Op::Key, &keys))
    });
    let exec = wrapped.then(|| lane.ask_raw(now, EXEC));
    let multi = answer(multi).await?;
    let mut frames = Vec::with_capacity(commands.len());
    for command in commands {
        frames.push(command.await.map_err(|_| Stopped::Lost)?);
    }
    let publish = answer(publish).await?;
    let exec = answer(exec).await?;
    match (multi, exec) {
        // Its message is refused: the writes go without, one by one.
        (Some(_), Some(exec)) if reply::is_error(&exec) && publish.is_some_and(|frame| is_refusal(&frame)) => {
            means.multi = false;
            Err(Stopped::Nothing(None))
        }
        (Some(multi), Some(exec)) if !reply::is_error(&multi) => executed(means, todo, frames, &exec),
        (Some(multi), _) => {
            // Each was executed by itself, or refused as MULTI was.
            means.multi = transient(&multi).is_some();
            one_by_one(todo, &frames)
        }
        _ => one_by_one(todo, &frames),
    }
}

fn is_refusal(frame: &[u8]) -> bool {
    reply::is_error(frame) && transient(frame).is_none()
}

async fn answer(asked: Option<Receiver<Vec<u8>>>) -> Result<Option<Vec<u8>>, Stopped> {
    match asked {
        Some(asked) => asked.await.map(Some).map_err(|_| Stopped::Lost),
        None => Ok(None),
    }
}

/// What EXEC says of a batch.
fn executed(means: &mut Means, todo: &[&Todo], queued: Vec<Vec<u8>>, exec: &[u8]) -> Result<(), Stopped> {
    if reply::is_null(exec) {
        return Err(Stopped::Nothing(None));
    }
    if !reply::is_error(exec) {
        let frames: Vec<Vec<u8>> = reply::elements(exec).map(<[u8]>::to_vec).collect();
        return one_by_one(todo, &frames);
    }
    if let Some(why) = queued.iter().find_map(|frame| transient(frame)) {
        return Err(Stopped::Nothing(Some(why)));
    }
    let key = |one: &&Todo| -> Box<[u8]> { one.effect.key().into() };
    let refused = todo.iter().zip(&queued).filter(|(_, frame)| reply::is_error(frame));
    let for_good: Vec<_> = refused.map(|(one, frame)| (key(one), error_text(frame))).collect();
    if !for_good.is_empty() {
        // The others were not done either: they are the front of the next batch.
        let before = todo.first().map_or(0, |one| one.seq - 1);
        let undone = todo.iter().map(key).collect();
        return Err(Stopped::Some(Refused { for_good, for_now: None, undone, until: Some(before) }));
    }
    // It took each of them, and will not have EXEC.
    let text = error_text(exec);
    let why = text.strip_prefix(ABORTED).unwrap_or(&text);
    if is_transient(why) {
        return Err(Stopped::Nothing(Some(why.to_owned())));
    }
    // Nor will it tomorrow: they go without, one by one.
    means.multi = false;
    Err(Stopped::Nothing(None))
}

/// Each has its own reply.
///
/// The queue becomes shorter up to the first that is to be done later: those behind it are done again, in order. What
/// will never be done stands in nobody's way.
fn one_by_one(todo: &[&Todo], frames: &[Vec<u8>]) -> Result<(), Stopped> {
    let mut refused = Refused::default();
    let mut touched: HashSet<&[u8]> = HashSet::new();
    for (i, one) in todo.iter().enumerate() {
        let key = one.effect.key();
        match fate(frames.get(i).map(Vec::as_slice)) {
            Fate::Done => drop(touched.insert(key)),
            Fate::Never(why) => refused.for_good.push((key.into(), why)),
            Fate::Later(why) => {
                refused.until.get_or_insert(one.seq - 1);
                refused.for_now.get_or_insert(why);
            }
        }
    }
    if refused == Refused::default() {
        return Ok(());
    }
    refused.undone =
        todo.iter().map(|one| one.effect.key()).filter(|key| !touched.contains(key)).map(Into::into).collect();
    Err(Stopped::Some(refused))
}

/// What has become of one effect.
enum Fate {
    Done,
    Later(String),
    Never(String),
}

fn fate(frame: Option<&[u8]>) -> Fate {
    match frame {
        // A transaction that could not be ended: it was not done.
        None | Some(b"+QUEUED\r\n") => Fate::Later("it has not said what became of one".to_owned()),
        Some(frame) if reply::is_error(frame) => match error_text(frame) {
            text if is_transient(&text) => Fate::Later(text),
            text => Fate::Never(text),
        },
        Some(_) => Fate::Done,
    }
}

/// As upstream is told. Servers before 6.2 have no PXAT: they are told how long is left.
fn command(ctx: &Ctx, effect: &Effect) -> BytesMut {
    let mut raw = BytesMut::new();
    let now = stamp::unix_ms() as i64;
    match effect {
        Effect::Set { key, expire_at_ms: Some(at), .. } if *at <= now => build::command(&mut raw, &[b"DEL", key]),
        Effect::Set { key, value, expire_at_ms: Some(at) } => {
            let absolute = has_pxat(&ctx.server.borrow().version);
            let (word, ms) = if absolute { (&b"PXAT"[..], *at) } else { (&b"PX"[..], at - now) };
            build::command(&mut raw, &[b"SET", key, value, word, ms.to_string().as_bytes()]);
        }
        Effect::Set { key, value, expire_at_ms: None } => build::command(&mut raw, &[b"SET", key, value]),
        Effect::Del { key } => build::command(&mut raw, &[b"DEL", key]),
    }
    raw
}

fn has_pxat(version: &str) -> bool {
    let mut numbers = version.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= (6, 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_with_pxat() {
        let rows = [("6.2.0", true), ("7.0.15", true), ("8.1", true), ("6.0.16", false), ("5", false), ("", false)];
        rows.iter().for_each(|(version, has)| assert_eq!(has_pxat(version), *has, "{version}"));
    }

    #[test]
    fn verdicts() {
        let base = Base::Value { value: b"v"[..].into(), expire_at_ms: None };
        let rows: [(&[u8], Replayed); 5] = [
            (b"$1\r\nv\r\n", Replayed::Applied),
            (b"$1\r\nw\r\n", Replayed::Overwritten),
            (b"_\r\n", Replayed::Overwritten),
            (b"-WRONGTYPE Operation against a key\r\n", Replayed::Overwritten),
            (b"-NOPERM this user\r\n", Replayed::UnknownBase),
        ];
        rows.iter().for_each(|(frame, want)| assert_eq!(verdict(&base, frame, 0), *want, "{frame:?}"));
        assert_eq!(verdict(&Base::Absent, b"_\r\n", 0), Replayed::Applied);
    }

    #[test]
    fn what_a_server_will_take_later() {
        assert!(transient(b"-OOM command not allowed\r\n").is_some());
        assert!(transient(b"-BUSY Redis is busy\r\n").is_some());
        for frame in [&b"-NOPERM no\r\n"[..], b"-ERR syntax error\r\n", b"+OK\r\n", b"$4\r\n-OOM\r\n"] {
            assert_eq!(transient(frame), None);
        }
    }
}
