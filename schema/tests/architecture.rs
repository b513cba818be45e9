//! What ARCHITECTURE.md promises to whoever adds a field, tried on a copy of this workspace.
#![expect(clippy::unwrap_used, reason = "a test")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Kinds that the compiler of networks reads, and the files that declare them.
const KINDS: [(&str, &str); 3] = [("Network", "network.rs"), ("Node", "node.rs"), ("Dns", "dns.rs")];

#[test]
fn a_field_that_is_read_nowhere_does_not_compile() {
    let copy = copy();
    let before = check(&copy);
    assert!(before.is_empty(), "the copy is sound before it is changed:\n{before}");
    for (kind, file) in KINDS {
        let path = copy.join("schema/src/kinds").join(file);
        let text = fs::read_to_string(&path).unwrap();
        let header = format!("pub struct {kind} {{\n");
        assert!(text.contains(&header), "{file} declares {kind}");
        let field = "    /// Whether nobody has given it a meaning yet.\n    #[field(default = false)]\n    pub unread: bool,\n";
        fs::write(&path, text.replacen(&header, &format!("{header}{field}"), 1)).unwrap();
    }
    let after = check(&copy);
    let refusals = after.matches("pattern does not mention field `unread`").count();
    assert_eq!(refusals, KINDS.len(), "the compiler asks for each of them what it means:\n{after}");
    assert_eq!(after.matches("src/compile.rs").count(), KINDS.len(), "where Views are made:\n{after}");
}

/// A copy of the workspace's sources, anew.
fn copy() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let copy = Path::new(env!("CARGO_TARGET_TMPDIR")).join("architecture");
    if copy.exists() {
        fs::remove_dir_all(&copy).unwrap();
    }
    for entry in fs::read_dir(root).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name();
        let hidden = name.to_string_lossy().starts_with('.');
        if !hidden && name != "target" {
            copy_into(&entry.path(), &copy.join(name));
        }
    }
    copy
}

fn copy_into(from: &Path, to: &Path) {
    if from.is_dir() {
        fs::create_dir_all(to).unwrap();
        for entry in fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            copy_into(&entry.path(), &to.join(entry.file_name()));
        }
    } else {
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(from, to).unwrap();
    }
}

/// What cargo says is wrong with the model.
fn check(workspace: &Path) -> String {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["check", "--quiet", "--offline", "--locked", "--package", "schema", "--message-format", "short"])
        .current_dir(workspace)
        .env("CARGO_TARGET_DIR", workspace.with_file_name("architecture-target"))
        .env_remove("RUSTFLAGS")
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.success() { String::new() } else { errors }
}
