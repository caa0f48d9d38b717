//! `NEARSIDE TOP` and `NEARSIDE SLOWLOG`: keys, values and commands that stand out. Names of keys are shown to whoever may
//! change the sidecar on this connection, as `observe.keys` says; else a hash stands for each.

use bytes::BytesMut;

use super::Session;
use super::nearside::pairs;
use crate::command::Request;
use crate::observe::hot_keys::By;
use crate::observe::slow_log::SLOW_MAX;
use crate::observe::stamp;
use crate::resp::{Proto, build};
use crate::worker::Ctx;

const SHOWN: usize = 10;

/// As many as the side port shows.
const TOP_MAX: usize = 100;

type Fields = Vec<(&'static str, String)>;

impl Session {
    /// `NEARSIDE TOP [n] [BY hits|misses|bytes]`
    pub(super) fn top(&self, ctx: &Ctx, req: &Request<'_>, mute: bool) {
        let (by, n) = match asked(req) {
            Ok(asked) => asked,
            Err(text) => return self.answer_error(mute, &text),
        };
        let names = ctx.live.running().load().config.observe.keys.shown_to(self.may_change(ctx).is_ok());
        let (hot, patterns) = (&ctx.metrics.hot, &ctx.metrics.patterns);
        let name = |key: &[u8]| names.of(hot, key).unwrap_or_default();
        let top = hot.top(by, n);
        let keys = top.keys.iter().map(|key| {
            vec![
                ("key", name(&key.key)),
                ("hits", key.hits.to_string()),
                ("misses", key.misses.to_string()),
                ("bytes", key.bytes.map_or_else(String::new, |bytes| bytes.to_string())),
                ("key_pattern", patterns.name(key.pattern).to_owned()),
            ]
        });
        let values = hot.big_values();
        let values = values.iter().map(|value| {
            let pattern = patterns.name(value.pattern).to_owned();
            vec![("key", name(&value.key)), ("bytes", value.bytes.to_string()), ("key_pattern", pattern)]
        });
        let head = [
            ("by", by.as_str().to_owned()),
            ("shown", names.as_str().to_owned()),
            ("error_bound", top.error_bound.to_string()),
        ];
        let (keys, values): (Vec<Fields>, Vec<Fields>) = (keys.collect(), values.collect());
        let proto = self.proto();
        self.answer(mute, |out| {
            build::map_or_array(out, proto, head.len() + 2);
            pairs(out, &head);
            maps(out, proto, "keys", &keys);
            maps(out, proto, "big_values", &values);
        });
    }

    /// `NEARSIDE SLOWLOG [n]`
    pub(super) fn slow_log(&self, ctx: &Ctx, req: &Request<'_>, mute: bool) {
        let n = match (req.argc() == 3).then(|| number(req.arg(2), SLOW_MAX)) {
            None => SHOWN,
            Some(Ok(n)) => n,
            Some(Err(text)) => return self.answer_error(mute, &text),
        };
        let (last, total) = ctx.metrics.slow.last(n);
        let commands = last.iter().map(|slow| {
            vec![
                ("at", stamp::at_ms(slow.at)),
                ("class", slow.class.as_str().to_owned()),
                ("command", slow.command.to_owned()),
                ("key_pattern", ctx.metrics.patterns.name(slow.pattern).to_owned()),
                ("duration_ms", format!("{:.3}", slow.nanos as f64 / 1e6)),
            ]
        });
        let commands: Vec<Fields> = commands.collect();
        let threshold = ctx.metrics.slow.threshold().map_or_else(String::new, |ns| (ns as f64 / 1e6).to_string());
        let head = [("threshold_ms", threshold), ("total", total.to_string())];
        let proto = self.proto();
        self.answer(mute, |out| {
            build::map_or_array(out, proto, head.len() + 1);
            pairs(out, &head);
            maps(out, proto, "commands", &commands);
        });
    }
}

fn maps(out: &mut BytesMut, proto: Proto, field: &str, all: &[Fields]) {
    build::bulk(out, field.as_bytes());
    build::array(out, all.len());
    for fields in all {
        build::map_or_array(out, proto, fields.len());
        pairs(out, fields);
    }
}

fn asked(req: &Request<'_>) -> Result<(By, usize), String> {
    let words: Vec<&[u8]> = (2..req.argc()).map(|i| req.arg(i)).collect();
    let (n, rest) = match words.as_slice() {
        [first, rest @ ..] if !first.eq_ignore_ascii_case(b"by") => (number(first, TOP_MAX)?, rest),
        all => (SHOWN, all),
    };
    match rest {
        [] => Ok((By::Hits, n)),
        [by, word] if by.eq_ignore_ascii_case(b"by") => match By::named(word) {
            Some(by) => Ok((by, n)),
            None => Err(format!("ERR unknown order '{}'; use hits, misses or bytes", String::from_utf8_lossy(word))),
        },
        _ => Err("ERR syntax error, try NEARSIDE TOP [n] [BY hits|misses|bytes]".to_owned()),
    }
}

fn number(word: &[u8], most: usize) -> Result<usize, String> {
    let n = str::from_utf8(word).ok().and_then(|text| text.parse().ok()).filter(|n| (1..=most).contains(n));
    n.ok_or_else(|| format!("ERR '{}' is no number from 1 to {most}", String::from_utf8_lossy(word)))
}
