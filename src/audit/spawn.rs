//! Sidecars of the audit's own: this very program, each on a socket in a directory of its own and behind a relay of its
//! own. They are ended with the audit, whatever becomes of it.

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::relay::Relay;
use super::truth::Property;
use super::{Options, Shared};
use crate::config::{Endpoint, Url};

/// A sidecar that has not drained by then is killed.
const END_MAX: Duration = Duration::from_secs(5);

/// Of the log of a sidecar that does not start.
const LAST_LINES: usize = 5;

#[derive(Default)]
pub(super) struct Children {
    dir: Option<PathBuf>,
    all: Vec<Child>,
}

impl Children {
    pub(super) fn start(options: &Options, relays: &[Rc<Relay>]) -> Result<Children, String> {
        let mut children = Children::default();
        if options.spawn == 0 {
            return Ok(children);
        }
        let dir = std::env::temp_dir().join(format!("nearside-audit-{}-{:x}", std::process::id(), options.seed));
        make_private(&dir).map_err(|e| format!("{}: {e}", dir.display()))?;
        children.dir = Some(dir.clone());
        for (n, relay) in relays[relays.len() - options.spawn..].iter().enumerate() {
            let child = spawn(options, relay, &dir, n).map_err(|e| format!("starting a sidecar: {e}"))?;
            children.all.push(child);
        }
        Ok(children)
    }

    pub(super) fn places(&self) -> Vec<Url> {
        let socket = |n: usize| Some(self.dir.as_ref()?.join(format!("{n}.sock")));
        let paths = (0..self.all.len()).filter_map(socket);
        paths.map(|path| Url { endpoint: Endpoint::Unix(path), db: 0, username: None, password: None }).collect()
    }

    pub(super) fn has_ended(&mut self) -> bool {
        self.all.iter_mut().any(|child| !matches!(child.try_wait(), Ok(None)))
    }

    /// The end of their logs, for a message about why they are not ready.
    pub(super) fn last_words(&self) -> String {
        let mut words = String::new();
        for n in 0..self.all.len() {
            let log = self.dir.as_ref().and_then(|dir| std::fs::read_to_string(log(dir, n)).ok()).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            for line in &lines[lines.len().saturating_sub(LAST_LINES)..] {
                words.push_str(&format!("\nsidecar {n}: {line}"));
            }
        }
        words
    }

    /// A sidecar that has ended by itself is worse than any wrong answer.
    pub(super) fn check(&mut self, shared: &Shared) {
        let ended = self.has_ended();
        let note = || format!("a sidecar has ended{}", self.last_words());
        if !self.all.is_empty() {
            shared.truth.borrow_mut().check_at_large(Property::Unanswered, "", !ended, note);
        }
    }

    /// Ends them; their logs stay if there is something to look for in them.
    pub(super) fn end(&mut self, keep: bool, say: &dyn Fn(&str)) {
        self.terminate();
        if let Some(dir) = self.dir.as_ref().filter(|_| keep) {
            say(&format!("the sidecars' logs are in {}", dir.display()));
            self.dir = None;
        }
    }

    fn terminate(&mut self) {
        use rustix::process::{Pid, Signal, kill_process};
        for child in &self.all {
            if let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
                // One that has ended is not reaped yet, so the number is still its own.
                let _ = kill_process(pid, Signal::TERM);
            }
        }
        let end = Instant::now() + END_MAX;
        for child in &mut self.all {
            while matches!(child.try_wait(), Ok(None)) && Instant::now() < end {
                std::thread::sleep(Duration::from_millis(5));
            }
            let _ = child.kill();
            let _ = child.wait();
        }
        self.all.clear();
    }
}

impl Drop for Children {
    fn drop(&mut self) {
        self.terminate();
        if let Some(dir) = &self.dir {
            let _ = std::fs::remove_dir_all(dir);
        }
    }
}

fn make_private(dir: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().mode(0o700).create(dir)
}

fn log(dir: &Path, n: usize) -> PathBuf {
    dir.join(format!("{n}.log"))
}

/// Everything but addresses is as the environment and `--config` have it, so it is the user's own configuration that is
/// audited.
fn spawn(options: &Options, relay: &Relay, dir: &Path, n: usize) -> std::io::Result<Child> {
    let mut command = Command::new(std::env::current_exe()?);
    // Whatever becomes of the audit, nobody is left who writes what it has written.
    command.args(["serve", "--end-with-parent", "--http", "off", "--unix"]).arg(dir.join(format!("{n}.sock")));
    if let Some(config) = &options.config {
        command.arg("--config").arg(config);
    }
    // Not as arguments: a password in it would be shown by ps.
    command.env("NEARSIDE_UPSTREAM__URL", url(options, relay));
    command.env("NEARSIDE_LISTEN__TCP", "[]").env("NEARSIDE_LISTEN__DRAIN_DELAY", "0").env("NO_COLOR", "1");
    outage(&mut command, options);
    if let Some(bound) = options.max_staleness {
        command.env("NEARSIDE_COHERENCE__MAX_STALENESS", format!("{}ms", bound.as_millis()));
    }
    // A group of its own: Ctrl-C is for the audit, which then looks at the sidecars once more before it ends them.
    command.process_group(0);
    let log = File::create(log(dir, n))?;
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn()
}

/// Without outages nothing is served that is older than B. With them they are short, and what the sidecar does in them is to
/// be seen within them; who sets one of these in the environment has it audited as it is.
fn outage(command: &mut Command, options: &Options) {
    if !options.faults.outages {
        // A slow machine may take a cut for more than that.
        command.env("NEARSIDE_OUTAGE__READS", "fail");
        return;
    }
    let bound = options.max_staleness.unwrap_or(Duration::from_secs(1));
    let max_stale = format!("{}ms", (bound * 4).max(Duration::from_secs(1)).as_millis());
    // Longer than any stall that is played (3 B), and than a machine that is busy with other things keeps the audit's relay from
    // running: with 1 s, at a load of 20 on each core, sidecars rightly held an upstream for gone that nobody had touched.
    let silence = format!("{}ms", (bound * 4).max(Duration::from_secs(4)).as_millis());
    for (name, value) in [
        ("NEARSIDE_OUTAGE__READS", "stale"),
        ("NEARSIDE_OUTAGE__MAX_STALE", &max_stale),
        ("NEARSIDE_OUTAGE__WRITES", "queue"),
        ("NEARSIDE_UPSTREAM__STALL_TIMEOUT", &silence),
        ("NEARSIDE_UPSTREAM__RETRY__MAX_DELAY", "200ms"),
    ] {
        if std::env::var_os(name).is_none() {
            command.env(name, value);
        }
    }
}

fn url(options: &Options, relay: &Relay) -> String {
    let Url { db, username, password, .. } = &options.upstream;
    let user = username.as_deref().map(escaped).unwrap_or_default();
    let login = password.as_ref().map(|p| format!("{user}:{}@", escaped(p.expose()))).unwrap_or_default();
    format!("redis://{login}{}/{db}", relay.address)
}

/// Percent codes for everything that is not plainly a letter or a digit.
fn escaped(text: &str) -> String {
    text.bytes()
        .map(|b| if b.is_ascii_alphanumeric() { char::from(b).to_string() } else { format!("%{b:02X}") })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_survives_the_url() {
        let odd = "p@ss/w:rd?%41é";
        let url = crate::config::parse_url(&format!("redis://{}:{}@h:1/2", escaped("üser"), escaped(odd))).unwrap();
        assert_eq!(url.username.as_deref(), Some("üser"));
        assert_eq!(url.password.unwrap().expose(), odd);
        assert_eq!(url.db, 2);
    }
}
