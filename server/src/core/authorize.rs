//! Which roles may do what: one table for REST and gRPC together. What is not in it is refused.
//!
//! Pure. The adapters are built from the table, so there is no route without a rule here, and the OpenAPI
//! file is generated from it.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use schema::scalars::{Name, NetworkName};
use schema::snapshot::{Owner, ResourceId};
use serde::{Deserialize, Serialize};

/// What a token may do; each role may do what the ones before it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Read: snapshot, status, history; that is all that `nmplan plan` needs.
    Viewer,
    /// Apply, and change single resources and nodes.
    Applier,
    /// Everything, tokens included.
    Admin,
}

/// A role, and where it is valid.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// The role.
    pub role: Role,
    /// The networks that it is valid for; absent: all.
    pub networks: Option<BTreeSet<NetworkName>>,
    /// The projects that it may apply for; absent: all.
    pub projects: Option<BTreeSet<ProjectScope>>,
}

/// A project that a token is for, in all of its envs or in one: `acme`, or `acme/prod` as tables show it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ProjectScope {
    /// The project.
    pub project: Name,
    /// Its env; absent: all.
    pub env: Option<Name>,
}

impl ProjectScope {
    /// Whether it is of this owner.
    pub fn holds(&self, owner: &Owner) -> bool {
        self.project == owner.project && self.env.as_ref().is_none_or(|env| *env == owner.env)
    }
}

impl fmt::Display for ProjectScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { project, env } = self;
        write!(f, "{project}")?;
        env.as_ref().map_or(Ok(()), |env| write!(f, "/{env}"))
    }
}

impl FromStr for ProjectScope {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (project, env) = text.split_once('/').map_or((text, None), |(project, env)| (project, Some(env)));
        Ok(Self { project: project.parse()?, env: env.map(str::parse).transpose()? })
    }
}

impl TryFrom<String> for ProjectScope {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<ProjectScope> for String {
    fn from(scope: ProjectScope) -> Self {
        scope.to_string()
    }
}

/// What a caller must send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needs {
    /// Nothing.
    Nothing,
    /// A bearer token of this role.
    Role(Role),
    /// The session of a node; its identity then decides.
    Session,
    /// Signatures inside the request, checked by the operation.
    Signature,
}

/// Everything that the server can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[expect(missing_docs, reason = "the table below documents each")]
pub enum Operation {
    Health,
    Ready,
    Server,
    OpenApi,
    Snapshot,
    Status,
    Revisions,
    Apply,
    GetResource,
    PutResource,
    DeleteResource,
    RemoveNode,
    LiftBan,
    ApprovePending,
    DropPending,
    Identify,
    Challenge,
    Register,
    Join,
    OpenSession,
    GetPeers,
    CheckIn,
    Watch,
    Leave,
}

/// How an operation is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// Over HTTP: method and path, with `{parameters}`.
    Rest(&'static str, &'static str),
    /// Over gRPC: the method of the agent's service.
    Grpc(&'static str),
}

/// One rule of the table.
#[derive(Clone, Copy, Debug)]
pub struct Rule {
    /// The operation.
    pub operation: Operation,
    /// How it is called.
    pub call: Call,
    /// What it needs.
    pub needs: Needs,
    /// What it does.
    pub doc: &'static str,
}

const fn rule(operation: Operation, call: Call, needs: Needs, doc: &'static str) -> Rule {
    Rule { operation, call, needs, doc }
}

use Call::{Grpc, Rest};
use Needs::{Nothing, Session, Signature};
use Role::{Admin, Applier, Viewer};

/// The table.
pub const TABLE: &[Rule] = &[
    rule(Operation::Health, Rest("get", "/healthz"), Nothing, "Answers 200 while the process runs."),
    rule(Operation::Ready, Rest("get", "/readyz"), Nothing, "Answers 200 once the server serves."),
    rule(
        Operation::Server,
        Rest("get", "/api/v1/server"),
        Nothing,
        "The identity of the server, and the keys that pin it.",
    ),
    rule(Operation::OpenApi, Rest("get", "/api/v1/openapi.json"), Nothing, "This description."),
    rule(
        Operation::Snapshot,
        Rest("get", "/api/v1/snapshot"),
        Needs::Role(Viewer),
        "Everything at the newest revision, with an ETag.",
    ),
    rule(
        Operation::Status,
        Rest("get", "/api/v1/status"),
        Needs::Role(Viewer),
        "The nodes, when they last checked in, and the revisions that they have.",
    ),
    rule(
        Operation::Revisions,
        Rest("get", "/api/v1/revisions"),
        Needs::Role(Viewer),
        "The revision log above `after`, at most `limit` entries.",
    ),
    rule(
        Operation::Apply,
        Rest("post", "/api/v1/apply"),
        Needs::Role(Applier),
        "Applies a plan as one revision, or nothing of it.",
    ),
    rule(
        Operation::GetResource,
        Rest("get", "/api/v1/{network}/{kind}/{name}"),
        Needs::Role(Viewer),
        "One resource, with its revision as ETag.",
    ),
    rule(
        Operation::PutResource,
        Rest("put", "/api/v1/{network}/{kind}/{name}"),
        Needs::Role(Applier),
        "Creates or replaces one resource; `If-Match` with its revision, or `If-None-Match: *`, is needed.",
    ),
    rule(
        Operation::DeleteResource,
        Rest("delete", "/api/v1/{network}/{kind}/{name}"),
        Needs::Role(Applier),
        "Deletes one resource; `If-Match` is needed.",
    ),
    rule(
        Operation::RemoveNode,
        Rest("delete", "/api/v1/{network}/node/{name}/host"),
        Needs::Role(Applier),
        "Removes a node from a network: its peers drop it at once, and its agent removes what it set up. Says which access key \
         still lets its host join again; `ban=true` bars the host's identity from the network.",
    ),
    rule(
        Operation::LiftBan,
        Rest("delete", "/api/v1/{network}/node/{name}/ban"),
        Needs::Role(Applier),
        "Lets the hosts join again that were removed as that node with `ban=true`.",
    ),
    rule(
        Operation::ApprovePending,
        Rest("put", "/api/v1/{network}/pending/{fingerprint}"),
        Needs::Role(Applier),
        "Lets a host in that asked to join without an access key and waits, as the node `name`; by the fingerprint of its \
         identity.",
    ),
    rule(
        Operation::DropPending,
        Rest("delete", "/api/v1/{network}/pending/{fingerprint}"),
        Needs::Role(Applier),
        "Drops a host that waits; `ban=true` bars its identity from the network, so that it cannot ask again.",
    ),
    rule(Operation::Identify, Grpc("Identify"), Nothing, "The key that signs what the server sends."),
    rule(Operation::Challenge, Grpc("Challenge"), Nothing, "A nonce to sign."),
    rule(Operation::Register, Grpc("Register"), Signature, "Asks for a tunnel to the server."),
    rule(
        Operation::Join,
        Grpc("Join"),
        Signature,
        "Enters a network with an access key, or waits to be let in without one.",
    ),
    rule(Operation::OpenSession, Grpc("OpenSession"), Signature, "Opens a node's session."),
    rule(Operation::GetPeers, Grpc("GetPeers"), Session, "The whole View."),
    rule(Operation::CheckIn, Grpc("CheckIn"), Session, "What the node lacks."),
    rule(Operation::Watch, Grpc("Watch"), Session, "Every change at once."),
    rule(Operation::Leave, Grpc("Leave"), Signature, "Leaves a network."),
];

/// The rule of an operation.
pub fn rule_of(operation: Operation) -> &'static Rule {
    TABLE.iter().find(|rule| rule.operation == operation).expect("every operation has a rule in the table")
}

/// Why a grant is not sufficient.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// The role is too low.
    #[error("this needs the role {needed}, but the token has {has}")]
    Role {
        /// What is needed.
        needed: Role,
        /// What the token has.
        has: Role,
    },
    /// The role is not valid for that network.
    #[error("the token is not valid for the network {0}")]
    Network(NetworkName),
    /// The role is not valid for that project.
    #[error("the token is not valid for the project of {0}")]
    Project(Owner),
    /// The role is valid for certain projects, and no project manages the resource.
    #[error("the token is valid only for certain projects, and no project manages {0}")]
    Unmanaged(ResourceId),
    /// The role is valid for certain networks, and the project manages something in others.
    #[error(
        "the token is not valid for all that the guard of {0} is about; leave it as it is: nmplan apply --network NETWORK"
    )]
    Guard(Owner),
}

impl Grant {
    /// Everything, everywhere.
    pub fn admin() -> Self {
        Self { role: Admin, networks: None, projects: None }
    }

    /// Whether it is sufficient for an operation anywhere.
    pub fn allows(&self, operation: Operation) -> Result<(), Denied> {
        match rule_of(operation).needs {
            Needs::Role(needed) => self.holds_role(needed),
            Nothing | Session | Signature => Ok(()),
        }
    }

    /// Whether its role is at least this one.
    pub fn holds_role(&self, needed: Role) -> Result<(), Denied> {
        if self.role < needed { Err(Denied::Role { needed, has: self.role }) } else { Ok(()) }
    }

    /// Whether it is valid for a network.
    pub fn holds_in(&self, network: &NetworkName) -> Result<(), Denied> {
        let there = self.networks.as_ref().is_none_or(|networks| networks.contains(network));
        if there { Ok(()) } else { Err(Denied::Network(network.clone())) }
    }

    /// Whether it is valid for the project of an owner.
    pub fn holds_for(&self, owner: &Owner) -> Result<(), Denied> {
        let there =
            self.projects.as_ref().is_none_or(|projects| projects.iter().any(|scope| scope.holds(owner)));
        if there { Ok(()) } else { Err(Denied::Project(owner.clone())) }
    }

    /// Whether it is valid for the owner of a resource.
    pub fn holds_over(&self, id: &ResourceId, owner: Option<&Owner>) -> Result<(), Denied> {
        match owner {
            Some(owner) => self.holds_for(owner),
            None if self.projects.is_none() => Ok(()),
            None => Err(Denied::Unmanaged(id.clone())),
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Viewer => "viewer",
            Applier => "applier",
            Admin => "admin",
        })
    }
}

impl FromStr for Role {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = [Viewer, Applier, Admin].into_iter().find(|role| role.to_string() == text);
        found.ok_or_else(|| format!("{text:?} is not a valid role; there are viewer, applier and admin"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_operation_has_one_line_and_every_call_is_its_own() {
        let operations: BTreeSet<_> = TABLE.iter().map(|rule| rule.operation).collect();
        assert_eq!(operations.len(), TABLE.len());
        let calls: BTreeSet<_> = TABLE.iter().map(|rule| format!("{:?}", rule.call)).collect();
        assert_eq!(calls.len(), TABLE.len());
    }

    #[test]
    fn only_these_are_open() {
        let open = TABLE.iter().filter(|rule| rule.needs == Nothing).map(|rule| rule.operation);
        let expected = [
            Operation::Health,
            Operation::Ready,
            Operation::Server,
            Operation::OpenApi,
            Operation::Identify,
            Operation::Challenge,
        ];
        assert_eq!(open.collect::<Vec<_>>(), expected);
    }

    #[test]
    fn each_role_may_do_what_its_line_says_and_no_more() {
        for role in [Viewer, Applier, Admin] {
            let grant = Grant { role, networks: None, projects: None };
            for Rule { operation, needs, .. } in TABLE {
                let expected = !matches!(needs, Needs::Role(needed) if role < *needed);
                assert_eq!(grant.allows(*operation).is_ok(), expected, "{role} and {operation:?}");
            }
        }
    }

    fn scope(text: &str) -> ProjectScope {
        text.parse().expect("good")
    }

    #[test]
    fn a_project_is_named_as_tables_show_it_with_or_without_its_env() {
        for text in ["acme", "acme/prod"] {
            assert_eq!(scope(text).to_string(), text);
            let stored = serde_json::to_string(&scope(text)).expect("JSON");
            assert_eq!(stored, format!("{text:?}"), "tokens of earlier versions hold the project alone");
            assert_eq!(serde_json::from_str::<ProjectScope>(&stored).expect("it reads back"), scope(text));
        }
        for text in ["", "acme/", "/prod", "acme/prod/x", "a b"] {
            assert!(text.parse::<ProjectScope>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_grant_holds_only_where_it_is_given() {
        let corp: NetworkName = "corp".parse().expect("good");
        let networks = Some(BTreeSet::from([corp.clone()]));
        let projects = Some(BTreeSet::from([scope("acme")]));
        let grant = Grant { role: Applier, networks, projects };
        assert_eq!(grant.holds_in(&corp), Ok(()));
        assert!(grant.holds_in(&"prod".parse().expect("good")).is_err());
        assert_eq!(grant.holds_for(&"acme/prod".parse().expect("good")), Ok(()));
        assert!(grant.holds_for(&"acme-2/prod".parse().expect("good")).is_err());
        let of_one_env = Grant { projects: Some([scope("acme/prod")].into()), ..grant.clone() };
        assert_eq!(of_one_env.holds_for(&"acme/prod".parse().expect("good")), Ok(()));
        assert!(of_one_env.holds_for(&"acme/dev".parse().expect("good")).is_err());
        let id = "corp/dns/api".parse().expect("good");
        assert_eq!(grant.holds_over(&id, Some(&"acme/prod".parse().expect("good"))), Ok(()));
        assert_eq!(grant.holds_over(&id, None), Err(Denied::Unmanaged(id.clone())));
        assert_eq!(Grant::admin().holds_over(&id, None), Ok(()));
    }
}
