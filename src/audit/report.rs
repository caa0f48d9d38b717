//! What an audit found, as text for people and as JSON for machines. The JSON's shape has a version: a field once released
//! stays what it is.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use serde_json::{Value, json};

use super::Shared;
use super::client::shown;
use super::promise::{Coherence, Outage, Promise};
use super::truth::{Known, Property, Read, Truth, Violation};

const SHAPE: u32 = 1;

/// What a sidecar says of itself in INFO.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Sidecar {
    pub(super) address: String,
    pub(super) mode: String,
    pub(super) coherence: Coherence,
    pub(super) upstream: String,
    pub(super) client_name: String,
    pub(super) pending: u64,
    /// Writes that wait for upstream.
    pub(super) queue_depth: u64,
    /// Values from before, served while upstream was gone.
    stale_served: u64,
    hits: u64,
    misses: u64,
    /// Entries that it compared with upstream by itself, and how many differed.
    pub(super) sampled: u64,
    pub(super) stale: u64,
}

impl Sidecar {
    pub(super) fn parse(address: String, info: &str) -> Option<Sidecar> {
        let fields: BTreeMap<&str, &str> = info.lines().filter_map(|line| line.trim_end().split_once(':')).collect();
        let number = |name: &str| fields.get(name).and_then(|value| value.parse().ok()).unwrap_or(0);
        let word = |name: &str| fields.get(name).map(|word| (*word).to_owned());
        fields.get("nearside_version")?;
        let time = |name: &str| Duration::from_millis(number(name));
        let says = |name: &str, word: &str| fields.get(name) == Some(&word);
        let coherence = Coherence {
            mode: word("session_coherence")?,
            asked: word("coherence_asked")?,
            bound: time("max_staleness_ms"),
            pubsub_cap: time("ttl_cap_pubsub_ms"),
            ttl_cap: time("ttl_cap_ttl_ms"),
            atomic: word("pubsub_atomic")? == "yes",
            holds: word("fence")? == "hold",
            outage: Outage {
                max_stale: says("outage_reads", "stale").then(|| time("max_stale_ms")),
                queues: says("outage_writes", "queue"),
                overwrites: says("queue_conflict", "overwrite"),
                local: says("outage_reads", "local") || says("outage_writes", "local"),
                silence: Some(time("stall_timeout_ms")).filter(|silence| !silence.is_zero()),
            },
        };
        Some(Sidecar {
            address,
            mode: word("mode")?,
            coherence,
            upstream: word("upstream")?,
            client_name: word("upstream_client_name")?,
            pending: number("pending_writes"),
            queue_depth: number("queue_depth"),
            stale_served: number("stale_served"),
            hits: number("hits"),
            misses: number("misses"),
            sampled: number("audit_checked"),
            stale: number("audit_stale"),
        })
    }

    pub(super) fn is_ready(&self) -> bool {
        self.upstream == "up" && self.coherence.mode != "probing"
    }

    /// What its replies are judged by; `bound`: B, if it is not the sidecar's own.
    pub(super) fn promise(&self, bound: Option<Duration>) -> Option<Promise> {
        let bound = bound.unwrap_or(self.coherence.bound);
        Promise::of(&Coherence { bound, ..self.coherence.clone() })
    }

    /// With the figures of the time between.
    pub(super) fn until(self, now: &Sidecar) -> Sidecar {
        Sidecar {
            hits: now.hits.saturating_sub(self.hits),
            misses: now.misses.saturating_sub(self.misses),
            sampled: now.sampled.saturating_sub(self.sampled),
            stale: now.stale.saturating_sub(self.stale),
            stale_served: now.stale_served.saturating_sub(self.stale_served),
            coherence: now.coherence.clone(),
            ..self
        }
    }
}

pub(crate) struct Report {
    json: Value,
    reads: u64,
    violations: u64,
}

impl Report {
    pub(super) fn new(shared: &Shared, sidecars: &[Sidecar], lasted: Duration) -> Report {
        let truth = shared.truth.borrow();
        let by_property = |counts: &BTreeMap<Property, u64>| -> Value {
            Property::ALL.iter().map(|p| (p.as_str().to_owned(), json!(counts.get(p).copied().unwrap_or(0)))).collect()
        };
        let violations = truth.violations();
        let json = json!({
            "audit": SHAPE,
            "verdict": if violations == 0 { "pass" } else { "fail" },
            "version": env!("CARGO_PKG_VERSION"),
            "seed": shared.plan.seed,
            "seconds": (lasted.as_secs_f64() * 1000.0).round() / 1000.0,
            "upstream": shown(&shared.plan.upstream.endpoint),
            "max_staleness_ms": shared.plan.bound.as_millis() as u64,
            "sidecars": sidecars.iter().zip(truth.promises()).map(|(s, p)| sidecar(s, p)).collect::<Vec<_>>(),
            "reads": truth.reads,
            "writes": truth.writes,
            "checks": by_property(&truth.checks),
            "violations": by_property(&truth.violated),
            "outdated_reads": truth.outdated,
            "oldest_read_ms": ms(truth.oldest),
            "outages": outages(shared, &truth, sidecars),
            "untested": untested(shared, &truth),
            "faults": *shared.faults.borrow(),
            "faults_asked_for": shared.plan.faults.words(),
            "errors": *shared.errors.borrow(),
            "evidence": truth.evidence.iter().map(evidence).collect::<Vec<_>>(),
        });
        Report { json, reads: truth.reads, violations }
    }

    pub(crate) fn violations(&self) -> u64 {
        self.violations
    }

    pub(super) fn reads(&self) -> u64 {
        self.reads
    }

    pub(crate) fn json(&self) -> String {
        format!("{:#}\n", self.json)
    }

    pub(crate) fn text(&self) -> String {
        let json = &self.json;
        let mut text = String::new();
        let mut line = |words: String| {
            let _ = writeln!(text, "{words}");
        };
        for sidecar in list(&json["sidecars"]) {
            let (hits, misses) = (&sidecar["hits"], &sidecar["misses"]);
            line(format!(
                "sidecar   {}: coherence {}, {hits} hits, {misses} misses",
                word(&sidecar["address"]),
                word(&sidecar["coherence"])
            ));
            line(format!(
                "          judged: {}; announced writes within {} ms, others within {} ms",
                list(&sidecar["judged"]).iter().map(word).collect::<Vec<_>>().join(", "),
                sidecar["announced_within_ms"],
                sidecar["others_within_ms"]
            ));
            if *hits == 0 {
                line("          nothing was answered from this cache: little is proved about it".to_owned());
            }
        }
        line(format!("load      {} reads, {} writes in {} s", json["reads"], json["writes"], json["seconds"]));
        line(format!("faults    {}", counts(&json["faults"])));
        line(format!(
            "staleness {} reads were outdated when they were sent, by {} ms at the most",
            json["outdated_reads"], json["oldest_read_ms"]
        ));
        if !json["outages"].is_null() {
            outage_lines(&json["outages"], &mut line);
        }
        for what in list(&json["untested"]) {
            line(format!("UNTESTED  {}", word(what)));
        }
        for property in Property::ALL.map(Property::as_str) {
            let (checks, wrong) = (&json["checks"][property], &json["violations"][property]);
            line(format!("{:<20} {checks:>9} checks, {wrong} violations", property));
        }
        line(format!("errors    {}", counts(&json["errors"])));
        for violation in list(&json["evidence"]) {
            line(format!("VIOLATION {}", word(&violation["text"])));
        }
        line(format!("verdict   {}: {} violations, seed {}", word(&json["verdict"]), self.violations, json["seed"]));
        text
    }
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn word(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn counts(value: &Value) -> String {
    let pairs = value.as_object().into_iter().flatten();
    let all: Vec<String> = pairs.map(|(name, count)| format!("{count} x {name}")).collect();
    if all.is_empty() { "none".to_owned() } else { all.join(", ") }
}

/// `null` where none was asked for.
fn outages(shared: &Shared, truth: &Truth, sidecars: &[Sidecar]) -> Value {
    if !shared.plan.faults.outages {
        return Value::Null;
    }
    let max_stale = truth.promises().iter().filter_map(|p| p.outage.max_stale).max();
    json!({
        "max_stale_ms": max_stale.map(|max_stale| max_stale.as_millis() as u64),
        "stale_reads": truth.stale,
        "oldest_stale_ms": ms(truth.oldest_stale),
        "stale_served": sidecars.iter().map(|s| s.stale_served).sum::<u64>(),
        "queued_acknowledged": truth.owed.acknowledged,
        "queued_found": truth.owed.found,
        "longest_recovery_ms": ms(shared.longest_recovery.get()),
    })
}

/// What an audit that passes says nothing about, although it was asked to.
fn untested(shared: &Shared, truth: &Truth) -> Vec<&'static str> {
    let outages = shared.plan.faults.outages;
    let any = |does: fn(&Outage) -> bool| truth.promises().iter().any(|p| does(&p.outage));
    [
        (outages && shared.faults.borrow().get("outages").is_none(), "no outage was played: the audit was too short"),
        (outages && any(|o| o.max_stale.is_some()) && truth.stale == 0, "no stale value was read in an outage"),
        (outages && any(|o| o.queues) && truth.owed.acknowledged == 0, "no write was queued in an outage"),
    ]
    .into_iter()
    .filter_map(|(is, words)| is.then_some(words))
    .collect()
}

fn outage_lines(json: &Value, line: &mut impl FnMut(String)) {
    line(format!(
        "outages   {} reads were outdated while upstream was gone, by {} ms at the most; {} values were served from before",
        json["stale_reads"], json["oldest_stale_ms"], json["stale_served"]
    ));
    line(format!(
        "          {} queued writes were acknowledged, {} are there or overwritten; back within {} ms",
        json["queued_acknowledged"], json["queued_found"], json["longest_recovery_ms"]
    ));
}

fn sidecar(s: &Sidecar, promise: &Promise) -> Value {
    let judged: Vec<&str> = Property::ALL.into_iter().filter(|p| promise.judges(*p)).map(Property::as_str).collect();
    json!({
        "address": s.address,
        "mode": s.mode,
        "coherence": s.coherence.mode,
        "hits": s.hits,
        "misses": s.misses,
        "judged": judged,
        "announced_within_ms": promise.announced.as_millis() as u64,
        "others_within_ms": promise.others.as_millis() as u64,
    })
}

fn evidence(v: &Violation) -> Value {
    let read = v.read.map(|r| {
        let Read { got, sent, replied, session, sidecar, how, .. } = r;
        json!({ "got": got, "sent_ms": ms(sent), "replied_ms": ms(replied), "session": session, "sidecar": sidecar, "how": how })
    });
    let because = v.because.map(|k| {
        let Known { version, sent, known, by, how } = k;
        json!({ "version": version, "sent_ms": ms(sent), "known_ms": ms(known), "by": by.to_string(), "how": how })
    });
    json!({
        "property": v.property.as_str(), "key": v.key, "read": read, "because": because, "note": v.note, "text": sentence(v),
    })
}

fn ms(micros: u64) -> f64 {
    micros as f64 / 1000.0
}

fn sentence(v: &Violation) -> String {
    let mut parts = Vec::new();
    match v.read {
        Some(r) => parts.push(format!(
            "session {} on sidecar {} read {} as {} by {} (sent {} ms, answered {} ms)",
            r.session,
            r.sidecar,
            v.key,
            r.got,
            r.how,
            ms(r.sent),
            ms(r.replied)
        )),
        None if !v.key.is_empty() => parts.push(v.key.clone()),
        None => {}
    }
    if let Some(k) = v.because {
        let (from, to) = (ms(k.sent), ms(k.known));
        parts.push(format!("{} knew of version {} by {} (sent {from} ms, known {to} ms)", k.by, k.version, k.how));
    }
    parts.extend((!v.note.is_empty()).then(|| v.note.clone()));
    format!("{}: {}", v.property.as_str(), parts.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::truth::Actor;

    const INFO: &str = "# Nearside\r\nnearside_version:0.1.0\r\nupstream_client_name:nearside:h:1\r\nmode:serve\r\n\
        coherence:tracking\r\nupstream:up\r\nhits:10\r\nmisses:3\r\nmax_staleness_ms:250\r\npending_writes:0\r\n\
        session_coherence:tracking\r\ncoherence_asked:auto\r\npubsub_atomic:yes\r\nfence:hold\r\n";

    #[test]
    fn a_sidecar_is_known_by_its_info() {
        let sidecar = Sidecar::parse("a".to_owned(), INFO).unwrap();
        assert!(sidecar.is_ready() && sidecar.promise(None).is_some_and(|p| p.covers_unnamed));
        let longer = sidecar.promise(Some(Duration::from_secs(9))).unwrap();
        assert_eq!((longer.announced, longer.others), (Duration::from_secs(9), Duration::from_secs(9)));
        assert_eq!((sidecar.coherence.bound, sidecar.hits), (Duration::from_millis(250), 10));
        assert_eq!(sidecar.client_name, "nearside:h:1");
        let later = Sidecar { hits: 25, ..sidecar.clone() };
        assert_eq!(sidecar.until(&later).hits, 15);
        assert_eq!(Sidecar::parse("a".to_owned(), "redis_version:7.0.15\r\n"), None);
    }

    #[test]
    fn a_violation_says_who_read_what_when_and_who_knew_better() {
        let read = Read { key: 0, got: 4, sent: 1_500, replied: 2_000, session: 3, sidecar: 1, place: 1, how: "GET" };
        let because = Known { version: 5, sent: 100, known: 200, by: Actor::Writer(2), how: "INCR upstream" };
        let violation = Violation {
            property: Property::Staleness,
            key: "k".to_owned(),
            read: Some(read),
            because: Some(because),
            note: String::new(),
        };
        assert_eq!(
            sentence(&violation),
            "bounded_staleness: session 3 on sidecar 1 read k as 4 by GET (sent 1.5 ms, answered 2 ms); writer 2 knew of \
             version 5 by INCR upstream (sent 0.1 ms, known 0.2 ms)"
        );
        assert_eq!(evidence(&violation)["because"]["by"], "writer 2");
    }
}
