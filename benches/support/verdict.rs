//! Whether a goal is met.

/// Said of what is to be at least or at most so much.
pub(crate) fn verdict(is_met: bool) -> &'static str {
    if is_met { "met" } else { "missed" }
}
