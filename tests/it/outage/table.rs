//! Every cell of the table: `outage.reads` by `outage.writes`, in each way in which an upstream can be gone.

use super::queue::{not_queued, wait_replayed};
use super::{quick, refused, wait_gone, warm};
use crate::support::{Client, PATIENCE, Proxy, Redis, Relay, Reply, Scope, eventually};

const WORDS: [&str; 3] = ["fail", "stale", "local"];
const WRITES: [&str; 3] = ["fail", "queue", "local"];

struct Cell {
    reads: &'static str,
    writes: &'static str,
    proxy: Proxy,
}

impl Cell {
    /// A key of this cell's own: they share an upstream.
    fn key(&self, name: &str) -> String {
        format!("{}:{}:{name}", self.reads, self.writes)
    }

    fn start(redis: &Redis, url: &str, reads: &'static str, writes: &'static str) -> Cell {
        let builder = quick(Proxy::upstream(url)).set("outage.reads", reads).set("outage.writes", writes);
        let proxy = builder.set("upstream.stall_timeout", "1s").set("upstream.connect_timeout", "500ms").start();
        let cell = Cell { reads, writes, proxy };
        let mut c = cell.proxy.client();
        for name in ["hit", "n", "gone"] {
            redis.cmd(&["SET", &cell.key(name), "1"]);
            warm(&cell.proxy, &mut c, &cell.key(name));
        }
        cell
    }

    /// Makes a silent upstream be noticed, which nobody asks anything.
    fn notice(&self) {
        let mut c = self.proxy.client();
        c.send_cmd(&["GET", "nobody's"]);
        wait_gone(&self.proxy);
        eventually(PATIENCE, "its lane to be gone", || {
            // Whatever the cell, this is never upstream's answer.
            let reply = self.proxy.client().cmd(&["LPUSH", "x", "y"]);
            reply.is_error() && reply.text().starts_with("NEARSIDE ")
        });
    }

    fn check_reads(&self, c: &mut Client) {
        let get = |c: &mut Client, name: &str| c.cmd(&["GET", &self.key(name)]);
        match self.reads {
            "fail" => drop(refused(&get(c, "hit"))),
            _ => assert_eq!(get(c, "hit"), Reply::bulk("1")),
        }
        match self.reads {
            "local" => {
                assert_eq!(get(c, "miss"), Reply::Nil);
                assert_eq!(
                    c.cmd(&["MGET", &self.key("hit"), &self.key("miss")]).items(),
                    [Reply::bulk("1"), Reply::Nil]
                );
                assert_eq!(c.cmd(&["STRLEN", &self.key("hit")]), Reply::Int(1), "of what the L1 has");
                assert_eq!(c.cmd(&["EXISTS", &self.key("hit"), &self.key("miss")]), Reply::Int(1));
                refused(&c.cmd(&["HGET", &self.key("hit"), "f"]));
            }
            _ => {
                refused(&get(c, "miss"));
                refused(&c.cmd(&["MGET", &self.key("hit"), &self.key("miss")]));
                refused(&c.cmd(&["STRLEN", &self.key("hit")]));
            }
        }
        refused(&c.cmd(&["KEYS", "*"]));
    }

    fn check_writes(&self, c: &mut Client) {
        let (new, n, gone, miss) = (self.key("new"), self.key("n"), self.key("gone"), self.key("miss"));
        match self.writes {
            "fail" => {
                for words in [&["SET", &new, "v"][..], &["INCR", &n], &["DEL", &gone], &["INCR", &miss]] {
                    refused(&c.cmd(words));
                }
                return;
            }
            "queue" => {
                not_queued(&c.cmd(&["INCR", &miss]), "not known here");
                not_queued(&c.cmd(&["LPUSH", &new, "v"]), "needs an upstream");
            }
            _ => {
                assert_eq!(c.cmd(&["INCR", &miss]), Reply::Int(1));
                not_queued(&c.cmd(&["LPUSH", &new, "v"]), "needs an upstream");
            }
        }
        assert_eq!(c.cmd(&["SET", &new, "v", "EX", "1000"]), Reply::ok());
        assert_eq!(c.cmd(&["INCR", &n]), Reply::Int(2));
        assert_eq!(c.cmd(&["DEL", &gone]), Reply::Int(1));
        assert_eq!(c.cmd(&["MGET", &new, &n, &gone]).items(), [Reply::bulk("v"), Reply::bulk("2"), Reply::Nil]);
        assert_eq!(c.cmd(&["GET", &n]), Reply::bulk("2"), "what was written here hides what was read before");
        assert_eq!(c.cmd(&["TTL", &new]), Reply::Int(1000));
    }

    /// Upstream is back: what it has, and what the client sees.
    fn check_after(&self, redis: &Redis) {
        wait_replayed(&self.proxy);
        let mut c = self.proxy.client();
        let dropped = || self.proxy.metric("nearside_local_writes_dropped_total");
        eventually(PATIENCE, "local writes to be forgotten", || self.writes != "local" || dropped() == 4.0);
        let all = [&self.key("new"), &self.key("n"), &self.key("gone"), &self.key("miss")];
        let there: Vec<Reply> = match self.writes {
            "queue" => vec![Reply::bulk("v"), Reply::bulk("2"), Reply::Nil, Reply::Nil],
            _ => vec![Reply::Nil, Reply::bulk("1"), Reply::bulk("1"), Reply::Nil],
        };
        for (key, value) in all.iter().zip(there) {
            assert_eq!(redis.cmd(&["GET", key]), value, "{key}");
            eventually(PATIENCE, &format!("upstream's {key}"), || c.cmd(&["GET", key]) == value);
        }
        assert_eq!(dropped(), if self.writes == "local" { 4.0 } else { 0.0 });
        assert_eq!(self.proxy.stat("pending_writes"), 0.0);
    }
}

fn every_cell(redis: &mut Redis, url: &str, go: impl FnOnce(&mut Redis), back: impl FnOnce(&mut Redis)) {
    let mut cells = Vec::new();
    for reads in WORDS {
        for writes in WRITES {
            cells.push(Cell::start(redis, url, reads, writes));
        }
    }
    go(redis);
    cells.iter().for_each(Cell::notice);
    for cell in &cells {
        let mut c = cell.proxy.client();
        cell.check_reads(&mut c);
        cell.check_writes(&mut c);
    }
    back(redis);
    cells.iter().for_each(|cell| cell.check_after(redis));
}

#[test]
fn with_a_killed_server() {
    let mut redis = super::lasting();
    let url = redis.url();
    every_cell(&mut redis, &url, Redis::stop, Redis::restart);
}

#[test]
fn with_a_frozen_server() {
    let mut redis = Redis::start();
    let url = redis.url();
    every_cell(&mut redis, &url, Redis::sigstop, Redis::sigcont);
}

#[test]
fn with_a_server_that_is_not_let_at() {
    let mut redis = Redis::start();
    let relay = Relay::to(&redis);
    let refuse = |_: &mut Redis| {
        relay.refuse();
        relay.cut(Scope::Existing);
    };
    every_cell(&mut redis, &relay.url(), refuse, |_| relay.heal());
}

#[test]
fn with_a_black_hole() {
    let mut redis = Redis::start();
    let relay = Relay::to(&redis);
    every_cell(&mut redis, &relay.url(), |_| relay.blackhole(Scope::All), |_| relay.heal());
}

/// It was never there: writes are queued all the same.
#[test]
fn from_the_start_on() {
    let mut redis = Redis::start();
    redis.stop();
    let proxy = quick(Proxy::to(&redis)).set("outage.writes", "queue").start();
    let mut c = proxy.client();
    eventually(PATIENCE, "it to be known", || c.cmd(&["SET", "k", "1"]) == Reply::ok());
    redis.restart();
    wait_replayed(&proxy);
    assert_eq!(redis.cmd(&["GET", "k"]), Reply::bulk("1"));
}
