//! Rows in the making: of each record of a block its row of `spans`, `logs` or `metrics`, and its events.
//! What the records of one group share is read once, and columns have room for what the step before had.

use std::mem::swap;

use custody_proto::Signal;
use custody_proto::otlp::metrics::Metric;
use custody_proto::wire::{InstrumentationScope, KeyValue, LogRecord, Resource, Span};
use custody_store::{Block, Content};
use datafusion::arrow::record_batch::RecordBatch;
use prost::Message as _;

use crate::attributes::write_attributes;
use crate::event::{EventBuilder, EventRow};
use crate::mapping::{RecordContext, bare_log, bare_span};
use crate::metrics::{MetricBuilder, MetricRow, metric_row};
use crate::rows::{Extent, Roomy, Time};
use crate::segments::{Table, Tail};
use crate::tables::{LogBuilder, Owner, SpanBuilder, Texts};
use crate::tenancy::Tenancy;

/// How many rows some records gave, and of what size, by table.
#[derive(Clone, Debug, Default)]
pub(super) struct Shape {
    pub(super) records: usize,
    tables: [Extent; 4],
}

/// Rows in the making.
#[derive(Default)]
pub(crate) struct Rows {
    spans: SpanBuilder,
    logs: LogBuilder,
    metrics: MetricBuilder,
    events: EventBuilder,
    /// The attributes of one record as JSON, for its row and for its events.
    json: String,
    /// Only the rows of this table; of all, if none is named.
    only: Option<Table>,
}

/// What the records of one group share, read once.
struct Shared<'a> {
    group: usize,
    resource: Resource<'a>,
    texts: Texts,
    tenancy: Tenancy,
    scope: InstrumentationScope<'a>,
}

impl<'a> Shared<'a> {
    fn of(content: &'a Content, i: usize) -> Self {
        // What the scanner let in can be read; a damaged log shows as empty fields and in `verify`.
        let resource = Resource::read(content.resource(i)).unwrap_or_default();
        let scope = InstrumentationScope::read(content.scope(i)).unwrap_or_default();
        let tenancy = Tenancy::of_resource(&resource);
        Self { group: content.group(i), texts: Texts::of(&resource), tenancy, resource, scope }
    }
}

/// What the records of a block are read into, one after the other.
#[derive(Default)]
struct Read<'a> {
    span: Span<'a>,
    log: LogRecord<'a>,
}

impl Rows {
    /// To make the rows of one table alone.
    pub(crate) fn of(table: Table) -> Self {
        Self { only: Some(table), ..Self::default() }
    }

    fn makes(&self, table: Table) -> bool {
        self.only.is_none_or(|only| only == table)
    }

    /// With room for the rows of so many records like those before.
    pub(super) fn with_room(records: usize, like: &Shape) -> Self {
        fn room<B: Roomy>(records: usize, like: &Shape, table: Table) -> B {
            let former = &like.tables[table as usize];
            // A little more than before, as it is never quite the same.
            let rows = (former.rows * records).div_ceil(like.records.max(1));
            B::with_room(rows + rows / 16, former)
        }
        Self {
            spans: room(records, like, Table::Spans),
            logs: room(records, like, Table::Logs),
            metrics: room(records, like, Table::Metrics),
            events: room(records, like, Table::Events),
            json: String::new(),
            only: None,
        }
    }

    /// Moves the rows of so many records behind those of a tail; gives the events among them, and how much it was.
    pub(super) fn finish(mut self, records: usize, tail: &mut Tail) -> (RecordBatch, Shape) {
        let (spans, logs) = (self.spans.finish(), self.logs.finish());
        let (metrics, events) = (self.metrics.finish(), self.events.finish());
        let tables = [
            SpanBuilder::extent(&spans),
            LogBuilder::extent(&logs),
            MetricBuilder::extent(&metrics),
            EventBuilder::extent(&events),
        ];
        for (table, batch) in Table::ALL.into_iter().zip([spans, logs, metrics, events.clone()]) {
            tail.add(table, batch);
        }
        (events, Shape { records, tables })
    }

    /// Takes the rows of one table.
    pub(crate) fn take(mut self, table: Table) -> RecordBatch {
        match table {
            Table::Spans => self.spans.finish(),
            Table::Logs => self.logs.finish(),
            Table::Metrics => self.metrics.finish(),
            Table::Events => self.events.finish(),
        }
    }

    /// Adds the rows of a block; an erased one has none.
    pub(super) fn block(&mut self, block: &Block) {
        let records = block.content.as_ref().map_or(0, Content::records);
        self.records(block, 0..records);
    }

    /// Adds the rows of some records of a block.
    pub(crate) fn records(&mut self, block: &Block, wanted: impl Iterator<Item = usize>) {
        let Some(content) = &block.content else { return };
        let mut shared: Option<Shared<'_>> = None;
        let mut read = Read::default();
        for i in wanted.filter(|&i| i < content.records() && !content.is_erased(i)) {
            let fits = shared.as_ref().is_some_and(|s| s.group == content.group(i));
            let shared = if fits { shared.as_ref() } else { Some(&*shared.insert(Shared::of(content, i))) };
            let Some(shared) = shared else { continue };
            let mut hex = const_hex::Buffer::<32>::new();
            let context = RecordContext {
                seq: block.commitments.first_seq + i as u64,
                record_hash: hex.format(&block.commitments.commitments[i]),
                ingest_time: Time(i64::try_from(block.commitments.ingest_time).unwrap_or(i64::MAX)),
                submitter: content.identity(),
                resource: &shared.resource,
                scope: &shared.scope,
            };
            let record = content.record(i);
            match block.commitments.signal {
                Signal::Traces if read.span.refill(record).is_ok() => self.span(&context, shared, &read.span),
                Signal::Logs if read.log.refill(record).is_ok() => self.log(&context, shared, &read.log),
                Signal::Metrics if self.makes(Table::Metrics) => self.metric(&context, shared, record),
                _ => {}
            }
        }
    }

    fn span(&mut self, context: &RecordContext<'_>, shared: &Shared<'_>, span: &Span<'_>) {
        let mut events = bare_span(context, span);
        let Tenancy { tenant, workspace } = shared.tenancy.of_record(&span.attributes, &mut events);
        self.write(Table::Spans, &events, &span.attributes);
        if self.makes(Table::Spans) {
            let source = events.first().map(|event| event.source.as_str());
            let owner = Owner { tenant: tenant.as_deref(), workspace: workspace.as_deref(), source };
            self.spans.append(context, &shared.texts, owner, span, &self.json);
        }
        self.push(events);
    }

    fn log(&mut self, context: &RecordContext<'_>, shared: &Shared<'_>, log: &LogRecord<'_>) {
        let mut events = bare_log(context, log);
        let Tenancy { tenant, workspace } = shared.tenancy.of_record(&log.attributes, &mut events);
        self.write(Table::Logs, &events, &log.attributes);
        if self.makes(Table::Logs) {
            let source = events.first().map(|event| event.source.as_str());
            let owner = Owner { tenant: tenant.as_deref(), workspace: workspace.as_deref(), source };
            self.logs.append(context, &shared.texts, owner, log, &self.json);
        }
        self.push(events);
    }

    /// Writes the JSON of a record's attributes, if a row of it will have them.
    fn write(&mut self, own: Table, events: &[EventRow], attributes: &[KeyValue<'_>]) {
        self.json.clear();
        let is_bare = |event: &EventRow| event.attributes.is_empty();
        if self.makes(own) || (self.makes(Table::Events) && events.iter().any(is_bare)) {
            write_attributes(&mut self.json, attributes);
        }
    }

    /// Adds events; those without attributes have the record's, which were just written.
    fn push(&mut self, events: Vec<EventRow>) {
        if !self.makes(Table::Events) {
            return;
        }
        for mut event in events {
            // Lent to the row for as long as it is read.
            let is_bare = event.attributes.is_empty();
            if is_bare {
                swap(&mut event.attributes, &mut self.json);
            }
            self.events.push(&event);
            if is_bare {
                swap(&mut event.attributes, &mut self.json);
            }
        }
    }

    fn metric(&mut self, context: &RecordContext<'_>, shared: &Shared<'_>, record: &[u8]) {
        let Ok(metric) = Metric::decode(record) else { return };
        let metadata: Vec<KeyValue<'_>> = metric.metadata.iter().map(KeyValue::from).collect();
        let Tenancy { tenant, workspace } = shared.tenancy.of_record(&metadata, &mut []);
        self.metrics.push(&MetricRow { tenant, workspace, ..metric_row(context, &metric) });
    }
}
