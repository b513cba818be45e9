//! The provenance of the files: the git commit that they come from.

use std::path::{Path, PathBuf};

use git2::{Repository, Status, StatusOptions, Statuses};
use schema::snapshot::Provenance;

use crate::project::language;

/// The files that declare.
#[derive(Clone, Debug)]
pub struct Files<'a> {
    /// The project's directory.
    pub directory: &'a Path,
    /// The files that were read, including the project file.
    pub read: Vec<&'a Path>,
    /// Whether the directory was searched for files, so that a deleted one makes a difference.
    pub whole: bool,
}

/// The commit that is checked out, and whether the files differ from it. None if there is no repository, no
/// commit yet, or a repository that cannot be read: provenance is optional, and no apply fails for it.
pub fn provenance(files: &Files<'_>) -> Option<Provenance> {
    let repository = Repository::discover(files.directory).ok()?;
    let commit = repository.head().ok()?.peel_to_commit().ok()?;
    let author = commit.author();
    let name = String::from_utf8_lossy(author.name_bytes()).into_owned();
    let email = String::from_utf8_lossy(author.email_bytes()).into_owned();
    Some(Provenance {
        commit: Some(commit.id().to_string()),
        author: Some(Provenance::cut(format!("{name} <{email}>"))),
        message: commit
            .summary_bytes()
            .map(|line| Provenance::cut(String::from_utf8_lossy(line).into_owned())),
        dirty: differ(&repository, files).unwrap_or(true),
    })
}

/// Whether any of the files differs from the commit, or a declaring one was deleted; none if that is unknown,
/// as for standard input or for a file outside the repository.
fn differ(repository: &Repository, files: &Files<'_>) -> Option<bool> {
    let root = repository.workdir()?.canonicalize().ok()?;
    let inside = |path: &Path| path.canonicalize().ok()?.strip_prefix(&root).ok().map(Path::to_owned);
    let read: Vec<PathBuf> = files.read.iter().map(|path| inside(path)).collect::<Option<_>>()?;
    let mut options = StatusOptions::new();
    options
        .include_untracked(true)
        .recurse_untracked_dirs(true)
        .include_ignored(true)
        .recurse_ignored_dirs(true);
    if !read.is_empty() && !statuses(repository, options, &read)?.is_empty() {
        return Some(true);
    }
    let mut options = StatusOptions::new();
    options.include_untracked(false).include_ignored(false);
    let directory = inside(files.directory)?;
    Some(files.whole && statuses(repository, options, &[directory])?.iter().any(|entry| is_lost(&entry)))
}

/// How paths of the worktree differ from the commit; the empty path stands for the whole worktree.
fn statuses<'a>(
    repository: &'a Repository,
    mut options: StatusOptions,
    paths: &[PathBuf],
) -> Option<Statuses<'a>> {
    options.disable_pathspec_match(true);
    for path in paths.iter().filter(|path| !path.as_os_str().is_empty()) {
        options.pathspec(path);
    }
    repository.statuses(Some(&mut options)).ok()
}

/// Whether the commit has a declaring file that the worktree no longer has.
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
            repository
                .commit(Some("HEAD"), &author, &author, "Add a\n\nBecause.", &tree, &[])
                .expect("it commits");
        }
        repository
    }

    fn provenance_of(directory: &Path, read: &[&str]) -> Option<Provenance> {
        let read: Vec<PathBuf> = read.iter().map(|name| directory.join(name)).collect();
        provenance(&Files { directory, read: read.iter().map(PathBuf::as_path).collect(), whole: true })
    }

    #[test]
    fn provenance_has_commit_author_first_line_and_whether_files_differ() {
        let directory = tempfile::tempdir().expect("a directory can be made");
        let repository = committed(directory.path());
        let head = repository.head().ok().and_then(|head| head.target()).map(|id| id.to_string());
        let clean = provenance_of(directory.path(), &["a.kdl"]).expect("there is a commit");
        assert_eq!((clean.commit, clean.dirty), (head, false));
        assert_eq!(
            (clean.author.as_deref(), clean.message.as_deref()),
            (Some("Ann <ann@example.org>"), Some("Add a"))
        );
    }

    #[test]
    fn only_declaring_files_make_it_dirty() {
        let directory = tempfile::tempdir().expect("a directory can be made");
        committed(directory.path());
        let write =
            |name: &str| std::fs::write(directory.path().join(name), "// x").expect("a file can be written");
        let dirty = |read: &[&str]| provenance_of(directory.path(), read).expect("there is a commit").dirty;
        ["plan.json", "keys.json", ".gitignore"].into_iter().for_each(write);
        assert!(!dirty(&["a.kdl"]), "other files do not count");
        write("new.kdl");
        assert!(dirty(&["a.kdl", "new.kdl"]));
        std::fs::write(directory.path().join(".gitignore"), "new.kdl").expect("a file can be written");
        assert!(dirty(&["a.kdl", "new.kdl"]), "an ignored file is not in the commit either");
        assert!(dirty(&["a.kdl", "standard input"]), "its origin is unknown");
        write("a.kdl");
        assert!(dirty(&["a.kdl"]));
        std::fs::remove_file(directory.path().join("a.kdl")).expect("it is there");
        assert!(dirty(&[]), "the commit declares more");
    }

    #[test]
    fn without_a_readable_repository_there_is_no_provenance() {
        let directory = tempfile::tempdir().expect("a directory can be made");
        assert_eq!(provenance_of(directory.path(), &[]), None);
        let repository = Repository::init(directory.path()).expect("a repository can be made");
        assert_eq!(provenance_of(directory.path(), &[]), None, "no commit yet");
        let config = repository.path().join("config");
        let other = "[core]\n\trepositoryformatversion = 1\n[extensions]\n\tobjectformat = sha256\n\trefstorage = reftable\n";
        std::fs::write(config, other).expect("it can be written");
        assert_eq!(provenance_of(directory.path(), &[]), None, "a repository of another format");
    }
}
