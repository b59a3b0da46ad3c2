//! Who counts as one client where clients share something: an IPv4 address, or an IPv6 network of 64 bits, which is what one site has.

use std::net::{IpAddr, Ipv6Addr};

/// Addresses that count as one client.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(crate) struct AddressGroup(IpAddr);

impl AddressGroup {
    /// The group of an address. An IPv4 address in IPv6 form is the IPv4 address.
    pub(crate) fn of(address: IpAddr) -> Self {
        Self(match address.to_canonical() {
            IpAddr::V4(address) => IpAddr::V4(address),
            IpAddr::V6(address) => {
                let network = u128::from(address) >> 64 << 64;
                IpAddr::V6(Ipv6Addr::from(network))
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_of_64_bits_is_one_client_and_each_ipv4_address_is_one() {
        let same = |one: &str, other: &str| {
            let group = |text: &str| AddressGroup::of(text.parse().unwrap());
            group(one) == group(other)
        };
        assert!(same("2001:db8:1:2::1", "2001:db8:1:2:ffff::9"));
        assert!(!same("2001:db8:1:2::1", "2001:db8:1:3::1"));
        assert!(same("::ffff:192.0.2.7", "192.0.2.7"));
        assert!(!same("::ffff:192.0.2.7", "::ffff:192.0.2.8"));
        assert!(!same("192.0.2.7", "192.0.2.8"));
    }
}
