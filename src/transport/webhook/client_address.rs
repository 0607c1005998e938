//! From which address a webhook was posted, behind proxies that say for whom they speak.
//!
//! Everybody can write such a header, and proxies add to what is there. So it is read from its end, and only as far as
//! those who wrote it are trusted: the first address that is not that of a trusted proxy is the client's. What stands
//! before it is the client's own tale.
//!
//! A parser of our own: the crates for `Forwarded` (forwarded-header-value, rfc7239) read from the front; there is none for
//! `X-Forwarded-For`, for which there is no standard.

use std::net::{IpAddr, SocketAddr};

use http::{HeaderMap, HeaderValue};
use ipnet::IpNet;

use crate::config::ForwardedHeader;

/// The address of the client; none if a trusted proxy says what cannot be read, or that it does not know. Addresses of IPv4
/// that are written as IPv6 are taken for what they are.
pub(super) fn find(
    peer: IpAddr,
    headers: &HeaderMap,
    trusted_proxies: &[IpNet],
    header: ForwardedHeader,
) -> Option<IpAddr> {
    let is_trusted = |address: &IpAddr| trusted_proxies.iter().any(|net| net.contains(address));
    let mut nearest = peer.to_canonical();
    if !is_trusted(&nearest) {
        return Some(nearest);
    }
    let lines = match header {
        ForwardedHeader::XForwardedFor => headers.get_all("x-forwarded-for"),
        ForwardedHeader::Forwarded => headers.get_all("forwarded"),
    };
    let lines: Vec<&HeaderValue> = lines.iter().collect();
    for line in lines.into_iter().rev() {
        let line = line.to_str().ok()?;
        let nodes: Vec<String> = match header {
            ForwardedHeader::XForwardedFor => line.split(',').map(str::to_owned).collect(),
            ForwardedHeader::Forwarded => forwarded_for(line)?,
        };
        for node in nodes.iter().rev() {
            nearest = address(node.trim())?;
            if !is_trusted(&nearest) {
                return Some(nearest);
            }
        }
    }
    // A trusted proxy speaks for itself, or for another.
    Some(nearest)
}

/// An address as proxies write it: bare, in brackets, with a port.
fn address(node: &str) -> Option<IpAddr> {
    let bracketed = || {
        node.strip_prefix('[')?
            .strip_suffix(']')?
            .parse()
            .ok()
            .map(IpAddr::V6)
    };
    let with_port = || node.parse::<SocketAddr>().ok().map(|address| address.ip());
    let address = node.parse().ok().or_else(with_port).or_else(bracketed)?;
    Some(address.to_canonical())
}

/// The nodes of the `for` parameters of a line of `Forwarded`, in their order, one for each element; none if the line is
/// malformed or an element has none. See <https://www.rfc-editor.org/rfc/rfc7239#section-4>.
fn forwarded_for(line: &str) -> Option<Vec<String>> {
    let mut nodes = Vec::new();
    let mut node = None;
    let mut rest = line;
    loop {
        let (name, behind) = rest.split_once('=')?;
        let name = name.trim_start();
        let (value, behind) = value(behind)?;
        // Else a client could hide the comma behind which its proxy speaks.
        if !is_token(name) {
            return None;
        }
        if name.eq_ignore_ascii_case("for") && node.replace(value).is_some() {
            return None;
        }
        let behind = behind.trim_start();
        rest = match behind.chars().next() {
            Some(';') => &behind[1..],
            Some(',') => {
                nodes.push(node.take()?);
                &behind[1..]
            }
            None => {
                nodes.push(node?);
                return Some(nodes);
            }
            Some(_) => return None,
        };
    }
}

/// Whether a text can be the name of a parameter. See <https://www.rfc-editor.org/rfc/rfc9110#section-5.6.2>.
fn is_token(text: &str) -> bool {
    let is_in = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    !text.is_empty() && text.bytes().all(is_in)
}

/// The value of a parameter, quoted or not, and what stands behind it.
fn value(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([';', ',', ' ', '\t']).unwrap_or(text.len());
        let (value, behind) = text.split_at(end);
        return (!value.contains(['"', '='])).then(|| (value.to_owned(), behind));
    };
    let mut value = String::new();
    let mut characters = quoted.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Some((value, &quoted[at + 1..])),
            '\\' => value.push(characters.next()?.1),
            _ => value.push(character),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PROXIES: [&str; 2] = ["10.0.0.0/8", "2001:db8:aaaa::/48"];

    /// The address that is found, as text.
    fn found(peer: &str, header: ForwardedHeader, lines: &[&str]) -> Option<String> {
        let name = match header {
            ForwardedHeader::XForwardedFor => "x-forwarded-for",
            ForwardedHeader::Forwarded => "forwarded",
        };
        let mut headers = HeaderMap::new();
        // The other header is never looked at.
        headers.append("x-forwarded-for", HeaderValue::from_static("192.0.2.99"));
        headers.append("forwarded", HeaderValue::from_static("for=192.0.2.99"));
        headers.remove(name);
        for line in lines {
            headers.append(name, HeaderValue::from_str(line).expect("a header"));
        }
        let proxies: Vec<IpNet> = PROXIES.iter().map(|net| net.parse().unwrap()).collect();
        let peer = peer.parse().unwrap();
        find(peer, &headers, &proxies, header).map(|address| address.to_string())
    }

    #[test]
    fn who_is_no_proxy_speaks_for_itself() {
        for header in [ForwardedHeader::XForwardedFor, ForwardedHeader::Forwarded] {
            for lines in [&[][..], &["203.0.113.7"], &["for=203.0.113.7"], &["\""]] {
                for (peer, expected) in [
                    ("198.51.100.1", "198.51.100.1"),
                    ("::ffff:198.51.100.1", "198.51.100.1"),
                    ("2001:db8::1", "2001:db8::1"),
                ] {
                    assert_eq!(found(peer, header, lines).as_deref(), Some(expected));
                }
            }
        }
    }

    #[test]
    fn x_forwarded_for_is_read_from_its_end_as_far_as_proxies_are_trusted() {
        for (lines, expected) in [
            (&["203.0.113.7"][..], Some("203.0.113.7")),
            // The client's own tale stands before its address, whatever it is.
            (&["192.0.2.1, 203.0.113.7"], Some("203.0.113.7")),
            (&["rubbish, 203.0.113.7"], Some("203.0.113.7")),
            (&[", 203.0.113.7"], Some("203.0.113.7")),
            (&["192.0.2.1, 10.0.0.9, 203.0.113.7"], Some("203.0.113.7")),
            (&["192.0.2.1", "203.0.113.7"], Some("203.0.113.7")),
            // Proxies behind proxies.
            (&["203.0.113.7, 10.1.2.3"], Some("203.0.113.7")),
            (
                &["192.0.2.1, 203.0.113.7,10.1.2.3 , 2001:db8:aaaa::5"],
                Some("203.0.113.7"),
            ),
            (
                &["203.0.113.7", "10.1.2.3", "10.1.2.4"],
                Some("203.0.113.7"),
            ),
            (&["203.0.113.7, ::ffff:10.1.2.3"], Some("203.0.113.7")),
            // As they are written.
            (&["::ffff:203.0.113.7"], Some("203.0.113.7")),
            (&["203.0.113.7:4711"], Some("203.0.113.7")),
            (&["2001:db8::7"], Some("2001:db8::7")),
            (&["[2001:db8::7]"], Some("2001:db8::7")),
            (&["[2001:db8::7]:4711"], Some("2001:db8::7")),
            (&["[::ffff:203.0.113.7]:4711"], Some("203.0.113.7")),
            // Only proxies.
            (&[], Some("10.0.0.1")),
            (&["10.9.9.9"], Some("10.9.9.9")),
            // What a proxy says and nobody can read.
            (&["203.0.113.7, unknown"], None),
            (&["203.0.113.7,"], None),
            (&[""], None),
            (&["203.0.113.7 192.0.2.1"], None),
            (&["203.0.113.7:99999"], None),
            (&["203.0.113.007"], None),
            (&["[203.0.113.7]"], None),
            (&["fe80::1%eth0"], None),
            (&["for=203.0.113.7"], None),
            (&["192.0.2.1, rubbish, 10.1.2.3"], None),
            (&["192.0.2.1", "rubbish", "10.1.2.3"], None),
        ] {
            let found = found("10.0.0.1", ForwardedHeader::XForwardedFor, lines);
            assert_eq!(found.as_deref(), expected, "{lines:?}");
        }
        let mapped = found(
            "::ffff:10.0.0.1",
            ForwardedHeader::XForwardedFor,
            &["203.0.113.7"],
        );
        assert_eq!(mapped.as_deref(), Some("203.0.113.7"));
    }

    #[test]
    fn forwarded_is_read_from_its_end_as_far_as_proxies_are_trusted() {
        for (lines, expected) in [
            (&["for=203.0.113.7"][..], Some("203.0.113.7")),
            (&["For=\"203.0.113.7\""], Some("203.0.113.7")),
            (
                &["for=203.0.113.7;proto=https;by=10.0.0.1"],
                Some("203.0.113.7"),
            ),
            (
                &["by=10.0.0.1 ; FOR=\"203.0.113.7:4711\" ; host=\"a,b;c\""],
                Some("203.0.113.7"),
            ),
            (&["for=\"[2001:db8::7]\""], Some("2001:db8::7")),
            (&["for=\"[2001:db8::7]:4711\""], Some("2001:db8::7")),
            (&["for=\"\\2\\03.0.113.7\""], Some("203.0.113.7")),
            (&["for=\"[::ffff:203.0.113.7]\""], Some("203.0.113.7")),
            // The client's own tale.
            (&["for=192.0.2.1, for=203.0.113.7"], Some("203.0.113.7")),
            (&["for=192.0.2.1", "for=203.0.113.7"], Some("203.0.113.7")),
            (&["for=unknown, for=203.0.113.7"], Some("203.0.113.7")),
            (&["rubbish", "for=203.0.113.7"], Some("203.0.113.7")),
            (
                &["for=\"192.0.2.1, for=10.0.0.2\", for=203.0.113.7"],
                Some("203.0.113.7"),
            ),
            (
                &["host=\"x\\\", for=192.0.2.1\";for=_x, for=203.0.113.7"],
                Some("203.0.113.7"),
            ),
            // Proxies behind proxies.
            (
                &["for=203.0.113.7, for=10.1.2.3;by=10.0.0.1"],
                Some("203.0.113.7"),
            ),
            (
                &["for=203.0.113.7", "for=\"[2001:db8:aaaa::5]\""],
                Some("203.0.113.7"),
            ),
            (&[], Some("10.0.0.1")),
            // A client that leaves a quote open swallows what its proxy adds, and is not believed.
            (&["for=192.0.2.1;by=\", for=203.0.113.7"], None),
            (&["for=192.0.2.1;by=\"\\, for=203.0.113.7"], None),
            (&["for=192.0.2.1;by=\", for=\"[2001:db8::7]\""], None),
            (&["for=192.0.2.1;by=x\", for=\"203.0.113.7\""], None),
            // Nor is one that leaves a parameter open.
            (&["for=192.0.2.1;, for=203.0.113.7"], None),
            (&["for=192.0.2.1; , for=203.0.113.7"], None),
            (&["for=192.0.2.1;x, for=203.0.113.7"], None),
            (&["for=192.0.2.1;by, for=203.0.113.7;proto=https"], None),
            (&["for=192.0.2.1;=, for=203.0.113.7"], None),
            // What a proxy says and nobody can read.
            (&["for=unknown"], None),
            (&["for=_hidden"], None),
            (&["for=\"_hidden:4711\""], None),
            (&["for="], None),
            (&["for"], None),
            (&[""], None),
            (&["for=203.0.113.7,"], None),
            (&["for=203.0.113.7;"], None),
            (&["proto=https"], None),
            (&["for=192.0.2.1, proto=https"], None),
            (&["for=203.0.113.7;for=192.0.2.1"], None),
            (&["for=203.0.113.7 192.0.2.1"], None),
            (&["for=203.0.113.7\"\""], None),
            (&["203.0.113.7"], None),
        ] {
            let found = found("10.0.0.1", ForwardedHeader::Forwarded, lines);
            assert_eq!(found.as_deref(), expected, "{lines:?}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4096))]

        /// Whatever a client writes, before what its proxy adds or in lines of their own: it is found, or nobody is.
        #[test]
        fn no_tale_of_a_client_is_believed(
            tale in "(for|by|=|;|,|\"|\\\\|\\[|\\]|:| |192\\.0\\.2\\.1|10\\.0\\.0\\.2|2001:db8::9|x|é){0,16}",
            is_own_line: bool,
        ) {
            let told = |header, address: &str| match is_own_line {
                true => found("10.0.0.1", header, &[&tale, address]),
                false => found("10.0.0.1", header, &[&format!("{tale}, {address}")]),
            };
            for (header, written, client) in [
                (ForwardedHeader::XForwardedFor, "203.0.113.7", "203.0.113.7"),
                (ForwardedHeader::XForwardedFor, "2001:db8::7", "2001:db8::7"),
                (ForwardedHeader::Forwarded, "for=203.0.113.7;proto=https", "203.0.113.7"),
                (ForwardedHeader::Forwarded, "for=\"203.0.113.7:1\"", "203.0.113.7"),
                (ForwardedHeader::Forwarded, "for=\"[2001:db8::7]\";by=\"x\"", "2001:db8::7"),
            ] {
                let found = told(header, written);
                prop_assert!(found.is_none() || found.as_deref() == Some(client), "{found:?}");
                prop_assert!(!is_own_line || found.is_some());
            }
        }
    }
}
