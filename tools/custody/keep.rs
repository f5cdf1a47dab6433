//! What is kept and what is not: `custody erase`, `hold`, `retain`, `backup`,
//! `restore`, and the log's keys: `custody keys`, `custody signer`.

use std::io::{BufRead as _, BufReader, Write as _};
use std::num::NonZeroUsize;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::{Args, Subcommand};
use custody_query::format::plain;
use custody_query::ocsf::rfc3339;
use custody_query::rows::Time;
use custody_store::keys::{SigningKeys, answer_signer};
use custody_store::repair::repair;
use custody_store::{KeySource, Reader, backup};
use serde_json::Value;

use crate::control::{Control, Request};
use crate::select::Select;
use crate::source::Source;
use crate::{Failure, counted, print};

/// Which data directory.
#[derive(Args)]
pub struct Dir {
    /// The data directory; if a server runs on it, the server does the work.
    #[arg(long, default_value = "custody-data", value_name = "DIR")]
    data_dir: PathBuf,
}

/// Who decided it, and why: goes into the log.
#[derive(Args)]
pub struct Why {
    /// Why, in words; goes into the log.
    #[arg(long, value_name = "TEXT", value_parser = said)]
    reason: String,
    /// Who decided it; goes into the log beside the user that runs the command.
    #[arg(long, value_name = "NAME", value_parser = said)]
    actor: String,
}

/// A number of things, of which there must be one.
pub fn one_or_more(text: &str) -> Result<NonZeroUsize, String> {
    text.parse().map_err(|_| format!("{text} is not a whole number from 1 on"))
}

/// A text that says something: it goes into the log for good.
pub fn said(text: &str) -> Result<String, String> {
    if text.chars().all(|c| c.is_whitespace() || c.is_control()) {
        return Err("it is blank, and goes into the log for good".into());
    }
    Ok(text.to_owned())
}

impl Select {
    /// The records, and a way to change them.
    fn with_control(&self, dir: &Path) -> Result<(String, Control), Failure> {
        let mut control = Control::of(dir)?;
        if let Some(url) = control.url()? {
            return Ok((self.resolve(|| Ok(Source::at(url)))?.to_string(), control));
        }
        drop(control);
        let seqs = self.resolve(|| Source::of_directory(dir))?.to_string();
        Ok((seqs, Control::of(dir)?))
    }
}

/// Erase the content of records for good, and say so in the log.
///
/// Entries and proofs stay, so that the log still verifies; the record that is
/// appended says what was erased, by whom and why. Backups made earlier, bundles
/// and what SIEMs pulled are not in this command's reach.
#[derive(Args)]
pub struct Erase {
    #[command(flatten)]
    select: Select,
    #[command(flatten)]
    why: Why,
    #[command(flatten)]
    dir: Dir,
}

impl Erase {
    /// Erases.
    pub fn run(self) -> Result<(), Failure> {
        let (seqs, mut control) = self.select.with_control(&self.dir.data_dir)?;
        let request = Request::Erase { seqs, reason: self.why.reason, actor: self.why.actor };
        let answer = control.ask(&request, &mut std::io::sink())?;
        print_erased(&answer)
    }
}

fn records(answer: &Value) -> String {
    counted(answer["records"].as_u64().unwrap_or(0), "record")
}

fn print_erased(answer: &Value) -> Result<(), Failure> {
    let said_by: Vec<String> = answer["said_by"].as_array().into_iter().flatten().map(ToString::to_string).collect();
    print(&format!(
        "erased {} ({} bytes); {} were not to be erased or were already; {}\n",
        records(answer),
        answer["bytes"],
        answer["before"],
        if said_by.is_empty() {
            "nothing to say in the log".into()
        } else {
            format!("said by record {}", said_by.join(", "))
        }
    ))
}

/// Erase the content of all records that are older than this; entries and tiles stay.
#[derive(Args)]
pub struct Retain {
    /// Such as 90d, 36h, 30m or 0s.
    #[arg(long, value_name = "AGE", value_parser = age)]
    older_than: Duration,
    #[command(flatten)]
    why: Why,
    #[command(flatten)]
    dir: Dir,
}

/// Reads `90d`, `36h`, `30m`, `10s`.
pub fn age(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text} is not an age such as 90d, 36h, 30m or 10s");
    let (number, unit) = text.split_at(text.len().saturating_sub(1));
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let seconds = match unit {
        "d" => 86_400,
        "h" => 3_600,
        "m" => 60,
        "s" => 1,
        _ => return Err(wrong()),
    };
    number.checked_mul(seconds).map(Duration::from_secs).ok_or_else(wrong)
}

/// The time this long ago, in ns since the Unix epoch.
pub fn ago(age: Duration) -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    now.saturating_sub(age).as_nanos() as u64
}

impl Retain {
    /// Erases what is older.
    pub fn run(self) -> Result<(), Failure> {
        let mut control = Control::of(&self.dir.data_dir)?;
        let request = Request::Retain { before: ago(self.older_than), reason: self.why.reason, actor: self.why.actor };
        print_erased(&control.ask(&request, &mut std::io::sink())?)
    }
}

/// Legal holds: records that may not be erased.
#[derive(Subcommand)]
pub enum HoldCommand {
    /// Place a hold on records.
    Place {
        /// The hold's name.
        #[arg(long, value_name = "NAME", value_parser = said)]
        id: String,
        #[command(flatten)]
        select: Select,
        #[command(flatten)]
        why: Why,
        #[command(flatten)]
        dir: Dir,
    },
    /// Release a hold.
    Release {
        /// The hold's name.
        #[arg(long, value_name = "NAME")]
        id: String,
        #[command(flatten)]
        why: Why,
        #[command(flatten)]
        dir: Dir,
    },
    /// List the holds in force.
    List {
        #[command(flatten)]
        dir: Dir,
    },
}

impl HoldCommand {
    /// Places, releases or lists.
    pub fn run(self) -> Result<(), Failure> {
        match self {
            Self::Place { id, select, why, dir } => {
                let (seqs, mut control) = select.with_control(&dir.data_dir)?;
                let request = Request::Hold { id: id.clone(), seqs, place: true, reason: why.reason, actor: why.actor };
                let answer = control.ask(&request, &mut std::io::sink())?;
                let (id, records) = (plain(&id), records(&answer));
                print(&format!("hold {id} on {records}, said by record {}\n", answer["said_by"][0]))
            }
            Self::Release { id, why, dir } => {
                let mut control = Control::of(&dir.data_dir)?;
                let (reason, actor) = (why.reason, why.actor);
                let request = Request::Hold { id: id.clone(), seqs: String::new(), place: false, reason, actor };
                let answer = control.ask(&request, &mut std::io::sink())?;
                print(&format!("hold {} released, said by record {}\n", plain(&id), answer["said_by"][0]))
            }
            Self::List { dir } => {
                let reader = Reader::open(&dir.data_dir).map_err(Failure::unable)?;
                for hold in reader.holds().map_err(Failure::unable)? {
                    // A line of them stays one, also where it is stored.
                    let (id, reason) = (plain(&hold.id), plain(&hold.reason));
                    print(&format!("{id}\t{}\t{reason}\trecord {}\n", hold.seqs, hold.placed_by))?;
                }
                Ok(())
            }
        }
    }
}

/// Add a backup to a directory, while the server runs; files of earlier backups are not copied again.
#[derive(Args)]
pub struct Backup {
    /// The directory of backups.
    #[arg(long, value_name = "DIR")]
    to: PathBuf,
    /// Copy the signing keys too. Whoever has them can sign in the log's name.
    #[arg(long)]
    with_keys: bool,
    /// Keep only the newest N backups.
    #[arg(long, value_name = "N", value_parser = one_or_more)]
    keep: Option<NonZeroUsize>,
    #[command(flatten)]
    dir: Dir,
}

impl Backup {
    /// Makes a backup.
    pub fn run(self) -> Result<(), Failure> {
        let to = std::path::absolute(&self.to).map_err(Failure::unable)?;
        let request = Request::Backup { to, with_keys: self.with_keys, keep: self.keep.map(NonZeroUsize::get) };
        let answer = Control::of(&self.dir.data_dir)?.ask(&request, &mut std::io::sink())?;
        print(&format!("backup {} of {}, {} bytes\n", answer["id"], records(&answer), answer["bytes"]))
    }
}

/// Restore a backup to a new data directory.
#[derive(Args)]
pub struct Restore {
    /// The directory of backups.
    #[arg(long, value_name = "DIR")]
    from: PathBuf,
    /// Which backup [default: the newest].
    #[arg(long, value_name = "N")]
    id: Option<u32>,
    /// The new data directory.
    #[arg(long, value_name = "DIR", required_unless_present = "list")]
    data_dir: Option<PathBuf>,
    /// List the backups instead.
    #[arg(long)]
    list: bool,
}

impl Restore {
    /// Restores, or lists.
    pub fn run(self) -> Result<(), Failure> {
        if self.list {
            for backup in backup::list(&self.from).map_err(Failure::wrong)? {
                let time = rfc3339(Time(backup.time.saturating_mul(1_000_000_000)));
                print(&format!("{}\t{} bytes\t{time}\n", backup.id, backup.bytes))?;
            }
            return Ok(());
        }
        let Some(dir) = self.data_dir else { return Err(Failure::wrong("name the new directory with --data-dir")) };
        let id = backup::restore(&self.from, self.id, &dir).map_err(Failure::wrong)?;
        let dir = dir.display();
        print(&format!("restored backup {id} to {dir}; verify it with: custody verify --data-dir {dir}\n"))
    }
}

/// Repair what can be made again from the rest of a log: indexes, tree nodes, a checkpoint
/// file that is gone. Records and entries cannot; for those there are backups.
///
/// Says what it would do, and does nothing without --yes.
#[derive(Args)]
pub struct Repair {
    /// The data directory; no server may be running on it.
    #[arg(long, default_value = "custody-data", value_name = "DIR")]
    data_dir: PathBuf,
    /// Do it.
    #[arg(long)]
    yes: bool,
}

impl Repair {
    /// Looks, and repairs.
    pub fn run(self) -> Result<(), Failure> {
        let keys = std::env::var("CUSTODY_SIGNING_KEY").map_or(KeySource::Directory, KeySource::Text);
        let plan = repair(&self.data_dir, &keys, self.yes).map_err(Failure::unable)?;
        if plan.is_empty() {
            return print("nothing to repair; `custody verify` says whether the log is sound\n");
        }
        let (did, can) = if self.yes { ("made again", "") } else { ("would make again", "; do it with --yes") };
        print(&format!("{did}: {} tree nodes, {} index rows{can}\n", plan.nodes, plan.index_rows))?;
        if plan.checkpoint {
            let text = "the checkpoint file is gone: whether the log lost records behind what is here cannot be told \
                        from this directory; compare it with a checkpoint that somebody else kept";
            print(&format!("{}: {text}\n", if self.yes { "signed anew" } else { "would sign anew" }))?;
        }
        Ok(())
    }
}

/// The log's signing keys.
#[derive(Subcommand)]
pub enum KeysCommand {
    /// Sign with new keys from now on. The log says so, signed by the former keys.
    Rotate {
        /// A file with the new keys [default: new ones are made].
        #[arg(long, value_name = "FILE")]
        file: Option<PathBuf>,
        #[command(flatten)]
        why: Why,
        #[command(flatten)]
        dir: Dir,
    },
    /// Make keys for a log, a line each, on standard output: for --signing-key or a signer.
    New {
        /// The log's origin.
        #[arg(long, value_name = "NAME")]
        origin: String,
    },
}

impl KeysCommand {
    /// Rotates, or makes keys.
    pub fn run(self) -> Result<(), Failure> {
        match self {
            Self::Rotate { file, why, dir } => {
                let file = file.map(std::path::absolute).transpose().map_err(Failure::unable)?;
                let request = Request::Rotate { file, reason: why.reason, actor: why.actor };
                let answer = Control::of(&dir.data_dir)?.ask(&request, &mut std::io::sink())?;
                print(&format!("new keys sign from record {} on:\n", answer["said_by"][0]))?;
                let keys = answer["vkeys"].as_array().into_iter().flatten().filter_map(Value::as_str);
                keys.into_iter().try_for_each(|key| print(&format!("{key}\n")))
            }
            Self::New { origin } => {
                let (_, text) = SigningKeys::generate(&origin).map_err(Failure::wrong)?;
                print(&text)
            }
        }
    }
}

/// Hold a log's keys and sign for it over a Unix socket: run it as another user.
///
/// An HSM or KMS is attached by any program that speaks the same few lines
/// (docs/operations.md, "Signing elsewhere").
#[derive(Args)]
pub struct Signer {
    /// The keys, as `custody keys new` makes them; mode 0600.
    #[arg(long, value_name = "FILE")]
    keys: PathBuf,
    /// The socket to listen on.
    #[arg(long, value_name = "SOCKET")]
    socket: PathBuf,
}

impl Signer {
    /// Serves until it is killed.
    pub fn run(self) -> Result<(), Failure> {
        crate::security::no_core_dumps();
        let text = std::fs::read_to_string(&self.keys)
            .map_err(|e| Failure::unable(format!("{}: {e}", self.keys.display())))?;
        let keys = SigningKeys::parse(&text, &self.keys.display().to_string()).map_err(Failure::unable)?;
        let _ = std::fs::remove_file(&self.socket);
        let fail = |e: std::io::Error| Failure::unable(format!("{}: {e}", self.socket.display()));
        let listener = std::os::unix::net::UnixListener::bind(&self.socket).map_err(fail)?;
        std::fs::set_permissions(&self.socket, std::fs::Permissions::from_mode(0o660)).map_err(fail)?;
        eprintln!("custody signer: signs for {} at {}", keys.name(), self.socket.display());
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { continue };
            let _ = stream.set_read_timeout(Some(Duration::from_secs(10)));
            let mut line = String::new();
            let mut limited = BufReader::new(std::io::Read::take(&stream, 1 << 20));
            if limited.read_line(&mut line).is_ok() {
                let _ = stream.write_all(answer_signer(&keys, line.trim_end()).as_bytes());
            }
        }
        Ok(())
    }
}
