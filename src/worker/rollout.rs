//! Lets the time of rollouts pass: a task of the data thread that asks their guards and ramps, and carries a change out as a
//! change of the rules.

use std::rc::Rc;
use std::time::Duration;

use super::Ctx;
use crate::config;
use crate::observe::clock;
use crate::observe::events::Actor;
use crate::observe::reasons::{EventKind, RolloutChange};
use crate::policy::{Act, Change, Rules};

/// A guard's window and a ramp's step last a second at least; this is how late they may end.
const TICK: Duration = Duration::from_millis(250);

/// Without a ramp or guard there is nothing to be late for; a reload may bring one.
const REST: Duration = Duration::from_secs(2);

pub(crate) async fn run(ctx: Rc<Ctx>) {
    loop {
        let moves = ctx.experiments.borrow().move_by_themselves();
        tokio::time::sleep(if moves { TICK } else { REST }).await;
        tick(&ctx).await;
    }
}

async fn tick(ctx: &Rc<Ctx>) {
    let changes = {
        let rules = ctx.rules.load();
        ctx.experiments.borrow_mut().tick(clock::now(), &rules, &ctx.metrics.arms)
    };
    if changes.is_empty() {
        return;
    }
    // In the same step: no other rules come into force between the look and the change.
    let dropped = ctx.set_rules(again(ctx)).await;
    changes.iter().for_each(|change| announce(ctx, change, dropped));
}

/// The rules in force, to be told anew how much of them is cached.
fn again(ctx: &Ctx) -> Rules {
    let terms: Vec<config::Rule> = ctx.rules.load().list().iter().map(|rule| rule.terms.clone()).collect();
    Rules::new(&terms, &ctx.config.cache, &ctx.metrics.patterns)
}

fn record(ctx: &Ctx, message: &str, dropped: usize) {
    let actor = Actor::Own("rollout");
    ctx.status.events.add(EventKind::Rollout, &actor, message, vec![("dropped", dropped.to_string())]);
}

fn announce(ctx: &Ctx, change: &Change, dropped: usize) {
    let rule = &change.rule;
    match &change.act {
        Act::Step(share) => {
            ctx.metrics.rollout.inc(RolloutChange::Step);
            let percent = config::show_percent(*share);
            tracing::info!("rule {rule}: {percent} % of its keys are cached now, as its ramp says");
            record(ctx, &format!("rule {rule}: {percent} % of its keys are cached"), dropped);
        }
        Act::RollBack(why) => {
            ctx.metrics.rollout.inc(RolloutChange::RollBack);
            tracing::warn!(
                "rule {rule}: rolled back, none of its keys are cached any more ({dropped} entries dropped) until its \
                 rollout is changed: {why}"
            );
            record(ctx, &format!("rule {rule} rolled back: {why}"), dropped);
        }
        Act::Nothing | Act::NextWindow => {}
    }
}
