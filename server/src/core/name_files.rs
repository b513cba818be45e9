//! Which files a name server needs to serve the names of the networks, and what of them has to be written.
//!
//! In the folder lie `NETWORK.zone` for each network with a name service, [`HOSTS`] for the names of addresses,
//! and the [`COREFILE`] of a CoreDNS that serves them. [`pass`] compares what is there with what should be, and
//! returns [`Step`]s in the order in which a CoreDNS that reads at any moment finds every file that its Corefile
//! names: zones first, then the Corefile, and what nobody names any more is removed last. A file that nmserver
//! has not written is left alone, and no zone of that name is served.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use ipnet::IpNet;
use jiff::Timestamp;
use netclient::files;
use schema::compile::Mesh;
use schema::scalars::NetworkName;
use schema::snapshot::Snapshot;
use schema::zone;

/// The configuration of CoreDNS.
pub const COREFILE: &str = "Corefile";
/// Every address with its names, for what has an address and asks for a name.
pub const HOSTS: &str = "netmaker.hosts";
/// A zone without names, for addresses that nobody has. No network has a name of that length.
const NO_NAMES: &str = "no-such-address.zone";
/// How the files of zones end.
const ZONE: &str = ".zone";
/// What the first line of each file says, after the sign of a comment.
const WRITTEN_BY: &str = "Written by nmserver, which replaces this file when networks or their names change.";
/// How long names of addresses may be cached, in seconds, as those of members.
const TTL: u32 = schema::kinds::Dns::TTL.0;

/// Which name servers are asked for names outside of the networks (`DNS_FORWARD`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Forward {
    /// None: such names are refused.
    Nobody,
    /// Those that a file of the form of `/etc/resolv.conf` names, on the host of CoreDNS.
    File(PathBuf),
    /// These.
    To(Vec<Nameserver>),
}

/// A name server: its address, and its port if that is not 53.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Nameserver(SocketAddr);

/// A file that is in the folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// nmserver wrote it; what follows its first line.
    Ours(String),
    /// It did not, or it is not safe to use, for this reason.
    Foreign(String),
    /// A process that was killed left it while it wrote another.
    Unfinished,
}

/// What is to be done in the folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// A file is to hold this text.
    Write(String, String),
    /// A file is to be removed.
    Remove(String),
}

/// What has to be done, in this order, and what cannot be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pass {
    /// What to do.
    pub steps: Vec<Step>,
    /// Files that are not nmserver's and lie where one of its belongs, each with why.
    pub foreign: Vec<(String, String)>,
}

/// What the files are to say.
pub struct Wanted<'a> {
    /// The declarations.
    pub declared: &'a Snapshot,
    /// The networks, by name.
    pub meshes: &'a [&'a Mesh],
    /// The folder, as CoreDNS sees it.
    pub folder: &'a Path,
    /// The name servers that other names are forwarded to, as a Corefile names them.
    pub forward: &'a [String],
}

impl<'a> Wanted<'a> {
    /// The networks that have a name service.
    fn zones(&self) -> impl Iterator<Item = &'a Mesh> {
        let serves =
            |mesh: &&&Mesh| self.declared.network(mesh.name()).is_some_and(|network| network.name_service);
        self.meshes.iter().filter(serves).copied()
    }

    fn ranges(&self, network: &NetworkName) -> Vec<IpNet> {
        self.declared.network(network).into_iter().flat_map(|network| network.ranges()).collect()
    }
}

/// Whether a file of that name may be nmserver's.
pub fn is_name_of_one(file: &str) -> bool {
    file == COREFILE || file == HOSTS || file.ends_with(ZONE)
}

/// Whether a file of that name is one that nmserver has begun to write.
pub fn is_unfinished(file: &str) -> bool {
    file.strip_suffix(files::NEW).and_then(|file| file.strip_suffix('.')).is_some_and(is_name_of_one)
}

/// What a file holds, by its bytes.
pub fn read(bytes: &[u8]) -> Found {
    let text = String::from_utf8_lossy(bytes);
    match text.split_once('\n') {
        Some((first, rest)) if first.trim_start_matches(['#', ';', ' ']) == WRITTEN_BY => {
            Found::Ours(rest.into())
        }
        Some(_) | None => Found::Foreign("nmserver did not write it; move it elsewhere".into()),
    }
}

/// What has to be done for the files in the folder to be as they should be.
pub fn pass(folder: &BTreeMap<String, Found>, wanted: &Wanted<'_>, now: Timestamp) -> Pass {
    let mut pass = Pass::default();
    let mut served = Vec::new();
    for mesh in wanted.zones() {
        let file = zone_file(mesh.name());
        let next =
            |before: Option<&str>| zone::replacement(before.unwrap_or_default(), mesh, wanted.declared, now);
        if pass.keep(folder, &file, ';', next) {
            served.push(mesh.name());
        }
    }
    let text = zone::empty();
    pass.keep(folder, NO_NAMES, ';', |before| (before != Some(&*text)).then(|| text.clone()));
    let text = zone::hosts(wanted.zones());
    pass.keep(folder, HOSTS, '#', |before| (before != Some(&*text)).then(|| text.clone()));
    let text = corefile(wanted, &served);
    pass.keep(folder, COREFILE, '#', |before| (before != Some(&*text)).then(|| text.clone()));
    let named = |file: &str| file == NO_NAMES || wanted.zones().any(|mesh| zone_file(mesh.name()) == file);
    for (file, found) in folder {
        let is_over = match found {
            Found::Ours(_) => file.ends_with(ZONE) && !named(file),
            Found::Unfinished => true,
            Found::Foreign(_) => false,
        };
        if is_over {
            pass.steps.push(Step::Remove(file.clone()));
        }
    }
    pass
}

impl Pass {
    /// Writes what `next` returns for the text that a file holds, if there is one, and if it returns anything;
    /// whether the file is, or becomes, nmserver's.
    fn keep(
        &mut self,
        folder: &BTreeMap<String, Found>,
        file: &str,
        comment: char,
        next: impl FnOnce(Option<&str>) -> Option<String>,
    ) -> bool {
        let before = match folder.get(file) {
            Some(Found::Foreign(why)) => {
                self.foreign.push((file.to_owned(), why.clone()));
                return false;
            }
            Some(Found::Ours(text)) => Some(text.as_str()),
            Some(Found::Unfinished) | None => None,
        };
        if let Some(text) = next(before) {
            self.steps.push(Step::Write(file.to_owned(), format!("{comment} {WRITTEN_BY}\n{text}")));
        }
        true
    }
}

fn zone_file(network: &NetworkName) -> String {
    format!("{network}{ZONE}")
}

/// The configuration of a CoreDNS: one block for each zone, one for the addresses of each network, and one for all
/// other names, which it asks others for on behalf of members alone.
fn corefile(wanted: &Wanted<'_>, served: &[&NetworkName]) -> String {
    let file = |name: &str| quoted(&wanted.folder.join(name).display().to_string());
    // For names of every zone, or those of addresses would be left out that lead into others.
    let hosts = format!(
        "    hosts {} . {{\n        reload 1s\n        ttl {TTL}\n        fallthrough\n    }}\n",
        file(HOSTS)
    );
    let mut text = String::new();
    for network in served {
        let zone = file(&zone_file(network));
        let _ = writeln!(text, "{network} {{\n    errors\n    file {zone} {{\n        reload 1s\n    }}\n}}");
        let ranges = words(wanted.ranges(network));
        let _ = writeln!(text, "{ranges} {{\n    errors\n{hosts}    file {}\n}}", file(NO_NAMES));
    }
    let inside = words(wanted.meshes.iter().flat_map(|mesh| wanted.ranges(mesh.name())));
    text += ". {\n    errors\n    reload 2s 1s\n    acl {\n";
    if inside.is_empty() || wanted.forward.is_empty() {
        text += "        block\n    }\n}\n";
        return text;
    }
    let _ = writeln!(text, "        allow net {inside}\n        block\n    }}");
    text += &hosts;
    let _ = writeln!(
        text,
        "    forward . {} {{\n        max_concurrent 1000\n    }}\n}}",
        wanted.forward.join(" ")
    );
    text
}

fn words(of: impl IntoIterator<Item = IpNet>) -> String {
    of.into_iter().map(|range| range.to_string()).collect::<Vec<_>>().join(" ")
}

/// A word of a Corefile, whatever is in it.
fn quoted(word: &str) -> String {
    format!("\"{}\"", word.replace('\\', "\\\\").replace('"', "\\\""))
}

impl Forward {
    /// The name servers as a Corefile names them. `file` reads a file; absent: there is none. An error says why
    /// there is no name server.
    pub fn names(&self, file: impl FnOnce(&Path) -> Option<String>) -> Result<Vec<String>, String> {
        match self {
            Self::Nobody => Ok(Vec::new()),
            Self::To(nameservers) => Ok(nameservers.iter().map(ToString::to_string).collect()),
            Self::File(path) => {
                let text = file(path).unwrap_or_default();
                let is_one = |line: &str| line.split_whitespace().next() == Some("nameserver");
                match text.lines().any(is_one) {
                    true => Ok(vec![quoted(&path.display().to_string())]),
                    false => Err(format!(
                        "{} names no nameserver, so names outside of the networks are refused; set DNS_FORWARD to \
                         the addresses of name servers, or to off",
                        path.display()
                    )),
                }
            }
        }
    }
}

impl Default for Forward {
    fn default() -> Self {
        Self::File("/etc/resolv.conf".into())
    }
}

impl FromStr for Forward {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const FORM: &str = "write addresses of name servers (192.0.2.53, 192.0.2.53:5353, [2001:db8::53]:5353) with \
                            commas between them, the path of a file like /etc/resolv.conf, or off";
        /// CoreDNS takes no more.
        const MOST: usize = 15;
        if text == "off" {
            return Ok(Self::Nobody);
        }
        if text.starts_with('/') {
            // Braces stand for variables in a Corefile.
            return if text.contains(['{', '}', '\n']) { Err(FORM) } else { Ok(Self::File(text.into())) };
        }
        let words = text.split([',', ' ']).filter(|word| !word.is_empty());
        let nameservers = words.map(str::parse).collect::<Result<Vec<_>, _>>().map_err(|()| FORM)?;
        if (1..=MOST).contains(&nameservers.len()) { Ok(Self::To(nameservers)) } else { Err(FORM) }
    }
}

impl fmt::Display for Forward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nobody => f.write_str("off"),
            Self::File(path) => path.display().fmt(f),
            Self::To(nameservers) => {
                let words: Vec<_> = nameservers.iter().map(ToString::to_string).collect();
                f.write_str(&words.join(","))
            }
        }
    }
}

impl FromStr for Nameserver {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let address = text.parse::<IpAddr>().map(|address| SocketAddr::new(address, 53));
        let address = address.or_else(|_| text.parse()).map_err(drop)?;
        if address.ip().is_unspecified() || address.ip().is_multicast() || address.port() == 0 {
            return Err(());
        }
        Ok(Self(address))
    }
}

impl fmt::Display for Nameserver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.port() == 53 { self.0.ip().fmt(f) } else { self.0.fmt(f) }
    }
}

#[cfg(test)]
mod tests {
    use schema::inventory::Inventory;
    use schema::world::ResourceDocument;

    use super::*;

    fn declared(bodies: &[(&str, &str)]) -> Snapshot {
        let mut snapshot = Snapshot::default();
        for (id, body) in bodies {
            let json = format!(r#"{{"id":"{id}","body":{body}}}"#);
            let document: ResourceDocument = serde_json::from_str(&json).expect("good");
            snapshot.put(document.id.clone(), document.entry().expect("good"));
        }
        snapshot
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("a time")
    }

    /// A pass over a folder, for these declarations.
    fn passed(folder: &BTreeMap<String, Found>, declared: &Snapshot, now: i64) -> Pass {
        let nothing = Inventory::default();
        let meshes: Vec<_> =
            declared.networks().filter_map(|(name, _)| Mesh::compile(name, declared, &nothing)).collect();
        let meshes: Vec<_> = meshes.iter().collect();
        let forward = ["192.0.2.53".to_owned()];
        let wanted =
            Wanted { declared, meshes: &meshes, folder: Path::new("/var/lib/nm/dns"), forward: &forward };
        pass(folder, &wanted, at(now))
    }

    fn carry_out(folder: &mut BTreeMap<String, Found>, step: &Step) {
        match step {
            Step::Write(file, text) => drop(folder.insert(file.clone(), read(text.as_bytes()))),
            Step::Remove(file) => drop(folder.remove(file)),
        }
    }

    fn ours<'a>(folder: &'a BTreeMap<String, Found>, file: &str) -> &'a str {
        match folder.get(file) {
            Some(Found::Ours(text)) => text,
            other => panic!("{file}: {other:?}"),
        }
    }

    const CORP: (&str, &str) = ("corp", r#"{"ipv4":"10.40.0.0/16","ipv6":"fd40::/64"}"#);

    #[test]
    fn the_files_of_a_network_are_written_once_and_follow_it() {
        let mut folder = BTreeMap::new();
        let apply = |folder: &mut BTreeMap<_, _>, declared: &Snapshot, now| {
            let Pass { steps, foreign } = passed(folder, declared, now);
            assert_eq!(foreign, []);
            steps.iter().for_each(|step| carry_out(folder, step));
            assert_eq!(passed(folder, declared, now + 100), Pass::default(), "nothing is left to do");
            steps.len()
        };
        assert_eq!(apply(&mut folder, &Snapshot::default(), 1_000), 3, "before the first network");
        assert_eq!(
            ours(&folder, COREFILE),
            ". {\n    errors\n    reload 2s 1s\n    acl {\n        block\n    }\n}\n"
        );
        let entry = ("corp/dns/api", r#"{"a":["10.40.0.9"],"ttl":"5m"}"#);
        assert_eq!(apply(&mut folder, &declared(&[CORP, entry]), 2_000), 3);
        assert_eq!(
            ours(&folder, "corp.zone"),
            "$ORIGIN corp.\n$TTL 60\n@ IN SOA localhost. root.localhost. 2000 1200 180 1209600 5\n@ IN NS localhost.\n\
             api 300 IN A 10.40.0.9\n"
        );
        assert_eq!(ours(&folder, HOSTS), "10.40.0.9\tapi.corp\n");
        let hosts = "    hosts \"/var/lib/nm/dns/netmaker.hosts\"";
        let lines = " . {\n        reload 1s\n        ttl 60\n        fallthrough\n    }\n";
        assert_eq!(
            ours(&folder, COREFILE),
            format!(
                "corp {{\n    errors\n    file \"/var/lib/nm/dns/corp.zone\" {{\n        reload 1s\n    }}\n}}\n\
                 10.40.0.0/16 fd40::/64 {{\n    errors\n{hosts}{lines}    file \"/var/lib/nm/dns/no-such-address.zone\"\n}}\n\
                 . {{\n    errors\n    reload 2s 1s\n    acl {{\n        allow net 10.40.0.0/16 fd40::/64\n        block\n    }}\n\
                 {hosts}{lines}    forward . 192.0.2.53 {{\n        max_concurrent 1000\n    }}\n}}\n"
            )
        );
        let moved = ("corp/dns/api", r#"{"a":["10.40.0.8"],"ttl":"5m"}"#);
        assert_eq!(apply(&mut folder, &declared(&[CORP, moved]), 1_500), 2, "the clock went back");
        assert_eq!(zone::serial(ours(&folder, "corp.zone")), Some(2_001));
        let silent = ("corp", r#"{"ipv4":"10.40.0.0/16","ipv6":"fd40::/64","name-service":false}"#);
        assert_eq!(apply(&mut folder, &declared(&[silent, moved]), 3_000), 3);
        assert!(!folder.contains_key("corp.zone") && ours(&folder, HOSTS).is_empty());
        let corefile = ours(&folder, COREFILE);
        assert!(
            corefile.contains("allow net 10.40.0.0/16 fd40::/64") && !corefile.contains("corp"),
            "{corefile}"
        );
    }

    #[test]
    fn whenever_a_process_is_killed_each_file_that_the_corefile_names_is_there() {
        let lab = ("lab", r#"{"ipv4":"10.50.0.0/16"}"#);
        let stages = [&[][..], &[CORP], &[CORP, lab], &[lab], &[CORP], &[]].map(declared);
        let names_what_is_there = |folder: &BTreeMap<String, Found>| {
            let Some(Found::Ours(corefile)) = folder.get(COREFILE) else { return };
            for path in corefile.split('"').skip(1).step_by(2) {
                ours(folder, path.strip_prefix("/var/lib/nm/dns/").expect("it is in the folder"));
            }
        };
        let mut folder = BTreeMap::new();
        for (number, stage) in stages.iter().enumerate() {
            let now = 1_000 * (1 + number as i64);
            let steps = passed(&folder, stage, now).steps;
            for killed in 0..steps.len() {
                let mut partly = folder.clone();
                steps[..killed].iter().for_each(|step| carry_out(&mut partly, step));
                names_what_is_there(&partly);
                // The next process goes on.
                passed(&partly, stage, now + 1).steps.iter().for_each(|step| carry_out(&mut partly, step));
                assert_eq!(passed(&partly, stage, now + 2), Pass::default());
            }
            steps.iter().for_each(|step| {
                carry_out(&mut folder, step);
                names_what_is_there(&folder);
            });
        }
    }

    #[test]
    fn a_file_of_somebody_else_is_left_and_keeps_nothing_else_from_being_served() {
        let lab = ("lab", r#"{"ipv4":"10.50.0.0/16"}"#);
        let theirs = read(b"$ORIGIN corp.\n");
        let mut folder =
            BTreeMap::from(["corp.zone", "other.zone"].map(|file| (file.to_owned(), theirs.clone())));
        let Pass { steps, foreign } = passed(&folder, &declared(&[CORP, lab]), 1_000);
        assert_eq!(foreign.len(), 1, "{foreign:?}");
        assert!(foreign[0].0 == "corp.zone" && foreign[0].1.contains("move it"), "{foreign:?}");
        steps.iter().for_each(|step| carry_out(&mut folder, step));
        assert_eq!(folder["corp.zone"], theirs);
        let corefile = ours(&folder, COREFILE);
        assert!(corefile.contains("lab.zone") && !corefile.contains("corp.zone"), "{corefile}");
        let steps = passed(&folder, &declared(&[lab]), 2_000).steps;
        assert!(steps.iter().all(|step| !matches!(step, Step::Remove(_))), "{steps:?}");
    }

    #[test]
    fn name_servers_are_addresses_or_a_file_that_names_some() {
        for (text, expected) in [
            ("192.0.2.53", "192.0.2.53"),
            ("192.0.2.53, 2001:db8::53", "192.0.2.53 2001:db8::53"),
            ("[2001:db8::53]:5353,192.0.2.53:53", "[2001:db8::53]:5353 192.0.2.53"),
            ("off", ""),
            ("/etc/resolv.conf", "\"/etc/resolv.conf\""),
        ] {
            let forward: Forward = text.parse().expect("good");
            assert_eq!(forward.to_string().parse(), Ok(forward.clone()), "{text}");
            let file = |_: &Path| Some("# none\nnameserver 192.0.2.1\n".to_owned());
            assert_eq!(forward.names(file).expect("they are known").join(" "), expected, "{text}");
        }
        for bad in ["", "dns.example.net", "192.0.2.53:0", "0.0.0.0", "resolv.conf", "/etc/{$HOME}"] {
            assert!(bad.parse::<Forward>().is_err(), "{bad}");
        }
        assert!(["192.0.2.53"; 16].join(",").parse::<Forward>().is_err(), "CoreDNS takes 15");
        for text in [None, Some("search example.net\n".to_owned())] {
            let why = Forward::default().names(|_| text.clone()).expect_err("it names none");
            assert!(
                why.contains("/etc/resolv.conf names no nameserver") && why.contains("DNS_FORWARD"),
                "{why}"
            );
        }
    }
}
