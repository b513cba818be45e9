//! The server over its REST API.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use proto::secret::Secret;
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue};
use reqwest::redirect::Policy;
use reqwest::{Certificate, Client, RequestBuilder, Response, StatusCode, Url};
use schema::api::{Applied, ApplyRequest, Committed, Failure, LogEntry, Removed, StatusDocument};
use schema::inventory::NodeId;
use schema::scalars::Identity;
use schema::snapshot::Revision;
use schema::world::WorldDocument;
use serde::de::DeserializeOwned;

use super::{ControlError, ControlPlane};
use crate::environment::Environment;

/// How long a connection may take: a dead server is reported within ten seconds.
const CONNECT: Duration = Duration::from_secs(5);
/// How long the name of the server may take to resolve.
const RESOLVE: Duration = Duration::from_secs(2);
/// How long a server may be silent in the middle of an answer.
const SILENCE: Duration = Duration::from_secs(30);

/// A server at a URL.
pub struct Rest {
    client: Client,
    base: String,
}

impl Rest {
    /// The server at that URL, with the token and the CA of the environment. Nothing is sent yet.
    pub fn new(url: Option<&str>, environment: &Environment) -> Result<Self, ControlError> {
        let url = url.ok_or(ControlError::NoServer)?;
        let base = base(url)?;
        let mut headers = HeaderMap::new();
        headers.insert(AUTHORIZATION, bearer(&base, environment)?);
        let mut builder = Client::builder()
            .user_agent(concat!("nmplan/", env!("CARGO_PKG_VERSION")))
            .default_headers(headers)
            .connect_timeout(CONNECT)
            .read_timeout(SILENCE)
            .redirect(Policy::none());
        if let Some(path) = environment.get("CA") {
            builder = builder.tls_certs_only(certificates(path.into())?);
        }
        Ok(Self { client: builder.build().map_err(ControlError::Client)?, base })
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ControlError> {
        self.answer(self.client.get(format!("{}/api/v1/{path}", self.base))).await
    }

    async fn answer<T: DeserializeOwned>(&self, request: RequestBuilder) -> Result<T, ControlError> {
        let response = request.send().await.map_err(|error| self.failed(error))?;
        let status = response.status();
        if !status.is_success() {
            return Err(self.refused(response).await);
        }
        let bytes = response.bytes().await.map_err(|error| self.failed(error))?;
        serde_json::from_slice(&bytes).map_err(|error| {
            self.foreign(status, format!("{status} with a body that cannot be read ({error})"))
        })
    }

    async fn refused(&self, response: Response) -> ControlError {
        let status = response.status();
        let Ok(bytes) = response.bytes().await else { return self.foreign(status, status.to_string()) };
        match serde_json::from_slice::<Failure>(&bytes) {
            Ok(failure) => ControlError::Refused { server: self.base.clone(), failure: Box::new(failure) },
            Err(_) => self.foreign(status, status.to_string()),
        }
    }

    fn failed(&self, error: reqwest::Error) -> ControlError {
        let server = self.base.clone();
        let error = error.without_url();
        if error.is_connect() {
            ControlError::Unreachable { server, source: error }
        } else {
            ControlError::Broken { server, source: Some(error) }
        }
    }

    /// The path of something of a node.
    fn node(&self, NodeId { network, name }: &NodeId, what: &str) -> String {
        format!("{}/api/v1/{network}/node/{name}/{what}", self.base)
    }

    fn foreign(&self, status: StatusCode, what: String) -> ControlError {
        ControlError::Foreign { server: self.base.clone(), status: status.as_u16(), what }
    }
}

impl ControlPlane for Rest {
    fn name(&self) -> &str {
        &self.base
    }

    async fn addresses(&self) -> Vec<IpAddr> {
        let url = Url::parse(&self.base).ok();
        let at = url
            .as_ref()
            .and_then(|url| Some((url.host_str()?.trim_matches(['[', ']']), url.port_or_known_default()?)));
        let Some(at) = at else { return Vec::new() };
        // Behind a proxy the name may not resolve here, and then no address of this host's is concerned.
        let found = tokio::time::timeout(RESOLVE, tokio::net::lookup_host(at)).await;
        found.into_iter().flatten().flatten().map(|at| at.ip().to_canonical()).collect()
    }

    async fn world(&self) -> Result<WorldDocument, ControlError> {
        self.get("snapshot").await
    }

    async fn apply(&self, request: &ApplyRequest) -> Result<Applied, ControlError> {
        self.answer(self.client.post(format!("{}/api/v1/apply", self.base)).json(request)).await
    }

    async fn status(&self) -> Result<StatusDocument, ControlError> {
        self.get("status").await
    }

    async fn remove_node(
        &self,
        node: &NodeId,
        ban: bool,
        identity: &Identity,
    ) -> Result<Removed, ControlError> {
        let query = [("ban", ban.to_string()), ("identity", identity.to_string())];
        self.answer(self.client.delete(self.node(node, "host")).query(&query)).await
    }

    async fn lift_ban(&self, node: &NodeId) -> Result<Committed, ControlError> {
        self.answer(self.client.delete(self.node(node, "ban"))).await
    }

    async fn revisions(&self, after: Revision, limit: usize) -> Result<Vec<LogEntry>, ControlError> {
        self.get(&format!("revisions?after={after}&limit={limit}")).await
    }
}

fn base(url: &str) -> Result<String, ControlError> {
    let bad = |why: &str| ControlError::Url { url: url.into(), why: why.into() };
    let parsed = Url::parse(url).map_err(|error| bad(&error.to_string()))?;
    if !matches!(parsed.scheme(), "https" | "http") {
        return Err(bad("it must begin with https:// or http://"));
    }
    if !parsed.username().is_empty() || parsed.password().is_some() {
        return Err(bad("it must not contain a user or password; the token comes from NMPLAN_TOKEN_FILE"));
    }
    let is_loopback = parsed.host_str().is_some_and(|host| {
        let host = host.trim_matches(['[', ']']);
        host == "localhost" || host.parse().is_ok_and(|address: IpAddr| address.is_loopback())
    });
    if parsed.scheme() == "http" && !is_loopback {
        return Err(bad(
            "http would send the token unencrypted, so it is allowed for this host only; use https",
        ));
    }
    Ok(url.trim_end_matches('/').to_owned())
}

fn bearer(server: &str, environment: &Environment) -> Result<HeaderValue, ControlError> {
    let (from, token) = match (environment.get("TOKEN"), environment.get("TOKEN_FILE")) {
        (Some(token), _) => ("NMPLAN_TOKEN", Secret::new(token.to_owned())),
        (None, Some(path)) => {
            let failed =
                |source| ControlError::File { variable: "NMPLAN_TOKEN_FILE", path: path.into(), source };
            ("NMPLAN_TOKEN_FILE", Secret::new(std::fs::read_to_string(path).map_err(failed)?))
        }
        (None, None) => return Err(ControlError::NoToken { server: server.into() }),
    };
    let header = Secret::new(["Bearer ", token.expose().trim()].concat());
    let mut value = HeaderValue::from_str(header.expose()).map_err(|_| ControlError::Token { from })?;
    value.set_sensitive(true);
    Ok(value)
}

fn certificates(path: PathBuf) -> Result<Vec<Certificate>, ControlError> {
    let pem = match std::fs::read(&path) {
        Ok(pem) => pem,
        Err(source) => return Err(ControlError::File { variable: "NMPLAN_CA", path, source }),
    };
    match Certificate::from_pem_bundle(&pem) {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        Ok(_) | Err(_) => Err(ControlError::Ca { path }),
    }
}

/// Whether TLS failed: the certificate was refused, or the server does not speak TLS.
pub(super) fn is_tls(error: &(dyn std::error::Error + 'static)) -> bool {
    // `source` of an io::Error skips the error that it wraps.
    let wrapped = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
    error.is::<rustls::Error>()
        || wrapped.is_some_and(|wrapped| is_tls(wrapped))
        || error.source().is_some_and(is_tls)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_must_keep_the_token_secret() {
        for good in [
            "https://nm.example.net",
            "https://nm.example.net:8081/",
            "http://127.0.0.1:8081",
            "http://[::1]:1",
            "http://localhost",
        ] {
            assert!(base(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "nm.example.net",
            "ftp://nm.example.net",
            "http://nm.example.net",
            "https://a:b@nm.example.net",
        ] {
            assert!(matches!(base(bad), Err(ControlError::Url { .. })), "{bad}");
        }
        assert_eq!(base("https://nm.example.net/").ok().as_deref(), Some("https://nm.example.net"));
    }
}
