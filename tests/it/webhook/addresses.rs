//! From where a source takes webhooks.

use ipnet::IpNet;
use verdict::{
    config::{self, ForwardedHeader, ServerConfig, Variables},
    provider::RawWebhook,
    source::Source,
};

use super::edge::{Answer, Edge, request};
use crate::support::{fixture_source, gu1_body, memory_log, server_config, sign};

fn networks(networks: &[&str]) -> Vec<IpNet> {
    let networks = networks.iter().map(|network| network.parse());
    networks.collect::<Result<_, _>>().expect("networks")
}

/// A server whose source for gu1 takes webhooks from some addresses only.
async fn edge(allowed: &[&str], proxies: &[&str], header: ForwardedHeader) -> Edge {
    let gu1 = Source {
        allowed_ips: networks(allowed),
        ..fixture_source("gu1")
    };
    let config = ServerConfig {
        webhook_trusted_proxies: networks(proxies),
        webhook_forwarded_header: header,
        ..server_config()
    };
    let kayle = Source {
        allowed_ips: networks(allowed),
        ..fixture_source("kayle")
    };
    let sources = vec![gu1, kayle, fixture_source("ralio")];
    Edge::start_from(sources, config, memory_log()).await
}

fn webhook() -> RawWebhook {
    sign(&fixture_source("gu1"), gu1_body("1"))
}

async fn posted(edge: &Edge, more_headers: &str) -> Answer {
    let webhook = webhook();
    let mut headers = more_headers.to_owned();
    for (name, value) in webhook.headers.iter() {
        headers.push_str(&format!("{name}: {value}\r\n"));
    }
    edge.send(&request("/webhooks/gu1", &headers, &webhook.payload))
        .await
}

#[tokio::test]
async fn others_are_refused_before_they_are_read() {
    let edge = edge(
        &["203.0.113.0/24", "2001:db8::/32"],
        &[],
        ForwardedHeader::XForwardedFor,
    )
    .await;
    for tale in [
        "",
        "X-Forwarded-For: 203.0.113.7\r\n",
        "Forwarded: for=203.0.113.7\r\n",
        "X-Real-IP: 203.0.113.7\r\n",
    ] {
        let answer = posted(&edge, tale).await;
        assert_eq!(
            (answer.status, answer.reason().as_str()),
            (403, "ADDRESS_NOT_ALLOWED"),
            "{tale}"
        );
    }
    // Nobody waits for its body.
    let head = "POST /webhooks/gu1 HTTP/1.1\r\nHost: e\r\nContent-Length: 1000\r\n\r\n";
    assert_eq!(edge.send(head.as_bytes()).await.status, 403);
    let rejected = edge.rejected("gu1", "address_not_allowed");
    assert_eq!(rejected.as_deref(), Some("5"));
    assert_eq!(edge.answered("gu1", 403).as_deref(), Some("5"));
    // Other sources are not meant.
    let other = request("/webhooks/ralio", "", b"{}");
    assert_eq!(edge.send(&other).await.status, 401);
    edge.stop().await;
}

#[tokio::test]
async fn a_peer_that_is_allowed_is_let_in_whatever_it_says() {
    let edge = edge(&["127.0.0.1/32"], &[], ForwardedHeader::XForwardedFor).await;
    for tale in [
        "",
        "X-Forwarded-For: 192.0.2.1\r\n",
        "Forwarded: for=\"\r\n",
    ] {
        assert_eq!(posted(&edge, tale).await.status, 200, "{tale}");
    }
    edge.stop().await;
}

#[tokio::test]
async fn trusted_proxies_say_for_whom_they_speak() {
    let allowed = ["203.0.113.0/24"];
    let proxies = ["127.0.0.0/8", "10.0.0.0/8"];
    let x_forwarded_for = edge(&allowed, &proxies, ForwardedHeader::XForwardedFor).await;
    for (tale, status) in [
        ("X-Forwarded-For: 203.0.113.7\r\n", 200),
        ("X-Forwarded-For: 203.0.113.7, 10.0.0.1\r\n", 200),
        (
            "X-Forwarded-For: 203.0.113.7\r\nX-Forwarded-For: 10.0.0.1\r\n",
            200,
        ),
        ("X-Forwarded-For: 203.0.113.7, 192.0.2.1\r\n", 403),
        (
            "X-Forwarded-For: 203.0.113.7\r\nX-Forwarded-For: 192.0.2.1\r\n",
            403,
        ),
        ("X-Forwarded-For: 203.0.113.7, rubbish\r\n", 503),
        ("Forwarded: for=203.0.113.7\r\n", 403),
        ("", 403),
    ] {
        let answer = posted(&x_forwarded_for, tale).await;
        assert_eq!(answer.status, status, "{tale}");
    }
    // Who comes again after a 403 is given one, whoever is to blame.
    let rubbish = "X-Forwarded-For: rubbish\r\n";
    let other = request("/webhooks/kayle", rubbish, b"{}");
    assert_eq!(x_forwarded_for.send(&other).await.status, 403);
    for (provider, reason, count) in [
        ("gu1", "address_unknown", "1"),
        ("gu1", "address_not_allowed", "4"),
        ("kayle", "address_unknown", "1"),
    ] {
        let counted = x_forwarded_for.rejected(provider, reason);
        assert_eq!(counted.as_deref(), Some(count), "{provider} {reason}");
    }
    x_forwarded_for.stop().await;
    let forwarded = edge(&allowed, &proxies, ForwardedHeader::Forwarded).await;
    for (tale, status) in [
        ("Forwarded: for=203.0.113.7;proto=https\r\n", 200),
        (
            "Forwarded: for=192.0.2.1, for=\"203.0.113.7:4711\"\r\n",
            200,
        ),
        (
            "Forwarded: for=203.0.113.7\r\nForwarded: for=192.0.2.1\r\n",
            403,
        ),
        ("Forwarded: for=203.0.113.7;by=\", for=192.0.2.1\r\n", 503),
        ("X-Forwarded-For: 203.0.113.7\r\n", 403),
    ] {
        let answer = posted(&forwarded, tale).await;
        assert_eq!(answer.status, status, "{tale}");
    }
    forwarded.stop().await;
}

#[test]
fn addresses_and_networks_are_configured() {
    let load = |allowed: &str| {
        let text = format!(
            "[[sources]]\nprovider = \"gu1\"\nsecrets = [{{ id = \"a\", env = \"S\" }}]\n{allowed}"
        );
        let variables = Variables::from([("S".to_owned(), "s".to_owned())]);
        let config = config::parse(&text, &variables).and_then(|config| config.check(&variables));
        config.map(|mut loaded| loaded.sources.remove(0).allowed_ips)
    };
    assert_eq!(load("").unwrap(), []);
    assert_eq!(load("allowed_ips = []").unwrap(), []);
    let allowed = load(r#"allowed_ips = ["203.0.113.0/24", "2001:db8::/32", "192.0.2.7", "::1"]"#);
    let expected = ["203.0.113.0/24", "2001:db8::/32", "192.0.2.7/32", "::1/128"];
    assert_eq!(allowed.unwrap(), networks(&expected));
    for bad in [
        "",
        "example.com",
        "203.0.113.0/33",
        "203.0.113.7:80",
        "203.0.113",
        "::ffff:203.0.113.7",
        "::ffff:203.0.113.0/120",
    ] {
        let refused = load(&format!("allowed_ips = [\"{bad}\"]"))
            .unwrap_err()
            .to_string();
        assert!(refused.contains("allowed_ips"), "{refused}");
        assert!(!refused.contains('\n'), "{refused}");
    }
}
