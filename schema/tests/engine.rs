//! The engine carries what no kind needs yet: a description that is declared here alone goes through both
//! languages, the differ, the reference and the schemas.
#![expect(clippy::unwrap_used, reason = "a test")]

mod worlds;

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use schema_derive::{Choice, Describe, Record};

use schema::attribute::{self, Bounded, Choice as _, Describe as _, NonEmpty, Ref, Struct};
use schema::descriptor::{Descriptor, Reference, Target};
use schema::diff;
use schema::document::{Document, Spanned};
use schema::kinds::{Network, Node};
use schema::reference::{components, file_schema, markdown};
use schema::report::Code;
use schema::scalars::{Seconds, Selector};
use schema::syntax::{Language, Source, Variables, parse, print, substitute};
use schema::value::{Data, SourceId, Span, Step, Value};

use worlds::{cases, record};

/// How traffic is carried.
#[derive(Clone, Copy, Debug, PartialEq, Choice)]
enum Protocol {
    /// With connections.
    Tcp,
    /// Without them.
    Udp,
    /// Echo, of both families.
    IcmpEcho,
}

/// A node on the way.
#[derive(Clone, Debug, PartialEq, Record)]
struct Hop {
    /// The node.
    node: Ref<Node>,
    /// How long it may take.
    #[field(default = Seconds(5))]
    within: Seconds,
}

/// Who reaches whom.
#[derive(Clone, Debug, PartialEq, Record)]
struct Reach {
    /// Who does.
    from: NonEmpty<BTreeSet<Selector>>,
    /// Whom they reach.
    to: Selector,
    /// How; absent: in every way.
    proto: Option<Protocol>,
    /// The port.
    port: Option<Bounded<1, 65_535>>,
    /// The nodes on the way, in order.
    hops: Vec<Hop>,
}

/// A description that holds one of everything.
#[derive(Clone, Debug, PartialEq, Describe)]
#[describe(word = "probe", plural = "probes", within = "network")]
struct Probe {
    /// Nodes in order of preference: at least one.
    via: NonEmpty<Vec<Ref<Node>>>,
    /// Whom it is about.
    r#for: BTreeSet<Selector>,
    /// Whom it lets in; absent: everybody, empty: nobody.
    allow_to: Option<BTreeSet<Selector>>,
    /// Names in order; absent: whatever holds elsewhere, empty: none.
    order: Option<Vec<Box<str>>>,
    /// Whether it is loud.
    #[field(default = false)]
    loud: bool,
    /// Whether it counts.
    #[field(default = true)]
    counts: bool,
    /// How it asks.
    #[field(default = Protocol::Tcp)]
    proto: Protocol,
    /// What is tried, in order.
    reach: Vec<Reach>,
    /// What is tried first.
    first: Option<Reach>,
    /// Words by name.
    labels: BTreeMap<Box<str>, Box<str>>,
}

const KINDS: &[&Descriptor] = &[Network::DESCRIPTOR, Probe::DESCRIPTOR];

const KDL: &str = r#"network "corp" {
    probe "p" proto="icmp-echo" allow-to="*" {
        via "b" "a"
        for "tag:web" "db"
        loud
        order
        reach from="a" to="tag:db" port=5432
        reach to="10.0.0.0/8" {
            from "a" "b"
            hops node="x" within="9s"
            hops { node "y"; }
        }
        first from="*" { to "*" }
        labels { site "fra"; "a b" "c" }
    }
}
"#;
const YAML: &str = r#"networks:
  corp:
    probes:
      p:
        proto: icmp-echo
        allow-to: ["*"]
        via: [b, a]
        for: [db, "tag:web", db]
        loud: true
        order: []
        reach:
          - { from: [a], to: "tag:db", port: 5432, hops: [] }
          - from: [b, a]
            to: 10.0.0.0/8
            hops: [{ node: x, within: 9s }, { node: y, within: 5s }]
        first: { from: "*", to: "*" }
        labels: { site: fra, a b: c }
"#;

/// A probe without what is not needed.
fn least() -> Probe {
    Probe {
        via: NonEmpty::new(vec![Ref::new("b".parse().unwrap())]).unwrap(),
        r#for: BTreeSet::new(),
        allow_to: None,
        order: None,
        loud: false,
        counts: true,
        proto: Protocol::Tcp,
        reach: Vec::new(),
        first: None,
        labels: BTreeMap::new(),
    }
}

/// What both texts hold.
fn full() -> Probe {
    let node = |name: &str| Ref::new(name.parse().unwrap());
    let selectors =
        |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<BTreeSet<Selector>>();
    let reach = |from: &[&str], to: &str| Reach {
        from: NonEmpty::new(selectors(from)).unwrap(),
        to: to.parse().unwrap(),
        proto: None,
        port: None,
        hops: Vec::new(),
    };
    let hop = |name: &str, within| Hop { node: node(name), within: Seconds(within) };
    Probe {
        via: NonEmpty::new(vec![node("b"), node("a")]).unwrap(),
        r#for: selectors(&["tag:web", "db"]),
        allow_to: Some(selectors(&["*"])),
        order: Some(Vec::new()),
        loud: true,
        proto: Protocol::IcmpEcho,
        reach: vec![
            Reach { port: Some(Bounded::new(5_432)), ..reach(&["a"], "tag:db") },
            Reach { hops: vec![hop("x", 9), hop("y", 5)], ..reach(&["a", "b"], "10.0.0.0/8") },
        ],
        first: Some(reach(&["*"], "*")),
        labels: [("site".into(), "fra".into()), ("a b".into(), "c".into())].into(),
        ..least()
    }
}

/// A problem: its code, the text at its place, and its message.
type Reported = (Code, String, String);

/// The one probe of a text, and the problems of the text.
fn read(text: &str, language: Language) -> (Option<Probe>, Option<Document>, Vec<Reported>) {
    let source = Source { name: "test".into(), text: text.into(), language };
    let (mut documents, mut report) = parse(&source, SourceId(0), KINDS);
    substitute(&mut documents, &Variables::from([("db".into(), "tag:db".into())]), &mut report);
    let marked = |span: Span| text[span.start as usize..span.end as usize].to_owned();
    let words =
        |message: &str, help: Option<&String>| format!("{message}; {}", help.map_or("", String::as_str));
    let mut problems: Vec<_> = report
        .problems()
        .map(|it| (it.code, marked(it.at.unwrap().span), words(&it.message, it.help.as_ref())))
        .collect();
    let document = documents.into_iter().find(|document| document.descriptor.word == Probe::WORD);
    let mut found = Vec::new();
    let probe = document.as_ref().and_then(|it| attribute::read(&it.fields, it.name.span, &mut found));
    problems.extend(found.iter().map(|it| (it.code, marked(it.span), words(&it.message, it.help.as_ref()))));
    (probe, document, problems)
}

fn good(text: &str, language: Language) -> (Probe, Document) {
    let (probe, document, problems) = read(text, language);
    assert!(problems.is_empty(), "{text}\n{problems:#?}");
    (probe.unwrap(), document.unwrap())
}

fn printed(probe: &Probe, language: Language) -> String {
    let spanned = |text: &str| Spanned { text: text.into(), span: Span::default() };
    let network = Document {
        descriptor: Network::DESCRIPTOR,
        source: SourceId(0),
        name: spanned("corp"),
        parent: None,
        fields: [("ipv4".into(), Value::text("10.0.0.0/8").into())].into(),
        whole: true,
    };
    let document = Document {
        descriptor: Probe::DESCRIPTOR,
        name: spanned("p"),
        parent: Some(spanned("corp")),
        fields: attribute::write(probe).as_record().unwrap().clone(),
        ..network.clone()
    };
    print(&[network, document], language)
}

#[test]
fn both_languages_read_the_same() {
    assert_eq!(good(KDL, Language::Kdl).0, full());
    assert_eq!(good(YAML, Language::Yaml).0, full());
}

#[test]
fn the_printed_form_reads_well() {
    let both = [Language::Kdl, Language::Yaml].map(|language| printed(&full(), language));
    insta::assert_snapshot!(both.join("----\n"));
}

proptest! {
    #![proptest_config(cases(256))]

    #[test]
    fn whatever_is_read_is_printed_in_both_languages_and_as_json_and_reads_back(record in record(Probe::FIELDS)) {
        let probe: Probe = attribute::read(&record, Span::default(), &mut Vec::new()).unwrap();
        for language in [Language::Kdl, Language::Yaml] {
            let text = printed(&probe, language);
            prop_assert_eq!(&good(&text, language).0, &probe, "{}", text);
        }
        let json = serde_jcs::to_string(&attribute::write(&probe)).unwrap();
        let schema = &components(&[Probe::DESCRIPTOR])["probe"];
        let body: serde_json::Value = serde_json::from_str(&json).unwrap();
        prop_assert!(jsonschema::draft202012::is_valid(schema, &body), "{json}");
        let file: serde_json::Value = serde_yaml::from_str(&printed(&probe, Language::Yaml)).unwrap();
        prop_assert!(jsonschema::draft202012::is_valid(&file_schema(KINDS), &file), "{file}");
        let body: Value = serde_json::from_str(&json).unwrap();
        let back: Probe = attribute::read(body.as_record().unwrap(), Span::default(), &mut Vec::new()).unwrap();
        prop_assert_eq!(back, probe);
    }
}

#[test]
fn a_body_holds_only_what_differs_from_the_defaults_at_every_depth() {
    let body = |probe: &Probe| serde_json::to_string(&attribute::write(probe)).unwrap();
    assert_eq!(body(&least()), r#"{"via":["b"]}"#);
    let reach = full().reach.remove(1);
    let probe = Probe { reach: vec![reach], counts: false, ..least() };
    let hops = r#"[{"node":"x","within":"9s"},{"node":"y"}]"#;
    let reach = format!(r#"[{{"from":["a","b"],"hops":{hops},"to":"10.0.0.0/8"}}]"#);
    assert_eq!(body(&probe), format!(r#"{{"counts":false,"reach":{reach},"via":["b"]}}"#));
}

#[test]
fn absent_and_empty_are_apart_where_a_type_keeps_them_apart() {
    let kdl = |field: &str| {
        good(&format!("network \"c\" {{ probe \"p\" via=\"b\" {{ {field} }} }}"), Language::Kdl).0
    };
    let yaml = |field: &str| {
        good(&format!("networks: {{ c: {{ probes: {{ p: {{ via: b{field} }} }} }} }}"), Language::Yaml).0
    };
    let nobody = Probe { allow_to: Some(BTreeSet::new()), ..least() };
    assert_eq!((kdl(""), yaml("")), (least(), least()));
    assert_eq!((kdl("allow-to"), yaml(", allow-to: []")), (nobody.clone(), nobody.clone()));
    assert_eq!((kdl("for"), yaml(", for: []")), (least(), least()), "a plain set does not");
    assert_eq!((kdl("labels"), yaml(", labels: {}")), (least(), least()), "nor does a plain map");
    assert_eq!((kdl("reach"), yaml(", reach: []")), (least(), least()), "nor does a plain list");
    assert_eq!(serde_json::to_string(&attribute::write(&nobody)).unwrap(), r#"{"allow-to":[],"via":["b"]}"#);
    assert!(
        printed(&nobody, Language::Kdl).contains("\n        allow-to\n"),
        "{}",
        printed(&nobody, Language::Kdl)
    );
}

#[test]
fn what_is_wrong_inside_of_a_block_is_reported_at_its_exact_place() {
    const NEEDS: &str = "network \"c\" { probe \"p\" via=\"b\" {\n";
    for (language, text, code, marked, words) in [
        (
            Language::Kdl,
            "reach from=\"a\" too=\"b\" to=\"c\"",
            Code::UnknownField,
            "too",
            "did you mean \"to\"?",
        ),
        (Language::Kdl, "reach from=\"a\"", Code::MissingField, "reach", "this block needs the field \"to\""),
        (
            Language::Kdl,
            "reach from=\"a\" to=\"c\" proto=\"tpc\"",
            Code::InvalidValue,
            "\"tpc\"",
            "did you mean \"tcp\"?",
        ),
        (
            Language::Kdl,
            "reach from=\"a\" to=\"c\" proto=6",
            Code::WrongType,
            "6",
            "one of tcp, udp, icmp-echo belongs here",
        ),
        (
            Language::Kdl,
            "reach from=\"a\" to=\"c\"; reach { from; to \"c\"; }",
            Code::InvalidValue,
            "from",
            "at least one",
        ),
        (
            Language::Kdl,
            "reach from=\"a\" to=\"10.0.0.1\"",
            Code::InvalidValue,
            "\"10.0.0.1\"",
            "\"10.0.0.1/32\"?",
        ),
        (
            Language::Kdl,
            "reach from=\"a\" to=\"c\" { hops node=\"x\" within=\"1\" }",
            Code::InvalidValue,
            "\"1\"",
            "\"1s\"?",
        ),
        (Language::Kdl, "reach \"a\"", Code::WrongType, "\"a\"", "its fields are from, to"),
        (
            Language::Kdl,
            "reach from=\"a\" to=\"c\"; reach",
            Code::WrongType,
            "reach",
            "not a name without a value",
        ),
        (Language::Kdl, "reach \"a\" { to \"c\"; }", Code::ExtraArgument, "reach", "keep one of the two"),
        (
            Language::Kdl,
            "first from=\"a\" to=\"c\"; first from=\"b\" to=\"c\"",
            Code::DuplicateKey,
            "first",
            "given twice",
        ),
        (Language::Kdl, "for \"a\"; for \"b\"", Code::DuplicateKey, "for", "given twice"),
        (Language::Kdl, "first from=\"a\" { to \"c\"; to \"d\"; }", Code::DuplicateKey, "to", "given twice"),
        (
            Language::Kdl,
            "proto",
            Code::WrongType,
            "proto",
            "not a name without a value; write the value after it",
        ),
        (
            Language::Kdl,
            "first from=\"a\" to=\"${x}\"",
            Code::UnknownVariable,
            "\"${x}\"",
            "there is no variable \"x\"",
        ),
        (
            Language::Yaml,
            "reach: [{ from: a, to: c }, { from: [], to: c }]",
            Code::InvalidValue,
            "[",
            "at least one",
        ),
        (
            Language::Yaml,
            "reach: [{ from: a, to: c, hops: { nod: x } }]",
            Code::UnknownField,
            "nod",
            "\"node\"?",
        ),
        (Language::Yaml, "allow-to: true", Code::WrongType, "true", "a selector belongs here"),
        (Language::Yaml, "via: []", Code::InvalidValue, "[", "at least one"),
        (Language::Yaml, "labels: [a]", Code::WrongType, "[", "a block of names and values belongs here"),
    ] {
        let text = match language {
            Language::Kdl => format!("{NEEDS}{text}\n}} }}"),
            Language::Yaml if text.starts_with("via") => {
                format!("networks:\n  c:\n    probes:\n      p:\n        {text}\n")
            }
            Language::Yaml => {
                format!("networks:\n  c:\n    probes:\n      p:\n        via: b\n        {text}\n")
            }
        };
        let problems = read(&text, language).2;
        let expected = |(its, at, said): &Reported| {
            *its == code && (at == marked || marked == "[" && at.starts_with('[')) && said.contains(words)
        };
        assert!(problems.iter().any(expected), "{text}\n{problems:#?}");
    }
}

#[test]
fn variables_stand_in_blocks_too() {
    let text = KDL.replace("to=\"tag:db\"", "to=\"${db}\"");
    assert_eq!(good(&text, Language::Kdl).0, full());
}

#[test]
fn every_reference_is_visited_with_the_path_that_leads_to_its_place() {
    for (text, language) in [(KDL, Language::Kdl), (YAML, Language::Yaml)] {
        let (probe, document) = good(text, language);
        let mut visited = Vec::new();
        probe.references(&mut |Reference { to, network, name, text: written, builds, path }| {
            assert_eq!((network, written), (None, name));
            let at = document.element(&path, written).unwrap().span;
            let marked = text[at.start as usize..at.end as usize].trim_matches('"').to_owned();
            let steps = path.iter().map(|step| match step {
                Step::Field(name) => (*name).to_owned(),
                Step::Index(index) => index.to_string(),
            });
            let steps: Vec<_> = steps.collect();
            visited.push((steps.join(" "), name.to_owned(), marked, to, builds));
        });
        let node =
            |path: &str, name: &str| (path.into(), name.into(), name.into(), Target::Kind("node"), true);
        let named = |path: &str, name: &str| {
            (path.into(), name.into(), name.into(), Target::NamedBy("selector"), false)
        };
        assert_eq!(
            visited,
            [
                node("via 0", "b"),
                node("via 1", "a"),
                named("for", "db"),
                named("reach 0 from", "a"),
                named("reach 1 from", "a"),
                named("reach 1 from", "b"),
                node("reach 1 hops 0 node", "x"),
                node("reach 1 hops 1 node", "y"),
            ]
        );
    }
}

#[test]
fn a_path_that_ends_early_marks_what_it_passes_last() {
    let (_, document) = good(KDL, Language::Kdl);
    let marked = |path: &[Step<'_>]| {
        let span = document.location(path).span;
        &KDL[span.start as usize..span.end as usize]
    };
    assert_eq!(marked(&[]), "\"p\"");
    assert_eq!(marked(&[Step::Field("nowhere")]), "\"p\"");
    assert_eq!(marked(&[Step::Field("reach"), Step::Index(0), Step::Field("port")]), "5432");
    assert_eq!(marked(&[Step::Field("reach"), Step::Index(1), Step::Field("proto")]), "reach");
    assert_eq!(marked(&[Step::Field("first"), Step::Index(0), Step::Field("to")]), "\"*\"");
}

#[test]
fn the_differ_sees_the_order_of_lists_and_not_that_of_sets() {
    let (kdl, yaml) = (good(KDL, Language::Kdl).0, good(YAML, Language::Yaml).0);
    let body = |probe: &Probe| attribute::write(probe);
    let changed = |before: &Probe, after: &Probe| {
        let changes = diff::fields(Probe::FIELDS, Some(&body(before)), Some(&body(after)));
        changes.into_iter().map(|change| change.field.name).collect::<Vec<_>>()
    };
    assert_eq!(changed(&kdl, &yaml), [""; 0]);
    let mut turned = kdl.clone();
    turned.reach.reverse();
    assert_eq!(changed(&kdl, &turned), ["reach"]);
    let left_out =
        diff::fields(Probe::FIELDS, Some(&body(&least())), Some(&body(&Probe { counts: false, ..least() })));
    let shown: Vec<_> = left_out.iter().map(|it| (it.before.clone(), it.after.clone())).collect();
    let of = |it: bool| Some(Value::from(Data::Bool(it)));
    assert_eq!(shown, [(of(true), of(false))], "what a body leaves out is its default");
}

#[test]
fn the_words_of_a_choice_are_its_variants() {
    assert_eq!(Protocol::ALL.iter().map(|it| it.word()).collect::<Vec<_>>(), ["tcp", "udp", "icmp-echo"]);
    assert!(Protocol::ALL.iter().enumerate().all(|(index, it)| it.index() == index));
}

#[test]
fn the_reference_and_the_schema_show_all_of_it() {
    let text = markdown(&[Probe::DESCRIPTOR]);
    let text = &text[text.find("## probe").unwrap()..text.find("## Values").unwrap()];
    let schema =
        serde_json::to_string_pretty(&components(&[Probe::DESCRIPTOR])["probe"]["properties"]).unwrap();
    insta::assert_snapshot!(format!("{text}\n{schema}"));
}
