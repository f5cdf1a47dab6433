-- The grant was never issued in the ledger for the tenant of the call, or only by a record that breaks the model's rules, or
-- was derived from a grant that was refused or breaks them (a call after the end of such a grant is `expired_grant`).
-- severity: high
-- tags: OWASP ASI03, ATLAS AML.T0053
-- on: tool_call
-- fires: after grace
SELECT 'proven' AS verdict, c.seq, c.trace_id, c.span_id, c.grant_id, c.agent_id,
       concat('tool ', c.tool, ' was called under grant ', c.grant_id, ', which was never validly issued') AS detail,
       make_array(c.seq) AS evidence
FROM tool_calls c
LEFT ANTI JOIN grants g ON g.grant_id = c.grant_id AND same_tenant(g.tenant, c.tenant) AND g.state <> 'denied'
                   AND (g.state <> 'invalid' AND g.lineage NOT IN ('refused', 'invalid') OR c.event_time > g.expires_at)
WHERE c.grant_id IS NOT NULL
