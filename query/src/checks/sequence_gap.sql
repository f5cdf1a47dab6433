-- A source that numbers its records skipped a number. All its records are looked at, also those that are no events; a source that leaves numbers out as a rule is passed over.
-- severity: medium
-- tags: OWASP ASI07
-- on: record
-- fires: after grace
-- needs: event.sequence or metadata.sequence
-- setting numbered_min: 5 | how many smaller numbers of the source must have come
-- setting share_min: 0.9 | how many of those must follow directly one upon the other
SELECT 'probable' AS verdict, n.seq, n.trace_id, n.span_id, e.grant_id, e.agent_id,
       concat(coalesce(n.service, 'a source'), ' numbered a record ', CAST(n.number AS VARCHAR), ' after ', CAST(n.earlier_number AS VARCHAR),
              ', and what is between never came') AS detail,
       make_array(n.earlier_seq, n.seq) AS evidence
FROM numbered n
LEFT JOIN events e ON e.seq = n.seq
WHERE n.previous_seq IS NULL AND n.earlier_seq IS NOT NULL
  AND n.before >= setting('numbered_min', e.workspace)
  AND n.following >= setting('share_min', e.workspace) * (CAST(n.before AS DOUBLE) - 1)
