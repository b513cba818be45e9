//! The guest's file system without the programs of a run: made of Debian packages, once, and kept.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::archive::{Archive, convert};
use crate::{Error, System, host};

/// The Debian release of the guest.
const RELEASE: &str = "bookworm";
/// The kernel: small, with the drivers of virtual machines only.
const KERNEL: &str = "linux-image-cloud-amd64";
/// What every guest has.
const TOOLS: &str = "kmod,iproute2,nftables,wireguard-tools";
/// What is of no use in a guest.
const UNWANTED: [&str; 6] =
    ["usr/share/doc", "usr/share/man", "usr/share/locale", "var/cache", "var/lib/apt", "var/log"];
/// Kernel modules that are of use: the others are nine tenths.
const MODULES: [&str; 7] = ["net", "lib", "crypto", "arch", "drivers/net", "fs/overlayfs", "fs/configfs"];
/// Process 1 of [`System::Small`].
const INIT: &str = include_str!("../init");
/// What runs the job under [`System::Systemd`].
const UNIT: &str = include_str!("../job.service");

/// Files that a guest boots from.
#[derive(Debug)]
pub struct Base {
    /// The kernel.
    pub kernel: PathBuf,
    /// The archive of the file system.
    pub archive: PathBuf,
    /// Kernel parameters beyond those of every guest.
    pub parameters: &'static str,
}

/// Returns a base, made anew if it was not made by this version of this file.
///
/// It is kept in `target/vm`, where `cargo clean` ends it.
pub fn made(system: System) -> Result<Base, Error> {
    let directory = directory()?;
    fs::create_dir_all(&directory).map_err(host(format!("make {}", directory.display())))?;
    // Two processes that make the same wait for each other.
    let lock = File::create(directory.join("lock")).map_err(host("make a lock file"))?;
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).map_err(|error| Error::Host {
        attempt: "lock the guests' directory".to_owned(),
        source: error.into(),
    })?;
    let (name, parameters) = match system {
        System::Small => ("small", ""),
        System::Systemd => ("systemd", "rdinit=/lib/systemd/systemd systemd.mask=serial-getty@ttyS0.service"),
    };
    // Of each system its own: the archive has the modules of that very kernel.
    let kernel = directory.join(name).with_extension("kernel");
    let archive = directory.join(name).with_extension("cpio");
    let recipe = directory.join(name).with_extension("recipe");
    let wanted = recipe_of(system);
    let stands = kernel.exists() && archive.exists();
    if !stands || fs::read_to_string(&recipe).ok().as_deref() != Some(wanted.as_str()) {
        make(system, &kernel, &archive)?;
        fs::write(&recipe, wanted).map_err(host(format!("write {}", recipe.display())))?;
    }
    Ok(Base { kernel, archive, parameters })
}

/// Where bases are kept: beside what Cargo builds, found from the running test.
fn directory() -> Result<PathBuf, Error> {
    let own = std::env::current_exe().map_err(host("find its own program"))?;
    let target = own.ancestors().find(|folder| folder.join("CACHEDIR.TAG").exists());
    Ok(target.unwrap_or(&std::env::temp_dir()).join("vm"))
}

/// All that decides what a base holds: if it changes, the base is made anew.
fn recipe_of(system: System) -> String {
    format!("{:?}\n{UNWANTED:?}\n{MODULES:?}\n{INIT}\n{UNIT}", arguments(system))
}

/// Returns the arguments of mmdebstrap(1) but for the output.
fn arguments(system: System) -> Vec<String> {
    let own: &[&str] = match system {
        // Only unpacks; nothing is ever configured, so the list of what module depends on what is made here,
        // and /usr is merged here, since the programs of a run bring libraries to the places of a merged one.
        System::Small => &[
            "--variant=extract",
            "--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr",
            r#"--extract-hook=chroot "$1" /sbin/depmod "$(ls "$1/lib/modules")""#,
            // wg-quick is a script of bash, and tests use setpriv(1) of util-linux.
            "--include=busybox-static,bash,util-linux",
        ],
        System::Systemd => &[
            "--variant=minbase",
            "--include=systemd,systemd-sysv,systemd-resolved,libnss-resolve,dbus,udev,iputils-ping",
        ],
    };
    let common = format!("--include={KERNEL},{TOOLS}");
    own.iter().map(|&it| it.to_owned()).chain([common, "--format=tar".to_owned()]).collect()
}

fn make(system: System, kernel: &Path, archive: &Path) -> Result<(), Error> {
    let unpacked = tempfile::tempdir().map_err(host("make a temporary directory"))?;
    let tar = unpacked.path().join("base.tar");
    let mut command = Command::new("mmdebstrap");
    command.args(arguments(system)).arg(RELEASE).arg(&tar).stdin(Stdio::null());
    let output =
        command.output().map_err(|_| Error::Missing { program: "mmdebstrap", package: "mmdebstrap" })?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let tail: Vec<&str> = said.lines().rev().take(5).collect();
        let tail: Vec<&str> = tail.into_iter().rev().collect();
        return Err(Error::Base(format!("mmdebstrap {}:\n{}", output.status, tail.join("\n"))));
    }
    let read = || File::open(&tar).map_err(host(format!("read {}", tar.display())));
    write(archive, |to| {
        convert(read()?, &mut *to, wanted).map_err(host("write the guest's archive"))?;
        own(system, to).map_err(host("write the guest's archive"))
    })?;
    write(kernel, |to| {
        let mut tar = tar::Archive::new(read()?);
        let entries = tar.entries().map_err(host("read the guest's packages"))?;
        for entry in entries {
            let mut entry = entry.map_err(host("read the guest's packages"))?;
            let is_kernel = entry.path().is_ok_and(|path| {
                path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"vmlinuz-"))
            });
            if is_kernel {
                return std::io::copy(&mut entry, to).map(drop).map_err(host("write the guest's kernel"));
            }
        }
        Err(Error::Base(format!("{KERNEL} has no kernel")))
    })
}

/// Writes what starts the job.
fn own(system: System, to: impl Write) -> std::io::Result<()> {
    let mut archive = Archive::new(to);
    match system {
        System::Small => archive.file(Path::new("/init"), 0o755, INIT.as_bytes())?,
        System::Systemd => {
            let units = Path::new("/etc/systemd/system");
            archive.file(&units.join("job.service"), 0o644, UNIT.as_bytes())?;
            archive.link(&units.join("multi-user.target.wants/job.service"), Path::new("../job.service"))?;
        }
    }
    archive.finish().map(drop)
}

/// Writes a file beside its place, then moves it there: a half-written one is never found.
fn write(path: &Path, content: impl FnOnce(&mut dyn Write) -> Result<(), Error>) -> Result<(), Error> {
    let attempt = || host(format!("write {}", path.display()));
    let folder = path.parent().unwrap_or(Path::new("."));
    let file = tempfile::NamedTempFile::new_in(folder).map_err(attempt())?;
    let mut buffered = BufWriter::new(&file);
    content(&mut buffered)?;
    buffered.flush().map_err(attempt())?;
    drop(buffered);
    file.persist(path).map(drop).map_err(|error| attempt()(error.error))
}

/// Whether a path of the packages goes into the guest.
fn wanted(path: &Path) -> bool {
    let mut parts =
        path.components().map(|part| part.as_os_str()).skip_while(|&part| part == OsStr::new("usr"));
    if UNWANTED.iter().any(|unwanted| path.starts_with(unwanted)) || path.starts_with("boot") {
        return false;
    }
    let is_module = parts.next() == Some(OsStr::new("lib")) && parts.next() == Some(OsStr::new("modules"));
    let Some(_version) = parts.next().filter(|_| is_module) else { return true };
    let below: PathBuf = parts.collect();
    below.extension() != Some(OsStr::new("ko"))
        || MODULES
            .iter()
            .any(|wanted| below.strip_prefix("kernel").is_ok_and(|below| below.starts_with(wanted)))
}
