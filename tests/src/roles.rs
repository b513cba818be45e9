//! A large network with access rules. Each node has one of 30 roles and is at one of 6 sites, two thirds of the roles have
//! some that handle cards: 300 classes.

use schema::scalars::Name;
use schema::snapshot::Revision;
use schema::world::World;

use crate::meshes::{declare, put_node};

/// How many roles there are.
pub const ROLES: u32 = 30;
/// How many groups there are, each of three roles.
pub const GROUPS: u32 = 10;
/// How many nodes files declare.
pub const DECLARED: u32 = 1_000;
const SITES: u32 = 6;

/// A tag.
///
/// # Panics
///
/// When it is none.
pub fn tag(text: &str) -> Name {
    text.parse().expect("a tag")
}

/// A side of rules: a role, a site, who handles cards, or a group.
pub fn side(place: u32) -> String {
    match place {
        0..30 => format!("tag:role-{place}"),
        30..36 => format!("tag:site-{}", place - 30),
        36 => "tag:cards".into(),
        _ => format!("g{}", (place - 37) % GROUPS),
    }
}

/// Declares a rule between two sides, for the port of a place.
pub fn rule(world: &mut World, name: &str, [from, to]: [&str; 2], place: u32) {
    let port = 1_000 + place % 20;
    let body = format!(r#"{{"from":"{from}","to":"{to}","proto":"tcp","ports":[{port}]}}"#);
    declare(world, &format!("corp/allow/{name}"), &body);
}

/// Declares the group of a place: three roles, and perhaps one more node.
pub fn group(world: &mut World, place: u32, node: Option<u32>) {
    let roles = [0, 1, 2].map(|role| format!(r#""role-{}""#, place * 3 + role)).join(",");
    let nodes = node.map(|node| format!(r#","nodes":["n{node}"]"#)).unwrap_or_default();
    declare(world, &format!("corp/group/g{place}"), &format!(r#"{{"tags":[{roles}]{nodes}}}"#));
}

/// Lets the node of a number join, with its role and site.
pub fn join(world: &mut World, number: u32) {
    let (role, site) = (number % ROLES, number / ROLES % SITES);
    let cards = role < ROLES * 2 / 3 && (number / (ROLES * SITES)).is_multiple_of(2);
    let tags = [format!("role-{role}"), format!("site-{site}")];
    put_node(world, number, tags.iter().map(|text| tag(text)).chain(cards.then(|| tag("cards"))));
}

/// A network of so many nodes that have joined and so many rules, if `acl` is `deny`; files declare the first
/// [`DECLARED`] of the nodes.
pub fn world(acl: &str, nodes: u32, rules: u32) -> World {
    let mut world = World { epoch: 1, revision: Revision(1), ..World::default() };
    declare(&mut world, "corp", &format!(r#"{{"ipv4":"10.0.0.0/8","acl":"{acl}"}}"#));
    (0..DECLARED).for_each(|number| declare(&mut world, &format!("corp/node/n{number}"), "{}"));
    if acl == "deny" {
        (0..GROUPS).for_each(|place| group(&mut world, place, None));
        for place in 0..rules {
            let sides = [side(place * 13 % 47), side((place * 29 + 5) % 47)];
            rule(&mut world, &format!("r{place}"), [&sides[0], &sides[1]], place);
        }
    }
    (0..nodes).for_each(|number| join(&mut world, number));
    world
}
