//! Where a request goes, and why: a pure decision over what the table says of the command and what is true of the session
//! and its lane at this moment. `NEARSIDE EXPLAIN` prints the same decision.

use crate::command::{Effect, Kind, Need, Request, Spec, Why, keys};
use crate::observe::reasons::Bypass;

/// What upstream said of a name that the table does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stranger {
    /// Not asked yet.
    New,
    /// A module's command. `reads_one`: upstream calls it a read of its first argument and of nothing else.
    Module { reads_one: bool },
    /// Upstream does not explain it, or it is a container whose subcommand the table does not have.
    Unknown,
}

/// What the decision depends on besides the command.
#[derive(Clone, Copy, Debug)]
pub(crate) struct View {
    /// `cache.mode` is serve.
    pub(crate) serves: bool,
    /// Replies to this request are kept: its row allows it, and the configuration names it.
    pub(crate) kept: bool,
    /// It reads fields of a hash, which may expire unheard (fact 29).
    pub(crate) fields_expire: bool,
    /// The lane stores and serves (tracking is on).
    pub(crate) caches: bool,
    /// R8, first half: the epoch whose entries may be served now.
    pub(crate) vouched: Result<u64, Bypass>,
    /// Something outstanding forbids hits (R22).
    pub(crate) blocked: bool,
    /// An outstanding command of this session names the key (R22).
    pub(crate) named: bool,
    /// The key, or this very request, has brought a large reply before.
    pub(crate) large: bool,
    pub(crate) resp3: bool,
    pub(crate) allow_shutdown: bool,
    /// A PUBLISH on the sidecars' channel.
    pub(crate) announces: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Route {
    /// A read whose replies are kept: from the L1 where this epoch has it, else fetched.
    Cached(u64),
    /// One that may not be served from the L1 now; whether it may be stored says the reason.
    Fetch(Bypass),
    /// To the lane as it is.
    Lane,
    /// To the lane, its keys evicted at both ends (R14).
    Write,
    /// To the lane, its reply kept back until the lanes have passed its pushes (R15).
    Opaque,
    /// To the lane, the L1 flushed at both ends (R16).
    SwapDb,
    /// Applied here as a message on the sidecars' channel, then to the lane.
    Announce,
    Pinned(Why),
    /// Answered here.
    Local,
    /// A name to ask upstream about.
    Learn,
    Refuse(&'static str),
}

impl Route {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Route::Cached(_) => "l1",
            Route::Fetch(_) => "fetch",
            Route::Lane => "lane",
            Route::Write => "write",
            Route::Opaque => "opaque",
            Route::SwapDb => "swapdb",
            Route::Announce => "announce",
            Route::Pinned(_) => "pinned",
            Route::Local => "local",
            Route::Learn => "learn",
            Route::Refuse(_) => "refuse",
        }
    }

    pub(crate) fn reason(self) -> &'static str {
        match self {
            Route::Fetch(bypass) => bypass.as_str(),
            Route::Pinned(why) => why.as_str(),
            Route::Refuse(why) => why,
            _ => "",
        }
    }
}

const REFUSED: &str = "ERR this command is not proxied: replication needs a connection to Redis itself";
const NO_SHUTDOWN: &str = "ERR SHUTDOWN is refused by this sidecar: set commands.shutdown to true to let it pass";

/// Why a command is never forwarded, on whatever connection.
pub(crate) fn refused(spec: &Spec, allow_shutdown: bool) -> Option<&'static str> {
    match spec.need {
        Need::Refuse => Some(REFUSED),
        _ if spec.kind == Kind::Shutdown && !allow_shutdown => Some(NO_SHUTDOWN),
        _ => None,
    }
}

/// The route of a command the table has.
pub(crate) fn route(spec: &Spec, req: &Request<'_>, view: &View) -> Route {
    if !keys::arity_ok(spec, req.argc()) {
        // Upstream words the error, and executes nothing.
        return Route::Lane;
    }
    if let Some(why) = refused(spec, view.allow_shutdown) {
        return Route::Refuse(why);
    }
    match spec.need {
        Need::Refuse => {}
        Need::Local => return Route::Local,
        Need::Pinned(why) => return Route::Pinned(why),
        Need::LaneUnlessBlock if keys::blocks(spec, req) => return Route::Pinned(Why::Blocking),
        Need::LaneUnlessBlock | Need::Lane => {}
    }
    if view.large && spec.effect == Effect::Read {
        return Route::Pinned(Why::Large);
    }
    if view.announces {
        return Route::Announce;
    }
    match spec.effect {
        Effect::Read if view.kept => cached(view),
        Effect::Read => Route::Lane,
        _ if !view.serves => Route::Lane,
        Effect::Write => Route::Write,
        Effect::Opaque => Route::Opaque,
        Effect::Flush | Effect::SwapDb => Route::SwapDb,
    }
}

fn cached(view: &View) -> Route {
    if !view.serves {
        return Route::Fetch(Bypass::CacheOff);
    }
    if !view.caches {
        return Route::Fetch(Bypass::TrackingRefused);
    }
    if view.fields_expire {
        return Route::Fetch(Bypass::FieldExpiry);
    }
    if view.blocked || view.named {
        return Route::Fetch(Bypass::Outstanding);
    }
    match view.vouched {
        Ok(epoch) => Route::Cached(epoch),
        Err(bypass) => Route::Fetch(bypass),
    }
}

/// The route of a name the table does not have (decision 1).
pub(crate) fn route_stranger(stranger: Stranger, view: &View) -> Route {
    match stranger {
        Stranger::New => Route::Learn,
        Stranger::Module { .. } if view.resp3 && view.serves => Route::Opaque,
        Stranger::Module { .. } if view.resp3 => Route::Lane,
        Stranger::Module { .. } => Route::Pinned(Why::Module),
        Stranger::Unknown => Route::Pinned(Why::Unknown),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::table::{self, Lookup};
    use crate::resp::request::{Scan, Scanner};

    const VIEW: View = View {
        serves: true,
        kept: true,
        fields_expire: false,
        caches: true,
        vouched: Ok(7),
        blocked: false,
        named: false,
        large: false,
        resp3: true,
        allow_shutdown: false,
        announces: false,
    };

    fn of(line: &str, view: View) -> Route {
        let mut scanner = Scanner::new(1 << 20, 1 << 20);
        let line = format!("{line}\r\n");
        assert!(matches!(scanner.scan(line.as_bytes()), Scan::Inline { .. }), "{line}");
        let req = Request { raw: scanner.inline(), args: scanner.args() };
        match table::lookup(&req) {
            Lookup::Known(spec) => route(spec, &req, &view),
            Lookup::UnknownSub => route_stranger(Stranger::Unknown, &view),
            Lookup::Unknown => route_stranger(Stranger::New, &view),
        }
    }

    #[test]
    fn every_arm_has_a_row() {
        let rows = [
            ("GET k", VIEW, Route::Cached(7)),
            ("MGET k l", VIEW, Route::Cached(7)),
            ("GET k", View { serves: false, ..VIEW }, Route::Fetch(Bypass::CacheOff)),
            ("GET k", View { caches: false, ..VIEW }, Route::Fetch(Bypass::TrackingRefused)),
            ("GET k", View { blocked: true, ..VIEW }, Route::Fetch(Bypass::Outstanding)),
            ("GET k", View { named: true, ..VIEW }, Route::Fetch(Bypass::Outstanding)),
            ("GET k", View { vouched: Err(Bypass::Lease), ..VIEW }, Route::Fetch(Bypass::Lease)),
            ("GET k", View { large: true, ..VIEW }, Route::Pinned(Why::Large)),
            ("GET", VIEW, Route::Lane),
            ("HGETALL h", VIEW, Route::Cached(7)),
            ("HGETALL h", View { kept: false, ..VIEW }, Route::Lane),
            ("GET k", View { kept: false, ..VIEW }, Route::Lane),
            ("HGETALL h", View { fields_expire: true, ..VIEW }, Route::Fetch(Bypass::FieldExpiry)),
            ("SET k v", VIEW, Route::Write),
            ("SET k v", View { large: true, ..VIEW }, Route::Write),
            ("SET k v", View { serves: false, ..VIEW }, Route::Lane),
            ("EVAL x 0", VIEW, Route::Opaque),
            ("SWAPDB 0 1", VIEW, Route::SwapDb),
            ("PUBLISH c m", View { kept: false, ..VIEW }, Route::Lane),
            ("PUBLISH c m", View { kept: false, announces: true, ..VIEW }, Route::Announce),
            ("FLUSHALL", VIEW, Route::Pinned(Why::MayBlock)),
            ("XREAD STREAMS s 0", View { kept: false, ..VIEW }, Route::Lane),
            ("XREAD BLOCK 0 STREAMS s 0", VIEW, Route::Pinned(Why::Blocking)),
            ("BLPOP q 0", VIEW, Route::Pinned(Why::Blocking)),
            ("MULTI", VIEW, Route::Pinned(Why::Transaction)),
            ("SUBSCRIBE c", VIEW, Route::Pinned(Why::Subscribe)),
            ("HELLO 3", VIEW, Route::Local),
            ("NEARSIDE STATS", VIEW, Route::Local),
            ("SYNC", VIEW, Route::Refuse(REFUSED)),
            ("SHUTDOWN", VIEW, Route::Refuse(NO_SHUTDOWN)),
            ("SHUTDOWN", View { allow_shutdown: true, ..VIEW }, Route::Pinned(Why::Admin)),
            ("FT.SEARCH i q", VIEW, Route::Learn),
            ("CLIENT NONSENSE", VIEW, Route::Pinned(Why::Unknown)),
        ];
        for (line, view, route) in rows {
            assert_eq!(of(line, view), route, "{line} under {view:?}");
        }
    }

    #[test]
    fn a_modules_command_goes_where_its_reply_can_be_read() {
        let resp2 = View { resp3: false, ..VIEW };
        assert_eq!(route_stranger(Stranger::Module { reads_one: false }, &VIEW), Route::Opaque);
        assert_eq!(route_stranger(Stranger::Module { reads_one: false }, &resp2), Route::Pinned(Why::Module));
        assert_eq!(route_stranger(Stranger::Module { reads_one: false }, &View { serves: false, ..VIEW }), Route::Lane);
    }
}
