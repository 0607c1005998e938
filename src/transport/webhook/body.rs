//! The bodies of webhooks: received piece by piece, decoded, and bounded in every way.

use std::{
    io::{self, Write},
    sync::Arc,
};

use axum::body::{Body, HttpBody};
use bytes::Bytes;
use flate2::write::MultiGzDecoder;
use http::{HeaderMap, header};
use http_body_util::BodyExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::answer::Refusal;

/// What webhooks may take at the edge, from the first byte of their bodies until they are answered. Several thousand of the
/// size that providers send.
const MEMORY_BYTES: usize = 64 << 20;

/// What decoding takes by itself.
const DECODER_BYTES: usize = 64 << 10;

/// How a body is coded for the way. What providers sign is what it was before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Coding {
    Identity,
    Gzip,
}

impl Coding {
    pub(super) fn of(headers: &HeaderMap) -> Result<Self, Refusal> {
        let mut coding = Self::Identity;
        for line in headers.get_all(header::CONTENT_ENCODING) {
            let line = line.to_str().map_err(|_| Refusal::UnknownCoding)?;
            for name in line.split(',').map(str::trim) {
                match name.to_ascii_lowercase().as_str() {
                    "" | "identity" => {}
                    "gzip" | "x-gzip" if coding == Self::Identity => coding = Self::Gzip,
                    _ => return Err(Refusal::UnknownCoding),
                }
            }
        }
        Ok(coding)
    }
}

/// The memory that the webhooks at the edge share: neither many slow bodies nor many large ones can take more.
#[derive(Clone, Debug)]
pub(super) struct Memory(Arc<Semaphore>);

impl Memory {
    /// Room for one webhook at least.
    pub(super) fn new(max_payload_bytes: usize) -> Self {
        let bytes = MEMORY_BYTES.max(max_payload_bytes.saturating_mul(2));
        Self(Arc::new(Semaphore::new(bytes.min(Semaphore::MAX_PERMITS))))
    }

    /// The part of a webhook of which nothing has arrived yet.
    pub(super) fn nothing(&self) -> Part {
        Part {
            memory: Arc::clone(&self.0),
            taken: None,
        }
    }
}

/// What one webhook has taken. Given back when it is dropped.
#[derive(Debug)]
pub(super) struct Part {
    memory: Arc<Semaphore>,
    taken: Option<OwnedSemaphorePermit>,
}

impl Part {
    /// Takes more.
    pub(super) fn take(&mut self, bytes: usize) -> Result<(), Refusal> {
        let bytes = u32::try_from(bytes).map_err(|_| Refusal::Overloaded)?;
        let more = Arc::clone(&self.memory).try_acquire_many_owned(bytes);
        let more = more.map_err(|_| Refusal::Overloaded)?;
        match &mut self.taken {
            Some(taken) => taken.merge(more),
            None => self.taken = Some(more),
        }
        Ok(())
    }
}

/// Receives a body as its provider signed it. Both what arrives and what it is decoded to may have so many bytes.
pub(super) async fn receive(
    mut body: Body,
    coding: Coding,
    max_bytes: usize,
    memory: &mut Part,
) -> Result<Bytes, Refusal> {
    if body.size_hint().lower() > max_bytes as u64 {
        return Err(Refusal::PayloadTooLarge);
    }
    let mut decoder = Decoder::new(coding, max_bytes, memory)?;
    let mut arrived: usize = 0;
    while let Some(frame) = body.frame().await {
        // What comes behind a body, its trailers, is not signed.
        let Ok(data) = frame.map_err(|_| Refusal::Malformed)?.into_data() else {
            continue;
        };
        arrived = arrived.saturating_add(data.len());
        if arrived > max_bytes {
            return Err(Refusal::PayloadTooLarge);
        }
        decoder.write_all(&data).map_err(refusal)?;
    }
    let payload = decoder.finish().map_err(refusal)?;
    match payload.is_empty() {
        true => Err(Refusal::Malformed),
        false => Ok(payload.into()),
    }
}

/// Why something could not be decoded: because of us, or because it is not what it should be.
fn refusal(error: io::Error) -> Refusal {
    error.downcast().unwrap_or(Refusal::Malformed)
}

enum Decoder<'m> {
    Identity(Payload<'m>),
    Gzip(MultiGzDecoder<Payload<'m>>),
}

impl<'m> Decoder<'m> {
    fn new(coding: Coding, max_bytes: usize, memory: &'m mut Part) -> Result<Self, Refusal> {
        if coding == Coding::Gzip {
            memory.take(DECODER_BYTES)?;
        }
        let payload = Payload {
            bytes: Vec::new(),
            max_bytes,
            memory,
        };
        Ok(match coding {
            Coding::Identity => Self::Identity(payload),
            Coding::Gzip => Self::Gzip(MultiGzDecoder::new(payload)),
        })
    }

    fn write_all(&mut self, data: &[u8]) -> io::Result<()> {
        match self {
            Self::Identity(payload) => payload.write_all(data),
            Self::Gzip(decoder) => decoder.write_all(data),
        }
    }

    fn finish(self) -> io::Result<Vec<u8>> {
        let payload = match self {
            Self::Identity(payload) => payload,
            Self::Gzip(decoder) => decoder.finish()?,
        };
        Ok(payload.bytes)
    }
}

/// Bytes that become more, up to a limit, and take their memory before they do.
struct Payload<'m> {
    bytes: Vec<u8>,
    max_bytes: usize,
    memory: &'m mut Part,
}

impl Write for Payload<'_> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let needed = self.bytes.len().saturating_add(data.len());
        if needed > self.max_bytes {
            return Err(io::Error::other(Refusal::PayloadTooLarge));
        }
        let capacity = self.bytes.capacity();
        if needed > capacity {
            let doubled = capacity.saturating_mul(2).min(self.max_bytes);
            let wanted = needed.max(doubled);
            self.memory
                .take(wanted - capacity)
                .map_err(io::Error::other)?;
            self.bytes.reserve_exact(wanted - self.bytes.len());
        }
        self.bytes.extend_from_slice(data);
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
