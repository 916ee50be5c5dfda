//! The decision: which gang runs where, and why the others wait
