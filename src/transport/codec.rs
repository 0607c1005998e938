//! How messages are read from calls: as tonic reads them, once it is sure that they become no larger in memory than they
//! may. A header without name and value has two bytes on the wire and fifty in memory, so half a million of them fit into
//! a request of a size that is allowed.

use std::marker::PhantomData;

use bytes::Buf;
use prost::{
    Message, Name,
    encoding::{self, DecodeContext, WireType},
};
use tonic::{
    Status,
    codec::{BufferSettings, Codec, DecodeBuf, Decoder},
};
use tonic_prost::{ProstCodec, ProstDecoder, ProstEncoder};

use super::{answer::PIECE_BYTES, status};
use crate::config::MAX_HEADERS;

/// The largest request that carries no webhook. A filter has room for all the values that it may have.
const MAX_REQUEST_BYTES: usize = 256 << 10;

/// The codec of all services of ours.
#[derive(Debug)]
pub(crate) struct BoundedCodec<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for BoundedCodec<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> Codec for BoundedCodec<T, U>
where
    T: Message + Name + Send + 'static,
    U: Message + Name + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = ProstEncoder<T>;
    type Decoder = BoundedDecoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        ProstEncoder::new(match T::NAME {
            "SubscribeResponse" | "IngestStreamResponse" => gathered(),
            _ => BufferSettings::default(),
        })
    }

    fn decoder(&mut self) -> Self::Decoder {
        BoundedDecoder(ProstCodec::<T, U>::default().decoder())
    }
}

/// How the messages of a stream are gathered: into what HTTP/2 is handed at once, with room for the one that exceeds it, so
/// that they are not copied into pieces once more.
fn gathered() -> BufferSettings {
    const USUAL_MESSAGE_BYTES: usize = 1 << 10;
    BufferSettings::new(PIECE_BYTES, PIECE_BYTES - USUAL_MESSAGE_BYTES)
}

/// Looks at a message before it is decoded.
#[derive(Debug)]
pub(crate) struct BoundedDecoder<U>(ProstDecoder<U>);

impl<U: Message + Name + Default> Decoder for BoundedDecoder<U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, source: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        // A message lies in one piece.
        let message = source.chunk();
        let headers: &[u32] = match U::NAME {
            "IngestRequest" => &[3],
            "IngestStreamRequest" => &[2, 3],
            name if name.ends_with("Request") && message.len() > MAX_REQUEST_BYTES => {
                let message = format!("the request has more than {MAX_REQUEST_BYTES} bytes");
                return Err(Status::out_of_range(message));
            }
            _ => &[],
        };
        if count(message, headers, 0) > MAX_HEADERS {
            let description = format!("holds more than {MAX_HEADERS} headers");
            return Err(status::invalid("headers", description));
        }
        self.0.decode(source)
    }

    fn buffer_settings(&self) -> BufferSettings {
        self.0.buffer_settings()
    }
}

/// How many fields there are at the end of this path of field numbers, in addition to so many; it is not counted far beyond
/// the most that is allowed. What cannot be read ends the count: decoding it fails at the same place.
fn count(mut message: &[u8], path: &[u32], mut found: usize) -> usize {
    let Some((wanted, rest)) = path.split_first() else {
        return found + 1;
    };
    while !message.is_empty() && found <= MAX_HEADERS {
        let Ok((tag, wire)) = encoding::decode_key(&mut message) else {
            return found;
        };
        if tag != *wanted || wire != WireType::LengthDelimited {
            match encoding::skip_field(wire, tag, &mut message, DecodeContext::default()) {
                Ok(()) => continue,
                Err(_) => return found,
            }
        }
        let length = encoding::decode_varint(&mut message).ok();
        let length = length.and_then(|length| usize::try_from(length).ok());
        let Some((field, behind)) = length.and_then(|length| message.split_at_checked(length))
        else {
            return found;
        };
        found = count(field, rest, found);
        message = behind;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::{Header, IngestRequest, IngestStreamRequest};

    #[test]
    fn headers_are_counted_wherever_they_stand() {
        let request = |headers| IngestRequest {
            payload: vec![0x1a; 1000].into(),
            provider: "gu1".to_owned(),
            headers: vec![Header::default(); headers],
            ..IngestRequest::default()
        };
        let counted = |headers| count(&request(headers).encode_to_vec(), &[3], 0);
        assert_eq!([0, 1, 100].map(counted), [0, 1, 100]);
        assert_eq!(counted(MAX_HEADERS + 500), MAX_HEADERS + 1);

        let stream = IngestStreamRequest {
            correlation_id: "x".repeat(100),
            request: Some(request(70)),
        };
        // Given twice, a message is both of them together.
        let twice = [stream.encode_to_vec(), stream.encode_to_vec()].concat();
        assert_eq!(count(&twice, &[2, 3], 0), 140);
        assert_eq!(
            IngestStreamRequest::decode(&twice[..])
                .unwrap()
                .request
                .unwrap()
                .headers
                .len(),
            140
        );
        for cut in 0..twice.len() {
            assert!(count(&twice[..cut], &[2, 3], 0) <= 140);
        }
    }
}
