-- The grant was derived more often than its parent, or the first grant of its chain, allows.
-- severity: high
-- tags: OWASP ASI03, OWASP ASI08
-- on: grant_issued, grant_derived
-- fires: at once
-- needs: authz.grant.max_depth
SELECT 'proven' AS verdict, g.issued_seq AS seq, e.trace_id, e.span_id, g.grant_id, g.subject AS agent_id,
       concat('grant ', g.grant_id, ' is ', CAST(g.depth AS VARCHAR), ' deep; grant ', min(p.grant_id), ' allows ',
              CAST(min(p.max_depth) AS VARCHAR)) AS detail,
       make_array(min(p.issued_seq), max(p.issued_seq), g.issued_seq) AS evidence
FROM grants g
JOIN grants p ON (p.grant_id = g.root_grant_id OR p.grant_id = g.parent_grant_id) AND (p.tenant = g.tenant OR p.tenant IS NULL AND g.tenant IS NULL)
JOIN events e ON e.seq = g.issued_seq
WHERE g.state <> 'denied' AND p.grant_id <> g.grant_id AND CAST(g.depth AS BIGINT) - CAST(p.depth AS BIGINT) > p.max_depth
GROUP BY g.issued_seq, e.trace_id, e.span_id, g.grant_id, g.subject, g.depth
