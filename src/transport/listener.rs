//! Listening: TCP, TLS, and the beginning of the protocol, before anything of ours sees a connection.
//!
//! A connection is *opening* until its client has shown that it speaks the protocol: the TLS handshake, then the first
//! bytes. That happens on a task of its own, within [`Limits::handshake_timeout`]. So whoever connects and says nothing
//! keeps nobody waiting. Openings have room of their own, and when there are too many of them, the oldest goes: an honest
//! client needs milliseconds, so it is never the oldest for long.
//!
//! A connection that is open takes one of [`Limits::max_connections`]. When all are taken, one on which no known caller has
//! called makes room; when there is none of these, a new one is closed at once, and those that are open go on.

use std::{
    collections::VecDeque,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use futures_util::Stream;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::{AbortHandle, JoinSet},
    time::{self, Sleep},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::{
    admission::Room,
    connection::{Connection, Transport},
    seat::{Seat, Seats},
    tls::Tls,
};

/// What clients speak.
#[derive(Clone, Copy, Debug)]
pub struct Protocol {
    /// Its name in a TLS handshake.
    pub name: &'static [u8],
    /// Whether it is meant by who names none.
    pub assumed: bool,
    /// How many bytes a client sends in any case before it waits for an answer.
    pub beginning_bytes: usize,
}

/// HTTP/2, whose clients begin with a preface.
pub const HTTP2: Protocol = Protocol {
    name: b"h2",
    assumed: false,
    beginning_bytes: 24,
};

/// HTTP/1.1, whose shortest request begins with `GET / HTTP/1.1`. Older clients know of no names.
pub const HTTP1: Protocol = Protocol {
    name: b"http/1.1",
    assumed: true,
    beginning_bytes: 14,
};

/// How many connections may be opening at once.
pub(super) const MAX_OPENING: usize = 1024;

/// How long nothing is accepted after the system could not give us a connection, for want of descriptors for example.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long a client that was refused is given to learn why.
const LINGER: Duration = Duration::from_secs(1);

/// What a listener allows.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// How many connections may be open.
    pub max_connections: usize,
    /// How long opening may take.
    pub handshake_timeout: Duration,
    /// How long it may then take until somebody known calls, or somebody unknown what anyone may call. `None` where nobody
    /// is known.
    pub proof_timeout: Option<Duration>,
    /// How long a peer may take nothing of what is written to it.
    pub write_timeout: Duration,
    /// After which time the streams of a connection are told to end.
    pub max_age: Duration,
    /// How much later it is closed, whatever happens on it.
    pub grace: Duration,
}

/// Accepts connections and opens them. As a stream, it yields those that are open, and never ends.
pub struct Listener {
    tcp: TcpListener,
    tls: Option<Arc<Tls>>,
    protocol: Protocol,
    limits: Limits,
    closing: CancellationToken,
    seats: Seats,
    openings: JoinSet<io::Result<Opened>>,
    /// The openings in the order in which they began; some of them have ended.
    oldest: VecDeque<AbortHandle>,
    /// Runs while nothing is accepted, because accepting has failed.
    pause: Option<Pin<Box<Sleep>>>,
    /// Whether it failed the last time, so that it is told once.
    failing: bool,
}

impl Listener {
    /// Listens on a socket, with TLS or in plain text, until `closing` tells all connections to end.
    pub fn new(
        tcp: TcpListener,
        tls: Option<Arc<Tls>>,
        protocol: Protocol,
        limits: Limits,
        closing: CancellationToken,
    ) -> Self {
        Self {
            tcp,
            tls,
            protocol,
            limits,
            closing,
            seats: Seats::new(limits.max_connections),
            openings: JoinSet::new(),
            oldest: VecDeque::new(),
            pause: None,
            failing: false,
        }
    }

    /// Has its connections take the places of a room, instead of places of its own.
    pub(super) fn within(self, room: &Room) -> Self {
        let seats = Seats::of(room);
        Self { seats, ..self }
    }

    /// Begins to open whatever has connected.
    fn accept(&mut self, context: &mut Context<'_>) {
        loop {
            if let Some(pause) = &mut self.pause {
                if pause.as_mut().poll(context).is_pending() {
                    return;
                }
                self.pause = None;
            }
            match self.tcp.poll_accept(context) {
                Poll::Pending => return,
                Poll::Ready(Ok((tcp, peer))) => {
                    self.failing = false;
                    self.begin(tcp, peer);
                }
                Poll::Ready(Err(error)) if concerns_one_connection(&error) => {}
                Poll::Ready(Err(error)) => {
                    if !self.failing {
                        tracing::warn!(%error, "connections cannot be accepted");
                    }
                    self.failing = true;
                    self.pause = Some(Box::pin(time::sleep(ACCEPT_PAUSE)));
                }
            }
        }
    }

    fn begin(&mut self, tcp: TcpStream, peer: SocketAddr) {
        if !self.seats.has_room() {
            tracing::debug!("a connection is closed: there are as many as there may be");
            return;
        }
        while self.openings.len() >= MAX_OPENING {
            match self.oldest.pop_front() {
                Some(oldest) if oldest.is_finished() => {}
                Some(oldest) => {
                    tracing::debug!("a connection is closed: too many are opening");
                    oldest.abort();
                    break;
                }
                None => break,
            }
        }
        let opening = open(tcp, peer, self.tls.clone(), self.protocol);
        let opening = time::timeout(self.limits.handshake_timeout, opening);
        let opening = async { opening.await.map_err(|_| io::ErrorKind::TimedOut)? };
        self.oldest.push_back(self.openings.spawn(opening));
        if self.oldest.len() > 2 * MAX_OPENING {
            self.oldest.retain(|opening| !opening.is_finished());
        }
    }
}

impl Stream for Listener {
    type Item = io::Result<Connection>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        this.accept(context);
        loop {
            let opened = match ready!(this.openings.poll_join_next(context)) {
                Some(Ok(Ok(opened))) => opened,
                Some(Ok(Err(error))) => {
                    tracing::debug!(%error, "a connection was not opened");
                    continue;
                }
                // Closed to make room.
                Some(Err(_)) => continue,
                // Accepting wakes us.
                None => return Poll::Pending,
            };
            match this.seats.take() {
                Some(seat) => {
                    let closing = this.closing.child_token();
                    let connection = Connection::new(opened, seat, this.limits, closing);
                    return Poll::Ready(Some(Ok(connection)));
                }
                None => {
                    tracing::debug!("a connection is closed: there are as many as there may be");
                }
            }
        }
    }
}

/// Whether accepting failed for one connection only, and can go on at once.
fn concerns_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::Interrupted
            | io::ErrorKind::PermissionDenied
    )
}

/// A connection whose client speaks the protocol.
pub(super) struct Opened {
    pub(super) transport: Transport,
    /// What was read of the protocol so far.
    pub(super) beginning: Vec<u8>,
    pub(super) peer: SocketAddr,
    pub(super) certificate: Option<PeerCertificate>,
}

async fn open(
    tcp: TcpStream,
    peer: SocketAddr,
    tls: Option<Arc<Tls>>,
    protocol: Protocol,
) -> io::Result<Opened> {
    tcp.set_nodelay(true)?;
    let (mut transport, certificate) = match tls {
        None => (Transport::Plain(tcp), None),
        Some(tls) => {
            let handshake = TlsAcceptor::from(tls.current()).accept(tcp);
            let stream = match handshake.into_fallible().await {
                Ok(stream) => stream,
                Err((error, tcp)) => {
                    let _told_or_not = time::timeout(LINGER, linger(tcp)).await;
                    return Err(error);
                }
            };
            let (_, session) = stream.get_ref();
            // Who asks for no protocol at all is let through by rustls.
            if session.alpn_protocol().is_none() && !protocol.assumed {
                return Err(io::Error::other("the client asks for no protocol"));
            }
            let shown = session.peer_certificates().and_then(<[_]>::first);
            let certificate = shown.map(PeerCertificate::read).transpose()?;
            (Transport::Tls(Box::new(stream)), certificate)
        }
    };
    let mut beginning = vec![0; protocol.beginning_bytes];
    transport.read_exact(&mut beginning).await?;
    Ok(Opened {
        transport,
        beginning,
        peer,
        certificate,
    })
}

/// Waits until a client has read why it was refused: closing while something of its own is unread would take that from it.
async fn linger(mut tcp: TcpStream) -> io::Result<()> {
    const MAX_BYTES: u64 = 64 << 10;
    tcp.shutdown().await?;
    tokio::io::copy(&mut tcp.take(MAX_BYTES), &mut tokio::io::sink()).await?;
    Ok(())
}

/// Who is at the other end. An extension of each request.
#[derive(Clone, Debug)]
pub struct ConnectionInfo {
    /// The address.
    pub peer: SocketAddr,
    /// The certificate that the client showed. It was checked: its issuer is one of those that are configured, and it has
    /// not expired.
    pub certificate: Option<Arc<PeerCertificate>>,
    /// Cancelled when the connection is to be left: it has come to its age, or the server shuts down.
    pub closing: CancellationToken,
    /// The place that the connection has.
    pub(super) seat: Arc<Seat>,
}

/// What a client's certificate says of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerCertificate {
    /// Its subject alternative names: the URIs, then the DNS names, each in the order of the certificate. Text, exactly as
    /// the certificate has it. A URI has a colon and a DNS name none; others are left out.
    pub names: Vec<String>,
}

impl PeerCertificate {
    fn read(certificate: &rustls_pki_types::CertificateDer<'_>) -> io::Result<Self> {
        let certificate =
            webpki::EndEntityCert::try_from(certificate).map_err(|_| io::ErrorKind::InvalidData)?;
        // The two kinds have nothing in common, so that none is taken for the other: issuers that are kept to some DNS names
        // may be free in URIs.
        let uris = certificate.valid_uri_names();
        let uris = uris.filter(|name| name.contains(':'));
        let names = certificate.valid_dns_names();
        let names = uris.chain(names.filter(|name| !name.contains(':')));
        Ok(Self {
            names: names.map(str::to_owned).collect(),
        })
    }
}
