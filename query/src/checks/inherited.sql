-- A sub-agent acts under the grant of the agent that called it, instead of one of its own.
-- severity: medium
-- tags: OWASP ASI03, OWASP ASI08
-- on: tool_call
-- fires: at once
SELECT 'proven' AS verdict, c.seq, c.trace_id, c.span_id, c.grant_id, c.agent_id,
       concat('agent ', c.agent_id, ' acted under the grant of ', g.subject, ', which called it') AS detail,
       make_array(g.issued_seq, min(n.seq), c.seq) AS evidence
FROM tool_calls c
JOIN grants g ON g.grant_id = c.grant_id AND same_tenant(g.tenant, c.tenant) AND g.state <> 'denied'
JOIN events n ON n.trace_id = c.trace_id AND n.kind = 'agent_invocation' AND n.agent_id = c.agent_id AND same_tenant(n.tenant, coalesce(c.tenant, g.tenant))
JOIN events o ON o.trace_id = c.trace_id AND o.span_id = n.parent_span_id AND o.agent_id = g.subject AND same_tenant(o.tenant, coalesce(c.tenant, g.tenant, n.tenant))
WHERE c.agent_id <> g.subject
GROUP BY c.seq, c.trace_id, c.span_id, c.grant_id, c.agent_id, g.issued_seq, g.subject
