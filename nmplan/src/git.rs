//! Where the files came from, as git knows it.

use std::path::Path;

use git2::{Repository, StatusOptions};
use schema::api::Provenance;

/// The commit that a directory stands at, and whether its files differ from that. Nothing where there is no repository,
/// no commit yet, or a repository that cannot be read: provenance is a courtesy, and no apply fails for it.
pub fn provenance(directory: &Path) -> Option<Provenance> {
    let repository = Repository::discover(directory).ok()?;
    let commit = repository.head().ok()?.peel_to_commit().ok()?;
    let author = commit.author();
    let name = String::from_utf8_lossy(author.name_bytes()).into_owned();
    let email = String::from_utf8_lossy(author.email_bytes()).into_owned();
    Some(Provenance {
        commit: Some(commit.id().to_string()),
        author: Some(format!("{name} <{email}>")),
        message: commit.summary_bytes().map(|line| String::from_utf8_lossy(line).into_owned()),
        dirty: is_dirty(&repository, directory),
    })
}

/// Whether anything below the directory differs from the commit; what cannot be read counts as different.
fn is_dirty(repository: &Repository, directory: &Path) -> bool {
    let mut options = StatusOptions::new();
    options.include_untracked(true).include_ignored(false).disable_pathspec_match(true);
    let inside = repository.workdir().and_then(|root| root.canonicalize().ok());
    let below = inside.zip(directory.canonicalize().ok());
    if let Some(path) = below.as_ref().and_then(|(root, directory)| directory.strip_prefix(root).ok())
        && !path.as_os_str().is_empty()
    {
        options.pathspec(path);
    }
    repository.statuses(Some(&mut options)).map_or(true, |statuses| !statuses.is_empty())
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

    #[test]
    fn a_commit_is_told_with_author_first_line_and_dirt() {
        let directory = tempfile::tempdir().expect("a directory can be made");
        let repository = committed(directory.path());
        let head = repository.head().ok().and_then(|head| head.target()).map(|id| id.to_string());
        let clean = provenance(directory.path()).expect("there is a commit");
        assert_eq!((clean.commit, clean.dirty), (head, false));
        assert_eq!((clean.author.as_deref(), clean.message.as_deref()), (Some("Ann <ann@example.org>"), Some("Add a")));
        std::fs::write(directory.path().join("b.kdl"), "").expect("a file can be written");
        assert!(provenance(directory.path()).is_some_and(|it| it.dirty));
    }

    #[test]
    fn what_is_no_repository_that_can_be_read_has_no_provenance() {
        let directory = tempfile::tempdir().expect("a directory can be made");
        assert_eq!(provenance(directory.path()), None);
        let repository = Repository::init(directory.path()).expect("a repository can be made");
        assert_eq!(provenance(directory.path()), None, "no commit yet");
        let config = repository.path().join("config");
        let other =
            "[core]\n\trepositoryformatversion = 1\n[extensions]\n\tobjectformat = sha256\n\trefstorage = reftable\n";
        std::fs::write(config, other).expect("it can be written");
        assert_eq!(provenance(directory.path()), None, "a repository of another format");
    }
}
