//! Guards as the server judges by them, whoever asks and whatever a plan says of itself.
#![expect(clippy::unwrap_used, reason = "a test")]

#[allow(dead_code, reason = "each suite uses its part")]
#[expect(clippy::allow_attributes, reason = "what is unused differs from suite to suite")]
mod support;

use std::collections::BTreeSet;
use std::path::Path;

use nmserver::core::authorize::Role;
use reqwest::{Method, StatusCode};
use schema::api::{ApplyRequest, LogEntry};
use schema::guard::Guard;
use schema::limits::{GuardChange, Limits};
use schema::plan::Plan;
use schema::snapshot::Revision;
use schema::world::{GuardDocument, WorldDocument};
use serde_json::Value;
use support::{Access, Running, failure, folder, request, token_beside};

/// A network, with further settings, in which two hosts can join.
fn corp(settings: &str) -> String {
    format!(
        "network \"corp\" {{\n ipv4 \"10.0.0.0/24\"\n {settings}\n node \"a\"; node \"b\"; access-key \"k\" {{ for \"a\" \"b\"; }}\n}}\n"
    )
}

const LAB: &str = "network \"lab\" { ipv4 \"10.1.0.0/24\"; }\n";

fn limits(json: &str) -> Limits {
    serde_json::from_str(json).unwrap()
}

/// A plan of what `acme/prod` declares, with what becomes of its guard.
async fn plan(server: &Access, text: &str, guard: Option<&str>) -> Plan {
    let world = server.snapshot().await.world().unwrap();
    server.plan("acme/prod", text).await.with_guard(guard.map(limits).as_ref(), &world)
}

/// Applies what `acme/prod` declares, with a guard.
async fn declare(server: &Access, text: &str, guard: &str) {
    let plan = plan(server, text, Some(guard)).await;
    let answer = server.send(&server.token, &request(plan)).await;
    assert_eq!(answer.status(), StatusCode::OK, "{}", answer.text().await.unwrap());
}

/// The code of a refusal, and the codes of the problems in it.
async fn refusal(server: &Access, token: &str, request: &ApplyRequest) -> (String, Vec<String>) {
    let answer = server.send(token, request).await;
    assert_eq!(answer.headers()["content-type"], "application/problem+json");
    let body: Value = answer.json().await.unwrap();
    let problems = body["problems"].as_array().cloned().unwrap_or_default();
    let code = |of: &Value| of["code"].as_str().unwrap().to_owned();
    (code(&body), problems.iter().map(code).collect())
}

fn allowing(plan: &Plan, rules: &[Guard]) -> ApplyRequest {
    ApplyRequest { allow: rules.iter().cloned().collect(), ..request(plan.clone()) }
}

async fn log(server: &Access) -> Vec<LogEntry> {
    server.get("/api/v1/revisions").await.json().await.unwrap()
}

async fn with_two_nodes(directory: &Path, guard: &str) -> Running {
    let server = Running::on_disk(directory).await;
    declare(&server, &corp(""), guard).await;
    server.joined("a", 1, "k").await;
    server.joined("b", 2, "k").await;
    server
}

#[tokio::test]
async fn what_a_plan_says_of_its_own_effects_is_not_believed() {
    let directory = folder();
    let all = r#"{"max-delete":0,"max-nodes-changed":0,"max-reach-lost":0}"#;
    let server = with_two_nodes(directory.path(), all).await;
    let after = corp("acl \"deny\"; mtu 1380").replace("access-key", "access-key \"new\"; access-key");
    let honest = plan(&server, &after.replace("node \"b\";", "node \"b\"; node \"c\";"), None).await;
    let expected =
        ("guarded".to_owned(), vec!["plan::max_nodes_changed".into(), "plan::max_reach_lost".into()]);
    assert_eq!(refusal(&server, &server.token, &request(honest.clone())).await, expected);
    let forged =
        Plan { impact: Vec::new(), reach: Vec::new(), carrying: Vec::new(), tests: Vec::new(), ..honest };
    assert_eq!(forged.digest, forged.digest_now(), "effects are not part of what a plan is");
    assert_eq!(refusal(&server, &server.token, &request(forged.clone())).await, expected);
    // Nor does a plan that says that it does more do more.
    let harmless = plan(&server, &corp("").replace("node \"b\";", "node \"b\"; node \"c\";"), None).await;
    let boasts = Plan { impact: forged.impact.clone(), reach: forged.reach.clone(), ..harmless };
    assert_eq!(server.send(&server.token, &request(boasts)).await.status(), StatusCode::OK);

    let one = allowing(&forged, &[Guard::MaxReachLost]);
    assert_eq!(refusal(&server, &server.token, &one).await.0, "stale", "another revision came between");
    let again = plan(&server, &after.replace("node \"b\";", "node \"b\"; node \"c\";"), None).await;
    let one = allowing(&again, &[Guard::MaxReachLost]);
    assert_eq!(refusal(&server, &server.token, &one).await.1, ["plan::max_nodes_changed"]);
    let applier = token_beside(directory.path(), Role::Applier, &[], &[]);
    let both = allowing(&again, &[Guard::MaxReachLost, Guard::MaxNodesChanged, Guard::MaxDelete]);
    assert_eq!(server.send(&applier, &both).await.status(), StatusCode::OK, "it takes who may apply");
    let used = BTreeSet::from([Guard::MaxReachLost, Guard::MaxNodesChanged]);
    assert_eq!(log(&server).await.last().unwrap().allowed, used, "what it needed is in the log");
}

#[tokio::test]
async fn a_guard_outlives_a_restart_and_no_change_loosens_its_own() {
    let directory = folder();
    let server = Running::on_disk(directory.path()).await;
    declare(&server, &format!("{LAB}{}", corp("")), r#"{"max-delete":"10% or 1"}"#).await;
    let stored = GuardDocument {
        owner: "acme/prod".parse().unwrap(),
        revision: Revision(1),
        limits: limits(r#"{"max-delete":"10% or 1"}"#),
    };
    server.end().await;
    let server = Running::on_disk(directory.path()).await;
    assert_eq!(server.snapshot().await.guards, [stored]);

    let loosens = plan(&server, LAB, Some("{}")).await;
    let (code, problems) = refusal(&server, &server.token, &request(loosens.clone())).await;
    assert_eq!((&*code, problems), ("guarded", vec!["plan::max_delete".to_owned()]));
    let detail = failure(server.send(&server.token, &request(loosens)).await).await.2;
    assert!(
        detail.contains("deletes 4 of the 5 objects that acme/prod manages; its guard allows 10% or 1, which is 1 (stored with revision 1)"),
        "{detail}"
    );
    let alone = plan(&server, &format!("{LAB}{}", corp("")), Some("{}")).await;
    assert!(alone.changes.is_empty() && alone.applyable);
    let twice = Plan {
        guard: alone.guard.clone().map(|it| GuardChange { after: it.before.clone(), ..it }),
        ..alone.clone()
    };
    let twice = Plan { digest: twice.digest_now(), ..twice };
    assert_eq!(refusal(&server, &server.token, &request(twice)).await.0, "bad_request");
    assert_eq!(server.send(&server.token, &request(alone.clone())).await.status(), StatusCode::OK);
    let entry = log(&server).await.pop().unwrap();
    assert_eq!(entry.guards.into_values().collect::<Vec<_>>(), [alone.guard.clone().unwrap()]);
    assert!(server.snapshot().await.guards.is_empty());
    let other = ApplyRequest { apply_id: "another".into(), ..request(alone) };
    let moved: Value = server.send(&server.token, &other).await.json().await.unwrap();
    assert_eq!((&moved["code"], &moved["moved"][0]["id"]), (&"stale".into(), &"guard of acme/prod".into()));
    let later = plan(&server, LAB, Some("{}")).await;
    assert_eq!(server.send(&server.token, &request(later)).await.status(), StatusCode::OK);
}

#[tokio::test]
async fn a_protected_network_is_not_deleted_by_anybody_and_by_hand_neither() {
    let directory = folder();
    let server = Running::on_disk(directory.path()).await;
    declare(&server, &format!("{LAB}{}", corp("protect")), "{}").await;
    let deletes = plan(&server, LAB, None).await;
    let (code, problems) = refusal(&server, &server.token, &request(deletes.clone())).await;
    assert_eq!((&*code, problems), ("guarded", vec!["plan::protected".to_owned()]));
    // Its objects are not protected; without them, it would be deleted by hand.
    declare(&server, &format!("{LAB}network \"corp\" {{ ipv4 \"10.0.0.0/24\"; protect; }}"), "{}").await;
    let delete = async |revision: u64| {
        let call = server.call(Method::DELETE, "/api/v1/corp/network/corp").bearer_auth(&server.token);
        call.header("if-match", format!("\"{revision}\"")).send().await.unwrap()
    };
    let (status, code, detail) = failure(delete(1).await).await;
    assert_eq!((status, &*code), (422, "guarded"), "{detail}");
    assert!(detail.contains("network corp is protected"), "{detail}");
    let applier = token_beside(directory.path(), Role::Applier, &[], &[]);
    let deletes = plan(&server, LAB, None).await;
    let allowed = allowing(&deletes, &[Guard::Protect("corp".parse().unwrap())]);
    assert_eq!(server.send(&applier, &allowed).await.status(), StatusCode::OK);
    assert_eq!(log(&server).await.last().unwrap().allowed, allowed.allow);

    declare(&server, &format!("{LAB}network \"corp\" {{ ipv4 \"10.0.0.0/24\"; protect; }}"), "{}").await;
    declare(&server, &format!("{LAB}network \"corp\" {{ ipv4 \"10.0.0.0/24\"; }}"), "{}").await;
    assert!(delete(5).await.status().is_success(), "it is not protected any more");
}

#[tokio::test]
async fn a_token_sees_and_changes_the_guards_of_its_projects_and_networks_alone() {
    let directory = folder();
    let server = Running::on_disk(directory.path()).await;
    declare(&server, &format!("{LAB}{}", corp("")), r#"{"max-delete":3}"#).await;
    let seen = async |networks: &[&str], projects: &[&str]| {
        let token = token_beside(directory.path(), Role::Applier, networks, projects);
        let get = async |path: &str| server.call(Method::GET, path).bearer_auth(&token).send().await.unwrap();
        let world: WorldDocument = get("/api/v1/snapshot").await.json().await.unwrap();
        let log: Vec<LogEntry> = get("/api/v1/revisions").await.json().await.unwrap();
        (world.guards.len(), log.iter().map(|entry| entry.guards.len()).sum::<usize>())
    };
    assert_eq!(seen(&[], &[]).await, (1, 1));
    assert_eq!(seen(&[], &["acme"]).await, (1, 1));
    assert_eq!(seen(&["corp"], &["acme/prod"]).await, (1, 1));
    assert_eq!(seen(&["corp"], &[]).await, (1, 1), "whose objects it sees");
    assert_eq!(seen(&[], &["acme/dev"]).await, (1, 0), "or it would plan as if there were none");
    assert_eq!(seen(&["corp"], &["other"]).await, (1, 0));
    assert_eq!(seen(&["other"], &[]).await, (0, 0));

    // What is about other networks as well is not changed by who may not change those.
    let changed = corp("").replace("node \"b\"", "node \"b\"; node \"c\"");
    let guard = plan(&server, &format!("{LAB}{changed}"), Some(r#"{"max-delete":9}"#)).await;
    assert!(guard.guard.is_some());
    let token = token_beside(directory.path(), Role::Applier, &["corp"], &[]);
    let (_, code, detail) = failure(server.send(&token, &request(guard)).await).await;
    assert_eq!(code, "denied", "{detail}");
    assert!(detail.contains("nmplan apply --network NETWORK") && !detail.contains("lab"), "{detail}");
    let without = plan(&server, &format!("{LAB}{changed}"), None).await;
    assert_eq!(server.send(&token, &request(without)).await.status(), StatusCode::OK);
}

#[tokio::test]
async fn the_guard_of_a_project_goes_with_the_last_object_that_it_manages() {
    let directory = folder();
    let server = Running::on_disk(directory.path()).await;
    let guard = r#"{"max-delete":9}"#;
    declare(&server, LAB, guard).await;
    let by_hand = server.call(Method::DELETE, "/api/v1/lab/network/lab").bearer_auth(&server.token);
    assert!(by_hand.header("if-match", "\"1\"").send().await.unwrap().status().is_success());
    assert!(server.snapshot().await.guards.is_empty());
    let gone = log(&server).await.pop().unwrap();
    assert_eq!(gone.guards.len(), 1, "and the log says so");

    declare(&server, &corp(""), guard).await;
    assert_eq!(server.snapshot().await.guards.len(), 1);
    let empty = plan(&server, "", Some(guard)).await;
    assert_eq!(empty.guard, Some(GuardChange { before: Some(limits(guard)), after: None }));
    assert_eq!(server.send(&server.token, &request(empty)).await.status(), StatusCode::OK);
    assert!(server.snapshot().await.guards.is_empty());
    let again = plan(&server, "", Some(guard)).await;
    assert!(!again.applyable, "nothing is left to do");
}

#[tokio::test]
async fn a_plan_that_is_wrong_about_its_guard_makes_no_revision() {
    let directory = folder();
    let server = Running::on_disk(directory.path()).await;
    let nothing = plan(&server, "", None).await;
    let forged = |plan: &Plan, before: Option<Limits>, after: Option<Limits>| {
        let mut plan = Plan { guard: Some(GuardChange { before, after }), applyable: true, ..plan.clone() };
        plan.digest = plan.digest_now();
        request(plan)
    };
    let limit = || Some(limits(r#"{"max-delete":9}"#));
    let revision = server.snapshot().await.revision;
    let request_of_one = forged(&nothing, None, limit());
    let (status, _, detail) = failure(server.send(&server.token, &request_of_one).await).await;
    assert_eq!(status, 400, "{detail}");
    assert!(detail.contains("the guard of acme/prod") && detail.contains("plan again"), "{detail}");
    assert_eq!(server.snapshot().await.revision, revision, "a project that manages nothing has no guard");

    declare(&server, LAB, r#"{"max-delete":9}"#).await;
    let all = plan(&server, "", None).await;
    let stays = forged(&all, limit(), Some(limits(r#"{"max-delete":7}"#)));
    assert_eq!(
        failure(server.send(&server.token, &stays).await).await.0,
        400,
        "it goes with the last object"
    );
    assert_eq!(server.send(&server.token, &request(all)).await.status(), StatusCode::OK);
}
