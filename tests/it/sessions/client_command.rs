use super::{run, same_as_redis, upstream_clients};
use crate::support::{Client, PATIENCE, Proxy, Redis, Reply, eventually, needs, proxy::is_pong};

/// The value of `name` in a line of CLIENT LIST.
#[track_caller]
fn field<'a>(line: &'a str, name: &str) -> &'a str {
    let found = line.trim_end().split(' ').find_map(|f| f.strip_prefix(name)?.strip_prefix('='));
    found.unwrap_or_else(|| panic!("no {name} in {line:?}"))
}

#[test]
fn ids_and_lists_speak_of_the_sidecars_own_clients() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis);
    let (mut one, mut two, mut three) = (proxy.client(), proxy.client(), proxy.client3());
    let (first, second) = (run(&mut one, "CLIENT ID").int(), run(&mut two, "CLIENT ID").int());
    assert!(second > first);
    let third = run(&mut three, "HELLO").get("id");
    assert_eq!(run(&mut three, "CLIENT ID"), third);
    run(&mut one, "CLIENT SETNAME mine");
    run(&mut one, "SELECT 5");
    let list = run(&mut two, "CLIENT LIST").text();
    assert_eq!(list.lines().count(), 3, "{list}");
    let line = list.lines().next().expect("a line");
    for (name, value) in [("id", &*first.to_string()), ("name", "mine"), ("db", "5")] {
        assert_eq!(field(line, name), value, "{name}");
    }
    for (name, value) in [("user", "default"), ("cmd", "select"), ("flags", "U"), ("multi", "-1")] {
        assert_eq!(field(line, name), value, "{name}");
    }
    if needs(7, 0, "resp in CLIENT LIST") {
        assert_eq!(field(line, "resp"), "2");
        assert_eq!(field(list.lines().nth(2).expect("three"), "resp"), "3");
    }
    let by_id = run(&mut two, &format!("CLIENT LIST ID {first}")).text();
    assert_eq!(by_id.lines().count(), 1);
    assert!(run(&mut two, "CLIENT INFO").text().starts_with(&format!("id={second} ")));
}

#[test]
fn the_fields_of_a_list_are_those_of_upstreams_version() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis);
    let names = |text: String| -> Vec<String> {
        text.trim().split(' ').filter_map(|f| f.split('=').next().map(String::from)).collect()
    };
    let expected = names(redis.cmd(&["CLIENT", "INFO"]).text());
    assert_eq!(names(run(&mut proxy.client(), "CLIENT INFO").text()), expected);
}

#[test]
fn upstreams_list_explains_who_its_clients_are() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis);
    let mut client = proxy.client();
    run(&mut client, "CLIENT SETNAME app");
    run(&mut client, "MULTI");
    let ours = format!(":{} ", proxy.pid());
    eventually(PATIENCE, "lane and pinned connection", || {
        upstream_clients(&redis, "name=nearside:").iter().filter(|line| line.contains(&ours)).count() == 2
    });
    assert!(upstream_clients(&redis, "name=app").is_empty());
}

/// A client over TCP, with its id, address and the one it reached.
struct Victim {
    client: Client,
    id: String,
    addr: String,
    laddr: String,
}

impl Victim {
    fn of(proxy: &Proxy) -> Victim {
        let mut client = Client::tcp(proxy.address());
        let info = run(&mut client, "CLIENT INFO").text();
        let of = |name| field(&info, name).to_string();
        Victim { id: of("id"), addr: of("addr"), laddr: of("laddr"), client }
    }
}

#[test]
fn kill_ends_clients_by_every_filter() {
    let redis = Redis::start();
    let proxy = Proxy::to(&redis).tcp().start();
    let mut me = proxy.client();
    type Order = fn(&Victim) -> String;
    let orders: [(Order, Reply); 5] = [
        (|v| format!("CLIENT KILL ID {}", v.id), Reply::Int(1)),
        (|v| format!("CLIENT KILL {}", v.addr), Reply::ok()),
        (|v| format!("CLIENT KILL ADDR {} LADDR {}", v.addr, v.laddr), Reply::Int(1)),
        (|v| format!("CLIENT KILL LADDR {}", v.laddr), Reply::Int(1)),
        (|_| "CLIENT KILL TYPE normal SKIPME yes".into(), Reply::Int(1)),
    ];
    for (order, expected) in orders {
        let mut victim = Victim::of(&proxy);
        assert_eq!(victim.laddr, proxy.address().to_string());
        let order = order(&victim);
        assert_eq!(run(&mut me, &order), expected, "{order}");
        victim.client.expect_closed();
        eventually(PATIENCE, "it to be gone", || run(&mut me, "CLIENT LIST").text().lines().count() == 1);
    }
    let gone = Victim::of(&proxy).addr;
    eventually(PATIENCE, "it to be gone", || run(&mut me, "CLIENT LIST").text().lines().count() == 1);
    assert_eq!(run(&mut me, &format!("CLIENT KILL {gone}")).text(), "ERR No such client");
    assert_eq!(run(&mut me, "CLIENT KILL ID 99999"), Reply::Int(0));
}

#[test]
fn a_blocked_client_can_be_killed_and_so_can_oneself() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis);
    let (mut me, mut blocked) = (proxy.client(), proxy.client());
    let id = run(&mut blocked, "CLIENT ID").int();
    blocked.send_cmd(&["BLPOP", "q", "0"]);
    super::wait_upstream(&redis, "cmd=blpop", 1);
    assert_eq!(run(&mut me, &format!("CLIENT KILL ID {id}")), Reply::Int(1));
    blocked.expect_closed();
    super::wait_upstream(&redis, "cmd=blpop", 0);
    let own = run(&mut me, "CLIENT ID").int();
    assert_eq!(run(&mut me, &format!("CLIENT KILL ID {own}")), Reply::Int(0));
    assert_eq!(run(&mut me, &format!("CLIENT KILL ID {own} SKIPME no")), Reply::Int(1));
    assert_eq!(me.expect_closed(), b"");
    // Nobody upstream has lost a connection over it.
    assert!(is_pong(&run(&mut proxy.client(), "PING")));
}

#[test]
fn replies_can_be_switched_off_and_skipped() {
    let (plain, redis) = (Redis::start(), Redis::start());
    let proxy = Proxy::start(&redis);
    let lines = [
        "SET k 1",
        "CLIENT REPLY OFF",
        "GET k",
        "INCR k",
        "PING",
        "MULTI",
        "INCR k",
        "EXEC",
        "BLPOP q 0.01",
        "NOSUCH",
        "MULTI",
        "CLIENT GETNAME",
        "SELECT 0",
        "GET k",
        "EXEC",
        "CLIENT REPLY SKIP",
        "PING",
        "CLIENT ID",
        "SELECT 1",
        "SELECT 0",
        "CLIENT REPLY ON",
        "GET k",
        "CLIENT REPLY SKIP",
        "GET k",
        "INCR k",
        "CLIENT REPLY SKIP",
        "MULTI",
        "INCR k",
        "EXEC",
        "GET k",
        "CLIENT REPLY SKIP",
        "CLIENT SETNAME x",
        "CLIENT GETNAME",
        "CLIENT REPLY SKIP",
        "SELECT 2",
        "CLIENT REPLY NONSENSE",
        "CLIENT REPLY SKIP",
        "CLIENT KILL USER nobody",
        "GET k",
        "GET none",
        "CLIENT REPLY SKIP",
        "SELECT 3",
        "CLIENT REPLY SKIP",
        "CLIENT REPLY NONSENSE",
        "CLIENT REPLY SKIP",
        "BLPOP q 0.01",
        "CLIENT REPLY SKIP",
        "NOSUCH2 command",
        "ECHO end",
    ];
    let script = lines.join("\r\n") + "\r\n";
    let [expected, got] = [plain.client(), proxy.client()].map(|mut client| {
        client.send(script.as_bytes());
        let mut all = Vec::new();
        while !all.ends_with(b"end\r\n") {
            all.extend(client.read_reply_raw());
        }
        all.escape_ascii().to_string()
    });
    assert_eq!(got, expected);
}

#[test]
fn names_and_switches_are_answered_as_redis_answers() {
    let (plain, redis) = (Redis::start(), Redis::start());
    let proxy = Proxy::start(&redis);
    let lines = [
        "CLIENT GETNAME",
        "CLIENT SETNAME a\tb",
        "CLIENT SETNAME good",
        "CLIENT GETNAME",
        "CLIENT NO-EVICT on",
        "CLIENT NO-EVICT maybe",
        "CLIENT NO-EVICT off",
        "CLIENT SETINFO lib-name x",
        "CLIENT NO-TOUCH on",
        "CLIENT MAINT_NOTIFICATIONS ON",
        "CLIENT KILL ID x",
        "CLIENT KILL ID",
        "CLIENT KILL USER nobody",
        "CLIENT KILL TYPE nonsense",
        "CLIENT LIST TYPE nonsense",
        "CLIENT LIST ID x",
        "CLIENT UNBLOCK x",
        "CLIENT UNBLOCK 1 NONSENSE",
        "CLIENT CACHING yes",
        "CLIENT GETREDIR",
        "CLIENT NONSENSE",
        "CLIENT",
        "CLIENT REPLY NONSENSE",
        "CLIENT REPLY",
        "CLIENT SETNAME",
        "CLIENT ID extra",
        "HELLO 4",
        "HELLO x",
        "HELLO 3 NONSENSE",
        "HELLO 2 SETNAME a\tb",
        "HELLO 2 AUTH default",
        "SELECT x",
        "SELECT -1",
        "SELECT 16",
        "SELECT 15",
        "AUTH x",
        "AUTH nobody x",
        "AUTH a b c",
        "READONLY",
        "READWRITE",
        "ASKING",
        "GET k",
    ];
    same_as_redis(&mut plain.client(), &mut proxy.client(), &lines);
    same_as_redis(&mut plain.client().hello3(), &mut proxy.client3(), &lines);
    for line in lines {
        same_as_redis(&mut plain.client(), &mut proxy.client(), &[line, "GET k"]);
    }
}

#[test]
fn a_pause_holds_writes_of_all_clients_until_unpause() {
    let redis = Redis::start();
    // The pause would hold a canary's write as well.
    let proxy = Proxy::to(&redis).set("coherence.canary", "off").start();
    let (mut one, mut two) = (proxy.client(), proxy.client());
    assert_eq!(run(&mut one, "CLIENT PAUSE 100000 WRITE"), Reply::ok());
    two.send_cmd(&["SET", "k", "v"]);
    eventually(PATIENCE, "the write to wait upstream", || upstream_clients(&redis, "flags=b").len() == 1);
    assert_eq!(run(&mut one, "CLIENT UNPAUSE"), Reply::ok());
    assert_eq!(two.reply(), Reply::ok());
}
