//! A writer past all sidecars, straight to upstream: what other services, cron jobs and people do.

use std::rc::Rc;
use std::time::Duration;

use super::Shared;
use super::client::{Conn, Lost, version};
use super::dice::Dice;
use super::truth::{Actor, Key, Known, Micros};
use crate::resp::push::Value;

/// A writer that cannot reach upstream tries again after so long.
const AGAIN: Duration = Duration::from_millis(50);

/// What nobody has popped is forgotten: the queue is a hand-over, no store.
const QUEUE_MAX: &str = "99";

pub(super) struct Writer {
    number: usize,
    shared: Rc<Shared>,
    conn: Conn,
}

pub(super) async fn run(shared: Rc<Shared>, number: usize) {
    let mut dice = Dice::new(shared.plan.seed, 1_000 + number as u64);
    while !shared.stop.get() {
        match Conn::open(&shared.plan.upstream, number % 2 == 1, shared.plan.patience).await {
            Ok(conn) => {
                let mut writer = Writer { number, shared: shared.clone(), conn };
                if let Err(lost) = writer.write(&mut dice).await {
                    shared.note_error(&format!("upstream: {lost}"));
                }
            }
            Err(lost) => {
                shared.note_error(&format!("upstream: {lost}"));
                shared.pause(AGAIN).await;
            }
        }
    }
}

impl Writer {
    async fn write(&mut self, dice: &mut Dice) -> Result<(), Lost> {
        while !self.shared.stop.get() {
            self.fight(dice).await?;
            let counter = dice.of(&self.shared.keys.counters);
            match dice.below(12) {
                0..4 => drop(self.count(counter).await?),
                4..6 => self.pair().await?,
                6..9 => self.in_order().await?,
                9 => self.mortal().await?,
                10 => self.hand_over(counter, false).await?,
                _ => self.hand_over(counter, true).await?,
            }
            self.shared.pause(dice.time(self.shared.plan.pause * 2)).await;
        }
        Ok(())
    }

    fn name(&self, key: Key) -> String {
        self.shared.name(key)
    }

    fn known(&self, version: i64, sent: u64, how: &'static str) -> Known {
        Known { version, sent, known: self.shared.now(), by: Actor::Writer(self.number), how }
    }

    fn learn(&self, key: Key, version: i64, sent: u64, how: &'static str) {
        let known = self.known(version, sent, how);
        let mut truth = self.shared.truth.borrow_mut();
        truth.writes += 1;
        truth.learn(key, known);
    }

    async fn count(&mut self, key: Key) -> Result<Option<i64>, Lost> {
        let name = self.name(key);
        self.shared.truth.borrow_mut().begin_count(key);
        let sent = self.shared.now();
        let reply = self.conn.ask(&["INCR", &name]).await?;
        let version = self.expect_number(&reply);
        if let Some(version) = version {
            self.learn(key, version, sent, "INCR upstream");
        }
        Ok(version)
    }

    fn expect_number(&self, reply: &Value) -> Option<i64> {
        let number = version(reply);
        if number.is_none() {
            self.shared.note_error(&format!("upstream: {reply:?}"));
        }
        number
    }

    /// One key after the other: who has seen the second must see the first.
    async fn in_order(&mut self) -> Result<(), Lost> {
        for key in self.shared.keys.ordered[self.number] {
            self.set(key, &[], "SET upstream").await?;
        }
        Ok(())
    }

    async fn mortal(&mut self) -> Result<(), Lost> {
        let life = self.shared.plan.life.as_millis().to_string();
        self.set(self.shared.keys.mortal[self.number], &["PX", &life], "SET PX upstream").await
    }

    async fn set(&mut self, key: Key, options: &[&str], how: &'static str) -> Result<(), Lost> {
        let (name, version) = (self.name(key), self.shared.truth.borrow_mut().begin_set(key));
        let value = version.to_string();
        let words = [&["SET", &name, &value], options].concat();
        let sent = self.shared.now();
        match self.conn.ask(&words).await? {
            Value::Error(error) => self.shared.note_error(&format!("upstream: {error}")),
            _ => self.learn(key, version, sent, how),
        }
        Ok(())
    }

    /// While upstream is gone for a sidecar: a write of a key that its clients write too, and queue.
    async fn fight(&mut self, dice: &mut Dice) -> Result<(), Lost> {
        let shared = self.shared.clone();
        let away = shared.truth.borrow().absences.all_away();
        let keys: Vec<Key> = away.iter().flat_map(|place| shared.fought_of(*place)).copied().collect();
        if keys.is_empty() || dice.below(2) == 0 {
            return Ok(());
        }
        let key = dice.of(&keys);
        let name = self.name(key);
        let version = {
            let mut truth = shared.truth.borrow_mut();
            let version = truth.begin_set(key);
            truth.owed.fought_foreign(key, version, Micros::MAX);
            version
        };
        match self.conn.ask(&["SET", &name, &version.to_string()]).await? {
            Value::Error(error) => shared.note_error(&format!("upstream: {error}")),
            _ => {
                let mut truth = shared.truth.borrow_mut();
                let now = truth.now();
                truth.writes += 1;
                truth.owed.fought_foreign(key, version, now);
            }
        }
        Ok(())
    }

    /// Both at once.
    async fn pair(&mut self) -> Result<(), Lost> {
        let [a, b] = self.shared.keys.pairs[self.number];
        let (name_a, name_b) = (self.name(a), self.name(b));
        let version = {
            let mut truth = self.shared.truth.borrow_mut();
            truth.begin_set(a);
            truth.begin_set(b)
        };
        let value = version.to_string();
        let sent = self.shared.now();
        match self.conn.ask(&["MSET", &name_a, &value, &name_b, &value]).await? {
            Value::Error(error) => self.shared.note_error(&format!("upstream: {error}")),
            _ => [a, b].iter().for_each(|key| self.learn(*key, version, sent, "MSET upstream")),
        }
        Ok(())
    }

    /// Writes, and tells who waits for it: whoever gets the news must not read what was before.
    async fn hand_over(&mut self, key: Key, publish: bool) -> Result<(), Lost> {
        let Some(version) = self.count(key).await? else { return Ok(()) };
        let news = format!("{key} {version}");
        let (queue, channel) = (self.shared.keys.queue.clone(), self.shared.keys.channel.clone());
        let reply = if publish {
            self.conn.ask(&["PUBLISH", &channel, &news]).await?
        } else {
            self.conn.ask(&["LPUSH", &queue, &news]).await?;
            self.conn.ask(&["LTRIM", &queue, "0", QUEUE_MAX]).await?
        };
        if let Value::Error(error) = reply {
            self.shared.note_error(&format!("upstream: {error}"));
        }
        Ok(())
    }
}
