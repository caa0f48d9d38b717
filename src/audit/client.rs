//! One connection of the audit's, to a sidecar or to upstream itself: commands out, decoded replies in, in order.

use std::time::Duration;

use bytes::BytesMut;
use tokio::io::AsyncReadExt;
use tokio::time::timeout;

use crate::config::{Endpoint, Url};
use crate::net::{ReadHalf, WriteHalf};
use crate::resp::build;
use crate::resp::push::{self, Value};
use crate::resp::reply::{Frame, FrameScanner};
use crate::upstream::connect;

/// Bytes of one reply that are collected: the audit's own values are numbers, CLIENT LIST and INFO some hundred KiB.
const REPLY_MAX: usize = 64 << 20;

const CONNECT_MAX: Duration = Duration::from_secs(5);

/// Why a connection is of no more use.
#[derive(Debug, thiserror::Error)]
pub(super) enum Lost {
    #[error("{0}")]
    Connect(String),
    #[error("the connection was closed")]
    Closed,
    #[error("no answer within {0:?}")]
    Silent(Duration),
    #[error("bytes that are no RESP: {0}")]
    Garbage(String),
    #[error("{command} was refused: {reply}")]
    Refused { command: &'static str, reply: String },
}

/// One command: its words.
pub(super) type Words<'a> = &'a [&'a str];

pub(super) struct Conn {
    rd: ReadHalf,
    wr: WriteHalf,
    rbuf: BytesMut,
    scanner: FrameScanner,
    /// How long an answer may take before it counts as none.
    patience: Duration,
}

impl Conn {
    /// Connects and introduces itself: RESP version, credential, database.
    pub(super) async fn open(to: &Url, resp3: bool, patience: Duration) -> Result<Conn, Lost> {
        let stream = connect(&to.endpoint, CONNECT_MAX).await.map_err(|e| Lost::Connect(e.to_string()))?;
        let (rd, wr) = stream.split();
        let mut conn = Conn { rd, wr, rbuf: BytesMut::new(), scanner: FrameScanner::new(), patience };
        if let Some(password) = &to.password {
            let user = to.username.as_deref().unwrap_or("default");
            conn.expect_ok("AUTH", &["AUTH", user, password.expose()]).await?;
        }
        if resp3 {
            conn.expect_ok("HELLO", &["HELLO", "3"]).await?;
        }
        if to.db != 0 {
            conn.expect_ok("SELECT", &["SELECT", &to.db.to_string()]).await?;
        }
        Ok(conn)
    }

    async fn expect_ok(&mut self, command: &'static str, words: Words<'_>) -> Result<(), Lost> {
        match self.ask(words).await? {
            Value::Error(reply) => Err(Lost::Refused { command, reply }),
            _ => Ok(()),
        }
    }

    pub(super) async fn ask(&mut self, words: Words<'_>) -> Result<Value, Lost> {
        self.send(&[words]).await?;
        self.reply().await
    }

    /// Sends commands in one write.
    pub(super) async fn send(&mut self, commands: &[Words<'_>]) -> Result<(), Lost> {
        let mut out = BytesMut::new();
        for words in commands {
            build::array(&mut out, words.len());
            words.iter().for_each(|word| build::bulk(&mut out, word.as_bytes()));
        }
        match timeout(self.patience, self.wr.write_all(&out)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(Lost::Closed),
            Err(_) => Err(Lost::Silent(self.patience)),
        }
    }

    /// The next reply or message.
    pub(super) async fn reply(&mut self) -> Result<Value, Lost> {
        match timeout(self.patience, self.frame()).await {
            Ok(value) => value,
            Err(_) => Err(Lost::Silent(self.patience)),
        }
    }

    /// The next message, for as long as `wait`; none is no fault then.
    pub(super) async fn message(&mut self, wait: Duration) -> Result<Option<Value>, Lost> {
        match timeout(wait, self.frame()).await {
            Ok(value) => value.map(Some),
            Err(_) => Ok(None),
        }
    }

    /// Safe to drop half-way: what has been read stays in the buffer.
    async fn frame(&mut self) -> Result<Value, Lost> {
        loop {
            match self.scanner.scan(&self.rbuf).map_err(|e| Lost::Garbage(e.to_string()))? {
                Frame::Complete { len } => {
                    let frame = self.rbuf.split_to(len);
                    self.scanner.reset();
                    return push::decode(&frame).ok_or_else(|| Lost::Garbage(frame.escape_ascii().to_string()));
                }
                Frame::Incomplete | Frame::Large if self.rbuf.len() > REPLY_MAX => {
                    return Err(Lost::Garbage("a reply without end".to_owned()));
                }
                Frame::Incomplete | Frame::Large => {}
            }
            match self.rd.read_buf(&mut self.rbuf).await {
                Ok(0) | Err(_) => return Err(Lost::Closed),
                Ok(_) => {}
            }
        }
    }
}

/// A version as a reply has it: a missing key is version 0. `None`: no number at all.
pub(super) fn version(value: &Value) -> Option<i64> {
    match value {
        Value::Null => Some(0),
        Value::Int(n) => Some(*n),
        Value::Str(text) if text.is_empty() => Some(0), // GETRANGE of a missing key
        Value::Str(text) => std::str::from_utf8(text).ok()?.parse().ok(),
        _ => None,
    }
}

/// `host:port`, a socket's path, or a URL as `upstream.url` has it. The error does not quote it: it may hold a password.
pub(super) fn place(text: &str) -> Result<Url, String> {
    let url = if text.contains("://") {
        text.to_owned()
    } else if text.starts_with('/') {
        format!("unix://{text}")
    } else {
        format!("redis://{text}")
    };
    crate::config::parse_url(&url)
}

pub(super) fn shown(endpoint: &Endpoint) -> String {
    match endpoint {
        Endpoint::Tcp { host, port } if host.contains(':') => format!("[{host}]:{port}"),
        Endpoint::Tcp { host, port } => format!("{host}:{port}"),
        Endpoint::Unix(path) => path.display().to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_read_as_people_write_them() {
        let tcp = |host: &str, port| Endpoint::Tcp { host: host.to_owned(), port };
        assert_eq!(place("127.0.0.1:6380").unwrap().endpoint, tcp("127.0.0.1", 6380));
        assert_eq!(place("[::1]:6380").unwrap().endpoint, tcp("::1", 6380));
        assert_eq!(place("/run/n.sock").unwrap().endpoint, Endpoint::Unix("/run/n.sock".into()));
        let url = place("redis://u:p@h:1/3").unwrap();
        assert_eq!((url.endpoint, url.db, url.username.as_deref()), (tcp("h", 1), 3, Some("u")));
        assert!(place("::1:6380").unwrap_err().contains("brackets"));
    }

    #[test]
    fn versions_are_numbers_or_nothing() {
        assert_eq!(version(&Value::Null), Some(0));
        assert_eq!(version(&Value::Str(b"17".to_vec())), Some(17));
        assert_eq!(version(&Value::Str(b"x".to_vec())), None);
        assert_eq!(version(&Value::Error("ERR".to_owned())), None);
    }
}
