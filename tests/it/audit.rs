//! `nearside audit` finds nothing where nothing is wrong, however bad the network is, and finds something as soon as one
//! rule of the protocol is missing. The second half is what makes the first one worth anything.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::symlink;
use std::process::{Child, Command, Output, Stdio};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use crate::support::proxy::Builder;
use crate::support::{PATIENCE, Proxy, Redis, Reply, eventually, temp_dir};

/// B of the audited sidecars: the shorter, the more often the lease runs out in the time there is.
const B: &str = "150ms";

/// The switch of debug builds that turns one rule off.
const BREAK: &str = "TEST_ONLY_NEARSIDE_BREAK";

/// Those that leave upstream where it is: sidecars that are started for them serve nothing older than B.
const FAULTS: &str = "stalls,cuts,kills";

/// Rules of what is done while upstream is gone.
const OUTAGE_RULES: [&str; 2] = ["max_stale", "replay"];

/// The longest that a missing rule may stay unseen. It takes a second or two where nothing else is running, the lease of
/// `pubsub` mode 2 to 17; beside other tests it has taken more than 90.
const SEEN_WITHIN: &str = "240s";

const EVERY_PROPERTY: [&str; 11] = [
    "read_your_writes",
    "sidecar_writes",
    "monotonic_reads",
    "cross_key_prefix",
    "torn_multi_key",
    "bounded_staleness",
    "expiry",
    "invented_value",
    "at_rest",
    "in_service_samples",
    "unanswered",
];

const IN_EVERY_MODE: [&str; 8] = [
    "read_your_writes",
    "sidecar_writes",
    "monotonic_reads",
    "bounded_staleness",
    "expiry",
    "invented_value",
    "at_rest",
    "unanswered",
];

fn audit(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nearside"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("NEARSIDE_")) {
        command.env_remove(name);
    }
    command.arg("audit").args(args).stdin(Stdio::null());
    command
}

/// A finished audit.
struct Audit {
    code: Option<i32>,
    stderr: String,
    report: Value,
}

impl Audit {
    fn run(command: &mut Command) -> Audit {
        Audit::of(&command.args(["--json", "-"]).output().expect("the built nearside"))
    }

    fn of(output: &Output) -> Audit {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let report = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
        Audit { code: output.status.code(), stderr: text(&output.stderr), report }
    }

    fn number(&self, path: &[&str]) -> f64 {
        path.iter().fold(&self.report, |value, name| &value[name]).as_f64().unwrap_or(0.0)
    }

    fn hits(&self) -> f64 {
        let sidecars = self.report["sidecars"].as_array().map_or(&[][..], Vec::as_slice);
        sidecars.iter().filter_map(|s| s["hits"].as_f64()).sum()
    }

    /// Runs until enough has been looked at: for so long, and if the machine was too busy with other things for that,
    /// for longer.
    fn run_enough(command: impl Fn() -> Command, seconds: u32) -> Audit {
        let run = |seconds: u32| Audit::run(command().args(["--duration", &format!("{seconds}s")]));
        let first = run(seconds);
        if first.code == Some(0) && first.hardly_looked_at().is_some() { run(seconds * 5) } else { first }
    }

    /// A property of which too little was seen to say that it holds.
    fn hardly_looked_at(&self) -> Option<&str> {
        let all = self.report["sidecars"][0]["judged"].as_array().map_or(&[][..], Vec::as_slice);
        let all = all.iter().filter_map(Value::as_str).filter(|property| *property != "unanswered");
        let little = all.into_iter().find(|property| self.number(&["checks", property]) < 5.0);
        little.or((self.number(&["reads"]) < 200.0 || self.hits() < 50.0).then_some("hits"))
    }

    /// What the first sidecar's mode promises.
    #[track_caller]
    fn assert_judged(&self, mode: &str, properties: &[&str], within_ms: [f64; 2]) {
        let sidecar = &self.report["sidecars"][0];
        assert_eq!(sidecar["coherence"], mode, "{:#}", self.report);
        assert_eq!(sidecar["judged"], serde_json::json!(properties), "{:#}", self.report);
        let said = ["announced_within_ms", "others_within_ms"].map(|name| sidecar[name].as_f64().unwrap_or(0.0));
        assert_eq!(said, within_ms);
    }

    /// Nothing wrong, and enough looked at to say so.
    #[track_caller]
    fn assert_passed(&self) {
        assert_eq!(self.code, Some(0), "{}\n{:#}", self.stderr, self.report);
        assert_eq!(self.report["verdict"], "pass");
        assert_eq!(self.hardly_looked_at(), None, "{:#}", self.report);
        let sidecars = self.report["sidecars"].as_array().expect("sidecars");
        let longest = sidecars.iter().filter_map(|s| s["others_within_ms"].as_f64()).fold(0.0, f64::max);
        assert!(self.number(&["oldest_read_ms"]) <= longest, "{:#}", self.report);
        self.assert_only_losses();
    }

    /// Clients are told of lost connections, and of nothing else.
    #[track_caller]
    fn assert_only_losses(&self) {
        let errors = self.report["errors"].as_object().expect("errors");
        let lost = |text: &&String| text.contains("NEARSIDE upstream") || text.contains("connection was closed");
        let odd: Vec<_> = errors.keys().filter(|text| !lost(text)).collect();
        assert!(odd.is_empty(), "{odd:?}");
    }
}

/// Long in `tests/run --all`.
fn lasts(short: u32, long: u32) -> u32 {
    if std::env::var_os("NEARSIDE_TEST_LONG").is_some() { long } else { short }
}

fn proxy(redis: &Redis) -> Proxy {
    sampling(redis).start()
}

/// Compares its own entries as often as it may.
fn sampling(redis: &Redis) -> Builder {
    Proxy::upstream(&redis.url()).set("coherence.max_staleness", B).set("coherence.sample_per_second", 1000)
}

fn url(proxy: &Proxy) -> String {
    format!("unix://{}", proxy.socket().display())
}

#[test]
fn a_healthy_pair_of_sidecars_passes() {
    let redis = Redis::start();
    let (one, two) = (proxy(&redis), proxy(&redis));
    let pair = ["--upstream", &redis.url(), "--through", &url(&one), "--through", &url(&two)];
    let audit = Audit::run_enough(|| audit(&pair), 3);
    audit.assert_passed();
    assert_eq!(audit.number(&["max_staleness_ms"]), 150.0, "as the sidecars say");
    audit.assert_judged("tracking", &EVERY_PROPERTY, [150.0, 150.0]);
    assert_eq!(audit.report["errors"], serde_json::json!({}), "a healthy network, and no reply but what was asked for");
    assert_eq!(redis.cmd(&["DBSIZE"]), Reply::Int(0), "it removes what it wrote");
}

/// C59, C60: readers and writers in every way there is, two sidecars, and every fault there is.
#[test]
fn every_fault_and_no_violation() {
    assert_faults_do_no_harm("1");
}

/// Clients of one sidecar on two threads, whose hits come from one L1.
#[test]
fn every_fault_and_no_violation_with_two_workers() {
    assert_faults_do_no_harm("2");
}

#[track_caller]
fn assert_faults_do_no_harm(workers: &str) {
    let redis = Redis::start();
    let spawned = ["--upstream", &redis.url(), "--spawn", "2", "--max-staleness", B, "--faults", FAULTS];
    let command = || {
        let mut command = audit(&spawned);
        command.env("NEARSIDE_COHERENCE__SAMPLE_PER_SECOND", "1000");
        command.env("NEARSIDE_WORKERS", workers).env("NEARSIDE_CACHE__COMMANDS", "[GET, MGET, GETRANGE]");
        command
    };
    let audit = Audit::run_enough(command, lasts(8, 90));
    audit.assert_passed();
    for fault in ["stalls", "delays", "splits", "cuts", "kills"] {
        assert!(audit.number(&["faults", fault]) >= 1.0, "no {fault}: {:#}", audit.report["faults"]);
    }
    assert!(audit.number(&["outdated_reads"]) > 0.0, "no stall has made a hit old: the faults are too kind");
}

/// Writes are announced by the sidecars; what is written past them shows within the cap.
#[test]
fn every_fault_and_no_violation_in_pubsub_mode() {
    let audit = assert_mode_holds("pubsub");
    audit.assert_judged("pubsub", &IN_EVERY_MODE, [150.0, 900.0]);
}

#[test]
fn every_fault_and_no_violation_in_ttl_mode() {
    let audit = assert_mode_holds("ttl");
    audit.assert_judged("ttl", &IN_EVERY_MODE, [300.0, 300.0]);
}

#[track_caller]
fn assert_mode_holds(mode: &str) -> Audit {
    let redis = Redis::start();
    let spawned = ["--upstream", &redis.url(), "--spawn", "2", "--max-staleness", B, "--faults", FAULTS];
    let command = || in_mode(audit(&spawned), mode);
    let audit = Audit::run_enough(command, lasts(8, 90));
    audit.assert_passed();
    for fault in ["stalls", "delays", "splits", "cuts", "kills"] {
        assert!(audit.number(&["faults", fault]) >= 1.0, "no {fault}: {:#}", audit.report["faults"]);
    }
    assert!(audit.number(&["oldest_read_ms"]) > 150.0, "nothing was as old as only this mode allows");
    audit
}

/// `cache.mode` goes to and fro on each of them, and nothing else is wrong: nobody is told of an error or loses a connection.
#[test]
fn switches_of_the_mode_and_no_violation() {
    let audit = assert_switches_do_no_harm("tracking", "modes");
    audit.assert_judged("tracking", &EVERY_PROPERTY, [150.0, 150.0]);
    assert_eq!(audit.report["errors"], serde_json::json!({}));
}

#[test]
#[ignore = "soak"]
fn switches_of_the_mode_and_no_violation_in_pubsub_mode() {
    let audit = assert_switches_do_no_harm("pubsub", "modes");
    // Who does not serve announces nothing.
    audit.assert_judged("pubsub", &IN_EVERY_MODE, [900.0, 900.0]);
    assert_eq!(audit.report["errors"], serde_json::json!({}));
}

#[test]
#[ignore = "soak"]
fn switches_of_the_mode_and_no_violation_in_ttl_mode() {
    let audit = assert_switches_do_no_harm("ttl", "modes");
    audit.assert_judged("ttl", &IN_EVERY_MODE, [300.0, 300.0]);
    assert_eq!(audit.report["errors"], serde_json::json!({}));
}

/// On top of a bad network: lanes are lost, slow and made while the mode changes. A minute's work for two cores.
#[test]
#[ignore = "soak"]
fn switches_of_the_mode_under_every_fault_and_no_violation() {
    let audit = assert_switches_do_no_harm("tracking", &format!("{FAULTS},modes"));
    assert!(audit.number(&["faults", "cuts"]) >= 1.0 && audit.number(&["faults", "stalls"]) >= 1.0);
}

#[track_caller]
fn assert_switches_do_no_harm(mode: &str, faults: &str) -> Audit {
    let redis = Redis::start();
    let spawned = ["--upstream", &redis.url(), "--spawn", "2", "--max-staleness", B, "--faults", faults];
    let command = || {
        let mut command = in_mode(audit(&spawned), mode);
        command.env("NEARSIDE_COHERENCE__SAMPLE_PER_SECOND", "1000");
        command
    };
    let audit = Audit::run_enough(command, lasts(8, 90));
    audit.assert_passed();
    // Each time there and back, on two sidecars, about every 2 B.
    assert!(audit.number(&["faults", "modes"]) >= 20.0, "{:#}", audit.report["faults"]);
    audit
}

/// With caps that are well apart from B, and short; and back soon when the channel is lost, for without it nothing is
/// cached.
fn in_mode(mut command: Command, mode: &str) -> Command {
    command.env("NEARSIDE_UPSTREAM__RETRY__MAX_DELAY", "200ms");
    command.env("NEARSIDE_COHERENCE__MODE", mode).env("NEARSIDE_CACHE__COMMANDS", "[GET, MGET, GETRANGE]");
    command.env("NEARSIDE_COHERENCE__TTL_CAP__PUBSUB", "900ms").env("NEARSIDE_COHERENCE__TTL_CAP__TTL", "300ms");
    command
}

/// One sidecar tracks, the other one lives by expiry: each is judged by its own promises.
#[test]
fn sidecars_in_different_modes_are_judged_each_by_its_own() {
    let redis = Redis::start();
    let one = sampling(&redis).set("coherence.mode", "ttl").set("coherence.ttl_cap.ttl", "300ms").start();
    let two = proxy(&redis);
    let pair = ["--upstream", &redis.url(), "--through", &url(&one), "--through", &url(&two)];
    let audit = Audit::run_enough(|| audit(&pair), 3);
    audit.assert_passed();
    audit.assert_judged("ttl", &IN_EVERY_MODE, [300.0, 300.0]);
    let other = &audit.report["sidecars"][1];
    assert_eq!((&other["coherence"], &other["others_within_ms"]), (&"tracking".into(), &150.into()));
    assert!(audit.number(&["checks", "cross_key_prefix"]) >= 5.0, "of the one that tracks");
}

/// Two users of one sidecar: lanes of their own, and one L1 (C66).
#[test]
fn two_users_of_one_sidecar_behind_a_relay() {
    let redis = Redis::start();
    redis.cmd(&["ACL", "SETUSER", "other", "on", ">secret", "~*", "&*", "+@all"]);
    let dir = temp_dir();
    let socket = dir.path().join("n.sock");
    let (own, other) = (format!("unix://{}", socket.display()), format!("unix://other:secret@{}", socket.display()));
    let mut child = audit(&["--upstream", &redis.url(), "--through", &own, "--through", &other])
        .args(["--relay", "127.0.0.1:0", "--faults", FAULTS, "--json", "-"])
        .args(["--duration", &format!("{}s", lasts(6, 60))])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the built nearside");
    let (relay, said) = relay_address(&mut child);
    let proxy = Proxy::upstream(&format!("redis://{relay}"))
        // A cut that a slow machine takes for an outage is answered by older values, as configured.
        .set("outage.reads", "fail")
        .set("coherence.max_staleness", B)
        .set("coherence.sample_per_second", 1000)
        .start();
    symlink(proxy.socket(), &socket).expect("a link to the socket");
    let audit = Audit::of(&child.wait_with_output().expect("its end"));
    assert_eq!(audit.code, Some(0), "{}\n{:#}", said.join().expect("no panic"), audit.report);
    assert!(audit.number(&["checks", "sidecar_writes"]) >= 5.0 && audit.hits() >= 20.0, "{:#}", audit.report);
    audit.assert_only_losses();
    assert_eq!(proxy.stat("pending_writes"), 0.0);
}

/// The first line that the audit writes says where it listens. Beside it, what it will have said at its end.
fn relay_address(child: &mut Child) -> (String, JoinHandle<String>) {
    let mut stderr = BufReader::new(child.stderr.take().expect("its stderr"));
    let mut line = String::new();
    stderr.read_line(&mut line).expect("a line");
    let address = line.split("upstream on ").nth(1).and_then(|rest| rest.split(": ").next());
    let address = address.unwrap_or_else(|| panic!("no address in {line:?}")).to_owned();
    let rest = std::thread::spawn(move || {
        let mut rest = String::new();
        stderr.read_to_string(&mut rest).expect("text");
        rest
    });
    (address, rest)
}

// ---- upstream goes and comes ----

/// Upstream is taken from one sidecar or both for some seconds, again and again, beside all other faults: nothing is read
/// that is older than `outage.max_stale`, and what was acknowledged meanwhile is there afterwards.
#[test]
fn outages_and_no_violation() {
    let audit = assert_outages_do_no_harm("all", |command| command);
    let outages = &audit.report["outages"];
    assert_eq!(outages["max_stale_ms"], 1000.0);
    assert!(audit.number(&["outages", "stale_reads"]) > 0.0, "{outages:#}");
    assert!(audit.number(&["outages", "oldest_stale_ms"]) > 150.0, "nothing was as old as only an outage allows");
    assert!(audit.number(&["outages", "queued_acknowledged"]) > 0.0, "{outages:#}");
    assert_eq!(outages["queued_found"], outages["queued_acknowledged"]);
    assert!(audit.number(&["checks", "queued_writes"]) > 0.0 && audit.number(&["checks", "recovery"]) > 0.0);
}

#[test]
#[ignore = "soak"]
fn outages_and_no_violation_in_pubsub_mode() {
    let audit = assert_outages_do_no_harm("outages", |command| in_mode(command, "pubsub"));
    assert_eq!(audit.report["outages"]["queued_found"], audit.report["outages"]["queued_acknowledged"]);
}

/// Then writes are errors, which owe nothing, and counts are judged as ever.
#[test]
fn outages_and_no_violation_where_writes_fail() {
    let audit = assert_outages_do_no_harm("outages", |mut command| {
        command.env("NEARSIDE_OUTAGE__WRITES", "fail");
        command
    });
    assert_eq!(audit.number(&["outages", "queued_acknowledged"]), 0.0);
    assert_eq!(audit.number(&["checks", "queued_writes"]), 0.0, "nothing is promised of it");
}

#[track_caller]
fn assert_outages_do_no_harm(faults: &str, set: impl Fn(Command) -> Command) -> Audit {
    let redis = Redis::start();
    let spawned = ["--upstream", &redis.url(), "--spawn", "2", "--max-staleness", B, "--faults", faults];
    let run = |seconds: u32| Audit::run(set(audit(&spawned)).args(["--duration", &format!("{seconds}s")]));
    let first = run(lasts(10, 90));
    let untested = |audit: &Audit| audit.report["untested"].as_array().is_none_or(|all| !all.is_empty());
    let too_young = |audit: &Audit| audit.number(&["outages", "oldest_stale_ms"]) <= 150.0;
    // Too little was seen to say anything: a machine that is busy with other things.
    let audit = if first.code == Some(0) && (untested(&first) || too_young(&first)) { run(50) } else { first };
    assert_eq!(audit.code, Some(0), "{}\n{:#}", audit.stderr, audit.report);
    assert_eq!(audit.report["untested"], serde_json::json!([]), "{:#}", audit.report);
    assert!(audit.number(&["faults", "outages"]) >= 1.0);
    assert!(audit.number(&["checks", "recovery"]) > 0.0);
    assert_eq!(redis.cmd(&["DBSIZE"]), Reply::Int(0), "it removes what it wrote");
    audit
}

/// What an audit was asked for and did not see is said.
#[test]
fn an_audit_without_an_outage_says_that_it_tested_none() {
    let redis = Redis::start();
    let spawned = ["--upstream", &redis.url(), "--spawn", "1", "--max-staleness", B, "--faults", "outages"];
    let output = audit(&spawned).args(["--duration", "100ms"]).output().expect("the built nearside");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    // It may have been too short to read anything, which is another thing to say.
    assert!(text.contains("UNTESTED  no outage was played") || output.status.code() == Some(3), "{text}");
}

// ---- the mutation guard ----

/// With `rule` off, violations of one of `expected` are seen, with their evidence.
#[track_caller]
fn assert_seen_without(rule: &str, expected: &[&str]) {
    assert_seen_in("tracking", rule, expected);
}

#[track_caller]
fn assert_seen_in(mode: &str, rule: &str, expected: &[&str]) {
    let redis = Redis::start();
    for _ in 0..if std::env::var_os("NEARSIDE_TEST_LONG").is_some() { 5 } else { 1 } {
        assert_seen_once(&redis, rule, expected, mode);
    }
}

#[track_caller]
fn assert_seen_once(redis: &Redis, rule: &str, expected: &[&str], mode: &str) {
    let spawned = ["--upstream", &redis.url(), "--spawn", "2", "--max-staleness", B, "--duration", SEEN_WITHIN];
    let mut command = if mode == "tracking" { audit(&spawned) } else { in_mode(audit(&spawned), mode) };
    let faults = if OUTAGE_RULES.contains(&rule) { "outages" } else { FAULTS };
    let audit = Audit::run(command.args(["--faults", faults, "--fail-fast"]).env(BREAK, rule));
    assert_eq!(audit.code, Some(1), "without {rule}: {}\n{:#}", audit.stderr, audit.report);
    assert_eq!(audit.report["verdict"], "fail");
    let seen = expected.iter().any(|property| audit.number(&["violations", property]) > 0.0);
    assert!(seen, "without {rule} one of {expected:?} was to be seen: {:#}", audit.report);
    let evidence = &audit.report["evidence"][0];
    assert!(evidence["key"].as_str().is_some_and(|key| key.starts_with("nearside:audit:")), "{evidence:#}");
    remove_kept_logs(&audit);
}

/// The sidecars' logs stay where something was found.
fn remove_kept_logs(audit: &Audit) {
    let dir = audit.stderr.lines().find_map(|line| line.strip_prefix("the sidecars' logs are in "));
    let dir = dir.expect("where the logs are");
    let log = std::fs::read_to_string(format!("{dir}/0.log")).expect("a log");
    assert!(log.contains("THE CACHE IS WRONG ON PURPOSE"), "the switch says so:\n{log}");
    std::fs::remove_dir_all(dir).expect("the directory of the logs");
}

#[test]
fn the_audit_sees_a_missing_fence() {
    assert_seen_without("fence", &["read_your_writes", "sidecar_writes", "monotonic_reads"]);
}

#[test]
fn the_audit_sees_a_missing_lease() {
    assert_seen_without("lease", &["bounded_staleness"]);
}

#[test]
fn the_audit_sees_a_missing_epoch() {
    let any =
        ["bounded_staleness", "monotonic_reads", "torn_multi_key", "cross_key_prefix", "sidecar_writes", "at_rest"];
    assert_seen_without("epoch", &any);
}

#[test]
fn the_audit_sees_missing_ends_of_own_writes() {
    assert_seen_without("begin_end", &["sidecar_writes", "read_your_writes"]);
}

#[test]
fn the_audit_sees_a_missing_token() {
    assert_seen_without("token", &["sidecar_writes", "bounded_staleness"]);
}

#[test]
fn the_audit_sees_stale_values_without_an_end() {
    assert_seen_without("max_stale", &["bounded_staleness"]);
}

#[test]
fn the_audit_sees_queued_writes_that_are_dropped() {
    assert_seen_without("replay", &["queued_writes"]);
}

/// In `pubsub` mode the lease is the channel's: without it what the other sidecar announces is missed for as long as the
/// channel is held up.
#[test]
fn the_audit_sees_a_missing_lease_in_pubsub_mode() {
    assert_seen_in("pubsub", "lease", &["bounded_staleness"]);
}

/// The message is on one connection and the reading on another, so that nothing but the token says which was first.
#[test]
fn the_audit_sees_a_missing_token_in_pubsub_mode() {
    assert_seen_in("pubsub", "token", &["sidecar_writes", "bounded_staleness", "read_your_writes"]);
}

/// A test that believes a rule to be off and is wrong proves nothing.
#[test]
fn a_rule_that_is_none_is_refused() {
    let redis = Redis::start();
    let mut proxy = Proxy::to(&redis).env(BREAK, "fences").without_waiting().start();
    assert_eq!(proxy.wait_exit(Duration::from_secs(15)).code(), Some(1));
    proxy.wait_logged("\"fences\" is not one of fence, lease, epoch, begin_end, token, unseen, max_stale, replay");
}

// ---- in service ----

/// Each sample may cost a hundredth of what is sent anyway.
fn send_other_commands(proxy: &Proxy) {
    let mut client = proxy.client();
    let words: [&[&str]; 100] = [&["STRLEN", "other"]; 100];
    client.pipeline(&words);
}

#[test]
fn a_running_sidecar_compares_its_own_entries_with_upstream() {
    let redis = Redis::start();
    let commands = ["GET", "MGET", "GETRANGE", "LRANGE", "SMEMBERS", "HGETALL"];
    let proxy = sampling(&redis).set("cache.commands", commands.to_vec()).start();
    let mut client = proxy.client();
    redis.cmd(&["SET", "there", "1"]);
    redis.cmd(&["RPUSH", "list", "1", "2"]);
    redis.cmd(&["SADD", "set", "1", "2", "a"]);
    redis.cmd(&["HSET", "hash", "1", "2"]);
    let reads: [&[&str]; 7] = [
        &["GET", "there"],
        &["GETRANGE", "there", "0", "-1"],
        &["GET", "missing"],
        &["LRANGE", "list", "0", "-1"],
        &["SMEMBERS", "set"],
        &["SMEMBERS", "missing"],
        &["HGETALL", "hash"],
    ];
    for words in reads {
        client.cmd(words);
    }
    eventually(PATIENCE, "some entries compared", || {
        send_other_commands(&proxy);
        proxy.stat("audit_checked") >= 30.0
    });
    let checked = proxy.stat("audit_checked");
    assert!(proxy.metric("nearside_audit_checked_total") >= checked, "the same counter, a moment later");
    assert_eq!(proxy.metric("nearside_audit_stale_total"), 0.0);
    assert!(proxy.metric("nearside_audit_age_seconds") > 0.0);
    let share = proxy.stat("audit_checked") / redis_commands(&redis, "strlen");
    assert!(share <= 0.02, "{share}: 1 % of what is sent anyway, its own heartbeat included");
}

fn redis_commands(redis: &Redis, name: &str) -> f64 {
    let info = redis.cmd(&["INFO", "commandstats"]).text();
    let line = info
        .lines()
        .find_map(|line| line.strip_prefix(&format!("cmdstat_{name}:calls="))?.split(',').next()?.parse().ok());
    line.expect("a count")
}

/// With one rule off there is something to find, and it is found without anybody asking for the key.
#[test]
fn a_stale_entry_is_found_in_service_counted_and_dropped() {
    let redis = Redis::start();
    redis.cmd(&["SET", "secret:key", "1"]);
    let proxy = sampling(&redis).env(BREAK, "epoch").start();
    let mut client = proxy.client();
    eventually(PATIENCE, "tracking", || proxy.stats()["coherence"] == "tracking");
    assert_eq!(client.cmd(&["GET", "secret:key"]), Reply::bulk("1"));
    eventually(PATIENCE, "an entry", || proxy.stat("entries") == 1.0);
    // Its connection is lost, and with it upstream's memory of who is to be told.
    let epoch = proxy.stat("lane_epoch");
    redis.cmd(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
    eventually(PATIENCE, "another connection", || proxy.stat("lane_epoch") > epoch);
    redis.cmd(&["SET", "secret:key", "2"]);
    eventually(PATIENCE, "the stale entry to be found", || {
        send_other_commands(&proxy);
        proxy.stat("audit_stale") == 1.0
    });
    proxy.wait_logged("a cached value differed from upstream's although nothing had invalidated it");
    assert!(!proxy.logged("secret:key"), "a key may be a secret");
    assert_eq!(client.cmd(&["GET", "secret:key"]), Reply::bulk("2"));
}

/// The answer to any command that is kept, whatever the order in which upstream may give it.
#[test]
fn a_stale_form_is_found_in_service() {
    let redis = Redis::start();
    redis.cmd(&["RPUSH", "l", "1"]);
    redis.cmd(&["SADD", "s", "1"]);
    let builder = sampling(&redis).set("cache.commands", ["LRANGE", "SMEMBERS"].as_slice());
    let proxy = builder.env(BREAK, "epoch").start();
    let mut client = proxy.client();
    eventually(PATIENCE, "tracking", || proxy.stats()["coherence"] == "tracking");
    client.cmd(&["LRANGE", "l", "0", "-1"]);
    client.cmd(&["SMEMBERS", "s"]);
    eventually(PATIENCE, "both entries", || proxy.stat("entries") == 2.0);
    let epoch = proxy.stat("lane_epoch");
    redis.cmd(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
    eventually(PATIENCE, "another connection", || proxy.stat("lane_epoch") > epoch);
    redis.cmd(&["RPUSH", "l", "2"]);
    redis.cmd(&["SADD", "s", "2"]);
    eventually(PATIENCE, "both stale entries to be found", || {
        send_other_commands(&proxy);
        proxy.stat("audit_stale") == 2.0
    });
}

// ---- exit codes ----

fn said(args: &[&str]) -> (Option<i32>, String) {
    let output = audit(args).output().expect("the built nearside");
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn arguments_that_do_not_fit_are_refused_with_2() {
    let up = ["--upstream", "redis://127.0.0.1:1"];
    for (args, wanted) in [
        (&["--spawn", "2"][..], "--upstream"),
        (&up, "nothing to audit: name sidecars with --through, or start some with --spawn"),
        (&[&up[..], &["--through", "127.0.0.1:2", "--spawn", "1"]].concat(), "not both"),
        (&[&up[..], &["--through", "127.0.0.1:2", "--faults", "stalls"]].concat(), "need a relay"),
        (&[&up[..], &["--through", "127.0.0.1:2", "--faults", "outages"]].concat(), "need a relay"),
        (&[&up[..], &["--spawn", "1", "--faults", "rain"]].concat(), "\"rain\" is not one of none, or a list of all"),
        (&[&up[..], &["--spawn", "1", "--duration", "30"]].concat(), "is not a duration; use ms, s, m or h"),
        (&[&up[..], &["--spawn", "1", "--duration", "1ms"]].concat(), "at least 100ms"),
        (&[&up[..], &["--spawn", "1", "--max-staleness", "1ms"]].concat(), "at least 10ms"),
        (&[&up[..], &["--spawn", "1", "--rate", "0"]].concat(), "0 is not in 1..=100000"),
        (&[&up[..], &["--spawn", "1", "--prefix", ""]].concat(), "--prefix must not be empty"),
        (&["--upstream", "redis://me:hunter2@:1", "--spawn", "1"], "--upstream names no host"),
        (&[&up[..], &["--through", "http://127.0.0.1"]].concat(), "--through must begin with redis:// or unix://"),
    ] {
        let (code, stderr) = said(args);
        assert_eq!(code, Some(2), "{args:?}: {stderr}");
        assert!(stderr.contains(wanted), "{args:?}: {stderr}");
        assert!(!stderr.contains("hunter2"), "{stderr}");
    }
}

#[test]
fn what_cannot_be_audited_ends_with_3() {
    let redis = Redis::start();
    let (code, stderr) = said(&["--upstream", "unix:///nowhere/at-all", "--spawn", "1"]);
    assert_eq!((code, stderr.starts_with("nearside: upstream /nowhere/at-all: ")), (Some(3), true), "{stderr}");

    let strange = Redis::start();
    let proxy = proxy(&strange);
    let (code, stderr) = said(&["--upstream", &redis.url(), "--through", &url(&proxy)]);
    assert_eq!(code, Some(3), "{stderr}");
    assert!(stderr.contains("does not lead to this upstream and database"), "{stderr}");
    let (code, stderr) = said(&["--upstream", &strange.url(), "--through", &url(&proxy), "--max-staleness", "10ms"]);
    assert_eq!(code, Some(3), "{stderr}");
    assert!(stderr.contains("less than a sidecar's own coherence.max_staleness"), "{stderr}");
}

#[test]
fn a_sidecar_that_does_not_start_is_shown_in_its_own_words() {
    let redis = Redis::start();
    let dir: TempDir = temp_dir();
    let config = dir.path().join("nearside.yaml");
    std::fs::write(&config, "cache:\n  max_bites: 1MiB\n").expect("a file");
    let config = config.display().to_string();
    let (code, stderr) = said(&["--upstream", &redis.url(), "--spawn", "1", "--config", &config]);
    assert_eq!(code, Some(3), "{stderr}");
    assert!(stderr.contains("cache.max_bites: unknown key"), "{stderr}");
}

/// Ctrl-C goes to the whole group of the terminal; the sidecars must outlive it until they have been looked at.
#[test]
fn interrupted_it_reports_what_it_has_seen() {
    use std::os::unix::process::CommandExt;
    let redis = Redis::start();
    let mut command = audit(&["--upstream", &redis.url(), "--spawn", "1", "--duration", "1h", "--max-staleness", B]);
    command.args(["--json", "-"]).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let child = command.spawn().expect("the built nearside");
    eventually(PATIENCE, "keys of the audit", || redis.cmd(&["DBSIZE"]).int() > 10);
    let group = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process_group(group, rustix::process::Signal::INT).expect("its group");
    let audit = Audit::of(&child.wait_with_output().expect("its end"));
    assert_eq!(audit.code, Some(0), "{}\n{:#}", audit.stderr, audit.report);
    assert!(audit.stderr.contains("interrupted"), "{}", audit.stderr);
    assert!(audit.number(&["checks", "at_rest"]) > 5.0);
    assert_eq!(redis.cmd(&["DBSIZE"]), Reply::Int(0), "it removes what it wrote");
}

/// However the audit ends: nobody is left who goes on writing.
#[test]
fn killed_it_takes_its_sidecars_with_it() {
    let redis = Redis::start();
    let mut command = audit(&["--upstream", &redis.url(), "--spawn", "2", "--duration", "1h", "--max-staleness", B]);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("the built nearside");
    eventually(PATIENCE, "keys of the audit", || redis.cmd(&["DBSIZE"]).int() > 10);
    let lanes = || redis.cmd(&["CLIENT", "LIST"]).text().matches("name=nearside:").count();
    assert!(lanes() > 0);
    child.kill().expect("killed");
    child.wait().expect("its end");
    eventually(PATIENCE, "the end of its sidecars", || lanes() == 0);
}

#[test]
fn the_report_is_text_for_people() {
    let redis = Redis::start();
    let proxy = proxy(&redis);
    let dir = temp_dir();
    let json = dir.path().join("report.json");
    let mut command = audit(&["--upstream", &redis.url(), "--through", &url(&proxy), "--duration", "500ms"]);
    let output = command.args(["--seed", "42", "--json"]).arg(&json).output().expect("the built nearside");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert!(text.contains("bounded_staleness") && text.ends_with("verdict   pass: 0 violations, seed 42\n"), "{text}");
    let report: Value = serde_json::from_slice(&std::fs::read(json).expect("the JSON")).expect("JSON");
    assert_eq!((&report["audit"], &report["seed"]), (&Value::from(1), &Value::from(42)));
}
