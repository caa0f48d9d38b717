//! A scripted upstream, for tests in which frames must be exact. It answers the sidecar's own housekeeping (handshake,
//! PING, CLIENT, the canary) as Redis 7.0 would in RESP3 and leaves every other command to the test, connection by
//! connection. Replies keep the order of the requests: an automatic one waits for the scripted ones before it.
//! It keeps no data.

use std::collections::{HashMap, HashSet, VecDeque};
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, Weak};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::client::shown;
use super::{PATIENCE, encode, temp_dir};

/// A command's words.
pub(crate) type Words = Vec<Vec<u8>>;

/// Keys of the sidecar's own; commands on them are housekeeping.
const CANARY: &[u8] = b"nearside:canary:";

#[derive(Clone)]
enum Answer {
    /// The test answers, by `expect` and `reply`.
    Script,
    Bytes(Vec<u8>),
}

pub(crate) struct Builder {
    rules: HashMap<String, Answer>,
}

impl Builder {
    /// The test answers this command itself: `scripted("PING")`, `scripted("CLIENT TRACKING")`.
    pub(crate) fn scripted(mut self, name: &str) -> Builder {
        self.rules.insert(name.to_ascii_uppercase(), Answer::Script);
        self
    }

    /// This command is always answered so.
    pub(crate) fn answer(mut self, name: &str, bytes: &str) -> Builder {
        self.rules.insert(name.to_ascii_uppercase(), Answer::Bytes(bytes.into()));
        self
    }

    #[track_caller]
    pub(crate) fn start(self) -> Fake {
        let dir = temp_dir();
        let socket = dir.path().join("fake.sock");
        let listener = UnixListener::bind(&socket).expect("a socket to listen on");
        let hub = Arc::new(Hub { rules: self.rules, state: Mutex::default(), changed: Condvar::new() });
        let accepting = hub.clone();
        std::thread::spawn(move || accept(&accepting, &listener));
        Fake { hub, socket, _dir: dir }
    }
}

pub(crate) struct Fake {
    hub: Arc<Hub>,
    socket: PathBuf,
    _dir: TempDir,
}

struct Hub {
    rules: HashMap<String, Answer>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    links: Vec<Link>,
    over: bool,
}

/// One connection of the sidecar, as the hub sees it.
struct Link {
    stream: UnixStream,
    proto: u8,
    tracking: bool,
    claimed: bool,
    closed: bool,
    /// Scripted commands that the test has not looked at.
    calls: VecDeque<Words>,
    /// Requests without a reply on the wire, oldest first; `None`: the script's turn.
    owed: VecDeque<Option<Vec<u8>>>,
    /// It is subscribed to the sidecars' channel: no business of the script's.
    channel: bool,
    /// Canary keys this connection has read.
    watched: HashSet<Vec<u8>>,
}

impl Fake {
    #[track_caller]
    pub(crate) fn start() -> Fake {
        Fake::builder().start()
    }

    pub(crate) fn builder() -> Builder {
        Builder { rules: HashMap::new() }
    }

    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    pub(crate) fn url(&self) -> String {
        format!("unix://{}", self.socket.display())
    }

    /// The next lane that no test has taken yet: the connection that said CLIENT TRACKING ON.
    #[track_caller]
    pub(crate) fn lane(&self) -> Conn {
        self.claim("a connection that says CLIENT TRACKING ON", |link| link.tracking && !link.closed)
    }

    /// The next connection, not a lane, that has sent something for the script.
    #[track_caller]
    pub(crate) fn other(&self) -> Conn {
        self.claim("a connection beside the lane with a command", |link| !link.tracking && !link.calls.is_empty())
    }

    /// `other`, where there may be none.
    pub(crate) fn try_other(&self, within: Duration) -> Option<Conn> {
        self.try_claim(within, |link| !link.tracking && !link.calls.is_empty())
    }

    /// The next connection of any kind, as soon as it is accepted.
    #[track_caller]
    pub(crate) fn accept(&self) -> Conn {
        self.claim("a connection", |link| !link.channel)
    }

    /// Connections that are open.
    pub(crate) fn open(&self) -> usize {
        self.hub.lock().links.iter().filter(|link| !link.closed && !link.channel).count()
    }

    /// Connections there ever were.
    pub(crate) fn accepted(&self) -> usize {
        self.hub.lock().links.iter().filter(|link| !link.channel).count()
    }

    #[track_caller]
    fn claim(&self, what: &str, fits: impl Fn(&Link) -> bool) -> Conn {
        self.try_claim(PATIENCE, fits).unwrap_or_else(|| panic!("no {what} within {PATIENCE:?}"))
    }

    fn try_claim(&self, within: Duration, fits: impl Fn(&Link) -> bool) -> Option<Conn> {
        let number = self.hub.wait(within, |state| {
            let number = state.links.iter().position(|link| !link.claimed && fits(link))?;
            state.links[number].claimed = true;
            Some(number)
        });
        number.map(|number| Conn { hub: Arc::downgrade(&self.hub), number })
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        let mut state = self.hub.lock();
        state.over = true;
        state.links.iter().for_each(|link| drop(link.stream.shutdown(Shutdown::Both)));
        drop(state);
        let _ = UnixStream::connect(&self.socket); // wakes the acceptor, so that its thread ends
    }
}

/// A connection in the hands of the test.
pub(crate) struct Conn {
    hub: Weak<Hub>,
    number: usize,
}

impl Conn {
    /// The next scripted command of this connection.
    #[track_caller]
    pub(crate) fn next(&mut self) -> Words {
        self.try_next(PATIENCE).unwrap_or_else(|| panic!("no command within {PATIENCE:?}"))
    }

    pub(crate) fn try_next(&mut self, within: Duration) -> Option<Words> {
        let number = self.number;
        self.hub().wait(within, |state| state.links[number].calls.pop_front())
    }

    /// The next scripted command must be this one.
    #[track_caller]
    pub(crate) fn expect<A: AsRef<[u8]>>(&mut self, words: &[A]) -> &mut Conn {
        let got = self.next();
        let wanted: Vec<&[u8]> = words.iter().map(AsRef::as_ref).collect();
        assert!(got == wanted, "upstream got {:?}, not {:?}", words_shown(&got), words_shown(&wanted));
        self
    }

    /// Answers the oldest scripted command without an answer; more bytes (a push) may follow the reply in one write.
    #[track_caller]
    pub(crate) fn reply(&mut self, bytes: impl AsRef<[u8]>) -> &mut Conn {
        let hub = self.hub();
        let link = &mut hub.lock().links[self.number];
        let owed = link.owed.iter_mut().find(|owed| owed.is_none()).expect("a command without an answer");
        *owed = Some(bytes.as_ref().to_vec());
        link.flush();
        self
    }

    /// Bytes that answer nothing: pushes, halves of replies, rubbish. They go out at once.
    pub(crate) fn send(&mut self, bytes: impl AsRef<[u8]>) -> &mut Conn {
        self.hub().lock().links[self.number].write(bytes.as_ref());
        self
    }

    /// The push that says these keys have changed.
    pub(crate) fn invalidate<A: AsRef<[u8]>>(&mut self, keys: &[A]) -> &mut Conn {
        self.send(invalidation(keys))
    }

    /// The push that says everything has changed.
    pub(crate) fn flush(&mut self) -> &mut Conn {
        self.send(b">2\r\n$10\r\ninvalidate\r\n_\r\n")
    }

    pub(crate) fn close(&mut self) {
        let _ = self.hub().lock().links[self.number].stream.shutdown(Shutdown::Both);
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.hub().lock().links[self.number].closed
    }

    #[track_caller]
    fn hub(&self) -> Arc<Hub> {
        self.hub.upgrade().expect("a fake that lives")
    }
}

/// `>2 invalidate [keys]`
pub(crate) fn invalidation<A: AsRef<[u8]>>(keys: &[A]) -> Vec<u8> {
    let mut push = b">2\r\n$10\r\ninvalidate\r\n".to_vec();
    push.extend(encode(keys));
    push
}

impl Hub {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn wait<T>(&self, within: Duration, mut look: impl FnMut(&mut State) -> Option<T>) -> Option<T> {
        let end = Instant::now() + within;
        let mut state = self.lock();
        loop {
            if let Some(found) = look(&mut state) {
                return Some(found);
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(|poisoned| poisoned.into_inner()).0;
        }
    }

    fn follow(&self, number: usize, mut stream: UnixStream) {
        let (mut input, mut chunk) = (Vec::new(), vec![0; 64 * 1024]);
        while let Ok(n @ 1..) = stream.read(&mut chunk) {
            input.extend_from_slice(&chunk[..n]);
            while let Some((words, used)) = request(&input) {
                input.drain(..used);
                self.receive(number, words);
            }
        }
        self.lock().links[number].closed = true;
        self.changed.notify_all();
    }

    fn receive(&self, number: usize, words: Words) {
        let mut state = self.lock();
        let answer = self.answer(&mut state, number, &words);
        let link = &mut state.links[number];
        if answer.is_none() {
            link.calls.push_back(words);
        }
        link.owed.push_back(answer);
        link.flush();
        self.changed.notify_all();
    }

    /// The test's rule for this command, by its first two words or its first; else the housekeeping's answer.
    fn answer(&self, state: &mut State, number: usize, words: &Words) -> Option<Vec<u8>> {
        let name = upper(words.first());
        if state.links[number].channel {
            return housekeeping(&mut state.links[number], number, &name, words);
        }
        let rule = self.rules.get(&format!("{name} {}", upper(words.get(1)))).or_else(|| self.rules.get(&name));
        if let Some(rule) = rule {
            state.links[number].note(&name, words);
            return match rule {
                Answer::Script => None,
                Answer::Bytes(bytes) => Some(bytes.clone()),
            };
        }
        match words.get(1) {
            Some(key) if key.starts_with(CANARY) => Some(canary(state, number, &name, key)),
            _ => housekeeping(&mut state.links[number], number, &name, words),
        }
    }
}

impl Link {
    /// What a command changes about its connection, whoever answers it.
    fn note(&mut self, name: &str, words: &Words) {
        match (name, upper(words.get(1)).as_str(), upper(words.get(2)).as_str()) {
            ("HELLO", "3", _) => self.proto = 3,
            ("HELLO", "2", _) => self.proto = 2,
            ("SUBSCRIBE", "NEARSIDE:INVALIDATE", _) => self.channel = true,
            ("CLIENT", "TRACKING", on) => self.tracking = on == "ON",
            _ => {}
        }
    }

    /// Sends what is due: up to the first request that the script still owes an answer.
    fn flush(&mut self) {
        while let Some(Some(_)) = self.owed.front() {
            let bytes = self.owed.pop_front().flatten().unwrap_or_default();
            self.write(&bytes);
        }
    }

    /// A peer that is gone is the reader thread's news.
    fn write(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes);
    }
}

fn accept(hub: &Arc<Hub>, listener: &UnixListener) {
    for stream in listener.incoming().map_while(Result::ok) {
        let mut state = hub.lock();
        if state.over {
            return;
        }
        let number = state.links.len();
        let reading = stream.try_clone().expect("a second handle");
        state.links.push(Link {
            stream,
            proto: 2,
            tracking: false,
            claimed: false,
            closed: false,
            channel: false,
            calls: VecDeque::new(),
            owed: VecDeque::new(),
            watched: HashSet::new(),
        });
        drop(state);
        hub.changed.notify_all();
        let hub = hub.clone();
        std::thread::spawn(move || hub.follow(number, reading));
    }
}

/// What the sidecar says on its own account; `None` for a command of a client.
fn housekeeping(link: &mut Link, number: usize, name: &str, words: &Words) -> Option<Vec<u8>> {
    link.note(name, words);
    let id = number + 1;
    let nil = if link.proto == 3 { "_\r\n" } else { "$-1\r\n" };
    let text = match (name, upper(words.get(1)).as_str()) {
        ("HELLO", _) => hello(link.proto, id),
        ("AUTH" | "SELECT" | "READONLY", _) => "+OK\r\n".into(),
        ("PUBLISH", "NEARSIDE:INVALIDATE") => ":1\r\n".into(),
        ("SUBSCRIBE", "NEARSIDE:INVALIDATE") => subscribed(&words[1]),
        ("PING", _) if link.channel => "*2\r\n$4\r\npong\r\n$0\r\n\r\n".into(),
        ("PING", _) => "+PONG\r\n".into(),
        ("RESET", _) => "+RESET\r\n".into(),
        ("ROLE", _) => "*3\r\n$6\r\nmaster\r\n:0\r\n*0\r\n".into(),
        ("CLIENT", "ID") => format!(":{id}\r\n"),
        ("CLIENT", _) => "+OK\r\n".into(),
        ("COMMAND", "INFO") => format!("*{}\r\n{}", words.len() - 2, nil.repeat(words.len() - 2)),
        ("INFO", "MEMORY") => "$28\r\n# Memory\r\nused_memory:1000\r\n\r\n".into(),
        ("INFO", "KEYSPACE") => "$12\r\n# Keyspace\r\n\r\n".into(),
        ("ACL", "WHOAMI") => "$7\r\ndefault\r\n".into(),
        _ => return None,
    };
    Some(text.into_bytes())
}

fn subscribed(channel: &[u8]) -> String {
    let name = String::from_utf8_lossy(channel);
    format!("*3\r\n$9\r\nsubscribe\r\n${}\r\n{name}\r\n:1\r\n", name.len())
}

fn hello(proto: u8, id: usize) -> String {
    let head = if proto == 3 { "%7" } else { "*14" };
    let text = |name: &str, value: &str| format!("${}\r\n{name}\r\n${}\r\n{value}\r\n", name.len(), value.len());
    let number = |name: &str, value: usize| format!("${}\r\n{name}\r\n:{value}\r\n", name.len());
    let mode = text("mode", "standalone") + &text("role", "master") + "$7\r\nmodules\r\n*0\r\n";
    let versions = text("server", "redis") + &text("version", "7.0.15");
    format!("{head}\r\n{versions}{}{}{mode}", number("proto", proto.into()), number("id", id))
}

/// Plays the one key that the sidecar uses to see that tracking works: a write is pushed to whoever has read it.
fn canary(state: &mut State, number: usize, name: &str, key: &[u8]) -> Vec<u8> {
    match name {
        "SET" | "SETEX" | "PSETEX" | "DEL" | "UNLINK" | "INCR" => {
            for link in state.links.iter_mut().filter(|link| link.tracking) {
                if link.watched.remove(key) {
                    link.write(&invalidation(&[key]));
                }
            }
            if matches!(name, "DEL" | "UNLINK" | "INCR") { b":1\r\n".to_vec() } else { b"+OK\r\n".to_vec() }
        }
        "PTTL" => b":-2\r\n".to_vec(),
        _ => {
            state.links[number].watched.insert(key.to_vec());
            b"_\r\n".to_vec()
        }
    }
}

/// The first whole multibulk request, and its length. The sidecar sends nothing else upstream on its own.
fn request(input: &[u8]) -> Option<(Words, usize)> {
    let (count, mut at) = header(input, 0, b'*')?;
    let mut words = Vec::with_capacity(count);
    for _ in 0..count {
        let (length, start) = header(input, at, b'$')?;
        words.push(input.get(start..start + length)?.to_vec());
        at = start + length + 2;
    }
    (input.len() >= at).then_some((words, at))
}

fn header(input: &[u8], at: usize, mark: u8) -> Option<(usize, usize)> {
    let rest = input.get(at..)?;
    let end = rest.windows(2).position(|w| w == b"\r\n")?;
    assert_eq!(rest[0], mark, "the sidecar sent {}", shown(rest));
    let digits = std::str::from_utf8(&rest[1..end]).ok()?.parse().ok()?;
    Some((digits, at + end + 2))
}

fn upper(word: Option<&Vec<u8>>) -> String {
    word.map(|word| String::from_utf8_lossy(word).to_ascii_uppercase()).unwrap_or_default()
}

fn words_shown<A: AsRef<[u8]>>(words: &[A]) -> Vec<String> {
    words.iter().map(|word| shown(word.as_ref())).collect()
}
