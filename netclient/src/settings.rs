//! What the host's operator sets: `netclient.toml` in the agent's directory, and `NETCLIENT_*` variables,
//! which win.
//!
//! They override what a join would choose. An unknown setting or an invalid value is an error, never ignored.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use schema::scalars::{Endpoint, Name, Port};
use schema::settings::{self, Switch, read};

use crate::device::Kind;
use crate::outside::Mark;

/// What the operator set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The name to join under (`name`); absent: the host's name.
    pub name: Option<Name>,
    /// Where the others reach this host (`endpoint`); absent: where the server sees it.
    pub endpoint: Option<Endpoint>,
    /// The UDP port to listen on, 1 to 65535 (`port`); absent: the network's, or the next free one.
    pub port: Option<u16>,
    /// The name of the interface (`interface`); absent: `nm-` and the network's name.
    pub interface: Option<String>,
    /// Whether changes are pushed at once (`watch`, true); if not, they come with the next check-in.
    pub watch: bool,
    /// Whether the kernel may track connections (`connection_tracking`, true), as far as the agent has it do
    /// so. If not, the agent uses no packet filter: control traffic and tunnels are not kept outside of
    /// networks, and access rules cannot be enforced, so that only nodes that may open everything here are
    /// peers.
    pub connection_tracking: bool,
    /// The bit by which packets are marked that stay outside of networks (`mark`, 0x10): change it where
    /// another program uses that one.
    pub mark: Mark,
    /// Where devices of networks run that are created from now on (`device`, `kernel` or `userspace`);
    /// absent: in the kernel if that has WireGuard. The tunnel to the server has a process of its own in any
    /// case.
    pub device: Option<Kind>,
}

impl Default for Settings {
    /// What holds where the operator set nothing.
    fn default() -> Self {
        Self {
            name: None,
            endpoint: None,
            port: None,
            interface: None,
            watch: true,
            connection_tracking: true,
            mark: Mark::default(),
            device: None,
        }
    }
}

/// The settings with what they mean, for the program's help and for messages.
const NAMES: [(&str, &str); 8] = [
    ("name", "the name to join under [default: the host's name]"),
    ("endpoint", "HOST or HOST:PORT where the others reach this host [default: where the server sees it]"),
    ("port", "the UDP port to listen on, 1 to 65535 [default: the network's, or the next free one]"),
    ("interface", "the name of the interface [default: nm- and the network's name]"),
    ("watch", "on or off: whether changes are pushed at once, not with the next check-in [default: on]"),
    (
        "connection_tracking",
        "on or off: whether nftables keeps the agent's packets out of networks [default: on]",
    ),
    ("mark", "the bit that packets are marked with which stay outside of networks [default: 0x10]"),
    ("device", "kernel or userspace: where new devices run [default: kernel if that has WireGuard]"),
];

/// Every setting with its variable, its default and its meaning, for the program's help.
pub fn reference() -> String {
    let line = |(name, doc): &(&str, &str)| format!("  {}\n          {doc}\n", variable_of(name));
    NAMES.iter().map(line).collect()
}

/// The variable of a setting.
fn variable_of(name: &str) -> String {
    format!("NETCLIENT_{}", name.to_uppercase())
}

/// Why the settings are refused.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The file cannot be read.
    #[error("cannot read the settings in {path}; run this as root, or set NETCLIENT_DIR")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A value in the file, or a variable, is not valid.
    #[error(transparent)]
    Wrong(#[from] settings::SettingsError),
}

/// Reads the settings of a directory; the file may be missing, and an empty variable counts as unset.
pub fn load(
    directory: &Path,
    environment: impl Fn(&str) -> Option<String>,
) -> Result<Settings, SettingsError> {
    let path = directory.join("netclient.toml");
    let file = match std::fs::read_to_string(&path) {
        Ok(text) => {
            settings::parse(&path.display().to_string(), &text, &NAMES.map(|(name, _)| name.to_owned()))?
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => BTreeMap::new(),
        Err(source) => return Err(SettingsError::File { path, source }),
    };
    let value = |name: &'static str| {
        let variable = environment(&variable_of(name));
        variable.filter(|value| !value.is_empty()).or_else(|| file.get(name).cloned())
    };
    let default = Settings::default();
    Ok(Settings {
        name: read("name", value("name"))?,
        endpoint: read("endpoint", value("endpoint"))?,
        port: read("port", value("port"))?.map(|Port(port)| port),
        interface: value("interface"),
        watch: read("watch", value("watch"))?.map_or(default.watch, |Switch(on)| on),
        connection_tracking: read("connection_tracking", value("connection_tracking"))?
            .map_or(default.connection_tracking, |Switch(on)| on),
        mark: read("mark", value("mark"))?.unwrap_or(default.mark),
        device: read("device", value("device"))?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(file: &str, variables: &[(&str, &str)]) -> Result<Settings, SettingsError> {
        let directory = tempfile::tempdir().expect("a directory");
        std::fs::write(directory.path().join("netclient.toml"), file).expect("written");
        let variable =
            |name: &str| variables.iter().find(|(it, _)| *it == name).map(|(_, value)| (*value).to_owned());
        load(directory.path(), variable)
    }

    #[test]
    fn the_environment_wins_over_the_file() {
        let settings =
            with("port = 1000\nwatch = false\nname = \"db-1\"", &[("NETCLIENT_PORT", "2000")]).expect("good");
        assert_eq!((settings.port, settings.watch), (Some(2000), false));
        assert_eq!(settings.name.expect("it is set").as_str(), "db-1");
    }

    #[test]
    fn the_help_names_every_setting_with_its_default() {
        let text = reference();
        assert_eq!(text.matches(" [default: ").count(), NAMES.len(), "{text}");
        for (name, _) in NAMES {
            // Each is read: one that is unknown, or never asked for, would change nothing.
            let wrong = with("", &[(&variable_of(name), "A B")]);
            assert!(wrong.is_err() || name == "interface", "{name}");
            assert!(text.contains(&format!("  {}\n", variable_of(name))), "{name}: {text}");
        }
        let default = Settings::default();
        assert!(text.contains(&format!("[default: {}]", default.mark)), "{text}");
        assert!(default.watch && default.connection_tracking);
    }

    #[test]
    fn a_mark_may_be_written_as_programs_print_it() {
        let mark = |file, variables| with(file, variables).expect("it is valid").mark.bits();
        assert_eq!(mark("", &[]), 0x10);
        assert_eq!(mark("mark = 0x100", &[]), 0x100);
        assert_eq!(mark("mark = \"0x100\"", &[]), 0x100);
        assert_eq!(mark("mark = 0x100", &[("NETCLIENT_MARK", "0x200")]), 0x200);
    }

    #[test]
    fn an_invalid_value_is_reported() {
        for (name, value) in [
            ("PORT", "0"),
            ("WATCH", "maybe"),
            ("NAME", "A_B"),
            ("ENDPOINT", "a b"),
            ("MARK", "0x30"),
            ("DEVICE", "tun"),
        ] {
            let error =
                with("", &[(&format!("NETCLIENT_{name}"), value)]).expect_err("it is not valid").to_string();
            assert!(error.contains(&name.to_lowercase()) && error.contains(value), "{error}");
        }
        for (file, variables) in
            [("", &[("NETCLIENT_PORT", "0")][..]), ("port = 0", &[]), ("port = 65536", &[])]
        {
            let error = with(file, variables).expect_err("it is no port").to_string();
            assert!(error.ends_with(&format!(" is not valid: {}", Port::MEANS)), "{error}");
        }
        let error = with("prot = 1", &[]).expect_err("it is unknown").to_string();
        assert!(error.contains("did you mean \"port\"?"), "{error}");
        assert!(with("port = ", &[]).is_err_and(|error| error.to_string().contains("is not TOML")));
    }
}
