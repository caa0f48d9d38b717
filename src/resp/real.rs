//! Test support: a real redis-server as a child process on a unix socket in a temporary directory, to hold this module's
//! rules against. Gone when dropped.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::reply::{Frame, FrameScanner};

/// A server that does not answer by then is broken; it takes some 20 ms.
const START_MAX: Duration = Duration::from_secs(20);

/// A reply that has not come by then will not come.
const REPLY_MAX: Duration = Duration::from_secs(20);

pub(crate) struct Server {
    child: Child,
    dir: tempfile::TempDir,
}

impl Server {
    pub(crate) fn start() -> Self {
        let dir = tempfile::tempdir().expect("temporary directory");
        let child = Command::new("redis-server")
            .args(["--port", "0", "--save", "", "--enable-debug-command", "yes", "--unixsocket", "socket"])
            .current_dir(dir.path())
            .stdout(Stdio::null())
            .spawn()
            .expect("redis-server on PATH (tests/run installs it)");
        let server = Self { child, dir };
        server.until_ready();
        server
    }

    fn until_ready(&self) {
        let deadline = Instant::now() + START_MAX;
        while UnixStream::connect(self.socket()).is_err() {
            assert!(Instant::now() < deadline, "redis-server did not start");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("socket")
    }

    pub(crate) fn connect(&self) -> Connection {
        let socket = UnixStream::connect(self.socket()).expect("connect");
        socket.set_read_timeout(Some(REPLY_MAX)).expect("timeout");
        Connection { socket, buf: Vec::new(), scanner: FrameScanner::new() }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) struct Connection {
    socket: UnixStream,
    buf: Vec<u8>,
    scanner: FrameScanner,
}

impl Connection {
    pub(crate) fn send(&mut self, bytes: &[u8]) {
        // A server that has closed already has still answered.
        let _ = self.socket.write_all(bytes);
    }

    /// Sends one command and returns its reply as bytes, embedded pushes taken out.
    pub(crate) fn call(&mut self, args: &[&[u8]]) -> Vec<u8> {
        let mut out = bytes::BytesMut::new();
        super::build::command(&mut out, args);
        self.send(&out);
        self.reply()
    }

    pub(crate) fn reply(&mut self) -> Vec<u8> {
        loop {
            if let Frame::Complete { len } = self.scanner.scan(&self.buf).expect("valid reply") {
                let frame: Vec<u8> = self.buf.drain(..len).collect();
                let mut clean = bytes::BytesMut::new();
                super::reply::copy_without(&frame, self.scanner.pushes(), &mut clean);
                return clean.to_vec();
            }
            let mut chunk = [0; 16 * 1024];
            let n = self.socket.read(&mut chunk).expect("reply in time");
            assert!(n > 0, "connection closed, after {}", self.buf.escape_ascii());
            self.buf.extend_from_slice(&chunk[..n]);
        }
    }

    /// Everything the server says until it closes.
    pub(crate) fn until_closed(&mut self) -> Vec<u8> {
        let mut all = std::mem::take(&mut self.buf);
        let mut chunk = [0; 16 * 1024];
        loop {
            match self.socket.read(&mut chunk) {
                Ok(0) => return all,
                Ok(n) => all.extend_from_slice(&chunk[..n]),
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return all,
                Err(error) => panic!("neither reply nor close: {error}, after {}", all.escape_ascii()),
            }
        }
    }
}
