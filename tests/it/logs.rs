//! The log as whoever runs a sidecar reads it: a client's life at `debug`, the same line not again and again, JSON that
//! parses, and nothing in it of what clients store, at no level. `secrets` looks everywhere else.

use serde_json::Value;

use crate::support::http;
use crate::support::{Client, PATIENCE, Proxy, Redis, Relay, Reply, eventually, poll, temp_dir};

#[test]
fn at_debug_a_client_is_a_span_with_its_name_and_its_end() {
    let redis = Redis::start();
    let proxy = Proxy::to(&redis).set("log.level", "debug").start();
    let mut client = proxy.client();
    client.cmd(&["HELLO", "3", "SETNAME", "web-1"]);
    assert_eq!(client.cmd(&["QUIT"]), Reply::ok());
    let socket = proxy.socket().display();
    let span = format!("addr={socket}:0 name=\"web-1\"}}: client disconnected why=\"closed\" for_ms=");
    proxy.wait_logged(&span);
    let connected = proxy.lines_logged("client connected").pop().expect("the line");
    assert!(connected.contains("DEBUG client{id=") && connected.contains("laddr="), "{connected}");
}

#[test]
fn at_info_clients_come_and_go_unsaid() {
    let redis = Redis::start();
    let proxy = Proxy::to(&redis).start();
    proxy.client().cmd(&["QUIT"]);
    // The line that is awaited stands behind what would have been said.
    proxy.client().send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n");
    proxy.wait_logged("cross-protocol attack");
    assert!(!proxy.logged("client connected") && !proxy.logged("client disconnected") && !proxy.logged("client{"));
}

#[test]
fn the_same_line_is_said_ten_times_and_then_counted() {
    let redis = Redis::start();
    let mut proxy = Proxy::to(&redis).start();
    let probe = || {
        let mut client = proxy.client();
        client.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n");
        client.expect_closed();
    };
    (0..40).for_each(|_| probe());
    assert_eq!(proxy.count_logged("WARN closed: an HTTP request"), 10);
    proxy.sigterm();
    proxy.wait_exit(PATIENCE);
    eventually(PATIENCE, "what was held back", || proxy.logged("WARN repeated 30 times more in "));
    assert!(proxy.logged(" s: closed: an HTTP request on the Redis port"));
}

#[test]
fn json_lines_are_json_with_their_span() {
    let redis = Redis::start();
    let proxy = Proxy::to(&redis).set("log.level", "debug").set("log.format", "json").start();
    proxy.client().cmd(&["CLIENT", "SETNAME", "api"]);
    proxy.wait_logged("client disconnected");
    for line in proxy.lines_logged("") {
        assert!(serde_json::from_str::<Value>(&line).is_ok_and(|v| v["level"].is_string()), "not JSON: {line}");
    }
    let line = proxy.lines_logged("client disconnected").pop().expect("the line");
    let line: Value = serde_json::from_str(&line).expect("JSON");
    assert_eq!((&line["message"], &line["level"]), (&"client disconnected".into(), &"DEBUG".into()));
    assert_eq!((&line["span"]["name"], &line["spans"][0]["name"]), (&"client".into(), &"client".into()));
    assert!(line["spans"][0]["addr"].is_string(), "{line}");
}

#[test]
fn a_slow_command_is_a_line_with_its_class_its_pattern_and_how_long_it_took() {
    let redis = Redis::start();
    let proxy = Proxy::to(&redis).set("observe.slow_log", "1ms").start();
    let script = "local t = 0; for i = 1, 3000000 do t = t + i end; return 1";
    proxy.client().cmd(&["EVAL", script, "1", "user:1"]);
    proxy.wait_logged("WARN slow command: eval class=\"write\" pattern=\"user\" duration_ms=");
    let kept = proxy.get("/api/v1/keys").json()["slow_log"]["items"][0].clone();
    assert_eq!((&kept["command"], &kept["class"], &kept["pattern"]), (&"eval".into(), &"write".into(), &"user".into()));
}

#[test]
fn a_span_has_its_user_and_its_end_is_named_as_elsewhere() {
    let redis = Redis::start();
    redis.cmd(&["ACL", "SETUSER", "app", "on", ">word", "~*", "&*", "+@all"]);
    let proxy = Proxy::to(&redis).set("log.level", "debug").start();
    let mut client = proxy.client();
    assert_eq!(client.cmd(&["AUTH", "app", "word"]), Reply::ok());
    client.send(b"*1\r\n!nonsense\r\n");
    client.expect_closed();
    proxy.wait_logged("user=\"app\"}: client disconnected why=\"protocol\" for_ms=");
    assert_eq!(proxy.metric("nearside_clients_dropped_total{reason=\"protocol\"}"), 1.0);
    eventually(PATIENCE, "its run", || {
        let runs = proxy.get("/api/v1/dashboard/runs").json();
        runs["recent"]["items"]
            .as_array()
            .is_some_and(|all| all.iter().any(|run| run["end"] == "protocol" && run["user"] == "app"))
    });
}

#[test]
fn lines_of_the_level_debug_are_all_said() {
    let redis = Redis::start();
    let proxy = Proxy::to(&redis).set("log.level", "debug").start();
    for _ in 0..25 {
        let mut client = proxy.client();
        client.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n");
        client.expect_closed();
    }
    eventually(PATIENCE, "all of them", || proxy.count_logged("client disconnected") >= 25);
    assert_eq!(proxy.count_logged("closed: an HTTP request"), 10, "what is louder is held back all the same");
}

/// What must never be seen. Each stands for itself, so that a failure says which kind has leaked.
const SECRETS: [&str; 4] = ["v4lue-s3cret", "k3y-s3cret", "passw0rd-s3cret", "ch4nnel-s3cret"];

#[test]
fn no_value_key_or_password_is_logged_at_any_level() {
    let (mut redis, dir) = (Redis::start(), temp_dir());
    let relay = Relay::to(&redis);
    for (file, secret) in [("token", "passw0rd-s3cret-http"), ("admin", "passw0rd-s3cret-admin")] {
        std::fs::write(dir.path().join(file), secret).expect("a secret");
    }
    redis.cmd(&["ACL", "SETUSER", "app", "on", ">passw0rd-s3cret", "~*", "&*", "+@all"]);
    redis.cmd(&["ACL", "SETUSER", "poor", "on", ">passw0rd-s3cret", "~other:*", "+get", "+auth", "+ping"]);
    let path = |file: &str| dir.path().join(file).display().to_string();
    let proxy = Proxy::upstream(&relay.url())
        .set("log.level", "trace")
        .set("http.token_file", path("token"))
        .set("admin.password_file", path("admin"))
        .set("observe.slow_log", "1ms")
        .set("commands.deny", serde_json::json!(["keys"]))
        .start();
    ordinary(&mut proxy.client());
    mistaken(&mut proxy.client());
    pinned(&proxy);
    invalidations(&redis, &proxy);
    identities(&proxy);
    // A command that takes long, which the slow log has; and upstream going away under reads and writes.
    let mut slow = proxy.client();
    slow.cmd(&[
        "EVAL",
        "local t = 0; for i = 1, 3000000 do t = t + i end; return ARGV[1]",
        "1",
        "user:k3y-s3cret",
        "v4lue-s3cret",
    ]);
    proxy.wait_logged("slow command: eval");
    redis.stop();
    eventually(PATIENCE, "upstream to be gone", || ordinary(&mut proxy.client()));
    redis.restart();
    eventually(PATIENCE, "it to be back", || {
        proxy.client().cmd(&["SET", "user:k3y-s3cret", "v4lue-s3cret"]) == Reply::ok()
    });
    let lines = proxy.lines_logged("");
    assert!(lines.len() > 30 && proxy.logged("client disconnected"), "{} lines", lines.len());
    for (secret, line) in SECRETS.iter().flat_map(|secret| lines.iter().map(move |line| (secret, line))) {
        assert!(!line.contains(secret), "{secret} in {line}");
    }
}

/// True where upstream was gone.
pub(crate) fn ordinary(client: &mut Client) -> bool {
    let replies = [
        client.cmd(&["SET", "user:k3y-s3cret", "v4lue-s3cret"]),
        client.cmd(&["GET", "user:k3y-s3cret"]),
        client.cmd(&["GET", "user:k3y-s3cret"]),
        client.cmd(&["MGET", "user:k3y-s3cret", "user:k3y-s3cret:2"]),
        client.cmd(&["MSET", "user:k3y-s3cret:2", "v4lue-s3cret", "user:k3y-s3cret:3", "v4lue-s3cret"]),
        client.cmd(&["EVAL", "return redis.call('get', KEYS[1]) .. ARGV[1]", "1", "user:k3y-s3cret", "v4lue-s3cret"]),
        client.cmd(&["NEARSIDE", "EXPLAIN", "GET", "user:k3y-s3cret"]),
        client.cmd(&["NEARSIDE", "ENTRY", "user:k3y-s3cret"]),
    ];
    client.send(b"SET user:k3y-s3cret v4lue-s3cret\r\n");
    client.reply();
    replies.iter().any(|reply| reply.is_error() && reply.text().starts_with("NEARSIDE upstream unavailable"))
}

/// What is answered with an error, and what ends a connection.
pub(crate) fn mistaken(client: &mut Client) {
    for words in [
        &["LPUSH", "user:k3y-s3cret", "v4lue-s3cret"][..],
        &["GET", "user:k3y-s3cret", "v4lue-s3cret"],
        &["NOSUCHCOMMAND", "user:k3y-s3cret", "v4lue-s3cret"],
        // Somebody whose lengths are off by one.
        &["v4lue-s3cret", "user:k3y-s3cret"],
        &["EVAL", "error('v4lue-s3cret')", "1", "user:k3y-s3cret"],
        &["KEYS", "user:k3y-s3cret*"],
        &["AUTH", "passw0rd-s3cret-wrong"],
        &["AUTH", "nobody", "passw0rd-s3cret-wrong"],
        &["HELLO", "3", "AUTH", "nobody", "passw0rd-s3cret-wrong"],
        &["NEARSIDE", "AUTH", "passw0rd-s3cret-wrong"],
        &["NEARSIDE", "NOSUCH", "user:k3y-s3cret"],
        &["NEARSIDE", "INVALIDATE", "REGEX", "(user:k3y-s3cret"],
    ] {
        assert!(client.cmd(words).is_error(), "{words:?}");
    }
    client.send(b"*2\r\n$3\r\nGET\r\n!user:k3y-s3cret v4lue-s3cret\r\n");
    client.expect_closed();
}

pub(crate) fn pinned(proxy: &Proxy) {
    let mut client = proxy.client3();
    client.cmd(&["MULTI"]);
    client.cmd(&["SET", "user:k3y-s3cret", "v4lue-s3cret"]);
    client.cmd(&["NOSUCHCOMMAND", "v4lue-s3cret"]);
    assert!(client.cmd(&["EXEC"]).is_error());
    client.cmd(&["WATCH", "user:k3y-s3cret"]);
    client.cmd(&["UNWATCH"]);
    client.cmd(&["BLPOP", "user:k3y-s3cret:list", "0.01"]);
    let large = "v4lue-s3cret".repeat(200_000);
    assert_eq!(client.cmd(&["SET", "user:k3y-s3cret:large", &large]), Reply::ok());
    assert_eq!(client.cmd(&["GET", "user:k3y-s3cret:large"]).text().len(), large.len());
    client.send_cmd(&["SUBSCRIBE", "ch4nnel-s3cret"]);
    client.frame();
    proxy.client().cmd(&["PUBLISH", "ch4nnel-s3cret", "v4lue-s3cret"]);
    assert!(matches!(client.push(), Reply::Push(_)));
}

fn invalidations(redis: &Redis, proxy: &Proxy) {
    const CHANNEL: &str = "nearside:invalidate";
    eventually(PATIENCE, "the subscription", || proxy.stats()["channel"] == "up");
    for payload in [
        "key user:k3y-s3cret",
        "v4lue-s3cret user:k3y-s3cret",
        r#"{"v":1,"op":["v4lue-s3cret"],"args":["user:k3y-s3cret"]}"#,
        r#"{"v":"v4lue-s3cret"}"#,
        "regex (user:k3y-s3cret",
    ] {
        redis.cmd(&["PUBLISH", CHANNEL, payload]);
        proxy.client().cmd(&["PUBLISH", CHANNEL, payload]);
    }
    proxy.wait_logged("has no effect");
    let mut client = proxy.client();
    assert_eq!(client.cmd(&["NEARSIDE", "AUTH", "passw0rd-s3cret-admin"]), Reply::ok());
    for words in [
        &["NEARSIDE", "INVALIDATE", "KEY", "user:k3y-s3cret"][..],
        &["NEARSIDE", "INVALIDATE", "PATTERN", "user:k3y-s3cret*"],
        &["NEARSIDE", "INVALIDATE", "TAG", "user:k3y-s3cret"],
        &["NEARSIDE", "DELETE", "PATTERN", "user:k3y-s3cret:*"],
    ] {
        assert!(!client.cmd(words).is_error(), "{words:?}");
    }
    proxy.wait_logged("NEARSIDE DELETE is over");
    let body = r#"{"op":"key","args":["user:k3y-s3cret"]}"#;
    for token in [Some("passw0rd-s3cret-http"), Some("passw0rd-s3cret-wrong"), None] {
        http::post(proxy.http_address(), "/api/v1/invalidate", token, body);
    }
    http::get(proxy.http_address(), "/api/v1/nosuch?k3y-s3cret=v4lue-s3cret");
}

fn identities(proxy: &Proxy) {
    let mut client = proxy.client();
    assert_eq!(client.cmd(&["AUTH", "app", "passw0rd-s3cret"]), Reply::ok());
    ordinary(&mut client);
    let mut client = proxy.client();
    assert_eq!(client.cmd(&["AUTH", "poor", "passw0rd-s3cret"]), Reply::ok());
    let refused = || client.cmd(&["GET", "user:k3y-s3cret"]).is_error().then_some(());
    poll(PATIENCE, refused).expect("upstream refuses the key to this user");
}
