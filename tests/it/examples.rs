//! The example configurations of `config/`: each is loaded as it stands and asked what an application of its kind asks.

use std::path::Path;

use crate::support::{Client, PATIENCE, Proxy, Redis, Reply, eventually};

struct Example {
    redis: Redis,
    proxy: Proxy,
    c: Client,
}

fn example(name: &str) -> Example {
    let redis = Redis::start();
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("config").join(name);
    let proxy = Proxy::to(&redis).example(file).start();
    eventually(PATIENCE, "a lane", || proxy.stats()["coherence"] == "tracking");
    let c = proxy.client();
    Example { redis, proxy, c }
}

impl Example {
    fn cmd(&mut self, line: &str) -> Reply {
        self.c.cmd(&line.split(' ').collect::<Vec<_>>())
    }

    /// Asks until the answer is a hit.
    fn becomes_a_hit(&mut self, line: &str) -> Reply {
        let mut reply = Reply::Nil;
        eventually(PATIENCE, &format!("{line} is a hit"), || {
            let before = self.proxy.stat("hits");
            reply = self.cmd(line);
            self.proxy.stat("hits") > before
        });
        reply
    }

    fn never_a_hit(&mut self, line: &str) {
        let before = self.proxy.stat("hits");
        for _ in 0..20 {
            self.cmd(line);
        }
        assert_eq!(self.proxy.stat("hits"), before, "{line}");
    }

    /// `rule` and `rule_says` of EXPLAIN.
    fn rule(&mut self, line: &str) -> (String, String) {
        let reply = self.cmd(&format!("NEARSIDE EXPLAIN {line}")).items();
        let after = |name: &str| {
            let at = reply.iter().position(|item| *item == Reply::bulk(name)).expect("the field");
            reply[at + 1].text()
        };
        (after("rule"), after("rule_says"))
    }

    fn says(&mut self, line: &str, rule: &str, says: &str) {
        assert_eq!(self.rule(line), (rule.to_owned(), says.to_owned()), "{line}");
    }
}

#[test]
fn every_configuration_in_the_folder_is_valid() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("config");
    let mut seen = 0;
    for entry in std::fs::read_dir(dir).expect("config/") {
        let path = entry.expect("an entry").path();
        if path.extension().is_none_or(|ext| ext != "yaml") {
            continue;
        }
        let mut check = std::process::Command::new(env!("CARGO_BIN_EXE_nearside"));
        check.args(["--check-config", "--upstream", "redis://127.0.0.1:6379", "--config"]).arg(&path);
        let output = check.output().expect("the program");
        assert!(output.status.success(), "{}: {}", path.display(), String::from_utf8_lossy(&output.stderr));
        seen += 1;
    }
    assert!(seen >= 4, "{seen}");
}

#[test]
fn chat_responses_are_kept_by_class_and_dropped_by_tenant() {
    let mut e = example("chat-responses.yaml");
    e.says("GET chat:acme:response:9f", "chat_response", "GET for 1800000 ms");
    e.says("GET chat:acme:intent:9f", "chat_intent", "GET for 3600000 ms");
    e.says("GET chat:acme:policy:7", "chat_policy", "GET for 86400000 ms");
    e.says("GET chat:acme:draft:7", "", "no_rule");
    // The service asks, finds nothing, asks the model, writes; from then on it is a hit.
    assert_eq!(e.cmd("GET chat:acme:response:9f"), Reply::Nil);
    e.cmd("SET chat:acme:response:9f hello EX 1800");
    assert_eq!(e.becomes_a_hit("GET chat:acme:response:9f"), Reply::bulk("hello"));
    // One call of the model less.
    assert_eq!(e.proxy.metric("nearside_cost_saved_total{rule=\"chat_response\"}"), 0.06);
    e.cmd("HSET chat:acme:policy:7 text never");
    e.becomes_a_hit("HGETALL chat:acme:policy:7");
    // An editor changes the policy past the sidecar.
    e.redis.cmd(&["HSET", "chat:acme:policy:7", "text", "always"]);
    eventually(PATIENCE, "the new text", || e.cmd("HGETALL chat:acme:policy:7") == Reply::bulks(&["text", "always"]));
    e.never_a_hit("GET chat:acme:draft:7");
}

#[test]
fn sessions_end_everywhere_and_counters_are_upstreams() {
    let mut e = example("session-store.yaml");
    e.cmd("SET session:7:abc data EX 600");
    assert_eq!(e.becomes_a_hit("GET session:7:abc"), Reply::bulk("data"));
    e.cmd("HSET session:7:def name ann");
    e.becomes_a_hit("HGETALL session:7:def");
    // A logout on another pod.
    e.redis.cmd(&["DEL", "session:7:abc"]);
    eventually(PATIENCE, "logged out", || e.cmd("GET session:7:abc") == Reply::Nil);
    // Written here: the next read is upstream's, which is not asked for it before.
    e.cmd("SET session:7:ghi v");
    assert_eq!(e.proxy.metric("nearside_updates_total"), 0.0);
    e.says("GET rate:ip:1", "counters", "rule_off");
    e.cmd("INCR rate:ip:1");
    e.never_a_hit("GET rate:ip:1");
    e.never_a_hit("GET token:xyz");
}

#[test]
fn flags_are_kept_also_where_they_are_absent() {
    let mut e = example("feature-flags.yaml");
    e.redis.cmd(&["SET", "flag:prod:dark-mode", "on"]);
    e.redis.cmd(&["SADD", "segment:beta", "7"]);
    assert_eq!(e.becomes_a_hit("GET flag:prod:dark-mode"), Reply::bulk("on"));
    assert_eq!(e.becomes_a_hit("GET flag:prod:none"), Reply::Nil);
    assert_eq!(e.becomes_a_hit("SISMEMBER segment:beta 7"), Reply::Int(1));
    e.redis.cmd(&["SET", "flag:prod:none", "on"]);
    eventually(PATIENCE, "the new flag", || e.cmd("GET flag:prod:none") == Reply::bulk("on"));
    e.says("EXISTS segment:beta", "segments", "EXISTS for 600000 ms");
    e.says("GET other", "rest", "GET for 300000 ms");
    e.becomes_a_hit("GET other");
}
