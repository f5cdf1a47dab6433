-- Two records give one grant id differently: in what they allow, to whom, or in who gave it. Calls are judged by the narrower, where one lies inside the other, else by the first.
-- severity: high
-- tags: OWASP ASI03, OWASP ASI07
-- on: grant_issued, grant_derived
-- fires: at once
SELECT 'proven' AS verdict, e.seq, e.trace_id, e.span_id, g.grant_id, e.agent_id,
       concat('record ', CAST(e.seq AS VARCHAR), ' gives grant ', g.grant_id, ' otherwise than record ',
              CAST(array_element(g.conflicting_seqs, 1) AS VARCHAR), ' had') AS detail,
       g.conflicting_seqs AS evidence
FROM grants g
JOIN events e ON e.seq = array_element(g.conflicting_seqs, 2) AND e.grant_id = g.grant_id
WHERE cardinality(g.conflicting_seqs) = 2
