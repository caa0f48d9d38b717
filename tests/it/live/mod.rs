//! Changes of the running process: over HTTP, by a client, by a signal, by the file. What is refused changes nothing; what is
//! acknowledged holds for every read that is sent from then on; nobody's connection notices.

mod load;
mod modes;
mod persist;
mod reload;
mod rules;

use std::path::PathBuf;

use serde_json::{Value, json};

use crate::support::http::{self, Response};
use crate::support::{PATIENCE, Proxy, Redis, eventually, proxy, temp_dir};

pub(crate) const TOKEN: &str = "s3cret";

/// A sidecar whose side port takes changes, and the directory of its token and, where it has one, its file.
struct Stand {
    redis: Redis,
    proxy: Proxy,
    dir: tempfile::TempDir,
}

impl Stand {
    fn with(change: impl FnOnce(proxy::Builder) -> proxy::Builder) -> Stand {
        let (redis, dir) = (Redis::start(), temp_dir());
        std::fs::write(dir.path().join("token"), TOKEN).expect("a token");
        let token = dir.path().join("token").display().to_string();
        // Hits are counted on here, so a busy machine must not cost the lease.
        let builder = Proxy::upstream(&redis.url()).set("http.token_file", token).set("coherence.max_staleness", "60s");
        Stand { proxy: change(builder).start(), redis, dir }
    }

    fn with_rules(rules: Value) -> Stand {
        Stand::with(|builder| builder.set("rules", rules))
    }

    /// With a file of its own, in which `rest` stands behind what it needs to be reached.
    fn with_file(rest: &str) -> Stand {
        let (redis, dir) = (Redis::start(), temp_dir());
        std::fs::write(dir.path().join("token"), TOKEN).expect("a token");
        let file = dir.path().join("own.yaml");
        std::fs::write(&file, text(&redis, &dir, rest)).expect("a file");
        Stand { proxy: Proxy::upstream(&redis.url()).file(&file).start(), redis, dir }
    }

    fn file(&self) -> PathBuf {
        self.dir.path().join("own.yaml")
    }

    /// Its file with `rest` behind what it needs.
    fn text(&self, rest: &str) -> String {
        text(&self.redis, &self.dir, rest)
    }

    /// In one step, as a careful editor does.
    fn write(&self, rest: &str) {
        let draft = self.dir.path().join("draft");
        std::fs::write(&draft, self.text(rest)).expect("a draft");
        std::fs::rename(draft, self.file()).expect("in its place");
    }

    fn send(&self, method: &str, path: &str, body: &str) -> Response {
        http::send(self.proxy.http_address(), method, path, TOKEN, "", body)
    }

    #[track_caller]
    fn put(&self, path: &str, body: &Value) -> Value {
        let answer = self.send("PUT", path, &body.to_string());
        assert_eq!(answer.status, 200, "PUT {path} {body}: {}", answer.body);
        answer.json()
    }

    #[track_caller]
    fn delete(&self, path: &str) -> Value {
        let answer = self.send("DELETE", path, "");
        assert_eq!(answer.status, 200, "DELETE {path}: {}", answer.body);
        answer.json()
    }

    #[track_caller]
    fn reload(&self) -> Value {
        let answer = self.send("POST", "/api/v1/reload", "");
        assert_eq!(answer.status, 200, "{}", answer.body);
        answer.json()
    }

    /// What the last reload that changed something says of itself; whoever saw the file first has made it.
    #[track_caller]
    fn last_reload(&self) -> Value {
        let events = self.proxy.get("/api/v1/events/recent?n=200").json();
        let found = events["events"].as_array().and_then(|all| all.iter().find(|e| e["detail"]["changed"].is_string()));
        found.unwrap_or_else(|| panic!("no reload that changed anything: {events}"))["detail"].clone()
    }

    fn rules(&self) -> Value {
        self.proxy.get("/api/v1/rules").json()
    }

    fn names(&self) -> Vec<String> {
        names(&self.rules())
    }

    fn reloads(&self, result: &str) -> f64 {
        self.proxy.metric(&format!("nearside_config_reloads_total{{result=\"{result}\"}}"))
    }

    #[track_caller]
    fn wait_rules(&self, wanted: &[&str]) {
        eventually(PATIENCE, &format!("the rules {wanted:?}"), || self.names() == wanted);
    }
}

fn text(redis: &Redis, dir: &tempfile::TempDir, rest: &str) -> String {
    let (url, token) = (redis.url(), dir.path().join("token").display().to_string());
    format!(
        "# for tests\nupstream: {{url: {}}}\nlisten: {{tcp: []}}\nhttp: {{listen: ['127.0.0.1:0'], token_file: {}}}\n{rest}",
        json!(url),
        json!(token)
    )
}

/// Of the answer of `GET /api/v1/rules`.
fn names(rules: &Value) -> Vec<String> {
    let list = rules["rules"].as_array().expect("a list of rules");
    list.iter().map(|rule| rule["name"].as_str().expect("a name").to_owned()).collect()
}
