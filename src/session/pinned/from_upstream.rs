//! What upstream says on a pinned connection: replies, pushes, and frames too large to collect; each passed on in order, held
//! where it announces something (R21).

use std::rc::Rc;

use bytes::BytesMut;
use tokio::time::Instant;

use super::own_names::own_piece;
use super::{Pin, note_answer, settle};
use crate::coherence::{Applied, Hold, Message, Op, apply, publish};
use crate::config::Fence;
use crate::observe::clock;
use crate::observe::reasons::Source;
use crate::resp::build;
use crate::resp::reply::{self, Frame};
use crate::session::transaction::{Expect, Greeting, PubSub, Walk, What, confirms, pubsub};
use crate::session::{BACKPRESSURE, Client};
use crate::upstream::facts::PUSHES_UNMUTED;
use crate::upstream::handshake::{ServerInfo, error_text};
use crate::worker::Ctx;

/// No sweep takes that long; a bound all the same.
const SWEEP_MAX: std::time::Duration = std::time::Duration::from_secs(60);

impl Pin {
    pub(super) fn read_upstream(&mut self, ctx: &Rc<Ctx>, client: &Client) -> Result<(), String> {
        ctx.now.set(clock::now());
        let mut hold = false;
        let nothing = self.conn.link.rbuf.is_empty();
        while self.hold.is_none() && !self.conn.link.rbuf.is_empty() {
            self.note_size(ctx);
            if self.streaming {
                if !self.stream_on(ctx)? {
                    break;
                }
                continue;
            }
            if self.begins_walk() {
                if !self.begin_walk(ctx, client, &mut hold) {
                    break;
                }
                continue;
            }
            match self.scanner.scan(&self.conn.link.rbuf).map_err(|e| format!("garbage from upstream: {e}"))? {
                Frame::Complete { len } => {
                    let frame = self.conn.link.rbuf.split_to(len);
                    self.scanner.reset();
                    hold |= self.frame(ctx, client, &frame)?;
                }
                Frame::Incomplete => break,
                Frame::Large => {
                    hold |= self.large_frame(ctx, client);
                }
            }
        }
        self.note_size(ctx);
        // Not at the end of a hold: its PONGs have proved what was read before.
        if !nothing {
            client.session.set_fence();
        }
        if hold {
            self.start_hold(ctx, client);
        }
        if self.hold.is_none() {
            self.unstage(client);
        }
        Ok(())
    }

    /// R21: one PING per lane for everything read in this turn; delivered at the last PONG, after B at the latest. With
    /// `coherence.fence: session` the fence of the session itself has to do.
    pub(super) fn start_hold(&mut self, ctx: &Rc<Ctx>, client: &Client) {
        if ctx.config.coherence.fence == Fence::Session {
            self.send_tells(ctx, &client.session, None);
            return ctx.raise_floor();
        }
        if let Some((hold, _)) = self.hold.clone() {
            // It waits for a sweep already, for as long as that takes.
            self.send_tells(ctx, &client.session, Some(&hold));
            ctx.fence_all(&hold);
            return;
        }
        let hold = Rc::new(Hold::default());
        self.send_tells(ctx, &client.session, Some(&hold));
        if ctx.fence_all(&hold) {
            let limit = Instant::now() + std::time::Duration::from_nanos(ctx.max_staleness);
            self.hold = Some((hold, limit));
        }
    }

    /// What the command has told the sidecars, applied here before its reply is passed on. A sweep holds it back.
    pub(super) fn announce(&mut self, ctx: &Rc<Ctx>, client: &Client, expect: &Expect) {
        for message in &expect.messages {
            if let Ok(applied @ Applied::Sweeping(_)) = apply(ctx, message, Source::Publish) {
                let limit = Instant::now() + SWEEP_MAX;
                let (hold, _) = self.hold.get_or_insert_with(|| (Rc::default(), limit));
                applied.holds(ctx, hold);
            }
        }
        if expect.swap {
            let (ctx, profile) = (ctx.clone(), client.session.profile());
            tokio::task::spawn_local(async move {
                let flush = Message { op: Op::Flush, args: Vec::new() };
                if let Err(why) = publish(&ctx, &profile, &flush).await {
                    tracing::warn!(
                        "a SWAPDB was not told to the other sidecars, their entries end with their TTL: {why}"
                    );
                }
            });
        }
    }

    pub(super) fn unstage(&mut self, client: &Client) {
        if self.staged.is_empty() {
            return;
        }
        client.session.outbox.borrow_mut().ready.extend_from_slice(&self.staged);
        if self.staged.capacity() > BACKPRESSURE {
            self.staged = BytesMut::new();
        }
        self.staged.clear();
    }

    pub(super) fn deliver(&mut self, mute: bool, bytes: &[u8]) {
        if !mute {
            self.size += bytes.len();
            self.staged.extend_from_slice(bytes);
        }
    }

    /// Counts what was delivered, unless it is a part of something.
    fn note_size(&mut self, ctx: &Ctx) {
        if self.walk.is_none() && !self.streaming {
            ctx.metrics.reply_sizes.note(std::mem::take(&mut self.size));
        }
    }

    /// A whole frame; true: it must be held.
    pub(super) fn frame(&mut self, ctx: &Rc<Ctx>, client: &Client, frame: &[u8]) -> Result<bool, String> {
        let Some(frame) = self.own_frame(ctx, frame) else { return Ok(false) };
        let frame = &*frame;
        if self.walk.is_some() {
            return Ok(self.walk_frame(ctx, client, frame));
        }
        if self.monitor && is_monitor_line(frame) {
            self.deliver(false, frame);
            return Ok(false);
        }
        let listening =
            self.subs.any() || matches!(self.expect.front().map(|e| &e.what), Some(What::Subscription { .. }));
        if frame[0] == b'>' || listening {
            match pubsub(frame) {
                Some(PubSub::Confirmation { kind, count }) => {
                    self.confirmation(ctx, kind, count, frame);
                    return Ok(false);
                }
                Some(PubSub::Message) => {
                    self.deliver(false, frame);
                    return Ok(ctx.cache_serves());
                }
                Some(PubSub::Other) => {
                    self.deliver(false, frame);
                    return Ok(false);
                }
                None => {}
            }
        }
        let Some(expect) = self.expect.pop_front() else {
            return Err("a reply from upstream that nothing asked for".to_owned());
        };
        ctx.metrics.upstream_answers.inc();
        self.answered(ctx, client, expect, frame)
    }

    pub(super) fn confirmation(&mut self, ctx: &Ctx, kind: &[u8], count: i64, frame: &[u8]) {
        let mut mute = false;
        let mut done = false;
        let subs = self.subs;
        if let Some(Expect { what: What::Subscription { kind: of, left }, mute: m, .. }) = self.expect.front_mut()
            && confirms(*of, kind)
        {
            mute = *m && !ctx.server.borrow().has(&PUSHES_UNMUTED);
            let n = left.unwrap_or_else(|| subs.confirmations(*of, 0));
            *left = Some(n.saturating_sub(1));
            done = n <= 1;
        }
        self.subs.confirmed(kind, count);
        if done {
            self.expect.pop_front();
        }
        // As a push it passes CLIENT REPLY OFF and SKIP, where upstream lets it.
        self.deliver(mute, frame);
    }

    /// The reply to the oldest command has come.
    pub(super) fn answered(
        &mut self,
        ctx: &Rc<Ctx>,
        client: &Client,
        expect: Expect,
        frame: &[u8],
    ) -> Result<bool, String> {
        let failed = reply::is_error(frame);
        note_answer(ctx, &expect, failed);
        if failed || matches!(expect.what, What::Aborted(_)) {
            client.session.run.errors.inc();
        }
        self.announce(ctx, client, &expect);
        let nothing = matches!(expect.what, What::Blocking) && reply::is_null(frame);
        let hold = settle(ctx, &expect) && !nothing;
        let mut hold = hold | (!nothing && self.tell(&expect));
        let session = &client.session;
        let aborted = matches!(expect.what, What::Aborted(_));
        match expect.what {
            What::Multi if failed => self.queue = None,
            What::Queued(queued) if frame.starts_with(b"+QUEUED") => {
                if let Some(queue) = self.queue.as_mut() {
                    queue.push(queued);
                }
            }
            // Its MULTI was refused, so it was executed at once.
            What::Queued(queued) if !failed => {
                for key in &queued.keys {
                    ctx.l1.invalidate(key);
                }
                if let Some(tell) = super::tells(ctx, session, &queued.keys, false) {
                    self.tells.push(tell);
                    hold = true;
                }
                let messages = queued.message.into_iter().collect();
                self.announce(ctx, client, &Expect { messages, ..Expect::of(What::Command, true) });
            }
            What::Exec(_) => {
                // An EXEC without MULTI is an error and ends nothing; any other ends the transaction and the WATCH.
                self.watching &= frame.starts_with(b"-ERR EXEC without MULTI");
            }
            What::Discard => self.watching &= failed,
            What::Unwatch => self.watching &= failed,
            What::Watch if !failed => self.watching = true,
            What::Monitor if !failed => self.monitor = true,
            What::Tracking(on) if !failed => self.tracking = on,
            What::Hello(greeting) if !failed => {
                let own = self.said_hello(ctx, client, greeting, frame);
                self.deliver(expect.mute, &own);
                return Ok(hold);
            }
            What::Auth(credential) if !failed => {
                session.authenticated(ctx, credential);
                self.sticky = false;
            }
            What::Select(db) if !failed => {
                session.state.borrow_mut().db = db;
                session.forget_lane();
                // The other database may have a lane.
                self.sticky = false;
            }
            What::Aborted(why) | What::Refused(why) => {
                // DISCARD ends the WATCH as well.
                self.watching &= failed || !aborted;
                let mut own = BytesMut::new();
                build::error(&mut own, &why);
                self.deliver(expect.mute, &own);
                return Ok(hold);
            }
            What::Told if failed => session.lane(ctx).publish_refused(ctx, &error_text(frame)),
            What::Redirect if !failed => {
                self.deliver(expect.mute, &crate::session::inspect::own_redirect(ctx, frame, self.redirect));
                return Ok(hold);
            }
            What::Subscription { .. } if !failed => {
                return Err("an answer to a subscription that is none".to_owned());
            }
            _ => {}
        }
        self.deliver(expect.mute, frame);
        Ok(hold)
    }

    pub(super) fn said_hello(&mut self, ctx: &Ctx, client: &Client, greeting: Greeting, frame: &[u8]) -> BytesMut {
        let Greeting { proto, credential, name } = greeting;
        self.conn.proto = proto;
        if let Some(credential) = credential {
            client.session.authenticated(ctx, credential);
            self.sticky = false;
        }
        let mut state = client.session.state.borrow_mut();
        state.proto = proto;
        if let Some(name) = name {
            state.name = name;
        }
        drop(state);
        client.session.changed_identity();
        let mut own = BytesMut::new();
        match ServerInfo::parse(frame) {
            Some(info) => crate::session::local::hello_reply(&mut own, &info, proto, client.session.id),
            None => own.extend_from_slice(frame),
        }
        own
    }

    /// A frame too large to collect: its effects come first (the command has executed), then it passes through.
    pub(super) fn large_frame(&mut self, ctx: &Rc<Ctx>, client: &Client) -> bool {
        self.streaming = true;
        self.streaming_mute = false;
        self.stripper = self.own_stream(ctx);
        let message = self.conn.link.rbuf.first() == Some(&b'>');
        if message {
            return ctx.cache_serves();
        }
        if let Some(walk) = &self.walk {
            self.streaming_mute = walk.mute;
            self.walk.take_if(Walk::step);
            return false;
        }
        let Some(expect) = self.expect.pop_front() else { return false };
        self.streaming_mute = expect.mute;
        note_answer(ctx, &expect, false);
        match expect.what {
            What::Exec(_) => self.watching = false,
            What::Queued(_) | What::Multi | What::Watch => self.soiled = true,
            _ => {}
        }
        client.session.set_fence();
        let expect = Expect { what: What::Command, ..expect };
        self.announce(ctx, client, &expect);
        let hold = self.tell(&expect) | settle(ctx, &expect);
        if hold {
            self.start_hold(ctx, client);
        }
        false
    }

    /// True: there may be more to read.
    pub(super) fn stream_on(&mut self, ctx: &Ctx) -> Result<bool, String> {
        let step = self.scanner.advance(&self.conn.link.rbuf).map_err(|e| format!("garbage from upstream: {e}"))?;
        let bytes = self.conn.link.rbuf.split_to(step.take);
        let bytes = own_piece(ctx, self.stripper.as_mut(), bytes);
        self.deliver(self.streaming_mute, &bytes);
        if step.done {
            self.scanner.reset();
            self.streaming = false;
        }
        Ok(step.done)
    }
}

fn is_monitor_line(frame: &[u8]) -> bool {
    frame.len() > 2 && frame[0] == b'+' && frame[1].is_ascii_digit() && memchr::memchr(b'[', frame).is_some()
}
