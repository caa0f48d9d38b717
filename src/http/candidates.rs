//! `GET /api/v1/candidates?n=`: what observe mode has found to be worth caching, most saved requests first. Computed by
//! `policy::candidates` on the side port's thread when somebody asks: some 2 ms with 300 families, of which the data thread
//! waits for the copy of one family at a time.

use hyper::{Request, StatusCode};

use super::change::malformed;
use super::query::query;
use super::routes::{Answer, Refusal, Routes, json, readable};
use crate::observe::clock;
use crate::policy::candidates::Candidates;

/// As many as every list of the dashboard has.
const SHOWN: usize = 10;

/// More families than this nobody reads through.
const MOST: usize = 300;

impl Routes {
    pub(super) fn candidates<B: hyper::body::Body>(&self, request: &Request<B>) -> Result<Answer, Refusal> {
        readable(request)?;
        let n = match &query(request, &["n"])?[..] {
            [] => SHOWN,
            [(_, n), ..] => n
                .parse()
                .ok()
                .filter(|n| (1..=MOST).contains(n))
                .ok_or_else(|| malformed(format!("n: {n:?} is no number from 1 to {MOST}")))?,
        };
        let config = self.running.load().config.clone();
        let shadow = &self.view.metrics.shadow;
        Ok(json(StatusCode::OK, Candidates::of(shadow, &config, config.cache.mode, clock::now(), n)))
    }
}
