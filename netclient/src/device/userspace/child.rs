//! Starting a device process so that it outlives its parent: another session, hence no terminal and no signal
//! of the parent's group; the root as working folder; none of the parent's descriptors; no environment, which
//! may hold tokens.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use rustix::io::{FdFlags, fcntl_setfd};

use super::super::DeviceError;
use super::super::protocol::{DeviceReply, LONGEST};
use super::TIMEOUT;
use crate::files::{self, log_path};

/// How much of the log of a dead process is shown, from its end.
const LOG_TAIL: usize = 2000;
/// What a device process may keep of its parent's environment: how it logs and panics.
const KEPT: [&str; 2] = ["NETCLIENT_LOG", "RUST_BACKTRACE"];

/// Starts the process and waits until it says that it is ready.
pub(super) fn start(interface: &str, executable: &Path, socket: &Path) -> Result<(), DeviceError> {
    let log = log_path(socket);
    let attempt = format!("start {} as the device process of {interface}", executable.display());
    let (ours, theirs) = UnixStream::pair().map_err(DeviceError::host(attempt.clone()))?;
    let log_file = open_log(&log).map_err(DeviceError::host(format!("write {}", log.display())))?;
    let mut child = command(interface, executable, socket)
        .stdout(OwnedFd::from(theirs))
        .stderr(log_file)
        .spawn()
        .map_err(DeviceError::host(attempt))?;
    match announced(ours, TIMEOUT) {
        Some(DeviceReply::Hello(_)) => {
            reap_later(child);
            Ok(())
        }
        Some(DeviceReply::Refused(refusal)) => {
            end(&mut child);
            remove_empty(&log);
            Err(refusal.into())
        }
        Some(DeviceReply::State(_) | DeviceReply::Endpoint(_) | DeviceReply::Done) | None => {
            end(&mut child);
            Err(DeviceError::StartFailed { interface: interface.to_owned(), reason: log_tail(&log) })
        }
    }
}

fn command(interface: &str, executable: &Path, socket: &Path) -> Command {
    let mut command = Command::new(executable);
    command.args(["device", "--interface", interface, "--socket"]).arg(socket);
    command.stdin(Stdio::null()).current_dir("/").env_clear();
    command.envs(KEPT.iter().filter_map(|name| Some((name, std::env::var_os(name)?))));
    detach(&mut command);
    command
}

/// Starts the child in a session of its own, and closes every descriptor but the standard three at its start.
fn detach(command: &mut Command) {
    let inherited = descriptors();
    let prepare = move || {
        rustix::process::setsid()?;
        for &descriptor in &inherited {
            close_on_exec(descriptor);
        }
        Ok(())
    };
    #[expect(
        unsafe_code,
        reason = "only a closure that runs between fork and exec can call setsid in the child"
    )]
    // SAFETY: the closure makes system calls only (setsid, fcntl) and reads memory made before the fork; it
    // takes no lock and allocates nothing, as a child of a process with threads must not.
    unsafe {
        command.pre_exec(prepare);
    }
}

/// Rust opens everything close-on-exec; what a shell or a library left open (a lock of flock(1), say) is not.
fn close_on_exec(descriptor: RawFd) {
    #[expect(
        unsafe_code,
        reason = "safe code cannot take ownership of a descriptor that nobody in this program owns"
    )]
    // SAFETY: the descriptor is borrowed for this one call in a child that executes another program next; one
    // that was closed since it was listed yields EBADF.
    let borrowed = unsafe { BorrowedFd::borrow_raw(descriptor) };
    let _ = fcntl_setfd(borrowed, FdFlags::CLOEXEC);
}

fn descriptors() -> Vec<RawFd> {
    let listed = fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
    let numbers = listed.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    numbers.filter(|&number: &RawFd| number > 2).collect()
}

fn open_log(path: &PathBuf) -> io::Result<File> {
    files::in_place().truncate(true).open(path)
}

/// The first line of the process; absent: it ended before that, or did not write it in time.
fn announced(stream: UnixStream, patience: Duration) -> Option<DeviceReply> {
    stream.set_read_timeout(Some(patience)).ok()?;
    let mut line = String::new();
    BufReader::new(io::Read::take(stream, LONGEST)).read_line(&mut line).ok()?;
    serde_json::from_str(&line).ok()
}

/// Ends a process that is not ready; it may have ended already.
fn end(child: &mut Child) {
    let _ = child.kill();
    let _ = child.wait();
}

/// Collects the exit status whenever it comes: a process that nobody waits for stays in the table as long as
/// its parent.
fn reap_later(mut child: Child) {
    let reaper = thread::Builder::new().name("device-reaper".to_owned()).stack_size(64 << 10);
    // Without a thread it stays in the table, which does no harm.
    let _ = reaper.spawn(move || child.wait());
}

fn remove_empty(log: &Path) {
    if fs::metadata(log).is_ok_and(|found| found.len() == 0) {
        let _ = fs::remove_file(log);
    }
}

fn log_tail(log: &Path) -> String {
    let text = fs::read(log).unwrap_or_default();
    let end = String::from_utf8_lossy(&text[text.len().saturating_sub(LOG_TAIL)..]).trim().to_owned();
    if end.is_empty() { "it ended, or was not ready in time".to_owned() } else { end }
}
