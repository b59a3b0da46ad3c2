//! Listeners: addresses that can be bound together, TLS files that are there.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::Arc,
};

use super::Context;
use crate::config::{
    Environment, Listen, ListenAddress, Tls, TlsVersion, environment,
    file::{AdminEntry, ListenEntry, OneOrMany, TlsFile, TlsMinimum},
    text::HostText,
    tree,
};

/// Where the admin listener is when nothing is written.
const ADMIN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 5001);

/// Longest PEM file.
const MAX_PEM_BYTES: usize = 4 << 20;

impl Context<'_> {
    pub(super) fn listen(&mut self, file: Option<OneOrMany<ListenEntry>>) -> Vec<Listen> {
        let (entries, single) = match file {
            None => (Vec::new(), true),
            Some(OneOrMany::One(entry)) => (vec![entry], true),
            Some(OneOrMany::Many(entries)) => {
                if entries.is_empty() {
                    self.refuse(&["listen"], "at least one address is expected here", None);
                }
                (entries, false)
            }
        };
        let mut listeners: Vec<Listen> = Vec::new();
        for (index, entry) in entries.into_iter().enumerate() {
            let index = index.to_string();
            let keys: &[&str] = if single {
                &["listen"]
            } else {
                &["listen", &index]
            };
            let Some(listener) = self.listener(keys, entry) else {
                continue;
            };
            if listeners
                .iter()
                .any(|other| collide(&other.address, &listener.address))
            {
                self.refuse(keys, "another listener has this address already", None);
            }
            listeners.push(listener);
        }
        if listeners.is_empty() {
            listeners.push(Listen {
                address: ListenAddress::Tcp(SocketAddr::from(([127, 0, 0, 1], 5000))),
                tls: None,
                mirror: None,
            });
        }
        listeners
    }

    fn listener(&mut self, keys: &[&str], entry: ListenEntry) -> Option<Listen> {
        match entry {
            ListenEntry::Address(address) => Some(Listen {
                address: address.0,
                tls: None,
                mirror: None,
            }),
            ListenEntry::Full(file) => {
                let keys = [keys, &["tls"]].concat();
                let tls = file.tls.and_then(|tls| self.tls(&keys, tls));
                let address = file.address?.0;
                let mirror = file.mirror.map(Arc::from);
                Some(Listen {
                    address,
                    tls,
                    mirror,
                })
            }
        }
    }

    fn tls(&mut self, keys: &[&str], file: TlsFile) -> Option<Tls> {
        let certificate = self.pem(keys, "certificate", file.certificate, "CERTIFICATE");
        let key = self.pem(keys, "key", file.key, "PRIVATE KEY");
        let client_ca = self.pem(keys, "client_ca", file.client_ca, "CERTIFICATE");
        Some(Tls {
            certificate: certificate?,
            key: key?,
            client_ca,
            minimum: match file.minimum {
                Some(TlsMinimum::Tls13) => TlsVersion::Tls13,
                Some(TlsMinimum::Tls12) | None => TlsVersion::Tls12,
            },
        })
    }

    /// A PEM file that holds at least one `kind`.
    pub(super) fn pem(
        &mut self,
        keys: &[&str],
        key: &str,
        written: Option<String>,
        kind: &str,
    ) -> Option<PathBuf> {
        let keys = [keys, &[key]].concat();
        let path = self.path(&written?);
        let text = self.text(&keys, &path, MAX_PEM_BYTES)?;
        let holds = text.lines().any(|line| {
            line.starts_with("-----BEGIN ") && line.trim_end().ends_with(&format!("{kind}-----"))
        });
        if !holds {
            self.refuse(&keys, format!("the file holds no PEM block `{kind}`"), None);
        }
        Some(path)
    }

    pub(super) fn admin(
        &mut self,
        file: Option<AdminEntry>,
        listen: &[Listen],
    ) -> (Option<SocketAddr>, Vec<String>) {
        let (address, hosts) = match file {
            Some(AdminEntry::Off(_)) => return (None, Vec::new()),
            Some(AdminEntry::Address(address)) => (address.0, Vec::new()),
            Some(AdminEntry::Full(file)) => (
                file.address.map_or(ADMIN, |address| address.0),
                file.hosts.unwrap_or_default(),
            ),
            None => (ADMIN, Vec::new()),
        };
        let hosts = hosts
            .into_iter()
            .map(|HostText(host)| match host.rsplit_once(':') {
                Some((name, _port)) => name.to_owned(),
                None => host,
            })
            .collect();
        let own = ListenAddress::Tcp(address);
        if listen
            .iter()
            .any(|listener| collide(&listener.address, &own))
        {
            let hint =
                "clients never see the admin listener: give it an address of its own, or `off`";
            self.refuse(
                &["admin"],
                "a listener has this address already",
                hint.to_owned(),
            );
        }
        (Some(address), hosts)
    }
}

/// The `admin` of a file, whatever else is in it.
pub(crate) fn admin_address(text: &str, environment: &Environment) -> Option<SocketAddr> {
    let mut root = tree::parse(text).root?;
    environment::apply(&mut root, environment, &mut Vec::new(), &mut Vec::new());
    let Some(written) = root.get("admin") else {
        return Some(ADMIN);
    };
    match serde_json::from_value(written.to_json()).ok()? {
        AdminEntry::Address(address) => Some(address.0),
        AdminEntry::Full(file) => Some(file.address.map_or(ADMIN, |address| address.0)),
        AdminEntry::Off(_) => None,
    }
}

/// Whether the system refuses to bind both.
fn collide(one: &ListenAddress, other: &ListenAddress) -> bool {
    match (one, other) {
        (ListenAddress::Unix(one), ListenAddress::Unix(other)) => one == other,
        (ListenAddress::Tcp(one), ListenAddress::Tcp(other)) => {
            let everywhere = |address: IpAddr| address.is_unspecified();
            one.port() == other.port()
                && one.port() != 0
                && one.is_ipv4() == other.is_ipv4()
                && (one.ip() == other.ip() || everywhere(one.ip()) || everywhere(other.ip()))
        }
        _ => false,
    }
}
