//! Names of keys in replies, with `upstream.key_prefix` taken off them: by their place in the reply, in one pass over its
//! bytes, which may come in pieces (a reply of megabytes is passed on as it comes). Runs only where a prefix is set, before
//! a RESP2 client's reply is converted. What a script returns is data, and stays as it is.

use bytes::{BufMut, BytesMut};
use memchr::memmem;
use smallvec::SmallVec;

use super::prefix::Prefix;
use crate::limits::LARGE;
use crate::resp::build;
use crate::resp::reply::{self, elements, find_end, frame_len, length};

/// Where a reply names keys.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Strip {
    #[default]
    None,
    /// All elements: KEYS.
    Keys,
    /// A cursor, and a list of keys.
    Scan,
    /// The first element: what was popped, and from which key.
    First,
    /// The keys of a map, or in RESP2 the first of each pair: XREAD.
    Streams,
    /// All elements are channels; those of somebody else's keyspace events are left out.
    Channels,
    /// Channels and numbers by turns.
    ChannelCounts,
    /// The sixth element is a list of prefixes: CLIENT TRACKINGINFO.
    Prefixes,
    /// A text that quotes keys: ACL DRYRUN.
    Quoted,
}

/// What stands at one place of a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Plain,
    Key,
    Channel,
    Keys,
    Channels,
    Scan,
    First,
    Streams,
    StreamPair,
    ChannelCounts,
    Prefixes,
    /// An invalidation: its keys are its second element.
    Invalidation,
    /// EXEC's reply: each element is a command's.
    Exec,
}

impl Place {
    fn of(strip: Strip) -> Place {
        match strip {
            Strip::None | Strip::Quoted => Place::Plain,
            Strip::Keys => Place::Keys,
            Strip::Scan => Place::Scan,
            Strip::First => Place::First,
            Strip::Streams => Place::Streams,
            Strip::Channels => Place::Channels,
            Strip::ChannelCounts => Place::ChannelCounts,
            Strip::Prefixes => Place::Prefixes,
        }
    }

    /// What element `i` of an aggregate at this place is; `kind` is the aggregate's first byte.
    fn element(self, kind: u8, i: u64) -> Place {
        match self {
            Place::Keys => Place::Key,
            Place::Channels => Place::Channel,
            Place::Scan | Place::Invalidation if i == 1 => Place::Keys,
            Place::First | Place::StreamPair if i == 0 => Place::Key,
            Place::Streams if kind != b'%' => Place::StreamPair,
            Place::Streams if i.is_multiple_of(2) => Place::Key,
            Place::ChannelCounts if i.is_multiple_of(2) => Place::Channel,
            Place::Prefixes if i == 5 => Place::Keys,
            _ => Place::Plain,
        }
    }
}

/// What the client may see of a push that upstream wrote in the midst of a reply; none: nothing.
pub(crate) type OwnPush<'p> = &'p dyn Fn(&[u8]) -> Option<Vec<u8>>;

/// A reply as its client is to have it. `push` is asked about pushes in its midst.
pub(crate) fn whole(prefix: &Prefix, strip: Strip, frame: &[u8], push: OwnPush<'_>) -> Vec<u8> {
    match strip {
        Strip::Quoted => unquoted(prefix, frame),
        _ if reply::is_error(frame) => unquoted(prefix, frame),
        Strip::Channels => own_channels(prefix, frame),
        _ => piecewise(Stripper::new(strip), prefix, frame, push),
    }
}

/// EXEC's reply; `queued` has the shape of each element.
pub(crate) fn exec(prefix: &Prefix, queued: Vec<Strip>, frame: &[u8], push: OwnPush<'_>) -> Vec<u8> {
    if reply::is_error(frame) {
        return unquoted(prefix, frame);
    }
    piecewise(Stripper::exec(queued), prefix, frame, push)
}

fn piecewise(mut stripper: Stripper, prefix: &Prefix, frame: &[u8], push: OwnPush<'_>) -> Vec<u8> {
    let mut out = BytesMut::with_capacity(frame.len());
    stripper.feed(prefix, frame, &mut out, push);
    out.to_vec()
}

/// Errors quote what the client sent: `'app:k'` becomes `'k'`.
fn unquoted(prefix: &Prefix, frame: &[u8]) -> Vec<u8> {
    let quoted = [b"'", prefix.text()].concat();
    if memmem::find(frame, &quoted).is_none() {
        return frame.to_vec();
    }
    let replace = |text: &[u8]| {
        let mut own = Vec::with_capacity(text.len());
        let mut rest = text;
        while let Some(at) = memmem::find(rest, &quoted) {
            own.extend_from_slice(&rest[..=at]);
            rest = &rest[at + quoted.len()..];
        }
        own.extend_from_slice(rest);
        own
    };
    match (frame.first(), reply::bulk(frame)) {
        (Some(b'-' | b'+'), _) => replace(frame),
        (Some(b'$'), Some(text)) => {
            let mut out = BytesMut::new();
            build::bulk(&mut out, &replace(text));
            out.to_vec()
        }
        _ => frame.to_vec(),
    }
}

fn own_channels(prefix: &Prefix, frame: &[u8]) -> Vec<u8> {
    let own: Vec<Vec<u8>> = elements(frame).filter_map(reply::bulk).filter_map(|c| prefix.own_channel(c)).collect();
    let mut out = BytesMut::new();
    build::array(&mut out, own.len());
    own.iter().for_each(|channel| build::bulk(&mut out, channel));
    out.to_vec()
}

/// One open aggregate.
#[derive(Clone, Copy, Debug)]
struct Level {
    place: Place,
    kind: u8,
    left: u64,
    index: u64,
}

/// What is being passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Passing {
    /// A header line stands next.
    Header,
    /// So many bytes of a payload, its line end included.
    Payload(usize),
    /// The same, and they are not for the client.
    Skipped(usize),
    /// A line too long to be collected.
    Line,
}

/// Longer lines are passed on in parts.
const LINE_HELD: usize = 64 * 1024;

/// What a channel of keyspace events has in front of its key, the prefix aside: `__keyspace@4294967295__:`.
const CHANNEL_HEAD: usize = 32;

/// One reply on its way down.
#[derive(Debug)]
pub(crate) struct Stripper {
    top: Place,
    queued: Vec<Strip>,
    levels: SmallVec<[Level; 8]>,
    passing: Passing,
    /// Bytes that cannot be understood before more come: at most a line, a key's beginning, or a push in the midst.
    held: BytesMut,
}

impl Stripper {
    pub(crate) fn new(strip: Strip) -> Stripper {
        Stripper::at(Place::of(strip))
    }

    pub(crate) fn exec(queued: Vec<Strip>) -> Stripper {
        Stripper { queued, ..Stripper::at(Place::Exec) }
    }

    /// A push too large to be looked at as a whole.
    pub(crate) fn invalidation() -> Stripper {
        Stripper::at(Place::Invalidation)
    }

    fn at(top: Place) -> Stripper {
        let (levels, held) = (SmallVec::new(), BytesMut::new());
        Stripper { top, queued: Vec::new(), levels, passing: Passing::Header, held }
    }

    /// Appends what the next bytes of the reply are to the client.
    pub(crate) fn feed(&mut self, prefix: &Prefix, bytes: &[u8], out: &mut BytesMut, push: OwnPush<'_>) {
        let mut held = std::mem::take(&mut self.held);
        let joined: &[u8] = if held.is_empty() {
            bytes
        } else {
            held.extend_from_slice(bytes);
            &held
        };
        let mut at = 0;
        while at < joined.len() {
            let step = self.step(prefix, &joined[at..], out, push);
            if step == 0 {
                break;
            }
            at += step;
        }
        self.held = BytesMut::from(&joined[at..]);
    }

    /// Takes a piece off the front of `rest`; 0: more is needed.
    fn step(&mut self, prefix: &Prefix, rest: &[u8], out: &mut BytesMut, push: OwnPush<'_>) -> usize {
        match self.passing {
            Passing::Header => self.header(prefix, rest, out, push),
            Passing::Payload(left) | Passing::Skipped(left) => {
                let n = rest.len().min(left);
                let shown = matches!(self.passing, Passing::Payload(_));
                if shown {
                    out.put_slice(&rest[..n]);
                }
                self.passing = match left - n {
                    0 => Passing::Header,
                    left if shown => Passing::Payload(left),
                    left => Passing::Skipped(left),
                };
                n
            }
            Passing::Line => self.line(rest, out),
        }
    }

    fn header(&mut self, prefix: &Prefix, rest: &[u8], out: &mut BytesMut, push: OwnPush<'_>) -> usize {
        match rest[0] {
            b'$' | b'=' | b'!' => self.bulk(prefix, rest, out),
            b'>' if !self.levels.is_empty() => self.embedded(rest, out, push),
            b'*' | b'~' | b'>' | b'%' | b'|' => self.aggregate(rest, out),
            _ => self.line(rest, out),
        }
    }

    fn line(&mut self, rest: &[u8], out: &mut BytesMut) -> usize {
        if let Some(end) = find_end(rest, 0) {
            out.put_slice(&rest[..end]);
            self.passing = Passing::Header;
            self.element();
            return end;
        }
        let long = self.passing == Passing::Line || rest.len() > LINE_HELD;
        let n = if long { rest.len() - usize::from(rest.ends_with(b"\r")) } else { 0 };
        if long {
            self.passing = Passing::Line;
            out.put_slice(&rest[..n]);
        }
        n
    }

    fn bulk(&mut self, prefix: &Prefix, rest: &[u8], out: &mut BytesMut) -> usize {
        let Ok(Some((n, header))) = length(rest) else { return 0 };
        let Some(n) = n else {
            out.put_slice(&rest[..header]);
            self.element();
            return header;
        };
        let place = self.place();
        let look = match place {
            Place::Key => n.min(prefix.text().len()),
            Place::Channel => n.min(prefix.text().len() + CHANNEL_HEAD),
            _ => 0,
        };
        let Some(start) = rest[header..].get(..look) else { return 0 };
        self.element();
        let own = match place {
            Place::Key => prefix.own(start),
            _ => None,
        };
        if own.is_some() {
            build::header(out, b'$', n - look);
            self.passing = Passing::Payload(n - look + 2);
            return header + look;
        }
        if place == Place::Channel {
            return header + self.channel(prefix, start, n, out);
        }
        out.put_slice(&rest[..header]);
        self.passing = Passing::Payload(n + 2);
        header
    }

    /// A channel whose first bytes are `start`; how many of those are done with.
    fn channel(&mut self, prefix: &Prefix, start: &[u8], n: usize, out: &mut BytesMut) -> usize {
        match prefix.own_channel(start) {
            Some(own) => {
                let cut = start.len() - own.len();
                build::header(out, b'$', n - cut);
                out.put_slice(&own);
                self.passing = Passing::Payload(n - start.len() + 2);
            }
            None => {
                // How many there are has been said already.
                out.put_slice(b"$0\r\n\r\n");
                self.passing = Passing::Skipped(n - start.len() + 2);
            }
        }
        start.len()
    }

    fn aggregate(&mut self, rest: &[u8], out: &mut BytesMut) -> usize {
        let Ok(Some((n, header))) = length(rest) else { return 0 };
        let kind = rest[0];
        out.put_slice(&rest[..header]);
        let pairs = matches!(kind, b'%' | b'|');
        let left = n.unwrap_or(0) as u64 * if pairs { 2 } else { 1 };
        let place = if kind == b'|' { Place::Plain } else { self.place() };
        self.levels.push(Level { place, kind, left, index: 0 });
        self.close();
        header
    }

    /// Redis up to 7.0 writes pushes where they happen.
    fn embedded(&mut self, rest: &[u8], out: &mut BytesMut, push: OwnPush<'_>) -> usize {
        match frame_len(rest) {
            Some(len) => {
                out.put_slice(&push(&rest[..len]).unwrap_or_default());
                len
            }
            None if rest.len() > LARGE => {
                let Ok(Some((n, header))) = length(rest) else { return 0 };
                out.put_slice(&rest[..header]);
                let left = n.unwrap_or(0) as u64;
                self.levels.push(Level { place: Place::Invalidation, kind: b'>', left, index: 0 });
                self.close();
                header
            }
            None => 0,
        }
    }

    /// What stands next.
    fn place(&self) -> Place {
        let Some(level) = self.levels.last() else { return self.top };
        match level.place {
            Place::Exec => {
                let strip = usize::try_from(level.index).ok().and_then(|i| self.queued.get(i));
                Place::of(strip.copied().unwrap_or_default())
            }
            place => place.element(level.kind, level.index),
        }
    }

    /// A scalar has ended, or begun to pass.
    fn element(&mut self) {
        if let Some(level) = self.levels.last_mut() {
            level.left = level.left.saturating_sub(1);
            level.index += 1;
        }
        self.close();
    }

    fn close(&mut self) {
        while let Some(level) = self.levels.last().copied()
            && level.left == 0
        {
            self.levels.pop();
            // An attribute precedes an element, and a push in the midst is none.
            let is_element = !matches!(level.kind, b'|' | b'>');
            if let Some(around) = self.levels.last_mut().filter(|_| is_element) {
                around.left = around.left.saturating_sub(1);
                around.index += 1;
            }
        }
    }
}
