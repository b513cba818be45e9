//! The secrets of access keys: made here, handed to their sink, seen by nobody else.
//!
//! A [`Made`] key is a token for machines and what verifies it for the server. In the order of an apply: the sink is
//! [opened](Sink::open), it [holds](Opened::hold) the tokens before the commit, [takes them back](Opened::take_back) if the
//! server refuses, or [delivers](Opened::deliver) them once it is done, and also where nobody knows whether it is: a token
//! too many is worthless, one too few locks machines out. A file of tokens is [locked](Lock) from holding to the end. No
//! secret is ever part of a message.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::str::FromStr;
use std::thread;
use std::time::{Duration, Instant};

use proto::token::Token;
use schema::scalars::PublicKey;
use schema::snapshot::ResourceId;
use schema::world::ServerInfo;
use zeroize::Zeroizing;

use crate::environment::Environment;

/// How long another apply may hold the file of tokens.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often it is tried to have it.
const POLL: Duration = Duration::from_millis(50);

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
            Some("") => Err("behind @ stands the name of a command: @vault runs what NMPLAN_SINK_VAULT says".into()),
            Some(name) => Ok(Self::Command(name.into())),
            None if text == "-" => Ok(Self::Output),
            None if text.is_empty() => Err("it names no file".into()),
            None => Ok(Self::File(text.into())),
        }
    }
}

/// Why keys could not be made or kept.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// Keys would be made and nothing says where their tokens go.
    #[error("the plan makes {}, and nothing says where the tokens go", list(.0))]
    NoSink(Vec<ResourceId>),
    /// A file would be replaced that is none.
    #[error("{0} is no regular file, so it cannot hold tokens")]
    NotRegular(PathBuf),
    /// A file holds something else.
    #[error("{path} does not hold one JSON object from resource ids to tokens ({why})")]
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
    #[error("another nmplan has held {path} for {} s", PATIENCE.as_secs())]
    Locked {
        /// The lock file.
        path: PathBuf,
    },
    /// A command did not take tokens.
    #[error("{} lost: the command in {variable} {why}", tokens(.ids))]
    Lost {
        /// The keys, all of them.
        ids: Vec<ResourceId>,
        /// The variable.
        variable: String,
        /// What it did.
        why: String,
    },
    /// Standard output did not take the tokens.
    #[error("{} lost: standard output did not take them", tokens(.ids))]
    LostOutput {
        /// The keys.
        ids: Vec<ResourceId>,
        /// Why.
        source: io::Error,
    },
    /// The operating system gave no random bytes.
    #[error("the operating system gives no random bytes, so no secret can be made")]
    Random(#[source] getrandom::Error),
}

impl KeysError {
    /// What to type next.
    pub fn help(&self) -> Option<String> {
        match self {
            Self::NoSink(_) => Some(
                "add --keys-to FILE (mode 0600, other entries stay), --keys-to - for standard output, or --keys-to @NAME for a command".into(),
            ),
            Self::NotRegular(_) => Some("write --keys-to - for standard output".into()),
            Self::Content { .. } => Some("name another file, or move this one away".into()),
            Self::NoCommand { variable, .. } => Some(format!("set it, for example {variable}='pass insert -m nmplan/key'")),
            Self::Locked { .. } => Some("let that one end, and apply again; nothing was changed".into()),
            Self::Lost { ids, .. } | Self::LostOutput { ids, .. } => {
                let (key, it) = if ids.len() == 1 { ("the key", "it") } else { ("these keys", "them") };
                Some(format!(
                    "make {key} anew: take {it} out of the files, apply, put {it} back, and apply with another --keys-to"
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

/// The tokens of keys, each named: none may be overlooked.
fn tokens(ids: &[ResourceId]) -> String {
    match ids {
        [one] => format!("the token of the new key {one} is"),
        [..] => {
            let names: Vec<_> = ids.iter().map(ToString::to_string).collect();
            format!("the tokens of the new keys {} are", names.join(", "))
        }
    }
}

/// An access key that was made.
pub struct Made {
    /// The key.
    pub id: ResourceId,
    /// What the server keeps.
    pub verifier: PublicKey,
    token: Zeroizing<String>,
}

/// Makes the secret of each key, and the token that carries it to machines of that server.
pub fn make<'a>(ids: impl Iterator<Item = &'a ResourceId>, server: &ServerInfo) -> Result<Vec<Made>, KeysError> {
    let made = ids.map(|id| {
        let mut seed = Zeroizing::new([0; 32]);
        getrandom::fill(&mut *seed).map_err(KeysError::Random)?;
        let verifier = proto::sign::verifier(&proto::sign::signing_key(&seed));
        let token = Token {
            addresses: server.agent_addresses.clone(),
            signing_key: server.signing_key,
            ca_pin: server.ca_pin.map(|pin| pin.0),
            network: id.network.clone(),
            key: id.name.clone(),
            seed,
        };
        Ok(Made { id: id.clone(), verifier, token: token.reveal() })
    });
    made.collect()
}

/// A sink that is ready for tokens.
pub enum Opened {
    /// A file.
    File(KeyFile),
    /// Standard output.
    Output,
    /// A command.
    Command {
        /// The variable that it comes from.
        variable: String,
        /// What it is.
        command: String,
    },
}

impl Sink {
    /// Makes sure that the sink can take tokens, before anything is changed.
    pub fn open(&self, environment: &Environment) -> Result<Opened, KeysError> {
        match self {
            Self::File(path) => KeyFile::open(path).map(Opened::File),
            Self::Output => Ok(Opened::Output),
            Self::Command(name) => {
                let key = format!("SINK_{}", name.to_uppercase().replace('-', "_"));
                let variable = format!("NMPLAN_{key}");
                match environment.get(&key) {
                    Some(command) => Ok(Opened::Command { variable, command: command.into() }),
                    None => Err(KeysError::NoCommand { name: name.clone(), variable }),
                }
            }
        }
    }
}

impl Opened {
    /// Keeps tokens before the commit, where that can be undone.
    pub fn hold(&mut self, made: &[Made]) -> Result<(), KeysError> {
        match self {
            Self::File(file) => file.hold(made),
            Self::Output | Self::Command { .. } => Ok(()),
        }
    }

    /// Takes back what was held: the server has refused.
    pub fn take_back(&mut self, made: &[Made]) -> Result<(), KeysError> {
        match self {
            Self::File(file) => file.take_back(made),
            Self::Output | Self::Command { .. } => Ok(()),
        }
    }

    /// Hands the tokens over, after the commit, or where it may have been one. `output` is standard output. Gives what became of them.
    pub fn deliver(&self, made: &[Made], output: impl FnOnce(&str) -> io::Result<()>) -> Result<String, KeysError> {
        match self {
            Self::File(file) => Ok(format!("written to {}", file.path.display())),
            Self::Output => {
                let text = Zeroizing::new(json(&made.iter().map(entry).collect()));
                let ids = || made.iter().map(|made| made.id.clone()).collect();
                output(&text).map_err(|source| KeysError::LostOutput { ids: ids(), source })?;
                Ok("written to standard output".into())
            }
            Self::Command { variable, command } => {
                // One that fails keeps the others from nothing.
                let failed = made.iter().filter_map(|made| Some((made.id.clone(), run(command, made).err()?)));
                let (ids, whys): (Vec<_>, BTreeSet<_>) = failed.unzip();
                if ids.is_empty() {
                    return Ok(format!("taken by the command in {variable}"));
                }
                let why = whys.into_iter().collect::<Vec<_>>().join(" or ");
                Err(KeysError::Lost { ids, variable: variable.clone(), why })
            }
        }
    }
}

fn entry(made: &Made) -> (String, String) {
    (made.id.to_string(), made.token.to_string())
}

fn json(tokens: &BTreeMap<String, String>) -> String {
    let text = serde_json::to_string_pretty(tokens).expect("texts can be written as JSON");
    text + "\n"
}

/// Runs a command for one token: the token on standard input, the key's id in NMPLAN_KEY, its output beside ours.
fn run(command: &str, made: &Made) -> Result<(), String> {
    let mut child = Command::new("sh")
        .args(["-c", command])
        .env("NMPLAN_KEY", made.id.to_string())
        .env_remove("NMPLAN_TOKEN")
        .stdin(Stdio::piped())
        .stdout(io::stderr())
        .spawn()
        .map_err(|error| format!("cannot be started ({error})"))?;
    let mut input = child.stdin.take().expect("it is piped");
    let written = input.write_all(made.token.as_bytes()).and_then(|()| input.write_all(b"\n"));
    drop(input);
    let status = child.wait().map_err(|error| format!("cannot be waited for ({error})"))?;
    match (status.success(), written) {
        (true, Ok(())) => Ok(()),
        (true, Err(_)) => Err("did not read it".into()),
        (false, _) => Err(ended(status)),
    }
}

fn ended(status: ExitStatus) -> String {
    status.code().map_or("was killed".into(), |code| format!("ended with status {code}"))
}

/// A file of tokens.
pub struct KeyFile {
    path: PathBuf,
    before: Option<BTreeMap<String, String>>,
    lock: Option<Lock>,
}

/// A lock file beside a file of tokens, held by one apply at a time and gone with it.
struct Lock {
    path: PathBuf,
    _held: fs::File,
}

impl Lock {
    /// Takes it, waiting for whoever holds it.
    fn take(beside: &Path, patience: Duration) -> Result<Self, KeysError> {
        let mut name = beside.as_os_str().to_owned();
        name.push(".lock");
        let (path, end) = (PathBuf::from(name), Instant::now() + patience);
        let failed = |source| KeysError::File { attempt: "lock", path: path.clone(), source };
        loop {
            let file = fs::OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path);
            let file = file.map_err(failed)?;
            match file.try_lock() {
                // Who held it before has taken the file away: another may lock a new one.
                Ok(()) if !is_at(&file, &path).map_err(failed)? => {}
                Ok(()) => return Ok(Self { path, _held: file }),
                Err(TryLockError::WouldBlock) if Instant::now() >= end => return Err(KeysError::Locked { path }),
                Err(TryLockError::WouldBlock) => thread::sleep(POLL),
                Err(TryLockError::Error(source)) => return Err(failed(source)),
            }
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // As long as it is held, so that nobody's but ours is taken away; one that stays locks nobody out.
        let _ = fs::remove_file(&self.path);
    }
}

/// Whether a path leads to that open file.
fn is_at(file: &fs::File, path: &Path) -> io::Result<bool> {
    let ours = file.metadata()?;
    match fs::metadata(path) {
        Ok(there) => Ok((there.dev(), there.ino()) == (ours.dev(), ours.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

impl KeyFile {
    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads what the file holds, and makes sure that it can be replaced.
    fn open(path: &Path) -> Result<Self, KeysError> {
        // A link stays one: what it leads to is replaced.
        let path = path.canonicalize().unwrap_or_else(|_| path.into());
        let before = read(&path)?;
        temporary(&path)?;
        Ok(Self { path, before, lock: None })
    }

    /// Puts the tokens in; nobody else changes the file until they are taken back or this goes out of scope.
    fn hold(&mut self, made: &[Made]) -> Result<(), KeysError> {
        self.lock = Some(Lock::take(&self.path, PATIENCE)?);
        self.before = read(&self.path)?;
        let mut tokens = self.before.clone().unwrap_or_default();
        tokens.extend(made.iter().map(entry));
        replace(&self.path, &tokens)
    }

    /// Takes out what was put in, unless somebody else has replaced it since.
    fn take_back(&mut self, made: &[Made]) -> Result<(), KeysError> {
        let _lock = self.lock.take();
        let mut tokens = read(&self.path)?.unwrap_or_default();
        for (id, token) in made.iter().map(entry) {
            if tokens.get(&id) == Some(&token) {
                tokens.remove(&id);
                let had = self.before.iter().flat_map(|before| before.get_key_value(&id));
                tokens.extend(had.map(|(id, token)| (id.clone(), token.clone())));
            }
        }
        if tokens.is_empty() && self.before.is_none() {
            let failed = |source| KeysError::File { attempt: "remove", path: self.path.clone(), source };
            return fs::remove_file(&self.path).map_err(failed);
        }
        replace(&self.path, &tokens)
    }
}

fn read(path: &Path) -> Result<Option<BTreeMap<String, String>>, KeysError> {
    let failed = |source| KeysError::File { attempt: "read", path: path.into(), source };
    match fs::metadata(path) {
        Ok(metadata) if !metadata.is_file() => return Err(KeysError::NotRegular(path.into())),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    }
    let text = Zeroizing::new(fs::read_to_string(path).map_err(failed)?);
    if text.trim().is_empty() {
        return Ok(Some(BTreeMap::new()));
    }
    serde_json::from_str(&text).map(Some).map_err(|error| {
        // The error's own words may quote the file.
        let why = format!("line {}, column {}", error.line(), error.column());
        KeysError::Content { path: path.into(), why }
    })
}

/// Replaces the file in one step, readable by its owner only, and makes sure that it is on the disk.
fn replace(path: &Path, tokens: &BTreeMap<String, String>) -> Result<(), KeysError> {
    let failed = |source| KeysError::File { attempt: "write", path: path.into(), source };
    let mut file = temporary(path)?;
    file.write_all(Zeroizing::new(json(tokens)).as_bytes()).and_then(|()| file.as_file().sync_all()).map_err(failed)?;
    file.persist(path).map_err(|error| failed(error.error))?;
    fs::File::open(directory(path)).and_then(|directory| directory.sync_all()).map_err(failed)
}

/// A file beside another, of mode 0600; it goes away unless it takes that one's place.
fn temporary(path: &Path) -> Result<tempfile::NamedTempFile, KeysError> {
    let failed = |source| KeysError::File { attempt: "write", path: path.into(), source };
    fs::metadata(directory(path)).map_err(failed)?;
    // The error of a temporary file names that file, which tells nobody anything.
    let failed = |error: io::Error| failed(error.kind().into());
    tempfile::Builder::new().prefix(".nmplan-").tempfile_in(directory(path)).map_err(failed)
}

fn directory(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn made(name: &str) -> Vec<Made> {
        let server = ServerInfo {
            id: "server".into(),
            epoch: 1,
            agent_addresses: vec!["nm.example.net:50051".into()],
            signing_key: PublicKey([1; 32]),
            ca_pin: Some(PublicKey([2; 32])),
            version: "0.1.0".into(),
            comms_range: None,
            own_node: None,
        };
        let id: ResourceId = format!("corp/access-key/{name}").parse().expect("good");
        make([id].iter(), &server).expect("there are random bytes")
    }

    #[test]
    fn a_sink_is_written_in_three_ways() {
        assert_eq!("keys.json".parse(), Ok(Sink::File("keys.json".into())));
        assert_eq!("-".parse(), Ok(Sink::Output));
        assert_eq!("@vault".parse(), Ok(Sink::Command("vault".into())));
        assert!("@".parse::<Sink>().is_err() && "".parse::<Sink>().is_err());
    }

    #[test]
    fn a_token_carries_the_seed_that_its_verifier_verifies_and_where_to_go() {
        let made = &made("ci")[0];
        let token: Token = made.token.parse().expect("it reads back");
        assert_eq!(proto::sign::verifier(&proto::sign::signing_key(&token.seed)), made.verifier);
        assert_eq!((token.ca_pin, token.signing_key), (Some([2; 32]), PublicKey([1; 32])));
        assert_eq!(
            (token.network.as_str(), token.key.as_str(), &*token.addresses),
            ("corp", "ci", &["nm.example.net:50051".to_owned()][..])
        );
    }

    #[test]
    fn a_file_keeps_its_other_entries_and_is_secret() {
        let directory = tempfile::tempdir().expect("a directory can be made");
        let path = directory.path().join("keys.json");
        fs::write(&path, r#"{"corp/access-key/old": "nmj_old"}"#).expect("it can be written");
        let (mut file, key) = (KeyFile::open(&path).expect("it opens"), made("ci"));
        file.hold(&key).expect("it holds");
        let held: BTreeMap<String, String> =
            serde_json::from_slice(&fs::read(&path).expect("it is there")).expect("JSON");
        assert_eq!(held["corp/access-key/old"], "nmj_old");
        assert_eq!(held["corp/access-key/ci"], *key[0].token);
        assert_eq!(fs::metadata(&path).expect("it is there").permissions().mode() & 0o777, 0o600);
        file.take_back(&key).expect("it takes back");
        assert_eq!(
            read(&path).expect("it reads"),
            Some(BTreeMap::from([("corp/access-key/old".into(), "nmj_old".into())]))
        );
    }

    #[test]
    fn a_file_that_was_not_there_is_gone_again_after_a_refusal() {
        let directory = tempfile::tempdir().expect("a directory can be made");
        let path = directory.path().join("keys.json");
        let (mut file, key) = (KeyFile::open(&path).expect("it opens"), made("ci"));
        assert!(!path.exists(), "opening writes nothing");
        file.hold(&key).expect("it holds");
        file.take_back(&key).expect("it takes back");
        assert_eq!(fs::read_dir(directory.path()).expect("it is there").count(), 0);
    }

    #[test]
    fn what_is_no_file_of_tokens_is_refused_and_left_alone() {
        let directory = tempfile::tempdir().expect("a directory can be made");
        let path = directory.path().join("notes.txt");
        fs::write(&path, "nmj_secret is not JSON").expect("it can be written");
        let refused = KeyFile::open(&path).err().expect("it is refused");
        assert!(!refused.to_string().contains("nmj_secret"), "{refused}");
        assert!(matches!(KeyFile::open(directory.path()).err(), Some(KeysError::NotRegular(_))));
        assert!(matches!(KeyFile::open(Path::new("/dev/null")).err(), Some(KeysError::NotRegular(_))));
        assert!(matches!(KeyFile::open(&directory.path().join("no/keys.json")).err(), Some(KeysError::File { .. })));
        assert_eq!(fs::read_to_string(&path).expect("it is there"), "nmj_secret is not JSON");
    }

    #[test]
    fn applies_that_write_one_file_at_once_lose_no_token() {
        let directory = tempfile::tempdir().expect("a directory can be made");
        let path = directory.path().join("keys.json");
        let start = std::sync::Barrier::new(8);
        thread::scope(|scope| {
            for number in 0..8 {
                let (path, start) = (&path, &start);
                scope.spawn(move || {
                    let (mut file, key) = (KeyFile::open(path).expect("it opens"), made(&format!("ci-{number}")));
                    start.wait();
                    file.hold(&key).expect("it holds");
                });
            }
        });
        assert_eq!(read(&path).expect("it reads").map(|tokens| tokens.len()), Some(8));
        assert_eq!(fs::read_dir(directory.path()).expect("it is there").count(), 1, "no lock stays");
    }

    #[test]
    fn a_file_that_another_apply_holds_is_waited_for_and_then_given_up() {
        let directory = tempfile::tempdir().expect("a directory can be made");
        let path = directory.path().join("keys.json");
        let mut file = KeyFile::open(&path).expect("it opens");
        file.hold(&made("ci")).expect("it holds");
        let lock = directory.path().join("keys.json.lock");
        assert_eq!(fs::metadata(&lock).expect("it is there").permissions().mode() & 0o777, 0o600);
        let refused = Lock::take(&path, Duration::ZERO).err().expect("it is held");
        assert_eq!(refused.to_string(), format!("another nmplan has held {} for 10 s", lock.display()));
        drop(file);
        assert!(!lock.exists() && Lock::take(&path, Duration::ZERO).is_ok());
    }

    #[test]
    fn a_sink_that_fails_names_every_key_whose_token_is_lost() {
        let keys: Vec<Made> = ["a", "b", "c"].into_iter().flat_map(made).collect();
        let command = "cat > /dev/null; test \"$NMPLAN_KEY\" = corp/access-key/b".to_owned();
        let sink = Opened::Command { variable: "NMPLAN_SINK_VAULT".into(), command };
        let lost = sink.deliver(&keys, |_| Ok(())).expect_err("it fails");
        assert_eq!(
            lost.to_string(),
            "the tokens of the new keys corp/access-key/a, corp/access-key/c are lost: the command in NMPLAN_SINK_VAULT ended with status 1"
        );
        let closed = |_: &str| Err(io::ErrorKind::BrokenPipe.into());
        let lost = Opened::Output.deliver(&keys, closed).expect_err("it fails");
        assert!(lost.to_string().contains("corp/access-key/a, corp/access-key/b, corp/access-key/c"), "{lost}");
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
        let unused = |_: &str| -> io::Result<()> { panic!("nothing goes to standard output") };
        opened(format!("cat > '{}'; test \"$NMPLAN_KEY\" = corp/access-key/ci", path.display()))
            .deliver(&key, unused)
            .expect("it takes it");
        assert_eq!(fs::read_to_string(&path).expect("it is there").trim(), &**key[0].token);
        let lost = opened("cat >/dev/null; exit 3".into()).deliver(&key, unused).expect_err("it fails");
        assert_eq!(
            lost.to_string(),
            "the token of the new key corp/access-key/ci is lost: the command in NMPLAN_SINK_MY_VAULT ended with status 3"
        );
        assert!(lost.help().is_some_and(|help| help.contains("put it back, and apply with another --keys-to")));
        assert!(matches!(Sink::Command("x".into()).open(&Environment::default()), Err(KeysError::NoCommand { .. })));
    }
}
