-- The call's action is not among the actions of its grant.
-- severity: high
-- tags: OWASP ASI02, OWASP ASI03, ATLAS AML.T0053
SELECT 'outside_actions' AS check_id, 'proven' AS verdict, 'high' AS severity,
       c.seq, c.trace_id, c.span_id, c.grant_id, c.agent_id,
       concat('action ', c.action, ' is not among those granted: ', array_to_string(g.actions, ', ')) AS detail,
       make_array(g.issued_seq, c.seq) AS evidence, c.event_time AS detected_time
FROM tool_calls c
JOIN grants g ON g.grant_id = c.grant_id AND g.state <> 'denied'
WHERE c.action IS NOT NULL AND NOT authority_covers(g.actions, c.action)
