//! The commands. Each is one file: its arguments, what it does, what it prints.
//!
//! Results go to standard output: readable on a terminal and JSON lines in a pipe, but of `demo` and `check-config` always
//! for people. Everything else goes to standard error.

mod check_config;
mod client;
mod consumers;
mod demo;
mod erase;
mod filter;
mod keys;
mod log_levels;
mod normalize;
mod output;
mod quarantine;
mod renormalize;
mod send;
mod serve;
mod sources;
mod status;
mod tail;
mod token;

use std::{
    env, fmt,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use clap::{Parser, Subcommand};

use crate::{
    config::{self, ConfigError, Loaded, Variables},
    source::Source,
    transport::tls::SectionError,
};

/// Takes any KYC provider's webhook, proves it genuine, and turns it into one durable, ordered, real-time stream of
/// verification events.
///
/// Start with `verdict demo`: it runs the whole service on this machine and shows what it does.
///
/// Exit codes: 0 success; 1 the command failed; 2 wrong usage or configuration; 3 a webhook was quarantined, or is still
/// in the quarantine.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Serve(serve::Args),
    Demo(demo::Args),
    Send(send::Args),
    Tail(tail::Args),
    Normalize(normalize::Args),
    Quarantine(quarantine::Args),
    Renormalize(renormalize::Args),
    Erase(erase::Args),
    Keys(keys::Args),
    Consumers(consumers::Args),
    LogLevels(log_levels::Args),
    Sources(sources::Args),
    Status(status::Args),
    Token(token::Args),
    CheckConfig(check_config::Args),
}

/// Where the configuration is.
#[derive(Debug, clap::Args)]
struct ConfigArg {
    /// The configuration file.
    #[arg(long, env = "VERDICT_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
}

impl ConfigArg {
    fn load(&self) -> Result<Loaded, CliError> {
        Ok(config::load(self.config.as_deref(), &variables())?)
    }

    /// The source that a command names.
    fn source(&self, provider: &str, account: &str) -> Result<Source, CliError> {
        let sources = self.load()?.sources;
        sources
            .into_iter()
            .find(|source| source.provider.name() == provider && source.account == account)
            .ok_or_else(|| {
                CliError::Usage(format!("source {provider}/{account} is not configured"))
            })
    }
}

/// The variables of the process. One that is not UTF-8 cannot be meant for us.
fn variables() -> Variables {
    env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect()
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
enum CliError {
    /// Wrong arguments.
    #[error("{0}")]
    Usage(String),
    /// Wrong configuration.
    #[error("configuration: {0}")]
    Config(#[from] ConfigError),
    /// Webhooks that mean nothing to us.
    #[error("{0}")]
    Quarantined(String),
    /// Anything else.
    #[error("{0}")]
    Failed(String),
}

impl CliError {
    fn failed(error: impl fmt::Display) -> Self {
        Self::Failed(error.to_string())
    }

    fn tls(error: SectionError) -> Self {
        Self::Usage(format!("configuration: {error}"))
    }

    fn file(path: &Path, error: impl fmt::Display) -> Self {
        Self::Failed(format!("{}: {error}", path.display()))
    }

    fn exit_code(&self) -> ExitCode {
        match self {
            Self::Failed(_) => ExitCode::from(1),
            Self::Usage(_) | Self::Config(_) => ExitCode::from(2),
            Self::Quarantined(_) => ExitCode::from(3),
        }
    }
}

/// How long threads may take to end once the command has.
const LAST_WAIT: Duration = Duration::from_secs(1);

/// Runs the command that the arguments name.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => return report(&CliError::failed(error)),
    };
    let ended = runtime.block_on(run(cli.command));
    // A thread that waits for a disk which does not answer must not keep the process.
    runtime.shutdown_timeout(LAST_WAIT);
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => report(&error),
    }
}

async fn run(command: Command) -> Result<(), CliError> {
    match command {
        Command::Serve(args) => serve::run(args).await,
        Command::Demo(args) => demo::run(args).await,
        Command::Send(args) => send::run(args).await,
        Command::Tail(args) => tail::run(args).await,
        Command::Normalize(args) => normalize::run(args),
        Command::Quarantine(args) => quarantine::run(args).await,
        Command::Renormalize(args) => renormalize::run(args).await,
        Command::Erase(args) => erase::run(args).await,
        Command::Keys(args) => keys::run(args),
        Command::Consumers(args) => consumers::run(args).await,
        Command::LogLevels(args) => log_levels::run(args).await,
        Command::Sources(args) => sources::run(args).await,
        Command::Status(args) => status::run(args).await,
        Command::Token(args) => token::run(args),
        Command::CheckConfig(args) => check_config::run(args),
    }
}

fn report(error: &CliError) -> ExitCode {
    output::complain(&format!("error: {error}"));
    error.exit_code()
}
