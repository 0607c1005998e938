//! `verdict erase`

use std::io::{self, IsTerminal, Write};

use super::{
    CliError,
    client::{EndpointArg, failure},
    output::{self, Format},
};
use crate::{
    config::DEFAULT_ACCOUNT,
    proto::{
        EraseSubjectRequest, admin_service_client::AdminServiceClient,
        erase_subject_request::Subject,
    },
};

/// Erases a subject: nobody can read its personal data and raw deliveries again.
///
/// The events stay, without personal data, and so does their order. It can be run again at any time. Copies that
/// subscribers have made are not reached, nor are the ids of the subject and the outcomes in its events.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The provider that verified the subject.
    #[arg(long)]
    provider: String,

    /// The account at the provider.
    #[arg(long, default_value = DEFAULT_ACCOUNT)]
    account: String,

    #[command(flatten)]
    id: IdArgs,

    /// Do not ask.
    #[arg(long)]
    yes: bool,

    /// How to print. The default is readable on a terminal and a JSON line in a pipe.
    #[arg(long, value_enum)]
    format: Option<Format>,

    #[command(flatten)]
    server: EndpointArg,
}

/// By which id the subject is known.
#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct IdArgs {
    /// The provider's id of the subject.
    #[arg(long, value_name = "ID")]
    subject_id: Option<String>,

    /// Your own id of the subject, as given to the provider.
    #[arg(long, value_name = "ID")]
    external_id: Option<String>,

    /// The id of a verification, for a subject without any other id.
    #[arg(long, value_name = "ID")]
    verification_id: Option<String>,
}

impl IdArgs {
    fn into_subject(self) -> Option<Subject> {
        let subject = self.subject_id.map(Subject::ProviderSubjectId);
        let external = self.external_id.map(Subject::ExternalId);
        let verification = self.verification_id.map(Subject::VerificationId);
        subject.or(external).or(verification)
    }
}

pub(super) async fn run(args: Args) -> Result<(), CliError> {
    if !args.yes && !confirmed(&args.provider, &args.account)? {
        return Err(CliError::Failed("nothing was erased".to_owned()));
    }
    let mut client = AdminServiceClient::new(args.server.connect().await?);
    let request = EraseSubjectRequest {
        provider: args.provider,
        account: args.account,
        subject: args.id.into_subject(),
    };
    let erased = client.erase_subject(request).await;
    let erased = erased.map_err(|status| failure(&status))?.into_inner();
    let text = match Format::or_detect(args.format) {
        Format::Json => output::json(&erased)?,
        Format::Table => format!(
            "{} events are about the subject; their personal data and raw deliveries are erased\n\
             {} deliveries about it were discarded from the quarantine\n\
             {} deliveries of this source are left in the quarantines of which nobody can say whom they are about{}",
            erased.events,
            erased.quarantined_discarded,
            erased.quarantined_unattributed,
            match erased.quarantined_unattributed {
                0 => "",
                _ =>
                    "; look at them with `verdict quarantine list`, and discard those about the subject",
            }
        ),
    };
    output::print(text);
    Ok(())
}

/// Asks at the terminal.
fn confirmed(provider: &str, account: &str) -> Result<bool, CliError> {
    if !io::stdin().is_terminal() {
        return Err(CliError::Usage(
            "this erases for good, and there is no terminal to ask at; add --yes".to_owned(),
        ));
    }
    let question = format!("Erase this subject of {provider}/{account} for good? Type yes: ");
    let mut asked = io::stderr();
    asked
        .write_all(question.as_bytes())
        .and_then(|()| asked.flush())
        .map_err(CliError::failed)?;
    let mut answer = String::new();
    io::stdin()
        .read_line(&mut answer)
        .map_err(CliError::failed)?;
    Ok(answer.trim() == "yes")
}
