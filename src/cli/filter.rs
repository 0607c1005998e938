//! Which events a command is about.

use clap::ValueEnum;

use crate::proto::{EventFilter, EventKind, Outcome};

/// The fields are combined with AND, the values of one with OR.
#[derive(Debug, clap::Args)]
pub(super) struct FilterArgs {
    /// Only events of this provider. Can be given more than once, like all that follow.
    #[arg(long)]
    provider: Vec<String>,

    /// Only events of this account.
    #[arg(long)]
    account: Vec<String>,

    /// Only events of this kind.
    #[arg(long, value_enum)]
    kind: Vec<Kind>,

    /// Only events with this outcome, for example approved.
    #[arg(long, value_parser = outcome)]
    outcome: Vec<Outcome>,

    /// Only events about the subject with this id at the provider.
    #[arg(long)]
    subject_id: Vec<String>,

    /// Only events about the subject with this id of ours.
    #[arg(long)]
    external_id: Vec<String>,

    /// Only events of the verification with this id.
    #[arg(long)]
    verification_id: Vec<String>,

    /// Only events whose outcome is final.
    #[arg(long)]
    final_only: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Kind {
    Verification,
    SubjectChange,
    CredentialShare,
}

fn outcome(name: &str) -> Result<Outcome, String> {
    let full = format!("OUTCOME_{}", name.to_uppercase().replace('-', "_"));
    Outcome::from_str_name(&full).ok_or_else(|| format!("no outcome is called {name}"))
}

impl From<FilterArgs> for EventFilter {
    fn from(args: FilterArgs) -> Self {
        let FilterArgs {
            provider,
            account,
            kind,
            outcome,
            subject_id,
            external_id,
            verification_id,
            final_only,
        } = args;
        let number = |kind| match kind {
            Kind::Verification => EventKind::Verification.into(),
            Kind::SubjectChange => EventKind::SubjectChange.into(),
            Kind::CredentialShare => EventKind::CredentialShare.into(),
        };
        Self {
            providers: provider,
            accounts: account,
            environments: Vec::new(),
            kinds: kind.into_iter().map(number).collect(),
            outcomes: outcome.into_iter().map(Into::into).collect(),
            subject_ids: subject_id,
            external_ids: external_id,
            verification_ids: verification_id,
            final_only,
        }
    }
}
