-- One actor took two steps that must be apart: issued a grant, and approved it.
-- severity: high
-- tags: OWASP ASI09, OWASP ASI03
-- on: approval
-- fires: at once
-- needs: authz.approval.by, authz.grant.issuer
SELECT 'proven' AS verdict, c.seq, c.trace_id, c.span_id, c.grant_id, c.agent_id,
       concat(json_as_text(c.attributes, 'authz.approval.by'), ' issued grant ', g.grant_id, ' and approved it') AS detail,
       make_array(g.issued_seq, c.seq) AS evidence
FROM events c
JOIN grants g ON g.grant_id = c.grant_id AND same_tenant(g.tenant, c.tenant) AND g.state <> 'denied'
WHERE c.kind = 'approval' AND c.decision = 'approved' AND json_as_text(c.attributes, 'authz.approval.by') = g.issuer
