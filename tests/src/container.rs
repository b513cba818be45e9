//! A host behind another one, like a container.

use nmplan::lab::{Host, Underlay};

use crate::run_all;

/// A host that is behind another one like a container: on a bridge of its own, 172.17.0.0/24 and fd17::/64,
/// whose addresses are masqueraded and whose TCP port 80 is published as 8080.
///
/// # Panics
///
/// When the hosts refuse a change.
pub async fn container(underlay: &Underlay, of: &Host) -> Host {
    let inner = underlay.host("box").await.expect("a host");
    let mut sleep = inner.command("sleep");
    sleep.arg("60");
    let mut holder = inner.start("sleep", sleep).expect("it starts");
    let pid = holder.id().expect("it runs");
    let outer = [
        "ip link add docker0 type bridge",
        "ip address add 172.17.0.1/24 dev docker0",
        "ip address add fd17::1/64 dev docker0 nodad",
        "ip link set docker0 up",
        "ip link add veth0 type veth peer name veth1",
        "ip link set veth0 master docker0",
        "ip link set veth0 up",
        &format!("ip link set veth1 netns {pid}"),
        "nft add table inet nat",
        "nft add chain inet nat post { type nat hook postrouting priority srcnat ; }",
        "nft add rule inet nat post ip saddr 172.17.0.0/24 oifname != docker0 masquerade",
        "nft add rule inet nat post ip6 saddr fd17::/64 oifname != docker0 masquerade",
        "nft add chain inet nat pre { type nat hook prerouting priority dstnat ; }",
        "nft add rule inet nat pre meta nfproto ipv4 fib daddr type local tcp dport 8080 dnat ip to 172.17.0.2:80",
        "nft add rule inet nat pre meta nfproto ipv6 fib daddr type local tcp dport 8080 dnat ip6 to [fd17::2]:80",
    ];
    run_all(of, &outer).await;
    let own = [
        "ip link set eth0 down",
        "ip address add 172.17.0.2/24 dev veth1",
        "ip address add fd17::2/64 dev veth1 nodad",
        "ip link set veth1 up",
        "ip route replace default via 172.17.0.1",
        "ip -6 route replace default via fd17::1",
    ];
    run_all(&inner, &own).await;
    holder.kill().await.expect("it is killed");
    for switch in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
        of.write(format!("/proc/sys/net/{switch}"), "1").expect("it can be written");
    }
    for name in ["docker0", "veth0"] {
        of.write(format!("/proc/sys/net/ipv4/conf/{name}/rp_filter"), "1").expect("it can be written");
    }
    inner
}
