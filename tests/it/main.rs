//! Everything that is tested from outside, in one binary: real servers, real sockets, real bytes.

/// `NEARSIDE`, `INFO nearside` and who may use what of it.
mod admin;
/// Everything at once, with foreign writers and a bad network (C59), by `nearside audit`; and what it sees with a rule off.
mod audit;
/// The dashboard page in a real browser.
mod browser;
/// What is published on the sidecars' channel reaches them all.
mod channel;
/// Real client libraries and tools must not notice the sidecar.
mod clients;
/// Command line and configuration: streams and exit codes.
mod config;
/// The dashboard's JSON and its stream agree with what clients did.
mod dashboard;
/// The documents say what the tree has.
mod docs;
/// Without an upstream: the in-memory engine.
mod embedded;
/// The example configurations do what they say.
mod examples;
/// What experiments report is true, and rollouts grow and are taken back by themselves.
mod experiments;
/// Links, servers and the sidecar itself fail; what clients read stays within what is promised.
mod faults;
/// A harness that lies would make every other test worthless.
mod harness;
/// No old value is served: the hazards of the coherence protocol, one by one.
mod hazards;
/// Keys, values and commands that stand out, and what is kept of them for the next process.
mod hot_keys;
/// The side port follows what happens on the others.
mod http;
/// Sockets, signals, draining, exit codes.
mod lifecycle;
/// Memory and other clients stay what they were, whatever one client does.
mod limits;
/// Rules, mode and configuration change while clients are served.
mod live;
/// What is logged, how often, and what never is.
mod logs;
/// What Prometheus reads, by promtool and a real one.
mod metrics;
/// The dashboard and the alert rules are about what is exported.
mod monitoring;
/// What is only observed goes upstream as if nobody were between, and what is learned of it is true.
mod observe;
/// Byte for byte what Redis itself answers.
mod oracle;
/// Upstream gone, cell by cell of what is promised then, at start, in service and under load.
mod outage;
/// Who may run what, on which keys, how often.
mod policy;
/// Several apps share one Redis and never meet (`upstream.key_prefix`).
mod prefix;
/// What a sidecar would meet is said before there is one.
mod preflight;
/// Every read that can be kept, and every one that never is.
mod reads;
/// What is hit near its end is read again, within its bounds.
mod refresh;
/// Bugs that suites of others found, one test each.
mod regressions;
/// What is cached of which keys.
mod rules;
/// What clients store is seen nowhere, and how their keys are called only where that is allowed.
mod secrets;
/// What a client session does, seen from the client and from upstream.
mod sessions;
mod support;
/// Tags drop all that is theirs, and a rule's share bounds what its entries take.
mod tags;
/// The rules of layout and layering hold because they are a test.
mod tidy;
/// `nearside top` and `nearside health` beside a running sidecar.
mod top;
/// Upstream is told which keys are hit here.
mod touch;
/// Health, alerts and costs follow what happens, and an idle pod does not cry.
mod vitals;
/// What is loaded at start, how fast, and when it is done.
mod warm;
/// Several threads serve as one does.
mod workers;
