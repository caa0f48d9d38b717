//! A bad network and a rude administrator, for as long as the audit lasts. Mostly it is the link that brings invalidations
//! which is held up alone: what clients have seen elsewhere is then newer than what it has brought.

use std::rc::Rc;
use std::time::Duration;

use super::Shared;
use super::client::Conn;
use super::dice::Dice;
use super::outages::{self, Way};
use super::relay::{Dir, Relay, Scope};
use crate::resp::push::Value;

/// Values that clients read between one fault and the next, of all sidecars together: about one for each client.
const READS_BETWEEN: u64 = 20;

/// Sixteenths of B that are waited for them, at the most: clients that are all stuck must not end the faults.
const WAITS_MAX: u32 = 160;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Faults {
    pub(crate) stalls: bool,
    pub(crate) cuts: bool,
    pub(crate) kills: bool,
    /// Upstream is gone for some seconds.
    pub(crate) outages: bool,
    pub(crate) modes: bool,
}

impl Faults {
    /// `none`, `all` (of upstream and the links to it), or some of `stalls`, `cuts`, `kills`, `outages` and `modes`.
    pub(crate) fn parse(text: &str) -> Result<Faults, String> {
        let mut faults = Faults::default();
        for word in text.split(',') {
            match word {
                "none" if text == "none" => {}
                "all" => faults = Faults { stalls: true, cuts: true, kills: true, outages: true, ..faults },
                "stalls" => faults.stalls = true,
                "cuts" => faults.cuts = true,
                "kills" => faults.kills = true,
                "outages" => faults.outages = true,
                "modes" => faults.modes = true,
                _ => {
                    return Err(format!(
                        "\"{word}\" is not one of none, or a list of all, stalls, cuts, kills, outages, modes"
                    ));
                }
            }
        }
        Ok(faults)
    }

    /// Whether a relay has to carry them out.
    pub(crate) fn needs_relay(self) -> bool {
        self.stalls || self.cuts || self.outages
    }

    pub(crate) fn words(self) -> Vec<&'static str> {
        let all = [
            (self.stalls, "stalls"),
            (self.cuts, "cuts"),
            (self.kills, "kills"),
            (self.outages, "outages"),
            (self.modes, "modes"),
        ];
        all.iter().filter(|(on, _)| *on).map(|(_, word)| *word).collect()
    }
}

/// Of one relay, until the audit is over.
pub(super) async fn network(shared: Rc<Shared>, (relay, places): Way, number: u64) {
    let faults = shared.plan.faults;
    let mut dice = Dice::new(shared.plan.seed, 2_000 + number);
    while !shared.stop.get() {
        shared.pause(dice.time(shared.plan.bound / 2)).await;
        something_read(&shared).await;
        if shared.disturbed.get() {
            continue;
        }
        match dice.below(12) {
            0..5 if faults.stalls => stall(&shared, &relay, &places, &mut dice).await,
            5..8 if faults.stalls => slow(&shared, &relay, &mut dice).await,
            8 if faults.stalls => split(&shared, &relay, &mut dice).await,
            9..12 if faults.cuts => cut(&shared, &relay, &places, &mut dice).await,
            _ => {}
        }
    }
    relay.heal();
}

/// Waits until clients have read something since it was called: on a slow machine one fault after the other would leave
/// nothing standing that could be wrong.
pub(super) async fn something_read(shared: &Shared) {
    let reads = || shared.truth.borrow().reads;
    let enough = reads() + READS_BETWEEN;
    for _ in 0..WAITS_MAX {
        if shared.stop.get() || reads() >= enough {
            return;
        }
        shared.pause(shared.plan.bound / 16).await;
    }
}

fn scope(relay: &Relay, dice: &mut Dice) -> Scope {
    match dice.below(10) {
        0..6 => Scope::Feeds,
        6..8 => Scope::All,
        _ => Scope::One(dice.below(relay.alive() as u64) as usize),
    }
}

/// One direction stands still, for up to 3 B: long enough that the lease has to run out.
async fn stall(shared: &Shared, relay: &Relay, places: &[usize], dice: &mut Dice) {
    let scope = scope(relay, dice);
    let dir = if dice.below(4) == 0 { Dir::Up } else { Dir::Down };
    let longest = if dice.below(3) == 0 { shared.plan.bound * 3 } else { shared.plan.bound / 2 };
    shared.count_fault("stalls");
    // Not in doubt from the beginning: that hits are no older than B while a link stands still is what this is for.
    let doubts = outages::doubts(shared, places, outages::patience(shared, places));
    relay.hold(scope, dir, true);
    shared.pause(dice.time(longest)).await;
    // Of the links that are alive now: one of them may have been made since.
    relay.heal();
    outages::resolve(shared, doubts).await;
}

/// Replies under way arrive late, up to half of B, while other links are as fast as ever.
async fn slow(shared: &Shared, relay: &Relay, dice: &mut Dice) {
    let (scope, dir) = (scope(relay, dice), if dice.below(3) == 0 { Dir::Up } else { Dir::Down });
    shared.count_fault("delays");
    relay.delay(scope, dir, dice.time(shared.plan.bound / 2));
    shared.pause(dice.time(shared.plan.bound * 2)).await;
    relay.heal();
}

async fn split(shared: &Shared, relay: &Relay, dice: &mut Dice) {
    shared.count_fault("splits");
    relay.split(Scope::All, Dir::Down, 1 + dice.below(40) as usize);
    shared.pause(dice.time(shared.plan.bound / 2)).await;
    relay.heal();
}

async fn cut(shared: &Shared, relay: &Relay, places: &[usize], dice: &mut Dice) {
    shared.count_fault("cuts");
    let doubts = outages::doubts(shared, places, Duration::ZERO);
    relay.cut(scope(relay, dice));
    outages::resolve(shared, doubts).await;
}

/// CLIENT KILL of the sidecars' connections, as administrators and failovers do it.
pub(super) async fn kills(shared: Rc<Shared>, names: Vec<String>) {
    let mut dice = Dice::new(shared.plan.seed, 3_000);
    while !shared.stop.get() {
        shared.pause(shared.plan.bound / 2 + dice.time(shared.plan.bound * 2)).await;
        something_read(&shared).await;
        if shared.disturbed.get() {
            continue;
        }
        let places: Vec<usize> = (0..names.len()).collect();
        let doubts = outages::doubts(&shared, &places, Duration::ZERO);
        if let Err(why) = kill(&shared, &names, &mut dice).await {
            shared.note_error(&format!("CLIENT KILL: {why}"));
        }
        outages::resolve(&shared, doubts).await;
    }
}

async fn kill(shared: &Shared, names: &[String], dice: &mut Dice) -> Result<(), String> {
    let mut conn =
        Conn::open(&shared.plan.upstream, false, Duration::from_secs(5)).await.map_err(|lost| lost.to_string())?;
    let list = conn.ask(&["CLIENT", "LIST"]).await.map_err(|lost| lost.to_string())?;
    let Some(text) = list.text() else { return Err(format!("CLIENT LIST answers {list:?}")) };
    let text = String::from_utf8_lossy(text);
    let ids: Vec<&str> = text.lines().filter(|line| is_named(line, names)).filter_map(id).collect();
    if ids.is_empty() {
        return Ok(());
    }
    let one = [dice.of(&ids)];
    let victims = if dice.below(4) == 0 { ids.as_slice() } else { &one };
    for victim in victims {
        shared.count_fault("kills");
        // It may be gone already, and says so: "No such client".
        let killed = conn.ask(&["CLIENT", "KILL", "ID", victim]).await.map_err(|lost| lost.to_string())?;
        if let Value::Error(error) = killed {
            return Err(error);
        }
    }
    Ok(())
}

fn is_named(line: &str, names: &[String]) -> bool {
    let name = line.split(' ').find_map(|field| field.strip_prefix("name="));
    // In `pubsub` mode the connection of the channel is what copies live by.
    name.is_some_and(|name| names.iter().any(|n| n == name.strip_suffix(":channel").unwrap_or(name)))
}

fn id(line: &str) -> Option<&str> {
    line.split(' ').find_map(|field| field.strip_prefix("id="))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_faults() {
        let all = Faults { stalls: true, cuts: true, kills: true, outages: true, modes: false };
        assert_eq!(Faults::parse("all"), Ok(all));
        assert_eq!(Faults::parse("stalls,cuts,kills,outages"), Ok(all));
        assert_eq!(Faults::parse("all,modes"), Ok(Faults { modes: true, ..all }));
        assert_eq!(Faults::parse("modes,all"), Ok(Faults { modes: true, ..all }));
        assert_eq!(Faults::parse("none"), Ok(Faults::default()));
        assert!(Faults::parse("none,cuts").is_err());
        assert!(Faults::parse("floods").unwrap_err().contains("\"floods\" is not one of none, or a list of all"));
        assert!(Faults::parse("").is_err());
        assert!(
            !Faults::parse("kills,modes").unwrap().needs_relay() && Faults::parse("outages").unwrap().needs_relay()
        );
    }

    #[test]
    fn only_connections_of_that_name_are_found() {
        let line = "id=7 addr=127.0.0.1:1 laddr=127.0.0.1:2 fd=8 name=nearside:h:12 age=1";
        assert!(is_named(line, &["nearside:h:12".to_owned()]));
        assert!(!is_named(line, &["nearside:h:1".to_owned()]));
        assert!(is_named("id=8 name=nearside:h:12:channel age=1", &["nearside:h:12".to_owned()]));
        assert_eq!(id(line), Some("7"));
    }
}
