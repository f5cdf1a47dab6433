-- The call began after its grant, or a grant above it, had been revoked.
-- severity: high
-- tags: OWASP ASI03, ATLAS AML.T0053
-- on: tool_call
-- fires: at once
SELECT 'proven' AS verdict, c.seq, c.trace_id, c.span_id, c.grant_id, c.agent_id,
       concat('tool ', c.tool, ' was called under a grant that had been revoked at ',
              CAST(g.revoked_time AS VARCHAR)) AS detail,
       make_array(g.issued_seq, g.revoked_seq, c.seq) AS evidence
FROM tool_calls c
JOIN grants g ON g.grant_id = c.grant_id AND same_tenant(g.tenant, c.tenant) AND g.state <> 'denied'
WHERE g.revoked_time IS NOT NULL AND c.event_time > g.revoked_time
