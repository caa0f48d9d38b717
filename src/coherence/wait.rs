//! What a lane remembers of a command between sending it and its reply: one [`Waiter`] per expected reply, in order.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use smallvec::SmallVec;
use tokio::sync::oneshot;

use super::hold::Hold;
use super::mode::Step;
use super::recovery::Place;
use super::sample::Sample;
use super::tell::{self, Wrapped};
use super::warm::Loading;
use crate::cache::{FormId, StripeId, Token, Value};
use crate::command::cacheable::Shape;
use crate::observe::reasons::{Again, Discard};
use crate::observe::shadow::Seen;
use crate::policy::Keep;
use crate::resp::downgrade::Form;
use crate::resp::reply;
use crate::session::Session;
use crate::worker::observe::Watched;

pub(super) struct Waiter {
    /// When the command was accepted, never later than when it was written (R4): early is the safe side.
    pub(super) t_sent: u64,
    /// Its bytes in the lane's log.
    pub(super) len: u32,
    /// How often it has been sent again.
    pub(super) attempts: u8,
    pub(super) kind: Waiting,
}

pub(super) enum Waiting {
    /// A client's command; its reply is passed on.
    Relay(Relay),
    /// GET of a fetch, and the PTTL behind it (R11).
    Fetch(Rc<Fetch>),
    FetchTtl(Rc<Fetch>),
    /// The misses of a split MGET, and the PTTL of each.
    Mget(Rc<MgetFetch>),
    MgetTtl(Rc<MgetFetch>, usize),
    /// GET or MGET behind a write, and the PTTL of each key (decision 5).
    Refresh(Rc<Refresh>),
    RefreshTtl(Rc<Refresh>, usize),
    /// A PING whose answer releases what a hold keeps back (R15, R21).
    Fence(Rc<Hold>),
    /// Heartbeat.
    Ping,
    /// HELLO as heartbeat and role check (R5).
    RoleCheck,
    /// CLIENT TRACKING ON or OFF, after a change of mode.
    Track(bool),
    /// GET of an entry that is compared with upstream.
    Sample(Box<Sample>),
    /// The lane's own reading of its canary's key, and the PING behind the canary's write.
    Canary(Step, u64),
    /// What precedes the EXEC of a write and its message.
    Part(Rc<Wrapped>, tell::Part),
    /// A message to the other sidecars, and what waits for its having been published.
    Published(Option<Rc<Hold>>),
    /// A PING on a spare connection: what is asked of it is how its lane is (decision 9).
    Verdict,
    /// SELECT on a spare connection, in the place of a command (with its bytes) that must not be executed before it.
    StandIn(Relay, Box<[u8]>),
    /// Asked by ourselves: something that may change data, or wait for it.
    Ask(oneshot::Sender<Vec<u8>>),
    /// Asked by ourselves: no more than a question.
    Inquire(oneshot::Sender<Vec<u8>>),
    /// Nobody waits any more; the reply still has to be read off.
    Dropped,
}

impl Waiting {
    /// A PING or a question of ours: neither a pause nor a script of its own holds it up while others are served, so it is
    /// what a stuck lane is judged by (decision 9).
    pub(super) fn is_question(&self) -> bool {
        use Waiting::{Canary, Fence, FetchTtl, Inquire, MgetTtl, Ping, Refresh, RefreshTtl, RoleCheck, Track};
        matches!(
            self,
            Ping | RoleCheck
                | Fence(_)
                | Canary(Step::Bar, _)
                | Track(_)
                | FetchTtl(_)
                | MgetTtl(..)
                | Refresh(_)
                | RefreshTtl(..)
                | Inquire(_)
        )
    }
}

/// The stripes whose pending write ends with this reply (R14).
#[derive(Clone, Debug, Default)]
pub(crate) enum Ends {
    #[default]
    None,
    One(StripeId),
    Many(Box<[StripeId]>),
}

impl Ends {
    pub(crate) fn as_slice(&self) -> &[StripeId] {
        match self {
            Ends::None => &[],
            Ends::One(s) => std::slice::from_ref(s),
            Ends::Many(s) => s,
        }
    }

    pub(crate) fn from_vec(stripes: SmallVec<[StripeId; 4]>) -> Ends {
        match stripes.as_slice() {
            [] => Ends::None,
            [one] => Ends::One(*one),
            _ => Ends::Many(stripes.into_boxed_slice()),
        }
    }
}

/// A client's command on its way.
pub(crate) struct Relay {
    /// `None` once nobody waits for the reply.
    pub(crate) session: Option<Rc<Session>>,
    pub(crate) slot: u64,
    /// The conversion, should the client speak RESP2.
    pub(crate) form: Form,
    /// R26: may be sent a second time.
    pub(crate) resend: bool,
    /// Changes data, as far as we know: its loss is "outcome unknown".
    pub(crate) write: bool,
    pub(crate) ends: Ends,
    /// It changes data and was sent while the cache did not serve: the L1 knows nothing of it (`Ctx::end_unseen`).
    pub(crate) unseen: bool,
    /// Flushes the L1 at its reply (SWAPDB).
    pub(crate) flush: bool,
    /// Keeps the reply back until the lanes have passed its pushes (R15).
    pub(crate) hold: Option<Rc<Hold>>,
    /// Sets its session's fence instead (`coherence.fence: session`).
    pub(crate) fence: bool,
    pub(crate) refresh: Option<Rc<Refresh>>,
    /// The PUBLISH that belongs to it (`pubsub` mode).
    pub(crate) tell: Option<Box<[u8]>>,
    /// It is one transaction with that: the reply is EXEC's.
    pub(super) wrapped: Option<Rc<Wrapped>>,
    /// INFO: our own section is appended.
    pub(crate) info: bool,
    /// A read that observe mode is told of.
    pub(crate) watched: Option<Box<Watched>>,
}

impl Relay {
    /// A command that touches nothing the L1 knows.
    pub(crate) fn plain(session: Rc<Session>, slot: u64, form: Form, resend: bool) -> Relay {
        Relay {
            session: Some(session),
            slot,
            form,
            resend,
            write: false,
            ends: Ends::None,
            unseen: false,
            flush: false,
            hold: None,
            fence: false,
            refresh: None,
            tell: None,
            wrapped: None,
            info: false,
            watched: None,
        }
    }
}

/// On whose account a read is.
pub(super) enum Origin {
    Clients,
    /// A hit on an entry near its end.
    Again(Again),
    /// What is loaded at start.
    Warming(Rc<Loading>),
}

/// What the reply to a read was, where it is none that could be kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// Too large; also before it has come.
    Large,
    Denied,
    WrongType,
    Error,
}

/// How a read and its PTTL ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Stored { absent: bool },
    Refused(Refused),
    Discarded(Discard),
    Lost,
}

/// Sessions and their slots.
pub(super) type Waiters = SmallVec<[(Rc<Session>, u64); 1]>;

/// One GET, or another read that is kept, with its PTTL, for one or more sessions: the flight of R13.
pub(super) struct Fetch {
    pub(super) key: Rc<[u8]>,
    pub(super) read: FetchRead,
    pub(super) token: Token,
    pub(super) t_sent: u64,
    pub(super) keep: Keep,
    pub(super) waiters: RefCell<Waiters>,
    pub(super) value: RefCell<Option<Value>>,
    /// Why there is no value. After NOPERM, PTTL's NOPERM is about the key, not about the command.
    pub(super) refused: Cell<Refused>,
    pub(super) origin: Origin,
    /// Where the lane recovers; given back when it and its PTTL are answered.
    pub(super) place: Option<Place>,
}

impl Fetch {
    /// One that nobody waits for yet.
    pub(super) fn unasked(
        key: Rc<[u8]>,
        read: FetchRead,
        token: Token,
        t_sent: u64,
        keep: Keep,
        origin: Origin,
    ) -> Fetch {
        let (waiters, value) = Default::default();
        let refused = Cell::new(Refused::Large);
        Fetch { key, read, token, t_sent, keep, waiters, value, refused, origin, place: None }
    }
}

impl Refused {
    pub(super) fn of(frame: &[u8]) -> Refused {
        match frame {
            _ if frame.starts_with(b"-NOPERM") => Refused::Denied,
            _ if frame.starts_with(b"-WRONGTYPE") => Refused::WrongType,
            _ if reply::is_error(frame) => Refused::Error,
            _ => Refused::Large,
        }
    }
}

/// What a fetch reads of its key.
#[derive(Clone)]
pub(crate) struct FetchRead {
    /// `None`: GET.
    pub(crate) id: Option<FormId>,
    /// What the reply has to be (R12).
    pub(crate) shape: Shape,
    /// The conversion, should a client speak RESP2.
    pub(crate) form: Form,
    /// R26.
    pub(crate) resend: bool,
}

impl FetchRead {
    pub(crate) const GET: FetchRead = FetchRead { id: None, shape: Shape::GET, form: Form::Bulk, resend: true };
}

/// A split MGET (decision 4): hits taken at parse time, misses asked for, all checked at the reply.
pub(super) struct MgetFetch {
    pub(super) session: RefCell<Option<Rc<Session>>>,
    pub(super) slot: u64,
    /// The client's request, should the hits turn out void.
    pub(super) raw: Box<[u8]>,
    pub(super) parts: Vec<Part>,
    pub(super) misses: RefCell<Vec<Miss>>,
    pub(super) epoch: u64,
    pub(super) flush_gen: u64,
    pub(super) t_sent: u64,
    pub(super) _place: Option<Place>,
}

pub(crate) enum Part {
    Hit {
        stripe: StripeId,
        generation: u64,
        deadline: u64,
        value: Value,
    },
    /// Index into `misses`.
    Miss,
}

pub(crate) struct Miss {
    pub(crate) key: Box<[u8]>,
    /// How it may be stored, and the right to; none: not at all (its rule says no, or a write is pending).
    pub(crate) right: Option<(Keep, Token)>,
    /// As observe mode is told of it.
    pub(crate) seen: Option<Seen>,
    pub(crate) value: Option<Value>,
}

/// What GET and PTTL behind a write of ours may store (R17).
pub(crate) struct Refresh {
    pub(super) t_sent: u64,
    pub(super) keys: RefCell<SmallVec<[RefreshKey; 1]>>,
    /// GET's reply has been read: from now on no bump is excused.
    pub(super) got: Cell<bool>,
}

pub(crate) struct RefreshKey {
    pub(crate) key: Box<[u8]>,
    pub(crate) token: Token,
    pub(crate) keep: Keep,
    pub(crate) value: Option<Value>,
}
