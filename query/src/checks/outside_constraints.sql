-- An argument of the call is not what its grant allows.
-- severity: high
-- tags: OWASP ASI02, OWASP ASI03, ATLAS AML.T0053
-- on: tool_call
-- fires: at once
-- needs: authz.grant.constraints, gen_ai.tool.call.arguments
SELECT 'proven' AS verdict, c.seq, c.trace_id, c.span_id, c.grant_id, c.agent_id,
       concat('parameter ', outside_constraint(g.constraints, c.arguments), ' is not what grant ', g.grant_id, ' allows') AS detail,
       make_array(g.issued_seq, c.seq) AS evidence
FROM tool_calls c
JOIN grants g ON g.grant_id = c.grant_id AND same_tenant(g.tenant, c.tenant) AND g.state <> 'denied'
WHERE outside_constraint(g.constraints, c.arguments) IS NOT NULL
