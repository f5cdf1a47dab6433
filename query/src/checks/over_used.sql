-- More calls than the grant, or one above it, is good for, in the order in which the ledger took them; uses of what was derived from a grant are uses of it, too.
-- severity: medium
-- tags: OWASP ASI02, OWASP ASI03, ATLAS AML.T0053
-- on: tool_call
-- fires: at once
-- needs: authz.grant.max_uses
SELECT 'proven' AS verdict, c.seq, c.trace_id, c.span_id, c.grant_id, c.agent_id,
       concat('use ', CAST(u.over_nth AS VARCHAR), ' of ', CASE WHEN l.grant_id = c.grant_id THEN 'a grant' ELSE concat('grant ', l.grant_id) END,
              ' that is good for ', CAST(l.max_uses AS VARCHAR)) AS detail,
       make_array(l.issued_seq, c.seq) AS evidence
FROM tool_calls c
JOIN call_uses u ON u.seq = c.seq
JOIN grants l ON l.grant_id = u.over_grant_id AND (l.tenant IS NOT DISTINCT FROM u.over_tenant) AND l.state <> 'denied'
WHERE u.over_nth > l.max_uses
