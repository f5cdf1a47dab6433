-- Something was done in a session that had ended.
-- severity: medium
-- tags: OWASP ASI03, ATLAS AML.T0053
-- on: tool_call
-- fires: at once
-- needs: session.state
SELECT 'proven' AS verdict, c.seq, c.trace_id, c.span_id, c.grant_id, c.agent_id,
       concat('session ', c.conversation_id, ' had ended at ', CAST(min(e.event_time) AS VARCHAR)) AS detail,
       make_array(min(e.seq), c.seq) AS evidence
FROM events c
JOIN events e ON e.conversation_id = c.conversation_id AND e.event_time < c.event_time AND same_tenant(e.tenant, c.tenant)
             AND json_as_text(e.attributes, 'session.state') IN ('ended', 'terminated', 'revoked')
WHERE c.kind = 'tool_call'
GROUP BY c.seq, c.trace_id, c.span_id, c.grant_id, c.agent_id, c.conversation_id
