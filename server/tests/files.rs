//! What is done to the files of the database while the server runs: it notices, refuses, and says what to do.
#![expect(clippy::unwrap_used, reason = "a test")]

#[allow(dead_code, reason = "each suite uses its part")]
#[expect(clippy::allow_attributes, reason = "what is unused differs from suite to suite")]
mod support;

use std::fs;
use std::path::Path;

use nmserver::identity::DATABASE;
use support::{Running, failure, folder, request};

const CORP: &str = r#"network "corp" { ipv4 "10.0.0.0/24" }"#;
const MORE: &str = r#"network "corp" { ipv4 "10.0.0.0/24"; mtu 1300 }"#;

/// What somebody does to a file.
type Harm = fn(&Path);

fn delete(path: &Path) {
    fs::remove_file(path).unwrap();
}

fn move_away(path: &Path) {
    fs::rename(path, path.with_extension("away")).unwrap();
}

fn truncate(path: &Path) {
    fs::OpenOptions::new().write(true).open(path).unwrap().set_len(0).unwrap();
}

fn replace(path: &Path) {
    let copy = path.with_extension("copy");
    fs::copy(path, &copy).unwrap();
    fs::rename(copy, path).unwrap();
}

#[tokio::test]
async fn a_database_whose_files_are_lost_is_noticed_before_anything_is_answered() {
    let harms: [(&str, Harm); 4] =
        [("deleted", delete), ("moved", move_away), ("truncated", truncate), ("replaced", replace)];
    for suffix in ["", "-wal", "-shm"] {
        for (name, harm) in harms {
            let data = folder();
            let server = Running::on_disk(data.path()).await;
            server.declare(CORP).await;
            let plan = server.plan("acme/prod", MORE).await;
            assert_eq!(server.get("/readyz").await.status(), 200);
            harm(&data.path().join(format!("{DATABASE}{suffix}")));
            let case = format!("{DATABASE}{suffix} {name}");
            let (status, code, detail) = failure(server.send(&server.token, &request(plan)).await).await;
            assert_eq!((status, &*code), (503, "database"), "{case}: {detail}");
            assert!(
                detail.contains("nothing was changed") && detail.contains("restart nmserver"),
                "{case}: {detail}"
            );
            assert_eq!(server.get("/readyz").await.status(), 503, "{case}");
            assert_eq!(server.get("/healthz").await.status(), 200, "{case}");
        }
    }
}

#[tokio::test]
async fn a_file_that_comes_back_makes_nothing_good() {
    let data = folder();
    let server = Running::on_disk(data.path()).await;
    let (path, away) = (data.path().join(DATABASE), data.path().join("away"));
    fs::rename(&path, &away).unwrap();
    assert_eq!(server.get("/readyz").await.status(), 503);
    fs::rename(&away, &path).unwrap();
    assert_eq!(server.get("/readyz").await.status(), 503, "what was written meanwhile is not known");
    server.end().await;
    let server = Running::on_disk(data.path()).await;
    assert_eq!(server.get("/readyz").await.status(), 200, "a start reads what is there");
}
