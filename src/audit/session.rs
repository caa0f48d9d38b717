//! A client of a sidecar: reads and writes in every way there is, and holds each reply against what is known.

use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

use super::Shared;
use super::client::{self, Conn, Lost, Words, version};
use super::dice::Dice;
use super::truth::{Actor, At, Floors, Key, Known, Micros, Property, Read};
use crate::resp::push::Value;

/// A client that is turned away comes again after so long.
const AGAIN: Duration = Duration::from_millis(20);

/// How long a pop waits; short, so that its session does other things too.
const POP_SECONDS: &str = "0.05";

/// How long a subscriber listens before it looks whether the audit is over.
const LISTEN: Duration = Duration::from_millis(50);

/// Between the fetch and the transaction of a race: this part of B at the most, so that what a slow link brings of the
/// one is well apart from what it brings of the other.
const RACE_PART: u32 = 16;

/// So many sessions have every role; the first of them does a bit of everything.
pub(super) const ROLES: usize = 8;

/// A script whose write nobody can tell from its words.
const UNNAMED: &str = "EVAL without its key";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// A bit of everything.
    Mixed,
    /// One key over and over: who does more is soon waiting for a stalled lane, and shows nothing of what a hit would have
    /// been. Now and then, if so, on a connection of its own, which no later hit may fall behind (R21).
    Poller { key: Key, elsewhere: bool },
    /// Is told of changes by pub/sub and reads them on a second connection.
    Subscriber,
}

impl Role {
    /// Of the `n`th session of one place.
    pub(super) fn of(n: usize, polled: impl Fn(usize) -> Key) -> Role {
        let poller = |i, elsewhere| Role::Poller { key: polled(n / ROLES * 3 + i), elsewhere };
        match n % ROLES {
            2 => poller(0, true),
            3 => Role::Subscriber,
            6 => poller(1, true),
            7 => poller(2, false),
            _ => Role::Mixed,
        }
    }
}

/// Where a session's connections go.
#[derive(Clone, Copy)]
pub(super) struct Seat {
    pub(super) number: usize,
    pub(super) at: At,
    pub(super) role: Role,
}

pub(super) struct Session {
    seat: Seat,
    shared: Rc<Shared>,
    conn: Conn,
    /// A second client of the same sidecar, where one is needed.
    other: Option<Conn>,
    dice: Dice,
    /// What this connection had acknowledged, and what it has read.
    written: HashMap<Key, Known>,
    seen: HashMap<Key, Known>,
}

pub(super) async fn run(shared: Rc<Shared>, seat: Seat) {
    let mut connection = 0;
    while !shared.stop.get() {
        connection += 1;
        if let Err(lost) = talk(&shared, seat, connection).await {
            shared.note_lost(&lost, seat.number);
            shared.pause(AGAIN).await;
        }
    }
}

async fn talk(shared: &Rc<Shared>, seat: Seat, connection: u64) -> Result<(), Lost> {
    let mut session = Session::open(shared, seat, connection).await?;
    let mut radio = match seat.role {
        Role::Subscriber => Some(session.tune_in().await?),
        _ => None,
    };
    while !shared.stop.get() {
        match (seat.role, &mut radio) {
            (Role::Subscriber, Some(radio)) => session.listen(radio).await?,
            (Role::Poller { key, elsewhere }, _) => session.poll(key, elsewhere).await?,
            _ => session.turn().await?,
        }
        if seat.role != Role::Subscriber {
            shared.pause(session.dice.time(shared.plan.pause * 2)).await;
        }
    }
    Ok(())
}

impl Session {
    async fn open(shared: &Rc<Shared>, seat: Seat, connection: u64) -> Result<Session, Lost> {
        let resp3 = (seat.number as u64 + connection).is_multiple_of(2);
        let conn = Conn::open(&shared.plan.through[seat.at.place], resp3, shared.plan.patience).await?;
        let dice = Dice::new(shared.plan.seed, seat.number as u64 * 1_000_003 + connection);
        let shared = shared.clone();
        Ok(Session { seat, shared, conn, other: None, dice, written: HashMap::new(), seen: HashMap::new() })
    }

    /// One thing to do.
    async fn turn(&mut self) -> Result<(), Lost> {
        let keys = self.shared.clone();
        let keys = &keys.keys;
        let k = self.dice.of(&keys.counters);
        if self.shared.truth.borrow().absences.away(self.seat.at.place).is_some() && self.dice.below(6) == 0 {
            return self.fight().await;
        }
        match self.dice.below(40) {
            0..6 => self.get(k).await.map(drop),
            6 => self.get_range(k).await,
            7..9 => self.race(k).await,
            9..11 => self.mortal().await,
            11..15 => self.pair().await,
            15..18 => self.in_order().await,
            18..20 => self.mixed(k).await,
            20..22 => self.others().await,
            22..24 => self.pipeline(k).await,
            24..26 => self.elsewhere(k).await,
            26..28 => self.count(k, "INCR").await,
            28 => self.script(k, true).await,
            29 => self.script(k, false).await,
            30..32 => self.transaction(k, "MULTI INCR EXEC").await,
            32 => self.transaction(k, "MULTI, EVAL without its key, EXEC").await,
            33 => self.pipelined_write(k).await,
            34..37 => self.set().await,
            37..39 => self.mset().await,
            _ => self.pop().await,
        }
    }

    async fn poll(&mut self, key: Key, elsewhere: bool) -> Result<(), Lost> {
        if elsewhere && self.dice.below(20) == 0 { self.elsewhere(key).await } else { self.get(key).await.map(drop) }
    }

    fn name(&self, key: Key) -> String {
        self.shared.name(key)
    }

    // ---- reading ----

    /// Sends commands in one write and returns their replies.
    async fn ask(&mut self, commands: &[Words<'_>]) -> Result<Vec<Value>, Lost> {
        self.conn.send(commands).await?;
        let mut replies = Vec::with_capacity(commands.len());
        for _ in commands {
            replies.push(self.conn.reply().await?);
        }
        Ok(replies)
    }

    /// Reads `keys` by `commands`, whose replies hold one version for each, and judges them. `None`: an error instead.
    async fn read(
        &mut self,
        keys: &[Key],
        how: &'static str,
        commands: &[Words<'_>],
    ) -> Result<Option<Vec<i64>>, Lost> {
        let (sent, floors) = self.floors(keys);
        let replies = self.ask(commands).await?;
        let flat: Vec<Value> = replies
            .into_iter()
            .flat_map(|reply| if let Value::List(all) = reply { all } else { vec![reply] })
            .filter(|reply| !matches!(reply, Value::Str(text) if text == b"OK" || text == b"QUEUED"))
            .collect();
        Ok(self.judge_all(keys, how, sent, &floors, &flat))
    }

    /// The time, and what this sidecar has acknowledged of each key until now.
    fn floors(&self, keys: &[Key]) -> (Micros, Vec<Option<Known>>) {
        let truth = self.shared.truth.borrow();
        (truth.now(), keys.iter().map(|key| truth.acknowledged(*key, self.seat.at)).collect())
    }

    fn judge_all(
        &mut self,
        keys: &[Key],
        how: &'static str,
        sent: Micros,
        floors: &[Option<Known>],
        replies: &[Value],
    ) -> Option<Vec<i64>> {
        if let Some(odd) = replies.iter().find(|r| version(r).is_none()) {
            self.shared.note_reply(odd);
            return None;
        }
        if replies.len() != keys.len() {
            self.shared.note_error(&format!("{how} answered with {} values for {} keys", replies.len(), keys.len()));
            return None;
        }
        let versions: Vec<i64> = replies.iter().filter_map(version).collect();
        for ((key, got), floor) in keys.iter().zip(&versions).zip(floors) {
            self.judge(*key, *got, how, sent, *floor);
        }
        Some(versions)
    }

    fn judge(&mut self, key: Key, got: i64, how: &'static str, sent: Micros, floor: Option<Known>) {
        let mut truth = self.shared.truth.borrow_mut();
        let (replied, session, At { place, sidecar }) = (truth.now(), self.seat.number, self.seat.at);
        let read = Read { key, got, sent, replied, session, sidecar, place, how };
        let floors =
            Floors { written: self.written.get(&key).copied(), seen: self.seen.get(&key).copied(), sidecar: floor };
        truth.judge(read, floors);
        // Missing says too little of which version it is.
        if got != 0 && truth.promise(place).orders(how) && floors.seen.is_none_or(|seen| seen.version < got) {
            let by = Actor::Session(self.seat.number);
            self.seen.insert(key, Known { version: got, sent, known: read.replied, by, how });
        }
        drop(truth);
        self.shared.look();
    }

    async fn get(&mut self, key: Key) -> Result<Option<i64>, Lost> {
        let name = self.name(key);
        let got = self.read(&[key], "GET", &[&["GET", &name]]).await?;
        Ok(got.map(|versions| versions[0]))
    }

    /// Another form of the same key, for sidecars that keep it (`cache.commands`).
    async fn get_range(&mut self, key: Key) -> Result<(), Lost> {
        let name = self.name(key);
        for _ in 0..2 {
            self.read(&[key], "GETRANGE", &[&["GETRANGE", &name, "0", "-1"]]).await?;
        }
        Ok(())
    }

    async fn mortal(&mut self) -> Result<(), Lost> {
        let keys = self.shared.clone();
        match keys.keys.mortal.as_slice() {
            [] => Ok(()),
            all => {
                let key = self.dice.of(all);
                self.get(key).await.map(drop)
            }
        }
    }

    /// What is only written together is read together.
    async fn pair(&mut self) -> Result<(), Lost> {
        let shared = self.shared.clone();
        let keys = &shared.keys;
        let pair = self.dice.of(if keys.pairs.is_empty() { &keys.own_pairs } else { &keys.pairs });
        if self.dice.below(2) == 0 {
            self.get(pair[0]).await?;
        }
        self.together(pair).await
    }

    async fn together(&mut self, [a, b]: [Key; 2]) -> Result<(), Lost> {
        let (name_a, name_b) = (self.name(a), self.name(b));
        let sent = self.shared.now();
        let got = self.read(&[a, b], "MGET", &[&["MGET", &name_a, &name_b]]).await?;
        if let Some(got) = got {
            self.compare(
                Property::Torn,
                a,
                sent,
                got[0] == got[1],
                || format!("{name_b} was {} beside it", got[1]),
                got[0],
            );
        }
        Ok(())
    }

    fn compare(
        &self,
        property: Property,
        key: Key,
        sent: Micros,
        holds: bool,
        note: impl FnOnce() -> String,
        got: i64,
    ) {
        let mut truth = self.shared.truth.borrow_mut();
        let replied = truth.now();
        let (session, At { place, sidecar }) = (self.seat.number, self.seat.at);
        let how = if property == Property::Torn { "MGET" } else { "GET" };
        truth.check(property, &Read { key, got, sent, replied, session, sidecar, place, how }, None, holds, note);
        drop(truth);
        self.shared.look();
    }

    /// x is written before y, so whoever has seen y sees x.
    async fn in_order(&mut self) -> Result<(), Lost> {
        let shared = self.shared.clone();
        if shared.keys.ordered.is_empty() {
            return Ok(());
        }
        let [x, y] = self.dice.of(&shared.keys.ordered);
        let Some(later) = self.get(y).await? else { return Ok(()) };
        let sent = self.shared.now();
        if let Some(earlier) = self.get(x).await? {
            let note = || format!("{} had been {later} before", shared.name(y));
            self.compare(Property::Prefix, x, sent, earlier >= later, note, earlier);
        }
        Ok(())
    }

    /// Hits and misses in one MGET.
    async fn mixed(&mut self, k: Key) -> Result<(), Lost> {
        let shared = self.shared.clone();
        let keys = &shared.keys;
        let [a, b] = self.dice.of(if keys.pairs.is_empty() { &keys.own_pairs } else { &keys.pairs });
        let names = [a, k, b].map(|key| self.name(key));
        let sent = self.shared.now();
        let got = self.read(&[a, k, b], "MGET", &[&["MGET", &names[0], &names[1], &names[2]]]).await?;
        if let Some(got) = got {
            self.compare(Property::Torn, a, sent, got[0] == got[2], || format!("{} was {}", names[2], got[2]), got[0]);
        }
        Ok(())
    }

    /// Keys that another session writes, perhaps through this sidecar, with refreshes.
    async fn others(&mut self) -> Result<(), Lost> {
        let shared = self.shared.clone();
        let other = self.dice.below(shared.keys.own.len() as u64) as usize;
        self.get(shared.keys.own[other]).await?;
        self.together(shared.keys.own_pairs[other]).await
    }

    /// R22: replies of one pipeline do not go back in time.
    async fn pipeline(&mut self, k: Key) -> Result<(), Lost> {
        let name = self.name(k);
        let commands: [Words<'_>; 3] = [&["GETRANGE", &name, "0", "-1"], &["GET", &name], &["MGET", &name]];
        self.read(&[k, k, k], "GETRANGE GET MGET in one pipeline", &commands).await.map(drop)
    }

    /// On a connection of its own, and then not.
    async fn elsewhere(&mut self, k: Key) -> Result<(), Lost> {
        let name = self.name(k);
        self.read(&[k], "MULTI GET EXEC", &[&["MULTI"], &["GET", &name], &["EXEC"]]).await?;
        self.get(k).await.map(drop)
    }

    // ---- writing ----

    /// A write of `key` was acknowledged as `version`.
    fn acknowledged(&mut self, key: Key, version: i64, sent: Micros, how: &'static str) {
        let mut truth = self.shared.truth.borrow_mut();
        let known = Known { version, sent, known: truth.now(), by: Actor::Session(self.seat.number), how };
        truth.writes += 1;
        if how.contains(UNNAMED) {
            truth.hand_over(key, known, self.seat.at);
        } else {
            truth.acknowledge(key, known, self.seat.at);
        }
        let own = self.written.entry(key).or_insert(known);
        if own.version < version {
            *own = known;
        }
    }

    async fn count(&mut self, k: Key, how: &'static str) -> Result<(), Lost> {
        match self.may_count() {
            true => {
                let name = self.name(k);
                self.change(k, how, &[&["INCR", &name]]).await
            }
            false => self.transaction(k, "MULTI INCR EXEC").await,
        }
    }

    /// Counts that everybody writes only grow while they are counted upstream. A queued INCR sets what it has counted to, and
    /// overwrites others' counts (docs/outage.md); a transaction is not queued, and what comes with it goes with it. (Nor is a
    /// script, but while one is unanswered no copy is good enough for an outage.)
    fn may_count(&self) -> bool {
        !self.shared.truth.borrow().promise(self.seat.at.place).outage.queues
    }

    /// A script that names its key, or one that does not: then only the hold covers it (R15).
    async fn script(&mut self, k: Key, named: bool) -> Result<(), Lost> {
        let name = self.name(k);
        if named {
            let words = ["EVAL", "return redis.call('INCR', KEYS[1])", "1", &name];
            self.change(k, "EVAL with its key", &[&words]).await
        } else {
            let words = ["EVAL", "return redis.call('INCR', ARGV[1])", "0", &name];
            self.change(k, UNNAMED, &[&words]).await
        }
    }

    async fn transaction(&mut self, k: Key, how: &'static str) -> Result<(), Lost> {
        let name = self.name(k);
        let script = ["EVAL", "return redis.call('INCR', ARGV[1])", "0", &name];
        let count = ["INCR", &name];
        let change: Words<'_> = if how.contains(UNNAMED) { &script } else { &count };
        self.change(k, how, &[&["MULTI"], change, &["EXEC"]]).await
    }

    /// A write whose reply is its version, and a read behind it.
    async fn change(&mut self, k: Key, how: &'static str, commands: &[Words<'_>]) -> Result<(), Lost> {
        self.shared.truth.borrow_mut().begin_count(k);
        let sent = self.shared.now();
        let replies = self.ask(commands).await?;
        let result = match replies.last() {
            Some(Value::List(all)) => all.first(),
            other => other,
        };
        match result {
            Some(Value::Int(version)) => self.acknowledged(k, *version, sent, how),
            Some(other) => self.shared.note_reply(other),
            None => {}
        }
        self.get(k).await.map(drop)
    }

    /// A read before, a write and a read behind it, sent together.
    async fn pipelined_write(&mut self, k: Key) -> Result<(), Lost> {
        let name = self.name(k);
        if !self.may_count() {
            return self.transaction(k, "MULTI INCR EXEC").await;
        }
        let how = "GET INCR GET in one pipeline";
        self.shared.truth.borrow_mut().begin_count(k);
        let (sent, floors) = self.floors(&[k]);
        self.conn.send(&[&["GET", &name], &["INCR", &name], &["GET", &name]]).await?;
        let before = self.conn.reply().await?;
        self.judge_all(&[k], how, sent, &floors, &[before]);
        match self.conn.reply().await? {
            Value::Int(version) => self.acknowledged(k, version, sent, how),
            other => self.shared.note_reply(&other),
        }
        let after = self.conn.reply().await?;
        self.judge_all(&[k], how, sent, &floors, &[after]);
        Ok(())
    }

    /// C15: a fetch is under way on the lane when a transaction of another client writes the key on a connection of its
    /// own. What the fetch brings is older than what was acknowledged meanwhile, and nobody may find it in the cache.
    async fn race(&mut self, k: Key) -> Result<(), Lost> {
        let name = self.name(k);
        let mut other = match self.other.take() {
            Some(other) => other,
            None => Conn::open(&self.shared.plan.through[self.seat.at.place], false, self.shared.plan.patience).await?,
        };
        // So that the GET is no hit.
        let words: [Words<'_>; 3] = [&["MULTI"], &["INCR", &name], &["EXEC"]];
        match self.may_count() {
            true => self.count_by(&mut other, k, "INCR", &words[1..2]).await?,
            false => self.count_by(&mut other, k, "MULTI INCR EXEC", &words).await?,
        }
        let (sent, floors) = self.floors(&[k]);
        self.conn.send(&[&["GET", &name]]).await?;
        let apart = self.dice.time(self.shared.plan.bound / RACE_PART);
        self.shared.pause(apart).await;
        self.count_by(&mut other, k, "MULTI INCR EXEC", &words).await?;
        let fetched = self.conn.reply().await?;
        self.judge_all(&[k], "GET", sent, &floors, &[fetched]);
        self.other = Some(other);
        self.get(k).await.map(drop)
    }

    /// Counts on a connection that is not this session's own: the sidecar has acknowledged it, but not to this client.
    async fn count_by(&self, conn: &mut Conn, key: Key, how: &'static str, commands: &[Words<'_>]) -> Result<(), Lost> {
        self.shared.truth.borrow_mut().begin_count(key);
        let sent = self.shared.now();
        conn.send(commands).await?;
        let mut last = conn.reply().await?;
        for _ in 1..commands.len() {
            last = conn.reply().await?;
        }
        let result = match &last {
            Value::List(all) => all.first().unwrap_or(&Value::Null),
            other => other,
        };
        let Value::Int(version) = *result else {
            self.shared.note_reply(result);
            return Ok(());
        };
        let mut truth = self.shared.truth.borrow_mut();
        let known = Known { version, sent, known: truth.now(), by: Actor::Session(self.seat.number), how };
        truth.writes += 1;
        truth.acknowledge(key, known, self.seat.at);
        Ok(())
    }

    async fn set(&mut self) -> Result<(), Lost> {
        let key = self.shared.keys.own[self.seat.number];
        let name = self.name(key);
        let deletes = self.dice.below(4) == 0;
        let version = match deletes {
            true => self.shared.truth.borrow_mut().begin_delete(key),
            false => self.shared.truth.borrow_mut().begin_set(key),
        };
        let value = version.to_string();
        let words: (&str, Words<'_>) =
            if deletes { ("DEL", &["DEL", &name]) } else { ("SET", &["SET", &name, &value]) };
        let sent = self.shared.now();
        match (self.ask(&[words.1]).await?.remove(0), deletes) {
            (Value::Error(error), _) => self.shared.note_error(&error),
            (_, true) => self.acknowledged(key, version, sent, "DEL"),
            (_, false) => self.acknowledged(key, version, sent, "SET"),
        }
        self.get(key).await.map(drop)
    }

    /// While upstream is gone: a write of a key that others write upstream at the same time, and a read that must see it,
    /// whatever they wrote. Nobody writes it at any other time.
    async fn fight(&mut self) -> Result<(), Lost> {
        let shared = self.shared.clone();
        let (key, place) = (shared.keys.fought[self.seat.number], self.seat.at.place);
        let name = self.name(key);
        let (version, sent, outage) = {
            let mut truth = shared.truth.borrow_mut();
            (truth.begin_set(key), truth.now(), truth.absences.away(place))
        };
        match self.ask(&[&["SET", &name, &version.to_string()]]).await?.remove(0) {
            Value::Error(error) => {
                shared.note_error(&error);
                return Ok(());
            }
            _ if shared.truth.borrow().absences.away(place) != outage => return Ok(()),
            _ => {}
        }
        let by = Actor::Session(self.seat.number);
        let known = {
            let mut truth = shared.truth.borrow_mut();
            truth.writes += 1;
            let known = Known { version, sent, known: truth.now(), by, how: "SET in an outage" };
            truth.owed.fought_queued(key, known);
            known
        };
        let sent = shared.now();
        let reply = self.ask(&[&["GET", &name]]).await?.remove(0);
        let Some(got) = client::version(&reply) else {
            shared.note_reply(&reply);
            return Ok(());
        };
        let mut truth = shared.truth.borrow_mut();
        if truth.absences.away(place) == outage {
            let (replied, session, At { place, sidecar }) = (truth.now(), self.seat.number, self.seat.at);
            let read = Read { key, got, sent, replied, session, sidecar, place, how: "GET" };
            let note = || "nobody else's write can have reached this sidecar".to_owned();
            truth.check(Property::ReadYourWrites, &read, Some(known), got == version, note);
        }
        drop(truth);
        shared.look();
        Ok(())
    }

    async fn mset(&mut self) -> Result<(), Lost> {
        let [a, b] = self.shared.keys.own_pairs[self.seat.number];
        let (name_a, name_b) = (self.name(a), self.name(b));
        let version = {
            let mut truth = self.shared.truth.borrow_mut();
            truth.begin_set(a);
            truth.begin_set(b)
        };
        let value = version.to_string();
        let sent = self.shared.now();
        match self.ask(&[&["MSET", &name_a, &value, &name_b, &value]]).await?.remove(0) {
            Value::Error(error) => self.shared.note_error(&error),
            _ => [a, b].iter().for_each(|key| self.acknowledged(*key, version, sent, "MSET")),
        }
        self.together([a, b]).await
    }

    // ---- hand-over ----

    /// C20: whoever has the job sees what was written before it was queued, and so does everybody on this sidecar.
    async fn pop(&mut self) -> Result<(), Lost> {
        let queue = self.shared.keys.queue.clone();
        match self.ask(&[&["BLPOP", &queue, POP_SECONDS]]).await?.remove(0) {
            Value::List(items) => match items.get(1).and_then(news) {
                Some((key, version)) => {
                    self.told(key, version, "BLPOP");
                    self.get(key).await.map(drop)
                }
                None => Ok(()),
            },
            Value::Error(error) => {
                self.shared.note_error(&error);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// A second connection, on which news come in.
    async fn tune_in(&mut self) -> Result<Conn, Lost> {
        let resp3 = self.dice.below(2) == 0;
        let place = &self.shared.plan.through[self.seat.at.place];
        let mut radio = Conn::open(place, resp3, self.shared.plan.patience).await?;
        let channel = self.shared.keys.channel.clone();
        radio.send(&[&["SUBSCRIBE", &channel]]).await?;
        match radio.reply().await? {
            Value::Error(reply) => Err(Lost::Refused { command: "SUBSCRIBE", reply }),
            _ => Ok(radio),
        }
    }

    /// C19: who is told of a change sees it, on another connection too.
    async fn listen(&mut self, radio: &mut Conn) -> Result<(), Lost> {
        if let Some(message) = radio.message(LISTEN).await?
            && let Some((key, version)) = message.list().and_then(|parts| news(parts.get(2)?))
        {
            self.told(key, version, "message");
            self.get(key).await?;
        }
        Ok(())
    }

    fn told(&mut self, key: Key, version: i64, how: &'static str) {
        let mut truth = self.shared.truth.borrow_mut();
        let now = truth.now();
        let by = Actor::Session(self.seat.number);
        truth.hand_over(key, Known { version, sent: now, known: now, by, how }, self.seat.at);
    }
}

/// What a writer has handed over: a key and its version.
fn news(value: &Value) -> Option<(Key, i64)> {
    let text = std::str::from_utf8(value.text()?).ok()?;
    let (key, version) = text.split_once(' ')?;
    Some((key.parse().ok()?, version.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn eight_sessions_have_every_role() {
        let roles: Vec<Role> = (0..8).map(|n| Role::of(n, |i| i)).collect();
        assert_eq!(roles.iter().filter(|r| **r == Role::Subscriber).count(), 1);
        let polled: Vec<Key> =
            roles.iter().filter_map(|r| if let Role::Poller { key, .. } = r { Some(*key) } else { None }).collect();
        assert_eq!(polled.len(), 3);
        assert!(roles.iter().filter(|r| **r == Role::Mixed).count() == 4);
    }

    #[test]
    fn news_name_a_key_and_a_version() {
        assert_eq!(news(&Value::Str(b"3 17".to_vec())), Some((3, 17)));
        assert_eq!(news(&Value::Str(b"3".to_vec())), None);
        assert_eq!(news(&Value::Null), None);
    }
}
