-- A grant was derived by somebody else than the agent that held its parent.
-- severity: high
-- tags: OWASP ASI03, OWASP ASI07
-- on: grant_derived
-- fires: at once
-- default: off
-- needs: authz.grant.issuer
SELECT 'proven' AS verdict, g.issued_seq AS seq, e.trace_id, e.span_id, g.grant_id, g.subject AS agent_id,
       concat(g.issuer, ' passed on grant ', p.grant_id, ', which was given to ', p.subject) AS detail,
       make_array(p.issued_seq, g.issued_seq) AS evidence
FROM grants g
JOIN events e ON e.seq = g.issued_seq
JOIN grants p ON p.grant_id = g.parent_grant_id AND same_tenant(p.tenant, g.tenant)
WHERE g.state <> 'denied' AND json_as_text(e.attributes, 'authz.grant.issuer') <> p.subject
