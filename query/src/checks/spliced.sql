-- A derived grant names another parent than the one that the ledger has: the digests differ.
-- severity: critical
-- tags: OWASP ASI03, OWASP ASI07
-- on: grant_derived
-- fires: at once
-- needs: authz.grant.parent_hash, authz.grant.hash
SELECT 'proven' AS verdict, g.issued_seq AS seq, e.trace_id, e.span_id, g.grant_id, g.subject AS agent_id,
       concat('grant ', g.grant_id, ' was derived from another grant than ', p.grant_id, ' as the ledger has it') AS detail,
       make_array(p.issued_seq, g.issued_seq) AS evidence
FROM grants g
JOIN events e ON e.seq = g.issued_seq
JOIN grants p ON p.grant_id = g.parent_grant_id AND same_tenant(p.tenant, g.tenant)
JOIN events i ON i.seq = p.issued_seq
WHERE json_as_text(e.attributes, 'authz.grant.parent_hash') <> json_as_text(i.attributes, 'authz.grant.hash')
