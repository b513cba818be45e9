//! What becomes of an external client's keys: the private one stays in the configuration, or in a file of its own;
//! the public one is written into the file that declares the client. And the configuration as a QR code.
//!
//! In the order of `nmplan client conf`: a [`PrivateKey`] is [read](PrivateKey::of_file) or
//! [made](PrivateKey::make), an [`Edit`] of the declaring file is prepared, the configuration is printed, and the
//! edit is [carried out](Edit::carry_out) last: a key that is declared has been handed out. No private key is
//! ever part of a message.

use std::fs;
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use owo_colors::OwoColorize;
use proto::secret::Secret;
use qrcode::render::unicode::Dense1x2;
use qrcode::{EcLevel, QrCode};
use schema::client::Unavailable;
use schema::kinds::Kind;
use schema::report::did_you_mean;
use schema::scalars::WireGuardKey;
use schema::snapshot::ResourceId;
use schema::syntax::{Source, insert};
use schema::text::{path as shown, word};
use schema::value::Span;
use tempfile::NamedTempFile;

/// The field that holds the public key.
const FIELD: &str = "public-key";
/// How many pixels of a picture a module of the code is wide: a screen shows all of it, and a camera sees each.
const MODULE: usize = 8;
/// How many modules around a code are left blank (ISO/IEC 18004, section 5.3.8).
const QUIET: usize = 4;

/// Why a client's configuration could not be written.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The files declare no such client.
    #[error("the files declare no external client {asked}")]
    Unknown {
        /// What was asked for.
        asked: String,
        /// The clients that there are, as network/name.
        known: Vec<String>,
    },
    /// Several networks have a client of that name.
    #[error("{asked} is an external client of several networks: {}", known.join(", "))]
    Ambiguous {
        /// What was asked for.
        asked: String,
        /// Each of them, as network/name.
        known: Vec<String>,
    },
    /// It lacks something that has to be applied, or has to join.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
    /// It has a key already, and the private half is not here.
    #[error("{id} has a public-key already, and its private key is not here: {}", why(.key))]
    HasKey {
        /// The client.
        id: ResourceId,
        /// The file and line that declare the key.
        place: String,
        /// The file that was to hold the private key.
        key: Option<PathBuf>,
    },
    /// The private key belongs to another public key than is declared.
    #[error("the private key in {} belongs to another public key than {id} has", shown(.key))]
    OtherKey {
        /// The client.
        id: ResourceId,
        /// The file and line that declare the key.
        place: String,
        /// The file.
        key: PathBuf,
    },
    /// A file holds something else than a private key.
    #[error("{} does not hold a WireGuard private key, base64 of 32 bytes", shown(.0))]
    NotKey(PathBuf),
    /// Others may read a private key.
    #[error("others may use {}, which holds a private key", shown(.0))]
    Open(PathBuf),
    /// The public key cannot be written where the client is declared.
    #[error("the public key of {id} cannot be written into {file}: {why}")]
    NotWritable {
        /// The client.
        id: ResourceId,
        /// The file.
        file: String,
        /// What is in the way.
        why: String,
    },
    /// A file that is no picture would be replaced.
    #[error("{} exists and is not a PNG file, so it is not replaced", shown(.0))]
    NotPicture(PathBuf),
    /// The configuration has more bytes than a QR code.
    #[error("the configuration has {0} bytes, more than a QR code can hold")]
    TooLong(usize),
    /// The operating system gave no random bytes.
    #[error("the operating system returned no random bytes, so no key can be created")]
    Random(#[source] getrandom::Error),
    /// A file cannot be used.
    #[error("cannot {attempt} {}", shown(.path))]
    File {
        /// What was tried.
        attempt: &'static str,
        /// The file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

fn why(key: &Option<PathBuf>) -> String {
    match key {
        Some(path) => format!("there is no file {}", shown(path)),
        None => "--key FILE gives it".into(),
    }
}

impl ClientError {
    /// What to type next.
    pub fn help(&self) -> Option<String> {
        let new = |place: &str| {
            format!(
                "give the file that holds it with --key FILE; for a new key delete {FIELD} from {place}, and hand the new \
                 configuration out"
            )
        };
        Some(match self {
            Self::Unknown { known, .. } if known.is_empty() => {
                "the files declare no external client at all".into()
            }
            Self::Unknown { asked, known } => {
                let names = known.iter().filter_map(|id| id.rsplit('/').next());
                let all = || format!("the external clients are: {}", known.join(", "));
                did_you_mean(asked, known.iter().map(String::as_str).chain(names)).unwrap_or_else(all)
            }
            Self::Ambiguous { .. } => "name one of these".into(),
            Self::Unavailable(error) => error.help(),
            Self::HasKey { place, .. } | Self::OtherKey { place, .. } => new(place),
            Self::NotKey(_) => "give another file, or one that does not exist: a key is made in it".into(),
            Self::Open(path) => format!("let only its owner use it:\n\n    chmod 600 {}", word(&shown(path))),
            Self::NotWritable { .. } => format!(
                "nothing was changed. To write it there yourself as {FIELD}, make the key first, and give it with --key \
                 FILE:\n\n    (umask 077; wg genkey > FILE); wg pubkey < FILE"
            ),
            Self::NotPicture(_) => "give another file, or move this one away".into(),
            Self::TooLong(_) => "hand it out as a file: omit --qr and --png".into(),
            Self::Random(_) | Self::File { .. } => return None,
        })
    }
}

/// A WireGuard private key.
#[derive(Debug)]
pub struct PrivateKey(Secret<[u8; 32]>);

impl PrivateKey {
    /// Makes a key of random bytes.
    pub fn make() -> Result<Self, ClientError> {
        let mut key = Secret::new([0; 32]);
        let bytes = key.expose_mut();
        getrandom::fill(bytes).map_err(ClientError::Random)?;
        // As `wg genkey` does (RFC 7748, section 5), so that whatever reads the key takes it as it is.
        bytes[0] &= 248;
        bytes[31] = bytes[31] & 127 | 64;
        Ok(Self(key))
    }

    /// Reads a key from a file that only its owner may use; nothing if there is no file.
    pub fn of_file(path: &Path) -> Result<Option<Self>, ClientError> {
        let failed = |source| ClientError::File { attempt: "read", path: path.into(), source };
        let metadata = match fs::metadata(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            metadata => metadata.map_err(failed)?,
        };
        if !metadata.is_file() {
            return Err(ClientError::NotKey(path.into()));
        }
        if metadata.mode() & 0o077 != 0 {
            return Err(ClientError::Open(path.into()));
        }
        let text = Secret::new(fs::read(path).map_err(failed)?);
        Self::of_text(text.expose()).map(Some).ok_or_else(|| ClientError::NotKey(path.into()))
    }

    /// Reads a key as `wg genkey` prints it; nothing if it is none.
    pub fn of_text(text: &[u8]) -> Option<Self> {
        let decoded = Secret::new(STANDARD.decode(text.trim_ascii()).ok()?);
        let mut key = Secret::new([0; 32]);
        if decoded.expose().len() != key.expose().len() {
            return None;
        }
        key.expose_mut().copy_from_slice(decoded.expose());
        Some(Self(key))
    }

    /// Writes the key into a new file that only its owner may use.
    pub fn store(&self, path: &Path) -> Result<(), ClientError> {
        let failed = |source| ClientError::File { attempt: "write", path: path.into(), source };
        let mut file = secret_file(path)?;
        file.write_all(self.text().expose().as_bytes())
            .and_then(|()| file.write_all(b"\n"))
            .and_then(|()| file.as_file().sync_all())
            .map_err(failed)?;
        file.persist_noclobber(path).map_err(|error| failed(error.error))?;
        sync_directory(path).map_err(failed)
    }

    /// The public half.
    pub fn public(&self) -> WireGuardKey {
        let secret = x25519_dalek::StaticSecret::from(*self.0.expose());
        WireGuardKey(x25519_dalek::PublicKey::from(&secret).to_bytes())
    }

    /// Its bytes.
    pub fn bytes(&self) -> &[u8; 32] {
        self.0.expose()
    }

    /// The key as `wg genkey` prints it.
    pub fn text(&self) -> Secret<String> {
        Secret::new(STANDARD.encode(self.0.expose()))
    }
}

/// A change of the file that declares a client, ready to be carried out.
#[derive(Debug)]
pub struct Edit {
    id: ResourceId,
    path: PathBuf,
    before: Vec<u8>,
    after: NamedTempFile,
}

impl Edit {
    /// Prepares to add the public key to the declaration of a client, whose name is at that place of the file.
    /// `path` is absent if the file is standard input.
    pub fn prepare(
        id: &ResourceId,
        (source, name): (&Source, Span),
        path: Option<&Path>,
        key: &WireGuardKey,
    ) -> Result<Self, ClientError> {
        let refused = |why: &str| ClientError::NotWritable {
            id: id.clone(),
            file: source.name.to_string(),
            why: why.into(),
        };
        let path = path.ok_or_else(|| refused("it is not a file"))?;
        let failed = |source: io::Error| refused(&source.to_string());
        let metadata = fs::symlink_metadata(path).map_err(failed)?;
        if metadata.is_symlink() {
            return Err(refused("it is a symbolic link"));
        }
        // A user who may do everything can write it all the same, but its owner does not want that.
        if metadata.mode() & 0o222 == 0 {
            return Err(refused("it is read-only"));
        }
        fs::OpenOptions::new().append(true).open(path).map_err(failed)?;
        if fs::read(path).map_err(failed)? != source.text.as_bytes() {
            return Err(refused(CHANGED));
        }
        let text = insert(source, Kind::DESCRIPTORS, name, FIELD, &key.to_string())
            .ok_or_else(|| refused("it is written in a form that is not understood here"))?;
        let mut after = tempfile::Builder::new()
            .prefix(".nmplan-")
            .tempfile_in(directory(path))
            // The error of a temporary file names that file, which means nothing to the user.
            .map_err(|error| failed(error.kind().into()))?;
        after.write_all(text.as_bytes()).map_err(failed)?;
        std::os::unix::fs::fchown(after.as_file(), Some(metadata.uid()), Some(metadata.gid()))
            .map_err(failed)?;
        after
            .as_file()
            .set_permissions(fs::Permissions::from_mode(metadata.mode() & 0o7777))
            .map_err(failed)?;
        after.as_file().sync_all().map_err(failed)?;
        Ok(Self { id: id.clone(), path: path.into(), before: source.text.as_bytes().to_vec(), after })
    }

    /// Replaces the file, unless it has changed since it was read.
    pub fn carry_out(self) -> Result<(), ClientError> {
        let Self { id, path, before, after } = self;
        let refused = |why: String| ClientError::NotWritable { id: id.clone(), file: shown(&path), why };
        let failed = |source: io::Error| refused(source.to_string());
        if fs::read(&path).map_err(failed)? != before {
            return Err(refused(CHANGED.into()));
        }
        after.persist(&path).map_err(|error| failed(error.error))?;
        sync_directory(&path).map_err(failed)
    }
}

const CHANGED: &str = "it has changed since it was read";

/// A configuration as a QR code.
pub struct Picture(QrCode);

impl Picture {
    /// The code of a text.
    pub fn of(text: &Secret<String>) -> Result<Self, ClientError> {
        let bytes = text.expose().as_bytes();
        // The lowest level of correction: a screen is not soiled, and smaller codes are read from farther away.
        QrCode::with_error_correction_level(bytes, EcLevel::L)
            .map(Self)
            .map_err(|_| ClientError::TooLong(bytes.len()))
    }

    /// The code in half blocks, two modules for each: white on black, and right on a dark terminal also without
    /// colours.
    pub fn text(&self) -> Secret<String> {
        let drawn =
            self.0.render::<Dense1x2>().dark_color(Dense1x2::Light).light_color(Dense1x2::Dark).build();
        let line = |line: &str| format!("{}\n", line.truecolor(255, 255, 255).on_truecolor(0, 0, 0));
        Secret::new(Secret::new(drawn).expose().lines().map(line).collect())
    }

    /// The code as a PNG file.
    pub fn png(&self) -> Secret<Vec<u8>> {
        let modules = self.0.width();
        let width = (modules + 2 * QUIET) * MODULE;
        let is_dark = |x: usize, y: usize| {
            let inside = |place: usize| (place / MODULE).checked_sub(QUIET).filter(|place| *place < modules);
            inside(x).zip(inside(y)).is_some_and(|at| self.0[at] == qrcode::Color::Dark)
        };
        let pixels = (0..width).flat_map(|y| (0..width).map(move |x| (x, y)));
        let pixels: Vec<u8> = pixels.map(|(x, y)| if is_dark(x, y) { 0 } else { 255 }).collect();
        let mut file = Vec::new();
        let size = u32::try_from(width).expect("a code has at most 177 modules");
        let mut encoder = png::Encoder::new(&mut file, size, size);
        encoder.set_color(png::ColorType::Grayscale);
        encoder.set_depth(png::BitDepth::Eight);
        encoder
            .write_header()
            .and_then(|mut writer| writer.write_image_data(Secret::new(pixels).expose()))
            .expect("a picture can be written into memory");
        Secret::new(file)
    }

    /// Writes the PNG file, for its owner only; it replaces nothing but another picture.
    pub fn store(&self, path: &Path) -> Result<(), ClientError> {
        let failed = |source| ClientError::File { attempt: "write", path: path.into(), source };
        check_replaceable(path)?;
        let mut file = secret_file(path)?;
        file.write_all(self.png().expose()).and_then(|()| file.as_file().sync_all()).map_err(failed)?;
        file.persist(path).map_err(|error| failed(error.error))?;
        sync_directory(path).map_err(failed)
    }
}

/// Whether a picture may be written here: nothing is there, or another picture.
pub fn check_replaceable(path: &Path) -> Result<(), ClientError> {
    const SIGNATURE: &[u8] = b"\x89PNG\r\n\x1a\n";
    match fs::read(path) {
        Ok(bytes) if bytes.starts_with(SIGNATURE) => Ok(()),
        Ok(_) => Err(ClientError::NotPicture(path.into())),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(source) => Err(ClientError::File { attempt: "replace", path: path.into(), source }),
    }
}

/// A temporary file next to another, of mode 0600; it is removed unless it takes that one's place.
fn secret_file(path: &Path) -> Result<NamedTempFile, ClientError> {
    let failed = |source: io::Error| {
        // The error of a temporary file names that file, which means nothing to the user.
        ClientError::File { attempt: "write", path: path.into(), source: source.kind().into() }
    };
    tempfile::Builder::new().prefix(".nmplan-").tempfile_in(directory(path)).map_err(failed)
}

fn sync_directory(path: &Path) -> io::Result<()> {
    fs::File::open(directory(path))?.sync_all()
}

fn directory(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}
