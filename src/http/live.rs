//! What runs, and what changed it: rules, configuration and events to be read; rules, mode and a reload to be ordered, which
//! needs the bearer token. Only HTTP is known here: what a change means and whether it may be is `crate::live`'s.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use hyper::body::Body;
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::{Method, Request, StatusCode};
use serde::{Deserialize, Serialize};

use super::change::{Order, body, malformed, refusal};
use super::query::{decoded, query};
use super::routes::{Answer, Refusal, Routes, json, readable};
use crate::config::{self, Place};
use crate::live::{Change, Refused, Wish};
use crate::observe::events::{Actor, EVENTS_MAX, Event};
use crate::observe::stamp;

const RULES: &str = "/api/v1/rules";
const CONFIG: &str = "/api/v1/config";
const EVENTS: &str = "/api/v1/events/recent";
const CANDIDATES: &str = "/api/v1/candidates";
const MODE: &str = "/api/v1/mode";
const RELOAD: &str = "/api/v1/reload";

/// Every path here, beside a rule's below `RULES`.
#[cfg(test)]
pub(super) const PATHS: [&str; 6] = [RULES, CONFIG, EVENTS, CANDIDATES, MODE, RELOAD];

/// Events that are shown unless more are asked for.
const EVENTS_SHOWN: usize = 50;

pub(super) enum Target {
    Rules,
    /// As it stands in the path.
    Rule(String),
    Config,
    Events,
    Candidates,
    Mode,
    Reload,
}

/// Why an order is not carried out.
enum No {
    Plain(Refusal),
    /// With all that is wrong, one sentence each.
    Bad(Vec<String>),
}

impl From<Refusal> for No {
    fn from(refusal: Refusal) -> No {
        No::Plain(refusal)
    }
}

impl Target {
    pub(super) fn at(path: &str) -> Option<Target> {
        Some(match path {
            RULES => Target::Rules,
            CONFIG => Target::Config,
            EVENTS => Target::Events,
            MODE => Target::Mode,
            RELOAD => Target::Reload,
            CANDIDATES => Target::Candidates,
            _ => {
                let name = path.strip_prefix(RULES)?.strip_prefix('/')?;
                let whole = !name.is_empty() && !name.contains('/');
                whole.then(|| Target::Rule(name.to_owned()))?
            }
        })
    }

    /// The methods of `Allow`.
    fn allows(&self) -> &'static [Method] {
        match self {
            Target::Rules | Target::Config | Target::Events | Target::Candidates => &[Method::GET, Method::HEAD],
            Target::Rule(_) => &[Method::PUT, Method::DELETE],
            Target::Mode => &[Method::GET, Method::HEAD, Method::PUT],
            Target::Reload => &[Method::POST],
        }
    }
}

impl Routes {
    pub(super) async fn live<B>(&self, target: Target, peer: SocketAddr, request: Request<B>) -> Answer
    where
        B: Body,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        if let Err(refusal) = self.check_host(&request) {
            return refusal.answer();
        }
        let allowed = target.allows();
        if !allowed.contains(request.method()) {
            return wrong_method(request.uri().path(), allowed);
        }
        let done = match &target {
            Target::Rules => plainly(&request).map(|()| self.rules()).map_err(No::from),
            Target::Config => plainly(&request).map(|()| self.config()).map_err(No::from),
            Target::Events => readable(&request).and_then(|()| self.events(&request)).map_err(No::from),
            Target::Candidates => self.candidates(&request).map_err(No::from),
            Target::Mode if *request.method() != Method::PUT => {
                plainly(&request).map(|()| self.mode()).map_err(No::from)
            }
            Target::Rule(_) | Target::Mode | Target::Reload => self.carry_out(target, peer, request).await,
        };
        done.unwrap_or_else(No::answer)
    }

    /// With the counts of `NEARSIDE RULES`; `rules` have the keys and values that a PUT takes.
    fn rules(&self) -> Answer {
        let state = self.running.load();
        let patterns = &self.view.metrics.patterns;
        let counts = |rule: &config::Rule| {
            let counts = self.view.metrics.counts_of(Some(patterns.named(&rule.name)));
            (rule.name.clone(), Counts { hits: counts.hits, misses: counts.misses, stored: counts.sets })
        };
        let mut answer = json(
            StatusCode::OK,
            Rules {
                generation: state.generation,
                by_hand: state.by_hand(),
                rules: state.config.rules.iter().map(config::rule_json).collect(),
                counts: state.config.rules.iter().map(counts).collect(),
            },
        );
        if let Ok(tag) = HeaderValue::from_str(&format!("\"{}\"", state.generation)) {
            answer.headers_mut().insert(header::ETAG, tag);
        }
        answer
    }

    fn config(&self) -> Answer {
        let state = self.running.load();
        json(StatusCode::OK, Shown { by_hand: state.by_hand(), config: config::json(&state.config) })
    }

    /// As the data thread has it: what a PUT answers is here by then.
    fn mode(&self) -> Answer {
        json(StatusCode::OK, Mode { mode: self.view.status.mode().as_str() })
    }

    fn events<B>(&self, request: &Request<B>) -> Result<Answer, Refusal> {
        let n = match &query(request, &["n"])?[..] {
            [] => EVENTS_SHOWN,
            [(_, n), ..] => n
                .parse()
                .ok()
                .filter(|n| (1..=EVENTS_MAX).contains(n))
                .ok_or_else(|| malformed(format!("n: {n:?} is no number from 1 to {EVENTS_MAX}")))?,
        };
        let (events, total) = self.view.status.events.recent(n);
        Ok(json(StatusCode::OK, Events { total, events: events.into_iter().map(Told::of).collect() }))
    }

    async fn carry_out<B>(&self, target: Target, peer: SocketAddr, request: Request<B>) -> Result<Answer, No>
    where
        B: Body,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        self.authorize(request.headers())?;
        let actor = Actor::Http(peer.to_string());
        let change = match target {
            Target::Rule(name) => rule_change(&name, request).await?,
            Target::Mode => mode_change(request).await?,
            Target::Reload => {
                query(&request, &[])?;
                Change::Reload
            }
            Target::Rules | Target::Config | Target::Events | Target::Candidates => return Err(not_there().into()),
        };
        let done = self.order(|done| Order::Change { change, actor, done }).await?;
        done.map(|done| json(StatusCode::OK, done)).map_err(No::of)
    }
}

/// Read as it is, with no wish behind `?`.
fn plainly<B: Body>(request: &Request<B>) -> Result<(), Refusal> {
    readable(request)?;
    query(request, &[]).map(drop)
}

async fn rule_change<B>(name: &str, request: Request<B>) -> Result<Change, Refusal>
where
    B: Body,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let name = decoded(name).ok_or_else(|| malformed("the rule's name in the path is no text in UTF-8".to_owned()))?;
    let puts = *request.method() == Method::PUT;
    let known: &[&str] = if puts { &["persist", "generation", "before", "at"] } else { &["persist", "generation"] };
    let mut wish = Wish { generation: if_match(request.headers())?, persist: false };
    let mut place = Place::Natural;
    for (key, value) in query(&request, known)? {
        let wrong = |what: &str| malformed(format!("{key}: {value:?} is {what}"));
        match key.as_str() {
            "persist" => wish.persist = value.parse().map_err(|_| wrong("not true or false"))?,
            "generation" => wish.generation = Some(value.parse().map_err(|_| wrong("no generation of the rules"))?),
            _ if place != Place::Natural => return Err(malformed("before and at: give one place".to_owned())),
            "before" => place = Place::Before(value),
            _ => place = Place::At(value.parse().map_err(|_| wrong("no place, counted from 0"))?),
        }
    }
    if !puts {
        return Ok(Change::DeleteRule { name, wish });
    }
    let body = String::from_utf8(body(request).await?.into());
    let body = body.map_err(|_| malformed("the body is no text in UTF-8".to_owned()))?;
    Ok(Change::PutRule { name, body, place, wish })
}

async fn mode_change<B>(request: Request<B>) -> Result<Change, Refusal>
where
    B: Body,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Asked {
        mode: String,
    }
    query(&request, &[])?;
    let asked: Asked = serde_json::from_slice(&body(request).await?)
        .map_err(|e| malformed(format!("the body is not as it should be, {{\"mode\": \"serve\"}}: {e}")))?;
    config::cache_mode(&asked.mode).map(Change::Mode).map_err(|what| malformed(format!("mode: {what}")))
}

/// `If-Match: "7"`: only if the rules are of generation 7 still. `*` is any, as there always is one.
fn if_match(headers: &HeaderMap) -> Result<Option<u64>, Refusal> {
    let Some(value) = headers.get(header::IF_MATCH) else { return Ok(None) };
    let text = value.to_str().unwrap_or_default().trim();
    if text == "*" {
        return Ok(None);
    }
    let number = text.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(text);
    let generation = number.parse().map_err(|_| {
        malformed("If-Match is no generation of the rules; GET /api/v1/rules says which one they have".to_owned())
    })?;
    Ok(Some(generation))
}

fn not_there() -> Refusal {
    refusal(StatusCode::NOT_FOUND, "not_found", "there is nothing to change here".to_owned())
}

fn wrong_method(path: &str, allowed: &[Method]) -> Answer {
    let allowed = allowed.iter().map(Method::as_str).collect::<Vec<_>>().join(", ");
    let message = format!("{path} takes {allowed}");
    let mut answer = refusal(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", message).answer();
    if let Ok(allowed) = HeaderValue::from_str(&allowed) {
        answer.headers_mut().insert(header::ALLOW, allowed);
    }
    answer
}

impl No {
    fn of(refused: Refused) -> No {
        No::Plain(match refused {
            Refused::Bad(problems) => return No::Bad(problems),
            Refused::NoSuchRule(message) => refusal(StatusCode::NOT_FOUND, "no_such_rule", message),
            Refused::Generation(now) => {
                let message = format!("the rules have changed meanwhile, they are of generation {now} now");
                refusal(StatusCode::PRECONDITION_FAILED, "other_generation", message)
            }
            Refused::NotPersisted(why) => {
                let message = format!("nothing was changed, because it could not be persisted: {why}");
                refusal(StatusCode::CONFLICT, "not_persisted", message)
            }
            Refused::Busy(why) => refusal(StatusCode::SERVICE_UNAVAILABLE, "busy", why.to_owned()),
        })
    }

    fn answer(self) -> Answer {
        match self {
            No::Plain(refusal) => refusal.answer(),
            No::Bad(problems) => {
                let message = format!("nothing was changed: {}", problems.join("; "));
                json(StatusCode::BAD_REQUEST, Failure { error: Fault { code: "invalid", message, problems } })
            }
        }
    }
}

#[derive(Serialize)]
struct Failure {
    error: Fault,
}

#[derive(Serialize)]
struct Fault {
    code: &'static str,
    message: String,
    problems: Vec<String>,
}

#[derive(Serialize)]
struct Rules {
    generation: u64,
    /// What the next reload undoes.
    by_hand: Vec<String>,
    rules: Vec<serde_json::Value>,
    counts: BTreeMap<String, Counts>,
}

#[derive(Serialize)]
struct Counts {
    hits: u64,
    misses: u64,
    stored: u64,
}

#[derive(Serialize)]
struct Mode {
    mode: &'static str,
}

#[derive(Serialize)]
struct Shown {
    by_hand: Vec<String>,
    config: serde_json::Value,
}

#[derive(Serialize)]
struct Events {
    /// Since the start; the last 200 are kept.
    total: u64,
    events: Vec<Told>,
}

#[derive(Serialize)]
pub(super) struct Told {
    id: u64,
    at: String,
    kind: &'static str,
    actor: String,
    message: String,
    detail: BTreeMap<&'static str, String>,
}

impl Told {
    pub(super) fn of(event: Event) -> Told {
        let Event { id, at, kind, actor, message, detail, alert: _ } = event;
        Told { id, at: stamp::at(at), kind: kind.as_str(), actor, message, detail: detail.into_iter().collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_is_one_step_below_the_rules() {
        assert!(matches!(Target::at("/api/v1/rules/a%2Fb"), Some(Target::Rule(name)) if name == "a%2Fb"));
        for path in ["/api/v1/rules/", "/api/v1/rules/a/b", "/api/v1/rulesx", "/api/v1/mode/", "/api/v1"] {
            assert!(Target::at(path).is_none(), "{path}");
        }
    }
}
