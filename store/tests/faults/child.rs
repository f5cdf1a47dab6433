//! The process that dies: it appends a seed's stream and says what was promised.

use std::io::Write as _;
use std::path::PathBuf;

use custody_store::{Checkpoint, Error, ErrorKind, Options, Reader, Writer, open};

use crate::stream::{Request, Step, Stream};

/// Runs the task of the environment, if there is one: `stream <seed> <life>`.
pub fn run() {
    let Ok(task) = std::env::var("CUSTODY_FAULT_CHILD") else { return };
    let dir = PathBuf::from(std::env::var("CUSTODY_FAULT_DATA").unwrap());
    let words: Vec<u64> = task.split(' ').map(|w| w.parse().unwrap()).collect();
    let [seed, life] = words[..] else { panic!("not a task: {task}") };
    say("");
    let mut stream = Stream::new(seed);
    let steps = (0..=life).map(|_| stream.life()).last().unwrap();
    let mut dead = false;
    let mut log = match Log::open(dir.clone()) {
        Ok(log) => log,
        Err(error) => return say(&format!("cannot open: {error}")),
    };
    for step in steps {
        let Err(error) = log.take(step) else { continue };
        say(&format!("failed: {error}"));
        log.stays_dead();
        // Once more after the first failure, in a process whose page cache has seen it.
        if std::mem::replace(&mut dead, true) {
            return;
        }
        drop(log);
        log = match Log::open(dir.clone()) {
            Ok(log) => log,
            Err(error) => return say(&format!("cannot open again: {error}")),
        };
    }
}

fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}").and_then(|()| out.flush()).expect("the parent listens");
}

struct Log {
    dir: PathBuf,
    open: Option<(Writer, Reader)>,
}

impl Log {
    fn open(dir: PathBuf) -> Result<Self, Error> {
        let mut log = Self { dir, open: None };
        log.reopen()?;
        Ok(log)
    }

    fn reopen(&mut self) -> Result<(), Error> {
        self.open = None;
        let options = Options { origin: Some("example.com/faults".into()), ..Options::default() };
        self.open = Some(open(&self.dir, options)?);
        self.say_checkpoint();
        Ok(())
    }

    fn parts(&mut self) -> (&mut Writer, &Reader) {
        let (writer, reader) = self.open.as_mut().expect("the log is open");
        (writer, reader)
    }

    fn take(&mut self, step: Step) -> Result<(), Error> {
        match step {
            Step::Append(batch) => self.append(&batch)?,
            Step::Checkpoint => {
                self.parts().0.checkpoint()?;
                self.say_checkpoint();
            }
            Step::Reopen => self.reopen()?,
        }
        Ok(())
    }

    fn append(&mut self, batch: &[Request]) -> Result<(), Error> {
        self.parts().0.append(batch.iter().map(Request::prepare).collect())?;
        batch.iter().for_each(|request| say(&format!("ack {}", request.id)));
        Ok(())
    }

    fn say_checkpoint(&mut self) {
        let note = self.parts().1.checkpoint().unwrap().expect("an open log has a checkpoint");
        let checkpoint = Checkpoint::parse_unverified(&note).unwrap();
        say(&format!("ckpt {} {}", checkpoint.size, const_hex::encode(checkpoint.root)));
    }

    /// After any failure nothing more is taken, and nothing more is signed.
    fn stays_dead(&mut self) {
        let Some((writer, _)) = &mut self.open else { return };
        let late = Stream::requests(u64::MAX, 1).remove(0);
        for error in [writer.append(vec![late.prepare()]).err(), writer.checkpoint().err()] {
            assert_eq!(error.expect("a failed writer takes nothing").kind(), ErrorKind::Fatal);
        }
    }
}
