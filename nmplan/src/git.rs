//! Where the files came from, as git knows it.

use std::path::{Path, PathBuf};

use git2::{Repository, Status, StatusOptions, Statuses};
use schema::snapshot::Provenance;

use crate::project::language;

/// The files that declare.
#[derive(Clone, Debug)]
pub struct Files<'a> {
    /// The project's directory.
    pub directory: &'a Path,
    /// Those that were read, the project file among them.
    pub read: Vec<&'a Path>,
    /// Whether files were looked for in the directory, so that one which is gone makes a difference.
    pub whole: bool,
}

/// The commit that files stand at, and whether they differ from that. Nothing where there is no repository, no commit yet,
/// or a repository that cannot be read: provenance is a courtesy, and no apply fails for it.
pub fn provenance(files: &Files<'_>) -> Option<Provenance> {
    let repository = Repository::discover(files.directory).ok()?;
    let commit = repository.head().ok()?.peel_to_commit().ok()?;
    let author = commit.author();
    let name = String::from_utf8_lossy(author.name_bytes()).into_owned();
    let email = String::from_utf8_lossy(author.email_bytes()).into_owned();
    Some(Provenance {
        commit: Some(commit.id().to_string()),
        author: Some(format!("{name} <{email}>")),
        message: commit.summary_bytes().map(|line| String::from_utf8_lossy(line).into_owned()),
        dirty: differ(&repository, files).unwrap_or(true),
    })
}

/// Whether any of the files differs from the commit, or one that declared is gone; nothing where that cannot be told, as of
/// standard input or of a file outside of the repository.
fn differ(repository: &Repository, files: &Files<'_>) -> Option<bool> {
    let root = repository.workdir()?.canonicalize().ok()?;
    let inside = |path: &Path| path.canonicalize().ok()?.strip_prefix(&root).ok().map(Path::to_owned);
    let read: Vec<PathBuf> = files.read.iter().map(|path| inside(path)).collect::<Option<_>>()?;
    let mut options = StatusOptions::new();
    options.include_untracked(true).recurse_untracked_dirs(true).include_ignored(true).recurse_ignored_dirs(true);
    if !read.is_empty() && !statuses(repository, options, &read)?.is_empty() {
        return Some(true);
    }
    let mut options = StatusOptions::new();
    options.include_untracked(false).include_ignored(false);
    let directory = inside(files.directory)?;
    Some(files.whole && statuses(repository, options, &[directory])?.iter().any(|entry| is_lost(&entry)))
}

/// How paths of the worktree differ from the commit; the empty path is all of it.
fn statuses<'a>(repository: &'a Repository, mut options: StatusOptions, paths: &[PathBuf]) -> Option<Statuses<'a>> {
    options.disable_pathspec_match(true);
    for path in paths.iter().filter(|path| !path.as_os_str().is_empty()) {
        options.pathspec(path);
    }
    repository.statuses(Some(&mut options)).ok()
}

/// Whether the commit has a file that declares, and the worktree has it no more.
fn is_lost(entry: &git2::StatusEntry<'_>) -> bool {
    let declares = || entry.path().is_ok_and(|path| language(Path::new(path)).is_some());
    entry.status().intersects(Status::INDEX_DELETED | Status::WT_DELETED) && declares()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn committed(directory: &Path) -> Repository {
        let repository = Repository::init(directory).expect("a repository can be made");
        std::fs::write(directory.join("a.kdl"), "network \"a\"").expect("a file can be written");
        let mut index = repository.index().expect("there is an index");
        index.add_path(Path::new("a.kdl")).expect("a file can be added");
        let tree = index.write_tree().expect("a tree can be written");
        index.write().expect("the index can be written");
        let author = git2::Signature::new("Ann", "ann@example.org", &git2::Time::new(0, 0)).expect("good");
        {
            let tree = repository.find_tree(tree).expect("it was written");
            repository.commit(Some("HEAD"), &author, &author, "Add a\n\nBecause.", &tree, &[]).expect("it commits");
        }
        repository
    }

    fn told(directory: &Path, read: &[&str]) -> Option<Provenance> {
        let read: Vec<PathBuf> = read.iter().map(|name| directory.join(name)).collect();
        provenance(&Files { directory, read: read.iter().map(PathBuf::as_path).collect(), whole: true })
    }

    #[test]
    fn a_commit_is_told_with_author_first_line_and_dirt() {
        let directory = tempfile::tempdir().expect("a directory can be made");
        let repository = committed(directory.path());
        let head = repository.head().ok().and_then(|head| head.target()).map(|id| id.to_string());
        let clean = told(directory.path(), &["a.kdl"]).expect("there is a commit");
        assert_eq!((clean.commit, clean.dirty), (head, false));
        assert_eq!((clean.author.as_deref(), clean.message.as_deref()), (Some("Ann <ann@example.org>"), Some("Add a")));
    }

    #[test]
    fn only_files_that_declare_make_dirt() {
        let directory = tempfile::tempdir().expect("a directory can be made");
        committed(directory.path());
        let write = |name: &str| std::fs::write(directory.path().join(name), "// x").expect("a file can be written");
        let dirty = |read: &[&str]| told(directory.path(), read).expect("there is a commit").dirty;
        ["plan.json", "keys.json", ".gitignore"].into_iter().for_each(write);
        assert!(!dirty(&["a.kdl"]), "what declares nothing is left out");
        write("new.kdl");
        assert!(dirty(&["a.kdl", "new.kdl"]));
        std::fs::write(directory.path().join(".gitignore"), "new.kdl").expect("a file can be written");
        assert!(dirty(&["a.kdl", "new.kdl"]), "an ignored file is not in the commit either");
        assert!(dirty(&["a.kdl", "standard input"]), "nobody knows where it comes from");
        write("a.kdl");
        assert!(dirty(&["a.kdl"]));
        std::fs::remove_file(directory.path().join("a.kdl")).expect("it is there");
        assert!(dirty(&[]), "the commit declares more");
    }

    #[test]
    fn what_is_no_repository_that_can_be_read_has_no_provenance() {
        let directory = tempfile::tempdir().expect("a directory can be made");
        assert_eq!(told(directory.path(), &[]), None);
        let repository = Repository::init(directory.path()).expect("a repository can be made");
        assert_eq!(told(directory.path(), &[]), None, "no commit yet");
        let config = repository.path().join("config");
        let other =
            "[core]\n\trepositoryformatversion = 1\n[extensions]\n\tobjectformat = sha256\n\trefstorage = reftable\n";
        std::fs::write(config, other).expect("it can be written");
        assert_eq!(told(directory.path(), &[]), None, "a repository of another format");
    }
}
