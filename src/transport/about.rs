//! What the audit log tells of requests: what they are about, and never what identifies a person.

use sha2::{Digest, Sha256};
use tonic::codec::Streaming;

use super::grpc::account_or_default;
use crate::{
    audit::About,
    proto::{
        CommitCursorRequest, DeleteConsumerRequest, DiscardQuarantinedRequest, EraseSubjectRequest,
        GetDeliveryRequest, GetEventRequest, GetStatusRequest, GetVerificationRequest,
        IngestRequest, ListEventsRequest, ListQuarantinedRequest, ListSourcesRequest,
        QuarantineFilter, RedriveRequest, RenormalizeRequest, SetLogLevelsRequest,
        SubscribeRequest, discard_quarantined_request, erase_subject_request::Subject,
        get_delivery_request, redrive_request,
    },
    telemetry::logs::Levels,
};

/// Requests, as the audit log tells of them.
pub(super) trait Auditable {
    /// What is told.
    fn about(&self) -> About;
}

impl Auditable for IngestRequest {
    fn about(&self) -> About {
        About::default()
    }
}

impl<T> Auditable for Streaming<T> {
    fn about(&self) -> About {
        About::default()
    }
}

impl Auditable for SubscribeRequest {
    fn about(&self) -> About {
        About {
            personal_data: self.include_personal_data,
            consumer: self.consumer.clone(),
            ..About::default()
        }
    }
}

impl Auditable for GetEventRequest {
    fn about(&self) -> About {
        About {
            personal_data: self.include_personal_data,
            event_id: id(&self.event_id),
            ..About::default()
        }
    }
}

impl Auditable for ListEventsRequest {
    fn about(&self) -> About {
        About {
            personal_data: self.include_personal_data,
            ..About::default()
        }
    }
}

impl Auditable for GetVerificationRequest {
    // The id of a verification may be that of a subject, so it is not told.
    fn about(&self) -> About {
        About {
            personal_data: self.include_personal_data,
            provider: self.provider.clone(),
            account: account_or_default(&self.account).to_owned(),
            ..About::default()
        }
    }
}

impl Auditable for CommitCursorRequest {
    fn about(&self) -> About {
        About {
            consumer: self.consumer.clone(),
            ..About::default()
        }
    }
}

impl Auditable for ListSourcesRequest {
    fn about(&self) -> About {
        About::default()
    }
}

impl Auditable for GetStatusRequest {
    fn about(&self) -> About {
        About::default()
    }
}

impl Auditable for ListQuarantinedRequest {
    fn about(&self) -> About {
        About {
            personal_data: self.include_deliveries,
            provider: self.provider.clone(),
            account: self.account.clone(),
            ..About::default()
        }
    }
}

impl Auditable for GetDeliveryRequest {
    fn about(&self) -> About {
        use get_delivery_request::Target;
        let about = About {
            personal_data: true,
            ..About::default()
        };
        match &self.target {
            Some(Target::EventId(event)) => About {
                event_id: id(event),
                ..about
            },
            Some(Target::QuarantineId(delivery)) => About {
                quarantine_id: id(delivery),
                ..about
            },
            None => about,
        }
    }
}

impl Auditable for RedriveRequest {
    fn about(&self) -> About {
        use redrive_request::Target;
        match &self.target {
            Some(Target::QuarantineId(delivery)) => delivery_with(delivery),
            Some(Target::Filter(filter)) => deliveries_of(filter),
            None => About::default(),
        }
    }
}

impl Auditable for DiscardQuarantinedRequest {
    fn about(&self) -> About {
        use discard_quarantined_request::Target;
        match &self.target {
            Some(Target::QuarantineId(delivery)) => delivery_with(delivery),
            Some(Target::Filter(filter)) => deliveries_of(filter),
            None => About::default(),
        }
    }
}

impl Auditable for RenormalizeRequest {
    fn about(&self) -> About {
        About {
            dry_run: self.dry_run,
            ..About::default()
        }
    }
}

impl Auditable for DeleteConsumerRequest {
    fn about(&self) -> About {
        About {
            consumer: self.consumer.clone(),
            ..About::default()
        }
    }
}

impl Auditable for SetLogLevelsRequest {
    fn about(&self) -> About {
        let levels = self.levels.as_deref().map(|levels| match levels {
            "" => "as configured".to_owned(),
            text => match text.parse::<Levels>() {
                Ok(levels) => levels.to_string(),
                Err(_) => "malformed".to_owned(),
            },
        });
        About {
            log_levels: levels.unwrap_or_default(),
            ..About::default()
        }
    }
}

impl Auditable for EraseSubjectRequest {
    fn about(&self) -> About {
        let account = account_or_default(&self.account);
        let subject = match &self.subject {
            Some(
                Subject::ProviderSubjectId(id)
                | Subject::ExternalId(id)
                | Subject::VerificationId(id),
            ) => id.as_str(),
            None => "",
        };
        let text = [&self.provider, account, subject].join("\0");
        About {
            provider: self.provider.clone(),
            account: account.to_owned(),
            subject_sha256: base16ct::lower::encode_string(&Sha256::digest(text)),
            ..About::default()
        }
    }
}

fn delivery_with(quarantine_id: &str) -> About {
    About {
        quarantine_id: id(quarantine_id),
        ..About::default()
    }
}

fn deliveries_of(filter: &QuarantineFilter) -> About {
    About {
        provider: filter.provider.clone(),
        account: filter.account.clone(),
        ..About::default()
    }
}

/// An id, if it is one: anything may stand where one is expected.
fn id(text: &str) -> String {
    match uuid::Uuid::parse_str(text) {
        Ok(id) => id.to_string(),
        Err(_) => "malformed".to_owned(),
    }
}
