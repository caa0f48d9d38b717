//! Memory and other clients stay what they were, whatever one client does: large values, unread replies, endless requests,
//! too many connections. What is measured is the process's resident memory and whether others are answered meanwhile.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use crate::sessions::{run, warm, words};
use crate::support::{Client, PATIENCE, Proxy, Redis, Reply, encode, eventually, holds, proxy::is_pong, version};

const MIB: u64 = 1 << 20;

/// What the process may grow by while a value of any size passes (the bound).
const GROWTH: u64 = 16 * MIB;

/// The bound of one request of another client while something large passes: far below the time that the whole of it
/// takes to arrive, generous for a debug build on a machine with other work.
const OTHERS_WAIT: Duration = Duration::from_secs(2);

/// A client with one key in the cache, that makes sure it is served.
struct Bystander {
    client: Client,
}

impl Bystander {
    fn new(proxy: &Proxy, redis: &Redis) -> Bystander {
        redis.cmd(&["SET", "small", "v"]);
        let mut client = proxy.client().with_patience(OTHERS_WAIT);
        warm(proxy, &mut client, "small");
        Bystander { client }
    }

    /// A hit, a read and a write that go upstream.
    #[track_caller]
    fn is_served(&mut self) {
        for _ in 0..10 {
            assert_eq!(run(&mut self.client, "GET small"), Reply::bulk("v"));
            assert_eq!(run(&mut self.client, "STRLEN small"), Reply::Int(1));
            assert_eq!(run(&mut self.client, "SET other x"), Reply::ok());
        }
    }
}

/// The largest resident memory seen, over what it was at first.
struct Rss<'p> {
    proxy: &'p Proxy,
    base: u64,
}

impl<'p> Rss<'p> {
    /// Idle for everything but what the first requests make it allocate for good.
    fn of(proxy: &'p Proxy) -> Rss<'p> {
        Rss { proxy, base: proxy.rss() }
    }

    #[track_caller]
    fn check(&self, what: &str) {
        let grown = self.proxy.rss().saturating_sub(self.base);
        assert!(grown <= GROWTH, "{what}: grown by {} MiB", grown / MIB);
    }
}

/// Bytes written or read at once.
const PIECE: usize = 256 * 1024;

/// A value in which a piece lost or doubled shows: its byte at `at` is `at % 251`.
struct Pattern(Vec<u8>);

impl Pattern {
    fn new() -> Pattern {
        Pattern((0..PIECE + 251).map(|at| (at % 251) as u8).collect())
    }

    fn at(&self, at: u64, length: usize) -> &[u8] {
        &self.0[(at % 251) as usize..][..length]
    }

    /// Writes a value of `length` bytes in pieces; `then` is called after each.
    fn write(&self, to: &mut dyn Write, length: u64, mut then: impl FnMut(u64)) {
        let mut sent = 0;
        while sent < length {
            let piece = PIECE.min((length - sent) as usize);
            to.write_all(self.at(sent, piece)).expect("a piece");
            sent += piece as u64;
            then(sent);
        }
    }

    /// Reads a value of `length` bytes without keeping it.
    #[track_caller]
    fn read(&self, from: &mut dyn Read, length: u64, mut then: impl FnMut(u64)) {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n") {
            let mut one = [0];
            from.read_exact(&mut one).expect("the reply's head");
            head.push(one[0]);
        }
        assert_eq!(head.escape_ascii().to_string(), format!("${length}\\r\\n"));
        let mut piece = vec![0; PIECE];
        let mut got = 0;
        while got < length {
            let want = PIECE.min((length - got) as usize);
            let n = from.read(&mut piece[..want]).expect("a piece");
            assert_ne!(n, 0, "closed after {got} bytes");
            assert!(piece[..n] == *self.at(got, n), "the {n} bytes from {got} on are not the value's");
            got += n as u64;
            then(got);
        }
        let mut end = [0; 2];
        from.read_exact(&mut end).expect("the reply's end");
        assert_eq!(&end, b"\r\n");
    }
}

/// SET and GET of one value; in the middle of each the sender or reader rests while others are served.
fn a_value_passes(length: u64) {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis);
    let mut bystander = Bystander::new(&proxy, &redis);
    bystander.is_served();
    let rss = Rss::of(&proxy);
    let mut stream = UnixStream::connect(proxy.socket()).expect("a connection");
    stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a timeout");
    write!(stream, "*3\r\n$3\r\nSET\r\n$3\r\nbig\r\n${length}\r\n").expect("the head");
    let pattern = Pattern::new();
    pattern.write(&mut stream, length, |sent| {
        if sent % (length / 4) == 0 {
            bystander.is_served();
            rss.check("during SET");
        }
    });
    stream.write_all(b"\r\n").expect("the end");
    let mut ok = [0; 5];
    stream.read_exact(&mut ok).expect("a reply");
    assert_eq!(&ok, b"+OK\r\n");
    assert_eq!(redis.cmd(&["STRLEN", "big"]), Reply::Int(length as i64));
    // The first GET shows how large it is; the second knows.
    for round in ["first", "second"] {
        stream.write_all(b"GET big\r\n").expect("a request");
        let mut quarter = length / 4;
        pattern.read(&mut stream, length, |got| {
            if got >= quarter {
                quarter += length / 4;
                bystander.is_served();
                rss.check(&format!("during the {round} GET"));
            }
        });
    }
    stream.write_all(b"GET small\r\nPING\r\n").expect("requests");
    let mut last = [0; 14];
    stream.read_exact(&mut last).expect("replies");
    assert_eq!(&last, b"$1\r\nv\r\n+PONG\r\n");
    rss.check("afterwards");
}

#[test]
fn values_of_64_mib_pass_in_bounded_memory_and_disturb_nobody() {
    a_value_passes(64 * MIB);
}

#[test]
#[ignore = "soak"]
fn values_of_512_mib_pass_in_bounded_memory_and_disturb_nobody() {
    a_value_passes(512 * MIB);
}

#[test]
fn large_requests_of_every_kind_pass() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis);
    let mut client = proxy.client();
    let big = vec![b'x'; 3 << 20];
    let set = |key: &'static str| [b"SET".as_slice(), key.as_bytes(), &big].map(<[u8]>::to_vec);
    // Behind and before others in one pipeline, inside MULTI, as a script's argument, as many keys.
    let commands: Vec<Vec<Vec<u8>>> = vec![
        words("SET a 1").iter().map(|w| w.as_bytes().to_vec()).collect(),
        set("big").to_vec(),
        words("GET a").iter().map(|w| w.as_bytes().to_vec()).collect(),
        words("STRLEN big").iter().map(|w| w.as_bytes().to_vec()).collect(),
        words("MULTI").iter().map(|w| w.as_bytes().to_vec()).collect(),
        set("big2").to_vec(),
        words("STRLEN big2").iter().map(|w| w.as_bytes().to_vec()).collect(),
        words("EXEC").iter().map(|w| w.as_bytes().to_vec()).collect(),
        vec![b"EVAL".to_vec(), b"return #ARGV[1]".to_vec(), b"0".to_vec(), big.clone()],
        words("GET a").iter().map(|w| w.as_bytes().to_vec()).collect(),
    ];
    let bytes: Vec<u8> = commands.iter().flat_map(|args| encode(args)).collect();
    let mut writer = client.writer();
    let sender = std::thread::spawn(move || writer.write_all(&bytes).expect("all of it"));
    let length = Reply::Int(3 << 20);
    let queued = Reply::status("QUEUED");
    let exec = Reply::Array(vec![Reply::ok(), length.clone()]);
    let expected =
        [Reply::ok(), Reply::ok(), Reply::bulk("1"), length.clone(), Reply::ok(), queued.clone(), queued, exec, length];
    for (i, expected) in expected.iter().enumerate() {
        assert_eq!(client.reply(), *expected, "reply {i}");
    }
    assert_eq!(client.reply(), Reply::bulk("1"));
    sender.join().expect("the sender");
    // EXEC's elements are read one by one where one of them is ours.
    let commands = ["MULTI", "CLIENT GETNAME", "GET big", "SELECT 0", "GET big", "GET a", "EXEC"];
    let replies = client.pipeline(&commands.map(words).each_ref().map(Vec::as_slice));
    let value = Reply::Bulk(big);
    let exec = Reply::Array(vec![Reply::Nil, value.clone(), Reply::ok(), value, Reply::bulk("1")]);
    assert_eq!(replies[6], exec);
    let many: Vec<String> = (0..150_000).map(|i| format!("key{i}")).collect();
    let mget: Vec<&str> = std::iter::once("MGET").chain(many.iter().map(String::as_str)).collect();
    assert_eq!(client.cmd(&mget).items().len(), many.len());
    assert_eq!(run(&mut client, "GET a"), Reply::bulk("1"));
}

/// Many replies of 200 KB that nobody reads: `count` requests, none of which the cache may answer.
fn ask_for_much(redis: &Redis, client: &mut Client, count: usize) {
    redis.cmd(&["SET", "half", &"x".repeat(200_000)]);
    let bytes: Vec<u8> = (0..count).flat_map(|_| encode(&["GETRANGE", "half", "0", "-1"])).collect();
    client.send(&bytes);
}

#[test]
fn a_client_that_does_not_read_is_dropped_at_the_output_limit() {
    let redis = Redis::start();
    let proxy = Proxy::to(&redis).set("listen.output_limit", "4MiB").start();
    let mut bystander = Bystander::new(&proxy, &redis);
    let mut lazy = proxy.client();
    ask_for_much(&redis, &mut lazy, 200);
    let dropped = "nearside_clients_dropped_total{reason=\"output_limit\"}";
    eventually(PATIENCE, "it to be dropped", || {
        bystander.is_served();
        proxy.metric(dropped) == 1.0
    });
    // What it had been sent before arrives; then the end.
    let got = lazy.expect_closed();
    assert!(got.len() < 200 * 200_000, "{} bytes", got.len());
    bystander.is_served();
    proxy.wait_logged("listen.output_limit");
}

#[test]
fn a_client_that_reads_late_gets_everything_in_order() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis);
    let mut bystander = Bystander::new(&proxy, &redis);
    let mut late = proxy.client();
    ask_for_much(&redis, &mut late, 200);
    eventually(PATIENCE, "all replies to have come", || {
        bystander.is_served();
        proxy.metric("nearside_bytes_total{peer=\"upstream\",direction=\"in\"}") > 200.0 * 200_000.0
    });
    late.send_cmd(&["ECHO", "end"]);
    for _ in 0..200 {
        assert_eq!(late.reply().text().len(), 200_000);
    }
    assert_eq!(late.reply(), Reply::bulk("end"));
}

#[test]
fn hits_wait_for_a_reader_in_bounded_memory() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis);
    let mut bystander = Bystander::new(&proxy, &redis);
    redis.cmd(&["SET", "k", &"x".repeat(10_000)]);
    let mut slow = proxy.client();
    warm(&proxy, &mut slow, "k");
    let rss = Rss::of(&proxy);
    const COUNT: usize = 20_000;
    let mut writer = slow.writer();
    let sender = std::thread::spawn(move || {
        let bytes: Vec<u8> = (0..COUNT).flat_map(|_| encode(&["GET", "k"])).collect();
        writer.write_all(&bytes).expect("all of it");
    });
    // 200 MB are owed; it has read nothing.
    let hits = || proxy.stat("hits");
    let mut before = -1.0;
    eventually(PATIENCE, "back-pressure", || {
        bystander.is_served();
        let now = hits();
        let stopped = now - before < 100.0;
        before = now;
        stopped
    });
    rss.check("unread");
    let expected = encode_bulk(10_000);
    for i in 0..COUNT {
        assert_eq!(slow.read_exact(expected.len()), expected, "reply {i}");
        if i % 5000 == 0 {
            rss.check("while it reads");
        }
    }
    sender.join().expect("the sender");
    assert!(is_pong(&run(&mut slow, "PING")));
}

fn encode_bulk(length: usize) -> Vec<u8> {
    format!("${length}\r\n{}\r\n", "x".repeat(length)).into_bytes()
}

#[test]
fn a_subscriber_that_does_not_read_costs_bounded_memory() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis);
    let mut bystander = Bystander::new(&proxy, &redis);
    let mut sub = proxy.client();
    run(&mut sub, "SUBSCRIBE c");
    let rss = Rss::of(&proxy);
    let message = "x".repeat(1 << 20);
    let mut publisher = redis.client();
    for _ in 0..64 {
        publisher.cmd(&["PUBLISH", "c", &message]);
        rss.check("unread messages");
    }
    bystander.is_served();
    rss.check("afterwards");
    if !holds(version().counts_messages(), "a limit for subscribers that do not read") {
        return;
    }
    // Upstream gives it up at its own limit for subscribers (32 MB), as without us.
    eventually(PATIENCE, "upstream to drop it", || redis.cmd(&["PUBSUB", "NUMSUB", "c"]).items()[1] == Reply::Int(0));
}

#[test]
fn the_largest_is_dropped_where_all_together_keep_too_much() {
    let redis = Redis::start();
    let proxy = Proxy::to(&redis).set("listen.buffers_max", "8MiB").start();
    let mut bystander = Bystander::new(&proxy, &redis);
    let mut small = proxy.client();
    ask_for_much(&redis, &mut small, 10);
    let mut large = proxy.client();
    ask_for_much(&redis, &mut large, 100);
    let dropped = "nearside_clients_dropped_total{reason=\"buffers_max\"}";
    eventually(PATIENCE, "it to be dropped", || {
        bystander.is_served();
        proxy.metric(dropped) > 0.0
    });
    large.expect_closed();
    for _ in 0..10 {
        assert_eq!(small.reply().text().len(), 200_000);
    }
    assert_eq!(proxy.metric(dropped), 1.0);
}

#[test]
fn a_request_beyond_the_query_limit_ends_its_client() {
    let redis = Redis::start();
    let proxy = Proxy::to(&redis).set("listen.query_limit", "1MiB").start();
    let mut bystander = Bystander::new(&proxy, &redis);
    let attempts: [&dyn Fn() -> Vec<u8>; 2] = [&|| encode(&[b"SET".as_slice(), b"k", &vec![b'x'; 3 << 20]]), &|| {
        encode(&std::iter::repeat_n("DEL", 400_000).collect::<Vec<_>>())
    }];
    for (i, attempt) in attempts.iter().enumerate() {
        let mut client = proxy.client();
        client.send(b"PING\r\n");
        assert!(is_pong(&client.reply()));
        let _ = client.try_send(&attempt()); // it may be closed before all is written
        assert_eq!(client.expect_closed(), b"", "as Redis at client-query-buffer-limit");
        let dropped = proxy.metric("nearside_clients_dropped_total{reason=\"query_limit\"}");
        assert_eq!(dropped, i as f64 + 1.0);
    }
    assert_eq!(redis.cmd(&["EXISTS", "k"]), Reply::Int(0));
    bystander.is_served();
}

#[test]
fn one_client_too_many_is_told_as_redis_tells_it() {
    let plain = Redis::builder().args(&["--maxclients", "10"]).start();
    let full: Vec<Client> = (0..10).map(|_| plain.client()).collect();
    let mut expected = Vec::new();
    eventually(PATIENCE, "redis to be full", || {
        expected = plain.client().expect_closed();
        !expected.is_empty()
    });
    drop(full);
    let redis = Redis::start();
    let proxy = Proxy::to(&redis).set("listen.max_clients", 3).start();
    let place = || {
        let mut client = proxy.client();
        let pong = client.try_send(b"PING\r\n").is_ok() && client.try_read(PATIENCE).as_deref() == Some(b"+PONG\r\n");
        pong.then_some(client)
    };
    // The harness's own client may still be there.
    let mut clients = Vec::new();
    eventually(PATIENCE, "three places", || {
        clients.extend(place());
        clients.len() == 3
    });
    let before = proxy.metric("nearside_clients_rejected_total{reason=\"max_clients\"}");
    let mut refused = proxy.client();
    assert_eq!(refused.expect_closed(), expected);
    assert_eq!(proxy.metric("nearside_clients_rejected_total{reason=\"max_clients\"}"), before + 1.0);
    drop(clients.pop());
    eventually(PATIENCE, "a place", || place().is_some());
}

#[test]
fn idle_clients_are_closed_and_waiting_ones_are_not() {
    let redis = Redis::start();
    let proxy = Proxy::to(&redis).set("listen.idle_timeout", "300ms").start();
    let (mut blocked, mut sub, mut monitor) = (proxy.client(), proxy.client(), proxy.client());
    blocked.send_cmd(&["BLPOP", "q", "0"]);
    run(&mut sub, "SUBSCRIBE c");
    run(&mut monitor, "MONITOR");
    let start = Instant::now();
    let (mut idle, mut watching, mut multi) = (proxy.client(), proxy.client(), proxy.client());
    assert!(is_pong(&run(&mut idle, "PING")));
    run(&mut watching, "WATCH k");
    run(&mut multi, "MULTI");
    for (name, client) in [("idle", &mut idle), ("watching", &mut watching), ("multi", &mut multi)] {
        let end = client.try_read(PATIENCE);
        assert_eq!(end.as_deref(), Some(&b""[..]), "{name}");
    }
    assert!(start.elapsed() >= Duration::from_millis(300));
    assert_eq!(proxy.metric("nearside_clients_dropped_total{reason=\"idle_timeout\"}"), 3.0);
    // As in Redis, those that wait for something are not idle.
    redis.cmd(&["RPUSH", "q", "x"]);
    assert_eq!(blocked.reply(), Reply::bulks(&["q", "x"]));
    redis.cmd(&["PUBLISH", "c", "m"]);
    assert_eq!(sub.reply(), Reply::bulks(&["message", "c", "m"]));
}

/// CPU time the process has used, in clock ticks (100 a second on Linux).
fn cpu_ticks(proxy: &Proxy) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", proxy.pid())).expect("its stat");
    let fields: Vec<&str> = stat.rsplit(')').next().expect("fields").split_whitespace().collect();
    fields[11..13].iter().map(|f| f.parse::<u64>().expect("ticks")).sum()
}

#[test]
fn clients_that_wait_for_anything_cost_no_cpu() {
    let redis = Redis::start();
    redis.cmd(&["SET", "large", &"x".repeat(8 << 20)]);
    redis.cmd(&["SET", "half", &"x".repeat(200_000)]);
    let large_get = b"GET large\r\n".repeat(3);
    let many = b"GETRANGE half 0 -1\r\n".repeat(50);
    let hits = b"GET half\r\n".repeat(100);
    let states: &[(&str, &[u8], bool)] = &[
        ("nothing", b"", false),
        ("a request of which half is there", b"*2\r\n$3\r\nGET\r\n$10\r\nabc", false),
        ("a large request of which half is there", b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$9000000\r\nabc", false),
        ("half a request, then its end", b"*2\r\n$3\r\nGET\r\n$10\r\nabc", true),
        ("blocked", b"BLPOP q 0\r\n", false),
        ("blocked, with more behind it", b"BLPOP q 0\r\nGET k\r\nMULTI\r\n", false),
        ("blocked, then its end", b"BLPOP q 0\r\n", true),
        ("subscribed", b"SUBSCRIBE c\r\n", false),
        ("subscribed in RESP3", b"HELLO 3\r\nSUBSCRIBE c\r\nGET k\r\n", false),
        ("monitor", b"MONITOR\r\n", false),
        ("open transaction", b"MULTI\r\nSET k v\r\n", false),
        ("watching", b"WATCH k\r\n", false),
        ("watching, half a request", b"WATCH k\r\n*2\r\n$3\r\nGET", false),
        ("tracking", b"HELLO 3\r\nCLIENT TRACKING ON\r\n", false),
        ("silenced", b"CLIENT REPLY OFF\r\nPING\r\n", false),
        ("large replies it does not read", &large_get, false),
        ("many replies it does not read", &many, false),
        ("hits it does not read", &hits, false),
    ];
    for (state, sent, ends) in states {
        let proxy = Proxy::start(&redis);
        let clients: Vec<Client> = (0..3)
            .map(|_| {
                let mut client = proxy.client();
                client.send(sent);
                if *ends {
                    client.finish_writing();
                }
                client
            })
            .collect();
        // Idle is: no more than a tenth of the time. It may take a while to come to that.
        let wait_quiet = |when: &str| {
            let mut from = (Instant::now(), cpu_ticks(&proxy));
            eventually(PATIENCE, &format!("a process that sleeps {when} clients with {state}"), || {
                let over = from.0.elapsed() >= Duration::from_millis(200); // an interval to measure over
                let now = (Instant::now(), cpu_ticks(&proxy));
                let before = if over { std::mem::replace(&mut from, now) } else { from };
                over && now.1 - before.1 <= 2
            });
        };
        wait_quiet("beside");
        drop(clients);
        wait_quiet("after");
        assert!(is_pong(&run(&mut proxy.client(), "PING")), "{state}");
    }
}

#[test]
fn a_refused_command_is_refused_at_any_size() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis);
    let mut client = proxy.client();
    client.send(b"*3\r\n$5\r\nPSYNC\r\n$1\r\n?\r\n$2097152\r\n");
    let _ = client.try_send(&vec![b'x'; 1 << 20]);
    client.expect_closed();
    let stats = redis.cmd(&["INFO", "commandstats"]).text();
    assert!(!stats.contains("cmdstat_psync"), "{stats}");
}
