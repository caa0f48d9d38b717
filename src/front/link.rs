//! What a client's two halves share: its front on the worker that has the socket, and its session on the data thread.
//!
//! **When the front may answer.** The session hands out a [`Grant`] when it is at rest: everything it has read is answered,
//! the last replies are about to go into the pipe, and nothing about it (a muted reply, protected mode, a connection of its
//! own) needs the full session's eyes. The grant says how far that is: so many bytes consumed, so many written, the last
//! replies included. The front compares both with its own books. Equal means that nothing is on its way in either
//! direction, so a hit that is answered now stands between the reply before and the request behind, exactly where the client
//! expects it. One more byte in either direction and the grant is void without anybody having to revoke it.
//!
//! **The fence** travels inside the grant. A front that has delivered the reply that raised it and still has the older
//! grant finds that grant's `written` short of what it has delivered, and asks the session.
//!
//! What the session does of its own accord (messages, a kill) is ordered by the pipe: hits of a grant that was read before
//! those bytes were written stand before them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use parking_lot::Mutex;

use crate::coherence::LaneFacts;
use crate::net::Stream;
use crate::net::pipe::{self, Pipe};
use crate::observe::runs::Tally;
use crate::resp::Proto;

/// The right of a front to answer hits.
#[derive(Clone, Debug)]
pub(crate) struct Grant {
    /// Bytes of requests that the session has read, and answered.
    pub(crate) consumed: u64,
    /// Bytes of replies that it has written.
    pub(crate) written: u64,
    pub(crate) fence: u64,
    pub(crate) proto: Proto,
    /// A command policy is in force: it allows what the front answers, and that is counted.
    pub(crate) judged: bool,
    /// The lane of its profile.
    pub(crate) facts: Arc<LaneFacts>,
}

#[derive(Debug)]
pub(crate) struct Link {
    up: Arc<Pipe>,
    down: Arc<Pipe>,
    grant: Mutex<Option<Grant>>,
    /// Changes with every grant, so that the front needs the lock only then.
    version: AtomicU64,
    /// Bytes that the front keeps for the client: unfinished requests, replies it has not taken.
    held: AtomicUsize,
    /// For CLIENT LIST and the idle timeout: when the front last answered, and whether an MGET.
    last_hit: AtomicU64,
    was_mget: AtomicBool,
    /// What the front has answered.
    pub(crate) tally: Arc<Tally>,
}

/// The front's end of both pipes.
pub(crate) struct Ends {
    pub(crate) up: pipe::Writer,
    pub(crate) down: pipe::Reader,
}

impl Link {
    /// The link, what the session has for a socket, and the front's ends.
    pub(crate) fn new() -> (Arc<Link>, Stream, Ends) {
        let (up, requests) = Pipe::pair();
        let (replies, down) = Pipe::pair();
        let link = Link {
            up: up.pipe().clone(),
            down: down.pipe().clone(),
            grant: Mutex::default(),
            version: AtomicU64::new(0),
            held: AtomicUsize::new(0),
            last_hit: AtomicU64::new(0),
            was_mget: AtomicBool::new(false),
            tally: Arc::default(),
        };
        (Arc::new(link), Stream::Piped(requests, replies), Ends { up, down })
    }

    // ---- the session's side ----

    pub(crate) fn grant(&self, grant: Option<Grant>) {
        let mut place = self.grant.lock();
        *place = grant;
        self.version.store(self.version.load(Ordering::Relaxed) + 1, Ordering::Release);
    }

    /// Bytes kept in memory for this client outside of its session.
    pub(crate) fn buffered(&self) -> usize {
        self.up.queued() + self.down.queued() + self.held.load(Ordering::Relaxed)
    }

    /// When the front last answered this client, 0 before the first time, and what.
    pub(crate) fn last_hit(&self) -> (u64, &'static str) {
        let name = if self.was_mget.load(Ordering::Relaxed) { "mget" } else { "get" };
        (self.last_hit.load(Ordering::Relaxed), name)
    }

    // ---- the front's side ----

    /// The grant as it is now, where it is another than the one of version `seen`.
    pub(super) fn renewed(&self, seen: &mut u64) -> Option<Option<Grant>> {
        if self.version.load(Ordering::Acquire) == *seen {
            return None;
        }
        let place = self.grant.lock();
        *seen = self.version.load(Ordering::Relaxed);
        Some(place.clone())
    }

    pub(super) fn holds(&self, bytes: usize) {
        self.held.store(bytes, Ordering::Relaxed);
    }

    pub(super) fn note_hit(&self, now: u64, mget: bool) {
        self.last_hit.store(now, Ordering::Relaxed);
        self.was_mget.store(mget, Ordering::Relaxed);
    }
}
