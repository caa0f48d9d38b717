//! Where one reply ends: every type of RESP2 and RESP3, without decoding any. Runs on every byte upstream sends: in place,
//! resumable, each byte looked at once, with a depth guard. A push frame inside an aggregate (Redis up to 7.0 writes them
//! where they happen, RESP-FORMS pitfall 10) is found at any depth and set aside. Streamed types (`$?`, `*?`) are refused:
//! Redis has never sent one. Does not know what was asked.

use std::ops::Range;

use bytes::{BufMut, BytesMut};
use memchr::memchr;
use smallvec::{SmallVec, smallvec};

use crate::limits::{DECODED_DEPTH_MAX, DEPTH_MAX, LARGE};

/// A status, error or number line is held until whole up to this many bytes; a longer one (a script may return a status of
/// any length) is passed on in parts, so that streaming it needs no more memory than this.
const LINE_HELD: usize = 64 * 1024;

/// Bytes of a length line, type byte included: 19 digits and their surroundings. Without an end by then it is garbage.
const LENGTH_LINE_MAX: usize = 24;

/// Nothing announces a bulk of a terabyte or as many elements: whatever says so is not a Redis.
const LENGTH_MAX: i64 = 1 << 40;

/// Nesting that needs no allocation. Redis itself nests at most seven levels.
const LEVELS_INLINE: usize = 8;

/// Room for nesting that a connection keeps from one frame to the next.
const LEVELS_KEPT: usize = 64;

/// Bytes in which the fast path looks for the end of a line.
const SHORT_LINE: usize = 64;

/// Bytes that are no RESP. The connection they came from is of no further use.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadFrame {
    #[error("reply starts with byte 0x{0:02x}, which is no RESP type")]
    Type(u8),
    #[error("reply of type '{}' has length '{text}'", char::from(*.kind))]
    Length { kind: u8, text: String },
    #[error("bulk of type '{}' is longer or shorter than it says", char::from(*.0))]
    BulkEnd(u8),
    #[error("reply nests deeper than {0} levels")]
    TooDeep(usize),
}

/// How far `advance` got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Advance {
    /// Bytes that belong to this frame and are understood.
    pub(crate) take: usize,
    /// The last of them is the frame's last byte.
    pub(crate) done: bool,
}

/// One open aggregate.
#[derive(Clone, Copy, Debug)]
struct Level {
    /// Elements still to come.
    left: u64,
    kind: LevelKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LevelKind {
    /// One element of the level around it.
    Element,
    /// Precedes an element and is none itself.
    Attribute,
    /// Stands between elements and is none itself; began at this byte of the frame.
    Push(usize),
}

#[derive(Clone, Copy, Debug)]
enum Part {
    /// At the first byte of a header line.
    Header,
    /// Within a line longer than `LINE_HELD`.
    Line,
    /// Payload bytes to go, of a bulk of this type; its line end follows.
    Payload(usize, u8),
}

/// The state of one frame: what is still missing of it.
#[derive(Debug)]
pub(crate) struct Boundary {
    levels: SmallVec<[Level; LEVELS_INLINE]>,
    part: Part,
    /// Bytes of an unfinished line that hold no line end.
    searched: usize,
    /// Bytes of the frame taken so far.
    taken: usize,
    /// Embedded pushes, outermost ones only.
    pushes: Vec<Range<usize>>,
    keep_pushes: bool,
    depth_max: usize,
}

impl Boundary {
    pub(crate) fn new() -> Self {
        Self {
            levels: smallvec![Self::TOP],
            part: Part::Header,
            searched: 0,
            taken: 0,
            pushes: Vec::new(),
            keep_pushes: false,
            depth_max: DEPTH_MAX,
        }
    }

    const TOP: Level = Level { left: 1, kind: LevelKind::Element };

    /// Forgets the frame and starts the next one.
    pub(crate) fn reset(&mut self) {
        self.levels.clear();
        if self.levels.capacity() > LEVELS_KEPT {
            self.levels = SmallVec::new();
        }
        self.levels.push(Self::TOP);
        self.part = Part::Header;
        self.searched = 0;
        self.taken = 0;
        self.pushes.clear();
    }

    /// Processes `buf`, which starts behind the bytes taken so far. A header line is only taken whole, a payload in parts.
    /// After `done`, `reset` starts the next frame.
    pub(crate) fn advance(&mut self, buf: &[u8]) -> Result<Advance, BadFrame> {
        let mut take = 0;
        while !self.levels.is_empty() {
            let step = self.step(&buf[take..])?;
            if step == 0 {
                return Ok(Advance { take, done: false });
            }
            take += step;
        }
        Ok(Advance { take, done: true })
    }

    /// Bytes of the current bulk that are announced and not taken.
    fn outstanding(&self) -> usize {
        match self.part {
            Part::Payload(left, _) => left + 2,
            _ => 0,
        }
    }

    /// Takes one piece off the front of `rest`. 0: more is needed.
    fn step(&mut self, rest: &[u8]) -> Result<usize, BadFrame> {
        let Some(&kind) = rest.first() else {
            return Ok(0);
        };
        match self.part {
            Part::Header => self.header(kind, rest),
            Part::Line => Ok(self.long_line(rest)),
            Part::Payload(left, kind) => self.payload(left, kind, rest),
        }
    }

    fn header(&mut self, kind: u8, rest: &[u8]) -> Result<usize, BadFrame> {
        match kind {
            b'+' | b'-' | b':' | b',' | b'(' | b'#' | b'_' => Ok(self.line(rest)),
            b'$' | b'=' | b'!' => {
                let Some((n, len)) = length(rest)? else {
                    return Ok(0);
                };
                self.bulk(kind, n, len, rest)
            }
            b'*' | b'~' | b'>' | b'%' | b'|' => {
                let Some((n, len)) = length(rest)? else {
                    return Ok(0);
                };
                self.aggregate(kind, n, len)
            }
            other => Err(BadFrame::Type(other)),
        }
    }

    fn line(&mut self, rest: &[u8]) -> usize {
        match find_end(rest, self.searched) {
            Some(end) => {
                self.searched = 0;
                self.element(end);
                end
            }
            None if rest.len() > LINE_HELD => {
                self.searched = 0;
                self.part = Part::Line;
                self.long_line(rest)
            }
            None => {
                self.searched = unended(rest);
                0
            }
        }
    }

    fn long_line(&mut self, rest: &[u8]) -> usize {
        match find_end(rest, 0) {
            Some(end) => {
                self.part = Part::Header;
                self.element(end);
                end
            }
            None => self.take(unended(rest)),
        }
    }

    fn bulk(&mut self, kind: u8, n: Option<usize>, header: usize, rest: &[u8]) -> Result<usize, BadFrame> {
        let Some(n) = n else {
            self.element(header);
            return Ok(header);
        };
        let end = header + n + 2;
        if rest.len() < end {
            self.part = Part::Payload(n, kind);
            return Ok(self.take(header));
        }
        if &rest[end - 2..end] != b"\r\n" {
            return Err(BadFrame::BulkEnd(kind));
        }
        self.element(end);
        Ok(end)
    }

    fn payload(&mut self, left: usize, kind: u8, rest: &[u8]) -> Result<usize, BadFrame> {
        if rest.len() < left + 2 {
            let part = rest.len().min(left);
            self.part = Part::Payload(left - part, kind);
            return Ok(self.take(part));
        }
        if &rest[left..left + 2] != b"\r\n" {
            return Err(BadFrame::BulkEnd(kind));
        }
        self.part = Part::Header;
        self.element(left + 2);
        Ok(left + 2)
    }

    fn aggregate(&mut self, kind: u8, n: Option<usize>, header: usize) -> Result<usize, BadFrame> {
        let start = self.taken;
        let embedded = kind == b'>' && start > 0;
        let level = match kind {
            b'|' => LevelKind::Attribute,
            b'>' if embedded => LevelKind::Push(start),
            _ => LevelKind::Element,
        };
        // The bottom level stands for the frame itself.
        if self.levels.len() > self.depth_max {
            return Err(BadFrame::TooDeep(self.depth_max));
        }
        let pairs = matches!(kind, b'%' | b'|');
        let left = n.unwrap_or(0) as u64 * if pairs { 2 } else { 1 };
        self.take(header);
        self.levels.push(Level { left, kind: level });
        self.close();
        Ok(header)
    }

    fn take(&mut self, n: usize) -> usize {
        self.taken += n;
        n
    }

    /// A scalar ends after `n` more bytes.
    fn element(&mut self, n: usize) {
        self.take(n);
        if let Some(level) = self.levels.last_mut() {
            level.left -= 1;
        }
        self.close();
    }

    /// Closes the levels that have all their elements. None left: the frame is done.
    fn close(&mut self) {
        while let Some(level) = self.levels.last().copied()
            && level.left == 0
        {
            self.levels.pop();
            match level.kind {
                LevelKind::Attribute => {}
                LevelKind::Push(start) => self.push_over(start),
                LevelKind::Element => {
                    if let Some(around) = self.levels.last_mut() {
                        around.left -= 1;
                    }
                }
            }
        }
    }

    fn push_over(&mut self, start: usize) {
        let within = self.levels.iter().any(|level| matches!(level.kind, LevelKind::Push(_)));
        if self.keep_pushes && !within {
            self.pushes.push(start..self.taken);
        }
    }
}

/// What stands at the start of the buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Frame {
    /// Call again with the same bytes and more behind them.
    Incomplete,
    Complete {
        len: usize,
    },
    /// Not whole, and more than `limits::LARGE` bytes are announced or seen. Comes once a frame, for a long bulk at its
    /// header: go on with `scan` to collect it nevertheless, or with `advance` to pass it on or drop it.
    Large,
}

/// Collects whole frames at the start of a buffer. After `Complete` the caller consumes the frame's bytes, and the next
/// call starts the next frame by itself.
#[derive(Debug)]
pub(crate) struct FrameScanner {
    boundary: Boundary,
    /// Bytes at the start of the buffer that the boundary has taken.
    pos: usize,
    fresh: bool,
    large: bool,
}

impl FrameScanner {
    pub(crate) fn new() -> Self {
        Self { boundary: Boundary { keep_pushes: true, ..Boundary::new() }, pos: 0, fresh: true, large: false }
    }

    /// Looks at `buf`, which starts at the first byte of the current frame.
    #[inline]
    pub(crate) fn scan(&mut self, buf: &[u8]) -> Result<Frame, BadFrame> {
        if self.fresh {
            if let Some(len) = small(buf) {
                self.boundary.pushes.clear();
                return Ok(Frame::Complete { len });
            }
            self.reset();
        }
        self.collect(buf)
    }

    fn collect(&mut self, buf: &[u8]) -> Result<Frame, BadFrame> {
        self.fresh = false;
        let Advance { take, done } = self.boundary.advance(&buf[self.pos..])?;
        self.pos += take;
        if done {
            self.fresh = true;
            return Ok(Frame::Complete { len: self.pos });
        }
        let known = self.pos + self.boundary.outstanding();
        if !self.large && known.max(buf.len()) > LARGE {
            self.large = true;
            return Ok(Frame::Large);
        }
        Ok(Frame::Incomplete)
    }

    /// Embedded pushes of the frame that `scan` returned last, outermost ones only, as ranges into it, in order. Valid
    /// until the next `scan`. A push that is a frame of its own is not among them.
    pub(crate) fn pushes(&self) -> &[Range<usize>] {
        &self.boundary.pushes
    }

    /// Goes on with a frame after `Large` without collecting it: `buf` starts at the frame's first byte in the first call,
    /// then behind the bytes taken. Embedded pushes are not noted any more.
    pub(crate) fn advance(&mut self, buf: &[u8]) -> Result<Advance, BadFrame> {
        self.fresh = false;
        self.boundary.keep_pushes = false;
        let known = self.pos.min(buf.len());
        let Advance { take, done } = self.boundary.advance(&buf[known..])?;
        self.pos -= known;
        if done {
            self.reset();
        }
        Ok(Advance { take: known + take, done })
    }

    /// Forgets the frame: the next bytes start a new one.
    pub(crate) fn reset(&mut self) {
        self.boundary.reset();
        self.boundary.keep_pushes = true;
        self.pos = 0;
        self.fresh = true;
        self.large = false;
    }
}

/// The length of the frame at the start of `buf`, if it is one of the usual small ones and whole.
#[inline]
fn small(buf: &[u8]) -> Option<usize> {
    match buf.first()? {
        b'$' => {
            let (n, cr) = super::count(&buf[1..])?;
            let end = cr + 3 + n;
            let whole = buf.get(cr + 2) == Some(&b'\n') && buf.get(end..end + 2)? == b"\r\n";
            whole.then_some(end + 2)
        }
        b'+' | b'-' | b':' | b'_' | b',' | b'#' => {
            let cr = memchr(b'\r', &buf[..buf.len().min(SHORT_LINE)])?;
            (buf.get(cr + 1) == Some(&b'\n')).then_some(cr + 2)
        }
        _ => None,
    }
}

/// A length line: the length (None for the null `-1`) and that of the line with its end. `Ok(None)`: not whole yet.
#[inline]
pub(crate) fn length(rest: &[u8]) -> Result<Option<(Option<usize>, usize)>, BadFrame> {
    if let Some((n, cr)) = super::count(&rest[1..])
        && rest.get(cr + 2) == Some(&b'\n')
    {
        return Ok(Some((Some(n), cr + 3)));
    }
    slow_length(rest)
}

#[cold]
fn slow_length(rest: &[u8]) -> Result<Option<(Option<usize>, usize)>, BadFrame> {
    let kind = rest[0];
    let window = &rest[..rest.len().min(LENGTH_LINE_MAX)];
    let bad = |text: &[u8]| BadFrame::Length { kind, text: text.escape_ascii().to_string() };
    let Some(end) = find_end(window, 0) else {
        let hopeless = window.len() == LENGTH_LINE_MAX || window[1..].starts_with(b"?");
        return if hopeless { Err(bad(&window[1..])) } else { Ok(None) };
    };
    let text = &rest[1..end - 2];
    match super::integer(text) {
        Some(-1) if matches!(kind, b'$' | b'*') => Ok(Some((None, end))),
        Some(n @ 0..=LENGTH_MAX) => Ok(Some((Some(n as usize), end))),
        _ => Err(bad(text)),
    }
}

/// Where the line ends: the index behind its `\r\n`, searched from byte `from` on.
pub(crate) fn find_end(rest: &[u8], mut from: usize) -> Option<usize> {
    loop {
        let cr = from + memchr(b'\r', &rest[from..])?;
        if *rest.get(cr + 1)? == b'\n' {
            return Some(cr + 2);
        }
        from = cr + 1;
    }
}

/// How much of a line without end need not be searched again.
fn unended(rest: &[u8]) -> usize {
    rest.len() - usize::from(rest.ends_with(b"\r"))
}

/// The length of the complete frame at the start of `bytes`. A frame that was scanned before: its depth is not checked,
/// and one count of missing elements does for all levels.
pub(crate) fn frame_len(bytes: &[u8]) -> Option<usize> {
    let (mut left, mut at) = (1, 0);
    while left > 0 {
        let rest = bytes.get(at..)?;
        let (len, elements, counts) = match small(rest) {
            Some(len) => (len, 0, true),
            None => piece(rest, at > 0)?,
        };
        at += len;
        left = left + elements - usize::from(counts);
    }
    (at <= bytes.len()).then_some(at)
}

/// A scalar, or the header of an aggregate, at the start of `rest`: its length, how many frames it announces, and whether
/// it is itself one that was announced.
fn piece(rest: &[u8], embedded: bool) -> Option<(usize, usize, bool)> {
    let kind = *rest.first()?;
    match kind {
        b'$' | b'=' | b'!' => {
            let (n, header) = length(rest).ok()??;
            Some((header + n.map_or(0, |n| n + 2), 0, true))
        }
        b'*' | b'~' | b'>' | b'%' | b'|' => {
            let (_, n, header) = head(rest)?;
            let pairs = matches!(kind, b'%' | b'|');
            let counts = kind != b'|' && !(kind == b'>' && embedded);
            Some((header, if pairs { 2 * n } else { n }, counts))
        }
        _ => Some((find_end(rest, 0)?, 0, true)),
    }
}

/// Whether `bytes` are exactly one frame, nested no deeper than may be decoded.
pub(super) fn is_frame(bytes: &[u8]) -> bool {
    let whole = Advance { take: bytes.len(), done: true };
    Boundary { depth_max: DECODED_DEPTH_MAX, ..Boundary::new() }.advance(bytes) == Ok(whole)
}

/// A header line with a length: type, length (0 for a null), and that of the line.
pub(super) fn head(frame: &[u8]) -> Option<(u8, usize, usize)> {
    let kind = *frame.first()?;
    let (n, len) = length(frame).ok()??;
    Some((kind, n.unwrap_or(0), len))
}

/// The line of a frame of one line, without type byte and line end, and the length with both.
pub(super) fn line(frame: &[u8]) -> Option<(&[u8], usize)> {
    let end = find_end(frame, 1)?;
    Some((frame.get(1..end - 2)?, end))
}

/// The frames within one aggregate.
#[derive(Clone, Debug)]
pub(crate) struct Elements<'a> {
    rest: &'a [u8],
    left: usize,
}

/// Splits a complete array, set, map (key and value by turns) or push into its element frames. Embedded pushes and
/// attributes are left out. Anything else has no elements.
pub(crate) fn elements(frame: &[u8]) -> Elements<'_> {
    inside(without_attribute(frame), b"*~%>")
}

fn inside<'a>(frame: &'a [u8], kinds: &[u8]) -> Elements<'a> {
    match head(frame) {
        Some((kind, n, len)) if kinds.contains(&kind) => {
            let pairs = matches!(kind, b'%' | b'|');
            Elements { rest: &frame[len..], left: if pairs { 2 * n } else { n } }
        }
        _ => Elements { rest: &[], left: 0 },
    }
}

/// A complete frame without the attribute in front of it.
pub(super) fn without_attribute(mut frame: &[u8]) -> &[u8] {
    while frame.first() == Some(&b'|') {
        frame = after_attribute(frame);
        frame = without_pushes(frame);
    }
    frame
}

/// What follows the attribute at the start of `bytes`.
pub(super) fn after_attribute(bytes: &[u8]) -> &[u8] {
    let mut elements = inside(bytes, b"|");
    elements.by_ref().for_each(drop);
    elements.rest
}

fn without_pushes(mut bytes: &[u8]) -> &[u8] {
    while bytes.first() == Some(&b'>')
        && let Some(len) = frame_len(bytes)
    {
        bytes = &bytes[len..];
    }
    bytes
}

impl<'a> Iterator for Elements<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        self.left = self.left.checked_sub(1)?;
        self.rest = without_pushes(self.rest);
        let (element, rest) = self.rest.split_at(frame_len(self.rest)?);
        self.rest = rest;
        Some(without_attribute(element))
    }
}

impl Elements<'_> {
    /// How many elements the header counts from here on.
    pub(crate) fn left(&self) -> usize {
        self.left
    }
}

/// The text of a complete `$`, `=` (without its `txt:`), `+`, `,` or `(` frame. None for a null and any other type.
pub(crate) fn bulk(frame: &[u8]) -> Option<&[u8]> {
    let frame = without_attribute(frame);
    match frame.first()? {
        b'$' | b'=' => {
            let (kind, n, header) = head(frame)?;
            let payload = frame.get(header..header + n)?;
            if is_null(frame) {
                return None;
            }
            if kind == b'=' { payload.get(4..) } else { Some(payload) }
        }
        b'+' | b',' | b'(' => Some(line(frame)?.0),
        _ => None,
    }
}

/// The number of a complete `:` frame.
pub(crate) fn integer(frame: &[u8]) -> Option<i64> {
    match without_attribute(frame) {
        frame @ [b':', ..] => super::integer(line(frame)?.0),
        _ => None,
    }
}

/// Any of the nulls: `_`, `$-1`, `*-1`.
pub(crate) fn is_null(frame: &[u8]) -> bool {
    matches!(without_attribute(frame), [b'_', ..] | [b'$' | b'*', b'-', ..])
}

/// An error reply, `-` or `!`.
pub(crate) fn is_error(frame: &[u8]) -> bool {
    matches!(without_attribute(frame).first(), Some(b'-' | b'!'))
}

/// Appends `frame` without the ranges that `FrameScanner::pushes` returned for it.
pub(crate) fn copy_without(frame: &[u8], pushes: &[Range<usize>], out: &mut BytesMut) {
    let mut copied = 0;
    for push in pushes {
        out.put_slice(&frame[copied..push.start]);
        copied = push.end;
    }
    out.put_slice(&frame[copied..]);
}

/// SCAN's reply: the next cursor, and the keys.
pub(crate) fn scanned(frame: &[u8]) -> Option<(Vec<u8>, Vec<Vec<u8>>)> {
    let mut parts = elements(frame);
    let cursor = bulk(parts.next()?)?.to_vec();
    let keys = elements(parts.next()?).filter_map(bulk).map(<[u8]>::to_vec).collect();
    Some((cursor, keys))
}

#[cfg(test)]
mod tests;
