//! What one concrete request names: its keys, whether it blocks, the form of its reply. Pure functions of the request's
//! words, run behind the table. A malformed request yields what can be found, because upstream will refuse it; nothing
//! here checks syntax.

use std::iter::StepBy;
use std::ops::Range;

use super::{Keys, Request, Resp2, Spec};
use crate::resp::downgrade::Form;

/// Calls `f` with every key the request names, in the order of the arguments, repeated ones as often as they occur.
pub(crate) fn for_each<'a>(spec: &Spec, req: &Request<'a>, mut f: impl FnMut(&'a [u8])) {
    for_each_place(spec, req, |i| f(req.arg(i)));
}

/// The same by their places among the arguments.
pub(crate) fn for_each_place(spec: &Spec, req: &Request<'_>, mut give: impl FnMut(usize)) {
    let argc = req.argc();
    match spec.keys {
        Keys::None => {}
        Keys::Range { first, last, step } => stepped(argc, first, last, step).for_each(give),
        Keys::Count { at, dest } => {
            (1..argc.min(usize::from(dest) + 1)).for_each(&mut give);
            counted(req, usize::from(at)).for_each(give);
        }
        Keys::Streams => streams(req).for_each(give),
        Keys::Sort => (1..argc.min(2)).chain(sort_store(req)).for_each(give),
        Keys::Georadius => (1..argc.min(2)).chain(georadius_stores(req)).for_each(give),
        Keys::Migrate => migrate(req).for_each(give),
    }
}

/// Whether argument `i` of `argc` is a key by its position alone, for requests whose arguments are not all here yet (a
/// large MSET is streamed). Exact for `Keys::Range`; of the other shapes the first key, as far as it has a fixed place.
pub(crate) fn is_key_position(spec: &Spec, argc: usize, i: usize) -> bool {
    match spec.keys {
        Keys::None | Keys::Streams => false,
        Keys::Range { first, last, step } => {
            let keys = stepped_bounds(argc, first, last);
            keys.contains(&i) && (i - keys.start).is_multiple_of(step_of(step))
        }
        Keys::Count { at, dest } => i < argc && ((1..=usize::from(dest)).contains(&i) || i == usize::from(at) + 1),
        Keys::Sort | Keys::Georadius => i == 1 && i < argc,
        Keys::Migrate => i == 3 && i < argc,
    }
}

pub(crate) fn arity_ok(spec: &Spec, argc: usize) -> bool {
    let words = usize::from(spec.arity.unsigned_abs());
    if spec.arity < 0 { argc >= words } else { argc == words }
}

/// Whether these words make a `LaneUnlessBlock` command wait in upstream: XREAD and XREADGROUP with BLOCK.
pub(crate) fn blocks(spec: &Spec, req: &Request<'_>) -> bool {
    spec.keys == Keys::Streams && stream_options(req).blocks
}

/// SORT and SORT_RO with a pattern of other keys to read (BY, GET): which ones depends on the data.
pub(crate) fn reads_by_pattern(spec: &Spec, req: &Request<'_>) -> bool {
    if !matches!(spec.name, "sort" | "sort_ro") {
        return false;
    }
    let mut i = 2;
    while i < req.argc() {
        let word = |n: usize| if n < req.argc() { req.arg(n) } else { &[] };
        // BY something without `*` means not to sort; GET # is the element itself.
        let by = is_word(req, i, "by") && word(i + 1).contains(&b'*');
        if by || (is_word(req, i, "get") && word(i + 1) != b"#") {
            return true;
        }
        i += step_over(req, i, &[("store", 2), ("by", 2), ("get", 2), ("limit", 3)]);
    }
    false
}

/// How the RESP2 bytes of this request's reply are rebuilt, where it stands alone (elements of an EXEC come on a pinned
/// connection, which speaks the client's own protocol).
pub(crate) fn form(spec: &Spec, req: &Request<'_>) -> Form {
    match spec.resp2 {
        Resp2::Same => Form::Same,
        Resp2::Bulk => Form::Bulk,
        Resp2::Array | Resp2::Direct => Form::Array,
        Resp2::ArrayFrom(words) if req.argc() >= usize::from(words) => Form::Array,
        Resp2::ArrayFrom(_) => Form::Bulk,
        Resp2::Flatten => Form::Flatten,
        Resp2::Pairs => Form::Pairs,
        // With a range the reply is a list of entries that has no null.
        Resp2::Xpending if req.argc() > 3 => Form::Same,
        Resp2::Xpending => Form::Xpending,
    }
}

/// What of an argument Redis sees where it compares words with `strcasecmp`: nothing behind a NUL. Without this,
/// `XREAD BLOCK\0 0 STREAMS s $` would block a lane.
pub(super) fn c_str(arg: &[u8]) -> &[u8] {
    arg.split(|b| *b == 0).next().unwrap_or_default()
}

pub(super) fn is_word(req: &Request<'_>, i: usize, word: &str) -> bool {
    c_str(req.arg(i)).eq_ignore_ascii_case(word.as_bytes())
}

/// How many arguments the option at `i` takes up, itself included; one where it is not among `options`.
pub(super) fn step_over(req: &Request<'_>, i: usize, options: &[(&str, usize)]) -> usize {
    options.iter().find(|(word, _)| is_word(req, i, word)).map_or(1, |(_, words)| *words)
}

fn stepped(argc: usize, first: u8, last: i8, step: u8) -> StepBy<Range<usize>> {
    stepped_bounds(argc, first, last).step_by(step_of(step))
}

/// A step of 0 would be a mistake in the table; it must not become a panic.
fn step_of(step: u8) -> usize {
    usize::from(step.max(1))
}

fn stepped_bounds(argc: usize, first: u8, last: i8) -> Range<usize> {
    let back = usize::from(last.unsigned_abs());
    let end = if last < 0 { (argc + 1).saturating_sub(back) } else { argc.min(back + 1) };
    usize::from(first)..end
}

/// The keys that argument `at` counts, as many of them as are there.
fn counted(req: &Request<'_>, at: usize) -> Range<usize> {
    let first = at + 1;
    if at >= req.argc() {
        return 0..0;
    }
    first..first.saturating_add(number(req.arg(at))).min(req.argc())
}

/// The count's leading digits, as Redis's key finder reads them (`atoi`); what is no number counts nothing.
pub(crate) fn number(arg: &[u8]) -> usize {
    let digits = arg.strip_prefix(b"+").unwrap_or(arg);
    digits
        .iter()
        .take_while(|b| b.is_ascii_digit())
        .fold(0usize, |n, b| n.saturating_mul(10).saturating_add(usize::from(b - b'0')))
}

struct StreamOptions {
    blocks: bool,
    /// The argument behind STREAMS.
    first: usize,
}

/// Walks the options as `xreadCommand` does; an option it does not know is stepped over, so that a newer server's does
/// not hide the BLOCK behind it.
fn stream_options(req: &Request<'_>) -> StreamOptions {
    let argc = req.argc();
    let mut blocks = false;
    let mut i = 1;
    while i < argc && !is_word(req, i, "streams") {
        blocks |= is_word(req, i, "block");
        i += step_over(req, i, &[("block", 2), ("count", 2), ("group", 3)]);
    }
    StreamOptions { blocks, first: argc.min(i + 1) }
}

/// As many stream names stand behind STREAMS as ids behind them.
fn streams(req: &Request<'_>) -> Range<usize> {
    let first = stream_options(req).first;
    first..first + (req.argc() - first) / 2
}

/// Where SORT's result is stored: the last STORE counts. Words that follow BY, GET and LIMIT are not options.
fn sort_store(req: &Request<'_>) -> Option<usize> {
    let (mut dest, mut i) = (None, 2);
    while i < req.argc() {
        if is_word(req, i, "store") {
            dest = Some(i + 1);
        }
        i += step_over(req, i, &[("store", 2), ("by", 2), ("get", 2), ("limit", 3)]);
    }
    dest.filter(|i| *i < req.argc())
}

/// What STORE and STOREDIST name; options stand from argument 5 (GEORADIUSBYMEMBER) or 6 on, and no unit is called as one.
/// Redis stores in the last one only, its key finder names one of each word; dropping one too many does no harm.
fn georadius_stores<'a>(req: &'a Request<'_>) -> impl Iterator<Item = usize> + use<'a> {
    let mut i = 5;
    std::iter::from_fn(move || {
        while i < req.argc() {
            let option = i;
            i += step_over(req, i, &[("store", 2), ("storedist", 2), ("count", 2)]);
            if (is_word(req, option, "store") || is_word(req, option, "storedist")) && option + 1 < req.argc() {
                return Some(option + 1);
            }
        }
        None
    })
}

/// Argument 3, or with an empty one all that stands behind KEYS. KEYS is not looked for among credentials.
fn migrate(req: &Request<'_>) -> Range<usize> {
    let argc = req.argc();
    let mut i = 6;
    while i < argc && !is_word(req, i, "keys") {
        i += step_over(req, i, &[("auth", 2), ("auth2", 3)]);
    }
    if i < argc && req.arg(3).is_empty() { i + 1..argc } else { 3..argc.min(4) }
}
