//! The few lines of HTTP/1.1 that a test of the side port needs: one request, one connection, the body whole.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use super::PATIENCE;

pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Response {
    /// A header's value, by its name in any case.
    pub(crate) fn header(&self, name: &str) -> Option<String> {
        let mut lines = self.head.lines().skip(1).filter_map(|line| line.split_once(':'));
        lines.find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.trim().to_string())
    }

    #[track_caller]
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("not JSON: {e}: {}", self.body))
    }
}

#[track_caller]
pub(crate) fn get(address: SocketAddr, path: &str) -> Response {
    try_request(address, "GET", path).unwrap_or_else(|e| panic!("GET http://{address}{path}: {e}"))
}

pub(crate) fn try_request(address: SocketAddr, method: &str, path: &str) -> std::io::Result<Response> {
    exchange(address, method, path, "", "")
}

fn exchange(address: SocketAddr, method: &str, path: &str, head: &str, body: &str) -> std::io::Result<Response> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(stream, "{method} {path} HTTP/1.1\r\nHost: {address}\r\n{head}Connection: close\r\n\r\n{body}")?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
    let status = status.ok_or_else(|| std::io::Error::other(format!("not HTTP: {head:?}")))?;
    let body =
        if head.to_ascii_lowercase().contains("transfer-encoding: chunked") { unchunk(body) } else { body.into() };
    Ok(Response { status, head: head.into(), body })
}

/// POST with a JSON body; `token` is the bearer token.
#[track_caller]
pub(crate) fn post(address: SocketAddr, path: &str, token: Option<&str>, body: &str) -> Response {
    let bearer = token.map_or(String::new(), |token| format!("Authorization: Bearer {token}\r\n"));
    let head = format!("{bearer}Content-Type: application/json\r\nContent-Length: {}\r\n", body.len());
    exchange(address, "POST", path, &head, body).unwrap_or_else(|e| panic!("POST http://{address}{path}: {e}"))
}

/// Any method, with the bearer token, further lines of the head, and a body.
#[track_caller]
pub(crate) fn send(address: SocketAddr, method: &str, path: &str, token: &str, head: &str, body: &str) -> Response {
    let length = body.len();
    let head = format!("Authorization: Bearer {token}\r\n{head}Content-Length: {length}\r\n");
    exchange(address, method, path, &head, body).unwrap_or_else(|e| panic!("{method} http://{address}{path}: {e}"))
}

/// Chunk sizes count bytes; the bodies here are ASCII, where characters are the same.
fn unchunk(mut rest: &str) -> String {
    let mut whole = String::new();
    while let Some((size, tail)) = rest.split_once("\r\n") {
        let size = usize::from_str_radix(size.split(';').next().unwrap_or(""), 16).unwrap_or(0);
        if size == 0 || tail.len() < size {
            break;
        }
        whole.push_str(&tail[..size]);
        rest = tail[size..].trim_start_matches("\r\n");
    }
    whole
}
