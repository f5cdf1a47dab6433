-- A first grant was issued without a policy that allowed it before.
-- severity: medium
-- tags: OWASP ASI03
-- on: grant_issued
-- fires: after grace
-- default: off
SELECT 'proven' AS verdict, g.issued_seq AS seq, e.trace_id, e.span_id, g.grant_id, g.subject AS agent_id,
       concat('no policy evaluation allows grant ', g.grant_id) AS detail,
       make_array(g.issued_seq) AS evidence
FROM grants g
JOIN events e ON e.seq = g.issued_seq
LEFT ANTI JOIN events p ON p.kind = 'policy_evaluation' AND p.decision = 'allow' AND p.event_time <= g.issued_time AND same_tenant(p.tenant, g.tenant)
                       AND (p.trace_id = e.trace_id OR p.grant_id = g.grant_id)
                       AND coalesce(cardinality(p.invalid_reasons), 0) = 0
WHERE e.kind = 'grant_issued' AND g.parent_grant_id IS NULL
