//! What stands in a segment file, byte for byte: a header, then records, each with its length and checksums. Pure: bytes in,
//! records out. It opens no file and decides nothing about what becomes of a damaged one.
//!
//! ```text
//! header   magic (8)  version u32  number of the first effect u64  crc32 of all before u32
//! record   length of the body u32  crc32 of the body u32  crc32 of these eight bytes u32  body
//! ```
//!
//! All numbers are little endian. The length has a checksum of its own: else a flipped bit in it could make a record reach
//! beyond the end of the file, where it would be taken for one that a crash has cut, and everything behind it would go too.

use std::ops::Range;

use crate::outage::queue::{Base, Effect, New};

/// What a file of ours begins with, in every version.
const MAGIC: &[u8; 8] = b"NSJOURNL";

/// Of this layout. Another one's journal is refused: it is never guessed at.
pub(super) const VERSION: u32 = 1;

pub(super) const HEADER: usize = 24;

/// In front of a record's body.
pub(super) const HEAD: usize = 12;

const WRITE: u8 = 1;
const CARRIED: u8 = 2;
const APPLIED: u8 = 3;
const GAP: u8 = 4;

const SET: u8 = 1;
const DEL: u8 = 2;

const UNKNOWN: u8 = 0;
const ABSENT: u8 = 1;
const VALUE: u8 = 2;

/// Whose effects: database and user name. A password is never written down.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Who {
    pub(crate) db: u32,
    /// `default` for the connection that never said AUTH.
    pub(crate) user: Box<[u8]>,
}

/// What one command of a client does. Its effects are numbered from `first` on; all of them are in the journal, or none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Write {
    pub(crate) first: u64,
    pub(crate) who: Who,
    pub(crate) effects: Vec<New>,
}

impl Write {
    /// The number of its last effect.
    pub(crate) fn last(&self) -> u64 {
        self.first + self.effects.len() as u64 - 1
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Record {
    Write(Write),
    /// A write from a segment that was removed: its numbers are older than those around it.
    Carried(Write),
    /// All effects of `who` up to this number are upstream's now, or were given up.
    Applied {
        who: Who,
        up_to: u64,
    },
    /// The next effect has this number: those between could not be written, and their clients were told.
    Gap {
        next: u64,
    },
}

/// Why the bytes from an offset on are no record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bad {
    /// They end before the record does.
    Short,
    Head,
    Body,
    /// The checksums agree, and it makes no sense even so.
    Meaning,
}

impl Bad {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Bad::Short => "it is not whole",
            Bad::Head => "the checksum of its length differs",
            Bad::Body => "the checksum of its body differs",
            Bad::Meaning => "its checksum is right, but what it says makes no sense",
        }
    }
}

/// Why a file's header is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BadHeader {
    Short,
    NotOurs,
    Version(u32),
    Checksum,
}

pub(super) fn header(first: u64) -> [u8; HEADER] {
    let mut out = [0; HEADER];
    out[..8].copy_from_slice(MAGIC);
    out[8..12].copy_from_slice(&VERSION.to_le_bytes());
    out[12..20].copy_from_slice(&first.to_le_bytes());
    let crc = crc32fast::hash(&out[..20]);
    out[20..].copy_from_slice(&crc.to_le_bytes());
    out
}

/// The number of the segment's first effect.
pub(super) fn read_header(file: &[u8]) -> Result<u64, BadHeader> {
    let Some(head) = file.get(..HEADER) else { return Err(BadHeader::Short) };
    if head[..8] != *MAGIC {
        return Err(BadHeader::NotOurs);
    }
    // Before the checksum: another version may have it elsewhere.
    let version = u32_at(head, 8);
    if version != VERSION {
        return Err(BadHeader::Version(version));
    }
    if crc32fast::hash(&head[..20]) != u32_at(head, 20) {
        return Err(BadHeader::Checksum);
    }
    Ok(u64::from_le_bytes(head[12..20].try_into().expect("eight bytes")))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

// ---- writing ----

/// Appends a write, as `write` does.
pub(super) fn write_new(out: &mut Vec<u8>, first: u64, who: &Who, effects: &[New]) -> bool {
    framed(out, |out| {
        out.push(WRITE);
        write_body(out, first, who, effects);
    })
}

/// Appends the record. False: it is larger than its length field can say, and nothing was appended.
pub(super) fn write(out: &mut Vec<u8>, record: &Record) -> bool {
    framed(out, |out| body(out, record))
}

fn framed(out: &mut Vec<u8>, body: impl FnOnce(&mut Vec<u8>)) -> bool {
    let at = out.len();
    out.extend_from_slice(&[0; HEAD]);
    body(out);
    let Ok(len) = u32::try_from(out.len() - at - HEAD) else {
        out.truncate(at);
        return false;
    };
    let crc = crc32fast::hash(&out[at + HEAD..]);
    out[at..at + 4].copy_from_slice(&len.to_le_bytes());
    out[at + 4..at + 8].copy_from_slice(&crc.to_le_bytes());
    let of_head = crc32fast::hash(&out[at..at + 8]);
    out[at + 8..at + HEAD].copy_from_slice(&of_head.to_le_bytes());
    true
}

fn body(out: &mut Vec<u8>, record: &Record) {
    match record {
        Record::Write(write) => {
            out.push(WRITE);
            write_body(out, write.first, &write.who, &write.effects);
        }
        Record::Carried(write) => {
            out.push(CARRIED);
            write_body(out, write.first, &write.who, &write.effects);
        }
        Record::Applied { who, up_to } => {
            out.push(APPLIED);
            who_body(out, who);
            out.extend_from_slice(&up_to.to_le_bytes());
        }
        Record::Gap { next } => {
            out.push(GAP);
            out.extend_from_slice(&next.to_le_bytes());
        }
    }
}

fn write_body(out: &mut Vec<u8>, first: u64, who: &Who, effects: &[New]) {
    out.extend_from_slice(&first.to_le_bytes());
    who_body(out, who);
    out.extend_from_slice(&(effects.len() as u32).to_le_bytes());
    for new in effects {
        effect_body(out, &new.effect);
        match &new.base {
            Base::Unknown => out.push(UNKNOWN),
            Base::Absent => out.push(ABSENT),
            Base::Value { value, expire_at_ms } => {
                out.push(VALUE);
                bytes(out, value);
                time(out, *expire_at_ms);
            }
        }
    }
}

fn who_body(out: &mut Vec<u8>, who: &Who) {
    out.extend_from_slice(&who.db.to_le_bytes());
    bytes(out, &who.user);
}

fn effect_body(out: &mut Vec<u8>, effect: &Effect) {
    match effect {
        Effect::Set { key, value, expire_at_ms } => {
            out.push(SET);
            bytes(out, key);
            bytes(out, value);
            time(out, *expire_at_ms);
        }
        Effect::Del { key } => {
            out.push(DEL);
            bytes(out, key);
        }
    }
}

fn bytes(out: &mut Vec<u8>, what: &[u8]) {
    // A body that is longer than 4 GiB is refused as a whole (`write`).
    out.extend_from_slice(&(what.len() as u32).to_le_bytes());
    out.extend_from_slice(what);
}

fn time(out: &mut Vec<u8>, ms: Option<i64>) {
    out.push(u8::from(ms.is_some()));
    out.extend(ms.iter().flat_map(|ms| ms.to_le_bytes()));
}

// ---- reading ----

/// The record at `at`, and where it ends. `at` is before the end of `file`.
pub(super) fn read(file: &[u8], at: usize) -> Result<(Record, usize), Bad> {
    let body = find_body(file, at)?;
    let end = body.end;
    let mut rest = Reader { left: &file[body] };
    match rest.record() {
        Some(record) if rest.left.is_empty() => Ok((record, end)),
        _ => Err(Bad::Meaning),
    }
}

/// Where the body of the record at `at` stands, if both checksums agree.
fn find_body(file: &[u8], at: usize) -> Result<Range<usize>, Bad> {
    let Some(head) = file.get(at..at + HEAD) else { return Err(Bad::Short) };
    if crc32fast::hash(&head[..8]) != u32_at(head, 8) {
        return Err(Bad::Head);
    }
    let start = at + HEAD;
    let range = start..start.saturating_add(u32_at(head, 0) as usize);
    let Some(body) = file.get(range.clone()) else { return Err(Bad::Short) };
    if crc32fast::hash(body) == u32_at(head, 4) { Ok(range) } else { Err(Bad::Body) }
}

/// Whether a whole record begins anywhere behind `at`. A crash cuts the end; it leaves nothing whole behind the cut.
pub(super) fn any_after(file: &[u8], at: usize) -> bool {
    (at + 1..file.len()).any(|at| find_body(file, at).is_ok())
}

struct Reader<'b> {
    left: &'b [u8],
}

impl<'b> Reader<'b> {
    fn record(&mut self) -> Option<Record> {
        Some(match self.byte()? {
            WRITE => Record::Write(self.write()?),
            CARRIED => Record::Carried(self.write()?),
            APPLIED => Record::Applied { who: self.who()?, up_to: self.number()? },
            GAP => Record::Gap { next: self.number()? },
            _ => return None,
        })
    }

    fn write(&mut self) -> Option<Write> {
        let first = self.number()?;
        let who = self.who()?;
        let count = self.length()?;
        // The count is not trusted for an allocation: each effect has at least two bytes.
        let new = |_| Some(New { effect: self.effect()?, base: self.base()? });
        let effects: Vec<New> = (0..count).map_while(new).collect();
        (effects.len() == count && count > 0 && first > 0).then_some(Write { first, who, effects })
    }

    fn who(&mut self) -> Option<Who> {
        let db = u32::from_le_bytes(self.take(4)?.try_into().ok()?);
        Some(Who { db, user: self.bytes()?.into() })
    }

    fn effect(&mut self) -> Option<Effect> {
        Some(match self.byte()? {
            SET => Effect::Set { key: self.bytes()?.into(), value: self.bytes()?.into(), expire_at_ms: self.time()? },
            DEL => Effect::Del { key: self.bytes()?.into() },
            _ => return None,
        })
    }

    fn base(&mut self) -> Option<Base> {
        Some(match self.byte()? {
            UNKNOWN => Base::Unknown,
            ABSENT => Base::Absent,
            VALUE => Base::Value { value: self.bytes()?.into(), expire_at_ms: self.time()? },
            _ => return None,
        })
    }

    fn take(&mut self, n: usize) -> Option<&'b [u8]> {
        let (taken, left) = self.left.split_at_checked(n)?;
        self.left = left;
        Some(taken)
    }

    fn byte(&mut self) -> Option<u8> {
        Some(self.take(1)?[0])
    }

    fn length(&mut self) -> Option<usize> {
        Some(u32::from_le_bytes(self.take(4)?.try_into().ok()?) as usize)
    }

    fn number(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(self.take(8)?.try_into().ok()?))
    }

    fn bytes(&mut self) -> Option<&'b [u8]> {
        let len = self.length()?;
        self.take(len)
    }

    fn time(&mut self) -> Option<Option<i64>> {
        match self.byte()? {
            0 => Some(None),
            1 => Some(Some(i64::from_le_bytes(self.take(8)?.try_into().ok()?))),
            _ => None,
        }
    }
}
