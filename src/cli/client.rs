//! The connection to a server: where it is, whom we trust, and who we are.

use std::{env, error::Error, io, path::PathBuf, slice};

use http::Uri;
use rustls::CertificateError;
use rustls_pki_types::{CertificateDer, pem::PemObject};
use tonic::{
    Code, Request, Status,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity},
};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tonic_types::StatusExt;
use zeroize::Zeroizing;

use super::CliError;
use crate::reload::Files;

/// Which server to talk to, and as whom.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Server")]
pub(super) struct EndpointArg {
    /// The server: http:// for plain text, https:// for TLS.
    #[arg(
        long,
        env = "VERDICT_ENDPOINT",
        value_name = "URL",
        default_value = "http://127.0.0.1:50051"
    )]
    endpoint: Uri,

    /// Trust the issuers in this PEM file, instead of those of this machine.
    #[arg(long, env = "VERDICT_CA", value_name = "FILE")]
    ca: Option<PathBuf>,

    /// Show the server this certificate (PEM).
    #[arg(long, env = "VERDICT_CERT", value_name = "FILE", requires = "key")]
    cert: Option<PathBuf>,

    /// The private key of the certificate (PEM).
    #[arg(long, env = "VERDICT_KEY", value_name = "FILE", requires = "cert")]
    key: Option<PathBuf>,

    /// Send the bearer token in this file. Without, the one in VERDICT_TOKEN, if it is set.
    #[arg(long, env = "VERDICT_TOKEN_FILE", value_name = "FILE")]
    token_file: Option<PathBuf>,
}

/// A connection that sends our token with each call.
pub(super) type Connection = InterceptedService<Channel, Token>;

/// The token that is sent with each call, if there is one.
#[derive(Clone)]
pub(super) struct Token(Option<MetadataValue<Ascii>>);

impl Interceptor for Token {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(token) = &self.0 {
            request
                .metadata_mut()
                .insert("authorization", token.clone());
        }
        Ok(request)
    }
}

impl EndpointArg {
    pub(super) async fn connect(&self) -> Result<Connection, CliError> {
        let token = self.token()?;
        let endpoint = Endpoint::from(self.endpoint.clone());
        let channel = match self.is_tls()? {
            true => self.connect_tls(self.tls(endpoint)?).await?,
            false => {
                let connected = endpoint.connect().await;
                connected.map_err(|error| self.unreachable(&error))?
            }
        };
        Ok(InterceptedService::new(channel, token))
    }

    /// Connects, and has the server answer. With TLS 1.3 a client takes itself for connected before the server has looked at
    /// its certificate, and only a call can show that it was refused, and why.
    async fn connect_tls(&self, endpoint: Endpoint) -> Result<Channel, CliError> {
        let mut attempts = 16;
        loop {
            let connected = endpoint.connect().await;
            let channel = connected.map_err(|error| self.unreachable(&error))?;
            let mut health = HealthClient::new(channel.clone());
            let Err(status) = health.check(HealthCheckRequest::default()).await else {
                return Ok(channel);
            };
            attempts -= 1;
            match status.source() {
                // The server's own answer, whatever it is.
                None => return Ok(channel),
                // The connection broke before the call was on it, which hides why. It is the same the next time.
                Some(_) if status.code() == Code::Cancelled && attempts > 0 => {}
                Some(error) => return Err(self.unreachable(error)),
            }
        }
    }

    fn is_tls(&self) -> Result<bool, CliError> {
        let usage = |message: &str| Err(CliError::Usage(format!("{}: {message}", self.endpoint)));
        match self.endpoint.scheme_str() {
            Some("https") => Ok(true),
            Some("http") if self.ca.is_some() || self.cert.is_some() => {
                usage("--ca, --cert and --key need an endpoint with https://")
            }
            Some("http") => Ok(false),
            _ => usage("an endpoint begins with http:// or https://"),
        }
    }

    fn tls(&self, endpoint: Endpoint) -> Result<Endpoint, CliError> {
        let mut tls = match &self.ca {
            None => ClientTlsConfig::new().with_native_roots(),
            Some(path) => {
                let pem = read(path)?;
                let mut certificates = CertificateDer::pem_slice_iter(&pem);
                if certificates.next().is_none_or(|first| first.is_err()) {
                    let message = format!("--ca {}: no certificate in PEM", path.display());
                    return Err(CliError::Usage(message));
                }
                ClientTlsConfig::new().ca_certificate(Certificate::from_pem(&*pem))
            }
        };
        if let (Some(cert), Some(key)) = (&self.cert, &self.key) {
            tls = tls.identity(Identity::from_pem(&*read(cert)?, &*read(key)?));
        }
        endpoint.tls_config(tls).map_err(|error| {
            let cause = last_cause(&error);
            CliError::Usage(match (&self.cert, &self.key) {
                (Some(cert), Some(key)) => format!(
                    "--cert {} with --key {}: {cause}",
                    cert.display(),
                    key.display()
                ),
                _ => format!("TLS cannot be used: {cause}"),
            })
        })
    }

    /// The token to send. One that would travel in plain text over a network is not sent.
    fn token(&self) -> Result<Token, CliError> {
        let (token, place) = match (&self.token_file, env::var("VERDICT_TOKEN")) {
            (Some(path), _) => (read(path)?, path.display().to_string()),
            (None, Ok(token)) => {
                let token = Zeroizing::new(token.into_bytes());
                (token, "VERDICT_TOKEN".to_owned())
            }
            (None, Err(env::VarError::NotPresent)) => return Ok(Token(None)),
            (None, Err(env::VarError::NotUnicode(_))) => {
                let message = "VERDICT_TOKEN: not a token".to_owned();
                return Err(CliError::Usage(message));
            }
        };
        if self.endpoint.scheme_str() != Some("https") && !is_loopback(&self.endpoint) {
            return Err(CliError::Usage(format!(
                "the token is not sent to {} in plain text, where others can read it; use https://",
                self.endpoint
            )));
        }
        let value = bearer(&token);
        let value = value.ok_or_else(|| CliError::Usage(format!("{place}: not a token")))?;
        Ok(Token(Some(value)))
    }

    fn unreachable(&self, error: &(dyn Error + 'static)) -> CliError {
        let uri = &self.endpoint;
        CliError::Failed(match tls_failure(error) {
            Some(failure) => format!("cannot connect to {uri}: {failure}"),
            None => format!(
                "cannot connect to {uri}: {}; is `verdict serve` running there?",
                last_cause(error)
            ),
        })
    }
}

fn read(path: &PathBuf) -> Result<Zeroizing<Vec<u8>>, CliError> {
    let files = Files::read(slice::from_ref(path));
    let content = files.get(path).map_err(CliError::failed)?;
    Ok(Zeroizing::new(content.to_vec()))
}

/// What is sent of a token. `None` when it is empty, or holds what no header can.
fn bearer(token: &[u8]) -> Option<MetadataValue<Ascii>> {
    let token = token.trim_ascii();
    if token.is_empty() || !token.iter().all(u8::is_ascii_graphic) {
        return None;
    }
    let mut value = MetadataValue::try_from([b"Bearer ", token].concat()).ok()?;
    value.set_sensitive(true);
    Some(value)
}

fn is_loopback(uri: &Uri) -> bool {
    let host = uri.host().unwrap_or_default();
    let address = host.trim_start_matches('[').trim_end_matches(']');
    let address = address.parse::<std::net::IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

/// The innermost cause, which says most.
fn last_cause<'e>(error: &'e (dyn Error + 'static)) -> &'e (dyn Error + 'static) {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause
}

/// What went wrong with TLS, and what to do. `None` when it was something else.
fn tls_failure(error: &(dyn Error + 'static)) -> Option<String> {
    use CertificateError as Certificate;
    use rustls::Error::{InvalidCertificate, InvalidMessage};
    let mut cause = Some(error);
    let error = loop {
        let error = cause?;
        let io_error = error.downcast_ref::<io::Error>();
        if let Some(alert) = io_error.and_then(alert) {
            return Some(alert);
        }
        let inner = io_error.and_then(io::Error::get_ref);
        if let Some(error) = inner.and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            break error;
        }
        cause = error.source();
    };
    let known = match error {
        InvalidCertificate(Certificate::UnknownIssuer) => {
            "the server's certificate is not issued by anyone who is trusted; name its CA with --ca"
        }
        InvalidCertificate(Certificate::Expired | Certificate::ExpiredContext { .. }) => {
            "the server's certificate has expired"
        }
        InvalidCertificate(
            Certificate::NotValidForName | Certificate::NotValidForNameContext { .. },
        ) => "the server's certificate is for another host",
        InvalidMessage(_) => "the server does not speak TLS there; is it http://?",
        _ => return Some(format!("TLS failed: {error}")),
    };
    Some(known.to_owned())
}

/// Why the server refused us. On its way through HTTP/2 the error has become text.
fn alert(error: &io::Error) -> Option<String> {
    let text = error.to_string();
    let alert = text.strip_prefix("received fatal alert: ")?;
    let known = match alert {
        "CertificateRequired" => {
            "the server requires a client certificate; give one with --cert and --key"
        }
        "UnknownCA" => "the server does not trust the issuer of the client certificate",
        "CertificateExpired" => "the client certificate has expired",
        _ => return Some(format!("the server refused TLS: {alert}")),
    };
    Some(known.to_owned())
}

/// The reason of a server's error, if it gives one.
pub(super) fn reason(status: &Status) -> Option<String> {
    status.get_details_error_info().map(|info| info.reason)
}

/// A server's error in one line: the reason, if it gives one, and the message.
pub(super) fn failure(status: &Status) -> CliError {
    let reason = reason(status).unwrap_or_else(|| format!("{:?}", status.code()));
    CliError::Failed(format!("{reason}: {}", status.message()))
}
