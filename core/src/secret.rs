//! Secrets: values that come into a job's environment by name and are shown nowhere.

use crate::limits::{NAME_BYTES, SECRET_BYTES};
use serde::{Deserialize, Serialize};
use std::fmt;

/// The shortest value: a shorter one cannot be told from ordinary text where it has to be kept out of logs.
const LEAST_BYTES: usize = 4;
/// Variables of these names, or that begin so, are the service's own to set.
const TAKEN: [&str; 9] = [
    "PHALANX_",
    "TORCHELASTIC_",
    "CUDA_VISIBLE_DEVICES",
    "MASTER_",
    "WORLD_SIZE",
    "LOCAL_",
    "GROUP_",
    "ROLE_",
    "RANK",
];

/// A value that is not to be seen. Whoever needs it says [`Secret::reveal`].
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

/// Why a name or a value cannot be a secret's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SecretError {
    /// Not the name of a variable, or one that is taken.
    #[error(
        "`{0}` cannot be a secret's name: letters, digits and `_`, not a digit first, at most {NAME_BYTES} bytes, and no variable that the service sets itself"
    )]
    Name(String),
    /// Too short, too long, or with a NUL in it.
    #[error(
        "a secret's value has {LEAST_BYTES} to {SECRET_BYTES} bytes of text without NUL; this one has {0}"
    )]
    Value(usize),
}

impl Secret {
    /// Takes a value in.
    pub fn new(value: String) -> Result<Secret, SecretError> {
        let fits = (LEAST_BYTES..=SECRET_BYTES).contains(&value.len()) && !value.contains('\0');
        if fits { Ok(Secret(value)) } else { Err(SecretError::Value(value.len())) }
    }

    /// The value.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// Whether a secret may be called so: its name becomes a variable of the job.
pub fn check_name(name: &str) -> Result<(), SecretError> {
    let mut bytes = name.bytes();
    let begins = bytes.next().is_some_and(|first| first == b'_' || first.is_ascii_alphabetic());
    let goes_on = bytes.all(|byte| byte == b'_' || byte.is_ascii_alphanumeric());
    let taken = TAKEN.iter().any(|taken| match taken.ends_with('_') {
        true => name.starts_with(taken),
        false => name == *taken,
    });
    if begins && goes_on && !taken && name.len() <= NAME_BYTES {
        return Ok(());
    }
    Err(SecretError::Name(name.chars().take(NAME_BYTES).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_variables_that_nobody_else_sets() {
        for name in ["HF_TOKEN", "_x", "a1"] {
            assert_eq!(check_name(name), Ok(()), "{name}");
        }
        for name in
            ["", "1A", "A-B", "A B", "../x", "RANK", "PHALANX_JOB", "LOCAL_RANK", "ä", &"A".repeat(300)]
        {
            assert!(check_name(name).is_err(), "{name}");
        }
    }

    #[test]
    fn a_value_is_bounded_and_not_shown() {
        let secret = Secret::new("hunter22".into()).unwrap();
        assert_eq!((secret.reveal(), format!("{secret:?}").as_str()), ("hunter22", "Secret(…)"));
        for value in ["", "abc", "with\0nul"] {
            assert_eq!(Secret::new(value.into()), Err(SecretError::Value(value.len())), "{value:?}");
        }
        assert!(Secret::new("x".repeat(SECRET_BYTES + 1)).is_err());
    }
}
