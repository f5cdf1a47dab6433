//! Events as objects: a directory of gzipped lines, and for each period a signed digest that names
//! them, their hashes and the digest before, as CloudTrail's do. docs/events.md has the layout.
//!
//! Periods are cut by the time at which the ledger took the records, which never goes back, and join
//! by seq. Objects are durable before the digest that names them. A crash before the digest leaves
//! objects that the next start writes again under the same names; what has a digest is never
//! touched again. So each event is in exactly one object that a digest names.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use custody_store::{Checkpoint, digest};
use datafusion::arrow::temporal_conversions::timestamp_ns_to_datetime;
use flate2::GzBuilder;
use sha2::{Digest as _, Sha256};

use super::{Filter, Format, LIMIT_MAX, Page, Wish, page};
use crate::error::{Error, ErrorKind};
use crate::serve::Served;

/// A period is exported when it has been over for so long: what was taken in it is visible then.
const GRACE: Duration = Duration::from_secs(2);

/// Bytes of events of one object, about, before compression.
const OBJECT_BYTES: usize = 32 << 20;

/// After an error it is tried again.
const RETRY: Duration = Duration::from_secs(10);

/// What is exported, and where to.
#[derive(Clone, Debug)]
pub struct Export {
    /// The directory.
    pub dir: PathBuf,
    /// How events are written.
    pub format: Format,
    /// The length of a period.
    pub every: Duration,
}

/// An object that is written.
struct Object {
    name: String,
    bytes: u64,
    sha256: String,
    first_seq: u64,
    last_seq: u64,
    events: usize,
}

/// Where the export stands: what the last digest says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Standing {
    /// When the period ended, in ns since the Unix epoch.
    end: u64,
    /// The first seq of the next period.
    next: u64,
    /// SHA-256 of the last digest file; none for the first.
    previous: Option<String>,
}

fn failed(what: &Path, error: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::Unavailable, format!("{} cannot be written or read: {error}", what.display()))
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64)
}

impl Export {
    /// Exports period after period, for ever. Errors are logged and tried again.
    pub async fn run(self, served: Served) {
        loop {
            match self.step(&served).await {
                Ok(true) => {}
                Ok(false) => tokio::time::sleep(self.until_next()).await,
                Err(error) => {
                    tracing::error!(%error, "events could not be exported; trying again");
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }

    fn length(&self) -> u64 {
        (self.every.as_nanos() as u64).max(1_000_000_000)
    }

    fn until_next(&self) -> Duration {
        let (now, grace) = (now(), GRACE.as_nanos() as u64);
        let end = (now.saturating_sub(grace) / self.length() + 1) * self.length() + grace;
        Duration::from_nanos(end - now) + Duration::from_millis(20)
    }

    /// Exports the next period that is over; false if there is none.
    async fn step(&self, served: &Served) -> Result<bool, Error> {
        let reader = served.engine.projection().reader();
        let standing = tokio::task::spawn_blocking({
            let dir = self.dir.clone();
            move || standing(&dir)
        });
        let standing = standing.await.map_err(|e| Error::internal(e.to_string()))??;
        let begin = match standing.end {
            0 => match reader.commitments_at(0).map_err(Error::store)? {
                Some(first) => first.ingest_time / self.length() * self.length(),
                None => return Ok(false),
            },
            end => end,
        };
        let end = (begin / self.length() + 1) * self.length();
        if end + GRACE.as_nanos() as u64 > now() {
            return Ok(false);
        }
        let next = reader.first_at(end).map_err(Error::store)?.max(standing.next);
        let mut visible = served.engine.projection().visible();
        visible.wait_for(|visible| *visible >= next).await.map_err(|e| Error::internal(e.to_string()))?;
        let objects = self.objects(served, begin, standing.next, next).await?;
        self.seal(served, begin, end, &standing, next, &objects).await?;
        Ok(true)
    }

    /// Writes the objects of a range.
    async fn objects(&self, served: &Served, begin: u64, from: u64, to: u64) -> Result<Vec<Object>, Error> {
        let mut objects = Vec::new();
        let mut wish = Wish {
            from,
            limit: LIMIT_MAX,
            bytes: page::PAGE_BYTES,
            filter: Arc::new(Filter::default()),
            format: self.format,
        };
        let (mut pages, mut bytes): (Vec<Arc<Page>>, usize) = (Vec::new(), 0);
        while wish.from < to {
            let page = page::page(served.engine.projection(), &wish).await?;
            bytes += page.bytes;
            wish.from = page.next;
            pages.push(page);
            if bytes >= OBJECT_BYTES || wish.from >= to {
                let (taken, folder, suffix) = (std::mem::take(&mut pages), self.dir.clone(), self.suffix());
                let write = move || write_object(&folder, begin, &suffix, &taken, to);
                let written =
                    tokio::task::spawn_blocking(write).await.map_err(|e| Error::internal(e.to_string()))??;
                objects.extend(written);
                bytes = 0;
            }
        }
        Ok(objects)
    }

    fn suffix(&self) -> String {
        let kind = if self.format.is_json() { "ndjson" } else { "log" };
        format!("{}.{kind}.gz", self.format.name())
    }

    /// Writes the digest of a period, signed.
    async fn seal(
        &self,
        served: &Served,
        begin: u64,
        end: u64,
        standing: &Standing,
        next: u64,
        objects: &[Object],
    ) -> Result<(), Error> {
        let reader = served.engine.projection().reader();
        let signer = served.events.seals.signer.clone();
        let signer = signer.ok_or_else(|| Error::internal("an export needs a signer"))?;
        let note = served.events.seals.covering(reader, next).await?;
        let unsigned = || Error::new(ErrorKind::Unavailable, "no checkpoint covers the period yet");
        let checkpoint = Checkpoint::parse_unverified(&note.ok_or_else(unsigned)?).map_err(Error::store)?;
        if checkpoint.size < next {
            return Err(unsigned());
        }
        let mut text = format!(
            "{}\norigin {}\nperiod {} {}\nformat {}\nseqs {} {next}\ncheckpoint {} {}\nprevious {}\n",
            digest::HEADER,
            reader.origin(),
            stamp(begin),
            stamp(end),
            self.format.name(),
            standing.next,
            checkpoint.size,
            STANDARD.encode(checkpoint.root),
            standing.previous.as_deref().unwrap_or("none"),
        );
        for o in objects {
            text.push_str(&format!(
                "object {} {} {} {} {} {}\n",
                o.name, o.bytes, o.sha256, o.first_seq, o.last_seq, o.events
            ));
        }
        let note = signer.digest(text).await?;
        let path = self.dir.join("digests").join(format!("{}.digest", stamp(begin)));
        let write = move || put(&path, note.as_bytes());
        tokio::task::spawn_blocking(write).await.map_err(|e| Error::internal(e.to_string()))?
    }
}

/// A time as it stands in names: 20261121T090000Z.
fn stamp(nanos: u64) -> String {
    let time = i64::try_from(nanos).ok().and_then(timestamp_ns_to_datetime);
    time.map_or_else(|| nanos.to_string(), |time| time.format("%Y%m%dT%H%M%SZ").to_string())
}

/// What the newest digest says.
fn standing(dir: &Path) -> Result<Standing, Error> {
    let folder = dir.join("digests");
    std::fs::create_dir_all(&folder).map_err(|e| failed(&folder, e))?;
    let names = std::fs::read_dir(&folder).map_err(|e| failed(&folder, e))?;
    let names = names.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let Some(last) = names.filter(|name| name.ends_with(".digest")).max() else { return Ok(Standing::default()) };
    let path = folder.join(last);
    let text = std::fs::read_to_string(&path).map_err(|e| failed(&path, e))?;
    let field = |name: &str, at: usize| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.and_then(|line| line.split(' ').nth(at))
    };
    let end = field("period", 1).and_then(parse_stamp);
    let (Some(end), Some(next)) = (end, field("seqs", 1).and_then(|seq| seq.parse().ok())) else {
        return Err(failed(&path, "it is not a digest of exported events"));
    };
    Ok(Standing { end, next, previous: Some(const_hex::encode(Sha256::digest(text.as_bytes()))) })
}

fn parse_stamp(stamp: &str) -> Option<u64> {
    let part = |range: std::ops::Range<usize>| stamp.get(range);
    let text = format!(
        "{}-{}-{}T{}:{}:{}Z",
        part(0..4)?,
        part(4..6)?,
        part(6..8)?,
        part(9..11)?,
        part(11..13)?,
        part(13..15)?
    );
    crate::attributes::parse_time(&text).and_then(|time| u64::try_from(time.0).ok())
}

/// Writes the events of some pages below a seq; none for no events.
fn write_object(dir: &Path, begin: u64, suffix: &str, pages: &[Arc<Page>], to: u64) -> Result<Option<Object>, Error> {
    let lines: Vec<_> = pages.iter().flat_map(|page| &page.lines).filter(|line| line.seq < to).collect();
    let (Some(first), Some(last)) = (lines.first(), lines.last()) else { return Ok(None) };
    let stamp = stamp(begin);
    let name = format!("events/{}/{}/{stamp}-{:020}.{suffix}", &stamp[..8], &stamp[9..11], first.seq);
    let path = dir.join(&name);
    // No time and no name in its head: the same events are the same bytes.
    let mut gzip = GzBuilder::new().mtime(0).write(Vec::new(), flate2::Compression::default());
    let write =
        lines.iter().try_for_each(|line| gzip.write_all(line.text.as_bytes()).and_then(|()| gzip.write_all(b"\n")));
    let bytes = write.and_then(|()| gzip.finish()).map_err(|e| failed(&path, e))?;
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(|e| failed(folder, e))?;
    }
    put(&path, &bytes)?;
    Ok(Some(Object {
        name,
        bytes: bytes.len() as u64,
        sha256: const_hex::encode(Sha256::digest(&bytes)),
        first_seq: first.seq,
        last_seq: last.seq,
        events: lines.len(),
    }))
}

/// Writes a file: it is there whole and durable, or not.
fn put(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let new = path.with_extension("new");
    let write = || {
        let mut file = std::fs::File::create(&new)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&new, path)?;
        path.parent().map_or(Ok(()), |dir| std::fs::File::open(dir)?.sync_all())
    };
    write().map_err(|e| failed(path, e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_are_read_back_and_sort_as_times_do() {
        let times = [0, 1_795_165_200_000_000_000, 1_795_168_800_000_000_000];
        for time in times {
            assert_eq!(parse_stamp(&stamp(time)), Some(time));
        }
        assert!(stamp(times[1]) < stamp(times[2]));
        assert_eq!(stamp(times[1]), "20261120T090000Z");
        assert_eq!(parse_stamp("no stamp"), None);
    }

    #[test]
    fn the_newest_digest_says_where_to_go_on() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(standing(dir.path()).unwrap(), Standing::default());
        let text = "custody events digest v1\nperiod 20261120T090000Z 20261120T100000Z\nseqs 0 17\n";
        put(&dir.path().join("digests/20261120T090000Z.digest"), text.as_bytes()).unwrap();
        let found = standing(dir.path()).unwrap();
        assert_eq!((found.next, found.end), (17, 1_795_168_800_000_000_000));
        assert_eq!(found.previous, Some(const_hex::encode(Sha256::digest(text))));
        put(&dir.path().join("digests/20261120T100000Z.digest"), b"torn").unwrap();
        assert!(standing(dir.path()).is_err());
    }
}
