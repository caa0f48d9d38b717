//! The command line: from arguments to an exit code. Runs on the main thread, before any other exists. It decides what
//! to do and how it ends; serving is `app`'s, what a setting means is `config`'s.

mod audit;
mod checks;
mod explain;
mod health;
mod preflight;
mod top;

use std::{ffi::OsString, io::Write as _, process::ExitCode};

use clap::{Args, Parser, Subcommand};

use crate::{
    app,
    audit::Options,
    config::{self, Config, Layers, Log, LogFormat, Overrides},
    live::Origin,
    observe::log::LogLevel,
};

/// Something failed while running: a port is taken, upstream's certificate is wrong, the process is not ready.
const RUNTIME_FAILURE: u8 = 1;

/// Arguments or configuration are wrong; starting again cannot help. The same number as clap's own for usage errors.
const WRONG_CONFIGURATION: u8 = 2;

/// An audit found nothing out, good or bad.
const NOTHING_PROVED: u8 = 3;

/// Runs `nearside` with the process's arguments and environment.
pub fn main() -> ExitCode {
    ExitCode::from(run(std::env::args_os()))
}

fn run(args: impl Iterator<Item = OsString>) -> u8 {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version arrive here too; a closed pipe behind them is nobody's error.
            let _ = error.print();
            return if error.use_stderr() { WRONG_CONFIGURATION } else { 0 };
        }
    };
    match cli.command {
        Some(Command::Health(args)) => ask_health(&args),
        Some(Command::Top(args)) => watch(&args),
        Some(Command::Explain(args)) => explain(&args),
        Some(Command::Preflight(args)) => preflight(&args.overrides()),
        Some(Command::Audit(args)) => match args.options() {
            Ok((options, json)) => prove(options, json.as_deref()),
            Err(what) => complain(&what, WRONG_CONFIGURATION),
        },
        Some(Command::Serve(args)) => serve(args),
        None => serve(cli.serve),
    }
}

const AFTER_HELP: &str = "\
Every setting of the configuration file is also an environment variable: NEARSIDE_ in front, two underscores for a dot, \
lists as YAML. Flags win over the environment, the environment over the file. Sizes are bytes or KiB, MiB, GiB; \
durations are ms, s, m, h.

Examples:
  nearside
  nearside --upstream redis://127.0.0.1:6379
  nearside --upstream unix:///run/redis.sock?db=0 --listen 127.0.0.1:6380 --unix /run/nearside.sock
  nearside --config config/nearside.yaml --check-config
  NEARSIDE_UPSTREAM__URL=redis://cache:6379 NEARSIDE_CACHE__MAX_BYTES=64MiB nearside
  nearside health --url http://127.0.0.1:9380
  nearside health --checks
  nearside top
  nearside explain GET session:7:abc
  nearside explain --config config/session-store.yaml GET session:7:abc
  nearside preflight --config config/nearside.yaml
  nearside audit --upstream redis://127.0.0.1:6379 --spawn 2 --faults all

Exit codes:
  0  ended as asked (also: configuration valid, process ready)
  1  failed while running (also: not ready, a failed check, violations found)
  2  arguments or configuration are wrong
  3  an audit could not be carried out
";

/// A Redis-protocol caching sidecar: a coherent local cache in front of Redis or Valkey.
#[derive(Parser)]
#[command(name = "nearside", version, after_help = AFTER_HELP, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    serve: ServeArgs,
}

#[derive(Subcommand)]
enum Command {
    /// Serve clients until SIGTERM; what `nearside` without a command does
    Serve(ServeArgs),
    /// Ask a running process whether it is ready, for probes and people
    Health(HealthArgs),
    /// Watch a running process in this terminal: rates, latencies, hot keys, rules, alerts; q quits
    Top(top::TopArgs),
    /// Say what a running process, or a configuration file, makes of a command: which rule decides, and why
    Explain(explain::ExplainArgs),
    /// Ask upstream what a sidecar with this configuration would meet; exit 1 where a check fails
    Preflight(ServeArgs),
    /// Prove from outside that sidecars serve nothing they should not, with faults if you like
    Audit(Box<audit::AuditArgs>),
}

// No `Debug`: an upstream URL may hold a password. No doc comment either: clap would show it in place of the program's own line.
#[derive(Args)]
struct ServeArgs {
    /// Configuration file (YAML) [env: NEARSIDE_CONFIG]
    #[arg(long, value_name = "FILE")]
    config: Option<String>,
    /// Address for clients, ip:port; may be repeated; port 0 takes a free one [default: 127.0.0.1:6380 and [::1]:6380]
    #[arg(long, value_name = "ADDR")]
    listen: Option<Vec<String>>,
    /// Unix socket for clients, beside the addresses
    #[arg(long, value_name = "PATH")]
    unix: Option<String>,
    /// Upstream: redis://[user[:password]@]host[:port][/db] or unix:///path?db=0; `embedded` for the in-memory engine, which
    /// is also what serves where neither this nor a configuration file is given
    #[arg(long, value_name = "URL")]
    upstream: Option<String>,
    /// Address of the side port (metrics, health); may be repeated; `off` for none [default: 127.0.0.1:9380]
    #[arg(long, value_name = "ADDR")]
    http: Option<Vec<String>>,
    /// Threads that serve clients: a number, or `auto` for as many as the CPU limit allows, at most 4 [default: 1]
    #[arg(long, value_name = "N")]
    workers: Option<String>,
    /// text or json, on standard error [default: text]
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<String>,
    /// Check the configuration and exit: 0 when it is valid, 2 when it is not
    #[arg(long)]
    check_config: bool,
    /// Print the resolved configuration as YAML, without secrets, and exit
    #[arg(long, conflicts_with = "check_config")]
    print_config: bool,
    /// End when the process that has started this one does, however that ends. For `nearside audit`
    #[arg(long, hide = true)]
    end_with_parent: bool,
}

#[derive(Args)]
struct HealthArgs {
    /// Side port to ask [default: the first address of http.listen]
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// Configuration file that names http.listen [env: NEARSIDE_CONFIG]
    #[arg(long, value_name = "FILE")]
    config: Option<String>,
    /// Ask for every check instead, and print a line for each, for people; exit 1 where the state is critical
    #[arg(long)]
    checks: bool,
}

impl ServeArgs {
    fn overrides(self) -> Overrides {
        let http = self.http.map(|list| if list == ["off"] { Vec::new() } else { list });
        let mut overrides = Overrides::default();
        overrides.file(self.config);
        overrides.list("--listen", "listen.tcp", self.listen);
        overrides.value("--unix", "listen.unix", self.unix);
        overrides.value("--upstream", "upstream.url", self.upstream);
        overrides.list("--http", "http.listen", http);
        overrides.value("--workers", "workers", self.workers);
        overrides.value("--log-format", "log.format", self.log_format);
        overrides
    }
}

fn serve(args: ServeArgs) -> u8 {
    let (check, print) = (args.check_config, args.print_config);
    if args.end_with_parent
        && let Err(error) = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::TERM))
    {
        return complain(&format!("--end-with-parent: {error}"), RUNTIME_FAILURE);
    }
    let layers = Layers::new(args.overrides(), environment());
    let loaded = layers.load();
    let (config, warnings) = match loaded.result {
        Ok(valid) => valid,
        Err(error) => return complain(&error, WRONG_CONFIGURATION),
    };
    if check || print {
        for warning in &warnings {
            say_aside(&format!("warning: {warning}"));
        }
        let text = if print { config::yaml(&config) } else { "configuration is valid\n".to_owned() };
        return say(&text);
    }
    let level = start_logging(&config.log);
    start(config, warnings, Origin { layers: layers.into(), digest: loaded.digest, level })
}

fn start(config: Config, warnings: Vec<String>, origin: Origin) -> u8 {
    match app::serve(config, warnings, origin) {
        Ok(()) => 0,
        Err(error) => {
            tracing::error!("{error}");
            RUNTIME_FAILURE
        }
    }
}

fn start_logging(log: &Log) -> LogLevel {
    LogLevel::start(log.level, log.format == LogFormat::Json)
}

fn ask_health(args: &HealthArgs) -> u8 {
    let target = match health_target(args) {
        Ok(target) => target,
        Err(error) => return complain(&error, WRONG_CONFIGURATION),
    };
    if args.checks {
        return tell_checks(&target);
    }
    match health::ask(&target) {
        Ok(answer) => {
            let printed = say(&format!("{}\n", answer.body.trim_end()));
            if answer.status == 200 { printed } else { RUNTIME_FAILURE }
        }
        Err(error) => complain(&format!("{target}: {error}"), RUNTIME_FAILURE),
    }
}

/// The state with all its checks.
fn tell_checks(target: &health::Target) -> u8 {
    let told =
        health::ask(&target.path(checks::PATH)).map_err(|e| e.to_string()).and_then(|answer| checks::read(&answer));
    match told {
        Ok(checks) => {
            let printed = say(&checks.lines());
            if checks.is_critical() { RUNTIME_FAILURE } else { printed }
        }
        Err(why) => complain(&format!("{}{}: {why}", target.place(), checks::PATH), RUNTIME_FAILURE),
    }
}

fn watch(args: &top::TopArgs) -> u8 {
    let asked = HealthArgs { url: args.url.clone(), config: args.config.clone(), checks: false };
    let target = match health_target(&asked) {
        Ok(target) => target,
        Err(error) => return complain(&error, WRONG_CONFIGURATION),
    };
    if args.once {
        let columns = std::env::var("COLUMNS").ok().and_then(|text| text.parse().ok()).filter(|n| *n >= top::NARROWEST);
        return match top::once(&target, columns) {
            Ok(frame) => say(&frame),
            Err(error) => complain(&error, RUNTIME_FAILURE),
        };
    }
    match top::live(target) {
        Ok(()) => 0,
        Err(error @ top::TopError::NoTerminal) => complain(&error, WRONG_CONFIGURATION),
        Err(error) => complain(&error, RUNTIME_FAILURE),
    }
}

fn explain(args: &explain::ExplainArgs) -> u8 {
    if !args.asks() {
        return match args.by_file(environment()) {
            Ok(lines) => say(&lines),
            Err(what) => complain(&what, WRONG_CONFIGURATION),
        };
    }
    let target = match health_target(&HealthArgs { url: args.url.clone(), config: None, checks: false }) {
        Ok(target) => target.at("/api/v1/config"),
        Err(error) => return complain(&error, WRONG_CONFIGURATION),
    };
    let answer = match health::ask(&target) {
        Ok(answer) if answer.status == 200 => args.by_answer(&target.to_string(), &answer.body),
        Ok(answer) => Err(format!("{target}: status {}", answer.status)),
        Err(error) => Err(format!("{target}: {error}; --config FILE explains without a running process")),
    };
    match answer {
        Ok(lines) => say(&lines),
        Err(what) => complain(&what, RUNTIME_FAILURE),
    }
}

fn preflight(overrides: &Overrides) -> u8 {
    let (config, _) = match config::load(overrides, environment()) {
        Ok(loaded) => loaded,
        Err(error) => return complain(&error, WRONG_CONFIGURATION),
    };
    match preflight::run(&config) {
        Ok(checks) => {
            let printed = say(&checks.iter().map(preflight::Check::line).collect::<String>());
            if checks.iter().any(preflight::Check::failed) { RUNTIME_FAILURE } else { printed }
        }
        Err(error) => complain(&error, RUNTIME_FAILURE),
    }
}

fn prove(options: Options, json: Option<&str>) -> u8 {
    let report = match crate::audit::run(options, &say_aside) {
        Ok(report) => report,
        Err(why) => return complain(&why, NOTHING_PROVED),
    };
    let printed = match json {
        Some("-") => say(&report.json()),
        Some(path) => match std::fs::write(path, report.json()) {
            Ok(()) => say(&report.text()),
            Err(e) => complain(&format!("{path}: {e}"), NOTHING_PROVED),
        },
        None => say(&report.text()),
    };
    if report.violations() > 0 { RUNTIME_FAILURE } else { printed }
}

fn health_target(args: &HealthArgs) -> Result<health::Target, String> {
    if let Some(url) = &args.url {
        return health::Target::from_url(url).map_err(|what| format!("--url: {what}"));
    }
    let mut overrides = Overrides::default();
    overrides.file(args.config.clone());
    let listen = config::http_listen(&overrides, environment()).map_err(|e| e.to_string())?;
    let first = listen.first().filter(|address| address.port() != 0);
    let address = first.ok_or("http.listen names no address with a port; give --url")?;
    Ok(health::Target::from_listener(*address))
}

/// Names or values that are not UTF-8 cannot be settings; they are passed on with replacement characters, so that a
/// setting among them is refused with its name.
fn environment() -> impl Iterator<Item = (String, String)> {
    let text = |s: OsString| s.to_string_lossy().into_owned();
    std::env::vars_os().map(move |(name, value)| (text(name), text(value)))
}

fn complain(error: &dyn std::fmt::Display, code: u8) -> u8 {
    for line in error.to_string().lines() {
        say_aside(&format!("nearside: {line}"));
    }
    code
}

fn say_aside(line: &str) {
    // With standard error closed there is nobody left to tell.
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Printing what was asked for is the whole job of these commands, so a failure to print is a failure.
fn say(text: &str) -> u8 {
    let mut out = std::io::stdout();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => 0,
        Err(_) => RUNTIME_FAILURE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(args: &[&str]) -> Cli {
        Cli::try_parse_from([&["nearside"], args].concat()).unwrap()
    }

    #[test]
    fn the_definition_is_consistent() {
        <Cli as clap::CommandFactory>::command().debug_assert();
    }

    #[test]
    fn flags_work_with_and_without_the_command() {
        let bare = parsed(&["--upstream", "redis://h"]);
        assert_eq!(bare.serve.upstream.as_deref(), Some("redis://h"));
        let Some(Command::Serve(args)) = parsed(&["serve", "--listen", "a", "--listen", "b"]).command else { panic!() };
        assert_eq!(args.listen.unwrap(), ["a", "b"]);
    }

    #[test]
    fn flags_become_settings() {
        let args = [
            "--upstream",
            "redis://h/3",
            "--listen",
            "127.0.0.1:0",
            "--unix",
            "/tmp/s",
            "--http",
            "off",
            "--workers",
            "1",
            "--log-format",
            "json",
        ];
        let (config, _) = config::load(&parsed(&args).serve.overrides(), std::iter::empty()).unwrap();
        assert_eq!(config.upstream.db, 3);
        assert_eq!(config.listen.tcp, ["127.0.0.1:0".parse().unwrap()]);
        assert_eq!(config.listen.unix.as_deref(), Some(std::path::Path::new("/tmp/s")));
        assert!(config.http.listen.is_empty());
        assert_eq!(config.log.format, LogFormat::Json);
    }
}
