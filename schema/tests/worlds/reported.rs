//! What a plan reports of who reaches whom, read back.

use jiff::Timestamp;
use schema::access::{Access, Protocol};
use schema::attribute::Choice as _;
use schema::compile::reach;
use schema::scalars::NetworkName;
use schema::world::World;

use super::following::compiled;

/// What a plan reports of a network between two worlds.
pub fn reached(network: &NetworkName, before: &World, after: &World) -> Vec<reach::ReachChange> {
    let [was, is] = [before, after].map(|world| compiled(network, world));
    let [was_hidden, is_hidden] =
        [before, after].map(|world| reach::hidden(&world.snapshot, &world.inventory));
    let was = reach::Moment {
        declared: &before.snapshot,
        inventory: &before.inventory,
        mesh: was.as_ref(),
        hidden: &was_hidden,
        now: Timestamp::UNIX_EPOCH,
    };
    let (changes, _) = reach::between(
        network,
        was,
        reach::Moment {
            declared: &after.snapshot,
            inventory: &after.inventory,
            mesh: is.as_ref(),
            hidden: &is_hidden,
            now: Timestamp::UNIX_EPOCH,
        },
    );
    // Whoever may join with a key is nobody who could be counted.
    changes.into_iter().filter(|change| !change.by_key).collect()
}

/// What is meant by the words of a line.
pub fn said(words: &str) -> Access {
    if let Some(but) = words.strip_prefix("everything but ") {
        return Access::everything().without(&said(but));
    }
    if words == "everything" {
        return Access::everything();
    }
    let mut access = Access::default();
    let mut protocol = None;
    for part in words.split(", ") {
        let (word, ports) = part.split_once(' ').unwrap_or(match part.as_bytes()[0].is_ascii_digit() {
            true => ("", part),
            false => (part, ""),
        });
        protocol = Protocol::ALL.iter().copied().find(|it| it.word() == word).or(protocol);
        let range = |text: &str| {
            let (first, last) = text.split_once('-').unwrap_or((text, text));
            first.parse().unwrap()..=last.parse().unwrap()
        };
        let ports = (!ports.is_empty()).then(|| [range(ports)].into_iter().collect());
        access = access.or(&Access::of(protocol, ports));
    }
    access
}
