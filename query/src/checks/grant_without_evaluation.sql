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
LEFT ANTI JOIN (
    SELECT p.trace_id, p.tenant, min(p.event_time) AS since FROM events p
    WHERE p.kind = 'policy_evaluation' AND p.decision = 'allow' AND coalesce(cardinality(p.invalid_reasons), 0) = 0
    GROUP BY p.trace_id, p.tenant
) t ON t.trace_id = e.trace_id AND same_tenant(t.tenant, g.tenant) AND t.since <= g.issued_time
LEFT ANTI JOIN (
    SELECT p.grant_id, p.tenant, min(p.event_time) AS since FROM events p
    WHERE p.kind = 'policy_evaluation' AND p.decision = 'allow' AND coalesce(cardinality(p.invalid_reasons), 0) = 0
    GROUP BY p.grant_id, p.tenant
) n ON n.grant_id = g.grant_id AND same_tenant(n.tenant, g.tenant) AND n.since <= g.issued_time
WHERE e.kind = 'grant_issued' AND g.parent_grant_id IS NULL
