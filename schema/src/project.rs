//! The project file: what the project is called, how much one apply may do, and for each env the server, the
//! files and the variables.

use std::collections::{BTreeMap, BTreeSet};

use schema_derive::Describe;

use crate::attribute::{Bounded, Describe, Mismatch, read};
use crate::descriptor::{Descriptor, with_article};
use crate::document::Document;
use crate::limits::Limits;
use crate::report::{Code, Problem, Report, did_you_mean};
use crate::scalars::{Name, Scalar};
use crate::value::{Location, SourceId, Span, Step};

/// The schema that this version reads.
pub const SCHEMA: i64 = 1;

/// What the files of a directory have in common: the name of the project.
#[derive(Clone, Debug, PartialEq, Describe)]
#[describe(word = "project", plural = "project")]
pub struct Project {
    /// The version of the file format; this is 1.
    pub schema: Bounded<1, 1_000>,
}

/// A variable for `${name}` inside values: an env sets it, or NMPLAN_VAR_name, or `--var`.
#[derive(Clone, Debug, PartialEq, Describe)]
#[describe(word = "var", plural = "var")]
pub struct Var {
    /// Its value where nothing sets it. Absent: it must be set.
    pub default: Option<Box<str>>,
}

/// A place where the declarations apply: a server, and what is declared for it.
#[derive(Clone, Debug, PartialEq, Describe)]
#[describe(word = "env", plural = "env")]
pub struct Env {
    /// The URL of the server's REST API. Absent: `--server` or NMPLAN_SERVER.
    pub server: Option<Box<str>>,
    /// The directories and files to read, below the project's directory; every .kdl, .yaml and .yml file of a
    /// directory and of those below it. Absent: all of the project's directory.
    pub r#use: BTreeSet<Box<str>>,
    /// The values of variables in this env.
    pub set: BTreeMap<Box<str>, Box<str>>,
}

/// The kinds that a project file may hold.
pub const DESCRIPTORS: &[&Descriptor] = &[
    <Project as Describe>::DESCRIPTOR,
    <Limits as Describe>::DESCRIPTOR,
    <Var as Describe>::DESCRIPTOR,
    <Env as Describe>::DESCRIPTOR,
];

/// A project file as it was read.
#[derive(Clone, Debug, PartialEq)]
pub struct ProjectFile {
    /// The project's name.
    pub name: Name,
    /// Its guard; the default if it has none: without limits.
    pub guard: Limits,
    /// Its variables.
    pub vars: BTreeMap<Name, Var>,
    /// Its envs.
    pub envs: BTreeMap<Name, Env>,
}

/// Reads the documents of a project file, reporting every problem.
pub fn decode(documents: &[Document]) -> (Option<ProjectFile>, Report) {
    let mut reader = Reader { report: Report::default(), places: BTreeMap::new() };
    let projects: BTreeMap<Name, Project> = reader.all(documents);
    let guard = reader.all(documents).into_values().next().unwrap_or_default();
    let (vars, envs): (BTreeMap<Name, Var>, BTreeMap<Name, Env>) =
        (reader.all(documents), reader.all(documents));
    let first =
        documents.first().map_or(Location { source: SourceId(0), span: Span::default() }, |it| it.at());
    reader.check_variables(documents, &vars, &envs);
    let Some((name, project)) = projects.into_iter().next() else {
        if reader.report.is_empty() {
            let problem =
                Problem::new(Code::ProjectMissing, "the project file does not define a project").at(first);
            let help = "add `project \"acme\" schema=1`, in YAML `project: { acme: { schema: 1 } }`";
            reader.report.push(problem.help(help.to_owned()));
        }
        return (None, reader.report);
    };
    if project.schema.number() != SCHEMA {
        let message = format!(
            "the project's files are of schema {}, but this nmplan reads {SCHEMA}",
            project.schema.number()
        );
        let at = documents
            .iter()
            .find(|document| document.descriptor.word == Project::WORD)
            .map(|it| it.location(&[Step::Field("schema")]));
        let problem = Problem::new(Code::ProjectSchema, message).at(at);
        reader.report.push(problem.help("use a newer nmplan".to_owned()));
    }
    (Some(ProjectFile { name, guard, vars, envs }), reader.report)
}

/// Reports the variables that have no value in an env: no default, none from the env, and none, by the names
/// that are `given`, from the environment or the command line.
pub fn unset(documents: &[Document], file: &ProjectFile, env: &Name, given: &BTreeSet<Name>) -> Report {
    let mut report = Report::default();
    let is_set = |name: &Name| file.envs.get(env).is_some_and(|env| env.set.contains_key(name.as_str()));
    let at = documents.iter().find(|it| it.descriptor.word == Env::WORD && *it.name.text == *env.as_str());
    for (name, var) in &file.vars {
        if var.default.is_some() || given.contains(name) || is_set(name) {
            continue;
        }
        let message = format!("the variable {name} has no value in env {env}");
        let help = format!("set it in the env, give it a default, or pass --var {name}=VALUE");
        report.push(Problem::new(Code::UnsetVariable, message).at(at.map(Document::at)).help(help));
    }
    report
}

struct Reader {
    report: Report,
    places: BTreeMap<(&'static str, Name), Location>,
}

impl Reader {
    /// Reads every document of one kind.
    fn all<T: Describe>(&mut self, documents: &[Document]) -> BTreeMap<Name, T> {
        let mut all = BTreeMap::new();
        for document in documents.iter().filter(|document| document.descriptor.word == T::WORD) {
            let at = document.at();
            let name: Name = match document.name.text.parse() {
                Ok(name) => name,
                Err(why) => {
                    let message = format!(
                        "{:?} is not a valid name for {}: {why}",
                        &*document.name.text,
                        with_article(T::WORD)
                    );
                    let help =
                        Name::meant(&document.name.text).map(|meant| format!("did you mean {meant:?}?"));
                    self.report.push(Problem::new(Code::InvalidName, message).at(at).help(help));
                    continue;
                }
            };
            if let Some(first) = self.places.insert((T::WORD, name.clone()), at) {
                let what = match document.descriptor.named {
                    true => format!("{} {name}", T::WORD),
                    false => format!("the {}", T::WORD),
                };
                let problem = Problem::new(Code::DuplicateResource, format!("{what} is defined twice"));
                let problem = problem.at(at).see(Some(first), "defined here first");
                self.report.push(problem.help("keep one of the two".to_owned()));
                continue;
            }
            let mut found = Vec::new();
            if let Some(it) = read(&document.fields, document.name.span, &mut found) {
                all.insert(name, it);
            }
            for Mismatch { code, span, message, help } in found {
                let at = Location { source: document.source, span };
                self.report.push(Problem::new(code, message).at(at).help(help));
            }
        }
        all
    }

    /// Checks that every variable that an env sets is declared.
    fn check_variables(
        &mut self,
        documents: &[Document],
        vars: &BTreeMap<Name, Var>,
        envs: &BTreeMap<Name, Env>,
    ) {
        for document in documents.iter().filter(|document| document.descriptor.word == Env::WORD) {
            let Some(env) = envs.get(&*document.name.text) else { continue };
            for name in env.set.keys().filter(|name| !vars.contains_key(&***name)) {
                let help = did_you_mean(name, vars.keys().map(Name::as_str));
                let help = help.unwrap_or_else(|| format!("declare it: var {name:?}"));
                let problem = Problem::new(Code::UnknownVariable, format!("there is no variable {name:?}"));
                self.report
                    .push(problem.at(document.location(&[Step::Field("set"), Step::Field(name)])).help(help));
            }
        }
    }
}
