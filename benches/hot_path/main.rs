//! Guards the hot path: counts the instructions that a request costs in user space, under valgrind's callgrind, and fails
//! where a count has grown beyond what `hot_path.counts` allows. Counts do not depend on how busy the machine is, so a
//! small change shows that no clock would see. `benches/instructions` runs it and says how.
//!
//! Each scenario is a process of its own. It checks every byte that leaves the sidecar against what must leave it, so that
//! a count is of the work that its name says; what prepares and checks a round is not counted.

mod work;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use work::{MEASURED, SCENARIOS, Scenario};

/// A count that has grown by more is a failure. What a change elsewhere does to inlining stays below it, as a rule.
const GROWTH_ALLOWED: f64 = 0.03;

const COUNTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/hot_path.counts");

/// What following keys and slow commands may cost a hit.
const OBSERVED: f64 = 1.05;

/// What a hit may cost in an outage: no more than in normal running, as far as two runs can tell.
const STALE: f64 = 1.03;

/// What being ready to serve in outages may cost a hit while there is none: nothing, as far as two runs on a busy machine
/// can tell.
const READY: f64 = 1.05;

/// Pairs of which the second may cost so many times the first: what a hit costs must not depend on how many rules there are,
/// hardly on what is observed, and neither on an outage nor on being ready for one.
const RATIOS: &[(&str, &str, f64)] = &[
    ("rule_1", "rule_1000", 1.1),
    ("hit_1_off", "hit_1", OBSERVED),
    ("hit_64_off", "hit_64", OBSERVED),
    ("mget_off", "mget_10", OBSERVED),
    ("hit_64", "hit_stale_64", STALE),
    ("mget_10", "mget_stale", STALE),
    ("hit_64_fail", "hit_64", READY),
];

/// So often a scenario is run whose count is too high, before that is believed.
const RUNS_MAX: usize = 5;

/// Instructions per request, by scenario.
type Counts = BTreeMap<String, f64>;

struct Options {
    accept: bool,
    profile: bool,
    names: Vec<String>,
}

fn main() -> ExitCode {
    let mut args: Vec<String> = std::env::args().skip(1).collect();
    if let [flag, name] = &args[..]
        && flag == "--measure"
    {
        work::measure(SCENARIOS.iter().find(|s| s.name == name).expect("a scenario"));
        return ExitCode::SUCCESS;
    }
    let mut flag = |name: &str| {
        let before = args.len();
        args.retain(|arg| arg != name);
        args.len() < before
    };
    let (accept, profile) = (flag("--accept"), flag("--profile"));
    match guard(&Options { accept, profile, names: args }) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(why) => {
            eprintln!("hot_path: {why}");
            ExitCode::from(2)
        }
    }
}

/// False where a count has grown too much.
fn guard(options: &Options) -> Result<bool, String> {
    let chosen = chosen(&options.names)?;
    let mut counts = read_counts()?;
    let mut counted = Counts::new();
    let mut good = true;
    println!("{:<12} {:>9} {:>9}  change   instructions per request", "", "kept", "now");
    for scenario in &chosen {
        let kept = counts.get(scenario.name).copied();
        let now = least(scenario, options, |now| options.accept || !grown_too_much(kept, now))?;
        counts.insert(scenario.name.to_owned(), now);
        counted.insert(scenario.name.to_owned(), now);
        let grown = !options.accept && grown_too_much(kept, now);
        good &= !grown;
        println!("{}", line(scenario, kept, now, grown));
    }
    for (base, other, most) in RATIOS {
        if let (Some(&below), Some(&now)) = (counted.get(*base), counted.get(*other)) {
            let scenario = chosen.iter().find(|s| s.name == *other);
            let now = match scenario.filter(|_| now / below > *most) {
                Some(scenario) => now.min(least(scenario, options, |now| now / below <= *most)?),
                None => now,
            };
            let ratio = now / below;
            let grown = ratio > *most;
            good &= !grown;
            let verdict = if grown { "  <-- too much" } else { "" };
            println!("{other} / {base}: {ratio:.3}, at most {most}{verdict}");
        }
    }
    if options.accept {
        return write_counts(&counts).map(|()| true);
    }
    if !good {
        println!(
            "\nFAILED: a count is new, has grown by more than {:.0} %, or is too far above another. `--profile NAME` says where; counts that are\n\
             worth what they buy are kept by `benches/instructions --accept`.",
            GROWTH_ALLOWED * 100.0
        );
    }
    Ok(good)
}

fn chosen(names: &[String]) -> Result<Vec<&'static Scenario>, String> {
    if let Some(odd) = names.iter().find(|n| !SCENARIOS.iter().any(|s| s.name.contains(n.as_str()))) {
        let all: Vec<&str> = SCENARIOS.iter().map(|s| s.name).collect();
        return Err(format!("no scenario has {odd} in its name; there are {}", all.join(", ")));
    }
    let wanted = |s: &&Scenario| names.is_empty() || names.iter().any(|n| s.name.contains(n.as_str()));
    Ok(SCENARIOS.iter().filter(wanted).collect())
}

/// A scenario nobody has kept a count of is not guarded.
fn grown_too_much(kept: Option<f64>, now: f64) -> bool {
    kept.is_none_or(|kept| now > kept * (1.0 + GROWTH_ALLOWED))
}

fn line(scenario: &Scenario, kept: Option<f64>, now: f64, grown: bool) -> String {
    let (kept, change) = match kept {
        Some(kept) => (format!("{kept:.0}"), format!("{:+.2} %", (now / kept - 1.0) * 100.0)),
        None => ("-".to_owned(), "new".to_owned()),
    };
    let verdict = if grown { "  <-- too much" } else { "" };
    format!("{:<12} {kept:>9} {now:>9.0} {change:>8}  {}{verdict}", scenario.name, scenario.what)
}

/// The least of a few runs, if the first one will not do: moka does its housekeeping by the clock, so a run has more of it or
/// less, which is no request's doing.
fn least(scenario: &Scenario, options: &Options, will_do: impl Fn(f64) -> bool) -> Result<f64, String> {
    let mut least = count(scenario, options.profile)?;
    for _ in 1..RUNS_MAX {
        if will_do(least) {
            break;
        }
        least = least.min(count(scenario, options.profile)?);
    }
    Ok(least)
}

/// Runs one scenario under callgrind.
fn count(scenario: &Scenario, keep: bool) -> Result<f64, String> {
    let profile = profile_of(scenario);
    let own = std::env::current_exe().map_err(|e| format!("this program's own path: {e}"))?;
    let run = Command::new("valgrind")
        .args(["--tool=callgrind", "--quiet", &format!("--toggle-collect={MEASURED}")])
        .arg(format!("--callgrind-out-file={}", profile.display()))
        .args([own.as_os_str(), "--measure".as_ref(), scenario.name.as_ref()])
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .output()
        .map_err(|e| format!("valgrind cannot be run (on Debian: apt-get install valgrind): {e}"))?;
    if !run.status.success() {
        return Err(format!("{}: {}\n{}", scenario.name, run.status, String::from_utf8_lossy(&run.stderr)));
    }
    let text = fs::read_to_string(&profile).map_err(|e| format!("{}: {e}", profile.display()))?;
    let total = text.lines().find_map(|l| l.strip_prefix("totals: ")?.trim().parse::<u64>().ok());
    if keep {
        println!("callgrind_annotate --inclusive=yes {}", profile.display());
    } else {
        fs::remove_file(&profile).map_err(|e| format!("{}: {e}", profile.display()))?;
    }
    match total {
        Some(total) if total > 0 => Ok(total as f64 / scenario.requests() as f64),
        _ => Err(format!("{}: callgrind has not seen {MEASURED}", scenario.name)),
    }
}

/// Beside the program: below `target`.
fn profile_of(scenario: &Scenario) -> PathBuf {
    let own = std::env::current_exe().unwrap_or_default();
    let dir = own.parent().unwrap_or(Path::new("."));
    dir.join(format!("hot_path.{}.callgrind", scenario.name))
}

fn read_counts() -> Result<Counts, String> {
    let text = match fs::read_to_string(COUNTS) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Counts::new()),
        Err(e) => return Err(format!("{COUNTS}: {e}")),
    };
    let lines = text.lines().filter(|line| !line.starts_with('#') && !line.trim().is_empty());
    lines.map(|line| parse(line).ok_or_else(|| format!("{COUNTS}: not `name count`: {line}"))).collect()
}

fn parse(line: &str) -> Option<(String, f64)> {
    let (name, count) = line.split_once(' ')?;
    Some((name.to_owned(), count.trim().parse().ok()?))
}

/// In the order of the scenarios; what is no scenario any more goes.
fn write_counts(counts: &Counts) -> Result<(), String> {
    let mut text = "# Instructions per request on x86_64, as `benches/instructions --accept` found them.\n".to_owned();
    for scenario in SCENARIOS {
        if let Some(count) = counts.get(scenario.name) {
            let _ = writeln!(text, "{:<12} {count:>10.1}", scenario.name);
        }
    }
    fs::write(COUNTS, text).map_err(|e| format!("{COUNTS}: {e}"))
}
