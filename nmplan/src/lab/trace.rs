//! Which routers do packets from a host pass?
//!
//! As traceroute(8) does it: datagrams that may be passed on once, twice and so on (TTL, hop limit), of which the
//! router that may not pass one on any more says so by ICMP. Where nobody does, they have arrived, or are lost.

use std::io;
use std::mem::{size_of, zeroed};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsRawFd;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use socket2::{Domain, Socket, Type};

use super::Host;

/// How long a router may take to answer.
const ANSWER: Duration = Duration::from_millis(250);
/// Where datagrams are sent to: nothing listens there (traceroute's first port).
const PORT: u16 = 33_434;
/// "Time exceeded" (RFC 792, RFC 4443).
const EXCEEDED: [u8; 2] = [11, 3];

impl Host {
    /// The addresses of the routers that packets to an address pass, `most` at most, in order: those before the
    /// first that does not answer.
    ///
    /// # Errors
    ///
    /// When this computer does not have what a socket needs.
    pub async fn trace(&self, to: IpAddr, most: u8) -> io::Result<Vec<IpAddr>> {
        let sockets =
            self.within(|| (1..=most).map(|hops| socket(to, hops)).collect::<io::Result<Vec<_>>>())?;
        let traced = tokio::task::spawn_blocking(move || {
            let mut routers = Vec::new();
            for socket in &sockets {
                match router(socket, to)? {
                    Some(router) => routers.push(router),
                    None => break,
                }
            }
            Ok(routers)
        });
        traced.await.map_err(io::Error::other)?
    }
}

/// A socket whose datagrams are passed on less than so many times, and which keeps what routers say of them.
fn socket(to: IpAddr, hops: u8) -> io::Result<Socket> {
    let domain = if to.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
    let socket = Socket::new(domain, Type::DGRAM, None)?;
    socket.set_nonblocking(true)?;
    let (level, errors) = if to.is_ipv4() {
        socket.set_ttl_v4(hops.into())?;
        (libc::IPPROTO_IP, libc::IP_RECVERR)
    } else {
        socket.set_unicast_hops_v6(hops.into())?;
        (libc::IPPROTO_IPV6, libc::IPV6_RECVERR)
    };
    let on: libc::c_int = 1;
    let length = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the descriptor is open, and the value is an integer of the length that is given.
    #[expect(unsafe_code, reason = "neither socket2 nor rustix sets this option")]
    let set = unsafe { libc::setsockopt(socket.as_raw_fd(), level, errors, (&raw const on).cast(), length) };
    if set == 0 { Ok(socket) } else { Err(io::Error::last_os_error()) }
}

/// Sends a datagram; returns the router that did not pass it on. Absent: none says so.
fn router(socket: &Socket, to: IpAddr) -> io::Result<Option<IpAddr>> {
    // Where the host itself sends nothing, no router has anything to say.
    if socket.send_to(b"nmplan", &SocketAddr::new(to, PORT).into()).is_err() {
        return Ok(None);
    }
    let limit = Timespec::try_from(ANSWER).expect("it is short");
    poll(&mut [PollFd::new(socket, PollFlags::ERR)], Some(&limit))?;
    match error_of(socket) {
        Ok(report) => Ok(report),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error),
    }
}

/// The next error that was reported for a socket, if it is that a datagram was passed on too often: who says so.
fn error_of(socket: &Socket) -> io::Result<Option<IpAddr>> {
    let mut control = [0_u64; 64];
    let mut payload = [0_u8; 64];
    let mut part = libc::iovec { iov_base: payload.as_mut_ptr().cast(), iov_len: payload.len() };
    // SAFETY: a message header of zeros is one without parts.
    #[expect(unsafe_code, reason = "rustix reads no control messages of this kind")]
    let mut message: libc::msghdr = unsafe { zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control);
    // SAFETY: all buffers outlive the call, and their lengths are given.
    #[expect(unsafe_code, reason = "rustix reads no control messages of this kind")]
    let read = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_ERRQUEUE) };
    if read < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has filled the header and the control messages, which these macros walk within their
    // length. A message of these two kinds holds a report, which is followed by the address of its sender, of which
    // the length is checked.
    #[expect(unsafe_code, reason = "rustix reads no control messages of this kind")]
    unsafe {
        let mut at = libc::CMSG_FIRSTHDR(&raw const message);
        while let Some(header) = at.as_ref() {
            let of_v4 = (header.cmsg_level, header.cmsg_type) == (libc::IPPROTO_IP, libc::IP_RECVERR);
            let of_v6 = (header.cmsg_level, header.cmsg_type) == (libc::IPPROTO_IPV6, libc::IPV6_RECVERR);
            let report_length = size_of::<libc::sock_extended_err>();
            let address_length =
                if of_v4 { size_of::<libc::sockaddr_in>() } else { size_of::<libc::sockaddr_in6>() };
            let holds = header.cmsg_len >= libc::CMSG_LEN((report_length + address_length) as u32) as usize;
            if (of_v4 || of_v6) && holds {
                let data = libc::CMSG_DATA(at);
                let report: libc::sock_extended_err = data.cast::<libc::sock_extended_err>().read_unaligned();
                let sender = data.add(report_length);
                let from: IpAddr = if of_v4 {
                    let sender: libc::sockaddr_in = sender.cast::<libc::sockaddr_in>().read_unaligned();
                    Ipv4Addr::from(u32::from_be(sender.sin_addr.s_addr)).into()
                } else {
                    let sender: libc::sockaddr_in6 = sender.cast::<libc::sockaddr_in6>().read_unaligned();
                    Ipv6Addr::from(sender.sin6_addr.s6_addr).into()
                };
                return Ok((report.ee_type == EXCEEDED[usize::from(of_v6)]).then_some(from));
            }
            at = libc::CMSG_NXTHDR(&raw const message, at);
        }
    }
    Ok(None)
}
