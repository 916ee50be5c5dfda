//! Names of things: short, ordered, and never a path.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// An id that does not read as one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not {wanted}")]
pub struct IdError {
    text: String,
    wanted: &'static str,
}

/// A job: `j1`, `j2`, … in the order of submission.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct JobId(pub u64);

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "j{}", self.0)
    }
}

impl FromStr for JobId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let number = text.strip_prefix('j').and_then(id_number);
        number.map(JobId).ok_or_else(|| IdError { text: text.to_owned(), wanted: "a job id such as j12" })
    }
}

/// Digits without a leading zero.
fn id_number(digits: &str) -> Option<u64> {
    let digits = Some(digits).filter(|d| !d.starts_with('0') && d.bytes().all(|b| b.is_ascii_digit()));
    digits.and_then(|digits| digits.parse().ok())
}

/// A sweep: `s1`, `s2`, … in the order of submission.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SweepId(pub u64);

impl fmt::Display for SweepId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s{}", self.0)
    }
}

impl FromStr for SweepId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let number = text.strip_prefix('s').and_then(id_number);
        number.map(SweepId).ok_or_else(|| IdError { text: text.to_owned(), wanted: "a sweep id such as s3" })
    }
}

/// A trial by its sweep and its number there, from 0: `s3/12`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TrialId {
    /// The sweep.
    pub sweep: SweepId,
    /// The trial's number within the sweep, from 0.
    pub number: u64,
}

impl fmt::Display for TrialId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.sweep, self.number)
    }
}

impl FromStr for TrialId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let error = || IdError { text: text.to_owned(), wanted: "a trial id such as s3/12" };
        let (sweep, number) = text.split_once('/').ok_or_else(error)?;
        let digits =
            Some(number).filter(|digits| !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()));
        let number = digits.and_then(|digits| digits.parse().ok()).ok_or_else(error)?;
        Ok(TrialId { sweep: sweep.parse().map_err(|_| error())?, number })
    }
}

/// The place of a process in its gang, from 0.
pub type Rank = u32;

/// One run of a job's gang; numbers count from 1 within the job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct AttemptId {
    /// The job.
    pub job: JobId,
    /// The attempt's number within the job, from 1.
    pub number: u32,
}

impl fmt::Display for AttemptId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.job, self.number)
    }
}

impl FromStr for AttemptId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let error = || IdError { text: text.to_owned(), wanted: "an attempt id such as j12.1" };
        let (job, number) = text.split_once('.').ok_or_else(error)?;
        Ok(AttemptId { job: job.parse()?, number: number.parse().map_err(|_| error())? })
    }
}

/// A checkpoint that a job handed over: the attempt that made it and its step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct CheckpointId {
    /// The attempt that made it.
    pub attempt: AttemptId,
    /// The training step it was made at.
    pub step: u64,
}

/// The name of a node, unique in a cluster.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NodeName(String);

impl NodeName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for NodeName {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if text.is_empty() || text.len() > crate::limits::NAME_BYTES || !text.chars().all(legal) {
            let wanted = "a node name: 1 to 256 letters, digits, `-`, `_` or `.`";
            return Err(IdError { text: text.to_owned(), wanted });
        }
        Ok(NodeName(text.to_owned()))
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_read_back_as_they_print() {
        assert_eq!("j12".parse(), Ok(JobId(12)));
        assert_eq!(JobId(12).to_string(), "j12");
        let attempt = AttemptId { job: JobId(3), number: 2 };
        assert_eq!(attempt.to_string().parse(), Ok(attempt));
    }

    #[test]
    fn what_is_no_id_is_refused() {
        for text in ["", "j", "j0", "j01", "j+1", "12", "../j1", "j1/..", "j99999999999999999999", "J1"] {
            assert!(text.parse::<JobId>().is_err(), "{text}");
        }
        for text in ["", "a/b", "a b", "nöde"] {
            assert!(text.parse::<NodeName>().is_err(), "{text}");
        }
    }
}
