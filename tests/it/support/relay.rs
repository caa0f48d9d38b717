//! A relay of bytes between the sidecar and its upstream, with a hand on every link: stall, delay, lose, cut; all links,
//! those that exist now, or one. It knows nothing of RESP. Bytes on their way when a link is cut are lost, as in a network.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::{PATIENCE, Redis, eventually, temp_dir};

/// One read of a link.
const CHUNK: usize = 64 * 1024;

/// Chunks that a stalled or delayed link holds (up to 16 MiB), before its sender feels it: as a network's buffers would.
const CHUNKS_HELD: usize = 256;

/// Between two pieces: long enough that the receiver reads the first one by itself.
const PIECE_APART: Duration = Duration::from_micros(100);

/// The end of the name that the connection of the sidecars' channel gives itself.
const CHANNEL: &[u8] = b":channel\r\n";

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Dir {
    /// From the sidecar to upstream: requests.
    Up,
    /// From upstream to the sidecar: replies and pushes.
    Down,
}

/// Which links a control is for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Scope {
    /// Those that exist and those to come.
    All,
    /// Those that exist now.
    Existing,
    /// The one with this number; they count from 0 in the order they were made.
    One(usize),
    Newest,
}

pub(crate) struct Relay {
    inner: Arc<Inner>,
    dir: TempDir,
}

struct Inner {
    target: PathBuf,
    state: Mutex<State>,
    over: AtomicBool,
}

#[derive(Default)]
struct State {
    links: Vec<Arc<Link>>,
    /// What a new link starts with.
    default: [Gate; 2],
    refuse: bool,
}

#[derive(Clone, Copy, Default)]
struct Gate {
    stalled: bool,
    /// Bytes are read and lost; neither side is told.
    hole: bool,
    delay: Duration,
    /// Bytes delivered at once; 0: as they came.
    piece: usize,
}

struct Link {
    sidecar: UnixStream,
    upstream: UnixStream,
    gates: Mutex<[Gate; 2]>,
    changed: Condvar,
    bytes: [AtomicU64; 2],
    dead: AtomicBool,
    /// It has said something, and not that it is the sidecars' channel: that one is counted by no test.
    counts: AtomicBool,
    channel: AtomicBool,
}

impl Relay {
    #[track_caller]
    pub(crate) fn to(redis: &Redis) -> Relay {
        Relay::to_path(redis.socket())
    }

    #[track_caller]
    pub(crate) fn to_path(target: &Path) -> Relay {
        let dir = temp_dir();
        let listener = UnixListener::bind(dir.path().join("relay.sock")).expect("a socket to listen on");
        let inner = Arc::new(Inner { target: target.into(), state: Mutex::default(), over: AtomicBool::new(false) });
        let accepting = inner.clone();
        std::thread::spawn(move || accepting.accept(&listener));
        Relay { inner, dir }
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("relay.sock")
    }

    /// The upstream address for the sidecar's configuration.
    pub(crate) fn url(&self) -> String {
        format!("unix://{}", self.socket().display())
    }

    /// Holds what comes from now on in this direction; what is held is not lost.
    pub(crate) fn stall(&self, scope: Scope, dir: Dir) {
        self.each(scope, |gates| gates[dir as usize].stalled = true);
    }

    pub(crate) fn resume(&self, scope: Scope, dir: Dir) {
        self.each(scope, |gates| gates[dir as usize].stalled = false);
    }

    /// Adds to the time of travel; what left earlier still arrives first.
    pub(crate) fn delay(&self, scope: Scope, dir: Dir, by: Duration) {
        self.each(scope, |gates| gates[dir as usize].delay = by);
    }

    /// Delivers in pieces of so many bytes, each on its own: what was sent in one write is no longer read in one.
    pub(crate) fn split(&self, scope: Scope, dir: Dir, piece: usize) {
        self.each(scope, |gates| gates[dir as usize].piece = piece);
    }

    /// Loses everything in both directions and closes nothing: a half-open link. There is no way back for a link,
    /// a stream with a hole is none; `heal` lets new links work again.
    pub(crate) fn blackhole(&self, scope: Scope) {
        self.each(scope, |gates| gates.iter_mut().for_each(|gate| gate.hole = true));
    }

    /// New links work as if nothing had been said before.
    pub(crate) fn heal(&self) {
        let mut state = self.inner.lock();
        state.default = Default::default();
        state.refuse = false;
    }

    /// Closes both ends; `Scope::All` closes those that exist, see `refuse` for those to come.
    pub(crate) fn cut(&self, scope: Scope) {
        self.links(scope).iter().for_each(|link| link.cut());
    }

    /// New links are closed at once, as by a server that is going down.
    pub(crate) fn refuse(&self) {
        self.inner.lock().refuse = true;
    }

    /// The number of the link that carries the sidecars' channel.
    #[track_caller]
    pub(crate) fn channel(&self) -> Scope {
        let find = || {
            let state = self.inner.lock();
            state.links.iter().rposition(|link| link.channel.load(Relaxed) && !link.is_dead())
        };
        Scope::One(super::poll(PATIENCE, find).expect("a link of the channel"))
    }

    /// The numbers of the links that are alive.
    pub(crate) fn connections(&self) -> Vec<usize> {
        let state = self.inner.lock();
        let alive = state.links.iter().enumerate().filter(|(_, link)| !link.is_dead() && link.counts.load(Relaxed));
        alive.map(|(number, _)| number).collect()
    }

    /// How many links there ever were.
    pub(crate) fn accepted(&self) -> usize {
        self.inner.lock().links.iter().filter(|link| link.counts.load(Relaxed)).count()
    }

    #[track_caller]
    pub(crate) fn wait_accepted(&self, count: usize) {
        eventually(PATIENCE, &format!("{count} links, there are {}", self.accepted()), || self.accepted() >= count);
    }

    /// Bytes delivered in this direction by the links of the scope.
    pub(crate) fn bytes(&self, scope: Scope, dir: Dir) -> u64 {
        self.links(scope).iter().map(|link| link.bytes[dir as usize].load(Relaxed)).sum()
    }

    fn each(&self, scope: Scope, change: impl Fn(&mut [Gate; 2])) {
        if matches!(scope, Scope::All) {
            change(&mut self.inner.lock().default);
        }
        for link in self.links(scope) {
            change(&mut link.gates());
            link.changed.notify_all();
        }
    }

    #[track_caller]
    fn links(&self, scope: Scope) -> Vec<Arc<Link>> {
        let state = self.inner.lock();
        match scope {
            Scope::All | Scope::Existing => state.links.clone(),
            Scope::One(number) => vec![state.links[number].clone()],
            Scope::Newest => state.links.iter().rfind(|link| link.counts.load(Relaxed)).cloned().into_iter().collect(),
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.inner.over.store(true, Relaxed);
        self.cut(Scope::Existing);
        let _ = UnixStream::connect(self.socket()); // wakes the acceptor, so that its thread ends
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn accept(&self, listener: &UnixListener) {
        for sidecar in listener.incoming().map_while(Result::ok) {
            if self.over.load(Relaxed) {
                return;
            }
            // Without an upstream the sidecar sees its connection close: what a proxy or a load balancer would do.
            if let Ok(upstream) = UnixStream::connect(&self.target) {
                self.connect(sidecar, upstream);
            }
        }
    }

    fn connect(&self, sidecar: UnixStream, upstream: UnixStream) {
        let mut state = self.lock();
        if state.refuse {
            return;
        }
        let link = Arc::new(Link {
            sidecar,
            upstream,
            gates: Mutex::new(state.default),
            changed: Condvar::new(),
            bytes: Default::default(),
            dead: AtomicBool::new(false),
            counts: AtomicBool::new(false),
            channel: AtomicBool::new(false),
        });
        state.links.push(link.clone());
        link.run(Dir::Up);
        link.run(Dir::Down);
    }
}

type Held = (Instant, Vec<u8>);

impl Link {
    fn gates(&self) -> MutexGuard<'_, [Gate; 2]> {
        self.gates.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn is_dead(&self) -> bool {
        self.dead.load(Relaxed)
    }

    fn cut(&self) {
        {
            let _gates = self.gates(); // so that no deliverer misses the change between its look and its wait
            self.dead.store(true, Relaxed);
        }
        self.changed.notify_all();
        let _ = self.sidecar.shutdown(Shutdown::Both);
        let _ = self.upstream.shutdown(Shutdown::Both);
    }

    /// A thread that reads and stamps, one that waits and delivers: so a delay adds time, not less throughput.
    fn run(self: &Arc<Link>, dir: Dir) {
        let (held, waiting) = sync_channel(CHUNKS_HELD);
        let (reader, deliverer) = (self.clone(), self.clone());
        std::thread::spawn(move || reader.receive(dir, &held));
        std::thread::spawn(move || deliverer.deliver(dir, &waiting));
    }

    fn receive(&self, dir: Dir, held: &SyncSender<Held>) {
        let mut from = if dir == Dir::Up { &self.sidecar } else { &self.upstream };
        let mut chunk = vec![0; CHUNK];
        loop {
            match from.read(&mut chunk) {
                Ok(0) | Err(_) => return, // the deliverer passes the end on once it has passed on everything before it
                Ok(n) => {
                    if dir == Dir::Up {
                        self.note(&chunk[..n]);
                    }
                    if held.send((Instant::now(), chunk[..n].to_vec())).is_err() {
                        return;
                    }
                }
            }
        }
    }

    /// Each of the sidecar's connections says who it is with its first command (its second, with a password).
    fn note(&self, said: &[u8]) {
        let is_channel = said.windows(CHANNEL.len()).any(|w| w == CHANNEL);
        if is_channel {
            self.channel.store(true, Relaxed);
        }
        self.counts.store(!self.channel.load(Relaxed), Relaxed);
    }

    fn deliver(&self, dir: Dir, waiting: &Receiver<Held>) {
        let mut to = if dir == Dir::Up { &self.upstream } else { &self.sidecar };
        let mut lost = false;
        while let Ok((received, bytes)) = waiting.recv() {
            match self.wait_turn(dir, received) {
                Turn::Deliver(piece) if write_pieces(&mut to, &bytes, piece).is_ok() => {
                    self.bytes[dir as usize].fetch_add(bytes.len() as u64, Relaxed);
                }
                Turn::Lose => lost = true,
                _ => return self.cut(),
            }
        }
        // The end of a stream travels like its bytes: a stalled link holds it, a hole swallows it.
        if !lost && matches!(self.wait_turn(dir, Instant::now()), Turn::Deliver(_)) {
            self.cut();
        }
    }

    fn wait_turn(&self, dir: Dir, received: Instant) -> Turn {
        let mut gates = self.gates();
        loop {
            let gate = gates[dir as usize];
            if self.is_dead() {
                return Turn::Dead;
            }
            if gate.hole {
                return Turn::Lose;
            }
            let left = (received + gate.delay).saturating_duration_since(Instant::now());
            if !gate.stalled && left.is_zero() {
                return Turn::Deliver(gate.piece);
            }
            let wait = if gate.stalled { Duration::from_secs(3600) } else { left };
            gates = self.changed.wait_timeout(gates, wait).unwrap_or_else(|poisoned| poisoned.into_inner()).0;
        }
    }
}

fn write_pieces(to: &mut impl Write, bytes: &[u8], piece: usize) -> std::io::Result<()> {
    if piece == 0 {
        return to.write_all(bytes);
    }
    for part in bytes.chunks(piece) {
        to.write_all(part)?;
        std::thread::sleep(PIECE_APART);
    }
    Ok(())
}

enum Turn {
    /// In pieces of so many bytes; 0: whole.
    Deliver(usize),
    Lose,
    Dead,
}
