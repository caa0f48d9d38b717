//! Request to answer: which paths there are, who may ask (`Host`), what each says. Nothing here waits but changes. Paths are
//! compared whole, so `..`, `//` and escapes lead nowhere. Every JSON answer starts with `version` and `at`.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use bytes::Bytes;
use hyper::body::Body;
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::{Method, Request, Response, StatusCode, Uri, Version};
use serde::Serialize;
use tokio::sync::mpsc;

use super::HttpConfig;
use super::alerts::Alerts;
use super::api::Section;
use super::api::events::{Hub, Stream};
use super::body::{Payload, gzip, takes_gzip};
use super::change::{Change, Order, POST_ONLY};
use super::costs::Costs;
use super::experiments::Experiments;
use super::health::{Checks, Vitals};
use super::live::Target;
use super::page::{self, File};
use super::policy::Policy;
use super::query::query;
use crate::live::Running;
use crate::observe::status::{LaneStatus, Status};
use crate::observe::{View, families, stamp};

const EVENT_STREAM: HeaderValue = HeaderValue::from_static("text/event-stream");
const JSON: HeaderValue = HeaderValue::from_static("application/json");
const ALLOW: HeaderValue = HeaderValue::from_static("GET, HEAD");
const ALLOW_POST: HeaderValue = HeaderValue::from_static("POST");

pub(super) type Answer = Response<Payload>;

/// What there is to ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Page {
    Metrics,
    Live,
    Ready,
    Startup,
    Health,
    Cache,
    Experiments,
    Policy,
    Keys,
    Vitals,
    Alerts,
    Costs,
    Api(Section),
    File(&'static File),
}

/// Every path that is only read. Those of probes and scrapers take whatever stands behind `?`; what is added here is added to
/// openapi.json.
const PAGES: &[(&str, Page)] = &[
    ("/metrics", Page::Metrics),
    ("/metrics/prom", Page::Metrics),
    ("/health", Page::Health),
    ("/health/live", Page::Live),
    ("/health/ready", Page::Ready),
    ("/health/startup", Page::Startup),
    ("/internal/cache", Page::Cache),
    ("/api/v1/experiments", Page::Experiments),
    ("/api/v1/dashboard", Page::Api(Section::Snapshot)),
    ("/api/v1/dashboard/metrics", Page::Api(Section::Numbers)),
    ("/api/v1/dashboard/cache", Page::Api(Section::Cache)),
    ("/api/v1/dashboard/cache-stats", Page::Api(Section::Cache)),
    ("/api/v1/metrics/cache", Page::Api(Section::Cache)),
    ("/api/v1/dashboard/policy", Page::Policy),
    ("/api/v1/dashboard/policy-stats", Page::Policy),
    ("/api/v1/dashboard/health", Page::Vitals),
    ("/api/v1/dashboard/costs", Page::Costs),
    ("/api/v1/dashboard/cost-breakdown", Page::Costs),
    ("/api/v1/alerts", Page::Alerts),
    (super::keys::PATH, Page::Keys),
    ("/api/v1/dashboard/runs", Page::Api(Section::Runs)),
    ("/api/v1/dashboard/recent-runs", Page::Api(Section::Runs)),
    ("/api/v1/history", Page::Api(Section::History)),
    ("/api/v1/events", Page::Api(Section::Events)),
    ("/api/v1/openapi.json", Page::Api(Section::OpenApi)),
];

/// What answers under `DASHBOARD` answers here too, for the dashboards that exist already.
const DASHBOARD_ALIAS: &str = "/api/m1/dashboard";
const DASHBOARD: &str = "/api/v1/dashboard";

/// Whether `path` is `known`, or its alias.
fn names(known: &str, path: &str) -> bool {
    known == path
        || path
            .strip_prefix(DASHBOARD_ALIAS)
            .zip(known.strip_prefix(DASHBOARD))
            .is_some_and(|(is, should)| is == should)
}

/// All of these with their aliases.
#[cfg(test)]
pub(super) fn paths() -> Vec<String> {
    let alias = |path: &str| path.strip_prefix(DASHBOARD).map(|rest| format!("{DASHBOARD_ALIAS}{rest}"));
    PAGES.iter().flat_map(|(path, _)| std::iter::once((*path).to_owned()).chain(alias(path))).collect()
}

pub(super) struct Routes {
    production: bool,
    pub(super) view: Arc<View>,
    pub(super) running: Arc<Running>,
    pub(super) orders: mpsc::Sender<Order>,
    pub(super) hub: Hub,
}

/// Why a request gets no page.
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    pub(super) code: &'static str,
    pub(super) message: String,
}

impl Routes {
    pub(super) fn new(config: HttpConfig, view: Arc<View>) -> Self {
        let HttpConfig { production, running, orders, max_connections, .. } = config;
        Self { production, view, running, orders, hub: Hub::new(max_connections) }
    }

    /// `near`: over a loopback listener.
    pub(super) async fn respond<B>(&self, peer: SocketAddr, near: bool, request: Request<B>) -> Answer
    where
        B: Body,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let path = request.uri().path();
        let packs = takes_gzip(request.headers());
        let mut answer = if let Some(change) = Change::at(path) {
            self.change(change, request).await
        } else if let Some(target) = Target::at(path) {
            self.live(target, peer, request).await
        } else {
            self.page(&request).and_then(|page| self.show(page, near, &request)).unwrap_or_else(Refusal::answer)
        };
        if packs {
            gzip(&mut answer);
        }
        // Health and metrics of a second ago are of no use to anybody (the page's files say otherwise of themselves), nor is
        // a guess at their type.
        let headers = answer.headers_mut();
        headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        answer
    }

    fn page<B: Body>(&self, request: &Request<B>) -> Result<Page, Refusal> {
        self.check_host(request)?;
        let path = request.uri().path();
        let page = self.find(path).ok_or_else(|| Refusal {
            status: StatusCode::NOT_FOUND,
            code: "not_found",
            message: "there is nothing here; /api/v1/openapi.json says what there is".to_owned(),
        })?;
        readable(request)?;
        Ok(page)
    }

    fn find(&self, path: &str) -> Option<Page> {
        let known = PAGES.iter().find(|(known, _)| names(known, path)).map(|(_, page)| *page);
        let found = known.or_else(|| page::file(path).map(Page::File));
        found.filter(|page| !(*page == Page::Cache && self.production))
    }

    /// A page of another origin can reach this port through a name that it makes point here (DNS rebinding), but cannot
    /// make the browser send another `Host` than that name. Addresses are allowed: kubelet and Prometheus use the pod's.
    pub(super) fn check_host<B>(&self, request: &Request<B>) -> Result<(), Refusal> {
        let host = match host(request.uri(), request.headers()) {
            Ok(Some(host)) => host,
            // HTTP/1.0 has no Host, and no browser speaks it.
            Ok(None) if request.version() == Version::HTTP_10 => return Ok(()),
            Ok(None) | Err(()) => {
                return Err(Refusal {
                    status: StatusCode::BAD_REQUEST,
                    code: "bad_host",
                    message: "one Host header is needed".to_owned(),
                });
            }
        };
        if name(host).is_some_and(|name| self.allows(&name)) {
            return Ok(());
        }
        Err(Refusal {
            status: StatusCode::FORBIDDEN,
            code: "host_not_allowed",
            message: "this Host is not in http.allowed_hosts".to_owned(),
        })
    }

    fn allows(&self, name: &str) -> bool {
        name.parse::<IpAddr>().is_ok() || name == "localhost" || self.allows_by_name(name)
    }

    fn allows_by_name(&self, name: &str) -> bool {
        // In lower case, as `name` is.
        self.running.load().config.http.allowed_hosts.iter().any(|host| host == name)
    }

    fn show<B: Body>(&self, page: Page, near: bool, request: &Request<B>) -> Result<Answer, Refusal> {
        let status = &*self.view.status;
        if matches!(page, Page::Policy | Page::Experiments | Page::Vitals | Page::Alerts | Page::Costs) {
            query(request, &[])?;
        }
        Ok(match page {
            Page::Metrics => self.metrics(),
            Page::Live => json(StatusCode::OK, Plain { status: "ok" }),
            Page::Ready => json(code(status.ready()), Ready::of(status)),
            Page::Startup => json(code(status.started()), Plain { status: startup(status) }),
            Page::Health => json(code(status.ready()), Health::of(&self.view)),
            Page::Vitals => json(StatusCode::OK, Vitals::of(&self.view)),
            Page::Costs => json(StatusCode::OK, Costs::of(&self.view.metrics)),
            Page::Alerts => json(StatusCode::OK, Alerts::of(&self.view, usize::MAX)),
            Page::Policy => json(StatusCode::OK, Policy::of(&self.view.metrics)),
            Page::Cache => json(StatusCode::OK, Cache::of(&self.view)),
            Page::Experiments => json(StatusCode::OK, Experiments::of(&self.view.metrics.arms)),
            Page::Keys => self.keys(near, request)?,
            Page::Api(section) => self.section(section, request)?,
            Page::File(file) => self.file(file, request)?,
        })
    }

    fn metrics(&self) -> Answer {
        match families::render(&self.view) {
            Ok(text) => answer(StatusCode::OK, HeaderValue::from_static(prometheus::TEXT_FORMAT), text.into()),
            Err(error) => {
                Refusal { status: StatusCode::INTERNAL_SERVER_ERROR, code: "internal", message: error.to_string() }
                    .answer()
            }
        }
    }
}

/// What can only be read is asked for as such.
pub(super) fn readable<B: Body>(request: &Request<B>) -> Result<(), Refusal> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return Err(Refusal {
            status: StatusCode::METHOD_NOT_ALLOWED,
            code: "method_not_allowed",
            message: format!("{} can only be read", request.uri().path()),
        });
    }
    if !request.body().is_end_stream() {
        return Err(Refusal {
            status: StatusCode::PAYLOAD_TOO_LARGE,
            code: "body_not_accepted",
            message: "a request has no body here".to_owned(),
        });
    }
    Ok(())
}

/// The host that was asked for: that of an absolute URI, else of the one Host header.
fn host<'a>(uri: &'a Uri, headers: &'a HeaderMap) -> Result<Option<&'a str>, ()> {
    let mut all = headers.get_all(header::HOST).iter();
    let first = all.next().map(|value| value.to_str().map_err(|_| ())).transpose()?;
    if all.next().is_some() {
        return Err(());
    }
    Ok(uri.authority().map(|authority| authority.as_str()).or(first))
}

/// Host without port, brackets and final dot, in lower case; none where what follows the name is no port.
fn name(host: &str) -> Option<String> {
    let (name, rest) = match host.strip_prefix('[') {
        Some(inner) => inner.split_once(']')?,
        None => host.split_at(host.find(':').unwrap_or(host.len())),
    };
    let port = rest.strip_prefix(':').unwrap_or(rest);
    let at_an_end = rest.is_empty() || rest.starts_with(':');
    (at_an_end && port.bytes().all(|b| b.is_ascii_digit()))
        .then(|| name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase())
}

fn code(good: bool) -> StatusCode {
    if good { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
}

/// Where in its life the process is; `ok` is that it takes commands.
fn startup(status: &Status) -> &'static str {
    match (status.draining(), status.started()) {
        (true, _) => "draining",
        (false, true) => "ok",
        (false, false) => "starting",
    }
}

#[derive(Serialize)]
struct Plain {
    status: &'static str,
}

fn degraded(status: &Status) -> Vec<String> {
    let stale = status.stale_for().map(|nanos| format!("outage: serving stale reads since {}", stamp::ago(nanos)));
    status.degraded().into_iter().chain(stale).collect()
}

/// Ready is whoever takes commands; the rest is for whoever looks.
#[derive(Serialize)]
struct Ready {
    status: &'static str,
    coherence: &'static str,
    degraded: Vec<String>,
}

impl Ready {
    fn of(status: &Status) -> Self {
        Self { status: status.phase(), coherence: status.coherence().as_str(), degraded: degraded(status) }
    }
}

#[derive(Serialize)]
struct Health {
    /// `starting`, `warming`, `ok`, `degraded`, `draining`.
    status: &'static str,
    mode: &'static str,
    backend: &'static str,
    coherence: &'static str,
    coherence_why: String,
    /// Absent where there is none to be had.
    upstream: Option<Upstream>,
    channel: Channel,
    degraded: Vec<String>,
    #[serde(flatten)]
    vitals: Checks,
}

/// The subscription to the sidecars' channel.
#[derive(Serialize)]
struct Channel {
    state: &'static str,
    error: Option<String>,
    for_ms: Option<f64>,
    /// `used`, or `not used: <why>`; absent where no lane is in `pubsub` mode.
    keyspace_events: Option<String>,
}

impl Channel {
    fn of(status: &Status) -> Self {
        let channel = &status.channel;
        Self {
            state: channel.state().as_str(),
            error: Some(channel.why()).filter(|why| !why.is_empty()),
            for_ms: channel.age().map(|nanos| nanos as f64 / 1e6),
            keyspace_events: Some(channel.events()).filter(|what| !what.is_empty()),
        }
    }
}

#[derive(Serialize)]
struct Upstream {
    up: bool,
    error: Option<String>,
}

impl Health {
    fn of(view: &View) -> Self {
        let status = &view.status;
        let degraded = degraded(status);
        Self {
            status: match status.phase() {
                "ok" if !degraded.is_empty() => "degraded",
                phase => phase,
            },
            mode: status.mode().as_str(),
            backend: status.backend(),
            coherence: status.coherence().as_str(),
            coherence_why: status.coherence_why(),
            upstream: (status.backend() == "upstream").then(|| Upstream {
                up: status.upstream_up(),
                error: Some(status.upstream_error()).filter(|error| !error.is_empty()),
            }),
            channel: Channel::of(status),
            degraded,
            vitals: Checks::of(view),
        }
    }
}

#[derive(Serialize)]
struct Cache {
    mode: &'static str,
    coherence: &'static str,
    entries: u64,
    size_bytes: u64,
    hits: u64,
    misses: u64,
    hit_rate: Option<f64>,
    bypasses: u64,
    coalesced: u64,
    updates: u64,
    fills_discarded: u64,
    invalidations: u64,
    evictions: u64,
    flushes: u64,
    pending_writes: u64,
    lanes: Vec<Lane>,
}

#[derive(Serialize)]
struct Lane {
    db: u32,
    user: String,
    link: &'static str,
    mode: &'static str,
    live: bool,
    epoch: u64,
    lease_age_ms: Option<f64>,
}

impl Cache {
    fn of(view: &View) -> Self {
        let (metrics, status) = (&view.metrics, &view.status);
        let (hits, misses) = (metrics.hits(), metrics.misses());
        Self {
            mode: status.mode().as_str(),
            coherence: status.coherence().as_str(),
            entries: metrics.entries.get(),
            size_bytes: metrics.bytes.get(),
            hits,
            misses,
            hit_rate: (hits + misses > 0).then(|| hits as f64 / (hits + misses) as f64),
            bypasses: metrics.bypass.sum(),
            coalesced: metrics.coalesced.get(),
            updates: metrics.updates.get(),
            fills_discarded: metrics.discarded.sum(),
            invalidations: metrics.invalidations.sum(),
            evictions: metrics.evictions.sum(),
            flushes: metrics.flushes.sum(),
            pending_writes: metrics.pending.get(),
            lanes: status.lanes().iter().map(|lane| Lane::of(lane)).collect(),
        }
    }
}

impl Lane {
    fn of(lane: &LaneStatus) -> Self {
        Self {
            db: lane.db,
            user: lane.user.clone(),
            link: lane.link().as_str(),
            mode: lane.mode().as_str(),
            live: lane.live(),
            epoch: lane.epoch(),
            lease_age_ms: lane.lease_age().map(|nanos| nanos as f64 / 1e6),
        }
    }
}

/// What every JSON answer starts with.
#[derive(Serialize)]
struct Envelope<T> {
    version: &'static str,
    at: String,
    #[serde(flatten)]
    body: T,
}

#[derive(Serialize)]
struct Failure {
    error: Fault,
}

#[derive(Serialize)]
struct Fault {
    code: &'static str,
    message: String,
}

impl Refusal {
    pub(super) fn answer(self) -> Answer {
        let fault = Fault { code: self.code, message: self.message };
        let mut answer = json(self.status, Failure { error: fault });
        let headers = answer.headers_mut();
        match self.status {
            StatusCode::METHOD_NOT_ALLOWED => {
                let allowed = if self.code == POST_ONLY { ALLOW_POST } else { ALLOW };
                headers.insert(header::ALLOW, allowed);
            }
            StatusCode::UNAUTHORIZED => {
                headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            // The body is not read, so nothing can follow it.
            StatusCode::PAYLOAD_TOO_LARGE => {
                headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            _ => {}
        }
        answer
    }
}

pub(super) fn json<T: Serialize>(status: StatusCode, body: T) -> Answer {
    let mut answer = json_text(to_text(&body));
    if answer.status() == StatusCode::OK {
        *answer.status_mut() = status;
    }
    answer
}

/// A body of plain structs cannot fail to serialize; should it ever, the answer says so instead of being empty.
pub(super) fn json_text<T: Into<Bytes>>(text: Option<T>) -> Answer {
    match text {
        Some(text) => answer(StatusCode::OK, JSON, text.into()),
        None => {
            let error =
                Bytes::from_static(br#"{"error":{"code":"internal","message":"the answer cannot be written"}}"#);
            answer(StatusCode::INTERNAL_SERVER_ERROR, JSON, error)
        }
    }
}

/// The text of a JSON answer, on one line.
pub(super) fn to_text<T: Serialize>(body: &T) -> Option<String> {
    serde_json::to_string(&Envelope { version: env!("CARGO_PKG_VERSION"), at: stamp::now(), body }).ok()
}

/// None: for HEAD.
pub(super) fn event_stream(stream: Option<Stream>) -> Answer {
    let mut answer = answer(StatusCode::OK, EVENT_STREAM, Bytes::new());
    if let Some(stream) = stream {
        *answer.body_mut() = Payload::Events(stream);
    }
    answer
}

pub(super) fn answer(status: StatusCode, content_type: HeaderValue, body: Bytes) -> Answer {
    let mut answer = Response::new(Payload::Whole(Some(body)));
    *answer.status_mut() = status;
    answer.headers_mut().insert(header::CONTENT_TYPE, content_type);
    answer
}
