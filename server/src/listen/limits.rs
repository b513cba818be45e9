//! How much the clients of a listener may take up, whoever they are. Pure.

use std::time::Duration;

/// Descriptors that no connection takes: those of the database, of files, of devices, and of programs that
/// are started.
const RESERVED: u64 = 64;

/// The limits of one listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The most connections at once.
    pub connections: usize,
    /// The most of them on which nobody has logged in.
    pub anonymous: usize,
    /// How long a client may take for TLS, for the head of a first request, and without any progress in a
    /// body or an answer; a client that has not logged in may also be idle for no longer.
    pub timeout: Duration,
}

/// What the operator set of these limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Configured {
    /// The most connections to the REST API (`API_CONNECTIONS`).
    pub api_connections: usize,
    /// The most connections to the agents' service (`GRPC_CONNECTIONS`): as many again inside the tunnels.
    pub grpc_connections: usize,
    /// The most connections to each listener on which nobody has logged in (`ANONYMOUS_CONNECTIONS`).
    pub anonymous_connections: usize,
    /// See [`Limits::timeout`] (`CLIENT_TIMEOUT`).
    pub client_timeout: Duration,
    /// The largest body of a REST request, in bytes (`MAX_BODY`).
    pub max_body: usize,
}

impl Default for Configured {
    /// 512 connections without a login need about 100 MiB if each of them takes all that it may. A plan of a
    /// hundred thousand objects has less than 128 MiB.
    fn default() -> Self {
        Self {
            api_connections: 1_024,
            grpc_connections: 65_536,
            anonymous_connections: 512,
            client_timeout: Duration::from_secs(10),
            max_body: 128 << 20,
        }
    }
}

/// The limits of every listener of a process that may open so many descriptors: together they stay below
/// that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shares {
    /// Those of the REST API.
    pub rest: Limits,
    /// Those of the agents' service.
    pub agents: Limits,
    /// Those of the agents' service inside the tunnels.
    pub tunnels: Limits,
}

impl Shares {
    /// Divides the descriptors: half for agents on public addresses, a quarter each for those in tunnels and
    /// for REST.
    pub fn of(configured: &Configured, descriptors: u64) -> Self {
        let Configured {
            api_connections,
            grpc_connections,
            anonymous_connections,
            client_timeout,
            max_body: _,
        } = *configured;
        let quarter = usize::try_from(descriptors.saturating_sub(RESERVED) / 4).unwrap_or(usize::MAX).max(4);
        let limits = |wanted: usize, share: usize| {
            let connections = wanted.min(share);
            // Whoever has logged in always has half of the connections.
            let anonymous = anonymous_connections.min(connections.div_ceil(2));
            Limits { connections, anonymous, timeout: client_timeout }
        };
        Self {
            rest: limits(api_connections, quarter),
            agents: limits(grpc_connections, quarter.saturating_mul(2)),
            tunnels: limits(grpc_connections, quarter),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_listeners_together_stay_below_the_descriptors() {
        let configured = Configured::default();
        for descriptors in [128, 256, 1_024, 4_096, 65_536, 1 << 20, u64::MAX] {
            let Shares { rest, agents, tunnels } = Shares::of(&configured, descriptors);
            let all = [rest, agents, tunnels];
            let sum: usize = all.iter().map(|limits| limits.connections).sum();
            assert!((sum as u64) <= descriptors - RESERVED, "{sum} of {descriptors}");
            for limits in all {
                assert!(limits.anonymous * 2 <= limits.connections + 1 && limits.anonymous > 0, "{limits:?}");
            }
        }
    }

    #[test]
    fn what_is_set_holds_where_the_descriptors_allow_it() {
        let configured =
            Configured { api_connections: 100, anonymous_connections: 30, ..Configured::default() };
        let Shares { rest, agents, .. } = Shares::of(&configured, 1 << 20);
        assert_eq!((rest.connections, rest.anonymous), (100, 30));
        assert_eq!((agents.connections, agents.anonymous), (65_536, 30));
        assert_eq!(Shares::of(&configured, 256).rest.connections, 48);
    }
}
