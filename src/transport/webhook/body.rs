//! The bodies of webhooks: received piece by piece, decoded when they are complete, and bounded in every way.

use std::{
    io::{self, Write},
    sync::Arc,
};

use axum::body::{Body, HttpBody};
use bytes::Bytes;
use flate2::bufread::GzDecoder;
use http::{HeaderMap, header};
use http_body_util::BodyExt;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    task,
};

use super::answer::Refusal;
use crate::transport::admission::Room;

/// What webhooks may take at the edge, from the first byte of their bodies until they are answered. Several thousand of the
/// size that providers send.
const MEMORY_BYTES: usize = 64 << 20;

/// What decoding takes beside what goes in and what comes out: the window and the tables of inflate, and a short header.
const DECODER_BYTES: usize = 64 << 10;

/// How many bytes the name and the comment in a header of gzip may have together.
const MAX_GZIP_FIELD_BYTES: usize = 4 << 10;

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

/// How many bytes the webhooks at the edge may take together: room for a compressed one, and what it is decoded to, at least.
pub(in super::super) fn memory_bytes(max_payload_bytes: usize) -> usize {
    let one = max_payload_bytes.saturating_mul(2);
    MEMORY_BYTES.max(one).min(Semaphore::MAX_PERMITS)
}

/// The memory that the webhooks at the edge share: neither many slow bodies nor many large ones can take more.
#[derive(Clone, Debug)]
pub(super) struct Memory(Arc<Semaphore>);

impl Memory {
    /// The places of this room are bytes.
    pub(super) fn of(room: &Room) -> Self {
        Self(Arc::clone(room.places()))
    }

    /// The part of a webhook that has taken nothing yet.
    pub(super) fn nothing(&self) -> Part {
        Part {
            memory: self.clone(),
            taken: None,
        }
    }
}

/// What one webhook has taken. Given back when it is dropped.
#[derive(Debug)]
pub(super) struct Part {
    memory: Memory,
    taken: Option<OwnedSemaphorePermit>,
}

impl Part {
    /// Takes more.
    pub(super) fn take(&mut self, bytes: usize) -> Result<(), Refusal> {
        let bytes = u32::try_from(bytes).map_err(|_| Refusal::Overloaded)?;
        let more = Arc::clone(&self.memory.0).try_acquire_many_owned(bytes);
        let more = more.map_err(|_| Refusal::Overloaded)?;
        match &mut self.taken {
            Some(taken) => taken.merge(more),
            None => self.taken = Some(more),
        }
        Ok(())
    }
}

/// Receives a body as its provider signed it, with the memory that it takes. Both what arrives and what it is decoded to may
/// have so many bytes.
pub(super) async fn receive(
    mut body: Body,
    coding: Coding,
    max_bytes: usize,
    memory: &Memory,
) -> Result<(Bytes, Part), Refusal> {
    if body.size_hint().lower() > max_bytes as u64 {
        return Err(Refusal::PayloadTooLarge);
    }
    let mut payload = Payload::new(max_bytes, memory.nothing());
    while let Some(frame) = body.frame().await {
        // What comes behind a body, its trailers, is not signed.
        let Ok(data) = frame.map_err(|_| Refusal::Malformed)?.into_data() else {
            continue;
        };
        payload.extend(&data)?;
    }
    if coding == Coding::Gzip {
        payload = decode(payload).await?;
    }
    match payload.bytes.is_empty() {
        true => Err(Refusal::Malformed),
        false => Ok((payload.bytes.into(), payload.memory)),
    }
}

/// Decodes a body that is complete: what decoding takes is held for milliseconds, however slowly the body came. It is work
/// for a thread of its own, and who has gone away meanwhile gives nothing back before it is done.
async fn decode(compressed: Payload) -> Result<Payload, Refusal> {
    let decoded = task::spawn_blocking(move || gunzip(&compressed));
    decoded.await.unwrap_or_else(|error| {
        // The text of a panic may quote the webhook.
        tracing::error!(panicked = error.is_panic(), "a body could not be decoded");
        Err(Refusal::Failed)
    })
}

/// What one member of gzip holds. Who compresses a webhook writes one, and each more would cost a decoder of its own.
fn gunzip(compressed: &Payload) -> Result<Payload, Refusal> {
    if !has_short_header(&compressed.bytes) {
        return Err(Refusal::Malformed);
    }
    let mut decoding = compressed.memory.memory.nothing();
    decoding.take(DECODER_BYTES)?;
    let memory = compressed.memory.memory.nothing();
    let mut payload = Payload::new(compressed.max_bytes, memory);
    let mut decoder = GzDecoder::new(&compressed.bytes[..]);
    io::copy(&mut decoder, &mut payload)
        .map_err(|error| error.downcast().unwrap_or(Refusal::Malformed))?;
    match decoder.into_inner().is_empty() {
        true => Ok(payload),
        false => Err(Refusal::Malformed),
    }
}

/// Whether the fields that a header of gzip may have, which say nothing to us, end soon: the decoder keeps them. See
/// <https://www.rfc-editor.org/rfc/rfc1952#section-2.3>.
fn has_short_header(gzip: &[u8]) -> bool {
    const EXTRA: u8 = 1 << 2;
    const NAME: u8 = 1 << 3;
    const COMMENT: u8 = 1 << 4;
    let Some((&[_, _, _, flags, ..], rest)) = gzip.split_first_chunk::<10>() else {
        return false;
    };
    let texts = (flags & (NAME | COMMENT)).count_ones() as usize;
    let ends = rest.iter().take(MAX_GZIP_FIELD_BYTES).filter(|b| **b == 0);
    flags & EXTRA == 0 && ends.take(texts).count() == texts
}

/// Bytes that become more, up to a limit, and take their memory before they do.
struct Payload {
    bytes: Vec<u8>,
    max_bytes: usize,
    memory: Part,
}

impl Payload {
    fn new(max_bytes: usize, memory: Part) -> Self {
        Self {
            bytes: Vec::new(),
            max_bytes,
            memory,
        }
    }

    fn extend(&mut self, data: &[u8]) -> Result<(), Refusal> {
        let needed = self.bytes.len().saturating_add(data.len());
        if needed > self.max_bytes {
            return Err(Refusal::PayloadTooLarge);
        }
        let capacity = self.bytes.capacity();
        if needed > capacity {
            let doubled = capacity.saturating_mul(2).min(self.max_bytes);
            let wanted = needed.max(doubled);
            self.memory.take(wanted - capacity)?;
            self.bytes.reserve_exact(wanted - self.bytes.len());
        }
        self.bytes.extend_from_slice(data);
        Ok(())
    }
}

impl Write for Payload {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.extend(data).map_err(io::Error::other)?;
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
