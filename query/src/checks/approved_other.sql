-- What was executed is not what the approver was shown: the digests differ.
-- severity: critical
-- tags: OWASP ASI09, ATLAS AML.T0053
-- on: tool_call
-- fires: after grace
-- needs: authz.approval.shown_digest, authz.arguments.digest
SELECT 'proven' AS verdict, c.seq, c.trace_id, c.span_id, c.grant_id, c.agent_id,
       'what was approved is not what was executed' AS detail,
       make_array(min(a.seq), c.seq) AS evidence
FROM events c
JOIN events a ON a.kind = 'approval' AND a.decision = 'approved' AND a.tool_call_id = c.tool_call_id
             AND a.trace_id = c.trace_id AND same_tenant(a.tenant, c.tenant)
             AND json_as_text(a.attributes, 'authz.approval.shown_digest') <> json_as_text(c.attributes, 'authz.arguments.digest')
LEFT ANTI JOIN events b ON b.kind = 'approval' AND b.decision = 'approved' AND b.tool_call_id = c.tool_call_id
                       AND b.trace_id = c.trace_id AND same_tenant(b.tenant, coalesce(c.tenant, a.tenant))
                       AND json_as_text(b.attributes, 'authz.approval.shown_digest') = json_as_text(c.attributes, 'authz.arguments.digest')
WHERE c.kind = 'tool_call'
GROUP BY c.seq, c.trace_id, c.span_id, c.grant_id, c.agent_id
