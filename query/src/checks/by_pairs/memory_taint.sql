-- A memory was written after untrusted content was read, and read later in the conversation before something was written or sent.
-- severity: high
-- tags: OWASP ASI06, ATLAS AML.T0051.001, ATLAS AML.T0080.000
-- on: tool_call
-- fires: at once
-- needs: memory.id, memory.operation, authz.context.trust, authz.effect
SELECT 'probable' AS verdict, c.seq, c.trace_id, c.span_id, c.grant_id, c.agent_id,
       concat('memory ', min(json_as_text(w.attributes, 'memory.id')), ' was written after untrusted content was read, and led to ', c.tool) AS detail,
       make_array(min(u.seq), min(w.seq), min(r.seq), c.seq) AS evidence
FROM events c
JOIN events r ON r.conversation_id = c.conversation_id AND json_as_text(r.attributes, 'memory.operation') = 'read' AND r.event_time <= c.event_time AND same_tenant(r.tenant, c.tenant)
JOIN events w ON w.conversation_id = c.conversation_id AND json_as_text(w.attributes, 'memory.operation') = 'write' AND json_as_text(w.attributes, 'memory.id') = json_as_text(r.attributes, 'memory.id') AND w.event_time <= r.event_time AND same_tenant(w.tenant, coalesce(c.tenant, r.tenant))
JOIN events u ON u.conversation_id = c.conversation_id AND json_as_text(u.attributes, 'authz.context.trust') = 'untrusted' AND u.event_time <= w.event_time AND same_tenant(u.tenant, coalesce(c.tenant, r.tenant, w.tenant))
WHERE c.kind = 'tool_call' AND json_as_text(c.attributes, 'authz.effect') IN ('write', 'external_send') AND json_as_text(c.attributes, 'memory.operation') IS NULL
GROUP BY c.seq, c.trace_id, c.span_id, c.grant_id, c.agent_id, c.tool
