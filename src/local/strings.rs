//! The commands on strings, GET to INCRBYFLOAT, in Redis 7.0's order of checks: which of two errors is said is part of the
//! reply.

use bytes::BytesMut;

use super::db::{self, Entry, Form, NEVER};
use super::long_double::LongDouble;
use super::{Call, Engine, Outcome, Refusal, SYNTAX, integer, is};
use crate::limits;
use crate::resp::build;

/// A growing value takes twice what it needs, so that many APPENDs do not copy it each time; at most so much more (as Redis).
const SPARE_MAX: usize = 1 << 20;

const TOO_LONG: Refusal = Refusal::Borrowed("ERR string exceeds maximum allowed size (proto-max-bulk-len)");

/// What SET and GETEX may say besides key and value.
#[derive(Default)]
struct Options<'a> {
    nx: bool,
    xx: bool,
    get: bool,
    keep_ttl: bool,
    persist: bool,
    expiry: Option<Expiry<'a>>,
}

/// An expiry as it was written.
#[derive(Clone, Copy)]
struct Expiry<'a> {
    kind: Kind,
    value: &'a [u8],
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Ex,
    Px,
    Exat,
    Pxat,
}

const KINDS: [(&str, Kind); 4] = [("ex", Kind::Ex), ("px", Kind::Px), ("exat", Kind::Exat), ("pxat", Kind::Pxat)];

impl<'a> Options<'a> {
    fn parse(call: &Call<'a>, from: usize, of_set: bool) -> Result<Options<'a>, Refusal> {
        let mut options = Options::default();
        let mut i = from;
        while i < call.req.argc() {
            let word = call.req.arg(i);
            let kind = KINDS.iter().find(|(name, _)| is(word, name)).map(|(_, kind)| *kind);
            // A second one of the same kind wins; two kinds do not go together.
            let fits = |kind| options.expiry.is_none_or(|e| e.kind == kind) && !options.keep_ttl && !options.persist;
            match kind {
                Some(kind) if fits(kind) && i + 1 < call.req.argc() => {
                    options.expiry = Some(Expiry { kind, value: call.req.arg(i + 1) });
                    i += 1;
                }
                None if of_set && is(word, "nx") && !options.xx => options.nx = true,
                None if of_set && is(word, "xx") && !options.nx => options.xx = true,
                None if of_set && is(word, "get") => options.get = true,
                None if of_set && is(word, "keepttl") && options.expiry.is_none() => options.keep_ttl = true,
                None if !of_set && is(word, "persist") && options.expiry.is_none() => options.persist = true,
                _ => return Err(SYNTAX),
            }
            i += 1;
        }
        Ok(options)
    }

    fn expires(&self, call: &Call<'_>) -> Result<Option<i64>, Refusal> {
        self.expiry.map(|expiry| expiry.at(call)).transpose()
    }
}

impl Expiry<'_> {
    /// In milliseconds since 1970.
    fn at(&self, call: &Call<'_>) -> Result<i64, Refusal> {
        let n = integer(self.value)?;
        let invalid = || -> Refusal { format!("ERR invalid expire time in '{}' command", call.name).into() };
        if n <= 0 {
            return Err(invalid());
        }
        let unit = if matches!(self.kind, Kind::Ex | Kind::Exat) { 1000 } else { 1 };
        let base = if matches!(self.kind, Kind::Ex | Kind::Px) { call.now } else { 0 };
        n.checked_mul(unit).and_then(|ms| ms.checked_add(base)).ok_or_else(invalid)
    }
}

pub(super) fn get(engine: &mut Engine, call: &Call<'_>, out: &mut BytesMut) -> Outcome {
    write_value(engine, call, call.req.arg(1), out);
    Ok(())
}

fn write_value(engine: &mut Engine, call: &Call<'_>, key: &[u8], out: &mut BytesMut) {
    match engine.read(call, key) {
        Some(entry) => build::bulk(out, &entry.value),
        None => build::null(out, call.proto),
    }
}

pub(super) fn mget(engine: &mut Engine, call: &Call<'_>, out: &mut BytesMut) -> Outcome {
    let start = out.len();
    build::array(out, call.req.argc() - 1);
    for i in 1..call.req.argc() {
        if out.len() - start > call.reply_max {
            break;
        }
        write_value(engine, call, call.req.arg(i), out);
    }
    Ok(())
}

/// Replaces a whole value. Without `keep` the expiry is what is given, or none.
fn store(engine: &mut Engine, call: &Call<'_>, key: &[u8], value: &[u8], expires: Option<i64>, keep: bool) -> Outcome {
    let kept = engine.find(call, key).map(|entry| (entry.value.capacity(), entry.expires));
    let more = match kept {
        Some((old, _)) => value.len().saturating_sub(old),
        None => db::weight(key.len(), value.len()),
    };
    engine.make_room(call.now, more, &[(call.db, key)])?;
    let expires = expires.or(kept.filter(|_| keep).map(|(_, old)| old)).unwrap_or(NEVER);
    engine.put_entry(call, call.db, key, Entry { value: value.to_vec(), expires, used: 0, form: Form::Sent });
    Ok(())
}

pub(super) fn set(engine: &mut Engine, call: &Call<'_>, out: &mut BytesMut) -> Outcome {
    let (key, value) = (call.req.arg(1), call.req.arg(2));
    let options = Options::parse(call, 3, true)?;
    let expires = options.expires(call)?;
    let mut old = BytesMut::new();
    if options.get {
        write_value(engine, call, key, &mut old);
    }
    let found = engine.find(call, key).is_some();
    let refused = options.nx && found || options.xx && !found;
    if !refused {
        store(engine, call, key, value, expires, options.keep_ttl)?;
    }
    match (options.get, refused) {
        (true, _) => out.extend_from_slice(&old),
        (false, true) => build::null(out, call.proto),
        (false, false) => build::simple(out, "OK"),
    }
    Ok(())
}

pub(super) fn setnx(engine: &mut Engine, call: &Call<'_>, out: &mut BytesMut) -> Outcome {
    let (key, value) = (call.req.arg(1), call.req.arg(2));
    let found = engine.find(call, key).is_some();
    if !found {
        store(engine, call, key, value, None, false)?;
    }
    build::integer(out, i64::from(!found));
    Ok(())
}

pub(super) fn setex(engine: &mut Engine, call: &Call<'_>, out: &mut BytesMut) -> Outcome {
    let kind = if call.name == "setex" { Kind::Ex } else { Kind::Px };
    let expires = Expiry { kind, value: call.req.arg(2) }.at(call)?;
    store(engine, call, call.req.arg(1), call.req.arg(3), Some(expires), false)?;
    build::simple(out, "OK");
    Ok(())
}

/// MSET and MSETNX: all or nothing, also where there is no room.
pub(super) fn mset(engine: &mut Engine, call: &Call<'_>, out: &mut BytesMut) -> Outcome {
    let req = call.req;
    if req.argc().is_multiple_of(2) {
        return Err(format!("ERR wrong number of arguments for '{}' command", call.name).into());
    }
    let pairs = || (1..req.argc()).step_by(2).map(|i| (req.arg(i), req.arg(i + 1)));
    let only_new = call.name == "msetnx";
    if only_new && pairs().any(|(key, _)| engine.find(call, key).is_some()) {
        build::integer(out, 0);
        return Ok(());
    }
    // As if none were there yet: what of it is too much is given back when they are replaced.
    let bytes = pairs().map(|(key, value)| db::weight(key.len(), value.len())).sum();
    engine.make_room(call.now, bytes, &[])?;
    for (key, value) in pairs() {
        store(engine, call, key, value, None, false)?;
    }
    if only_new {
        build::integer(out, 1)
    } else {
        build::simple(out, "OK")
    }
    Ok(())
}

pub(super) fn getset(engine: &mut Engine, call: &Call<'_>, out: &mut BytesMut) -> Outcome {
    let mut old = BytesMut::new();
    write_value(engine, call, call.req.arg(1), &mut old);
    store(engine, call, call.req.arg(1), call.req.arg(2), None, false)?;
    out.extend_from_slice(&old);
    Ok(())
}

pub(super) fn getdel(engine: &mut Engine, call: &Call<'_>, out: &mut BytesMut) -> Outcome {
    write_value(engine, call, call.req.arg(1), out);
    engine.delete(call.db, call.req.arg(1));
    Ok(())
}

pub(super) fn getex(engine: &mut Engine, call: &Call<'_>, out: &mut BytesMut) -> Outcome {
    let key = call.req.arg(1);
    let options = Options::parse(call, 2, false)?;
    if engine.read(call, key).is_none() {
        build::null(out, call.proto);
        return Ok(());
    }
    let expires = options.expires(call)?;
    write_value(engine, call, key, out);
    let absolute = options.expiry.is_some_and(|e| matches!(e.kind, Kind::Exat | Kind::Pxat));
    match expires {
        Some(at) if absolute && at <= call.now => {
            engine.delete(call.db, key);
        }
        Some(at) => set_expiry(engine, call, key, at),
        None if options.persist => {
            clear_expiry(engine, call, key);
        }
        None => {}
    }
    Ok(())
}

pub(super) fn set_expiry(engine: &mut Engine, call: &Call<'_>, key: &[u8], at: i64) {
    engine.dbs[call.db as usize].change(key, |entry| entry.expires = at);
    engine.touched(call.db, key);
}

/// True where there was one.
pub(super) fn clear_expiry(engine: &mut Engine, call: &Call<'_>, key: &[u8]) -> bool {
    let was = engine.dbs[call.db as usize].change(key, |entry| std::mem::replace(&mut entry.expires, NEVER));
    let had = was.is_some_and(|was| was != NEVER);
    if had {
        engine.touched(call.db, key);
    }
    had
}

pub(super) fn strlen(engine: &mut Engine, call: &Call<'_>, out: &mut BytesMut) -> Outcome {
    let length = engine.read(call, call.req.arg(1)).map_or(0, |entry| entry.value.len());
    build::integer(out, length as i64);
    Ok(())
}

/// Writes into a value in place, at `at`, with zeros before it where it is shorter; returns how long it is then.
fn write_at(engine: &mut Engine, call: &Call<'_>, key: &[u8], at: usize, bytes: &[u8]) -> Result<usize, Refusal> {
    let end = at + bytes.len();
    let old = engine.find(call, key).map(|entry| entry.value.capacity());
    let capacity = match old {
        Some(old) if old >= end => old,
        Some(_) => (2 * end).min(end + SPARE_MAX),
        None => end,
    };
    let more = old.map_or_else(|| db::weight(key.len(), capacity), |old| capacity - old);
    engine.make_room(call.now, more, &[(call.db, key)])?;
    if old.is_none() {
        let entry = Entry { value: Vec::new(), expires: NEVER, used: call.now as u32, form: Form::Raw };
        engine.dbs[call.db as usize].insert(key, entry);
    }
    let length = engine.dbs[call.db as usize].change(key, |entry| {
        let value = &mut entry.value;
        value.reserve_exact(capacity - value.len());
        value.resize(value.len().max(end), 0);
        value[at..end].copy_from_slice(bytes);
        entry.form = Form::Raw;
        value.len()
    });
    engine.touched(call.db, key);
    Ok(length.unwrap_or(0))
}

pub(super) fn append(engine: &mut Engine, call: &Call<'_>, out: &mut BytesMut) -> Outcome {
    let (key, more) = (call.req.arg(1), call.req.arg(2));
    let Some(length) = engine.find(call, key).map(|entry| entry.value.len()) else {
        store(engine, call, key, more, None, false)?;
        build::integer(out, more.len() as i64);
        return Ok(());
    };
    if length + more.len() > limits::BULK_MAX {
        return Err(TOO_LONG);
    }
    let length = write_at(engine, call, key, length, more)?;
    build::integer(out, length as i64);
    Ok(())
}

pub(super) fn setrange(engine: &mut Engine, call: &Call<'_>, out: &mut BytesMut) -> Outcome {
    let (key, value) = (call.req.arg(1), call.req.arg(3));
    let Ok(offset) = usize::try_from(integer(call.req.arg(2))?) else {
        return Err("ERR offset is out of range".into());
    };
    if value.is_empty() {
        return strlen(engine, call, out);
    }
    if offset.saturating_add(value.len()) > limits::BULK_MAX {
        return Err(TOO_LONG);
    }
    let length = write_at(engine, call, key, offset, value)?;
    build::integer(out, length as i64);
    Ok(())
}

pub(super) fn getrange(engine: &mut Engine, call: &Call<'_>, out: &mut BytesMut) -> Outcome {
    let (start, end) = (integer(call.req.arg(2))?, integer(call.req.arg(3))?);
    let value = engine.read(call, call.req.arg(1)).map_or(&[][..], |entry| &entry.value);
    build::bulk(out, slice(value, start, end));
    Ok(())
}

/// Negative positions count from the end; both ends belong to it.
fn slice(value: &[u8], start: i64, end: i64) -> &[u8] {
    let length = value.len() as i64;
    if start < 0 && end < 0 && start > end {
        return &[];
    }
    let from = |n: i64| if n < 0 { (length + n).max(0) } else { n };
    let (start, end) = (from(start), from(end).min(length - 1));
    if start > end { &[] } else { &value[start as usize..=end as usize] }
}

pub(super) fn incr(engine: &mut Engine, call: &Call<'_>, out: &mut BytesMut) -> Outcome {
    let by = match call.name {
        "incr" => 1,
        "decr" => -1,
        "incrby" => integer(call.req.arg(2))?,
        _ => integer(call.req.arg(2))?.checked_neg().ok_or("ERR decrement would overflow")?,
    };
    let key = call.req.arg(1);
    let old = engine.find(call, key).map_or(Ok(0), |entry| integer(&entry.value))?;
    let sum = old.checked_add(by).ok_or("ERR increment or decrement would overflow")?;
    store(engine, call, key, sum.to_string().as_bytes(), None, true)?;
    build::integer(out, sum);
    Ok(())
}

pub(super) fn incrbyfloat(engine: &mut Engine, call: &Call<'_>, out: &mut BytesMut) -> Outcome {
    let key = call.req.arg(1);
    let number = |text: &[u8]| LongDouble::parse(text).ok_or("ERR value is not a valid float");
    let old = engine.find(call, key).map_or(Ok(LongDouble::ZERO), |entry| number(&entry.value))?;
    let sum = old.add(number(call.req.arg(2))?).filter(|sum| sum.is_finite());
    let sum = sum.ok_or("ERR increment would produce NaN or Infinity")?.text();
    store(engine, call, key, sum.as_bytes(), None, true)?;
    engine.dbs[call.db as usize].change(key, |entry| entry.form = Form::Text);
    build::bulk(out, sum.as_bytes());
    Ok(())
}
