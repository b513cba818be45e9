//! Settings: environment over file over default, each read once at the start.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::Ipv4Net;
use netclient::device::default_source;
use netclient::outside::Mark;
use schema::rules::endpoints::refused_everywhere;
use schema::scalars::{Endpoint, EndpointHost, Name, Port, Seconds};
use schema::settings::{self, SettingsError, Switch};
use schema::world::ServerInfo;

use crate::core::name_files::Forward;
use crate::listen::Configured;

/// What a server listens on by default, and what it listens on if agents find it by an IPv6 address.
const ANY_IPV4: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
const ANY_OF_BOTH: IpAddr = IpAddr::V6(Ipv6Addr::UNSPECIFIED);

/// Everything that can be set. The names are those of Netmaker where it has them; in the file they are in
/// lower case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The public name or address that tokens carry (`SERVER_HOST`); by default `BIND` if agents connect to
    /// that one address, else the source address of the default route.
    pub server_host: String,
    /// Whether `server_host` is one: without the setting, and without a default route, it is loopback.
    pub has_host: bool,
    /// Where agents reach the gRPC service (`PUBLIC_GRPC`), if a proxy changes that; by default host and
    /// port.
    pub public_grpc: Option<String>,
    /// The address to listen on (`BIND`); by default all of IPv4, and all of both if `SERVER_HOST` is an IPv6
    /// address.
    pub bind: IpAddr,
    /// The TCP port of the REST API (`API_PORT`).
    pub api_port: u16,
    /// The TCP port of the agents' service (`GRPC_PORT`).
    pub grpc_port: u16,
    /// Whether the REST API is served (`REST_BACKEND`).
    pub rest_backend: bool,
    /// Whether agents are served (`AGENT_BACKEND`).
    pub agent_backend: bool,
    /// Where everything is stored (`DATA_DIR`).
    pub data_dir: PathBuf,
    /// Whether the server ends TLS itself (`TLS`).
    pub tls: bool,
    /// Whether a proxy in front ends TLS (`BEHIND_PROXY`).
    pub behind_proxy: bool,
    /// Whether agents may register for a tunnel to the server (`COMMS`).
    pub comms: bool,
    /// The range of the tunnels (`COMMS_RANGE`); its first address is the server's.
    pub comms_range: Ipv4Net,
    /// The UDP port of the tunnels; also the TCP port of the agents' service inside of them (`COMMS_PORT`).
    pub comms_port: u16,
    /// Where agents reach the tunnel's end (`PUBLIC_COMMS`), if a NAT changes that; by default host and port.
    pub public_comms: Option<String>,
    /// Whether the server's own host is a node of the networks that declare it (`CLIENT_MODE`).
    pub client_mode: bool,
    /// The name of that node (`CLIENT_NAME`).
    pub client_name: Name,
    /// Whether files for a name server are written (`DNS_MODE`).
    pub dns_mode: bool,
    /// Which name servers that one asks for names outside of the networks (`DNS_FORWARD`).
    pub dns_forward: Forward,
    /// The name servers that members are given (`COREDNS_ADDR`).
    pub coredns_addr: BTreeSet<IpAddr>,
    /// How much clients may take up.
    pub clients: Configured,
}

/// The settings with what they mean, for `nmserver config`, its help, and messages.
const NAMES: &[(&str, &str)] = &[
    ("SERVER_HOST", "the public name or address that tokens carry"),
    ("PUBLIC_GRPC", "host:port where agents reach the gRPC service, if a proxy changes it"),
    ("BIND", "the address to listen on; :: is IPv4 as well"),
    ("API_PORT", "the port of the REST API"),
    ("GRPC_PORT", "the port of the agents' service"),
    ("REST_BACKEND", "on or off: whether the REST API is served"),
    ("AGENT_BACKEND", "on or off: whether agents are served"),
    ("DATABASE", "the engine: sqlite"),
    ("DATA_DIR", "where everything is stored"),
    ("TLS", "on or off: whether the server ends TLS itself"),
    ("BEHIND_PROXY", "on or off: whether a proxy in front ends TLS"),
    ("COMMS", "on or off: whether agents may register for a tunnel to the server"),
    ("COMMS_RANGE", "the IPv4 range of the tunnels; no network may overlap it"),
    ("COMMS_PORT", "the UDP port of the tunnels, and the TCP port of the agents' service inside of them"),
    ("PUBLIC_COMMS", "host:port where agents reach the tunnels' end, if a NAT changes it"),
    ("CLIENT_MODE", "on or off: whether this host is a node of the networks that declare it"),
    ("CLIENT_NAME", "the name of that node"),
    ("DNS_MODE", "on or off: whether files for CoreDNS are written, in dns/ in DATA_DIR"),
    (
        "DNS_FORWARD",
        "the name servers that it asks for other names: addresses, a file that names them, or off",
    ),
    (
        "COREDNS_ADDR",
        "the addresses of that CoreDNS, for members to ask for names of their networks; empty: none",
    ),
    ("API_CONNECTIONS", "the most connections to the REST API, 4 to 1000000"),
    (
        "GRPC_CONNECTIONS",
        "the most connections to the agents' service, and as many again in the tunnels, 4 to 1000000",
    ),
    (
        "ANONYMOUS_CONNECTIONS",
        "how many of each may be without a login, at most half of them; beyond that the oldest gives way",
    ),
    ("CLIENT_TIMEOUT", "how long a client may take for TLS, a first request, or without progress: 1s to 5m"),
    ("MAX_BODY", "the largest body of a REST request, in MiB: 1 to 1024"),
];

/// Why the settings are refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the settings in {path}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A value in the file, or a variable, is not valid.
    #[error(transparent)]
    Wrong(#[from] SettingsError),
    /// Tokens would name an address that the server does not listen on.
    #[error(
        "agents would connect to {host} (SERVER_HOST), but BIND is {bind}, which no connection to {host} reaches; set \
         BIND to :: (IPv4 and IPv6), or PUBLIC_GRPC to where a proxy takes them"
    )]
    Unreached {
        /// What tokens would name.
        host: IpAddr,
        /// What is listened on.
        bind: IpAddr,
    },
    /// Tokens would name an address that only this host reaches.
    #[error(
        "agents would connect to SERVER_HOST, by default this host's address on its IPv4 default route, and it has none: wait for \
         the network, or set SERVER_HOST (127.0.0.1 to try the server on this host alone)"
    )]
    NoHost,
    /// The combination would send secrets unencrypted.
    #[error(
        "TLS=off would send tokens unencrypted; set BIND to 127.0.0.1, or BEHIND_PROXY=on if a proxy ends TLS"
    )]
    Open,
}

/// Reads the settings: from the environment given, else the file, else the defaults.
///
/// A file that was asked for must be there; the default one may be missing.
pub fn load(
    file: Option<&Path>,
    environment: impl Fn(&str) -> Option<String>,
) -> Result<Settings, ConfigError> {
    let default = Path::new("/etc/nmserver.toml");
    let path = file.unwrap_or(default);
    let from_file = match std::fs::read_to_string(path) {
        Ok(text) => parse(path, &text)?,
        Err(error) if file.is_none() && error.kind() == std::io::ErrorKind::NotFound => BTreeMap::new(),
        Err(source) => return Err(ConfigError::File { path: path.into(), source }),
    };
    // An empty variable counts as unset.
    let value = |name: &'static str| {
        environment(name)
            .filter(|value| !value.is_empty())
            .or_else(|| from_file.get(&name.to_lowercase()).cloned())
    };
    from_values(value, || default_source(Mark::default()))
}

fn parse(path: &Path, text: &str) -> Result<BTreeMap<String, String>, ConfigError> {
    let names: Vec<_> = NAMES.iter().map(|(name, _)| name.to_lowercase()).collect();
    Ok(settings::parse(&path.display().to_string(), text, &names)?)
}

/// `own_address`: the source address of this host's default route, if it has one.
fn from_values(
    value: impl Fn(&'static str) -> Option<String>,
    own_address: impl FnOnce() -> Option<IpAddr>,
) -> Result<Settings, ConfigError> {
    let values = Values(value);
    values.read("DATABASE", engine)?;
    let (server_host, bind) = (values.read("SERVER_HOST", host)?, values.read("BIND", address)?);
    let public_grpc = values.read("PUBLIC_GRPC", host_and_port)?;
    let behind_proxy = values.read("BEHIND_PROXY", switch)?.unwrap_or(false);
    let agent_backend = values.read("AGENT_BACKEND", switch)?.unwrap_or(true);
    let direct = is_direct(agent_backend, public_grpc.as_deref(), behind_proxy);
    let one = bind.filter(|bind| direct && !bind.is_unspecified()).map(|bind| bind.to_string());
    let server_host = server_host.or(one).or_else(|| own_address().map(|address| address.to_string()));
    let has_host = server_host.is_some();
    let server_host = server_host.unwrap_or_else(|| Ipv4Addr::LOCALHOST.to_string());
    let all = if server_host.parse::<Ipv6Addr>().is_ok() { ANY_OF_BOTH } else { ANY_IPV4 };
    let settings = Settings {
        server_host,
        has_host,
        public_grpc,
        bind: bind.unwrap_or(all),
        api_port: values.read("API_PORT", port)?.unwrap_or(8081),
        grpc_port: values.read("GRPC_PORT", port)?.unwrap_or(50_051),
        rest_backend: values.read("REST_BACKEND", switch)?.unwrap_or(true),
        agent_backend,
        data_dir: values.read("DATA_DIR", str::parse)?.unwrap_or_else(|| "/var/lib/nmserver".into()),
        tls: values.read("TLS", switch)?.unwrap_or(true),
        behind_proxy,
        comms: values.read("COMMS", switch)?.unwrap_or(true),
        comms_range: values.read("COMMS_RANGE", comms_range)?.unwrap_or(ServerInfo::DEFAULT_COMMS_RANGE),
        comms_port: values.read("COMMS_PORT", port)?.unwrap_or(50_555),
        public_comms: values.read("PUBLIC_COMMS", host_and_port)?,
        client_mode: values.read("CLIENT_MODE", switch)?.unwrap_or(true),
        client_name: values
            .read("CLIENT_NAME", str::parse)?
            .unwrap_or_else(|| ServerInfo::DEFAULT_OWN_NODE.parse().expect("it is a name")),
        dns_mode: values.read("DNS_MODE", switch)?.unwrap_or(true),
        dns_forward: values.read("DNS_FORWARD", str::parse)?.unwrap_or_default(),
        coredns_addr: values.read("COREDNS_ADDR", resolvers)?.unwrap_or_default(),
        clients: clients(&values)?,
    };
    check(&settings)?;
    Ok(settings)
}

/// The values of settings, by their names.
struct Values<F>(F);

impl<F: Fn(&'static str) -> Option<String>> Values<F> {
    /// The value of a setting; nothing if it is not set. The error of `read` says what would be valid.
    fn read<T, E: Display>(
        &self,
        name: &'static str,
        read: impl FnOnce(&str) -> Result<T, E>,
    ) -> Result<Option<T>, SettingsError> {
        let Some(value) = self.0(name) else { return Ok(None) };
        read(&value).map(Some).map_err(|why| SettingsError::Value { name, value, why: why.to_string() })
    }
}

fn clients(values: &Values<impl Fn(&'static str) -> Option<String>>) -> Result<Configured, SettingsError> {
    let Configured { api_connections, grpc_connections, anonymous_connections, client_timeout, max_body } =
        Configured::default();
    Ok(Configured {
        api_connections: values.read("API_CONNECTIONS", connections)?.unwrap_or(api_connections),
        grpc_connections: values.read("GRPC_CONNECTIONS", connections)?.unwrap_or(grpc_connections),
        anonymous_connections: values
            .read("ANONYMOUS_CONNECTIONS", connections)?
            .unwrap_or(anonymous_connections),
        client_timeout: values.read("CLIENT_TIMEOUT", client_timeout_of)?.unwrap_or(client_timeout),
        max_body: values.read("MAX_BODY", body)?.unwrap_or(max_body),
    })
}

/// Checks the settings together.
fn check(settings: &Settings) -> Result<(), ConfigError> {
    if settings.comms && [settings.api_port, settings.grpc_port].contains(&settings.comms_port) {
        let why = "API_PORT or GRPC_PORT uses it, and it is a TCP port as well".into();
        let value = settings.comms_port.to_string();
        return Err(SettingsError::Value { name: "COMMS_PORT", value, why }.into());
    }
    if settings.rest_backend && settings.agent_backend && settings.api_port == settings.grpc_port {
        let value = settings.api_port.to_string();
        return Err(
            SettingsError::Value { name: "API_PORT", value, why: "GRPC_PORT is the same".into() }.into()
        );
    }
    if !settings.tls && !settings.bind.is_loopback() && !settings.behind_proxy {
        return Err(ConfigError::Open);
    }
    Ok(())
}

/// Whether agents connect to what the server listens on: a proxy in front may listen on anything.
fn is_direct(agent_backend: bool, public_grpc: Option<&str>, behind_proxy: bool) -> bool {
    agent_backend && public_grpc.is_none() && !behind_proxy
}

/// Whether a connection to `host` may reach what listens on `bind`: a NAT translates neither from nor to
/// loopback, nor between the families.
fn may_reach(host: IpAddr, bind: IpAddr) -> bool {
    let same_family = bind == ANY_OF_BOTH || host.is_ipv4() == bind.is_ipv4();
    same_family && (bind.is_unspecified() || host.is_loopback() == bind.is_loopback())
}

fn engine(text: &str) -> Result<(), &'static str> {
    if text == "sqlite" { Ok(()) } else { Err("the only engine is sqlite") }
}

fn switch(text: &str) -> Result<bool, &'static str> {
    text.parse().map(|Switch(on)| on)
}

fn port(text: &str) -> Result<u16, &'static str> {
    text.parse().map(|Port(port)| port)
}

fn connections(text: &str) -> Result<usize, &'static str> {
    text.parse()
        .ok()
        .filter(|number| (4..=1_000_000).contains(number))
        .ok_or("write a number from 4 to 1000000")
}

fn client_timeout_of(text: &str) -> Result<Duration, &'static str> {
    let good = |seconds: &Seconds| (1..=300).contains(&seconds.0);
    let seconds = text.parse().ok().filter(good).ok_or("write a duration from 1s to 5m")?;
    Ok(Duration::from_secs(seconds.0.into()))
}

fn body(text: &str) -> Result<usize, &'static str> {
    let mebibytes = text.parse().ok().filter(|number| (1..=1_024).contains(number));
    mebibytes.map(|number: usize| number << 20).ok_or("write a number of MiB from 1 to 1024")
}

fn address(text: &str) -> Result<IpAddr, &'static str> {
    text.parse().map_err(|_| "write an IP address")
}

/// Addresses of name servers that members reach: each is asked on port 53.
fn resolvers(text: &str) -> Result<BTreeSet<IpAddr>, String> {
    let one = |text: &str| {
        let address: IpAddr = text.parse().map_err(|_| {
            format!("{text:?} is no address; write one or several, with commas between: 10.40.0.1, fd40::1")
        })?;
        match refused_everywhere(address) {
            Some(why) => Err(format!("members cannot use {address}: {why}")),
            None => Ok(address),
        }
    };
    text.split(',').map(str::trim).filter(|text| !text.is_empty()).map(one).collect()
}

fn host(text: &str) -> Result<String, String> {
    match text.parse::<Endpoint>() {
        Ok(endpoint) if endpoint.port.is_none() => public(&endpoint).map(|()| endpoint.host.to_string()),
        Ok(_) | Err(_) => Err("write a name or an address, without a port".into()),
    }
}

/// Whether an endpoint is of use to agents. Loopback will do where they run on its own
/// host.
fn public(endpoint: &Endpoint) -> Result<(), String> {
    match &endpoint.host {
        EndpointHost::Address(address) if !address.is_loopback() => match refused_everywhere(*address) {
            Some(why) => {
                Err(format!("agents cannot use it: {why}; write the name or the address that this host has"))
            }
            None => Ok(()),
        },
        EndpointHost::Address(_) | EndpointHost::Domain(_) => Ok(()),
    }
}

fn host_and_port(text: &str) -> Result<String, String> {
    match text.parse::<Endpoint>() {
        Ok(endpoint) if endpoint.port.is_some() => public(&endpoint).map(|()| endpoint.to_string()),
        Ok(_) => Err("write host:port, an IPv6 address in brackets".into()),
        Err(why) => Err(format!("{why}; write host:port, an IPv6 address in brackets")),
    }
}

/// A range with room for the server and an agent, whose addresses unicast packets may have as their source.
fn comms_range(text: &str) -> Result<Ipv4Net, &'static str> {
    let range: Ipv4Net = text.parse().map_err(|_| "write an IPv4 range like 10.101.0.0/16")?;
    if range.prefix_len() > 30 {
        return Err("it has no room for the server and an agent; use a prefix of at most 30");
    }
    let address = range.network();
    if address.is_loopback() || address.is_multicast() || address.is_link_local() || range.prefix_len() < 8 {
        return Err("hosts cannot have its addresses; use one like 10.101.0.0/16");
    }
    Ok(range.trunc())
}

/// Every setting with its default and its meaning, for the program's help.
pub fn reference() -> String {
    // What follows from this host, or from another setting, is described.
    let described = |name: &str| match name {
        "SERVER_HOST" => Some(
            "BIND if that is one address and agents connect to it, else this host's on its IPv4 default route",
        ),
        "BIND" => Some("0.0.0.0, or :: if SERVER_HOST is an IPv6 address"),
        "PUBLIC_GRPC" => Some("SERVER_HOST:GRPC_PORT"),
        "PUBLIC_COMMS" => Some("SERVER_HOST:COMMS_PORT"),
        _ => None,
    };
    let defaults = from_values(|name| (name == "SERVER_HOST").then(|| "127.0.0.1".to_owned()), || None);
    let values = defaults.expect("the defaults are good").values();
    let line = |((name, doc), value): (&(&str, &str), String)| {
        format!("  {name}\n          {doc} [default: {}]\n", described(name).unwrap_or(&value))
    };
    NAMES.iter().zip(values).map(line).collect()
}

impl Settings {
    /// Checks that agents reach what will be listened on by the address that tokens name: for those who serve
    /// with these settings.
    pub fn check_reached(&self) -> Result<(), ConfigError> {
        if self.agent_backend && self.public_grpc.is_none() && !self.has_host {
            return Err(ConfigError::NoHost);
        }
        if !is_direct(self.agent_backend, self.public_grpc.as_deref(), self.behind_proxy) {
            return Ok(());
        }
        match self.server_host.parse::<IpAddr>() {
            Ok(host) if !may_reach(host, self.bind) => Err(ConfigError::Unreached { host, bind: self.bind }),
            // A name may be either.
            Ok(_) | Err(_) => Ok(()),
        }
    }

    /// The address by which agents reach the server.
    pub fn agent_address(&self) -> String {
        self.public_grpc.clone().unwrap_or_else(|| self.own_address(self.grpc_port))
    }

    fn own_address(&self, port: u16) -> String {
        match self.server_host.parse::<Ipv6Addr>() {
            Ok(address) => format!("[{address}]:{port}"),
            Err(_) => format!("{}:{port}", self.server_host),
        }
    }

    /// The address by which agents reach the end of their tunnels.
    pub fn comms_address(&self) -> String {
        self.public_comms.clone().unwrap_or_else(|| self.own_address(self.comms_port))
    }

    /// The names by which agents and admins may connect: what its certificate must name.
    pub fn hosts(&self) -> Vec<&str> {
        let public = self.public_grpc.as_deref().and_then(|at| at.rsplit_once(':')).map(|(host, _)| host);
        let public = public.map(|host| host.trim_start_matches('[').trim_end_matches(']'));
        [self.server_host.as_str()].into_iter().chain(public).collect()
    }

    /// The names and addresses by which agents find the server: the hosts of SERVER_HOST, PUBLIC_GRPC and
    /// PUBLIC_COMMS.
    pub fn public_hosts(&self) -> BTreeSet<String> {
        let comms = self.comms.then(|| self.comms_address());
        let at = [Some(self.agent_address()), comms, Some(self.server_host.clone())];
        let endpoints = at.iter().flatten().filter_map(|at| at.parse::<Endpoint>().ok());
        endpoints.map(|endpoint| endpoint.host.to_string()).collect()
    }

    /// The settings as lines of a file that sets them.
    pub fn lines(&self) -> Vec<String> {
        let line = |((name, doc), value): (&(&str, &str), String)| {
            format!("{:<36} # {doc}", format!("{} = {value:?}", name.to_lowercase()))
        };
        NAMES.iter().zip(self.values()).map(line).collect()
    }

    /// The values of the settings, in the order of their names.
    fn values(&self) -> [String; NAMES.len()] {
        let switch = |on| if on { "on" } else { "off" }.to_owned();
        [
            self.server_host.clone(),
            self.agent_address(),
            self.bind.to_string(),
            self.api_port.to_string(),
            self.grpc_port.to_string(),
            switch(self.rest_backend),
            switch(self.agent_backend),
            "sqlite".into(),
            self.data_dir.display().to_string(),
            switch(self.tls),
            switch(self.behind_proxy),
            switch(self.comms),
            self.comms_range.to_string(),
            self.comms_port.to_string(),
            self.comms_address(),
            switch(self.client_mode),
            self.client_name.to_string(),
            switch(self.dns_mode),
            self.dns_forward.to_string(),
            self.coredns_addr.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
            self.clients.api_connections.to_string(),
            self.clients.grpc_connections.to_string(),
            self.clients.anonymous_connections.to_string(),
            format!("{}s", self.clients.client_timeout.as_secs()),
            (self.clients.max_body >> 20).to_string(),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The address of the host on its default route.
    const OWN: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 9));

    fn with(values: &[(&str, &str)]) -> Result<Settings, ConfigError> {
        let value = |name| values.iter().find(|(it, _)| *it == name).map(|(_, value)| (*value).to_owned());
        from_values(value, || Some(OWN))
    }

    #[test]
    fn the_environment_wins_over_the_file_and_the_file_over_the_default() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("nmserver.toml");
        std::fs::write(&path, "api_port = 1000\ngrpc_port = \"2000\"\ntls = false\nbind = \"127.0.0.1\"")
            .expect("written");
        let settings = load(Some(&path), |name| (name == "API_PORT").then(|| "3000".into())).expect("good");
        assert_eq!((settings.api_port, settings.grpc_port, settings.tls), (3000, 2000, false));
        assert!(settings.rest_backend);
    }

    #[test]
    fn an_invalid_value_is_reported() {
        for (name, value) in [
            ("API_PORT", "0"),
            ("GRPC_PORT", "x"),
            ("BIND", "here"),
            ("TLS", "maybe"),
            ("DATABASE", "db2"),
            ("SERVER_HOST", "a b"),
            ("SERVER_HOST", "nm.example.net:50051"),
            ("SERVER_HOST", "0.0.0.0"),
            ("PUBLIC_GRPC", "169.254.1.1:443"),
            ("PUBLIC_COMMS", "[::]:50555"),
            ("PUBLIC_GRPC", "nm.example.net"),
            ("PUBLIC_COMMS", "nm.example.net"),
            ("COMMS_RANGE", "fd00::/64"),
            ("COMMS_RANGE", "10.101.0.0/31"),
            ("COMMS_RANGE", "127.0.0.0/16"),
            ("COMMS_PORT", "70000"),
            ("COMMS_PORT", "8081"),
            ("CLIENT_NAME", "A B"),
            ("DNS_MODE", "always"),
            ("DNS_FORWARD", "dns.example.net"),
            ("COREDNS_ADDR", "ns.example.net"),
            ("COREDNS_ADDR", "10.40.0.1, 127.0.0.1"),
            ("COREDNS_ADDR", "10.40.0.1:53"),
            ("API_CONNECTIONS", "3"),
            ("GRPC_CONNECTIONS", "many"),
            ("ANONYMOUS_CONNECTIONS", "-1"),
            ("CLIENT_TIMEOUT", "0s"),
            ("CLIENT_TIMEOUT", "6m"),
            ("MAX_BODY", "0"),
            ("MAX_BODY", "1025"),
        ] {
            let error = with(&[(name, value)]).expect_err("it is not valid").to_string();
            assert!(error.contains(name) && error.contains(value), "{error}");
        }
    }

    #[test]
    fn a_port_that_is_none_is_refused_in_the_same_words_by_every_setting() {
        for (name, value) in [
            ("API_PORT", "0"),
            ("GRPC_PORT", "65536"),
            ("COMMS_PORT", "x"),
            ("PUBLIC_GRPC", "nm.example.net:0"),
            ("PUBLIC_COMMS", "[2001:db8::1]:65536"),
        ] {
            let error = with(&[(name, value)]).expect_err("it is no port").to_string();
            assert!(error.contains(&format!("{name}={value:?} is not valid: {}", Port::MEANS)), "{error}");
        }
    }

    #[test]
    fn the_certificate_is_to_name_what_tokens_carry() {
        let settings =
            with(&[("SERVER_HOST", "2001:db8::1"), ("PUBLIC_GRPC", "[2001:db8::2]:443")]).expect("good");
        assert_eq!(settings.hosts(), ["2001:db8::1", "2001:db8::2"]);
        assert_eq!(settings.agent_address(), "[2001:db8::2]:443");
    }

    #[test]
    fn a_bracketed_address_is_the_address() {
        let settings = with(&[("SERVER_HOST", "[2001:db8::1]")]).expect("good");
        assert_eq!(
            (settings.hosts(), &*settings.agent_address()),
            (vec!["2001:db8::1"], "[2001:db8::1]:50051")
        );
    }

    #[test]
    fn the_server_is_reached_by_each_host_that_a_setting_names() {
        let values = [
            ("SERVER_HOST", "nm.example.net"),
            ("PUBLIC_GRPC", "[2001:db8::2]:443"),
            ("PUBLIC_COMMS", "192.0.2.1:50555"),
        ];
        let settings = with(&values).expect("good");
        let expected = ["192.0.2.1", "2001:db8::2", "nm.example.net"].map(str::to_owned);
        assert_eq!(settings.public_hosts(), expected.into());
    }

    #[test]
    fn a_mistyped_setting_is_reported() {
        let error = parse(Path::new("x.toml"), "api_prot = 1").expect_err("it is unknown").to_string();
        assert!(error.contains("did you mean \"api_port\"?"), "{error}");
    }

    #[test]
    fn what_tokens_name_is_what_is_listened_on() {
        let with = |values: &[(&str, &str)]| {
            let settings = with(values)?;
            settings.check_reached().map(|()| settings)
        };
        let bound = |values: &[(&str, &str)]| with(values).map(|settings| settings.bind.to_string());
        let v6 = ("SERVER_HOST", "2001:db8::1");
        assert_eq!(bound(&[("SERVER_HOST", "192.0.2.1")]).expect("good"), "0.0.0.0");
        assert_eq!(bound(&[v6]).expect("good"), "::", "of both families");
        for bind in ["::", "2001:db8::1"] {
            assert_eq!(bound(&[v6, ("BIND", bind)]).expect("good"), bind);
        }
        for (host, bind) in [
            ("2001:db8::1", "0.0.0.0"),
            ("::1", "127.0.0.1"),
            ("192.0.2.1", "2001:db8::1"),
            ("192.0.2.1", "127.0.0.1"),
            ("2001:db8::1", "::1"),
            ("127.0.0.1", "192.0.2.1"),
        ] {
            let values = [("SERVER_HOST", host), ("BIND", bind)];
            let refused = with(&values).expect_err("nobody would reach it").to_string();
            assert!([host, bind, "set BIND to ::"].iter().all(|part| refused.contains(part)), "{refused}");
            for proxied in
                [("PUBLIC_GRPC", "nm.example.net:443"), ("BEHIND_PROXY", "on"), ("AGENT_BACKEND", "off")]
            {
                assert!(with(&[values[0], values[1], proxied]).is_ok(), "{proxied:?}");
            }
        }
        assert!(with(&[("SERVER_HOST", "192.0.2.1"), ("BIND", "::")]).is_ok());
        for (host, bind) in [("192.0.2.1", "10.0.0.1"), ("127.0.0.1", "0.0.0.0"), ("127.0.0.1", "127.0.0.1")]
        {
            assert!(with(&[("SERVER_HOST", host), ("BIND", bind)]).is_ok(), "{host} {bind}");
        }
        for bind in ["127.0.0.1", "2001:db8::1"] {
            let named = with(&[("BIND", bind)]).expect("it is the default").server_host;
            assert_eq!(named, bind, "what is listened on is what tokens name");
            let proxied = with(&[("BIND", bind), ("BEHIND_PROXY", "on")]).expect("good").server_host;
            assert_eq!(proxied, OWN.to_string(), "a proxy listens elsewhere");
        }
        assert!(
            with(&[("SERVER_HOST", "nm.example.net"), ("BIND", "2001:db8::1")]).is_ok(),
            "a name may be either"
        );
    }

    #[test]
    fn without_a_route_nothing_is_served_under_an_address_that_only_this_host_reaches() {
        let without = |values: &[(&str, &str)]| {
            let value =
                |name| values.iter().find(|(it, _)| *it == name).map(|(_, value)| (*value).to_owned());
            from_values(value, || None).expect("good").check_reached()
        };
        for set in [&[][..], &[("BEHIND_PROXY", "on")]] {
            assert!(matches!(without(set), Err(ConfigError::NoHost)), "tokens name it: {set:?}");
        }
        for set in
            [("SERVER_HOST", "127.0.0.1"), ("BIND", "127.0.0.1"), ("PUBLIC_GRPC", "nm.example.net:443")]
        {
            assert!(without(&[set]).is_ok(), "{set:?}");
        }
    }

    #[test]
    fn the_help_names_every_setting_with_its_default() {
        let text = reference();
        for (name, doc) in NAMES {
            assert!(text.contains(&format!("  {name}\n          {doc} [default: ")), "{name}: {text}");
        }
        for part in ["[default: 0.0.0.0, or :: if", "[default: BIND if"] {
            assert!(text.contains(part), "{part}: {text}");
        }
        for part in ["[default: /var/lib/nmserver]", "[default: SERVER_HOST:GRPC_PORT]", "[default: 50555]"] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }

    #[test]
    fn secrets_are_not_sent_unencrypted() {
        assert!(matches!(with(&[("TLS", "off")]), Err(ConfigError::Open)));
        assert!(with(&[("TLS", "off"), ("BIND", "127.0.0.1")]).is_ok());
        assert!(with(&[("TLS", "off"), ("BEHIND_PROXY", "on")]).is_ok());
    }
}
