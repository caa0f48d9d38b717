//! Accepts and drives connections until told to stop. Bounds them in number, in size of a request's head, in the time to
//! send it and in the time to take the answer, so that nobody at this port can make the process grow. Knows no route.

use std::convert::Infallible;
use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::body::Payload;
use super::{HttpConfig, api, routes};
use crate::observe::{View, stamp};

/// Start line and headers of one request; probes and scrapers send some 300 bytes, browsers with cookies a few KiB.
const HEAD_MAX: usize = 16 * 1024;

/// Headers of one request; browsers send about 20.
const HEADERS_MAX: usize = 64;

/// How long a peer may take; tests are less patient.
#[derive(Clone, Copy)]
pub(super) struct Timeouts {
    /// For a request's head to arrive, idle time before it included.
    pub(super) head: Duration,
    /// For a peer to take what was sent before its connection is given up. With `max_connections` it bounds what readers
    /// that have fallen asleep can hold.
    pub(super) write: Duration,
}

impl Default for Timeouts {
    /// Ten seconds each: probes and scrapes end within one. Who scrapes less often than that connects again.
    fn default() -> Self {
        let patience = Duration::from_secs(10);
        Self { head: patience, write: patience }
    }
}

/// How long running answers may take once the server is told to stop.
pub(super) const STOP_TIMEOUT: Duration = Duration::from_secs(1);

/// After a failed accept (no file descriptor left): long enough not to spin, short enough for a probe to succeed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Bytes that the kernel keeps of what a peer has not taken. By default it would let them grow to some megabytes for each
/// stream that nobody reads; a scrape of ten thousand series goes through this in a few round trips.
const SEND_BUFFER: usize = 128 * 1024;

/// Said to connections beyond `max_connections`, so that a scraper logs a reason and not a reset.
fn busy() -> String {
    let (version, at) = (env!("CARGO_PKG_VERSION"), stamp::now());
    let error = r#""error":{"code":"busy","message":"http.max_connections is reached"}"#;
    let body = format!("{{\"version\":\"{version}\",\"at\":\"{at}\",{error}}}\n");
    format!(
        "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\ncache-control: no-store\r\n\
         connection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// What every connection needs.
struct Shared {
    http: http1::Builder,
    timeouts: Timeouts,
    routes: routes::Routes,
    tasks: TaskTracker,
    permits: Arc<Semaphore>,
    stop: CancellationToken,
}

/// Serves until `stopped` says so or its other end is dropped.
pub(super) async fn serve(
    listeners: Vec<StdListener>,
    config: HttpConfig,
    timeouts: Timeouts,
    view: Arc<View>,
    stopped: oneshot::Receiver<()>,
) {
    let shared = Arc::new(Shared {
        http: builder(timeouts),
        timeouts,
        permits: Arc::new(Semaphore::new(config.max_connections.clamp(1, Semaphore::MAX_PERMITS))),
        routes: routes::Routes::new(config, view),
        tasks: TaskTracker::new(),
        stop: CancellationToken::new(),
    });
    for listener in listeners {
        match TcpListener::from_std(listener) {
            Ok(listener) => drop(tokio::spawn(accept(listener, shared.clone()))),
            Err(error) => tracing::error!(%error, "an address of the side port cannot be served"),
        }
    }
    let beating = shared.clone();
    shared.tasks.spawn(async move { api::events::beat(&beating.routes, &beating.stop).await });
    let _ = stopped.await;
    shared.stop.cancel();
    shared.tasks.close();
    let _ = tokio::time::timeout(STOP_TIMEOUT, shared.tasks.wait()).await;
}

fn builder(timeouts: Timeouts) -> http1::Builder {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(timeouts.head)
        .max_buf_size(HEAD_MAX)
        .max_header_size(HEAD_MAX)
        .max_headers(HEADERS_MAX);
    http
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let mut failing = false;
    loop {
        let accepted = tokio::select! {
            () = shared.stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                failing = false;
                admit(stream, peer, &shared);
            }
            Err(error) => {
                // One line for each run of failures: without file descriptors there are twenty a second.
                if !std::mem::replace(&mut failing, true) {
                    tracing::warn!(%error, "the side port cannot accept connections");
                }
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn admit(stream: TcpStream, peer: SocketAddr, shared: &Arc<Shared>) {
    let Ok(permit) = shared.permits.clone().try_acquire_owned() else {
        // A fresh socket's buffer is empty: it takes this many bytes, or the peer is gone.
        let _ = stream.try_write(busy().as_bytes());
        return;
    };
    if let Err(error) = configure(&stream, shared.timeouts) {
        tracing::debug!(%error, "a connection to the side port was gone before it began");
        return;
    }
    shared.tasks.spawn(connection(stream, peer, shared.clone(), permit));
}

fn configure(stream: &TcpStream, timeouts: Timeouts) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    socket.set_send_buffer_size(SEND_BUFFER)?;
    socket.set_tcp_user_timeout(Some(timeouts.write))
}

async fn connection(stream: TcpStream, peer: SocketAddr, shared: Arc<Shared>, _permit: OwnedSemaphorePermit) {
    let answer = service_fn(|request: Request<Incoming>| {
        let routes = &shared.routes;
        async move { Ok::<Response<Payload>, Infallible>(routes.respond(peer, request).await) }
    });
    let served = shared.http.serve_connection(TokioIo::new(stream), answer);
    tokio::pin!(served);
    let result = tokio::select! {
        result = served.as_mut() => result,
        () = shared.stop.cancelled() => {
            served.as_mut().graceful_shutdown();
            served.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, "a connection to the side port ended early");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_busy_answer_has_the_length_it_says() {
        let text = busy();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("content-length: {}", body.len())), "{}", body.len());
        assert!(serde_json::from_str::<serde_json::Value>(body).is_ok());
    }
}
