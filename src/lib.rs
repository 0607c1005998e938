//! verdict takes any KYC provider's webhook, proves it genuine, and turns it into one durable, ordered, real-time
//! stream of `VerificationEvent`s.
//!
//! Data flows one way, and the modules below are in its order; `ARCHITECTURE.md` draws the picture.

pub mod config;
pub mod error;
pub mod event;
pub mod filter;
pub mod ingest;
pub mod log;
pub mod proto;
pub mod provider;
pub mod source;
pub mod subscription;
pub mod transport;
