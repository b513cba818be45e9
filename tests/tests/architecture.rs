//! What ARCHITECTURE.md says about the code: which modules import each other; and adding a field or a kind,
//! tried step by step on copies of this workspace.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use end_to_end::cargo;
use end_to_end::loopback::Server;
use petgraph::algo::tarjan_scc;
use petgraph::graph::DiGraph;
use regex_lite::Regex;

/// Kinds that the compiler of networks reads, and the files that declare them.
const KINDS: [(&str, &str); 3] = [("Network", "network.rs"), ("Node", "node.rs"), ("Dns", "dns.rs")];

/// A kind with a list, selectors, a choice and nested, repeated records: the one file that a kind is.
const PROBE: &str = r##"//! A probe: paths that are tried.

use std::collections::BTreeSet;

use schema_derive::{Choice, Describe, Record};

use super::Node;
use crate::attribute::{NonEmpty, Ref};
use crate::rules::{Findings, Rules};
use crate::scalars::{Seconds, Selector};
use crate::snapshot::{ResourceId, Snapshot};

/// How a probe asks.
#[derive(Clone, Copy, Debug, PartialEq, Choice)]
pub enum Protocol {
    /// With connections.
    Tcp,
    /// Without them.
    Udp,
}

/// A node on the path.
#[derive(Clone, Debug, PartialEq, Record)]
pub struct Hop {
    /// The node.
    pub node: Ref<Node>,
    /// How long it may take.
    #[field(default = Seconds(5))]
    pub within: Seconds,
}

/// Who is expected to reach whom.
#[derive(Clone, Debug, PartialEq, Record)]
pub struct Reach {
    /// Who.
    pub from: NonEmpty<BTreeSet<Selector>>,
    /// Whom.
    pub to: Selector,
    /// The nodes on the path, in order.
    pub hops: Vec<Hop>,
}

/// Paths that are tried.
#[derive(Clone, Debug, PartialEq, Describe)]
#[describe(word = "probe", plural = "probes", within = "network")]
pub struct Probe {
    /// The nodes that try, in order of preference.
    pub via: NonEmpty<Vec<Ref<Node>>>,
    /// How it asks.
    #[field(default = Protocol::Tcp)]
    pub proto: Protocol,
    /// What is tried.
    pub reach: Vec<Reach>,
}

impl Rules for Probe {
    fn check(&self, _id: &ResourceId, _world: &Snapshot, _findings: &mut Findings<'_>) {}
}
"##;

const PROJECT: &str = "project \"acme\" schema=1\nenv \"prod\" { use \"mesh/\" }\n";

const KDL: &str = r#"network "corp" {
    ipv4 "10.40.0.0/16"
    node "a"
    node "b"
    probe "p" proto="udp" {
        via "b" "a"
        reach from="a" to="tag:web"
        reach to="10.0.0.0/8" {
            from "a" "b"
            hops node="a"
            hops node="b" within="9s"
        }
    }
}
"#;

const YAML: &str = r#"networks:
  corp:
    ipv4: 10.40.0.0/16
    nodes: { a: {}, b: {} }
    probes:
      p:
        proto: udp
        via: [b, a]
        reach:
          - { from: a, to: "tag:web" }
          - from: [b, a]
            to: 10.0.0.0/8
            hops: [{ node: a }, { node: b, within: 9s }]
"#;

#[test]
fn a_field_that_is_read_nowhere_does_not_compile() {
    let copy = copy("field");
    for (kind, file) in KINDS {
        let field = "    /// Whether nobody has given it a meaning yet.\n    #[field(default = false)]\n    pub unread: bool,\n";
        let header = format!("pub struct {kind} {{\n");
        edit(&copy.join("schema/src/kinds").join(file), &header, &format!("{header}{field}"));
    }
    let build = build(&copy);
    let errors = text(&build.stderr);
    assert!(!build.status.success(), "it compiled");
    let refusals = errors.matches("pattern does not mention field `unread`").count();
    assert_eq!(refusals, KINDS.len(), "the compiler asks for each of them what it means:\n{errors}");
    assert_eq!(errors.matches("schema/src/compile").count(), KINDS.len(), "where Views are made:\n{errors}");
    assert_eq!(errors.matches("error[").count(), KINDS.len(), "and nothing else is wrong:\n{errors}");
}

#[test]
fn a_kind_is_one_file_a_line_in_the_list_and_an_arm_in_the_compiler() {
    let copy = copy("kind");
    fs::write(copy.join("schema/src/kinds/probe.rs"), PROBE).expect("written");
    edit(&copy.join("schema/src/kinds.rs"), "    dns: Dns,\n", "    dns: Dns,\n    probe: Probe,\n");
    let without = build(&copy);
    let errors = text(&without.stderr);
    assert!(
        errors.contains("`Kind::Probe` not covered"),
        "the compiler asks what a change of it touches:\n{errors}"
    );
    let arm = "                // A key's tags were copied at the join.\n";
    edit(&copy.join("schema/src/compile.rs"), arm, &format!("                Kind::Probe => {{}}\n{arm}"));
    let with = build(&copy);
    assert!(with.status.success(), "{}", text(&with.stderr));

    let programs = copy.with_extension("programs").join("debug");
    let folder = tempfile::tempdir().expect("a folder");
    let mut server = Server::start(&programs.join("nmserver"), folder.path());
    let project = folder.path().join("project");
    let mesh = project.join("mesh");
    fs::create_dir_all(&mesh).expect("made");
    fs::write(project.join("nmplan.kdl"), PROJECT).expect("written");
    let nmplan = |server: &Server, arguments: &[&str]| {
        let mut command = Command::new(programs.join("nmplan"));
        command.arg("-C").arg(&project).args(arguments).envs(server.environment.clone()).env("NO_COLOR", "1");
        let output = command.output().expect("nmplan starts");
        let printed = format!("{}{}", text(&output.stdout), text(&output.stderr));
        (output.status.code(), printed)
    };

    // Wrong input: a name inside a record inside a list, at its line and column.
    fs::write(mesh.join("corp.kdl"), KDL.replace("hops node=\"a\"", "hops node=\"c\"")).expect("written");
    let (code, printed) = nmplan(&server, &["validate"]);
    assert_eq!(code, Some(1), "{printed}");
    assert!(printed.contains("schema::unknown_reference") && printed.contains("corp.kdl:10:23"), "{printed}");

    fs::write(mesh.join("corp.kdl"), KDL).expect("written");
    let (code, printed) = nmplan(&server, &["apply", "-y"]);
    assert_eq!(code, Some(0), "{printed}");
    assert!(words(&printed).contains("+ probe p via=b,a"), "{printed}");

    // The other language means the same, and the server has stored all of it, even across a restart.
    fs::remove_file(mesh.join("corp.kdl")).expect("removed");
    fs::write(mesh.join("corp.yaml"), YAML).expect("written");
    let (code, printed) = nmplan(&server, &["plan", "--detailed-exitcode"]);
    assert_eq!(code, Some(0), "{printed}");
    drop(server);
    server = Server::start(&programs.join("nmserver"), folder.path());
    let (code, printed) = nmplan(&server, &["plan", "--detailed-exitcode"]);
    assert_eq!(code, Some(0), "{printed}");
    let (code, printed) = nmplan(&server, &["show"]);
    assert!(code == Some(0) && words(&printed).contains("probe 1 acme/prod p"), "{printed}");

    // The order of a list, and a field inside a record inside a list.
    let changed = YAML.replace("via: [b, a]", "via: [a, b]").replace("within: 9s", "within: 8s");
    fs::write(mesh.join("corp.yaml"), changed).expect("written");
    let (code, printed) = nmplan(&server, &["plan", "--detailed-exitcode"]);
    assert_eq!(code, Some(2), "{printed}");
    assert!(printed.contains("reordered: b,a -> a,b") && printed.contains("9s -> 8s"), "{printed}");
    let (code, printed) = nmplan(&server, &["apply", "-y"]);
    assert_eq!(code, Some(0), "{printed}");

    // Reference and schema have it.
    let (_, schema) = nmplan(&server, &["schema"]);
    let schema: serde_json::Value = serde_json::from_str(&schema).expect("JSON");
    assert!(schema.to_string().contains("The nodes that try, in order of preference."), "{schema}");

    // After its deletion the server has nothing left of it.
    fs::write(mesh.join("corp.yaml"), "networks: { corp: { ipv4: 10.40.0.0/16 } }\n").expect("written");
    let (code, printed) = nmplan(&server, &["apply", "-y"]);
    assert_eq!(code, Some(0), "{printed}");
    let (_, printed) = nmplan(&server, &["show"]);
    assert!(!printed.contains("probe"), "{printed}");
}

/// Modules that know each other: rules are of kinds, a snapshot holds kinds, and kinds name each other in it.
const CIRCLE: [&str; 3] = ["kinds", "rules", "snapshot"];

#[test]
fn modules_import_each_other_in_one_circle_only() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace");
    for folder in ["schema", "proto", "server", "netclient", "nmplan"] {
        let imports = imports(&root.join(folder).join("src"));
        assert!(imports.values().flatten().count() > 3, "{folder}: {imports:?}");
        let mut graph = DiGraph::new();
        let nodes: BTreeMap<_, _> =
            imports.keys().map(|name| (name, graph.add_node(name.as_str()))).collect();
        for (from, to) in imports.iter().flat_map(|(from, to)| to.iter().map(move |to| (from, to))) {
            graph.add_edge(nodes[from], nodes[to], ());
        }
        let circles = tarjan_scc(&graph).into_iter().filter(|circle| circle.len() > 1);
        let circles = circles.map(|circle| circle.into_iter().map(|node| graph[node]).collect());
        let known = if folder == "schema" { vec![BTreeSet::from(CIRCLE)] } else { Vec::new() };
        assert_eq!(circles.collect::<Vec<BTreeSet<&str>>>(), known, "{folder}");
    }
}

/// Which modules at the top of a crate import which others; what is for tests alone does not count.
fn imports(source: &Path) -> BTreeMap<String, BTreeSet<String>> {
    let module = |path: &Path| {
        let first = path.strip_prefix(source).expect("it is below").components().next().expect("a name");
        first.as_os_str().to_string_lossy().trim_end_matches(".rs").to_owned()
    };
    let unit_tests = Regex::new(r"(?s)#\[cfg\(test\)\]\n(pub\(crate\) )?mod tests \{.*").expect("good");
    let comments = Regex::new("//.*").expect("good");
    let import = Regex::new(r"crate::(\w+)").expect("good");
    let mut imports: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for path in sources(source) {
        let text = fs::read_to_string(&path).expect("it is there");
        let text = comments.replace_all(&unit_tests.replace(&text, ""), "").into_owned();
        assert!(!text.contains("crate::{"), "{}: one import for each module", path.display());
        let named = import.captures_iter(&text).map(|found| found[1].to_owned());
        imports.entry(module(&path)).or_default().extend(named);
    }
    let modules: BTreeSet<String> = imports.keys().cloned().collect();
    for (module, named) in &mut imports {
        named.retain(|other| other != module && modules.contains(other));
    }
    imports
}

/// The files of a crate but for its roots and those of tests.
fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for path in fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("it is read").path()) {
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if !["lib.rs", "main.rs", "tests.rs"].contains(&name.as_str()) {
            found.push(path);
        }
    }
    found
}

/// Makes a fresh copy of the workspace's sources.
fn copy(name: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace");
    let copy = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("architecture-{name}"));
    if copy.exists() {
        fs::remove_dir_all(&copy).expect("removed");
    }
    for entry in fs::read_dir(root).expect("it is there") {
        let entry = entry.expect("it is read");
        let name = entry.file_name();
        let hidden = name.to_string_lossy().starts_with('.');
        if !hidden && name != "target" {
            copy_into(&entry.path(), &copy.join(name));
        }
    }
    // Cargo distinguishes packages by name and version, not by path: with its own version, a copy's build is
    // not mistaken for ours.
    edit(&copy.join("Cargo.toml"), "\nversion = \"", &format!("\nversion = \"0.0.0-{name}-of-"));
    copy
}

fn copy_into(from: &Path, to: &Path) {
    if from.is_dir() {
        fs::create_dir_all(to).expect("made");
        for entry in fs::read_dir(from).expect("it is there") {
            let entry = entry.expect("it is read");
            copy_into(&entry.path(), &to.join(entry.file_name()));
        }
    } else {
        fs::copy(from, to).expect("copied");
    }
}

fn edit(path: &Path, from: &str, to: &str) {
    let text = fs::read_to_string(path).expect("it is there");
    assert!(text.contains(from), "{} holds {from:?}", path.display());
    fs::write(path, text.replacen(from, to, 1)).expect("written");
}

/// Builds a copy as `make build` does. Its dependencies are already built, in this test's directory; its
/// programs go elsewhere.
fn build(copy: &Path) -> Output {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("the target directory");
    cargo()
        .args(["build", "--quiet", "--offline", "--workspace", "--message-format", "short"])
        .current_dir(copy)
        .env("CARGO_BUILD_BUILD_DIR", target)
        .env("CARGO_TARGET_DIR", copy.with_extension("programs"))
        .output()
        .expect("cargo starts")
}

/// A text without its columns.
fn words(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
