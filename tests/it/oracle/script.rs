//! The language of the scripts beside this file: a step a line, words as redis-cli splits them (`"\r\x00"`, `'raw'`).
//!
//! ```text
//! GET k                 send it on connection `a`, compare one reply
//! b: SET k v            on another connection; one whose name begins with n has not said HELLO 3
//! =2 s: SUBSCRIBE x y   so many frames come; =0 none, or not yet; =closed all bytes up to the end of the connection
//! s: <                  nothing is sent, a frame is awaited
//! ! "PING\r\n"          bytes as they stand
//! ~ % ?                 compare by shape, without digits, without order (else `oracle::DIFFERENCES` says how)
//! $id= CLIENT ID        keep each side's own answer; `$id` is replaced by it
//! 2| 3| once|           only in RESP2, only in RESP3, only in one of the runs
//! 7.0+| auth| quotes|   only with such servers: `support::version::Version::is`
//! plain|                not through a sidecar with `upstream.key_prefix`
//! @info clients blocked_clients:1   wait until INFO says so on both sides
//! @gone k               wait until the key has expired on both sides
//! @drop m               close the connection, whatever it has not read
//! ```
//! Words that stand for long values: `@bin` (all 256 bytes), `@big` and `@big2` (2 MiB each), `@key64k`.

use crate::support::encode;

pub(super) struct Line {
    pub(super) number: usize,
    pub(super) text: &'static str,
    pub(super) only: Only,
    pub(super) step: Step,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Only {
    Always,
    Resp2,
    Resp3,
    Once,
    Plain,
    Server(&'static str),
}

pub(super) enum Step {
    Exchange(Exchange),
    AwaitInfo { section: String, text: String },
    AwaitGone { key: String },
    Drop { connection: String },
}

pub(super) struct Exchange {
    pub(super) connection: String,
    pub(super) send: Send,
    pub(super) replies: Replies,
    /// What the line itself says; else the table of differences does.
    pub(super) compare: Option<Compare>,
    pub(super) keep: Option<String>,
}

pub(super) enum Send {
    Nothing,
    Raw(Vec<u8>),
    Words(Vec<Word>),
}

#[derive(Clone)]
pub(super) enum Word {
    Plain(Vec<u8>),
    Kept(String),
    /// A long value, made when it is sent.
    Noise {
        name: &'static str,
        length: usize,
        seed: u32,
    },
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Replies {
    Frames(usize),
    UntilClosed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Compare {
    Exact,
    /// Runs of digits count as one.
    Digits,
    /// The same elements at each level, in any order.
    Unordered,
    /// The same types and, in aggregates, as many elements.
    Shape,
    /// The same type.
    Type,
    /// Both refuse, each in its own words.
    Errors,
    /// Nearside refuses by name, whatever Redis says.
    Refused,
}

impl Exchange {
    /// The words as a person would write them: `CLIENT SETNAME x`.
    pub(super) fn words(&self) -> Vec<String> {
        match &self.send {
            Send::Words(words) => words.iter().map(Word::shown).collect(),
            _ => Vec::new(),
        }
    }

    /// Sent together with its neighbours it means the same: nothing waits for anybody else, and it is small enough not to
    /// fill a socket whose other end is busy writing.
    pub(super) fn may_be_batched(&self) -> bool {
        const SMALL: usize = 4096;
        let plain = match &self.send {
            Send::Words(words) => words.iter().all(|w| matches!(w, Word::Plain(bytes) if bytes.len() < SMALL)),
            _ => false,
        };
        // Redis refuses it when replies are pending; a sidecar has waited for them before it passes it on.
        let particular =
            self.words().first().is_some_and(|w| w == "SCRIPT") && self.words().get(1).is_some_and(|w| w == "DEBUG");
        plain && !particular && self.keep.is_none() && self.replies != Replies::UntilClosed
    }
}

impl Exchange {
    /// AUTH, or HELLO with it.
    pub(super) fn asks_for_entry(&self) -> bool {
        let words = self.words();
        let is = |word: &String, what| word.eq_ignore_ascii_case(what);
        words.first().is_some_and(|w| is(w, "auth") || is(w, "hello")) && words.iter().any(|w| is(w, "auth"))
    }
}

impl Word {
    fn shown(&self) -> String {
        match self {
            Word::Plain(bytes) => String::from_utf8_lossy(bytes).into_owned(),
            Word::Kept(name) => format!("${name}"),
            Word::Noise { name, .. } => (*name).into(),
        }
    }
}

pub(super) fn parse(script: &'static str) -> Vec<Line> {
    let lines = script.lines().enumerate().map(|(i, text)| (i + 1, text.trim()));
    lines.filter(|(_, text)| !text.is_empty() && !text.starts_with("# ")).map(|(n, text)| line(n, text)).collect()
}

fn line(number: usize, text: &'static str) -> Line {
    let (first, behind) = text.split_once(' ').unwrap_or((text, ""));
    let step = directive(if only(first).is_some() { behind } else { text });
    let mut line = Line { number, text, only: only(first).unwrap_or(Only::Always), step: step.unwrap_or_else(fresh) };
    let Step::Exchange(exchange) = &mut line.step else { return line };
    let mut rest = text;
    loop {
        let (head, tail) = rest.split_once(' ').unwrap_or((rest, ""));
        if let Some(only) = only(head) {
            line.only = only;
        } else if !exchange.prefix(head) {
            break;
        }
        rest = tail.trim_start();
    }
    exchange.send = match rest {
        "<" => Send::Nothing,
        _ => match rest.strip_prefix("! ") {
            Some(raw) => Send::Raw(split(raw).concat()),
            None => Send::Words(split(rest).into_iter().map(word).collect()),
        },
    };
    line
}

fn directive(text: &str) -> Option<Step> {
    let mut words = text.split(' ').map(str::to_owned);
    let mut next = || words.next().unwrap_or_default();
    Some(match next().as_str() {
        "@info" => Step::AwaitInfo { section: next(), text: next() },
        "@gone" => Step::AwaitGone { key: next() },
        "@drop" => Step::Drop { connection: next() },
        _ => return None,
    })
}

fn fresh() -> Step {
    let send = Send::Nothing;
    Step::Exchange(Exchange { connection: "a".into(), send, replies: Replies::Frames(1), compare: None, keep: None })
}

fn only(head: &'static str) -> Option<Only> {
    match head {
        "2|" => Some(Only::Resp2),
        "3|" => Some(Only::Resp3),
        "once|" => Some(Only::Once),
        "plain|" => Some(Only::Plain),
        "auth|" | "quotes|" => head.strip_suffix('|').map(Only::Server),
        _ => head.strip_suffix("+|").map(Only::Server),
    }
}

impl Exchange {
    /// Takes over one of the words before the command; false: it is the command's first.
    fn prefix(&mut self, head: &str) -> bool {
        let compare = match head {
            "~" => Some(Compare::Shape),
            "%" => Some(Compare::Digits),
            "?" => Some(Compare::Unordered),
            _ => None,
        };
        if compare.is_some() {
            self.compare = compare;
        } else if head == "=closed" {
            self.replies = Replies::UntilClosed;
        } else if let Some(count) = head.strip_prefix('=').and_then(|n| n.parse().ok()) {
            self.replies = Replies::Frames(count);
        } else if let Some(name) = head.strip_prefix('$').and_then(|n| n.strip_suffix('=')) {
            self.keep = Some(name.into());
        } else if let Some(name) = head.strip_suffix(':').filter(|n| n.chars().all(|c| c.is_ascii_alphanumeric())) {
            self.connection = name.into();
        } else {
            return false;
        }
        true
    }
}

fn word(bytes: Vec<u8>) -> Word {
    let noise = |name, length, seed| Word::Noise { name, length, seed };
    match bytes.as_slice() {
        b"@bin" => Word::Plain((0..=255).collect()),
        b"@big" => noise("@big", 2 << 20, 1),
        b"@big2" => noise("@big2", 2 << 20, 2),
        b"@key64k" => noise("@key64k", 70_000, 3),
        [b'$', name @ ..] if name.first().is_some_and(u8::is_ascii_alphabetic) => {
            Word::Kept(String::from_utf8_lossy(name).into_owned())
        }
        _ => Word::Plain(bytes),
    }
}

/// Every byte occurs in it; its period is a prime, so it lines up with no buffer.
fn noise(length: usize, seed: u32) -> Vec<u8> {
    const PERIOD: usize = 4099;
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    let period: Vec<u8> = (0..PERIOD).map(|_| next()).collect();
    let mut bytes = period.repeat(length / PERIOD + 1);
    bytes.truncate(length);
    bytes
}

/// Splits as redis-cli does.
fn split(text: &str) -> Vec<Vec<u8>> {
    let (mut words, mut rest) = (Vec::new(), text.trim().as_bytes());
    while !rest.is_empty() {
        let mut word = Vec::new();
        rest = match rest[0] {
            b'"' => escaped(&rest[1..], &mut word),
            b'\'' => {
                let end = rest[1..].iter().position(|b| *b == b'\'').unwrap_or_else(|| panic!("unbalanced: {text}"));
                word.extend_from_slice(&rest[1..=end]);
                &rest[end + 2..]
            }
            _ => {
                let end = rest.iter().position(|b| *b == b' ').unwrap_or(rest.len());
                word.extend_from_slice(&rest[..end]);
                &rest[end..]
            }
        };
        words.push(word);
        rest = rest.trim_ascii_start();
    }
    words
}

/// The rest behind the closing quote.
fn escaped<'a>(mut rest: &'a [u8], word: &mut Vec<u8>) -> &'a [u8] {
    loop {
        let (byte, taken) = match rest {
            [b'"', ..] => return &rest[1..],
            [b'\\', b'x', hex @ ..] => {
                let digits = std::str::from_utf8(&hex[..2]).expect("two hex digits");
                (u8::from_str_radix(digits, 16).expect("two hex digits"), 4)
            }
            [b'\\', b'n', ..] => (b'\n', 2),
            [b'\\', b'r', ..] => (b'\r', 2),
            [b'\\', other, ..] => (*other, 2),
            [byte, ..] => (*byte, 1),
            [] => panic!("no closing quote"),
        };
        word.push(byte);
        rest = &rest[taken..];
    }
}

/// The bytes to send, with each side's own kept values.
pub(super) fn bytes(send: &Send, kept: &std::collections::HashMap<String, Vec<u8>>) -> Vec<u8> {
    match send {
        Send::Nothing => Vec::new(),
        Send::Raw(raw) => raw.clone(),
        Send::Words(words) => {
            let side = |word: &Word| match word {
                Word::Plain(bytes) => bytes.clone(),
                Word::Kept(name) => kept.get(name).cloned().unwrap_or_else(|| panic!("nothing kept as ${name}")),
                Word::Noise { length, seed, .. } => noise(*length, *seed),
            };
            encode(&words.iter().map(side).collect::<Vec<Vec<u8>>>())
        }
    }
}

#[test]
fn a_line_is_read_as_it_looks() {
    let lines =
        parse("# comment\n3| =2 s: ~ SUBSCRIBE a \"b\\x00\\r\"\n$id= CLIENT ID\n=closed e: ! \"x\\n\"\n@gone k\n");
    assert_eq!(lines.len(), 4);
    assert!(lines[0].only == Only::Resp3 && lines[0].number == 2);
    let Step::Exchange(first) = &lines[0].step else { panic!("no exchange") };
    assert_eq!((first.connection.as_str(), first.compare), ("s", Some(Compare::Shape)));
    assert!(first.replies == Replies::Frames(2));
    assert_eq!(first.words(), ["SUBSCRIBE", "a", "b\0\r"]);
    let Step::Exchange(second) = &lines[1].step else { panic!("no exchange") };
    assert_eq!(second.keep.as_deref(), Some("id"));
    let Step::Exchange(third) = &lines[2].step else { panic!("no exchange") };
    assert!(third.replies == Replies::UntilClosed && matches!(&third.send, Send::Raw(raw) if raw == b"x\n"));
    assert!(matches!(&lines[3].step, Step::AwaitGone { key } if key == "k"));
}
