//! A real Prometheus that scrapes a sidecar five times a second, and promtool. Where they are not installed, `installed` says so
//! in the line that a skipped test leaves.

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::{Proxy, end, holds, http, temp_dir};

pub(crate) struct Prometheus {
    child: Child,
    address: SocketAddr,
    _dir: TempDir,
}

/// What a query has brought.
#[derive(Debug)]
pub(crate) enum Answer {
    Series(Vec<Value>),
    /// The expression is wrong.
    Refused(String),
}

/// Whether both programs of Debian's package `prometheus` are there.
pub(crate) fn installed() -> bool {
    let has =
        |program: &str| Command::new(program).arg("--version").output().is_ok_and(|output| output.status.success());
    holds(has("prometheus") && has("promtool"), "needs prometheus and promtool, which are not installed")
}

/// In the project's root.
pub(crate) fn promtool(args: &[&str]) -> Output {
    let mut command = Command::new("promtool");
    command.args(args).current_dir(env!("CARGO_MANIFEST_DIR"));
    command.output().expect("promtool")
}

/// What `promtool check metrics` says of a scrape, one line each.
pub(crate) fn check_metrics(scrape: &str) -> Vec<String> {
    let mut command = Command::new("promtool");
    let command = command.args(["check", "metrics"]).stdin(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("promtool");
    child.stdin.take().expect("its input").write_all(scrape.as_bytes()).expect("taken");
    let output = child.wait_with_output().expect("its end");
    String::from_utf8_lossy(&output.stderr).lines().map(str::to_owned).collect()
}

impl Prometheus {
    /// With the rules of these files, evaluated once a second.
    #[track_caller]
    pub(crate) fn scraping(proxy: &Proxy, rules: &[&Path]) -> Prometheus {
        let dir = temp_dir();
        let file = dir.path().join("prometheus.yml");
        let config = json!({
            "global": {"scrape_interval": "200ms", "scrape_timeout": "200ms", "evaluation_interval": "1s"},
            "rule_files": rules.iter().map(|file| file.display().to_string()).collect::<Vec<_>>(),
            "scrape_configs": [{
                "job_name": "sidecars",
                "static_configs": [{"targets": [proxy.http_address().to_string()]}],
            }],
        });
        std::fs::write(&file, config.to_string()).expect("its configuration");
        let mut child = Command::new("prometheus")
            .arg(format!("--config.file={}", file.display()))
            .arg(format!("--storage.tsdb.path={}", dir.path().join("data").display()))
            .arg("--web.listen-address=127.0.0.1:0")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("prometheus");
        let mut lines = BufReader::new(child.stderr.take().expect("its log")).lines();
        let listening = lines.by_ref().map_while(Result::ok).find_map(|line| {
            let (_, address) = line.split_once("msg=\"Listening on\" address=")?;
            address.trim().parse().ok()
        });
        let address = listening.expect("the address that it listens on");
        // Its log is read to the end, so that it never waits for us.
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(drop));
        Prometheus { child, address, _dir: dir }
    }

    /// An instant query. None: it is not ready yet.
    pub(crate) fn query(&self, expression: &str) -> Option<Answer> {
        let encoded: String = expression.bytes().map(|b| format!("%{b:02x}")).collect();
        let answer = self.get(&format!("/api/v1/query?query={encoded}"))?;
        Some(match answer["data"]["result"].as_array() {
            Some(series) => Answer::Series(series.clone()),
            None => Answer::Refused(answer["error"].to_string()),
        })
    }

    /// The value of a query that has one result; none before it has.
    #[track_caller]
    pub(crate) fn value(&self, expression: &str) -> Option<f64> {
        match self.query(expression)? {
            Answer::Series(series) => series.first()?["value"][1].as_str()?.parse().ok(),
            Answer::Refused(why) => panic!("{expression}: {why}"),
        }
    }

    /// None: it is not ready yet.
    pub(crate) fn get(&self, path: &str) -> Option<Value> {
        let answer = http::try_request(self.address, "GET", path).ok()?;
        serde_json::from_str(&answer.body).ok()
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}
