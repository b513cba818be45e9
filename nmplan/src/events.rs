//! What `--json` prints: one event a line. `schema/events.schema.json` describes them, and is made of them.

use schema::api::NodeStatus;
use schema::diff::{self, Action, Change};
use schema::plan::{NodeImpact, Plan, Summary};
use schema::report::{Problem, Severity};
use schema::scalars::NetworkName;
use schema::snapshot::{ResourceId, Revision};
use schema::source_map::SourceMap;
use schema::syntax::Source;
use schema::value::{Location, Value};
use schemars::JsonSchema;
use serde::Serialize;

use crate::render::Lines;

/// The version of the events; raised when an older reader would misread them.
pub const VERSION: &str = "1.0";

/// `nmplan validate|plan|apply --json` prints one such object a line. New types and fields may come; ignore what is unknown.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
#[schemars(extend("title" = format!("One event of nmplan --json, version {VERSION}")))]
pub enum Event<'a> {
    /// The first event: who speaks, and which version of the events.
    Version {
        /// The version of the program.
        nmplan: &'a str,
        /// The version of the events.
        #[schemars(extend("const" = VERSION))]
        events: &'a str,
    },
    /// A problem of the files. One without a file has no location.
    Diagnostic(Diagnostic<'a>),
    /// A resource that changes.
    Change {
        /// The resource.
        id: &'a ResourceId,
        /// What is done to it.
        action: Action,
        /// The fields that change.
        fields: Vec<FieldChange<'a>>,
    },
    /// A machine that notices.
    NodeImpact(&'a NodeImpact),
    /// Nodes that reach each other afterwards only, or before only.
    ReachChange(ReachEvent<'a>),
    /// How much the plan does.
    Summary(&'a Summary),
    /// The revision that an apply made.
    Revision {
        /// The revision.
        revision: Revision,
        /// Whether an earlier call of the same apply made it.
        already: bool,
    },
    /// A node has everything of the applied revision that concerns it; with `--wait`.
    NodeAck {
        /// The node.
        #[schemars(with = "ResourceId")]
        id: &'a str,
        /// What it has acknowledged.
        revision: Revision,
    },
}

/// A field that changes.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct FieldChange<'a> {
    /// Its name.
    pub name: &'a str,
    /// What it was; null where it was absent.
    pub before: Option<Value>,
    /// What it will be; null where it will be absent.
    pub after: Option<Value>,
}

/// A problem, with its location.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[schemars(inline)]
pub struct Diagnostic<'a> {
    /// The stable name of its code; `nmplan explain CODE` tells more.
    pub code: &'a str,
    /// How bad it is.
    pub severity: Severity,
    /// The resource that it is about; null: none alone.
    pub id: Option<&'a str>,
    /// Where it stands.
    #[serde(flatten)]
    pub location: Option<SourceLocation<'a>>,
    /// What is wrong.
    pub message: &'a str,
    /// What to do; null where the message says enough.
    pub help: Option<&'a str>,
    /// Other locations that belong to it.
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

/// Another location that belongs to a problem.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Related<'a> {
    /// Where.
    #[serde(flatten)]
    pub location: Option<SourceLocation<'a>>,
    /// What stands there.
    pub message: &'a str,
}

/// A change of reachability.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[schemars(inline)]
pub struct ReachEvent<'a> {
    /// The network.
    pub network: &'a NetworkName,
    /// The node, or `*` for every one.
    pub from: &'a str,
    /// The node, or `*` for every one; both ways.
    pub to: &'a str,
    /// Whether it is gained or lost.
    pub direction: schema::compile::reach::Direction,
    /// How many ordered pairs of nodes that is.
    pub pairs: u64,
    /// The change that it follows from; null where it is not one alone.
    pub because: Option<Because<'a>>,
}

/// The change that something follows from, and where its resource is declared.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Because<'a> {
    /// The resource.
    pub id: &'a ResourceId,
    /// The file; null where no file declares it.
    pub file: Option<&'a str>,
    /// The line, from 1; null where no file declares it.
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
    let related = problem.related.iter().map(|(at, message)| Related { location: location(Some(*at)), message });
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

fn source_location<'a>(at: Location, sources: &'a [Source], lines: &Lines) -> Option<SourceLocation<'a>> {
    let source = sources.get(at.source.0 as usize)?;
    let position = |byte| {
        let (line, column) = lines.position(at.source, &source.text, byte);
        Position { line, column }
    };
    let (start, end) = (position(at.span.start), position(at.span.end));
    Some(SourceLocation { file: &source.name, line: start.line, column: start.column, end })
}

/// A plan as events. `declared` tells where resources stand.
pub fn plan<'a>(
    plan: &'a Plan,
    summary: &'a Summary,
    declared: Option<(&SourceMap, &'a [Source], &Lines)>,
) -> Vec<Event<'a>> {
    let reach = plan.reach.iter().map(|reach| {
        let because = reach.because.as_ref().map(|id| {
            let location =
                declared.and_then(|(map, sources, lines)| source_location(map.location(id, &[])?, sources, lines));
            Because { id, file: location.as_ref().map(|it| it.file), line: location.as_ref().map(|it| it.line) }
        });
        let (network, from, to) = (&reach.network, &*reach.from, &*reach.to);
        let (direction, pairs) = (reach.direction, reach.pairs);
        Event::ReachChange(ReachEvent { network, from, to, direction, pairs, because })
    });
    let changes = plan.changes.iter().map(change);
    let impact = plan.impact.iter().map(Event::NodeImpact);
    changes.chain(impact).chain(reach).chain([Event::Summary(summary)]).collect()
}

fn change(change: &Change) -> Event<'_> {
    let field = |diff::FieldChange { field, before, after }| FieldChange { name: field.name, before, after };
    let fields = change.fields().into_iter().map(field).collect();
    Event::Change { id: &change.id, action: change.action, fields }
}

/// That a node has acknowledged, if it has anything.
pub fn node_ack(node: &NodeStatus) -> Option<Event<'_>> {
    Some(Event::NodeAck { id: &node.id, revision: node.acknowledged? })
}
