//! The REST API as admins and nmplan meet it: a real server, a real client, TLS.
#![expect(clippy::unwrap_used, reason = "a test")]

#[allow(dead_code, reason = "each suite uses its part")]
#[expect(clippy::allow_attributes, reason = "what is unused differs from suite to suite")]
mod support;

use std::net::IpAddr;
use std::sync::atomic::Ordering;

use nmserver::core::authorize::{Call, Needs, Operation, Role, TABLE};
use reqwest::{Method, StatusCode};
use schema::api::{Applied, ApplyRequest};
use schema::guard::Guard;
use schema::scalars::Verifier;
use schema::snapshot::Revision;
use serde_json::{Value, json};
use support::{Running, failure, request, token_beside};

const CORP: &str = r#"
    network "corp" {
        ipv4 "10.0.0.0/24"
        dns "api" a="10.0.0.9"
    }
"#;

/// Every REST route as it would be called.
fn routes() -> impl Iterator<Item = (Method, String, Needs)> {
    TABLE.iter().filter_map(|rule| match rule.call {
        Call::Rest(method, path) => {
            let path = path.replace("{network}", "corp").replace("{kind}", "dns").replace("{name}", "api");
            Some((method.to_uppercase().parse().unwrap(), path, rule.needs))
        }
        Call::Grpc(_) => None,
    })
}

#[tokio::test]
async fn what_is_open_answers_everyone_and_everything_else_asks_for_a_token() {
    let (server, _) = Running::in_memory().await;
    for (method, path, needs) in routes() {
        let answer = server.call(method.clone(), &path).send().await.unwrap();
        if needs == Needs::Nothing {
            assert_eq!(answer.status(), StatusCode::OK, "{method} {path}");
            continue;
        }
        assert_eq!(failure(answer).await.0, 401, "{method} {path}");
        for token in ["nma_x", "nma_0123456789_AAAA", ""] {
            let answer = server.call(method.clone(), &path).bearer_auth(token).send().await.unwrap();
            assert_eq!(answer.status(), StatusCode::UNAUTHORIZED, "{method} {path} with {token:?}");
        }
    }
    assert_eq!(failure(server.get("/api/v2/x").await).await.0, 404);
    let patched = server.call(Method::PATCH, "/api/v1/snapshot").send().await.unwrap();
    assert_eq!(failure(patched).await.1, "method");
}

#[tokio::test]
async fn whoever_tries_many_tokens_is_slowed_and_a_valid_one_from_the_same_place_is_not() {
    let (server, _) = Running::in_memory().await;
    let call = async |token: &str| {
        let start = std::time::Instant::now();
        let answer = server.call(Method::GET, "/api/v1/status").bearer_auth(token).send().await.unwrap();
        (answer.status().as_u16(), start.elapsed())
    };
    for number in 0..60 {
        let (status, took) = call(&format!("nma_{number:010}_AAAA")).await;
        assert!(status == 401 && took < std::time::Duration::from_secs(1), "{number}: {took:?}");
    }
    let held = std::time::Duration::from_millis(500);
    let (bad, good) = tokio::join!(call("nma_0123456789_AAAA"), call(&server.token));
    assert!(bad.0 == 401 && bad.1 > held, "{bad:?}");
    assert!(good.0 == 200 && good.1 < bad.1, "{good:?}");
}

#[tokio::test]
async fn each_role_reaches_what_its_line_says_and_a_token_works_from_the_moment_it_is_made() {
    let directory = support::folder();
    let server = Running::on_disk(directory.path()).await;
    for role in [Role::Viewer, Role::Applier, Role::Admin] {
        let token = token_beside(directory.path(), role, &[], &[]);
        for (method, path, needs) in routes() {
            let Needs::Role(needed) = needs else { continue };
            let answer = server.call(method.clone(), &path).bearer_auth(&token).send().await.unwrap();
            let denied = answer.status() == StatusCode::FORBIDDEN;
            assert_eq!(denied, role < needed, "{role} {method} {path}: {}", answer.status());
        }
    }
}

#[tokio::test]
async fn a_token_sees_and_changes_only_the_networks_and_projects_that_it_is_for() {
    let directory = support::folder();
    let server = Running::on_disk(directory.path()).await;
    server.declare(&format!(r#"{CORP} network "lab" {{ ipv4 "10.1.0.0/24" }}"#)).await;
    let token = token_beside(directory.path(), Role::Applier, &["corp"], &[]);
    let get = async |path: &str| server.call(Method::GET, path).bearer_auth(&token).send().await.unwrap();
    let snapshot: schema::world::WorldDocument = get("/api/v1/snapshot").await.json().await.unwrap();
    assert!(snapshot.resources.iter().all(|resource| resource.id.network.as_str() == "corp"));
    assert_eq!(get("/api/v1/lab/network/lab").await.status(), StatusCode::FORBIDDEN);
    assert_eq!(get("/api/v1/corp/network/corp").await.status(), StatusCode::OK);
    let plan = server.plan("acme/prod", &CORP.replace("10.0.0.9", "10.0.0.8")).await;
    let answer = server.send(&token, &request(plan)).await;
    assert_eq!(failure(answer).await.1, "denied", "the plan deletes the other network");
    let token = token_beside(directory.path(), Role::Applier, &[], &["other"]);
    let plan = server.plan("acme/prod", CORP).await;
    assert_eq!(failure(server.send(&token, &request(plan)).await).await.1, "denied");
    for (path, condition) in
        [("corp/dns/api", ("if-match", "\"1\"")), ("corp/dns/new", ("if-none-match", "*"))]
    {
        let call = server.call(Method::PUT, &format!("/api/v1/{path}")).bearer_auth(&token);
        let answer =
            call.header(condition.0, condition.1).body(r#"{"a":["10.0.0.8"]}"#).send().await.unwrap();
        assert_eq!(failure(answer).await.1, "denied", "{path} is not its project's");
    }
}

/// No answer to a caller may contain one of these words.
fn says_nothing_of(what: &str, answer: &str, words: &[&str]) {
    for word in words {
        assert!(!answer.contains(word), "{what} contains {word}: {answer}");
    }
}

#[tokio::test]
async fn no_call_tells_or_changes_anything_of_a_network_that_the_token_is_not_for() {
    const HIDDEN: &[&str] = &["hidden", "secretive", "10.77."];
    let directory = support::folder();
    let server = Running::on_disk(directory.path()).await;
    server.declare(CORP).await;
    let hidden = r#"network "hidden" { ipv4 "10.77.0.0/24"; node "hidden-n"; dns "api" a="10.77.0.9"; access-key "k" }"#;
    let theirs = request(server.plan("secretive/prod", hidden).await);
    assert_eq!(server.send(&server.token, &theirs).await.status(), StatusCode::OK);
    server.declare(&CORP.replace("10.0.0.9", "10.0.0.7")).await;
    let before = server.snapshot().await.world().unwrap();
    for role in [Role::Viewer, Role::Applier, Role::Admin] {
        let token = token_beside(directory.path(), role, &["corp"], &[]);
        for rule in TABLE {
            let (Call::Rest(method, path), Needs::Role(_)) = (rule.call, rule.needs) else { continue };
            let path = path.replace("{network}", "hidden").replace("{kind}", "dns").replace("{name}", "api");
            let fingerprint = schema::scalars::Identity([1; 32]).fingerprint().to_string();
            let mut path = path.replace("{fingerprint}", &fingerprint);
            if rule.operation == Operation::ApprovePending {
                path += "?name=api";
            }
            let method: Method = method.to_uppercase().parse().unwrap();
            let call = server.call(method.clone(), &path).bearer_auth(&token).header("if-match", "\"2\"");
            let answer = call.body(r#"{"a":["10.0.0.8"]}"#).send().await.unwrap();
            let (status, text) = (answer.status(), answer.text().await.unwrap());
            if path.contains("hidden") {
                assert_eq!(status, StatusCode::FORBIDDEN, "{role} {method} {path}: {text}");
            } else {
                // The name of the network in a refusal is the caller's own word.
                says_nothing_of(&format!("{role} {method} {path}"), &text, HIDDEN);
                says_nothing_of(
                    &format!("{role} {method} {path}"),
                    &text,
                    &[&theirs.apply_id, &theirs.plan.digest],
                );
            }
        }
    }
    let token = token_beside(directory.path(), Role::Applier, &["corp"], &[]);
    let good = server.plan("acme/prod", &CORP.replace("10.0.0.9", "10.0.0.5")).await;
    let elsewhere: schema::snapshot::ResourceId = "hidden/dns/api".parse().unwrap();
    let bind = schema::plan::Bind {
        id: "hidden/node/hidden-n".parse().unwrap(),
        joined: jiff::Timestamp::UNIX_EPOCH,
        key: None,
        identity: schema::scalars::Identity([1; 32]),
        pending: false,
    };
    let additions: [&dyn Fn(&mut ApplyRequest); 4] = [
        &|request| {
            request.plan.base_revisions.insert(elsewhere.clone(), Revision(9));
        },
        &|request| request.plan.binds.push(bind.clone()),
        &|request| request.plan.changes[0].id = elsewhere.clone(),
        &|request| {
            request.keys.insert("hidden/access-key/k".parse().unwrap(), Verifier([1; 32]));
        },
    ];
    for (place, add) in additions.into_iter().enumerate() {
        let mut request = request(good.clone());
        add(&mut request);
        request.plan.digest = request.plan.digest_now();
        let answer = server.send(&token, &request).await;
        let (status, text) = (answer.status(), answer.text().await.unwrap());
        assert!(status.is_client_error(), "addition {place}: {status} {text}");
        says_nothing_of(&format!("addition {place}"), &text, &["secretive", "actor", "10.77."]);
    }
    // A rule that is broken because of the other network is reported without it.
    let call =
        server.call(Method::PUT, "/api/v1/corp/network/corp").bearer_auth(&token).header("if-match", "\"1\"");
    let answer = call.body(r#"{"ipv4":"10.77.0.0/25"}"#).send().await.unwrap();
    let (status, text) = (answer.status(), answer.text().await.unwrap());
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{text}");
    says_nothing_of("a broken rule", &text, &["hidden", "secretive"]);
    assert_eq!(server.snapshot().await.world().unwrap(), before, "nothing of this changed anything");
}

#[tokio::test]
async fn a_page_of_the_log_is_full_whoever_the_entries_between_belong_to() {
    let directory = support::folder();
    let server = Running::on_disk(directory.path()).await;
    for last in 1..=4 {
        server
            .declare(&format!(
                r#"{} network "lab" {{ ipv4 "10.1.0.0/24"; dns "x" a="10.1.0.{last}" }}"#,
                CORP.replace("10.0.0.9", &format!("10.0.0.{}", last / 4 + 1))
            ))
            .await;
    }
    let token = token_beside(directory.path(), Role::Viewer, &["corp"], &[]);
    let call = server.call(Method::GET, "/api/v1/revisions?limit=2").bearer_auth(&token);
    let log: Vec<schema::api::LogEntry> = call.send().await.unwrap().json().await.unwrap();
    assert_eq!(log.iter().map(|entry| entry.revision.0).collect::<Vec<_>>(), [1, 4]);
}

#[tokio::test]
async fn a_plan_says_each_thing_once_and_a_server_stores_no_more_than_it_needs() {
    let (server, _) = Running::in_memory().await;
    let good = server.plan("acme/prod", CORP).await;
    let refused = async |change: &dyn Fn(&mut ApplyRequest)| {
        let mut request = request(good.clone());
        change(&mut request);
        request.plan.digest = request.plan.digest_now();
        let (status, _, detail) = failure(server.send(&server.token, &request).await).await;
        assert_eq!(status, 400, "{detail}");
        detail
    };
    let twice = refused(&|request| request.plan.changes.push(request.plan.changes[0].clone())).await;
    assert!(twice.contains("corp twice"), "{twice}");
    let key: schema::snapshot::ResourceId = "corp/access-key/k".parse().unwrap();
    let verifier = Verifier([1; 32]);
    let surplus = refused(&|request| {
        request.keys.insert(key.clone(), verifier);
    })
    .await;
    assert!(surplus.contains("corp/access-key/k") && surplus.contains("does not create"), "{surplus}");
    let long = || Some("x".repeat(schema::snapshot::Provenance::LONGEST + 1));
    let provenance = schema::snapshot::Provenance { author: long(), ..Default::default() };
    let author = refused(&|request| request.plan.provenance = Some(provenance.clone())).await;
    assert!(author.contains("the author") && author.contains("1024"), "{author}");
    assert_eq!(server.snapshot().await.revision, Revision(0));
}

#[tokio::test]
async fn a_range_that_holds_an_address_of_the_server_needs_an_admin_who_lets_it_through() {
    let directory = support::folder();
    let server = Running::reached_at(directory.path(), "192.0.2.11:50051").await;
    let open: Value = server.call(Method::GET, "/api/v1/server").send().await.unwrap().json().await.unwrap();
    assert_eq!(open.get("addresses"), None, "only callers with a token see them");
    assert_eq!(server.snapshot().await.server.addresses, ["192.0.2.11".parse::<IpAddr>().unwrap()]);
    let applier = token_beside(directory.path(), Role::Applier, &[], &[]);
    let allowed = |plan| ApplyRequest { allow: [Guard::CutOff].into(), ..request(plan) };
    let lan = |range: &str| format!("network \"lan\" {{ ipv4 {range:?} }}");

    let plan = server.plan("acme/prod", &lan("192.0.2.8/29")).await;
    let refused = failure(server.send(&server.token, &request(plan.clone())).await).await;
    assert_eq!((refused.0, &*refused.1), (422, "guarded"), "{}", refused.2);
    assert!(refused.2.contains("192.0.2.8/29 of lan holds 192.0.2.11"), "{}", refused.2);
    assert_eq!(failure(server.send(&applier, &allowed(plan.clone())).await).await.1, "denied");
    assert_eq!(server.send(&server.token, &allowed(plan)).await.status(), StatusCode::OK);
    let log: Value = server.get("/api/v1/revisions").await.json().await.unwrap();
    assert_eq!(log[0]["allowed"], json!(["cut-off"]));

    let wider = server
        .call(Method::PUT, "/api/v1/lan/network/lan")
        .bearer_auth(&server.token)
        .header("if-match", "\"1\"");
    let refused = failure(wider.body(r#"{"ipv4":"192.0.2.0/24"}"#).send().await.unwrap()).await;
    assert_eq!(refused.1, "guarded", "by hand as well: {}", refused.2);

    let plan = server.plan("acme/prod", &format!("{}\n{CORP}", lan("192.0.2.8/29"))).await;
    assert_eq!(
        server.send(&applier, &allowed(plan)).await.status(),
        StatusCode::OK,
        "it needs nothing let through"
    );
    let log: Value = server.get("/api/v1/revisions?after=1").await.json().await.unwrap();
    assert_eq!(log[0].get("allowed"), None);
}

#[tokio::test]
async fn an_error_repeats_no_more_of_what_was_sent_than_helps() {
    let (server, _) = Running::in_memory().await;
    let long = "y".repeat(1 << 20);
    for (path, body) in [
        ("/api/v1/apply", json!({ "apply_id": long, "plan": long })),
        ("/api/v1/apply", json!({ long.clone(): 1 })),
        ("/api/v1/corp/network/corp", json!({ "ipv4": long })),
        ("/api/v1/corp/network/corp", json!({ long.clone(): 1 })),
    ] {
        let method = if path.ends_with("apply") { Method::POST } else { Method::PUT };
        let call = server.call(method, path).bearer_auth(&server.token).header("if-none-match", "*");
        let answer = call.body(body.to_string()).send().await.unwrap();
        assert!(answer.status().is_client_error());
        let text = answer.text().await.unwrap();
        assert!(text.len() < 4_000, "{path}: {} bytes", text.len());
        assert!(text.contains("characters ..."), "and it says that something is left out: {text}");
    }
}

#[tokio::test]
async fn an_unchanged_snapshot_is_not_sent_again() {
    let (server, _) = Running::in_memory().await;
    let first = server.get("/api/v1/snapshot").await;
    let tag = first.headers()["etag"].to_str().unwrap().to_owned();
    let again = async |tag: &str| {
        let call = server.call(Method::GET, "/api/v1/snapshot").bearer_auth(&server.token);
        call.header("if-none-match", tag).send().await.unwrap()
    };
    let unchanged = again(&tag).await;
    assert_eq!(unchanged.status(), StatusCode::NOT_MODIFIED);
    assert_eq!(unchanged.bytes().await.unwrap().len(), 0);
    assert_eq!(again(&format!("\"x\", W/{tag}")).await.status(), StatusCode::NOT_MODIFIED);
    server.declare(CORP).await;
    assert_eq!(again(&tag).await.status(), StatusCode::OK);
}

#[tokio::test]
async fn a_plan_is_carried_out_once_whole_and_then_nothing_is_left_to_plan() {
    let (server, _) = Running::in_memory().await;
    let request = request(server.plan("acme/prod", CORP).await);
    let apply = async || -> Applied { server.send(&server.token, &request).await.json().await.unwrap() };
    assert_eq!(apply().await, Applied { revision: Revision(1), already: false });
    assert_eq!(apply().await, Applied { revision: Revision(1), already: true });
    assert!(server.plan("acme/prod", CORP).await.changes.is_empty());
    let log: Vec<schema::api::LogEntry> = server.get("/api/v1/revisions").await.json().await.unwrap();
    assert_eq!(log.len(), 1);
    assert_eq!((&*log[0].action, log[0].changes.len()), ("apply", 2));
    assert_eq!(log[0].digest.as_ref(), Some(&request.plan.digest));
}

#[tokio::test]
async fn a_stale_plan_is_refused_and_says_who_moved_what() {
    let (server, _) = Running::in_memory().await;
    server.declare(CORP).await;
    let stale = server.plan("acme/prod", &CORP.replace("10.0.0.9", "10.0.0.8")).await;
    server.declare(&CORP.replace("10.0.0.9", "10.0.0.7")).await;
    let answer = server.send(&server.token, &request(stale)).await;
    assert_eq!(answer.status(), StatusCode::PRECONDITION_FAILED);
    let body: schema::api::Failure = answer.json().await.unwrap();
    assert_eq!(body.code, "stale");
    assert_eq!(
        body.moved.iter().map(|it| (it.id.to_string(), it.revision.0)).collect::<Vec<_>>(),
        [("corp/dns/api".to_owned(), 2)]
    );
    assert!(body.moved[0].actor.is_some() && body.moved[0].time.is_some());
}

#[tokio::test]
async fn a_plan_that_was_tampered_with_is_refused_and_changes_nothing() {
    let (server, _) = Running::in_memory().await;
    server.declare(CORP).await;
    let good = server.plan("acme/prod", &CORP.replace("10.0.0.9", "10.0.0.8")).await;
    let refused = async |change: &dyn Fn(&mut schema::plan::Plan), sign: bool| {
        let mut plan = good.clone();
        change(&mut plan);
        if sign {
            plan.digest = plan.digest_now();
        }
        failure(server.send(&server.token, &request(plan)).await).await
    };
    let unsigned = refused(&|plan| plan.changes.clear(), false).await;
    assert!(unsigned.0 == 400 && unsigned.2.contains("digest"), "{unsigned:?}");
    let owner = refused(&|plan| plan.project = "evil".parse().expect("good"), true).await;
    assert!(owner.0 == 400 && owner.2.contains("not managed by evil/prod"), "{owner:?}");
    let create = refused(&|plan| plan.changes[0].action = schema::diff::Action::Create, true).await;
    assert!(create.0 == 400 && create.2.contains("corp/dns/api"), "{create:?}");
    let unbased = refused(&|plan| plan.base_revisions.clear(), true).await;
    assert!(unbased.0 == 400 && unbased.2.contains("corp/dns/api"), "{unbased:?}");
    let elsewhere = refused(&|plan| plan.server.id = "another".into(), true).await;
    assert_eq!((elsewhere.0, &*elsewhere.1), (412, "precondition"));
    let format = refused(&|plan| plan.format = "9.9".into(), true).await;
    assert!(format.2.contains("9.9"), "{format:?}");
    assert_eq!(server.snapshot().await.revision, Revision(1));
}

#[tokio::test]
async fn an_apply_id_stands_for_one_plan() {
    let (server, _) = Running::in_memory().await;
    let first = request(server.plan("acme/prod", CORP).await);
    assert_eq!(server.send(&server.token, &first).await.status(), StatusCode::OK);
    let mut second = request(server.plan("acme/prod", &CORP.replace("10.0.0.9", "10.0.0.8")).await);
    second.apply_id = first.apply_id;
    let (status, _, detail) = failure(server.send(&server.token, &second).await).await;
    assert!(status == 400 && detail.contains("another plan"), "{detail}");
    for bad in [String::new(), "x".repeat(129)] {
        second.apply_id = bad;
        assert_eq!(failure(server.send(&server.token, &second).await).await.0, 400);
    }
    assert_eq!(server.snapshot().await.revision, Revision(1));
}

#[tokio::test]
async fn a_plan_that_breaks_a_rule_is_refused_with_the_rule() {
    let (server, _) = Running::in_memory().await;
    let mut plan = server.plan("acme/prod", CORP).await;
    let entry = plan.changes.iter_mut().find(|change| change.id.to_string() == "corp/dns/api").unwrap();
    entry.after = serde_json::from_value(json!({ "node": "nobody" })).unwrap();
    plan.digest = plan.digest_now();
    let answer = server.send(&server.token, &request(plan)).await;
    let body: schema::api::Failure = answer.json().await.unwrap();
    assert_eq!((body.status, &*body.code), (422, "rules"));
    assert!(!body.problems.is_empty() && body.problems[0].code.contains("schema::"), "{body:?}");
}

#[tokio::test]
async fn a_key_without_what_verifies_it_is_not_made() {
    let (server, _) = Running::in_memory().await;
    let plan = server.plan("acme/prod", r#"network "corp" { ipv4 "10.0.0.0/24"; access-key "k" }"#).await;
    let mut bare = request(plan);
    bare.keys.clear();
    let (status, _, detail) = failure(server.send(&server.token, &bare).await).await;
    assert!(status == 400 && detail.contains("corp/access-key/k"), "{detail}");
    assert_eq!(server.snapshot().await.revision, Revision(0));
}

#[tokio::test]
async fn one_resource_is_changed_only_at_the_revision_that_the_caller_knows() {
    let (server, _) = Running::in_memory().await;
    server.declare(CORP).await;
    let path = "/api/v1/corp/dns/web";
    let put = async |header: Option<(&str, &str)>, body: Value| {
        let call = server.call(Method::PUT, path).bearer_auth(&server.token).body(body.to_string());
        header.into_iter().fold(call, |call, (name, value)| call.header(name, value)).send().await.unwrap()
    };
    let body = || json!({ "a": ["10.0.0.5"] });
    assert_eq!(failure(put(None, body()).await).await.0, 400, "a condition is needed");
    assert_eq!(failure(put(Some(("if-match", "\"7\"")), body()).await).await.0, 412);
    let made = put(Some(("if-none-match", "*")), body()).await;
    assert_eq!((made.status(), made.headers()["etag"].to_str().unwrap()), (StatusCode::OK, "\"2\""));
    assert_eq!(failure(put(Some(("if-none-match", "*")), body()).await).await.0, 412, "it exists now");
    let read = server.get(path).await;
    assert_eq!(read.headers()["etag"].to_str().unwrap(), "\"2\"");
    assert_eq!(read.json::<Value>().await.unwrap()["body"]["a"], json!(["10.0.0.5"]));
    let wrong = put(Some(("if-match", "\"2\"")), json!({ "b": 1 })).await;
    assert_eq!(failure(wrong).await.1, "rules");
    assert_eq!(put(Some(("if-match", "\"2\"")), json!({ "a": ["10.0.0.6"] })).await.status(), StatusCode::OK);
    let delete = async |tag: &str| {
        let call = server.call(Method::DELETE, path).bearer_auth(&server.token).header("if-match", tag);
        call.send().await.unwrap()
    };
    assert_eq!(failure(delete("\"2\"").await).await.0, 412);
    assert_eq!(delete("\"3\"").await.status(), StatusCode::OK);
    assert_eq!(failure(server.get(path).await).await.0, 404);
    assert!(server.plan("acme/prod", CORP).await.changes.is_empty(), "what nobody manages is left alone");
}

#[tokio::test]
async fn a_network_has_one_path_and_no_other_resource_passes_for_one() {
    let (server, _) = Running::in_memory().await;
    server.declare(CORP).await;
    assert_eq!(server.get("/api/v1/corp/network/corp").await.status(), StatusCode::OK);
    let call = server.call(Method::PUT, "/api/v1/corp/network/x").bearer_auth(&server.token);
    let answer = call.header("if-none-match", "*").body(r#"{"ipv4":"10.9.0.0/24"}"#).send().await.unwrap();
    assert_eq!(failure(answer).await.0, 400);
}

#[tokio::test]
async fn the_log_has_no_gap_and_is_read_in_pages() {
    let (server, _) = Running::in_memory().await;
    for last in 1..=7 {
        server.declare(&CORP.replace("10.0.0.9", &format!("10.0.0.{last}"))).await;
    }
    let page = async |query: &str| -> Vec<u64> {
        let log: Vec<schema::api::LogEntry> =
            server.get(&format!("/api/v1/revisions{query}")).await.json().await.unwrap();
        log.iter().map(|entry| entry.revision.0).collect()
    };
    assert_eq!(page("").await, [1, 2, 3, 4, 5, 6, 7]);
    assert_eq!(page("?after=2&limit=3").await, [3, 4, 5]);
    assert_eq!(page("?after=7").await, [0u64; 0]);
    assert_eq!(failure(server.get("/api/v1/revisions?from=2").await).await.0, 400);
}

#[tokio::test]
async fn whoever_reads_does_not_wait_for_whoever_writes() {
    let (server, levers) = Running::in_memory().await;
    server.declare(CORP).await;
    let request = request(server.plan("acme/prod", &CORP.replace("10.0.0.9", "10.0.0.8")).await);
    levers.stuck.store(true, Ordering::SeqCst);
    let reads = async {
        for path in ["snapshot", "status", "revisions", "corp/dns/api"] {
            let answer =
                tokio::time::timeout(support::PATIENCE, server.get(&format!("/api/v1/{path}"))).await;
            let answer = answer.unwrap_or_else(|_| panic!("{path} waits for the writer"));
            assert_eq!(answer.status(), StatusCode::OK, "{path}");
        }
        assert_eq!(server.snapshot().await.revision, Revision(1), "the writer is still at it");
        levers.stuck.store(false, Ordering::SeqCst);
    };
    let (applied, ()) = tokio::join!(server.send(&server.token, &request), reads);
    assert_eq!(applied.status(), StatusCode::OK);
}

#[tokio::test]
async fn a_full_disk_changes_nothing_and_the_server_goes_on() {
    let (server, levers) = Running::in_memory().await;
    server.declare(CORP).await;
    let request = request(server.plan("acme/prod", &CORP.replace("10.0.0.9", "10.0.0.8")).await);
    levers.full.store(true, Ordering::SeqCst);
    let (status, code, detail) = failure(server.send(&server.token, &request).await).await;
    assert_eq!((status, &*code), (503, "database"));
    assert!(detail.contains("disk is full") && detail.contains("nothing was changed"), "{detail}");
    assert_eq!(server.snapshot().await.revision, Revision(1), "reads go on, and nothing was published");
    levers.full.store(false, Ordering::SeqCst);
    let applied: Applied = server.send(&server.token, &request).await.json().await.unwrap();
    assert_eq!(applied, Applied { revision: Revision(2), already: false });
}

#[tokio::test]
async fn a_server_that_starts_again_knows_everything_that_it_answered() {
    let directory = support::folder();
    let server = Running::on_disk(directory.path()).await;
    server.declare(CORP).await;
    let before = server.snapshot().await;
    let token = server.token.clone();
    server.end().await;
    let server = Running::on_disk(directory.path()).await;
    assert_eq!(server.token, token, "the admin's token is made once");
    let after = server.snapshot().await;
    assert_eq!(after.world().unwrap(), before.world().unwrap());
    assert_eq!(
        after.server,
        schema::world::ServerInfo { agent_addresses: after.server.agent_addresses.clone(), ..before.server }
    );
}

#[tokio::test]
async fn the_description_of_the_api_is_complete_and_true() {
    let (server, _) = Running::in_memory().await;
    server
        .declare(r#"network "corp" { ipv4 "10.0.0.0/24"; access-key "k" uses=9; dns "x" a="10.0.0.9" }"#)
        .await;
    let mut agent = server.joined("a", 1, "k").await;
    server.joined("b", 2, "k").await;
    agent.leave().await.unwrap();
    let description: Value = server.get("/api/v1/openapi.json").await.json().await.unwrap();
    check_references(&description, &description["components"]["schemas"]);
    for rule in TABLE {
        if let Call::Rest(method, path) = rule.call {
            assert!(description["paths"][path][method]["operationId"].is_string(), "{method} {path}");
        }
    }
    let resource = "/api/v1/{network}/{kind}/{name}";
    for (path, described) in [
        ("/api/v1/server", "/api/v1/server"),
        ("/api/v1/snapshot", "/api/v1/snapshot"),
        ("/api/v1/status", "/api/v1/status"),
        ("/api/v1/revisions", "/api/v1/revisions"),
        ("/api/v1/corp/network/corp", resource),
        ("/api/v1/corp/dns/x", resource),
    ] {
        let answer = server.get(path).await.json().await.unwrap();
        let response = &description["paths"][described]["get"]["responses"]["200"];
        fits(&description, &response["content"]["application/json"]["schema"], &answer);
    }
    let failed: Value = server.get("/api/v1/corp/dns/nothing").await.json().await.unwrap();
    let failure = &description["paths"][resource]["get"]["responses"]["default"];
    fits(&description, &failure["content"]["application/problem+json"]["schema"], &failed);
    let apply = &description["paths"]["/api/v1/apply"]["post"];
    let content = |of: &Value| of["content"]["application/json"]["schema"].clone();
    let mut request = request(server.plan("acme/prod", CORP).await);
    fits(&description, &content(&apply["requestBody"]), &serde_json::to_value(&request).unwrap());
    let applied = server.send(&server.token, &request).await.json().await.unwrap();
    fits(&description, &content(&apply["responses"]["200"]), &applied);
    request.apply_id = "another".into();
    let stale: Value = server.send(&server.token, &request).await.json().await.unwrap();
    assert!(stale["moved"][0].is_object(), "{stale:#}");
    fits(&description, &failure["content"]["application/problem+json"]["schema"], &stale);
}

/// Demands that a document fits a schema of the description.
fn fits(description: &Value, schema: &Value, document: &Value) {
    let mut schema = schema.clone();
    schema["components"] = description["components"].clone();
    let validator = jsonschema::draft202012::new(&schema).unwrap();
    let wrong: Vec<_> =
        validator.iter_errors(document).map(|it| format!("{}: {it}", it.instance_path())).collect();
    assert!(wrong.is_empty(), "{wrong:#?}\n{document:#}");
}

#[test]
fn the_description_of_the_api_reads_well() {
    insta::assert_snapshot!(serde_json::to_string_pretty(&nmserver::openapi::document()).unwrap());
}

/// Every reference leads somewhere.
fn check_references(value: &Value, schemas: &Value) {
    match value {
        Value::Object(map) => {
            if let Some(Value::String(to)) = map.get("$ref") {
                let name = to.strip_prefix("#/components/schemas/").unwrap();
                assert!(schemas[name].is_object(), "{to} leads nowhere");
            }
            map.values().for_each(|value| check_references(value, schemas));
        }
        Value::Array(items) => items.iter().for_each(|value| check_references(value, schemas)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

#[tokio::test]
async fn a_change_after_which_a_test_fails_needs_an_admin_who_lets_it_through() {
    let directory = support::folder();
    let server = Running::reached_at(directory.path(), "192.0.2.11:50051").await;
    let applier = token_beside(directory.path(), Role::Applier, &[], &[]);
    let text = |rules: &str| {
        let test = r#"test "apart" { no-reach from="a" to="b" port=22 }"#;
        format!(r#"network "corp" ipv4="10.40.0.0/16" acl="deny" {{ node "a"; node "b"; {test}; {rules} }}"#)
    };
    let opens = r#"allow "all" from="*" to="*""#;
    let allowed =
        |plan| ApplyRequest { allow: ["test=corp/test/apart".parse().unwrap()].into(), ..request(plan) };

    let plan = server.plan("acme/prod", &text("")).await;
    assert_eq!(server.send(&applier, &request(plan)).await.status(), StatusCode::OK);
    let plan = server.plan("acme/prod", &text(opens)).await;
    assert!(plan.tests.iter().any(schema::judge::Verdict::fails), "{:#?}", plan.tests);
    let refused = failure(server.send(&server.token, &request(plan.clone())).await).await;
    assert_eq!((refused.0, &*refused.1), (422, "guarded"), "{}", refused.2);
    assert!(refused.2.contains("a may open tcp 22 at b, by corp/allow/all"), "{}", refused.2);
    assert_eq!(failure(server.send(&applier, &allowed(plan.clone())).await).await.1, "denied");
    // What the sender says of tests counts for nothing.
    let silent = schema::plan::Plan { tests: Vec::new(), ..plan.clone() };
    assert_eq!(failure(server.send(&server.token, &request(silent)).await).await.1, "guarded");
    assert_eq!(server.send(&server.token, &allowed(plan)).await.status(), StatusCode::OK);
    let log: Value = server.get("/api/v1/revisions?after=1").await.json().await.unwrap();
    assert_eq!(log[0]["allowed"], json!(["test=corp/test/apart"]));

    let rule = server.call(Method::PUT, "/api/v1/corp/allow/more").bearer_auth(&server.token);
    let rule = rule.header("if-none-match", "*").body(r#"{"from":["a"],"to":["b"]}"#);
    let refused = failure(rule.send().await.unwrap()).await;
    assert_eq!(refused.1, "guarded", "by hand as well: {}", refused.2);
}
