//! Where frames must be exact: which replies a fill takes, who joins it, what R22 forbids, and JSON.GET, whose module is
//! played.

use super::{ALL, is_kept, run, wait_kept};
use crate::support::fake::{self, Conn};
use crate::support::proxy::Builder;
use crate::support::{Client, Fake, PATIENCE, Proxy, Reply, eventually};

struct Scripted {
    lane: Conn,
    proxy: Proxy,
    fake: Fake,
}

/// COMMAND INFO of a module's command that reads its first argument; the same for every name.
const MODULE_READ: &str = "*1\r\n*7\r\n$8\r\njson.get\r\n:-2\r\n~2\r\n+readonly\r\n+module\r\n:1\r\n:1\r\n:1\r\n~0\r\n";

impl Scripted {
    fn start() -> Scripted {
        Scripted::over(Fake::start(), |builder| builder)
    }

    fn with_json(configure: impl FnOnce(Builder) -> Builder) -> Scripted {
        Scripted::over(Fake::builder().answer("COMMAND INFO", MODULE_READ).start(), configure)
    }

    fn over(fake: Fake, configure: impl FnOnce(Builder) -> Builder) -> Scripted {
        let builder = Proxy::upstream(&fake.url()).set("coherence.max_staleness", "10s").set("cache.commands", ALL);
        let proxy = configure(builder.set("coherence.canary", "off")).start();
        let lane = fake.lane();
        Scripted { lane, proxy, fake }
    }

    /// Upstream answers a read of `key` that the sidecar sends with its PTTL.
    fn answer(&mut self, line: &str, key: &str, reply: &str) {
        self.lane.expect(&super::words(line)).reply(reply).expect(&["PTTL", key]).reply(":-1\r\n");
    }

    fn fill(&mut self, client: &mut Client, line: &str, key: &str, reply: &str) {
        client.send_cmd(&super::words(line));
        self.answer(line, key, reply);
        client.read_reply_raw();
        wait_kept(client, line);
    }
}

#[test]
fn a_push_between_a_read_and_its_pttl_voids_it() {
    let mut s = Scripted::start();
    let mut client = s.proxy.client3();
    client.send_cmd(&["LLEN", "l"]);
    s.lane.expect(&["LLEN", "l"]).reply([b":1\r\n".to_vec(), fake::invalidation(&["l"])].concat());
    s.lane.expect(&["PTTL", "l"]).reply(":-1\r\n");
    assert_eq!(client.reply(), Reply::Int(1));
    eventually(PATIENCE, "the refusal", || s.proxy.stat("fills_discarded_push") == 1.0);
    assert!(!is_kept(&mut client, "LLEN l"));
}

#[test]
fn a_read_that_its_pttl_contradicts_is_not_kept() {
    let mut s = Scripted::start();
    let mut client = s.proxy.client3();
    for (n, (line, reply, pttl)) in [
        ("LRANGE k 0 -1", "*1\r\n$1\r\na\r\n", ":-2\r\n"),
        ("HGETALL k", "%0\r\n", ":-1\r\n"),
        ("TYPE k", "+none\r\n", ":5000\r\n"),
        ("TYPE k", "+list\r\n", ":-2\r\n"),
        ("HGET k f", "$1\r\nv\r\n", ":-2\r\n"),
    ]
    .into_iter()
    .enumerate()
    {
        client.send_cmd(&super::words(line));
        s.lane.expect(&super::words(line)).reply(reply).expect(&["PTTL", "k"]).reply(pttl);
        client.read_reply_raw();
        let refused = (n + 1) as f64;
        eventually(PATIENCE, "the refusal", || s.proxy.stat("fills_discarded_inconsistent") == refused);
        assert!(!is_kept(&mut client, line), "{line}");
    }
    // No such field, in a hash that is there.
    s.fill(&mut client, "HGET k f", "k", "_\r\n");
}

#[test]
fn clients_that_ask_the_same_at_once_share_one_fetch() {
    let mut s = Scripted::start();
    let (mut two, mut three, mut other) = (s.proxy.client(), s.proxy.client3(), s.proxy.client());
    three.send_cmd(&["HGETALL", "h"]);
    eventually(PATIENCE, "in flight", || s.proxy.stat("in_flight") == 2.0);
    two.send_cmd(&["hgetall", "h"]);
    other.send_cmd(&["HLEN", "h"]);
    eventually(PATIENCE, "joined", || s.proxy.stat("coalesced") == 1.0);
    let map = "%1\r\n$1\r\nf\r\n$1\r\nv\r\n";
    s.answer("HGETALL h", "h", map);
    s.answer("HLEN h", "h", ":1\r\n");
    assert_eq!(three.read_reply_raw(), map.as_bytes());
    assert_eq!(two.read_reply_raw(), b"*2\r\n$1\r\nf\r\n$1\r\nv\r\n");
    assert_eq!(other.reply(), Reply::Int(1));
    assert_eq!(s.lane.try_next(std::time::Duration::from_millis(50)), None);
}

/// R22: a hit at the time of parsing may not overtake a read of the same key that is outstanding.
#[test]
fn no_hit_overtakes_an_outstanding_read_of_its_key() {
    let mut s = Scripted::start();
    let mut client = s.proxy.client3();
    s.fill(&mut client, "STRLEN k", "k", ":1\r\n");
    client.send(&[crate::support::encode(&["GETBIT", "k", "0"]), crate::support::encode(&["STRLEN", "k"])].concat());
    s.lane.expect(&["GETBIT", "k", "0"]).invalidate(&["k"]).reply(":1\r\n");
    s.lane.expect(&["PTTL", "k"]).reply(":-1\r\n");
    s.answer("STRLEN k", "k", ":2\r\n");
    assert_eq!((client.reply(), client.reply()), (Reply::Int(1), Reply::Int(2)));
    assert_eq!(s.proxy.stat("bypass_outstanding"), 1.0);
}

#[test]
fn a_read_in_flight_of_a_lost_lane_is_sent_again_and_not_kept() {
    let mut s = Scripted::start();
    let mut client = s.proxy.client3();
    client.send_cmd(&["ZSCORE", "z", "m"]);
    s.lane.expect(&["ZSCORE", "z", "m"]).close();
    let mut lane = s.fake.lane();
    lane.expect(&["ZSCORE", "z", "m"]).reply(",1.5\r\n");
    assert_eq!(client.read_reply_raw(), b",1.5\r\n");
    assert!(!is_kept(&mut client, "ZSCORE z m"));
}

#[test]
fn json_get_is_kept_for_resp3_clients_where_upstream_has_the_module() {
    let mut s = Scripted::with_json(|builder| builder);
    let (mut two, mut three) = (s.proxy.client(), s.proxy.client3());
    let line = "JSON.GET doc $.a";
    s.fill(&mut three, line, "doc", "$3\r\n[1]\r\n");
    assert_eq!(run(&mut three, "json.get doc $.a"), Reply::bulk("[1]"));
    assert_eq!(s.proxy.stat("hits"), 1.0);
    s.fill(&mut three, "JSON.GET doc $.b", "doc", "_\r\n");
    // In RESP2 a module may answer otherwise, so it is asked in RESP2, on a connection of the client's own.
    two.send_cmd(&super::words(line));
    s.fake.other().expect(&super::words(line)).reply("$3\r\n[2]\r\n");
    assert_eq!(two.reply(), Reply::bulk("[2]"));
    s.lane.invalidate(&["doc"]);
    eventually(PATIENCE, "the push", || !is_kept(&mut three, line) && !is_kept(&mut three, "JSON.GET doc $.b"));
    s.fill(&mut three, line, "doc", "$3\r\n[3]\r\n");
    // A module's write that names no key we know of: the fence, and the push before the PONG.
    three.send_cmd(&["JSON.SET", "doc", "$", "1"]);
    s.lane.expect(&["JSON.SET", "doc", "$", "1"]).reply([b"+OK\r\n".to_vec(), fake::invalidation(&["doc"])].concat());
    assert_eq!(three.reply(), Reply::ok());
    assert!(!is_kept(&mut three, line));
}

#[test]
fn json_get_is_left_alone_where_it_is_not_configured_or_not_a_read() {
    for (commands, info) in [
        (&["GET"][..], MODULE_READ.to_owned()),
        (ALL, MODULE_READ.replace("+readonly", "+write")),
        (ALL, MODULE_READ.replace(":1\r\n:1\r\n:1", ":0\r\n:0\r\n:0")),
    ] {
        let fake = Fake::builder().answer("COMMAND INFO", &info).start();
        let mut s = Scripted::over(fake, |builder| builder.set("cache.commands", commands));
        let mut client = s.proxy.client3();
        for _ in 0..2 {
            client.send_cmd(&["JSON.GET", "doc"]);
            s.lane.expect(&["JSON.GET", "doc"]).reply("$1\r\n1\r\n");
            assert_eq!(client.reply(), Reply::bulk("1"));
        }
        assert_eq!(s.proxy.stat("hits"), 0.0);
    }
}

/// R26: a module's command is not sent twice, so its large reply is kept for its client; beyond what all clients may keep
/// the client goes, and is told no untruth.
#[test]
fn a_large_reply_of_json_get_is_whole_or_the_end_of_its_client() {
    let mut s =
        Scripted::with_json(|builder| builder.set("listen.buffers_max", "4MiB").set("listen.output_limit", "4MiB"));
    let (mut client, mut other) = (s.proxy.client3(), s.proxy.client3());
    let document = |mib: usize| format!("${}\r\n{}\r\n", mib << 20, "x".repeat(mib << 20));
    client.send_cmd(&["JSON.GET", "doc"]);
    s.lane.expect(&["JSON.GET", "doc"]).reply(document(2)).expect(&["PTTL", "doc"]).reply(":-1\r\n");
    assert_eq!(client.reply().text().len(), 2 << 20);
    eventually(PATIENCE, "too large to be kept", || s.proxy.stat("fills_discarded_too_large") == 1.0);
    client.send_cmd(&["JSON.GET", "doc"]);
    s.lane.expect(&["JSON.GET", "doc"]).reply(document(8)).expect(&["PTTL", "doc"]).reply(":-1\r\n");
    assert_eq!(client.expect_closed(), b"");
    other.send_cmd(&["LLEN", "l"]);
    s.answer("LLEN l", "l", ":1\r\n");
    assert_eq!(other.reply(), Reply::Int(1));
}
