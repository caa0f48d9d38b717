//! A large request on its way up, piece by piece as the client sends it. Of its arguments only names and keys are looked at.

use std::rc::Rc;

use bytes::{Buf, BytesMut};

use super::{Broken, KEYS_MAX, Pin, begin_all, flush};
use crate::command::table::{self};
use crate::command::{Effect, Kind, Need, Spec, keys};
use crate::observe::reasons::Dropped;
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
}

impl Pin {
    /// Moves a piece of a large request up. True: something happened.
    pub(super) fn upload(&mut self, ctx: &Rc<Ctx>, client: &mut Client) -> bool {
        let Some(upload) = self.upload.as_mut() else { return false };
        let step = client.scanner.stream(&client.rbuf, &mut |i, arg| upload.saw(ctx, i, arg));
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
        let sent = upload.refused.is_none();
        upload.begun |= sent && step.take > 0;
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
        if sent {
            self.out.extend_from_slice(&client.rbuf[..step.take]);
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
        let kind = spec.map_or(Kind::Other, |s| s.kind);
        if self.queue.is_some() {
            let role = if is_subscription(kind) { Role::Subscription { kind, words: argc - 1 } } else { Role::Plain };
            return Expect::of(What::Queued(Queued { spec, effect, keys: named, message: None, role }), mute);
        }
        self.soiled |= spec.is_none_or(|s| s.need != Need::Lane);
        let what = match kind {
            kind if is_subscription(kind) => What::Subscription { kind, left: Some(argc.saturating_sub(1)) },
            Kind::BlockingPop => What::Blocking,
            _ => What::Command,
        };
        let mut expect = Expect::of(what, mute);
        expect.write = effect != Effect::Read;
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
        }
    }

    /// What the command policy says of it, once it says something: at the first refusal, else at its end.
    fn judged(&mut self, ctx: &Ctx, session: &Session, done: bool) -> Option<String> {
        let judge = self.judge.take_if(|judge| done || judge.is_refused())?;
        session.decide_large(ctx, judge, self.spec)
    }

    /// An argument has passed; those that may be keys are remembered.
    fn saw(&mut self, ctx: &Ctx, i: usize, arg: Option<&[u8]>) {
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
        if let Some(judge) = &mut self.judge {
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
        let Some(spec) = self.spec.filter(|s| i > 0 && keys::is_key_position(s, self.argc, i)) else { return };
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
}
