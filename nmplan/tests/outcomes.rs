//! What is said of an apply whatever happens to the run: its output is closed, a signal arrives, the server
//! does not answer. And that every failure reaches programs.
#![expect(clippy::unwrap_used, reason = "a test")]

mod workspace;

use std::io::{self, BufRead, BufReader, ErrorKind, PipeReader, PipeWriter, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use nmplan::control::{Fault, Memory};
use rustix::process::{Pid, Signal, kill_process};
use schema::snapshot::Revision;
use schema::world::World;
use serde_json::Value;
use workspace::{Workspace, join, online};

const CORP: &str = "network \"corp\" {\n    ipv4 \"10.40.0.0/16\"\n    node \"gw\"\n    access-key \"named\" { for \"gw\" }\n}\n";

const APPLY: &str = "apply -C @. --project acme -y --keys-to @keys.json";

fn workspace() -> Workspace {
    let workspace = Workspace::new(World { epoch: 7, ..World::default() });
    workspace.write("corp.kdl", CORP);
    workspace
}

/// The ways in which standard output fails: its reader is gone, the disk is full.
const FAILURES: [ErrorKind; 2] = [ErrorKind::BrokenPipe, ErrorKind::StorageFull];

#[test]
fn a_plan_that_nobody_can_see_is_not_carried_out() {
    for kind in FAILURES {
        for json in ["", " --json"] {
            let mut workspace = workspace();
            workspace.output_fails = Some((0, kind));
            let refused = workspace.nmplan(&format!("{APPLY}{json}"));
            assert_eq!(
                (refused.exit, workspace.server.state().revision),
                (1, Revision(0)),
                "{}",
                refused.all()
            );
            assert!(
                refused.stderr.starts_with("error: cannot write to standard output\n"),
                "{}",
                refused.stderr
            );
            assert!(refused.stderr.ends_with("Nothing was applied.\n"), "{}", refused.stderr);
            assert!(!workspace.path("keys.json").exists());
        }
    }
}

#[test]
fn what_was_applied_is_said_whatever_becomes_of_standard_output() {
    for kind in FAILURES {
        let mut workspace = workspace();
        workspace.output_fails = Some((1, kind));
        let applied = workspace.nmplan(APPLY);
        assert_eq!((applied.exit, workspace.server.state().revision), (0, Revision(1)), "{}", applied.all());
        assert!(applied.stderr.contains("Applied as revision 1.\n"), "{}", applied.stderr);
        assert!(!applied.stdout.contains("Applied"), "{}", applied.stdout);
    }
    for (kind, exit) in [(ErrorKind::BrokenPipe, 0), (ErrorKind::StorageFull, 1)] {
        let mut workspace = workspace();
        let events = workspace.nmplan("plan -C @. --project acme --json").stdout.lines().count();
        workspace.output_fails = Some((events, kind));
        let applied = workspace.nmplan(&format!("{APPLY} --json"));
        assert_eq!(
            (applied.exit, workspace.server.state().revision),
            (exit, Revision(1)),
            "{}",
            applied.all()
        );
        assert!(applied.stderr.contains("Applied as revision 1.\n"), "{}", applied.stderr);
        let says = applied.stderr.contains("applied as revision 1, but standard output cannot be written");
        assert_eq!(says, exit == 1, "{}", applied.stderr);
        assert!(workspace.path("keys.json").exists() && !applied.stderr.contains("Nothing was applied"));
    }
}

#[test]
fn what_became_of_a_node_is_said_whatever_becomes_of_standard_output() {
    let unreported = "applied as revision 3, but standard output cannot be written";
    for (kind, exit) in [(ErrorKind::BrokenPipe, 0), (ErrorKind::StorageFull, 1)] {
        for (line, printed, says) in [
            ("node remove corp/gw -y --ban", 1, "Removed corp/node/gw as revision 3.\n"),
            ("node remove corp/gw -y --quiet", 0, "Removed corp/node/gw as revision 3.\n"),
            ("node unban corp/gw", 0, "Lifted the ban of corp/node/gw as revision 3: "),
        ] {
            for json in [false, true] {
                let mut workspace = workspace();
                assert_eq!(workspace.nmplan(APPLY).exit, 0);
                join(&workspace.server, &[("gw", 1)]);
                let line = if json { format!("{line} --json") } else { line.to_owned() };
                let is_unban = line.contains("unban");
                if is_unban {
                    assert_eq!(workspace.nmplan("node remove corp/gw -y --ban").exit, 0);
                }
                let revision = 3 + u64::from(is_unban);
                let in_turn = |text: &str| text.replace("revision 3", &format!("revision {revision}"));
                workspace.output_fails = Some((if json { 0 } else { printed }, kind));
                let done = workspace.nmplan(&line);
                assert_eq!(workspace.server.state().revision, Revision(revision), "{line}: {}", done.all());
                assert!(done.stderr.contains(&in_turn(says)), "{line}: {}", done.all());
                // Only the document of --json is missed.
                let exit = if json { exit } else { 0 };
                assert_eq!(done.exit, exit, "{line}: {}", done.all());
                assert_eq!(done.stderr.contains(&in_turn(unreported)), exit == 1, "{line}: {}", done.all());
            }
        }
        let mut workspace = workspace();
        assert_eq!(workspace.nmplan(APPLY).exit, 0);
        join(&workspace.server, &[("gw", 1)]);
        workspace.output_fails = Some((0, kind));
        let unseen = workspace.nmplan("node remove corp/gw -y");
        assert_eq!((unseen.exit, workspace.server.state().revision), (1, Revision(2)), "{}", unseen.all());
        assert!(unseen.stderr.starts_with("error: cannot write to standard output\n"), "{}", unseen.stderr);
    }
}

#[test]
fn tokens_must_arrive_on_standard_output() {
    for kind in FAILURES {
        let mut workspace = workspace();
        workspace.output_fails = Some((0, kind));
        let lost = workspace.nmplan("apply -C @. --project acme -y --keys-to -");
        assert_eq!((lost.exit, workspace.server.state().revision), (1, Revision(1)), "{}", lost.all());
        let says = "applied as revision 1, but the token of the new key corp/access-key/named is lost";
        assert!(
            lost.stderr.contains(says) && lost.stderr.contains("another name in the files"),
            "{}",
            lost.stderr
        );
    }
}

#[test]
fn a_reader_that_has_read_enough_is_no_failure_of_any_other_command() {
    let mut workspace = workspace();
    assert_eq!(workspace.nmplan(APPLY).exit, 0);
    workspace.write("more/corp.kdl", &CORP.replace("node \"gw\"\n", "node \"gw\"; node \"db\"\n"));
    for line in [
        "plan -C @more --project acme",
        "plan -C @more --project acme --detailed-exitcode",
        "plan -C @more --project acme --json",
        "plan -C @more --project acme --format json",
        "validate -C @more",
        "show",
        "show 1",
        "status --json",
        "history",
        "explain",
        "schema",
    ] {
        workspace.output_fails = None;
        let whole = workspace.nmplan(line);
        workspace.output_fails = Some((0, ErrorKind::BrokenPipe));
        let cut = workspace.nmplan(line);
        assert_eq!((cut.exit, &cut.stderr), (whole.exit, &whole.stderr), "{line}");
        workspace.output_fails = Some((0, ErrorKind::StorageFull));
        let failed = workspace.nmplan(line);
        assert_eq!(failed.exit, 1, "{line}: {}", failed.all());
        assert!(failed.stderr.contains("cannot write to standard output"), "{line}: {}", failed.stderr);
        assert!(!failed.stderr.contains("applied"), "{line}: {}", failed.stderr);
    }
}

#[test]
fn a_run_that_is_interrupted_before_it_sends_has_applied_nothing() {
    let workspace = workspace();
    workspace.interrupts.interrupt();
    let interrupted = workspace.nmplan(APPLY);
    assert_eq!(
        (interrupted.exit, workspace.server.state().revision),
        (1, Revision(0)),
        "{}",
        interrupted.all()
    );
    assert!(
        interrupted.stderr.ends_with("error: interrupted\nNothing was applied.\n"),
        "{}",
        interrupted.stderr
    );
    assert!(!workspace.path("keys.json").exists(), "no useless token is left");
}

#[test]
fn a_run_that_is_interrupted_in_between_says_that_the_outcome_is_unknown_and_how_to_find_out() {
    let workspace = workspace();
    workspace.server.fail(&[Fault::Interrupted]);
    let unknown = workspace.nmplan(APPLY);
    assert_eq!((unknown.exit, workspace.server.state().revision), (1, Revision(1)));
    let digest = workspace.server.log().pop().unwrap().digest.unwrap();
    insta::assert_snapshot!(unknown.stderr.replace(&digest, "DIGEST"));
    assert!(workspace.path("keys.json").exists(), "its tokens are kept");
    // What is proposed is safe, and says whether it was applied.
    let again =
        workspace.nmplan(&format!("apply -C @. --project acme --expect {digest} --keys-to @keys.json"));
    assert_eq!((again.exit, workspace.server.state().revision), (0, Revision(1)), "{}", again.all());
    assert!(again.stderr.contains("has already been applied, as revision 1"), "{}", again.stderr);
}

#[test]
fn a_run_that_is_interrupted_while_it_waits_for_nodes_says_what_was_applied() {
    let workspace = workspace();
    workspace.server.set_nodes(vec![online("gw", None)]);
    workspace.server.fail(&[Fault::InterruptedLater]);
    let interrupted = workspace.nmplan(&format!("{APPLY} --wait --json"));
    assert_eq!(
        (interrupted.exit, workspace.server.state().revision),
        (7, Revision(1)),
        "{}",
        interrupted.all()
    );
    let says = "applied as revision 1, but interrupted before it was acknowledged by corp/node/gw";
    assert!(interrupted.stderr.contains(says), "{}", interrupted.stderr);
    let last = interrupted.events().pop().unwrap();
    assert_eq!(
        (&last["type"], &last["applied"], &last["exit"]),
        (&"failure".into(), &true.into(), &7.into())
    );
}

#[test]
fn an_event_says_whether_a_plan_was_applied() {
    let table: [(&[Fault], Value); 3] = [
        (&[Fault::Refusal], false.into()),
        (&[Fault::Interrupted], Value::Null),
        (&[Fault::FullDisk], false.into()),
    ];
    for (faults, applied) in table {
        let workspace = workspace();
        workspace.server.fail(faults);
        let failed = workspace.nmplan(&format!("{APPLY} --json"));
        let last = failed.events().pop().unwrap();
        assert_eq!((&last["type"], &last["applied"]), (&"failure".into(), &applied), "{faults:?}: {last}");
        assert_eq!(last["exit"], failed.exit);
    }
}

// What only a process shows.

/// The program, which heeds signals also where these tests run in the background of a shell, whose jobs ignore
/// Ctrl-C.
fn nmplan(arguments: &[&str]) -> Command {
    let mut command = Command::new("env");
    command
        .args(["--default-signal", env!("CARGO_BIN_EXE_nmplan")])
        .args(arguments)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command.env("NMPLAN_TOKEN", "nma_token");
    command
}

/// A server that has nothing. It reports each apply that arrives, and never answers one.
fn silent_server() -> (String, mpsc::Receiver<()>) {
    server(None)
}

/// The same, with an answer to an apply, at once.
fn server(answer: Option<&'static str>) -> (String, mpsc::Receiver<()>) {
    server_waiting(answer, mpsc::channel().1)
}

/// The same, with an answer to an apply once `go` receives something, or nobody can send it anything.
fn server_waiting(answer: Option<&'static str>, go: mpsc::Receiver<()>) -> (String, mpsc::Receiver<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (arrived, applies) = mpsc::channel();
    thread::spawn(move || {
        let mut open = Vec::new();
        for mut stream in listener.incoming().map_while(Result::ok) {
            let path = request(&stream).unwrap_or_default();
            let body = if path.ends_with("/apply") {
                if arrived.send(()).is_err() {
                    return;
                }
                let Some(answer) = answer else {
                    open.push(stream);
                    continue;
                };
                let _ = go.recv();
                answer.to_owned()
            } else {
                serde_json::to_string(&world(&path)).unwrap()
            };
            let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close";
            let _ = write!(stream, "{head}\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        }
    });
    (url, applies)
}

/// Reads a request; returns its path.
fn request(stream: &TcpStream) -> io::Result<String> {
    let mut reader = BufReader::new(stream);
    let mut first = String::new();
    reader.read_line(&mut first)?;
    let mut length = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        match line.trim_end().split_once(": ") {
            None => break,
            Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
                length = value.parse().unwrap_or_default();
            }
            Some(_) => {}
        }
    }
    reader.take(length).read_to_end(&mut Vec::new())?;
    Ok(first.split(' ').nth(1).unwrap_or_default().to_owned())
}

fn world(path: &str) -> Value {
    use nmplan::control::ControlPlane as _;
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let memory = Memory::of(World::default());
    match path.rsplit('/').next() {
        Some("snapshot") => serde_json::to_value(runtime.block_on(memory.world()).unwrap()).unwrap(),
        Some("status") => serde_json::to_value(runtime.block_on(memory.status()).unwrap()).unwrap(),
        _ => panic!("{path} is not asked for"),
    }
}

fn text(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&output.stdout), text(&output.stderr))
}

#[test]
fn a_signal_while_the_server_is_silent_ends_the_run_with_what_is_known() {
    for signal in [Signal::INT, Signal::TERM, Signal::HUP] {
        let workspace = workspace();
        let (url, applies) = silent_server();
        let folder = workspace.path("").display().to_string();
        let keys = workspace.path("keys.json").display().to_string();
        let child = nmplan(&[
            "apply",
            "-C",
            &folder,
            "--project",
            "acme",
            "--server",
            &url,
            "-y",
            "--keys-to",
            &keys,
        ])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
        applies.recv_timeout(Duration::from_secs(20)).expect("the plan is sent");
        kill_process(Pid::from_child(&child), signal).unwrap();
        let output = child.wait_with_output().unwrap();
        let (_, stderr) = text(&output);
        assert_eq!(output.status.code(), Some(1), "{signal:?}: {stderr}");
        assert!(stderr.contains("it is unknown whether the server applied the plan"), "{stderr}");
        assert!(stderr.contains(&format!("nmplan history -C {folder}")), "{stderr}");
        assert!(workspace.path("keys.json").exists());
    }
}

#[test]
fn a_signal_that_was_ignored_before_the_start_stays_ignored() {
    for (signal, name) in [(Signal::HUP, "HUP"), (Signal::INT, "INT")] {
        let workspace = workspace();
        let (url, applies) = silent_server();
        let folder = workspace.path("").display().to_string();
        let keys = workspace.path("keys.json").display().to_string();
        let place = ["apply", "-C", &folder, "--project", "acme", "--server", &url];
        let program = nmplan(&[&place[..], &["-y", "--keys-to", &keys]].concat());
        let mut child = Command::new("sh")
            .args(["-c", &format!("trap '' {name}; exec \"$@\""), "sh"])
            // Without `env`, which has it heed them.
            .args(program.get_args().skip(1))
            .env("NMPLAN_TOKEN", "nma_token")
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        applies.recv_timeout(Duration::from_secs(20)).expect("the plan is sent");
        kill_process(Pid::from_child(&child), signal).unwrap();
        thread::sleep(Duration::from_millis(500));
        assert!(child.try_wait().unwrap().is_none(), "{name} has ended it");
        kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
        let (_, stderr) = text(&child.wait_with_output().unwrap());
        assert!(stderr.contains("it is unknown whether the server applied the plan"), "{stderr}");
    }
}

#[test]
fn a_signal_ends_a_command_that_takes_tokens_after_it_was_said_what_was_applied() {
    let lost = "the token of the new key corp/access-key/named is lost: the command in NMPLAN_SINK_VAULT had not \
                ended when nmplan was interrupted";
    for (answer, says) in [
        (Some(r#"{"revision":1,"already":false}"#), "applied as revision 1, but "),
        (None, "it is unknown whether the server applied the plan; if it did, "),
    ] {
        let workspace = workspace();
        let (url, applies) = server(answer);
        let folder = workspace.path("").display().to_string();
        let place = ["apply", "-C", &folder, "--project", "acme", "--server", &url];
        let mut child = nmplan(&[&place[..], &["-y", "--keys-to", "@vault"]].concat())
            .env("NMPLAN_SINK_VAULT", "cat > /dev/null; echo begun >&2; exec sleep 60")
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        applies.recv_timeout(Duration::from_secs(20)).expect("the plan is sent");
        if answer.is_none() {
            // It ends the wait for the server, and not the command, which is started after it.
            kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
        }
        let mut stderr = BufReader::new(child.stderr.take().unwrap());
        let mut shown = String::new();
        while !shown.contains("begun\n") {
            assert_ne!(stderr.read_line(&mut shown).unwrap(), 0, "{shown}");
        }
        assert_eq!(shown.contains("Applied as revision 1.\n"), answer.is_some(), "{shown}");
        kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
        stderr.read_to_string(&mut shown).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(1), "{shown}");
        assert!(shown.contains(&format!("{says}{lost}")), "{shown}");
    }
}

#[test]
fn ctrl_c_at_the_question_says_that_nothing_was_applied() {
    let workspace = workspace();
    let (url, _applies) = silent_server();
    let folder = workspace.path("").display().to_string();
    let program = env!("CARGO_BIN_EXE_nmplan");
    // A shell that stayed would have a status of its own for the signal.
    let line = format!(
        "exec env --default-signal {program} apply -C {folder} --project acme --server {url} --keys-to {folder}/keys.json"
    );
    // A terminal of its own, from util-linux.
    let mut child = Command::new("script")
        .args(["-qefc", &line, "/dev/null"])
        .env("NMPLAN_TOKEN", "nma_token")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("script is part of util-linux");
    let mut screen = child.stdout.take().unwrap();
    let mut shown = Vec::new();
    while !String::from_utf8_lossy(&shown).contains("Type `yes` to confirm: ") {
        let mut byte = [0];
        assert_eq!(screen.read(&mut byte).unwrap(), 1, "{}", String::from_utf8_lossy(&shown));
        shown.push(byte[0]);
    }
    child.stdin.as_mut().unwrap().write_all(b"\x03").unwrap();
    let mut rest = String::new();
    screen.read_to_string(&mut rest).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(1), "{rest}");
    assert!(rest.contains("interrupted\r\nNothing was applied.\r\n"), "{rest}");
    assert!(!workspace.path("keys.json").exists());
}

#[test]
fn a_signal_ends_a_run_whose_standard_output_is_not_read() {
    let workspace = workspace();
    let nodes: String = (0..2000).map(|number| format!("    node \"n{number}\"\n")).collect();
    workspace.write("corp.kdl", &format!("network \"corp\" {{\n    ipv4 \"10.40.0.0/16\"\n{nodes}}}\n"));
    let (url, applies) = silent_server();
    let folder = workspace.path("").display().to_string();
    let mut child = nmplan(&["apply", "-C", &folder, "--project", "acme", "--server", &url, "-y", "--json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    is_full(child.stdout.as_ref().unwrap());
    ends_by_a_signal(&mut child);
    let output = child.wait_with_output().unwrap();
    let (_, stderr) = text(&output);
    assert_eq!((output.status.code(), &*stderr), (Some(1), "error: interrupted\nNothing was applied.\n"));
    assert!(applies.try_recv().is_err(), "nothing was sent");
}

/// Fills a pipe that nobody reads.
fn fill(reader: &PipeReader, writer: &PipeWriter) {
    let mut writer = writer.try_clone().unwrap();
    // It blocks once the pipe is full, and ends with the reader.
    thread::spawn(move || while writer.write_all(b"0").is_ok() {});
    is_full(reader);
}

/// Waits until a pipe is full, which it is once no more arrives.
fn is_full(reader: impl AsFd) {
    let unread = || rustix::io::ioctl_fionread(&reader).unwrap();
    let mut before = 0;
    while unread() < 32 * 1024 || unread() != before {
        before = unread();
        thread::sleep(Duration::from_millis(200));
    }
}

/// Sends a signal, and waits for the end.
fn ends_by_a_signal(child: &mut Child) {
    kill_process(Pid::from_child(child), Signal::TERM).unwrap();
    let end = Instant::now() + Duration::from_secs(20);
    while child.try_wait().unwrap().is_none() {
        if Instant::now() > end {
            child.kill().unwrap();
            panic!("it has not ended");
        }
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn what_was_applied_is_said_and_a_signal_ends_the_run_whoever_does_not_read_standard_output() {
    let lost = "applied as revision 1, but the token of the new key corp/access-key/named is lost: standard output could \
                not be written";
    let unreported = "applied as revision 1, but standard output cannot be written";
    let file = ["--json", "--keys-to", "keys.json"];
    for (sink, says) in [(&["--keys-to", "-"][..], lost), (&file[..], unreported)] {
        let workspace = workspace();
        let (answers, go) = mpsc::channel();
        let (url, applies) = server_waiting(Some(r#"{"revision":1,"already":false}"#), go);
        let folder = workspace.path("").display().to_string();
        let (reader, writer) = io::pipe().unwrap();
        let place = ["apply", "-C", &folder, "--project", "acme", "--server", &url, "-y"];
        let mut child = nmplan(&[&place[..], sink].concat())
            .current_dir(workspace.path(""))
            .stdout(writer.try_clone().unwrap())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        applies.recv_timeout(Duration::from_secs(20)).expect("the plan is sent");
        fill(&reader, &writer);
        answers.send(()).unwrap();
        let mut stderr = BufReader::new(child.stderr.take().unwrap());
        let mut shown = String::new();
        while !shown.contains("Applied as revision 1.\n") {
            assert_ne!(stderr.read_line(&mut shown).unwrap(), 0, "{shown}");
        }
        thread::sleep(Duration::from_millis(300));
        assert!(child.try_wait().unwrap().is_none(), "it waits for its reader");
        ends_by_a_signal(&mut child);
        stderr.read_to_string(&mut shown).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(1), "{shown}");
        assert!(shown.contains(says) && !shown.contains("Nothing was applied"), "{shown}");
        assert!(shown.contains("it was not read, and the run was interrupted"), "{shown}");
    }
}

#[test]
fn a_signal_ends_a_run_whose_streams_are_one_pipe_that_nobody_reads() {
    let workspace = workspace();
    let (answers, go) = mpsc::channel();
    let (url, applies) = server_waiting(Some(r#"{"revision":1,"already":false}"#), go);
    let folder = workspace.path("").display().to_string();
    let (reader, writer) = io::pipe().unwrap();
    let place =
        ["apply", "-C", &folder, "--project", "acme", "--server", &url, "-y", "--keys-to", "keys.json"];
    let mut child = nmplan(&place)
        .current_dir(workspace.path(""))
        .stdout(writer.try_clone().unwrap())
        .stderr(writer.try_clone().unwrap())
        .spawn()
        .unwrap();
    applies.recv_timeout(Duration::from_secs(20)).expect("the plan is sent");
    fill(&reader, &writer);
    answers.send(()).unwrap();
    thread::sleep(Duration::from_millis(500));
    assert!(child.try_wait().unwrap().is_none(), "it waits for its reader");
    ends_by_a_signal(&mut child);
    assert!(workspace.path("keys.json").exists(), "the tokens of what was applied are kept");
}

#[test]
fn every_failure_is_an_event_on_standard_output() {
    let workspace = workspace();
    let folder = workspace.path("").display().to_string();
    // Nothing listens on this port, which is reserved.
    let nowhere = "http://127.0.0.1:1";
    let plan = ["plan", "-C", &folder, "--project", "acme", "--json", "--server"];
    for (arguments, code) in [
        (&[&plan[..], &[nowhere]].concat()[..], "unreachable"),
        (&["status", "--json", "--server", nowhere], "unreachable"),
        (&["history", "--json", "--server", nowhere], "unreachable"),
        (&[&plan[..], &["nm.example.net"]].concat(), "server_url"),
        (&["status", "--json"], "server_url"),
        (&["validate", "--json", "-C", "/nowhere"], "project"),
        (&["plann", "--json"], "usage"),
        (&["explain", "--json", "nothing"], "usage"),
    ] {
        let output = nmplan(arguments).output().unwrap();
        let (stdout, stderr) = text(&output);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {stderr}");
        let last = stdout.lines().last().unwrap_or_else(|| panic!("{arguments:?}: {stderr}"));
        let last: Value = serde_json::from_str(last).unwrap();
        assert_eq!(
            (&last["type"], &last["code"]),
            (&"failure".into(), &code.into()),
            "{arguments:?}: {last}"
        );
        assert!(!stderr.is_empty(), "people see it as well");
    }
}

#[test]
fn a_proxy_that_does_not_answer_is_named_by_its_variable() {
    let server = ["status", "--server", "https://nm.example.net"];
    let output = nmplan(&server).env("HTTPS_PROXY", "http://127.0.0.1:1").output().unwrap();
    let (_, stderr) = text(&output);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(
        stderr.contains("cannot connect to https://nm.example.net (through the proxy of HTTPS_PROXY)")
            && stderr.contains("export NO_PROXY=nm.example.net"),
        "{stderr}"
    );
}
