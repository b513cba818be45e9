//! The server over its REST API.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use hyper_util::client::proxy::matcher::Matcher;
use proto::secret::Secret;
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue};
use reqwest::redirect::Policy;
use reqwest::{Certificate, Client, RequestBuilder, Response, StatusCode, Url};
use schema::api::{Applied, ApplyRequest, Approved, Committed, Failure, LogEntry, Removed, StatusDocument};
use schema::inventory::NodeId;
use schema::scalars::{Fingerprint, Identity, Name, NetworkName};
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
    /// The variable that names the proxy to it; absent: it is called directly.
    proxy: Option<&'static str>,
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
        let proxy = proxy(&base, |name| std::env::var(name).ok().filter(|value| !value.is_empty()));
        Ok(Self { client: builder.build().map_err(ControlError::Client)?, base, proxy })
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
        let (server, proxy) = (self.base.clone(), self.proxy);
        let error = error.without_url();
        if error.is_connect() {
            ControlError::Unreachable { server, proxy, source: error }
        } else {
            ControlError::Broken { server, proxy, source: Some(error) }
        }
    }

    /// The path of something of a node.
    fn node(&self, NodeId { network, name }: &NodeId, what: &str) -> String {
        format!("{}/api/v1/{network}/node/{name}/{what}", self.base)
    }

    fn foreign(&self, status: StatusCode, what: String) -> ControlError {
        ControlError::Foreign { server: self.base.clone(), proxy: self.proxy, status: status.as_u16(), what }
    }
}

impl ControlPlane for Rest {
    fn name(&self) -> &str {
        &self.base
    }

    async fn addresses(&self) -> Vec<IpAddr> {
        let port = Url::parse(&self.base).ok().and_then(|url| url.port_or_known_default());
        let (Some(host), Some(port)) = (host(&self.base), port) else { return Vec::new() };
        // Behind a proxy the name may not resolve here, and then no address of this host's is concerned.
        let found = tokio::time::timeout(RESOLVE, tokio::net::lookup_host((&*host, port))).await;
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

    async fn approve(
        &self,
        network: &NetworkName,
        fingerprint: Fingerprint,
        name: &Name,
    ) -> Result<Approved, ControlError> {
        let path = format!("{}/api/v1/{network}/pending/{fingerprint}", self.base);
        self.answer(self.client.put(path).query(&[("name", name.as_str())])).await
    }

    async fn drop_pending(
        &self,
        network: &NetworkName,
        fingerprint: Fingerprint,
        ban: bool,
    ) -> Result<Committed, ControlError> {
        let path = format!("{}/api/v1/{network}/pending/{fingerprint}", self.base);
        self.answer(self.client.delete(path).query(&[("ban", ban.to_string())])).await
    }

    async fn revisions(&self, after: Revision, limit: usize) -> Result<Vec<LogEntry>, ControlError> {
        self.get(&format!("revisions?after={after}&limit={limit}")).await
    }
}

/// The host of a server's URL, an IPv6 address without brackets.
pub(super) fn host(base: &str) -> Option<String> {
    Some(Url::parse(base).ok()?.host_str()?.trim_matches(['[', ']']).to_owned())
}

/// The variable that names the proxy to a server; nothing if it is called directly. The client reads the same
/// variables, in the same order.
fn proxy(base: &str, variable: impl Fn(&str) -> Option<String>) -> Option<&'static str> {
    let of = |names: [&'static str; 2]| names.into_iter().find_map(|name| Some((name, variable(name)?)));
    let (http, https) = (of(["HTTP_PROXY", "http_proxy"]), of(["HTTPS_PROXY", "https_proxy"]));
    let (all, no) = (of(["ALL_PROXY", "all_proxy"]), of(["NO_PROXY", "no_proxy"]));
    let value =
        |found: &Option<(&str, String)>| found.as_ref().map(|(_, value)| value.clone()).unwrap_or_default();
    let matcher =
        Matcher::builder().http(value(&http)).https(value(&https)).all(value(&all)).no(value(&no)).build();
    let intercepted = matcher.intercept(&base.parse().ok()?).is_some();
    let own = if base.starts_with("https:") { https } else { http };
    intercepted.then(|| own.or(all).map(|(name, _)| name)).flatten()
}

/// A URL as it may be printed: without a user, a password, or what follows the path, where people put tokens.
pub fn without_secrets(url: &str) -> String {
    let (start, rest) = match url.split_once("://") {
        Some((scheme, rest)) => (format!("{scheme}://"), rest),
        None => (String::new(), url),
    };
    let (rest, after) = match rest.find(['?', '#']) {
        Some(at) => (&rest[..at], &rest[at..=at]),
        None => (rest, ""),
    };
    let rest = rest.rsplit_once('@').map_or(rest.to_owned(), |(_, host)| format!("...@{host}"));
    let after = if after.is_empty() { String::new() } else { format!("{after}...") };
    format!("{start}{rest}{after}")
}

/// The URL of a server, without what the API's paths are added to.
fn base(typed: &str) -> Result<String, ControlError> {
    // A variable or a file may end with the end of a line.
    let url = typed.trim();
    let bad = |why: &str| ControlError::Url { url: without_secrets(url), why: why.into() };
    if url.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return Err(bad("it contains a blank"));
    }
    if !url.contains("://") {
        return Err(bad("it must begin with https:// or http://"));
    }
    let parsed = Url::parse(url).map_err(|error| bad(&error.to_string()))?;
    if !matches!(parsed.scheme(), "https" | "http") {
        return Err(bad("it must begin with https:// or http://"));
    }
    if !parsed.username().is_empty() || parsed.password().is_some() {
        return Err(bad("it must not contain a user or password; the token comes from NMPLAN_TOKEN_FILE"));
    }
    let is_loopback = host(url).is_some_and(|host| {
        host == "localhost" || host.parse().is_ok_and(|address: IpAddr| address.is_loopback())
    });
    if parsed.scheme() == "http" && !is_loopback {
        return Err(bad(
            "http would send the token unencrypted, so it is allowed for this host only; use https",
        ));
    }
    if parsed.query().is_some() || parsed.fragment().is_some() || !matches!(parsed.path(), "" | "/") {
        return Err(bad("it must end after the host and the port: nmplan adds the paths of the API"));
    }
    Ok(parsed.origin().ascii_serialization())
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
            "https://nm.example.net/api/v1",
            "https://nm.example.net/?a=b",
            "https://nm.example.net/#a",
            "https://nm .example.net",
            "https://nm.example.net\t:1",
        ] {
            assert!(matches!(base(bad), Err(ControlError::Url { .. })), "{bad}");
        }
        for (given, base_of_it) in [
            ("https://nm.example.net/", "https://nm.example.net"),
            ("  https://NM.example.net:443\n", "https://nm.example.net"),
            ("https://[2001:db8::1]:8081", "https://[2001:db8::1]:8081"),
        ] {
            assert_eq!(base(given).ok().as_deref(), Some(base_of_it), "{given}");
        }
    }

    #[test]
    fn what_people_put_into_a_url_by_mistake_is_not_printed() {
        for (url, shown) in [
            ("https://nm.example.net:8081", "https://nm.example.net:8081"),
            ("https://ann:se@cret@nm.example.net/x", "https://...@nm.example.net/x"),
            ("ann:secret@nm.example.net", "...@nm.example.net"),
            ("https://nm.example.net/?token=nma_x#y", "https://nm.example.net/?..."),
            ("https://nm.example.net/#nma_x@y", "https://nm.example.net/#..."),
            ("", ""),
        ] {
            assert_eq!(without_secrets(url), shown, "{url}");
        }
    }

    #[test]
    fn the_variable_that_names_a_proxy_is_known() {
        let of = |base: &str, variables: &[(&str, &str)]| {
            proxy(base, |name| {
                let set = variables.iter().find(|(it, _)| *it == name)?;
                Some(set.1.to_owned())
            })
        };
        let server = "https://nm.example.net";
        let squid = "http://squid.example.net:3128";
        assert_eq!(of(server, &[]), None);
        assert_eq!(of(server, &[("HTTPS_PROXY", squid)]), Some("HTTPS_PROXY"));
        assert_eq!(of(server, &[("https_proxy", squid), ("ALL_PROXY", squid)]), Some("https_proxy"));
        assert_eq!(of(server, &[("HTTP_PROXY", squid)]), None);
        assert_eq!(of(server, &[("all_proxy", squid)]), Some("all_proxy"));
        assert_eq!(of(server, &[("HTTPS_PROXY", squid), ("NO_PROXY", ".example.net")]), None);
        assert_eq!(of("http://127.0.0.1:8081", &[("HTTP_PROXY", squid)]), Some("HTTP_PROXY"));
        for direct in ["127.0.0.0/8", "0.0.0.0/0,::/0,*"] {
            assert_eq!(of("http://127.0.0.1:8081", &[("HTTP_PROXY", squid), ("NO_PROXY", direct)]), None);
        }
    }
}
