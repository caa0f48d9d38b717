//! Two sidecars with different prefixes on one Redis never see each other, in each mode of coherence.

use super::*;

/// A small generator, so that a failure can be repeated from its seed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % sides as u64) as usize
    }
}

/// Commands of a client that means no harm and knows no other; K is a key, of which there are few.
const COMMANDS: &[&str] = &[
    "SET K v",
    "SET K w EX 100",
    "GET K",
    "MGET K K",
    "MSET K 1 K 2",
    "DEL K",
    "UNLINK K K",
    "INCR K",
    "APPEND K x",
    "RPUSH K a b",
    "LPOP K",
    "LMPOP 2 K K LEFT",
    "BLPOP K K 0.01",
    "SADD K a",
    "SUNIONSTORE K K K",
    "ZADD K 1 a",
    "ZUNIONSTORE K 2 K K",
    "ZMPOP 1 K MIN",
    "HSET K f v",
    "HGETALL K",
    "XADD K * f v",
    "XREAD STREAMS K 0",
    "KEYS *",
    "SCAN 0 COUNT 1000",
    "RANDOMKEY",
    "RENAME K K",
    "COPY K K",
    "SORT K BY K* GET # GET K* STORE K",
    "EXISTS K K",
    "TYPE K",
    "OBJECT ENCODING K",
    "DUMP K",
    "PFADD K a",
    "PFMERGE K K",
    "BITOP OR K K K",
    "GEOADD K 1 1 m",
    "EVAL return+redis.call('SET',KEYS[1],'e') 1 K",
    "FLUSHDB",
    "FLUSHALL",
    "MOVE K 1",
    "DBSIZE",
    "SWAPDB 0 1",
    "NEARSIDE DELETE PATTERN K*",
    "NEARSIDE INVALIDATE PATTERN *",
    "NEARSIDE FLUSH",
    "PERSIST K",
    "TOUCH K",
    "MULTI",
    "SET K m",
    "EXEC",
    "CLIENT TRACKING ON BCAST",
    "CLIENT TRACKING OFF",
    "RANDOMKEY",
    "LCS K K",
];

/// What a client of the other sidecar sees, and everything there is of its keys upstream.
fn state(redis: &Redis, client: &mut Client) -> Vec<String> {
    let keys = sorted(&client.cmd(&["KEYS", "*"]));
    let values = keys
        .iter()
        .map(|key| format!("{key} {:?} {:?}", client.cmd(&["GET", key]), redis.cmd(&["DUMP", &format!("b:{key}")])));
    values.collect()
}

#[track_caller]
fn never_meet(configure: impl Fn(Builder) -> Builder) {
    let redis = Redis::start();
    let (a, b) = (configure(with(&redis, "a:")).start(), configure(with(&redis, "b:")).start());
    let mut there = b.client();
    for i in 0..8 {
        there.cmd(&["SET", &format!("k{i}"), &format!("theirs {i}")]);
    }
    say(&mut there, "RPUSH l one two");
    redis.cmd(&["SET", "k0", "nobody's"]);
    eventually(PATIENCE, "no canary", || sorted(&there.cmd(&["KEYS", "*"])).len() == 9);
    let before = state(&redis, &mut there);
    let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
    let mut here = a.client3();
    for round in 0..800 {
        let line = COMMANDS[dice.roll(COMMANDS.len())];
        let key = |dice: &mut Dice| ["k0", "k1", "k2", "l", "", "b:k0", "a:k0"][dice.roll(7)].to_owned();
        let words: Vec<String> = line
            .split(' ')
            .map(|word| match word {
                "K" => key(&mut dice),
                "K*" => key(&mut dice) + "*",
                word => word.replace('+', " "),
            })
            .collect();
        let reply = format!("{:?}", here.cmd(&words));
        assert!(!reply.contains("theirs") && !reply.contains("nobody"), "{round}: {words:?}: {reply}");
        if round % 200 == 0 {
            assert_eq!(state(&redis, &mut there), before, "{round}: {words:?}");
        }
    }
    assert_eq!(state(&redis, &mut there), before);
    assert_eq!(redis.cmd(&["GET", "k0"]), Reply::bulk("nobody's"));
    let foreign = upstream_keys(&redis).into_iter().filter(|key| !key.starts_with("a:") && !key.starts_with("b:"));
    assert_eq!(foreign.collect::<Vec<_>>(), ["k0"]);
}

#[test]
fn random_commands_of_one_never_change_what_the_other_sees() {
    never_meet(|builder| builder);
}

#[test]
fn nor_where_writes_are_announced_on_the_channel() {
    never_meet(|builder| builder.set("coherence.mode", "pubsub"));
}

#[test]
fn sidecars_of_one_prefix_drop_each_others_copies_and_others_keep_theirs() {
    let redis = Redis::start();
    let start = |prefix| with(&redis, prefix).set("coherence.mode", "pubsub").start();
    let (one, two, other) = (start("a:"), start("a:"), start("b:"));
    let (mut c1, mut c2, mut c3) = (one.client(), two.client(), other.client());
    say(&mut c1, "SET k 1");
    say(&mut c3, "SET k theirs");
    let entry = |client: &mut Client| say(client, "NEARSIDE ENTRY k") != "nil";
    warm(&two, &mut c2, "k");
    warm(&other, &mut c3, "k");
    say(&mut c1, "SET k 2");
    eventually(PATIENCE, "the write to arrive", || say(&mut c2, "GET k") == r#""2""#);
    // An app names its keys as it knows them.
    warm(&one, &mut c1, "k");
    warm(&two, &mut c2, "k");
    assert_eq!(c1.cmd(&["PUBLISH", "nearside:invalidate", "key k"]).int(), 3);
    assert!(!entry(&mut c1));
    eventually(PATIENCE, "the other one of the prefix to follow", || !entry(&mut c2));
    warm(&one, &mut c1, "k");
    c1.cmd(&["PUBLISH", "nearside:invalidate", r#"{"v":1,"op":"pattern","args":["k*"]}"#]);
    assert!(!entry(&mut c1));
    assert_eq!(say(&mut c3, "GET k"), r#""theirs""#);
    assert!(entry(&mut c3), "another prefix is another name");
}
