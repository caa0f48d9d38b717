//! What `benches/hot_path.rs` counts: a client and a lane of the real code, without the waiting between them. Reading from
//! a socket is left out (the bytes are handed over where `read` would have put them), writing is not: it is a system call
//! whose instructions in user space are few and always the same. Only in builds with the feature `bench`.

use std::rc::Rc;
use std::sync::Arc;

use tokio::runtime::{Builder, Runtime};

use crate::cache::{Bounds, L1};
use crate::coherence::LaneProbe;
use crate::config::{self, Overrides};
use crate::limits;
use crate::observe::metrics::{Metrics, Setup};
use crate::observe::reasons::{Method, Mode};
use crate::observe::status::Status;
use crate::observe::{View, families};
use crate::resp::request::{Scan, Scanner};
use crate::session::Probe;
use crate::worker::{self, Ctx};

/// One client, and the lane of the default profile.
pub struct Sidecar {
    ctx: Rc<Ctx>,
    lane: LaneProbe,
    client: Probe,
    _runtime: Runtime,
}

impl Sidecar {
    /// With these environment variables as its configuration.
    pub fn new(env: &[(&str, &str)]) -> Sidecar {
        let ctx = ctx(env);
        let runtime = Builder::new_current_thread().enable_io().build().expect("a runtime");
        let inside = runtime.enter();
        let lane = LaneProbe::new(&ctx);
        let client = Probe::new(&ctx, &ctx.default_profile);
        drop(inside);
        runtime.block_on(async {
            lane.writable().await;
            client.writable().await;
        });
        Sidecar { ctx, lane, client, _runtime: runtime }
    }

    /// The client has sent `requests`: what its task does until it waits again.
    pub fn ask(&mut self, requests: &[u8]) {
        self.client.feed(&self.ctx, requests);
        self.client.flush(&self.ctx);
    }

    /// Upstream has sent `frames`: what the lane's task does until it waits again.
    pub fn answer(&mut self, frames: &[u8]) {
        self.lane.turn(&self.ctx, frames);
    }

    /// Upstream is lost and cannot be had again.
    pub fn lose_upstream(&mut self) {
        self.lane.end(&self.ctx);
    }

    /// What the client has been sent since the last call.
    pub fn replies(&mut self) -> Vec<u8> {
        self.client.output().to_vec()
    }

    /// What upstream has been sent since the last call.
    pub fn sent(&mut self) -> Vec<u8> {
        self.lane.sent()
    }

    /// Commands that upstream has not answered.
    pub fn in_flight(&self) -> usize {
        self.lane.in_flight()
    }

    /// Keys answered from the L1 since the start.
    pub fn hits(&self) -> u64 {
        self.ctx.metrics.hits()
    }

    /// Keys answered from the L1 while upstream is gone, since the start.
    pub fn stale(&self) -> u64 {
        self.ctx.metrics.stale_served.get()
    }

    /// Entries in the L1.
    pub fn entries(&self) -> u64 {
        self.ctx.l1.settle();
        self.ctx.l1.size().0
    }
}

fn ctx(env: &[(&str, &str)]) -> Rc<Ctx> {
    let env = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    let (config, _) = config::load(&Overrides::default(), env).expect("a valid configuration");
    let metrics = Arc::new(Metrics::with(&worker::setup(&config)));
    let bounds = Bounds { max_bytes: config.cache.max_bytes, max_entries: config.cache.max_entries, lru: false };
    let l1 = Arc::new(L1::new(bounds, metrics.clone()));
    let mode = crate::worker::shown(config.cache.mode);
    let status = Arc::new(Status::new("upstream", mode));
    Ctx::new(Arc::new(config), l1, metrics, status)
}

/// The largest scrape there can be.
pub struct Scrape(View);

impl Default for Scrape {
    /// All places of patterns taken, all pairs of route and method, all tags.
    fn default() -> Scrape {
        let setup = Setup { separators: ":", max_key_patterns: 1000, hot_keys: 0, key_prefix: "", workers: 1 };
        let metrics = Metrics::with(&setup);
        for i in 0..1000 {
            let id = metrics.patterns.of_rule(&format!("pattern-{i:05}"));
            metrics.patterns.hit(id);
            metrics.patterns.candidate(id, Method::Get);
            let _ = metrics.templates.add(&format!("tag:{i:05}:{{key}}"), i);
        }
        Scrape(View::new(Arc::new(metrics), Arc::new(Status::new("upstream", Mode::Serve))))
    }
}

impl Scrape {
    /// The text that Prometheus is sent.
    pub fn text(&self) -> String {
        families::render(&self.0).expect("a scrape")
    }
}

/// The request scanner of one client.
pub struct Requests(Scanner);

impl Default for Requests {
    fn default() -> Requests {
        Requests(Scanner::new(limits::BULK_MAX, limits::BULK_MAX))
    }
}

impl Requests {
    /// How many whole requests `bytes` begins with, and their arguments.
    pub fn count(&mut self, bytes: &[u8]) -> (usize, usize) {
        let (mut at, mut requests, mut args) = (0, 0, 0);
        while let Scan::Request { len } = self.0.scan(&bytes[at..]) {
            at += len;
            requests += 1;
            args += self.0.args().len();
        }
        (requests, args)
    }
}
