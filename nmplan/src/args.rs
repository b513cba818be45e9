//! The command line: flags and arguments, without any behaviour.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args as ClapArgs, Command, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
use schema::access::Protocol;
use schema::attribute::Choice as _;
use schema::guard::Guard;
use schema::kinds::Kind;
use schema::scalars::{Fingerprint, Name, NetworkName, Seconds};

use crate::keys::Sink;

/// Plans and applies declared WireGuard meshes.
///
/// Networks are declared in files, in KDL or YAML. `plan` shows what an apply would change and which nodes
/// that affects; `apply` carries it out, as one revision or not at all.
#[derive(Debug, Parser)]
#[command(name = "nmplan", version, disable_help_subcommand = true, after_help = AFTER)]
pub struct Args {
    /// What every command takes.
    #[command(flatten)]
    pub global: Global,
    /// The command.
    #[command(subcommand)]
    pub verb: Verb,
}

/// Understands a command line, the first word of which is the program.
pub fn parse(words: impl IntoIterator<Item = impl Into<OsString> + Clone>) -> Result<Args, clap::Error> {
    Args::from_arg_matches(&command().try_get_matches_from(words)?)
}

/// The command line as clap describes it. What every command takes is in the help of the program, once.
pub fn command() -> Command {
    let program = Args::command();
    let shared: Vec<_> =
        program.get_arguments().filter(|it| it.is_global_set()).map(|it| it.clone().hide(true)).collect();
    program.mut_subcommands(|verb| verb.args(shared.clone()).after_help(SHARED))
}

const SHARED: &str =
    "`nmplan --help` lists what every command takes: -C, -f, --env, --server, --network, --json and others.";

const AFTER: &str = "\
Environment: NMPLAN_SERVER; NMPLAN_TOKEN or NMPLAN_TOKEN_FILE; NMPLAN_CA, a PEM file, for a server with its own CA; \
NMPLAN_ENV; NMPLAN_VAR_name for each variable, with _ for -; NMPLAN_SINK_NAME for --keys-to @NAME; NO_COLOR, CLICOLOR_FORCE; \
HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and NO_PROXY.

Exit codes: 0 done; 1 any error; 2 changes, with --detailed-exitcode only; 3 refused by a rule; 4 stale; \
5 busy; 6 applied, then rolled back; 7 committed, but not acknowledged by every node within --wait.";

/// What every command takes.
#[derive(Clone, Debug, Default, ClapArgs)]
#[command(next_help_heading = "Where and how")]
pub struct Global {
    /// The project's directory. Absent: this one.
    #[arg(short = 'C', long = "directory", global = true, value_name = "DIR")]
    pub directory: Option<PathBuf>,
    /// A file to read instead of those that the env uses; - is standard input. Repeatable. The extension
    /// decides the language; without one it is YAML if the first line looks like it, else KDL.
    #[arg(short = 'f', long = "file", global = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// The env. Absent: NMPLAN_ENV, or the project's only one.
    #[arg(long, global = true, value_name = "NAME")]
    pub env: Option<Name>,
    /// The project's name, for a directory without a project file.
    #[arg(long, global = true, value_name = "NAME")]
    pub project: Option<Name>,
    /// The URL of the server. Absent: the env's, or NMPLAN_SERVER.
    #[arg(long, global = true, value_name = "URL")]
    pub server: Option<String>,
    /// The value of a variable; overrides the env and the environment. Repeatable.
    #[arg(long = "var", global = true, value_name = "NAME=VALUE", value_parser = variable)]
    pub variables: Vec<(String, String)>,
    /// Plans, applies and shows this network only.
    #[arg(long, global = true, value_name = "NAME")]
    pub network: Option<NetworkName>,
    /// Accepts that nothing is declared, in place of the error for it: then everything that the project
    /// manages is deleted.
    #[arg(long, global = true)]
    pub allow_empty: bool,
    /// When to colour the output; auto respects NO_COLOR and CLICOLOR_FORCE.
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto")]
    pub color: Color,
    /// Prints only what was asked for, and errors.
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub quiet: bool,
    /// Prints long lists in full.
    #[arg(short, long, global = true)]
    pub verbose: bool,
    /// Prints one JSON event per line instead of text; with `status`, `history`, `node`, `client`, `show`,
    /// `explain` and `lab` one document.
    #[arg(long, global = true)]
    pub json: bool,
}

/// When to colour.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Color {
    /// On a terminal.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// The commands.
#[derive(Clone, Debug, Subcommand)]
pub enum Verb {
    /// Writes a new project to start from; overwrites nothing.
    Init(Init),
    /// Checks the files, without a server.
    Validate,
    /// Shows what an apply would do; changes nothing.
    Plan(Plan),
    /// Carries out what the files declare, or a saved plan, as one revision.
    Apply(Apply),
    /// Shows the nodes: their state, their last check-in, and whether they have the newest revision; and the access
    /// keys. With an argument: one network, node or key.
    Status(Status),
    /// Shows the revisions, newest first: who made them, when, what changed and why.
    History(History),
    /// Shows nodes, lets hosts in that wait, removes nodes, bars their hosts, and lets them join again.
    #[command(subcommand)]
    Node(NodeVerb),
    /// Configures external clients: hosts with WireGuard and without an agent, such as phones.
    #[command(subcommand)]
    Client(ClientVerb),
    /// Shows a network, a node, an access key or another resource, a saved plan, what a revision changed, or,
    /// without an argument, what the server has.
    Show(Show),
    /// Brings up the declared networks for real, in network namespaces of their own, and shows which nodes
    /// reach each other.
    Lab(Lab),
    /// Judges what the tests in the files assert of who reaches whom, without a server.
    Test(Test),
    /// Says why one member reaches another, or not; with one argument it explains a problem code.
    Explain(Explain),
    /// Prints a JSON Schema: of the files, of the saved plan, of the events, or of what the lab prints.
    Schema(Schema),
}

impl Verb {
    /// Whether it prints events with `--json`, of which problems are some. The others print one document.
    pub const fn prints_events(&self) -> bool {
        match self {
            Self::Validate | Self::Plan(_) | Self::Apply(_) | Self::Test(_) => true,
            Self::Init(_)
            | Self::Status(_)
            | Self::History(_)
            | Self::Node(_)
            | Self::Client(_)
            | Self::Show(_)
            | Self::Lab(_)
            | Self::Explain(_)
            | Self::Schema(_) => false,
        }
    }
}

/// What `init` takes.
#[derive(Clone, Debug, ClapArgs)]
pub struct Init {
    /// The project's name. Absent: the directory's.
    pub name: Option<Name>,
}

/// What `plan` takes.
#[derive(Clone, Debug, ClapArgs)]
pub struct Plan {
    /// Saves the plan, for `nmplan apply FILE`.
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// The rules that it may break.
    #[command(flatten)]
    pub allowed: Allowed,
    /// Exits with 2 if there are changes.
    #[arg(long)]
    pub detailed_exitcode: bool,
    /// How to print it; json is the saved plan.
    #[arg(long, value_name = "FORMAT", default_value = "text", conflicts_with = "json")]
    pub format: Format,
}

/// The rules that a plan may break.
#[derive(Clone, Debug, Default, ClapArgs)]
pub struct Allowed {
    /// Lets the plan break this rule, once, which the log keeps; one that it does not break is accepted too.
    /// max-delete, max-nodes-changed, max-reach-lost: more than the project's guard allows; protect=ID: that
    /// protected network, such as corp, may be deleted; cut-off: a range may hold an address of the server;
    /// test=ID: that test, such as corp/test/web-to-db, may fail (the last two need the admin role). Repeatable.
    #[arg(long, value_name = "RULE", value_parser = str::parse::<Guard>)]
    pub allow: Vec<Guard>,
}

impl Allowed {
    /// The rules, each once.
    pub fn rules(&self) -> BTreeSet<Guard> {
        self.allow.iter().cloned().collect()
    }
}

/// How to print a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    Text,
    /// The saved plan.
    Json,
}

/// What `apply` takes.
#[derive(Clone, Debug, Default, ClapArgs)]
pub struct Apply {
    /// A plan that `plan --out` saved, instead of the files.
    #[arg(value_name = "PLANFILE")]
    pub plan: Option<PathBuf>,
    /// Applies without asking.
    #[arg(short = 'y', long)]
    pub auto_approve: bool,
    /// Applies only the plan of this digest (all 64 digits), without asking.
    #[arg(long, value_name = "DIGEST", value_parser = digest)]
    pub expect: Option<String>,
    /// Where to write the tokens of new access keys: FILE, - for standard output, or @NAME for the command in
    /// NMPLAN_SINK_NAME.
    #[arg(long, value_name = "FILE|-|@NAME")]
    pub keys_to: Option<Sink>,
    /// The rules that it may break.
    #[command(flatten)]
    pub allowed: Allowed,
    /// Waits until every node that was online has acknowledged the revision, at most DURATION (60s if none is
    /// given).
    #[arg(long, value_name = "DURATION", num_args = 0..=1, require_equals = true, default_missing_value = "60s")]
    pub wait: Option<Seconds>,
}

/// What `history` takes.
#[derive(Clone, Debug, ClapArgs)]
pub struct History {
    /// How many revisions to show at most. Absent: 20; with --json all.
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u64).range(1..))]
    pub limit: Option<u64>,
}

/// What `node` does.
#[derive(Clone, Debug, Subcommand)]
pub enum NodeVerb {
    /// Shows the nodes, joined and expected, and the hosts that wait to be let in, each with the fingerprint of
    /// its host.
    List,
    /// Lets a host in that asked to join without an access key (netclient join --server) and waits.
    Approve(ApproveNode),
    /// Removes a node from its network: its peers drop it at once, and its agent removes what it set up. Its
    /// declaration stays, and its name can be claimed again. A host that waits to be let in is dropped.
    Remove(RemoveNode),
    /// Lets the hosts join again that were removed as a node with --ban.
    Unban {
        /// The node: NETWORK/NAME, or NAME with --network.
        #[arg(value_name = "NETWORK/NAME")]
        node: NodeArg,
    },
    /// Shows the hosts that may not join again.
    Bans,
}

/// What `node approve` takes.
#[derive(Clone, Debug, ClapArgs)]
pub struct ApproveNode {
    /// The name that the host asked for: NETWORK/NAME, or NAME with --network.
    #[arg(value_name = "NETWORK/NAME")]
    pub node: NodeArg,
    /// The fingerprint that netclient printed on the host: needed with -y, and where several hosts ask for one
    /// name.
    #[arg(long, value_name = "sha256:...")]
    pub identity: Option<Fingerprint>,
    /// The name of the node that it becomes. Absent: the one that it asked for.
    #[arg(long = "as", value_name = "NAME")]
    pub becomes: Option<Name>,
    /// Lets it in without asking.
    #[arg(short = 'y', long)]
    pub auto_approve: bool,
}

/// What `node remove` takes.
#[derive(Clone, Debug, ClapArgs)]
pub struct RemoveNode {
    /// The node: NETWORK/NAME, or NAME with --network.
    #[arg(value_name = "NETWORK/NAME")]
    pub node: NodeArg,
    /// The fingerprint of its host, as `nmplan node list` shows it. Absent: the node that has joined, else the
    /// only host that waits under that name.
    #[arg(long, value_name = "sha256:...")]
    pub identity: Option<Fingerprint>,
    /// Bars the identity of its host from the network as well: it cannot join again with a token that it has.
    #[arg(long)]
    pub ban: bool,
    /// Removes it without asking.
    #[arg(short = 'y', long)]
    pub auto_approve: bool,
}

/// A node as it is typed: `corp/db-1`, its resource id `corp/node/db-1`, or `db-1` with `--network corp`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeArg {
    /// The network, if it is typed here.
    pub network: Option<NetworkName>,
    /// The name.
    pub name: Name,
}

impl std::str::FromStr for NodeArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (network, name) = named(text, Kind::Node)?;
        Ok(Self { network, name })
    }
}

/// The network, if it is typed, and the name of an object of that kind.
fn named(text: &str, kind: Kind) -> Result<(Option<NetworkName>, Name), String> {
    let parts: Vec<_> = text.split('/').collect();
    match *parts {
        [name] => Ok((None, name.parse()?)),
        [network, name] => Ok((Some(network.parse()?), name.parse()?)),
        [network, word, name] if word == kind.descriptor().word => {
            Ok((Some(network.parse()?), name.parse()?))
        }
        _ => Err("it is not of the form NETWORK/NAME, such as corp/db-1".into()),
    }
}

/// What `client` does.
#[derive(Clone, Debug, Subcommand)]
pub enum ClientVerb {
    /// Prints the WireGuard configuration of a client, for wg-quick or an app. It makes the private key, which
    /// is sent nowhere, and writes the public one into the file that declares the client.
    Conf(ClientConf),
}

/// What `client conf` takes.
#[derive(Clone, Debug, ClapArgs)]
pub struct ClientConf {
    /// The client: NAME, or NETWORK/NAME where several networks have one of that name.
    #[arg(value_name = "NAME")]
    pub client: ClientArg,
    /// The file of its private key, made with mode 0600 if it does not exist. Absent: a key is made that only
    /// the configuration has, unless the files declare its public key already.
    #[arg(long, value_name = "FILE")]
    pub key: Option<PathBuf>,
    /// Prints the configuration as a QR code, for the camera of a phone.
    #[arg(long, conflicts_with = "png")]
    pub qr: bool,
    /// Draws the configuration as a QR code in this file as well, made with mode 0600.
    #[arg(long, value_name = "FILE")]
    pub png: Option<PathBuf>,
}

/// An external client as it is typed: `alice-phone`, `corp/alice-phone`, or its resource id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientArg {
    /// The network, if it is typed here.
    pub network: Option<NetworkName>,
    /// The name.
    pub name: Name,
}

impl std::str::FromStr for ClientArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (network, name) = named(text, Kind::ExternalClient)?;
        Ok(Self { network, name })
    }
}

/// What `show` takes.
#[derive(Clone, Debug, ClapArgs)]
pub struct Show {
    /// A saved plan; the number of a revision; or a resource by its id (corp/node/web-1, a network: corp), as
    /// NETWORK/NAME, or by its name alone. A file that exists goes before a number, and a number before a name.
    #[arg(value_name = "PLANFILE|REV|WHAT")]
    pub what: Option<PathBuf>,
}

/// What `status` takes.
#[derive(Clone, Debug, ClapArgs)]
pub struct Status {
    /// A network, a node, an access key, or what is carried: by its id (corp/node/web-1, a network: corp), as
    /// NETWORK/NAME, or by its name alone. Absent: everything.
    pub what: Option<String>,
}

/// What `lab` takes.
#[derive(Clone, Debug, ClapArgs)]
pub struct Lab {
    /// The project's directory. Absent: as with the other commands.
    #[arg(id = "project_directory", value_name = "DIR")]
    pub directory: Option<PathBuf>,
    /// Leaves the lab running afterwards, until Ctrl-C, and prints how to enter its hosts.
    #[arg(long)]
    pub keep: bool,
    /// Plays what happens to a network, and sends packets after each step: nodes leave and join again, and each
    /// hub, gateway, relay and node of an ingress is lost and returns. Nodes check in each second meanwhile.
    #[arg(long)]
    pub scenario: bool,
    /// Enters a host of a lab that --keep left, by its name or an address: with a shell, or with COMMAND.
    #[arg(long, value_name = "HOST", conflicts_with_all = ["keep", "scenario"])]
    pub enter: Option<String>,
    /// What is run there.
    #[arg(last = true, value_name = "COMMAND", requires = "enter")]
    pub command: Vec<OsString>,
}

/// What `test` takes.
#[derive(Clone, Debug, ClapArgs)]
pub struct Test {
    /// The only test to judge: NAME, NETWORK/NAME, or its resource id. Absent: all.
    #[arg(value_name = "NAME")]
    pub test: Option<String>,
}

/// What `explain` takes.
#[derive(Clone, Debug, ClapArgs)]
pub struct Explain {
    /// Who opens connections: a node, a group, tag:TAG, an address, a range or *, perhaps as NETWORK/NAME. Or,
    /// without TO, a problem code, with or without what is before `::`, such as unknown_field. Absent: lists
    /// all codes.
    #[arg(value_name = "FROM|CODE")]
    pub what: Option<String>,
    /// To whom.
    #[arg(value_name = "TO")]
    pub to: Option<String>,
    /// To which port; of TCP, unless --proto says udp.
    #[arg(long, value_name = "PORT", requires = "to", value_parser = clap::value_parser!(u16).range(1..))]
    pub port: Option<u16>,
    /// With which protocol: tcp, udp or icmp. Absent: with any.
    #[arg(long, value_name = "PROTOCOL", requires = "to", value_parser = protocol)]
    pub proto: Option<Protocol>,
}

/// What `schema` takes.
#[derive(Clone, Debug, ClapArgs)]
pub struct Schema {
    /// What to print the schema of.
    #[arg(long = "for", value_name = "WHAT", default_value = "files")]
    pub of: SchemaOf,
}

/// What a JSON Schema describes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SchemaOf {
    /// A declaring YAML file.
    Files,
    /// The saved plan.
    Plan,
    /// One event of --json.
    Events,
    /// What `lab --json` prints.
    Lab,
    /// What `show WHAT --json` prints of a resource.
    Show,
    /// What `status --json` prints.
    Status,
}

fn variable(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("it is not of the form NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

fn protocol(text: &str) -> Result<Protocol, String> {
    let mut known = Protocol::ALL.iter().copied();
    let words = || Protocol::ALL.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    known.find(|it| it.to_string() == text).ok_or_else(|| format!("the protocols are: {}", words()))
}

fn digest(text: &str) -> Result<String, String> {
    let hexadecimal = text.bytes().all(|byte| byte.is_ascii_hexdigit());
    match text.len() {
        64 if hexadecimal => Ok(text.to_ascii_lowercase()),
        8..64 if hexadecimal => {
            Err("the whole digest is needed, since whoever writes the files can make another plan whose digest begins \
                 alike; `nmplan plan` prints all 64 digits"
                .into())
        }
        _ => Err("a digest is 64 hexadecimal digits, as `nmplan plan` prints it".into()),
    }
}
