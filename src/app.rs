//! The composition root: the only file that knows every part. Starts them in order (limits, listeners, side port, data
//! thread), says so in one line, and ends them in order when the signal comes.

use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, UnixListener};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::LocalSet;
use tokio::time::{sleep, timeout};

use crate::cache::{Bounds, L1};
use crate::coherence::{self, Channel, Message};
use crate::config::{Backend, Config, Eviction, Listen};
use crate::front::{self, Workers};
use crate::http::{self, HttpConfig, Order};
use crate::live::{self, Origin};
use crate::net::Stream;
use crate::observe::View;
use crate::observe::events::Actor;
use crate::observe::log::TOLD_EVERY;
use crate::observe::metrics::Metrics;
use crate::observe::reasons::{Coherence, Mode, Reject, Replayed, Source};
use crate::observe::stamp;
use crate::observe::status::Status;
use crate::outage::journal::{self, OpenError};
use crate::session::{self, Peering, Session};
use crate::worker::ledger::{Before, Ledger};
use crate::worker::{self, Ctx};

/// What a connection beyond the clients needs of open files: lanes, the side port, logs, and some air.
const SPARE_FILES: u64 = 128;

/// Pending connections the kernel keeps (it cuts it to its own limit).
const BACKLOG: i32 = 1024;

/// `accept` has failed for want of something (files, memory): wait before asking again.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The first log line waits so long for upstream, so that it can say what became of it.
const FIRST_CONTACT: Duration = Duration::from_millis(50);

#[derive(Debug, thiserror::Error)]
pub(crate) enum AppError {
    #[error("cannot listen on {0}: {1}")]
    Listen(String, io::Error),
    #[error("cannot listen anywhere: no address family of listen.tcp is available on this host")]
    Nowhere,
    #[error("the side port: {0}")]
    Http(io::Error),
    #[error("{0}")]
    Mutation(String),
    #[error("{0}")]
    Journal(#[from] OpenError),
    #[error("starting the runtime: {0}")]
    Runtime(io::Error),
}

/// Where clients come in.
enum Listener {
    /// With the address as configured.
    Tcp(std::net::TcpListener, SocketAddr),
    Unix(std::os::unix::net::UnixListener, String),
}

/// Runs until SIGTERM or SIGINT.
pub(crate) fn serve(mut config: Config, warnings: Vec<String>, origin: Origin) -> Result<(), AppError> {
    for warning in &warnings {
        tracing::warn!("{warning}");
    }
    crate::mutation::announce().map_err(AppError::Mutation)?;
    let loaded = config.clone();
    fit_max_clients(&mut config);
    let listeners = listen(&config.listen)?;
    let backend = config.upstream.backend;
    let metrics = Arc::new(Metrics::with(&worker::setup(&config)));
    let mode = if backend == Backend::Upstream { worker::shown(config.cache.mode) } else { Mode::Off };
    let status = Arc::new(Status::new(backend.as_str(), mode));
    let view = Arc::new(View::new(metrics.clone(), status.clone()));
    let bounds = Bounds {
        max_bytes: config.cache.max_bytes,
        max_entries: config.cache.max_entries,
        lru: config.cache.eviction == Eviction::Lru,
    };
    let l1 = Arc::new(L1::new(bounds, metrics.clone()));
    let ctx = Ctx::new(Arc::new(config), l1, metrics, status);
    ctx.live.begin(loaded, origin);
    ctx.metrics.reloaded_at.set(stamp::unix_ms());
    let journal = open_journal(&ctx)?;
    let (orders, inbox) = mpsc::channel(http::ORDERS_MAX);
    let http = http::start(http_config(&ctx, orders), view).map_err(AppError::Http)?;
    let workers = start_workers(&ctx).map_err(AppError::Runtime)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(AppError::Runtime)?;
    let served =
        LocalSet::new().block_on(&runtime, run(ctx.clone(), workers, listeners, &http.addresses, (inbox, journal)));
    coherence::save_last_run(&ctx);
    if let Some(path) = &ctx.config.listen.unix {
        let _ = std::fs::remove_file(path);
    }
    http.shutdown();
    served
}

fn http_config(ctx: &Ctx, orders: mpsc::Sender<Order>) -> HttpConfig {
    let config = &ctx.config;
    HttpConfig {
        listen: config.http.listen.clone(),
        max_connections: config.http.max_connections,
        running: ctx.live.running().clone(),
        orders,
        production: config.environment == crate::config::Environment::Production,
    }
}

/// What `outage.journal_dir` holds; nothing where nothing is queued for an upstream.
fn open_journal(ctx: &Ctx) -> Result<Option<Before>, AppError> {
    let outage = &ctx.config.outage;
    let Some(dir) = outage.journal_dir.as_deref().filter(|_| ctx.config.upstream.backend == Backend::Upstream) else {
        return Ok(None);
    };
    let settings = journal::Settings { dir, fsync: outage.journal_fsync, max_bytes: outage.journal_max_bytes };
    Ok(Some(Ledger::open(&settings, ctx.metrics.clone())?))
}

/// What was acknowledged and waits for upstream is done, if upstream comes back in time. What the journal keeps does not wait
/// for one that is gone.
fn waits_for_queues(ctx: &Ctx) -> bool {
    ctx.held.depth() > 0 && !(ctx.held.ledger().is_some() && ctx.is_gone())
}

/// What becomes of writes that upstream has not got, now that this process ends.
fn end_queues(ctx: &Ctx) {
    let left = ctx.held.depth();
    if let Some(ledger) = ctx.held.ledger() {
        ledger.close();
        let all = left + ledger.orphans();
        if all > 0 {
            tracing::info!("{all} acknowledged writes stay in outage.journal_dir, for the next start");
        }
    } else if left > 0 {
        ctx.metrics.queue.replayed.add(Replayed::Failed, left as u64);
        tracing::error!("{left} acknowledged writes are lost: upstream did not take them before listen.drain_timeout");
    }
}

/// The threads beside the data thread.
fn start_workers(ctx: &Ctx) -> io::Result<Rc<Workers>> {
    let shared = front::Shared {
        l1: ctx.l1.clone(),
        metrics: ctx.metrics.clone(),
        max_staleness: ctx.max_staleness,
        rules: ctx.rules().clone(),
        prefix: ctx.prefix.clone(),
    };
    Workers::start(ctx.config.workers - 1, &shared).map(Rc::new)
}

async fn run(
    ctx: Rc<Ctx>,
    workers: Rc<Workers>,
    listeners: Vec<Listener>,
    http: &[SocketAddr],
    (inbox, journal): (mpsc::Receiver<Order>, Option<Before>),
) -> Result<(), AppError> {
    let mut term = signal(SignalKind::terminate()).map_err(AppError::Runtime)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(AppError::Runtime)?;
    let hangup = signal(SignalKind::hangup()).map_err(AppError::Runtime)?;
    tokio::task::spawn_local(take_orders(ctx.clone(), inbox));
    // Before anybody is let in: whoever was told that a write is accepted reads it.
    if let Some(before) = journal {
        ctx.begin_journal(before);
    }
    begin_backend(&ctx).await;
    let mut shown = Vec::new();
    let accepting = Rc::new(RefCell::new(Vec::new()));
    for listener in listeners {
        let (name, task) = accept_on(&ctx, &workers, listener)?;
        shown.push(name);
        accepting.borrow_mut().push(task);
    }
    ctx.status.set_started();
    tokio::task::spawn_local(reload_on(ctx.clone(), hangup));
    tokio::task::spawn_local(live::watch(ctx.clone()));
    tokio::task::spawn_local(tell_repeats(ctx.clone()));
    let http: Vec<String> = http.iter().map(SocketAddr::to_string).collect();
    let http = if http.is_empty() { "off".to_owned() } else { http.join(", ") };
    let phase = if ctx.status.ready() { "ready" } else { "serving, not ready: warming first" };
    tracing::info!("{phase}: {}, listening on {}, http {http}", backend_line(&ctx), shown.join(", "));
    ctx.lanes.borrow().values().for_each(|lane| lane.say(&ctx));
    signalled(&mut term, &mut interrupt).await;
    ctx.status.set_draining();
    tracing::info!("draining: {} clients", ctx.sessions.borrow().len());
    tokio::select! {
        () = drain(&ctx, &workers, &accepting) => tracing::info!("stopped"),
        () = signalled(&mut term, &mut interrupt) => tracing::warn!("stopped at once by a second signal"),
    }
    ctx.keep_observed();
    end_queues(&ctx);
    ctx.live.tell_repeats(true);
    Ok(())
}

/// What serves clients besides this process's own memory is started, or that memory is.
async fn begin_backend(ctx: &Rc<Ctx>) {
    match ctx.config.upstream.backend {
        Backend::Upstream => {
            Channel::spawn(ctx);
            tokio::task::spawn_local(worker::rollout::run(ctx.clone()));
            worker::observe::start(ctx);
            coherence::check_prefix(ctx);
            tokio::task::spawn_local(coherence::tell_what_is_hit(ctx.clone()));
            tokio::task::spawn_local(coherence::ask_how_much(ctx.clone()));
            coherence::begin_last_run(ctx);
            coherence::warm(ctx);
            let lane = ctx.lane(&ctx.default_profile);
            let _ = timeout(FIRST_CONTACT, ctx.await_lane(&lane)).await;
        }
        Backend::Local => {
            ctx.status.set_coherence(Coherence::None, "nothing is cached in front of the in-memory engine");
            tokio::task::spawn_local(session::tick(ctx.clone()));
        }
    }
}

/// The backend in the first line of the log; where it is not what most people want in the end, with the next step.
fn backend_line(ctx: &Ctx) -> String {
    let config = &ctx.config;
    match config.upstream.backend {
        Backend::Upstream => format!(
            "cache: {} (impl: l1), upstream {}, coherence {}",
            ctx.mode_word(),
            config.upstream.display(),
            config.coherence.mode.as_str()
        ),
        Backend::Local => "backend: embedded (in memory, nothing is kept; name a Redis with --upstream \
                           redis://127.0.0.1:6379)"
            .to_owned(),
    }
}

/// What the side port was asked to change, with the sidecar's own rights.
async fn take_orders(ctx: Rc<Ctx>, mut inbox: mpsc::Receiver<Order>) {
    while let Some(order) = inbox.recv().await {
        let ctx = ctx.clone();
        tokio::task::spawn_local(async move {
            // Whoever asked may have stopped waiting.
            match order {
                // There are no copies, and nobody else to tell.
                Order::Drop { done, .. } if ctx.embedded().is_some() => {
                    let _ = done.send(Ok(0));
                }
                Order::Drop { messages, done } => {
                    // Whoever asks over HTTP knows keys by their own names.
                    let upstreams = |m: Message| ctx.prefix.as_ref().map_or_else(|| m.clone(), |own| m.upstreams(own));
                    let messages: Vec<Message> = messages.into_iter().map(upstreams).collect();
                    let _ = done.send(coherence::drop_all(&ctx, &ctx.default_profile, &messages, Source::Http).await);
                }
                Order::Change { change, actor, done } => {
                    let _ = done.send(live::change(&ctx, change, &actor).await);
                }
            }
        });
    }
}

/// Each SIGHUP reads the configuration again; those that come meanwhile are one.
async fn reload_on(ctx: Rc<Ctx>, mut hangup: Signal) {
    while hangup.recv().await.is_some() {
        // What is wrong with it has been logged.
        let _ = live::reload(&ctx, &Actor::Sighup).await;
    }
}

/// Which lines of the log were held back because they said the same.
async fn tell_repeats(ctx: Rc<Ctx>) {
    loop {
        sleep(TOLD_EVERY).await;
        ctx.live.tell_repeats(false);
    }
}

async fn signalled(term: &mut Signal, interrupt: &mut Signal) {
    tokio::select! {
        _ = term.recv() => {}
        _ = interrupt.recv() => {}
    }
}

/// `drain_delay` as before, then no new clients, each present one until it has nothing outstanding, `drain_timeout` at the
/// latest.
async fn drain(ctx: &Rc<Ctx>, workers: &Workers, accepting: &RefCell<Vec<tokio::task::JoinHandle<()>>>) {
    sleep(ctx.config.listen.drain_delay).await;
    accepting.borrow_mut().drain(..).for_each(|task| task.abort());
    ctx.drain();
    let all_gone = async {
        // A session ends before the worker has written what it said.
        while !ctx.sessions.borrow().is_empty() || workers.clients() > 0 || waits_for_queues(ctx) {
            sleep(Duration::from_millis(10)).await;
        }
    };
    if timeout(ctx.config.listen.drain_timeout, all_gone).await.is_err() {
        tracing::warn!("listen.drain_timeout is over: {} clients are cut off", ctx.sessions.borrow().len());
    }
}

// ---- listening ----

fn listen(config: &Listen) -> Result<Vec<Listener>, AppError> {
    let mut all = Vec::new();
    for address in &config.tcp {
        match listen_tcp(*address) {
            Ok(listener) => all.push(Listener::Tcp(listener, *address)),
            Err(e) if config.tcp_is_default && lacks_family(&e) => {
                tracing::debug!("not listening on {address}: {e}");
            }
            Err(e) => return Err(AppError::Listen(address.to_string(), e)),
        }
    }
    if let Some(path) = &config.unix {
        let shown = path.display().to_string();
        let listener = listen_unix(path, config.unix_mode).map_err(|e| AppError::Listen(shown.clone(), e))?;
        all.push(Listener::Unix(listener, shown));
    }
    if all.is_empty() { Err(AppError::Nowhere) } else { Ok(all) }
}

fn lacks_family(e: &io::Error) -> bool {
    matches!(e.kind(), io::ErrorKind::AddrNotAvailable | io::ErrorKind::Unsupported)
        || e.raw_os_error() == Some(rustix::io::Errno::AFNOSUPPORT.raw_os_error())
}

fn listen_tcp(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        // `[::]` must not take the IPv4 address that is listed beside it.
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// A socket file that nobody answers on is a leftover and is replaced; one that somebody answers on is an error.
fn listen_unix(path: &Path, mode: u32) -> io::Result<std::os::unix::net::UnixListener> {
    if let Ok(meta) = std::fs::symlink_metadata(path) {
        if !meta.file_type().is_socket() {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, "the path exists and is no socket"));
        }
        if std::os::unix::net::UnixStream::connect(path).is_ok() {
            return Err(io::Error::new(io::ErrorKind::AddrInUse, "another process listens there"));
        }
        std::fs::remove_file(path)?;
    }
    let listener = std::os::unix::net::UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

fn accept_on(
    ctx: &Rc<Ctx>,
    workers: &Rc<Workers>,
    listener: Listener,
) -> Result<(String, tokio::task::JoinHandle<()>), AppError> {
    match listener {
        Listener::Tcp(std, configured) => {
            let address = std.local_addr().map_err(AppError::Runtime)?;
            let listener = TcpListener::from_std(std).map_err(AppError::Runtime)?;
            let task = tokio::task::spawn_local(accept_tcp(ctx.clone(), workers.clone(), listener, configured));
            Ok((address.to_string(), task))
        }
        Listener::Unix(std, path) => {
            let listener = UnixListener::from_std(std).map_err(AppError::Runtime)?;
            let task = tokio::task::spawn_local(accept_unix(ctx.clone(), workers.clone(), listener, path.clone()));
            Ok((format!("unix:{path}"), task))
        }
    }
}

async fn accept_tcp(ctx: Rc<Ctx>, workers: Rc<Workers>, listener: TcpListener, configured: SocketAddr) {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                if let Err(e) = stream.set_nodelay(true) {
                    tracing::debug!("TCP_NODELAY for {peer}: {e}");
                }
                let laddr = stream.local_addr().unwrap_or(configured);
                let near = laddr.ip().to_canonical().is_loopback();
                let peering = Peering {
                    addr: peer.to_string(),
                    laddr: laddr.to_string(),
                    near,
                    unix: false,
                    listener: Some(configured),
                    link: None,
                };
                admit(&ctx, &workers, Stream::Tcp(stream), peering);
            }
            Err(e) => pause(&e).await,
        }
    }
}

async fn accept_unix(ctx: Rc<Ctx>, workers: Rc<Workers>, listener: UnixListener, path: String) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                // As Redis shows a client on its unix socket.
                let name = format!("{path}:0");
                let peering =
                    Peering { addr: name.clone(), laddr: name, near: true, unix: true, listener: None, link: None };
                admit(&ctx, &workers, Stream::Unix(stream), peering);
            }
            Err(e) => pause(&e).await,
        }
    }
}

async fn pause(e: &io::Error) {
    tracing::warn!("accepting a client: {e}");
    sleep(ACCEPT_PAUSE).await;
}

fn admit(ctx: &Rc<Ctx>, workers: &Workers, stream: Stream, mut peering: Peering) {
    let clients = ctx.sessions.borrow().len();
    if clients >= ctx.config.listen.max_clients {
        ctx.metrics.clients_rejected.inc(Reject::MaxClients);
        let (_rd, wr) = stream.split();
        // Best effort, as in Redis: a fresh socket takes so few bytes.
        let _ = wr.try_write(b"-ERR max number of clients reached\r\n");
        return;
    }
    let stream = match workers.take(stream, clients.saturating_sub(workers.clients())) {
        Ok((link, piped)) => {
            peering.link = Some(link);
            piped
        }
        Err(Some(stream)) => stream,
        Err(None) => return,
    };
    let (session, rd) = Session::new(ctx, stream, peering);
    ctx.metrics.clients_accepted.inc();
    // Before its task has run once: of those that come in one go each counts for the next.
    ctx.sessions.borrow_mut().insert(session.id, session.clone());
    ctx.count_clients();
    session::start(ctx.clone(), session, rd);
}

/// Raises the soft limit of open files to what `max_clients` needs, or lowers `max_clients` to what the hard limit allows.
fn fit_max_clients(config: &mut Config) {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    // A client may need a pinned connection besides its own.
    let others = SPARE_FILES + config.upstream.pinned_max as u64 + config.upstream.lanes_max as u64;
    let wanted = config.listen.max_clients as u64 + others;
    let limit = getrlimit(Resource::Nofile);
    let soft = limit.current.unwrap_or(u64::MAX);
    if soft >= wanted {
        return;
    }
    let target = limit.maximum.map_or(wanted, |hard| hard.min(wanted));
    let raised = setrlimit(Resource::Nofile, Rlimit { current: Some(target), maximum: limit.maximum });
    let got = if raised.is_ok() { target } else { soft };
    if got < wanted {
        let fits = usize::try_from(got.saturating_sub(others)).unwrap_or(1).max(1);
        tracing::warn!(
            "listen.max_clients is lowered from {} to {fits}: the limit of open files is {got}",
            config.listen.max_clients
        );
        config.listen.max_clients = fits;
    }
}
