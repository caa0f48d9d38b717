//! `nearside health --checks`: what `/api/v1/dashboard/health` says, a line a check, for people.

use serde::Deserialize;
use serde_json::Value;

use super::health::Answer;
use super::top::{clean, span};

pub(super) const PATH: &str = "/api/v1/dashboard/health";

#[derive(Debug, Deserialize)]
pub(super) struct Checks {
    status: String,
    uptime_ms: f64,
    rss_bytes: Option<f64>,
    checks: Vec<Check>,
}

#[derive(Debug, Deserialize)]
struct Check {
    name: String,
    status: String,
    #[serde(default)]
    value: Value,
    #[serde(default)]
    threshold: Value,
    #[serde(default)]
    unit: Option<String>,
    #[serde(default)]
    message: Option<String>,
}

/// What the side port has answered, or what is wrong with that.
pub(super) fn read(answer: &Answer) -> Result<Checks, String> {
    match answer.status {
        200 => serde_json::from_str(&answer.body).map_err(|e| format!("not the answer of Nearside: {e}")),
        404 => {
            Err("this version has no such page; nearside health without --checks asks whether it is ready".to_owned())
        }
        status => Err(format!("status {status}")),
    }
}

impl Checks {
    pub(super) fn is_critical(&self) -> bool {
        self.status == "critical"
    }

    pub(super) fn lines(&self) -> String {
        let memory = self.rss_bytes.map_or_else(String::new, |bytes| format!(", {:.1} MiB", bytes / 1024.0 / 1024.0));
        let head = format!("{}, up {}{memory}\n", clean(&self.status), span(self.uptime_ms / 1000.0));
        head + &self.checks.iter().map(Check::line).collect::<String>()
    }
}

impl Check {
    /// `degraded   hit_rate         0.41 (0.6 ratio): below 60 %`
    fn line(&self) -> String {
        let unit = self.unit.as_deref().map_or_else(String::new, |unit| format!(" {}", clean(unit)));
        let limit =
            if self.threshold.is_null() { String::new() } else { format!(" ({}{unit})", plain(&self.threshold)) };
        let message =
            self.message.as_deref().filter(|m| !m.is_empty()).map_or_else(String::new, |m| format!(": {}", clean(m)));
        let line =
            format!("{:<10} {:<16} {}{limit}{message}", clean(&self.status), clean(&self.name), plain(&self.value));
        line.trim_end().to_owned() + "\n"
    }
}

/// A number or a word without quotes.
fn plain(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => clean(text),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, body: &str) -> Answer {
        Answer { status, body: body.to_owned() }
    }

    #[test]
    fn each_check_is_a_line() {
        let body = r#"{"version": "1", "status": "degraded", "since": "2026-01-01T00:00:00Z", "uptime_ms": 3723000, "rss_bytes": 50331648,
            "checks": [{"name": "cache", "status": "healthy", "value": "serve", "threshold": null, "unit": null, "message": ""},
            {"name": "hit_rate", "status": "degraded", "value": 0.41, "threshold": 0.6, "unit": "ratio", "message": "below\u001b 60 %"}]}"#;
        let checks = read(&answer(200, body)).unwrap();
        let lines = "degraded, up 1 h 2 min, 48.0 MiB\nhealthy    cache            serve\n\
                     degraded   hit_rate         0.41 (0.6 ratio): below? 60 %\n";
        assert_eq!(checks.lines(), lines);
        assert!(!checks.is_critical());
    }

    #[test]
    fn another_answer_is_said_so() {
        assert!(read(&answer(404, "{}")).unwrap_err().contains("no such page"));
        assert!(read(&answer(503, "{}")).unwrap_err().contains("503"));
        assert!(read(&answer(200, "ok")).unwrap_err().contains("not the answer of Nearside"));
        let critical = r#"{"status": "critical", "uptime_ms": 1, "checks": []}"#;
        assert!(read(&answer(200, critical)).unwrap().is_critical());
    }
}
