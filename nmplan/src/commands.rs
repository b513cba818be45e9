//! The commands: each gathers input, calls `schema`, and renders the result.
//!
//! [`main`] is the program. A [`Run`] carries what the commands share: where the files are, how a server is
//! reached, and where to print.

pub mod apply;
pub mod client;
pub mod explain;
pub mod history;
pub mod init;
pub mod lab;
pub mod node;
pub mod plan;
pub mod schema;
pub mod show;
pub mod status;
pub mod test;
pub mod validate;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;
use std::process::ExitCode;
use std::sync::mpsc;
use std::thread;

use ::schema::advice::advice;
use ::schema::api::{KeyState, key_states};
use ::schema::decode::Declared;
use ::schema::guard::{self, Guard, Judgement};
use ::schema::inventory::{Inventory, NodeId};
use ::schema::judge::{self, Verdict};
use ::schema::plan::{Outcome, Plan, plan_with_outcome};
use ::schema::report::{Code, Problem, Report, Severity};
use ::schema::rules::endpoints::refused_everywhere;
use ::schema::rules::server::check_by_default;
use ::schema::scalars::{Name, NetworkName};
use ::schema::snapshot::{Provenance, ResourceId, Snapshot};
use ::schema::source_map::SourceMap;
use ::schema::syntax::Source;
use ::schema::text::word as quoted;
use ::schema::world::{ServerInfo, World};
use jiff::Timestamp;

use crate::args::{self, Args, Global, Verb};
use crate::console::{Console, TO_PRINT};
use crate::control::{ControlError, ControlPlane, Rest, without_secrets};
use crate::environment::Environment;
use crate::error::{Error, Exit};
use crate::events;
use crate::git;
use crate::project::{self, Loaded, Where};
use crate::render::{self, Lines};

/// Runs the program.
pub fn main() -> ExitCode {
    let args = match args::parse(std::env::args_os()) {
        Ok(args) => args,
        Err(error) => return misunderstood(&error),
    };
    // It fails only if a provider is installed already, and none is.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let environment = Environment::of_process();
    let mut console = Console::of_process(&args.global);
    match begin(&args, &environment, &mut console) {
        Ok(code) => code,
        Err(error) => finish(&args.verb, &error, &mut console).code().into(),
    }
}

/// Prints help and version, or why a command line is not understood; the latter as an event as well where
/// events are asked for.
fn misunderstood(error: &clap::Error) -> ExitCode {
    let _ = error.print();
    if !error.use_stderr() {
        return ExitCode::SUCCESS;
    }
    if std::env::args_os().any(|word| word == "--json") {
        let global = Global { json: true, ..Global::default() };
        let _ = Console::of_process(&global).event(&events::usage(error.render().to_string()));
    }
    ExitCode::FAILURE
}

/// Shows what failed; returns how the run ends.
pub fn finish(verb: &Verb, error: &Error, console: &mut Console) -> Exit {
    console.must_arrive = false;
    // First, since standard output may block for as long as its reader likes.
    console.stderr(&error.render());
    let says_so = matches!(error, Error::Problems { undone: Some(_), .. });
    if matches!(verb, Verb::Apply(_)) && error.applied() == Some(false) && !says_so {
        console.stderr("Nothing was applied.\n");
    }
    if console.json {
        // Where they cannot be printed, standard error has it.
        let _ = events::failure(error).iter().try_for_each(|event| console.event(event));
    }
    error.exit()
}

fn begin(args: &Args, environment: &Environment, console: &mut Console) -> Result<ExitCode, Error> {
    // Namespaces must be entered before any thread starts; see `lab::enter`.
    if let Verb::Lab(lab) = &args.verb
        && !crate::lab::inside()
    {
        return lab.enter.as_deref().map_or_else(lab::enter, |host| lab::enter_host(host, lab, &args.global));
    }
    if matches!(args.verb, Verb::Apply(_)) {
        console.interrupts.receive(interrupted(args))?;
    }
    let connect = |url: Option<&str>| Rest::new(url, environment);
    let runtime = runtime()?;
    let outcome = runtime.block_on(run(args, environment, &connect, console));
    // A name that does not resolve must not keep the outcome from being printed.
    runtime.shutdown_background();
    Ok(outcome?.code().into())
}

/// Ends a process that was interrupted before its plan was sent.
fn interrupted(args: &Args) -> impl Fn() + Send + 'static {
    let (global, verb) = (args.global.clone(), args.verb.clone());
    move || {
        let (global, verb) = (global.clone(), verb.clone());
        let (done, printed) = mpsc::channel();
        // Printing may block, as the run itself may at this moment, and keep standard output locked.
        thread::spawn(move || {
            let mut console = Console::of_process(&global);
            if console.asks() {
                // The terminal shows ^C where the answer was to be.
                console.stderr("\n");
            }
            finish(&verb, &Error::Interrupted, &mut console);
            let _ = done.send(());
        });
        let _ = printed.recv_timeout(TO_PRINT);
        std::process::exit(Error::Interrupted.exit().code().into());
    }
}

fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

/// Runs the command that was typed.
pub async fn run<C: ControlPlane>(
    args: &Args,
    environment: &Environment,
    connect: Connect<'_, C>,
    console: &mut Console,
) -> Result<Exit, Error> {
    let events = args.global.json && args.verb.prints_events();
    let mut run = Run { events, ..Run::new(&args.global, environment, connect, console) };
    match &args.verb {
        Verb::Init(init) => init::run(init, &run.place, run.console),
        Verb::Validate => validate::run(&mut run),
        Verb::Plan(plan) => plan::run(plan, &mut run).await,
        Verb::Apply(apply) => apply::run(apply, &mut run).await,
        Verb::Status(status) => status::run(status, &mut run).await,
        Verb::History(history) => history::run(history, &mut run).await,
        Verb::Node(node) => node::run(node, &mut run).await,
        Verb::Client(client) => client::run(client, &mut run).await,
        Verb::Show(show) => show::run(show, &mut run).await,
        Verb::Lab(lab) => lab::run(lab, &mut run).await,
        Verb::Test(test) => test::run(test, &mut run),
        Verb::Explain(explain) => explain::run(explain, &mut run).await,
        Verb::Schema(schema) => schema::run(schema, run.console),
    }
}

/// How a server is reached, from its URL.
pub type Connect<'a, C> = &'a dyn Fn(Option<&str>) -> Result<C, ControlError>;

/// What the commands share.
pub struct Run<'a, C> {
    /// Where the files are.
    pub place: Where,
    /// The only network to work on. Absent: all.
    pub only: Option<NetworkName>,
    /// The world after the plan that was made last; absent: none was made, it may have been saved.
    after: Option<Outcome>,
    /// What the plan is warned of: each resource, or the code where it is not a single one.
    warned: Vec<String>,
    /// Whether problems are printed as events: else they are text on standard error, beside the one document of
    /// `--json`.
    events: bool,
    /// Why the plan has no commit, if it has none.
    no_commit: Option<git::Unknown>,
    /// How a server is reached.
    pub connect: Connect<'a, C>,
    /// Where to print.
    pub console: &'a mut Console,
}

impl<'a, C: ControlPlane> Run<'a, C> {
    /// A run with these flags, in this environment.
    pub fn new(
        global: &Global,
        environment: &Environment,
        connect: Connect<'a, C>,
        console: &'a mut Console,
    ) -> Self {
        let place = Where {
            directory: global.directory.clone(),
            files: global.files.clone(),
            env: global.env.clone(),
            project: global.project.clone(),
            server: global.server.clone(),
            variables: global.variables.iter().cloned().collect(),
            allow_empty: global.allow_empty,
            environment: environment.clone(),
        };
        Self {
            place,
            only: global.network.clone(),
            after: None,
            warned: Vec::new(),
            events: global.json,
            no_commit: None,
            connect,
            console,
        }
    }

    /// Reads the files, and shows every problem; `undone` names what is not done if there are errors.
    fn load(&mut self, undone: &'static str) -> Result<Loaded, Error> {
        let loaded = project::load(&self.place)?;
        self.accept(loaded, Some(undone))
    }

    /// The same for a command that [plans](Self::plan): what the plan may say better is said by that.
    fn load_to_plan(&mut self, undone: &'static str) -> Result<Loaded, Error> {
        let mut loaded = project::load(&self.place)?;
        if loaded.report.has_errors() {
            return self.accept(loaded, Some(undone));
        }
        let report = std::mem::take(&mut loaded.report);
        let (later, now) = report.partition(|problem| problem.code == Code::OutsideEntry);
        loaded.report = now;
        let loaded = self.accept(loaded, Some(undone))?;
        Ok(Loaded { report: later, ..loaded })
    }

    /// The same for a command without a server: what a server with default settings would refuse is a
    /// warning.
    fn load_without_server(&mut self, undone: Option<&'static str>) -> Result<Loaded, Error> {
        let mut loaded = project::load(&self.place)?;
        loaded.report.append(check_by_default(&loaded.declared.snapshot, &loaded.declared.source_map));
        self.accept(loaded, undone)
    }

    fn accept(&mut self, loaded: Loaded, undone: Option<&'static str>) -> Result<Loaded, Error> {
        self.mention_server(&loaded);
        self.show(&loaded, &loaded.report)?;
        match loaded.report.has_errors() {
            true => Err(Error::Problems { count: errors(&loaded.report), undone }),
            false => Ok(loaded),
        }
    }

    /// Prints a note if both the env and the environment name a server, since only the env's is used.
    fn mention_server(&mut self, loaded: &Loaded) {
        let from_environment = self.place.environment.get("SERVER").filter(|_| self.place.server.is_none());
        if let (Some(other), Some(server)) = (from_environment, &loaded.server)
            && other != server
        {
            let server = without_secrets(server);
            let text = format!("The env {} names {server}, so NMPLAN_SERVER is not used.\n\n", loaded.env);
            self.console.note(&text);
        }
    }

    /// Shows problems.
    fn show(&mut self, loaded: &Loaded, report: &Report) -> Result<(), Error> {
        self.show_problems(&loaded.sources, report)
    }

    fn show_problems(&mut self, sources: &[Source], report: &Report) -> Result<(), Error> {
        if self.events {
            let lines = Lines::default();
            for problem in report.problems() {
                self.console.event(&events::diagnostic(problem, sources, &lines))?;
            }
        } else if !report.is_empty() {
            let text = render::problems(report, sources, self.console.width, self.console.verbose);
            self.console.stderr(&text);
        }
        Ok(())
    }

    /// Reads what the server has.
    async fn observe(&mut self, server: &C) -> Result<(ServerInfo, World), Error> {
        let what = format!("reading the state of {}", server.name());
        let document = self.console.waiting(&what, server.world()).await?;
        let first = |report: Report| {
            Error::Version(report.problems().next().map(|it| it.message.clone()).unwrap_or_default())
        };
        let world = document.world().map_err(first)?;
        let mut info = document.server;
        // By nmplan's own URL the server is reached as well, perhaps through a proxy that the server does not
        // know.
        let usable =
            |address: &IpAddr| refused_everywhere(*address).is_none() && !info.addresses.contains(address);
        let more: BTreeSet<_> = server.addresses().await.into_iter().filter(usable).collect();
        info.addresses.extend(more);
        Ok((info, world))
    }

    /// Plans what is declared.
    fn plan(&mut self, loaded: &Loaded, info: &ServerInfo, world: &World) -> Result<Plan, Error> {
        let owner = loaded.owner();
        let known = networks(&loaded.declared.snapshot).chain(networks(&world.snapshot));
        self.check_network(known.collect())?;
        let planned =
            plan_with_outcome(&loaded.declared, &owner, self.only.as_ref(), world, info, Timestamp::now());
        match planned {
            Ok((plan, after)) => {
                // What is about one network says nothing of all; perhaps this token sees no others.
                let plan = match self.only {
                    Some(_) => plan,
                    None => plan.with_guard(loaded.guard.as_ref(), world),
                };
                let provenance = self.provenance(loaded);
                let (provenance, unknown) = match provenance {
                    Ok(provenance) => (Some(provenance), None),
                    Err(why) => (None, Some(why)),
                };
                self.no_commit = unknown.filter(|_| plan.applyable);
                let map = &loaded.declared.source_map;
                let about_nobody =
                    plan.tests.iter().filter(|it| !it.fails()).filter_map(|it| it.problem(map));
                let declared = networks(&loaded.declared.snapshot).collect();
                let mut warnings = self.advice(&plan, declared, (world, &after), map);
                self.after = Some(after);
                let said: BTreeSet<_> = warnings.problems().filter_map(|it| it.at).collect();
                let doubts = loaded.report.problems().filter(|it| it.at.is_none_or(|at| !said.contains(&at)));
                about_nobody.chain(doubts.cloned()).for_each(|it| warnings.push(it));
                self.show(loaded, &warnings)?;
                let about = |it: &Problem| it.id.as_deref().unwrap_or(it.code.name()).to_owned();
                self.warned = warnings.problems().map(about).collect();
                Ok(Plan { provenance, ..plan })
            }
            Err(report) => {
                self.show(loaded, &report)?;
                Err(Error::Problems { count: errors(&report), undone: Some("planned") })
            }
        }
    }

    /// What there is to warn of in a plan: in the networks that it changes, and in those that files declare.
    fn advice(
        &self,
        plan: &Plan,
        declared: BTreeSet<NetworkName>,
        (world, after): (&World, &Outcome),
        map: &SourceMap,
    ) -> Report {
        let mut networks = declared;
        networks.extend(plan.changes.iter().map(|change| change.id.network.clone()));
        networks.retain(|it| self.only.as_ref().is_none_or(|only| only == it));
        advice(&networks, world.parts(), (&after.snapshot, &after.inventory), map)
    }

    /// Judges a plan by the rules that it can be let through, and finds the state of the project's access
    /// keys after it. A saved plan that breaks other rules is left to the server. Tests of networks in which
    /// nothing changes count only `with_all_tests`: they refuse no change.
    fn judge(
        plan: &Plan,
        (loaded, after): (Option<&Loaded>, Option<&Outcome>),
        info: &ServerInfo,
        world: &World,
        allow: &BTreeSet<Guard>,
        with_all_tests: bool,
    ) -> (Judgement, Vec<KeyState>) {
        let map = SourceMap::default();
        let map = loaded.map_or(&map, |loaded| &loaded.declared.source_map);
        let now = Timestamp::now();
        let applied = if after.is_none() { plan.apply(world, info, now).ok() } else { None };
        let Some(after) = after.or(applied.as_ref()) else {
            return (guard::judge(Vec::new(), allow), Vec::new());
        };
        let all = (&after.snapshot, &after.inventory);
        let mut findings = guard::check(&world.snapshot, all, &info.addresses, map);
        // A plan that was just made says what it does; one that was saved may do something else by now.
        let effect = || match loaded {
            Some(_) => plan.effect(),
            None => ::schema::plan::effect(world, after, info),
        };
        findings.extend(guard::over_limits(&plan.owner(), world, &after.snapshot, effect));
        if with_all_tests {
            let changes =
                |network: &NetworkName| plan.changes.iter().any(|change| change.id.network == *network);
            let others: Vec<_> = plan.tests.iter().filter(|it| !changes(&it.id.network)).cloned().collect();
            findings.extend(guard::failing(&others, map));
        }
        let mut keys = key_states(&after.snapshot, &after.inventory, now);
        let owner = plan.owner();
        keys.retain(|key| {
            after.snapshot.entry(&key.id).is_some_and(|entry| entry.owner.as_ref() == Some(&owner))
        });
        (guard::judge(findings, allow), keys)
    }

    /// Shows what the rules say of a plan, and refuses it if one of them does.
    fn report_judgement(&mut self, judgement: &Judgement, loaded: Option<&Loaded>) -> Result<(), Error> {
        let Judgement { refused, by, allowed, used: _, needless } = judgement;
        for problem in allowed.problems() {
            self.console.note(&format!("Let through: {}.\n", problem.message));
        }
        for rule in needless {
            self.console.note(&format!("--allow {rule} is not needed: the plan does not break that rule.\n"));
        }
        if refused.is_empty() {
            return Ok(());
        }
        self.show_problems(loaded.map_or(&[], |loaded| &loaded.sources), refused)?;
        Err(Error::Guarded { by: by.clone() })
    }

    /// Judges the tests in files alone, or one of them, and shows what does not hold.
    fn judge_files(
        &mut self,
        loaded: &Loaded,
        meant: impl Fn(&ResourceId) -> bool,
    ) -> Result<Vec<Verdict>, Error> {
        let Declared { snapshot, source_map } = &loaded.declared;
        let only = |network: &&NetworkName| self.only.as_ref().is_none_or(|only| only == *network);
        let networks = snapshot.networks().map(|(network, _)| network).filter(only);
        let mut verdicts = judge::judge_all(networks, snapshot, &Inventory::default());
        verdicts.retain(|verdict| meant(&verdict.id));
        let mut report = Report::default();
        verdicts.iter().filter_map(|it| it.problem(source_map)).for_each(|it| report.push(it));
        if self.console.json {
            let lines = Lines::default();
            let declared = Some((source_map, &*loaded.sources, &lines));
            events::assertions(&verdicts, declared).try_for_each(|event| self.console.event(&event))?;
        }
        self.show(loaded, &report)?;
        Ok(verdicts)
    }

    /// Says why no commit is kept with a plan that is applied or saved.
    fn mention_commit(&mut self) {
        if let Some(why) = self.no_commit.take() {
            self.console.note(&format!("No commit is recorded with this plan: {why}.\n"));
        }
    }

    /// Where the files came from.
    fn provenance(&self, loaded: &Loaded) -> Result<Provenance, git::Unknown> {
        git::provenance(&git::Files {
            directory: &loaded.directory,
            read: loaded.sources.iter().map(|source| Path::new(&*source.name)).collect(),
            whole: self.place.files.is_empty(),
        })
    }

    /// Refuses an unknown network in `--network`: with a typo in it, nothing would seem to change.
    fn check_network(&self, known: BTreeSet<NetworkName>) -> Result<(), Error> {
        match &self.only {
            Some(asked) if !known.contains(asked) => {
                Err(Error::UnknownNetwork { asked: asked.clone(), known: known.into_iter().collect() })
            }
            Some(_) | None => Ok(()),
        }
    }
}

fn networks(snapshot: &Snapshot) -> impl Iterator<Item = NetworkName> {
    snapshot.networks().map(|(network, _)| network.clone())
}

fn errors(report: &Report) -> usize {
    report.problems().filter(|problem| problem.code.severity() == Severity::Error).count()
}

/// The declared nodes that have not joined.
fn awaiting(loaded: &Loaded, only: Option<&NetworkName>, world: &World) -> Vec<NodeId> {
    let networks = loaded.declared.snapshot.networks().map(|(network, _)| network);
    let networks = networks.filter(|network| only.is_none_or(|only| only == *network));
    let nodes =
        networks.flat_map(|network| loaded.declared.snapshot.all_in::<::schema::kinds::Node>(network));
    let ids = nodes.map(|(id, _)| id.node());
    ids.filter(|id| world.inventory.node(id).is_none()).collect()
}

/// The declared nodes that approve a host which has joined under another name, and that name.
fn elsewhere(loaded: &Loaded, only: Option<&NetworkName>, world: &World) -> Vec<(NodeId, Name)> {
    let declared = &loaded.declared.snapshot;
    let networks = declared.networks().map(|(network, _)| network);
    let networks = networks.filter(|network| only.is_none_or(|only| only == *network));
    let of_network = |network: &NetworkName| {
        let approved: BTreeMap<_, _> = declared
            .all_in::<::schema::kinds::Node>(network)
            .filter_map(|(id, node)| Some((node.approved?, &id.name)))
            .collect();
        // What most networks have none of costs no look at all their nodes.
        let nodes = world.inventory.nodes_in(network).filter(|_| !approved.is_empty());
        let joined = nodes.filter_map(|(name, joined)| {
            let approver = approved.get(&joined.identity.fingerprint())?;
            (*approver != name).then(|| (NodeId::of(network, approver), name.clone()))
        });
        joined.collect::<Vec<_>>()
    };
    networks.flat_map(of_network).collect()
}

/// A command line with the same project flags and another command.
fn command(place: &Where, only: Option<&NetworkName>, verb: &[&str]) -> String {
    let (verb, rest) = verb.split_at(1);
    let mut words = vec!["nmplan".to_owned(), verb.concat()];
    let mut flag = |flag: &str, value: String| words.extend([flag.to_owned(), quoted(&value)]);
    let Where { directory, files, env, project, server, variables, allow_empty, environment: _ } = place;
    directory.iter().for_each(|directory| flag("-C", directory.display().to_string()));
    files.iter().for_each(|file| flag("-f", file.display().to_string()));
    env.iter().for_each(|env| flag("--env", env.to_string()));
    project.iter().for_each(|project| flag("--project", project.to_string()));
    server.iter().for_each(|server| flag("--server", server.clone()));
    variables.iter().for_each(|(name, value)| flag("--var", format!("{name}={value}")));
    only.iter().for_each(|network| flag("--network", network.to_string()));
    words.extend(allow_empty.then(|| "--allow-empty".to_owned()));
    words.extend(rest.iter().map(|word| quoted(word)));
    words.join(" ")
}
