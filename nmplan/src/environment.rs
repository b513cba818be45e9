//! The variables of the environment that nmplan reads, read once.

use std::collections::BTreeMap;

/// What all of them begin with.
const PREFIX: &str = "NMPLAN_";

/// The variables whose names begin with `NMPLAN_`. An empty one counts as unset.
#[derive(Clone, Debug, Default)]
pub struct Environment(BTreeMap<String, String>);

impl Environment {
    /// Those of this process.
    pub fn of_process() -> Self {
        Self::from_iter(
            std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?))),
        )
    }

    /// The value of a variable, named without its beginning: `SERVER` for `NMPLAN_SERVER`.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// The variables whose names begin so, each with the rest of its name.
    pub fn beginning<'a>(&'a self, with: &'a str) -> impl Iterator<Item = (&'a str, &'a str)> {
        self.0.iter().filter_map(move |(name, value)| Some((name.strip_prefix(with)?, value.as_str())))
    }
}

impl FromIterator<(String, String)> for Environment {
    fn from_iter<T: IntoIterator<Item = (String, String)>>(variables: T) -> Self {
        let ours = |(name, value): (String, String)| Some((name.strip_prefix(PREFIX)?.to_owned(), value));
        Self(variables.into_iter().filter_map(ours).filter(|(_, value)| !value.is_empty()).collect())
    }
}
