//! What `--json` prints: one event per line. `schema/events.schema.json` describes them, and is generated
//! from them.

use schema::access::Protocol;
use schema::api::{Finding, NodeStatus};
use schema::client::ClientChange;
use schema::compile::carrying::CarryingChange;
use schema::diff::{self, Action, Change};
use schema::impact::NodeImpact;
use schema::judge::{Counterexample, Outcome, Verdict};
use schema::limits::GuardChange;
use schema::plan::{PendingChange, Plan, Summary};
use schema::report::{Problem, Severity};
use schema::scalars::NetworkName;
use schema::snapshot::{ResourceId, Revision};
use schema::source_map::SourceMap;
use schema::syntax::Source;
use schema::value::{Location, Value};
use schemars::JsonSchema;
use serde::Serialize;

use crate::control::ControlError;
use crate::error::{Error, Exit};
use crate::render::Lines;

/// The version of the events; raised when an older reader would misread them.
pub const VERSION: &str = "2.0";

/// `nmplan validate|plan|apply --json` prints one such object per line; every other command with `--json`
/// prints a `failure` in place of its document. Later versions may add types and fields; ignore unknown ones.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
#[schemars(extend("title" = format!("One event of nmplan --json, version {VERSION}")))]
pub enum Event<'a> {
    /// The first event: the versions of the program and of the events.
    Version {
        /// The version of the program.
        nmplan: &'a str,
        /// The version of the events.
        #[schemars(extend("const" = VERSION))]
        events: &'a str,
    },
    /// A problem in the files; without a location if it belongs to no file.
    Diagnostic(Diagnostic<'a>),
    /// A resource that changes.
    Change {
        /// The resource.
        id: &'a ResourceId,
        /// What the plan does to it.
        action: Action,
        /// The fields that change.
        fields: Vec<FieldChange<'a>>,
    },
    /// The project's guard, by which the next apply is judged, changes.
    GuardChange(&'a GuardChange),
    /// A node that is affected.
    NodeImpact(&'a NodeImpact),
    /// Nodes that reach each other only after the change, or only before it.
    ReachChange(ReachEvent<'a>),
    /// Another node carries traffic for others, or a node carries something else.
    Carrying(&'a CarryingChange),
    /// What becomes of the configuration of an external client.
    ClientChange(&'a ClientChange),
    /// What becomes of a host that waits to be let in.
    PendingChange(&'a PendingChange),
    /// What becomes of an assertion of a test.
    Assertion(AssertionEvent<'a>),
    /// The totals of the plan.
    Summary(&'a Summary),
    /// The revision that an apply created.
    Revision {
        /// The revision.
        revision: Revision,
        /// Whether an earlier call of the same apply created it.
        already: bool,
    },
    /// The run failed: the last event.
    Failure {
        /// A stable name of the failure: that of a refusal of the server, or one of nmplan's own.
        code: &'a str,
        /// The exit code of the run.
        #[schemars(range(min = 1))]
        exit: u8,
        /// What failed.
        message: String,
        /// The cause at the bottom of it; null if the message has it.
        because: Option<String>,
        /// What to do; null if the message is enough.
        help: Option<String>,
        /// Whether a plan was applied; null if that is unknown.
        applied: Option<bool>,
    },
    /// A node has acknowledged the applied revision; with `--wait`.
    NodeAck {
        /// The node.
        #[schemars(with = "ResourceId")]
        id: &'a str,
        /// The newest revision that it has acknowledged.
        revision: Revision,
    },
}

/// A field that changes.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct FieldChange<'a> {
    /// Its name.
    pub name: &'a str,
    /// The value before; null if it was absent.
    pub before: Option<Value>,
    /// The value after; null if it will be absent.
    pub after: Option<Value>,
}

/// A problem, with its location.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[schemars(inline)]
pub struct Diagnostic<'a> {
    /// The stable name of its code; `nmplan explain CODE` explains it.
    pub code: &'a str,
    /// Its severity.
    pub severity: Severity,
    /// The resource that it is about; null if it is not a single one.
    pub id: Option<&'a str>,
    /// Where it is.
    #[serde(flatten)]
    pub location: Option<SourceLocation<'a>>,
    /// What is wrong.
    pub message: &'a str,
    /// What to do; null if the message is enough.
    pub help: Option<&'a str>,
    /// Related locations.
    pub related: Vec<Related<'a>>,
}

/// A location in a file.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct SourceLocation<'a> {
    /// The file.
    pub file: &'a str,
    /// The line, from 1.
    #[schemars(range(min = 1))]
    pub line: usize,
    /// The character in it, from 1.
    #[schemars(range(min = 1))]
    pub column: usize,
    /// After the last character.
    pub end: Position,
}

/// A position in a file.
#[derive(Clone, Copy, Debug, Serialize, JsonSchema)]
pub struct Position {
    /// The line, from 1.
    #[schemars(range(min = 1))]
    pub line: usize,
    /// The character in it, from 1.
    #[schemars(range(min = 1))]
    pub column: usize,
}

/// A location that is related to a problem.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Related<'a> {
    /// Where.
    #[serde(flatten)]
    pub location: Option<SourceLocation<'a>>,
    /// What is there.
    pub message: &'a str,
}

/// A change of reachability.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[schemars(inline)]
pub struct ReachEvent<'a> {
    /// The network.
    pub network: &'a NetworkName,
    /// Who opens connections: what the rule selects, `*` for every node; the nodes where it is a few of those;
    /// `* but db-1` where a few are missing, else how many: `40 of tag:web`.
    pub from: &'a str,
    /// To whom, likewise.
    pub to: &'a str,
    /// What: `everything`, `tcp 5432`, `everything but tcp 22`.
    pub what: &'a str,
    /// The protocol; null for all, or for several.
    pub proto: Option<Protocol>,
    /// The ports of the protocol, such as `80, 5000-5001`; null for all.
    pub ports: Option<&'a str>,
    /// Whether it is gained or lost.
    pub direction: schema::compile::reach::Direction,
    /// Whether it holds only once nodes that are awaited have joined.
    pub once_joined: bool,
    /// Whether one side is whoever joins with an access key that names no node, however many that may be; such pairs
    /// are not counted.
    pub by_key: bool,
    /// Whether `to` opens the same at `from`; `pairs` then counts both.
    pub both_ways: bool,
    /// How many nodes are on the one side.
    pub from_nodes: u64,
    /// How many nodes are on the other side.
    pub to_nodes: u64,
    /// How many directed pairs of nodes that is.
    pub pairs: u64,
    /// The rule that allows or allowed it; null in a network without rules.
    pub rule: Option<Because<'a>>,
    /// The changes that may cause it: one, where that can be told.
    pub because: Vec<Because<'a>>,
}

/// What becomes of an assertion of a test.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[schemars(inline)]
pub struct AssertionEvent<'a> {
    /// The test.
    pub id: &'a ResourceId,
    /// The assertion in words.
    pub name: &'a str,
    /// Whether it holds; `warns` is one that is about nobody.
    pub outcome: Outcome,
    /// Why it does not hold; null if it does.
    pub message: Option<&'a str>,
    /// Two members for which it does not hold; null if it holds, or there are none.
    pub counterexample: Option<&'a Counterexample>,
    /// How many ordered pairs of members it does not hold for.
    pub pairs: u64,
    /// The file; null if no file declares the test.
    pub file: Option<&'a str>,
    /// The line of the assertion, from 1; null if no file declares the test.
    #[schemars(range(min = 1))]
    pub line: Option<usize>,
    /// The rules by which the two reach each other.
    pub because: Vec<Because<'a>>,
}

/// The change or rule that causes something, and where its resource is declared.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Because<'a> {
    /// The resource.
    pub id: &'a ResourceId,
    /// The file; null if no file declares it.
    pub file: Option<&'a str>,
    /// The line, from 1; null if no file declares it.
    #[schemars(range(min = 1))]
    pub line: Option<usize>,
}

/// The first event.
pub fn version() -> Event<'static> {
    Event::Version { nmplan: env!("CARGO_PKG_VERSION"), events: VERSION }
}

/// A problem as an event.
pub fn diagnostic<'a>(problem: &'a Problem, sources: &'a [Source], lines: &Lines) -> Event<'a> {
    let location = |at: Option<Location>| at.and_then(|at| source_location(at, sources, lines));
    let related =
        problem.related.iter().map(|(at, message)| Related { location: location(Some(*at)), message });
    Event::Diagnostic(Diagnostic {
        code: problem.code.name(),
        severity: problem.code.severity(),
        id: problem.id.as_deref(),
        location: location(problem.at),
        message: &problem.message,
        help: problem.help.as_deref(),
        related: related.collect(),
    })
}

/// A failure as events: what a server found, and the failure itself.
pub fn failure(error: &Error) -> Vec<Event<'_>> {
    let found = if let Error::Control(ControlError::Refused { failure, .. }) = error {
        &*failure.problems
    } else {
        &[]
    };
    let failure = Event::Failure {
        code: error.code(),
        exit: error.exit().code(),
        message: error.to_string(),
        because: error.because(),
        help: error.help(),
        applied: error.applied(),
    };
    found.iter().map(finding).chain([failure]).collect()
}

fn finding(Finding { code, id, message, help }: &Finding) -> Event<'_> {
    Event::Diagnostic(Diagnostic {
        code,
        severity: Severity::Error,
        id: id.as_deref(),
        location: None,
        message,
        help: help.as_deref(),
        related: Vec::new(),
    })
}

/// The failure to understand a command line as an event.
pub fn usage(message: String) -> Event<'static> {
    let exit = Exit::Failed.code();
    Event::Failure { code: "usage", exit, message, because: None, help: None, applied: Some(false) }
}

fn source_location<'a>(at: Location, sources: &'a [Source], lines: &Lines) -> Option<SourceLocation<'a>> {
    let source = sources.get(at.source.0 as usize)?;
    let position = |byte| {
        let (line, column) = lines.position(at.source, &source.text, byte);
        Position { line, column }
    };
    let start = position(at.span.start);
    let end = position(at.span.end);
    Some(SourceLocation { file: &source.name, line: start.line, column: start.column, end })
}

/// Where something is declared: what has the locations, and the files.
pub type Places<'a, 'b> = Option<(&'b SourceMap, &'a [Source], &'b Lines)>;

/// A resource, and where it is declared.
pub fn because<'a>(id: &'a ResourceId, declared: Places<'a, '_>) -> Because<'a> {
    let location =
        declared.and_then(|(map, sources, lines)| source_location(map.location(id, &[])?, sources, lines));
    Because { id, file: location.as_ref().map(|it| it.file), line: location.as_ref().map(|it| it.line) }
}

/// What becomes of tests as events.
pub fn assertions<'a, 'b>(
    verdicts: &'a [Verdict],
    declared: Places<'a, 'b>,
) -> impl Iterator<Item = Event<'a>> + use<'a, 'b> {
    verdicts.iter().map(move |verdict| {
        let at = declared.and_then(|(map, sources, lines)| source_location(verdict.at(map)?, sources, lines));
        Event::Assertion(AssertionEvent {
            id: &verdict.id,
            name: &verdict.name,
            outcome: verdict.outcome,
            message: verdict.message.as_deref(),
            counterexample: verdict.counterexample.as_ref(),
            pairs: verdict.pairs,
            file: at.as_ref().map(|it| it.file),
            line: at.as_ref().map(|it| it.line),
            because: verdict.because.iter().map(|id| because(id, declared)).collect(),
        })
    })
}

/// A plan as events. `declared` has the locations of resources.
pub fn plan<'a>(plan: &'a Plan, summary: &'a Summary, declared: Places<'a, '_>) -> Vec<Event<'a>> {
    let declared_at = |id: &'a ResourceId| because(id, declared);
    let reach = plan.reach.iter().map(|reach| {
        Event::ReachChange(ReachEvent {
            network: &reach.network,
            from: &reach.from,
            to: &reach.to,
            what: &reach.what,
            proto: reach.proto,
            ports: reach.ports.as_deref(),
            direction: reach.direction,
            once_joined: reach.once_joined,
            by_key: reach.by_key,
            both_ways: reach.both_ways,
            from_nodes: reach.from_nodes,
            to_nodes: reach.to_nodes,
            pairs: reach.pairs,
            rule: reach.rule.as_ref().map(declared_at),
            because: reach.because.iter().map(declared_at).collect(),
        })
    });
    let changes = plan.changes.iter().map(change).chain(plan.guard.iter().map(Event::GuardChange));
    let impact = plan.impact.iter().map(Event::NodeImpact);
    let tests = assertions(&plan.tests, declared);
    let carrying = plan.carrying.iter().map(Event::Carrying);
    let clients = plan.clients.iter().map(Event::ClientChange);
    let pending = plan.pending.iter().map(Event::PendingChange);
    let effects = impact.chain(carrying).chain(pending).chain(clients).chain(reach);
    changes.chain(effects).chain(tests).chain([Event::Summary(summary)]).collect()
}

fn change(change: &Change) -> Event<'_> {
    let field = |diff::FieldChange { field, before, after }| FieldChange { name: field.name, before, after };
    let fields = change.fields().into_iter().map(field).collect();
    Event::Change { id: &change.id, action: change.action, fields }
}

/// The event that a node has acknowledged a revision, if it has.
pub fn node_ack(node: &NodeStatus) -> Option<Event<'_>> {
    Some(Event::NodeAck { id: &node.id, revision: node.acknowledged? })
}
