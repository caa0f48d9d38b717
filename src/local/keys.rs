//! The commands on keys whatever they hold: life, death, names and databases. All values of the engine are strings.

use bytes::BytesMut;

use super::db::{self, Db, Entry, Form, NEVER};
use super::strings::{clear_expiry, set_expiry};
use super::{Call, DATABASES, Engine, Outcome, Refusal, SYNTAX, database, integer, is, shown};
use crate::resp::{self, build};

/// Up to this length a value is one piece with its header in Redis (`embstr`).
const EMBEDDED_MAX: usize = 44;

/// The longest text of a number.
const NUMBER_MAX: usize = 20;

const SAME: Refusal = Refusal::Borrowed("ERR source and destination objects are the same");

pub(super) fn del(engine: &mut Engine, call: &Call<'_>, out: &mut BytesMut) -> Outcome {
    let mut deleted = 0;
    for i in 1..call.req.argc() {
        let key = call.req.arg(i);
        engine.reap(call.now, call.db, key);
        deleted += i64::from(engine.delete(call.db, key));
    }
    build::integer(out, deleted);
    Ok(())
}

/// EXISTS, and TOUCH, which counts as a use.
pub(super) fn exists(engine: &mut Engine, call: &Call<'_>, out: &mut BytesMut) -> Outcome {
    let mut found = 0;
    for i in 1..call.req.argc() {
        let key = call.req.arg(i);
        let there = match call.name {
            "touch" => engine.read(call, key).is_some(),
            _ => engine.peek(call, call.db, key).is_some(),
        };
        found += i64::from(there);
    }
    build::integer(out, found);
    Ok(())
}

pub(super) fn kind(engine: &mut Engine, call: &Call<'_>, out: &mut BytesMut) -> Outcome {
    let there = engine.peek(call, call.db, call.req.arg(1)).is_some();
    build::simple(out, if there { "string" } else { "none" });
    Ok(())
}

pub(super) fn ttl(engine: &mut Engine, call: &Call<'_>, out: &mut BytesMut) -> Outcome {
    let seconds = |ms: i64| ms.saturating_add(500) / 1000;
    let now = call.now;
    build::integer(
        out,
        match engine.peek(call, call.db, call.req.arg(1)).map(|entry| entry.expires) {
            None => -2,
            Some(NEVER) => -1,
            Some(at) => match call.name {
                "ttl" => seconds((at - now).max(0)),
                "pttl" => (at - now).max(0),
                "expiretime" => seconds(at),
                _ => at,
            },
        },
    );
    Ok(())
}

/// When EXPIRE and its kin may change what is there.
#[derive(Default)]
struct Only {
    nx: bool,
    xx: bool,
    gt: bool,
    lt: bool,
}

impl Only {
    fn parse(call: &Call<'_>) -> Result<Only, Refusal> {
        let mut only = Only::default();
        for i in 3..call.req.argc() {
            match call.req.arg(i) {
                word if is(word, "nx") => only.nx = true,
                word if is(word, "xx") => only.xx = true,
                word if is(word, "gt") => only.gt = true,
                word if is(word, "lt") => only.lt = true,
                word => return Err(format!("ERR Unsupported option {}", shown(word)).into()),
            }
        }
        if only.nx && (only.xx || only.gt || only.lt) {
            return Err("ERR NX and XX, GT or LT options at the same time are not compatible".into());
        }
        if only.gt && only.lt {
            return Err("ERR GT and LT options at the same time are not compatible".into());
        }
        Ok(only)
    }

    /// No expiry is as good as one that never comes.
    fn allows(&self, old: i64, new: i64) -> bool {
        !(self.nx && old != NEVER
            || self.xx && old == NEVER
            || self.gt && (old == NEVER || new <= old)
            || self.lt && old != NEVER && new >= old)
    }
}

pub(super) fn expire(engine: &mut Engine, call: &Call<'_>, out: &mut BytesMut) -> Outcome {
    let only = Only::parse(call)?;
    let n = integer(call.req.arg(2))?;
    let unit = if matches!(call.name, "expire" | "expireat") { 1000 } else { 1 };
    let base = if matches!(call.name, "expire" | "pexpire") { call.now } else { 0 };
    let at = n.checked_mul(unit).and_then(|ms| ms.checked_add(base));
    let at = at.ok_or_else(|| -> Refusal { format!("ERR invalid expire time in '{}' command", call.name).into() })?;
    let key = call.req.arg(1);
    let old = engine.find(call, key).map(|entry| entry.expires);
    let done = old.is_some_and(|old| only.allows(old, at));
    if done && at <= call.now {
        engine.delete(call.db, key);
    } else if done {
        set_expiry(engine, call, key, at);
    }
    build::integer(out, i64::from(done));
    Ok(())
}

pub(super) fn persist(engine: &mut Engine, call: &Call<'_>, out: &mut BytesMut) -> Outcome {
    let key = call.req.arg(1);
    let had = engine.find(call, key).is_some() && clear_expiry(engine, call, key);
    build::integer(out, i64::from(had));
    Ok(())
}

/// RENAME and RENAMENX. The value is moved, so no more room is needed than a longer name takes.
pub(super) fn rename(engine: &mut Engine, call: &Call<'_>, out: &mut BytesMut) -> Outcome {
    let (from, to) = (call.req.arg(1), call.req.arg(2));
    let only_new = call.name == "renamenx";
    if engine.find(call, from).is_none() {
        return Err("ERR no such key".into());
    }
    let taken = engine.find(call, to).is_some();
    let done = if from == to { !only_new } else { !(only_new && taken) };
    if done && from != to {
        let longer = to.len().saturating_sub(from.len());
        engine.make_room(call.now, longer, &[(call.db, from), (call.db, to)])?;
        let entry = engine.dbs[call.db as usize].remove(from);
        entry.into_iter().for_each(|entry| engine.put_entry(call, call.db, to, entry));
        engine.touched(call.db, from);
    }
    if only_new {
        build::integer(out, i64::from(done))
    } else {
        build::simple(out, "OK")
    }
    Ok(())
}

pub(super) fn copy(engine: &mut Engine, call: &Call<'_>, out: &mut BytesMut) -> Outcome {
    let (req, from, to) = (call.req, call.req.arg(1), call.req.arg(2));
    let (mut replace, mut db, mut i) = (false, call.db, 3);
    while i < req.argc() {
        if is(req.arg(i), "replace") {
            replace = true;
        } else if is(req.arg(i), "db") && i + 1 < req.argc() {
            db = database(req.arg(i + 1))?;
            i += 1;
        } else {
            return Err(SYNTAX);
        }
        i += 1;
    }
    if db == call.db && from == to {
        return Err(SAME);
    }
    let copied = engine.read(call, from).cloned();
    let taken = engine.peek(call, db, to).is_some();
    let done = copied.is_some() && (replace || !taken);
    if let Some(mut entry) = copied.filter(|_| done) {
        entry.value.shrink_to_fit();
        let bytes = db::weight(to.len(), entry.value.capacity());
        engine.make_room(call.now, bytes, &[(call.db, from), (db, to)])?;
        engine.put_entry(call, db, to, entry);
    }
    build::integer(out, i64::from(done));
    Ok(())
}

pub(super) fn move_key(engine: &mut Engine, call: &Call<'_>, out: &mut BytesMut) -> Outcome {
    let (key, db) = (call.req.arg(1), database(call.req.arg(2))?);
    if db == call.db {
        return Err(SAME);
    }
    let done = engine.find(call, key).is_some() && engine.peek(call, db, key).is_none();
    if done {
        let entry = engine.dbs[call.db as usize].remove(key);
        entry.into_iter().for_each(|entry| engine.put_entry(call, db, key, entry));
        engine.touched(call.db, key);
    }
    build::integer(out, i64::from(done));
    Ok(())
}

pub(super) fn object(engine: &mut Engine, call: &Call<'_>, out: &mut BytesMut) -> Outcome {
    let now = call.now as u32;
    let Some(entry) = engine.peek(call, call.db, call.req.arg(2)) else {
        build::null(out, call.proto);
        return Ok(());
    };
    match call.name {
        "object|encoding" => build::bulk(out, encoding(entry).as_bytes()),
        "object|idletime" => build::integer(out, i64::from(now.wrapping_sub(entry.used) / 1000)),
        _ => {
            return Err("ERR An LFU maxmemory policy is not selected, access frequency not tracked. Please note that \
                        when switching between policies at runtime LRU and LFU data will take some time to adjust."
                .into());
        }
    }
    Ok(())
}

fn is_number(entry: &Entry) -> bool {
    entry.form == Form::Sent && entry.value.len() <= NUMBER_MAX && resp::integer(&entry.value).is_some()
}

/// How Redis would keep the value.
fn encoding(entry: &Entry) -> &'static str {
    match entry.form {
        Form::Raw => "raw",
        _ if is_number(entry) => "int",
        _ if entry.value.len() <= EMBEDDED_MAX => "embstr",
        _ => "raw",
    }
}

pub(super) fn swapdb(engine: &mut Engine, call: &Call<'_>, out: &mut BytesMut) -> Outcome {
    let number = |i: usize, which: &str| -> Result<i32, Refusal> {
        let n = integer(call.req.arg(i)).ok().and_then(|n| i32::try_from(n).ok());
        n.ok_or_else(|| format!("ERR invalid {which} DB index").into())
    };
    let (a, b) = (number(1, "first")?, number(2, "second")?);
    let valid = |n: i32| u32::try_from(n).ok().filter(|n| *n < DATABASES);
    let (Some(a), Some(b)) = (valid(a), valid(b)) else {
        return Err("ERR DB index is out of range".into());
    };
    if a != b {
        engine.about_to_replace(call.now, a, Some(b));
        engine.about_to_replace(call.now, b, Some(a));
        engine.dbs.swap(a as usize, b as usize);
    }
    build::simple(out, "OK");
    Ok(())
}

/// FLUSHDB and FLUSHALL. ASYNC is what a thread would do in Redis; here it is done at once either way.
pub(super) fn flush(engine: &mut Engine, call: &Call<'_>, out: &mut BytesMut) -> Outcome {
    let req = call.req;
    let known = req.argc() == 1 || req.argc() == 2 && (is(req.arg(1), "async") || is(req.arg(1), "sync"));
    if !known {
        return Err(SYNTAX);
    }
    let all = if call.name == "flushall" { 0..DATABASES } else { call.db..call.db + 1 };
    for db in all {
        engine.about_to_replace(call.now, db, None);
        engine.dbs[db as usize] = Db::default();
    }
    build::simple(out, "OK");
    Ok(())
}
