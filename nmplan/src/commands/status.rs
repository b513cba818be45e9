//! `nmplan status`: shows the state of the nodes.

use jiff::Timestamp;

use super::{Run, networks};
use crate::control::ControlPlane;
use crate::error::{Error, Exit};
use crate::project;
use crate::render;

/// Shows the nodes.
pub async fn run<C: ControlPlane>(run: &mut Run<'_, C>) -> Result<Exit, Error> {
    let server = (run.connect)(project::server(&run.place)?.as_deref())?;
    let what = format!("asking {}", server.name());
    let mut status = run.console.waiting(&what, server.status()).await?;
    if let Some(only) = &run.only {
        status.nodes.retain(|node| node.id.split('/').next() == Some(only.as_str()));
        status.keys.retain(|key| key.id.network == *only);
        status.egress.retain(|egress| egress.id.network == *only);
        status.relays.retain(|relay| relay.id.network == *only);
    }
    // A network without nodes and an unknown network look the same in a status.
    if run.only.is_some() && status.nodes.is_empty() {
        let (_, world) = run.observe(&server).await?;
        run.check_network(networks(&world.snapshot).collect())?;
    }
    let text = if run.console.json {
        serde_json::to_string(&status).expect("a status can be written as JSON") + "\n"
    } else {
        render::status(&status, server.name(), Timestamp::now(), run.console.columns)
    };
    run.console.stdout(&text)?;
    Ok(Exit::Done)
}
