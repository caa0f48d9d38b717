//! The same scripts through sidecars that do more, or have less, upstream than usual: writes that are wrapped into
//! transactions of ours, and an upstream that speaks RESP2 only. Clients must not be able to tell.

use serde_json::json;

use super::*;
use crate::support::proxy::Builder;

/// Runs a section with everything cached that can be, and fails with every line that differs.
#[track_caller]
fn hold(name: &str, args: &[&str], mode: &str, resp3: &[bool], configure: impl Fn(Builder) -> Builder) {
    let section = SECTIONS.iter().find(|s| s.name == name).expect("a section");
    let server = || Redis::builder().args(args).start();
    let (direct, upstream) = (server(), server());
    let proxy = configure(Proxy::to(&upstream).set("coherence.canary", "off")).start();
    if std::env::var_os("NEARSIDE_TEST_DIRECT").is_none() {
        eventually(PATIENCE, "its mode", || proxy.stats()["coherence"] == mode);
    }
    let mut complaints = Vec::new();
    for &resp3 in resp3 {
        let paces = if name == "large" { &[Pace::OneByOne][..] } else { &[Pace::OneByOne, Pace::Pipelined] };
        for &pace in paces {
            let run = Run { cache: Cache::All, resp3, pace };
            let sides = [Side::new(section, &direct, direct.socket()), Side::new(section, &upstream, proxy.socket())];
            // The data were cleaned past the sidecar, which nobody tells it of in these modes.
            assert!(
                std::env::var_os("NEARSIDE_TEST_DIRECT").is_some()
                    || proxy.client().cmd(&["NEARSIDE", "FLUSH"]).int() >= 0
            );
            complaints.extend(Oracle { section, run, sides, complaints: Vec::new() }.run());
        }
    }
    if std::env::var_os("NEARSIDE_TEST_DIRECT").is_none() {
        assert_eq!(proxy.stats()["coherence"], mode, "it has not left its mode");
    }
    assert!(complaints.is_empty(), "{} differ:\n{}", complaints.len(), complaints.join("\n"));
}

macro_rules! in_mode {
    ($hold:ident: $($name:ident)*) => {
        pub(super) mod $hold {
            $(#[test] fn $name() { super::$hold(stringify!($name)); })*
        }
    };
}

/// Every write is one of a transaction of ours.
fn pubsub(name: &str) {
    hold(name, &[], "pubsub", &[false, true], |b| b.set("coherence.mode", "pubsub").set("cache.commands", reads::ALL));
}

/// Every write is followed by its message.
fn pubsub_not_atomic(name: &str) {
    hold(name, &[], "pubsub", &[true], |b| b.set("coherence.mode", "pubsub").set("coherence.pubsub_atomic", false));
}

/// An upstream without HELLO, which has `pubsub` all the same.
fn resp2_upstream(name: &str) {
    hold(name, &["--rename-command", "HELLO", ""], "pubsub", &[false], |b| b.set("cache.commands", reads::ALL));
}

fn ttl(name: &str) {
    hold(name, &["--rename-command", "HELLO", ""], "ttl", &[false], |b| b.set("coherence.mode", "ttl"));
}

/// A policy that judges and paces every command, and has nothing against any.
fn under_policy(name: &str) {
    let overrides = json!([{"client": "nobody", "deny": ["@all"]}, {"user": "*", "deny": ["graph.query"]}]);
    let rate = json!([{"per_second": 1_000_000, "burst": 1_000_000}, {"per_second": 1_000_000, "on_limit": "error"}]);
    hold(name, &[], "tracking", &[false, true], |b| {
        b.set("commands.allow", json!(["@all"]))
            .set("commands.overrides", overrides.clone())
            .set("commands.rate", rate.clone())
    });
}

in_mode! { under_policy: strings keys transactions scripting blocking errors inline large }
in_mode! { pubsub: strings bitmaps keys hashes lists sets sorted_sets geo hyperloglog streams scripting transactions
blocking errors inline large }
in_mode! { pubsub_not_atomic: strings transactions errors }
in_mode! { resp2_upstream: strings keys hashes lists sorted_sets streams scripting transactions blocking errors inline }
in_mode! { ttl: strings keys transactions errors }
