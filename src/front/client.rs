//! One client on a worker: its socket, what it may be answered at once, and the pipes to its session.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::BytesMut;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::timeout;

use super::hits::{Rest, answer};
use super::link::{Ends, Grant, Link};
use super::{Newcomer, SCRATCH, Shared};
use crate::command::prefix::Words;
use crate::limits;
use crate::net::{ReadHalf, WriteHalf, drop_front, pipe, read_some};
use crate::observe::metrics::Shard;
use crate::resp::request::Scanner;

/// From so many bytes of replies on that the client has not taken, it is neither read nor answered. The session's own limit
/// then decides about it.
const OUT_MAX: usize = 256 * 1024;

/// A request that is not whole is kept here up to this size, because it may become a hit. A larger one is a value, or a long
/// MGET, and its bytes are better off with the session.
const KEPT_MAX: usize = 4 * 1024;

/// What is owed to a client whose session has ended is written for so long.
const LINGER: Duration = Duration::from_secs(1);

/// What the clients of one worker share.
pub(super) struct Local {
    pub(super) shared: Shared,
    /// This thread's own counters.
    pub(super) index: usize,
    scratch: RefCell<Vec<u8>>,
    /// A request with `upstream.key_prefix` in its names, while it is looked up.
    pub(super) words: Cell<Words>,
}

impl Local {
    pub(super) fn shard(&self) -> &Shard {
        &self.shared.metrics.shards[self.index]
    }
}

/// The main task of a worker.
pub(super) async fn serve(
    index: usize,
    shared: Shared,
    mut arriving: UnboundedReceiver<Newcomer>,
    clients: Arc<AtomicUsize>,
) {
    let local = Rc::new(Local { shared, index, scratch: RefCell::new(vec![0; SCRATCH]), words: Cell::default() });
    while let Some(newcomer) = arriving.recv().await {
        let here = Here(clients.clone());
        match Front::new(&local, newcomer) {
            Ok(mut front) => drop(tokio::task::spawn_local(async move {
                let _here = here;
                front.run().await;
            })),
            Err(e) => tracing::warn!("taking a client over: {e}"),
        }
    }
}

/// One of the worker's clients, however it ends.
struct Here(Arc<AtomicUsize>);

impl Drop for Here {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

struct Front {
    local: Rc<Local>,
    rd: ReadHalf,
    wr: WriteHalf,
    /// None: the client has closed its side, and all it has said is in the pipe.
    up: Option<pipe::Writer>,
    down: pipe::Reader,
    link: Arc<Link>,
    /// Read, and neither answered nor handed on.
    rbuf: BytesMut,
    scanner: Scanner,
    /// Replies that the client has not taken yet.
    out: BytesMut,
    /// Bytes handed on.
    sent: u64,
    /// The newest grant, and its version.
    grant: Option<Grant>,
    seen: u64,
    eof: bool,
}

/// What the front waits for beside its session's bytes.
enum Wait {
    /// More of the client's bytes.
    Input,
    /// Room in the pipe.
    Pipe,
    /// Room in the client's socket.
    Client,
}

impl Front {
    fn new(local: &Rc<Local>, newcomer: Newcomer) -> io::Result<Front> {
        let Newcomer { socket, link, ends: Ends { up, down } } = newcomer;
        let (rd, wr) = socket.register()?.split();
        Ok(Front {
            local: local.clone(),
            rd,
            wr,
            up: Some(up),
            down,
            link,
            rbuf: BytesMut::new(),
            // Whatever exceeds a limit is the session's to refuse.
            scanner: Scanner::new(limits::BULK_MAX, usize::MAX),
            out: BytesMut::new(),
            sent: 0,
            grant: None,
            seen: 0,
            eof: false,
        })
    }

    async fn run(&mut self) {
        loop {
            let wait = self.process();
            if self.flush().is_err() {
                return self.broken();
            }
            self.link.holds(self.rbuf.len() + self.out.len());
            if matches!(wait, Wait::Client) && self.out.len() < OUT_MAX {
                // The flush has made room: nobody else would wake us.
                tokio::task::yield_now().await;
                continue;
            }
            match self.wait(wait).await {
                Ok(false) => {}
                Ok(true) => return self.linger().await,
                Err(_) => return self.broken(),
            }
        }
    }

    /// Everything that can be done now.
    fn process(&mut self) -> Wait {
        if self.down.has_bytes() && self.out.len() < OUT_MAX {
            self.down.take_into(&mut self.out);
        }
        if !self.rbuf.is_empty() && self.is_granted() {
            match self.hits() {
                Rest::Partial if self.rbuf.len() <= KEPT_MAX && !self.eof => return Wait::Input,
                Rest::Throttled => return Wait::Client,
                Rest::Partial | Rest::Unanswered => {}
            }
        }
        self.hand_on()
    }

    /// Whether nothing is on its way between this front and its session, who says that hits are in order.
    fn is_granted(&mut self) -> bool {
        if let Some(grant) = self.link.renewed(&mut self.seen) {
            self.grant = grant;
        }
        self.grant.as_ref().is_some_and(|g| g.consumed == self.sent && g.written == self.down.read())
    }

    /// Answers requests at the front of the buffer, up to the first that is no hit.
    fn hits(&mut self) -> Rest {
        let Some(grant) = &self.grant else { return Rest::Unanswered };
        let (answered, rest) =
            answer(&self.local, &self.link, grant, &mut self.scanner, &self.rbuf, &mut self.out, OUT_MAX);
        drop_front(&mut self.rbuf, answered);
        rest
    }

    /// Gives all that was read to the session.
    fn hand_on(&mut self) -> Wait {
        let Some(up) = &self.up else { return Wait::Input };
        self.scanner.reset();
        while !self.rbuf.is_empty() {
            match up.try_write(&self.rbuf) {
                Ok(n) => {
                    self.sent += n as u64;
                    drop_front(&mut self.rbuf, n);
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Wait::Pipe,
                // The session is gone, and so are we as soon as what it owed is written.
                Err(_) => self.rbuf.clear(),
            }
        }
        if self.eof {
            self.up = None;
        }
        Wait::Input
    }

    fn flush(&mut self) -> io::Result<()> {
        if !self.out.is_empty() {
            self.wr.drain(&mut self.out)?;
        }
        if self.out.is_empty() && self.out.capacity() > OUT_MAX {
            self.out = BytesMut::new();
        }
        Ok(())
    }

    /// True: the session has ended.
    async fn wait(&mut self, wait: Wait) -> io::Result<bool> {
        let Front { local, rd, wr, up, down, rbuf, out, eof, .. } = self;
        let (full, unsent) = (out.len() >= OUT_MAX, !out.is_empty());
        let may_read = matches!(wait, Wait::Input) && !*eof && !full;
        let stuck = matches!(wait, Wait::Pipe);
        tokio::select! {
            biased;
            ended = poll_fn(|cx| down.poll_readable(cx, !full)) => return Ok(ended),
            read = read_some(rd, rbuf, &local.scratch), if may_read => *eof = read? == 0,
            writable = wr.writable(), if unsent => writable?,
            () = room(up.as_ref()), if stuck => {}
        }
        Ok(false)
    }

    /// The client's socket is of no use any more: the session is told as a socket would tell it.
    fn broken(&mut self) {
        if let Some(up) = self.up.take() {
            up.fail();
        }
    }

    /// The session has ended: what it has said is still for the client.
    async fn linger(&mut self) {
        self.down.take_into(&mut self.out);
        self.link.holds(self.out.len());
        let all = self.out.split();
        match timeout(LINGER, self.wr.write_all(&all)).await {
            Ok(Ok(())) => {}
            Ok(Err(e)) => tracing::debug!("closed with replies unsent: {e}"),
            Err(_) => tracing::debug!("closed with replies unsent"),
        }
    }
}

async fn room(up: Option<&pipe::Writer>) {
    if let Some(up) = up {
        poll_fn(|cx| up.poll_writable(cx)).await;
    }
}
