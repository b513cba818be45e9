//! What the programs tell people to type exists: every flag and every command that a message names is one of
//! the program that it is for, by that program's own help.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use end_to_end::text_of;
use nmplan::lab::Programs;
use proc_macro2::{Delimiter, TokenStream, TokenTree};

/// The folders of messages, each with the program whose flags they name if they name no program.
const FOLDERS: [(&str, &str); 5] = [
    ("schema/src", "nmplan"),
    ("nmplan/src", "nmplan"),
    ("proto/src", "netclient"),
    ("netclient/src", "netclient"),
    ("server/src", "nmserver"),
];
/// Messages of the server that are for whoever joins a host.
const FOR_HOSTS: &str = "enrol.rs";
/// Programs that messages name; of the ones that are not ours nothing is known.
const NAMED: [&str; 7] = ["nmplan", "nmserver", "netclient", "git", "curl", "cargo", "nsenter"];
/// Flags that messages name without a program: of whatever starts a container.
const FOREIGN: [&str; 2] = ["--device", "--privileged"];

/// What the help of a program has, with all of its commands.
#[derive(Default)]
struct Help {
    flags: BTreeSet<String>,
    verbs: BTreeSet<String>,
}

impl Help {
    fn of(program: &Path) -> Self {
        let mut help = Self::default();
        help.read(program, &[]);
        assert!(help.flags.contains("--help") && help.verbs.len() > 1, "{}", program.display());
        help
    }

    fn read(&mut self, program: &Path, verbs: &[&str]) {
        let output = Command::new(program).args(verbs).arg("--help").output().expect("it runs");
        let text = text_of(&output.stdout);
        let mut commands = false;
        for line in text.lines() {
            let indented = line.len() - line.trim_start().len();
            match line.trim_end() {
                "Commands:" => commands = true,
                "" => {}
                _ if indented == 0 => commands = false,
                _ if commands && indented == 2 => {
                    let verb = line.split_whitespace().next().unwrap_or_default();
                    self.verbs.insert(verb.to_owned());
                    self.read(program, &[verbs, &[verb]].concat());
                }
                line if line.trim_start().starts_with('-') => {
                    self.flags.extend(flags(line).map(|(_, it)| it))
                }
                _ => {}
            }
        }
    }
}

/// The flags in a text, each with where it is.
fn flags(text: &str) -> impl Iterator<Item = (usize, String)> {
    text.match_indices("--").filter_map(|(at, _)| {
        let before = text[..at].chars().next_back();
        let word: String =
            text[at + 2..].chars().take_while(|c| c.is_ascii_lowercase() || *c == '-').collect();
        let begins = before.is_none_or(|c| !c.is_alphanumeric() && c != '-');
        (begins && word.starts_with(|c: char| c.is_ascii_lowercase())).then(|| (at, format!("--{word}")))
    })
}

/// Whether a text is nothing but arguments that a program is started with.
fn is_arguments(text: &str) -> bool {
    let mut words = text.trim_matches('"').split_whitespace().peekable();
    words.peek().is_some() && words.all(|word| word.starts_with("--") || word.starts_with('{'))
}

/// The program that a text names last before a place.
fn program_before<'a>(text: &str, default: &'a str) -> &'a str {
    let last = |name: &&&str| {
        let found = text.rmatch_indices(**name).find(|(at, _)| {
            let (before, after) = (text[..*at].chars().next_back(), text[at + name.len()..].chars().next());
            before.is_none_or(|c| !c.is_alphanumeric() && c != '-') && after == Some(' ')
        });
        found.map(|(at, _)| at)
    };
    NAMED.iter().filter(|name| last(name).is_some()).max_by_key(last).copied().unwrap_or(default)
}

/// The commands of our programs that a text names to be typed: after a backtick, or on a line of their own.
fn commands(text: &str) -> Vec<(&'static str, String)> {
    let mut found = Vec::new();
    for program in &NAMED[..3] {
        for start in [format!("`{program} "), format!("  {program} ")] {
            for (at, _) in text.match_indices(&start) {
                let word: String = text[at + start.len()..]
                    .chars()
                    .take_while(|c| c.is_ascii_lowercase() || *c == '-')
                    .collect();
                if word.starts_with(|c: char| c.is_ascii_lowercase()) {
                    found.push((*program, word));
                }
            }
        }
    }
    found
}

/// The texts of a file, without comments and tests. What describes the command line becomes its help, so
/// there comments count.
fn texts(path: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(path).expect("it is text");
    let stream: TokenStream = text.parse().unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut found = Vec::new();
    collect(stream, path.ends_with("args.rs"), &mut found);
    found
}

fn collect(stream: TokenStream, docs: bool, found: &mut Vec<String>) {
    let mut test = false;
    for token in stream {
        match token {
            TokenTree::Group(group) => {
                let text = group.stream().to_string();
                let attribute = group.delimiter() == Delimiter::Bracket;
                if attribute && text.replace(' ', "") == "cfg(test)" {
                    test = true;
                } else if test && group.delimiter() == Delimiter::Brace {
                    test = false;
                } else if docs || !(attribute && text.starts_with("doc ")) {
                    collect(group.stream(), docs, found);
                }
            }
            TokenTree::Literal(literal) => found.push(literal.to_string().replace("\\n", "\n")),
            TokenTree::Punct(punct) => test &= punct.as_char() != ';',
            TokenTree::Ident(_) => {}
        }
    }
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).expect("a folder");
    let mut found = Vec::new();
    for path in entries.map(|entry| entry.expect("it is there").path()) {
        if path.is_dir() {
            found.extend(files(&path));
        } else if path.extension().is_some_and(|it| it == "rs") && !path.ends_with("tests.rs") {
            found.push(path);
        }
    }
    found
}

#[test]
fn every_flag_and_command_that_a_message_names_exists() {
    let programs = Programs::find().expect("they are built");
    let helps: BTreeMap<&str, Help> =
        [("nmplan", &programs.nmplan), ("nmserver", &programs.nmserver), ("netclient", &programs.netclient)]
            .map(|(name, path)| (name, Help::of(path)))
            .into();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let (mut checked, mut wrong) = (0, Vec::new());
    for (folder, default) in FOLDERS {
        for path in files(&root.join(folder)) {
            let default = if path.ends_with(FOR_HOSTS) { "netclient" } else { default };
            for text in texts(&path) {
                for (at, flag) in flags(&text).filter(|_| !is_arguments(&text)) {
                    let Some(help) = helps.get(program_before(&text[..at], default)) else { continue };
                    checked += 1;
                    if !help.flags.contains(&flag) && !FOREIGN.contains(&flag.as_str()) {
                        wrong.push(format!("{}: {flag} in {text}", path.display()));
                    }
                }
                for (program, verb) in commands(&text) {
                    checked += 1;
                    if !helps[program].verbs.contains(&verb) {
                        wrong.push(format!("{}: {program} {verb} in {text}", path.display()));
                    }
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(checked > 50, "only {checked} were found");
}

#[test]
fn a_flag_belongs_to_the_program_that_is_named_last_before_it() {
    let text = "run `nmserver token create --role viewer`, then nmplan apply --keys-to FILE";
    let found: Vec<_> =
        flags(text).map(|(at, flag)| (program_before(&text[..at], "netclient"), flag)).collect();
    assert_eq!(found, [("nmserver", "--role".to_owned()), ("nmplan", "--keys-to".to_owned())]);
    assert_eq!(program_before("join with --name", "netclient"), "netclient");
    assert_eq!(flags("a--b ---c -- --d=1 --{x}").map(|(_, flag)| flag).collect::<Vec<_>>(), ["--d"]);
    assert!(is_arguments("\"--interface\"") && is_arguments("\" --name {name}\""));
    assert!(!is_arguments("\"--allow {rule} is not needed\"") && !is_arguments(""));
    assert_eq!(commands("see:\n\n    nmplan history\n or `nmserver token create`").len(), 2);
}
