//! The fault kind `modes`: the cache's mode is switched with `NEARSIDE MODE` while clients read and write, at random and on each
//! sidecar by itself. Mostly it is away from `serve` for less than B and back for longer, because it is what is served after a
//! switch that can be wrong. No bound changes by it: what was promised in `serve` is promised across every switch, and
//! nobody's connection is dropped. It is no part of `all`, which is the network's: it gives orders to the sidecars themselves.
//! At the end each of them serves.

use std::rc::Rc;

use super::Shared;
use super::client::Conn;
use super::dice::Dice;
use super::faults::something_read;
use crate::resp::push::Value;

/// The numbers of seeds before are others'.
const SEEDS: u64 = 4_000;

/// How often the last switch is tried: whatever else is done to a sidecar, it has to serve when the audit is over.
const LAST_TRIES: u32 = 20;

/// Of one place, until the audit is over.
pub(super) async fn switches(shared: Rc<Shared>, place: usize) {
    let mut dice = Dice::new(shared.plan.seed, SEEDS + place as u64);
    let mut conn = None;
    let bound = shared.plan.bound;
    while !shared.stop.get() {
        shared.pause(dice.time(bound * 2)).await;
        something_read(&shared).await;
        if shared.stop.get() {
            break;
        }
        for _ in 0..=dice.below(2) {
            switch(&shared, place, &mut conn, dice.of(&["observe", "off"])).await;
            // One of four goes back at once, before upstream has answered what the first switch has asked of it.
            if dice.below(4) > 0 {
                shared.pause(dice.time(bound / 2)).await;
            }
            switch(&shared, place, &mut conn, "serve").await;
        }
    }
    for _ in 0..LAST_TRIES {
        if switch(&shared, place, &mut conn, "serve").await {
            return;
        }
        tokio::time::sleep(bound).await;
    }
}

/// False: it could not be asked; the reason is noted.
async fn switch(shared: &Shared, place: usize, conn: &mut Option<Conn>, mode: &str) -> bool {
    let said = match conn {
        Some(conn) => conn.ask(&["NEARSIDE", "MODE", mode]).await,
        None => match Conn::open(&shared.plan.through[place], false, shared.plan.patience).await {
            Ok(fresh) => conn.insert(fresh).ask(&["NEARSIDE", "MODE", mode]).await,
            Err(lost) => Err(lost),
        },
    };
    match said {
        Ok(Value::Error(error)) => shared.note_error(&format!("NEARSIDE MODE {mode}: {error}")),
        Ok(_) => {
            shared.count_fault("modes");
            return true;
        }
        Err(lost) => {
            shared.note_error(&format!("NEARSIDE MODE {mode}: {lost}"));
            *conn = None;
        }
    }
    false
}
