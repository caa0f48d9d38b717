//! What the side port has dropped: POST /api/v1/invalidate and /api/v1/flush; and the way of all changes: the bearer
//! token of `http.token_file` is asked for, and the work, which is the data thread's, is handed over as an [`Order`], waited
//! for, and answered in JSON.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use hyper::body::Body;
use hyper::header::{self, HeaderMap};
use hyper::{Method, Request, StatusCode};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::query::query;
use super::routes::{Answer, Refusal, Routes, json};
use crate::coherence::{Message, NotDropped, Op, Wanted};
use crate::live;
use crate::observe::events::Actor;

/// A body is a list of names; more at once is several requests.
const BODY_MAX: usize = 1 << 20;

/// For the body to arrive, and for the data thread and upstream to do it.
const BODY_LIMIT: Duration = Duration::from_secs(10);
const WORK_LIMIT: Duration = Duration::from_secs(30);

/// The code of the answer to another method.
pub(super) const POST_ONLY: &str = "post_only";

const INVALIDATE: &str = "/api/v1/invalidate";
const FLUSH: &str = "/api/v1/flush";

/// Every path here.
#[cfg(test)]
pub(super) const PATHS: [&str; 2] = [INVALIDATE, FLUSH];

/// Orders that wait for the data thread.
pub(crate) const ORDERS_MAX: usize = 16;

/// Work for the data thread, and where the outcome goes.
pub(crate) enum Order {
    /// Something to drop everywhere; how many entries that were here.
    Drop {
        messages: Vec<Message>,
        done: oneshot::Sender<Result<usize, NotDropped>>,
    },
    Change {
        change: live::Change,
        actor: Actor,
        done: oneshot::Sender<Result<live::Done, live::Refused>>,
    },
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    Invalidate,
    Flush,
}

/// Either names by kind, or one message as the channel has it.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Asked {
    key: Vec<String>,
    prefix: Vec<String>,
    pattern: Vec<String>,
    regex: Vec<String>,
    tag: Vec<String>,
    op: Option<String>,
    args: Vec<String>,
    /// All names are base64.
    base64: bool,
}

#[derive(Serialize)]
struct Dropped {
    /// Entries of this sidecar. The others have been told.
    dropped: usize,
}

impl Change {
    pub(super) fn at(path: &str) -> Option<Change> {
        match path {
            INVALIDATE => Some(Change::Invalidate),
            FLUSH => Some(Change::Flush),
            _ => None,
        }
    }
}

impl Routes {
    pub(super) async fn change<B>(&self, change: Change, request: Request<B>) -> Answer
    where
        B: Body,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        match self.try_change(change, request).await {
            Ok(dropped) => json(StatusCode::OK, Dropped { dropped }),
            Err(refusal) => refusal.answer(),
        }
    }

    async fn try_change<B>(&self, change: Change, request: Request<B>) -> Result<usize, Refusal>
    where
        B: Body,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        self.check_host(&request)?;
        if *request.method() != Method::POST {
            let message = format!("{} is a change: POST it", request.uri().path());
            return Err(refusal(StatusCode::METHOD_NOT_ALLOWED, POST_ONLY, message));
        }
        self.authorize(request.headers())?;
        query(&request, &[])?;
        let body = body(request).await?;
        let messages = match change {
            Change::Flush => vec![Message { op: Op::Flush, args: Vec::new() }],
            Change::Invalidate => messages(&body).map_err(malformed)?,
        };
        match self.order(|done| Order::Drop { messages, done }).await? {
            Ok(dropped) => Ok(dropped),
            Err(NotDropped::Malformed(why)) => Err(malformed(why.to_string())),
            Err(why @ NotDropped::NotPublished(..)) => {
                Err(refusal(StatusCode::BAD_GATEWAY, "not_published", why.reply()))
            }
        }
    }

    /// No token configured: nobody may change anything from here.
    pub(super) fn authorize(&self, headers: &HeaderMap) -> Result<(), Refusal> {
        let running = self.running.load();
        let Some(token) = &running.config.http.token else {
            let message = "changes over HTTP need a token: set http.token_file".to_owned();
            return Err(refusal(StatusCode::FORBIDDEN, "no_token_configured", message));
        };
        let given = headers.get(header::AUTHORIZATION).map_or(&b""[..], |v| v.as_bytes());
        let bearer = given.split_at_checked(7).filter(|(scheme, _)| scheme.eq_ignore_ascii_case(b"bearer "));
        if bearer.is_some_and(|(_, given)| same(token.expose().as_bytes(), given)) {
            return Ok(());
        }
        let message = "the bearer token of http.token_file is needed".to_owned();
        Err(refusal(StatusCode::UNAUTHORIZED, "unauthorized", message))
    }

    /// Hands work over and waits for its outcome.
    pub(super) async fn order<T>(&self, order: impl FnOnce(oneshot::Sender<T>) -> Order) -> Result<T, Refusal> {
        let (done, outcome) = oneshot::channel();
        if let Err(e) = self.orders.try_send(order(done)) {
            let message = match e {
                TrySendError::Full(_) => "too many changes are waiting",
                TrySendError::Closed(_) => "the process is about to end",
            };
            return Err(refusal(StatusCode::SERVICE_UNAVAILABLE, "busy", message.to_owned()));
        }
        match timeout(WORK_LIMIT, outcome).await {
            Ok(Ok(outcome)) => Ok(outcome),
            Ok(Err(_)) => {
                Err(refusal(StatusCode::SERVICE_UNAVAILABLE, "busy", "the process is about to end".to_owned()))
            }
            Err(_) => {
                let message = format!("not done within {WORK_LIMIT:?}, it goes on");
                Err(refusal(StatusCode::GATEWAY_TIMEOUT, "timeout", message))
            }
        }
    }
}

/// The whole body, within size and time.
pub(super) async fn body<B>(request: Request<B>) -> Result<Bytes, Refusal>
where
    B: Body,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    match timeout(BODY_LIMIT, Limited::new(request.into_body(), BODY_MAX).collect()).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(_)) => {
            let message = format!("the body is not whole, or larger than {BODY_MAX} bytes");
            Err(refusal(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", message))
        }
        Err(_) => {
            let message = format!("the body did not arrive within {BODY_LIMIT:?}");
            Err(refusal(StatusCode::REQUEST_TIMEOUT, "timeout", message))
        }
    }
}

pub(super) fn refusal(status: StatusCode, code: &'static str, message: String) -> Refusal {
    Refusal { status, code, message }
}

pub(super) fn malformed(message: String) -> Refusal {
    refusal(StatusCode::BAD_REQUEST, "malformed", message)
}

fn messages(body: &[u8]) -> Result<Vec<Message>, String> {
    let asked: Asked = serde_json::from_slice(body).map_err(|e| format!("the body is not as it should be: {e}"))?;
    let kinds = [
        ("key", asked.key),
        ("prefix", asked.prefix),
        ("pattern", asked.pattern),
        ("regex", asked.regex),
        ("tag", asked.tag),
    ];
    let named = kinds.into_iter().filter(|(_, names)| !names.is_empty());
    let mut wanted: Vec<Wanted> =
        named.map(|(op, args)| Wanted { op: op.to_owned(), args, base64: asked.base64 }).collect();
    match asked.op {
        Some(op) => wanted.push(Wanted { op, args: asked.args, base64: asked.base64 }),
        None if !asked.args.is_empty() => return Err("args belong to an op".to_owned()),
        None => {}
    }
    if wanted.is_empty() {
        return Err("name what to drop: key, prefix, pattern, regex or tag with a list, or op and args".to_owned());
    }
    wanted.into_iter().map(|w| w.message().map_err(|e| e.to_string())).collect()
}

/// Compares secrets without telling by the time it takes how much of them agrees.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |diff, (x, y)| diff | (x ^ y)) == 0
}
