-- Something was done in a session that had ended.
-- severity: medium
-- tags: OWASP ASI03, ATLAS AML.T0053
-- on: tool_call
-- fires: at once
-- needs: session.state
SELECT 'proven' AS verdict, c.seq, c.trace_id, c.span_id, c.grant_id, c.agent_id,
       concat('session ', c.conversation_id, ' had ended at ', CAST(min(e.since) AS VARCHAR)) AS detail,
       make_array(first_value(e.seq ORDER BY e.since, e.seq), c.seq) AS evidence
FROM events c
JOIN (
    SELECT e.conversation_id, e.tenant, min(e.event_time) AS since, first_value(e.seq ORDER BY e.event_time, e.seq) AS seq FROM events e
    WHERE json_as_text(e.attributes, 'session.state') IN ('ended', 'terminated', 'revoked')
    GROUP BY e.conversation_id, e.tenant
) e ON e.conversation_id = c.conversation_id AND same_tenant(e.tenant, c.tenant) AND e.since < c.event_time
WHERE c.kind = 'tool_call'
GROUP BY c.seq, c.trace_id, c.span_id, c.grant_id, c.agent_id, c.conversation_id
