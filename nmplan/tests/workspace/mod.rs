//! What the suites share: a [`Workspace`] in which commands run as they are typed, against a server in
//! memory.
#![allow(dead_code, reason = "each suite uses its part")]

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use nmplan::args;
use nmplan::commands;
use nmplan::console::Console;
use nmplan::control::Memory;
use nmplan::environment::Environment;
use nmplan::interrupt::Interrupts;
use schema::api::{Control, NodeStatus, Presence};
use schema::inventory::{Endpoints, Joined, NodeId, PendingNode};
use schema::scalars::{Identity, WireGuardKey};
use schema::snapshot::Revision;
use schema::world::World;
use serde_json::Value;

/// What a command printed, and its exit code.
#[derive(Debug)]
pub struct Ran {
    /// The exit code.
    pub exit: u8,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Ran {
    /// Everything, as a terminal shows it.
    pub fn all(&self) -> String {
        format!("{}{}[exit {}]", self.stdout, self.stderr, self.exit)
    }

    /// The events.
    pub fn events(&self) -> Vec<Value> {
        self.stdout.lines().map(|line| serde_json::from_str(line).expect("each line is JSON")).collect()
    }
}

/// Where commands run: a server, a directory for files, variables of the environment, and what is typed at a
/// prompt.
pub struct Workspace {
    pub server: Memory,
    pub directory: tempfile::TempDir,
    pub environment: Vec<(String, String)>,
    pub typed: Option<&'static str>,
    /// How often something is printed on standard output before each attempt fails, and how; absent: it never
    /// does.
    pub output_fails: Option<(usize, io::ErrorKind)>,
    /// How many columns the terminal has; absent: standard output is none.
    pub columns: Option<usize>,
    /// Interrupts the runs.
    pub interrupts: Interrupts,
    /// The URL of the last connection.
    pub asked: RefCell<Option<String>>,
}

#[derive(Clone, Default)]
struct Shared(Rc<RefCell<Vec<u8>>>, Rc<Cell<Option<(usize, io::ErrorKind)>>>);

impl Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Some((0, kind)) = self.1.get() {
            return Err(kind.into());
        }
        self.0.borrow_mut().extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.1.set(self.1.get().map(|(left, kind)| (left.saturating_sub(1), kind)));
        Ok(())
    }
}

impl Workspace {
    pub fn new(world: World) -> Self {
        let directory = tempfile::tempdir().expect("a directory can be made");
        Self {
            server: Memory::of(world),
            directory,
            environment: Vec::new(),
            typed: None,
            output_fails: None,
            columns: None,
            interrupts: Interrupts::default(),
            asked: RefCell::default(),
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().expect("it is in the directory"))
            .expect("a directory can be made");
        std::fs::write(&path, text).expect("a file can be written");
        path
    }

    pub fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    /// Runs what is typed after `nmplan`; `@` before a word stands for the directory, `:` for a
    /// real `@`.
    pub fn nmplan(&self, line: &str) -> Ran {
        let root = self.directory.path().display().to_string();
        let words = line.split_whitespace().map(|word| match word.split_at(1) {
            ("@", name) => format!("{root}/{name}"),
            (":", name) => format!("@{name}"),
            _ => word.to_owned(),
        });
        let args = args::parse(["nmplan".to_owned()].into_iter().chain(words))
            .unwrap_or_else(|error| panic!("{error}"));
        let stdout = Shared(Rc::default(), Rc::new(Cell::new(self.output_fails)));
        let stderr = Shared::default();
        let mut console = Console::of(&args.global, stdout.clone(), stderr.clone(), self.typed);
        console.columns = self.columns;
        console.interrupts = self.interrupts.clone();
        self.server.set_interrupts(&self.interrupts);
        let environment = Environment::from_iter(self.environment.iter().cloned());
        let connect = |url: Option<&str>| {
            self.asked.replace(url.map(str::to_owned));
            Ok(self.server.clone())
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime can be made");
        let exit = match runtime.block_on(commands::run(&args, &environment, &connect, &mut console)) {
            Ok(exit) => exit.code(),
            Err(error) => commands::finish(&args.verb, &error, &mut console).code(),
        };
        let text =
            |shared: Shared| String::from_utf8(shared.0.take()).expect("it is text").replace(&root, "DIR");
        Ran { exit, stdout: text(stdout), stderr: text(stderr) }
    }
}

/// A folder of the examples.
pub fn example(name: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples").join(name).display().to_string()
}

/// A node that has joined.
pub fn joined(number: u8) -> Joined {
    Joined {
        public_key: WireGuardKey([number; 32]),
        identity: Identity([number + 100; 32]),
        addresses: BTreeSet::from([format!("10.40.0.{number}").parse().expect("good")]),
        endpoints: Endpoints { configured: "192.0.2.10:51821".parse().ok(), ..Endpoints::default() },
        listen_port: 51_821,
        tags: BTreeSet::new(),
        key: Some("first".parse().expect("good")),
        claimed: true,
        joined: "2026-11-24T12:00:00Z".parse().expect("good"),
        problems: Vec::new(),
        os: "linux".into(),
    }
}

/// The status of a node of the network corp that checks in.
pub fn online(name: &str, acknowledged: Option<Revision>) -> NodeStatus {
    NodeStatus {
        id: format!("corp/node/{name}"),
        name: name.parse().expect("good"),
        tags: BTreeSet::new(),
        addresses: BTreeSet::new(),
        public_key: None,
        state: Presence::Online,
        last_check_in: None,
        acknowledged,
        control: Control::Tls,
        problems: Vec::new(),
        fingerprint: None,
        os: None,
        pending: None,
    }
}

/// A host that waits to be let in, with keys of a number.
pub fn pending(number: u8, name: &str) -> (Identity, PendingNode) {
    let pending = PendingNode {
        name: name.parse().expect("good"),
        public_key: WireGuardKey([number + 50; 32]),
        endpoints: Endpoints::default(),
        listen_port: None,
        since: "2026-11-24T12:00:00Z".parse().expect("good"),
        seen: "192.0.2.7".parse().ok(),
        os: "Debian 12 x86_64".into(),
    };
    (Identity([number; 32]), pending)
}

/// Lets nodes join the network corp, declared or not.
pub fn join(server: &Memory, names: &[(&str, u8)]) {
    let corp: schema::scalars::NetworkName = "corp".parse().expect("good");
    server.change_elsewhere(|world| {
        for (name, number) in names {
            let id = NodeId { network: corp.clone(), name: name.parse().expect("good") };
            let claimed = world.snapshot.named::<schema::kinds::Node>(&id.network, &id.name).is_some();
            world.inventory.put_node(id, Joined { claimed, ..joined(*number) });
        }
    });
}
