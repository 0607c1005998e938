//! `verdict check-config`

use super::{CliError, ConfigArg};
use crate::transport::tls::ServerTls;

/// Checks a configuration and reads its secrets and certificates, but opens no log and no port.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    config: ConfigArg,
}

pub(super) fn run(args: Args) -> Result<(), CliError> {
    let loaded = args.config.load()?;
    ServerTls::load(&loaded.server).map_err(CliError::tls)?;
    for source in &loaded.sources {
        let schemes: Vec<&str> = source.schemes.iter().map(|scheme| scheme.name).collect();
        anstream::println!(
            "{}/{}: accepts {}, {} live secrets",
            source.provider.name(),
            source.account,
            schemes.join(", "),
            source.keys().secrets.len()
        );
    }
    let server = &loaded.server;
    anstream::println!("gRPC on {}", server.grpc_listen);
    for (what, listen) in [
        ("webhooks", server.webhook_listen),
        ("metrics and probes", server.ops_listen),
    ] {
        match listen {
            Some(address) => anstream::println!("{what} on {address}"),
            None => anstream::println!("{what} nowhere"),
        }
    }
    for (key, is_set) in [
        ("insecure", server.insecure),
        ("webhook_insecure", server.webhook_insecure),
        ("ops_insecure", server.ops_insecure),
    ] {
        if is_set {
            anstream::println!("server.{key} is set, which is warned about at every start");
        }
    }
    for name in loaded.callers.names() {
        anstream::println!("caller {name}");
    }
    if !loaded.callers.are_asked() {
        anstream::println!("no callers: whoever can connect may do everything");
    }
    anstream::println!("the configuration is good");
    Ok(())
}
