-- The grant was derived more often than a grant above it allows.
-- severity: high
-- tags: OWASP ASI03, OWASP ASI08
-- on: grant_issued, grant_derived
-- fires: at once
-- needs: authz.grant.max_depth
SELECT 'proven' AS verdict, g.issued_seq AS seq, e.trace_id, e.span_id, g.grant_id, g.subject AS agent_id,
       concat('grant ', g.grant_id, ' is ', CAST(g.depth AS VARCHAR), ' deep; grant ', p.grant_id, ', which is ',
              CAST(p.depth AS VARCHAR), ' deep, allows ', CAST(p.max_depth AS VARCHAR), ' more') AS detail,
       make_array(p.issued_seq, g.issued_seq) AS evidence
FROM grants g
JOIN grants p ON p.grant_id = g.deepest_by AND same_tenant(p.tenant, g.tenant)
JOIN events e ON e.seq = g.issued_seq
WHERE g.state <> 'denied' AND g.depth > g.deepest
