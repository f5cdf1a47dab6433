-- The token of a grant does not verify with its issuer's keys.
-- severity: critical
-- tags: OWASP ASI03, OWASP ASI07
-- on: grant_issued, grant_derived
-- fires: at once
-- needs: authz.grant.token or authz.grant.signature.state
SELECT 'proven' AS verdict, g.issued_seq AS seq, e.trace_id, e.span_id, g.grant_id, g.subject AS agent_id,
       concat('the token of grant ', g.grant_id, ' is not signed by its issuer') AS detail,
       make_array(g.issued_seq) AS evidence
FROM grants g
JOIN events e ON e.seq = g.issued_seq
WHERE g.signature = 'invalid' OR json_as_text(e.attributes, 'authz.grant.signature.state') = 'invalid'
