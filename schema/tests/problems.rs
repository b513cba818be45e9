//! Every problem that a file can have, reported at its exact place: `examples/problems/` is the list.
//!
//! A file is named for the code of its one problem (with `.` for `::`) and perhaps a word for the variant.
//! Its first line states the place: `// expect 3:14`, line and character from 1; `in a project file` after it
//! says how it is read.
#![expect(clippy::unwrap_used, reason = "a test")]

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::PathBuf;

use schema::decode::decode;
use schema::inventory::Inventory;
use schema::judge;
use schema::kinds::Kind;
use schema::project;
use schema::report::{Code, Problem, Report};
use schema::rules;
use schema::syntax::{Language, MAX_DEPTH, MAX_SIZE, Source, Variables, parse, substitute};
use schema::value::{Location, SourceId};

/// Codes that no single file can produce, and where they are tested instead.
const ELSEWHERE: &[(Code, &str)] = &[
    (Code::TooLarge, "made below, not stored: it takes 16 MiB"),
    (Code::ManagedByAnother, "needs a server that has the resource"),
    (Code::NotManaged, "needs a server that has the resource"),
    (Code::NotText, "needs a file that is not text"),
    (Code::ResolverClosed, "needs a server with COREDNS_ADDR"),
    (Code::OldAddress, "needs what was before a plan; see advice.rs"),
    (Code::EndlessKey, "needs what was before a plan; see advice.rs"),
    (Code::SingleCarrier, "needs what was before a plan; see advice.rs"),
    (Code::HalfExit, "needs what was before a plan; see advice.rs"),
    (Code::HiddenEndpoint, "needs what has joined; see advice.rs"),
    (Code::IsolatedNode, "needs what was before a plan; see advice.rs"),
    (Code::RuleCovered, "needs what was before a plan; see advice.rs"),
    (Code::RuleOfOne, "needs what was before a plan; see advice.rs"),
    (Code::RelayOfNobody, "needs what was before a plan; see advice.rs"),
    (Code::RouteWithoutRule, "needs what was before a plan; see advice.rs"),
    (Code::EndpointInMesh, "needs a server, or nodes that have joined"),
    (Code::CutOff, "needs a server that has addresses"),
    (Code::Protected, "needs a server that has the network"),
    (Code::MaxDelete, "needs a server that has a guard"),
    (Code::MaxNodesChanged, "needs a server that has a guard"),
    (Code::MaxReachLost, "needs a server that has a guard"),
    (Code::ServerAddress, "needs a server that has addresses"),
    (Code::KeyOver, "needs a clock, and to know which keys there are"),
    (Code::CommsOverlap, "needs a server that keeps a range"),
    (Code::OwnNode, "needs a server whose host is a node"),
    (Code::RangeExhausted, "needs nodes that have joined"),
    (Code::JoinedAsNode, "needs nodes that have joined"),
    (Code::ProjectPath, "needs a directory that is not there"),
    (Code::NothingDeclared, "needs a directory without declarations"),
];

struct Example {
    file: String,
    code: String,
    expected: (usize, usize),
    project: bool,
    source: Source,
}

fn examples() -> Vec<Example> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../examples/problems");
    let mut paths: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.iter().map(example).collect()
}

fn example(path: &PathBuf) -> Example {
    let file = path.file_name().unwrap().to_str().unwrap().to_owned();
    let text = std::fs::read_to_string(path).unwrap();
    let first = text.lines().next().unwrap();
    let (_, expectation) =
        first.split_once(" expect ").unwrap_or_else(|| panic!("{file}: {first:?} expects nothing"));
    let (place, how) = expectation.split_once(' ').unwrap_or((expectation, ""));
    let (line, column) = place.split_once(':').unwrap();
    Example {
        code: file.split('.').take(2).collect::<Vec<_>>().join("::"),
        expected: (line.parse().unwrap(), column.parse().unwrap()),
        project: how == "in a project file",
        source: Source {
            name: file.as_str().into(),
            text: text.into(),
            language: Language::of(&file).unwrap(),
        },
        file,
    }
}

fn problems(source: &Source, in_project: bool) -> Vec<Problem> {
    let kinds = if in_project { project::DESCRIPTORS } else { Kind::DESCRIPTORS };
    let (mut documents, mut report) = parse(source, SourceId(0), kinds);
    let more = if in_project {
        let (file, mut report) = project::decode(&documents);
        for (file, env) in file.iter().flat_map(|file| file.envs.keys().map(move |env| (file, env))) {
            report.append(project::unset(&documents, file, env, &BTreeSet::new()));
        }
        report
    } else {
        let variables = Variables::from([("gw-endpoint".to_owned(), "192.0.2.10".to_owned())]);
        substitute(&mut documents, &variables, &mut report);
        let (declared, mut found) = decode(documents);
        found.append(rules::check(&declared.snapshot, &declared.source_map));
        found.append(rules::server::check_by_default(&declared.snapshot, &declared.source_map));
        if !report.has_errors() && !found.has_errors() {
            found.append(rules::selectors::check(&declared.snapshot, &declared.source_map));
        }
        if report.is_empty() && found.is_empty() {
            let networks = declared.snapshot.networks().map(|(network, _)| network);
            let verdicts = judge::judge_all(networks, &declared.snapshot, &Inventory::default());
            verdicts.iter().filter_map(|it| it.problem(&declared.source_map)).for_each(|it| found.push(it));
        }
        found
    };
    report.append(more);
    sorted(&report)
}

fn sorted(report: &Report) -> Vec<Problem> {
    report.problems().cloned().collect()
}

/// The line and the character of a place, from 1.
fn place(text: &str, at: Location) -> (usize, usize) {
    let before = &text[..at.span.start as usize];
    let line = before.rfind('\n').map_or(0, |newline| newline + 1);
    (before.matches('\n').count() + 1, before[line..].chars().count() + 1)
}

/// A problem as plain text: what a reader of the snapshot reviews.
fn rendered(source: &Source, problem: &Problem) -> String {
    let mut text = format!("{} ({}): {}\n", problem.code.title(), problem.code.name(), problem.message);
    let own = problem.at.map(|at| (at, String::new()));
    for (at, label) in own.into_iter().chain(problem.related.iter().cloned()) {
        let (line, column) = place(&source.text, at);
        let stands = source.text.lines().nth(line - 1).unwrap_or_default();
        let marked = &source.text[at.span.start as usize..at.span.end as usize];
        let length = marked.lines().next().unwrap_or_default().chars().count().max(1);
        let stands: String = stands.chars().take(100).collect();
        let margin = format!("{line}:{column} | ");
        let _ = writeln!(text, "  {margin}{}", stands.replace('\u{feff}', "\u{fffd}"));
        let indent = margin.len() + column - 1;
        let _ = writeln!(text, "  {:indent$}{} {label}", "", "^".repeat(length.min(60)));
    }
    if let Some(help) = &problem.help {
        let _ = writeln!(text, "  help: {help}");
    }
    text.lines().map(|line| format!("{}\n", line.trim_end())).collect()
}

#[test]
fn every_file_has_exactly_the_problem_of_its_name_at_the_place_that_it_states() {
    let mut wrong = String::new();
    for example in examples() {
        let found = problems(&example.source, example.project);
        let reported: Vec<_> = found
            .iter()
            .map(|problem| {
                (problem.code.name().to_owned(), problem.at.map(|at| place(&example.source.text, at)))
            })
            .collect();
        if reported != [(example.code.clone(), Some(example.expected))] {
            let _ = writeln!(wrong, "{}: expected {:?}, found {reported:?}", example.file, example.expected);
            if reported.is_empty() {
                wrong.push_str(
                    "  it has no problem: if what it shows is valid now, show it by another word\n",
                );
            }
            found.iter().for_each(|problem| wrong.push_str(&rendered(&example.source, problem)));
        }
    }
    assert!(wrong.is_empty(), "\n{wrong}");
}

#[test]
fn a_variable_is_unset_only_in_an_env_where_nothing_gives_it_a_value() {
    let text = "project \"acme\" schema=1\nvar \"a\"\nvar \"b\" default=\"x\"\nenv \"dev\"\nenv \"prod\" { set a=\"y\" }\n";
    let source = Source { name: "nmplan.kdl".into(), text: text.into(), language: Language::Kdl };
    let (documents, report) = parse(&source, SourceId(0), project::DESCRIPTORS);
    assert!(report.is_empty());
    let (file, report) = project::decode(&documents);
    assert!(report.is_empty(), "what is not chosen yet is not a problem: {:?}", sorted(&report));
    let unset = |env: &str, given: &[&str]| {
        let given = given.iter().map(|name| name.parse().unwrap()).collect();
        sorted(&project::unset(&documents, file.as_ref().unwrap(), &env.parse().unwrap(), &given)).len()
    };
    assert_eq!(
        (unset("dev", &[]), unset("dev", &["b"]), unset("dev", &["a"]), unset("prod", &[])),
        (1, 1, 0, 0)
    );
}

#[test]
fn every_code_has_an_example_or_a_reason_to_have_none() {
    let shown: BTreeSet<_> = examples().into_iter().map(|example| example.code).collect();
    let elsewhere: BTreeSet<_> = ELSEWHERE.iter().map(|(code, _)| code.name().to_owned()).collect();
    assert_eq!(shown.intersection(&elsewhere).next(), None, "what has an example needs no reason");
    let all: BTreeSet<_> = Code::ALL.iter().map(|code| code.name().to_owned()).collect();
    assert_eq!(shown.union(&elsewhere).cloned().collect::<BTreeSet<_>>(), all);
}

#[test]
fn a_byte_order_mark_at_the_start_is_allowed_and_moves_no_place() {
    for (language, text) in [
        (Language::Kdl, "network \"corp\" {\n    ipv4 \"10.40.0.0/33\"\n}\n"),
        (Language::Yaml, "networks:\n  corp:\n    ipv4: 10.40.0.0/33\n"),
    ] {
        let source = |text: &str| Source { name: "a".into(), text: text.into(), language };
        let marked = format!("\u{feff}{text}");
        let found = |text: &str| {
            let found = problems(&source(text), false);
            found.iter().map(|one| (one.code, place(text, one.at.unwrap()))).collect::<Vec<_>>()
        };
        assert_eq!(found(&marked), found(text), "{language:?}");
        assert_eq!(found(&marked).len(), 1, "{language:?}");
        assert!(
            !codes(format!("\u{feff}\u{feff}{text}"), language).is_empty(),
            "a second one is a character"
        );
    }
}

#[test]
fn both_languages_are_among_the_examples() {
    for language in [Language::Kdl, Language::Yaml] {
        assert!(examples().iter().any(|example| example.source.language == language), "{language:?}");
    }
}

#[test]
fn the_diagnostics_read_well() {
    let mut all = String::new();
    for example in examples() {
        let _ = writeln!(all, "== {}", example.file);
        problems(&example.source, example.project)
            .iter()
            .for_each(|one| all.push_str(&rendered(&example.source, one)));
    }
    insta::assert_snapshot!(all);
}

fn codes(text: String, language: Language) -> Vec<Code> {
    let source = Source { name: "bomb".into(), text: text.into(), language };
    problems(&source, false).iter().map(|problem| problem.code).collect()
}

#[test]
fn a_file_above_the_allowed_size_or_number_of_blocks_is_refused_unread() {
    for (language, comment) in [(Language::Kdl, "//"), (Language::Yaml, "# ")] {
        let full = comment.to_owned() + &"x".repeat(MAX_SIZE - comment.len());
        assert_eq!(codes(full + "x", language), [Code::TooLarge], "{language:?}");
    }
    let full = "# ".to_owned() + &"x".repeat(MAX_SIZE - 2);
    assert_eq!(codes(full, Language::Yaml), []);
    let blocks = "network \"a\" {}\n".repeat(32_769);
    assert_eq!(codes(blocks, Language::Kdl), [Code::TooLarge]);
}

#[test]
fn nesting_of_any_depth_and_shape_is_refused_as_too_deep() {
    for depth in [MAX_DEPTH + 1, 1_000, 100_000] {
        for (open, close) in [
            ("a {", "}"),
            ("/-a {", "}"),
            ("a /-{", "}"),
            ("/*", "*/"),
            ("a { /*", "*/ }"),
            ("a {\n", "\n}\n"),
        ] {
            assert_eq!(codes(open.repeat(depth), Language::Kdl), [Code::TooDeep], "{depth} times {open:?}");
            let closed = open.repeat(depth) + &close.repeat(depth);
            assert_eq!(codes(closed, Language::Kdl), [Code::TooDeep], "{depth} times {open:?} and {close:?}");
        }
        for (open, close) in [("[", "]"), ("{ a: ", "}"), ("- ", ""), ("[{ a: ", "}]"), ("? ", "")] {
            assert_eq!(codes(open.repeat(depth), Language::Yaml).len(), 1, "{depth} times {open:?}");
            let closed = open.repeat(depth) + "x" + &close.repeat(depth);
            let expected = if open == "? " { Code::YamlFeature } else { Code::TooDeep };
            assert_eq!(codes(closed, Language::Yaml), [expected], "{depth} times {open:?} and {close:?}");
        }
    }
}

#[test]
fn the_deepest_nesting_that_is_allowed_is_parsed() {
    let blocks =
        format!("network \"corp\" {{ {}{} }}", "a {".repeat(MAX_DEPTH - 1), "}".repeat(MAX_DEPTH - 1));
    assert!(!codes(blocks, Language::Kdl).contains(&Code::TooDeep));
    let lists = format!("networks: {}{}", "[".repeat(MAX_DEPTH - 1), "]".repeat(MAX_DEPTH - 1));
    assert!(!codes(lists, Language::Yaml).contains(&Code::TooDeep));
}
