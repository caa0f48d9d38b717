//! Opens one connection: names are resolved anew every time and every address is tried, nothing is remembered (DESIGN 6),
//! so a changed DNS record is followed at the next attempt.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpStream, UnixStream, lookup_host};
use tokio::time::{Instant, timeout, timeout_at};

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
    #[error("{0}: the name was not resolved within {1:?}")]
    Unresolved(String, Duration),
    #[error("{0}: the name has no address")]
    NoAddress(String),
    #[error("{0}: {1}")]
    Connect(String, io::Error),
    #[error("{0}: no connection within {1:?}")]
    Timeout(String, Duration),
}

/// Connects to `endpoint` within `limit`: the look-up of its name and all its addresses together.
pub(crate) async fn connect(endpoint: &Endpoint, limit: Duration) -> Result<Stream, ConnectError> {
    let end = Instant::now() + limit;
    let name = match endpoint {
        Endpoint::Tcp { host, port } => format!("{host}:{port}"),
        Endpoint::Unix(path) => format!("unix:{}", path.display()),
    };
    let connected = match endpoint {
        Endpoint::Unix(path) => timeout_at(end, UnixStream::connect(path)).await.map(|done| done.map(Stream::Unix)),
        Endpoint::Tcp { host, port } => match timeout_at(end, lookup_host((host.as_str(), *port))).await {
            Ok(Ok(addresses)) => return first_of(&addresses.collect::<Vec<_>>(), &name, end).await,
            Ok(Err(e)) => return Err(ConnectError::Resolve(name, e)),
            Err(_) => return Err(ConnectError::Unresolved(name, limit)),
        },
    };
    match connected {
        Ok(done) => done.map_err(|e| ConnectError::Connect(name, e)),
        Err(_) => Err(ConnectError::Timeout(name, limit)),
    }
}

/// One after the other, each within its share of the time that is left: an address that swallows what is sent there (an
/// IPv6 route that leads nowhere) must not keep the next one from being tried.
async fn first_of(addresses: &[SocketAddr], name: &str, end: Instant) -> Result<Stream, ConnectError> {
    let mut last = ConnectError::NoAddress(name.to_owned());
    for (tried, &address) in addresses.iter().enumerate() {
        let left = u32::try_from(addresses.len() - tried).unwrap_or(u32::MAX);
        let share = end.saturating_duration_since(Instant::now()) / left;
        // A name that is the address says it once.
        let what = if address.to_string() == name { name.to_owned() } else { format!("{name} ({address})") };
        match timeout(share, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => return Ok(Stream::Tcp(prepared(stream))),
            Ok(Err(e)) => last = ConnectError::Connect(what, e),
            Err(_) => last = ConnectError::Timeout(what, share),
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

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use socket2::{Domain, Socket, Type};

    use super::*;

    /// Listens, has no room for one more connection, and so leaves further ones without an answer.
    fn swallowing() -> (Socket, Vec<Socket>, SocketAddr) {
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        listener.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).expect("bound");
        listener.listen(0).expect("listening");
        let address = listener.local_addr().expect("an address");
        let fill = |_| {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
            socket.set_nonblocking(true).expect("nonblocking");
            let _in_progress = socket.connect(&address);
            socket
        };
        let fillers = (0..4).map(fill).collect();
        (listener, fillers, address.as_socket().expect("IPv4"))
    }

    #[tokio::test]
    async fn an_address_that_swallows_everything_leaves_time_for_the_next() {
        let (_listener, _fillers, deaf) = swallowing();
        let alive = TcpListener::bind("127.0.0.1:0").expect("a listener");
        let addresses = [deaf, alive.local_addr().expect("an address")];
        let end = || Instant::now() + Duration::from_millis(400);
        let found = first_of(&addresses, "redis:6379", end()).await.expect("the second one");
        let Stream::Tcp(found) = found else { panic!("not TCP") };
        assert_eq!(found.peer_addr().expect("a peer"), addresses[1]);
        // Alone, it is a timeout that names both.
        let error = first_of(&addresses[..1], "redis:6379", end()).await.expect_err("nothing answers");
        assert!(matches!(&error, ConnectError::Timeout(what, _) if *what == format!("redis:6379 ({deaf})")), "{error}");
    }

    #[tokio::test]
    async fn an_error_says_an_address_once() {
        let gone = TcpListener::bind("127.0.0.1:0").expect("a listener").local_addr().expect("an address");
        let endpoint = Endpoint::Tcp { host: gone.ip().to_string(), port: gone.port() };
        let error = connect(&endpoint, Duration::from_secs(5)).await.expect_err("refused").to_string();
        assert!(error.starts_with(&format!("{gone}: Connection refused")), "{error}");
    }
}
