//! verdict takes any KYC provider's webhook, proves it genuine, and turns it into one durable, ordered, real-time
//! stream of `VerificationEvent`s.
//!
//! Data flows one way, and the modules below stand in its order; `ARCHITECTURE.md` draws the picture.
//!
//! - [`proto`]: the generated code of package `verdict.v1`, the vocabulary of all that follows.
//! - [`event`]: the ids, the encoding and the JSON of events.
//! - `wire`: the fields of an encoded message, without decoding it.
//! - [`marks`]: what of an encoded event can be filtered by, as numbers.
//! - [`error`]: the reasons that callers can be given.
//! - [`caller`]: who calls, and what they may do.
//! - [`audit`]: who has done what.
//! - [`provider`]: how each provider signs, and what its words mean in ours.
//! - [`keyring`]: the secrets of a source, which follow their files.
//! - [`source`]: the configured sources.
//! - `delivery`: the evidence behind each event, as it is stored.
//! - `allowance`: how often something may be done.
//! - `ending`: how deliveries have ended, for operators.
//! - [`ingest`]: the way of one webhook, from its bytes to its answer.
//! - [`redrive`]: the way out of the quarantine.
//! - [`erase`]: how a subject is erased.
//! - [`renormalize`]: what the stored deliveries would become today.
//! - `diff`: what is different between two events.
//! - [`log`]: where events become durable and get their order.
//! - [`filter`]: which events a subscriber wants.
//! - [`subscription`]: a position in, a stream out.
//! - [`reload`]: files that are read again while the server runs.
//! - [`telemetry`]: what operators see: logs, traces, metrics.
//! - [`config`]: the configuration, checked in full before anything is opened.
//! - [`transport`]: the network, and the one place that knows it.
//! - [`http_file`]: webhooks in files.
//! - [`cli`]: the commands.

#![forbid(unsafe_code)]

mod allowance;
pub mod audit;
pub mod caller;
pub mod cli;
pub mod config;
mod delivery;
mod diff;
mod ending;
pub mod erase;
pub mod error;
pub mod event;
pub mod filter;
pub mod http_file;
pub mod ingest;
pub mod keyring;
pub mod log;
pub mod marks;
pub mod proto;
pub mod provider;
pub mod redrive;
pub mod reload;
pub mod renormalize;
pub mod source;
pub mod subscription;
pub mod telemetry;
pub mod transport;
mod wire;
