//! The recorded agents: AgentDojo runs of real models as OTLP requests, carried
//! in the binary so that the demo needs nothing else.

use std::io::Read as _;

use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::collector::logs::v1::logs_service_client::LogsServiceClient;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_client::TraceServiceClient;
use prost::Message as _;
use tonic::transport::Channel;

use crate::Failure;

/// Frames of u8 signal (1 traces, 2 logs), u32 length, request; tests/fixtures/agentdojo/README.md.
const RECORDING: &[u8] = include_bytes!("../../tests/fixtures/agentdojo/requests.otlp.zst");

/// One recorded request.
pub enum Request {
    /// Spans.
    Traces(ExportTraceServiceRequest),
    /// Log records.
    Logs(ExportLogsServiceRequest),
}

/// The recorded requests, in the order in which they were sent.
pub fn requests() -> Result<Vec<Request>, Failure> {
    let mut bytes = Vec::new();
    let decoder = zstd::stream::read::Decoder::new(RECORDING);
    decoder.and_then(|mut d| d.read_to_end(&mut bytes)).map_err(Failure::unable)?;
    let mut rest = bytes.as_slice();
    let mut out = Vec::new();
    while let [signal, a, b, c, d, tail @ ..] = rest {
        let len = u32::from_be_bytes([*a, *b, *c, *d]) as usize;
        let (body, after) =
            tail.split_at_checked(len).ok_or_else(|| Failure::unable("the recording in this binary is cut off"))?;
        out.push(match signal {
            1 => Request::Traces(ExportTraceServiceRequest::decode(body).map_err(Failure::unable)?),
            _ => Request::Logs(ExportLogsServiceRequest::decode(body).map_err(Failure::unable)?),
        });
        rest = after;
    }
    Ok(out)
}

/// A client of both OTLP/gRPC services.
pub struct Client {
    traces: TraceServiceClient<Channel>,
    logs: LogsServiceClient<Channel>,
}

impl Client {
    /// Connects to an OTLP/gRPC receiver.
    pub async fn connect(address: &str) -> Result<Self, Failure> {
        let channel = Channel::from_shared(format!("http://{address}")).map_err(Failure::unable)?;
        let channel = channel.connect().await.map_err(Failure::unable)?;
        Ok(Self { traces: TraceServiceClient::new(channel.clone()), logs: LogsServiceClient::new(channel) })
    }

    /// Sends a request; returns when it is acknowledged, which means durable.
    pub async fn send(&mut self, request: Request) -> Result<(), Failure> {
        match request {
            Request::Traces(request) => self.traces.export(request).await.map(drop),
            Request::Logs(request) => self.logs.export(request).await.map(drop),
        }
        .map_err(|status| Failure::unable(format!("a request was not acknowledged: {status}")))
    }
}
