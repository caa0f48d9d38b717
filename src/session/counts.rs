//! The lines of NEARSIDE INFO that are counters under their words, so that whoever has redis-cli alone sees what `/metrics`
//! has. Histograms and what is counted by key pattern are not among them: NEARSIDE RULES, TOP and the side port have those.

use std::fmt::Write as _;

use crate::observe::counters::Labeled;
use crate::observe::reasons::{Again, Peer};
use crate::worker::Ctx;

/// Every counter that has a list of words, each word a line: `evictions_size:3`.
pub(super) fn by_word(ctx: &Ctx) -> String {
    let m = &ctx.metrics;
    let mut text = String::new();
    of(&mut text, "bypass", &m.bypass);
    of(&mut text, "fills_discarded", &m.discarded);
    of(&mut text, "invalidations", &m.invalidations);
    of(&mut text, "evictions", &m.evictions);
    of(&mut text, "flushes", &m.flushes);
    for (cause, counters) in Again::WORDS.iter().zip(&m.rereads) {
        of(&mut text, &format!("refreshes_{cause}"), counters);
    }
    of(&mut text, "touches", &m.touches);
    of(&mut text, "warmed", &m.warmed);
    of(&mut text, "rollout_changes", &m.rollout);
    of(&mut text, "pinned", &m.pinned);
    of(&mut text, "commands", &m.commands);
    of(&mut text, "errors", &m.errors);
    of(&mut text, "slow_commands", m.slow.counts());
    of(&mut text, "clients_rejected", &m.clients_rejected);
    of(&mut text, "clients_dropped", &m.clients_dropped);
    of(&mut text, "protocol_errors", &m.protocol_errors);
    of(&mut text, "config_reloads", &m.reloads);
    text
}

fn of<const N: usize>(text: &mut String, name: &str, counters: &Labeled<N>) {
    for (word, n) in counters.iter() {
        let _ = write!(text, "{name}_{word}:{n}\r\n");
    }
}

/// What has gone over sockets, and what the process is.
pub(super) fn of_process(ctx: &Ctx, now: u64) -> String {
    let m = &ctx.metrics;
    let (client_in, client_out) = m.bytes_of_clients();
    let lines = [
        ("uptime_ms", now.saturating_sub(ctx.started) / 1_000_000),
        ("workers", ctx.config.workers as u64),
        ("clients_total", m.clients_accepted.get()),
        ("bytes_client_in", client_in),
        ("bytes_client_out", client_out),
        ("bytes_upstream_in", m.bytes_in.get(Peer::Upstream)),
        ("bytes_upstream_out", m.bytes_out.get(Peer::Upstream)),
        ("lanes_held_up", m.held_up.get()),
        ("config_last_reload_successful", u64::from(ctx.status.config_error().is_none())),
    ];
    lines.iter().map(|(name, n)| format!("{name}:{n}\r\n")).collect()
}
