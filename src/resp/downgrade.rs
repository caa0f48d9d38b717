//! The RESP2 bytes that Redis would have sent, from the RESP3 bytes it did send (RESP-FORMS rules 1 to 4). Runs for every
//! lane reply to a RESP2 client that is not the same in both protocols. One pass without recursion: what changes is
//! headers and scalars in place, so only an attribute needs its extent known. Doubles keep their text. Does not know the
//! command: the caller says which form its reply has, and has taken embedded pushes out before.

use bytes::{BufMut, BytesMut};

use super::build;
use super::reply::{after_attribute, elements, head, line};

/// What the bytes of a reply do not say themselves: which null its `_` was, and the shape of its top.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// The same bytes in both protocols.
    Same,
    /// Null is `$-1`.
    Bulk,
    /// Null is `*-1`.
    Array,
    /// An array of pairs at the top becomes flat; null is `$-1`.
    Flatten,
    /// The map at the top becomes an array of pairs; null is `*-1`.
    Pairs,
    /// XPENDING's summary: null is `*-1` as element 3, `$-1` elsewhere.
    Xpending,
}

const BULK_NULL: &[u8] = b"$-1\r\n";
const ARRAY_NULL: &[u8] = b"*-1\r\n";
const PAIR: &[u8] = b"*2\r\n";

/// Appends the RESP2 form of a complete RESP3 frame. Bytes that are no valid frame give bytes that are none either.
pub(crate) fn to_resp2(frame: &[u8], form: Form, out: &mut BytesMut) {
    let plain = matches!(frame.first(), Some(b'+' | b'-' | b':' | b'$'));
    if plain || form == Form::Same {
        out.put_slice(frame);
        return;
    }
    out.reserve(frame.len());
    match form {
        Form::Flatten if is_pairs(frame) => flatten(frame, out),
        Form::Pairs if is_map(frame) => pairs(frame, out),
        Form::Xpending => xpending(frame, out),
        Form::Array | Form::Pairs => convert(frame, ARRAY_NULL, out),
        Form::Same | Form::Bulk | Form::Flatten => convert(frame, BULK_NULL, out),
    }
}

/// Rule 1 over a sequence of frames: unchanged stretches are copied as they are.
fn convert(bytes: &[u8], null: &[u8], out: &mut BytesMut) {
    let mut copied = 0;
    let mut at = 0;
    while at < bytes.len() {
        let rest = &bytes[at..];
        if let Some(len) = unchanged(rest) {
            at += len;
            continue;
        }
        out.put_slice(&bytes[copied..at]);
        let Some(len) = changed(rest, null, out) else {
            copied = at;
            break;
        };
        at += len;
        copied = at;
    }
    out.put_slice(&bytes[copied..]);
}

/// The length of what stands at the start of `rest`, if RESP2 has the same: a line, an array's header, a bulk.
fn unchanged(rest: &[u8]) -> Option<usize> {
    match rest.first()? {
        b'*' => Some(head(rest)?.2),
        b'$' if rest.get(1) == Some(&b'-') => Some(head(rest)?.2),
        b'$' => {
            let (_, n, header) = head(rest)?;
            let end = header + n + 2;
            (end <= rest.len()).then_some(end)
        }
        b'+' | b'-' | b':' => Some(line(rest)?.1),
        _ => None,
    }
}

/// Writes the RESP2 form of the scalar or header at the start of `rest`; its length. None: not a RESP3 type.
fn changed(rest: &[u8], null: &[u8], out: &mut BytesMut) -> Option<usize> {
    match rest.first()? {
        b'_' => {
            out.put_slice(null);
            Some(line(rest)?.1)
        }
        b'#' => {
            let (text, len) = line(rest)?;
            out.put_slice(if text == b"t" { b":1\r\n" } else { b":0\r\n" });
            Some(len)
        }
        b',' | b'(' => {
            let (text, len) = line(rest)?;
            build::bulk(out, text);
            Some(len)
        }
        b'=' | b'!' => long_scalar(rest, out),
        b'%' => {
            let (_, n, len) = head(rest)?;
            build::array(out, 2 * n);
            Some(len)
        }
        b'~' | b'>' => {
            let (_, n, len) = head(rest)?;
            build::array(out, n);
            Some(len)
        }
        b'|' => {
            head(rest)?;
            Some(rest.len() - after_attribute(rest).len())
        }
        _ => None,
    }
}

/// A verbatim string loses its `txt:`; a long error becomes a line.
fn long_scalar(rest: &[u8], out: &mut BytesMut) -> Option<usize> {
    let (kind, n, header) = head(rest)?;
    let payload = rest.get(header..header + n)?;
    rest.get(header + n..header + n + 2)?;
    if kind == b'=' {
        build::bulk(out, payload.get(4..)?);
    } else {
        out.put_u8(b'-');
        build::flat(out, payload);
        out.put_slice(b"\r\n");
    }
    Some(header + n + 2)
}

/// Rule 2's shape: an array of arrays of two.
fn is_pairs(frame: &[u8]) -> bool {
    let mut all = elements(frame);
    frame.starts_with(b"*") && all.left() > 0 && all.all(|element| element.starts_with(PAIR))
}

fn flatten(frame: &[u8], out: &mut BytesMut) {
    let pairs = elements(frame);
    build::array(out, 2 * pairs.left());
    for pair in pairs {
        convert(&pair[PAIR.len()..], BULK_NULL, out);
    }
}

fn is_map(frame: &[u8]) -> bool {
    frame.starts_with(b"%")
}

fn pairs(frame: &[u8], out: &mut BytesMut) {
    let entries = elements(frame);
    build::array(out, entries.left() / 2);
    for (i, element) in entries.enumerate() {
        if i % 2 == 0 {
            out.put_slice(PAIR);
        }
        convert(element, ARRAY_NULL, out);
    }
}

fn xpending(frame: &[u8], out: &mut BytesMut) {
    if !frame.starts_with(b"*") {
        return convert(frame, BULK_NULL, out);
    }
    let fields = elements(frame);
    build::array(out, fields.left());
    for (i, field) in fields.enumerate() {
        let consumers = i == 3;
        convert(field, if consumers { ARRAY_NULL } else { BULK_NULL }, out);
    }
}

#[cfg(test)]
mod tests;
