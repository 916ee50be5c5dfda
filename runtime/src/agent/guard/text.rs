//! Arguments and variables in a plan: any bytes, as a text whose characters up to U+00FF are those bytes. It is much shorter
//! than the list of numbers that JSON would hold otherwise, and a plan is read before every start.

use serde::{Deserialize, Deserializer, Serializer};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

fn encoded(value: &OsStr) -> String {
    value.as_bytes().iter().copied().map(char::from).collect()
}

/// Error: it holds a character that is no byte.
fn decoded<E: serde::de::Error>(text: String) -> Result<OsString, E> {
    let byte = |character| u8::try_from(character).map_err(|_| E::custom("a character that is no byte"));
    text.chars().map(byte).collect::<Result<Vec<u8>, E>>().map(OsString::from_vec)
}

/// Arguments.
pub(super) mod words {
    use super::*;

    pub(in crate::agent::guard) fn serialize<S: Serializer>(
        words: &[OsString],
        to: S,
    ) -> Result<S::Ok, S::Error> {
        to.collect_seq(words.iter().map(|word| encoded(word)))
    }

    pub(in crate::agent::guard) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Vec<OsString>, D::Error> {
        Vec::<String>::deserialize(from)?.into_iter().map(decoded).collect()
    }
}

/// Variables.
pub(super) mod variables {
    use super::*;

    pub(in crate::agent::guard) fn serialize<S: Serializer>(
        variables: &[(OsString, OsString)],
        to: S,
    ) -> Result<S::Ok, S::Error> {
        to.collect_seq(variables.iter().map(|(name, value)| (encoded(name), encoded(value))))
    }

    pub(in crate::agent::guard) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Vec<(OsString, OsString)>, D::Error> {
        let variables = Vec::<(String, String)>::deserialize(from)?.into_iter();
        variables.map(|(name, value)| Ok((decoded(name)?, decoded(value)?))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::{RankPlan, Work};
    use super::*;

    #[test]
    fn any_bytes_come_back() {
        let all = OsString::from_vec((1..=255).collect());
        let (work, rank) =
            (Work::Program(vec![all.clone()]), RankPlan { rank: 1, env: vec![("A".into(), all.clone())] });
        let text = serde_json::to_string(&(&work, &rank)).unwrap();
        let (work, rank): (Work, RankPlan) = serde_json::from_str(&text).unwrap();
        assert!(matches!(work, Work::Program(words) if words == [all.clone()]));
        assert_eq!(rank.env, [("A".into(), all)]);
        assert!(serde_json::from_str::<RankPlan>(r#"{"rank":0,"env":[["A","\u0100"]]}"#).is_err());
    }
}
