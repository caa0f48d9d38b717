//! What is said on the sidecars' channel (`coherence.channel`), read and written. Pure: it touches no cache and no
//! connection. Two forms, both case-sensitive: text for people (`key user:1`, `flush`) and JSON for programs. Whoever may
//! publish on the channel can send anything, so everything that is not exactly one of the two forms is [`Malformed`] and
//! has no effect.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use crate::command::prefix::Prefix;

/// What is to be dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Op {
    Key,
    Prefix,
    /// A glob as KEYS takes it.
    Pattern,
    Regex,
    Tag,
    Flush,
}

impl Op {
    /// The word of the text form, and of `NEARSIDE INVALIDATE` in upper case.
    pub(crate) fn named(word: &[u8]) -> Option<Op> {
        Some(match word {
            b"key" => Op::Key,
            b"prefix" => Op::Prefix,
            b"pattern" => Op::Pattern,
            b"regex" => Op::Regex,
            b"tag" => Op::Tag,
            b"flush" => Op::Flush,
            _ => return None,
        })
    }
}

/// One request to drop entries. Which database it is about is not kept: an entry is dropped for all of them, as a push
/// from upstream does, which names no database either.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) op: Op,
    /// Names, prefixes, patterns; empty for `flush` only.
    pub(crate) args: Vec<Vec<u8>>,
}

impl Message {
    /// The same with upstream's names for a client's. An expression finds its text in upstream's names anyway.
    pub(crate) fn upstreams(&self, prefix: &Prefix) -> Message {
        let named = |arg: &Vec<u8>| match self.op {
            Op::Key | Op::Prefix => prefix.key(arg),
            Op::Pattern => prefix.glob(arg),
            Op::Regex | Op::Tag | Op::Flush => arg.clone(),
        };
        Message { op: self.op, args: self.args.iter().map(named).collect() }
    }
}

/// Why a payload has no effect.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Malformed {
    #[error("no such operation; key, prefix, pattern, regex, tag and flush are known")]
    Operation,
    #[error("nothing is named behind the operation")]
    Nothing,
    #[error("flush names nothing")]
    NamedFlush,
    #[error("not valid JSON of the known form: {0}")]
    Json(String),
    #[error("version {0} is not known, 1 is")]
    Version(u64),
    #[error("an argument is no base64")]
    Base64,
    #[error("no regular expression: {0}")]
    Regex(String),
}

impl Malformed {
    /// Without anything of the message itself, as the log may have it.
    pub(crate) fn kind(&self) -> String {
        match self {
            Malformed::Json(_) => "not valid JSON of the known form".to_owned(),
            Malformed::Regex(_) => "no regular expression".to_owned(),
            other => other.to_string(),
        }
    }
}

/// The JSON form. Unknown fields are left for later versions to mean something by.
#[derive(Deserialize)]
struct Wire {
    v: u64,
    op: String,
    #[serde(default)]
    args: Vec<String>,
    #[serde(default)]
    base64: bool,
    /// Checked for its type and not used.
    #[serde(default, rename = "db")]
    _db: Option<u32>,
    #[serde(default, rename = "from")]
    _from: Option<String>,
    #[serde(default, rename = "seq")]
    _seq: Option<u64>,
}

#[derive(Serialize)]
struct Written<'a> {
    v: u64,
    op: Op,
    args: Vec<String>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    base64: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    db: Option<u32>,
    from: &'a str,
    seq: u64,
}

/// Who publishes: a sidecar's name, and the number of this message among its own.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sender<'a> {
    pub(crate) from: &'a str,
    pub(crate) seq: u64,
}

/// Reads a payload of either form.
pub(crate) fn parse(payload: &[u8]) -> Result<Message, Malformed> {
    if payload.first() == Some(&b'{') { json(payload) } else { text(payload) }
}

/// The rest behind one blank is the argument, byte for byte: blanks, line ends and an empty name are part of names.
fn text(payload: &[u8]) -> Result<Message, Malformed> {
    let blank = memchr::memchr(b' ', payload);
    let op = Op::named(&payload[..blank.unwrap_or(payload.len())]).ok_or(Malformed::Operation)?;
    match (op, blank) {
        (Op::Flush, None) => Ok(Message { op, args: Vec::new() }),
        (Op::Flush, Some(_)) => Err(Malformed::NamedFlush),
        (_, Some(at)) => Ok(Message { op, args: vec![payload[at + 1..].to_vec()] }),
        (_, None) => Err(Malformed::Nothing),
    }
}

fn json(payload: &[u8]) -> Result<Message, Malformed> {
    let wire: Wire = serde_json::from_slice(payload).map_err(|e| Malformed::Json(e.to_string()))?;
    if wire.v != 1 {
        return Err(Malformed::Version(wire.v));
    }
    Wanted { op: wire.op, args: wire.args, base64: wire.base64 }.message()
}

/// A message in the words of JSON, here and on the side port.
pub(crate) struct Wanted {
    pub(crate) op: String,
    pub(crate) args: Vec<String>,
    pub(crate) base64: bool,
}

impl Wanted {
    pub(crate) fn message(self) -> Result<Message, Malformed> {
        let op = Op::named(self.op.as_bytes()).ok_or(Malformed::Operation)?;
        match (op, self.args.is_empty()) {
            (Op::Flush, false) => return Err(Malformed::NamedFlush),
            (Op::Flush, true) | (_, false) => {}
            (_, true) => return Err(Malformed::Nothing),
        }
        let bytes = |text: String| match self.base64 {
            true => STANDARD.decode(text).map_err(|_| Malformed::Base64),
            false => Ok(text.into_bytes()),
        };
        Ok(Message { op, args: self.args.into_iter().map(bytes).collect::<Result<_, _>>()? })
    }
}

/// The JSON form of a message of ours. Names that are no UTF-8 make it base64, for all of its names.
pub(crate) fn written<A: AsRef<[u8]>>(op: Op, args: &[A], db: Option<u32>, sender: Sender<'_>) -> Vec<u8> {
    let plain: Option<Vec<String>> = args.iter().map(|a| String::from_utf8(a.as_ref().to_vec()).ok()).collect();
    let base64 = plain.is_none();
    let args = plain.unwrap_or_else(|| args.iter().map(|a| STANDARD.encode(a)).collect());
    let written = Written { v: 1, op, args, base64, db, from: sender.from, seq: sender.seq };
    // Strings, numbers and a bool under fixed names: there is nothing in it that could fail to be written.
    serde_json::to_vec(&written).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn one(op: Op, arg: &[u8]) -> Result<Message, Malformed> {
        Ok(Message { op, args: vec![arg.to_vec()] })
    }

    #[test]
    fn text_is_taken_byte_for_byte() {
        for (payload, read) in [
            (&b"key user:1"[..], one(Op::Key, b"user:1")),
            (b"key ", one(Op::Key, b"")),
            (b"key  a b \r\n", one(Op::Key, b" a b \r\n")),
            (b"key \xff\x00\n", one(Op::Key, b"\xff\x00\n")),
            (b"prefix session:", one(Op::Prefix, b"session:")),
            (b"pattern user:[ab]*", one(Op::Pattern, b"user:[ab]*")),
            (b"regex ^user:\\d+$", one(Op::Regex, b"^user:\\d+$")),
            (b"tag tenant:7", one(Op::Tag, b"tenant:7")),
            (b"flush", Ok(Message { op: Op::Flush, args: vec![] })),
            (b"flush ", Err(Malformed::NamedFlush)),
            (b"key", Err(Malformed::Nothing)),
            (b"KEY a", Err(Malformed::Operation)),
            (b" key a", Err(Malformed::Operation)),
            (b"key\ta", Err(Malformed::Operation)),
            (b"flush\n", Err(Malformed::Operation)),
            (b"*", Err(Malformed::Operation)),
            (b"", Err(Malformed::Operation)),
        ] {
            assert_eq!(parse(payload), read, "{:?}", String::from_utf8_lossy(payload));
        }
    }

    #[test]
    fn json_is_read_as_the_form_says() {
        for (payload, read) in [
            (r#"{"v":1,"op":"key","args":["a"]}"#, one(Op::Key, b"a")),
            (r#"{"v":1,"op":"key","args":["a"],"db":null,"from":"x","seq":17}"#, one(Op::Key, b"a")),
            (r#"{"v":1,"op":"prefix","args":["a"],"base64":false,"db":3,"later":{"x":[1]}}"#, one(Op::Prefix, b"a")),
            (r#"{"v":1,"op":"key","args":["/wA="],"base64":true}"#, one(Op::Key, b"\xff\x00")),
            (r#"{"v":1,"op":"flush"}"#, Ok(Message { op: Op::Flush, args: vec![] })),
            (r#"{"v":1,"op":"flush","args":[]}"#, Ok(Message { op: Op::Flush, args: vec![] })),
            (r#"{"v":1,"op":"flush","args":["a"]}"#, Err(Malformed::NamedFlush)),
            (r#"{"v":1,"op":"key","args":[]}"#, Err(Malformed::Nothing)),
            (r#"{"v":1,"op":"tag"}"#, Err(Malformed::Nothing)),
            (r#"{"v":2,"op":"key","args":["a"]}"#, Err(Malformed::Version(2))),
            (r#"{"v":1,"op":"Key","args":["a"]}"#, Err(Malformed::Operation)),
            (r#"{"v":1,"op":"drop","args":["a"]}"#, Err(Malformed::Operation)),
            (r#"{"v":1,"op":"key","args":["?"],"base64":true}"#, Err(Malformed::Base64)),
        ] {
            assert_eq!(parse(payload.as_bytes()), read, "{payload}");
        }
    }

    #[test]
    fn what_is_almost_json_has_no_effect() {
        for payload in [
            "{",
            "{}",
            r#"{"op":"key","args":["a"]}"#,
            r#"{"v":"1","op":"key","args":["a"]}"#,
            r#"{"v":1,"op":"key","args":"a"}"#,
            r#"{"v":1,"op":"key","args":[1]}"#,
            r#"{"v":1,"op":"key","args":["a"],"db":-1}"#,
            r#"{"v":1,"op":"key","args":["a"],"base64":"yes"}"#,
            r#"{"v":1,"op":"key","op":"flush","args":["a"]}"#,
            r#"{"v":1,"op":"key","args":["a"]} "x""#,
        ] {
            assert!(matches!(parse(payload.as_bytes()), Err(Malformed::Json(_))), "{payload}");
        }
        assert!(matches!(parse(b"{\"v\":1,\"op\":\"key\",\"args\":[\"\xff\"]}"), Err(Malformed::Json(_))));
    }

    #[test]
    fn nesting_does_not_exhaust_the_stack() {
        let deep = format!("{{\"v\":1,\"x\":{}", "[".repeat(200_000));
        assert!(parse(deep.as_bytes()).is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_panic(payload: Vec<u8>) {
            let _ = parse(&payload);
        }

        #[test]
        fn nothing_that_looks_right_panics(payload in r#"(\{"v":1,"op":"(key|flush|tag)",("args":\[("[a-z=]*",?)*\]|"base64":true|"db":[0-9]*|,)*\}?|(key|flush|prefix)[ -~]*)"#) {
            let _ = parse(payload.as_bytes());
        }

        #[test]
        fn what_we_write_we_read(args in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..20), 1..5), db: Option<u32>, seq: u64) {
            let payload = written(Op::Key, &args, db, Sender { from: "nearside:h:1", seq });
            prop_assert_eq!(parse(&payload), Ok(Message { op: Op::Key, args }));
        }
    }

    #[test]
    fn ours_is_the_documented_form() {
        let sender = Sender { from: "nearside:h:1", seq: 17 };
        let plain = written(Op::Key, &["a", "b"], Some(0), sender);
        let shown = String::from_utf8(plain).expect("JSON");
        assert_eq!(shown, r#"{"v":1,"op":"key","args":["a","b"],"db":0,"from":"nearside:h:1","seq":17}"#);
        let binary = written(Op::Prefix, &[&b"\xff"[..]], None, sender);
        let shown = String::from_utf8(binary).expect("JSON");
        assert_eq!(shown, r#"{"v":1,"op":"prefix","args":["/w=="],"base64":true,"from":"nearside:h:1","seq":17}"#);
        let flush = written::<&[u8]>(Op::Flush, &[], None, sender);
        assert_eq!(parse(&flush), Ok(Message { op: Op::Flush, args: vec![] }));
    }
}
