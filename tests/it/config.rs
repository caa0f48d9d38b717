//! The command line as an operator or an init system sees it: what goes to which stream, and the exit code. What each
//! setting accepts is tested beside the code.

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    path::PathBuf,
    process::{Command, Output},
    thread,
};

const URL: [&str; 2] = ["--upstream", "redis://me:hunter2@127.0.0.1:6379/2"];

/// The program with these arguments, and no setting from the environment of the test run.
fn nearside(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nearside"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("NEARSIDE_") {
            command.env_remove(name);
        }
    }
    command.args(args);
    command
}

fn run(args: &[&str]) -> Output {
    nearside(args).output().unwrap()
}

fn out(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn err(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// A configuration file called `x.yaml` in a directory of its own.
fn file(yaml: &str) -> (tempfile::TempDir, String) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.yaml");
    std::fs::write(&path, yaml).unwrap();
    let path = path.to_str().unwrap().to_owned();
    (dir, path)
}

#[test]
fn a_valid_configuration_is_said_to_be_valid() {
    let output = run(&[&URL[..], &["--check-config"]].concat());
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(out(&output), "configuration is valid\n");
    assert_eq!(err(&output), "");
}

#[test]
fn explain_needs_no_running_process() {
    let (_dir, path) = file("rules: [{name: half, pattern: 'h:*', rollout: 0}, {name: rest, pattern: '*', ttl: 7s}]");
    let explain = |words: &[&str]| out(&run(&[&["explain", "--config", &path], words].concat()));
    assert_eq!(
        explain(&["GET", "h:1"]),
        "command: get\neffect: read\nkeys: h:1\nrule: half\nrule_says: control\nnot_kept_because:\n"
    );
    assert!(explain(&["mget", "a", "b"]).contains("keys: a b\nrule: rest\nrule_says: MGET for 7000 ms\n"));
    assert!(explain(&["TTL", "a"]).contains("not_kept_because: its answer changes as time passes"));
    assert!(explain(&["HGETALL", "a"]).contains("not_kept_because: HGETALL is named by no rule\n"));
    assert!(explain(&["FT.SEARCH", "i", "-x"]).contains("command: unknown\n"));
    let (_dir, bad) = file("rules: [{pattern: 'a['}]");
    let output = run(&["explain", "--config", &bad, "GET", "a"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(err(&output).contains("has a [ without its ]"), "{}", err(&output));
}

#[test]
fn warnings_do_not_make_a_configuration_invalid() {
    let mut command = nearside(&[&URL[..], &["serve", "--check-config"]].concat()[2..]);
    command.env("NEARSIDE_UPSTREAM__URL", URL[1]).env("NEARSIDE_PORT", "tcp://10.0.0.1:6380");
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", err(&output));
    assert_eq!(err(&output), "warning: ignored environment variables that are no settings: NEARSIDE_PORT\n");
}

#[test]
fn a_wrong_configuration_names_file_line_and_key_and_exits_2() {
    let (_dir, path) = file("upstream:\n  url: redis://h\nlisten:\n  output_limit: 64MB\n  unxi: /tmp/s\n");
    for mode in ["--check-config", "--print-config", "--log-format=text"] {
        let output = run(&["--config", &path, mode]);
        assert_eq!(output.status.code(), Some(2));
        assert_eq!(out(&output), "");
        let expected = format!(
            "nearside: {path}:5: listen.unxi: unknown key; did you mean listen.unix?\n\
             nearside: {path}:4: listen.output_limit: \"64MB\" is not a size; use bytes or KiB, MiB, GiB, for example 64MiB\n"
        );
        assert_eq!(err(&output), expected);
    }
}

#[test]
fn a_file_or_production_without_an_upstream_exits_2_and_says_how_to_give_one() {
    let (_dir, path) = file("log: {level: info}");
    let mut production = nearside(&[]);
    production.env("NEARSIDE_ENVIRONMENT", "production");
    for output in [run(&["--config", &path]), production.output().unwrap()] {
        assert_eq!(output.status.code(), Some(2));
        let expected = "nearside: no upstream: set upstream.url, for example redis://127.0.0.1:6379, or 'embedded' for the in-memory engine\n";
        assert_eq!(err(&output), expected);
    }
}

#[test]
fn the_engine_is_the_backend_where_nobody_names_another_or_where_it_is_named() {
    let (_dir, path) = file("{environment: production, upstream: {url: embedded}}");
    for args in [&["--print-config"][..], &["--config", &path, "--print-config"]] {
        let output = run(args);
        assert_eq!(output.status.code(), Some(0), "{}", err(&output));
        assert!(out(&output).contains("  url: \"embedded\"\n"), "{}", out(&output));
    }
    assert!(err(&run(&["--config", &path, "--check-config"])).contains("embedded in production"));
    let (_dir, path) = file("upstream: {url: embedded, username: me}");
    let refused = run(&["--config", &path, "--check-config"]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(
        err(&refused).contains("x.yaml:1: upstream.username: is for an upstream, and none is named"),
        "{}",
        err(&refused)
    );
}

#[test]
fn a_wrong_flag_is_named_and_exits_2() {
    let unknown = run(&["--lisen", "127.0.0.1:0"]);
    assert_eq!(unknown.status.code(), Some(2));
    assert!(err(&unknown).contains("--listen"), "{}", err(&unknown));
    let value = run(&[&URL[..], &["--listen", "localhost"]].concat());
    assert_eq!(value.status.code(), Some(2));
    assert!(
        err(&value).starts_with("nearside: --listen: listen.tcp: \"localhost\" is not an address;"),
        "{}",
        err(&value)
    );
}

#[test]
fn the_printed_configuration_loads_again_and_holds_no_secret() {
    let flags = ["--listen", "127.0.0.1:0", "--http", "off", "--unix", "/tmp/x y.sock", "--print-config"];
    let first = run(&[&URL[..], &flags].concat());
    assert_eq!(first.status.code(), Some(0), "{}", err(&first));
    assert!(!out(&first).contains("hunter2"));
    let (_dir, path) = file(&out(&first));
    let second = run(&["--config", &path, "--print-config"]);
    // The comment in place of the password is all that is lost.
    let without_login = |text: String| -> Vec<String> {
        text.lines().filter(|l| !l.contains("username:") && !l.contains("password_file:")).map(str::to_owned).collect()
    };
    assert_eq!(without_login(out(&second)), without_login(out(&first)));
}

#[test]
fn the_documented_file_is_accepted_as_it_is() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("config/nearside.yaml");
    let output = nearside(&["--check-config"])
        .env("NEARSIDE_CONFIG", path)
        .env("NEARSIDE_UPSTREAM__URL", "redis://h")
        .output()
        .unwrap();
    assert_eq!(
        (output.status.code(), out(&output).as_str()),
        (Some(0), "configuration is valid\n"),
        "{}",
        err(&output)
    );
}

#[test]
fn help_names_units_examples_and_exit_codes() {
    let output = run(&["--help"]);
    assert_eq!(output.status.code(), Some(0));
    for part in ["KiB, MiB, GiB", "ms, s, m, h", "nearside --upstream redis://127.0.0.1:6379", "Exit codes:", "health"]
    {
        assert!(out(&output).contains(part), "{part}");
    }
    assert_eq!(out(&run(&["--version"])), format!("nearside {}\n", env!("CARGO_PKG_VERSION")));
}

/// A side port that gives one answer.
fn side_port(answer: &'static str) -> (String, thread::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let serve = move || {
        let (mut stream, _) = listener.accept().unwrap();
        read_head(&mut stream);
        stream.write_all(answer.as_bytes()).unwrap();
    };
    (address, thread::spawn(serve))
}

fn read_head(stream: &mut TcpStream) {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap() == 1 {
        head.push(byte[0]);
    }
}

#[test]
fn health_is_0_when_ready_and_1_when_not() {
    for (status, code) in [("200 OK", 0), ("503 Service Unavailable", 1)] {
        let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 15\r\n\r\n{{\"ready\":\"see\"}}").leak();
        let (address, server) = side_port(answer);
        let output = run(&["health", "--url", &format!("http://{address}")]);
        server.join().unwrap();
        assert_eq!(output.status.code(), Some(code));
        assert_eq!(out(&output), "{\"ready\":\"see\"}\n");
    }
}

#[test]
fn health_asks_the_configured_side_port_without_needing_an_upstream() {
    let (address, server) = side_port("HTTP/1.1 200 OK\r\n\r\nok");
    let output = nearside(&["health"]).env("NEARSIDE_HTTP__LISTEN", format!("[\"{address}\"]")).output().unwrap();
    server.join().unwrap();
    assert_eq!((output.status.code(), out(&output).as_str()), (Some(0), "ok\n"), "{}", err(&output));
}

#[test]
fn health_is_1_where_nobody_listens_and_2_for_a_wrong_url() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let output = run(&["health", "--url", &format!("http://{free}")]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        err(&output).starts_with(&format!("nearside: http://{free}/health/ready: Connection refused")),
        "{}",
        err(&output)
    );
    assert_eq!(run(&["health", "--url", "127.0.0.1:9380"]).status.code(), Some(2));
}
