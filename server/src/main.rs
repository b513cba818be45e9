//! `nmserver`: the control plane.

use std::fmt::Write as _;
use std::io::{IsTerminal, Write};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use netclient::agent::Down;
use netclient::systemd;
use nmserver::config::{self, Settings};
use nmserver::core::authorize::{Grant, ProjectScope, Role};
use nmserver::identity::{self, DataDir};
use nmserver::store::Store;
use nmserver::store::sqlite::Sqlite;
use nmserver::{down, tokens};
use schema::scalars::{Expiry, Name, NetworkName};
use schema::text::word;
use tokio::signal::unix::{SignalKind, signal};

/// The control plane of declared WireGuard meshes. Without a command it serves, as units and containers start
/// it; only on a terminal, where no server has started yet, it makes nothing and says what `serve` would
/// make.
#[derive(Parser)]
#[command(name = "nmserver", version)]
struct Args {
    /// The settings file; by default /etc/nmserver.toml, if it is there.
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Subcommand)]
enum Verb {
    /// Serves; the first start makes the database, CA, keys and admin token in DATA_DIR.
    Serve,
    /// Prints every setting with its effective value, and how hosts ask to join without an access key.
    Config,
    /// Manages bearer tokens for nmplan and CI.
    Token {
        #[command(subcommand)]
        verb: TokenVerb,
    },
    /// Takes the server off this host: removes its devices, routes and packet filter, and leaves DATA_DIR.
    Down,
    /// Holds a userspace WireGuard device; started by the server itself.
    #[command(hide = true)]
    Device {
        /// The interface.
        #[arg(long)]
        interface: String,
        /// The socket to answer on.
        #[arg(long)]
        socket: PathBuf,
    },
}

#[derive(Subcommand)]
enum TokenVerb {
    /// Creates a token and prints it, once.
    Create {
        /// What to call it, such as `ci` or `alice`; no two tokens have the same name.
        #[arg(long)]
        name: Option<Name>,
        /// What it may do: viewer, applier or admin.
        #[arg(long)]
        role: Role,
        /// The network that it is valid for; repeat it for several. Absent: all.
        #[arg(long)]
        network: Vec<NetworkName>,
        /// The project that it may apply, in all of its envs (acme) or in one (acme/prod); repeat it for
        /// several. Absent: all.
        #[arg(long, value_name = "PROJECT[/ENV]")]
        project: Vec<ProjectScope>,
        /// When it expires: a duration (30d) or a day (2027-03-01). Absent: never.
        #[arg(long)]
        expires: Option<Expiry>,
    },
    /// Lists the tokens: names, roles, networks and projects, never the tokens themselves.
    List,
    /// Revokes a token.
    Revoke {
        /// Its name or id, as `list` prints them.
        #[arg(value_name = "NAME|ID")]
        which: String,
    },
}

fn main() -> ExitCode {
    let args = match parse() {
        Ok(args) => args,
        Err(error) => {
            let _ = error.print();
            return if error.use_stderr() { ExitCode::FAILURE } else { ExitCode::SUCCESS };
        }
    };
    // gotatun logs every peer that comes and goes, and the log of a device only grows.
    let level = if matches!(args.verb, Some(Verb::Device { .. })) { "info,gotatun=warn" } else { "info" };
    systemd::start_log("NMSERVER_LOG", level);
    match run(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            systemd::print_error("nmserver", &*error);
            ExitCode::FAILURE
        }
    }
}

/// What was typed; the help names the settings.
fn parse() -> Result<Args, clap::Error> {
    let settings = format!(
        "Settings, in the environment or, in lower case, in the settings file (the environment wins):\n{}\n\
         NMSERVER_LOG=debug shows more of what it does (info by default).",
        config::reference()
    );
    let matches = Args::command()
        .after_help("`nmserver --help` names the settings.")
        .after_long_help(settings)
        .try_get_matches()?;
    Args::from_arg_matches(&matches)
}

fn run(args: Args) -> Result<(), Box<dyn std::error::Error>> {
    if let Some(Verb::Device { interface, socket }) = &args.verb {
        return Ok(netclient::device::process::run(interface, socket).map(drop)?);
    }
    let settings = config::load(args.config.as_deref(), |name| std::env::var(name).ok())?;
    let mut data = std::io::stdout().lock();
    match args.verb {
        None if DataDir::existing(&settings.data_dir)?.is_none() && on_terminal() => {
            settings.check_reached()?;
            Err(first_start_is_asked_for(&settings).into())
        }
        None | Some(Verb::Serve) => {
            drop(data);
            settings.check_reached()?;
            runtime()?.block_on(serve(settings))
        }
        Some(Verb::Down) => {
            let mut down = Down::default();
            let report = runtime()?.block_on(down::run(&settings.data_dir, &mut down));
            let mut text = String::new();
            match &report {
                Ok(report) => write!(text, "{report}")?,
                Err(_) => down::lines(&down, &mut text)?,
            }
            // It is done, whether or not anybody reads that.
            let _ = std::io::stderr().write_all(text.as_bytes());
            Ok(report.map(drop)?)
        }
        Some(Verb::Config) => {
            settings.check_reached()?;
            settings.lines().iter().try_for_each(|line| writeln!(data, "{line}"))?;
            if settings.agent_backend {
                write!(data, "{}", join_line(&settings))?;
            }
            Ok(())
        }
        Some(Verb::Token { verb }) => token(&settings, verb, &mut data),
        Some(Verb::Device { .. }) => unreachable!("it runs before the settings are read"),
    }
}

/// How hosts without an access key ask to join, as comments of a settings file.
fn join_line(settings: &Settings) -> String {
    let pin = DataDir::existing(&settings.data_dir)
        .and_then(|directory| directory.map_or(Ok(None), |directory| identity::pin(&directory)));
    match pin {
        Ok(Some(pin)) => format!(
            "\n# A host without an access key asks to join a network that has manual-approval:\n#\n\
             #   netclient join --server {} --pin {pin} -n NETWORK\n",
            settings.agent_address()
        ),
        Ok(None) => {
            "\n# How hosts ask to join without an access key stands here once the server has started.\n"
                .into()
        }
        Err(error) => format!(
            "\n# How hosts ask to join without an access key is not known: {}.\n",
            netclient::agent::error_chain(&error)
        ),
    }
}

fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()
}

/// Whether somebody types, who may have wanted to see what this program is.
fn on_terminal() -> bool {
    std::io::stdin().is_terminal() && std::io::stderr().is_terminal()
}

fn first_start_is_asked_for(settings: &Settings) -> String {
    format!(
        "no server has started here yet, so nothing was made. To make one, which keeps its database, CA, keys and admin \
         token in {directory} (DATA_DIR) and is reached at {host} (SERVER_HOST):\n\n    nmserver serve\n\n\
         `nmserver --help` names the commands and settings",
        directory = settings.data_dir.display(),
        host = settings.server_host
    )
}

async fn serve(settings: Settings) -> Result<(), Box<dyn std::error::Error>> {
    raise_file_limit();
    if DataDir::existing(&settings.data_dir)?.is_none() {
        tracing::info!(
            directory = %settings.data_dir.display(),
            "no server has started here yet: making a new one, with its database, CA, keys and admin token in this directory"
        );
    }
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let server = nmserver::open(settings.clone()).await?;
    let (rest, agents) = server.addresses();
    let agent_address = &server.service().info().agent_addresses[0];
    tracing::info!(
        rest = rest.map(tracing::field::display),
        agents = agents.map(tracing::field::display),
        agent_address,
        "serving"
    );
    systemd::ready();
    if server.first_start {
        print_next_steps(&settings);
    }
    let (end, shutdown) = tokio::sync::watch::channel(false);
    let ended = async move {
        tokio::select! { _ = interrupt.recv() => (), _ = terminate.recv() => () }
        tracing::info!("ending");
        end.send_replace(true);
    };
    tokio::join!(server.run(shutdown), ended);
    Ok(())
}

/// The next commands after a first start, ready to be copied.
fn print_next_steps(settings: &Settings) {
    let Settings { bind, api_port, data_dir, tls, .. } = settings;
    // It is to be copied, and may be used in any directory.
    let directory = std::path::absolute(data_dir).unwrap_or_else(|_| data_dir.clone());
    let file = |name: &str| word(&directory.join(name).display().to_string());
    let at = if bind.is_unspecified() { IpAddr::from([127, 0, 0, 1]) } else { *bind };
    let url = format!("{}://{}", if *tls { "https" } else { "http" }, SocketAddr::new(at, *api_port));
    let ca = if *tls { format!(" NMPLAN_CA={}", file("ca.pem")) } else { String::new() };
    let mut talk = std::io::stderr().lock();
    let _ = writeln!(
        talk,
        "\nThis is the first start. Keys, CA and admin token were created in {}.",
        directory.display()
    );
    if settings.agent_backend {
        let _ = writeln!(
            talk,
            "Agents will connect to {}; set SERVER_HOST if they reach this host by another name or address.",
            settings.agent_address()
        );
    }
    let _ = writeln!(talk, "\nNext, in the directory of your files:\n");
    let _ =
        writeln!(talk, "  export NMPLAN_SERVER={} NMPLAN_TOKEN_FILE={}{ca}", word(&url), file("admin.token"));
    let _ = writeln!(talk, "  nmplan init && nmplan plan\n");
}

/// Each agent holds a connection, so the limit of open files is the limit of agents.
fn raise_file_limit() {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let raised = rustix::process::Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = rustix::process::setrlimit(rustix::process::Resource::Nofile, raised) {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
}

fn token(
    settings: &Settings,
    verb: TokenVerb,
    data: &mut dyn Write,
) -> Result<(), Box<dyn std::error::Error>> {
    let mut store = open_store(&settings.data_dir)?;
    match verb {
        TokenVerb::Create { name, role, network, project, expires } => {
            let some = |empty: bool| !empty;
            let networks = some(network.is_empty()).then(|| network.into_iter().collect());
            let projects = some(project.is_empty()).then(|| project.into_iter().collect());
            let expires = expires.map(|expires| expires.moment(jiff::Timestamp::now()));
            tokens::create(&mut store, name, Grant { role, networks, projects }, expires, data)?;
        }
        TokenVerb::List => {
            write!(data, "{}", tokens::table(&store.tokens()?, jiff::Timestamp::now()))?;
        }
        TokenVerb::Revoke { which } => tokens::revoke(&mut store, &which)?,
    }
    Ok(())
}

/// The database of a server that has started, whether or not it runs now.
fn open_store(data_dir: &Path) -> Result<Sqlite, Box<dyn std::error::Error>> {
    let missing = || {
        format!(
            "no server has started in {} yet; start nmserver first (nmserver serve), or set DATA_DIR",
            data_dir.display()
        )
    };
    let directory = DataDir::existing(data_dir)?.ok_or_else(missing)?;
    Ok(Sqlite::open(&directory.database()?)?)
}
