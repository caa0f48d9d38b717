//! A large request on its way up, piece by piece as the client sends it. Of its arguments only names and keys are looked at.

use std::rc::Rc;

use bytes::{Buf, BytesMut};

use super::{Broken, KEYS_MAX, Pin, begin_all, flush};
use crate::command::prefix::{self, Prefix};
use crate::command::strip::Strip;
use crate::command::table::{self};
use crate::command::{Effect, Kind, Need, Spec, keys};
use crate::observe::reasons::Dropped;
use crate::resp::build;
use crate::resp::request::Piece;
use crate::router;
use crate::session::gate::LargeJudge;
use crate::session::transaction::{Expect, Queued, Role, What, is_subscription};
use crate::session::{BACKPRESSURE, Client, Session};
use crate::worker::Ctx;

/// A large request on its way up.
pub(super) struct Upload {
    spec: Option<&'static Spec>,
    argc: usize,
    name: Vec<u8>,
    keys: Vec<Box<[u8]>>,
    key_bytes: usize,
    mute: bool,
    /// Who says whether it may run, where there is a command policy.
    judge: Option<LargeJudge>,
    /// It may not run: nothing of it is sent.
    refused: Option<String>,
    /// Some of it has been sent.
    begun: bool,
    /// With `upstream.key_prefix`: what goes up for what has come.
    own: OwnUpload,
}

/// A large request is written anew where its keys get a prefix.
#[derive(Default)]
struct OwnUpload {
    written: BytesMut,
    /// Keys that its count says there are.
    counted: usize,
    /// Which of its words are keys cannot be told.
    refused: bool,
}

impl Pin {
    /// Moves a piece of a large request up. True: something happened.
    pub(super) fn upload(&mut self, ctx: &Rc<Ctx>, client: &mut Client) -> bool {
        let Some(upload) = self.upload.as_mut() else { return false };
        let step = match &ctx.prefix {
            None => client.scanner.stream(&client.rbuf, &mut |i, arg| upload.saw(ctx, i, arg)),
            Some(own) => client.scanner.stream_pieces(&client.rbuf, &mut |piece| upload.rewrite(ctx, own, piece)),
        };
        let step = match step {
            Ok(step) => step,
            Err(e) => {
                self.broken = Some(Broken::Protocol(e));
                return true;
            }
        };
        if let Some(why) = upload.judged(ctx, &client.session, step.done) {
            if upload.begun {
                // Upstream waits for the rest, which must not come: its connection ends with the client's.
                self.upload = None;
                self.broken = Some(Broken::Refused(why));
                return true;
            }
            upload.refused = Some(why);
        }
        let refused = upload.spec.and_then(|spec| router::refused(spec, ctx.config.commands.shutdown));
        if let Some(why) = refused {
            // Nothing of it has been sent, and the rest of it cannot be told from new requests without reading it.
            client.session.drop_for(ctx, Dropped::Protocol, why);
            return false;
        }
        if upload.own.refused && upload.refused.is_none() {
            upload.refused = Some(prefix::large_refusal(upload.spec));
        }
        // What is refused is read to its end, and nothing of it goes up.
        let sent = upload.refused.is_none();
        upload.begun |= sent && step.take > 0;
        let rewritten = upload.own.written.split();
        if step.done {
            // R20: the L1's side begins when the last byte is about to be sent.
            let upload = self.upload.take().expect("an upload is under way");
            match upload.refused {
                Some(why) => self.stand_in(why.into(), upload.mute),
                None => {
                    let expect = self.uploaded(ctx, &client.session, upload);
                    self.expect.push_back(expect);
                }
            }
        }
        match ctx.prefix {
            _ if !sent => {}
            None => self.out.extend_from_slice(&client.rbuf[..step.take]),
            Some(_) => self.out.unsplit(rewritten),
        }
        client.rbuf.advance(step.take);
        if client.rbuf.is_empty() && client.rbuf.capacity() > BACKPRESSURE {
            client.rbuf = BytesMut::new();
        }
        step.take > 0 || step.done
    }

    pub(super) fn uploaded(&mut self, ctx: &Rc<Ctx>, session: &Session, upload: Upload) -> Expect {
        let Upload { spec, keys: named, key_bytes, mute, argc, .. } = upload;
        let effect = spec.map_or(Effect::Opaque, |s| s.effect);
        ctx.watch_writes(effect, named.iter().map(|key| &**key));
        let kind = spec.map_or(Kind::Other, |s| s.kind);
        if self.queue.is_some() {
            let role = if is_subscription(kind) { Role::Subscription { kind, words: argc - 1 } } else { Role::Plain };
            let strip = spec.map_or(Strip::None, prefix::strip);
            return Expect::of(What::Queued(Queued { spec, effect, keys: named, message: None, role, strip }), mute);
        }
        self.soiled |= spec.is_none_or(|s| s.need != Need::Lane);
        let what = match kind {
            kind if is_subscription(kind) => What::Subscription { kind, left: Some(argc.saturating_sub(1)) },
            Kind::BlockingPop => What::Blocking,
            _ => What::Command,
        };
        let mut expect = Expect::of(what, mute);
        expect.write = effect != Effect::Read;
        expect.strip = spec.map_or(Strip::None, prefix::strip);
        expect.unseen = expect.write && !ctx.cache_serves();
        if ctx.cache_serves() && effect != Effect::Read {
            if key_bytes > KEYS_MAX || matches!(effect, Effect::Flush | Effect::SwapDb) {
                flush(ctx, spec);
                expect.flush = true;
            }
            expect.tell = super::tells(ctx, session, &named, expect.flush);
            expect.ends = begin_all(ctx, &named);
            expect.hold = effect == Effect::Opaque || matches!(expect.what, What::Blocking);
        }
        expect
    }
}

impl Upload {
    pub(super) fn new(ctx: &Ctx, client: &Client) -> Upload {
        let session = &client.session;
        let refused = session.spend(ctx, None);
        Upload {
            judge: if refused.is_none() { session.judge_large(ctx) } else { None },
            refused,
            begun: false,
            spec: None,
            argc: client.scanner.argc_declared(),
            name: Vec::new(),
            keys: Vec::new(),
            key_bytes: 0,
            mute: session.state.borrow_mut().mute(),
            own: OwnUpload::default(),
        }
    }

    /// What the command policy says of it, once it says something: at the first refusal, else at its end.
    fn judged(&mut self, ctx: &Ctx, session: &Session, done: bool) -> Option<String> {
        let judge = self.judge.take_if(|judge| done || judge.is_refused())?;
        session.decide_large(ctx, judge, self.spec)
    }

    /// An argument has passed; those that may be keys are remembered.
    fn saw(&mut self, ctx: &Ctx, i: usize, arg: Option<&[u8]>) {
        self.is_named(i, arg);
        self.is_judged(ctx, i, arg);
        if let Some(spec) = self.spec.filter(|s| i > 0 && keys::is_key_position(s, self.argc, i)) {
            self.remember(spec, arg);
        }
    }

    /// Its first words say what it is.
    fn is_named(&mut self, i: usize, arg: Option<&[u8]>) {
        match (i, arg) {
            (0, Some(name)) => {
                self.name = name.to_vec();
                self.spec = table::by_name(name);
            }
            (1, Some(sub)) if self.spec.is_none() => {
                let full = [&self.name, &b"|"[..], sub].concat();
                self.spec = table::by_name(&full);
            }
            _ => {}
        }
    }

    /// The command policy looks at names and keys, as the client has them.
    fn is_judged(&mut self, ctx: &Ctx, i: usize, arg: Option<&[u8]>) {
        let Some(judge) = &mut self.judge else { return };
        match (i, self.spec) {
            // Of a container the next argument says which command it is.
            (0, None) if self.argc > 1 && table::is_container(&self.name) => {}
            (0, spec) => judge.named(ctx, spec, &[arg.unwrap_or(&self.name)]),
            (1, spec) if table::is_container(&self.name) => {
                judge.named(ctx, spec, &[&self.name, arg.unwrap_or_default()])
            }
            (_, Some(spec)) => judge.passed(spec, self.argc, i, arg),
            (_, None) => {}
        }
    }

    /// A key; none: one of more than 64 KiB.
    fn remember(&mut self, spec: &Spec, arg: Option<&[u8]>) {
        match arg {
            Some(key) if spec.effect != Effect::Read => {
                self.key_bytes += key.len();
                if self.key_bytes <= KEYS_MAX {
                    self.keys.push(key.into());
                }
            }
            // A key of more than 64 KiB cannot be dropped by name.
            None => self.key_bytes = KEYS_MAX + 1,
            Some(_) => {}
        }
    }

    /// A piece has come: what goes up for it.
    fn rewrite(&mut self, ctx: &Ctx, own: &Prefix, piece: Piece<'_>) {
        match piece {
            Piece::Count(argc) => build::array(&mut self.own.written, argc),
            Piece::Part(bytes) => self.own.written.extend_from_slice(bytes),
            Piece::Over(_) => {}
            Piece::Whole(i, arg) => {
                self.is_named(i, Some(arg));
                self.is_judged(ctx, i, Some(arg));
                let key = self.is_key(i);
                build::bulk_of(&mut self.own.written, [if key { own.text() } else { b"" }, arg, b""]);
                let Some(spec) = self.spec else { return };
                self.own.counted = prefix::counted(spec, i, arg).unwrap_or(self.own.counted);
                if key {
                    self.remember(spec, Some(&own.key(arg)));
                }
            }
            Piece::Long(i, len) => {
                self.is_judged(ctx, i, None);
                self.rewrite_long(own, i, len);
            }
        }
    }

    fn rewrite_long(&mut self, own: &Prefix, i: usize, len: usize) {
        if !self.is_key(i) {
            return build::header(&mut self.own.written, b'$', len);
        }
        build::header(&mut self.own.written, b'$', len + own.text().len());
        self.own.written.extend_from_slice(own.text());
        if let Some(spec) = self.spec {
            self.remember(spec, None);
        }
    }

    /// Whether argument `i` is a key, where that can be told; else the request is refused. Nothing of it has been sent then: a
    /// name is there before anything is.
    fn is_key(&mut self, i: usize) -> bool {
        let container = i == 0 && self.spec.is_none() && !self.name.is_empty();
        let is_key = self.spec.and_then(|spec| prefix::key_in_part(spec, self.argc, i, self.own.counted));
        self.own.refused |= is_key.is_none() && !container;
        i > 0 && is_key.unwrap_or(false)
    }
}
