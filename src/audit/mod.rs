//! `nearside audit`: proves from outside, against real sidecars and a real upstream, that what clients read is what the
//! guarantees say. It drives versioned values through the sidecars and past them, disturbs the network if it is told to,
//! holds every reply against what is known (`truth`), and reports what was verified and what was wrong.
//!
//! A process of its own: it shares no state with a sidecar and knows of it only what clients see. One thread, one task for
//! each connection; times are stamped where bytes are handed over and taken (see `truth` for what that leaves uncertain).
//! It writes below a prefix of its own, removes what it wrote, and never flushes anything.

mod absence;
mod client;
mod dice;
mod faults;
mod keys;
mod modes;
mod outages;
mod owed;
mod promise;
mod relay;
mod report;
mod session;
mod spawn;
mod truth;
mod writer;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::{JoinSet, LocalSet};
use tokio::time::{Instant, sleep, timeout};

pub(crate) use faults::Faults;
pub(crate) use report::Report;

use self::client::{Conn, Lost, place, shown, version};
use self::keys::Keys;
use self::outages::Way;
use self::promise::Promise;
use self::relay::Relay;
use self::report::Sidecar;
use self::session::{Role, Seat};
use self::spawn::Children;
use self::truth::{At, Key, Micros, Property, Truth};
use crate::config::Url;
use crate::resp::push::Value;

/// A sidecar that is not ready by then is not going to be.
const READY_MAX: Duration = Duration::from_secs(30);

/// What an answer may take with a healthy network; a stall is added to it.
const PATIENCE: Duration = Duration::from_secs(15);

/// Between two lines about how it goes.
const PROGRESS_EVERY: Duration = Duration::from_secs(10);

/// Copies that may be wrong for longer than this are not waited for at the end.
const REST_MAX: Duration = Duration::from_secs(60);

/// Different error texts that are counted by themselves; some name addresses or numbers.
const ERRORS_MAX: usize = 50;

/// Keys that are removed with one command.
const CLEAN_AT_ONCE: usize = 100;

/// What the command line asks for.
#[derive(Debug)]
pub(crate) struct Options {
    pub(crate) upstream: Url,
    pub(crate) through: Vec<Url>,
    /// Sidecars to start, each behind a relay of its own.
    pub(crate) spawn: usize,
    /// The configuration file of those.
    pub(crate) config: Option<PathBuf>,
    /// Where to listen as upstream of the sidecars of `through`.
    pub(crate) relay: Option<SocketAddr>,
    pub(crate) duration: Duration,
    pub(crate) writers: usize,
    /// Of each place.
    pub(crate) sessions: usize,
    pub(crate) keys: usize,
    /// Commands and small groups of them a second, of all together, at the most.
    pub(crate) rate: u32,
    pub(crate) faults: Faults,
    /// B; none: what the sidecars say theirs is.
    pub(crate) max_staleness: Option<Duration>,
    pub(crate) seed: u64,
    pub(crate) prefix: String,
    /// End at the first violation.
    pub(crate) fail_fast: bool,
}

/// The address of a sidecar or of upstream, as the command line has it.
pub(crate) fn address(text: &str) -> Result<Url, String> {
    place(text)
}

/// The options with everything found out that they left open.
struct Plan {
    upstream: Url,
    through: Vec<Url>,
    faults: Faults,
    bound: Duration,
    /// The expiry of keys that have one.
    life: Duration,
    patience: Duration,
    duration: Duration,
    /// The mean pause of a session or writer between two turns.
    pause: Duration,
    seed: u64,
    fail_fast: bool,
}

/// What all tasks of one audit share.
struct Shared {
    plan: Plan,
    keys: Keys,
    truth: RefCell<Truth>,
    stop: Cell<bool>,
    stopped: Notify,
    /// Error replies and lost connections, by text.
    errors: RefCell<BTreeMap<String, u64>>,
    faults: RefCell<BTreeMap<&'static str, u64>>,
    /// Upstream is gone, or only just back, or is to go soon: no other fault begins.
    disturbed: Cell<bool>,
    longest_recovery: Cell<Micros>,
}

impl Shared {
    fn now(&self) -> Micros {
        self.truth.borrow().now()
    }

    fn name(&self, key: Key) -> String {
        self.truth.borrow().name(key).to_owned()
    }

    fn stop(&self) {
        self.stop.set(true);
        self.stopped.notify_waiters();
    }

    /// After something was judged.
    fn look(&self) {
        if self.plan.fail_fast && self.truth.borrow().violations() > 0 {
            self.stop();
        }
    }

    async fn pause(&self, time: Duration) {
        let stopped = self.stopped.notified();
        if !self.stop.get() {
            let _ = timeout(time, stopped).await;
        }
    }

    fn note_error(&self, text: &str) {
        const SHOWN: usize = 120;
        let text: String = text.chars().take(SHOWN).collect();
        let mut errors = self.errors.borrow_mut();
        let known = errors.len() < ERRORS_MAX || errors.contains_key(&text);
        *errors.entry(if known { text } else { "others".to_owned() }).or_default() += 1;
    }

    /// A reply that is no version.
    fn note_reply(&self, reply: &Value) {
        match reply {
            Value::Error(error) => self.note_error(error),
            other => self.note_error(&format!("unexpected reply: {other:?}")),
        }
    }

    fn note_lost(&self, lost: &Lost, session: usize) {
        if let Lost::Silent(_) = lost {
            let mut truth = self.truth.borrow_mut();
            truth.check_at_large(Property::Unanswered, "", false, || format!("session {session}: {lost}"));
        }
        self.note_error(&lost.to_string());
        self.look();
    }

    /// The keys that the sessions of a place fight for.
    fn fought_of(&self, place: usize) -> &[Key] {
        let of_each = self.keys.fought.len() / self.plan.through.len();
        &self.keys.fought[place * of_each..(place + 1) * of_each]
    }

    fn end(&self, doubt: absence::Doubt) {
        let mut truth = self.truth.borrow_mut();
        let now = truth.now();
        truth.absences.end(doubt, now);
    }

    fn count_fault(&self, what: &'static str) {
        *self.faults.borrow_mut().entry(what).or_default() += 1;
    }
}

/// Runs the audit on a thread of its own kind. `Err`: it could not be carried out, for this reason.
pub(crate) fn run(options: Options, say: &dyn Fn(&str)) -> Result<Report, String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| format!("starting the runtime: {e}"))?;
    LocalSet::new().block_on(&runtime, audit(options, say))
}

async fn audit(mut options: Options, say: &dyn Fn(&str)) -> Result<Report, String> {
    let mut upstream = open_upstream(&options.upstream).await?;
    let relays = start_relays(&options, say).await?;
    let mut children = Children::start(&options, &relays)?;
    options.through.extend(children.places());
    let before = await_sidecars(&options, &mut children).await?;
    let shared = Rc::new(prepare(options, &before)?);
    prove_path(&shared, &mut upstream).await?;
    say(&format!(
        "auditing {} for up to B = {:?}, keys {}*, seed {}",
        before.iter().map(|s| s.address.as_str()).collect::<Vec<_>>().join(", "),
        shared.plan.bound,
        shared.keys.prefix,
        shared.plan.seed,
    ));
    let began = Instant::now();
    drive(&shared, &relays, &before, say).await;
    let lasted = began.elapsed();
    relays.iter().for_each(|relay| relay.heal());
    // A new connection: upstream may close one that is idle for so long.
    let mut upstream = open_upstream(&shared.plan.upstream).await?;
    await_modes(&shared, &before).await;
    outages::settle_rest(&shared).await;
    let rested = at_rest(&shared, &mut upstream).await;
    children.check(&shared);
    clean_up(&shared, &mut upstream).await?;
    rested?;
    let mut sidecars = Vec::new();
    for (place, then) in shared.plan.through.iter().zip(before) {
        let now = ask_info(place).await.unwrap_or_else(|_| then.clone()); // if it is gone, `at_rest` has said so
        let sidecar = then.until(&now);
        shared.truth.borrow_mut().note_samples(&sidecar.address, sidecar.sampled, sidecar.stale);
        sidecars.push(sidecar);
    }
    let report = Report::new(&shared, &sidecars, lasted);
    children.end(report.violations() > 0, say);
    if report.reads() == 0 { Err("nothing was read, so nothing was proved".to_owned()) } else { Ok(report) }
}

async fn open_upstream(url: &Url) -> Result<Conn, String> {
    let conn = Conn::open(url, false, PATIENCE).await;
    conn.map_err(|lost| format!("upstream {}: {lost}", shown(&url.endpoint)))
}

// ---- getting ready ----

async fn start_relays(options: &Options, say: &dyn Fn(&str)) -> Result<Vec<Rc<Relay>>, String> {
    let mut relays = Vec::new();
    let free: SocketAddr = ([127, 0, 0, 1], 0).into();
    let wanted = options.relay.into_iter().chain(std::iter::repeat_n(free, options.spawn));
    for at in wanted {
        let relay = Relay::start(at, options.upstream.endpoint.clone()).await;
        relays.push(relay.map_err(|e| format!("cannot listen on {at} as a relay: {e}"))?);
    }
    if let (Some(_), Some(relay)) = (options.relay, relays.first()) {
        say(&format!("relay to upstream on {}: the sidecars' upstream.url must lead here", relay.address));
    }
    Ok(relays)
}

/// Waits until every sidecar answers and caches; what each says of itself.
async fn await_sidecars(options: &Options, children: &mut Children) -> Result<Vec<Sidecar>, String> {
    let mut all = Vec::new();
    let end = Instant::now() + READY_MAX;
    for place in &options.through {
        let sidecar = loop {
            let why = match ask_info(place).await {
                Ok(sidecar) if sidecar.is_ready() => break sidecar,
                Ok(sidecar) => format!("upstream is {}, coherence is {}", sidecar.upstream, sidecar.coherence.mode),
                Err(why) => why,
            };
            if Instant::now() >= end || children.has_ended() {
                return Err(format!("{}: not ready: {why}{}", shown(&place.endpoint), children.last_words()));
            }
            sleep(Duration::from_millis(20)).await;
        };
        if sidecar.promise(None).is_none() {
            let (name, mode) = (&sidecar.address, &sidecar.coherence.mode);
            return Err(format!("{name}: coherence is {mode}, of which this audit does not know what it promises"));
        }
        all.push(sidecar);
    }
    Ok(all)
}

async fn ask_info(place: &Url) -> Result<Sidecar, String> {
    let mut conn = Conn::open(place, false, PATIENCE).await.map_err(|lost| lost.to_string())?;
    let reply = conn.ask(&["INFO", "nearside"]).await.map_err(|lost| lost.to_string())?;
    let text = reply.text().map(|text| String::from_utf8_lossy(text).into_owned());
    text.and_then(|text| Sidecar::parse(shown(&place.endpoint), &text))
        .ok_or_else(|| "this is no Nearside: it has no INFO nearside".to_owned())
}

fn prepare(options: Options, sidecars: &[Sidecar]) -> Result<Shared, String> {
    let theirs = sidecars.iter().map(|s| s.coherence.bound).max().unwrap_or_default();
    let bound = options.max_staleness.unwrap_or(theirs);
    if bound < theirs {
        return Err(format!(
            "--max-staleness {bound:?} is less than a sidecar's own coherence.max_staleness, {theirs:?}"
        ));
    }
    let sessions = options.sessions * options.through.len();
    let actors = (sessions + options.writers).max(1) as u32;
    let life = bound * 3 + Duration::from_millis(50);
    let patience = PATIENCE + bound * 6;
    if options.faults.outages {
        refuse_what_no_outage_can_judge(&options, sidecars)?;
    }
    let has_outages = options.faults.outages;
    let switched = |promise: Promise| if options.faults.modes { promise.under_switches() } else { promise };
    let mut promises: Vec<Promise> = sidecars.iter().filter_map(|s| s.promise(Some(bound))).map(switched).collect();
    promises.iter_mut().for_each(|promise| promise.has_outages = has_outages);
    let mut truth = Truth::new(promises, patience);
    // Of this run: two audits of one upstream do not disturb each other.
    let prefix = format!("{}{:x}:", options.prefix, options.seed ^ u64::from(std::process::id()));
    let keys = Keys::new(&mut truth, &prefix, options.keys, options.writers, sessions, life, has_outages);
    let plan = Plan {
        upstream: options.upstream,
        through: options.through,
        faults: options.faults,
        bound,
        life,
        patience,
        duration: options.duration,
        pause: Duration::from_secs(1) * actors / options.rate,
        seed: options.seed,
        fail_fast: options.fail_fast,
    };
    Ok(Shared {
        plan,
        keys,
        truth: RefCell::new(truth),
        stop: Cell::new(false),
        stopped: Notify::new(),
        errors: RefCell::default(),
        faults: RefCell::default(),
        disturbed: Cell::new(false),
        longest_recovery: Cell::new(0),
    })
}

/// What a sidecar promises of it while upstream is gone is nothing that versions could be held against.
fn refuse_what_no_outage_can_judge(options: &Options, sidecars: &[Sidecar]) -> Result<(), String> {
    for (place, sidecar) in options.through.iter().zip(sidecars) {
        let name = &sidecar.address;
        if sidecar.coherence.outage.local {
            return Err(format!(
                "--faults outages: {name} has outage.reads or outage.writes local, of which upstream never hears; use stale \
                 or fail, and queue or fail"
            ));
        }
        if options.through.iter().filter(|other| other.endpoint == place.endpoint).count() > 1 {
            return Err(format!(
                "--faults outages: {name} is named twice, and what one of its users queues the other does not see; audit \
                 one user at a time"
            ));
        }
    }
    Ok(())
}

/// What is written to upstream is what the sidecars read: the same server, the same database.
async fn prove_path(shared: &Shared, upstream: &mut Conn) -> Result<(), String> {
    let key = format!("{}path", shared.keys.prefix);
    let set = upstream.ask(&["SET", &key, "1", "PX", "60000"]).await.map_err(|lost| format!("upstream: {lost}"))?;
    if let Value::Error(error) = set {
        return Err(format!("upstream refuses to be written: {error}"));
    }
    for place in &shared.plan.through {
        read_path(place, &key).await.map_err(|why| format!("{}: {why}", shown(&place.endpoint)))?;
    }
    upstream.ask(&["DEL", &key]).await.map(drop).map_err(|lost| format!("upstream: {lost}"))
}

/// A user's lane may still be on its way, which an error says; a wrong value says that it leads elsewhere.
async fn read_path(place: &Url, key: &str) -> Result<(), String> {
    let end = Instant::now() + READY_MAX;
    loop {
        let asked = async { Conn::open(place, false, PATIENCE).await?.ask(&["GET", key]).await };
        let why = match asked.await {
            Ok(got) if version(&got) == Some(1) => return Ok(()),
            Ok(Value::Error(error)) => error,
            Ok(got) => {
                return Err(format!(
                    "does not lead to this upstream and database: it reads {got:?} of a key set there"
                ));
            }
            Err(lost) => lost.to_string(),
        };
        if Instant::now() >= end {
            return Err(why);
        }
        sleep(Duration::from_millis(50)).await;
    }
}

// ---- driving ----

async fn drive(shared: &Rc<Shared>, relays: &[Rc<Relay>], sidecars: &[Sidecar], say: &dyn Fn(&str)) {
    let mut tasks = JoinSet::new();
    for (number, seat) in seats(shared).into_iter().enumerate() {
        debug_assert_eq!(number, seat.number);
        tasks.spawn_local(session::run(shared.clone(), seat));
    }
    for number in 0..shared.keys.pairs.len() {
        tasks.spawn_local(writer::run(shared.clone(), number));
    }
    let ways = ways(relays, shared.plan.through.len());
    if shared.plan.faults.outages {
        tasks.spawn_local(outages::play(shared.clone(), ways.clone()));
    }
    if shared.plan.faults.needs_relay() {
        for (number, way) in ways.into_iter().enumerate() {
            tasks.spawn_local(faults::network(shared.clone(), way, number as u64));
        }
    }
    if shared.plan.faults.kills {
        let names = sidecars.iter().map(|s| s.client_name.clone()).collect();
        tasks.spawn_local(faults::kills(shared.clone(), names));
    }
    if shared.plan.faults.modes {
        for place in 0..shared.plan.through.len() {
            tasks.spawn_local(modes::switches(shared.clone(), place));
        }
    }
    wait(shared, say).await;
    shared.stop();
    relays.iter().for_each(|relay| relay.heal());
    let all = async { while tasks.join_next().await.is_some() {} };
    if timeout(shared.plan.patience + outages::GIVES_UP + Duration::from_secs(5), all).await.is_err() {
        let mut truth = shared.truth.borrow_mut();
        truth.check_at_large(Property::Unanswered, "", false, || "clients still wait for an answer".to_owned());
    }
}

/// A relay for each sidecar, or one for all of them.
fn ways(relays: &[Rc<Relay>], places: usize) -> Vec<Way> {
    match relays {
        [one] => vec![(one.clone(), (0..places).collect())],
        each => each.iter().cloned().zip((0..places).map(|place| vec![place])).collect(),
    }
}

/// Sessions of each place, in the order of places.
fn seats(shared: &Shared) -> Vec<Seat> {
    let places = &shared.plan.through;
    let of_each = shared.keys.own.len() / places.len();
    let mut seats = Vec::new();
    for (index, place) in places.iter().enumerate() {
        // Two places with one endpoint are one sidecar, seen by two users.
        let sidecar = places.iter().position(|p| p.endpoint == place.endpoint).unwrap_or(index);
        for n in 0..of_each {
            let role = Role::of(n, |i| polled(shared, index, of_each, i));
            seats.push(Seat { number: seats.len(), at: At { place: index, sidecar }, role });
        }
    }
    seats
}

/// What the `i`th poller of a place reads over and over. Where copies live by what the other sidecars announce, those that
/// do nothing else read keys that are written through the next place alone: each write through their own would drop the
/// copy, and cover for an announcement that is missed.
fn polled(shared: &Shared, place: usize, of_each: usize, i: usize) -> Key {
    if i % 3 != 2 || !shared.truth.borrow().promise(place).announces {
        return shared.keys.polled(i);
    }
    let next = (place + 1) % shared.plan.through.len();
    shared.keys.own[next * of_each + (i / 3 * session::ROLES) % of_each]
}

/// Until the time is over, somebody interrupts, or the first violation if that is enough.
async fn wait(shared: &Shared, say: &dyn Fn(&str)) {
    let end = Instant::now() + shared.plan.duration;
    let mut interrupted = std::pin::pin!(tokio::signal::ctrl_c());
    let mut next = Instant::now() + PROGRESS_EVERY;
    while !shared.stop.get() && Instant::now() < end {
        let stopped = shared.stopped.notified();
        tokio::select! {
            () = tokio::time::sleep_until(end.min(next)) => {}
            () = stopped => {}
            _ = &mut interrupted => {
                say("interrupted: what was seen so far is reported");
                return;
            }
        }
        if Instant::now() >= next {
            next += PROGRESS_EVERY;
            let truth = shared.truth.borrow();
            let seconds = truth.now() / 1_000_000;
            say(&format!(
                "{seconds} s: {} reads, {} writes, {} violations",
                truth.reads,
                truth.writes,
                truth.violations()
            ));
        }
    }
}

// ---- afterwards ----

/// A sidecar that has lost its channel just now caches nothing, and shows nothing of how it caches.
async fn await_modes(shared: &Shared, before: &[Sidecar]) {
    let end = Instant::now() + READY_MAX;
    for (place, then) in shared.plan.through.iter().zip(before) {
        let is_back = |now: Sidecar| now.coherence.mode == then.coherence.mode;
        while !ask_info(place).await.is_ok_and(is_back) && Instant::now() < end {
            sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Everything is quiet and healed: after 2 B, or when no copy can be older, each sidecar has what upstream has, from its
/// cache too.
async fn at_rest(shared: &Shared, upstream: &mut Conn) -> Result<(), String> {
    let bounds: Vec<Duration> = shared.truth.borrow().promises().iter().map(Promise::longest).collect();
    let longest = bounds.iter().filter(|bound| **bound <= REST_MAX).max().copied().unwrap_or_default();
    sleep(longest.max(shared.plan.bound * 2).max(Duration::from_millis(200))).await;
    for (place, bound) in shared.plan.through.iter().zip(bounds) {
        let compared = match bound <= REST_MAX {
            true => compare(shared, upstream, place).await,
            false => Ok(()),
        };
        let ended = match compared {
            Ok(()) => no_write_pending(shared, place).await,
            lost => lost,
        };
        if let Err(lost) = ended {
            let alive = upstream.ask(&["PING"]).await;
            alive.map_err(|lost| format!("upstream {}: {lost}", shown(&shared.plan.upstream.endpoint)))?;
            let mut truth = shared.truth.borrow_mut();
            truth.check_at_large(Property::Unanswered, "", false, || {
                format!("{} at rest: {lost}", shown(&place.endpoint))
            });
        }
    }
    Ok(())
}

async fn compare(shared: &Shared, upstream: &mut Conn, place: &Url) -> Result<(), Lost> {
    let mut conn = Conn::open(place, false, shared.plan.patience).await?;
    let names: Vec<String> = shared.truth.borrow().names().map(|(_, name)| name.to_owned()).collect();
    for name in names {
        // Twice: the second time from the cache, if the first was not.
        for _ in 0..2 {
            let before = upstream.ask(&["GET", &name]).await?;
            let got = conn.ask(&["GET", &name]).await?;
            let after = upstream.ask(&["GET", &name]).await?;
            let quiet = before == after; // a key may expire at any time
            let note = || format!("{} has {got:?}, upstream has {after:?}", shown(&place.endpoint));
            let mut truth = shared.truth.borrow_mut();
            truth.check_at_large(Property::AtRest, &name, !quiet || got == after, note);
        }
    }
    Ok(())
}

/// C72: every write that was begun has ended.
async fn no_write_pending(shared: &Shared, place: &Url) -> Result<(), Lost> {
    let end = Instant::now() + shared.plan.patience;
    let mut pending = Some(0);
    while Instant::now() < end {
        pending = ask_info(place).await.ok().map(|sidecar| sidecar.pending);
        if pending == Some(0) {
            break;
        }
        sleep(Duration::from_millis(20)).await;
    }
    let note = || format!("{}: {pending:?} writes are pending although nobody writes", shown(&place.endpoint));
    shared.truth.borrow_mut().check_at_large(Property::AtRest, "", pending == Some(0), note);
    Ok(())
}

async fn clean_up(shared: &Shared, upstream: &mut Conn) -> Result<(), String> {
    let mut names: Vec<String> = shared.truth.borrow().names().map(|(_, name)| name.to_owned()).collect();
    names.push(shared.keys.queue.clone());
    names.extend((0..shared.plan.through.len()).map(|place| shared.keys.probe(place)));
    for some in names.chunks(CLEAN_AT_ONCE) {
        let words: Vec<&str> = std::iter::once("DEL").chain(some.iter().map(String::as_str)).collect();
        let prefix = &shared.keys.prefix;
        upstream.ask(&words).await.map_err(|lost| format!("keys {prefix}* are left behind: {lost}"))?;
    }
    Ok(())
}
