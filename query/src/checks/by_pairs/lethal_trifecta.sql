-- Within one trace private data was read, untrusted content was read, and then something was sent out.
-- severity: critical
-- tags: OWASP ASI01, OWASP ASI02, ATLAS AML.T0051.001, ATLAS AML.T0086
-- on: tool_call, output
-- fires: at once
-- needs: authz.context.trust, data.classification, authz.effect
SELECT 'probable' AS verdict, c.seq, c.trace_id, c.span_id, c.grant_id, c.agent_id,
       concat('after private data and untrusted content were read, ', coalesce(c.tool, 'output'), ' sent something out') AS detail,
       make_array(min(u.seq), min(r.seq), c.seq) AS evidence
FROM events c
JOIN events u ON u.trace_id = c.trace_id AND u.event_time <= c.event_time AND u.seq <> c.seq AND same_tenant(u.tenant, c.tenant) AND json_as_text(u.attributes, 'authz.context.trust') = 'untrusted'
JOIN events r ON r.trace_id = c.trace_id AND r.event_time <= c.event_time AND same_tenant(r.tenant, c.tenant) AND r.classification IN ('private', 'confidential', 'restricted', 'secret', 'pii') AND r.kind IN ('context_retrieval', 'tool_call')
WHERE c.kind = 'output' OR (c.kind = 'tool_call' AND json_as_text(c.attributes, 'authz.effect') = 'external_send')
GROUP BY c.seq, c.trace_id, c.span_id, c.grant_id, c.agent_id, c.tool
