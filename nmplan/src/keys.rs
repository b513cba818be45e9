//! The secrets of access keys: created here, written to their sink, and shown nowhere else.
//!
//! A [`Made`] key has a token, with which nodes join, and a verifier for the server. In the order of an
//! apply: the sink is [opened](Sink::open), it [holds](Opened::hold) the tokens before the commit, [takes
//! them back](Opened::take_back) if the server refuses, or [delivers](Opened::deliver) them after the commit,
//! and also if it is unknown whether there was one: a token without a key does no harm, a key without its
//! token keeps nodes from joining. A file of tokens is locked from holding to the end. No secret is ever part
//! of a message.

mod file;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::str::FromStr;
use std::thread;
use std::time::Duration;

use proto::secret::Secret;
use proto::token::{Token, Tokens};
use schema::scalars::Verifier;
use schema::snapshot::ResourceId;
use schema::world::ServerInfo;

use crate::environment::Environment;
use crate::interrupt::Interrupts;
use file::KeyFile;

/// Where tokens go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sink {
    /// A file that holds one JSON object, from resource id to token; other entries are kept.
    File(PathBuf),
    /// Standard output, as the same object.
    Output,
    /// The command in `NMPLAN_SINK_NAME`, which reads each token on its standard input.
    Command(String),
}

impl FromStr for Sink {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_prefix('@') {
            Some("") => Err("@ needs a name: @vault runs the command in NMPLAN_SINK_VAULT".into()),
            Some(name) => Ok(Self::Command(name.into())),
            None if text == "-" => Ok(Self::Output),
            None if text.is_empty() => Err("the file name is empty".into()),
            None => Ok(Self::File(text.into())),
        }
    }
}

/// As it is typed.
impl fmt::Display for Sink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::Output => f.write_str("-"),
            Self::Command(name) => write!(f, "@{name}"),
        }
    }
}

/// Why keys could not be created or stored.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// Keys would be created, and there is no sink for their tokens.
    #[error("the plan creates {}, but no --keys-to says where to write the tokens", list(.0))]
    NoSink(Vec<ResourceId>),
    /// The file to replace is not a regular file.
    #[error("{0} is not a regular file, so it cannot hold tokens")]
    NotRegular(PathBuf),
    /// A file holds something else.
    #[error("{path} is not a file of tokens, one JSON object from resource ids to tokens ({why})")]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// A file cannot be used.
    #[error("cannot {attempt} {path}")]
    File {
        /// What was tried.
        attempt: &'static str,
        /// The file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The variable is not set.
    #[error("--keys-to @{name} needs a command in {variable}, which is not set")]
    NoCommand {
        /// The sink.
        name: String,
        /// The variable.
        variable: String,
    },
    /// Another apply holds the file.
    #[error("another nmplan has held {path} for {} s", file::LOCK_TIMEOUT.as_secs())]
    Locked {
        /// The lock file.
        path: PathBuf,
    },
    /// A command failed to take tokens.
    #[error("{} lost: the command in {variable} {why}", tokens(.ids))]
    Lost {
        /// The keys, all of them.
        ids: Vec<ResourceId>,
        /// The variable.
        variable: String,
        /// How it failed.
        why: String,
    },
    /// Tokens could not be written to standard output.
    #[error("{} lost: standard output could not be written", tokens(.ids))]
    LostOutput {
        /// The keys.
        ids: Vec<ResourceId>,
        /// Why.
        source: io::Error,
    },
    /// The operating system gave no random bytes.
    #[error("the operating system returned no random bytes, so no secret can be created")]
    Random(#[source] getrandom::Error),
}

impl KeysError {
    /// What to type next.
    pub fn help(&self) -> Option<String> {
        match self {
            Self::NoSink(_) => Some(
                "add --keys-to FILE (mode 0600, other entries are kept), --keys-to - for standard output, or --keys-to @NAME for a command".into(),
            ),
            Self::NotRegular(_) => Some("use --keys-to - for standard output".into()),
            Self::Content { .. } => Some("use another file, or move this one away".into()),
            Self::NoCommand { variable, .. } => Some(format!("set it, for example {variable}='pass insert -m nmplan/key'")),
            Self::Locked { .. } => Some("wait until it has ended, then apply again; nothing was changed".into()),
            Self::Lost { ids, .. } | Self::LostOutput { ids, .. } => {
                let (key, name, makes) = match ids.len() {
                    1 => ("the key", "another name", "that makes a new token"),
                    _ => ("these keys", "other names", "that makes new tokens"),
                };
                Some(format!(
                    "give {key} {name} in the files, and apply with another --keys-to: {makes}"
                ))
            }
            Self::File { .. } | Self::Random(_) => None,
        }
    }
}

fn list(ids: &[ResourceId]) -> String {
    match ids {
        [one] => format!("the access key {one}"),
        [one, two] => format!("the access keys {one} and {two}"),
        [one, rest @ ..] => format!("the access keys {one} and {} others", rest.len()),
        [] => "no access key".into(),
    }
}

/// The tokens of keys, each by name, so that none is overlooked.
fn tokens(ids: &[ResourceId]) -> String {
    match ids {
        [one] => format!("the token of the new key {one} is"),
        [..] => {
            let names: Vec<_> = ids.iter().map(ToString::to_string).collect();
            format!("the tokens of the new keys {} are", names.join(", "))
        }
    }
}

/// A new access key.
#[derive(Debug)]
pub struct Made {
    /// The key.
    pub id: ResourceId,
    /// What the server stores.
    pub verifier: Verifier,
    token: Secret<String>,
}

/// Creates the secret of each key, and the token with which nodes join that server.
pub fn make<'a>(
    ids: impl Iterator<Item = &'a ResourceId>,
    server: &ServerInfo,
) -> Result<Vec<Made>, KeysError> {
    let made = ids.map(|id| {
        let mut seed = Secret::new([0; 32]);
        getrandom::fill(seed.expose_mut()).map_err(KeysError::Random)?;
        let verifier = proto::sign::public_key(&proto::sign::from_seed(seed.expose()));
        let token = Token {
            addresses: server.agent_addresses.clone(),
            signing_key: server.signing_key,
            ca_pin: server.ca_pin,
            network: id.network.clone(),
            key: id.name.clone(),
            seed,
        };
        Ok(Made { id: id.clone(), verifier, token: token.reveal() })
    });
    made.collect()
}

/// A sink that is ready for tokens.
pub trait Opened {
    /// Stores tokens before the commit, if the sink can undo that.
    fn hold(&mut self, _made: &[Made]) -> Result<(), KeysError> {
        Ok(())
    }

    /// Removes what was held, after a refusal of the server.
    fn take_back(&mut self, _made: &[Made]) -> Result<(), KeysError> {
        Ok(())
    }

    /// Delivers the tokens, after a certain or possible commit. `output` is standard output. A signal that
    /// arrives meanwhile ends a command that takes them. Returns what was done with them, for a message.
    fn deliver(
        &self,
        made: &[Made],
        output: &mut Output<'_>,
        interrupts: &Interrupts,
    ) -> Result<String, KeysError>;
}

/// A function that writes to standard output.
pub type Output<'a> = dyn FnMut(&str) -> io::Result<()> + 'a;

impl Sink {
    /// Checks that the sink can take tokens, before anything is changed.
    pub fn open(&self, environment: &Environment) -> Result<Box<dyn Opened>, KeysError> {
        Ok(match self {
            Self::File(path) => Box::new(KeyFile::open(path)?),
            Self::Output => Box::new(StandardOutput),
            Self::Command(name) => Box::new(SinkCommand::of(name, environment)?),
        })
    }
}

struct StandardOutput;

impl Opened for StandardOutput {
    fn deliver(
        &self,
        made: &[Made],
        output: &mut Output<'_>,
        _interrupts: &Interrupts,
    ) -> Result<String, KeysError> {
        let tokens = made.iter().map(|made| (made.id.to_string(), made.token.clone())).collect();
        output(json(&tokens).expose()).map_err(|source| {
            let ids = made.iter().map(|made| made.id.clone()).collect();
            KeysError::LostOutput { ids, source }
        })?;
        Ok("written to standard output".into())
    }
}

/// A command that takes each token.
struct SinkCommand {
    /// The variable that holds it.
    variable: String,
    command: String,
    /// The variables that it is given, besides those of [`PASSED`].
    environment: BTreeMap<String, Secret<String>>,
}

/// The variables of this process that a sink command is given: what a program needs to run, and nothing that
/// may be a secret of something else.
const PASSED: &[&str] = &["PATH", "HOME", "USER", "LANG", "TMPDIR"];
/// How often it is checked whether a command has ended.
const POLL: Duration = Duration::from_millis(10);
/// Why a command was ended, or not started.
const INTERRUPTED: &str = "had not ended when nmplan was interrupted";
/// What the names of its own variables begin with, without the prefix of all of ours.
const SINK: &str = "SINK_";

impl SinkCommand {
    fn of(name: &str, environment: &Environment) -> Result<Self, KeysError> {
        let key = format!("{SINK}{}", name.to_uppercase().replace('-', "_"));
        let variable = format!("NMPLAN_{key}");
        match environment.get(&key) {
            Some(command) => {
                let own = |(name, value): (&str, &str)| {
                    (format!("NMPLAN_{SINK}{name}"), Secret::new(value.to_owned()))
                };
                let environment = environment.with_prefix(SINK).map(own).collect();
                Ok(Self { variable, command: command.into(), environment })
            }
            None => Err(KeysError::NoCommand { name: name.into(), variable }),
        }
    }

    /// Runs it for one token: the token on standard input, the key's id in NMPLAN_KEY, its output to standard
    /// error. It is given no other secret of this process: what it needs itself is passed as
    /// NMPLAN_SINK_ANYTHING. It is ended, or not started, once the run is interrupted.
    fn run(&self, made: &Made, interrupted: &dyn Fn() -> bool) -> Result<(), String> {
        if interrupted() {
            return Err(INTERRUPTED.into());
        }
        let passed = PASSED.iter().filter_map(|name| Some((name, std::env::var_os(name)?)));
        let mut child = Command::new("sh")
            .args(["-c", &self.command])
            .env_clear()
            .envs(passed)
            .envs(self.environment.iter().map(|(name, value)| (name, value.expose())))
            .env("NMPLAN_KEY", made.id.to_string())
            .stdin(Stdio::piped())
            .stdout(io::stderr())
            .spawn()
            .map_err(|error| format!("could not be started ({error})"))?;
        let mut input = child.stdin.take().expect("it is piped");
        let written = input.write_all(made.token.expose().as_bytes()).and_then(|()| input.write_all(b"\n"));
        drop(input);
        let unwaited = |error| format!("could not be waited for ({error})");
        let status = loop {
            if let Some(status) = child.try_wait().map_err(unwaited)? {
                break status;
            }
            if interrupted() {
                // It fails only if the command has ended meanwhile.
                let _ = child.kill();
                child.wait().map_err(unwaited)?;
                return Err(INTERRUPTED.into());
            }
            thread::sleep(POLL);
        };
        match (status.success(), written) {
            (true, Ok(())) => Ok(()),
            (true, Err(_)) => Err("did not read it".into()),
            (false, _) => Err(ended(status)),
        }
    }
}

impl Opened for SinkCommand {
    fn deliver(
        &self,
        made: &[Made],
        _output: &mut Output<'_>,
        interrupts: &Interrupts,
    ) -> Result<String, KeysError> {
        // An earlier signal has ended the wait for the server; the tokens are delivered all the same.
        let earlier = interrupts.count();
        let interrupted = || interrupts.count() > earlier;
        // If one fails, the others are still delivered.
        let failed =
            made.iter().filter_map(|made| Some((made.id.clone(), self.run(made, &interrupted).err()?)));
        let (ids, whys): (Vec<_>, BTreeSet<_>) = failed.unzip();
        if ids.is_empty() {
            return Ok(format!("taken by the command in {}", self.variable));
        }
        let why = whys.into_iter().collect::<Vec<_>>().join(" or ");
        Err(KeysError::Lost { ids, variable: self.variable.clone(), why })
    }
}

/// One JSON object, written into a buffer that never grows: growing would leave a copy of secrets in memory.
fn json(tokens: &Tokens) -> Secret<String> {
    const PUNCTUATION: usize = "  \"\": \"\",\n".len();
    let plain: BTreeMap<&str, &str> = tokens.iter().map(|(id, token)| (&**id, &**token.expose())).collect();
    let entries = plain.iter().map(|(id, token)| id.len() + token.len() + PUNCTUATION);
    let mut bytes = Vec::with_capacity(entries.sum::<usize>() + "{\n}\n".len());
    serde_json::to_writer_pretty(&mut bytes, &plain).expect("texts can be written as JSON");
    bytes.push(b'\n');
    Secret::new(String::from_utf8(bytes).expect("JSON is text"))
}

fn ended(status: ExitStatus) -> String {
    status.code().map_or("was killed".into(), |code| format!("exited with status {code}"))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use schema::scalars::{CaPin, SigningKey};

    use super::*;

    pub(super) fn made(name: &str) -> Vec<Made> {
        let server = ServerInfo {
            id: "server".into(),
            epoch: 1,
            agent_addresses: vec!["nm.example.net:50051".into()],
            signing_key: SigningKey([1; 32]),
            ca_pin: Some(CaPin([2; 32])),
            version: "0.1.0".into(),
            comms_range: None,
            own_node: None,
            addresses: Vec::new(),
        };
        let id: ResourceId = format!("corp/access-key/{name}").parse().expect("good");
        make([id].iter(), &server).expect("there are random bytes")
    }

    #[test]
    fn a_sink_is_a_file_standard_output_or_a_command() {
        assert_eq!("keys.json".parse(), Ok(Sink::File("keys.json".into())));
        assert_eq!("-".parse(), Ok(Sink::Output));
        assert_eq!("@vault".parse(), Ok(Sink::Command("vault".into())));
        assert!("@".parse::<Sink>().is_err() && "".parse::<Sink>().is_err());
    }

    #[test]
    fn a_token_carries_the_seed_that_its_verifier_verifies_and_where_to_go() {
        let made = &made("ci")[0];
        let token: Token = made.token.expose().parse().expect("it reads back");
        assert_eq!(
            proto::sign::public_key::<Verifier>(&proto::sign::from_seed(token.seed.expose())),
            made.verifier
        );
        assert_eq!((token.ca_pin, token.signing_key), (Some(CaPin([2; 32])), SigningKey([1; 32])));
        assert_eq!(
            (token.network.as_str(), token.key.as_str(), &*token.addresses),
            ("corp", "ci", &["nm.example.net:50051".to_owned()][..])
        );
    }

    #[test]
    fn a_sink_that_fails_names_every_key_whose_token_is_lost() {
        let keys: Vec<Made> = ["a", "b", "c"].into_iter().flat_map(made).collect();
        let command = "cat > /dev/null; test \"$NMPLAN_KEY\" = corp/access-key/b".to_owned();
        let sink =
            SinkCommand { variable: "NMPLAN_SINK_VAULT".into(), command, environment: BTreeMap::new() };
        let lost = sink.deliver(&keys, &mut |_| Ok(()), &Interrupts::default()).expect_err("it fails");
        assert_eq!(
            lost.to_string(),
            "the tokens of the new keys corp/access-key/a, corp/access-key/c are lost: the command in NMPLAN_SINK_VAULT exited with status 1"
        );
        let mut closed = |_: &str| Err(io::ErrorKind::BrokenPipe.into());
        let lost = StandardOutput.deliver(&keys, &mut closed, &Interrupts::default()).expect_err("it fails");
        assert!(
            lost.to_string().contains("corp/access-key/a, corp/access-key/b, corp/access-key/c"),
            "{lost}"
        );
    }

    #[test]
    fn a_signal_ends_a_command_and_the_next_one_is_not_started() {
        let directory = tempfile::tempdir().expect("a directory can be made");
        let path = directory.path().join("begun");
        let command = format!("cat > /dev/null; echo begun >> '{}'; exec sleep 60", path.display());
        let sink =
            SinkCommand { variable: "NMPLAN_SINK_VAULT".into(), command, environment: BTreeMap::new() };
        let keys: Vec<Made> = ["a", "b"].into_iter().flat_map(made).collect();
        let interrupts = Interrupts::default();
        interrupts.interrupt();
        let lost = thread::scope(|scope| {
            scope.spawn(|| {
                while !path.exists() {
                    thread::sleep(POLL);
                }
                interrupts.interrupt();
            });
            sink.deliver(&keys, &mut |_| Ok(()), &interrupts).expect_err("it is ended")
        });
        assert_eq!(
            lost.to_string(),
            "the tokens of the new keys corp/access-key/a, corp/access-key/b are lost: the command in NMPLAN_SINK_VAULT had not ended when nmplan was interrupted"
        );
        assert!(fs::read_to_string(&path).expect("it is there").lines().count() <= 1);
    }

    #[test]
    fn a_command_reads_the_token_and_its_failure_names_the_key() {
        let directory = tempfile::tempdir().expect("a directory can be made");
        let path = directory.path().join("token");
        let opened = |command: String| {
            let environment = Environment::from_iter([("NMPLAN_SINK_MY_VAULT".to_owned(), command)]);
            Sink::Command("my-vault".into()).open(&environment).expect("the command is set")
        };
        let key = made("ci");
        let mut unused = |_: &str| -> io::Result<()> { panic!("nothing goes to standard output") };
        opened(format!("cat > '{}'; test \"$NMPLAN_KEY\" = corp/access-key/ci", path.display()))
            .deliver(&key, &mut unused, &Interrupts::default())
            .expect("it takes it");
        assert_eq!(fs::read_to_string(&path).expect("it is there").trim(), key[0].token.expose());
        opened(format!("cat > /dev/null; env > '{}'", path.display()))
            .deliver(&key, &mut unused, &Interrupts::default())
            .expect("it runs");
        let given = fs::read_to_string(&path).expect("it is there");
        let names: BTreeSet<&str> = given.lines().filter_map(|line| Some(line.split_once('=')?.0)).collect();
        // The shell sets these itself.
        let known = ["NMPLAN_KEY", "NMPLAN_SINK_MY_VAULT", "PWD", "OLDPWD", "SHLVL", "_"];
        let others: Vec<_> =
            names.iter().filter(|name| !PASSED.contains(name) && !known.contains(name)).collect();
        assert!(others.is_empty(), "a sink command is given {others:?}, of all that this process has");
        assert!(names.contains("NMPLAN_SINK_MY_VAULT") && names.contains("PATH"), "{names:?}");
        let lost = opened("cat >/dev/null; exit 3".into())
            .deliver(&key, &mut unused, &Interrupts::default())
            .expect_err("it fails");
        assert_eq!(
            lost.to_string(),
            "the token of the new key corp/access-key/ci is lost: the command in NMPLAN_SINK_MY_VAULT exited with status 3"
        );
        assert!(lost.help().is_some_and(|help| {
            help.contains("another name in the files, and apply with another --keys-to")
        }));
        assert!(matches!(
            Sink::Command("x".into()).open(&Environment::default()),
            Err(KeysError::NoCommand { .. })
        ));
    }
}
