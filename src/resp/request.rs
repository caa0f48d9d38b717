//! Where one request ends and its arguments lie: multibulk and inline, as Redis 7.0 reads them (`processMultibulkBuffer`,
//! `processInlineBuffer`), with its error texts. Runs for every command a client sends: in place, resumable, each byte
//! looked at once, nothing allocated once the argument list has grown. Does not know what a command is, and does not
//! keep bytes: the caller's buffer does.

use std::ops::Range;

use bytes::{BufMut, BytesMut};
use memchr::memchr2;

use crate::limits::{INLINE_MAX, LARGE};

/// Arguments whose ranges are kept allocated between requests (8 bytes each). More are given back at the next request:
/// one request of 170,000 empty arguments should not cost its connection 1.4 MB for life.
const ARGS_KEPT: usize = 256;

/// Inline bytes kept allocated between requests, for the same reason. Inline requests are typed by people.
const INLINE_KEPT: usize = 4 * 1024;

/// In a streamed request, the longest argument that is shown to the caller. Keys and options are shorter than this; what
/// is longer is a value, which nobody looks at, or a key too long to be worth an L1 entry (the caller fences then).
pub(crate) const SHOWN_MAX: usize = 64 * 1024;

/// One argument: a range into the request's bytes. 32 bits do, because a request that is not whole in the buffer when it
/// passes `LARGE` is streamed and has no ranges.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Arg {
    pub(crate) start: u32,
    pub(crate) end: u32,
}

impl Arg {
    pub(crate) fn range(&self) -> Range<usize> {
        self.start as usize..self.end as usize
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        (self.end - self.start) as usize
    }
}

/// What stands at the start of the buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scan {
    /// Call again with the same bytes and more behind them.
    Incomplete,
    /// A blank inline line, `*0\r\n`, `*-1\r\n`: consume `len`, no reply (`redis-cli --pipe` sends blank lines).
    Nothing { len: usize },
    /// A whole request; `args()` are ranges into `buf[..len]`.
    Request { len: usize },
    /// A whole inline request: consume `len`. `inline()` is the same request as multibulk, `args()` are ranges into that.
    Inline { len: usize },
    /// More than `limits::LARGE` bytes are declared or seen and the request is not whole: go on with `stream`. `args()` are
    /// those that are whole. Comes at the header of the argument that is too long.
    Large,
    /// Send `ProtocolError::reply` and close.
    Error(ProtocolError),
}

/// A request that Redis answers by an error and a closed connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ProtocolError {
    #[error("Protocol error: too big inline request")]
    InlineTooBig,
    #[error("Protocol error: unbalanced quotes in request")]
    UnbalancedQuotes,
    #[error("Protocol error: too big mbulk count string")]
    CountTooBig,
    #[error("Protocol error: invalid multibulk length")]
    Count,
    #[error("Protocol error: too big bulk count string")]
    BulkCountTooBig,
    #[error("Protocol error: invalid bulk length")]
    Bulk,
    #[error("Protocol error: expected '$', got '{}'", char::from(*.0))]
    NotBulk(u8),
    /// `listen.query_limit`: as in Redis (`client-query-buffer-limit`), closed without a reply.
    #[error("request is longer than listen.query_limit")]
    QueryLimit,
}

impl ProtocolError {
    /// Appends the reply that Redis sends before it closes; nothing where it sends nothing.
    pub(crate) fn reply(&self, out: &mut BytesMut) {
        match *self {
            Self::QueryLimit => {}
            // The byte goes out as it came, but for line ends, which Redis turns into spaces.
            Self::NotBulk(byte) => {
                out.put_slice(b"-ERR Protocol error: expected '$', got '");
                out.put_u8(if matches!(byte, b'\r' | b'\n') { b' ' } else { byte });
                out.put_slice(b"'\r\n");
            }
            _ => super::build::error(out, &format!("ERR {self}")),
        }
    }
}

/// What a streamed request consists of, in order.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Piece<'a> {
    /// So many arguments follow.
    Count(usize),
    /// Argument `i`, of at most `SHOWN_MAX` bytes.
    Whole(usize, &'a [u8]),
    /// Argument `i` is longer: its length. Its parts follow.
    Long(usize, usize),
    /// Some bytes of it; behind the last ones its line end, which may be in a part of its own.
    Part(&'a [u8]),
    /// Argument `i`, a longer one, is over.
    Over(usize),
}

/// How far `stream` got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Streamed {
    /// Bytes of the buffer that may be relayed now.
    pub(crate) take: usize,
    /// The last of them is the request's last byte.
    pub(crate) done: bool,
}

/// The scanner of one client connection. Between `Incomplete` and the next call the buffer only grows; after a request
/// was returned and its bytes were consumed, the next call starts the next request by itself.
#[derive(Debug)]
pub(crate) struct Scanner {
    bulk_max: usize,
    query_limit: usize,
    /// Up to this byte of a request no limit can be passed.
    plain: usize,
    args: Vec<Arg>,
    inline: Vec<u8>,
    /// Arguments the request declared.
    declared: usize,
    /// Arguments still to come; 0 is "between requests".
    left: usize,
    /// The first byte not understood yet: of the header line of the next argument, or of its payload.
    pos: usize,
    /// The payload's length, where its header line has been read.
    bulk: Option<usize>,
    line: Line,
    stream: Stream,
}

impl Scanner {
    /// `bulk_max`: longest argument (`proto-max-bulk-len`), `query_limit`: longest request, both in bytes.
    pub(crate) fn new(bulk_max: usize, query_limit: usize) -> Self {
        Self {
            bulk_max,
            query_limit,
            plain: bulk_max.min(query_limit).min(u32::MAX as usize),
            args: Vec::new(),
            inline: Vec::new(),
            declared: 0,
            left: 0,
            pos: 0,
            bulk: None,
            line: Line::default(),
            stream: Stream::default(),
        }
    }

    /// Looks at `buf`, which starts at the first byte of the current request.
    #[inline]
    pub(crate) fn scan(&mut self, buf: &[u8]) -> Scan {
        if self.left == 0
            && let Some(scan) = self.begin(buf)
        {
            return scan;
        }
        self.arguments(buf)
    }

    /// The arguments found by the last `scan`; valid until the next one.
    pub(crate) fn args(&self) -> &[Arg] {
        &self.args
    }

    /// The last inline request as multibulk; valid until the next `scan`.
    pub(crate) fn inline(&self) -> &[u8] {
        &self.inline
    }

    /// How many arguments the current (or last) multibulk request declared.
    pub(crate) fn argc_declared(&self) -> usize {
        self.declared
    }

    /// Forgets the current request. Only needed to abandon one: a returned request is over by itself.
    pub(crate) fn reset(&mut self) {
        self.left = 0;
        self.bulk = None;
        self.line = Line::default();
        self.stream = Stream::default();
        self.clear();
    }

    /// The head of a request. None: arguments follow.
    #[inline]
    fn begin(&mut self, buf: &[u8]) -> Option<Scan> {
        match buf.first() {
            None => return Some(Scan::Incomplete),
            Some(b'*') => {}
            Some(_) => return Some(self.begin_inline(buf)),
        }
        let (n, len) = match head(buf, b'*') {
            Some(found) => found,
            None => match self.line.find(buf, b'\r') {
                Found::At(cr) => match multibulk_count(&buf[1..cr]) {
                    Some(n) => (n, cr + 2),
                    None => return Some(self.fail(ProtocolError::Count)),
                },
                Found::TooLong => return Some(self.fail(ProtocolError::CountTooBig)),
                Found::NotYet => return Some(Scan::Incomplete),
            },
        };
        self.clear();
        self.declared = n;
        self.left = n;
        self.pos = len;
        self.line = Line::default();
        (n == 0).then_some(Scan::Nothing { len })
    }

    #[inline]
    fn arguments(&mut self, buf: &[u8]) -> Scan {
        loop {
            self.plain_arguments(&buf[..buf.len().min(self.plain)]);
            if self.left == 0 {
                return Scan::Request { len: self.pos };
            }
            if let Some(scan) = self.argument(buf) {
                return scan;
            }
        }
    }

    /// Takes whole arguments with usual headers, as many as there are: a loop that touches nothing of `self`.
    #[inline(always)]
    fn plain_arguments(&mut self, buf: &[u8]) {
        if self.bulk.is_some() {
            return;
        }
        let (mut pos, mut left) = (self.pos, self.left);
        while left > 0
            && let Some((len, header)) = buf.get(pos..).and_then(|rest| head(rest, b'$'))
        {
            let start = pos + header;
            let end = start + len;
            if end + 2 > buf.len() {
                break;
            }
            self.args.push(Arg { start: start as u32, end: end as u32 });
            pos = end + 2;
            left -= 1;
        }
        if pos != self.pos {
            self.line = Line::default();
        }
        (self.pos, self.left) = (pos, left);
    }

    /// Any one argument. Some: it is not whole, or wrong.
    fn argument(&mut self, buf: &[u8]) -> Option<Scan> {
        let len = match self.bulk {
            Some(len) => len,
            None => match self.bulk_header(buf) {
                Ok(Some(len)) => len,
                Ok(None) => return Some(self.wait(buf)),
                Err(error) => return Some(self.fail(error)),
            },
        };
        let end = self.pos + len;
        if buf.len() < end + 2 || end > u32::MAX as usize {
            self.bulk = Some(len);
            return Some(self.wait(buf));
        }
        self.args.push(Arg { start: self.pos as u32, end: end as u32 });
        self.bulk = None;
        self.pos = end + 2;
        self.left -= 1;
        None
    }

    /// The length of the next argument; `pos` is then the first byte of its payload.
    fn bulk_header(&mut self, buf: &[u8]) -> Result<Option<usize>, ProtocolError> {
        let rest = &buf[self.pos..];
        let (len, header) = match head(rest, b'$') {
            Some(found) => found,
            None => match self.line.bulk_header(rest)? {
                Some(found) => found,
                None => return Ok(None),
            },
        };
        self.line = Line::default();
        self.pos += header;
        check_bulk(len, self.pos, self.bulk_max, self.query_limit)?;
        Ok(Some(len))
    }

    /// More is needed. Whether the request is whole later or not, past `LARGE` it is not collected any more.
    fn wait(&self, buf: &[u8]) -> Scan {
        let known = self.pos + self.bulk.unwrap_or(0);
        if known.max(buf.len()) > LARGE { Scan::Large } else { Scan::Incomplete }
    }

    fn fail(&mut self, error: ProtocolError) -> Scan {
        self.reset();
        Scan::Error(error)
    }

    #[inline]
    fn clear(&mut self) {
        self.args.clear();
        self.inline.clear();
        if self.args.capacity() > ARGS_KEPT {
            self.args.shrink_to(ARGS_KEPT);
        }
        if self.inline.capacity() > INLINE_KEPT {
            self.inline.shrink_to(INLINE_KEPT);
        }
    }

    fn begin_inline(&mut self, buf: &[u8]) -> Scan {
        let newline = match self.line.find(buf, b'\n') {
            Found::At(newline) => newline,
            Found::TooLong => return self.fail(ProtocolError::InlineTooBig),
            Found::NotYet => return Scan::Incomplete,
        };
        self.reset();
        let text = &buf[..newline];
        let len = newline + 1;
        let Some(words) = split(text.strip_suffix(b"\r").unwrap_or(text)) else {
            return Scan::Error(ProtocolError::UnbalancedQuotes);
        };
        self.declared = words.len();
        if words.is_empty() {
            return Scan::Nothing { len };
        }
        self.rewrite(&words);
        Scan::Inline { len }
    }

    /// Writes `words` as multibulk into `inline`. At most 64 KiB of words, so the offsets fit.
    fn rewrite(&mut self, words: &[Vec<u8>]) {
        self.inline.extend_from_slice(format!("*{}\r\n", words.len()).as_bytes());
        for word in words {
            self.inline.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
            let start = self.inline.len();
            self.inline.extend_from_slice(word);
            self.args.push(Arg { start: start as u32, end: self.inline.len() as u32 });
            self.inline.extend_from_slice(b"\r\n");
        }
    }

    /// Goes on with a request after `Large`. The first call gets the buffer from the request's first byte, each later one
    /// what follows the bytes taken. `on_arg(i, Some(bytes))` for every argument of at most `SHOWN_MAX` bytes (those
    /// before `Large` too), which is only taken once it is whole; `on_arg(i, None)` at the end of each longer one.
    pub(crate) fn stream(
        &mut self,
        buf: &[u8],
        on_arg: &mut dyn FnMut(usize, Option<&[u8]>),
    ) -> Result<Streamed, ProtocolError> {
        self.stream_pieces(buf, &mut |piece| match piece {
            Piece::Whole(i, arg) => on_arg(i, Some(arg)),
            Piece::Over(i) => on_arg(i, None),
            Piece::Count(_) | Piece::Long(..) | Piece::Part(_) => {}
        })
    }

    /// The same for who has to write the request anew.
    pub(crate) fn stream_pieces(
        &mut self,
        buf: &[u8],
        on_piece: &mut dyn FnMut(Piece<'_>),
    ) -> Result<Streamed, ProtocolError> {
        let mut take = 0;
        loop {
            let step = self.stream_step(&buf[take..], on_piece)?;
            take += step;
            self.stream.total += step;
            if self.stream.phase == Phase::Header && self.stream.left == 0 {
                self.reset();
                return Ok(Streamed { take, done: true });
            }
            if step == 0 {
                return Ok(Streamed { take, done: false });
            }
        }
    }

    /// Takes one piece off the front of `rest`: a line, a whole argument or a part of a long one. 0: more is needed.
    fn stream_step(&mut self, rest: &[u8], on_piece: &mut dyn FnMut(Piece<'_>)) -> Result<usize, ProtocolError> {
        let stream = &mut self.stream;
        match stream.phase {
            Phase::Count => match stream.line.find(rest, b'\r') {
                Found::At(cr) => {
                    stream.line = Line::default();
                    stream.left = multibulk_count(&rest[1..cr]).ok_or(ProtocolError::Count)?;
                    stream.phase = Phase::Header;
                    on_piece(Piece::Count(stream.left));
                    Ok(cr + 2)
                }
                Found::TooLong => Err(ProtocolError::CountTooBig),
                Found::NotYet => Ok(0),
            },
            Phase::Header => {
                let Some((len, header)) = stream.line.bulk_header(rest)? else {
                    return Ok(0);
                };
                check_bulk(len, stream.total + header, self.bulk_max, self.query_limit)?;
                stream.phase = if len <= SHOWN_MAX { Phase::Shown(len) } else { Phase::Passed(len + 2) };
                if len > SHOWN_MAX {
                    on_piece(Piece::Long(stream.index, len));
                }
                Ok(header)
            }
            Phase::Shown(len) if rest.len() < len + 2 => Ok(0),
            Phase::Shown(len) => {
                on_piece(Piece::Whole(stream.next_arg(), &rest[..len]));
                Ok(len + 2)
            }
            Phase::Passed(left) if rest.len() < left => {
                stream.phase = Phase::Passed(left - rest.len());
                on_piece(Piece::Part(rest));
                Ok(rest.len())
            }
            Phase::Passed(left) => {
                on_piece(Piece::Part(&rest[..left]));
                on_piece(Piece::Over(stream.next_arg()));
                Ok(left)
            }
        }
    }
}

/// The state of a request that is passed on as it comes.
#[derive(Debug, Default)]
struct Stream {
    phase: Phase,
    /// Arguments that are over.
    index: usize,
    left: usize,
    /// Bytes taken.
    total: usize,
    line: Line,
}

impl Stream {
    /// The argument is over: its index.
    fn next_arg(&mut self) -> usize {
        self.phase = Phase::Header;
        self.index += 1;
        self.left -= 1;
        self.index - 1
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Phase {
    #[default]
    Count,
    Header,
    /// Payload of so many bytes that is taken as a whole.
    Shown(usize),
    /// So many bytes to go, line end included.
    Passed(usize),
}

/// The search for the end of one line, which goes on where it stopped. Redis searches by `strchr`, so a NUL hides
/// everything behind it: the line never ends, until it is too long.
#[derive(Clone, Copy, Debug, Default)]
struct Line {
    searched: usize,
}

enum Found {
    /// Where the line end stands; for `\r` the byte behind it is there too (Redis does not look which one it is).
    At(usize),
    NotYet,
    TooLong,
}

impl Line {
    /// `rest` starts at the line's first byte.
    fn find(&mut self, rest: &[u8], end: u8) -> Found {
        match memchr2(end, 0, &rest[self.searched..]) {
            Some(i) if rest[self.searched + i] == end => {
                self.searched += i;
                let whole = end == b'\n' || self.searched + 1 < rest.len();
                return if whole { Found::At(self.searched) } else { Found::NotYet };
            }
            Some(i) => self.searched += i,
            None => self.searched = rest.len(),
        }
        if rest.len() > INLINE_MAX { Found::TooLong } else { Found::NotYet }
    }

    /// Reads a `$<len>` line: the length, and that of the line with its end.
    #[cold]
    fn bulk_header(&mut self, rest: &[u8]) -> Result<Option<(usize, usize)>, ProtocolError> {
        let cr = match self.find(rest, b'\r') {
            Found::At(cr) => cr,
            Found::TooLong => return Err(ProtocolError::BulkCountTooBig),
            Found::NotYet => return Ok(None),
        };
        *self = Self::default();
        if rest[0] != b'$' {
            return Err(ProtocolError::NotBulk(rest[0]));
        }
        let len = super::integer(&rest[1..cr]).and_then(|len| usize::try_from(len).ok());
        Ok(Some((len.ok_or(ProtocolError::Bulk)?, cr + 2)))
    }
}

/// The usual head line: `kind`, a short plain number, `\r` and one byte more.
#[inline(always)]
fn head(rest: &[u8], kind: u8) -> Option<(usize, usize)> {
    let (&first, text) = rest.split_first()?;
    let (n, cr) = super::count(text)?;
    (first == kind && cr + 1 < text.len()).then_some((n, cr + 3))
}

/// What a `*` line says; zero and less mean "no request".
fn multibulk_count(text: &[u8]) -> Option<usize> {
    let n = super::integer(text)?;
    // INT_MAX, Redis's own bound since 7.0.
    (n <= i64::from(i32::MAX)).then_some(usize::try_from(n).unwrap_or(0))
}

#[inline(always)]
fn check_bulk(len: usize, before: usize, bulk_max: usize, query_limit: usize) -> Result<(), ProtocolError> {
    if len > bulk_max {
        return Err(ProtocolError::Bulk);
    }
    if before.saturating_add(len) > query_limit {
        return Err(ProtocolError::QueryLimit);
    }
    Ok(())
}

/// Redis's `sdssplitargs`: words divided by blanks, `"..."` with escapes, `'...'` with `\'` only. None: unbalanced quotes.
fn split(line: &[u8]) -> Option<Vec<Vec<u8>>> {
    let mut words = Vec::new();
    let mut rest = line;
    loop {
        rest = trim_blanks(rest);
        if rest.is_empty() {
            return Some(words);
        }
        let mut word = Vec::new();
        rest = split_word(rest, &mut word)?;
        words.push(word);
    }
}

fn trim_blanks(text: &[u8]) -> &[u8] {
    let blanks = text.iter().take_while(|&&byte| is_space(byte)).count();
    &text[blanks..]
}

/// C's `isspace`, which unlike Rust's `is_ascii_whitespace` counts the vertical tab.
fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | 0x0b | 0x0c | b'\r')
}

/// Reads one word into `word`; what is left behind it. A quote may open in the middle of a word, and its end is the word's.
fn split_word<'a>(text: &'a [u8], word: &mut Vec<u8>) -> Option<&'a [u8]> {
    for (i, &byte) in text.iter().enumerate() {
        match byte {
            b' ' | b'\n' | b'\r' | b'\t' => return Some(&text[i + 1..]),
            b'"' => return split_double(&text[i + 1..], word),
            b'\'' => return split_single(&text[i + 1..], word),
            _ => word.push(byte),
        }
    }
    Some(&[])
}

fn split_double<'a>(mut text: &'a [u8], word: &mut Vec<u8>) -> Option<&'a [u8]> {
    loop {
        text = match text {
            [b'\\', b'x', high, low, rest @ ..] if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => {
                word.push(hex(*high) << 4 | hex(*low));
                rest
            }
            [b'\\', escaped, rest @ ..] => {
                word.push(unescape(*escaped));
                rest
            }
            [b'"', rest @ ..] => return closed(rest),
            [byte, rest @ ..] => {
                word.push(*byte);
                rest
            }
            [] => return None,
        }
    }
}

fn split_single<'a>(mut text: &'a [u8], word: &mut Vec<u8>) -> Option<&'a [u8]> {
    loop {
        text = match text {
            [b'\\', b'\'', rest @ ..] => {
                word.push(b'\'');
                rest
            }
            [b'\'', rest @ ..] => return closed(rest),
            [byte, rest @ ..] => {
                word.push(*byte);
                rest
            }
            [] => return None,
        }
    }
}

/// A closing quote must end the word.
fn closed(rest: &[u8]) -> Option<&[u8]> {
    rest.first().is_none_or(|&byte| is_space(byte)).then_some(rest)
}

fn unescape(byte: u8) -> u8 {
    match byte {
        b'n' => b'\n',
        b'r' => b'\r',
        b't' => b'\t',
        b'b' => 0x08,
        b'a' => 0x07,
        other => other,
    }
}

fn hex(digit: u8) -> u8 {
    match digit {
        b'0'..=b'9' => digit - b'0',
        b'a'..=b'f' => digit - b'a' + 10,
        _ => digit.wrapping_sub(b'A') + 10,
    }
}

#[cfg(test)]
mod tests;
