//! Introduces a fresh connection to upstream: protocol, credential, database, name, and for a lane CLIENT TRACKING (R1).
//! Every command is answered before the next is sent where an error decides (AUTH is never pipelined behind anything:
//! RESP-FORMS pitfall 15).

use std::io;
use std::rc::Rc;

use bytes::{Buf, BytesMut};
use tokio::io::AsyncReadExt;

use super::{Credential, Profile, facts};
use crate::command::categories::Categories;
use crate::net::{ReadHalf, Stream, WriteHalf};
use crate::resp::push::{self, Value};
use crate::resp::reply::{self, BadFrame, Frame, FrameScanner};
use crate::resp::{Proto, build};

/// A handshake reply is small; more than this is not a Redis server.
const REPLY_MAX: usize = 1 << 20;

#[derive(Debug, thiserror::Error)]
pub(crate) enum HandshakeError {
    #[error("connection lost during the handshake: {0}")]
    Io(#[from] io::Error),
    #[error("upstream closed the connection during the handshake")]
    Closed,
    #[error("upstream sent garbage during the handshake: {0}")]
    Garbage(#[from] BadFrame),
    /// The error reply (without `-` and line end) to a command without which the connection is of no use.
    #[error("upstream refused {command}: {reply}")]
    Refused { command: &'static str, reply: String },
}

/// What upstream says about itself in HELLO, kept to answer the HELLOs of clients.
#[derive(Clone, Debug)]
pub(crate) struct ServerInfo {
    pub(crate) server: String,
    pub(crate) version: String,
    pub(crate) mode: String,
    pub(crate) role: String,
    /// The `modules` value as upstream sent it (RESP3).
    pub(crate) modules: Vec<u8>,
    pub(crate) id: i64,
}

impl Default for ServerInfo {
    /// Before first contact (DESIGN 5).
    fn default() -> ServerInfo {
        ServerInfo {
            server: "redis".to_owned(),
            version: "7.0.0".to_owned(),
            mode: "standalone".to_owned(),
            role: "master".to_owned(),
            modules: b"*0\r\n".to_vec(),
            id: 0,
        }
    }
}

impl ServerInfo {
    /// A server of a kind and version known to have no expiry of hash fields.
    fn predates_field_expiry(&self) -> bool {
        matches!(self.server.as_str(), "redis" | "valkey") && !self.has(&facts::HASH_FIELD_EXPIRY)
    }

    /// Reads a HELLO reply of either protocol.
    pub(crate) fn parse(frame: &[u8]) -> Option<ServerInfo> {
        let mut info = ServerInfo::default();
        let mut elements = reply::elements(frame);
        while let (Some(name), Some(value)) = (elements.next(), elements.next()) {
            let text = || reply::bulk(value).map(|b| String::from_utf8_lossy(b).into_owned());
            match reply::bulk(name)? {
                b"server" => info.server = text()?,
                b"version" => info.version = text()?,
                b"mode" => info.mode = text()?,
                b"role" => info.role = text()?,
                b"id" => info.id = reply::integer(value)?,
                b"modules" => info.modules = value.to_vec(),
                _ => {}
            }
        }
        (info.id != 0).then_some(info)
    }
}

/// A connection as sessions and lanes use it, with what was read beyond the handshake.
pub(crate) struct Link {
    pub(crate) rd: ReadHalf,
    pub(crate) wr: WriteHalf,
    pub(crate) rbuf: BytesMut,
    scanner: FrameScanner,
}

impl Link {
    pub(crate) fn new(stream: Stream) -> Link {
        let (rd, wr) = stream.split();
        Link { rd, wr, rbuf: BytesMut::new(), scanner: FrameScanner::new() }
    }

    /// Sends `words` and returns the reply's bytes; pushes that come first are dropped (nothing is cached yet).
    pub(crate) async fn ask(&mut self, words: &[&[u8]]) -> Result<Vec<u8>, HandshakeError> {
        let mut out = BytesMut::new();
        build::command(&mut out, words);
        self.wr.write_all(&out).await?;
        self.reply().await
    }

    /// The next reply.
    pub(crate) async fn reply(&mut self) -> Result<Vec<u8>, HandshakeError> {
        loop {
            match self.scanner.scan(&self.rbuf)? {
                Frame::Complete { len } => {
                    let frame = self.rbuf[..len].to_vec();
                    self.rbuf.advance(len);
                    self.scanner.reset();
                    if frame[0] != b'>' {
                        return Ok(frame);
                    }
                }
                Frame::Incomplete | Frame::Large if self.rbuf.len() > REPLY_MAX => {
                    return Err(io::Error::new(io::ErrorKind::InvalidData, "a handshake reply above 1 MiB").into());
                }
                Frame::Incomplete | Frame::Large => {
                    if self.rd.read_buf(&mut self.rbuf).await? == 0 {
                        return Err(HandshakeError::Closed);
                    }
                }
            }
        }
    }

    /// `ask`, for a command whose error ends the handshake.
    async fn demand(&mut self, command: &'static str, words: &[&[u8]]) -> Result<Vec<u8>, HandshakeError> {
        let frame = self.ask(words).await?;
        if reply::is_error(&frame) {
            return Err(HandshakeError::Refused { command, reply: error_text(&frame) });
        }
        Ok(frame)
    }
}

/// An error reply's text without its mark and line end.
pub(crate) fn error_text(frame: &[u8]) -> String {
    /// What Redis puts before keys and values where it does not know a command. The text goes to the log and to events, and
    /// those of clients belong in neither.
    const ARGUMENTS: &str = ", with args beginning with";
    let text = String::from_utf8_lossy(frame);
    let text = text.trim_start_matches('-').trim_end();
    text.split_once(ARGUMENTS).map_or(text, |(before, _)| before).to_owned()
}

/// A lane connection that is ready: what it learned on the way decides whether the L1 may be filled through it.
pub(crate) struct LaneLink {
    pub(crate) link: Link,
    pub(crate) info: ServerInfo,
    pub(crate) proto: Proto,
    /// CLIENT TRACKING was accepted; else why not.
    pub(crate) tracking: Result<(), Refusal>,
    /// Two HELLOs agreed on id and role, so later ones tell a replaced or demoted server (R5). An upstream that is itself
    /// a proxy answers otherwise.
    pub(crate) role_check: bool,
    /// Fields of a hash do not expire on their own (fact 29), as far as upstream says; not asked: false.
    pub(crate) fields_stay: bool,
}

/// The commands by which fields are made to expire: Redis 7.4 and Valkey 9; KeyDB; Dragonfly.
const FIELD_EXPIRY: [&[u8]; 3] = [b"HEXPIRE", b"EXPIREMEMBER", b"FIELDEXPIRE"];

impl LaneLink {
    /// The probe behind the handshake: a server that still loads its data answers HELLO, but no command of a client.
    pub(crate) async fn serves(&mut self) -> Result<(), HandshakeError> {
        let frame = self.link.ask(&[b"PING"]).await?;
        if [&b"-LOADING"[..], b"-MASTERDOWN"].iter().any(|word| frame.starts_with(word)) {
            return Err(HandshakeError::Refused { command: "PING", reply: error_text(&frame) });
        }
        Ok(())
    }

    /// Asks what reads of hashes need to know. The version alone would not do: Valkey can be told to say it were Redis 7.2.
    pub(crate) async fn ask_for_field_expiry(&mut self) -> Result<(), HandshakeError> {
        let frame = self.link.ask(&field_expiry_question()).await?;
        self.fields_stay = fields_stay(&self.info, &frame);
        Ok(())
    }
}

/// What upstream is asked about the expiry of fields.
pub(crate) fn field_expiry_question() -> Vec<&'static [u8]> {
    [&b"COMMAND"[..], b"INFO"].into_iter().chain(FIELD_EXPIRY).collect()
}

/// What its answer means.
pub(crate) fn fields_stay(info: &ServerInfo, answer: &[u8]) -> bool {
    info.predates_field_expiry() && knows_none(answer, FIELD_EXPIRY.len())
}

fn knows_none(command_info: &[u8], asked: usize) -> bool {
    let mut rows = reply::elements(command_info);
    rows.left() == asked && rows.all(reply::is_null)
}

/// Why there is no tracking, in upstream's words.
#[derive(Clone, Debug)]
pub(crate) enum Refusal {
    /// HELLO 3 was refused, so the connection speaks RESP2.
    NoResp3(String),
    Tracking(String),
    /// It was not asked for it: nothing was to be cached.
    NotAsked,
}

/// The handshake of a lane: RESP3, credential, name, database, tracking (only where `track` asks for it). Where upstream has
/// no HELLO, or not for this user, the same in RESP2.
pub(crate) async fn lane(
    stream: Stream,
    profile: &Profile,
    name: &str,
    track: bool,
) -> Result<LaneLink, HandshakeError> {
    let mut link = Link::new(stream);
    let hello = match hello3(&mut link, profile).await {
        Ok(hello) => hello,
        Err(HandshakeError::Refused { reply, .. }) if lacks_hello(&reply, profile) => {
            return lane_resp2(link, profile, name, reply).await;
        }
        Err(e) => return Err(e),
    };
    introduce(&mut link, profile, Proto::Resp3, name).await?;
    // A user without the right to HELLO may have said the first one as somebody else.
    let again = link.ask(&[b"HELLO", b"3"]).await?;
    let info = ServerInfo::parse(&hello).ok_or_else(|| unreadable(&hello))?;
    let second = ServerInfo::parse(&again);
    let role_check = second.is_some_and(|s| s.id == info.id && s.role == info.role);
    let tracking = match track {
        false => Err(Refusal::NotAsked),
        true => {
            let frame = link.ask(&[b"CLIENT", b"TRACKING", b"ON"]).await?;
            if reply::is_error(&frame) { Err(Refusal::Tracking(error_text(&frame))) } else { Ok(()) }
        }
    };
    Ok(LaneLink { link, info, proto: Proto::Resp3, tracking, role_check, fields_stay: false })
}

/// Whether HELLO 3 was refused for what it is, not for who says it. NOAUTH to a HELLO that brings a password comes from a
/// server that does not know HELLO: Valkey 9 asks who one is before it looks the command up.
fn lacks_hello(reply: &str, profile: &Profile) -> bool {
    let refusals = ["ERR unknown command", "ERR Unknown command", "ERR unsupported", "NOPROTO", "NOPERM"];
    refusals.iter().any(|start| reply.starts_with(start))
        || (profile.credential.is_some() && reply.starts_with("NOAUTH"))
}

async fn lane_resp2(
    mut link: Link,
    profile: &Profile,
    name: &str,
    refusal: String,
) -> Result<LaneLink, HandshakeError> {
    authenticate(&mut link, profile, Proto::Resp2).await?;
    introduce(&mut link, profile, Proto::Resp2, name).await?;
    // Without AUTH everything but the way in is refused, and only this tells.
    let ping = link.ask(&[b"PING"]).await?;
    if ping.starts_with(b"-NOAUTH") {
        return Err(HandshakeError::Refused { command: "PING", reply: error_text(&ping) });
    }
    let mut info = ServerInfo::default();
    let about = link.ask(&[b"INFO", b"server"]).await?;
    let about = String::from_utf8_lossy(reply::bulk(&about).unwrap_or_default()).into_owned();
    let field =
        |name: &str| about.lines().find_map(|l| Some(l.strip_prefix(name)?.strip_prefix(':')?.trim().to_owned()));
    info.version = field("redis_version").unwrap_or(info.version);
    info.mode = field("redis_mode").unwrap_or(info.mode);
    let role = link.ask(&[b"ROLE"]).await?;
    if let Some(role) = reply::elements(&role).next().and_then(reply::bulk) {
        info.role = String::from_utf8_lossy(role).into_owned();
    }
    info.id = reply::integer(&link.ask(&[b"CLIENT", b"ID"]).await?).unwrap_or(0);
    let tracking = Err(Refusal::NoResp3(refusal));
    Ok(LaneLink { link, info, proto: Proto::Resp2, tracking, role_check: false, fields_stay: false })
}

fn unreadable(hello: &[u8]) -> HandshakeError {
    let start = String::from_utf8_lossy(&hello[..hello.len().min(64)]).into_owned();
    HandshakeError::Refused { command: "HELLO 3", reply: format!("an answer that is no HELLO reply: {start:?}") }
}

async fn hello3(link: &mut Link, profile: &Profile) -> Result<Vec<u8>, HandshakeError> {
    match &profile.credential {
        Some(c) => link.demand("HELLO 3 AUTH", &[b"HELLO", b"3", b"AUTH", &c.user, &c.password]).await,
        None => link.demand("HELLO 3", &[b"HELLO", b"3"]).await,
    }
}

/// The name by which upstream's CLIENT LIST explains itself (its refusal is no reason to give up), and the database.
async fn introduce(link: &mut Link, profile: &Profile, proto: Proto, name: &str) -> Result<(), HandshakeError> {
    link.ask(&[b"CLIENT", b"SETNAME", name.as_bytes()]).await?;
    if profile.db == 0 {
        return Ok(());
    }
    let refused = match link.demand("SELECT", &[b"SELECT", profile.db.to_string().as_bytes()]).await {
        // A running script refuses everybody, another way there would not help.
        Err(HandshakeError::Refused { command, reply })
            if profile.credential.is_some() && !reply.starts_with("BUSY ") =>
        {
            HandshakeError::Refused { command, reply }
        }
        other => return other.map(drop),
    };
    if !select_first(link, profile, proto).await? {
        return Err(refused);
    }
    link.ask(&[b"CLIENT", b"SETNAME", name.as_bytes()]).await?;
    Ok(())
}

/// A user without the right to SELECT stays in the database where it said AUTH: this takes the client's own way there. False:
/// upstream does not let anybody select who has not authenticated.
async fn select_first(link: &mut Link, profile: &Profile, proto: Proto) -> Result<bool, HandshakeError> {
    for words in [&[&b"RESET"[..]][..], &[b"SELECT", profile.db.to_string().as_bytes()]] {
        if reply::is_error(&link.ask(words).await?) {
            return Ok(false);
        }
    }
    authenticate(link, profile, proto).await.map(|()| true)
}

/// The handshake of a spare connection. True: it is in database 0 still, because upstream runs a script and refuses SELECT.
pub(crate) async fn spare(
    stream: Stream,
    profile: &Profile,
    proto: Proto,
    name: &str,
) -> Result<(Link, bool), HandshakeError> {
    let mut link = Link::new(stream);
    authenticate(&mut link, profile, proto).await?;
    match introduce(&mut link, profile, proto, name).await {
        Ok(()) => Ok((link, false)),
        Err(HandshakeError::Refused { command: "SELECT", reply }) if reply.starts_with("BUSY ") => Ok((link, true)),
        Err(e) => Err(e),
    }
}

/// The handshake of a connection that is lent to one session, in that session's protocol. Returns its id upstream (0 where
/// upstream would not say).
pub(crate) async fn dedicated(
    stream: Stream,
    profile: &Profile,
    proto: Proto,
    name: &str,
) -> Result<(Link, i64), HandshakeError> {
    let mut link = Link::new(stream);
    set_up(&mut link, profile, proto, name).await.map(|id| (link, id))
}

/// Brings a connection in its initial state (fresh, or after RESET) to `profile` and `proto`.
pub(crate) async fn set_up(
    link: &mut Link,
    profile: &Profile,
    proto: Proto,
    name: &str,
) -> Result<i64, HandshakeError> {
    authenticate(link, profile, proto).await?;
    introduce(link, profile, proto, name).await?;
    let id = link.ask(&[b"CLIENT", b"ID"]).await?;
    Ok(reply::integer(&id).unwrap_or(0))
}

async fn authenticate(link: &mut Link, profile: &Profile, proto: Proto) -> Result<(), HandshakeError> {
    match (proto, &profile.credential) {
        (Proto::Resp3, _) => {
            hello3(link, profile).await?;
        }
        (Proto::Resp2, Some(c)) if &*c.user == b"default" => {
            // Without a user it is refused where that user needs no password (any more); with one any password will do.
            let frame = link.ask(&[b"AUTH", &c.password]).await?;
            if frame.starts_with(b"-ERR ") {
                link.demand("AUTH", &[b"AUTH", &c.user, &c.password]).await?;
            } else if reply::is_error(&frame) {
                return Err(HandshakeError::Refused { command: "AUTH", reply: error_text(&frame) });
            }
        }
        (Proto::Resp2, Some(c)) => {
            link.demand("AUTH", &[b"AUTH", &c.user, &c.password]).await?;
        }
        (Proto::Resp2, None) => {}
    }
    Ok(())
}

/// The handshake of the connection that is subscribed to the sidecars' channel; RESP2, in which it can be PINGed. Returns
/// with the subscription confirmed.
pub(crate) async fn subscriber(
    stream: Stream,
    credential: Option<Rc<Credential>>,
    name: &str,
    channel: &[u8],
) -> Result<Link, HandshakeError> {
    let mut link = Link::new(stream);
    authenticate(&mut link, &Profile { db: 0, credential }, Proto::Resp2).await?;
    link.ask(&[b"CLIENT", b"SETNAME", name.as_bytes()]).await?;
    link.demand("SUBSCRIBE", &[b"SUBSCRIBE", channel]).await?;
    Ok(link)
}

/// What `COMMAND INFO <name>` says of a name that the static table does not have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Learned {
    /// Another name for this canonical one (`rename-command`).
    Renamed(String),
    /// A module's command. `reads_one`: flagged readonly, with its first argument as only key, so that reading registers that
    /// key for tracking (fact 12).
    Module { reads_one: bool },
    /// Nothing useful.
    Unknown,
    /// It does not explain anything to this user.
    Refused,
}

/// The ACL categories that COMMAND INFO gives a command; none where it does not explain it.
pub(crate) fn categories(frame: &[u8]) -> Categories {
    /// Where they stand among a command's fields.
    const AT: usize = 6;
    let reply = push::decode(frame);
    let info = reply.as_ref().and_then(Value::list).and_then(<[Value]>::first).and_then(Value::list);
    let words = info.and_then(|info| info.get(AT)).and_then(Value::list).unwrap_or_default();
    let named = |word: &Value| Categories::named(std::str::from_utf8(word.text()?.strip_prefix(b"@")?).ok()?);
    words.iter().filter_map(named).fold(Categories::NONE, Categories::union)
}

/// Reads a COMMAND INFO reply for one name.
pub(crate) fn learned(frame: &[u8]) -> Learned {
    if reply::is_error(frame) {
        return Learned::Refused;
    }
    let reply = push::decode(frame);
    let Some(info) = reply.as_ref().and_then(Value::list).and_then(<[Value]>::first).and_then(Value::list) else {
        return Learned::Unknown;
    };
    let Some(name) = info.first().and_then(Value::text) else { return Learned::Unknown };
    let flags = info.get(2).and_then(Value::list).unwrap_or_default();
    let flagged = |word: &[u8]| flags.iter().any(|flag| flag.text() == Some(word));
    if flagged(b"module") {
        let places: Vec<Option<i64>> = info.iter().skip(3).take(3).map(Value::integer).collect();
        return Learned::Module { reads_one: flagged(b"readonly") && places == [Some(1); 3] };
    }
    Learned::Renamed(String::from_utf8_lossy(name).to_ascii_lowercase())
}
