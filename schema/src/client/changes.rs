//! Which external clients have to be configured anew after a change, and which are cut off by it.

use std::collections::BTreeSet;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Configuration, Unavailable};
use crate::inventory::{Inventory, NodeId};
use crate::kinds::ExternalClient;
use crate::scalars::NetworkName;
use crate::snapshot::{ResourceId, Snapshot};

/// What a change means for whoever has the configuration of an external client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub struct ClientChange {
    /// The client.
    pub id: ResourceId,
    /// What becomes of its configuration.
    pub outcome: ClientOutcome,
    /// What differs in it; empty unless it has to be handed out anew.
    pub fields: Vec<FieldChange>,
    /// Why it is cut off, or awaited; null otherwise.
    pub because: Option<String>,
}

/// What becomes of the configuration of an external client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ClientOutcome {
    /// There is one from now on.
    New,
    /// It differs from the one that was handed out, and has to be handed out anew.
    Anew,
    /// It is of no use any more.
    CutOff,
    /// The client is declared, and something else is missing.
    Awaited,
}

/// A field of the configuration of an external client that changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub struct FieldChange {
    /// As wg-quick(8) calls it; `public-key` is the client's own.
    pub name: String,
    /// What it held; empty: it was absent.
    pub before: Vec<String>,
    /// What it holds; empty: it is absent.
    pub after: Vec<String>,
}

/// What a change of a network means for its external clients.
pub fn between(
    network: &NetworkName,
    before: (&Snapshot, &Inventory),
    after: (&Snapshot, &Inventory),
) -> Vec<ClientChange> {
    let declared = [before.0, after.0].into_iter().flat_map(|all| all.all_in::<ExternalClient>(network));
    let ids: BTreeSet<&ResourceId> = declared.map(|(id, _)| id).collect();
    ids.into_iter().filter_map(|id| change(id, before, after)).collect()
}

fn change(
    id: &ResourceId,
    before: (&Snapshot, &Inventory),
    after: (&Snapshot, &Inventory),
) -> Option<ClientChange> {
    let client = id.node();
    let declaration = |(declared, _): (&Snapshot, &Inventory)| {
        declared.named::<ExternalClient>(&id.network, &id.name).cloned()
    };
    let (had, has) = (declaration(before), declaration(after));
    let key = |client: &Option<Arc<ExternalClient>>| client.as_ref()?.public_key;
    let (old_key, new_key) = (key(&had), key(&has));
    let of = |at: (&Snapshot, &Inventory)| Configuration::of(&client, at.0, at.1);
    let outcome = |outcome, fields, because| Some(ClientChange { id: id.clone(), outcome, fields, because });
    match (of(before), of(after)) {
        (Ok(_), Ok(_)) if old_key.is_some() && new_key.is_none() => {
            outcome(ClientOutcome::CutOff, Vec::new(), Some("its public-key is removed".into()))
        }
        // Who has no key was not configured.
        (Ok(_), Ok(_)) if new_key.is_none() => None,
        (Ok(old), Ok(new)) => {
            let own = old_key.map(|key| key.to_string()).zip(new_key.map(|key| key.to_string()));
            let own = own.filter(|(old, new)| old != new).map(|(before, after)| FieldChange {
                name: "public-key".into(),
                before: vec![before],
                after: vec![after],
            });
            let fields: Vec<_> = own.into_iter().chain(differences(&old, &new)).collect();
            if fields.is_empty() { None } else { outcome(ClientOutcome::Anew, fields, None) }
        }
        (Ok(_), Err(why)) => {
            old_key.and_then(|_| outcome(ClientOutcome::CutOff, Vec::new(), Some(reason(&client, &why))))
        }
        (Err(_), Ok(_)) => outcome(ClientOutcome::New, Vec::new(), None),
        (Err(_), Err(why)) if had.is_none() => {
            outcome(ClientOutcome::Awaited, Vec::new(), Some(reason(&client, &why)))
        }
        (Err(_), Err(_)) => None,
    }
}

/// The fields that differ, in the order of the file.
fn differences(old: &Configuration, new: &Configuration) -> Vec<FieldChange> {
    let fields = |of: &Configuration| of.own().into_iter().chain(of.peer()).collect::<Vec<_>>();
    let (old, new) = (fields(old), fields(new));
    let values = |of: &[(&str, Vec<String>)], name: &str| {
        of.iter().find(|(field, _)| *field == name).map(|(_, values)| values.clone()).unwrap_or_default()
    };
    let mut names: Vec<&str> = new.iter().map(|(name, _)| *name).collect();
    names.extend(old.iter().map(|(name, _)| *name).filter(|name| new.iter().all(|(field, _)| field != name)));
    let change = |name: &str| {
        let (before, after) = (values(&old, name), values(&new, name));
        (before != after).then(|| FieldChange { name: name.into(), before, after })
    };
    names.into_iter().filter_map(change).collect()
}

/// Why a client has no configuration, said of it.
fn reason(client: &NodeId, why: &Unavailable) -> String {
    match why {
        Unavailable::NotApplied(id) if id.node() == *client => "its declaration is deleted".into(),
        Unavailable::Disabled(_) => "it is disabled".into(),
        Unavailable::Expired(_) => "it has expired".into(),
        Unavailable::NoAddress(_) => "the network has no address for it".into(),
        Unavailable::NotApplied(_) | Unavailable::NotJoined { .. } | Unavailable::NoEndpoint { .. } => {
            why.to_string()
        }
    }
}
