//! `NEARSIDE INVALIDATE`, `FLUSH` and `DELETE`: what they drop here, what the other sidecars are told, what is deleted
//! upstream. They wait for upstream, so the session waits for them; other clients do not.

use std::rc::Rc;

use super::Session;
use crate::cache::StripeId;
use crate::coherence::{self, Asker, Message, Op};
use crate::command::Request;
use crate::observe::clock;
use crate::observe::reasons::{Coherence, Source};
use crate::resp::{build, reply};
use crate::upstream::Profile;
use crate::upstream::handshake::error_text;
use crate::worker::Ctx;

/// Keys that SCAN looks at in one go, and the most that one UNLINK names: upstream is busy with either for some 0.2 ms.
const SCAN_COUNT: &[u8] = b"500";
const UNLINK_MAX: usize = 500;

/// Between two lines of progress in the log.
const PROGRESS_EVERY: u64 = 5_000_000_000;

const USAGE: &str = "ERR use NEARSIDE INVALIDATE KEY|PREFIX|PATTERN|REGEX|TAG <x> [<x> ...]";
const USAGE_DELETE: &str = "ERR use NEARSIDE DELETE PATTERN <glob> [<glob> ...]";

/// How a DELETE went so far.
#[derive(Default)]
pub(super) struct Deletion {
    scanned: u64,
    deleted: u64,
    batches: u64,
    logged: u64,
}

impl Deletion {
    pub(super) fn new() -> Deletion {
        Deletion { logged: clock::now(), ..Deletion::default() }
    }

    pub(super) fn failed(&self, why: &str) -> String {
        format!("{why} (after {} deleted of {} scanned)", self.deleted, self.scanned)
    }
}

/// Writes of ours that are under way; ended exactly once, also where the wait for the reply is given up.
struct Writing<'c> {
    ctx: &'c Ctx,
    stripes: Vec<StripeId>,
}

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        self.stripes.drain(..).for_each(|stripe| self.ctx.l1.end_write(stripe));
    }
}

/// Whether a NEARSIDE command waits for upstream.
pub(super) fn is_slow(req: &Request<'_>) -> bool {
    req.argc() > 1 && ["invalidate", "flush", "delete"].iter().any(|sub| req.is(1, sub))
}

impl Session {
    pub(super) async fn nearside_slow(self: &Rc<Self>, ctx: &Rc<Ctx>, req: &Request<'_>, mute: bool) {
        if let Err(refusal) = self.may_change(ctx) {
            return self.answer_error(mute, refusal.text());
        }
        if req.is(1, "delete") {
            return self.delete(ctx, req, mute).await;
        }
        match message(req) {
            Ok(message) => {
                let message = ctx.prefix.as_ref().map_or_else(|| message.clone(), |own| message.upstreams(own));
                self.invalidate(ctx, &message, mute).await;
            }
            Err(text) => self.answer_error(mute, text),
        }
    }

    async fn invalidate(self: &Rc<Self>, ctx: &Rc<Ctx>, message: &Message, mute: bool) {
        match coherence::drop_everywhere(ctx, &self.profile(), message, Source::Command).await {
            Ok(dropped) => self.answer(mute, |out| build::integer(out, dropped as i64)),
            Err(e) => self.answer_error(mute, &e.reply()),
        }
    }

    /// Deletes upstream, with the client's own rights and in its database, what the globs name.
    async fn delete(self: &Rc<Self>, ctx: &Rc<Ctx>, req: &Request<'_>, mute: bool) {
        if req.argc() < 4 || !req.is(2, "pattern") {
            return self.answer_error(mute, USAGE_DELETE);
        }
        let glob = |i: usize| ctx.prefix.as_ref().map_or_else(|| req.arg(i).to_vec(), |own| own.glob(req.arg(i)));
        let globs = (3..req.argc()).map(glob).collect();
        let (result, so_far) = self.delete_in_task(ctx, self.profile(), globs, Deletion::new()).await;
        tracing::info!(client = %self.addr, scanned = so_far.scanned, deleted = so_far.deleted, "NEARSIDE DELETE is over");
        if let Err(why) = result {
            return self.answer_error(mute, &so_far.failed(&why));
        }
        let proto = self.proto();
        self.answer(mute, |out| {
            let fields = [("scanned", so_far.scanned), ("deleted", so_far.deleted), ("batches", so_far.batches)];
            build::map_or_array(out, proto, fields.len());
            for (name, n) in fields {
                build::bulk(out, name.as_bytes());
                build::integer(out, n as i64);
            }
        });
    }

    /// In a task of its own: what has begun is ended, whatever becomes of the client.
    pub(super) async fn delete_in_task(
        self: &Rc<Self>,
        ctx: &Rc<Ctx>,
        profile: Profile,
        globs: Vec<Vec<u8>>,
        mut so_far: Deletion,
    ) -> (Result<(), String>, Deletion) {
        let (session, ctx) = (self.clone(), ctx.clone());
        let task = tokio::task::spawn_local(async move {
            let result = session.delete_all(&ctx, &profile, &globs, &mut so_far).await;
            // Its replies came past the outbox: what follows may not be older (R21).
            session.set_fence();
            (result, so_far)
        });
        // It is never cancelled, and a panic of it is one of ours.
        task.await.unwrap_or_else(|e| (Err(format!("ERR {e}")), Deletion::new()))
    }

    async fn delete_all(
        &self,
        ctx: &Rc<Ctx>,
        profile: &Profile,
        globs: &[Vec<u8>],
        so_far: &mut Deletion,
    ) -> Result<(), String> {
        let mut asker = Asker::new(ctx, profile).await?;
        for glob in globs {
            let mut cursor = b"0".to_vec();
            loop {
                if self.left.get() || self.closing.get() {
                    return Err("ERR stopped: the client has left".to_owned());
                }
                let frame = asker.ask(&[b"SCAN", &cursor, b"MATCH", glob, b"COUNT", SCAN_COUNT]).await?;
                let (next, found) = reply::scanned(&frame).ok_or_else(|| error_text(&frame))?;
                so_far.scanned += found.len() as u64;
                for keys in found.chunks(UNLINK_MAX) {
                    so_far.deleted += unlink(ctx, &mut asker, keys).await?;
                    so_far.batches += 1;
                }
                self.log_progress(so_far);
                if next == b"0" {
                    break;
                }
                cursor = next;
            }
        }
        let told = asker.tells();
        asker.done(ctx);
        if told {
            // Each batch was told of with its UNLINK.
            coherence::come_back(ctx).await;
        } else if ctx.status.coherence() != Coherence::Tracking {
            let message = Message { op: Op::Pattern, args: globs.to_vec() };
            coherence::publish(ctx, profile, &message).await?;
        }
        Ok(())
    }

    fn log_progress(&self, so_far: &mut Deletion) {
        let now = clock::now();
        if now.saturating_sub(so_far.logged) > PROGRESS_EVERY {
            so_far.logged = now;
            tracing::info!(client = %self.addr, scanned = so_far.scanned, deleted = so_far.deleted, "NEARSIDE DELETE goes on");
        }
    }
}

/// A write of ours like any other (R14): begun before it is sent, ended when it is answered or lost.
async fn unlink(ctx: &Rc<Ctx>, asker: &mut Asker, keys: &[Vec<u8>]) -> Result<u64, String> {
    let writing = Writing { ctx, stripes: keys.iter().map(|key| ctx.l1.begin_write(key)).collect() };
    ctx.metrics.invalidations.add(Source::OwnWrite, keys.len() as u64);
    let words: Vec<&[u8]> = std::iter::once(&b"UNLINK"[..]).chain(keys.iter().map(Vec::as_slice)).collect();
    let frame = asker.write(ctx, &words, keys).await;
    drop(writing);
    let frame = frame?;
    let deleted = reply::integer(&frame).ok_or_else(|| error_text(&frame))?;
    Ok(u64::try_from(deleted).unwrap_or(0))
}

/// What INVALIDATE or FLUSH asks for.
fn message(req: &Request<'_>) -> Result<Message, &'static str> {
    if req.is(1, "flush") {
        let message = Message { op: Op::Flush, args: Vec::new() };
        return if req.argc() == 2 { Ok(message) } else { Err("ERR NEARSIDE FLUSH takes no argument") };
    }
    if req.argc() < 4 {
        return Err(USAGE);
    }
    let op = Op::named(&req.arg(2).to_ascii_lowercase()).filter(|op| *op != Op::Flush).ok_or(USAGE)?;
    Ok(Message { op, args: (3..req.argc()).map(|i| req.arg(i).to_vec()).collect() })
}
