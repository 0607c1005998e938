//! `verdict serve`

use std::{io, net::SocketAddr, process, sync::Arc, thread, time::Duration};

use rustix::process::{Resource, getrlimit, setrlimit};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::watch,
};
use tokio_util::sync::CancellationToken;
use tracing::{Level, field};

use super::{CliError, ConfigArg, output};
use crate::{
    audit::Audit,
    config::ServerConfig,
    log::{Health, Position},
    telemetry::Telemetry,
    transport::{self, Access, Listeners, Service, tls::ServerTls},
};

const INSECURE: &str = "server.insecure is set: without TLS anyone on the way can listen in, and without callers anyone who \
                        can connect may read and write";

const WEBHOOK_INSECURE: &str =
    "server.webhook_insecure is set: without TLS before it anyone on the way can read webhooks";

const OPS_INSECURE: &str =
    "server.ops_insecure is set: anyone who can connect may read the metrics";

/// Runs the service.
///
/// Logs go to standard error: readable on a terminal, JSON lines elsewhere. VERDICT__TELEMETRY__LOG_LEVELS says which there
/// are, for example debug. SIGTERM or Ctrl-C stops the service: subscribers are told, calls in flight finish. A second one
/// ends it at once.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    config: ConfigArg,
}

pub(super) async fn run(args: Args) -> Result<(), CliError> {
    let loaded = args.config.load()?;
    ServerTls::load(&loaded.server).map_err(CliError::tls)?;
    // Dropped when all is over, however that comes: the last traces are sent then.
    let (telemetry, _exporter) = Telemetry::start(&loaded.telemetry)
        .map_err(|error| CliError::Usage(format!("configuration: {error}")))?;
    raise_open_files(transport::max_open_files(&loaded.server));
    let time_to_stop = time_to_stop(&loaded.server);
    let stop = stop_signal(time_to_stop).map_err(CliError::failed)?;

    let path = loaded.log.path.clone();
    let log = transport::open_log(&loaded.log).map_err(|error| CliError::file(&path, error))?;
    tokio::spawn(stop_with(log.health(), time_to_stop));
    let address = loaded.server.grpc_listen;
    let listeners = Listeners {
        grpc: bind("grpc_listen", address).await?,
        webhook: match loaded.server.webhook_listen {
            Some(address) => Some(bind("webhook_listen", address).await?),
            None => None,
        },
        ops: match loaded.server.ops_listen {
            Some(address) => Some(bind("ops_listen", address).await?),
            None => None,
        },
    };
    let audit = match &loaded.audit_path {
        Some(path) => Some(Audit::open(path).map_err(|error| CliError::file(path, error))?),
        None => None,
    };
    let access = Access {
        callers: Arc::new(loaded.callers),
        audit,
    };
    for (is_set, risk) in [
        (loaded.server.insecure, INSECURE),
        (loaded.server.webhook_insecure, WEBHOOK_INSECURE),
        (loaded.server.ops_insecure, OPS_INSECURE),
    ] {
        // No level of logging hides it.
        match (is_set, telemetry.shows(Level::WARN)) {
            (false, _) => {}
            (true, true) => tracing::warn!(risk, "the server is insecure"),
            (true, false) => output::complain(&format!("warning: {risk}")),
        }
    }
    let address = |listener: &Option<TcpListener>| {
        let address = listener.as_ref().map(TcpListener::local_addr).transpose();
        address.map_err(CliError::failed)
    };
    tracing::info!(
        server.tls = loaded.server.tls.is_some(),
        server.address = %listeners.grpc.local_addr().map_err(CliError::failed)?,
        server.webhook_address = address(&listeners.webhook)?.map(field::display),
        server.ops_address = address(&listeners.ops)?.map(field::display),
        log.id = %log.cursor(Position(0)).log,
        log.position = log.tail().end().0,
        sources = loaded.sources.len(),
        callers = access.callers.names().count(),
        "serving"
    );
    let sources = loaded.sources.into_iter().map(Arc::new).collect();
    let service = Service {
        config: loaded.server,
        sources,
        log,
        access,
        telemetry,
    };
    transport::run(service, listeners, stop.cancelled_owned())
        .await
        .map_err(CliError::failed)?;
    tracing::info!("stopped");
    Ok(())
}

async fn bind(key: &str, address: SocketAddr) -> Result<TcpListener, CliError> {
    let bound = TcpListener::bind(address).await;
    bound.map_err(|error| {
        CliError::Failed(format!(
            "cannot listen on {address} (server.{key}): {error}"
        ))
    })
}

/// Takes all file descriptors that the system allows: connections, and the files of the log, need more than the 1,024 that
/// are usual. Whoever opens connections must not keep the log from opening files.
fn raise_open_files(of_connections: usize) {
    // The log, and what else a process has open.
    const OTHERS: u64 = 1024;
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!(%error, "the limit of open files cannot be raised");
    }
    let needed = of_connections as u64 + OTHERS;
    if let Some(allowed) = limit.maximum.filter(|allowed| *allowed < needed) {
        tracing::warn!(
            allowed,
            needed,
            "too few files may be open for the connections that may be (server.max_connections, webhook_max_connections); raise \
             the limit (ulimit -n, LimitNOFILE) or lower these"
        );
    }
}

/// How long stopping may take in all: what the configuration gives it, and what it takes to close the log.
fn time_to_stop(config: &ServerConfig) -> Duration {
    const CLOSING: Duration = Duration::from_secs(10);
    Duration::from_secs(config.drain_delay_seconds + config.shutdown_grace_seconds) + CLOSING
}

/// Cancelled by SIGTERM or SIGINT, whatever else goes on. A second one ends the process at once, and so does a stop that takes
/// too long: a disk that does not answer must not keep it. Nothing that was acknowledged is lost by that, as in a power cut.
fn stop_signal(time_to_stop: Duration) -> io::Result<CancellationToken> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut signal = async move || {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    let stop = CancellationToken::new();
    let stopping = stop.clone();
    tokio::spawn(async move {
        signal().await;
        stopping.cancel();
        end_in(time_to_stop);
        signal().await;
        end_now("told to stop twice");
    });
    Ok(stop)
}

/// A log that has failed for good stops the server too, and that must not take longer either.
async fn stop_with(mut log: watch::Receiver<Health>, time_to_stop: Duration) {
    let failed = log.wait_for(|health| matches!(health, Health::Failed(_)));
    if failed.await.is_ok() {
        end_in(time_to_stop);
    }
}

/// Ends the process in this time, if it has not ended before. A thread does it, because nothing else can be relied on.
fn end_in(time: Duration) {
    thread::spawn(move || {
        thread::sleep(time);
        end_now("stopping takes too long");
    });
}

/// Ends the process as it is.
fn end_now(why: &str) {
    output::complain(&format!("error: {why}; ended at once"));
    process::exit(1);
}
