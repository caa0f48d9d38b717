//! What the rules say of one command, in words: for NEARSIDE EXPLAIN, the side port and `nearside explain`, which needs no
//! running process. What a connection adds to the decision (its lane, its fence) only the session knows.

use crate::command::cacheable::{Caching, Kept, Never};
use crate::command::{Keys, Kind, Request, Spec, keys};
use crate::config::RuleMode;
use crate::observe::patterns::Patterns;
use crate::observe::reasons::Method;

use super::Rules;

/// What is said of one command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Explained {
    /// All keys it names.
    pub(crate) keys: Vec<Vec<u8>>,
    /// The rule of its first key; empty where none matches, or none is written.
    pub(crate) rule: String,
    /// `GET for 300000 ms`, or the reason why its first key is not kept.
    pub(crate) says: String,
    /// Why its replies are not kept, whatever the key; empty where they are.
    pub(crate) not_kept_because: String,
}

pub(crate) fn explain(rules: &Rules, patterns: &Patterns, spec: &Spec, req: &Request<'_>) -> Explained {
    let mut named: Vec<Vec<u8>> = Vec::new();
    keys::for_each(spec, req, |key| named.push(key.to_vec()));
    let (rule, says) = named.first().map_or_else(Default::default, |key| of_key(rules, patterns, key, spec));
    Explained { keys: named, rule, says, not_kept_because: why_not_kept(rules, spec, req) }
}

/// How the replies to a request are kept where its key's rule agrees, if they are kept at all.
pub(crate) fn kept(spec: &Spec, req: &Request<'_>) -> Option<Kept> {
    let Caching::Kept(kept) = spec.caching else { return None };
    // EXISTS counts the keys it names: of several it is no read of one.
    let one = spec.kind == Kind::Mget || !matches!(spec.keys, Keys::Range { last: -1, .. }) || req.argc() == 2;
    one.then_some(kept)
}

fn of_key(rules: &Rules, patterns: &Patterns, key: &[u8], spec: &Spec) -> (String, String) {
    let name = rules.find(key).map_or_else(String::new, |rule| rule.terms.name.clone());
    let method = match spec.caching {
        Caching::Kept(kept) => kept.method,
        // Of other commands it is of interest what a GET would find.
        Caching::Never(_) => Method::Get,
    };
    let says = match rules.judge(patterns, key, method).keep {
        Err(why) => why.as_str().to_owned(),
        Ok(keep) => {
            let variant = keep.variant_name().map_or_else(String::new, |name| format!(", variant {name}"));
            format!("{} for {} ms{variant}", method.as_str(), keep.ttl().as_millis())
        }
    };
    (name, says)
}

fn why_not_kept(rules: &Rules, spec: &Spec, req: &Request<'_>) -> String {
    match (spec.caching, kept(spec, req)) {
        (Caching::Never(never), _) => never.why().to_owned(),
        (Caching::Kept(_), None) => Never::Several.why().to_owned(),
        (_, Some(kept)) if rules.commands().has(kept.method) => String::new(),
        (_, Some(kept)) => {
            let serving = rules.list().iter().any(|rule| rule.terms.mode == RuleMode::Serve);
            let named = match (rules.list().is_empty(), serving) {
                (true, _) => "is not in cache.commands",
                (false, true) => "is named by no rule",
                (false, false) => "is served by no rule",
            };
            format!("{} {named}", kept.method.as_str())
        }
    }
}
