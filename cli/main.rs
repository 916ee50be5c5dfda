//! The Phalanx command.
fn main() {}
