//! The environment variables of nmplan, read once.

use std::collections::BTreeMap;

use proto::secret::Secret;

/// The prefix of all of them.
const PREFIX: &str = "NMPLAN_";

/// The variables whose names begin with `NMPLAN_`. An empty one counts as unset. Each may hold a secret, as
/// NMPLAN_TOKEN does.
#[derive(Clone, Debug, Default)]
pub struct Environment(BTreeMap<String, Secret<String>>);

impl Environment {
    /// Those of this process.
    pub fn of_process() -> Self {
        Self::from_iter(
            std::env::vars_os()
                .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?))),
        )
    }

    /// The value of a variable, named without the prefix: `SERVER` for `NMPLAN_SERVER`.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(|value| value.expose().as_str())
    }

    /// The variables whose names have a prefix, each with the rest of its name.
    pub fn with_prefix<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = (&'a str, &'a str)> {
        self.0
            .iter()
            .filter_map(move |(name, value)| Some((name.strip_prefix(prefix)?, value.expose().as_str())))
    }
}

impl FromIterator<(String, String)> for Environment {
    fn from_iter<T: IntoIterator<Item = (String, String)>>(variables: T) -> Self {
        let ours = |(name, value): (String, String)| {
            Some((name.strip_prefix(PREFIX)?.to_owned(), Secret::new(value)))
        };
        Self(variables.into_iter().filter_map(ours).filter(|(_, value)| !value.expose().is_empty()).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_value_is_printed() {
        let environment = Environment::from_iter([("NMPLAN_TOKEN".to_owned(), "nma_marked".to_owned())]);
        assert_eq!(environment.get("TOKEN"), Some("nma_marked"));
        assert_eq!(format!("{environment:?}"), r#"Environment({"TOKEN": Secret(..)})"#);
    }
}
