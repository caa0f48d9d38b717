//! `upstream.url`: where upstream is, which database, and credentials written inline. Used while configuration is
//! resolved. It resolves no names and opens nothing. Its messages never quote the URL: a password may be anywhere in a
//! URL that is written wrongly.

use std::path::PathBuf;

use super::{Endpoint, Secret};

/// In place of a URL: no upstream, the local engine.
pub(super) const EMBEDDED: &str = "embedded";

/// The port Redis has always had.
const DEFAULT_PORT: u16 = 6379;

/// `SELECT` takes a C int.
const DB_MAX: u32 = i32::MAX as u32;

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Url {
    pub(crate) endpoint: Endpoint,
    pub(crate) db: u32,
    pub(crate) username: Option<String>,
    pub(crate) password: Option<Secret>,
}

impl Url {
    /// Stands in where the URL is missing or wrong, so that the other keys are still checked; never used.
    pub(super) fn nowhere() -> Url {
        let endpoint = Endpoint::Tcp { host: String::new(), port: DEFAULT_PORT };
        Url { endpoint, db: 0, username: None, password: None }
    }
}

/// Reads `redis://[user[:password]@]host[:port][/db]` or `unix://[user[:password]@]/path[?db=N]`.
pub(crate) fn parse(text: &str) -> Result<Url, String> {
    let (scheme, rest) = text.split_once("://").ok_or("is not a URL; write redis://host:port or unix:///path")?;
    match scheme.to_ascii_lowercase().as_str() {
        "redis" => tcp(rest),
        "unix" => unix(rest),
        "rediss" => Err("TLS to upstream is not supported yet; use redis:// or unix://".to_owned()),
        _ => Err("must begin with redis:// or unix://".to_owned()),
    }
}

fn tcp(rest: &str) -> Result<Url, String> {
    // The last '@', so that a password with '@', '/' or '?' in it works without percent signs, as most clients allow.
    let (userinfo, rest) = match rest.rsplit_once('@') {
        Some((userinfo, rest)) => (Some(userinfo), rest),
        None => (None, rest),
    };
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let (host, port) = host_and_port(authority)?;
    let db = match (path.trim_end_matches('/'), query) {
        ("", query) => query_db(query)?,
        (path, "") => db(path)?,
        _ => return Err("names the database twice; write /db or ?db=, not both".to_owned()),
    };
    let (username, password) = credentials(userinfo)?;
    Ok(Url { endpoint: Endpoint::Tcp { host, port }, db, username, password })
}

fn unix(rest: &str) -> Result<Url, String> {
    let (userinfo, rest) = match rest.rsplit_once("@/") {
        Some((userinfo, path)) if !rest.starts_with('/') => (Some(userinfo), format!("/{path}")),
        _ => (None, rest.to_owned()),
    };
    let (path, query) = rest.split_once('?').unwrap_or((&rest, ""));
    if !path.starts_with('/') || path == "/" {
        return Err("names no socket; write unix:///path, with three slashes".to_owned());
    }
    let (username, password) = credentials(userinfo)?;
    let path = PathBuf::from(decoded(path)?);
    Ok(Url { endpoint: Endpoint::Unix(path), db: query_db(query)?, username, password })
}

fn host_and_port(authority: &str) -> Result<(String, u16), String> {
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (host, port) = rest.split_once(']').ok_or("has a '[' without ']'")?;
            if host.parse::<std::net::Ipv6Addr>().is_err() {
                return Err("has brackets around something that is no IPv6 address".to_owned());
            }
            (host, port)
        }
        None if authority.matches(':').count() > 1 => {
            return Err("has an IPv6 address without brackets; write redis://[::1]:6379".to_owned());
        }
        None => authority.split_at(authority.find(':').unwrap_or(authority.len())),
    };
    let odd = |c: char| c.is_whitespace() || c.is_control();
    if host.is_empty() || host.contains(odd) {
        return Err("names no host; write redis://host:port".to_owned());
    }
    Ok((host.to_owned(), port_of(port)?))
}

fn port_of(text: &str) -> Result<u16, String> {
    if text.is_empty() || text == ":" {
        return Ok(DEFAULT_PORT);
    }
    let port = text.strip_prefix(':').and_then(|p| p.parse().ok()).filter(|p| *p > 0);
    port.ok_or_else(|| "has a port that is not a number from 1 to 65535".to_owned())
}

fn query_db(query: &str) -> Result<u32, String> {
    if query.is_empty() {
        return Ok(0);
    }
    let value = query.strip_prefix("db=").filter(|v| !v.contains('&'));
    value.map_or_else(|| Err("has parameters other than db=N, which are not supported".to_owned()), db)
}

fn db(text: &str) -> Result<u32, String> {
    let number = text.parse().ok().filter(|n| *n <= DB_MAX);
    number.ok_or_else(|| "has a database that is not a number, for example redis://host:6379/0".to_owned())
}

/// `user`, `user:password` or `:password`. A user without a password is left to the caller: `password_file` may have it.
fn credentials(userinfo: Option<&str>) -> Result<(Option<String>, Option<Secret>), String> {
    let Some(userinfo) = userinfo else {
        return Ok((None, None));
    };
    let (user, password) = match userinfo.split_once(':') {
        Some((user, password)) => (user, Some(Secret::new(decoded(password)?))),
        None => (userinfo, None),
    };
    let user = decoded(user)?;
    Ok(((!user.is_empty()).then_some(user), password))
}

/// Percent-decoding. A '%' that begins no code stands for itself: it is in a password somebody did not encode.
fn decoded(text: &str) -> Result<String, String> {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let code = bytes.get(at..at + 3).and_then(percent_code);
        out.push(code.unwrap_or(bytes[at]));
        at += if code.is_some() { 3 } else { 1 };
    }
    String::from_utf8(out).map_err(|_| "has percent codes that are not UTF-8".to_owned())
}

fn percent_code(code: &[u8]) -> Option<u8> {
    let &[b'%', high, low] = code else {
        return None;
    };
    let digit = |d: u8| char::from(d).to_digit(16);
    u8::try_from(digit(high)? * 16 + digit(low)?).ok()
}

/// The URL without credentials, as it is logged and printed; `parse` reads it back.
pub(super) fn show(endpoint: &Endpoint, db: u32) -> String {
    match endpoint {
        Endpoint::Tcp { host, port } if host.contains(':') => {
            format!("redis://[{host}]:{port}/{db}")
        }
        Endpoint::Tcp { host, port } => format!("redis://{host}:{port}/{db}"),
        Endpoint::Unix(path) => {
            let path = path.to_string_lossy().replace('%', "%25").replace('?', "%3F");
            format!("unix://{path}?db={db}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp_at(host: &str, port: u16, db: u32) -> Url {
        let endpoint = Endpoint::Tcp { host: host.to_owned(), port };
        Url { endpoint, db, username: None, password: None }
    }

    fn login(text: &str) -> (Option<String>, Option<String>) {
        let url = parse(text).unwrap();
        (url.username, url.password.map(|p| p.expose().to_owned()))
    }

    #[test]
    fn hosts_ports_and_databases() {
        for (text, url) in [
            ("redis://127.0.0.1:6380", tcp_at("127.0.0.1", 6380, 0)),
            ("redis://cache.internal", tcp_at("cache.internal", 6379, 0)),
            ("REDIS://h:1/5", tcp_at("h", 1, 5)),
            ("redis://h/", tcp_at("h", 6379, 0)),
            ("redis://h?db=3", tcp_at("h", 6379, 3)),
            ("redis://[::1]:7000/2", tcp_at("::1", 7000, 2)),
            ("redis://[::1]", tcp_at("::1", 6379, 0)),
        ] {
            assert_eq!(parse(text), Ok(url), "{text}");
        }
    }

    #[test]
    fn unix_sockets() {
        let url = parse("unix:///run/a@b.sock?db=4").unwrap();
        assert_eq!((url.endpoint, url.db), (Endpoint::Unix("/run/a@b.sock".into()), 4));
        assert_eq!(login("unix://me:pw@/run/x.sock"), (Some("me".to_owned()), Some("pw".to_owned())));
    }

    #[test]
    fn credentials_are_decoded_and_may_hold_any_character() {
        let some = |s: &str| Some(s.to_owned());
        assert_eq!(login("redis://u:p%40ss@h"), (some("u"), some("p@ss")));
        assert_eq!(login("redis://:a/b?c@d:e@h:1/2"), (None, some("a/b?c@d:e")));
        assert_eq!(login("redis://u@h"), (some("u"), None));
        assert_eq!(login("redis://u:@h"), (some("u"), some("")));
        assert_eq!(login("redis://:100%@h"), (None, some("100%")));
    }

    #[test]
    fn what_is_wrong_is_said_without_quoting_the_url() {
        for (text, part) in [
            ("hunter2@127.0.0.1:6379", "redis://host:port"),
            ("rediss://:hunter2@h", "TLS to upstream is not supported yet"),
            ("http://hunter2@h", "redis:// or unix://"),
            ("redis://hunter2@", "names no host"),
            ("redis://:hunter2@h:99999", "port"),
            ("redis://:hunter2@h:0", "port"),
            ("redis://:hunter2@::1:6379", "brackets"),
            ("redis://:hunter2@[zz]:6379", "IPv6"),
            ("redis://:hunter2@h/x", "database"),
            ("redis://:hunter2@h/1?db=1", "twice"),
            ("redis://h?password=hunter2", "parameters"),
            ("unix://run/hunter2", "three slashes"),
            ("redis://:%ffhunter2@h", "UTF-8"),
        ] {
            let message = parse(text).unwrap_err();
            assert!(message.contains(part), "{text}: {message}");
            assert!(!message.contains("hunter2"), "{text}: {message}");
        }
    }

    #[test]
    fn what_is_shown_reads_back() {
        for text in ["redis://h:1/5", "redis://[::1]:7000/2", "unix:///run/r.sock?db=4", "unix:///a%3Fb%25c?db=0"] {
            let url = parse(text).unwrap();
            assert_eq!(show(&url.endpoint, url.db), text);
        }
    }
}
