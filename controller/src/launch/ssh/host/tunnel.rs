//! The controller as the host reaches it: directly, or behind ports there that lead through the connection.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use serde::{Deserialize, Serialize};

use ipbroker_protocol::{
    connection::EngineConnection,
    ssh::{Connection, Pump},
};

use super::{Host, HostError};

/// A forwarded port: opened at the first connection, asked for again at every later one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::launch::ssh) struct Forwarded {
    local: u16,
    remote: u16,
}

impl Host {
    /// Whether the engines must come through this connection.
    pub(super) fn needs_tunnel(&self, connection: &Connection) -> bool {
        let plan = &self.shared.plan;
        let interface = plan
            .connection
            .common
            .interface
            .trim_start_matches("tcp://");
        let loopback = interface.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
            || interface == "localhost";
        let near = self
            .probe
            .client
            .as_deref()
            .and_then(|c| c.parse::<IpAddr>().ok())
            .is_some_and(|ip| ip.is_loopback());
        plan.tunnel
            || (loopback && (!near || connection.jumped()))
            || (connection.jumped() && !plan.location_given)
    }

    /// The controller as this host reaches it.
    pub(super) fn connection_for_host(&self) -> EngineConnection {
        let mut connection = self.shared.plan.connection.clone();
        connection.common.ssh.clear();
        if let Some(tunnel) = &self.tunnel {
            for port in connection.ports_mut() {
                if let Some(forwarded) = tunnel.iter().find(|f| f.local == *port) {
                    *port = forwarded.remote;
                }
            }
            connection.common.interface = "tcp://127.0.0.1".into();
            connection.common.location = "127.0.0.1".into();
        } else if !self.shared.plan.location_given
            && matches!(
                connection.common.interface.trim_start_matches("tcp://"),
                "*" | "0.0.0.0" | ""
            )
            && let Some(client) = &self.probe.client
        {
            let client = if client.contains(':') {
                format!("[{client}]")
            } else {
                client.clone()
            };
            connection.common.interface = format!("tcp://{client}");
            connection.common.location = client;
        }
        connection
    }

    /// Opens the controller's ports on the host: any at first, the same ones again later.
    pub(super) fn open_tunnel(&mut self, pump: &mut Pump) -> Result<(), HostError> {
        let connection = &self.shared.plan.connection;
        let interface = connection.common.interface.trim_start_matches("tcp://");
        let here = interface
            .parse::<IpAddr>()
            .ok()
            .filter(|ip| !ip.is_unspecified())
            .unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
        let forwarded = self.tunnel.clone().unwrap_or_else(|| {
            let mut ports: Vec<u16> = connection.ports().collect();
            ports.sort_unstable();
            ports.dedup();
            ports
                .into_iter()
                .map(|local| Forwarded { local, remote: 0 })
                .collect()
        });
        let mut opened = Vec::with_capacity(forwarded.len());
        for Forwarded { local, remote } in forwarded {
            let remote = pump.listen_remote(remote, SocketAddr::new(here, local))?;
            opened.push(Forwarded { local, remote });
        }
        if self.tunnel.is_none() {
            self.step("tunnel open");
        }
        self.tunnel = Some(opened);
        Ok(())
    }
}
