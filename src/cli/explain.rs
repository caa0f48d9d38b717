//! `nearside explain`: what a configuration makes of a command, that of a running process or that of a file.

use bytes::BytesMut;
use clap::Args;
use serde::Deserialize;

use crate::command::table::{self, Lookup};
use crate::command::{Request, Spec};
use crate::config::{self, Overrides};
use crate::observe::patterns::Patterns;
use crate::policy::Rules;
use crate::policy::explain::explain;
use crate::resp::build;
use crate::resp::request::{Scan, Scanner};

/// Longer commands are streamed, and nothing of them is cached.
const COMMAND_MAX: usize = 1 << 20;

#[derive(Args)]
pub(super) struct ExplainArgs {
    /// Explain by this configuration file (YAML), without a running process
    #[arg(long, value_name = "FILE", conflicts_with = "url")]
    config: Option<String>,
    /// Side port of the running process to ask for its configuration [default: the first address of http.listen]
    #[arg(long, value_name = "URL")]
    pub(super) url: Option<String>,
    /// The command with its arguments, as redis-cli takes them
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    command: Vec<String>,
}

impl ExplainArgs {
    /// No file is named: a running process is asked.
    pub(super) fn asks(&self) -> bool {
        self.config.is_none()
    }

    /// The lines to print by the file's configuration, or what is wrong with it or the command.
    pub(super) fn by_file(&self, env: impl Iterator<Item = (String, String)>) -> Result<String, String> {
        let mut overrides = Overrides::default();
        overrides.file(self.config.clone());
        let (cache, rules) = config::rules(&overrides, env).map_err(|e| e.to_string())?;
        self.lines(&cache, &rules)
    }

    /// The same by the configuration that a running process has shown.
    pub(super) fn by_answer(&self, place: &str, body: &str) -> Result<String, String> {
        let shown: Shown =
            serde_json::from_str(body).map_err(|e| format!("{place}: not the answer of Nearside: {e}"))?;
        let (cache, rules) = config::rules_in(place, &shown.config.to_string()).map_err(|e| e.to_string())?;
        self.lines(&cache, &rules)
    }

    fn lines(&self, cache: &config::Cache, rules: &[config::Rule]) -> Result<String, String> {
        let patterns = Patterns::new(":", 0);
        let rules = Rules::new(rules, cache, &patterns);
        let mut raw = BytesMut::new();
        build::command(&mut raw, &self.command.iter().map(String::as_bytes).collect::<Vec<_>>());
        let mut scanner = Scanner::new(COMMAND_MAX, COMMAND_MAX);
        if !matches!(scanner.scan(&raw), Scan::Request { .. }) {
            return Err(format!("a command of more than {COMMAND_MAX} bytes is streamed, and nothing of it is cached"));
        }
        let req = Request { raw: &raw, args: scanner.args() };
        match table::lookup(&req) {
            Lookup::Known(spec) => Ok(fields(&rules, &patterns, spec, &req)),
            Lookup::UnknownSub | Lookup::Unknown => {
                let name = self.command.first().map_or("", String::as_str);
                Ok(format!(
                    "command: unknown\nnot_kept_because: {name} is not among the commands of Redis that are known here; a running sidecar asks upstream what it is\n"
                ))
            }
        }
    }
}

/// `GET /api/v1/config`.
#[derive(Deserialize)]
struct Shown {
    config: serde_json::Value,
}

fn fields(rules: &Rules, patterns: &Patterns, spec: &Spec, req: &Request<'_>) -> String {
    let said = explain(rules, patterns, spec, req);
    let keys: Vec<String> = said.keys.iter().map(|key| String::from_utf8_lossy(key).into_owned()).collect();
    let fields = [
        ("command", spec.name.to_owned()),
        ("effect", format!("{:?}", spec.effect).to_ascii_lowercase()),
        ("keys", keys.join(" ")),
        ("rule", said.rule),
        ("rule_says", said.says),
        ("not_kept_because", said.not_kept_because),
    ];
    fields.iter().map(|(name, value)| format!("{name}: {value}").trim_end().to_owned() + "\n").collect()
}
