//! `verdict check-config`

use super::{CliError, ConfigArg};

/// Checks a configuration and reads its secrets, but opens no log and no port.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    config: ConfigArg,
}

pub(super) fn run(args: Args) -> Result<(), CliError> {
    let loaded = args.config.load()?;
    for source in &loaded.sources {
        let schemes: Vec<&str> = source.schemes.iter().map(|scheme| scheme.name).collect();
        anstream::println!(
            "{}/{}: accepts {}, {} live secrets",
            source.provider.name(),
            source.account,
            schemes.join(", "),
            source.secrets.len()
        );
    }
    anstream::println!("the configuration is good");
    Ok(())
}
