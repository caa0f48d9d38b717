//! A lane without an upstream, for the instruction counts (`bench`): it is up from the start, what it writes is read by
//! nobody, and upstream's bytes are handed to it. From `received` on everything is the product's code.

use std::rc::Rc;

use super::lane::Lane;
use super::reader::{self, Stream};
use crate::net::Peer;
use crate::resp::Proto;
use crate::upstream::handshake::{LaneLink, Link, Refusal, ServerInfo};
use crate::worker::Ctx;

pub(crate) struct LaneProbe {
    lane: Rc<Lane>,
    stream: Stream,
    upstream: Peer,
}

impl LaneProbe {
    /// The lane of the default profile. Must be called inside a tokio runtime.
    pub(crate) fn new(ctx: &Rc<Ctx>) -> LaneProbe {
        let (ours, upstream) = Peer::new();
        let lane = Rc::new(Lane::new(ctx, ctx.default_profile.clone()));
        ctx.lanes.borrow_mut().insert(lane.profile.clone(), lane.clone());
        let link = LaneLink {
            link: Link::new(ours),
            info: ServerInfo::default(),
            proto: Proto::Resp3,
            tracking: if ctx.cache_serves() { Ok(()) } else { Err(Refusal::NotAsked) },
            role_check: false,
            fields_stay: true,
        };
        lane.came_up(ctx, &link);
        LaneProbe { lane, stream: Stream::new(link.link), upstream }
    }

    /// tokio writes to a socket only after it has seen it writable.
    pub(crate) async fn writable(&self) {
        self.stream.wr.writable().await.expect("an open socket");
    }

    /// What one turn of the lane's task does: writes what it was given, reads `frames`.
    pub(crate) fn turn(&mut self, ctx: &Rc<Ctx>, frames: &[u8]) {
        let blocked = reader::write_out(ctx, &self.lane, &self.stream.wr).expect("an open socket");
        assert!(!blocked, "the round is larger than a socket's buffer");
        self.stream.rbuf.extend_from_slice(frames);
        self.lane.received(ctx, &mut self.stream, frames.len()).expect("replies that were asked for");
    }

    /// The connection breaks, and upstream refuses another one: the breaker is open from here on.
    pub(crate) fn end(&mut self, ctx: &Rc<Ctx>) {
        self.lane.lost(ctx, "cut");
        self.lane.gone(ctx, "refused");
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.lane.in_flight()
    }

    /// What upstream has been sent since the last call.
    pub(crate) fn sent(&mut self) -> Vec<u8> {
        self.upstream.read()
    }
}
