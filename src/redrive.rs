//! The way out of the quarantine: a stored delivery goes through the current adapters again.
//!
//! It leaves the quarantine only when what it has become is durable. So redriving can be repeated at any time: a delivery
//! that had become an event before the server went down is a duplicate the next time, and is released then.

use std::sync::Arc;

use prost_types::Timestamp as ProtoTimestamp;
use tracing::info;
use uuid::Uuid;

use crate::{
    delivery::{self, Undecodable},
    ingest::{EventPlace, Ingestor, Receipt, Settled, jiff_timestamp},
    log::{AppendError, Origin, QuarantineKind, StoredQuarantined},
    provider::{VerifiedWebhook, signature::VerifyError},
    source::Source,
};

/// What became of a quarantined delivery.
#[must_use]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Redriven {
    /// It is a new event now.
    Accepted(EventPlace),
    /// It is an event already.
    Duplicate(EventPlace),
    /// It is known now, but not about verification.
    Ignored,
    /// It is genuine, but not understood for another reason than the one it is here for: it has moved in the quarantine of
    /// genuine deliveries, or into it, to where a redelivery would come.
    Moved {
        /// Its id now.
        id: Uuid,
        /// Why it is not understood.
        detail: String,
    },
    /// It is genuine, but still not understood, for the same reason. Why.
    Doubtful(String),
    /// It is still not proved genuine. Why.
    Unproven(String),
}

/// Why a delivery cannot be run through an adapter at all.
#[derive(Debug, thiserror::Error)]
enum Unusable {
    #[error(transparent)]
    Undecodable(#[from] Undecodable),
    #[error("no source with its provider and account is configured any more")]
    SourceNotFound,
    #[error(transparent)]
    Verify(#[from] VerifyError),
}

/// A delivery that is proved genuine.
struct Proven<'i> {
    source: &'i Arc<Source>,
    webhook: VerifiedWebhook,
    received_at: ProtoTimestamp,
}

impl Ingestor {
    /// Runs the quarantined delivery with this id through the current adapters, and takes it out of its quarantine if it
    /// has no more business there.
    ///
    /// The counts of its source stay as they are: they tell of deliveries, and this one was counted when it came.
    pub async fn redrive(
        &self,
        id: Uuid,
        stored: &StoredQuarantined,
    ) -> Result<Redriven, AppendError> {
        let redriven = self.try_again(id, stored).await?;
        match &redriven {
            Redriven::Accepted(_)
            | Redriven::Duplicate(_)
            | Redriven::Ignored
            | Redriven::Moved { .. } => {
                self.log.release(id).await?;
            }
            Redriven::Doubtful(_) | Redriven::Unproven(_) => {}
        }
        info!(quarantine.id = %id, outcome = redriven.name(), "a quarantined delivery was redriven");
        Ok(redriven)
    }

    async fn try_again(
        &self,
        id: Uuid,
        stored: &StoredQuarantined,
    ) -> Result<Redriven, AppendError> {
        let proven = match self.prove(stored) {
            Ok(proven) => proven,
            Err(unusable) => {
                let why = unusable.to_string();
                return Ok(match stored.kind {
                    QuarantineKind::Genuine => Redriven::Doubtful(why),
                    QuarantineKind::Unverified => Redriven::Unproven(why),
                });
            }
        };
        let Proven {
            source,
            webhook,
            received_at,
        } = proven;
        let receipt = Receipt {
            received_at,
            trace: None,
            origin: Origin::Redriven,
        };
        let (webhook, doubt) = match self.settle(source, webhook, receipt).await? {
            Settled::Accepted(place) => return Ok(Redriven::Accepted(place)),
            Settled::Duplicate(place) => return Ok(Redriven::Duplicate(place)),
            Settled::Ignored => return Ok(Redriven::Ignored),
            Settled::Doubtful(webhook, doubt) => (webhook, doubt),
        };
        let detail = doubt.detail.clone();
        // It follows from the reason.
        if doubt.quarantine_id(source, &webhook) == id {
            return Ok(Redriven::Doubtful(detail));
        }
        let moved = self.quarantine(source, &webhook, received_at, doubt).await;
        Ok(Redriven::Moved { id: moved?, detail })
    }

    /// A genuine delivery was proved so when it came. Any other has to be now, as of the moment when it came: a time that
    /// was right then has passed since.
    fn prove(&self, stored: &StoredQuarantined) -> Result<Proven<'_>, Unusable> {
        let (delivery, received_at) = delivery::decode(&stored.delivery)?;
        let source = self
            .source(&delivery.provider, &delivery.account)
            .ok_or(Unusable::SourceNotFound)?;
        let webhook = match stored.kind {
            QuarantineKind::Genuine => delivery::verified(source, delivery)?,
            QuarantineKind::Unverified => {
                let at = jiff_timestamp(received_at).ok_or(Undecodable)?;
                source.verify(delivery::raw(delivery), at)?
            }
        };
        Ok(Proven {
            source,
            webhook,
            received_at,
        })
    }
}

impl Redriven {
    fn name(&self) -> &'static str {
        match self {
            Self::Accepted(_) => "accepted",
            Self::Duplicate(_) => "duplicate",
            Self::Ignored => "ignored",
            Self::Moved { .. } => "moved",
            Self::Doubtful(_) => "not understood",
            Self::Unproven(_) => "not genuine",
        }
    }
}
