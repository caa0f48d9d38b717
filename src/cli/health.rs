//! One question to a running process: is it ready, or what is its configuration? A probe runs this every few seconds, so it opens one connection, asks
//! once and ends; no runtime, no client library, no redirects, no TLS.

use std::{
    fmt,
    io::{self, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, ToSocketAddrs},
    time::Duration,
};

/// For connecting, and for each wait for bytes. Kubernetes gives a probe 1 s by default and kills it then; a person
/// should not wait longer than this for a process that hangs.
const PATIENCE: Duration = Duration::from_secs(5);

/// A small JSON object, or a configuration of at most 1 MiB with what JSON adds to it; whatever sends more is not Nearside.
const ANSWER_MAX: u64 = 4 << 20;

const DEFAULT_PATH: &str = "/health/ready";

/// The side port's own default, for a URL without a port: 80 would be somebody else.
const DEFAULT_PORT: u16 = 9380;

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Target {
    host: String,
    port: u16,
    path: String,
}

impl Target {
    /// Reads `http://host[:port][/path]`; without a path it is readiness that is asked for.
    pub(super) fn from_url(url: &str) -> Result<Target, &'static str> {
        const EXPECTED: &str = "is not understood; write http://host:port, for example http://127.0.0.1:9380";
        let rest = url.strip_prefix("http://").ok_or(EXPECTED)?;
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let odd = |c: char| c.is_whitespace() || c.is_control();
        if authority.is_empty() || authority.contains('@') || url.contains(odd) {
            return Err(EXPECTED);
        }
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => (host, port.parse().map_err(|_| EXPECTED)?),
            _ => (authority, DEFAULT_PORT),
        };
        let path = if path.len() > 1 { path } else { DEFAULT_PATH };
        let host = host.trim_start_matches('[').trim_end_matches(']');
        Ok(Target { host: host.to_owned(), port, path: path.to_owned() })
    }

    /// A listener on all addresses is reached on loopback.
    pub(super) fn from_listener(address: SocketAddr) -> Target {
        let ip = match address.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
            ip => ip,
        };
        Target { host: ip.to_string(), port: address.port(), path: DEFAULT_PATH.to_owned() }
    }

    /// A question to the same process, whatever this one is.
    pub(super) fn path(&self, path: &str) -> Target {
        Target { host: self.host.clone(), port: self.port, path: path.to_owned() }
    }

    /// Where it is asked, without what.
    pub(super) fn place(&self) -> String {
        format!("http://{}", self.authority())
    }

    /// Another question to the same process.
    pub(super) fn at(self, path: &str) -> Target {
        Target { path: path.to_owned(), ..self }
    }

    fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}{}", self.authority(), self.path)
    }
}

#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: String,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum AskError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("the answer is not HTTP")]
    NotHttp,
}

pub(super) fn ask(target: &Target) -> Result<Answer, AskError> {
    let mut stream = connect(target)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let request = format!(
        "GET {} HTTP/1.1\r\nHost: {}\r\nAccept: application/json\r\nConnection: close\r\n\r\n",
        target.path,
        target.authority()
    );
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    stream.take(ANSWER_MAX).read_to_end(&mut answer)?;
    parse(&String::from_utf8_lossy(&answer)).ok_or(AskError::NotHttp)
}

/// Every address of the name, as `localhost` may be ::1 first where only 127.0.0.1 is listened on.
fn connect(target: &Target) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
    for address in (target.host.as_str(), target.port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, PATIENCE) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn parse(answer: &str) -> Option<Answer> {
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status_line = head.lines().next()?;
    let status = status_line.strip_prefix("HTTP/1.")?.split(' ').nth(1)?.parse().ok()?;
    Some(Answer { status, body: body.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn urls_with_and_without_port_and_path() {
        for (url, shown) in [
            ("http://127.0.0.1:9380", "http://127.0.0.1:9380/health/ready"),
            ("http://localhost", "http://localhost:9380/health/ready"),
            ("http://[::1]:1/", "http://[::1]:1/health/ready"),
            ("http://[::1]", "http://[::1]:9380/health/ready"),
            ("http://h:1/health/live", "http://h:1/health/live"),
        ] {
            assert_eq!(Target::from_url(url).unwrap().to_string(), shown);
        }
        for url in
            ["127.0.0.1:9380", "https://h", "http://", "http://h:x", "http://h:1/a b", "http://u@h", "http://h\r\nX: y"]
        {
            assert!(Target::from_url(url).is_err(), "{url}");
        }
    }

    #[test]
    fn a_wildcard_listener_is_asked_on_loopback() {
        let shown = |a: &str| Target::from_listener(a.parse().unwrap()).to_string();
        assert_eq!(shown("0.0.0.0:9380"), "http://127.0.0.1:9380/health/ready");
        assert_eq!(shown("[::]:9380"), "http://[::1]:9380/health/ready");
    }

    fn answered_with(answer: &'static str) -> Result<Answer, AskError> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let target = Target::from_listener(listener.local_addr().unwrap());
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut seen = Vec::new();
            let mut byte = [0];
            while !seen.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap() == 1 {
                seen.push(byte[0]);
            }
            stream.write_all(answer.as_bytes()).unwrap();
            String::from_utf8(seen).unwrap()
        });
        let result = ask(&target);
        let seen = server.join().unwrap();
        assert!(seen.starts_with("GET /health/ready HTTP/1.1\r\nHost: 127.0.0.1:"), "{seen}");
        result
    }

    #[test]
    fn status_and_body_are_returned() {
        let answer = answered_with("HTTP/1.1 503 Service Unavailable\r\ncontent-length: 2\r\n\r\n{}").unwrap();
        assert_eq!((answer.status, answer.body.as_str()), (503, "{}"));
    }

    #[test]
    fn what_is_not_http_is_said_so() {
        assert!(matches!(answered_with("+PONG\r\n"), Err(AskError::NotHttp)));
    }
}
