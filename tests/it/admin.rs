//! `NEARSIDE` and `INFO nearside`: what they answer in both protocols, and who may change what. Protected mode is tested
//! on the machine's own address; a machine that has none but loopback says that it skips.

use std::net::{IpAddr, UdpSocket};

use serde_json::json;

use crate::sessions::{run, same_as_redis, warm};
use crate::support::{Client, PATIENCE, Proxy, Redis, Reply, encode, eventually, needs};

const REFUSED: &str =
    "NOPERM this changes the sidecar and is not allowed on this connection (admin.resp, admin.password_file)";

const CHANGES: [&str; 5] =
    ["NEARSIDE MODE off", "NEARSIDE MODE serve", "NEARSIDE FLUSH", "NEARSIDE INVALIDATE KEY k", "nearside mode SERVE"];

const READS: [&str; 6] = [
    "NEARSIDE HELP",
    "NEARSIDE STATS",
    "NEARSIDE INFO",
    "NEARSIDE MODE",
    "NEARSIDE EXPLAIN GET k",
    "NEARSIDE ENTRY none",
];

/// An address of this machine that is not loopback; nothing is sent to find it.
fn own_address() -> Option<IpAddr> {
    let socket = UdpSocket::bind(("0.0.0.0", 0)).ok()?;
    socket.connect(("192.0.2.1", 9)).ok()?;
    let ip = socket.local_addr().ok()?.ip();
    let usable = !ip.is_loopback() && !ip.is_unspecified() && std::net::TcpListener::bind((ip, 0)).is_ok();
    usable.then_some(ip)
}

/// The machine's own address; says so where there is none.
fn far_away(test: &str) -> Option<IpAddr> {
    let address = own_address();
    if address.is_none() {
        eprintln!("SKIPPED {test}: this machine has no address but loopback");
    }
    address
}

fn listening_on(redis: &Redis, address: IpAddr) -> crate::support::proxy::Builder {
    Proxy::to(redis).set("listen.tcp", json!([format!("{address}:0")]))
}

fn names(reply: &Reply) -> Vec<String> {
    let text = reply.text();
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines.map(|line| line.split_once(':').unwrap_or_else(|| panic!("{line:?}")).0.to_string()).collect()
}

/// Each counter of `/metrics` is a line of INFO, with the same number.
#[test]
fn info_has_the_counters_that_metrics_has() {
    let redis = Redis::start();
    let proxy = Proxy::to(&redis).set("coherence.max_staleness", "60s").start();
    let mut client = proxy.client();
    for line in ["SET k v", "GET k", "GET k", "LPUSH k x", "FLUSHALL"] {
        run(&mut client, line);
    }
    client.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n");
    client.expect_closed();
    let (scrape, info) = (proxy.get("/metrics").body, proxy.stats());
    let series = |family: &str| {
        let lines = scrape.lines().filter(|line| line.starts_with(&format!("nearside_{family}_total{{")));
        lines.map(|line| line.split('"').nth(1).expect("a word").to_owned()).collect::<Vec<_>>()
    };
    let families = [
        ("bypass", "bypass"),
        ("evictions", "evictions"),
        ("fills_discarded", "fills_discarded"),
        ("flushes", "flushes"),
        ("invalidations", "invalidations"),
        ("pinned", "pinned"),
        ("touches", "touches"),
        ("warmed_keys", "warmed"),
        ("rollout_changes", "rollout_changes"),
        ("slow_commands", "slow_commands"),
        ("clients_rejected", "clients_rejected"),
        ("clients_dropped", "clients_dropped"),
        ("config_reloads", "config_reloads"),
    ];
    for (family, name) in families {
        let words = series(family);
        assert!(!words.is_empty(), "no series of {family}");
        for word in words {
            assert!(info.contains_key(&format!("{name}_{word}")), "no {name}_{word} in INFO");
        }
    }
    // What does not move meanwhile has the same number in both.
    let pairs = [
        ("nearside_flushes_total{reason=\"flushall\"}", "flushes_flushall"),
        ("nearside_commands_total{kind=\"write\"}", "commands_write"),
        ("nearside_evictions_total{cause=\"invalidated\"}", "evictions_invalidated"),
    ];
    for (series, line) in pairs {
        assert_eq!(proxy.metric(series), proxy.stat(line), "{line}");
    }
    assert!(
        proxy.stat("flushes_flushall") >= 1.0 && proxy.stat("uptime_ms") > 0.0 && proxy.stat("bytes_client_in") > 0.0
    );
}

#[test]
fn help_stats_info_and_mode_have_one_shape_in_both_protocols() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis);
    for mut client in [proxy.client(), proxy.client3()] {
        let help = run(&mut client, "NEARSIDE HELP").items();
        assert!(help.iter().all(|line| matches!(line, Reply::Status(_))));
        for sub in ["AUTH", "ENTRY", "EXPLAIN", "FLUSH", "INFO", "INVALIDATE", "MODE", "STATS"] {
            assert!(help.iter().any(|line| line.text().starts_with(sub)), "{sub} in {help:?}");
        }
        let stats = run(&mut client, "NEARSIDE STATS");
        assert!(matches!(stats, Reply::Bulk(_)));
        let dozen = names(&stats);
        assert_eq!(dozen.len(), 14, "{dozen:?}");
        for name in
            ["mode", "backend", "hits", "misses", "hit_rate", "entries", "bytes", "clients", "coherence", "upstream"]
        {
            assert!(dozen.iter().any(|n| n == name), "{name} in {dozen:?}");
        }
        let info = run(&mut client, "NEARSIDE INFO");
        assert!(matches!(info, Reply::Bulk(_)));
        let all = names(&info);
        assert!(dozen.iter().all(|name| all.contains(name)) && all.len() > 2 * dozen.len(), "{all:?}");
        assert_eq!(run(&mut client, "NEARSIDE MODE"), Reply::bulk("serve"));
        assert_eq!(run(&mut client, "nearside mode"), Reply::bulk("serve"));
    }
}

#[test]
fn explain_and_entry_are_maps_or_flat_arrays() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis);
    redis.cmd(&["SET", "user:1", "value", "EX", "100"]);
    for three in [false, true] {
        let mut client = if three { proxy.client3() } else { proxy.client() };
        let is_shape =
            |reply: &Reply| if three { matches!(reply, Reply::Map(_)) } else { matches!(reply, Reply::Array(_)) };
        warm(&proxy, &mut client, "user:1");
        let entry = run(&mut client, "NEARSIDE ENTRY user:1");
        assert!(is_shape(&entry), "{entry:?}");
        assert_eq!(entry.get("kind"), Reply::bulk("string"));
        assert_eq!(entry.get("value_bytes").text(), "5");
        assert_eq!(entry.get("key_pattern").text(), "user");
        assert_eq!(entry.get("served").text(), "yes");
        let ttl: u64 = entry.get("ttl_ms").text().parse().expect("a number");
        assert!((1..=100_000).contains(&ttl), "{ttl}");
        client.expect(&["NEARSIDE", "ENTRY", "none"], if three { "_\r\n" } else { "$-1\r\n" });
        let explain = run(&mut client, "NEARSIDE EXPLAIN GET user:1");
        assert!(is_shape(&explain), "{explain:?}");
        let of = |name| explain.get(name).text();
        assert_eq!(
            (of("command"), of("route"), of("in_l1"), of("effect")),
            ("get".into(), "l1".into(), "yes".into(), "read".into())
        );
        assert_eq!(explain.get("keys"), Reply::bulks(&["user:1"]));
    }
}

#[test]
fn explain_names_the_route_and_the_reason_and_executes_nothing() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis);
    let mut client = proxy.client();
    warm(&proxy, &mut client, "k");
    for (command, route, reason) in [
        ("SET k v", "write", ""),
        ("HGETALL h", "lane", ""),
        ("EVAL return 0", "opaque", ""),
        ("BLPOP q 0", "pinned", "blocking"),
        ("MULTI", "pinned", "transaction"),
        ("SUBSCRIBE c", "pinned", "subscribe"),
        ("CLIENT ID", "local", ""),
        ("SHUTDOWN NOSAVE", "refuse", "ERR SHUTDOWN is refused"),
        ("SYNC", "refuse", "ERR this command is not proxied"),
        ("DEL k l", "write", ""),
        ("GET k", "l1", ""),
    ] {
        let explain = run(&mut client, &format!("NEARSIDE EXPLAIN {command}"));
        assert_eq!(explain.get("route").text(), route, "{command}");
        assert!(explain.get("reason").text().starts_with(reason), "{command}: {explain:?}");
    }
    assert_eq!(redis.cmd(&["EXISTS", "k"]), Reply::Int(0));
    assert_eq!(run(&mut client, "NEARSIDE EXPLAIN DEL a b").get("keys"), Reply::bulks(&["a", "b"]));
    assert_eq!(run(&mut client, "NEARSIDE MODE off"), Reply::ok());
    let explain = run(&mut client, "NEARSIDE EXPLAIN GET k");
    assert_eq!(explain.get("reason").text(), "cache_off");
    assert_eq!(explain.get("not_stored_because").text(), "cache.mode is off");
}

#[test]
fn invalidate_and_flush_answer_how_many_entries_they_dropped() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis);
    let mut client = proxy.client3();
    for key in ["a", "b", "c"] {
        warm(&proxy, &mut client, key);
    }
    assert_eq!(run(&mut client, "NEARSIDE INVALIDATE KEY a none"), Reply::Int(1));
    assert_eq!(run(&mut client, "NEARSIDE ENTRY a"), Reply::Nil);
    assert!(matches!(run(&mut client, "NEARSIDE ENTRY b"), Reply::Map(_)));
    assert_eq!(run(&mut client, "NEARSIDE INVALIDATE KEY a"), Reply::Int(0));
    assert_eq!(run(&mut client, "NEARSIDE FLUSH"), Reply::Int(2));
    assert_eq!(run(&mut client, "NEARSIDE FLUSH"), Reply::Int(0));
    assert_eq!(run(&mut client, "NEARSIDE ENTRY b"), Reply::Nil);
    assert_eq!(proxy.stat("entries"), 0.0);
    // The cache works on.
    warm(&proxy, &mut client, "a");
}

#[test]
fn mode_off_serves_nothing_and_serve_begins_anew() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis);
    let mut client = proxy.client();
    run(&mut client, "SET k v");
    warm(&proxy, &mut client, "k");
    assert_eq!(run(&mut client, "NEARSIDE MODE off"), Reply::ok());
    assert_eq!(run(&mut client, "NEARSIDE MODE"), Reply::bulk("off"));
    assert_eq!(proxy.metric("cache_enabled{impl=\"off\"}"), 0.0);
    let hits = proxy.stat("hits");
    for i in 0..5 {
        redis.cmd(&["SET", "k", &i.to_string()]);
        assert_eq!(run(&mut client, "GET k"), Reply::bulk(i.to_string()));
    }
    assert_eq!(proxy.stat("hits"), hits);
    assert_eq!(proxy.stat("entries"), 0.0);
    assert_eq!(run(&mut client, "NEARSIDE MODE serve"), Reply::ok());
    assert_eq!(proxy.metric("cache_enabled{impl=\"l1\"}"), 1.0);
    assert_eq!(warm(&proxy, &mut client, "k"), Reply::bulk("4"));
    redis.cmd(&["SET", "k", "new"]);
    eventually(PATIENCE, "the new value", || run(&mut client, "GET k") == Reply::bulk("new"));
    assert_eq!(run(&mut client, "NEARSIDE MODE on").text(), "ERR unknown mode 'on'; use serve, observe or off");
}

#[test]
fn wrong_words_are_errors_that_say_what_is_right() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis);
    let mut client = proxy.client();
    for line in ["NEARSIDE", "NEARSIDE NONSENSE", "NEARSIDE ENTRY", "NEARSIDE EXPLAIN", "NEARSIDE STATS x"] {
        let error = run(&mut client, line);
        assert!(error.is_error() && error.text().contains("NEARSIDE HELP"), "{line}: {error:?}");
    }
    let error = run(&mut client, "NEARSIDE INVALIDATE SOMETHING k").text();
    assert_eq!(error, "ERR use NEARSIDE INVALIDATE KEY|PREFIX|PATTERN|REGEX|TAG <x> [<x> ...]");
    let error = run(&mut client, "NEARSIDE AUTH x").text();
    assert_eq!(error, "ERR no admin password is configured (admin.password_file)");
}

#[test]
fn inside_multi_nearside_is_refused_and_the_transaction_with_it() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis);
    for mut client in [proxy.client(), proxy.client3()] {
        run(&mut client, "MULTI");
        run(&mut client, "SET k v");
        assert_eq!(run(&mut client, "NEARSIDE FLUSH").text(), "ERR NEARSIDE is not allowed inside MULTI");
        assert_eq!(run(&mut client, "NEARSIDE AUTH secret").text(), "ERR NEARSIDE is not allowed inside MULTI");
        assert_eq!(run(&mut client, "EXEC").text(), "EXECABORT Transaction discarded because of previous errors.");
        assert_eq!(redis.cmd(&["EXISTS", "k"]), Reply::Int(0));
        // Pinned otherwise, it is answered.
        run(&mut client, "WATCH k");
        assert_eq!(run(&mut client, "NEARSIDE MODE"), Reply::bulk("serve"));
    }
}

#[test]
fn info_is_upstreams_with_ours_behind_it() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis);
    let (mut client, mut three) = (proxy.client(), proxy.client3());
    let several = needs(7, 0, "INFO of several sections").then_some("INFO server nearside");
    for line in ["INFO", "INFO all", "INFO everything", "INFO default"].into_iter().chain(several) {
        let text = run(&mut client, line).text();
        assert!(text.contains("redis_version:"), "{line}");
        assert!(text.contains("\r\n\r\n# Nearside\r\nnearside_version:"), "{line}: {text}");
    }
    let own = run(&mut client, "INFO nearside").text();
    assert!(own.starts_with("# Nearside\r\n") && !own.contains("redis_version"), "{own}");
    assert_eq!(names(&Reply::bulk(&own)), names(&run(&mut client, "NEARSIDE INFO")));
    assert!(!run(&mut client, "INFO server").text().contains("# Nearside"));
    assert!(matches!(run(&mut three, "INFO nearside"), Reply::Verbatim(_)));
    let Reply::Verbatim(all) = run(&mut three, "INFO") else { panic!("not verbatim") };
    assert!(all.starts_with(b"txt:# Server") && all.windows(10).any(|w| w == b"# Nearside"));
    // Sections without ours are upstream's to the byte.
    let lines = ["INFO commandstats nonsense", "INFO nonsense", "INFO modules"];
    redis.cmd(&["CONFIG", "RESETSTAT"]);
    for line in &lines[1..] {
        same_as_redis(&mut redis.client(), &mut client, &[line]);
    }
}

#[test]
fn on_a_near_listener_changes_are_allowed_unless_switched_off() {
    let redis = Redis::start();
    for (resp, allowed) in [("auto", true), ("on", true), ("off", false)] {
        let proxy = Proxy::to(&redis).tcp().set("admin.resp", resp).start();
        for mut client in [proxy.client(), Client::tcp(proxy.address())] {
            for line in CHANGES {
                let reply = run(&mut client, line);
                assert_eq!(!reply.is_error(), allowed, "{line} with {resp}: {reply:?}");
                assert!(allowed || reply.text() == REFUSED, "{reply:?}");
            }
            for line in READS {
                assert!(!run(&mut client, line).is_error(), "{line}");
            }
        }
    }
}

#[test]
fn from_far_away_changes_need_the_policys_leave() {
    let Some(address) = far_away("from_far_away_changes_need_the_policys_leave") else { return };
    let redis = Redis::start();
    for (resp, allowed) in [("auto", false), ("on", true), ("off", false)] {
        let proxy = listening_on(&redis, address).set("listen.protected", false).set("admin.resp", resp).start();
        let mut client = Client::tcp(proxy.address());
        for line in CHANGES {
            let reply = run(&mut client, line);
            assert_eq!(!reply.is_error(), allowed, "{line} with {resp}: {reply:?}");
        }
        assert!(!run(&mut client, "NEARSIDE STATS").is_error());
        assert!(!run(&mut client, "SET k v").is_error());
    }
}

#[test]
fn a_password_opens_changes_for_the_connection_that_gave_it() {
    let redis = Redis::start();
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), "open sesame\n").expect("a password");
    let path = file.path().display().to_string();
    let proxy = Proxy::to(&redis).set("admin.password_file", path.clone()).start();
    let (mut client, mut other) = (proxy.client(), proxy.client());
    assert!(run(&mut client, "NEARSIDE FLUSH").text().starts_with("NOAUTH"));
    assert_eq!(run(&mut client, "NEARSIDE AUTH wrong").text(), "WRONGPASS invalid admin password");
    assert!(run(&mut client, "NEARSIDE FLUSH").text().starts_with("NOAUTH"));
    assert_eq!(client.cmd(&["NEARSIDE", "AUTH", "open sesame"]), Reply::ok());
    assert_eq!(run(&mut client, "NEARSIDE FLUSH"), Reply::Int(0));
    assert!(run(&mut other, "NEARSIDE FLUSH").text().starts_with("NOAUTH"));
    run(&mut client, "RESET");
    assert!(run(&mut client, "NEARSIDE FLUSH").text().starts_with("NOAUTH"));
    let proxy = Proxy::to(&redis).set("admin.password_file", path).set("admin.resp", "off").start();
    let mut client = proxy.client();
    client.cmd(&["NEARSIDE", "AUTH", "open sesame"]);
    assert_eq!(run(&mut client, "NEARSIDE FLUSH").text(), REFUSED);
}

/// The refusal of protected mode, at the start of the error.
const DENIED: &str = "DENIED Nearside runs in protected mode:";

#[test]
fn protected_mode_refuses_strangers_from_far_away() {
    let Some(address) = far_away("protected_mode_refuses_strangers_from_far_away") else { return };
    let redis = Redis::start();
    redis.cmd(&["ACL", "SETUSER", "ann", "on", ">a", "~*", "&*", "+@all"]);
    let proxy = listening_on(&redis, address).start();
    let mut stranger = Client::tcp(proxy.address());
    for line in [
        "GET k",
        "SET k v",
        "PING",
        "MULTI",
        "SUBSCRIBE c",
        "BLPOP q 0",
        "HELLO 3",
        "HELLO",
        "SELECT 1",
        "CLIENT ID",
        "CLIENT REPLY OFF",
        "NEARSIDE STATS",
        "INFO nearside",
        "NOSUCH x",
        "CLIENT NONSENSE",
        "GET",
        "EVAL x 0",
    ] {
        assert!(run(&mut stranger, line).text().starts_with(DENIED), "{line}");
    }
    assert_eq!(run(&mut stranger, "AUTH ann wrong").text(), redis.cmd(&["AUTH", "ann", "wrong"]).text());
    assert!(run(&mut stranger, "GET k").text().starts_with(DENIED));
    assert_eq!(run(&mut stranger, "AUTH ann a"), Reply::ok());
    assert_eq!(run(&mut stranger, "SET k v"), Reply::ok());
    assert_eq!(warm(&proxy, &mut stranger, "k"), Reply::bulk("v"));
    assert_eq!(run(&mut stranger, "RESET"), Reply::status("RESET"));
    assert!(run(&mut stranger, "GET k").text().starts_with(DENIED));
    let mut friend = Client::tcp(proxy.address());
    assert!(matches!(run(&mut friend, "HELLO 3 AUTH ann a"), Reply::Map(_)));
    assert_eq!(run(&mut friend, "GET k"), Reply::bulk("v"));
    // Near ones never have to.
    assert_eq!(run(&mut proxy.client(), "GET k"), Reply::bulk("v"));
    let mut gone = Client::tcp(proxy.address());
    gone.send(b"QUIT\r\n");
    assert_eq!(gone.expect_closed(), b"+OK\r\n");
}

#[test]
fn protected_mode_refuses_large_requests_too() {
    let Some(address) = far_away("protected_mode_refuses_large_requests_too") else { return };
    let redis = Redis::start();
    let proxy = listening_on(&redis, address).start();
    let mut stranger = Client::tcp(proxy.address());
    let _ = stranger.try_send(&encode(&[b"SET".as_slice(), b"k", &vec![b'x'; 4 << 20]]));
    // Its bytes are not read to the end, so there may be a reset in place of the answer.
    let answer = stranger.expect_closed();
    assert!(answer.is_empty() || answer.starts_with(format!("-{DENIED}").as_bytes()), "{}", answer.escape_ascii());
    assert_eq!(redis.cmd(&["EXISTS", "k"]), Reply::Int(0));
    assert_eq!(proxy.metric_sum("nearside_pinned_total"), 0.0);
}

#[test]
fn without_protection_everyone_is_served_and_the_start_warns() {
    let Some(address) = far_away("without_protection_everyone_is_served_and_the_start_warns") else { return };
    let redis = Redis::start();
    let proxy = listening_on(&redis, address).set("listen.protected", false).start();
    assert_eq!(run(&mut Client::tcp(proxy.address()), "SET k v"), Reply::ok());
    assert!(proxy.logged("WARN") && proxy.logged("listen.protected"));
}
