//! The command line. Nothing happens here.

use std::path::PathBuf;

use clap::{Args as ClapArgs, Parser, Subcommand};
use proto::secret::Secret;
use schema::scalars::{Endpoint, Fingerprint, Name, NetworkName, Port};
use schema::settings::Switch;

use crate::directory;

/// The agent of declared WireGuard meshes: joins networks with a token and keeps this host up to date with
/// them.
#[derive(Debug, Parser)]
#[command(version, disable_help_subcommand = true, after_help = MORE, after_long_help = settings())]
pub struct Args {
    /// Where the agent keeps its state, private keys included.
    #[arg(long, global = true, env = "NETCLIENT_DIR", default_value = directory::DEFAULT, value_name = "DIR")]
    pub directory: PathBuf,
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

const MORE: &str = "`netclient --help` names the settings.";

fn settings() -> String {
    format!(
        "Settings, in the environment or, in lower case and without NETCLIENT_, in netclient.toml in the agent's directory \
         (the environment wins):\n{}\n\
         NETCLIENT_LOG=debug shows more of what it does (warn by default, and info of the daemon).",
        crate::settings::reference()
    )
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Brings up a tunnel to the server for control traffic; joins no network, and spends no use of the
    /// token.
    Register(Register),
    /// Joins a network and brings its tunnel up: with an access token, or with --server, --pin and --network
    /// where the network lets hosts wait until somebody approves them. A host that has joined already stays as it
    /// is.
    Join(Join),
    /// Reports to the server that this node is there, and applies what changed. A host that waits to be let in
    /// asks once more.
    Checkin(Which),
    /// Gets the whole View of this node from the server, and applies it.
    Pull(Which),
    /// Leaves a network, and removes everything of it; a host that waits to be let in waits no longer.
    Leave {
        /// The network.
        #[command(flatten)]
        which: Which,
        /// Leave even if the server cannot be reached, or what is stored of the network cannot be read; an
        /// admin has to remove the node then.
        #[arg(long)]
        force: bool,
    },
    /// Lists the networks of this host.
    List(Form),
    /// Shows each network's peers, and when their last handshakes were.
    Status(Form),
    /// Keeps every network of this host current, in the foreground; its tunnels stay when it ends.
    Daemon,
    /// Holds a userspace WireGuard device; started by the agent itself.
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

/// The token of a host.
#[derive(Debug, ClapArgs)]
pub struct TokenArg {
    /// The access token, `nmj_...`; @FILE reads it from a file, - from standard input. The file may be the
    /// one that `nmplan apply --keys-to FILE` writes.
    #[arg(short, long, env = "NETCLIENT_TOKEN", hide_env_values = true, value_name = "TOKEN")]
    pub token: Option<Secret<String>>,
    /// The access key whose token is used, where the file has several: NAME or NETWORK/access-key/NAME.
    #[arg(long, value_name = "KEY")]
    pub key: Option<String>,
}

/// The arguments of a registration.
#[derive(Debug, ClapArgs)]
pub struct Register {
    /// The token.
    #[command(flatten)]
    pub shown: TokenArg,
    /// How to print.
    #[command(flatten)]
    pub form: Form,
}

/// The arguments of a join.
#[derive(Debug, ClapArgs)]
pub struct Join {
    /// The token.
    #[command(flatten)]
    pub shown: TokenArg,
    /// The server, in place of a token: its address for agents. `nmserver config` prints the line to type.
    #[arg(long, value_name = "HOST:PORT", value_parser = server, requires = "pin", requires = "network")]
    pub server: Option<String>,
    /// The fingerprint of the server's signing key: only what that key signed is taken as the server's.
    #[arg(long, value_name = "sha256:...", requires = "server")]
    pub pin: Option<Fingerprint>,
    /// The network, with --server: a token names it.
    #[arg(short, long, requires = "server")]
    pub network: Option<NetworkName>,
    /// The name to join under. Absent: the host's name.
    #[arg(long)]
    pub name: Option<Name>,
    /// The name of the interface. Absent: nm- and the network's name.
    #[arg(long)]
    pub interface: Option<String>,
    /// The UDP port to listen on. Absent: the network's, or the next one that is free.
    #[arg(long, value_parser = str::parse::<Port>)]
    pub port: Option<Port>,
    /// Where the others reach this host: HOST or HOST:PORT. Absent: where the server sees it.
    #[arg(long)]
    pub endpoint: Option<Endpoint>,
    /// Whether a daemon is to keep the network current: with `off` it joins and exits without mentioning the
    /// daemon.
    #[arg(long, value_name = "on|off", default_value = "on", value_parser = str::parse::<Switch>)]
    pub daemon: Switch,
    /// How to print.
    #[command(flatten)]
    pub form: Form,
}

/// The network of a command.
#[derive(Debug, ClapArgs)]
pub struct Which {
    /// The network; optional if this host has only one.
    #[arg(short, long)]
    pub network: Option<NetworkName>,
    /// How to print.
    #[command(flatten)]
    pub form: Form,
}

/// How to print.
#[derive(Clone, Copy, Debug, ClapArgs)]
pub struct Form {
    /// Print JSON for programs.
    #[arg(long)]
    pub json: bool,
}

/// The port of the agents' service unless another one is typed.
const SERVER_PORT: u16 = 50_051;

/// The address of a server, with a port.
fn server(text: &str) -> Result<String, String> {
    let text = text.strip_prefix("https://").unwrap_or(text);
    let endpoint: Endpoint = text.strip_suffix('/').unwrap_or(text).parse()?;
    let port = endpoint.port.unwrap_or(SERVER_PORT);
    Ok(Endpoint { port: Some(port), ..endpoint }.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_typed_with_its_fingerprint_and_a_network() {
        let pin = schema::scalars::SigningKey([1; 32]).fingerprint().to_string();
        let typed = |more: &[&str]| Args::try_parse_from([&["netclient", "join"], more].concat());
        for (text, meant) in [
            ("nm.example.net", "nm.example.net:50051"),
            ("https://nm.example.net:443/", "nm.example.net:443"),
            ("192.0.2.1:50051", "192.0.2.1:50051"),
            ("[2001:db8::1]", "[2001:db8::1]:50051"),
        ] {
            let args = typed(&["--server", text, "--pin", &pin, "-n", "corp"]).expect("it is whole");
            assert!(
                matches!(&args.verb, Verb::Join(join) if join.server.as_deref() == Some(meant)),
                "{args:?}"
            );
        }
        for part in [
            &["--server", "nm.example.net"][..],
            &["--server", "nm.example.net", "--pin", &pin],
            &["--pin", &pin, "-n", "corp"],
            &["-t", "nmj_x", "-n", "corp"],
            &["--server", "nm.example.net", "--pin", "1234", "-n", "corp"],
            &["--server", "http://nm.example.net", "--pin", &pin, "-n", "corp"],
        ] {
            assert!(typed(part).is_err(), "{part:?}");
        }
    }

    #[test]
    fn a_port_that_is_none_is_refused_in_the_words_of_the_settings() {
        for port in ["0", "65536", "x"] {
            let refused = Args::try_parse_from(["netclient", "join", "-t", "nmj_x", "--port", port]);
            let refused = refused.expect_err("it is no port").to_string();
            assert!(refused.contains(&format!("'{port}' for '--port <PORT>': {}", Port::MEANS)), "{refused}");
        }
    }

    #[test]
    fn the_token_that_was_typed_is_never_printed() {
        let args =
            Args::try_parse_from(["netclient", "join", "-t", "nmj_marked"]).expect("it is a command line");
        assert!(
            matches!(&args.verb, Verb::Join(join) if join.shown.token.as_ref().is_some_and(|token| token.expose() == "nmj_marked"))
        );
        assert!(!format!("{args:?}").contains("marked"), "{args:?}");
    }
}
