//! Without an upstream: what a newcomer's first minute is like, and that the program says what it is.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{Client, PATIENCE, Proxy, Reply, eventually, http};

/// The program as somebody types it, without a configuration file, on free ports.
struct Bare {
    child: Child,
    ready: String,
}

impl Bare {
    fn start(args: &[&str], env: &[(&str, &str)]) -> Bare {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nearside"));
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("NEARSIDE_")) {
            command.env_remove(name);
        }
        command.args(["--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"]).args(args).envs(env.iter().copied());
        command.env("NO_COLOR", "1").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the built nearside");
        let stderr = BufReader::new(child.stderr.take().expect("its stderr"));
        let mut lines = stderr.lines().map_while(Result::ok);
        let ready = lines.by_ref().find(|line| line.contains("ready:")).expect("a line that says ready");
        // Or it would block on a full pipe.
        std::thread::spawn(move || lines.for_each(drop));
        Bare { child, ready }
    }

    fn address(&self, before: &str) -> std::net::SocketAddr {
        let rest = self.ready.split(before).nth(1).unwrap_or_else(|| panic!("{}", self.ready));
        rest.split([',', ' ']).next().expect("a word").parse().expect("an address")
    }

    fn client(&self) -> Client {
        Client::tcp(self.address("listening on "))
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn embedded() -> Proxy {
    Proxy::upstream("embedded").start()
}

#[test]
fn the_first_minute_needs_no_redis() {
    let bare = Bare::start(&[], &[]);
    assert!(
        bare.ready.contains(
            "backend: embedded (in memory, nothing is kept; name a Redis with --upstream redis://127.0.0.1:6379)"
        ),
        "{}",
        bare.ready
    );
    let address = bare.address("listening on ");
    let cli = |words: &[&str]| {
        let port = address.port().to_string();
        let output = Command::new("redis-cli").args(["-p", &port]).args(words).output().expect("redis-cli");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    };
    assert_eq!(cli(&["SET", "a", "1"]), "OK");
    assert_eq!(cli(&["GET", "a"]), "1");
    assert_eq!(cli(&["-3", "INCR", "a"]), "2");
    let stats = cli(&["NEARSIDE", "STATS"]);
    assert!(stats.contains("backend:embedded") && stats.contains("keys:1"), "{stats}");
    assert!(cli(&["LPUSH", "l", "x"]).contains("ERR 'LPUSH' needs an upstream (none is configured)"));
    assert!(cli(&["INFO"]).contains("db0:keys=1,expires=0"));
    let side = http::get(bare.address("http "), "/health");
    let health: Value = serde_json::from_str(&side.body).expect("JSON");
    assert_eq!((side.status, &health["status"], &health["backend"]), (200, &json!("ok"), &json!("embedded")));
    assert_eq!((&health["degraded"], &health["upstream"], &health["mode"]), (&json!([]), &Value::Null, &json!("off")));
    assert_eq!(http::get(bare.address("http "), "/health/ready").status, 200);
}

#[test]
fn a_setting_in_the_environment_is_no_upstream_yet() {
    let bare = Bare::start(&["--workers", "2"], &[("NEARSIDE_LOCAL__MAX_BYTES", "4MiB")]);
    assert_eq!(bare.client().cmd(&["SET", "k", "v"]), Reply::ok());
    assert!(bare.client().cmd(&["NEARSIDE", "STATS"]).text().contains("max_bytes:4194304"));
}

/// Both protocols, as client libraries begin.
#[test]
fn handshakes_of_client_libraries() {
    let proxy = embedded();
    let mut py = proxy.client();
    let begun = py.cmd(&["HELLO", "3"]);
    assert_eq!((begun.get("server"), begun.get("version")), (Reply::bulk("redis"), Reply::bulk("7.0.0")));
    for words in [&["CLIENT", "SETINFO", "LIB-NAME", "redis-py"][..], &["CLIENT", "MAINT_NOTIFICATIONS", "ON"]] {
        let refused = py.cmd(words);
        assert!(
            refused.text().contains(&format!("unknown subcommand '{}'. Try CLIENT HELP.", words[1])),
            "{refused:?}"
        );
    }
    assert_eq!(py.cmd(&["CLIENT", "SETNAME", "me"]), Reply::ok());
    assert_eq!(py.cmd(&["CLIENT", "GETNAME"]), Reply::bulk("me"));
    assert!(py.cmd(&["CLIENT", "LIST"]).text().contains("name=me"));
    assert_eq!(py.cmd(&["AUTH", "default", "x"]), Reply::ok());
    assert!(py.cmd(&["AUTH", "x"]).text().contains("without any password configured"));
    assert!(py.cmd(&["COMMAND", "COUNT"]).int() > 50);
    assert_eq!(py.cmd(&["CONFIG", "GET", "save"]).get("save"), Reply::bulk(""));
    for mut client in [proxy.client(), proxy.client3()] {
        let replies = client.pipeline(&[&["SET", "p", "1"][..], &["INCR", "p"], &["MULTI"], &["GET", "p"], &["EXEC"]]);
        let last = Reply::Array(vec![Reply::bulk("2")]);
        assert_eq!(replies, [Reply::ok(), Reply::Int(2), Reply::ok(), Reply::status("QUEUED"), last]);
    }
}

#[test]
fn messages_reach_listeners_on_all_workers() {
    let proxy = Proxy::upstream("embedded").set("workers", 2).start();
    let mut listeners: Vec<Client> = (0..4).map(|_| proxy.client()).collect();
    for listener in &mut listeners {
        listener.send_cmd(&["SUBSCRIBE", "news"]);
        listener.frame();
    }
    assert_eq!(proxy.client().cmd(&["PUBLISH", "news", "hello"]), Reply::Int(4));
    for listener in &mut listeners {
        assert_eq!(listener.frame(), Reply::bulks(&["message", "news", "hello"]));
    }
    // Who has gone listens no more.
    drop(listeners);
    let mut client = proxy.client();
    eventually(PATIENCE, "nobody listens", || client.cmd(&["PUBLISH", "news", "x"]) == Reply::Int(0));
}

#[test]
fn nothing_hangs_or_lies_without_an_upstream() {
    let proxy = embedded();
    let mut client = proxy.client();
    client.cmd(&["SET", "k", "v"]);
    let explained = client.cmd(&["NEARSIDE", "EXPLAIN", "GET", "k"]);
    assert_eq!(explained.get("route"), Reply::bulk("local engine"));
    assert_eq!(client.cmd(&["NEARSIDE", "EXPLAIN", "LPUSH", "l", "x"]).get("route"), Reply::bulk("refuse"));
    assert_eq!(client.cmd(&["NEARSIDE", "ENTRY", "k"]), Reply::Nil);
    assert_eq!(client.cmd(&["NEARSIDE", "MODE"]), Reply::bulk("off"));
    assert_eq!(client.cmd(&["NEARSIDE", "INVALIDATE", "KEY", "k"]), Reply::Int(0));
    assert_eq!(client.cmd(&["NEARSIDE", "FLUSH"]), Reply::Int(0));
    for words in [
        &["NEARSIDE", "MODE", "serve"][..],
        &["NEARSIDE", "DELETE", "PATTERN", "*"],
        &["MONITOR"],
        &["BLPOP", "l", "0"],
        &["EVAL", "return 1", "0"],
    ] {
        let refused = client.cmd(words);
        assert!(refused.is_error(), "{words:?}: {refused:?}");
    }
    for words in [&["NEARSIDE", "INFO"][..], &["NEARSIDE", "RULES"], &["NEARSIDE", "HELP"], &["INFO", "nearside"]] {
        let said = client.cmd(words);
        assert!(!said.is_error(), "{words:?}: {said:?}");
    }
    assert!(client.cmd(&["INFO", "nearside"]).text().contains("backend:embedded"));
    assert_eq!(client.cmd(&["GET", "k"]), Reply::bulk("v"), "none of this has changed the data");
    // A message on what would be the sidecars' channel is a message.
    let mut listener = proxy.client();
    listener.send_cmd(&["SUBSCRIBE", "nearside:invalidate"]);
    listener.frame();
    assert_eq!(client.cmd(&["PUBLISH", "nearside:invalidate", "nonsense"]), Reply::Int(1));
    eventually(PATIENCE, "the figures", || proxy.metric("nearside_local_keys") == 1.0);
}

#[test]
fn a_large_value_comes_whole() {
    let proxy = embedded();
    let mut client = proxy.client();
    let value = vec![b'v'; 20 << 20];
    assert_eq!(client.cmd(&[b"SET".as_slice(), b"big", &value]), Reply::ok());
    assert_eq!(client.cmd(&["STRLEN", "big"]), Reply::Int(20 << 20));
    assert_eq!(client.cmd(&["GET", "big"]), Reply::Bulk(value));
}

/// Resident memory with a budget of 16 MiB that many small keys would exceed many times.
#[test]
fn memory_stays_within_the_budget() {
    let proxy = Proxy::upstream("embedded").set("local.max_bytes", "16MiB").start();
    let resident = || proxy.metric("process_resident_memory_bytes");
    let before = resident();
    let mut client = proxy.client();
    for round in 0..300 {
        let keys: Vec<String> = (0..1000).map(|n| format!("key:{round}:{n}")).collect();
        let mut batch = Vec::new();
        keys.iter().for_each(|key| batch.extend(crate::support::encode(&["SET", key, "some value of usual length"])));
        client.send(&batch);
        keys.iter().for_each(|_| assert_eq!(client.reply(), Reply::ok()));
    }
    let stats = client.cmd(&["NEARSIDE", "STATS"]).text();
    let stat =
        |name: &str| stats.lines().find_map(|l| l.strip_prefix(name)?.trim().parse::<f64>().ok()).expect("a figure");
    assert!(stat("bytes:") <= 16.0 * 1_048_576.0 && stat("evicted:") > 100_000.0, "{stats}");
    // What the allocator keeps besides; the row that grows is there twice for a moment.
    let grown = resident() - before;
    assert!(grown < 40.0 * 1_048_576.0, "{grown} bytes more than at start");
}

#[test]
fn a_client_that_hoards_is_dropped_not_served() {
    let proxy =
        Proxy::upstream("embedded").set("listen.buffers_max", "4MiB").set("listen.output_limit", "2MiB").start();
    let mut client = proxy.client();
    client.cmd(&["SET", "k", &"v".repeat(500_000)]);
    // One reply of 10 MB.
    let mut asked = vec!["MGET"];
    asked.extend(["k"; 20]);
    client.send_cmd(&asked);
    client.expect_closed();
    // A queue that is never executed.
    let mut hoarder = proxy.client();
    hoarder.cmd(&["MULTI"]);
    let value = "v".repeat(100_000);
    let mut left = 100;
    while left > 0 && hoarder.try_send(&crate::support::encode(&["SET", "q", &value])).is_ok() {
        left -= 1;
    }
    hoarder.expect_closed();
    assert_eq!(proxy.client().cmd(&["PING"]), Reply::status("PONG"));
}

#[test]
fn who_comes_from_far_is_refused() {
    // Any address of this host that is not loopback.
    let probe = std::net::UdpSocket::bind("0.0.0.0:0").and_then(|s| s.connect("192.0.2.1:9").map(|()| s));
    let Ok(own) = probe.and_then(|s| s.local_addr()) else {
        eprintln!("SKIPPED: this host has no address but loopback");
        return;
    };
    let listen = std::net::SocketAddr::new(own.ip(), 0).to_string();
    let proxy = Proxy::upstream("embedded").set("listen.tcp", json!([listen])).start();
    let mut far = Client::tcp(proxy.address());
    for words in [
        &["GET", "k"][..],
        &["AUTH", "default", "x"],
        &["HELLO", "3", "AUTH", "default", "x"],
        &["NOSUCH"],
        &["RESET"],
        &["GET", "k"],
    ] {
        let refused = far.cmd(words);
        assert!(refused.text().contains("DENIED Nearside runs in protected mode"), "{words:?}: {refused:?}");
    }
    assert_eq!(proxy.client().cmd(&["PING"]), Reply::status("PONG"));
}

#[test]
fn an_idle_listener_stays_and_others_go() {
    let proxy = Proxy::upstream("embedded").set("listen.idle_timeout", "100ms").start();
    let mut listener = proxy.client();
    listener.send_cmd(&["SUBSCRIBE", "c"]);
    listener.frame();
    proxy.client().expect_closed();
    proxy.client().expect_closed();
    assert_eq!(proxy.client().cmd(&["PUBLISH", "c", "m"]), Reply::Int(1));
    assert_eq!(listener.frame(), Reply::bulks(&["message", "c", "m"]));
}

#[test]
fn it_ends_as_it_should() {
    let mut proxy = embedded();
    let mut client = proxy.client();
    client.send_cmd(&["SUBSCRIBE", "c"]);
    client.frame();
    proxy.sigterm();
    assert_eq!(proxy.wait_exit(Duration::from_secs(10)).code(), Some(0));
}
