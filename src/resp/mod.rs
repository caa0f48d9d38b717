//! The wire: boundaries of requests and replies, found without copying or decoding (`request`, `reply`), the exact
//! RESP2 form of a RESP3 reply (`downgrade`), small builders of our own replies (`build`), and the one place that decodes
//! frames into values (`push`, the only module that imports `redis_protocol`). Knows no command, no connection, no cache.

pub(crate) mod build;
pub(crate) mod downgrade;
pub(crate) mod push;
pub(crate) mod reply;
pub(crate) mod request;

/// A protocol version a client or an upstream connection speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub(crate) enum Proto {
    #[default]
    Resp2,
    Resp3,
}
