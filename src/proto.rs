//! The generated code of package `verdict.v1`, and the few things that cannot be generated.
//!
//! The `.proto` files are the reference; nothing is explained twice here.

#![allow(
    clippy::all,
    unreachable_pub,
    missing_docs,
    reason = "most of this module is generated"
)]

use std::{fmt, sync::LazyLock};

use bytes::Bytes;
use prost_reflect::DescriptorPool;

tonic::include_proto!("verdict.v1");

/// The encoded descriptors of all messages and services, for reflection.
pub const DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/verdict.bin"));

/// The parsed descriptors, for printing messages as JSON.
pub static DESCRIPTORS: LazyLock<DescriptorPool> = LazyLock::new(|| {
    DescriptorPool::decode(DESCRIPTOR_SET).expect("the build script wrote a valid descriptor set")
});

/// `verdict.v1.SubscribeResponse`, with the event as the bytes that lie in the log.
///
/// On the wire a message and a byte string are the same thing: a length and the bytes. Carrying the event as bytes
/// is what lets one encoded event reach every subscriber without being decoded and encoded again.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SubscribeResponse {
    /// Resume after this cursor.
    #[prost(string, tag = "1")]
    pub cursor: String,
    /// What the message is.
    #[prost(oneof = "SubscribeMessage", tags = "2, 3, 4, 5, 6")]
    pub message: Option<SubscribeMessage>,
}

/// The `message` of a [`SubscribeResponse`].
#[derive(Clone, PartialEq, prost::Oneof)]
#[prost(skip_debug)]
pub enum SubscribeMessage {
    /// An encoded `VerificationEvent`.
    #[prost(bytes = "bytes", tag = "2")]
    Event(Bytes),
    /// A sign of life.
    #[prost(message, tag = "3")]
    Heartbeat(Heartbeat),
    /// The stream has reached the end of the log.
    #[prost(message, tag = "4")]
    CaughtUp(CaughtUp),
    /// The stream has fallen out of the live window.
    #[prost(message, tag = "5")]
    FellBehind(FellBehind),
    /// The server is shutting down.
    #[prost(message, tag = "6")]
    Draining(Draining),
}

impl fmt::Debug for SubscribeMessage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Event(event) => write!(f, "Event({} bytes)", event.len()),
            Self::Heartbeat(_) => f.write_str("Heartbeat"),
            Self::CaughtUp(_) => f.write_str("CaughtUp"),
            Self::FellBehind(_) => f.write_str("FellBehind"),
            Self::Draining(_) => f.write_str("Draining"),
        }
    }
}

impl prost::Name for SubscribeResponse {
    const NAME: &'static str = "SubscribeResponse";
    const PACKAGE: &'static str = "verdict.v1";
}

impl fmt::Debug for PersonalData {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PersonalData(redacted)")
    }
}

impl fmt::Debug for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reason")
            .field("code", &self.code())
            .field("provider_code", &self.provider_code)
            .field("provider_category", &self.provider_category)
            .field("message_bytes", &self.message.len())
            .finish()
    }
}

impl fmt::Debug for Header {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Header({:?}, redacted)", self.name)
    }
}

impl fmt::Debug for IngestRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IngestRequest")
            .field("provider", &self.provider)
            .field("account", &self.account)
            .field("payload_bytes", &self.payload.len())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Delivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Delivery")
            .field("provider", &self.provider)
            .field("account", &self.account)
            .field("payload_bytes", &self.payload.len())
            .finish_non_exhaustive()
    }
}
