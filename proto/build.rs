//! Compiles the protocol in pure Rust, so that no `protoc` is needed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto");
    let files = protox::compile(["agent.proto"], ["proto"])?;
    // The token of a session prints itself nowhere: proto/src/secret.rs.
    let secret = [".netmaker.agent.v1.OpenSessionResponse"];
    tonic_prost_build::configure().bytes(".").skip_debug(secret).compile_fds(files)?;
    Ok(())
}
