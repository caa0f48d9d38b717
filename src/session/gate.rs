//! A session before the command policy (`policy::commands`): what holds for it, whether a request may run, when its next one
//! may go. Asked for every request before it is looked at further, on the lane's way and on a connection of its own alike; a
//! request that had to wait for something else is not asked again.
//!
//! What holds is found once and kept until the client's name or user changes, or another policy is set: so a command costs
//! one look into an array where a policy is configured, and one flag where none is.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::SystemTime;

use smallvec::SmallVec;

use super::Session;
use crate::command::categories::Categories;
use crate::command::table::{self, Lookup};
use crate::command::{Keys, Kind, Request, Spec};
use crate::observe::clock;
use crate::observe::policy::Refusal;
use crate::observe::reasons::{Action, Decision, ErrorType, Limited};
use crate::policy::commands::{
    Bucket, Caller, Denial, OnLimit, Policy, Rights, Scope, Unlisted, UnlistedKeys, action_of,
};
use crate::resp::build;
use crate::resp::request::Scanner;
use crate::router::Stranger;
use crate::upstream::handshake::Learned;
use crate::worker::Ctx;

/// Between two lines of the log about commands that were refused.
const LOG_EVERY: u64 = 1_000_000_000;

/// The name under which commands are counted that the table does not have.
const UNKNOWN: &str = "unknown";

/// The policy of the process, as its data thread asks it.
pub(crate) struct InForce {
    policy: RefCell<Arc<Policy>>,
    /// It judges nothing and holds nobody back.
    open: Cell<bool>,
    judges: Cell<bool>,
    paces: Cell<bool>,
    /// When a refusal was last logged, and how many have not been since.
    logged: Cell<u64>,
    unsaid: Cell<u64>,
}

/// What holds for one session.
pub(super) struct Gate {
    policy: Arc<Policy>,
    rights: usize,
    /// GET may run whatever its key, and MGET.
    get: bool,
    mget: bool,
    limits: SmallVec<[Limit; 2]>,
    /// Buckets of this connection alone, by their rate, also of those it does not meet now: a change of name fills none.
    own: Vec<(usize, Rc<Bucket>)>,
    /// Name or user have changed since.
    stale: Cell<bool>,
}

struct Limit {
    rate: usize,
    own: Option<Rc<Bucket>>,
}

/// What was found out about a command.
struct Judged {
    action: Action,
    /// For the statistics.
    name: &'static str,
    denial: Option<Denial>,
}

impl InForce {
    /// That of a process that has not read its configuration: nothing is refused.
    pub(crate) fn nothing() -> InForce {
        InForce {
            policy: RefCell::new(Arc::new(Policy::open())),
            open: Cell::new(true),
            judges: Cell::new(false),
            paces: Cell::new(false),
            logged: Cell::new(0),
            unsaid: Cell::new(0),
        }
    }

    pub(crate) fn set(&self, policy: Arc<Policy>) {
        self.open.set(policy.is_open());
        self.judges.set(!policy.judges_nothing());
        self.paces.set(policy.paces());
        *self.policy.borrow_mut() = policy;
    }

    /// Nobody need ask.
    #[inline]
    pub(super) fn is_open(&self) -> bool {
        self.open.get()
    }

    /// Commands are judged, and counted.
    #[inline]
    pub(super) fn judges(&self) -> bool {
        self.judges.get()
    }

    /// Somebody may have to wait.
    #[inline]
    pub(super) fn paces(&self) -> bool {
        self.paces.get()
    }

    /// A line a second at most; what is not said is counted in the next one. No keys and no values.
    fn log(&self, session: &Session, name: &str, denial: &Denial, decision: Decision) {
        let now = clock::now();
        if self.logged.get() != 0 && now.saturating_sub(self.logged.get()) < LOG_EVERY {
            return self.unsaid.set(self.unsaid.get() + 1);
        }
        self.logged.set(now);
        let unsaid = self.unsaid.replace(0);
        let what = if decision == Decision::Denied { "denied" } else { "would be denied" };
        let state = session.state.borrow();
        let (own, user) = (String::from_utf8_lossy(&state.name), String::from_utf8_lossy(state.user()));
        tracing::warn!(client = %session.addr, name = %own, user = %user, unsaid,
            "command policy: {name} {what} by {}", denial.by);
    }
}

impl Session {
    #[inline(never)]
    fn gate(&self, ctx: &Ctx) -> Rc<Gate> {
        let mut place = self.gate.borrow_mut();
        match &*place {
            Some(gate) if !gate.stale.get() => gate.clone(),
            before => {
                let own = before.as_ref().map(|gate| gate.own.clone()).unwrap_or_default();
                let fresh = Rc::new(self.find_gate(ctx, own));
                *place = Some(fresh.clone());
                fresh
            }
        }
    }

    fn find_gate(&self, ctx: &Ctx, mut own: Vec<(usize, Rc<Bucket>)>) -> Gate {
        let policy = ctx.policy.policy.borrow().clone();
        let state = self.state.borrow();
        let caller = Caller { name: &state.name, user: state.user(), listener: self.listener };
        let mut limits: SmallVec<[Limit; 2]> = SmallVec::new();
        for rate in policy.rates_of(&caller) {
            let bucket = (policy.rate(rate).scope == Scope::Connection).then(|| own_bucket(&mut own, &policy, rate));
            limits.push(Limit { rate, own: bucket });
        }
        let number = policy.rights_of(&caller);
        let free = |name: &[u8]| table::by_name(name).is_some_and(|spec| policy.rights(number).leaves_free(spec));
        Gate {
            get: free(b"get"),
            mget: free(b"mget"),
            rights: number,
            limits,
            own,
            stale: Cell::new(false),
            policy: policy.clone(),
        }
    }

    /// The client's name or user is another one now.
    pub(super) fn changed_identity(&self) {
        if let Some(gate) = &*self.gate.borrow() {
            gate.stale.set(true);
        }
    }

    /// Another policy is in force.
    pub(crate) fn changed_policy(&self) {
        self.gate.take();
        // What it waited for may be no limit any more.
        self.due.set(0);
        if let Some(agent) = &self.agent {
            agent.revoke();
        }
        self.wake.call();
    }

    /// A GET is answered without asking.
    #[inline]
    pub(super) fn gets_freely(&self, ctx: &Ctx) -> bool {
        ctx.policy.is_open() || self.gate(ctx).get
    }

    /// Another worker may answer GET and MGET: nothing decides by key, and nobody counts how often.
    pub(super) fn reads_freely(&self, ctx: &Ctx) -> bool {
        let free = |gate: &Gate| gate.get && gate.mget && gate.limits.is_empty();
        ctx.policy.is_open() || free(&self.gate(ctx))
    }

    // ---- may it run ----

    /// Judges a request. Some: it may not run, and this is the error.
    pub(super) fn judge(&self, ctx: &Ctx, spec: Result<&'static Spec, Stranger>, req: &Request<'_>) -> Option<String> {
        // Whom protected mode locks out is told so, and nothing else.
        if !ctx.policy.judges() || self.state.borrow().locked {
            return None;
        }
        let gate = self.gate(ctx);
        let judged = gate.look(ctx, spec, req);
        let shown = shown(spec, req);
        self.decide(ctx, &gate, judged, &shown).map(|text| if is_exec(spec) { aborted(&text) } else { text })
    }

    /// Counts what was found; the error where it forbids the command.
    fn decide(&self, ctx: &Ctx, gate: &Gate, judged: Judged, shown: &str) -> Option<String> {
        let Judged { action, name, denial } = judged;
        let counts = &ctx.metrics.policy;
        let Some(denial) = denial else {
            counts.allowed(action, 1);
            return None;
        };
        let enforced = gate.rights().enforces();
        let decision = if enforced { Decision::Denied } else { Decision::Logged };
        counts.refused(action, decision, name);
        ctx.policy.log(self, name, &denial, decision);
        enforced.then(|| {
            let (why, client) = (denial.by.clone(), self.addr.clone());
            counts.note(Refusal { at: SystemTime::now(), command: name, action, why, client });
            ctx.metrics.errors.inc(ErrorType::Policy);
            denial.text(shown)
        })
    }

    /// `allowed`, `denied (by ...)` or `logged (by ...)`; nothing is counted.
    pub(super) fn explain_policy(&self, ctx: &Ctx, spec: Result<&'static Spec, Stranger>, req: &Request<'_>) -> String {
        if matches!(spec, Err(Stranger::New)) {
            return "not known before upstream is asked what it is".to_owned();
        }
        let gate = self.gate(ctx);
        match gate.look(ctx, spec, req).denial.map(|denial| denial.by) {
            None => Decision::Allowed.as_str().to_owned(),
            Some(by) if gate.rights().enforces() => format!("{} (by {by})", Decision::Denied.as_str()),
            Some(by) => format!("{} (by {by})", Decision::Logged.as_str()),
        }
    }

    /// A large request, whose keys come by one by one.
    pub(super) fn judge_large(&self, ctx: &Ctx) -> Option<LargeJudge> {
        ctx.policy.judges().then(|| LargeJudge { gate: self.gate(ctx), refused: None, numkeys: None })
    }

    /// A large request is known as far as it ever will be.
    pub(super) fn decide_large(&self, ctx: &Ctx, judge: LargeJudge, spec: Option<&'static Spec>) -> Option<String> {
        let action = spec.map_or(Action::Execute, |spec| judge.gate.policy.action(spec));
        let name = spec.map_or(UNKNOWN, |spec| spec.name);
        self.decide(ctx, &judge.gate, Judged { action, name, denial: judge.refused }, name)
    }

    // ---- when may it go ----

    /// Some: the next request waits until then. Its token is taken already.
    pub(super) fn pace(&self, ctx: &Ctx) -> Option<u64> {
        if !ctx.policy.paces() {
            return None;
        }
        let mut due = self.due.get();
        let gate = self.gate(ctx);
        if due == 0 && gate.limits.is_empty() {
            return None;
        }
        let now = clock::now();
        if due == 0 {
            due = gate.buckets(OnLimit::Wait).map(|(_, bucket)| bucket.reserve(now)).max()?;
            self.due.set(due);
            if due > now {
                ctx.metrics.policy.limited.inc(Limited::Wait);
                ctx.metrics.policy.waited.add(due - now);
            }
        }
        (due > now).then_some(due)
    }

    /// The next request goes now, or is refused with this error.
    pub(super) fn spend(&self, ctx: &Ctx, req: Option<&Request<'_>>) -> Option<String> {
        if !ctx.policy.paces() {
            return None;
        }
        self.due.set(0);
        let gate = self.gate(ctx);
        if gate.limits.is_empty() {
            return None;
        }
        let now = clock::now();
        if let Some((rate, _)) = gate.buckets(OnLimit::Error).find(|(_, bucket)| !bucket.has(now)) {
            let spec = req.and_then(|req| if let Lookup::Known(spec) = table::lookup(req) { Some(spec) } else { None });
            if !spec.is_some_and(is_always_answered) {
                ctx.metrics.policy.limited.inc(Limited::Error);
                let per_second = gate.policy.rate(rate).per_second;
                let text =
                    format!("NEARSIDE rate limit: more than {per_second} commands a second (commands.rate[{rate}])");
                return Some(if spec.is_some_and(|s| s.kind == Kind::Exec) { aborted(&text) } else { text });
            }
        }
        for (_, bucket) in gate.buckets(OnLimit::Error) {
            bucket.reserve(now);
        }
        None
    }
}

impl Gate {
    fn rights(&self) -> &Rights {
        self.policy.rights(self.rights)
    }

    /// The limits of one kind that hold for the session: their numbers and buckets.
    fn buckets(&self, on_limit: OnLimit) -> impl Iterator<Item = (usize, &Bucket)> {
        let of = move |limit: &&Limit| self.policy.rate(limit.rate).on_limit == on_limit;
        self.limits
            .iter()
            .filter(of)
            .map(|limit| (limit.rate, limit.own.as_deref().unwrap_or_else(|| self.policy.bucket(limit.rate))))
    }

    fn look(&self, ctx: &Ctx, spec: Result<&'static Spec, Stranger>, req: &Request<'_>) -> Judged {
        match spec {
            Ok(spec) => self.look_known(ctx, spec, req),
            Err(stranger) => self.look_stranger(ctx, stranger, req),
        }
    }

    fn look_known(&self, ctx: &Ctx, spec: &'static Spec, req: &Request<'_>) -> Judged {
        Judged {
            action: self.policy.action(spec),
            name: spec.name,
            denial: self.rights().refuses(spec, req, ctx.prefix.as_ref()),
        }
    }

    /// A name that the table does not have: what upstream has said of it decides.
    fn look_stranger(&self, ctx: &Ctx, stranger: Stranger, req: &Request<'_>) -> Judged {
        let name = String::from_utf8_lossy(req.arg(0)).to_ascii_lowercase();
        if table::is_container(name.as_bytes()) {
            return self.look_container(ctx, &name, req);
        }
        let (learned, categories) = match ctx.explanation(req.arg(0)) {
            Some(known) if stranger != Stranger::New => known,
            // A name with a bar is nobody's, and nobody is asked about it.
            _ if name.contains('|') => (Learned::Unknown, Categories::NONE),
            _ => (Learned::Refused, Categories::NONE),
        };
        let first = req.args.get(1).map(|arg| &req.raw[arg.range()]);
        let (name, keys) = match learned {
            Learned::Refused => {
                let denial = self.rights().refuses_unexplained();
                return Judged { action: Action::Execute, name: UNKNOWN, denial };
            }
            // A container under another name.
            Learned::Renamed(canonical) if table::is_container(canonical.as_bytes()) => {
                return self.look_container(ctx, &canonical, req);
            }
            Learned::Renamed(canonical) => (canonical, UnlistedKeys::Unknown),
            Learned::Module { reads_one: true } => {
                (name, first.map_or(UnlistedKeys::None, |key| UnlistedKeys::One(ctx.own_name(key))))
            }
            Learned::Module { .. } | Learned::Unknown => (name, UnlistedKeys::Unknown),
        };
        self.look_unlisted(&Unlisted { name: &name, categories, surely: categories, keys })
    }

    /// `CLIENT <something the table does not have>`, or a container that upstream has renamed.
    fn look_container(&self, ctx: &Ctx, container: &str, req: &Request<'_>) -> Judged {
        if req.argc() == 1 {
            let none = Categories::NONE;
            let keys = UnlistedKeys::None;
            return self.look_unlisted(&Unlisted { name: container, categories: none, surely: none, keys });
        }
        let name = format!("{container}|{}", String::from_utf8_lossy(req.arg(1)).to_ascii_lowercase());
        if let Some(spec) = table::by_name(name.as_bytes()) {
            return self.look_known(ctx, spec, req);
        }
        let siblings =
            || table::all().filter(|s| s.name.strip_prefix(container).is_some_and(|rest| rest.starts_with('|')));
        let all = || siblings().map(|spec| Categories::of(spec.name));
        let keys = siblings().any(|spec| spec.keys != Keys::None);
        self.look_unlisted(&Unlisted {
            name: &name,
            categories: all().fold(Categories::NONE, Categories::union),
            surely: all().reduce(Categories::common).unwrap_or_default(),
            keys: if keys { UnlistedKeys::Unknown } else { UnlistedKeys::None },
        })
    }

    fn look_unlisted(&self, what: &Unlisted<'_>) -> Judged {
        let denial = self.rights().refuses_unlisted(what);
        Judged { action: action_of(what.categories), name: UNKNOWN, denial }
    }
}

/// The keys of a large request pass by; the first that is refused is remembered.
pub(super) struct LargeJudge {
    gate: Rc<Gate>,
    refused: Option<Denial>,
    /// Where an argument counts the keys: how many they are, once it has passed.
    numkeys: Option<usize>,
}

impl LargeJudge {
    pub(super) fn is_refused(&self) -> bool {
        self.refused.is_some() && self.gate.rights().enforces()
    }

    /// The command is known, as far as it ever will be; `words`: its name, of a container's two.
    pub(super) fn named(&mut self, ctx: &Ctx, spec: Option<&'static Spec>, words: &[&[u8]]) {
        let rights = self.gate.rights();
        self.refused = match spec {
            Some(spec) => {
                // Of these only the places of some keys are known before the whole request is.
                let loose = matches!(spec.keys, Keys::Streams | Keys::Sort | Keys::Georadius | Keys::Migrate);
                let hidden = || if loose && !rights.leaves_free(spec) { rights.refuses_hidden() } else { None };
                rights.refuses_command(spec).or_else(hidden)
            }
            None => {
                let mut raw = bytes::BytesMut::new();
                build::command(&mut raw, words);
                let mut scanner = Scanner::new(raw.len(), raw.len());
                scanner.scan(&raw);
                let req = Request { raw: &raw, args: scanner.args() };
                match ctx.learned(words[0]) {
                    // Renamed: the request goes up as it is, and what it names is looked at by the row's shape too late.
                    Ok(spec) => rights.refuses_command(spec).or_else(|| rights.refuses_hidden()),
                    Err(stranger) => self.gate.look_stranger(ctx, stranger, &req).denial,
                }
            }
        };
    }

    /// An argument has passed: `None` where it is longer than any that is shown.
    pub(super) fn passed(&mut self, spec: &'static Spec, argc: usize, i: usize, arg: Option<&[u8]>) {
        let rights = self.gate.rights();
        if self.refused.is_some() || rights.leaves_free(spec) {
            return;
        }
        let is_key = match spec.keys {
            Keys::Count { at, .. } if i == usize::from(at) => {
                self.numkeys = Some(arg.map_or(usize::MAX, crate::command::keys::number));
                false
            }
            Keys::Count { at, .. } if i > usize::from(at) => self.numkeys.is_none_or(|n| i - usize::from(at) <= n),
            _ => crate::command::keys::is_key_position(spec, argc, i),
        };
        if is_key {
            self.refused = arg.map_or_else(|| rights.refuses_hidden(), |key| rights.refuses_key(key));
        }
    }
}

fn own_bucket(own: &mut Vec<(usize, Rc<Bucket>)>, policy: &Policy, rate: usize) -> Rc<Bucket> {
    if let Some((_, bucket)) = own.iter().find(|(of, _)| *of == rate) {
        return bucket.clone();
    }
    let fresh = Rc::new(Bucket::new(policy.rate(rate)));
    own.push((rate, fresh.clone()));
    fresh
}

fn is_exec(spec: Result<&'static Spec, Stranger>) -> bool {
    spec.is_ok_and(|spec| spec.kind == Kind::Exec)
}

/// As Redis words it where EXEC itself is refused.
fn aborted(error: &str) -> String {
    format!("EXECABORT Transaction discarded because of: {error}")
}

/// By these a client comes, goes, or asks what is wrong.
fn is_always_answered(spec: &'static Spec) -> bool {
    matches!(spec.kind, Kind::Auth | Kind::Hello | Kind::Quit | Kind::Reset | Kind::Nearside)
}

/// The command's name for its client.
fn shown(spec: Result<&'static Spec, Stranger>, req: &Request<'_>) -> std::borrow::Cow<'static, str> {
    match spec {
        Ok(spec) => spec.name.into(),
        Err(_) => {
            let name = req.arg(0);
            let sub = req.args.get(1).filter(|_| table::is_container(name)).map(|arg| &req.raw[arg.range()]);
            // No name is that long; the error cuts it further.
            let text = |word: &[u8]| String::from_utf8_lossy(&word[..word.len().min(256)]).to_ascii_lowercase();
            sub.map_or_else(|| text(name), |sub| format!("{}|{}", text(name), text(sub))).into()
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::task::LocalSet;

    use super::*;
    use crate::cache::{Bounds, L1};
    use crate::config::{Commands, Config};
    use crate::observe::metrics::Metrics;
    use crate::observe::reasons::Mode;
    use crate::observe::status::Status;
    use crate::policy::commands::{Override, Rate, Who, Word};
    use crate::session::Probe;

    fn ctx() -> Rc<Ctx> {
        let config = Config::for_tests("unix:///nowhere");
        let metrics = Arc::new(Metrics::new(":", 100));
        let l1 = Arc::new(L1::new(Bounds { max_bytes: 1 << 20, max_entries: None, lru: false }, metrics.clone()));
        Ctx::new(Arc::new(config), l1, metrics, Arc::new(Status::new("upstream", Mode::Serve)))
    }

    fn policy(ctx: &Ctx, change: impl FnOnce(&mut Commands)) -> Arc<Policy> {
        let mut commands = ctx.config.commands.clone();
        change(&mut commands);
        Arc::new(Policy::new(&commands))
    }

    /// Sends an inline command, and gives back what it is answered.
    fn ask(ctx: &Rc<Ctx>, probe: &mut Probe, line: &str) -> String {
        probe.feed(ctx, format!("{line}\r\n").as_bytes());
        String::from_utf8_lossy(&probe.output()).into_owned()
    }

    fn in_a_world(test: impl FnOnce(&Rc<Ctx>, &mut Probe)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        LocalSet::new().block_on(&runtime, async {
            let ctx = ctx();
            let mut probe = Probe::new(&ctx, &ctx.default_profile);
            ctx.sessions.borrow_mut().insert(probe.session().id, probe.session().clone());
            test(&ctx, &mut probe);
        });
    }

    #[test]
    fn another_policy_holds_for_the_next_command_of_a_session_that_was_judged_before() {
        in_a_world(|ctx, probe| {
            let getname = || Word::Command("client|getname".to_owned());
            assert!(ask(ctx, probe, "CLIENT ID").starts_with(':'));
            ctx.set_policy(policy(ctx, |c| c.deny.push(getname())));
            assert!(ask(ctx, probe, "CLIENT GETNAME").starts_with("-NOPERM nearside policy: "));
            let who = Who { client: Some("ann".to_owned()), ..Who::default() };
            let of_ann = Override { who, deny: Some(Vec::new()), ..Override::default() };
            ctx.set_policy(policy(ctx, |c| {
                c.deny.push(getname());
                c.overrides.push(of_ann.clone());
            }));
            assert!(ask(ctx, probe, "CLIENT GETNAME").starts_with("-NOPERM"));
            assert_eq!(ask(ctx, probe, "CLIENT SETNAME ann"), "+OK\r\n");
            assert_eq!(ask(ctx, probe, "CLIENT GETNAME"), "$3\r\nann\r\n");
            // The override that was found for it is another's now.
            ctx.set_policy(policy(ctx, |c| {
                c.deny.push(getname());
                c.overrides = vec![Override { deny: Some(vec![Word::All]), ..of_ann.clone() }];
            }));
            assert!(ask(ctx, probe, "CLIENT ID").contains("(commands.overrides[0].deny: @all)"));
            ctx.set_policy(Arc::new(Policy::open()));
            assert_eq!(ask(ctx, probe, "CLIENT GETNAME"), "$3\r\nann\r\n");
        });
    }

    #[test]
    fn another_policy_ends_what_a_session_waits_for() {
        in_a_world(|ctx, probe| {
            let rate = |per_second| Rate {
                who: Who::default(),
                per_second,
                burst: 1,
                on_limit: OnLimit::Wait,
                scope: Scope::Shared,
            };
            ctx.set_policy(policy(ctx, |c| c.rate.push(rate(1))));
            let session = probe.session().clone();
            assert_eq!(session.pace(ctx), None);
            assert_eq!(session.spend(ctx, None), None);
            let due = session.pace(ctx).expect("no token is left");
            // It is asked again and again, and takes no second one.
            assert_eq!((session.pace(ctx), session.pace(ctx)), (Some(due), Some(due)));
            assert_eq!(ctx.metrics.policy.limited.get(Limited::Wait), 1);
            ctx.set_policy(policy(ctx, |c| c.rate.push(rate(1000))));
            assert_eq!(session.pace(ctx), None);
        });
    }

    #[test]
    fn whoever_answers_for_the_session_may_do_so_only_where_nothing_depends_on_it() {
        in_a_world(|ctx, probe| {
            let session = probe.session().clone();
            let freely = |change: &dyn Fn(&mut Commands)| {
                ctx.set_policy(policy(ctx, change));
                (session.gets_freely(ctx), session.reads_freely(ctx))
            };
            let word = |name: &str| Word::Command(name.to_owned());
            assert_eq!(freely(&|_| {}), (true, true));
            assert_eq!(freely(&|c| c.deny.push(word("set"))), (true, true));
            assert_eq!(freely(&|c| c.deny.push(word("mget"))), (true, false));
            assert_eq!(freely(&|c| c.deny.push(word("get"))), (false, false));
            assert_eq!(freely(&|c| c.deny.push(Word::Key("x".to_owned()))), (false, false));
            assert_eq!(freely(&|c| c.allow = Some(vec![Word::Category("write".to_owned())])), (false, false));
            let rate =
                Rate { who: Who::default(), per_second: 1, burst: 1, on_limit: OnLimit::Error, scope: Scope::Shared };
            assert_eq!(freely(&|c| c.rate.push(rate.clone())), (true, false));
        });
    }
}
