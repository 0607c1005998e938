//! Listening: TCP, TLS, and the beginning of the protocol, before anything of ours sees a connection.
//!
//! A connection is *opening* until its client has shown that it speaks the protocol: the TLS handshake, then the first
//! bytes. That happens on a task of its own, within [`Limits::handshake_timeout`]. So whoever connects and says nothing
//! keeps nobody waiting. Openings have room of their own, and when there are too many of them, the oldest goes: an honest
//! client needs milliseconds, so it is never the oldest for long.
//!
//! A connection that is open takes one of [`Limits::max_connections`]. When all are taken, a new one is closed at once, and
//! those that are open go on.
//!
//! What HTTP/2 does not end by itself ends here: a connection whose peer takes nothing of what is written to it, and one
//! that has outlived its age and its grace.

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
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    task::{AbortHandle, JoinSet},
    time::{self, Sleep},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Connected;

use super::tls::Tls;

/// What clients speak.
#[derive(Clone, Copy, Debug)]
pub struct Protocol {
    /// Its name in a TLS handshake.
    pub name: &'static [u8],
    /// How many bytes a client sends in any case before it waits for an answer.
    pub beginning_bytes: usize,
}

/// HTTP/2, whose clients begin with a preface.
pub const HTTP2: Protocol = Protocol {
    name: b"h2",
    beginning_bytes: 24,
};

/// How many connections may be opening at once.
const MAX_OPENING: usize = 1024;

/// How long nothing is accepted after the system could not give us a connection, for want of descriptors for example.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How much later than the connection its streams are told to end, so that they do not begin anew on the same connection.
const AFTER_GOAWAY: Duration = Duration::from_millis(250);

/// How long a client that was refused is given to learn why.
const LINGER: Duration = Duration::from_secs(1);

/// What a listener allows.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// How many connections may be open.
    pub max_connections: usize,
    /// How long opening may take.
    pub handshake_timeout: Duration,
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
    slots: Arc<Semaphore>,
    openings: JoinSet<io::Result<Opened>>,
    /// The openings in the order in which they began; some of them have ended.
    oldest: VecDeque<AbortHandle>,
    pause: Option<Pin<Box<Sleep>>>,
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
            slots: Arc::new(Semaphore::new(limits.max_connections)),
            openings: JoinSet::new(),
            oldest: VecDeque::new(),
            pause: None,
        }
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
                Poll::Ready(Ok((tcp, peer))) => self.begin(tcp, peer),
                Poll::Ready(Err(error)) if concerns_one_connection(&error) => {}
                Poll::Ready(Err(error)) => {
                    tracing::warn!(%error, "connections cannot be accepted");
                    self.pause = Some(Box::pin(time::sleep(ACCEPT_PAUSE)));
                }
            }
        }
    }

    fn begin(&mut self, tcp: TcpStream, peer: SocketAddr) {
        if self.slots.available_permits() == 0 {
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
            match Arc::clone(&this.slots).try_acquire_owned() {
                Ok(slot) => {
                    let closing = this.closing.child_token();
                    let connection = Connection::new(opened, slot, this.limits, closing);
                    return Poll::Ready(Some(Ok(connection)));
                }
                Err(_) => {
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
struct Opened {
    transport: Transport,
    /// What was read of the protocol so far.
    beginning: Vec<u8>,
    peer: SocketAddr,
    certificate: Option<PeerCertificate>,
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
            if session.alpn_protocol() != Some(protocol.name) {
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
}

/// What a client's certificate says of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerCertificate {
    /// Its subject alternative names: the URIs, then the DNS names, each in the order of the certificate. Text, exactly as
    /// the certificate has it.
    pub names: Vec<String>,
}

impl PeerCertificate {
    fn read(certificate: &rustls_pki_types::CertificateDer<'_>) -> io::Result<Self> {
        let certificate =
            webpki::EndEntityCert::try_from(certificate).map_err(|_| io::ErrorKind::InvalidData)?;
        let uris = certificate.valid_uri_names();
        let names = uris.chain(certificate.valid_dns_names());
        Ok(Self {
            names: names.map(str::to_owned).collect(),
        })
    }
}

/// Bytes, in plain text or not.
enum Transport {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// A connection that is open.
pub struct Connection {
    transport: Transport,
    /// What was read while it was opening.
    beginning: Vec<u8>,
    /// How much of that was handed on.
    replayed: usize,
    info: ConnectionInfo,
    write_timeout: Duration,
    /// Runs while the peer takes nothing.
    stalled: Option<Pin<Box<Sleep>>>,
    /// Runs until the connection is to be left, and then until it is closed.
    clock: Pin<Box<Sleep>>,
    grace: Duration,
    aged: bool,
    _slot: OwnedSemaphorePermit,
}

impl Connection {
    fn new(
        opened: Opened,
        slot: OwnedSemaphorePermit,
        limits: Limits,
        closing: CancellationToken,
    ) -> Self {
        let Opened {
            transport,
            beginning,
            peer,
            certificate,
        } = opened;
        Self {
            transport,
            beginning,
            replayed: 0,
            info: ConnectionInfo {
                peer,
                certificate: certificate.map(Arc::new),
                closing,
            },
            write_timeout: limits.write_timeout,
            stalled: None,
            clock: Box::pin(time::sleep(limits.max_age.saturating_add(AFTER_GOAWAY))),
            grace: limits.grace,
            aged: false,
            _slot: slot,
        }
    }

    /// Tells the streams when the connection has come to its age, and fails when its grace is over too.
    fn check_age(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        while self.clock.as_mut().poll(context).is_ready() {
            if self.aged {
                let why = "the connection has lived too long";
                return Err(io::Error::new(io::ErrorKind::TimedOut, why));
            }
            self.aged = true;
            self.info.closing.cancel();
            self.clock.set(time::sleep(self.grace));
        }
        Ok(())
    }

    /// Writes, and fails when the peer has taken nothing for too long.
    fn write<T>(
        &mut self,
        context: &mut Context<'_>,
        write: impl FnOnce(&mut Transport, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        self.check_age(context)?;
        if let Poll::Ready(written) = write(&mut self.transport, context) {
            self.stalled = None;
            return Poll::Ready(written);
        }
        let timeout = self.write_timeout;
        let stalled = self
            .stalled
            .get_or_insert_with(|| Box::pin(time::sleep(timeout)));
        ready!(stalled.as_mut().poll(context));
        Poll::Ready(Err(io::Error::new(
            io::ErrorKind::TimedOut,
            "the peer takes nothing",
        )))
    }
}

impl Connected for Connection {
    type ConnectInfo = ConnectionInfo;

    fn connect_info(&self) -> ConnectionInfo {
        self.info.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.check_age(context)?;
        let beginning = &this.beginning[this.replayed..];
        if beginning.is_empty() {
            return Pin::new(&mut this.transport).poll_read(context, buffer);
        }
        let length = beginning.len().min(buffer.remaining());
        buffer.put_slice(&beginning[..length]);
        this.replayed += length;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().write(context, |transport, context| {
            Pin::new(transport).poll_write(context, bytes)
        })
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().write(context, |transport, context| {
            Pin::new(transport).poll_write_vectored(context, bytes)
        })
    }

    fn is_write_vectored(&self) -> bool {
        self.transport.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().write(context, |transport, context| {
            Pin::new(transport).poll_flush(context)
        })
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().write(context, |transport, context| {
            Pin::new(transport).poll_shutdown(context)
        })
    }
}

impl AsyncRead for Transport {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(context, buffer),
            Self::Tls(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Transport {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(context, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write_vectored(context, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_write_vectored(context, bytes),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(stream) => stream.is_write_vectored(),
            Self::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(context),
            Self::Tls(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}
