//! What a log takes on disk, indexes and proofs included, beside `zstd -3` of the same requests.

use custody_store::{Options, open};

use crate::log::prepare;
use crate::{requests_from, sized};

/// Bytes of requests of each line, about.
const BYTES: u64 = 128 << 20;

/// One line for each size of span and batch.
pub fn run() {
    println!("size: bytes a span; the log with all its indexes, beside the same requests by zstd -3");
    println!(
        "{:>7} {:>9} {:>9} {:>14} {:>16} {:>11} {:>13}",
        "batch", "sent", "the log", "zstd, each", "zstd, as one", "log / each", "log / as one"
    );
    for batch in [16, 128, 512, 8192] {
        line(batch, &requests_from(0, BYTES / 450 / batch, batch));
    }
    for payload in [200, 2_048, 65_536] {
        let batch = if payload > 4_096 { 128 } else { 512 };
        line(batch, &sized::requests((BYTES / payload as u64 / batch).max(1), batch, payload));
    }
}

fn line(batch: u64, requests: &[Vec<u8>]) {
    let spans = requests.len() as f64 * batch as f64;
    let sent: usize = requests.iter().map(Vec::len).sum();
    let zstd = |bytes: &[u8]| zstd::bulk::compress(bytes, 3).expect("there is room").len();
    let each: usize = requests.iter().map(|request| zstd(request)).sum();
    let one = zstd(&requests.concat());
    let log = log_bytes(requests);
    println!(
        "{batch:7} {:9.1} {:9.1} {:14.1} {:16.1} {:11.2} {:13.2}",
        sent as f64 / spans,
        log as f64 / spans,
        each as f64 / spans,
        one as f64 / spans,
        log as f64 / each as f64,
        log as f64 / one as f64,
    );
}

/// All tables of a log that has these requests and nothing else to do.
fn log_bytes(requests: &[Vec<u8>]) -> u64 {
    let dir = tempfile::tempdir().expect("a folder");
    let (mut writer, reader) = open(dir.path(), Options::default()).expect("the log opens");
    for group in requests.chunks(32) {
        writer.append(group.iter().map(|request| prepare(request)).collect()).expect("it is appended");
    }
    writer.checkpoint().expect("it is signed");
    drop((writer, reader));
    // Opened once more, the write-ahead log becomes tables.
    let (_writer, reader) = open(dir.path(), Options::default()).expect("the log opens");
    reader.sizes().expect("the tables are listed").into_iter().map(|(_, bytes)| bytes).sum()
}
