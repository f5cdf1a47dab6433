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
LEFT ANTI JOIN events a ON a.kind = 'approval' AND a.grant_id = c.grant_id AND a.decision = 'approved'
                       AND coalesce(cardinality(a.invalid_reasons), 0) = 0 AND a.event_time <= c.event_time
WHERE json_as_text(i.attributes, 'authz.grant.approval.state') IN ('pending', 'required', 'rejected')
