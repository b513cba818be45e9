//! The provenance of the files: the git commit that they come from.
//!
//! It is optional, and no apply fails for it; why there is none is an [`Unknown`], for one line of text. It
//! needs no git program.

use std::path::{Path, PathBuf};
use std::sync::Once;

use git2::{ErrorCode, Repository, Status, StatusOptions, Statuses};
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

/// Why the commit of the files is not known.
#[derive(Debug, thiserror::Error)]
pub enum Unknown {
    /// They are in no repository.
    #[error("{0} is in no git repository")]
    NoRepository(String),
    /// The repository has no commit yet.
    #[error("the git repository {0} has no commit yet")]
    NoCommit(String),
    /// The repository cannot be read: it is damaged, or of a format that libgit2 does not know.
    #[error("the git repository of {0} cannot be read ({1})")]
    Unreadable(String, String),
}

/// The commit that is checked out, and whether the files differ from it.
pub fn provenance(files: &Files<'_>) -> Result<Provenance, Unknown> {
    accept_any_owner();
    let shown = || schema::text::path(files.directory);
    let unreadable = |error: git2::Error| Unknown::Unreadable(shown(), error.message().to_owned());
    let repository = Repository::discover(files.directory).map_err(|error| {
        let none = error.code() == ErrorCode::NotFound;
        if none { Unknown::NoRepository(shown()) } else { unreadable(error) }
    })?;
    let head = repository.head().map_err(|error| {
        let none = [ErrorCode::UnbornBranch, ErrorCode::NotFound].contains(&error.code());
        if none { Unknown::NoCommit(shown()) } else { unreadable(error) }
    })?;
    let commit = head.peel_to_commit().map_err(unreadable)?;
    let author = commit.author();
    let name = String::from_utf8_lossy(author.name_bytes()).into_owned();
    let email = String::from_utf8_lossy(author.email_bytes()).into_owned();
    Ok(Provenance {
        commit: Some(commit.id().to_string()),
        author: Some(Provenance::cut(format!("{name} <{email}>"))),
        message: commit
            .summary_bytes()
            .map(|line| Provenance::cut(String::from_utf8_lossy(line).into_owned())),
        dirty: differ(&repository, files).unwrap_or(true),
    })
}

/// Lets repositories of other users be read: in a container of a CI the files mostly belong to somebody else.
/// git refuses them because its configuration can name programs to run; libgit2 runs none.
#[expect(unsafe_code, reason = "libgit2 has this as an option of the process")]
fn accept_any_owner() {
    static ONCE: Once = Once::new();
    // SAFETY: it sets a variable of libgit2 that nothing else sets or, before this has returned, reads.
    ONCE.call_once(|| drop(unsafe { git2::opts::set_verify_owner_validation(false) }));
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
    use std::io::Write as _;

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
        tried(directory, &read).ok()
    }

    fn tried(directory: &Path, read: &[PathBuf]) -> Result<Provenance, Unknown> {
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
    fn without_a_readable_repository_there_is_no_provenance_but_a_reason() {
        let directory = tempfile::tempdir().expect("a directory can be made");
        let reason = || tried(directory.path(), &[]).expect_err("there is none").to_string();
        assert!(reason().ends_with("is in no git repository"), "{}", reason());
        let repository = Repository::init(directory.path()).expect("a repository can be made");
        assert!(reason().ends_with("has no commit yet"), "{}", reason());
        let config = repository.path().join("config");
        let other = "[core]\n\trepositoryformatversion = 1\n[extensions]\n\tobjectformat = sha256\n\trefstorage = reftable\n";
        std::fs::write(config, other).expect("it can be written");
        assert!(reason().contains("cannot be read ("), "a repository of another format: {}", reason());
    }

    #[test]
    fn a_repository_of_another_owner_has_its_provenance() {
        let directory = tempfile::tempdir().expect("a directory can be made");
        committed(directory.path());
        let owner = |path: &Path| std::os::unix::fs::chown(path, Some(65_534), Some(65_534));
        // Only root can give a file away.
        if owner(&directory.path().join(".git")).and_then(|()| owner(directory.path())).is_err() {
            let skipped = "SKIPPED a_repository_of_another_owner_has_its_provenance: it needs root";
            let _ = writeln!(std::io::stderr(), "{skipped}");
            assert!(std::env::var_os("CI").is_none(), "CI runs everything");
            return;
        }
        let provenance = provenance_of(directory.path(), &["a.kdl"]).expect("there is a commit");
        assert!(!provenance.dirty);
    }

    #[test]
    fn a_shallow_clone_has_its_provenance() {
        let directory = tempfile::tempdir().expect("a directory can be made");
        let repository = committed(directory.path());
        let first = repository.head().and_then(|head| head.peel_to_commit()).expect("there is a commit");
        let (author, tree) = (first.author(), first.tree().expect("it has one"));
        let second =
            repository.commit(Some("HEAD"), &author, &author, "More", &tree, &[&first]).expect("it commits");
        std::fs::write(repository.path().join("shallow"), format!("{second}\n")).expect("it can be written");
        let parent = first.id().to_string();
        let object = repository.path().join("objects").join(&parent[..2]).join(&parent[2..]);
        std::fs::remove_file(object).expect("the parent is not there");
        let provenance = provenance_of(directory.path(), &["a.kdl"]).expect("there is a commit");
        assert_eq!((provenance.commit, provenance.dirty), (Some(second.to_string()), false));
    }
}
