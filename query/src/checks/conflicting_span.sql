-- The same span id came again with other content, and not only because the span had ended since.
-- severity: high
-- tags: OWASP ASI07, ATLAS AML.T0053
-- on: span
-- fires: at once
SELECT 'proven' AS verdict, s.seq, s.trace_id, s.span_id, CAST(NULL AS VARCHAR) AS grant_id, CAST(NULL AS VARCHAR) AS agent_id,
       concat('span ', s.span_id, ' came with other content than before') AS detail,
       make_array(s.seq) AS evidence
FROM ledger l
JOIN spans s ON s.seq = l.seq
LEFT ANTI JOIN finished_spans f ON f.seq = s.seq
WHERE array_has(l.flags, 'conflicting_span')
