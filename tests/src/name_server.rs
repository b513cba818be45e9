//! Name servers, and what they answer.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nmplan::lab::{Host, Process};

use crate::{eventually, text_of};

/// A CoreDNS that `make test-tools` built; absent: none, since there is no Go to build it with.
///
/// # Panics
///
/// When there is none in CI.
pub fn coredns() -> Option<PathBuf> {
    let built = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/coredns");
    let versions = std::fs::read_dir(&built).into_iter().flatten().flatten();
    let newest = versions.map(|version| version.path().join("coredns")).filter(|path| path.is_file()).max();
    assert!(
        newest.is_some() || std::env::var_os("CI").is_none(),
        "no CoreDNS in {}: `make test-tools` builds it, with Go from 1.24 on",
        built.display()
    );
    newest
}

/// Starts a CoreDNS on a host with the files in a folder, and waits until it answers.
///
/// # Panics
///
/// When it does not.
pub async fn start_coredns(host: &Host, program: &Path, folder: &Path) -> Process {
    let mut command = host.command(program);
    command.arg("-conf").arg(folder.join("Corefile"));
    let mut process = host.start("coredns", command).expect("it starts");
    answers(host, &mut process).await;
    process
}

/// Starts a BIND on a host that is the primary server of these zones, and waits until it answers.
///
/// # Panics
///
/// When it does not.
pub async fn start_bind(host: &Host, zones: &[(&str, &Path)]) -> Process {
    let mut text = String::from(
        "options { directory \"/run\"; pid-file none; session-keyfile none; listen-on { any; }; \
         listen-on-v6 { any; }; recursion no; dnssec-validation no; };\ncontrols { };\n",
    );
    for (name, file) in zones {
        text += &format!("zone \"{name}\" {{ type primary; file \"{}\"; }};\n", file.display());
    }
    let settings = host.directory().join("named.conf");
    std::fs::write(&settings, text).expect("written");
    let mut command = host.command("named");
    command.arg("-g").arg("-c").arg(settings);
    let mut process = host.start("named", command).expect("bind9 is installed");
    answers(host, &mut process).await;
    process
}

async fn answers(host: &Host, process: &mut Process) {
    eventually("the name server answers", Duration::from_secs(20), async || {
        assert!(process.is_running(), "{}", process.printed());
        ask(host, host.ipv4().into(), "localhost", "A").await.is_some()
    })
    .await;
}

/// An answer of a name server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// What became of the question: `NOERROR`, `NXDOMAIN`, `REFUSED`.
    pub status: String,
    /// The records, each as one line: name, seconds, class, type, data.
    pub records: BTreeSet<String>,
}

impl Answer {
    /// The data of its records of a type.
    pub fn data(&self, of: &str) -> BTreeSet<String> {
        let fields = self.records.iter().map(|record| record.splitn(5, ' ').collect::<Vec<_>>());
        fields.filter(|record| record[3] == of).map(|record| record[4].to_owned()).collect()
    }
}

/// Asks a name server from a host; nothing if it does not answer.
pub async fn ask(from: &Host, server: IpAddr, name: &str, of: &str) -> Option<Answer> {
    let mut command = from.command("dig");
    command.arg(format!("@{server}")).args(["+tries=1", "+time=2", "+noall", "+comments", "+answer"]);
    command.args(["-q", name, "-t", of]);
    let output = from.run(command).await.expect("dig is installed");
    let text = text_of(&output.stdout);
    let status = text.split_once("status: ")?.1.split(',').next()?.to_owned();
    let records =
        text.lines().filter(|line| !line.is_empty() && !line.starts_with(';')).map(record).collect();
    Some(Answer { status, records })
}

/// The name by which an address is asked for.
pub fn reverse(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => {
            let [a, b, c, d] = address.octets();
            format!("{d}.{c}.{b}.{a}.in-addr.arpa")
        }
        IpAddr::V6(address) => {
            let nibbles = address.octets().into_iter().rev().flat_map(|byte| [byte & 15, byte >> 4]);
            nibbles.map(|nibble| format!("{nibble:x}.")).collect::<String>() + "ip6.arpa"
        }
    }
}

/// The records of a zone file as BIND reads them, each as one line.
///
/// # Panics
///
/// When it refuses the file.
pub fn compiled(zone: &str, file: &Path) -> BTreeSet<String> {
    let mut command = std::process::Command::new("named-compilezone");
    // Names of other zones are not looked up.
    command.args(["-q", "-i", "local", "-F", "text", "-s", "full", "-o", "-", zone]).arg(file);
    let output = command.output().expect("bind9-utils is installed");
    let (printed, said) = (text_of(&output.stdout), text_of(&output.stderr));
    assert!(output.status.success(), "{}: {said}{printed}", file.display());
    printed.lines().filter(|line| !line.is_empty()).map(record).collect()
}

fn record(line: &str) -> String {
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}
