-- A derived grant is for somebody else than its parent.
-- severity: high
-- tags: OWASP ASI03
-- on: grant_derived
-- fires: at once
SELECT 'proven' AS verdict, g.issued_seq AS seq, e.trace_id, e.span_id, g.grant_id, g.subject AS agent_id,
       concat('the parent is for ', p.initiator_id, ', the derived grant for ', g.initiator_id) AS detail,
       make_array(p.issued_seq, g.issued_seq) AS evidence
FROM grants g
JOIN events e ON e.seq = g.issued_seq
JOIN grants p ON p.grant_id = g.parent_grant_id AND same_tenant(p.tenant, g.tenant)
WHERE g.state <> 'denied' AND g.initiator_id <> p.initiator_id
