//! Decides which addresses a request may reach: public ones, and those that its grant names.
//!
//! This module is pure. A name that others control may resolve to any address, so every address is
//! classified before a connection is made to exactly that address. The ranges are those of IANA's
//! special-purpose registries (RFC 6890 and its updates) and of the clouds' metadata services. An
//! IPv6 address that contains an IPv4 address is classified like that IPv4 address.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use hookrun_config::HttpGrant;
use hookrun_config::http::Host;

/// The reason why an address is not public.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AddressKind {
    /// A cloud's metadata service, which returns credentials to any caller.
    Metadata,
    /// This machine.
    Loopback,
    /// RFC 1918, unique local (RFC 4193), site-local (RFC 3879).
    Private,
    /// RFC 3927, RFC 4291 section 2.5.6.
    LinkLocal,
    /// Shared address space of carriers (RFC 6598).
    SharedSpace,
    /// `0.0.0.0/8` and `::`, which many systems treat as this machine.
    Unspecified,
    /// RFC 5771, RFC 4291 section 2.7.
    Multicast,
    /// `255.255.255.255`.
    Broadcast,
    /// RFC 5737, RFC 3849, RFC 9637.
    Documentation,
    /// Any other address that is not global unicast: benchmarking, protocol assignments, reserved.
    Reserved,
}

impl AddressKind {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Metadata => "a metadata service",
            Self::Loopback => "a loopback address",
            Self::Private => "a private address",
            Self::LinkLocal => "a link-local address",
            Self::SharedSpace => "an address of shared space",
            Self::Unspecified => "an unspecified address",
            Self::Multicast => "a multicast address",
            Self::Broadcast => "the broadcast address",
            Self::Documentation => "a documentation address",
            Self::Reserved => "a reserved address",
        }
    }
}

/// Metadata services: AWS, Azure, Google and most others; AWS over IPv6; Google over IPv6; Alibaba;
/// Oracle.
const METADATA: [IpAddr; 6] = [
    IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254)),
    IpAddr::V4(Ipv4Addr::new(169, 254, 170, 2)), // AWS container credentials
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
    IpAddr::V6(Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254)),
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
    IpAddr::V4(Ipv4Addr::new(192, 0, 0, 192)),
];

/// Returns the kind of an address that is not public.
pub fn kind(address: IpAddr) -> Option<AddressKind> {
    if METADATA.contains(&address) {
        return Some(AddressKind::Metadata);
    }
    match address {
        IpAddr::V4(address) => v4(address),
        IpAddr::V6(address) => v6(address),
    }
}

fn v4(address: Ipv4Addr) -> Option<AddressKind> {
    let [a, b, c, _] = address.octets();
    Some(match (a, b, c) {
        (0, _, _) => AddressKind::Unspecified,
        (127, _, _) => AddressKind::Loopback,
        (10, _, _) | (192, 168, _) | (172, 16..=31, _) => AddressKind::Private,
        (169, 254, _) => AddressKind::LinkLocal,
        (100, 64..=127, _) => AddressKind::SharedSpace,
        (192, 0, 2) | (198, 51, 100) | (203, 0, 113) => AddressKind::Documentation,
        (224..=239, _, _) => AddressKind::Multicast,
        (255, _, _) if address == Ipv4Addr::BROADCAST => AddressKind::Broadcast,
        // RFC 6890 protocol assignments, RFC 7526 (6to4 relays), RFC 2544 benchmarking, RFC 1112
        // section 4.
        (192, 0, 0) | (192, 88, 99) | (198, 18..=19, _) | (240..=255, _, _) => {
            AddressKind::Reserved
        }
        _ => return None,
    })
}

fn v6(address: Ipv6Addr) -> Option<AddressKind> {
    if address == Ipv6Addr::UNSPECIFIED {
        return Some(AddressKind::Unspecified);
    }
    if address == Ipv6Addr::LOCALHOST {
        return Some(AddressKind::Loopback);
    }
    let carried = carried(address);
    if !carried.is_empty() {
        return carried.into_iter().find_map(|address| kind(address.into()));
    }
    match address.segments() {
        [0xff00..=0xffff, ..] => Some(AddressKind::Multicast),
        [0xfe80..=0xfebf, ..] => Some(AddressKind::LinkLocal),
        [0xfec0..=0xfeff | 0xfc00..=0xfdff, ..] => Some(AddressKind::Private),
        [0x2001, 0xdb8, ..] | [0x3fff, 0..=0xfff, ..] => Some(AddressKind::Documentation),
        // RFC 2928: protocol assignments, among them ORCHID and benchmarking. Teredo is handled
        // above.
        [0x2001, 0..=0x1ff, ..] => Some(AddressKind::Reserved),
        // RFC 4291 section 2.4: all global unicast addresses that have been assigned.
        [0x2000..=0x3fff, ..] => None,
        _ => Some(AddressKind::Reserved),
    }
}

/// Returns the IPv4 addresses that an IPv6 address contains. Each of them must be public.
fn carried(address: Ipv6Addr) -> Vec<Ipv4Addr> {
    let v4 = |high: u16, low: u16| Ipv4Addr::from((u32::from(high) << 16) | u32::from(low));
    let [.., high, low] = address.segments();
    let last = v4(high, low);
    let mut found = match address.segments() {
        // RFC 4291 section 2.5.5: compatible and mapped; RFC 6145: translated; RFC 6052: NAT64, the
        // well-known prefix.
        [0, 0, 0, 0, 0, 0 | 0xffff, ..]
        | [0, 0, 0, 0, 0xffff, 0, ..]
        | [0x64, 0xff9b, 0, 0, 0, 0, ..] => vec![last],
        // RFC 3056: 6to4.
        [0x2002, high, low, ..] => vec![v4(high, low)],
        // RFC 4380 section 4: Teredo contains the server's address, and the client's inverted.
        [0x2001, 0, high, low, ..] => vec![v4(high, low), Ipv4Addr::from(!u32::from(last))],
        _ => Vec::new(),
    };
    // RFC 5214 section 6.1: ISATAP, below any prefix.
    if let [_, _, _, _, 0 | 0x200, 0x5efe, ..] = address.segments() {
        found.push(last);
    }
    found
}

/// Returns whether a request with `grant` for `host` may connect to `address`.
///
/// Public addresses are permitted. Others are permitted if the grant's URL is that very address, or
/// if a network of `address` in the grant contains it. A metadata service must be named by its own
/// address; a network that contains it is not enough.
///
/// # Errors
/// Returns the kind of an address that is not permitted.
pub fn permitted(address: IpAddr, host: &Host, grant: &HttpGrant) -> Result<(), AddressKind> {
    // The kernel connects to the IPv4 address that a mapped address contains.
    let plain = address.to_canonical();
    let Some(kind) = kind(address).or_else(|| kind(plain)) else { return Ok(()) };
    let literal = grant.url.is_some() && *host == Host::Address(address);
    let named = grant.address.iter().any(|network| {
        let alone = *network == IpNet::from(plain) || *network == IpNet::from(address);
        alone
            || (kind != AddressKind::Metadata
                && (network.contains(&plain) || network.contains(&address)))
    });
    if literal || named { Ok(()) } else { Err(kind) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use hookrun_config::http::HttpUrl;

    fn shown(address: &str) -> &'static str {
        kind(address.parse().unwrap()).map_or("public", AddressKind::as_str)
    }

    #[test]
    fn addresses_are_classified() {
        for (address, expected) in [
            ("127.0.0.1", "a loopback address"),
            ("127.255.255.254", "a loopback address"),
            ("10.0.0.1", "a private address"),
            ("172.15.0.1", "public"),
            ("172.16.0.1", "a private address"),
            ("172.31.255.255", "a private address"),
            ("172.32.0.1", "public"),
            ("192.168.1.1", "a private address"),
            ("169.254.1.1", "a link-local address"),
            ("169.254.169.254", "a metadata service"),
            ("100.100.100.200", "a metadata service"),
            ("100.64.0.1", "an address of shared space"),
            ("100.128.0.1", "public"),
            ("0.0.0.0", "an unspecified address"),
            ("0.1.2.3", "an unspecified address"),
            ("224.0.0.1", "a multicast address"),
            ("255.255.255.255", "the broadcast address"),
            ("240.0.0.1", "a reserved address"),
            ("192.0.2.1", "a documentation address"),
            ("198.51.100.1", "a documentation address"),
            ("203.0.113.1", "a documentation address"),
            ("198.18.0.1", "a reserved address"),
            ("192.0.0.8", "a reserved address"),
            ("192.0.0.192", "a metadata service"),
            ("9.9.9.9", "public"),
            ("::1", "a loopback address"),
            ("::", "an unspecified address"),
            ("fe80::1", "a link-local address"),
            ("fec0::1", "a private address"),
            ("fc00::1", "a private address"),
            ("fd12:3456::1", "a private address"),
            ("fd00:ec2::254", "a metadata service"),
            ("ff02::1", "a multicast address"),
            ("2001:db8::1", "a documentation address"),
            ("3fff:0fff::1", "a documentation address"),
            ("100::1", "a reserved address"),
            ("2001:20::1", "a reserved address"),
            ("64:ff9b:1::a00:1", "a reserved address"),
            ("4000::1", "a reserved address"),
            ("2620:fe::fe", "public"),
        ] {
            assert_eq!(shown(address), expected, "{address}");
        }
    }

    #[test]
    fn an_ipv6_address_is_classified_by_the_ipv4_address_it_contains() {
        for (address, expected) in [
            ("::ffff:127.0.0.1", "a loopback address"),
            ("::ffff:169.254.169.254", "a metadata service"),
            ("::10.0.0.1", "a private address"),
            ("::ffff:0:192.168.0.1", "a private address"),
            ("64:ff9b::10.0.0.1", "a private address"),
            ("64:ff9b::9.9.9.9", "public"),
            ("2002:7f00:1::", "a loopback address"),
            ("2002:0909:0909::1", "public"),
            // Teredo: the server is public and the client (inverted) is 10.0.0.1, then the reverse.
            ("2001:0:909:909:0:0:f5ff:fffe", "a private address"),
            ("2001:0:a00:1:0:0:f6f6:f6f6", "a private address"),
            ("2620:fe::5efe:192.168.0.1", "a private address"),
            ("2620:fe::200:5efe:127.0.0.1", "a loopback address"),
        ] {
            assert_eq!(shown(address), expected, "{address}");
        }
    }

    fn grant(url: &str, networks: &[&str]) -> HttpGrant {
        HttpGrant {
            url: Some(HttpUrl::parse(url).unwrap()),
            methods: Vec::new(),
            address: networks.iter().map(|network| network.parse().unwrap()).collect(),
            ca_file: None,
            credential: None,
        }
    }

    #[test]
    fn only_granted_addresses_are_permitted() {
        let table = [
            ("https://h/", &[][..], "10.0.0.1", false),
            ("https://h/", &["10.0.0.0/8"][..], "10.0.0.1", true),
            ("https://h/", &["10.0.0.0/8"][..], "::ffff:10.0.0.1", true),
            ("https://h/", &["10.0.0.0/8"][..], "2002:a00:1::", false),
            ("https://h/", &["10.0.0.0/8"][..], "192.168.0.1", false),
            ("https://h/", &["169.254.0.0/16"][..], "169.254.0.1", true),
            ("https://h/", &["169.254.0.0/16"][..], "169.254.169.254", false),
            ("https://h/", &["169.254.169.254/32"][..], "169.254.169.254", true),
            ("https://h/", &["fd00::/8"][..], "fd00:ec2::254", false),
            ("https://h/", &["fd00::/8"][..], "fd00::1", true),
            ("http://127.0.0.1/", &[][..], "127.0.0.1", true),
        ];
        for (url, networks, address, expected) in table {
            let grant = grant(url, networks);
            let host = grant.url.clone().unwrap().host;
            assert_eq!(
                permitted(address.parse().unwrap(), &host, &grant).is_ok(),
                expected,
                "{url} {networks:?} {address}"
            );
        }
    }

    proptest! {
        /// No IPv6 form of an IPv4 address is permitted unless the IPv4 address is.
        #[test]
        fn a_carried_address_is_no_better(bits: u32) {
            let v4 = Ipv4Addr::from(bits);
            if let Some(expected) = kind(v4.into()) {
                let (high, low) = ((bits >> 16) as u16, (bits & 0xffff) as u16);
                for v6 in [
                    v4.to_ipv6_mapped(),
                    Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, high, low),
                    Ipv6Addr::new(0x2002, high, low, 0, 0, 0, 0, 1),
                    Ipv6Addr::new(0x2001, 0, 0x909, 0x909, 0, 0, !high, !low),
                ] {
                    prop_assert_eq!(kind(v6.into()), Some(expected), "{}", v6);
                }
            }
        }

        /// An address that the standard library calls special is never public here.
        #[test]
        fn never_wider_than_std(bits: u128) {
            let v6 = Ipv6Addr::from(bits);
            if v6.is_multicast() || v6.is_loopback() || v6.is_unspecified() || v6.is_unique_local() || v6.is_unicast_link_local() {
                prop_assert!(kind(v6.into()).is_some());
            }
        }
    }
}
