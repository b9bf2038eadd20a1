//! Exceptions end by themselves.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::jiff::Timestamp;
use kumiko_lab::Net;
use kumiko_lab::command::wait_for;

use super::documents::{BASELINE, EXCEPTION};
use super::world::{OPEN, Open, SHUT, within};

/// In so long.
fn soon(seconds: u64) -> Timestamp {
    Timestamp::now() + Duration::from_secs(seconds)
}

/// A baseline, and an exception from it that ends then.
fn until(end: Timestamp, on_expiry: &str) -> String {
    let exception = EXCEPTION.replace("{expires}", &end.to_string()).replace("{on_expiry}", on_expiry);
    format!("{BASELINE}{exception}")
}

/// The kernel knows when an exception ends.
pub(super) fn without_agent() -> Result<()> {
    within("ended", Net::Routed, |world| {
        world.apply(&until(soon(3_600), "cut"))?;
        world.all(&[(("other-1", "server-1", OPEN), true)])?;
        let end = soon(10);
        world.apply(&until(end, "cut")).context("an exception that ends")?;
        let mut by_exception = world.open(("other-1", "server-1", OPEN), true)?;
        let mut by_rule = world.open(("client-1", "server-1", OPEN), true)?;
        // The agent carries what goes by a Service, and between pods of one node nothing else.
        [&mut by_exception, &mut by_rule].into_iter().for_each(|all| all.retain(|open| !open.by_service));
        world.lab.kill_agent(1)?;
        for open in &mut by_exception {
            let asked = open.check();
            ensure!(asked.is_ok() || Timestamp::now() >= end, "before the end: {asked:?}");
            open.stays = false;
        }
        wait_for("the exception has ended", Duration::from_secs(40), || {
            world.check_by_pod(("other-1", "server-1", OPEN), false)
        })?;
        by_exception.iter_mut().try_for_each(Open::check).context("open by the exception")?;
        // Others go on.
        by_rule.iter_mut().try_for_each(Open::check).context("open by a rule")?;
        world.check_by_pod(("client-1", "server-1", OPEN), true)?;
        world.lab.start_agent(1)?;
        world.all(&[(("other-1", "server-1", OPEN), false), (("client-1", "server-1", OPEN), true)])
    })
}

pub(super) fn exceptions() -> Result<()> {
    within("ends", Net::Routed, |world| {
        let suspended = [
            (("other-1", "server-1", OPEN), true),
            (("other-1", "server-2", OPEN), true),
            (("other-1", "server-1", SHUT), false),
            (("other-1", "server-2", SHUT), false),
        ];
        let over = suspended.map(|(one, _)| (one, false));
        world.apply(&until(soon(3_600), "cut")).context("an exception")?;
        world.all(&suspended)?;
        for (on_expiry, stays) in [("keep", true), ("cut", false)] {
            world.apply(&until(soon(15), on_expiry)).context("an exception that ends")?;
            let (mut open, before) = (Vec::new(), world.judged()?);
            for (one, _) in suspended.iter().filter(|(_, allowed)| *allowed) {
                open.extend(world.open(*one, stays)?);
            }
            wait_for("the exception has ended", Duration::from_secs(20), || world.all(&over))?;
            wait_for("open flows were looked at", Duration::from_secs(20), || {
                let now = world.judged()?;
                ensure!(now.iter().zip(&before).all(|(now, before)| now > before), "{before:?}, {now:?}");
                Ok(())
            })?;
            open.iter_mut().try_for_each(Open::check).with_context(|| format!("onExpiry: {on_expiry}"))?;
        }
        Ok(())
    })
}
