//! Spans off the log itself, as they were sent, written out a piece at a time.
//!
//! Which spans there are is told by SQL, through the door of all callers; what is read here are the contents of just
//! those records. What is held is the block that is being read and one piece of the answer, however long a trace is.
//! A record that was erased since is left out. Tokens in attributes are concealed, as they are in rows.

use std::collections::VecDeque;
use std::time::Instant;

use axum::body::{Body, Bytes};
use axum::http::header;
use axum::response::{IntoResponse as _, Response};
use custody_proto::Signal;
use custody_proto::otlp::common::InstrumentationScope;
use custody_proto::otlp::resource::Resource;
use custody_proto::otlp::trace::Span;
use custody_store::Block;
use prost::Message as _;

use super::find::Found;
use crate::engine::Engine;
use crate::error::{Error, ErrorKind};

/// Bytes of one piece, about.
const PIECE_BYTES: usize = 128 << 10;

/// An answer of at most this size is sent whole.
const WHOLE_BYTES: usize = 1 << 20;

/// One span of an answer.
pub(super) struct Original<'a> {
    pub(super) seq: u64,
    /// Its content commitment.
    pub(super) hash: &'a [u8; 32],
    pub(super) span: &'a Span,
    pub(super) shared: &'a Shared,
}

/// What the spans of one resource and scope of a request have in common.
pub(super) struct Shared {
    /// The block that they are in, and which pair of it they are of.
    pub(super) group: (u64, usize),
    pub(super) resource: Resource,
    pub(super) scope: InstrumentationScope,
}

/// How an answer is written.
pub(super) trait Form: Send {
    /// What stands in front of all traces.
    fn head(&mut self, out: &mut Vec<u8>);
    /// Begins a trace.
    fn begin(&mut self, trace_id: &str, out: &mut Vec<u8>);
    /// A span of it.
    fn span(&mut self, original: &Original<'_>, out: &mut Vec<u8>);
    /// Ends its spans; gives the seqs of records whose resources are to be told now.
    fn middle(&mut self, out: &mut Vec<u8>) -> Vec<u64>;
    /// One of these resources.
    fn resource(&mut self, resource: &Resource, out: &mut Vec<u8>);
    /// Ends a trace.
    fn end(&mut self, out: &mut Vec<u8>);
    /// What stands behind all traces.
    fn tail(&mut self, out: &mut Vec<u8>);
}

/// What is written next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Head,
    Begin,
    Spans,
    Resources,
    End,
    Done,
}

/// An answer in the making. It blocks: ask for pieces where that is allowed.
pub(super) struct Pages {
    engine: Engine,
    traces: VecDeque<Found>,
    form: Box<dyn Form>,
    stage: Stage,
    /// The seqs that are being read, and how many of them were.
    seqs: Vec<u64>,
    at: usize,
    block: Option<Block>,
    shared: Option<Shared>,
}

impl Pages {
    /// Of some traces.
    pub(super) fn new(engine: &Engine, traces: Vec<Found>, form: impl Form + 'static) -> Self {
        Self {
            engine: engine.clone(),
            traces: traces.into(),
            form: Box::new(form),
            stage: Stage::Head,
            seqs: Vec::new(),
            at: 0,
            block: None,
            shared: None,
        }
    }

    /// The next piece; empty at the end.
    fn next(&mut self) -> Result<Vec<u8>, Error> {
        let mut out = Vec::new();
        while out.len() < PIECE_BYTES && self.stage != Stage::Done {
            self.stage = self.step(&mut out)?;
        }
        Ok(out)
    }

    fn step(&mut self, out: &mut Vec<u8>) -> Result<Stage, Error> {
        Ok(match self.stage {
            Stage::Head => {
                self.form.head(out);
                Stage::Begin
            }
            Stage::Begin => match self.traces.pop_front() {
                Some(found) => {
                    self.form.begin(&found.trace_id, out);
                    (self.seqs, self.at) = (found.seqs, 0);
                    Stage::Spans
                }
                None => {
                    self.form.tail(out);
                    Stage::Done
                }
            },
            Stage::Spans if self.at < self.seqs.len() => {
                self.read(out)?;
                Stage::Spans
            }
            Stage::Spans => {
                (self.seqs, self.at) = (self.form.middle(out), 0);
                Stage::Resources
            }
            Stage::Resources if self.at < self.seqs.len() => {
                self.read(out)?;
                Stage::Resources
            }
            Stage::Resources => Stage::End,
            Stage::End => {
                self.form.end(out);
                Stage::Begin
            }
            Stage::Done => Stage::Done,
        })
    }

    /// Writes the next record, or its resource.
    fn read(&mut self, out: &mut Vec<u8>) -> Result<(), Error> {
        let seq = self.seqs[self.at];
        self.at += 1;
        let is_here = |block: &Block| (block.commitments.first_seq..block.commitments.end_seq()).contains(&seq);
        if !self.block.as_ref().is_some_and(is_here) {
            self.shared = None;
            self.block = self.engine.projection().reader().block_at(seq).map_err(Error::store)?;
        }
        let block = self.block.as_ref().ok_or_else(|| Error::internal("the log has no such record"))?;
        let (commitments, i) = (&block.commitments, (seq - block.commitments.first_seq) as usize);
        let content = block.content.as_ref().filter(|content| i < content.records() && !content.is_erased(i));
        let is_told = self.stage == Stage::Resources;
        let Some(content) = content.filter(|_| commitments.signal == Signal::Traces) else {
            if is_told {
                // Its spans were told and name it.
                self.form.resource(&Resource::default(), out);
            }
            return Ok(());
        };
        let group = (commitments.first_seq, content.group(i));
        if self.shared.as_ref().is_none_or(|shared| shared.group != group) {
            // What the scanner let in can be read; a damaged log shows as empty fields and in `verify`.
            let resource = Resource::decode(content.resource(i)).unwrap_or_default();
            let scope = InstrumentationScope::decode(content.scope(i)).unwrap_or_default();
            self.shared = Some(Shared { group, resource, scope });
        }
        let Some(shared) = &self.shared else { return Ok(()) };
        if is_told {
            self.form.resource(&shared.resource, out);
            return Ok(());
        }
        let span = Span::decode(content.record(i)).unwrap_or_default();
        let hash = &commitments.commitments[i];
        self.form.span(&Original { seq, hash, span: &span, shared }, out);
        Ok(())
    }

    /// The next piece, made where blocking is allowed.
    async fn apart(mut self) -> Result<(Vec<u8>, Self), Error> {
        let engine = self.engine.clone();
        engine.apart_blocking(move || self.next().map(|piece| (piece, self))).await
    }
}

/// The answer: whole if it is short; else streamed, no faster than it is taken, and broken off if it takes too long.
///
/// # Errors
///
/// If the log cannot be read, before anything is sent.
pub(super) async fn answer(mut pages: Pages, until: Instant) -> Result<Response, Error> {
    let mut first = Vec::new();
    while first.len() < WHOLE_BYTES && pages.stage != Stage::Done {
        let (piece, rest) = pages.apart().await?;
        first.extend_from_slice(&piece);
        pages = rest;
    }
    let json = [(header::CONTENT_TYPE, "application/json")];
    if pages.stage == Stage::Done {
        return Ok((json, first).into_response());
    }
    let rest =
        futures::stream::try_unfold((Some(first), pages), move |(first, pages): (Option<Vec<u8>>, Pages)| async move {
            if let Some(first) = first {
                return Ok(Some((Bytes::from(first), (None, pages))));
            }
            if Instant::now() > until {
                return Err(Error::new(ErrorKind::Timeout, "the answer was not taken in time"));
            }
            let (piece, rest) = pages.apart().await?;
            Ok::<_, Error>((!piece.is_empty()).then(|| (Bytes::from(piece), (None, rest))))
        });
    Ok((json, Body::from_stream(rest)).into_response())
}
