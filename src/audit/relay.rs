//! A relay of bytes between sidecars and upstream, with a hand on every link: hold, delay, cut into pieces, cut. It knows
//! nothing of RESP but one word: a link on which CLIENT TRACKING or the invalidation channel was asked for is the one that
//! carries invalidations, and the one worth holding up alone. Bytes under way when a link is cut are lost, as in a network.
//! And it takes upstream away altogether, which is untouched itself and may be anybody's.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

use crate::config::Endpoint;
use crate::net::{ReadHalf, Stream, WriteHalf};
use crate::upstream::connect;

/// One read of a link.
const CHUNK: usize = 64 * 1024;

/// Bytes that a held link takes before its sender feels it: as a network's buffers would.
const HELD_MAX: usize = 8 << 20;

/// Between two pieces: long enough that the receiver reads the first one by itself.
const PIECE_APART: Duration = Duration::from_micros(200);

const CONNECT_MAX: Duration = Duration::from_secs(5);

/// What the sidecar says first on a link that brings invalidations.
const FEEDS: [&[u8]; 2] = [b"TRACKING", b"SUBSCRIBE"];

/// Bytes of a link's beginning in which that is looked for.
const BEGINNING: usize = 4096;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dir {
    /// From the sidecar to upstream.
    Up,
    /// From upstream to the sidecar: replies and invalidations.
    Down,
}

/// Which links a fault is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scope {
    All,
    /// Those that bring invalidations.
    Feeds,
    /// The one with this number, of those alive.
    One(usize),
}

/// What has become of upstream, as sidecars see it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Presence {
    #[default]
    There,
    /// Every link is cut, and connections end as soon as they are made.
    Refuses,
    /// Links stand and connections are taken, but not a byte passes.
    Silent,
}

#[derive(Clone, Copy, Default)]
struct Gate {
    held: bool,
    /// The same, for as long as upstream is silent.
    silent: bool,
    delay: Duration,
    /// Bytes delivered at once; 0: as they came.
    piece: usize,
}

impl Gate {
    fn stands_still(self) -> bool {
        self.held || self.silent
    }
}

pub(super) struct Relay {
    pub(super) address: SocketAddr,
    target: Endpoint,
    links: RefCell<Vec<Rc<Link>>>,
    presence: Cell<Presence>,
    returned: Notify,
}

struct Link {
    gates: [Cell<Gate>; 2],
    lines: [Line; 2],
    feeds: Cell<bool>,
    dead: Cell<bool>,
    /// A gate has changed, or the link is dead.
    changed: Notify,
}

/// What is under way in one direction.
#[derive(Default)]
struct Line {
    held: RefCell<VecDeque<(Instant, Vec<u8>)>>,
    bytes: Cell<usize>,
    /// The sender has closed; what it sent before is still delivered.
    over: Cell<bool>,
    moved: Notify,
}

impl Relay {
    /// Listens; every connection to it becomes a link to `target`.
    pub(super) async fn start(at: SocketAddr, target: Endpoint) -> std::io::Result<Rc<Relay>> {
        let listener = TcpListener::bind(at).await?;
        let address = listener.local_addr()?;
        let (links, presence, returned) = (RefCell::default(), Cell::default(), Notify::new());
        let relay = Rc::new(Relay { address, target, links, presence, returned });
        tokio::task::spawn_local(accept(relay.clone(), listener));
        Ok(relay)
    }

    pub(super) fn hold(&self, scope: Scope, dir: Dir, on: bool) {
        self.each(scope, dir, |gate| gate.held = on);
    }

    /// Adds to the time of travel; what left earlier still arrives first.
    pub(super) fn delay(&self, scope: Scope, dir: Dir, by: Duration) {
        self.each(scope, dir, |gate| gate.delay = by);
    }

    /// Delivers in pieces: what was sent in one write is no longer read in one.
    pub(super) fn split(&self, scope: Scope, dir: Dir, piece: usize) {
        self.each(scope, dir, |gate| gate.piece = piece);
    }

    pub(super) fn cut(&self, scope: Scope) {
        self.links(scope).iter().for_each(|link| link.cut());
    }

    /// From when it returns no byte passes, until upstream comes back.
    pub(super) fn leave(&self, presence: Presence) {
        self.presence.set(presence);
        match presence {
            Presence::There => {}
            Presence::Refuses => self.cut(Scope::All),
            Presence::Silent => self.silence(true),
        }
    }

    /// Links that were silent go on where they stopped. Of those that their sidecar has given up meanwhile the bytes are
    /// lost: arriving now they would come behind what it has sent, or will send, over other links.
    pub(super) fn come_back(&self) {
        self.presence.set(Presence::There);
        let given_up =
            |link: &&Rc<Link>| link.gates[Dir::Up as usize].get().silent && link.lines[Dir::Up as usize].over.get();
        self.links(Scope::All).iter().filter(given_up).for_each(|link| link.cut());
        self.silence(false);
        self.returned.notify_waiters();
    }

    fn silence(&self, on: bool) {
        for dir in [Dir::Up, Dir::Down] {
            self.each(Scope::All, dir, |gate| gate.silent = on);
        }
    }

    /// Nothing is held, delayed or split any more; whether upstream is there is another matter.
    pub(super) fn heal(&self) {
        for dir in [Dir::Up, Dir::Down] {
            self.each(Scope::All, dir, |gate| *gate = Gate { silent: gate.silent, ..Gate::default() });
        }
    }

    pub(super) fn alive(&self) -> usize {
        self.links(Scope::All).len()
    }

    fn each(&self, scope: Scope, dir: Dir, change: impl Fn(&mut Gate)) {
        for link in self.links(scope) {
            let mut gate = link.gates[dir as usize].get();
            change(&mut gate);
            link.gates[dir as usize].set(gate);
            link.changed.notify_waiters();
        }
    }

    fn links(&self, scope: Scope) -> Vec<Rc<Link>> {
        let mut links = self.links.borrow_mut();
        links.retain(|link| !link.dead.get());
        match scope {
            Scope::All => links.clone(),
            Scope::Feeds => links.iter().filter(|link| link.feeds.get()).cloned().collect(),
            Scope::One(n) => links.get(n).cloned().into_iter().collect(),
        }
    }
}

async fn accept(relay: Rc<Relay>, listener: TcpListener) {
    loop {
        let Ok((socket, _)) = listener.accept().await else {
            sleep(Duration::from_millis(10)).await; // out of files, perhaps; it passes
            continue;
        };
        // Best effort, here as everywhere: without it small replies wait for each other.
        let _ = socket.set_nodelay(true);
        let relay = relay.clone();
        tokio::task::spawn_local(async move {
            // Nothing is read of it: what is sent on it is never answered.
            while relay.presence.get() == Presence::Silent {
                relay.returned.notified().await;
            }
            // Without an upstream the sidecar sees its connection close: what a proxy or a load balancer would do.
            let upstream = match relay.presence.get() {
                Presence::There => connect(&relay.target, CONNECT_MAX).await,
                _ => return,
            };
            // It may have gone while we were connecting.
            if let Ok(upstream) = upstream
                && relay.presence.get() == Presence::There
            {
                let link = Link::start(Stream::Tcp(socket), upstream);
                relay.links.borrow_mut().push(link);
            }
        });
    }
}

impl Link {
    fn start(sidecar: Stream, upstream: Stream) -> Rc<Link> {
        let link = Rc::new(Link {
            gates: Default::default(),
            lines: Default::default(),
            feeds: Cell::new(false),
            dead: Cell::new(false),
            changed: Notify::new(),
        });
        let (sidecar_rd, sidecar_wr) = sidecar.split();
        let (upstream_rd, upstream_wr) = upstream.split();
        for (dir, rd, wr) in [(Dir::Up, sidecar_rd, upstream_wr), (Dir::Down, upstream_rd, sidecar_wr)] {
            tokio::task::spawn_local(link.clone().receive(dir, rd));
            tokio::task::spawn_local(link.clone().deliver(dir, wr));
        }
        link
    }

    /// Both halves of both sockets are dropped with the four tasks, which closes them.
    fn cut(&self) {
        self.dead.set(true);
        self.changed.notify_waiters();
        self.lines.iter().for_each(|line| line.moved.notify_waiters());
    }

    async fn receive(self: Rc<Link>, dir: Dir, mut rd: ReadHalf) {
        let line = &self.lines[dir as usize];
        let (mut buf, mut beginning) = (BytesMut::with_capacity(CHUNK), Vec::new());
        while !self.dead.get() {
            if line.bytes.get() > HELD_MAX {
                self.waited(line).await;
                continue;
            }
            buf.reserve(CHUNK);
            let read = tokio::select! {
                read = rd.read_buf(&mut buf) => read,
                () = self.changed.notified() => continue,
            };
            if !matches!(read, Ok(n) if n > 0) {
                break;
            }
            if dir == Dir::Up && beginning.len() < BEGINNING {
                beginning.extend_from_slice(&buf);
                let feeds = FEEDS.iter().any(|word| memchr::memmem::find(&beginning, word).is_some());
                self.feeds.set(self.feeds.get() || feeds);
            }
            line.bytes.set(line.bytes.get() + buf.len());
            line.held.borrow_mut().push_back((Instant::now(), buf.split().to_vec()));
            line.moved.notify_waiters();
        }
        line.over.set(true);
        line.moved.notify_waiters();
    }

    async fn deliver(self: Rc<Link>, dir: Dir, wr: WriteHalf) {
        let line = &self.lines[dir as usize];
        while !self.dead.get() {
            let front = line.held.borrow_mut().pop_front();
            let Some((received, bytes)) = front else {
                if line.over.get() && !self.gates[dir as usize].get().stands_still() {
                    break; // the end of a stream travels like its bytes
                }
                self.waited(line).await;
                continue;
            };
            self.turn(dir, received).await;
            if self.dead.get() || self.write(dir, &wr, &bytes).await.is_err() {
                break;
            }
            line.bytes.set(line.bytes.get() - bytes.len());
            line.moved.notify_waiters();
        }
        self.cut();
    }

    /// Something may have moved. The limit is for the notice that came between a look and this wait.
    async fn waited(&self, line: &Line) {
        let moved = async {
            tokio::select! {
                () = line.moved.notified() => {}
                () = self.changed.notified() => {}
            }
        };
        let _ = timeout(Duration::from_millis(50), moved).await;
    }

    /// Waits until what was received then may go on.
    async fn turn(&self, dir: Dir, received: Instant) {
        loop {
            let changed = self.changed.notified();
            let gate = self.gates[dir as usize].get();
            let left = (received + gate.delay).saturating_duration_since(Instant::now());
            if self.dead.get() || (!gate.stands_still() && left.is_zero()) {
                return;
            }
            if gate.stands_still() {
                changed.await;
            } else {
                let _ = timeout(left, changed).await;
            }
        }
    }

    async fn write(&self, dir: Dir, wr: &WriteHalf, bytes: &[u8]) -> std::io::Result<()> {
        let piece = self.gates[dir as usize].get().piece;
        if piece == 0 {
            return self.write_whole(wr, bytes).await;
        }
        for part in bytes.chunks(piece) {
            self.write_whole(wr, part).await?;
            sleep(PIECE_APART).await;
        }
        Ok(())
    }

    /// A receiver that takes nothing must not keep a cut link alive.
    async fn write_whole(&self, wr: &WriteHalf, bytes: &[u8]) -> std::io::Result<()> {
        let writing = wr.write_all(bytes);
        tokio::pin!(writing);
        loop {
            tokio::select! {
                written = &mut writing => return written,
                () = self.changed.notified() => {
                    if self.dead.get() {
                        return Err(std::io::ErrorKind::BrokenPipe.into());
                    }
                }
            }
        }
    }
}
