//! A model of the server behind the lanes: it executes commands one after another, keeps the whole history of every key,
//! and writes replies and invalidations in the order in which Redis appends them to each connection (COHERENCE facts 1, 2,
//! 16, 17, 20, 24, 26).

use std::collections::{BTreeMap, BTreeSet};

use bytes::BytesMut;

use crate::resp::Proto;
use crate::resp::build;

const MS: u64 = 1_000_000;

/// How many changes had been executed: a state of the server.
pub(super) type State = usize;

/// Number of a connection that tracks.
pub(super) type Conn = u64;

pub(super) type Place = (u32, String);

#[derive(Clone, Debug)]
pub(super) struct Version {
    pub(super) from: State,
    /// None: absent.
    pub(super) id: Option<String>,
    pub(super) expires: Option<u64>,
}

#[derive(Default)]
pub(super) struct Server {
    history: BTreeMap<Place, Vec<Version>>,
    /// When each state began.
    times: Vec<u64>,
    trackers: BTreeMap<String, BTreeSet<Conn>>,
    connections: BTreeSet<Conn>,
    /// The state after the write with this id.
    pub(super) executed: BTreeMap<String, State>,
    /// Redis before 6.2.7 pushes to the connection that caused a change before it replies (fact 3).
    own_pushes_first: bool,
}

/// What one command put into which connection's stream.
pub(super) struct Output {
    pub(super) reply: Vec<u8>,
    pub(super) pushes: Vec<(Conn, Vec<u8>)>,
    pub(super) own: Vec<Vec<u8>>,
}

impl Server {
    pub(super) fn new(own_pushes_first: bool) -> Server {
        Server { own_pushes_first, ..Server::default() }
    }

    pub(super) fn own_pushes_first(&self) -> bool {
        self.own_pushes_first
    }

    pub(super) fn state(&self) -> State {
        self.times.len()
    }

    pub(super) fn track(&mut self, conn: Conn) {
        self.connections.insert(conn);
    }

    /// CLIENT TRACKING OFF: what was remembered for it stays remembered, and nothing is pushed.
    fn untrack(&mut self, conn: Conn) {
        self.connections.remove(&conn);
    }

    pub(super) fn closed(&mut self, conn: Conn) {
        self.connections.remove(&conn);
        self.trackers.values_mut().for_each(|all| {
            all.remove(&conn);
        });
    }

    /// The version that a key has in a state.
    pub(super) fn at(&self, place: &Place, state: State) -> Version {
        let versions = self.history.get(place).map_or(&[][..], Vec::as_slice);
        let found = versions.iter().rev().find(|v| v.from <= state);
        found.cloned().unwrap_or(Version { from: 0, id: None, expires: None })
    }

    /// What a read would return now: an expired value is absent, though nobody has noticed yet.
    pub(super) fn read(&self, place: &Place, now: u64) -> Option<String> {
        let version = self.at(place, self.state());
        version.id.filter(|_| version.expires.is_none_or(|at| at > now))
    }

    /// The newest state that was over before `time`.
    pub(super) fn over_before(&self, time: u64) -> State {
        self.times.partition_point(|began| *began < time)
    }

    /// Executes one command of a tracking connection, or of anybody else.
    pub(super) fn execute(&mut self, conn: Option<Conn>, db: u32, words: &[String], now: u64) -> Output {
        let mut out = Output { reply: Vec::new(), pushes: Vec::new(), own: Vec::new() };
        let mut reply = BytesMut::new();
        let place = |key: &String| (db, key.clone());
        match words[0].as_str() {
            "GET" | "GETRANGE" | "SUBSTR" => {
                let value = self.look(conn, &place(&words[1]), now, &mut out);
                let absent = if words[0] == "GET" { None } else { Some(String::new()) };
                value_reply(&mut reply, value.or(absent).as_deref());
            }
            "MGET" => {
                build::array(&mut reply, words.len() - 1);
                for key in &words[1..] {
                    let value = self.look(conn, &place(key), now, &mut out);
                    value_reply(&mut reply, value.as_deref());
                }
            }
            "PTTL" => {
                let value = self.look(conn, &place(&words[1]), now, &mut out);
                let expires = self.at(&place(&words[1]), self.state()).expires;
                let ttl = expires.map_or(-1, |at| ((at - now) / MS) as i64);
                build::integer(&mut reply, if value.is_some() { ttl } else { -2 });
            }
            "SET" => {
                let ttl = words.get(4).map(|ms| now + ms.parse::<u64>().expect("milliseconds") * MS);
                self.write(conn, &[(place(&words[1]), Some(words[2].clone()))], ttl, now, &mut out);
                build::simple(&mut reply, "OK");
            }
            "MSET" => {
                let pairs: Vec<_> = words[1..].chunks(2).map(|p| (place(&p[0]), Some(p[1].clone()))).collect();
                self.write(conn, &pairs, None, now, &mut out);
                build::simple(&mut reply, "OK");
            }
            // The second name is the command's own, for `executed`.
            "DEL" => {
                let there = self.read(&place(&words[1]), now).is_some();
                if there {
                    self.write(conn, &[(place(&words[1]), None)], None, now, &mut out);
                }
                self.executed.insert(words[2].clone(), self.state());
                build::integer(&mut reply, there.into());
            }
            // A script that writes a key it does not declare: `EVAL "<key> <id>" 0`.
            "EVAL" => {
                let (key, id) = words[1].split_once(' ').expect("a key and an id");
                self.write(conn, &[(place(&key.to_owned()), Some(id.to_owned()))], None, now, &mut out);
                build::simple(&mut reply, "OK");
            }
            "FLUSHALL" => self.flush(now, &mut out),
            "CLIENT" => {
                match (conn, words[2].as_str()) {
                    (Some(conn), "ON") => self.track(conn),
                    (Some(conn), _) => self.untrack(conn),
                    // Of a connection that is gone meanwhile.
                    (None, _) => {}
                }
                build::simple(&mut reply, "OK");
            }
            "PING" => build::simple(&mut reply, "PONG"),
            other => panic!("the model has no {other}"),
        }
        out.reply = reply.to_vec();
        out
    }

    /// Reads a key: what has expired is deleted now, and a tracking connection is remembered.
    fn look(&mut self, conn: Option<Conn>, place: &Place, now: u64, out: &mut Output) -> Option<String> {
        let version = self.at(place, self.state());
        if version.id.is_some() && version.expires.is_some_and(|at| at <= now) {
            self.write(conn, &[(place.clone(), None)], None, now, out);
        }
        if let Some(conn) = conn.filter(|conn| self.connections.contains(conn)) {
            self.trackers.entry(place.1.clone()).or_default().insert(conn);
        }
        self.read(place, now)
    }

    fn write(
        &mut self,
        conn: Option<Conn>,
        pairs: &[(Place, Option<String>)],
        expires: Option<u64>,
        now: u64,
        out: &mut Output,
    ) {
        self.times.push(now);
        let from = self.state();
        for (place, id) in pairs {
            if let Some(id) = id {
                self.executed.insert(id.clone(), from);
            }
            self.history.entry(place.clone()).or_default().push(Version { from, id: id.clone(), expires });
            let remembered = self.trackers.remove(&place.1).unwrap_or_default();
            for tracker in remembered.into_iter().filter(|tracker| self.connections.contains(tracker)) {
                let mut frame = BytesMut::from(&b">2\r\n$10\r\ninvalidate\r\n*1\r\n"[..]);
                build::bulk(&mut frame, place.1.as_bytes());
                match conn {
                    Some(conn) if conn == tracker => out.own.push(frame.to_vec()),
                    _ => out.pushes.push((tracker, frame.to_vec())),
                }
            }
        }
    }

    fn flush(&mut self, now: u64, out: &mut Output) {
        self.times.push(now);
        let from = self.state();
        let places: Vec<Place> = self.history.keys().cloned().collect();
        for place in places {
            self.history.entry(place).or_default().push(Version { from, id: None, expires: None });
        }
        self.trackers.clear();
        let null = b">2\r\n$10\r\ninvalidate\r\n_\r\n".to_vec();
        out.pushes.extend(self.connections.iter().map(|conn| (*conn, null.clone())));
    }
}

fn value_reply(out: &mut BytesMut, value: Option<&str>) {
    match value {
        Some(value) => build::bulk(out, value.as_bytes()),
        None => build::null(out, Proto::Resp3),
    }
}
