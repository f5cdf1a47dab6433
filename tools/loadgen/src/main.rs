//! `custody-loadgen`: the traffic of agents over OTLP, measured and checked.
//!
//! `story.rs` says what agents do, `records.rs` writes it as OTLP with holes
//! (`piece.rs`), `traffic.rs` fills them: request `n` is a pure function of the
//! seed. `run.rs` sends (`client.rs`, `answer.rs`), `readers/` read the ledger's events
//! meanwhile, `check.rs` asks the ledger what it has of it, `report.rs` tells. It shares
//! no code with what it measures.

mod acked;
mod answer;
mod check;
mod client;
mod options;
mod piece;
mod process;
mod random;
mod readers;
mod records;
mod report;
mod run;
mod story;
mod traffic;

use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Parser as _;

use crate::client::Target;
use crate::options::Options;
use crate::process::Watch;
use crate::readers::Readers;
use crate::report::Line;
use crate::run::Run;
use crate::traffic::Traffic;

/// It could not be told.
const UNKNOWN: u8 = 2;

/// As a shell tells of who was interrupted.
const INTERRUPTED: i32 = 130;

fn main() -> ExitCode {
    let options = Options::parse();
    match if options.dry_run { dry_run(&options) } else { measure(options) } {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("custody-loadgen: {error}");
            ExitCode::from(UNKNOWN)
        }
    }
}

/// Prints for people: beside JSON on standard output, to standard error.
fn say(options: &Options, text: &str) {
    // Nobody listens any more: the result is in the exit status.
    let _ = match options.json.as_ref().is_some_and(|path| path.as_os_str() == "-") {
        true => writeln!(std::io::stderr(), "{text}"),
        false => writeln!(std::io::stdout(), "{text}"),
    };
}

/// Makes requests and sends none.
fn dry_run(options: &Options) -> Result<u8, String> {
    let traffic = Traffic::new(options.shape());
    let requests = options.count.unwrap_or(1_000_000).div_ceil(traffic.batch());
    let (start, cpu) = (Instant::now(), process::cpu_seconds(std::process::id()).unwrap_or_default());
    let mut bytes = 0;
    for n in 0..requests {
        bytes += std::hint::black_box(traffic.request(n, 5)).len() as u64 - 5;
    }
    let seconds = start.elapsed().as_secs_f64();
    let cpu = process::cpu_seconds(std::process::id()).unwrap_or_default() - cpu;
    let records = requests * traffic.batch();
    say(
        options,
        &format!(
            "run {}: {records} records in {requests} requests, {bytes} bytes ({:.0} a record)\n{:.0} records/s, {:.0} MB/s, \
             {:.3} CPU us a record, in one thread",
            traffic.run(),
            bytes as f64 / records as f64,
            records as f64 / seconds,
            bytes as f64 / 1e6 / seconds,
            cpu * 1e6 / records as f64,
        ),
    );
    // FNV-1a, over at most a hundred thousand records: it is slower than what it is about.
    let some = requests.min(100_000u64.div_ceil(traffic.batch()));
    let digest = (0..some)
        .flat_map(|n| traffic.request(n, 0))
        .fold(0xcbf2_9ce4_8422_2325u64, |h, byte| (h ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
    say(options, &format!("FNV-1a of the first {some} requests: {digest:016x}"));
    Ok(0)
}

fn measure(options: Options) -> Result<u8, String> {
    // A place that cannot be written should not cost a run.
    if let Some(path) = options.json.as_ref().filter(|path| path.as_os_str() != "-") {
        let opened = std::fs::OpenOptions::new().create(true).append(true).open(path);
        opened.map_err(|e| format!("--json {}: {e}", path.display()))?;
    }
    if let Some(api) = api(&options)? {
        api.answers()?;
    }
    let target = Arc::new(Target::new(&options)?);
    let watch = options.server_pid.map(Watch::start).transpose()?;
    let own = Watch::start(std::process::id())?;
    let traffic = Arc::new(Traffic::new(options.shape()));
    own.lap();
    let run = Arc::new(Run::new(options.clone(), Arc::clone(&traffic), target));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(usize::from(options.threads))
        .enable_all()
        .build()
        .map_err(|e| e.to_string())?;
    say(&options, &format!("run {}, seed {}", traffic.run(), options.seed));
    say(&options, &report::heading());
    let interrupted = Arc::clone(&run);
    runtime.spawn(async move {
        if tokio::signal::ctrl_c().await.is_ok() {
            interrupted.stop();
        }
        // Who asks twice does not want to wait for what is under way.
        if tokio::signal::ctrl_c().await.is_ok() {
            std::process::exit(INTERRUPTED);
        }
    });
    let progress = Arc::clone(&run);
    let progress = std::io::stderr().is_terminal().then(|| runtime.spawn(show_progress(progress)));
    let mut lines = Vec::new();
    for (rate, readers) in options.step_plan() {
        let line = step(&options, (&runtime, &run), (rate, readers), (watch.as_ref(), &own))?;
        say(&options, &report::line(&line));
        let more = [report::errors(&line.step), line.readers.as_ref().map(report::readers)];
        more.iter().flatten().for_each(|text| say(&options, text));
        lines.push(line);
        if run.stopped() {
            break;
        }
    }
    if let Some(progress) = progress {
        progress.abort();
    }
    report::cost(&lines).iter().for_each(|(readers, share)| say(&options, &report::cost_line(*readers, *share)));
    conclude(&options, &traffic, &run, &lines)
}

/// Sends for one step, with its readers beside it.
fn step(
    options: &Options,
    (runtime, run): (&tokio::runtime::Runtime, &Arc<Run>),
    (rate, readers): (Option<f64>, Option<u16>),
    (watch, own): (Option<&Watch>, &Watch),
) -> Result<Line, String> {
    let count = readers.filter(|count| *count > 0);
    let beside = count.map(|count| Readers::start(options, count)).transpose()?;
    watch.map(Watch::lap);
    own.lap();
    let step = runtime.block_on(run.run_step(rate))?;
    let (mut server, own) = (watch.and_then(Watch::lap), own.lap());
    let told = beside.map(Readers::finish).transpose()?;
    // Those who read the rest count for memory, not for the CPU time of a record.
    let rest = watch.and_then(Watch::lap).map_or(0, |usage| usage.rss_bytes_max);
    if let Some(usage) = &mut server {
        usage.rss_bytes_max = usage.rss_bytes_max.max(rest);
    }
    Ok(Line { step, server, own, reader_count: readers, readers: told })
}

/// Where the ledger can be asked, if it is to be.
fn api(options: &Options) -> Result<Option<check::Api>, String> {
    let api = |url: &String| Ok(check::Api::new(url, options.bearer()?, options.check_wait));
    options.check.as_ref().map(api).transpose()
}

/// Checks, writes the result, and gives the exit status.
fn conclude(options: &Options, traffic: &Traffic, run: &Run, lines: &[Line]) -> Result<u8, String> {
    let found = api(options)?.map(|api| check::check(&api, traffic, run.sent(), &run.acked(), options.check_wait));
    let misread = lines.iter().filter_map(|line| line.readers.as_ref()).any(|told| told.wrong + told.behind > 0);
    let status = match &found {
        Some(Ok(found)) => {
            say(options, &report::check(found));
            u8::from(found.missing + found.doubled > 0)
        }
        Some(Err(error)) => {
            eprintln!("custody-loadgen: the ledger could not be checked: {error}");
            UNKNOWN
        }
        None if run.acked().len() == 0 => {
            eprintln!("custody-loadgen: nothing was acknowledged");
            UNKNOWN
        }
        None => 0,
    };
    let status = if status == 0 { u8::from(misread) } else { status };
    if let Some(path) = &options.json {
        let text = report::json(options, traffic, lines, found.as_ref()).to_string() + "\n";
        match path.as_os_str() == "-" {
            true => std::io::stdout().write_all(text.as_bytes()),
            false => std::fs::write(path, text),
        }
        .map_err(|e| format!("{}: {e}", path.display()))?;
    }
    Ok(status)
}

/// A line on the terminal, each second.
async fn show_progress(run: Arc<Run>) {
    let mut before = 0;
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let line = {
            let step = run.step();
            let errors: u64 = step.errors.values().sum();
            let p99 = step.latency.value_at_quantile(0.99) as f64 / 1e3;
            let rate = step.records.saturating_sub(before);
            before = step.records;
            format!("{rate} records/s, p99 {p99:.1} ms, {errors} errors, {} acknowledged", step.records)
        };
        eprint!("\r\x1b[K{line}\r");
    }
}
