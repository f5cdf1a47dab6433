// Traces, logs and metrics by OpenTelemetry's SDK for Node.js, as NodeSDK makes them: nothing
// is configured but the environment. Prints the ids of the spans that ended.
'use strict';

const { NodeSDK } = require('@opentelemetry/sdk-node');
const { SpanStatusCode, metrics, trace } = require('@opentelemetry/api');
const { SeverityNumber, logs } = require('@opentelemetry/api-logs');

const sdk = new NodeSDK();
sdk.start();

const tracer = trace.getTracer('exporters', '1');
const logger = logs.getLogger('exporters');
const counter = metrics.getMeter('exporters').createCounter('calls');
const ended = [];
const end = (span) => {
  span.end();
  ended.push(`${span.spanContext().traceId}:${span.spanContext().spanId}`);
};

tracer.startActiveSpan('invoke_agent teller', { attributes: { 'gen_ai.operation.name': 'invoke_agent', 'gen_ai.agent.name': 'teller' } }, (agent) => {
  logger.emit({
    eventName: 'authz.request', body: 'please pay', severityNumber: SeverityNumber.INFO, severityText: 'INFO',
    attributes: { 'authz.initiator.type': 'user', 'authz.initiator.id': 'emma' },
  });
  tracer.startActiveSpan('execute_tool send_money', { attributes: {
    'gen_ai.operation.name': 'execute_tool', 'gen_ai.tool.name': 'send_money',
    'gen_ai.tool.call.id': 'call-1', 'gen_ai.tool.call.arguments': '{"to":"ünïcode"}',
  } }, (call) => {
    call.setStatus({ code: SpanStatusCode.ERROR, message: 'refused' });
    end(call);
  });
  // More than one batch of the default size, 512.
  for (let i = 0; i < 1000; i += 1) end(tracer.startSpan(`step ${i}`));
  end(agent);
});
counter.add(3);
sdk.shutdown().then(() => process.stdout.write(JSON.stringify(ended.sort())));
