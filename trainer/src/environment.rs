//! The environment contract as a rank reads it; outside a job it is a gang of one.

use crate::Error;
use std::env;
use std::path::PathBuf;
use std::str::FromStr;

/// Where this rank stands and whom it can talk to.
#[derive(Clone, Debug, Default)]
pub struct Environment {
    /// `RANK`; 0 outside a job.
    pub rank: u32,
    /// `WORLD_SIZE`; 1 outside a job.
    pub world: u32,
    /// `MASTER_ADDR`, there with more than one rank.
    pub master_addr: String,
    /// `MASTER_PORT`.
    pub master_port: u16,
    /// `PHALANX_ATTEMPT`; ranks of different attempts never meet.
    pub attempt: u64,
    /// `PHALANX_SOCKET`, to the agent.
    pub socket: Option<PathBuf>,
    /// `PHALANX_CHECKPOINT`, to restore from.
    pub checkpoint: Option<PathBuf>,
    /// `PHALANX_SCRATCH`, where checkpoints are staged.
    pub scratch: Option<PathBuf>,
    /// `OMP_NUM_THREADS`, the bundle's CPUs.
    pub threads: Option<u32>,
}

impl Environment {
    /// Reads the process's environment.
    pub fn read() -> Result<Environment, Error> {
        let world = number("WORLD_SIZE", 1, "a number of ranks, 1 or more", |&world: &u32| world > 0)?;
        let rank = number("RANK", 0, "a number below WORLD_SIZE", |&rank: &u32| rank < world)?;
        let (mut master_addr, mut master_port) = (String::new(), 0);
        if world > 1 {
            master_addr = env::var("MASTER_ADDR").map_err(|_| Error::Environment {
                name: "MASTER_ADDR",
                value: None,
                wanted: "the address where the ranks meet",
            })?;
            master_port = number("MASTER_PORT", 0, "a port from 1 to 65535", |&port: &u16| port > 0)?;
        }
        let path = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        Ok(Environment {
            rank,
            world,
            master_addr,
            master_port,
            attempt: number("PHALANX_ATTEMPT", 0, "a number", |_| true)?,
            socket: path("PHALANX_SOCKET"),
            checkpoint: path("PHALANX_CHECKPOINT"),
            scratch: path("PHALANX_SCRATCH"),
            // The user may set it to anything; what is no number is no business of ours.
            threads: env::var("OMP_NUM_THREADS")
                .ok()
                .and_then(|text| text.trim().parse().ok())
                .filter(|&n| n > 0),
        })
    }
}

fn number<T: FromStr>(
    name: &'static str,
    default: T,
    wanted: &'static str,
    valid: impl Fn(&T) -> bool,
) -> Result<T, Error> {
    let text = match env::var_os(name) {
        None => {
            return valid(&default).then_some(default).ok_or(Error::Environment {
                name,
                value: None,
                wanted,
            });
        }
        Some(text) => text.to_string_lossy().into_owned(),
    };
    match text.trim().parse().ok().filter(valid) {
        Some(number) => Ok(number),
        None => Err(Error::Environment { name, value: Some(text), wanted }),
    }
}
