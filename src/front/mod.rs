//! Further workers (`workers` above 1). Each is a thread with clients of its own: it has their sockets, answers what it can
//! from the shared L1, and hands every other byte to the client's session on the data thread, which is the same session as
//! with one worker, with a pipe for a socket. So there is one implementation of everything but a hit, and all guarantees
//! are those of one data thread.
//!
//! ```text
//!   worker thread                         data thread
//!   socket ─▶ front ── up pipe ─────────▶ session ─▶ lane, pinned ...
//!               │ ◀──── down pipe ─────── outbox
//!               │ ◀──── grant, LaneFacts
//!               └─▶ L1 (shared)
//! ```
//!
//! **Dealing.** The data thread accepts and gives each client to the worker with the fewest, itself included. The kernel's
//! own way (SO_REUSEPORT) deals by hash: ten connections of one pool easily end up eight to two.

mod client;
mod hits;
mod link;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::mpsc;
use tokio::task::LocalSet;

use crate::cache::L1;
use crate::command::prefix::Prefix;
use crate::net::Stream;
use crate::observe::metrics::Metrics;
use crate::policy::Current;

pub(crate) use link::{Grant, Link};

/// Bytes read from a client at once.
const SCRATCH: usize = 64 * 1024;

/// What all workers share with the data thread.
#[derive(Clone)]
pub(crate) struct Shared {
    pub(crate) l1: Arc<L1>,
    pub(crate) metrics: Arc<Metrics>,
    /// B, in nanoseconds.
    pub(crate) max_staleness: u64,
    pub(crate) rules: Arc<Current>,
    /// `upstream.key_prefix`: entries have upstream's names.
    pub(crate) prefix: Option<Prefix>,
}

/// The threads beside the data thread.
#[derive(Default)]
pub(crate) struct Workers {
    all: Vec<Worker>,
}

struct Worker {
    newcomers: mpsc::UnboundedSender<Newcomer>,
    clients: Arc<AtomicUsize>,
}

/// A client on its way to a worker. At most `max_clients` are.
struct Newcomer {
    socket: Socket,
    link: Arc<Link>,
    ends: link::Ends,
}

/// A socket that no reactor knows.
enum Socket {
    Tcp(std::net::TcpStream),
    Unix(std::os::unix::net::UnixStream),
}

impl Socket {
    /// Takes it off this thread's reactor.
    fn release(stream: Stream) -> io::Result<Socket> {
        match stream {
            Stream::Tcp(s) => s.into_std().map(Socket::Tcp),
            Stream::Unix(s) => s.into_std().map(Socket::Unix),
            Stream::Piped(..) => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// Gives it to this thread's reactor.
    fn register(self) -> io::Result<Stream> {
        Ok(match self {
            Socket::Tcp(s) => Stream::Tcp(tokio::net::TcpStream::from_std(s)?),
            Socket::Unix(s) => Stream::Unix(tokio::net::UnixStream::from_std(s)?),
        })
    }
}

impl Workers {
    /// Starts `count` threads. They end with the process, or when this is dropped and their clients are gone.
    pub(crate) fn start(count: usize, shared: &Shared) -> io::Result<Workers> {
        let all: io::Result<Vec<Worker>> = (0..count).map(|i| Worker::start(i, shared.clone())).collect();
        Ok(Workers { all: all? })
    }

    /// Takes the client off the data thread, which has `own` clients itself: gives back what its session has for a socket.
    /// None where the data thread is the one with the fewest, or the socket broke.
    pub(crate) fn take(&self, stream: Stream, own: usize) -> Result<(Arc<Link>, Stream), Option<Stream>> {
        let least = self.all.iter().min_by_key(|worker| worker.clients());
        let Some(worker) = least.filter(|worker| worker.clients() <= own) else { return Err(Some(stream)) };
        let socket = Socket::release(stream).map_err(|e| {
            tracing::warn!("giving a client to a worker: {e}");
            None
        })?;
        let (link, piped, ends) = Link::new();
        worker.clients.fetch_add(1, Ordering::Relaxed);
        // A worker ends after the data thread only; were it gone, its end of the pipes would be dropped here.
        let _ = worker.newcomers.send(Newcomer { socket, link: link.clone(), ends });
        Ok((link, piped))
    }

    /// Clients whose socket a worker has, those included that are only being written to.
    pub(crate) fn clients(&self) -> usize {
        self.all.iter().map(Worker::clients).sum()
    }
}

impl Worker {
    fn start(index: usize, shared: Shared) -> io::Result<Worker> {
        let (newcomers, arriving) = mpsc::unbounded_channel();
        let clients = Arc::<AtomicUsize>::default();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let counted = clients.clone();
        let run = move || LocalSet::new().block_on(&runtime, client::serve(index, shared, arriving, counted));
        std::thread::Builder::new().name(format!("nearside-w{}", index + 1)).spawn(run)?;
        Ok(Worker { newcomers, clients })
    }

    fn clients(&self) -> usize {
        self.clients.load(Ordering::Relaxed)
    }
}
