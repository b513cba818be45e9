//! Which agent of the host has which numbers for its routes, rules and tables: agents of several directories
//! may come to the same ones, and would take each other's away.
//!
//! A link in a folder of the host, named for the slot, leads to the directory of the agent that has it. Like
//! routes and rules it is gone after a restart of the host. One whose directory is in no network any more is
//! free.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::{fs, io};

use crate::outside::Slot;

/// No slot is free for an agent.
#[derive(Debug, thiserror::Error)]
#[error(
    "as many agents as can be told apart have networks on this host, in {}; leave the networks of one of them, or use its \
     directory", list(.owners)
)]
pub struct SlotsTaken {
    owners: Vec<PathBuf>,
}

fn list(owners: &[PathBuf]) -> String {
    owners.iter().map(|owner| owner.display().to_string()).collect::<Vec<_>>().join(", ")
}

/// The slot of an agent that keeps its state in a directory: the one that it has, or else the first of the
/// candidates that no other agent has. Where the folder cannot be written, it is the first.
pub fn claim(folder: &Path, directory: &Path, candidates: &[Slot]) -> Result<Slot, SlotsTaken> {
    let [first, ..] = candidates else { return Err(SlotsTaken { owners: Vec::new() }) };
    // The default directory has one for itself.
    if candidates.len() == 1 {
        return Ok(*first);
    }
    let has = |slot: &&Slot| fs::read_link(path(folder, **slot)).is_ok_and(|owner| owner == directory);
    if let Some(slot) = candidates.iter().find(has) {
        return Ok(*slot);
    }
    let mut owners = Vec::new();
    for slot in candidates {
        match take(&path(folder, *slot), directory) {
            Ok(None) => return Ok(*slot),
            Ok(Some(owner)) => owners.push(owner),
            Err(error) if owners.is_empty() => {
                tracing::debug!(%error, folder = %folder.display(), "other agents of this host are not known");
                return Ok(*first);
            }
            // The first has an owner, so the folder can be read; another one may be free.
            Err(error) => tracing::debug!(%error, slot = slot.number(), "a slot cannot be claimed"),
        }
    }
    Err(SlotsTaken { owners })
}

/// Frees the slot of an agent that is in no network.
pub fn release(folder: &Path, directory: &Path, slot: Slot) {
    let path = path(folder, slot);
    if fs::read_link(&path).is_ok_and(|owner| owner == directory) {
        // What stays is free all the same, since its directory is in no network.
        let _ = fs::remove_file(path);
    }
}

/// The link of a slot. Numbers of routes and rules are those of a network namespace, and several may share a
/// folder.
fn path(folder: &Path, slot: Slot) -> PathBuf {
    let namespace = fs::metadata("/proc/thread-self/ns/net").map_or(0, |about| about.ino());
    folder.join(format!("slot-{}-{namespace}", slot.number()))
}

/// Takes a slot; returns who has it, if somebody does.
fn take(path: &Path, directory: &Path) -> io::Result<Option<PathBuf>> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let link = || std::os::unix::fs::symlink(directory, path);
    match link() {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        outcome => return outcome.map(|()| None),
    }
    let owner = fs::read_link(path)?;
    if is_in_a_network(&owner) {
        return Ok(Some(owner));
    }
    fs::remove_file(path)?;
    link().map(|()| None)
}

fn is_in_a_network(directory: &Path) -> bool {
    let listed = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut names = listed.filter_map(|entry| entry.file_name().into_string().ok());
    names.any(|name| name.starts_with("network-") && name.ends_with(".json"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outside::Mark;

    fn candidates(directory: &Path) -> Vec<Slot> {
        Slot::candidates(directory, Path::new("/etc/netclient"), Mark::default())
    }

    #[test]
    fn two_agents_whose_directories_come_to_the_same_slot_have_different_ones() {
        let root = tempfile::tempdir().expect("a folder");
        let folder = root.path().join("slots");
        // As many as there are slots, all of which come to the same one first, and one more.
        let number = |directory: &Path| candidates(directory)[0].number();
        let mut directories = (0..).map(|n| root.path().join(format!("d{n}")));
        let first = directories.next().expect("there is one");
        let alike = directories.filter(|directory| number(directory) == number(&first));
        let directories: Vec<_> = std::iter::once(first.clone()).chain(alike.take(8)).collect();
        for directory in &directories {
            fs::create_dir(directory).expect("made");
            fs::write(directory.join("network-corp.json"), "{}").expect("written");
        }
        let claim = |directory: &Path| claim(&folder, directory, &candidates(directory));
        let (nine, eight) = directories.split_last().expect("nine");
        let mut slots: Vec<_> = eight.iter().map(|it| claim(it).expect("one is free").number()).collect();
        for (directory, slot) in eight.iter().zip(&slots) {
            assert_eq!(claim(directory).expect("it has one").number(), *slot, "the one that it has");
        }
        let third = slots[2];
        slots.sort_unstable();
        assert_eq!(slots, [1, 2, 3, 4, 5, 6, 7, 8]);
        let refused = claim(nine).expect_err("none is free").to_string();
        assert!(refused.contains(&first.display().to_string()), "{refused}");
        // One leaves its last network, and another one is deleted.
        release(&folder, &directories[2], claim(&directories[2]).expect("it has one"));
        assert_eq!(claim(nine).expect("one is free").number(), third);
        fs::remove_dir_all(&directories[4]).expect("removed");
        let more = root.path().join("more");
        claim(&more).expect("what is gone has no slot");
        assert_eq!(claim(Path::new("/etc/netclient")).expect("its own").number(), 0);
    }

    #[test]
    fn a_slot_that_another_agent_has_is_not_given_where_a_later_one_cannot_be_claimed() {
        let root = tempfile::tempdir().expect("a folder");
        let [folder, owner, other] = ["slots", "owner", "other"].map(|name| root.path().join(name));
        fs::create_dir(&owner).expect("made");
        fs::write(owner.join("network-corp.json"), "{}").expect("written");
        let slots = candidates(&other);
        assert_eq!(claim(&folder, &owner, &slots).expect("one is free"), slots[0]);
        // What is no link cannot be claimed.
        fs::create_dir(path(&folder, slots[1])).expect("made");
        assert_eq!(claim(&folder, &other, &slots).expect("one is free"), slots[2]);
    }
}
