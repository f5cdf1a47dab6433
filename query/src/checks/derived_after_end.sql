-- A grant was derived from one that had expired or been revoked.
-- severity: high
-- tags: OWASP ASI03
-- on: grant_derived
-- fires: at once
SELECT 'proven' AS verdict, g.issued_seq AS seq, e.trace_id, e.span_id, g.grant_id, g.subject AS agent_id,
       concat('grant ', g.grant_id, ' was derived after its parent ', p.grant_id, ' had ended') AS detail,
       array_remove_all(make_array(p.issued_seq, p.revoked_seq, g.issued_seq), NULL) AS evidence
FROM grants g
JOIN events e ON e.seq = g.issued_seq
JOIN grants p ON p.grant_id = g.parent_grant_id AND same_tenant(p.tenant, g.tenant)
WHERE g.state <> 'denied' AND (g.issued_time > p.expires_at OR g.issued_time > p.revoked_time)
