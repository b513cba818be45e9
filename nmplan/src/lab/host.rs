//! What is a host of the lab?
//!
//! A network, a mount and a UTS namespace, held open by descriptors alone: no process has to run in them.
//! What a process inside sees of the file system:
//!
//! | path | is |
//! | --- | --- |
//! | `/etc` | the real machine's, under an overlay: whatever is written stays in the lab; `hosts`, `hostname`, `resolv.conf` and the empty directory `netclient` are the host's own |
//! | `/run` | an empty tmpfs, with the lab's [`DIRECTORY`] at its usual place |
//! | `/proc`, `/sys` | those of the lab's processes and of the host's network; settings below `/proc/sys/net` may be written |
//! | everything else | the real machine's, read-only; `TMPDIR` is `/run` |
//!
//! If the lab runs in a user namespace, files in `/etc` that belong to the real root cannot be changed in
//! place, and its directories take no new files; replacing files in `/etc` itself works.

use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future;
use rustix::mount::{MountFlags, MoveMountFlags, OpenTreeFlags};
use rustix::process::{Pid, PidfdFlags, Signal};
use rustix::thread::{LinkNameSpaceType, UnshareFlags};

use rtnetlink::Handle;
use socket2::{Domain, Socket, Type};

use super::cable::{Impairment, Port, configure_host, connect, index_of};
use super::flow::{Flow, Pattern};
use super::listeners::{self, Bound, Listeners, Service};
use super::ping::{Echo, Pinger};
use super::probe::{self, Outcome, Probe, Sockets};
use super::{DIRECTORY, Error, Process, outside_pid, system};

/// A virtual machine in all but the kernel: network, mounts, files and name of its own.
///
/// Dropping it kills every process inside and takes its network down. Its files stay until the lab ends.
#[derive(Debug)]
pub struct Host {
    name: String,
    v4: Ipv4Addr,
    v6: Ipv6Addr,
    namespaces: Arc<Namespaces>,
    port: Port,
    echo: Mutex<Option<Arc<Echo>>>,
}

impl Host {
    pub(super) fn new(name: &str, v4: Ipv4Addr, v6: Ipv6Addr, port: Port) -> Result<Self, Error> {
        let files =
            Files::prepare(name).map_err(system(format!("prepare the files of the host `{name}`")))?;
        let namespaces = Namespaces::new(name, &files).map_err(system(format!("make the host `{name}`")))?;
        Ok(Self {
            name: name.to_owned(),
            v4,
            v6,
            namespaces: Arc::new(namespaces),
            port,
            echo: Mutex::default(),
        })
    }

    /// Makes the host's end of its cable and configures it.
    pub(super) async fn connect(&self) -> Result<(), Error> {
        self.port.attach(self.namespaces.network.as_fd()).await?;
        let index = self.within(|| index_of("eth0"))?;
        configure_host(&self.links()?, index, self.v4, self.v6).await?;
        self.port.plug().await
    }

    /// The lab's end of its cable: the interface of the lab that leads to the host.
    #[must_use]
    pub fn cable(&self) -> String {
        self.port.name()
    }

    /// The file that its network namespace is entered by, for programs that this process starts.
    pub(super) fn network_file(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.namespaces.network.as_raw_fd())
    }

    /// Opens a netlink socket of the host.
    fn links(&self) -> Result<Handle, Error> {
        let runtime = tokio::runtime::Handle::current();
        let opened = self.within(move || {
            let _runtime = runtime.enter();
            connect()
        });
        opened.map_err(system("open a netlink socket in a host"))
    }

    /// The name that it was made with, also its hostname.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its address in the underlay.
    #[must_use]
    pub fn ipv4(&self) -> Ipv4Addr {
        self.v4
    }

    /// Its IPv6 address in the underlay.
    #[must_use]
    pub fn ipv6(&self) -> Ipv6Addr {
        self.v6
    }

    /// A directory of its own, which the lab and all hosts see at this path; it holds the logs of its
    /// processes.
    #[must_use]
    pub fn directory(&self) -> PathBuf {
        directory_of(&self.name)
    }

    /// Runs a closure in a thread that has entered the host, and returns what it returned.
    ///
    /// Sockets made in the closure stay in the host's network, and paths are the host's. A tokio socket also
    /// needs a runtime: make it from a std socket, or enter a `tokio::runtime::Handle` in the closure. Blocks
    /// the caller.
    ///
    /// # Panics
    ///
    /// When the closure panics, or when the kernel refuses to enter the host's namespaces.
    pub fn within<T: Send>(&self, act: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let entered = scope.spawn(|| {
                self.namespaces.enter_thread().expect("the lab may enter the namespaces it made");
                act()
            });
            entered.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Reads a file as the host sees it.
    ///
    /// # Errors
    ///
    /// As [`std::fs::read_to_string`].
    pub fn read(&self, path: impl AsRef<Path>) -> io::Result<String> {
        let path = path.as_ref();
        self.within(|| std::fs::read_to_string(path))
    }

    /// Writes a file in place as the host sees it; see the table of what may be written at the top of this
    /// file.
    ///
    /// # Errors
    ///
    /// As [`std::fs::write`].
    pub fn write(&self, path: impl AsRef<Path>, content: impl AsRef<[u8]>) -> io::Result<()> {
        let (path, content) = (path.as_ref(), content.as_ref());
        self.within(|| std::fs::write(path, content))
    }

    /// Mounts a file over itself, as container engines do with `/etc/hosts`: it can be written in place, and
    /// renaming another over it fails with EBUSY.
    ///
    /// # Errors
    ///
    /// What mount(2) answered.
    pub fn pin(&self, path: impl AsRef<Path>) -> io::Result<()> {
        let path = path.as_ref();
        self.within(|| Ok(rustix::mount::mount_bind(path, path)?))
    }

    /// Hides what a directory holds from the host: it is empty from now on.
    ///
    /// # Errors
    ///
    /// What mount(2) answered.
    pub fn hide(&self, directory: impl AsRef<Path>) -> io::Result<()> {
        let directory = directory.as_ref();
        self.within(|| Ok(rustix::mount::mount("tmpfs", directory, "tmpfs", MountFlags::RDONLY, None)?))
    }

    /// Prepares a command that will run inside the host, as root, in a process group of its own and in the
    /// directory `/`; `current_dir` has no effect.
    ///
    /// It sets no parent death signal, which would be bound to the parent's *thread*: the end of the lab's
    /// PID namespace kills it.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        let namespaces = Arc::clone(&self.namespaces);
        command.env("TMPDIR", "/run").process_group(0).stdin(std::process::Stdio::null());
        // SAFETY: setns(2) on open descriptors, which neither allocates nor locks.
        #[expect(unsafe_code, reason = "the child enters the host between fork and exec")]
        unsafe {
            command.pre_exec(move || namespaces.enter());
        }
        command
    }

    /// Starts a command made by [`Host::command`]; what it prints goes to `<label>.log` in
    /// [`Host::directory`], after what an earlier process of that label wrote.
    ///
    /// Needs a tokio runtime.
    ///
    /// # Errors
    ///
    /// When the log cannot be written or the program cannot be executed.
    pub fn start(&self, label: &str, command: Command) -> io::Result<Process> {
        Process::start(self.directory().join(format!("{label}.log")), command)
    }

    /// Runs a command made by [`Host::command`] to its end and returns what it printed. It is killed when the
    /// future is dropped.
    ///
    /// # Errors
    ///
    /// When the program cannot be executed.
    pub async fn run(&self, command: Command) -> io::Result<Output> {
        tokio::process::Command::from(command).kill_on_drop(true).output().await
    }

    /// The processes that run inside, however they were started.
    #[must_use]
    pub fn processes(&self) -> Vec<u32> {
        let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
        let numbers = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        numbers.filter(|&pid| self.contains(pid)).collect()
    }

    /// Unplugs the cable: the host loses its carrier, and keeps addresses and routes.
    ///
    /// # Errors
    ///
    /// What the kernel refused.
    pub async fn link_down(&self) -> Result<(), Error> {
        self.port.unplug().await
    }

    /// Plugs the cable in again; does nothing if it is plugged in.
    ///
    /// # Errors
    ///
    /// What the kernel refused.
    pub async fn link_up(&self) -> Result<(), Error> {
        self.port.plug().await
    }

    /// Lets its cable carry packets of so many bytes at most; both ends know.
    ///
    /// # Errors
    ///
    /// What the kernel refused.
    pub async fn set_mtu(&self, mtu: u32) -> Result<(), Error> {
        self.port.set_mtu(&self.links()?, mtu).await
    }

    /// Makes packets on its cable be lost, delayed or reordered, in both directions; none: no longer.
    ///
    /// # Errors
    ///
    /// [`Error::Refused`] when the kernel has no netem, or when there is nothing to end.
    pub async fn impair(&self, impairment: Option<&Impairment>) -> Result<(), Error> {
        self.port.impair(impairment).await?;
        let mut command = self.command("tc");
        command.args(Impairment::command(impairment, "eth0"));
        Impairment::outcome(self.run(command).await)
    }

    /// Sends one echo request, and returns how long the answer took; `None` if none came from that address
    /// within `timeout`, for any reason, including a missing route: then it takes the whole timeout.
    ///
    /// Pings of one host share two sockets, so a thousand at once are cheap.
    ///
    /// # Errors
    ///
    /// When the sockets cannot be made.
    pub async fn ping(&self, to: IpAddr, timeout: Duration) -> io::Result<Option<Duration>> {
        Ok(self.echo()?.ping(to, timeout).await)
    }

    /// Starts to send an echo request every `interval`, until it is stopped or dropped.
    ///
    /// # Errors
    ///
    /// When the sockets cannot be made.
    pub fn pinger(&self, to: IpAddr, interval: Duration) -> io::Result<Pinger> {
        Ok(Pinger::start(self.echo()?, to, interval))
    }

    /// Opens services at addresses of the host, of which an unspecified one stands for all of its family;
    /// needs a tokio runtime. They answer probes and flows until they are closed or dropped.
    ///
    /// # Errors
    ///
    /// [`Error::System`] with the service and the address, where another program has the port, or where the
    /// host does not have the address.
    pub fn listen(
        &self,
        at: &[IpAddr],
        services: impl IntoIterator<Item = Service>,
    ) -> Result<Listeners, Error> {
        let services = listeners::distinct(services);
        let all = at.iter().flat_map(|at| services.iter().map(move |service| (*at, *service)));
        let all: Vec<_> = all.collect();
        let bound: Result<Vec<_>, Error> = self.within(|| {
            let bind = |(at, service): (IpAddr, Service)| {
                let attempt = format!("listen on {service} at {at} of the host `{}`", self.name);
                Bound::new(service, at).map_err(system(attempt)).transpose()
            };
            all.into_iter().filter_map(bind).collect()
        });
        Listeners::serve(bound?).map_err(system(format!("serve at the host `{}`", self.name)))
    }

    /// Tries to open a service at an address, for as long as `limit` if nothing answers.
    ///
    /// # Errors
    ///
    /// When this computer does not have what a socket needs; what happens to packets is an [`Outcome`].
    pub async fn probe(&self, to: IpAddr, service: Service, limit: Duration) -> io::Result<Outcome> {
        Ok(self.probe_all(&[Probe { to, service }], limit).await?.pop().unwrap_or(Outcome::Nothing))
    }

    /// Carries out probes, all at the same time; returns their outcomes in the same order.
    ///
    /// # Errors
    ///
    /// As [`Host::probe`].
    pub async fn probe_all(&self, probes: &[Probe], limit: Duration) -> io::Result<Vec<Outcome>> {
        let echo = self.echo()?;
        let sockets: io::Result<Vec<_>> =
            self.within(|| probes.iter().map(|probe| Sockets::new(*probe, &echo)).collect());
        let probing = sockets?.into_iter().zip(probes);
        future::try_join_all(probing.map(|(sockets, probe)| probe::probe(sockets, *probe, limit))).await
    }

    /// Starts traffic to a service of another host's [`Listeners`], or, with ICMP, echo requests; the host asks,
    /// or the service sends by itself. Returns once the first message has arrived.
    ///
    /// # Errors
    ///
    /// When the socket cannot be made, or no message arrives within `limit`.
    pub async fn flow(
        &self,
        to: IpAddr,
        service: Service,
        pattern: Pattern,
        limit: Duration,
    ) -> io::Result<Flow> {
        let make = |kind| {
            self.within(|| {
                let socket = Socket::new(Domain::for_address(SocketAddr::new(to, 0)), kind, None)?;
                socket.set_nonblocking(true)?;
                Ok::<_, io::Error>(socket)
            })
        };
        let flow = match service {
            Service::Tcp(port) => Flow::tcp(make(Type::STREAM)?, SocketAddr::new(to, port), pattern),
            Service::Udp(port) => {
                let socket = tokio::net::UdpSocket::from_std(make(Type::DGRAM)?.into())?;
                Flow::udp(socket, SocketAddr::new(to, port), pattern)
            }
            Service::Icmp => Flow::icmp(self.echo()?, to),
        };
        flow.begun(limit).await
    }

    /// The command with which a user outside the lab enters this host, while this process runs.
    #[must_use]
    pub fn how_to_enter(&self) -> String {
        let pid = outside_pid().unwrap_or(0);
        let [network, mount, name] = self.namespaces.each().map(|(fd, _)| fd.as_raw_fd());
        let user = if in_user_namespace() { " --user --preserve-credentials" } else { "" };
        format!(
            "nsenter --target {pid}{user} --pid --ipc --net=/proc/{pid}/fd/{network} --uts=/proc/{pid}/fd/{name} \
             --mount=/proc/{pid}/fd/{mount}"
        )
    }

    fn echo(&self) -> io::Result<Arc<Echo>> {
        let mut echo = self.echo.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(echo) = &*echo {
            return Ok(Arc::clone(echo));
        }
        let made = Arc::new(Echo::serve(self.within(Echo::sockets)?)?);
        *echo = Some(Arc::clone(&made));
        Ok(made)
    }

    fn contains(&self, pid: u32) -> bool {
        // Threads of this process enter hosts for a moment, but the process itself is in none of them.
        pid != std::process::id()
            && std::fs::metadata(format!("/proc/{pid}/ns/net"))
                .is_ok_and(|theirs| self.namespaces.is_network(&theirs))
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        for pid in self.processes() {
            let Some(raw) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { continue };
            // The descriptor pins the process; checking again afterwards rules out that the number was
            // reused.
            let Ok(process) = rustix::process::pidfd_open(raw, PidfdFlags::empty()) else { continue };
            if self.contains(pid) {
                let _ = rustix::process::pidfd_send_signal(&process, Signal::KILL);
            }
        }
    }
}

/// The three namespaces of a host, which exist as long as this does.
#[derive(Debug)]
struct Namespaces {
    network: OwnedFd,
    mount: OwnedFd,
    name: OwnedFd,
}

impl Namespaces {
    fn new(name: &str, files: &Files) -> io::Result<Self> {
        // A new thread: it stays in the new namespaces, so it must not come from a pool.
        std::thread::scope(|scope| scope.spawn(|| Self::unshare(name, files)).join())
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    fn unshare(name: &str, files: &Files) -> io::Result<Self> {
        let flags = UnshareFlags::FS | UnshareFlags::NEWNS | UnshareFlags::NEWNET | UnshareFlags::NEWUTS;
        // SAFETY: the flags do not contain FILES, the only one that is unsound.
        #[expect(unsafe_code, reason = "rustix marks it unsafe for the sake of one flag")]
        unsafe { rustix::thread::unshare_unsafe(flags) }?;
        rustix::system::sethostname(name.as_bytes())?;
        files.mount()?;
        let open = |kind| File::open(format!("/proc/thread-self/ns/{kind}")).map(OwnedFd::from);
        Ok(Self { network: open("net")?, mount: open("mnt")?, name: open("uts")? })
    }

    fn each(&self) -> [(&OwnedFd, LinkNameSpaceType); 3] {
        [
            (&self.network, LinkNameSpaceType::Network),
            (&self.mount, LinkNameSpaceType::Mount),
            (&self.name, LinkNameSpaceType::HostNameAndNISDomainName),
        ]
    }

    /// Moves the calling process, which must have one thread, or the calling thread, which must share no root
    /// directory with others, into the host.
    fn enter(&self) -> io::Result<()> {
        self.each()
            .into_iter()
            .try_for_each(|(fd, kind)| Ok(rustix::thread::move_into_link_name_space(fd.as_fd(), Some(kind))?))
    }

    fn enter_thread(&self) -> io::Result<()> {
        // SAFETY: the flags do not contain FILES, the only one that is unsound.
        #[expect(unsafe_code, reason = "rustix marks it unsafe for the sake of one flag")]
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::FS) }?;
        self.enter()
    }

    fn is_network(&self, theirs: &std::fs::Metadata) -> bool {
        rustix::fs::fstat(&self.network)
            .is_ok_and(|ours| (ours.st_dev, ours.st_ino) == (theirs.dev(), theirs.ino()))
    }
}

/// The files of a host's own.
struct Files {
    etc: PathBuf,
    /// The work directory that overlayfs needs on the same file system as `etc`.
    work: PathBuf,
}

impl Files {
    fn prepare(name: &str) -> io::Result<Self> {
        let (etc, work) = (directory_of(name).join("etc"), directory_of(name).join("etc.work"));
        std::fs::create_dir_all(&etc)?;
        std::fs::create_dir_all(&work)?;
        std::fs::DirBuilder::new().mode(0o700).create(etc.join("netclient"))?;
        std::fs::write(etc.join("hostname"), format!("{name}\n"))?;
        std::fs::write(etc.join("resolv.conf"), "")?;
        let hosts =
            format!("127.0.0.1\tlocalhost\n127.0.1.1\t{name}\n::1\tlocalhost ip6-localhost ip6-loopback\n");
        std::fs::write(etc.join("hosts"), hosts)?;
        Ok(Self { etc, work })
    }

    /// Arranges the mounts of the calling thread's mount namespace, which must be private.
    fn mount(&self) -> io::Result<()> {
        let shared = rustix::mount::open_tree(
            rustix::fs::CWD,
            DIRECTORY,
            OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC,
        )?;
        set_read_only(Path::new("/"), true, libc::AT_RECURSIVE)?;
        set_read_only(Path::new("/proc"), false, 0)?;
        rustix::mount::mount(
            "tmpfs",
            "/run",
            "tmpfs",
            MountFlags::NOSUID | MountFlags::NODEV,
            Some(c"mode=0755"),
        )?;
        std::fs::create_dir(DIRECTORY)?;
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        rustix::mount::move_mount(&shared, "", rustix::fs::CWD, DIRECTORY, flags)?;
        let layers = format!("lowerdir=/etc,upperdir={},workdir={}", self.etc.display(), self.work.display());
        let layers = std::ffi::CString::new(layers).map_err(io::Error::other)?;
        rustix::mount::mount("overlay", "/etc", "overlay", MountFlags::empty(), Some(layers.as_c_str()))?;
        // It shows the host's interfaces. Containers often forbid the mount; none of our programs reads it.
        if let Err(error) = rustix::mount::mount("sysfs", "/sys", "sysfs", MountFlags::RDONLY, None) {
            tracing::debug!(%error, "the host sees the lab's /sys");
        }
        Ok(())
    }
}

fn directory_of(name: &str) -> PathBuf {
    Path::new(DIRECTORY).join("hosts").join(name)
}

/// Whether the lab's root is not the real one: then `uid_map` does not map all numbers.
fn in_user_namespace() -> bool {
    std::fs::read_to_string("/proc/self/uid_map").is_ok_and(|map| !map.trim_end().ends_with("4294967295"))
}

/// Makes a mount, and with `AT_RECURSIVE` all below it, read-only or writable; see mount_setattr(2).
fn set_read_only(path: &Path, read_only: bool, flags: libc::c_int) -> io::Result<()> {
    let path = std::ffi::CString::new(path.as_os_str().as_encoded_bytes()).map_err(io::Error::other)?;
    let (set, clear) = if read_only { (libc::MOUNT_ATTR_RDONLY, 0) } else { (0, libc::MOUNT_ATTR_RDONLY) };
    let attributes: [u64; 4] = [set, clear, 0, 0];
    // SAFETY: the path ends with NUL; `attributes` has the layout of `struct mount_attr`, four 64-bit words,
    // and its size is passed.
    #[expect(unsafe_code, reason = "neither rustix nor libc wraps mount_setattr")]
    let failed = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            libc::AT_FDCWD,
            path.as_ptr(),
            flags,
            attributes.as_ptr(),
            size_of_val(&attributes),
        )
    };
    if failed == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
