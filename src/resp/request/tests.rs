//! The scanner against itself (cut anywhere), against `redis_protocol` (valid input) and against redis-server (errors,
//! inline words).

use std::cell::RefCell;

use proptest::prelude::*;
use redis_protocol::resp2::decode::decode as decode_resp2;
use redis_protocol::resp2::types::{OwnedFrame, Resp2Frame};

use super::super::{build, real::Server};
use super::*;
use crate::limits::BULK_MAX;

/// Longer than any request of these tests.
const QUERY_LIMIT: usize = 1 << 30;

#[derive(Clone, Debug, PartialEq)]
enum Event {
    Nothing,
    Request(Vec<Vec<u8>>),
    Error(ProtocolError),
}

/// A client's bytes, fed piece by piece, and what came of them. `None` in a request: an argument not shown.
struct Feed {
    scanner: Scanner,
    buf: Vec<u8>,
    streaming: Option<Vec<Vec<u8>>>,
    events: Vec<Event>,
}

impl Feed {
    fn new() -> Self {
        Self::with(Scanner::new(BULK_MAX, QUERY_LIMIT))
    }

    fn with(scanner: Scanner) -> Self {
        Self { scanner, buf: Vec::new(), streaming: None, events: Vec::new() }
    }

    fn feed(&mut self, bytes: &[u8]) {
        self.buf.extend_from_slice(bytes);
        while self.step() {}
    }

    fn failed(&self) -> bool {
        matches!(self.events.last(), Some(Event::Error(_)))
    }

    fn step(&mut self) -> bool {
        if self.failed() {
            return false;
        }
        if self.streaming.is_some() {
            return self.stream();
        }
        match self.scanner.scan(&self.buf) {
            Scan::Incomplete => return false,
            Scan::Large => self.streaming = Some(Vec::new()),
            Scan::Nothing { len } => self.consume(len, Event::Nothing),
            Scan::Request { len } => self.consume(len, Event::Request(words(&self.scanner, &self.buf[..len]))),
            Scan::Inline { len } => {
                self.consume(len, Event::Request(words(&self.scanner, self.scanner.inline())));
            }
            Scan::Error(error) => self.events.push(Event::Error(error)),
        }
        true
    }

    fn stream(&mut self) -> bool {
        let args = self.streaming.as_mut().expect("streaming");
        let mut on_arg = |i: usize, arg: Option<&[u8]>| {
            assert_eq!(i, args.len());
            args.push(arg.map_or_else(|| b"<long>".to_vec(), <[u8]>::to_vec));
        };
        match self.scanner.stream(&self.buf, &mut on_arg) {
            Ok(Streamed { take, done }) => {
                self.buf.drain(..take);
                if done {
                    self.events.extend(self.streaming.take().map(Event::Request));
                }
                done
            }
            Err(error) => {
                self.events.push(Event::Error(error));
                false
            }
        }
    }

    fn consume(&mut self, len: usize, event: Event) {
        self.events.push(event);
        self.buf.drain(..len);
    }
}

fn words(scanner: &Scanner, raw: &[u8]) -> Vec<Vec<u8>> {
    scanner.args().iter().map(|arg| raw[arg.range()].to_vec()).collect()
}

fn events(bytes: &[u8]) -> Vec<Event> {
    let mut feed = Feed::new();
    feed.feed(bytes);
    feed.events
}

fn multibulk(args: &[&[u8]]) -> Vec<u8> {
    let mut out = BytesMut::new();
    build::command(&mut out, args);
    out.to_vec()
}

fn request(args: &[&[u8]]) -> Event {
    Event::Request(args.iter().map(|arg| arg.to_vec()).collect())
}

fn pieces() -> impl Strategy<Value = Vec<u8>> {
    let arg = prop_oneof![
        4 => proptest::collection::vec(any::<u8>(), 0..12),
        1 => proptest::collection::vec(any::<u8>(), 90..130),
    ];
    prop_oneof![
        6 => proptest::collection::vec(arg, 1..6).prop_map(|args| {
            multibulk(&args.iter().map(Vec::as_slice).collect::<Vec<_>>())
        }),
        1 => Just(b"\r\n".to_vec()),
        1 => Just(b"\n".to_vec()),
        1 => Just(b"*0\r\n".to_vec()),
        1 => Just(b"*-1\r\n".to_vec()),
        1 => Just(b"*1\rx$4\ryPINGzz".to_vec()),
        2 => "[a-z \\t\"'\\\\x0-9]{0,20}\r?\n".prop_map(String::into_bytes),
        1 => "[*$a-z0-9+-]{1,6}\r\n".prop_map(String::into_bytes),
    ]
}

proptest! {
    #[test]
    fn cuts_change_nothing(pipeline in proptest::collection::vec(pieces(), 1..6)) {
        let bytes = pipeline.concat();
        let whole = events(&bytes);
        for cut in 0..bytes.len() {
            let mut feed = Feed::new();
            feed.feed(&bytes[..cut]);
            feed.feed(&bytes[cut..]);
            prop_assert_eq!(&feed.events, &whole, "cut at {}", cut);
        }
        let mut feed = Feed::new();
        for byte in &bytes {
            feed.feed(std::slice::from_ref(byte));
        }
        prop_assert_eq!(&feed.events, &whole, "byte by byte");
    }

    #[test]
    fn valid_multibulk_reads_as_redis_protocol_reads_it(
        args in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..300), 1..20),
    ) {
        let bytes = multibulk(&args.iter().map(Vec::as_slice).collect::<Vec<_>>());
        let Ok(Some((OwnedFrame::Array(frames), len))) = decode_resp2(&bytes) else {
            panic!("valid request")
        };
        let theirs: Vec<_> = frames.iter().map(|frame| frame.as_bytes().expect("bulk").to_vec()).collect();
        prop_assert_eq!(len, bytes.len());
        prop_assert_eq!(events(&bytes), vec![Event::Request(theirs)]);
    }

    #[test]
    fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..200), cut in 0usize..200) {
        let mut feed = Feed::new();
        feed.feed(&bytes[..cut.min(bytes.len())]);
        feed.feed(&bytes[cut.min(bytes.len())..]);
    }
}

#[test]
fn arguments_are_ranges_of_the_request() {
    let bytes = [multibulk(&[b"GET", b"key"]), multibulk(&[b"PING"])].concat();
    let mut scanner = Scanner::new(BULK_MAX, QUERY_LIMIT);
    assert_eq!(scanner.scan(&bytes), Scan::Request { len: 22 });
    assert_eq!(scanner.argc_declared(), 2);
    assert_eq!(words(&scanner, &bytes), [b"GET".to_vec(), b"key".to_vec()]);
    assert_eq!(scanner.args()[1].len(), 3);
    assert_eq!(scanner.scan(&bytes[22..]), Scan::Request { len: 14 });
    assert_eq!(scanner.args().len(), 1);
}

#[test]
fn an_inline_request_becomes_multibulk() {
    let mut scanner = Scanner::new(BULK_MAX, QUERY_LIMIT);
    let line = b"set \"a b\\x41\\n\" 'it\\'s' \"\"\r\nrest";
    assert_eq!(scanner.scan(line), Scan::Inline { len: line.len() - 4 });
    assert_eq!(scanner.inline(), multibulk(&[b"set", b"a bA\n", b"it's", b""]));
    assert_eq!(words(&scanner, scanner.inline()).len(), 4);
}

#[test]
fn a_long_argument_is_not_searched_again() {
    let bytes = multibulk(&[b"SET", b"key", &vec![b'\n'; LARGE - 64]]);
    let mut scanner = Scanner::new(BULK_MAX, QUERY_LIMIT);
    let mut before = 0;
    for end in 1..bytes.len() {
        assert_eq!(scanner.scan(&bytes[..end]), Scan::Incomplete);
        assert!(scanner.pos >= before, "what is understood stays so");
        before = scanner.pos;
    }
    assert_eq!(before, bytes.len() - 2 - (LARGE - 64), "the payload itself is not looked at");
    assert_eq!(scanner.scan(&bytes), Scan::Request { len: bytes.len() });
}

#[test]
fn a_long_line_is_not_searched_again() {
    let line = vec![b'a'; INLINE_MAX];
    let mut scanner = Scanner::new(BULK_MAX, QUERY_LIMIT);
    for end in 1..line.len() {
        assert_eq!(scanner.scan(&line[..end]), Scan::Incomplete);
        assert_eq!(scanner.line.searched, end, "the next search starts behind what was seen");
    }
}

#[test]
fn large_comes_at_the_header() {
    let head = format!("*3\r\n$3\r\nSET\r\n$1\r\nk\r\n${LARGE}\r\n");
    let mut scanner = Scanner::new(BULK_MAX, QUERY_LIMIT);
    assert_eq!(scanner.scan(&head.as_bytes()[..head.len() - 1]), Scan::Incomplete);
    assert_eq!(scanner.scan(head.as_bytes()), Scan::Large);
    assert_eq!(words(&scanner, head.as_bytes()), [b"SET".to_vec(), b"k".to_vec()]);
}

#[test]
fn a_large_request_that_is_whole_is_a_request() {
    let bytes = multibulk(&[b"SET", b"k", &vec![b'x'; 2 * LARGE]]);
    let mut scanner = Scanner::new(BULK_MAX, QUERY_LIMIT);
    assert_eq!(scanner.scan(&bytes), Scan::Request { len: bytes.len() });
}

#[test]
fn many_small_arguments_are_large_together() {
    let mut bytes = b"*1000000\r\n".to_vec();
    bytes.extend_from_slice(&b"$1\r\nx\r\n".repeat(LARGE / 7));
    let mut scanner = Scanner::new(BULK_MAX, QUERY_LIMIT);
    assert_eq!(scanner.scan(&bytes), Scan::Large);
    assert!(scanner.args().len() > LARGE / 8);
}

#[test]
fn a_streamed_request_shows_its_short_arguments() {
    let shown = vec![b's'; SHOWN_MAX];
    let long = vec![b'l'; SHOWN_MAX + 1];
    let larger = vec![b'L'; LARGE + 1];
    let one = multibulk(&[b"MSET", b"a", &larger, &shown, &long, b"", b"z"]);
    let bytes = [one, multibulk(&[b"PING"])].concat();
    let expected = vec![request(&[b"MSET", b"a", b"<long>", &shown, b"<long>", b"", b"z"]), request(&[b"PING"])];
    for chunk in [1, 7, 1000, 16 * 1024, LARGE] {
        let mut feed = Feed::new();
        let mut held = 0;
        for piece in bytes.chunks(chunk) {
            feed.feed(piece);
            held = held.max(feed.buf.len());
        }
        assert_eq!(feed.events, expected, "in chunks of {chunk}");
        assert!(held <= SHOWN_MAX + chunk + 64, "holds {held} bytes");
    }
}

#[test]
fn errors_within_a_streamed_request() {
    let larger = vec![b'L'; LARGE + 1];
    for (tail, error) in [
        ("$x\r\n", ProtocolError::Bulk),
        (":1\r\n", ProtocolError::NotBulk(b':')),
        ("$536870913\r\n", ProtocolError::Bulk),
    ] {
        let mut bytes = multibulk(&[b"MSET", b"a", &larger, b"b"]);
        bytes[1] = b'5';
        bytes.extend_from_slice(tail.as_bytes());
        let mut feed = Feed::new();
        bytes.chunks(4096).for_each(|piece| feed.feed(piece));
        assert_eq!(feed.events, [Event::Error(error)]);
    }
}

#[test]
fn a_request_beyond_the_query_limit_is_refused_without_reply() {
    let mut small = Feed::with(Scanner::new(BULK_MAX, 1000));
    small.feed(b"*2\r\n$3\r\nGET\r\n$990\r\n");
    assert_eq!(small.events, [Event::Error(ProtocolError::QueryLimit)]);

    let mut streamed = Feed::with(Scanner::new(BULK_MAX, 3 * LARGE));
    let bytes = multibulk(&[b"MSET", b"a", &vec![b'x'; 2 * LARGE], b"b", &vec![b'x'; LARGE]]);
    bytes.chunks(4096).for_each(|piece| streamed.feed(piece));
    assert_eq!(streamed.events, [Event::Error(ProtocolError::QueryLimit)]);

    let mut out = BytesMut::new();
    ProtocolError::QueryLimit.reply(&mut out);
    assert!(out.is_empty());
}

#[test]
fn a_huge_request_leaves_no_memory_behind() {
    let bytes = multibulk(&vec![&b""[..]; 100_000]);
    let mut scanner = Scanner::new(BULK_MAX, QUERY_LIMIT);
    assert_eq!(scanner.scan(&bytes), Scan::Request { len: bytes.len() });
    assert_eq!(scanner.scan(b"PING\r\n"), Scan::Inline { len: 6 });
    assert!(scanner.args.capacity() <= ARGS_KEPT);
}

/// What Nearside answers to `bytes`, if every request is a PING.
fn answer(bytes: &[u8]) -> Vec<u8> {
    let mut out = BytesMut::new();
    for event in events(bytes) {
        match event {
            Event::Nothing => {}
            Event::Request(args) => {
                assert_eq!(args, [b"PING".to_vec()]);
                build::simple(&mut out, "PONG");
            }
            Event::Error(error) => error.reply(&mut out),
        }
    }
    out.to_vec()
}

#[test]
fn malformed_requests_are_answered_as_redis_answers_them() {
    let server = Server::start();
    let long = |head: &[u8], byte: u8| [head, &vec![byte; INLINE_MAX + 4096]].concat();
    let short: [&[u8]; 37] = [
        b"*abc\r\n",
        b"*01\r\n",
        b"*+1\r\n",
        b"* 1\r\n",
        b"*1 \r\n",
        b"*\r\n",
        b"*-\r\n",
        b"*-0\r\n",
        b"*1x\r\n",
        b"*2147483648\r\n",
        b"*99999999999999999999\r\n",
        b"*0000000000000000000000001\r\n",
        b"*1\r\nfoo\r\n",
        b"*1\r\n\r\n\r\n",
        b"*1\r\n\nfoo\r\n",
        b"*1\r\n\xff\r\n",
        b"*1\r\n:3\r\n",
        b"*1\r\n*1\r\n",
        b"*1\r\n$\r\n",
        b"*1\r\n$-1\r\n",
        b"*1\r\n$01\r\n",
        b"*1\r\n$+1\r\n",
        b"*1\r\n$ 3\r\n",
        b"*1\r\n$3x\r\n",
        b"*1\r\n$536870913\r\n",
        b"*1\r\n$9223372036854775808\r\n",
        b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$z\r\n",
        b"\"abc\r\n",
        b"'abc\r\n",
        b"\"a\"b\r\n",
        b"'a'b\r\n",
        b"\"a\\\r\n",
        b"a\"\n",
        b"PING \"\\x4\n",
        b"PING\r\n*1\r\n$x\r\n",
        b"\r\n\n \t\r\n*0\r\n*-7\r\n*-1\r\nPING\n*z\r\n",
        b"*1\rx$4\ryPINGzz*1\r\n$y\r\n",
    ];
    let mut inputs: Vec<Vec<u8>> = short.iter().map(|input| input.to_vec()).collect();
    inputs.extend([
        long(b"", b'a'),
        long(b"*", b'1'),
        long(b"*1\r\n$", b'1'),
        long(b"*1\r\n", b'x'),
        // A NUL hides the end of the line.
        long(b"PING\0\r\n", b'a'),
        long(b"*1\0\r\n", b'1'),
        long(b"*1\r\n$4\0\r\nPING\r\n", b'1'),
    ]);
    for input in inputs {
        let mut connection = server.connect();
        connection.send(&input);
        let theirs = connection.until_closed();
        let shown = input[..input.len().min(40)].escape_ascii();
        assert_eq!(answer(&input).escape_ascii().to_string(), theirs.escape_ascii().to_string(), "{shown}");
    }
}

/// The words of an inline request, seen through a script that returns its arguments.
#[test]
fn inline_words_are_those_of_redis() {
    let server = Server::start();
    let connection = RefCell::new(server.connect());
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(400));
    let text = "[ab \\t\\x0b\\x0c\r\"'\\\\xX4gnt]{0,16}";
    let outcome = runner.run(&text.prop_map(String::from), |text| {
        let line = format!("EVAL return(ARGV) 0 {text}\r\n");
        connection.borrow_mut().send(line.as_bytes());
        let theirs = connection.borrow_mut().reply();
        let ours = match events(line.as_bytes()).pop() {
            Some(Event::Request(words)) => multibulk(&words[3..].iter().map(Vec::as_slice).collect::<Vec<_>>()),
            Some(Event::Error(error)) => {
                let mut out = BytesMut::new();
                error.reply(&mut out);
                out.to_vec()
            }
            other => panic!("{other:?}"),
        };
        if theirs.starts_with(b"-") {
            connection.replace(server.connect());
        }
        prop_assert_eq!(ours.escape_ascii().to_string(), theirs.escape_ascii().to_string());
        Ok(())
    });
    outcome.expect("same words");
}
