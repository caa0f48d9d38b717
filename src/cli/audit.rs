//! The flags of `nearside audit`, and what does not fit together among them.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Args;

use crate::audit::{self, Faults, Options};
use crate::config;

/// Longer than this an audit is a deployment.
const DURATION_MAX: Duration = Duration::from_secs(7 * 24 * 3600);

/// Reads the audit's own connections, so it is not the place for a load test.
const RATE_MAX: i64 = 100_000;

const AFTER_HELP: &str = "\
Examples:
  nearside audit --upstream redis://127.0.0.1:6379 --spawn 2 --faults all --duration 5m
  nearside audit --upstream redis://cache:6379 --through 127.0.0.1:6380 --through 10.0.0.7:6380
  nearside audit --upstream redis://cache:6379 --through 127.0.0.1:6380 --relay 127.0.0.1:7000 --faults stalls,cuts
      (the sidecar's upstream.url is redis://127.0.0.1:7000)

It writes below its prefix, removes what it wrote, and never flushes. --faults kills disconnects the audited sidecars
from upstream with CLIENT KILL; stalls, cuts and outages need a relay between them, which --spawn brings along. outages
take upstream away from sidecars for some seconds, and started ones then run with outage.reads: stale and
outage.writes: queue, so that what they do without it is judged. modes switches cache.mode of the audited sidecars with
NEARSIDE MODE, and leaves them in serve.

Exit codes:
  0  no violation
  1  violations, each with its evidence
  2  arguments are wrong
  3  the audit could not be carried out: it says nothing about coherence
";

// No `Debug`: a URL may hold a password. No doc comment, as with the others: clap would show it as the description.
#[derive(Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct AuditArgs {
    /// The upstream of the sidecars: redis://[user[:password]@]host[:port][/db] or unix:///path?db=0
    #[arg(long, value_name = "URL")]
    upstream: String,
    /// A sidecar to read and write through: host:port, a socket's path, or a URL with user and password; may be repeated
    #[arg(long, value_name = "ADDR")]
    through: Vec<String>,
    /// Start so many sidecars of this program, each behind a relay of its own, and audit those
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=16))]
    spawn: u8,
    /// Configuration file of the sidecars that are started
    #[arg(long, value_name = "FILE", requires = "spawn")]
    config: Option<PathBuf>,
    /// Listen here as a relay to upstream; the sidecars of --through must have it as their upstream.url
    #[arg(long, value_name = "IP:PORT", requires = "through")]
    relay: Option<SocketAddr>,
    /// How long to drive it
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = duration)]
    duration: Duration,
    /// Writers that go past all sidecars, straight to upstream
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u8).range(0..=64))]
    writers: u8,
    /// Clients of each sidecar; eight have every role
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u8).range(1..=128))]
    sessions: u8,
    /// Keys that everybody writes
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    keys: u16,
    /// Commands, or small groups of them, a second at the most, of all together
    #[arg(long, value_name = "N", default_value_t = 2000, value_parser = clap::value_parser!(u32).range(1..=RATE_MAX))]
    rate: u32,
    /// none, or a list of all (stalls,cuts,kills,outages), stalls, cuts, kills, outages, modes
    #[arg(long, value_name = "LIST", default_value = "none", value_parser = Faults::parse)]
    faults: Faults,
    /// The bound B on staleness [default: coherence.max_staleness of the sidecars]
    #[arg(long, value_name = "TIME", value_parser = bound)]
    max_staleness: Option<Duration>,
    /// Where the dice start [default: the time]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Also write the report as JSON to this file; - is standard output, in place of the text
    #[arg(long, value_name = "FILE")]
    json: Option<String>,
    /// Every key of the audit begins with this
    #[arg(long, value_name = "TEXT", default_value = "nearside:audit:")]
    prefix: String,
    /// End at the first violation
    #[arg(long)]
    fail_fast: bool,
}

fn duration(text: &str) -> Result<Duration, String> {
    config::duration(text, Duration::from_millis(100)..=DURATION_MAX)
}

fn bound(text: &str) -> Result<Duration, String> {
    config::duration(text, Duration::from_millis(10)..=DURATION_MAX)
}

impl AuditArgs {
    /// What is asked for, and where the JSON goes; or what is wrong with it.
    pub(super) fn options(self) -> Result<(Options, Option<String>), String> {
        if self.through.is_empty() && self.spawn == 0 {
            return Err("nothing to audit: name sidecars with --through, or start some with --spawn 2".to_owned());
        }
        if !self.through.is_empty() && self.spawn > 0 {
            return Err("--through and --spawn: audit running sidecars or started ones, not both".to_owned());
        }
        if self.faults.needs_relay() && self.spawn == 0 && self.relay.is_none() {
            return Err(
                "--faults: stalls, cuts and outages need a relay between sidecars and upstream; use --spawn or --relay"
                    .to_owned(),
            );
        }
        if self.prefix.is_empty() {
            return Err("--prefix must not be empty: the audit removes every key it has written".to_owned());
        }
        // Read here, not by clap, whose messages quote what is wrong: there may be a password in it.
        let address = |flag: &str, text: &str| audit::address(text).map_err(|what| format!("{flag} {what}"));
        let options = Options {
            upstream: address("--upstream", &self.upstream)?,
            through: self.through.iter().map(|text| address("--through", text)).collect::<Result<_, _>>()?,
            spawn: self.spawn.into(),
            config: self.config,
            relay: self.relay,
            duration: self.duration,
            writers: self.writers.into(),
            sessions: self.sessions.into(),
            keys: self.keys.into(),
            rate: self.rate,
            faults: self.faults,
            max_staleness: self.max_staleness,
            seed: self.seed.unwrap_or_else(any_seed),
            prefix: self.prefix,
            fail_fast: self.fail_fast,
        };
        Ok((options, self.json))
    }
}

/// Short enough to be typed again.
fn any_seed() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |d| d.as_micros() as u64 % 1_000_000)
}
