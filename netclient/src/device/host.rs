//! What the host has already: interface names and UDP ports, asked of the kernel and never of a file, since
//! `/sys` may show another network namespace; its clock, its resolver, and its threads for calls that block.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use rustix::net::{AddressFamily, SocketType, netdevice, socket};
use rustix::time::{ClockId, clock_gettime};
use schema::scalars::{Endpoint, EndpointHost};
use socket2::{Domain, Socket, Type};

use super::Refusal;
use crate::outside::Mark;

/// The longest interface name (`IFNAMSIZ` of the kernel, less the ending NUL).
const LONGEST_NAME: usize = 15;

/// The time since the host was started, suspended or not (CLOCK_BOOTTIME; clock_gettime(2)): every process of
/// the host reads the same, and it cannot be set.
pub fn boottime() -> Duration {
    Duration::try_from(clock_gettime(ClockId::Boottime)).expect("time since the start is not negative")
}

/// Where an endpoint with a port may be right now, the better address first; empty: its name does not
/// resolve.
pub async fn resolve(endpoint: &Endpoint) -> Vec<SocketAddr> {
    if let Some(at) = endpoint.socket_addr() {
        return vec![at];
    }
    let (EndpointHost::Domain(domain), Some(port)) = (&endpoint.host, endpoint.port) else {
        return Vec::new();
    };
    let found = tokio::net::lookup_host((domain.to_string(), port)).await;
    found.into_iter().flatten().map(|at| SocketAddr::new(at.ip().to_canonical(), at.port())).collect()
}

/// Runs what blocks on a thread that may; its panic continues here.
pub async fn blocking<T: Send + 'static>(act: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(act)
        .await
        .unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
}

/// Has what a socket sends stay outside of every mesh. Without the privilege (CAP_NET_ADMIN, or CAP_NET_RAW
/// since Linux 5.17) it is left as it is: a command of another user reaches what the host's routes lead to.
pub fn stay_outside(socket: &Socket, mark: Mark) -> io::Result<()> {
    match socket.set_mark(mark.bits()) {
        Err(error) if error.kind() != io::ErrorKind::PermissionDenied => Err(error),
        _ => Ok(()),
    }
}

/// The address that this host would use towards another; absent: it has no route there, or only over
/// loopback. Nothing is sent: connecting a UDP socket only asks for the route.
pub fn source_towards(at: SocketAddr, mark: Mark) -> Option<IpAddr> {
    let any: SocketAddr = if at.is_ipv4() { ([0; 4], 0).into() } else { ([0; 16], 0).into() };
    let socket = Socket::new(Domain::for_address(at), Type::DGRAM, None).ok()?;
    stay_outside(&socket, mark).ok()?;
    socket.bind(&any.into()).ok()?;
    socket.connect(&at.into()).ok()?;
    Some(socket.local_addr().ok()?.as_socket()?.ip()).filter(|address| !address.is_loopback())
}

/// The source address of the default route of IPv4; absent: there is none.
pub fn default_source(mark: Mark) -> Option<IpAddr> {
    // An address for documentation (RFC 5737): only the default route leads there.
    source_towards(([192, 0, 2, 1], 9).into(), mark)
}

/// The index of the interface of that name in the caller's network namespace; absent: there is none.
pub fn link_index(interface: &str) -> io::Result<Option<u32>> {
    let socket = socket(AddressFamily::INET, SocketType::DGRAM, None)?;
    match netdevice::name_to_index(socket, interface) {
        Ok(index) => Ok(Some(index)),
        Err(rustix::io::Errno::NODEV) => Ok(None),
        Err(other) => Err(other.into()),
    }
}

/// Whether a device could be created, as far as that can be known beforehand: the privilege is there, the
/// name is valid and free, and so is the port, if one is requested.
pub fn check_free(interface: &str, port: Option<u16>) -> Result<(), Refusal> {
    check_name(interface)?;
    if !may_make() {
        return Err(Refusal::Denied { interface: interface.to_owned() });
    }
    free_name(interface)?;
    port.map_or(Ok(()), free_port)
}

/// Whether this process may create interfaces; true if the kernel does not say.
fn may_make() -> bool {
    let held = rustix::thread::capabilities(None);
    held.map_or(true, |sets| sets.effective.contains(rustix::thread::CapabilitySet::NET_ADMIN))
}

/// Whether a new interface may have the name: it is valid, and not in use.
pub(super) fn free_name(interface: &str) -> Result<(), Refusal> {
    check_name(interface)?;
    match link_index(interface) {
        Ok(None) => Ok(()),
        Ok(Some(_)) => Err(Refusal::NameTaken { interface: interface.to_owned() }),
        Err(error) => Err(Refusal::failed(format!("look up the interface {interface}"))(error)),
    }
}

/// Whether nothing listens on the port, on any address of either family.
pub(super) fn free_port(port: u16) -> Result<(), Refusal> {
    match bind(port) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => Err(Refusal::PortTaken { port }),
        Err(error) => Err(Refusal::failed(format!("listen on UDP port {port}"))(error)),
        Ok(_) => Ok(()),
    }
}

/// Narrower than the kernel (`dev_valid_name`): such names need no quoting anywhere, and `%` is a template to
/// TUN.
fn check_name(interface: &str) -> Result<(), Refusal> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let fits = (1..=LONGEST_NAME).contains(&interface.len());
    if fits && interface.bytes().all(plain) && !matches!(interface, "." | "..") {
        return Ok(());
    }
    Err(Refusal::NameInvalid { interface: interface.to_owned() })
}

/// As gotatun binds: one socket for both families, or IPv4 alone where IPv6 is off.
fn bind(port: u16) -> io::Result<Socket> {
    let both = Socket::new(Domain::IPV6, Type::DGRAM, None).and_then(|socket| {
        socket.set_only_v6(false)?;
        socket.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)).into())?;
        Ok(socket)
    });
    match both {
        Err(error) if no_ipv6(&error) => {
            let socket = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
            socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)).into())?;
            Ok(socket)
        }
        outcome => outcome,
    }
}

fn no_ipv6(error: &io::Error) -> bool {
    let absent = [rustix::io::Errno::AFNOSUPPORT, rustix::io::Errno::ADDRNOTAVAIL];
    absent.iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_the_kernel_or_a_shell_would_misread_are_refused() {
        for good in ["nm-corp", "wg0", "a", "fifteen-letters", "a.b_c"] {
            assert_eq!(check_name(good), Ok(()), "{good}");
        }
        for bad in ["", ".", "..", "sixteen-letters-", "a b", "a/b", "a:b", "nm%d", "n\0m", "nétz"] {
            let refusal = Refusal::NameInvalid { interface: bad.to_owned() };
            assert_eq!(check_name(bad), Err(refusal), "{bad:?}");
        }
    }

    #[test]
    fn the_loopback_has_an_index_and_an_unknown_name_has_none() {
        assert!(link_index("lo").expect("asking the kernel works").is_some());
        assert_eq!(link_index("no-such-link").expect("asking the kernel works"), None);
    }

    #[test]
    fn the_time_since_the_start_passes() {
        let before = boottime();
        assert!(before > Duration::ZERO);
        assert!(boottime() >= before);
    }

    #[test]
    fn a_taken_port_is_distinguished() {
        let holder = std::net::UdpSocket::bind(("0.0.0.0", 0)).expect("a free port is found");
        let port = holder.local_addr().expect("a bound socket has an address").port();
        assert_eq!(free_port(port), Err(Refusal::PortTaken { port }));
        drop(holder);
        assert_eq!(free_port(port), Ok(()));
    }
}
