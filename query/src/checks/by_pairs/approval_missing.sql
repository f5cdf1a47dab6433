-- The grant, or one above it, needs a person's approval, and the call began without one, or after the newest decision was a rejection.
-- severity: high
-- tags: OWASP ASI09, OWASP ASI03, ATLAS AML.T0053
-- on: tool_call
-- fires: after grace
-- needs: authz.grant.approval.state
SELECT 'proven' AS verdict, c.seq, c.trace_id, c.span_id, c.grant_id, c.agent_id,
       concat('grant ', p.grant_id, ' needs an approval, and none was given before the call') AS detail,
       make_array(p.issued_seq, c.seq) AS evidence
FROM tool_calls c
JOIN grants g ON g.grant_id = c.grant_id AND same_tenant(g.tenant, c.tenant) AND g.state <> 'denied'
JOIN grants p ON array_has(g.awaits, p.grant_id) AND same_tenant(p.tenant, coalesce(c.tenant, g.tenant))
LEFT JOIN events a ON a.kind = 'approval' AND a.grant_id = p.grant_id AND a.event_time <= c.event_time AND same_tenant(a.tenant, coalesce(c.tenant, g.tenant, p.tenant)) AND lower(a.decision) = 'approved'
                  AND coalesce(cardinality(a.invalid_reasons), 0) = 0
                  AND (a.decision = 'approved' OR json_as_text(a.attributes, 'authz.approval.by') IS NOT NULL)
                  AND lower(coalesce(json_as_text(a.attributes, 'authz.approval.by_type'), 'human')) = 'human'
LEFT JOIN events r ON r.kind = 'approval' AND r.grant_id = p.grant_id AND r.event_time <= c.event_time AND same_tenant(r.tenant, coalesce(c.tenant, g.tenant, p.tenant))
                  AND lower(r.decision) NOT IN ('approved', 'pending', 'requested', 'required', 'not_required') AND (r.tool_call_id IS NULL OR r.tool_call_id = c.tool_call_id)
GROUP BY c.seq, c.trace_id, c.span_id, c.grant_id, c.agent_id, p.grant_id, p.issued_seq, coalesce(c.tenant, g.tenant, p.tenant)
HAVING max(a.event_time) IS NULL OR max(r.event_time) >= max(a.event_time)
