//! `report`: metrics from inside a job, for programs in any language.

use crate::failure::Failure;
use crate::output::Output;
use clap::Args;
use phalanx_core::limits::SOCKET_LINE_BYTES;
use phalanx_core::report::{Answer, Metric, Report, Request, check_metric_name};
use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

/// A report that could not be handed over by then is lost, and said to be.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two tries.
const PAUSE: Duration = Duration::from_millis(200);
/// An agent that takes longer to answer is tried again.
const ANSWER: Duration = Duration::from_secs(30);

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  phalanx report --step 3 loss=0.25 val/accuracy=0.91
  phalanx report loss=nan                                    without --step: one more than the last
  [ \"$(phalanx report --step $i loss=$l)\" = stop ] && exit   it prints `stop` once the job should end

Outside a job it does nothing.")]
pub(crate) struct ReportArgs {
    /// The step, as the program counts
    #[arg(long, value_name = "N")]
    step: Option<u64>,
    /// Metrics; a value is a number, nan, inf or -inf
    #[arg(required = true, value_name = "KEY=VALUE", allow_negative_numbers = true)]
    metrics: Vec<String>,
}

/// Runs it.
pub(crate) fn run(args: &ReportArgs, output: &Output) -> Result<(), Failure> {
    let metrics = args.metrics.iter().map(|text| metric(text)).collect::<Result<BTreeMap<_, _>, _>>()?;
    let report = Request::Report(Report { step: args.step, metrics });
    let line = serde_json::to_string(&report).map_err(|error| Failure::usage(error.to_string()))?;
    let Some(socket) = std::env::var_os("PHALANX_SOCKET").filter(|path| !path.is_empty()) else {
        output.say("phalanx: not in a job ($PHALANX_SOCKET is not set); nothing is reported");
        return Ok(());
    };
    match hand_over(Path::new(&socket), &line)? {
        Answer::Taken { ok, stop, .. } if output.json => {
            output.document(&serde_json::json!({ "ok": ok, "stop": stop }))
        }
        Answer::Taken { stop: true, .. } => output.line("stop"),
        Answer::Taken { .. } => Ok(()),
        Answer::Refused { error } => Err(Failure::failed(format!("the report was refused: {error}"))),
    }
}

fn metric(text: &str) -> Result<(String, Metric), Failure> {
    // A metric's name may hold `=`; a number cannot.
    let shape =
        || Failure::usage(format!("`{text}` is not KEY=VALUE with a number, nan, inf or -inf as value"));
    let (name, value) = text.rsplit_once('=').ok_or_else(shape)?;
    check_metric_name(name).map_err(Failure::usage)?;
    Ok((name.to_owned(), Metric(value.trim().parse().map_err(|_| shape())?)))
}

/// Repeats the report while the service or the agent is being restarted.
fn hand_over(socket: &Path, line: &str) -> Result<Answer, Failure> {
    let started = Instant::now();
    loop {
        match say(socket, line) {
            Ok(answer) => return Ok(answer),
            Err(error) if error.kind() == io::ErrorKind::InvalidData || started.elapsed() >= PATIENCE => {
                return Err(Failure::failed(format!("cannot report to {}: {error}", socket.display())));
            }
            Err(_) => std::thread::sleep(PAUSE),
        }
    }
}

fn say(socket: &Path, line: &str) -> io::Result<Answer> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(ANSWER))?;
    stream.set_write_timeout(Some(ANSWER))?;
    stream.write_all(format!("{line}\n").as_bytes())?;
    let mut answer = String::new();
    BufReader::new(stream.take(SOCKET_LINE_BYTES as u64)).read_line(&mut answer)?;
    if answer.is_empty() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    serde_json::from_str(&answer).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn metrics_are_numbers_by_name() {
        assert_eq!(metric("loss=0.25").unwrap(), ("loss".to_owned(), Metric(0.25)));
        assert_eq!(metric("a=b=-1e3").unwrap(), ("a=b".to_owned(), Metric(-1000.0)));
        assert!(metric("x=nan").unwrap().1.0.is_nan());
        assert_eq!(metric("x=-inf").unwrap().1, Metric(f64::NEG_INFINITY));
        for text in ["loss", "=1", "loss=", "loss=high", "a\nb=1"] {
            assert_eq!(metric(text).unwrap_err().code, crate::failure::USAGE, "{text}");
        }
    }

    #[test]
    fn a_report_is_repeated_over_a_break() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("s");
        let listener = UnixListener::bind(&socket).unwrap();
        let server = std::thread::spawn(move || {
            drop(listener.accept().unwrap()); // breaks
            let (stream, _) = listener.accept().unwrap();
            let mut line = String::new();
            BufReader::new(&stream).read_line(&mut line).unwrap();
            (&stream).write_all(b"{\"ok\":true,\"stop\":true}\n").unwrap();
            line
        });
        let answer = hand_over(&socket, "{}").unwrap();
        assert_eq!(answer, Answer::taken(true));
        assert_eq!(server.join().unwrap(), "{}\n");
    }
}
