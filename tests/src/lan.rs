//! A network behind hosts of the lab, such as an office's.

use std::net::IpAddr;

use nmplan::lab::{Host, Underlay};

use crate::{addresses_are_its_own, run, run_all};

/// A network behind some hosts: 192.168.NUMBER.0/24 and fdNUMBER::/64. The hosts have the addresses that end with
/// 1 and on, in their order, by an interface called `lan`; one more host, which is in no mesh, has those that end
/// with 254, and its default routes lead to the first.
pub struct Lan {
    /// The host in it that is in no mesh.
    pub inner: Host,
    number: u8,
}

impl Lan {
    /// Connects hosts to a new network.
    ///
    /// # Panics
    ///
    /// When the hosts refuse a change.
    pub async fn new(underlay: &Underlay, name: &str, number: u8, of: &[&Host]) -> Self {
        let inner = underlay.host(name).await.expect("a host");
        let lan = Self { inner, number };
        let inner = &lan.inner;
        run_all(inner, &["ip link set eth0 down", "ip link add lan type bridge", "ip link set lan up"]).await;
        lan.give_addresses(inner, 254).await;
        let mut sleep = inner.command("sleep");
        sleep.arg("60");
        let mut holder = inner.start("sleep", sleep).expect("it starts");
        let pid = holder.id().expect("it runs");
        for (place, host) in (1..).zip(of) {
            let port = format!("port{place}");
            run(host, &format!("ip link add lan type veth peer name {port}")).await;
            run(host, &format!("ip link set {port} netns {pid}")).await;
            run_all(inner, &[&format!("ip link set {port} master lan"), &format!("ip link set {port} up")])
                .await;
            run(host, "ip link set lan up").await;
            lan.give_addresses(host, place).await;
        }
        holder.kill().await.expect("it is killed");
        let [v4, v6] = lan.addresses(1);
        run(inner, &format!("ip route replace default via {v4}")).await;
        run(inner, &format!("ip -6 route replace default via {v6}")).await;
        for host in of.iter().copied().chain([inner]) {
            addresses_are_its_own(host).await;
        }
        lan
    }

    /// The addresses in it that end with this, of IPv4 and of IPv6.
    pub fn addresses(&self, end: u8) -> [IpAddr; 2] {
        let number = self.number;
        [format!("192.168.{number}.{end}"), format!("fd{number}::{end}")]
            .map(|text| text.parse().expect("an address"))
    }

    /// Its ranges, as they are declared.
    pub fn ranges(&self) -> String {
        let number = self.number;
        format!("\"192.168.{number}.0/24\" \"fd{number}::/64\"")
    }

    /// Unplugs the cable of the host of that place in the order, or plugs it in again.
    pub async fn plug(&self, place: usize, plugged: bool) {
        let state = if plugged { "up" } else { "down" };
        run(&self.inner, &format!("ip link set port{} {state}", place + 1)).await;
    }

    async fn give_addresses(&self, host: &Host, end: u8) {
        let [v4, v6] = self.addresses(end);
        run(host, &format!("ip address add {v4}/24 dev lan")).await;
        run(host, &format!("ip address add {v6}/64 dev lan nodad")).await;
    }
}
