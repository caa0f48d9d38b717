//! Whether `upstream.key_prefix` is more than a convention: at start the sidecar's own user asks for keys that do not begin
//! with it, on its lane. If upstream answers, an ACL does not bind it to the prefix, and a script that builds names by
//! itself reaches everybody's keys. One line in the log says so. Asks EXISTS, which any user with an ACL of its own may be
//! asked about on every version; nobody needs the right to read ACLs for it.

use std::rc::Rc;

use crate::command::prefix::Prefix;
use crate::observe::clock;
use crate::resp::reply;
use crate::worker::Ctx;

/// Keys that nobody has and that are not the prefix's: one that is nothing like it, and one that differs in its last byte.
pub(crate) fn outside(prefix: &Prefix) -> [Vec<u8>; 2] {
    let other = |text: &[u8]| text.iter().map(|byte| if *byte == b'~' { b'!' } else { b'~' }).collect::<Vec<u8>>();
    let (stem, last) = prefix.text().split_at(prefix.text().len() - 1);
    let rest = b"nearside:prefix-check".to_vec();
    [[other(&prefix.text()[..1]), rest.clone()].concat(), [stem.to_vec(), other(last), rest].concat()]
}

/// Asks in a task of its own, as soon as the lane of the configured user is up.
pub(crate) fn check_prefix(ctx: &Rc<Ctx>) {
    let Some(prefix) = ctx.prefix.clone() else { return };
    let ctx = ctx.clone();
    tokio::task::spawn_local(async move {
        let lane = ctx.lane(&ctx.default_profile);
        while !lane.is_ready() && !lane.is_over() {
            lane.changed.notified().await;
        }
        for key in outside(&prefix) {
            match lane.inquire(clock::now(), &[b"EXISTS", &key]).await {
                Ok(frame) if reply::integer(&frame).is_some() => {
                    let name = String::from_utf8_lossy(prefix.text()).into_owned();
                    return tracing::warn!(
                        user = %lane.profile.user(),
                        "upstream.key_prefix is {name}, but no ACL binds upstream's user to it: a script that builds names of \
                         keys by itself reaches everybody's. Give the user the keys ~{name}* only"
                    );
                }
                // Refused, as it should be; or lost, and then nothing is known.
                Ok(_) | Err(_) => {}
            }
        }
    });
}
