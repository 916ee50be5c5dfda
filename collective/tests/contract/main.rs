//! One contract for every transport, between threads of a process and between real processes.
#![allow(clippy::unwrap_used)]
// A buffer of a framework is borrowed by its address.
#![allow(unsafe_code)]

mod cases;
mod devices;
mod faults;
mod groups;
mod hosts;
mod meeting;
#[path = "../shim/mod.rs"]
mod nccl_shim;
mod shim;
