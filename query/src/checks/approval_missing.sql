-- The grant needs a person's approval, and the call began without one.
-- severity: high
-- tags: OWASP ASI09, OWASP ASI03, ATLAS AML.T0053
-- on: tool_call
-- fires: after grace
-- needs: authz.grant.approval.state
SELECT 'proven' AS verdict, c.seq, c.trace_id, c.span_id, c.grant_id, c.agent_id,
       concat('grant ', g.grant_id, ' needs an approval, and none was given before the call') AS detail,
       make_array(g.issued_seq, c.seq) AS evidence
FROM tool_calls c
JOIN grants g ON g.grant_id = c.grant_id AND (g.tenant IS NOT DISTINCT FROM c.tenant) AND g.state <> 'denied'
JOIN events i ON i.seq = g.issued_seq
LEFT JOIN (
    SELECT a.grant_id, min(a.event_time) AS since FROM events a
    WHERE a.kind = 'approval' AND a.decision = 'approved' AND coalesce(cardinality(a.invalid_reasons), 0) = 0
    GROUP BY a.grant_id
) a ON a.grant_id = c.grant_id AND a.since <= c.event_time
WHERE json_as_text(i.attributes, 'authz.grant.approval.state') IN ('pending', 'required', 'rejected') AND a.since IS NULL
