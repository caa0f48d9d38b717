//! A real redis-server as child process on a unix socket in a directory of its own, with nothing kept on disk.
//! It is ready when it has answered PING, and killed when dropped. It never touches a server it did not start.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::Signal;
use tempfile::TempDir;

use super::version::{self, binary, version};
use super::{Client, PATIENCE, Reply, end, poll, signal, temp_dir};

/// A free port can be taken by another test between its choice and redis's bind: so many are tried.
const PORTS_TRIED: usize = 10;

/// The lines of a server's log that a failure shows.
const LOG_LINES: usize = 20;

pub(crate) struct Builder {
    args: Vec<String>,
    tcp: bool,
    binary: Option<PathBuf>,
}

impl Builder {
    /// Listen on 127.0.0.1 as well, at a port that was free.
    pub(crate) fn tcp(mut self) -> Builder {
        self.tcp = true;
        self
    }

    /// Further arguments, as redis-server takes them: `["--requirepass", "secret"]`.
    pub(crate) fn args(mut self, args: &[&str]) -> Builder {
        self.args.extend(args.iter().map(|a| a.to_string()));
        self
    }

    /// This server, whatever the others run against; an old one: it is told nothing that Redis 5 does not know.
    pub(crate) fn server(mut self, binary: PathBuf) -> Builder {
        self.binary = Some(binary);
        self
    }

    #[track_caller]
    pub(crate) fn start(self) -> Redis {
        let dir = temp_dir();
        let socket = dir.path().join("redis.sock");
        for _ in 0..if self.tcp { PORTS_TRIED } else { 1 } {
            let port = if self.tcp { free_port() } else { 0 };
            let mut redis = Redis {
                child: None,
                socket: socket.clone(),
                port,
                args: self.args.clone(),
                binary: self.binary.clone(),
                dir: dir.path().into(),
                _dir: None,
            };
            if redis.launch() {
                redis._dir = Some(dir);
                return redis;
            }
        }
        panic!("redis-server did not start:\n{}", log_tail(dir.path()));
    }
}

pub(crate) struct Redis {
    child: Option<Child>,
    socket: PathBuf,
    port: u16,
    args: Vec<String>,
    binary: Option<PathBuf>,
    dir: PathBuf,
    _dir: Option<TempDir>,
}

impl Redis {
    #[track_caller]
    pub(crate) fn start() -> Redis {
        Redis::builder().start()
    }

    pub(crate) fn builder() -> Builder {
        Builder { args: Vec::new(), tcp: false, binary: None }
    }

    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    /// The upstream address as Nearside's configuration writes it.
    pub(crate) fn url(&self) -> String {
        format!("unix://{}", self.socket.display())
    }

    /// Where it listens on TCP; only after `builder().tcp()`.
    #[track_caller]
    pub(crate) fn address(&self) -> SocketAddr {
        assert_ne!(self.port, 0, "this redis was started without tcp()");
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.port))
    }

    #[track_caller]
    pub(crate) fn pid(&self) -> u32 {
        self.child.as_ref().expect("a running redis").id()
    }

    /// A connection that does not pass the proxy.
    #[track_caller]
    pub(crate) fn client(&self) -> Client {
        Client::unix(&self.socket)
    }

    pub(crate) fn has_tcp(&self) -> bool {
        self.port != 0
    }

    /// One command past the proxy, as a foreign writer.
    #[track_caller]
    pub(crate) fn cmd<A: AsRef<[u8]>>(&self, args: &[A]) -> Reply {
        self.client().cmd(args)
    }

    /// Kills it, as a crash would; its data is gone.
    pub(crate) fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            end(&mut child);
        }
        let _ = std::fs::remove_file(&self.socket);
    }

    /// Starts it again at the same addresses, empty.
    #[track_caller]
    pub(crate) fn restart(&mut self) {
        self.stop();
        assert!(self.launch(), "redis-server did not start again:\n{}", log_tail(&self.dir));
    }

    /// Stops answering without closing anything, until `sigcont`.
    pub(crate) fn sigstop(&mut self) {
        self.signal(Signal::STOP);
    }

    pub(crate) fn sigcont(&mut self) {
        self.signal(Signal::CONT);
    }

    fn signal(&mut self, which: Signal) {
        if let Some(child) = &mut self.child {
            signal(child, which);
        }
    }

    fn launch(&mut self) -> bool {
        let log = File::create(self.dir.join("redis.log")).expect("a log file");
        let own = self.binary.is_none();
        let program = self.binary.clone().unwrap_or_else(|| binary().into());
        let child = Command::new(&program)
            .args(["--save", "", "--appendonly", "no"])
            // Before 7.0 DEBUG is always allowed, and the word unknown.
            .args(if own && version().at_least(7, 0) { &["--enable-debug-command", "yes"][..] } else { &[] })
            .args(if own { version::further_args() } else { Vec::new() })
            .args(["--bind", "127.0.0.1", "--port", &self.port.to_string()])
            .arg("--unixsocket")
            .arg(&self.socket)
            .arg("--dir")
            .arg(&self.dir)
            .args(&self.args)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a log file"))
            .stderr(log)
            .spawn();
        self.child = Some(child.unwrap_or_else(|e| panic!("{}: {e}", program.display())));
        let answered = poll(PATIENCE, || if self.has_ended() { Some(false) } else { self.answers().then_some(true) });
        answered == Some(true)
    }

    fn has_ended(&mut self) -> bool {
        !matches!(self.child.as_mut().map(Child::try_wait), Some(Ok(None)))
    }

    /// Any answer will do: with a password it is NOAUTH.
    fn answers(&self) -> bool {
        let Ok(client) = Client::try_unix(&self.socket) else {
            return false;
        };
        let mut client = client.with_patience(Duration::from_secs(1));
        client.try_send(b"PING\r\n").is_ok() && client.try_read(Duration::from_secs(1)).is_some_and(|b| !b.is_empty())
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- redis-server's log ends with\n{}", log_tail(&self.dir));
        }
        self.stop();
    }
}

fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    listener.local_addr().expect("its address").port()
}

fn log_tail(dir: &Path) -> String {
    let text = std::fs::read_to_string(dir.join("redis.log")).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
}
