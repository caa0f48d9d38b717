//! What was learned, as the file that brings it over a restart: JSON with a version, counts and names of families only, no
//! key and no value. The keys that were followed are not in it: as for a cache, their first reading after a restart is a
//! miss. What cannot have been written by this version is not read at all.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{GROUPS_MAX, Group, Hist, Inner, Learned, Scale, Shadow, TTLS, TTLS_MS};
use crate::observe::reasons::Method;

/// How every such file begins: what begins otherwise is somebody else's and is never written over.
const MAGIC: &[u8] = br#"{"nearside_observe":"#;

/// Grows with every change that an older Nearside would misread.
const VERSION: u32 = 1;

/// 300 groups with all buckets in use are about 5 MB; more than this is not looked at.
pub(crate) const FILE_MAX: u64 = 16 << 20;

/// Why a file was not read.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum NotRead {
    /// Not one of ours, or of a newer version: it stays as it is.
    Foreign(String),
    /// Ours, and torn or damaged: it is begun anew.
    Damaged(String),
}

impl fmt::Display for NotRead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NotRead::Foreign(why) => write!(f, "{why}; it is left as it is, and nothing is kept over a restart"),
            NotRead::Damaged(why) => write!(f, "it is damaged ({why}); observation begins anew"),
        }
    }
}

#[derive(Serialize, Deserialize)]
struct Saved {
    nearside_observe: u32,
    began_ms: u64,
    observed_ms: f64,
    ttls_ms: Vec<u32>,
    groups: Vec<SavedGroup>,
}

#[derive(Serialize, Deserialize)]
struct SavedGroup {
    name: String,
    command: String,
    separator: u8,
    born_ms: f64,
    reads: f64,
    sampled: f64,
    followed: f64,
    value_bytes: f64,
    traffic: [Option<SavedHist>; 2],
    hits: Vec<SavedHist>,
}

#[derive(Serialize, Deserialize)]
struct SavedHist {
    sum: f64,
    counts: Vec<(usize, f64)>,
}

impl SavedHist {
    fn of(hist: &Hist) -> SavedHist {
        SavedHist { sum: hist.sum, counts: hist.pairs() }
    }

    fn hist(&self, scale: Scale) -> Option<Hist> {
        Hist::of(scale, &self.counts, self.sum)
    }
}

impl Shadow {
    /// The file's content. None where nothing was ever observed.
    pub(crate) fn save(&self, now: u64) -> Option<Vec<u8>> {
        let (began_ms, observed_ms, groups) = {
            let inner = self.inner.lock();
            (inner.began, inner.observed(now), inner.groups.len())
        };
        let told = |i: usize| self.inner.lock().groups.get(i).map(SavedGroup::of);
        let saved = Saved {
            nearside_observe: VERSION,
            began_ms,
            observed_ms,
            ttls_ms: TTLS_MS.to_vec(),
            groups: (0..groups).filter_map(told).collect(),
        };
        // Numbers and names cannot fail to serialize; what is not finite could not be read back, and never comes about.
        (began_ms > 0).then(|| serde_json::to_vec(&saved).ok()).flatten()
    }

    /// Takes over what a file says; to be called before anything is observed.
    pub(crate) fn restore(&self, content: &[u8]) -> Result<(), NotRead> {
        if !content.starts_with(MAGIC) {
            return Err(NotRead::Foreign("it is no file of Nearside's observe mode".to_owned()));
        }
        let version: u32 = content[MAGIC.len()..]
            .iter()
            .take_while(|byte| byte.is_ascii_digit())
            .fold(0, |n: u32, digit| n.saturating_mul(10).saturating_add(u32::from(digit - b'0')));
        if version > VERSION {
            return Err(NotRead::Foreign(format!("it is of version {version}, and this Nearside knows {VERSION}")));
        }
        let saved: Saved = serde_json::from_slice(content).map_err(|e| NotRead::Damaged(e.to_string()))?;
        let odd = |what: &str| NotRead::Damaged(what.to_owned());
        if saved.nearside_observe != VERSION || saved.ttls_ms != TTLS_MS || saved.groups.len() > GROUPS_MAX {
            return Err(odd("it is of another shape"));
        }
        let groups: Option<Vec<Group>> = saved.groups.iter().map(SavedGroup::group).collect();
        let sound = saved.observed_ms.is_finite() && saved.observed_ms >= 0.0;
        let groups = groups.filter(|_| sound).ok_or_else(|| odd("it has figures that cannot be"))?;
        let mut inner = self.inner.lock();
        let since = inner.since;
        *inner = Inner { groups, since, observed_ms: saved.observed_ms, began: saved.began_ms, ..Inner::default() };
        Ok(())
    }
}

impl SavedGroup {
    fn of(group: &Group) -> SavedGroup {
        let learned = &group.learned;
        SavedGroup {
            name: group.name.to_string(),
            command: group.method.as_str().to_owned(),
            separator: learned.separator,
            born_ms: learned.born_ms,
            reads: learned.reads,
            sampled: learned.sampled,
            followed: learned.followed,
            value_bytes: learned.value_bytes,
            traffic: [0, 1].map(|i| learned.traffic[i].as_ref().map(SavedHist::of)),
            hits: learned.hits.iter().map(SavedHist::of).collect(),
        }
    }

    /// None: it has what cannot be.
    fn group(&self) -> Option<Group> {
        let method = Method::ALL.iter().copied().find(|method| method.as_str() == self.command)?;
        let numbers = [self.born_ms, self.reads, self.sampled, self.followed, self.value_bytes];
        if self.hits.len() != TTLS || numbers.iter().any(|n| !n.is_finite() || *n < 0.0) {
            return None;
        }
        let mut learned = Learned::new(self.separator, self.born_ms);
        let Learned { reads, sampled, followed, value_bytes, .. } = &mut learned;
        (*reads, *sampled, *followed, *value_bytes) = (self.reads, self.sampled, self.followed, self.value_bytes);
        for (place, saved) in learned.traffic.iter_mut().zip(&self.traffic) {
            *place = saved.as_ref().map(|saved| saved.hist(Scale::Nanos).ok_or(())).transpose().ok()?;
        }
        for (place, saved) in learned.hits.iter_mut().zip(&self.hits) {
            *place = saved.hist(Scale::Bytes)?;
        }
        Some(Group::new(&self.name, method, learned))
    }
}
