//! What the programs print where they printed something else before: each message beside the earlier one, in
//! one snapshot that is read from top to bottom.
//!
//! A case is a declaration, or a line that a user types. It runs in a shell on a host of its own, in an empty
//! folder, with the programs as they are built; only the earlier message is a constant.
//!
//! ```text
//! h0, h1, ... ==== underlay    each with nmserver (192.0.2.11), netclient and nmplan
//! ```

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use end_to_end::in_runtime;
use futures_util::{StreamExt, stream};
use nmplan::lab::{Host, Programs, Underlay, enter_test};
use regex_lite::Regex;
use textwrap::{Options, WordSeparator, WordSplitter, WrapAlgorithm};

/// How many cases run at a time: most of them wait for something.
const AT_ONCE: usize = 4;
/// A case takes at most five seconds on an idle computer.
const TIMEOUT: Duration = Duration::from_secs(60);
/// How wide the snapshot is.
const COLUMNS: usize = 110;
/// What is left of all lines but the first of a text.
const INDENT: &str = "        ";

const HEAD: &str = "\
For each fault: its number; what was declared or typed; what was printed before, and what is printed now.
Left out are the source lines that problems show, and, where it says `...`, lines that do not matter here.
Times, digests, ids and the like are replaced by words.
";

/// What situations are made of.
const PRELUDE: &str = r#"
await() { until eval "$1"; do sleep 0.05; done; }
project() {
    printf 'project "acme" schema=1\n' >nmplan.kdl
    printf 'env "prod" { server "https://192.0.2.11:8081"; use "%s" }\n' "$1" >>nmplan.kdl
}
network() { printf 'network "corp" {\n    ipv4 "10.40.0.0/24"\n    %s\n}\n' "$1" >mesh.kdl; }
declared() { project mesh.kdl; network "$1"; }
serving() { until grep -q ' serving ' server.log; do kill -0 $! || return 1; sleep 0.02; done; }
started() {
    ip address replace 192.0.2.11/24 dev eth0
    : >server.log; command nmserver >>server.log 2>&1 & server=$!
    serving
}
stopped() { kill $server; wait $server || true; }
# Without arguments it ends once it serves.
nmserver() {
    [ $# = 0 ] || { command nmserver "$@"; return; }
    : >server.log; command nmserver >>server.log 2>&1 &
    serving >/dev/null 2>&1
    kill $! 2>/dev/null; wait $!; cat server.log
}
applied() { declared "$1"; nmplan apply -y --keys-to keys.json; TOKEN=$(token one); }
served() { started; applied "$1"; }
token() { [ ! -e keys.json ] || sed -n "s|.*access-key/$1\": \"\(.*\)\".*|\1|p" keys.json; }
joined() { served 'access-key "one" uses=9'; netclient join --daemon off -t $TOKEN --name "$1"; }
daemon() { netclient daemon >daemon.log 2>&1 & await 'grep -q "server answers" daemon.log'; }
replaced() { old=$(device); kill -9 $old; await 'new=$(device); [ "$new" ] && [ $new != $old ]'; }
device() { ss -xlpH | sed -n "s/.*${1:-nm-corp}.*pid=\([0-9]*\).*/\1/p" | head -1; }
bridge() { ip link add br-y type bridge; ip address add 10.40.0.1/24 dev br-y; ip link set br-y up; }
read_only() { mount --bind "$1" "$1"; mount -o remount,bind,ro "$1"; }
"#;

/// A message before and after.
struct Case {
    /// The number of the fault.
    fault: &'static str,
    /// Lines of shell that make the situation, and are not shown.
    given: &'static str,
    /// What the user does.
    does: Does,
    /// The lines that were printed then.
    before: &'static [&'static str],
    /// What the lines that matter contain; empty: all lines matter.
    lines: &'static [&'static str],
}

enum Does {
    /// Declares it, and checks it with `nmplan validate`.
    Declares(&'static str),
    /// Types it; a comment says what cannot be seen.
    Types(&'static str),
}

/// A declaration inside of a network, or a whole network; before, it was valid.
const fn declares(fault: &'static str, text: &'static str) -> Case {
    Case { fault, given: "", does: Does::Declares(text), before: VALID, lines: &[] }
}

/// A line that is typed; before, nothing was printed.
const fn types(fault: &'static str, line: &'static str) -> Case {
    Case { fault, given: "", does: Does::Types(line), before: &[], lines: &[] }
}

impl Case {
    const fn given(self, given: &'static str) -> Self {
        Self { given, ..self }
    }

    const fn before(self, before: &'static [&'static str]) -> Self {
        Self { before, ..self }
    }

    const fn lines(self, lines: &'static [&'static str]) -> Self {
        Self { lines, ..self }
    }

    /// Runs it; returns what the snapshot has of it.
    async fn text(&self, host: &Host, programs: &Programs) -> String {
        let (shown, given, line) = match self.does {
            Does::Declares(text) if text.starts_with("network") => {
                (text, format!("cat >mesh.kdl <<'END'\n{text}\nEND"), "nmplan validate")
            }
            Does::Declares(text) => (text, format!("network '{text}'"), "nmplan validate"),
            Does::Types(line) => (line, self.given.to_owned(), line),
        };
        let printed = run(host, programs, &given, line).await;
        let after = cut(&normal(&printed, &host.directory()), self.lines);
        let head = block(self.fault, shown);
        format!("{head}{}{}", block("before", &self.before.join("\n")), block("after", &after))
    }
}

/// Runs a line in a shell on a host, in a situation; returns what it printed.
async fn run(host: &Host, programs: &Programs, given: &str, line: &str) -> String {
    let folder = host.directory().join("user");
    std::fs::create_dir_all(&folder).expect("a folder can be made");
    // What is left running in the situation must not hold a pipe to here.
    let script = format!(
        "exec >/dev/null 2>&1; cd {}\n{PRELUDE}\nset -e; {{ :; {given}\n}} >../given.log 2>&1\n\
         set +e; {{ {line}\n}} >../printed 2>&1",
        folder.display()
    );
    let beside = programs.nmplan.parent().expect("it is in a folder");
    // A job that a shell started in the background, as this may be, ignores Ctrl-C.
    let mut shell: Command = host.command("env");
    shell.args(["--default-signal", "sh", "-c", &script]).env_clear().envs([
        ("PATH", &*format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", beside.display())),
        ("TMPDIR", "/run"),
        ("HOME", "/run"),
        ("NO_COLOR", "1"),
        ("DATA_DIR", "data"),
        ("SERVER_HOST", "192.0.2.11"),
        ("COMMS", "off"),
        ("CLIENT_MODE", "off"),
        ("DNS_FORWARD", "off"),
        ("NMPLAN_TOKEN_FILE", "data/admin.token"),
        ("NMPLAN_CA", "data/ca.pem"),
    ]);
    let ran = tokio::time::timeout(TIMEOUT, host.run(shell)).await;
    ran.unwrap_or_else(|_| panic!("not within {TIMEOUT:?}: {line}")).expect("a shell runs");
    let read = |name| std::fs::read(host.directory().join(name)).map(|bytes| end_to_end::text_of(&bytes));
    read("printed")
        .unwrap_or_else(|_| panic!("not possible before {line}: {}", read("given.log").unwrap_or_default()))
}

/// What was printed, with words in place of what differs from run to run, and without what frames a problem.
fn normal(printed: &str, directory: &Path) -> String {
    let replaced = [
        (r"\x1b\[[0-9;]*m|\r", ""),
        // Problems: the code above them, their source lines, and the end that all runs with problems have.
        (r"(?m)^[a-z]+::[a-z_]+\n\n", ""),
        (r"(?m)^ *╭─\[(.*)\]\n(?:.*\n)*? *╰─+\n", "  at $1\n"),
        (r"(?m)^error: there (?:is|are) .* in the files.*\n  help: `nmplan explain CODE`.*\n", ""),
        (r"(?m)^(  [×⚠] .*|  help: .*)\n(?:  │ |        )", "$1 "),
        (r"(?m)^(  [×⚠] .*|  help: .*)\n(?:  │ |        )", "$1 "),
        // What differs from run to run.
        (r"(?m)^\S+Z +INFO nmserver: ending\n", ""),
        (r"(?m)^\S+Z +(INFO|WARN|ERROR) ", "$1 "),
        (r"20(?:2[6-9]|[3-9]\d)-\d\d-\d\d([ T])", "YYYY-MM-DD$1"),
        (r"\d\d:\d\d:\d\d", "hh:mm:ss"),
        (r"YYYY-MM-DD \d\d:\d\d UTC", "YYYY-MM-DD hh:mm UTC"),
        (r"ss\.\d+Z", "ss.nnnnnnnnnZ"),
        (r"\d+ s ago", "N s ago"),
        (r"epoch([ =])\d+", "epoch${1}N"),
        (r"\b[0-9a-f]{64}\b", "<64 digits>"),
        (r"'[0-9a-f]{8}'", "'<8 digits>'"),
        (r"\b[0-9a-f]{10}\b", "<token-id>"),
        (r"nm([aj])_[A-Za-z0-9_-]{20,}", "nm${1}_..."),
        (r"[A-Za-z0-9+/]{43}=", "<identity>"),
        (r"0{20,}", "000..."),
    ];
    let printed = printed.replace(&directory.join("user").display().to_string(), "FOLDER");
    replaced.iter().fold(printed, |text, (pattern, word)| {
        Regex::new(pattern).expect("a good pattern").replace_all(&text, *word).into_owned()
    })
}

/// The lines that matter, without blank ones; `...` stands for others.
fn cut(text: &str, matter: &[&str]) -> String {
    let mut kept: Vec<&str> = Vec::new();
    for line in text.lines().filter(|line| !line.trim().is_empty()) {
        if matter.is_empty() || matter.iter().any(|part| line.contains(part)) {
            kept.push(line);
        } else if kept.last() != Some(&"...") {
            kept.push("...");
        }
    }
    kept.join("\n")
}

/// A text beside what it is, folded where it is wide.
fn block(what: &str, text: &str) -> String {
    let text = if text.is_empty() { "(nothing)" } else { text };
    let folded = Options::new(COLUMNS)
        .subsequent_indent(INDENT)
        .break_words(false)
        .word_separator(WordSeparator::AsciiSpace)
        .word_splitter(WordSplitter::NoHyphenation)
        .wrap_algorithm(WrapAlgorithm::FirstFit);
    let lines = text.lines().enumerate().map(|(place, line)| {
        let first = format!("{:<8}", if place == 0 { what } else { "" });
        textwrap::fill(line, folded.clone().initial_indent(&first)) + "\n"
    });
    lines.collect()
}

#[test]
fn messages_before_and_after() {
    if !enter_test("messages_before_and_after") {
        return;
    }
    let texts = in_runtime(async {
        let programs = Programs::find().expect("the programs are built");
        let underlay = Underlay::new().await.expect("an underlay");
        let (programs, underlay) = (&programs, &underlay);
        let cases = CASES.iter().enumerate().map(|(number, case)| async move {
            let host = underlay.host(&format!("h{number}")).await.expect("a host");
            case.text(&host, programs).await
        });
        stream::iter(cases).buffered(AT_ONCE).collect::<Vec<_>>().await
    });
    insta::assert_snapshot!("before_and_after", format!("{HEAD}\n{}", texts.join("\n")));
}

/// What was printed before of whatever is a problem now.
const VALID: &[&str] = &["2 resources in 1 file: valid."];
/// The row of `nmplan status` of a node that has everything.
const ROW: &[&str] = &["corp     a     online  tls      10.40.0.1  N s ago        everything"];
/// What a server logged that starts.
const SERVES: &[&str] =
    &[r#"INFO nmserver: serving rest=0.0.0.0:8081 agents=0.0.0.0:50051 told="192.0.2.11:50051""#];
/// The same of one that is new.
const STARTS_ANEW: &[&str] =
    &[SERVES[0], "This is the first start. Keys, CA and admin token were made in data.", "..."];
const NO_VERB: &[&str] = &["error: unrecognized subcommand 'node'", "..."];
/// What the parser of KDL said of quotes that are none.
const NO_IDENTIFIER: &[&str] = &[
    "  × expected identifier string",
    "  at mesh.kdl:3:10",
    "  help: A valid value was partially parsed, but was not followed by a value terminator. Did you \
     want a space here?",
];

/// The lines that matter of a plan or an apply.
const OF_A_PLAN: &[&str] = &["×", "  at ", "would lose", "help:", "error:", "Applied"];
/// The lines that matter of `nmplan status`.
const OF_STATUS: &[&str] = &["corp", "Problems"];

/// The cases, in the order of the faults.
const CASES: &[Case] = &[
    // A. What is declared can cut off its own repair, or lies about the result.
    types("A1", r#"nmplan apply -y   # network "lan" { ipv4 "192.0.2.8/29" }, which holds the server"#)
        .given(r#"joined a; printf 'network "lan" {\n    ipv4 "192.0.2.8/29"\n}\n' >>mesh.kdl"#)
        .before(&["...", "Applied as revision 3."])
        .lines(OF_A_PLAN),
    types("A2", "nmplan apply -y   # ipv4 of the network is now 192.0.2.0/27, which holds the server")
        .given("joined a; sed -i s,10.40.0.0/24,192.0.2.0/27, mesh.kdl")
        .before(&[
            "...",
            "1 machine would lose the server: its address lies in a range that goes into the mesh.",
            "...",
            "Applied as revision 3.",
        ])
        .lines(OF_A_PLAN),
    types("A3", "netclient join --daemon off -t $TOKEN --name a   # br-y of this host is 10.40.0.1/24")
        .given(r#"served 'access-key "one"'; bridge"#)
        .before(&["Joined corp as a: 10.40.0.1 on nm-corp, 0 peers."]),
    types("A3", "nmplan status   # the same, of a host that is in")
        .given("joined a; bridge; netclient checkin")
        .before(ROW)
        .lines(OF_STATUS),
    declares("A4", r#"node "gw" endpoint="127.0.0.1:51821""#),
    declares("A4", r#"node "gw" endpoint="localhost""#),
    declares("A4", r#"node "gw" endpoint="10.40.0.9:51821""#),
    declares("A5", r#"node "gw" endpoint="[::ffff:127.0.0.1]:51821""#),
    declares("A5", r#"node "gw" endpoint="169.254.1.1:51821""#),
    declares("A6", r#"node "gw" endpoint="2001:db8::7:51821""#),
    declares("A6", r#"node "gw" endpoint="[2001:db8::7]""#).before(&[
        r#"  × "[2001:db8::7]" is not an endpoint: its port is not a number from 1 to 65535"#,
        "  at mesh.kdl:3:24",
        r#"  help: for example: "gw.example.net:51821", "192.0.2.7""#,
    ]),
    types("A7", "nmplan status   # the network has mtu 8920, and WireGuard is a process")
        .given(
            r#"served 'access-key "one"; mtu 8920'
               netclient join --daemon off -t $TOKEN --name a; netclient checkin"#,
        )
        .before(ROW)
        .lines(OF_STATUS),
    types("A8", "nmplan status   # IPv6 is turned off on host a, and the network has it")
        .given(
            r#"for it in all default; do echo 1 >/proc/sys/net/ipv6/conf/$it/disable_ipv6; done
               served 'access-key "one"; ipv6 "fd40:40::/64"'
               netclient join --daemon off -t $TOKEN --name a; netclient checkin"#,
        )
        .before(&["corp     a     online  tls      10.40.0.1   N s ago        everything", "..."])
        .lines(OF_STATUS),
    types("A8", "nmplan status   # the setting of host a wants a kernel device now, and it has a process")
        .given(
            r#"served 'access-key "one"'; export NETCLIENT_DEVICE=userspace
               netclient join --daemon off -t $TOKEN --name a; export NETCLIENT_DEVICE=kernel
               netclient checkin"#,
        )
        .before(ROW)
        .lines(OF_STATUS),
    declares("A9", r#"network "com" { ipv4 "10.40.0.0/24" }"#).before(&["1 resource in 1 file: valid."]),
    declares("A9", r#"network "local" { ipv4 "10.40.0.0/24" }"#).before(&["1 resource in 1 file: valid."]),
    // B. The database.
    types("B1", "nmserver   # the database of revision 1 was put back after revision 2 was served")
        .given(
            r#"served 'access-key "one"'; stopped; mkdir copy; cp data/nmserver.db* copy
               started; applied 'access-key "two"'; stopped; rm data/nmserver.db*; cp copy/* data"#,
        )
        .before(SERVES),
    types("B2", "nmserver   # nmserver.db is gone, its keys are there")
        .given("served ''; stopped; rm data/nmserver.db*")
        .before(STARTS_ANEW),
    types("B3", "nmplan apply -y   # nmserver.db was moved away under a server that runs")
        .given(r#"served ''; mv data/nmserver.db elsewhere; network 'node "a"'"#)
        .before(&["...", "Applied as revision 2."])
        .lines(OF_A_PLAN),
    types("B4", "nmserver   # others may write into its directory")
        .given("served ''; stopped; chmod 777 data")
        .before(SERVES),
    types("B4", "netclient status   # others may read its directory")
        .given("joined a; chmod 755 /etc/netclient")
        .before(&[
            "netclient: /etc/netclient is open to others, and private keys belong into it; close it: \
             chmod 700 /etc/netclient",
        ]),
    types("B6", "nmplan apply -y --keys-to keys.json   # the server's disk is full")
        .given(
            r#"mkdir data; mount -t tmpfs -o size=400k,mode=700 tmpfs data; served ''
               dd if=/dev/zero of=data/rest bs=1k || true; network 'access-key "one"'"#,
        )
        .before(&[
            "...",
            "error: it is unknown whether the server has applied the plan; the new tokens were written \
             to FOLDER/keys.json, and are worthless if it has not",
            "  because: the server cannot use its database, so nothing was changed; its disk is full: \
             free some space",
            "  help: see whether the changes are there:",
            "    nmplan plan",
        ])
        .lines(&["error:", "because:", "help:", "    nmplan", "Nothing"]),
    // C. Time and load.
    types("C7", "cat daemon.log   # the process of the device was killed, and there is another")
        .given("joined a; daemon; replaced; sleep 1")
        .before(&[
            r#"INFO netclient::daemon: looking after the network network=corp interface="nm-corp""#,
            "INFO netclient::driver: the server answers network=corp",
        ]),
    types("C8", "cat server.log   # somebody tries tokens")
        .given("served ''; for i in 1 2 3; do NMPLAN_TOKEN=nma_guess nmplan status || true; done")
        .lines(&["WARN"]),
    // D. Trust.
    types("D2", "nmplan node remove corp/a -y")
        .given("joined a")
        .before(NO_VERB)
        .lines(&["error:", "Its host", "Removed", "Note:"]),
    types("D2", "nmplan node remove corp/a -y --ban && nmplan node bans")
        .given("joined a")
        .before(NO_VERB)
        .lines(&["error:", "barred", "Removed", "may not join", "NETWORK", "corp ", "unban"]),
    types("D2", "nmplan node remove corp/a -y   # its key was deleted, and made anew")
        .given(r#"joined a; applied ''; applied 'access-key "one" uses=9'"#)
        .before(&["...", "No access key that it has lets its host join again.", "...", "Removed corp/node/a as revision 5."])
        .lines(&["error:", "The key", "Removed"]),
    types("D5", "nmplan apply --expect $FIRST_8_DIGITS")
        .given(r"started; declared ''; FIRST_8_DIGITS=$(nmplan plan | sed -n 's/^digest \(.\{8\}\).*/\1/p')")
        .before(&["...", "Applied as revision 1."]),
    types("D5", "nmplan plan")
        .given("started; declared ''")
        .before(&["...", "To carry it out:", "    nmplan apply --expect <16 digits>"])
        .lines(&["To carry", "    nmplan"]),
    // E. The agent on other people's hosts.
    types("E1", "nmplan status   # /etc/hosts of host a became read-only")
        .given(r#"joined a; read_only /etc/hosts; applied 'dns "api" a="10.40.9.9"'; netclient checkin"#)
        .before(&["corp     a     online  tls      10.40.0.1  N s ago        revision 2"])
        .lines(OF_STATUS),
    types("E1", "netclient leave   # the same").given("joined a; read_only /etc/hosts").before(&[
        "netclient: cannot write /etc/hosts, so names of the network do not resolve",
        "  because: Read-only file system (os error 30)",
    ]),
    types("E3", "netclient join --daemon off -t $TOKEN --name a   # the host was installed anew")
        .given(
            r"joined a; kill $(device); await '! ip link show nm-corp'
               find /etc/netclient -mindepth 1 -delete",
        )
        .before(&["netclient: the server refused: another machine has joined corp as a; join with another \
             --name, or remove that one first"]),
    types("E4", "netclient join --daemon off -t $TOKEN --name web-1   # it is in as gateway")
        .given("joined gateway")
        .before(&["Already in corp as gateway: 10.40.0.1 on nm-corp, 0 peers."]),
    types("E5", "netclient status   # no daemon runs").given("joined a").before(&[
        "corp: a, 10.40.0.1, on nm-corp",
        "  revision 2, control traffic by none",
        "  no peers yet",
    ]),
    types("E6", "timeout 3 netclient daemon   # the server does not run")
        .given("joined a; stopped")
        .before(&[r#"INFO netclient::daemon: looking after the network network=corp interface="nm-corp""#]),
    types("E7", "netclient status   # a file of its state is damaged")
        .given("joined a; echo damaged >/etc/netclient/network-corp.json")
        .before(&["This machine is in no network. Join one with: netclient join -t TOKEN"]),
    types("E7", "netclient leave --force   # the same")
        .given("joined a; echo damaged >/etc/netclient/network-corp.json")
        .before(&["corp: left; everything of it was taken down."]),
    types("E7", "netclient leave --force   # the same, and nm-corp is another program's by now")
        .given(
            r"joined a; echo damaged >/etc/netclient/network-corp.json; kill $(device)
               await '! ip link show nm-corp'; ip link add nm-corp type bridge",
        )
        .before(&["...", "corp: left; everything of it was removed."])
        .lines(&["corp: left", "interface"]),
    types("E8", "NETCLIENT_DIR=/run/$LONG netclient join --daemon off -t $TOKEN --name a")
        .given(r#"served 'access-key "one"'; LONG=$(printf '%090d' 0)"#)
        .before(&["netclient: the tunnel did not come up, so the machine left the network again", "..."]),
    types("E10", "nmserver down")
        .given("export COMMS=on; served ''; stopped")
        .before(&["error: unrecognized subcommand 'down'", "..."]),
    types("E10", "nmserver down   # nm-comms is another program's by now")
        .given(
            r"export COMMS=on; served ''; stopped; kill $(device nm-comms)
               await '! ip link show nm-comms'; ip link add nm-comms type bridge",
        )
        .before(&[
            "Nothing was removed: no device, route or packet filter of this server is on this host.",
            "...",
        ])
        .lines(&["removed", "Removed", "Kept"]),
    // F. nmplan and the words that it says.
    types("F1", r#"nmplan validate   # env "prod" { sever "https://nm.example.net" }"#)
        .given(r#"project .; sed -i 's,server .*;,sever "https://nm.example.net";,' nmplan.kdl"#)
        .before(&[r#"error: the project has no env "default"; it has none"#]),
    types("F2", "nmplan plan   # the folder that it uses has only a notes.txt")
        .given("started; mkdir mesh; echo >mesh/notes.txt; project mesh")
        .before(&[
            "  ⚠ no network is declared in .: there is no .kdl, .yaml or .yml file",
            "  help: declare a network, or check -C and the env's `use`",
            "...",
            "No changes: the server has what is declared.",
        ]),
    types("F2", "nmplan apply -y   # the folder of the files was emptied")
        .given(r#"served 'node "a"'; mkdir mesh; project mesh"#)
        .before(&[
            "...",
            "2 changes: 2 to delete; everything that acme/prod manages would be deleted.",
            "...",
            "Applied as revision 2.",
        ]),
    types("F3", "nmplan apply -y -q >/dev/full").given("started; declared ''").before(&[
        "error: cannot write to standard output",
        "  because: No space left on device (os error 28)",
    ]),
    types("F3", "timeout -s INT 1 nmplan apply -y   # Ctrl-C, while the server hangs")
        .given("started; declared ''; kill -STOP $server"),
    types("F3", "nmplan apply saved.json -y   # for the second time")
        .given("started; declared ''; nmplan plan --out saved.json; nmplan apply saved.json -y")
        .before(&[
            "error: the plan was applied already, as revision 1, by <token-id> on YYYY-MM-DD hh:mm:ss UTC",
            "  help: see what it changed:",
            "    nmplan show 1",
        ]),
    types("F3", "nmplan apply saved.json -y   # what it made was deleted since")
        .given(
            r#"served ''; network 'dns "api" a="10.40.9.9"'; nmplan plan --out saved.json
               nmplan apply saved.json -y; applied ''"#,
        )
        .before(&["...", "Applied as revision 4."])
        .lines(&["Applied", "error:", "help:", "    nmplan", "Nothing"]),
    types("F4", r#"nmplan apply -y --keys-to keys.json   # access-key "old" expires="2020-01-01""#)
        .given(r#"started; declared 'access-key "old" expires="2020-01-01"'"#)
        .before(&[
            "...",
            "Applied as revision 1.",
            "1 token written to FOLDER/keys.json. On a machine:",
            "    netclient join -t TOKEN",
        ])
        .lines(&["×", "  at ", "help:", "Applied", "token", "netclient"]),
    types("F4", r#"nmplan status   # the key "old" has expired, "one" is used up"#)
        .given(
            r#"served 'access-key "old"; access-key "one"'
               netclient join --daemon off -t $TOKEN --name a
               network 'access-key "old" expires="2020-01-01"; access-key "one"'
               nmplan apply -y"#,
        )
        .before(ROW)
        .lines(&["corp", "Access keys", "raise"]),
    types("F5", "nmserver token create --role applier --project acme/prod").given("served ''").before(&[
        "error: invalid value 'acme/prod' for '--project <PROJECT>': '/' may not stand in it; \
             lower-case letters, digits and inner hyphens may",
        "...",
    ]),
    types("F5", "nmserver token list").given("served ''").before(&["<token-id>  admin  expires never"]),
    types("F6", "nmplan apply -y --keys-to keys.json")
        .given(r#"started; declared 'node "db-1"; access-key "ci"; access-key "db" { for "db-1" }'"#)
        .before(&[
            "...",
            "Applied as revision 1.",
            "2 tokens written to FOLDER/keys.json. On a machine:",
            "    netclient join -t TOKEN",
        ])
        .lines(&["Applied", "token", "netclient"]),
    types("F6", "netclient join --daemon off -t @keys.json   # two keys are in it")
        .given(r#"served 'access-key "one"; access-key "two"'"#)
        .before(&["netclient: the token is not valid: it does not start with nmj_; copy it again, whole"]),
    types("F6", "netclient join --daemon off -t $TOKEN --name a   # the key was made anew")
        .given(
            r#"served 'access-key "one"'; EARLIER=$TOKEN; applied ''
               applied 'access-key "one"'; TOKEN=$EARLIER"#,
        )
        .before(&["netclient: the server refused: the access key's signature is not valid"]),
    types(
        "F7",
        "NETCLIENT_DIR=/run/b netclient join --daemon off -t $TOKEN --name b --interface nm-b   # used up",
    )
    .given(r#"served 'access-key "one"'; netclient join --daemon off -t $TOKEN --name a"#)
    .before(&[
        "netclient: the server refused: the access key corp/access-key/one has been used 1 times, as \
             often as it may; raise its uses, or ask for another token",
    ]),
    types("F7", "netclient join --daemon off -t $TOKEN --name a   # the key was valid for a second")
        .given(r#"served 'access-key "one" expires="1s"'; sleep 1"#)
        .before(&["netclient: the server refused: the access key corp/access-key/one expired on \
             YYYY-MM-DDThh:mm:ss.nnnnnnnnnZ; ask for a new token"]),
    types("F7", r#"script -qfec "exec nmplan apply" terminal <ctrl-c   # at the prompt"#)
        .given(
            r"started; declared ''; mkfifo ctrl-c
                 { await 'grep -q yes terminal'; printf '\003'; sleep 1; } >ctrl-c &",
        )
        .before(&["...", "Apply this? Only `yes` does: ^C"])
        .lines(&["^C", "error:", "Nothing"]),
    types("F8", "nmplan status --json   # no server is there")
        .given(
            r"project .; mkdir data; echo nma_1 >data/admin.token; unset NMPLAN_CA
               ip address add 192.0.2.11/24 dev eth0",
        )
        .before(&[
            "error: cannot connect to https://192.0.2.11:8081",
            "  because: Connection refused (os error 111)",
            "  help: check that nmserver runs there: curl -k https://192.0.2.11:8081/readyz",
        ]),
    types("F8", "nmplan explain unknown_field").before(&[
        r#"error: there is no problem code "unknown_field""#,
        "  help: `nmplan explain` lists them",
    ]),
    types("F8", "nmserver --help")
        .before(&["...", "NMSERVER_LOG=debug shows more of what it does (info by default)."])
        .lines(&["Settings, in", "everything is stored", "NMSERVER_LOG"]),
    types("F8", "script -qec 'timeout 5 nmserver' /dev/null   # on a terminal, where no server has been")
        .before(STARTS_ANEW),
    types(
        "F9",
        "printf '\\357\\273\\277network \"corp\" { ipv4 \"10.40.0.0/24\" }' | nmplan validate -f -   # a \
         byte order mark",
    )
    .before(&[
        "  × standard input starts with a byte order mark, which is invisible and no part of the text",
        "  at standard input:1:1",
        "  help: save it as UTF-8 without one",
    ]),
    declares("F9", r#"network "corp" { ipv4 "010.040.0.0/16" }"#).before(&["1 resource in 1 file: valid."]),
    types(
        "F9",
        "echo 'networks: { corp: { ipv4: 10.40.0.0/24, access-keys: { ci: { uses: 050 } } } }' | nmplan \
         validate -f -",
    )
    .before(VALID),
    declares("F9", r#"access-key "ci" expires="99999999d""#).before(&[
        r#"  × "99999999d" is not a date or a duration: it is not written like 30d or 2027-03-01"#,
        "  at mesh.kdl:3:29",
        r#"  help: for example: "30d", "2027-03-01""#,
    ]),
    declares("F10", "# the office").before(&[
        "  × found invalid node name",
        "  at mesh.kdl:3:5",
        "  help: This can be any string type, including a quoted, raw, or multiline string, as well \
             as a plain identifier string.",
    ]),
    declares("F10", "ipv6 “fd40:40::/64”").before(NO_IDENTIFIER),
    declares("F10", r#"ipv6 = "fd40:40::/64""#).before(&[
        "  × this block is never closed",
        "  at mesh.kdl:1:16",
        "  help: close it with }",
        "  × expected end of document",
        "  at mesh.kdl:3:10",
        "  help: see https://kdl.dev for the form of KDL 2",
        "...",
    ]),
    declares("F10", r#"ipv6 r"fd40:40::/64""#).before(NO_IDENTIFIER),
    declares("F10", r#"node "db-1" {"#).before(&[
        "  × this block is never closed",
        "  at mesh.kdl:1:16",
        "  help: close it with }",
    ]),
    declares(
        "F10",
        "network \"corp\" {\n<<<<<<< HEAD\n    mtu 1400\n=======\n    mtu 1380\n>>>>>>> other\n}",
    )
    .before(&[
        "  × this block is never closed",
        "  at mesh.kdl:1:16",
        "  help: close it with }",
        "  × found invalid node name",
        "  at mesh.kdl:4:1",
        "...",
    ]),
    types("F11", "HTTPS_PROXY=http://127.0.0.1:9 nmplan status").given("served ''").before(&[
        "error: cannot connect to https://192.0.2.11:8081",
        "  because: Connection refused (os error 111)",
        "  help: check that nmserver runs there: curl -k https://192.0.2.11:8081/readyz",
    ]),
    types("F11", "nmplan status --server 'https://192.0.2.11:8081/status?all=1'")
        .given("served ''")
        .before(&["error: there is no such path; see /api/v1/openapi.json"]),
    types("F11", "setpriv --reuid 65534 --clear-groups nmplan validate -C closed   # a folder of root's")
        .given("mkdir -m 700 closed")
        .before(&["error: cannot read closed", "  because: Permission denied (os error 13)"]),
    types("F11", "CLIENT_MODE=OFF nmserver config")
        .before(&[r#"nmserver: CLIENT_MODE="OFF" cannot be used: write on or off"#])
        .lines(&["nmserver:", "client_mode"]),
    types("F11", "API_PORT=0 nmserver config")
        .before(&[r#"nmserver: API_PORT="0" is not valid: a port is a number from 1 to 65535"#]),
    types("F11", "NETCLIENT_PORT=0 netclient status").before(&[
        r#"netclient: port="0" is not valid: number would be zero for non-zero type"#,
    ]),
    types("F11", r#"nmserver   # for the first time, with DATA_DIR="my data""#)
        .given("export DATA_DIR='my data'")
        .before(&[
            "...",
            "  export NMPLAN_SERVER=https://127.0.0.1:8081 NMPLAN_TOKEN_FILE=my data/admin.token \
             NMPLAN_CA=my data/ca.pem",
            "...",
        ])
        .lines(&["export"]),
    types("F12", "nmserver   # with SERVER_HOST=2001:db8::1 and BIND=0.0.0.0")
        .given("export SERVER_HOST=2001:db8::1 BIND=0.0.0.0")
        .before(&[
            r#"INFO nmserver: serving rest=0.0.0.0:8081 agents=0.0.0.0:50051 told="[2001:db8::1]:50051""#,
            "...",
        ]),
    types("F12", "nmserver   # without SERVER_HOST, before the host has a default route")
        .given("ip route delete default || true; unset SERVER_HOST")
        .before(&[
            r#"INFO nmserver: serving rest=0.0.0.0:8081 agents=0.0.0.0:50051 agent_address="127.0.0.1:50051""#,
            "...",
        ]),
    types("F12", "nmplan apply -y   # in a folder that is in no git repository")
        .given("started; declared ''")
        .before(&["...", "Applied as revision 1."])
        .lines(&["repository", "Applied"]),
];
