//! Starts QEMU, prints what the guest prints, and takes its verdict.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Seek};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::archive::add_job;
use crate::base::Base;
use crate::{Error, Job, host};

/// The emulator; one for each architecture of a guest.
const QEMU: &str = "qemu-system-x86_64";
/// The guest's memory; its file system is in it.
const MEMORY: &str = "3072";
/// Kernel parameters of every guest: console and log, an end instead of a reboot after a panic, no mitigations,
/// which emulation pays for dearly, and what says that it is a guest. Each program lies at the same addresses in
/// every process: QEMU translates instructions by address, and would translate a program anew for each.
const PARAMETERS: &str = "console=ttyS0 quiet panic=-1 mitigations=off norandmaps nm.guest";
/// How long a kernel may take under KVM until it finds that it has no file system.
const PROBE: Duration = Duration::from_secs(15);

/// Boots a guest from a base, runs a job in it and ends it.
pub fn boot(base: &Base, job: &Job) -> Result<(), Error> {
    // Both have no name, so that they end with the last process that has them, whatever ends it.
    let mut archive = tempfile::tempfile().map_err(host("make a temporary file"))?;
    let verdict = tempfile::tempfile().map_err(host("make a temporary file"))?;
    let copied = File::open(&base.archive).and_then(|mut base| io::copy(&mut base, &mut archive));
    copied.map_err(host(format!("copy {}", base.archive.display())))?;
    add_job(job, io::BufWriter::new(&archive))?;
    let mut command = qemu(accelerator(&base.kernel)?, &base.kernel);
    command.args(["-initrd", &inherited(&archive)?]);
    command.args(["-append", &format!("{PARAMETERS} {}", base.parameters)]);
    command.args(["-serial", "stdio", "-serial", &format!("file:{}", inherited(&verdict)?)]);
    let mut guest = started(command)?;
    let output = guest.stdout.take().map(|output| thread::spawn(move || print(output)));
    let ended = wait(&mut guest, job.limit);
    if let Some(printer) = output {
        let _ = printer.join();
    }
    let ran = job.command.join(" ");
    let Some(status) = ended.map_err(host("wait for QEMU"))? else {
        return Err(Error::TooLong { command: ran, limit: job.limit });
    };
    match verdict_of(verdict) {
        Some(0) => Ok(()),
        Some(status) => Err(Error::Failed { command: ran, status }),
        None => Err(Error::Lost { command: ran, status: status.to_string() }),
    }
}

/// What runs a guest's instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Accelerator {
    /// The host's processor.
    Kvm,
    /// QEMU.
    Emulation,
}

/// Returns KVM if a kernel boots under it here. That /dev/kvm can be opened is not enough: nested under some
/// hypervisors a guest stands still. The answer is kept until this host boots again.
fn accelerator(kernel: &Path) -> Result<Accelerator, Error> {
    if File::options().read(true).write(true).open("/dev/kvm").is_err() {
        return Ok(Accelerator::Emulation);
    }
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let kept = kernel.with_file_name("kvm");
    let known = fs::read_to_string(&kept).ok();
    let works = match known.as_deref().and_then(|known| known.strip_prefix(boot.as_str())) {
        Some(works) => works == "works",
        None => {
            let works = boots_under_kvm(kernel)?;
            fs::write(&kept, format!("{boot}{}", if works { "works" } else { "does not work" }))
                .map_err(host(format!("write {}", kept.display())))?;
            works
        }
    };
    Ok(if works { Accelerator::Kvm } else { Accelerator::Emulation })
}

/// Whether a kernel without a file system comes as far as to miss it, and so ends.
fn boots_under_kvm(kernel: &Path) -> Result<bool, Error> {
    let mut command = qemu(Accelerator::Kvm, kernel);
    command.args(["-append", PARAMETERS, "-serial", "none"]).stderr(Stdio::null());
    let ended = wait(&mut started(command)?, PROBE).map_err(host("wait for QEMU"))?;
    Ok(ended.is_some_and(|status| status.success()))
}

/// A guest without network, disk and screen that ends when its kernel would boot again.
fn qemu(accelerator: Accelerator, kernel: &Path) -> Command {
    let mut command = Command::new(QEMU);
    match accelerator {
        Accelerator::Kvm => command.args(["-accel", "kvm", "-cpu", "host"]),
        // What is left out takes longer, emulated, than what programs do without it.
        Accelerator::Emulation => command.args([
            "-accel",
            "tcg,thread=multi",
            "-cpu",
            "max,la57=off,avx=off,avx2=off,fma=off,f16c=off",
        ]),
    };
    command.args([
        "-smp",
        "2",
        "-m",
        MEMORY,
        "-nic",
        "none",
        "-display",
        "none",
        "-monitor",
        "none",
        "-no-reboot",
    ]);
    command.arg("-kernel").arg(kernel).stdin(Stdio::null()).stdout(Stdio::piped());
    command
}

/// Starts a program that the kernel ends with the thread that started it.
fn started(mut command: Command) -> Result<Child, Error> {
    // SAFETY: only makes a system call.
    #[expect(unsafe_code, reason = "the signal has to be asked for between fork and exec")]
    unsafe {
        command.pre_exec(|| {
            rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
                .map_err(io::Error::from)
        });
    }
    command.spawn().map_err(|source| {
        if source.kind() == io::ErrorKind::NotFound {
            return Error::Missing { program: QEMU, package: "qemu-system-x86" };
        }
        Error::Host { attempt: format!("start {QEMU}"), source }
    })
}

/// Waits for a child's end; absent: the limit came first, and the child was ended.
fn wait(child: &mut Child, limit: Duration) -> io::Result<Option<ExitStatus>> {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if start.elapsed() >= limit {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        thread::sleep(Duration::from_millis(50));
    }
}

/// Prints lines as they come. What a serial line adds is left out.
#[expect(clippy::print_stdout, reason = "a test's output is what libtest captures from stdout")]
fn print(output: impl Read) {
    let mut output = BufReader::new(output);
    let mut line = Vec::new();
    while matches!(output.read_until(b'\n', &mut line), Ok(length) if length > 0) {
        println!("{}", String::from_utf8_lossy(&line).trim_end());
        line.clear();
    }
}

/// Returns the path by which a child opens an open file of this process.
fn inherited(file: &File) -> Result<String, Error> {
    rustix::io::fcntl_setfd(file, rustix::io::FdFlags::empty())
        .map_err(|error| Error::Host { attempt: "hand a file on".to_owned(), source: error.into() })?;
    Ok(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

/// Returns the status that the guest reported on its second serial port; absent: none.
fn verdict_of(mut file: File) -> Option<i32> {
    let mut text = String::new();
    file.seek(io::SeekFrom::Start(0)).and_then(|_| file.read_to_string(&mut text)).ok()?;
    text.lines().find_map(|line| line.trim().strip_prefix("status ")?.parse().ok())
}
