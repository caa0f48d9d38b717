//! `nearside top` and `nearside health` beside a running sidecar: one frame as text, the live view in a terminal of its own
//! (util-linux's `script` makes it), and a sidecar that goes away and comes back.

use std::io::{Read, Write};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};

use crate::support::{PATIENCE, Proxy, Redis, eventually, holds, poll};

const NEARSIDE: &str = env!("CARGO_BIN_EXE_nearside");

fn nearside(args: &[&str]) -> Output {
    Command::new(NEARSIDE).args(args).env_remove("COLUMNS").stdin(Stdio::null()).output().expect("the built nearside")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn once_prints_a_frame_of_what_runs() {
    let redis = Redis::start();
    let proxy = Proxy::to(&redis).set("coherence.max_staleness", "60s").start();
    let url = format!("http://{}", proxy.http_address());
    let mut client = proxy.client();
    client.cmd(&["SET", "user:1", "v"]);
    let seen = poll(PATIENCE, || {
        // Hot keys are found by sampling.
        let get: &[&str] = &["GET", "user:1"];
        client.pipeline(&[get; 200]);
        let output = nearside(&["top", "--once", "--url", &url]);
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        let frame = text(&output.stdout);
        // Hits are there, and their keys.
        (frame.contains("coherence tracking") && frame.matches("user").count() >= 2).then_some(frame)
    });
    let frame = seen.expect("a frame with what was asked for");
    for part in
        ["mode serve", "backend upstream", "upstream redis", " up  clients ", "requests ", "latency, ms", "top keys"]
    {
        assert!(frame.contains(part), "no {part:?} in\n{frame}");
    }
    assert!(!frame.contains('\u{1b}'), "plain text");
}

#[test]
fn once_where_nobody_listens_says_where_it_asked() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a port");
    let output = nearside(&["top", "--once", "--url", &format!("http://{free}")]);
    assert_eq!(output.status.code(), Some(1));
    let said = format!("nearside: http://{free}/api/v1/dashboard: Connection refused");
    assert!(text(&output.stderr).starts_with(&said), "{}", text(&output.stderr));
    let output = nearside(&["top", "--url", &format!("http://{free}")]);
    assert_eq!(output.status.code(), Some(2), "standard output is no terminal here");
    assert!(text(&output.stderr).contains("--once"), "{}", text(&output.stderr));
}

/// A command in a terminal of its own.
struct Tty {
    child: Child,
    seen: Arc<Mutex<Vec<u8>>>,
}

impl Tty {
    fn running(command: &str) -> Tty {
        let mut child = Command::new("script")
            .args(["-qefc", command, "/dev/null"])
            .env("TERM", "xterm-256color")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("script");
        let (mut output, seen) = (child.stdout.take().expect("its output"), Arc::<Mutex<Vec<u8>>>::default());
        let kept = seen.clone();
        std::thread::spawn(move || {
            let mut chunk = [0; 4096];
            while let Ok(n @ 1..) = output.read(&mut chunk) {
                kept.lock().expect("not poisoned").extend_from_slice(&chunk[..n]);
            }
        });
        Tty { child, seen }
    }

    fn has(&self, part: &str) -> bool {
        text(&self.seen.lock().expect("not poisoned")).contains(part)
    }

    fn forget(&self) {
        self.seen.lock().expect("not poisoned").clear();
    }

    fn press(&mut self, keys: &[u8]) {
        self.child.stdin.as_mut().expect("its input").write_all(keys).expect("pressed");
    }

    #[track_caller]
    fn exit(&mut self) -> Option<i32> {
        poll(PATIENCE, || self.child.try_wait().expect("its state")).expect("it ends").code()
    }
}

impl Drop for Tty {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn has_script() -> bool {
    Command::new("script").arg("--version").output().is_ok_and(|output| output.status.success())
}

/// What a terminal is told on the way back from the other screen.
const BACK: &str = "\u{1b}[?1049l";

#[test]
fn the_live_view_follows_a_sidecar_that_goes_and_leaves_the_terminal_as_it_was() {
    if !holds(has_script(), "needs util-linux's script, which is not installed") {
        return;
    }
    let redis = Redis::start();
    let mut proxy = Proxy::start(&redis);
    let command =
        |proxy: &Proxy| format!("stty cols 100 rows 40; {NEARSIDE} top --url http://{}", proxy.http_address());
    let mut tty = Tty::running(&command(&proxy));
    eventually(PATIENCE, "a frame", || tty.has("latency, ms") && tty.has("serve"));
    assert!(!tty.has(BACK));
    tty.press(b"q");
    assert_eq!(tty.exit(), Some(0));
    assert!(tty.has(BACK));
    let mut tty = Tty::running(&command(&proxy));
    eventually(PATIENCE, "a frame", || tty.has("latency, ms"));
    tty.forget();
    proxy.sigterm();
    proxy.wait_exit(PATIENCE);
    eventually(PATIENCE, "it to be missed", || tty.has("ANSWER"));
    tty.press(b"\x03");
    assert_eq!(tty.exit(), Some(0), "ctrl-c is a way out, too");
    assert!(tty.has(BACK));
}

/// The shell around it says which process it is, how it ended, and what the terminal is set to then.
fn asked_to_end_by(signal: &str) -> (Tty, String) {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis);
    let top = format!("{NEARSIDE} top --url http://{}", proxy.http_address());
    let tty = Tty::running(&format!(
        "stty cols 100 rows 40; sh -c 'echo pid=$$.; exec {top}'; echo status=$?.; stty -a; echo over."
    ));
    eventually(PATIENCE, "a frame", || tty.has("latency, ms") && tty.has("serve"));
    let seen = text(&tty.seen.lock().expect("not poisoned"));
    let pid = seen.split_once("pid=").and_then(|(_, rest)| rest.split_once('.')).expect("the process").0.to_owned();
    assert!(Command::new("kill").args([signal, &pid]).status().expect("kill").success());
    eventually(PATIENCE, "its end", || tty.has("over."));
    let seen = text(&tty.seen.lock().expect("not poisoned"));
    (tty, seen)
}

#[test]
fn a_signal_ends_it_and_gives_the_terminal_back() {
    if !holds(has_script(), "needs util-linux's script, which is not installed") {
        return;
    }
    for signal in ["-TERM", "-INT", "-HUP"] {
        let (mut tty, seen) = asked_to_end_by(signal);
        assert_eq!(tty.exit(), Some(0));
        let (_, behind) =
            seen.rsplit_once(BACK).unwrap_or_else(|| panic!("{signal}: still on the other screen: {seen:?}"));
        assert!(behind.contains("status=0."), "{signal}: {behind:?}");
        assert!(seen.rfind("\u{1b}[?25h") > seen.rfind("\u{1b}[?25l"), "{signal}: no cursor: {seen:?}");
        for mode in ["icanon", "echo", "isig", "opost"] {
            assert!(behind.split_whitespace().any(|word| word == mode), "{signal}: raw still, no {mode}: {behind:?}");
        }
    }
}

/// A window that is closed, or a connection that is lost: nobody will ever press a key again.
#[test]
fn a_terminal_that_is_closed_ends_it() {
    if !holds(has_script(), "needs util-linux's script, which is not installed") {
        return;
    }
    let redis = Redis::start();
    let proxy = Proxy::start(&redis);
    // Deaf to SIGHUP, as it is below a shell that has said nohup: the end of its terminal is all that it has.
    let top = format!("{NEARSIDE} top --url http://{}", proxy.http_address());
    let tty = Tty::running(&format!("stty cols 100 rows 40; sh -c 'trap \"\" HUP; echo pid=$$.; exec {top}'"));
    eventually(PATIENCE, "a frame", || tty.has("latency, ms"));
    let seen = text(&tty.seen.lock().expect("not poisoned"));
    let pid = seen.split_once("pid=").and_then(|(_, rest)| rest.split_once('.')).expect("the process").0.to_owned();
    assert!(is_running(&pid));
    drop(tty);
    eventually(PATIENCE, "its end", || !is_running(&pid));
}

fn is_running(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"));
    stat.is_ok_and(|stat| stat.rsplit(')').next().is_some_and(|rest| !rest.trim_start().starts_with('Z')))
}

#[test]
fn checks_are_told_a_line_each_where_there_are_any() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis);
    let output = nearside(&["health", "--checks", "--url", &format!("http://{}", proxy.http_address())]);
    let (said, complaint) = (text(&output.stdout), text(&output.stderr));
    if proxy.get("/api/v1/dashboard/health").status == 404 {
        assert_eq!(output.status.code(), Some(1));
        assert!(complaint.contains("this version has no such page"), "{complaint}");
        return;
    }
    assert_eq!(output.status.code(), Some(0), "{said}{complaint}");
    assert!(said.contains(", up ") && said.lines().any(|line| line.contains(" upstream ")), "{said}");
}
