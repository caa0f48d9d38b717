//! What somebody asked to drop, dropped here: for a message on the channel, a client's PUBLISH, NEARSIDE INVALIDATE and the
//! side port alike. It concerns the entries of every database and credential. Telling the other sidecars is the asker's
//! business.

use std::rc::Rc;
use std::time::Duration;

use tokio::time::timeout;

use super::payload::{Malformed, Message, Op};
use super::{Availability, Hold, Lane};
use crate::cache::{Matcher, Sweep};
use crate::observe::clock;
use crate::observe::reasons::{Flush, Source, Tag};
use crate::resp::{Proto, reply};
use crate::upstream::Profile;
use crate::upstream::handshake::error_text;
use crate::upstream::pinned::Dedicated;
use crate::worker::Ctx;

/// How far it is.
pub(crate) enum Applied {
    /// So many entries were dropped.
    Done(usize),
    /// Nothing from before is stored any more; what is resident is still to be looked through.
    Sweeping(Sweep),
}

/// Begins to drop what `message` names. An error means that nothing was touched.
pub(crate) fn apply(ctx: &Ctx, message: &Message, source: Source) -> Result<Applied, Malformed> {
    let applied = match message.op {
        Op::Key => Applied::Done(message.args.iter().map(|key| ctx.l1.invalidate(key)).sum()),
        Op::Prefix => Applied::Sweeping(ctx.l1.sweep(message.args.iter().cloned().map(Matcher::Prefix).collect())),
        Op::Pattern => Applied::Sweeping(ctx.l1.sweep(message.args.iter().cloned().map(Matcher::Glob).collect())),
        Op::Regex => Applied::Sweeping(ctx.l1.sweep(expressions(&message.args)?)),
        Op::Tag => {
            // Before it, because a tag's set is gone with its last key.
            message.args.iter().for_each(|tag| count_tag(ctx, tag));
            Applied::Sweeping(ctx.l1.sweep_tags(&message.args))
        }
        Op::Flush => Applied::Done(flush(ctx, source)),
    };
    count(ctx, message, source);
    Ok(applied)
}

fn expressions(args: &[Vec<u8>]) -> Result<Vec<Matcher>, Malformed> {
    args.iter().map(|text| Matcher::regex(text).map_err(Malformed::Regex)).collect()
}

fn flush(ctx: &Ctx, source: Source) -> usize {
    // Only somebody who asks by hand is told how many they were; to count them exactly takes time.
    let by_hand = matches!(source, Source::Command | Source::Http);
    if by_hand {
        ctx.l1.settle();
    }
    let (entries, _) = ctx.l1.size();
    ctx.l1.flush();
    ctx.metrics.flushes.inc(if by_hand { Flush::Command } else { Flush::Channel });
    entries as usize
}

fn count(ctx: &Ctx, message: &Message, source: Source) {
    let names = message.args.len().max(1) as u64;
    ctx.metrics.invalidations.add(source, names);
    let tag = match message.op {
        Op::Key => Tag::Key,
        Op::Prefix => Tag::Prefix,
        Op::Pattern => Tag::Pattern,
        Op::Regex => Tag::Regex,
        Op::Flush => Tag::Flush,
        Op::Tag => return,
    };
    ctx.metrics.invalidated.add(tag, names);
}

/// A tag is counted under the text that it was filled in from, of which there are only so many.
fn count_tag(ctx: &Ctx, tag: &[u8]) {
    let counted = ctx.l1.tag_template(tag).is_some_and(|template| ctx.metrics.templates.add(&template, 1));
    if !counted {
        ctx.metrics.invalidated.inc(Tag::Unnamed);
    }
}

impl Applied {
    /// Waits until it is done, and goes on to its end also when nobody waits any more.
    pub(crate) async fn done(self, ctx: &Rc<Ctx>) -> usize {
        match self {
            Applied::Done(dropped) => dropped,
            Applied::Sweeping(sweep) => {
                let l1 = ctx.l1.clone();
                let task = tokio::task::spawn_local(async move { sweep.finish(&l1).await });
                // It is never cancelled, and a panic of it is one of ours.
                task.await.unwrap_or(0)
            }
        }
    }

    /// `hold` waits for it too.
    pub(crate) fn holds(self, ctx: &Rc<Ctx>, hold: &Rc<Hold>) {
        if let Applied::Sweeping(sweep) = self {
            hold.expect();
            let (ctx, hold) = (ctx.clone(), hold.clone());
            tokio::task::spawn_local(async move {
                sweep.finish(&ctx.l1).await;
                hold.passed(&ctx);
            });
        }
    }
}

/// A connection of a profile for questions of our own: its lane, or one from the pool where it has none.
pub(crate) enum Asker {
    Lane(Rc<Lane>),
    Own(Box<Dedicated>),
}

const LOST: &str = "NEARSIDE upstream connection lost: outcome unknown";

impl Asker {
    pub(crate) async fn new(ctx: &Rc<Ctx>, profile: &Profile) -> Result<Asker, String> {
        let lane = ctx.lane(profile);
        if ctx.held.waits(profile) {
            // What is asked here may be about keys of which something is queued.
            lane.drain_first();
        }
        ctx.await_lane(&lane).await;
        match lane.availability() {
            Availability::Ready => Ok(Asker::Lane(lane)),
            Availability::Gone(outage) | Availability::Replaying { outage, .. } => Err(outage.text(clock::now())),
            Availability::Starting | Availability::Refused(_) => {
                let conn = ctx.pool.checkout(profile, Proto::Resp2).await.map_err(|e| e.reply())?;
                Ok(Asker::Own(Box::new(conn)))
            }
        }
    }

    pub(crate) async fn ask(&mut self, words: &[&[u8]]) -> Result<Vec<u8>, String> {
        match self {
            Asker::Lane(lane) => lane.ask(clock::now(), words).await.map_err(|_| LOST.to_owned()),
            Asker::Own(conn) => conn.link.ask(words).await.map_err(|_| LOST.to_owned()),
        }
    }

    /// A write of `keys`, of which the other sidecars are told with it where this user's writes are announced.
    pub(crate) async fn write(&mut self, ctx: &Rc<Ctx>, words: &[&[u8]], keys: &[Vec<u8>]) -> Result<Vec<u8>, String> {
        match self {
            Asker::Lane(lane) if lane.publishes() => {
                lane.write_told(ctx, words, keys).await.map_err(|_| LOST.to_owned())
            }
            _ => self.ask(words).await,
        }
    }

    pub(crate) fn tells(&self) -> bool {
        matches!(self, Asker::Lane(lane) if lane.publishes())
    }

    /// Nothing is outstanding: the connection is clean.
    pub(crate) fn done(self, ctx: &Ctx) {
        if let Asker::Own(conn) = self {
            ctx.pool.give_back(*conn);
        }
    }
}

/// Why somebody's request to drop entries everywhere failed.
#[derive(Debug)]
pub(crate) enum NotDropped {
    /// It makes no sense; nothing was touched.
    Malformed(Malformed),
    /// Applied here, and so many entries were dropped; the other sidecars do not know.
    NotPublished(usize, String),
}

impl NotDropped {
    /// As an error reply. Upstream's own code stays in front: NOPERM is NOPERM.
    pub(crate) fn reply(&self) -> String {
        match self {
            NotDropped::Malformed(why) => format!("ERR {why}"),
            NotDropped::NotPublished(dropped, why) => {
                let (code, rest) = why.split_once(' ').unwrap_or(("NEARSIDE", why));
                format!("{code} applied here ({dropped} dropped), but not told to the other sidecars: {rest}")
            }
        }
    }
}

/// Drops what `message` names here, then tells the other sidecars, with the rights of `profile`: the client's own, or the
/// sidecar's where no client asks. Returns how many entries were dropped here.
pub(crate) async fn drop_everywhere(
    ctx: &Rc<Ctx>,
    profile: &Profile,
    message: &Message,
    source: Source,
) -> Result<usize, NotDropped> {
    let dropped = apply(ctx, message, source).map_err(NotDropped::Malformed)?.done(ctx).await;
    publish(ctx, profile, message).await.map_err(|why| NotDropped::NotPublished(dropped, why))?;
    Ok(dropped)
}

/// Several of them, one after another; the first that fails ends it. Where one makes no sense none is applied.
pub(crate) async fn drop_all(
    ctx: &Rc<Ctx>,
    profile: &Profile,
    messages: &[Message],
    source: Source,
) -> Result<usize, NotDropped> {
    for message in messages.iter().filter(|m| m.op == Op::Regex) {
        expressions(&message.args).map_err(NotDropped::Malformed)?;
    }
    let mut dropped = 0;
    for message in messages {
        dropped += drop_everywhere(ctx, profile, message, source).await?;
    }
    Ok(dropped)
}

/// Tells the other sidecars. Returns when our own subscription has brought the message back, so that nothing more happens
/// here afterwards.
pub(crate) async fn publish(ctx: &Rc<Ctx>, profile: &Profile, message: &Message) -> Result<(), String> {
    let payload = ctx.channel.payload(&ctx.name, message);
    let mut asker = Asker::new(ctx, profile).await?;
    let frame = asker.ask(&[b"PUBLISH", ctx.config.coherence.channel.as_bytes(), &payload]).await?;
    asker.done(ctx);
    if reply::is_error(&frame) {
        return Err(error_text(&frame));
    }
    come_back(ctx).await;
    Ok(())
}

/// Until our own subscription has brought back what was published, B at the most: it is published all the same.
pub(crate) async fn come_back(ctx: &Rc<Ctx>) {
    let hold = Rc::new(Hold::default());
    ctx.channel.fence(clock::now(), &hold);
    if hold.is_waiting() {
        let _ = timeout(Duration::from_nanos(ctx.max_staleness), hold.released()).await;
    }
}

/// R16: other sidecars learn of a SWAPDB, which Redis does not signal. Sent right behind it on the same lane, so upstream
/// executes it after the SWAPDB: what a sidecar reads after its flush is from after the swap.
pub(crate) fn publish_flush(ctx: &Rc<Ctx>, lane: &Rc<Lane>, now: u64) {
    let payload = ctx.channel.payload(&ctx.name, &Message { op: Op::Flush, args: Vec::new() });
    let asked = lane.ask(now, &[b"PUBLISH", ctx.config.coherence.channel.as_bytes(), &payload]);
    let user = lane.profile.user();
    tokio::task::spawn_local(async move {
        let why = match asked.await {
            Ok(frame) if reply::is_error(&frame) => error_text(&frame),
            Ok(_) => return,
            Err(_) => "the connection to upstream was lost".to_owned(),
        };
        tracing::warn!(%user, "a SWAPDB was not told to the other sidecars, their entries end with their TTL: {why}");
    });
}
