//! The archives that a guest's file system is unpacked from: cpio in the form "newc", several in one file
//! (kernel documentation, "initramfs buffer format").

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use cpio::newc;

use crate::{Error, Job, host};

/// The kinds of files in a cpio archive, the upper bits of their modes (inode(7)).
const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const LINK: u32 = 0o120_000;

/// Writes one archive.
pub struct Archive<W: Write> {
    to: W,
    /// Numbers of files, since two of one number are one file.
    last: u32,
    /// Directories that are in it.
    directories: BTreeSet<PathBuf>,
}

impl<W: Write> Archive<W> {
    pub fn new(to: W) -> Self {
        Self { to, last: 0, directories: BTreeSet::new() }
    }

    /// Adds a directory, and those above it that are not in it yet, with mode 0755.
    pub fn directory(&mut self, path: &Path) -> io::Result<()> {
        let path = inside(path);
        if path.as_os_str().is_empty() || !self.directories.insert(path.to_owned()) {
            return Ok(());
        }
        if let Some(above) = path.parent() {
            self.directory(above)?;
        }
        self.entry(path, DIRECTORY | 0o755, &[])
    }

    /// Adds a file, and the directories above it.
    pub fn file(&mut self, path: &Path, mode: u32, content: &[u8]) -> io::Result<()> {
        let path = inside(path);
        if let Some(above) = path.parent() {
            self.directory(above)?;
        }
        self.entry(path, REGULAR | mode & 0o7777, content)
    }

    /// Adds a symbolic link.
    pub fn link(&mut self, path: &Path, target: &Path) -> io::Result<()> {
        self.entry(inside(path), LINK | 0o777, target.as_os_str().as_encoded_bytes())
    }

    fn entry(&mut self, path: &Path, mode: u32, content: &[u8]) -> io::Result<()> {
        self.last += 1;
        let header = newc::Builder::new(&path.to_string_lossy()).ino(self.last).nlink(1).mode(mode);
        let length = u32::try_from(content.len()).map_err(|_| io::Error::other("a file of 4 GiB or more"))?;
        let mut entry = header.write(&mut self.to, length);
        entry.write_all(content)?;
        entry.finish().map(drop)
    }

    /// Ends the archive; another may follow in the same file.
    pub fn finish(self) -> io::Result<W> {
        newc::trailer(self.to)
    }
}

/// A path as archives have it: below the root, without the root.
fn inside(path: &Path) -> &Path {
    path.strip_prefix("/").or_else(|_| path.strip_prefix("./")).unwrap_or(path)
}

/// Writes what a tar archive holds as a cpio archive, but for paths that `wanted` refuses.
pub fn convert(tar: impl Read, to: impl Write, wanted: impl Fn(&Path) -> bool) -> io::Result<()> {
    let mut archive = Archive::new(to);
    let mut contents = std::collections::BTreeMap::new();
    for entry in tar::Archive::new(tar).entries()? {
        let mut entry = entry?;
        let path = inside(&entry.path()?).to_owned();
        if !wanted(&path) {
            continue;
        }
        let mode = entry.header().mode()?;
        let target = entry.link_name()?.map(|target| target.into_owned());
        match (entry.header().entry_type(), target) {
            (tar::EntryType::Directory, _) => archive.directory(&path)?,
            (tar::EntryType::Symlink, Some(target)) => archive.link(&path, &target)?,
            (tar::EntryType::Link, Some(target)) => {
                let content: &Vec<u8> = contents
                    .get(inside(&target))
                    .ok_or_else(|| io::Error::other(format!("{} is a link to nothing", path.display())))?;
                archive.file(&path, mode, content)?;
            }
            (tar::EntryType::Regular, _) => {
                let mut content = Vec::new();
                entry.read_to_end(&mut content)?;
                archive.file(&path, mode, &content)?;
                contents.insert(path, content);
            }
            // Devices: the guest's kernel makes them.
            _ => {}
        }
    }
    archive.finish().map(drop)
}

/// Appends the job to an archive: its files, and `/job`, a script that runs its command.
pub fn add_job(job: &Job, to: impl Write) -> Result<(), Error> {
    let mut archive = Archive::new(to);
    let packed = |source| Error::Host { attempt: "write the guest's archive".to_owned(), source };
    let mut libraries = BTreeSet::new();
    for (from, path) in &job.files {
        add(&mut archive, from, path, &mut libraries)?;
    }
    for library in libraries {
        let content = fs::read(&library).map_err(host(format!("read {}", library.display())))?;
        archive.file(&library, 0o755, &content).map_err(packed)?;
    }
    archive.file(Path::new("/job"), 0o755, script(job).as_bytes()).map_err(packed)?;
    archive.finish().map(drop).map_err(packed)
}

/// Returns the script that runs a job.
fn script(job: &Job) -> String {
    let quoted = |text: &str| shlex::try_quote(text).map_or_else(|_| "''".to_owned(), |it| it.into_owned());
    let exports = job.environment.iter().map(|(name, value)| format!("export {name}={}\n", quoted(value)));
    let words: Vec<String> = job.command.iter().map(|word| quoted(word)).collect();
    format!("#!/bin/sh\n{}exec {}\n", exports.collect::<String>(), words.join(" "))
}

/// Adds a file, or all in a directory; collects the libraries of programs.
fn add<W: Write>(
    archive: &mut Archive<W>,
    from: &Path,
    path: &Path,
    libraries: &mut BTreeSet<PathBuf>,
) -> Result<(), Error> {
    let read = || host(format!("read {}", from.display()));
    let packed = |source| Error::Host { attempt: "write the guest's archive".to_owned(), source };
    let about = fs::metadata(from).map_err(read())?;
    if about.is_dir() {
        archive.directory(path).map_err(packed)?;
        for entry in fs::read_dir(from).map_err(read())? {
            let entry = entry.map_err(read())?;
            add(archive, &entry.path(), &path.join(entry.file_name()), libraries)?;
        }
        return Ok(());
    }
    let mut content = fs::read(from).map_err(read())?;
    if content.starts_with(b"\x7fELF") && about.mode() & 0o111 != 0 {
        content = stripped(from)?;
        libraries.extend(linked(from)?);
    }
    archive.file(path, about.permissions().mode(), &content).map_err(packed)
}

/// Returns a program without its debug information, which is most of it.
fn stripped(program: &Path) -> Result<Vec<u8>, Error> {
    let mut output = tempfile::NamedTempFile::new().map_err(host("make a temporary file"))?;
    let status =
        Command::new("strip").arg("--strip-debug").arg("-o").arg(output.path()).arg(program).status();
    match status {
        Ok(status) if status.success() => {}
        Ok(status) => return Err(Error::Base(format!("strip of {} ended with {status}", program.display()))),
        Err(_) => return Err(Error::Missing { program: "strip", package: "binutils" }),
    }
    let mut content = Vec::new();
    output.rewind().and_then(|()| output.read_to_end(&mut content)).map_err(host("read a temporary file"))?;
    Ok(content)
}

/// Returns the libraries that the loader finds for a program (ldd(1)); the loader is one of them.
fn linked(program: &Path) -> Result<Vec<PathBuf>, Error> {
    let output = Command::new("ldd").arg(program).output();
    let output = output.map_err(|_| Error::Missing { program: "ldd", package: "libc-bin" })?;
    let listed = String::from_utf8_lossy(&output.stdout);
    let mut libraries = Vec::new();
    for library in listed.split_whitespace().filter(|word| word.starts_with('/')).map(Path::new) {
        let [Some(folder), Some(name)] = [library.parent().map(Path::as_os_str), library.file_name()] else {
            continue;
        };
        // By way of no link, such as /lib: a directory of the archive would take the place of the guest's
        // link.
        let folder = fs::canonicalize(folder).map_err(host(format!("find {}", library.display())))?;
        libraries.push(folder.join(name));
    }
    Ok(libraries)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(mut archive: &[u8]) -> Vec<(String, u32)> {
        let mut names = Vec::new();
        loop {
            let reader = newc::Reader::new(archive).expect("an entry");
            if reader.entry().is_trailer() {
                return names;
            }
            names.push((reader.entry().name().to_owned(), reader.entry().mode()));
            archive = reader.finish().expect("the rest");
        }
    }

    #[test]
    fn a_file_brings_the_directories_above_it_once() {
        let mut archive = Archive::new(Vec::new());
        archive.file(Path::new("/a/b/one"), 0o644, b"1").expect("written");
        archive.file(Path::new("/a/b/two"), 0o755, b"2").expect("written");
        let names = names(&archive.finish().expect("written"));
        let wanted = [("a", 0o040_755), ("a/b", 0o040_755), ("a/b/one", 0o100_644), ("a/b/two", 0o100_755)];
        assert_eq!(names, wanted.map(|(name, mode)| (name.to_owned(), mode)));
    }

    #[test]
    fn a_job_is_quoted() {
        let job = Job {
            command: vec!["/nm/it's".to_owned(), "a b".to_owned()],
            environment: vec![("NAME".to_owned(), "$HOME; x".to_owned())],
            files: Vec::new(),
            limit: std::time::Duration::ZERO,
        };
        assert_eq!(script(&job), "#!/bin/sh\nexport NAME='$HOME; x'\nexec \"/nm/it's\" 'a b'\n");
    }
}
