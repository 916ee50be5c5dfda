//! What people type. Parsing touches nothing; the subcommands look at the system afterwards.

use clap::builder::styling::{AnsiColor, Style, Styles};
use clap::{Args as ClapArgs, Parser, Subcommand};
use std::path::PathBuf;

/// Headings in bold, what is typed in colour; clap leaves both out where there is no terminal or `NO_COLOR` is set.
const STYLES: Styles = Styles::styled()
    .header(Style::new().bold())
    .usage(Style::new().bold())
    .literal(AnsiColor::Cyan.on_default())
    .placeholder(AnsiColor::Green.on_default());

/// The whole command line.
#[derive(Debug, Parser)]
#[command(
    name = "phalanx",
    version,
    about = "Run, train and watch gangs of processes on the CPUs and GPUs that are there",
    styles = STYLES,
    max_term_width = 100,
    propagate_version = true,
    after_help = "Examples:
  phalanx run examples/digits/job.toml        train, follow, and exit with the job's code
  phalanx run -- python train.py --lr 0.1     run a command as a job
  phalanx up                                  bring up a service, then submit from another terminal:
  phalanx submit job.toml                     prints the job's id
  phalanx logs -f j1                          follow what its ranks write
  phalanx why j1                              why it waits, with the numbers

Exit codes: `run` and `wait` give the job's own code; 124 time limit, 125 the service's own trouble,
130 interrupted. All others: 0 done, 1 failed, 2 wrong usage or invalid file, 3 can never be placed."
)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Flags of every subcommand.
#[derive(Clone, Debug, Default, ClapArgs)]
#[command(next_help_heading = "Everywhere")]
pub(crate) struct Global {
    /// One JSON document on stdout; for followed streams one object a line
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Say nothing but results and errors
    #[arg(short, long, global = true)]
    pub(crate) quiet: bool,
    /// Set a key of FILE: `--set gang.workers=4`; the value is TOML, or text where that fails
    #[arg(long = "set", value_name = "KEY.PATH=VALUE", global = true)]
    pub(crate) set: Vec<String>,
    /// The service to talk to, as HOST:PORT
    #[arg(long, value_name = "ADDR", env = "PHALANX_SERVER", hide_env_values = true, global = true)]
    pub(crate) server: Option<String>,
    /// The file with the service's token
    #[arg(long, value_name = "FILE", env = "PHALANX_TOKEN_FILE", hide_env_values = true, global = true)]
    pub(crate) token_file: Option<PathBuf>,
    /// The certificates that vouch for a service that speaks TLS
    #[arg(long, value_name = "FILE", env = "PHALANX_CA_FILE", hide_env_values = true, global = true)]
    pub(crate) ca_file: Option<PathBuf>,
    /// The data folder; without it $XDG_DATA_HOME/phalanx or ~/.local/share/phalanx
    #[arg(long, value_name = "DIR", env = "PHALANX_DATA", hide_env_values = true, global = true)]
    pub(crate) data: Option<PathBuf>,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a job or a sweep to its end and follow it
    Run(crate::run::RunArgs),
    /// Run the service, with this machine as its node
    Up(crate::up::UpArgs),
    /// Join this machine to a service as a node
    Agent(crate::agent::AgentArgs),
    /// Queue a job or start a sweep; prints its id
    Submit(crate::submit::SubmitArgs),
    /// Wait for a job or a sweep to end and exit with its code
    Wait(crate::wait::WaitArgs),
    /// What the ranks of a job wrote
    Logs(crate::logs::LogsArgs),
    /// What the ranks of a job reported
    Metrics(crate::metrics::MetricsArgs),
    /// All about a job or a sweep
    Describe(crate::describe::DescribeArgs),
    /// Sweeps and jobs that are not over, or all of them
    Ps(crate::ps::PsArgs),
    /// The trials of a sweep
    Trials(crate::trials::TrialsArgs),
    /// The best trial of a sweep, also as a job file
    Best(crate::best::BestArgs),
    /// Nodes, devices and jobs, live
    Top(crate::top::TopArgs),
    /// Write what the ranks of a job or sweep reported for other programs: TensorBoard, CSV, Parquet
    Export(crate::export::ExportArgs),
    /// End a job for good
    Cancel(crate::change::ChangeArgs),
    /// End the processes of a job, to go on later from its checkpoint
    Pause(crate::change::ChangeArgs),
    /// Let a paused job go on
    Resume(crate::change::ChangeArgs),
    /// Why a job waits, or how it ended
    Why(crate::why::WhyArgs),
    /// Nodes, and what is free on them
    #[command(after_help = crate::nodes::EXAMPLES)]
    Nodes,
    /// Let a node finish what it runs and give it nothing new
    Drain(crate::drain::DrainArgs),
    /// What happened, who did it, and to what
    Events(crate::events::EventsArgs),
    /// Values that jobs name and nobody is shown
    Secret(crate::secret::SecretArgs),
    /// Queues: what each has, holds and waits for
    Queues(crate::queues::QueuesArgs),
    /// The service's settings, and where each comes from
    Config(crate::config::ConfigArgs),
    /// Standing placement groups: bundles that are held for jobs to run in
    Groups(crate::groups::GroupsArgs),
    /// Check a file without running it
    Check(crate::check::CheckArgs),
    /// Report metrics from inside a job
    Report(crate::report::ReportArgs),
    /// What this machine has, and what to do about what is missing
    #[command(after_help = crate::doctor::EXAMPLES)]
    Doctor,
    /// Make a certificate for a service
    Cert(crate::cert::CertArgs),
    /// Print the token that opens the service, or make it anew
    Token(crate::token::TokenArgs),
    /// Measure what the machine can do
    #[command(after_help = "Examples:
  phalanx bench allreduce
  phalanx bench allreduce --world 4 --transport tcp --sizes 64KiB,1MiB --json")]
    Bench(crate::bench::BenchArgs),
    Simulate(crate::simulate::SimulateArgs),
    Replay(crate::replay::ReplayArgs),
    Study(crate::study::StudyArgs),
    Convert(crate::convert::ConvertArgs),
    /// Print a completion script for a shell
    Completions(crate::completions::CompletionsArgs),
    /// Print the manual page, or write a page for every command
    Man(crate::reference::ManArgs),
    /// One rank of the built-in trainer
    #[command(hide = true)]
    Worker(crate::worker::WorkerArgs),
    /// Watches an agent and ends its ranks when it is gone
    #[command(hide = true)]
    Guard,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_arguments_do_not_contradict_each_other() {
        Args::command().debug_assert();
    }

    #[test]
    fn every_visible_command_shows_examples() {
        for command in Args::command().get_subcommands().filter(|command| !command.is_hide_set()) {
            let shown = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(shown.starts_with("Example"), "`phalanx {} --help` shows no example", command.get_name());
        }
    }

    #[test]
    fn flags_stand_before_and_after_the_command() {
        let args = Args::parse_from(["phalanx", "--json", "ps", "-a", "--data", "/d"]);
        assert!(args.global.json);
        assert_eq!(args.global.data.as_deref(), Some(std::path::Path::new("/d")));
    }

    #[test]
    fn a_command_after_two_dashes_keeps_its_own_flags() {
        let args =
            Args::parse_from(["phalanx", "run", "--set", "gang.workers=2", "--", "sh", "--json", "-q"]);
        let Command::Run(run) = args.command else { panic!("not run") };
        assert_eq!(run.command, ["sh", "--json", "-q"]);
        assert!(!args.global.json && args.global.set == ["gang.workers=2"]);
    }
}
