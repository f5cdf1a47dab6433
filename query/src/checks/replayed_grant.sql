-- The same grant and call come from two submitters.
-- severity: critical
-- tags: OWASP ASI03, ATLAS AML.T0053, ATLAS AML.T0091.000
-- on: tool_call
-- fires: at once
-- needs: gen_ai.tool.call.id
SELECT 'proven' AS verdict, c.seq, c.trace_id, c.span_id, c.grant_id, c.agent_id,
       concat('call ', c.tool_call_id, ' under grant ', c.grant_id, ' came from ', first_value(b.submitter ORDER BY b.seq), ' and from ', c.submitter) AS detail,
       make_array(min(b.seq), c.seq) AS evidence
FROM tool_calls c
JOIN tool_calls b ON b.grant_id = c.grant_id AND b.tool_call_id = c.tool_call_id AND b.submitter <> c.submitter
                 AND b.seq < c.seq AND same_tenant(b.tenant, c.tenant)
GROUP BY c.seq, c.trace_id, c.span_id, c.grant_id, c.agent_id, c.tool_call_id, c.submitter
