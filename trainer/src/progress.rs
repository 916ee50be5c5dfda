//! What a run says while it goes: metrics to the agent, lines to people. Only rank 0 speaks.

use crate::Error;
use crate::data::Sample;
use crate::evaluate::Judgement;
use crate::run::Run;
use phalanx_core::spec::Precision;
use std::io::Write;
use std::time::Instant;

/// Progress lines of a run, at most about so many.
const PROGRESS_LINES: u64 = 20;

pub(crate) fn announce(run: &Run<'_>) {
    if run.gang.rank() > 0 {
        return;
    }
    let samples = match run.data.sample {
        Sample::Features(_) | Sample::Tokens { .. } => "rows",
        Sample::Image(_) => "images",
        Sample::Text { .. } => "pieces",
    };
    let mut line = format!(
        "training {} ({} parameters) on {} {samples} of {}, {} held out, {}",
        run.model_name,
        run.model.parameters().len(),
        run.data.training.len(),
        run.data.path.display(),
        run.data.validation.len() + run.data.test.len(),
        match run.gang.world() {
            1 => "1 worker".to_owned(),
            world => format!("{world} workers"),
        }
    );
    if run.train.precision == Precision::Bf16 {
        line.push_str(", in bf16");
    }
    if run.position.step > 0 {
        line.push_str(&format!(", going on from step {}", run.position.step));
    }
    print(&line);
}

/// Reports the metrics of the step just done.
pub(crate) fn report(run: &mut Run<'_>, judged: bool) -> Result<(), Error> {
    // One that was restored after the last step has made none, and has no loss to tell.
    let logged = run.loss.filter(|_| run.at(run.train.log_every) || run.done());
    if run.gang.rank() > 0 || !(judged || logged.is_some()) {
        return Ok(());
    }
    let mut metrics = Vec::with_capacity(8);
    if let Some(loss) = logged {
        let (since, samples) = std::mem::replace(&mut run.measured, (Instant::now(), 0));
        metrics.push(("loss".to_owned(), loss));
        metrics.push(("lr".to_owned(), run.last_lr()));
        metrics.push(("samples_per_s".to_owned(), samples as f64 / since.elapsed().as_secs_f64().max(1e-9)));
    }
    if judged {
        metrics.extend(run.judgement.iter().flat_map(|judgement| judgement.metrics("val")));
        metrics.extend(run.test.iter().flat_map(|judgement| judgement.metrics("test")));
        print_progress(run);
    }
    if metrics.is_empty() {
        return Ok(());
    }
    run.reporter.report(run.position.step, metrics)
}

fn print_progress(run: &mut Run<'_>) {
    if !run.done() && run.position.step < run.printed + run.total_steps / PROGRESS_LINES {
        return;
    }
    run.printed = run.position.step;
    let mut line = format!("step {}/{}", run.position.step, run.total_steps);
    line.push_str(&format!("  epoch {}", run.position.epoch));
    if let Some(loss) = run.loss {
        line.push_str(&format!("  loss {loss:.5}"));
    }
    for (name, value) in run.judgement.iter().flat_map(|judgement| judgement.metrics("val")) {
        line.push_str(&format!("  {name} {value:.4}"));
    }
    print(&line);
}

/// The last words: how good the model is on what it has not seen.
pub(crate) fn end(run: &Run<'_>, stopped: bool) {
    if run.gang.rank() > 0 {
        return;
    }
    if stopped {
        print(&format!("stopped at step {} as asked", run.position.step));
        return;
    }
    if let Some(path) = &run.train.export {
        print(&format!("the model is in {path}"));
    }
    let parts = [("validation", &run.judgement), ("test", &run.test)];
    for (part, judgement) in &parts {
        if let Some(Judgement { loss, scores }) = judgement {
            let (name, value) = scores.first().copied().unwrap_or(("loss", *loss));
            print(&format!("{part} {name}: {value:.4}"));
        }
    }
    if parts.iter().all(|(_, judgement)| judgement.is_none()) {
        print(&format!(
            "final loss: {:.5} (nothing is held out; `data.validation = 0.2` would say how good the model is)",
            run.loss.unwrap_or(f64::NAN)
        ));
    }
}

/// A line for people. Nobody may be listening, which is no reason to stop training.
fn print(line: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{line}");
    let _ = out.flush();
}
