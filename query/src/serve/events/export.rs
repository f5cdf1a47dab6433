//! Events as objects: gzipped lines, and for each period a signed digest that names them, their
//! hashes and the digest before, as CloudTrail's do. docs/events.md has the layout.
//!
//! Periods are cut by the time at which the ledger took the records, which never goes back, and join
//! by seq. Objects are durable before the digest that names them. A crash before the digest leaves
//! objects that the next start finds under the same names; where what is there is something else, it
//! stays, and the object gets another name. So nothing is ever written over, and each event is in
//! exactly one object that a digest names. Where the export stands is what the newest digest says:
//! nothing else is kept, and whoever exports to the same place goes on from there.

use std::io::Write as _;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use custody_store::{Checkpoint, digest};
use datafusion::arrow::temporal_conversions::timestamp_ns_to_datetime;
use flate2::GzBuilder;
use sha2::{Digest as _, Sha256};

use super::shelf::{Put, Shelf};
use super::{Filter, Format, LIMIT_MAX, Page, Wish, page};
use crate::error::{Error, ErrorKind};
use crate::serve::Served;

/// A period is exported when it has been over for so long: what was taken in it is visible then.
const GRACE: Duration = Duration::from_secs(2);

/// Bytes of events of one object, about, before compression.
const OBJECT_BYTES: usize = 32 << 20;

/// After an error it is tried again, first soon and then less often.
const RETRY_MIN: Duration = Duration::from_secs(5);
const RETRY_MAX: Duration = Duration::from_secs(300);

/// What is exported, and where to.
#[derive(Clone, Debug)]
pub struct Export {
    /// Where to.
    pub shelf: Arc<dyn Shelf>,
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
    /// Whose events they are; empty for none yet.
    origin: String,
    /// When the period ended, in ns since the Unix epoch.
    end: u64,
    /// The first seq of the next period.
    next: u64,
    /// SHA-256 of the last digest file; none for the first.
    previous: Option<String>,
}

impl Standing {
    /// Whether this log can have come so far: whoever may write to the place can put anything there.
    fn fits(&self, origin: &str, size: u64, latest: u64) -> Result<(), Error> {
        let wrong = |why: String| Err(Error::new(ErrorKind::Invalid, format!("the newest digest there {why}")));
        if !self.origin.is_empty() && self.origin != origin {
            return wrong(format!("is of events of {}, another log", self.origin));
        }
        if self.next > size {
            return wrong(format!("covers {} records, and this log has {size}", self.next));
        }
        if self.end > latest {
            return wrong("is of a time that is still to come".into());
        }
        Ok(())
    }
}

fn failed(what: &str, error: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::Unavailable, format!("{what}: {error}"))
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64)
}

impl Export {
    /// Exports period after period, for ever. Errors are logged and tried again.
    pub async fn run(self, served: Served) {
        let (mut standing, mut retry) = (None, RETRY_MIN);
        loop {
            match self.step(&served, &mut standing, now()).await {
                Ok(true) => retry = RETRY_MIN,
                Ok(false) => tokio::time::sleep(self.until_next()).await,
                Err(error) => {
                    // Whatever was done is read off the place.
                    standing = None;
                    let seconds = retry.as_secs();
                    tracing::error!(%error, seconds, "events could not be exported; it is tried again");
                    tokio::time::sleep(retry).await;
                    retry = (retry * 2).min(RETRY_MAX);
                }
            }
        }
    }

    /// Exports the periods that were over at a time, in ns since the Unix epoch, when all that came in
    /// them was visible. Gives how many they were.
    ///
    /// # Errors
    ///
    /// What is exported until then is; another call goes on.
    pub async fn all_until(&self, served: &Served, time: u64) -> Result<u64, Error> {
        let (mut standing, mut periods) = (None, 0);
        while self.step(served, &mut standing, time).await? {
            periods += 1;
        }
        Ok(periods)
    }

    fn length(&self) -> u64 {
        (self.every.as_nanos() as u64).max(1_000_000_000)
    }

    fn until_next(&self) -> Duration {
        let (now, grace) = (now(), GRACE.as_nanos() as u64);
        let end = (now.saturating_sub(grace) / self.length() + 1) * self.length() + grace;
        Duration::from_nanos(end - now) + Duration::from_millis(20)
    }

    /// Exports the next period that is over, and says where that stands; false if there is none.
    async fn step(&self, served: &Served, known: &mut Option<Standing>, now: u64) -> Result<bool, Error> {
        let reader = served.engine.projection().reader();
        let standing = match known.as_ref() {
            Some(standing) => standing.clone(),
            None => known.insert(self.apart(standing).await?).clone(),
        };
        standing.fits(reader.origin(), reader.head().size, now.saturating_add(self.length()))?;
        let begin = match standing.end {
            0 => match reader.commitments_at(0).map_err(Error::store)? {
                Some(first) => first.ingest_time / self.length() * self.length(),
                None => return Ok(false),
            },
            end => end,
        };
        let end = (begin / self.length() + 1) * self.length();
        if end.saturating_add(GRACE.as_nanos() as u64) > now {
            return Ok(false);
        }
        let next = reader.first_at(end).map_err(Error::store)?.max(standing.next);
        let mut visible = served.engine.projection().visible();
        visible.wait_for(|visible| *visible >= next).await.map_err(|e| Error::internal(e.to_string()))?;
        let objects = self.objects(served, begin, standing.next, next).await?;
        *known = Some(self.seal(served, (begin, end), &standing, next, &objects).await?);
        Ok(true)
    }

    /// Does what blocks with the shelf.
    async fn apart<T: Send + 'static>(
        &self,
        work: impl FnOnce(&dyn Shelf) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let shelf = Arc::clone(&self.shelf);
        let done = tokio::task::spawn_blocking(move || work(&*shelf)).await;
        done.map_err(|e| Error::internal(e.to_string()))?
    }

    /// Writes the objects of a range.
    async fn objects(&self, served: &Served, begin: u64, from: u64, to: u64) -> Result<Vec<Object>, Error> {
        let mut objects = Vec::new();
        let mut wish = Wish {
            from,
            to: u64::MAX,
            limit: LIMIT_MAX,
            bytes: page::PAGE_BYTES,
            filter: Arc::new(Filter::default()),
            format: self.format,
        };
        let (mut pages, mut bytes): (Vec<Page>, usize) = (Vec::new(), 0);
        while wish.from < to {
            let page = page::page(served.engine.projection(), &wish).await?;
            bytes += page.bytes;
            wish.from = page.next;
            pages.push(page);
            if bytes >= OBJECT_BYTES || wish.from >= to {
                let (taken, suffix) = (std::mem::take(&mut pages), self.suffix());
                objects.extend(self.apart(move |shelf| write_object(shelf, begin, &suffix, &taken, to)).await?);
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
        (begin, end): (u64, u64),
        standing: &Standing,
        next: u64,
        objects: &[Object],
    ) -> Result<Standing, Error> {
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
        let previous = Some(const_hex::encode(Sha256::digest(note.as_bytes())));
        let name = format!("{DIGESTS}{}.digest", stamp(begin));
        let put = self.apart({
            let name = name.clone();
            move |shelf| shelf.put(&name, note.as_bytes())
        });
        match put.await? {
            Put::There => Ok(Standing { origin: reader.origin().to_owned(), end, next, previous }),
            // Written just now by another that exports to this place, or by us before an answer was lost.
            Put::Other => Err(failed(&name, "another digest of this period is there already, and stays")),
        }
    }
}

/// The folder of digests.
const DIGESTS: &str = "digests/";

/// A time as it stands in names: 20261121T090000Z.
fn stamp(nanos: u64) -> String {
    let time = i64::try_from(nanos).ok().and_then(timestamp_ns_to_datetime);
    time.map_or_else(|| nanos.to_string(), |time| time.format("%Y%m%dT%H%M%SZ").to_string())
}

/// What the newest digest says.
fn standing(shelf: &dyn Shelf) -> Result<Standing, Error> {
    let names = shelf.names(DIGESTS)?;
    let Some(last) = names.into_iter().filter(|name| name.ends_with(".digest")).max() else {
        return Ok(Standing::default());
    };
    let bytes = shelf.read(&last)?.ok_or_else(|| failed(&last, "it was there, and is no more"))?;
    let text = String::from_utf8_lossy(&bytes);
    let field = |name: &str, at: usize| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.and_then(|line| line.split(' ').nth(at))
    };
    let end = field("period", 1).and_then(parse_stamp);
    let next = field("seqs", 1).and_then(|seq| seq.parse().ok());
    let (Some(origin), Some(end), Some(next)) = (field("origin", 0), end, next) else {
        return Err(failed(&last, "it is not a digest of exported events"));
    };
    let previous = Some(const_hex::encode(Sha256::digest(&bytes)));
    Ok(Standing { origin: origin.to_owned(), end, next, previous })
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
fn write_object(shelf: &dyn Shelf, begin: u64, suffix: &str, pages: &[Page], to: u64) -> Result<Option<Object>, Error> {
    let lines: Vec<_> = pages.iter().flat_map(|page| &page.lines).filter(|line| line.seq < to).collect();
    let (Some(first), Some(last)) = (lines.first(), lines.last()) else { return Ok(None) };
    let stamp = stamp(begin);
    let name = format!("events/{}/{}/{stamp}-{:020}", &stamp[..8], &stamp[9..11], first.seq);
    // No time and no name in its head: the same events are the same bytes.
    let mut gzip = GzBuilder::new().mtime(0).write(Vec::new(), flate2::Compression::default());
    let write =
        lines.iter().try_for_each(|line| gzip.write_all(line.text.as_bytes()).and_then(|()| gzip.write_all(b"\n")));
    let bytes = write.and_then(|()| gzip.finish()).map_err(|e| failed(&name, e))?;
    let sha256 = const_hex::encode(Sha256::digest(&bytes));
    // Cut otherwise before a crash, or erased since: then it has its hash in its name.
    let plain = format!("{name}.{suffix}");
    let name = match shelf.put(&plain, &bytes)? {
        Put::There => plain,
        Put::Other => {
            let other = format!("{name}-{}.{suffix}", &sha256[..16]);
            match shelf.put(&other, &bytes)? {
                Put::There => other,
                Put::Other => return Err(failed(&other, "something else is there, and stays")),
            }
        }
    };
    let (first_seq, last_seq) = (first.seq, last.seq);
    Ok(Some(Object { name, bytes: bytes.len() as u64, sha256, first_seq, last_seq, events: lines.len() }))
}

#[cfg(test)]
mod tests {
    use super::super::lines::Line;
    use super::super::shelf::Directory;
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
        let shelf = Directory(dir.path().to_owned());
        assert_eq!(standing(&shelf).unwrap(), Standing::default());
        let text = "custody events digest v1\norigin log\nperiod 20261120T090000Z 20261120T100000Z\nseqs 0 17\n";
        shelf.put("digests/20261120T090000Z.digest", text.as_bytes()).unwrap();
        let found = standing(&shelf).unwrap();
        assert_eq!((found.origin.as_str(), found.next, found.end), ("log", 17, 1_795_168_800_000_000_000));
        assert_eq!(found.previous, Some(const_hex::encode(Sha256::digest(text))));
        assert!(found.fits("log", 17, found.end).is_ok() && Standing::default().fits("log", 0, 0).is_ok());
        for (origin, size, latest) in [("other", 17, found.end), ("log", 16, found.end), ("log", 17, found.end - 1)] {
            assert_eq!(found.fits(origin, size, latest).unwrap_err().kind, ErrorKind::Invalid);
        }
        shelf.put("digests/20261120T100000Z.digest", b"torn").unwrap();
        assert!(standing(&shelf).is_err());
    }

    #[test]
    fn an_object_whose_name_is_taken_gets_another_and_what_is_there_stays() {
        let dir = tempfile::tempdir().unwrap();
        let shelf = Directory(dir.path().to_owned());
        let page = |texts: &[&str]| {
            let mut page = Page::new(0, 100, 1 << 20);
            for (seq, text) in texts.iter().enumerate() {
                page.take(Arc::new(Line { seq: seq as u64, text: (*text).to_owned(), ..Line::default() }));
            }
            vec![page]
        };
        let write = |texts: &[&str]| write_object(&shelf, 0, "raw.ndjson.gz", &page(texts), 9).unwrap().unwrap();
        let (one, again, other) = (write(&["a", "b"]), write(&["a", "b"]), write(&["a"]));
        assert_eq!((&one.name, &one.sha256), (&again.name, &again.sha256));
        assert_ne!(one.name, other.name);
        assert!(other.name.contains(&other.sha256[..16]), "{}", other.name);
        assert_eq!(const_hex::encode(Sha256::digest(shelf.read(&one.name).unwrap().unwrap())), one.sha256);
        assert_eq!(shelf.names("events/").unwrap().len(), 2);
    }
}
