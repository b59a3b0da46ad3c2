//! `gantry.yaml`: `ConfigFile` as written, `Config` as valid.

/// An address range in CIDR form, such as `127.0.0.0/8`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Network {
    /// The address.
    pub address: std::net::IpAddr,
    /// Leading bits that count.
    pub prefix: u8,
}
