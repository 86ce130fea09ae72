//! What this host is called, and what it has.

use std::net::{IpAddr, UdpSocket};

/// All names of this host: full, short, given aliases, addresses. `controller` is the address it connects to: on
/// loopback this host is `localhost` too, unless it has aliases: then it was started from elsewhere, through a tunnel.
#[must_use]
pub(crate) fn names(aliases: &[String], controller: &str) -> Vec<String> {
    let node = node();
    let hosts = std::fs::read_to_string("/etc/hosts").unwrap_or_default();
    let mut names = vec![node.clone()];
    names.extend(node.split('.').next().map(str::to_owned));
    names.extend(names_of(&hosts, &node));
    names.extend(aliases.iter().cloned());
    let loopback = controller == "localhost"
        || controller
            .parse::<IpAddr>()
            .is_ok_and(|ip| ip.is_loopback());
    if loopback && aliases.is_empty() {
        names.extend(["localhost".to_owned(), "127.0.0.1".to_owned()]);
    }
    names.extend(
        route_to(controller)
            .into_iter()
            .filter(|ip| !ip.is_loopback())
            .map(|ip| ip.to_string()),
    );
    names.extend(ipv4(
        &std::fs::read_to_string("/proc/net/fib_trie").unwrap_or_default(),
    ));
    names.extend(ipv6(
        &std::fs::read_to_string("/proc/net/if_inet6").unwrap_or_default(),
    ));
    let mut seen = std::collections::HashSet::new();
    names.retain(|name| !name.is_empty() && seen.insert(name.clone()));
    names
}

/// The name that the system has for itself.
#[must_use]
pub(crate) fn node() -> String {
    rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned()
}

/// How many cores this process may use.
#[must_use]
pub(crate) fn cores() -> u32 {
    std::thread::available_parallelism()
        .map_or(1, |cores| u32::try_from(cores.get()).unwrap_or(u32::MAX))
}

/// The address from which this host speaks to another; nothing is sent.
fn route_to(controller: &str) -> Option<IpAddr> {
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect((controller, 9)).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

/// Names that a hosts file has on the lines of this one.
fn names_of(hosts: &str, node: &str) -> Vec<String> {
    hosts
        .lines()
        .map(|line| {
            line.split('#')
                .next()
                .unwrap_or_default()
                .split_ascii_whitespace()
                .skip(1)
                .collect::<Vec<_>>()
        })
        .filter(|names| names.contains(&node))
        .flatten()
        .filter(|name| !name.starts_with("localhost") && !name.starts_with("ip6-"))
        .map(str::to_owned)
        .collect()
}

/// Local addresses in `/proc/net/fib_trie`: the line before each `/32 host LOCAL`.
fn ipv4(trie: &str) -> Vec<String> {
    let lines: Vec<&str> = trie.lines().map(str::trim).collect();
    lines
        .windows(2)
        .filter(|pair| pair[1] == "/32 host LOCAL")
        .filter_map(|pair| pair[0].strip_prefix("|-- "))
        .filter(|address| !address.starts_with("127."))
        .map(str::to_owned)
        .collect()
}

/// Global addresses in `/proc/net/if_inet6`.
fn ipv6(table: &str) -> Vec<String> {
    table
        .lines()
        .filter_map(|line| {
            let fields: Vec<&str> = line.split_ascii_whitespace().collect();
            let (address, scope) = (
                u128::from_str_radix(fields.first()?, 16).ok()?,
                *fields.get(3)?,
            );
            (scope == "00").then(|| std::net::Ipv6Addr::from(address).to_string())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_names_are_found() {
        let trie = "Main:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 10.1.2.3\n        /32 host LOCAL\n     |-- 127.0.0.1\n        /32 host LOCAL\n     |-- 10.1.2.255\n        /32 link BROADCAST\n";
        assert_eq!(ipv4(trie), ["10.1.2.3"]);
        let table = "fe800000000000000000000000000001 02 40 20 80 eth0\n20010db8000000000000000000000007 02 40 00 80 eth0\n";
        assert_eq!(ipv6(table), ["2001:db8::7"]);
        let hosts = "127.0.0.1 localhost\n127.0.1.1 box.example.org box # me\n10.0.0.9 other\n";
        assert_eq!(names_of(hosts, "box"), ["box.example.org", "box"]);
    }

    #[test]
    fn this_host_has_its_names() {
        let names = names(&[], "127.0.0.1");
        for name in [&node(), "localhost", "127.0.0.1"] {
            assert!(names.iter().any(|have| have == name), "{name} in {names:?}");
        }
        assert!(cores() >= 1);
        // Started from elsewhere, through a tunnel.
        let remote = super::names(&["alias".into()], "127.0.0.1");
        assert!(remote.contains(&"alias".to_owned()) && !remote.contains(&"localhost".to_owned()));
    }
}
