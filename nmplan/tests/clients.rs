//! `nmplan client conf` as it is typed: what it prints, what it writes, and what is never printed.
#![expect(clippy::unwrap_used, reason = "a test")]

mod workspace;

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use schema::inventory::{ClientStatus, NodeId};
use schema::kinds::ExternalClient;
use schema::scalars::WireGuardKey;
use schema::snapshot::ResourceId;
use schema::world::World;
use workspace::{Ran, Workspace, join};

const MESH: &str = r#"// Who may come in.
network "corp" {
    ipv4 "10.40.0.0/16"
    node "gw" // at the front
    ingress "front" via="gw" endpoint="gw.example.net:51821" { dns "10.40.0.53" }
    external-client "alice" via="front" // her phone
}
"#;

/// A workspace whose server has what MESH declares, with the node joined and the client let in.
fn in_use() -> Workspace {
    let workspace = Workspace::new(World { epoch: 7, ..World::default() });
    workspace.write("mesh/corp.kdl", MESH);
    apply(&workspace);
    join(&workspace.server, &[("gw", 9)]);
    workspace
}

fn apply(workspace: &Workspace) {
    let applied = workspace.nmplan("apply -C @mesh --project acme -y");
    assert_eq!(applied.exit, 0, "{}", applied.all());
}

fn conf(workspace: &Workspace, more: &str) -> Ran {
    workspace.nmplan(&format!("client conf alice -C @mesh --project acme {more}"))
}

/// The value of a field of a configuration.
fn field<'a>(text: &'a str, name: &str) -> &'a str {
    let value = text.lines().find_map(|line| line.strip_prefix(&format!("{name} = ")));
    value.unwrap_or_else(|| panic!("{name} in {text}"))
}

/// The public key of a private one, computed by the function of RFC 7748.
fn public(private: &str) -> String {
    let private: [u8; 32] = STANDARD.decode(private).unwrap().try_into().unwrap();
    WireGuardKey(x25519_dalek::x25519(private, x25519_dalek::X25519_BASEPOINT_BYTES)).to_string()
}

fn files(workspace: &Workspace) -> Vec<String> {
    let entries = fs::read_dir(workspace.path("mesh")).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_configuration_is_printed_and_its_public_key_written_where_the_client_is_declared() {
    let workspace = in_use();
    let file = workspace.path("mesh/corp.kdl");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o664)).unwrap();
    let ran = conf(&workspace, "");
    let private = field(&ran.stdout, "PrivateKey").to_owned();
    let public_key = public(&private);
    let key = STANDARD.encode([9; 32]);
    let expected = format!(
        "[Interface]\nPrivateKey = {private}\nAddress = 10.40.0.1/32\nDNS = 10.40.0.53\n\n[Peer]\nPublicKey = {key}\n\
         Endpoint = gw.example.net:51821\nAllowedIPs = 10.40.0.0/16\nPersistentKeepalive = 20\n"
    );
    assert_eq!((ran.exit, &*ran.stdout), (0, &*expected), "{}", ran.all());
    assert_eq!(
        ran.stderr,
        "Wrote the public key of corp/external-client/alice into DIR/mesh/corp.kdl, line 6.\nIt is let in once that is \
         applied:\n\n    nmplan apply -C DIR/mesh --project acme\n"
    );
    let declared = format!("\"alice\" public-key=\"{public_key}\" via=\"front\"");
    assert_eq!(workspace.read("mesh/corp.kdl"), MESH.replace("\"alice\" via=\"front\"", &declared));
    assert_eq!(fs::metadata(&file).unwrap().mode() & 0o777, 0o664, "permissions stay");
    assert_eq!(files(&workspace), ["corp.kdl"], "nothing else is left");

    let again = conf(&workspace, "");
    assert_eq!((again.exit, &*again.stdout), (1, ""), "{}", again.all());
    let has_key = "error: corp/external-client/alice has a public-key already, and its private key is not here: --key FILE \
                   gives it\n  help: give the file that holds it with --key FILE; for a new key delete public-key from \
                   DIR/mesh/corp.kdl, line 6, and hand the new configuration out\n";
    assert_eq!(again.stderr, has_key);
    let elsewhere = conf(&workspace, "--key @alice.key");
    assert!(
        elsewhere.stderr.contains("is not here: there is no file DIR/alice.key\n"),
        "{}",
        elsewhere.stderr
    );
    fs::write(workspace.path("alice.key"), format!("{private}\n")).unwrap();
    let open = conf(&workspace, "--key @alice.key");
    assert!(open.stderr.contains("chmod 600 DIR/alice.key\n"), "{}", open.stderr);
    fs::set_permissions(workspace.path("alice.key"), fs::Permissions::from_mode(0o600)).unwrap();
    let same = conf(&workspace, "--key @alice.key");
    assert_eq!((same.exit, &*same.stdout), (0, &*expected), "{}", same.all());
    apply(&workspace);
    assert_eq!(conf(&workspace, "--key @alice.key").stderr, "", "nothing is left to do");
}

#[test]
fn a_private_key_is_made_in_a_file_for_its_owner_alone_and_read_from_it() {
    let workspace = in_use();
    let first = conf(&workspace, "--key @alice.key");
    let path = workspace.path("alice.key");
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
    let private = field(&first.stdout, "PrivateKey");
    assert_eq!(fs::read_to_string(&path).unwrap(), format!("{private}\n"));
    assert!(!first.stderr.contains(private) && first.stderr.contains("Made a private key in DIR/alice.key"));
    assert_eq!(conf(&workspace, "--key @alice.key").stdout, first.stdout);

    for (content, says) in [("x", "does not hold a WireGuard private key"), ("AAAA", "does not hold")] {
        fs::write(&path, content).unwrap();
        let ran = conf(&workspace, "--key @alice.key");
        assert!(ran.exit == 1 && ran.stderr.contains(says) && !ran.stderr.contains("AAAA"), "{}", ran.all());
    }
    fs::write(&path, STANDARD.encode([8; 32])).unwrap();
    let other = conf(&workspace, "--key @alice.key");
    assert!(
        other.stderr.contains("belongs to another public key than corp/external-client/alice has"),
        "{}",
        other.all()
    );
    let folder = conf(&workspace, "--key @mesh");
    assert!(folder.stderr.contains("DIR/mesh does not hold"), "{}", folder.all());
}

#[test]
fn the_public_key_is_written_into_yaml_too() {
    let workspace = in_use();
    let yaml = "networks:\n  corp:\n    ipv4: 10.40.0.0/16\n    nodes: [gw]\n    ingress:\n      front: {via: gw, endpoint: \
                \"gw.example.net:51821\", dns: 10.40.0.53}\n    external-clients:\n      # her phone\n      alice:\n        \
                via: front\n";
    fs::remove_file(workspace.path("mesh/corp.kdl")).unwrap();
    workspace.write("mesh/corp.yaml", yaml);
    let ran = conf(&workspace, "");
    assert_eq!(ran.exit, 0, "{}", ran.all());
    let key = public(field(&ran.stdout, "PrivateKey"));
    let with_key =
        yaml.replace("        via: front", &format!("        public-key: \"{key}\"\n        via: front"));
    assert_eq!(workspace.read("mesh/corp.yaml"), with_key);
    assert!(ran.stderr.contains("corp.yaml, line 9."), "{}", ran.stderr);
}

#[test]
fn a_file_that_cannot_be_written_is_an_error_before_anything_is_printed() {
    let refused = |workspace: &Workspace, line: &str, why: &str| {
        let ran = workspace.nmplan(line);
        assert_eq!((ran.exit, &*ran.stdout), (1, ""), "{}", ran.all());
        assert!(ran.stderr.contains(why) && ran.stderr.contains("wg genkey > FILE"), "{}", ran.stderr);
        assert!(!workspace.path("alice.key").exists(), "no key is made");
    };
    let line = "client conf alice -C @mesh --project acme --key @alice.key";
    let workspace = in_use();
    let file = workspace.path("mesh/corp.kdl");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o444)).unwrap();
    refused(&workspace, line, "cannot be written into DIR/mesh/corp.kdl: it is read-only\n");

    let real = workspace.path("mesh/.corp.kdl");
    fs::rename(&file, &real).unwrap();
    symlink(&real, &file).unwrap();
    refused(&workspace, line, "it is a symbolic link\n");

    let workspace = in_use();
    let complex = "networks:\n  corp:\n    ipv4: 10.40.0.0/16\n    nodes: [gw]\n    ingress: {front: {via: gw}}\n    \
                   external-clients:\n      alice:\n        ? via\n        : front\n";
    workspace.write("other.yaml", complex);
    let line = "client conf alice -f @other.yaml -C @mesh --project acme --key @alice.key";
    refused(&workspace, line, "it is written in a form that is not understood here\n");
}

#[test]
fn what_nobody_got_is_not_declared() {
    let mut workspace = in_use();
    workspace.output_fails = Some((0, ErrorKind::BrokenPipe));
    let ran = conf(&workspace, "");
    assert_eq!(ran.exit, 1, "{}", ran.all());
    assert_eq!(workspace.read("mesh/corp.kdl"), MESH);
    assert_eq!(files(&workspace), ["corp.kdl"]);
}

#[test]
fn what_a_client_lacks_is_said_with_what_to_do() {
    let says = |workspace: &Workspace, what: &str, help: &str| {
        let ran = conf(workspace, "");
        assert_eq!((ran.exit, &*ran.stdout), (1, ""), "{}", ran.all());
        assert!(ran.stderr.contains(what) && ran.stderr.contains(help), "{what}: {}", ran.stderr);
        assert_eq!(workspace.read("mesh/corp.kdl").matches("public-key").count(), 0);
    };
    let new = Workspace::new(World { epoch: 7, ..World::default() });
    new.write("mesh/corp.kdl", MESH);
    says(&new, "corp/external-client/alice is not applied yet", "nmplan apply");
    apply(&new);
    says(&new, "corp/node/gw, which corp/ingress/front is at, has not joined", "netclient join");

    let workspace = in_use();
    let id: NodeId =
        ResourceId::of::<ExternalClient>(&"corp".parse().unwrap(), &"alice".parse().unwrap()).node();
    workspace.server.change_elsewhere(|world| {
        let created = "2026-11-24T12:00:00Z".parse().unwrap();
        let status = ClientStatus { addresses: [].into(), created, expired: true };
        world.inventory.put_client(id, status, created);
    });
    says(&workspace, "corp/external-client/alice has expired", "set another `expires`");

    let workspace = in_use();
    workspace.write("mesh/corp.kdl", &MESH.replace("via=\"front\" //", "via=\"front\" enabled=#false //"));
    apply(&workspace);
    says(&workspace, "corp/external-client/alice is disabled", "remove `enabled`");
}

#[test]
fn a_name_that_several_networks_have_needs_the_network() {
    let workspace = in_use();
    let lan = MESH.replace("\"corp\"", "\"lan\"").replace("10.40.", "10.41.");
    workspace.write("mesh/lan.kdl", &lan);
    let ran = conf(&workspace, "");
    assert!(
        ran.stderr.contains("is an external client of several networks: corp/alice, lan/alice\n"),
        "{}",
        ran.all()
    );
    for name in
        ["corp/alice --key @k", "corp/external-client/alice --key @k", "alice --network corp --key @k"]
    {
        let ran = workspace.nmplan(&format!("client conf {name} -C @mesh --project acme"));
        assert_eq!(ran.exit, 0, "{name}: {}", ran.all());
    }
    let unknown = workspace.nmplan("client conf corp/alise -C @mesh --project acme");
    assert!(unknown.stderr.contains("declare no external client corp/alise\n"), "{}", unknown.all());
    assert!(unknown.stderr.contains("did you mean \"corp/alice\"?"), "{}", unknown.all());
}

#[test]
fn files_that_declare_a_client_otherwise_than_it_was_applied_are_mentioned() {
    let workspace = in_use();
    workspace
        .write("mesh/corp.kdl", &MESH.replace("via=\"front\" //", "via=\"front\" ipv4=\"10.40.9.9\" //"));
    let ran = conf(&workspace, "");
    assert!(
        ran.stderr.starts_with("Note: the files declare corp/external-client/alice otherwise"),
        "{}",
        ran.all()
    );
    assert_eq!(field(&ran.stdout, "Address"), "10.40.0.1/32");
}

/// What an independent decoder reads of pixels; those are dark or not.
fn decoded(width: usize, height: usize, is_dark: impl Fn(usize, usize) -> bool) -> String {
    let shade = |x, y| if is_dark(x, y) { 0 } else { 255 };
    let mut image = rqrr::PreparedImage::prepare_from_greyscale(width, height, shade);
    let grids = image.detect_grids();
    assert_eq!(grids.len(), 1, "there is one code");
    grids[0].decode().unwrap().1
}

#[test]
fn a_code_is_the_same_configuration_on_a_terminal_and_as_a_picture() {
    let workspace = in_use();
    let text = conf(&workspace, "--key @alice.key --png @alice.png").stdout;
    let path = workspace.path("alice.png");
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
    let mut reader =
        png::Decoder::new(std::io::BufReader::new(fs::File::open(&path).unwrap())).read_info().unwrap();
    let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
    let info = reader.next_frame(&mut pixels).unwrap();
    let (width, height) = (info.width as usize, info.height as usize);
    assert_eq!(decoded(width, height, |x, y| pixels[y * width + x] < 128), text);

    let drawn = conf(&workspace, "--key @alice.key --qr");
    assert!(!drawn.all().contains(field(&text, "PrivateKey")));
    let lines: Vec<Vec<char>> = drawn.stdout.lines().map(|line| line.chars().collect()).collect();
    assert!(lines.iter().all(|line| line.len() == lines[0].len() && line.len() <= 80), "it fits a terminal");
    // Light modules are drawn, in half blocks; a decoder needs more than one pixel for each.
    let is_dark = |x: usize, y: usize| match lines[y / 4 / 2][x / 4] {
        '█' => false,
        '▀' => y / 4 % 2 == 1,
        '▄' => (y / 4).is_multiple_of(2),
        ' ' => true,
        other => panic!("{other:?}"),
    };
    assert_eq!(decoded(lines[0].len() * 4, lines.len() * 8, is_dark), text);

    let replaced = conf(&workspace, "--key @alice.key --png @mesh/corp.kdl");
    assert!(
        replaced.exit == 1 && replaced.stderr.contains("is not a PNG file, so it is not replaced"),
        "{}",
        replaced.all()
    );
    let document = conf(&workspace, "--key @alice.key --json").stdout;
    let document: serde_json::Value = serde_json::from_str(&document).unwrap();
    assert_eq!(document, serde_json::json!({ "id": "corp/external-client/alice", "configuration": text }));
}
