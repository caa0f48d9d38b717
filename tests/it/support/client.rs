//! A synchronous client that sees bytes: it sends what it is told and reads frames or raw bytes with a deadline.
//! It decodes RESP2 and RESP3 for assertions, keeps pushes apart, and never reconnects.

use std::collections::VecDeque;
use std::fmt;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use super::PATIENCE;

/// One read; large enough that a reply of several MB is not a matter of thousands of system calls.
const CHUNK: usize = 64 * 1024;

/// How much of the unread input a failure message shows.
const SHOWN: usize = 400;

/// A reply as a test wants to compare it. The three spellings of null are one: tests of bytes use `read_reply_raw`.
#[derive(Clone, PartialEq)]
pub(crate) enum Reply {
    Status(Vec<u8>),
    Error(Vec<u8>),
    Int(i64),
    Bulk(Vec<u8>),
    Nil,
    Array(Vec<Reply>),
    Map(Vec<(Reply, Reply)>),
    Set(Vec<Reply>),
    Push(Vec<Reply>),
    Bool(bool),
    /// As text: a double's digits are part of what is tested.
    Double(String),
    BigNumber(String),
    Verbatim(Vec<u8>),
}

impl Reply {
    pub(crate) fn ok() -> Reply {
        Reply::status("OK")
    }

    pub(crate) fn status(text: &str) -> Reply {
        Reply::Status(text.as_bytes().to_vec())
    }

    pub(crate) fn bulk(text: impl AsRef<[u8]>) -> Reply {
        Reply::Bulk(text.as_ref().to_vec())
    }

    pub(crate) fn bulks<T: AsRef<[u8]>>(texts: &[T]) -> Reply {
        Reply::Array(texts.iter().map(Reply::bulk).collect())
    }

    pub(crate) fn is_error(&self) -> bool {
        matches!(self, Reply::Error(_))
    }

    /// The text of a status, error, bulk, verbatim string or number.
    #[track_caller]
    pub(crate) fn text(&self) -> String {
        match self {
            Reply::Status(b) | Reply::Error(b) | Reply::Bulk(b) | Reply::Verbatim(b) => {
                String::from_utf8_lossy(b).into_owned()
            }
            Reply::Int(n) => n.to_string(),
            Reply::Double(text) | Reply::BigNumber(text) => text.clone(),
            other => panic!("no text in {other:?}"),
        }
    }

    #[track_caller]
    pub(crate) fn int(&self) -> i64 {
        match self {
            Reply::Int(n) => *n,
            other => panic!("not an integer: {other:?}"),
        }
    }

    /// The elements of an array, set or push; a map's keys and values in turn.
    #[track_caller]
    pub(crate) fn items(&self) -> Vec<Reply> {
        match self {
            Reply::Array(items) | Reply::Set(items) | Reply::Push(items) => items.clone(),
            Reply::Map(pairs) => pairs.iter().flat_map(|(k, v)| [k.clone(), v.clone()]).collect(),
            other => panic!("no elements in {other:?}"),
        }
    }

    /// The value of `key` in a map, or in the flat array that RESP2 has instead.
    #[track_caller]
    pub(crate) fn get(&self, key: &str) -> Reply {
        let items = self.items();
        let found = items.chunks(2).find(|pair| pair[0] == Reply::bulk(key));
        found.and_then(|pair| pair.get(1)).cloned().unwrap_or_else(|| panic!("no {key:?} in {self:?}"))
    }
}

impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reply::Status(b) => write!(f, "+{}", shown(b)),
            Reply::Error(b) => write!(f, "-{}", shown(b)),
            Reply::Int(n) => write!(f, ":{n}"),
            Reply::Bulk(b) => write!(f, "\"{}\"", shown(b)),
            Reply::Nil => write!(f, "nil"),
            Reply::Array(items) => f.debug_list().entries(items).finish(),
            Reply::Set(items) => f.debug_set().entries(items).finish(),
            Reply::Map(pairs) => f.debug_map().entries(pairs.iter().map(|(k, v)| (k, v))).finish(),
            Reply::Push(items) => write!(f, ">{items:?}"),
            Reply::Bool(b) => write!(f, "#{b}"),
            Reply::Double(text) => write!(f, ",{text}"),
            Reply::BigNumber(text) => write!(f, "({text}"),
            Reply::Verbatim(b) => write!(f, "={}", shown(b)),
        }
    }
}

/// The multibulk form of a command.
pub(crate) fn encode<A: AsRef<[u8]>>(args: &[A]) -> Vec<u8> {
    let mut out = format!("*{}\r\n", args.len()).into_bytes();
    for arg in args {
        let arg = arg.as_ref();
        out.extend_from_slice(format!("${}\r\n", arg.len()).as_bytes());
        out.extend_from_slice(arg);
        out.extend_from_slice(b"\r\n");
    }
    out
}

/// Bytes for a failure message: escaped, and cut where they are long.
pub(crate) fn shown(bytes: &[u8]) -> String {
    let cut = &bytes[..bytes.len().min(SHOWN)];
    let more = bytes.len() - cut.len();
    let tail = if more > 0 { format!("... and {more} bytes") } else { String::new() };
    format!("{}{tail}", cut.escape_ascii())
}

pub(crate) enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Stream {
    fn set_timeout(&self, timeout: Duration) {
        // A timeout of zero is an error to the standard library; a millisecond still reads what is there.
        let timeout = Some(timeout.max(Duration::from_millis(1)));
        match self {
            Stream::Unix(s) => s.set_read_timeout(timeout).expect("read timeout"),
            Stream::Tcp(s) => s.set_read_timeout(timeout).expect("read timeout"),
        }
    }

    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        match self {
            Stream::Unix(s) => s.read(into),
            Stream::Tcp(s) => s.read(into),
        }
    }

    fn write_all(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        match self {
            Stream::Unix(s) => s.write_all(bytes),
            Stream::Tcp(s) => s.write_all(bytes),
        }
    }

    fn shutdown(&self, how: std::net::Shutdown) {
        let _ = match self {
            Stream::Unix(s) => s.shutdown(how),
            Stream::Tcp(s) => s.shutdown(how),
        };
    }
}

pub(crate) struct Client {
    stream: Stream,
    /// Received and not yet consumed.
    buffer: Vec<u8>,
    /// Pushes that came while a reply was read, in order.
    pushes: VecDeque<Reply>,
    patience: Duration,
}

impl Client {
    #[track_caller]
    pub(crate) fn unix(path: &Path) -> Client {
        Client::try_unix(path).unwrap_or_else(|e| panic!("cannot connect to {}: {e}", path.display()))
    }

    pub(crate) fn try_unix(path: &Path) -> std::io::Result<Client> {
        Ok(Client::over(Stream::Unix(UnixStream::connect(path)?)))
    }

    #[track_caller]
    pub(crate) fn tcp(address: SocketAddr) -> Client {
        Client::try_tcp(address).unwrap_or_else(|e| panic!("cannot connect to {address}: {e}"))
    }

    pub(crate) fn try_tcp(address: SocketAddr) -> std::io::Result<Client> {
        let stream = TcpStream::connect_timeout(&address, PATIENCE)?;
        stream.set_nodelay(true)?;
        Ok(Client::over(Stream::Tcp(stream)))
    }

    fn over(stream: Stream) -> Client {
        Client { stream, buffer: Vec::new(), pushes: VecDeque::new(), patience: PATIENCE }
    }

    /// Another bound for each read of this client.
    pub(crate) fn with_patience(mut self, patience: Duration) -> Client {
        self.patience = patience;
        self
    }

    /// Says HELLO 3 and drops the answer.
    #[track_caller]
    pub(crate) fn hello3(mut self) -> Client {
        let reply = self.cmd(&["HELLO", "3"]);
        assert!(matches!(reply, Reply::Map(_)), "HELLO 3 was answered {reply:?}");
        self
    }

    /// A second handle on the same socket, for a thread that only writes.
    pub(crate) fn writer(&self) -> Box<dyn Write + Send> {
        match &self.stream {
            Stream::Unix(s) => Box::new(s.try_clone().expect("clone")),
            Stream::Tcp(s) => Box::new(s.try_clone().expect("clone")),
        }
    }

    #[track_caller]
    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.try_send(bytes).unwrap_or_else(|e| panic!("cannot send {}: {e}", shown(bytes)));
    }

    pub(crate) fn try_send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.stream.write_all(bytes)
    }

    #[track_caller]
    pub(crate) fn send_cmd<A: AsRef<[u8]>>(&mut self, args: &[A]) {
        self.send(&encode(args));
    }

    /// Sends a command and reads its reply.
    #[track_caller]
    pub(crate) fn cmd<A: AsRef<[u8]>>(&mut self, args: &[A]) -> Reply {
        self.send_cmd(args);
        self.reply()
    }

    /// Sends the commands in one write and reads all replies.
    #[track_caller]
    pub(crate) fn pipeline<A: AsRef<[u8]>>(&mut self, commands: &[&[A]]) -> Vec<Reply> {
        self.send(&commands.iter().flat_map(|args| encode(args)).collect::<Vec<u8>>());
        commands.iter().map(|_| self.reply()).collect()
    }

    /// Sends a command and holds its reply against `expected`, byte for byte.
    #[track_caller]
    pub(crate) fn expect<A: AsRef<[u8]>>(&mut self, args: &[A], expected: impl AsRef<[u8]>) {
        self.send_cmd(args);
        let words: Vec<String> = args.iter().map(|a| shown(a.as_ref())).collect();
        let got = self.read_reply_raw();
        assert_eq!(shown(&got), shown(expected.as_ref()), "reply to {words:?}");
    }

    /// The next reply; pushes on the way are kept for `push`.
    #[track_caller]
    pub(crate) fn reply(&mut self) -> Reply {
        loop {
            match self.frame() {
                Reply::Push(items) => self.pushes.push_back(Reply::Push(items)),
                reply => return reply,
            }
        }
    }

    /// The next push; a reply in its place is a failure.
    #[track_caller]
    pub(crate) fn push(&mut self) -> Reply {
        if let Some(push) = self.pushes.pop_front() {
            return push;
        }
        match self.frame() {
            Reply::Push(items) => Reply::Push(items),
            reply => panic!("a push was expected, not {reply:?}"),
        }
    }

    /// The next frame of either kind, as it stands in the stream.
    #[track_caller]
    pub(crate) fn frame(&mut self) -> Reply {
        let raw = self.read_reply_raw();
        let mut inner = Vec::new();
        let (reply, used) = decode(&raw, &mut inner).unwrap_or_else(|| panic!("half a frame: {}", shown(&raw)));
        debug_assert_eq!(used, raw.len());
        self.pushes.extend(inner);
        reply
    }

    /// Pushes seen so far and not taken.
    pub(crate) fn pushes_seen(&self) -> usize {
        self.pushes.len()
    }

    /// The exact bytes of the next frame.
    #[track_caller]
    pub(crate) fn read_reply_raw(&mut self) -> Vec<u8> {
        let mut measure = Measure::default();
        let end = Instant::now() + self.patience;
        loop {
            if let Some(length) = measure.frame(&self.buffer) {
                return self.take(length);
            }
            self.more(end, "a whole frame");
        }
    }

    #[track_caller]
    pub(crate) fn read_exact(&mut self, length: usize) -> Vec<u8> {
        let end = Instant::now() + self.patience;
        while self.buffer.len() < length {
            self.more(end, "more bytes");
        }
        self.take(length)
    }

    /// Whatever has arrived, after at most `timeout`; `None` when nothing did, an empty vector at end of stream.
    pub(crate) fn try_read(&mut self, timeout: Duration) -> Option<Vec<u8>> {
        if self.buffer.is_empty() {
            match self.fill(timeout) {
                Filled::Nothing => return None,
                Filled::Closed => return Some(Vec::new()),
                Filled::Some => {}
            }
        }
        Some(std::mem::take(&mut self.buffer))
    }

    /// Fails when anything at all arrives within `window`.
    #[track_caller]
    pub(crate) fn expect_silence(&mut self, window: Duration) {
        if let Some(bytes) = self.try_read(window) {
            panic!("silence was expected, not {:?}", shown(&bytes));
        }
    }

    /// Reads to the end of the stream and answers what came before it; fails when the peer keeps the connection.
    #[track_caller]
    pub(crate) fn expect_closed(&mut self) -> Vec<u8> {
        let end = Instant::now() + self.patience;
        loop {
            match self.fill(end.saturating_duration_since(Instant::now())) {
                Filled::Closed => return std::mem::take(&mut self.buffer),
                Filled::Some => {}
                Filled::Nothing => panic!("still open, unread: {:?}", shown(&self.buffer)),
            }
        }
    }

    /// No more requests from this side; replies can still be read.
    pub(crate) fn finish_writing(&self) {
        self.stream.shutdown(std::net::Shutdown::Write);
    }

    fn take(&mut self, length: usize) -> Vec<u8> {
        let rest = self.buffer.split_off(length);
        std::mem::replace(&mut self.buffer, rest)
    }

    #[track_caller]
    fn more(&mut self, end: Instant, what: &str) {
        let left = end.saturating_duration_since(Instant::now());
        match if left.is_zero() { Filled::Nothing } else { self.fill(left) } {
            Filled::Some => {}
            Filled::Closed => panic!("closed before {what}; unread: {:?}", shown(&self.buffer)),
            Filled::Nothing => panic!("no {what} within {:?}; unread: {:?}", self.patience, shown(&self.buffer)),
        }
    }

    fn fill(&mut self, timeout: Duration) -> Filled {
        let mut chunk = [0; CHUNK];
        self.stream.set_timeout(timeout);
        match self.stream.read(&mut chunk) {
            Ok(0) => Filled::Closed,
            Ok(n) => {
                self.buffer.extend_from_slice(&chunk[..n]);
                Filled::Some
            }
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => Filled::Nothing,
            Err(e) if e.kind() == ErrorKind::Interrupted => Filled::Some,
            Err(_) => Filled::Closed, // a reset is an end, too
        }
    }
}

enum Filled {
    Some,
    Nothing,
    Closed,
}

/// Finds the end of the first frame and remembers how far it got, so that a value of several MB is looked at once.
#[derive(Default)]
struct Measure {
    at: usize,
    /// Elements still missing of each open aggregate, outermost first.
    open: Vec<(u64, Kind)>,
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Counted,
    /// Where it stands inside an aggregate, that one does not count it.
    Push,
    /// Precedes a value; is counted nowhere and is no frame alone.
    Attribute,
}

impl Measure {
    fn frame(&mut self, input: &[u8]) -> Option<usize> {
        loop {
            let (line, next) = line(input, self.at)?;
            let count = || number(&line[1..]);
            let end = match line[0] {
                b'$' | b'=' | b'!' if count() >= 0 => next + count() as usize + 2,
                _ => next,
            };
            if input.len() < end {
                return None;
            }
            self.at = end;
            let whole = match line[0] {
                b'*' | b'~' if count() > 0 => self.open(count(), Kind::Counted),
                b'%' if count() > 0 => self.open(2 * count(), Kind::Counted),
                b'>' if count() > 0 => self.open(count(), Kind::Push),
                b'|' if count() > 0 => self.open(2 * count(), Kind::Attribute),
                b'|' => false,
                _ => self.close_value(),
            };
            if whole {
                return Some(std::mem::take(self).at);
            }
        }
    }

    fn open(&mut self, elements: i64, kind: Kind) -> bool {
        self.open.push((elements as u64, kind));
        false
    }

    /// One value has ended; so may have the aggregates around it. Answers whether the frame has.
    fn close_value(&mut self) -> bool {
        while let Some((left, kind)) = self.open.last_mut() {
            *left -= 1;
            if *left > 0 {
                return false;
            }
            let kind = *kind;
            self.open.pop();
            match kind {
                Kind::Counted => {}
                Kind::Push => return self.open.is_empty(),
                Kind::Attribute => return false,
            }
        }
        true
    }
}

/// The line that starts at `at`, without its end, and where the next one starts.
fn line(input: &[u8], at: usize) -> Option<(&[u8], usize)> {
    let rest = input.get(at..)?;
    let end = rest.windows(2).position(|w| w == b"\r\n")?;
    assert!(end > 0, "an empty line where a frame starts");
    Some((&rest[..end], at + end + 2))
}

#[track_caller]
fn number(digits: &[u8]) -> i64 {
    let text = std::str::from_utf8(digits).unwrap_or("not UTF-8");
    text.parse().unwrap_or_else(|_| panic!("not a length or number: {}", shown(digits)))
}

/// Decodes one frame; pushes inside an aggregate (Redis 7.0 writes them there) go to `inner`.
pub(crate) fn decode(input: &[u8], inner: &mut Vec<Reply>) -> Option<(Reply, usize)> {
    let mut at = 0;
    let reply = value(input, &mut at, inner)?;
    Some((reply, at))
}

fn value(input: &[u8], at: &mut usize, inner: &mut Vec<Reply>) -> Option<Reply> {
    let (head, next) = line(input, *at)?;
    *at = next;
    let rest = &head[1..];
    let text = || String::from_utf8_lossy(rest).into_owned();
    Some(match head[0] {
        b'+' => Reply::Status(rest.to_vec()),
        b'-' => Reply::Error(rest.to_vec()),
        b':' => Reply::Int(number(rest)),
        b'_' => Reply::Nil,
        b'#' => Reply::Bool(rest == b"t"),
        b',' => Reply::Double(text()),
        b'(' => Reply::BigNumber(text()),
        b'$' | b'*' if number(rest) < 0 => Reply::Nil,
        b'$' => Reply::Bulk(payload(input, at, number(rest))?),
        b'!' => Reply::Error(payload(input, at, number(rest))?),
        b'=' => Reply::Verbatim(payload(input, at, number(rest))?),
        b'*' => Reply::Array(values(input, at, number(rest), inner)?),
        b'~' => Reply::Set(values(input, at, number(rest), inner)?),
        b'>' => Reply::Push(values(input, at, number(rest), inner)?),
        b'%' => {
            let flat = values(input, at, 2 * number(rest), inner)?;
            Reply::Map(flat.chunks(2).map(|pair| (pair[0].clone(), pair[1].clone())).collect())
        }
        b'|' => {
            values(input, at, 2 * number(rest), inner)?;
            value(input, at, inner)?
        }
        _ => panic!("not a frame: {}", shown(&input[*at..])),
    })
}

fn values(input: &[u8], at: &mut usize, count: i64, inner: &mut Vec<Reply>) -> Option<Vec<Reply>> {
    let mut found = Vec::new();
    while (found.len() as i64) < count {
        match value(input, at, inner)? {
            push @ Reply::Push(_) => inner.push(push),
            counted => found.push(counted),
        }
    }
    Some(found)
}

fn payload(input: &[u8], at: &mut usize, length: i64) -> Option<Vec<u8>> {
    let end = *at + usize::try_from(length).ok()?;
    let bytes = input.get(*at..end)?.to_vec();
    *at = end + 2;
    Some(bytes)
}
