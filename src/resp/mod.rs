//! The wire: boundaries of requests and replies, found without copying or decoding (`request`, `reply`), the exact
//! RESP2 form of a RESP3 reply (`downgrade`), small builders of our own replies (`build`), and the one place that decodes
//! frames into values (`push`, the only module that imports `redis_protocol`). Knows no command, no connection, no cache.

pub(crate) mod build;
pub(crate) mod downgrade;
pub(crate) mod push;
#[cfg(test)]
pub(crate) mod real;
pub(crate) mod reply;
pub(crate) mod request;

/// A protocol version a client or an upstream connection speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub(crate) enum Proto {
    #[default]
    Resp2,
    Resp3,
}

/// Digits that `count` reads; anything longer takes the slow, exact path. 99,999,999 is beyond every count and length
/// that is not about to be streamed.
const COUNT_DIGITS: usize = 8;

/// The number at the start of `text` and the index of the `\r` behind it, if that is how it goes on: plain decimal without
/// sign or leading zero, at most `COUNT_DIGITS` long. None means "look closer", not "wrong".
#[inline(always)]
fn count(text: &[u8]) -> Option<(usize, usize)> {
    let mut n = digit(*text.first()?)?;
    // One digit is by far the most frequent, and the only place for a zero in front.
    if *text.get(1)? == b'\r' {
        return Some((n, 1));
    }
    if n == 0 {
        return None;
    }
    for i in 1..=COUNT_DIGITS {
        let byte = *text.get(i)?;
        match digit(byte) {
            Some(next) => n = n * 10 + next,
            None => return (byte == b'\r').then_some((n, i)),
        }
    }
    None
}

#[inline(always)]
fn digit(byte: u8) -> Option<usize> {
    let digit = byte.wrapping_sub(b'0');
    (digit <= 9).then_some(usize::from(digit))
}

/// Redis's `string2ll`: a decimal number with nothing around it. No plus sign, no spaces, no leading zero, no `-0`.
pub(crate) fn integer(text: &[u8]) -> Option<i64> {
    let digits = text.strip_prefix(b"-").unwrap_or(text);
    let canonical = match digits {
        [b'0'] => text.len() == 1,
        [b'1'..=b'9', rest @ ..] => rest.iter().all(u8::is_ascii_digit),
        _ => false,
    };
    if !canonical {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_are_as_strict_as_string2ll() {
        for (text, value) in [
            ("0", Some(0)),
            ("-1", Some(-1)),
            ("10", Some(10)),
            ("9223372036854775807", Some(i64::MAX)),
            ("-9223372036854775808", Some(i64::MIN)),
            ("9223372036854775808", None),
            ("", None),
            ("-", None),
            ("-0", None),
            ("+1", None),
            ("01", None),
            (" 1", None),
            ("1 ", None),
            ("1a", None),
        ] {
            assert_eq!(integer(text.as_bytes()), value, "{text:?}");
        }
    }

    #[test]
    fn count_reads_only_what_is_plain() {
        for (text, value) in [
            ("0\r\n", Some((0, 1))),
            ("12\r\n", Some((12, 2))),
            ("12345678\r", Some((12_345_678, 8))),
            ("123456789\r\n", None),
            ("", None),
            ("1", None),
            ("\r\n", None),
            ("00\r\n", None),
            ("-1\r\n", None),
        ] {
            assert_eq!(count(text.as_bytes()), value, "{text:?}");
        }
    }
}
