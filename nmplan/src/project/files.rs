//! The files of a project: finds and reads them.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use schema::document::Document;
use schema::project::Env;
use schema::report::{Code, Problem, Report};
use schema::syntax::{Language, MAX_SIZE, Source};
use schema::text::{name as named, path as shown, plain};
use schema::value::{Location, SourceId, Span, Step};

use super::{LoadError, PROJECT_FILES};

/// The project's directory: as it was given, and its canonical path.
pub(super) struct Root {
    pub(super) shown: PathBuf,
    real: PathBuf,
}

impl Root {
    pub(super) fn open(directory: &Path) -> Result<Self, LoadError> {
        let failed = |source| LoadError::Read { path: shown(directory), source };
        let real = directory.canonicalize().map_err(failed)?;
        // What it is may be unknown, which is an error of its own.
        if !fs::metadata(&real).map_err(failed)?.is_dir() {
            return Err(failed(io::ErrorKind::NotADirectory.into()));
        }
        Ok(Self { shown: directory.into(), real })
    }
}

/// The type of a directory entry.
enum Entry {
    Directory,
    /// A file with declarations.
    Declares,
    /// Anything else, which is not read.
    Other,
}

/// What has been read so far.
#[derive(Default)]
pub(super) struct Reading {
    /// Every file, the project file first.
    pub(super) sources: Vec<Source>,
    /// Those with declarations.
    pub(super) declaring: Vec<SourceId>,
    /// The files that are not read, since nothing is declared in such ones.
    pub(super) passed: Vec<Arc<str>>,
    pub(super) report: Report,
}

impl Reading {
    /// Reads the files that an env uses, each once.
    pub(super) fn used(
        &mut self,
        root: &Root,
        env: &Env,
        document: Option<&Document>,
    ) -> Result<(), LoadError> {
        if env.r#use.is_empty() {
            return self.everything(root);
        }
        let mut paths = BTreeSet::new();
        let mut walked = BTreeSet::new();
        for path in &env.r#use {
            let at = document.map(|document| location_of(document, path));
            match inside(root, Path::new(&**path)) {
                Ok(real) if real.is_dir() => {
                    let directory = root.shown.join(&**path);
                    paths.extend(self.walk(root, directory, &mut walked)?);
                }
                Ok(_) if language(Path::new(&**path)).is_some() => {
                    paths.insert(root.shown.join(&**path));
                }
                Ok(_) => self.report.push(
                    bad_path(
                        path,
                        "its extension is not one of .kdl, .yaml and .yml",
                        "name a directory or such a file",
                    )
                    .at(at),
                ),
                Err(why) => self.report.push(
                    bad_path(path, &why, "name a directory or a file below the project's directory").at(at),
                ),
            }
        }
        self.declare(paths)
    }

    /// Reads every file of the directory.
    pub(super) fn everything(&mut self, root: &Root) -> Result<(), LoadError> {
        let paths = self.walk(root, root.shown.clone(), &mut BTreeSet::new())?;
        self.declare(paths)
    }

    /// Reads the files of `-f`.
    pub(super) fn given(&mut self, files: &[PathBuf]) -> Result<(), LoadError> {
        for path in files {
            let id = if path.as_os_str() == "-" {
                self.read("standard input", io::stdin().lock(), None)?
            } else {
                self.file(path)?
            };
            self.declaring.extend(id);
        }
        Ok(())
    }

    /// Reads files in the order of their names; a file with several names is read once, under the first.
    fn declare(&mut self, paths: BTreeSet<PathBuf>) -> Result<(), LoadError> {
        let mut seen = BTreeSet::new();
        for path in paths {
            let failed = |source| LoadError::Read { path: shown(&path), source };
            if !seen.insert(path.canonicalize().map_err(failed)?) {
                continue;
            }
            let id = self.file(&path)?;
            self.declaring.extend(id);
        }
        Ok(())
    }

    /// The declaring files of a directory and its subdirectories, except those that were `walked` before,
    /// hidden ones, and project files at the top.
    fn walk(
        &mut self,
        root: &Root,
        directory: PathBuf,
        walked: &mut BTreeSet<PathBuf>,
    ) -> Result<BTreeSet<PathBuf>, LoadError> {
        let mut found = BTreeSet::new();
        let mut open = BTreeSet::from([directory]);
        while let Some(directory) = open.pop_first() {
            let failed = |source| LoadError::Read { path: shown(&directory), source };
            let real = directory.canonicalize().map_err(failed)?;
            let is_top = real == root.real;
            // A link may lead back to its own directory.
            if !walked.insert(real) {
                continue;
            }
            for entry in fs::read_dir(&directory).map_err(failed)? {
                let path = entry.map_err(failed)?.path();
                let name = path.file_name().unwrap_or_default();
                let is_project = is_top && PROJECT_FILES.iter().any(|project| name == *project);
                if name.as_encoded_bytes().starts_with(b".") || is_project {
                    continue;
                }
                match self.entry(root, &path)? {
                    Entry::Directory => drop(open.insert(path)),
                    Entry::Declares => drop(found.insert(path)),
                    Entry::Other => self.passed.push(shown(&path).into()),
                }
            }
        }
        Ok(found)
    }

    /// The type of a directory entry; a problem is reported for one with a declaring extension that cannot be
    /// read.
    fn entry(&mut self, root: &Root, path: &Path) -> Result<Entry, LoadError> {
        let readable = language(path).is_some();
        let found = path.canonicalize().and_then(|real| Ok((fs::metadata(&real)?, real)));
        let (metadata, real) = match found {
            Ok(found) => found,
            // A link that leads nowhere declares nothing, unless its name says so.
            Err(error) if !readable && error.kind() == io::ErrorKind::NotFound => return Ok(Entry::Other),
            Err(source) => return Err(LoadError::Read { path: shown(path), source }),
        };
        let is_directory = metadata.is_dir();
        let below = path.strip_prefix(&root.shown).unwrap_or(path);
        if !is_directory && !(readable && (metadata.is_file() || !real.starts_with(&root.real))) {
            return Ok(Entry::Other);
        }
        let bad = |why, help| bad_path(&shown(path), why, help);
        if !real.starts_with(&root.real) {
            self.report.push(bad("it is a link to outside the project's directory", "remove the link"));
        } else if is_directory {
            return Ok(Entry::Directory);
        } else if below.to_str().is_none() {
            self.report.push(bad("its name is not UTF-8", "give it another name"));
        } else {
            return Ok(Entry::Declares);
        }
        Ok(Entry::Other)
    }

    /// Reads one file; none if a problem is reported instead.
    pub(super) fn file(&mut self, path: &Path) -> Result<Option<SourceId>, LoadError> {
        let name = named(path);
        let file = fs::File::open(path).map_err(|source| LoadError::Read { path: shown(path), source })?;
        self.read(&name, file, language(path))
    }

    fn read(
        &mut self,
        name: &str,
        from: impl Read,
        language: Option<Language>,
    ) -> Result<Option<SourceId>, LoadError> {
        let mut bytes = Vec::new();
        let read = from.take(MAX_SIZE as u64 + 1).read_to_end(&mut bytes);
        read.map_err(|source| LoadError::Read { path: plain(name), source })?;
        let id = SourceId(u32::try_from(self.sources.len()).expect("there are fewer files"));
        let text = String::from_utf8(bytes)
            .map_err(|error| self.not_text(id, name, error.utf8_error().valid_up_to()));
        let whole = text.is_ok();
        let text = text.unwrap_or_default();
        let language = language.unwrap_or_else(|| guess(&text));
        self.sources.push(Source { name: name.into(), text: text.into(), language });
        Ok(whole.then_some(id))
    }

    fn not_text(&mut self, source: SourceId, name: &str, byte: usize) {
        let at = Location { source, span: Span::new(0, 0) };
        let message =
            format!("{} is not UTF-8 text: the first invalid byte is byte {}", plain(name), byte + 1);
        self.report.push(Problem::new(Code::NotText, message).at(at).help("save it as UTF-8".to_owned()));
    }
}

/// The language by the extension of a file, even if the rest of its name is not UTF-8.
pub(crate) fn language(path: &Path) -> Option<Language> {
    Language::of(&format!(".{}", path.extension()?.to_str()?))
}

/// The language of a text without a file name: YAML if its first line that is not a comment looks like it,
/// else KDL.
fn guess(text: &str) -> Language {
    let mut lines = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#') && !line.starts_with("//"));
    let first = lines.next().unwrap_or_default();
    let key = first.split_once(':').is_some_and(|(key, rest)| {
        let word = key.trim_matches(['"', '\'']);
        let plain = !word.is_empty() && word.chars().all(|c| c.is_alphanumeric() || "-_".contains(c));
        plain && (rest.is_empty() || rest.starts_with(' '))
    });
    if key || first.starts_with("---") || first.starts_with('{') { Language::Yaml } else { Language::Kdl }
}

/// The canonical path of an entry of `use`, if it may be used.
fn inside(root: &Root, path: &Path) -> Result<PathBuf, String> {
    if path.is_absolute() {
        return Err("it is not relative to the project's directory".into());
    }
    let real = root.real.join(path).canonicalize().map_err(|error| {
        match error.kind() == io::ErrorKind::NotFound {
            true => "it does not exist".to_owned(),
            false => error.to_string(),
        }
    })?;
    if real.starts_with(&root.real) { Ok(real) } else { Err("it is outside the project's directory".into()) }
}

fn bad_path(path: &str, why: &str, help: &str) -> Problem {
    Problem::new(Code::ProjectPath, format!("{path:?} cannot be read: {why}")).help(help.to_owned())
}

/// The location of an entry of `use` in the project file.
fn location_of(document: &Document, path: &str) -> Location {
    let field = [Step::Field("use")];
    document.element(&field, path).unwrap_or_else(|| document.location(&field))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_without_a_name_is_yaml_if_its_first_line_looks_like_it() {
        for yaml in [
            "networks:\n  corp:",
            "# a comment\n\nnetworks: {}",
            "---\n",
            "{\"networks\": {}}",
            "\"networks\": {}",
        ] {
            assert_eq!(guess(yaml), Language::Yaml, "{yaml:?}");
        }
        for kdl in [
            "",
            "network \"corp\" {",
            "// networks: no\nnetwork \"a\"",
            "network \"a:b\" ipv4=\"x\"",
            "/* x */ network",
        ] {
            assert_eq!(guess(kdl), Language::Kdl, "{kdl:?}");
        }
    }
}
