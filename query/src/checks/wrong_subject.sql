-- The acting agent is not the one that the grant was given to.
-- severity: high
-- tags: OWASP ASI03, ATLAS AML.T0053, ATLAS AML.T0091.000
-- on: tool_call
-- fires: at once
SELECT 'proven' AS verdict, c.seq, c.trace_id, c.span_id, c.grant_id, c.agent_id,
       concat('agent ', c.agent_id, ' acted under a grant given to ', g.subject) AS detail,
       make_array(g.issued_seq, c.seq) AS evidence
FROM tool_calls c
JOIN grants g ON g.grant_id = c.grant_id AND same_tenant(g.tenant, c.tenant) AND g.state <> 'denied'
WHERE c.agent_id <> g.subject
