//! `pubsub` mode's side of a write: the other sidecars are told of its keys on the channel, in one transaction with it
//! (`MULTI, write, PUBLISH, EXEC`), and the client sees the write's own reply and nothing else.
//!
//! **Why atomic.** A message is appended to every subscriber's output when the EXEC executes. Whoever publishes before the
//! write lets readers put the old value back behind the message; whoever publishes after it loses the message where the
//! sidecar dies in between (`coherence.pubsub_atomic: false` takes that risk for two commands less).
//!
//! **Unwrapping.** What keeps a command from being queued is its own reply, as without us. If only the PUBLISH was refused,
//! EXEC has executed nothing, and the write goes up again by itself, with nothing of its session behind it: what already is
//! behind it was answered from before it, and then the client is told that nothing was executed. The user is on `ttl`
//! from there on.
//!
//! A connection that ends between MULTI and EXEC has executed nothing either: upstream throws the queue away. So a write
//! whose EXEC was never handed to the kernel is sent for the first time on the next connection.

use std::cell::RefCell;
use std::rc::Rc;

use bytes::BytesMut;
use tokio::sync::oneshot::error::RecvError;

use super::hold::Hold;
use super::lane::Lane;
use super::mode::Why;
use super::payload::{Message, Op};
use super::wait::{Relay, Waiting};
use crate::observe::clock;
use crate::observe::reasons::Coherence;
use crate::resp::{build, reply};
use crate::upstream::handshake::error_text;
use crate::worker::Ctx;

const REFUSED: &str = "upstream refused PUBLISH on the channel";

pub(super) const MULTI: &[u8] = b"*1\r\n$5\r\nMULTI\r\n";
pub(super) const EXEC: &[u8] = b"*1\r\n$4\r\nEXEC\r\n";

/// What EXEC says of a transaction whose commands were all queued and that it will not execute; behind it stands why.
const DISCARDED: &[u8] = b"-EXECABORT Transaction discarded because of: ";

const NOT_EXECUTED: &[u8] =
    b"-NEARSIDE not executed: upstream refused the invalidation that belongs to it; send it again\r\n";

/// The PUBLISH that tells the other sidecars to drop `keys`, or everything.
pub(crate) fn told(ctx: &Ctx, op: Op, keys: &[Box<[u8]>]) -> Box<[u8]> {
    let message = Message { op, args: keys.iter().map(|key| key.to_vec()).collect() };
    let payload = ctx.channel.payload(&ctx.name, &message);
    let mut raw = BytesMut::new();
    build::command(&mut raw, &[b"PUBLISH", ctx.config.coherence.channel.as_bytes(), &payload]);
    raw[..].into()
}

/// A write and its message on their way, as far as they are answered.
pub(crate) struct Wrapped {
    /// The write as the client sent it.
    pub(super) raw: Box<[u8]>,
    answers: RefCell<Answers>,
}

#[derive(Default)]
struct Answers {
    /// MULTI was refused: what stands behind it was executed at once, and its answer is in `write`.
    multi_refused: bool,
    /// Anything but +QUEUED.
    write: Option<Vec<u8>>,
    publish: Option<Vec<u8>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Multi,
    Write,
    Publish,
}

/// What has become of a write.
enum Outcome {
    Reply(Vec<u8>),
    /// Nothing was executed, because its message was refused.
    Unsent,
}

impl Wrapped {
    pub(super) fn answered(&self, part: Part, frame: &[u8]) {
        let mut answers = self.answers.borrow_mut();
        match part {
            Part::Multi => answers.multi_refused = reply::is_error(frame),
            Part::Write if frame != b"+QUEUED\r\n" => answers.write = Some(frame.to_vec()),
            Part::Publish if frame != b"+QUEUED\r\n" => answers.publish = Some(frame.to_vec()),
            Part::Write | Part::Publish => {}
        }
    }

    fn outcome(&self, exec: &[u8]) -> Outcome {
        let mut answers = self.answers.borrow_mut();
        if let Some(write) = answers.write.take() {
            return Outcome::Reply(write);
        }
        match &answers.publish {
            Some(error) if is_refusal(error) => return Outcome::Unsent,
            // Upstream is busy or loading: it has executed nothing, and says so in its own words.
            Some(error) => return Outcome::Reply(error.clone()),
            None => {}
        }
        if exec.first() == Some(&b'*')
            && let Some(first) = reply::elements(exec).next()
        {
            return Outcome::Reply(first.to_vec());
        }
        let why = exec.strip_prefix(DISCARDED).map(|why| [b"-", why].concat());
        Outcome::Reply(why.unwrap_or_else(|| exec.to_vec()))
    }

    /// Upstream's word against the message, if there is one.
    fn refusal(&self) -> Option<String> {
        let answers = self.answers.borrow();
        let publish = answers.publish.as_deref().filter(|frame| reply::is_error(frame) && is_refusal(frame));
        publish.map(error_text)
    }
}

/// Errors that the next attempt would meet as well.
fn is_refusal(error: &[u8]) -> bool {
    [&b"-NOPERM"[..], b"-ERR unknown command", b"-ERR Unknown command"].iter().any(|start| error.starts_with(start))
}

impl Lane {
    /// Whether this lane's writes are announced on the channel.
    pub(crate) fn publishes(&self) -> bool {
        self.arming.publishes.get()
    }

    /// A client's write with its message.
    pub(super) fn send_told(&self, ctx: &Ctx, now: u64, raw: &[u8], mut relay: Relay, tell: &[u8]) {
        if !ctx.config.coherence.pubsub_atomic || self.arming.no_multi.get() {
            self.send_own(now, raw, Waiting::Relay(relay));
            return self.send_own(now, tell, Waiting::Published(None));
        }
        let wrapped = Rc::new(Wrapped { raw: raw.into(), answers: RefCell::default() });
        relay.wrapped = Some(wrapped.clone());
        self.send_own(now, MULTI, Waiting::Part(wrapped.clone(), Part::Multi));
        self.send_own(now, raw, Waiting::Part(wrapped.clone(), Part::Write));
        self.send_own(now, tell, Waiting::Part(wrapped, Part::Publish));
        self.send_own(now, EXEC, Waiting::Relay(relay));
    }

    /// EXEC's reply has come. None: the write was sent again, and waits for its own reply.
    pub(super) fn unwrapped(
        self: &Rc<Self>,
        ctx: &Rc<Ctx>,
        wrapped: &Wrapped,
        relay: Relay,
        exec: &[u8],
    ) -> Option<(Relay, Vec<u8>)> {
        match self.settled(ctx, wrapped, exec) {
            Outcome::Reply(frame) => Some((relay, frame)),
            Outcome::Unsent if relay.session.as_ref().is_some_and(|s| self.has_in_flight(s)) => {
                Some((relay, NOT_EXECUTED.to_vec()))
            }
            Outcome::Unsent => {
                self.send_own(clock::now(), &wrapped.raw, Waiting::Relay(relay));
                None
            }
        }
    }

    /// A write of our own, for which no client's slot waits, with its message. Everything is sent in one step, so nothing of
    /// anybody else's gets in between. A connection that is lost on the way has executed all of it or nothing; nothing of it is
    /// sent again.
    pub(crate) async fn write_told(
        self: &Rc<Self>,
        ctx: &Rc<Ctx>,
        words: &[&[u8]],
        keys: &[Vec<u8>],
    ) -> Result<Vec<u8>, RecvError> {
        let now = clock::now();
        let named: Vec<Box<[u8]>> = keys.iter().map(|key| key[..].into()).collect();
        let tell = told(ctx, Op::Key, &named);
        if !ctx.config.coherence.pubsub_atomic || self.arming.no_multi.get() {
            let write = self.ask(now, words);
            self.tell(now, &tell, None);
            return write.await;
        }
        let wrapped = Wrapped { raw: Box::default(), answers: RefCell::default() };
        let parts = [
            (Part::Multi, self.ask(now, &[b"MULTI"])),
            (Part::Write, self.ask(now, words)),
            (Part::Publish, self.ask_raw(now, &tell)),
        ];
        let exec = self.ask(now, &[b"EXEC"]);
        for (part, answer) in parts {
            wrapped.answered(part, &answer.await?);
        }
        match self.settled(ctx, &wrapped, &exec.await?) {
            Outcome::Reply(frame) => Ok(frame),
            Outcome::Unsent => self.ask(clock::now(), words).await,
        }
    }

    /// What has become of the write, and what its answers say of the user's rights.
    fn settled(self: &Rc<Self>, ctx: &Rc<Ctx>, wrapped: &Wrapped, exec: &[u8]) -> Outcome {
        if wrapped.answers.borrow().multi_refused {
            self.arming.no_multi.set(true);
        }
        if let Some(refusal) = wrapped.refusal() {
            self.publish_refused(ctx, &refusal);
        }
        wrapped.outcome(exec)
    }

    /// Tells the other sidecars of what was written elsewhere (a connection of a client's own), or by many; `hold` waits for
    /// upstream's answer.
    pub(crate) fn tell(&self, now: u64, publish: &[u8], hold: Option<&Rc<Hold>>) {
        if !self.is_ready() {
            return self.arming.owes.set(true);
        }
        if let Some(hold) = hold {
            hold.expect();
        }
        self.send_own(now, publish, Waiting::Published(hold.cloned()));
    }

    pub(super) fn on_published(self: &Rc<Self>, ctx: &Rc<Ctx>, hold: Option<&Rc<Hold>>, frame: &[u8]) {
        if reply::is_error(frame) {
            if is_refusal(frame) {
                self.publish_refused(ctx, &error_text(frame));
            } else {
                // Busy or loading: it is made up for with the next one.
                self.arming.owes.set(true);
            }
        }
        if let Some(hold) = hold {
            hold.passed(ctx);
        }
    }

    /// A message that was to go out is lost with the connection.
    pub(super) fn lost_message(&self, ctx: &Ctx, hold: Option<&Rc<Hold>>) {
        self.arming.owes.set(true);
        if let Some(hold) = hold {
            hold.passed(ctx);
        }
    }

    /// Nobody is told of this user's writes from here on, so nothing but expiry bounds what it reads.
    pub(crate) fn publish_refused(self: &Rc<Self>, ctx: &Rc<Ctx>, reply: &str) {
        self.forget_canary();
        if self.arming.publishes.replace(false) {
            let before = self.arming.no_better.borrow().clone();
            self.enter(ctx, Coherence::Ttl, Why::with(REFUSED, reply).after(before));
        }
    }

    /// Sidecars that missed messages of ours drop everything: those lost with a connection, and the writes that were taken
    /// while it was not known that they must be announced. Sent behind the latter, on the same connection.
    pub(super) fn settle_debts(&self, ctx: &Ctx) {
        let untold = |w: &super::wait::Waiter| match &w.kind {
            Waiting::Relay(relay) => relay.write && relay.tell.is_none() && !relay.ends.as_slice().is_empty(),
            _ => false,
        };
        let owes = self.arming.owes.replace(false) || self.inner.borrow().fifo.iter().any(untold);
        if owes && self.publishes() {
            self.send_own(clock::now(), &told(ctx, Op::Flush, &[]), Waiting::Published(None));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(answers: [&str; 3], exec: &str) -> String {
        let wrapped = Wrapped { raw: b"w"[..].into(), answers: RefCell::default() };
        for (part, frame) in [Part::Multi, Part::Write, Part::Publish].into_iter().zip(answers) {
            wrapped.answered(part, frame.as_bytes());
        }
        match wrapped.outcome(exec.as_bytes()) {
            Outcome::Reply(frame) => String::from_utf8(frame).expect("text"),
            Outcome::Unsent => "again".to_owned(),
        }
    }

    const OK: &str = "+OK\r\n";
    const Q: &str = "+QUEUED\r\n";
    const ABORT: &str = "-EXECABORT Transaction discarded because of previous errors.\r\n";

    #[test]
    fn the_reply_is_the_writes_own() {
        assert_eq!(outcome([OK, Q, Q], "*2\r\n+OK\r\n:1\r\n"), "+OK\r\n");
        assert_eq!(outcome([OK, Q, Q], "*2\r\n*2\r\n$1\r\na\r\n_\r\n:0\r\n"), "*2\r\n$1\r\na\r\n_\r\n");
        assert_eq!(outcome([OK, Q, Q], "*2\r\n-WRONGTYPE no\r\n:0\r\n"), "-WRONGTYPE no\r\n");
        assert_eq!(outcome([OK, "-OOM full\r\n", Q], ABORT), "-OOM full\r\n");
        assert_eq!(outcome([OK, "-NOPERM w\r\n", "-NOPERM p\r\n"], ABORT), "-NOPERM w\r\n");
        assert_eq!(outcome(["-NOPERM m\r\n", ":5\r\n", ":0\r\n"], "-ERR EXEC without MULTI\r\n"), ":5\r\n");
        let later = "-EXECABORT Transaction discarded because of: MISCONF no disk\r\n";
        assert_eq!(outcome([OK, Q, Q], later), "-MISCONF no disk\r\n");
    }

    #[test]
    fn a_refused_message_takes_nothing_with_it() {
        assert_eq!(outcome([OK, Q, "-NOPERM p\r\n"], ABORT), "again");
        assert_eq!(outcome([OK, Q, "-ERR unknown command 'PUBLISH'\r\n"], ABORT), "again");
        assert_eq!(outcome([OK, Q, "-BUSY a script\r\n"], ABORT), "-BUSY a script\r\n");
        assert_eq!(outcome(["-NOPERM m\r\n", ":5\r\n", "-NOPERM p\r\n"], "-ERR EXEC without MULTI\r\n"), ":5\r\n");
    }
}
