//! `nearside preflight`: one line a check, and an exit code for scripts. What it says of a key prefix is in `prefix/tools`.

use std::net::TcpListener;
use std::process::Command;

use crate::support::{Redis, Reply, temp_dir};

/// What it prints, and its exit code. It listens where nobody else does unless `args` say otherwise.
pub(crate) fn preflight(args: &[&str], vars: &[(&str, &str)]) -> (String, Option<i32>) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nearside"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("NEARSIDE_")) {
        command.env_remove(name);
    }
    let mut all = vec!["preflight"];
    for (flag, at) in [("--listen", "127.0.0.1:0"), ("--http", "127.0.0.1:0")] {
        if !args.contains(&flag) {
            all.extend([flag, at]);
        }
    }
    let output = command.args(all).args(args).envs(vars.iter().copied()).output().expect("the built nearside");
    (String::from_utf8(output.stdout).expect("text"), output.status.code())
}

fn line<'t>(said: &'t str, check: &str) -> &'t str {
    said.lines()
        .find(|line| line.split_whitespace().next() == Some(check))
        .unwrap_or_else(|| panic!("{check} in {said}"))
}

#[test]
fn a_right_that_the_user_lacks_is_named_and_nothing_is_carried_out() {
    let redis = Redis::builder().tcp().start();
    let mut channel = redis.client();
    channel.cmd(&["SUBSCRIBE", "nearside:invalidate"]);
    let url = |user: &str| format!("redis://{user}:pw@{}", redis.address());
    for (user, rules) in [("all", "+@all &*"), ("mute", "+@all resetchannels"), ("blind", "+@all -pttl &*")] {
        let words = ["ACL", "SETUSER", user, "on", ">pw", "~*"].into_iter().chain(rules.split(' '));
        assert_eq!(redis.cmd(&words.collect::<Vec<_>>()), Reply::ok());
    }
    let (said, code) = preflight(&["--upstream", &url("all")], &[]);
    assert!(line(&said, "rights").contains("ok   user all may GET, PTTL, and PUBLISH"), "{said}");
    assert_eq!(code, Some(0), "{said}");
    let (said, code) = preflight(&["--upstream", &url("mute")], &[]);
    let rights = line(&said, "rights");
    assert!(rights.contains("FAIL user mute: PUBLISH: NOPERM") && rights.contains("; SUBSCRIBE: NOPERM"), "{said}");
    assert_eq!(code, Some(1));
    let (said, _) = preflight(&["--upstream", &url("blind")], &[]);
    assert!(line(&said, "rights").contains("FAIL user blind: PTTL: NOPERM"), "{said}");
    // Nobody has heard anything, and no key is there.
    redis.cmd(&["PUBLISH", "nearside:invalidate", "the only one"]);
    assert_eq!(channel.frame().items()[2], Reply::bulk("the only one"));
    assert_eq!(redis.cmd(&["DBSIZE"]), Reply::Int(0));
}

#[test]
fn a_taken_port_and_a_journal_that_cannot_be_are_named() {
    let redis = Redis::builder().tcp().start();
    let url = format!("redis://{}", redis.address());
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let at = taken.local_addr().expect("an address").to_string();
    let (said, code) = preflight(&["--upstream", &url, "--listen", &at], &[]);
    assert!(line(&said, "ports").contains(&format!("FAIL listen.tcp {at}: Address already in use")), "{said}");
    assert_eq!(code, Some(1));
    let dir = temp_dir();
    let journal = |dir: &str| preflight(&["--upstream", &url], &[("NEARSIDE_OUTAGE__JOURNAL_DIR", dir)]);
    let (said, code) = journal(&dir.path().display().to_string());
    assert!(line(&said, "disk").contains(" ok ") && code == Some(0), "{said}");
    let (said, code) = journal("/proc/nearside");
    assert!(line(&said, "disk").contains("FAIL outage.journal_dir /proc/nearside: ") && code == Some(1), "{said}");
}

#[test]
fn without_an_upstream_there_is_still_this_host() {
    let (said, code) = preflight(&[], &[]);
    assert!(line(&said, "upstream").contains("ok   embedded"), "{said}");
    assert!(line(&said, "memory").contains("local.max_bytes 256 MiB"), "{said}");
    assert_eq!((said.lines().count(), code), (3, Some(0)), "{said}");
}
