//! The declarations of a project: finds the project, chooses the env, reads its files, and decodes them.
//!
//! [`load`] is the entry point, for every command and for the lab. It finds every problem of every file in
//! one run; a [`LoadError`] is what prevents it from reading the files at all. Start at [`Where`] and
//! [`Loaded`].

mod files;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use schema::decode::{Declared, decode};
use schema::document::Document;
use schema::kinds::Kind;
use schema::limits::Limits;
use schema::project::{self, Env, ProjectFile, Var};
use schema::report::{Code, Problem, Report, Severity, did_you_mean};
use schema::rules;
use schema::scalars::Name;
use schema::snapshot::Owner;
use schema::syntax::{Source, Variables, parse, substitute};
use schema::text::{count, path as shown, plain};
use schema::value::SourceId;

use crate::environment::Environment;
pub(crate) use files::language;
use files::{Reading, Root};

/// The names that a project file may have.
pub const PROJECT_FILES: [&str; 3] = ["nmplan.kdl", "nmplan.yaml", "nmplan.yml"];

/// Where the files are, and which env to choose.
#[derive(Clone, Debug, Default)]
pub struct Where {
    /// The project's directory. Absent: the current one.
    pub directory: Option<PathBuf>,
    /// Files to read instead of those that the env uses; `-` is standard input.
    pub files: Vec<PathBuf>,
    /// The env. Absent: NMPLAN_ENV, or the only one.
    pub env: Option<Name>,
    /// The project's name, for a directory without a project file.
    pub project: Option<Name>,
    /// The server; overrides that of the env.
    pub server: Option<String>,
    /// Variables; override those of the env and the environment.
    pub variables: BTreeMap<String, String>,
    /// Whether nothing may be declared.
    pub allow_empty: bool,
    /// The environment.
    pub environment: Environment,
}

/// What is declared, for which project, env and server.
#[derive(Debug)]
pub struct Loaded {
    /// The project's directory.
    pub directory: PathBuf,
    /// The project. Absent: neither a file nor a flag names it.
    pub project: Option<Name>,
    /// The env.
    pub env: Name,
    /// The URL of the server, if anything names it.
    pub server: Option<String>,
    /// The guard that the project file declares, without limits where it declares none. Absent: there is no
    /// project file, so nothing is said of it.
    pub guard: Option<Limits>,
    /// The resources; incomplete where the report has errors.
    pub declared: Declared,
    /// Every problem that was found.
    pub report: Report,
    /// The files, indexed by the source ids of locations.
    pub sources: Vec<Source>,
}

impl Loaded {
    /// The owner of the declared resources: `project/env`. A project without a name gets that of its
    /// directory, which is enough for a plan, but not for an apply.
    pub fn owner(&self) -> Owner {
        let named = || self.directory.canonicalize().ok()?.file_name()?.to_str()?.parse::<Name>().ok();
        let unnamed = || "unnamed".parse().expect("it is a good name");
        Owner { project: self.project.clone().or_else(named).unwrap_or_else(unnamed), env: self.env.clone() }
    }
}

/// Why the files cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// Something cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file or directory.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// There are two project files in one directory.
    #[error("there are two project files, {0} and {1}, and a project has one")]
    TwoProjects(String, String),
    /// The flag names another project than the file.
    #[error("--project is {asked}, but {file} declares project {found}")]
    OtherProject {
        /// What was asked for.
        asked: Name,
        /// What the file declares.
        found: Name,
        /// The project file.
        file: String,
    },
    /// The project has several envs, and none was chosen.
    #[error("the project has several envs: {}", list(.0))]
    WhichEnv(Vec<Name>),
    /// The project file has errors, so that it is unknown which envs it has.
    #[error("{file} has an error in line {line}: {message}")]
    Broken {
        /// The project file.
        file: String,
        /// The line, from 1.
        line: usize,
        /// What is wrong there.
        message: String,
    },
    /// There is no such env.
    #[error("the project has no env {asked:?}; it has {}", list(.known))]
    UnknownEnv {
        /// What was asked for.
        asked: String,
        /// The envs that there are.
        known: Vec<Name>,
    },
    /// There is no such variable.
    #[error("--var sets {asked:?}, but the project file declares no variable of that name")]
    UnknownVariable {
        /// What was asked for.
        asked: String,
        /// The variables that there are.
        known: Vec<Name>,
    },
}

impl LoadError {
    /// What to type next.
    pub fn help(&self) -> Option<String> {
        let near = |asked: &str, known: &[Name]| did_you_mean(asked, known.iter().map(Name::as_str));
        match self {
            Self::Read { source, .. } if source.kind() == io::ErrorKind::NotFound => Some(
                "check the path; -C sets the project's directory, and `nmplan init` creates a project".into(),
            ),
            Self::Read { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                Some("let this user read it, or run nmplan as a user who may".into())
            }
            Self::Read { .. } => None,
            Self::TwoProjects(..) => Some("delete one of the two".into()),
            Self::OtherProject { .. } => Some("omit --project".into()),
            Self::WhichEnv(known) => {
                known.first().map(|first| format!("choose one, for example --env {first}"))
            }
            Self::Broken { .. } => Some("see all of its errors:\n\n    nmplan validate".into()),
            Self::UnknownEnv { asked, known } => near(asked, known),
            Self::UnknownVariable { asked, known } => {
                near(asked, known).or_else(|| Some(format!("declare it in the project file: var {asked:?}")))
            }
        }
    }
}

fn list(names: &[Name]) -> String {
    if names.is_empty() {
        return "none".into();
    }
    names.iter().map(Name::as_str).collect::<Vec<_>>().join(", ")
}

/// Reads what is declared. Problems, errors included, are in the report of the result.
pub fn load(place: &Where) -> Result<Loaded, LoadError> {
    let directory = place.directory.clone().unwrap_or_else(|| ".".into());
    let root = Root::open(&directory)?;
    let mut reading = Reading::default();
    let chosen = match project_file(&root, &mut reading)? {
        // The report has the problem; without the project file, or the env that it is in, it is unknown which
        // files to read.
        Some((_, None)) => Chosen::without_project(place),
        Some((_, Some(file))) if reading.report.has_errors() && choose(place, &file).is_err() => {
            Chosen::without_project(place)
        }
        Some((documents, Some(file))) => of_project(place, &root, &documents, &file, &mut reading)?,
        None => Chosen {
            variables: read_without_project(place, &root, &mut reading)?,
            ..Chosen::without_project(place)
        },
    };
    Ok(read(place, directory, chosen, reading))
}

/// The project, env and server that were chosen, and the values of variables.
struct Chosen {
    project: Option<Name>,
    env: Name,
    server: Option<String>,
    guard: Option<Limits>,
    variables: Variables,
    /// The variables of the project that have no value.
    unset: Vec<Name>,
}

impl Chosen {
    /// What flags and environment choose.
    fn without_project(place: &Where) -> Self {
        Self {
            project: place.project.clone(),
            env: place.env.clone().unwrap_or_else(|| "default".parse().expect("it is a good name")),
            server: server_over(place, None),
            guard: None,
            variables: Variables::new(),
            unset: Vec::new(),
        }
    }
}

/// Chooses the env of a project, and reads the files that it uses.
fn of_project(
    place: &Where,
    root: &Root,
    documents: &[Document],
    file: &ProjectFile,
    reading: &mut Reading,
) -> Result<Chosen, LoadError> {
    check_name(place, file, reading)?;
    let (name, env) = choose(place, file)?;
    let document = documents.iter().find(|it| it.descriptor.word == "env" && *it.name.text == *name.as_str());
    match place.files.is_empty() {
        true => reading.used(root, env, document)?,
        false => reading.given(&place.files)?,
    }
    let given = given(place, file)?;
    reading.report.append(project::unset(documents, file, name, &given.keys().cloned().collect()));
    let variables = variables(file, env, given);
    Ok(Chosen {
        project: Some(file.name.clone()),
        env: name.clone(),
        server: server_over(place, Some(env)),
        guard: Some(file.guard.clone()),
        unset: file.vars.keys().filter(|name| !variables.contains_key(name.as_str())).cloned().collect(),
        variables,
    })
}

/// Parses and decodes the files that were read.
fn read(place: &Where, directory: PathBuf, chosen: Chosen, reading: Reading) -> Loaded {
    let Reading { sources, declaring, passed, mut report } = reading;
    let (declared, found) = read_documents(&sources, &declaring, &chosen.variables);
    found
        .problems()
        .filter(|it| !is_reported(it, &sources, &chosen.unset))
        .for_each(|it| report.push(it.clone()));
    if declared.snapshot.is_empty() && !report.has_errors() && !place.allow_empty {
        report.push(nothing(&directory, declaring.len(), &passed));
    }
    let Chosen { project, env, server, guard, .. } = chosen;
    Loaded { directory, project, env, server, guard, declared, report, sources }
}

/// The URL of the server, without reading the declarations.
pub fn server(place: &Where) -> Result<Option<String>, LoadError> {
    server_by(place, |file| choose(place, file).map(|(_, env)| Some(env)))
}

/// The URL of the server of a saved plan, which names its project and env.
pub fn server_of(place: &Where, owner: &Owner) -> Result<Option<String>, LoadError> {
    server_by(place, |file| Ok(file.envs.get(&owner.env).filter(|_| file.name == owner.project)))
}

/// The URL of the server; the project file is read only if no flag sets it.
fn server_by(
    place: &Where,
    env: impl FnOnce(&ProjectFile) -> Result<Option<&Env>, LoadError>,
) -> Result<Option<String>, LoadError> {
    if place.server.is_some() {
        return Ok(place.server.clone());
    }
    let root = Root::open(place.directory.as_deref().unwrap_or(Path::new(".")))?;
    let mut reading = Reading::default();
    let file = project_file(&root, &mut reading)?.and_then(|(_, file)| file);
    let env =
        file.as_ref().map(env).transpose().map_err(|error| broken(&reading).unwrap_or(error))?.flatten();
    Ok(server_over(place, env))
}

/// The error of a project file that could not be read in full; nothing if it could.
fn broken(reading: &Reading) -> Option<LoadError> {
    let mut problems = reading.report.problems().filter(|problem| problem.code.severity() == Severity::Error);
    let problem = problems.next()?;
    let source = reading.sources.first()?;
    let line = problem.at.map_or(1, |at| source.text[..at.span.start as usize].matches('\n').count() + 1);
    Some(LoadError::Broken { file: plain(&source.name), line, message: problem.message.clone() })
}

/// The URL of the server: from a flag, else from the env, else from the environment.
fn server_over(place: &Where, env: Option<&Env>) -> Option<String> {
    let of_env = env.and_then(|env| env.server.as_ref()).map(ToString::to_string);
    place.server.clone().or(of_env).or_else(|| place.environment.get("SERVER").map(str::to_owned))
}

type Project = (Vec<Document>, Option<ProjectFile>);

/// Reads the project file, if there is one.
fn project_file(root: &Root, reading: &mut Reading) -> Result<Option<Project>, LoadError> {
    let mut existing = Vec::new();
    for path in PROJECT_FILES.iter().map(|name| root.shown.join(name)) {
        // One that cannot be looked at is not one that is missing: without it everything would be another
        // project's.
        match path.symlink_metadata() {
            Ok(_) => existing.push(path),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(LoadError::Read { path: shown(&path), source }),
        }
    }
    let path = match &*existing {
        [] => return Ok(None),
        [path] => path,
        [path, other, ..] => return Err(LoadError::TwoProjects(shown(path), shown(other))),
    };
    let Some(id) = reading.file(path)? else { return Ok(Some((Vec::new(), None))) };
    let source = &reading.sources[id.0 as usize];
    let (documents, report) = parse(source, id, project::DESCRIPTORS);
    let broken = report.has_errors();
    reading.report.append(report);
    let (file, report) = project::decode(&documents);
    // After a syntax error, fields may only seem to be missing.
    if !broken {
        reading.report.append(report);
    }
    Ok(Some((documents, file)))
}

fn check_name(place: &Where, file: &ProjectFile, reading: &Reading) -> Result<(), LoadError> {
    match &place.project {
        Some(asked) if *asked != file.name => Err(LoadError::OtherProject {
            asked: asked.clone(),
            found: file.name.clone(),
            file: plain(&reading.sources[0].name),
        }),
        Some(_) | None => Ok(()),
    }
}

/// Chooses the env.
fn choose<'a>(place: &Where, file: &'a ProjectFile) -> Result<(&'a Name, &'a Env), LoadError> {
    let asked = place.env.as_ref().map(Name::as_str).or_else(|| place.environment.get("ENV"));
    let known = || file.envs.keys().cloned().collect::<Vec<_>>();
    let found = match asked {
        Some(asked) => file.envs.iter().find(|(name, _)| name.as_str() == asked),
        None if file.envs.len() > 1 => return Err(LoadError::WhichEnv(known())),
        None => file.envs.iter().next(),
    };
    found.ok_or_else(|| LoadError::UnknownEnv { asked: asked.unwrap_or("default").into(), known: known() })
}

/// Reads the files of a directory without a project file; returns the variables.
fn read_without_project(place: &Where, root: &Root, reading: &mut Reading) -> Result<Variables, LoadError> {
    match place.files.is_empty() {
        true => reading.everything(root)?,
        false => reading.given(&place.files)?,
    }
    let set =
        place.environment.with_prefix("VAR_").map(|(name, value)| (name.replace('_', "-"), value.to_owned()));
    Ok(set.chain(place.variables.clone()).collect())
}

/// The values of variables from the environment and the command line, which takes precedence.
fn given(place: &Where, file: &ProjectFile) -> Result<BTreeMap<Name, String>, LoadError> {
    if let Some(asked) = place.variables.keys().find(|name| !file.vars.contains_key(name.as_str())) {
        return Err(LoadError::UnknownVariable {
            asked: asked.clone(),
            known: file.vars.keys().cloned().collect(),
        });
    }
    let value = |name: &Name| {
        let from_environment = || place.environment.get(&format!("VAR_{}", name.as_str().replace('-', "_")));
        place.variables.get(name.as_str()).map(String::as_str).or_else(from_environment)
    };
    Ok(file.vars.keys().filter_map(|name| Some((name.clone(), value(name)?.to_owned()))).collect())
}

/// The values of variables: given ones, else those of the env, else defaults.
fn variables(file: &ProjectFile, env: &Env, mut given: BTreeMap<Name, String>) -> Variables {
    let value = |(name, var): (&Name, &Var)| {
        let of_env = || env.set.get(name.as_str()).map(ToString::to_string);
        let value =
            given.remove(name).or_else(of_env).or_else(|| var.default.as_ref().map(ToString::to_string))?;
        Some((name.to_string(), value))
    };
    file.vars.iter().filter_map(value).collect()
}

/// Parses the files, as many at a time as there are processors, decodes them and checks the rules.
fn read_documents(sources: &[Source], declaring: &[SourceId], variables: &Variables) -> (Declared, Report) {
    let next = AtomicUsize::new(0);
    let work = || {
        let mut parsed = Vec::new();
        while let Some(id) = declaring.get(next.fetch_add(1, Ordering::Relaxed)) {
            let (mut documents, mut report) = parse(&sources[id.0 as usize], *id, Kind::DESCRIPTORS);
            substitute(&mut documents, variables, &mut report);
            parsed.push((*id, documents, report));
        }
        parsed
    };
    let workers = thread::available_parallelism().map_or(1, usize::from).min(declaring.len());
    let mut parsed: Vec<_> = thread::scope(|scope| {
        let workers: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        workers.into_iter().flat_map(|worker| worker.join().expect("parsing does not panic")).collect()
    });
    parsed.sort_by_key(|(id, ..)| *id);
    let mut documents = Vec::new();
    let mut report = Report::default();
    for (_, found, problems) in parsed {
        documents.extend(found);
        report.append(problems);
    }
    let (declared, problems) = decode(documents);
    report.append(problems);
    report.append(rules::check(&declared.snapshot, &declared.source_map));
    // What could not be read may have the tag that seems to be missing.
    if !report.has_errors() {
        report.append(rules::selectors::check(&declared.snapshot, &declared.source_map));
    }
    (declared, report)
}

/// Whether a variable is unknown only because nothing sets it, which is already reported as a problem of its
/// own.
fn is_reported(problem: &Problem, sources: &[Source], unset: &[Name]) -> bool {
    let value = || {
        let at = problem.at?;
        sources.get(at.source.0 as usize)?.text.get(at.span.start as usize..at.span.end as usize)
    };
    problem.code == Code::UnknownVariable
        && value().is_some_and(|value| unset.iter().any(|name| value.contains(&format!("${{{name}}}"))))
}

fn nothing(directory: &Path, files: usize, passed: &[Arc<str>]) -> Problem {
    let read = match files {
        0 => "there is no .kdl, .yaml or .yml file".to_owned(),
        1 => "1 file was read, and it declares nothing".to_owned(),
        files => format!("{} were read, and they declare nothing", count(files as u64, "file")),
    };
    let passed = match passed {
        [] => String::new(),
        few @ [..] if few.len() <= 3 => format!("; of another kind, and passed over: {}", few.join(", ")),
        [first, rest @ ..] => format!("; of another kind, and passed over: {first} and {} more", rest.len()),
    };
    let message = format!("no network is declared in {}: {read}{passed}", shown(directory));
    let help = "declare a network, or check -C and the env's `use`; --allow-empty deletes all that the project manages";
    Problem::new(Code::NothingDeclared, message).help(help.to_owned())
}
