//! The program itself: what it makes at its first start, what it says when it cannot start, and how it ends.
#![expect(clippy::unwrap_used, reason = "a test")]

use std::io::{BufRead, BufReader, Read};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Output, Stdio};

use rustix::process::{Pid, Signal, kill_process};

/// A directory that a server may keep its data in: its own user's alone.
fn folder() -> tempfile::TempDir {
    let private = std::fs::Permissions::from_mode(0o700);
    tempfile::Builder::new().permissions(private).tempdir().expect("a directory")
}

fn nmserver(directory: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nmserver"));
    command.env_clear().env("DATA_DIR", directory).env("SERVER_HOST", "127.0.0.1").env("BIND", "127.0.0.1");
    // They would touch this host.
    command
        .env("API_PORT", free_port())
        .env("GRPC_PORT", free_port())
        .env("COMMS", "off")
        .env("CLIENT_MODE", "off")
        // This host may have no name server.
        .env("DNS_FORWARD", "off");
    command
}

/// A port that was free a moment ago.
fn free_port() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string()
}

fn refused(command: &mut Command) -> String {
    let Output { status, stderr, stdout } = command.output().unwrap();
    let said = String::from_utf8(stderr).unwrap();
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(stdout.is_empty() && said.contains("nmserver: "), "{said}");
    said
}

/// A server that serves, and ends with this value.
struct Serving {
    process: Child,
    talk: BufReader<ChildStderr>,
    said: String,
}

impl Serving {
    /// Starts it, and reads what it says until it says that it serves.
    fn start(command: &mut Command) -> Self {
        let mut process = command.stderr(Stdio::piped()).spawn().unwrap();
        let talk = BufReader::new(process.stderr.take().unwrap());
        let mut serving = Self { process, talk, said: String::new() };
        serving.read_until("serving");
        serving
    }

    fn read_until(&mut self, word: &str) {
        while !self.said.lines().last().unwrap_or_default().contains(word) {
            assert!(
                self.talk.read_line(&mut self.said).unwrap() > 0,
                "it ended before {word:?}: {}",
                self.said
            );
        }
    }

    /// Ends it by a signal; whether that was a success, and the rest of what it printed.
    fn end(mut self, signal: Signal) -> (bool, String) {
        kill_process(Pid::from_child(&self.process), signal).unwrap();
        let success = self.process.wait().unwrap().success();
        let mut rest = std::mem::take(&mut self.said);
        self.talk.read_to_string(&mut rest).unwrap();
        (success, rest)
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn a_first_start_makes_everything_and_says_what_to_type_and_the_next_says_nothing() {
    let directory = folder();
    // What is printed is to be copied into a shell, in any directory.
    let data = directory.path().join("my data");
    let mut first = Serving::start(nmserver(Path::new("my data")).current_dir(directory.path()));
    first.read_until("nmplan plan");
    let command = first.said.lines().find(|line| line.contains("export")).unwrap().to_owned();
    for part in ["NMPLAN_SERVER=https://127.0.0.1:", "NMPLAN_TOKEN_FILE=", "NMPLAN_CA="] {
        assert!(command.contains(part), "{command}");
    }
    let script = format!("{command} && cat \"$NMPLAN_TOKEN_FILE\" \"$NMPLAN_CA\"");
    let shell = Command::new("sh").args(["-c", &script]).output().unwrap();
    assert!(shell.status.success() && shell.stdout.starts_with(b"nma_"), "{command}: {shell:?}");
    let keys = ["ca.pem", "ca.key", "signing.key", "session.key", "admin.token"];
    for file in keys.iter().chain(&["nmserver.db", "nmserver.db-wal", "lock", "mark", "version"]) {
        let mode = std::fs::metadata(data.join(file)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{file}");
    }
    // A name server is another user, and reads what is for it alone.
    for (path, mode) in [(".", 0o711), ("dns", 0o755), ("dns/Corefile", 0o644), ("dns/netmaker.hosts", 0o644)]
    {
        assert_eq!(std::fs::metadata(data.join(path)).unwrap().permissions().mode() & 0o777, mode, "{path}");
    }
    let token = std::fs::read_to_string(data.join("admin.token")).unwrap();
    assert!(!first.said.contains(token.trim()), "a secret is not logged");
    let (success, _) = first.end(Signal::TERM);
    assert!(success, "to be stopped is not a failure");
    std::fs::remove_file(data.join("admin.token")).unwrap();
    let (success, said) = Serving::start(&mut nmserver(&data)).end(Signal::INT);
    assert!(success && !said.contains("first start"), "{said}");
    assert!(!data.join("admin.token").exists(), "a token that was moved is not made a second time");
}

#[test]
fn what_stands_in_the_way_of_a_start_is_said_with_what_to_type() {
    let directory = folder();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let busy = refused(nmserver(&directory.path().join("a")).env("API_PORT", &port));
    assert!(busy.contains(&port) && busy.contains("set API_PORT or GRPC_PORT"), "{busy}");
    let file = directory.path().join("file");
    std::fs::write(&file, "").unwrap();
    let unusable = refused(&mut nmserver(&file));
    assert!(
        unusable.contains(&file.display().to_string()) && unusable.contains("set DATA_DIR"),
        "{unusable}"
    );
    assert!(unusable.contains("because: "), "{unusable}");
    let mistyped = refused(nmserver(&file).env("TLS", "of"));
    assert!(mistyped.contains("TLS=\"of\"") && mistyped.contains("write on or off"), "{mistyped}");
    let settings = directory.path().join("settings.toml");
    std::fs::write(&settings, "api_prot = 1\n").unwrap();
    let unknown = refused(nmserver(&file).arg("--config").arg(&settings));
    assert!(unknown.contains("did you mean \"api_port\"?"), "{unknown}");
    let nothing =
        refused(nmserver(&directory.path().join("a")).env("REST_BACKEND", "off").env("AGENT_BACKEND", "off"));
    assert!(nothing.contains("nothing to serve"), "{nothing}");
    let damaged = directory.path().join("damaged");
    drop(Serving::start(&mut nmserver(&damaged)));
    std::fs::write(damaged.join("signing.key"), "short").unwrap();
    assert!(refused(&mut nmserver(&damaged)).contains("restore it from a backup"));
}

#[test]
fn a_server_whose_database_is_gone_is_not_a_new_one() {
    let directory = folder();
    let data = directory.path().join("data");
    drop(Serving::start(&mut nmserver(&data)));
    let database = data.join("nmserver.db");
    let token = std::fs::read(data.join("admin.token")).unwrap();
    for content in [None, Some("")] {
        ["", "-wal", "-shm"].iter().for_each(|suffix| {
            let _ = std::fs::remove_file(format!("{}{suffix}", database.display()));
        });
        content.iter().for_each(|content| {
            std::fs::write(&database, content).unwrap();
            std::fs::set_permissions(&database, std::fs::Permissions::from_mode(0o600)).unwrap();
        });
        let said = refused(&mut nmserver(&data));
        assert!(
            said.contains(&database.display().to_string()) && said.contains("missing or empty"),
            "{said}"
        );
        assert!(said.contains("from a backup") && said.contains("move everything out of"), "{said}");
        assert!(refused(nmserver(&data).args(["token", "list"])).contains("missing or empty"));
        assert_eq!(
            std::fs::metadata(&database).ok().map(|it| it.len()),
            content.map(|_| 0),
            "nothing is made"
        );
        assert_eq!(std::fs::read(data.join("admin.token")).unwrap(), token, "and nothing is overwritten");
    }
    std::fs::write(&database, "not a database").unwrap();
    assert!(refused(&mut nmserver(&data)).contains("nmserver.db"));
}

#[test]
fn a_first_start_that_was_interrupted_is_taken_up_again() {
    let directory = folder();
    let data = directory.path().join("data");
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    refused(nmserver(&data).env("API_PORT", &port));
    let mut first = Serving::start(&mut nmserver(&data));
    first.read_until("nmplan plan");
    assert!(data.join("admin.token").exists() && !data.join("first-start").exists());
}

#[test]
fn a_directory_that_others_may_use_is_refused_with_what_to_type() {
    let directory = folder();
    let data = directory.path().join("data");
    for mode in [0o777, 0o770, 0o755, 0o730] {
        std::fs::DirBuilder::new().recursive(true).create(&data).unwrap();
        std::fs::set_permissions(&data, std::fs::Permissions::from_mode(mode)).unwrap();
        let said = refused(&mut nmserver(&data));
        assert!(said.contains("is open to other users") && said.contains("chmod 0700"), "{mode:o}: {said}");
        assert_eq!(std::fs::read_dir(&data).unwrap().count(), 0, "{mode:o}: nothing is written there");
    }
    std::fs::set_permissions(&data, std::fs::Permissions::from_mode(0o711)).unwrap();
    drop(Serving::start(&mut nmserver(&data)));
}

#[test]
fn without_files_for_a_name_server_it_serves_and_says_why_once() {
    let folder_of = |dns: &Path, mode| {
        std::fs::create_dir(dns).unwrap();
        std::fs::set_permissions(dns, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    for word in ["Not a directory", "chmod 0755", "move it elsewhere"] {
        let directory = folder();
        let dns = directory.path().join("dns");
        let (_, off) = Serving::start(nmserver(directory.path()).env("DNS_MODE", "off")).end(Signal::TERM);
        assert_eq!(off.matches("DNS_MODE is off").count(), 1, "{off}");
        assert!(!dns.exists(), "nothing is written");
        match word {
            "Not a directory" => std::fs::write(&dns, "").unwrap(),
            "chmod 0755" => folder_of(&dns, 0o777),
            _ => {
                folder_of(&dns, 0o755);
                std::fs::write(dns.join("Corefile"), "example.net {\n}\n").unwrap();
            }
        }
        // The end of a server is one more pass.
        let (_, said) = Serving::start(&mut nmserver(directory.path())).end(Signal::TERM);
        assert_eq!(said.matches("names for a name server are not as").count(), 1, "{said}");
        assert!(said.contains(word), "{said}");
        if word.contains("move it") {
            assert_eq!(std::fs::read_to_string(dns.join("Corefile")).unwrap(), "example.net {\n}\n");
            assert!(dns.join("netmaker.hosts").exists(), "the rest is written");
        }
    }
}

#[test]
fn two_servers_do_not_share_a_directory() {
    let directory = folder();
    let _first = Serving::start(&mut nmserver(directory.path()));
    let second = refused(&mut nmserver(directory.path()));
    assert!(second.contains("another nmserver uses") && second.contains("DATA_DIR"), "{second}");
}

#[test]
fn tokens_are_made_listed_and_revoked_and_only_where_a_server_has_started() {
    let directory = folder();
    let early = refused(nmserver(directory.path()).args(["token", "list"]));
    assert!(early.contains("start nmserver first"), "{early}");
    assert!(!directory.path().join("nmserver.db").exists(), "to ask makes nothing");
    drop(Serving::start(&mut nmserver(directory.path())));
    let done = |arguments: &[&str]| {
        let Output { status, stdout, stderr } = nmserver(directory.path()).args(arguments).output().unwrap();
        assert!(status.success(), "{}", String::from_utf8_lossy(&stderr));
        String::from_utf8(stdout).unwrap()
    };
    let scope = ["--network", "corp", "--project", "acme/prod", "--project", "site", "--expires", "30d"];
    let create = [&["token", "create", "--name", "ci", "--role", "viewer"][..], &scope].concat();
    let token = done(&create);
    let id = token.trim().split('_').nth(1).unwrap().to_owned();
    let list = done(&["token", "list"]);
    let line = list.lines().find(|line| line.starts_with(&id)).expect("it is listed");
    let cells: Vec<_> = line.split_whitespace().take(5).collect();
    assert_eq!(cells, [&*id, "ci", "viewer", "corp", "acme/prod,site"], "{list}");
    assert!(list.lines().count() == 3 && list.contains("admin"), "the first one has a name as well: {list}");
    assert!(!list.contains(token.trim()), "it is printed once");
    let taken =
        refused(nmserver(directory.path()).args(["token", "create", "--role", "viewer", "--name", "ci"]));
    assert!(taken.contains("nmserver token revoke ci"), "{taken}");
    done(&["token", "revoke", "ci"]);
    assert_eq!(done(&["token", "list"]).lines().count(), 2);
    let again = refused(nmserver(directory.path()).args(["token", "revoke", &id]));
    assert!(again.contains("token list"), "{again}");
}

#[test]
fn only_who_serves_has_to_be_reached_and_no_token_is_stored_that_nobody_has_seen() {
    let directory = folder();
    drop(Serving::start(&mut nmserver(directory.path())));
    let unreached = |verb: &[&str]| {
        let mut command = nmserver(directory.path());
        command.env("SERVER_HOST", "192.0.2.11").args(verb);
        command
    };
    for verb in [&["serve"][..], &["config"]] {
        let said = refused(&mut unreached(verb));
        assert!(said.contains("agents would connect to 192.0.2.11"), "{said}");
    }
    let list = || String::from_utf8(unreached(&["token", "list"]).output().unwrap().stdout).unwrap();
    let before = list();
    assert_eq!(before.lines().count(), 2, "{before}");
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let create = ["token", "create", "--role", "viewer", "--name", "ci"];
    let said = refused(unreached(&create).stdout(full));
    assert!(said.contains("was deleted again"), "{said}");
    assert_eq!(list(), before);
    assert!(unreached(&["down"]).output().unwrap().status.success());
}

#[test]
fn the_settings_in_force_can_be_read_back() {
    let directory = folder();
    let output = nmserver(directory.path()).arg("config").output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let file = directory.path().join("again.toml");
    std::fs::write(&file, &text).unwrap();
    let mut again = Command::new(env!("CARGO_BIN_EXE_nmserver"));
    let again = again.env_clear().arg("--config").arg(&file).arg("config").output().unwrap();
    assert_eq!(String::from_utf8(again.stdout).unwrap(), text);
}

#[test]
fn a_database_that_others_may_use_is_refused_with_what_to_type() {
    let directory = folder();
    drop(Serving::start(&mut nmserver(directory.path())));
    let database = directory.path().join("nmserver.db");
    std::fs::set_permissions(&database, std::fs::Permissions::from_mode(0o644)).unwrap();
    for said in [
        refused(&mut nmserver(directory.path())),
        refused(nmserver(directory.path()).args(["token", "list"])),
    ] {
        assert!(said.contains(&format!("chmod 0600 {}", database.display())), "{said}");
    }
}

#[test]
fn a_link_in_place_of_a_file_is_refused_and_what_it_leads_to_stays_as_it_is() {
    let directory = folder();
    let data = directory.path().join("data");
    drop(Serving::start(&mut nmserver(&data)));
    let theirs = directory.path().join("theirs");
    let files = ["lock", "mark", "version", "nmserver.db", "signing.key", "session.key", "ca.key", "ca.pem"];
    for file in files {
        let (path, aside) = (data.join(file), directory.path().join("aside"));
        std::fs::rename(&path, &aside).unwrap();
        std::fs::write(&theirs, "theirs").unwrap();
        std::os::unix::fs::symlink(&theirs, &path).unwrap();
        let said = refused(&mut nmserver(&data));
        assert!(said.contains(&path.display().to_string()), "{file}: {said}");
        assert_eq!(std::fs::read_to_string(&theirs).unwrap(), "theirs", "{file}");
        std::fs::rename(&aside, &path).unwrap();
    }
    // Where a new file is made before it takes the place of the old one.
    std::fs::remove_file(data.join("version")).unwrap();
    std::os::unix::fs::symlink(&theirs, data.join("version.nm-new")).unwrap();
    drop(Serving::start(&mut nmserver(&data)));
    assert!(data.join("version").symlink_metadata().unwrap().is_file());
    assert_eq!(std::fs::read_to_string(&theirs).unwrap(), "theirs");
}

#[test]
fn the_help_names_the_settings_and_a_first_start_says_what_it_makes() {
    let directory = folder();
    let data = directory.path().join("data");
    let help = nmserver(&data).arg("--help").output().unwrap();
    let text = String::from_utf8(help.stdout).unwrap();
    for part in
        ["serve", "down", "DATA_DIR", "[default: /var/lib/nmserver]", "/etc/nmserver.toml", "NMSERVER_LOG"]
    {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(!data.exists(), "to ask makes nothing");
    let first = Serving::start(nmserver(&data).arg("serve"));
    let line = first.said.lines().next().unwrap();
    assert!(line.contains("making a new one") && line.contains(&data.display().to_string()), "{line}");
    drop(first);
    let second = Serving::start(&mut nmserver(&data));
    assert!(!second.said.contains("making a new one"), "{}", second.said);
}

#[test]
fn on_a_terminal_a_first_start_has_to_be_asked_for() {
    let directory = folder();
    let data = directory.path().join("data");
    // script(1), which Debian always has, gives it a terminal.
    let typed = |arguments: &str| {
        let mut command = Command::new("script");
        let program = env!("CARGO_BIN_EXE_nmserver");
        command.args(["-q", "-e", "-c", &format!("timeout 20 {program} {arguments}"), "/dev/null"]);
        command.env("DATA_DIR", &data).env("SERVER_HOST", "127.0.0.1").env("BIND", "127.0.0.1");
        command.env("API_PORT", free_port()).env("GRPC_PORT", free_port());
        command.env("COMMS", "off").env("CLIENT_MODE", "off");
        command
    };
    let Output { status, stdout, .. } = typed("").output().unwrap();
    let said = String::from_utf8(stdout).unwrap();
    assert_eq!(status.code(), Some(1), "{said}");
    for part in ["nothing was made", &*data.display().to_string(), "nmserver serve"] {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert!(!data.exists());
}

#[test]
fn a_server_is_taken_off_its_host_once_it_has_ended() {
    let directory = folder();
    let data = directory.path().join("data");
    let down = || nmserver(&data).arg("down").output().unwrap();
    let nothing = down();
    assert!(nothing.status.success(), "there is nothing to do");
    assert!(String::from_utf8(nothing.stderr).unwrap().contains("no server has started in"));
    let serving = Serving::start(&mut nmserver(&data));
    let running = refused(nmserver(&data).arg("down"));
    assert!(running.contains("stop it first (systemctl stop nmserver)"), "{running}");
    assert!(serving.end(Signal::TERM).0);
    for _ in 0..2 {
        let done = down();
        let said = String::from_utf8(done.stderr).unwrap();
        assert!(done.status.success() && said.contains(&format!("rm -r {}", data.display())), "{said}");
    }
    drop(Serving::start(&mut nmserver(&data)));
}
