//! A connection that is open, and what ends it when HTTP/2 does not: a peer that takes nothing or proves nothing, and age.

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
    time::{self, Sleep},
};
use tokio_rustls::server::TlsStream;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::transport::server::Connected;

use super::{
    listener::{ConnectionInfo, Limits, Opened},
    seat::Seat,
};

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
    /// Until somebody known has called.
    unproved: Option<Unproved>,
}

/// What ends a connection on which nobody known has called.
struct Unproved {
    /// Its place was given to another.
    given_away: Pin<Box<WaitForCancellationFutureOwned>>,
    /// The time that there is for a call; `None` without a limit.
    clock: Option<Pin<Box<Sleep>>>,
    timeout: Duration,
    is_over: bool,
}

impl Unproved {
    fn new(seat: &Seat, timeout: Option<Duration>) -> Self {
        Self {
            given_away: Box::pin(seat.given_away().cancelled_owned()),
            clock: timeout.map(|timeout| Box::pin(time::sleep(timeout))),
            timeout: timeout.unwrap_or_default(),
            is_over: false,
        }
    }

    /// Whether the connection has to go.
    fn is_over(&mut self, seat: &Seat, context: &mut Context<'_>) -> bool {
        while let Some(clock) = &mut self.clock
            && !self.is_over
            && clock.as_mut().poll(context).is_ready()
        {
            match seat.take_has_called() {
                true => clock.set(time::sleep(self.timeout)),
                false => self.is_over = true,
            }
        }
        self.is_over = self.is_over || self.given_away.as_mut().poll(context).is_ready();
        self.is_over
    }
}

impl Connection {
    pub(super) fn new(
        opened: Opened,
        seat: Arc<Seat>,
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
            unproved: Some(Unproved::new(&seat, limits.proof_timeout)),
            info: ConnectionInfo {
                peer,
                certificate: certificate.map(Arc::new),
                closing,
                seat,
            },
            write_timeout: limits.write_timeout,
            stalled: None,
            clock: Box::pin(time::sleep(limits.max_age.saturating_add(AFTER_GOAWAY))),
            grace: limits.grace,
            aged: false,
        }
    }

    /// Whether the connection has to go because nobody known has called on it.
    fn has_to_go(&mut self, context: &mut Context<'_>) -> bool {
        let Some(unproved) = &mut self.unproved else {
            return false;
        };
        let seat = &self.info.seat;
        if seat.is_proved() {
            self.unproved = None;
            return false;
        }
        unproved.is_over(seat, context)
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
        if self.has_to_go(context) {
            // Its place is that of another already.
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
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

impl Drop for Connection {
    fn drop(&mut self) {
        // Calls that have not ended yet know the seat too.
        self.info.seat.leave();
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
        if this.has_to_go(context) {
            // As if the client had gone: so the connection is closed in order.
            return Poll::Ready(Ok(()));
        }
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
