//! Opens one connection: names are resolved anew every time and every address is tried, nothing is remembered (DESIGN 6),
//! so a changed DNS record is followed at the next attempt.

use std::io;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpStream, UnixStream, lookup_host};
use tokio::time::timeout;

use crate::config::Endpoint;
use crate::net::Stream;

/// Idle half-open connections are noticed after about 3 s (decision 9): one second of silence, then two probes.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(1);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(1);
const KEEPALIVE_PROBES: u32 = 2;

#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    #[error("{0}: name resolution failed: {1}")]
    Resolve(String, io::Error),
    #[error("{0}: the name has no address")]
    NoAddress(String),
    #[error("{0}: {1}")]
    Connect(String, io::Error),
    #[error("{0}: no connection within {1:?}")]
    Timeout(String, Duration),
}

/// Connects to `endpoint` within `limit` for all addresses together.
pub(crate) async fn connect(endpoint: &Endpoint, limit: Duration) -> Result<Stream, ConnectError> {
    let name = match endpoint {
        Endpoint::Tcp { host, port } => format!("{host}:{port}"),
        Endpoint::Unix(path) => format!("unix:{}", path.display()),
    };
    match timeout(limit, connect_any(endpoint, &name)).await {
        Ok(result) => result,
        Err(_) => Err(ConnectError::Timeout(name, limit)),
    }
}

async fn connect_any(endpoint: &Endpoint, name: &str) -> Result<Stream, ConnectError> {
    let (host, port) = match endpoint {
        Endpoint::Unix(path) => {
            let stream = UnixStream::connect(path).await.map_err(|e| ConnectError::Connect(name.to_owned(), e))?;
            return Ok(Stream::Unix(stream));
        }
        Endpoint::Tcp { host, port } => (host.as_str(), *port),
    };
    let addresses = lookup_host((host, port)).await.map_err(|e| ConnectError::Resolve(name.to_owned(), e))?;
    let mut last = ConnectError::NoAddress(name.to_owned());
    for address in addresses {
        match TcpStream::connect(address).await {
            Ok(stream) => return Ok(Stream::Tcp(prepared(stream))),
            Err(e) => last = ConnectError::Connect(format!("{name} ({address})"), e),
        }
    }
    Err(last)
}

/// Socket options are best effort: a connection that cannot have them is still a connection.
fn prepared(stream: TcpStream) -> TcpStream {
    let keepalive =
        TcpKeepalive::new().with_time(KEEPALIVE_IDLE).with_interval(KEEPALIVE_INTERVAL).with_retries(KEEPALIVE_PROBES);
    if let Err(e) = stream.set_nodelay(true) {
        tracing::debug!("TCP_NODELAY to upstream: {e}");
    }
    if let Err(e) = SockRef::from(&stream).set_tcp_keepalive(&keepalive) {
        tracing::debug!("keepalive to upstream: {e}");
    }
    stream
}
