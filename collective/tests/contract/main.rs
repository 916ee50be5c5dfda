//! One contract for every transport, between threads of a process and between real processes.
#![allow(clippy::unwrap_used)]

mod cases;
mod faults;
mod groups;
mod meeting;
