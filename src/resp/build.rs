//! Appends our own replies and requests to an output buffer. Runs wherever Nearside answers or asks by itself; upstream's
//! bytes are relayed and never pass here. Each function writes one frame or one header and cannot fail.

use bytes::{BufMut, BytesMut};

use super::Proto;

/// Decimal digits of the longest integer, `i64::MIN`, sign included.
const INTEGER_MAX: usize = 20;

/// An error reply, `text` with its code in front (`ERR ...`). Line ends within become blanks, as in Redis: texts quote what
/// clients sent.
pub(crate) fn error(out: &mut BytesMut, text: &str) {
    line(out, b'-', text);
}

/// The same for a text that quotes bytes.
pub(crate) fn error_bytes(out: &mut BytesMut, text: &[u8]) {
    out.put_u8(b'-');
    flat(out, text);
    out.put_slice(b"\r\n");
}

/// A status such as `OK`.
pub(crate) fn simple(out: &mut BytesMut, text: &str) {
    line(out, b'+', text);
}

pub(crate) fn bulk(out: &mut BytesMut, bytes: &[u8]) {
    out.reserve(bytes.len() + INTEGER_MAX + 5);
    header(out, b'$', bytes.len());
    out.put_slice(bytes);
    out.put_slice(b"\r\n");
}

/// The null of a missing value (`$-1` in RESP2).
pub(crate) fn null(out: &mut BytesMut, proto: Proto) {
    out.put_slice(match proto {
        Proto::Resp2 => b"$-1\r\n",
        Proto::Resp3 => b"_\r\n",
    });
}

/// A bulk of three pieces, one behind the other; where its payload lies in `out`.
pub(crate) fn bulk_of(out: &mut BytesMut, pieces: [&[u8]; 3]) -> std::ops::Range<usize> {
    let len = pieces.iter().map(|piece| piece.len()).sum();
    out.reserve(len + INTEGER_MAX + 5);
    header(out, b'$', len);
    let start = out.len();
    pieces.iter().for_each(|piece| out.put_slice(piece));
    out.put_slice(b"\r\n");
    start..start + len
}

pub(crate) fn integer(out: &mut BytesMut, n: i64) {
    out.put_u8(b':');
    decimal(out, n);
    out.put_slice(b"\r\n");
}

/// The header of an array; `n` frames must follow.
pub(crate) fn array(out: &mut BytesMut, n: usize) {
    header(out, b'*', n);
}

/// The header of a push, in RESP2 of an array; `n` frames must follow.
pub(crate) fn push_or_array(out: &mut BytesMut, proto: Proto, n: usize) {
    header(out, if proto == Proto::Resp3 { b'>' } else { b'*' }, n);
}

/// The header of a map of `n` entries, in RESP2 of the flat array; 2 `n` frames must follow.
pub(crate) fn map_or_array(out: &mut BytesMut, proto: Proto, n: usize) {
    match proto {
        Proto::Resp2 => header(out, b'*', 2 * n),
        Proto::Resp3 => header(out, b'%', n),
    }
}

/// A verbatim string of the three-letter `kind` (`txt`), in RESP2 a bulk.
pub(crate) fn verbatim_or_bulk(out: &mut BytesMut, proto: Proto, kind: &str, bytes: &[u8]) {
    match proto {
        Proto::Resp2 => bulk(out, bytes),
        Proto::Resp3 => {
            out.reserve(bytes.len() + INTEGER_MAX + 9);
            header(out, b'=', bytes.len() + kind.len() + 1);
            out.put_slice(kind.as_bytes());
            out.put_u8(b':');
            out.put_slice(bytes);
            out.put_slice(b"\r\n");
        }
    }
}

/// A request to upstream.
pub(crate) fn command(out: &mut BytesMut, args: &[&[u8]]) {
    array(out, args.len());
    for arg in args {
        bulk(out, arg);
    }
}

/// The header line of an aggregate or a bulk.
pub(crate) fn header(out: &mut BytesMut, kind: u8, n: usize) {
    out.put_u8(kind);
    decimal(out, n as i64);
    out.put_slice(b"\r\n");
}

fn line(out: &mut BytesMut, kind: u8, text: &str) {
    out.put_u8(kind);
    flat(out, text.as_bytes());
    out.put_slice(b"\r\n");
}

/// Appends `text` with line ends made blanks, so that it cannot end the line early.
pub(super) fn flat(out: &mut BytesMut, text: &[u8]) {
    let start = out.len();
    out.put_slice(text);
    for byte in &mut out[start..] {
        if matches!(*byte, b'\r' | b'\n') {
            *byte = b' ';
        }
    }
}

fn decimal(out: &mut BytesMut, n: i64) {
    let mut text = [0; INTEGER_MAX];
    let mut at = text.len();
    let mut left = n.unsigned_abs();
    loop {
        at -= 1;
        text[at] = b'0' + (left % 10) as u8;
        left /= 10;
        if left == 0 {
            break;
        }
    }
    if n < 0 {
        at -= 1;
        text[at] = b'-';
    }
    out.put_slice(&text[at..]);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(write: impl FnOnce(&mut BytesMut)) -> String {
        let mut out = BytesMut::new();
        write(&mut out);
        String::from_utf8(out.to_vec()).expect("ASCII")
    }

    #[test]
    fn integers_of_every_length() {
        for n in [0, 7, 10, -1, 65_536, i64::MAX, i64::MIN] {
            assert_eq!(written(|out| integer(out, n)), format!(":{n}\r\n"));
        }
    }

    #[test]
    fn an_error_stays_on_its_line() {
        assert_eq!(written(|out| error(out, "ERR unknown 'a\r\n+OK'")), "-ERR unknown 'a  +OK'\r\n");
    }

    #[test]
    fn forms_by_protocol() {
        use Proto::{Resp2, Resp3};
        assert_eq!(written(|out| null(out, Resp2)), "$-1\r\n");
        assert_eq!(written(|out| null(out, Resp3)), "_\r\n");
        assert_eq!(written(|out| map_or_array(out, Resp2, 3)), "*6\r\n");
        assert_eq!(written(|out| map_or_array(out, Resp3, 3)), "%3\r\n");
        assert_eq!(written(|out| verbatim_or_bulk(out, Resp2, "txt", b"ab")), "$2\r\nab\r\n");
        assert_eq!(written(|out| verbatim_or_bulk(out, Resp3, "txt", b"ab")), "=6\r\ntxt:ab\r\n");
        assert_eq!(written(|out| command(out, &[b"GET", b""])), "*2\r\n$3\r\nGET\r\n$0\r\n\r\n");
    }
}
