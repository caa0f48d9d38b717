//! Asks the side port once a second: the snapshot, the hottest keys, the newest events; and once for the last minutes. What
//! an older sidecar does not have is left out. A sidecar that is gone is asked again every second.

use std::io;
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::cli::health::{self, Target};

/// The dashboard's own step.
const EVERY: Duration = Duration::from_secs(1);

/// Answers that the view has not taken yet. It takes them five times a second; what it cannot take waits here, and the next
/// question with it.
const WAITING_MAX: usize = 4;

/// Keys that are asked for: more do not fit beside the rest.
const KEYS: &str = "/api/v1/keys?by=hits&n=10";

/// What was read in one look.
#[derive(Debug, Default)]
pub(super) struct Look {
    pub(super) dashboard: Value,
    /// Null where the sidecar has none, as the two below.
    pub(super) keys: Value,
    pub(super) events: Value,
}

#[derive(Debug)]
pub(super) enum News {
    /// Of the last minutes, seen once.
    Past(Value),
    Snapshot(Box<Look>),
    /// No answer, and why.
    Lost(String),
}

/// The thread that asks. It ends with the receiver.
pub(super) struct Feed(Receiver<News>);

impl Feed {
    pub(super) fn start(target: Target) -> io::Result<Feed> {
        let (news, heard) = sync_channel(WAITING_MAX);
        std::thread::Builder::new().name("nearside-top".to_owned()).spawn(move || follow(&target, &news))?;
        Ok(Feed(heard))
    }

    /// What has come since the last call; an error where nothing can come any more.
    pub(super) fn news(&self) -> io::Result<Vec<News>> {
        let mut news = Vec::new();
        loop {
            match self.0.try_recv() {
                Ok(one) => news.push(one),
                Err(TryRecvError::Empty) => return Ok(news),
                Err(TryRecvError::Disconnected) => return Err(io::Error::other("the thread that asks has ended")),
            }
        }
    }
}

fn follow(target: &Target, news: &SyncSender<News>) {
    let mut seeded = false;
    loop {
        let asked = Instant::now();
        let heard = match look(target) {
            Ok(look) => News::Snapshot(Box::new(look)),
            Err(why) => News::Lost(why),
        };
        if !seeded && matches!(heard, News::Snapshot(_)) {
            seeded = true;
            if news.send(News::Past(history(target))).is_err() {
                return;
            }
        }
        if news.send(heard).is_err() {
            return;
        }
        std::thread::sleep(EVERY.saturating_sub(asked.elapsed()));
    }
}

pub(super) fn look(target: &Target) -> Result<Look, String> {
    let dashboard = ask(target, "/api/v1/dashboard")?;
    let or_null = |path: &str| ask(target, path).unwrap_or_default();
    Ok(Look { dashboard, keys: or_null(KEYS), events: or_null("/api/v1/events/recent") })
}

/// Null where the sidecar has none.
pub(super) fn history(target: &Target) -> Value {
    ask(target, "/api/v1/history?range=15m").unwrap_or_default()
}

fn ask(target: &Target, path: &str) -> Result<Value, String> {
    let target = target.path(path);
    let answer = health::ask(&target).map_err(|e| format!("{target}: {e}"))?;
    if answer.status != 200 {
        return Err(format!("{target}: status {}", answer.status));
    }
    serde_json::from_str(&answer.body).map_err(|e| format!("{target}: not the answer of Nearside: {e}"))
}
