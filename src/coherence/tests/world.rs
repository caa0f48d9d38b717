//! Real sessions, lanes and L1 between a model of the server and a model of clients, in steps that a test chooses. The
//! clients' model knows the history of every key and judges each reply: is there a state of the server that explains it and
//! that is not too old for this session, for this sidecar, and for the lease?

use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use tokio::runtime::Runtime;

use super::super::hold::Hold;
use super::super::lane::{Availability, Lane};
use super::super::wait::{Ends, Waiting};
use super::server::{Conn, Place, Server, State};
use crate::cache::{Bounds, L1};
use crate::config::{CacheMode, Canary, Config, Rule};
use crate::net::Stream;
use crate::observe::clock;
use crate::observe::metrics::Metrics;
use crate::observe::reasons::{Method, Mode, Reread};
use crate::observe::status::Status;
use crate::resp::reply::{self, Frame, FrameScanner};
use crate::resp::request::{Scan, Scanner};
use crate::resp::{Proto, build};
use crate::session::Probe;
use crate::upstream::handshake::{LaneLink, Link, Refusal, ServerInfo};
use crate::upstream::{Credential, Profile};
use crate::worker::Ctx;

const MS: u64 = 1_000_000;
const START: u64 = 1_000_000 * MS;

/// Time that passes with everything that happens, so that no two things happen at once.
const TURN: u64 = 1_000;

pub(super) const KEYS: usize = 5;
pub(super) const SESSIONS: usize = 4;

/// Which lanes there are; sessions take turns on them.
#[derive(Clone, Copy, Debug)]
pub(super) enum Layout {
    OneLane,
    TwoUsers,
    TwoDatabases,
}

/// How long entries live.
#[derive(Clone, Copy, Debug)]
pub(super) enum Lives {
    /// Longer than any history.
    Long,
    /// 400 ms, but nearly every hit has them read again: by `refresh_ahead`, `stale_while_revalidate`, and both.
    Ahead,
    Stale,
    Both,
}

impl Lives {
    /// Nothing is due while the same turn lasts in which it was read.
    const SOFT: Duration = Duration::from_nanos(2 * TURN);

    fn rules(self) -> Vec<Rule> {
        let yaml = "[{pattern: '*', commands: [GET, MGET, SUBSTR]}]";
        let mut rule = Config::for_tests_with_rules(yaml).rules.remove(0);
        let whole = Duration::from_millis(400);
        (rule.ttl, rule.refresh_ahead, rule.stale_while_revalidate) = match self {
            Lives::Long => return Vec::new(),
            Lives::Ahead => (whole, Some(whole - Lives::SOFT), Duration::ZERO),
            Lives::Stale => (Lives::SOFT, None, whole - Lives::SOFT),
            Lives::Both => (whole / 2, Some(whole / 2 - Lives::SOFT), whole / 2),
        };
        rule.negative_ttl = rule.ttl;
        vec![rule]
    }
}

/// A rule that is broken on purpose, from outside, to prove that the judge sees it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Broken {
    /// R12: a token dies with the stripe's generation.
    Token,
    /// R14: nothing is stored while a write is pending.
    Pending,
    /// R7, R16: a flush voids what is being fetched.
    FlushGeneration,
    /// R1: no connection vouches for what another one has read.
    Epoch,
    /// R17: only the refresh's own write and its own lane's pushes are excused.
    Carry,
    /// R8: `now - F <= B`.
    Lease,
    /// R21: `F > fence`.
    Fence,
    /// R15: an opaque reply waits for the PONGs.
    Hold,
    /// R22: no hit on a key that an outstanding command names.
    Named,
    /// Decision 6: what was handed out without its PONG forbids what is older.
    Floor,
    /// A write that was sent while nothing was served ends what was read before its reply.
    Unseen,
    /// After a switch back a lane serves by a CLIENT TRACKING ON that upstream has carried out.
    Tracking,
}

/// What a client asks for; keys by number.
#[derive(Clone, Debug)]
pub(super) enum Ask {
    Get(usize),
    Mget(Vec<usize>),
    /// A keyed read that the L1 does not answer.
    Range(usize),
    /// A keyed read that is kept, in one of two forms.
    Form(usize, usize),
    Set(usize, Option<u64>),
    Mset(usize, usize),
    Del(usize),
    /// A script that writes a key it does not declare.
    Script(usize),
}

/// What a session does on a connection of its own.
#[derive(Clone, Copy, Debug)]
pub(super) enum Own {
    Read,
    /// EXEC with one SET.
    Write,
    /// A script inside EXEC.
    Script,
}

#[derive(Clone, Debug)]
pub(super) enum Foreign {
    Set(usize, Option<u64>),
    Mset(usize, usize),
    Del(usize),
    FlushAll,
}

#[derive(Clone, Debug)]
pub(super) enum Step {
    /// A session sends these in one piece.
    Ask(usize, Vec<Ask>),
    /// The next stage of what a session does on a connection of its own: sent, executed, answered.
    Own(usize, usize, Own),
    Foreign(Foreign),
    /// The server executes so many commands of a lane.
    Execute(usize, usize),
    /// So many frames reach a lane.
    Deliver(usize, usize),
    /// Everything on its way on a lane arrives.
    Settle(usize),
    /// Milliseconds pass.
    Pass(u64),
    Ping(usize),
    /// A lane's connection breaks after so many of its commands have been executed; the server may execute the rest later.
    Cut(usize, usize),
    Reconnect(usize),
    /// A lane that waits for an answer has had none for too long; another one loses its connection and gets no new one.
    Gone(usize),
    Orphan,
    /// NEARSIDE INVALIDATE, NEARSIDE FLUSH.
    Drop(usize),
    Flush,
    /// NEARSIDE MODE.
    Mode(CacheMode),
}

struct Wire {
    lane: Rc<Lane>,
    db: u32,
    first_epoch: u64,
    conn: Option<Conn>,
    /// The handshake of its next connection has asked for CLIENT TRACKING: the mode was `serve` when that began.
    asks: bool,
    /// On their way to the server.
    up: VecDeque<Vec<String>>,
    down: VecDeque<Vec<u8>>,
}

/// A reply that a client waits for.
struct Asked {
    keys: Vec<usize>,
    what: What,
    at: u64,
    /// Nothing was outstanding: the reply may not be older than anything the session has been told.
    idle: bool,
    /// What the sidecar had acknowledged to anybody, by key.
    floor: Vec<State>,
}

enum What {
    Read,
    Write(String),
}

/// A command on a session's own connection.
enum Stage {
    Sent(Vec<String>, Begun),
    Executed(Vec<u8>, Begun),
    Held(Rc<Hold>, u64),
}

/// The L1's side of a command, as it was when it was sent.
struct Begun {
    ends: Ends,
    /// A write, and nothing was served.
    unseen: bool,
}

struct Client {
    probe: Probe,
    wire: usize,
    asked: VecDeque<Asked>,
    input: BytesMut,
    /// The newest state that each key has been seen in, or was written by this session.
    seen: BTreeMap<usize, State>,
    /// No idle read may need an older state than this (G5).
    cursor: State,
    own: Option<(Own, usize, Stage)>,
}

pub(super) struct World {
    ctx: Rc<Ctx>,
    broken: Option<Broken>,
    now: u64,
    names: Vec<String>,
    server: Server,
    wires: Vec<Wire>,
    clients: Vec<Client>,
    orphans: VecDeque<(u32, Vec<String>)>,
    /// What the sidecar has acknowledged, by database and key.
    acked: BTreeMap<(u32, usize), State>,
    next: u64,
    _runtime: Runtime,
}

impl World {
    pub(super) fn new(layout: Layout, lives: Lives, own_pushes_first: bool, broken: Option<Broken>) -> World {
        clock::fake::set(START);
        let metrics = Arc::new(Metrics::new(":", 10));
        let bounds = Bounds { max_bytes: 1 << 20, max_entries: None, lru: false };
        let l1 = Arc::new(L1::new(bounds, metrics.clone()));
        let mut config = Config::for_tests("redis://127.0.0.1:1");
        config.rules = lives.rules();
        config.cache.commands = [Method::Get, Method::Mget, Method::Substr].into_iter().collect();
        // It is written over another connection, which this world has not.
        config.coherence.canary = Canary::Off;
        let config = Arc::new(config);
        let status = Arc::new(Status::new("upstream", Mode::Serve));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().expect("a runtime");
        let names = names(&l1);
        let ctx = Ctx::new(config, l1, metrics, status);
        let mut world = World {
            ctx,
            broken,
            now: START,
            names,
            server: Server::new(own_pushes_first),
            wires: Vec::new(),
            clients: Vec::new(),
            orphans: VecDeque::new(),
            acked: BTreeMap::new(),
            next: 1,
            _runtime: runtime,
        };
        world.populate(layout);
        world
    }

    fn populate(&mut self, layout: Layout) {
        let base = self.ctx.default_profile.clone();
        let other = Rc::new(Credential { user: b"other"[..].into(), password: b"x"[..].into() });
        let profiles = match layout {
            Layout::OneLane => vec![base],
            Layout::TwoUsers => vec![base, Profile { db: 0, credential: Some(other) }],
            Layout::TwoDatabases => vec![base, Profile { db: 1, credential: None }],
        };
        for profile in profiles {
            let lane = Rc::new(Lane::new(&self.ctx, profile.clone()));
            lane.inner.borrow_mut().availability = Availability::Ready;
            self.ctx.lanes.borrow_mut().insert(profile.clone(), lane.clone());
            let (up, down) = Default::default();
            self.wires.push(Wire { lane, db: profile.db, first_epoch: 0, conn: None, asks: true, up, down });
            self.connect(self.wires.len() - 1);
        }
        for i in 0..SESSIONS {
            let wire = i % self.wires.len();
            let _inside = self._runtime.enter();
            let probe = Probe::new(&self.ctx, &self.wires[wire].lane.profile);
            let (asked, input, seen) = Default::default();
            self.clients.push(Client { probe, wire, asked, input, seen, cursor: 0, own: None });
        }
    }

    pub(super) fn hits(&self) -> u64 {
        self.ctx.metrics.hits()
    }

    pub(super) fn stale(&self) -> u64 {
        self.ctx.metrics.stale_served.get()
    }

    /// Hits on entries that were to be read again, and were.
    pub(super) fn read_again(&self) -> u64 {
        let stored = Reread::Stored as usize;
        self.ctx.metrics.rereads.iter().flat_map(|counters| counters.iter().nth(stored)).map(|(_, n)| n).sum()
    }

    pub(super) fn refreshed(&self) -> u64 {
        self.ctx.metrics.updates.get()
    }

    /// Takes one step and judges what became of it.
    pub(super) fn step(&mut self, step: &Step) -> Result<(), String> {
        self.turn();
        match step {
            Step::Ask(client, asks) => self.ask(*client, asks),
            Step::Own(client, key, what) => self.own(*client, *key, *what)?,
            Step::Foreign(what) => self.foreign(what),
            Step::Execute(wire, n) => self.execute(*wire % self.wires.len(), *n),
            Step::Deliver(wire, n) => self.deliver(*wire % self.wires.len(), *n)?,
            Step::Settle(wire) => {
                let wire = *wire % self.wires.len();
                self.execute(wire, usize::MAX);
                self.deliver(wire, usize::MAX)?;
            }
            Step::Pass(ms) => self.set_now(self.now + ms * MS),
            Step::Ping(wire) => self.wires[*wire % self.wires.len()].lane.ping(self.now, Waiting::Ping),
            Step::Cut(wire, executed) => self.cut(*wire % self.wires.len(), *executed),
            Step::Reconnect(wire) => self.connect(*wire % self.wires.len()),
            Step::Gone(wire) => self.gone(*wire % self.wires.len()),
            Step::Orphan => self.orphan(),
            Step::Drop(key) => {
                self.ctx.l1.invalidate(self.names[*key].as_bytes());
            }
            Step::Flush => self.ctx.l1.flush(),
            Step::Mode(mode) => self.ctx.set_mode(*mode),
        }
        self.ctx.release_overdue_holds(self.now);
        self.break_rules();
        self.judge_all()
    }

    fn set_now(&mut self, now: u64) {
        self.now = now;
        clock::fake::set(now);
    }

    fn turn(&mut self) {
        self.set_now(self.now + TURN);
    }

    fn id(&mut self) -> String {
        self.next += 1;
        format!("v{}", self.next)
    }

    // ---- clients ----

    fn ask(&mut self, client: usize, asks: &[Ask]) {
        if self.clients[client].own.is_some() {
            return;
        }
        let mut raw = BytesMut::new();
        for (i, ask) in asks.iter().enumerate() {
            let (words, keys, what) = self.words(ask);
            let words: Vec<&[u8]> = words.iter().map(|w| w.as_bytes()).collect();
            build::command(&mut raw, &words);
            let c = &self.clients[client];
            let db = self.wires[c.wire].db;
            let floor = keys.iter().map(|k| self.acked.get(&(db, *k)).copied().unwrap_or(0)).collect();
            let idle = i == 0 && c.asked.is_empty();
            self.clients[client].asked.push_back(Asked { keys, what, at: self.now, idle, floor });
        }
        self.feed(client, &raw);
    }

    /// Gives a session bytes, or with none lets it go on with those it has.
    fn feed(&mut self, client: usize, raw: &[u8]) {
        self.break_before_asking(client);
        let saved = self.hide_pending();
        self.clients[client].probe.feed(&self.ctx, raw);
        self.show_pending(&saved);
    }

    fn words(&mut self, ask: &Ask) -> (Vec<String>, Vec<usize>, What) {
        let id = self.id();
        let name = |key: &usize| self.names[*key].clone();
        let of = |words: &[&str]| words.iter().map(|w| (*w).to_owned()).collect::<Vec<String>>();
        match ask {
            Ask::Get(k) => (of(&["GET", &name(k)]), vec![*k], What::Read),
            Ask::Range(k) => (of(&["GETRANGE", &name(k), "0", "-1"]), vec![*k], What::Read),
            // The values are shorter than 99 bytes, so both say the same.
            Ask::Form(k, n) => (of(&["SUBSTR", &name(k), "0", ["-1", "99"][*n]]), vec![*k], What::Read),
            Ask::Mget(keys) => {
                let words = std::iter::once("MGET".to_owned()).chain(keys.iter().map(name)).collect();
                (words, keys.clone(), What::Read)
            }
            Ask::Set(k, None) => (of(&["SET", &name(k), &id]), vec![*k], What::Write(id)),
            Ask::Set(k, Some(ms)) => (of(&["SET", &name(k), &id, "PX", &ms.to_string()]), vec![*k], What::Write(id)),
            Ask::Mset(a, b) => (of(&["MSET", &name(a), &id, &name(b), &id]), vec![*a, *b], What::Write(id)),
            Ask::Del(k) => (of(&["DEL", &name(k), &id]), vec![*k], What::Write(id)),
            Ask::Script(k) => (of(&["EVAL", &format!("{} {id}", name(k)), "0"]), vec![*k], What::Write(id)),
        }
    }

    /// Reads what has come for every client.
    fn judge_all(&mut self) -> Result<(), String> {
        for i in 0..self.clients.len() {
            self.feed(i, &[]);
            let output = self.clients[i].probe.output();
            self.clients[i].input.extend_from_slice(&output);
            while let Some(frame) = first_frame(&mut self.clients[i].input) {
                let asked = self.clients[i].asked.pop_front().ok_or("a reply that nobody asked for")?;
                self.judge(i, &asked, &frame)?;
            }
            self.finish_held(i);
        }
        Ok(())
    }

    fn judge(&mut self, client: usize, asked: &Asked, frame: &[u8]) -> Result<(), String> {
        if reply::is_error(frame) {
            return Ok(()); // lost with its connection: nothing is promised
        }
        match &asked.what {
            What::Write(id) => {
                let state = self.server.executed.get(id).copied().ok_or("an OK to a write that was not executed")?;
                self.acknowledged(client, &asked.keys, state);
                Ok(())
            }
            What::Read => {
                let array = frame.first() == Some(&b'*');
                let one = [frame];
                let parts: Vec<&[u8]> = if array { reply::elements(frame).collect() } else { one.to_vec() };
                let text =
                    |f: &&[u8]| reply::bulk(f).filter(|b| !b.is_empty()).map(|b| String::from_utf8_lossy(b).into());
                let values: Vec<Option<String>> = parts.iter().map(text).collect();
                self.judge_read(client, asked, &values)
            }
        }
    }

    fn acknowledged(&mut self, client: usize, keys: &[usize], state: State) {
        let db = self.wires[self.clients[client].wire].db;
        let c = &mut self.clients[client];
        c.cursor = c.cursor.max(state);
        for key in keys {
            let seen = c.seen.entry(*key).or_default();
            *seen = (*seen).max(state);
            let acked = self.acked.entry((db, *key)).or_default();
            *acked = (*acked).max(state);
        }
    }

    /// Looks for the oldest state of the server that explains the whole reply and is not older than it may be.
    fn judge_read(&mut self, client: usize, asked: &Asked, values: &[Option<String>]) -> Result<(), String> {
        let c = &self.clients[client];
        let db = self.wires[c.wire].db;
        let places: Vec<Place> = asked.keys.iter().map(|k| (db, self.names[*k].clone())).collect();
        let own = asked.keys.iter().map(|k| c.seen.get(k).copied().unwrap_or(0)).max().unwrap_or(0);
        let sidecar = asked.floor.iter().copied().max().unwrap_or(0);
        // While upstream is gone only this bound is another one.
        let max_stale = u64::try_from(self.ctx.config.outage.max_stale.as_nanos()).expect("minutes");
        let bound = if self.wires[c.wire].lane.is_gone() { max_stale } else { self.ctx.max_staleness };
        let lease = self.server.over_before(asked.at.saturating_sub(bound));
        let prefix = if asked.idle { c.cursor } else { 0 };
        let floor = own.max(sidecar).max(lease).max(prefix);
        let explains = |state: &State| places.iter().zip(values).all(|(p, v)| self.server.at(p, *state).id == *v);
        let ceiling = self.before_later_writes(client);
        let Some(state) = (floor..=ceiling).find(explains) else {
            let any: Vec<State> = (0..=self.server.state()).filter(explains).collect();
            return Err(format!(
                "session {client} read {:?} as {values:?}, true in states {any:?} only; needed {floor} (own {own}, \
                 sidecar {sidecar}, lease {lease}, prefix {prefix}) to {ceiling} of {}",
                asked.keys,
                self.server.state()
            ));
        };
        for (place, value) in places.iter().zip(values) {
            let expires = self.server.at(place, state).expires;
            if value.is_some() && expires.is_some_and(|at| at <= asked.at) {
                return Err(format!("{place:?} was read as {value:?} after it had expired"));
            }
        }
        let seen: Vec<(usize, State)> =
            asked.keys.iter().zip(&places).map(|(k, p)| (*k, self.server.at(p, state).from)).collect();
        let c = &mut self.clients[client];
        c.cursor = c.cursor.max(state);
        for (key, from) in seen {
            let seen = c.seen.entry(key).or_default();
            *seen = (*seen).max(from);
        }
        Ok(())
    }

    /// The newest state before the first write that this session has sent behind what it is being told (C64).
    fn before_later_writes(&self, client: usize) -> State {
        let c = &self.clients[client];
        let db = self.wires[c.wire].db;
        let changed = |asked: &Asked| {
            let What::Write(id) = &asked.what else { return None };
            let state = *self.server.executed.get(id)?;
            let place = (db, self.names[asked.keys[0]].clone());
            (self.server.at(&place, state).id.as_ref() == Some(id)).then(|| state - 1)
        };
        c.asked.iter().filter_map(changed).min().unwrap_or(self.server.state())
    }

    // ---- connections of a session's own ----

    fn own(&mut self, client: usize, key: usize, what: Own) -> Result<(), String> {
        let Some((what, key, stage)) = self.clients[client].own.take() else {
            if self.clients[client].asked.is_empty() {
                self.own_send(client, key, what);
            }
            return Ok(());
        };
        let db = self.wires[self.clients[client].wire].db;
        let stage = match stage {
            Stage::Sent(words, begun) => {
                let reply = self.at_server(None, db, &words);
                // A write is known by its id from here on.
                Some(Stage::Executed(words.get(2).map_or(reply, |id| id.clone().into()), begun))
            }
            Stage::Executed(reply, begun) => self.own_reply(client, key, what, &reply, &begun)?,
            held @ Stage::Held(..) => Some(held),
        };
        self.clients[client].own = stage.map(|stage| (what, key, stage));
        Ok(())
    }

    /// As `Pin` does: a write begins when it is sent (R20).
    fn own_send(&mut self, client: usize, key: usize, what: Own) {
        let id = self.id();
        let name = self.names[key].clone();
        let serves = self.ctx.cache_serves();
        let mut begun = Begun { ends: Ends::None, unseen: !serves && !matches!(what, Own::Read) };
        if let Own::Write = what
            && serves
        {
            let stripe = self.ctx.l1.begin_write(name.as_bytes());
            self.carry_too_much(stripe);
            begun.ends = Ends::One(stripe);
        }
        let words = if let Own::Read = what { vec!["GET".into(), name] } else { vec!["SET".into(), name, id] };
        self.clients[client].own = Some((what, key, Stage::Sent(words, begun)));
    }

    fn own_reply(
        &mut self,
        client: usize,
        key: usize,
        what: Own,
        reply: &[u8],
        begun: &Begun,
    ) -> Result<Option<Stage>, String> {
        for &stripe in begun.ends.as_slice() {
            self.ctx.l1.end_write(stripe);
            self.carry_too_much(stripe);
        }
        if begun.unseen && self.broken != Some(Broken::Unseen) {
            self.ctx.end_unseen();
        }
        self.clients[client].probe.session().fence.set(self.now);
        if let Own::Read = what {
            let value = reply::bulk(reply).map(|b| String::from_utf8_lossy(b).into_owned());
            let asked = Asked { keys: vec![key], what: What::Read, at: self.now, idle: true, floor: vec![0] };
            self.judge_own_read(client, &asked, value)?;
            return Ok(None);
        }
        let id = String::from_utf8_lossy(reply).into_owned();
        let state = self.server.executed[&id];
        if let Own::Script = what {
            let hold = Rc::new(Hold::default());
            if !begun.unseen && self.ctx.fence_all(&hold) && self.broken != Some(Broken::Hold) {
                // Acknowledged when the hold is over; until then the session waits.
                self.clients[client].own = None;
                let limit = self.now + self.ctx.max_staleness;
                self.clients[client].asked.push_front(Asked {
                    keys: vec![key],
                    what: What::Write(id),
                    at: self.now,
                    idle: true,
                    floor: vec![],
                });
                return Ok(Some(Stage::Held(hold, limit)));
            }
        }
        self.acknowledged(client, &[key], state);
        Ok(None)
    }

    /// A read on a connection of its own was true when it was executed, and is what the session has seen from then on.
    fn judge_own_read(&mut self, client: usize, asked: &Asked, value: Option<String>) -> Result<(), String> {
        let place = (self.wires[self.clients[client].wire].db, self.names[asked.keys[0]].clone());
        let states = 0..=self.server.state();
        let newest = states.rev().find(|s| self.server.at(&place, *s).id == value).ok_or("a value from nowhere")?;
        let from = self.server.at(&place, newest).from;
        let c = &mut self.clients[client];
        let seen = c.seen.entry(asked.keys[0]).or_default();
        *seen = (*seen).max(from);
        c.cursor = c.cursor.max(from);
        Ok(())
    }

    fn finish_held(&mut self, client: usize) {
        let over = match &self.clients[client].own {
            Some((_, _, Stage::Held(hold, limit))) => hold.is_released() || self.now >= *limit,
            _ => false,
        };
        if over {
            self.clients[client].own = None;
            let asked = self.clients[client].asked.pop_front().expect("what was held");
            if let What::Write(id) = &asked.what {
                let state = self.server.executed[id];
                self.acknowledged(client, &asked.keys, state);
            }
        }
    }

    // ---- the server and the wires ----

    fn foreign(&mut self, what: &Foreign) {
        let id = self.id();
        let name = |k: &usize| self.names[*k].clone();
        let words: Vec<String> = match what {
            Foreign::Set(k, None) => vec!["SET".into(), name(k), id],
            Foreign::Set(k, Some(ms)) => vec!["SET".into(), name(k), id, "PX".into(), ms.to_string()],
            Foreign::Mset(a, b) => vec!["MSET".into(), name(a), id.clone(), name(b), id],
            Foreign::Del(k) => vec!["DEL".into(), name(k), id],
            Foreign::FlushAll => vec!["FLUSHALL".into()],
        };
        self.at_server(None, 0, &words);
    }

    /// Executes a command and puts its pushes on the wires; returns its reply.
    fn at_server(&mut self, conn: Option<Conn>, db: u32, words: &[String]) -> Vec<u8> {
        let mut out = self.server.execute(conn, db, words, self.now);
        if self.broken == Some(Broken::Tracking) && words[0] == "CLIENT" {
            // It says OK, and does what it likes.
            let off = ["CLIENT", "TRACKING", "OFF"].map(str::to_owned);
            out = self.server.execute(conn, db, &off, self.now);
        }
        for (conn, frame) in out.pushes {
            if let Some(wire) = self.wires.iter_mut().find(|w| w.conn == Some(conn)) {
                wire.down.push_back(frame);
            }
        }
        let Some(wire) = self.wires.iter_mut().find(|w| conn.is_some() && w.conn == conn) else { return out.reply };
        let (first, last) = if self.server.own_pushes_first() { (out.own, vec![]) } else { (vec![], out.own) };
        wire.down.extend(first);
        wire.down.push_back(out.reply);
        wire.down.extend(last);
        Vec::new()
    }

    fn execute(&mut self, wire: usize, n: usize) {
        self.write_out(wire);
        for _ in 0..n {
            let w = &mut self.wires[wire];
            let (conn, db) = (w.conn, w.db);
            let Some(words) = w.up.pop_front() else { return };
            self.at_server(conn, db, &words);
            self.turn();
        }
    }

    /// Moves what the lane has to say onto its wire.
    fn write_out(&mut self, wire: usize) {
        let w = &mut self.wires[wire];
        if w.conn.is_none() {
            return;
        }
        let mut inner = w.lane.inner.borrow_mut();
        let bytes = inner.log.unwritten().to_vec();
        inner.log.wrote(bytes.len());
        let mut scanner = Scanner::new(1 << 20, 1 << 20);
        let mut at = 0;
        while let Scan::Request { len } = scanner.scan(&bytes[at..]) {
            let raw = &bytes[at..at + len];
            let word = |arg: &crate::resp::request::Arg| String::from_utf8_lossy(&raw[arg.range()]).into_owned();
            w.up.push_back(scanner.args().iter().map(word).collect());
            at += len;
        }
        assert_eq!(at, bytes.len(), "a lane writes whole commands");
    }

    fn deliver(&mut self, wire: usize, n: usize) -> Result<(), String> {
        for _ in 0..n {
            let Some(frame) = self.wires[wire].down.pop_front() else { return Ok(()) };
            let lane = self.wires[wire].lane.clone();
            let stores = matches!(
                lane.inner.borrow().fifo.front().map(|w| &w.kind),
                Some(Waiting::FetchTtl(_) | Waiting::MgetTtl(..) | Waiting::RefreshTtl(..))
            );
            let saved = if stores { self.hide_pending() } else { Vec::new() };
            lane.last_byte.set(self.now);
            lane.apply(&self.ctx, &frame, &[])?;
            self.show_pending(&saved);
            self.break_rules();
            self.turn();
        }
        Ok(())
    }

    /// Whoever waits on a lane is told that it has taken too long; then the next frame begins, and is too large to keep.
    pub(super) fn time_out_before_a_large_reply(&mut self, wire: usize) {
        let lane = self.wires[wire].lane.clone();
        lane.time_out(&self.ctx, u64::MAX);
        assert!(lane.reissue_front(&self.ctx), "nobody waits for it");
        self.wires[wire].down.pop_front().expect("a reply");
        lane.apply(&self.ctx, b"_\r\n", &[]).expect("a reply");
    }

    fn cut(&mut self, wire: usize, executed: usize) {
        let Some(conn) = self.wires[wire].conn else { return };
        self.execute(wire, executed);
        let asks = self.ctx.cache_serves();
        let w = &mut self.wires[wire];
        (w.conn, w.asks) = (None, asks);
        w.down.clear();
        let db = w.db;
        self.orphans.extend(w.up.drain(..).map(|words| (db, words)));
        self.server.closed(conn);
        let lane = self.wires[wire].lane.clone();
        lane.lost(&self.ctx, "cut");
    }

    fn connect(&mut self, wire: usize) {
        if self.wires[wire].conn.is_some() {
            return;
        }
        self.next += 1;
        let conn = self.next;
        let asks = self.wires[wire].asks;
        if asks {
            self.server.track(conn);
        }
        let _inside = self._runtime.enter();
        let (stream, _) = tokio::net::UnixStream::pair().expect("a pair of sockets");
        let link = LaneLink {
            link: Link::new(Stream::Unix(stream)),
            info: ServerInfo::default(),
            proto: Proto::Resp3,
            tracking: if asks { Ok(()) } else { Err(Refusal::NotAsked) },
            fields_stay: true,
            role_check: false,
        };
        let w = &mut self.wires[wire];
        w.conn = Some(conn);
        w.lane.came_up(&self.ctx, &link);
        if w.first_epoch == 0 {
            w.first_epoch = w.lane.epoch();
        }
        if self.broken == Some(Broken::Epoch) {
            w.lane.epoch.set(w.first_epoch);
            w.lane.publish();
        }
    }

    fn gone(&mut self, wire: usize) {
        let lane = self.wires[wire].lane.clone();
        match self.wires[wire].conn {
            None => lane.gone(&self.ctx, "refused"),
            Some(_) if lane.in_flight() > 0 && !lane.is_gone() => lane.falls_silent(&self.ctx, self.now),
            Some(_) if lane.is_gone() => {}
            Some(_) => {
                self.cut(wire, 0);
                lane.gone(&self.ctx, "refused");
            }
        }
    }

    fn orphan(&mut self) {
        if let Some((db, words)) = self.orphans.pop_front() {
            self.at_server(None, db, &words);
        }
    }

    // ---- the end ----

    /// Lets everything come to rest; then every request is answered, and what the L1 holds is what the server holds.
    pub(super) fn rest(&mut self) -> Result<(), String> {
        self.settle()?;
        self.check_at_rest()?;
        self.ctx.set_mode(CacheMode::Serve);
        self.settle()?;
        self.ask_everything();
        self.settle()?;
        self.check_at_rest()
    }

    /// Everything on its way arrives.
    pub(super) fn settle(&mut self) -> Result<(), String> {
        for _ in 0..6 {
            while !self.orphans.is_empty() {
                self.orphan();
            }
            for wire in 0..self.wires.len() {
                self.connect(wire);
                self.execute(wire, usize::MAX);
                self.deliver(wire, usize::MAX)?;
            }
            for client in 0..self.clients.len() {
                if self.clients[client].own.is_some() {
                    self.own(client, 0, Own::Read)?;
                }
            }
            self.turn();
            self.ctx.release_overdue_holds(self.now);
            self.break_rules();
            self.judge_all()?;
        }
        Ok(())
    }

    fn ask_everything(&mut self) {
        for client in 0..self.clients.len() {
            let asks: Vec<Ask> = (0..KEYS).map(Ask::Get).collect();
            self.ask(client, &asks);
        }
    }

    pub(super) fn check_at_rest(&self) -> Result<(), String> {
        for (i, c) in self.clients.iter().enumerate() {
            if !c.asked.is_empty() || c.own.is_some() || c.probe.outstanding() > 0 {
                return Err(format!("session {i} still waits for {} replies", c.asked.len()));
            }
        }
        if self.ctx.l1.pending() != 0 {
            return Err(format!("{} writes are pending at rest", self.ctx.l1.pending()));
        }
        for w in &self.wires {
            let inner = w.lane.inner.borrow();
            if !inner.fifo.is_empty()
                || !inner.flights.is_empty()
                || !inner.refreshing.is_empty()
                || inner.log.len() > 0
                || !w.lane.rereads.are_over()
            {
                return Err(format!("lane {} remembers commands that are answered", w.lane.id));
            }
            self.check_entries(w)?;
        }
        Ok(())
    }

    fn check_entries(&self, w: &Wire) -> Result<(), String> {
        for name in &self.names {
            let Some(forms) = self.ctx.l1.get(name.as_bytes()) else { continue };
            let flush_gen = self.ctx.l1.flush_gen();
            for entry in forms.all().filter(|e| e.may_serve(w.lane.epoch(), flush_gen, self.now)) {
                let held = reply::bulk(entry.value.frame()).filter(|b| !b.is_empty());
                let held = held.map(|b| String::from_utf8_lossy(b).into_owned());
                let truth = self.server.read(&(w.db, name.clone()), self.now);
                if held != truth {
                    return Err(format!("{name} of database {} is {held:?} in the L1 and {truth:?} upstream", w.db));
                }
            }
        }
        Ok(())
    }

    // ---- rules broken on purpose ----

    fn break_rules(&mut self) {
        match self.broken {
            Some(Broken::Token) => self.names.iter().for_each(|n| self.ctx.l1.forget_generation(n.as_bytes())),
            Some(Broken::FlushGeneration) => self.ctx.l1.forget_flushes(),
            Some(Broken::Hold) => self.ctx.release_overdue_holds(u64::MAX),
            Some(Broken::Unseen) => self.wires.iter().for_each(forget_unseen),
            _ => {}
        }
    }

    fn break_before_asking(&mut self, client: usize) {
        let c = &self.clients[client];
        let lane = &self.wires[c.wire].lane;
        match self.broken {
            Some(Broken::Lease) if lane.is_live() => {
                lane.f.set(lane.f.get().max(self.now - self.ctx.max_staleness));
            }
            Some(Broken::Fence) => c.probe.session().fence.set(0),
            Some(Broken::Named) => c.probe.forget_named(),
            Some(Broken::Floor) => self.ctx.forget_floor(),
            _ => {}
        }
    }

    fn hide_pending(&self) -> Vec<u32> {
        if self.broken != Some(Broken::Pending) {
            return Vec::new();
        }
        self.names.iter().map(|n| self.ctx.l1.hide_pending(n.as_bytes())).collect()
    }

    fn show_pending(&self, saved: &[u32]) {
        self.names.iter().zip(saved).for_each(|(n, count)| self.ctx.l1.show_pending(n.as_bytes(), *count));
    }

    fn carry_too_much(&self, stripe: crate::cache::StripeId) {
        if self.broken != Some(Broken::Carry) {
            return;
        }
        for w in &self.wires {
            let inner = w.lane.inner.borrow();
            inner.refreshing.get(&stripe).into_iter().flatten().for_each(|refresh| refresh.carry(stripe));
        }
    }
}

fn forget_unseen(w: &Wire) {
    for waiter in &mut w.lane.inner.borrow_mut().fifo {
        if let Waiting::Relay(relay) = &mut waiter.kind {
            relay.unseen = false;
        }
    }
}

/// Key names, of which the first two share a stripe.
fn names(l1: &L1) -> Vec<String> {
    let mut by_stripe = BTreeMap::new();
    for i in 0.. {
        let name = format!("k{i}");
        if let Some(twin) = by_stripe.insert(l1.stripe(name.as_bytes()).number(), name.clone()) {
            let others = (0..KEYS - 2).map(|n| format!("other{n}"));
            return [twin, name].into_iter().chain(others).collect();
        }
    }
    unreachable!("two of 65,537 names share a stripe");
}

fn first_frame(input: &mut BytesMut) -> Option<BytesMut> {
    if input.is_empty() {
        return None;
    }
    match FrameScanner::new().scan(input) {
        Ok(Frame::Complete { len }) => Some(input.split_to(len)),
        other => panic!("half a reply: {other:?} in {:?}", input.escape_ascii().to_string()),
    }
}
