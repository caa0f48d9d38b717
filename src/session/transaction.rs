//! What a pinned connection must remember of the commands it carries: which reply comes next and what it ends, the queue of
//! an open MULTI, the counts of subscriptions. Pure bookkeeping; `pinned` moves the bytes.

use std::borrow::Cow;

use crate::coherence::{Ends, Message};
use crate::command::strip::Strip;
use crate::command::{Effect, Kind, Request, Spec, keys, prefix};
use crate::observe::clock;
use crate::resp::{Proto, reply};
use crate::upstream::Credential;

/// The reply that comes next.
pub(super) struct Expect {
    pub(super) what: What,
    /// When it was asked for, by the clock.
    pub(super) at: u64,
    /// The writes it ends (R20).
    pub(super) ends: Ends,
    /// Keys to drop when it comes: a blocking pop's, whose `begin_write` would last as long as it blocks.
    pub(super) drops: Vec<Box<[u8]>>,
    /// The reply waits for the lanes (R21).
    pub(super) hold: bool,
    pub(super) flush: bool,
    /// The databases were swapped: other sidecars are told when it comes.
    pub(super) swap: bool,
    /// What it has published on the sidecars' channel; applied here when it comes, before it is passed on.
    pub(super) messages: Vec<Message>,
    /// CLIENT REPLY OFF or SKIP.
    pub(super) mute: bool,
    /// What it changes is lost with the connection: "outcome unknown".
    pub(super) write: bool,
    /// The same, sent while the cache did not serve (`Ctx::end_unseen`).
    pub(super) unseen: bool,
    /// The PUBLISH that tells the other sidecars of it, once it is answered (`pubsub` mode).
    pub(super) tell: Option<Box<[u8]>>,
    /// Where the reply names keys (`upstream.key_prefix`).
    pub(super) strip: Strip,
}

impl Expect {
    pub(super) fn of(what: What, mute: bool) -> Expect {
        Expect {
            what,
            at: clock::now(),
            ends: Ends::None,
            drops: Vec::new(),
            hold: false,
            flush: false,
            swap: false,
            messages: Vec::new(),
            mute,
            write: false,
            unseen: false,
            tell: None,
            strip: Strip::None,
        }
    }
}

pub(super) enum What {
    Command,
    /// May stay away for as long as it likes.
    Blocking,
    /// A command inside MULTI.
    Queued(Queued),
    Multi,
    Exec(Vec<Queued>),
    Discard,
    Watch,
    Unwatch,
    /// So many confirmations of the SUBSCRIBE family; none known: as many as there are subscriptions of its kind.
    Subscription {
        kind: Kind,
        left: Option<usize>,
    },
    Monitor,
    Hello(Greeting),
    Auth(Credential),
    Select(u32),
    /// Not proxied, so not forwarded: a stand-in went in its place that upstream refuses, which aborts an open MULTI.
    Refused(Cow<'static, str>),
    /// EXEC, which may not run: a DISCARD went in its place.
    Aborted(Cow<'static, str>),
    /// CLIENT TRACKING ON or OFF.
    Tracking(bool),
    /// CLIENT GETREDIR or TRACKINGINFO, whose id is one of ours.
    Redirect,
    /// A PUBLISH of ours in front of the client's EXEC.
    Told,
}

/// A command that MULTI has queued.
pub(super) struct Queued {
    pub(super) spec: Option<&'static Spec>,
    pub(super) effect: Effect,
    pub(super) keys: Vec<Box<[u8]>>,
    /// A PUBLISH on the sidecars' channel.
    pub(super) message: Option<Message>,
    pub(super) role: Role,
    /// Where its reply names keys.
    pub(super) strip: Strip,
}

/// What an element of EXEC's reply means to the session.
pub(super) enum Role {
    Plain,
    /// Answered here; upstream has queued a PING in its place.
    Local {
        raw: Vec<u8>,
        args: Vec<crate::resp::request::Arg>,
    },
    Subscription {
        kind: Kind,
        words: usize,
    },
    Hello(Greeting),
    Auth(Credential),
    Select(u32),
    /// CLIENT TRACKING ON or OFF.
    Tracking(bool),
    /// The PUBLISH that we have put in front of EXEC; not the client's.
    Told,
}

/// What a HELLO changes when it succeeds.
#[derive(Clone)]
pub(super) struct Greeting {
    pub(super) proto: Proto,
    pub(super) credential: Option<Credential>,
    pub(super) name: Option<Vec<u8>>,
}

impl Queued {
    pub(super) fn of(spec: Option<&'static Spec>, req: &Request<'_>, role: Role) -> Queued {
        let effect = spec.map_or(Effect::Opaque, |s| s.effect);
        let mut named = Vec::new();
        if let Some(spec) = spec.filter(|s| s.effect != Effect::Read) {
            keys::for_each(spec, req, |key| named.push(key.into()));
        }
        Queued { spec, effect, keys: named, message: None, role, strip: spec.map_or(Strip::None, prefix::strip) }
    }

    /// Our own PUBLISH, always the last.
    pub(super) fn told() -> Queued {
        let (spec, keys, strip) = (None, Vec::new(), Strip::None);
        Queued { spec, effect: Effect::Read, keys, message: None, role: Role::Told, strip }
    }

    /// EXEC's array has to be read element by element.
    pub(super) fn needs_walk(&self) -> bool {
        !matches!(self.role, Role::Plain)
    }
}

/// Where the reader stands in an EXEC reply that is read element by element.
pub(super) struct Walk {
    pub(super) queue: std::collections::VecDeque<Queued>,
    /// Confirmations still to come for the subscription at the front.
    pub(super) confirmations: Option<usize>,
    /// CLIENT REPLY OFF or SKIP holds for all of it; pushes pass.
    pub(super) mute: bool,
}

impl Walk {
    /// The element at the front has passed. True: it was the last.
    pub(super) fn step(&mut self) -> bool {
        self.queue.pop_front();
        self.queue.is_empty()
    }
}

/// Subscriptions of a connection, as upstream's own confirmations count them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Subscriptions {
    pub(super) channels: i64,
    pub(super) patterns: i64,
    pub(super) shards: i64,
}

impl Subscriptions {
    pub(super) fn any(&self) -> bool {
        self.channels + self.patterns + self.shards > 0
    }

    /// Confirmations that an (UN)SUBSCRIBE with `words` channel names brings: one for each, or for each subscription there
    /// is, at least one.
    pub(super) fn confirmations(&self, kind: Kind, words: usize) -> usize {
        let all = match kind {
            Kind::Unsubscribe => self.channels,
            Kind::Punsubscribe => self.patterns,
            Kind::Sunsubscribe => self.shards,
            _ => 1,
        };
        if words > 0 { words } else { usize::try_from(all).unwrap_or(0).max(1) }
    }

    /// Takes over the count of one confirmation. Channels and patterns share one count in Redis.
    pub(super) fn confirmed(&mut self, kind: &[u8], count: i64) {
        match kind {
            b"subscribe" | b"unsubscribe" => self.channels = (count - self.patterns).max(0),
            b"psubscribe" | b"punsubscribe" => self.patterns = (count - self.channels).max(0),
            b"ssubscribe" | b"sunsubscribe" => self.shards = count,
            _ => {}
        }
    }
}

/// What a frame of the pub/sub family is.
pub(super) enum PubSub<'a> {
    Confirmation {
        kind: &'a [u8],
        count: i64,
    },
    Message,
    /// An invalidation or another push for a client that tracks by itself.
    Other,
}

/// Reads a push (RESP3), or an array that may be one (RESP2); none: an ordinary reply.
pub(super) fn pubsub(frame: &[u8]) -> Option<PubSub<'_>> {
    let push = frame.first() == Some(&b'>');
    if !push && frame.first() != Some(&b'*') {
        return None;
    }
    let mut elements = reply::elements(frame);
    let kind = reply::bulk(elements.next()?)?;
    match kind {
        b"subscribe" | b"unsubscribe" | b"psubscribe" | b"punsubscribe" | b"ssubscribe" | b"sunsubscribe" => {
            let count = elements.nth(1).and_then(reply::integer)?;
            Some(PubSub::Confirmation { kind, count })
        }
        b"message" | b"pmessage" | b"smessage" => Some(PubSub::Message),
        _ if push => Some(PubSub::Other),
        _ => None,
    }
}

/// Whether a confirmation belongs to a command of this kind.
pub(super) fn confirms(kind: Kind, word: &[u8]) -> bool {
    matches!(
        (kind, word),
        (Kind::Subscribe, b"subscribe")
            | (Kind::Unsubscribe, b"unsubscribe")
            | (Kind::Psubscribe, b"psubscribe")
            | (Kind::Punsubscribe, b"punsubscribe")
            | (Kind::Ssubscribe, b"ssubscribe")
            | (Kind::Sunsubscribe, b"sunsubscribe")
    )
}

pub(super) fn is_subscription(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::Subscribe
            | Kind::Unsubscribe
            | Kind::Psubscribe
            | Kind::Punsubscribe
            | Kind::Ssubscribe
            | Kind::Sunsubscribe
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_follow_the_confirmations() {
        let mut subs = Subscriptions::default();
        subs.confirmed(b"subscribe", 1);
        subs.confirmed(b"psubscribe", 2);
        subs.confirmed(b"subscribe", 3);
        subs.confirmed(b"ssubscribe", 1);
        assert_eq!(subs, Subscriptions { channels: 2, patterns: 1, shards: 1 });
        assert_eq!(subs.confirmations(Kind::Unsubscribe, 0), 2);
        assert_eq!(subs.confirmations(Kind::Sunsubscribe, 0), 1);
        subs.confirmed(b"unsubscribe", 2);
        subs.confirmed(b"unsubscribe", 1);
        subs.confirmed(b"punsubscribe", 0);
        subs.confirmed(b"sunsubscribe", 0);
        assert!(!subs.any());
        assert_eq!(subs.confirmations(Kind::Unsubscribe, 0), 1);
    }

    #[test]
    fn tells_messages_from_confirmations_and_replies() {
        assert!(matches!(pubsub(b">3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$1\r\nm\r\n"), Some(PubSub::Message)));
        let conf = b"*3\r\n$9\r\nsubscribe\r\n$1\r\nc\r\n:1\r\n";
        assert!(matches!(pubsub(conf), Some(PubSub::Confirmation { kind: b"subscribe", count: 1 })));
        assert!(pubsub(b"*2\r\n$4\r\npong\r\n$0\r\n\r\n").is_none());
        assert!(pubsub(b"+OK\r\n").is_none());
    }
}
