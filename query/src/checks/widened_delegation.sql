-- A derived grant exceeds its parent in some dimension.
-- severity: critical
-- tags: OWASP ASI03, OWASP ASI08, ATLAS AML.T0053
-- on: grant_issued, grant_derived
-- fires: at once
SELECT 'proven' AS verdict, g.issued_seq AS seq, e.trace_id, e.span_id, g.grant_id, g.subject AS agent_id,
       concat('grant ', g.grant_id, ' exceeds its parent ', g.parent_grant_id, ' in ',
              array_to_string(g.widened_by, ', ')) AS detail,
       make_array(p.issued_seq, g.issued_seq) AS evidence
FROM grants g
JOIN grants p ON p.grant_id = g.parent_grant_id AND same_tenant(p.tenant, g.tenant)
JOIN events e ON e.seq = g.issued_seq
WHERE g.state <> 'denied' AND cardinality(g.widened_by) > 0
