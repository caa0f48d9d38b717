//! Reads other than GET and MGET: each that can be kept, from its miss over its hits to what ends them; and each that is
//! never kept, with the reason why not (R9).

mod kept;
mod never;
mod scripted;

use crate::support::{Client, PATIENCE, Proxy, Redis, Reply, eventually};

/// What `cache.commands` takes.
pub(crate) const ALL: &[&str] = &[
    "GET",
    "MGET",
    "STRLEN",
    "GETRANGE",
    "SUBSTR",
    "GETBIT",
    "BITCOUNT",
    "BITPOS",
    "EXISTS",
    "TYPE",
    "HGET",
    "HMGET",
    "HGETALL",
    "HLEN",
    "HEXISTS",
    "HKEYS",
    "HVALS",
    "HSTRLEN",
    "LRANGE",
    "LLEN",
    "LINDEX",
    "LPOS",
    "SMEMBERS",
    "SISMEMBER",
    "SMISMEMBER",
    "SCARD",
    "ZRANGE",
    "ZREVRANGE",
    "ZRANGEBYSCORE",
    "ZREVRANGEBYSCORE",
    "ZRANGEBYLEX",
    "ZREVRANGEBYLEX",
    "ZSCORE",
    "ZMSCORE",
    "ZCARD",
    "ZCOUNT",
    "ZLEXCOUNT",
    "ZRANK",
    "ZREVRANK",
    "JSON.GET",
];

/// A server, and a sidecar before it that keeps all it can.
struct All {
    proxy: Proxy,
    redis: Redis,
}

impl All {
    fn start() -> All {
        let redis = Redis::start();
        let proxy = Proxy::to(&redis).set("cache.commands", ALL).start();
        eventually(PATIENCE, "a lane", || proxy.stats()["coherence"] == "tracking");
        All { proxy, redis }
    }

    /// How often upstream has executed a command.
    fn calls(&self, line: &str) -> u64 {
        let stats = self.redis.cmd(&["INFO", "commandstats"]).text();
        let words = words(line);
        let name = words[0].to_lowercase();
        let sub = words.get(1).map_or(String::new(), |sub| format!("{name}|{}", sub.to_lowercase()));
        let count = |name: &str| {
            let start = format!("cmdstat_{name}:calls=");
            stats.lines().find_map(|line| line.strip_prefix(&start)?.split(',').next()?.parse().ok())
        };
        count(&name).or_else(|| count(&sub)).unwrap_or(0)
    }
}

impl All {
    /// Whether this server lets fields of a hash expire (Redis 7.4, Valkey 9).
    fn fields_expire(&self) -> bool {
        self.redis.cmd(&["COMMAND", "INFO", "HEXPIRE"]).items() != [Reply::Nil]
    }
}

fn words(line: &str) -> Vec<&str> {
    line.split(' ').collect()
}

/// The bytes of the answer.
#[track_caller]
fn raw(client: &mut Client, line: &str) -> Vec<u8> {
    client.send_cmd(&words(line));
    client.read_reply_raw()
}

#[track_caller]
fn run(client: &mut Client, line: &str) -> Reply {
    client.cmd(&words(line))
}

/// Whether the L1 has an answer to this request.
#[track_caller]
fn is_kept(client: &mut Client, line: &str) -> bool {
    run(client, &format!("NEARSIDE EXPLAIN {line}")).get("in_l1") == Reply::bulk("yes")
}

/// The answer to a read comes before the one to its PTTL, which is what stores.
#[track_caller]
fn wait_kept(client: &mut Client, line: &str) {
    eventually(PATIENCE, &format!("{line} in the L1"), || is_kept(client, line));
}
