//! `listen` and `http`: where clients and the side port come in, and what one connection may take.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::{CONNECTIONS_MAX, GIB, KIB, MIB, Resolver, TCP_DEFAULT, secs};
use crate::config::units::{self, DURATION_MAX, SIZE_MAX, shown};
use crate::config::{Http, Listen};

const HTTP_DEFAULT: &str = "127.0.0.1:9380";

/// A client that is given less could not even receive an answer of usual size.
const OUTPUT_MIN: u64 = 16 * KIB;

/// The least that Redis allows for `client-query-buffer-limit`.
const QUERY_MIN: u64 = MIB;

/// The longest path a unix socket address holds on Linux, without its closing zero.
const SOCKET_PATH_MAX: usize = 107;

impl Resolver<'_> {
    pub(super) fn listen(&mut self) -> Listen {
        let tcp = self.list("listen.tcp", &TCP_DEFAULT, address);
        // By value, so that the printed configuration behaves as the one it was printed from.
        let tcp_is_default = tcp.iter().map(SocketAddr::to_string).eq(TCP_DEFAULT);
        Listen {
            tcp,
            tcp_is_default,
            unix: self.one("listen.unix", None, |text| socket_path(text).map(Some)),
            unix_mode: self.one("listen.unix_mode", 0o660, file_mode),
            protected: self.one("listen.protected", true, units::boolean),
            max_clients: self.count("listen.max_clients", 10_000, 1..=CONNECTIONS_MAX),
            idle_timeout: self.timeout("listen.idle_timeout"),
            output_limit: self.size("listen.output_limit", 64 * MIB, OUTPUT_MIN..=SIZE_MAX),
            query_limit: self.size("listen.query_limit", GIB, QUERY_MIN..=SIZE_MAX),
            buffers_max: self.size("listen.buffers_max", 128 * MIB, OUTPUT_MIN..=SIZE_MAX),
            drain_delay: self.duration("listen.drain_delay", Duration::ZERO, Duration::ZERO..=DURATION_MAX),
            drain_timeout: self.duration("listen.drain_timeout", secs(10), Duration::ZERO..=DURATION_MAX),
        }
    }

    pub(super) fn http(&mut self) -> Http {
        let (token, token_file) = self.password("http.token_file");
        Http {
            token,
            token_file,
            listen: self.http_listen(),
            allowed_hosts: self.list("http.allowed_hosts", &[], host_name),
            max_connections: self.count("http.max_connections", 256, 1..=CONNECTIONS_MAX),
            dashboard: self.one("http.dashboard", true, units::boolean),
        }
    }

    /// `http.listen` alone: the health command needs no upstream.
    pub(in crate::config) fn http_listen(&mut self) -> Vec<SocketAddr> {
        self.list("http.listen", &[HTTP_DEFAULT], address)
    }
}

fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| {
        format!(
            "{} is not an address; use ip:port, for example 127.0.0.1:6380, 0.0.0.0:6380 or [::1]:6380",
            shown(text)
        )
    })
}

/// Names only: addresses are always allowed, and a port is not part of what is compared.
fn host_name(text: &str) -> Result<String, String> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'.' || b == b'_';
    if text.is_empty() || !text.bytes().all(plain) {
        return Err(format!("{} is not a host name; write it without scheme and port", shown(text)));
    }
    Ok(text.to_ascii_lowercase())
}

fn socket_path(text: &str) -> Result<PathBuf, String> {
    if text.len() > SOCKET_PATH_MAX || text.contains('\0') {
        return Err(format!("a socket's path has at most {SOCKET_PATH_MAX} bytes, and no zero"));
    }
    Ok(PathBuf::from(text))
}

fn file_mode(text: &str) -> Result<u32, String> {
    let digits = text.strip_prefix("0o").unwrap_or(text);
    let octal = !digits.is_empty() && digits.bytes().all(|b| (b'0'..=b'7').contains(&b));
    let mode = u32::from_str_radix(digits, 8).ok().filter(|mode| octal && *mode <= 0o777);
    mode.ok_or_else(|| {
        format!("{} is not a file mode; use octal digits from 0000 to 0777, for example \"0660\"", shown(text))
    })
}
