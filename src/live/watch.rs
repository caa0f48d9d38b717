//! The configuration file as it lies there: looked at twice a second, by content, because what Kubernetes mounts are links
//! that change their target, and times tell little. Looking is left to a thread that may block.

use std::rc::Rc;
use std::time::Duration;

use tokio::time::sleep;

use super::{blocking, file_changed};
use crate::config;
use crate::worker::Ctx;

/// A text counts once it has been the same for this long: an editor writes in pieces, and half a file may be a valid one.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// So many looks in vain, a quarter of a minute, are worth a line in the log.
const AWAY_LOOKS: u32 = 30;

/// For as long as the process runs. Ends at once where there is no file, or one that cannot be read twice.
pub(crate) async fn watch(ctx: Rc<Ctx>) {
    let Some(layers) = ctx.live.origin.get().map(|origin| origin.layers.clone()) else { return };
    let Some(path) = layers.file().filter(|_| layers.can_be_read_again().is_ok()) else { return };
    let (mut before, mut away) = (None, 0);
    loop {
        sleep(LOOK_EVERY).await;
        let looked = path.clone();
        let Ok(found) = blocking(move || config::look(&looked)).await else { return };
        match found {
            Ok(digest) => {
                away = 0;
                let settled = before.replace(digest) == Some(digest);
                if settled && ctx.live.seen.get() != Some(digest) {
                    file_changed(&ctx, digest).await;
                }
            }
            // No change: the next version may be on its way.
            Err(why) => {
                before = None;
                away += 1;
                if away == 1 {
                    tracing::debug!("{} cannot be read just now: {why}", path.display());
                }
                if away == AWAY_LOOKS {
                    tracing::warn!("{}: {why}; the configuration that runs stays", path.display());
                }
            }
        }
    }
}
