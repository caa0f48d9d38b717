//! Start and end of the process: sockets taken and left, signals, draining, exit codes.

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixListener;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::sessions::{run, wait_upstream, warm};
use crate::support::{Client, Dir, PATIENCE, Proxy, Redis, Relay, Reply, Scope, eventually, http, temp_dir};

/// A start that is meant to end by itself.
fn start(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nearside"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("NEARSIDE_")) {
        command.env_remove(name);
    }
    command.args(args).env("NO_COLOR", "1").stdin(Stdio::null()).output().expect("the built nearside")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn the_socket_has_the_mode_that_was_asked_for_and_goes_with_the_process() {
    let redis = Redis::start();
    for (mode, bits) in [(None, 0o660), (Some("0600"), 0o600), (Some("0777"), 0o777)] {
        let mut builder = Proxy::to(&redis);
        if let Some(mode) = mode {
            builder = builder.set("listen.unix_mode", mode);
        }
        let mut proxy = builder.start();
        let meta = std::fs::metadata(proxy.socket()).expect("the socket");
        assert!(meta.file_type().is_socket());
        assert_eq!(meta.mode() & 0o777, bits);
        let path = proxy.socket().to_owned();
        proxy.sigterm();
        assert!(proxy.wait_exit(PATIENCE).success());
        assert!(!path.exists());
    }
}

#[test]
fn a_stale_socket_file_is_replaced() {
    let redis = Redis::start();
    let dir = temp_dir();
    let path = dir.path().join("stale.sock");
    drop(UnixListener::bind(&path).expect("a socket")); // its file stays
    assert!(path.exists());
    // The harness waits until somebody answers there.
    let mut proxy = Proxy::to(&redis).arg("--unix").arg(&path.display().to_string()).without_waiting().start();
    eventually(PATIENCE, "an answer", || Client::try_unix(&path).is_ok());
    assert_eq!(run(&mut Client::unix(&path), "SET k v"), Reply::ok());
    proxy.sigterm();
    assert!(proxy.wait_exit(PATIENCE).success());
}

#[test]
fn a_socket_in_use_and_a_file_that_is_none_are_refused() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis);
    let url = redis.url();
    let shown = proxy.socket().display().to_string();
    let second = start(&["--upstream", &url, "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--unix", &shown]);
    assert!(!second.status.success());
    assert!(stderr(&second).contains(&format!("cannot listen on {shown}: another process listens there")));
    // The first one has lost nothing by it.
    assert_eq!(run(&mut proxy.client(), "PING"), Reply::status("PONG"));
    let file = proxy.dir().join("data");
    std::fs::write(&file, "precious").expect("a file");
    let shown = file.display().to_string();
    let third = start(&["--upstream", &url, "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--unix", &shown]);
    assert!(!third.status.success());
    assert!(stderr(&third).contains("is no socket"), "{}", stderr(&third));
    assert_eq!(std::fs::read_to_string(&file).expect("the file"), "precious");
}

#[test]
fn a_port_in_use_is_an_error_that_names_it() {
    let redis = Redis::start();
    let proxy = Proxy::to(&redis).tcp().start();
    let (url, taken) = (redis.url(), proxy.address().to_string());
    let second = start(&["--upstream", &url, "--listen", &taken, "--http", "127.0.0.1:0"]);
    assert_eq!(second.status.code(), Some(1), "{}", stderr(&second));
    assert!(stderr(&second).contains(&format!("cannot listen on {taken}")), "{}", stderr(&second));
    let http = proxy.http_address().to_string();
    let third = start(&["--upstream", &url, "--listen", "127.0.0.1:0", "--http", &http]);
    assert_eq!(third.status.code(), Some(1), "{}", stderr(&third));
    assert!(stderr(&third).contains(&http), "{}", stderr(&third));
}

#[test]
fn several_listeners_serve_at_once() {
    let redis = Redis::start();
    let listen = serde_json::json!(["127.0.0.1:0", "127.0.0.1:0"]);
    let proxy = Proxy::to(&redis).set("listen.tcp", listen).start();
    assert_eq!(run(&mut Client::tcp(proxy.address()), "SET k v"), Reply::ok());
    assert_eq!(run(&mut proxy.client(), "GET k"), Reply::bulk("v"));
}

#[test]
fn sigterm_finishes_what_is_outstanding_and_exits_0() {
    let redis = Redis::start();
    let relay = Relay::to(&redis);
    let mut proxy = Proxy::upstream(&relay.url()).start();
    let (mut busy, mut idle) = (proxy.client(), proxy.client());
    assert_eq!(run(&mut idle, "SET k v"), Reply::ok());
    assert_eq!(run(&mut busy, "PING"), Reply::status("PONG"));
    relay.stall(Scope::Existing, Dir::Down);
    busy.send(b"INCR n\r\nINCR n\r\nGET k\r\n");
    eventually(PATIENCE, "they arrive", || redis.cmd(&["GET", "n"]) == Reply::bulk("2"));
    proxy.sigterm();
    // Who has nothing outstanding is closed at once; nobody new comes in.
    assert_eq!(idle.expect_closed(), b"");
    let ready = http::get(proxy.http_address(), "/health/ready");
    assert_eq!((ready.status, ready.json()["status"].as_str()), (503, Some("draining")));
    assert_eq!(http::get(proxy.http_address(), "/health/live").status, 200);
    eventually(PATIENCE, "nobody new", || Client::try_unix(proxy.socket()).is_err());
    relay.resume(Scope::Existing, Dir::Down);
    assert_eq!(busy.expect_closed(), b":1\r\n:2\r\n$1\r\nv\r\n");
    assert_eq!(proxy.wait_exit(PATIENCE).code(), Some(0));
    wait_upstream(&redis, "name=nearside:", 0);
}

#[test]
fn during_the_drain_delay_everything_goes_on() {
    let redis = Redis::start();
    let mut proxy = Proxy::to(&redis).set("listen.drain_delay", "700ms").start();
    let mut client = proxy.client();
    let start = Instant::now();
    proxy.sigterm();
    eventually(PATIENCE, "503", || http::get(proxy.http_address(), "/health/ready").status == 503);
    for i in 0..20 {
        assert_eq!(run(&mut client, &format!("SET k {i}")), Reply::ok());
    }
    assert_eq!(run(&mut proxy.client(), "GET k"), Reply::bulk("19"), "a new client is served as well");
    client.expect_closed();
    assert_eq!(proxy.wait_exit(PATIENCE).code(), Some(0));
    assert!(start.elapsed() >= Duration::from_millis(700));
}

#[test]
fn draining_waits_for_the_blocked_until_drain_timeout() {
    let redis = Redis::start();
    let mut proxy = Proxy::to(&redis).set("listen.drain_timeout", "20s").start();
    let mut blocked = proxy.client();
    blocked.send_cmd(&["BLPOP", "q", "0"]);
    wait_upstream(&redis, "cmd=blpop", 1);
    proxy.sigterm();
    eventually(PATIENCE, "it to drain", || Client::try_unix(proxy.socket()).is_err());
    redis.cmd(&["RPUSH", "q", "x"]);
    assert_eq!(blocked.expect_closed(), b"*2\r\n$1\r\nq\r\n$1\r\nx\r\n");
    assert_eq!(proxy.wait_exit(PATIENCE).code(), Some(0));
    // One that never ends is cut off at the latest then.
    let mut proxy = Proxy::to(&redis).set("listen.drain_timeout", "200ms").start();
    let (mut blocked, mut sub) = (proxy.client(), proxy.client());
    blocked.send_cmd(&["BLPOP", "q", "0"]);
    run(&mut sub, "SUBSCRIBE c");
    wait_upstream(&redis, "cmd=blpop", 1);
    proxy.sigterm();
    assert_eq!(proxy.wait_exit(PATIENCE).code(), Some(0));
    assert_eq!(blocked.expect_closed(), b"");
    assert_eq!(sub.expect_closed(), b"");
}

/// With entries in the L1 a pop's reply is held until the lane's PONG: nothing is outstanding then, and the client has not
/// got it all the same.
#[test]
fn draining_waits_for_a_reply_that_is_held() {
    let redis = Redis::start();
    let mut proxy = Proxy::start(&redis);
    let mut blocked = proxy.client();
    run(&mut blocked, "GET k");
    blocked.send_cmd(&["BLPOP", "q", "0"]);
    wait_upstream(&redis, "cmd=blpop", 1);
    proxy.sigterm();
    proxy.wait_logged("draining");
    redis.cmd(&["RPUSH", "q", "x"]);
    assert_eq!(blocked.expect_closed(), b"*2\r\n$1\r\nq\r\n$1\r\nx\r\n");
    assert_eq!(proxy.wait_exit(PATIENCE).code(), Some(0));
}

#[test]
fn an_open_transaction_may_finish_while_draining() {
    let redis = Redis::start();
    let mut proxy = Proxy::start(&redis);
    let mut client = proxy.client();
    run(&mut client, "MULTI");
    run(&mut client, "SET k v");
    proxy.sigterm();
    eventually(PATIENCE, "it to drain", || Client::try_unix(proxy.socket()).is_err());
    // Whether it is let finish or closed, nothing is half done and the process ends.
    if client.try_send(b"EXEC\r\n").is_ok() {
        let end = client.expect_closed();
        assert!(end.is_empty() || end == b"*1\r\n+OK\r\n", "{}", end.escape_ascii());
        assert_eq!(redis.cmd(&["EXISTS", "k"]), Reply::Int(i64::from(!end.is_empty())));
    }
    assert_eq!(proxy.wait_exit(PATIENCE).code(), Some(0));
}

#[test]
fn a_second_sigterm_stops_at_once() {
    let redis = Redis::start();
    let mut proxy = Proxy::to(&redis).set("listen.drain_timeout", "600s").start();
    let mut blocked = proxy.client();
    blocked.send_cmd(&["BLPOP", "q", "0"]);
    wait_upstream(&redis, "cmd=blpop", 1);
    proxy.sigterm();
    proxy.wait_logged("draining");
    proxy.sigterm();
    assert_eq!(proxy.wait_exit(PATIENCE).code(), Some(0));
    proxy.wait_logged("second signal");
    assert_eq!(blocked.expect_closed(), b"");
    wait_upstream(&redis, "cmd=blpop", 0);
}

#[test]
fn a_drain_with_nobody_there_is_over_at_once() {
    let redis = Redis::start();
    let mut proxy = Proxy::start(&redis);
    warm(&proxy, &mut proxy.client(), "k");
    let start = Instant::now();
    proxy.sigterm();
    assert_eq!(proxy.wait_exit(PATIENCE).code(), Some(0));
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
}

#[test]
fn the_side_port_ends_last_and_upstream_may_be_gone() {
    let mut redis = Redis::start();
    let mut proxy = Proxy::start(&redis);
    redis.stop();
    eventually(PATIENCE, "gone", || run(&mut proxy.client(), "GET k").is_error());
    proxy.sigterm();
    assert_eq!(proxy.wait_exit(PATIENCE).code(), Some(0));
}
