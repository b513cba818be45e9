//! How does an external client run in the lab?
//!
//! A host with what `nmplan client conf` writes and no agent: our own userspace device, which is configured through
//! WireGuard's own protocol (<https://www.wireguard.com/xplatform/>), and what wg-quick(8) does with addresses and
//! routes. Names resolve nowhere in the lab, so `DNS` is left out.

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use proto::secret::Secret;
use schema::scalars::WireGuardKey;
use tokio::time::Instant;

use super::wiring::ip;
use super::{Error, Host, Process, Programs, Underlay, system};
use crate::client::PrivateKey;

/// The name of its interface.
const INTERFACE: &str = "wg0";
/// How long its device may take to start.
const START: Duration = Duration::from_secs(10);
/// What an interface takes where the configuration sets no MTU: what fits an Ethernet of 1500 bytes with IPv6
/// outside (wg-quick(8)).
const MTU: u16 = 1_420;

/// An external client, on a host of its own.
#[derive(Debug)]
pub struct Client {
    host: Host,
    addresses: Vec<IpAddr>,
    _device: Process,
}

impl Client {
    /// Makes the host and connects it as a configuration says.
    ///
    /// # Errors
    ///
    /// When the configuration is not one that wg-quick(8) reads, with an address as endpoint, or when its device
    /// does not start.
    pub async fn start(
        underlay: &Underlay,
        programs: &Programs,
        name: &str,
        configuration: &Secret<String>,
    ) -> Result<Self, Error> {
        let wanted = Wanted::read(configuration.expose())
            .ok_or_else(|| Error::Refused(format!("the configuration of {name} cannot be read")))?;
        let host = underlay.host(name).await?;
        let mut command = host.command(&programs.netclient);
        command.args(["device", "--interface", INTERFACE, "--socket", "/run/client.sock"]);
        let device = host.start("device", command).map_err(system("start netclient"))?;
        configure(&host, &wanted).await?;
        ip(Some(&host), &wanted.links(underlay.addresses())).await?;
        let addresses = wanted.addresses.iter().map(IpNet::addr).collect();
        Ok(Self { host, addresses, _device: device })
    }

    /// Its host.
    #[must_use]
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Its addresses in the network.
    #[must_use]
    pub fn addresses(&self) -> &[IpAddr] {
        &self.addresses
    }
}

/// What a configuration says.
struct Wanted {
    private_key: PrivateKey,
    addresses: Vec<IpNet>,
    mtu: u16,
    public_key: WireGuardKey,
    endpoint: SocketAddr,
    allowed_ips: Vec<IpNet>,
    keepalive: u32,
}

impl Wanted {
    /// Reads the fields of wg-quick(8).
    fn read(text: &str) -> Option<Self> {
        let field = |name: &str| {
            let mut fields = text.lines().filter_map(|line| line.split_once(" = "));
            fields.find(|(field, _)| *field == name).map(|(_, value)| value)
        };
        let ranges = |name: &str| -> Option<Vec<IpNet>> {
            field(name)?.split(", ").map(|range| range.parse().ok()).collect()
        };
        Some(Self {
            private_key: PrivateKey::of_text(field("PrivateKey")?.as_bytes())?,
            addresses: ranges("Address")?,
            mtu: field("MTU").map_or(Some(MTU), |mtu| mtu.parse().ok())?,
            public_key: field("PublicKey")?.parse().ok()?,
            endpoint: field("Endpoint")?.parse().ok()?,
            allowed_ips: ranges("AllowedIPs")?,
            keepalive: field("PersistentKeepalive").map_or(Some(0), |seconds| seconds.parse().ok())?,
        })
    }

    /// The request that configures the device.
    fn request(&self) -> Secret<String> {
        let Self { private_key, addresses: _, mtu: _, public_key, endpoint, allowed_ips, keepalive } = self;
        let mut text = format!(
            "set=1\nprivate_key={}\nreplace_peers=true\npublic_key={}\nendpoint={endpoint}\n\
             persistent_keepalive_interval={keepalive}\nreplace_allowed_ips=true\n",
            hexadecimal(private_key.bytes()),
            hexadecimal(&public_key.0),
        );
        for range in allowed_ips {
            let _ = writeln!(text, "allowed_ip={range}");
        }
        Secret::new(text + "\n")
    }

    /// The commands of ip(8) that wg-quick(8) gives. What is sent to the endpoint stays outside of the tunnel by a
    /// route of its own, since this host needs nothing else outside.
    fn links(&self, (v4, v6): (impl Into<IpAddr>, impl Into<IpAddr>)) -> String {
        let Self { addresses, mtu, endpoint, allowed_ips, .. } = self;
        let router = if endpoint.is_ipv4() { v4.into() } else { v6.into() };
        let mut lines = format!("route add {} via {router} dev eth0 onlink\n", endpoint.ip());
        for address in addresses {
            let dad = if address.addr().is_ipv6() { " nodad" } else { "" };
            let _ = writeln!(lines, "addr add {address} dev {INTERFACE}{dad}");
        }
        let _ = writeln!(lines, "link set {INTERFACE} mtu {mtu} up");
        for range in allowed_ips {
            let _ = writeln!(lines, "route replace {range} dev {INTERFACE}");
        }
        lines
    }
}

fn hexadecimal(bytes: &[u8; 32]) -> String {
    bytes.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

/// Sends the device its configuration, once it listens.
async fn configure(host: &Host, wanted: &Wanted) -> Result<(), Error> {
    let socket = PathBuf::from(format!("/run/wireguard/{INTERFACE}.sock"));
    let deadline = Instant::now() + START;
    loop {
        match host.within(|| UnixStream::connect(&socket)) {
            Ok(stream) => return exchange(stream, wanted).map_err(system("configure a client's device"))?,
            Err(error) if Instant::now() > deadline => return Err(system("reach a client's device")(error)),
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

fn exchange(mut stream: UnixStream, wanted: &Wanted) -> std::io::Result<Result<(), Error>> {
    stream.set_read_timeout(Some(START))?;
    stream.write_all(wanted.request().expose().as_bytes())?;
    let (mut answer, mut bytes) = (String::new(), [0; 256]);
    while !answer.ends_with("\n\n") {
        match stream.read(&mut bytes)? {
            0 => break,
            length => answer.push_str(&String::from_utf8_lossy(&bytes[..length])),
        }
    }
    let done = answer.trim() == "errno=0";
    Ok(if done {
        Ok(())
    } else {
        Err(Error::Refused(format!("a client's device answered: {}", answer.trim())))
    })
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use super::*;

    #[test]
    fn a_configuration_is_done_as_wg_quick_does() {
        let key = WireGuardKey([0x21; 32]);
        let text = format!(
            "[Interface]\nPrivateKey = {key}\nAddress = 10.40.0.2/32, fd40::2/128\nDNS = 10.40.0.53\nMTU = 1380\n\n[Peer]\n\
             PublicKey = {key}\nEndpoint = 198.18.0.3:51821\nAllowedIPs = 0.0.0.0/0, fd40::/64\nPersistentKeepalive = 25\n"
        );
        let wanted = Wanted::read(&text).expect("it reads");
        let hexadecimal = "21".repeat(32);
        assert_eq!(
            *wanted.request().expose(),
            format!(
                "set=1\nprivate_key={hexadecimal}\nreplace_peers=true\npublic_key={hexadecimal}\nendpoint=198.18.0.3:51821\n\
                 persistent_keepalive_interval=25\nreplace_allowed_ips=true\nallowed_ip=0.0.0.0/0\nallowed_ip=fd40::/64\n\n"
            )
        );
        assert_eq!(
            wanted.links((Ipv4Addr::new(198, 18, 0, 1), Ipv6Addr::LOCALHOST)),
            "route add 198.18.0.3 via 198.18.0.1 dev eth0 onlink\naddr add 10.40.0.2/32 dev wg0\n\
             addr add fd40::2/128 dev wg0 nodad\nlink set wg0 mtu 1380 up\nroute replace 0.0.0.0/0 dev wg0\n\
             route replace fd40::/64 dev wg0\n"
        );
        let by_name = text.replace("198.18.0.3:", "gw.example.net:");
        assert!(Wanted::read(&by_name).is_none() && Wanted::read("").is_none());
        let little = text.replace("MTU = 1380\n", "").replace("PersistentKeepalive = 25\n", "");
        assert_eq!(Wanted::read(&little).map(|wanted| (wanted.mtu, wanted.keepalive)), Some((MTU, 0)));
    }
}
