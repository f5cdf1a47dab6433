-- The call's resource is not among the resources of its grant.
-- severity: high
-- tags: OWASP ASI02, OWASP ASI03, ATLAS AML.T0053, ATLAS AML.T0086
-- on: tool_call
-- fires: at once
SELECT 'proven' AS verdict, c.seq, c.trace_id, c.span_id, c.grant_id, c.agent_id,
       concat('resource ', c.resource, ' is not among those granted: ', array_to_string(g.resources, ', ')) AS detail,
       make_array(g.issued_seq, c.seq) AS evidence
FROM tool_calls c
JOIN grants g ON g.grant_id = c.grant_id AND same_tenant(g.tenant, c.tenant) AND g.state <> 'denied'
WHERE g.resources IS NOT NULL AND c.resource IS NOT NULL AND NOT authority_covers(g.resources, c.resource)
