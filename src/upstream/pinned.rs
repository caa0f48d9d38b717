//! Connections of a session's own: opened on demand, set up to the session's profile and protocol, and kept for the next
//! one after their state is proved clean (DESIGN 6, `upstream.pinned_idle`). Untracked: the L1 learns of their writes from
//! the lane, as of anybody's.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::time::timeout;

use super::handshake::{self, HandshakeError, Link};
use super::{ConnectError, Profile, connect};
use crate::config::Endpoint;
use crate::resp::{Proto, reply};

#[derive(Debug, thiserror::Error)]
pub(crate) enum CheckoutError {
    #[error("too many pinned connections (upstream.pinned_max is {0})")]
    Full(usize),
    #[error("{0}")]
    Connect(#[from] ConnectError),
    #[error("{0}")]
    Handshake(#[from] HandshakeError),
    #[error("no answer to the handshake within {0:?}")]
    Timeout(Duration),
}

impl CheckoutError {
    /// What the client is told: upstream's own words where it is busy or loading, as without us.
    pub(crate) fn reply(&self) -> String {
        match self {
            CheckoutError::Handshake(HandshakeError::Refused { reply, .. })
                if reply.starts_with("BUSY ") || reply.starts_with("LOADING ") =>
            {
                reply.clone()
            }
            _ => format!("NEARSIDE upstream unavailable: {self}"),
        }
    }
}

/// How pinned connections are opened and how many there may be.
pub(crate) struct Settings {
    pub(crate) endpoint: Endpoint,
    pub(crate) connect_timeout: Duration,
    /// All pinned connections, lent and idle.
    pub(crate) max: usize,
    /// Idle ones per profile and protocol.
    pub(crate) idle: usize,
    /// What CLIENT SETNAME says upstream.
    pub(crate) name: String,
}

pub(crate) struct Pool {
    settings: Settings,
    idle: RefCell<HashMap<(Profile, Proto), Vec<Dedicated>>>,
    open: Rc<Cell<usize>>,
    /// Raised when a lane dies: what was opened before may belong to a server that is gone (decision 9).
    generation: Cell<u64>,
}

/// One connection of a session's own. Dropping it closes it, which also ends what upstream is blocked in for it.
pub(crate) struct Dedicated {
    pub(crate) link: Link,
    /// Its id in upstream's CLIENT LIST.
    pub(crate) id: i64,
    pub(crate) profile: Profile,
    pub(crate) proto: Proto,
    generation: u64,
    _count: Counted,
}

/// One of `Pool::open`.
struct Counted(Rc<Cell<usize>>);

impl Counted {
    fn new(open: &Rc<Cell<usize>>) -> Counted {
        open.set(open.get() + 1);
        Counted(open.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

impl Pool {
    pub(crate) fn new(settings: Settings) -> Pool {
        Pool { settings, idle: RefCell::default(), open: Rc::default(), generation: Cell::new(0) }
    }

    /// All pinned connections there are, lent and idle.
    pub(crate) fn open(&self) -> usize {
        self.open.get()
    }

    /// A connection of `profile` that speaks `proto`: an idle one that is still alive, else a new one.
    pub(crate) async fn checkout(&self, profile: &Profile, proto: Proto) -> Result<Dedicated, CheckoutError> {
        while let Some(mut conn) = self.take_idle(profile, proto) {
            if alive(&mut conn.link).await {
                return Ok(conn);
            }
        }
        self.fresh(profile, proto).await
    }

    fn take_idle(&self, profile: &Profile, proto: Proto) -> Option<Dedicated> {
        self.idle.borrow_mut().get_mut(&(profile.clone(), proto))?.pop()
    }

    /// A connection that nobody has used before.
    pub(crate) async fn fresh(&self, profile: &Profile, proto: Proto) -> Result<Dedicated, CheckoutError> {
        if self.open.get() >= self.settings.max && !self.drop_one_idle() {
            return Err(CheckoutError::Full(self.settings.max));
        }
        let count = Counted::new(&self.open);
        let generation = self.generation.get();
        let stream = connect(&self.settings.endpoint, self.settings.connect_timeout).await?;
        let hello = handshake::dedicated(stream, profile, proto, &self.settings.name);
        let (link, id) = timeout(self.settings.connect_timeout, hello)
            .await
            .map_err(|_| CheckoutError::Timeout(self.settings.connect_timeout))??;
        Ok(Dedicated { link, id, profile: profile.clone(), proto, generation, _count: count })
    }

    /// A connection without name, credential or database, on which a client's own AUTH can be tried.
    pub(crate) async fn bare(&self) -> Result<Link, CheckoutError> {
        Ok(Link::new(connect(&self.settings.endpoint, self.settings.connect_timeout).await?))
    }

    fn drop_one_idle(&self) -> bool {
        self.idle.borrow_mut().values_mut().any(|conns| conns.pop().is_some())
    }

    /// Takes back a connection that holds no state: nothing outstanding, no transaction, subscription, tracking or name.
    pub(crate) fn give_back(&self, conn: Dedicated) {
        if conn.generation != self.generation.get() || !conn.link.rbuf.is_empty() {
            return;
        }
        let mut idle = self.idle.borrow_mut();
        let conns = idle.entry((conn.profile.clone(), conn.proto)).or_default();
        if conns.len() < self.settings.idle {
            conns.push(conn);
        }
    }

    /// Takes back a connection whose state is not known to be clean: RESET proves it so, else it is closed.
    pub(crate) async fn give_back_after_reset(&self, mut conn: Dedicated) {
        let cleaned = timeout(self.settings.connect_timeout, self.clean(&mut conn)).await;
        if matches!(cleaned, Ok(true)) {
            self.give_back(conn);
        }
    }

    async fn clean(&self, conn: &mut Dedicated) -> bool {
        match conn.link.ask(&[b"RESET"]).await {
            Ok(frame) if !reply::is_error(&frame) => {}
            _ => return false,
        }
        let (profile, proto) = (conn.profile.clone(), conn.proto);
        match handshake::set_up(&mut conn.link, &profile, proto, &self.settings.name).await {
            Ok(id) => {
                conn.id = id;
                true
            }
            Err(_) => false,
        }
    }

    /// Closes all idle connections, and those lent now when they come back.
    pub(crate) fn retire(&self) {
        self.generation.set(self.generation.get() + 1);
        self.idle.borrow_mut().clear();
    }
}

/// An idle connection that has become readable is closed, or says something nobody asked for: useless either way.
async fn alive(link: &mut Link) -> bool {
    tokio::select! {
        biased;
        _ = link.rd.read_buf(&mut link.rbuf) => false,
        () = std::future::ready(()) => true,
    }
}
