//! The built `nearside` as child process: listens on a unix socket in a directory of its own, tells its addresses in the
//! line it logs when it is ready, and is killed when dropped. NEARSIDE_TEST_WORKERS is how many workers each has that a
//! test has not told otherwise. With NEARSIDE_TEST_DIRECT set (or `direct`) there is no
//! child: "the proxy" is the redis behind it, which shows whether a test is right before it shows whether Nearside is.

use std::collections::{HashMap, VecDeque};
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Map, Value, json};
use tempfile::TempDir;

use super::http::{self, Response};
use super::{Client, PATIENCE, Redis, Reply, end, eventually, poll, signal, temp_dir};

/// Lines of stderr that are kept for a failure's message and for `logged`.
const LINES_KEPT: usize = 2000;

/// Lines of stderr that a failure shows.
const LINES_SHOWN: usize = 40;

/// A configuration file of the test's own.
enum Given {
    /// What was set besides counts too.
    Beside(PathBuf),
    /// Nothing else counts.
    Alone(PathBuf),
}

pub(crate) struct Builder {
    config: Map<String, Value>,
    file: Option<Given>,
    args: Vec<String>,
    env: Vec<(String, String)>,
    direct: Option<(PathBuf, Option<SocketAddr>)>,
    wait: bool,
    hosts: Option<PathBuf>,
}

/// Binds its two first arguments over the files by which names are resolved, and becomes the rest of them.
const WITH_HOSTS: &str =
    r#"mount --bind "$1" /etc/hosts && mount --bind "$2" /etc/nsswitch.conf && shift 2 && exec "$@""#;

impl Builder {
    /// Sets a key of the configuration, `set("cache.mode", "off")`; the value is what it would be in YAML.
    pub(crate) fn set(mut self, key: &str, value: impl Into<Value>) -> Builder {
        let mut map = &mut self.config;
        let (path, last) = key.rsplit_once('.').unwrap_or(("", key));
        for part in path.split('.').filter(|part| !part.is_empty()) {
            map = map.entry(part).or_insert_with(|| json!({})).as_object_mut().expect("a section, not a value");
        }
        map.insert(last.into(), value.into());
        self
    }

    /// Listen on 127.0.0.1 as well, at a port of the system's choice.
    pub(crate) fn tcp(self) -> Builder {
        self.set("listen.tcp", json!(["127.0.0.1:0"]))
    }

    /// This configuration file as it stands; what was set besides goes into the environment, which wins over it.
    pub(crate) fn example(mut self, path: impl Into<PathBuf>) -> Builder {
        self.file = Some(Given::Beside(path.into()));
        self
    }

    pub(crate) fn arg(mut self, arg: &str) -> Builder {
        self.args.push(arg.into());
        self
    }

    pub(crate) fn env(mut self, name: &str, value: &str) -> Builder {
        self.env.push((name.into(), value.into()));
        self
    }

    /// With this configuration file in place of what `set` has said; where it listens is added by a flag.
    pub(crate) fn file(mut self, path: &Path) -> Builder {
        self.file = Some(Given::Alone(path.into()));
        self
    }

    /// The redis itself in the proxy's place.
    pub(crate) fn direct(mut self, redis: &Redis, tcp: bool) -> Builder {
        self.direct = Some((redis.socket().into(), tcp.then(|| redis.address())));
        self
    }

    /// With this file as its /etc/hosts, and no other source of names. What is written to it holds from the next look on.
    pub(crate) fn hosts(mut self, path: &Path) -> Builder {
        self.hosts = Some(path.into());
        self
    }

    /// Do not wait until it is ready: for starts that are meant to fail.
    pub(crate) fn without_waiting(mut self) -> Builder {
        self.wait = false;
        self
    }

    #[track_caller]
    pub(crate) fn start(self) -> Proxy {
        let dir = temp_dir();
        if let Some((socket, tcp)) = self.direct {
            return Proxy {
                child: None,
                unix: socket,
                tcp: tcp.into_iter().collect(),
                http: None,
                lines: Lines::default(),
                dir,
            };
        }
        let unix = dir.path().join("nearside.sock");
        let wait = self.wait;
        let mut child = self.set("listen.unix", unix.display().to_string()).spawn(dir.path(), &unix);
        let lines = Lines::default();
        lines.follow(child.stderr.take().expect("its stderr"));
        let mut proxy = Proxy { child: Some(child), unix, tcp: Vec::new(), http: None, lines, dir };
        if wait {
            proxy.wait_ready();
        }
        proxy
    }

    fn spawn(self, dir: &Path, unix: &Path) -> Child {
        let mut config = self.config;
        if let Ok(workers) = std::env::var("NEARSIDE_TEST_WORKERS") {
            config.entry("workers").or_insert_with(|| workers.into());
        }
        let mut command = match &self.hosts {
            None => Command::new(env!("CARGO_BIN_EXE_nearside")),
            Some(hosts) => in_a_world_of(hosts, dir),
        };
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("NEARSIDE_")) {
            command.env_remove(name); // what the developer's shell has set is not the test's
        }
        let file = match &self.file {
            Some(Given::Beside(file)) => {
                command.envs(variables("NEARSIDE", &config));
                file.clone()
            }
            Some(Given::Alone(file)) => {
                command.arg("--unix").arg(unix);
                file.clone()
            }
            None => {
                let file = dir.join("nearside.yaml");
                // JSON is YAML; one writer less.
                std::fs::write(&file, format!("{:#}\n", Value::Object(config))).expect("a configuration file");
                file
            }
        };
        command.arg("--config").arg(&file).args(&self.args).env("NO_COLOR", "1").envs(self.env);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        command.spawn().expect("the built nearside")
    }
}

/// In a mount namespace of its own: nobody else sees these files. The process stays the one that is started here.
fn in_a_world_of(hosts: &Path, dir: &Path) -> Command {
    let sources = dir.join("nsswitch.conf");
    std::fs::write(&sources, "hosts: files\n").expect("a file");
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-c", WITH_HOSTS, "sh"]).arg(hosts).arg(sources).arg(env!("CARGO_BIN_EXE_nearside"));
    command
}

/// Whether `Builder::hosts` can be had here.
pub(crate) fn has_hosts() -> bool {
    let tried = Command::new("unshare").args(["-m", "test", "-e", "/etc/nsswitch.conf"]).stderr(Stdio::null()).status();
    tried.is_ok_and(|status| status.success())
}

/// Settings as environment variables: two underscores for a dot.
fn variables(prefix: &str, section: &Map<String, Value>) -> Vec<(String, String)> {
    let glue = if prefix == "NEARSIDE" { "_" } else { "__" };
    let named = |key: &str| format!("{prefix}{glue}{}", key.to_uppercase());
    let each = section.iter().flat_map(|(key, value)| match value {
        Value::Object(map) => variables(&named(key), map),
        Value::String(text) => vec![(named(key), text.clone())],
        other => vec![(named(key), other.to_string())],
    });
    each.collect()
}

pub(crate) struct Proxy {
    child: Option<Child>,
    unix: PathBuf,
    tcp: Vec<SocketAddr>,
    http: Option<SocketAddr>,
    lines: Lines,
    dir: TempDir,
}

impl Proxy {
    /// In front of `redis`, with the defaults.
    #[track_caller]
    pub(crate) fn start(redis: &Redis) -> Proxy {
        Proxy::to(redis).start()
    }

    pub(crate) fn to(redis: &Redis) -> Builder {
        let builder = Proxy::upstream(&redis.url());
        if std::env::var_os("NEARSIDE_TEST_DIRECT").is_some() {
            builder.direct(redis, redis.has_tcp())
        } else {
            builder
        }
    }

    /// In front of whatever the URL names: a relay, a fake, nothing at all.
    pub(crate) fn upstream(url: &str) -> Builder {
        let builder = Builder {
            config: Map::new(),
            file: None,
            args: Vec::new(),
            env: Vec::new(),
            direct: None,
            wait: true,
            hosts: None,
        };
        builder.set("upstream.url", url).set("listen.tcp", json!([])).set("http.listen", json!(["127.0.0.1:0"]))
    }

    pub(crate) fn socket(&self) -> &Path {
        &self.unix
    }

    /// Its first TCP address; only after `tcp()`.
    #[track_caller]
    pub(crate) fn address(&self) -> SocketAddr {
        *self.tcp.first().expect("a proxy started with tcp()")
    }

    #[track_caller]
    pub(crate) fn http_address(&self) -> SocketAddr {
        self.http.expect("a proxy with a side port")
    }

    /// A file's place in the proxy's directory, for passwords and the like.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    #[track_caller]
    pub(crate) fn client(&self) -> Client {
        Client::unix(&self.unix)
    }

    /// A client that has said HELLO 3.
    #[track_caller]
    pub(crate) fn client3(&self) -> Client {
        self.client().hello3()
    }

    /// What NEARSIDE INFO says.
    #[track_caller]
    pub(crate) fn stats(&self) -> HashMap<String, String> {
        let reply = self.client().cmd(&["NEARSIDE", "INFO"]);
        assert!(!reply.is_error(), "NEARSIDE INFO: {reply:?}");
        let text = reply.text();
        text.lines().filter_map(|line| line.split_once(':')).map(|(n, v)| (n.into(), v.trim().into())).collect()
    }

    /// One number of NEARSIDE INFO.
    #[track_caller]
    pub(crate) fn stat(&self, name: &str) -> f64 {
        let stats = self.stats();
        let value = stats.get(name).unwrap_or_else(|| panic!("no {name:?} in {stats:?}"));
        value.parse().unwrap_or_else(|_| panic!("{name} is {value:?}, not a number"))
    }

    /// One series, as /metrics prints it: `metric("nearside_flushes_total{reason=\"own\"}")`.
    #[track_caller]
    pub(crate) fn metric(&self, series: &str) -> f64 {
        let body = self.get("/metrics").body;
        let value = body.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')?.parse().ok());
        let name = series.split('{').next().unwrap_or(series);
        let like = || body.lines().filter(|line| line.starts_with(name)).collect::<Vec<_>>().join("\n");
        value.unwrap_or_else(|| panic!("no series {series:?}; of that name:\n{}", like()))
    }

    /// All series of a name, added up.
    #[track_caller]
    pub(crate) fn metric_sum(&self, name: &str) -> f64 {
        let body = self.get("/metrics").body;
        let of_name = |line: &&str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']));
        body.lines().filter(of_name).filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }

    #[track_caller]
    pub(crate) fn get(&self, path: &str) -> Response {
        http::get(self.http_address(), path)
    }

    /// Whether a line with `text` has been logged, among the last `LINES_KEPT`.
    pub(crate) fn logged(&self, text: &str) -> bool {
        self.lines.lock().iter().any(|line| line.contains(text))
    }

    /// The lines with `text` among the last `LINES_KEPT`, oldest first.
    pub(crate) fn lines_logged(&self, text: &str) -> Vec<String> {
        self.lines.lock().iter().filter(|line| line.contains(text)).cloned().collect()
    }

    /// How many lines with `text` have been logged, among the last `LINES_KEPT`.
    pub(crate) fn count_logged(&self, text: &str) -> usize {
        self.lines.lock().iter().filter(|line| line.contains(text)).count()
    }

    #[track_caller]
    pub(crate) fn wait_logged(&self, text: &str) {
        eventually(PATIENCE, &format!("a log line with {text:?}"), || self.logged(text));
    }

    #[track_caller]
    pub(crate) fn pid(&self) -> u32 {
        self.child.as_ref().expect("a child: not under NEARSIDE_TEST_DIRECT").id()
    }

    pub(crate) fn sigstop(&mut self) {
        self.signal(Signal::STOP);
    }

    pub(crate) fn sigcont(&mut self) {
        self.signal(Signal::CONT);
    }

    pub(crate) fn sighup(&mut self) {
        self.signal(Signal::HUP);
    }

    pub(crate) fn sigterm(&mut self) {
        self.signal(Signal::TERM);
    }

    /// Waits for its end; fails when it is still there after `deadline`.
    #[track_caller]
    pub(crate) fn wait_exit(&mut self, deadline: Duration) -> ExitStatus {
        let child = self.child.as_mut().expect("a child: not under NEARSIDE_TEST_DIRECT");
        let status = poll(deadline, || child.try_wait().expect("its status"));
        status.unwrap_or_else(|| panic!("still running after {deadline:?}"))
    }

    /// Resident memory in bytes (Linux).
    #[track_caller]
    pub(crate) fn rss(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("its status");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
        let kib: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number of kB");
        kib * 1024
    }

    fn signal(&mut self, which: Signal) {
        if let Some(child) = &mut self.child {
            signal(child, which);
        }
    }

    /// Reads the addresses out of the line that says so: `ready: ... listening on A[, A...] ... http A`.
    #[track_caller]
    fn wait_ready(&mut self) {
        let line = poll(PATIENCE, || {
            let line = self.lines.lock().iter().find(|line| line.contains("ready:")).cloned();
            let ended = !matches!(self.child.as_mut().map(Child::try_wait), Some(Ok(None)));
            line.map(Ok).or_else(|| ended.then_some(Err(())))
        });
        match line {
            Some(Ok(line)) => (self.tcp, self.http) = addresses(&line),
            Some(Err(())) => panic!("nearside ended before it was ready"),
            None => panic!("nearside was not ready within {PATIENCE:?}"),
        }
        // The line is the program's word; a connection is the proof.
        eventually(PATIENCE, "a connection to its unix socket", || Client::try_unix(&self.unix).is_ok());
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            end(&mut child);
        }
        if std::thread::panicking() {
            let lines = self.lines.lock();
            let last: Vec<&String> = lines.iter().rev().take(LINES_SHOWN).collect();
            eprintln!("--- nearside's stderr ends with");
            last.iter().rev().for_each(|line| eprintln!("{line}"));
        }
    }
}

/// Listening addresses, and the one after the word `http`.
fn addresses(line: &str) -> (Vec<SocketAddr>, Option<SocketAddr>) {
    let (mut listening, mut http, mut after) = (Vec::new(), None, "");
    for word in line.split([' ', ',', ';', '"', '=']).filter(|word| !word.is_empty()) {
        if let Ok(address) = word.parse() {
            if after == "http" {
                http = http.or(Some(address));
            } else if after == "on" {
                listening.push(address);
            }
        } else if !word.starts_with(['/', 'u']) {
            after = word; // a socket's path stands among the addresses
        }
    }
    (listening, http)
}

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<VecDeque<String>>>);

impl Lines {
    fn lock(&self) -> std::sync::MutexGuard<'_, VecDeque<String>> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Ends with the child: its end of the pipe closes.
    fn follow(&self, stderr: ChildStderr) {
        let lines = self.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).split(b'\n').map_while(Result::ok) {
                let mut kept = lines.lock();
                if kept.len() == LINES_KEPT {
                    kept.pop_front();
                }
                kept.push_back(String::from_utf8_lossy(&line).into_owned());
            }
        });
    }
}

/// The answer that shows a live server, whoever gives it.
pub(crate) fn is_pong(reply: &Reply) -> bool {
    *reply == Reply::status("PONG")
}

#[test]
fn the_ready_line_names_the_addresses() {
    let line = "INFO nearside: ready: cache: serve (impl: l1), upstream redis://127.0.0.1:6379, listening on 127.0.0.1:7001, [::1]:7002, /tmp/x/n.sock, http 127.0.0.1:7003";
    let (tcp, http) = addresses(line);
    assert_eq!(tcp, ["127.0.0.1:7001".parse().unwrap(), "[::1]:7002".parse().unwrap()]);
    assert_eq!(http, Some("127.0.0.1:7003".parse().unwrap()));
}
