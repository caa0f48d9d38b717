//! Every answer against its description, the snapshot's size, and the stream of events as its readers see it.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::OPENAPI;
use crate::config::Config;
use crate::http::tests::{PATIENCE, Server, split};
use crate::http::{Timeouts, change, live, routes};
use crate::live::Running;
use crate::observe::alerts::Alert;
use crate::observe::events::Actor;
use crate::observe::policy::Refusal;
use crate::observe::reasons::{
    Action, AlertName, Decision, Dropped, EventKind, Method, Operation, PolicyMode, RunEnd, Timed,
};
use crate::observe::runs::End;

fn described() -> Value {
    serde_json::from_str(OPENAPI).expect("JSON")
}

// ---- the description ----

#[test]
fn what_there_is_is_described_and_what_is_described_there_is() {
    let doc = described();
    let in_text: BTreeSet<String> = doc["paths"].as_object().expect("paths").keys().cloned().collect();
    let written = change::PATHS.into_iter().chain(live::PATHS).chain(["/api/v1/rules/{name}", "/"]).map(str::to_owned);
    let in_code: BTreeSet<String> = routes::paths().into_iter().chain(written).collect();
    assert_eq!(in_text, in_code);
    assert_eq!(doc["info"]["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(doc["openapi"], "3.1.0");
}

/// `schema` with its references followed.
fn resolved<'d>(doc: &'d Value, schema: &'d Value) -> &'d Value {
    match schema["$ref"].as_str() {
        Some(at) => resolved(doc, doc.pointer(&at[1..]).unwrap_or_else(|| panic!("{at} leads nowhere"))),
        None => schema,
    }
}

/// What is wrong with `value`, path by path: fields that are not described, fields that are promised and missing, other types.
fn differences(doc: &Value, schema: &Value, value: &Value, at: &str, found: &mut Vec<String>) {
    let schema = resolved(doc, schema);
    if let Some(parts) = schema["allOf"].as_array() {
        let mut all = serde_json::json!({"type": "object", "properties": {}, "required": []});
        for part in parts.iter().map(|part| resolved(doc, part)) {
            let properties = part["properties"].as_object().expect("an object").clone();
            all["properties"].as_object_mut().expect("one").extend(properties);
            let required = part["required"].as_array().expect("a list").clone();
            all["required"].as_array_mut().expect("one").extend(required);
        }
        return differences(doc, &all, value, at, found);
    }
    if let Some(choices) = schema["anyOf"].as_array() {
        let chosen = choices.iter().find(|choice| (resolved(doc, choice)["type"] == "null") == value.is_null());
        return differences(doc, chosen.unwrap_or(&choices[0]), value, at, found);
    }
    let is = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(n) if n.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    let types: Vec<&str> = match &schema["type"] {
        Value::String(one) => vec![one],
        several => several.as_array().into_iter().flatten().filter_map(Value::as_str).collect(),
    };
    if !(types.contains(&is) || (is == "integer" && types.contains(&"number"))) {
        found.push(format!("{at} is {is} and not {types:?}"));
    }
    let wanted = schema["enum"].as_array();
    if wanted.is_some_and(|words| !words.contains(value)) {
        found.push(format!("{at} is {value}"));
    }
    for (i, item) in value.as_array().into_iter().flatten().enumerate() {
        differences(doc, &schema["items"], item, &format!("{at}[{i}]"), found);
    }
    let Some(fields) = value.as_object() else { return };
    for name in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        if !fields.contains_key(name) {
            found.push(format!("{at}.{name} is missing"));
        }
    }
    for (name, field) in fields {
        match (schema["properties"].get(name), &schema["additionalProperties"]) {
            (Some(described), _) => differences(doc, described, field, &format!("{at}.{name}"), found),
            (None, Value::Null) if schema["properties"].is_null() => {}
            (None, Value::Null) => found.push(format!("{at}.{name} is not described")),
            (None, others) => differences(doc, others, field, &format!("{at}.{name}"), found),
        }
    }
}

fn holds(doc: &Value, path: &str, answer: &Value) {
    let operation = &resolved(doc, &doc["paths"][path])["get"];
    let schema = &operation["responses"]["200"]["content"]["application/json"]["schema"];
    let mut found = Vec::new();
    differences(doc, schema, answer, path, &mut found);
    assert!(found.is_empty(), "{path}: {found:#?}");
}

#[test]
fn every_answer_is_as_described() {
    let (server, doc) = (crowded(), described());
    let read = routes::paths()
        .into_iter()
        .chain(["/api/v1/rules", "/api/v1/config", "/api/v1/events/recent", "/api/v1/mode"].map(Into::into));
    for path in read.filter(|path| !path.starts_with("/metrics") && path != "/api/v1/events") {
        let (status, answer) = server.get(&path);
        assert!(status == 200 || path.starts_with("/health"), "{path}: {status}");
        if path != "/api/v1/openapi.json" {
            holds(&doc, &path, &answer);
        }
    }
    holds(&doc, "/api/v1/history", &server.get("/api/v1/history?range=24h").1);
}

#[test]
fn the_description_is_served_as_it_is() {
    let (status, answer) = Server::start().get("/api/v1/openapi.json");
    assert_eq!((status, answer), (200, described()));
}

// ---- what is asked wrongly ----

#[test]
fn parameters_that_are_not_known_are_refused_by_name() {
    let server = Server::start();
    for path in routes::paths().iter().filter(|path| path.starts_with("/api/")) {
        let (status, answer) = server.get(&format!("{path}?colour=red"));
        let message = answer["error"]["message"].as_str().unwrap_or_default().to_owned();
        assert_eq!((status, &answer["error"]["code"]), (400, &"unknown_parameter".into()), "{path}");
        assert!(message.contains("\"colour\"") && message.contains("known here: "), "{message}");
    }
    let (status, answer) = server.get("/api/v1/history?range=1h");
    assert_eq!((status, &answer["error"]["code"]), (400, &"malformed".into()));
    assert_eq!(answer["error"]["message"], "range: \"1h\" is none of 15m, 24h");
}

#[test]
fn aliases_say_the_same() {
    let server = Server::start();
    let keys = |path: &str| {
        let answer = server.get(path);
        assert_eq!(answer.0, 200, "{path}");
        answer.1.as_object().expect("an object").keys().cloned().collect::<Vec<_>>()
    };
    for (path, alias) in [
        ("dashboard", "m1/dashboard"),
        ("dashboard/cache", "v1/dashboard/cache-stats"),
        ("dashboard/cache", "m1/dashboard/cache-stats"),
        ("dashboard/cache", "v1/metrics/cache"),
        ("dashboard/policy", "m1/dashboard/policy-stats"),
        ("dashboard/runs", "m1/dashboard/recent-runs"),
        ("dashboard/metrics", "m1/dashboard/metrics"),
    ] {
        assert_eq!(keys(&format!("/api/v1/{path}")), keys(&format!("/api/{alias}")), "{alias}");
    }
    for path in ["/api/m1/metrics/cache", "/api/m1/dashboardx", "/api/m1/history", "/api/m1"] {
        assert_eq!(server.get(path).0, 404, "{path}");
    }
}

#[test]
fn head_says_what_get_would_and_gzip_is_for_whoever_asks() {
    let server = Server::start();
    let ask = |method: &str, more: &str| {
        let request =
            format!("{method} /api/v1/dashboard HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{more}\r\n");
        let mut stream = server.connect();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        let end = answer.windows(4).position(|four| four == b"\r\n\r\n").unwrap() + 4;
        let body = answer.split_off(end);
        (String::from_utf8(answer).unwrap(), body)
    };
    let (head, body) = ask("GET", "");
    assert!(head.contains("cache-control: no-store") && !head.contains("content-encoding"), "{head}");
    let (packed_head, packed) = ask("GET", "Accept-Encoding: gzip\r\n");
    assert!(packed_head.contains("content-encoding: gzip\r\n") && packed_head.contains("vary: accept-encoding"));
    assert!(packed.len() < body.len() / 2, "{} of {}", packed.len(), body.len());
    let mut text = String::new();
    flate2::read::GzDecoder::new(&packed[..]).read_to_string(&mut text).unwrap();
    assert!(serde_json::from_str::<Value>(&text).unwrap()["metrics"].is_object());
    let (head, nothing) = ask("HEAD", "");
    assert!(head.starts_with("HTTP/1.1 200 ") && head.contains("content-length: ") && nothing.is_empty());
}

// ---- the snapshot ----

/// With as much of everything, and names as long, as there can be.
fn crowded() -> Server {
    let name = |c: char, i: usize| format!("{i:04}{}", c.to_string().repeat(60));
    let rules: Vec<String> = (0..300).map(|i| format!("{{name: {}, pattern: 'r{i}:*'}}", name('r', i))).collect();
    let config = Config::for_tests_with_rules(&format!("[{}]", rules.join(", ")));
    let server = Server::with(|http| http.running = Arc::new(Running::new(config.into())));
    let metrics = &server.view.metrics;
    for i in 0..60 {
        let rule = metrics.patterns.of_rule(&name('r', i));
        let pattern = metrics.patterns.id(format!("{}:1", name('p', i)).as_bytes());
        for id in [rule, pattern] {
            (0..=i).for_each(|_| metrics.patterns.hit(id));
            metrics.patterns.miss(id);
            metrics.patterns.set(id);
            metrics.patterns.candidate(id, Method::Get);
        }
    }
    const MANY: u64 = 123_456_789_012_345;
    for word in Operation::ALL {
        metrics.operations.add(*word, MANY);
    }
    for i in 0..Timed::COUNT {
        metrics.requests[i].observe_n(1_234_567, 1_000_000_007);
    }
    metrics.upstream.observe_n(123_456_789, 1_000_000_007);
    metrics.failed.add(MANY);
    metrics.policy.set_mode(PolicyMode::Enforce);
    for (i, command) in
        ["client|no-evict", "config|resetstat", "script|flush", "acl|dryrun", "debug", "keys"].iter().enumerate()
    {
        (0..=i).for_each(|_| metrics.policy.refused(Action::Admin, Decision::Denied, command));
    }
    for _ in 0..12 {
        let (why, client) = ("w".repeat(5000), "c".repeat(5000));
        let at = std::time::SystemTime::now();
        metrics.policy.note(Refusal { at, command: "config|set", action: Action::Admin, why, client });
    }
    for id in 0..20 {
        let run = metrics.runs.begin(MANY + id, &"a".repeat(500), None);
        run.call(Some("n".repeat(500).as_bytes()), Some("u".repeat(500).as_bytes()));
        run.bytes_out.add(MANY);
        let end = if id % 2 == 0 { End::Here(Dropped::OutputLimit) } else { End::Client(RunEnd::Closed) };
        metrics.runs.end(&run, end);
    }
    server.view.status.set_server("valkey", &"9".repeat(5000));
    server.view.status.events.add(EventKind::Rules, &Actor::File, "rules changed", vec![("names", "x".repeat(5000))]);
    server
}

#[test]
fn the_snapshot_stays_below_ten_kilobytes() {
    let server = crowded();
    let (status, _, body) = server.ask("GET", "/api/v1/dashboard");
    assert_eq!(status, 200);
    assert!(body.len() < 10_000, "{} bytes", body.len());
    let answer: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(
        (&answer["cache"]["rules"]["total"], answer["cache"]["rules"]["items"].as_array().map(Vec::len)),
        (&300.into(), Some(5))
    );
    assert_eq!(answer["runs"]["recent"]["items"].as_array().map(Vec::len), Some(3));
    assert!(answer["cache"]["rules"]["items"][0]["rule"].as_str().is_some_and(|name| name.starts_with("0059")));
}

#[test]
fn lists_are_cut_and_say_how_long_they_are() {
    let server = crowded();
    let cache = server.get("/api/v1/dashboard/cache").1;
    let patterns = cache["patterns"]["items"].as_array().expect("a list");
    assert_eq!((patterns.len(), &cache["rules"]["total"]), (10, &300.into()));
    assert!(patterns.iter().all(|item| !item["pattern"].as_str().unwrap().starts_with("0059r")));
    let policy = server.get("/api/v1/dashboard/policy").1;
    assert_eq!(policy["recent"]["items"].as_array().map(Vec::len), Some(10));
    assert_eq!(policy["recent"]["total"], policy["denied"]);
    assert_eq!(policy["recent"]["items"][0]["why"].as_str().map(str::len), Some(100));
    assert_eq!(server.get("/api/v1/dashboard/runs").1["recent"]["items"].as_array().map(Vec::len), Some(10));
}

// ---- the stream ----

struct Reader(BufReader<TcpStream>);

impl Reader {
    fn open(server: &Server, more: &str) -> Reader {
        let mut stream = server.connect();
        let request = format!("GET /api/v1/events HTTP/1.1\r\nHost: localhost\r\n{more}\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        Reader(BufReader::new(stream))
    }

    fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        self.0.read_line(&mut line).ok().filter(|n| *n > 0)?;
        Some(line.trim_end().to_owned())
    }

    /// The next event: its name, id and data. Lines of the chunked coding are passed over.
    fn event(&mut self) -> Option<(String, u64, Value)> {
        let (mut name, mut id) = (String::new(), 0);
        loop {
            let line = self.line()?;
            if let Some(found) = line.strip_prefix("event: ") {
                name = found.to_owned();
            } else if let Some(found) = line.strip_prefix("id: ") {
                id = found.parse().unwrap();
            } else if let Some(data) = line.strip_prefix("data: ") {
                return Some((name, id, serde_json::from_str(data).unwrap()));
            }
        }
    }

    fn named(&mut self, wanted: &str) -> (u64, Value) {
        loop {
            let (name, id, data) = self.event().expect("an event");
            if name == wanted {
                return (id, data);
            }
        }
    }
}

fn happens(server: &Server, message: &str) {
    server.view.status.events.add(EventKind::Mode, &Actor::Sighup, message, Vec::new());
}

fn data_holds(doc: &Value, event: &str, data: &Value) {
    let stream = &doc["paths"]["/api/v1/events"]["get"]["responses"]["200"]["content"]["text/event-stream"];
    let schema = stream["x-event-data"].get(event).unwrap_or_else(|| panic!("{event} is not described"));
    let mut found = Vec::new();
    differences(doc, schema, data, event, &mut found);
    assert!(found.is_empty(), "{found:#?}");
}

/// As it would be raised.
fn alert(name: AlertName) -> Alert {
    let message = "raised by a test".to_owned();
    Alert { name, since: 1_795_897_486_544, resolved: None, value: 0.5, threshold: 0.05, message }
}

#[test]
fn every_event_of_the_stream_is_as_described() {
    let (server, doc) = (Server::start(), described());
    let (_, head, _) = server.ask("HEAD", "/api/v1/events");
    assert!(head.contains("content-type: text/event-stream") && head.contains("cache-control: no-store"), "{head}");
    let mut reader = Reader::open(&server, "");
    data_holds(&doc, "snapshot", &reader.named("snapshot").1);
    let events = &server.view.status.events;
    let plain = EventKind::ALL.iter().filter(|kind| **kind != EventKind::Alert);
    plain.clone().for_each(|kind| events.add(*kind, &Actor::Sighup, "an event", vec![("name", "x".to_owned())]));
    for kind in plain {
        let (_, data) = reader.named(kind.as_str());
        data_holds(&doc, kind.as_str(), &data);
        assert_eq!(data["kind"], kind.as_str());
    }
}

#[test]
fn an_alert_comes_as_the_list_of_alerts_has_it() {
    let (server, doc) = (Server::start(), described());
    let mut reader = Reader::open(&server, "");
    reader.event().expect("a snapshot");
    // Names that this server, which has no upstream, does not raise by itself.
    let raised = alert(AlertName::ReloadFailed);
    let over = Alert { resolved: Some(raised.since + 1500), ..raised.clone() };
    server.view.status.events.turned(raised, "raised");
    server.view.status.events.turned(over, "over");
    let mut named = || loop {
        let (_, data) = reader.named("alert");
        if data["name"] == "reload_failed" {
            return data;
        }
    };
    let (first, second) = (named(), named());
    [&first, &second].into_iter().for_each(|data| data_holds(&doc, "alert", data));
    let item = |state: &str, resolved: Value| {
        serde_json::json!({"name": "reload_failed", "severity": "warning", "state": state, "since": "2026-11-28T20:24:46.544Z",
            "resolved": resolved, "value": 0.5, "threshold": 0.05, "unit": "failed", "message": "raised by a test"})
    };
    assert_eq!(first, item("firing", Value::Null));
    assert_eq!(second, item("resolved", "2026-11-28T20:24:48.044Z".into()));
    // The list of events has it as an event, like any other.
    let recent = server.get("/api/v1/events/recent").1;
    let events = recent["events"].as_array().expect("a list").iter();
    let told: Vec<_> = events.filter(|event| event["detail"]["alert"] == "reload_failed").collect();
    assert_eq!((told.len(), &told[0]["kind"], &told[0]["actor"]), (2, &"alert".into(), &"alerts".into()));
}

#[test]
fn a_stream_begins_with_a_snapshot_and_goes_on_once_a_second() {
    let server = Server::start();
    let mut reader = Reader::open(&server, "");
    let mut head = Vec::new();
    while let Some(line) = reader.line().filter(|line| !line.is_empty()) {
        head.push(line);
    }
    assert!(head[0].contains("200") && head.contains(&"content-type: text/event-stream".to_owned()), "{head:?}");
    assert!(head.contains(&"cache-control: no-store".to_owned()));
    let first = reader.event().expect("an event");
    assert_eq!(first.0, "snapshot");
    // What happens in between, an alert for want of an upstream, has events of its own.
    let all: Vec<_> = [(first.1, first.2)].into_iter().chain((0..2).map(|_| reader.named("snapshot"))).collect();
    assert!(all.is_sorted_by(|a, b| a.0 < b.0));
    let doc = described();
    data_holds(&doc, "snapshot", &all[2].1);
    let last = &all[2].1["last"];
    let names = doc["components"]["schemas"]["History"]["properties"]["series"]["properties"].as_object().unwrap();
    assert!(names.keys().eq(last.as_object().unwrap().keys()), "{last}");
}

#[test]
fn a_hundred_and_twenty_readers_get_the_same_and_one_that_never_reads_costs_nobody_anything() {
    let server = Server::with(|http| http.max_connections = 200);
    let asleep: Vec<Reader> = (0..10).map(|_| Reader::open(&server, "")).collect();
    let mut readers: Vec<Reader> = (0..110).map(|_| Reader::open(&server, "")).collect();
    readers.iter_mut().for_each(|reader| drop(reader.event().expect("a snapshot")));
    happens(&server, "seen by all");
    let told: Vec<(u64, Value)> = readers.iter_mut().map(|reader| reader.named("mode")).collect();
    assert!(told.iter().all(|one| *one == told[0]) && told[0].1["message"] == "seen by all");
    let shown: Vec<(u64, Value)> = readers.iter_mut().map(|reader| reader.named("snapshot")).collect();
    assert!(shown.iter().all(|one| one.0 > told[0].0), "ids grow");
    assert_eq!(server.get("/health/live").0, 200);
    drop(asleep);
}

#[test]
fn who_comes_back_gets_what_it_missed_and_nothing_twice() {
    let server = Server::start();
    let mut reader = Reader::open(&server, "");
    reader.event().expect("a snapshot");
    happens(&server, "first");
    let (first, _) = reader.named("mode");
    drop(reader);
    happens(&server, "second");
    happens(&server, "third");
    // Told as soon as they happen; who is there sees them, so they are kept by then.
    let mut other = Reader::open(&server, &format!("Last-Event-ID: {first}\r\n"));
    let missed: Vec<String> = (0..2).map(|_| other.named("mode").1["message"].as_str().unwrap().to_owned()).collect();
    assert_eq!(missed, ["second", "third"]);
    happens(&server, "fourth");
    assert_eq!(other.named("mode").1["message"], "fourth");
    for strange in ["18446744073709551615", "-1", "x", ""] {
        let mut reader = Reader::open(&server, &format!("Last-Event-ID: {strange}\r\n"));
        assert_eq!(reader.event().expect("a snapshot").0, "snapshot", "{strange}");
    }
    // An id of another life of the process is older than all of this one's.
    assert_eq!(Reader::open(&server, "Last-Event-ID: 5\r\n").named("mode").1["message"], "first");
}

#[test]
fn streams_leave_room_for_probes() {
    let server = Server::with(|http| http.max_connections = 8);
    let mut readers: Vec<Reader> = (0..7).map(|_| Reader::open(&server, "")).collect();
    readers.iter_mut().for_each(|reader| drop(reader.event().expect("a snapshot")));
    let (status, answer) = server.get("/api/v1/events");
    assert_eq!((status, &answer["error"]["code"]), (503, &"busy".into()));
    assert!(answer["error"]["message"].as_str().is_some_and(|text| text.contains("http.max_connections")), "{answer}");
    let (status, head, body) = server.ask("HEAD", "/api/v1/events");
    assert_eq!((status, body.as_str()), (200, ""), "{head}");
    drop(readers.pop());
    let end = Instant::now() + PATIENCE;
    while Reader::open(&server, "").event().is_none() {
        assert!(Instant::now() < end, "the place of a closed stream stays taken");
    }
}

#[test]
fn beyond_the_connections_the_answer_has_the_usual_form() {
    let server = Server::with(|http| http.max_connections = 1);
    let mut first = Reader::open(&server, "");
    first.event().expect("a snapshot");
    let mut refused = String::new();
    server.connect().read_to_string(&mut refused).unwrap();
    let (status, head, body) = split(&refused);
    let mut found = Vec::new();
    let doc = described();
    differences(&doc, &doc["components"]["schemas"]["Error"], &serde_json::from_str(&body).unwrap(), "", &mut found);
    assert!(status == 503 && head.contains("no-store") && found.is_empty(), "{refused}: {found:?}");
}

#[test]
fn streams_end_with_the_server() {
    let server = Server::start();
    let mut reader = Reader::open(&server, "");
    reader.event().expect("a snapshot");
    let begun = Instant::now();
    let Server { http, .. } = server;
    http.shutdown();
    while reader.event().is_some() {}
    // Not cut off when patience ends, but told.
    assert!(begun.elapsed() < crate::http::server::STOP_TIMEOUT, "{:?}", begun.elapsed());
}

#[test]
fn a_reader_that_sleeps_loses_its_connection_in_the_end() {
    let write = Duration::from_millis(300);
    let server = Server::impatient(Timeouts { write, ..Timeouts::default() }, |http| http.max_connections = 8);
    let mut asleep = Reader::open(&server, "");
    asleep.event().expect("a snapshot");
    // More than both ends' buffers hold, told as events, which are not skipped while they are kept.
    let end = Instant::now() + PATIENCE;
    let long = "x".repeat(1000);
    let detail = || (0..20).map(|_| ("names", long.clone())).collect::<Vec<_>>();
    let mut places = || {
        server.view.status.events.add(EventKind::Rules, &Actor::File, &long, detail());
        std::thread::sleep(Duration::from_millis(1));
        let sent = asleep.0.get_mut().write_all(b"x");
        sent.is_err()
    };
    while !places() {
        assert!(Instant::now() < end, "still served after {PATIENCE:?}");
    }
}
