//! `nearside preflight`: what a sidecar with this configuration would meet, before one is started: upstream, and (`host`)
//! memory, disk and ports. One line a check. It opens one connection as a lane does, changes nothing, and ends.

mod host;

use std::time::Duration;

use tokio::task::LocalSet;
use tokio::time::timeout;

use crate::coherence::outside;
use crate::command::prefix::Prefix;
use crate::config::{Backend, Config};
use crate::resp::reply;
use crate::upstream::handshake::{self, LaneLink, Refusal};
use crate::upstream::{Profile, connect};

/// A server that is busy with a script answers within this.
const PATIENCE: Duration = Duration::from_secs(10);

/// One line of the report.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Check {
    name: &'static str,
    result: Result<String, String>,
}

impl Check {
    pub(super) fn failed(&self) -> bool {
        self.result.is_err()
    }

    pub(super) fn line(&self) -> String {
        let (word, text) = match &self.result {
            Ok(text) => ("ok", text),
            Err(text) => ("FAIL", text),
        };
        format!("{:<11} {word:<4} {text}\n", self.name)
    }
}

/// Asks upstream, then this host; what cannot be asked without a connection is left out.
pub(super) fn run(config: &Config) -> std::io::Result<Vec<Check>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut all = LocalSet::new().block_on(&runtime, async {
        match timeout(PATIENCE, checks(config)).await {
            Ok(checks) => checks,
            Err(_) => vec![Check { name: "upstream", result: Err(format!("no answer within {PATIENCE:?}")) }],
        }
    });
    all.extend(host::checks(config));
    Ok(all)
}

async fn checks(config: &Config) -> Vec<Check> {
    if config.upstream.backend == Backend::Local {
        return vec![Check {
            name: "upstream",
            result: Ok("embedded: the in-memory engine, nothing is kept".to_owned()),
        }];
    }
    let profile = Profile::configured(&config.upstream);
    let mut link = match open(config, &profile).await {
        Ok(link) => link,
        Err(why) => return vec![Check { name: "upstream", result: Err(why) }],
    };
    let about = format!("{} {} at {}", link.info.server, link.info.version, config.upstream.display());
    let mut checks = vec![Check { name: "upstream", result: Ok(about) }, tracking(&link)];
    checks.push(Check { name: "rights", result: rights(config, &mut link, &profile.user()).await });
    if let Some(prefix) = Prefix::new(&config.upstream.key_prefix) {
        let result = bound(&mut link, &prefix, &profile.user()).await;
        checks.push(Check { name: "key_prefix", result });
    }
    checks
}

async fn open(config: &Config, profile: &Profile) -> Result<LaneLink, String> {
    let stream =
        connect(&config.upstream.endpoint, config.upstream.connect_timeout).await.map_err(|e| e.to_string())?;
    let name = format!("nearside:preflight:{}", std::process::id());
    handshake::lane(stream, profile, &name, true).await.map_err(|e| e.to_string())
}

fn tracking(link: &LaneLink) -> Check {
    let result = match &link.tracking {
        Ok(()) => Ok("RESP3 and CLIENT TRACKING".to_owned()),
        Err(Refusal::NoResp3(why)) => Err(format!("no RESP3: {why}")),
        Err(Refusal::Tracking(why)) => Err(format!("no CLIENT TRACKING: {why}")),
        Err(Refusal::NotAsked) => Err("CLIENT TRACKING was not asked for".to_owned()),
    };
    Check { name: "tracking", result }
}

/// Whether the user may do what a sidecar does of its own accord. Asked inside a MULTI that is discarded: upstream's ACL is
/// asked for each command as it is queued, and none of them is carried out.
async fn rights(config: &Config, link: &mut LaneLink, user: &str) -> Result<String, String> {
    let key = [config.upstream.key_prefix.as_bytes(), b"nearside:preflight"].concat();
    let channel = config.coherence.channel.as_bytes();
    let wanted: [&[&[u8]]; 4] =
        [&[b"GET", &key], &[b"PTTL", &key], &[b"PUBLISH", channel, b""], &[b"SUBSCRIBE", channel]];
    let begun = link.link.ask(&[b"MULTI"]).await.map_err(|e| e.to_string())?;
    if reply::is_error(&begun) {
        return Err(format!("user {user} may not MULTI: {}", said(begun)));
    }
    let mut refused = Vec::new();
    for words in wanted {
        let answer = link.link.ask(words).await.map_err(|e| e.to_string())?;
        if reply::is_error(&answer) {
            let why = said(answer);
            // Which keys the application has is its own affair; that this one is not among them says nothing.
            if !why.contains("access one of the keys") {
                refused.push(format!("{}: {why}", String::from_utf8_lossy(words[0])));
            }
        }
    }
    link.link.ask(&[b"DISCARD"]).await.map_err(|e| e.to_string())?;
    match refused.is_empty() {
        true => Ok(format!("user {user} may GET, PTTL, and PUBLISH and SUBSCRIBE {}", config.coherence.channel)),
        false => Err(format!("user {user}: {}", refused.join("; "))),
    }
}

/// An error reply as text.
fn said(mut frame: Vec<u8>) -> String {
    frame.retain(|byte| !matches!(byte, b'\r' | b'\n'));
    String::from_utf8_lossy(&frame[1..]).into_owned()
}

/// Whether an ACL binds the user to keys with the prefix.
async fn bound(link: &mut LaneLink, prefix: &Prefix, user: &str) -> Result<String, String> {
    let name = String::from_utf8_lossy(prefix.text()).into_owned();
    for key in outside(prefix) {
        let frame = link.link.ask(&[b"EXISTS", &key]).await.map_err(|e| e.to_string())?;
        if reply::integer(&frame).is_some() {
            return Err(format!(
                "user {user} may touch keys that do not begin with {name}: give it the keys ~{name}* only"
            ));
        }
    }
    let own = link.link.ask(&[b"EXISTS", &prefix.key(b"nearside:preflight")]).await.map_err(|e| e.to_string())?;
    if reply::is_error(&own) {
        return Err(format!("user {user} may not even touch keys with it: {}", said(own)));
    }
    Ok(format!("an ACL binds user {user} to keys that begin with {name}"))
}
