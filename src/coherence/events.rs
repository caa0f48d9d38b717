//! Keyspace events, `pubsub` mode's second source (P8): where upstream has them on for everything that changes data, the
//! connection of the channel ("S") also subscribes to `__keyspace@*__:*`, and each event drops its key. So writers that
//! bypass the sidecars, expiry and eviction end copies as the sidecars' own messages do.
//!
//! **Why the same argument holds.** Upstream appends an event to S's output while the change executes, as it does a message
//! (fact 50), so a PONG on S proves for events what it proves for messages, and tokens, lease and fences on S cover them
//! without more. What was written before the subscription stood was announced to nobody. So the L1 is flushed at its
//! confirmation, which also takes the tokens of what is being read: whatever is stored later was asked for when upstream had
//! the subscription already, and every change behind it is announced. With S the subscription is lost, and all that with it.
//!
//! **What it does not cover.** FLUSHALL, FLUSHDB and SWAPDB of outsiders have no events (fact 47): the cap remains their bound.
//! It costs one message to each sidecar for every change upstream, so S subscribes only while a lane lives by it. Whether the
//! events are on is asked once a connection of S; who turns them off later has the cap for a bound.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use tokio::time::timeout;

use super::channel::{Answer, Channel};
use crate::observe::clock;
use crate::observe::reasons::{Flush, Source};
use crate::observe::status::EVENTS_USED;
use crate::resp::{Proto, reply};
use crate::upstream::handshake::error_text;
use crate::upstream::{Credential, Profile};
use crate::worker::Ctx;

const PATTERN: &[u8] = b"__keyspace@*__:*";
const SETTING: &[u8] = b"notify-keyspace-events";

/// The classes that `A` stands for: with all of them every signalled change of a key has an event. Not among them: `m`, a
/// read that found nothing, and `n`, which comes with another one.
const CHANGES: &[u8] = b"g$lshzxetd";

/// A reader's doing, and no change: a miss must not take away that the key is known to be absent.
const MISSED: &[u8] = b"keymiss";

/// S keeps the subscription for so long after the last lane that lived by it: a lane that reconnects takes less.
const LINGER: u64 = 5_000_000_000;

/// Where it could not be asked, it is asked again after so long.
const AGAIN: u64 = 5_000_000_000;

const LIMIT: Duration = Duration::from_secs(5);

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    /// Not asked for yet, or given back.
    #[default]
    Idle,
    /// CONFIG GET is under way.
    Asking,
    Subscribing,
    Used,
    Leaving,
    /// Until S connects again.
    Refused,
}

#[derive(Default)]
pub(super) struct Events {
    state: Cell<State>,
    /// Whom upstream takes S for.
    credential: RefCell<Option<Rc<Credential>>>,
    /// Not asked before this time.
    not_before: Cell<u64>,
    /// Since when no lane lives by the channel; 0: one does.
    unwanted: Cell<u64>,
}

/// Why there are none.
enum NotUsed {
    Off(String),
    Denied(String),
    /// Another attempt may know more.
    Unknown(String),
}

impl Events {
    pub(super) fn came_up(&self, credential: Option<Rc<Credential>>) {
        *self.credential.borrow_mut() = credential;
        self.state.set(State::Idle);
        self.not_before.set(0);
        self.unwanted.set(0);
    }

    pub(super) fn lost(&self, ctx: &Ctx) {
        self.state.set(State::Idle);
        ctx.status.channel.set_events("");
    }
}

impl Channel {
    /// With every tick of S: subscribes where a lane wants it, and gives it back where none does.
    pub(super) fn tick_events(self: &Rc<Self>, ctx: &Rc<Ctx>, now: u64) {
        let wanted = ctx.lives_by_channel();
        let events = &self.events;
        match (events.state.get(), wanted) {
            (State::Idle, true) if now >= events.not_before.get() => self.ask_for_events(ctx),
            (State::Used, true) => events.unwanted.set(0),
            (State::Used, false) if events.unwanted.get() == 0 => events.unwanted.set(now),
            (State::Used, false) if now.saturating_sub(events.unwanted.get()) > LINGER => {
                events.unwanted.set(0);
                events.state.set(State::Leaving);
                ctx.status.channel.set_events("");
                self.send(now, &[b"PUNSUBSCRIBE", PATTERN], Answer::EventsEnd);
            }
            _ => {}
        }
    }

    /// Asks on a connection of S's own user, because S itself takes no other commands while it is subscribed.
    fn ask_for_events(self: &Rc<Self>, ctx: &Rc<Ctx>) {
        self.events.state.set(State::Asking);
        let (channel, ctx, epoch) = (self.clone(), ctx.clone(), self.epoch());
        tokio::task::spawn_local(async move {
            let credential = channel.events.credential.borrow().clone();
            let answer = timeout(LIMIT, are_on(&ctx, credential)).await;
            if channel.epoch() != epoch || channel.events.state.get() != State::Asking {
                return;
            }
            match answer.unwrap_or_else(|_| Err(NotUsed::Unknown(format!("no answer within {LIMIT:?}")))) {
                Ok(()) => {
                    channel.events.state.set(State::Subscribing);
                    channel.send(clock::now(), &[b"PSUBSCRIBE", PATTERN], Answer::Events);
                }
                Err(why) => channel.no_events(&ctx, &why),
            }
        });
    }

    /// Health is for everybody: upstream's own words, which may name users, are in the log only.
    fn no_events(&self, ctx: &Ctx, why: &NotUsed) {
        let (plain, detail) = match why {
            NotUsed::Off(flags) => ("notify-keyspace-events has not K and A", format!("it is \"{flags}\"")),
            NotUsed::Denied(reply) => ("upstream denies them to this user", reply.clone()),
            NotUsed::Unknown(error) => ("upstream could not be asked", error.clone()),
        };
        let again = matches!(why, NotUsed::Unknown(_));
        self.events.not_before.set(clock::now() + AGAIN);
        self.events.state.set(if again { State::Idle } else { State::Refused });
        ctx.status.channel.set_events(&format!("not used: {plain}"));
        tracing::debug!("keyspace events are not used: {plain}: {detail}");
    }

    /// Upstream has answered PSUBSCRIBE or PUNSUBSCRIBE.
    pub(super) fn events_answered(&self, ctx: &Ctx, answer: Answer, frame: &[u8]) {
        match answer {
            Answer::Pong => {}
            _ if reply::is_error(frame) => self.no_events(ctx, &NotUsed::Denied(error_text(frame))),
            Answer::Events => {
                ctx.l1.flush();
                ctx.metrics.flushes.inc(Flush::Channel);
                self.events.state.set(State::Used);
                ctx.status.channel.set_events(EVENTS_USED);
                tracing::info!("coherence is pubsub+keyspace: upstream has keyspace events on");
            }
            Answer::EventsEnd => self.events.state.set(State::Idle),
        }
    }
}

async fn are_on(ctx: &Rc<Ctx>, credential: Option<Rc<Credential>>) -> Result<(), NotUsed> {
    let unknown = |e: &dyn std::fmt::Display| NotUsed::Unknown(e.to_string());
    let profile = Profile { db: 0, credential };
    let mut conn = ctx.pool.fresh(&profile, Proto::Resp2).await.map_err(|e| unknown(&e))?;
    let frame = conn.link.ask(&[b"CONFIG", b"GET", SETTING]).await.map_err(|e| unknown(&e))?;
    if reply::is_error(&frame) {
        return Err(NotUsed::Denied(error_text(&frame)));
    }
    let flags = reply::elements(&frame).nth(1).and_then(reply::bulk).unwrap_or_default();
    if tell_all(flags) { Ok(()) } else { Err(NotUsed::Off(flags.escape_ascii().to_string())) }
}

/// K, and A or everything that A stands for.
fn tell_all(flags: &[u8]) -> bool {
    let has = |class: &u8| flags.contains(class);
    has(&b'K') && (has(&b'A') || CHANGES.iter().all(has))
}

/// One event: what `pmessage` says behind the pattern.
pub(super) fn apply(ctx: &Ctx, channel: &[u8], event: &[u8]) {
    if let Some(key) = key_of(channel).filter(|_| event != MISSED) {
        ctx.l1.invalidate(key);
        ctx.metrics.invalidations.inc(Source::Keyspace);
    }
}

/// The key in `__keyspace@<db>__:<key>`, whatever bytes it has. None: somebody's own channel of a similar name.
fn key_of(channel: &[u8]) -> Option<&[u8]> {
    let rest = channel.strip_prefix(b"__keyspace@")?;
    let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
    rest[digits..].strip_prefix(b"__:").filter(|_| digits > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_tells_of_every_change_is_used() {
        for flags in ["AK", "AKE", "KA", "g$lshzxetdK", "AKm"] {
            assert!(tell_all(flags.as_bytes()), "{flags}");
        }
        for flags in ["", "A", "AE", "K", "K$", "g$lshzxetK", "g$lshzxtdK", "Kmn"] {
            assert!(!tell_all(flags.as_bytes()), "{flags}");
        }
    }

    #[test]
    fn a_key_is_what_stands_behind_the_first_mark() {
        let cases: [(&[u8], Option<&[u8]>); 9] = [
            (b"__keyspace@0__:k", Some(b"k")),
            (b"__keyspace@15__:__keyspace@0__:k", Some(b"__keyspace@0__:k")),
            (b"__keyspace@0__:\xff\x00 \r\n", Some(b"\xff\x00 \r\n")),
            (b"__keyspace@0__:", Some(b"")),
            (b"__keyspace@__:k", None),
            (b"__keyspace@x0__:k", None),
            (b"__keyspace@0_:k", None),
            (b"__keyevent@0__:set", None),
            (b"news", None),
        ];
        for (channel, key) in cases {
            assert_eq!(key_of(channel), key, "{}", channel.escape_ascii());
        }
    }
}
