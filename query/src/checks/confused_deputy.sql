-- A resource of one person was touched under a grant for another.
-- severity: high
-- tags: OWASP ASI03, ATLAS AML.T0053
-- on: tool_call
-- fires: at once
-- needs: authz.resource.owner
SELECT 'probable' AS verdict, c.seq, c.trace_id, c.span_id, c.grant_id, c.agent_id,
       concat('a resource of ', json_as_text(c.attributes, 'authz.resource.owner'), ' was touched under a grant for ', g.initiator_id) AS detail,
       make_array(g.issued_seq, c.seq) AS evidence
FROM events c
JOIN grants g ON g.grant_id = c.grant_id AND same_tenant(g.tenant, c.tenant) AND g.state <> 'denied'
WHERE c.kind = 'tool_call' AND json_as_text(c.attributes, 'authz.resource.owner') <> g.initiator_id
