//! Upstream's name has no address any more, or another one. The sidecar has a hosts file of its own, which the test writes.

use std::path::PathBuf;

use tempfile::TempDir;

use super::{quick, refused, until_answered, wait_back, wait_gone, warm};
use crate::support::{PATIENCE, Proxy, Redis, Reply, eventually, holds, proxy};

const NAME: &str = "cache.nearside.test";

struct Names {
    dir: TempDir,
}

impl Names {
    /// None, with a line that says so, where a process cannot be given a hosts file of its own.
    fn with(address: Option<&str>) -> Option<Names> {
        let has = proxy::has_hosts();
        if !holds(has, "a hosts file of the sidecar's own (needs root, unshare and /etc/nsswitch.conf)") {
            return None;
        }
        let names = Names { dir: TempDir::new().expect("a directory") };
        names.lead_to(address);
        Some(names)
    }

    fn file(&self) -> PathBuf {
        self.dir.path().join("hosts")
    }

    /// Written in place: another file would not be the one that is mounted.
    fn lead_to(&self, address: Option<&str>) {
        let line = address.map_or_else(String::new, |address| format!("{address} {NAME}\n"));
        std::fs::write(self.file(), format!("127.0.0.1 localhost\n{line}")).expect("a hosts file");
    }

    fn start(&self, port: u16) -> Proxy {
        let builder = quick(Proxy::upstream(&format!("redis://{NAME}:{port}"))).set("outage.writes", "queue");
        builder.hosts(&self.file()).start()
    }
}

/// A second server at the same port of another address.
fn elsewhere(port: u16) -> Redis {
    Redis::builder().args(&["--bind", "127.0.0.2", "--port", &port.to_string()]).start()
}

/// The connections end, and the name leads nowhere; then it leads to another server.
#[test]
fn a_name_that_is_gone_in_service_is_an_outage_until_it_leads_somewhere() {
    let Some(names) = Names::with(Some("127.0.0.1")) else { return };
    let old = Redis::builder().tcp().start();
    let port = old.address().port();
    let new = elsewhere(port);
    let proxy = names.start(port);
    let mut c = proxy.client();
    old.cmd(&["SET", "k", "old"]);
    new.cmd(&["SET", "k", "new"]);
    assert_eq!(warm(&proxy, &mut c, "k"), Reply::bulk("old"));
    names.lead_to(None);
    old.cmd(&["CLIENT", "KILL", "TYPE", "normal"]);
    wait_gone(&proxy);
    eventually(PATIENCE, "the reason", || {
        let text = refused(&c.cmd(&["GET", "miss"]));
        text.contains(&format!("{NAME}:{port}: name resolution failed: "))
    });
    assert_eq!(c.cmd(&["GET", "k"]), Reply::bulk("old"), "stale");
    assert_eq!(c.cmd(&["SET", "w", "1"]), Reply::ok(), "queued");
    names.lead_to(Some("127.0.0.2"));
    wait_back(&proxy);
    assert_eq!(until_answered(&mut c, &["GET", "k"]), Reply::bulk("new"));
    eventually(PATIENCE, "the queued write", || new.cmd(&["GET", "w"]) == Reply::bulk("1"));
    assert_eq!(old.cmd(&["EXISTS", "w"]), Reply::Int(0));
    assert_eq!(proxy.count_logged("is gone, trying again"), 1);
}

/// It was away for a while only, and so was the name.
#[test]
fn a_name_that_comes_back_leads_back() {
    let Some(names) = Names::with(Some("127.0.0.1")) else { return };
    let mut redis = Redis::builder().tcp().start();
    let proxy = names.start(redis.address().port());
    let mut c = proxy.client();
    until_answered(&mut c, &["PING"]);
    names.lead_to(None);
    redis.restart();
    wait_gone(&proxy);
    eventually(PATIENCE, "the reason", || refused(&c.cmd(&["GET", "miss"])).contains("name resolution failed"));
    names.lead_to(Some("127.0.0.1"));
    wait_back(&proxy);
    assert_eq!(until_answered(&mut c, &["GET", "miss"]), Reply::Nil);
}

#[test]
fn a_name_that_comes_after_the_start_is_found() {
    let Some(names) = Names::with(None) else { return };
    let redis = Redis::builder().tcp().start();
    redis.cmd(&["SET", "k", "1"]);
    let proxy = names.start(redis.address().port());
    wait_gone(&proxy);
    let mut c = proxy.client();
    let text = refused(&c.cmd(&["GET", "k"]));
    assert!(text.contains(NAME) && text.contains("name resolution failed"), "{text}");
    names.lead_to(Some("127.0.0.1"));
    wait_back(&proxy);
    assert_eq!(until_answered(&mut c, &["GET", "k"]), Reply::bulk("1"));
}
