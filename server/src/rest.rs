//! The REST API for admins and nmplan: decodes, calls the service, encodes. No decisions.

use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, FailedToBufferBody, PathRejection, QueryRejection};
use axum::extract::{DefaultBodyLimit, FromRequest, FromRequestParts, Path, Query, Request, State};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, delete, get, post, put};
use axum::{Extension, Json, Router};
use http::{HeaderMap, StatusCode, header};
use proto::secret::Secret;
use schema::api::Committed;
use schema::kinds::Kind;
use schema::scalars::{Fingerprint, NetworkName};
use schema::snapshot::{ResourceId, Revision};
use schema::value::Value;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::core::authorize::{Call, Needs, Operation, Rule, TABLE};
use crate::error::Error;
use crate::listen::{Login, TooSlow, source};
use crate::openapi;
use crate::readers::off_thread;
use crate::service::{Caller, Service};

/// The routes, one for each rule of the authorisation table. `max_body` is the size of the largest body, in
/// bytes; `behind_proxy`: whether a proxy reports where requests come from.
pub fn router(service: Service, max_body: usize, behind_proxy: bool) -> Router {
    let mut router = Router::new();
    for rule in TABLE {
        if let Call::Rest(_, path) = rule.call {
            router = router.route(path, guarded(rule, service.clone(), behind_proxy));
        }
    }
    router
        .fallback(|| async { Error::NotFound("such path; see /api/v1/openapi.json".into()) })
        .method_not_allowed_fallback(|| async { Error::Method })
        .layer(DefaultBodyLimit::max(max_body))
        .layer(Extension(MaxBody(max_body)))
        .with_state(service)
}

fn guarded(rule: &'static Rule, service: Service, behind_proxy: bool) -> MethodRouter<Service> {
    let route = handler(rule.operation);
    match rule.needs {
        Needs::Nothing => route,
        Needs::Role(_) | Needs::Session | Needs::Signature => {
            route.layer(middleware::from_fn_with_state((service, rule.operation, behind_proxy), authenticate))
        }
    }
}

fn handler(operation: Operation) -> MethodRouter<Service> {
    match operation {
        Operation::Health => get(|| async { "ok\n" }),
        Operation::Ready => get(async |State(service): State<Service>| service.ready().map(|()| "ok\n")),
        Operation::Server => get(async |State(service): State<Service>| Json(service.info())),
        Operation::OpenApi => get(async || ([(header::CONTENT_TYPE, "application/json")], openapi::text())),
        Operation::Snapshot => get(snapshot),
        Operation::Status => {
            get(async |State(service): State<Service>, Extension(caller): Extension<Caller>| {
                service.status(&caller).await.map(json_bytes)
            })
        }
        Operation::Revisions => get(revisions),
        Operation::Apply => post(apply),
        Operation::GetResource => get(get_resource),
        Operation::PutResource => put(put_resource),
        Operation::DeleteResource => delete(delete_resource),
        Operation::RemoveNode => delete(remove_node),
        Operation::LiftBan => delete(lift_ban),
        Operation::ApprovePending => put(approve_pending),
        Operation::DropPending => delete(drop_pending),
        Operation::Identify
        | Operation::Challenge
        | Operation::Register
        | Operation::Join
        | Operation::OpenSession
        | Operation::GetPeers
        | Operation::CheckIn
        | Operation::Watch
        | Operation::Leave => unreachable!("the table calls this over gRPC"),
    }
}

async fn authenticate(
    State((service, operation, behind_proxy)): State<(Service, Operation, bool)>,
    mut request: Request,
    next: Next,
) -> Response {
    let header = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let token = header.and_then(|value| value.strip_prefix("Bearer "));
    let token = token.map(|token| Secret::new(token.to_owned()));
    let guess = token.is_some();
    match service.caller(token, operation).await {
        Ok(caller) => {
            if let Some(login) = request.extensions().get::<Login>() {
                login.accepted();
            }
            request.extensions_mut().insert(caller);
            next.run(request).await
        }
        Err(error) => {
            if guess && error.is_of_guess() {
                let from = source(request.headers(), request.extensions(), behind_proxy);
                service.refused(from).await;
            }
            error.into_response()
        }
    }
}

async fn snapshot(
    State(service): State<Service>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
) -> Result<Response, Error> {
    service.list_own_addresses().await;
    let state = service.state();
    let tag = service.snapshot_tag(&state);
    if knows(&headers, &tag) {
        return Ok((StatusCode::NOT_MODIFIED, [(header::ETAG, tag)]).into_response());
    }
    let document = service.snapshot(&caller, state).await?;
    Ok(([(header::ETAG, tag)], json_bytes(document)).into_response())
}

/// A document that is JSON already.
fn json_bytes(document: Bytes) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/json")], document)
}

/// Whether the caller has the document of that tag (RFC 9110, section 13.1.2).
fn knows(headers: &HeaderMap, tag: &str) -> bool {
    let known = headers.get(header::IF_NONE_MATCH).and_then(|value| value.to_str().ok()).unwrap_or_default();
    known.split(',').map(|one| one.trim().trim_start_matches("W/")).any(|one| one == tag)
}

/// The body of a request, whole.
struct Whole(Bytes);

impl<S: Send + Sync> FromRequest<S> for Whole {
    type Rejection = Error;

    async fn from_request(request: Request, state: &S) -> Result<Self, Error> {
        let limit = request.extensions().get::<MaxBody>().map_or(0, |MaxBody(bytes)| bytes >> 20);
        Bytes::from_request(request, state).await.map(Self).map_err(|rejection| unread(&rejection, limit))
    }
}

/// The limit of bodies, for messages.
#[derive(Clone, Copy)]
struct MaxBody(usize);

/// Why a body could not be read.
fn unread(rejection: &BytesRejection, limit: usize) -> Error {
    if let BytesRejection::FailedToBufferBody(FailedToBufferBody::LengthLimitError(_)) = rejection {
        return Error::TooLarge(limit);
    }
    let mut cause: Option<&dyn std::error::Error> = Some(rejection);
    while let Some(error) = cause {
        if let Some(slow) = error.downcast_ref::<TooSlow>() {
            return Error::Slow(slow.to_string());
        }
        cause = error.source();
    }
    Error::BadRequest("the body did not arrive whole; send it again".into())
}

/// The parameters of a path.
struct Parameters<T>(T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Parameters<T> {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut http::request::Parts, state: &S) -> Result<Self, Error> {
        let Path(parameters) = Path::from_request_parts(parts, state)
            .await
            .map_err(|rejection: PathRejection| Error::BadRequest(rejection.body_text()))?;
        Ok(Self(parameters))
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Page {
    #[serde(default)]
    after: u64,
    limit: Option<usize>,
}

impl Page {
    /// The revision to begin after. A store counts in signed numbers (SQL's bigint), so there is none above
    /// 2^63 - 1.
    fn after(&self) -> Result<Revision, Error> {
        if i64::try_from(self.after).is_err() {
            let message =
                format!("after={} is not a valid revision; write a number up to {}", self.after, i64::MAX);
            return Err(Error::BadRequest(message));
        }
        Ok(Revision(self.after))
    }
}

async fn revisions(
    State(service): State<Service>,
    Extension(caller): Extension<Caller>,
    page: Result<Query<Page>, QueryRejection>,
) -> Result<impl IntoResponse, Error> {
    let Query(page) = page.map_err(|error| Error::BadRequest(error.body_text()))?;
    Ok(json_bytes(service.revisions(&caller, page.after()?, page.limit.unwrap_or(100)).await?))
}

async fn apply(
    State(service): State<Service>,
    Extension(caller): Extension<Caller>,
    Whole(body): Whole,
) -> Result<impl IntoResponse, Error> {
    let request = off_thread(move || json(&body)).await??;
    Ok(Json(service.apply(&caller, request).await?))
}

/// A body as JSON, with an error that says where it is wrong.
fn json<T: DeserializeOwned>(body: &Bytes) -> Result<T, Error> {
    serde_json::from_slice(body)
        .map_err(|error| Error::BadRequest(format!("the body cannot be read: {error}")))
}

fn resource_id((network, kind, name): (String, String, String)) -> Result<ResourceId, Error> {
    // A network is called by its name alone, and has a path like everything else.
    let is_network =
        network == name && kind.parse().is_ok_and(|kind: Kind| kind.descriptor().within.is_none());
    let text = if is_network { name } else { format!("{network}/{kind}/{name}") };
    text.parse().map_err(|why| Error::BadRequest(format!("{text:?} is not a valid resource id: {why}")))
}

async fn get_resource(
    State(service): State<Service>,
    Extension(caller): Extension<Caller>,
    Parameters(path): Parameters<(String, String, String)>,
) -> Result<impl IntoResponse, Error> {
    let id = resource_id(path)?;
    let entry = service.resource(&caller, &id)?;
    let tag = format!("\"{}\"", entry.revision);
    let body = schema::world::ResourceDocument {
        id,
        revision: entry.revision,
        owner: entry.owner,
        body: entry.object.body(),
    };
    Ok(([(header::ETAG, tag)], Json(body)))
}

/// The revision that the caller requires a resource to be at; nothing if it must not exist.
fn expected(headers: &HeaderMap) -> Result<Option<Revision>, Error> {
    const NEEDED: &str =
        "If-Match with the resource's revision is needed, or If-None-Match: * to create a new one";
    let header = |name| headers.get(name).and_then(|value| value.to_str().ok());
    match (header(header::IF_MATCH), header(header::IF_NONE_MATCH)) {
        (Some(tag), None) => match tag.trim_matches('"').parse() {
            Ok(revision) => Ok(Some(Revision(revision))),
            Err(_) => Err(Error::BadRequest(NEEDED.into())),
        },
        (None, Some("*")) => Ok(None),
        _ => Err(Error::BadRequest(NEEDED.into())),
    }
}

async fn put_resource(
    State(service): State<Service>,
    Extension(caller): Extension<Caller>,
    Parameters(path): Parameters<(String, String, String)>,
    headers: HeaderMap,
    Whole(body): Whole,
) -> Result<impl IntoResponse, Error> {
    let id = resource_id(path)?;
    let expected = expected(&headers)?;
    let body: Value = off_thread(move || json(&body)).await??;
    let revision = service.put(&caller, id, Some(body), expected).await?;
    Ok(([(header::ETAG, format!("\"{revision}\""))], Json(Committed { revision })))
}

async fn delete_resource(
    State(service): State<Service>,
    Extension(caller): Extension<Caller>,
    Parameters(path): Parameters<(String, String, String)>,
    headers: HeaderMap,
) -> Result<impl IntoResponse, Error> {
    let id = resource_id(path)?;
    let revision = expected(&headers)?.ok_or_else(|| Error::BadRequest("If-Match is needed".into()))?;
    Ok(Json(Committed { revision: service.put(&caller, id, None, Some(revision)).await? }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Removal {
    #[serde(default)]
    ban: bool,
    identity: Option<String>,
}

async fn remove_node(
    State(service): State<Service>,
    Extension(caller): Extension<Caller>,
    Parameters((network, name)): Parameters<(String, String)>,
    removal: Result<Query<Removal>, QueryRejection>,
) -> Result<impl IntoResponse, Error> {
    let Query(Removal { ban, identity }) = removal.map_err(|error| Error::BadRequest(error.body_text()))?;
    let network = network.parse().map_err(Error::BadRequest)?;
    let name = name.parse().map_err(Error::BadRequest)?;
    let expected = identity.map(|text| text.parse()).transpose().map_err(Error::BadRequest)?;
    Ok(Json(service.remove_node(&caller, network, name, ban, expected).await?))
}

async fn lift_ban(
    State(service): State<Service>,
    Extension(caller): Extension<Caller>,
    Parameters((network, name)): Parameters<(String, String)>,
) -> Result<impl IntoResponse, Error> {
    let network = network.parse().map_err(Error::BadRequest)?;
    let name = name.parse().map_err(Error::BadRequest)?;
    Ok(Json(Committed { revision: service.lift_ban(&caller, network, name).await? }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Approval {
    name: String,
}

async fn approve_pending(
    State(service): State<Service>,
    Extension(caller): Extension<Caller>,
    Parameters((network, fingerprint)): Parameters<(String, String)>,
    approval: Result<Query<Approval>, QueryRejection>,
) -> Result<impl IntoResponse, Error> {
    let Query(Approval { name }) = approval.map_err(|error| Error::BadRequest(error.body_text()))?;
    let (network, fingerprint) = pending(&network, &fingerprint)?;
    let name = name.parse().map_err(Error::BadRequest)?;
    Ok(Json(service.approve(&caller, network, fingerprint, name).await?))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Dropping {
    #[serde(default)]
    ban: bool,
}

async fn drop_pending(
    State(service): State<Service>,
    Extension(caller): Extension<Caller>,
    Parameters((network, fingerprint)): Parameters<(String, String)>,
    dropping: Result<Query<Dropping>, QueryRejection>,
) -> Result<impl IntoResponse, Error> {
    let Query(Dropping { ban }) = dropping.map_err(|error| Error::BadRequest(error.body_text()))?;
    let (network, fingerprint) = pending(&network, &fingerprint)?;
    Ok(Json(Committed { revision: service.drop_pending(&caller, network, fingerprint, ban).await? }))
}

/// The host that waits, as a path names it.
fn pending(network: &str, fingerprint: &str) -> Result<(NetworkName, Fingerprint), Error> {
    let bad = |what: &str, why: String| Error::BadRequest(format!("the {what} is not valid: {why}"));
    let network = network.parse().map_err(|why| bad("network", why))?;
    Ok((network, fingerprint.parse().map_err(|why| bad("fingerprint", why))?))
}
