//! Asking a large log: point lookups cold and warm, scans beside plain DataFusion and DuckDB
//! over the same files, how soon a record is visible, how fast rows are made.

mod generate;
mod plain;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use custody_query::{Caller, Concurrency, Engine, Projection, QueryLimits, SegmentLimits, memory_for_queries};
use custody_store::{Options, Reader, open};
use tokio::runtime::Runtime;

use crate::cpu_seconds;

/// What to measure.
pub struct Asked {
    /// Records of the log.
    pub records: u64,
    /// Where it is kept for the next time; a temporary folder without one.
    pub dir: Option<PathBuf>,
    /// A Python that has duckdb; without one it is left out.
    pub python: Option<String>,
    /// Measured lookups of each kind.
    pub lookups: usize,
}

/// How often each scan is run; the median counts.
const SCANS: usize = 5;

/// Runs all of it.
pub fn run(asked: &Asked) {
    let scratch = tempfile::tempdir().expect("a folder");
    let dir = asked.dir.clone().unwrap_or_else(|| scratch.path().to_owned());
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("threads");
    let shape = generate::fill(&dir, asked.records);
    println!(
        "query: {} records: traces of {} spans, a grant for {} of them, chains of {}, one trace of {} steps",
        shape.records,
        generate::TRACE_SPANS,
        generate::GRANT_SPANS,
        generate::CHAIN,
        generate::LONG_TRACE,
    );
    project(&dir);
    rebuild(&dir, shape.records);
    lookups(&runtime, &dir, &shape, asked.lookups);
    // In a thread of its own: it gives way from then on, and freshness is not to be measured so.
    std::thread::scope(|scope| scope.spawn(|| scans(&dir, asked.python.as_deref())).join()).expect("the scans run");
    freshness(&dir, &shape);
}

/// Makes all rows that are not there yet, seals them and writes the index.
fn project(dir: &Path) {
    let (_writer, reader) = open(dir, Options::default()).expect("the log opens");
    let (before, start) = (cpu_seconds(std::process::id()), Instant::now());
    let size = reader.head().size;
    let (projection, follower) = Projection::follow(reader, SegmentLimits::default()).expect("it is projected");
    let made = size - projection.snapshot().size;
    while *projection.visible().borrow() < size {
        assert!(projection.is_well(), "the projection stopped");
        std::thread::sleep(Duration::from_millis(5));
    }
    let (wall, cpu) = (start.elapsed().as_secs_f64(), cpu_seconds(std::process::id()) - before);
    drop(follower);
    if made > 0 {
        let rates = (made as f64 / wall, made as f64 / cpu.max(1e-9));
        println!("projection: {made} records at {:.0}/s, {:.0} a CPU second, sealing included", rates.0, rates.1);
    }
    let (segments, bytes, in_memory) = projection.snapshot().extent();
    println!(
        "  {segments} segments, {:.1} bytes a record; {in_memory} bytes of rows in memory",
        bytes as f64 / size as f64
    );
}

/// Throws all rows away and makes them again; of a large log only its newest part would be
/// made by hand, so the whole is done up to five million records.
fn rebuild(dir: &Path, records: u64) {
    if records > 5_000_000 {
        println!("rebuild: as the projection above, which makes the same rows from the same log");
        return;
    }
    let reader = Reader::open(dir).expect("the log opens");
    let (projection, follower) = Projection::follow(reader, SegmentLimits::default()).expect("it is projected");
    let (before, start) = (cpu_seconds(std::process::id()), Instant::now());
    let rebuilt = projection.rebuild(false, &mut |_, _| {}).expect("it is rebuilt");
    let (wall, cpu) = (start.elapsed().as_secs_f64(), cpu_seconds(std::process::id()) - before);
    let rate = |seconds: f64| rebuilt.records as f64 / seconds.max(1e-9);
    println!("rebuild: {} records at {:.0}/s, {:.0} a CPU second", rebuilt.records, rate(wall), rate(cpu));
    drop(follower);
}

/// An engine over a log as it is on disk.
fn engine(dir: &Path) -> (Engine, custody_query::Follower) {
    let reader = Reader::open(dir).expect("the log opens");
    let size = reader.head().size;
    let (projection, follower) = Projection::follow(reader, SegmentLimits::default()).expect("it is projected");
    while *projection.visible().borrow() < size {
        std::thread::sleep(Duration::from_millis(5));
    }
    (with_memory(Engine::new(projection).expect("the engine starts")), follower)
}

/// The rows of an answer, and how long it took.
fn ask(runtime: &Runtime, engine: &Engine, sql: &str) -> (usize, Duration) {
    let limits = QueryLimits {
        timeout: Duration::from_secs(600),
        rows_max: 1_000_000,
        memory_bytes_max: memory_for_queries() / 2,
        ..QueryLimits::default()
    };
    let start = Instant::now();
    let answer = runtime
        .block_on(engine.sql(&Caller::local(None), sql, vec![], limits))
        .unwrap_or_else(|e| panic!("{sql}: {e}"));
    (answer.rows, start.elapsed())
}

/// Whether the kernel's cache of files could be emptied.
fn chill() -> bool {
    let synced = std::process::Command::new("sync").status().is_ok_and(|status| status.success());
    synced && std::fs::write("/proc/sys/vm/drop_caches", "3").is_ok()
}

/// A kind of lookup: its name, how often it is asked, and the query and its least rows of a number.
type Lookup<'a> = (&'a str, usize, &'a dyn Fn(u64) -> (String, usize));

fn lookups(runtime: &Runtime, dir: &Path, shape: &generate::Shape, count: usize) {
    let few = (count / 10).max(3);
    let kinds: [Lookup<'_>; 6] = [
        ("trace by id", count, &|n| {
            (format!("SELECT * FROM spans WHERE trace_id = '{}'", shape.trace(n)), generate::TRACE_SPANS as usize)
        }),
        ("events of a grant", count, &|n| (format!("SELECT * FROM events WHERE grant_id = '{}'", shape.grant(n)), 1)),
        ("tool calls of a trace", count, &|n| {
            (format!("SELECT * FROM tool_calls WHERE trace_id = '{}'", shape.trace(n)), 1)
        }),
        ("chain of 100", few, &|n| {
            (format!("SELECT * FROM delegation_chain('{}')", shape.leaf(n)), generate::CHAIN as usize)
        }),
        ("replay of a trace", few, &|n| (format!("SELECT * FROM replay('{}')", shape.trace(n)), 1)),
        ("replay of 10,000 steps", few.min(20), &|_| {
            (format!("SELECT * FROM replay('{}')", shape.long_trace()), generate::LONG_TRACE as usize)
        }),
    ];
    let chilled = chill();
    let note = if chilled { "" } else { " (the kernel's cache of files could not be emptied)" };
    println!("lookups, cold: the first of a process that has just opened the log{note}");
    for (name, _, query) in &kinds {
        chill();
        let (engine, follower) = engine(dir);
        // As a server does when it starts.
        runtime.block_on(engine.warm().expect("there are threads")).expect("it ends");
        chill();
        let (sql, rows) = query(7);
        let (found, took) = ask(runtime, &engine, &sql);
        assert!(found >= rows, "{name}: {found} rows of at least {rows}");
        println!("  {name:24}{:10.2} ms", took.as_secs_f64() * 1e3);
        drop((engine, follower));
    }
    println!("lookups, warm: at random places");
    let (engine, _follower) = engine(dir);
    for (name, count, query) in &kinds {
        let mut times = Vec::new();
        for n in 0..*count as u64 {
            let (sql, rows) = query(shape.place(n));
            let (found, took) = ask(runtime, &engine, &sql);
            assert!(found >= rows, "{name}: {found} rows of at least {rows}");
            times.push(took.as_secs_f64() * 1e3);
        }
        times.sort_by(f64::total_cmp);
        let at = |share: f64| times[((times.len() - 1) as f64 * share).round() as usize];
        println!("  {name:24}p50 {:8.2} ms   p99 {:8.2} ms   of {count}", at(0.5), at(0.99));
    }
}

/// The scans, each by all in turn, so that all meet the same machine: over the same rows, all of them sealed,
/// with nothing else going on in this process, and with threads of one niceness. CPU time says more than the
/// clock where other work runs beside.
fn scans(dir: &Path, python: Option<&str>) {
    give_way();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("threads");
    let engine = sealed(dir);
    let plain = plain::Plain::open(dir);
    let duck = python.and_then(|python| plain::duckdb(python, dir));
    println!(
        "scans, medians of {SCANS}, ms, in brackets ms of CPU{}",
        if duck.is_none() { " (without duckdb)" } else { "" }
    );
    println!("  {:28}{:>18}{:>18}{:>10}{:>14}{:>8}", "", "custody", "datafusion", "duckdb", "ratio (CPU)", "ratio");
    for (i, (name, sql, _)) in plain::SCANS.iter().enumerate() {
        let mut times: [Vec<f64>; 4] = Default::default();
        for _ in 0..=SCANS {
            let before = cpu_ms();
            let (rows, took) = ask(&runtime, &engine, sql);
            let between = cpu_ms();
            let (plain_rows, plain_took) = plain.ask(sql);
            assert_eq!(rows, plain_rows, "{name}");
            let all = [took.as_secs_f64() * 1e3, between - before, plain_took.as_secs_f64() * 1e3, cpu_ms() - between];
            times.iter_mut().zip(all).for_each(|(times, ms)| times.push(ms));
        }
        // The first round warms both.
        let [ours, our_cpu, theirs, their_cpu] = times.map(|mut ms| crate::median(ms.split_off(1)));
        let duck = duck.as_ref().and_then(|times| times.get(i).copied());
        let shown = duck.map_or_else(|| "-".into(), |ms| format!("{ms:.1}"));
        let against = duck.map_or_else(|| "-".into(), |ms| format!("{:.2}", ours / ms));
        println!(
            "  {name:28}{:>18}{:>18}{shown:>10}{:>14}{against:>8}",
            format!("{ours:.1} ({our_cpu:.0})"),
            format!("{theirs:.1} ({their_cpu:.0})"),
            format!("{:.2} ({:.2})", ours / theirs, our_cpu / their_cpu.max(1e-9)),
        );
    }
}

/// An engine over a log whose rows are all sealed and merged, with nothing that follows it any more.
fn sealed(dir: &Path) -> Engine {
    let reader = Reader::open(dir).expect("the log opens");
    let size = reader.head().size;
    // What is left in memory at the end is sealed, however little it is.
    let limits = SegmentLimits { records_max: 1, ..SegmentLimits::default() };
    let (projection, follower) = Projection::follow(reader, limits).expect("it is projected");
    while *projection.visible().borrow() < size {
        std::thread::sleep(Duration::from_millis(5));
    }
    // Until nothing is sealed or merged any more: that uses a processor all the time.
    loop {
        let before = cpu_ms();
        std::thread::sleep(Duration::from_secs(1));
        if (cpu_ms() - before).abs() < 50.0 {
            break;
        }
    }
    drop(follower);
    let (_, _, in_memory) = projection.snapshot().extent();
    assert_eq!(in_memory, 0, "rows are left in memory, which plain DataFusion does not see");
    with_memory(Engine::new(projection).expect("the engine starts"))
}

/// With what `custody` gives queries on this machine.
fn with_memory(engine: Engine) -> Engine {
    engine.with_limits(Concurrency::default(), memory_for_queries())
}

/// Makes this thread, and those that it starts, as nice as query threads are.
fn give_way() {
    let own = std::fs::read_link("/proc/thread-self").ok();
    let id = own.and_then(|path| Some(path.file_name()?.to_string_lossy().into_owned())).unwrap_or_default();
    let done = std::process::Command::new("renice").args(["-n", "12", "-p", &id]).output();
    if !done.is_ok_and(|output| output.status.success()) {
        println!("renice cannot be run: query threads give way to other work, and those beside them do not");
    }
}

/// CPU time of the threads of this process, in ms; of those that ended it knows nothing.
fn cpu_ms() -> f64 {
    let threads = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let of_thread = |thread: std::fs::DirEntry| {
        let told = std::fs::read_to_string(thread.path().join("schedstat")).ok()?;
        told.split(' ').next()?.parse::<f64>().ok()
    };
    threads.filter_map(of_thread).sum::<f64>() / 1e6
}

/// From the acknowledgement of a request to when queries see it, while requests come one after another.
fn freshness(dir: &Path, shape: &generate::Shape) {
    let (mut writer, reader) = open(dir, Options::default()).expect("the log opens");
    let (projection, _follower) = Projection::follow(reader, SegmentLimits::default()).expect("it is projected");
    let mut visible = projection.visible();
    while *visible.borrow_and_update() < writer.head_size() {
        std::thread::sleep(Duration::from_millis(5));
    }
    let projection: Arc<Projection> = projection;
    let requests = (shape.records / 512 / 10).clamp(20, 2_000);
    let (mut waiting, mut times) = (std::collections::VecDeque::new(), Vec::new());
    let (start, first) = (Instant::now(), writer.head_size());
    for n in 0..requests {
        writer.append(vec![generate::fresh(shape, n)]).expect("it is appended");
        waiting.push_back((writer.head_size(), Instant::now()));
        settle(&mut waiting, *projection.visible().borrow(), &mut times);
    }
    let rate = (writer.head_size() - first) as f64 / start.elapsed().as_secs_f64();
    while !waiting.is_empty() {
        std::thread::sleep(Duration::from_micros(200));
        settle(&mut waiting, *projection.visible().borrow(), &mut times);
    }
    times.sort_by(f64::total_cmp);
    let at = |share: f64| times[((times.len() - 1) as f64 * share).round() as usize] * 1e3;
    println!(
        "freshness: {requests} requests of 512 at {rate:.0} records/s; visible p50 {:.1} ms, p99 {:.1} ms, last {:.1} ms after the acknowledgement",
        at(0.5),
        at(0.99),
        at(1.0),
    );
}

fn settle(waiting: &mut std::collections::VecDeque<(u64, Instant)>, visible: u64, times: &mut Vec<f64>) {
    while waiting.front().is_some_and(|(size, _)| *size <= visible) {
        times.extend(waiting.pop_front().map(|(_, since)| since.elapsed().as_secs_f64()));
    }
}
