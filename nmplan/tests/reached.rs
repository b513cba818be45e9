//! What a plan says of who reaches whom where that is easily said wrong: of keys, of causes, of groups.

mod workspace;

use jiff::{SignedDuration, Timestamp};
use schema::world::World;
use workspace::{Workspace, join};

fn corp(own: &str, objects: &str) -> String {
    format!("network \"corp\" {{\n    ipv4 \"10.40.0.0/24\"\n    {own}\n{objects}\n}}\n")
}

const NODES: &str = "node \"a\"; node \"b\"; node \"c\"; node \"db\" { tags \"db\" }";

/// A server that has this, with these nodes joined.
fn with(text: &str, nodes: &[(&str, u8)]) -> Workspace {
    let workspace = Workspace::new(World { epoch: 7, ..World::default() });
    workspace.write("corp.kdl", text);
    let applied = workspace.nmplan("apply -f @corp.kdl --project acme -y --keys-to @keys.json");
    assert_eq!(applied.exit, 0, "{}", applied.all());
    join(&workspace.server, nodes);
    workspace
}

/// The lines of a plan's reachability.
fn lines(workspace: &Workspace, text: &str) -> Vec<String> {
    workspace.write("corp.kdl", text);
    let plan = workspace.nmplan("plan -f @corp.kdl --project acme");
    let lines =
        plan.stdout.lines().filter(|line| line.starts_with("  corp  + ") || line.starts_with("  corp  - "));
    lines
        .map(|line| {
            line.trim_start_matches("  corp  ").replace(&workspace.path("").display().to_string(), "")
        })
        .collect()
}

#[test]
fn a_key_that_comes_or_goes_says_nothing_of_another() {
    let web =
        "access-key \"m\" uses=9 expires=\"30d\" { tags \"web\" }; allow \"x\" from=\"tag:web\" to=\"db\"";
    let more = "access-key \"a\" uses=2 expires=\"3d\"";
    let (one, two) = (format!("{NODES}\n{web}"), format!("{NODES}\n{more}\n{web}"));
    let workspace = with(&corp("acl \"deny\"", &one), &[]);
    assert_eq!(lines(&workspace, &corp("acl \"deny\"", &two)), [""; 0]);
    let workspace = with(&corp("acl \"deny\"", &two), &[]);
    assert_eq!(lines(&workspace, &corp("acl \"deny\"", &one)), [""; 0]);
    let open = with(&corp("", "node \"a\"; access-key \"n\" uses=9 expires=\"30d\""), &[]);
    let both = corp(
        "",
        "node \"a\"; access-key \"b\" uses=9 expires=\"30d\"; access-key \"n\" uses=9 expires=\"30d\"",
    );
    let said = lines(&open, &both);
    assert!(
        said.len() == 1 && said[0].starts_with("+ whoever joins with b <-> every other node"),
        "{said:?}"
    );
    assert!(said[0].contains("because of corp/access-key/b ("), "{said:?}");
}

#[test]
fn whoever_may_join_depends_on_what_is_left_of_the_key() {
    let with_rule =
        |key: &str| corp("acl \"deny\"", &format!("{NODES}\n{key}\nallow \"v\" from=\"db\" to=\"tag:web\""));
    let without = |key: &str| corp("acl \"deny\"", &format!("{NODES}\n{key}"));
    let key = |uses: u8, expires: &str| {
        format!("access-key \"m\" uses={uses} expires=\"{expires}\" {{ tags \"web\"; }}")
    };
    let open = with(&without(&key(9, "30d")), &[]);
    assert_eq!(lines(&open, &with_rule(&key(9, "30d"))).len(), 1);
    // It has expired since.
    open.server.change_elsewhere(|world| {
        let id = "corp/access-key/m".parse().unwrap();
        let status = (**world.inventory.key(&id).unwrap()).clone();
        let created = Timestamp::now() - SignedDuration::from_hours(24 * 40);
        world.inventory.put_key(id, schema::inventory::KeyStatus { created, ..status });
    });
    assert_eq!(lines(&open, &with_rule(&key(9, "30d"))), [""; 0], "nobody can join with it");
    let again = lines(
        &open,
        &corp("acl \"deny\"", &format!("{NODES}\n{}\nallow \"v\" from=\"db\" to=\"tag:web\"", key(9, "60d"))),
    );
    assert!(again.len() == 1 && again[0].contains("whoever joins with m"), "{again:?}");
    // With one use left there are not two who could reach each other.
    let among = "allow \"among\" from=\"tag:web\" to=\"tag:web\"";
    let one = with(&without(&key(1, "30d")), &[]);
    assert_eq!(lines(&one, &corp("acl \"deny\"", &format!("{NODES}\n{}\n{among}", key(1, "30d")))), [""; 0]);
    let two = with(&without(&key(2, "30d")), &[]);
    let said = lines(&two, &corp("acl \"deny\"", &format!("{NODES}\n{}\n{among}", key(2, "30d"))));
    assert!(said[0].starts_with("+ whoever joins with m -> each other everything"), "{said:?}");
}

#[test]
fn a_cause_is_what_can_move_it_and_members_are_named_where_they_are_few() {
    let joined = [("a", 1), ("b", 2), ("c", 3), ("db", 4)];
    let world = |own: &str, group: &str| {
        let rest = format!("group \"g\" {{ nodes {group}; }}\nallow \"x\" from=\"g\" to=\"c\"");
        corp(&format!("acl \"deny\"; {own}"), &format!("{NODES}\n{rest}"))
    };
    let workspace = with(&world("", "\"a\""), &joined);
    let said = lines(&workspace, &world("mtu 1300", "\"b\""));
    assert_eq!(
        said,
        [
            "- g (a) -> c everything (1 pair), by corp/allow/x (DIR/corp.kdl:6), because of corp/group/g (DIR/corp.kdl:5)",
            "+ g (b) -> c everything (1 pair), by corp/allow/x (DIR/corp.kdl:6), because of corp/group/g (DIR/corp.kdl:5)",
        ]
    );
    let tagged = |own: &str, tags: &str| {
        let nodes = format!("node \"a\"; node \"b\"; node \"c\"; node \"db\" {tags}");
        corp(&format!("acl \"deny\"; {own}"), &format!("{nodes}\nallow \"x\" from=\"a\" to=\"tag:db\""))
    };
    let workspace = with(&tagged("", "{ tags \"db\" }"), &joined);
    let said = lines(&workspace, &tagged("mtu 1300", ""));
    assert!(said[0].ends_with("because of corp/node/db (DIR/corp.kdl:4)"), "{said:?}");
}

#[test]
fn an_answer_says_who_has_to_join_first() {
    let egress = "egress \"office\" via=\"c\" { ranges \"192.168.10.0/24\"; }";
    let workspace = with(&corp("", &format!("{NODES}\n{egress}")), &[("a", 1)]);
    let answer = workspace
        .nmplan("explain a 192.168.10.0/24 -f @corp.kdl --project acme --server https://nm.example.net");
    assert!(answer.stdout.contains("Packets go via c.\nThat holds once c has joined.\n"), "{}", answer.all());
    let json =
        workspace.nmplan("explain a b -f @corp.kdl --project acme --server https://nm.example.net --json");
    let last: serde_json::Value = serde_json::from_str(json.stdout.lines().last().unwrap()).unwrap();
    assert_eq!(last["awaited"], serde_json::json!(["b"]));
}
