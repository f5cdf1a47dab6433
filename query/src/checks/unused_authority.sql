-- A grant ended, and nothing had been done under it: authority that nobody needed. Where grants are given in stock, many do: turn it on where each is given for something.
-- severity: informational
-- tags: OWASP ASI03
-- on: grant_end
-- fires: at once
-- default: off
-- needs: authz.grant.expires_at, or a revocation
SELECT 'probable' AS verdict, g.issued_seq AS seq, e.trace_id, e.span_id, g.grant_id, g.subject AS agent_id,
       concat('grant ', g.grant_id, ' ended at ', CAST(u.ended_time AS VARCHAR), ' and was never used') AS detail,
       array_remove_all(make_array(g.issued_seq, g.revoked_seq), NULL) AS evidence
FROM ended_grants u
JOIN grants g ON g.issued_seq = u.seq
JOIN events e ON e.seq = g.issued_seq
WHERE u.uses = 0
