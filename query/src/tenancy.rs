//! Whose a record is: its tenant and its workspace, by which rows are shown or hidden.
//!
//! Both are what the sender says, in the record's attributes or else in its resource. There is one
//! answer for a record: its row in `spans`, `logs` or `metrics`, its events, its entry in `ledger`,
//! its proof and its bytes are all shown or all hidden.

use std::sync::Arc;

use custody_proto::Signal;
use custody_proto::otlp::metrics::Metric;
use custody_proto::wire::{InstrumentationScope, KeyValue, LogRecord, Resource, Span};
use custody_store::{Block, Content, Reader};
use prost::Message as _;

use crate::attributes::Attributes;
use crate::event::EventRow;
use crate::mapping::{RecordContext, bare_log, bare_span};
use crate::rows::Time;

/// Attributes that name a tenant, of a record or of a resource; the first wins.
pub(crate) const TENANT: [&str; 2] = ["tenant.id", "custody.tenant"];

/// Attributes that name a workspace, of a record or of a resource.
pub(crate) const WORKSPACE: [&str; 4] =
    ["authz.grant.workspace", "authz.workspace", "custody.workspace", "workspace.id"];

/// Which tenants a submitter may speak for; `None` is not bound to any.
pub type Bindings = Arc<dyn Fn(&str) -> Option<Arc<[String]>> + Send + Sync>;

/// Whose a record is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tenancy {
    pub(crate) tenant: Option<String>,
    pub(crate) workspace: Option<String>,
}

impl Tenancy {
    /// What a resource says of its records.
    pub(crate) fn of_resource(resource: &Resource<'_>) -> Self {
        let attributes = Attributes(&resource.attributes);
        Self { tenant: attributes.first(&TENANT), workspace: attributes.first(&WORKSPACE) }
    }

    /// What holds for a record of that resource: its own word first, then what its mapping reads
    /// out of it, then the resource's. Its events get the same.
    pub(crate) fn of_record(&self, attributes: &[KeyValue<'_>], events: &mut [EventRow]) -> Self {
        let attributes = Attributes(attributes);
        let tenant = attributes.first(&TENANT).or_else(|| events.iter().find_map(|e| e.tenant.clone()));
        let workspace = attributes.first(&WORKSPACE).or_else(|| events.iter().find_map(|e| e.workspace.clone()));
        let own = Self {
            tenant: tenant.or_else(|| self.tenant.clone()),
            workspace: workspace.or_else(|| self.workspace.clone()),
        };
        for event in events {
            event.tenant.clone_from(&own.tenant);
            event.workspace.clone_from(&own.workspace);
        }
        own
    }

    /// Of the `i`-th record of a block, off the log; `None` if its content is erased.
    pub(crate) fn of_block(block: &Block, i: usize) -> Option<Self> {
        let content = block.content.as_ref().filter(|content| !content.is_erased(i))?;
        let resource = Resource::read(content.resource(i)).unwrap_or_default();
        Some(Self::decoded(block.commitments.signal, content, i, &resource))
    }

    /// Of any record of a log. Nobody's where that cannot be told, so that it is hidden from callers who see some rows:
    /// its content is erased or cannot be read.
    pub(crate) fn of_seq(reader: &Reader, seq: u64) -> Self {
        let block = reader.block_at(seq).ok().flatten();
        let of = block.and_then(|block| Self::of_block(&block, (seq - block.commitments.first_seq) as usize));
        of.unwrap_or_default()
    }

    fn decoded(signal: Signal, content: &Content, i: usize, resource: &Resource<'_>) -> Self {
        let scope = InstrumentationScope::read(content.scope(i)).unwrap_or_default();
        let submitter = content.identity();
        let ingest_time = Time::default();
        let context = RecordContext { seq: 0, record_hash: "", ingest_time, submitter, resource, scope: &scope };
        let shared = Self::of_resource(resource);
        match signal {
            Signal::Traces => {
                let span = Span::read(content.record(i)).unwrap_or_default();
                shared.of_record(&span.attributes, &mut bare_span(&context, &span))
            }
            Signal::Logs => {
                let log = LogRecord::read(content.record(i)).unwrap_or_default();
                shared.of_record(&log.attributes, &mut bare_log(&context, &log))
            }
            Signal::Metrics => {
                let metric = Metric::decode(content.record(i)).unwrap_or_default();
                let metadata: Vec<KeyValue<'_>> = metric.metadata.iter().map(KeyValue::from).collect();
                shared.of_record(&metadata, &mut [])
            }
        }
    }
}
