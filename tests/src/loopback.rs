//! A server on loopback, without tunnels or a node of its own: it changes nothing on this host.

use std::fs::File;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A running `nmserver`; killed when dropped.
#[derive(Debug)]
pub struct Server {
    child: Child,
    /// The environment variables with which `nmplan` reaches it as an admin.
    pub environment: Vec<(&'static str, String)>,
}

impl Server {
    /// Starts a build of `nmserver` with its data in `folder`/data; it serves what an earlier one left there.
    ///
    /// # Panics
    ///
    /// When it does not start within 20 s.
    pub fn start(nmserver: &Path, folder: &Path) -> Self {
        let port = |_| {
            let socket = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
            socket.local_addr().expect("it is bound").port().to_string()
        };
        let [rest, agents] = [0, 1].map(port);
        let data = folder.join("data");
        let log = folder.join("log");
        let child = Command::new(nmserver)
            .env("DATA_DIR", &data)
            .envs([
                ("BIND", "127.0.0.1"),
                ("SERVER_HOST", "127.0.0.1"),
                ("API_PORT", &*rest),
                ("GRPC_PORT", &*agents),
            ])
            .envs([("COMMS", "off"), ("CLIENT_MODE", "off")])
            .stdout(Stdio::null())
            .stderr(File::create(&log).expect("a log"))
            .spawn()
            .expect("nmserver starts");
        let start = Instant::now();
        while !std::fs::read_to_string(&log).is_ok_and(|log| log.contains("serving")) {
            assert!(start.elapsed() < Duration::from_secs(20), "nmserver does not serve");
            std::thread::sleep(Duration::from_millis(10));
        }
        let file = |name| data.join(name).display().to_string();
        let environment = vec![
            ("NMPLAN_SERVER", format!("https://127.0.0.1:{rest}")),
            ("NMPLAN_TOKEN_FILE", file("admin.token")),
            ("NMPLAN_CA", file("ca.pem")),
        ];
        Self { child, environment }
    }

    /// The number of its process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
