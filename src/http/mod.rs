//! The side port: health, metrics and debugging over HTTP/1.1, on a thread of its own so that a slow scrape never delays a
//! reply. It reads what `observe` and `live` hold; the changes it takes are handed to the data thread (`change`: what is to be
//! dropped; `live`: rules, mode, reload). No TLS.

mod alerts;
mod api;
mod body;
mod candidates;
mod change;
mod costs;
mod experiments;
mod health;
mod keys;
mod live;
mod page;
mod policy;
mod query;
mod routes;
mod server;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread::JoinHandle;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::sync::{mpsc, oneshot};

pub(crate) use change::{ORDERS_MAX, Order};

use crate::live::Running;
use crate::observe::View;
use server::Timeouts;

/// Connections the kernel keeps until they are accepted.
const BACKLOG: i32 = 128;

pub(crate) struct HttpConfig {
    pub(crate) listen: Vec<SocketAddr>,
    pub(crate) max_connections: usize,
    /// `environment: production`: no /internal.
    pub(crate) production: bool,
    /// Which names a `Host` header may carry beside `localhost` and any IP address, which token a change must bring, and
    /// what there is to be shown of the configuration.
    pub(crate) running: Arc<Running>,
    /// To the data thread.
    pub(crate) orders: mpsc::Sender<Order>,
}

/// The running server. Dropping it stops it too, without waiting for its thread.
pub(crate) struct Http {
    /// Where it listens; the ports the kernel chose for port 0.
    pub(crate) addresses: Vec<SocketAddr>,
    stop: oneshot::Sender<()>,
    thread: JoinHandle<()>,
}

/// Binds every address, or fails naming the one that cannot be had, and serves on a new thread.
pub(crate) fn start(config: HttpConfig, view: Arc<View>) -> io::Result<Http> {
    start_with(config, Timeouts::default(), view)
}

fn start_with(config: HttpConfig, timeouts: Timeouts, view: Arc<View>) -> io::Result<Http> {
    let listeners = config.listen.iter().map(|at| bind(*at, &config.listen)).collect::<io::Result<Vec<_>>>()?;
    let addresses = listeners.iter().map(TcpListener::local_addr).collect::<io::Result<_>>()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (stop, stopped) = oneshot::channel();
    let thread = std::thread::Builder::new()
        .name("nearside-http".into())
        .spawn(move || runtime.block_on(server::serve(listeners, config, timeouts, view, stopped)))?;
    Ok(Http { addresses, stop, thread })
}

impl Http {
    /// Accepts nothing more, lets running answers end (`server::STOP_TIMEOUT` at most), and waits for the thread.
    pub(crate) fn shutdown(self) {
        let _ = self.stop.send(());
        // A panic of that thread has been reported by its hook; the rest of the shutdown goes on.
        let _ = self.thread.join();
    }
}

fn bind(at: SocketAddr, all: &[SocketAddr]) -> io::Result<TcpListener> {
    listener(at, all).map_err(|error| io::Error::new(error.kind(), format!("http.listen {at}: {error}")))
}

fn listener(at: SocketAddr, all: &[SocketAddr]) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(at), Type::STREAM, Some(Protocol::TCP))?;
    // A restart must not wait for the old process's connections in TIME_WAIT.
    socket.set_reuse_address(true)?;
    // [::]:P and 0.0.0.0:P can stand beside each other only if the first leaves IPv4 alone; on its own it takes both.
    if at.is_ipv6() && all.iter().any(|other| other.is_ipv4() && other.port() == at.port()) {
        socket.set_only_v6(true)?;
    }
    socket.bind(&at.into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests;
