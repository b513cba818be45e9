//! What the host's operator sets: `netclient.toml` in the agent's directory, and `NETCLIENT_*` variables,
//! which win.
//!
//! They override what a join would choose. An unknown setting or an invalid value is an error, never ignored.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use schema::scalars::{Endpoint, Name};
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
    /// networks.
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

const NAMES: [&str; 8] =
    ["name", "endpoint", "port", "interface", "watch", "connection_tracking", "mark", "device"];

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
        Ok(text) => settings::parse(&path.display().to_string(), &text, &NAMES.map(str::to_owned))?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => BTreeMap::new(),
        Err(source) => return Err(SettingsError::File { path, source }),
    };
    let value = |name: &'static str| {
        let variable = environment(&format!("NETCLIENT_{}", name.to_uppercase()));
        variable.filter(|value| !value.is_empty()).or_else(|| file.get(name).cloned())
    };
    let default = Settings::default();
    Ok(Settings {
        name: read("name", value("name"))?,
        endpoint: read("endpoint", value("endpoint"))?,
        port: read("port", value("port"))?.map(std::num::NonZeroU16::get),
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
        let error = with("prot = 1", &[]).expect_err("it is unknown").to_string();
        assert!(error.contains("did you mean \"port\"?"), "{error}");
        assert!(with("port = ", &[]).is_err_and(|error| error.to_string().contains("is not TOML")));
    }
}
