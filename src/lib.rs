//! Nearside: a Redis-protocol caching sidecar. It stands between an application and one Redis or Valkey, passes every
//! command on, and answers GET and MGET from memory while it can prove that the copy is true.
//!
//! ```text
//!               data thread (one current-thread runtime)                   side-port thread
//!  clients     +----------------------------------------------------+     +-----------------+
//!  --tcp-----> | app: accept ---> session, one task a client        |     | http: /metrics, |
//!  --unix----> |                    | resp: scan in place           |     | /health/*       |
//!              |                    | command: which row, which keys|     +--------^--------+
//!              |                    | router: where, and why        |              | reads
//!              |                    +-- hit: cache -----> outbox    |     +--------+--------+
//!              |                    +-- lane: append --+            |     | observe         |
//!              |                    +-- pinned --------+------------+--+  | (written by the |
//!              |                                       v            |  |  |  data thread)   |
//!              | coherence, one task a lane: write, read frames ----+--+  +-----------------+
//!              |   each frame: effect on cache, then outbox         |  |
//!              +----------------------------------------------------+  +--> upstream
//! ```
//!
//! One request walks through it as one value, `command::Request`: bytes as received, with the ranges of its arguments.
//! Where to read on: `session` (a client's loop), `session::dispatch` (from bytes to routes), `coherence` (why a hit is
//! never wrong), `cache` (who may store). `worker::Ctx` is what the data thread owns, `app` the only file that knows all
//! parts. Imports go down only: `app`, then `worker`, `session`, `http`, `coherence`, `live`, then `router`, then `cache`, `upstream`,
//! then `command`, `config`, then `resp`, `net`, then `observe`, `limits`.
//!
//! Where no upstream is named, `local` is the server behind `session::embedded`: an engine in memory, and none of the right
//! half of the drawing runs.
//!
//! ARCHITECTURE.md at the root has the life of a request, the invariants and the ordering argument.

mod app;
mod audit;
#[cfg(feature = "bench")]
pub mod bench;
mod cache;
mod cli;
mod coherence;
mod command;
mod config;
mod front;
mod http;
mod limits;
mod live;
mod local;
mod mutation;
mod net;
mod observe;
mod outage;
mod policy;
mod resp;
mod router;
mod session;
mod sync;
mod upstream;
mod wake;
mod worker;

pub use cli::main;
