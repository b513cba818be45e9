//! The REST API for admins and nmplan: decodes, calls the service, encodes. No decisions.

use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Path, Query, Request, State};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, delete, get, post, put};
use axum::{Extension, Json, Router};
use http::{HeaderMap, StatusCode, header};
use proto::secret::Secret;
use schema::kinds::Kind;
use schema::snapshot::{ResourceId, Revision};
use schema::value::Value;
use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::core::authorize::{Call, Needs, Operation, Rule, TABLE};
use crate::error::Error;
use crate::openapi;
use crate::service::{Caller, Service};

/// The largest body: a plan of a hundred thousand objects.
const MAX_BODY: usize = 128 << 20;

/// The routes, one for each rule of the authorisation table.
pub fn router(service: Service) -> Router {
    let mut router = Router::new();
    for rule in TABLE {
        if let Call::Rest(_, path) = rule.call {
            router = router.route(path, guarded(rule, service.clone()));
        }
    }
    router
        .fallback(|| async { Error::NotFound("such path; see /api/v1/openapi.json".into()) })
        .method_not_allowed_fallback(|| async { Error::Method })
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(service)
}

fn guarded(rule: &'static Rule, service: Service) -> MethodRouter<Service> {
    let route = handler(rule.operation);
    match rule.needs {
        Needs::Nothing => route,
        Needs::Role(_) | Needs::Session | Needs::Signature => {
            route.layer(middleware::from_fn_with_state((service, rule.operation), authenticate))
        }
    }
}

fn handler(operation: Operation) -> MethodRouter<Service> {
    match operation {
        Operation::Health => get(|| async { "ok\n" }),
        Operation::Ready => get(async |State(service): State<Service>| service.ready().map(|()| "ok\n")),
        Operation::Server => get(async |State(service): State<Service>| Json(service.info().clone())),
        Operation::OpenApi => get(async || ([(header::CONTENT_TYPE, "application/json")], openapi::text())),
        Operation::Snapshot => get(snapshot),
        Operation::Status => get(async |State(service): State<Service>, Extension(caller): Extension<Caller>| {
            Json(service.status(&caller))
        }),
        Operation::Revisions => get(revisions),
        Operation::Apply => post(apply),
        Operation::GetResource => get(get_resource),
        Operation::PutResource => put(put_resource),
        Operation::DeleteResource => delete(delete_resource),
        Operation::RemoveNode => delete(remove_node),
        Operation::Challenge
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
    State((service, operation)): State<(Service, Operation)>,
    mut request: Request,
    next: Next,
) -> Response {
    let header = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let token = header.and_then(|value| value.strip_prefix("Bearer "));
    let token = token.map(|token| Secret::new(token.to_owned()));
    match service.caller(token, operation).await {
        Ok(caller) => {
            request.extensions_mut().insert(caller);
            next.run(request).await
        }
        Err(error) => error.into_response(),
    }
}

async fn snapshot(
    State(service): State<Service>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
) -> Response {
    service.list_own_addresses().await;
    let tag = service.snapshot_tag();
    if knows(&headers, &tag) {
        return (StatusCode::NOT_MODIFIED, [(header::ETAG, tag)]).into_response();
    }
    let document = service.snapshot(&caller);
    ([(header::ETAG, tag)], Json(document)).into_response()
}

/// Whether the caller has the document of that tag (RFC 9110, section 13.1.2).
fn knows(headers: &HeaderMap, tag: &str) -> bool {
    let known = headers.get(header::IF_NONE_MATCH).and_then(|value| value.to_str().ok()).unwrap_or_default();
    known.split(',').map(|one| one.trim().trim_start_matches("W/")).any(|one| one == tag)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Page {
    #[serde(default)]
    after: Revision,
    limit: Option<usize>,
}

async fn revisions(
    State(service): State<Service>,
    Extension(caller): Extension<Caller>,
    page: Result<Query<Page>, axum::extract::rejection::QueryRejection>,
) -> Result<impl IntoResponse, Error> {
    let Query(Page { after, limit }) = page.map_err(|error| Error::BadRequest(error.body_text()))?;
    Ok(Json(service.revisions(&caller, after, limit.unwrap_or(100)).await?))
}

async fn apply(
    State(service): State<Service>,
    Extension(caller): Extension<Caller>,
    body: Bytes,
) -> Result<impl IntoResponse, Error> {
    Ok(Json(service.apply(&caller, json(&body)?).await?))
}

/// A body as JSON, with an error that says where it is wrong.
fn json<T: DeserializeOwned>(body: &Bytes) -> Result<T, Error> {
    serde_json::from_slice(body).map_err(|error| Error::BadRequest(format!("the body cannot be read: {error}")))
}

/// The revision that a change created.
#[derive(Serialize, JsonSchema)]
pub(crate) struct Committed {
    /// The revision.
    revision: Revision,
}

fn resource_id((network, kind, name): (String, String, String)) -> Result<ResourceId, Error> {
    // A network is called by its name alone, and has a path like everything else.
    let is_network = network == name && kind.parse().is_ok_and(|kind: Kind| kind.descriptor().within.is_none());
    let text = if is_network { name } else { format!("{network}/{kind}/{name}") };
    text.parse().map_err(|why| Error::BadRequest(format!("{text:?} is not a valid resource id: {why}")))
}

async fn get_resource(
    State(service): State<Service>,
    Extension(caller): Extension<Caller>,
    Path(path): Path<(String, String, String)>,
) -> Result<impl IntoResponse, Error> {
    let id = resource_id(path)?;
    let entry = service.resource(&caller, &id)?;
    let tag = format!("\"{}\"", entry.revision);
    let body =
        schema::world::ResourceDocument { id, revision: entry.revision, owner: entry.owner, body: entry.object.body() };
    Ok(([(header::ETAG, tag)], Json(body)))
}

/// The revision that the caller requires a resource to be at; nothing if it must not exist.
fn expected(headers: &HeaderMap) -> Result<Option<Revision>, Error> {
    const NEEDED: &str = "If-Match with the resource's revision is needed, or If-None-Match: * to create a new one";
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
    Path(path): Path<(String, String, String)>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<impl IntoResponse, Error> {
    let id = resource_id(path)?;
    let expected = expected(&headers)?;
    let body: Value = json(&body)?;
    let revision = service.put(&caller, id, Some(body), expected).await?;
    Ok(([(header::ETAG, format!("\"{revision}\""))], Json(Committed { revision })))
}

async fn delete_resource(
    State(service): State<Service>,
    Extension(caller): Extension<Caller>,
    Path(path): Path<(String, String, String)>,
    headers: HeaderMap,
) -> Result<impl IntoResponse, Error> {
    let id = resource_id(path)?;
    let revision = expected(&headers)?.ok_or_else(|| Error::BadRequest("If-Match is needed".into()))?;
    Ok(Json(Committed { revision: service.put(&caller, id, None, Some(revision)).await? }))
}

async fn remove_node(
    State(service): State<Service>,
    Extension(caller): Extension<Caller>,
    Path((network, name)): Path<(String, String)>,
) -> Result<impl IntoResponse, Error> {
    let network = network.parse().map_err(Error::BadRequest)?;
    let name = name.parse().map_err(Error::BadRequest)?;
    Ok(Json(Committed { revision: service.remove_node(&caller, network, name).await? }))
}
