//! How does a program run where it can build networks, change nothing outside, and leave nothing behind?
//!
//! [`enter`] starts a command in new PID, mount, network, UTS and IPC namespaces, and in a new user namespace
//! when the caller is not root. Inside, `/proc` is fresh, `/run` is an empty tmpfs and no mount propagates to
//! the outside. [`enter_test`] does the same for a `#[test]`. This file never makes an interface; the
//! underlay does.
//!
//! There are two processes between the caller and the program:
//!
//! ```text
//! caller -- keeper -- init (process 1 of the new PID namespace) -- program
//! ```
//!
//! The keeper exists because a process cannot move into a new PID namespace, only its children can. Init
//! reaps orphans. Both are forks of the caller that never exec; they forward SIGINT and SIGTERM, and end with
//! their child's status.
//!
//! Invariants:
//! - When any of them dies, by any signal, everything below it dies: the kernel kills a PID namespace with
//!   its process 1, and keeper and init set SIGKILL as their parent death signal. Network and mounts end with
//!   their last user.
//! - Between fork and exec nothing allocates or takes a lock, so this works in a program with threads.
//! - The parent death signal is bound to the *thread* that forked, so [`enter`] waits on that thread.

use std::io::{self, BufRead, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};

use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountFlags, MountPropagationFlags};
use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions};
use rustix::thread::UnshareFlags;

/// The directory that holds all files of the lab: it is on the private tmpfs that is `/run` inside, every
/// host sees it at the same path, and it ends with the namespaces.
pub const DIRECTORY: &str = "/run/nmplan-lab";

/// A file with the PID, outside the lab, of the program that was started inside.
const OUTSIDE_PID: &str = "/run/nmplan-lab/outside-pid";

const TUN: &str = "/dev/net/tun";

/// Whether this process runs inside a lab, so that it may make interfaces and mounts at will.
///
/// The mark is a file on the lab's own `/run`, not an environment variable, so that a variable that is
/// exported by mistake cannot make the real machine look like a lab.
#[must_use]
pub fn inside() -> bool {
    Path::new(OUTSIDE_PID).exists()
}

/// Returns the PID, outside the lab, of the program that [`enter`] started, for use with nsenter(1); `None`
/// outside a lab.
#[must_use]
pub fn outside_pid() -> Option<u32> {
    std::fs::read_to_string(OUTSIDE_PID).ok()?.trim().parse().ok()
}

/// Runs `command` inside new namespaces, waits for it, and returns its status once everything that it started
/// is gone.
///
/// The command sees [`inside`] true and is root there. A command killed by signal N ends with status `128 +
/// N`. The first SIGINT or SIGTERM is forwarded, so that the command can end in an orderly way; from a
/// terminal it may arrive twice, so the command must not count signals. The second one kills it. In a program
/// with other threads a signal may be delivered to one of them and end this process by its default action;
/// then the whole lab is killed.
///
/// # Errors
///
/// See [`EnterError`]; nothing has been started then.
pub fn enter(mut command: Command) -> Result<ExitStatus, EnterError> {
    if !Path::new(TUN).exists() {
        return Err(EnterError::NoTun);
    }
    // A proxy of the caller is outside.
    command.env("NO_PROXY", "0.0.0.0/0,::/0,*");
    let refused = |step| move |source| EnterError::Refused { step, source };
    let signals = Signals::block().map_err(refused(Step::Processes))?;
    let (mut steps, note) = io::pipe().map_err(refused(Step::Processes))?;
    let mut descent = Descent::from_here(note.into(), signals.before);
    let body = move || descent.run();
    // SAFETY: `Descent::run` only makes system calls on values prepared before the fork; it allocates nothing
    // and takes no lock.
    #[expect(unsafe_code, reason = "namespaces have to be entered between fork and exec")]
    unsafe {
        command.pre_exec(body);
    }
    let started = command.spawn();
    // The write end lives on in the command otherwise, and `steps` would never end.
    drop(command);
    match started {
        Ok(child) => signals.forward_until_end(child).map_err(|source| EnterError::Lost { source }),
        Err(source) => {
            let mut taken = Vec::new();
            let _ = steps.read_to_end(&mut taken);
            let step = taken.last().and_then(|&step| Step::from_number(step)).unwrap_or(Step::Processes);
            Err(EnterError::Refused { step, source })
        }
    }
}

/// Lets a `#[test]` run inside a lab: returns true inside, where the test continues, and false outside, where
/// the test has already been run inside and is to return.
///
/// `name` is the full name of the calling test as `cargo test -- --list` shows it, for example
/// `joins::two_nodes_meet`. The output of the test inside is printed outside. Where namespaces are not
/// permitted the test is skipped with a message that libtest does not capture, unless the variable `CI` is
/// set: then the skip is a failure.
///
/// ```no_run
/// # use nmplan::lab;
/// // #[test]
/// fn two_nodes_meet() {
///     if !lab::enter_test("two_nodes_meet") {
///         return;
///     }
///     // here the network is ours
/// }
/// ```
///
/// # Panics
///
/// When the test failed inside, or when no test of that name exists.
#[expect(clippy::print_stdout, reason = "a test's output is what libtest captures from stdout")]
pub fn enter_test(name: &str) -> bool {
    let mark = format!("[lab] entered {name}");
    if inside() {
        println!("{mark}");
        return true;
    }
    let (output, writer) = io::pipe().expect("a pipe for the output of a test");
    let printer = std::thread::spawn(move || print_lines(output, &mark));
    let program = std::env::current_exe().expect("the path of the running test program");
    let mut command = Command::new(program);
    command.args([name, "--exact", "--nocapture", "--test-threads=1", "--include-ignored"]);
    command.stdin(Stdio::null());
    command.stdout(writer.try_clone().expect("a second end of a pipe")).stderr(writer);
    let result = enter(command);
    let was_run = printer.join().expect("printing does not panic");
    match result {
        Ok(_) if !was_run => {
            panic!("no test is called `{name}`: use the name that `cargo test -- --list` shows")
        }
        Ok(status) if status.success() => {}
        Ok(status) => panic!("the test `{name}` failed inside the lab: {status}"),
        Err(error) if std::env::var_os("CI").is_some() => panic!("{}", error.explained()),
        Err(error) => report_skip(name, &error),
    }
    false
}

/// Bypasses libtest's capture, which hides the output of tests that pass.
fn report_skip(name: &str, error: &EnterError) {
    let _ = writeln!(io::stderr(), "SKIPPED {name}: {}", error.explained());
}

/// Prints lines until the last writer is gone; returns whether `mark` was among them.
#[expect(clippy::print_stdout, reason = "a test's output is what libtest captures from stdout")]
fn print_lines(output: io::PipeReader, mark: &str) -> bool {
    let mut seen = false;
    for line in io::BufReader::new(output).split(b'\n').map_while(Result::ok) {
        let line = String::from_utf8_lossy(&line);
        // libtest writes `test NAME ... ` without a newline before the test prints.
        seen |= line.ends_with(mark);
        println!("{line}");
    }
    seen
}

/// Why a lab could not be entered.
#[derive(Debug, thiserror::Error)]
pub enum EnterError {
    /// There is no `/dev/net/tun`, without which userspace WireGuard devices cannot exist.
    #[error("/dev/net/tun is missing, and the lab's WireGuard devices need it")]
    NoTun,
    /// The kernel, or a policy of this host, did not permit a step.
    #[error("the lab could not {step}")]
    Refused {
        /// What was attempted.
        step: Step,
        /// What the kernel answered.
        source: io::Error,
    },
    /// The program inside was started, but waiting for its end failed.
    #[error("the program inside the lab was lost")]
    Lost {
        /// What waiting for it answered.
        source: io::Error,
    },
}

impl EnterError {
    /// What to type next, with commands on lines of their own; `None` if there is nothing to suggest.
    #[must_use]
    pub fn help(&self) -> Option<&'static str> {
        match self {
            Self::NoTun => Some(
                "load the module, as root; in a container, start it with --device /dev/net/tun:\n\n    modprobe tun",
            ),
            Self::Refused { step, .. } => step.help(),
            Self::Lost { .. } => None,
        }
    }

    /// The error, its causes and the help as one text.
    fn explained(&self) -> String {
        let cause = std::error::Error::source(self).map(|cause| format!(": {cause}")).unwrap_or_default();
        let help = self.help().map(|help| format!("\n{help}")).unwrap_or_default();
        format!("{self}{cause}{help}")
    }
}

/// One step of entering a lab, in the order in which they are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Step {
    /// Forking, and preparing to.
    Processes,
    /// Becoming root of a user namespace.
    User,
    /// Making PID, mount, network, UTS and IPC namespaces.
    Namespaces,
    /// Detaching the mounts from those outside.
    Mounts,
    /// Mounting a `/proc` that shows the new PID namespace.
    Proc,
    /// Mounting an empty `/run`.
    Run,
    /// Executing the program.
    Program,
}

impl Step {
    const ALL: [Self; 7] =
        [Self::Processes, Self::User, Self::Namespaces, Self::Mounts, Self::Proc, Self::Run, Self::Program];

    fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|&step| step as u8 == number)
    }

    fn help(self) -> Option<&'static str> {
        match self {
            Self::User | Self::Namespaces | Self::Mounts => Some(
                "run it as root, or permit user namespaces (which of these settings exists depends on the distribution):\n\n    \
                 sysctl -w user.max_user_namespaces=10000\n    \
                 sysctl -w kernel.unprivileged_userns_clone=1\n    \
                 sysctl -w kernel.apparmor_restrict_unprivileged_userns=0\n\n\
                 in a container, start the container with --privileged",
            ),
            Self::Proc | Self::Run => {
                Some("in a container, start the container with --privileged; elsewhere run it as root")
            }
            Self::Processes | Self::Program => None,
        }
    }
}

impl std::fmt::Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Processes => "start its first processes",
            Self::User => "become root of a user namespace",
            Self::Namespaces => "make namespaces of its own",
            Self::Mounts => "detach its mounts from those of the host",
            Self::Proc => "mount a /proc of its own",
            Self::Run => "mount a /run of its own",
            Self::Program => "execute the program",
        })
    }
}

/// What the forked child needs; made before the fork, because nothing may allocate after it.
struct Descent {
    caller: Pid,
    /// `uid_map` and `gid_map` of the user namespace; `None` when root needs no such namespace.
    maps: Option<(String, String)>,
    /// Receives one byte when a step begins; closed by exec.
    note: OwnedFd,
    /// The signal mask that the program starts with.
    signals: libc::sigset_t,
}

impl Descent {
    fn from_here(note: OwnedFd, signals: libc::sigset_t) -> Self {
        let uid = rustix::process::geteuid();
        let gid = rustix::process::getegid();
        Self {
            caller: rustix::process::getpid(),
            maps: (!uid.is_root())
                .then(|| (format!("0 {} 1\n", uid.as_raw()), format!("0 {} 1\n", gid.as_raw()))),
            note,
            signals,
        }
    }

    /// Called in the child of the caller; returns in its grandchild, which is to exec the program.
    fn run(&mut self) -> io::Result<()> {
        set_signal_mask(&self.signals);
        if let Some((uids, gids)) = &self.maps {
            self.begin(Step::User);
            unshare(UnshareFlags::NEWUSER)?;
            overwrite("/proc/self/setgroups", b"deny")?;
            overwrite("/proc/self/uid_map", uids.as_bytes())?;
            overwrite("/proc/self/gid_map", gids.as_bytes())?;
        }
        self.begin(Step::Namespaces);
        unshare(
            UnshareFlags::NEWPID
                | UnshareFlags::NEWNS
                | UnshareFlags::NEWNET
                | UnshareFlags::NEWUTS
                | UnshareFlags::NEWIPC,
        )?;
        self.begin(Step::Processes);
        // After entering the user namespace, since a change of credentials clears the parent death signal.
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
        if rustix::process::getppid() != Some(self.caller) {
            exit_now(1);
        }
        let keeper = rustix::process::pidfd_open(rustix::process::getpid(), PidfdFlags::empty())?;
        if let Some(init) = fork()? {
            attend(init);
        }
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
        // getppid(2) is 0 here whether or not the keeper is alive, so its pidfd is checked instead.
        if is_readable(&keeper)? {
            exit_now(1);
        }
        if let Some(program) = fork()? {
            attend(program);
        }
        self.arrange_mounts()?;
        self.begin(Step::Program);
        Ok(())
    }

    fn arrange_mounts(&self) -> io::Result<()> {
        self.begin(Step::Mounts);
        // The old /proc still shows the PIDs of outside.
        let mut digits = [0_u8; 16];
        let length = rustix::fs::readlinkat_raw(rustix::fs::CWD, "/proc/self", &mut digits[..])?;
        rustix::mount::mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE)?;
        self.begin(Step::Proc);
        rustix::mount::mount(
            "proc",
            "/proc",
            "proc",
            MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC,
            None,
        )?;
        self.begin(Step::Run);
        rustix::mount::mount(
            "tmpfs",
            "/run",
            "tmpfs",
            MountFlags::NOSUID | MountFlags::NODEV,
            Some(c"mode=0755"),
        )?;
        rustix::fs::mkdir(DIRECTORY, Mode::from_raw_mode(0o755))?;
        let mark = rustix::fs::open(
            OUTSIDE_PID,
            OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC,
            Mode::from_raw_mode(0o644),
        )?;
        rustix::io::write(&mark, &digits[..length])?;
        Ok(())
    }

    fn begin(&self, step: Step) {
        let _ = rustix::io::write(&self.note, &[step as u8]);
    }
}

/// Ends with the status of `child`; until then reaps every other child and forwards signals. Keeper and init
/// do only this.
fn attend(child: Pid) -> ! {
    let mask = forwarded_signals(&[libc::SIGCHLD]);
    // SAFETY: system calls on values of this process, which has one thread and will never exec. Closing every
    // descriptor but standard input and outputs is sound because nothing of the fork's Rust state is used
    // again; it is necessary because `Command::spawn` waits for the end of a pipe that this process
    // inherited.
    #[expect(unsafe_code, reason = "signals, and descriptors that belong to the forked parent")]
    unsafe {
        for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGCHLD] {
            libc::signal(signal, libc::SIG_DFL);
        }
        libc::sigprocmask(libc::SIG_BLOCK, &raw const mask, std::ptr::null_mut());
        libc::syscall(libc::SYS_close_range, 3_u32, u32::MAX, 0_u32);
    }
    // Leave the terminal's foreground group: Ctrl-C reaches caller and program, and the caller forwards it.
    let _ = rustix::process::setpgid(None, None);
    loop {
        while let Ok(Some((ended, status))) = rustix::process::wait(WaitOptions::NOHANG) {
            if ended == child {
                exit_now(
                    status
                        .exit_status()
                        .or(status.terminating_signal().map(|signal| 128 + signal))
                        .unwrap_or(1),
                );
            }
        }
        let mut number = 0;
        // SAFETY: both pointers are to live locals.
        #[expect(unsafe_code, reason = "waiting for a blocked signal")]
        let failed = unsafe { libc::sigwait(&raw const mask, &raw mut number) };
        if failed == 0 && number != libc::SIGCHLD {
            let _ = Signal::from_named_raw(number).map(|signal| rustix::process::kill_process(child, signal));
        }
    }
}

/// The signals that are forwarded inside; blocked in the calling thread until dropped.
struct Signals {
    arrivals: OwnedFd,
    before: libc::sigset_t,
}

impl Signals {
    fn block() -> io::Result<Self> {
        let mask = forwarded_signals(&[]);
        let mut before = mask;
        // SAFETY: the pointers are to live locals; the new descriptor is owned by nobody else.
        #[expect(unsafe_code, reason = "signalfd has no safe wrapper among our dependencies")]
        let arrivals = unsafe {
            let fd = libc::signalfd(-1, &raw const mask, libc::SFD_CLOEXEC);
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            libc::pthread_sigmask(libc::SIG_BLOCK, &raw const mask, &raw mut before);
            <OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(fd)
        };
        Ok(Self { arrivals, before })
    }

    fn forward_until_end(self, mut child: Child) -> io::Result<ExitStatus> {
        let pid = Pid::from_child(&child);
        let end = rustix::process::pidfd_open(pid, PidfdFlags::empty())?;
        let mut forwarded = false;
        loop {
            let mut waited = [readable(&end), readable(&self.arrivals)];
            match rustix::event::poll(&mut waited, None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            if !waited[0].revents().is_empty() {
                return child.wait();
            }
            if !waited[1].revents().is_empty() {
                let signal = self.take()?;
                let signal = if forwarded { Signal::KILL } else { signal };
                forwarded = true;
                rustix::process::pidfd_send_signal(&end, signal)?;
            }
        }
    }

    fn take(&self) -> io::Result<Signal> {
        let mut record = [0_u8; size_of::<libc::signalfd_siginfo>()];
        rustix::io::read(&self.arrivals, &mut record)?;
        // `ssi_signo`, the first field, is the number of the signal.
        let number = u32::from_ne_bytes([record[0], record[1], record[2], record[3]]);
        Ok(if number == Signal::INT.as_raw() as u32 { Signal::INT } else { Signal::TERM })
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        set_signal_mask(&self.before);
    }
}

/// Sets which signals the calling thread blocks.
fn set_signal_mask(mask: &libc::sigset_t) {
    // SAFETY: the pointer is to a live set that the kernel wrote.
    #[expect(unsafe_code, reason = "the signal mask of a thread has no safe wrapper")]
    unsafe {
        libc::pthread_sigmask(libc::SIG_SETMASK, std::ptr::from_ref(mask), std::ptr::null_mut());
    }
}

fn forwarded_signals(and: &[libc::c_int]) -> libc::sigset_t {
    // SAFETY: `sigset_t` is a plain bit set, for which all zeroes are valid; the pointer is to a live local.
    #[expect(unsafe_code, reason = "signal sets have no safe wrapper")]
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        for &signal in [libc::SIGINT, libc::SIGTERM].iter().chain(and) {
            libc::sigaddset(&raw mut set, signal);
        }
        set
    }
}

fn fork() -> io::Result<Option<Pid>> {
    // SAFETY: every caller is itself a fresh fork with one thread, and goes on with system calls only.
    #[expect(unsafe_code, reason = "a PID namespace begins with a fork")]
    let pid = unsafe { libc::fork() };
    if pid < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(Pid::from_raw(pid))
}

/// Ends this process at once: no destructors, no exit handlers, which belong to the process it was forked
/// from.
fn exit_now(status: i32) -> ! {
    // SAFETY: `_exit` is always sound.
    #[expect(unsafe_code, reason = "std's exit would run the handlers of the forked parent")]
    unsafe {
        libc::_exit(status)
    }
}

fn unshare(flags: UnshareFlags) -> io::Result<()> {
    // SAFETY: the flags never contain FILES, the only one that is unsound.
    #[expect(unsafe_code, reason = "rustix marks it unsafe for the sake of one flag")]
    unsafe { rustix::thread::unshare_unsafe(flags) }.map_err(Into::into)
}

fn overwrite(path: &str, text: &[u8]) -> io::Result<()> {
    let file = rustix::fs::open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::write(&file, text)?;
    Ok(())
}

fn is_readable(fd: &impl AsFd) -> io::Result<bool> {
    let mut fds = [readable(fd)];
    Ok(rustix::event::poll(&mut fds, Some(&rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 }))? > 0)
}

fn readable(fd: &impl AsFd) -> rustix::event::PollFd<'_> {
    rustix::event::PollFd::new(fd, rustix::event::PollFlags::IN)
}
