//! Which addresses are inside this machine or network.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Why an address must not be fetched from on behalf of a stranger: the kind of network it is in,
/// or `None` for an address of the public internet. Addresses that carry an IPv4 address inside
/// (mapped, compatible, NAT64, 6to4) are what that one is.
#[must_use]
pub fn refused_kind(address: IpAddr) -> Option<&'static str> {
    match address {
        IpAddr::V4(address) => refused_v4(address),
        IpAddr::V6(address) => refused_v6(address),
    }
}

fn refused_v4(address: Ipv4Addr) -> Option<&'static str> {
    let [a, b, c, d] = address.octets();
    let kind = match (a, b, c, d) {
        (0, ..) => "unspecified",
        (127, ..) => "loopback",
        (10, ..) | (172, 16..=31, ..) | (192, 168, ..) => "private",
        (100, 64..=127, ..) => "shared by a carrier (CGNAT)",
        (169, 254, 169, 254) | (168, 63, 129, 16) => "a cloud's metadata service",
        (169, 254, ..) => "link-local",
        (192, 0, 0, _) | (192, 88, 99, _) | (198, 18..=19, ..) => "reserved",
        (192, 0, 2, _) | (198, 51, 100, _) | (203, 0, 113, _) => "for documentation",
        (224..=239, ..) => "multicast",
        (240..=255, ..) => "reserved",
        _ => return None,
    };
    Some(kind)
}

fn refused_v6(address: Ipv6Addr) -> Option<&'static str> {
    let embedded = |high: u16, low: u16| {
        let [a, b] = high.to_be_bytes();
        let [c, d] = low.to_be_bytes();
        refused_v4(Ipv4Addr::new(a, b, c, d))
    };
    let kind = match address.segments() {
        [0, 0, 0, 0, 0, 0, 0, 0] => "unspecified",
        [0, 0, 0, 0, 0, 0, 0, 1] => "loopback",
        [0, 0, 0, 0, 0, 0 | 0xffff, high, low] | [0x64, 0xff9b, 0, 0, 0, 0, high, low] => {
            return embedded(high, low);
        }
        [0, 0, 0, 0, 0xffff, 0, high, low] | [0x2002, high, low, ..] => {
            return embedded(high, low);
        }
        [0x64, 0xff9b, 1, ..] => "private",
        [0x100, 0, 0, 0, ..] | [0x5f00, ..] => "reserved",
        [0x2001, 0, ..] => "a tunnel (Teredo)",
        [0x2001, 0xdb8, ..] | [0x3fff, 0..=0xfff, ..] => "for documentation",
        [0x2001, 1..=0x1ff, ..] => "reserved",
        [0xfc00..=0xfdff, ..] => "private",
        [0xfe80..=0xfebf, ..] => "link-local",
        [0xfec0..=0xfeff, ..] => "private",
        [0xff00..=0xffff, ..] => "multicast",
        _ => return None,
    };
    Some(kind)
}
