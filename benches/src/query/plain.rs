//! The same files without us: DataFusion as it comes, and DuckDB.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use datafusion::prelude::{ParquetReadOptions, SessionConfig, SessionContext};
use tokio::runtime::Runtime;

/// Scans: name, SQL of Custody and DataFusion, SQL of DuckDB.
pub const SCANS: [(&str, &str, &str); 4] = [
    (
        "count by service and hour",
        "SELECT service_name, date_trunc('hour', start_time) AS hour, count(*) AS n FROM spans GROUP BY 1, 2",
        // It truncates no times in ns; of the ways around that the fastest.
        "SELECT service_name, date_trunc('hour', start_time::TIMESTAMPTZ::TIMESTAMP) AS hour, count(*) AS n \
         FROM spans GROUP BY 1, 2",
    ),
    (
        "p99 duration by tool",
        "SELECT tool, approx_percentile_cont(CAST(end_time AS BIGINT) - CAST(event_time AS BIGINT), 0.99) AS p99 \
         FROM events WHERE kind = 'tool_call' GROUP BY tool",
        "SELECT tool, approx_quantile(epoch_ns(end_time) - epoch_ns(event_time), 0.99) AS p99 \
         FROM events WHERE kind = 'tool_call' GROUP BY tool",
    ),
    (
        "top resources by agent",
        "SELECT agent_id, resource, count(*) AS n FROM events WHERE kind = 'tool_call' \
         GROUP BY agent_id, resource ORDER BY n DESC LIMIT 20",
        "SELECT agent_id, resource, count(*) AS n FROM events WHERE kind = 'tool_call' \
         GROUP BY agent_id, resource ORDER BY n DESC LIMIT 20",
    ),
    (
        "tool calls joined to grants",
        "SELECT g.agent_id, count(*) AS n FROM events c JOIN events g ON g.grant_id = c.grant_id \
         WHERE c.kind = 'tool_call' AND g.kind IN ('grant_issued', 'grant_derived') GROUP BY g.agent_id",
        "SELECT g.agent_id, count(*) AS n FROM events c JOIN events g ON g.grant_id = c.grant_id \
         WHERE c.kind = 'tool_call' AND g.kind IN ('grant_issued', 'grant_derived') GROUP BY g.agent_id",
    ),
];

/// The segment files of a table.
fn files(dir: &Path, table: &str) -> Vec<PathBuf> {
    let listed = std::fs::read_dir(dir.join("segments")).expect("there are segments");
    let mut files: Vec<PathBuf> = listed.map(|file| file.expect("it is listed").path()).collect();
    let is_of = |path: &PathBuf| {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        name.starts_with(&format!("{table}-")) && name.ends_with(".parquet")
    };
    files.retain(is_of);
    files.sort();
    files
}

/// DataFusion as it comes, with the partitions of our own sessions.
pub struct Plain(SessionContext, Runtime);

impl Plain {
    /// Over the files of a data directory.
    pub fn open(dir: &Path) -> Self {
        // Threads of the calling one's niceness: that of the query threads.
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("threads");
        let context = SessionContext::new_with_config(SessionConfig::new().with_target_partitions(2));
        for table in ["spans", "events"] {
            let paths: Vec<String> = files(dir, table).iter().map(|path| path.display().to_string()).collect();
            let read =
                runtime.block_on(context.read_parquet(paths, ParquetReadOptions::default())).expect("they are read");
            context.register_table(table, read.into_view()).expect("it is registered");
        }
        Self(context, runtime)
    }

    /// The rows of an answer, and how long it took.
    pub fn ask(&self, sql: &str) -> (usize, Duration) {
        let start = Instant::now();
        let context = self.0.clone();
        let sql = sql.to_owned();
        // On its threads, as our own queries are: not on the one that waits.
        let batches = self.1.spawn(async move {
            let frame = context.sql(&sql).await.expect("it is planned");
            frame.collect().await.expect("it runs")
        });
        let batches = self.1.block_on(batches).expect("it ends");
        (batches.iter().map(|batch| batch.num_rows()).sum(), start.elapsed())
    }
}

/// The medians of the same scans by DuckDB with two threads, in ms; `None` if that Python has none.
pub fn duckdb(python: &str, dir: &Path) -> Option<Vec<f64>> {
    let list = |table| {
        let names: Vec<String> = files(dir, table).iter().map(|path| format!("'{}'", path.display())).collect();
        format!("CREATE VIEW {table} AS SELECT * FROM read_parquet([{}])", names.join(","))
    };
    let mut command = std::process::Command::new(python);
    command.args(["-c", include_str!("duckdb.py"), &list("spans"), &list("events")]);
    let output = command.args(SCANS.map(|(_, _, sql)| sql)).output().ok()?;
    if !output.status.success() {
        println!("duckdb: {}", String::from_utf8_lossy(&output.stderr).lines().last().unwrap_or_default());
        return None;
    }
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    Some(text.lines().filter_map(|line| line.trim().parse().ok()).collect())
}
