//! Frames that are read rather than relayed: invalidation pushes, as borrowed slices because a storm of 100,000 a second
//! must be absorbed, and the rare replies of a handshake (HELLO, COMMAND INFO, CONFIG GET) as values of our own. The only
//! module that imports `redis_protocol`, which decodes the scalars; maps and sets are walked here, because its own are hash
//! tables: they lose the order and repeated keys of the wire. Does not act on what it reads.

use redis_protocol::resp3::decode::complete::decode_range;
use redis_protocol::resp3::types::RangeFrame;

use super::reply::{Elements, bulk, elements, head, is_frame, is_null};

/// What a push frame says.
#[derive(Clone, Debug)]
pub(crate) enum Push<'a> {
    /// CLIENT TRACKING: these keys changed.
    Invalidate(Keys<'a>),
    /// CLIENT TRACKING: anything may have changed (FLUSHALL, FLUSHDB, a tracking table that ran over).
    InvalidateAll,
    /// Anything else: `message`, `subscribe`, `tracking-redir-broken` ...
    Other { kind: &'a [u8] },
}

/// The keys of one invalidation push.
#[derive(Clone, Debug)]
pub(crate) struct Keys<'a>(Elements<'a>);

impl<'a> Iterator for Keys<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        self.0.by_ref().find_map(bulk)
    }
}

/// Reads a complete push frame. None: not a push, or one without a kind.
pub(crate) fn push(frame: &[u8]) -> Option<Push<'_>> {
    if frame.first() != Some(&b'>') {
        return None;
    }
    let mut parts = elements(frame);
    let kind = bulk(parts.next()?)?;
    if kind != b"invalidate" {
        return Some(Push::Other { kind });
    }
    Some(match parts.next() {
        Some(keys) if names_keys(keys) => Push::Invalidate(Keys(elements(keys))),
        // The null of a flush comes in either protocol's form (RESP-FORMS pitfall 12). What is neither that nor keys is
        // read as the worst it can mean.
        _ => Push::InvalidateAll,
    })
}

/// An array of nothing but keys.
fn names_keys(frame: &[u8]) -> bool {
    frame.starts_with(b"*") && !is_null(frame)
}

/// A decoded reply. Owned: these are rare and small, and outlive the buffer.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    Str(Vec<u8>),
    Int(i64),
    Double(f64),
    Bool(bool),
    Null,
    Error(String),
    /// Arrays, sets and pushes.
    List(Vec<Value>),
    /// In wire order, repeated keys kept.
    Map(Vec<(Value, Value)>),
}

impl Value {
    /// The text of a string.
    pub(crate) fn text(&self) -> Option<&[u8]> {
        match self {
            Self::Str(text) => Some(text),
            _ => None,
        }
    }

    pub(crate) fn integer(&self) -> Option<i64> {
        match self {
            Self::Int(n) => Some(*n),
            _ => None,
        }
    }

    /// The items of an array, set or push.
    pub(crate) fn list(&self) -> Option<&[Value]> {
        match self {
            Self::List(items) => Some(items),
            _ => None,
        }
    }
}

/// Decodes one complete frame of either protocol. None: not exactly one valid frame, or nested too deep.
pub(crate) fn decode(frame: &[u8]) -> Option<Value> {
    // This checks the depth too, so the recursion below is bounded.
    is_frame(frame).then(|| value(frame))?
}

fn value(frame: &[u8]) -> Option<Value> {
    if is_null(frame) {
        return Some(Value::Null);
    }
    match frame.first()? {
        b'*' | b'~' | b'>' => elements(frame).map(value).collect::<Option<_>>().map(Value::List),
        b'%' => map(frame),
        b'|' => value(super::reply::without_attribute(frame)),
        _ => scalar(frame),
    }
}

fn map(frame: &[u8]) -> Option<Value> {
    let mut items = elements(frame);
    let mut entries = Vec::new();
    for _ in 0..head(frame)?.1 {
        entries.push((value(items.next()?)?, value(items.next()?)?));
    }
    Some(Value::Map(entries))
}

fn scalar(frame: &[u8]) -> Option<Value> {
    let text = |(start, end): (usize, usize)| frame.get(start..end);
    let error = |range| Some(Value::Error(String::from_utf8_lossy(text(range)?).into_owned()));
    match decode_range(frame).ok()?.map(|(frame, _)| frame)? {
        RangeFrame::BlobString { data, .. }
        | RangeFrame::SimpleString { data, .. }
        | RangeFrame::BigNumber { data, .. }
        | RangeFrame::VerbatimString { data, .. } => Some(Value::Str(text(data)?.to_vec())),
        RangeFrame::SimpleError { data, .. } | RangeFrame::BlobError { data, .. } => error(data),
        RangeFrame::Number { data, .. } => Some(Value::Int(data)),
        RangeFrame::Double { data, .. } => Some(Value::Double(data)),
        RangeFrame::Boolean { data, .. } => Some(Value::Bool(data)),
        RangeFrame::Null => Some(Value::Null),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(frame: &[u8]) -> Option<Vec<Vec<u8>>> {
        match push(frame) {
            Some(Push::Invalidate(keys)) => Some(keys.map(<[u8]>::to_vec).collect()),
            _ => None,
        }
    }

    fn str(text: &str) -> Value {
        Value::Str(text.into())
    }

    #[test]
    fn invalidation_names_its_keys() {
        let frame = b">2\r\n$10\r\ninvalidate\r\n*2\r\n$1\r\na\r\n$4\r\n\r\n\0b\r\n";
        assert_eq!(keys(frame), Some(vec![b"a".to_vec(), b"\r\n\0b".to_vec()]));
        assert_eq!(keys(b">2\r\n$10\r\ninvalidate\r\n*0\r\n"), Some(vec![]));
    }

    #[test]
    fn a_flush_comes_as_any_null() {
        for null in ["_\r\n", "$-1\r\n", "*-1\r\n"] {
            let frame = format!(">2\r\n$10\r\ninvalidate\r\n{null}");
            assert!(matches!(push(frame.as_bytes()), Some(Push::InvalidateAll)), "{null:?}");
        }
    }

    #[test]
    fn other_pushes_tell_their_kind() {
        let frame = b">3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$1\r\nm\r\n";
        assert!(matches!(push(frame), Some(Push::Other { kind: b"message" })));
        assert!(push(b">0\r\n").is_none());
        assert!(push(b"*1\r\n$1\r\na\r\n").is_none());
    }

    #[test]
    fn values_of_both_protocols() {
        let frame = b"%3\r\n$1\r\nb\r\n:1\r\n+a\r\n*3\r\n_\r\n$-1\r\n*-1\r\n$1\r\nb\r\n~2\r\n,1.5\r\n#t\r\n";
        let list = Value::List(vec![Value::Null, Value::Null, Value::Null]);
        let set = Value::List(vec![Value::Double(1.5), Value::Bool(true)]);
        let map = Value::Map(vec![(str("b"), Value::Int(1)), (str("a"), list), (str("b"), set)]);
        assert_eq!(decode(frame), Some(map));
        assert_eq!(decode(b"=8\r\ntxt:a\r\nb\r\n"), Some(str("a\r\nb")));
        assert_eq!(decode(b"|1\r\n+k\r\n+v\r\n-ERR no\r\n"), Some(Value::Error("ERR no".into())));
        assert_eq!(decode(b"(123456789012345678901\r\n"), Some(str("123456789012345678901")));
    }

    #[test]
    fn what_is_not_one_frame_is_nothing() {
        let deep = b"*1\r\n".repeat(crate::limits::DECODED_DEPTH_MAX + 1);
        for bytes in [&b""[..], b"+OK", b"+OK\r\n+OK\r\n", b"*2\r\n:1\r\n", b"?\r\n", b",x\r\n", &deep] {
            assert_eq!(decode(bytes), None, "{}", bytes.escape_ascii());
        }
    }

    #[test]
    fn the_deepest_frame_allowed_is_decoded() {
        let mut frame = b"*1\r\n".repeat(crate::limits::DECODED_DEPTH_MAX);
        frame.extend_from_slice(b":1\r\n");
        assert!(decode(&frame).is_some());
    }
}
