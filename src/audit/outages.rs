//! Upstream goes for some seconds, for one sidecar or for all of them, by the audit's own relays: it is untouched itself, and
//! writers past the sidecars go on. Afterwards the sidecar has to read from upstream again, and what it has acknowledged
//! meanwhile has to be there (`owed` says what that means). The other faults leave upstream alone, but a sidecar may take a
//! cut for more than that, which is no fault of its own: they ask here when that can be ruled out again.
//!
//! **When it is back.** A counter is counted up upstream, and what it is now is read through the sidecar: that can come from
//! upstream alone, so the lane that answered is live. Then it says that no write waits. From there on ages are
//! judged by B again. Its own word for being up would not do: that speaks of upstream, not of this client's lane.

use std::rc::Rc;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::client::{Conn, Lost, shown, version};
use super::dice::Dice;
use super::faults::something_read;
use super::owed::Outcome;
use super::relay::{Presence, Relay};
use super::truth::{Key, Known, Micros, Property};
use super::{PATIENCE, READY_MAX, Shared, absence, ask_info};
use crate::resp::push::Value;

/// Between two outages, about. The second half of it is free of other faults.
const BETWEEN: Duration = Duration::from_secs(1);

/// No outage is longer: clients that wait for it have to be answered within their patience.
const LONGEST: Duration = Duration::from_secs(6);

/// Sidecars that wait longer than this before they call a silent upstream gone have none.
const SILENCE_MAX: Duration = Duration::from_secs(4);

/// How long an outage has to be for stale values to be worth a look, where nothing says how old they may be.
const SHORTEST: Duration = Duration::from_secs(1);

/// What is stated of recovery. An attempt to connect comes 5 s after the last one at the latest (`upstream.retry.max_delay`), takes
/// 1 s (`connect_timeout`), and the queue is done in milliseconds; the rest is for machines that are busy with other things.
const BACK_WITHIN: Duration = Duration::from_secs(30);

/// A sidecar that is not back by then is not waited for any longer.
pub(super) const GIVES_UP: Duration = Duration::from_secs(40);

const PROBE_EVERY: Duration = Duration::from_millis(10);

/// A relay, and the places that have it between them and upstream.
pub(super) type Way = (Rc<Relay>, Vec<usize>);

/// Until the audit is over.
pub(super) async fn play(shared: Rc<Shared>, ways: Vec<Way>) {
    let mut dice = Dice::new(shared.plan.seed, 4_000);
    while !shared.stop.get() {
        shared.pause(dice.time(BETWEEN)).await;
        // Behind a kill or a cut a cache is empty, and there is nothing that could be stale.
        shared.disturbed.set(true);
        shared.pause(BETWEEN / 2).await;
        something_read(&shared).await;
        if shared.stop.get() {
            return;
        }
        let one = dice.below(ways.len() as u64) as usize;
        let chosen = if dice.below(4) == 0 { &ways[..] } else { &ways[one..=one] };
        outage(&shared, chosen, &mut dice).await;
        shared.disturbed.set(false);
    }
}

async fn outage(shared: &Shared, ways: &[Way], dice: &mut Dice) {
    let places: Vec<usize> = ways.iter().flat_map(|(_, places)| places.clone()).collect();
    let (presence, length) = how(shared, &places, dice);
    shared.count_fault("outages");
    if presence == Presence::Silent {
        shared.count_fault("silent outages");
    }
    let doubts = doubts(shared, &places, Duration::ZERO);
    ways.iter().for_each(|(relay, _)| relay.leave(presence));
    places.iter().for_each(|place| begin(shared, *place));
    shared.pause(length).await;
    places.iter().for_each(|place| shared.truth.borrow_mut().absences.returns(*place));
    let back = shared.now();
    ways.iter().for_each(|(relay, _)| relay.come_back());
    for place in places {
        let recovered = recovered(shared, place).await;
        let took = shared.now() - back;
        shared.longest_recovery.set(shared.longest_recovery.get().max(took));
        let name = shown(&shared.plan.through[place].endpoint);
        let holds = recovered.is_ok() && Duration::from_micros(took) <= BACK_WITHIN;
        let note = || match &recovered {
            Ok(_) => format!("{name} was back {} ms behind upstream", took / 1000),
            Err(why) => format!("{name} is not back {} ms behind upstream: {why}", took / 1000),
        };
        shared.truth.borrow_mut().check_at_large(Property::Recovery, "", holds, note);
        shared.look();
        if let Ok(asked) = recovered {
            let mine = doubts.iter().filter(|doubt| doubt.place() == place);
            mine.for_each(|doubt| shared.end(*doubt));
            note_failed(shared, settled(shared, place, asked).await);
            note_failed(shared, fought(shared, place, back).await);
        }
    }
}

/// Which kind of outage, and for how long: mostly longer than anything stale may be served.
fn how(shared: &Shared, places: &[usize], dice: &mut Dice) -> (Presence, Duration) {
    let truth = shared.truth.borrow();
    let promises = || places.iter().map(|place| &truth.promise(*place).outage);
    let max_stale = promises().filter_map(|o| o.max_stale).max().unwrap_or(SHORTEST).min(LONGEST / 2);
    let length = max_stale / 4 + dice.time(max_stale * 7 / 4);
    let silence = promises().map(|o| o.silence.filter(|silence| *silence <= SILENCE_MAX)).min().flatten();
    match silence {
        Some(silence) if dice.below(3) == 0 => (Presence::Silent, silence + length),
        _ => (Presence::Refuses, length),
    }
}

fn begin(shared: &Shared, place: usize) {
    let mut truth = shared.truth.borrow_mut();
    let now = truth.now();
    truth.absences.leaves(place, now);
    shared.fought_of(place).iter().for_each(|key| truth.owed.begin_fight(*key));
}

fn note_failed(shared: &Shared, done: Result<(), Lost>) {
    if let Err(lost) = done {
        shared.note_error(&format!("upstream: {lost}"));
    }
}

// ---- what other faults may be taken for ----

/// From `after` on these sidecars may hold that upstream is gone.
pub(super) fn doubts(shared: &Shared, places: &[usize], after: Duration) -> Vec<absence::Doubt> {
    let mut truth = shared.truth.borrow_mut();
    let (from, horizon) = (truth.now() + after.as_micros() as Micros, truth.horizon());
    let places: Vec<usize> = places.iter().copied().filter(|p| truth.promise(*p).outage.matters()).collect();
    places.into_iter().map(|place| truth.absences.doubt(place, from, horizon)).collect()
}

/// A stall may be taken for an outage from half of this time on.
pub(super) fn patience(shared: &Shared, places: &[usize]) -> Duration {
    let truth = shared.truth.borrow();
    let all = places.iter().filter_map(|place| truth.promise(*place).outage.silence);
    all.min().map_or(READY_MAX, |silence| silence / 2)
}

/// The fault is over: waits until every sidecar has shown that it knows.
pub(super) async fn resolve(shared: &Shared, doubts: Vec<absence::Doubt>) {
    for doubt in doubts {
        let begun = {
            let mut truth = shared.truth.borrow_mut();
            let now = truth.now();
            truth.absences.has_begun(doubt, now)
        };
        if !begun {
            continue;
        }
        match recovered(shared, doubt.place()).await {
            Ok(asked) => {
                shared.end(doubt);
                note_failed(shared, settled(shared, doubt.place(), asked).await);
            }
            // It stays in doubt: what cannot be ruled out excuses.
            Err(why) => shared.note_error(&format!("{}: {why}", shown(&shared.plan.through[doubt.place()].endpoint))),
        }
    }
}

// ---- is it back? ----

/// Waits until this place reads from upstream and no write waits. When it was asked for the latter: everything that was
/// acknowledged before is done. `Err`: it is not back, for this reason.
async fn recovered(shared: &Shared, place: usize) -> Result<Micros, String> {
    let key = shared.keys.probe(place);
    let mut upstream = Conn::open(&shared.plan.upstream, false, PATIENCE).await.map_err(|e| e.to_string())?;
    let counted = upstream.ask(&["INCR", &key]).await.map_err(|e| e.to_string())?;
    let probe = version(&counted).ok_or_else(|| format!("INCR answers {counted:?}"))?;
    let end = Instant::now() + GIVES_UP;
    let mut conn = None;
    loop {
        let why = match read_probe(shared, place, &key, &mut conn).await {
            // More: another fault's look has counted on.
            Ok(reply) if version(&reply) >= Some(probe) => match is_drained(shared, place).await {
                Ok(asked) => return Ok(asked),
                Err(why) => why,
            },
            Ok(Value::Error(error)) => error,
            Ok(other) => format!("it reads {other:?} where upstream has {probe}"),
            Err(lost) => {
                conn = None;
                lost.to_string()
            }
        };
        if Instant::now() >= end {
            return Err(why);
        }
        sleep(PROBE_EVERY).await;
    }
}

async fn read_probe(shared: &Shared, place: usize, key: &str, conn: &mut Option<Conn>) -> Result<Value, Lost> {
    let mut open = match conn.take() {
        Some(open) => open,
        None => Conn::open(&shared.plan.through[place], false, PATIENCE).await?,
    };
    let reply = open.ask(&["GET", key]).await;
    *conn = Some(open);
    reply
}

async fn is_drained(shared: &Shared, place: usize) -> Result<Micros, String> {
    let asked = shared.now();
    match ask_info(&shared.plan.through[place]).await?.queue_depth {
        0 => Ok(asked),
        depth => Err(format!("{depth} writes wait")),
    }
}

// ---- is everything there? ----

/// Looks upstream for everything that was acknowledged through this place until then.
async fn settled(shared: &Shared, place: usize, until: Micros) -> Result<(), Lost> {
    if !shared.truth.borrow().promise(place).outage.queues {
        return Ok(());
    }
    let mut upstream = Conn::open(&shared.plan.upstream, false, PATIENCE).await?;
    let debts = shared.truth.borrow_mut().owed.take(place, until);
    for (key, debt) in debts {
        let Some(got) = read_upstream(shared, &mut upstream, key).await? else { continue };
        let mut truth = shared.truth.borrow_mut();
        let (last, name) = (debt.last, truth.name(key).to_owned());
        let there = truth.at_most(key, got) >= last.version;
        let note = || lost(shared, place, &last, got);
        truth.check_at_large(Property::Queued, &name, there, note);
        if there {
            truth.owed.found += debt.queued;
            let known = Known { known: truth.now(), ..last };
            truth.learn(key, known);
        }
        drop(truth);
        shared.look();
    }
    Ok(())
}

/// The keys that were fought for: the last queued write of each has been done behind all that others wrote meanwhile.
async fn fought(shared: &Shared, place: usize, back: Micros) -> Result<(), Lost> {
    if !shared.truth.borrow().promise(place).outage.overwrites {
        return Ok(());
    }
    let mut upstream = Conn::open(&shared.plan.upstream, false, PATIENCE).await?;
    for key in shared.fought_of(place) {
        let Some(got) = read_upstream(shared, &mut upstream, *key).await? else { continue };
        let mut truth = shared.truth.borrow_mut();
        let name = truth.name(*key).to_owned();
        match truth.owed.outcome(*key, got, back) {
            Outcome::Nothing => {}
            Outcome::Kept(count) => {
                truth.owed.found += count;
                truth.check_at_large(Property::Queued, &name, true, String::new);
            }
            Outcome::Lost(last) => {
                truth.check_at_large(Property::Queued, &name, false, || lost(shared, place, &last, got));
            }
        }
        drop(truth);
        shared.look();
    }
    Ok(())
}

async fn read_upstream(shared: &Shared, upstream: &mut Conn, key: Key) -> Result<Option<i64>, Lost> {
    let reply = upstream.ask(&["GET", &shared.name(key)]).await?;
    let got = version(&reply);
    if got.is_none() {
        shared.note_reply(&reply);
    }
    Ok(got)
}

fn lost(shared: &Shared, place: usize, last: &Known, got: i64) -> String {
    format!(
        "{} had acknowledged version {} to {} at {} ms by {}; its queue is empty, and upstream has {got}",
        shown(&shared.plan.through[place].endpoint),
        last.version,
        last.by,
        last.known / 1000,
        last.how,
    )
}

/// With everything quiet: what was acknowledged last is there too.
pub(super) async fn settle_rest(shared: &Shared) {
    for place in 0..shared.plan.through.len() {
        if !shared.truth.borrow().promise(place).outage.queues {
            continue;
        }
        match recovered(shared, place).await {
            Ok(asked) => note_failed(shared, settled(shared, place, asked).await),
            Err(why) => shared.note_error(&format!("{}: {why}", shown(&shared.plan.through[place].endpoint))),
        }
    }
}
