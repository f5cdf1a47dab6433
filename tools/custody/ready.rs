//! What is listened on, told to people and to programs once it answers.

use std::net::SocketAddr;
use std::path::Path;

use custody_ingest::Bound;

use crate::Failure;
use crate::observe::log::LogFormat;
use crate::process::replace;

/// What is listened on.
pub struct Addresses {
    /// OTLP.
    pub otlp: Bound,
    /// The HTTP API.
    pub http: SocketAddr,
    /// Flight SQL.
    pub flight_sql: SocketAddr,
}

/// Tells that the server runs.
pub fn announce(format: LogFormat, dir: &Path, addresses: &Addresses, reader: &custody_store::Reader, scheme: &str) {
    if format == LogFormat::Json {
        return log_start(dir, addresses, reader);
    }
    eprintln!("custody {}", env!("CARGO_PKG_VERSION"));
    eprintln!("  data directory  {}  ({})", dir.display(), crate::counted(reader.head().size, "record"));
    eprintln!("  public key      {}", reader.vkey());
    eprintln!("  OTLP gRPC       {}", addresses.otlp.grpc);
    eprintln!("  OTLP HTTP       {scheme}://{}/v1/traces, /v1/logs, /v1/metrics", addresses.otlp.http);
    eprintln!("  API and page    {scheme}://{}/", addresses.http);
    eprintln!("  Flight SQL      {}", addresses.flight_sql);
}

/// The same as [`announce`], for programs.
fn log_start(dir: &Path, addresses: &Addresses, reader: &custody_store::Reader) {
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        data_dir = %dir.display(),
        records = reader.head().size,
        origin = reader.origin(),
        vkey = reader.vkey(),
        otlp_grpc = %addresses.otlp.grpc,
        otlp_http = %addresses.otlp.http,
        http = %addresses.http,
        flight_sql = %addresses.flight_sql,
        "started"
    );
}

/// Writes the ready file.
pub fn write_ready_file(
    path: &Path,
    dir: &Path,
    addresses: &Addresses,
    reader: &custody_store::Reader,
) -> Result<(), Failure> {
    let ready = serde_json::json!({
        "otlp_grpc": addresses.otlp.grpc.to_string(), "otlp_http": addresses.otlp.http.to_string(),
        "http": addresses.http.to_string(), "flight_sql": addresses.flight_sql.to_string(),
        "data_dir": dir, "origin": reader.origin(), "vkey": reader.vkey(), "pid": std::process::id(),
    });
    replace(path, &format!("{ready}\n"))
}
