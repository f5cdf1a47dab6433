-- The executor saw other arguments than the caller sent: the digests differ.
-- severity: high
-- tags: OWASP ASI02, OWASP ASI07, ATLAS AML.T0053
-- on: tool_call
-- fires: at once
-- needs: authz.arguments.digest
SELECT 'proven' AS verdict, c.seq, c.trace_id, c.span_id, c.grant_id, c.agent_id,
       concat('the executor decided about other arguments than those of call ', c.tool_call_id) AS detail,
       make_array(min(d.seq), c.seq) AS evidence
FROM events c
JOIN events d ON d.kind = 'executor_decision' AND d.tool_call_id = c.tool_call_id AND d.trace_id = c.trace_id AND same_tenant(d.tenant, c.tenant)
             AND json_as_text(d.attributes, 'authz.arguments.digest') <> json_as_text(c.attributes, 'authz.arguments.digest')
WHERE c.kind = 'tool_call'
GROUP BY c.seq, c.trace_id, c.span_id, c.grant_id, c.agent_id, c.tool_call_id
