-- A grant was revoked, and what had been derived from it was used on.
-- severity: high
-- tags: OWASP ASI03, ATLAS AML.T0053
-- on: tool_call
-- fires: at once
SELECT 'proven' AS verdict, c.seq, c.trace_id, c.span_id, c.grant_id, c.agent_id,
       concat('grant ', r.grant_id, ' had been revoked; grant ', c.grant_id, ', derived from it, was used') AS detail,
       make_array(g.issued_seq, g.revoked_seq, c.seq) AS evidence
FROM tool_calls c
JOIN grants g ON g.grant_id = c.grant_id AND same_tenant(g.tenant, c.tenant) AND g.state <> 'denied'
JOIN events r ON r.seq = g.revoked_seq
WHERE r.grant_id <> c.grant_id AND c.event_time > g.revoked_time
