//! What of this host a sidecar with this configuration would meet: its memory, its disk, its ports. Leaves nothing behind:
//! sockets are bound and closed, a file is written into the journal's directory and removed.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::UnixStream;
use std::path::Path;

use super::Check;
use crate::config::{self, Backend, Config};

/// What the process takes beside what is configured: code, sockets, metrics, histories (7 MiB when idle, 25 MiB after a busy
/// day).
const OWN: u64 = 32 << 20;

const MIB: u64 = 1 << 20;

pub(super) fn checks(config: &Config) -> Vec<Check> {
    let mut all = vec![Check { name: "memory", result: memory(config, config::memory_limit()) }];
    if let Some(dir) = &config.outage.journal_dir {
        all.push(Check { name: "disk", result: disk(dir, config.outage.journal_max_bytes) });
    }
    all.push(Check { name: "ports", result: ports(config) });
    all
}

/// All bounds reached at once.
fn memory(config: &Config, limit: Option<u64>) -> Result<String, String> {
    let mut parts = match config.upstream.backend {
        Backend::Upstream => vec![("cache.max_bytes", config.cache.max_bytes)],
        Backend::Local => vec![("local.max_bytes", config.local.max_bytes)],
    };
    parts.push(("listen.buffers_max", config.listen.buffers_max as u64));
    if config.may_queue() {
        parts.push(("outage.queue_max_bytes", config.outage.queue_max_bytes as u64));
    }
    let sum = parts.iter().map(|(_, bytes)| bytes).sum::<u64>() + OWN;
    let named: Vec<String> = parts.iter().map(|(key, bytes)| format!("{key} {} MiB", bytes / MIB)).collect();
    let text = format!("{} and {} MiB for the process itself: {} MiB", named.join(", "), OWN / MIB, sum / MIB);
    match limit {
        None => Ok(format!("{text}; this control group has no limit")),
        Some(limit) if sum <= limit => Ok(format!("{text} of {} MiB", limit / MIB)),
        Some(limit) => Err(format!("{text}, but the control group's limit is {} MiB: lower the first", limit / MIB)),
    }
}

fn disk(dir: &Path, wanted: u64) -> Result<String, String> {
    let shown = dir.display();
    let failed = |e: &dyn std::fmt::Display| format!("outage.journal_dir {shown}: {e}");
    // A directory that is not there yet is made at start, in the first one above that is.
    let there = dir.ancestors().find(|above| above.is_dir()).ok_or_else(|| failed(&"there is no such directory"))?;
    let probe = there.join(format!(".nearside-preflight-{}", std::process::id()));
    std::fs::write(&probe, b"x").and_then(|()| std::fs::remove_file(&probe)).map_err(|e| failed(&e))?;
    let stat = rustix::fs::statvfs(there).map_err(|e| failed(&e))?;
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    if free < wanted {
        let (free, wanted) = (free / MIB, wanted / MIB);
        return Err(failed(&format!("{free} MiB are free, and outage.journal_max_bytes is {wanted} MiB")));
    }
    Ok(format!("{shown} can be written, {} MiB are free", free / MIB))
}

fn ports(config: &Config) -> Result<String, String> {
    let tcp = config.listen.tcp.iter().map(|at| ("listen.tcp", *at, config.listen.tcp_is_default));
    let http = config.http.listen.iter().map(|at| ("http.listen", *at, false));
    let mut free = Vec::new();
    for (key, at, may_lack) in tcp.chain(http) {
        match bind(at) {
            Ok(()) => free.push(at.to_string()),
            Err(e) if may_lack && e.kind() == io::ErrorKind::AddrNotAvailable => {}
            Err(e) => return Err(format!("{key} {at}: {e}")),
        }
    }
    if let Some(path) = &config.listen.unix {
        if UnixStream::connect(path).is_ok() {
            return Err(format!("listen.unix {}: another process listens there", path.display()));
        }
        free.push(path.display().to_string());
    }
    Ok(format!("{} free", free.join(", ")))
}

/// As a restart would: connections of a process before may linger.
fn bind(at: SocketAddr) -> io::Result<()> {
    TcpListener::bind(at).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::OutageWrites;

    fn config() -> Config {
        let mut config = Config::for_tests("redis://127.0.0.1:1");
        config.cache.max_bytes = 64 * MIB;
        config
    }

    #[test]
    fn the_bounds_add_up_to_less_than_the_limit_or_it_fails() {
        let wanted = (64 + 128 + 32) * MIB;
        let plain = config();
        let said = "cache.max_bytes 64 MiB, listen.buffers_max 128 MiB and 32 MiB for the process itself: 224 MiB";
        assert_eq!(memory(&plain, None), Ok(format!("{said}; this control group has no limit")));
        assert_eq!(memory(&plain, Some(wanted)), Ok(format!("{said} of 224 MiB")));
        let less = "but the control group's limit is 223 MiB: lower the first";
        assert_eq!(memory(&plain, Some(wanted - 1)), Err(format!("{said}, {less}")));
        let mut queues = config();
        (queues.outage.writes, queues.outage.queue_max_bytes) = (OutageWrites::Queue, 16 << 20);
        assert!(memory(&queues, Some(wanted)).expect_err("16 MiB more").contains("outage.queue_max_bytes 16 MiB"));
    }

    #[test]
    fn a_journal_needs_a_directory_with_room() {
        let dir = tempfile::tempdir().expect("a directory");
        let said = disk(&dir.path().join("not/yet"), MIB).expect("room for a MiB");
        assert!(said.contains("not/yet can be written"), "{said}");
        assert_eq!(dir.path().read_dir().expect("readable").count(), 0, "nothing is left behind");
        let full = disk(dir.path(), u64::MAX).expect_err("no disk is so large");
        assert!(full.starts_with("outage.journal_dir ") && full.contains("outage.journal_max_bytes is"), "{full}");
        let refused = disk(Path::new("/proc/nearside"), MIB).expect_err("nobody writes there");
        assert!(refused.starts_with("outage.journal_dir /proc/nearside: "), "{refused}");
    }

    #[test]
    fn a_port_that_is_taken_is_named() {
        let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
        let (at, any) = (taken.local_addr().expect("an address"), SocketAddr::from(([127, 0, 0, 1], 0)));
        let on = |tcp: SocketAddr, http: SocketAddr| {
            let mut config = config();
            (config.listen.tcp, config.http.listen) = (vec![tcp], vec![http]);
            ports(&config)
        };
        assert_eq!(on(any, any), Ok("127.0.0.1:0, 127.0.0.1:0 free".to_owned()));
        assert!(on(at, any).expect_err("taken").starts_with(&format!("listen.tcp {at}: Address")));
        assert!(on(any, at).expect_err("taken").starts_with(&format!("http.listen {at}: Address")));
    }
}
