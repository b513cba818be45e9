//! Nothing secret is in anything that the programs print, log or write, but for the files that exist to hold it: every
//! command in every form, mistakes, damaged files and crashes, searched for every secret.
//!
//! ```text
//! nmserver (with a node of its own) ==== underlay ==== a, b (registered, joined)
//! ```

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use end_to_end::marked::{Evidence, Marked, found};
use end_to_end::{Mesh, Tokens, eventually, in_runtime, mistyped, text_of};
use nmplan::lab::{Agent, enter_test};
use proto::token::Token;
use rustix::process::Signal;
use serde_json::Value;

const SECOND: Duration = Duration::from_secs(1);
/// No command that is run here takes this long.
const TIMEOUT: Duration = Duration::from_secs(30);
/// What the programs log everything with, also what the crates log that they use.
const LOUD: [(&str, &str); 4] = [
    ("NMSERVER_LOG", "trace"),
    ("NETCLIENT_LOG", "trace"),
    ("RUST_LOG", "trace"),
    ("RUST_BACKTRACE", "full"),
];
/// What somebody typed who mistook one secret for another.
const TYPED: &str = "typed-c0ffee-by-mistake-0123456789";
/// Where the state of an agent has a secret, and what stands there once it is damaged.
const SECRET_FIELDS: [&str; 2] = ["\"seed\":[", "\"private_key\":["];
const DAMAGES: [&str; 3] = ["[[", "\"", "[999,"];
/// Commands that are not run: what the lab brings up has secrets of its own, which nobody here knows.
const NOT_RUN: [&str; 2] = ["lab", "help"];

const NETWORK: &str = r#"network "corp" {
    ipv4 "10.40.0.0/16"; check-in "1s"; manual-approval
    node "netmaker"; node "a"; node "b"
    access-key "k" uses=9 expires="30d"
    access-key "once"
    access-key "named" { for "a" "b"; }
    egress "office" via="a" ranges="192.168.10.0/24"
    ingress "front" via="a" endpoint="192.0.2.10"
    external-client "phone" via="front"
    test "all" { reach from="a" to="b"; }
}
"#;

/// What admins type without files, and whether it succeeds.
const COMMANDS: &[(&str, bool)] = &[
    ("show", true),
    ("show 1", true),
    ("show corp", true),
    ("show corp/access-key/k", true),
    ("show a", true),
    ("show phone", true),
    ("show nothing", false),
    ("status", true),
    ("status corp", true),
    ("status a", true),
    ("status corp/access-key/once", true),
    ("history", true),
    ("node list", true),
    ("node bans", true),
    ("node approve corp/x", false),
    ("node remove corp/nobody -y", false),
    ("node unban corp/nobody", false),
    ("explain plan::endless_key", true),
    ("schema", true),
    ("schema --for show", true),
];

/// What is run, and all that came of it.
struct Run<'a> {
    mesh: &'a Mesh,
    evidence: Vec<Evidence>,
    verbs: BTreeSet<String>,
}

impl Run<'_> {
    /// Runs a command; what it prints is evidence, but for the standard output of one that prints a secret for good
    /// reason.
    async fn run(&mut self, mut command: Command, prints: bool) -> Output {
        command.envs(LOUD).stdin(Stdio::null());
        let line = format!("{command:?}");
        let words = command.get_args().map(|word| word.to_string_lossy().into_owned());
        let program = Path::new(command.get_program()).file_name().unwrap_or_default().to_string_lossy();
        self.verbs.extend(words.map(|word| format!("{program} {word}")));
        let output = tokio::process::Command::from(command).kill_on_drop(true).output();
        let output = tokio::time::timeout(TIMEOUT, output).await.expect("it ends").expect("it runs");
        // A command line that was typed is no output.
        let line = line.split_whitespace().filter(|word| !word.contains("TOKEN=") && word.len() < 90);
        let line = line.collect::<Vec<_>>().join(" ");
        if !prints {
            self.evidence
                .push(Evidence { from: format!("the output of {line}"), bytes: output.stdout.clone() });
        }
        self.evidence.push(Evidence { from: format!("the errors of {line}"), bytes: output.stderr.clone() });
        output
    }

    fn nmplan(&self, words: &[&str]) -> Command {
        let mut command = Command::new(&self.mesh.programs.nmplan);
        command.args(words).envs(self.mesh.server.environment()).current_dir(self.mesh.underlay.directory());
        command
    }

    /// A command of nmplan in every form, each of which succeeds or not.
    async fn every_form(&mut self, words: &[&str], succeeds: bool) {
        for more in [&[][..], &["-v"], &["--json"], &["-v", "--json"]] {
            let command = self.nmplan(&[words, more].concat());
            let output = self.run(command, false).await;
            let printed = text_of(&output.stderr);
            assert_eq!(output.status.success(), succeeds, "{words:?} {more:?}: {printed}");
        }
    }

    fn netclient(&self, agent: &Agent, words: &[&str]) -> Command {
        let mut command = agent.host().command(&self.mesh.programs.netclient);
        command.args(words);
        command
    }

    fn nmserver(&self, words: &[&str]) -> Command {
        let mut command = self.mesh.server.host().command(&self.mesh.programs.nmserver);
        command.args(words).env("DATA_DIR", self.mesh.server.data());
        command
    }
}

/// Everything that admins do, and get wrong.
async fn admin(run: &mut Run<'_>, tokens: &Tokens) {
    let mesh = run.mesh;
    let [file, keys, saved] =
        ["mesh.kdl", "keys.json", "plan.json"].map(|name| mesh.file(name).display().to_string());
    let project = ["--project", "test", "-f", &file];
    fs::write(
        &file,
        format!("{NETWORK}network \"lab\" {{ ipv4 \"10.41.0.0/24\"; access-key \"k\" uses=3; }}\n"),
    )
    .expect("written");
    for words in [&["validate"][..], &["plan"], &["test"], &["explain", "a", "b"], &["plan", "--out", &saved]]
    {
        run.every_form(&[words, &project[..]].concat(), true).await;
    }
    for more in [&[][..], &["-v"]] {
        let command = run.nmplan(&[&["plan", "--format", "json"], &project[..], more].concat());
        assert!(run.run(command, false).await.status.success());
    }
    run.every_form(&["show", &saved], true).await;
    for (words, succeeds) in COMMANDS {
        run.every_form(&words.split(' ').collect::<Vec<_>>(), *succeeds).await;
    }
    let command = run.nmplan(&["init", "-C", &mesh.file("fresh").display().to_string()]);
    run.run(command, false).await;
    // Refused for want of a sink, by a digest, by a sink that fails, and carried out.
    run.every_form(&[&["apply", "-y"], &project[..]].concat(), false).await;
    run.every_form(
        &[&["apply", "--expect", &"0".repeat(64), "--keys-to", &keys], &project[..]].concat(),
        false,
    )
    .await;
    let mut failing = run.nmplan(&[&["apply", "-y", "--keys-to", "@vault"], &project[..]].concat());
    failing.env("NMPLAN_SINK_VAULT", format!("cat >{}; exit 9", mesh.file("vault").display()));
    assert!(!run.run(failing, false).await.status.success(), "its sink failed");
    fs::write(&file, NETWORK).expect("written");
    run.every_form(&[&["apply", "-y", "--keys-to", &keys], &project[..]].concat(), true).await;

    let first = tokens.values().next().expect("there is one");
    for (name, value) in [
        ("NMPLAN_TOKEN", TYPED),
        ("NMPLAN_TOKEN", "nma_typed_c0ffee by mistake"),
        ("NMPLAN_TOKEN", first),
        ("NMPLAN_CA", TYPED),
    ] {
        for words in [&["status"][..], &["status", "--json"], &["plan", "--project", "test", "-f", &file]] {
            let mut wrong = run.nmplan(words);
            wrong.env_remove("NMPLAN_TOKEN_FILE").env(name, value);
            run.run(wrong, false).await;
        }
    }
    let at = mesh.server.url().replace("https://", &format!("https://ann:{TYPED}@"));
    run.every_form(&["status", "--server", &at], false).await;
    let damaged = mesh.file("damaged-keys.json");
    let text = fs::read_to_string(&keys).expect("there are tokens");
    fs::write(&damaged, text.replace("\": \"", "\": [\"")).expect("written");
    let to = damaged.display().to_string();
    fs::write(&file, NETWORK.replace("\"once\"", "\"twice\"")).expect("written");
    run.every_form(&[&["apply", "-y", "--keys-to", &to], &project[..]].concat(), false).await;
    fs::write(&file, NETWORK).expect("written");
}

/// An external client's configuration, which is printed for whoever asked for it.
async fn client(run: &mut Run<'_>) {
    let [file, key, image] =
        ["mesh.kdl", "phone.key", "phone.png"].map(|name| run.mesh.file(name).display().to_string());
    let conf = ["client", "conf", "phone", "--project", "test", "-f", &file, "--key", &key];
    for more in [&["--png", &image][..], &["--qr"], &["--json"], &["-v"]] {
        let command = run.nmplan(&[&conf[..], more].concat());
        let printed = run.run(command, true).await;
        assert!(printed.status.success(), "{}", text_of(&printed.stderr));
    }
    let key = fs::read_to_string(&key).expect("it was made");
    let damaged = run.mesh.file("damaged.key");
    fs::write(&damaged, format!("x{key}")).expect("written");
    fs::set_permissions(&damaged, fs::Permissions::from_mode(0o600)).expect("closed");
    let damaged = damaged.display().to_string();
    run.every_form(&[&conf[..7], &["--key", &damaged]].concat(), false).await;
    run.every_form(&["apply", "-y", "--project", "test", "-f", &file], true).await;
}

/// Everything that is typed on a host, and what is mistyped.
async fn host(run: &mut Run<'_>, agent: &Agent, tokens: &Tokens) {
    let token = &tokens["corp/access-key/once"];
    let wrong = mistyped(token);
    let cut = token[..token.len() / 2].to_owned();
    for token in [&wrong, &cut, TYPED] {
        for json in [&[][..], &["--json"]] {
            for verb in ["join", "register"] {
                let command = run.netclient(agent, &[&[verb, "-t", token], json].concat());
                run.run(command, false).await;
            }
            let mut by_variable = run.netclient(agent, &[&["join"], json].concat());
            by_variable.env("NETCLIENT_TOKEN", token);
            run.run(by_variable, false).await;
        }
    }
    let damaged = format!("@{}", run.mesh.file("damaged-keys.json").display());
    let command = run.netclient(agent, &["join", "-t", &damaged, "--key", "corp/access-key/k"]);
    run.run(command, false).await;
    for verb in ["list", "status", "checkin", "pull", "join", "register"] {
        for json in [&[][..], &["--json"]] {
            let token = match verb {
                "join" | "register" => &["-t", token.as_str()][..],
                _ => &[],
            };
            let command = run.netclient(agent, &[&[verb], token, json].concat());
            run.run(command, false).await;
        }
    }
}

/// What is said of state that is damaged where a secret stands: on copies.
async fn damaged(run: &mut Run<'_>, agent: &Agent) {
    let (state, copy) = (agent.host().directory().join("etc/netclient"), run.mesh.file("damaged-agent"));
    let stored = files(&state).into_iter().filter(|path| path.extension().is_some_and(|it| it == "json"));
    let stored: Vec<_> = stored.collect();
    for (wrong, damage) in
        ["identity-", "comms-", "network-"].into_iter().flat_map(|it| DAMAGES.map(|as_| (it, as_)))
    {
        let _ = fs::remove_dir_all(&copy);
        fs::DirBuilder::new().mode(0o700).create(&copy).expect("made");
        for path in &stored {
            let name = path.file_name().expect("it has one").to_string_lossy();
            let text = fs::read_to_string(path).expect("it is there");
            let broken = SECRET_FIELDS.iter().fold(text.clone(), |text, field| {
                text.replace(field, &format!("{}{damage}", field.trim_end_matches('[')))
            });
            let to = copy.join(&*name);
            fs::write(&to, if name.starts_with(wrong) { broken } else { text }).expect("written");
            fs::set_permissions(&to, fs::Permissions::from_mode(0o600)).expect("closed");
        }
        let directory = copy.display().to_string();
        // With all that it needs to, the copy would leave for the original.
        let leaves = if wrong == "comms-" { &[][..] } else { &["leave"] };
        for verb in ["list", "status", "checkin", "pull"].iter().chain(leaves) {
            for json in [&[][..], &["--json"]] {
                let command = run.netclient(agent, &[&["--directory", &directory, verb], json].concat());
                run.run(command, false).await;
            }
        }
    }
    let (data, copy) = (run.mesh.server.data(), run.mesh.file("damaged-server"));
    for name in ["signing.key", "ca.key", "session.key", "comms.key"] {
        let _ = fs::remove_dir_all(&copy);
        let status = Command::new("cp").arg("-a").arg(&data).arg(&copy).status().expect("cp runs");
        assert!(status.success());
        let text = fs::read(copy.join(name)).expect("it is there");
        fs::write(copy.join(name), [&text[..text.len() - 2], b"!!!"].concat()).expect("written");
        for words in [&["serve"][..], &["config"], &["token", "list"]] {
            let mut command = run.nmserver(words);
            command
                .env("DATA_DIR", &copy)
                .env("API_PORT", "9081")
                .env("GRPC_PORT", "9051")
                .env("COMMS_PORT", "9055");
            // One that starts in spite of it ends by the timeout of `timeout`.
            let mut limited = run.mesh.server.host().command("timeout");
            limited.arg("2").arg(command.get_program()).args(command.get_args());
            limited.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
            run.run(limited, false).await;
        }
    }
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    for (path, kind) in entries.filter_map(|entry| Some((entry.path(), entry.file_type().ok()?))) {
        match () {
            () if kind.is_dir() => files.extend(self::files(&path)),
            () if kind.is_file() => files.push(path),
            () => {}
        }
    }
    files
}

/// A secret in the state of an agent: numbers in a field of a file.
fn of_agent(what: &str, directory: &Path, file: &str, field: &str) -> Marked {
    let is_it =
        |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(file));
    let path = files(directory)
        .into_iter()
        .filter(is_it)
        .find(|path| path.extension().is_some_and(|it| it == "json"));
    let path = path.unwrap_or_else(|| panic!("{} has no {file}", directory.display()));
    let value: Value = serde_json::from_slice(&fs::read(&path).expect("it is there")).expect("JSON");
    let numbers = value[field].as_array().unwrap_or_else(|| panic!("{} has no {field}", path.display()));
    let bytes: Vec<u8> = numbers.iter().filter_map(|it| it.as_u64()?.try_into().ok()).collect();
    assert_eq!(bytes.len(), 32, "{}: {field}", path.display());
    Marked::new(what, bytes, &[&path.display().to_string()])
}

/// Every secret that there is.
fn secrets(mesh: &Mesh, agents: &[Agent], tokens: &Tokens, viewer: &str) -> Vec<Marked> {
    let data = mesh.server.data();
    let mut all = vec![Marked::new("what was typed by mistake", TYPED, &[])];
    for (id, token) in tokens {
        let token: Token = token.parse().expect("a token");
        let kept = ["/keys.json", "/damaged-keys.json"];
        all.push(Marked::new(format!("the seed of {id}"), *token.seed.expose(), &kept));
    }
    let token: Token =
        fs::read_to_string(mesh.file("vault")).expect("it was made").trim().parse().expect("a token");
    all.push(Marked::new("the seed that a command took", *token.seed.expose(), &["/vault"]));
    let admin = fs::read_to_string(data.join("admin.token")).expect("it is there");
    all.push(Marked::new("the admin's token", secret_part(&admin), &["/admin.token"]));
    all.push(Marked::new("a viewer's token", secret_part(viewer), &[]));
    for name in ["signing.key", "session.key", "comms.key"] {
        all.push(Marked::new(name, fs::read(data.join(name)).expect("it is there"), &[&format!("/{name}")]));
    }
    let pem = fs::read_to_string(data.join("ca.key")).expect("it is there");
    all.push(Marked::new("the key of the CA", scalar(&pem), &[]));
    // Line by line, as its file has it.
    let lines = pem.lines().filter(|line| !line.starts_with('-')).take(1);
    all.extend(lines.map(|line| Marked::new("a line of ca.key", &line.as_bytes()[40..], &["/ca.key"])));
    let hosts = agents.iter().map(|agent| agent.host().directory().join("etc/netclient"));
    for directory in hosts.chain([data.join("client")]) {
        let name = directory.display();
        all.push(of_agent(
            &format!("the WireGuard key in {name}"),
            &directory,
            "network-corp",
            "private_key",
        ));
        all.push(of_agent(&format!("the identity in {name}"), &directory, "identity-", "seed"));
    }
    for agent in agents {
        let directory = agent.host().directory().join("etc/netclient");
        let what = format!("the key of the tunnel to the server in {}", directory.display());
        all.push(of_agent(&what, &directory, "comms-", "private_key"));
    }
    let phone = fs::read_to_string(mesh.file("phone.key")).expect("it was made");
    let bytes = phone.trim().as_bytes();
    all.push(Marked::new(
        "the external client's key",
        &bytes[..bytes.len() - 1],
        &["/phone.key", "/damaged.key"],
    ));
    all
}

/// What of a bearer token is secret: the rest is its id.
fn secret_part(token: &str) -> &str {
    token.trim().splitn(3, '_').nth(2).expect("nma_ID_SECRET")
}

/// The private number of an elliptic curve key in PEM (RFC 5915 in RFC 5208): the rest of it is public.
fn scalar(pem: &str) -> Vec<u8> {
    let digits =
        pem.lines().filter(|line| !line.starts_with('-')).flat_map(str::bytes).filter(|it| *it != b'=');
    let value = |digit: u8| match digit {
        b'A'..=b'Z' => digit - b'A',
        b'a'..=b'z' => digit - b'a' + 26,
        b'0'..=b'9' => digit - b'0' + 52,
        b'+' => 62,
        _ => 63,
    };
    let digits: Vec<u32> = digits.map(|digit| u32::from(value(digit))).collect();
    let bytes: Vec<u8> = digits
        .chunks_exact(4)
        .flat_map(|four| (four.iter().fold(0, |bits, digit| bits << 6 | digit)).to_be_bytes()[1..].to_vec())
        .collect();
    let before = [2, 1, 1, 4, 32];
    let at = bytes.windows(before.len()).position(|window| window == before).expect("a key of PKCS #8");
    bytes[at + before.len()..][..32].to_vec()
}

/// Every file in the lab but those that the test itself damaged, and the command line of every process.
fn left(mesh: &Mesh) -> Vec<Evidence> {
    let read =
        |path: PathBuf| Some(Evidence { from: path.display().to_string(), bytes: fs::read(path).ok()? });
    let copies = ["damaged-agent", "damaged-server"].map(|name| mesh.file(name));
    let files = files(mesh.underlay.directory()).into_iter();
    let files = files.filter(|path| !copies.iter().any(|copy| path.starts_with(copy)));
    let processes =
        fs::read_dir("/proc").into_iter().flatten().flatten().map(|entry| entry.path().join("cmdline"));
    files.chain(processes).filter_map(read).collect()
}

/// The verbs that a program has, by its help.
fn verbs(program: &Path) -> Vec<String> {
    let help = Command::new(program).arg("--help").output().expect("it runs");
    let text = text_of(&help.stdout);
    let lines =
        text.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    let is_verb = |line: &&str| line.starts_with("  ") && !line.starts_with("   ");
    lines.filter(is_verb).filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect()
}

#[test]
fn nothing_that_is_printed_logged_or_written_has_a_secret() {
    if !enter_test("nothing_that_is_printed_logged_or_written_has_a_secret") {
        return;
    }
    in_runtime(async {
        let mut mesh = Mesh::start_with(&LOUD).await;
        let tokens = mesh.apply(NETWORK).await;
        let mut agents = Vec::new();
        for name in ["a", "b"] {
            let mut agent = mesh.agent(name).await;
            LOUD.iter().for_each(|(name, value)| agent.set(name, value));
            if name == "a" {
                agent.register(&tokens["corp/access-key/k"]).await.expect("it registers");
            }
            agent.join(&tokens["corp/access-key/named"], &[]).await.expect("it joins");
            agent.start_daemon(&[]).expect("it starts");
            agents.push(agent);
        }
        eventually("the server knows both", 20 * SECOND, async || {
            mesh.server.nodes().await.is_ok_and(|status| {
                status.nodes.iter().filter(|node| node.last_check_in.is_some()).count() >= 2
            })
        })
        .await;

        let mut run = Run { mesh: &mesh, evidence: Vec::new(), verbs: BTreeSet::new() };
        let command = run.nmserver(&["token", "create", "--role", "viewer", "--name", "ci"]);
        let viewer = text_of(&run.run(command, true).await.stdout);
        let viewer =
            viewer.split_whitespace().find(|word| word.starts_with("nma_")).expect("a token").to_owned();
        for words in
            [&["config"][..], &["token", "list"], &["token", "revoke", "nobody"], &["token", "revoke", "ci"]]
        {
            let command = run.nmserver(words);
            run.run(command, false).await;
        }
        admin(&mut run, &tokens).await;
        client(&mut run).await;
        host(&mut run, &agents[1], &tokens).await;
        let tokens: Tokens =
            serde_json::from_slice(&fs::read(mesh.file("keys.json")).expect("there")).expect("JSON");
        let secrets = secrets(&mesh, &agents, &tokens, &viewer);
        damaged(&mut run, &agents[0]).await;
        let Run { mut evidence, mut verbs, .. } = run;
        evidence.extend(left(&mesh));

        // Crashes, with all that a backtrace has.
        for agent in &mut agents {
            agent.daemon().expect("it runs").signal(Signal::ABORT).expect("sent");
        }
        mesh.server.process().expect("it runs").signal(Signal::ABORT).expect("sent");
        mesh.server.process().expect("it ran").wait().await.expect("it ends");
        mesh.server.serve().await.expect("it starts again");
        let mut run = Run { mesh: &mesh, evidence, verbs: std::mem::take(&mut verbs) };
        let command = run.netclient(&agents[0], &["leave"]);
        run.run(command, false).await;
        let Run { mut evidence, mut verbs, .. } = run;
        mesh.server.kill().await.expect("it ends");
        let mut run =
            Run { mesh: &mesh, evidence: std::mem::take(&mut evidence), verbs: std::mem::take(&mut verbs) };
        let command = run.nmserver(&["down"]);
        run.run(command, false).await;
        run.evidence.extend(left(&mesh));

        let wrong = found(&secrets, &run.evidence);
        assert!(wrong.is_empty(), "{} times: {:#?}", wrong.len(), &wrong[..wrong.len().min(20)]);
        for evidence in &run.evidence {
            let printed = String::from_utf8_lossy(&evidence.bytes);
            let credentials = printed.split("Bearer ").skip(1).filter(|rest| {
                rest.bytes().take_while(|it| it.is_ascii_alphanumeric() || b"-_=".contains(it)).count() > 16
            });
            assert_eq!(credentials.count(), 0, "{} has what a session is known by", evidence.from);
        }
        all_was_tried(&run, &secrets);
    });
}

/// That there was something to find: each command was run, each secret is where it belongs, and one that is planted in
/// any form is found.
fn all_was_tried(run: &Run<'_>, secrets: &[Marked]) {
    let programs = &run.mesh.programs;
    for program in [&programs.nmplan, &programs.netclient] {
        let name = program.file_name().unwrap_or_default().to_string_lossy();
        for verb in
            verbs(program).into_iter().filter(|verb| !NOT_RUN.contains(&verb.as_str()) && verb != "daemon")
        {
            assert!(run.verbs.contains(&format!("{name} {verb}")), "{name} {verb} is run");
        }
    }
    for verb in verbs(&programs.nmserver).into_iter().filter(|verb| !NOT_RUN.contains(&verb.as_str())) {
        let ran = run.verbs.iter().any(|it| it.ends_with(&format!(" {verb}")));
        assert!(ran, "nmserver {verb} is run");
    }
    let logs = run
        .evidence
        .iter()
        .filter(|it| it.from.ends_with("/nmserver.log") || it.from.ends_with("/netclient.log"));
    let traces = logs.filter(|it| String::from_utf8_lossy(&it.bytes).contains("TRACE")).count();
    assert!(traces >= 3, "the logs have everything: {traces}");
    for kept in ["/keys.json", "/admin.token", "/signing.key", "/phone.key", "/comms.key", "/nmserver.db"] {
        assert!(run.evidence.iter().any(|it| it.from.ends_with(kept)), "{kept} was looked at");
    }
    for secret in secrets {
        assert!(secret.bytes.len() >= 16, "{}", secret.what);
        for form in secret.forms() {
            let bytes = [b"before ", &form[..], b" after"].concat();
            let planted = [Evidence { from: "a planted file".into(), bytes }];
            assert_eq!(found(secrets, &planted).len(), 1, "{} is found", secret.what);
        }
    }
}
