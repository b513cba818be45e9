//! Settings of a program, as texts by their names: what its TOML file says, before the program's own types
//! parse them.
//!
//! An unknown name and an invalid value are errors, never ignored.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::str::FromStr;

use crate::report::did_you_mean;

/// Why settings are refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SettingsError {
    /// The file is not TOML.
    #[error("{path} is not TOML: {why}")]
    Toml {
        /// The file.
        path: String,
        /// What is wrong, and where.
        why: String,
    },
    /// A setting of the file is unknown.
    #[error("{path} has an unknown setting {name:?}; {help}")]
    Unknown {
        /// The file.
        path: String,
        /// The setting.
        name: String,
        /// What to do.
        help: String,
    },
    /// A value is not valid.
    #[error("{name}={value:?} is not valid: {why}")]
    Value {
        /// The setting.
        name: &'static str,
        /// What it was set to.
        value: String,
        /// What would be valid.
        why: String,
    },
}

/// Reads a TOML file of settings with these names.
pub fn parse(path: &str, text: &str, names: &[String]) -> Result<BTreeMap<String, String>, SettingsError> {
    let wrong = |error: toml::de::Error| SettingsError::Toml { path: path.into(), why: error.to_string() };
    let table: toml::Table = text.parse().map_err(wrong)?;
    let mut values = BTreeMap::new();
    for (name, value) in table {
        if !names.contains(&name) {
            let help = did_you_mean(&name, names.iter().map(String::as_str));
            let help = help.unwrap_or_else(|| format!("there are {}", names.join(", ")));
            return Err(SettingsError::Unknown { path: path.into(), name, help });
        }
        let text = value.as_str().map_or_else(|| value.to_string(), ToOwned::to_owned);
        values.insert(name, text);
    }
    Ok(values)
}

/// A setting that is on or off: `on`, `yes` and `true`, or `off`, `no` and `false`, in any case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Switch(pub bool);

impl FromStr for Switch {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.to_ascii_lowercase().as_str() {
            "on" | "true" | "yes" => Ok(Self(true)),
            "off" | "false" | "no" => Ok(Self(false)),
            _ => Err("write on or off"),
        }
    }
}

/// Reads one value, if it is set.
pub fn read<T: FromStr<Err: Display>>(
    name: &'static str,
    value: Option<String>,
) -> Result<Option<T>, SettingsError> {
    let parse = |value: String| {
        let wrong = |why: T::Err| SettingsError::Value { name, value: value.clone(), why: why.to_string() };
        value.parse().map_err(wrong)
    };
    value.map(parse).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_switch_is_read_in_any_case_and_by_any_of_its_words() {
        for (text, on) in [("on", true), ("ON", true), ("Yes", true), ("true", true)] {
            assert_eq!(text.parse(), Ok(Switch(on)), "{text}");
        }
        for text in ["off", "OFF", "Off", "no", "No", "False"] {
            assert_eq!(text.parse(), Ok(Switch(false)), "{text}");
        }
        for text in ["", "0", "offf", " on"] {
            assert_eq!(text.parse::<Switch>(), Err("write on or off"), "{text}");
        }
    }
}
