//! A connection that is open, and what ends it when HTTP/2 does not: a peer that takes nothing, and age.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    sync::OwnedSemaphorePermit,
    time::{self, Sleep},
};
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Connected;

use super::listener::{ConnectionInfo, Limits, Opened};

/// How much later than the connection its streams are told to end, so that they do not begin anew on the same connection.
const AFTER_GOAWAY: Duration = Duration::from_millis(250);

/// Bytes, in plain text or not.
pub(super) enum Transport {
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
    pub(super) fn new(
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
