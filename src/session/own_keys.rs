//! What `upstream.key_prefix` makes of commands about a whole database: FLUSHDB and FLUSHALL delete own keys, in batches of
//! SCAN and UNLINK; RANDOMKEY answers an own key, found by SCAN. They take many commands of ours, so the session waits for
//! them; other clients do not.

use std::hash::{BuildHasher, RandomState};
use std::rc::Rc;

use super::Session;
use super::invalidate::Deletion;
use crate::coherence::Asker;
use crate::command::prefix::Prefix;
use crate::command::{Request, Spec};
use crate::resp::{build, reply};
use crate::upstream::Profile;
use crate::upstream::handshake::error_text;
use crate::worker::Ctx;

/// Keys that SCAN looks at in one go: upstream is busy with them for some 0.2 ms.
const SCAN_COUNT: &[u8] = b"500";

impl Session {
    /// FLUSHDB, FLUSHALL or RANDOMKEY. False: it is another command, or there is no prefix.
    pub(super) async fn own_keys(self: &Rc<Self>, ctx: &Rc<Ctx>, spec: &Spec, req: &Request<'_>, mute: bool) -> bool {
        let Some(own) = &ctx.prefix else { return false };
        match spec.name {
            "randomkey" if req.argc() > 1 => {
                self.answer_error(mute, "ERR wrong number of arguments for 'randomkey' command");
            }
            "randomkey" => self.random_key(ctx, own, mute).await,
            "flushdb" | "flushall" if !is_well_formed(req) => self.answer_error(mute, "ERR syntax error"),
            "flushdb" | "flushall" => self.flush_own(ctx, own, spec.name == "flushall", mute).await,
            _ => return false,
        }
        true
    }

    async fn flush_own(self: &Rc<Self>, ctx: &Rc<Ctx>, own: &Prefix, all: bool, mute: bool) {
        let here = self.profile();
        let profiles = match databases(ctx, &here, all).await {
            Ok(profiles) => profiles,
            Err(why) => return self.answer_error(mute, &why),
        };
        let mut so_far = Deletion::new();
        for profile in profiles {
            let (result, sum) = self.delete_in_task(ctx, profile, vec![own.glob(b"*")], so_far).await;
            so_far = sum;
            if let Err(why) = result {
                return self.answer_error(mute, &so_far.failed(&why));
            }
        }
        self.answer(mute, |out| build::simple(out, "OK"));
    }

    /// Some own key, wherever a scan from a random place on meets one first; null only where there is none.
    async fn random_key(self: &Rc<Self>, ctx: &Rc<Ctx>, own: &Prefix, mute: bool) {
        let found = self.find_any(ctx, own).await;
        // Its reply came past the outbox: what follows may not be older (R21).
        self.set_fence();
        let proto = self.proto();
        match found {
            Ok(Some(key)) => self.answer(mute, |out| build::bulk(out, &key)),
            Ok(None) => self.answer(mute, |out| build::null(out, proto)),
            Err(why) => self.answer_error(mute, &why),
        }
    }

    async fn find_any(&self, ctx: &Rc<Ctx>, own: &Prefix) -> Result<Option<Vec<u8>>, String> {
        let mut asker = Asker::new(ctx, &self.profile()).await?;
        let random = RandomState::new().hash_one(0);
        let glob = own.glob(b"*");
        let mut key = None;
        // To the end, and once more from the beginning: that is every key that is there all the while.
        'rounds: for start in [random >> 16, 0] {
            let mut cursor = start.to_string().into_bytes();
            loop {
                if self.left.get() || self.closing.get() {
                    return Err("ERR stopped: the client has left".to_owned());
                }
                let frame = asker.ask(&[b"SCAN", &cursor, b"MATCH", &glob, b"COUNT", SCAN_COUNT]).await?;
                let (next, mut found) = reply::scanned(&frame).ok_or_else(|| error_text(&frame))?;
                if !found.is_empty() {
                    let at = random % found.len() as u64;
                    key = own.own(&found.swap_remove(at as usize)).map(<[u8]>::to_vec);
                    break 'rounds;
                }
                if next == b"0" {
                    break;
                }
                cursor = next;
            }
        }
        asker.done(ctx);
        Ok(key)
    }
}

/// Nothing, SYNC or ASYNC; either way keys go by UNLINK.
fn is_well_formed(req: &Request<'_>) -> bool {
    req.argc() == 1 || (req.argc() == 2 && (req.is(1, "sync") || req.is(1, "async")))
}

/// The client's own database, or all that upstream says are not empty.
async fn databases(ctx: &Rc<Ctx>, here: &Profile, all: bool) -> Result<Vec<Profile>, String> {
    if !all {
        return Ok(vec![here.clone()]);
    }
    let mut asker = Asker::new(ctx, here).await?;
    let frame = asker.ask(&[b"INFO", b"keyspace"]).await?;
    asker.done(ctx);
    let text = reply::bulk(&frame).ok_or_else(|| error_text(&frame))?;
    let text = String::from_utf8_lossy(text);
    let number = |line: &str| line.strip_prefix("db")?.split_once(':')?.0.parse().ok();
    Ok(text.lines().filter_map(number).map(|db| Profile { db, ..here.clone() }).collect())
}
