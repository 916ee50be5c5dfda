//! Pages of jobs (AIP-158): sizes and opaque tokens.

use crate::status;
use phalanx_core::JobId;
use tonic::Status;

/// The size of a page that asks for none.
const DEFAULT_SIZE: u32 = 100;
/// The largest page; a larger one is cut to it.
const MAX_SIZE: u32 = 1000;
/// In every token, so that another version's tokens are told apart from ours.
const VERSION: u64 = 0x7068_7831;

/// How many jobs a page has.
pub(crate) fn size(asked: i32) -> Result<u32, Status> {
    match u32::try_from(asked) {
        Ok(0) => Ok(DEFAULT_SIZE),
        Ok(size) => Ok(size.min(MAX_SIZE)),
        Err(_) => Err(status::bad_field(
            "page_size",
            &format!("`page_size` is {asked}; it must be 0 to {MAX_SIZE}"),
        )),
    }
}

/// The token of the page that goes on below `last`.
pub(crate) fn token_after(last: JobId) -> String {
    format!("{VERSION:08x}{:016x}", last.0)
}

/// The job below which a page starts; none for the first page.
pub(crate) fn start(token: &str) -> Result<Option<JobId>, Status> {
    if token.is_empty() {
        return Ok(None);
    }
    let refused = || status::bad_field("page_token", "`page_token` is not one that this service gave out");
    let id = token.strip_prefix(&format!("{VERSION:08x}")).ok_or_else(refused)?;
    let id = (id.len() == 16).then(|| u64::from_str_radix(id, 16).ok()).flatten().ok_or_else(refused)?;
    Ok(Some(JobId(id)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_read_back_and_nothing_else_does() {
        assert_eq!(start(&token_after(JobId(12))).unwrap(), Some(JobId(12)));
        assert_eq!(start("").unwrap(), None);
        for token in ["x", "12", "70687831", "706878310000000000000zzz", "ä"] {
            assert!(start(token).is_err(), "{token}");
        }
    }

    #[test]
    fn sizes_are_bounded() {
        assert_eq!(size(0).unwrap(), DEFAULT_SIZE);
        assert_eq!(size(5000).unwrap(), MAX_SIZE);
        assert!(size(-1).is_err());
    }
}
