//! `nearside explain`: what a configuration makes of a command, without a running process.

use bytes::BytesMut;
use clap::Args;

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
    /// Configuration file (YAML) [env: NEARSIDE_CONFIG]
    #[arg(long, value_name = "FILE")]
    config: Option<String>,
    /// The command with its arguments, as redis-cli takes them
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    command: Vec<String>,
}

impl ExplainArgs {
    /// The lines to print, or what is wrong with the configuration or the command.
    pub(super) fn answer(&self, env: impl Iterator<Item = (String, String)>) -> Result<String, String> {
        let mut overrides = Overrides::default();
        overrides.file(self.config.clone());
        let (cache, rules) = config::rules(&overrides, env).map_err(|e| e.to_string())?;
        let patterns = Patterns::new(":", 0);
        let rules = Rules::new(&rules, &cache, &patterns);
        let mut raw = BytesMut::new();
        build::command(&mut raw, &self.command.iter().map(String::as_bytes).collect::<Vec<_>>());
        let mut scanner = Scanner::new(COMMAND_MAX, COMMAND_MAX);
        if !matches!(scanner.scan(&raw), Scan::Request { .. }) {
            return Err(format!("a command of more than {COMMAND_MAX} bytes is streamed, and nothing of it is cached"));
        }
        let req = Request { raw: &raw, args: scanner.args() };
        match table::lookup(&req) {
            Lookup::Known(spec) => Ok(lines(&rules, &patterns, spec, &req)),
            Lookup::UnknownSub | Lookup::Unknown => {
                let name = self.command.first().map_or("", String::as_str);
                Ok(format!(
                    "command: unknown\nnot_kept_because: {name} is not among the commands of Redis that are known here; a running sidecar asks upstream what it is\n"
                ))
            }
        }
    }
}

fn lines(rules: &Rules, patterns: &Patterns, spec: &Spec, req: &Request<'_>) -> String {
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
