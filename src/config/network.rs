//! Networks, as they are written in the configuration.

use std::net::IpAddr;

use ipnet::IpNet;

/// What such a text must be.
pub(super) const EXPECTED: &str =
    "neither an address nor a network like 203.0.113.0/24 or 2001:db8::/32";

/// A network or a single address. One of IPv4 must be written as such, because it is compared as such.
pub(super) fn parse(text: &str) -> Option<IpNet> {
    let network = text
        .parse()
        .or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
    let is_canonical = |network: &IpNet| network.addr().to_canonical() == network.addr();
    network.ok().filter(is_canonical)
}
