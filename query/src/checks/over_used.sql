-- More calls than the grant is good for, in the order in which the ledger took them.
-- severity: medium
-- tags: OWASP ASI02, OWASP ASI03, ATLAS AML.T0053
-- on: tool_call
-- fires: at once
-- needs: authz.grant.max_uses
SELECT 'proven' AS verdict, c.seq, c.trace_id, c.span_id, c.grant_id, c.agent_id,
       concat('use ', CAST(u.nth AS VARCHAR), ' of a grant that is good for ', CAST(g.max_uses AS VARCHAR)) AS detail,
       make_array(g.issued_seq, c.seq) AS evidence
FROM tool_calls c
JOIN grants g ON g.grant_id = c.grant_id AND (g.tenant = c.tenant OR g.tenant IS NULL OR c.tenant IS NULL) AND g.state <> 'denied'
JOIN call_uses u ON u.seq = c.seq
WHERE u.nth > g.max_uses
