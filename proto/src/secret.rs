//! Values that nobody may see.

use std::convert::Infallible;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer};
use zeroize::{Zeroize, Zeroizing};

use crate::wire::OpenSessionResponse;

/// A value that nobody may see: it prints itself as `Secret(..)`, cannot be displayed or serialised, and is
/// wiped when it is dropped. Code that needs the value says so: [`Secret::expose`].
///
/// The time of a comparison depends on the values, so a program compares what others send by hashes or MACs.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret<T: Zeroize>(Zeroizing<T>);

impl<T: Zeroize> Secret<T> {
    /// Wraps a value. Copies that were made of it before are the caller's responsibility.
    pub fn new(value: T) -> Self {
        Self(Zeroizing::new(value))
    }

    /// The value, for a short use: to write it where it belongs, or to compute with it.
    pub fn expose(&self) -> &T {
        &self.0
    }

    /// The value, to be set in place, so that no copy of it is left elsewhere.
    pub fn expose_mut(&mut self) -> &mut T {
        &mut self.0
    }
}

impl<T: Zeroize> fmt::Debug for Secret<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// Any text may be a secret.
impl FromStr for Secret<String> {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(Self::new(text.to_owned()))
    }
}

impl<'de, T: Zeroize + Deserialize<'de>> Deserialize<'de> for Secret<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        T::deserialize(deserializer).map(Self::new)
    }
}

/// The message that carries a session's token, which protobuf knows as a text.
impl fmt::Debug for OpenSessionResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { token: _, lifetime } = self;
        f.debug_struct("OpenSessionResponse").field("lifetime", lifetime).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use serde::de::IntoDeserializer;

    use super::*;

    #[test]
    fn a_secret_is_never_printed() {
        let secret: Secret<String> = "nmj_marked".parse().expect("any text is one");
        assert_eq!(format!("{secret:?} {:?}", Secret::new([0xab_u8; 32])), "Secret(..) Secret(..)");
        assert_eq!(secret.expose(), "nmj_marked");
        let session = OpenSessionResponse { token: "marked".into(), lifetime: 60 };
        assert_eq!(format!("{session:?}"), "OpenSessionResponse { lifetime: 60, .. }");
    }

    #[test]
    fn a_secret_is_read_where_it_stands() {
        let text: serde::de::value::StrDeserializer<'_, serde::de::value::Error> =
            "nmj_marked".into_deserializer();
        assert_eq!(Secret::<String>::deserialize(text).expect("a text").expose(), "nmj_marked");
    }
}
