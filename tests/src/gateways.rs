//! A network with gateways, and what its nodes see of them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use nmplan::lab::{Agent, Host};
use socket2::{Domain, Socket, Type};

use crate::{Mesh, all_ping_all};

/// A network of these nodes, each with the addresses that end with its place; `body` is what else is declared.
/// They check in each second.
pub fn network(nodes: &[&str], body: &str) -> String {
    let named: Vec<_> = nodes.iter().map(|name| format!("{name:?}")).collect();
    let declared = nodes
        .iter()
        .zip(201..)
        .map(|(name, end)| format!("node {name:?} ipv4=\"10.40.0.{end}\" ipv6=\"fd40:40::{end}\"\n"));
    let (named, declared) = (named.join(" "), declared.collect::<String>());
    format!(
        r#"network "corp" {{
            ipv4 "10.40.0.0/16"; ipv6 "fd40:40::/64"; keepalive "5s"; check-in "1s"
            access-key "named" {{ for {named} }}
            {declared}
            {body}
        }}"#
    )
}

/// Agents that are in no network yet, whose hosts filter reverse paths strictly.
pub async fn agents<const N: usize>(mesh: &Mesh, names: [&str; N]) -> Vec<Agent> {
    let mut agents = Vec::new();
    for name in names {
        let agent = mesh.agent(name).await;
        filter_paths(agent.host(), "1");
        agents.push(agent);
    }
    agents
}

/// Has a host filter reverse paths strictly (1), or not at all (0).
///
/// # Panics
///
/// When the host has no such switches.
pub fn filter_paths(host: &Host, how: &str) {
    for interface in ["all", "default", "eth0"] {
        let path = format!("/proc/sys/net/ipv4/conf/{interface}/rp_filter");
        host.write(path, how).expect("it can be written");
    }
}

/// Agents that are in the network and know each other.
///
/// # Panics
///
/// When one cannot join, or does not reach another within 20 seconds.
pub async fn joined(mesh: &Mesh, mut agents: Vec<Agent>, text: &str) -> Vec<Agent> {
    let tokens = mesh.apply(text).await;
    for agent in &mut agents {
        agent.join(&tokens["corp/access-key/named"], &[]).await.expect("it joins");
        agent.start_daemon(&[]).expect("the agent starts");
    }
    all_ping_all(&agents, "corp").await;
    agents
}

/// Who a connection from a host to an address of another one comes from, as the other one sees it; absent: there
/// is none within two seconds.
///
/// # Panics
///
/// When port 80 is taken there.
pub fn seen_by(to: &Host, at: IpAddr, from: &Host) -> Option<IpAddr> {
    let any: IpAddr = if at.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let listener = to.within(|| {
        let socket =
            Socket::new(Domain::for_address(SocketAddr::new(at, 0)), Type::STREAM, None).expect("a socket");
        socket.set_reuse_address(true).expect("it is known");
        socket.bind(&SocketAddr::new(any, 80).into()).expect("the port is free");
        socket.listen(1).expect("it listens");
        TcpListener::from(socket)
    });
    let made = from.within(|| TcpStream::connect_timeout(&SocketAddr::new(at, 80), Duration::from_secs(2)));
    made.ok()?;
    let (_, seen) = listener.accept().expect("it came");
    Some(seen.ip().to_canonical())
}

/// Who carries a range for an agent, as it was sent; absent: nobody.
///
/// # Panics
///
/// When the agent does not answer.
pub async fn carrier(agent: &Agent, range: &str) -> Option<String> {
    let status = agent.status().await.expect("it answers");
    let reaches = status["networks"][0]["reaches"].as_array().cloned().unwrap_or_default();
    let found = reaches.into_iter().find(|reached| reached["ranges"].to_string().contains(range))?;
    found["via"].as_str().map(ToOwned::to_owned)
}
