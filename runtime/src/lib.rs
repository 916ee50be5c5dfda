//! The task core: the controller that decides, the store that remembers, and the agents that run and watch ranks.
//!
//! Architecture invariant: the controller is pure (inputs in, effects out); the loop around it commits first and acts
//! then. This crate starts processes and never trains: the built-in trainer is a program like any other.
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod agent;
pub mod controller;
pub mod error;
pub mod launch;
pub mod protocol;
pub mod service;
pub mod store;

pub use error::Error;
